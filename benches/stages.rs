//! One bench a stage of the hot path, in packets or rows a second on one core: read, decode, encode and decode
//! messages, group, sketch, exchange and merge, sort, format. The whole run against other programs is in `compare.py`.

#![allow(missing_docs)]

use bytes::Bytes;
use dataflows::aggregator::{Task, build_tasks};
use dataflows::block::{BlockBuilder, Words};
use dataflows::exact::Exact;
use dataflows::groups::{Closed, Observations};
use dataflows::key::{Key, KeyFields, Layout};
use dataflows::measure::Merges;
use dataflows::packet::Packet;
use dataflows::rows::{Snapshot, TaskRows, sort_words};
use dataflows::sketch::{CountMin, Distinct, Shape, Sizes};
use dataflows::table::Table;
use dataflows::turns::touches;
use dataflows::window::Windowing;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use netspectra::capture::Format;
use netspectra::decode::{Decoded, decode, general, link};
use netspectra::generate::{FrameSize, Options, write};
use netspectra::sinks::Writer;
use netspectra::sinks::csv::Csv;
use netspectra::sinks::folder::{Files, FolderWriter};
use netspectra::sinks::json::JsonLines;
use netspectra::sinks::parquet::Parquet;
use netspectra::sinks::text::Text;
use netspectra::wire::batch::{Batch, BatchBuilder, FULL, Header, Item};
use netspectra::wire::v1::Accounts;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use timely::dataflow::InputHandle;
use timely::dataflow::operators::{Input, Probe};

const PACKETS: u64 = 2_000_000;

/// A capture of minimum-size packets, about 200 k flows.
static CAPTURE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let options =
        Options { packets: PACKETS, flows: 250_000, size: FrameSize::Bytes(0), ..Options::default() };
    let mut bytes = Vec::new();
    write(&options, &mut bytes).expect("a vector takes all bytes");
    bytes
});

/// Its packets.
static DECODED: LazyLock<Vec<Packet>> = LazyLock::new(|| {
    let mut packets = Vec::new();
    frames(|link, bytes, time, length| {
        if let Decoded::Ip(packet) = decode(link, bytes, time, length) {
            packets.push(packet);
        }
    });
    packets
});

/// Words of its five-tuple groups with IPv4 addresses.
static GROUPS: LazyLock<Vec<Words>> = LazyLock::new(|| {
    let mut table = Table::<2, 6>::default();
    table.absorb(&keyed(), &Merges::default());
    table.into_chunks().map(|chunk| chunk.into_flattened().into()).collect()
});

fn five_tuple() -> KeyFields {
    KeyFields::parse(&["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]).expect("fields")
}

fn frames(mut visit: impl FnMut(netspectra::decode::LinkType, &[u8], u64, u32)) {
    let (mut format, header) = Format::open(&CAPTURE).expect("a capture");
    let bytes = &CAPTURE[header..];
    format.scan(bytes, |frame| {
        visit(frame.link, &bytes[frame.start..][..frame.captured as usize], frame.time, frame.length);
    });
}

fn keyed() -> Vec<[u64; 6]> {
    let mask = five_tuple().mask();
    let group = |packet: &Packet| match mask.of(packet, &[]) {
        Key::Compact([a, b]) => Some([a, b, 1, packet.length.into(), packet.time, packet.time]),
        _ => None,
    };
    DECODED.iter().filter_map(group).collect()
}

/// Its packets as a probe's messages.
static MESSAGES: LazyLock<Vec<Bytes>> = LazyLock::new(messages);

fn messages() -> Vec<Bytes> {
    let (mut builder, mut sent) = (BatchBuilder::new(0), 0);
    let batch = |packets: &[Packet]| {
        packets.iter().for_each(|packet| builder.push(packet, packet.time));
        let before = Accounts { sent, ..Accounts::default() };
        sent += packets.len() as u64;
        let after = Accounts { sent, ..Accounts::default() };
        let (probe, latest) = ("bench".into(), u64::MAX);
        builder.finish(Header {
            probe,
            first_packet: before.sent,
            latest,
            before,
            after,
            ..Header::default()
        })
    };
    DECODED.chunks(FULL).map(batch).collect()
}

fn task_rows() -> TaskRows {
    let schema = dataflows::aggregator::Aggregator::schema(&Exact::new(five_tuple()));
    let runs = vec![sort_words(GROUPS.clone(), Layout::Compact, &schema)];
    TaskRows { name: "flows".into(), schema, runs, kept: None }
}

#[divan::bench]
fn read_walk_records(bencher: Bencher) {
    LazyLock::force(&CAPTURE);
    bencher.counter(ItemsCount::new(PACKETS)).bench(|| {
        let mut latest = 0;
        frames(|_, _, time, _| latest = latest.max(time));
        latest
    });
}

#[divan::bench]
fn decode_fast(bencher: Bencher) {
    LazyLock::force(&CAPTURE);
    bencher.counter(ItemsCount::new(PACKETS)).bench(|| {
        frames(|link, bytes, time, length| {
            black_box(decode(link, bytes, time, length));
        });
    });
}

#[divan::bench]
fn decode_general(bencher: Bencher) {
    LazyLock::force(&CAPTURE);
    bencher.counter(ItemsCount::new(PACKETS)).bench(|| {
        frames(|link, bytes, _, _| {
            black_box(link::find_ip(link, bytes).map(|found| general::read(&found)));
        });
    });
}

#[divan::bench]
fn encode_messages(bencher: Bencher) {
    LazyLock::force(&DECODED);
    bencher.counter(ItemsCount::new(PACKETS)).bench(messages);
}

#[divan::bench]
fn decode_messages(bencher: Bencher) {
    LazyLock::force(&MESSAGES);
    bencher.counter(ItemsCount::new(PACKETS)).bench(|| {
        for message in MESSAGES.iter() {
            Batch::read(message.clone()).expect("a batch").visit(|item| {
                if let Item::Packet(packet) = item {
                    black_box(packet);
                }
            });
        }
    });
}

#[divan::bench]
fn group(bencher: Bencher) {
    let groups = keyed();
    bencher.counter(ItemsCount::new(groups.len())).bench(|| {
        let mut table = Table::<2, 6>::default();
        table.absorb(&groups, &Merges::default());
        table
    });
}

/// Packets by source address into a sketch of each kind, in its default shape; one fetch ahead, as tasks do it.
#[divan::bench(args = ["count_min", "hll", "quantiles"])]
fn sketch(bencher: Bencher, kind: &str) {
    let shape = |width, depth| Shape { width, depth, seed: 1 };
    let groups = keyed();
    let bencher = bencher.counter(ItemsCount::new(groups.len()));
    let source = |address: u64| [address >> 32 << 32, 0];
    match kind {
        "count_min" => bencher.bench(|| {
            let mut sketch = CountMin::new(shape(4096, 5));
            for groups in groups.chunks(16) {
                groups.iter().for_each(|group| sketch.prefetch(false, &source(group[0])));
                groups.iter().for_each(|group| sketch.update(false, &source(group[0]), group[3], group[4]));
            }
            sketch
        }),
        "hll" => bencher.bench(|| {
            let mut sketch = Distinct::new(shape(1024, 6));
            for groups in groups.chunks(16) {
                groups.iter().for_each(|group| sketch.prefetch(false, &source(group[0]), &group[..2]));
                groups.iter().for_each(|group| sketch.update(false, &source(group[0]), &group[..2]));
            }
            sketch
        }),
        _ => bencher.bench(|| {
            let mut sketch = Sizes::new(shape(1024, 5));
            for groups in groups.chunks(16) {
                groups.iter().for_each(|group| sketch.prefetch(false, &source(group[0]), group[3] as u32));
                for group in groups {
                    sketch.update(false, &source(group[0]), (group[3] as u32, 1), group[4]);
                }
            }
            sketch
        }),
    }
}

/// The six shipped tasks over timely workers, from packets in memory to sorted rows.
#[divan::bench(args = [1, 2], sample_count = 10)]
fn group_exchange_merge_sort(bencher: Bencher, workers: usize) {
    let packets = Arc::new(DECODED.clone());
    bencher.counter(ItemsCount::new(packets.len())).bench(|| {
        let packets = packets.clone();
        let guards = timely::execute(timely::Config::process(workers), move |worker| {
            let share: Vec<Observations> = packets
                .chunks(512)
                .skip(worker.index())
                .step_by(worker.peers())
                .map(|packets| Observations::packets(0, packets.to_vec()))
                .collect();
            let mut input =
                InputHandle::<u64, timely::container::NoopBuilder<Observations>>::new_with_builder();
            let mut news = InputHandle::<u64, BlockBuilder>::new_with_builder();
            let probe = worker.dataflow(|scope| {
                let stream = scope.input_from(&mut input);
                let touched = scope.input_from(&mut news);
                let closed = Closed { archive: Rc::new(|| None), recall: None, keeps: false };
                build_tasks(scope, stream, touched, (&shipped_tasks(), Windowing::All), closed).probe().0
            });
            news.send_batch(&mut touches(0));
            news.close();
            for mut batch in share {
                input.send_batch(&mut batch);
                worker.step();
            }
            input.close();
            worker.step_or_park_while(None, || !probe.done());
        });
        drop(guards.expect("workers").join());
    });
}

fn shipped_tasks() -> Vec<Task> {
    let registries = netspectra::config::Registries::default();
    let config =
        netspectra::config::Config::parse(netspectra::config::SHIPPED, "shipped", &registries, |_| None);
    config.expect("the shipped configuration").tasks
}

#[divan::bench]
fn sort(bencher: Bencher) {
    let schema = dataflows::aggregator::Aggregator::schema(&Exact::new(five_tuple()));
    bencher
        .counter(ItemsCount::new(GROUPS.iter().map(|words| words.len() / 6).sum::<usize>()))
        .bench(|| sort_words(GROUPS.clone(), Layout::Compact, &schema));
}

#[divan::bench]
fn format_rows(bencher: Bencher) {
    let rows = task_rows();
    bencher.counter(ItemsCount::new(rows.len())).bench(|| {
        let (mut text, mut out) = (Text::default(), Vec::with_capacity(1 << 20));
        for piece in rows.pieces(8192) {
            out.clear();
            rows.visit(&piece, |row| {
                text.row(&mut out, &rows.schema, &row, b',');
                out.push(b'\n');
            });
        }
        out.len()
    });
}

#[divan::bench]
fn write_csv(bencher: Bencher) {
    write_files(bencher, Csv { threads: 1 });
}

#[divan::bench]
fn write_parquet(bencher: Bencher) {
    write_files(bencher, Parquet { threads: 1 });
}

#[divan::bench]
fn write_json_lines(bencher: Bencher) {
    write_files(bencher, JsonLines { threads: 1 });
}

fn write_files(bencher: Bencher, files: impl Files) {
    let rows = task_rows();
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = FolderWriter::open(folder.path(), files).expect("a writer");
    let count = rows.len();
    let snapshot = Arc::new(Snapshot {
        window: 0,
        span: None,
        revision: 0,
        tasks: vec![rows],
        missing: Default::default(),
    });
    bencher.counter(ItemsCount::new(count)).bench_local(|| {
        writer.prepare(&snapshot, None).and_then(|()| writer.publish()).expect("room on the disk");
    });
}

fn main() {
    divan::main();
}
