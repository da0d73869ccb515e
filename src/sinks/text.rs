//! Rows as text: numbers, addresses (RFC 5952) and times (RFC 3339), appended to a buffer.
//!
//! A row is put together in a line of fixed size and moved on to the buffer at once. What writes a value takes the
//! place where it begins and returns the place where it ends. It copies a fixed number of bytes, and what reaches over
//! the end is overwritten by the next value. Digits are made several at a time, a byte each of a word whose lowest byte
//! is the first digit.

use dataflows::field::{Kind, Lives, mac_text};
use dataflows::key::KeyValue;
use dataflows::packet::{Address, Transport};
use dataflows::rows::{Row, Schema, ValueKind};
use jiff::Timestamp;

/// "0." to "255.", and how many of the four bytes count.
const OCTETS: [([u8; 4], u8); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut number = 0;
    while number < 256 {
        let (h, t, o) =
            (b'0' + (number / 100) as u8, b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8);
        octets[number] = match number {
            0..10 => ([o, b'.', 0, 0], 2),
            10..100 => ([t, o, b'.', 0], 3),
            _ => ([h, t, o, b'.'], 4),
        };
        number += 1;
    }
    octets
};

/// Groups of an IPv6 address.
const GROUPS: u8 = 8;

/// The groups that `::` stands for, as the first and the one after the last, by the set of groups that are zero (bit 0
/// is the first group): the longest run of at least two, the first of several (RFC 5952, 4.2). Both are 8 where there
/// is none.
const ZEROS: [(u8, u8); 256] = {
    let mut runs = [(GROUPS, GROUPS); 256];
    let mut set = 0_usize;
    while set < 256 {
        let (mut start, mut longest) = (0, 1);
        while start < GROUPS {
            let length = (set >> start).trailing_ones() as u8;
            if length > longest {
                longest = length;
                runs[set] = (start, start + length);
            }
            start += 1;
        }
        set += 1;
    }
    runs
};

const NANOS_A_SECOND: u64 = 1_000_000_000;
const SECONDS_A_DAY: u64 = 86_400;
/// The least number of nine digits.
const NINE_DIGITS: u64 = 100_000_000;

/// Longest cell: a member of an object, with room for copies of fixed length that overhang.
const MOST_CELL: usize = 96;
/// Longest name of a column that is put into the line.
const MOST_NAME: usize = 16;
/// Bytes of a line before it is moved on to the buffer.
const MOST_LINE: usize = 1024;

type Line = [u8; MOST_LINE];

/// Writes values as text; remembers the last day's date.
pub struct Text {
    /// The day's first second since the Unix epoch.
    midnight: u64,
    /// `YYYY-MM-DDT`, and room for a copy of fixed length.
    date: [u8; 16],
    line: Line,
}

/// A text as a cell of RFC 4180.
fn csv_text(out: &mut Vec<u8>, text: &str) {
    if text.contains([',', '"', '\r', '\n']) {
        out.push(b'"');
        out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

/// A text as JSON has it.
fn json_text(out: &mut Vec<u8>, text: &str) {
    // Writing into memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

impl Default for Text {
    fn default() -> Self {
        Self { midnight: 0, date: *b"1970-01-01T00:00", line: [0; MOST_LINE] }
    }
}

impl Text {
    /// Appends a row's cells with `separator` between them, and no end of line.
    #[inline]
    pub fn row(&mut self, out: &mut Vec<u8>, schema: &Schema, row: &Row<'_>, separator: u8) {
        let mut at = 0;
        for (number, column) in schema.key.columns().iter().enumerate() {
            if column.field.kind == Kind::Text {
                at = self.text_cell(out, at, (schema, row, number), csv_text);
            }
            let end = self.key_of(at, schema, row, number);
            put(&mut self.line, end, [separator]);
            at = self.make_room(out, end + 1);
        }
        for (column, word) in schema.values.iter().zip(row.values()) {
            let end = self.value(at, column.kind, *word);
            put(&mut self.line, end, [separator]);
            at = self.make_room(out, end + 1);
        }
        out.extend_from_slice(&self.line[..at]);
        out.pop();
    }

    /// Appends a row's cells as the members of a JSON object, without its braces: addresses and times as text.
    #[inline]
    pub fn members(&mut self, out: &mut Vec<u8>, schema: &Schema, row: &Row<'_>) {
        let mut at = 0;
        for (number, column) in schema.key.columns().iter().enumerate() {
            let quoted = matches!(column.field.kind, Kind::Address | Kind::Mac);
            at = self.name(out, at, column.name(), quoted);
            if column.field.kind == Kind::Text {
                at = self.text_cell(out, at, (schema, row, number), json_text);
            }
            at = self.key_of(at, schema, row, number);
            at = self.end_member(out, at, quoted);
        }
        for (column, word) in schema.values.iter().zip(row.values()) {
            let quoted = column.kind == ValueKind::Time;
            at = self.name(out, at, column.name, quoted);
            at = self.value(at, column.kind, *word);
            at = self.end_member(out, at, quoted);
        }
        out.extend_from_slice(&self.line[..at]);
        out.pop();
    }

    /// Begins a member and gives the place of its value; the names of columns need no escape.
    #[inline(always)]
    fn name(&mut self, out: &mut Vec<u8>, at: usize, name: &str, quoted: bool) -> usize {
        put(&mut self.line, at, *b"\"");
        let mut at = at + 1;
        if name.len() <= MOST_NAME {
            put_name(&mut self.line, at, name.as_bytes());
            at += name.len();
        } else {
            out.extend_from_slice(&self.line[..at]);
            out.extend_from_slice(name.as_bytes());
            at = 0;
        }
        put(&mut self.line, at, *b"\":\"");
        at + 2 + usize::from(quoted)
    }

    /// Ends a member and gives the place of the next.
    #[inline(always)]
    fn end_member(&mut self, out: &mut Vec<u8>, at: usize, quoted: bool) -> usize {
        put(&mut self.line, at, if quoted { *b"\"," } else { *b",," });
        self.make_room(out, at + 1 + usize::from(quoted))
    }

    /// A key's cell.
    #[inline]
    pub fn key_cell(&mut self, value: KeyValue) -> &str {
        let end = self.key(0, value);
        std::str::from_utf8(&self.line[..end]).expect("cells are ASCII")
    }

    /// Moves the line on and writes the cell of a text behind it; gives the place for what follows.
    #[cold]
    fn text_cell(
        &mut self,
        out: &mut Vec<u8>,
        at: usize,
        (schema, row, column): (&Schema, &Row<'_>, usize),
        write: fn(&mut Vec<u8>, &str),
    ) -> usize {
        out.extend_from_slice(&self.line[..at]);
        if let KeyValue::Text(text) = row.key(schema, column) {
            write(out, &text.text());
        }
        0
    }

    /// Moves the line on where the next cell might not fit; gives the place for it.
    #[inline(always)]
    fn make_room(&self, out: &mut Vec<u8>, at: usize) -> usize {
        if at <= MOST_LINE - MOST_CELL {
            return at;
        }
        out.extend_from_slice(&self.line[..at]);
        0
    }

    /// Writes a row's key cell; those that most rows have, straight from the words of a compact key.
    #[inline(always)]
    fn key_of(&mut self, at: usize, schema: &Schema, row: &Row<'_>, column: usize) -> usize {
        if let Some([addresses, transport]) = row.compact_key() {
            let (line, transport) = (&mut self.line, Transport(*transport));
            let column = &schema.key.columns()[column];
            match column.field.lives {
                Lives::Source if column.is_address() => return put_v4(line, at, (addresses >> 32) as u32),
                Lives::Destination if column.is_address() => return put_v4(line, at, *addresses as u32),
                Lives::Transport(48) => return put_number(line, at, transport.source_port().into()),
                Lives::Transport(32) => return put_number(line, at, transport.destination_port().into()),
                Lives::Transport(24) => return put_octet(line, at, transport.protocol()) - 1,
                _ => {}
            }
        }
        self.key(at, row.key(schema, column))
    }

    #[inline(always)]
    fn key(&mut self, at: usize, value: KeyValue) -> usize {
        match value {
            KeyValue::Number(number) => put_number(&mut self.line, at, number),
            KeyValue::Mac(number) => {
                put(&mut self.line, at, mac_text(number));
                at + 17
            }
            // It has been written already: it may be longer than a line.
            KeyValue::Text(_) => at,
            KeyValue::Address(address) => put_address(&mut self.line, at, address),
            KeyValue::Prefix(address, bits) => {
                let end = put_address(&mut self.line, at, address);
                put(&mut self.line, end, *b"/");
                put_number(&mut self.line, end + 1, bits.into())
            }
        }
    }

    #[inline(always)]
    fn value(&mut self, at: usize, kind: ValueKind, word: u64) -> usize {
        match kind {
            ValueKind::Count | ValueKind::Bytes | ValueKind::Number => put_number(&mut self.line, at, word),
            ValueKind::Time => self.time(at, word),
        }
    }

    /// Writes a time in nanoseconds since the Unix epoch, such as `2023-11-14T22:13:20.000001000Z`.
    #[inline(always)]
    fn time(&mut self, at: usize, time: u64) -> usize {
        let (seconds, nanos) = (time / NANOS_A_SECOND, (time % NANOS_A_SECOND) as u32);
        if seconds.wrapping_sub(self.midnight) >= SECONDS_A_DAY {
            self.midnight = seconds - seconds % SECONDS_A_DAY;
            self.date = date_of(self.midnight);
        }
        let text: &mut [u8; 30] = room(&mut self.line, at);
        text[..16].copy_from_slice(&self.date);
        text[11..19].copy_from_slice(&clock(seconds - self.midnight));
        text[19] = b'.';
        text[20..28].copy_from_slice(&(digits(nanos / 10) | each(b'0')).to_le_bytes());
        text[28] = b'0' + (nanos % 10) as u8;
        text[29] = b'Z';
        at + text.len()
    }
}

/// The next bytes of a line, which has room for a whole cell.
#[inline(always)]
fn room<const N: usize>(line: &mut Line, at: usize) -> &mut [u8; N] {
    line[at..].first_chunk_mut().expect("the line has room for a cell")
}

/// Writes bytes.
#[inline(always)]
fn put<const N: usize>(line: &mut Line, at: usize, bytes: [u8; N]) {
    *room(line, at) = bytes;
}

/// Writes a name of at most 16 bytes, by two copies that overlap where it has four or more.
#[inline(always)]
fn put_name(line: &mut Line, at: usize, name: &[u8]) {
    if let (Some(first), Some(last)) = (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        put(line, at, *first);
        put(line, at + name.len() - 8, *last);
    } else if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        put(line, at, *first);
        put(line, at + name.len() - 4, *last);
    } else {
        line[at..at + name.len()].copy_from_slice(name);
    }
}

/// Writes a decimal number.
#[inline(always)]
fn put_number(line: &mut Line, at: usize, number: u64) -> usize {
    if number >= NINE_DIGITS {
        return put_long_number(line, at, number);
    }
    let digits = digits(number as u32);
    let leading = (digits | 1 << 56).trailing_zeros() & !7;
    put(line, at, ((digits | each(b'0')) >> leading).to_le_bytes());
    at + 8 - leading as usize / 8
}

/// Writes a decimal number of nine digits or more: what its last eight leave, then those.
#[cold]
fn put_long_number(line: &mut Line, at: usize, number: u64) -> usize {
    let end = put_number(line, at, number / NINE_DIGITS);
    put(line, end, (digits((number % NINE_DIGITS) as u32) | each(b'0')).to_le_bytes());
    end + 8
}

/// Writes an address: dotted, or as RFC 5952 has it.
#[inline(always)]
fn put_address(line: &mut Line, at: usize, address: Address) -> usize {
    if address.is_v4() { put_v4(line, at, address.0 as u32) } else { put_v6(line, at, address.0) }
}

#[inline(always)]
fn put_v4(line: &mut Line, at: usize, address: u32) -> usize {
    let mut end = at;
    for octet in address.to_be_bytes() {
        end = put_octet(line, end, octet);
    }
    end - 1
}

/// Writes an octet and a dot behind it.
#[inline(always)]
fn put_octet(line: &mut Line, at: usize, octet: u8) -> usize {
    let (text, length) = OCTETS[usize::from(octet)];
    put(line, at, text);
    at + usize::from(length)
}

fn put_v6(line: &mut Line, at: usize, address: u128) -> usize {
    let group = |number: u8| (address >> (112 - 16 * number)) as u16;
    let zeros = (0..GROUPS).fold(0, |set, number| set | usize::from(group(number) == 0) << number);
    let (start, end) = ZEROS[zeros];
    let mut at = at;
    for number in 0..start {
        at = put_group(line, at, group(number));
    }
    if start == GROUPS {
        return at - 1;
    }
    put(line, at, *b"::");
    at += if start == 0 { 2 } else { 1 };
    for number in end..GROUPS {
        at = put_group(line, at, group(number));
    }
    if end == GROUPS { at } else { at - 1 }
}

/// Writes a group of an IPv6 address and the colon behind it.
#[inline(always)]
fn put_group(line: &mut Line, at: usize, group: u16) -> usize {
    let group = u64::from(group);
    let digits = group >> 12 | group & 0xf00 | group << 12 & 0xf_0000 | group << 24 & 0xf00_0000;
    let leading = (digits | 1 << 24).trailing_zeros() & !7;
    // A digit above nine carries into the upper half of its byte.
    let letters = (digits + 0x0606_0606) >> 4 & 0x0101_0101;
    let text = (u64::from(b':') << 32) | (digits + 0x3030_3030 + letters * u64::from(b'a' - b'9' - 1));
    put(line, at, (text >> leading).to_le_bytes());
    at + 5 - leading as usize / 8
}

/// A word of equal bytes.
const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The eight digits of a number below 10^8.
///
/// It is cut into halves, each of them into halves again, side by side in one word; divisions are multiplications by
/// reciprocals that are exact in their range.
#[inline(always)]
fn digits(number: u32) -> u64 {
    let halves = u64::from(number / 10_000) | u64::from(number % 10_000) << 32;
    let hundreds = (halves * 10_486) >> 20 & 0x7f_0000_007f;
    let pairs = hundreds | (halves - hundreds * 100) << 16;
    let tens = (pairs * 103) >> 10 & 0xf_000f_000f_000f;
    tens | (pairs - tens * 10) << 8
}

/// `HH:MM:SS` of a second of the day.
#[inline(always)]
fn clock(second: u64) -> [u8; 8] {
    let minute = second / 60;
    let (h, m, s) = (minute / 60, minute % 60, second % 60);
    let pairs = h | m << 24 | s << 48;
    let tens = (pairs * 103) >> 10 & 0xf_0000_0f00_000f;
    let digits = tens | (pairs - tens * 10) << 8;
    (digits | u64::from_le_bytes(*b"00:00:00")).to_le_bytes()
}

/// `YYYY-MM-DDT` of a second since the Unix epoch, and five bytes that say nothing.
#[cold]
fn date_of(second: u64) -> [u8; 16] {
    let text = i64::try_from(second)
        .ok()
        .and_then(|second| Timestamp::from_second(second).ok())
        .map(|time| time.to_string());
    text.and_then(|text| text.as_bytes().first_chunk().copied())
        .expect("64 bits of nanoseconds end in the year 2554")
}

/// A time in nanoseconds since the Unix epoch as rows have it: RFC 3339 with nine decimals.
pub fn rfc3339(time: u64) -> String {
    let mut text = Text::default();
    let end = text.time(0, time);
    String::from_utf8_lossy(&text.line[..end]).into_owned()
}

/// The folder name of a window: `2026-11-22T09-15-00Z`, with a fraction where its start is no whole second; `all`
/// for the window of everything.
pub fn window_name(span: Option<(u64, u64)>) -> String {
    let Some((start, _)) = span else { return "all".into() };
    let text = rfc3339(start).replace(':', "-");
    let (seconds, fraction) = text.trim_end_matches('Z').split_once('.').expect("a time has a fraction");
    match fraction.trim_end_matches('0') {
        "" => format!("{seconds}Z"),
        fraction => format!("{seconds}.{fraction}Z"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataflows::block::Block;
    use dataflows::field::mac;
    use dataflows::key::KeyFields;
    use dataflows::packet::Packet;
    use dataflows::rows::{TaskRows, ValueColumn};
    use proptest::prelude::*;
    use std::net::IpAddr;
    use std::sync::Arc;

    /// What a function puts into a line that held something else before.
    fn put_into_line(put: impl Fn(&mut Line, usize) -> usize) -> String {
        let mut line = [b'#'; MOST_LINE];
        let end = put(&mut line, 7);
        String::from_utf8_lossy(&line[7..end]).into_owned()
    }

    fn any_v4() -> impl Strategy<Value = Address> {
        any::<u32>().prop_map(Address::v4)
    }

    fn any_address() -> impl Strategy<Value = Address> {
        let group = prop_oneof![3 => Just(0u16), 1 => any::<u16>(), 1 => (0u32..16).prop_map(|bit| 1 << bit)];
        let groups = prop::array::uniform8(group).prop_map(|groups| IpAddr::from(groups).into());
        let v4 = any::<u32>();
        prop_oneof![
            4 => groups,
            1 => any::<u128>().prop_map(Address),
            1 => any_v4(),
            1 => v4.prop_map(|compatible| Address(compatible.into())),
            1 => v4.prop_map(|translated| Address(0x64_ff9b << 96 | u128::from(translated))),
        ]
    }

    fn any_number() -> impl Strategy<Value = u64> {
        let power = (0u32..20, 0u64..3).prop_map(|(exponent, more)| 10u64.pow(exponent) - 1 + more);
        prop_oneof![any::<u64>(), 0u64..100_000, (0u32..64).prop_map(|bit| 1 << bit), power]
    }

    fn any_time() -> impl Strategy<Value = u64> {
        let midnight = |day: u64| day * SECONDS_A_DAY * NANOS_A_SECOND;
        let near_midnight = (1u64..200_000, 0u64..3).prop_map(move |(day, more)| midnight(day) - 1 + more);
        prop_oneof![any::<u64>(), near_midnight, (0u64..100_000).prop_map(|second| second * NANOS_A_SECOND)]
    }

    fn calendar(time: u64) -> String {
        format!("{:.9}", Timestamp::from_nanosecond(time.into()).expect("in range"))
    }

    /// A cell as the standard library writes it, and whether JSON quotes it.
    fn key_text(value: KeyValue) -> (String, bool) {
        match value {
            KeyValue::Number(number) => (number.to_string(), false),
            KeyValue::Address(address) => (IpAddr::from(address).to_string(), true),
            KeyValue::Prefix(address, bits) => (format!("{}/{bits}", IpAddr::from(address)), true),
            KeyValue::Mac(number) => (mac(number), true),
            KeyValue::Text(text) => (text.text(), true),
        }
    }

    fn value_text(kind: ValueKind, word: u64) -> (String, bool) {
        match kind {
            ValueKind::Count | ValueKind::Bytes | ValueKind::Number => (word.to_string(), false),
            ValueKind::Time => (calendar(word), true),
        }
    }

    const COLUMNS: [ValueColumn; 5] = [
        ValueColumn { name: "n", kind: ValueKind::Count },
        ValueColumn { name: "bytes", kind: ValueKind::Bytes },
        ValueColumn { name: "last_seen", kind: ValueKind::Time },
        ValueColumn { name: "a_name_of_16_byte", kind: ValueKind::Time },
        ValueColumn { name: "a_name_that_does_not_go_through_the_line", kind: ValueKind::Count },
    ];
    const KEYS: [&str; 10] = [
        "SrcIP",
        "SrcIP/20/61",
        "SrcPort",
        "DstIP/9/17",
        "DstIP",
        "DstPort",
        "Protocol",
        "TCPFlags",
        "VLAN",
        "IPVersion",
    ];

    proptest! {
        #[test]
        fn times_are_those_of_a_calendar(times in prop::collection::vec(any_time(), 1..5)) {
            let mut text = Text::default();
            for time in times {
                let end = text.time(0, time);
                prop_assert_eq!(String::from_utf8_lossy(&text.line[..end]), calendar(time));
                prop_assert_eq!(rfc3339(time), calendar(time));
            }
        }

        #[test]
        fn addresses_are_those_of_the_standard_library(address in any_address()) {
            let text = put_into_line(|line, at| put_address(line, at, address));
            prop_assert_eq!(text, IpAddr::from(address).to_string());
        }

        #[test]
        fn numbers_are_decimal(number in any_number()) {
            prop_assert_eq!(put_into_line(|line, at| put_number(line, at, number)), number.to_string());
        }

        /// Of as many columns as fill a line several times, too.
        #[test]
        fn rows_are_their_cells(
            keys in prop::sample::subsequence(&KEYS, 1..=KEYS.len()),
            (source, destination) in prop_oneof![(any_address(), any_address()), (any_v4(), any_v4())],
            transport in any::<u64>(),
            values in prop::collection::vec((prop::sample::select(&COLUMNS), any::<u64>()), 1..60),
        ) {
            let key = KeyFields::parse(&keys).expect("fields");
            let packet = Packet { source, destination, transport: Transport(transport), ..Packet::default() };
            let key_words = key.mask().of(&packet, &[]);
            let (layout, mut words) = (key_words.layout(), key_words.words().to_vec());
            words.extend(values.iter().map(|(_, word)| word));
            let columns = values.iter().map(|(column, _)| *column).collect();
            let schema = Arc::new(Schema { key, values: columns, order_by: 0, counts_every_packet: false });
            let runs = vec![Block { layout, width: words.len(), words: words.into(), ..Block::default() }];
            let rows = TaskRows { name: "".into(), schema: schema.clone(), runs, kept: None };
            let row = rows.rows().next().expect("a row");

            let keys = (0..keys.len()).map(|column| key_text(row.key(&schema, column)));
            let words = values.iter().map(|(column, word)| value_text(column.kind, *word));
            let cells: Vec<_> = keys.chain(words).collect();
            let (mut text, mut out) = (Text::default(), b"before;".to_vec());
            text.row(&mut out, &schema, &row, b';');
            let expected = cells.iter().map(|(cell, _)| cell.as_str()).collect::<Vec<_>>().join(";");
            prop_assert_eq!(String::from_utf8_lossy(&out), format!("before;{expected}"));

            out.truncate(7);
            text.members(&mut out, &schema, &row);
            let member = |(name, (cell, quoted)): (&str, &(String, bool))| {
                if *quoted { format!("\"{name}\":\"{cell}\"") } else { format!("\"{name}\":{cell}") }
            };
            let expected = schema.columns().zip(&cells).map(member).collect::<Vec<_>>().join(",");
            prop_assert_eq!(String::from_utf8_lossy(&out), format!("before;{expected}"));
        }
    }

    /// Groups of zeros in every pattern: at each place, of each length, several of a length.
    #[test]
    fn zeros_are_shortened_as_in_the_standard_library() {
        for (set, other) in (0..=255u8).flat_map(|set| [0x1, 0xa0, 0xdb8, 0xffff].map(|other| (set, other))) {
            let groups: [u16; 8] = std::array::from_fn(|at| if set >> at & 1 == 1 { 0 } else { other });
            let address = Address::from(IpAddr::from(groups));
            let text = put_into_line(|line, at| put_address(line, at, address));
            assert_eq!(text, IpAddr::from(address).to_string());
        }
    }

    #[test]
    fn every_second_of_a_day_has_its_clock() {
        for second in 0..SECONDS_A_DAY {
            let expected = format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
            assert_eq!(String::from_utf8_lossy(&clock(second)), expected);
        }
    }

    #[test]
    fn windows_are_named_by_their_start() {
        assert_eq!(window_name(None), "all");
        assert_eq!(window_name(Some((1_795_338_900_000_000_000, 0))), "2026-11-22T09-15-00Z");
        assert_eq!(window_name(Some((1_795_338_900_250_000_000, 0))), "2026-11-22T09-15-00.25Z");
    }
}
