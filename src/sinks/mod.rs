//! Where finished snapshots go: one thread hands each to every configured writer, in the order of their epochs.
//!
//! A snapshot is confirmed when all writers hold it; nothing upstream waits for a disk but through that.

pub mod csv;
pub mod text;

use crossbeam_channel::{Sender, unbounded};
use dataflows::rows::Snapshot;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::ledger::Ledger;

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

/// A writer of one kind.
pub trait Writer: Send {
    /// Writes a snapshot, whole, in place of an earlier revision of its window.
    fn write(&mut self, snapshot: &Snapshot) -> Result<(), SinkError>;

    /// Ends a run that went well.
    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError>;
}

/// Why a run cannot go on; the first reason stays.
#[derive(Clone, Debug, Default)]
pub struct Failure(Arc<OnceLock<String>>);

impl Failure {
    /// Fails the run, unless it has failed already.
    pub fn set(&self, why: String) {
        let _ = self.0.set(why);
    }

    /// Why the run failed, if it did.
    pub fn get(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

type Job = (Snapshot, Box<dyn FnOnce() + Send>);

/// The writing thread.
pub struct Sinks {
    jobs: Sender<Job>,
    thread: JoinHandle<Vec<Box<dyn Writer>>>,
}

impl Sinks {
    /// Starts the thread. When a writer fails, `failure` is set and later snapshots are dropped: the run is over.
    pub fn start(mut writers: Vec<Box<dyn Writer>>, failure: Failure) -> std::io::Result<Self> {
        let (jobs, received) = unbounded::<Job>();
        let write = move || {
            for (snapshot, confirm) in received {
                for writer in &mut writers {
                    if failure.get().is_some() {
                        break;
                    }
                    if let Err(error) = writer.write(&snapshot) {
                        failure.set(error.to_string());
                    }
                }
                confirm();
            }
            writers
        };
        let thread = std::thread::Builder::new().name("sinks".into()).spawn(write)?;
        Ok(Self { jobs, thread })
    }

    /// Where snapshots are sent, each with what to call once it is written.
    pub fn sender(&self) -> Sender<Job> {
        self.jobs.clone()
    }

    /// Waits until everything sent is written and gives the writers back. All other senders have to be gone.
    pub fn join(self) -> Vec<Box<dyn Writer>> {
        drop(self.jobs);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
