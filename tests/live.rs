//! The live programs: what they count is what the capture holds, nothing is lost without being counted, and the
//! books balance whatever happens to the server, the probes and the engine.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use support::live::*;
use support::*;

/// Fields that only batches carry, beside those that both encodings do.
const EVERY_FIELD: &[Task] = &[
    ("per_five_tuple", &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]),
    ("per_flags", &["TCPFlags", "Protocol"]),
    ("per_vlan", &["VLAN", "SrcIP/24/64"]),
    ("per_version", &["IPVersion", "DstPort"]),
];
const SINGLE: &str = "gons.packets.raw";
const BATCH: &str = "gons.packets.batch.0";

/// A configuration of these tasks, with lines of the section `nats`. Streams are small, whatever disk is free.
fn live_config(tasks: &[Task], nats: &str) -> String {
    format!("nats:\n  jetstream: {{max_bytes: 256MiB}}\n{nats}{}", config(tasks))
}

/// One whose windows close soon.
fn quick_config(nats: &str) -> String {
    live_config(SHIPPED, nats).replace("window: 60s", "window: 1s\n  allowed_lateness: 500ms")
}

/// Ten minutes of both families, tagged and not, out of order by up to two seconds, some late by minutes, with
/// frames that hold no IP and broken headers in between.
fn ten_minutes() -> Vec<u8> {
    let mut random = Random(21);
    let count = 24_000;
    let mut frames: Vec<_> = mixed(20, count, 600 * SECOND)
        .into_iter()
        .enumerate()
        .map(|(at, mut packet)| {
            packet.time += at as u64 % 1000;
            let delay = if at % 97 == 0 { 8_000 } else { random.below(80) as usize };
            let mut record = packet.record();
            if at % 500 == 0 {
                record.bytes[12..14].copy_from_slice(&[8, 6]);
            } else if at % 500 == 250 {
                // A header shorter than any.
                record.bytes.splice(12.., [8, 0, 0x41, 0, 0, 40]);
            }
            (at + delay, record)
        })
        .collect();
    frames.sort_by_key(|(place, _)| *place);
    pcap_of(&frames.into_iter().map(|(_, record)| record).collect::<Vec<_>>())
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

fn shipped_totals(ledger: &Value) -> [u64; 4] {
    ["read", "counted", "malformed", "lost"].map(|part| number(&ledger["packets"][part]))
}

// The same answer.

fn assert_replay_gives_the_same(encoding: &str, tasks: &[Task], options: &str, flags: &str) {
    let scratch = Scratch::new();
    scratch.write("config.yaml", live_config(tasks, ""));
    scratch.write("a.pcap", ten_minutes());
    scratch.analyze("-q -o offline --window 60s a.pcap").assert(0, "");
    let (offline, expected) = (scratch.ledger("offline"), snapshots(&scratch.path("offline")));
    assert_eq!(["non_ip", "malformed"].map(|part| number(&offline["packets"][part])), [48, 48]);
    assert!(number(&offline["packets"]["late"]) > 100, "{offline}");
    for workers in [1, 2] {
        let server = NatsServer::with(options);
        let to = format!("--nats {} {flags}", server.url());
        let out = scratch.path(&format!("out-{workers}"));
        let engine = scratch.start_engine(&format!("{to} -o out-{workers} -w {workers}"));
        let report = scratch.replay(&format!("{to} --encoding {encoding} -r a.pcap"));
        if options == JETSTREAM {
            server.wait_until_delivered();
        }
        let ledger = engine.stop_engine(&out);
        let what = format!("{encoding} {flags}, {workers} workers");
        assert_same(&expected, &snapshots(&out), &what);
        assert_eq!(report["packets"]["sent"], offline["packets"]["counted"], "{what}");
        assert_eq!(ledger["packets"]["counted"], offline["packets"]["counted"], "{what}");
        assert_eq!(ledger["packets"]["lost"], 0, "{what}");
        if encoding == "batch" {
            assert_eq!(
                (&ledger["packets"], &ledger["bytes"]),
                (&offline["packets"], &offline["bytes"]),
                "{what}"
            );
        }
    }
}

#[test]
fn packets_dated_ahead_by_mistake_give_the_snapshots_of_the_capture_too() {
    let packets = with_strays(mixed(23, 9_000, 300 * SECOND));
    // What is between others is known by those before it alone, where each packet comes by itself.
    let mut far = mixed(24, 900, 300 * SECOND);
    far.insert(500, Packet { time: START + FAR, ..far[500].clone() });
    for (encoding, packets) in [("batch", &packets), ("single", &far)] {
        let scratch = Scratch::new();
        scratch.write("config.yaml", live_config(SHIPPED, ""));
        scratch.write("a.pcap", pcap(packets));
        scratch.analyze("-q -o offline --window 60s a.pcap").assert(0, "");
        for (options, flags) in [("", ""), (JETSTREAM, "--jetstream")] {
            let server = NatsServer::with(options);
            let to = format!("--nats {} {flags}", server.url());
            let out = scratch.path(&format!("out{flags}"));
            let engine = scratch.start_engine(&format!("{to} -o out{flags} -w 2"));
            scratch.replay(&format!("{to} --encoding {encoding} -r a.pcap"));
            if options == JETSTREAM {
                server.wait_until_delivered();
            }
            let ledger = engine.stop_engine(&out);
            assert_eq!(ledger["packets"]["late"], 0, "{encoding} {flags}");
            assert_holds(&out, packets, 60 * SECOND, SHIPPED);
            let offline = snapshots(&scratch.path("offline"));
            assert_same(&offline, &snapshots(&out), &format!("{encoding} {flags}"));
        }
    }
}

#[test]
fn batches_over_core_nats_give_the_snapshots_of_the_capture() {
    assert_replay_gives_the_same("batch", EVERY_FIELD, "", "");
}

#[test]
fn batches_over_jetstream_give_the_snapshots_of_the_capture() {
    assert_replay_gives_the_same("batch", EVERY_FIELD, JETSTREAM, "--jetstream");
}

#[test]
fn single_messages_over_core_nats_give_the_snapshots_of_the_capture() {
    assert_replay_gives_the_same("single", SHIPPED, "", "");
}

#[test]
fn single_messages_over_jetstream_give_the_snapshots_of_the_capture() {
    assert_replay_gives_the_same("single", SHIPPED, JETSTREAM, "--jetstream");
}

// Fields that a probe is told to send.

/// A configuration of these tasks and of one that asks for more than every packet has, with a line for probes.
fn marked_config(fields: &str) -> String {
    let keys = "SrcIP, DSCP, TTL, SrcMAC, Interface";
    let marked = format!(
        "    - {{name: per_mark, type: exact, key_fields: [{keys}], measures: [packets, payload_bytes, ttl_min]}}\nwriters:"
    );
    format!("{fields}{}", live_config(&[("per_src_ip", &["SrcIP"])], "").replace("writers:", &marked))
}

const SENT: &str = "DSCP, TTL, SrcMAC, Interface, PayloadBytes, Fragment";
const LONG_NAME: &str = r"\Device\NPF_{3F2504E0-4F89-11D3-9A0C-0305E82C3301}";

/// Frames of three interfaces, one without a name, with marks that differ from packet to packet; out of order, some late
/// by a minute, some dated ahead by mistake.
fn marked_frames() -> Vec<u8> {
    let order = Order { big: false };
    let header =
        [order.words(&[0x1a2b_3c4d]), order.halves(&[1, 0]), order.words(&[u32::MAX, u32::MAX])].concat();
    let mut file = block(order, 0x0a0d_0d0a, &header);
    for name in ["eth0", "", LONG_NAME] {
        let mut body =
            [order.halves(&[1, 0]), order.words(&[0]), order.halves(&[9, 1]), vec![9, 0, 0, 0]].concat();
        if !name.is_empty() {
            let mut text = name.as_bytes().to_vec();
            text.resize(name.len().next_multiple_of(4), 0);
            body = [body, order.halves(&[2, name.len() as u16]), text].concat();
        }
        file.extend(block(order, 1, &[body, vec![0; 4]].concat()));
    }
    let mut random = Random(32);
    let packets = with_strays(mixed(31, 9_000, 600 * SECOND)).into_iter().enumerate();
    let mut packets: Vec<_> = packets
        .map(|(at, packet)| (at + if at % 97 == 0 { 1_200 } else { random.below(40) as usize }, at, packet))
        .collect();
    packets.sort_by_key(|(place, ..)| *place);
    for (_, at, packet) in packets {
        let mut record = packet.record();
        record.bytes[11] = (at % 5) as u8;
        if record.bytes[12..14] == [8, 0] {
            (record.bytes[15], record.bytes[22]) = ((at % 7 * 4) as u8, 64 - (at % 4) as u8);
        }
        let (time, length) = (record.time, record.bytes.len() as u32);
        let fixed = [at as u32 % 3, (time >> 32) as u32, time as u32, length, record.length];
        file.extend(block(order, 6, &[order.words(&fixed), record.bytes].concat()));
    }
    file
}

/// The capture and the configuration in a folder, and the answer without any bus.
fn marked_scratch() -> (Scratch, BTreeMap<PathBuf, Vec<u8>>, Value) {
    let scratch = Scratch::new();
    scratch.write("config.yaml", marked_config(&format!("fields: [{SENT}]\n")));
    scratch.write("a.pcapng", marked_frames());
    scratch.analyze("-q -o offline --window 60s a.pcapng").assert(0, "");
    let expected = snapshots(&scratch.path("offline"));
    let marks = expected.iter().find(|(path, _)| path.ends_with("per_mark.csv")).unwrap().1;
    let marks = String::from_utf8_lossy(marks);
    assert!(
        marks.starts_with("src_ip,dscp,ttl,src_mac,interface,packets,payload_bytes,ttl_min\n"),
        "{marks}"
    );
    assert!(marks.contains(",62,02:00:00:00:00:01,eth0,") && marks.contains(LONG_NAME), "{marks}");
    let ledger = scratch.ledger("offline");
    (scratch, expected, ledger)
}

#[test]
fn fields_that_a_probe_sends_give_the_snapshots_of_the_capture() {
    let (scratch, expected, offline) = marked_scratch();
    for (options, flags) in [("", ""), (JETSTREAM, "--jetstream")] {
        for workers in [1, 2] {
            let server = NatsServer::with(options);
            let to = format!("--nats {} {flags}", server.url());
            let out = scratch.path(&format!("out{flags}{workers}"));
            let engine = scratch.start_engine(&format!("{to} -o out{flags}{workers} -w {workers}"));
            scratch.replay(&format!("{to} -r a.pcapng"));
            if options == JETSTREAM {
                server.wait_until_delivered();
            }
            assert!(!engine.said().contains("come without"), "{}", engine.said());
            let ledger = engine.stop_engine(&out);
            let what = format!("{flags}, {workers} workers");
            assert_same(&expected, &snapshots(&out), &what);
            assert_eq!(ledger["packets"], offline["packets"], "{what}");
        }
    }
}

#[test]
fn fields_come_back_from_the_log_after_a_kill() {
    let (scratch, ..) = marked_scratch();
    let server = NatsServer::with(JETSTREAM);
    let to = format!("--nats {} --jetstream", server.url());
    let mut engine = scratch.start_engine(&format!("{to} -o out"));
    scratch.replay(&format!("{to} --id tap --count 5000 -r a.pcapng"));
    engine.wait_until_says("written");
    server.wait_until_delivered();
    engine.signal("KILL");
    engine.wait();
    let engine = scratch.start_engine(&format!("{to} -o out -w 2"));
    scratch.replay(&format!("{to} --id tap -r a.pcapng"));
    server.wait_until_delivered();
    engine.stop_engine(&scratch.path("out"));
    // How often windows were revised depends on where the first replay ended.
    let (expected, found) = (tables(&scratch.path("offline")), tables(&scratch.path("out")));
    assert_same(&expected, &found, "killed and started again");
}

#[test]
fn a_probe_that_does_not_send_what_tasks_ask_for_is_named_once_and_its_packets_count() {
    for (options, flags) in [("", ""), (JETSTREAM, "--jetstream")] {
        let scratch = Scratch::new();
        let packets = mixed(33, 9_000, 50 * SECOND);
        scratch.write("config.yaml", marked_config(""));
        scratch.write("a.pcap", pcap(&packets));
        let server = NatsServer::with(options);
        let to = format!("--nats {} {flags}", server.url());
        let mut engine = scratch.start_engine(&format!("{to} -o out -w 2 --http 127.0.0.1:0"));
        engine.wait_until_says("answering at");
        for id in ["--id none", "--id some --fields DSCP,TTL", "--encoding single"] {
            scratch.replay(&format!("{to} {id} -r a.pcap"));
        }
        if options == JETSTREAM {
            server.wait_until_delivered();
        }
        let all = "DSCP, TTL, SrcMAC, Interface, PayloadBytes";
        let told = [
            format!("packets of probe none come without {all}, which tasks ask for"),
            "packets of probe some come without SrcMAC, Interface, PayloadBytes, which".into(),
            format!("packets on gons.packets.raw come without {all}"),
        ];
        told.iter().for_each(|told| engine.wait_until_says(told));
        let said = engine.said();
        let (_, address) = said.split_once("answering at http://").unwrap();
        let mut http = std::net::TcpStream::connect(address.lines().next().unwrap()).unwrap();
        http.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let ready = std::io::read_to_string(http).unwrap();
        assert!(
            ready.starts_with("HTTP/1.1 200") && told[..2].iter().all(|told| ready.contains(told)),
            "{ready}"
        );
        for told in &told {
            assert_eq!(engine.said().matches(told.as_str()).count(), 1, "{}", engine.said());
        }
        let ledger = engine.stop_engine(&scratch.path("out"));
        assert_eq!(shipped_totals(&ledger), [27_000, 27_000, 0, 0], "{flags}: {ledger}");
        let tables = snapshots(&scratch.path("out"));
        let marks = tables.iter().find(|(path, _)| path.ends_with("per_mark.csv")).unwrap().1;
        let marks = String::from_utf8_lossy(marks);
        assert!(marks.contains(",0,0,00:00:00:00:00:00,,"), "{marks}");
        assert!(marks.contains(",0,64,00:00:00:00:00:00,,"), "{marks}");
    }
}

#[test]
fn fields_that_cannot_be_sent_are_refused_or_told() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(1, 10, SECOND)));
    for (flags, says) in [
        ("--fields SrcIP,TTL", "--fields: `SrcIP` comes with every packet; leave it out"),
        ("--fields Colour", "--fields: unknown field `Colour`; one of DSCP, ECN, TTL"),
        ("--fields TTL --encoding single", "--fields: a message of one packet has no room"),
    ] {
        let run = scratch.start(PROBE, &format!("{flags} -r a.pcap")).finish();
        run.assert(2, says);
    }
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
    scratch.write("probe.yaml", "fields: [TTL]\n");
    let to = format!("--nats {} -c probe.yaml -q", server.url());
    let run = scratch.start(PROBE, &format!("{to} --encoding single -r a.pcap")).finish();
    run.assert(0, "the fields of the configuration are not sent");
    // An engine that asks for none passes over what a probe sends.
    scratch.start(PROBE, &format!("{to} -r a.pcap")).finish().assert(0, "");
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!(shipped_totals(&ledger), [20, 20, 0, 0], "{ledger}");
}

#[test]
fn fields_are_printed_by_whoever_subscribes() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&[packet(0, "10.0.0.1", "10.0.0.2")]));
    let server = NatsServer::start();
    let mut watching = scratch.start_probe(&format!("--mode sub --nats {} --count 1", server.url()));
    watching.wait_until_says("subscribed to");
    scratch.replay(&format!("--nats {} --id tap --fields TTL,DstMAC,Interface -r a.pcap", server.url()));
    let run = watching.wait();
    let line: Value = serde_json::from_str(run.stdout.trim_end()).unwrap_or_else(|_| panic!("{run:?}"));
    let mut expected = line_of(&packet(0, "10.0.0.1", "10.0.0.2"));
    expected["probe"] = json!("tap");
    expected["ttl"] = json!(64);
    expected["dst_mac"] = json!("02:00:00:00:00:01");
    expected["interface"] = json!("");
    assert_eq!(line, expected);
}

#[test]
fn a_replay_of_the_same_name_published_twice_is_counted_once() {
    let scratch = Scratch::new();
    let packets = mixed(1, 5_000, 60 * SECOND);
    scratch.write("config.yaml", live_config(SHIPPED, ""));
    scratch.write("a.pcap", pcap(&packets));
    let server = NatsServer::with(JETSTREAM);
    let engine = scratch.start_engine(&format!("--nats {} --jetstream -o out", server.url()));
    for _ in 0..2 {
        scratch.replay(&format!("--nats {} --jetstream --id tap -r a.pcap", server.url()));
    }
    server.wait_until_delivered();
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &packets, 60 * SECOND, SHIPPED);
}

#[test]
fn a_replay_that_is_cut_in_another_way_is_counted_once() {
    let scratch = Scratch::new();
    let packets = mixed(11, 60_000, 60 * SECOND);
    scratch.write("config.yaml", live_config(SHIPPED, ""));
    scratch.write("a.pcap", pcap(&packets));
    for (options, flags) in [("", ""), (JETSTREAM, "--jetstream")] {
        let server = NatsServer::with(options);
        let out = scratch.path(&format!("out{flags}"));
        let engine = scratch.start_engine(&format!("--nats {} {flags} -o out{flags} -w 2", server.url()));
        // Stopped, then at a pace that cuts batches elsewhere, then to the end.
        for more in ["--count 12345", "--pace 20x --count 20000", "--pace 30x --count 45000", ""] {
            scratch.replay(&format!("--nats {} {flags} --id tap {more} -r a.pcap", server.url()));
        }
        if options == JETSTREAM {
            server.wait_until_delivered();
        }
        let ledger = engine.stop_engine(&out);
        assert_eq!(shipped_totals(&ledger), [60_000, 60_000, 0, 0], "{flags}: {ledger}");
        assert_holds(&out, &packets, 60 * SECOND, SHIPPED);
    }
}

#[test]
fn filter_count_and_pace_of_a_replay_hold_and_are_in_the_books() {
    let scratch = Scratch::new();
    let packets = mixed(2, 4_000, 10 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    // A fifth of a second, in the capture's own time and eight times as fast.
    for pace in ["--id once --count 80 --pace original", "--id fast --count 640 --pace 8x"] {
        let report = scratch.replay(&format!("--nats {} {pace} -r a.pcap", server.url()));
        let seconds = report["elapsed_seconds"].as_f64().unwrap();
        assert!((0.15..5.0).contains(&seconds), "{pace}: {report}");
    }
    let report = scratch.replay(&format!("--nats {} --id filtered -f udp -r a.pcap", server.url()));
    let is_udp = |packet: &&Packet| packet.protocol == UDP && packet.vlan.is_none();
    let udp = packets.iter().filter(is_udp).count() as u64;
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!(["read", "sent"].map(|part| number(&report["packets"][part])), [4_000, udp]);
    assert_eq!(number(&ledger["packets"]["counted"]), 80 + 640 + udp);
    assert_eq!(number(&ledger["packets"]["filtered"]), 4_000 - udp);
    assert_eq!(number(&ledger["packets"]["lost"]), 0);
}

// Messages of others.

/// Messages of another implementation's encoder.
const GOLDEN: [&str; 4] = [
    "0a0b0880e2cfaa0610959aef3a12150a040a0102031204c0a8000918bb920320bb03280618ea0b",
    "0a0b0880e2cfaa0610959aef3a122c0a1000000000000000000000ffff0a010203121000000000000000000000ffffc0a80009183520b584022811185a",
    "0a021001122c0a1020010db8000000000000000000000001121020010db800000001000000000000ffff18e92920e92928111878",
    "0a060881e2cfaa06120e0a040101010112040808080828011862",
];
/// Without five-tuple, without time, an address of five bytes, a port over 16 bits.
const REFUSED: [&str; 4] = [
    "0a0b0880e2cfaa0610959aef3a183c",
    "120e0a040101010112040808080828011862",
    "0a0b0880e2cfaa0610959aef3a120f0a05010203040512040808080828011862",
    "0a0b0880e2cfaa0610959aef3a12140a040101010112040808080818f0a204200128061862",
];

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// What the golden messages say.
fn golden_packets() -> [Packet; 4] {
    let with = |time, length, source, destination, ports, protocol| Packet {
        time,
        length,
        ports,
        protocol,
        ..packet(0, source, destination)
    };
    [
        with(START + 123_456_789, 1514, "10.1.2.3", "192.168.0.9", (51515, 443), TCP),
        with(START + 123_456_789, 90, "10.1.2.3", "192.168.0.9", (53, 33333), UDP),
        with(1, 120, "2001:db8::1", "2001:db8:0:1::ffff", (5353, 5353), UDP),
        with(START + SECOND, 98, "1.1.1.1", "8.8.8.8", (0, 0), 1),
    ]
}

#[test]
fn messages_of_another_encoder_are_counted_as_what_they_say_or_as_malformed() {
    for (workers, options, flags) in [(1, "", ""), (2, JETSTREAM, "--jetstream")] {
        let scratch = Scratch::new();
        scratch.write("config.yaml", live_config(SHIPPED, ""));
        let server = NatsServer::with(options);
        let engine = scratch.start_engine(&format!("--nats {} {flags} -o out -w {workers}", server.url()));
        let mut client = server.connect();
        for (good, refused) in GOLDEN.into_iter().zip(REFUSED) {
            client.publish(SINGLE, &bytes_of(good));
            client.publish(SINGLE, &bytes_of(refused));
        }
        client.flush();
        if options == JETSTREAM {
            server.wait_until_delivered();
        }
        let ledger = engine.stop_engine(&scratch.path("out"));
        assert_holds(&scratch.path("out"), &golden_packets(), 60 * SECOND, SHIPPED);
        assert_eq!(shipped_totals(&ledger), [8, 4, 4, 0]);
        assert_eq!(ledger["inputs"][0]["format"], "nats-single");
    }
}

#[test]
fn garbage_of_any_size_on_any_subject_is_counted_as_malformed() {
    let scratch = Scratch::new();
    let server = NatsServer::with("max_payload: 16MB");
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut client = server.connect();
    let mut random = Random(3);
    let mut garbage: Vec<Vec<u8>> =
        (0..200_u64).map(|length| (0..length).map(|_| random.below(256) as u8).collect()).collect();
    // Eight MiB of noise, of zeros, and of a field that promises more than there is; somebody else's text.
    garbage.push((0..8 << 20).map(|at: u32| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect());
    garbage.push(vec![0; 8 << 20]);
    garbage.push([0x12, 0xff, 0xff, 0xff, 0xff, 0x7f].into_iter().chain(vec![1; 8 << 20]).collect());
    garbage.push(b"{\"src_ip\":\"10.0.0.1\"}".to_vec());
    for payload in &garbage {
        for subject in [SINGLE, BATCH] {
            client.publish(subject, payload);
        }
        client.publish(SINGLE, &packet_info(&golden_packets()[0]));
    }
    client.flush();
    let ledger = engine.stop_engine(&scratch.path("out"));
    let count = garbage.len() as u64;
    assert_eq!(shipped_totals(&ledger), [3 * count, count, 2 * count, 0]);
    assert_holds(
        &scratch.path("out"),
        &vec![golden_packets()[0].clone(); garbage.len()],
        60 * SECOND,
        SHIPPED,
    );
}

/// Replays `a.pcap` and gives the batches that went over the bus, with their subjects.
fn replayed_batches(scratch: &Scratch, server: &NatsServer) -> Vec<(String, Vec<u8>)> {
    let mut client = server.connect();
    client.subscribe("gons.packets.batch.>");
    scratch.replay(&format!("--nats {} -r a.pcap", server.url()));
    client.flush();
    client.messages.into()
}

#[test]
fn batches_that_come_again_are_counted_once() {
    let scratch = Scratch::new();
    let packets = mixed(4, 20_000, 60 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let batches = replayed_batches(&scratch, &server);
    let mut client = server.connect();
    batches.iter().for_each(|(subject, batch)| client.publish(subject, batch));
    client.flush();
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &packets, 60 * SECOND, SHIPPED);
}

#[test]
fn damaged_batches_stop_no_engine_and_unbalance_no_books() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(5, 300, 10 * SECOND)));
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    // Heartbeats are small.
    let batches = replayed_batches(&scratch, &server);
    let (subject, batch) = batches.iter().max_by_key(|(_, batch)| batch.len()).unwrap();
    let (mut client, mut random) = (server.connect(), Random(6));
    for number in 0..600 {
        let mut damaged = batch.clone();
        let at = random.below(batch.len() as u64) as usize;
        match number % 3 {
            0 => damaged.truncate(at),
            1 => damaged[at] ^= 1 << random.below(8),
            _ => damaged.extend_from_slice(&batch[at..]),
        }
        client.publish(subject, &damaged);
    }
    client.flush();
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert!(number(&ledger["packets"]["counted"]) >= 300, "{ledger}");
}

// The books under stress.

/// A replay of eight seconds during which the server is away for one; the ledger and the probe's report.
fn replay_through_an_outage(scratch: &Scratch, options: &str, flags: &str) -> (Value, Value) {
    scratch.write("config.yaml", live_config(SHIPPED, ""));
    scratch.generate("-o a.pcap --packets 20000 --flows 1000 --duration 160s").assert(0, "");
    let mut server = NatsServer::with(options);
    let engine = scratch.start_engine(&format!("--nats {} {flags} -o out -w 2", server.url()));
    let mut client = server.connect();
    client.subscribe("gons.packets.batch.>");
    let mut probe =
        scratch.start_probe(&format!("--nats {} {flags} --json --id tap --pace 20x -r a.pcap", server.url()));
    (0..10).for_each(|_| drop(client.next()));
    server.stop();
    // How long it is away, not a wait for anything.
    thread::sleep(Duration::from_secs(1));
    server.start_again();
    if flags.is_empty() {
        server.wait_until_subscribed();
        assert!(!probe.is_over(), "the replay ended before the engine was back");
    }
    let report = probe.report();
    assert_ne!(report["reconnects"], 0, "{report}");
    if !flags.is_empty() {
        server.wait_until_delivered();
    }
    (engine.stop_engine(&scratch.path("out")), report)
}

#[test]
fn what_is_lost_while_the_server_is_away_is_counted() {
    let scratch = Scratch::new();
    let (ledger, report) = replay_through_an_outage(&scratch, "", "");
    assert_accounted(&report, input(&ledger, "tap"));
}

#[test]
fn nothing_is_lost_while_the_server_is_away_with_jetstream() {
    let scratch = Scratch::new();
    let (ledger, report) = replay_through_an_outage(&scratch, JETSTREAM, "--jetstream");
    assert_eq!(assert_accounted(&report, input(&ledger, "tap")), 0);
    assert_eq!(number(&ledger["packets"]["counted"]), 20_000);
    scratch.analyze("-q -o offline --window 60s a.pcap").assert(0, "");
    assert_same(&snapshots(&scratch.path("offline")), &snapshots(&scratch.path("out")), "through an outage");
}

#[test]
fn an_engine_that_was_frozen_while_probes_came_and_went_counts_all_they_sent() {
    let scratch = Scratch::new();
    scratch.generate("-o north.pcap --packets 20000 --flows 1000 --duration 100s").assert(0, "");
    scratch.generate("-o south.pcap --packets 20000 --flows 1000 --duration 100s --seed 2").assert(0, "");
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut client = server.connect();
    client.subscribe("gons.packets.batch.>");
    let mut north =
        scratch.start_probe(&format!("--nats {} --json --id north --pace 20x -r north.pcap", server.url()));
    client.next();
    engine.signal("STOP");
    let south = scratch.start_probe(&format!("--nats {} --json --id south -r south.pcap", server.url()));
    // How long it is frozen, not a wait for anything.
    thread::sleep(Duration::from_secs(3));
    engine.signal("CONT");
    assert!(!north.is_over(), "the replay ended before the engine went on");
    let [north, south] = [north, south].map(Live::report);
    let ledger = engine.stop_engine(&scratch.path("out"));
    for (name, report) in [("north", &north), ("south", &south)] {
        assert_eq!(assert_accounted(report, input(&ledger, name)), 0, "{name}");
    }
    scratch.analyze("-q -o offline --window 60s north.pcap south.pcap").assert(0, "");
    assert_same(&tables(&scratch.path("offline")), &tables(&scratch.path("out")), "frozen");
}

#[test]
fn what_an_engine_cannot_take_is_counted_as_lost() {
    for encoding in ["batch", "single"] {
        let scratch = Scratch::new();
        scratch.write("config.yaml", live_config(SHIPPED, "  buffer: 256KiB\n"));
        scratch.generate("-o a.pcap --packets 100000 --flows 20000").assert(0, "");
        let server = NatsServer::start();
        let engine = scratch.start_engine(&format!("--nats {} -o out -w 1", server.url()));
        // Frozen, so that all of this comes at once: from somebody who never waits, and from a probe.
        engine.signal("STOP");
        let mut client = server.connect();
        let message = packet_info(&golden_packets()[0]);
        (0..50_000).for_each(|_| client.publish(SINGLE, &message));
        client.flush();
        let args = format!("--nats {} --json --encoding {encoding} --id tap -r a.pcap", server.url());
        let probe = scratch.start_probe(&args);
        thread::sleep(Duration::from_secs(1));
        engine.signal("CONT");
        let report = probe.report();
        let ledger = engine.stop_engine(&scratch.path("out"));
        let sent = ["sent", "dropped"].map(|part| number(&report["packets"][part])).iter().sum::<u64>();
        assert_eq!(sent, 100_000, "{report}");
        let books = ["counted", "lost"].map(|part| number(&ledger["packets"][part])).iter().sum::<u64>();
        assert_eq!(books, sent + 50_000, "{encoding}: {ledger}");
    }
}

#[test]
fn an_engine_told_to_stop_in_the_middle_of_a_flood_counts_all_it_has_received() {
    for (signal, workers, encoding) in [("TERM", 1, "batch"), ("INT", 2, "batch"), ("TERM", 2, "single")] {
        let scratch = Scratch::new();
        let server = NatsServer::start();
        let mut engine = scratch.start_engine(&format!("--nats {} -o out -w {workers}", server.url()));
        let mut probe = scratch.start_probe(&format!("--nats {} --encoding {encoding} -r -", server.url()));
        probe.flood();
        let out = scratch.path("out");
        wait_for("two windows", || (windows(&out).len() >= 2).then_some(()));
        engine.signal(signal);
        let run = engine.wait();
        assert_eq!(run.code, Some(0), "{run:?}");
        let ledger = assert_balanced(&out);
        assert!(number(&ledger["packets"]["counted"]) >= 15_000, "{ledger}");
        assert!(!probe.is_over(), "{:?}", probe.wait());
    }
}

#[test]
fn a_killed_probe_leaves_an_engine_whose_books_balance() {
    let scratch = Scratch::new();
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut probe = scratch.start_probe(&format!("--nats {} --id tap -r -", server.url()));
    probe.flood();
    let out = scratch.path("out");
    wait_for("window", || (!windows(&out).is_empty()).then_some(()));
    probe.signal("KILL");
    assert_eq!(probe.wait().code, None);
    // What comes after it is counted as if nothing had happened.
    scratch.write("a.pcap", pcap(&mixed(6, 1_000, SECOND)));
    let report = scratch.replay(&format!("--nats {} --id other -r a.pcap", server.url()));
    let ledger = engine.stop_engine(&out);
    assert_eq!(assert_accounted(&report, input(&ledger, "other")), 0);
    assert!(number(&input(&ledger, "tap")["counted"]) > 0, "{ledger}");
}

#[test]
fn a_probe_told_to_stop_publishes_all_it_has_read() {
    for (signal, encoding) in [("TERM", "batch"), ("INT", "single")] {
        let scratch = Scratch::new();
        scratch.write("a.pcap", pcap(&mixed(7, 20_000, 20 * SECOND)));
        let server = NatsServer::start();
        let engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
        let mut client = server.connect();
        client.subscribe("gons.packets.>");
        let args = format!("--nats {} --json --encoding {encoding} --pace original -r a.pcap", server.url());
        let probe = scratch.start_probe(&args);
        // What a probe greets partitions with holds no packet and is short.
        let holds_packets =
            |(subject, payload): (String, Vec<u8>)| subject == "gons.packets.raw" || payload.len() > 500;
        (0..3).for_each(|_| while !holds_packets(client.next()) {});
        probe.signal(signal);
        let report = probe.report();
        let ledger = engine.stop_engine(&scratch.path("out"));
        assert!((1..20_000).contains(&number(&report["packets"]["sent"])), "{report}");
        assert_eq!(assert_accounted(&report, &ledger["packets"]), 0);
    }
}

#[test]
fn a_silent_probe_is_left_behind_and_its_late_packets_revise_their_windows() {
    let scratch = Scratch::new();
    scratch.write("config.yaml", quick_config("  silent_after: 1s\n"));
    let at = |second: u64| packet(second * 1000, "10.0.0.1", "10.0.0.2");
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut client = server.connect();
    client.subscribe("gons.packets.batch.>");
    let mut slow = scratch.start_probe(&format!("--nats {} --id slow -r -", server.url()));
    slow.stdin().write_all(&pcap(&[at(0)])).unwrap();
    client.next();
    slow.signal("STOP");
    let minute: Vec<_> = (0..60).map(at).collect();
    scratch.write("a.pcap", pcap(&minute));
    scratch.replay(&format!("--nats {} --id quick -r a.pcap", server.url()));
    let first = scratch.path("out").join(window_name(START));
    wait_for("window without the silent probe", || first.exists().then_some(()));
    slow.signal("CONT");
    slow.stdin().write_all(&pcap(&[at(0)])[FILE_HEADER..]).unwrap();
    let summary = first.join("summary.json");
    wait_for("revision", || (read_json(&summary)["revision"] != 0).then_some(()));
    assert_eq!(slow.stop().code, Some(0));
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &[&[at(0), at(0)], &minute[..]].concat(), SECOND, SHIPPED);
    assert_ne!(number(&input(&ledger, "slow")["late"]), 0, "{ledger}");
}

#[test]
fn time_in_which_the_engine_was_stopped_makes_no_probe_silent() {
    const SILENT: Duration = Duration::from_secs(4);
    let scratch = Scratch::new();
    scratch.write("config.yaml", quick_config("  silent_after: 4s\n"));
    let at = |second: u64| packet(second * 1000, "10.0.0.1", "10.0.0.2");
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
    let (mut client, started) = (server.connect(), now());
    let minute: Vec<_> = (0..60).map(at).collect();
    for probe in ["slow", "quick"] {
        client.publish_batch(&Batch { latest: START, ..Batch::new(probe, started, 0, 0, &[]) });
    }
    client.publish_batch(&Batch::new("slow", started, 0, 0, &minute[..4]));
    client.publish_batch(&Batch::new("quick", started, 0, 0, &minute));
    client.flush();
    let first = scratch.path("out").join(window_name(START));
    wait_for("window that both have left", || first.exists().then_some(()));
    engine.signal("STOP");
    let stopped = Instant::now();
    wait_for("time to pass", || (stopped.elapsed() > SILENT + SILENT / 4).then_some(()));
    engine.signal("CONT");
    // So long that it has looked at the clock.
    let woken = Instant::now();
    wait_for("a look at the clock", || (woken.elapsed() > SILENT / 8).then_some(()));
    client.publish_batch(&Batch::new("slow", started, 1, 4, &minute[4..]));
    client.flush();
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!(number(&ledger["packets"]["late"]), 0, "{ledger}");
}

// The link.

/// Frames of both families and their number: a second of them.
fn link_capture(scratch: &Scratch) -> usize {
    scratch.generate("-o sent.pcap --packets 12000 --flows 2000 --ipv6 0.2").assert(0, "");
    12_000
}

const LINK_FILTER: &str = "ip or ip6";

/// What tcpdump saw, by seconds.
fn seen(scratch: &Scratch, file: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    scratch.analyze(&format!("-q -o {file}-seen --window 1s {file}")).assert(0, "");
    snapshots(&scratch.path(&format!("{file}-seen")))
}

#[test]
fn engines_on_a_link_give_the_snapshots_of_what_tcpdump_wrote() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    scratch.write("config.yaml", quick_config(""));
    let count = link_capture(&scratch);
    let start = |workers| {
        let args = format!("--iface right -f '{LINK_FILTER}' -o out-{workers} -w {workers}");
        let engine = scratch.start_engine_in(&namespaces.right.with_net_raw_only(), &args);
        assert!(engine.said().contains("capturing on right"), "{}", engine.said());
        (workers, engine)
    };
    let engines = [1, 2].map(start);
    let tcpdump = namespaces.start_tcpdump(&scratch, "seen.pcap", count, LINK_FILTER);
    namespaces.send(&scratch, "sent.pcap", 10_000);
    assert_ended_well(tcpdump);
    let ledgers = engines
        .map(|(workers, engine)| (workers, engine.stop_engine(&scratch.path(&format!("out-{workers}")))));
    let expected = seen(&scratch, "seen.pcap");
    for (workers, ledger) in ledgers {
        assert_eq!(
            shipped_totals(&ledger),
            [count as u64, count as u64, 0, 0],
            "{workers} workers: {ledger}"
        );
        let inputs = ledger["inputs"].as_array().unwrap();
        assert_eq!(inputs.len(), workers, "a ring a worker: {ledger}");
        assert!(inputs.iter().all(|input| input["format"] == "live" && input["packets"] != 0), "{ledger}");
        let out = scratch.path(&format!("out-{workers}"));
        assert_same(&expected, &snapshots(&out), &format!("{workers} workers"));
    }
}

fn assert_ended_well(mut program: Live) {
    let run = program.wait();
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn a_probe_on_a_link_gives_the_snapshots_of_what_tcpdump_wrote_and_keeps_the_frames() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    scratch.write("config.yaml", quick_config(""));
    let count = link_capture(&scratch);
    let server = NatsServer::start_in(&namespaces.right, "");
    let engine = scratch.start_engine_in(&namespaces.right, &format!("--nats {} -o out -w 2", server.url()));
    let args = format!("--nats {} --json --id tap -i right -f '{LINK_FILTER}' -w kept.pcap", server.url());
    let mut probe = Live::start(scratch.command_in(&namespaces.right.with_net_raw_only(), PROBE, &args));
    probe.wait_until_says("capturing on right");
    let tcpdump = namespaces.start_tcpdump(&scratch, "seen.pcap", count, LINK_FILTER);
    namespaces.send(&scratch, "sent.pcap", 10_000);
    assert_ended_well(tcpdump);
    let expected = seen(&scratch, "seen.pcap");
    // The link is quiet now: heartbeats close the last window.
    let (seen_folder, out) = (scratch.path("seen.pcap-seen"), scratch.path("out"));
    wait_for("last window", || (windows(&out) == windows(&seen_folder)).then_some(()));
    probe.signal("TERM");
    let report = probe.report();
    let ledger = engine.stop_engine(&out);
    assert_same(&expected, &snapshots(&out), "probe and tcpdump");
    assert_same(&expected, &seen(&scratch, "kept.pcap"), "kept frames and tcpdump");
    assert_eq!(shipped_totals(&ledger), [count as u64, count as u64, 0, 0], "{ledger}");
    for (part, expected) in
        [("read", count), ("sent", count), ("kernel_dropped", 0), ("interface_dropped", 0)]
    {
        assert_eq!(report["packets"][part], expected, "{part}: {report}");
    }
}

#[test]
fn a_probe_on_a_link_ends_after_so_many_packets() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    link_capture(&scratch);
    let server = NatsServer::start_in(&namespaces.right, "");
    let args = format!("--nats {} --json -i right -f '{LINK_FILTER}' --count 1000", server.url());
    let mut probe = Live::start(scratch.command_in(&namespaces.right, PROBE, &args));
    probe.wait_until_says("capturing on right");
    namespaces.send(&scratch, "sent.pcap", 10_000);
    assert_eq!(number(&probe.report()["packets"]["read"]), 1_000);
}

#[test]
fn interfaces_are_listed() {
    let run = Scratch::new().start(PROBE, "--list").finish();
    run.assert(0, "");
    assert!(run.stdout.lines().any(|line| line.split_whitespace().any(|word| word == "lo")), "{run:?}");
}

#[test]
fn an_idle_engine_hardly_uses_a_processor() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    let server = NatsServer::start();
    let on_bus = scratch.start_engine(&format!("--nats {} -o bus -w 2", server.url()));
    let on_link = scratch.start_engine_in(&namespaces.right, "--iface right -o link -w 2");
    // One that has never worked could be idle for another reason.
    let mut client = server.connect();
    let at = |second: u64| packet_info(&packet(second * 1000, "10.0.0.1", "10.0.0.2"));
    for second in [0, 120] {
        client.publish(SINGLE, &at(second));
    }
    wait_for("window", || (!windows(&scratch.path("bus")).is_empty()).then_some(()));
    let engines = [&on_bus, &on_link];
    let before = engines.map(Live::processor_seconds);
    // The time that is measured, not a wait for anything.
    thread::sleep(Duration::from_secs(3));
    for (engine, before) in engines.into_iter().zip(before) {
        let share = (engine.processor_seconds() - before) / 3.0;
        assert!(share < 0.05, "an idle engine uses {:.1} % of a core: {}", share * 100.0, engine.said());
    }
}

// In time.

/// Waits for a window, and asserts that it is there within two seconds of a time (nanoseconds since the epoch).
fn assert_soon(scratch: &Scratch, window: u64, due: u64) {
    let summary = scratch.path("out").join(window_name(window)).join("summary.json");
    wait_for("window", || summary.exists().then_some(()));
    let after = now().saturating_sub(due);
    assert!(after < 2 * SECOND, "a window came {after} ns after its time");
}

#[test]
fn a_window_of_single_messages_is_written_by_their_time_or_by_the_clock() {
    let scratch = Scratch::new();
    scratch.write("config.yaml", quick_config(""));
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut client = server.connect();
    let at = |time| Packet { time, ..packet(0, "10.0.0.1", "10.0.0.2") };
    // By their time.
    let mut packets = vec![at(START), at(START + SECOND + SECOND / 2)];
    packets.iter().for_each(|packet| client.publish(SINGLE, &packet_info(packet)));
    assert_soon(&scratch, START, now());
    // By the clock.
    let time = now();
    packets.push(at(time));
    client.publish(SINGLE, &packet_info(&at(time)));
    let window = time / SECOND * SECOND;
    assert_soon(&scratch, window, window + SECOND + SECOND / 2);
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
}

#[test]
fn a_window_of_batches_is_written_when_the_watermark_has_passed_it() {
    let scratch = Scratch::new();
    scratch.write("config.yaml", quick_config(""));
    let server = NatsServer::start();
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut probe = scratch.start_probe(&format!("--nats {} -r -", server.url()));
    let packets = [0, 1_500].map(|milliseconds| packet(milliseconds, "10.0.0.1", "10.0.0.2"));
    probe.stdin().write_all(&pcap(&packets)).unwrap();
    assert_soon(&scratch, START, now());
    assert_eq!(probe.finish().code, Some(0));
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
}

// Watching.

/// What subscribing prints of a packet, but for the probe.
fn line_of(packet: &Packet) -> Value {
    let has_ports = matches!(packet.protocol, TCP | UDP | 132);
    let (src_port, dst_port) = if has_ports { packet.ports } else { (0, 0) };
    json!({
        "time": rfc3339(packet.time),
        "src_ip": packet.source.to_canonical(),
        "dst_ip": packet.destination.to_canonical(),
        "src_port": src_port,
        "dst_port": dst_port,
        "protocol": packet.protocol,
        "bytes": packet.length,
    })
}

#[test]
fn subscribing_prints_each_packet_of_both_encodings_and_ends_after_so_many() {
    let scratch = Scratch::new();
    let packets = mixed(8, 1_000, 10 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let server = NatsServer::start();
    for (encoding, probe) in [("single", None), ("batch", Some("tap"))] {
        let args = format!("--mode sub --nats {} --count 1000", server.url());
        let mut watching = scratch.start_probe(&args);
        watching.wait_until_says("subscribed to");
        scratch.replay(&format!("--nats {} --encoding {encoding} --id tap -r a.pcap", server.url()));
        let run = watching.wait();
        assert_eq!(run.code, Some(0), "{run:?}");
        let mut expected: Vec<_> = packets.iter().map(line_of).collect();
        expected
            .iter_mut()
            .zip(probe.iter().cycle())
            .for_each(|(line, probe)| line["probe"] = (*probe).into());
        let lines = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap());
        assert_eq!(sorted(lines.collect()), sorted(expected), "{encoding}");
    }
}

/// In an order that depends on the lines alone, each with its keys in order.
fn sorted(lines: Vec<Value>) -> Vec<BTreeMap<String, Value>> {
    let mut lines: Vec<BTreeMap<_, _>> =
        lines.into_iter().map(|line| serde_json::from_value(line).unwrap()).collect();
    lines.sort_by_cached_key(|line| json!(line).to_string());
    lines
}

#[test]
fn subscribing_says_how_many_messages_came_faster_than_it_could_print_them() {
    let scratch = Scratch::new();
    let server = NatsServer::start();
    scratch.write("config.yaml", live_config(SHIPPED, "  buffer: 64KiB\n"));
    let mut watching = scratch.start_probe(&format!("--mode sub --nats {}", server.url()));
    watching.wait_until_says("subscribed to");
    // Frozen, so that all of it comes at once.
    watching.signal("STOP");
    let (mut client, message) = (server.connect(), packet_info(&golden_packets()[0]));
    let sent = 150_000;
    (0..sent).for_each(|_| client.publish(SINGLE, &message));
    client.flush();
    watching.stop_frozen();
    let run = watching.wait();
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    let lost = run.stderr.lines().find_map(|line| {
        let (before, _) = line.split_once(" messages were lost")?;
        before.rsplit(' ').next()?.parse::<usize>().ok()
    });
    let printed = run.stdout.lines().count();
    assert!(printed > 0 && printed < sent, "{printed} lines: {}", run.stderr);
    assert_eq!(lost, Some(sent - printed), "{}", run.stderr);
}

#[test]
fn a_replay_says_that_no_engine_has_taken_it() {
    let scratch = with_capture();
    let server = NatsServer::start();
    let says = |subscribed: bool, encoding: &str| {
        let mut client = server.connect();
        if subscribed {
            client.subscribe("gons.packets.>");
        }
        let args = format!("-q --nats {} --encoding {encoding} -r a.pcap", server.url());
        let run = scratch.start(PROBE, &args).finish();
        assert_eq!(run.code, Some(0), "{run:?}");
        run.stderr
    };
    for encoding in ["batch", "single"] {
        assert!(says(false, encoding).contains("nobody listens there"), "{encoding}");
        assert!(says(true, encoding).contains("no engine has taken"), "{encoding}");
        let engine = scratch.start_engine(&format!("--nats {} -o out-{encoding}", server.url()));
        assert_eq!(says(false, encoding), "", "{encoding}");
        engine.stop_engine(&scratch.path(&format!("out-{encoding}")));
    }
}

#[test]
fn subscribing_passes_over_garbage() {
    let scratch = Scratch::new();
    let server = NatsServer::start();
    let mut watching = scratch.start_probe(&format!("--mode sub --nats {} --count 1", server.url()));
    watching.wait_until_says("subscribed to");
    let mut client = server.connect();
    for (subject, payload) in [(SINGLE, &b"garbage"[..]), (BATCH, b"garbage"), (SINGLE, b""), (BATCH, b"")] {
        client.publish(subject, payload);
    }
    client.publish(SINGLE, &bytes_of(GOLDEN[0]));
    let run = watching.wait();
    assert_eq!(run.code, Some(0), "{run:?}");
    let line: Value = serde_json::from_str(run.stdout.trim_end()).unwrap_or_else(|_| panic!("{run:?}"));
    assert_eq!(line, line_of(&golden_packets()[0]));
}

#[test]
fn subscribing_ends_well_at_a_signal() {
    let scratch = Scratch::new();
    let server = NatsServer::start();
    for signal in ["INT", "TERM"] {
        let mut watching = scratch.start_probe(&format!("--mode sub --nats {}", server.url()));
        watching.wait_until_says("subscribed to");
        watching.signal(signal);
        let run = watching.wait();
        assert_eq!((run.code, &*run.stdout), (Some(0), ""), "{run:?}");
    }
}

// At the start.

/// The programs that need a server, each with what it cannot run without.
const PROGRAMS: [(&str, &str); 3] = [(ENGINE, "-o out"), (PROBE, "-r a.pcap"), (PROBE, "--mode sub")];
const PASSWORD: &str = "correct-horse";

/// A folder with a capture, for a run that should fail.
fn with_capture() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(9, 100, SECOND)));
    scratch
}

/// Asserts that every program with this `nats` section ends with status 1, says this and no secret.
fn assert_fails(scratch: &Scratch, nats: &str, says: &[&str]) {
    scratch.write("config.yaml", live_config(SHIPPED, nats));
    for (program, args) in PROGRAMS {
        let run = scratch.start(program, args).finish();
        says.iter().for_each(|says| run.assert(1, says));
        assert!(!format!("{run:?}").contains(PASSWORD), "a secret was printed: {run:?}");
        assert_eq!(run.stdout, "");
    }
}

/// Asserts that a replay with this `nats` section is counted, and that no secret is printed.
fn assert_connects(scratch: &Scratch, nats: &str) {
    scratch.write("config.yaml", live_config(SHIPPED, nats));
    let start = |program, args| {
        let mut command = scratch.command(program, args);
        command.env("NETSPECTRA_TEST_PASSWORD", PASSWORD);
        Live::start(command)
    };
    let mut engine = start(ENGINE, "-o out -v");
    engine.wait_until_says("subscribed to");
    let run = start(PROBE, "-r a.pcap").wait();
    assert_eq!(run.code, Some(0), "{run:?}");
    let said = format!("{}{run:?}", engine.said());
    assert!(!said.contains(PASSWORD), "a secret was printed: {said}");
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!(ledger["packets"]["counted"], 100);
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn a_server_that_is_absent_is_named_after_the_stated_wait() {
    let (scratch, nobody) = (with_capture(), nobody());
    let began = Instant::now();
    let nats = format!("  url: \"nats://user:{PASSWORD}@{nobody}\"\n  connect_timeout: 1s\n");
    assert_fails(&scratch, &nats, &[&nobody]);
    let each = began.elapsed() / PROGRAMS.len() as u32;
    assert!(each > Duration::from_millis(800) && each < Duration::from_secs(3), "{each:?}");
}

#[test]
fn a_server_that_comes_within_the_stated_wait_is_enough() {
    let scratch = with_capture();
    let mut server = NatsServer::start();
    server.stop();
    scratch.write("config.yaml", live_config(SHIPPED, "  connect_timeout: 15s\n"));
    let mut engine = Live::start(scratch.command(ENGINE, &format!("--nats {} -o out", server.url())));
    server.start_again();
    engine.wait_until_says("subscribed to");
    assert_eq!(shipped_totals(&engine.stop_engine(&scratch.path("out"))), [0; 4]);
}

#[test]
fn one_server_of_several_is_enough() {
    let (scratch, server) = (with_capture(), NatsServer::start());
    assert_connects(&scratch, &format!("  url: \"nats://{},{}\"\n", nobody(), server.url()));
}

#[test]
fn passwords_come_from_the_url_the_configuration_the_environment_or_a_file_and_are_never_printed() {
    let scratch = with_capture();
    let server = NatsServer::with(&format!("authorization: {{user: alice, password: {PASSWORD}}}"));
    let (url, address) = (format!("  url: \"{}\"\n", server.url()), server.address());
    scratch.write("secret", format!("{PASSWORD}\n"));
    for nats in [
        format!("  url: \"nats://alice:{PASSWORD}@{address}\"\n"),
        format!("{url}  user: alice\n  password: {PASSWORD}\n"),
        format!("{url}  user: alice\n  password: \"${{NETSPECTRA_TEST_PASSWORD}}\"\n"),
        format!("{url}  user: alice\n  password_file: secret\n"),
    ] {
        assert_connects(&scratch, &nats);
    }
    for nats in [
        url.clone(),
        format!("{url}  user: bob\n  password: {PASSWORD}\n"),
        format!("{url}  user: alice\n  password: wrong-{PASSWORD}\n"),
        format!("  url: \"nats://alice:wrong-{PASSWORD}@{address}\"\n"),
    ] {
        assert_fails(&scratch, &format!("{nats}  connect_timeout: 1s\n"), &[&address.to_string(), "uthoriz"]);
    }
}

#[test]
fn tokens_and_keys_open_a_server_and_are_never_printed() {
    let scratch = with_capture();
    scratch.write("token", format!("{PASSWORD}\n"));
    let server = NatsServer::with(&format!("authorization: {{token: {PASSWORD}}}"));
    let url = format!("  url: \"{}\"\n", server.url());
    assert_connects(&scratch, &format!("{url}  token: {PASSWORD}\n"));
    assert_connects(&scratch, &format!("{url}  token_file: token\n"));
    // The pair of keys that the documentation of NATS shows.
    let server = NatsServer::with(
        "authorization: {users: [{nkey: UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4}]}",
    );
    scratch.write("seed", "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n");
    assert_connects(&scratch, &format!("  url: \"{}\"\n  nkey_file: seed\n", server.url()));
}

#[test]
fn a_subject_that_is_denied_is_named() {
    let scratch = with_capture();
    let server = NatsServer::with(
        "authorization: {users: [{user: alice, password: x, permissions: {publish: {deny: \"gons.>\"}, \
         subscribe: {deny: \"gons.>\"}}}]}",
    );
    let nats = format!("  url: \"{}\"\n  user: alice\n  password: x\n", server.url());
    assert_fails(&scratch, &nats, &["gons.packets"]);
}

/// The answer to the last message comes beside the word that it was denied, and may be looked at first.
#[test]
fn a_replay_that_is_denied_has_sent_nothing_every_time() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(10, 2, SECOND)));
    let server = NatsServer::with(
        "authorization: {users: [{user: alice, password: x, permissions: {publish: {allow: [\"_INBOX.>\"]}, \
         subscribe: {allow: [\"_INBOX.>\"]}}}]}",
    );
    let url = server.url().replace("nats://", "nats://alice:x@");
    for encoding in ["single", "single", "single", "single", "single", "single", "batch"] {
        let args = format!("--json --nats {url} --encoding {encoding} -r a.pcap");
        let (report, run) = scratch.start_probe(&args).report_and_run(1);
        assert_eq!(number(&report["packets"]["sent"]), 0, "{encoding}: {run:?}");
        assert!(run.stderr.contains("gons.packets"), "{encoding}: {run:?}");
    }
}

#[test]
fn a_server_is_believed_only_with_a_certificate_of_the_own_authority() {
    let scratch = with_capture();
    for authority in ["own", "other"] {
        certificates(&scratch.path("."), authority);
    }
    let file = |name: &str| scratch.path(name).display().to_string();
    let server = NatsServer::with(&format!(
        "tls: {{cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true}}",
        file("own-signed.pem"),
        file("own-signed.key"),
        file("own.pem"),
    ));
    let nats = |ca: &str, own: &str| {
        format!(
            "  url: \"{}\"\n  connect_timeout: 1s\n  tls: {{required: true, ca: {ca}{own}}}\n",
            server.url()
        )
    };
    let own = ", certificate: own-signed.pem, key: own-signed.key";
    assert_connects(&scratch, &nats("own.pem", own));
    assert_fails(&scratch, &nats("other.pem", own), &["ertificate"]);
    // The server asks for one.
    assert_fails(&scratch, &nats("own.pem", ""), &[&server.address().to_string()]);
    assert_fails(
        &scratch,
        &nats("own.pem", ", certificate: other-signed.pem, key: other-signed.key"),
        &[&server.address().to_string()],
    );
}

#[test]
fn bad_usage_and_configuration_are_refused_before_anything_is_started() {
    let scratch = with_capture();
    for (program, args, says) in [
        (PROBE, "--nats http://127.0.0.1:4222 -r a.pcap", "http://127.0.0.1:4222"),
        (PROBE, "--nats nats://127.0.0.1:99999 -r a.pcap", "99999"),
        (ENGINE, "--nats http://127.0.0.1:4222 -o out", "http://127.0.0.1:4222"),
        (ENGINE, "--nats 'nats://one two' -o out", "one two"),
        (PROBE, "--pace fast -r a.pcap", "fast"),
        (PROBE, "--pace=-1x -r a.pcap", "-1x"),
        (PROBE, "--pace 0x -r a.pcap", "0x"),
        (PROBE, "--encoding json -r a.pcap", "json"),
        (PROBE, "--mode watch -r a.pcap", "watch"),
        (PROBE, "--iface lo --read a.pcap", "--read"),
        (PROBE, "", "--read"),
        (PROBE, "-r missing.pcap", "missing.pcap"),
        (PROBE, "-r a.pcap -f 'tcp prot 80'", "tcp prot 80"),
        (ENGINE, "--window 7 -o out", "7"),
        (ENGINE, "-c missing.yaml -o out", "missing.yaml"),
    ] {
        let run = scratch.start(program, args).finish();
        run.assert(2, says);
        assert_eq!(run.stdout, "", "{run:?}");
        assert!(!scratch.path("out").exists(), "{args}");
    }
    for (nats, says) in [
        ("  urls: x\n", "urls"),
        ("  password_file: missing\n", "missing"),
        ("  silent_after: soon\n", "silent_after"),
        ("  buffer: much\n", "buffer"),
        ("  tls: {ca: missing.pem}\n", "missing.pem"),
        ("  user: a\n  password: ${NETSPECTRA_TEST_UNSET}\n", "NETSPECTRA_TEST_UNSET"),
    ] {
        scratch.write("bad.yaml", live_config(SHIPPED, nats));
        for (program, args) in PROGRAMS {
            scratch.start(program, &format!("{args} -c bad.yaml")).finish().assert(2, says);
        }
    }
    assert!(!scratch.path("out").exists());
}

#[test]
fn an_interface_or_a_filter_that_cannot_be_is_refused() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    for (program, args, says) in [
        (PROBE, "--iface nowhere0", "nowhere0"),
        (PROBE, "--iface right -f 'tcp prot 80'", "tcp prot 80"),
        (ENGINE, "--iface nowhere0 -o out", "nowhere0"),
        (ENGINE, "--iface right -f 'tcp prot 80' -o out", "tcp prot 80"),
    ] {
        Running::start(scratch.command_in(&namespaces.right, program, args)).finish().assert(2, says);
        assert!(!scratch.path("out").exists(), "{args}");
    }
}
