//! Writers behind the outbox: a thread each, that tries again until its writer has what it was given.

use super::outbox::{Batch, Entry, Kept, Outbox, Place, Schemas};
use super::{Failure, SinkError, Writer};
use crate::capture::live;
use crate::ledger::Ledger;
use crate::state::Prepared;
use crate::{debug, say, warn};
use dataflows::rows::Snapshot;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long writers that fail may keep a live run from ending.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer one may that does not come back from a try.
const LAST_PATIENCE: Duration = Duration::from_secs(20);
/// How long a run that has failed waits for writers to come back from a try.
const FAILED_PATIENCE: Duration = Duration::from_secs(3);
/// How long to sleep before looking whether something has ended.
const NAP: Duration = Duration::from_millis(50);
/// How often it is said that a writer still fails.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// A writer of one kind.
pub trait Destination: Send {
    /// Writes these entries, in their order; writing them again changes nothing.
    fn write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError>;

    /// Ends a run that went well.
    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        Ok(())
    }
}

/// How what failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How long to wait after the first failure; twice as long after each further one.
    pub first: Duration,
    /// How long to wait at most.
    pub most: Duration,
    /// How long after the first failure to give up; `None` for never.
    pub give_up: Option<Duration>,
}

impl Retry {
    /// Tries until it succeeds, is given up, or the run fails; for [`PATIENCE`] at most once the run is to end.
    pub fn attempt<T, E: Display>(
        &self,
        name: &str,
        failure: &Failure,
        mut attempt: impl FnMut() -> Result<T, E>,
    ) -> Result<T, String> {
        let mut trouble = Trouble::new(*self);
        loop {
            match attempt() {
                Ok(done) => {
                    trouble.recovered(name);
                    return Ok(done);
                }
                Err(error) => {
                    let again = trouble.again(name, &error).map(|wait| Instant::now() + wait);
                    let ends = || failure.is_ending() && trouble.is_older_than(PATIENCE);
                    while again.is_some_and(|again| Instant::now() < again)
                        && failure.get().is_none()
                        && !ends()
                    {
                        thread::sleep(NAP);
                    }
                    if again.is_none() || failure.get().is_some() || ends() {
                        return Err(error.to_string());
                    }
                }
            }
        }
    }
}

/// A writer that fails, and for how long.
struct Trouble {
    retry: Retry,
    since: Option<Instant>,
    said: Option<Instant>,
    wait: Duration,
}

impl Trouble {
    fn new(retry: Retry) -> Self {
        Self { retry, since: None, said: None, wait: retry.first }
    }

    /// After a failure: how long to wait before the next try, `None` if there is to be none.
    fn again(&mut self, name: &str, error: &impl Display) -> Option<Duration> {
        let since = *self.since.get_or_insert_with(Instant::now);
        debug!("writer `{name}` has failed for {:?}: {error}", since.elapsed());
        if self.retry.give_up.is_some_and(|give_up| since.elapsed() >= give_up) {
            return None;
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            warn!("writer `{name}`: {error}; trying again");
            self.said = Some(Instant::now());
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(self.retry.most);
        let left = self.retry.give_up.map_or(wait, |give_up| give_up.saturating_sub(since.elapsed()));
        Some(wait.min(left))
    }

    fn is_older_than(&self, age: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= age)
    }

    fn recovered(&mut self, name: &str) {
        if let Some(since) = self.since {
            say!("writer `{name}`: writes again after {:.1} s", since.elapsed().as_secs_f64());
            *self = Self::new(self.retry);
        }
    }
}

/// A writer that is to run behind the outbox.
pub struct Behind {
    /// Its name, and what it may be behind with.
    pub place: Place,
    /// What kind of writer it is.
    pub kind: &'static str,
    /// The tasks that it is given; all of them without.
    pub tasks: Option<BTreeSet<Arc<str>>>,
    /// How it is tried again.
    pub retry: Retry,
    /// Itself.
    pub destination: Box<dyn Destination>,
}

/// What is known of a writer while it runs.
#[derive(Debug, Default)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// What kind of writer it is.
    pub kind: &'static str,
    /// Whether the engine waits for it.
    pub required: bool,
    /// Windows that it has written, revisions too.
    pub windows: AtomicU64,
    /// Rows that it has written.
    pub rows: AtomicU64,
    /// Tries that failed.
    pub retries: AtomicU64,
    /// Windows that were left out for it.
    pub dropped: AtomicU64,
    /// When it has last written, nanoseconds since the Unix epoch; 0 for never.
    pub last_write: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Status {
    /// Why its last try failed, if it did.
    pub fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell_left_out(&self, windows: u64, why: &str) {
        warn!("writer `{}`: {windows} windows were left out for it: {why}", self.name);
    }

    fn set_error(&self, error: Option<String>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

/// What can be asked of writers from outside while they run.
#[derive(Clone, Default)]
pub struct Watch {
    outbox: Option<Arc<Outbox>>,
    statuses: Vec<Arc<Status>>,
}

impl Watch {
    /// Each writer with the windows and bytes that wait for it.
    pub fn writers(&self) -> impl Iterator<Item = (&Status, (usize, u64))> {
        let behind = |number| self.outbox.as_ref().map_or((0, 0), |outbox| outbox.behind(number));
        self.statuses.iter().enumerate().map(move |(number, status)| (&**status, behind(number)))
    }
}

/// All writers behind the outbox; none of them where there are none.
#[derive(Default)]
pub struct Deliveries {
    watch: Watch,
    threads: Vec<JoinHandle<Box<dyn Destination>>>,
    destinations: Vec<Box<dyn Destination>>,
    patience: Option<Duration>,
    failure: Failure,
    /// Of each writer, windows that were left out and not told of, and when that was told last.
    left_out: Vec<(u64, Option<Instant>)>,
}

impl Deliveries {
    /// Starts a thread for each. One that is required and gives up fails the run. One that fails when the run ends may
    /// keep it from that for as long as `patience` says; without, until it gives up.
    pub fn start(
        writers: Vec<Behind>,
        (kept, spill, schemas): (Option<Kept>, &Path, Schemas),
        patience: Option<Duration>,
        failure: Failure,
    ) -> Result<Self, SinkError> {
        if writers.is_empty() {
            if kept.as_ref().is_some_and(|kept| kept.folder.is_dir()) {
                // What earlier runs have left there is cleared away.
                Outbox::open(Vec::new(), kept, spill, schemas)?;
            }
            return Ok(Self { failure, ..Self::default() });
        }
        let places = writers.iter().map(|writer| writer.place.clone()).collect();
        let outbox = Arc::new(Outbox::open(places, kept, spill, schemas)?);
        let (mut statuses, mut threads) = (Vec::new(), Vec::new());
        for (number, writer) in writers.into_iter().enumerate() {
            let Behind { place, kind, tasks, retry, destination } = writer;
            let status = Arc::new(Status {
                name: place.name.clone(),
                kind,
                required: place.required,
                ..Status::default()
            });
            statuses.push(status.clone());
            let (outbox, failure) = (outbox.clone(), failure.clone());
            let trouble = Trouble::new(retry);
            let mut delivery =
                Delivery { number, outbox, status, tasks, trouble, patience, destination, failure };
            let name = format!("writer-{}", place.name);
            let deliver = move || {
                if let Err(why) = delivery.run() {
                    delivery.failure.set(why);
                }
                delivery.destination
            };
            let started = thread::Builder::new().name(name).spawn(deliver);
            threads.push(started.map_err(SinkError::io("start the thread of a writer into", spill))?);
        }
        let left_out = vec![(0, None); statuses.len()];
        let watch = Watch { outbox: Some(outbox), statuses };
        Ok(Self { watch, threads, destinations: Vec::new(), patience, failure, left_out })
    }

    /// What can be asked of them while they run.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Takes what a commit gives out, to be given to writers once it is recorded.
    pub fn append(&self, entry: &Entry, commit: u64) -> Result<(), SinkError> {
        // A commit may be of accounts alone.
        let is_empty = entry.snapshots.is_empty() && entry.events.is_empty();
        let outbox = self.watch.outbox.as_ref().filter(|_| !is_empty);
        outbox.map_or(Ok(()), |outbox| outbox.append(entry, commit))
    }

    /// Gives all that was taken to the writers.
    pub fn release(&self) {
        self.watch.outbox.iter().for_each(|outbox| outbox.release());
    }

    /// Waits until no required writer is further behind than it may be; not once the run has failed or is to end.
    pub fn wait_for_room(&mut self) {
        let Some(outbox) = self.watch.outbox.clone() else { return };
        let failure = self.failure.clone();
        let left_out = outbox.wait_for_room(|| failure.get().is_some() || failure.is_ending());
        for (writer, windows) in left_out {
            self.watch.statuses[writer].dropped.fetch_add(windows, SeqCst);
            self.left_out[writer].0 += windows;
        }
        self.tell_left_out(false);
    }

    /// Tells of windows that were left out, each writer's not too often unless it is the last time.
    fn tell_left_out(&mut self, is_last: bool) {
        for ((windows, said), status) in self.left_out.iter_mut().zip(&self.watch.statuses) {
            if *windows > 0 && (is_last || said.is_none_or(|said| said.elapsed() >= SAY_EVERY)) {
                status.tell_left_out(*windows, "it was too far behind");
                (*windows, *said) = (0, Some(Instant::now()));
            }
        }
    }

    /// Waits until all have what there is, or do not get it in time: then the reason why.
    pub fn end(&mut self) -> Result<(), String> {
        self.tell_left_out(true);
        let Some(outbox) = &self.watch.outbox else { return Ok(()) };
        outbox.close();
        let closed = Instant::now();
        for (thread, status) in self.threads.drain(..).zip(&self.watch.statuses) {
            // One may be in the middle of a try that does not come back.
            let most = self.patience.map(|patience| match status.required {
                true => patience + LAST_PATIENCE,
                false => patience * 2,
            });
            let mut failed: Option<Instant> = None;
            while !thread.is_finished() && most.is_none_or(|most| closed.elapsed() < most) {
                if self.failure.get().is_some() {
                    outbox.end();
                    if failed.get_or_insert_with(Instant::now).elapsed() >= FAILED_PATIENCE {
                        break;
                    }
                }
                thread::sleep(NAP);
            }
            if !thread.is_finished() {
                warn!("writer `{}`: did not stop in time and was abandoned", status.name);
                continue;
            }
            let destination = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.destinations.push(destination);
        }
        let left = self.watch.writers().filter(|(status, (windows, _))| status.required && *windows > 0);
        let left: Vec<_> = left
            .map(|(status, (windows, _))| {
                let why = status.error().unwrap_or_else(|| "it was stopped".into());
                format!("writer `{}` does not have {windows} windows: {why}", status.name)
            })
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        let what = if outbox.is_kept() { "; they are kept for the next run" } else { "" };
        Err(format!("{}{what}", left.join("; ")))
    }

    /// Ends a run that went well.
    pub fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        self.destinations.iter_mut().try_for_each(|destination| destination.finish(ledger))
    }
}

/// A snapshot with no other tasks than these.
fn select(snapshot: &Snapshot, selected: &BTreeSet<Arc<str>>) -> Arc<Snapshot> {
    let Snapshot { window, span, revision, tasks, missing } = snapshot;
    let tasks = tasks.iter().filter(|task| selected.contains(&task.name)).cloned().collect();
    Arc::new(Snapshot { window: *window, span: *span, revision: *revision, tasks, missing: *missing })
}

/// A writer within the commit that is given some of the tasks.
pub struct Selecting {
    /// Their names.
    pub tasks: BTreeSet<Arc<str>>,
    /// The writer.
    pub writer: Box<dyn Writer>,
}

impl Writer for Selecting {
    fn prepare(&mut self, snapshot: &Arc<Snapshot>, commit: Option<u64>) -> Result<(), SinkError> {
        self.writer.prepare(&select(snapshot, &self.tasks), commit)
    }

    fn prepared(&self) -> Vec<Prepared> {
        self.writer.prepared()
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        self.writer.publish()
    }

    fn finish(&mut self, ledger: &Ledger) -> Result<(), SinkError> {
        self.writer.finish(ledger)
    }
}

/// One writer and its thread's work.
struct Delivery {
    number: usize,
    outbox: Arc<Outbox>,
    status: Arc<Status>,
    tasks: Option<BTreeSet<Arc<str>>>,
    /// Stays from batch to batch: one that has given up on one is not waited for again with the next.
    trouble: Trouble,
    patience: Option<Duration>,
    destination: Box<dyn Destination>,
    failure: Failure,
}

impl Delivery {
    /// Gives the writer all that there is, until there is nothing any more.
    fn run(&mut self) -> Result<(), String> {
        let mut is_forsaken = false;
        while let Some(batch) = self.outbox.take(self.number).map_err(|error| error.to_string())? {
            if is_forsaken {
                self.drop_windows(batch.windows as u64, "the run has ended");
            } else {
                match self.write(&batch)? {
                    Wrote::All => {}
                    // Nobody waits for another try with each of the last ones.
                    Wrote::Without => is_forsaken = self.outbox.is_closed(),
                    Wrote::Left => return Ok(()),
                }
            }
            self.outbox.done(self.number);
        }
        Ok(())
    }

    fn drop_windows(&self, windows: u64, why: &str) {
        if windows > 0 {
            self.status.dropped.fetch_add(windows, SeqCst);
            self.status.tell_left_out(windows, why);
        }
    }

    /// An entry with no other tasks than the writer's.
    fn selected(&self, entry: &Arc<Entry>) -> Arc<Entry> {
        let Some(tasks) = &self.tasks else { return entry.clone() };
        let snapshots = entry.snapshots.iter().map(|snapshot| select(snapshot, tasks)).collect();
        Arc::new(Entry { snapshots, events: entry.events.clone() })
    }

    fn write(&mut self, batch: &Batch) -> Result<Wrote, String> {
        let entries: Vec<_> = batch.entries.iter().map(|entry| self.selected(entry)).collect();
        loop {
            let error = match self.destination.write(&entries) {
                Ok(()) => break,
                Err(error) => error,
            };
            self.status.retries.fetch_add(1, SeqCst);
            self.status.set_error(Some(error.to_string()));
            let again = self.trouble.again(&self.status.name, &error);
            let ended = again.and_then(|wait| self.outbox.pause(wait));
            let is_over = ended.zip(self.patience).is_some_and(|(ended, patience)| ended >= patience);
            if self.failure.get().is_some() {
                return Ok(Wrote::Left);
            }
            if again.is_some() && !is_over {
                continue;
            }
            if !self.status.required {
                self.drop_windows(batch.windows as u64, &error.to_string());
                return Ok(Wrote::Without);
            }
            if is_over {
                // Whoever ends the run says so.
                return Ok(Wrote::Left);
            }
            return Err(format!("writer `{}`: {error}; giving up", self.status.name));
        }
        self.trouble.recovered(&self.status.name);
        self.status.set_error(None);
        let rows = entries.iter().flat_map(|entry| &entry.snapshots).flat_map(|snapshot| &snapshot.tasks);
        self.status.rows.fetch_add(rows.map(|task| task.len() as u64).sum(), SeqCst);
        self.status.windows.fetch_add(batch.windows as u64, SeqCst);
        self.status.last_write.store(live::now(), SeqCst);
        Ok(Wrote::All)
    }
}

/// What became of a batch.
enum Wrote {
    All,
    /// The writer goes on without it.
    Without,
    /// It stays where it is.
    Left,
}
