//! What an earlier run has left in a writer's folder, and whether a run that begins anew may replace it.
//!
//! A window's folder is known by what is in it, never by its name alone: it has a summary of the window that it is named
//! after, and tables of the tasks in that summary, and nothing else. What an engine has written is the history of a link,
//! and no batch run replaces it: it is known by the engine's ledger, by its records of commits, or by the mark that it makes
//! before it shows its first window and takes away behind its ledger.

use super::SinkError;
use super::folder::Files;
use super::text::window_name;
use crate::ledger::{Ledger, is_live};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Endings of the files of a task.
const TABLES: [&str; 3] = [".csv", ".jsonl", ".state"];
/// Names that a message lists.
const LISTED: usize = 3;

/// What a run does about the windows of an earlier one.
#[derive(Clone, Debug)]
pub enum Reuse {
    /// It goes on with them, as an engine does.
    Continue,
    /// It begins anew and replaces them; what has gone is told here.
    Replace(Told),
}

/// What a run has replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// In words.
    pub what: String,
    /// Whether it was not an answer about the same inputs, as far as is known: it may have been wanted.
    pub of_others: bool,
}

/// What is to be told at the end of a run.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<Vec<Replaced>>>);

impl Told {
    /// All of it.
    pub fn take(&self) -> Vec<Replaced> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn tell(&self, what: Replaced) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what);
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
    /// Looks at what is in a folder; the error says why it must not be replaced.
    pub(super) fn find<F: Files>(folder: &Path, mark: &Path) -> Result<Self, SinkError> {
        let windows = windows::<F>(folder)?;
        if windows.is_empty() {
            return Ok(Self::default());
        }
        let ledger = read(&folder.join(F::LEDGER))?;
        let ledger = ledger.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let inputs = ledger.as_ref().and_then(|ledger| ledger["inputs"].as_array());
        let mut formats = inputs.into_iter().flatten().filter_map(|input| input["format"].as_str());
        if formats.any(is_live) || mark.exists() || has_records(folder) {
            let why = format!(
                "contains windows {} written by ns-engine, which pcap-analyzer never overwrites; choose another folder \
                 with -o",
                span(&windows)
            );
            return Err(SinkError::InUse { path: folder.to_owned(), why });
        }
        let name = |input: &Value| input["name"].as_str().map(str::to_owned);
        let inputs = inputs.map(|inputs| inputs.iter().filter_map(name).collect());
        Ok(Self { gone: windows.clone(), span: span(&windows), windows, inputs })
    }

    /// What a run with this ledger has replaced but for itself; `None` where that is no news, as when the same inputs are
    /// analysed again.
    pub(super) fn replaced(&self, folder: &Path, ledger: &Ledger) -> Option<Replaced> {
        let folder = folder.display();
        let now: BTreeSet<String> = ledger.input_names().map(str::to_owned).collect();
        let what = match &self.inputs {
            Some(inputs) if *inputs != now => format!(
                "{folder}: the results of an earlier run over {} (windows {}) were replaced by this run over {}. For one \
                 result over several files, pass them all to one run (xargs may split a long list)",
                listed(inputs),
                self.span,
                listed(&now),
            ),
            _ if self.gone.is_empty() => return None,
            _ => format!(
                "{folder}: removed windows of an earlier run that this run did not write: {}",
                span(&self.gone)
            ),
        };
        Some(Replaced { what, of_others: self.inputs.as_ref() != Some(&now) })
    }
}

/// The windows' folders in a folder; an error where one has something in it that no run writes there.
fn windows<F: Files>(folder: &Path) -> Result<BTreeSet<String>, SinkError> {
    let failed = SinkError::io("read", folder);
    let mut windows = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let window = folder.join(&name);
        if !entry.file_type().map_err(&failed)?.is_dir() {
            continue;
        }
        let Some(tasks) = tasks::<F>(&window, &name)? else { continue };
        if let Some(path) = foreign(&window, F::SUMMARY, &tasks).map_err(SinkError::io("read", &window))? {
            let why = format!(
                "{} was not written by this program, and the folder it is in would be overwritten; move the file, or choose another folder with -o",
                window.join(path).display()
            );
            return Err(SinkError::InUse { path: window, why });
        }
        windows.insert(name);
    }
    Ok(windows)
}

/// The names of the tasks in a window's folder; `None` where it is none.
fn tasks<F: Files>(window: &Path, name: &str) -> Result<Option<Vec<String>>, SinkError> {
    let Some(text) = read(&window.join(F::SUMMARY))? else { return Ok(None) };
    let Ok(summary) = serde_json::from_slice::<Value>(&text) else { return Ok(None) };
    let start = match &summary["window_start"] {
        Value::Null => Some(None),
        start => start
            .as_str()
            .and_then(|start| start.parse::<jiff::Timestamp>().ok())
            .and_then(|start| u64::try_from(start.as_nanosecond()).ok())
            .map(|start| Some((start, start))),
    };
    let is_its_name = start.is_some_and(|start| name.strip_prefix(F::PREFIX) == Some(&window_name(start)));
    let tasks = summary["tasks"].as_object().filter(|_| is_its_name && summary["revision"].is_u64());
    Ok(tasks.map(|tasks| tasks.keys().cloned().collect()))
}

/// The name of something in a window's folder that no run writes there, if there is any.
fn foreign(window: &Path, summary: &str, tasks: &[String]) -> io::Result<Option<String>> {
    for entry in fs::read_dir(window)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_table = |task: &String| {
            name.strip_prefix(task.as_str()).is_some_and(|ending| TABLES.contains(&ending))
                || name.strip_prefix("task=") == Some(task)
        };
        if name != summary && !tasks.iter().any(is_table) {
            return Ok(Some(name));
        }
        if name.starts_with("task=") {
            for entry in fs::read_dir(window.join(&name))? {
                let file = entry?.file_name();
                if file != "rows.parquet" {
                    return Ok(Some(format!("{name}/{}", file.display())));
                }
            }
        }
    }
    Ok(None)
}

/// Whether commits into this folder are recorded.
fn has_records(folder: &Path) -> bool {
    crate::state::places(folder).iter().any(|place| place.is_dir())
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

/// The first and the last of these windows, and how many they are.
fn span(windows: &BTreeSet<String>) -> String {
    match (windows.first(), windows.last()) {
        (Some(first), Some(last)) if first != last => format!("{first} to {last} ({})", windows.len()),
        (Some(only), _) => only.clone(),
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
    use crate::sinks::csv::{Csv, CsvWriter};
    use crate::sinks::json::JsonLines;
    use crate::sinks::parquet::Parquet;
    use crate::sinks::{Writer, folder::FolderWriter};
    use dataflows::rows::{Missing, Snapshot};
    use dataflows::window::Windowing;
    use std::sync::Arc;

    fn snapshot(window: u64) -> Arc<Snapshot> {
        let task = crate::trial::task(&["SrcIP", "DstPort"]);
        let tasks = vec![crate::trial::rows(&task, &crate::trial::FLOWS)];
        let span = Windowing::Every(60_000_000_000).span(window);
        Arc::new(Snapshot { window, span, revision: 0, tasks, missing: Missing::default() })
    }

    fn write<F: Files>(folder: &Path, files: F, reuse: Reuse, windows: &[u64]) -> FolderWriter<F> {
        let mut writer = FolderWriter::open(folder, files).expect("a folder");
        writer.recover(None).expect("recovered");
        writer.reuse(reuse).expect("may be used");
        for window in windows {
            writer.prepare(&snapshot(*window), None).and_then(|()| writer.publish()).expect("written");
        }
        writer
    }

    fn anew() -> Reuse {
        Reuse::Replace(Told::default())
    }

    fn ledger() -> Ledger {
        Ledger::new(&[], 1, false)
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
            write(scratch.path(), Csv { threads: 1 }, Reuse::Continue, &windows)
                .finish(&ledger())
                .expect("finished");
        }
        assert_eq!(names(scratch.path()).len(), 4);
    }

    #[test]
    fn what_may_be_needed_or_is_not_ours_is_refused() {
        let refused = |folder: &Path| {
            let mut writer = CsvWriter::open(folder, Csv { threads: 1 }).expect("a folder");
            writer.recover(None).expect("recovered");
            let error = writer.reuse(anew()).expect_err("a refusal");
            assert!(error.is_usage(), "{error}");
            error.to_string()
        };
        let csv = || Csv { threads: 1 };
        // Of an engine that was killed, by its mark.
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        drop(write(folder, csv(), Reuse::Continue, &[1, 2]));
        assert!(refused(folder).contains("ns-engine"));
        fs::remove_file(folder.join(".live.netspectra-partial")).expect("a mark");
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
    fn a_folder_that_only_looks_like_a_window_stays() {
        let scratch = tempfile::tempdir().expect("a folder");
        let folder = scratch.path();
        for (name, summary) in [
            ("2023-11-14T22-13-00Z", None),
            ("all", Some("{}")),
            ("copy", Some(r#"{"window_start":null,"window_end":null,"revision":0,"tasks":{}}"#)),
        ] {
            fs::create_dir(folder.join(name)).expect("a folder");
            summary
                .iter()
                .for_each(|text| fs::write(folder.join(name).join("summary.json"), text).expect("written"));
        }
        write(folder, Csv { threads: 1 }, anew(), &[1]).finish(&ledger()).expect("finished");
        assert_eq!(names(folder).len(), 5);
    }
}
