//! Snapshots as JSON lines: `DIR/<window>/<task>.jsonl` and `summary.json`, or standard output. An object a row, which tells
//! its task, window and revision, then its cells as csv has them.

use super::delivery::Destination;
use super::folder::{self, Files, FolderTarget, sync_files};
use super::outbox::Entry;
use super::pieces::{LINES, write_lines};
use super::registry::{Opening, Target, WriterKind};
use super::text::{Text, rfc3339};
use super::{SinkError, TaskRows};
use crate::options::OwnOptions;
use dataflows::aggregator::OptionsError;
use dataflows::rows::{Row, Schema, Snapshot};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// Bytes of lines that are written at once.
const CHUNK: usize = 1 << 20;

pub(super) const KIND: WriterKind = WriterKind { name: "jsonl", keys: &["path"], read };

fn read(options: &OwnOptions) -> Result<Arc<dyn Target>, OptionsError> {
    Ok(match options.text("path")?.as_str() {
        "-" => Arc::new(StandardOutput),
        _ => Arc::new(FolderTarget { path: folder::path(options)?, files: |threads| JsonLines { threads } }),
    })
}

/// The files of a window, formatted on several threads.
pub struct JsonLines {
    /// Threads that format, at least 1.
    pub threads: usize,
}

impl Files for JsonLines {
    fn build(&self, folder: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError> {
        let mut files = Vec::with_capacity(snapshot.tasks.len());
        for task in &snapshot.tasks {
            let path = folder.join(format!("{}.jsonl", task.name));
            let file = File::create(&path).map_err(SinkError::io("create", &path))?;
            files.push((path, file));
        }
        let heads: Vec<_> = snapshot.tasks.iter().map(|task| head(task, snapshot)).collect();
        let files = write_lines(&snapshot.tasks, files, self.threads, |task, text, out, row| {
            line(&heads[task], text, out, &snapshot.tasks[task].schema, row);
        })?;
        sync_files(&files, sync)
    }
}

/// The beginning of all lines of a task.
fn head(task: &TaskRows, snapshot: &Snapshot) -> Vec<u8> {
    let time = |time: Option<u64>| time.map_or("null".into(), |time| format!("\"{}\"", rfc3339(time)));
    let (start, end) = (snapshot.span.map(|span| span.0), snapshot.span.map(|span| span.1));
    let (name, revision) = (&task.name, snapshot.revision);
    let window = format!("\"window_start\":{},\"window_end\":{}", time(start), time(end));
    format!("{{\"task\":\"{name}\",{window},\"revision\":{revision},").into_bytes()
}

/// Appends a line without its end.
fn line(head: &[u8], text: &mut Text, out: &mut Vec<u8>, schema: &Schema, row: &Row<'_>) {
    out.extend_from_slice(head);
    text.members(out, schema, row);
    out.push(b'}');
}

/// Gives every row of a snapshot as the object that a line holds, without its end.
pub fn rows<E>(snapshot: &Snapshot, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let (mut text, mut out) = (Text::default(), Vec::new());
    for task in &snapshot.tasks {
        let head = head(task, snapshot);
        for piece in task.pieces(LINES) {
            let mut given = Ok(());
            task.visit(&piece, |row| {
                if given.is_ok() {
                    out.clear();
                    line(&head, &mut text, &mut out, &task.schema, &row);
                    given = each(&out);
                }
            });
            given?;
        }
    }
    Ok(())
}

/// JSON lines on standard output; those of an entry that is written again come again.
pub struct StandardOutput;

impl Target for StandardOutput {
    fn describe(&self) -> String {
        "standard output".into()
    }

    fn options(&self) -> Value {
        json!({"path": "-"})
    }

    fn check(&self, _opening: &Opening<'_>) -> Result<(), SinkError> {
        Ok(())
    }

    fn open(&self, _opening: &Opening<'_>) -> Result<Box<dyn Destination>, SinkError> {
        Ok(Box::new(Self))
    }

    fn is_on_stdout(&self) -> bool {
        true
    }
}

impl Destination for StandardOutput {
    fn write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError> {
        let (mut stdout, mut out) = (io::stdout().lock(), Vec::new());
        let lines = entries.iter().flat_map(|entry| &entry.snapshots).try_for_each(|snapshot| {
            rows(snapshot, |line| {
                out.extend_from_slice(line);
                out.push(b'\n');
                if out.len() < CHUNK {
                    return Ok(());
                }
                let written = stdout.write_all(&out);
                out.clear();
                written
            })
        });
        let written = lines.and_then(|()| stdout.write_all(&out)).and_then(|()| stdout.flush());
        written.map_err(SinkError::io("write", Path::new("standard output")))
    }
}
