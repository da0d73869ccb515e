//! A folder of windows, each a folder of files that appears whole or not at all: what csv, JSON lines and Parquet share.
//!
//! A window's folder is built aside, under a name that starts with a dot, and renamed; an earlier one is exchanged for
//! it in one step and then removed. What is built for a recorded commit has the commit's number in its name and is synced:
//! a restart puts it in its place if that commit was recorded, and removes it if not. What was built is known by its
//! summary, so that a restart finds it in a copy of the folder as well. The ledger goes when a run begins to write and
//! comes back when it has ended, so a folder without one holds whole windows of an unfinished run. A run that begins anew
//! takes the windows of an earlier one ([`super::earlier`]) away before it shows its first.

use super::delivery::Destination;
use super::earlier::{self, Earlier, Place, Reuse};
use super::outbox::Entry;
use super::registry::{Opening, Record, Target};
use super::text::window_name;
use super::{SinkError, Writer, summary};
use crate::fingerprint::fingerprint;
use crate::ledger::Ledger;
use crate::options::OwnOptions;
use crate::state::{Manifest, Prepared, sync_folder};
use crate::warn;
use dataflows::aggregator::OptionsError;
use dataflows::rows::Snapshot;
use rustix::fs::{Access, CWD, RenameFlags};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind::AlreadyExists, ErrorKind::DirectoryNotEmpty};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Names that are tried for a folder aside.
const FREE_NAMES: u32 = 8;

/// Ending of the hidden name of what is being built; nothing else of that name is ever in the folder.
const PARTIAL: &str = ".netspectra-partial";
/// The mark of an engine that has begun to write and has no ledger yet.
const MARK: &str = ".live.netspectra-partial";

/// How a user has the record written elsewhere, and another writer.
const OF_RECORD: &str = "name another folder (-o)";
const BEHIND: &str = "change this writer's path, or use another configuration (-c)";

/// The files of a window.
pub trait Files: Send + Sized + 'static {
    /// What comes before the window in its folder's name.
    const PREFIX: &'static str = "";
    /// The file that tells of the window; written last.
    const SUMMARY: &'static str = "summary.json";
    /// Where in the writer's folder windows are built; empty for right there.
    const ASIDE: &'static str = "";
    /// The file that tells of the run.
    const LEDGER: &'static str = "ledger.json";

    /// The target, where it can be the record of commits.
    fn record(_target: &FolderTarget<Self>) -> Option<&dyn Record> {
        None
    }

    /// Writes all files of a snapshot but the summary into a new folder; so that they are still there when the machine has
    /// gone down, if `sync`.
    fn build(&self, folder: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError>;
}

/// A writer into a folder.
pub struct FolderWriter<F> {
    folder: PathBuf,
    files: F,
    /// The folder itself, locked while the writer lives, so that two runs cannot mix their windows.
    _lock: File,
    begun: bool,
    reuse: Reuse,
    /// How a user has this writer write elsewhere.
    way_out: &'static str,
    /// What is to be replaced.
    earlier: Earlier,
    /// A snapshot of nothing, which replaces an earlier answer only if that is all there was to read.
    held: Option<Arc<Snapshot>>,
    /// Folders that are built, and what they will be called.
    prepared: VecDeque<(PathBuf, PathBuf)>,
    /// Earlier revisions that were taken out of their places and could not be removed yet.
    replaced: Vec<PathBuf>,
    /// Whether folders have to be there when the machine has gone down, and whether the last changes of names are not.
    synced: bool,
    unsynced: bool,
}

impl<F: Files> FolderWriter<F> {
    /// A writer into this folder, made where it is missing.
    pub fn open(folder: &Path, files: F) -> Result<Self, SinkError> {
        fs::create_dir_all(folder).map_err(SinkError::io("create the folder", folder))?;
        let lock = File::open(folder).map_err(SinkError::io("open the folder", folder))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SinkError::Busy { path: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(SinkError::io("lock", folder)(error)),
        }
        let folder = folder.to_owned();
        Ok(Self {
            folder,
            files,
            _lock: lock,
            begun: false,
            reuse: Reuse::Continue(None),
            way_out: OF_RECORD,
            earlier: Earlier::default(),
            held: None,
            prepared: VecDeque::new(),
            replaced: Vec::new(),
            synced: false,
            unsynced: false,
        })
    }

    /// Puts in their places what the last recorded commit has prepared, where it did not come to that; removes what else a
    /// killed run has left.
    pub fn recover(&mut self, last: Option<&Manifest>) -> Result<(), SinkError> {
        for prepared in last.iter().flat_map(|manifest| &manifest.prepared) {
            let [aside, place] = [&prepared.aside, &prepared.name].map(|name| self.folder.join(name));
            let found = find(&aside, F::SUMMARY, prepared)?;
            let published = find(&place, F::SUMMARY, prepared)?;
            if found.is_none() && published.is_none() {
                warn!(
                    "{}: this window was committed but is missing. Unless you deleted it, restore the folder \
                     and its .state folder from the same backup",
                    place.display()
                );
            }
            // Else it is what was taken out of the place.
            if found > published {
                self.prepared.push_back((aside, place));
                self.synced = true;
            }
        }
        self.publish()?;
        self.remove_partials().map_err(SinkError::io("remove what a killed run left in", &self.folder))
    }

    /// Says what becomes of the windows of an earlier run; refuses to replace what has to stay, and to go on with what this
    /// run's windows do not belong to. After [`Self::recover`].
    pub fn reuse(&mut self, reuse: Reuse) -> Result<(), SinkError> {
        let (mark, way_out) = (self.folder.join(MARK), self.way_out);
        match reuse {
            Reuse::Continue(None) => {}
            Reuse::Continue(Some(windowing)) => {
                earlier::check_continued::<F>(&self.folder, &mark, windowing, (way_out, self.synced))?;
            }
            Reuse::Replace(_) => self.earlier = Earlier::find::<F>(&self.folder, &mark, way_out)?,
        }
        self.reuse = reuse;
        Ok(())
    }

    /// Before a window of this run is seen: the mark of an engine is made, and the ledger of an earlier run goes. The mark
    /// is in the folder itself, so that it is in every copy of it and beside every writer's windows; records are not.
    fn begin(&mut self, is_recorded: bool) -> Result<(), SinkError> {
        if self.begun {
            return Ok(());
        }
        let mark = self.folder.join(MARK);
        match self.reuse {
            Reuse::Continue(_) => {
                let made = File::create(&mark).map_err(SinkError::io("create", &mark))?;
                if is_recorded {
                    made.sync_all().map_err(SinkError::io("sync", &mark))?;
                    sync_folder(&self.folder).map_err(SinkError::io("sync", &self.folder))?;
                }
            }
            // The windows that it was for are gone.
            Reuse::Replace(_) => remove_file("remove the old", &mark)?,
        }
        remove_file("remove the old", &self.folder.join(F::LEDGER))?;
        self.begun = true;
        Ok(())
    }

    /// After the ledger is there: an engine's mark goes where the ledger says as much, or where there is nothing to keep.
    fn remove_mark(&self, ledger: &Ledger) -> Result<(), SinkError> {
        if matches!(self.reuse, Reuse::Replace(_)) {
            return Ok(());
        }
        let windows = earlier::names::<F>(&self.folder)?.len() as u64;
        if ledger.is_of_link() || ledger.has_only_empty(windows) {
            remove_file("remove", &self.folder.join(MARK))?;
        }
        Ok(())
    }

    /// Whether a run that begins anew may turn out to have nothing that could take the place of an earlier answer.
    fn may_be_of_nothing(&self) -> bool {
        !self.begun && matches!(self.reuse, Reuse::Replace(_)) && !self.earlier.windows.is_empty()
    }

    /// Builds a snapshot aside, and takes out of their places the windows that this run replaces.
    fn make(&mut self, snapshot: &Snapshot, commit: Option<u64>) -> Result<(), SinkError> {
        let name = format!("{}{}", F::PREFIX, window_name(snapshot.span));
        let number = commit.map(|number| format!(".{number}")).unwrap_or_default();
        let aside = self.free_name(&format!("{name}{number}"))?;
        let built = self.build(&aside, snapshot, commit.is_some());
        let built = built.and_then(|()| self.begin(commit.is_some()));
        if let Err(error) = built.and_then(|()| self.take_away(Some(&name))) {
            // The first error is the one to tell; what cannot be removed now is removed by the next run.
            let _ = fs::remove_dir_all(&aside);
            return Err(error);
        }
        self.earlier.gone.remove(&name);
        let place = self.folder.join(name);
        let is_new = snapshot.revision == 0 && commit.is_none() && matches!(self.reuse, Reuse::Continue(_));
        if is_new && place.join(F::SUMMARY).is_file() {
            warn!(
                "{}: overwriting this window of an earlier run; packets that only that run saw are lost. With the durable log \
                 (--jetstream) a restarted engine continues the window instead",
                place.display()
            );
        }
        self.prepared.push_back((aside, place));
        self.synced = commit.is_some();
        Ok(())
    }

    /// Before a window of this run is seen: those that it replaces are taken out of their places, but for the one that is
    /// about to be exchanged.
    fn take_away(&mut self, next: Option<&str>) -> Result<(), SinkError> {
        while let Some(name) = self.earlier.windows.pop_last() {
            if next == Some(&name) {
                continue;
            }
            match self.take_window(&name) {
                Ok(aside) => self.replaced.push(aside),
                Err(error) => {
                    self.earlier.windows.insert(name);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Takes a window of an earlier run out of its place; gives where it is.
    fn take_window(&self, name: &str) -> Result<PathBuf, SinkError> {
        let (place, aside) = (self.folder.join(name), self.free_name(name)?);
        let failed = SinkError::io("remove the old", &place);
        keep_foreign::<F>(&place, None).map_err(&failed)?;
        fs::create_dir_all(self.aside()).map_err(SinkError::io("create the folder", &self.aside()))?;
        fs::rename(&place, &aside).map_err(failed)?;
        Ok(aside)
    }

    /// Where windows are built.
    fn aside(&self) -> PathBuf {
        if F::ASIDE.is_empty() { self.folder.clone() } else { self.folder.join(F::ASIDE) }
    }

    fn remove_partials(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') && name.ends_with(PARTIAL) && name != MARK {
                let remove = if entry.file_type()?.is_dir() { fs::remove_dir_all } else { fs::remove_file };
                remove(entry.path())?;
            }
        }
        Ok(())
    }

    /// A name aside for a window's folder at which there is nothing. What an earlier try or revision has left there is
    /// removed; where that cannot be, another name serves.
    fn free_name(&self, name: &str) -> Result<PathBuf, SinkError> {
        let mut failed = None;
        for number in 0..FREE_NAMES {
            let number = if number > 0 { format!("-{number}") } else { String::new() };
            let aside = self.aside().join(format!(".{name}{number}{PARTIAL}"));
            match remove_dir(&aside) {
                Ok(()) => return Ok(aside),
                Err(error) => failed = failed.or(Some(SinkError::io("remove the old", &aside)(error))),
            }
        }
        Err(failed.expect("one name at least was tried"))
    }

    /// Removes earlier revisions that are no longer in place. One that cannot be removed fails nothing: the next commit
    /// tries again, and so does the next run.
    fn remove_replaced(&mut self) {
        self.replaced.retain(|old| match remove_dir(old) {
            Ok(()) => false,
            Err(error) => {
                warn!(
                    "cannot remove the old folder {}: {error}; will retry after the next window",
                    old.display()
                );
                true
            }
        });
        if !F::ASIDE.is_empty() {
            // Fails where something is still in it.
            let _ = fs::remove_dir(self.aside());
        }
    }

    fn build(&self, aside: &Path, snapshot: &Snapshot, sync: bool) -> Result<(), SinkError> {
        fs::create_dir_all(aside).map_err(SinkError::io("create the folder", aside))?;
        self.files.build(aside, snapshot, sync)?;
        let path = aside.join(F::SUMMARY);
        write_json(&path, &summary(snapshot))?;
        if sync {
            File::open(&path).and_then(|file| file.sync_all()).map_err(SinkError::io("sync", &path))?;
            for folder in [aside, &self.aside()] {
                sync_folder(folder).map_err(SinkError::io("sync", folder))?;
            }
        }
        Ok(())
    }
}

impl<F: Files> Writer for FolderWriter<F> {
    fn prepare(&mut self, snapshot: &Arc<Snapshot>, commit: Option<u64>) -> Result<(), SinkError> {
        if self.may_be_of_nothing() && snapshot.tasks.iter().all(|task| task.is_empty()) {
            self.held = Some(snapshot.clone());
            return Ok(());
        }
        if let Some(held) = self.held.clone() {
            self.make(&held, commit)?;
            self.held = None;
        }
        self.make(snapshot, commit)
    }

    fn prepared(&self) -> Vec<Prepared> {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let prepared = self.prepared.iter().filter_map(|(aside, path)| {
            // A restart can do without the two.
            let summary = fs::read(aside.join(F::SUMMARY)).ok().map(|summary| fingerprint(&summary));
            let inode = fs::metadata(aside).map_or(0, |aside| aside.ino());
            Some(Prepared { aside: name(aside)?, name: name(path)?, summary, inode })
        });
        prepared.collect()
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        while let Some((aside, path)) = self.prepared.front() {
            let keeps = matches!(self.reuse, Reuse::Continue(_));
            self.replaced.extend(put_in_place::<F>(aside, path, keeps)?);
            self.prepared.pop_front();
            self.unsynced = self.synced;
        }
        self.remove_replaced();
        if self.unsynced {
            sync_folder(&self.folder).map_err(SinkError::io("sync", &self.folder))?;
            self.unsynced = false;
        }
        Ok(())
    }

    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        if let Reuse::Replace(told) = &self.reuse
            && self.may_be_of_nothing()
            && ledger.is_of_nothing()
        {
            told.tell(self.earlier.kept(&self.folder));
            return Ok(());
        }
        if let Some(held) = self.held.take() {
            self.make(&held, None)?;
            self.publish()?;
        }
        self.begin(self.synced)?;
        self.take_away(None)?;
        self.remove_replaced();
        if let Reuse::Replace(told) = &self.reuse {
            self.earlier.replaced::<F>(&self.folder, ledger).into_iter().for_each(|what| told.tell(what));
        }
        let path = self.folder.join(F::LEDGER);
        let aside = self.folder.join(format!(".{}{PARTIAL}", F::LEDGER));
        write_json(&aside, ledger)?;
        if self.synced {
            let synced = File::open(&aside).and_then(|file| file.sync_all());
            synced.map_err(SinkError::io("sync", &aside))?;
        }
        fs::rename(&aside, &path).map_err(SinkError::io("rename to", &path))?;
        self.remove_mark(ledger)
    }
}

/// A writer into a folder that is behind the outbox.
pub struct FolderDestination<F> {
    /// The folder.
    pub writer: FolderWriter<F>,
    /// Whether what is written has to be there when the machine has gone down.
    pub sync: bool,
}

impl<F: Files> Destination for FolderDestination<F> {
    fn write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError> {
        for snapshot in entries.iter().flat_map(|entry| &entry.snapshots) {
            self.writer.prepare(snapshot, self.sync.then_some(0))?;
            self.writer.publish()?;
        }
        Ok(())
    }

    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        self.writer.finish(ledger)
    }
}

/// What tells a folder that was prepared from another one that may be it too, the greater of the two; `None` where it is
/// not that one.
///
/// A revision is above the one that it replaces. Where both are of one revision (a run before this one has used the folder
/// and kept no records), inodes tell them apart, and in a copy their times do.
fn find(
    folder: &Path,
    summary: &str,
    prepared: &Prepared,
) -> Result<Option<(Option<u64>, bool, SystemTime)>, SinkError> {
    let path = folder.join(summary);
    let failed = SinkError::io("read", &path);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    if prepared.summary.is_some_and(|expected| fingerprint(&text) != expected) {
        return Ok(None);
    }
    let Ok(summary) = serde_json::from_slice::<serde_json::Value>(&text) else { return Ok(None) };
    let inode = fs::metadata(folder).map_err(&failed)?.ino();
    let written = fs::metadata(&path).and_then(|file| file.modified()).map_err(&failed)?;
    Ok(Some((summary["revision"].as_u64(), inode == prepared.inode, written)))
}

/// The folder that the option `path` names.
pub(super) fn path(options: &OwnOptions) -> Result<PathBuf, OptionsError> {
    match options.text("path")?.as_str() {
        "" => Err(options.refuse("path", "`path` is empty; name a folder, such as ./snapshots")),
        "-" => {
            let why = "`-` is standard output for jsonl only; name a folder (./- is one of that name)";
            Err(options.refuse("path", why))
        }
        _ => options.path("path"),
    }
}

/// A folder as the target of a writer.
pub struct FolderTarget<F> {
    /// The folder.
    pub(super) path: PathBuf,
    /// The files of its windows, formatted by so many threads.
    pub(super) files: fn(usize) -> F,
}

impl<F: Files> Target for FolderTarget<F> {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn options(&self) -> Value {
        json!({"path": self.describe()})
    }

    fn check(&self, _opening: &Opening<'_>) -> Result<(), SinkError> {
        check(&self.path)
    }

    /// Opens the folder behind the outbox.
    fn open(&self, opening: &Opening<'_>) -> Result<Box<dyn Destination>, SinkError> {
        let mut writer = FolderWriter::open(&self.path, (self.files)(opening.threads))?;
        writer.recover(None)?;
        (writer.way_out, writer.synced) = (BEHIND, opening.sync);
        writer.reuse(opening.reuse.clone())?;
        Ok(Box::new(FolderDestination { writer, sync: opening.sync }))
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn record(&self) -> Option<&dyn Record> {
        F::record(self)
    }
}

/// Whether a folder can be made or written to; nothing is.
pub fn check(path: &Path) -> Result<(), SinkError> {
    let found = path.ancestors().find(|path| path.as_os_str().is_empty() || path.exists());
    let nearest = found.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !nearest.is_dir() {
        return Err(SinkError::io("write into", nearest)(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    let allowed = rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK);
    allowed.map_err(|error| SinkError::io("write into", nearest)(error.into()))
}

/// Files are still there when the machine has gone down, if `sync`.
pub(super) fn sync_files(files: &[(PathBuf, File)], sync: bool) -> Result<(), SinkError> {
    let all = |(path, file): &(PathBuf, File)| file.sync_all().map_err(SinkError::io("sync", path));
    files.iter().filter(|_| sync).try_for_each(all)
}

/// Removes a file, where it is there; `action` names that in an error.
pub(super) fn remove_file(action: &'static str, path: &Path) -> Result<(), SinkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SinkError::io(action, path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder, where it is there.
fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames a finished folder to its name; gives the older snapshot of that name, which is aside then. After an error
/// nothing has changed, and it can be tried again. A folder that is no snapshot stays; what else is in one goes into the
/// new one, if it `keeps` that.
fn put_in_place<F: Files>(aside: &Path, path: &Path, keeps: bool) -> Result<Option<PathBuf>, SinkError> {
    let failed = |action| SinkError::io(action, path);
    match fs::rename(aside, path) {
        // XFS says of a folder that is not empty that it exists.
        Err(error) if path.is_dir() && matches!(error.kind(), DirectoryNotEmpty | AlreadyExists) => {}
        renamed => return renamed.map(|()| None).map_err(failed("rename to")),
    }
    keep_foreign::<F>(path, keeps.then_some(aside)).map_err(failed("replace"))?;
    match rustix::fs::renameat_with(CWD, aside, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(Some(aside.to_owned())),
        // This file system cannot exchange: for a moment there is neither the old nor the new.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            let old = aside.with_extension(format!("old{PARTIAL}"));
            fs::rename(path, &old).and_then(|()| fs::rename(aside, path)).map_err(failed("rename to"))?;
            Ok(Some(old))
        }
        Err(error) => Err(failed("rename to")(error.into())),
    }
}

/// Before a window's folder is removed: what no run has written there is put into the one that takes its place; an error
/// where it cannot be, or where there is none.
fn keep_foreign<F: Files>(place: &Path, into: Option<&Path>) -> io::Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let found = earlier::look::<F>(place, &name).map_err(io::Error::other)?;
    let foreign = match found {
        Place::Free => return Ok(()),
        Place::Window { foreign, .. } => foreign,
        Place::Foreign(_) => {
            let why = "a non-empty folder of this name exists and is not a snapshot";
            return Err(io::Error::other(why));
        }
    };
    for file in foreign {
        let old = place.join(&file);
        // A link, so that it is in one of the two at any time.
        let kept = into.is_some_and(|into| link(&old, &into.join(&file)).is_ok());
        if !kept {
            let why = format!("{} was not written by this program: move it elsewhere", old.display());
            return Err(io::Error::other(why));
        }
    }
    Ok(())
}

/// Gives a file a second name, which it may have already.
fn link(old: &Path, new: &Path) -> io::Result<()> {
    match fs::hard_link(old, new) {
        Err(error) if error.kind() == AlreadyExists => {
            let inode = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
            if inode(old)? == inode(new)? { Ok(()) } else { Err(error) }
        }
        linked => linked,
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), SinkError> {
    let write = || {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        fs::write(path, text)
    };
    write().map_err(SinkError::io("write", path))
}
