//! What the analyser counts: what a naive count gives, and the same bytes however the packets come.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use support::*;

const LITTLE: Order = Order { big: false };
const BIG: Order = Order { big: true };
const WINDOWINGS: [(&str, u64); 2] = [("all", 0), ("1s", SECOND)];

/// Analyses `files` for every windowing and number of workers; the trees by windowing, equal for all workers.
fn trees(scratch: &Scratch, files: &str) -> Vec<BTreeMap<PathBuf, Vec<u8>>> {
    let of_windowing = |(window, _): (&str, u64)| {
        let run = |workers| scratch.tree_of(&format!("--window {window} -w {workers} {files}"));
        let one = run(1);
        for workers in [2, 3] {
            assert_same(&one, &run(workers), &format!("{files}: {window}, 1 and {workers} workers"));
        }
        one
    };
    WINDOWINGS.map(of_windowing).to_vec()
}

fn assert_trees(left: &[BTreeMap<PathBuf, Vec<u8>>], right: &[BTreeMap<PathBuf, Vec<u8>>], what: &str) {
    for (number, (window, _)) in WINDOWINGS.iter().enumerate() {
        assert_same(&left[number], &right[number], &format!("{what}, window {window}"));
    }
}

/// The same packets with the order of records shuffled within each second.
fn shuffled_within_seconds(packets: &[Packet], seed: u64) -> Vec<Packet> {
    let mut random = Random(seed);
    let mut shuffled = packets.to_vec();
    shuffled
        .chunk_by_mut(|a, b| a.time / SECOND == b.time / SECOND)
        .for_each(|second| random.shuffle(second));
    shuffled
}

#[test]
fn totals_and_row_order_are_those_of_a_naive_count() {
    let scratch = Scratch::new();
    let packets = mixed(1, 20_000, 12 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    for (window, length) in WINDOWINGS {
        scratch.analyze(&format!("-o {window} --window {window} -w 2 a.pcap")).assert(0, "");
        assert_holds(&scratch.path(window), &packets, length, SHIPPED);
    }
}

#[test]
fn any_key_fields_are_counted_and_ordered_like_a_naive_count() {
    const TASKS: &[Task] = &[
        ("both_prefixes", &["SrcIP/24/64"]),
        ("ipv4_prefix", &["SrcIP/16"]),
        ("ipv6_prefix", &["DstIP/48"]),
        ("odd_prefixes", &["DstIP/9/33", "SrcIP/31/127"]),
        ("vlan", &["VLAN"]),
        ("flags", &["TCPFlags", "Protocol"]),
        ("version", &["IPVersion"]),
        ("backwards", &["IPVersion", "VLAN", "TCPFlags", "Protocol", "DstPort", "SrcPort", "DstIP", "SrcIP"]),
        ("conversation", &["DstIP", "SrcIP"]),
    ];
    let scratch = Scratch::new();
    let packets = mixed(2, 10_000, 3 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    scratch.write("c.yaml", config(TASKS));
    for (window, length) in WINDOWINGS {
        for workers in [1, 3] {
            let out = format!("{window}-{workers}");
            scratch
                .analyze(&format!("-c c.yaml -o {out} --window {window} -w {workers} a.pcap"))
                .assert(0, "");
            assert_holds(&scratch.path(&out), &packets, length, TASKS);
        }
    }
}

#[test]
fn equal_bytes_are_ordered_by_key_with_ipv4_before_ipv6() {
    let addresses = [
        "::",
        "::1",
        "9.0.0.1",
        "10.0.0.1",
        "100.0.0.1",
        "255.255.255.255",
        "::1:0:0:0",
        "2001:db8::2",
        "ffff::",
        "::fffe:ffff:ffff",
        "0.0.0.0",
    ];
    let packets: Vec<_> = addresses.iter().map(|source| packet(0, source, "192.0.2.1")).collect();
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("-o out a.pcap").assert(0, "");
    let order: Vec<_> =
        rows(&scratch.path("out/all/per_src_ip.csv")).into_iter().map(|row| row["src_ip"].clone()).collect();
    let expected = [
        "0.0.0.0",
        "9.0.0.1",
        "10.0.0.1",
        "100.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::fffe:ffff:ffff",
        "::1:0:0:0",
        "2001:db8::2",
        "ffff::",
    ];
    assert_eq!(order, expected);
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address() {
    let scratch = Scratch::new();
    let packets = [
        packet(0, "::ffff:10.0.0.1", "2001:db8::1"),
        packet(1, "10.0.0.1", "10.0.0.2"),
        packet(2, "10.0.0.1", "::"),
    ];
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("-o out a.pcap").assert(0, "");
    let sources = rows(&scratch.path("out/all/per_src_ip.csv"));
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert_eq!((&*sources[0]["src_ip"], &*sources[0]["packets"]), ("10.0.0.1", "3"));
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
}

#[test]
fn a_window_holds_its_first_nanosecond_and_not_the_one_behind_its_last() {
    let scratch = Scratch::new();
    let at = |nanosecond: u64| Packet { time: START + nanosecond, ..packet(0, "10.0.0.1", "10.0.0.2") };
    let packets = [at(0), at(SECOND - 1), at(SECOND), at(3 * SECOND - 1)];
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("-o out --window 1s a.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
    let summary = read_json(&scratch.path("out/2023-11-14T22-13-20Z/summary.json"));
    assert_eq!(summary["window_start"], "2023-11-14T22:13:20.000000000Z");
    assert_eq!(summary["window_end"], "2023-11-14T22:13:21.000000000Z");
    assert_eq!(summary["revision"], 0);
}

#[test]
fn a_capture_cut_in_five_gives_the_same_bytes_in_any_order_of_its_files() {
    let scratch = Scratch::new();
    let packets = mixed(3, 25_000, 10 * SECOND);
    for (name, packets) in [("sorted", packets.clone()), ("shuffled", shuffled_within_seconds(&packets, 4))] {
        let whole = format!("{name}.pcap");
        scratch.write(&whole, pcap(&packets));
        for (number, part) in packets.chunks(packets.len() / 5).enumerate() {
            scratch.write(&format!("{name}-{number}.pcap"), pcap(part));
        }
        let whole = trees(&scratch, &whole);
        for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
            let files = order.map(|number| format!("{name}-{number}.pcap")).join(" ");
            assert_trees(&whole, &trees(&scratch, &files), &files);
        }
    }
}

#[test]
fn records_shuffled_within_a_second_give_the_same_bytes() {
    let scratch = Scratch::new();
    let packets = mixed(5, 20_000, 15 * SECOND);
    scratch.write("sorted.pcap", pcap(&packets));
    scratch.write("shuffled.pcap", pcap(&shuffled_within_seconds(&packets, 6)));
    assert_trees(&trees(&scratch, "sorted.pcap"), &trees(&scratch, "shuffled.pcap"), "shuffled");
}

#[test]
fn two_taps_that_overlap_in_time_are_one_stream() {
    let scratch = Scratch::new();
    let packets = mixed(7, 25_000, 30 * SECOND);
    scratch.write("whole.pcap", pcap(&packets));
    for parity in [0, 1] {
        let tap: Vec<_> = packets.iter().skip(parity).step_by(2).cloned().collect();
        scratch.write(&format!("tap{parity}.pcap"), pcap(&tap));
    }
    let whole = trees(&scratch, "whole.pcap");
    assert_trees(&whole, &trees(&scratch, "tap0.pcap tap1.pcap"), "two taps");
    assert_trees(&whole, &trees(&scratch, "tap1.pcap tap0.pcap"), "two taps, the other first");
}

#[test]
fn every_form_of_the_same_packets_gives_the_same_bytes() {
    let scratch = Scratch::new();
    let packets = records(&mixed(8, 8_000, 8 * SECOND));
    let plain = pcap_of(&packets);
    scratch.write("plain.pcap", &plain);
    let expected = WINDOWINGS.map(|(window, _)| scratch.tree_of(&format!("--window {window} plain.pcap")));
    let (first, second) = packets.split_at(3_000);
    let ng = pcapng(LITTLE, 6, &packets);
    assert_eq!(section(LITTLE, 1, 6).len(), 60);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let forms = [
        ("little microseconds", pcap_as(MICROS, LITTLE, ETHERNET, &packets)),
        ("big microseconds", pcap_as(MICROS, BIG, ETHERNET, &packets)),
        ("big nanoseconds", pcap_as(NANOS, BIG, ETHERNET, &packets)),
        ("modified", pcap_as(MODIFIED, LITTLE, ETHERNET, &packets)),
        ("big modified", pcap_as(MODIFIED, BIG, ETHERNET, &packets)),
        ("pcapng", ng.clone()),
        ("big pcapng, nanoseconds", pcapng(BIG, 9, &packets)),
        ("two sections", [pcapng(LITTLE, 9, first), pcapng(BIG, 6, second)].concat()),
        ("unknown blocks", [ng[..60].to_vec(), block(LITTLE, 0xbad, &[7; 99]), ng[60..].to_vec()].concat()),
        ("gzip", gzip(&plain)),
        ("gzip of two members", [gzip(&plain[..7777]), gzip(&plain[7777..])].concat()),
        ("gzip of pcapng", gzip(&ng)),
        ("zstd", zstd(&plain)),
        ("zstd of two frames", [zstd(&plain[..7777]), zstd(&plain[7777..])].concat()),
        ("zstd behind a skippable frame", [&skippable[..], &zstd(&plain)].concat()),
        ("zstd of pcapng", zstd(&ng)),
    ];
    for (name, bytes) in &forms {
        scratch.write("form", bytes);
        for ((window, _), expected) in WINDOWINGS.iter().zip(&expected) {
            let file = scratch.tree_of(&format!("--window {window} -w 2 form"));
            assert_same(expected, &file, &format!("{name}, a file, window {window}"));
            let stdin = scratch.tree_of_stdin(&format!("--window {window} -w 2 -"), bytes);
            assert_same(expected, &stdin, &format!("{name}, standard input, window {window}"));
        }
    }
}

#[test]
fn link_types_carry_the_same_packets() {
    let scratch = Scratch::new();
    let packets: Vec<_> =
        mixed(9, 500, SECOND).into_iter().map(|packet| Packet { vlan: None, ..packet }).collect();
    let raw = |packet: &Packet| Record { bytes: packet.record().bytes[14..].to_vec(), ..packet.record() };
    let raw: Vec<_> = packets.iter().map(raw).collect();
    scratch.write("ethernet.pcap", pcap(&packets));
    scratch.write("raw.pcap", pcap_as(NANOS, LITTLE, RAW_IP, &raw));
    // Both link types in one file: an interface of raw IP in a section of its own.
    let mut both = pcapng(LITTLE, 9, &records(&packets[..200]));
    both.extend_from_slice(&section(LITTLE, RAW_IP as u16, 9));
    raw[200..].iter().for_each(|record| both.extend_from_slice(&enhanced(LITTLE, 9, record)));
    scratch.write("both.pcapng", both);
    let ethernet = scratch.tree_of("ethernet.pcap");
    assert_same(&ethernet, &scratch.tree_of("raw.pcap"), "raw");
    assert_same(&ethernet, &scratch.tree_of("both.pcapng"), "both");
}

#[test]
fn late_packets_revise_their_window() {
    let scratch = Scratch::new();
    let at = |milliseconds| packet(milliseconds, "10.0.0.1", "10.0.0.2");
    let not_yet = [at(500), at(5_999), at(700)];
    let once = [at(500), at(6_000), at(700), at(800)];
    let twice = [at(500), at(10_000), at(700), at(20_000), at(800), at(10_001)];
    for (packets, late, revision) in [(&not_yet[..], 0, 0), (&once, 2, 1), (&twice, 3, 2)] {
        scratch.write("a.pcap", pcap(packets));
        let trees = [1, 2, 3].map(|workers| {
            let out = format!("out-{late}-{workers}");
            scratch.analyze(&format!("-o {out} --window 1s -w {workers} a.pcap")).assert(0, "");
            assert_holds(&scratch.path(&out), packets, SECOND, SHIPPED);
            assert_eq!(scratch.ledger(&out)["packets"]["late"], late);
            let summary = read_json(&scratch.path(&out).join("2023-11-14T22-13-20Z/summary.json"));
            assert_eq!(summary["revision"], revision);
            tree(&scratch.path(&out))
        });
        assert!(trees.iter().all(|tree| *tree == trees[0]), "{late} late, 1, 2 and 3 workers");
    }
}

#[test]
fn a_window_that_only_late_packets_have_is_written() {
    let scratch = Scratch::new();
    let packets = [packet(30_000, "10.0.0.1", "10.0.0.2"), packet(0, "10.0.0.3", "10.0.0.2")];
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("-o out --window 1s a.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
    assert_eq!(scratch.ledger("out")["packets"]["late"], 1);
    assert_eq!(read_json(&scratch.path("out/2023-11-14T22-13-20Z/summary.json"))["revision"], 0);
}

#[test]
fn many_late_windows_end_as_if_the_packets_had_been_sorted() {
    let scratch = Scratch::new();
    // A minute in order, then the same minute again, backwards.
    let mut packets = mixed(10, 6_000, 60 * SECOND);
    packets.extend(mixed(11, 6_000, 60 * SECOND).into_iter().rev());
    scratch.write("a.pcap", pcap(&packets));
    let late = late(&packets, SECOND);
    assert!(late > 5_000, "{late}");
    let trees = [1, 2, 3].map(|workers| {
        let out = format!("out-{workers}");
        scratch.analyze(&format!("-o {out} --window 1s -w {workers} a.pcap")).assert(0, "");
        assert_holds(&scratch.path(&out), &packets, SECOND, SHIPPED);
        assert_eq!(scratch.ledger(&out)["packets"]["late"], late);
        assert_eq!(read_json(&scratch.path(&out).join("2023-11-14T22-13-20Z/summary.json"))["revision"], 1);
        tree(&scratch.path(&out))
    });
    assert_same(&trees[0], &trees[1], "1 and 2 workers");
    assert_same(&trees[0], &trees[2], "1 and 3 workers");
}

#[test]
fn late_packets_in_a_later_file_are_counted_too() {
    let scratch = Scratch::new();
    let at = |milliseconds| packet(milliseconds, "10.0.0.1", "10.0.0.2");
    let parts = [
        [at(0), at(20_000), at(40_000)],
        [at(40_500), at(100), at(20_100)],
        [at(41_000), at(200), at(60_000)],
    ];
    for (number, part) in parts.iter().enumerate() {
        scratch.write(&format!("{number}.pcap"), pcap(part));
    }
    scratch.write("whole.pcap", pcap(&parts.concat()));
    let cut = trees(&scratch, "2.pcap 0.pcap 1.pcap");
    assert_trees(&trees(&scratch, "whole.pcap"), &cut, "cut in three");
    scratch.analyze("-o out --window 1s 0.pcap 1.pcap 2.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), &parts.concat(), SECOND, SHIPPED);
    assert_eq!(scratch.ledger("out")["packets"]["late"], 3);
}

#[test]
fn time_may_jump_years_in_both_directions() {
    const YEAR: u64 = 31_556_952_000;
    let scratch = Scratch::new();
    let jumps = [0, 10 * YEAR, 10 * YEAR + 1, 2 * YEAR, 500, 80 * YEAR, 10 * YEAR, 80 * YEAR + 2];
    let mut packets: Vec<_> = jumps.map(|milliseconds| packet(milliseconds, "10.0.0.1", "10.0.0.2")).into();
    packets.push(Packet { time: 0, ..packets[0].clone() });
    scratch.write("a.pcap", pcap(&packets));
    for (window, length) in WINDOWINGS {
        for workers in [1, 2, 3] {
            let out = format!("{window}-{workers}");
            scratch.analyze(&format!("-o {out} --window {window} -w {workers} a.pcap")).assert(0, "");
            assert_holds(&scratch.path(&out), &packets, length, SHIPPED);
        }
    }
    assert_eq!(scratch.ledger("1s-1")["packets"]["late"], late(&packets, SECOND));
    assert!(scratch.path("1s-1/1970-01-01T00-00-00Z").exists());
}

#[test]
fn packets_dated_ahead_by_mistake_are_counted_and_make_no_other_late() {
    let scratch = Scratch::new();
    // More than one piece of work.
    let packets = with_strays(mixed(15, 9_000, 60 * SECOND));
    scratch.write("a.pcap", pcap(&packets));
    assert_eq!(late(&packets, SECOND), 0);
    let trees = [1, 2, 3].map(|workers| {
        let out = format!("out-{workers}");
        scratch.analyze(&format!("-o {out} --window 1s -w {workers} a.pcap")).assert(0, "");
        assert_holds(&scratch.path(&out), &packets, SECOND, SHIPPED);
        assert_eq!(scratch.ledger(&out)["packets"]["late"], 0);
        tree(&scratch.path(&out))
    });
    assert_same(&trees[0], &trees[1], "1 and 2 workers");
    assert_same(&trees[0], &trees[2], "1 and 3 workers");
    // A file that begins so takes its place in a series all the same.
    let (first, second) = packets.split_at(packets.len() / 2);
    scratch.write("1.pcap", pcap(first));
    scratch.write("2.pcap", pcap(second));
    scratch.analyze("-o series --window 1s 2.pcap 1.pcap").assert(0, "");
    assert_eq!(scratch.ledger("series")["packets"]["late"], 0);
    assert_holds(&scratch.path("series"), &packets, SECOND, SHIPPED);
}

#[test]
fn a_pause_of_hours_is_no_mistake() {
    let scratch = Scratch::new();
    let at = |seconds: u64| packet(seconds * 1000, "10.0.0.1", "10.0.0.2");
    let packets = [0, 7_200, 7_201, 7_150, 50_000, 120_000].map(at);
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("-o out --window 1s a.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
    assert_eq!(scratch.ledger("out")["packets"]["late"], 1);
}

#[test]
fn frames_without_ip_and_broken_ip_headers_have_their_own_accounts() {
    let scratch = Scratch::new();
    let good = packet(0, "10.0.0.1", "10.0.0.2");
    let frame = |bytes: &[u8]| Record { bytes: bytes.to_vec(), ..good.record() };
    let with = |at: usize, byte: u8| {
        let mut bytes = good.record().bytes;
        bytes[at] = byte;
        frame(&bytes)
    };
    let non_ip = [with(13, 6), frame(&good.record().bytes[..10]), frame(&[])];
    let malformed = [
        with(14, 0x65),
        with(14, 0x44),
        frame(&good.record().bytes[..14 + 19]),
        frame(&good.record().bytes[..14]),
    ];
    let all = [&non_ip[..], &[good.record()], &malformed].concat();
    scratch.write("a.pcap", pcap_of(&all));
    scratch.analyze("-o out a.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), std::slice::from_ref(&good), 0, SHIPPED);
    let ledger = scratch.ledger("out");
    let account = |name: &str| ledger["packets"][name].as_u64().unwrap();
    assert_eq!(["read", "counted", "non_ip", "malformed"].map(account), [8, 1, 3, 4]);
    assert_eq!(ledger["bytes"]["read"], 800);
}

#[test]
fn a_link_type_that_is_not_decoded_is_warned_of_once() {
    let scratch = Scratch::new();
    let packets = records(&mixed(12, 2_000, SECOND));
    scratch.write("wifi.pcap", pcap_as(NANOS, LITTLE, 105, &packets));
    let run = scratch.analyze("-o out -w 3 wifi.pcap");
    run.assert(0, "105");
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    assert_eq!(scratch.ledger("out")["packets"]["non_ip"], 2_000);
}

#[test]
fn random_captures_with_time_out_of_order_match_a_naive_count() {
    for seed in 0..5 {
        let scratch = Scratch::new();
        let mut random = Random(seed);
        let (count, span) = (1 + random.below(9_000), (1 + random.below(12)) * SECOND);
        let spread = random.pick(&[1, SECOND, 8 * SECOND, 15 * SECOND]);
        let mut packets = mixed(seed + 100, count as usize, span);
        packets.iter_mut().for_each(|packet| packet.time += random.below(spread));
        scratch.write("a.pcap", pcap(&packets));
        for (window, length) in [("all", 0), ("1s", SECOND)] {
            let trees = [1, 2, 3].map(|workers| {
                let out = format!("{window}-{workers}");
                scratch.analyze(&format!("-o {out} --window {window} -w {workers} a.pcap")).assert(0, "");
                tree(&scratch.path(&out))
            });
            let out = scratch.path(&format!("{window}-1"));
            assert_holds(&out, &packets, length, SHIPPED);
            let late = if length == 0 { 0 } else { late(&packets, length) };
            assert_eq!(read_json(&out.join("ledger.json"))["packets"]["late"], late, "seed {seed}, {window}");
            assert_same(&trees[0], &trees[1], &format!("seed {seed}, {window}, 1 and 2 workers"));
            assert_same(&trees[0], &trees[2], &format!("seed {seed}, {window}, 1 and 3 workers"));
        }
    }
}

/// A pcapng file whose packets say how many were lost just before them.
#[test]
fn windows_in_which_a_capture_lost_packets_say_so() {
    let scratch = Scratch::new();
    let order = Order { big: false };
    let packets: Vec<_> =
        (0..100).map(|number| packet(number * 100, "10.0.0.1", &format!("10.0.1.{number}"))).collect();
    let mut file = section(order, ETHERNET as u16, 9);
    for (number, record) in records(&packets).iter().enumerate() {
        let lost: u64 = match number {
            // From the last packet of second 2 to the first of second 3, and within second 5.
            30 => 7,
            52 | 53 => 2,
            _ => 0,
        };
        let units = [(record.time >> 32) as u32, record.time as u32];
        let fixed = [0, units[0], units[1], record.bytes.len() as u32, record.length];
        let mut body = [order.words(&fixed), record.bytes.clone()].concat();
        body.resize(body.len().next_multiple_of(4), 0);
        if lost > 0 {
            body.extend([order.halves(&[4, 8]), lost.to_le_bytes().to_vec(), order.halves(&[0, 0])].concat());
        }
        file.extend(block(order, 6, &body));
    }
    let expected = [(2, 7), (3, 7), (5, 4)];
    scratch.write("a.pcapng", &file);
    scratch.write("a.pcapng.gz", gzip(&file));
    let mut trees = Vec::new();
    for (name, workers) in [("a.pcapng", 1), ("a.pcapng", 3), ("a.pcapng.gz", 2)] {
        let out = format!("out-{}", trees.len());
        scratch.analyze(&format!("-o {out} --window 1s -w {workers} {name}")).assert(0, "11 packets");
        for second in 0..10 {
            let summary = scratch.path(&out).join(window_name(START + second * SECOND)).join("summary.json");
            let lost = expected.iter().find(|(lossy, _)| *lossy == second).map(|(_, lost)| *lost);
            assert_eq!(read_json(&summary)["incomplete"]["lost"].as_u64(), lost, "second {second}, {out}");
        }
        trees.push(tree(&scratch.path(&out)));
    }
    trees.iter().for_each(|other| assert_same(&trees[0], other, "workers, compression"));
    scratch.analyze("-o all a.pcapng").assert(0, "11 packets");
    let summary = read_json(&scratch.path("all/all/summary.json"));
    assert_eq!(summary["incomplete"], serde_json::json!({"lost": 11}));
}
