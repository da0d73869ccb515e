//! What an engine that reads the durable log has committed: a manifest a commit, each written whole before anyone sees
//! what it commits.
//!
//! The order of a commit: the snapshots are built aside and synced; the manifest is created, which names them and says
//! where every partition of the log stands; then they are put in their places; only then are messages acknowledged. So
//! the manifest is the one step that decides: before it nothing has happened, after it a restart finishes what is left.
//! A manifest has a number and is never replaced: of two that think themselves the committer, one cannot go on.
//!
//! Beside the manifests is the file of retired runs of probes (`intake/retired.rs`), which would make every manifest grow. A
//! manifest names the file, how much of it counts, and the fingerprint of that. A commit that retires runs appends them and
//! syncs the file before it creates the manifest; what was appended for a manifest that was never created does not count.
//! Every start of an engine writes a file of its own, with all runs, when it first has something to append: so no engine
//! writes into a file that another one goes by.

use crate::account::Accounts;
use crate::alerts::board::Standing;
use crate::fingerprint::{EMPTY, extend, fingerprint};
use crate::intake::retired::RetiredRuns;
use dataflows::window::Epoch;
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Version of what is written here, and of what names a file of retired runs: a program that does not know of that file
/// refuses to go on.
const FORMAT: u32 = 1;
const FORMAT_WITH_RETIRED: u32 = 2;
/// Where the folder of snapshots is a mount point of its own: then nothing beside it is on the same disk.
const WITHIN: &str = ".netspectra";
/// Manifests kept beside the last.
const KEPT: u64 = 1;
/// How the names of files of retired runs begin.
const RETIRED: &str = "retired-runs-";
/// Bytes of records that do not count any more, beyond as many as do, for which a file of retired runs is written anew.
const MAX_OUTDATED: u64 = 1 << 20;

/// What was committed, in all and last.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// From 1, one more each commit.
    pub number: u64,
    /// The identity of the stream that it is of; empty before that is known.
    pub stream: String,
    /// What has to be the same in every run: a name and a value each.
    pub settings: Vec<(String, String)>,
    /// When the first of the runs began, nanoseconds since the Unix epoch.
    pub began: u64,
    /// The last epoch that is committed; `None` before the first.
    pub epoch: Option<Epoch>,
    /// Windows behind that one which are written all the same: of packets that are dated ahead by mistake.
    #[serde(default)]
    pub ahead: BTreeSet<Epoch>,
    /// Windows written.
    pub windows: u64,
    /// Packets in the latest revisions of all windows, where a task counts every packet once.
    pub held: Option<u64>,
    /// Folders that this commit puts in their places.
    pub prepared: Vec<Prepared>,
    /// What became of what was read.
    pub accounts: Accounts,
    /// The alerts, where there are any rules.
    #[serde(default)]
    pub alerts: Option<Standing>,
    /// Where the retired runs of probes are.
    #[serde(default)]
    pub retired: RetiredFile,
    /// What this commit adds to them.
    #[serde(skip)]
    pub gained: Option<Arc<Gained>>,
}

/// The part of a file of retired runs that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredFile {
    /// Its name in the folder of manifests; empty where no run is retired.
    pub name: String,
    /// How many of its bytes count.
    pub size: u64,
    /// The fingerprint of these.
    pub fingerprint: u64,
    /// Whether this start of the engine has written it.
    #[serde(skip)]
    is_own: bool,
}

/// Bytes that a commit writes into the file of retired runs.
#[derive(Debug)]
pub struct Gained {
    /// Where in the file.
    offset: u64,
    bytes: Vec<u8>,
}

/// A folder that is built aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its name while it is aside, and its name in its place.
    pub aside: String,
    /// The window's name.
    pub name: String,
    /// The fingerprint of its summary: tells it from the one whose place it takes, which is aside after that. `None` in
    /// records of earlier versions.
    #[serde(default)]
    pub summary: Option<u64>,
    /// Tells the two apart where their summaries are the same; another one in a copy.
    pub inode: u64,
}

/// The records of earlier runs cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system said no.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// Not what was written there.
    #[error("{}: is no record of a commit ({why}); what it committed cannot be told from what it did not", path.display())]
    Damaged {
        /// The manifest.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Not what was written there.
    #[error(
        "{}: the records of finished probe runs cannot be read ({why}). Without them, replays of those runs would be counted \
         twice. Restore this file from the same backup as the rest of the folder",
        path.display()
    )]
    Retired {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Earlier runs had other settings.
    #[error(
        "{}: earlier runs had another {what}: {theirs}; here it is {ours}. Use another output folder, or remove this one \
         with the snapshots to begin anew",
        path.display()
    )]
    Differs {
        /// The folder of records.
        path: PathBuf,
        /// What differs.
        what: String,
        /// Its value then.
        theirs: String,
        /// And now.
        ours: String,
    },
    /// Somebody else commits.
    #[error("{}: exists already; another engine commits here", path.display())]
    Overtaken {
        /// The manifest.
        path: PathBuf,
    },
}

impl StateError {
    /// Whether it is a mistake of whoever started the program.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Differs { .. })
    }
}

impl Manifest {
    /// Nothing is committed yet.
    pub fn new(settings: Vec<(String, String)>, began: u64) -> Self {
        Self { format: FORMAT, settings, began, ..Self::default() }
    }

    /// Has this commit add records of retired runs to those that are recorded; `all` are these together. A new file is named
    /// by this moment, nanoseconds since the Unix epoch.
    pub fn retire(&mut self, records: Vec<u8>, all: &RetiredRuns, now: u64) {
        self.gained = None;
        if records.is_empty() {
            return;
        }
        let size = self.retired.size + records.len() as u64;
        let bytes = if self.retired.is_own && size <= 2 * all.size() + MAX_OUTDATED {
            records
        } else {
            let name = format!("{RETIRED}{now:016x}.bin");
            self.retired = RetiredFile { name, size: 0, fingerprint: EMPTY, is_own: true };
            all.write()
        };
        self.format = FORMAT_WITH_RETIRED;
        let file = &mut self.retired;
        let offset = file.size;
        (file.size, file.fingerprint) = (offset + bytes.len() as u64, extend(file.fingerprint, &bytes));
        self.gained = Some(Arc::new(Gained { offset, bytes }));
    }

    /// The first window that is not committed.
    pub fn first(&self) -> Epoch {
        self.epoch.map_or(0, |epoch| epoch.saturating_add(1))
    }
}

/// The folder of manifests.
pub struct State {
    folder: PathBuf,
    /// The file of retired runs that manifests name, and the first of them that does.
    retired: RefCell<(String, u64)>,
}

impl State {
    /// The records beside a folder of snapshots, which exists: in `DIR.state`, or within where nothing beside it is ours.
    pub fn open(snapshots: &Path) -> Result<Self, StateError> {
        let within = snapshots.join(WITHIN);
        let folder = match beside(snapshots) {
            Some(beside) if !within.is_dir() => match fs::create_dir_all(&beside) {
                Ok(()) => beside,
                Err(_) => within,
            },
            _ => within,
        };
        fs::create_dir_all(&folder).map_err(failed("create the folder", &folder))?;
        // Both folders may be new.
        for folder in [snapshots, &folder] {
            let parent = fs::canonicalize(folder).map_err(failed("find", folder))?;
            let parent = parent.parent().unwrap_or(&parent);
            sync_folder(parent).map_err(failed("sync", parent))?;
        }
        Ok(Self { folder, retired: RefCell::default() })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("manifest-{number:012}.json"))
    }

    fn numbers(&self) -> Result<Vec<u64>, StateError> {
        let entries = fs::read_dir(&self.folder).map_err(failed("read", &self.folder))?;
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed("read", &self.folder))?.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix("manifest-")?.strip_suffix(".json")?.parse().ok());
            numbers.extend::<Option<u64>>(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What was committed last; `None` where nothing ever was.
    pub fn last(&self, settings: &[(String, String)]) -> Result<Option<Manifest>, StateError> {
        let Some(number) = self.numbers()?.pop() else { return Ok(None) };
        let path = self.path(number);
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let damaged = |why: String| StateError::Damaged { path: path.clone(), why };
        let (text, sum) = bytes.split_last_chunk().ok_or_else(|| damaged("it is cut off".into()))?;
        if *sum != check_line(text) {
            return Err(damaged("its checksum does not match".into()));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        let is_known = [FORMAT, FORMAT_WITH_RETIRED].contains(&manifest.format);
        if !is_known || manifest.number != number {
            return Err(damaged(format!("format {}, number {}", manifest.format, manifest.number)));
        }
        for (what, theirs) in &manifest.settings {
            let ours = settings.iter().find(|(name, _)| name == what).map(|(_, value)| value);
            if ours != Some(theirs) {
                let ours = ours.cloned().unwrap_or_else(|| "none".into());
                let (path, what, theirs) = (self.folder.clone(), what.clone(), theirs.clone());
                return Err(StateError::Differs { path, what, theirs, ours });
            }
        }
        Ok(Some(manifest))
    }

    /// The records of retired runs that a manifest goes by.
    pub fn retired(&self, manifest: &Manifest) -> Result<Vec<u8>, StateError> {
        let RetiredFile { name, size, fingerprint: sum, .. } = &manifest.retired;
        if name.is_empty() {
            return Ok(Vec::new());
        }
        // Only a name of ours: a manifest cannot lead out of the folder.
        let path = self.folder.join(Path::new(name).file_name().unwrap_or_default());
        let damaged = |why: String| StateError::Retired { path: path.clone(), why };
        let mut bytes = fs::read(&path).map_err(failed("read", &path))?;
        if (bytes.len() as u64) < *size {
            return Err(damaged(format!(
                "it has {} bytes, but the last commit recorded {size}",
                bytes.len()
            )));
        }
        bytes.truncate(usize::try_from(*size).unwrap_or(usize::MAX));
        if fingerprint(&bytes) != *sum {
            return Err(damaged("its checksum does not match".into()));
        }
        let read = RetiredRuns::read(&bytes, Some);
        read.map_err(|offset| damaged(format!("there is no record at byte {offset}")))?;
        Ok(bytes)
    }

    /// Makes durable what a commit adds to the retired runs. After an error it can be tried again.
    fn append_retired(&self, manifest: &Manifest) -> Result<(), StateError> {
        let Some(gained) = &manifest.gained else { return Ok(()) };
        let path = self.folder.join(&manifest.retired.name);
        let write = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.write_all_at(&gained.bytes, gained.offset)?;
            file.sync_all()
        };
        write().map_err(failed("write", &path))?;
        if gained.offset == 0 {
            sync_folder(&self.folder).map_err(failed("sync", &self.folder))?;
        }
        Ok(())
    }

    /// Removes files of retired runs that no manifest that is kept names. What cannot be removed is tried again next time.
    fn remove_retired(&self, manifest: &Manifest) {
        let mut named = self.retired.borrow_mut();
        if named.0 != manifest.retired.name {
            *named = (manifest.retired.name.clone(), manifest.number);
        }
        if named.1 + KEPT > manifest.number {
            return;
        }
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let old = names.filter(|name| name.starts_with(RETIRED) && *name != named.0);
        old.for_each(|name| drop(fs::remove_file(self.folder.join(name))));
    }

    /// Commits: from now on this is what a restart goes by.
    pub fn commit(&self, manifest: &Manifest) -> Result<(), StateError> {
        self.append_retired(manifest)?;
        let path = self.path(manifest.number);
        let aside = self.folder.join(".manifest.partial");
        let mut text = serde_json::to_vec(manifest).map_err(|error| failed("write", &aside)(error.into()))?;
        let sum = check_line(&text);
        text.extend_from_slice(&sum);
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(failed("write", &aside))?;
        match rustix::fs::renameat_with(CWD, &aside, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // A try before this one got so far.
            Err(rustix::io::Errno::EXIST) if fs::read(&path).is_ok_and(|there| there == text) => {}
            Err(rustix::io::Errno::EXIST) => return Err(StateError::Overtaken { path }),
            // This file system cannot refuse to replace; a link can.
            Err(rustix::io::Errno::INVAL) => fs::hard_link(&aside, &path)
                .and_then(|()| fs::remove_file(&aside))
                .map_err(failed("create", &path))?,
            Err(error) => return Err(failed("create", &path)(error.into())),
        }
        sync_folder(&self.folder).map_err(failed("sync", &self.folder))?;
        // One that is left is removed with the next.
        let old = self.numbers()?.into_iter().filter(|number| number + KEPT < manifest.number);
        old.for_each(|number| drop(fs::remove_file(self.path(number))));
        self.remove_retired(manifest);
        Ok(())
    }
}

/// The last line of a manifest: the fingerprint of what is before it, in hexadecimal digits.
fn check_line(text: &[u8]) -> [u8; 18] {
    let line = format!("\n{:016x}\n", fingerprint(text));
    line.as_bytes().try_into().expect("16 digits and 2 ends of lines")
}

/// Has the system keep a folder's entries though the machine goes down.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::Io { action, path: path.clone(), error }
}

/// Where records of commits into a folder of snapshots may be.
pub(crate) fn places(snapshots: &Path) -> Vec<PathBuf> {
    beside(snapshots).into_iter().chain([snapshots.join(WITHIN)]).collect()
}

/// `DIR.state`, where it would be on the same file system.
fn beside(snapshots: &Path) -> Option<PathBuf> {
    let snapshots = fs::canonicalize(snapshots).ok()?;
    let (parent, name) = (snapshots.parent()?, snapshots.file_name()?);
    let device = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.dev());
    if device(parent)? != device(&snapshots)? {
        return None;
    }
    let mut name = name.to_owned();
    name.push(".state");
    Some(parent.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::books::RunBooks;
    use crate::wire::v1::Accounts;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    fn settings(window: &str) -> Vec<(String, String)> {
        vec![("window".into(), window.into())]
    }

    #[test]
    fn the_last_commit_is_what_a_restart_finds() {
        let scratch = tempfile::tempdir().expect("a folder");
        let snapshots = scratch.path().join("snapshots");
        fs::create_dir(&snapshots).expect("a folder");
        let state = State::open(&snapshots).expect("a state");
        assert_eq!(state.folder().file_name().expect("a name"), "snapshots.state");
        assert!(state.last(&settings("60s")).expect("no error").is_none());
        let mut manifest = Manifest::new(settings("60s"), 7);
        for number in 1..=5 {
            (manifest.number, manifest.epoch) = (number, Some(number * 10));
            state.commit(&manifest).expect("a commit");
        }
        let found = state.last(&settings("60s")).expect("no error").expect("a manifest");
        assert_eq!((found.number, found.first(), found.began), (5, 51, 7));
        assert_eq!(state.numbers().expect("numbers"), [4, 5]);
        // What was tried before and got so far is done; what another has committed is not ours.
        state.commit(&manifest).expect("committed");
        manifest.windows += 1;
        assert!(matches!(state.commit(&manifest), Err(StateError::Overtaken { .. })));
        manifest.windows -= 1;
        let refused = state.last(&settings("10s")).expect_err("a refusal").to_string();
        assert!(refused.contains("another window: 60s; here it is 10s"), "{refused}");
        let whole = fs::read(state.path(5)).expect("read");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..20], &[], &flipped] {
            fs::write(state.path(6), damaged).expect("written");
            assert!(matches!(state.last(&settings("60s")), Err(StateError::Damaged { .. })));
        }
    }

    /// A state in a folder of its own.
    fn state_in(scratch: &tempfile::TempDir) -> State {
        let snapshots = scratch.path().join("snapshots");
        fs::create_dir_all(&snapshots).expect("a folder");
        State::open(&snapshots).expect("a state")
    }

    /// A clock: no two moments are the same.
    static NOW: AtomicU64 = AtomicU64::new(1);

    /// An engine as far as retired runs go: what it has in memory, and the manifest that it writes next.
    struct Engine {
        state: State,
        manifest: Manifest,
        all: RetiredRuns,
    }

    impl Engine {
        /// Starts where the last commit is.
        fn start(scratch: &tempfile::TempDir) -> Self {
            let state = state_in(scratch);
            let last = state.last(&settings("60s")).expect("no error");
            let manifest = last.unwrap_or_else(|| Manifest::new(settings("60s"), 7));
            let records = state.retired(&manifest).expect("records");
            Self { all: RetiredRuns::read(&records, Some).expect("records"), state, manifest }
        }

        /// Prepares a commit in which these runs are retired.
        fn retire(&mut self, runs: std::ops::Range<u64>) {
            let mut records = Vec::new();
            for run in runs {
                let books = RunBooks::heard("probe", run, run, Accounts::default());
                records.extend(self.all.insert("probe", run, &[(3, books)].into()));
            }
            self.manifest.number += 1;
            self.manifest.retire(records, &self.all, NOW.fetch_add(1, Relaxed));
        }

        fn commit(&self) {
            self.state.commit(&self.manifest).expect("a commit");
        }

        fn files(&self) -> usize {
            let names =
                fs::read_dir(&self.state.folder).expect("a folder").map(|entry| entry.expect("an entry"));
            names.filter(|name| name.file_name().to_string_lossy().starts_with(RETIRED)).count()
        }

        /// Runs that are retired, up to the first that is not.
        fn retired(&self) -> u64 {
            (0..).find(|run| !self.all.contains("probe", *run)).unwrap_or(0)
        }
    }

    #[test]
    fn a_kill_between_the_file_of_retired_runs_and_the_manifest_leaves_what_the_manifest_names() {
        let scratch = tempfile::tempdir().expect("a folder");
        for first in (0..5).map(|life| 100 * life) {
            let mut engine = Engine::start(&scratch);
            assert_eq!(engine.retired(), first);
            for runs in [first..first + 30, first + 30..first + 100] {
                engine.retire(runs);
                engine.commit();
            }
            // This one is killed once the file is written.
            engine.retire(first + 100..first + 200);
            engine.state.append_retired(&engine.manifest).expect("written");
        }
        let mut engine = Engine::start(&scratch);
        assert_eq!(engine.retired(), 500);
        for _ in 0..3 {
            engine.retire(0..0);
            engine.commit();
        }
        assert_eq!(engine.files(), 1, "those that no manifest names are removed");
        assert_eq!(Engine::start(&scratch).retired(), 500);
    }

    #[test]
    fn an_engine_that_was_overtaken_has_not_written_into_the_file_of_the_other() {
        let scratch = tempfile::tempdir().expect("a folder");
        let mut first = Engine::start(&scratch);
        first.retire(0..10);
        first.commit();
        let mut second = Engine::start(&scratch);
        second.retire(10..20);
        second.commit();
        first.retire(10..30);
        assert!(matches!(first.state.commit(&first.manifest), Err(StateError::Overtaken { .. })));
        assert_eq!(Engine::start(&scratch).retired(), 20);
    }

    #[test]
    fn a_commit_writes_what_is_retired_by_it_and_outdated_records_are_removed_in_time() {
        let scratch = tempfile::tempdir().expect("a folder");
        let mut engine = Engine::start(&scratch);
        engine.retire(0..10_000);
        engine.commit();
        let all = engine.manifest.retired.size;
        let (mut most, mut names) = (0, BTreeSet::new());
        for _ in 0..1000 {
            // The same runs again and again.
            engine.retire(0..100);
            engine.commit();
            let written = engine.manifest.gained.as_ref().map_or(0, |gained| gained.bytes.len() as u64);
            assert!(written < all / 10 || written == all, "{written} of {all}");
            (most, _) =
                (most.max(engine.manifest.retired.size), names.insert(engine.manifest.retired.name.clone()));
        }
        assert!(most <= 2 * all + MAX_OUTDATED, "{most}, all are {all}");
        assert!((2..4).contains(&names.len()), "{names:?}");
        assert_eq!((Engine::start(&scratch).retired(), engine.files()), (10_000, 1));
    }

    #[test]
    fn a_file_of_retired_runs_that_is_damaged_is_named_with_a_way_out() {
        let scratch = tempfile::tempdir().expect("a folder");
        let mut engine = Engine::start(&scratch);
        engine.retire(0..10);
        engine.commit();
        let path = engine.state.folder.join(&engine.manifest.retired.name);
        let whole = fs::read(&path).expect("read");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &[], &flipped] {
            fs::write(&path, damaged).expect("written");
            let refused = engine.state.retired(&engine.manifest).expect_err("a refusal").to_string();
            assert!(refused.contains(".bin") && refused.contains("backup"), "{refused}");
        }
        fs::remove_file(&path).expect("removed");
        assert!(engine.state.retired(&engine.manifest).is_err());
    }
}
