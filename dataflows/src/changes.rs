//! `changes`: keys whose packets or bytes over a horizon are more than a factor away from those of the horizon before.

use crate::aggregator::{Aggregator, Flow, Metric, Options, OptionsError};
use crate::block::Block;
use crate::key::Mask;
use crate::rows::{Schema, ValueColumn};
use crate::standing::{Part, Records, answers, indexed, on_turns, slide};
use crate::window::{Epoch, Horizon, Windowing};
use differential_dataflow::operators::CountTotal;
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of a `changes` task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// What is compared.
    #[serde(default)]
    metric: Metric,
    /// The factor, at least 1, to thousandths.
    threshold: f64,
    /// Keys that have less than this now and had less before are left out.
    #[serde(default)]
    at_least: u64,
    /// What is compared: the horizon up to the window, and the one before it.
    #[serde(default)]
    horizon: Horizon,
}

/// A `changes` task.
struct Moves {
    schema: Arc<Schema>,
    metric: Metric,
    moved: Moved,
    horizon: Horizon,
}

/// Which keys have moved.
#[derive(Clone, Copy)]
struct Moved {
    /// The factor in thousandths.
    thousandths: u64,
    at_least: u64,
}

impl Moved {
    fn holds(self, before: u64, now: u64) -> bool {
        let (less, more) = (before.min(now), before.max(now));
        let moved = u128::from(more) * 1000 > u128::from(less) * u128::from(self.thousandths);
        moved && more >= self.at_least
    }
}

/// Factors up to this are exact to thousandths.
const MOST_FACTOR: f64 = 1e12;

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let ChangesOptions { key_fields, metric, threshold, at_least, horizon } = options.read()?;
    let key = options.fields("key_fields", &key_fields)?;
    if !(1.0..=MOST_FACTOR).contains(&threshold) {
        let why = format!("{threshold} is no factor; 1 to {MOST_FACTOR:e}");
        return Err(options.refuse("threshold", why));
    }
    let moved = Moved { thousandths: (threshold * 1000.0).round() as u64, at_least };
    let values = ["before", "now", "change"].map(|name| ValueColumn { name, kind: metric.kind() }).to_vec();
    let schema = Schema { key, values, order_by: 2, counts_every_packet: false };
    Ok(Box::new(Moves { schema: Arc::new(schema), metric, moved, horizon }))
}

impl Aggregator for Moves {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.schema.key.mask()]
    }

    fn reach(&self, windowing: Windowing) -> u64 {
        match windowing {
            Windowing::All => 0,
            Windowing::Every(_) => 2 * self.horizon.windows(windowing) - 1,
        }
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let part = Sides { windows: self.horizon.windows(flow.windowing()), metric: self.metric };
        let groups = flow.groups(self.schema.key.mask());
        let sides = slide(flow, groups, self.reach(flow.windowing()), part);
        let moved = self.moved;
        let moves = on_turns(flow.scope(), "Changes", sides, |keys| {
            indexed(keys)
                .count_total()
                .filter(move |(_, (before, now))| moved.holds(*before as u64, *now as u64))
        });
        let row = |(before, now): &Side| {
            let (before, now) = (*before as u64, *now as u64);
            [before, now, before.abs_diff(now)]
        };
        answers(flow, moves, None, Records::new(row))
    }
}

/// What a key had before, and has now.
type Side = (i64, i64);

/// The metric of the horizon and of the one before it.
struct Sides {
    windows: u64,
    metric: Metric,
}

impl Part for Sides {
    type Weight = Side;

    fn stage(&self, age: u64) -> Option<u8> {
        (age < 2 * self.windows).then_some(u8::from(age < self.windows))
    }

    fn weight(&self, stage: u8, packets: u64, bytes: u64) -> Side {
        let amount = self.metric.of(packets, bytes) as i64;
        if stage == 1 { (0, amount) } else { (amount, 0) }
    }
}
