//! Rows made into what a file holds by several threads at a time, and written in their order.

use super::SinkError;
use super::text::Text;
use crate::watchdog;
use dataflows::rows::{Piece, Row, TaskRows};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Rows that are formatted at once by one thread: few enough for their text to be written from its nearest caches.
pub(super) const LINES: usize = 2048;

/// Pieces of lines of a file that each thread may be ahead of what is written.
const LINES_AHEAD: usize = 4;

/// A file that is written, and the pieces made of it that wait for those before them.
struct Output<W, M> {
    turn: Mutex<Turn<W, M>>,
    moved_on: Condvar,
}

struct Turn<W, M> {
    /// Taken by the thread that writes.
    writer: Option<W>,
    /// Number of the piece that comes next.
    next: usize,
    made: BTreeMap<usize, M>,
}

impl<W, M> Output<W, M> {
    fn new(writer: W) -> Self {
        let turn = Turn { writer: Some(writer), next: 0, made: BTreeMap::new() };
        Self { turn: Mutex::new(turn), moved_on: Condvar::new() }
    }

    fn turn(&self) -> MutexGuard<'_, Turn<W, M>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a piece and what follows on it, or leaves it to the thread that writes what is before it. Waits only where
    /// more than `most` pieces would wait.
    fn add(
        &self,
        (number, made): (usize, M),
        put: impl Fn(&mut W, M) -> Result<(), SinkError>,
        (most, failed): (usize, &AtomicBool),
    ) -> Result<(), SinkError> {
        let mut turn = self.turn();
        turn.made.insert(number, made);
        while !failed.load(Relaxed)
            && let Some(mut writer) = turn.writer.take()
        {
            let next = turn.next;
            let Some(made) = turn.made.remove(&next) else {
                turn.writer = Some(writer);
                break;
            };
            drop(turn);
            let written = put(&mut writer, made);
            watchdog::note_written();
            turn = self.turn();
            if written.is_err() {
                // Before anybody writes behind the hole.
                failed.store(true, Relaxed);
            }
            turn.writer = Some(writer);
            turn.next += 1;
            self.moved_on.notify_all();
            written?;
        }
        let is_ahead = |turn: &mut Turn<W, M>| turn.made.len() > most && !failed.load(Relaxed);
        drop(self.moved_on.wait_while(turn, is_ahead).unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// Where one thread fails, or panics, all others are to end.
struct Alarm<'a, W, M> {
    outputs: &'a [Output<W, M>],
    failed: &'a AtomicBool,
}

impl<W, M> Alarm<'_, W, M> {
    fn raise(&self) {
        self.failed.store(true, Relaxed);
        for output in self.outputs {
            // Whoever is about to wait has the lock, and is told once it waits.
            drop(output.turn());
            output.moved_on.notify_all();
        }
    }
}

impl<W, M> Drop for Alarm<'_, W, M> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.raise();
        }
    }
}

/// Cuts the rows of all tasks into pieces of about `rows` rows, makes of each on one of several threads, in a state of
/// that thread's own, what is then put into the task's writer in order. Each thread may be `ahead` pieces of a file
/// ahead of what is written. Gives the writers back.
pub(super) fn in_order<W: Send, M: Send, S: Default>(
    (tasks, rows, ahead): (&[TaskRows], usize, usize),
    writers: Vec<W>,
    threads: usize,
    make: impl Fn(&mut S, usize, &Piece) -> Result<M, SinkError> + Sync,
    put: impl Fn(&mut W, M) -> Result<(), SinkError> + Sync,
) -> Result<Vec<W>, SinkError> {
    let mut pieces: Vec<(usize, usize, usize, Piece)> = Vec::new();
    for (task, all) in tasks.iter().enumerate() {
        let cut = all.pieces(rows);
        let many = cut.len();
        pieces.extend(cut.into_iter().enumerate().map(|(number, piece)| (number, many, task, piece)));
    }
    // All files grow at the same pace, so that threads seldom want the same one.
    pieces.sort_by_key(|(number, many, ..)| (number << 32) / many);
    let threads = threads.min(pieces.len()).max(1);
    let (taken, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let outputs: Vec<Output<W, M>> = writers.into_iter().map(Output::new).collect();
    let work = || -> Result<(), SinkError> {
        let mut state = S::default();
        let alarm = Alarm { outputs: &outputs, failed: &failed };
        while let Some((number, _, task, piece)) = pieces.get(taken.fetch_add(1, Relaxed)) {
            let limits = (ahead * threads, &failed);
            let done = make(&mut state, *task, piece)
                .and_then(|made| outputs[*task].add((*number, made), &put, limits));
            if done.is_err() {
                alarm.raise();
            }
            if failed.load(Relaxed) {
                return done;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        others
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .fold(own, Result::and)
    })?;
    let writer =
        |output: Output<W, M>| output.turn.into_inner().unwrap_or_else(PoisonError::into_inner).writer;
    Ok(outputs.into_iter().filter_map(writer).collect())
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
    let make = |(text, longest): &mut (Text, usize), task: usize, piece: &Piece| {
        let mut out = Vec::with_capacity(*longest);
        tasks[task].visit(piece, |row| {
            line(task, text, &mut out, &row);
            out.push(b'\n');
        });
        *longest = out.len().max(*longest);
        Ok(out)
    };
    let put = |(path, file): &mut (PathBuf, File), out: Vec<u8>| {
        file.write_all(&out).map_err(SinkError::io("write", path))
    };
    in_order((tasks, LINES, LINES_AHEAD), files, threads, make, put)
}
