//! Keys: which fields of a packet make a flow, and the two fixed layouts that hold any combination of them.
//!
//! A key is the packet's own address and transport words with everything masked out that the task does not name, so
//! rolling a fine key up to a coarser one is masking again. Where all addresses left are IPv4 (or none is left) the key
//! is [`Compact`], else it is [`Wide`]; one flow never appears in both.

use crate::packet::{Address, Packet, Transport};
use crate::table::route;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Two words: source IPv4 (high half) and destination IPv4 (low half), then [`Transport`].
pub type Compact = [u64; 2];
/// Five words: source address, destination address (high word first), then [`Transport`].
pub type Wide = [u64; 5];

/// One field of a key. Prefix lengths are in bits; 32 and 128 keep the whole address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Source address, cut to a prefix a family.
    SrcIp {
        /// Bits kept of an IPv4 address, 1..=32.
        v4: u8,
        /// Bits kept of an IPv6 address, 1..=128.
        v6: u8,
    },
    /// Destination address, cut to a prefix a family.
    DstIp {
        /// Bits kept of an IPv4 address, 1..=32.
        v4: u8,
        /// Bits kept of an IPv6 address, 1..=128.
        v6: u8,
    },
    /// Source port.
    SrcPort,
    /// Destination port.
    DstPort,
    /// IP protocol number.
    Protocol,
    /// Outermost VLAN identifier; 0 without a tag.
    Vlan,
    /// TCP flags, CWR..FIN.
    TcpFlags,
    /// Version of the outermost IP header.
    IpVersion,
}

/// Why a field name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Not a field at all.
    #[error(
        "unknown field `{0}`; one of SrcIP, DstIP, SrcPort, DstPort, Protocol, VLAN, TCPFlags, IPVersion, \
         or a prefix such as SrcIP/24 (IPv4), SrcIP/64 (IPv6), SrcIP/24/64 (both)"
    )]
    Unknown(String),
    /// A prefix length outside of its family's range.
    #[error(
        "bad prefix in `{0}`: 1 to 32 bits for IPv4, 33 to 128 for IPv6 alone, or both as in SrcIP/24/48"
    )]
    Prefix(String),
    /// Two fields that would make the same column.
    #[error("`{0}` is named twice")]
    Twice(String),
    /// No field at all.
    #[error("a key needs at least one field")]
    Empty,
}

impl Field {
    /// Reads a name as configuration spells it: `SrcIP`, `DstPort`, `SrcIP/24`, `DstIP/24/64`.
    ///
    /// A single prefix length of at most 32 cuts IPv4 addresses and one above 32 cuts IPv6 addresses; the other family
    /// stays whole.
    pub fn parse(name: &str) -> Result<Self, FieldError> {
        let mut parts = name.split('/');
        let base = parts.next().unwrap_or_default();
        let lengths = parts
            .map(|part| part.parse::<u8>().map_err(|_| FieldError::Prefix(name.into())))
            .collect::<Result<Vec<_>, _>>()?;
        let (v4, v6) = match lengths[..] {
            [] => (32, 128),
            [both @ 1..=32] => (both, 128),
            [both @ 33..=128] => (32, both),
            [v4 @ 1..=32, v6 @ 1..=128] => (v4, v6),
            _ => return Err(FieldError::Prefix(name.into())),
        };
        match (base, lengths.is_empty()) {
            ("SrcIP", _) => Ok(Self::SrcIp { v4, v6 }),
            ("DstIP", _) => Ok(Self::DstIp { v4, v6 }),
            ("SrcPort", true) => Ok(Self::SrcPort),
            ("DstPort", true) => Ok(Self::DstPort),
            ("Protocol", true) => Ok(Self::Protocol),
            ("VLAN", true) => Ok(Self::Vlan),
            ("TCPFlags", true) => Ok(Self::TcpFlags),
            ("IPVersion", true) => Ok(Self::IpVersion),
            _ => Err(FieldError::Unknown(name.into())),
        }
    }

    /// The column's name in every table.
    pub fn column(self) -> &'static str {
        match self {
            Self::SrcIp { v4: 32, v6: 128 } => "src_ip",
            Self::SrcIp { .. } => "src_prefix",
            Self::DstIp { v4: 32, v6: 128 } => "dst_ip",
            Self::DstIp { .. } => "dst_prefix",
            Self::SrcPort => "src_port",
            Self::DstPort => "dst_port",
            Self::Protocol => "protocol",
            Self::Vlan => "vlan",
            Self::TcpFlags => "tcp_flags",
            Self::IpVersion => "ip_version",
        }
    }

    /// Whether the column holds whole addresses.
    pub fn is_address(self) -> bool {
        matches!(self, Self::SrcIp { v4: 32, v6: 128 } | Self::DstIp { v4: 32, v6: 128 })
    }

    /// The bits of the transport word that this field keeps.
    fn transport_mask(self) -> u64 {
        match self {
            Self::SrcIp { .. } | Self::DstIp { .. } => 0,
            Self::SrcPort => Transport::new(u16::MAX, 0, 0, 0, 0, 0).0,
            Self::DstPort => Transport::new(0, u16::MAX, 0, 0, 0, 0).0,
            Self::Protocol => Transport::new(0, 0, u8::MAX, 0, 0, 0).0,
            Self::TcpFlags => Transport::new(0, 0, 0, u8::MAX, 0, 0).0,
            Self::Vlan => Transport::new(0, 0, 0, 0, u16::MAX, 0).0,
            Self::IpVersion => Transport::new(0, 0, 0, 0, 0, u8::MAX).0,
        }
    }
}

/// What is kept of one address: nothing, or a prefix a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct AddressMask {
    v4: u32,
    v6: u128,
}

impl AddressMask {
    fn new(v4: u8, v6: u8) -> Self {
        Self { v4: u32::MAX << (32 - u32::from(v4)), v6: u128::MAX << (128 - u32::from(v6)) }
    }

    #[inline(always)]
    fn apply(self, address: Address) -> Address {
        if self.v6 == 0 {
            Address(0)
        } else if address.is_v4() {
            Address(address.0 & (u128::MAX << 32 | u128::from(self.v4)))
        } else {
            Address(address.0 & self.v6)
        }
    }

    /// Whether an address under this mask fits into 32 bits.
    #[inline(always)]
    fn fits_compact(self, address: Address) -> bool {
        self.v6 == 0 || address.is_v4()
    }

    fn union(self, other: Self) -> Self {
        Self { v4: self.v4 | other.v4, v6: self.v6 | other.v6 }
    }
}

/// Which bits of a packet a key keeps. Masks order key sets: the finer one holds all bits of the coarser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask {
    source: AddressMask,
    destination: AddressMask,
    transport: u64,
}

/// A key in the layout that its addresses call for. Its own order is that of the words, not that of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// All addresses are IPv4, or there are none.
    Compact(Compact),
    /// At least one address is IPv6.
    Wide(Wide),
}

impl Key {
    /// The key that words begin with: 5 if it is wide, else 2.
    pub fn of_words(wide: bool, words: &[u64]) -> Self {
        match (words.first_chunk(), words.first_chunk()) {
            (_, Some(key)) if wide => Self::Wide(*key),
            (Some(key), _) => Self::Compact(*key),
            _ => unreachable!("a key has all of its words"),
        }
    }

    /// The hash that decides which worker owns the key: see [`route`].
    pub fn route(&self) -> u64 {
        match self {
            Self::Compact(key) => route(key),
            Self::Wide(key) => route(key),
        }
    }

    /// The key rolled up to a coarser key set.
    #[inline(always)]
    pub fn under(&self, mask: Mask) -> Self {
        match self {
            Self::Compact(key) => Self::Compact(mask.coarsen_compact(key)),
            Self::Wide(key) => mask.coarsen_wide(key),
        }
    }
}

impl Mask {
    /// Whether every key under `coarse` can be computed from a key under `self`.
    pub fn contains(self, coarse: Self) -> bool {
        self.source.union(coarse.source) == self.source
            && self.destination.union(coarse.destination) == self.destination
            && self.transport | coarse.transport == self.transport
    }

    /// How many bits are kept, both families together: a first guess at how many keys there are.
    pub fn bits(self) -> u32 {
        let address = |mask: AddressMask| mask.v4.count_ones() + mask.v6.count_ones();
        address(self.source) + address(self.destination) + self.transport.count_ones()
    }

    /// The key of these parts under this mask.
    #[inline(always)]
    pub fn key(self, source: Address, destination: Address, transport: Transport) -> Key {
        let transport = transport.0 & self.transport;
        if self.source.fits_compact(source) && self.destination.fits_compact(destination) {
            let source = source.0 as u32 & self.source.v4;
            let destination = destination.0 as u32 & self.destination.v4;
            Key::Compact([u64::from(source) << 32 | u64::from(destination), transport])
        } else {
            let (source, destination) = (self.source.apply(source).0, self.destination.apply(destination).0);
            Key::Wide([
                (source >> 64) as u64,
                source as u64,
                (destination >> 64) as u64,
                destination as u64,
                transport,
            ])
        }
    }

    /// The key of a packet under this mask.
    #[inline(always)]
    pub fn of(self, packet: &Packet) -> Key {
        self.key(packet.source, packet.destination, packet.transport)
    }

    /// A compact key of a finer mask, rolled up to this one.
    #[inline(always)]
    pub fn coarsen_compact(self, key: &Compact) -> Compact {
        [key[0] & (u64::from(self.source.v4) << 32 | u64::from(self.destination.v4)), key[1] & self.transport]
    }

    /// A wide key of a finer mask, rolled up to this one; it may turn compact.
    #[inline(always)]
    pub fn coarsen_wide(self, key: &Wide) -> Key {
        let (source, destination, transport) = wide_parts(key);
        self.key(source, destination, transport)
    }
}

/// Addresses and transport of a wide key.
#[inline(always)]
fn wide_parts(key: &Wide) -> (Address, Address, Transport) {
    let address = |high: u64, low: u64| Address(u128::from(high) << 64 | u128::from(low));
    (address(key[0], key[1]), address(key[2], key[3]), Transport(key[4]))
}

/// Addresses and transport of a compact key; a masked-out address reads as 0.0.0.0.
#[inline(always)]
fn compact_parts(key: &Compact) -> (Address, Address, Transport) {
    (Address::v4((key[0] >> 32) as u32), Address::v4(key[0] as u32), Transport(key[1]))
}

/// The value of one key column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyValue {
    /// A whole address.
    Address(Address),
    /// A network address and its prefix length in bits.
    Prefix(Address, u8),
    /// A port, protocol, VLAN, set of flags or IP version.
    Number(u16),
}

/// The fields of a key in the order of their columns; at least one, no column twice.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyFields {
    fields: Vec<Field>,
    mask: Mask,
    /// Whether the columns stand in the order in which a compact key packs them.
    natural: bool,
}

impl KeyFields {
    /// Checks and keeps the fields in the given order.
    pub fn new(fields: Vec<Field>) -> Result<Self, FieldError> {
        if fields.is_empty() {
            return Err(FieldError::Empty);
        }
        let mut mask = Mask::default();
        for (at, field) in fields.iter().enumerate() {
            if fields[..at].iter().any(|earlier| earlier.column() == field.column()) {
                return Err(FieldError::Twice(field.column().into()));
            }
            mask.transport |= field.transport_mask();
            match *field {
                Field::SrcIp { v4, v6 } => mask.source = mask.source.union(AddressMask::new(v4, v6)),
                Field::DstIp { v4, v6 } => {
                    mask.destination = mask.destination.union(AddressMask::new(v4, v6))
                }
                _ => {}
            }
        }
        let rank = |field: &Field| match field {
            Field::SrcIp { .. } => 0,
            Field::DstIp { .. } => 1,
            Field::SrcPort => 2,
            Field::DstPort => 3,
            Field::Protocol => 4,
            Field::TcpFlags => 5,
            Field::Vlan => 6,
            Field::IpVersion => 7,
        };
        let natural = fields.windows(2).all(|pair| rank(&pair[0]) < rank(&pair[1]));
        Ok(Self { fields, mask, natural })
    }

    /// Reads the names as configuration spells them.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, FieldError> {
        Self::new(names.iter().map(|name| Field::parse(name.as_ref())).collect::<Result<_, _>>()?)
    }

    /// The fields, in column order.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The key whose columns read as these cells; `None` where they are not what a table of these fields holds.
    pub fn read<'a>(&self, cells: impl IntoIterator<Item = &'a str>) -> Option<Key> {
        let (mut source, mut destination) = (None, None);
        let mut transport = 0;
        let mut cells = cells.into_iter();
        for field in &self.fields {
            let cell = cells.next()?;
            let address = |known: Option<Address>| {
                let address: IpAddr = cell.split('/').next()?.parse().ok()?;
                // An address and its prefix may both be columns.
                Some(Some(Address(Address::from(address).0 | known.map_or(0, |known| known.0))))
            };
            let number = || cell.parse::<u16>().ok();
            transport |= match field {
                Field::SrcIp { .. } => {
                    source = address(source)?;
                    0
                }
                Field::DstIp { .. } => {
                    destination = address(destination)?;
                    0
                }
                Field::SrcPort => Transport::new(number()?, 0, 0, 0, 0, 0).0,
                Field::DstPort => Transport::new(0, number()?, 0, 0, 0, 0).0,
                Field::Protocol => Transport::new(0, 0, u8::try_from(number()?).ok()?, 0, 0, 0).0,
                Field::TcpFlags => Transport::new(0, 0, 0, u8::try_from(number()?).ok()?, 0, 0).0,
                Field::Vlan => Transport::new(0, 0, 0, 0, number()?, 0).0,
                Field::IpVersion => Transport::new(0, 0, 0, 0, 0, u8::try_from(number()?).ok()?).0,
            };
        }
        let unnamed = Address::v4(0);
        Some(self.mask.key(source.unwrap_or(unnamed), destination.unwrap_or(unnamed), Transport(transport)))
    }

    /// The bits of a packet that these fields keep.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// A compact key's words rearranged so that comparing them compares the columns in order.
    #[inline]
    pub fn compact_order(&self, key: &Compact) -> Compact {
        if self.natural {
            return *key;
        }
        let (source, destination, transport) = compact_parts(key);
        let mut order: u128 = 0;
        // An address and its prefix overlap: each adds only the bits that the other has not added before it.
        let (mut source_used, mut destination_used) = (0, 0);
        for field in &self.fields {
            let (value, width) = match *field {
                Field::SrcIp { v4, .. } => next_bits(source, &mut source_used, v4),
                Field::DstIp { v4, .. } => next_bits(destination, &mut destination_used, v4),
                Field::SrcPort => (transport.source_port().into(), 16),
                Field::DstPort => (transport.destination_port().into(), 16),
                Field::Protocol => (transport.protocol().into(), 8),
                Field::TcpFlags => (transport.tcp_flags().into(), 8),
                Field::Vlan => (transport.vlan().into(), 12),
                Field::IpVersion => (transport.ip_version().into(), 4),
            };
            order = order << width | value;
        }
        [(order >> 64) as u64, order as u64]
    }

    /// Whether the columns stand in the order in which a key packs them, so that [`natural_order`] is theirs.
    #[inline(always)]
    pub fn in_natural_order(&self) -> bool {
        self.natural
    }

    /// The value of a column; `words` are a compact key (2 words or more) or, where `wide`, a wide key (5 or more).
    #[inline(always)]
    pub fn value(&self, column: usize, wide: bool, words: &[u64]) -> KeyValue {
        let (source, destination, transport) = key_parts(wide, words);
        let address = |address: Address, v4: u8, v6: u8| match (v4, v6) {
            (32, 128) => KeyValue::Address(address),
            _ if address.is_v4() => KeyValue::Prefix(Address::v4(cut_v4(address, v4)), v4),
            _ => KeyValue::Prefix(Address(address.0 & u128::MAX << (128 - u32::from(v6))), v6),
        };
        match self.fields[column] {
            Field::SrcIp { v4, v6 } => address(source, v4, v6),
            Field::DstIp { v4, v6 } => address(destination, v4, v6),
            Field::SrcPort => KeyValue::Number(transport.source_port()),
            Field::DstPort => KeyValue::Number(transport.destination_port()),
            Field::Protocol => KeyValue::Number(transport.protocol().into()),
            Field::TcpFlags => KeyValue::Number(transport.tcp_flags().into()),
            Field::Vlan => KeyValue::Number(transport.vlan()),
            Field::IpVersion => KeyValue::Number(transport.ip_version().into()),
        }
    }

    /// Order of two keys of either layout, column by column.
    pub fn compare(&self, left: (bool, &[u64]), right: (bool, &[u64])) -> std::cmp::Ordering {
        self.ordinals(left.0, left.1).cmp(self.ordinals(right.0, right.1))
    }

    /// Numbers of a wide key so that comparing them compares the columns in order.
    pub fn wide_order(&self, key: &Wide) -> Box<[u128]> {
        self.ordinals(true, key).collect()
    }

    /// A number of the first column so that comparing it compares that column.
    pub fn first_order(&self, wide: bool, words: &[u64]) -> u128 {
        self.ordinals(wide, words).next().unwrap_or_default()
    }

    /// Numbers in the order of the columns' values, a column each.
    fn ordinals<'a>(&'a self, wide: bool, words: &'a [u64]) -> impl Iterator<Item = u128> + 'a {
        (0..self.fields.len()).map(move |column| match self.value(column, wide, words) {
            KeyValue::Address(address) | KeyValue::Prefix(address, _) => address.ordinal(),
            KeyValue::Number(number) => number.into(),
        })
    }
}

/// Numbers of a key of either layout so that comparing them compares columns that stand in their natural order.
#[inline(always)]
pub fn natural_order(wide: bool, words: &[u64]) -> [u64; 5] {
    if wide {
        let (source, destination, transport) = key_parts(true, words);
        let (source, destination) = (source.ordinal(), destination.ordinal());
        let high = |ordinal: u128| (ordinal >> 64) as u64;
        [high(source), source as u64, high(destination), destination as u64, transport.0]
    } else {
        [0, words[0] >> 32, 0, words[0] & 0xffff_ffff, words[1]]
    }
}

#[inline(always)]
fn cut_v4(address: Address, bits: u8) -> u32 {
    address.0 as u32 & u32::MAX << (32 - u32::from(bits))
}

/// The bits of an IPv4 address from `used` to `upto`, as a number and its width in bits; `used` moves on.
fn next_bits(address: Address, used: &mut u8, upto: u8) -> (u128, u32) {
    if upto <= *used {
        return (0, 0);
    }
    let width = u32::from(upto - *used);
    let value = u64::from(address.0 as u32) >> (32 - upto) & ((1 << width) - 1);
    *used = upto;
    (value.into(), width)
}

#[inline(always)]
fn key_parts(wide: bool, words: &[u64]) -> (Address, Address, Transport) {
    match (wide, words) {
        (true, &[a, b, c, d, e, ..]) => wide_parts(&[a, b, c, d, e]),
        (false, &[a, b, ..]) => compact_parts(&[a, b]),
        _ => unreachable!("a row holds its whole key"),
    }
}

impl fmt::Debug for KeyFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.fields.iter().map(|field| field.column())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn names_and_prefixes_are_read() {
        assert_eq!(Field::parse("SrcIP"), Ok(Field::SrcIp { v4: 32, v6: 128 }));
        assert_eq!(Field::parse("SrcIP/24"), Ok(Field::SrcIp { v4: 24, v6: 128 }));
        assert_eq!(Field::parse("DstIP/64"), Ok(Field::DstIp { v4: 32, v6: 64 }));
        assert_eq!(Field::parse("DstIP/24/48"), Ok(Field::DstIp { v4: 24, v6: 48 }));
        for bad in ["SrcIP/0", "SrcIP/129", "SrcIP/24/0", "SrcIP/33/64", "SrcIP/1/2/3", "SrcIP/x", "SrcIP/"] {
            assert!(matches!(Field::parse(bad), Err(FieldError::Prefix(_))), "{bad}");
        }
        for bad in ["srcip", "", "Port", "SrcPort/8"] {
            assert!(matches!(Field::parse(bad), Err(FieldError::Unknown(_))), "{bad}");
        }
        assert_eq!(KeyFields::parse(&["SrcIP", "SrcIP"]), Err(FieldError::Twice("src_ip".into())));
        assert_eq!(KeyFields::parse::<&str>(&[]), Err(FieldError::Empty));
    }

    #[test]
    fn a_key_without_addresses_is_the_same_for_both_families() {
        let mask = KeyFields::parse(&["DstPort"]).expect("fields").mask();
        let transport = Transport::new(1, 443, 6, 0, 0, 0);
        let v4 = mask.key(address("192.0.2.1"), address("192.0.2.2"), transport);
        let v6 = mask.key(address("2001:db8::1"), address("2001:db8::2"), transport);
        assert_eq!(v4, v6);
    }

    #[test]
    fn a_mixed_pair_rolls_up_to_the_ipv4_key_of_its_ipv4_side() {
        let (v4, v6) = (address("::ffff:192.0.2.1"), address("2001:db8::1"));
        let pair = KeyFields::parse(&["SrcIP", "DstIP"]).expect("fields").mask();
        let source = KeyFields::parse(&["SrcIP/24"]).expect("fields").mask();
        let Key::Wide(wide) = pair.key(v4, v6, Transport::default()) else { panic!("one side is IPv6") };
        let direct = source.key(address("192.0.2.77"), address("192.0.2.2"), Transport::default());
        assert_eq!(source.coarsen_wide(&wide), direct);
    }

    fn any_fields() -> impl Strategy<Value = Vec<Field>> {
        let field = prop_oneof![
            (1u8..=32, 1u8..=128).prop_map(|(v4, v6)| Field::SrcIp { v4, v6 }),
            Just(Field::SrcIp { v4: 32, v6: 128 }),
            (1u8..=32, 1u8..=128).prop_map(|(v4, v6)| Field::DstIp { v4, v6 }),
            Just(Field::DstIp { v4: 32, v6: 128 }),
            Just(Field::SrcPort),
            Just(Field::DstPort),
            Just(Field::Protocol),
            Just(Field::Vlan),
            Just(Field::TcpFlags),
            Just(Field::IpVersion),
        ];
        proptest::collection::vec(field, 1..8)
    }

    fn any_address() -> impl Strategy<Value = Address> {
        prop_oneof![
            any::<u32>().prop_map(Address::v4),
            any::<u128>().prop_map(Address),
            (0u128..1 << 50).prop_map(Address),
        ]
    }

    proptest! {
        #[test]
        fn rolling_up_equals_masking_the_packet(
            fine in any_fields(), coarse in any_fields(), source in any_address(), destination in any_address(),
            transport in any::<u64>(),
        ) {
            let (Ok(fine), Ok(coarse)) = (KeyFields::new(fine), KeyFields::new(coarse)) else { return Ok(()) };
            let (fine, coarse) = (fine.mask(), coarse.mask());
            prop_assume!(fine.contains(coarse));
            let transport = Transport(transport);
            let rolled = match fine.key(source, destination, transport) {
                Key::Compact(key) => Key::Compact(coarse.coarsen_compact(&key)),
                Key::Wide(key) => coarse.coarsen_wide(&key),
            };
            prop_assert_eq!(rolled, coarse.key(source, destination, transport));
        }

        #[test]
        fn compact_order_agrees_with_the_columns(
            fields in any_fields(), left in any::<(u32, u32, u64)>(), right in any::<(u32, u32, u64)>(),
        ) {
            let Ok(fields) = KeyFields::new(fields) else { return Ok(()) };
            let key = |(source, destination, transport)| match fields.mask().key(
                Address::v4(source), Address::v4(destination), Transport(transport),
            ) {
                Key::Compact(key) => key,
                Key::Wide(_) => unreachable!("both are IPv4"),
            };
            let (left, right) = (key(left), key(right));
            let (wide_left, wide_right) = ((false, &left[..]), (false, &right[..]));
            prop_assert_eq!(
                fields.compact_order(&left).cmp(&fields.compact_order(&right)),
                fields.compare(wide_left, wide_right)
            );
        }

        #[test]
        fn natural_order_agrees_with_the_columns(
            fields in any_fields(), left in (any_address(), any_address(), any::<u64>()),
            right in (any_address(), any_address(), any::<u64>()), same_source in any::<bool>(),
        ) {
            let Ok(fields) = KeyFields::new(fields) else { return Ok(()) };
            let key = |(source, destination, transport)| match fields.mask().key(
                source, destination, Transport(transport),
            ) {
                Key::Compact(key) => (false, key.to_vec()),
                Key::Wide(key) => (true, key.to_vec()),
            };
            let right = if same_source { (left.0, right.1, right.2) } else { right };
            let ((left_wide, left), (right_wide, right)) = (key(left), key(right));
            if fields.in_natural_order() {
                prop_assert_eq!(
                    natural_order(left_wide, &left).cmp(&natural_order(right_wide, &right)),
                    fields.compare((left_wide, &left), (right_wide, &right))
                );
            }
        }
    }
}
