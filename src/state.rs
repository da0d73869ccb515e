//! What an engine that reads the durable log has committed: a manifest a commit, each written whole before anyone sees
//! what it commits.
//!
//! The order of a commit: the snapshots are built aside and synced; the manifest is created, which names them and says
//! where every partition of the log stands; then they are put in their places; only then are messages acknowledged. So
//! the manifest is the one step that decides: before it nothing has happened, after it a restart finishes what is left.
//! A manifest has a number and is never replaced: of two that think themselves the committer, one cannot go on.

use crate::account::Accounts;
use crate::alerts::board::Standing;
use crate::fingerprint::fingerprint;
use dataflows::window::Epoch;
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Version of what is written here.
const FORMAT: u32 = 1;
/// Where the folder of snapshots is a mount point of its own: then nothing beside it is on the same disk.
const WITHIN: &str = ".netspectra";
/// Manifests kept beside the last.
const KEPT: u64 = 1;

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

    /// The first window that is not committed.
    pub fn first(&self) -> Epoch {
        self.epoch.map_or(0, |epoch| epoch.saturating_add(1))
    }
}

/// The folder of manifests.
pub struct State {
    folder: PathBuf,
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
        Ok(Self { folder })
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
            return Err(damaged("its check sum is another".into()));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| damaged(error.to_string()))?;
        if manifest.format != FORMAT || manifest.number != number {
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

    /// Commits: from now on this is what a restart goes by.
    pub fn commit(&self, manifest: &Manifest) -> Result<(), StateError> {
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
}
