//! Where finished snapshots go: one thread hands each to every configured writer, in the order of their epochs.
//!
//! A commit is confirmed when all writers hold it; nothing upstream waits for a disk but through that. Where commits are
//! recorded, the record is made between the two steps of every writer: what is prepared is durable and not to be seen.

pub mod csv;
pub mod text;

use crossbeam_channel::{Sender, never, select, unbounded};
use dataflows::rows::Snapshot;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::alerts::{Alerts, Outputs, Raising};
use crate::ledger::Ledger;
use crate::say;
use crate::state::{Manifest, Prepared, State};

/// A writer failed; nothing half-written is left where a reader would look.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file system said no.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried: "write", "create", ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// Another run writes there.
    #[error("{}: another run is writing to this folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
}

/// What is written in one step.
pub struct Commit {
    /// The snapshots of an epoch.
    pub snapshots: Vec<Snapshot>,
    /// The record of it, where commits are recorded.
    pub manifest: Option<Manifest>,
    /// What to call once it is written.
    pub confirm: Box<dyn FnOnce() + Send>,
}

/// A writer of one kind.
pub trait Writer: Send {
    /// Prepares a snapshot, whole, for the commit of this number; nobody sees it yet. With a number, it is still there
    /// when the machine has gone down, and so is what says that it belongs to this commit.
    fn prepare(&mut self, snapshot: &Snapshot, commit: Option<u64>) -> Result<(), SinkError>;

    /// The folders that are prepared, for the record.
    fn prepared(&self) -> Vec<Prepared> {
        Vec::new()
    }

    /// Puts all that was prepared in its place, each in place of an earlier revision of its window.
    fn publish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// Ends a run that went well.
    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError>;
}

/// Why a run cannot go on; the first reason stays.
#[derive(Clone, Debug, Default)]
pub struct Failure {
    why: Arc<OnceLock<String>>,
    ends: Option<&'static str>,
}

impl Failure {
    /// Of a process of a cluster: it ends the process at once. One that only gave up its inputs would look to the others
    /// like one that has come to their end, and they would write what is not whole.
    pub fn ending(program: &'static str) -> Self {
        Self { ends: Some(program), ..Self::default() }
    }

    /// Fails the run, unless it has failed already.
    pub fn set(&self, why: String) {
        if let Some(program) = self.ends {
            say!("{program}: {why}");
            std::process::exit(1);
        }
        let _ = self.why.set(why);
    }

    /// Why the run failed, if it did.
    pub fn get(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }
}

/// What is left to finish when all is written.
pub type Ended = (Vec<Box<dyn Writer>>, Outputs);

/// The writing thread.
pub struct Sinks {
    commits: Sender<Commit>,
    thread: JoinHandle<Ended>,
}

impl Sinks {
    /// Starts the thread. When a writer fails, `failure` is set and later commits are dropped: the run is over. Commits are
    /// recorded in `state`, where there is one; `alerts` are told when their commit is recorded.
    pub fn start(
        mut writers: Vec<Box<dyn Writer>>,
        state: Option<State>,
        alerts: Option<Alerts>,
        failure: Failure,
    ) -> std::io::Result<Self> {
        let (commits, received) = unbounded::<Commit>();
        let mut edits = alerts.as_ref().map_or_else(never, |alerts| alerts.edits.clone());
        let write = move || {
            let mut alerts = alerts.map(Alerts::begin);
            loop {
                let done = select! {
                    recv(received) -> commit => {
                        let Ok(mut commit) = commit else { break };
                        let written = match failure.get() {
                            None => write(&mut writers, state.as_ref(), alerts.as_mut(), &mut commit),
                            Some(_) => Ok(()),
                        };
                        // Whoever is told that it is written may ask whether it failed.
                        if let Err(why) = written {
                            failure.set(why);
                        }
                        (commit.confirm)();
                        Ok(())
                    }
                    recv(edits) -> rules => match (alerts.as_mut(), rules) {
                        (Some(alerts), Ok(rules)) => alerts.edit(rules).map_err(|error| error.to_string()),
                        // Nobody edits any more.
                        _ => {
                            edits = never();
                            Ok(())
                        }
                    },
                };
                if let Err(why) = done {
                    failure.set(why);
                }
            }
            (writers, alerts.map(Raising::end).unwrap_or_default())
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

fn write(
    writers: &mut [Box<dyn Writer>],
    state: Option<&State>,
    mut alerts: Option<&mut Raising>,
    commit: &mut Commit,
) -> Result<(), String> {
    let number = commit.manifest.as_ref().map(|manifest| manifest.number);
    for writer in &mut *writers {
        let mut snapshots = commit.snapshots.iter();
        snapshots
            .try_for_each(|snapshot| writer.prepare(snapshot, number))
            .map_err(|error| error.to_string())?;
    }
    let events = alerts.as_mut().map(|alerts| alerts.commit(&commit.snapshots)).unwrap_or_default();
    if let Some((state, manifest)) = state.zip(commit.manifest.as_mut()) {
        manifest.alerts = alerts.as_mut().map(|alerts| alerts.standing(&events));
        manifest.prepared = writers.iter().flat_map(|writer| writer.prepared()).collect();
        state.commit(manifest).map_err(|error| error.to_string())?;
    }
    writers.iter_mut().try_for_each(|writer| writer.publish()).map_err(|error| error.to_string())?;
    alerts.map_or(Ok(()), |alerts| alerts.tell(&events)).map_err(|error| error.to_string())
}
