//! Rows as lines of text, formatted by several threads and written in order.

use super::SinkError;
use super::text::Text;
use dataflows::rows::{Piece, Row, TaskRows};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};

/// Rows that are formatted at once by one thread.
const PIECE_ROWS: usize = 8192;

/// Formats the rows of all tasks on several threads and writes them to their files in order.
///
/// `line` appends a row of the task of this number, without the end of its line.
pub(super) fn write_rows(
    tasks: &[TaskRows],
    files: &[(PathBuf, File)],
    threads: usize,
    line: impl Fn(usize, &mut Text, &mut Vec<u8>, &Row<'_>) + Sync,
) -> Result<(), SinkError> {
    let mut pieces: Vec<(usize, usize, usize, Piece)> = Vec::new();
    for (task, rows) in tasks.iter().enumerate() {
        let cut = rows.pieces(PIECE_ROWS);
        let many = cut.len();
        pieces.extend(cut.into_iter().enumerate().map(|(number, piece)| (number, many, task, piece)));
    }
    // All files grow at the same pace, so that threads seldom want the same one.
    pieces.sort_by_key(|(number, many, ..)| (number << 32) / many);
    let (taken, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    // The piece whose turn it is, a file.
    let turns: Vec<(Mutex<usize>, Condvar)> = tasks.iter().map(|_| Default::default()).collect();
    let work = || -> Result<(), SinkError> {
        let (mut text, mut out) = (Text::default(), Vec::new());
        loop {
            let Some((number, _, task, piece)) = pieces.get(taken.fetch_add(1, Relaxed)) else {
                return Ok(());
            };
            let ((turn, next_turn), (path, file)) = (&turns[*task], &files[*task]);
            out.clear();
            tasks[*task].visit(piece, |row| {
                line(*task, &mut text, &mut out, &row);
                out.push(b'\n');
            });
            let turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            let mut turn =
                next_turn.wait_while(turn, |turn| turn != number).unwrap_or_else(PoisonError::into_inner);
            let written = if failed.load(Relaxed) { Ok(()) } else { (&*file).write_all(&out) };
            if written.is_err() {
                failed.store(true, Relaxed);
            }
            *turn += 1;
            next_turn.notify_all();
            drop(turn);
            written.map_err(SinkError::io("write", path))?;
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
    })
}
