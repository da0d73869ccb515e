//! Capture files in: bytes to frames, several files to one stream in time.
//!
//! [`source`] reads bytes (plain, gzip, zstd, a pipe), [`pcap`] and [`pcapng`] find frames in them, [`dealer`] deals
//! the frames of all inputs to the workers in chunks, [`filter`] runs BPF. [`live`] captures from an interface,
//! [`rings`] does so for every worker, with [`fanout`] to divide the frames; [`savefile`] keeps them. [`clock`] finds the
//! frames of a file that are dated ahead by mistake. Nothing here looks inside a frame.

pub mod clock;
pub mod dealer;
pub mod fanout;
pub mod filter;
pub mod live;
pub mod pcap;
pub mod pcapng;
pub mod rings;
pub mod savefile;
pub mod source;

use crate::decode::LinkType;

/// One captured frame, located in the chunk that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Nanoseconds since the Unix epoch.
    pub time: u64,
    /// Where its bytes start in the scanned bytes.
    pub start: usize,
    /// Bytes captured.
    pub captured: u32,
    /// Bytes it had on the wire.
    pub length: u32,
    /// What the bytes are.
    pub link: LinkType,
}

/// Bytes that start and end at a record, for one worker.
#[derive(Default)]
pub struct Chunk {
    /// The records.
    pub bytes: Vec<u8>,
    /// How they are to be read; `None` in a chunk that holds nothing yet.
    pub format: Option<Format>,
    /// Number of the input that they come from.
    pub input: usize,
    /// Latest time of this input before the chunk.
    pub latest: u64,
    /// Least watermark of all other inputs.
    pub others: u64,
    /// Numbers of the frames that are dated ahead by mistake, from 0, ascending: see [`clock`].
    pub strays: Vec<u64>,
}

impl Chunk {
    /// Visits the chunk's frames in order, each with whether it is a stray.
    #[inline]
    pub fn frames(&mut self, mut visit: impl FnMut(Frame, &[u8], bool)) {
        let bytes = &self.bytes;
        let mut strays = self.strays.iter().copied();
        let (mut number, mut next_stray) = (0, strays.next().unwrap_or(u64::MAX));
        if let Some(format) = &mut self.format {
            format.scan(bytes, |frame| {
                let is_stray = number == next_stray;
                if is_stray {
                    next_stray = strays.next().unwrap_or(u64::MAX);
                }
                number += 1;
                visit(frame, &bytes[frame.start..][..frame.captured as usize], is_stray);
            });
        }
    }
}

/// How far a scan came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Bytes that are done with, from the start of the scanned bytes; may reach beyond them where a block is skipped.
    pub consumed: u64,
    /// Why it stopped there.
    pub stop: Stop,
}

/// Why a scan stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The next record needs at least so many bytes from `consumed` on.
    Needs(usize),
    /// The record there cannot be one, and nothing behind it can be found.
    Damaged(String),
}

/// Bytes of a frame that a capture can hold at least, whatever its snap length says: libpcap's own limit.
const LEAST_LIMIT: u32 = 262_144;
/// Bytes of a frame beyond which a record is damage, whatever the snap length says.
const MOST_LIMIT: u32 = 16 << 20;

/// The longest frame that a record may hold under a snap length (0 is none).
fn frame_limit(snaplen: u32) -> u32 {
    snaplen.clamp(LEAST_LIMIT, MOST_LIMIT)
}

/// The container format of a capture and where its reading stands. Cloning it lets a range be scanned again.
#[derive(Clone, Debug)]
pub enum Format {
    /// libpcap's own format, in all its variants.
    Pcap(pcap::Pcap),
    /// The pcapng format.
    Pcapng(pcapng::Pcapng),
}

/// Bytes of a capture that tell its format and hold its file header.
pub const HEADER_BYTES: usize = 24;

impl Format {
    /// Reads a capture's first bytes (up to [`HEADER_BYTES`]); gives the format and the length of the header, or why
    /// this is no capture.
    pub fn open(bytes: &[u8]) -> Result<(Self, usize), String> {
        if let Some(pcapng) = pcapng::Pcapng::open(bytes) {
            // The section header is a block like any other.
            return Ok((Self::Pcapng(pcapng), 0));
        }
        pcap::Pcap::open(bytes).map(|pcap| (Self::Pcap(pcap), pcap::FILE_HEADER))
    }

    /// How many frames' times could not be kept and were clamped.
    pub fn clamped(&self) -> u64 {
        match self {
            Self::Pcap(_) => 0,
            Self::Pcapng(pcapng) => pcapng.clamped(),
        }
    }

    /// Its name, for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pcap(_) => "pcap",
            Self::Pcapng(_) => "pcapng",
        }
    }

    /// Passes over so many whole frames in bytes that start at a record; gives the bytes that they take.
    pub fn pass(&mut self, bytes: &[u8], frames: u64) -> u64 {
        let mut at = 0;
        for _ in 0..frames {
            let next = match self {
                Self::Pcap(pcap) => pcap.next(bytes, &mut at),
                Self::Pcapng(pcapng) => pcapng.next(bytes, &mut at),
            };
            if next.is_err() {
                break;
            }
        }
        at as u64
    }

    /// Visits every whole frame in bytes that start at a record.
    ///
    /// One loop for all formats, so that what visits is compiled once, into it.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8], mut visit: impl FnMut(Frame)) -> Scanned {
        let mut at = 0;
        loop {
            let next = match self {
                Self::Pcap(pcap) => pcap.next(bytes, &mut at),
                Self::Pcapng(pcapng) => pcapng.next(bytes, &mut at),
            };
            match next {
                Ok(frame) => visit(frame),
                Err(stop) => return Scanned { consumed: at as u64, stop },
            }
        }
    }
}
