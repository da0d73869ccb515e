//! `hll`: the keys with the most distinct elements, estimated within bounds, in fixed memory: super-spreaders.

use crate::aggregator::{Aggregator, Flow, Options, OptionsError};
use crate::block::Block;
use crate::count_min::hundred;
use crate::groups::Counts;
use crate::key::{Key, Mask};
use crate::measure::Weight;
use crate::packet::Packet;
use crate::rows::{Schema, ValueKind};
use crate::sketch::{Distinct, Shape};
use crate::sketched::{Sketch, estimates, push_above, shape, sketched, with_key, with_words};
use crate::standing::{Rows, joined};
use crate::window::Epoch;
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of an `hll` task. Memory of a sketch: 312 bytes times width times depth.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HllOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// What is counted, each combination once: fields that the key does not have.
    element_fields: Vec<String>,
    /// At most so many keys, 1 to [`crate::aggregator::MOST_ROWS`].
    #[serde(default = "hundred")]
    k: usize,
    /// Keys whose estimate is above this.
    #[serde(default)]
    threshold: u64,
    /// See [`Shape`].
    #[serde(default = "width")]
    width: usize,
    /// See [`Shape`].
    #[serde(default = "depth")]
    depth: usize,
    /// See [`Shape`].
    seed: Option<u64>,
}

fn width() -> usize {
    1024
}

fn depth() -> usize {
    6
}

/// An `hll` task.
struct Spreaders {
    schema: Arc<Schema>,
    element: Mask,
    /// Key and element together.
    pair: Mask,
    k: usize,
    threshold: u64,
    shape: Shape,
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let HllOptions { key_fields, element_fields, k, threshold, width, depth, seed } = options.read()?;
    let key = options.base_fields("key_fields", &key_fields)?;
    let element = options.base_fields("element_fields", &element_fields)?;
    let pair = joined(&key, &element).map_err(|error| options.refuse("element_fields", error))?.mask();
    options.check_rows("k", k)?;
    let shape = shape(options, width, depth, seed)?;
    let schema = estimates(key, ValueKind::Count);
    Ok(Box::new(Spreaders { schema, element: element.mask(), pair, k, threshold, shape }))
}

impl Aggregator for Spreaders {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let (mask, element, threshold, shape) =
            (self.schema.key.mask(), self.element, self.threshold, self.shape);
        let new = move || Elements { mask, element, threshold, elements: Distinct::new(shape) };
        let take = |elements: &mut Elements, key: Key, _: Counts| {
            let element = key.under(elements.element);
            with_words(&key.under(elements.mask), |wide, key| {
                with_words(&element, |_, element| elements.elements.update(wide, key, element));
            });
        };
        let groups = flow.finer_groups(self.pair).map(|groups| (groups, take as fn(&mut Elements, _, _)));
        sketched(flow, (self.schema(), self.k), groups, new)
    }
}

struct Elements {
    mask: Mask,
    element: Mask,
    threshold: u64,
    elements: Distinct,
}

impl Sketch for Elements {
    fn prefetch(&self, packet: &Packet) {
        with_key(self.mask, packet, |wide, key| {
            with_key(self.element, packet, |_, element| self.elements.prefetch(wide, key, element));
        });
    }

    fn update(&mut self, packet: &Packet, _: Weight) {
        with_key(self.mask, packet, |wide, key| {
            with_key(self.element, packet, |_, element| self.elements.update(wide, key, element));
        });
    }

    fn merge(&mut self, words: &[u64]) -> Result<(), &'static str> {
        self.elements.merge(words)
    }

    fn clear(&mut self) {
        self.elements.clear();
    }

    fn words(&self) -> Vec<u64> {
        self.elements.words()
    }

    fn rows(&self, rows: &mut Rows) {
        push_above(rows, &self.elements.found(), self.threshold);
    }
}
