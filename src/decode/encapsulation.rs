//! Headers that stand between the link layer and IP: LLC, tags of switches and fabrics, PPP, MPLS and its pseudowires.
//!
//! One loop steps from header to header; each step consumes bytes, so any frame ends it. What is behind an MPLS label
//! stack is not named by it (RFC 4928), so there the possible readings are tried and the soundest one is taken.

use super::link::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Found, IpVersion};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a frame holds where no IP header was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NotIp {
    /// Another protocol, or one that hides what it carries, by its EtherType.
    EtherType(u16),
    /// Another protocol, by DSAP and SSAP of its LLC header (IEEE 802.2).
    Llc(u8, u8),
    /// Another protocol, by its PPP number.
    Ppp(u16),
    /// An address family of a BSD loopback header.
    Family(u32),
    /// It ends before its headers do.
    CutOff,
    /// Nothing is known of it: its link type is not decoded.
    LinkType,
}

impl NotIp {
    /// Whether frames of this kind carry no IP by their nature; all others may hide it.
    pub fn is_plain_control(self) -> bool {
        match self {
            Self::EtherType(number) => ether_type_name(number).is_some_and(|(_, is_control)| is_control),
            Self::Llc(..) => true,
            // Link and network control protocols (RFC 1661, 2).
            Self::Ppp(number) => number >= 0x8000,
            Self::CutOff => true,
            Self::Family(_) | Self::LinkType => false,
        }
    }
}

impl fmt::Display for NotIp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EtherType(number) => {
                write!(out, "EtherType {number:#06x}")?;
                ether_type_name(*number).map_or(Ok(()), |(name, _)| write!(out, " ({name})"))
            }
            Self::Llc(0x42, 0x42) => out.write_str("LLC 42/42 (spanning tree)"),
            Self::Llc(dsap, ssap) => write!(out, "LLC {dsap:02x}/{ssap:02x}"),
            Self::Ppp(number) => write!(out, "PPP protocol {number:#06x}"),
            Self::Family(number) => write!(out, "address family {number}"),
            Self::CutOff => out.write_str("cut off before their protocol"),
            Self::LinkType => out.write_str("link type not decoded"),
        }
    }
}

/// Names of EtherTypes that are met often, and whether they carry no IP by their nature.
fn ether_type_name(number: u16) -> Option<(&'static str, bool)> {
    Some(match number {
        0x0806 => ("ARP", true),
        0x0842 => ("Wake-on-LAN", true),
        0x22ea => ("stream reservation", true),
        0x22f0 => ("AVTP", true),
        0x22f4 => ("TRILL IS-IS", true),
        0x6002..=0x6004 => ("DECnet", true),
        0x8035 => ("RARP", true),
        0x809b => ("AppleTalk", true),
        0x80f3 => ("AppleTalk ARP", true),
        0x8137 => ("IPX", true),
        0x8808 => ("flow control", true),
        0x8809 => ("slow protocols, LACP", true),
        0x8863 => ("PPPoE discovery", true),
        0x888e => ("802.1X", true),
        0x8892 => ("PROFINET", true),
        0x88a4 => ("EtherCAT", true),
        0x88b8 => ("GOOSE", true),
        0x88ba => ("sampled values", true),
        0x88cc => ("LLDP", true),
        0x88e1 => ("HomePlug", true),
        0x88f5 => ("MVRP", true),
        0x88f7 => ("PTP", true),
        0x88fb => ("HSR and PRP supervision", true),
        0x8902 => ("OAM, CFM", true),
        0x8906 => ("FCoE", true),
        0x8914 => ("FCoE initialization", true),
        0x9000 => ("loopback test", true),
        0x8847 | 0x8848 => ("MPLS", false),
        0x8899 => ("Realtek", false),
        0x88e5 => ("MACsec", false),
        0x894f => ("NSH", false),
        _ => return None,
    })
}

/// How the next bytes are to be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Layer {
    /// As what this EtherType names; up to 1500 it is the length of an LLC frame (IEEE 802.3).
    EtherType(u16),
    /// As an Ethernet header.
    Ethernet,
    /// As an LLC header.
    Llc,
    /// As a PPP protocol field.
    Ppp,
    /// As an MPLS label stack.
    Mpls,
}

/// What a header was followed by.
enum Step<'a> {
    Ip(IpVersion, &'a [u8]),
    Into(Layer, &'a [u8]),
    Found(Found<'a>),
}

type Stepped<'a> = Result<Step<'a>, NotIp>;

/// How often readings of what is behind a label stack are tried within one another.
pub(super) const TRIALS: u8 = 2;

/// Tags and labels met on the way to an IP header.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tags {
    vlan: Option<u16>,
    inner_vlan: Option<u16>,
    mpls_label: Option<u32>,
}

impl Tags {
    /// Notes a VLAN tag by its control field (IEEE 802.1Q, 9.6).
    #[inline(always)]
    pub(super) fn note_vlan(&mut self, control: u16) {
        let identifier = control & 0xfff;
        if self.vlan.is_none() {
            self.vlan = Some(identifier);
        } else {
            self.inner_vlan.get_or_insert(identifier);
        }
    }

    /// What was found directly behind these.
    #[inline(always)]
    pub(super) fn found(self, version: IpVersion, bytes: &[u8]) -> Found<'_> {
        self.before(Found::untagged(version, bytes))
    }

    /// What was found behind these and the tags and labels of its own.
    #[inline(always)]
    fn before(self, found: Found<'_>) -> Found<'_> {
        let (vlan, next) = self.vlan.map_or((found.vlan, found.inner_vlan), |vlan| (vlan, found.vlan));
        let inner_vlan = self.inner_vlan.unwrap_or(next);
        let mpls_label = self.mpls_label.unwrap_or(found.mpls_label);
        Found { vlan, inner_vlan, mpls_label, ..found }
    }
}

/// Steps over headers to the outermost IP header. `tags` are those met so far.
pub(super) fn walk(
    mut layer: Layer,
    mut bytes: &[u8],
    mut tags: Tags,
    trials: u8,
) -> Result<Found<'_>, NotIp> {
    loop {
        let step = match layer {
            Layer::EtherType(number) => ether_type(number, bytes, &mut tags)?,
            Layer::Ethernet => {
                let (header, rest) = split::<14>(bytes)?;
                Step::Into(Layer::EtherType(u16::from_be_bytes([header[12], header[13]])), rest)
            }
            Layer::Llc => llc(bytes)?,
            Layer::Ppp => ppp(bytes)?,
            Layer::Mpls => mpls(bytes, &mut tags, trials)?,
        };
        match step {
            Step::Into(next, rest) => (layer, bytes) = (next, rest),
            Step::Ip(version, bytes) => return Ok(tags.found(version, bytes)),
            Step::Found(found) => return Ok(tags.before(found)),
        }
    }
}

fn split<const BYTES: usize>(bytes: &[u8]) -> Result<(&[u8; BYTES], &[u8]), NotIp> {
    bytes.split_first_chunk().ok_or(NotIp::CutOff)
}

fn skip(bytes: &[u8], length: usize) -> Result<&[u8], NotIp> {
    bytes.get(length..).ok_or(NotIp::CutOff)
}

/// Steps over a tag of so many bytes, which an EtherType follows.
fn tag(bytes: &[u8], length: usize) -> Stepped<'_> {
    let (number, rest) = split(skip(bytes, length)?)?;
    Ok(Step::Into(Layer::EtherType(u16::from_be_bytes(*number)), rest))
}

fn ether_type<'a>(number: u16, bytes: &'a [u8], tags: &mut Tags) -> Stepped<'a> {
    let unknown = Err(NotIp::EtherType(number));
    match number {
        ETHERTYPE_IPV4 => Ok(Step::Ip(IpVersion::V4, bytes)),
        ETHERTYPE_IPV6 => Ok(Step::Ip(IpVersion::V6, bytes)),
        // 802.1Q, 802.1ad, and the tags that came before that standard.
        0x8100 | 0x88a8 | 0x8200 | 0x9100 | 0x9200 | 0x9300 => {
            let (control, _) = split(bytes)?;
            tags.note_vlan(u16::from_be_bytes(*control));
            tag(bytes, 2)
        }
        0x8847 | 0x8848 => Ok(Step::Into(Layer::Mpls, bytes)),
        // A PPPoE session packet (RFC 2516).
        0x8864 => Ok(Step::Into(Layer::Ppp, skip(bytes, 6)?)),
        0..=1500 => Ok(Step::Into(Layer::Llc, bytes)),
        // VN-Tag; HSR (IEC 62439-3); R-TAG (802.1CB); E-Tag (802.1BR).
        0x8926 | 0x892f | 0xf1c1 => tag(bytes, 4),
        0x893f => tag(bytes, 6),
        // Transparent Ethernet bridging; FabricPath, behind its FTAG; 802.1ah, behind its I-TAG.
        0x6558 => Ok(Step::Into(Layer::Ethernet, bytes)),
        0x8903 => Ok(Step::Into(Layer::Ethernet, skip(bytes, 2)?)),
        0x88e7 => Ok(Step::Into(Layer::Ethernet, skip(bytes, 4)?)),
        // TRILL (RFC 6325): the length of its options, in words, is spread over the first two bytes.
        0x22f3 => {
            let (header, rest) = split::<6>(bytes)?;
            let words = usize::from((header[0] & 7) << 2 | header[1] >> 6);
            Ok(Step::Into(Layer::Ethernet, skip(rest, words * 4)?))
        }
        // Cisco MetaData: version, number of options of four bytes each, options.
        0x8909 => match split::<2>(bytes)? {
            ([1, options], _) => tag(bytes, 2 + 4 * usize::from(*options)),
            _ => unknown,
        },
        // EtherType DSA of Marvell: two reserved bytes, then a tag that may stand for a VLAN tag.
        0xdada => {
            let (dsa, _) = split::<6>(bytes)?;
            if dsa[2] & 0x20 > 0 {
                tags.note_vlan(u16::from_be_bytes([dsa[4], dsa[5]]));
            }
            tag(bytes, 6)
        }
        // Realtek's tags of four (RTL8366RB) and eight (RTL8365MB) bytes; its other protocols carry no IP.
        0x8899 => match bytes.first().ok_or(NotIp::CutOff)? {
            0xa0..=0xaf => tag(bytes, 2),
            0x04 => tag(bytes, 6),
            _ => unknown,
        },
        0x88e5 => macsec(bytes),
        0x894f => nsh(bytes),
        _ => unknown,
    }
}

/// A MACsec tag (IEEE 802.1AE, 9.3); what is encrypted stays so.
fn macsec(bytes: &[u8]) -> Stepped<'_> {
    let (header, _) = split::<6>(bytes)?;
    let (is_version_0, has_identifier, is_changed) =
        (header[0] & 0x80 == 0, header[0] & 0x20 > 0, header[0] & 0x0c > 0);
    if !is_version_0 || is_changed {
        return Err(NotIp::EtherType(0x88e5));
    }
    tag(bytes, if has_identifier { 14 } else { 6 })
}

/// A network service header (RFC 8300).
fn nsh(bytes: &[u8]) -> Stepped<'_> {
    let (header, _) = split::<8>(bytes)?;
    let length = usize::from(header[1] & 0x3f) * 4;
    if header[0] >> 6 != 0 || length < 8 {
        return Err(NotIp::EtherType(0x894f));
    }
    let rest = skip(bytes, length)?;
    Ok(match header[3] {
        1 => Step::Ip(IpVersion::V4, rest),
        2 => Step::Ip(IpVersion::V6, rest),
        3 => Step::Into(Layer::Ethernet, rest),
        4 => Step::Into(Layer::EtherType(0x894f), rest),
        5 => Step::Into(Layer::Mpls, rest),
        _ => return Err(NotIp::EtherType(0x894f)),
    })
}

/// An LLC header, mostly SNAP (IEEE 802).
fn llc(bytes: &[u8]) -> Stepped<'_> {
    let ([dsap, ssap, control], rest) = split::<3>(bytes)?;
    let other = Err(NotIp::Llc(*dsap, *ssap));
    match (dsap, ssap, control) {
        (0xaa, 0xaa, 3) => {
            let (snap, rest) = split::<5>(rest)?;
            let protocol = u16::from_be_bytes([snap[3], snap[4]]);
            match &snap[..3] {
                // An EtherType as it is, or as 802.1H translates it.
                [0, 0, 0] | [0, 0, 0xf8] if protocol >= 0x600 => {
                    Ok(Step::Into(Layer::EtherType(protocol), rest))
                }
                // A bridged Ethernet frame, with or without its check sum.
                [0, 0x80, 0xc2] if matches!(protocol, 1 | 7) => Ok(Step::Into(Layer::Ethernet, rest)),
                _ => other,
            }
        }
        (0x06, 0x06, 3) => Ok(Step::Ip(IpVersion::V4, rest)),
        _ => other,
    }
}

/// A PPP protocol field, compressed to one byte or not (RFC 1661, 6.5), and what it names.
fn ppp(bytes: &[u8]) -> Stepped<'_> {
    let (protocol, rest) = match bytes {
        [first, rest @ ..] if first & 1 == 1 => (u16::from(*first), rest),
        [first, second, rest @ ..] => (u16::from_be_bytes([*first, *second]), rest),
        _ => return Err(NotIp::CutOff),
    };
    match protocol {
        0x0021 => Ok(Step::Ip(IpVersion::V4, rest)),
        0x0057 => Ok(Step::Ip(IpVersion::V6, rest)),
        0x0281 | 0x0283 => Ok(Step::Into(Layer::Mpls, rest)),
        // Multilink with long sequence numbers (RFC 1990): only a first fragment begins with a header.
        0x003d => match split::<4>(rest)? {
            ([flags, ..], rest) if flags & 0x80 > 0 => Ok(Step::Into(Layer::Ppp, rest)),
            _ => Err(NotIp::Ppp(protocol)),
        },
        _ => Err(NotIp::Ppp(protocol)),
    }
}

/// Pops labels (RFC 3032) to the bottom of the stack. What lies there is IP, or the Ethernet frame of a pseudowire with a
/// control word (RFC 4385) or without one: an address may begin like either.
fn mpls<'a>(mut bytes: &'a [u8], tags: &mut Tags, trials: u8) -> Stepped<'a> {
    loop {
        let (label, rest) = split::<4>(bytes)?;
        bytes = rest;
        tags.mpls_label.get_or_insert(u32::from_be_bytes(*label) >> 12);
        if label[2] & 1 == 1 {
            break;
        }
    }
    let nibble = bytes.first().ok_or(NotIp::CutOff)? >> 4;
    let plain = Found::untagged(IpVersion::ByNibble, bytes);
    let by_nibble = matches!(nibble, 4 | 6).then_some(plain);
    if nibble == 4 && soundness(&plain) == Soundness::Proven {
        return Ok(Step::Found(plain));
    }
    let as_ethernet = |bytes| {
        let found = walk(Layer::Ethernet, bytes, Tags::default(), trials.checked_sub(1)?).ok()?;
        Some((soundness(&found), found))
    };
    let behind_control_word = bytes.get(4..).filter(|_| nibble == 0).and_then(as_ethernet);
    let directly = as_ethernet(bytes);
    let best = match (behind_control_word, directly) {
        (Some(first), Some(second)) => Some(if second.0 > first.0 { second } else { first }),
        (first, second) => first.or(second),
    };
    match (best, by_nibble) {
        (Some((Soundness::Proven, found)), _) => Ok(Step::Found(found)),
        (_, Some(found)) => Ok(Step::Found(found)),
        (Some((Soundness::Likely, found)), None) => Ok(Step::Found(found)),
        _ => Err(NotIp::EtherType(0x8847)),
    }
}

/// How much a header looks like what it is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Soundness {
    Broken,
    /// Its version and lengths may be.
    Likely,
    /// Its check sum is right; of IPv6, which has none, its length is exactly that of the bytes.
    Proven,
}

fn soundness(found: &Found<'_>) -> Soundness {
    let bytes = found.bytes;
    match (bytes.first().map(|first| first >> 4), found.version) {
        (Some(4), IpVersion::V4 | IpVersion::ByNibble) => {
            let length = usize::from(bytes[0] & 0xf) * 4;
            let total =
                bytes.get(2..4).map_or(0, |total| usize::from(u16::from_be_bytes([total[0], total[1]])));
            if length < 20 || (total > 0 && total < length) {
                return Soundness::Broken;
            }
            let Some(header) = bytes.get(..length) else { return Soundness::Likely };
            let words = header.as_chunks().0.iter();
            let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
            if (sum & 0xffff) + (sum >> 16) == 0xffff { Soundness::Proven } else { Soundness::Likely }
        }
        (Some(6), IpVersion::V6 | IpVersion::ByNibble) => match bytes.get(4..6) {
            Some(&[high, low]) if usize::from(u16::from_be_bytes([high, low])) + 40 == bytes.len() => {
                Soundness::Proven
            }
            _ => Soundness::Likely,
        },
        _ => Soundness::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::super::link::{LinkType, find_ip, what_is_not_ip};
    use super::*;

    /// A UDP packet with a right check sum.
    const IPV4: [u8; 28] = [
        0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0xf6, 0xcc, 192, 0, 2, 1, 192, 0, 2, 2, 3, 232, 0, 53, 0, 8, 0, 0,
    ];

    fn frame(ether_type: u16, headers: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend_from_slice(&ether_type.to_be_bytes());
        frame.extend_from_slice(headers);
        frame.extend_from_slice(payload);
        frame
    }

    fn ipv6(payload: u16, captured: usize) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
        header[4..6].copy_from_slice(&payload.to_be_bytes());
        header.resize(40 + captured, 0x20);
        header
    }

    /// Asserts that IP is found where it was put, and gives the VLAN.
    fn found(frame: &[u8], payload: &[u8]) -> u16 {
        let found = find_ip(LinkType::ETHERNET, frame).unwrap_or_else(|| panic!("no IP in {frame:02x?}"));
        assert_eq!(found.bytes, payload, "{frame:02x?}");
        found.vlan
    }

    fn other(frame: &[u8]) -> NotIp {
        assert!(find_ip(LinkType::ETHERNET, frame).is_none());
        what_is_not_ip(LinkType::ETHERNET, frame).expect("no IP")
    }

    #[test]
    fn ip_is_found_behind_tags_of_switches_and_fabrics() {
        const INNER: [u8; 14] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        let inner = |headers: &[u8]| [headers, &INNER].concat();
        for (ether_type, headers, vlan) in [
            (56, vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0], 0),
            (56, vec![0xaa, 0xaa, 3, 0, 0, 0xf8, 8, 0], 0),
            (56, vec![6, 6, 3], 0),
            (0x8100, vec![0, 5, 0, 56, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0], 5),
            (0x8200, vec![0, 0x76, 0x81, 0, 0, 10, 8, 0], 0x76),
            (0x8926, vec![0, 1, 0, 2, 8, 0], 0),
            (0x8926, vec![0, 1, 0, 2, 0x81, 0, 0, 7, 8, 0], 7),
            (0x893f, vec![0, 1, 0, 2, 0, 0, 8, 0], 0),
            (0x892f, vec![0, 0x40, 0, 1, 8, 0], 0),
            (0xf1c1, vec![0, 0, 0, 1, 8, 0], 0),
            (0x8909, vec![1, 1, 0, 1, 0, 5, 8, 0], 0),
            (0x8909, vec![1, 2, 0, 1, 0, 5, 0, 1, 0, 6, 8, 0], 0),
            (0xdada, vec![0, 0, 0xc0, 0x20, 0, 0, 8, 0], 0),
            (0xdada, vec![0, 0, 0xe0, 0x20, 0, 9, 8, 0], 9),
            (0x8899, vec![0xa0, 1, 8, 0], 0),
            (0x88e5, vec![0, 0, 0, 0, 0, 1, 8, 0], 0),
            (0x88e5, vec![0x20, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0, 1, 8, 0], 0),
            (0x894f, vec![0x0f, 0xc2, 1, 1, 0, 0, 10, 255], 0),
            (0x894f, inner(&[0x0f, 0xc3, 2, 3, 0, 0, 10, 255, 0, 0, 0, 0]), 0),
            (0x6558, inner(&[]), 0),
            (0x8903, inner(&[0, 0x60]), 0),
            (0x88e7, inner(&[0, 0, 0, 255]), 0),
            (0x22f3, inner(&[0, 0x46, 0, 1, 0, 2, 9, 9, 9, 9]), 0),
            (0x8864, vec![0x11, 0, 0, 1, 0, 30, 0, 0x3d, 0xc0, 0, 0, 1, 0, 0x21], 0),
        ] {
            assert_eq!(
                found(&frame(ether_type, &headers, &IPV4), &IPV4),
                vlan,
                "{ether_type:#x} {headers:x?}"
            );
        }
    }

    #[test]
    fn what_hides_or_carries_no_ip_is_named() {
        let of = |ether_type, headers: &[u8]| other(&frame(ether_type, headers, &IPV4));
        assert_eq!(of(0x0806, &[]), NotIp::EtherType(0x0806));
        assert_eq!(of(0x8100, &[0, 5, 0x88, 0xcc]), NotIp::EtherType(0x88cc));
        assert_eq!(of(0x88e5, &[0x0c, 0, 0, 0, 0, 1, 8, 0]), NotIp::EtherType(0x88e5));
        assert_eq!(of(38, &[0x42, 0x42, 3]), NotIp::Llc(0x42, 0x42));
        assert_eq!(of(38, &[0xaa, 0xaa, 3, 0, 0, 12, 0x20, 0]), NotIp::Llc(0xaa, 0xaa));
        assert_eq!(of(0x8864, &[0x11, 0, 0, 1, 0, 30, 0xc0, 0x21]), NotIp::Ppp(0xc021));
        assert_eq!(of(0x8864, &[0x11, 0, 0, 1, 0, 30, 0, 0x3d, 0, 0, 0, 1]), NotIp::Ppp(0x3d));
        assert_eq!(other(&frame(0x8100, &[0], &[])), NotIp::CutOff);
        let text = |what: NotIp| what.to_string();
        assert_eq!(text(NotIp::EtherType(0x88e5)), "EtherType 0x88e5 (MACsec)");
        assert!(!NotIp::EtherType(0x88e5).is_plain_control() && NotIp::EtherType(0x0806).is_plain_control());
    }

    #[test]
    fn a_pseudowire_is_told_from_ip_whatever_its_addresses_begin_with() {
        const LABEL: [u8; 4] = [0, 6, 0x41, 255];
        for first in [0x02, 0x00, 0x1c, 0x40, 0x45, 0x60, 0xfc] {
            let ethernet = [first, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
            found(&frame(0x8847, &[&LABEL[..], &ethernet].concat(), &IPV4), &IPV4);
            found(&frame(0x8847, &[&LABEL[..], &[0; 4], &ethernet].concat(), &IPV4), &IPV4);
        }
        let v6 = ipv6(8, 8);
        let tagged = [0x60, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 7, 0x86, 0xdd];
        assert_eq!(found(&frame(0x8847, &[&LABEL[..], &tagged].concat(), &v6), &v6), 7);
    }

    #[test]
    fn ip_behind_labels_stays_ip_also_where_it_is_cut_off_or_its_check_sum_was_left_out() {
        const LABELS: [u8; 8] = [0, 0, 0x10, 64, 0, 0, 0x21, 64];
        let mut unchecked = IPV4;
        unchecked[10..12].fill(0);
        for payload in [&IPV4[..], &unchecked, &IPV4[..22], &ipv6(8, 8), &ipv6(1000, 8), &ipv6(2, 100)] {
            found(&frame(0x8847, &LABELS, payload), payload);
        }
        assert_eq!(other(&frame(0x8847, &LABELS, &[0x10, 0, 0, 7, 1, 2, 3])), NotIp::EtherType(0x8847));
    }

    #[test]
    fn labels_within_labels_end() {
        let level = [0, 6, 0x41, 255, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0x47];
        let nested: Vec<u8> = level.repeat(10_000);
        assert!(find_ip(LinkType::ETHERNET, &frame(0x8847, &nested, &IPV4)).is_none());
    }
}
