//! From a frame's bytes to the contract's packet: the outermost IP header and the ports directly behind it.
//!
//! [`link`] finds the IP header, with [`encapsulation`] for what is before it; [`fast`] reads the common headers and leaves the rest to [`general`], which stands on
//! etherparse. A property test holds that both agree on any bytes. Nothing here allocates, and no bytes panic.

pub mod encapsulation;
pub mod fast;
pub mod general;
pub mod link;

use dataflows::packet::Packet;
pub use link::LinkType;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// An IP packet.
    Ip(Packet),
    /// A frame without an IP header.
    NonIp,
    /// A frame whose IP header is broken or cut off.
    Malformed,
}

/// Decodes what nearly every frame is: plain headers right behind an Ethernet header. All others are for [`decode`].
///
/// Inlined wherever it stands, and without what else a frame can be, so that the packet is put together in registers:
/// given back through memory it takes twice the time.
#[inline(always)]
pub fn decode_plain(link: LinkType, frame: &[u8], time: u64, length: u32) -> Option<Packet> {
    if link != LinkType::ETHERNET {
        return None;
    }
    let (version, bytes) = link::behind_ethernet(frame)?;
    Some(fast::read(version, bytes)?.packet(0, time, length))
}

/// Decodes a frame captured at `time` (nanoseconds since the Unix epoch) whose length on the wire was `length` bytes.
pub fn decode(link: LinkType, frame: &[u8], time: u64, length: u32) -> Decoded {
    let Some(found) = link::find_ip(link, frame) else {
        return if link == LinkType::DAMAGED { Decoded::Malformed } else { Decoded::NonIp };
    };
    match fast::read(found.version, found.bytes).or_else(|| general::read(&found)) {
        Some(headers) => Decoded::Ip(headers.packet(found.vlan, time, length)),
        None => Decoded::Malformed,
    }
}

/// What both readers get out of an IP header and the header behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    version: u8,
    source: dataflows::packet::Address,
    destination: dataflows::packet::Address,
    protocol: u8,
    ports: Ports,
}

impl Headers {
    #[inline(always)]
    fn packet(self, vlan: u16, time: u64, length: u32) -> Packet {
        let Self { version, source, destination, protocol, ports } = self;
        let Ports { source: from, destination: to, tcp_flags } = ports;
        let transport = dataflows::packet::Transport::new(from, to, protocol, tcp_flags, vlan, version);
        Packet { time, transport, source, destination, length }
    }
}

const TCP: u8 = 6;

/// What is read at the start of an IP payload; 0 for what the protocol does not have or the bytes do not reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ports {
    source: u16,
    destination: u16,
    tcp_flags: u8,
}

/// Bytes of a payload that hold all of [`Ports`].
const PORTS: usize = 14;

impl Ports {
    /// Those of a payload that may be cut off.
    #[inline(always)]
    fn read(protocol: u8, payload: &[u8]) -> Self {
        let (Some(&[a, b, c, d]), true) = (payload.first_chunk(), has_ports(protocol)) else {
            return Self::default();
        };
        let tcp_flags = if protocol == TCP { payload.get(13).copied().unwrap_or(0) } else { 0 };
        Self { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]), tcp_flags }
    }

    /// Those of a payload of `length` bytes, at least 4, of which these are the first, and what follows it. Without
    /// branches: protocols are mixed, and a wrong guess costs more than all of this.
    #[inline(always)]
    fn read_plain(protocol: u8, start: &[u8; PORTS], length: usize) -> Self {
        let &[a, b, c, d, ..] = start;
        let ports = if has_ports(protocol) { u32::from_be_bytes([a, b, c, d]) } else { 0 };
        let tcp_flags = if protocol == TCP && length >= PORTS { start[13] } else { 0 };
        Self { source: (ports >> 16) as u16, destination: ports as u16, tcp_flags }
    }
}

/// Whether it is TCP, UDP, DCCP, SCTP or UDP-Lite (IANA protocol numbers).
#[inline(always)]
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | 17 | 33 | 132 | 136)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::link::{Found, IpVersion};
    use proptest::prelude::*;

    /// Bytes that look like an IP header often enough to get past the first checks.
    fn header_like() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![Just(0x45u8), Just(0x46), Just(0x4f), Just(0x60), Just(0x44), any::<u8>()];
        let protocol = prop_oneof![
            Just(6u8),
            Just(17),
            Just(33),
            Just(132),
            Just(136),
            Just(0),
            Just(43),
            Just(44),
            Just(60),
            Just(51),
            any::<u8>()
        ];
        let small = prop_oneof![0u16..80, any::<u16>()];
        (
            first,
            protocol.clone(),
            protocol,
            small.clone(),
            small,
            proptest::collection::vec(any::<u8>(), 0..120),
        )
            .prop_map(|(first, v4_protocol, v6_next, total, payload, mut bytes)| {
                let mut set = |at: usize, value: u8| {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                };
                set(0, first);
                if first >> 4 == 4 {
                    set(2, (total >> 8) as u8);
                    set(3, total as u8);
                    set(9, v4_protocol);
                    if payload % 3 > 0 {
                        set(6, 0);
                        set(7, 0);
                    }
                } else {
                    set(4, (payload >> 8) as u8);
                    set(5, payload as u8);
                    set(6, v6_next);
                    set(40, v4_protocol);
                    set(41, (total % 4) as u8);
                }
                bytes
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn the_fast_path_agrees_with_the_general_one(
            bytes in prop_oneof![header_like(), proptest::collection::vec(any::<u8>(), 0..100)],
            version in prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6), Just(IpVersion::ByNibble)],
        ) {
            let found = Found { version, vlan: 0, bytes: &bytes };
            if let Some(headers) = fast::read(version, &bytes) {
                prop_assert_eq!(Some(headers), general::read(&found));
            }
        }

        #[test]
        fn no_bytes_panic(link in any::<u16>(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode(LinkType(link.into()), &bytes, 0, 0);
            for known in LinkType::KNOWN {
                decode(*known, &bytes, 0, 0);
            }
        }
    }

    fn ethernet(ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&ether_type.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    fn ipv4(protocol: u8, total: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header.extend_from_slice(payload);
        header
    }

    fn transport(frame: &[u8]) -> dataflows::packet::Transport {
        match decode(LinkType::ETHERNET, frame, 0, 0) {
            Decoded::Ip(packet) => packet.transport,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ports_survive_a_tcp_header_that_is_cut_short() {
        let transport = transport(&ethernet(0x0800, &ipv4(6, 40, 0, &[0, 80, 1, 187])));
        assert_eq!(
            (transport.source_port(), transport.destination_port(), transport.tcp_flags()),
            (80, 443, 0)
        );
    }

    #[test]
    fn padding_behind_the_ip_packet_holds_no_ports() {
        let transport = transport(&ethernet(0x0800, &ipv4(17, 20, 0, &[9; 26])));
        assert_eq!((transport.source_port(), transport.destination_port()), (0, 0));
    }

    #[test]
    fn a_later_fragment_has_no_ports_and_the_first_has() {
        let ports = |fragment| {
            let transport = transport(&ethernet(0x0800, &ipv4(17, 0, fragment, &[0, 53, 0, 53, 0, 8, 0, 0])));
            (transport.source_port(), transport.destination_port())
        };
        assert_eq!((ports(0x2000), ports(0x2001), ports(1)), ((53, 53), (0, 0), (0, 0)));
    }

    #[test]
    fn broken_and_missing_ip_headers_are_told_apart() {
        let decoded = |frame: &[u8]| decode(LinkType::ETHERNET, frame, 0, 0);
        assert_eq!(decoded(&ethernet(0x0806, &[0; 28])), Decoded::NonIp);
        assert_eq!(decoded(&[]), Decoded::NonIp);
        assert_eq!(decoded(&ethernet(0x0800, &[0x45; 19])), Decoded::Malformed);
        assert_eq!(decoded(&ethernet(0x0800, &[0x65; 40])), Decoded::Malformed);
        assert_eq!(decoded(&ethernet(0x86dd, &[0x60; 39])), Decoded::Malformed);
    }

    #[test]
    fn tags_and_labels_before_the_ip_header_are_walked() {
        let inner = ipv4(17, 0, 0, &[0, 53, 0, 54]);
        let tagged = ethernet(0x88a8, &[&[0x20, 7, 0x81, 0, 0, 9, 8, 0], &inner[..]].concat());
        assert_eq!((transport(&tagged).vlan(), transport(&tagged).destination_port()), (7, 54));
        let labelled = ethernet(0x8847, &[&[0, 0, 0x10, 64, 0, 0, 0x21, 64], &inner[..]].concat());
        assert_eq!(transport(&labelled).destination_port(), 54);
        let pppoe = ethernet(0x8864, &[&[0x11, 0, 0, 1, 0, 30, 0, 0x21], &inner[..]].concat());
        assert_eq!(transport(&pppoe).destination_port(), 54);
    }

    #[test]
    fn loopback_headers_of_all_systems_are_read() {
        let v4 = ipv4(17, 0, 0, &[0, 53, 0, 54]);
        let v6 = [&[0x60, 0, 0, 0, 0, 4, 17, 64][..], &[0x20; 32], &[0, 53, 0, 54]].concat();
        let is_ip = |header: [u8; 4], packet: &[u8]| {
            let frame = [&header[..], packet].concat();
            [LinkType::NULL, LinkType::LOOP].map(|link| matches!(decode(link, &frame, 0, 0), Decoded::Ip(_)))
        };
        for header in
            [[2, 0, 0, 0], [0, 0, 0, 2], [0, 2, 0, 0], [0, 0, 8, 0], [0, 8, 0, 0], [0xff, 3, 0, 0x21]]
        {
            assert_eq!(is_ip(header, &v4), [true; 2], "{header:?}");
        }
        for family in [10, 23, 24, 28, 30] {
            assert_eq!([is_ip([family, 0, 0, 0], &v6), is_ip([0, 0, 0, family], &v6)], [[true; 2]; 2]);
        }
        assert_eq!([is_ip([0, 0, 0x86, 0xdd], &v6), is_ip([0xdd, 0x86, 0, 0], &v6)], [[true; 2]; 2]);
        for header in [[7, 0, 0, 0], [23, 0, 0, 0], [8, 0, 0, 0], [1, 2, 3, 4]] {
            assert_eq!(is_ip(header, &v4), [false; 2], "{header:?}");
        }
    }

    #[test]
    fn ipv6_extension_headers_are_walked_but_ah_is_not() {
        let v6 = |next: u8, payload: &[u8]| {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, next, 64];
            header.extend_from_slice(&[0x20; 32]);
            header.extend_from_slice(payload);
            transport(&ethernet(0x86dd, &header))
        };
        let walked = v6(0, &[60, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 53, 0, 54]);
        assert_eq!((walked.protocol(), walked.destination_port()), (17, 54));
        assert_eq!(v6(51, &[17, 4, 0, 0, 0, 0, 0, 0]).protocol(), 51);
        let later = v6(44, &[17, 0, 0, 0x10, 0, 0, 0, 0, 0, 53, 0, 54]);
        assert_eq!((later.protocol(), later.destination_port()), (17, 0));
        assert_eq!(v6(43, &[17]).protocol(), 43, "a header that is cut off is the last one known");
    }
}
