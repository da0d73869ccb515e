//! Puts the stages together on timely workers: sources decode what they are dealt, the tasks' dataflows aggregate it,
//! and each closed epoch becomes snapshots that the sinks confirm.
//!
//! Two things bound what is in flight. Workers take a new piece only when they have passed on the last, and no worker
//! runs more than `MOST_UNWRITTEN` closed epochs ahead of what is written: the committing worker keeps an epoch's
//! capability until its snapshots are, and that frontier flows back to the sources. It also tells them what is done with.

use crate::account::{Account, Accounts, Noticed};
use crate::archive::SpillingArchive;
use crate::capture::live;
use crate::cluster::Formed;
use crate::debug;
use crate::histogram::Histogram;
use crate::intake::retired::RetiredRuns;
use crate::intake::{Intake, Notice, Placer, Reader, Taken};
use crate::ledger::{Counts, InputReport, Ledger, Unbalanced};
use crate::sinks::{Commit, Failure};
use crate::state::Manifest;
use crossbeam_channel::{Sender, unbounded};
use dataflows::aggregator::{Task, build_tasks};
use dataflows::block::{Block, BlockBuilder, to_named_worker};
use dataflows::epochs::Epochs;
use dataflows::field::Extension;
use dataflows::groups::{Archive, Closed, GroupSet, Observations, Recall};
use dataflows::rows::{Missing, Schema, Snapshot, TaskRows};
use dataflows::turns::{Lately, touches};
use dataflows::window::{Epoch, Watermark, Windowing};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use timely::WorkerConfig;
use timely::communication::Hooks;
use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
use timely::container::NoopBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{OutputBuilder, operator::Operator};
use timely::dataflow::operators::{Capability, ConnectLoop, Feedback};
use timely::dataflow::{Scope, Stream};
use timely::worker::Worker;
use timely::{CommunicationConfig, Config};

/// Closed epochs whose snapshots may wait to be written while sources go on.
const MOST_UNWRITTEN: usize = 4;

/// What to run.
pub struct Job {
    /// Where packets come from.
    pub intake: Arc<dyn Intake>,
    /// What to compute, in the order of the snapshots' tasks.
    pub tasks: Vec<Task>,
    /// The extra fields that are read of each frame.
    pub extension: Extension,
    /// How event time is cut.
    pub windowing: Windowing,
    /// Nanoseconds that a window stays open behind the watermark.
    pub lateness: u64,
    /// Worker threads of this process, at least 1.
    pub workers: usize,
    /// Where closed windows are kept when memory is short.
    pub spill: PathBuf,
    /// How long inputs may rightly hold windows open while nothing comes.
    pub grace: Duration,
    /// What earlier runs have written.
    pub earlier: Earlier,
    /// Set to have all processes of the cluster end their inputs; then the intake has to be woken.
    pub stopping: AtomicBool,
}

impl Job {
    /// The columns of each task.
    pub fn schemas(&self) -> Vec<(Arc<str>, Arc<Schema>)> {
        schemas(&self.tasks)
    }
}

/// The columns of each task.
pub fn schemas(tasks: &[Task]) -> Vec<(Arc<str>, Arc<Schema>)> {
    tasks.iter().map(|task| (task.name.clone(), task.aggregator.schema())).collect()
}

/// What earlier runs have written, of which this one is to go on.
#[derive(Clone, Default)]
pub struct Earlier {
    /// The first window that none of them has closed.
    pub first: Epoch,
    /// What was committed last, where every commit is recorded; on the process that commits.
    pub manifest: Option<Manifest>,
    /// Records of the retired runs of probes.
    pub retired: Arc<[u8]>,
    /// Reads it back; on the process that commits.
    pub recall: Option<Arc<dyn Written>>,
}

impl Earlier {
    /// Windows that were written ahead of their epochs.
    fn ahead(&self) -> Option<&BTreeSet<Epoch>> {
        self.manifest.as_ref().map(|manifest| &manifest.ahead)
    }

    /// Whether one of them may have written this window.
    fn may_hold(&self, window: Epoch) -> bool {
        window < self.first || self.ahead().is_some_and(|ahead| ahead.contains(&window))
    }
}

/// Snapshots that can be read back.
pub trait Written: Send + Sync {
    /// The exact groups of a task in a window: each a key and the words of all its measures, 0 where a measure is no column.
    fn groups(&self, task: &Task, window: Epoch) -> Result<Vec<Group>, String>;

    /// What a task kept of a window beside its rows; `None` where there is nothing.
    fn kept(&self, task: &Task, window: Epoch) -> Result<Option<Vec<u64>>, String>;

    /// Revision of a window, and the packets that its first exact task holds; `None` where there is none.
    fn summary(&self, window: Epoch) -> Result<Option<(u32, Option<u64>)>, String>;
}

/// A key with the words of its measures.
pub type Group = (dataflows::key::Key, Vec<u64>);

/// What is known of a run while it goes on and when it is over.
#[derive(Debug, Default)]
pub struct Progress {
    books: Mutex<Books>,
    read: AtomicU64,
    watermark: AtomicU64,
    unwritten: AtomicU64,
    commits: AtomicU64,
    last_commit: AtomicU64,
    close: Histogram,
    stall: Mutex<Option<Stall>>,
    losing: Mutex<Vec<String>>,
    /// Why the run failed, if it did.
    pub failure: Failure,
}

/// A run that has work and does not get on with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// For how long.
    pub time: Duration,
    /// What waits.
    pub why: String,
}

/// The books of what is committed.
#[derive(Debug, Default)]
struct Books {
    accounts: Accounts,
    windows: u64,
    /// Packets in the latest revisions of all windows, where a task counts every packet once.
    held: Option<u64>,
}

impl Progress {
    /// Nothing is known yet; a failure is dealt with so.
    pub fn new(failure: Failure) -> Self {
        Self { failure, ..Self::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames that this process has decoded.
    pub fn read(&self) -> u64 {
        self.read.load(SeqCst)
    }

    /// The latest watermark that a worker of this process has seen, nanoseconds since the Unix epoch; 0 before the first.
    pub fn watermark(&self) -> u64 {
        self.watermark.load(SeqCst)
    }

    /// Closed epochs that wait to be written.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(SeqCst)
    }

    /// Commits of this run, and when the last was made, nanoseconds since the Unix epoch; 0 before the first.
    pub fn commits(&self) -> (u64, u64) {
        (self.commits.load(SeqCst), self.last_commit.load(SeqCst))
    }

    /// Whether the run has work and does not get on with it.
    pub fn stall(&self) -> Option<Stall> {
        self.stall.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that it does, or that it gets on again.
    pub fn set_stall(&self, stall: Option<Stall>) {
        *self.stall.lock().unwrap_or_else(PoisonError::into_inner) = stall;
    }

    /// What inputs have lost of late, for people.
    pub fn losing(&self) -> Vec<String> {
        self.losing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes it.
    pub fn set_losing(&self, losing: Vec<String>) {
        *self.losing.lock().unwrap_or_else(PoisonError::into_inner) = losing;
    }

    /// How long windows took from when all workers had left them until they were written.
    pub fn close(&self) -> &Histogram {
        &self.close
    }

    /// The inputs in whose frames something was noticed: name, accounts, and what it was.
    pub fn noticed(&self) -> Vec<(String, Counts, Noticed)> {
        self.books().accounts.noticed()
    }

    /// Windows written, each once however often it was revised.
    pub fn windows(&self) -> u64 {
        self.books().windows
    }

    /// What was found in each input and what became of it.
    pub fn inputs(&self) -> Vec<(InputReport, Counts)> {
        self.books().accounts.inputs()
    }

    /// The same while the run goes on: of what is not committed, what the intake knows.
    pub fn inputs_so_far(&self, intake: &dyn Intake) -> Vec<(InputReport, Counts)> {
        let mut accounts = self.books().accounts.clone();
        if !accounts.has_found() {
            accounts.add(Account { found: intake.found(), ..Account::default() });
        }
        accounts.inputs()
    }

    /// Whether a signal has ended an input before its end, in any process.
    pub fn is_interrupted(&self) -> bool {
        self.books().accounts.is_interrupted()
    }

    /// The books of the run, which have to balance.
    pub fn ledger(&self, interrupted: bool) -> Result<Ledger, Unbalanced> {
        let ledger = Ledger::new(&self.inputs(), self.windows(), interrupted);
        ledger.balance(self.books().held)?;
        Ok(ledger)
    }
}

/// Where everything is one window and nothing was counted: that is an answer too.
pub fn answer_nothing(job: &Job, progress: &Progress, commits: &Sender<Commit>) {
    let mut books = progress.books();
    if job.windowing == Windowing::All && books.windows == 0 && progress.failure.get().is_none() {
        (books.windows, books.held) = (1, Some(0));
        let mut nothing = snapshot(job, 0, 0, Vec::new());
        nothing.missing = books.accounts.missing(0, job.windowing);
        let snapshots = vec![Arc::new(nothing)];
        // The thread is gone only when it has failed.
        let _ = commits.send(Commit { snapshots, epoch: 0, manifest: None, confirm: Box::new(|| {}) });
    }
}

/// Runs a job to its end, with the other processes of the cluster if there are any: every snapshot is written, or
/// `progress.failure` says why not. `commits` leads to the sinks; process 0 alone has any.
pub fn run(
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    commits: Option<Sender<Commit>>,
    connected: Option<Formed>,
) -> Result<(), String> {
    let (job, shared) = (job.clone(), progress.clone());
    if let Some(manifest) = &job.earlier.manifest {
        let Manifest { accounts, windows, held, .. } = manifest.clone();
        *progress.books() = Books { accounts, windows, held };
    }
    let intake = job.intake.clone();
    progress.failure.on_failure(move || intake.wake());
    // Those of this process that have not come to the end of the input.
    let left = Arc::new(AtomicUsize::new(job.workers));
    let workers = job.workers;
    let build = move |worker: &mut Worker| {
        build(worker, &job, &shared, &left, commits.clone());
        while worker.has_dataflows() {
            worker.step_or_park(None);
        }
    };
    let workers = match connected {
        None => {
            let communication = match workers {
                0 | 1 => CommunicationConfig::Thread,
                more => CommunicationConfig::Process(more),
            };
            timely::execute(Config { communication, worker: WorkerConfig::default() }, build)?
        }
        Some(Formed { process, sockets, .. }) => {
            let hooks = Hooks::default();
            let threads =
                ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
            let (builders, guard) =
                initialize_networking_from_sockets(threads, sockets, process, workers, hooks)
                    .map_err(|error| format!("cannot use the connections of the cluster: {error}"))?;
            let builders = builders.into_iter().map(AllocatorBuilder::Tcp).collect();
            timely::execute::execute_from(builders, Box::new(guard), WorkerConfig::default(), build)?
        }
    };
    workers.join().into_iter().collect()
}

/// Builds the dataflow on one worker.
fn build(
    worker: &mut Worker,
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    left: &Arc<AtomicUsize>,
    commits: Option<Sender<Commit>>,
) {
    worker.dataflow::<Epoch, _, _>(|scope| {
        let (written, feedback) = scope.feedback::<Block>(0);
        let Read { observations, touched, accounts } = read(scope, feedback, job, progress, left.clone());
        let failure = progress.failure.clone();
        let failed: Arc<dyn Fn(String) + Send + Sync> = Arc::new(move |why| failure.set(why));
        let archive = {
            let (windowing, spill, failed) = (job.windowing, job.spill.clone(), failed.clone());
            move || match windowing {
                Windowing::All => None,
                Windowing::Every(_) => {
                    Some(Box::new(SpillingArchive::new(&spill, failed.clone())) as Box<dyn Archive>)
                }
            }
        };
        let is_committer = scope.index() == 0;
        let recall = job.earlier.recall.as_ref().filter(|_| is_committer).map(|written| {
            let (written, failed, job) = (written.clone(), failed.clone(), job.clone());
            Rc::new(ReadBack { written, failed, job }) as Rc<dyn Recall>
        });
        let closed = Closed { archive: Rc::new(archive), recall, keeps: job.earlier.manifest.is_some() };
        let rows = build_tasks(scope, observations, touched, (&job.tasks, job.windowing), closed);
        commit(rows, accounts, job, progress, commits).connect_loop(written);
    });
}

/// Windows of earlier runs, read back.
struct ReadBack {
    written: Arc<dyn Written>,
    failed: Arc<dyn Fn(String) + Send + Sync>,
    job: Arc<Job>,
}

impl ReadBack {
    /// What was read; where it cannot be, the run has failed.
    fn or_fail<T: Default>(&self, read: Result<T, String>) -> T {
        read.unwrap_or_else(|why| {
            (self.failed)(why);
            T::default()
        })
    }
}

impl Recall for ReadBack {
    fn recall(&self, set: &GroupSet, window: Epoch) -> Vec<Group> {
        let mut tasks = self.job.tasks.iter().filter(|task| {
            let aggregator = &task.aggregator;
            aggregator.shows_groups() && aggregator.group_sets().contains(set)
        });
        let groups = match tasks.next() {
            Some(task) => self.written.groups(task, window),
            None => Err("no task holds all groups that a late packet belongs to".into()),
        };
        let mut groups = self.or_fail(groups);
        // Other tasks may have the same groups and show other measures of them.
        for task in tasks {
            let more = self.or_fail(self.written.groups(task, window));
            let mut more: HashMap<_, _> = more.into_iter().collect();
            for (key, words) in &mut groups {
                let more = more.remove(key).unwrap_or_default();
                words.iter_mut().zip(more).for_each(|(word, more)| *word |= more);
            }
        }
        groups
    }

    fn holds(&self, window: Epoch) -> bool {
        self.or_fail(self.written.summary(window)).is_some()
    }

    fn kept(&self, task: usize, window: Epoch) -> Option<Vec<u64>> {
        let task = &self.job.tasks[task];
        let kept = self.or_fail(self.written.kept(task, window));
        if kept.is_none() && self.holds(window) {
            (self.failed)(format!(
                "what task `{}` kept of a window is gone; it cannot be revised",
                task.name
            ));
        }
        kept
    }

    fn first_new(&self) -> Epoch {
        self.job.earlier.first
    }

    fn ahead(&self) -> BTreeSet<Epoch> {
        self.job.earlier.ahead().cloned().unwrap_or_default()
    }

    fn may_hold(&self, window: Epoch) -> bool {
        self.job.earlier.may_hold(window)
    }
}

/// What the sources of a worker give out.
struct Read<'s> {
    observations: Stream<'s, Epoch, Observations>,
    /// The windows that packets are for, told to the worker that decides what is shown.
    touched: Stream<'s, Epoch, Block>,
    /// For the committing worker.
    accounts: Stream<'s, Epoch, Block>,
}

/// What a worker has to tell the committing one: its accounts, each at the epoch that it is for.
fn accounts(reader: &mut dyn Reader, placer: &mut Placer, before: Option<Epoch>) -> BTreeMap<Epoch, Account> {
    let mut accounts: BTreeMap<Epoch, Account> = BTreeMap::new();
    for position in reader.leave(before.is_none()) {
        accounts.entry(position.from).or_default().positions.push(position);
    }
    let kept = before.map_or_else(BTreeMap::new, |before| placer.counts.split_off(&(before, 0)));
    for ((epoch, input), counts) in std::mem::replace(&mut placer.counts, kept) {
        accounts.entry(epoch).or_default().counts.push((reader.key(input), counts));
    }
    let retired = reader.retired();
    if let Some(before) = before.filter(|_| !retired.is_empty()) {
        // After what was decoded of them.
        accounts.entry(before.saturating_sub(1)).or_default().retired = retired;
    }
    if !placer.lost.is_empty() {
        // Told before this worker leaves an epoch, so that it is known when the windows are written.
        accounts.entry(0).or_default().lost = std::mem::take(&mut placer.lost).into_iter().collect();
    }
    let texts = placer.new_texts();
    if !texts.is_empty() {
        accounts.entry(0).or_default().texts = texts.iter().map(|text| text.to_string()).collect();
    }
    if before.is_none()
        && let Some(cut) = reader.cut()
    {
        let cut = Watermark::new(placer.windowing(), placer.lateness(), cut, u64::MAX).first_open();
        accounts.entry(0).or_default().cut = Some(cut);
    }
    if before.is_none() && !placer.noticed.is_empty() {
        let noticed = std::mem::take(&mut placer.noticed).into_iter();
        let noticed = noticed.map(|(input, noticed)| (reader.key(input), noticed)).collect();
        accounts.entry(0).or_default().noticed = noticed;
    }
    accounts
}

/// The source: decodes the pieces that this worker takes, and tells which windows they are for.
///
/// The frontier of `written` is the first epoch that is not written; its blocks are notices.
fn read<'s>(
    scope: Scope<'s, Epoch>,
    written: Stream<'s, Epoch, Block>,
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    left: Arc<AtomicUsize>,
) -> Read<'s> {
    let (job, progress, worker) = (job.clone(), progress.clone(), scope.index());
    let mut builder = OperatorBuilder::new("Read".into(), scope);
    let info = builder.operator_info();
    let (output, observations) = builder.new_output::<Observations>();
    let (touched_output, touched) = builder.new_output::<Block>();
    let (account_output, accounts_out) = builder.new_output::<Block>();
    let mut output = OutputBuilder::<_, NoopBuilder<Observations>>::from(output);
    let mut touched_output = OutputBuilder::<_, BlockBuilder>::from(touched_output);
    let mut account_output = OutputBuilder::<_, BlockBuilder>::from(account_output);
    // No path from this input to the outputs: it tells of progress and holds nothing back.
    let mut written = builder.new_input_connection(written, to_named_worker(), []);
    job.intake.register(scope.worker().sync_activator_for(info.address.to_vec()));
    let activator = scope.activator_for(info.address.clone());
    builder.build(move |mut capabilities| {
        let account_capability = capabilities.pop();
        let touched_capability = capabilities.pop();
        let mut held = capabilities.pop().zip(touched_capability).zip(account_capability);
        if let Some(((capability, touched_capability), account_capability)) = &mut held {
            // Nothing is told of epochs that are written.
            for capability in [capability, touched_capability, account_capability] {
                capability.downgrade(&job.earlier.first);
            }
        }
        // Once the input has ended: to tell of a stop that is asked for here.
        let mut ended: Option<Capability<Epoch>> = None;
        let mut reader = job.intake.clone().reader(worker);
        let mut placer =
            Placer::new(job.windowing, job.lateness, job.earlier.first).with_extension(job.extension.clone());
        let mut announced: BTreeSet<(Epoch, Epoch)> = BTreeSet::new();
        let mut unwritten: BTreeSet<Epoch> = BTreeSet::new();
        let mut first_unwritten = Some(0);
        move |frontiers| {
            written.for_each(|_, block| match serde_json::from_slice(block.message_bytes()) {
                Ok(Notice::Stop) => {
                    progress.failure.set_ending();
                    job.intake.stop();
                }
                Ok(notice) => reader.heed(notice),
                Err(error) => progress.failure.set(format!("a notice: {error}")),
            });
            let frontier = frontiers[0].frontier().first().copied();
            // After a failure what counts as written may not be.
            if frontier != first_unwritten && progress.failure.get().is_none() {
                first_unwritten = frontier;
                reader.written(frontier);
            }
            let (mut output, mut touched_output) = (output.activate(), touched_output.activate());
            let mut account_output = account_output.activate();
            let mut tell = |account: &Account, at: Epoch, capability: &Capability<Epoch>| {
                let bytes = serde_json::to_vec(account).expect("an account can be written");
                let at = capability.delayed(&at.max(*capability.time()));
                account_output.session_with_builder(&at).give_container(&mut Block::message(0, &bytes));
            };
            let teller = held.as_ref().map(|(_, capability)| capability).or(ended.as_ref());
            if let Some(capability) = teller {
                let mut notices = reader.notices();
                notices.extend(job.stopping.swap(false, SeqCst).then_some(Notice::Stop));
                if !notices.is_empty() {
                    tell(&Account { notices, ..Account::default() }, 0, capability);
                }
            }
            if frontier.is_none_or(|frontier| frontier == Epoch::MAX) {
                ended = None;
            }
            let Some(((capability, touched_capability), account_capability)) = &mut held else { return };
            unwritten = unwritten.split_off(&first_unwritten.unwrap_or(Epoch::MAX));
            let failed = progress.failure.get().is_some();
            if !failed && unwritten.range(..*capability.time()).count() > MOST_UNWRITTEN {
                // The frontier of what is written wakes this operator, and so does a failure.
                return;
            }
            let taken = match failed {
                true => None,
                false => reader.take().map_err(|why| progress.failure.set(why)).ok(),
            };
            let Some((taken @ (Taken::Piece | Taken::Wait), position)) = taken else {
                for (epoch, account) in accounts(&mut *reader, &mut placer, None) {
                    tell(&account, epoch, account_capability);
                }
                if left.fetch_sub(1, SeqCst) == 1 {
                    // Nobody in this process takes any more: what was found is known.
                    let found = Account { found: job.intake.found(), ..Account::default() };
                    tell(&found, 0, account_capability);
                }
                if progress.failure.get().is_none() {
                    let mut last = account_capability.clone();
                    last.downgrade(&Epoch::MAX);
                    ended = Some(last);
                }
                held = None;
                return;
            };
            let first_open = placer.seek(position);
            let watermark = position.latest.min(position.others).max(position.floor);
            progress.watermark.fetch_max(watermark, Relaxed);
            // First of all: whoever waits, waits for no epoch that this worker has left.
            if first_open > *capability.time() {
                for (epoch, account) in accounts(&mut *reader, &mut placer, Some(first_open)) {
                    tell(&account, epoch, account_capability);
                }
                capability.downgrade(&first_open);
                touched_capability.downgrade(&first_open);
                announced = announced.split_off(&(first_open, 0));
                account_capability.downgrade(&first_open);
            }
            if taken == Taken::Wait {
                return;
            }
            if let Err(why) = reader.decode(&mut placer) {
                progress.failure.set(why);
            }
            let mut decoded = 0;
            for (epoch, mut batch) in placer.batches.drain(..) {
                decoded += batch.count();
                unwritten.insert(epoch);
                output.session_with_builder(&capability.delayed(&epoch)).give_container(&mut batch);
            }
            progress.read.fetch_add(decoded, SeqCst);
            for (epoch, window) in std::mem::take(&mut placer.touched) {
                if announced.insert((epoch, window)) {
                    let at = touched_capability.delayed(&epoch);
                    touched_output.session_with_builder(&at).give_container(&mut touches(window));
                }
            }
            activator.activate();
        }
    });
    Read { observations, touched, accounts: accounts_out }
}

/// Gathers each epoch's rows and accounts on one worker, makes snapshots of them and holds the epoch until they are
/// written. Gives out notices.
fn commit<'s>(
    rows: Stream<'s, Epoch, Block>,
    accounts: Stream<'s, Epoch, Block>,
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    commits: Option<Sender<Commit>>,
) -> Stream<'s, Epoch, Block> {
    let (scope, peers) = (rows.scope(), rows.scope().peers());
    let mut committer = Committer::new(job, progress, peers);
    if scope.index() == 0 {
        committer.read_retired();
    }
    rows.binary_frontier::<_, BlockBuilder, _, _, _, _>(
        accounts,
        to_named_worker(),
        to_named_worker(),
        "Commit",
        move |_, info| {
            let mut epochs: Epochs<Gathered> = Epochs::default();
            // An epoch is written when all that it commits is; epochs are written in order.
            let mut writing: VecDeque<Capability<Epoch>> = VecDeque::new();
            let (confirm, confirmed) = unbounded::<()>();
            let waker = Arc::new(Mutex::new(scope.worker().sync_activator_for(info.address.to_vec())));
            move |(rows, rows_frontier), (accounts, accounts_frontier), output| {
                let port = output.output_index();
                rows.for_each(|message, block| {
                    if let Some((_, gathered)) = epochs.at(&message, port) {
                        gathered.windows.entry(block.window).or_default().push(std::mem::take(block));
                    }
                });
                accounts.for_each(|message, block| {
                    let Some((held, gathered)) = epochs.at(&message, port) else { return };
                    match serde_json::from_slice::<Account>(block.message_bytes()) {
                        Ok(mut account) => {
                            let mut session = output.session_with_builder(&*held);
                            for notice in account.notices.drain(..) {
                                let bytes = serde_json::to_vec(&notice).expect("a notice can be written");
                                (0..peers)
                                    .for_each(|to| session.give_container(&mut Block::message(to, &bytes)));
                            }
                            gathered.accounts.push(account);
                        }
                        Err(error) => committer.progress.failure.set(format!("an account: {error}")),
                    }
                });
                while let Some((held, gathered)) = epochs.close(&[rows_frontier, accounts_frontier]) {
                    let epoch = *held.time();
                    let Some(mut commit) = committer.close(epoch, gathered) else { continue };
                    let (confirm, waker) = (confirm.clone(), waker.clone());
                    let (progress, left) = (committer.progress.clone(), Instant::now());
                    let waiting = progress.unwritten.fetch_add(1, SeqCst) + 1;
                    debug!(
                        "epoch {epoch} closed, {} snapshots; {waiting} commits to write",
                        commit.snapshots.len()
                    );
                    if waiting > MOST_UNWRITTEN as u64 {
                        debug!("stall: no worker goes on before writers have confirmed an epoch");
                    }
                    commit.confirm = Box::new(move || {
                        if progress.failure.get().is_none() {
                            debug!("epoch {epoch} committed after {:?}", left.elapsed());
                            progress.close.observe(left.elapsed().as_secs_f64());
                            progress.commits.fetch_add(1, SeqCst);
                            progress.last_commit.store(live::now(), SeqCst);
                        }
                        progress.unwritten.fetch_sub(1, SeqCst);
                        // The worker is gone only when the process ends.
                        let _ = confirm.send(());
                        let _ = waker.lock().unwrap_or_else(PoisonError::into_inner).activate();
                    });
                    if commits.as_ref().is_none_or(|commits| commits.send(commit).is_err()) {
                        committer.progress.failure.set("the writing thread has ended early".into());
                    }
                    writing.push_back(held);
                }
                while let Ok(()) = confirmed.try_recv() {
                    writing.pop_front();
                }
            }
        },
    )
}

/// What comes of an epoch.
#[derive(Default)]
struct Gathered {
    windows: BTreeMap<Epoch, Vec<Block>>,
    accounts: Vec<Account>,
}

/// Makes commits of what comes of epochs.
struct Committer {
    job: Arc<Job>,
    progress: Arc<Progress>,
    /// Revision of each window of this run, and the packets that it holds; where they can be read back, of the latest ones.
    held: BTreeMap<Epoch, (u32, Option<u64>)>,
    /// Those that are held, where all others can be read back.
    lately: Lately,
    /// What was committed last, where commits are recorded.
    manifest: Option<Manifest>,
    /// Runs of probes from which nothing more is expected.
    retired: RetiredRuns,
}

impl Committer {
    fn new(job: &Arc<Job>, progress: &Arc<Progress>, peers: usize) -> Self {
        Self {
            job: job.clone(),
            progress: progress.clone(),
            held: BTreeMap::new(),
            lately: Lately::new(peers),
            manifest: job.earlier.manifest.clone(),
            retired: RetiredRuns::default(),
        }
    }

    /// Reads which runs of probes were retired before this start.
    fn read_retired(&mut self) {
        match RetiredRuns::read(&self.job.earlier.retired, Some) {
            Ok(retired) => self.retired = retired,
            Err(offset) => {
                let why = format!("the records of retired runs are damaged at byte {offset}");
                self.progress.failure.set(why);
            }
        }
        self.progress.books().accounts.find_partly_retired(&self.retired);
    }

    /// The snapshots of a closed epoch and the record of it; `None` where there is nothing to write.
    fn close(&mut self, epoch: Epoch, gathered: Gathered) -> Option<Commit> {
        let Gathered { windows, accounts } = gathered;
        let mut books = self.progress.books();
        let said = accounts.iter().any(|account| !account.is_empty());
        accounts.into_iter().for_each(|account| books.accounts.add(account));
        let records = books.accounts.retire(&mut self.retired);
        if windows.is_empty() && !(said && self.manifest.is_some()) {
            return None;
        }
        let mut snapshots = Vec::new();
        for (window, blocks) in windows {
            let earlier = match self.held.get(&window) {
                Some(earlier) => Some(*earlier),
                None if self.job.earlier.may_hold(window) || self.lately.has_forgotten(window) => {
                    let recall = self.job.earlier.recall.as_ref();
                    let summary = recall.map_or(Ok(None), |recall| recall.summary(window));
                    summary.unwrap_or_else(|why| {
                        self.progress.failure.set(why);
                        None
                    })
                }
                None => None,
            };
            let revision = earlier.map_or(0, |(revision, _)| revision + 1);
            let mut snapshot = snapshot(&self.job, window, revision, blocks);
            snapshot.missing = books.accounts.missing(window, self.job.windowing);
            let packets = snapshot.packets();
            books.windows += u64::from(earlier.is_none());
            let before = earlier.map_or(Some(0), |(_, packets)| packets);
            let first = books.windows == 1 && earlier.is_none();
            let all = if first { Some(0) } else { books.held };
            books.held = all.zip(packets).zip(before).map(|((all, now), before)| all + now - before.min(all));
            self.held.insert(window, (revision, packets));
            snapshots.push(Arc::new(snapshot));
        }
        if self.job.earlier.recall.is_some() && !snapshots.is_empty() {
            let written = snapshots.iter().map(|snapshot| snapshot.window);
            for window in self.lately.note(written) {
                self.held.remove(&window);
            }
        }
        let manifest = self.manifest.as_mut().map(|manifest| {
            manifest.number += 1;
            if !snapshots.is_empty() {
                // An epoch without packets closes nothing: whoever stops and starts uses up no window.
                manifest.epoch = manifest.epoch.max(Some(epoch));
            }
            manifest
                .ahead
                .extend(snapshots.iter().map(|snapshot| snapshot.window).filter(|window| *window > epoch));
            manifest.ahead = manifest.ahead.split_off(&manifest.first());
            manifest.retire(records, &self.retired, live::now());
            manifest.accounts = books.accounts.clone();
            (manifest.windows, manifest.held) = (books.windows, books.held);
            manifest.clone()
        });
        Some(Commit { snapshots, epoch, manifest, confirm: Box::new(|| {}) })
    }
}

/// Sorts a window's runs by task.
fn snapshot(job: &Job, window: Epoch, revision: u32, blocks: Vec<Block>) -> Snapshot {
    let task = |task: &Task| TaskRows {
        name: task.name.clone(),
        schema: task.aggregator.schema(),
        runs: Vec::new(),
        kept: None,
    };
    let mut tasks: Vec<_> = job.tasks.iter().map(task).collect();
    for block in blocks {
        match block.task.checked_sub(tasks.len()) {
            None => tasks[block.task].runs.push(block),
            Some(task) => tasks[task].kept = Some(block.words),
        }
    }
    Snapshot { window, span: job.windowing.span(window), revision, tasks, missing: Missing::default() }
}
