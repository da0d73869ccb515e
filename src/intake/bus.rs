//! Messages from the bus: kept in order and in bounds, handed to the workers, and every gap accounted for.
//!
//! A task puts messages into a queue; a worker takes the next, under a lock that covers reading the message's header and
//! moving its probe's accounts and watermark, and decodes it outside. (Single packets are decoded under it: their times
//! are the watermark, and their order is all they have.)
//!
//! What is lost is known by number: a probe numbers its packets, and what it has sent less what came is lost. A message
//! that comes twice counts once.

use super::{Intake, Placer, Position, Reader, Taken, Wakers};
use crate::bus::subscribe::{Arrival, Incoming};
use crate::ledger::{Counts, InputReport, Losses};
use crate::wire::batch::{Batch, Item, MOST};
use crate::wire::single;
use crate::wire::v1::{Accounts, TakenRange};
use async_nats::Subject;
use bytes::Bytes;
use dataflows::packet::Packet;
use dataflows::window::Windowing;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use timely::scheduling::SyncActivator;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// Single packets that a worker takes at once.
const SINGLES: usize = 512;
/// Bytes that a queued message takes beside its payload, roughly.
const OVERHEAD: u64 = 160;
/// Runs of probes that an engine keeps books of.
const MOST_RUNS: usize = 1 << 16;
/// Gaps that are remembered of a probe; what is missing in earlier ones stays lost.
const MOST_GAPS: usize = 1 << 16;

/// How an engine takes messages.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How event time is cut: when nobody is left to wait for, the windows begun are closed.
    pub windowing: Windowing,
    /// Nanoseconds that a window stays open behind the watermark.
    pub lateness: u64,
    /// How long a probe may say nothing before windows close without it.
    pub silent_after: Duration,
    /// How long single packets may pause before the clock moves their watermark.
    pub pause: Duration,
    /// Bytes of messages that may wait for the workers.
    pub limit: u64,
    /// Name of the input of single packets, and of what is no message at all.
    pub single: String,
}

/// What a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `PacketInfo`
    Single,
    /// `PacketBatch`
    Batch,
}

struct Queued {
    kind: Kind,
    message: Incoming,
    arrived: Instant,
}

/// Ranges of numbers that have been seen: ascending, apart from each other.
#[derive(Default)]
struct Seen {
    ranges: BTreeMap<u64, u64>,
}

impl Seen {
    /// Adds `start..end`; gives the parts of it that have not been seen before.
    fn add(&mut self, start: u64, end: u64) -> Vec<Range<u64>> {
        let mut fresh = Vec::new();
        let mut merged = start..end;
        let mut from = start;
        // Those that overlap it or touch it, in ascending order.
        let near = self.ranges.range(..=end).rev().map(|(start, end)| *start..*end);
        let near: Vec<_> = near.take_while(|range| range.end >= start).collect();
        for range in near.into_iter().rev() {
            if from < range.start.min(end) {
                fresh.push(from..range.start.min(end));
            }
            from = from.max(range.end);
            merged = merged.start.min(range.start)..merged.end.max(range.end);
            self.ranges.remove(&range.start);
        }
        if from < end {
            fresh.push(from..end);
        }
        if merged.start < merged.end {
            self.ranges.insert(merged.start, merged.end);
        }
        while self.ranges.len() > MOST_GAPS {
            // The first gap is filled for good: what comes from it now has come twice, as far as anyone can tell.
            let Some((first, _)) = self.ranges.pop_first() else { break };
            if let Some((_, next_end)) = self.ranges.pop_first() {
                self.ranges.insert(first, next_end);
            }
        }
        fresh
    }
}

/// A run of a probe, or all single packets.
struct Run {
    name: String,
    run: u64,
    format: &'static str,
    /// Time up to which everything has come that is not late.
    watermark: u64,
    /// Latest time of a packet.
    newest: u64,
    /// When the message came that last moved the watermark.
    moved: Instant,
    /// Whether windows wait for it.
    active: bool,
    ended: bool,
    seen: Seen,
    /// Packets taken, and those that came twice.
    taken: u64,
    repeated: u64,
    /// Packets that another engine of the group has taken.
    elsewhere: u64,
    /// Accounts when this engine first heard of it, and the latest.
    baseline: Accounts,
    latest: Accounts,
    /// Packets known to be lost here, where they have no numbers.
    lost: u64,
    /// Messages that are none.
    refused: u64,
}

impl Run {
    fn new(name: String, run: u64, format: &'static str) -> Self {
        Self {
            name,
            run,
            format,
            watermark: 0,
            newest: 0,
            moved: Instant::now(),
            active: false,
            ended: false,
            seen: Seen::default(),
            taken: 0,
            repeated: 0,
            elsewhere: 0,
            baseline: Accounts::default(),
            latest: Accounts::default(),
            lost: 0,
            refused: 0,
        }
    }

    /// Takes the watermark of a message that came at this moment.
    fn hear(&mut self, watermark: u64, arrived: Instant) {
        if watermark > self.watermark {
            (self.watermark, self.moved, self.active) = (watermark, arrived, true);
        }
        self.active &= !self.ended;
    }

    /// Takes a probe's own accounts. They only grow, though batches may come again and in another order.
    fn account(&mut self, batch: &Batch) {
        self.latest = each(&self.latest, &batch.after, u64::max);
        if batch.packets > 0 {
            // An earlier batch than the first that was heard.
            self.baseline = each(&self.baseline, &batch.before, u64::min);
        }
    }

    fn report(&self) -> InputReport {
        let since = |of: fn(&Accounts) -> u64| of(&self.latest).saturating_sub(of(&self.baseline));
        let filtered = since(|accounts| accounts.filtered);
        let non_ip = since(|accounts| accounts.non_ip);
        let malformed = since(|accounts| accounts.malformed) + self.refused;
        let before = Counts {
            read: filtered + non_ip + malformed,
            filtered,
            non_ip,
            malformed,
            bytes_read: since(|accounts| accounts.uncounted_bytes),
            ..Counts::default()
        };
        let losses = Losses {
            interface: since(|accounts| accounts.interface_dropped),
            kernel: since(|accounts| accounts.kernel_dropped),
            probe: since(|accounts| accounts.dropped),
            bus: since(|accounts| accounts.sent).saturating_sub(self.taken.saturating_add(self.elsewhere))
                + self.lost,
        };
        InputReport {
            name: self.name.clone(),
            format: self.format.into(),
            packets: self.taken,
            before,
            losses: Some(losses),
            repeated: self.repeated,
            ..InputReport::default()
        }
    }
}

struct State {
    queue: VecDeque<Queued>,
    bytes: u64,
    /// The stream of single packets comes first.
    streams: Vec<Run>,
    /// Runs by their number, which several probes may have.
    runs: HashMap<u64, Vec<usize>>,
    /// Messages of the durable log that have been taken.
    logged: Seen,
    /// Packets taken that the other engines of the group have not been told of, by run.
    untold: BTreeMap<usize, Seen>,
    /// What other engines have taken of runs that are not known here yet.
    foreign: VecDeque<TakenRange>,
    /// Windows have been closed as by this watermark, the last of them at that moment.
    floor: u64,
    /// The first window that workers have been told is open, and when that was.
    open: u64,
    advanced: Instant,
    /// Since then, packets of closed windows have come.
    late: bool,
    /// A worker has found nothing and waits to be woken.
    waiting: bool,
    /// Nothing is put in any more, and why if nobody stopped it.
    ended: bool,
    failure: Option<String>,
}

/// Messages on their way to the workers.
pub struct Messages {
    rules: Rules,
    state: Mutex<State>,
    wakers: Wakers,
    /// There is room again.
    room: Notify,
    /// Where the bus hears what was taken.
    taken: UnboundedSender<Subject>,
    /// When this engine began to listen, nanoseconds since the Unix epoch.
    began: u64,
    stop: Box<dyn Fn() + Send + Sync>,
}

impl Messages {
    /// A queue without messages. `began` is when its subscriptions began, `stop` ends them; `taken` is told where to
    /// answer that a message was taken.
    pub fn new(
        rules: Rules,
        began: u64,
        taken: UnboundedSender<Subject>,
        stop: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let state = State {
            queue: VecDeque::new(),
            bytes: 0,
            streams: vec![Run::new(rules.single.clone(), 0, "nats-single")],
            runs: HashMap::new(),
            logged: Seen::default(),
            untold: BTreeMap::new(),
            foreign: VecDeque::new(),
            floor: 0,
            open: 0,
            advanced: Instant::now(),
            late: false,
            waiting: false,
            ended: false,
            failure: None,
        };
        let (state, wakers, room) = (Mutex::new(state), Wakers::default(), Notify::new());
        Self { rules, state, wakers, room, taken, began, stop }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message in; waits for room where the message will not go away, and while the engine is stopping.
    pub async fn put(&self, kind: Kind, arrival: Arrival, stopping: bool) {
        let (mut message, waits) = match arrival {
            Arrival::Passing(message) => (message, stopping),
            Arrival::Logged(message) => (message, true),
        };
        loop {
            let room = self.room.notified();
            message = match self.put_now(kind, message, waits) {
                None => return,
                Some(message) => message,
            };
            room.await;
        }
    }

    /// Puts a message in, or accounts for it as lost, or gives it back to wait with it.
    fn put_now(&self, kind: Kind, message: Incoming, waits: bool) -> Option<Incoming> {
        let size = message.payload.len() as u64 + OVERHEAD;
        let mut state = self.state();
        if !state.queue.is_empty() && state.bytes + size > self.rules.limit {
            if waits {
                return Some(message);
            }
            self.lose(&mut state, kind, message);
            return None;
        }
        state.bytes += size;
        state.queue.push_back(Queued { kind, message, arrived: Instant::now() });
        if std::mem::take(&mut state.waiting) {
            drop(state);
            self.wakers.wake();
        }
        None
    }

    /// Accounts for a message that there is no room for.
    fn lose(&self, state: &mut State, kind: Kind, message: Incoming) {
        match kind {
            Kind::Single => state.streams[0].lost += 1,
            Kind::Batch => drop(self.read(state, message.payload)),
        }
    }

    /// Reads a batch and takes its probe's accounts; gives the number of its run. What is none is counted.
    fn read(&self, state: &mut State, payload: Bytes) -> Option<(usize, Batch)> {
        let batch = Batch::read(payload).ok();
        let known = batch.and_then(|batch| Some((self.stream(state, &batch)?, batch)));
        match &known {
            Some((number, batch)) => state.streams[*number].account(batch),
            None => state.streams[0].refused += 1,
        }
        known
    }

    /// Single packets that were lost before they could be put in.
    pub fn lost_singles(&self, packets: u64) {
        self.state().streams[0].lost += packets;
    }

    /// Passes over a message that is not for us.
    pub fn pass(&self, message: &Incoming) {
        if let Some(reply) = &message.reply {
            // The bus is gone only when the engine is.
            let _ = self.taken.send(reply.clone());
        }
    }

    /// Why messages have ended, where nobody stopped them.
    pub fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    /// Messages have ended, and nobody stopped them.
    pub fn fail(&self, why: String) {
        self.state().failure.get_or_insert(why);
    }

    /// Nothing comes any more.
    pub fn end(&self) {
        self.state().ended = true;
        self.wakers.wake();
    }

    /// Looks at the clock: leaves silent probes behind, and moves single packets on that pause.
    pub fn tick(&self) {
        let mut state = self.state();
        let now = Instant::now();
        // What waits in the queue has come, though nobody has looked at it yet.
        let now = state.queue.front().map_or(now, |queued| queued.arrived);
        for stream in state.streams.iter_mut().filter(|stream| stream.active) {
            let quiet = now.saturating_duration_since(stream.moved);
            if quiet >= self.rules.silent_after {
                stream.active = false;
            } else if stream.format == "nats-single" && quiet >= self.rules.pause {
                let passed = u64::try_from(quiet.as_nanos()).unwrap_or(u64::MAX);
                stream.watermark = stream.newest.saturating_add(passed);
            }
        }
        if self.close(&mut state) {
            drop(state);
            self.wakers.wake();
        }
    }

    /// Moves the floor to the least watermark of those that windows wait for; whether a window was closed by that.
    fn close(&self, state: &mut State) -> bool {
        let Windowing::Every(length) = self.rules.windowing else { return false };
        let end_of = |window: u64| {
            let (_, end) = self.rules.windowing.span(window).unwrap_or_default();
            end.saturating_add(self.rules.lateness)
        };
        let least = state.awaited().map(|(_, stream)| stream.watermark).min();
        let newest = state.streams.iter().map(|stream| stream.newest).max().unwrap_or(0);
        // One that is a window behind will get here by itself; one whose clock is wrong will not.
        let near = state.floor.saturating_sub(length.saturating_add(self.rules.lateness));
        let catches_up = || state.streams.iter().any(|stream| stream.active && stream.watermark >= near);
        match least {
            Some(watermark) => state.floor = state.floor.max(watermark),
            None if newest == 0 || catches_up() => {}
            None => {
                // Nobody is left to wait for: close what was begun. Late packets after that are held in a window that
                // nobody goes on to fill: it is closed too, no faster than time goes.
                state.floor = state.floor.max(end_of(newest / length));
                let patience = self.rules.silent_after.max(Duration::from_nanos(length));
                if state.late && state.advanced.elapsed() >= patience {
                    state.floor = state.floor.max(end_of(state.open));
                }
            }
        }
        let open = self.first_open(state, length);
        let closed = open > state.open;
        if closed {
            (state.open, state.late, state.advanced) = (open, false, Instant::now());
        }
        closed
    }

    fn first_open(&self, state: &State, length: u64) -> u64 {
        state.floor.saturating_sub(self.rules.lateness) / length
    }

    /// Notices that packets from this time on were taken.
    fn notice_late(&self, state: &mut State, earliest: u64) {
        if let Windowing::Every(length) = self.rules.windowing {
            state.late |= earliest / length < self.first_open(state, length);
        }
    }

    /// The number of a batch's run, which may be new; `None` where there are too many to be true.
    fn stream(&self, state: &mut State, batch: &Batch) -> Option<usize> {
        if let Some(number) = state.known(&batch.probe, batch.run) {
            return Some(number);
        }
        if state.streams.len() >= MOST_RUNS {
            return None;
        }
        let mut stream = Run::new(batch.probe.clone(), batch.run, "nats-batch");
        if batch.started < self.began {
            // It was sending before we listened: what it sent then is not ours.
            stream.baseline = batch.before;
        }
        stream.latest = stream.baseline;
        let number = state.streams.len();
        state.runs.entry(batch.run).or_default().push(number);
        state.streams.push(stream);
        for range in std::mem::take(&mut state.foreign) {
            Self::take_elsewhere(state, range);
        }
        Some(number)
    }

    /// What was taken here since this was last asked, for the other engines of the group.
    pub fn tell(&self) -> Vec<TakenRange> {
        let mut state = self.state();
        let untold = std::mem::take(&mut state.untold);
        let ranges = untold.into_iter().flat_map(|(number, seen)| {
            let Run { name, run, .. } = &state.streams[number];
            let range = |(first, end)| TakenRange { probe: name.clone(), run: *run, first, end };
            seen.ranges.into_iter().map(range).collect::<Vec<_>>()
        });
        ranges.collect()
    }

    /// Another engine of the group has taken these.
    pub fn told(&self, ranges: Vec<TakenRange>) {
        let mut state = self.state();
        ranges.into_iter().for_each(|range| Self::take_elsewhere(&mut state, range));
    }

    fn take_elsewhere(state: &mut State, range: TakenRange) {
        if range.first >= range.end || range.end > MOST {
            return;
        }
        let Some(number) = state.known(&range.probe, range.run) else {
            state.foreign.push_back(range);
            if state.foreign.len() > MOST_GAPS {
                state.foreign.pop_front();
            }
            return;
        };
        let stream = &mut state.streams[number];
        stream.latest.sent = stream.latest.sent.max(range.end);
        let fresh = stream.seen.add(range.first.max(stream.baseline.sent), range.end);
        stream.elsewhere += fresh.iter().map(|range| range.end - range.start).sum::<u64>();
    }

    /// Packets that are missing so far.
    pub fn missing(&self) -> u64 {
        self.state().streams.iter().map(|stream| stream.report().losses.unwrap_or_default().bus).sum()
    }

    /// The next piece of work; a message that holds none is dealt with on the way.
    fn next(&self, state: &mut State) -> Option<(Piece, Position)> {
        loop {
            let Queued { kind, message, arrived } = self.pop(state)?;
            match kind {
                Kind::Single => return Some(self.singles(state, message, arrived)),
                Kind::Batch => {
                    if let Some(piece) = self.batch(state, message.payload, arrived) {
                        return Some(piece);
                    }
                }
            }
        }
    }

    /// Takes the next message out that has not been taken before.
    fn pop(&self, state: &mut State) -> Option<Queued> {
        loop {
            let queued = state.queue.pop_front()?;
            state.bytes -= queued.message.payload.len() as u64 + OVERHEAD;
            self.room.notify_waiters();
            self.pass(&queued.message);
            let seen = |number| state.logged.add(number, number + 1).is_empty();
            let again = queued.message.logged.is_some_and(seen) && queued.message.again;
            match queued.kind {
                _ if !again => return Some(queued),
                Kind::Single => state.streams[0].repeated += 1,
                // Counted by the numbers of its packets.
                Kind::Batch => return Some(queued),
            }
        }
    }

    fn singles(&self, state: &mut State, first: Incoming, mut arrived: Instant) -> (Piece, Position) {
        let position = state.position(0, 0);
        let mut packets = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match single::decode(message.payload) {
                Ok(packet) => packets.push(packet),
                Err(_) => state.streams[0].refused += 1,
            }
            next = match state.queue.front() {
                Some(Queued { kind: Kind::Single, .. }) if packets.len() < SINGLES => {
                    self.pop(state).map(|queued| {
                        arrived = queued.arrived;
                        queued.message
                    })
                }
                _ => None,
            };
        }
        let stream = &mut state.streams[0];
        if let Some(newest) = packets.iter().map(|packet| packet.time).max() {
            stream.newest = stream.newest.max(newest);
            stream.hear(newest, arrived);
            stream.taken += packets.len() as u64;
            let earliest = packets.iter().map(|packet| packet.time).min().unwrap_or(newest);
            self.notice_late(state, earliest);
        }
        (Piece::Singles(packets), position)
    }

    fn batch(&self, state: &mut State, payload: Bytes, arrived: Instant) -> Option<(Piece, Position)> {
        let (number, batch) = self.read(state, payload)?;
        let stream = &mut state.streams[number];
        let packets = u64::from(batch.packets);
        let fresh = stream.seen.add(batch.first_packet, batch.first_packet + packets);
        let new: u64 = fresh.iter().map(|range| range.end - range.start).sum();
        stream.repeated += packets - new;
        stream.taken += new;
        for range in &fresh {
            state.untold.entry(number).or_default().add(range.start, range.end);
        }
        // Its own first packets see the watermark of what came before them in their run, whatever was lost between.
        let position = state.position(number, if new > 0 { batch.watermark } else { 0 });
        let stream = &mut state.streams[number];
        if new > 0 || packets == 0 {
            stream.ended = batch.last;
            stream.hear(batch.latest, arrived);
        }
        if new > 0 {
            stream.newest = stream.newest.max(batch.latest);
            self.notice_late(state, batch.earliest());
        }
        (new > 0).then(|| (Piece::Batch { number, batch: Box::new(batch), fresh }, position))
    }
}

/// Puts two accounts together, count by count.
fn each(left: &Accounts, right: &Accounts, of: fn(u64, u64) -> u64) -> Accounts {
    Accounts {
        filtered: of(left.filtered, right.filtered),
        non_ip: of(left.non_ip, right.non_ip),
        malformed: of(left.malformed, right.malformed),
        uncounted_bytes: of(left.uncounted_bytes, right.uncounted_bytes),
        sent: of(left.sent, right.sent),
        dropped: of(left.dropped, right.dropped),
        kernel_dropped: of(left.kernel_dropped, right.kernel_dropped),
        interface_dropped: of(left.interface_dropped, right.interface_dropped),
        reconnects: of(left.reconnects, right.reconnects),
    }
}

impl State {
    /// The number of a probe's run.
    fn known(&self, probe: &str, run: u64) -> Option<usize> {
        let mut numbers = self.runs.get(&run).into_iter().flatten().copied();
        numbers.find(|number| self.streams[*number].name == probe)
    }

    /// The streams that windows wait for, with their numbers. One that has joined, or come back, behind what is closed
    /// is not waited for until it has caught up.
    fn awaited(&self) -> impl Iterator<Item = (usize, &Run)> {
        let floor = self.floor;
        let streams = self.streams.iter().enumerate();
        streams.filter(move |(_, stream)| stream.active && stream.watermark >= floor)
    }

    /// Where a stream stands before the next message of it, which has seen at least `before`. What is closed by that stays
    /// closed.
    fn position(&mut self, number: usize, before: u64) -> Position {
        let others = self.awaited().filter(|(other, _)| *other != number);
        let others = others.map(|(_, stream)| stream.watermark).min().unwrap_or(u64::MAX);
        let latest = self.streams[number].watermark.max(before);
        self.floor = self.floor.max(latest.min(others));
        Position { latest, others, floor: self.floor }
    }
}

/// What a worker decodes.
enum Piece {
    Singles(Vec<Packet>),
    /// Of a stream's batch, the packets of these numbers.
    Batch {
        number: usize,
        batch: Box<Batch>,
        fresh: Vec<Range<u64>>,
    },
}

impl Intake for Messages {
    fn reader(self: Arc<Self>, _worker: usize) -> Box<dyn Reader> {
        Box::new(MessageReader { messages: self, piece: None })
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

    fn reports(&self) -> Vec<InputReport> {
        self.state().streams.iter().map(Run::report).collect()
    }
}

struct MessageReader {
    messages: Arc<Messages>,
    piece: Option<Piece>,
}

impl Reader for MessageReader {
    fn take(&mut self) -> Result<(Taken, Position), String> {
        let messages = &self.messages;
        let mut state = messages.state();
        let taken = messages.next(&mut state);
        let closed = messages.close(&mut state);
        let answer = match taken {
            Some((piece, position)) => {
                self.piece = Some(piece);
                (Taken::Piece, position)
            }
            None => {
                let ended = state.ended;
                state.waiting = !ended;
                let floor = state.floor;
                let nowhere = Position { latest: floor, others: u64::MAX, floor };
                (if ended { Taken::End } else { Taken::Wait }, nowhere)
            }
        };
        drop(state);
        if closed {
            // Those that wait hold the window open.
            messages.wakers.wake();
        }
        Ok(answer)
    }

    fn decode(&mut self, into: &mut Placer) -> Result<(), String> {
        let mut counts = Counts::default();
        let mut place = |into: &mut Placer, packet: Packet| {
            into.observe(packet.time);
            counts.counted += 1;
            counts.bytes_counted += u64::from(packet.length);
            into.place(packet);
        };
        let input = match self.piece.take() {
            None => return Ok(()),
            Some(Piece::Singles(packets)) => {
                packets.into_iter().for_each(|packet| place(into, packet));
                0
            }
            Some(Piece::Batch { number, batch, fresh }) => {
                // Some of it may have come before, in a batch that began or ended elsewhere.
                let whole = fresh[..] == [batch.numbers()];
                let mut at = batch.first_packet;
                batch.visit(|item| match item {
                    Item::Packet(packet) => {
                        if whole || fresh.iter().any(|range| range.contains(&at)) {
                            place(into, packet);
                        }
                        at += 1;
                    }
                    Item::Raised(time) => into.observe(time),
                });
                number
            }
        };
        (counts.read, counts.bytes_read) = (counts.counted, counts.bytes_counted);
        into.finish(input, counts);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_number_is_seen_once() {
        let mut seen = Seen::default();
        assert_eq!(seen.add(0, 10), vec![0..10]);
        assert_eq!(seen.add(20, 30), vec![20..30]);
        assert_eq!(seen.add(10, 15), vec![10..15]);
        assert_eq!(seen.add(0, 10), vec![]);
        assert_eq!(seen.add(14, 16), vec![15..16]);
        assert_eq!(seen.add(25, 35), vec![30..35]);
        assert_eq!(seen.add(5, 40), vec![16..20, 35..40]);
        assert_eq!(seen.add(7, 7), vec![]);
        assert_eq!(seen.ranges, BTreeMap::from([(0, 40)]));
    }

    #[test]
    fn the_gaps_that_are_remembered_are_bounded() {
        let mut seen = Seen::default();
        assert!((0..2 * MOST_GAPS as u64).all(|number| !seen.add(number * 2, number * 2 + 1).is_empty()));
        assert_eq!(seen.ranges.len(), MOST_GAPS);
        assert_eq!(seen.add(1, 2), [], "an early gap stays lost");
        let last = 4 * MOST_GAPS as u64 - 3;
        assert_eq!(seen.add(last, last + 1), vec![last..last + 1]);
    }

    proptest! {
        #[test]
        fn what_is_fresh_is_what_a_set_of_numbers_did_not_hold(
            ranges in proptest::collection::vec((0u64..60, 0u64..20), 0..40),
        ) {
            let (mut seen, mut naive) = (Seen::default(), BTreeSet::new());
            for (start, length) in ranges {
                let fresh: Vec<u64> = seen.add(start, start + length).into_iter().flatten().collect();
                let expected: Vec<u64> = (start..start + length).filter(|number| naive.insert(*number)).collect();
                prop_assert_eq!(fresh, expected);
            }
        }
    }
}
