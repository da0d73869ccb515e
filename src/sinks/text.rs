//! Rows as text: numbers, addresses (RFC 5952) and times (RFC 3339), appended to a buffer.

use dataflows::key::KeyValue;
use dataflows::packet::Address;
use dataflows::rows::{Row, Schema, ValueKind};
use jiff::Timestamp;
use std::io::Write;
use std::net::IpAddr;

/// "00" to "99".
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

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

const NANOS_A_SECOND: u64 = 1_000_000_000;
const SECONDS_A_DAY: u64 = 86_400;

/// Longest value: an IPv6 prefix, with room for a separator and for copies of fixed length that overhang.
const MOST_VALUE: usize = 64;
/// Values of a line before it is moved on to the buffer.
const MOST_LINE: usize = 1024;

/// Writes values as text; remembers the last day's date.
///
/// A row is put together in a line of fixed size by copies of fixed length, each of which the next overwrites where it
/// was too long, and moved to the buffer at once.
pub struct Text {
    day: u64,
    date: [u8; 11],
    line: [u8; MOST_LINE],
    at: usize,
}

impl Default for Text {
    fn default() -> Self {
        Self { day: 0, date: *b"1970-01-01T", line: [0; MOST_LINE], at: 0 }
    }
}

impl Text {
    /// Appends a row's cells with `separator` between them, and no end of line.
    #[inline]
    pub fn row(&mut self, out: &mut Vec<u8>, schema: &Schema, row: &Row<'_>, separator: u8) {
        self.at = 0;
        for column in 0..schema.key.fields().len() {
            self.key(row.key(schema, column));
            self.separate(out, separator);
        }
        for (column, word) in schema.values.iter().zip(row.values()) {
            self.value(column.kind, *word);
            self.separate(out, separator);
        }
        out.extend_from_slice(&self.line[..self.at]);
        out.pop();
    }

    /// Appends a row's cells as the members of a JSON object, without its braces: addresses and times as text.
    #[inline]
    pub fn members(&mut self, out: &mut Vec<u8>, schema: &Schema, row: &Row<'_>) {
        for (column, field) in schema.key.fields().iter().enumerate() {
            let value = row.key(schema, column);
            self.at = 0;
            self.key(value);
            self.member(out, field.column(), !matches!(value, KeyValue::Number(_)));
        }
        for (column, word) in schema.values.iter().zip(row.values()) {
            self.at = 0;
            self.value(column.kind, *word);
            self.member(out, column.name, column.kind == ValueKind::Time);
        }
        out.pop();
    }

    /// Appends what was written as a member; the names of columns need no escape.
    #[inline]
    fn member(&self, out: &mut Vec<u8>, name: &str, quoted: bool) {
        out.push(b'"');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(if quoted { b"\":\"" } else { b"\":" });
        out.extend_from_slice(&self.line[..self.at]);
        out.extend_from_slice(if quoted { b"\"," } else { b"," });
    }

    /// A key's cell.
    #[inline]
    pub fn key_cell(&mut self, value: KeyValue) -> &str {
        self.at = 0;
        self.key(value);
        std::str::from_utf8(&self.line[..self.at]).expect("cells are ASCII")
    }

    #[inline]
    fn value(&mut self, kind: ValueKind, word: u64) {
        match kind {
            ValueKind::Count | ValueKind::Bytes => self.number(word),
            ValueKind::Time => self.time(word),
        }
    }

    /// Ends a value; moves the line on where the next value might not fit.
    #[inline(always)]
    fn separate(&mut self, out: &mut Vec<u8>, separator: u8) {
        self.line[self.at] = separator;
        self.at += 1;
        if self.at > MOST_LINE - MOST_VALUE {
            out.extend_from_slice(&self.line[..self.at]);
            self.at = 0;
        }
    }

    /// The next `N` bytes of the line, which has room for a whole value.
    #[inline(always)]
    fn room<const N: usize>(&mut self) -> &mut [u8; N] {
        self.line[self.at..].first_chunk_mut().expect("the line has room for a value")
    }

    #[inline]
    fn key(&mut self, value: KeyValue) {
        match value {
            KeyValue::Number(number) => self.number(number.into()),
            KeyValue::Address(address) => self.address(address),
            KeyValue::Prefix(address, bits) => {
                self.address(address);
                self.line[self.at] = b'/';
                self.at += 1;
                self.number(bits.into());
            }
        }
    }

    /// Writes a decimal number.
    #[inline]
    fn number(&mut self, number: u64) {
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        let text = self.room::<20>();
        let (mut end, mut left) = (digits, number);
        while left >= 100 {
            end -= 2;
            text[end..end + 2].copy_from_slice(&PAIRS[(left % 100) as usize]);
            left /= 100;
        }
        if left >= 10 {
            text[..2].copy_from_slice(&PAIRS[left as usize]);
        } else {
            text[0] = b'0' + left as u8;
        }
        self.at += digits;
    }

    /// Writes an address: dotted, or as RFC 5952 has it.
    #[inline]
    fn address(&mut self, address: Address) {
        if address.is_v4() {
            for octet in (address.0 as u32).to_be_bytes() {
                let (text, length) = &OCTETS[usize::from(octet)];
                *self.room::<4>() = *text;
                self.at += usize::from(*length);
            }
            self.at -= 1;
        } else {
            let mut rest = &mut self.line[self.at..];
            let before = rest.len();
            write!(rest, "{}", IpAddr::from(address)).expect("the line has room for a value");
            self.at += before - rest.len();
        }
    }

    /// Writes a time in nanoseconds since the Unix epoch, such as `2023-11-14T22:13:20.000001000Z`.
    #[inline]
    fn time(&mut self, time: u64) {
        let (seconds, nanos) = (time / NANOS_A_SECOND, (time % NANOS_A_SECOND) as usize);
        let (day, second) = (seconds / SECONDS_A_DAY, (seconds % SECONDS_A_DAY) as usize);
        if day != self.day {
            self.day = day;
            self.date = date_of(day);
        }
        let date = self.date;
        let [h, m, s] = [PAIRS[second / 3600], PAIRS[second / 60 % 60], PAIRS[second % 60]];
        let [a, b, c, d] = [nanos / 10_000_000, nanos / 100_000 % 100, nanos / 1000 % 100, nanos / 10 % 100]
            .map(|pair| PAIRS[pair]);
        let text = self.room::<30>();
        *text = *b"YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ";
        text[..11].copy_from_slice(&date);
        text[11..13].copy_from_slice(&h);
        text[14..16].copy_from_slice(&m);
        text[17..19].copy_from_slice(&s);
        text[20..22].copy_from_slice(&a);
        text[22..24].copy_from_slice(&b);
        text[24..26].copy_from_slice(&c);
        text[26..28].copy_from_slice(&d);
        text[28] = b'0' + (nanos % 10) as u8;
        self.at += 30;
    }

    /// What was written since the line began.
    fn written(&self) -> String {
        String::from_utf8_lossy(&self.line[..self.at]).into_owned()
    }
}

/// `YYYY-MM-DDT` of a day since the Unix epoch.
fn date_of(day: u64) -> [u8; 11] {
    let text = i64::try_from(day * SECONDS_A_DAY)
        .ok()
        .and_then(|second| Timestamp::from_second(second).ok())
        .map(|midnight| midnight.to_string());
    text.and_then(|text| text.as_bytes().first_chunk().copied())
        .expect("64 bits of nanoseconds end in the year 2554")
}

/// A time in nanoseconds since the Unix epoch as rows have it: RFC 3339 with nine decimals.
pub fn rfc3339(time: u64) -> String {
    let mut text = Text::default();
    text.time(time);
    text.written()
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
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_are_those_of_a_calendar(time in any::<u64>()) {
            let expected = Timestamp::from_nanosecond(time.into()).expect("in range");
            prop_assert_eq!(rfc3339(time), format!("{expected:.9}"));
        }

        #[test]
        fn addresses_are_those_of_the_standard_library(number in prop_oneof![any::<u128>(), any::<u32>().prop_map(|v4| Address::v4(v4).0)]) {
            let mut text = Text::default();
            text.address(Address(number));
            prop_assert_eq!(text.written(), IpAddr::from(Address(number)).to_string());
        }

        #[test]
        fn numbers_are_decimal(number in prop_oneof![any::<u64>(), 0u64..1000, (0u32..64).prop_map(|bit| 1 << bit)]) {
            let mut text = Text::default();
            text.number(number);
            prop_assert_eq!(text.written(), number.to_string());
        }
    }

    #[test]
    fn windows_are_named_by_their_start() {
        assert_eq!(window_name(None), "all");
        assert_eq!(window_name(Some((1_795_338_900_000_000_000, 0))), "2026-11-22T09-15-00Z");
        assert_eq!(window_name(Some((1_795_338_900_250_000_000, 0))), "2026-11-22T09-15-00.25Z");
    }
}
