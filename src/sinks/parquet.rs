//! Snapshots as Parquet: `DIR/window=<window>/task=<task>/rows.parquet` and `_summary.json` a window, `DIR/_ledger.json`
//! a run. Columns and rows are those of csv, in its order; which window the rows are of stands in the file's metadata.

use super::SinkError;
use super::columns::{Addresses, arrays, columns};
use super::folder::{self, Files, FolderTarget, sync_files};
use super::pieces::in_order;
use super::registry::{Target, WriterKind};
use super::text::rfc3339;
use crate::options::OwnOptions;
use crate::state::sync_folder;
use arrow_schema::{DataType, SchemaRef};
use dataflows::aggregator::OptionsError;
use dataflows::rows::{Piece, Snapshot, TaskRows};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves,
};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a row group.
const ROW_GROUP: usize = 1 << 17;

pub(super) const KIND: WriterKind = WriterKind { name: "parquet", keys: &["path"], read };

fn read(options: &OwnOptions) -> Result<Arc<dyn Target>, OptionsError> {
    Ok(Arc::new(FolderTarget { path: folder::path(options)?, files: |threads| Parquet { threads } }))
}

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
    /// Not all readers pass over names that begin with a dot: a level deeper their patterns do not find it.
    const ASIDE: &'static str = ".netspectra-partial";

    fn build(&self, folder: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError> {
        let tasks = &snapshot.tasks;
        let schema =
            |task: &TaskRows| Arc::new(arrow_schema::Schema::new(columns(&task.schema, Addresses::Text)));
        let schemas: Vec<SchemaRef> = tasks.iter().map(schema).collect();
        let (mut files, mut groups) = (Vec::new(), Vec::new());
        for (task, schema) in tasks.iter().zip(&schemas) {
            let folder = folder.join(format!("task={}", task.name));
            fs::create_dir(&folder).map_err(SinkError::io("create the folder", &folder))?;
            let path = folder.join("rows.parquet");
            let file = File::create(&path).map_err(SinkError::io("create", &path))?;
            let opened = properties(snapshot, task)
                .and_then(|properties| ArrowWriter::try_new(file, schema.clone(), Some(properties)))
                .and_then(ArrowWriter::into_serialized_writer);
            let (file, factory) = opened.map_err(failed(&path))?;
            files.push((path, file));
            groups.push(factory);
        }
        // What is made of a piece are the encoded columns of a row group.
        let make = |(): &mut (), task: usize, piece: &Piece| {
            encode(&tasks[task], piece, (&schemas[task], &groups[task])).map_err(failed(folder))
        };
        let put = |(path, file): &mut (PathBuf, SerializedFileWriter<File>), group: Vec<ArrowColumnChunk>| {
            let append = || {
                let mut into = file.next_row_group()?;
                group.into_iter().try_for_each(|column| column.append_to_row_group(&mut into))?;
                into.close()
            };
            append().map(drop).map_err(failed(path))
        };
        // A row group is large: none is made ahead of one that waits.
        let files = in_order((tasks, ROW_GROUP, 0), files, self.threads, make, put)?;
        for (path, file) in files {
            let file = file.into_inner().map_err(failed(&path))?;
            if sync {
                sync_files(&[(path.clone(), file)], sync)?;
                let folder = path.parent().unwrap_or(&path);
                sync_folder(folder).map_err(SinkError::io("sync", folder))?;
            }
        }
        Ok(())
    }
}

fn failed(path: &Path) -> impl Fn(ParquetError) -> SinkError + use<> {
    let failed = SinkError::io("write", path);
    move |error| failed(io::Error::other(error))
}

/// The columns of a piece as a row group has them.
fn encode(
    task: &TaskRows,
    piece: &Piece,
    (schema, groups): (&SchemaRef, &ArrowRowGroupWriterFactory),
) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    let mut rows = Vec::new();
    task.visit(piece, |row| rows.push(row));
    let mut writers = groups.create_column_writers(0)?;
    for ((writer, array), column) in
        writers.iter_mut().zip(arrays(&task.schema, Addresses::Text, &rows)).zip(schema.fields())
    {
        compute_leaves(column, &array)?.iter().try_for_each(|leaf| writer.write(leaf))?;
    }
    writers.into_iter().map(ArrowColumnWriter::close).collect()
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
    // Values seldom come again often enough to be worth a dictionary, and neighbours are alike.
    let encodings = task.schema.values.iter().map(|column| (column.name, Encoding::DELTA_BINARY_PACKED));
    let text = columns(&task.schema, Addresses::Text).into_iter().zip(task.schema.columns());
    let text = text.filter(|(column, _)| *column.data_type() == DataType::Utf8);
    for (name, encoding) in encodings.chain(text.map(|(_, name)| (name, Encoding::DELTA_LENGTH_BYTE_ARRAY))) {
        let path = ColumnPath::from(name);
        properties =
            properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
    }
    Ok(properties.build())
}
