//! `quantiles`: the median, the 90th and the 99th percentile of packet sizes of the keys with the most packets,
//! estimated within bounds, in fixed memory.
//!
//! Times between packets are deliberately absent: they depend on the order in which a key's packets come, over all
//! workers, and packets are not exchanged.

use crate::aggregator::{Aggregator, Flow, Options, OptionsError};
use crate::block::Block;
use crate::count_min::hundred;
use crate::key::Mask;
use crate::measure::Weight;
use crate::packet::Packet;
use crate::rows::{Schema, ValueColumn, ValueKind};
use crate::sketch::{Shape, Sizes};
use crate::sketched::{Sketch, push, shape, sketched, with_key};
use crate::standing::Rows;
use crate::window::Epoch;
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of a `quantiles` task. Memory of a sketch: 524 bytes times width times depth.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantilesOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// At most so many keys, 1 to [`crate::aggregator::MOST_ROWS`].
    #[serde(default = "hundred")]
    k: usize,
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
    5
}

/// A `quantiles` task.
struct PacketSizes {
    schema: Arc<Schema>,
    k: usize,
    shape: Shape,
}

/// The columns, by what they tell of the bytes of packets.
const COLUMNS: [&str; 9] =
    ["p50", "p50_lower", "p50_upper", "p90", "p90_lower", "p90_upper", "p99", "p99_lower", "p99_upper"];

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let QuantilesOptions { key_fields, k, width, depth, seed } = options.read()?;
    let key = options.base_fields("key_fields", &key_fields)?;
    options.check_rows("k", k)?;
    let shape = shape(options, width, depth, seed)?;
    let mut values = vec![ValueColumn { name: "packets", kind: ValueKind::Count }];
    values.extend(COLUMNS.map(|name| ValueColumn { name, kind: ValueKind::Bytes }));
    let schema = Arc::new(Schema { key, values, order_by: 0, counts_every_packet: false });
    Ok(Box::new(PacketSizes { schema, k, shape }))
}

impl Aggregator for PacketSizes {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let (mask, shape) = (self.schema.key.mask(), self.shape);
        // Groups do not have the sizes of single packets.
        sketched(flow, (self.schema(), self.k), None, move || Lengths { mask, sizes: Sizes::new(shape) })
    }
}

struct Lengths {
    mask: Mask,
    sizes: Sizes,
}

impl Sketch for Lengths {
    fn prefetch(&self, packet: &Packet) {
        with_key(self.mask, packet, |wide, key| self.sizes.prefetch(wide, key, packet.length));
    }

    fn update(&mut self, packet: &Packet, weight: Weight) {
        with_key(self.mask, packet, |wide, key| {
            let size = u32::try_from(weight.bytes / weight.packets.max(1)).unwrap_or(u32::MAX);
            self.sizes.update(wide, key, (size, weight.packets), packet.fingerprint());
        });
    }

    fn merge(&mut self, words: &[u64]) -> Result<(), &'static str> {
        self.sizes.merge(words)
    }

    fn clear(&mut self) {
        self.sizes.clear();
    }

    fn words(&self) -> Vec<u64> {
        self.sizes.words()
    }

    fn rows(&self, rows: &mut Rows) {
        for found in self.sizes.found() {
            let (packets, [p50, p90, p99]) = found.value;
            let [a, b, c] = [p50, p90, p99].map(|size| [size.value, size.lower, size.upper]);
            push(rows, &found, [packets.value, a[0], a[1], a[2], b[0], b[1], b[2], c[0], c[1], c[2]]);
        }
    }
}
