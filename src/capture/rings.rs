//! Captures an interface for all workers: a ring and a thread each, divided by flow, frames handed over in chunks.
//!
//! A chunk has the layout of a capture file, so it is decoded like any other. A ring whose worker does not keep up fills,
//! and what the kernel then drops is counted as lost. A ring's watermark passes no frame before the counters were read
//! that tell what was dropped up to it: so a window is not closed before it is known what it lacks.

use super::fanout;
use super::live::{Live, LiveError, Options, now, settled};
use super::pcap::{file_header, record_header};
use super::{Chunk, Format, Gap};
use crate::decode::LinkType;
use crate::intake::{Taken, Wakers};
use crate::ledger::{InputReport, Losses};
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, unbounded};
use dataflows::layers::Text;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use timely::scheduling::SyncActivator;

/// Bytes after which a chunk is handed over.
const CHUNK: usize = 256 << 10;
/// Chunks that a ring's thread may be ahead.
const AHEAD: usize = 16;
/// How long to wait for frames.
const WAIT: Duration = Duration::from_millis(100);
/// How often a quiet ring tells how far it has come, and its counters are read.
const QUIET: Duration = Duration::from_millis(250);

/// Frames on their way to a worker.
struct Block {
    bytes: Vec<u8>,
    packets: u64,
    /// The ring's watermark behind them.
    latest: u64,
    /// What was dropped since the last block.
    gap: Option<Gap>,
}

struct Ring {
    blocks: Receiver<Block>,
    spent: Sender<Vec<u8>>,
    /// How far what was dealt has come.
    watermark: AtomicU64,
    report: Arc<Mutex<InputReport>>,
}

/// An interface with a ring a worker.
pub struct Rings {
    rings: Vec<Ring>,
    format: Format,
    link: LinkType,
    wakers: Wakers,
    stop: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<String>>>,
}

impl Rings {
    /// Opens so many rings on an interface and starts their threads.
    pub fn open(options: &Options, rings: usize) -> Result<Self, LiveError> {
        let mut captures = Vec::new();
        for _ in 0..rings {
            // Each ring gets its part of the memory.
            let ring = options.ring / rings as u64;
            captures.push(Live::open_shut(&Options { ring, ..options.clone() })?);
        }
        let link = captures.first().map_or(LinkType::ETHERNET, Live::link);
        if rings > 1 {
            divide(&captures).map_err(|error| {
                let why = format!("cannot divide it among {rings} rings: {error}");
                LiveError::Open { interface: options.interface.clone(), why }
            })?;
        }
        let (wakers, stop, failed) = (Wakers::default(), Arc::new(AtomicBool::new(false)), Arc::default());
        let mut started = Vec::new();
        for (number, mut capture) in captures.into_iter().enumerate() {
            capture.start()?;
            let (sender, blocks) = bounded(AHEAD);
            let (spent, recycled) = unbounded();
            let name = if rings == 1 {
                options.interface.clone()
            } else {
                format!("{} ring {number}", options.interface)
            };
            let losses = Some(Losses::default());
            let report = InputReport { name, format: "live".into(), losses, ..InputReport::default() };
            let report = Arc::new(Mutex::new(report));
            let thread = RingThread {
                capture,
                sender,
                recycled,
                block: Block { bytes: Vec::with_capacity(CHUNK), packets: 0, latest: 0, gap: None },
                latest: 0,
                counted: now(),
                report: report.clone(),
                // The interface's own drops are told to every ring; they count once.
                first: number == 0,
                wakers: wakers.clone(),
                stop: stop.clone(),
                failed: Arc::clone(&failed),
            };
            let interface = options.interface.clone();
            std::thread::Builder::new()
                .name(format!("ring-{number}"))
                .spawn(move || thread.run())
                .map_err(|error| LiveError::Open { interface, why: error.to_string() })?;
            started.push(Ring { blocks, spent, watermark: AtomicU64::new(0), report });
        }
        let header = file_header(link, options.snaplen);
        let (mut format, _) = Format::open(&header).expect("a header of the pcap format");
        format.name_interface(Text::new(&options.interface));
        Ok(Self { rings: started, format, link, wakers, stop, failed })
    }

    /// What the frames are.
    pub fn link(&self) -> LinkType {
        self.link
    }

    /// Why the capture ended, where nobody stopped it.
    pub fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many rings there are.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.rings.len()
    }

    /// Deals a worker the next chunk of its ring.
    pub fn deal(&self, worker: usize, chunk: &mut Chunk) -> Taken {
        let Some(ring) = self.rings.get(worker) else {
            (chunk.latest, chunk.others) = (u64::MAX, u64::MAX);
            return Taken::End;
        };
        let others = self.rings.iter().enumerate().filter(|(other, _)| *other != worker);
        chunk.others = others.map(|(_, ring)| ring.watermark.load(SeqCst)).min().unwrap_or(u64::MAX);
        chunk.input = worker;
        loop {
            chunk.latest = ring.watermark.load(SeqCst);
            match ring.blocks.try_recv() {
                Ok(block) => {
                    ring.watermark.store(block.latest, SeqCst);
                    if block.packets == 0 && block.gap.is_none() {
                        continue;
                    }
                    chunk.gaps.extend(block.gap);
                    let spent = std::mem::replace(&mut chunk.bytes, block.bytes);
                    // The thread may have ended; then nobody needs it.
                    let _ = ring.spent.send(spent);
                    chunk.format = Some(self.format.clone());
                    return Taken::Piece;
                }
                Err(TryRecvError::Empty) => return Taken::Wait,
                Err(TryRecvError::Disconnected) => {
                    ring.watermark.store(u64::MAX, SeqCst);
                    self.wakers.wake();
                    return Taken::End;
                }
            }
        }
    }

    /// Has a worker's operator activated when its ring may have something.
    pub fn register(&self, activator: SyncActivator) {
        self.wakers.add(activator);
    }

    /// Captures no more; what is in the rings is still dealt.
    pub fn stop(&self) {
        self.stop.store(true, SeqCst);
    }

    /// Activates all registered operators.
    pub fn wake(&self) {
        self.wakers.wake();
    }

    /// What came of the rings.
    pub fn reports(&self) -> Vec<InputReport> {
        let report = |ring: &Ring| ring.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.rings.iter().map(report).collect()
    }
}

/// Makes one group of all captures.
fn divide(captures: &[Live]) -> std::io::Result<()> {
    let Some((first, others)) = captures.split_first() else { return Ok(()) };
    let group = fanout::found(first.socket())?;
    others.iter().try_for_each(|capture| fanout::join(capture.socket(), group))
}

/// What a ring's thread works with.
struct RingThread {
    capture: Live,
    sender: Sender<Block>,
    recycled: Receiver<Vec<u8>>,
    block: Block,
    /// Latest time of a frame.
    latest: u64,
    /// When the counters were last read, nanoseconds since the Unix epoch.
    counted: u64,
    report: Arc<Mutex<InputReport>>,
    first: bool,
    wakers: Wakers,
    stop: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<String>>>,
}

impl RingThread {
    fn run(mut self) {
        if let Err(error) = self.capture_all() {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(error.to_string());
            // The frames of its flows would be missing: all rings end with it.
            self.stop.store(true, SeqCst);
        }
        self.count_drops();
        self.hand_over(true);
        let Self { sender, wakers, .. } = self;
        drop(sender);
        wakers.wake();
    }

    /// Until it is stopped; then what is left in the ring.
    fn capture_all(&mut self) -> Result<(), LiveError> {
        let mut told = Instant::now();
        // What has arrived when we are told to stop is still handed out.
        let mut until = u64::MAX;
        let mut beyond = false;
        loop {
            let clock = now();
            if until == u64::MAX && self.stop.load(SeqCst) {
                until = clock;
            }
            let (block, sender, recycled) = (&mut self.block, &self.sender, &self.recycled);
            let (report, wakers, latest) = (&self.report, &self.wakers, &mut self.latest);
            let found = self.capture.next(WAIT, |time, length, bytes| {
                if time > until {
                    beyond = true;
                    return;
                }
                block.bytes.extend_from_slice(&record_header(time, length, bytes.len()));
                block.bytes.extend_from_slice(bytes);
                block.packets += 1;
                *latest = (*latest).max(time);
                if block.bytes.len() >= CHUNK - 512 {
                    send(block, sender, recycled, report, wakers, true);
                }
            })?;
            if until < u64::MAX && (found == 0 || beyond) {
                return Ok(());
            }
            if found == 0 {
                self.latest = self.latest.max(settled(clock));
            }
            let quiet = told.elapsed() >= QUIET;
            if quiet {
                told = Instant::now();
            }
            if found > 0 || quiet {
                self.count_drops();
            }
            if self.block.packets > 0 || quiet {
                self.hand_over(false);
            }
        }
    }

    /// Hands over what there is; where it need not be now, only if there is room.
    fn hand_over(&mut self, now: bool) {
        send(&mut self.block, &self.sender, &self.recycled, &self.report, &self.wakers, now);
    }

    /// Reads the counters, and lets the watermark go up to the latest frame.
    fn count_drops(&mut self) {
        let drops = self.capture.drops();
        let from = std::mem::replace(&mut self.counted, now());
        let interface = if self.first { drops.interface } else { 0 };
        let losses = Losses { kernel: drops.kernel, interface, ..Losses::default() };
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        let before = report.losses.replace(losses).unwrap_or_default();
        let packets = losses.total().saturating_sub(before.total());
        if packets > 0 {
            let earlier = self.block.gap.map_or(0, |gap| gap.packets);
            let from = self.block.gap.map_or(from, |gap| gap.from);
            self.block.gap = Some(Gap { from, to: self.counted, packets: earlier + packets });
        }
        self.block.latest = self.block.latest.max(self.latest);
    }
}

fn send(
    block: &mut Block,
    sender: &Sender<Block>,
    recycled: &Receiver<Vec<u8>>,
    report: &Mutex<InputReport>,
    wakers: &Wakers,
    now: bool,
) {
    let packets = block.packets;
    let mut bytes = recycled.try_recv().unwrap_or_default();
    bytes.clear();
    bytes.reserve(CHUNK);
    let next = Block { bytes, packets: 0, latest: block.latest, gap: None };
    let full = std::mem::replace(block, next);
    if now {
        // The worker is gone only when the run has failed.
        let _ = sender.send(full);
    } else if let Err(TrySendError::Full(full) | TrySendError::Disconnected(full)) = sender.try_send(full) {
        *block = full;
        return;
    }
    report.lock().unwrap_or_else(PoisonError::into_inner).packets += packets;
    wakers.wake();
}
