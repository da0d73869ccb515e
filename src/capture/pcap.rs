//! The pcap file format: four magics, and the modified one with longer record headers.
//!
//! Source: draft-ietf-opsawg-pcap, and libpcap's `sf-pcap.c` for the older variants.

use super::{Findings, Frame, Halt, foreign, frame_limit};
use crate::decode::LinkType;
use dataflows::layers::Text;

/// Bytes of the file header.
pub const FILE_HEADER: usize = 24;

/// Bytes of a record's header, but in the modified format.
pub const RECORD_HEADER: usize = 16;

/// The header of a file of our own: version 2.4, times in nanoseconds, little-endian.
pub fn file_header(link: LinkType, snaplen: u32) -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    write_words(&mut header, [0xa1b2_3c4d, 2 | 4 << 16, 0, 0, snaplen, link.0]);
    header
}

/// The header of a file of either byte order: version 2.4, times in microseconds.
pub fn file_header_in(big_endian: bool, link: LinkType, snaplen: u32) -> [u8; FILE_HEADER] {
    let words = [0xa1b2_c3d4, if big_endian { 2 << 16 | 4 } else { 2 | 4 << 16 }, 0, 0, snaplen, link.0];
    let mut header = [0; FILE_HEADER];
    write_words(&mut header, words.map(|word: u32| if big_endian { word.swap_bytes() } else { word }));
    header
}

/// The header of a record behind [`file_header`]: `time` in nanoseconds since the Unix epoch, `length` bytes on the wire.
#[inline]
pub fn record_header(time: u64, length: u32, captured: usize) -> [u8; RECORD_HEADER] {
    const SECOND: u64 = 1_000_000_000;
    let mut header = [0; RECORD_HEADER];
    // The format's seconds end in 2106.
    write_words(&mut header, [(time / SECOND) as u32, (time % SECOND) as u32, captured as u32, length]);
    header
}

#[inline]
fn write_words<const WORDS: usize>(header: &mut [u8], words: [u32; WORDS]) {
    for (field, word) in header.as_chunks_mut().0.iter_mut().zip(words) {
        *field = word.to_le_bytes();
    }
}

/// How a pcap file is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcap {
    /// Little-endian, with record headers of 16 bytes and lengths in their places.
    plain: bool,
    big_endian: bool,
    nanos_a_unit: u64,
    /// Bytes of a record header: 16, or 24 in the modified format.
    record_header: usize,
    /// Captured and original length stand the other way round (2.2 and earlier; in 2.3, where that makes sense).
    swapped_lengths: SwappedLengths,
    link: LinkType,
    limit: u32,
    /// What captured all frames; a file does not say it.
    pub(super) interface: Text,
    pub(super) findings: Findings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwappedLengths {
    Never,
    WhereOriginalIsLess,
    Always,
}

impl Pcap {
    /// Whether these bytes begin with the magic of a file header.
    pub fn is_start(bytes: &[u8]) -> bool {
        const MAGICS: [u32; 3] = [0xa1b2_c3d4, 0xa1b2_3c4d, 0xa1b2_cd34];
        bytes.first_chunk().is_some_and(|magic| {
            MAGICS.contains(&u32::from_le_bytes(*magic)) || MAGICS.contains(&u32::from_be_bytes(*magic))
        })
    }

    /// Reads the file header.
    pub fn open(bytes: &[u8]) -> Result<Self, String> {
        let Some(header) = bytes.first_chunk::<FILE_HEADER>() else {
            return Err(match bytes.len() {
                0 => "is empty, not even a capture's file header".into(),
                short => format!("has {short} bytes, too few for a capture's file header"),
            });
        };
        let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let (big_endian, magic) = match magic {
            0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 => (false, magic),
            _ => (true, magic.swap_bytes()),
        };
        let (nanos_a_unit, record_header) = match magic {
            0xa1b2_c3d4 => (1000, RECORD_HEADER),
            0xa1b2_3c4d => (1, RECORD_HEADER),
            0xa1b2_cd34 => (1000, 24),
            _ => return Err(format!("is no pcap or pcapng capture (it starts with {})", hex(&header[..4]))),
        };
        let half = |at: usize| {
            let bytes = [header[at], header[at + 1]];
            if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
        };
        let (major, minor) = (half(4), half(6));
        // 543.0 is what a version of DG/UX wrote; libpcap reads it as 2.4 with swapped lengths.
        let swapped_lengths = match (major, minor) {
            (2, 0..=2) | (543, 0) => SwappedLengths::Always,
            (2, 3) => SwappedLengths::WhereOriginalIsLess,
            (2, _) => SwappedLengths::Never,
            _ => return Err(format!("is pcap version {major}.{minor}; only 2.x can be read")),
        };
        let link = u32_at(header, 20, big_endian) & 0x03ff_ffff;
        let limit = frame_limit(u32_at(header, 16, big_endian));
        let plain = !big_endian && record_header == RECORD_HEADER && swapped_lengths == SwappedLengths::Never;
        let link = LinkType(link);
        let (interface, findings) = (Text::default(), Findings::default());
        Ok(Self {
            plain,
            big_endian,
            nanos_a_unit,
            record_header,
            swapped_lengths,
            link,
            limit,
            interface,
            findings,
        })
    }

    /// The link type of all its frames.
    pub fn link(&self) -> LinkType {
        self.link
    }

    /// The frame of the record at `at`, which moves behind it; or why there is none.
    #[inline(always)]
    pub(super) fn next(&self, bytes: &[u8], at: &mut usize) -> Result<Frame, Halt> {
        // The common case is compiled by itself, with its byte order and header known.
        if self.plain { self.record::<false>(bytes, at) } else { self.unusual(bytes, at) }
    }

    #[inline(never)]
    fn unusual(&self, bytes: &[u8], at: &mut usize) -> Result<Frame, Halt> {
        self.record::<true>(bytes, at)
    }

    #[inline(always)]
    fn record<const UNUSUAL: bool>(&self, bytes: &[u8], at: &mut usize) -> Result<Frame, Halt> {
        let record_header = if UNUSUAL { self.record_header } else { RECORD_HEADER };
        let rest = &bytes[*at..];
        let Some(header) = rest.first_chunk::<RECORD_HEADER>() else {
            return Err(Halt::Needs(record_header));
        };
        if rest.len() < record_header {
            return Err(Halt::Needs(record_header));
        }
        let (time, captured, length) = self.read::<UNUSUAL>(header);
        // No bytes, more than the frame had, or more than any has: one comparison, for the wrapped 0 is the most.
        if captured.wrapping_sub(1) >= length.min(self.limit) {
            return Err(Halt::Odd);
        }
        let end = record_header + captured as usize;
        if rest.len() < end {
            return Err(Halt::Needs(end));
        }
        let start = *at + record_header;
        *at += end;
        let big_endian = UNUSUAL && self.big_endian;
        Ok(Frame { time, start, captured, length, link: self.link, big_endian, interface: 0 })
    }

    /// Time in nanoseconds, captured length and length on the wire.
    #[inline(always)]
    fn read<const UNUSUAL: bool>(&self, header: &[u8; RECORD_HEADER]) -> (u64, u32, u32) {
        let big_endian = UNUSUAL && self.big_endian;
        let seconds = u32_at(header, 0, big_endian);
        let fraction = u32_at(header, 4, big_endian);
        let (mut captured, mut length) = (u32_at(header, 8, big_endian), u32_at(header, 12, big_endian));
        if UNUSUAL {
            let swap = match self.swapped_lengths {
                SwappedLengths::Never => false,
                SwappedLengths::WhereOriginalIsLess => captured > length,
                SwappedLengths::Always => true,
            };
            if swap {
                (captured, length) = (length, captured);
            }
        }
        // A fraction of a second or more is carried over, as every reader does.
        let time = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.nanos_a_unit;
        (time, captured, length)
    }

    /// The frame of the record at `at` where [`Self::next`] found its lengths odd: empty, of lengths that contradict each
    /// other, no record at all, or the header of another capture.
    #[cold]
    pub(super) fn odd(&mut self, bytes: &[u8], at: &mut usize) -> Result<Frame, Halt> {
        let rest = &bytes[*at..];
        if super::Format::is_start(rest) {
            return Err(Halt::Another);
        }
        let (Some(header), Some(whole)) = (rest.first_chunk(), rest.get(..self.record_header)) else {
            return Err(Halt::Needs(self.record_header));
        };
        let (time, captured, length) = self.read::<true>(header);
        if whole.iter().all(|byte| *byte == 0) {
            return Err(Halt::Damaged(
                "zeros where a record should be: the file was not written to its end".into(),
            ));
        }
        let is_compressed = matches!(rest, [0x1f, 0x8b, 8, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..]);
        if is_compressed || captured > self.limit {
            return Err(self.damaged(captured, rest));
        }
        let end = self.record_header + captured as usize;
        if rest.len() < end {
            return Err(Halt::Needs(end));
        }
        let start = *at + self.record_header;
        let (link, big_endian) = (self.link, self.big_endian);
        let frame = Frame { time, start, captured, length, link, big_endian, interface: 0 };
        let frame = if captured > length { self.findings.contradiction(*at, frame) } else { frame };
        *at += end;
        Ok(frame)
    }

    fn damaged(&self, captured: u32, rest: &[u8]) -> Halt {
        let limit = self.limit;
        Halt::Damaged(match foreign::name(rest) {
            Some(name) => {
                format!("{name} where a record should be; captures are joined once they are unpacked")
            }
            None => format!("a record of {captured} captured bytes, more than any frame has ({limit})"),
        })
    }
}

#[inline(always)]
fn u32_at<const N: usize>(bytes: &[u8; N], at: usize, big_endian: bool) -> u32 {
    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Scanned, Stop};
    use super::*;

    fn file_header(magic: u32, big_endian: bool, minor: u16) -> Vec<u8> {
        let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        [&word(magic)[..], &half(2), &half(minor), &word(0), &word(0), &word(65535), &word(1)].concat()
    }

    fn frames(
        magic: u32,
        big_endian: bool,
        minor: u16,
        record: &[u32],
        tail: &[u8],
    ) -> (Vec<Frame>, Scanned) {
        let pcap = Pcap::open(&file_header(magic, big_endian, minor)).expect("a header");
        let word = |value: &u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let bytes: Vec<u8> = record.iter().flat_map(word).chain(tail.iter().copied()).collect();
        let mut frames = Vec::new();
        let scanned = Format::Pcap(pcap).scan(&bytes, |frame| frames.push(frame));
        (frames, scanned)
    }

    #[test]
    fn all_magics_give_the_same_frame() {
        for big_endian in [false, true] {
            for (magic, fraction) in [(0xa1b2_c3d4, 7), (0xa1b2_3c4d, 7_000)] {
                let (frames, scanned) = frames(magic, big_endian, 4, &[5, fraction, 3, 60], &[1, 2, 3]);
                assert_eq!(frames.len(), 1);
                assert_eq!((frames[0].time, frames[0].captured, frames[0].length), (5_000_007_000, 3, 60));
                assert_eq!(scanned, Scanned { consumed: 19, stop: Stop::Needs(16) });
            }
            let (frames, _) = frames(0xa1b2_cd34, big_endian, 4, &[5, 7, 3, 60, 0, 0], &[1, 2, 3]);
            assert_eq!((frames[0].time, frames[0].start), (5_000_007_000, 24));
        }
    }

    #[test]
    fn a_record_longer_than_any_frame_is_damage_at_its_offset() {
        let (frames, scanned) = frames(0xa1b2_c3d4, false, 4, &[5, 7, 0, 60, 6, 0, u32::MAX, 60], &[]);
        assert_eq!(frames.len(), 1);
        assert!(matches!(scanned, Scanned { consumed: 16, stop: Stop::Damaged(_) }), "{scanned:?}");
    }

    #[test]
    fn records_that_contradict_themselves_are_damaged_frames_and_those_behind_them_are_read() {
        for big_endian in [false, true] {
            let records = [5, 0, 3, 2, 0, 6, 0, 3, 0, 0, 7, 0, 0, 3];
            let pcap = Pcap::open(&file_header(0xa1b2_c3d4, big_endian, 4)).expect("a header");
            let word = |value: &u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            let bytes: Vec<u8> = records.iter().flat_map(word).collect();
            // The captured bytes are three of each word behind a header, the fourth is of the next header's place.
            let bytes = [&bytes[..19], &bytes[20..39], &bytes[40..]].concat();
            let (mut frames, mut format) = (Vec::new(), Format::Pcap(pcap));
            let scanned = format.scan(&bytes, |frame| frames.push((frame.link, frame.time, frame.captured)));
            assert_eq!(
                frames,
                [(LinkType::DAMAGED, 0, 3), (LinkType::DAMAGED, 0, 3), (LinkType(1), 7_000_000_000, 0)]
            );
            assert_eq!(scanned.stop, Stop::Needs(16));
            let told = format.findings().contradictory().expect("they are told");
            assert!(
                told.contains("2 records") && told.contains("byte 0") && told.contains("3 captured"),
                "{told}"
            );
        }
    }

    #[test]
    fn zeros_where_a_record_should_be_are_damage() {
        let (frames, scanned) = frames(0xa1b2_c3d4, false, 4, &[5, 7, 0, 60, 0, 0, 0, 0], &[]);
        assert_eq!((frames.len(), scanned.consumed), (1, 16));
        assert!(matches!(scanned.stop, Stop::Damaged(why) if why.contains("zeros")));
    }

    #[test]
    fn a_capture_behind_a_capture_is_read_on_whatever_its_format() {
        let record = |big_endian: bool| {
            let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            [5, 7, 1, 60].into_iter().flat_map(word).chain([9]).collect::<Vec<u8>>()
        };
        let ng: Vec<u8> = [0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28, 1, 20, 113, 0, 20]
            .iter()
            .flat_map(|word: &u32| word.to_le_bytes())
            .collect();
        let parts = [
            record(false),
            file_header(0xa1b2_3c4d, true, 4),
            record(true),
            ng,
            file_header(0xa1b2_c3d4, false, 4),
            record(false),
            file_header(0xa1b2_c3d4, true, 4),
        ];
        let mut format = Format::Pcap(Pcap::open(&file_header(0xa1b2_c3d4, false, 4)).expect("a header"));
        let mut times = Vec::new();
        let bytes = parts.concat();
        let scanned = format.scan(&bytes, |frame| times.push((frame.time, frame.big_endian)));
        assert_eq!(times, [(5_000_007_000, false), (5_000_000_007, true), (5_000_007_000, false)]);
        assert_eq!(scanned, Scanned { consumed: bytes.len() as u64, stop: Stop::Needs(16) });
        let notes = format.findings().notes();
        assert!(
            notes.iter().any(|note| note.contains("5 concatenated captures") && note.contains("byte 17")),
            "{notes:?}"
        );
    }

    #[test]
    fn old_versions_swap_the_lengths() {
        let (frames, _) = frames(0xa1b2_c3d4, false, 2, &[5, 7, 60, 3], &[1, 2, 3]);
        assert_eq!((frames[0].captured, frames[0].length), (3, 60));
    }

    #[test]
    fn what_is_no_capture_is_told_apart() {
        assert!(Pcap::open(b"").is_err_and(|why| why.contains("empty")));
        assert!(Pcap::open(b"snoop").is_err_and(|why| why.contains("5 bytes")));
        assert!(Pcap::open(&[b'x'; 24]).is_err_and(|why| why.contains("78 78 78 78")));
    }
}
