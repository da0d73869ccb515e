//! Where finished snapshots go: one thread commits them, in the order of their epochs, and gives them to all writers.
//!
//! A writer *within the commit* ([`Writer`]: the first csv writer, and who tells of snapshots) has two steps. Where commits
//! are recorded, the record is made between them: what is prepared is durable and not to be seen. All others are
//! [`delivery::Destination`]s *behind the [`outbox`]*, which holds a commit's snapshots, as durably, until they have them. A
//! commit is confirmed when all that is within it is done and no required writer is too far behind; nothing upstream
//! waits for a disk or a server but through that. Which kinds there are is in the [`registry`], and nowhere else.

// A kind of writer that is in no list does not compile.
#![deny(dead_code)]

pub mod bounded;
mod causes;
pub mod clickhouse;
mod columns;
pub mod csv;
pub mod delivery;
pub mod earlier;
pub mod folder;
pub mod json;
pub mod nats;
pub mod outbox;
pub mod parquet;
mod pieces;
pub mod registry;
pub mod text;

use crossbeam_channel::{Sender, never, select, unbounded};
use dataflows::rows::{Missing, Snapshot, TaskRows};
use dataflows::window::Epoch;
use delivery::{Deliveries, Retry};
use outbox::Entry;
use serde_json::json;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::alerts::event::Event;
use crate::alerts::rule::Rule;
use crate::alerts::{Alerts, Outputs, Raising};
use crate::fail;
use crate::ledger::Ledger;
use crate::state::{Manifest, Prepared, State, StateError};

/// A writer failed; nothing half-written is left where a reader would look.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file system said no.
    #[error("cannot {action} {}: {error}{}", path.display(), causes::way_out(action, error, path))]
    Io {
        /// What was tried: "write", "create", ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// A server did not take it, or could not be asked.
    #[error("{server}: {why}")]
    Server {
        /// Which.
        server: String,
        /// Its word, and the way out where there is one.
        why: String,
        /// Whether it is a mistake of whoever wrote the configuration: trying again would not help.
        is_usage: bool,
    },
    /// What is in a folder has to stay.
    #[error("{}: {why}", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// What it holds, and the way out.
        why: String,
    },
    /// Another run writes there.
    #[error("{}: another run is writing to this folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
}

impl SinkError {
    /// Whether it is a mistake of whoever wrote the configuration.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Server { is_usage: true, .. } | Self::InUse { .. })
    }

    /// What the system said when this was tried on a file, folder or socket.
    pub fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::Io { action, path: path.clone(), error }
    }
}

/// What is written in one step.
pub struct Commit {
    /// The snapshots of an epoch.
    pub snapshots: Vec<Arc<Snapshot>>,
    /// Which; windows behind it are of packets dated ahead by mistake.
    pub epoch: Epoch,
    /// The record of it, where commits are recorded.
    pub manifest: Option<Manifest>,
    /// What to call once it is written.
    pub confirm: Box<dyn FnOnce() + Send>,
}

/// A writer within the commit.
pub trait Writer: Send {
    /// Prepares a snapshot, whole, for the commit of this number; nobody sees it yet. With a number, it is still there
    /// when the machine has gone down, and so is what says that it belongs to this commit.
    fn prepare(&mut self, snapshot: &Arc<Snapshot>, commit: Option<u64>) -> Result<(), SinkError>;

    /// The folders that are prepared, for the record.
    fn prepared(&self) -> Vec<Prepared> {
        Vec::new()
    }

    /// Puts all that was prepared in its place, each in place of an earlier revision of its window. After an error it can
    /// be called again: what is in its place stays there.
    fn publish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Ends a run that went well.
    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError>;
}

/// Why a run cannot go on; the first reason stays. And whether it was told to end, after which nobody is waited for long.
#[derive(Clone, Default)]
pub struct Failure {
    shared: Arc<FailureState>,
    ends: bool,
}

#[derive(Default)]
struct FailureState {
    why: OnceLock<String>,
    ending: AtomicBool,
    /// Wakes the workers: one that waits for input, or for a commit, would not see that the run has failed.
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Failure")
            .field("why", &self.get())
            .field("is_ending", &self.is_ending())
            .finish()
    }
}

impl Failure {
    /// Of a process of a cluster: it ends the process at once. One that only gave up its inputs would look to the others
    /// like one that has come to their end, and they would write what is not whole.
    pub fn ending() -> Self {
        Self { ends: true, ..Self::default() }
    }

    /// Fails the run, unless it has failed already.
    pub fn set(&self, why: String) {
        if self.ends {
            fail!("{why}");
            std::process::exit(1);
        }
        if self.shared.why.set(why).is_ok() {
            self.wake();
        }
    }

    /// Calls this when the run fails, at once if it has failed already. Only the first call counts.
    pub fn on_failure(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.wake.set(Box::new(wake));
        if self.get().is_some() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(wake) = self.shared.wake.get() {
            wake();
        }
    }

    /// The run was told to end.
    pub fn set_ending(&self) {
        self.shared.ending.store(true, SeqCst);
    }

    /// Whether it was.
    pub fn is_ending(&self) -> bool {
        self.shared.ending.load(SeqCst)
    }

    /// Why the run failed, if it did.
    pub fn get(&self) -> Option<&str> {
        self.shared.why.get().map(String::as_str)
    }
}

/// What is left to finish when all is written.
pub struct Ended {
    /// Those within the commit.
    pub writers: Vec<Box<dyn Writer>>,
    /// Those behind the outbox.
    pub deliveries: Deliveries,
    /// Where alerts go.
    pub alerts: Outputs,
}

impl Ended {
    /// Ends a run that went well.
    pub fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        self.writers.iter_mut().try_for_each(|writer| writer.finish(ledger))?;
        self.deliveries.finish(ledger)
    }
}

/// What the writing thread commits with.
pub struct Committing {
    /// Writers within the commit.
    pub writers: Vec<Box<dyn Writer>>,
    /// The record's name, and how it is tried again.
    pub record: (String, Retry),
    /// All others.
    pub deliveries: Deliveries,
    /// Where commits are recorded.
    pub state: Option<State>,
    /// What is recorded there of the last commit; `None` before the first.
    pub recorded: Option<Manifest>,
    /// Told when their commit is recorded.
    pub alerts: Option<Alerts>,
}

/// The writing thread.
pub struct Sinks {
    commits: Sender<Commit>,
    thread: JoinHandle<Ended>,
}

impl Sinks {
    /// Starts the thread. When a writer fails for good, `failure` is set and later commits are dropped: the run is over.
    pub fn start(committing: Committing, failure: Failure) -> io::Result<Self> {
        let (commits, received) = unbounded::<Commit>();
        let edits = committing.alerts.as_ref().map_or_else(never, |alerts| alerts.edits.clone());
        let Committing { writers, record, deliveries, state, recorded, alerts } = committing;
        let write = move || {
            let alerts = alerts.map(Alerts::begin);
            let last = recorded.as_ref().map_or(0, |manifest| manifest.number);
            let mut committer =
                Committer { writers, record, deliveries, state, recorded, alerts, last, failure };
            let mut edits = edits;
            loop {
                let done = select! {
                    recv(received) -> commit => {
                        let Ok(mut commit) = commit else { break };
                        let written = match committer.failure.get() {
                            None => committer.commit(&mut commit),
                            Some(_) => Ok(()),
                        };
                        // Whoever is told that it is written may ask whether it failed.
                        if let Err(why) = written {
                            committer.failure.set(why);
                        }
                        (commit.confirm)();
                        Ok(())
                    }
                    recv(edits) -> rules => match rules {
                        Ok(_) if committer.failure.get().is_some() => Ok(()),
                        Ok(rules) => committer.edit(rules),
                        // Nobody edits any more.
                        Err(_) => {
                            edits = never();
                            Ok(())
                        }
                    },
                };
                if let Err(why) = done {
                    committer.failure.set(why);
                }
            }
            committer.end()
        };
        let thread = std::thread::Builder::new().name("sinks".into()).spawn(write)?;
        Ok(Self { commits, thread })
    }

    /// Where commits are sent.
    pub fn sender(&self) -> Sender<Commit> {
        self.commits.clone()
    }

    /// Waits until everything sent is written and gives back what is still open. All other senders have to be gone.
    pub fn join(self) -> Ended {
        drop(self.commits);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

struct Committer {
    writers: Vec<Box<dyn Writer>>,
    record: (String, Retry),
    deliveries: Deliveries,
    state: Option<State>,
    recorded: Option<Manifest>,
    alerts: Option<Raising>,
    /// The number of the last commit or edit; an edit has a record of its own, so only this thread can number them.
    last: u64,
    failure: Failure,
}

impl Committer {
    fn commit(&mut self, commit: &mut Commit) -> Result<(), String> {
        self.last += 1;
        let number = commit.manifest.is_some().then_some(self.last);
        let (record, retry) = &self.record;
        for writer in &mut self.writers {
            for snapshot in &commit.snapshots {
                retry.attempt(record, &self.failure, || writer.prepare(snapshot, number))?;
            }
        }
        let alerts = &mut self.alerts;
        // Rules look at the latest window: one that is ahead by mistake is not that.
        let judged = commit.snapshots.iter().filter(|snapshot| snapshot.window <= commit.epoch);
        let judged: Vec<_> = judged.cloned().collect();
        let events = alerts.as_mut().map(|alerts| alerts.commit(&judged)).unwrap_or_default();
        let snapshots = commit.snapshots.drain(..).map(without_kept).collect();
        let entry = Entry { snapshots, events: events.clone() };
        retry.attempt(record, &self.failure, || self.deliveries.append(&entry, self.last))?;
        if let Some(mut manifest) = commit.manifest.take() {
            manifest.prepared = self.writers.iter().flat_map(|writer| writer.prepared()).collect();
            self.make_record(manifest, &events)?;
        }
        let (record, retry) = &self.record;
        let publish = || self.writers.iter_mut().try_for_each(|writer| writer.publish());
        retry.attempt(record, &self.failure, publish)?;
        self.deliveries.release();
        if let Some(alerts) = &mut self.alerts {
            retry.attempt(record, &self.failure, || alerts.tell(&events))?;
        }
        self.deliveries.wait_for_room();
        Ok(())
    }

    /// Puts other rules in force. That is recorded like a commit, before anybody is told what it does to alerts: a run
    /// that goes on after a kill would raise them a second time.
    fn edit(&mut self, rules: Vec<Rule>) -> Result<(), String> {
        let Some(alerts) = &mut self.alerts else { return Ok(()) };
        let events = alerts.edit(rules);
        // Before the first commit there is nothing to go on from.
        self.last += u64::from(self.recorded.is_some());
        let entry = Entry { snapshots: Vec::new(), events };
        let (record, retry) = &self.record;
        retry.attempt(record, &self.failure, || self.deliveries.append(&entry, self.last))?;
        if let Some(mut manifest) = self.recorded.take() {
            manifest.prepared.clear();
            self.make_record(manifest, &entry.events)?;
        }
        self.deliveries.release();
        let (record, retry) = &self.record;
        if let Some(alerts) = &mut self.alerts {
            retry.attempt(record, &self.failure, || alerts.tell(&entry.events))?;
        }
        Ok(())
    }

    /// Records a commit, or an edit after it, under the latest number.
    fn make_record(&mut self, mut manifest: Manifest, events: &[Event]) -> Result<(), String> {
        let Some(state) = &self.state else { return Ok(()) };
        let (record, retry) = &self.record;
        manifest.number = self.last;
        manifest.alerts = self.alerts.as_mut().map(|alerts| alerts.standing(events));
        let commit = || match state.commit(&manifest) {
            // Trying again would not help.
            Err(overtaken @ StateError::Overtaken { .. }) => Ok(Err(overtaken.to_string())),
            committed => committed.map(Ok),
        };
        retry.attempt(record, &self.failure, commit)??;
        manifest.gained = None;
        self.recorded = Some(manifest);
        Ok(())
    }

    fn end(self) -> Ended {
        let Self { writers, mut deliveries, alerts, failure, .. } = self;
        if let Err(why) = deliveries.end() {
            failure.set(why);
        }
        Ended { writers, deliveries, alerts: alerts.map(Raising::end).unwrap_or_default() }
    }
}

/// What writers behind the outbox are given: what a task keeps for a later run is for the record alone.
fn without_kept(mut snapshot: Arc<Snapshot>) -> Arc<Snapshot> {
    if snapshot.tasks.iter().any(|task| task.kept.is_some()) {
        Arc::make_mut(&mut snapshot).tasks.iter_mut().for_each(|task| task.kept = None);
    }
    snapshot
}

/// `summary.json`: what a snapshot holds, task by task; with `incomplete` where something is known to be missing in it.
pub fn summary(snapshot: &Snapshot) -> serde_json::Value {
    let task = |task: &TaskRows| {
        let totals =
            json!({"rows": task.len(), "packets": task.total("packets"), "bytes": task.total("bytes")});
        (task.name.to_string(), totals)
    };
    let mut summary = json!({
        "window_start": snapshot.span.map(|(start, _)| text::rfc3339(start)),
        "window_end": snapshot.span.map(|(_, end)| text::rfc3339(end)),
        "revision": snapshot.revision,
        "tasks": snapshot.tasks.iter().map(task).collect::<serde_json::Map<_, _>>(),
    });
    let Missing { interrupted, lost } = snapshot.missing;
    let mut incomplete = serde_json::Map::new();
    incomplete.extend(interrupted.then(|| ("interrupted".to_owned(), json!(true))));
    incomplete.extend((lost > 0).then(|| ("lost".to_owned(), json!(lost))));
    if !incomplete.is_empty() {
        summary["incomplete"] = json!(incomplete);
    }
    summary
}

/// The summary with the window's name before it.
pub fn named_summary(snapshot: &Snapshot) -> serde_json::Value {
    let mut named = json!({"window": text::window_name(snapshot.span)});
    if let (Some(named), serde_json::Value::Object(summary)) = (named.as_object_mut(), summary(snapshot)) {
        named.extend(summary);
    }
    named
}
