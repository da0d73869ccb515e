//! Alerts: rules over the tasks' tables, judged as windows are committed and when the rules are edited.
//!
//! In the order that things move: [`rule`] says for what a rule holds in one table, [`board`] which alerts are active,
//! [`event`] what is told of them, [`webhook`] and the JSON lines here where to.

pub mod board;
pub mod edits;
pub mod event;
pub mod rule;
pub mod webhook;

use crate::warn;
use board::{Board, MAX_ACTIVE, Standing};
use crossbeam_channel::Receiver;
use dataflows::rows::Snapshot;
use event::Event;
use rule::Rule;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use webhook::Webhook;

/// How long the end of a run waits for webhooks.
const PATIENCE: Duration = Duration::from_secs(10);

/// The `alerts` section, read and checked.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// In the order of the file.
    pub rules: Vec<Rule>,
    /// Where events go.
    pub outputs: Vec<Output>,
}

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A file of JSON objects, one a line.
    JsonLines {
        /// The file.
        path: PathBuf,
    },
    /// A web server.
    Webhook(webhook::Settings),
}

/// Who is told of events within the process.
pub type Listener = Box<dyn Fn(&[Event]) + Send>;

/// An output that is open.
enum Open {
    Listener(Listener),
    JsonLines { path: PathBuf, file: File },
    Webhook(Webhook),
}

/// A file of events cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write alerts to {}: {error}", path.display())]
pub struct AlertsError {
    path: PathBuf,
    error: io::Error,
}

/// The alerts of a run that has not begun.
pub struct Alerts {
    rules: Vec<Rule>,
    earlier: Standing,
    outputs: Vec<Open>,
    /// Rules of an edited file.
    pub edits: Receiver<Vec<Rule>>,
    left_out: Arc<AtomicU64>,
}

impl Alerts {
    /// Opens the outputs. A run that goes on where another has ended adds to its files, any other begins them anew.
    pub fn open(
        settings: &Settings,
        earlier: Option<Standing>,
        edits: Receiver<Vec<Rule>>,
    ) -> Result<Self, AlertsError> {
        let open = |output: &Output| match output {
            Output::JsonLines { path } => {
                let failed = |error| AlertsError { path: path.clone(), error };
                let mut options = OpenOptions::new();
                options.create(true).read(true).write(true);
                let file = match earlier {
                    Some(_) => options.append(true).open(path),
                    None => options.truncate(true).open(path),
                }
                .map_err(failed)?;
                end_line(path, &file).map_err(failed)?;
                Ok(Open::JsonLines { path: path.clone(), file })
            }
            Output::Webhook(settings) => {
                let started = Webhook::open(settings.clone());
                Ok(Open::Webhook(started.map_err(|error| AlertsError { path: "a webhook".into(), error })?))
            }
        };
        let mut outputs = settings.outputs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let earlier = earlier.unwrap_or_default();
        // The run before may have ended before it told them.
        tell_missing(&mut outputs, &earlier.events)?;
        Ok(Self { rules: settings.rules.clone(), earlier, outputs, edits, left_out: Arc::default() })
    }

    /// The alerts that are active from earlier on.
    pub fn active(&self) -> &[Event] {
        &self.earlier.active
    }

    /// Tells also this one.
    pub fn tell_also(&mut self, listener: Listener) {
        self.outputs.push(Open::Listener(listener));
    }

    /// For how many keys rules hold now without an alert, while it runs: they have [`board::MAX_ACTIVE`] each.
    pub fn left_out(&self) -> Arc<AtomicU64> {
        self.left_out.clone()
    }

    /// Begins; what is begun stays on its thread.
    pub fn begin(self) -> Raising {
        let Self { rules, earlier, outputs, left_out, .. } = self;
        Raising { board: Board::new(rules, earlier), outputs, told: 0, left_out, full: BTreeSet::new() }
    }
}

/// The alerts of a run.
pub struct Raising {
    board: Board,
    outputs: Vec<Open>,
    /// Outputs that have been told the events of now.
    told: usize,
    left_out: Arc<AtomicU64>,
    /// Rules that are known to have as many alerts as they may.
    full: BTreeSet<String>,
}

impl Raising {
    /// What the snapshots of a commit do to alerts; nothing is told yet.
    pub fn commit(&mut self, snapshots: &[Arc<Snapshot>]) -> Vec<Event> {
        let events = self.board.commit(snapshots);
        self.tell_left_out();
        events
    }

    /// Tells what raises no alert for lack of room, each rule's once until it has room again.
    fn tell_left_out(&mut self) {
        let left_out = self.board.left_out();
        for (rule, keys) in left_out.iter().filter(|(rule, _)| !self.full.contains(*rule)) {
            warn!(
                "rule `{rule}`: matches {keys} keys beyond its limit of {MAX_ACTIVE} active alerts; these \
                 raise none. Give it another threshold, or narrow it with `match`"
            );
        }
        self.left_out.store(left_out.values().sum(), SeqCst);
        self.full = left_out.keys().cloned().collect();
    }

    /// What the next run has to know once these events are told.
    pub fn standing(&mut self, events: &[Event]) -> Standing {
        self.board.standing(events)
    }

    /// Puts other rules in force, and gives what comes of it; nothing is told yet.
    pub fn edit(&mut self, rules: Vec<Rule>) -> Vec<Event> {
        let events = self.board.edit(rules);
        self.tell_left_out();
        events
    }

    /// Tells events. After an error, telling the same events again goes on with the output that failed.
    pub fn tell(&mut self, events: &[Event]) -> Result<(), AlertsError> {
        while let Some(output) = self.outputs.get_mut(self.told) {
            output.tell(events)?;
            self.told += 1;
        }
        self.told = 0;
        Ok(())
    }

    /// Nothing more is judged; what was told may be on its way.
    pub fn end(self) -> Outputs {
        Outputs(self.outputs)
    }
}

/// The outputs of a run whose last window is judged.
#[derive(Default)]
pub struct Outputs(Vec<Open>);

impl Outputs {
    /// Ends them: webhooks get a while to deliver what waits.
    pub fn finish(self) {
        for output in self.0 {
            if let Open::Webhook(webhook) = output {
                webhook.finish(PATIENCE);
            }
        }
    }
}

impl Open {
    fn tell(&mut self, events: &[Event]) -> Result<(), AlertsError> {
        match self {
            Self::Listener(listener) => {
                listener(events);
                Ok(())
            }
            Self::JsonLines { path, file } => {
                let mut lines = Vec::new();
                for event in events {
                    serde_json::to_writer(&mut lines, event).expect("an event can be written");
                    lines.push(b'\n');
                }
                append(file, &lines).map_err(|error| AlertsError { path: path.clone(), error })
            }
            Self::Webhook(webhook) => {
                events.iter().for_each(|event| webhook.send(event.clone()));
                Ok(())
            }
        }
    }
}

/// Appends lines, all or none: what an error has cut off is taken back, where the output is a file.
fn append(file: &mut File, lines: &[u8]) -> io::Result<()> {
    let found = file.metadata()?;
    file.write_all(lines).inspect_err(|_| {
        if found.is_file() {
            // Where this fails too, the next start takes back a line that was cut off.
            let _ = file.set_len(found.len());
        }
    })
}

/// Takes back the last line of a file, where a run was killed in the middle of it: it is told again.
fn end_line(path: &Path, file: &File) -> io::Result<()> {
    /// Bytes that no line has.
    const MOST: u64 = 1 << 20;
    // Of a pipe or a device the length is 0.
    let length = file.metadata()?.len();
    let from = length.saturating_sub(MOST);
    let mut tail = vec![0; (length - from) as usize];
    file.read_exact_at(&mut tail, from)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        warn!("{}: the last line was cut off, and is taken back", path.display());
        file.set_len(from + whole as u64)?;
    }
    Ok(())
}

/// Tells events that an output may not have: a webhook's receiver knows them by their ids.
fn tell_missing(outputs: &mut [Open], events: &[Event]) -> Result<(), AlertsError> {
    if events.is_empty() {
        return Ok(());
    }
    let named: HashMap<String, &Event> = events.iter().map(|event| (event.name(), event)).collect();
    for output in outputs {
        let mut there = HashSet::new();
        if let Open::JsonLines { path, file } = output
            && file.metadata().is_ok_and(|file| file.is_file())
        {
            let failed = |error| AlertsError { path: path.clone(), error };
            for line in BufReader::new(File::open(&*path).map_err(failed)?).lines() {
                let line = line.map_err(failed)?;
                let told = serde_json::from_str::<Event>(&line).ok();
                there.extend(
                    told.filter(|told| named.get(&told.name()) == Some(&told)).map(|told| told.name()),
                );
            }
        }
        let missing = events.iter().filter(|event| !there.contains(&event.name())).cloned();
        output.tell(&missing.collect::<Vec<_>>())?;
    }
    Ok(())
}
