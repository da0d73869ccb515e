//! What a window costs a standing query when few of its keys change: a million keys live in the horizon, and one in a
//! hundred changes in a window. Prints the first load, a later window, and their ratio; memory before and after.

#![allow(missing_docs)]

use dataflows::aggregator::{Registry, Task, build_tasks};
use dataflows::block::BlockBuilder;
use dataflows::groups::{Closed, Observations};
use dataflows::packet::{Address, Packet, Transport};
use dataflows::turns::touches;
use dataflows::window::Windowing;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use timely::container::NoopBuilder;
use timely::dataflow::InputHandle;
use timely::dataflow::operators::{Input, Probe};

const LIVE: u32 = 1_000_000;
const CHANGING: u32 = LIVE / 100;
const WINDOWS: u64 = 60;
const WORKERS: usize = 2;

/// A packet of a key's, in a window.
fn packet(key: u32, window: u64) -> Packet {
    let source = Address::v4(key.wrapping_mul(2_654_435_761));
    let transport = Transport::new(1024, (key % 50_000) as u16, 6, 0, 0, 4);
    Packet { time: window, transport, source, destination: Address::v4(key % 1000), length: 60 + key % 1400 }
}

/// Memory of this process in use, MiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Packets of a window: all keys in the first, then a hundredth of them, each time others.
fn keys(window: u64) -> impl Iterator<Item = u32> {
    let first = if window == 0 { 0 } else { (window as u32).wrapping_mul(CHANGING) % LIVE };
    first..first + if window == 0 { LIVE } else { CHANGING }
}

fn bench(kind: &'static str, options: serde_json::Value) {
    let guards = timely::execute(timely::Config::process(WORKERS), move |worker| {
        let (index, peers) = (worker.index(), worker.peers());
        let options: BTreeMap<String, serde_json::Value> =
            serde_json::from_value(options.clone()).expect("options");
        let aggregator = Registry::default().get(kind).expect("a type")(&options.into()).expect("options");
        let tasks = [Task { name: kind.into(), aggregator: Arc::from(aggregator) }];
        let mut input = InputHandle::<u64, NoopBuilder<Observations>>::new_with_builder();
        let mut news = InputHandle::<u64, BlockBuilder>::new_with_builder();
        let probe = worker.dataflow(|scope| {
            let (packets, touched) = (scope.input_from(&mut input), scope.input_from(&mut news));
            let closed = Closed { archive: Rc::new(|| None), recall: None, keeps: false };
            build_tasks(scope, packets, touched, (&tasks, Windowing::Every(1)), closed).probe().0
        });
        let mut times: Vec<Duration> = Vec::new();
        let mut memory = Vec::new();
        for window in 0..WINDOWS {
            let own: Vec<Packet> =
                keys(window).skip(index).step_by(peers).map(|key| packet(key, window)).collect();
            let began = Instant::now();
            for packets in own.chunks(512) {
                input.send_batch(&mut Observations::packets(window, packets.to_vec()));
            }
            news.send_batch(&mut touches(window));
            input.advance_to(window + 1);
            news.advance_to(window + 1);
            worker.step_or_park_while(None, || probe.less_than(&(window + 1)));
            times.push(began.elapsed());
            memory.push(resident());
        }
        (times, memory)
    });
    let runs: Vec<_> =
        guards.expect("workers").join().into_iter().map(|run| run.expect("a worker")).collect();
    let (times, memory) = &runs[0];
    let mut later = times[1..].to_vec();
    later.sort();
    let (first, median, most) = (times[0], later[later.len() / 2], later[later.len() - 1]);
    let mean = later.iter().sum::<Duration>() / later.len() as u32;
    println!(
        "{kind:9} first load {first:9.1?}; later windows: median {median:9.1?} ({:4.1} %), mean {mean:9.1?} ({:4.1} %), \
         most {most:9.1?}; memory {} MiB after the first, {} after {WINDOWS}",
        100.0 * median.as_secs_f64() / first.as_secs_f64(),
        100.0 * mean.as_secs_f64() / first.as_secs_f64(),
        memory[0],
        memory[memory.len() - 1],
    );
}

fn main() {
    let key = ["SrcIP"];
    for _ in 0..3 {
        bench("top_k", json!({"key_fields": key, "k": 10, "horizon": 1000}));
        bench(
            "fan_out",
            json!({"key_fields": ["DstIP"], "element_fields": key, "threshold": 500, "horizon": 1000}),
        );
    }
}
