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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::{Task, build_tasks};
    use crate::groups::{Archive, Closed, Packets};
    use crate::key::{Field, Key};
    use crate::packet::{Address, Packet, Transport};
    use crate::window::{Watermark, Windowing};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use timely::Accountable;
    use timely::container::NoopBuilder;
    use timely::dataflow::Scope;
    use timely::dataflow::channels::pact::Pipeline;
    use timely::dataflow::operators::generic::operator::{Operator, source};

    const LENGTH: u64 = 100;
    const LATENESS: u64 = 50;

    /// The last rows of each window and task, as words, and the epoch in which they came.
    type Answers = BTreeMap<(Epoch, usize), (Vec<Vec<u64>>, Epoch)>;

    #[derive(Default)]
    struct InMemory(BTreeMap<Epoch, Vec<Block>>);

    impl Archive for InMemory {
        fn put(&mut self, block: Block) {
            self.0.entry(block.window).or_default().push(block);
        }

        fn take(&mut self, window: Epoch) -> Vec<Block> {
            self.0.remove(&window).unwrap_or_default()
        }
    }

    fn keys() -> [Vec<Field>; 4] {
        let all = Field::SrcIp { v4: 32, v6: 128 };
        [
            vec![all, Field::DstPort, Field::Protocol],
            vec![Field::SrcIp { v4: 8, v6: 16 }],
            vec![Field::DstPort],
            vec![Field::Vlan, Field::IpVersion],
        ]
    }

    fn tasks() -> Vec<Task> {
        let task = |(number, fields): (usize, Vec<Field>)| Task {
            name: number.to_string().into(),
            aggregator: Arc::new(Exact::new(KeyFields::new(fields).expect("fields"))),
        };
        keys().into_iter().enumerate().map(task).collect()
    }

    /// A source that sends all of a worker's containers, each at its epoch.
    fn send<'s, C: Accountable + Clone + Default + 'static>(
        scope: Scope<'s, Epoch>,
        mut containers: Vec<(Epoch, C)>,
    ) -> Stream<'s, Epoch, C> {
        source::<_, NoopBuilder<C>, _, _>(scope, "Send", move |capability, _| {
            let mut capability = Some(capability);
            move |output| {
                let Some(capability) = capability.take() else { return };
                for (epoch, mut container) in containers.drain(..) {
                    output.session_with_builder(&capability.delayed(&epoch)).give_container(&mut container);
                }
            }
        })
    }

    /// The answers of so many workers that are dealt the packets, in stream order, one each in turn.
    fn run(workers: usize, packets: &[Packet]) -> Answers {
        let mut watermark = Watermark::new(Windowing::Every(LENGTH), LATENESS, 0, u64::MAX);
        let epochs: Vec<(Epoch, Packet)> =
            packets.iter().map(|packet| (watermark.observe(packet.time), *packet)).collect();
        let blocks: Arc<Mutex<Vec<(Epoch, Block)>>> = Arc::default();
        let shared = blocks.clone();
        let guards = timely::execute(timely::Config::process(workers), move |worker| {
            let (index, peers, blocks) = (worker.index(), worker.peers(), shared.clone());
            let (mut batches, mut late) = (Vec::new(), Vec::new());
            for (closed, packet) in epochs.iter().skip(index).step_by(peers) {
                let window = packet.time / LENGTH;
                batches.push((window.max(*closed), Packets { window, packets: Arc::new(vec![*packet]) }));
                if window < *closed {
                    late.extend((0..peers).map(|to| (*closed, Block { to, window, ..Block::default() })));
                }
            }
            worker.dataflow(|scope| {
                let (packets, late) = (send(scope, batches), send(scope, late));
                let mut archive = || Some(Box::<InMemory>::default() as Box<dyn Archive>);
                let closed = Closed { archive: &mut archive, recall: None };
                let rows = build_tasks(scope, packets, &late, &tasks(), closed);
                rows.unary::<NoopBuilder<Block>, _, _, _>(Pipeline, "Collect", move |_, _| {
                    move |input, _| {
                        input.for_each(|message, block| {
                            let epoch = *message.least().expect("a time");
                            blocks.lock().expect("a lock").push((epoch, std::mem::take(block)));
                        });
                    }
                });
            });
            while worker.has_dataflows() {
                worker.step_or_park(None);
            }
        });
        guards.expect("workers").join().into_iter().for_each(|result| result.expect("a worker"));
        let mut answers = Answers::new();
        let mut blocks = std::mem::take(&mut *blocks.lock().expect("a lock"));
        blocks.sort_by_key(|(epoch, _)| *epoch);
        for (epoch, block) in blocks {
            let (rows, last) = answers.entry((block.window, block.task)).or_default();
            if *last != epoch {
                rows.clear();
            }
            *last = epoch;
            let words = if block.wide { 9 } else { 6 };
            rows.extend(block.words.chunks_exact(words).map(<[u64]>::to_vec));
            rows.sort();
        }
        answers
    }

    /// The same by one map over all packets.
    fn naive(packets: &[Packet]) -> BTreeMap<(Epoch, usize), Vec<Vec<u64>>> {
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
        let mut rows: BTreeMap<(Epoch, usize), Vec<Vec<u64>>> = BTreeMap::new();
        for ((window, task, key), counts) in groups {
            rows.entry((window, task)).or_default().push([key, counts.to_vec()].concat());
        }
        rows.values_mut().for_each(|rows| rows.sort());
        rows
    }

    fn packet(time: u64, source: Address, port: u16, length: u32) -> Packet {
        let transport = Transport::new(9, port, 6, 2, port % 3, if source.is_v4() { 4 } else { 6 });
        Packet { time, transport, source, destination: Address::v4(1), length }
    }

    fn rows_of(answers: Answers) -> BTreeMap<(Epoch, usize), Vec<Vec<u64>>> {
        answers.into_iter().map(|(place, (rows, _))| (place, rows)).collect()
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
        fn any_packets_in_any_order_equal_a_naive_count_on_one_two_and_three_workers(
            packets in proptest::collection::vec((0u64..1500, 0u32..6, any::<bool>(), 0u16..4, 0u32..2000), 0..120)
        ) {
            let packets: Vec<Packet> = packets.into_iter().map(|(time, host, v6, port, length)| {
                let source = if v6 { Address(u128::from(host) << 110) } else { Address::v4(host << 23) };
                packet(time, source, port, length)
            }).collect();
            let expected = naive(&packets);
            for workers in 1..=3 {
                prop_assert_eq!(&rows_of(run(workers, &packets)), &expected, "{} workers", workers);
            }
        }
    }
}
