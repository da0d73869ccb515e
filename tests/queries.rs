//! Standing queries, sketches and alerts: what the programs answer is what a naive recomputation over the packets
//! gives, for any number of workers and processes, and rules that are edited are judged at once.
//!
//! Windows are of one second unless a test says otherwise.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::cluster::*;
use support::live::*;
use support::*;

// Configurations and runs.

/// A configuration of exact tasks and of these lines behind them, one a task.
fn with_tasks(exact: &[Task], lines: &[String]) -> String {
    config(exact).replace("writers:\n", &format!("{}writers:\n", lines.concat()))
}

/// The section of these rules and outputs.
fn alerts(rules: &[String], outputs: &[String]) -> String {
    let list = |entries: &[String]| match entries {
        [] => " []\n".to_owned(),
        entries => entries.iter().fold("\n".to_owned(), |list, entry| format!("{list}    - {{{entry}}}\n")),
    };
    format!("alerts:\n  rules:{}  outputs:{}", list(rules), list(outputs))
}

/// An output of alerts to a file.
fn to_file(path: &str) -> String {
    format!("type: jsonl, path: ./{path}")
}

/// Runs the analyser on 1, 2 and 3 workers and on 2 processes, and asserts that all leave the same bytes; gives the
/// folder of the first.
fn run_in_every_shape(scratch: &Scratch, name: &str, args: &str) -> PathBuf {
    let folder = |workers: usize| scratch.path(&format!("{name}-{workers}"));
    for workers in [1, 2, 3] {
        scratch.analyze(&format!("-q -o {name}-{workers} -w {workers} {args}")).assert(0, "");
    }
    let expected = every_byte(&folder(1));
    for workers in [2, 3] {
        let what = format!("{name}, 1 and {workers} workers");
        assert_same(&expected, &every_byte(&folder(workers)), &what);
    }
    let out = format!("{name}-cluster");
    let (_, processes) = scratch.start_cluster(2, ANALYZER, &out, &format!("-q -w 1 {args}"));
    scratch.assert_end_well(processes, &out);
    assert_same(&expected, &every_byte(&scratch.path(&out)), &format!("{name}, 1 and 2 processes"));
    folder(1)
}

/// Asserts that two texts are the same; else shows the first line in which they differ.
fn assert_text(found: &str, expected: &str, what: &str) {
    let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    let lines = (found.lines().count(), expected.lines().count());
    assert!(found == expected, "{what}: {differing:?} (found, expected), lines {lines:?}");
}

// Keys.

/// A cell of a key; the order of cells is that of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Address(IpAddr),
    Network(IpAddr, u8),
    Number(u16),
}

impl Display for Cell {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(to, "{address}"),
            Self::Network(address, bits) => write!(to, "{address}/{bits}"),
            Self::Number(number) => write!(to, "{number}"),
        }
    }
}

type Key = Vec<Cell>;

/// A field of a packet of TCP, UDP or ICMP.
fn cell(packet: &Packet, field: &str) -> Cell {
    let port = |port: u16| Cell::Number(if matches!(packet.protocol, TCP | UDP) { port } else { 0 });
    match field {
        "SrcIP" => Cell::Address(packet.source.to_canonical()),
        "SrcIP/24/48" => match packet.source.to_canonical() {
            IpAddr::V4(v4) => Cell::Network(Ipv4Addr::from_bits(v4.to_bits() >> 8 << 8).into(), 24),
            IpAddr::V6(v6) => Cell::Network(Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80).into(), 48),
        },
        "DstIP" => Cell::Address(packet.destination.to_canonical()),
        "SrcPort" => port(packet.ports.0),
        "DstPort" => port(packet.ports.1),
        "Protocol" => Cell::Number(packet.protocol.into()),
        other => panic!("no field {other}"),
    }
}

fn column(field: &str) -> &'static str {
    match field {
        "SrcIP" => "src_ip",
        "SrcIP/24/48" => "src_prefix",
        "DstIP" => "dst_ip",
        "SrcPort" => "src_port",
        "DstPort" => "dst_port",
        "Protocol" => "protocol",
        other => panic!("no field {other}"),
    }
}

fn key(packet: &Packet, fields: &[&str]) -> Key {
    fields.iter().map(|field| cell(packet, field)).collect()
}

// The naive recomputation.

/// Packets by the number of their window.
type Windows = BTreeMap<i64, Vec<Packet>>;

/// Packets by windows of so many nanoseconds; 0 is one window of everything.
fn by_window(packets: &[Packet], length: u64) -> Windows {
    let mut windows = Windows::new();
    for packet in packets {
        let number = packet.time.checked_div(length).unwrap_or(0) as i64;
        windows.entry(number).or_default().push(packet.clone());
    }
    windows
}

fn within(windows: &Windows, range: RangeInclusive<i64>) -> impl Iterator<Item = &Packet> {
    windows.range(range).flat_map(|(_, packets)| packets)
}

#[derive(Clone, Copy, Debug)]
enum Metric {
    Packets,
    Bytes,
}

/// What the packets of a key add up to.
#[derive(Clone, Copy)]
struct Sums {
    packets: u64,
    bytes: u64,
    first: u64,
    last: u64,
}

impl Sums {
    fn of(self, metric: Metric) -> u64 {
        match metric {
            Metric::Packets => self.packets,
            Metric::Bytes => self.bytes,
        }
    }
}

fn sums(windows: &Windows, range: RangeInclusive<i64>, fields: &[&str]) -> BTreeMap<Key, Sums> {
    let mut sums = BTreeMap::new();
    for packet in within(windows, range) {
        let none = Sums { packets: 0, bytes: 0, first: u64::MAX, last: 0 };
        let sum = sums.entry(key(packet, fields)).or_insert(none);
        sum.packets += 1;
        sum.bytes += u64::from(packet.length);
        (sum.first, sum.last) = (sum.first.min(packet.time), sum.last.max(packet.time));
    }
    sums
}

/// What a standing query asks for.
#[derive(Clone, Copy)]
enum Kind {
    TopK { metric: Metric, k: usize },
    FanOut { elements: &'static [&'static str], threshold: u64 },
    NewKeys,
    Changes { metric: Metric, threshold: f64, at_least: u64 },
}

/// A standing query: its options as they are written but for the fields, and what they mean.
struct Query {
    name: &'static str,
    options: &'static str,
    keys: &'static [&'static str],
    kind: Kind,
    /// In windows of a second.
    horizon: i64,
}

/// What a row is ordered by, its key, and the cells behind it: rows are in the order of these.
type Row = (Reverse<u64>, Key, Vec<String>);

impl Query {
    /// The task in a configuration.
    fn line(&self) -> String {
        let elements = match self.kind {
            Kind::FanOut { elements, .. } => format!(", element_fields: [{}]", elements.join(", ")),
            _ => String::new(),
        };
        let Self { name, options, keys, .. } = self;
        format!("    - {{name: {name}, {options}, key_fields: [{}]{elements}}}\n", keys.join(", "))
    }

    fn rows(&self, windows: &Windows, at: i64, horizon: i64) -> Vec<Row> {
        let over = |first: i64, last: i64| sums(windows, first..=last, self.keys);
        let start = at - horizon + 1;
        let mut rows: Vec<Row> = match self.kind {
            Kind::TopK { metric, .. } => {
                let row = |(key, sums): (Key, Sums)| {
                    let cells = [sums.packets, sums.bytes].map(|sum| sum.to_string());
                    (Reverse(sums.of(metric)), key, cells.to_vec())
                };
                over(start, at).into_iter().map(row).collect()
            }
            Kind::FanOut { elements, threshold } => {
                let mut distinct: BTreeMap<Key, BTreeSet<Key>> = BTreeMap::new();
                for packet in within(windows, start..=at) {
                    distinct.entry(key(packet, self.keys)).or_default().insert(key(packet, elements));
                }
                let counts = distinct.into_iter().map(|(key, elements)| (key, elements.len() as u64));
                let fanned_out = counts.filter(|(_, count)| *count > threshold);
                fanned_out.map(|(key, count)| (Reverse(count), key, vec![count.to_string()])).collect()
            }
            Kind::NewKeys => {
                let known = over(at - horizon, at - 1);
                let new = over(at, at).into_iter().filter(|(key, _)| !known.contains_key(key));
                let row = |(key, sums): (Key, Sums)| {
                    let counts = [sums.packets, sums.bytes].map(|sum| sum.to_string());
                    let times = [sums.first, sums.last].map(rfc3339);
                    (Reverse(sums.bytes), key, [counts, times].concat())
                };
                new.map(row).collect()
            }
            Kind::Changes { metric, threshold, at_least } => {
                let spans = [over(start - horizon, start - 1), over(start, at)];
                let keys: BTreeSet<Key> = spans.iter().flat_map(|sums| sums.keys().cloned()).collect();
                let row = |key: Key| {
                    let of = |sums: &BTreeMap<Key, Sums>| sums.get(&key).map_or(0, |sums| sums.of(metric));
                    let (before, now) = (of(&spans[0]), of(&spans[1]));
                    let (least, most) = (now.min(before), now.max(before));
                    let moved = most as f64 > threshold * least as f64 && most >= at_least;
                    let change = now.abs_diff(before);
                    let cells = [before, now, change].map(|sum| sum.to_string());
                    moved.then(|| (Reverse(change), key.clone(), cells.to_vec()))
                };
                keys.into_iter().filter_map(row).collect()
            }
        };
        rows.sort();
        if let Kind::TopK { k, .. } = self.kind {
            rows.truncate(k);
        }
        rows
    }

    /// The csv file of a window.
    fn table(&self, windows: &Windows, at: i64, horizon: i64) -> String {
        let values = match self.kind {
            Kind::TopK { .. } => "packets,bytes",
            Kind::FanOut { .. } => "elements",
            Kind::NewKeys => "packets,bytes,first_seen,last_seen",
            Kind::Changes { .. } => "before,now,change",
        };
        let columns: Vec<_> = self.keys.iter().map(|field| column(field)).collect();
        let mut text = format!("{},{values}\n", columns.join(","));
        for (_, key, cells) in self.rows(windows, at, horizon) {
            let key = key.iter().map(Cell::to_string);
            text += &key.chain(cells).collect::<Vec<_>>().join(",");
            text.push('\n');
        }
        text
    }
}

const FIVE_TUPLE: &[&str] = &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"];

/// All types in several settings. Some keys are contained in others, or in those of [`EXACT`], and some are not.
const STANDING: &[Query] = &[
    Query {
        name: "top_by_default",
        options: "type: top_k",
        keys: &["SrcIP"],
        kind: Kind::TopK { metric: Metric::Bytes, k: 10 },
        horizon: 1,
    },
    Query {
        name: "top_packets",
        options: "type: top_k, metric: packets, k: 3, horizon: 3",
        keys: &["SrcIP", "DstIP"],
        kind: Kind::TopK { metric: Metric::Packets, k: 3 },
        horizon: 3,
    },
    Query {
        name: "top_flows",
        options: "type: top_k, k: 100000, horizon: 2500ms",
        keys: FIVE_TUPLE,
        kind: Kind::TopK { metric: Metric::Bytes, k: 100_000 },
        horizon: 3,
    },
    Query {
        name: "top_one",
        options: "type: top_k, metric: bytes, k: 1, horizon: 7",
        keys: &["DstPort"],
        kind: Kind::TopK { metric: Metric::Bytes, k: 1 },
        horizon: 7,
    },
    Query {
        name: "top_backwards",
        options: "type: top_k, k: 5, horizon: 500ms",
        keys: &["Protocol", "SrcPort"],
        kind: Kind::TopK { metric: Metric::Bytes, k: 5 },
        horizon: 1,
    },
    Query {
        name: "top_networks",
        options: "type: top_k, metric: packets, horizon: 2s",
        keys: &["SrcIP/24/48"],
        kind: Kind::TopK { metric: Metric::Packets, k: 10 },
        horizon: 2,
    },
    Query {
        name: "spread",
        options: "type: fan_out, threshold: 2, horizon: 3",
        keys: &["SrcIP"],
        kind: Kind::FanOut { elements: &["DstIP", "DstPort"], threshold: 2 },
        horizon: 3,
    },
    Query {
        name: "spread_by_default",
        options: "type: fan_out, threshold: 0",
        keys: &["DstIP"],
        kind: Kind::FanOut { elements: &["SrcIP"], threshold: 0 },
        horizon: 1,
    },
    Query {
        name: "spread_of_pairs",
        options: "type: fan_out, threshold: 1, horizon: 4s",
        keys: &["SrcIP", "DstIP"],
        kind: Kind::FanOut { elements: &["DstPort"], threshold: 1 },
        horizon: 4,
    },
    Query {
        name: "spread_of_networks",
        options: "type: fan_out, threshold: 3, horizon: 2",
        keys: &["SrcIP/24/48"],
        kind: Kind::FanOut { elements: &["Protocol", "DstPort"], threshold: 3 },
        horizon: 2,
    },
    Query {
        name: "fresh_by_default",
        options: "type: new_keys",
        keys: &["SrcIP"],
        kind: Kind::NewKeys,
        horizon: 1,
    },
    Query {
        name: "fresh_pairs",
        options: "type: new_keys, horizon: 3",
        keys: &["SrcIP", "DstIP"],
        kind: Kind::NewKeys,
        horizon: 3,
    },
    Query {
        name: "fresh_services",
        options: "type: new_keys, horizon: 5s",
        keys: &["DstPort", "Protocol"],
        kind: Kind::NewKeys,
        horizon: 5,
    },
    Query {
        name: "moved",
        options: "type: changes, threshold: 2",
        keys: &["SrcIP"],
        kind: Kind::Changes { metric: Metric::Bytes, threshold: 2.0, at_least: 0 },
        horizon: 1,
    },
    Query {
        name: "moved_packets",
        options: "type: changes, metric: packets, threshold: 1.5, at_least: 4, horizon: 3",
        keys: &["DstIP"],
        kind: Kind::Changes { metric: Metric::Packets, threshold: 1.5, at_least: 4 },
        horizon: 3,
    },
    Query {
        name: "moved_at_all",
        options: "type: changes, metric: bytes, threshold: 1, horizon: 3s",
        keys: &["DstPort"],
        kind: Kind::Changes { metric: Metric::Bytes, threshold: 1.0, at_least: 0 },
        horizon: 3,
    },
    Query {
        name: "moved_pairs",
        options: "type: changes, threshold: 10, at_least: 500, horizon: 2",
        keys: &["SrcIP", "DstIP"],
        kind: Kind::Changes { metric: Metric::Bytes, threshold: 10.0, at_least: 500 },
        horizon: 2,
    },
];

/// Exact tasks beside the queries.
const EXACT: &[Task] = &[("per_src_ip", &["SrcIP"]), ("per_five_tuple", FIVE_TUPLE)];

/// Half a minute of a few hosts that come and go, in the order in which the packets come: some windows are empty, once
/// more in a row than any horizon of [`STANDING`] looks back; most packets are in time, some revise their window, and
/// some come at the very end.
fn traffic(seed: u64) -> Vec<Packet> {
    let mut random = Random(seed);
    let mut packets = Vec::new();
    for second in 0..36 {
        if (13..23).contains(&second) || random.below(5) == 0 {
            continue;
        }
        for _ in 0..1 + random.below(60) {
            // Four of eight hosts at a time.
            let [source, destination] = [0, 3].map(|other| (second / 3 + other + random.below(4)) % 8);
            let (v6, time) = (random.below(3) == 0, START + second * SECOND + random.below(SECOND));
            let packet = Packet {
                time,
                length: random.pick(&[100, 100, 200, 1400]),
                vlan: None,
                source: host(source, v6),
                destination: host(destination, v6),
                ports: (random.pick(&[1024, 5000]), random.pick(&[53, 80, 443, 8443])),
                protocol: random.pick(&[TCP, TCP, UDP, 1]),
                flags: 0x10,
            };
            let delay = match random.below(100) {
                0..60 => 0,
                60..90 => random.below(3 * SECOND),
                90..97 => 6 * SECOND + random.below(6 * SECOND),
                _ => 100 * SECOND,
            };
            packets.push((time + delay, packet));
        }
    }
    packets.sort_by_key(|(arrival, _)| *arrival);
    packets.into_iter().map(|(_, packet)| packet).collect()
}

/// A host by its number, in one of three networks. Some of IPv6 are mapped addresses of IPv4.
fn host(number: u64, v6: bool) -> IpAddr {
    let (network, number) = (number as u16 % 3, number as u16);
    let v4 = Ipv4Addr::new(10, 0, network as u8, number as u8);
    match (v6, number) {
        (false, _) => v4.into(),
        (true, 5) => v4.to_ipv6_mapped().into(),
        (true, _) => Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, number).into(),
    }
}

/// Asserts that a folder has the windows of these packets, and in each the tables of these queries.
fn assert_answers(folder: &Path, packets: &[Packet], length: u64, queries: &[&Query], what: &str) {
    let by_window = by_window(packets, length);
    let name = |at: i64| if length == 0 { "all".to_owned() } else { window_name(at as u64 * length) };
    let names: Vec<_> = by_window.keys().map(|at| name(*at)).collect();
    assert_eq!(windows(folder), names, "the windows of {what}");
    let mut without_rows: BTreeSet<_> = queries.iter().map(|query| query.name).collect();
    for at in by_window.keys() {
        let window = folder.join(name(*at));
        let summary = read_json(&window.join("summary.json"));
        for query in queries {
            let expected = query.table(&by_window, *at, if length == 0 { 1 } else { query.horizon });
            let found = fs::read_to_string(window.join(format!("{}.csv", query.name))).unwrap();
            let what = format!("{what}, {} in {}", query.name, name(*at));
            assert_text(&found, &expected, &what);
            let rows = expected.lines().count() as u64 - 1;
            assert_eq!(number(&summary["tasks"][query.name]["rows"]), rows, "{what}: {summary}");
            if rows > 0 {
                without_rows.remove(query.name);
            }
        }
    }
    assert!(without_rows.is_empty(), "{what}: nothing was asked of {without_rows:?}");
}

#[test]
fn each_standing_query_equals_a_naive_recomputation_for_any_number_of_workers_and_processes() {
    for seed in 0..4 {
        let scratch = Scratch::new();
        let packets = traffic(seed);
        let late = late(&packets, SECOND);
        assert!(late > 20, "{late} late packets of seed {seed}");
        // Tasks beside others and in another order have the same answers.
        let mut queries: Vec<&Query> = STANDING.iter().collect();
        Random(seed).shuffle(&mut queries);
        let exact = &EXACT[..seed as usize % 3];
        let lines: Vec<_> = queries.iter().map(|query| query.line()).collect();
        scratch.write("a.pcap", pcap(&packets));
        scratch.write("c.yaml", with_tasks(exact, &lines));
        for (window, length) in [("1s", SECOND), ("all", 0)] {
            let what = format!("seed {seed}, window {window}");
            let args = format!("-c c.yaml --window {window} a.pcap");
            let folder = run_in_every_shape(&scratch, window, &args);
            assert_answers(&folder, &packets, length, &queries, &what);
            let ledger = read_json(&folder.join("ledger.json"));
            assert_eq!(number(&ledger["packets"]["counted"]), packets.len() as u64, "{what}");
            assert_eq!(number(&ledger["packets"]["late"]), if length == 0 { 0 } else { late }, "{what}");
        }
    }
}

#[test]
fn standing_queries_of_one_window_and_of_no_packets_have_answers_too() {
    let scratch = Scratch::new();
    let queries: Vec<&Query> = STANDING.iter().collect();
    let lines: Vec<_> = queries.iter().map(|query| query.line()).collect();
    scratch.write("c.yaml", with_tasks(&[], &lines));
    scratch.write("one.pcap", pcap(&[packet(0, "10.0.0.1", "10.0.0.2")]));
    scratch.write("none.pcap", pcap(&[]));
    scratch.analyze("-q -o one -c c.yaml --window 1s one.pcap").assert(0, "");
    let first = by_window(&[packet(0, "10.0.0.1", "10.0.0.2")], SECOND);
    let at = (START / SECOND) as i64;
    for query in &queries {
        let path = scratch.path("one").join(window_name(START)).join(format!("{}.csv", query.name));
        assert_text(&fs::read_to_string(path).unwrap(), &query.table(&first, at, query.horizon), query.name);
    }
    scratch.analyze("-q -o none -c c.yaml --window all none.pcap").assert(0, "");
    for query in &queries {
        let path = scratch.path("none/all").join(format!("{}.csv", query.name));
        let expected = query.table(&Windows::new(), 0, 1);
        assert_text(&fs::read_to_string(path).unwrap(), &expected, query.name);
    }
    scratch.analyze("-q -o no-window -c c.yaml --window 1s none.pcap").assert(0, "");
    assert_eq!(windows(&scratch.path("no-window")), Vec::<String>::new());
}

#[test]
fn a_late_packet_revises_the_windows_whose_answers_it_changes_and_none_that_do_not_look_back_to_it() {
    // The last is how many windows look at one of them, itself included.
    for (task, reach) in [
        ("type: top_k, key_fields: [SrcIP], horizon: 3", 3),
        ("type: fan_out, key_fields: [DstIP], element_fields: [SrcIP], threshold: 0, horizon: 3", 3),
        ("type: new_keys, key_fields: [SrcIP], horizon: 3", 4),
        ("type: changes, key_fields: [SrcIP], threshold: 1, horizon: 3", 6),
        ("type: count_min, key_fields: [SrcIP]", 1),
    ] {
        let scratch = Scratch::new();
        scratch.write("c.yaml", with_tasks(&[], &[format!("    - {{name: asked, {task}}}\n")]));
        let second = |second: u64, source: &str| packet(second * 1000 + 500, source, "10.0.0.2");
        let mut packets: Vec<_> = (0..16).map(|at| second(at, "10.0.0.1")).collect();
        // New here for those who do not know of the late one.
        packets.insert(6, second(5, "10.0.0.9"));
        packets.push(second(40, "10.0.0.1"));
        let tables_of = |name: &str, packets: &[Packet]| {
            scratch.write("a.pcap", pcap(packets));
            scratch.analyze(&format!("-q -o {name} -c c.yaml --window 1s a.pcap")).assert(0, "");
            tables(&scratch.path(name))
        };
        let without = tables_of("without", &packets);
        packets.push(second(2, "10.0.0.9"));
        let with = tables_of("with", &packets);
        assert!(without.keys().eq(with.keys()), "{task}");
        for at in (0..16).chain([40]) {
            let window = window_name(START + at * SECOND);
            let summary = read_json(&scratch.path("with").join(&window).join("summary.json"));
            let revision = number(&summary["revision"]);
            let csv = Path::new(&window).join("asked.csv");
            let reached = (2..2 + reach).contains(&at);
            assert!(revision == 0 || reached && revision == 1, "{task}: revision {revision} of second {at}");
            assert!(revision == 1 || without[&csv] == with[&csv], "{task}: second {at} is no revision");
            assert!(at != 2 || revision == 1, "{task}: second 2 has no revision");
        }
    }
}

// Sketches.

/// A sketch of which every row has bounds, and what is exact: a column of [`CONTACTS`] summed by the key, or without
/// one the number of its rows.
struct Sketch {
    name: &'static str,
    options: &'static str,
    keys: &'static [&'static str],
    exact: Option<&'static str>,
    most_rows: usize,
    threshold: u64,
}

const SKETCHES: &[Sketch] = &[
    Sketch {
        name: "heavy_bytes",
        options: "type: count_min, key_fields: [SrcIP]",
        keys: &["src_ip"],
        exact: Some("bytes"),
        most_rows: 100,
        threshold: 0,
    },
    Sketch {
        name: "heavy_packets",
        options: "type: count_min, key_fields: [SrcIP, DstPort], metric: packets, k: 500",
        keys: &["src_ip", "dst_port"],
        exact: Some("packets"),
        most_rows: 500,
        threshold: 0,
    },
    Sketch {
        name: "heavy_few",
        options: "type: count_min, key_fields: [DstIP], threshold: 20000, k: 7, width: 1024, depth: 4, seed: 7",
        keys: &["dst_ip"],
        exact: Some("bytes"),
        most_rows: 7,
        threshold: 20_000,
    },
    Sketch {
        name: "wide",
        options: "type: hll, key_fields: [SrcIP], element_fields: [DstIP, DstPort], k: 500",
        keys: &["src_ip"],
        exact: None,
        most_rows: 500,
        threshold: 0,
    },
];

/// A sketch that is looked at by itself: its exact answers are not in any table.
const SIZES: &str = "    - {name: sizes, type: quantiles, key_fields: [SrcIP], k: 500}\n";
const CONTACTS: &[Task] = &[("contacts", &["SrcIP", "DstIP", "DstPort"])];

fn sketch_lines() -> Vec<String> {
    let line = |sketch: &Sketch| format!("    - {{name: {}, {}}}\n", sketch.name, sketch.options);
    SKETCHES.iter().map(line).chain([SIZES.to_owned()]).collect()
}

/// A row of a csv file by column name.
type Cells = BTreeMap<String, String>;

fn key_of(row: &Cells, columns: &[&str]) -> Vec<String> {
    columns.iter().map(|column| row[*column].clone()).collect()
}

fn decimal(row: &Cells, column: &str) -> f64 {
    row[column].parse().unwrap()
}

/// A column of a table summed by some of its key's columns; without a column, rows are counted.
fn summed(table: &[Cells], columns: &[&str], value: Option<&str>) -> BTreeMap<Vec<String>, u64> {
    let mut sums = BTreeMap::new();
    for row in table {
        let value = value.map_or(1, |value| row[value].parse::<u64>().unwrap());
        *sums.entry(key_of(row, columns)).or_default() += value;
    }
    sums
}

/// Of each task how many bounds were looked at, and how many of them hold the exact figure.
#[derive(Default)]
struct Tally(BTreeMap<&'static str, [u64; 2]>);

impl Tally {
    fn add(&mut self, task: &'static str, holds: bool) {
        let [bounds, held] = self.0.entry(task).or_default();
        *bounds += 1;
        *held += u64::from(holds);
    }

    /// Asserts that of every task at least 99 % hold.
    fn assert_nearly_all(&self, tasks: usize, what: &str) {
        assert_eq!(self.0.len(), tasks, "{what}: tasks with rows in {:?}", self.0.keys());
        for (task, [bounds, held]) in &self.0 {
            assert!(held * 100 >= bounds * 99, "{what}: {held} of {bounds} bounds of {task} hold");
        }
    }
}

/// Asserts that a window's tables of [`SKETCHES`] are in order and lack nobody who has a hundredth of the total, and
/// tallies their bounds.
fn look_at_sketches(window: &Path, tally: &mut Tally) {
    let contacts = rows(&window.join("contacts.csv"));
    for sketch in SKETCHES {
        let exact = summed(&contacts, sketch.keys, sketch.exact);
        let table = rows(&window.join(format!("{}.csv", sketch.name)));
        let what = format!("{} in {}", sketch.name, window.display());
        assert!(table.len() <= sketch.most_rows, "{what}: {} rows", table.len());
        assert!(table.is_sorted_by_key(|row| -decimal(row, "estimate")), "{what}: order of rows");
        for row in &table {
            let [lower, estimate, upper] = ["lower", "estimate", "upper"].map(|name| decimal(row, name));
            assert!(lower <= estimate && estimate <= upper, "{what}: {row:?}");
            assert!(estimate > sketch.threshold as f64, "{what}: {row:?}");
            let exact = exact.get(&key_of(row, sketch.keys)).copied().unwrap_or(0) as f64;
            tally.add(sketch.name, lower <= exact && exact <= upper);
        }
        if sketch.exact.is_some() && sketch.threshold == 0 {
            let found: BTreeSet<_> = table.iter().map(|row| key_of(row, sketch.keys)).collect();
            let total: u64 = exact.values().sum();
            for (key, share) in exact.iter().filter(|(_, share)| *share * 100 >= total) {
                assert!(found.contains(key), "{what}: no {key:?} with {share} of {total}");
            }
        }
    }
}

/// Lengths of packets on the wire by window and source.
type Sizes = BTreeMap<(String, String), Vec<u32>>;

/// The source of a frame in Ethernet, with or without tags.
fn source_of(frame: &[u8]) -> Option<IpAddr> {
    let mut at = 12;
    loop {
        let kind = u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?);
        at += 2;
        match kind {
            0x8100 | 0x88a8 | 0x9100 => at += 2,
            0x0800 => return Some(IpAddr::from(<[u8; 4]>::try_from(frame.get(at + 12..at + 16)?).ok()?)),
            0x86dd => {
                let octets = <[u8; 16]>::try_from(frame.get(at + 8..at + 24)?).ok()?;
                return Some(IpAddr::from(octets).to_canonical());
            }
            _ => return None,
        }
    }
}

/// The sizes in a capture, by windows of so many seconds; 0 is one window of everything. Nothing where libpcap
/// does not read it or the link is no Ethernet.
fn sizes_by_source(capture: &Path, seconds: u64) -> Sizes {
    let mut sizes = Sizes::new();
    let Ok(mut capture) = ::pcap::Capture::from_file(capture) else { return sizes };
    if capture.get_datalink() != ::pcap::Linktype::ETHERNET {
        return sizes;
    }
    while let Ok(frame) = capture.next_packet() {
        let Some(source) = source_of(frame.data) else { continue };
        let start = (frame.header.ts.tv_sec as u64).checked_div(seconds).map(|number| number * seconds);
        let window = start.map_or("all".to_owned(), |start| window_name(start * SECOND));
        sizes.entry((window, source.to_string())).or_default().push(frame.header.len);
    }
    sizes.values_mut().for_each(|sizes| sizes.sort());
    sizes
}

/// Whether bounds hold a percentile of these lengths, by any of the usual definitions: those differ by one rank.
fn holds_percentile(sorted: &[u32], percent: usize, lower: f64, upper: f64) -> bool {
    let last = sorted.len() - 1;
    let below = f64::from(sorted[last * percent / 100]);
    let above = f64::from(sorted[(sorted.len() * percent).div_ceil(100).min(last)]);
    lower <= above && below <= upper
}

/// Asserts that a window's table of sizes is in order, and tallies the bounds of those keys of which we have read all
/// packets; gives how many these are, and of how many.
fn look_at_sizes(folder: &Path, window: &str, sizes: &Sizes, tally: &mut Tally) -> [usize; 2] {
    let contacts = rows(&folder.join(window).join("contacts.csv"));
    let [packets, bytes] = ["packets", "bytes"].map(|column| summed(&contacts, &["src_ip"], Some(column)));
    let table = rows(&folder.join(window).join("sizes.csv"));
    assert!(table.len() <= 500, "{} rows", table.len());
    assert!(table.is_sorted_by_key(|row| -decimal(row, "packets")), "order of sizes in {window}");
    let mut known = 0;
    for row in &table {
        for percent in [50, 90, 99] {
            let [lower, value, upper] = bounds_of(row, percent);
            assert!(lower <= value && value <= upper, "p{percent} in {window}: {row:?}");
        }
        let Some(sizes) = sizes.get(&(window.to_owned(), row["src_ip"].clone())) else { continue };
        let key = key_of(row, &["src_ip"]);
        let read = (sizes.len() as u64, sizes.iter().map(|size| u64::from(*size)).sum::<u64>());
        if (packets.get(&key), bytes.get(&key)) != (Some(&read.0), Some(&read.1)) {
            continue;
        }
        known += 1;
        for percent in [50, 90, 99] {
            let [lower, _, upper] = bounds_of(row, percent);
            tally.add("sizes", holds_percentile(sizes, percent, lower, upper));
        }
    }
    [known, table.len()]
}

/// A percentile's lower bound, the percentile, and its upper bound.
fn bounds_of(row: &Cells, percent: usize) -> [f64; 3] {
    ["_lower", "", "_upper"].map(|bound| decimal(row, &format!("p{percent}{bound}")))
}

#[test]
fn sketches_of_many_flows_hold_what_is_exact_within_their_bounds() {
    let scratch = Scratch::new();
    let capture = "-o a.pcap --packets 200000 --flows 20000 --ipv6 0.2 --duration 12s --snaplen 96 --seed 5";
    scratch.generate(capture).assert(0, "");
    scratch.write("c.yaml", with_tasks(CONTACTS, &sketch_lines()));
    for (window, seconds) in [("4s", 4), ("all", 0)] {
        let folder = run_in_every_shape(&scratch, window, &format!("-c c.yaml --window {window} a.pcap"));
        let sizes = sizes_by_source(&scratch.path("a.pcap"), seconds);
        let mut tally = Tally::default();
        for window in windows(&folder) {
            look_at_sketches(&folder.join(&window), &mut tally);
            let [known, rows] = look_at_sizes(&folder, &window, &sizes, &mut tally);
            assert_eq!(known, rows, "sizes in {window}");
        }
        tally.assert_nearly_all(SKETCHES.len() + 1, window);
    }
}

#[test]
fn distinct_elements_and_sizes_do_not_depend_on_the_tasks_beside_them() {
    let scratch = Scratch::new();
    scratch.generate("-o a.pcap --packets 30000 --flows 5000 --duration 6s --snaplen 96").assert(0, "");
    scratch.write("beside.yaml", with_tasks(CONTACTS, &sketch_lines()));
    scratch.write("alone.yaml", with_tasks(&[], &sketch_lines()));
    let tables_of = |name: &str| {
        scratch.analyze(&format!("-q -o {name} -c {name}.yaml --window 2s -w 2 a.pcap")).assert(0, "");
        tables(&scratch.path(name))
    };
    let [beside, alone] = ["beside", "alone"].map(|name| {
        let mut tables = tables_of(name);
        // Which keys `count_min` finds by chance is another draw where it takes groups.
        let is_drawn = |name: &str| name.starts_with("heavy") || name == "contacts.csv";
        tables.retain(|path, _| !is_drawn(&path.file_name().unwrap().to_string_lossy()));
        tables
    });
    assert!(!alone.is_empty());
    assert_same(&alone, &beside, "sketches with and without an exact task");
}

#[test]
fn sketches_of_packets_that_come_late_are_the_same_for_any_number_of_workers_and_processes() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap_of(&disordered(31, 12_000, 40 * SECOND)));
    // Small ones, in which keys collide.
    let small = |line: String| line.replace("k: 500", "k: 20").replace('}', ", width: 64}");
    let lines: Vec<_> =
        sketch_lines().into_iter().filter(|line| !line.contains("width")).map(small).collect();
    assert_eq!(lines.len(), SKETCHES.len());
    scratch.write("c.yaml", with_tasks(&[], &lines));
    for window in ["1s", "all"] {
        run_in_every_shape(&scratch, window, &format!("-c c.yaml --window {window} a.pcap"));
    }
    assert!(number(&scratch.ledger("1s-1")["packets"]["late"]) > 50);
}

#[test]
fn sketches_of_real_captures_hold_what_is_exact_within_their_bounds() {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/pcaps").into();
    let corpus = env::var_os("NETSPECTRA_CORPUS").map_or(beside, PathBuf::from);
    let Ok(folder) = fs::read_dir(corpus) else { return };
    let is_capture = |path: &Path| path.extension().is_some_and(|end| end == "pcap" || end == "pcapng");
    let mut captures: Vec<_> =
        folder.map(|entry| entry.unwrap().path()).filter(|path| is_capture(path)).collect();
    captures.sort_by_key(|path| Reverse(fs::metadata(path).unwrap().len()));
    let scratch = Scratch::new();
    scratch.write("c.yaml", with_tasks(CONTACTS, &sketch_lines()));
    for (at, capture) in captures.iter().take(3).enumerate() {
        let capture = fs::canonicalize(capture).unwrap();
        let run = scratch.analyze(&format!("-q -o out-{at} -c c.yaml --window all '{}'", capture.display()));
        // Cut off or damaged is none of ours here.
        assert!(matches!(run.code, Some(0 | 3)), "{run:?}");
        let (folder, mut tally) = (scratch.path(&format!("out-{at}")), Tally::default());
        look_at_sketches(&folder.join("all"), &mut tally);
        let sizes = sizes_by_source(&capture, 0);
        let [known, rows] = look_at_sizes(&folder, "all", &sizes, &mut tally);
        let what = format!("{}, sizes of {known} of {rows} keys", capture.display());
        println!("{what}");
        assert!(sizes.is_empty() || known * 2 > rows, "{what}");
        // A small one may have nobody above the threshold of `heavy_few`.
        assert!(tally.0.contains_key("heavy_bytes") && tally.0.contains_key("wide"), "{what}");
        tally.assert_nearly_all(tally.0.len(), &what);
    }
}

// Bad options.

/// Whether a text has this word, whatever stands around it.
fn has_word(text: &str, word: &str) -> bool {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|part| part == word)
}

/// Runs the analyser with a configuration that is wrong in the one line with this text; says what is not as it should
/// be: status 2, nothing written, and a message that names the line, whose it is, and one of these keys behind that.
fn not_refused(scratch: &Scratch, text: &str, wrong: &str, whose: &str, keys: &[&str]) -> Option<String> {
    let lines: Vec<_> = text.lines().enumerate().filter(|(_, line)| line.contains(wrong)).collect();
    // The latter of two that are the same is the wrong one.
    let line = lines.last().unwrap_or_else(|| panic!("{wrong:?} in {text}")).0 + 1;
    scratch.write("c.yaml", text);
    let run = scratch.analyze("-q -c c.yaml -o out a.pcap");
    let behind = |text: &str, part: &str| text.split_once(part).map(|(_, behind)| behind.to_owned());
    let message = behind(&run.stderr, &format!("c.yaml:{line}:")).and_then(|rest| behind(&rest, whose));
    let is_named = message.is_some_and(|message| keys.iter().any(|key| has_word(&message, key)));
    let wrote = scratch.path("out").exists() || scratch.path("alerts.jsonl").exists();
    let is_refused = run.code == Some(2) && run.stdout.is_empty() && is_named && !wrote;
    (!is_refused).then(|| format!("{wrong}: line {line}, {whose}, {keys:?}; wrote: {wrote}; {run:?}"))
}

/// Asserts that nothing is to be said.
fn assert_all_refused(failures: Vec<String>) {
    assert!(
        failures.is_empty(),
        "{} are not refused as they should be:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn a_bad_option_of_a_task_is_refused_with_its_file_line_task_and_key() {
    const TOP_K: &str = "type: top_k, key_fields: [SrcIP]";
    const FAN_OUT: &str = "type: fan_out, key_fields: [SrcIP]";
    const NEW_KEYS: &str = "type: new_keys, key_fields: [SrcIP]";
    const CHANGES: &str = "type: changes, key_fields: [SrcIP]";
    const COUNT_MIN: &str = "type: count_min, key_fields: [SrcIP]";
    const HLL: &str = "type: hll, key_fields: [SrcIP]";
    const QUANTILES: &str = "type: quantiles, key_fields: [SrcIP]";
    let elements = "element_fields: [DstIP]";
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(41, 50, SECOND)));
    let cases = [
        // Fields.
        ("type: top_k".to_owned(), "key_fields"),
        ("type: top_k, key_fields: []".to_owned(), "key_fields"),
        ("type: top_k, key_fields: [SourceIP]".to_owned(), "key_fields"),
        ("type: top_k, key_fields: [SrcIP, SrcIP]".to_owned(), "key_fields"),
        ("type: top_k, key_fields: 7".to_owned(), "key_fields"),
        (format!("type: fan_out, {elements}, threshold: 1"), "key_fields"),
        ("type: new_keys".to_owned(), "key_fields"),
        ("type: changes, threshold: 2".to_owned(), "key_fields"),
        ("type: count_min".to_owned(), "key_fields"),
        (format!("type: hll, {elements}"), "key_fields"),
        ("type: quantiles, key_fields: [SrcIP/129]".to_owned(), "key_fields"),
        (format!("{FAN_OUT}, threshold: 1"), "element_fields"),
        (format!("{FAN_OUT}, element_fields: [], threshold: 1"), "element_fields"),
        (format!("{FAN_OUT}, element_fields: [DstIP, Port], threshold: 1"), "element_fields"),
        (format!("{FAN_OUT}, element_fields: [DstIP, SrcIP], threshold: 1"), "element_fields"),
        (HLL.to_owned(), "element_fields"),
        (format!("{HLL}, element_fields: [SrcIP]"), "element_fields"),
        (format!("{TOP_K}, {elements}"), "element_fields"),
        (format!("{NEW_KEYS}, {elements}"), "element_fields"),
        (format!("{CHANGES}, threshold: 2, {elements}"), "element_fields"),
        (format!("{COUNT_MIN}, {elements}"), "element_fields"),
        (format!("{QUANTILES}, {elements}"), "element_fields"),
        // Metrics.
        (format!("{TOP_K}, metric: foo"), "metric"),
        (format!("{TOP_K}, metric: 3"), "metric"),
        (format!("{CHANGES}, threshold: 2, metric: elements"), "metric"),
        (format!("{COUNT_MIN}, metric: foo"), "metric"),
        (format!("{FAN_OUT}, {elements}, threshold: 1, metric: bytes"), "metric"),
        (format!("{NEW_KEYS}, metric: bytes"), "metric"),
        (format!("{HLL}, {elements}, metric: packets"), "metric"),
        (format!("{QUANTILES}, metric: bytes"), "metric"),
        // How many rows.
        (format!("{TOP_K}, k: 0"), "k"),
        (format!("{TOP_K}, k: 100001"), "k"),
        (format!("{TOP_K}, k: -1"), "k"),
        (format!("{TOP_K}, k: 1.5"), "k"),
        (format!("{TOP_K}, k: many"), "k"),
        (format!("{TOP_K}, k: [3]"), "k"),
        (format!("{COUNT_MIN}, k: 0"), "k"),
        (format!("{HLL}, {elements}, k: 0"), "k"),
        (format!("{QUANTILES}, k: 0"), "k"),
        (format!("{NEW_KEYS}, k: 3"), "k"),
        (format!("{CHANGES}, threshold: 2, k: 3"), "k"),
        (format!("{FAN_OUT}, {elements}, threshold: 1, k: 3"), "k"),
        // Thresholds.
        (format!("{FAN_OUT}, {elements}"), "threshold"),
        (format!("{FAN_OUT}, {elements}, threshold: -1"), "threshold"),
        (format!("{FAN_OUT}, {elements}, threshold: 1.5"), "threshold"),
        (format!("{FAN_OUT}, {elements}, threshold: lots"), "threshold"),
        (CHANGES.to_owned(), "threshold"),
        (format!("{CHANGES}, threshold: -1"), "threshold"),
        (format!("{CHANGES}, threshold: 0.5"), "threshold"),
        (format!("{CHANGES}, threshold: lots"), "threshold"),
        (format!("{CHANGES}, threshold: 2, at_least: -1"), "at_least"),
        (format!("{CHANGES}, threshold: 2, at_least: 1.5"), "at_least"),
        (format!("{COUNT_MIN}, threshold: -1"), "threshold"),
        (format!("{HLL}, {elements}, threshold: -1"), "threshold"),
        (format!("{TOP_K}, threshold: 1"), "threshold"),
        (format!("{NEW_KEYS}, threshold: 1"), "threshold"),
        (format!("{QUANTILES}, threshold: 1"), "threshold"),
        (format!("{TOP_K}, at_least: 1"), "at_least"),
        // Horizons.
        (format!("{TOP_K}, horizon: 0"), "horizon"),
        (format!("{TOP_K}, horizon: -1"), "horizon"),
        (format!("{TOP_K}, horizon: 1.5"), "horizon"),
        (format!("{TOP_K}, horizon: abc"), "horizon"),
        (format!("{TOP_K}, horizon: 100001"), "horizon"),
        (format!("{FAN_OUT}, {elements}, threshold: 1, horizon: 0"), "horizon"),
        (format!("{NEW_KEYS}, horizon: 5 parsecs"), "horizon"),
        (format!("{CHANGES}, threshold: 2, horizon: -3s"), "horizon"),
        (format!("{COUNT_MIN}, horizon: 3"), "horizon"),
        (format!("{HLL}, {elements}, horizon: 3"), "horizon"),
        (format!("{QUANTILES}, horizon: 3"), "horizon"),
        // Sizes of sketches.
        (format!("{COUNT_MIN}, width: 1000"), "width"),
        (format!("{COUNT_MIN}, width: 0"), "width"),
        (format!("{COUNT_MIN}, width: 8"), "width"),
        (format!("{COUNT_MIN}, width: 2097152"), "width"),
        (format!("{COUNT_MIN}, depth: 17"), "depth"),
        (format!("{HLL}, {elements}, width: 1000"), "width"),
        (format!("{QUANTILES}, width: wide"), "width"),
        (format!("{COUNT_MIN}, depth: 0"), "depth"),
        (format!("{HLL}, {elements}, depth: -2"), "depth"),
        (format!("{QUANTILES}, depth: deep"), "depth"),
        (format!("{COUNT_MIN}, seed: abc"), "seed"),
        (format!("{TOP_K}, width: 1024"), "width"),
        // Nobody's.
        (format!("{TOP_K}, surprise: 1"), "surprise"),
        (format!("{FAN_OUT}, {elements}, threshold: 1, surprise: 1"), "surprise"),
        (format!("{NEW_KEYS}, surprise: 1"), "surprise"),
        (format!("{CHANGES}, threshold: 2, surprise: 1"), "surprise"),
        (format!("{COUNT_MIN}, surprise: 1"), "surprise"),
        (format!("{HLL}, {elements}, surprise: 1"), "surprise"),
        (format!("{QUANTILES}, surprise: 1"), "surprise"),
    ];
    let check = |(options, option): &(String, &str)| {
        let line = format!("    - {{name: bad, {options}}}\n");
        let text = with_tasks(&[("good", &["SrcIP"])], std::slice::from_ref(&line));
        not_refused(&scratch, &text, line.trim_end(), "task `bad`", &[option])
    };
    assert_all_refused(cases.iter().filter_map(check).collect());
}

#[test]
fn a_bad_option_on_a_line_of_its_own_is_refused_with_that_line() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(42, 50, SECOND)));
    let task =
        "    - name: bad\n      type: top_k\n      key_fields: [SrcIP]\n      k: 0\n      horizon: 3\n";
    let text = with_tasks(&[], &[task.to_owned()]);
    assert_all_refused(not_refused(&scratch, &text, "k: 0", "task `bad`", &["k"]).into_iter().collect());
}

// Alerts.

/// A rule: `condition` is metric, comparison and threshold, `matching` what stands in the braces of `match`.
struct Rule {
    name: &'static str,
    task: &'static str,
    condition: &'static str,
    matching: &'static str,
    /// In how many windows in a row it must hold.
    windows: u64,
}

/// The tasks of [`RULES`] and their key columns.
const WATCHED: &[(&str, &[&str], &str)] = &[
    ("per_src", &["src_ip"], "type: exact, key_fields: [SrcIP]"),
    ("per_service", &["dst_ip", "dst_port"], "type: exact, key_fields: [DstIP, DstPort]"),
    ("talkers", &["src_ip", "dst_ip"], "type: top_k, key_fields: [SrcIP, DstIP], k: 2, horizon: 2"),
    (
        "spread",
        &["src_ip"],
        "type: fan_out, key_fields: [SrcIP], element_fields: [DstIP, DstPort], threshold: 1, horizon: 3",
    ),
];

/// Every comparison, kind of metric and kind of match. All but one raise alerts over [`bursts`].
const RULES: &[Rule] = &[
    Rule { name: "more", task: "per_src", condition: "packets > 5", matching: "", windows: 1 },
    Rule { name: "at-least", task: "per_src", condition: "packets >= 5", matching: "", windows: 1 },
    Rule { name: "less", task: "per_src", condition: "packets < 3", matching: "", windows: 1 },
    Rule { name: "at-most", task: "per_src", condition: "packets <= 3", matching: "", windows: 1 },
    Rule { name: "equal", task: "per_src", condition: "packets == 4", matching: "", windows: 1 },
    Rule {
        name: "other",
        task: "per_src",
        condition: "packets != 4",
        matching: "src_ip: 10.0.0.0/24",
        windows: 1,
    },
    Rule { name: "heavy", task: "per_src", condition: "bytes > 1MB", matching: "", windows: 1 },
    Rule { name: "heavier", task: "per_src", condition: "bytes >= 1MiB", matching: "", windows: 1 },
    Rule {
        name: "service",
        task: "per_service",
        condition: "packets > 2",
        matching: "dst_ip: 192.0.2.0/24, dst_port: 443",
        windows: 1,
    },
    Rule {
        name: "port",
        task: "per_service",
        condition: "packets > 4",
        matching: "dst_port: 53",
        windows: 1,
    },
    Rule {
        name: "v6",
        task: "per_src",
        condition: "packets > 0",
        matching: "src_ip: '2001:db8::/48'",
        windows: 2,
    },
    Rule {
        name: "address",
        task: "per_src",
        condition: "packets >= 1",
        matching: "src_ip: 10.0.0.2",
        windows: 3,
    },
    Rule { name: "lasting", task: "per_src", condition: "packets > 1", matching: "", windows: 3 },
    Rule { name: "all-packets", task: "per_src", condition: "total.packets > 30", matching: "", windows: 1 },
    Rule { name: "all-bytes", task: "per_src", condition: "total.bytes < 1MB", matching: "", windows: 1 },
    Rule { name: "all-rows", task: "per_src", condition: "total.rows == 6", matching: "", windows: 1 },
    Rule {
        name: "network",
        task: "per_src",
        condition: "total.packets >= 8",
        matching: "src_ip: 10.0.0.0/24",
        windows: 2,
    },
    Rule {
        name: "nobody-there",
        task: "per_service",
        condition: "total.rows == 0",
        matching: "dst_port: 53",
        windows: 1,
    },
    Rule { name: "scan", task: "spread", condition: "elements > 3", matching: "", windows: 1 },
    Rule {
        name: "leading",
        task: "talkers",
        condition: "bytes > 1000",
        matching: "src_ip: 10.0.0.0/23",
        windows: 1,
    },
    Rule { name: "always", task: "per_src", condition: "total.rows >= 0", matching: "", windows: 1 },
    Rule { name: "never", task: "per_src", condition: "packets > 1000000", matching: "", windows: 1 },
];

/// What an alert is about; nothing where it is about the sum of all rows.
type About = Option<Cells>;

impl Rule {
    /// The rule in a configuration.
    fn line(&self) -> String {
        let [metric, comparison, threshold] = self.condition();
        let Self { name, task, matching, windows, .. } = self;
        let matching = if matching.is_empty() { String::new() } else { format!(", match: {{{matching}}}") };
        let windows = if *windows == 1 { String::new() } else { format!(", for: {windows}") };
        format!(
            "name: {name}, task: {task}, metric: {metric}, comparison: \"{comparison}\", \
             threshold: {threshold}{matching}{windows}"
        )
    }

    fn condition(&self) -> [&'static str; 3] {
        let mut words = self.condition.split(' ');
        [(); 3].map(|()| words.next().unwrap())
    }

    fn threshold(&self) -> u64 {
        match self.condition()[2] {
            "1MB" => 1_000_000,
            "1MiB" => 1 << 20,
            number => number.parse().unwrap(),
        }
    }

    fn holds_for(&self, value: u64) -> bool {
        let threshold = self.threshold();
        match self.condition()[1] {
            ">" => value > threshold,
            ">=" => value >= threshold,
            "<" => value < threshold,
            "<=" => value <= threshold,
            "==" => value == threshold,
            "!=" => value != threshold,
            other => panic!("no comparison {other}"),
        }
    }

    fn matches(&self, row: &Cells) -> bool {
        let mut parts = self.matching.split(", ").filter(|part| !part.is_empty());
        parts.all(|part| {
            let (column, pattern) = part.split_once(": ").unwrap();
            is_in(&row[column], pattern.trim_matches('\''))
        })
    }

    /// The values in a window that the rule looks at.
    fn values(&self, window: &Path) -> BTreeMap<About, u64> {
        let table = rows(&window.join(format!("{}.csv", self.task)));
        let matching: Vec<_> = table.iter().filter(|row| self.matches(row)).collect();
        let metric = self.condition()[0];
        let value = |row: &Cells, column: &str| row[column].parse::<u64>().unwrap();
        match metric.strip_prefix("total.") {
            Some("rows") => BTreeMap::from([(None, matching.len() as u64)]),
            Some(column) => BTreeMap::from([(None, matching.iter().map(|row| value(row, column)).sum())]),
            None => {
                let (_, columns, _) = WATCHED.iter().find(|(task, ..)| *task == self.task).unwrap();
                let about =
                    |row: &Cells| columns.iter().map(|name| (name.to_string(), row[*name].clone())).collect();
                matching.iter().map(|row| (Some(about(row)), value(row, metric))).collect()
            }
        }
    }

    /// Those for which the rule holds in a window.
    fn held(&self, window: &Path) -> BTreeSet<About> {
        let held = self.values(window).into_iter().filter(|(_, value)| self.holds_for(*value));
        held.map(|(about, _)| about).collect()
    }

    /// The active alerts in each window that a folder has, by the second that it begins at. Windows without packets
    /// have no tables and are not judged, but they do break a row.
    fn active(&self, folder: &Path, seconds: &BTreeSet<u64>) -> BTreeMap<u64, BTreeSet<About>> {
        let window = |second: u64| folder.join(window_name(second * SECOND));
        let held: BTreeMap<u64, _> =
            seconds.iter().map(|second| (*second, self.held(&window(*second)))).collect();
        let in_a_row = |about: &About, second: u64| {
            let mut row = (0..self.windows).map(|back| second - back);
            row.all(|second| held.get(&second).is_some_and(|held| held.contains(about)))
        };
        let active =
            |second: &u64| held[second].iter().filter(|about| in_a_row(about, *second)).cloned().collect();
        seconds.iter().map(|second| (*second, active(second))).collect()
    }
}

/// Whether a cell is an address in a network, or just what the pattern says.
fn is_in(cell: &str, pattern: &str) -> bool {
    let Some((network, bits)) = pattern.split_once('/') else { return cell == pattern };
    let bits: u32 = bits.parse().unwrap();
    match (cell.parse::<IpAddr>().unwrap(), network.parse::<IpAddr>().unwrap()) {
        (IpAddr::V4(cell), IpAddr::V4(network)) => {
            (cell.to_bits() ^ network.to_bits()).leading_zeros() >= bits
        }
        (IpAddr::V6(cell), IpAddr::V6(network)) => {
            (cell.to_bits() ^ network.to_bits()).leading_zeros() >= bits
        }
        _ => false,
    }
}

/// What an event tells of an alert.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Told {
    rule: String,
    about: About,
    window: String,
    event: &'static str,
}

/// The events of a rule over the windows of a folder.
fn expected_events(rule: &Rule, folder: &Path, seconds: &BTreeSet<u64>) -> BTreeSet<Told> {
    let (mut events, mut standing) = (BTreeSet::new(), BTreeSet::new());
    for (second, active) in rule.active(folder, seconds) {
        let mut tell = |event, about: &About| {
            let window = rfc3339(second * SECOND);
            events.insert(Told { rule: rule.name.to_owned(), about: about.clone(), window, event });
        };
        active.difference(&standing).for_each(|about| tell("raised", about));
        standing.difference(&active).for_each(|about| tell("withdrawn", about));
        standing = active;
    }
    events
}

/// Complete lines of a file of events, which may not be there yet.
fn events_in(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn told(event: &Value) -> Told {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let about = |columns: &serde_json::Map<String, Value>| {
        columns.iter().map(|(column, value)| (column.clone(), text(value))).collect()
    };
    Told {
        rule: text(&event["rule"]),
        about: event["key"].as_object().map(about),
        window: text(&event["window_start"]),
        event: match event["event"].as_str() {
            Some("raised") => "raised",
            Some("withdrawn") => "withdrawn",
            _ => panic!("{event}"),
        },
    }
}

/// Asserts that every alert is raised before it is withdrawn, under one identifier; gives those that stand in the end.
fn standing_alerts(events: &[Value]) -> BTreeMap<(String, About), String> {
    let mut standing = BTreeMap::new();
    for event in events {
        let Told { rule, about, event: kind, .. } = told(event);
        let id = event["id"].as_str().unwrap().to_owned();
        assert!(id.len() == 16 && id.chars().all(|digit| digit.is_ascii_hexdigit()), "{event}");
        let before = match kind {
            "raised" => standing.insert((rule, about), id.clone()).map(|_| "raised before"),
            _ => (standing.remove(&(rule, about)) != Some(id)).then_some("not raised under this identifier"),
        };
        assert_eq!(before, None, "{event}");
    }
    standing
}

/// Asserts that an event has all that it should have, by the tables of its window.
fn assert_event(event: &Value, rule: &Rule, folder: &Path, second: u64) {
    const NAMES: [&str; 13] = [
        "id",
        "event",
        "rule",
        "task",
        "metric",
        "comparison",
        "threshold",
        "value",
        "key",
        "window_start",
        "window_end",
        "revision",
        "top",
    ];
    for name in NAMES {
        assert!(event.get(name).is_some(), "no {name}: {event}");
    }
    let [metric, comparison, _] = rule.condition();
    assert_eq!(
        (event["task"].as_str(), event["metric"].as_str()),
        (Some(rule.task), Some(metric)),
        "{event}"
    );
    assert_eq!(event["comparison"], comparison, "{event}");
    assert_eq!(number(&event["threshold"]), rule.threshold(), "{event}");
    assert_eq!(event["window_end"], rfc3339((second + 1) * SECOND), "{event}");
    let window = folder.join(window_name(second * SECOND));
    assert_eq!(event["revision"], read_json(&window.join("summary.json"))["revision"], "{event}");
    let top = event["top"].as_array().unwrap();
    assert!(top.len() <= 5 && top.iter().all(Value::is_object), "{event}");
    let told = told(event);
    match event["value"].as_u64() {
        Some(value) => assert_eq!(rule.values(&window).get(&told.about), Some(&value), "{event}"),
        None => assert!(event["value"].is_null() && told.event == "withdrawn", "{event}"),
    }
}

/// Two thirds of a minute in time order: small senders of both families whose packets go up and down, a heavy one, and
/// windows without any.
fn bursts() -> Vec<Packet> {
    let mut random = Random(51);
    let mut packets = Vec::new();
    let sources = ["10.0.0.1", "10.0.0.2", "10.0.1.3", "2001:db8::1", "2001:db8:1::1"];
    for second in 0..40 {
        if [9, 10, 11, 23, 30].contains(&second) {
            continue;
        }
        let mut millisecond = second * 1000;
        let mut send = |source: &str, destination: &str, port: u16, length: u32| {
            millisecond += 5;
            let ports = (4000, port);
            packets.push(Packet { ports, length, ..packet(millisecond, source, destination) });
        };
        for source in sources {
            for _ in 0..random.below(9) {
                let destination = match source.contains(':') {
                    true => "2001:db8:ffff::1",
                    false => random.pick(&["192.0.2.1", "198.51.100.1"]),
                };
                // Nobody asks for names now and then.
                let port = if second % 7 == 3 { 443 } else { random.pick(&[53, 80, 443]) };
                send(source, destination, port, 100);
            }
        }
        (0..10 + random.below(16)).for_each(|_| send("10.9.0.1", "203.0.113.1", 8443, 60_000));
    }
    packets
}

/// A configuration of [`WATCHED`] and these rules, whose events go to a file.
fn watching(rules: &[&Rule], outputs: &[String]) -> String {
    let lines: Vec<_> =
        WATCHED.iter().map(|(task, _, options)| format!("    - {{name: {task}, {options}}}\n")).collect();
    let rules: Vec<_> = rules.iter().map(|rule| rule.line()).collect();
    with_tasks(&[], &lines) + &alerts(&rules, outputs)
}

/// Runs the analyser with these rules on 1, 2 and 3 workers and on 2 processes, and asserts that all write the same
/// events; gives them, and the folder of the first.
fn alerts_in_every_shape(scratch: &Scratch, rules: &[&Rule], capture: &str) -> (Vec<Value>, PathBuf) {
    let config_of = |shape: &str| {
        let file = format!("events-{shape}.jsonl");
        scratch.write(&format!("{shape}.yaml"), watching(rules, &[to_file(&file)]));
        (format!("-q -c {shape}.yaml --window 1s {capture}"), scratch.path(&file))
    };
    let files = ["1", "2", "3"].map(|workers| {
        let (args, file) = config_of(workers);
        scratch.analyze(&format!("-o out-{workers} -w {workers} {args}")).assert(0, "");
        fs::read_to_string(file).unwrap()
    });
    let (args, file) = config_of("cluster");
    let (_, processes) = scratch.start_cluster(2, ANALYZER, "out-cluster", &format!("-w 1 {args}"));
    scratch.assert_end_well(processes, "out-cluster");
    let cluster = fs::read_to_string(file).unwrap();
    for (other, what) in [(&files[1], "2 workers"), (&files[2], "3 workers"), (&cluster, "2 processes")] {
        assert_text(other, &files[0], &format!("events of {capture}, {what} and 1 worker"));
    }
    (events_in(&scratch.path("events-1.jsonl")), scratch.path("out-1"))
}

#[test]
fn alerts_of_a_capture_are_those_of_a_naive_evaluation_of_its_tables() {
    let scratch = Scratch::new();
    let packets = bursts();
    scratch.write("a.pcap", pcap(&packets));
    let seconds: BTreeSet<_> = packets.iter().map(|packet| packet.time / SECOND).collect();
    let rules: Vec<&Rule> = RULES.iter().collect();
    let (events, folder) = alerts_in_every_shape(&scratch, &rules, "a.pcap");
    let found: BTreeSet<_> = events.iter().map(told).collect();
    assert_eq!(found.len(), events.len(), "an event was told twice");
    let mut ids = BTreeMap::new();
    for rule in RULES {
        let expected = expected_events(rule, &folder, &seconds);
        let found: BTreeSet<_> = found.iter().filter(|told| told.rule == rule.name).cloned().collect();
        let missing: Vec<_> = expected.difference(&found).collect();
        let excess: Vec<_> = found.difference(&expected).collect();
        assert!(
            missing.is_empty() && excess.is_empty(),
            "rule {}, missing: {missing:#?}, not expected: {excess:#?}",
            rule.name
        );
        assert_eq!(expected.is_empty(), rule.name == "never", "alerts of {}", rule.name);
        for event in events.iter().filter(|event| event["rule"] == rule.name) {
            let told = told(event);
            let starts_at = |second: &&u64| rfc3339(**second * SECOND) == told.window;
            assert_event(event, rule, &folder, *seconds.iter().find(starts_at).unwrap());
            let alert = (told.rule, told.about, told.window);
            if told.event == "raised" {
                let other = ids.insert(event["id"].to_string(), alert);
                assert_eq!(other, None, "two alerts with one identifier: {event}");
            }
        }
    }
    let standing = standing_alerts(&events).into_keys().collect::<BTreeSet<_>>();
    let last = seconds.last().unwrap();
    let of_rule = |rule: &Rule| {
        let active = rule.active(&folder, &seconds).remove(last).unwrap();
        active.into_iter().map(|about| (rule.name.to_owned(), about)).collect::<Vec<_>>()
    };
    assert_eq!(standing, RULES.iter().flat_map(of_rule).collect(), "alerts that stand in the end");
    // An identifier is made of the rule, the key and the window: other rules do not change it.
    let alone = RULES.iter().find(|rule| rule.name == "lasting").unwrap();
    scratch.write("alone.yaml", watching(&[alone], &[to_file("alone.jsonl")]));
    scratch.write("alone.jsonl", "what an earlier run has left\n");
    scratch.analyze("-q -o alone -c alone.yaml --window 1s a.pcap").assert(0, "");
    let of_alone: Vec<_> = events.into_iter().filter(|event| event["rule"] == alone.name).collect();
    assert_eq!(events_in(&scratch.path("alone.jsonl")), of_alone);
}

#[test]
fn alerts_of_one_window_of_everything_are_of_no_time() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&bursts()));
    let rules: Vec<&Rule> = RULES.iter().collect();
    scratch.write("c.yaml", watching(&rules, &[to_file("alerts.jsonl")]));
    scratch.analyze("-q -o out -c c.yaml --window all a.pcap").assert(0, "");
    let events = events_in(&scratch.path("alerts.jsonl"));
    assert!(events.iter().all(|event| event["window_start"].is_null() && event["window_end"].is_null()));
    let standing = standing_alerts(&events);
    assert_eq!(standing.len(), events.len(), "{events:?}");
    for rule in rules {
        let held = rule.held(&scratch.path("out/all"));
        // Of several windows in a row there is one.
        let expected = if rule.windows == 1 { held } else { BTreeSet::new() };
        let found = standing.keys().filter(|(name, _)| name == rule.name).map(|(_, about)| about.clone());
        assert_eq!(found.collect::<BTreeSet<_>>(), expected, "{}", rule.name);
    }
}

#[test]
fn alerts_over_revised_windows_are_the_same_everywhere_and_end_with_those_of_the_final_tables() {
    // In both a late packet changes what is active in the latest window.
    for seed in [4, 10] {
        let scratch = Scratch::new();
        let packets = traffic(seed);
        scratch.write("a.pcap", pcap(&packets));
        let seconds: BTreeSet<_> = packets.iter().map(|packet| packet.time / SECOND).collect();
        let rules: Vec<&Rule> = RULES.iter().filter(|rule| rule.name != "never").collect();
        let (events, folder) = alerts_in_every_shape(&scratch, &rules, "a.pcap");
        let of_revisions = events.iter().filter(|event| number(&event["revision"]) > 0).count();
        assert!(of_revisions > 0, "no event of a revision, seed {seed}");
        let standing: BTreeSet<_> = standing_alerts(&events).into_keys().collect();
        for rule in rules {
            let active = rule.active(&folder, &seconds).remove(seconds.last().unwrap()).unwrap();
            let standing = standing.iter().filter(|(name, _)| name == rule.name).map(|(_, about)| about);
            assert_eq!(standing.cloned().collect::<BTreeSet<_>>(), active, "{}, seed {seed}", rule.name);
        }
    }
}

#[test]
fn a_bad_rule_or_output_is_refused_with_its_file_line_rule_and_key() {
    const GOOD: &str = "task: per_src, metric: packets, comparison: '>', threshold: 1";
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(52, 50, SECOND)));
    let without = |part: &str| GOOD.replace(part, "").replace(", ,", ",").trim_matches([',', ' ']).to_owned();
    let with = |from: &str, to: &str| GOOD.replace(from, to);
    let rules = [
        (without("task: per_src"), &["task"][..]),
        (without("metric: packets"), &["metric"]),
        (without("comparison: '>'"), &["comparison"]),
        (without("threshold: 1"), &["threshold"]),
        (with("per_src", "per_dst"), &["task"]),
        (with("packets", "elements"), &["metric"]),
        (with("packets", "src_ip"), &["metric"]),
        (with("packets", "total.elements"), &["metric"]),
        (with("packets", "7"), &["metric"]),
        (with("'>'", "'=>'"), &["comparison"]),
        (with("'>'", "above"), &["comparison"]),
        (with("threshold: 1", "threshold: many"), &["threshold"]),
        (with("threshold: 1", "threshold: 1.5"), &["threshold"]),
        (with("threshold: 1", "threshold: 1GB"), &["threshold"]),
        (with("packets", "bytes").replace("threshold: 1", "threshold: 1 parsec"), &["threshold"]),
        (format!("{GOOD}, for: 0"), &["for"]),
        (format!("{GOOD}, for: 100001"), &["for"]),
        (format!("{GOOD}, for: -1"), &["for"]),
        (format!("{GOOD}, for: often"), &["for"]),
        (format!("{GOOD}, match: 10.0.0.0/8"), &["match"]),
        (format!("{GOOD}, match: {{dst_ip: 10.0.0.0/8}}"), &["match", "dst_ip"]),
        (format!("{GOOD}, match: {{src_ip: 10.0.0.0/33}}"), &["match", "src_ip"]),
        (format!("{GOOD}, match: {{src_ip: somewhere}}"), &["match", "src_ip"]),
        (format!("{GOOD}, match: {{packets: 3}}"), &["match", "packets"]),
        (with("per_src", "per_service") + ", match: {dst_port: 70000}", &["match", "dst_port"]),
        (format!("{GOOD}, surprise: 1"), &["surprise"]),
    ];
    let good = format!("name: good, {GOOD}");
    let check = |rule: &str, output: &str, wrong: &str, whose: &str, keys: &[&str]| {
        let base = watching(&[], &[]);
        let tasks = base.split("alerts:").next().unwrap();
        let section = alerts(&[good.clone(), rule.to_owned()], &[output.to_owned()]);
        not_refused(&scratch, &format!("{tasks}{section}"), wrong, whose, keys)
    };
    let file = to_file("alerts.jsonl");
    let mut failures: Vec<String> = Vec::new();
    for (rule, keys) in &rules {
        let rule = format!("name: bad, {rule}");
        failures.extend(check(&rule, &file, &rule, "rule `bad`", keys));
    }
    for name in ["", "name: port scan, ", "name: '', ", "name: port/scan, ", "name: ä, "] {
        let rule = format!("{name}{GOOD}");
        failures.extend(check(&rule, &file, &rule, "", &["name"]));
    }
    // The second one of this name.
    failures.extend(check(&good, &file, &good, "", &["good"]));
    let second = good.replace("good", "second");
    for (output, key) in [
        ("type: pigeon, path: ./alerts.jsonl", "pigeon"),
        ("path: ./alerts.jsonl", "type"),
        ("type: jsonl", "path"),
        ("type: jsonl, path: ./alerts.jsonl, url: \"http://127.0.0.1:9\"", "url"),
        ("type: webhook, secret: hush", "url"),
        ("type: webhook, url: nowhere", "url"),
        ("type: webhook, url: \"ftp://127.0.0.1/hook\"", "url"),
        (
            "type: webhook, url: \"http://127.0.0.1:9\", secret: \"${NETSPECTRA_NOT_SET}\"",
            "NETSPECTRA_NOT_SET",
        ),
        ("type: webhook, url: \"http://127.0.0.1:9\", surprise: 1", "surprise"),
    ] {
        failures.extend(check(&second, output, output, "", &[key]));
    }
    assert_all_refused(failures);
}

// Webhooks.

const SECRET: &str = "a secret of the tests";

/// What was posted.
struct Posted {
    head: String,
    body: Vec<u8>,
}

impl Posted {
    /// Whether a header has the HMAC of the body.
    fn is_signed(&self) -> bool {
        let mut code = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        code.update(&self.body);
        let digits: String = code.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        self.head.to_lowercase().contains(&digits)
    }

    fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// How the hook answers a request.
#[derive(Clone, Copy)]
enum Answer {
    Accept,
    /// It is closed without an answer.
    Close,
    Unavailable,
}

fn read_request(stream: &TcpStream) -> Option<Posted> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or_else(|| panic!("a request without length: {head}"))];
    reader.read_exact(&mut body).ok()?;
    Some(Posted { head, body })
}

/// Answers requests, one a connection, and keeps those that it accepts: the first few as told, then all.
fn serve(listener: TcpListener, first: &'static [Answer]) -> Arc<Mutex<Vec<Posted>>> {
    let posted = Arc::new(Mutex::new(Vec::new()));
    let accepted = Arc::clone(&posted);
    thread::spawn(move || {
        let mut answers = first.iter().copied().chain(std::iter::repeat(Answer::Accept));
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let Some(request) = read_request(&stream) else { continue };
            let status = match answers.next().unwrap() {
                Answer::Accept => "200 OK",
                Answer::Unavailable => "503 Service Unavailable",
                Answer::Close => continue,
            };
            if status.starts_with("200") {
                accepted.lock().unwrap().push(request);
            }
            // One that gives up waiting posts again, and is counted twice.
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    posted
}

/// A run whose events go to a file and to a hook.
fn start_with_hook(scratch: &Scratch, url: &str) -> Running {
    let rules: Vec<&Rule> =
        RULES.iter().filter(|rule| ["heavier", "all-packets"].contains(&rule.name)).collect();
    let hook = format!("type: webhook, url: \"{url}\", secret: \"${{HOOK_SECRET}}\"");
    scratch.write("a.pcap", pcap(&bursts()));
    scratch.write("c.yaml", watching(&rules, &[to_file("alerts.jsonl"), hook]));
    let mut command = scratch.command(ANALYZER, "-c c.yaml -o out --window 1s -w 2 a.pcap");
    command.env("HOOK_SECRET", SECRET);
    Running::start(command)
}

/// The texts of events, in an order of their own.
fn sorted(events: Vec<Value>) -> Vec<String> {
    let mut texts: Vec<_> = events.iter().map(Value::to_string).collect();
    texts.sort();
    texts
}

/// Asserts that a run has ended well and that the hook was told each event of the file once, and signed.
fn assert_posted(scratch: &Scratch, run: &Run, posted: &Mutex<Vec<Posted>>) {
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!run.stderr.contains(SECRET) && !run.stdout.contains(SECRET), "the secret was printed: {run:?}");
    let posted = posted.lock().unwrap();
    assert!(posted.iter().all(|request| request.head.starts_with("POST /hook ")));
    assert!(posted.iter().all(Posted::is_signed), "without a valid code: {}", posted[0].head);
    assert!(!posted.iter().any(|request| request.head.contains(SECRET)));
    let told = sorted(events_in(&scratch.path("alerts.jsonl")));
    assert!(told.len() > 5, "{told:?}");
    assert_eq!(sorted(posted.iter().map(Posted::event).collect()), told);
}

#[test]
fn a_webhook_is_told_each_event_once_and_can_tell_that_it_is_ours() {
    let scratch = Scratch::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let posted = serve(listener, &[]);
    let run = start_with_hook(&scratch, &url).finish();
    assert_posted(&scratch, &run, &posted);
}

#[test]
fn a_webhook_that_is_down_at_first_is_told_all_before_the_program_ends() {
    let scratch = Scratch::new();
    let address = free_addresses(1).remove(0);
    let mut running = start_with_hook(&scratch, &format!("http://{address}/hook"));
    // All is told but to the hook.
    let last = scratch.path("out").join(window_name(START + 39 * SECOND));
    wait_for("last window", || last.exists().then_some(()));
    assert!(!running.is_over(), "the run has ended without its hook");
    let posted = serve(
        TcpListener::bind(&address).unwrap(),
        &[Answer::Close, Answer::Unavailable, Answer::Unavailable],
    );
    let run = running.finish();
    assert_posted(&scratch, &run, &posted);
}

// Edited rules.

/// An engine with its configuration in `config.yaml`, which a test edits.
struct Watched {
    scratch: Scratch,
    server: NatsServer,
    engine: Live,
}

/// A rule over all senders.
fn busy(name: &str, threshold: u64) -> String {
    format!("name: {name}, task: per_src_ip, metric: packets, comparison: \">\", threshold: {threshold}")
}

/// So many seconds from this one on in which each of these sources sends ten packets.
fn steady(from: u64, seconds: u64, sources: &[&str]) -> Vec<u8> {
    let times = (from * 10..(from + seconds) * 10).map(|tenth| tenth * 100 + 1);
    let at = |time| sources.iter().map(move |source| packet(time, source, "192.0.2.1"));
    pcap(&times.flat_map(at).collect::<Vec<_>>())
}

impl Watched {
    fn configuration(rules: &[String]) -> String {
        let tasks = config(&[("per_src_ip", &["SrcIP"]), ("per_dst_port", &["DstPort"])]);
        let tasks = tasks.replace("window: 60s", "window: 1s\n  allowed_lateness: 500ms");
        tasks + &alerts(rules, &[to_file("alerts.jsonl")])
    }

    /// An engine that has counted ten seconds of one source, with these rules.
    fn start(rules: &[String]) -> Self {
        let (scratch, server) = (Scratch::new(), NatsServer::start());
        scratch.write("config.yaml", Self::configuration(rules));
        let engine = scratch.start_engine(&format!("-c config.yaml --nats {} -o out", server.url()));
        let watched = Self { scratch, server, engine };
        watched.send("first", 0, &["10.0.0.1"]);
        watched
    }

    /// Publishes ten seconds of these sources and waits until the windows that they close are there.
    fn send(&self, id: &str, from: u64, sources: &[&str]) {
        let file = format!("{id}.pcap");
        self.scratch.write(&file, steady(from, 10, sources));
        // The engine's file may be bad.
        self.scratch.write("probe.yaml", "nats: {}\n");
        self.scratch.replay(&format!("-c probe.yaml --nats {} --id {id} -r {file}", self.server.url()));
        let closed = self.scratch.path("out").join(window_name(START + (from + 7) * SECOND));
        wait_for("closed window", || closed.exists().then_some(()));
    }

    /// Replaces the file, as most editors do.
    fn edit(&self, text: &str) {
        let next = self.scratch.write("config.next", text);
        fs::rename(next, self.scratch.path("config.yaml")).unwrap();
    }

    fn events(&self) -> Vec<Value> {
        events_in(&self.scratch.path("alerts.jsonl"))
    }

    /// Waits until an alert of this rule about a source is raised or withdrawn; gives how long that took. The engine
    /// must not have ended.
    fn wait_for_event(&mut self, event: &str, rule: &str, source: &str) -> Duration {
        let began = Instant::now();
        wait_for(&format!("{event} alert of {rule}"), || {
            assert!(!self.engine.is_over(), "the engine has ended: {}", self.engine.said());
            let is_it = |told: &Value| {
                told["event"] == event && told["rule"] == rule && told["key"]["src_ip"] == source
            };
            self.events().iter().any(is_it).then_some(())
        });
        began.elapsed()
    }

    /// Asserts that the engine ends well.
    fn stop(self) {
        self.engine.stop_engine(&self.scratch.path("out"));
    }
}

/// Asserts that an edit was in force soon, and prints how soon.
fn assert_soon(what: &str, took: Duration) {
    println!("{what}: {} ms after the edit", took.as_millis());
    assert!(took < Duration::from_secs(5), "{what}: {took:?} after the edit");
}

#[test]
fn a_rule_that_is_added_raises_its_alert_at_once_and_one_that_is_removed_withdraws_it() {
    let mut watched = Watched::start(&[busy("quiet", 1_000_000)]);
    assert_eq!(watched.events(), Vec::<Value>::new());
    watched.edit(&Watched::configuration(&[busy("quiet", 1_000_000), busy("added", 5)]));
    assert_soon("raised", watched.wait_for_event("raised", "added", "10.0.0.1"));
    // In place, as some editors do.
    watched.scratch.write("config.yaml", Watched::configuration(&[busy("quiet", 1_000_000)]));
    assert_soon("withdrawn", watched.wait_for_event("withdrawn", "added", "10.0.0.1"));
    let events = watched.events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(standing_alerts(&events), BTreeMap::new());
    watched.stop();
}

#[test]
fn a_rule_that_stays_while_others_are_edited_keeps_its_alert() {
    let mut watched = Watched::start(&[busy("stays", 5)]);
    watched.wait_for_event("raised", "stays", "10.0.0.1");
    watched.edit(&Watched::configuration(&[busy("added", 5), busy("stays", 5)]));
    watched.wait_for_event("raised", "added", "10.0.0.1");
    watched.edit(&Watched::configuration(&[busy("stays", 5)]));
    watched.wait_for_event("withdrawn", "added", "10.0.0.1");
    let of_stays: Vec<_> = watched.events().into_iter().filter(|event| event["rule"] == "stays").collect();
    assert_eq!(of_stays.len(), 1, "{of_stays:?}");
    watched.stop();
}

#[test]
fn a_bad_edit_is_refused_with_a_message_and_the_old_rules_stay() {
    let mut watched = Watched::start(&[busy("busy", 5)]);
    watched.wait_for_event("raised", "busy", "10.0.0.1");
    let wrong = busy("of-no-task", 5).replace("per_src_ip", "per_nothing");
    let worse = busy("of-no-comparison", 5).replace('>', "=>");
    // Nothing of a bad file counts, not even what is right in it.
    for (text, says) in [
        (Watched::configuration(&[busy("busy", 1_000_000), wrong]), "of-no-task"),
        (Watched::configuration(&[busy("good", 5), worse]), "of-no-comparison"),
        ("alerts: [".to_owned(), "config.yaml:1:"),
    ] {
        watched.edit(&text);
        watched.engine.wait_until_says(says);
        assert!(watched.engine.said().contains("config.yaml"), "{}", watched.engine.said());
    }
    let events = watched.events();
    assert_eq!(events.len(), 1, "{events:?}");
    // The old rule raises alerts still.
    watched.send("second", 20, &["10.0.0.1", "10.0.0.2"]);
    watched.wait_for_event("raised", "busy", "10.0.0.2");
    assert!(watched.events().iter().all(|event| event["rule"] == "busy"), "{:?}", watched.events());
    watched.edit(&Watched::configuration(&[busy("mended", 5)]));
    assert_soon("raised", watched.wait_for_event("raised", "mended", "10.0.0.2"));
    watched.stop();
}

#[test]
fn a_hang_up_signal_has_the_rules_read_again() {
    let mut watched = Watched::start(&[busy("quiet", 1_000_000)]);
    // Where nothing was edited nothing happens.
    watched.engine.signal("HUP");
    watched.edit(&Watched::configuration(&[busy("added", 5)]));
    watched.engine.signal("HUP");
    assert_soon("raised", watched.wait_for_event("raised", "added", "10.0.0.1"));
    watched.engine.signal("HUP");
    watched.edit(&Watched::configuration(&[]));
    watched.engine.signal("HUP");
    assert_soon("withdrawn", watched.wait_for_event("withdrawn", "added", "10.0.0.1"));
    assert_eq!(watched.events().len(), 2, "{:?}", watched.events());
    watched.stop();
}

// What ships.

#[test]
fn the_shipped_example_finds_every_planted_event_and_nothing_else() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/alerts.yaml");
    for seed in [1, 2] {
        let scratch = Scratch::new();
        scratch.generate(&format!("-o a.pcap --events --seed {seed}")).assert(0, "");
        let args = format!("-q -c '{}' -o out --window 3s a.pcap", example.display());
        scratch.analyze(&args).assert(0, "");
        let raised = |event: &Value| event["event"] == "raised";
        let events = events_in(&scratch.path("alerts.jsonl"));
        let mut found: Vec<_> = events
            .iter()
            .filter(|event| raised(event))
            .map(|event| (event["rule"].as_str().unwrap(), &event["key"]["src_ip"], &event["key"]["dst_ip"]))
            .map(|(rule, source, destination)| format!("{rule} {source} {destination}"))
            .collect();
        found.sort();
        let planted = [
            r#"beacon "10.0.0.44" "192.0.2.200""#,
            r#"exfiltration "10.0.0.7" "203.0.113.99""#,
            r#"port-scan "198.51.100.66" "10.0.0.5""#,
            r#"syn-flood null "10.0.0.80""#,
        ];
        assert_eq!(found, planted, "seed {seed}");
    }
}

/// A file of the examples.
fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// An example, built first where it has to be.
fn example_command(name: &str) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .args(["--example", name, "--"]);
    command
}

/// Runs an example.
fn run_example(scratch: &Scratch, name: &str, args: &[&str]) -> Output {
    example_command(name).args(args).current_dir(scratch.path("")).output().unwrap()
}

#[test]
fn an_aggregator_of_ones_own_runs_in_the_analyser() {
    let scratch = Scratch::new();
    let mut packets = vec![packet(0, "10.0.0.1", "192.0.2.1"), packet(1, "10.0.0.1", "192.0.2.1")];
    packets.push(packet(2, "10.0.0.2", "192.0.2.1"));
    scratch.write("a.pcap", pcap(&packets));
    let run = |config: &Path| {
        let args = ["analyze", "-q", "-o", "out", "a.pcap", "-c", config.to_str().unwrap()];
        run_example(&scratch, "custom_aggregator", &args)
    };
    let config = example("custom_aggregator.yaml");
    let ended = run(&config);
    assert!(ended.status.success(), "{ended:?}");
    let table = rows(&scratch.path("out/all/flags_of_src_ip.csv"));
    let columns = ["fin", "syn", "rst", "psh", "ack", "urg"];
    assert_eq!(table.len(), 2, "{table:?}");
    assert!(columns.iter().all(|column| table[0].contains_key(*column)), "{table:?}");
    // Its options are checked as those of the others are.
    let text = fs::read_to_string(config).unwrap().replace("tcp_flags, key_fields", "tcp_flags, key_field");
    let ended = run(&scratch.write("wrong.yaml", text));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(
        said.contains("wrong.yaml:6:") && said.contains("flags_of_src_ip") && said.contains("key_field"),
        "{said}"
    );
}

#[test]
fn a_field_and_a_measure_of_ones_own_run_in_the_analyser() {
    let scratch = Scratch::new();
    let config = example("custom_field.yaml");
    // Two packets of IPv6 with flow label 0x12345, one of them with PSH, and one of IPv4.
    let address = |last: u8| [&[0x20, 1, 13, 184][..], &[0; 11], &[last]].concat();
    let frame = |flags: u8| {
        let headers = [&[2; 12][..], &[0x86, 0xdd, 0x60, 1, 0x23, 0x45, 0, 20, 6, 64]].concat();
        let tcp = [&[0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags][..], &[0; 6]].concat();
        [headers, address(1), address(2), tcp].concat()
    };
    let mut capture = pcap(&[packet(0, "10.0.0.1", "192.0.2.1")]);
    for flags in [0x18, 0x10] {
        let frame = frame(flags);
        let length = (frame.len() as u32).to_le_bytes();
        capture.extend_from_slice(&[&[0; 8][..], &length, &length, &frame].concat());
    }
    scratch.write("a.pcap", capture);
    let args = ["analyze", "-q", "-o", "out", "a.pcap", "-c", config.to_str().unwrap()];
    let ended = run_example(&scratch, "custom_field", &args);
    assert!(ended.status.success(), "{ended:?}");
    let table = fs::read_to_string(scratch.path("out/all/per_label.csv")).unwrap();
    assert_eq!(table, "src_ip,flow_label,packets,psh,syn\n2001:db8::1,74565,2,1,0\n10.0.0.1,0,1,0,0\n");
    // The programs that do not know them say what they know.
    let mut command = Command::new(env!("CARGO_BIN_EXE_pcap-analyzer"));
    let ended = command.arg("-c").arg(&config).arg("a.pcap").current_dir(scratch.path("")).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("custom_field.yaml:5:") && said.contains("unknown field `FlowLabel`"), "{said}");
}

#[test]
fn a_writer_of_ones_own_runs_in_both_programs() {
    let scratch = Scratch::new();
    let packets = [(0, "10.0.0.1"), (1, "10.0.0.1"), (2, "10.0.0.2")];
    scratch.write("a.pcap", pcap(&packets.map(|(time, source)| packet(time, source, "192.0.2.1"))));
    let socket = UnixDatagram::bind(scratch.path("rows.sock")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut datagram = [0; 1 << 16];
    let mut receive = || {
        let length = socket.recv(&mut datagram).ok()?;
        Some(serde_json::from_slice(&datagram[..length]).unwrap())
    };
    let config = example("custom_writer.yaml");
    let analyze = ["analyze", "-q", "-o", "out", "a.pcap", "-c"];
    let run = |config: &Path| {
        run_example(&scratch, "custom_writer", &[analyze.as_slice(), &[config.to_str().unwrap()]].concat())
    };
    let ended = run(&config);
    assert!(ended.status.success(), "{ended:?}");
    // What it was given, and nothing of the task that it was not.
    let received: Vec<Value> = std::iter::from_fn(&mut receive).collect();
    let cells = |row: &Value| (row["task"].clone(), row["src_ip"].clone(), row["packets"].clone());
    let expected = rows(&scratch.path("out/all/per_src_ip.csv")).into_iter().map(|row| {
        let packets: u64 = row["packets"].parse().unwrap();
        (Value::from("per_src_ip"), Value::from(row["src_ip"].as_str()), Value::from(packets))
    });
    assert_eq!(received.iter().map(cells).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    assert_eq!(received.len(), 2);

    // Its options are checked as those of the others are.
    let text = fs::read_to_string(config).unwrap();
    for (mistake, says) in [
        ("pth: ./rows.sock", "datagram writer: unknown key `pth`; did you mean `path`?"),
        ("path: ''", "datagram writer: `path` is empty"),
        ("path: ./rows.sock, send_timeout: 5", "datagram writer: send_timeout: `5`"),
    ] {
        let wrong = text.replace("path: ./rows.sock", mistake);
        let ended = run(&scratch.write("wrong.yaml", wrong));
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains("wrong.yaml:9:") && said.contains(says), "{said}");
    }

    // The engine tries it and shows it with its defaults.
    drop(socket);
    scratch
        .write("engine.yaml", format!("{text}nats: {{url: nats://127.0.0.1:1, connect_timeout: 100ms}}\n"));
    let ended = run_example(&scratch, "custom_writer", &["engine", "--check", "-c", "engine.yaml"]);
    let (shown, said) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(
        shown.contains("- type: datagram\n  name: datagram\n  path: ./rows.sock\n  send_timeout: 5s\n"),
        "{shown}"
    );
    assert!(said.contains("cannot connect to ./rows.sock: Connection refused"), "{said}");
}

/// The groups of all windows that a run has written for a task of five-tuples, as observations: a line of JSON each, in the
/// order of their first packets.
fn observations(folder: &Path, task: &str) -> Vec<String> {
    let mut groups: Vec<_> = windows(folder)
        .iter()
        .flat_map(|window| rows(&folder.join(window).join(format!("{task}.csv"))))
        .map(|row| (row["first_seen"].clone(), row))
        .collect();
    groups.sort_by(|(left, _), (right, _)| left.cmp(right));
    let number = |row: &BTreeMap<String, String>, column: &str| row[column].parse::<u64>().unwrap();
    let line = |(first, row): &(String, BTreeMap<String, String>)| {
        json!({
            "src_ip": row["src_ip"],
            "dst_ip": row["dst_ip"],
            "src_port": number(row, "src_port"),
            "dst_port": number(row, "dst_port"),
            "protocol": number(row, "protocol"),
            "packets": number(row, "packets"),
            "bytes": number(row, "bytes"),
            "first": first,
            "last": row["last_seen"],
        })
        .to_string()
    };
    groups.iter().map(line).collect()
}

/// A folder in which packets were counted a second a window, into `packets`, and what they were as observations.
fn counted_as_packets() -> (Scratch, Vec<String>) {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(9, 4000, 8 * SECOND)));
    let inputs = "inputs:\n  - {type: json_lines, path: ./lines}\n";
    scratch.write("config.yaml", config(SHIPPED));
    scratch.write("engine.yaml", format!("{inputs}{}", config(SHIPPED)));
    scratch.analyze("-q -o packets --window 1s a.pcap").assert(0, "");
    let lines = observations(&scratch.path("packets"), "per_five_tuple");
    assert!(lines.len() < 4000, "some of {} are of several packets", lines.len());
    (scratch, lines)
}

#[test]
fn an_input_of_ones_own_gives_the_snapshots_of_its_packets_and_counts_bad_lines() {
    let (scratch, lines) = counted_as_packets();
    let bad = [
        "not JSON".to_owned(),
        "{\"src_ip\": \"192.0.2.1\"}".to_owned(),
        lines[0].replace("\"packets\":", "\"packets\":0,\"_\":"),
        lines[0].replace("\"bytes\":", "\"bytes\":18446744073709551615,\"_\":"),
        lines[0].replace("\"first\":\"2023", "\"first\":\"2024"),
        format!("{}{}", " ".repeat(70_000), lines[0]),
        "\u{1}".repeat(200_000),
    ];
    let (before, behind) = lines.split_at(lines.len() / 2);
    // An empty line is nothing, and the last one needs no end.
    let text = [before, &bad, &[String::new()], behind].concat().join("\n");
    scratch.write("lines", text);
    for workers in ["1", "3"] {
        let out = format!("out-{workers}");
        let args = ["-q", "-c", "engine.yaml", "--window", "1s", "-w", workers, "-o", &out];
        let ended = run_example(&scratch, "custom_input", &args);
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success(), "{said}");
        let first = format!(
            "./lines: 7 lines are no observations and count as malformed, the first is line {}: expected",
            before.len() + 1
        );
        assert!(said.contains(&first), "{said}");
        let folder = scratch.path(&out);
        assert_same(&snapshots(&scratch.path("packets")), &snapshots(&folder), &out);
        let ledger = assert_balanced(&folder);
        let packets = ["counted", "malformed", "late"].map(|part| number(&ledger["packets"][part]));
        assert_eq!((packets, &ledger["interrupted"]), ([4000, 7, 0], &json!(false)), "{ledger}");
    }
}

#[test]
fn an_input_of_ones_own_counts_what_has_come_when_it_is_told_to_stop() {
    let (scratch, lines) = counted_as_packets();
    let listener = UnixListener::bind(scratch.path("lines")).unwrap();
    // Built before there is a deadline.
    assert!(run_example(&scratch, "custom_input", &["--version"]).status.success());
    let mut command = example_command("custom_input");
    command.args(["-c", "engine.yaml", "--window", "1s", "-o", "out"]).current_dir(scratch.path(""));
    let mut engine = Live::start(command);
    engine.wait_until_says("reading observations from ./lines");
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(format!("{}\n", lines.join("\n")).as_bytes()).unwrap();
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!((number(&ledger["packets"]["counted"]), &ledger["interrupted"]), (4000, &json!(true)));
    assert_same(&snapshots(&scratch.path("packets")), &snapshots(&scratch.path("out")), "over a socket");
    drop(stream);
}

#[test]
fn the_options_of_an_input_of_ones_own_are_checked_as_those_of_the_others_are() {
    let scratch = Scratch::new();
    let text = fs::read_to_string(example("custom_input.yaml")).unwrap();
    let check = |text: String| {
        scratch.write("c.yaml", text);
        let ended = run_example(&scratch, "custom_input", &["--check", "-c", "c.yaml"]);
        let [shown, said] =
            [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert_eq!(ended.status.code(), Some(2), "{said}");
        (shown, said)
    };
    for (entry, line, says) in [
        ("{type: json_lines, pth: x}", 3, "json_lines input: unknown key `pth`; did you mean `path`?"),
        ("{type: json_lines}", 3, "a json_lines input needs the key `path`"),
        ("{type: json_lines, path: ''}", 3, "json_lines input: `path` is empty"),
        (
            "{type: json_line, path: x}",
            3,
            "unknown input type `json_line`; one of nats, interface, json_lines",
        ),
        (
            "{type: nats}\n  - {type: json_lines, path: x}",
            4,
            "an engine reads one input, and this is the second",
        ),
    ] {
        let (_, said) = check(text.replace("{type: json_lines, path: ./observations.jsonl}", entry));
        assert!(said.contains(&format!("c.yaml:{line}:")) && said.contains(says), "{said}");
    }
    let (shown, said) = check(text);
    assert!(shown.contains("inputs:\n- type: json_lines\n  path: ./observations.jsonl\n"), "{shown}");
    assert!(said.contains("cannot find ./observations.jsonl: No such file"), "{said}");
}
