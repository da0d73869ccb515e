//! `count_min`: the keys with the most packets or bytes, estimated within bounds, in fixed memory: heavy hitters.

use crate::aggregator::{Aggregator, Flow, Metric, Options, OptionsError};
use crate::block::Block;
use crate::groups;
use crate::key::{Key, Mask};
use crate::measure::Weight;
use crate::packet::Packet;
use crate::rows::Schema;
use crate::sketch::{CountMin, Shape};
use crate::sketched::{Sketch, estimates, push_above, shape, sketched, with_key, with_words};
use crate::standing::Rows;
use crate::window::Epoch;
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of a `count_min` task. Memory of a sketch: 64 bytes times width times depth.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountMinOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// What is estimated.
    #[serde(default)]
    metric: Metric,
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

pub(crate) fn hundred() -> usize {
    100
}

fn width() -> usize {
    4096
}

fn depth() -> usize {
    5
}

/// A `count_min` task.
struct HeavyHitters {
    schema: Arc<Schema>,
    metric: Metric,
    k: usize,
    threshold: u64,
    shape: Shape,
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let CountMinOptions { key_fields, metric, k, threshold, width, depth, seed } = options.read()?;
    let key = options.base_fields("key_fields", &key_fields)?;
    options.check_rows("k", k)?;
    let shape = shape(options, width, depth, seed)?;
    let schema = estimates(key, metric.kind());
    Ok(Box::new(HeavyHitters { schema, metric, k, threshold, shape }))
}

impl Aggregator for HeavyHitters {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let (mask, metric, threshold, shape) =
            (self.schema.key.mask(), self.metric, self.threshold, self.shape);
        let new = move || Counts { mask, metric, threshold, counts: CountMin::new(shape) };
        let take = |counts: &mut Counts, key: Key, [packets, bytes, ..]: groups::Counts| {
            let weight = counts.metric.of(packets, bytes);
            let item = key.route();
            with_words(&key.under(counts.mask), |wide, key| counts.counts.update(wide, key, weight, item));
        };
        let groups = flow.finer_groups(mask).map(|groups| (groups, take as fn(&mut Counts, _, _)));
        sketched(flow, (self.schema(), self.k), groups, new)
    }
}

struct Counts {
    mask: Mask,
    metric: Metric,
    threshold: u64,
    counts: CountMin,
}

impl Sketch for Counts {
    fn prefetch(&self, packet: &Packet) {
        with_key(self.mask, packet, |wide, key| self.counts.prefetch(wide, key));
    }

    fn update(&mut self, packet: &Packet, weight: Weight) {
        let weight = self.metric.of(weight.packets, weight.bytes);
        with_key(self.mask, packet, |wide, key| self.counts.update(wide, key, weight, packet.fingerprint()));
    }

    fn merge(&mut self, words: &[u64]) -> Result<(), &'static str> {
        self.counts.merge(words)
    }

    fn clear(&mut self) {
        self.counts.clear();
    }

    fn words(&self) -> Vec<u64> {
        self.counts.words()
    }

    fn rows(&self, rows: &mut Rows) {
        push_above(rows, &self.counts.found(), self.threshold);
    }
}
