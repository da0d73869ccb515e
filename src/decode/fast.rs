//! Reads what nearly every packet is (IPv4 without options, IPv6 without extension headers) straight from its bytes.
//!
//! Whatever is not plain is left to [`super::general`]; what is read here equals what is read there.

use super::link::{Found, IpVersion};
use super::{Headers, ports};
use dataflows::packet::Address;

/// What the fast path made of a header.
pub enum Outcome {
    /// It read it.
    Read(Headers),
    /// It leaves it to the general path.
    Unusual,
}

/// Reads a plain header.
#[inline(always)]
pub fn read(found: &Found<'_>) -> Outcome {
    let bytes = found.bytes;
    match (bytes.first(), found.version) {
        (Some(0x45), IpVersion::V4 | IpVersion::ByNibble) => ipv4(bytes),
        (Some(0x60..=0x6f), IpVersion::V6 | IpVersion::ByNibble) => ipv6(bytes),
        _ => Outcome::Unusual,
    }
}

#[inline(always)]
fn ipv4(bytes: &[u8]) -> Outcome {
    let Some((header, payload)) = bytes.split_first_chunk::<20>() else { return Outcome::Unusual };
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let fragment_offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if total < 20 || fragment_offset != 0 {
        return Outcome::Unusual;
    }
    let payload = &payload[..payload.len().min(total - 20)];
    let protocol = header[9];
    let (source_port, destination_port, tcp_flags) = ports(protocol, payload);
    let address =
        |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Outcome::Read(Headers {
        version: 4,
        source: Address::v4(address(12)),
        destination: Address::v4(address(16)),
        protocol,
        source_port,
        destination_port,
        tcp_flags,
    })
}

#[inline(always)]
fn ipv6(bytes: &[u8]) -> Outcome {
    let Some((header, payload)) = bytes.split_first_chunk::<40>() else { return Outcome::Unusual };
    let protocol = header[6];
    // Hop-by-hop, routing, fragment and destination options headers are walked.
    if matches!(protocol, 0 | 43 | 44 | 60) {
        return Outcome::Unusual;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let payload = if length == 0 { payload } else { &payload[..payload.len().min(length)] };
    let (source_port, destination_port, tcp_flags) = ports(protocol, payload);
    let address = |at: usize| {
        Address(u128::from_be_bytes(*header[at..].first_chunk().expect("both addresses lie within 40 bytes")))
    };
    Outcome::Read(Headers {
        version: 6,
        source: address(8),
        destination: address(24),
        protocol,
        source_port,
        destination_port,
        tcp_flags,
    })
}
