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
}

/// Reads a task's options.
pub(crate) fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let ExactOptions { key_fields } = options.read()?;
    Ok(Box::new(Exact::new(options.fields("key_fields", &key_fields)?)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Field, Key};
    use crate::packet::{Address, Packet};
    use crate::trial::{self, Answers, LENGTH, Rows, any_packets, packet};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn keys() -> [Vec<Field>; 4] {
        let all = Field::SrcIp { v4: 32, v6: 128 };
        [
            vec![all, Field::DstPort, Field::Protocol],
            vec![Field::SrcIp { v4: 8, v6: 16 }],
            vec![Field::DstPort],
            vec![Field::Vlan, Field::IpVersion],
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
                let key = match KeyFields::new(fields).expect("fields").mask().of(packet) {
                    Key::Compact(key) => key.to_vec(),
                    Key::Wide(key) => key.to_vec(),
                };
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
    }
}
