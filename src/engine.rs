//! Puts the stages together on timely workers: sources decode what they are dealt, the tasks' dataflows aggregate it,
//! and each closed epoch becomes snapshots that the sinks confirm.
//!
//! Two things bound what is in flight. Workers take a new piece only when they have passed on the last, and no worker
//! runs more than `MOST_UNWRITTEN` closed epochs ahead of what is written: the committing worker keeps an epoch's
//! capability until its snapshots are, and that frontier flows back to the sources.

use crate::archive::SpillingArchive;
use crate::intake::{Intake, Placer, Taken};
use crate::ledger::Counts;
use crate::sinks::{Failure, Sinks};
use crossbeam_channel::{Sender, unbounded};
use dataflows::aggregator::{Task, build_tasks};
use dataflows::block::{Block, BlockBuilder, to_named_worker};
use dataflows::epochs::Epochs;
use dataflows::groups::{Archive, Packets};
use dataflows::rows::{Snapshot, TaskRows};
use dataflows::window::{Epoch, Windowing};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::{OutputBuilder, operator::Operator};
use timely::dataflow::operators::{Capability, ConnectLoop, Feedback};
use timely::dataflow::{Scope, Stream};
use timely::{CommunicationConfig, Config, WorkerConfig};

/// Closed epochs whose snapshots may wait to be written while sources go on.
const MOST_UNWRITTEN: usize = 4;

/// What to run.
pub struct Job {
    /// Where packets come from.
    pub intake: Arc<dyn Intake>,
    /// What to compute, in the order of the snapshots' tasks.
    pub tasks: Vec<Task>,
    /// How event time is cut.
    pub windowing: Windowing,
    /// Nanoseconds that a window stays open behind the watermark.
    pub lateness: u64,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Where closed windows are kept when memory is short.
    pub spill: PathBuf,
}

/// What is known of a run while it goes on and when it is over.
#[derive(Debug, Default)]
pub struct Progress {
    counts: Mutex<BTreeMap<usize, Counts>>,
    unknown_links: Mutex<BTreeSet<u32>>,
    windows: AtomicU64,
    /// Why the run failed, if it did.
    pub failure: Failure,
}

impl Progress {
    /// The workers' accounts so far, by number of input.
    pub fn counts(&self) -> BTreeMap<usize, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Link types that were met and are not decoded.
    pub fn unknown_links(&self) -> BTreeSet<u32> {
        self.unknown_links.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Windows written, each once however often it was revised.
    pub fn windows(&self) -> u64 {
        self.windows.load(Relaxed)
    }

    fn add(&self, counts: BTreeMap<usize, Counts>, unknown_links: &BTreeSet<u32>) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (input, counts) in counts {
            *all.entry(input).or_default() += counts;
        }
        drop(all);
        if !unknown_links.is_empty() {
            self.unknown_links.lock().unwrap_or_else(PoisonError::into_inner).extend(unknown_links);
        }
    }
}

/// Runs a job to its end: every snapshot is written, or `progress.failure` says why not.
pub fn run(job: Arc<Job>, progress: &Arc<Progress>, sinks: &Sinks) -> Result<(), String> {
    let communication = match job.workers {
        0 | 1 => CommunicationConfig::Thread,
        more => CommunicationConfig::Process(more),
    };
    let (shared, snapshots) = (progress.clone(), sinks.sender());
    let workers =
        timely::execute(Config { communication, worker: WorkerConfig::default() }, move |worker| {
            let (job, progress) = (&job, &shared);
            worker.dataflow::<Epoch, _, _>(|scope| {
                let (written, feedback) = scope.feedback::<Vec<()>>(0);
                let (packets, late) = read(scope, feedback, job, progress);
                let (failure, shared) = (progress.failure.clone(), job.clone());
                let failed: Arc<dyn Fn(String) + Send + Sync> = Arc::new(move |why| {
                    failure.set(why);
                    shared.intake.wake();
                });
                let archive = || match job.windowing {
                    Windowing::All => None,
                    Windowing::Every(_) => {
                        Some(Box::new(SpillingArchive::new(&job.spill, failed.clone())) as Box<dyn Archive>)
                    }
                };
                let rows = build_tasks(scope, packets, &late, &job.tasks, archive);
                commit(rows, job, progress, snapshots.clone()).connect_loop(written);
            });
            while worker.has_dataflows() {
                worker.step_or_park(None);
            }
        })?;
    workers.join().into_iter().collect()
}

/// The source: decodes the pieces that this worker takes, and tells all workers of windows that get late packets.
///
/// `written` carries no data: its frontier is the first epoch that is not written.
fn read<'s>(
    scope: Scope<'s, Epoch>,
    written: Stream<'s, Epoch, Vec<()>>,
    job: &Arc<Job>,
    progress: &Arc<Progress>,
) -> (Stream<'s, Epoch, Packets>, Stream<'s, Epoch, Block>) {
    let (job, progress, worker, peers) = (job.clone(), progress.clone(), scope.index(), scope.peers());
    let mut builder = OperatorBuilder::new("Read".into(), scope);
    let info = builder.operator_info();
    let (output, packets) = builder.new_output::<Packets>();
    let (late_output, late) = builder.new_output::<Block>();
    let mut output = OutputBuilder::<_, NoopBuilder<Packets>>::from(output);
    let mut late_output = OutputBuilder::<_, BlockBuilder>::from(late_output);
    // No path from this input to the outputs: it tells of progress and holds nothing back.
    let mut written = builder.new_input_connection(written, Pipeline, []);
    job.intake.register(scope.worker().sync_activator_for(info.address.to_vec()));
    let activator = scope.activator_for(info.address.clone());
    builder.build(move |mut capabilities| {
        let late_capability = capabilities.pop();
        let mut held = capabilities.pop().zip(late_capability);
        let mut reader = job.intake.clone().reader(worker);
        let mut placer = Placer::new(job.windowing, job.lateness);
        let mut unwritten: BTreeSet<Epoch> = BTreeSet::new();
        move |frontiers| {
            written.for_each(|_, _| {});
            let Some((capability, late_capability)) = &mut held else { return };
            let first_unwritten = frontiers[0].frontier().first().copied().unwrap_or(Epoch::MAX);
            unwritten = unwritten.split_off(&first_unwritten);
            let (mut output, mut late_output) = (output.activate(), late_output.activate());

            if unwritten.range(..*capability.time()).count() > MOST_UNWRITTEN {
                // The frontier of what is written wakes this operator.
                return;
            }
            let taken = match progress.failure.get() {
                Some(_) => None,
                None => reader.take().map_err(|why| progress.failure.set(why)).ok(),
            };
            let Some((taken @ (Taken::Piece | Taken::Wait), position)) = taken else {
                held = None;
                return;
            };
            let first_open = placer.seek(position);
            // First of all: whoever waits, waits for no epoch that this worker has left.
            if first_open > *capability.time() {
                capability.downgrade(&first_open);
                late_capability.downgrade(&first_open);
            }
            if taken == Taken::Wait {
                return;
            }
            if let Err(why) = reader.decode(&mut placer) {
                progress.failure.set(why);
            }
            progress.add(std::mem::take(&mut placer.counts), &placer.unknown_links);
            for (epoch, mut batch) in placer.batches.drain(..) {
                unwritten.insert(epoch);
                output.session_with_builder(&capability.delayed(&epoch)).give_container(&mut batch);
            }
            for (epoch, window) in std::mem::take(&mut placer.late) {
                let at = late_capability.delayed(&epoch);
                let mut session = late_output.session_with_builder(&at);
                for to in 0..peers {
                    session.give_container(&mut Block { to, window, ..Block::default() });
                }
            }
            activator.activate();
        }
    });
    (packets, late)
}

/// Gathers each epoch's rows on one worker, makes snapshots of them and holds the epoch until they are written.
fn commit<'s>(
    rows: Stream<'s, Epoch, Block>,
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    snapshots: Sender<(Snapshot, Box<dyn FnOnce() + Send>)>,
) -> Stream<'s, Epoch, Vec<()>> {
    let scope = rows.scope();
    let (job, progress) = (job.clone(), progress.clone());
    rows.unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
        to_named_worker(),
        "Commit",
        move |_, info| {
            let mut epochs: Epochs<BTreeMap<Epoch, Vec<Block>>> = Epochs::default();
            let mut revisions: BTreeMap<Epoch, u32> = BTreeMap::new();
            // An epoch is written when each of its snapshots is; they are written in order.
            let mut writing: VecDeque<(Capability<Epoch>, usize)> = VecDeque::new();
            let (confirm, confirmed) = unbounded::<()>();
            let waker = Arc::new(Mutex::new(scope.worker().sync_activator_for(info.address.to_vec())));
            move |(input, frontier), output| {
                let port = output.output_index();
                input.for_each(|message, block| {
                    if let Some((_, windows)) = epochs.at(&message, port) {
                        windows.entry(block.window).or_default().push(std::mem::take(block));
                    }
                });
                while let Some((held, windows)) = epochs.close(&[frontier]) {
                    writing.push_back((held, windows.len()));
                    for (window, blocks) in windows {
                        let next = revisions.entry(window).and_modify(|revision| *revision += 1).or_insert(0);
                        if *next == 0 {
                            progress.windows.fetch_add(1, Relaxed);
                        }
                        let snapshot = snapshot(&job, window, *next, blocks);
                        let (confirm, waker) = (confirm.clone(), waker.clone());
                        let done = move || {
                            // The worker is gone only when the process ends.
                            let _ = confirm.send(());
                            let _ = waker.lock().unwrap_or_else(PoisonError::into_inner).activate();
                        };
                        if snapshots.send((snapshot, Box::new(done))).is_err() {
                            progress.failure.set("the writing thread has ended early".into());
                        }
                    }
                }
                while let (Ok(()), Some((_, left))) = (confirmed.try_recv(), writing.front_mut()) {
                    *left -= 1;
                    if *left == 0 {
                        writing.pop_front();
                    }
                }
            }
        },
    )
}

/// Sorts a window's runs by task.
fn snapshot(job: &Job, window: Epoch, revision: u32, blocks: Vec<Block>) -> Snapshot {
    let mut snapshot = empty_snapshot(job, window, revision);
    for block in blocks {
        snapshot.tasks[block.task].runs.push(block);
    }
    snapshot
}

/// A snapshot of a window in which nothing was counted.
pub fn empty_snapshot(job: &Job, window: Epoch, revision: u32) -> Snapshot {
    let task = |task: &Task| TaskRows {
        name: task.name.clone(),
        schema: task.aggregator.schema(),
        runs: Vec::new(),
    };
    Snapshot {
        window,
        span: job.windowing.span(window),
        revision,
        tasks: job.tasks.iter().map(task).collect(),
    }
}
