//! `exact`: packets, bytes, first and last time of every key, with nothing estimated and nothing left out.
//!
//! The counting itself is in [`crate::groups`]: an exact task is the groups of its key fields, given out as rows.

use crate::aggregator::{Aggregator, Flow, Options, OptionsError};
use crate::block::Block;
use crate::key::{KeyFields, Mask};
use crate::rows::{Schema, ValueColumn, ValueKind};
use crate::window::Epoch;
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of an `exact` task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExactOptions {
    /// The key's fields in column order, see [`crate::key::Field::parse`].
    key_fields: Vec<String>,
}

/// An exact task.
#[derive(Debug)]
pub struct Exact {
    schema: Arc<Schema>,
}

impl Exact {
    /// A task over these key fields.
    pub fn new(key: KeyFields) -> Self {
        let values = [
            ("packets", ValueKind::Count),
            ("bytes", ValueKind::Bytes),
            ("first_seen", ValueKind::Time),
            ("last_seen", ValueKind::Time),
        ];
        let values = values.map(|(name, kind)| ValueColumn { name, kind }).to_vec();
        Self { schema: Arc::new(Schema { key, values, order_by: 1, counts_every_packet: true }) }
    }

    /// Reads a task's options.
    pub fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
        let ExactOptions { key_fields } = options.read()?;
        let key = KeyFields::parse(&key_fields).map_err(|error| options.refuse("key_fields", error))?;
        Ok(Box::new(Self::new(key)))
    }
}

impl Aggregator for Exact {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.schema.key.mask()]
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        flow.groups(self.schema.key.mask())
    }
}
