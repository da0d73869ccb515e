//! The pcapng file format: several sections, interfaces, link types and time resolutions.
//!
//! Source: draft-ietf-opsawg-pcapng. Name resolution, custom and unknown blocks are skipped; of statistics, what the
//! capture dropped is kept.

use super::live::Drops;
use super::{Findings, Frame, Gap, Halt, MOST_LIMIT, foreign, pcap};
use crate::decode::LinkType;
use dataflows::layers::Text;
use std::sync::Arc;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// Section and interface blocks are read whole; a longer one is damage.
const MOST_HEADER_BLOCK: usize = 16 << 20;

/// A frame may be followed by options.
const MOST_PACKET_BLOCK: usize = MOST_LIMIT as usize + (1 << 20);

/// Statistics are read whole; longer ones are skipped.
const MOST_STATISTICS: usize = 1 << 20;

/// Interfaces of one section; more are damage. A frame has 16 bits for the number of its own.
const MOST_INTERFACES: usize = 1 << 16;

/// An interface of the current section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interface {
    link: LinkType,
    /// 0 is unlimited.
    snaplen: u32,
    resolution: Resolution,
    /// Seconds added to every timestamp.
    offset: i64,
    /// Its number in the section where it has no name.
    name: Text,
}

/// What the capture says that an interface of the current section dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Dropped {
    /// By its latest statistics.
    stated: Drops,
    /// By the packets that follow gaps.
    in_gaps: u64,
}

impl Dropped {
    /// Both speak of the same packets, so the larger one counts.
    fn total(self) -> Drops {
        let Self { stated, in_gaps } = self;
        let more = in_gaps.saturating_sub(stated.kernel.saturating_add(stated.interface));
        Drops { kernel: stated.kernel.saturating_add(more), ..stated }
    }
}

/// How a timestamp counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// One unit is so many nanoseconds.
    Nanos(u64),
    /// So many units make a nanosecond.
    UnitsANano(u64),
    /// 2^n units make a second.
    Binary(u8),
}

/// Where the reading of a pcapng file stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcapng {
    big_endian: bool,
    interfaces: Arc<Vec<Interface>>,
    /// Empty where nothing was dropped.
    dropped: Arc<Vec<Dropped>>,
    /// The latest frame's time: simple packet blocks have none of their own and take it.
    last_time: u64,
    /// What frames scanned say that was lost before them, since that was last taken.
    gaps: Vec<Gap>,
    pub(super) findings: Findings,
}

impl Pcapng {
    /// Whether these bytes begin with the magic numbers of a section.
    pub fn is_start(bytes: &[u8]) -> bool {
        bytes.get(8..12).is_some_and(|magic| {
            let is_magic = magic == BYTE_ORDER_MAGIC.to_le_bytes() || magic == BYTE_ORDER_MAGIC.to_be_bytes();
            is_magic && bytes.starts_with(&SECTION_HEADER.to_le_bytes())
        })
    }

    /// A reader where these first bytes start a section, whose header is then scanned as a block; or why this one cannot
    /// be read.
    pub fn open(bytes: &[u8]) -> Option<Result<Self, String>> {
        if !Self::is_start(bytes) {
            return None;
        }
        let mut pcapng = Self {
            big_endian: bytes[8..12] == BYTE_ORDER_MAGIC.to_be_bytes(),
            interfaces: Arc::default(),
            dropped: Arc::default(),
            last_time: 0,
            gaps: Vec::new(),
            findings: Findings::default(),
        };
        let version = bytes.get(12..16).map_or(Ok(()), |version| pcapng.version(version));
        pcapng.big_endian = false;
        Some(version.map(|()| pcapng))
    }

    /// Refuses a section of another major version (draft-ietf-opsawg-pcapng, 4.1: nothing else in it can be relied on).
    fn version(&self, version: &[u8]) -> Result<(), String> {
        match (self.u16(version, 0), self.u16(version, 2)) {
            (1, _) => Ok(()),
            (major, minor) => Err(format!("is pcapng version {major}.{minor}; only 1.x can be read")),
        }
    }

    /// What the capture says it dropped, of all interfaces so far.
    pub fn drops(&self) -> Drops {
        let add = |sum: Drops, more: Drops| Drops {
            kernel: sum.kernel.saturating_add(more.kernel),
            interface: sum.interface.saturating_add(more.interface),
        };
        self.dropped.iter().map(|dropped| dropped.total()).fold(self.findings.drops, add)
    }

    /// What the frames scanned since this was last asked say that was lost before them.
    pub fn take_gaps(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.gaps)
    }

    fn dropped_mut(&mut self, interface: u32) -> Option<&mut Dropped> {
        let interfaces = self.interfaces.len();
        let dropped = Arc::make_mut(&mut self.dropped);
        dropped.resize(interfaces, Dropped::default());
        dropped.get_mut(interface as usize)
    }

    /// The link types of the interfaces known so far.
    pub fn links(&self) -> impl Iterator<Item = LinkType> + '_ {
        self.interfaces.iter().map(|interface| interface.link)
    }

    /// The name of an interface of the section that is being scanned, or its number where it has none.
    #[inline(always)]
    pub(super) fn interface_name(&self, number: u16) -> Text {
        self.interfaces.get(usize::from(number)).map_or(Text::default(), |interface| interface.name)
    }

    /// The next frame from the block at `at` on, which moves behind that frame's block; or why there is none, with `at`
    /// at the block that cannot be read, beyond the bytes only where a block is skipped.
    #[inline(never)]
    pub(super) fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Frame, Halt> {
        loop {
            let (length, frame) = self.block(bytes, *at)?;
            *at += length;
            match frame {
                Some(frame) => return Ok(frame),
                None if *at > bytes.len() => return Err(Halt::Needs(12)),
                None => {}
            }
        }
    }

    /// Reads one block: its length, which reaches beyond the bytes only where the block is skipped, and the frame in it.
    #[inline(always)]
    fn block(&mut self, bytes: &[u8], at: usize) -> Result<(usize, Option<Frame>), Halt> {
        let rest = &bytes[at..];
        let Some(head) = rest.first_chunk::<12>() else { return Err(Halt::Needs(12)) };
        let kind = self.u32(head, 0);
        if kind == SECTION_HEADER {
            self.big_endian = match [head[8], head[9], head[10], head[11]] {
                magic if magic == BYTE_ORDER_MAGIC.to_le_bytes() => false,
                magic if magic == BYTE_ORDER_MAGIC.to_be_bytes() => true,
                _ => return Err(Halt::Damaged("a section header without its byte-order magic".into())),
            };
        }
        let length = self.u32(head, 4) as usize;
        if length < 12 || !length.is_multiple_of(4) {
            return self.odd_block(rest, at, kind, length);
        }
        let most = match kind {
            SECTION_HEADER | INTERFACE => MOST_HEADER_BLOCK,
            ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET => MOST_PACKET_BLOCK,
            STATISTICS if length <= MOST_STATISTICS => MOST_STATISTICS,
            _ if pcap::Pcap::is_start(rest) => return Err(Halt::Another),
            _ => return Ok((length, None)),
        };
        if length > most {
            return Err(Halt::Damaged(format!("a block of type {kind:#x} that claims {length} bytes")));
        }
        let Some(block) = rest.get(..length) else { return Err(Halt::Needs(length)) };
        if self.u32(block, length - 4) as usize != length && kind != STATISTICS {
            return Err(Halt::Damaged(format!("a block of type {kind:#x} whose two lengths differ")));
        }
        Ok((length, self.body(kind, &block[8..length - 4], at)?))
    }

    /// A block whose length cannot be right. Some writers leave padding out of the length, or leave it out altogether:
    /// where the block ends shows by its second length.
    #[cold]
    #[inline(never)]
    fn odd_block(
        &mut self,
        rest: &[u8],
        at: usize,
        kind: u32,
        length: usize,
    ) -> Result<(usize, Option<Frame>), Halt> {
        if pcap::Pcap::is_start(rest) {
            return Err(Halt::Another);
        }
        let claim = |why: &str| {
            Err(Halt::Damaged(format!("a block of type {kind:#x} that claims {length} bytes{why}")))
        };
        if let Some(name) = foreign::name(rest) {
            return claim(&format!(": {name} begins here; captures are joined once they are unpacked"));
        }
        let least = match kind {
            SECTION_HEADER => 28,
            INTERFACE => 20,
            ENHANCED_PACKET | OBSOLETE_PACKET => 32,
            SIMPLE_PACKET => 16,
            _ => 12,
        };
        if length < least {
            let is_zeros = kind == 0 && length == 0;
            return claim(if is_zeros { ": zeros, the file was not written to its end" } else { "" });
        }
        if length > MOST_PACKET_BLOCK {
            return claim("");
        }
        let ends_at =
            |end: usize| rest.get(end - 4..end).is_some_and(|last| self.u32(last, 0) as usize == length);
        let padded = length.next_multiple_of(4);
        let end = match (ends_at(length), rest.len() < padded) {
            (true, _) => length,
            (false, true) => return Err(Halt::Needs(padded)),
            (false, false) if ends_at(padded) => padded,
            _ => return claim(", no multiple of 4, and does not end there"),
        };
        let frame = self.body(kind, &rest[8..end - 4], at)?;
        self.findings.unpadded.note(self.findings.start, at);
        Ok((end, frame))
    }

    /// What is in a block that is read whole.
    #[inline(always)]
    fn body(&mut self, kind: u32, body: &[u8], at: usize) -> Result<Option<Frame>, Halt> {
        match kind {
            SECTION_HEADER => self.section(body)?,
            INTERFACE => self.interface(body)?,
            STATISTICS => self.statistics(body),
            ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET => {
                return self.packet(kind, body, at).map(Some);
            }
            _ => {}
        }
        Ok(None)
    }

    fn section(&mut self, body: &[u8]) -> Result<(), Halt> {
        let version = body.get(4..8).map_or(Ok(()), |version| self.version(version));
        version.map_err(|why| Halt::Damaged(format!("a section that {why}")))?;
        self.findings.drops = self.drops();
        (self.interfaces, self.dropped) = (Arc::default(), Arc::default());
        Ok(())
    }

    /// The options in these bytes, as code and value, up to the first that is cut off.
    fn options<'a>(&self, mut bytes: &'a [u8]) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let big_endian = self.big_endian;
        let half =
            move |half: [u8; 2]| if big_endian { u16::from_be_bytes(half) } else { u16::from_le_bytes(half) };
        std::iter::from_fn(move || {
            let (&[a, b, c, d], rest) = bytes.split_first_chunk::<4>()?;
            let (code, length) = (half([a, b]), usize::from(half([c, d])));
            let value = rest.get(..length)?;
            bytes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            (code != 0).then_some((code, value))
        })
    }

    fn u64_option(&self, value: &[u8]) -> Option<u64> {
        let value: [u8; 8] = value.try_into().ok()?;
        Some(if self.big_endian { u64::from_be_bytes(value) } else { u64::from_le_bytes(value) })
    }

    /// Statistics count from the start of the capture, so the latest ones of an interface replace those before.
    fn statistics(&mut self, body: &[u8]) {
        let Some(fixed) = body.first_chunk::<12>() else { return };
        let number = self.u32(fixed, 0);
        let mut stated = Drops::default();
        for (code, value) in self.options(&body[12..]) {
            let account = match code {
                // isb_ifdrop, isb_osdrop
                5 => &mut stated.interface,
                7 => &mut stated.kernel,
                _ => continue,
            };
            *account = self.u64_option(value).unwrap_or(0);
        }
        let is_news = stated != Drops::default() || !self.dropped.is_empty();
        if is_news && let Some(dropped) = self.dropped_mut(number) {
            dropped.stated = stated;
        }
    }

    /// The packets that were lost before this one: the option epb_dropcount, or a field of an obsolete block.
    #[cold]
    #[inline(never)]
    fn gap(&mut self, number: u32, (options, before): (&[u8], u64), time: u64) {
        let in_options = self.options(options).filter(|(code, _)| *code == 4);
        let lost: u64 =
            in_options.filter_map(|(_, value)| self.u64_option(value)).fold(before, u64::saturating_add);
        if lost > 0
            && let Some(dropped) = self.dropped_mut(number)
        {
            dropped.in_gaps = dropped.in_gaps.saturating_add(lost);
            let from = if self.last_time == 0 { time } else { self.last_time.min(time) };
            self.gaps.push(Gap { from, to: time, packets: lost });
        }
    }

    fn interface(&mut self, body: &[u8]) -> Result<(), Halt> {
        let Some(fixed) = body.first_chunk::<8>() else {
            return Err(Halt::Damaged("an interface description that is too short".into()));
        };
        let mut interface = Interface {
            link: LinkType(self.u16(fixed, 0).into()),
            snaplen: self.u32(fixed, 4),
            resolution: Resolution::Nanos(1000),
            offset: 0,
            name: Text::default(),
        };
        for (code, value) in self.options(&body[8..]) {
            match (code, value) {
                // if_name
                (2, name) => interface.name = Text::new(&String::from_utf8_lossy(name)),
                // if_tsresol
                (9, [resolution]) => interface.resolution = Resolution::read(*resolution)?,
                // if_tsoffset
                (14, offset) => {
                    interface.offset =
                        self.u64_option(offset).map_or(interface.offset, |offset| offset as i64);
                }
                _ => {}
            }
        }
        if self.interfaces.len() == MOST_INTERFACES {
            return Err(Halt::Damaged(format!("a section of more than {MOST_INTERFACES} interfaces")));
        }
        if interface.name == Text::default() {
            interface.name = Text::new(&self.interfaces.len().to_string());
        }
        Arc::make_mut(&mut self.interfaces).push(interface);
        Ok(())
    }

    /// The frame of the packet block at `at` in the scanned bytes.
    #[inline]
    fn packet(&mut self, kind: u32, body: &[u8], at: usize) -> Result<Frame, Halt> {
        let short = || Halt::Damaged("a packet block that is too short".into());
        let fixed = if kind == SIMPLE_PACKET { 4 } else { 20 };
        if body.len() < fixed {
            return Err(short());
        }
        let number = match kind {
            SIMPLE_PACKET => 0,
            OBSOLETE_PACKET => self.u16(body, 0).into(),
            _ => self.u32(body, 0),
        };
        let Some(&interface) = self.interfaces.get(number as usize) else {
            return Err(Halt::Damaged(format!("a packet of interface {number}, which was not described")));
        };
        let (captured, length) = if kind == SIMPLE_PACKET {
            let length = self.u32(body, 0);
            let snaplen = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
            (length.min(snaplen).min((body.len() - fixed) as u32), length)
        } else {
            (self.u32(body, 12), self.u32(body, 16))
        };
        if captured as usize > body.len() - fixed {
            return Err(Halt::Damaged(format!("a packet of {captured} captured bytes in a shorter block")));
        }
        let start = at + 8 + fixed;
        let frame = Frame {
            time: self.last_time,
            start,
            captured,
            length,
            link: interface.link,
            big_endian: self.big_endian,
            interface: number as u16,
        };
        if kind == SIMPLE_PACKET {
            return Ok(frame);
        }
        let options = body.get(fixed + (captured as usize).next_multiple_of(4)..).unwrap_or_default();
        let before = if kind == OBSOLETE_PACKET { u64::from(self.u16(body, 2)) % 0xffff } else { 0 };
        if !options.is_empty() || before > 0 {
            let units = u64::from(self.u32(body, 4)) << 32 | u64::from(self.u32(body, 8));
            self.gap(number, (options, before), interface.time(units));
        }
        if captured > length {
            return Ok(self.findings.contradiction(at, frame));
        }
        let units = u64::from(self.u32(body, 4)) << 32 | u64::from(self.u32(body, 8));
        self.last_time = interface.time(units);
        if self.last_time == 0 || self.last_time == u64::MAX {
            self.findings.clamped += u64::from(units > 0);
        }
        Ok(Frame { time: self.last_time, ..frame })
    }

    /// The number at `at`, which is within the bytes.
    #[inline(always)]
    fn u32(&self, bytes: &[u8], at: usize) -> u32 {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        if self.big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    }

    #[inline(always)]
    fn u16(&self, bytes: &[u8], at: usize) -> u16 {
        let half = [bytes[at], bytes[at + 1]];
        if self.big_endian { u16::from_be_bytes(half) } else { u16::from_le_bytes(half) }
    }
}

impl Resolution {
    /// The `if_tsresol` option: a power of ten, or of two where the top bit is set.
    fn read(option: u8) -> Result<Self, Halt> {
        match option {
            0..=9 => Ok(Self::Nanos(10u64.pow(9 - u32::from(option)))),
            10..=28 => Ok(Self::UnitsANano(10u64.pow(u32::from(option) - 9))),
            128..=191 => Ok(Self::Binary(option - 128)),
            _ => Err(Halt::Damaged(format!("an interface with the time resolution {option:#04x}"))),
        }
    }
}

impl Interface {
    /// Nanoseconds since the Unix epoch; times before it or after the year 2554 are its ends.
    #[inline]
    fn time(&self, units: u64) -> u64 {
        let nanos = match self.resolution {
            Resolution::Nanos(nanos) => units.saturating_mul(nanos),
            Resolution::UnitsANano(units_a_nano) => units / units_a_nano,
            Resolution::Binary(bits) => {
                u64::try_from((u128::from(units) * 1_000_000_000) >> bits).unwrap_or(u64::MAX)
            }
        };
        match self.offset {
            0 => nanos,
            offset => {
                let shifted = i128::from(nanos) + i128::from(offset) * 1_000_000_000;
                u64::try_from(shifted.max(0)).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Chunk, Format, Scanned, Stop};
    use super::*;

    fn block(kind: u32, body: &[u8], big_endian: bool) -> Vec<u8> {
        let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let padded = body.len().next_multiple_of(4);
        let length = word(padded as u32 + 12);
        let padding = vec![0; padded - body.len()];
        [&word(kind)[..], &length, body, &padding, &length].concat()
    }

    fn words(values: &[u32], big_endian: bool) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() })
            .collect()
    }

    fn versioned(major: u16, big_endian: bool) -> Vec<u8> {
        let half = if big_endian { major.to_be_bytes() } else { major.to_le_bytes() };
        let magic = words(&[BYTE_ORDER_MAGIC], big_endian);
        block(SECTION_HEADER, &[&magic[..], &half, &[0; 2], &[0xff; 8]].concat(), big_endian)
    }

    fn section(big_endian: bool) -> Vec<u8> {
        versioned(1, big_endian)
    }

    fn interface(link: u16, resolution: Option<u8>, big_endian: bool) -> Vec<u8> {
        let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut body = [&half(link)[..], &half(0), &[0; 4]].concat();
        if let Some(resolution) = resolution {
            body.extend_from_slice(&[&half(9)[..], &half(1), &[resolution, 0, 0, 0]].concat());
        }
        block(INTERFACE, &body, big_endian)
    }

    fn enhanced(interface: u32, units: u64, big_endian: bool) -> Vec<u8> {
        let fixed = words(&[interface, (units >> 32) as u32, units as u32, 3, 60], big_endian);
        block(ENHANCED_PACKET, &[&fixed[..], &[1, 2, 3]].concat(), big_endian)
    }

    fn scan(bytes: &[u8]) -> (Vec<Frame>, Scanned) {
        let mut frames = Vec::new();
        let pcapng = Pcapng::open(bytes).expect("a section").expect("of our version");
        let scanned = Format::Pcapng(pcapng).scan(bytes, |frame| frames.push(frame));
        (frames, scanned)
    }

    #[test]
    fn sections_and_interfaces_keep_their_own_order_link_and_resolution() {
        let bytes = [
            section(false),
            interface(1, None, false),
            interface(101, Some(9), false),
            enhanced(0, 5_000_007, false),
            enhanced(1, 5_000_007_000, false),
            section(true),
            interface(113, Some(128 + 32), true),
            enhanced(0, 5 << 32, true),
        ]
        .concat();
        let (frames, scanned) = scan(&bytes);
        let seen: Vec<_> = frames.iter().map(|frame| (frame.time, frame.link.0, frame.captured)).collect();
        assert_eq!(seen, [(5_000_007_000, 1, 3), (5_000_007_000, 101, 3), (5_000_000_000, 113, 3)]);
        assert_eq!(scanned, Scanned { consumed: bytes.len() as u64, stop: Stop::Needs(12) });
        assert!(frames.iter().all(|frame| bytes[frame.start..][..3] == [1, 2, 3]));
    }

    #[test]
    fn simple_and_obsolete_packet_blocks_are_read() {
        let simple = block(SIMPLE_PACKET, &[&words(&[3], false)[..], &[1, 2, 3]].concat(), false);
        let obsolete =
            block(OBSOLETE_PACKET, &[&words(&[0, 0, 9, 3, 70], false)[..], &[1, 2, 3]].concat(), false);
        let (frames, _) = scan(&[section(false), interface(1, None, false), obsolete, simple].concat());
        let seen: Vec<_> = frames.iter().map(|frame| (frame.time, frame.captured, frame.length)).collect();
        assert_eq!(seen, [(9_000, 3, 70), (9_000, 3, 3)]);
    }

    #[test]
    fn a_block_to_skip_may_reach_beyond_the_bytes() {
        let mut bytes = [section(false), block(0xbad, &[0; 400], false)].concat();
        let whole = bytes.len() as u64;
        bytes.truncate(60);
        assert_eq!(scan(&bytes).1, Scanned { consumed: whole, stop: Stop::Needs(12) });
    }

    #[test]
    fn damage_is_told_and_never_counted() {
        let good = [section(false), interface(1, None, false)].concat();
        let mut differing = enhanced(0, 1, false);
        *differing.last_mut().expect("bytes") = 1;
        for bad in [enhanced(7, 1, false), differing, words(&[6, 3, 0], false), words(&[6, 13, 0], false)] {
            let bytes = [&good[..], &bad].concat();
            let (frames, scanned) = scan(&bytes);
            assert!(frames.is_empty());
            assert!(matches!(scanned.stop, Stop::Damaged(_)), "{scanned:?}");
            assert_eq!(scanned.consumed, good.len() as u64);
        }
    }

    fn option(code: u16, value: &[u8]) -> Vec<u8> {
        [&code.to_le_bytes()[..], &(value.len() as u16).to_le_bytes(), value].concat()
    }

    fn statistics(interface: u32, by_interface: u64, by_kernel: u64) -> Vec<u8> {
        let (first, second) = (option(5, &by_interface.to_le_bytes()), option(7, &by_kernel.to_le_bytes()));
        block(STATISTICS, &[&words(&[interface, 0, 0], false)[..], &first, &second].concat(), false)
    }

    fn behind_gap(lost: u64) -> Vec<u8> {
        let fixed = words(&[0, 0, 9, 3, 60], false);
        let options = option(4, &lost.to_le_bytes());
        block(ENHANCED_PACKET, &[&fixed[..], &[1, 2, 3, 0], &options].concat(), false)
    }

    #[test]
    fn a_gap_is_between_the_packet_that_tells_of_it_and_the_one_before() {
        let bytes =
            [section(false), interface(1, None, false), behind_gap(7), enhanced(0, 30, false), behind_gap(2)];
        let bytes = bytes.concat();
        let mut format = Format::Pcapng(Pcapng::open(&bytes).expect("a section").expect("of our version"));
        format.scan(&bytes, |_| {});
        let gap = |from, to, packets| Gap { from, to, packets };
        // Times that run backwards: the gap has no length.
        assert_eq!(format.take_gaps(), [gap(9_000, 9_000, 7), gap(9_000, 9_000, 2)]);
        assert_eq!(format.take_gaps(), []);
    }

    #[test]
    fn what_the_capture_dropped_is_the_latest_word_of_each_interface_of_each_section() {
        let drops = |blocks: &[Vec<u8>]| {
            let bytes = [&[section(false), interface(1, None, false), interface(1, None, false)], blocks]
                .concat()
                .concat();
            let mut format =
                Format::Pcapng(Pcapng::open(&bytes).expect("a section").expect("of our version"));
            assert_eq!(format.scan(&bytes, |_| {}).stop, Stop::Needs(12));
            let Drops { interface, kernel } = format.drops();
            (interface, kernel)
        };
        assert_eq!(drops(&[enhanced(0, 1, false)]), (0, 0));
        assert_eq!(drops(&[statistics(0, 1, 20), statistics(0, 2, 50), statistics(1, 3, 0)]), (5, 50));
        assert_eq!(drops(&[behind_gap(7), behind_gap(2)]), (0, 9));
        assert_eq!(drops(&[behind_gap(7), statistics(0, 2, 4)]), (2, 5), "both speak of the same packets");
        assert_eq!(drops(&[behind_gap(7), statistics(0, 50, 5000)]), (50, 5000));
        let second = [section(false), interface(1, None, false), statistics(0, 0, 3)].concat();
        assert_eq!(drops(&[statistics(0, 1, 1), second]), (1, 4));
        assert_eq!(drops(&[statistics(9, 1, 1), block(STATISTICS, &[0; 4], false)]), (0, 0));
    }

    #[test]
    fn frames_tell_the_name_of_their_interface_and_else_its_number_in_its_section() {
        let named = |name: &[u8], big_endian: bool| {
            let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
            let padding = vec![0; name.len().next_multiple_of(4) - name.len()];
            let option = [&half(2)[..], &half(name.len() as u16), name, &padding].concat();
            block(INTERFACE, &[&half(1)[..], &[0; 6], &option].concat(), big_endian)
        };
        let long = r"\Device\NPF_{3F2504E0-4F89-11D3-9A0C-0305E82C3301}";
        let bytes = [
            section(false),
            named(b"eth0", false),
            interface(1, None, false),
            named(b"", false),
            enhanced(1, 0, false),
            enhanced(0, 0, false),
            enhanced(2, 0, false),
            section(true),
            enhanced(9, 0, true),
        ];
        let of = |blocks: &[Vec<u8>]| {
            let bytes = blocks.concat();
            let format = Format::Pcapng(Pcapng::open(&bytes).expect("a section").expect("of our version"));
            let (mut chunk, mut names) =
                (Chunk { bytes, format: Some(format), ..Chunk::default() }, Vec::new());
            chunk.frames_and_interfaces(|frame, _, _, format| names.push(format.interface(frame).text()));
            names
        };
        assert_eq!(of(&bytes), ["1", "eth0", "2"]);
        let second =
            [named(long.as_bytes(), true), named(&[b'w', 0xff, b'0', 0], true), enhanced(1, 0, true)];
        let both = [&bytes[..8], &second, &[enhanced(0, 0, true)]].concat();
        assert_eq!(of(&both), ["1", "eth0", "2", "w\u{fffd}0", long]);
    }

    #[test]
    fn a_section_of_another_major_version_is_refused_first_and_damage_later() {
        for big_endian in [false, true] {
            let why =
                Pcapng::open(&versioned(2, big_endian)).expect("a section").expect_err("of another version");
            assert!(why.contains("version 2.0"), "{why}");
            let good = [section(false), interface(1, None, false), enhanced(0, 1, false)].concat();
            let (frames, scanned) = scan(&[&good[..], &versioned(2, big_endian)].concat());
            assert_eq!((frames.len(), scanned.consumed), (1, good.len() as u64));
            assert!(matches!(scanned.stop, Stop::Damaged(why) if why.contains("version 2.0")));
        }
    }

    #[test]
    fn lengths_without_their_padding_are_rounded_up_whether_the_padding_is_there_or_not() {
        let head = [section(false), interface(1, None, false)].concat();
        let fixed = words(&[0, 0, 9, 3, 60], false);
        let length = 12 + 20 + 3;
        let odd = |padding: &[u8]| {
            [
                &words(&[ENHANCED_PACKET, length], false)[..],
                &fixed,
                &[1, 2, 3],
                padding,
                &words(&[length], false),
            ]
            .concat()
        };
        for block in [odd(&[0]), odd(&[])] {
            let bytes = [&head[..], &block, &enhanced(0, 10, false), &block].concat();
            let mut frames = Vec::new();
            let mut format =
                Format::Pcapng(Pcapng::open(&bytes).expect("a section").expect("of our version"));
            let scanned =
                format.scan(&bytes, |frame| frames.push((frame.time, bytes[frame.start..][..3].to_vec())));
            assert_eq!(scanned, Scanned { consumed: bytes.len() as u64, stop: Stop::Needs(12) });
            let whole = |time| (time, vec![1, 2, 3]);
            assert_eq!(frames, [whole(9_000), whole(10_000), whole(9_000)]);
            let notes = format.findings().notes();
            assert!(notes[0].contains("2 blocks") && notes[0].contains("byte 48"), "{notes:?}");
        }
    }

    #[test]
    fn a_packet_that_contradicts_itself_is_a_damaged_frame() {
        let fixed = words(&[0, 0, 9, 3, 2], false);
        let bad = block(ENHANCED_PACKET, &[&fixed[..], &[1, 2, 3]].concat(), false);
        let (frames, scanned) =
            scan(&[section(false), interface(1, None, false), bad, enhanced(0, 10, false)].concat());
        let seen: Vec<_> = frames.iter().map(|frame| (frame.link, frame.time)).collect();
        assert_eq!(seen, [(LinkType::DAMAGED, 0), (LinkType(1), 10_000)]);
        assert_eq!(scanned.stop, Stop::Needs(12));
    }

    #[test]
    fn times_beyond_what_can_be_kept_are_clamped() {
        let interface = |resolution, offset| Interface {
            link: LinkType(1),
            snaplen: 0,
            resolution,
            offset,
            name: Text::default(),
        };
        assert_eq!(interface(Resolution::Nanos(1000), 0).time(u64::MAX), u64::MAX);
        assert_eq!(interface(Resolution::Nanos(1), -10).time(5), 0);
        assert_eq!(interface(Resolution::UnitsANano(1000), 1).time(7_999), 1_000_000_007);
        assert_eq!(interface(Resolution::Binary(1), 0).time(3), 1_500_000_000);
    }
}
