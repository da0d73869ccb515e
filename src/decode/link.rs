//! From a link-layer frame to the bytes of its outermost IP header.

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
    /// From the first byte of the IP header to the end of the frame.
    pub bytes: &'a [u8],
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

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

/// Finds the outermost IP header behind any VLAN, MPLS, PPPoE or cooked header; `None` where there is none.
#[inline]
pub fn find_ip(link: LinkType, frame: &[u8]) -> Option<Found<'_>> {
    if link == LinkType::ETHERNET {
        return behind_ether_type(be16(frame, 12)?, frame.get(14..)?);
    }
    let found = |version, bytes| Some(Found { version, vlan: 0, bytes });
    match link {
        LinkType::RAW | LinkType::RAW_BSD | LinkType::RAW_OPENBSD => found(IpVersion::ByNibble, frame),
        LinkType::IPV4 => found(IpVersion::V4, frame),
        LinkType::IPV6 => found(IpVersion::V6, frame),
        LinkType::NULL | LinkType::LOOP => {
            let (family, bytes) = frame.split_first_chunk::<4>()?;
            // The family is in the capturing host's byte order; it is small, so the order shows.
            match u32::from_le_bytes(*family).min(u32::from_be_bytes(*family)) {
                2 => found(IpVersion::V4, bytes),
                // Linux, NetBSD and OpenBSD, FreeBSD, Darwin.
                10 | 24 | 28 | 30 => found(IpVersion::V6, bytes),
                _ => None,
            }
        }
        LinkType::LINUX_SLL => behind_ether_type(be16(frame, 14)?, frame.get(16..)?),
        LinkType::LINUX_SLL2 => behind_ether_type(be16(frame, 0)?, frame.get(20..)?),
        LinkType::PPP | LinkType::PPP_HDLC => match frame {
            [0x0f | 0x8f, 0x00, rest @ ..] if link == LinkType::PPP_HDLC => {
                behind_ether_type(be16(rest, 0)?, rest.get(2..)?)
            }
            [0xff, 0x03, rest @ ..] => behind_ppp(rest),
            _ => behind_ppp(frame),
        },
        LinkType::PPP_ETHER => behind_pppoe(frame),
        _ => None,
    }
}

#[inline(always)]
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Walks VLAN tags, then whatever the innermost EtherType names.
#[inline(always)]
fn behind_ether_type(ether_type: u16, bytes: &[u8]) -> Option<Found<'_>> {
    match ether_type {
        ETHERTYPE_IPV4 => Some(Found { version: IpVersion::V4, vlan: 0, bytes }),
        ETHERTYPE_IPV6 => Some(Found { version: IpVersion::V6, vlan: 0, bytes }),
        other => behind_tags(other, bytes),
    }
}

fn behind_tags(mut ether_type: u16, mut bytes: &[u8]) -> Option<Found<'_>> {
    let mut vlan = None;
    loop {
        let found = match ether_type {
            ETHERTYPE_IPV4 => Some(Found { version: IpVersion::V4, vlan: 0, bytes }),
            ETHERTYPE_IPV6 => Some(Found { version: IpVersion::V6, vlan: 0, bytes }),
            // 802.1Q, 802.1ad, and the tags that came before that standard.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => {
                vlan = vlan.or(Some(be16(bytes, 0)? & 0xfff));
                ether_type = be16(bytes, 2)?;
                bytes = bytes.get(4..)?;
                continue;
            }
            0x8847 | 0x8848 => behind_mpls(bytes),
            0x8864 => behind_pppoe(bytes),
            _ => None,
        };
        return found.map(|found| Found { vlan: vlan.unwrap_or(0), ..found });
    }
}

/// Pops labels (RFC 3032) to the bottom of the stack; what lies there has to look like IP.
fn behind_mpls(mut bytes: &[u8]) -> Option<Found<'_>> {
    loop {
        let (label, rest) = bytes.split_first_chunk::<4>()?;
        bytes = rest;
        if label[2] & 1 == 1 {
            let looks_like_ip = matches!(bytes.first()? >> 4, 4 | 6);
            return looks_like_ip.then_some(Found { version: IpVersion::ByNibble, vlan: 0, bytes });
        }
    }
}

/// A PPPoE session packet (RFC 2516).
fn behind_pppoe(bytes: &[u8]) -> Option<Found<'_>> {
    behind_ppp(bytes.get(6..)?)
}

/// A PPP protocol field, compressed to one byte or not (RFC 1661, 6.5), and what it names.
fn behind_ppp(bytes: &[u8]) -> Option<Found<'_>> {
    let (protocol, bytes) = match bytes {
        [first, rest @ ..] if first & 1 == 1 => (u16::from(*first), rest),
        [first, second, rest @ ..] => (u16::from_be_bytes([*first, *second]), rest),
        _ => return None,
    };
    match protocol {
        0x0021 => Some(Found { version: IpVersion::V4, vlan: 0, bytes }),
        0x0057 => Some(Found { version: IpVersion::V6, vlan: 0, bytes }),
        0x0281 | 0x0283 => behind_mpls(bytes),
        _ => None,
    }
}
