//! Rows as Arrow columns, for those who take columns: Parquet files and ClickHouse.

use super::text::Text;
use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, StringArray, TimestampNanosecondArray, UInt8Array, UInt16Array,
    UInt64Array,
};
use arrow_schema::{DataType, Field as Column, TimeUnit};
use dataflows::key::{Field, KeyValue};
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
    let key = |field: &Field| {
        let kind = match field {
            field if field.is_address() && addresses == Addresses::Binary => DataType::FixedSizeBinary(16),
            Field::SrcIp { .. } | Field::DstIp { .. } => DataType::Utf8,
            Field::SrcPort | Field::DstPort | Field::Vlan => DataType::UInt16,
            Field::Protocol | Field::TcpFlags | Field::IpVersion => DataType::UInt8,
        };
        Column::new(field.column(), kind, false)
    };
    let values = schema.values.iter().map(|value| {
        let kind = match value.kind {
            ValueKind::Count | ValueKind::Bytes => DataType::UInt64,
            ValueKind::Time => time_type(),
        };
        Column::new(value.name, kind, false)
    });
    schema.key.fields().iter().map(key).chain(values).collect()
}

/// Those columns of these rows.
pub(super) fn arrays(schema: &Schema, addresses: Addresses, rows: &[Row<'_>]) -> Vec<ArrayRef> {
    let fields = schema.key.fields().iter().enumerate();
    let key = |(column, field): (usize, &Field)| -> ArrayRef {
        let cells = rows.iter().map(|row| row.key(schema, column));
        match field {
            field if field.is_address() && addresses == Addresses::Binary => {
                let bytes: Vec<u8> = cells.flat_map(octets).collect();
                Arc::new(FixedSizeBinaryArray::new(16, bytes.into(), None))
            }
            Field::SrcIp { .. } | Field::DstIp { .. } => {
                let mut text = Text::default();
                let mut strings =
                    arrow_array::builder::StringBuilder::with_capacity(rows.len(), 16 * rows.len());
                cells.for_each(|cell| strings.append_value(text.key_cell(cell)));
                Arc::new(strings.finish() as StringArray)
            }
            Field::SrcPort | Field::DstPort | Field::Vlan => {
                Arc::new(UInt16Array::from_iter_values(cells.map(number)))
            }
            Field::Protocol | Field::TcpFlags | Field::IpVersion => {
                Arc::new(UInt8Array::from_iter_values(cells.map(|cell| number(cell) as u8)))
            }
        }
    };
    let value = |(column, kind): (usize, ValueKind)| -> ArrayRef {
        let words = rows.iter().map(|row| row.values()[column]);
        match kind {
            ValueKind::Count | ValueKind::Bytes => Arc::new(UInt64Array::from_iter_values(words)),
            ValueKind::Time => {
                Arc::new(TimestampNanosecondArray::from_iter_values(words.map(time)).with_timezone("UTC"))
            }
        }
    };
    let values = schema.values.iter().map(|value| value.kind).enumerate();
    fields.map(key).chain(values.map(value)).collect()
}

/// The number in a key column of numbers.
fn number(cell: KeyValue) -> u16 {
    match cell {
        KeyValue::Number(number) => number,
        KeyValue::Address(_) | KeyValue::Prefix(..) => 0,
    }
}

fn octets(cell: KeyValue) -> [u8; 16] {
    let address = match cell {
        KeyValue::Address(address) | KeyValue::Prefix(address, _) => address,
        KeyValue::Number(_) => return [0; 16],
    };
    match IpAddr::from(address) {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
