//! From a link-layer frame to the bytes of its outermost IP header.
//!
//! Here are the link types and the common headers; [`super::encapsulation`] steps over all others.

pub use super::encapsulation::NotIp;
use super::encapsulation::{Layer, TRIALS, Tags, walk};

/// A capture's link type, the numbers of <https://www.tcpdump.org/linktypes.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkType(pub u32);

impl LinkType {
    /// BSD loopback: protocol family in the capturing host's byte order.
    pub const NULL: Self = Self(0);
    /// Ethernet.
    pub const ETHERNET: Self = Self(1);
    /// PPP, with or without the HDLC address and control bytes.
    pub const PPP: Self = Self(9);
    /// PPP in HDLC-like framing (RFC 1662), or Cisco HDLC.
    pub const PPP_HDLC: Self = Self(50);
    /// PPPoE session packets without their Ethernet header.
    pub const PPP_ETHER: Self = Self(51);
    /// Raw IP of either version.
    pub const RAW: Self = Self(101);
    /// Raw IP as some BSDs number it.
    pub const RAW_BSD: Self = Self(12);
    /// Raw IP as OpenBSD numbers it.
    pub const RAW_OPENBSD: Self = Self(14);
    /// OpenBSD loopback: protocol family in network byte order.
    pub const LOOP: Self = Self(108);
    /// Linux cooked capture, version 1.
    pub const LINUX_SLL: Self = Self(113);
    /// Raw IPv4.
    pub const IPV4: Self = Self(228);
    /// Raw IPv6.
    pub const IPV6: Self = Self(229);
    /// Linux cooked capture, version 2.
    pub const LINUX_SLL2: Self = Self(276);

    /// Of no capture: a record whose lengths contradict each other. Its frame is malformed.
    pub const DAMAGED: Self = Self(u32::MAX);

    /// All link types whose packets are decoded.
    pub const KNOWN: &[Self] = &[
        Self::NULL,
        Self::ETHERNET,
        Self::PPP,
        Self::PPP_HDLC,
        Self::PPP_ETHER,
        Self::RAW,
        Self::RAW_BSD,
        Self::RAW_OPENBSD,
        Self::LOOP,
        Self::LINUX_SLL,
        Self::IPV4,
        Self::IPV6,
        Self::LINUX_SLL2,
    ];

    /// Whether packets of this link type are decoded; all others are `non_ip`.
    pub fn is_known(self) -> bool {
        Self::KNOWN.contains(&self)
    }
}

/// What the layer below promises about the IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4; any other version nibble is a broken header.
    V4,
    /// IPv6; any other version nibble is a broken header.
    V6,
    /// Nothing: the version nibble decides.
    ByNibble,
}

/// An IP header and all bytes captured behind it.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// What the layer below says of it.
    pub version: IpVersion,
    /// Outermost VLAN identifier, 0 without a tag.
    pub vlan: u16,
    /// Identifier of the second VLAN tag, 0 without one.
    pub inner_vlan: u16,
    /// Outermost MPLS label, 0 without one.
    pub mpls_label: u32,
    /// From the first byte of the IP header to the end of the frame.
    pub bytes: &'a [u8],
}

impl<'a> Found<'a> {
    /// Behind no tags and labels.
    #[inline(always)]
    pub fn untagged(version: IpVersion, bytes: &'a [u8]) -> Self {
        Self { version, vlan: 0, inner_vlan: 0, mpls_label: 0, bytes }
    }
}

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// What is directly behind an Ethernet header; `None` where that is no IP header.
#[inline(always)]
pub fn behind_ethernet(frame: &[u8]) -> Option<(IpVersion, &[u8])> {
    let (header, bytes) = frame.split_first_chunk::<14>()?;
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_IPV4 => Some((IpVersion::V4, bytes)),
        ETHERTYPE_IPV6 => Some((IpVersion::V6, bytes)),
        _ => None,
    }
}

/// Finds the outermost IP header behind any link-layer headers; `None` where there is none.
#[inline]
pub fn find_ip(link: LinkType, frame: &[u8]) -> Option<Found<'_>> {
    if link != LinkType::ETHERNET {
        return find(link, frame).ok();
    }
    let (ether_type, bytes) = (be16(frame, 12)?, frame.get(14..)?);
    match ether_type {
        ETHERTYPE_IPV4 => Some(Found::untagged(IpVersion::V4, bytes)),
        ETHERTYPE_IPV6 => Some(Found::untagged(IpVersion::V6, bytes)),
        other => behind_tags(other, bytes),
    }
}

/// Source and destination address of the link header that a frame begins with, 48 bits each; 0 for what it does not have.
#[inline(always)]
pub fn mac_addresses(link: LinkType, frame: &[u8]) -> (u64, u64) {
    match (link, frame) {
        (LinkType::ETHERNET, &[a, b, c, d, e, f, g, h, i, j, k, l, ..]) => {
            (mac([g, h, i, j, k, l]), mac([a, b, c, d, e, f]))
        }
        // Cooked headers tell how long the sender's address is.
        (LinkType::LINUX_SLL, &[_, _, _, _, 0, 6, a, b, c, d, e, f, ..])
        | (LinkType::LINUX_SLL2, &[_, _, _, _, _, _, _, _, _, _, _, 6, a, b, c, d, e, f, ..]) => {
            (mac([a, b, c, d, e, f]), 0)
        }
        _ => (0, 0),
    }
}

#[inline(always)]
fn mac([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// Number of the interface that captured a frame, on the machine that captured it; `None` where its link header has none.
#[inline(always)]
pub fn interface_number(link: LinkType, frame: &[u8]) -> Option<u32> {
    match (link, frame) {
        (LinkType::LINUX_SLL2, &[_, _, _, _, a, b, c, d, ..]) => Some(u32::from_be_bytes([a, b, c, d])),
        _ => None,
    }
}

/// What a frame holds where [`find_ip`] finds no IP header; `None` where it finds one.
pub fn what_is_not_ip(link: LinkType, frame: &[u8]) -> Option<NotIp> {
    find(link, frame).err()
}

#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Steps over VLAN tags, the common case, and leaves all else to [`walk`].
fn behind_tags(mut ether_type: u16, mut bytes: &[u8]) -> Option<Found<'_>> {
    let mut tags = Tags::default();
    loop {
        let version = match ether_type {
            ETHERTYPE_IPV4 => IpVersion::V4,
            ETHERTYPE_IPV6 => IpVersion::V6,
            0x8100 | 0x88a8 => {
                tags.note_vlan(be16(bytes, 0)?);
                ether_type = be16(bytes, 2)?;
                bytes = bytes.get(4..)?;
                continue;
            }
            other => return walk(Layer::EtherType(other), bytes, tags, TRIALS).ok(),
        };
        return Some(tags.found(version, bytes));
    }
}

fn find(link: LinkType, frame: &[u8]) -> Result<Found<'_>, NotIp> {
    let found = |version, bytes| Ok(Found::untagged(version, bytes));
    let into = |layer, bytes| walk(layer, bytes, Tags::default(), TRIALS);
    let skip = |length: usize| frame.get(length..).ok_or(NotIp::CutOff);
    let ether_type = |at| be16(frame, at).ok_or(NotIp::CutOff);
    match link {
        LinkType::ETHERNET => into(Layer::Ethernet, frame),
        LinkType::RAW | LinkType::RAW_BSD | LinkType::RAW_OPENBSD => found(IpVersion::ByNibble, frame),
        LinkType::IPV4 => found(IpVersion::V4, frame),
        LinkType::IPV6 => found(IpVersion::V6, frame),
        LinkType::NULL | LinkType::LOOP => behind_family(frame),
        LinkType::LINUX_SLL => behind_protocol(ether_type(14)?, skip(16)?),
        LinkType::LINUX_SLL2 => behind_protocol(ether_type(0)?, skip(20)?),
        LinkType::PPP | LinkType::PPP_HDLC => match frame {
            [0x0f | 0x8f, 0x00, rest @ ..] if link == LinkType::PPP_HDLC => {
                behind_protocol(ether_type(2)?, rest.get(2..).ok_or(NotIp::CutOff)?)
            }
            [0xff, 0x03, rest @ ..] => into(Layer::Ppp, rest),
            _ => into(Layer::Ppp, frame),
        },
        LinkType::PPP_ETHER => into(Layer::Ppp, skip(6)?),
        _ => Err(NotIp::LinkType),
    }
}

/// A protocol field that has EtherTypes, or Linux's own numbers below them (`ETH_P_802_2` and others).
fn behind_protocol(number: u16, bytes: &[u8]) -> Result<Found<'_>, NotIp> {
    match number {
        4 => walk(Layer::Llc, bytes, Tags::default(), TRIALS),
        0..0x600 => Err(NotIp::EtherType(number)),
        _ => walk(Layer::EtherType(number), bytes, Tags::default(), TRIALS),
    }
}

/// A BSD loopback header: an address family in the capturing host's byte order, which shows because it is small. Some
/// systems write an EtherType, 16 bits of a family, or a PPP header there; so tshark reads them too.
fn behind_family(frame: &[u8]) -> Result<Found<'_>, NotIp> {
    if let [0xff, 0x03, rest @ ..] = frame {
        return walk(Layer::Ppp, rest, Tags::default(), TRIALS);
    }
    let (family, bytes) = frame.split_first_chunk::<4>().ok_or(NotIp::CutOff)?;
    let family = match u32::from_le_bytes(*family).min(u32::from_be_bytes(*family)) {
        half @ 0x100..0x600 if half & 0xff == 0 => half >> 8,
        family => family,
    };
    let found = |version| Ok(Found::untagged(version, bytes));
    match (family, u16::try_from(family)) {
        (2, _) => found(IpVersion::V4),
        // Linux, NetBSD and OpenBSD, FreeBSD, Darwin.
        (10 | 24 | 28 | 30, _) => found(IpVersion::V6),
        // Windows; IPX elsewhere.
        (23, _) if bytes.first().is_some_and(|first| first >> 4 == 6) => found(IpVersion::V6),
        (_, Ok(number @ 0x600..)) => walk(Layer::EtherType(number), bytes, Tags::default(), TRIALS),
        _ => Err(NotIp::Family(family)),
    }
}
