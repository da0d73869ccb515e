//! Tests of aggregators: the dataflow on some workers, over packets in the order of one stream.

use crate::aggregator::{Aggregator, Task, build_tasks};
use crate::block::Block;
use crate::groups::{Archive, Closed, Observations};
use crate::measure::Weight;
use crate::packet::{Address, Packet, Transport};
use crate::turns::touches;
use crate::window::{Epoch, Watermark, Windowing};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use timely::Accountable;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::{Operator, source};
use timely::dataflow::{Scope, Stream};

/// Length of a window.
pub(crate) const LENGTH: u64 = 100;
const LATENESS: u64 = 50;

/// The last rows of each window and task, as words, and the epoch in which they came.
pub(crate) type Answers = BTreeMap<(Epoch, usize), (Vec<Vec<u64>>, Epoch)>;
/// The rows alone.
pub(crate) type Rows = BTreeMap<(Epoch, usize), Vec<Vec<u64>>>;

#[derive(Default)]
struct InMemory(BTreeMap<Epoch, Vec<Block>>);

impl Archive for InMemory {
    fn put(&mut self, block: Block) {
        self.0.entry(block.window).or_default().push(block);
    }

    fn take(&mut self, window: Epoch) -> Vec<Block> {
        self.0.remove(&window).unwrap_or_default()
    }

    fn forget(&mut self, window: Epoch) {
        self.0.remove(&window);
    }
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
pub(crate) fn run(
    workers: usize,
    packets: &[Packet],
    aggregators: impl Fn() -> Vec<Box<dyn Aggregator>> + Send + Sync + 'static,
) -> Answers {
    let one = |packet: &Packet| Observations::packets(packet.time / LENGTH, vec![*packet]);
    let observations = packets.iter().map(|packet| (packet.time, one(packet))).collect();
    run_observations(workers, observations, aggregators)
}

/// The same of observations, each batch with the time of the last packet that was seen when it was made.
pub(crate) fn run_observations(
    workers: usize,
    observations: Vec<(u64, Observations)>,
    aggregators: impl Fn() -> Vec<Box<dyn Aggregator>> + Send + Sync + 'static,
) -> Answers {
    let windowing = Windowing::Every(LENGTH);
    let mut watermark = Watermark::new(windowing, LATENESS, 0, u64::MAX);
    let epochs: Vec<(Epoch, Observations)> =
        observations.into_iter().map(|(time, batch)| (watermark.observe(time), batch)).collect();
    let blocks: Arc<Mutex<Vec<(Epoch, Block)>>> = Arc::default();
    let shared = blocks.clone();
    let widths: Vec<usize> =
        aggregators().iter().map(|aggregator| aggregator.schema().values.len()).collect();
    let guards = timely::execute(timely::Config::process(workers), move |worker| {
        let (index, peers, blocks) = (worker.index(), worker.peers(), shared.clone());
        let (mut batches, mut touched) = (Vec::new(), Vec::new());
        for (closed, batch) in epochs.iter().skip(index).step_by(peers) {
            let window = batch.window;
            batches.push((window.max(*closed), batch.clone()));
            touched.push((window.max(*closed), touches(window)));
        }
        let task = |(number, aggregator): (usize, Box<dyn Aggregator>)| Task {
            name: number.to_string().into(),
            aggregator: Arc::from(aggregator),
        };
        let tasks: Vec<Task> = aggregators().into_iter().enumerate().map(task).collect();
        worker.dataflow(|scope| {
            let (packets, touched) = (send(scope, batches), send(scope, touched));
            let archive = || Some(Box::<InMemory>::default() as Box<dyn Archive>);
            let closed = Closed { archive: Rc::new(archive), recall: None, keeps: false };
            let rows = build_tasks(scope, packets, touched, (&tasks, windowing), closed);
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
    for (epoch, block) in &blocks {
        // What comes again comes whole: what is not there any more is gone.
        for task in 0..widths.len() {
            let (rows, last) = answers.entry((block.window, task)).or_default();
            if last != epoch {
                rows.clear();
            }
            *last = *epoch;
        }
        let words = widths[block.task] + block.layout.words();
        let (rows, _) = answers.entry((block.window, block.task)).or_default();
        let Ok(()) = block.visit_words(|several| {
            rows.extend(several.chunks_exact(words).map(<[u64]>::to_vec));
            Ok::<(), std::convert::Infallible>(())
        });
        rows.sort();
    }
    answers
}

/// A packet from a source to 0.0.0.1.
pub(crate) fn packet(time: u64, source: Address, port: u16, length: u32) -> Packet {
    let transport = Transport::new(9, port, 6, 2, port % 3, if source.is_v4() { 4 } else { 6 });
    Packet { time, transport, source, destination: Address::v4(1), length }
}

/// Few hosts and ports over fifteen windows, in any order.
pub(crate) fn any_packets() -> impl Strategy<Value = Vec<Packet>> {
    let any = (0u64..1500, 0u32..6, any::<bool>(), 0u16..4, 0u32..2000).prop_map(
        |(time, host, v6, port, length)| {
            let source = if v6 { Address(u128::from(host) << 110) } else { Address::v4(host << 23) };
            packet(time, source, port, length)
        },
    );
    proptest::collection::vec(any, 0..120)
}

/// The packets put together at random into observations of many: those of one window and number that share all fields,
/// where the last of them was. Sizes of single packets are gone.
pub(crate) fn grouped(packets: &[Packet], numbers: &[u8]) -> Vec<(u64, Observations)> {
    let mut groups: Vec<(u64, Packet, Weight, u8)> = Vec::new();
    for (packet, number) in packets.iter().zip(numbers.iter().cycle()) {
        let is_same = |(_, other, weight, of): &(u64, Packet, Weight, u8)| {
            let fields = |packet: &Packet| (packet.source, packet.destination, packet.transport);
            fields(other) == fields(packet) && weight.first / LENGTH == packet.time / LENGTH && of == number
        };
        let weight = Weight::of(packet);
        match groups.iter().position(is_same) {
            Some(at) => {
                let (_, fields, all, number) = groups.remove(at);
                let all = Weight {
                    packets: all.packets + weight.packets,
                    bytes: all.bytes + weight.bytes,
                    first: all.first.min(weight.first),
                    last: all.last.max(weight.last),
                };
                groups.push((packet.time, fields, all, number));
            }
            None => groups.push((packet.time, *packet, weight, *number)),
        }
    }
    let observation = |(seen, fields, weight, _): (u64, Packet, Weight, u8)| {
        let fields = Packet { time: 0, length: 0, ..fields };
        let (packets, weights) = (Arc::new(vec![fields]), Arc::new(vec![weight]));
        (seen, Observations { window: weight.first / LENGTH, packets, weights, ..Observations::default() })
    };
    groups.into_iter().map(observation).collect()
}

/// Answers without their epochs.
pub(crate) fn rows_of(answers: Answers) -> Rows {
    let rows = answers.into_iter().map(|(place, (rows, _))| (place, rows));
    rows.filter(|(_, rows)| !rows.is_empty()).collect()
}
