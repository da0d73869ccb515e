//! The partitions of the durable log, each read in order by one worker, so that a restart can go on to the packet.
//!
//! Partition p belongs to worker p modulo the number of workers of all processes. Its messages have an order that never
//! changes, and so have the packets in them. When the watermark closes a window at a packet of a partition, that place is
//! the *boundary* of the window's epoch: packets before it of this window or earlier ones have been handed out for the
//! epoch or before, all others come later. With the boundary goes the *start*: the first message that holds any of the
//! others, and the books as they were before that message. A restart reads on from the start and passes over what lies
//! before the boundary and belongs to committed windows. Until it has passed the boundary it closes no window either: none
//! of those that are not committed had been closed there. Where a boundary falls may depend on what else its worker has
//! read; once it is recorded it is a place, the same for whoever reads on.
//!
//! A worker takes its messages in the order of their watermarks, and waits for a partition that has more at the server:
//! so a backlog is read as it was written.

use super::books::{Books, Rules, RunBooks, TICK, Waiting};
use super::bus::{OVERHEAD, SINGLES};
use super::retired::RetiredRuns;
use super::skew::Skews;
use super::unsent::Unsent;
use super::{Intake, Notice, Placer, Position, Reader, Taken, Wakers};
use crate::account::{Found, InputKey};
use crate::bus::subscribe::Logged;
use crate::capture::live;
use crate::wire::batch::{Batch, Item};
use crate::wire::fields::Asked;
use crate::wire::single;
use async_nats::Subject;
use dataflows::field::Extension;
use dataflows::packet::Packet;
use dataflows::window::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use timely::scheduling::SyncActivator;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// Windows that packets may be handed out for ahead of a partition that has no message, beside those that lateness keeps
/// open: what is read of a backlog while nothing comes of one partition is bounded by them.
const MOST_AHEAD: usize = 64;

/// A place in a partition: a message's number in the log, and a packet's in the message.
pub type Place = (u64, u64);

/// Where a partition stands when an epoch, and those after it up to the next such position, are written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition {
    /// The partition; the one after the last holds single packets.
    pub partition: u32,
    /// The first epoch that it is for.
    pub from: Epoch,
    /// Before this, every packet of this window or an earlier one is in what is written; all other packets are not.
    pub boundary: Place,
    /// Where to read on, and the books before that.
    pub start: u64,
    /// The watermark that windows have been closed by here.
    pub floor: u64,
    /// Messages that are none.
    pub refused: u64,
    /// The books of each run that is not retired.
    pub runs: Vec<RunBooks>,
    /// The books of runs that were retired here since the position before this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<RunBooks>,
    /// How many runs had been retired here, as this worker counts them.
    #[serde(skip)]
    pub(crate) retired_until: u64,
}

/// The queue of a partition, between the connection and the worker.
struct Queue {
    messages: VecDeque<(Logged, Instant)>,
    bytes: u64,
    /// Messages that are at the server, as far as was heard.
    waiting: u64,
    ended: bool,
}

/// A partition of this process.
struct Shared {
    queue: Mutex<Queue>,
    room: Notify,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partitions that the workers of this process read.
pub struct Log {
    rules: Rules,
    /// Partitions of batches; the next one holds single packets.
    partitions: u32,
    /// Bytes that may wait in each queue.
    limit: u64,
    queues: BTreeMap<u32, Shared>,
    /// Who reads which.
    division: Division,
    /// Over core NATS, whoever asks is answered when a message is taken, and what there is no room for is lost.
    passing: bool,
    /// What earlier runs have recorded, and the first window that they have not written.
    resume: Resume,
    wakers: Wakers,
    /// Where the bus hears what is done with.
    done: UnboundedSender<Subject>,
    failure: OnceLock<String>,
    skews: Skews,
    unsent: Unsent,
    /// Single packets that there was no room for.
    lost: AtomicU64,
    stop: Box<dyn Fn() + Send + Sync>,
}

/// What earlier runs of the engine have recorded of the durable log.
#[derive(Clone, Default)]
pub struct Resume {
    /// Where each partition stands.
    pub positions: BTreeMap<u32, LogPosition>,
    /// The first window that they have not written.
    pub first: Epoch,
    /// Records of the retired runs of probes.
    pub retired: Arc<[u8]>,
}

/// Who reads which partitions.
#[derive(Clone, Copy, Debug)]
pub struct Division {
    /// Partitions of batches; one more holds single packets.
    pub partitions: u32,
    /// The workers of this process among all: the first, and how many.
    pub first_worker: usize,
    /// Workers of this process.
    pub workers: usize,
    /// Workers of all processes.
    pub peers: usize,
}

impl Division {
    /// The partitions of this process.
    pub fn own(self) -> impl Iterator<Item = u32> {
        let ours = self.first_worker..self.first_worker + self.workers;
        (0..=self.partitions).filter(move |partition| ours.contains(&self.reader_of(*partition)))
    }

    /// The worker that reads a partition, among all. Where there are more workers than partitions, the last have none; single
    /// packets are read beside batches, from which their worker knows how far time is.
    pub fn reader_of(self, partition: u32) -> usize {
        partition as usize % self.peers.min(self.partitions as usize).max(1)
    }
}

impl Log {
    /// Queues without messages. `waiting` tells how many messages wait at the server, by partition; `stop` ends the
    /// subscriptions; `done` is told where to answer that messages are done with. Without `waiting`, they come over core
    /// NATS: no log remembers them.
    pub fn new(
        rules: Rules,
        division: Division,
        waiting: Option<&BTreeMap<u32, u64>>,
        resume: Resume,
        done: UnboundedSender<Subject>,
        stop: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let queue = |number: u32| {
            let waiting = waiting.and_then(|waiting| waiting.get(&number).copied()).unwrap_or(0);
            let queue = Queue { messages: VecDeque::new(), bytes: 0, waiting, ended: false };
            (number, Shared { queue: Mutex::new(queue), room: Notify::new() })
        };
        let queues: BTreeMap<_, _> = division.own().map(queue).collect();
        Self {
            limit: rules.limit / (queues.len() as u64).max(1),
            rules,
            partitions: division.partitions,
            queues,
            division,
            passing: waiting.is_none(),
            resume,
            wakers: Wakers::default(),
            done,
            failure: OnceLock::new(),
            skews: Skews::default(),
            unsent: Unsent::default(),
            lost: AtomicU64::new(0),
            stop,
        }
    }

    /// Puts a partition's next message in; waits for room, or loses it where `waits` is not set.
    pub async fn put(&self, partition: u32, message: Logged, waits: bool) {
        let Some(shared) = self.queues.get(&partition) else { return };
        let size = message.message.payload.len() as u64 + OVERHEAD;
        loop {
            let room = shared.room.notified();
            {
                let mut queue = shared.queue();
                if queue.messages.is_empty() || queue.bytes + size <= self.limit {
                    let wake = queue.messages.is_empty();
                    queue.bytes += size;
                    queue.waiting = message.waiting;
                    queue.messages.push_back((message, Instant::now()));
                    drop(queue);
                    if wake {
                        self.wakers.wake();
                    }
                    return;
                }
            }
            if !waits {
                // Batches are known to be missing by their numbers.
                self.lost.fetch_add(u64::from(partition == self.partitions), SeqCst);
                return;
            }
            room.await;
        }
    }

    /// Single packets that were lost before they could be put in.
    pub fn lost_singles(&self, packets: u64) {
        self.lost.fetch_add(packets, SeqCst);
    }

    /// So many messages of a partition wait at the server.
    pub fn wait_for(&self, partition: u32, waiting: u64) {
        if let Some(shared) = self.queues.get(&partition) {
            shared.queue().waiting = waiting;
        }
        self.wakers.wake();
    }

    /// Nothing comes of a partition any more.
    pub fn end(&self, partition: u32) {
        if let Some(shared) = self.queues.get(&partition) {
            shared.queue().ended = true;
        }
        self.wakers.wake();
    }

    /// Finds the fields that tasks ask for in what is decoded next.
    fn asked<'a>(&self, packets: &'a Packets, extension: &Extension) -> Asked<'a> {
        match packets {
            Packets::Batch { batch, .. } => self.unsent.find(batch, extension),
            Packets::Singles(_) => {
                self.unsent.hear_singles(&self.rules.single, extension);
                Asked::default()
            }
        }
    }

    /// Messages have ended, and nobody stopped them.
    pub fn fail(&self, why: String) {
        // The first reason stays.
        let _ = self.failure.set(why);
    }

    /// Why messages have ended, where nobody stopped them.
    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }
}

impl Intake for Log {
    fn reader(self: Arc<Self>, worker: usize) -> Box<dyn Reader> {
        let own = self.queues.keys().copied().filter(|number| self.division.reader_of(*number) == worker);
        let own: Vec<u32> = own.collect();
        let parts = own.iter().filter(|number| **number < self.partitions).count().max(1);
        let mut books = Books::new(self.rules.clone(), parts);
        let part_of =
            |partition: u32| own.iter().position(|number| *number == partition).map(|part| part as u32);
        match RetiredRuns::read(&self.resume.retired, part_of) {
            Ok(retired) => books.restore_retired(retired),
            // They were read before, when the engine started.
            Err(offset) => self.fail(format!("the records of retired runs are damaged at byte {offset}")),
        }
        let mut partition = |(part, number): (usize, u32)| {
            let single = number == self.partitions;
            let part = if single { 0 } else { part };
            let position = self.resume.positions.get(&number);
            for run in position.iter().flat_map(|position| &position.runs) {
                books.restore(part, run.clone());
            }
            Partition {
                number,
                part,
                single,
                head: None,
                floor: position.map_or(0, |position| position.floor),
                refused: position.map_or(0, |position| position.refused),
                committed: position.map(|position| position.boundary),
                closed: self.resume.first,
                highest: self.resume.first.saturating_sub(1),
                starts: VecDeque::new(),
                last: position.map_or(0, |position| position.start.saturating_sub(1)),
                last_reply: None,
                taken: position.is_some(),
                acks: VecDeque::new(),
            }
        };
        let partitions: Vec<Partition> = own.iter().copied().enumerate().map(&mut partition).collect();
        if partitions.iter().any(|partition| partition.committed.is_some()) {
            books.resume(self.resume.first);
        }
        let ticked = Instant::now();
        let open = BTreeSet::new();
        Box::new(LogReader { log: self, books, open, partitions, piece: None, positions: Vec::new(), ticked })
    }

    fn register(&self, activator: SyncActivator) {
        self.wakers.add(activator);
    }

    fn stop(&self) {
        (self.stop)();
    }

    fn wake(&self) {
        self.wakers.wake();
    }

    fn skews(&self) -> Vec<(String, i64)> {
        self.skews.all()
    }

    fn remarks(&self) -> Vec<String> {
        self.unsent.remarks()
    }

    fn found(&self) -> Vec<(InputKey, Found)> {
        // There is always the input of single packets; readers tell of what came.
        let lost = self.lost.load(SeqCst);
        let mut singles = RunBooks::of_singles(self.rules.single.clone());
        singles.lost = lost;
        vec![(singles.key(), Found::Run(singles))]
    }
}

/// The message of a partition that is next.
enum Head {
    Batch(Box<Batch>),
    Single(Packet),
    /// No message of ours.
    Refused,
}

impl Head {
    /// By this, messages of different partitions are put in order.
    fn watermark(&self) -> u64 {
        match self {
            Self::Batch(batch) => batch.watermark,
            Self::Single(packet) => packet.time,
            Self::Refused => 0,
        }
    }
}

/// A worker's end of a partition.
struct Partition {
    number: u32,
    /// Its place among the parts of a run.
    part: usize,
    /// Whether it holds single packets.
    single: bool,
    head: Option<(Head, Logged, Instant)>,
    /// The watermark that windows have been closed by here.
    floor: u64,
    refused: u64,
    /// Before this, packets of windows that are written have been taken by an earlier run.
    committed: Option<Place>,
    /// The first window that is open here, and the highest epoch that anything was handed out for.
    closed: Epoch,
    highest: Epoch,
    /// For epochs from the first up to the second: where to start after them.
    starts: VecDeque<(Epoch, Epoch, Start)>,
    /// The last message taken, and how to say that it is done with.
    last: u64,
    last_reply: Option<Subject>,
    /// Whether anything was ever taken.
    taken: bool,
    /// From which epoch on which messages are done with.
    acks: VecDeque<(Epoch, Option<Subject>)>,
}

/// A message, with the books as they were before it.
#[derive(Clone)]
struct Start {
    number: u64,
    /// How to say that all before it is done with.
    before: Option<Subject>,
    floor: u64,
    refused: u64,
    runs: Vec<RunBooks>,
    /// How many had been retired here.
    retired_until: u64,
}

impl Partition {
    /// The next message, if there is one; whether there will be none.
    fn look(&mut self, queues: &BTreeMap<u32, Shared>) -> Look {
        if self.head.is_some() {
            return Look::Here;
        }
        let Some(shared) = queues.get(&self.number) else { return Look::Ended };
        let mut queue = shared.queue();
        let Some((logged, arrived)) = queue.messages.pop_front() else {
            return match (queue.ended, queue.waiting) {
                (true, _) => Look::Ended,
                (false, 0) => Look::Nothing,
                (false, _) => Look::OnItsWay,
            };
        };
        queue.bytes -= logged.message.payload.len() as u64 + OVERHEAD;
        drop(queue);
        shared.room.notify_waiters();
        let payload = logged.message.payload.clone();
        let head = if self.single {
            single::decode(payload).map(Head::Single)
        } else {
            Batch::read(payload).map(|batch| Head::Batch(Box::new(batch)))
        };
        self.head = Some((head.unwrap_or(Head::Refused), logged, arrived));
        Look::Here
    }

    /// Whether it reads again what an earlier run has read before its last commit.
    fn is_reading_again(&self) -> bool {
        self.committed.is_some_and(|boundary| (self.last + 1, 0) < boundary)
    }

    /// Whether the message that had closed the last committed window here is still to come: until it has, the watermark
    /// may be far behind what is closed. One that nobody has sent yet is not waited for.
    fn is_behind_boundary(&self, queues: &BTreeMap<u32, Shared>) -> bool {
        let is_behind = self.committed.is_some_and(|(message, _)| self.last < message);
        is_behind
            && (self.head.is_some()
                || queues.get(&self.number).is_some_and(|shared| {
                    let queue = shared.queue();
                    !queue.messages.is_empty() || queue.waiting > 0 && !queue.ended
                }))
    }

    /// The books as they are now, for a restart from the next message on.
    fn start(&self, books: &Books) -> Start {
        let runs = match self.single {
            true => vec![books.run(0).parts[0].clone()],
            false => {
                let runs = books.runs().skip(1).map(|run| &run.parts[self.part]);
                runs.filter(|part| part.is_heard()).cloned().collect()
            }
        };
        let retired_until = if self.single { 0 } else { books.retired_here(self.part) };
        let (floor, refused) = (self.floor, self.refused);
        Start { number: self.last + 1, before: self.last_reply.clone(), floor, refused, runs, retired_until }
    }

    /// Notes that a message was taken.
    fn took(&mut self, logged: Logged, log: &Log) {
        let reply = logged.message.reply;
        if let Some(reply) = reply.clone().filter(|_| log.passing) {
            // The bus is gone only when the engine is.
            let _ = log.done.send(reply);
        }
        (self.last, self.last_reply, self.taken) = (logged.number, reply.filter(|_| !log.passing), true);
    }

    /// Notes that packets were handed out for epochs up to this one, the first of them from a message behind `start`.
    fn hand_out(&mut self, epoch: Epoch, start: &Start) {
        if epoch > self.highest {
            self.starts.push_back((self.highest, epoch, start.clone()));
            self.highest = epoch;
        }
    }

    /// Closes windows before `open` at this place. `here` is where a restart begins if nothing before it is needed.
    fn close(&mut self, open: Epoch, boundary: Place, here: &Start, positions: &mut Vec<LogPosition>) {
        let mut from = self.closed;
        while from < open {
            let needed = self.starts.iter().find(|(least, end, _)| (*least..*end).contains(&from));
            let (start, until) = needed.map_or((here, open), |(_, end, start)| (start, *end));
            let Start { number, before, floor, refused, runs, retired_until } = start.clone();
            let (partition, start, retired) = (self.number, number, Vec::new());
            positions.push(LogPosition {
                partition,
                from,
                boundary,
                start,
                floor,
                refused,
                runs,
                retired,
                retired_until,
            });
            if !self.single {
                self.acks.push_back((from, before));
            }
            from = until;
        }
        self.closed = self.closed.max(open);
        self.starts.retain(|(_, end, _)| *end > open);
    }
}

/// What a look at a partition finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Here,
    /// The server has more.
    OnItsWay,
    Nothing,
    Ended,
}

/// What is decoded next.
struct Piece {
    /// The partition's place among those of the worker.
    at: usize,
    run: usize,
    packets: Packets,
    /// The books before it, where they may be needed.
    start: Option<Start>,
}

enum Packets {
    /// Each with its message's number, and whether it is dated ahead by mistake.
    Singles(Vec<(u64, Packet, bool)>),
    /// Of a message's batch, the packets of these numbers.
    Batch { message: u64, batch: Box<Batch>, fresh: Vec<Range<u64>> },
}

struct LogReader {
    log: Arc<Log>,
    books: Books,
    /// Epochs that packets were handed out for and that are not closed.
    open: BTreeSet<Epoch>,
    partitions: Vec<Partition>,
    piece: Option<Piece>,
    positions: Vec<LogPosition>,
    ticked: Instant,
}

impl LogReader {
    /// The partition whose message is next: of the least watermark. `None` where one is on its way that may be before it.
    fn next_partition(&mut self) -> Result<usize, Taken> {
        let queues = &self.log.queues;
        let look = |partition: &mut Partition| {
            let look = partition.look(queues);
            if look == Look::Nothing {
                // What it has not read again is not there any more.
                partition.committed = None;
            }
            look
        };
        let looks: Vec<Look> = self.partitions.iter_mut().map(look).collect();
        if looks.contains(&Look::OnItsWay) {
            return Err(Taken::Wait);
        }
        let heads = self.partitions.iter().enumerate();
        let heads = heads.filter_map(|(at, partition)| Some((partition.head.as_ref()?.0.watermark(), at)));
        let none = if looks.iter().all(|look| *look == Look::Ended) { Taken::End } else { Taken::Wait };
        let (watermark, at) = heads.min().ok_or(none)?;
        if self.is_far_ahead(watermark) && self.waits_for_nothing(&looks) {
            return Err(Taken::Wait);
        }
        Ok(at)
    }

    /// Whether many windows wait to be closed that a message of this watermark would not be late for. While it is read
    /// again what was read before, nothing is held back: how far the probes are is not known yet.
    fn is_far_ahead(&self, watermark: u64) -> bool {
        let rules = &self.books.rules;
        let (closed, open) = (rules.first_open(self.hold()), rules.first_open(watermark));
        // Few messages get beyond the first two.
        !self.log.passing
            && self.open.range(closed..open.max(closed)).count() > MOST_AHEAD
            && !self.partitions.iter().any(|partition| partition.is_behind_boundary(&self.log.queues))
    }

    /// Whether what windows wait for comes from a partition that has no message.
    fn waits_for_nothing(&self, looks: &[Look]) -> bool {
        let Some((single, part)) = self.books.furthest_behind() else { return false };
        let mut partitions = self.partitions.iter().zip(looks);
        let look = partitions.find(|(partition, _)| (partition.single, partition.part) == (single, part));
        look.is_none_or(|(_, look)| *look == Look::Nothing)
    }

    /// What has come, though nobody has looked at it yet.
    fn waiting(&self) -> Waiting {
        let arrived = |partition: &Partition| partition.head.as_ref().map(|(_, _, arrived)| *arrived);
        let (singles, batches): (Vec<_>, Vec<_>) =
            self.partitions.iter().partition(|partition| partition.single);
        Waiting {
            singles: singles.first().and_then(|partition| arrived(partition)),
            parts: batches.into_iter().map(arrived).collect(),
        }
    }

    /// The watermark before which nothing is handed out any more but what comes late.
    fn hold(&self) -> u64 {
        let floor = self.books.floor;
        match self.partitions.iter().any(Partition::is_reading_again) {
            true => floor.min(self.books.rules.closes_before(self.log.resume.first)),
            false => floor,
        }
    }

    /// Closes windows that nothing comes for any more, in all partitions.
    fn close(&mut self) {
        if !self.partitions.iter().any(|partition| partition.is_behind_boundary(&self.log.queues)) {
            self.books.resumed(self.log.resume.first);
        }
        self.books.close();
        let hold = self.hold();
        let open = self.books.rules.first_open(hold);
        if self.open.first().is_some_and(|first| *first < open) {
            self.open = self.open.split_off(&open);
        }
        for partition in self.partitions.iter_mut().filter(|partition| partition.closed < open) {
            partition.floor = partition.floor.max(hold);
            let here = partition.start(&self.books);
            partition.close(open, (partition.last + 1, 0), &here, &mut self.positions);
        }
    }

    /// Whether a batch may be handed out for an epoch that nothing was handed out for before, or close windows.
    fn may_turn(&mut self, at: usize, batch: &Batch) -> bool {
        let known = self.books.find(&batch.probe, batch.run);
        let (rules, partition) = (&self.books.rules, &self.partitions[at]);
        let before = known.map_or(0, |run| self.books.run(run).parts[partition.part].watermark);
        let floor = partition.floor.max(self.books.floor);
        let closes = rules.first_open(batch.latest.max(before).max(floor)) > partition.closed;
        closes || rules.windowing.index(batch.latest).max(partition.closed) > partition.highest
    }

    /// Where a piece of a run is placed; what is closed in its partition stays closed.
    fn position(&mut self, at: usize, run: usize, before: u64) -> Position {
        let (others, hold) = (self.books.others(run), self.hold());
        let partition = &mut self.partitions[at];
        let latest = self.books.run(run).parts[partition.part].watermark.max(before);
        partition.floor = partition.floor.max(hold).max(latest.min(others));
        Position { latest, others, floor: partition.floor, hold }
    }

    fn take_batch(
        &mut self,
        at: usize,
        batch: Box<Batch>,
        logged: Logged,
        arrived: Instant,
    ) -> Option<Position> {
        let turns = self.may_turn(at, &batch);
        let start = turns.then(|| self.partitions[at].start(&self.books));
        let (message, part) = (logged.number, self.partitions[at].part);
        if logged.waiting == 0 {
            // What has waited in the log tells nothing of clocks.
            self.log.skews.hear(&batch, live::now());
        }
        let Some(run) = self.books.run_of(&batch, part) else {
            self.partitions[at].took(logged, &self.log);
            self.partitions[at].refused += 1;
            return None;
        };
        let fresh = self.books.part(run, part).fresh_of(&batch);
        let position = self.position(at, run, if fresh.is_empty() { 0 } else { batch.watermark });
        self.partitions[at].took(logged, &self.log);
        if !fresh.is_empty() || batch.packets == 0 {
            self.books.hear(run, part, batch.latest, batch.last, arrived);
        }
        if batch.last {
            // Whoever got none of its packets knows by this which windows it has begun.
            self.books.note(run, part, u64::MAX, batch.latest);
        }
        if fresh.is_empty() {
            return None;
        }
        self.books.note(run, part, batch.earliest(), batch.latest);
        self.piece = Some(Piece { at, run, packets: Packets::Batch { message, batch, fresh }, start });
        Some(position)
    }

    fn take_singles(&mut self, at: usize, first: (Packet, Logged), arrived: Instant) -> Position {
        let start = self.partitions[at].start(&self.books);
        let position = self.position(at, 0, 0);
        let mut packets: Vec<(u64, Packet, bool)> = Vec::new();
        let mut next = Some(first);
        while let Some((packet, logged)) = next.take() {
            let is_stray = self.books.singles().is_stray(packet.time, logged.stored);
            packets.push((logged.number, packet, is_stray));
            self.partitions[at].took(logged, &self.log);
            let partition = &mut self.partitions[at];
            if packets.len() < SINGLES && partition.look(&self.log.queues) == Look::Here {
                match partition.head.take() {
                    Some((Head::Single(packet), logged, _)) => next = Some((packet, logged)),
                    other => partition.head = other,
                }
            }
        }
        let times = packets.iter().filter(|(.., is_stray)| !is_stray).map(|(_, packet, _)| packet.time);
        if let (Some(earliest), Some(newest)) = (times.clone().min(), times.max()) {
            self.log.skews.hear_of(&self.books.rules.single, newest, live::now());
            self.books.hear(0, 0, newest, false, arrived);
            self.books.note(0, 0, earliest, newest);
        }
        self.books.singles().taken += packets.len() as u64;
        self.piece = Some(Piece { at, run: 0, packets: Packets::Singles(packets), start: Some(start) });
        position
    }
}

impl Reader for LogReader {
    fn take(&mut self) -> Result<(Taken, Position), String> {
        if let Some(why) = self.log.failure() {
            // What is not read is not counted, and a restart reads it.
            return Err(why);
        }
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            self.books.tick(self.ticked, &self.waiting());
        }
        loop {
            self.close();
            let at = match self.next_partition() {
                Ok(at) => at,
                Err(Taken::End) if self.partitions.iter().any(Partition::is_reading_again) => {
                    // Its place in the log would be recorded as before what is committed.
                    return Err(
                        "stopped while re-reading the log up to the last commit; nothing is lost, and \
                                the next start continues from there"
                            .into(),
                    );
                }
                Err(taken) => return Ok((taken, Position::nowhere(self.hold()))),
            };
            let taken = match self.partitions[at].head.take() {
                Some((Head::Batch(batch), logged, arrived)) => self.take_batch(at, batch, logged, arrived),
                Some((Head::Single(packet), logged, arrived)) => {
                    Some(self.take_singles(at, (packet, logged), arrived))
                }
                Some((Head::Refused, logged, _)) => {
                    self.partitions[at].refused += 1;
                    self.partitions[at].took(logged, &self.log);
                    None
                }
                None => None,
            };
            if let Some(position) = taken {
                return Ok((Taken::Piece, position));
            }
        }
    }

    fn decode(&mut self, into: &mut Placer) -> Result<(), String> {
        let Some(Piece { at, run, packets, start }) = self.piece.take() else { return Ok(()) };
        let partition = &mut self.partitions[at];
        let (committed, first, windowing) =
            (partition.committed, self.log.resume.first, self.log.rules.windowing);
        // Where windows were closed, and the first that was open then.
        let mut closings: Vec<(Place, Epoch)> = Vec::new();
        let mut closed = partition.closed;
        if committed.is_some() {
            into.restrain();
        }
        let asked = self.log.asked(&packets, into.extension());
        let mut next = |into: &mut Placer, place: Place, item: Item| {
            let words = || asked.words(place.1 as usize);
            let is_new = committed.is_none_or(|boundary| place >= boundary);
            if is_new {
                into.release();
            }
            if let Item::Packet(Packet { time, .. }) | Item::Raised(time) = item {
                into.observe(time);
            }
            if into.closed() > closed {
                closed = into.closed();
                closings.push((place, closed));
            }
            match item {
                Item::Packet(packet) if is_new || windowing.index(packet.time) >= first => {
                    into.place_known(packet, words);
                }
                // It had gone out with a window that was open before the boundary.
                Item::Stray(packet) if is_new => into.place_stray(packet, words()),
                _ => {}
            }
        };
        match &packets {
            Packets::Singles(packets) => {
                for &(message, packet, is_stray) in packets {
                    let item = if is_stray { Item::Stray(packet) } else { Item::Packet(packet) };
                    next(into, (message, 0), item);
                }
            }
            &Packets::Batch { message, ref batch, ref fresh } => {
                let whole = fresh[..] == [batch.numbers()];
                let mut number = batch.first_packet;
                batch.visit(|item| {
                    let place = (message, number - batch.first_packet);
                    match item {
                        Item::Packet(_) | Item::Stray(_) => {
                            if whole || fresh.iter().any(|range| range.contains(&number)) {
                                next(into, place, item);
                            }
                            number += 1;
                        }
                        Item::Raised(_) => next(into, place, item),
                    }
                });
            }
        }
        if committed.is_some_and(|boundary| boundary <= (partition.last + 1, 0)) {
            partition.committed = None;
        }
        let highest = into.highest();
        into.finish(run, None);
        self.open.extend(into.touched.iter().map(|(epoch, _)| *epoch));
        if highest.is_some_and(|highest| highest > partition.highest) || !closings.is_empty() {
            let start = start.ok_or("internal error: a batch has turned what it could not")?;
            highest.into_iter().for_each(|highest| partition.hand_out(highest, &start));
            for (place, open) in closings {
                partition.close(open, place, &start, &mut self.positions);
            }
            // Another run's messages may be behind this one's; what is closed in this partition stays closed.
            partition.floor = partition.floor.max(self.books.rules.closes_before(partition.closed));
        }
        Ok(())
    }

    fn key(&self, input: usize) -> InputKey {
        self.books.key(input)
    }

    fn leave(&mut self, end: bool) -> Vec<LogPosition> {
        if end {
            for partition in self.partitions.iter_mut().filter(|partition| partition.taken) {
                let here = partition.start(&self.books);
                partition.close(Epoch::MAX, (partition.last + 1, 0), &here, &mut self.positions);
            }
        }
        // The committer knows by the positions which runs are retired.
        self.books.left();
        let mut positions = std::mem::take(&mut self.positions);
        for position in &mut positions {
            let mut partitions = self.partitions.iter().filter(|partition| !partition.single);
            if let Some(partition) = partitions.find(|partition| partition.number == position.partition) {
                position.retired = self.books.leave(partition.part, position.retired_until);
            }
        }
        positions
    }

    fn written(&mut self, before: Option<Epoch>) {
        for partition in &mut self.partitions {
            let mut done = None;
            while partition.acks.front().is_some_and(|(from, _)| before.is_none_or(|before| *from < before)) {
                done = partition.acks.pop_front().and_then(|(_, reply)| reply);
            }
            if let Some(reply) = done {
                // The bus is gone only when the engine is.
                let _ = self.log.done.send(reply);
            }
        }
    }

    fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.books.notices)
    }

    fn heed(&mut self, mut notice: Notice) {
        if let Notice::Alone { runs, .. } | Notice::Heard { runs } = &mut notice
            && self.partitions.is_empty()
        {
            // Nothing ever comes here.
            runs.clear();
        }
        self.books.heed(notice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account as accounts;
    use crate::bus::subscribe::Incoming;
    use crate::ledger::InputReport;
    use crate::wire::batch::{BatchBuilder, Header};
    use crate::wire::v1::Accounts;
    use dataflows::packet::{Address, Transport};
    use dataflows::window::Windowing;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::sync::mpsc::unbounded_channel;

    const PARTITIONS: u32 = 3;
    const LENGTH: u64 = 100;
    /// Packets from this time on are dated so by mistake.
    const STRAYS: u64 = 100_000;

    fn packet(number: u64, time: u64) -> Packet {
        let transport = Transport::new(number as u16, 1, 6, 0, 0, 4);
        Packet {
            time,
            transport,
            source: Address::v4(number as u32),
            destination: Address::v4(1),
            length: 60,
        }
    }

    /// Packets that go to one partition before the next.
    const BLOCK: usize = 6;

    /// Where packets are cut into batches of at most so many.
    fn cuts(packets: usize, most: usize) -> Vec<Range<usize>> {
        let mut cuts = Vec::new();
        let mut first = 0;
        while first < packets {
            let end = (first + most).min((first / BLOCK + 1) * BLOCK).min(packets);
            cuts.push(first..end);
            first = end;
        }
        cuts
    }

    /// What two probes put into the log, by partition: their packets, at these times, and in the end that there are no more.
    /// Each packet has a number of its own. They try several times, each time so many packets, in batches of so many.
    fn log_of(runs: &[Vec<u64>], tries: &[(usize, usize)]) -> Vec<Vec<Vec<u8>>> {
        let mut log: Vec<Vec<Vec<u8>>> = vec![Vec::new(); PARTITIONS as usize];
        for (packets, most) in tries {
            let runs: Vec<&[u64]> = runs.iter().map(|times| &times[..times.len().min(*packets)]).collect();
            let cuts: Vec<_> = runs.iter().map(|times| cuts(times.len(), *most)).collect();
            for sequence in 0..=cuts.iter().map(Vec::len).max().unwrap_or(0) {
                for (run, times) in runs.iter().enumerate().filter(|(run, _)| sequence <= cuts[*run].len()) {
                    let range = cuts[run].get(sequence).cloned().unwrap_or(times.len()..times.len());
                    let payload = batch_of(run, times, sequence, range.clone());
                    if range.is_empty() {
                        log.iter_mut().for_each(|partition| partition.push(payload.clone()));
                    } else {
                        log[range.start / BLOCK % PARTITIONS as usize].push(payload);
                    }
                }
            }
        }
        log
    }

    /// A batch of a run, of these of its packets; without any, it is the last.
    fn batch_of(run: usize, times: &[u64], sequence: usize, range: Range<usize>) -> Vec<u8> {
        let known = times[..range.start].iter().copied().filter(|time| *time < STRAYS);
        let mut latest = known.max().unwrap_or(0);
        let watermark = latest;
        let mut builder = BatchBuilder::new(watermark);
        for at in range.clone() {
            let packet = packet((at + 1000 * run) as u64, times[at]);
            if times[at] < STRAYS {
                latest = latest.max(times[at]);
                builder.push(&packet, latest);
            } else {
                builder.push_stray(&packet, latest);
            }
        }
        let sent = |packets: usize| Accounts { sent: packets as u64, ..Accounts::default() };
        let header = Header {
            probe: format!("probe {run}"),
            run: 7,
            sequence: sequence as u64,
            first_packet: range.start as u64,
            watermark,
            latest,
            before: sent(range.start),
            after: sent(range.end),
            last: range.is_empty(),
            block: BLOCK as u64,
            stride: BLOCK as u64 * u64::from(PARTITIONS),
            ..Header::default()
        };
        builder.finish(header).to_vec()
    }

    fn rules(lateness: u64, max_ended: usize) -> Rules {
        Rules { lateness, max_ended, ..Rules::trial(LENGTH) }
    }

    /// Puts a message with this number into the queue of a partition.
    fn put(queues: &Log, partition: usize, number: u64, payload: &[u8]) {
        let payload = payload.to_vec().into();
        let message = Incoming { subject: "s".into(), payload, reply: None };
        let message = Logged { message, number, waiting: 0, stored: 0 };
        let mut queue = queues.queues[&(partition as u32)].queue();
        queue.bytes += message.message.payload.len() as u64 + OVERHEAD;
        queue.messages.push_back((message, Instant::now()));
    }

    /// What is in the snapshots so far, by number of the packet, and what was recorded with them.
    #[derive(Default)]
    struct Written {
        packets: BTreeMap<u64, u64>,
        accounts: accounts::Accounts,
        retired: RetiredRuns,
        first: Epoch,
        /// Runs that have ended and are not retired.
        max_ended: usize,
    }

    impl Written {
        /// What was taken, what came again and what is lost by the accounting of all runs.
        fn totals(&self) -> [u64; 3] {
            let inputs = self.accounts.inputs();
            let lost = |report: &InputReport| report.losses.unwrap_or_default().total();
            let sum = |of: &dyn Fn(&InputReport) -> u64| inputs.iter().map(|(report, _)| of(report)).sum();
            [sum(&|report| report.packets), sum(&|report| report.repeated), sum(&lost)]
        }

        /// Reads the log from where it stands, on so many workers, and commits epochs as the workers leave them; killed
        /// after so many commits.
        fn read_on(&mut self, log: &[Vec<Vec<u8>>], peers: usize, lateness: u64, most: usize) {
            let resume = Resume {
                positions: self.accounts.positions.clone(),
                first: self.first,
                retired: self.retired.write().into(),
            };
            let division = Division { partitions: PARTITIONS, first_worker: 0, workers: peers, peers };
            let (done, _replies) = unbounded_channel();
            let queues =
                Log::new(rules(lateness, self.max_ended), division, None, resume, done, Box::new(|| {}));
            for (partition, messages) in log.iter().enumerate() {
                let start =
                    self.accounts.positions.get(&(partition as u32)).map_or(1, |position| position.start);
                for (number, payload) in (1..).zip(messages).filter(|(number, _)| *number >= start) {
                    put(&queues, partition, number, payload);
                }
            }
            let queues = Arc::new(queues);
            (0..=PARTITIONS).for_each(|partition| queues.end(partition));
            let mut readers: Vec<_> = (0..peers).map(|worker| Some(queues.clone().reader(worker))).collect();
            let mut placers: Vec<_> =
                (0..peers).map(|_| Placer::new(Windowing::Every(LENGTH), lateness, self.first)).collect();
            let mut holds = vec![self.first; peers];
            let mut sent: BTreeMap<Epoch, Vec<u64>> = BTreeMap::new();
            let mut positions: Vec<LogPosition> = Vec::new();
            let mut commits = 0;
            while readers.iter().any(Option::is_some) {
                for ((slot, placer), hold) in readers.iter_mut().zip(&mut placers).zip(&mut holds) {
                    let Some(reader) = slot else { continue };
                    let (taken, position) = reader.take().expect("taken");
                    if taken == Taken::End {
                        positions.extend(reader.leave(true));
                        (*slot, *hold) = (None, Epoch::MAX);
                        continue;
                    }
                    positions.extend(reader.leave(false));
                    let open = placer.seek(position);
                    assert!(open >= *hold, "a capability never goes back");
                    *hold = open;
                    if taken == Taken::Piece {
                        reader.decode(placer).expect("decoded");
                        positions.extend(reader.leave(false));
                        for (epoch, batch) in placer.batches.drain(..) {
                            let in_place = batch.window <= epoch || batch.window >= STRAYS / LENGTH;
                            assert!(epoch >= *hold && in_place, "{epoch} {hold}");
                            assert!(epoch < STRAYS / LENGTH, "{epoch}");
                            let numbers = batch.packets.iter().map(|packet| packet.source.0 as u32 as u64);
                            sent.entry(epoch).or_default().extend(numbers);
                        }
                    }
                }
                let least = *holds.iter().min().expect("a worker");
                while let Some(epoch) = sent.first_key_value().map(|(epoch, _)| *epoch).filter(|e| *e < least)
                {
                    if commits == most {
                        return;
                    }
                    commits += 1;
                    for number in sent.remove(&epoch).unwrap_or_default() {
                        *self.packets.entry(number).or_default() += 1;
                    }
                    positions.sort_by_key(|position| position.from);
                    let later = positions.partition_point(|position| position.from <= epoch);
                    let later = positions.split_off(later);
                    self.record(std::mem::replace(&mut positions, later));
                    self.first = epoch + 1;
                }
            }
            self.record(positions);
        }

        fn record(&mut self, positions: Vec<LogPosition>) {
            self.accounts.add(accounts::Account { positions, ..accounts::Account::default() });
            // As a restart reads it.
            let records = [self.retired.write(), self.accounts.retire(&mut self.retired)].concat();
            self.retired = RetiredRuns::read(&records, Some).expect("records");
        }
    }

    #[test]
    fn a_backlog_is_read_no_further_than_some_windows_ahead_of_a_partition_that_has_no_message() {
        let silent_after = Duration::from_millis(300);
        let rules = Rules { silent_after, ..Rules::trial(LENGTH) };
        let division = Division { partitions: PARTITIONS, first_worker: 0, workers: 1, peers: 1 };
        let (done, _replies) = unbounded_channel();
        let resume = Resume::default();
        let log = Log::new(rules, division, Some(&BTreeMap::new()), resume, done, Box::new(|| {}));
        // A packet in each of a thousand windows. The probe greets partition 0, which then has nothing.
        let times: Vec<u64> = (0..1000).map(|window| window * LENGTH).collect();
        let cuts = cuts(times.len(), BLOCK).into_iter().enumerate();
        let mut messages: Vec<_> = cuts
            .map(|(at, range)| (at % 3, batch_of(0, &times, at, range)))
            .filter(|(at, _)| *at > 0)
            .collect();
        messages.insert(0, (0, batch_of(0, &times, 0, 0..1)));
        for (number, (partition, payload)) in (1..).zip(messages) {
            let message = Incoming { subject: "s".into(), payload: payload.into(), reply: None };
            let message = Logged { message, number, waiting: 0, stored: 0 };
            let mut queue = log.queues[&(partition as u32)].queue();
            queue.bytes += message.message.payload.len() as u64 + OVERHEAD;
            queue.messages.push_back((message, Instant::now()));
        }
        let mut reader = Arc::new(log).reader(0);
        let mut placer = Placer::new(Windowing::Every(LENGTH), 0, 0);
        let (mut handed_out, mut open, mut most, mut waited) = (BTreeSet::new(), 0, 0, false);
        while handed_out.last().is_none_or(|last| *last < 990) {
            let (taken, position) = reader.take().expect("taken");
            open = placer.seek(position).max(open);
            if taken == Taken::Piece {
                reader.decode(&mut placer).expect("decoded");
            } else {
                waited = true;
                std::thread::yield_now();
            }
            placer.touched.clear();
            handed_out.extend(placer.batches.drain(..).map(|(epoch, _)| epoch));
            most = most.max(handed_out.range(open..).count());
        }
        assert!(waited, "nothing held it back");
        assert!(most <= MOST_AHEAD + 2 * BLOCK, "{most} windows were open");
        assert!(open > 800, "once the partition has been silent for long, windows close without it: {open}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn killed_after_any_commit_and_read_on_by_any_number_of_workers_every_packet_is_written_once(
            runs in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![9 => 1u64..1500, 1 => STRAYS..STRAYS + 200], 0..40),
                1..4,
            ),
            max_ended in 0usize..3,
            sorted in any::<bool>(),
            lateness in 0u64..150,
            tries in proptest::collection::vec((0usize..40, 1usize..8), 0..3),
            cut in 1usize..8,
            lives in proptest::collection::vec((1usize..4, 0usize..6), 0..5),
            last in 1usize..4,
        ) {
            let mut runs = runs;
            if sorted {
                runs.iter_mut().for_each(|times| times.sort_unstable());
            }
            // Those that were stopped, and one to the end.
            let tries = [&tries[..], &[(usize::MAX, cut)]].concat();
            let log = log_of(&runs, &tries);
            let mut written = Written { max_ended, ..Written::default() };
            for (peers, commits) in lives {
                written.read_on(&log, peers, lateness, commits);
            }
            written.read_on(&log, last, lateness, usize::MAX);
            let all = runs.iter().enumerate().flat_map(|(run, times)| (0..times.len() as u64).map(move |at| at + 1000 * run as u64));
            let expected: BTreeMap<u64, u64> = all.map(|number| (number, 1)).collect();
            prop_assert_eq!(&written.packets, &expected);
            let [taken, _, lost] = written.totals();
            prop_assert_eq!([taken, lost], [expected.len() as u64, 0], "the books");
        }
    }

    /// Short runs one after the other, each of so many packets.
    fn short_runs(count: u64, packets: u64) -> Vec<Vec<u64>> {
        (0..count).map(|run| (0..packets).map(|at| 10 * run + at + 1).collect()).collect()
    }

    /// The log of these runs, one after the other.
    fn one_after_the_other(runs: &[Vec<u64>]) -> Vec<Vec<Vec<u8>>> {
        let mut log: Vec<Vec<Vec<u8>>> = vec![Vec::new(); PARTITIONS as usize];
        for (run, times) in runs.iter().enumerate() {
            for (sequence, range) in cuts(times.len(), BLOCK).into_iter().enumerate() {
                log[range.start / BLOCK % PARTITIONS as usize].push(batch_of(run, times, sequence, range));
            }
            let last = batch_of(run, times, 9, times.len()..times.len());
            log.iter_mut().for_each(|partition| partition.push(last.clone()));
        }
        log
    }

    #[test]
    fn the_record_of_a_commit_does_not_grow_with_the_runs_that_have_ended() {
        // More than there are names.
        let sizes = [300, 1000].map(|count| {
            let log = one_after_the_other(&short_runs(count, 8));
            let mut written = Written { max_ended: 4, ..Written::default() };
            written.read_on(&log, 2, 0, usize::MAX);
            assert_eq!(written.totals(), [8 * count, 0, 0]);
            let bytes = written.retired.size() / count;
            assert!(bytes < 80, "{bytes} bytes a run");
            let runs: usize = written.accounts.positions.values().map(|position| position.runs.len()).sum();
            assert!(runs <= 3 * 6, "{runs} runs in the record");
            serde_json::to_vec(&written.accounts).expect("JSON").len()
        });
        assert!(sizes[1] < sizes[0] + 1000, "{sizes:?}");
    }

    #[test]
    fn runs_of_a_record_that_retired_none_are_retired_by_the_next_start() {
        let mut log = one_after_the_other(&short_runs(500, 8));
        let mut written = Written { max_ended: usize::MAX, ..Written::default() };
        written.read_on(&log, 2, 0, usize::MAX);
        assert_eq!(written.retired.size(), 0);
        written.max_ended = 4;
        let more: Vec<_> = [vec![vec![]; 500], short_runs(520, 8).split_off(500)].concat();
        let more = one_after_the_other(&more);
        // Those that are empty here only say their end again.
        log.iter_mut().zip(more).for_each(|(partition, more)| partition.extend(more));
        written.read_on(&log, 1, 0, usize::MAX);
        assert_eq!(written.totals(), [8 * 520, 0, 0]);
        let runs: usize = written.accounts.positions.values().map(|position| position.runs.len()).sum();
        assert!(runs <= 3 * 10, "{runs} runs in the record");
    }

    #[test]
    fn a_retired_run_that_comes_again_counts_as_repeated_also_after_a_restart_and_what_is_new_of_it_counts() {
        let mut runs = short_runs(50, 8);
        let mut log = one_after_the_other(&runs);
        let mut written = Written { max_ended: 0, ..Written::default() };
        written.read_on(&log, 2, 0, usize::MAX);
        assert_eq!(written.totals(), [400, 0, 0]);
        let again = one_after_the_other(&runs);
        log.iter_mut().zip(again).for_each(|(partition, again)| partition.extend(again));
        written.read_on(&log, 1, 0, usize::MAX);
        assert_eq!(written.totals(), [400, 400, 0]);
        // Run 7 goes on where it had stopped.
        runs[7].extend(9001..9013);
        let longer: Vec<_> =
            (0..).zip(&runs).map(|(run, times)| if run == 7 { times.clone() } else { vec![] }).collect();
        let longer = one_after_the_other(&longer);
        log.iter_mut().zip(longer).for_each(|(partition, more)| partition.extend(more));
        written.read_on(&log, 3, 0, usize::MAX);
        assert_eq!(written.totals(), [412, 408, 0]);
        assert!(written.packets.values().all(|count| *count == 1));
    }
}
