//! What feeds the workers: each kind of input gives them pieces of work and decodes them into windows.
//!
//! [`frames`] takes chunks of frames, from files or from an interface; [`bus`] takes the messages that [`listen`] gets
//! from NATS, and [`log`] those of the durable log; [`books`] keeps account of both, [`claims`] of what other engines say
//! that they have taken, [`retired`] keeps earlier runs of probes, [`skew`] watches clocks, and [`unsent`] names probes that do
//! not send what tasks ask for. Each piece comes with the watermark that holds before it, and all put what they decode into windows by the same [`Placer`]: so which window
//! closes when, and which packet is late, is one rule. Which kinds of input an engine can be told of is in the [`registry`].

// A kind of input that is in no list does not compile.
#![deny(dead_code)]

pub mod books;
pub mod bus;
pub mod claims;
pub mod frames;
pub mod interface;
pub mod listen;
pub mod log;
pub mod nats;
pub mod registry;
pub mod retired;
pub mod skew;
pub mod unsent;

use crate::account::{Found, InputKey, Noticed};
use crate::capture::Gap;
use crate::intake::log::LogPosition;
use crate::ledger::Counts;
use dataflows::field::{Extension, WORDS};
use dataflows::groups::Observations;
use dataflows::layers::Text;
use dataflows::measure::{Weight, WrongWeight};
use dataflows::packet::Packet;
use dataflows::window::{Epoch, Watermark, Windowing};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use timely::scheduling::SyncActivator;

/// Packets in one batch: a few dozen kilobytes, so that it is folded while it is still in the nearest cache.
const BATCH: usize = 512;
/// Windows before the last one of a gap that are said to lack its packets.
const MAX_GAP: u64 = 1 << 10;

/// Where a stream of packets stands before a piece of it, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Latest time that the piece's own stream has shown.
    pub latest: u64,
    /// Least watermark of all other streams; `u64::MAX` without any.
    pub others: u64,
    /// What windows have been closed by already, although a stream has joined since that is behind it.
    pub floor: u64,
    /// The watermark before which the reader hands out nothing any more but what comes late: it may be behind the piece's
    /// own.
    pub hold: u64,
}

impl Position {
    /// That of no piece, where windows have been closed by this watermark.
    pub fn nowhere(floor: u64) -> Self {
        Self { latest: floor, others: u64::MAX, floor, hold: floor }
    }
}

/// What a worker tells all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notice {
    /// End the inputs.
    Stop,
    /// Single packets, which one worker alone reads, have come up to this watermark.
    Singles(u64),
    /// There is nobody left to wait for, and windows were closed as by this watermark.
    Alone {
        /// The watermark, in nanoseconds since the Unix epoch.
        floor: u64,
        /// Names and numbers of the runs heard of since runs were last told: others may have yet to hear them.
        runs: Vec<(String, u64)>,
    },
    /// These runs were heard of: there are too many to keep them until there is nobody left to wait for.
    Heard {
        /// Their names and numbers.
        runs: Vec<(String, u64)>,
    },
}

/// What a worker got when it asked for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A piece to decode.
    Piece,
    /// Nothing now; registered operators are activated when there is something.
    Wait,
    /// Nothing any more.
    End,
}

/// An input of any kind, shared by all workers of a process.
pub trait Intake: Send + Sync {
    /// A worker's own end of it.
    fn reader(self: Arc<Self>, worker: usize) -> Box<dyn Reader>;

    /// Has a worker's operator activated whenever there may be work after there was none.
    fn register(&self, activator: SyncActivator);

    /// Ends the input: what has been received is still handed out. Then activates all registered operators.
    fn stop(&self);

    /// Activates all registered operators.
    fn wake(&self);

    /// How far the clocks of probes are from ours, by their names: nanoseconds, positive where they are ahead.
    fn skews(&self) -> Vec<(String, i64)> {
        Vec::new()
    }

    /// What else is to be said of its probes while it runs.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// At the end: what was found in each input, but for what [`Reader::leave`] tells.
    fn found(&self) -> Vec<(InputKey, Found)>;
}

/// A worker's end of an input.
pub trait Reader {
    /// Takes the next piece. Wherever it stands, no packet handed out from now on comes from before the position but
    /// late ones.
    fn take(&mut self) -> Result<(Taken, Position), String>;

    /// Decodes the piece that was taken last.
    fn decode(&mut self, into: &mut Placer) -> Result<(), String>;

    /// At the end of the input, the watermark up to which it was read where a signal has ended it before its own end.
    fn cut(&self) -> Option<u64> {
        None
    }

    /// Names an input in all processes by its number in what was decoded.
    fn key(&self, input: usize) -> InputKey;

    /// Where the durable log stands since this was last asked, each from an epoch on that this reader had not left then.
    /// At the end of the input, where it stands for good.
    fn leave(&mut self, _end: bool) -> Vec<LogPosition> {
        Vec::new()
    }

    /// All epochs before this one are written for good; all of them without one.
    fn written(&mut self, _before: Option<Epoch>) {}

    /// What all other workers are to be told.
    fn notices(&mut self) -> Vec<Notice> {
        Vec::new()
    }

    /// Runs of probes whose accounting [`Intake::found`] will have summed up, since this was last asked.
    fn retired(&mut self) -> Vec<InputKey> {
        Vec::new()
    }

    /// Another worker has told this.
    fn heed(&mut self, _notice: Notice) {}
}

/// The operators that wait for an input.
#[derive(Clone, Default)]
pub struct Wakers(Arc<Mutex<Vec<SyncActivator>>>);

impl Wakers {
    /// One more.
    pub fn add(&self, activator: SyncActivator) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(activator);
    }

    /// Activates them all.
    pub fn wake(&self) {
        for waker in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // The worker has gone when the run is over; then there is nobody to wake.
            let _ = waker.activate();
        }
    }
}

/// Packets of a piece that go the same way.
struct Place {
    epoch: Epoch,
    window: Epoch,
    packets: Vec<Packet>,
    /// Of each of them, where any are asked for.
    extra: Vec<u64>,
    /// Of the first so many, where they are not packets.
    weights: Vec<Weight>,
    /// Packets that have gone on in full batches, and the bytes of all.
    gone: u64,
    bytes: u64,
}

impl Place {
    /// What has gathered, as a batch.
    fn batch(&mut self, extension: &Extension) -> Observations {
        let room = if self.packets.len() == BATCH { BATCH } else { 0 };
        let packets = std::mem::replace(&mut self.packets, Vec::with_capacity(room));
        let (extra, weights) = (std::mem::take(&mut self.extra), std::mem::take(&mut self.weights));
        Observations {
            window: self.window,
            packets: Arc::new(packets),
            extra: Arc::new(extra),
            extra_words: extension.used(),
            weights: Arc::new(weights),
        }
    }
}

/// Puts decoded packets into batches by window, and keeps the accounts of the input that they come from.
pub struct Placer {
    /// The extra fields that are read of each frame.
    extension: Extension,
    /// Long texts that were told.
    texts: usize,
    windowing: Windowing,
    lateness: u64,
    /// The first epoch that is not written by an earlier run.
    first: Epoch,
    watermark: Watermark,
    /// Accounts of the pieces decoded since they were last taken, by epoch and number of input.
    pub counts: BTreeMap<(Epoch, usize), Counts>,
    /// What was noticed in frames, by number of input.
    pub noticed: BTreeMap<usize, Noticed>,
    open: Vec<Place>,
    /// Where in `open` an epoch's window is.
    places: BTreeMap<(Epoch, Epoch), usize>,
    /// Windows in which packets may have been that were lost, and how many at most.
    pub lost: BTreeMap<Epoch, u64>,
    /// Full batches with their epochs.
    pub batches: Vec<(Epoch, Observations)>,
    /// Epochs with the windows that their packets are for.
    pub touched: BTreeSet<(Epoch, Epoch)>,
    /// The times that go where the last packet went, and where that is.
    current: std::ops::Range<u64>,
    place: usize,
    closed: Epoch,
    /// `closed` where the piece began.
    began: Epoch,
    /// No window from this one on is closed.
    ceiling: Epoch,
}

impl Placer {
    /// A placer into windows that stay open for `lateness` nanoseconds behind the watermark; epochs before `first` are
    /// closed from the beginning.
    pub fn new(windowing: Windowing, lateness: u64, first: Epoch) -> Self {
        Self {
            extension: Extension::default(),
            texts: 0,
            windowing,
            lateness,
            first,
            watermark: Watermark::new(windowing, lateness, 0, 0),
            counts: BTreeMap::new(),
            noticed: BTreeMap::new(),
            open: Vec::new(),
            places: BTreeMap::new(),
            lost: BTreeMap::new(),
            batches: Vec::new(),
            touched: BTreeSet::new(),
            current: 0..0,
            place: 0,
            closed: first,
            began: first,
            ceiling: Epoch::MAX,
        }
    }

    /// The same, which wants these fields of each frame too.
    pub fn with_extension(self, extension: Extension) -> Self {
        Self { extension, ..self }
    }

    /// The extra fields that are wanted of each frame: with any, each packet is placed with its extension words.
    pub fn extension(&self) -> &Extension {
        &self.extension
    }

    /// Long texts that this process has met since this was last asked.
    pub fn new_texts(&mut self) -> Vec<Arc<str>> {
        let texts = Text::met_after(self.texts);
        self.texts += texts.len();
        texts
    }

    /// Goes to where a piece begins; gives the first epoch that its reader may still hand out.
    pub fn seek(&mut self, position: Position) -> Epoch {
        let Position { latest, others, floor, hold } = position;
        self.watermark = Watermark::new(self.windowing, self.lateness, latest, others).not_before(floor);
        self.closed = self.watermark.first_open().max(self.first);
        self.began = self.closed;
        self.ceiling = Epoch::MAX;
        self.current = 0..0;
        Watermark::new(self.windowing, self.lateness, hold, u64::MAX).first_open().max(self.first)
    }

    /// Closes no window from the first new one on until released: where an earlier run has closed none of them either.
    pub fn restrain(&mut self) {
        self.ceiling = self.first;
        (self.closed, self.began) = (self.first, self.first);
    }

    /// Closes windows again, by all that was observed.
    pub fn release(&mut self) {
        if std::mem::replace(&mut self.ceiling, Epoch::MAX) < Epoch::MAX {
            self.closed = self.watermark.first_open().max(self.first);
            self.current = 0..0;
        }
    }

    /// Notes that packets were lost. Where between two times is not known, so each window that has a part of the gap is
    /// said to lack them.
    pub fn lose(&mut self, gap: Gap) {
        let Gap { from, to, packets } = gap;
        let last = self.windowing.index(to.max(from));
        let first = self.windowing.index(from).max(last.saturating_sub(MAX_GAP));
        for window in first..=last {
            *self.lost.entry(window).or_default() += packets;
        }
    }

    /// How event time is cut.
    pub fn windowing(&self) -> Windowing {
        self.windowing
    }

    /// Nanoseconds that a window stays open behind the watermark.
    pub fn lateness(&self) -> u64 {
        self.lateness
    }

    /// The first window that is open where the decoding has come.
    #[inline(always)]
    pub fn closed(&self) -> Epoch {
        self.closed
    }

    /// The highest epoch that a packet of this piece goes out in.
    pub fn highest(&self) -> Option<Epoch> {
        self.open.iter().map(|place| place.epoch).max()
    }

    /// Moves the watermark by the time of the next frame, counted or not.
    #[inline(always)]
    pub fn observe(&mut self, time: u64) {
        let closed = self.watermark.observe(time).min(self.ceiling);
        if closed > self.closed {
            self.closed = closed;
            self.current = 0..0;
        }
    }

    /// Puts a packet into its window. Its time was observed just before.
    #[inline(always)]
    pub fn place(&mut self, packet: Packet) {
        if !self.current.contains(&packet.time) {
            self.find_place(packet.time);
        }
        self.put(packet);
    }

    #[inline(always)]
    fn put(&mut self, packet: Packet) {
        self.put_of(packet, packet.length.into());
    }

    #[inline(always)]
    fn put_of(&mut self, packet: Packet, bytes: u64) {
        if let Some(place) = self.open.get_mut(self.place) {
            place.bytes += bytes;
            place.packets.push(packet);
            if place.packets.len() == BATCH {
                place.gone += BATCH as u64;
                self.batches.push((place.epoch, place.batch(&self.extension)));
            }
        }
    }

    /// Puts a packet with its extension words into its window. Its time was observed just before.
    #[inline]
    pub fn place_with(&mut self, packet: Packet, extra: [u64; WORDS]) {
        if !self.current.contains(&packet.time) {
            self.find_place(packet.time);
        }
        self.keep(&extra);
        self.put(packet);
    }

    /// Keeps the extension words of what is put next; none where none are wanted.
    #[inline(always)]
    fn keep(&mut self, extra: &[u64; WORDS]) {
        if let Some(place) = self.open.get_mut(self.place) {
            self.extension.push(extra, &mut place.extra);
        }
    }

    /// Puts a packet with its extension words, where any are wanted, into its window. Its time was observed just before.
    #[inline(always)]
    pub fn place_known(&mut self, packet: Packet, extra: impl FnOnce() -> [u64; WORDS]) {
        if self.extension.is_empty() { self.place(packet) } else { self.place_with(packet, extra()) }
    }

    /// Puts an observation of many packets, which share these fields, into the window of the first of them; time and length
    /// of the fields do not matter. A last packet in a later window is counted there too, with the first: who knows better
    /// divides the observation. The extension words are those of all packets together.
    ///
    /// The time of the first packet was observed just before, and not that of the last: others that begin between the two
    /// may still come, and are not late. So a stream ordered by first packets has no late ones; one ordered by last packets
    /// needs an `allowed_lateness` of the longest time between the two.
    pub fn place_weighted(
        &mut self,
        fields: Packet,
        weight: Weight,
        extra: [u64; WORDS],
    ) -> Result<(), WrongWeight> {
        weight.check()?;
        self.find_place(weight.first);
        if let Some(place) = self.open.get_mut(self.place) {
            place.gone += weight.packets - 1;
            // Those before it in the batch may be packets.
            let before = place.packets.get(place.weights.len()..).unwrap_or_default();
            place.weights.extend(before.iter().map(Weight::of));
            place.weights.push(weight);
        }
        self.keep(&extra);
        self.put_of(Packet { time: weight.first, length: 0, ..fields }, weight.bytes);
        self.current = 0..0;
        Ok(())
    }

    /// Puts a packet that is dated ahead by mistake into its window, which goes out with the first one that is open: a
    /// packet of a window that may never come holds nothing open.
    #[cold]
    pub fn place_stray(&mut self, packet: Packet, extra: [u64; WORDS]) {
        let window = self.windowing.index(packet.time);
        self.find(self.closed, window);
        self.keep(&extra);
        self.put(packet);
        self.current = 0..0;
    }

    #[cold]
    fn find_place(&mut self, time: u64) {
        let window = self.windowing.index(time);
        let epoch = window.max(self.closed);
        self.find(epoch, window);
        let (start, end) = self.windowing.span(window).unwrap_or((0, u64::MAX));
        self.current = if window < epoch { 0..0 } else { start..end };
    }

    fn find(&mut self, epoch: Epoch, window: Epoch) {
        self.place = *self.places.entry((epoch, window)).or_insert_with(|| {
            self.touched.insert((epoch, window));
            let (packets, extra, weights) = (Vec::new(), Vec::new(), Vec::new());
            self.open.push(Place { epoch, window, packets, extra, weights, gone: 0, bytes: 0 });
            self.open.len() - 1
        });
    }

    /// Ends a piece of an input: adds its accounts and makes batches of what is left. `read` has all packets of the piece and
    /// their bytes, and how many of them are not counted and why; what was counted is known here. Without it, what was placed
    /// is all that there was. An observation of many packets is that many.
    pub fn finish(&mut self, input: usize, read: Option<Counts>) {
        self.places.clear();
        self.current = 0..0;
        let all = read.is_none();
        if let Some(read) = read {
            *self.counts.entry((self.began, input)).or_default() += read;
        }
        for mut place in self.open.drain(..) {
            let Place { epoch, window, gone, bytes, .. } = place;
            let counted = gone + place.packets.len() as u64;
            let late = if window < epoch { counted } else { 0 };
            let mut counts = Counts { counted, bytes_counted: bytes, late, ..Counts::default() };
            if all {
                (counts.read, counts.bytes_read) = (counted, bytes);
            }
            *self.counts.entry((epoch, input)).or_default() += counts;
            if !place.packets.is_empty() {
                self.batches.push((epoch, place.batch(&self.extension)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;

    /// A placer into windows of ten seconds that close at once, where a stream has come to this second.
    fn placer(second: u64) -> Placer {
        let windowing = Windowing::every(Duration::from_secs(10)).expect("a window");
        let mut placer = Placer::new(windowing, 0, 0);
        placer.seek(Position { latest: second * SECOND, others: u64::MAX, floor: 0, hold: 0 });
        placer
    }

    fn weight(packets: u64, bytes: u64, seconds: [u64; 2]) -> Weight {
        let [first, last] = seconds.map(|second| second * SECOND);
        Weight { packets, bytes, first, last }
    }

    /// Places it as an input does.
    fn place(placer: &mut Placer, weight: Weight) {
        placer.observe(weight.first);
        let fields = Packet { length: 1500, ..Packet::default() };
        placer.place_weighted(fields, weight, [0; WORDS]).expect("a weight");
    }

    /// What is accounted for, over all epochs.
    fn counts(placer: &Placer) -> Counts {
        let mut all = Counts::default();
        placer.counts.values().for_each(|counts| all += *counts);
        all
    }

    #[test]
    fn an_observation_is_accounted_for_by_its_packets_and_bytes() {
        let observations = [weight(10, 400, [1, 2]), weight(1, 7, [1, 1]), weight(1000, 64_000, [3, 9])];
        for malformed in [None, Some(2)] {
            let mut placer = placer(0);
            observations.iter().for_each(|weight| place(&mut placer, *weight));
            let read = malformed.map(|malformed| Counts {
                read: 1011 + malformed,
                malformed,
                bytes_read: 64_407,
                ..Counts::default()
            });
            placer.finish(0, read);
            let Counts { read, counted, malformed, bytes_read, bytes_counted, .. } = counts(&placer);
            assert_eq!((counted, bytes_counted, bytes_read), (1011, 64_407, 64_407));
            assert_eq!(read, counted + malformed);
            assert_eq!(placer.batches.iter().map(|(_, batch)| batch.count()).sum::<u64>(), 1011);
        }
    }

    #[test]
    fn observations_and_packets_of_one_piece_keep_what_each_adds() {
        let mut placer = placer(0);
        let mut expected = Vec::new();
        for number in 0..3 * BATCH as u64 {
            let weight = match number % 3 {
                0 => weight(number + 2, 9 * number, [1, 4]),
                _ => weight(1, number, [2, 2]),
            };
            expected.push(weight);
            match number % 3 {
                0 => place(&mut placer, weight),
                _ => {
                    placer.observe(weight.first);
                    placer.place(Packet {
                        time: weight.first,
                        length: weight.bytes as u32,
                        ..Packet::default()
                    });
                }
            }
        }
        placer.finish(0, None);
        let batches = placer.batches.iter().map(|(_, batch)| batch);
        let placed: Vec<Weight> =
            batches.flat_map(|batch| batch.weighted().map(|(_, weight)| weight)).collect();
        assert!(placed == expected, "{placed:?}");
        let all = |value: fn(&Weight) -> u64| expected.iter().map(value).sum::<u64>();
        let Counts { counted, bytes_counted, .. } = counts(&placer);
        assert_eq!((counted, bytes_counted), (all(|weight| weight.packets), all(|weight| weight.bytes)));
    }

    #[test]
    fn the_first_packet_decides_on_the_window_and_whether_an_observation_is_late() {
        let mut placer = placer(12);
        // The last packet of this one closes nothing: the one behind it begins before that, and is not late.
        place(&mut placer, weight(3, 30, [19, 45]));
        place(&mut placer, weight(4, 40, [18, 18]));
        place(&mut placer, weight(5, 50, [5, 25]));
        placer.finish(0, None);
        let Counts { counted, late, .. } = counts(&placer);
        assert_eq!((counted, late), (12, 5));
        let windows: Vec<_> = placer.batches.iter().map(|(epoch, batch)| (*epoch, batch.window)).collect();
        assert_eq!(windows, [(1, 1), (1, 0)]);
    }

    #[test]
    fn what_is_no_observation_is_placed_nowhere() {
        let mut placer = placer(0);
        let nothing = placer.place_weighted(Packet::default(), weight(0, 0, [1, 1]), [0; WORDS]);
        assert_eq!(nothing, Err(WrongWeight::Nothing));
        placer.finish(0, None);
        assert!(placer.batches.is_empty() && counts(&placer) == Counts::default());
    }
}
