//! Captures made by hand, programs run under a deadline, and a naive count to hold their answers against.
//!
//! Nothing of the library is used here: what is expected is computed from the packets that a test made.

#![allow(dead_code, unreachable_pub)]

pub mod cluster;
pub mod crash;
pub mod faults;
pub mod live;
pub mod partition;
pub mod writers;

use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test gives up on it.
const DEADLINE: Duration = Duration::from_secs(60);
pub const SECOND: u64 = 1_000_000_000;
/// 2023-11-14T22:13:20Z.
pub const START: u64 = 1_700_000_000 * SECOND;
/// The shipped `allowed_lateness`.
const LATENESS: u64 = 5 * SECOND;

/// A task's name and key fields.
pub type Task = (&'static str, &'static [&'static str]);
/// The tasks of the shipped configuration.
pub const SHIPPED: &[Task] = &[
    ("per_src_ip", &["SrcIP"]),
    ("per_dst_ip", &["DstIP"]),
    ("per_src_port", &["SrcPort"]),
    ("per_dst_port", &["DstPort"]),
    ("per_protocol", &["Protocol"]),
    ("per_five_tuple", &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]),
];

/// Tasks that look back, sketches, and rules that raise and withdraw alerts all the time.
pub const QUERIES: &str = "    - {name: talkers, type: top_k, key_fields: [SrcIP, DstIP], k: 5, horizon: 3}
    - {name: spread, type: fan_out, key_fields: [SrcIP], element_fields: [DstIP, DstPort], threshold: 0, horizon: 3}
    - {name: fresh, type: new_keys, key_fields: [DstPort], horizon: 2}
    - {name: moved, type: changes, key_fields: [SrcIP], threshold: 1.5, horizon: 2}
    - {name: heavy, type: count_min, key_fields: [SrcIP], width: 64}
    - {name: wide, type: hll, key_fields: [SrcIP], element_fields: [DstIP], width: 64}
    - {name: sizes, type: quantiles, key_fields: [DstPort], width: 64}
";

/// SplitMix64: the same seed gives the same test.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|at| items.swap(at, self.below(at as u64 + 1) as usize));
    }
}

// Packets and what they look like in a capture.

/// What the program should find in a frame.
#[derive(Clone, Debug)]
pub struct Packet {
    pub time: u64,
    pub length: u32,
    pub vlan: Option<u16>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
    pub protocol: u8,
    pub flags: u8,
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// A UDP packet of 100 bytes between two addresses at `START` plus so many milliseconds.
pub fn packet(milliseconds: u64, source: &str, destination: &str) -> Packet {
    Packet {
        time: START + milliseconds * 1_000_000,
        length: 100,
        vlan: None,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        ports: (1234, 53),
        protocol: UDP,
        flags: 0,
    }
}

/// Nanoseconds from the time of all other packets to the year 2103, which pcap can hold.
pub const FAR: u64 = 80 * 31_556_952 * SECOND;

/// These packets, and some that are dated ahead by mistake: the first, the last, one an hour ahead, and several in a row.
pub fn with_strays(packets: Vec<Packet>) -> Vec<Packet> {
    let (count, mut all) = (packets.len(), packets.clone());
    let strays =
        [(count, FAR), (count / 2, 3600 * SECOND), (count / 3, FAR), (count / 3, FAR + SECOND), (0, FAR)];
    for (at, ahead) in strays {
        let near = packets[at.min(count - 1)].clone();
        all.insert(at, Packet { time: near.time + ahead, ..near });
    }
    all
}

/// Packets of both families and several protocols in time order over `span` nanoseconds, times in whole
/// microseconds; few lengths, so that many rows tie.
pub fn mixed(seed: u64, count: usize, span: u64) -> Vec<Packet> {
    let mut random = Random(seed);
    let address = |random: &mut Random, v6: bool| -> IpAddr {
        let host = random.below(40);
        match (v6, random.below(4)) {
            (false, _) => Ipv4Addr::from_bits(0x0a00_0000 | (host as u32) << (host % 3 * 8)).into(),
            (true, 0) => Ipv4Addr::from_bits(0x0a00_0000 | host as u32).to_ipv6_mapped().into(),
            (true, _) => Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(host) << (host % 4 * 20)).into(),
        }
    };
    let one = |number: usize| {
        let v6 = random.below(3) == 0;
        Packet {
            time: START + (span / 1000 * number as u64 / count as u64) * 1000,
            length: random.pick(&[100, 100, 200, 1400]),
            vlan: (random.below(4) == 0).then(|| random.pick(&[1, 7, 4094])),
            source: address(&mut random, v6),
            destination: address(&mut random, v6),
            ports: (random.pick(&[0, 53, 80, 1024, 65535]), random.pick(&[53, 443, 50_000])),
            protocol: random.pick(&[TCP, TCP, UDP, 1, 132, 47]),
            flags: random.pick(&[0x02, 0x10, 0x18, 0xff]),
        }
    };
    (0..count).map(one).collect()
}

impl Packet {
    fn is_v6(&self) -> bool {
        self.source.is_ipv6() || self.destination.is_ipv6()
    }

    /// Its IP header and up to 24 bytes behind it.
    fn ip(&self, payload: u32) -> Vec<u8> {
        let mut transport = vec![0; 24];
        transport[..2].copy_from_slice(&self.ports.0.to_be_bytes());
        transport[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
        if self.protocol == TCP {
            (transport[12], transport[13]) = (0x50, self.flags);
        }
        let mut ip;
        if self.is_v6() {
            ip = vec![0x60, 0, 0, 0, 0, 0, self.protocol, 64];
            ip[4..6].copy_from_slice(&(payload as u16 - 40).to_be_bytes());
            for address in [self.source, self.destination] {
                let v6 = match address {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                    IpAddr::V6(v6) => v6,
                };
                ip.extend_from_slice(&v6.octets());
            }
        } else {
            ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, self.protocol, 0, 0];
            ip[2..4].copy_from_slice(&(payload as u16).to_be_bytes());
            for address in [self.source, self.destination] {
                let IpAddr::V4(v4) = address else { unreachable!("an IPv4 packet") };
                ip.extend_from_slice(&v4.octets());
            }
        }
        [ip, transport].concat()
    }

    /// The packet in Ethernet, cut off behind its headers.
    pub fn record(&self) -> Record {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        if let Some(vlan) = self.vlan {
            bytes.extend_from_slice(&[0x81, 0, (vlan >> 8) as u8, vlan as u8]);
        }
        bytes.extend_from_slice(if self.is_v6() { &[0x86, 0xdd] } else { &[8, 0] });
        bytes.extend_from_slice(&self.ip(self.length - bytes.len() as u32));
        Record { time: self.time, length: self.length, bytes }
    }
}

/// A frame as a capture holds it.
#[derive(Clone, Debug)]
pub struct Record {
    pub time: u64,
    pub length: u32,
    pub bytes: Vec<u8>,
}

pub fn records(packets: &[Packet]) -> Vec<Record> {
    packets.iter().map(Packet::record).collect()
}

pub const MICROS: u32 = 0xa1b2_c3d4;
pub const NANOS: u32 = 0xa1b2_3c4d;
/// Kuznetzov's variant with longer record headers.
pub const MODIFIED: u32 = 0xa1b2_cd34;
pub const ETHERNET: u32 = 1;
pub const RAW_IP: u32 = 101;
/// Bytes of a pcap file header and of a record header.
pub const FILE_HEADER: usize = 24;
pub const RECORD_HEADER: usize = 16;

/// Numbers in a capture's byte order.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub big: bool,
}

impl Order {
    pub fn words(self, words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| if self.big { word.to_be_bytes() } else { word.to_le_bytes() }).collect()
    }

    pub fn halves(self, halves: &[u16]) -> Vec<u8> {
        halves
            .iter()
            .flat_map(|half| if self.big { half.to_be_bytes() } else { half.to_le_bytes() })
            .collect()
    }
}

/// A pcap file with any magic, byte order and link type.
pub fn pcap_as(magic: u32, order: Order, link: u32, records: &[Record]) -> Vec<u8> {
    let words = |numbers: &[u32]| order.words(numbers);
    let mut file = [words(&[magic]), order.halves(&[2, 4]), words(&[0, 0, 65_535, link])].concat();
    for record in records {
        let fraction = (record.time % SECOND) as u32 / if magic == NANOS { 1 } else { 1000 };
        let seconds = (record.time / SECOND) as u32;
        file.extend_from_slice(&words(&[seconds, fraction, record.bytes.len() as u32, record.length]));
        file.extend_from_slice(&vec![0; if magic == MODIFIED { 8 } else { 0 }]);
        file.extend_from_slice(&record.bytes);
    }
    file
}

pub fn pcap_of(records: &[Record]) -> Vec<u8> {
    pcap_as(NANOS, Order { big: false }, ETHERNET, records)
}

/// The usual capture of these packets: pcap, nanoseconds, Ethernet.
pub fn pcap(packets: &[Packet]) -> Vec<u8> {
    pcap_of(&records(packets))
}

/// A pcapng block.
pub fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
    let length = (12 + body.len() + padding.len()) as u32;
    [&order.words(&[kind, length])[..], body, &padding, &order.words(&[length])].concat()
}

/// A section header and one interface of this link type, with times in units of 10^-`digits` seconds.
pub fn section(order: Order, link: u16, digits: u8) -> Vec<u8> {
    let header =
        [order.words(&[0x1a2b_3c4d]), order.halves(&[1, 0]), order.words(&[u32::MAX, u32::MAX])].concat();
    let resolution = [&order.halves(&[9, 1])[..], &[digits, 0, 0, 0], &[0; 4]].concat();
    let interface = [order.halves(&[link, 0]), order.words(&[0]), resolution].concat();
    [block(order, 0x0a0d_0d0a, &header), block(order, 1, &interface)].concat()
}

/// An enhanced packet block of interface 0.
pub fn enhanced(order: Order, digits: u8, record: &Record) -> Vec<u8> {
    let units = record.time / 10u64.pow(9 - u32::from(digits));
    let fixed = [0, (units >> 32) as u32, units as u32, record.bytes.len() as u32, record.length];
    block(order, 6, &[order.words(&fixed), record.bytes.clone()].concat())
}

/// A pcapng file of one section and one Ethernet interface.
pub fn pcapng(order: Order, digits: u8, records: &[Record]) -> Vec<u8> {
    let mut file = section(order, ETHERNET as u16, digits);
    records.iter().for_each(|record| file.extend_from_slice(&enhanced(order, digits, record)));
    file
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

/// The packet that stops [`Scratch::start_half_read`] halfway.
pub fn half_time() -> Packet {
    packet(30_000, "10.9.9.9", "10.9.9.8")
}

// The naive count.

/// A key's cell; the order of the variants is the order of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    V4(u32, u8),
    V6(u128, u8),
    Number(u16),
}

fn cell(packet: &Packet, field: &str) -> Cell {
    let mut parts = field.split('/');
    let name = parts.next().unwrap();
    let bits: Vec<u8> = parts.map(|bits| bits.parse().unwrap()).collect();
    let (v4_bits, v6_bits) = match bits[..] {
        [] => (32, 128),
        [bits] if bits <= 32 => (bits, 128),
        [bits] => (32, bits),
        _ => (bits[0], bits[1]),
    };
    let address = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(v4) => Cell::V4(v4.to_bits() >> (32 - v4_bits) << (32 - v4_bits), v4_bits),
        IpAddr::V6(v6) => Cell::V6(v6.to_bits() >> (128 - v6_bits) << (128 - v6_bits), v6_bits),
    };
    let has_ports = matches!(packet.protocol, TCP | UDP | 33 | 132 | 136);
    match name {
        "SrcIP" => address(packet.source),
        "DstIP" => address(packet.destination),
        "SrcPort" => Cell::Number(if has_ports { packet.ports.0 } else { 0 }),
        "DstPort" => Cell::Number(if has_ports { packet.ports.1 } else { 0 }),
        "Protocol" => Cell::Number(packet.protocol.into()),
        "VLAN" => Cell::Number(packet.vlan.unwrap_or(0)),
        "TCPFlags" => Cell::Number(if packet.protocol == TCP { packet.flags.into() } else { 0 }),
        "IPVersion" => Cell::Number(if packet.is_v6() { 6 } else { 4 }),
        other => panic!("no field {other}"),
    }
}

fn column(field: &str) -> String {
    let (name, prefix) = field.split_once('/').map_or((field, false), |(name, _)| (name, true));
    let column = match name {
        "SrcIP" => "src_ip",
        "DstIP" => "dst_ip",
        "SrcPort" => "src_port",
        "DstPort" => "dst_port",
        "TCPFlags" => "tcp_flags",
        "IPVersion" => "ip_version",
        other => return other.to_lowercase(),
    };
    if prefix { column.replace("_ip", "_prefix") } else { column.into() }
}

/// RFC 3339 with nine decimals.
pub fn rfc3339(time: u64) -> String {
    format!("{:.9}", Timestamp::from_nanosecond(time.into()).unwrap())
}

/// The csv file that these packets should give for a key.
pub fn table(packets: &[Packet], fields: &[&str]) -> String {
    let mut groups: BTreeMap<Vec<Cell>, (u64, u64, u64, u64)> = BTreeMap::new();
    for packet in packets {
        let key = fields.iter().map(|field| cell(packet, field)).collect();
        let (count, bytes, first, last) = groups.entry(key).or_insert((0, 0, u64::MAX, 0));
        (*count, *bytes) = (*count + 1, *bytes + u64::from(packet.length));
        (*first, *last) = (packet.time.min(*first), packet.time.max(*last));
    }
    let mut rows: Vec<_> = groups.into_iter().collect();
    // Stable, and the map is in the order of keys.
    rows.sort_by_key(|(_, (_, bytes, ..))| std::cmp::Reverse(*bytes));
    let keys: Vec<String> = fields.iter().map(|field| column(field)).collect();
    let mut text = format!("{},packets,bytes,first_seen,last_seen\n", keys.join(","));
    for (key, (count, bytes, first, last)) in rows {
        for (field, cell) in fields.iter().zip(key) {
            let (address, bits) = match cell {
                Cell::Number(number) => {
                    text.push_str(&format!("{number},"));
                    continue;
                }
                Cell::V4(bits, length) => (IpAddr::from(Ipv4Addr::from_bits(bits)), length),
                Cell::V6(bits, length) => (IpAddr::from(Ipv6Addr::from_bits(bits)), length),
            };
            let prefix = if field.contains('/') { format!("/{bits}") } else { String::new() };
            text.push_str(&format!("{address}{prefix},"));
        }
        text.push_str(&format!("{count},{bytes},{},{}\n", rfc3339(first), rfc3339(last)));
    }
    text
}

/// A window's folder name.
pub fn window_name(start: u64) -> String {
    format!("{}Z", rfc3339(start)[..19].replace(':', "-"))
}

/// Packets by the folder they should be counted in; `window` in nanoseconds, 0 for `all`.
fn by_window(packets: &[Packet], window: u64) -> BTreeMap<String, Vec<Packet>> {
    let mut windows: BTreeMap<String, Vec<Packet>> = BTreeMap::new();
    if window == 0 {
        return BTreeMap::from([("all".to_owned(), packets.to_vec())]);
    }
    for packet in packets {
        windows.entry(window_name(packet.time / window * window)).or_default().push(packet.clone());
    }
    windows
}

/// How many packets of one file come after their window has closed.
pub fn late(packets: &[Packet], window: u64) -> u64 {
    const JUMP: u64 = 600 * SECOND;
    let (mut latest, mut late) = (0, 0);
    for (at, packet) in packets.iter().enumerate() {
        let next = &packets[at + 1..packets.len().min(at + 9)];
        let is_contradicted = next.iter().any(|other| other.time + JUMP < packet.time);
        let is_alone = next.is_empty() && latest > 0;
        if packet.time <= latest + JUMP || !is_contradicted && !is_alone {
            latest = latest.max(packet.time);
        }
        late += u64::from((packet.time / window + 1) * window + LATENESS <= latest);
    }
    late
}

/// Asserts that a folder holds exactly the snapshots of these packets, and a ledger that counted them.
pub fn assert_holds(folder: &Path, packets: &[Packet], window: u64, tasks: &[Task]) {
    let expected = by_window(packets, window);
    let names: BTreeSet<String> = expected.keys().cloned().chain(["ledger.json".to_owned()]).collect();
    assert_eq!(entries(folder), names, "the windows in {}", folder.display());
    for (name, packets) in &expected {
        assert_window_holds(&folder.join(name), packets, tasks);
    }
    let ledger = read_json(&folder.join("ledger.json"));
    let bytes: u64 = packets.iter().map(|packet| u64::from(packet.length)).sum();
    assert_eq!(ledger["packets"]["counted"], packets.len() as u64);
    assert_eq!(ledger["bytes"]["counted"], bytes);
    assert_eq!(ledger["windows"], expected.len() as u64);
    assert_eq!(ledger["packets"]["lost"], 0);
}

/// Asserts that a window's folder holds exactly the tables and the summary of these packets.
pub fn assert_window_holds(folder: &Path, packets: &[Packet], tasks: &[Task]) {
    let files: BTreeSet<String> = tasks.iter().map(|(task, _)| format!("{task}.csv")).collect();
    let with_summary: BTreeSet<String> = files.iter().cloned().chain(["summary.json".to_owned()]).collect();
    assert_eq!(entries(folder), with_summary, "the files in {}", folder.display());
    let summary = read_json(&folder.join("summary.json"));
    let bytes: u64 = packets.iter().map(|packet| u64::from(packet.length)).sum();
    for (task, fields) in tasks {
        let path = folder.join(format!("{task}.csv"));
        let (found, expected) = (fs::read_to_string(&path).unwrap(), table(packets, fields));
        let differing = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        let lengths = (found.lines().count(), expected.lines().count());
        assert!(found == expected, "{}: {differing:?} (found, expected), lines {lengths:?}", path.display());
        let totals = &summary["tasks"][task];
        let rows = expected.lines().count() as u64 - 1;
        assert_eq!((&totals["rows"], &totals["packets"]), (&rows.into(), &(packets.len() as u64).into()));
        assert_eq!(totals["bytes"], bytes);
    }
}

/// The names in a folder.
pub fn entries(folder: &Path) -> BTreeSet<String> {
    let names = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The names of the windows that a reader sees in a folder, which may not be there yet.
pub fn windows(folder: &Path) -> Vec<String> {
    let is_window = |name: &String| !name.starts_with('.') && name != "ledger.json";
    if folder.exists() { entries(folder).into_iter().filter(is_window).collect() } else { Vec::new() }
}

pub fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", path.display()))
}

/// The rows of a csv file by column name.
pub fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

/// Every file under a folder; of the ledger all but its inputs.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in entries(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            files.extend(tree(&path).into_iter().map(|(below, bytes)| (Path::new(&name).join(below), bytes)));
        } else if name == "ledger.json" {
            let mut ledger = read_json(&path);
            ledger.as_object_mut().unwrap().remove("inputs").unwrap();
            files.insert(name.into(), ledger.to_string().into_bytes());
        } else {
            files.insert(name.into(), fs::read(&path).unwrap());
        }
    }
    files
}

/// Asserts that two trees are the same, byte for byte.
pub fn assert_same(left: &BTreeMap<PathBuf, Vec<u8>>, right: &BTreeMap<PathBuf, Vec<u8>>, what: &str) {
    assert!(left.keys().eq(right.keys()), "{what}: files {:?} and {:?}", left.keys(), right.keys());
    for (path, bytes) in left {
        let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        let other = &right[path];
        assert!(bytes == other, "{what}: {} differs:\n{}\n{}", path.display(), text(bytes), text(other));
    }
}

/// A configuration of exact tasks whose csv writer writes to `./snapshots`.
pub fn config(tasks: &[Task]) -> String {
    let task = |(name, fields): &Task| {
        format!("    - {{name: {name}, type: exact, key_fields: [{}]}}\n", fields.join(", "))
    };
    let tasks: String = tasks.iter().map(task).collect();
    format!("aggregator:\n  window: 60s\n  tasks:\n{tasks}writers:\n  - {{type: csv, path: ./snapshots}}\n")
}

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    let text = env::var(name).unwrap_or(default.to_string());
    text.parse().unwrap_or_else(|_| panic!("{name}: {text} is no number"))
}

// Running programs.

/// A folder that programs run in.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub fn ledger(&self, folder: &str) -> Value {
        read_json(&self.path(folder).join("ledger.json"))
    }

    /// Starts a program in this folder. Arguments are words, or anything between single quotes.
    pub fn start(&self, program: &str, args: &str) -> Running {
        let words = args.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
            0 => part.split_whitespace().collect(),
            _ => vec![part],
        });
        let mut command = Command::new(program);
        command.args(words).current_dir(self.0.path());
        Running::start(command)
    }

    pub fn start_analyzer(&self, args: &str) -> Running {
        self.start(env!("CARGO_BIN_EXE_pcap-analyzer"), args)
    }

    /// Runs the analyser with nothing on its standard input.
    pub fn analyze(&self, args: &str) -> Run {
        self.start_analyzer(args).finish()
    }

    /// Runs the analyser with these bytes on its standard input.
    pub fn analyze_stdin(&self, args: &str, bytes: &[u8]) -> Run {
        let mut running = self.start_analyzer(args);
        // Where it refuses to run it reads nothing.
        let _ = running.stdin().write_all(bytes);
        running.finish()
    }

    /// Starts a run by seconds over `half.pcap`, made of these packets of a minute. It has read about half of
    /// it and waits for standard input, which holds [`half_time`]'s packet so far.
    pub fn start_half_read(&self, packets: &[Packet]) -> Running {
        self.write("half.pcap", pcap(packets));
        let mut running = self.start_analyzer("-o out --window 1s -w 2 - half.pcap");
        // The file is read until its time has passed this packet's.
        running.stdin().write_all(&pcap(&[half_time()])).unwrap();
        let window = self.path("out").join(window_name(START + 20 * SECOND));
        wait_for("window of the file's first half", || window.exists().then_some(()));
        running
    }

    pub fn generate(&self, args: &str) -> Run {
        self.start(env!("CARGO_BIN_EXE_pcapgen"), args).finish()
    }

    /// Analyses into a new folder, asserts that all went well, and gives the folder's tree.
    pub fn tree_of(&self, args: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        self.tree_of_stdin(args, &[])
    }

    pub fn tree_of_stdin(&self, args: &str, bytes: &[u8]) -> BTreeMap<PathBuf, Vec<u8>> {
        let out = tempfile::tempdir_in(self.0.path()).unwrap();
        let folder = out.path().file_name().unwrap().to_str().unwrap();
        self.analyze_stdin(&format!("-o {folder} {args}"), bytes).assert(0, "");
        tree(out.path())
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Run {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Asserts the exit status and that standard error says this; a run that went well says nothing there.
    pub fn assert(&self, code: i32, says: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.contains(says), "standard error should say {says:?}: {self:?}");
        assert!(code != 0 || !says.is_empty() || self.stderr.is_empty(), "{self:?}");
        assert!(!self.stderr.contains("internal error"), "{self:?}");
    }
}

/// A program that is running; dropped, it is killed.
pub struct Running {
    child: Child,
    outputs: Vec<JoinHandle<String>>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let read = |mut stream: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                String::from_utf8(bytes).unwrap()
            })
        };
        Self { child, outputs: streams.into_iter().map(read).collect() }
    }

    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().unwrap()
    }

    /// Waits until everything written to its standard input was taken out of the pipe.
    pub fn wait_until_read(&mut self) {
        let pipe = self.child.stdin.as_ref().unwrap();
        wait_for("empty pipe", || (rustix::io::ioctl_fionread(pipe).unwrap() == 0).then_some(()));
    }

    /// Waits until the inputs are open and the run has begun.
    pub fn wait_until_running(&self) {
        self.wait_for_thread("sinks");
    }

    /// Waits until it has a thread of this name.
    pub fn wait_for_thread(&self, thread: &str) {
        let threads = format!("/proc/{}/task", self.child.id());
        wait_for(thread, || {
            let names = fs::read_dir(&threads).unwrap().flatten().map(|thread| thread.path().join("comm"));
            let mut names = names.filter_map(|name| fs::read_to_string(name).ok());
            names.any(|name| name.trim_end() == thread).then_some(())
        });
    }

    /// Sends a signal, such as `INT`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", self.child.id())).status();
        assert!(sent.unwrap().success(), "kill -{signal}");
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end without closing its standard input.
    pub fn wait(&mut self) -> Run {
        let status = wait_for("end of the program", || self.child.try_wait().unwrap());
        let mut outputs = self.outputs.drain(..).map(|output| output.join().unwrap());
        Run { code: status.code(), stdout: outputs.next().unwrap(), stderr: outputs.next().unwrap() }
    }

    /// Closes its standard input and waits for its end.
    pub fn finish(mut self) -> Run {
        drop(self.child.stdin.take());
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks until there is something, or the deadline has passed.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < DEADLINE, "no {what} within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
