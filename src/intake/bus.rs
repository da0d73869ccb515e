//! Messages over core NATS: kept in order and in bounds, handed to the workers, and every gap accounted for.
//!
//! A task puts messages into a queue; a worker takes the next, under a lock that covers reading the message's header and
//! moving its probe's accounts and watermark, and decodes it outside. (Single packets are decoded under it: their times
//! are the watermark, and their order is all they have.)
//!
//! What is lost is known by number: a probe numbers its packets, and what it has sent less what came is lost. A message
//! that comes twice counts once.

use super::books::{Books, Rules, Seen, Waiting};
use super::claims::Claims;
use super::skew::Skews;
use super::unsent::Unsent;
use super::{Intake, Placer, Position, Reader, Taken, Wakers};
use crate::account::{Found, InputKey};
use crate::bus::subscribe::{Incoming, Kind};
use crate::capture::live;
use crate::wire::batch::{Batch, Item};
use crate::wire::single;
use crate::wire::v1::TakenRange;
use async_nats::Subject;
use bytes::Bytes;
use dataflows::field::WORDS;
use dataflows::packet::Packet;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use timely::scheduling::SyncActivator;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// Single packets that a worker takes at once.
pub const SINGLES: usize = 512;
/// Bytes that a queued message takes beside its payload, roughly.
pub const OVERHEAD: u64 = 160;

struct Queued {
    kind: Kind,
    message: Incoming,
    arrived: Instant,
}

struct State {
    queue: VecDeque<Queued>,
    bytes: u64,
    books: Books,
    /// Packets taken that the other engines of the group have not been told of, by run.
    untold: BTreeMap<(u64, String), Seen>,
    /// What other engines say that they have taken, of what the probe is not known here to have sent yet.
    claims: Claims,
    /// A worker has found nothing and waits to be woken.
    waiting: bool,
    /// Nothing is put in any more, and why if nobody stopped it.
    ended: bool,
    failure: Option<String>,
}

/// Messages on their way to the workers.
pub struct Messages {
    limit: u64,
    /// The subject of single packets.
    single: String,
    state: Mutex<State>,
    skews: Skews,
    unsent: Unsent,
    wakers: Wakers,
    /// There is room again.
    room: Notify,
    /// Where the bus hears what was taken.
    taken: UnboundedSender<Subject>,
    stop: Box<dyn Fn() + Send + Sync>,
}

impl Messages {
    /// A queue without messages. `stop` ends its subscriptions; `taken` is told where to answer that a message was taken.
    pub fn new(rules: Rules, taken: UnboundedSender<Subject>, stop: Box<dyn Fn() + Send + Sync>) -> Self {
        let (limit, single) = (rules.limit, rules.single.clone());
        let state = State {
            queue: VecDeque::new(),
            bytes: 0,
            books: Books::new(rules, 1),
            untold: BTreeMap::new(),
            claims: Claims::default(),
            waiting: false,
            ended: false,
            failure: None,
        };
        let (state, wakers, room) = (Mutex::new(state), Wakers::default(), Notify::new());
        let (skews, unsent) = (Skews::default(), Unsent::default());
        Self { limit, single, state, skews, unsent, wakers, room, taken, stop }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a message in; waits for room while the engine is stopping.
    pub async fn put(&self, kind: Kind, mut message: Incoming, stopping: bool) {
        loop {
            let room = self.room.notified();
            message = match self.put_now(kind, message, stopping) {
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
        if !state.queue.is_empty() && state.bytes + size > self.limit {
            if waits {
                return Some(message);
            }
            match kind {
                Kind::Single => state.books.singles().lost += 1,
                Kind::Batch => {
                    if let Some((number, _)) = state.read(message.payload) {
                        state.heed_claims(number);
                    }
                }
            }
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

    /// Single packets that were lost before they could be put in.
    pub fn lost_singles(&self, packets: u64) {
        self.state().books.singles().lost += packets;
    }

    /// Answers that a message was taken.
    fn answer(&self, message: &Incoming) {
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

    /// Waits until all that was put in has been taken.
    pub async fn drained(&self) {
        loop {
            let taken = self.room.notified();
            if self.state().queue.is_empty() {
                return;
            }
            taken.await;
        }
    }

    /// Nothing comes any more.
    pub fn end(&self) {
        self.state().ended = true;
        self.wakers.wake();
    }

    /// Looks at the clock.
    pub fn tick(&self) {
        let mut state = self.state();
        // What waits in the queue has come, though nobody has looked at it yet.
        let waiting = state.queue.front().map(|queued| queued.arrived);
        state.books.tick(Instant::now(), &Waiting { singles: waiting, parts: vec![waiting] });
        if state.close() {
            drop(state);
            self.wakers.wake();
        }
    }

    /// What was taken here since this was last asked, for the other engines of the group.
    pub fn tell(&self) -> Vec<TakenRange> {
        let untold = std::mem::take(&mut self.state().untold);
        let ranges = untold.into_iter().flat_map(|((run, probe), seen)| {
            let range = |(first, end)| TakenRange { probe: probe.clone(), run, first, end };
            seen.ranges.into_iter().map(range).collect::<Vec<_>>()
        });
        ranges.collect()
    }

    /// Another engine of the group says that it has taken these.
    pub fn told(&self, ranges: Vec<TakenRange>) {
        let mut state = self.state();
        for range in ranges {
            let known = state.books.find(&range.probe, range.run);
            if let (true, Some(number)) = (state.claims.add(range), known) {
                state.heed_claims(number);
            }
        }
    }

    /// Packets that are missing so far.
    pub fn missing(&self) -> u64 {
        self.state().books.missing()
    }

    /// The next piece of work; a message that holds none is dealt with on the way.
    fn next(&self, state: &mut State) -> Option<(Piece, Position)> {
        loop {
            let Queued { kind, message, arrived } = self.pop(state)?;
            match kind {
                Kind::Single => return Some(self.singles(state, message, arrived)),
                Kind::Batch => {
                    if let Some(piece) = self.batch(state, message, arrived) {
                        return Some(piece);
                    }
                }
            }
        }
    }

    fn pop(&self, state: &mut State) -> Option<Queued> {
        let queued = state.queue.pop_front()?;
        state.bytes -= queued.message.payload.len() as u64 + OVERHEAD;
        self.room.notify_waiters();
        self.answer(&queued.message);
        Some(queued)
    }

    fn singles(&self, state: &mut State, first: Incoming, mut arrived: Instant) -> (Piece, Position) {
        let position = state.position(0, 0);
        let now = live::now();
        let mut packets = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match single::decode(message.payload) {
                Ok(packet) => {
                    let books = state.books.singles();
                    let is_stray = books.is_stray(packet.time, now.max(books.watermark));
                    packets.push((packet, is_stray));
                }
                Err(_) => state.books.singles().refused += 1,
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
        let times = packets.iter().filter(|(_, is_stray)| !is_stray).map(|(packet, _)| packet.time);
        if let (Some(earliest), Some(newest)) = (times.clone().min(), times.max()) {
            self.skews.hear_of(&state.books.rules.single, newest, now);
            state.books.hear(0, 0, newest, false, arrived);
            state.books.note(0, 0, earliest, newest);
        }
        state.books.singles().taken += packets.len() as u64;
        (Piece::Singles(packets), position)
    }

    fn batch(&self, state: &mut State, message: Incoming, arrived: Instant) -> Option<(Piece, Position)> {
        let sent_again = message.is_sent_again();
        let (number, batch) = state.read(message.payload)?;
        self.skews.hear(&batch, live::now());
        if sent_again {
            // Another engine may have taken it when it was sent first.
            state.heed_claims(number);
        }
        let fresh = state.books.part(number, 0).fresh_packets_of(&batch);
        // Else the server has given it to us alone: nobody could know of its packets before.
        state.heed_claims(number);
        if !fresh.is_empty() {
            let untold = state.untold.entry((batch.run, batch.probe.clone())).or_default();
            fresh.iter().for_each(|range| drop(untold.add(range.start, range.end)));
        }
        // Its own first packets see the watermark of what came before them in their run, whatever was lost between.
        let position = state.position(number, if fresh.is_empty() { 0 } else { batch.watermark });
        if !fresh.is_empty() || batch.packets == 0 {
            state.books.hear(number, 0, batch.latest, batch.last, arrived);
        }
        if fresh.is_empty() {
            return None;
        }
        state.books.note(number, 0, batch.earliest(), batch.latest);
        Some((Piece::Batch { number, batch: Box::new(batch), fresh }, position))
    }
}

impl State {
    /// Where a run stands before the next message of it, which has seen at least `before`. What is closed by that stays
    /// closed.
    fn position(&mut self, number: usize, before: u64) -> Position {
        let others = self.books.others(number);
        let latest = self.books.part(number, 0).watermark.max(before);
        self.books.floor = self.books.floor.max(latest.min(others));
        Position { latest, others, floor: self.books.floor, hold: self.books.floor }
    }

    fn close(&mut self) -> bool {
        let closed = self.books.close();
        // All workers have these books: there is nobody to tell. No commit records where they stand.
        self.books.notices.clear();
        self.books.leave(0, u64::MAX);
        closed
    }

    /// Reads a batch and takes its probe's accounts; gives the number of its run. What is none is counted.
    fn read(&mut self, payload: Bytes) -> Option<(usize, Batch)> {
        let batch = Batch::read(payload).ok();
        let known = batch.and_then(|batch| Some((self.books.run_of(&batch, 0)?, batch)));
        if known.is_none() {
            self.books.singles().refused += 1;
        }
        known
    }

    /// Takes what other engines say of a run, as far as its probe is known to have sent it.
    fn heed_claims(&mut self, number: usize) {
        let books = self.books.part(number, 0);
        let ranges = self.claims.take(&books.name, books.run, books.sent());
        ranges.into_iter().for_each(|range| books.take_elsewhere(range));
    }
}

/// What a worker decodes.
enum Piece {
    /// Each with whether it is dated ahead by mistake.
    Singles(Vec<(Packet, bool)>),
    /// Of a run's batch, the packets of these numbers.
    Batch { number: usize, batch: Box<Batch>, fresh: Vec<Range<u64>> },
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

    fn skews(&self) -> Vec<(String, i64)> {
        self.skews.all()
    }

    fn remarks(&self) -> Vec<String> {
        self.unsent.remarks()
    }

    fn found(&self) -> Vec<(InputKey, Found)> {
        let state = self.state();
        let (books, retired) = state.books.found();
        let books = books.map(|books| (books.key(), Found::Run(books.clone())));
        books.chain([(InputKey::default(), Found::Retired(retired))]).collect()
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
        let closed = state.close();
        let answer = match taken {
            Some((piece, position)) => {
                self.piece = Some(piece);
                (Taken::Piece, position)
            }
            None => {
                let ended = state.ended;
                state.waiting = !ended;
                (if ended { Taken::End } else { Taken::Wait }, Position::nowhere(state.books.floor))
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
        let input = match self.piece.take() {
            None => return Ok(()),
            Some(Piece::Singles(packets)) => {
                self.messages.unsent.hear_singles(&self.messages.single, into.extension());
                for (packet, is_stray) in packets {
                    if is_stray {
                        into.place_stray(packet, [0; WORDS]);
                    } else {
                        into.observe(packet.time);
                        into.place_known(packet, || [0; WORDS]);
                    }
                }
                0
            }
            Some(Piece::Batch { number, batch, fresh }) => {
                // Some of it may have come before, in a batch that began or ended elsewhere.
                let whole = fresh[..] == [batch.numbers()];
                let asked = self.messages.unsent.find(&batch, into.extension());
                let words = |number: u64| asked.words((number - batch.first_packet) as usize);
                let mut at = batch.first_packet;
                batch.visit(|item| match item {
                    Item::Packet(packet) => {
                        if whole || fresh.iter().any(|range| range.contains(&at)) {
                            into.observe(packet.time);
                            into.place_known(packet, || words(at));
                        }
                        at += 1;
                    }
                    Item::Stray(packet) => {
                        if whole || fresh.iter().any(|range| range.contains(&at)) {
                            into.place_stray(packet, words(at));
                        }
                        at += 1;
                    }
                    Item::Raised(time) => into.observe(time),
                });
                number
            }
        };
        into.finish(input, None);
        Ok(())
    }

    fn key(&self, input: usize) -> InputKey {
        self.messages.state().books.key(input)
    }

    fn retired(&mut self) -> Vec<InputKey> {
        self.messages.state().books.left()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Account, Accounts};
    use crate::ledger::{Counts, InputReport};
    use crate::wire::batch::{BatchBuilder, Header};
    use crate::wire::v1;
    use dataflows::packet::{Address, Transport};
    use dataflows::window::Windowing;
    use tokio::sync::mpsc::unbounded_channel;

    /// A run of two packets, whole, as a message.
    fn short_run(run: u64) -> Incoming {
        let mut builder = BatchBuilder::new(50);
        let (source, destination) = (Address::v4(1), Address::v4(2));
        for _ in 0..2 {
            let transport = Transport::new(1, 1, 6, 0, 0, 4);
            builder.push(&Packet { time: 50, transport, source, destination, length: 60 }, 50);
        }
        let after = v1::Accounts { sent: 2, filtered: 3, ..v1::Accounts::default() };
        let header = Header {
            probe: "job".into(),
            run,
            watermark: 50,
            latest: 50,
            after,
            last: true,
            ..Header::default()
        };
        Incoming { subject: "s".into(), payload: builder.finish(header).to_vec().into(), reply: None }
    }

    /// Reads all messages, as a worker and the committer do.
    fn read_all(messages: &Arc<Messages>, placer: &mut Placer, accounts: &mut Accounts) {
        let mut reader = messages.clone().reader(0);
        while let (Taken::Piece, position) = reader.take().expect("taken") {
            placer.seek(position);
            reader.decode(placer).expect("decoded");
            placer.batches.clear();
            let counts = std::mem::take(&mut placer.counts).into_iter();
            let counts = counts.map(|((_, input), counts)| (reader.key(input), counts)).collect();
            accounts.add(Account { counts, retired: reader.retired(), ..Account::default() });
        }
    }

    #[test]
    fn thousands_of_runs_leave_few_lines_and_come_again_as_repeated() {
        let (done, _replies) = unbounded_channel();
        let messages = Arc::new(Messages::new(Rules::trial(100), done, Box::new(|| {})));
        let mut placer = Placer::new(Windowing::Every(100), 0, 0);
        let mut accounts = Accounts::default();
        let mut ledger = |runs: Range<u64>| {
            for run in runs {
                assert!(messages.put_now(Kind::Batch, short_run(run), true).is_none(), "there is room");
                read_all(&messages, &mut placer, &mut accounts);
            }
            let mut all = accounts.clone();
            all.add(Account { found: messages.found(), ..Account::default() });
            assert!(all.counts.len() < 20, "{} accounts", all.counts.len());
            let inputs = all.inputs();
            assert!(inputs.len() < 20, "{} lines", inputs.len());
            let of = |of: &dyn Fn(&(InputReport, Counts)) -> u64| inputs.iter().map(of).sum::<u64>();
            assert!(inputs.iter().all(|(report, counts)| report.packets == counts.counted), "{inputs:?}");
            [
                of(&|(_, counts)| counts.counted),
                of(&|(report, _)| report.before.filtered),
                of(&|(report, _)| report.repeated),
            ]
        };
        assert_eq!(ledger(0..2000), [4000, 6000, 0]);
        assert_eq!(ledger(0..1000), [4000, 6000, 2000]);
        assert_eq!(messages.missing(), 0);
        assert_eq!(messages.tell().len(), 2000);
    }
}
