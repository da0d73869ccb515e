//! `top_k`: the keys with the most packets or bytes over a horizon, exact.

use crate::aggregator::{Aggregator, Flow, Metric, Options, OptionsError};
use crate::block::Block;
use crate::groups;
use crate::key::{Compact, Key, KeyFields, Mask};
use crate::rows::{Schema, ValueColumn, ValueKind};
use crate::standing::{Answer, Part, Rows, answers, by_window, first, indexed, on_turns, slide};
use crate::window::{Epoch, Horizon, Windowing};
use differential_dataflow::operators::CountTotal;
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of a `top_k` task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TopKOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// What keys are ordered by.
    #[serde(default)]
    metric: Metric,
    /// How many keys, 1 to [`crate::aggregator::MOST_ROWS`].
    #[serde(default = "ten")]
    k: usize,
    /// How far back.
    #[serde(default)]
    horizon: Horizon,
}

fn ten() -> usize {
    10
}

/// A `top_k` task.
struct TopK {
    schema: Arc<Schema>,
    metric: Metric,
    k: usize,
    horizon: Horizon,
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let TopKOptions { key_fields, metric, k, horizon } = options.read()?;
    let key = options.fields("key_fields", &key_fields)?;
    options.check_rows("k", k)?;
    let values = [("packets", ValueKind::Count), ("bytes", ValueKind::Bytes)];
    let values = values.map(|(name, kind)| ValueColumn { name, kind }).to_vec();
    let schema = Schema { key, values, order_by: metric.of(0, 1), counts_every_packet: false };
    Ok(Box::new(TopK { schema: Arc::new(schema), metric, k, horizon }))
}

impl Aggregator for TopK {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.schema.key.mask()]
    }

    fn reach(&self, windowing: Windowing) -> u64 {
        self.horizon.windows(windowing) - 1
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let reach = self.reach(flow.windowing());
        let groups = flow.groups(self.schema.key.mask());
        if reach == 0 {
            let (metric, k) = (self.metric, self.k);
            let leading = by_window(groups, move |blocks| leading(blocks, metric, k));
            return first(leading, self.schema(), k);
        }
        let sums = slide(flow, groups, reach, Sums { reach });
        let totals = on_turns(flow.scope(), "Totals", sums, |keys| indexed(keys).count_total());
        let ranks = Ranks {
            fields: self.schema.key.clone(),
            metric: self.metric,
            k: self.k,
            compact: BTreeMap::new(),
            others: BTreeMap::new(),
        };
        first(answers(flow, totals, None, ranks), self.schema(), self.k)
    }
}

/// The first `k` of a window's groups, and those that are as large as the last of them.
fn leading(blocks: &[Block], metric: Metric, k: usize) -> Rows {
    let mut all = Vec::new();
    for block in blocks {
        groups::visit(block, |_, [packets, bytes, ..]| all.push(metric.of(packets, bytes)));
    }
    let least = match all.len().checked_sub(k) {
        Some(at) if at > 0 => *all.select_nth_unstable(at).1,
        _ => 0,
    };
    let mut rows = Rows::default();
    for block in blocks {
        groups::visit(block, |key, [packets, bytes, ..]| {
            if metric.of(packets, bytes) >= least {
                rows.push(&key, &[packets, bytes]);
            }
        });
    }
    rows
}

/// Packets and bytes of all windows of the horizon.
struct Sums {
    reach: u64,
}

/// Packets and bytes.
type Sum = (i64, i64);

impl Part for Sums {
    type Weight = Sum;

    fn stage(&self, age: u64) -> Option<u8> {
        (age <= self.reach).then_some(0)
    }

    fn weight(&self, _: u8, packets: u64, bytes: u64) -> Sum {
        (packets as i64, bytes as i64)
    }
}

/// The keys of this worker in their order, compact ones apart from all others.
struct Ranks {
    fields: KeyFields,
    metric: Metric,
    k: usize,
    compact: Ordered<Compact>,
    others: Ordered<Box<[u128]>>,
}

/// Keys by rank, then by what orders keys.
type Ordered<P> = BTreeMap<(Reverse<u64>, P), (Key, Sum)>;

fn put<P: Ord>(ranks: &mut Ordered<P>, place: (Reverse<u64>, P), of: (Key, Sum), by: isize) {
    if by > 0 {
        ranks.insert(place, of);
    } else {
        ranks.remove(&place);
    }
}

impl Answer<(Key, Sum)> for Ranks {
    fn change(&mut self, (key, sum): (Key, Sum), by: isize) {
        let rank = Reverse(self.metric.of(sum.0, sum.1) as u64);
        match key {
            Key::Compact(words) => {
                put(&mut self.compact, (rank, self.fields.compact_order(&words)), (key, sum), by);
            }
            _ => put(&mut self.others, (rank, self.fields.order(&key)), (key, sum), by),
        }
    }

    fn rows(&mut self, _: &[Block], rows: &mut Rows) {
        let firsts = self.compact.values().take(self.k).chain(self.others.values().take(self.k));
        for (key, (packets, bytes)) in firsts {
            rows.push(key, &[*packets as u64, *bytes as u64]);
        }
    }
}
