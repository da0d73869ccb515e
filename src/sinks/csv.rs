//! The csv writer: `DIR/<window>/<task>.csv` and `summary.json` a window, `DIR/ledger.json` a run.
//!
//! A window's folder is built aside, under a name that starts with a dot, and renamed; an earlier one is exchanged for
//! it in one step and then removed. What is built for a recorded commit has the commit's number in its name and is synced:
//! a restart puts it in its place if that commit was recorded, and removes it if not. The ledger goes when a run begins to write and comes back when it has ended, so a
//! folder without one holds whole windows of an unfinished run.

use super::text::{Text, rfc3339, window_name};
use super::{SinkError, Writer};
use crate::engine::{Group, Written};
use crate::ledger::Ledger;
use crate::state::{Manifest, Prepared, sync_folder};
use dataflows::aggregator::Task;
use dataflows::rows::{Piece, Snapshot, TaskRows};
use dataflows::window::{Epoch, Windowing};
use rustix::fs::{CWD, RenameFlags};
use serde::Serialize;
use serde_json::json;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Rows that are formatted at once by one thread.
const PIECE_ROWS: usize = 8192;

/// Ending of the hidden name of what is being built; nothing else of that name is ever in the folder.
const PARTIAL: &str = ".netspectra-partial";

/// Ending of the file of what a task keeps beside its rows, for a run that goes on: words in the machine's order.
const KEPT: &str = ".state";

/// A csv writer.
pub struct CsvWriter {
    folder: PathBuf,
    threads: usize,
    /// The folder itself, locked while the writer lives, so that two runs cannot mix their windows.
    _lock: File,
    begun: bool,
    /// Folders that are built, and what they will be called.
    prepared: Vec<(PathBuf, PathBuf)>,
    synced: bool,
}

impl CsvWriter {
    /// A writer into this folder, made where it is missing, that formats on so many threads (at least 1).
    pub fn open(folder: &Path, threads: usize) -> Result<Self, SinkError> {
        let failed = |action| move |error| SinkError::Io { action, path: folder.to_owned(), error };
        fs::create_dir_all(folder).map_err(failed("create the folder"))?;
        let lock = File::open(folder).map_err(failed("open the folder"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SinkError::Busy { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
        let folder = folder.to_owned();
        Ok(Self { folder, threads, _lock: lock, begun: false, prepared: Vec::new(), synced: false })
    }

    /// Puts in their places what the last recorded commit has prepared, where it did not come to that; removes what else a
    /// killed run has left.
    pub fn recover(&mut self, last: Option<&Manifest>) -> Result<(), SinkError> {
        for Prepared { aside, name, inode } in last.iter().flat_map(|manifest| &manifest.prepared) {
            let aside = self.folder.join(aside);
            // Another one of this name is what was taken out of the place.
            if fs::metadata(&aside).is_ok_and(|found| found.ino() == *inode) {
                self.prepared.push((aside, self.folder.join(name)));
                self.synced = true;
            }
        }
        self.publish()?;
        let failed = |error| SinkError::Io {
            action: "clear what a killed run left in",
            path: self.folder.clone(),
            error,
        };
        self.remove_partials().map_err(failed)
    }

    fn aside(&self, window: &str, commit: Option<u64>) -> PathBuf {
        let commit = commit.map(|number| format!(".{number}")).unwrap_or_default();
        self.folder.join(format!(".{window}{commit}{PARTIAL}"))
    }

    fn remove_partials(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(PARTIAL) {
                let remove = if entry.file_type()?.is_dir() { fs::remove_dir_all } else { fs::remove_file };
                remove(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes all files of a snapshot into a new folder.
    fn build(&self, folder: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |error| SinkError::Io { action, path, error }
        };
        fs::create_dir(folder).map_err(failed("create the folder", folder))?;
        let mut files = Vec::with_capacity(snapshot.tasks.len());
        for task in &snapshot.tasks {
            let path = folder.join(format!("{}.csv", task.name));
            let mut file = File::create(&path).map_err(failed("create", &path))?;
            let header = header(task).map_err(failed("write", &path))?;
            file.write_all(&header).map_err(failed("write", &path))?;
            files.push((path, file));
        }
        write_rows(&snapshot.tasks, &files, self.threads)?;
        for task in &snapshot.tasks {
            if let Some(kept) = &task.kept {
                let path = folder.join(format!("{}{KEPT}", task.name));
                let written = File::create(&path).and_then(|mut file| {
                    file.write_all(bytemuck::cast_slice(kept))?;
                    Ok(file)
                });
                let file = written.map_err(failed("write", &path))?;
                files.push((path, file));
            }
        }
        let path = folder.join("summary.json");
        write_json(&path, &summary(snapshot))?;
        if sync {
            for (path, file) in &files {
                file.sync_all().map_err(failed("sync", path))?;
            }
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
            sync_folder(folder).map_err(failed("sync", folder))?;
        }
        Ok(())
    }
}

impl Writer for CsvWriter {
    fn prepare(&mut self, snapshot: &Snapshot, commit: Option<u64>) -> Result<(), SinkError> {
        if !std::mem::replace(&mut self.begun, true) {
            remove_file(&self.folder.join("ledger.json"))?;
        }
        let name = window_name(snapshot.span);
        let aside = self.aside(&name, commit);
        let built = self.build(&aside, snapshot, commit.is_some()).and_then(|()| match commit {
            Some(_) => sync_folder(&self.folder).map_err(|error| SinkError::Io {
                action: "sync",
                path: self.folder.clone(),
                error,
            }),
            None => Ok(()),
        });
        if built.is_err() {
            // The first error is the one to tell; what cannot be removed now is removed by the next run.
            let _ = fs::remove_dir_all(&aside);
        }
        self.prepared.push((aside, self.folder.join(name)));
        self.synced = commit.is_some();
        built
    }

    fn prepared(&self) -> Vec<Prepared> {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let prepared = self.prepared.iter().filter_map(|(aside, path)| {
            let inode = fs::metadata(aside).ok()?.ino();
            Some(Prepared { aside: name(aside)?, name: name(path)?, inode })
        });
        prepared.collect()
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        let any = !self.prepared.is_empty();
        for (aside, path) in self.prepared.drain(..) {
            put_in_place(&aside, &path)?;
        }
        if any && self.synced {
            let path = self.folder.clone();
            sync_folder(&path).map_err(|error| SinkError::Io { action: "sync", path, error })?;
        }
        Ok(())
    }

    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        let path = self.folder.join("ledger.json");
        let aside = self.folder.join(format!(".ledger.json{PARTIAL}"));
        write_json(&aside, ledger)?;
        if self.synced {
            let synced = File::open(&aside).and_then(|file| file.sync_all());
            synced.map_err(|error| SinkError::Io { action: "sync", path: aside.clone(), error })?;
        }
        fs::rename(&aside, &path).map_err(|error| SinkError::Io { action: "rename to", path, error })
    }
}

/// Reads back what a csv writer has written.
pub struct CsvReader {
    /// The writer's folder.
    pub folder: PathBuf,
    /// How the windows are cut.
    pub windowing: Windowing,
    /// The first task that counts every packet, if any.
    pub counting: Option<Arc<str>>,
}

impl CsvReader {
    fn window(&self, window: Epoch) -> PathBuf {
        self.folder.join(window_name(self.windowing.span(window)))
    }
}

impl Written for CsvReader {
    fn groups(&self, task: &Task, window: Epoch) -> Result<Vec<Group>, String> {
        let path = self.window(window).join(format!("{}.csv", task.name));
        let wrong = |line: u64, why: &dyn std::fmt::Display| format!("{}:{line}: {why}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            // No packet of that window has come before.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.window(window).exists() => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let schema = task.aggregator.schema();
        let mut reader = ::csv::Reader::from_reader(io::BufReader::new(file));
        let header = reader.headers().map_err(|error| wrong(1, &error))?;
        if !header.iter().eq(schema.columns()) {
            return Err(wrong(1, &"has other columns than this task"));
        }
        let (mut record, mut groups) = (::csv::StringRecord::new(), Vec::new());
        while reader.read_record(&mut record).map_err(|error| wrong(0, &error))? {
            let line = record.position().map_or(0, |position| position.line());
            let keys = schema.key.fields().len();
            let key = schema.key.read(record.iter().take(keys));
            let number = |column: usize| record.get(keys + column)?.parse::<u64>().ok();
            let time = |column: usize| {
                let time: jiff::Timestamp = record.get(keys + column)?.parse().ok()?;
                u64::try_from(time.as_nanosecond()).ok()
            };
            let values = || Some([number(0)?, number(1)?, time(2)?, time(3)?]);
            let group = key.zip(values()).ok_or_else(|| wrong(line, &"is no row of this task"))?;
            groups.push(group);
        }
        Ok(groups)
    }

    fn kept(&self, task: &Task, window: Epoch) -> Result<Option<Vec<u64>>, String> {
        let path = self.window(window).join(format!("{}{KEPT}", task.name));
        match fs::read(&path) {
            Ok(bytes) if bytes.len() % 8 != 0 => Err(format!("{}: is cut off", path.display())),
            Ok(bytes) => Ok(Some(bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    fn summary(&self, window: Epoch) -> Result<Option<(u32, Option<u64>)>, String> {
        let folder = self.window(window);
        if !folder.exists() {
            return Ok(None);
        }
        read_summary(&folder, self.counting.as_deref()).map_err(|error| error.to_string())
    }
}

/// Revision of a finished folder, and the packets that a task of it holds.
fn read_summary(folder: &Path, task: Option<&str>) -> Result<Option<(u32, Option<u64>)>, SinkError> {
    let path = folder.join("summary.json");
    let failed = |error: io::Error| SinkError::Io { action: "read", path: path.clone(), error };
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(failed)?,
    };
    let summary: serde_json::Value = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    let revision = summary["revision"].as_u64().and_then(|revision| u32::try_from(revision).ok());
    let revision = revision.ok_or_else(|| failed(io::Error::other("has no revision")))?;
    Ok(Some((revision, task.and_then(|task| summary["tasks"][task]["packets"].as_u64()))))
}

fn remove_file(path: &Path) -> Result<(), SinkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SinkError::Io { action: "remove the old", path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}

/// Renames a finished folder to its name; an older snapshot of that name is exchanged for it and removed.
fn put_in_place(aside: &Path, path: &Path) -> Result<(), SinkError> {
    let failed = |action| move |error: io::Error| SinkError::Io { action, path: path.to_owned(), error };
    match fs::rename(aside, path) {
        Err(error) if path.is_dir() && error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        renamed => return renamed.map_err(failed("rename to")),
    }
    if !path.join("summary.json").is_file() {
        let error = io::Error::other("a folder that is no snapshot has this name, and it is not empty");
        return Err(failed("replace")(error));
    }
    match rustix::fs::renameat_with(CWD, aside, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_dir_all(aside).map_err(failed("remove the old")),
        // This file system cannot exchange: for a moment there is neither the old nor the new.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            let old = aside.with_extension(format!("old{PARTIAL}"));
            fs::rename(path, &old).and_then(|()| fs::rename(aside, path)).map_err(failed("rename to"))?;
            fs::remove_dir_all(&old).map_err(failed("remove the old"))
        }
        Err(error) => Err(failed("rename to")(error.into())),
    }
}

fn header(task: &TaskRows) -> io::Result<Vec<u8>> {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    writer.write_record(task.schema.columns())?;
    writer.into_inner().map_err(|error| error.into_error())
}

/// Formats the rows of all tasks on several threads and writes them to their files in order.
fn write_rows(tasks: &[TaskRows], files: &[(PathBuf, File)], threads: usize) -> Result<(), SinkError> {
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
            let task = &tasks[*task];
            out.clear();
            task.visit(piece, |row| {
                text.row(&mut out, &task.schema, &row, b',');
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
            written.map_err(|error| SinkError::Io { action: "write", path: path.clone(), error })?;
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

fn summary(snapshot: &Snapshot) -> serde_json::Value {
    let task = |task: &TaskRows| {
        let totals =
            json!({"rows": task.len(), "packets": task.total("packets"), "bytes": task.total("bytes")});
        (task.name.to_string(), totals)
    };
    json!({
        "window_start": snapshot.span.map(|(start, _)| rfc3339(start)),
        "window_end": snapshot.span.map(|(_, end)| rfc3339(end)),
        "revision": snapshot.revision,
        "tasks": snapshot.tasks.iter().map(task).collect::<serde_json::Map<_, _>>(),
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SinkError> {
    let write = || {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        fs::write(path, text)
    };
    write().map_err(|error| SinkError::Io { action: "write", path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataflows::block::Block;
    use dataflows::exact::Exact;
    use dataflows::key::{Key, KeyFields};
    use dataflows::packet::{Address, Packet, Transport};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KEYS: [&[&str]; 6] = [
        &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"],
        &["SrcIP/24/48", "SrcIP"],
        &["DstIP/8/3", "TCPFlags"],
        &["VLAN", "IPVersion"],
        &["DstIP", "SrcIP/1/1"],
        &["DstPort"],
    ];

    fn any_packet() -> impl Strategy<Value = Packet> {
        let address = || {
            prop_oneof![
                any::<u32>().prop_map(Address::v4),
                any::<u128>().prop_map(Address),
                Just(Address(0)),
                Just(Address(0xffff << 32 | 1)),
            ]
        };
        let transport = (any::<u16>(), any::<u16>(), any::<u8>(), any::<u8>(), 0u16..4096);
        (address(), address(), transport).prop_map(
            |(source, destination, (from, to, protocol, flags, vlan))| {
                let version = if source.is_v4() { 4 } else { 6 };
                let transport = Transport::new(from, to, protocol, flags, vlan, version);
                Packet { time: 0, transport, source, destination, length: 60 }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]
        #[test]
        fn groups_are_read_back_as_they_were_written(
            packets in proptest::collection::vec(any_packet(), 0..60),
            values in proptest::collection::vec((1u64..1 << 53, 1u64..1 << 53, any::<u64>(), any::<u64>()), 60),
            keys in 0..KEYS.len(),
        ) {
            let fields = KeyFields::parse(KEYS[keys]).expect("fields");
            let values = values.iter().map(|(packets, bytes, first, last)| [*packets, *bytes, *first, *last]);
            let groups: BTreeMap<String, Group> = packets.iter().zip(values).map(|(packet, values)| {
                let key = fields.mask().of(packet);
                (format!("{key:?}"), (key, values))
            }).collect();
            let (mut compact, mut wide) = (Vec::new(), Vec::new());
            for (key, values) in groups.values() {
                match key {
                    Key::Compact(key) => compact.extend(key.iter().chain(values)),
                    Key::Wide(key) => wide.extend(key.iter().chain(values)),
                }
            }
            let runs = [(false, compact), (true, wide)].map(|(wide, words): (bool, Vec<u64>)| Block { wide, words: words.into(), ..Block::default() });
            let task = Task { name: "task".into(), aggregator: Arc::new(Exact::new(fields)) };
            let rows = TaskRows { name: task.name.clone(), schema: task.aggregator.schema(), runs: runs.to_vec(), kept: None };
            let folder = tempfile::tempdir().expect("a folder");
            let windowing = Windowing::Every(60_000_000_000);
            let mut writer = CsvWriter::open(folder.path(), 1).expect("a writer");
            let snapshot = Snapshot { window: 7, span: windowing.span(7), revision: 3, tasks: vec![rows] };
            writer.prepare(&snapshot, Some(1)).and_then(|()| writer.publish()).expect("written");
            let reader = CsvReader { folder: folder.path().to_owned(), windowing, counting: Some(task.name.clone()) };
            let found = reader.groups(&task, 7).expect("groups");
            let found: BTreeMap<String, Group> = found.into_iter().map(|group| (format!("{:?}", group.0), group)).collect();
            prop_assert_eq!(&found, &groups);
            let total = groups.values().map(|(_, values)| values[0]).sum();
            prop_assert_eq!(reader.summary(7), Ok(Some((3, Some(total)))));
            prop_assert_eq!(reader.summary(8), Ok(None));
            prop_assert_eq!(reader.groups(&task, 8), Ok(Vec::new()));
        }
    }

    #[test]
    fn a_commit_that_was_recorded_is_finished_and_one_that_was_not_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let windowing = Windowing::Every(60_000_000_000);
        let snapshot =
            |window, revision| Snapshot { window, span: windowing.span(window), revision, tasks: Vec::new() };
        let mut manifest = Manifest::new(Vec::new(), 0);
        let mut writer = CsvWriter::open(folder.path(), 1).expect("a writer");
        for (window, revision, commit) in [(1, 0, 3), (2, 0, 4), (1, 0, 4), (3, 0, 5)] {
            writer.prepare(&snapshot(window, revision), Some(commit)).expect("prepared");
            if commit == 3 {
                writer.publish().expect("published");
            }
            if commit == 4 {
                manifest.prepared = writer.prepared();
            }
        }
        let newer = manifest.prepared[1].inode;
        drop(writer);
        let reader = CsvReader { folder: folder.path().to_owned(), windowing, counting: None };
        for _ in 0..2 {
            // A second time there is nothing left to do.
            let mut writer = CsvWriter::open(folder.path(), 1).expect("a writer");
            writer.recover(Some(&manifest)).expect("recovered");
            let found = [1, 2, 3]
                .map(|window| reader.summary(window).expect("a summary").map(|(revision, _)| revision));
            assert_eq!(found, [Some(0), Some(0), None]);
            // The one that was there before has the same revision.
            assert_eq!(fs::metadata(reader.window(1)).expect("a folder").ino(), newer);
            assert!(
                fs::read_dir(folder.path()).expect("a folder").all(|entry| !entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .starts_with('.'))
            );
        }
    }
}
