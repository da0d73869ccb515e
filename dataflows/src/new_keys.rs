//! `new_keys`: keys of a window that none of the windows of the horizon before it has: first contact.

use crate::aggregator::{Aggregator, Flow, Options, OptionsError};
use crate::block::Block;
use crate::exact::Exact;
use crate::groups::{self, Counts};
use crate::key::{Key, Mask};
use crate::rows::Schema;
use crate::standing::{Answer, Part, Rows, answers, indexed, on_turns, slide};
use crate::window::{Epoch, Horizon, Windowing};
use differential_dataflow::operators::CountTotal;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use timely::dataflow::Stream;

/// Options of a `new_keys` task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeysOptions {
    /// The key's fields in column order.
    key_fields: Vec<String>,
    /// How far back, before the window itself.
    #[serde(default)]
    horizon: Horizon,
}

/// A `new_keys` task.
struct NewKeys {
    schema: Arc<Schema>,
    horizon: Horizon,
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let NewKeysOptions { key_fields, horizon } = options.read()?;
    let key = options.fields("key_fields", &key_fields)?;
    let schema = Schema { counts_every_packet: false, ..(*Exact::new(key).schema()).clone() };
    Ok(Box::new(NewKeys { schema: Arc::new(schema), horizon }))
}

impl Aggregator for NewKeys {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.schema.key.mask()]
    }

    fn reach(&self, windowing: Windowing) -> u64 {
        match windowing {
            Windowing::All => 0,
            Windowing::Every(_) => self.horizon.windows(windowing),
        }
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let reach = self.reach(flow.windowing());
        let groups = flow.groups(self.schema.key.mask());
        let seen = slide(flow, groups.clone(), reach, Seen { reach });
        let new = on_turns(flow.scope(), "NewKeys", seen, |keys| {
            let counted = indexed(keys).count_total();
            counted.filter(|(_, (now, before))| *now > 0 && *before == 0).map(|(key, _)| key)
        });
        answers(flow, new, Some(groups), New::default())
    }
}

/// That a key is there now, and in how many windows before.
struct Seen {
    reach: u64,
}

impl Part for Seen {
    type Weight = (isize, isize);

    fn stage(&self, age: u64) -> Option<u8> {
        (age <= self.reach).then_some(u8::from(age > 0))
    }

    fn weight(&self, stage: u8, _: u64, _: u64) -> (isize, isize) {
        if stage == 0 { (1, 0) } else { (0, 1) }
    }
}

/// The new keys of the window.
#[derive(Default)]
struct New(BTreeSet<Key>);

impl Answer<Key> for New {
    fn change(&mut self, key: Key, by: isize) {
        if by > 0 {
            self.0.insert(key);
        } else {
            self.0.remove(&key);
        }
    }

    fn rows(&mut self, groups: &[Block], rows: &mut Rows) {
        for block in groups {
            groups::visit(block, |key, values: Counts| {
                if self.0.contains(&key) {
                    rows.push(&key, &values);
                }
            });
        }
    }
}
