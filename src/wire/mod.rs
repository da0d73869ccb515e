//! Messages between probe and engine: `proto/packets.proto`, checked and turned into packets and back.
//!
//! [`single`] is one packet a message, [`batch`] thousands in columns, with those of [`fields`] where a probe is told to send
//! any. No bytes panic; what cannot be a message of ours
//! is refused whole, and whoever receives it counts it.

pub mod batch;
pub mod fields;
pub mod single;

/// The messages as generated from `proto/`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/v1.rs"));
}

/// Why bytes are no message that can be used.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not this protobuf message at all.
    #[error("is no such message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A field that has to be there is not.
    #[error("has no {0}")]
    Missing(&'static str),
    /// A value that cannot be.
    #[error("{field} {value} is out of range")]
    Range {
        /// The field.
        field: &'static str,
        /// What it says.
        value: i128,
    },
    /// An address of another length than 4 or 16 bytes, or a column of another length than the batch.
    #[error("{field} has {found} bytes, {expected} expected")]
    Length {
        /// The field.
        field: &'static str,
        /// Its bytes.
        found: usize,
        /// What it may have.
        expected: usize,
    },
    /// A column of a field that contradicts the batch or itself.
    #[error("the column {name:?} {why}")]
    Column {
        /// The field's name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}
