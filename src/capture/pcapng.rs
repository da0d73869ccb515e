//! The pcapng file format: several sections, interfaces, link types and time resolutions.
//!
//! Source: draft-ietf-opsawg-pcapng. Name resolution, statistics, custom and unknown blocks are skipped.

use super::{Frame, Stop, frame_limit};
use crate::decode::LinkType;
use std::sync::Arc;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

/// Section and interface blocks are read whole; a longer one is damage.
const MOST_HEADER_BLOCK: usize = 16 << 20;

/// Interfaces of one section; more are damage.
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
    /// The latest frame's time: simple packet blocks have none of their own and take it.
    last_time: u64,
    /// Frames whose time lies beyond what can be kept.
    clamped: u64,
}

impl Pcapng {
    /// Whether these first bytes (at least 12 of them) start a section; the section header is then scanned as a block.
    pub fn open(bytes: &[u8]) -> Option<Self> {
        let magic = bytes.get(8..12)?;
        let is_section = bytes.starts_with(&SECTION_HEADER.to_le_bytes())
            && (magic == BYTE_ORDER_MAGIC.to_le_bytes() || magic == BYTE_ORDER_MAGIC.to_be_bytes());
        is_section.then(|| Self { big_endian: false, interfaces: Arc::default(), last_time: 0, clamped: 0 })
    }

    /// How many frames' times were outside of 1970 to 2554 and were put at its ends.
    pub fn clamped(&self) -> u64 {
        self.clamped
    }

    /// The link types of the interfaces known so far.
    pub fn links(&self) -> impl Iterator<Item = LinkType> + '_ {
        self.interfaces.iter().map(|interface| interface.link)
    }

    /// The next frame from the block at `at` on, which moves behind that frame's block; or why there is none, with `at`
    /// at the block that cannot be read, beyond the bytes only where a block is skipped.
    #[inline(never)]
    pub fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Frame, Stop> {
        loop {
            let (length, frame) = self.block(bytes, *at)?;
            *at += length;
            match frame {
                Some(frame) => return Ok(frame),
                None if *at > bytes.len() => return Err(Stop::Needs(12)),
                None => {}
            }
        }
    }

    /// Reads one block: its length, which reaches beyond the bytes only where the block is skipped, and the frame in it.
    #[inline(always)]
    fn block(&mut self, bytes: &[u8], at: usize) -> Result<(usize, Option<Frame>), Stop> {
        let rest = &bytes[at..];
        let Some(head) = rest.first_chunk::<12>() else { return Err(Stop::Needs(12)) };
        let kind = self.u32(head, 0);
        if kind == SECTION_HEADER {
            self.big_endian = match [head[8], head[9], head[10], head[11]] {
                magic if magic == BYTE_ORDER_MAGIC.to_le_bytes() => false,
                magic if magic == BYTE_ORDER_MAGIC.to_be_bytes() => true,
                _ => return Err(Stop::Damaged("a section header without its byte-order magic".into())),
            };
        }
        let length = self.u32(head, 4) as usize;
        if length < 12 || !length.is_multiple_of(4) {
            return Err(Stop::Damaged(format!("a block of type {kind:#x} that claims {length} bytes")));
        }
        let most = match kind {
            SECTION_HEADER | INTERFACE => MOST_HEADER_BLOCK,
            // A frame may be followed by options.
            ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET => frame_limit(u32::MAX) as usize + (1 << 20),
            _ => return Ok((length, None)),
        };
        if length > most {
            return Err(Stop::Damaged(format!("a block of type {kind:#x} that claims {length} bytes")));
        }
        let Some(block) = rest.get(..length) else { return Err(Stop::Needs(length)) };
        if self.u32(block, length - 4) as usize != length {
            return Err(Stop::Damaged(format!("a block of type {kind:#x} whose two lengths differ")));
        }
        let body = &block[8..length - 4];
        match kind {
            SECTION_HEADER => self.interfaces = Arc::default(),
            INTERFACE => self.interface(body)?,
            _ => return Ok((length, Some(self.packet(kind, body, at + 8)?))),
        }
        Ok((length, None))
    }

    fn interface(&mut self, body: &[u8]) -> Result<(), Stop> {
        let Some(fixed) = body.first_chunk::<8>() else {
            return Err(Stop::Damaged("an interface description that is too short".into()));
        };
        let mut interface = Interface {
            link: LinkType(self.u16(fixed, 0).into()),
            snaplen: self.u32(fixed, 4),
            resolution: Resolution::Nanos(1000),
            offset: 0,
        };
        let mut options = &body[8..];
        while let Some((head, rest)) = options.split_first_chunk::<4>() {
            let (code, length) = (self.u16(head, 0), usize::from(self.u16(head, 2)));
            let Some(value) = rest.get(..length) else { break };
            match (code, value) {
                (0, _) => break,
                // if_tsresol
                (9, [resolution]) => interface.resolution = Resolution::read(*resolution)?,
                // if_tsoffset
                (14, offset) if offset.len() == 8 => {
                    let (low, high) = (self.u32(offset, 0), self.u32(offset, 4));
                    let (low, high) = if self.big_endian { (high, low) } else { (low, high) };
                    interface.offset = (u64::from(high) << 32 | u64::from(low)) as i64;
                }
                _ => {}
            }
            options = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if self.interfaces.len() == MOST_INTERFACES {
            return Err(Stop::Damaged(format!("a section of more than {MOST_INTERFACES} interfaces")));
        }
        Arc::make_mut(&mut self.interfaces).push(interface);
        Ok(())
    }

    /// The frame of a packet block whose body starts at `start` in the scanned bytes.
    #[inline]
    fn packet(&mut self, kind: u32, body: &[u8], start: usize) -> Result<Frame, Stop> {
        let short = || Stop::Damaged("a packet block that is too short".into());
        let fixed = if kind == SIMPLE_PACKET { 4 } else { 20 };
        if body.len() < fixed {
            return Err(short());
        }
        let number = match kind {
            SIMPLE_PACKET => 0,
            OBSOLETE_PACKET => self.u16(body, 0).into(),
            _ => self.u32(body, 0),
        };
        let Some(interface) = self.interfaces.get(number as usize) else {
            return Err(Stop::Damaged(format!("a packet of interface {number}, which was not described")));
        };
        let (captured, length) = if kind == SIMPLE_PACKET {
            let length = self.u32(body, 0);
            let snaplen = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
            (length.min(snaplen).min((body.len() - fixed) as u32), length)
        } else {
            let units = u64::from(self.u32(body, 4)) << 32 | u64::from(self.u32(body, 8));
            self.last_time = interface.time(units);
            if self.last_time == 0 || self.last_time == u64::MAX {
                self.clamped += u64::from(units > 0);
            }
            (self.u32(body, 12), self.u32(body, 16))
        };
        if captured as usize > body.len() - fixed {
            return Err(Stop::Damaged(format!("a packet of {captured} captured bytes in a shorter block")));
        }
        Ok(Frame { time: self.last_time, start: start + fixed, captured, length, link: interface.link })
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
    fn read(option: u8) -> Result<Self, Stop> {
        match option {
            0..=9 => Ok(Self::Nanos(10u64.pow(9 - u32::from(option)))),
            10..=28 => Ok(Self::UnitsANano(10u64.pow(u32::from(option) - 9))),
            128..=191 => Ok(Self::Binary(option - 128)),
            _ => Err(Stop::Damaged(format!("an interface with the time resolution {option:#04x}"))),
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
    use super::super::{Format, Scanned};
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

    fn section(big_endian: bool) -> Vec<u8> {
        block(SECTION_HEADER, &words(&[BYTE_ORDER_MAGIC, 1, u32::MAX, u32::MAX], big_endian), big_endian)
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
        let pcapng = Pcapng::open(bytes).expect("a section");
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

    #[test]
    fn times_beyond_what_can_be_kept_are_clamped() {
        let interface = |resolution, offset| Interface { link: LinkType(1), snaplen: 0, resolution, offset };
        assert_eq!(interface(Resolution::Nanos(1000), 0).time(u64::MAX), u64::MAX);
        assert_eq!(interface(Resolution::Nanos(1), -10).time(5), 0);
        assert_eq!(interface(Resolution::UnitsANano(1000), 1).time(7_999), 1_000_000_007);
        assert_eq!(interface(Resolution::Binary(1), 0).time(3), 1_500_000_000);
    }
}
