//! What writers beside the record of commits are still to be given: one queue, and a place in it for each of them.
//!
//! An entry is what one commit gives out. It is kept until all writers have it: in memory while little waits, else in
//! unnamed files. Where commits are recorded it is in a file of its own, synced before the commit is, so that a restart
//! goes on where each writer was; what belongs to a commit that was never recorded is removed then. A writer's first place
//! is synced, later ones are not: one that is behind gives the writer again what it has, and that changes nothing.

use super::SinkError;
use super::folder::remove_file;
use crate::alerts::event::Event;
use crate::fingerprint::fingerprint;
use crate::state::sync_folder;
use crate::warn;
use dataflows::block::{Block, Words};
use dataflows::key::Layout;
use dataflows::rows::{Missing, Schema, Snapshot, TaskRows};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of entries that are kept in memory.
const MEMORY: u64 = 256 << 20;

/// Windows and bytes that a writer which is behind is given at a time.
const CATCH_UP_WINDOWS: usize = 16;
const CATCH_UP_BYTES: u64 = 64 << 20;
/// Bytes that any writer is given at a time, however many windows it wants.
const MOST_BYTES: u64 = 256 << 20;

/// How long a writer that fails waits at most between two tries, once nothing is added any more.
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What one commit gives out.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Its snapshots.
    pub snapshots: Vec<Arc<Snapshot>>,
    /// What became of alerts.
    pub events: Vec<Event>,
}

impl Entry {
    /// Memory that it takes, about.
    fn bytes(&self) -> u64 {
        let snapshots: u64 = self.snapshots.iter().map(|snapshot| snapshot.bytes()).sum();
        1024 * (1 + self.events.len() as u64) + snapshots
    }
}

/// A writer's place in the queue.
#[derive(Clone, Debug)]
pub struct Place {
    /// The writer's name: a restart knows it by that.
    pub name: String,
    /// Whether nothing may be left out for it.
    pub required: bool,
    /// Windows that it is given at a time, at least 1.
    pub every: usize,
    /// Bytes that may wait for it.
    pub max_behind: u64,
}

/// Where an outbox outlives the process.
pub struct Kept {
    /// The folder.
    pub folder: PathBuf,
    /// The last commit that was recorded.
    pub commit: u64,
}

/// The tasks that entries are of.
pub type Schemas = Vec<(Arc<str>, Arc<Schema>)>;

/// The queue.
pub struct Outbox {
    queue: Mutex<Queue>,
    changed: Condvar,
    kept: Option<Kept>,
    spill: PathBuf,
    schemas: Schemas,
}

#[derive(Default)]
struct Queue {
    entries: BTreeMap<u64, Waiting>,
    readers: Vec<Reader>,
    next: u64,
    /// The first entry that nobody may have yet.
    released: u64,
    in_memory: u64,
    /// Files of entries that all writers have, which are not removed yet.
    done_files: Vec<PathBuf>,
    closed: Option<Instant>,
    over: bool,
}

struct Reader {
    place: Place,
    /// The first entry that it does not have.
    next: u64,
    /// The first entry that it is not given.
    taken: u64,
    /// Windows and bytes that it was given and does not have.
    in_flight: (usize, u64),
}

struct Waiting {
    commit: u64,
    bytes: u64,
    windows: usize,
    entry: Option<Arc<Entry>>,
    /// Where it is not in memory.
    file: Option<File>,
}

/// What a writer is given at a time.
pub struct Batch {
    /// In their order.
    pub entries: Vec<Arc<Entry>>,
    /// Their windows.
    pub windows: usize,
}

impl Queue {
    /// What a writer is not given yet.
    fn waiting(&self, reader: usize) -> impl Iterator<Item = (u64, &Waiting)> {
        let first = self.readers[reader].taken;
        self.entries.range(first..self.released.max(first)).map(|(number, waiting)| (*number, waiting))
    }

    /// Windows and bytes that a writer does not have.
    fn behind(&self, reader: usize) -> (usize, u64) {
        let add = |(windows, bytes), waiting: &Waiting| (windows + waiting.windows, bytes + waiting.bytes);
        self.waiting(reader).map(|(_, waiting)| waiting).fold(self.readers[reader].in_flight, add)
    }

    fn is_too_far_behind(&self, reader: usize) -> bool {
        self.behind(reader).1 > self.readers[reader].place.max_behind
    }

    /// The entries that all readers have.
    fn done(&mut self) -> BTreeMap<u64, Waiting> {
        let least = self.readers.iter().map(|reader| reader.next).min().unwrap_or(self.released);
        let left = self.entries.split_off(&least);
        let done = std::mem::replace(&mut self.entries, left);
        let in_memory = done.values().filter(|waiting| waiting.entry.is_some());
        self.in_memory -= in_memory.map(|waiting| waiting.bytes).sum::<u64>();
        done
    }
}

impl Outbox {
    /// A queue for these writers, which goes on where an earlier one was where it is `kept`. Unnamed files are made in
    /// the folder `spill`.
    pub fn open(
        places: Vec<Place>,
        kept: Option<Kept>,
        spill: &Path,
        schemas: Schemas,
    ) -> Result<Self, SinkError> {
        let mut queue = Queue { next: 1, ..Queue::default() };
        if let Some(kept) = &kept {
            (queue.entries, queue.next) = kept.open(&places)?;
        }
        queue.released = queue.next;
        let first = queue.next;
        for place in places {
            let known = kept.as_ref().and_then(|kept| kept.place(&place.name));
            let next = known.unwrap_or(first);
            if let Some(kept) = kept.as_ref().filter(|_| known.is_none()) {
                // One that never has anything is no new one after a restart.
                kept.set_place(&place.name, next)?;
                let path = kept.place_path(&place.name);
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.and_then(|()| sync_folder(&kept.folder)).map_err(SinkError::io("sync", &path))?;
            }
            queue.readers.push(Reader { place, next, taken: next, in_flight: (0, 0) });
        }
        let (queue, spill) = (Mutex::new(queue), spill.to_owned());
        let outbox = Self { queue, changed: Condvar::new(), kept, spill, schemas };
        outbox.forget_done(&mut outbox.lock());
        Ok(outbox)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what a commit of this number gives out; nobody has it before it is released.
    pub fn append(&self, entry: &Entry, commit: u64) -> Result<(), SinkError> {
        let bytes = entry.bytes();
        let windows = entry.snapshots.len();
        let (number, in_memory) = {
            let mut queue = self.lock();
            let in_memory = queue.in_memory + bytes <= MEMORY;
            queue.in_memory += if in_memory { bytes } else { 0 };
            queue.next += 1;
            (queue.next - 1, in_memory)
        };
        let written = match &self.kept {
            Some(kept) => kept.write(number, commit, entry).map(|()| None),
            None if in_memory => Ok(None),
            None => tempfile::tempfile_in(&self.spill)
                .and_then(|mut file| file.write_all(&to_bytes(entry)).map(|()| Some(file)))
                .map_err(SinkError::io("keep what writers are behind with in", &self.spill)),
        };
        let mut queue = self.lock();
        match written {
            Ok(file) => {
                let entry = in_memory.then(|| Arc::new(entry.clone()));
                queue.entries.insert(number, Waiting { commit, bytes, windows, entry, file });
                Ok(())
            }
            Err(error) => {
                queue.in_memory -= if in_memory { bytes } else { 0 };
                Err(error)
            }
        }
    }

    /// Gives all that was added to the writers.
    pub fn release(&self) {
        let mut queue = self.lock();
        queue.released = queue.next;
        self.changed.notify_all();
    }

    /// Waits until no required writer is further behind than it may be, or `given_up`. Gives what was left out meanwhile for
    /// others, which are too far behind and in the middle of a try: a writer and windows each.
    pub fn wait_for_room(&self, given_up: impl Fn() -> bool) -> Vec<(usize, u64)> {
        let mut left_out = Vec::new();
        let mut queue = self.lock();
        loop {
            for reader in 0..queue.readers.len() {
                let is_busy = queue.readers[reader].in_flight != (0, 0);
                while is_busy && !queue.readers[reader].place.required && queue.is_too_far_behind(reader) {
                    let first =
                        queue.waiting(reader).next().map(|(number, waiting)| (number, waiting.windows));
                    let Some((number, windows)) = first else { break };
                    queue.readers[reader].taken = number + 1;
                    left_out.push((reader, windows as u64));
                }
            }
            self.forget_done(&mut queue);
            let is_awaited = (0..queue.readers.len())
                .any(|reader| queue.readers[reader].place.required && queue.is_too_far_behind(reader));
            if !is_awaited || given_up() {
                return left_out;
            }
            self.changed.notify_all();
            // Whether it was given up is not told here.
            let waited = self.changed.wait_timeout(queue, Duration::from_millis(200));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for what a writer is to be given next; `None` when there is nothing any more.
    pub fn take(&self, reader: usize) -> Result<Option<Batch>, SinkError> {
        let mut queue = self.lock();
        let (numbers, windows) = loop {
            let every = queue.readers[reader].place.every;
            let (mut windows, mut bytes, mut numbers, mut is_full) = (0, 0, Vec::new(), false);
            for (number, waiting) in queue.waiting(reader) {
                let most = if windows < every { MOST_BYTES } else { CATCH_UP_BYTES };
                // At least one entry, however large it is.
                is_full = !numbers.is_empty()
                    && (windows + waiting.windows > every.max(CATCH_UP_WINDOWS)
                        || bytes + waiting.bytes > most);
                if is_full {
                    break;
                }
                windows += waiting.windows;
                bytes += waiting.bytes;
                numbers.push(number);
            }
            if queue.over || numbers.is_empty() && queue.closed.is_some() {
                return Ok(None);
            }
            // Events alone are not kept back, nor what somebody waits for or is about to leave out.
            let is_pressed = is_full || queue.closed.is_some() || queue.is_too_far_behind(reader);
            let is_enough = windows >= every || windows == 0 || is_pressed;
            if let Some(last) = numbers.last().filter(|_| is_enough) {
                let reader = &mut queue.readers[reader];
                reader.taken = last + 1;
                reader.in_flight = (windows, bytes);
                break (numbers, windows);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        let mut places = Vec::with_capacity(numbers.len());
        for number in numbers {
            let Waiting { commit, windows, entry, file, .. } = &queue.entries[&number];
            let path = match &self.kept {
                Some(kept) => kept.path(number, *commit, *windows),
                None => self.spill.clone(),
            };
            places.push((entry.clone(), path, file.as_ref().map(File::try_clone)));
        }
        drop(queue);
        let read = |(entry, path, file): (Option<Arc<Entry>>, PathBuf, Option<io::Result<File>>)| {
            if let Some(entry) = entry {
                return Ok(entry);
            }
            let read = || {
                let bytes = match file.transpose()? {
                    Some(file) => {
                        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
                        let mut bytes = vec![0; length];
                        file.read_exact_at(&mut bytes, 0)?;
                        bytes
                    }
                    None => fs::read(&path)?,
                };
                from_bytes(&bytes, &self.schemas).map(Arc::new)
            };
            read().map_err(SinkError::io("read back what a writer is behind with from", &path))
        };
        let entries = places.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(Batch { entries, windows }))
    }

    /// A writer has what it was given, or goes on without it.
    pub fn done(&self, reader: usize) {
        let mut queue = self.lock();
        let queue = &mut *queue;
        let reader = &mut queue.readers[reader];
        reader.next = reader.taken;
        reader.in_flight = (0, 0);
        if let Some(kept) = &self.kept {
            // One that is behind gives again what is there already.
            let _ = kept.set_place(&reader.place.name, reader.next);
        }
        self.changed.notify_all();
        self.forget_done(queue);
    }

    /// Removes what all writers have. A file that cannot be removed fails nothing: it is tried again, and a restart knows
    /// by the writers' places that nobody needs it.
    fn forget_done(&self, queue: &mut Queue) {
        let Some(kept) = &self.kept else { return drop(queue.done()) };
        let done = queue.done();
        let failed_before = !queue.done_files.is_empty();
        queue
            .done_files
            .extend(done.iter().map(|(number, waiting)| kept.path(*number, waiting.commit, waiting.windows)));
        let mut failed = None;
        queue.done_files.retain(|path| match remove_file("remove", path) {
            Ok(()) => false,
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
        // Said once for as long as it lasts.
        if let Some(error) = failed.filter(|_| !failed_before) {
            warn!("outbox: {error}; trying again");
        }
    }

    /// Nothing is added any more: writers come to the end of what is there.
    pub fn close(&self) {
        self.lock().closed.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Nobody is given anything any more.
    pub fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// Waits so long, less when the queue is closed or nobody is given anything any more; then, how long ago it was closed.
    pub fn pause(&self, most: Duration) -> Option<Duration> {
        let queue = self.lock();
        let was_closed = queue.closed.is_some();
        let most = if was_closed { most.min(LAST_PAUSE) } else { most };
        let goes_on = |queue: &mut Queue| !queue.over && queue.closed.is_some() == was_closed;
        let waited = self.changed.wait_timeout_while(queue, most, goes_on);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.closed.map(|closed| closed.elapsed())
    }

    /// Windows and bytes that wait for a writer.
    pub fn behind(&self, reader: usize) -> (usize, u64) {
        self.lock().behind(reader)
    }

    /// Whether nothing is added any more.
    pub fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Whether what is left outlives the process.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }
}

impl Kept {
    fn path(&self, number: u64, commit: u64, windows: usize) -> PathBuf {
        self.folder.join(format!("{number:012}.{commit}.{windows}.entry"))
    }

    fn place_path(&self, writer: &str) -> PathBuf {
        self.folder.join(format!("{writer}.place"))
    }

    /// What an earlier run has left of commits that were recorded, and the number of the next entry.
    fn open(&self, places: &[Place]) -> Result<(BTreeMap<u64, Waiting>, u64), SinkError> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(SinkError::io("create the folder", folder))?;
        let (mut entries, mut next) = (BTreeMap::new(), 1);
        for found in fs::read_dir(folder).map_err(SinkError::io("read", folder))? {
            let path = found.map_err(SinkError::io("read", folder))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(writer) = name.strip_suffix(".place") {
                next = next.max(self.place(writer).unwrap_or(0));
                if places.iter().all(|place| place.name != writer) {
                    warn!("writer `{writer}` is gone from the configuration; what waited for it is left out");
                    fs::remove_file(&path).map_err(SinkError::io("remove", &path))?;
                }
                continue;
            }
            let mut numbers =
                name.strip_suffix(".entry").unwrap_or_default().split('.').map(str::parse::<u64>);
            let (Some(Ok(number)), Some(Ok(commit)), Some(Ok(windows))) =
                (numbers.next(), numbers.next(), numbers.next())
            else {
                continue;
            };
            if commit > self.commit {
                fs::remove_file(&path).map_err(SinkError::io("remove", &path))?;
                continue;
            }
            let bytes = path.metadata().map_err(SinkError::io("read", &path))?.len();
            let windows = usize::try_from(windows).unwrap_or(usize::MAX);
            entries.insert(number, Waiting { commit, bytes, windows, entry: None, file: None });
            next = next.max(number + 1);
        }
        Ok((entries, next))
    }

    fn write(&self, number: u64, commit: u64, entry: &Entry) -> Result<(), SinkError> {
        let path = self.path(number, commit, entry.snapshots.len());
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&to_bytes(entry))?;
            file.sync_all()?;
            sync_folder(&self.folder)
        };
        write().map_err(|error| {
            // What is cut off must not be found by a restart.
            let _ = fs::remove_file(&path);
            SinkError::io("write", &path)(error)
        })
    }

    /// The first entry that a writer does not have; `None` for a new one, 0 where it cannot be told any more.
    fn place(&self, writer: &str) -> Option<u64> {
        match fs::read_to_string(self.place_path(writer)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            text => Some(text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)),
        }
    }

    fn set_place(&self, writer: &str, next: u64) -> Result<(), SinkError> {
        let path = self.place_path(writer);
        let aside = path.with_extension("new");
        let written = fs::write(&aside, format!("{next}\n")).and_then(|()| fs::rename(&aside, &path));
        written.map_err(SinkError::io("write", &path))
    }
}

/// An entry as it is written: a line of JSON, the words of all runs in the machine's order, and a fingerprint of both.
#[derive(Serialize, Deserialize)]
struct Header {
    snapshots: Vec<SnapshotHeader>,
    events: Vec<Event>,
}

#[derive(Serialize, Deserialize)]
struct SnapshotHeader {
    window: u64,
    span: Option<(u64, u64)>,
    revision: u32,
    tasks: Vec<TaskHeader>,
    #[serde(default)]
    interrupted: bool,
    #[serde(default)]
    lost: u64,
}

#[derive(Serialize, Deserialize)]
struct TaskHeader {
    name: String,
    /// Of each run how its keys lie, and how many words it has.
    runs: Vec<(RunLayout, usize)>,
}

/// How the keys of a run lie.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum RunLayout {
    /// As earlier versions wrote it: whether keys are wide.
    IsWide(bool),
    Named(Layout),
}

impl RunLayout {
    fn layout(self) -> Layout {
        match self {
            Self::IsWide(true) => Layout::Wide,
            Self::IsWide(false) => Layout::Compact,
            Self::Named(layout) => layout,
        }
    }
}

fn to_bytes(entry: &Entry) -> Vec<u8> {
    let task = |task: &TaskRows| TaskHeader {
        name: task.name.to_string(),
        runs: task.runs.iter().map(|run| (RunLayout::Named(run.layout), run.len())).collect(),
    };
    let snapshot = |snapshot: &Arc<Snapshot>| SnapshotHeader {
        window: snapshot.window,
        span: snapshot.span,
        revision: snapshot.revision,
        tasks: snapshot.tasks.iter().map(task).collect(),
        interrupted: snapshot.missing.interrupted,
        lost: snapshot.missing.lost,
    };
    let snapshots = entry.snapshots.iter().map(snapshot).collect();
    let header = Header { snapshots, events: entry.events.clone() };
    let mut bytes = serde_json::to_vec(&header).expect("a header can be written");
    bytes.push(b'\n');
    let tasks = entry.snapshots.iter().flat_map(|snapshot| &snapshot.tasks);
    for run in tasks.flat_map(|task| &task.runs) {
        let Ok(()) = run.visit_words(|words| {
            bytes.extend_from_slice(bytemuck::cast_slice(words));
            Ok::<(), std::convert::Infallible>(())
        });
    }
    let sum = check_sum(&bytes);
    bytes.extend(sum.to_ne_bytes());
    bytes
}

/// As [`fingerprint`], of words: there may be many.
fn check_sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let add = |hash: u64, word: &[u8; 8]| (hash ^ u64::from_ne_bytes(*word)).wrapping_mul(0x0100_0000_01b3);
    words.iter().fold(fingerprint(rest), add)
}

fn from_bytes(bytes: &[u8], schemas: &Schemas) -> io::Result<Entry> {
    let wrong = |why: &str| io::Error::other(why.to_owned());
    let (bytes, sum) = bytes.split_last_chunk::<8>().ok_or_else(|| wrong("it is cut off"))?;
    if check_sum(bytes) != u64::from_ne_bytes(*sum) {
        return Err(wrong("its checksum does not match"));
    }
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(|| wrong("it is cut off"))?;
    let Header { snapshots, events } = serde_json::from_slice(&bytes[..line])?;
    let mut words = bytes[line + 1..].as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
    let mut task = |TaskHeader { name, runs }: TaskHeader| {
        let (name, schema) = schemas
            .iter()
            .find(|(known, _)| **known == *name)
            .ok_or_else(|| io::Error::other(format!("there is no task `{name}` any more")))?;
        let run = |(layout, length): (RunLayout, usize)| {
            let layout = layout.layout();
            let words: Vec<u64> = words.by_ref().take(length).collect();
            if words.len() < length {
                return Err(wrong("it is cut off"));
            }
            let width = schema.row_words(layout);
            Ok(Block { layout, width, words: Words::from(words), ..Block::default() })
        };
        let runs = runs.into_iter().map(run).collect::<io::Result<Vec<_>>>()?;
        Ok(TaskRows { name: name.clone(), schema: schema.clone(), runs, kept: None })
    };
    let snapshot = |header: SnapshotHeader| {
        let SnapshotHeader { window, span, revision, tasks, interrupted, lost } = header;
        let missing = Missing { interrupted, lost };
        let tasks = tasks.into_iter().map(&mut task).collect::<io::Result<Vec<_>>>()?;
        Ok(Arc::new(Snapshot { window, span, revision, tasks, missing }))
    };
    let snapshots = snapshots.into_iter().map(snapshot).collect::<io::Result<Vec<_>>>()?;
    Ok(Entry { snapshots, events })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataflows::aggregator::Aggregator;
    use dataflows::exact::Exact;
    use dataflows::key::KeyFields;

    fn schemas() -> Schemas {
        let fields = KeyFields::parse(&["SrcPort"]).expect("fields");
        vec![("ports".into(), Exact::new(fields).schema())]
    }

    /// A commit's snapshot of this window, with so many rows.
    fn entry(window: u64, rows: u64) -> Entry {
        let row = |port: u64| [0, port << 48, 1, 60 + window, 5, 6];
        let words: Vec<u64> = (0..rows).flat_map(row).collect();
        let run = Block { width: 6, words: words.into(), ..Block::default() };
        let (name, schema) = schemas().remove(0);
        let tasks = vec![TaskRows { name, schema, runs: vec![run], kept: None }];
        let missing = Missing { interrupted: true, lost: window };
        let snapshot = Snapshot { window, span: Some((window, window + 1)), revision: 3, tasks, missing };
        Entry { snapshots: vec![Arc::new(snapshot)], events: Vec::new() }
    }

    fn place(name: &str, every: usize, required: bool, max_behind: u64) -> Place {
        Place { name: name.into(), required, every, max_behind }
    }

    fn windows(batch: &Batch) -> Vec<u64> {
        batch.entries.iter().flat_map(|entry| &entry.snapshots).map(|snapshot| snapshot.window).collect()
    }

    fn kept(folder: &Path, commit: u64, writers: &[&str]) -> Outbox {
        let places = writers.iter().map(|name| place(name, 1, true, 1 << 20)).collect();
        let kept = Kept { folder: folder.join("outbox"), commit };
        Outbox::open(places, Some(kept), folder, schemas()).expect("an outbox")
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        let mut written = entry(7, 1000);
        written.snapshots.extend(entry(8, 0).snapshots);
        let bytes = to_bytes(&written);
        let read = from_bytes(&bytes, &schemas()).expect("an entry");
        assert_eq!(format!("{read:?}"), format!("{written:?}"));
        for damaged in
            [&bytes[..bytes.len() - 1], &bytes[..20], &[], &[&bytes[..40], b"x", &bytes[41..]].concat()]
        {
            assert!(from_bytes(damaged, &schemas()).is_err());
        }
        assert!(
            from_bytes(&bytes, &Vec::new()).is_err_and(|error| error.to_string().contains("no task `ports`"))
        );
    }

    #[test]
    fn a_restart_goes_on_where_each_writer_was_and_forgets_what_was_never_recorded() {
        let folder = tempfile::tempdir().expect("a folder");
        let outbox = kept(folder.path(), 0, &["a", "b"]);
        for commit in 1..=4 {
            outbox.append(&entry(commit, 10), commit).expect("room");
        }
        outbox.release();
        outbox.take(0).expect("readable").expect("a batch");
        outbox.done(0);
        drop(outbox);
        // `a` has all four; the fourth commit was not recorded; `c` is new.
        let outbox = kept(folder.path(), 3, &["a", "b", "c"]);
        assert_eq!((outbox.behind(0).0, outbox.behind(1).0, outbox.behind(2).0), (0, 3, 0));
        outbox.append(&entry(9, 10), 4).expect("room");
        outbox.release();
        for (reader, expected) in [(0, vec![9]), (1, vec![1, 2, 3, 9]), (2, vec![9])] {
            let batch = outbox.take(reader).expect("readable").expect("a batch");
            assert_eq!(windows(&batch), expected);
            outbox.done(reader);
        }
        let left = fs::read_dir(folder.path().join("outbox")).expect("a folder").count();
        assert_eq!(left, 3, "a place for each writer, and nothing else");
    }

    #[test]
    fn what_memory_has_no_room_for_comes_back_from_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = vec![place("a", 1, true, u64::MAX)];
        let outbox = Outbox::open(places, None, folder.path(), schemas()).expect("an outbox");
        outbox.lock().in_memory = MEMORY - 2000;
        (1..=3).for_each(|window| outbox.append(&entry(window, 10), 0).expect("room"));
        outbox.release();
        assert_eq!(outbox.lock().entries.values().filter(|waiting| waiting.file.is_some()).count(), 2);
        let batch = outbox.take(0).expect("readable").expect("a batch");
        assert_eq!(windows(&batch), [1, 2, 3]);
        assert_eq!(format!("{:?}", batch.entries[2]), format!("{:?}", entry(3, 10)));
        outbox.done(0);
        assert_eq!(outbox.lock().in_memory, MEMORY - 2000);
    }

    #[test]
    fn a_writer_gets_as_many_windows_as_it_wants_at_a_time_and_at_the_end_what_there_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = vec![place("a", 3, true, u64::MAX)];
        let outbox = Arc::new(Outbox::open(places, None, folder.path(), schemas()).expect("an outbox"));
        let (given, got) = std::sync::mpsc::channel();
        let reader = outbox.clone();
        let read = std::thread::spawn(move || {
            while let Some(batch) = reader.take(0).expect("readable") {
                given.send(windows(&batch)).expect("a listener");
                reader.done(0);
            }
        });
        for window in 1..=4 {
            outbox.append(&entry(window, 1), 0).expect("room");
            outbox.release();
            if window == 3 {
                assert_eq!(got.recv(), Ok(vec![1, 2, 3]));
            }
        }
        assert!(got.try_recv().is_err());
        outbox.close();
        assert_eq!(got.recv(), Ok(vec![4]));
        read.join().expect("no panic");
    }

    #[test]
    fn nobody_waits_for_a_writer_that_is_not_required_and_what_it_misses_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = vec![place("a", 9, false, 5000), place("b", 5, true, 0)];
        let outbox = Outbox::open(places, None, folder.path(), schemas()).expect("an outbox");
        let mut left_out = Vec::new();
        let mut add = |window| {
            outbox.append(&entry(window, 10), 0).expect("room");
            outbox.release();
            // `b` may not be behind at all; who waits for it has given up.
            left_out.extend(outbox.wait_for_room(|| true));
        };
        // 1504 bytes each. It is not in the middle of a try: nothing is left out, and it gets what there is before nine.
        (1..=4).for_each(&mut add);
        let held = outbox.take(0).expect("readable").expect("a batch");
        assert_eq!(windows(&held), [1, 2, 3, 4]);
        (5..=7).for_each(&mut add);
        outbox.done(0);
        assert_eq!(left_out, [(0, 1); 3]);
        (8..=11).for_each(|window| outbox.append(&entry(window, 10), 0).expect("room"));
        outbox.release();
        assert_eq!(windows(&outbox.take(0).expect("readable").expect("a batch")), [8, 9, 10, 11]);
        assert_eq!(outbox.behind(1).0, 11);
    }

    #[test]
    fn a_place_that_cannot_be_read_is_no_new_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let outbox = kept(folder.path(), 0, &["a", "b"]);
        outbox.append(&entry(1, 10), 1).expect("room");
        drop(outbox);
        fs::write(folder.path().join("outbox/a.place"), "").expect("written");
        let outbox = kept(folder.path(), 1, &["a"]);
        assert_eq!(windows(&outbox.take(0).expect("readable").expect("a batch")), [1]);
    }
}
