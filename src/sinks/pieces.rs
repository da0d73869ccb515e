//! Rows made into what a file holds by several threads at a time, and written in their order.

use super::SinkError;
use super::text::Text;
use dataflows::rows::{Piece, Row, TaskRows};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};

/// Rows that are formatted at once by one thread.
pub(super) const LINES: usize = 8192;

/// A file that is written, and the number of the piece that comes next.
struct Output<W> {
    writer: W,
    next: usize,
}

/// Cuts the rows of all tasks into pieces of about `rows` rows, makes of each on one of several threads, in a state of
/// that thread's own, what is then put into the task's writer in order. Gives the writers back.
pub(super) fn in_order<W: Send, S: Default>(
    (tasks, rows): (&[TaskRows], usize),
    writers: Vec<W>,
    threads: usize,
    make: impl Fn(&mut S, usize, &Piece) -> Result<(), SinkError> + Sync,
    put: impl Fn(&mut S, &mut W) -> Result<(), SinkError> + Sync,
) -> Result<Vec<W>, SinkError> {
    let mut pieces: Vec<(usize, usize, usize, Piece)> = Vec::new();
    for (task, all) in tasks.iter().enumerate() {
        let cut = all.pieces(rows);
        let many = cut.len();
        pieces.extend(cut.into_iter().enumerate().map(|(number, piece)| (number, many, task, piece)));
    }
    // All files grow at the same pace, so that threads seldom want the same one.
    pieces.sort_by_key(|(number, many, ..)| (number << 32) / many);
    let (taken, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let output = |writer| (Mutex::new(Output { writer, next: 0 }), Condvar::new());
    let outputs: Vec<(Mutex<Output<W>>, Condvar)> = writers.into_iter().map(output).collect();
    let work = || -> Result<(), SinkError> {
        let mut state = S::default();
        loop {
            let Some((number, _, task, piece)) = pieces.get(taken.fetch_add(1, Relaxed)) else {
                return Ok(());
            };
            let made = if failed.load(Relaxed) { Ok(()) } else { make(&mut state, *task, piece) };
            let (output, moved_on) = &outputs[*task];
            let output = output.lock().unwrap_or_else(PoisonError::into_inner);
            let mut output = moved_on
                .wait_while(output, |output| output.next != *number)
                .unwrap_or_else(PoisonError::into_inner);
            let is_wanted = made.is_ok() && !failed.load(Relaxed);
            let written =
                made.and_then(|()| if is_wanted { put(&mut state, &mut output.writer) } else { Ok(()) });
            if written.is_err() {
                failed.store(true, Relaxed);
            }
            output.next += 1;
            moved_on.notify_all();
            drop(output);
            written?;
        }
    };
    let threads = threads.min(pieces.len()).max(1);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(own, Result::and)
    })?;
    let writer = |(output, _): (Mutex<Output<W>>, Condvar)| {
        output.into_inner().unwrap_or_else(PoisonError::into_inner).writer
    };
    Ok(outputs.into_iter().map(writer).collect())
}

/// Formats the rows of all tasks on several threads and writes them to their files in order.
///
/// `line` appends a row of the task of this number, without the end of its line.
pub(super) fn write_lines(
    tasks: &[TaskRows],
    files: Vec<(PathBuf, File)>,
    threads: usize,
    line: impl Fn(usize, &mut Text, &mut Vec<u8>, &Row<'_>) + Sync,
) -> Result<Vec<(PathBuf, File)>, SinkError> {
    let make = |(text, out): &mut (Text, Vec<u8>), task: usize, piece: &Piece| {
        out.clear();
        tasks[task].visit(piece, |row| {
            line(task, text, out, &row);
            out.push(b'\n');
        });
        Ok(())
    };
    let put = |(_, out): &mut (Text, Vec<u8>), (path, file): &mut (PathBuf, File)| {
        file.write_all(out).map_err(SinkError::io("write", path))
    };
    in_order((tasks, LINES), files, threads, make, put)
}
