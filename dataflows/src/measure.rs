//! The table of measures: the value columns of exact groups, an entry each.
//!
//! A measure is a fold over observations that is commutative and associative, so any split over workers and any order
//! give the same words. All groups have the four of [`DEFAULT`]; a task that names more has a word for each of them.

use crate::field::{FIELDS, FRAGMENT, Field, KEY_WORDS, Kind, Lives, NoRoom, Place, Plan, TTL};
use crate::layers::Layers;
use crate::packet::Packet;
use crate::rows::ValueKind;
use std::fmt;
use std::sync::Arc;

/// How two words of a column become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Merge {
    /// Their sum.
    #[default]
    Sum,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
    /// The bits of both.
    Or,
}

impl Merge {
    /// One word of two.
    #[inline(always)]
    pub fn of(self, left: u64, right: u64) -> u64 {
        match self {
            Self::Sum => left + right,
            Self::Min => left.min(right),
            Self::Max => left.max(right),
            Self::Or => left | right,
        }
    }
}

/// What one observation adds, besides its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Packets that were observed: 1 for a captured packet.
    pub packets: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// Time of the first of them, nanoseconds since the Unix epoch.
    pub first: u64,
    /// Time of the last of them.
    pub last: u64,
}

impl Weight {
    /// That of a captured packet.
    #[inline(always)]
    pub fn of(packet: &Packet) -> Self {
        Self { packets: 1, bytes: packet.length.into(), first: packet.time, last: packet.time }
    }

    /// Whether an observation may have it.
    pub fn check(self) -> Result<(), WrongWeight> {
        let Self { packets, bytes, first, last } = self;
        match () {
            () if packets == 0 => Err(WrongWeight::Nothing),
            () if packets > MAX_WEIGHT || bytes > MAX_WEIGHT => Err(WrongWeight::Large),
            () if last < first => Err(WrongWeight::Backwards),
            () => Ok(()),
        }
    }

    /// As the words of a group.
    #[inline(always)]
    pub fn words(self) -> [u64; 4] {
        [self.packets, self.bytes, self.first, self.last]
    }
}

/// Packets, and bytes, that one observation may stand for: of the largest, 2^24 can be summed up.
pub const MAX_WEIGHT: u64 = 1 << 40;

/// A weight that no observation can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongWeight {
    /// It stands for nothing.
    #[error("an observation is of one packet at least")]
    Nothing,
    /// Sums could overflow.
    #[error("an observation is of {MAX_WEIGHT} packets and bytes at most")]
    Large,
    /// It ends before it begins.
    #[error("the last packet is before the first")]
    Backwards,
}

/// What a measure sees of an observation.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The packet, or the fields that all packets of the observation share.
    pub packet: &'a Packet,
    /// What it adds.
    pub weight: Weight,
    /// The value of the field that the measure reads; 0 where it reads none.
    pub field: u128,
}

/// An entry of the table.
pub struct Measure {
    /// Its column, and how configuration spells it.
    pub name: &'static str,
    /// Type and unit of the column.
    pub kind: ValueKind,
    /// How words become one.
    pub merge: Merge,
    /// The extra field that it reads.
    pub reads: Option<&'static Field>,
    /// The word of one observation.
    pub observe: fn(&Observed<'_>) -> u64,
    /// What it says, in a line.
    pub about: &'static str,
}

impl PartialEq for Measure {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Measure {}

impl fmt::Debug for Measure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// The measures that every group has, in the order of its words.
pub const DEFAULT: [&Measure; 4] = [&PACKETS, &BYTES, &FIRST_SEEN, &LAST_SEEN];

/// Packets.
pub static PACKETS: Measure = Measure {
    name: "packets",
    kind: ValueKind::Count,
    merge: Merge::Sum,
    reads: None,
    observe: |seen| seen.weight.packets,
    about: "packets",
};
/// Bytes on the wire.
pub static BYTES: Measure = Measure {
    name: "bytes",
    kind: ValueKind::Bytes,
    merge: Merge::Sum,
    reads: None,
    observe: |seen| seen.weight.bytes,
    about: "bytes on the wire, link header included",
};
/// First time.
pub static FIRST_SEEN: Measure = Measure {
    name: "first_seen",
    kind: ValueKind::Time,
    merge: Merge::Min,
    reads: None,
    observe: |seen| seen.weight.first,
    about: "time of the first packet",
};
/// Last time.
pub static LAST_SEEN: Measure = Measure {
    name: "last_seen",
    kind: ValueKind::Time,
    merge: Merge::Max,
    reads: None,
    observe: |seen| seen.weight.last,
    about: "time of the last packet",
};

/// Bytes above the transport header; no key holds it.
static PAYLOAD_BYTES: Field = Field {
    name: "PayloadBytes",
    column: "payload_bytes",
    kind: Kind::Number,
    bits: 32,
    lives: Lives::Extra(|layers: &Layers<'_>| layers.payload_length().into()),
    about: "bytes above the transport header",
};
/// Bytes of the IP header and its payload; no key holds it.
static IP_BYTES: Field = Field {
    name: "IPBytes",
    column: "ip_bytes",
    kind: Kind::Number,
    bits: 32,
    lives: Lives::Extra(|layers: &Layers<'_>| layers.ip_length.into()),
    about: "bytes of the IP header and its payload",
};

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;
const RST: u8 = 4;

/// The packets of an observation whose flags of these are just those.
#[inline(always)]
fn flagged(seen: &Observed<'_>, looked_at: u8, set: u8) -> u64 {
    if seen.packet.transport.tcp_flags() & looked_at == set { seen.weight.packets } else { 0 }
}

/// Bytes a packet of the observation.
fn length(seen: &Observed<'_>) -> u64 {
    seen.weight.bytes / seen.weight.packets.max(1)
}

const fn count(name: &'static str, observe: fn(&Observed<'_>) -> u64, about: &'static str) -> Measure {
    Measure { name, kind: ValueKind::Count, merge: Merge::Sum, reads: None, observe, about }
}

/// The measures that ship: to add one, add its entry.
pub static MEASURES: [&Measure; 16] = [
    &PACKETS,
    &BYTES,
    &FIRST_SEEN,
    &LAST_SEEN,
    &count("syn", |seen| flagged(seen, SYN | ACK, SYN), "packets with SYN and without ACK"),
    &count("syn_ack", |seen| flagged(seen, SYN | ACK, SYN | ACK), "packets with SYN and ACK"),
    &count("fin", |seen| flagged(seen, FIN, FIN), "packets with FIN"),
    &count("rst", |seen| flagged(seen, RST, RST), "packets with RST"),
    &Measure {
        name: "payload_bytes",
        kind: ValueKind::Bytes,
        merge: Merge::Sum,
        reads: Some(&PAYLOAD_BYTES),
        observe: |seen| seen.field as u64,
        about: "bytes above the transport header, by the IP header's length",
    },
    &Measure {
        name: "ip_bytes",
        kind: ValueKind::Bytes,
        merge: Merge::Sum,
        reads: Some(&IP_BYTES),
        observe: |seen| seen.field as u64,
        about: "bytes of IP header and payload, by the IP header's length",
    },
    &Measure {
        name: "min_length",
        kind: ValueKind::Bytes,
        merge: Merge::Min,
        reads: None,
        observe: length,
        about: "length on the wire of the shortest packet",
    },
    &Measure {
        name: "max_length",
        kind: ValueKind::Bytes,
        merge: Merge::Max,
        reads: None,
        observe: length,
        about: "length on the wire of the longest packet",
    },
    &Measure {
        name: "ttl_min",
        kind: ValueKind::Number,
        merge: Merge::Min,
        reads: Some(&TTL),
        observe: |seen| seen.field as u64,
        about: "least time to live or hop limit",
    },
    &Measure {
        name: "ttl_max",
        kind: ValueKind::Number,
        merge: Merge::Max,
        reads: Some(&TTL),
        observe: |seen| seen.field as u64,
        about: "largest time to live or hop limit",
    },
    &Measure {
        name: "fragments",
        kind: ValueKind::Count,
        merge: Merge::Sum,
        reads: Some(&FRAGMENT),
        observe: |seen| if seen.field > 0 { seen.weight.packets } else { 0 },
        about: "packets that are fragments, first or later",
    },
    &Measure {
        name: "tcp_flags_or",
        kind: ValueKind::Number,
        merge: Merge::Or,
        reads: None,
        observe: |seen| seen.packet.transport.tcp_flags().into(),
        about: "all TCP flags that were set in any packet, as a number",
    },
];

/// The extra fields that ship: those that keys can hold, then those that only measures read.
pub fn extra_fields() -> impl Iterator<Item = &'static Field> {
    let keys = FIELDS.iter().copied().filter(|field| field.is_extra());
    let read = MEASURES.iter().enumerate().filter_map(|(at, measure)| {
        let is_new = |field: &&Field| {
            !FIELDS.contains(field) && MEASURES[..at].iter().all(|other| other.reads != Some(*field))
        };
        measure.reads.filter(is_new)
    });
    keys.chain(read)
}

/// Measures that a task may have beside the four that every group has.
pub const MOST: usize = 12;

/// How the words behind the first four of a group merge.
pub type Merges = [Merge; MOST];

/// The measures of a set of groups: the four of [`DEFAULT`], then those that were asked for beside them.
#[derive(Clone, Debug)]
pub struct Measures {
    more: Arc<[(&'static Measure, Option<Place>)]>,
    merges: Merges,
    /// Whether all of the first four are shown too, so that they can be read back from what was written.
    has_default: bool,
}

impl Default for Measures {
    fn default() -> Self {
        Self { more: Arc::default(), merges: Merges::default(), has_default: true }
    }
}

impl PartialEq for Measures {
    fn eq(&self, other: &Self) -> bool {
        self.has_default == other.has_default && self.names().eq(other.names())
    }
}

impl Eq for Measures {}

/// Measures that cannot be had together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// Not a measure at all.
    #[error("unknown measure `{name}`; one of {}", known.join(", "))]
    Unknown {
        /// What it says.
        name: String,
        /// The names of all measures.
        known: Vec<&'static str>,
    },
    /// Two that would make the same column.
    #[error("`{0}` is named twice")]
    Twice(&'static str),
    /// None at all.
    #[error("a task needs at least one measure")]
    Empty,
    /// More than a group has room for.
    #[error("too many measures: at most {MOST} beside packets, bytes, first_seen and last_seen")]
    Many,
    /// Too many fields are read.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

impl Measures {
    /// Groups with these measures, in any order.
    pub fn new(shown: &[&'static Measure], plan: &Plan) -> Result<Self, MeasureError> {
        let more = shown.iter().copied().filter(|measure| !DEFAULT.contains(measure));
        let place = |measure: &'static Measure| {
            let place =
                measure.reads.filter(|field| field.is_extra()).map(|field| plan.place_for_measures(field));
            Ok((measure, place.transpose()?))
        };
        let mut more = more.map(place).collect::<Result<Vec<_>, MeasureError>>()?;
        more.sort_by_key(|(measure, _)| measure.name);
        if more.len() > MOST {
            return Err(MeasureError::Many);
        }
        let mut merges = Merges::default();
        merges.iter_mut().zip(&more).for_each(|(merge, (measure, _))| *merge = measure.merge);
        let has_default = DEFAULT.iter().all(|measure| shown.contains(measure));
        Ok(Self { more: more.into(), merges, has_default })
    }

    /// Measures behind the first four.
    pub fn more(&self) -> usize {
        self.more.len()
    }

    /// The columns of the words behind the first four.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.more.iter().map(|(measure, _)| measure.name)
    }

    /// The word of a measure in a group's values.
    pub fn word_of(&self, name: &str) -> Option<usize> {
        let default = DEFAULT.iter().position(|measure| measure.name == name);
        default.or_else(|| Some(DEFAULT.len() + self.names().position(|known| known == name)?))
    }

    /// Whether groups with these measures have all that those of `other` have, also when they are read back.
    pub fn contain(&self, other: &Self) -> bool {
        self.has_default && other.names().all(|name| self.word_of(name).is_some())
    }

    /// How the words behind the first four merge.
    pub fn merges(&self) -> &Merges {
        &self.merges
    }

    /// Writes the words behind the first four of an observation with these extension words for measures.
    #[inline]
    pub fn observe(&self, packet: &Packet, weight: Weight, extra: &[u64], into: &mut [u64]) {
        for ((measure, place), word) in self.more.iter().zip(into) {
            let field = match (measure.reads.map(|field| field.lives), place) {
                (_, Some(place)) => Place { word: place.word - KEY_WORDS, ..*place }.get(extra),
                (Some(Lives::Transport(shift)), _) => (packet.transport.0 >> shift).into(),
                _ => 0,
            };
            *word = (measure.observe)(&Observed { packet, weight, field });
        }
    }
}

/// Reads names of measures as configuration spells them.
pub fn parse<S: AsRef<str>>(
    names: &[S],
    known: &[&'static Measure],
) -> Result<Vec<&'static Measure>, MeasureError> {
    let mut measures: Vec<&'static Measure> = Vec::new();
    for name in names {
        let found = known.iter().copied().find(|measure| measure.name == name.as_ref());
        let Some(measure) = found else {
            let known = known.iter().map(|measure| measure.name).collect();
            return Err(MeasureError::Unknown { name: name.as_ref().into(), known });
        };
        if measures.contains(&measure) {
            return Err(MeasureError::Twice(measure.name));
        }
        measures.push(measure);
    }
    if measures.is_empty() { Err(MeasureError::Empty) } else { Ok(measures) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Transport;

    #[test]
    fn every_measure_has_a_name_of_its_own_and_a_field_of_the_frame_or_none() {
        for (at, measure) in MEASURES.iter().enumerate() {
            assert!(MEASURES[..at].iter().all(|other| other.name != measure.name));
            assert!(!measure.about.is_empty());
        }
        assert_eq!(MEASURES.len() - DEFAULT.len(), MOST);
    }

    #[test]
    fn extra_fields_are_those_of_keys_and_of_measures_each_once() {
        let names: Vec<_> = extra_fields().map(|field| field.name).collect();
        assert!(names.ends_with(&["Interface", "Fragment", "PayloadBytes", "IPBytes"]), "{names:?}");
        assert_eq!(names.len(), FIELDS.iter().filter(|field| field.is_extra()).count() + 2);
    }

    #[test]
    fn observations_are_measured_by_their_weight() {
        let names = [
            "syn",
            "rst",
            "packets",
            "max_length",
            "bytes",
            "first_seen",
            "last_seen",
            "tcp_flags_or",
            "fragments",
        ];
        let shown = parse(&names, &MEASURES).expect("measures");
        let plan = Plan::default();
        let measures = Measures::new(&shown, &plan).expect("room");
        let packet = Packet { transport: Transport::new(1, 2, 6, SYN, 0, 4), ..Packet::default() };
        let weight = Weight { packets: 3, bytes: 180, first: 5, last: 9 };
        let mut words = [0; MOST];
        let place = plan.place_for_measures(&FRAGMENT).expect("room");
        let mut extra = [0; crate::field::WORDS];
        place.set(&mut extra, 2);
        measures.observe(&packet, weight, &extra[KEY_WORDS..], &mut words);
        let of = |name| words[measures.word_of(name).expect("known") - DEFAULT.len()];
        assert_eq!(
            ["syn", "rst", "max_length", "tcp_flags_or", "fragments"].map(of),
            [3, 0, 60, SYN.into(), 3]
        );
        assert_eq!(measures.word_of("packets"), Some(0));
        assert!(measures.contain(&Measures::default()) && !Measures::default().contain(&measures));
    }

    #[test]
    fn what_stands_for_nothing_or_for_too_much_or_ends_before_it_begins_is_no_observation() {
        let weight = Weight { packets: 1, bytes: 0, first: 5, last: 5 };
        assert_eq!(weight.check(), Ok(()));
        assert_eq!(Weight { packets: 0, ..weight }.check(), Err(WrongWeight::Nothing));
        assert_eq!(Weight { last: 4, ..weight }.check(), Err(WrongWeight::Backwards));
        for (packets, bytes) in [(MAX_WEIGHT + 1, 1), (1, u64::MAX)] {
            assert_eq!(Weight { packets, bytes, ..weight }.check(), Err(WrongWeight::Large));
        }
    }

    #[test]
    fn names_that_are_no_measures_are_told_with_those_that_are() {
        let refused = parse(&["sin"], &MEASURES).expect_err("no measure").to_string();
        assert!(refused.starts_with("unknown measure `sin`; one of packets, bytes"), "{refused}");
        assert_eq!(parse(&["syn", "syn"], &MEASURES), Err(MeasureError::Twice("syn")));
        assert_eq!(parse::<&str>(&[], &MEASURES), Err(MeasureError::Empty));
    }
}
