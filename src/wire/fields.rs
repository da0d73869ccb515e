//! Columns of the fields that a probe is told to send beside what every packet has: `Fields` of a batch.
//!
//! A column is checked against the number of packets whether its field is known or not, so that [`Asked`] meets no
//! surprise. A batch without columns costs nothing here. Which fields tasks ask for is the engine's knowledge: it gives
//! the plan's [`Extension`], and each batch is matched with it once.

use super::WireError;
use super::v1;
use bytes::{Buf, Bytes};
use dataflows::field::{Extension, Field, Kind, Lives, Place, WORDS};
use dataflows::layers::{Layers, MAX_TEXT, Text};
use dataflows::measure::extra_fields;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::collections::HashMap;

/// Columns that a batch may have: more than there are fields.
pub const MAX_COLUMNS: usize = 64;
/// Bytes of a field's name.
const MAX_NAME: usize = 64;
/// Bytes of the widest value.
const MAX_WIDTH: usize = 16;

/// The field of this name that ships, if there is one.
pub fn named(name: &str) -> Option<&'static Field> {
    extra_fields().find(|field| field.name == name)
}

/// Bytes of a field's value in a column; of a text, at most.
pub fn width(field: &Field) -> usize {
    match field.kind {
        Kind::Text => 2,
        _ => field.bits.div_ceil(8) as usize,
    }
}

/// A column of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    name: String,
    /// Bytes of each value.
    width: usize,
    values: Bytes,
    /// Where values are the numbers of texts: those. Each is UTF-8.
    texts: Vec<Bytes>,
}

/// The value of a packet in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, or what a number stands for.
    Number(u128),
    /// A text.
    Text(&'a str),
}

impl Column {
    /// The name of its field.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of the packet at this place of the batch; 0 behind its end.
    pub fn value(&self, at: usize) -> Value<'_> {
        let number = number_at(&self.values, self.width, at);
        match self.texts.get(number as usize) {
            Some(text) => Value::Text(std::str::from_utf8(text).unwrap_or_default()),
            None => Value::Number(number),
        }
    }

    /// Reads a column of a batch of so many packets.
    fn read(mut bytes: Bytes, packets: usize) -> Result<Self, WireError> {
        let (mut name, mut values, mut texts) = (String::new(), Bytes::new(), Vec::new());
        while bytes.has_remaining() {
            match next_field(&mut bytes)? {
                Some((1, found)) => {
                    let known = std::str::from_utf8(&found).ok().filter(|name| name.len() <= MAX_NAME);
                    known.unwrap_or_default().clone_into(&mut name);
                }
                Some((2, found)) => values = found,
                Some((3, text)) => {
                    let is_text = text.len() <= MAX_TEXT && std::str::from_utf8(&text).is_ok();
                    // More than packets is more than there can be.
                    if !is_text || texts.len() == packets {
                        return Err(WireError::Column { name, why: "has texts that cannot be" });
                    }
                    texts.push(text);
                }
                _ => {}
            }
        }
        if name.is_empty() {
            return Err(WireError::Missing("name of a field"));
        }
        let width = values.len().checked_div(packets).unwrap_or(0);
        let column = Self { name, width, values, texts };
        match column.contradiction(packets) {
            None => Ok(column),
            Some(why) => Err(WireError::Column { name: column.name, why }),
        }
    }

    /// What is wrong with it in a batch of so many packets.
    fn contradiction(&self, packets: usize) -> Option<&'static str> {
        if self.values.len() != packets * self.width || self.width > MAX_WIDTH {
            return Some("does not have a value for each packet");
        }
        if packets == 0 {
            return None;
        }
        if self.width == 0 {
            return Some("has no values");
        }
        let mut numbers = (0..packets).map(|at| number_at(&self.values, self.width, at));
        if !self.texts.is_empty() && (self.width > 2 || numbers.any(|text| text >= self.texts.len() as u128))
        {
            return Some("has numbers of texts that are not there");
        }
        let field = named(&self.name)?;
        if !self.is_of(field) {
            return Some("has values of another kind than the field");
        }
        let spare = field.bits % 8;
        let mut top = self.values.iter().skip(self.width - 1).step_by(self.width);
        if self.texts.is_empty() && spare > 0 && top.any(|byte| byte >> spare > 0) {
            return Some("has values that the field cannot have");
        }
        None
    }

    /// Whether its values are such as the field's are.
    fn is_of(&self, field: &Field) -> bool {
        match field.kind {
            Kind::Text => !self.texts.is_empty(),
            _ => self.texts.is_empty() && self.width == width(field),
        }
    }
}

/// Reads the columns of a batch of so many packets.
pub(super) fn read(mut bytes: Bytes, packets: usize) -> Result<Vec<Column>, WireError> {
    let mut columns: Vec<Column> = Vec::new();
    while bytes.has_remaining() {
        let Some((1, column)) = next_field(&mut bytes)? else { continue };
        if columns.len() == MAX_COLUMNS {
            return Err(WireError::Range { field: "columns", value: MAX_COLUMNS as i128 + 1 });
        }
        let column = Column::read(column, packets)?;
        if columns.iter().any(|other| other.name == column.name) {
            return Err(WireError::Column { name: column.name, why: "is there twice" });
        }
        columns.push(column);
    }
    Ok(columns)
}

/// The next field of a message: its tag and bytes; `None` for one that holds no bytes, which is skipped.
fn next_field(message: &mut Bytes) -> Result<Option<(u32, Bytes)>, WireError> {
    let (tag, wire_type) = decode_key(message)?;
    if wire_type != WireType::LengthDelimited {
        skip_field(wire_type, tag, message, DecodeContext::default())?;
        return Ok(None);
    }
    let length = decode_varint(message)?;
    match usize::try_from(length).ok().filter(|length| *length <= message.len()) {
        Some(length) => Ok(Some((tag, message.split_to(length)))),
        None => Err(WireError::Range { field: "length of a field", value: length.into() }),
    }
}

/// The value at a place of a column; 0 behind its end.
#[inline(always)]
fn number_at(values: &[u8], width: usize, at: usize) -> u128 {
    let value = values.get(at * width..).and_then(|values| values.get(..width)).unwrap_or_default();
    match *value {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        _ => {
            let mut all = [0; MAX_WIDTH];
            all.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
            u128::from_le_bytes(all)
        }
    }
}

/// Where a batch has the values of the fields that tasks ask for.
#[derive(Debug, Default)]
pub struct Asked<'a> {
    found: Vec<(Place, &'a Column, Vec<Text>)>,
    missing: Vec<&'static str>,
}

impl<'a> Asked<'a> {
    /// Finds the fields of an extension among the columns of a batch; among none where packets came without.
    pub fn new(columns: &'a [Column], extension: &Extension) -> Self {
        let mut asked = Self::default();
        for (field, place) in extension.fields() {
            match columns.iter().find(|column| column.name == field.name && column.is_of(field)) {
                Some(column) => {
                    let texts = column.texts.iter().map(|text| std::str::from_utf8(text).unwrap_or_default());
                    asked.found.push((place, column, texts.map(Text::new).collect()));
                }
                None if asked.missing.contains(&field.name) => {}
                None => asked.missing.push(field.name),
            }
        }
        asked
    }

    /// Names of the fields that the batch does not have.
    pub fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    /// The extension words of the packet at this place of the batch; 0 where a field is missing.
    #[inline]
    pub fn words(&self, at: usize) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for (place, column, texts) in &self.found {
            let number = number_at(&column.values, column.width, at);
            let value = match texts[..] {
                [] => number,
                _ => texts.get(number as usize).map_or(0, |text| text.0),
            };
            place.set(&mut words, value);
        }
        words
    }
}

/// Collects the columns of a batch from the frames of its packets.
#[derive(Debug, Default)]
pub(super) struct Columns(Vec<Collected>);

/// What is collected of a field.
#[derive(Debug)]
struct Collected {
    field: &'static Field,
    read: fn(&Layers<'_>) -> u128,
    values: Vec<u8>,
    /// Of a text: the number of each packet's text, and the texts.
    numbers: Vec<u16>,
    texts: Vec<Text>,
    known: HashMap<Text, u16>,
    last: (Text, u16),
    /// Bytes of the texts.
    bytes: usize,
}

impl Columns {
    /// Columns of these fields; what is no extra field is left out.
    pub(super) fn new(fields: &[&'static Field]) -> Self {
        let collected = fields.iter().filter_map(|field| match field.lives {
            Lives::Extra(read) => Some(Collected {
                field,
                read,
                values: Vec::new(),
                numbers: Vec::new(),
                texts: Vec::new(),
                known: HashMap::new(),
                last: (Text::default(), 0),
                bytes: 0,
            }),
            _ => None,
        });
        Self(collected.collect())
    }

    /// Appends the values of a packet.
    #[inline]
    pub(super) fn push(&mut self, layers: &Layers<'_>) {
        for column in &mut self.0 {
            let value = (column.read)(layers);
            match column.field.kind {
                Kind::Text => column.push_text(Text(value)),
                _ => column.values.extend_from_slice(&value.to_le_bytes()[..width(column.field)]),
            }
        }
    }

    /// Bytes of the texts collected.
    pub(super) fn text_bytes(&self) -> usize {
        self.0.iter().map(|column| column.bytes).sum()
    }

    /// Throws away what was collected.
    pub(super) fn clear(&mut self) {
        for column in &mut self.0 {
            column.values.clear();
            column.numbers.clear();
            column.texts.clear();
            column.known.clear();
            column.bytes = 0;
        }
    }

    /// The message of the columns, each of so many values; empty without columns.
    pub(super) fn message(&self, packets: usize) -> Vec<u8> {
        let column = |column: &Collected| {
            debug_assert_eq!(column.values.len() / width(column.field) + column.numbers.len(), packets);
            let values = match (column.field.kind, column.texts.len() > 256) {
                (Kind::Text, false) => column.numbers.iter().map(|number| *number as u8).collect(),
                (Kind::Text, true) => column.numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
                _ => column.values.clone(),
            };
            let texts = column.texts.iter().map(|text| text.text()).collect();
            v1::FieldColumn { name: column.field.name.into(), values: values.into(), texts }
        };
        v1::Fields { columns: self.0.iter().map(column).collect() }.encode_to_vec()
    }
}

impl Collected {
    fn push_text(&mut self, text: Text) {
        if self.texts.is_empty() || self.last.0 != text {
            // A batch has fewer packets than there are numbers.
            let next = self.texts.len() as u16;
            let number = *self.known.entry(text).or_insert(next);
            if number == next {
                self.texts.push(text);
                self.bytes += text.text().len();
            }
            self.last = (text, number);
        }
        self.numbers.push(self.last.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataflows::field::Plan;
    use proptest::prelude::*;

    fn message(columns: &[(&str, &[u8], &[&str])]) -> Bytes {
        let columns = columns.iter().map(|(name, values, texts)| v1::FieldColumn {
            name: (*name).into(),
            values: Bytes::copy_from_slice(values),
            texts: texts.iter().map(|text| (*text).into()).collect(),
        });
        v1::Fields { columns: columns.collect() }.encode_to_vec().into()
    }

    fn extension(names: &[&str]) -> Extension {
        let plan = Plan::default();
        for name in names {
            let field = named(name).expect("a field that ships");
            let placed = match name.ends_with("Bytes") {
                true => plan.place_for_measures(field),
                false => plan.place_in_keys(field),
            };
            placed.expect("room");
        }
        plan.extension()
    }

    /// Headers whose fields have these numbers in them.
    fn frame(number: u32) -> ([u8; 20], Layers<'static>) {
        let mut ip = [0; 20];
        (ip[0], ip[1], ip[8]) = (0x45, number as u8, (number >> 8) as u8);
        let layers = Layers {
            source_mac: u64::from(number) << 12,
            mpls_label: number & 0xf_ffff,
            inner_vlan: number as u16 & 0xfff,
            fragment: (number % 3) as u8,
            ip_length: number,
            transport_length: number,
            interface: Text::new(&format!("interface number {}", number % 700)),
            ..Layers::default()
        };
        (ip, layers)
    }

    fn visit(columns: &[Column], asked: &Asked<'_>, at: usize) {
        std::hint::black_box(asked.words(at));
        for column in columns {
            std::hint::black_box(column.value(at));
        }
    }

    static SENT: [&str; 9] =
        ["DSCP", "ECN", "TTL", "InnerVLAN", "MPLSLabel", "SrcMAC", "Interface", "Fragment", "PayloadBytes"];

    proptest! {
        #[test]
        fn what_is_read_from_frames_comes_back_from_their_columns(
            numbers in proptest::collection::vec(any::<u32>(), 0..900),
            asked in proptest::sample::subsequence(&SENT[..8], 0..3),
        ) {
            let asked: Vec<_> = asked.into_iter().chain(["PayloadBytes", "IPBytes"]).collect();
            let extension = extension(&asked);
            let fields: Vec<_> = SENT.iter().filter_map(|name| named(name)).collect();
            let mut columns = Columns::new(&fields);
            let mut expected = Vec::new();
            for number in &numbers {
                let (ip, layers) = frame(*number);
                let layers = Layers { ip: &ip, ..layers };
                columns.push(&layers);
                // The probe does not send them all.
                expected.push(extension.read(&Layers { ip_length: 0, ..layers }));
            }
            let message = Bytes::from(columns.message(numbers.len()));
            let read = read(message, numbers.len()).expect("our own columns");
            let asked = Asked::new(&read, &extension);
            let words: Vec<_> = (0..numbers.len()).map(|at| asked.words(at)).collect();
            prop_assert_eq!(words, expected);
            if !numbers.is_empty() {
                prop_assert_eq!(asked.missing(), ["IPBytes"]);
            }
            columns.clear();
            prop_assert_eq!(columns.text_bytes(), 0);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), packets in 0usize..50) {
            if let Ok(columns) = read(bytes.into(), packets) {
                let extension = extension(&["TTL", "Interface"]);
                let asked = Asked::new(&columns, &extension);
                (0..=packets).for_each(|at| visit(&columns, &asked, at));
            }
        }

        #[test]
        fn damaged_columns_do_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = message(&[("TTL", &[64, 1], &[]), ("Interface", &[0, 1], &["lo", "eth0"])]).to_vec();
            *at.get_mut(&mut bytes) = byte;
            if let Ok(columns) = read(bytes.into(), 2) {
                let extension = extension(&["TTL", "Interface"]);
                let asked = Asked::new(&columns, &extension);
                visit(&columns, &asked, 1);
            }
        }
    }

    #[test]
    fn a_field_that_is_not_known_is_skipped_and_one_that_is_not_there_is_empty() {
        let columns = read(message(&[("Flavour", &[1, 2, 3, 4, 5, 6], &[]), ("TTL", &[64, 1], &[])]), 2)
            .expect("columns");
        let extension = extension(&["TTL", "DSCP"]);
        let asked = Asked::new(&columns, &extension);
        assert_eq!((asked.words(0)[0], asked.words(1)[0]), (64, 1));
        assert_eq!(asked.missing(), ["DSCP"]);
        assert_eq!((columns[0].name(), columns[0].value(1)), ("Flavour", Value::Number(0x06_0504)));
        assert_eq!(columns[1].value(0), Value::Number(64));
    }

    #[test]
    fn columns_that_contradict_their_batch_are_refused() {
        let long = "x".repeat(MAX_TEXT + 1);
        let long_name = "x".repeat(MAX_NAME + 1);
        let many: Vec<String> = (0..=MAX_COLUMNS).map(|number| format!("field {number}")).collect();
        let many: Vec<(&str, &[u8], &[&str])> =
            many.iter().map(|name| (name.as_str(), &[1, 2][..], &[][..])).collect();
        read(message(&many[1..]), 2).expect("as many as there may be");
        type Column<'a> = (&'a str, &'a [u8], &'a [&'a str]);
        let refused: [&[Column<'_>]; 14] = [
            &[("TTL", &[64], &[])],
            &[("TTL", &[64, 1, 1], &[])],
            &[("TTL", &[64, 1, 1, 1], &[])],
            &[("TTL", &[], &[])],
            &[("TTL", &[0, 0], &["a"])],
            &[("TTL", &[64, 1], &[]), ("TTL", &[64, 1], &[])],
            &[("DSCP", &[64, 1], &[])],
            &[("Interface", &[0, 1], &[])],
            &[("Interface", &[0, 1], &["eth0"])],
            &[("Interface", &[0, 1], &["eth0", &long])],
            &[("Interface", &[0, 1], &["a", "b", "c"])],
            &[("", &[1, 2], &[])],
            &[(&long_name, &[1, 2], &[])],
            &many,
        ];
        for columns in refused {
            read(message(columns), 2).expect_err(&format!("{columns:?}"));
        }
        read(message(&[("TTL", &[1], &[])]), 0).expect_err("values of no packets");
    }
}
