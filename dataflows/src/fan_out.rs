//! `fan_out`: keys with more than so many distinct elements over a horizon, exact: scanners and super-spreaders.

use crate::aggregator::{Aggregator, Flow, Options, OptionsError};
use crate::block::Block;
use crate::groups;
use crate::key::{KeyFields, Mask};
use crate::rows::{Schema, ValueColumn, ValueKind};
use crate::standing::{Part, Records, Rows, answers, by_owner, by_window, indexed, joined, on_turns, slide};
use crate::window::{Epoch, Horizon, Windowing};
use differential_dataflow::operators::{CountTotal, ThresholdTotal};
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of a `fan_out` task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FanOutOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// What is counted, each combination once: fields that the key does not have.
    element_fields: Vec<String>,
    /// Keys with more elements are shown.
    threshold: u64,
    /// How far back.
    #[serde(default)]
    horizon: Horizon,
}

/// A `fan_out` task.
struct FanOut {
    schema: Arc<Schema>,
    /// Key and element together.
    pair: KeyFields,
    threshold: u64,
    horizon: Horizon,
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let FanOutOptions { key_fields, element_fields, threshold, horizon } = options.read()?;
    let key = options.fields("key_fields", &key_fields)?;
    let element = options.fields("element_fields", &element_fields)?;
    let pair = joined(&key, &element).map_err(|error| options.refuse("element_fields", error))?;
    let values = vec![ValueColumn { name: "elements", kind: ValueKind::Count }];
    let schema = Schema { key, values, order_by: 0, counts_every_packet: false };
    Ok(Box::new(FanOut { schema: Arc::new(schema), pair, threshold, horizon }))
}

impl Aggregator for FanOut {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.pair.mask()]
    }

    fn reach(&self, windowing: Windowing) -> u64 {
        self.horizon.windows(windowing) - 1
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let (reach, key) = (self.reach(flow.windowing()), self.schema.key.mask());
        let pairs = flow.groups(self.pair.mask());
        if reach == 0 {
            // A window has every pair once.
            let threshold = self.threshold;
            return by_window(groups::elements(pairs, key), move |blocks| above(blocks, threshold));
        }
        let pairs = by_owner(pairs, key);
        let pairs = slide(flow, pairs, reach, Presence { reach });
        let threshold = isize::try_from(self.threshold).unwrap_or(isize::MAX);
        let many = on_turns(flow.scope(), "FanOut", pairs, |pairs| {
            let elements = indexed(pairs).distinct_total().map(move |pair| pair.under(key));
            indexed(elements).count_total().filter(move |(_, elements)| *elements > threshold)
        });
        answers(flow, many, None, Records::new(|elements| [*elements as u64]))
    }
}

/// The keys with more elements.
fn above(blocks: &[Block], threshold: u64) -> Rows {
    let mut rows = Rows::default();
    for block in blocks {
        groups::visit(block, |key, [elements, ..]| {
            if elements > threshold {
                rows.push(&key, &[elements]);
            }
        });
    }
    rows
}

/// That a pair was there, once a window.
struct Presence {
    reach: u64,
}

impl Part for Presence {
    type Weight = isize;

    fn stage(&self, age: u64) -> Option<u8> {
        (age <= self.reach).then_some(0)
    }

    fn weight(&self, _: u8, _: u64, _: u64) -> isize {
        1
    }
}
