//! What feeds the workers: each kind of input gives them pieces of work and decodes them into windows.
//!
//! [`frames`] takes chunks of frames, from files or from an interface; [`bus`] takes the messages that [`listen`] gets
//! from NATS. Each piece comes with the watermark that holds before it, and all put what they decode into windows by the
//! same [`Placer`]: so which window closes when, and which packet is late, is one rule.

pub mod bus;
pub mod frames;
pub mod listen;

use crate::ledger::{Counts, InputReport};
use dataflows::groups::Packets;
use dataflows::packet::Packet;
use dataflows::window::{Epoch, Watermark, Windowing};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use timely::scheduling::SyncActivator;

/// Packets in one batch: a few dozen kilobytes, so that it is folded while it is still in the nearest cache.
const BATCH: usize = 512;

/// Where a stream of packets stands before a piece of it, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Latest time that the piece's own stream has shown.
    pub latest: u64,
    /// Least watermark of all other streams; `u64::MAX` without any.
    pub others: u64,
    /// What windows have been closed by already, although a stream has joined since that is behind it.
    pub floor: u64,
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

    /// What became of each input; a position in this list is an input's number.
    fn reports(&self) -> Vec<InputReport>;
}

/// A worker's end of an input.
pub trait Reader {
    /// Takes the next piece. Wherever it stands, no packet handed out from now on comes from before the position but
    /// late ones.
    fn take(&mut self) -> Result<(Taken, Position), String>;

    /// Decodes the piece that was taken last.
    fn decode(&mut self, into: &mut Placer) -> Result<(), String>;
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

/// Puts decoded packets into batches by window, and keeps the accounts of the input that they come from.
pub struct Placer {
    windowing: Windowing,
    lateness: u64,
    watermark: Watermark,
    /// Accounts of the pieces decoded since they were last taken, by number of input.
    pub counts: BTreeMap<usize, Counts>,
    /// Link types that were met and are not decoded.
    pub unknown_links: BTreeSet<u32>,
    /// Packets by the epoch they are sent in and the window they belong to.
    open: Vec<(Epoch, Epoch, Vec<Packet>)>,
    /// Where in `open` an epoch's window is.
    places: BTreeMap<(Epoch, Epoch), usize>,
    /// Full batches with their epochs.
    pub batches: Vec<(Epoch, Packets)>,
    /// Epochs with the closed windows that their packets came late for.
    pub late: BTreeSet<(Epoch, Epoch)>,
    /// The times that go where the last packet went, and where that is.
    current: std::ops::Range<u64>,
    place: usize,
    closed: Epoch,
    /// The highest floor met so far: what is closed stays closed.
    floor: u64,
    late_packets: u64,
}

impl Placer {
    /// A placer into windows that stay open for `lateness` nanoseconds behind the watermark.
    pub fn new(windowing: Windowing, lateness: u64) -> Self {
        Self {
            windowing,
            lateness,
            watermark: Watermark::new(windowing, lateness, 0, 0),
            counts: BTreeMap::new(),
            unknown_links: BTreeSet::new(),
            open: Vec::new(),
            places: BTreeMap::new(),
            batches: Vec::new(),
            late: BTreeSet::new(),
            current: 0..0,
            place: 0,
            closed: 0,
            floor: 0,
            late_packets: 0,
        }
    }

    /// Goes to where a piece begins; gives the first window that is open there.
    pub fn seek(&mut self, position: Position) -> Epoch {
        let Position { latest, others, floor } = position;
        self.floor = self.floor.max(floor);
        self.watermark = Watermark::new(self.windowing, self.lateness, latest, others).not_before(self.floor);
        self.closed = self.watermark.first_open();
        self.current = 0..0;
        self.closed
    }

    /// Moves the watermark by the time of the next frame, counted or not.
    #[inline(always)]
    pub fn observe(&mut self, time: u64) {
        let closed = self.watermark.observe(time);
        if closed != self.closed {
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
        if let Some((epoch, window, packets)) = self.open.get_mut(self.place) {
            if *window < *epoch {
                self.late_packets += 1;
            }
            packets.push(packet);
            if packets.len() == BATCH {
                let packets = Arc::new(std::mem::replace(packets, Vec::with_capacity(BATCH)));
                self.batches.push((*epoch, Packets { window: *window, packets }));
            }
        }
    }

    #[cold]
    fn find_place(&mut self, time: u64) {
        let window = self.windowing.index(time);
        let epoch = window.max(self.closed);
        if window < epoch {
            self.late.insert((epoch, window));
        }
        self.place = *self.places.entry((epoch, window)).or_insert_with(|| {
            self.open.push((epoch, window, Vec::new()));
            self.open.len() - 1
        });
        let (start, end) = self.windowing.span(window).unwrap_or((0, u64::MAX));
        self.current = if window < epoch { 0..0 } else { start..end };
    }

    /// Ends a piece of an input: adds its accounts and makes batches of what is left.
    pub fn finish(&mut self, input: usize, counts: Counts) {
        let late = std::mem::take(&mut self.late_packets);
        *self.counts.entry(input).or_default() += Counts { late, ..counts };
        self.places.clear();
        self.current = 0..0;
        for (epoch, window, packets) in self.open.drain(..).filter(|(_, _, packets)| !packets.is_empty()) {
            self.batches.push((epoch, Packets { window, packets: Arc::new(packets) }));
        }
    }
}
