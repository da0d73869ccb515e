//! Capture files in: bytes to frames, several files to one stream in time.
//!
//! [`source`] reads bytes (plain, [`gzip`], zstd, a pipe), [`pcap`] and [`pcapng`] find frames in them, and [`findings`]
//! holds what else they say; [`foreign`] names what is no capture. [`dealer`] deals
//! the frames of all inputs to the workers in chunks, [`filter`] runs BPF. [`interface`] names the interfaces that
//! captured frames. [`live`] captures from an interface,
//! [`rings`] does so for every worker, with [`fanout`] to divide the frames; [`savefile`] keeps them. [`clock`] finds the
//! frames of a file that are dated ahead by mistake. Nothing here looks inside a frame.

pub mod clock;
pub mod dealer;
pub mod fanout;
pub mod filter;
pub mod findings;
pub mod foreign;
pub mod gzip;
pub mod interface;
pub mod live;
pub mod pcap;
pub mod pcapng;
pub mod rings;
pub mod savefile;
pub mod source;

use crate::decode::LinkType;
use dataflows::layers::Text;
use findings::Findings;

// A frame is passed by value through the hottest loop.
const _: () = assert!(size_of::<Frame>() == 32);

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
    /// What the bytes are; [`LinkType::DAMAGED`] where their record contradicts itself.
    pub link: LinkType,
    /// The byte order of the capture's own headers.
    pub big_endian: bool,
    /// Number of the interface that captured it, within its section of a pcapng file; else 0.
    pub interface: u16,
}

/// Packets that were lost somewhere between two times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Nanoseconds since the Unix epoch.
    pub from: u64,
    /// The same; not before it where clocks go forward.
    pub to: u64,
    /// How many.
    pub packets: u64,
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
    /// What was lost among the frames, or just before them.
    pub gaps: Vec<Gap>,
}

impl Chunk {
    /// What was lost, by the input itself and by what its frames say, once they were visited.
    pub fn take_gaps(&mut self) -> Vec<Gap> {
        let mut gaps = std::mem::take(&mut self.gaps);
        gaps.extend(self.format.as_mut().map(Format::take_gaps).unwrap_or_default());
        gaps
    }

    /// Whether any of its frames is a stray.
    pub fn has_strays(&self) -> bool {
        !self.strays.is_empty()
    }

    /// Visits the frames of a chunk without strays in order.
    #[inline]
    pub fn frames(&mut self, mut visit: impl FnMut(Frame, &[u8])) {
        let bytes = &self.bytes;
        if let Some(format) = &mut self.format {
            format.scan(bytes, |frame| visit(frame, &bytes[frame.start..][..frame.captured as usize]));
        }
    }

    /// Visits the chunk's frames in order, each with whether it is a stray.
    pub fn frames_and_strays(&mut self, mut visit: impl FnMut(Frame, &[u8], bool)) {
        self.frames_and_interfaces(|frame, bytes, is_stray, _| visit(frame, bytes, is_stray));
    }

    /// Visits the chunk's frames in order, each with whether it is a stray and with the format, which names the frame's
    /// interface where that is asked for: [`Format::interface`].
    #[inline]
    pub fn frames_and_interfaces(&mut self, mut visit: impl FnMut(Frame, &[u8], bool, &Format)) {
        let bytes = &self.bytes;
        let mut strays = self.strays.iter().copied();
        let (mut number, mut next_stray) = (0, strays.next().unwrap_or(u64::MAX));
        if let Some(format) = &mut self.format {
            format.scan_with(bytes, |format, frame| {
                let is_stray = number == next_stray;
                if is_stray {
                    next_stray = strays.next().unwrap_or(u64::MAX);
                }
                number += 1;
                visit(frame, &bytes[frame.start..][..frame.captured as usize], is_stray, format);
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

/// Why a format gave no frame.
enum Halt {
    /// As [`Stop::Needs`].
    Needs(usize),
    /// As [`Stop::Damaged`].
    Damaged(String),
    /// The header of another capture follows.
    Another,
    /// The lengths of the next record are not those of a frame.
    Odd,
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
            return Ok((Self::Pcapng(pcapng?), 0));
        }
        pcap::Pcap::open(bytes).map(|pcap| (Self::Pcap(pcap), pcap::FILE_HEADER))
    }

    /// Whether a capture may begin with these bytes: by its magic numbers alone.
    pub fn is_start(bytes: &[u8]) -> bool {
        pcap::Pcap::is_start(bytes) || pcapng::Pcapng::is_start(bytes)
    }

    /// What it has said beside its frames.
    pub fn findings(&self) -> &Findings {
        match self {
            Self::Pcap(pcap) => &pcap.findings,
            Self::Pcapng(pcapng) => &pcapng.findings,
        }
    }

    fn findings_mut(&mut self) -> &mut Findings {
        match self {
            Self::Pcap(pcap) => &mut pcap.findings,
            Self::Pcapng(pcapng) => &mut pcapng.findings,
        }
    }

    /// Says where in its input the bytes that are scanned next begin.
    pub fn locate(&mut self, offset: u64) {
        self.findings_mut().start = offset;
    }

    /// What its capture says it dropped, of all interfaces so far.
    pub fn drops(&self) -> live::Drops {
        match self {
            Self::Pcap(pcap) => pcap.findings.drops,
            Self::Pcapng(pcapng) => pcapng.drops(),
        }
    }

    /// What the frames scanned since this was last asked say that was lost before them.
    pub fn take_gaps(&mut self) -> Vec<Gap> {
        match self {
            Self::Pcap(_) => Vec::new(),
            Self::Pcapng(pcapng) => pcapng.take_gaps(),
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

    /// The interface of the frame that was scanned last, as the capture names it: its name, of an interface of a pcapng
    /// section without a name its number in the section, and empty in a pcap file. See [`interface::Interfaces::name`].
    #[inline(always)]
    pub fn interface(&self, frame: Frame) -> Text {
        match self {
            Self::Pcap(pcap) => pcap.interface,
            Self::Pcapng(pcapng) => pcapng.interface_name(frame.interface),
        }
    }

    /// Names the one interface of a capture that does not do so itself.
    pub fn name_interface(&mut self, name: Text) {
        if let Self::Pcap(pcap) = self {
            pcap.interface = name;
        }
    }

    /// Visits every whole frame in bytes that start at a record.
    #[inline(always)]
    pub fn scan(&mut self, bytes: &[u8], mut visit: impl FnMut(Frame)) -> Scanned {
        self.scan_with(bytes, |_, frame| visit(frame))
    }

    /// Visits every whole frame in bytes that start at a record, with what is known of its capture there.
    ///
    /// One loop for all formats, so that what visits is compiled once, into it.
    #[inline]
    fn scan_with(&mut self, bytes: &[u8], mut visit: impl FnMut(&Self, Frame)) -> Scanned {
        let mut at = 0;
        loop {
            let next = match self {
                Self::Pcap(pcap) => pcap.next(bytes, &mut at),
                Self::Pcapng(pcapng) => pcapng.next(bytes, &mut at),
            };
            let frame = match next {
                Ok(frame) => frame,
                Err(halt) => match self.go_on(bytes, &mut at, halt) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => continue,
                    Err(stop) => return Scanned { consumed: at as u64, stop },
                },
            };
            visit(self, frame);
        }
    }

    /// What to do where there was no frame: an odd one, nothing where another capture begins, or the end.
    #[cold]
    #[inline(never)]
    fn go_on(&mut self, bytes: &[u8], at: &mut usize, halt: Halt) -> Result<Option<Frame>, Stop> {
        let halt = match (halt, &mut *self) {
            (Halt::Odd, Self::Pcap(pcap)) => match pcap.odd(bytes, at) {
                Ok(frame) => return Ok(Some(frame)),
                Err(halt) => halt,
            },
            (halt, _) => halt,
        };
        match halt {
            Halt::Needs(bytes) => Err(Stop::Needs(bytes)),
            Halt::Damaged(what) => Err(Stop::Damaged(what)),
            Halt::Another | Halt::Odd => self.begin_another(bytes, at).map(|()| None),
        }
    }

    /// Goes on with the capture whose header is at `at`.
    fn begin_another(&mut self, bytes: &[u8], at: &mut usize) -> Result<(), Stop> {
        let rest = &bytes[*at..];
        if rest.len() < HEADER_BYTES {
            return Err(Stop::Needs(HEADER_BYTES));
        }
        let (mut next, header) = Self::open(rest)
            .map_err(|why| Stop::Damaged(format!("another capture begins here, but it {why}")))?;
        let mut findings = *self.findings();
        findings.drops = self.drops();
        findings.captures.note(findings.start, *at);
        *next.findings_mut() = findings;
        *self = next;
        *at += header;
        Ok(())
    }
}
