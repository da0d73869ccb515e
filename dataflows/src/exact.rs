//! `exact`: packets, bytes, first and last time, or other measures, of every key, with nothing estimated and nothing left
//! out.
//!
//! The counting itself is in [`crate::groups`]: an exact task is the groups of its key fields, given out as rows.

use crate::aggregator::{Aggregator, Flow, Options, OptionsError};
use crate::block::{Block, BlockBuilder};
use crate::groups::GroupSet;
use crate::key::{KeyFields, Mask};
use crate::measure::{BYTES, DEFAULT, Measure, Measures, PACKETS};
use crate::rows::{Schema, ValueColumn};
use crate::window::Epoch;
use serde::Deserialize;
use std::sync::Arc;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;

/// Options of an `exact` task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExactOptions {
    /// The key's fields in column order, see [`crate::field::FIELDS`].
    key_fields: Vec<String>,
    /// The value columns in their order, see [`crate::measure::MEASURES`].
    measures: Option<Vec<String>>,
    /// The measure that orders the rows, largest first; `bytes` where that is one of them, else the first.
    order_by: Option<String>,
}

/// An exact task.
#[derive(Debug)]
pub struct Exact {
    schema: Arc<Schema>,
    set: GroupSet,
    /// The words of a group's values that make a row; `None` where they are all, in their order.
    shown: Option<Vec<usize>>,
}

impl Exact {
    /// A task over these key fields, with the default measures.
    pub fn new(key: KeyFields) -> Self {
        Self::with(key, &DEFAULT, None, Measures::default())
    }

    /// A task with these value columns, of which `measures` are made; the one of this number orders the rows.
    fn with(key: KeyFields, shown: &[&'static Measure], order_by: Option<usize>, measures: Measures) -> Self {
        let values: Vec<_> =
            shown.iter().map(|measure| ValueColumn { name: measure.name, kind: measure.kind }).collect();
        let words: Vec<usize> = shown.iter().filter_map(|measure| measures.word_of(measure.name)).collect();
        let all = 0..DEFAULT.len() + measures.more();
        let named = |name| values.iter().position(|value| value.name == name);
        let order_by = order_by.or_else(|| named(BYTES.name)).unwrap_or(0);
        let counts_every_packet = named(PACKETS.name).is_some();
        let set = GroupSet { mask: key.mask(), measures };
        let shown = (!words.iter().copied().eq(all)).then_some(words);
        Self { schema: Arc::new(Schema { key, values, order_by, counts_every_packet }), set, shown }
    }
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let ExactOptions { key_fields, measures, order_by } = options.read()?;
    let key = options.fields("key_fields", &key_fields)?;
    let shown = match &measures {
        None => DEFAULT.to_vec(),
        Some(names) => options.measures("measures", names)?,
    };
    let order_by = match order_by {
        None => None,
        Some(name) => {
            let found = shown.iter().position(|measure| measure.name == name);
            let known = || shown.iter().map(|measure| measure.name).collect::<Vec<_>>().join(", ");
            Some(found.ok_or_else(|| {
                options.refuse("order_by", format!("`{name}` is no column of this task; one of {}", known()))
            })?)
        }
    };
    let measures = Measures::new(&shown, &options.vocabulary.plan);
    let measures = measures.map_err(|error| options.refuse("measures", error))?;
    Ok(Box::new(Exact::with(key, &shown, order_by, measures)))
}

impl Aggregator for Exact {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.set.mask]
    }

    fn measures(&self) -> Measures {
        self.set.measures.clone()
    }

    fn shows_groups(&self) -> bool {
        true
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let groups = flow.measured_groups(&self.set);
        match &self.shown {
            None => groups,
            Some(shown) => pick(groups, shown.clone()),
        }
    }
}

/// Rows of these words of each group's values.
fn pick<'s>(groups: Stream<'s, Epoch, Block>, shown: Vec<usize>) -> Stream<'s, Epoch, Block> {
    groups.unary::<BlockBuilder, _, _, _>(Pipeline, "Pick", move |_, _| {
        move |input, output| {
            input.for_each(|message, block| {
                let key = block.layout.words();
                let width = key + shown.len();
                let mut words = Vec::with_capacity(block.words.len() / block.width.max(1) * width);
                for row in block.words.chunks_exact(block.width.max(1)) {
                    let (key, values) = row.split_at(key);
                    words.extend_from_slice(key);
                    words.extend(shown.iter().map(|word| values[*word]));
                }
                (block.words, block.width) = (words.into(), width);
                output.session_with_builder(&message).give_container(block);
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{DST_PORT, IP_VERSION, PROTOCOL, SRC_IP, VLAN};
    use crate::key::KeyColumn;
    use crate::packet::{Address, Packet};
    use crate::trial::{self, Answers, LENGTH, Rows, any_packets, packet};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn keys() -> [Vec<KeyColumn>; 4] {
        let base = KeyColumn::base;
        [
            vec![base(&SRC_IP), base(&DST_PORT), base(&PROTOCOL)],
            vec![KeyColumn::prefix_of(&SRC_IP, (8, 16))],
            vec![base(&DST_PORT)],
            vec![base(&VLAN), base(&IP_VERSION)],
        ]
    }

    fn run(workers: usize, packets: &[Packet]) -> Answers {
        let exact =
            |fields| Box::new(Exact::new(KeyFields::new(fields).expect("fields"))) as Box<dyn Aggregator>;
        trial::run(workers, packets, move || keys().into_iter().map(exact).collect())
    }

    /// The same by one map over all packets.
    fn naive(packets: &[Packet]) -> Rows {
        let mut groups: BTreeMap<(Epoch, usize, Vec<u64>), [u64; 4]> = BTreeMap::new();
        for packet in packets {
            for (task, fields) in keys().into_iter().enumerate() {
                let key = KeyFields::new(fields).expect("fields").mask().of(packet, &[]).words().to_vec();
                let counts = groups.entry((packet.time / LENGTH, task, key)).or_insert([0, 0, u64::MAX, 0]);
                let [packets, bytes, first, last] = *counts;
                let (time, length) = (packet.time, u64::from(packet.length));
                *counts = [packets + 1, bytes + length, first.min(time), last.max(time)];
            }
        }
        let mut rows = Rows::new();
        for ((window, task, key), counts) in groups {
            rows.entry((window, task)).or_default().push([key, counts.to_vec()].concat());
        }
        rows.values_mut().for_each(|rows| rows.sort());
        rows
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(run(2, &[]), Answers::new());
    }

    #[test]
    fn a_window_holds_its_packets_and_late_ones_bring_it_again_whole() {
        let source = Address::v4(0x0a00_0001);
        let packets = [
            packet(10, source, 80, 60),
            packet(20, source, 80, 40),
            packet(350, source, 80, 1),
            packet(15, source, 80, 100),
            packet(999, source, 80, 1),
        ];
        for workers in 1..=3 {
            let answers = run(workers, &packets);
            let (rows, epoch) = &answers[&(0, 2)];
            assert_eq!(*rows, [[0, 80 << 32, 3, 200, 10, 20]], "{workers} workers");
            assert_eq!(*epoch, 3, "the late packet is sent in the first epoch that is open");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_packets_in_any_order_equal_a_naive_count_on_one_two_and_three_workers(packets in any_packets()) {
            let expected = naive(&packets);
            for workers in 1..=3 {
                prop_assert_eq!(&trial::rows_of(run(workers, &packets)), &expected, "{} workers", workers);
            }
        }

        #[test]
        fn packets_grouped_before_at_random_give_the_same(
            packets in any_packets(), numbers in proptest::collection::vec(0u8..3, 1..9),
        ) {
            let measured = || {
                let shown = ["fin", "syn", "packets", "tcp_flags_or", "bytes"];
                let options = serde_json::json!({"key_fields": ["SrcIP", "VLAN"], "measures": shown});
                let options: BTreeMap<String, serde_json::Value> =
                    serde_json::from_value(options).expect("options");
                from_options(&options.into()).expect("a task")
            };
            let tasks = move || {
                let exact = |fields| Box::new(Exact::new(KeyFields::new(fields).expect("fields"))) as Box<dyn Aggregator>;
                keys().into_iter().map(exact).chain([measured()]).collect()
            };
            let expected = trial::rows_of(trial::run(1, &packets, tasks));
            for workers in 1..=3 {
                let found = trial::run_observations(workers, trial::grouped(&packets, &numbers), tasks);
                prop_assert_eq!(&trial::rows_of(found), &expected, "{} workers", workers);
            }
        }
    }
}
