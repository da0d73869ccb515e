//! Reads any IP header with etherparse: options, extension headers, fragments, lengths that do not add up.
//!
//! etherparse gives no ports for a transport header that is cut short although they are there, so ports are taken
//! from the payload's first four bytes here too.

use super::link::{Found, IpVersion};
use super::{Headers, Ports};
use dataflows::packet::Address;
use etherparse::{
    Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, ip_number,
};

/// Reads a header; `None` where it is broken or cut off.
pub fn read(found: &Found<'_>) -> Option<Headers> {
    match (found.version, found.bytes.first()? >> 4) {
        (IpVersion::V4 | IpVersion::ByNibble, 4) => ipv4(found.bytes),
        (IpVersion::V6 | IpVersion::ByNibble, 6) => ipv6(found.bytes),
        _ => None,
    }
}

fn ipv4(bytes: &[u8]) -> Option<Headers> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let header_length = header.slice().len();
    let payload = match usize::from(header.total_len()) {
        // The capturing host left the length to its network card (segmentation offload).
        0 => &bytes[header_length..],
        total => &bytes[header_length..bytes.len().min(header_length + total.checked_sub(header_length)?)],
    };
    let protocol = header.protocol().0;
    let later_fragment = header.fragments_offset().value() != 0;
    let ports = if later_fragment { Ports::default() } else { Ports::read(protocol, payload) };
    Some(Headers {
        version: 4,
        source: Address::v4(u32::from_be_bytes(header.source())),
        destination: Address::v4(u32::from_be_bytes(header.destination())),
        protocol,
        ports,
    })
}

fn ipv6(bytes: &[u8]) -> Option<Headers> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let payload = &bytes[header.slice().len()..];
    let payload = match usize::from(header.payload_length()) {
        // A jumbogram (RFC 2675) or segmentation offload.
        0 => payload,
        length => &payload[..payload.len().min(length)],
    };
    let (protocol, payload, later_fragment) = behind_extensions(header.next_header().0, payload);
    let ports = if later_fragment { Ports::default() } else { Ports::read(protocol, payload) };
    Some(Headers {
        version: 6,
        source: Address(u128::from_be_bytes(header.source())),
        destination: Address(u128::from_be_bytes(header.destination())),
        protocol,
        ports,
    })
}

/// Walks extension headers to the payload's protocol, its bytes, and whether it is a later fragment. A header that is
/// cut off ends the walk and is the protocol: the last thing known.
fn behind_extensions(mut next: u8, mut payload: &[u8]) -> (u8, &[u8], bool) {
    loop {
        match etherparse::IpNumber(next) {
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                let Ok(extension) = Ipv6RawExtHeaderSlice::from_slice(payload) else {
                    return (next, payload, false);
                };
                next = extension.next_header().0;
                payload = &payload[extension.slice().len()..];
            }
            ip_number::IPV6_FRAG => {
                let Ok(fragment) = Ipv6FragmentHeaderSlice::from_slice(payload) else {
                    return (next, payload, false);
                };
                next = fragment.next_header().0;
                payload = &payload[fragment.slice().len()..];
                if fragment.fragment_offset().value() != 0 {
                    return (next, payload, true);
                }
            }
            _ => return (next, payload, false),
        }
    }
}
