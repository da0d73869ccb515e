//! Reads what nearly every packet is (IPv4 without options, IPv6 without extension headers) straight from its bytes.
//!
//! Whatever is not plain is left to [`super::general`]; what is read here equals what is read there.

use super::link::IpVersion;
use super::{Headers, PORTS, Payload, Ports};
use dataflows::packet::Address;

/// Reads a plain header that is captured together with the start of its payload, or leaves it to the general path.
#[inline(always)]
pub fn read(version: IpVersion, bytes: &[u8]) -> Option<Headers> {
    match (bytes.first()?, version) {
        (0x45, IpVersion::V4 | IpVersion::ByNibble) => ipv4(bytes.first_chunk()?),
        (0x60..=0x6f, IpVersion::V6 | IpVersion::ByNibble) => ipv6(bytes.first_chunk()?),
        _ => None,
    }
}

/// Reads as [`read`] does, and what is behind the header. On the wire there were `on_wire` bytes from the header on.
#[inline(always)]
pub fn read_with_payload(version: IpVersion, bytes: &[u8], on_wire: u32) -> Option<(Headers, Payload<'_>)> {
    match (bytes.first()?, version) {
        (0x45, IpVersion::V4 | IpVersion::ByNibble) => {
            let start = bytes.first_chunk()?;
            Some((ipv4(start)?, ipv4_payload(start, bytes)))
        }
        (0x60..=0x6f, IpVersion::V6 | IpVersion::ByNibble) => {
            let start = bytes.first_chunk()?;
            Some((ipv6(start)?, ipv6_payload(start, bytes, on_wire)))
        }
        _ => None,
    }
}

/// What is behind a header that [`ipv4`] takes for plain.
#[inline(always)]
fn ipv4_payload<'a>(start: &[u8; 20 + PORTS], bytes: &'a [u8]) -> Payload<'a> {
    let ip_length = u32::from(u16::from_be_bytes([start[2], start[3]]));
    let transport = &bytes[20..];
    let transport_length = ip_length.saturating_sub(20);
    Payload {
        ip_length,
        transport: &transport[..transport.len().min(transport_length as usize)],
        transport_length,
        fragment: start[6] >> 5 & 1,
    }
}

/// What is behind a header that [`ipv6`] takes for plain.
#[inline(always)]
fn ipv6_payload<'a>(start: &[u8; 40 + PORTS], bytes: &'a [u8], on_wire: u32) -> Payload<'a> {
    let length = u32::from(u16::from_be_bytes([start[4], start[5]]));
    let transport = &bytes[40..];
    let (ip_length, captured) = match length {
        0 => (on_wire, transport.len()),
        length => (40 + length, transport.len().min(length as usize)),
    };
    Payload {
        ip_length,
        transport: &transport[..captured],
        transport_length: ip_length.saturating_sub(40),
        fragment: 0,
    }
}

#[inline(always)]
fn ipv4(bytes: &[u8; 20 + PORTS]) -> Option<Headers> {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let total = (word(0) & 0xffff) as usize;
    let fragment_offset = word(4) & 0x1fff;
    // A payload that does not reach its ports, or no payload at all, is unusual.
    if total < 24 || fragment_offset != 0 {
        return None;
    }
    let protocol = bytes[9];
    let (_, payload) = bytes.split_last_chunk()?;
    Some(Headers {
        version: 4,
        source: Address::v4(word(12)),
        destination: Address::v4(word(16)),
        protocol,
        ports: Ports::read_plain(protocol, payload, total - 20),
    })
}

#[inline(always)]
fn ipv6(bytes: &[u8; 40 + PORTS]) -> Option<Headers> {
    let protocol = bytes[6];
    let length = match u16::from_be_bytes([bytes[4], bytes[5]]) {
        // A jumbogram, or left to the network card: the payload is what was captured.
        0 => PORTS,
        length => usize::from(length),
    };
    // Hop-by-hop, routing, fragment and destination options headers are walked.
    if length < 4 || matches!(protocol, 0 | 43 | 44 | 60) {
        return None;
    }
    let (header, payload) = bytes.split_last_chunk()?;
    let address = |at: usize| Some(Address(u128::from_be_bytes(*header.get(at..)?.first_chunk()?)));
    Some(Headers {
        version: 6,
        source: address(8)?,
        destination: address(24)?,
        protocol,
        ports: Ports::read_plain(protocol, payload, length),
    })
}
