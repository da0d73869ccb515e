//! Snapshots as Parquet: `DIR/window=<window>/task=<task>/rows.parquet` and `_summary.json` a window, `DIR/_ledger.json`
//! a run. Columns and rows are
//! those of csv, in its order; which window the rows are of stands in the file's metadata.

use super::SinkError;
use super::columns::{Addresses, arrays, columns};
use super::folder::{Files, sync_file};
use super::text::rfc3339;
use crate::state::sync_folder;
use arrow_array::RecordBatch;
use dataflows::rows::{Snapshot, TaskRows, ValueKind};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Rows of a row group.
const ROW_GROUP: usize = 1 << 17;

/// The files of a window, written on several threads.
pub struct Parquet {
    /// Threads that write, at least 1.
    pub threads: usize,
}

impl Files for Parquet {
    const PREFIX: &'static str = "window=";
    /// Readers of data sets pass over names that begin so.
    const SUMMARY: &'static str = "_summary.json";
    const LEDGER: &'static str = "_ledger.json";

    fn build(&self, folder: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError> {
        let mut tasks: Vec<&TaskRows> = snapshot.tasks.iter().collect();
        // The largest first: it takes longest.
        tasks.sort_by_key(|task| std::cmp::Reverse(task.len()));
        let taken = AtomicUsize::new(0);
        let work = || {
            while let Some(task) = tasks.get(taken.fetch_add(1, Relaxed)) {
                let folder = folder.join(format!("task={}", task.name));
                fs::create_dir(&folder).map_err(SinkError::io("create the folder", &folder))?;
                let path = folder.join("rows.parquet");
                let file = File::create(&path).map_err(SinkError::io("create", &path))?;
                let file = write(file, snapshot, task).map_err(|error| {
                    let error = match error {
                        ParquetError::External(error) => io::Error::other(error),
                        error => io::Error::other(error),
                    };
                    SinkError::io("write", &path)(error)
                })?;
                if sync {
                    sync_file(&path, &file)?;
                    sync_folder(&folder).map_err(SinkError::io("sync", &folder))?;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..self.threads.min(tasks.len())).map(|_| scope.spawn(work)).collect();
            let own = work();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            others.into_iter().map(join).fold(own, Result::and)
        })
    }
}

fn write(file: File, snapshot: &Snapshot, task: &TaskRows) -> Result<File, ParquetError> {
    let schema = &task.schema;
    let columns = Arc::new(arrow_schema::Schema::new(columns(schema, Addresses::Text)));
    let mut writer = ArrowWriter::try_new(file, columns.clone(), Some(properties(snapshot, task)?))?;
    for piece in task.pieces(ROW_GROUP) {
        let mut rows = Vec::with_capacity(ROW_GROUP);
        task.visit(&piece, |row| rows.push(row));
        for rows in rows.chunks(ROW_GROUP) {
            writer.write(&RecordBatch::try_new(columns.clone(), arrays(schema, Addresses::Text, rows))?)?;
        }
    }
    writer.into_inner()
}

fn properties(snapshot: &Snapshot, task: &TaskRows) -> Result<WriterProperties, ParquetError> {
    let time = |time: Option<u64>| time.map(rfc3339).unwrap_or_default();
    let metadata = [
        ("task", task.name.to_string()),
        ("window_start", time(snapshot.span.map(|span| span.0))),
        ("window_end", time(snapshot.span.map(|span| span.1))),
        ("revision", snapshot.revision.to_string()),
    ];
    let metadata = metadata.map(|(key, value)| KeyValue::new(format!("netspectra.{key}"), value));
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_created_by(concat!("netspectra ", env!("CARGO_PKG_VERSION")).into())
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_key_value_metadata(Some(metadata.to_vec()));
    for column in &task.schema.values {
        if column.kind == ValueKind::Time {
            // Hardly a time is there twice.
            let path = ColumnPath::from(column.name);
            properties = properties
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_encoding(path, Encoding::DELTA_BINARY_PACKED);
        }
    }
    Ok(properties.build())
}
