//! Rows as Arrow columns, for those who take columns: Parquet files and ClickHouse.

use super::text::Text;
use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, StringArray, TimestampNanosecondArray, UInt8Array, UInt16Array,
    UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field as Column, TimeUnit};
use dataflows::field::Kind;
use dataflows::key::{KeyColumn, KeyValue};
use dataflows::rows::{Row, Schema, ValueKind};
use std::net::IpAddr;
use std::sync::Arc;

/// How addresses are written. Networks are always text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    /// As csv has them.
    Text,
    /// 16 bytes, IPv4 addresses mapped (RFC 4291, 2.5.5.2).
    Binary,
}

/// The type of a time: nanoseconds since the Unix epoch, UTC.
pub(super) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// A time as 64 bits with a sign can tell it: what is after the year 2262 is its last nanosecond.
pub(super) fn time(nanos: u64) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// The columns of a schema's rows: the key's, then the values'; none is ever null.
pub(super) fn columns(schema: &Schema, addresses: Addresses) -> Vec<Column> {
    let key = |column: &KeyColumn| Column::new(column.name(), key_type(column, addresses), false);
    let values = schema.values.iter().map(|value| {
        let kind = match value.kind {
            ValueKind::Count | ValueKind::Bytes | ValueKind::Number => DataType::UInt64,
            ValueKind::Time => time_type(),
        };
        Column::new(value.name, kind, false)
    });
    schema.key.columns().iter().map(key).chain(values).collect()
}

/// Those columns of these rows.
pub(super) fn arrays(schema: &Schema, addresses: Addresses, rows: &[Row<'_>]) -> Vec<ArrayRef> {
    let columns = schema.key.columns().iter().enumerate();
    let key = |(number, column): (usize, &KeyColumn)| -> ArrayRef {
        let cells = rows.iter().map(|row| row.key(schema, number));
        match key_type(column, addresses) {
            DataType::FixedSizeBinary(_) => {
                let bytes: Vec<u8> = cells.flat_map(octets).collect();
                Arc::new(FixedSizeBinaryArray::new(16, bytes.into(), None))
            }
            DataType::UInt8 => {
                Arc::new(UInt8Array::from_iter_values(cells.map(|cell| as_number(cell) as u8)))
            }
            DataType::UInt16 => {
                Arc::new(UInt16Array::from_iter_values(cells.map(|cell| as_number(cell) as u16)))
            }
            DataType::UInt32 => {
                Arc::new(UInt32Array::from_iter_values(cells.map(|cell| as_number(cell) as u32)))
            }
            DataType::UInt64 => Arc::new(UInt64Array::from_iter_values(cells.map(as_number))),
            _ => {
                let mut text = Text::default();
                let mut strings =
                    arrow_array::builder::StringBuilder::with_capacity(rows.len(), 16 * rows.len());
                cells.for_each(|cell| match cell {
                    KeyValue::Text(cell) => strings.append_value(cell.text()),
                    cell => strings.append_value(text.key_cell(cell)),
                });
                Arc::new(strings.finish() as StringArray)
            }
        }
    };
    let value = |(column, kind): (usize, ValueKind)| -> ArrayRef {
        let words = rows.iter().map(|row| row.values()[column]);
        match kind {
            ValueKind::Count | ValueKind::Bytes | ValueKind::Number => {
                Arc::new(UInt64Array::from_iter_values(words))
            }
            ValueKind::Time => {
                Arc::new(TimestampNanosecondArray::from_iter_values(words.map(time)).with_timezone("UTC"))
            }
        }
    };
    let values = schema.values.iter().map(|value| value.kind).enumerate();
    columns.map(key).chain(values.map(value)).collect()
}

/// The type of a key column: the least that holds its field.
fn key_type(column: &KeyColumn, addresses: Addresses) -> DataType {
    match (column.field.kind, column.field.bits) {
        (Kind::Address, _) if column.is_address() && addresses == Addresses::Binary => {
            DataType::FixedSizeBinary(16)
        }
        (Kind::Address | Kind::Mac | Kind::Text, _) => DataType::Utf8,
        (Kind::Number, ..=8) => DataType::UInt8,
        (Kind::Number, ..=16) => DataType::UInt16,
        (Kind::Number, ..=32) => DataType::UInt32,
        (Kind::Number, _) => DataType::UInt64,
    }
}

/// The number in a key column of numbers.
fn as_number(cell: KeyValue) -> u64 {
    match cell {
        KeyValue::Number(number) | KeyValue::Mac(number) => number,
        KeyValue::Address(_) | KeyValue::Prefix(..) | KeyValue::Text(_) => 0,
    }
}

fn octets(cell: KeyValue) -> [u8; 16] {
    let address = match cell {
        KeyValue::Address(address) | KeyValue::Prefix(address, _) => address,
        KeyValue::Number(_) | KeyValue::Mac(_) | KeyValue::Text(_) => return [0; 16],
    };
    match IpAddr::from(address) {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
