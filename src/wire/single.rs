//! One packet a message: `PacketInfo`, wire-compatible with the probes and engines in the field.
//!
//! It holds the five-tuple alone: TCP flags and VLAN come out as 0, the IP version as the addresses tell it.

use super::{WireError, v1};
use bytes::{Bytes, BytesMut};
use dataflows::packet::{Address, Packet, Transport};
use prost::Message;
use std::net::IpAddr;

const SECOND: u64 = 1_000_000_000;

/// Appends a packet's message.
pub fn encode(packet: &Packet, into: &mut BytesMut) {
    let address = |address: Address| match IpAddr::from(address) {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    };
    let Packet { time, transport, source, destination, length } = *packet;
    let message = v1::PacketInfo {
        timestamp: Some(prost_types::Timestamp {
            seconds: (time / SECOND) as i64,
            nanos: (time % SECOND) as i32,
        }),
        five_tuple: Some(v1::FiveTuple {
            src_ip: address(source),
            dst_ip: address(destination),
            src_port: transport.source_port().into(),
            dst_port: transport.destination_port().into(),
            protocol: transport.protocol().into(),
        }),
        length: length.into(),
    };
    into.reserve(message.encoded_len());
    message.encode(into).expect("a buffer with room for the message");
}

/// Reads a message.
pub fn decode(bytes: Bytes) -> Result<Packet, WireError> {
    let v1::PacketInfo { timestamp, five_tuple, length } = v1::PacketInfo::decode(bytes)?;
    let time = time(timestamp.ok_or(WireError::Missing("timestamp"))?)?;
    let tuple = five_tuple.ok_or(WireError::Missing("five_tuple"))?;
    let source = address("src_ip", &tuple.src_ip)?;
    let destination = address("dst_ip", &tuple.dst_ip)?;
    let version = if source.is_v4() && destination.is_v4() { 4 } else { 6 };
    let transport = Transport::new(
        narrow("src_port", tuple.src_port)?,
        narrow("dst_port", tuple.dst_port)?,
        narrow("protocol", tuple.protocol)?,
        0,
        0,
        version,
    );
    Ok(Packet { time, transport, source, destination, length: narrow("length", length)? })
}

/// Nanoseconds since the Unix epoch, where they fit 64 bits: 1970 to 2554.
fn time(stamp: prost_types::Timestamp) -> Result<u64, WireError> {
    let prost_types::Timestamp { seconds, nanos } = stamp;
    let part = u64::try_from(nanos).ok().filter(|nanos| *nanos < SECOND);
    let part = part.ok_or(WireError::Range { field: "timestamp.nanos", value: nanos.into() })?;
    let whole =
        u64::try_from(seconds).ok().and_then(|seconds| seconds.checked_mul(SECOND)?.checked_add(part));
    whole.ok_or(WireError::Range { field: "timestamp.seconds", value: seconds.into() })
}

fn address(field: &'static str, bytes: &[u8]) -> Result<Address, WireError> {
    match bytes.len() {
        4 => Ok(Address::v4(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))),
        16 => Ok(Address(bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)))),
        found => Err(WireError::Length { field, found, expected: 16 }),
    }
}

fn narrow<N: TryFrom<W>, W: Copy + Into<i128>>(field: &'static str, value: W) -> Result<N, WireError> {
    N::try_from(value).map_err(|_| WireError::Range { field, value: value.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Addresses, ports, protocol, length, time.
    type Meaning = (&'static str, &'static str, u16, u16, u8, u32, u64);

    /// Written by another implementation's encoder.
    const GOLDEN: [(&str, Option<Meaning>); 8] = [
        (
            "0a0b0880e2cfaa0610959aef3a12150a040a0102031204c0a8000918bb920320bb03280618ea0b",
            Some(("10.1.2.3", "192.168.0.9", 51515, 443, 6, 1514, 1_700_000_000_123_456_789)),
        ),
        (
            "0a0b0880e2cfaa0610959aef3a122c0a1000000000000000000000ffff0a010203121000000000000000000000ffffc0a80009183520b584022811185a",
            Some(("10.1.2.3", "192.168.0.9", 53, 33333, 17, 90, 1_700_000_000_123_456_789)),
        ),
        (
            "0a021001122c0a1020010db8000000000000000000000001121020010db800000001000000000000ffff18e92920e92928111878",
            Some(("2001:db8::1", "2001:db8:0:1::ffff", 5353, 5353, 17, 120, 1)),
        ),
        (
            "0a060881e2cfaa06120e0a040101010112040808080828011862",
            Some(("1.1.1.1", "8.8.8.8", 0, 0, 1, 98, 1_700_000_001_000_000_000)),
        ),
        ("0a0b0880e2cfaa0610959aef3a183c", None),
        ("120e0a040101010112040808080828011862", None),
        ("0a0b0880e2cfaa0610959aef3a120f0a05010203040512040808080828011862", None),
        ("0a0b0880e2cfaa0610959aef3a12140a040101010112040808080818f0a204200128061862", None),
    ];

    fn from_hex(text: &str) -> Bytes {
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex"))
            .collect()
    }

    #[test]
    fn messages_of_another_implementation_mean_what_they_say() {
        for (hex, expected) in GOLDEN {
            let Some((source, destination, from, to, protocol, length, time)) = expected else {
                decode(from_hex(hex)).expect_err("a message to refuse");
                continue;
            };
            let packet = decode(from_hex(hex)).expect("a message");
            let ip = |text: &str| Address::from(text.parse::<IpAddr>().expect("an address"));
            assert_eq!((packet.source, packet.destination), (ip(source), ip(destination)));
            let transport = packet.transport;
            let found = (transport.source_port(), transport.destination_port(), transport.protocol());
            assert_eq!((found, packet.length, packet.time), ((from, to, protocol), length, time));
        }
    }

    #[test]
    fn our_own_bytes_are_those_of_the_other_implementation() {
        for (hex, expected) in GOLDEN {
            // The mapped addresses come out as 4 bytes.
            if expected.is_some() && !hex.contains("ffff0a010203") {
                let mut bytes = BytesMut::new();
                encode(&decode(from_hex(hex)).expect("a message"), &mut bytes);
                assert_eq!(bytes.freeze(), from_hex(hex));
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(bytes.into());
        }
    }
}
