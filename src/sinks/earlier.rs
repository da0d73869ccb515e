//! What an earlier run has left in a writer's folder, and whether a run may replace it or go on with it.
//!
//! A folder is looked at only where its name is that of a window. It is a window where it has the summary of the window that
//! it is named after, tables of the tasks in that summary, and nothing else; anything else of that name is somebody's, and is
//! never removed. What an engine has written is the history of a link, and no batch run replaces it: it is known by the
//! engine's ledger, by its records of commits, or by the mark that it makes before it shows its first window and takes
//! away behind a ledger that tells of a link.

use super::SinkError;
use super::folder::Files;
use super::text::window_name;
use crate::ledger::{Ledger, is_live};
use dataflows::window::Windowing;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, FileType};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Endings of the files of a task.
const TABLES: [&str; 3] = [".csv", ".jsonl", ".state"];
/// The file of a task in a folder of its own.
const ROWS: &str = "rows.parquet";
/// Names that a message lists.
const LISTED: usize = 3;

/// What a run does about the windows of an earlier one.
#[derive(Clone, Debug)]
pub enum Reuse {
    /// It goes on with them, as an engine does; where it is known how it cuts windows, they have to be cut like that.
    Continue(Option<Windowing>),
    /// It begins anew and replaces them; what has gone is told here.
    Replace(Told),
}

/// What became of an earlier run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The folders that it is told of.
    folders: Vec<String>,
    /// In words, behind the folders.
    what: String,
    /// Whether it is to be told where little is: what has gone may have been wanted, or what was wanted is not there.
    pub is_news: bool,
}

impl std::fmt::Display for Replaced {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.folders.join(", "), self.what)
    }
}

/// What is to be told at the end of a run.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<Vec<Replaced>>>);

impl Told {
    /// All of it; what is the same of several folders, once.
    pub fn take(&self) -> Vec<Replaced> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn tell(&self, what: Replaced) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match told.iter_mut().find(|other| other.what == what.what && other.is_news == what.is_news) {
            Some(same) => same.folders.extend(what.folders),
            None => told.push(what),
        }
    }
}

/// What an earlier run has left that may be replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Earlier {
    /// Names of its windows' folders that are still in their places.
    pub(super) windows: BTreeSet<String>,
    /// Those of them that the run at hand has not written.
    pub(super) gone: BTreeSet<String>,
    /// The first and last of all its windows, for people.
    span: String,
    /// Names of its inputs, where it has ended.
    inputs: Option<BTreeSet<String>>,
}

impl Earlier {
    /// Looks at what is in a folder; the error says why it must not be replaced, with this way out.
    pub(super) fn find<F: Files>(folder: &Path, mark: &Path, way_out: &str) -> Result<Self, SinkError> {
        let refuse = |why| Err(SinkError::InUse { path: folder.to_owned(), why });
        let windows = windows::<F>(folder, way_out)?;
        if windows.is_empty() {
            return match records(folder) {
                Some(records) => refuse(format!(
                    "the records of an ns-engine that writes here are in {}: {way_out}, or remove them if that engine is \
                     not to go on",
                    records.display()
                )),
                None => Ok(Self::default()),
            };
        }
        let span = span::<F>(&windows);
        let ledger = ledger::<F>(folder)?;
        if formats(&ledger).any(is_live) || mark.exists() || records(folder).is_some() {
            return refuse(format!(
                "contains windows {span} written by ns-engine, which pcap-analyzer never overwrites: {way_out}"
            ));
        }
        let name = |input: &Value| input["name"].as_str().map(str::to_owned);
        let inputs = ledger["inputs"].as_array().map(|inputs| inputs.iter().filter_map(name).collect());
        Ok(Self { gone: windows.clone(), span, windows, inputs })
    }

    /// What a run with this ledger has replaced but for itself; `None` where that is no news, as when the same inputs are
    /// analysed again.
    pub(super) fn replaced<F: Files>(&self, folder: &Path, ledger: &Ledger) -> Option<Replaced> {
        let now: BTreeSet<String> = ledger.input_names().map(str::to_owned).collect();
        let is_same = self.inputs.as_ref().is_some_and(|inputs| are_same(inputs, &now));
        let what = match &self.inputs {
            Some(inputs) if !is_same => format!(
                "the results of an earlier run over {} (windows {}) were replaced by this run over {}. For one result over \
                 several files, pass them all to one run (xargs may split a long list)",
                listed(inputs),
                self.span,
                listed(&now),
            ),
            _ if self.gone.is_empty() => return None,
            _ => format!(
                "removed windows of an earlier run that this run did not write: {}",
                span::<F>(&self.gone)
            ),
        };
        Some(Replaced { folders: vec![folder.display().to_string()], what, is_news: !is_same })
    }

    /// That nothing was replaced: the run at hand has read nothing that could take its place.
    pub(super) fn kept(&self, folder: &Path) -> Replaced {
        let what = format!("kept the windows {} of an earlier run: this run read no packet", self.span);
        Replaced { folders: vec![folder.display().to_string()], what, is_news: true }
    }
}

/// Checks that a run that goes on with what is in a folder cuts windows as an earlier one did, and that this was an engine
/// too. Where commits are recorded, an earlier version may have left windows that nothing tells of.
pub(super) fn check_continued<F: Files>(
    folder: &Path,
    mark: &Path,
    windowing: Windowing,
    (way_out, is_recorded): (&str, bool),
) -> Result<(), SinkError> {
    let refuse = |why| Err(SinkError::InUse { path: folder.to_owned(), why });
    let names = names::<F>(folder)?;
    // The windows between are of one run with these, or of one that was checked like this.
    for name in names.first().into_iter().chain(names.last()) {
        let Place::Window { span, .. } = look::<F>(&folder.join(name), name)? else { continue };
        let is_cut_so = match (windowing, span) {
            (Windowing::All, None) => true,
            (Windowing::Every(length), Some((start, end))) => end == start.saturating_add(length),
            _ => false,
        };
        if !is_cut_so {
            let name = window_name(span);
            return refuse(format!(
                "holds window {name} of another length: {way_out}, or remove the windows"
            ));
        }
        let ledger = ledger::<F>(folder)?;
        let is_of_files = formats(&ledger).any(|format| !is_live(format));
        let is_known = is_recorded || !ledger.is_null() || mark.exists() || records(folder).is_some();
        if is_of_files || !is_known {
            let windows = self::span::<F>(&names);
            return refuse(format!(
                "holds windows {windows} of a run over files, and those of ns-engine would be mixed with them: {way_out}, \
                 or remove the windows"
            ));
        }
    }
    Ok(())
}

/// What is in the place of a window.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing, or a folder with nothing in it.
    Free,
    /// A window.
    Window {
        /// From when to when, but for that of everything.
        span: Option<(u64, u64)>,
        /// What else is in its folder, which no run has written there: names below it.
        foreign: Vec<PathBuf>,
    },
    /// Something that no run has written: this.
    Foreign(PathBuf),
}

/// Looks at the place of a window of this name; follows no links.
pub(super) fn look<F: Files>(place: &Path, name: &str) -> Result<Place, SinkError> {
    let failed = SinkError::io("read", place);
    match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Place::Free),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_dir() => return Ok(Place::Foreign(place.to_owned())),
        Ok(_) => {}
    }
    let entries = entries(place).map_err(&failed)?;
    let is_summary = |(name, kind): &(String, FileType)| name == F::SUMMARY && kind.is_file();
    let window = match entries.iter().any(is_summary) {
        true => window::<F>(place, name)?,
        false => None,
    };
    let Some((span, tasks)) = window else {
        let other = entries.iter().find(|entry| !is_summary(entry)).or(entries.first());
        return Ok(other.map_or(Place::Free, |(name, _)| Place::Foreign(place.join(name))));
    };
    let mut foreign = Vec::new();
    for (name, kind) in entries.iter().filter(|entry| !is_summary(entry)) {
        let is_table =
            |task: &String| name.strip_prefix(task.as_str()).is_some_and(|ending| TABLES.contains(&ending));
        let is_folder =
            name.strip_prefix("task=").is_some_and(|task| tasks.iter().any(|other| other == task));
        if kind.is_dir() && is_folder {
            let below = self::entries(&place.join(name)).map_err(&failed)?;
            let others = below.into_iter().filter(|(file, kind)| file != ROWS || !kind.is_file());
            foreign.extend(others.map(|(file, _)| Path::new(name).join(file)));
        } else if !kind.is_file() || !tasks.iter().any(is_table) {
            foreign.push(name.into());
        }
    }
    Ok(Place::Window { span, foreign })
}

/// The names in a folder that are those of windows.
pub(super) fn names<F: Files>(folder: &Path) -> Result<BTreeSet<String>, SinkError> {
    let entries = entries(folder).map_err(SinkError::io("read", folder))?;
    Ok(entries.into_iter().map(|(name, _)| name).filter(|name| is_window::<F>(name)).collect())
}

/// Whether a window's folder may have this name.
fn is_window<F: Files>(name: &str) -> bool {
    let Some(name) = name.strip_prefix(F::PREFIX) else { return false };
    let start = || {
        let (date, time) = name.split_once('T')?;
        nanoseconds(&format!("{date}T{}", time.replace('-', ":")))
    };
    name == window_name(None) || start().is_some_and(|start| window_name(Some((start, start))) == name)
}

fn nanoseconds(time: &str) -> Option<u64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    u64::try_from(time.as_nanosecond()).ok()
}

/// The names and kinds of what is in a folder, in the order of their names.
fn entries(folder: &Path) -> io::Result<Vec<(String, FileType)>> {
    let entry = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?))
    };
    let mut entries = fs::read_dir(folder)?.map(entry).collect::<io::Result<Vec<_>>>()?;
    entries.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(entries)
}

/// The windows' folders in a folder; an error where something that no run has written is in the place of one.
fn windows<F: Files>(folder: &Path, way_out: &str) -> Result<BTreeSet<String>, SinkError> {
    let mut windows = BTreeSet::new();
    for name in names::<F>(folder)? {
        let place = folder.join(&name);
        let foreign = match look::<F>(&place, &name)? {
            Place::Free => continue,
            Place::Window { foreign, .. } => foreign.first().map(|foreign| place.join(foreign)),
            Place::Foreign(foreign) => Some(foreign),
        };
        if let Some(foreign) = foreign {
            let why = format!(
                "{} was not written by this program, and the folder it is in would be overwritten: move it elsewhere, or {way_out}",
                foreign.display()
            );
            return Err(SinkError::InUse { path: place, why });
        }
        windows.insert(name);
    }
    Ok(windows)
}

/// From when to when a window is, and the names of its tasks.
type WindowParts = (Option<(u64, u64)>, Vec<String>);

/// What a window's summary tells; `None` where it is not that of a window of this name.
fn window<F: Files>(window: &Path, name: &str) -> Result<Option<WindowParts>, SinkError> {
    let Some(text) = read(&window.join(F::SUMMARY))? else { return Ok(None) };
    let Ok(summary) = serde_json::from_slice::<Value>(&text) else { return Ok(None) };
    let time = |key: &str| summary[key].as_str().and_then(nanoseconds);
    let span = match &summary["window_start"] {
        Value::Null => Some(None),
        _ => time("window_start").zip(time("window_end")).map(Some),
    };
    let span = span.filter(|span| name.strip_prefix(F::PREFIX) == Some(&window_name(*span)));
    let tasks = summary["tasks"].as_object().filter(|_| summary["revision"].is_u64());
    Ok(span.zip(tasks.map(|tasks| tasks.keys().cloned().collect())))
}

/// The records of commits into this folder, where there are any.
fn records(folder: &Path) -> Option<PathBuf> {
    crate::state::places(folder).into_iter().find(|place| place.is_dir())
}

/// The ledger of the run that has written here; null where there is none that can be read.
fn ledger<F: Files>(folder: &Path) -> Result<Value, SinkError> {
    let text = read(&folder.join(F::LEDGER))?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
}

/// The formats of a run's inputs.
fn formats(ledger: &Value) -> impl Iterator<Item = &str> {
    let inputs = ledger["inputs"].as_array().into_iter().flatten();
    inputs.filter_map(|input| input["format"].as_str())
}

/// What a file holds; `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, SinkError> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(SinkError::io("read", path)(error)),
    }
}

/// Whether inputs of these names are the same files. What comes out of a pipe is never known to be what came before.
fn are_same(earlier: &BTreeSet<String>, now: &BTreeSet<String>) -> bool {
    let files =
        |names: &BTreeSet<String>| names.iter().map(|name| file(name)).collect::<Option<BTreeSet<_>>>();
    files(earlier).is_some_and(|earlier| files(now) == Some(earlier))
}

/// The file of this name, whatever the path to it; the name itself where it is not on this machine. `None` of a pipe.
fn file(name: &str) -> Option<PathBuf> {
    if name == "-" || fs::metadata(name).is_ok_and(|found| !found.is_file()) {
        return None;
    }
    Some(fs::canonicalize(name).unwrap_or_else(|_| name.into()))
}

/// The first and the last of these windows, and how many they are.
fn span<F: Files>(windows: &BTreeSet<String>) -> String {
    let name = |name: &String| name.strip_prefix(F::PREFIX).unwrap_or(name).to_owned();
    match (windows.first(), windows.last()) {
        (Some(first), Some(last)) if first != last => {
            format!("{} to {} ({})", name(first), name(last), windows.len())
        }
        (Some(only), _) => name(only),
        _ => "-".into(),
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    let listed: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match names.len() - listed.len() {
        0 => listed.join(", "),
        more => format!("{} and {more} more", listed.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::InputReport;
    use crate::sinks::csv::Csv;
    use crate::sinks::json::JsonLines;
    use crate::sinks::parquet::Parquet;
    use crate::sinks::{Writer, folder::FolderWriter};
    use dataflows::rows::{Missing, Snapshot};
    use dataflows::window::Windowing;
    use std::sync::Arc;

    const MARK: &str = ".live.netspectra-partial";
    const MINUTES: Windowing = Windowing::Every(60_000_000_000);

    fn snapshot(window: u64) -> Arc<Snapshot> {
        let task = crate::trial::task(&["SrcIP", "DstPort"]);
        let tasks = vec![crate::trial::rows(&task, &crate::trial::FLOWS)];
        let span = MINUTES.span(window);
        Arc::new(Snapshot { window, span, revision: 0, tasks, missing: Missing::default() })
    }

    fn write<F: Files>(folder: &Path, files: F, reuse: Reuse, windows: &[u64]) -> FolderWriter<F> {
        write_as(folder, files, reuse, (windows, None))
    }

    /// The same for commits that are recorded, where they have a number.
    fn write_as<F: Files>(
        folder: &Path,
        files: F,
        reuse: Reuse,
        (windows, commit): (&[u64], Option<u64>),
    ) -> FolderWriter<F> {
        let mut writer = FolderWriter::open(folder, files).expect("a folder");
        writer.recover(None).expect("recovered");
        writer.reuse(reuse).expect("may be used");
        for window in windows {
            writer.prepare(&snapshot(*window), commit).and_then(|()| writer.publish()).expect("written");
        }
        writer
    }

    fn anew() -> Reuse {
        Reuse::Replace(Told::default())
    }

    fn ledger() -> Ledger {
        Ledger::new(&[], 1, false)
    }

    /// Of a run over one input of this name and format, which a signal has ended or not.
    fn ledger_of(name: &str, format: &str, interrupted: bool) -> Ledger {
        let report = InputReport { name: name.into(), format: format.into(), ..InputReport::default() };
        Ledger::new(&[(report, Default::default())], 1, interrupted)
    }

    /// Why a run may not use a folder, which is a mistake of whoever has named it.
    fn refusal<F: Files>(folder: &Path, files: F, reuse: Reuse) -> String {
        let mut writer = FolderWriter::open(folder, files).expect("a folder");
        writer.recover(None).expect("recovered");
        let error = writer.reuse(reuse).expect_err("a refusal");
        assert!(error.is_usage(), "{error}");
        error.to_string()
    }

    fn names(folder: &Path) -> BTreeSet<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| name(entry).into_string().expect("text"))
            .collect()
    }

    /// Two runs into one folder: whatever the first has written and the second has not, goes.
    fn assert_replaced<F: Files>(files: fn() -> F) {
        for ends in [true, false] {
            let scratch = tempfile::tempdir().expect("a folder");
            let folder = scratch.path();
            let mut first = write(folder, files(), anew(), &[1, 2, 3]);
            if ends {
                first.finish(&ledger()).expect("finished");
            }
            drop(first);
            fs::create_dir(folder.join("mine")).expect("a folder");
            let mut second = write(folder, files(), anew(), &[3, 4]);
            second.finish(&ledger()).expect("finished");
            let expected =
                [3, 4].map(|window| format!("{}{}", F::PREFIX, window_name(snapshot(window).span)));
            let expected: BTreeSet<String> =
                expected.into_iter().chain([F::LEDGER.to_owned(), "mine".to_owned()]).collect();
            assert_eq!(names(folder), expected, "the first run has ended: {ends}");
        }
    }

    #[test]
    fn a_run_that_begins_anew_replaces_what_an_ended_or_killed_run_has_left() {
        assert_replaced(|| Csv { threads: 1 });
        assert_replaced(|| JsonLines { threads: 1 });
        assert_replaced(|| Parquet { threads: 1 });
    }

    #[test]
    fn a_run_that_counts_nothing_replaces_an_earlier_one_too() {
        let scratch = tempfile::tempdir().expect("a folder");
        for windows in [&[1, 2][..], &[]] {
            let mut writer = write(scratch.path(), Csv { threads: 1 }, anew(), windows);
            writer.finish(&ledger()).expect("finished");
        }
        assert_eq!(names(scratch.path()), BTreeSet::from(["ledger.json".to_owned()]));
    }

    #[test]
    fn an_engine_that_starts_again_keeps_its_windows() {
        let scratch = tempfile::tempdir().expect("a folder");
        for windows in [[1, 2], [2, 3]] {
            write(scratch.path(), Csv { threads: 1 }, Reuse::Continue(Some(MINUTES)), &windows)
                .finish(&ledger_of("eth0", "live", true))
                .expect("finished");
        }
        assert_eq!(names(scratch.path()).len(), 4);
    }

    /// An engine that is killed leaves a mark in every folder, whether its commits are recorded or not.
    fn assert_marked<F: Files>(files: fn() -> F) {
        for commit in [None, Some(0)] {
            let scratch = tempfile::tempdir().expect("a folder");
            let folder = scratch.path();
            drop(write_as(folder, files(), Reuse::Continue(None), (&[1, 2], commit)));
            assert!(refusal(folder, files(), anew()).contains("ns-engine"), "{commit:?}");
            // One that goes on takes it away behind a ledger that tells of a link, and behind no other.
            for (ledger, is_marked) in [(ledger(), true), (ledger_of("eth0", "nats-batch", true), false)] {
                let mut engine = write_as(folder, files(), Reuse::Continue(Some(MINUTES)), (&[3], commit));
                engine.finish(&ledger).expect("finished");
                drop(engine);
                assert_eq!(names(folder).contains(MARK), is_marked, "{commit:?}");
                assert!(refusal(folder, files(), anew()).contains("ns-engine"), "{commit:?}");
            }
            assert_eq!(names(folder).len(), 4, "{commit:?}");
        }
    }

    #[test]
    fn the_windows_of_a_killed_engine_are_known_in_every_folder_and_every_copy_of_it() {
        assert_marked(|| Csv { threads: 1 });
        assert_marked(|| JsonLines { threads: 1 });
        assert_marked(|| Parquet { threads: 1 });
    }

    #[test]
    fn an_engine_does_not_mix_its_windows_with_those_of_a_run_over_files_or_of_another_length() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        let (csv, goes_on) = (|| Csv { threads: 1 }, |windowing| Reuse::Continue(Some(windowing)));
        // Of a run over files that has ended, or not.
        drop(write(folder, csv(), anew(), &[1, 2]));
        assert!(refusal(folder, csv(), goes_on(MINUTES)).contains("run over files"));
        let mut batch = write(folder, csv(), anew(), &[1, 2]);
        batch.finish(&ledger_of("a.pcap", "pcap", false)).expect("finished");
        drop(batch);
        assert!(refusal(folder, csv(), goes_on(MINUTES)).contains("run over files"));
        fs::remove_dir_all(folder).expect("removed");
        // Of an engine with windows of another length.
        fs::create_dir(folder).expect("a folder");
        drop(write(folder, csv(), goes_on(MINUTES), &[1, 2]));
        for windowing in [Windowing::All, Windowing::Every(1_000_000_000)] {
            assert!(refusal(folder, csv(), goes_on(windowing)).contains("another length"));
        }
        drop(write(folder, csv(), goes_on(MINUTES), &[2, 3]));
        assert_eq!(names(folder).len(), 4);
    }

    #[test]
    fn what_an_engine_has_left_where_no_window_is_does_not_refuse_the_second_run() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path().join("out");
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join(MARK), "").expect("written");
        for windows in [[1], [2]] {
            write(&folder, Csv { threads: 1 }, anew(), &windows).finish(&ledger()).expect("finished");
        }
        assert_eq!(names(&folder).len(), 2);
        // Records refuse the first one.
        fs::remove_dir_all(&folder).expect("removed");
        fs::create_dir(&folder).expect("a folder");
        fs::create_dir(scratch.path().join("out.state")).expect("a folder");
        let told = refusal(&folder, Csv { threads: 1 }, anew());
        assert!(told.contains("out.state"), "{told}");
    }

    #[test]
    fn what_may_be_needed_or_is_not_ours_is_refused() {
        let csv = || Csv { threads: 1 };
        let refused = |folder: &Path| refusal(folder, csv(), anew());
        // Of an engine that was killed, by its mark.
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        drop(write(folder, csv(), Reuse::Continue(None), &[1, 2]));
        assert!(refused(folder).contains("ns-engine"));
        fs::remove_file(folder.join(MARK)).expect("a mark");
        // Of an engine that has ended, and of one that records its commits.
        let live = r#"{"inputs":[{"name":"eth0","format":"live"}]}"#;
        fs::write(folder.join("ledger.json"), live).expect("written");
        assert!(refused(folder).contains("ns-engine"));
        fs::write(folder.join("ledger.json"), r#"{"inputs":[]}"#).expect("written");
        fs::create_dir(folder.join(".netspectra")).expect("a folder");
        assert!(refused(folder).contains("ns-engine"));
        fs::remove_dir(folder.join(".netspectra")).expect("removed");
        // Something that no run writes, in a window.
        let window = folder.join(window_name(snapshot(2).span));
        fs::write(window.join("plot.png"), "").expect("written");
        assert!(refused(folder).contains("plot.png"));
        fs::remove_file(window.join("plot.png")).expect("removed");
        write(folder, csv(), anew(), &[9]).finish(&ledger()).expect("finished");
        assert_eq!(names(folder).len(), 2);
    }

    #[test]
    fn what_has_no_name_of_a_window_is_not_looked_at_and_stays() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        // What cannot be read, or is a window under another name, or has no place of its own yet.
        fs::create_dir_all(folder.join("lost+found/summary.json")).expect("a folder");
        fs::create_dir(folder.join("copy")).expect("a folder");
        let summary = r#"{"window_start":null,"window_end":null,"revision":0,"tasks":{}}"#;
        fs::write(folder.join("copy/summary.json"), summary).expect("written");
        fs::create_dir(folder.join("2023-11-14T22-13-00Z")).expect("a folder");
        write(folder, Csv { threads: 1 }, anew(), &[1]).finish(&ledger()).expect("finished");
        assert_eq!(names(folder).len(), 5);
    }

    #[test]
    fn what_is_in_the_place_of_a_window_and_no_run_has_written_is_refused_before_anything_goes() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        let csv = || Csv { threads: 1 };
        write(folder, csv(), anew(), &[1]).finish(&ledger()).expect("finished");
        let of_minute = window_name(snapshot(2).span);
        let all = r#"{"window_start":null,"window_end":null,"revision":0,"tasks":{"a":{}}}"#;
        let whole = [("all/summary.json", all), ("all/a.csv", "")];
        for (files, named) in [
            (vec![("all/x", "")], "all/x"),
            (vec![("all", "")], "all"),
            (vec![("all/summary.json", "{}"), ("all/thesis.txt", "x")], "all/thesis.txt"),
            (vec![("all/summary.json", all), ("all/b.csv", "")], "all/b.csv"),
            (vec![whole[0], whole[1], ("all/a.jsonl/x", "")], "all/a.jsonl"),
            (vec![("all/summary.json/x", "")], "all/summary.json"),
            (vec![("2023-11-14T22-13-00.5Z/x", "")], "2023-11-14T22-13-00.5Z/x"),
        ] {
            for (file, text) in &files {
                let file = folder.join(file);
                fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
                fs::write(file, text).expect("written");
            }
            let told = refusal(folder, csv(), anew());
            assert!(told.contains(&format!("{} was not written", folder.join(named).display())), "{told}");
            assert!(files.iter().all(|(file, _)| folder.join(file).exists()), "{told}");
            assert!(folder.join("ledger.json").exists(), "{told}");
            let top = folder.join(Path::new(files[0].0).iter().next().expect("a name"));
            if top.is_dir() { fs::remove_dir_all(top) } else { fs::remove_file(top) }.expect("removed");
        }
        // And at the exchange, where it has come there since.
        let mut writer = write(folder, csv(), anew(), &[]);
        fs::create_dir(folder.join(&of_minute)).expect("a folder");
        fs::write(folder.join(&of_minute).join("summary.json"), "{}").expect("written");
        fs::write(folder.join(&of_minute).join("thesis.txt"), "x").expect("written");
        writer.prepare(&snapshot(2), None).expect("prepared");
        writer.publish().expect_err("a refusal");
        assert!(folder.join(&of_minute).join("thesis.txt").exists());
    }

    #[test]
    fn what_somebody_has_put_into_a_window_of_an_engine_stays_when_that_is_revised() {
        let scratch = tempfile::tempdir().expect("a folder");
        let window = scratch.path().join(window_name(snapshot(1).span));
        let mut writer = write(scratch.path(), Csv { threads: 1 }, Reuse::Continue(None), &[1]);
        fs::write(window.join("plot.png"), "x").expect("written");
        writer.prepare(&snapshot(1), None).and_then(|()| writer.publish()).expect("written");
        assert!(window.join("plot.png").exists());
        fs::create_dir(window.join("plots")).expect("a folder");
        writer.prepare(&snapshot(1), None).expect("prepared");
        let why = writer.publish().expect_err("no folder is moved").to_string();
        assert!(why.contains("plots") && window.join("plots").exists(), "{why}");
        fs::remove_dir(window.join("plots")).expect("removed");
        writer.publish().expect("written");
        assert!(window.join("plot.png").exists());
    }

    #[test]
    fn an_earlier_answer_stays_whole_until_there_is_another() {
        struct Full;
        impl Files for Full {
            fn build(&self, folder: &Path, _: &Snapshot, _: bool) -> Result<(), SinkError> {
                Err(SinkError::io("write", folder)(io::ErrorKind::StorageFull.into()))
            }
        }
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        let csv = || Csv { threads: 1 };
        write(folder, csv(), anew(), &[1, 2]).finish(&ledger()).expect("finished");
        let before = names(folder);
        let mut full = write(folder, Full, anew(), &[]);
        full.prepare(&snapshot(1), None).expect_err("no room");
        drop(full);
        assert_eq!(names(folder), before);
        // A run that was ended before it had read anything gives no answer.
        let told = Told::default();
        let nothing = Snapshot { tasks: Vec::new(), ..Snapshot::clone(&snapshot(3)) };
        let nothing = Arc::new(nothing);
        let mut writer = write(folder, csv(), Reuse::Replace(told.clone()), &[]);
        writer.prepare(&nothing, None).and_then(|()| writer.publish()).expect("written");
        writer.finish(&ledger_of("a.pcap", "pcap", true)).expect("finished");
        drop(writer);
        assert_eq!(names(folder), before);
        assert!(told.take().iter().any(|told| told.is_news && told.to_string().contains("kept")));
        // One that has come to the end of nothing does.
        let mut writer = write(folder, csv(), anew(), &[]);
        writer.prepare(&nothing, None).and_then(|()| writer.publish()).expect("written");
        writer.finish(&ledger_of("a.pcap", "pcap", false)).expect("finished");
        let expected = BTreeSet::from(["ledger.json".to_owned(), window_name(nothing.span)]);
        assert_eq!(names(folder), expected);
    }

    #[test]
    fn what_was_replaced_is_told_once_for_all_folders_and_by_what_the_inputs_are() {
        let scratch = tempfile::tempdir().expect("a folder");
        let capture = |name: &str| scratch.path().join(name).display().to_string();
        fs::write(scratch.path().join("a.pcap"), "").expect("written");
        let run = |name: &str| {
            let told = Told::default();
            let reuse = Reuse::Replace(told.clone());
            let (csv, parquet) = (scratch.path().join("csv"), scratch.path().join("parquet"));
            let ledger = ledger_of(name, "pcap", false);
            write(&csv, Csv { threads: 1 }, reuse.clone(), &[1]).finish(&ledger).expect("finished");
            write(&parquet, Parquet { threads: 1 }, reuse, &[1]).finish(&ledger).expect("finished");
            told.take()
        };
        assert_eq!(run(&capture("a.pcap")), []);
        assert_eq!(run(&capture("./a.pcap")), [], "the same file");
        for name in ["-", "-"] {
            let told = run(name);
            assert!(told.len() == 1 && told[0].is_news, "{told:?}");
            let told = told[0].to_string();
            assert!(
                ["csv, ", "parquet: the results of an earlier run over"]
                    .iter()
                    .all(|part| told.contains(part)),
                "{told}"
            );
        }
    }
}
