//! The table of fields: all that a key can be made of, an entry each.
//!
//! Everything else is derived from an entry: how configuration spells it, its column, where its bits lie in a key, how
//! cells are printed, read and ordered. *Base* fields lie in the two or five words that every packet has. *Extra* fields
//! are read from [`Layers`] where a task asks for them, into extension words whose places a [`Plan`] gives out.

use crate::layers::{Layers, Text};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Extension words that keys can hold.
pub const KEY_WORDS: usize = 4;
/// Extension words of a packet: those of keys, then those that only measures read.
pub const WORDS: usize = KEY_WORDS + 2;

/// What a field's cells are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An address, or a prefix of one.
    Address,
    /// A number.
    Number,
    /// A link-layer address of 48 bits, `aa:bb:cc:dd:ee:ff`.
    Mac,
    /// A short text, see [`Text`].
    Text,
}

/// Where a field lies.
#[derive(Clone, Copy)]
pub enum Lives {
    /// In the address of a packet's source.
    Source,
    /// In the address of its destination.
    Destination,
    /// In [`crate::packet::Transport`], above so many bits.
    Transport(u32),
    /// In an extension word, read so from the frame.
    Extra(Read),
}

/// An entry of the table.
pub struct Field {
    /// As configuration spells it.
    pub name: &'static str,
    /// Its column in every table.
    pub column: &'static str,
    /// What its cells are.
    pub kind: Kind,
    /// Its width; of an address, that of IPv6.
    pub bits: u32,
    /// Where it lies.
    pub lives: Lives,
    /// Unit, range and where it is from, in a line.
    pub about: &'static str,
}

impl Field {
    /// Whether it is read from the frame only where a task asks for it.
    pub fn is_extra(&self) -> bool {
        matches!(self.lives, Lives::Extra(_))
    }

    /// The largest value of a number.
    pub fn most(&self) -> u64 {
        u64::MAX >> (64 - self.bits.clamp(1, 64))
    }
}

/// An entry is what it is called.
impl PartialEq for Field {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Field {}

impl std::hash::Hash for Field {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

const fn base(
    (name, column): (&'static str, &'static str),
    kind: Kind,
    bits: u32,
    lives: Lives,
    about: &'static str,
) -> Field {
    Field { name, column, kind, bits, lives, about }
}

const fn extra(
    (name, column): (&'static str, &'static str),
    kind: Kind,
    bits: u32,
    read: Read,
    about: &'static str,
) -> Field {
    Field { name, column, kind, bits, lives: Lives::Extra(read), about }
}

/// Source address.
pub static SRC_IP: Field =
    base(("SrcIP", "src_ip"), Kind::Address, 128, Lives::Source, "source address of the outermost IP header");
/// Destination address.
pub static DST_IP: Field = base(
    ("DstIP", "dst_ip"),
    Kind::Address,
    128,
    Lives::Destination,
    "destination address of the same header",
);
/// Source port.
pub static SRC_PORT: Field = base(
    ("SrcPort", "src_port"),
    Kind::Number,
    16,
    Lives::Transport(48),
    "source port of TCP, UDP, UDP-Lite, SCTP, DCCP; else 0",
);
/// Destination port.
pub static DST_PORT: Field = base(
    ("DstPort", "dst_port"),
    Kind::Number,
    16,
    Lives::Transport(32),
    "destination port of the same protocols; else 0",
);
/// IP protocol number.
pub static PROTOCOL: Field = base(
    ("Protocol", "protocol"),
    Kind::Number,
    8,
    Lives::Transport(24),
    "IP protocol number, of IPv6 the one behind the extension headers",
);
/// TCP flags.
pub static TCP_FLAGS: Field = base(
    ("TCPFlags", "tcp_flags"),
    Kind::Number,
    8,
    Lives::Transport(16),
    "TCP flags CWR to FIN as a number (SYN 2, SYN and ACK 18); else 0",
);
/// Outermost VLAN identifier.
pub static VLAN: Field = base(
    ("VLAN", "vlan"),
    Kind::Number,
    12,
    Lives::Transport(4),
    "identifier of the first VLAN tag; 0 without",
);
/// IP version.
pub static IP_VERSION: Field = base(
    ("IPVersion", "ip_version"),
    Kind::Number,
    4,
    Lives::Transport(0),
    "4 or 6, of the outermost IP header",
);
/// Time to live, or hop limit.
pub static TTL: Field = extra(
    ("TTL", "ttl"),
    Kind::Number,
    8,
    |layers| layers.ttl().into(),
    "time to live of IPv4, hop limit of IPv6",
);
/// The interface that captured a packet.
pub static INTERFACE: Field = extra(
    ("Interface", "interface"),
    Kind::Text,
    128,
    |layers| layers.interface.0,
    "name of the interface that captured the packet, where the capture has none its number; else empty",
);
/// Whether a packet is a fragment.
pub static FRAGMENT: Field = extra(
    ("Fragment", "fragment"),
    Kind::Number,
    2,
    |layers| layers.fragment.into(),
    "0 a whole packet, 1 a first fragment, 2 a later one",
);

/// The fields that ship: to add one, add its entry.
pub static FIELDS: [&Field; 19] = [
    &SRC_IP,
    &DST_IP,
    &SRC_PORT,
    &DST_PORT,
    &PROTOCOL,
    &TCP_FLAGS,
    &VLAN,
    &IP_VERSION,
    &extra(
        ("DSCP", "dscp"),
        Kind::Number,
        6,
        |layers| (layers.traffic_class() >> 2).into(),
        "differentiated services code point, 0 to 63",
    ),
    &extra(
        ("ECN", "ecn"),
        Kind::Number,
        2,
        |layers| (layers.traffic_class() & 3).into(),
        "explicit congestion notification, 0 to 3",
    ),
    &TTL,
    &extra(
        ("ICMPType", "icmp_type"),
        Kind::Number,
        8,
        |layers| layers.icmp()[0].into(),
        "type of ICMP or ICMPv6; else 0",
    ),
    &extra(
        ("ICMPCode", "icmp_code"),
        Kind::Number,
        8,
        |layers| layers.icmp()[1].into(),
        "code of ICMP or ICMPv6; else 0",
    ),
    &extra(
        ("InnerVLAN", "inner_vlan"),
        Kind::Number,
        12,
        |layers| layers.inner_vlan.into(),
        "identifier of the second VLAN tag; 0 without",
    ),
    &extra(
        ("MPLSLabel", "mpls_label"),
        Kind::Number,
        20,
        |layers| layers.mpls_label.into(),
        "label of the outermost MPLS header; 0 without",
    ),
    &extra(
        ("SrcMAC", "src_mac"),
        Kind::Mac,
        48,
        |layers| layers.source_mac.into(),
        "source address of the link header; zeros without",
    ),
    &extra(
        ("DstMAC", "dst_mac"),
        Kind::Mac,
        48,
        |layers| layers.destination_mac.into(),
        "destination address of the link header; zeros without",
    ),
    &INTERFACE,
    &FRAGMENT,
];

/// Where an extra field lies in a packet's extension words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The word; of a field of more than 64 bits, which takes whole words, the first.
    pub word: usize,
    /// Bits below it.
    pub shift: u32,
    /// Its width.
    pub bits: u32,
}

impl Place {
    /// The value in these words; 0 where there is no such word.
    #[inline(always)]
    pub fn get(self, words: &[u64]) -> u128 {
        let word = |at: usize| words.get(at).copied().unwrap_or(0);
        if self.bits > 64 {
            u128::from(word(self.word)) << 64 | u128::from(word(self.word + 1))
        } else {
            (word(self.word) >> self.shift & u64::MAX >> (64 - self.bits)).into()
        }
    }

    /// Adds the value to words where it is still 0.
    #[inline(always)]
    pub fn set(self, words: &mut [u64], value: u128) {
        if self.bits > 64 {
            words[self.word] |= (value >> 64) as u64;
            words[self.word + 1] |= value as u64;
        } else {
            words[self.word] |= (value as u64 & u64::MAX >> (64 - self.bits)) << self.shift;
        }
    }

    /// The bits of it.
    pub fn mask(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        self.set(&mut words, u128::MAX);
        words
    }
}

/// Which extra fields the tasks of a run ask for, and where each lies: places are given out as they are asked for, so the
/// same configuration gives the same places in every process.
#[derive(Clone, Debug, Default)]
pub struct Plan(Arc<Mutex<Vec<(&'static Field, Place)>>>);

/// Keys would have too many bits of extra fields.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for `{0}`: the extra fields of all tasks together have room for {bits} bits, a text takes 128 of them; leave \
     some out", bits = 64 * KEY_WORDS
)]
pub struct NoRoom(pub &'static str);

impl Plan {
    /// The place of a field in keys.
    pub fn place_in_keys(&self, field: &'static Field) -> Result<Place, NoRoom> {
        self.place(field, 0..KEY_WORDS)
    }

    /// The place of a field that a measure reads.
    pub fn place(&self, field: &'static Field, words: std::ops::Range<usize>) -> Result<Place, NoRoom> {
        let mut placed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = placed.iter().find(|(known, place)| *known == field && words.contains(&place.word));
        if let Some((_, place)) = known {
            return Ok(*place);
        }
        let mut used = [0u64; WORDS];
        for (_, place) in placed.iter() {
            used.iter_mut().zip(place.mask()).for_each(|(used, mask)| *used |= mask);
        }
        let needed = field.bits.div_ceil(64) as usize;
        let free = |word: usize| {
            // Fields are packed from below; what is above the highest used bit is free.
            if field.bits > 64 {
                let whole = words.contains(&(word + needed - 1))
                    && used[word..][..needed].iter().all(|used| *used == 0);
                return whole.then_some(0);
            }
            let shift = 64 - used[word].leading_zeros();
            (shift + field.bits <= 64).then_some(shift)
        };
        let found = words.clone().find_map(|word| Some((word, free(word)?)));
        let (word, shift) = found.ok_or(NoRoom(field.name))?;
        let place = Place { word, shift, bits: field.bits };
        placed.push((field, place));
        Ok(place)
    }

    /// The place of a field that a measure reads, and no key holds.
    pub fn place_for_measures(&self, field: &'static Field) -> Result<Place, NoRoom> {
        self.place(field, KEY_WORDS..WORDS)
    }

    /// What is to be read of each frame.
    pub fn extension(&self) -> Extension {
        let placed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = placed.iter().filter_map(|(field, place)| match field.lives {
            Lives::Extra(read) => Some((*field, read, *place)),
            _ => None,
        });
        let fields: Vec<_> = read.collect();
        let ends = fields.iter().map(|(_, _, place)| place.word + place.bits.div_ceil(64) as usize);
        let end =
            |least: usize, most: usize| ends.clone().filter(|end| (least + 1..=most).contains(end)).max();
        let used = (end(0, KEY_WORDS).unwrap_or(0), end(KEY_WORDS, WORDS).map_or(0, |end| end - KEY_WORDS));
        Extension { fields, used }
    }
}

/// How an extra field is read from a frame.
pub type Read = fn(&Layers<'_>) -> u128;

/// The extra fields that are read of each frame: none in the shipped configuration.
#[derive(Clone, Debug, Default)]
pub struct Extension {
    fields: Vec<(&'static Field, Read, Place)>,
    /// Words that keys use, and words that measures use.
    used: (usize, usize),
}

impl Extension {
    /// Whether nothing is read.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The extension words of a frame.
    #[inline]
    pub fn read(&self, layers: &Layers<'_>) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for (_, read, place) in &self.fields {
            place.set(&mut words, read(layers));
        }
        words
    }

    /// How many of the words that keys may have are used, and how many of those that measures may.
    pub fn used(&self) -> (usize, usize) {
        self.used
    }

    /// Adds the words of a packet that are used.
    #[inline(always)]
    pub fn push(&self, words: &[u64; WORDS], into: &mut Vec<u64>) {
        let (keys, measures) = self.used;
        into.extend_from_slice(&words[..keys]);
        into.extend_from_slice(&words[KEY_WORDS..][..measures]);
    }

    /// Whether this field is read.
    pub fn reads(&self, field: &Field) -> bool {
        self.fields.iter().any(|(read, ..)| *read == field)
    }

    /// The fields with their places, as they were asked for; one that keys and measures ask for is there twice.
    pub fn fields(&self) -> impl Iterator<Item = (&'static Field, Place)> + '_ {
        self.fields.iter().map(|(field, _, place)| (*field, *place))
    }
}

/// A link-layer address as its cells tell it.
pub fn mac(number: u64) -> String {
    mac_text(number).iter().map(|byte| char::from(*byte)).collect()
}

/// The same in ASCII.
pub fn mac_text(number: u64) -> [u8; 17] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let [_, _, bytes @ ..] = number.to_be_bytes();
    let mut text = [b':'; 17];
    for (byte, pair) in bytes.into_iter().zip(text.chunks_mut(3)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

/// The number of a link-layer address; `None` where it is none.
pub fn parse_mac(text: &str) -> Option<u64> {
    let mut number = 0;
    let mut parts = text.split([':', '-']);
    for _ in 0..6 {
        let part = parts.next().filter(|part| matches!(part.len(), 1 | 2))?;
        number = number << 8 | u64::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(number)
}

/// The number that a cell of an extra field stands for; `None` where the field has no such value.
pub fn parse_extra(field: &Field, cell: &str) -> Option<u128> {
    match field.kind {
        Kind::Mac => parse_mac(cell).map(u128::from),
        Kind::Text => Some(Text::new(cell).0),
        Kind::Number | Kind::Address => {
            cell.parse::<u64>().ok().filter(|n| *n <= field.most()).map(u128::from)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> &'static Field {
        FIELDS.iter().find(|field| field.name == name).expect("a field")
    }

    #[test]
    fn names_and_columns_are_each_others_only() {
        for (at, field) in FIELDS.iter().enumerate() {
            assert!(
                FIELDS[..at].iter().all(|other| other.name != field.name && other.column != field.column)
            );
            assert!(!field.about.is_empty() && (1..=128).contains(&field.bits));
        }
    }

    #[test]
    fn places_do_not_overlap_and_are_given_once() {
        let plan = Plan::default();
        let names = ["DSCP", "SrcMAC", "TTL", "MPLSLabel", "Interface", "ICMPType", "ICMPCode", "DSCP"];
        let places: Vec<Place> =
            names.iter().map(|name| plan.place_in_keys(named(name)).expect("room")).collect();
        assert_eq!(places[0], places[7]);
        let mut all = [0u64; WORDS];
        for place in &places[..7] {
            let overlaps = all.iter().zip(place.mask()).any(|(all, mask)| all & mask > 0);
            assert!(!overlaps, "{places:?}");
            all.iter_mut().zip(place.mask()).for_each(|(all, mask)| *all |= mask);
        }
        assert_eq!(plan.place_in_keys(named("DstMAC")), Err(NoRoom("DstMAC")));
        let measured = plan.place_for_measures(&TTL).expect("room");
        assert!(measured.word >= KEY_WORDS, "a measure reads it from words of its own: {measured:?}");
    }

    #[test]
    fn values_come_back_from_their_places() {
        let plan = Plan::default();
        for name in ["ECN", "SrcMAC", "Interface"] {
            let place = plan.place_in_keys(named(name)).expect("room");
            let value = u128::MAX >> (128 - place.bits) ^ 2;
            let mut words = [0; WORDS];
            place.set(&mut words, value);
            assert_eq!(place.get(&words), value, "{name}");
        }
    }

    #[test]
    fn link_layer_addresses_are_read_as_they_are_told() {
        assert_eq!(mac(0x0a0b_0c0d_0e0f), "0a:0b:0c:0d:0e:0f");
        assert_eq!(parse_mac("0a:0b:0c:0d:0e:0f"), Some(0x0a0b_0c0d_0e0f));
        assert_eq!(parse_mac("A-b-c-d-e-f"), Some(0x0a0b_0c0d_0e0f));
        for bad in ["", "0a:0b:0c:0d:0e", "0a:0b:0c:0d:0e:0f:00", "0a:0b:0c:0d:0e:zz", "0a:0b:0c:0d:0e:000"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
