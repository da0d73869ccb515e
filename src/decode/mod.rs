//! From a frame's bytes to the contract's packet: the outermost IP header and the ports directly behind it.
//!
//! [`link`] finds the IP header, with [`encapsulation`] for what is before it; [`fast`] reads the common headers and leaves the rest to [`general`], which stands on
//! etherparse. With layers ([`decode_with_layers`]), both also say where the parts of the frame are that extra fields are
//! read from. Property tests hold that all agree on any bytes. Nothing here allocates, and no bytes panic.

pub mod encapsulation;
pub mod fast;
pub mod general;
pub mod link;

use dataflows::layers::{Layers, Text};
use dataflows::packet::Packet;
use link::Found;
pub use link::LinkType;

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<T = Packet> {
    /// An IP packet.
    Ip(T),
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

/// Decodes what [`decode_plain`] does, and gives the parts of the frame besides.
///
/// Inlined for the same reason: of the parts, only those that somebody reads are looked for.
#[inline(always)]
pub fn decode_plain_with_layers(
    link: LinkType,
    frame: &[u8],
    time: u64,
    length: u32,
    interface: Text,
) -> Option<(Packet, Layers<'_>)> {
    if link != LinkType::ETHERNET {
        return None;
    }
    let (version, bytes) = link::behind_ethernet(frame)?;
    let found = Found::untagged(version, bytes);
    let (headers, payload) = fast::read_with_payload(version, bytes, on_wire(frame, bytes, length))?;
    Some((headers.packet(0, time, length), headers.layers(link, frame, &found, payload, interface)))
}

/// Decodes any frame as [`decode`] does, and gives the parts of the frame besides; `interface` is what captured it.
pub fn decode_with_layers(
    link: LinkType,
    frame: &[u8],
    time: u64,
    length: u32,
    interface: Text,
) -> Decoded<(Packet, Layers<'_>)> {
    let Some(found) = link::find_ip(link, frame) else {
        return if link == LinkType::DAMAGED { Decoded::Malformed } else { Decoded::NonIp };
    };
    let on_wire = on_wire(frame, found.bytes, length);
    let read = fast::read_with_payload(found.version, found.bytes, on_wire)
        .or_else(|| general::read_with_payload(&found, on_wire));
    match read {
        Some((headers, payload)) => Decoded::Ip((
            headers.packet(found.vlan, time, length),
            headers.layers(link, frame, &found, payload, interface),
        )),
        None => Decoded::Malformed,
    }
}

/// What the length of a frame on the wire leaves for the IP header in it and all behind that.
#[inline(always)]
fn on_wire(frame: &[u8], ip: &[u8], length: u32) -> u32 {
    length.saturating_sub((frame.len() - ip.len()) as u32)
}

/// A fragment that is not the first of its packet, as [`Layers`] have it.
const LATER_FRAGMENT: u8 = 2;

/// What is behind an IP header and its extension headers: see the fields of [`Layers`] with these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    ip_length: u32,
    transport: &'a [u8],
    transport_length: u32,
    fragment: u8,
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

    #[inline(always)]
    fn layers<'a>(
        &self,
        link: LinkType,
        frame: &'a [u8],
        found: &Found<'a>,
        payload: Payload<'a>,
        interface: Text,
    ) -> Layers<'a> {
        let (source_mac, destination_mac) = link::mac_addresses(link, frame);
        let Payload { ip_length, transport, transport_length, fragment } = payload;
        Layers {
            frame,
            source_mac,
            destination_mac,
            inner_vlan: found.inner_vlan,
            mpls_label: found.mpls_label,
            interface,
            ip: found.bytes,
            ip_length,
            transport,
            transport_length,
            protocol: self.protocol,
            fragment,
        }
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

    /// Ethernet frames with some tags and labels before what looks like an IP header.
    fn frame_like() -> impl Strategy<Value = Vec<u8>> {
        let tag = prop_oneof![
            (Just(0x8100u16), any::<u16>()),
            (Just(0x88a8), any::<u16>()),
            (Just(0x9100), any::<u16>()),
            (Just(0x8847), any::<u16>()),
        ];
        let ends = prop_oneof![Just(0x0800u16), Just(0x86dd)];
        (any::<[u8; 12]>(), proptest::collection::vec(tag, 0..4), ends, header_like()).prop_map(
            |(addresses, tags, end, packet)| {
                let mut frame = addresses.to_vec();
                for (ether_type, control) in tags {
                    frame.extend_from_slice(&ether_type.to_be_bytes());
                    frame.extend_from_slice(&control.to_be_bytes());
                    if ether_type == 0x8847 {
                        // The bottom of a stack, which has no EtherType behind it.
                        frame.extend_from_slice(&[1, 64]);
                        frame.extend_from_slice(&packet);
                        return frame;
                    }
                }
                frame.extend_from_slice(&end.to_be_bytes());
                frame.extend_from_slice(&packet);
                frame
            },
        )
    }

    impl<T> Decoded<T> {
        fn map<U>(self, map: impl FnOnce(T) -> U) -> Decoded<U> {
            match self {
                Self::Ip(packet) => Decoded::Ip(map(packet)),
                Self::NonIp => Decoded::NonIp,
                Self::Malformed => Decoded::Malformed,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn the_fast_path_agrees_with_the_general_one(
            bytes in prop_oneof![header_like(), proptest::collection::vec(any::<u8>(), 0..100)],
            version in prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6), Just(IpVersion::ByNibble)],
        ) {
            let found = Found::untagged(version, &bytes);
            if let Some(headers) = fast::read(version, &bytes) {
                prop_assert_eq!(Some(headers), general::read(&found));
            }
        }

        #[test]
        fn the_fast_path_finds_the_same_payload_as_the_general_one(
            bytes in prop_oneof![header_like(), proptest::collection::vec(any::<u8>(), 0..100)],
            version in prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6), Just(IpVersion::ByNibble)],
            on_wire in prop_oneof![0u32..100, any::<u32>()],
        ) {
            let plain = fast::read_with_payload(version, &bytes, on_wire);
            prop_assert_eq!(plain.map(|(headers, _)| headers), fast::read(version, &bytes));
            if plain.is_some() {
                prop_assert_eq!(plain, general::read_with_payload(&Found::untagged(version, &bytes), on_wire));
            }
        }

        #[test]
        fn layers_come_with_the_very_packet_that_is_decoded_without_them(
            link in proptest::sample::select(LinkType::KNOWN),
            bytes in prop_oneof![frame_like(), header_like(), proptest::collection::vec(any::<u8>(), 0..100)],
            length in prop_oneof![0u32..200, any::<u32>()],
        ) {
            let interface = Text::new("eth0");
            let decoded = decode_with_layers(link, &bytes, 5, length, interface);
            prop_assert_eq!(decoded.map(|(packet, _)| packet), decode(link, &bytes, 5, length));
            let plain = decode_plain_with_layers(link, &bytes, 5, length, interface);
            prop_assert_eq!(plain.map(|(packet, _)| packet), decode_plain(link, &bytes, 5, length));
            if let Some(plain) = plain {
                prop_assert_eq!(Decoded::Ip(plain), decode_with_layers(link, &bytes, 5, length, interface));
            }
            if let Decoded::Ip((packet, layers)) = decoded {
                let Layers { frame, ip, transport, .. } = layers;
                prop_assert_eq!((frame, layers.interface), (&bytes[..], interface));
                prop_assert!(frame.ends_with(ip) && transport.len() <= ip.len());
                prop_assert_eq!(layers.protocol, packet.transport.protocol());
                prop_assert!(layers.inner_vlan < 4096 && layers.mpls_label < 1 << 20 && layers.fragment <= 2);
                prop_assert!(layers.source_mac >> 48 == 0 && layers.destination_mac >> 48 == 0);
                prop_assert!(layers.payload_length() <= layers.transport_length);
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

    fn layers(link: LinkType, frame: &[u8], length: u32) -> Layers<'_> {
        match decode_with_layers(link, frame, 0, length, Text::default()) {
            Decoded::Ip((_, layers)) => layers,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_are_those_of_the_outermost_link_header() {
        let packet = ipv4(17, 32, 0, &[0; 12]);
        let of = |link, header: &[u8]| {
            let frame = [header, &packet].concat();
            let layers = layers(link, &frame, 0);
            (layers.source_mac, layers.destination_mac)
        };
        let ethernet = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        assert_eq!(of(LinkType::ETHERNET, &ethernet), (0x0200_0000_0001, 0x0200_0000_0002));
        let bridged = [&[4; 12], &[0x65, 0x58][..], &ethernet].concat();
        assert_eq!(of(LinkType::ETHERNET, &bridged), (0x0404_0404_0404, 0x0404_0404_0404));
        let sll = |length| [0, 0, 0, 1, 0, length, 2, 0, 0, 0, 0, 1, 0, 0, 8, 0];
        assert_eq!(of(LinkType::LINUX_SLL, &sll(6)), (0x0200_0000_0001, 0));
        assert_eq!(of(LinkType::LINUX_SLL, &sll(8)), (0, 0), "no address of 48 bits");
        let sll2 = |length| [8, 0, 0, 0, 0, 0, 1, 2, 0, 1, 0, length, 2, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(of(LinkType::LINUX_SLL2, &sll2(6)), (0x0200_0000_0001, 0));
        assert_eq!(of(LinkType::LINUX_SLL2, &sll2(4)), (0, 0));
        assert_eq!(link::interface_number(LinkType::LINUX_SLL2, &sll2(6)), Some(258));
        assert_eq!(of(LinkType::RAW, &[]), (0, 0));
    }

    #[test]
    fn the_second_tag_and_the_first_label_are_kept_wherever_they_stand() {
        let packet = ipv4(17, 32, 0, &[0; 12]);
        let of = |ether_type, headers: &[u8]| {
            let frame = ethernet(ether_type, &[headers, &packet].concat());
            let layers = layers(LinkType::ETHERNET, &frame, 0);
            assert_eq!(layers.ip, packet);
            (transport(&frame).vlan(), layers.inner_vlan, layers.mpls_label)
        };
        assert_eq!(of(0x0800, &[]), (0, 0, 0));
        assert_eq!(of(0x8100, &[0xe0, 7, 8, 0]), (7, 0, 0));
        assert_eq!(of(0x88a8, &[0, 7, 0x81, 0, 0xe0, 9, 0x81, 0, 0, 3, 8, 0]), (7, 9, 0));
        assert_eq!(of(0x9100, &[0, 0, 0x81, 0, 0, 0, 0x81, 0, 0, 3, 8, 0]), (0, 0, 0), "priority tags");
        assert_eq!(of(0x8847, &[0x12, 0x34, 0x50, 64, 0, 0, 0x11, 64]), (0, 0, 0x12345));
        assert_eq!(of(0x8847, &[0, 0, 0, 64, 0, 0, 0x11, 64]), (0, 0, 0), "explicit null");
        let pseudowire = |tags: &[u8]| [&[0, 1, 1, 64, 0, 0, 0, 0], &[2; 12][..], tags].concat();
        assert_eq!(of(0x8847, &pseudowire(&[0x81, 0, 0, 5, 0x81, 0, 0, 6, 8, 0])), (5, 6, 16));
        let behind_tag = |tags: &[u8]| [&[0, 4, 0x88, 0x47], &pseudowire(tags)[..]].concat();
        assert_eq!(of(0x8100, &behind_tag(&[0x81, 0, 0, 5, 8, 0])), (4, 5, 16));
        assert_eq!(of(0x8100, &behind_tag(&[8, 0])), (4, 0, 16));
    }

    #[test]
    fn lengths_are_those_of_the_ip_header_and_else_what_was_on_the_wire() {
        let of = |packet: &[u8], length| {
            let frame = ethernet(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet);
            let layers = layers(LinkType::ETHERNET, &frame, length);
            (layers.ip_length, layers.transport.len(), layers.transport_length)
        };
        assert_eq!(of(&ipv4(17, 1000, 0, &[0; 30]), 1014), (1000, 30, 980), "cut off");
        assert_eq!(of(&ipv4(17, 28, 0, &[0; 26]), 60), (28, 8, 8), "padded");
        assert_eq!(of(&ipv4(17, 20, 0, &[0; 26]), 60), (20, 0, 0), "without a payload");
        assert_eq!(of(&ipv4(6, 0, 0, &[0; 26]), 9014), (9000, 26, 8980), "left to the network card");
        let mut options = ipv4(17, 40, 0, &[0; 26]);
        options[0] = 0x47;
        assert_eq!(of(&options, 60), (40, 12, 12));
        let v6 = |next: u8, length: u16, payload: &[u8]| {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, next, 64];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend_from_slice(&[0x20; 32]);
            [&header[..], payload].concat()
        };
        assert_eq!(of(&v6(17, 8, &[0; 26]), 80), (48, 8, 8));
        assert_eq!(of(&v6(17, 0, &[0; 26]), 9014), (9000, 26, 8960));
        assert_eq!(of(&v6(0, 16, &[17; 26]), 80), (56, 16, 16), "an extension header that is cut off");
        assert_eq!(of(&v6(0, 16, &[17, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]), 80), (56, 3, 8));
        assert_eq!(of(&v6(17, 0, &[0; 26]), 0), (0, 26, 0), "a frame that claims no length");
    }

    #[test]
    fn fragments_of_both_versions_are_told_by_their_place() {
        let v4 =
            |flags| layers(LinkType::ETHERNET, &ethernet(0x0800, &ipv4(17, 36, flags, &[0; 16])), 0).fragment;
        assert_eq!([v4(0), v4(0x4000), v4(0x2000), v4(0x2001), v4(1)], [0, 0, 1, 2, 2]);
        let v6 = |headers: &[u8]| {
            let packet = [&[0x60, 0, 0, 0, 0, 0, 44, 64][..], &[0x20; 32], headers, &[0; 16]].concat();
            let frame = ethernet(0x86dd, &packet);
            let layers = layers(LinkType::ETHERNET, &frame, 0);
            (layers.fragment, layers.protocol)
        };
        assert_eq!(v6(&[17, 0, 0, 0, 0, 0, 0, 9]), (0, 17), "an atomic fragment");
        assert_eq!(v6(&[17, 0, 0, 1, 0, 0, 0, 9]), (1, 17));
        assert_eq!(v6(&[17, 0, 0, 9, 0, 0, 0, 9]), (2, 17));
        assert_eq!(v6(&[17, 0, 0, 8, 0, 0, 0, 9]), (2, 17), "the last one");
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
