//! Reads any IP header with etherparse: options, extension headers, fragments, lengths that do not add up.
//!
//! etherparse gives no ports for a transport header that is cut short although they are there, so ports are taken
//! from the payload's first four bytes here too.

use super::link::{Found, IpVersion};
use super::{Headers, LATER_FRAGMENT, Payload, Ports};
use dataflows::packet::Address;
use etherparse::{
    Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, ip_number,
};

/// Reads a header; `None` where it is broken or cut off.
pub fn read(found: &Found<'_>) -> Option<Headers> {
    read_with_payload(found, 0).map(|(headers, _)| headers)
}

/// Reads as [`read`] does, and what is behind the header. On the wire there were `on_wire` bytes from the header on.
pub fn read_with_payload<'a>(found: &Found<'a>, on_wire: u32) -> Option<(Headers, Payload<'a>)> {
    match (found.version, found.bytes.first()? >> 4) {
        (IpVersion::V4 | IpVersion::ByNibble, 4) => ipv4(found.bytes, on_wire),
        (IpVersion::V6 | IpVersion::ByNibble, 6) => ipv6(found.bytes, on_wire),
        _ => None,
    }
}

fn ipv4(bytes: &[u8], on_wire: u32) -> Option<(Headers, Payload<'_>)> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let header_length = header.slice().len();
    let captured = &bytes[header_length..];
    let (ip_length, transport) = match header.total_len() {
        // The capturing host left the length to its network card (segmentation offload).
        0 => (on_wire, captured),
        total => {
            let length = usize::from(total).checked_sub(header_length)?;
            (total.into(), &captured[..captured.len().min(length)])
        }
    };
    let fragment = match (header.fragments_offset().value(), header.more_fragments()) {
        (0, more) => more.into(),
        _ => LATER_FRAGMENT,
    };
    let payload = Payload {
        ip_length,
        transport,
        transport_length: ip_length.saturating_sub(header_length as u32),
        fragment,
    };
    let headers = Headers {
        version: 4,
        source: Address::v4(u32::from_be_bytes(header.source())),
        destination: Address::v4(u32::from_be_bytes(header.destination())),
        protocol: header.protocol().0,
        ports: ports(header.protocol().0, &payload),
    };
    Some((headers, payload))
}

fn ipv6(bytes: &[u8], on_wire: u32) -> Option<(Headers, Payload<'_>)> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let header_length = header.slice().len();
    let captured = &bytes[header_length..];
    let (ip_length, captured) = match header.payload_length() {
        // A jumbogram (RFC 2675) or segmentation offload.
        0 => (on_wire, captured),
        length => (header_length as u32 + u32::from(length), &captured[..captured.len().min(length.into())]),
    };
    let Behind { protocol, bytes: transport, fragment } = behind_extensions(header.next_header().0, captured);
    let headers_length = header_length + captured.len() - transport.len();
    let payload = Payload {
        ip_length,
        transport,
        transport_length: ip_length.saturating_sub(headers_length as u32),
        fragment,
    };
    let headers = Headers {
        version: 6,
        source: Address(u128::from_be_bytes(header.source())),
        destination: Address(u128::from_be_bytes(header.destination())),
        protocol,
        ports: ports(protocol, &payload),
    };
    Some((headers, payload))
}

fn ports(protocol: u8, payload: &Payload<'_>) -> Ports {
    match payload.fragment {
        LATER_FRAGMENT => Ports::default(),
        _ => Ports::read(protocol, payload.transport),
    }
}

/// What is behind all extension headers.
struct Behind<'a> {
    protocol: u8,
    bytes: &'a [u8],
    fragment: u8,
}

/// Walks extension headers to the payload. A header that is cut off ends the walk and is the protocol: the last thing
/// known.
fn behind_extensions(mut protocol: u8, mut bytes: &[u8]) -> Behind<'_> {
    let mut fragment = 0;
    loop {
        match etherparse::IpNumber(protocol) {
            ip_number::IPV6_HOP_BY_HOP | ip_number::IPV6_ROUTE | ip_number::IPV6_DEST_OPTIONS => {
                let Ok(extension) = Ipv6RawExtHeaderSlice::from_slice(bytes) else { break };
                protocol = extension.next_header().0;
                bytes = &bytes[extension.slice().len()..];
            }
            ip_number::IPV6_FRAG => {
                let Ok(header) = Ipv6FragmentHeaderSlice::from_slice(bytes) else { break };
                protocol = header.next_header().0;
                bytes = &bytes[header.slice().len()..];
                if header.fragment_offset().value() != 0 {
                    fragment = LATER_FRAGMENT;
                    break;
                }
                // One that is all of its packet is no fragment (RFC 6946).
                fragment |= u8::from(header.more_fragments());
            }
            _ => break,
        }
    }
    Behind { protocol, bytes, fragment }
}
