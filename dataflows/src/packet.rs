//! The decoded packet: what every source produces and every aggregator reads.
//!
//! A frame's bytes are not here, and neither is the decoder: this crate never sees a capture.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address of either family as one number: an IPv6 address is itself, an IPv4 address `a.b.c.d` is
/// `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), so a mapped address and the IPv4 address it maps are the same `Address`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub u128);

/// The upper 96 bits of every IPv4-mapped address, shifted down by 32.
const MAPPED: u128 = 0xffff;

impl Address {
    /// The IPv4 address of this number, given in host order.
    #[inline(always)]
    pub const fn v4(number: u32) -> Self {
        Self(MAPPED << 32 | number as u128)
    }

    /// Whether this is an IPv4 address, mapped or not.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == MAPPED
    }

    /// Place in the order of snapshot rows: all IPv4 addresses by number, then all IPv6 addresses by number.
    ///
    /// A bijection: the block of mapped addresses moves to the front and what stood before it moves up.
    #[inline]
    pub const fn ordinal(self) -> u128 {
        if self.is_v4() {
            self.0 & 0xffff_ffff
        } else if self.0 < MAPPED << 32 {
            self.0 + (1 << 32)
        } else {
            self.0
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            IpAddr::V4(Ipv4Addr::from_bits(address.0 as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(address.0))
        }
    }
}

/// Everything above the addresses that a key can hold, packed into one word whose numeric order is the order of its
/// parts: source port (16 bits), destination port (16), protocol (8), TCP flags (8), VLAN (12), IP version (4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transport(pub u64);

impl Transport {
    /// Packs the parts; `vlan` keeps its low 12 bits and `version` its low 4.
    #[inline(always)]
    pub const fn new(
        source: u16,
        destination: u16,
        protocol: u8,
        tcp_flags: u8,
        vlan: u16,
        version: u8,
    ) -> Self {
        Self(
            (source as u64) << 48
                | (destination as u64) << 32
                | (protocol as u64) << 24
                | (tcp_flags as u64) << 16
                | ((vlan & 0xfff) as u64) << 4
                | (version & 0xf) as u64,
        )
    }

    /// Source port; 0 where the protocol has none or the capture does not hold it.
    pub const fn source_port(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Destination port; 0 where the protocol has none or the capture does not hold it.
    pub const fn destination_port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// IP protocol number (IANA); for IPv6 the one after the extension headers.
    pub const fn protocol(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The TCP flags CWR..FIN (RFC 9293, 3.1); 0 for any other protocol or where the header is cut off.
    pub const fn tcp_flags(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Outermost VLAN identifier, 0..=4095; 0 without a tag.
    pub const fn vlan(self) -> u16 {
        (self.0 >> 4) as u16 & 0xfff
    }

    /// Version of the outermost IP header: 4 or 6.
    pub const fn ip_version(self) -> u8 {
        self.0 as u8 & 0xf
    }
}

/// One captured frame, decoded as far as its outermost IP header and the ports behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The capture's timestamp, nanoseconds since the Unix epoch, UTC.
    pub time: u64,
    /// Ports, protocol, flags, VLAN and IP version.
    pub transport: Transport,
    /// Source address of the outermost IP header.
    pub source: Address,
    /// Destination address of the outermost IP header.
    pub destination: Address,
    /// Length on the wire in bytes, link header included; not the captured length.
    pub length: u32,
}

impl Packet {
    /// A number that hardly any other packet has, the same in every run and process, and however the packet came: of a
    /// message of its own, TCP flags and VLAN are not known.
    #[inline(always)]
    pub fn fingerprint(&self) -> u64 {
        let mix = |a: u64, b: u64| {
            let product = u128::from(a ^ 0x9e37_79b9_7f4a_7c15) * u128::from(b ^ 0xd6e8_feb8_6659_fd93);
            product as u64 ^ (product >> 64) as u64
        };
        let addresses = self.source.0 ^ self.destination.0.rotate_left(37);
        let place = mix(addresses as u64, (addresses >> 64) as u64 ^ self.transport.0 >> 24);
        mix(place, self.time ^ u64::from(self.length) << 40)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
        let plain: IpAddr = "192.0.2.1".parse().expect("an address");
        assert_eq!(Address::from(mapped), Address::from(plain));
        assert_eq!(IpAddr::from(Address::from(mapped)), plain);
    }

    #[test]
    fn ordinals_put_ipv4_before_ipv6_and_keep_numeric_order() {
        let order = [
            "0.0.0.0",
            "9.255.0.1",
            "10.0.0.0",
            "255.255.255.255",
            "::",
            "::1",
            "::fffe:ffff:ffff",
            "::1:0:0:0",
            "2001:db8::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ];
        let ordinals: Vec<u128> = order
            .iter()
            .map(|text| Address::from(text.parse::<IpAddr>().expect("an address")).ordinal())
            .collect();
        assert!(ordinals.windows(2).all(|pair| pair[0] < pair[1]), "{ordinals:x?}");
    }

    #[test]
    fn transport_parts_come_back() {
        let all = Transport::new(1, 65535, 17, 0x12, 4095, 6);
        assert_eq!((all.source_port(), all.destination_port(), all.protocol()), (1, 65535, 17));
        assert_eq!((all.tcp_flags(), all.vlan(), all.ip_version()), (0x12, 4095, 6));
    }
}
