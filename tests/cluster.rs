//! Runs over several processes: their answer is that of one process, whoever starts first and whoever knocks
//! at their ports, and the loss of a process is never taken for an end.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use support::cluster::*;
use support::live::*;
use support::*;

/// Tables of every kind of key: large and small, of one family and of both, rolled up and not.
const EVERY_KEY: &[Task] = &[
    ("per_src_ip", &["SrcIP"]),
    ("per_dst_port", &["DstPort"]),
    ("per_five_tuple", &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]),
    ("per_flags", &["TCPFlags", "Protocol"]),
    ("per_vlan", &["VLAN", "SrcIP/24/64"]),
    ("per_version", &["IPVersion"]),
];
/// The captures of [`with_taps`].
const TAPS: &str = "north.pcap south.pcap.gz";

/// A folder with two captures of nearly the same time, one of them compressed, and a configuration.
fn with_taps() -> Scratch {
    let scratch = Scratch::new();
    scratch.write("config.yaml", config(EVERY_KEY));
    scratch.write("north.pcap", pcap_of(&disordered(1, 20_000, 40 * SECOND)));
    scratch.write("south.pcap.gz", gzip(&pcap_of(&disordered(2, 15_000, 50 * SECOND))));
    scratch
}

#[test]
fn fields_and_measures_are_the_same_on_processes_also_names_that_only_one_of_them_has_met() {
    let scratch = Scratch::new();
    let tasks = concat!(
        "    - {name: names, type: exact, key_fields: [Interface, TTL, SrcMAC]}\n",
        "    - {name: handshakes, type: exact, key_fields: [DstIP], measures: [syn, ttl_max, packets, payload_bytes]}\n",
        "    - {name: marked, type: top_k, key_fields: [DSCP, SrcIP], k: 5}\n",
    );
    scratch.write("config.yaml", format!("aggregator:\n  tasks:\n{tasks}"));
    // Each process reads a capture of its own, of an interface of its own.
    let order = Order { big: false };
    for (process, name) in [(0, "eth0"), (1, r"\Device\NPF_{3F2504E0-4F89-11D3-9A0C-0305E82C3301}")] {
        let described = section(order, 1, 9);
        let header = described.len() - 32;
        let padded = [name.as_bytes(), &vec![0; name.len().next_multiple_of(4) - name.len()]].concat();
        let options =
            [&order.halves(&[9, 1])[..], &[9, 0, 0, 0], &order.halves(&[2, name.len() as u16]), &padded]
                .concat();
        let body = [order.halves(&[1, 0]), order.words(&[0]), options, vec![0; 4]].concat();
        let mut file = [&described[..header], &block(order, 1, &body)].concat();
        for record in disordered(process, 3_000, 40 * SECOND) {
            file.extend_from_slice(&enhanced(order, 9, &record));
        }
        scratch.write(&format!("{process}.pcapng"), file);
    }
    scratch.analyze("-q -o alone --window 10s 0.pcapng 1.pcapng").assert(0, "");
    let expected = tables(&scratch.path("alone"));
    let has_name = |table: &Vec<u8>| String::from_utf8_lossy(table).contains("NPF_{3F2504E0");
    assert!(expected.values().any(has_name), "{:?}", expected.keys());
    let hosts = Hosts::new(&scratch, 2);
    let start = |process: usize| {
        let args = format!("-q --local -w 1 --window 10s {process}.pcapng");
        scratch.start_process(&hosts, process, ANALYZER, "out", &args)
    };
    scratch.assert_end_well(vec![start(0), start(1)], "out");
    assert_same(&expected, &tables(&scratch.path("out")), "of two processes");
}

/// What one process writes of the captures: the ledger, and every byte.
fn alone(scratch: &Scratch, window: &str) -> (Value, BTreeMap<PathBuf, Vec<u8>>) {
    let folder = format!("alone-{window}");
    scratch.analyze(&format!("-q -o {folder} --window {window} {TAPS}")).assert(0, "");
    let folder = scratch.path(&folder);
    (assert_balanced(&folder), every_byte(&folder))
}

/// Asserts that these analysers end well and have written these bytes.
fn assert_writes(scratch: &Scratch, expected: &BTreeMap<PathBuf, Vec<u8>>, processes: Vec<Live>, out: &str) {
    scratch.assert_end_well(processes, out);
    assert_same(expected, &every_byte(&scratch.path(out)), out);
}

// The same answer.

/// Asserts that clusters of several shapes write what one process writes; gives the ledger and what all said.
fn assert_shapes_agree(window: &str, flags: &str) -> (Value, Vec<Vec<Run>>) {
    let scratch = with_taps();
    let (ledger, expected) = alone(&scratch, window);
    let mut said = Vec::new();
    for (processes, workers) in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)] {
        let out = format!("{processes}x{workers}");
        let args = format!("--json {flags} -w {workers} --window {window} {TAPS}");
        let (_, cluster) = scratch.start_cluster(processes, ANALYZER, &out, &args);
        let runs = scratch.assert_end_well(cluster, &out);
        let what = format!("{processes} processes of {workers} workers, window {window}");
        assert_same(&expected, &every_byte(&scratch.path(&out)), &what);
        let summary: Value = serde_json::from_str(&runs[0].stdout).unwrap();
        assert_eq!(summary["ledger"], ledger, "{what}");
        said.push(runs);
    }
    (ledger, said)
}

#[test]
fn clusters_of_any_shape_write_the_bytes_of_one_process() {
    let (ledger, said) = assert_shapes_agree("all", "-q");
    let parts = ["read", "counted", "non_ip", "malformed", "late", "lost"];
    let found = parts.map(|part| number(&ledger["packets"][part]));
    assert_eq!(found, [35_000, 34_860, 70, 70, 0, 0]);
    for run in said.iter().flatten() {
        assert_eq!(run.stderr, "", "{run:?}");
    }
}

#[test]
fn clusters_of_any_shape_write_the_same_bytes_and_revisions_of_every_window() {
    let (ledger, said) = assert_shapes_agree("1s", "");
    assert_eq!(number(&ledger["windows"]), 50);
    assert!(number(&ledger["packets"]["late"]) > 100, "{ledger}");
    for runs in said.iter().filter(|runs| runs.len() > 1) {
        for run in runs {
            assert!(run.stderr.contains(&formed(runs.len())), "{run:?}");
        }
    }
}

/// A configuration for all live programs. Streams are small, whatever disk is free.
fn live_config(tasks: &[Task]) -> String {
    format!("nats:\n  jetstream: {{max_bytes: 256MiB}}\ncluster: {{wait: 15s}}\n{}", config(tasks))
}

/// Asserts that clusters of these shapes (processes, workers of each) give the snapshots of a capture.
fn assert_replay_gives_the_same(
    shapes: &[(usize, usize)],
    encoding: &str,
    tasks: &[Task],
    options: &str,
    flags: &str,
) {
    let scratch = Scratch::new();
    scratch.write("config.yaml", live_config(tasks));
    scratch.write("a.pcap", pcap_of(&disordered(3, 20_000, 600 * SECOND)));
    scratch.analyze("-q -o offline --window 60s a.pcap").assert(0, "");
    let (offline, expected) = (scratch.ledger("offline"), snapshots(&scratch.path("offline")));
    assert!(number(&offline["packets"]["late"]) > 100, "{offline}");
    for (processes, workers) in shapes {
        let server = NatsServer::with(options);
        let to = format!("--nats {} {flags}", server.url());
        let out = format!("{processes}x{workers}");
        let args = format!("{to} -w {workers} --window 60s");
        let (_, engines) = scratch.start_engines(*processes, &out, &args);
        let report = scratch.replay(&format!("{to} --encoding {encoding} -r a.pcap"));
        engines[0].signal("TERM");
        scratch.assert_end_well(engines, &out);
        let ledger = assert_balanced(&scratch.path(&out));
        let what = format!("{encoding} {flags}, {processes} processes of {workers} workers");
        assert_same(&expected, &snapshots(&scratch.path(&out)), &what);
        assert_eq!(report["packets"]["sent"], offline["packets"]["counted"], "{what}");
        assert_eq!(ledger["packets"]["counted"], offline["packets"]["counted"], "{what}");
        assert_eq!(ledger["packets"]["lost"], 0, "{what}");
        if encoding == "batch" {
            let books = |ledger: &Value| [ledger["packets"].clone(), ledger["bytes"].clone()];
            assert_eq!(books(&ledger), books(&offline), "{what}");
        }
    }
}

const LIVE_SHAPES: &[(usize, usize)] = &[(1, 2), (2, 1), (2, 2), (3, 1)];

#[test]
fn clusters_give_the_snapshots_of_the_capture_from_batches_over_core_nats() {
    assert_replay_gives_the_same(LIVE_SHAPES, "batch", EVERY_KEY, "", "");
}

#[test]
fn clusters_give_the_snapshots_of_the_capture_from_batches_over_jetstream() {
    assert_replay_gives_the_same(LIVE_SHAPES, "batch", EVERY_KEY, JETSTREAM, "--jetstream");
}

#[test]
fn clusters_give_the_snapshots_of_the_capture_from_single_messages_over_core_nats() {
    assert_replay_gives_the_same(&[(2, 1)], "single", SHIPPED, "", "");
}

#[test]
fn clusters_give_the_snapshots_of_the_capture_from_single_messages_over_jetstream() {
    assert_replay_gives_the_same(&[(2, 1)], "single", SHIPPED, JETSTREAM, "--jetstream");
}

#[test]
fn processes_that_each_read_their_own_files_give_the_tables_of_one_run_over_all() {
    let scratch = with_taps();
    for (window, workers) in [("all", 1), ("1s", 2)] {
        let (expected, _) = alone(&scratch, window);
        let (hosts, out) = (Hosts::new(&scratch, 2), format!("local-{window}"));
        let own = |(process, file): (usize, &str)| {
            let args = format!("-q --local -w {workers} --window {window} {file}");
            scratch.start_process(&hosts, process, ANALYZER, &out, &args)
        };
        let cluster = TAPS.split(' ').enumerate().map(own).collect();
        scratch.assert_end_well(cluster, &out);
        let ledger = assert_balanced(&scratch.path(&out));
        let whole = scratch.path(&format!("alone-{window}"));
        assert_same(&tables(&whole), &tables(&scratch.path(&out)), &out);
        for part in ["read", "counted", "filtered", "non_ip", "malformed", "lost"] {
            assert_eq!(ledger["packets"][part], expected["packets"][part], "{part}: {ledger}");
        }
        assert_eq!(ledger["bytes"], expected["bytes"]);
        assert_eq!(ledger["windows"], expected["windows"]);
        for file in TAPS.split(' ') {
            let packets = |ledger: &Value| number(&input(ledger, file)["packets"]);
            assert_eq!(packets(&ledger), packets(&expected), "{file}");
        }
    }
}

// At the start.

#[test]
fn processes_may_start_in_any_order() {
    let scratch = with_taps();
    let (_, expected) = alone(&scratch, "1s");
    for (number, order) in [&[1, 0][..], &[2, 0, 1], &[1, 2, 0]].into_iter().enumerate() {
        let (hosts, out) = (Hosts::new(&scratch, order.len()), format!("order-{number}"));
        let args = format!("-q -w 1 --window 1s {TAPS}");
        let mut started: BTreeMap<usize, Live> = BTreeMap::new();
        for process in order {
            if !started.is_empty() {
                // How long the others are without it, not a wait for anything.
                thread::sleep(Duration::from_millis(400));
            }
            for (early, running) in &mut started {
                assert!(!running.is_over(), "{early} has not waited for {process}: {}", running.said());
            }
            started.insert(*process, scratch.start_process(&hosts, *process, ANALYZER, &out, &args));
        }
        assert_writes(&scratch, &expected, started.into_values().collect(), &out);
    }
}

/// A folder with small captures.
fn with_captures() -> Scratch {
    let scratch = Scratch::new();
    for (seed, file) in [(4, "a.pcap"), (5, "b.pcap")] {
        scratch.write(file, pcap(&mixed(seed, 1_000, 10 * SECOND)));
    }
    scratch
}

#[test]
fn a_process_that_waits_too_long_says_for_whom() {
    let (scratch, server) = (with_captures(), NatsServer::start());
    let live = format!("--nats {}", server.url());
    for (program, input, present, missing) in
        [(ANALYZER, "a.pcap", 0, 1), (ANALYZER, "a.pcap", 1, 0), (ENGINE, live.as_str(), 0, 1)]
    {
        let hosts = Hosts::new(&scratch, 2);
        let began = Instant::now();
        let run =
            scratch.start_process(&hosts, present, program, "out", &format!("--wait 1s {input}")).wait();
        let took = began.elapsed();
        run.assert(1, &format!("waited 1 s for {}", hosts.name(missing)));
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
        assert_eq!(run.stdout, "", "{run:?}");
        assert_nothing_written(&scratch.path("out"));
    }
}

#[test]
fn of_those_that_are_waited_for_the_one_that_is_missing_is_named() {
    let scratch = with_captures();
    let hosts = Hosts::new(&scratch, 3);
    let start = |process| scratch.start_process(&hosts, process, ANALYZER, "out", "--wait 1s a.pcap");
    let runs = [0, 1].map(start).map(|mut process| process.wait());
    let waited_for =
        |run: &Run, process: usize| run.stderr.contains(&format!("waited 1 s for {}", hosts.name(process)));
    // Who gives up first has the other; who comes after it may lack two.
    let of_one = [0, 1]
        .map(|process: usize| waited_for(&runs[process], 2) && !waited_for(&runs[process], 1 - process));
    assert!(of_one.contains(&true), "{runs:?}");
    runs.iter().for_each(|run| run.assert(1, ""));
    assert_nothing_written(&scratch.path("out"));
}

/// What a process says that another runs with, and what it runs with itself.
fn difference(run: &Run, other: &str, what: &str) -> [String; 2] {
    let says = format!("{other} runs with another {what}: ");
    run.assert(2, &says);
    let line = run.stderr.split_once(&says).unwrap().1.lines().next().unwrap();
    let (theirs, ours) = line.split_once("; here it is ").unwrap_or_else(|| panic!("{run:?}"));
    [theirs, ours].map(str::to_owned)
}

/// Asserts that two processes refuse each other for this difference, each by the other's name.
fn assert_refused(scratch: &Scratch, what: &str, hosts: [&Hosts; 2], programs: [(&str, &str); 2]) {
    let start = |process: usize| {
        let (program, args) = programs[process];
        scratch.start_process(hosts[process], process, program, "out", &format!("--wait 15s {args}"))
    };
    let runs = [0, 1].map(start).map(|mut process| process.wait());
    let [theirs, ours] = difference(&runs[0], &hosts[0].name(1), what);
    assert_ne!(theirs, ours);
    assert_eq!(difference(&runs[1], &hosts[1].name(0), what), [ours, theirs]);
    assert_nothing_written(&scratch.path("out"));
}

#[test]
fn processes_with_different_settings_refuse_each_other_by_name() {
    let scratch = with_captures();
    scratch.write("shipped.yaml", config(SHIPPED));
    scratch.write("fewer.yaml", config(&SHIPPED[1..]));
    let later = config(SHIPPED).replace("window: 60s", "window: 60s\n  allowed_lateness: 6s");
    scratch.write("later.yaml", later);
    for (what, first, second) in [
        ("tasks", "-c shipped.yaml a.pcap", "-c fewer.yaml a.pcap"),
        ("window", "--window 1s a.pcap", "--window 2s a.pcap"),
        ("window", "--window 1s a.pcap", "a.pcap"),
        ("allowed lateness", "-c shipped.yaml a.pcap", "-c later.yaml a.pcap"),
        ("workers", "-w 1 a.pcap", "-w 2 a.pcap"),
        ("filter", "-f tcp a.pcap", "-f udp a.pcap"),
        ("input", "a.pcap", "b.pcap"),
        ("input", "a.pcap b.pcap", "a.pcap"),
    ] {
        let hosts = Hosts::new(&scratch, 2);
        assert_refused(&scratch, what, [&hosts; 2], [(ANALYZER, first), (ANALYZER, second)]);
    }
}

#[test]
fn processes_with_different_hosts_refuse_each_other_by_name() {
    let scratch = with_captures();
    // Two of three find each other and would wait for different thirds.
    let mut addresses = free_addresses(4);
    let other = addresses.pop().unwrap();
    let first = Hosts::of(&scratch, "hosts-first", addresses.clone());
    addresses[2] = other;
    let second = Hosts::of(&scratch, "hosts-second", addresses);
    assert_refused(&scratch, "hosts", [&first, &second], [(ANALYZER, "a.pcap"); 2]);
}

#[test]
fn engines_with_different_buses_refuse_each_other_by_name() {
    let (scratch, server) = (with_captures(), NatsServer::with(JETSTREAM));
    scratch.write("config.yaml", live_config(SHIPPED));
    let core = format!("--nats {}", server.url());
    let log = format!("{core} --jetstream");
    let hosts = Hosts::new(&scratch, 2);
    assert_refused(&scratch, "input", [&hosts; 2], [(ENGINE, &core), (ENGINE, &log)]);
}

#[test]
fn strangers_at_the_port_of_a_cluster_do_no_harm() {
    let scratch = with_taps();
    let (_, expected) = alone(&scratch, "all");
    let hosts = Hosts::new(&scratch, 2);
    let start = |process| scratch.start_process(&hosts, process, ANALYZER, "out", &format!("-q -w 1 {TAPS}"));
    let mut random = Random(6);
    let mut cluster = vec![start(0)];
    let port = &hosts.addresses[0];
    // The first says nothing at all; all but a few stay to the end.
    let mut strangers = vec![wait_for("open port", || TcpStream::connect(port).ok())];
    for number in 0..24 {
        if number == 16 {
            cluster.push(start(1));
        }
        // Once the cluster has formed, nobody need be there any more.
        let stranger = TcpStream::connect(port);
        assert!(stranger.is_ok() || number >= 16, "{stranger:?}");
        let Ok(mut stranger) = stranger else { continue };
        let noise: Vec<u8> = (0..random.below(4096)).map(|_| random.below(256) as u8).collect();
        // It may hang up in the middle.
        let _ = match number % 6 {
            0 => Ok(()),
            1 | 2 => stranger.write_all(&noise),
            3 => stranger.write_all(&[0; 4096]),
            4 => stranger.write_all(&[0xff; 4096]),
            _ => stranger.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        };
        if number % 6 != 2 {
            strangers.push(stranger);
        }
    }
    assert_writes(&scratch, &expected, cluster, "out");
}

#[test]
fn a_stranger_at_the_port_of_a_cluster_learns_no_setting_and_ends_nothing() {
    let scratch = with_captures();
    let hosts = Hosts::new(&scratch, 2);
    let args = "-q -f tcp -w 1 a.pcap b.pcap";
    let first = scratch.start_process(&hosts, 0, ANALYZER, "out", args);
    // A hello as an earlier release took it from anyone, told its settings, and then ended because of another's.
    let hello = br#"{"from":1,"to":0,"generation":0,"settings":[["filter","udp"]]}"#;
    let mut stranger = wait_for("open port", || TcpStream::connect(&hosts.addresses[0]).ok());
    stranger.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stranger.write_all(&[b"nspectra", &(hello.len() as u32).to_le_bytes()[..], hello].concat()).unwrap();
    stranger.write_all(&[b' '; 4096]).unwrap();
    let mut told = Vec::new();
    // It may be cut off with what it has sent unread.
    let _ = stranger.read_to_end(&mut told);
    let told = String::from_utf8_lossy(&told);
    assert!(!told.contains("tcp") && !told.contains("a.pcap") && !told.contains("window"), "{told}");
    let second = scratch.start_process(&hosts, 1, ANALYZER, "out", args);
    scratch.assert_end_well(vec![first, second], "out");
}

#[test]
fn strangers_take_little_of_a_cluster_that_has_formed() {
    let scratch = Scratch::new();
    let (hosts, mut cluster) = start_flooded_analyzers(&scratch);
    cluster.iter_mut().for_each(|process| process.wait_until_says(&formed(2)));
    let files = |process: &Live| fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    let before = files(&cluster[0]);
    let part = [&b"nspectra"[..], &(1u32 << 20).to_le_bytes(), &[b' '; 1024]].concat();
    let mut strangers: Vec<TcpStream> = Vec::new();
    for _ in 0..200 {
        strangers.push(TcpStream::connect(&hosts.addresses[0]).unwrap());
    }
    // The last ones are there when the first is cut off; each that is not yet may say something.
    for stranger in &mut strangers {
        let _ = stranger.write_all(&part[..100]);
    }
    strangers[0].set_nonblocking(true).unwrap();
    let mut most = 0;
    wait_for("end of the first stranger", || {
        most = most.max(files(&cluster[0]).saturating_sub(before));
        let read = strangers[0].read(&mut [0]);
        read.is_ok_and(|read| read == 0).then_some(())
    });
    assert!(most < 64, "{most} files for 200 strangers");
    cluster[1].signal("TERM");
    scratch.assert_end_well(cluster, "out");
}

// At the end.

/// Starts two analysers that read captures without end.
fn start_flooded_analyzers(scratch: &Scratch) -> (Hosts, Vec<Live>) {
    let (hosts, mut cluster) = scratch.start_cluster(2, ANALYZER, "out", "--local -w 1 --window 60s -");
    cluster.iter_mut().for_each(Live::flood);
    (hosts, cluster)
}

/// Starts three engines and a probe that sends them a capture without end.
fn start_flooded_engines(scratch: &Scratch, server: &NatsServer) -> ((Hosts, Vec<Live>), Live) {
    let to = format!("--nats {}", server.url());
    let cluster = scratch.start_engines(3, "out", &format!("{to} -w 1 --window 60s"));
    let mut probe = scratch.start_probe(&format!("{to} -r -"));
    probe.flood();
    (cluster, probe)
}

#[test]
fn analysers_that_lose_a_process_end_soon_say_whom_and_leave_whole_windows_only() {
    for victim in [0, 1] {
        let scratch = Scratch::new();
        let cluster = start_flooded_analyzers(&scratch);
        scratch.assert_loss_is_told(cluster, victim, "out", SHIPPED);
    }
}

#[test]
fn engines_that_lose_a_process_end_soon_say_whom_and_leave_whole_windows_only() {
    for victim in [0, 1] {
        let (scratch, server) = (Scratch::new(), NatsServer::start());
        let (cluster, _probe) = start_flooded_engines(&scratch, &server);
        scratch.assert_loss_is_told(cluster, victim, "out", SHIPPED);
    }
}

#[test]
fn a_signal_to_one_analyser_ends_all_and_the_books_balance() {
    let scratch = Scratch::new();
    let (_, cluster) = start_flooded_analyzers(&scratch);
    let out = scratch.path("out");
    wait_for("two windows", || (windows(&out).len() >= 2).then_some(()));
    cluster[1].signal("TERM");
    scratch.assert_end_well(cluster, "out");
    let ledger = assert_balanced(&out);
    assert_eq!(ledger["interrupted"], true, "{ledger}");
    let inputs = ledger["inputs"].as_array().unwrap();
    // The windows that were seen hold more than a minute and a half of both.
    assert!(inputs.len() == 2 && inputs.iter().all(|input| number(&input["counted"]) >= 15_000), "{ledger}");
}

/// The summaries said that it was, and the ledger that it was not.
#[test]
fn a_signal_is_in_the_books_although_the_process_that_writes_had_read_all_of_its_own() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(3, 100, SECOND)));
    let hosts = Hosts::new(&scratch, 2);
    let start = |process, input: &str| {
        let args = format!("--local -w 1 --window 60s {input}");
        scratch.start_process(&hosts, process, ANALYZER, "out", &args)
    };
    let mut cluster = vec![start(0, "a.pcap"), start(1, "-")];
    cluster[1].flood();
    // Time passes the end of the file only once that has been read.
    let out = scratch.path("out");
    wait_for("three windows", || (windows(&out).len() >= 3).then_some(()));
    cluster[1].signal("TERM");
    scratch.assert_end_well(cluster, "out");
    let ledger = assert_balanced(&out);
    assert_eq!(ledger["interrupted"], true, "{ledger}");
}

#[test]
fn a_signal_to_one_engine_in_a_flood_ends_all_and_the_books_balance() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let ((_, cluster), mut probe) = start_flooded_engines(&scratch, &server);
    let out = scratch.path("out");
    wait_for("two windows", || (windows(&out).len() >= 2).then_some(()));
    cluster[1].signal("TERM");
    scratch.assert_end_well(cluster, "out");
    let ledger = assert_balanced(&out);
    assert!(number(&ledger["packets"]["counted"]) >= 15_000, "{ledger}");
    assert!(!probe.is_over(), "{:?}", probe.wait());
}

#[test]
fn a_signal_to_one_engine_ends_all_with_everything_counted() {
    for (signal, options, flags) in [("TERM", "", ""), ("INT", JETSTREAM, "--jetstream")] {
        let scratch = Scratch::new();
        let packets = mixed(7, 20_000, 300 * SECOND);
        scratch.write("config.yaml", live_config(SHIPPED));
        scratch.write("a.pcap", pcap(&packets));
        let server = NatsServer::with(options);
        let to = format!("--nats {} {flags}", server.url());
        let (_, engines) = scratch.start_engines(2, "out", &format!("{to} -w 1"));
        scratch.replay(&format!("{to} -r a.pcap"));
        engines[1].signal(signal);
        scratch.assert_end_well(engines, "out");
        assert_balanced(&scratch.path("out"));
        assert_holds(&scratch.path("out"), &packets, 60 * SECOND, SHIPPED);
    }
}

// Settings.

/// Starts an analyser of the captures with these variables in its environment.
fn start_with(scratch: &Scratch, variables: &[(&str, &str)], args: &str) -> Live {
    let mut command = scratch.command(ANALYZER, &format!("-q -w 1 {args} {TAPS}"));
    command.envs(variables.iter().copied());
    Live::start(command)
}

#[test]
fn a_cluster_is_set_up_by_the_environment_or_by_the_configuration() {
    let scratch = with_taps();
    let (_, expected) = alone(&scratch, "all");
    let hosts = Hosts::new(&scratch, 2);
    let from_environment = ["0", "1"].map(|process| {
        let variables = [
            ("NETSPECTRA_PROCESSES", "2"),
            ("NETSPECTRA_PROCESS", process),
            ("NETSPECTRA_HOSTFILE", hosts.file.as_str()),
        ];
        start_with(&scratch, &variables, "-o environment")
    });
    assert_writes(&scratch, &expected, from_environment.into(), "environment");
    let hosts = Hosts::new(&scratch, 2);
    let from_configuration = [0, 1].map(|process| {
        let section =
            format!("cluster: {{processes: 2, process: {process}, hostfile: {}, wait: 15s}}\n", hosts.file);
        let file = format!("{process}.yaml");
        scratch.write(&file, section + &config(EVERY_KEY));
        start_with(&scratch, &[], &format!("-c {file} -o configuration"))
    });
    assert_writes(&scratch, &expected, from_configuration.into(), "configuration");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_configuration() {
    let scratch = with_taps();
    let (_, expected) = alone(&scratch, "all");
    let section = "cluster: {processes: 3, process: 2, hostfile: missing, wait: 1s}\n";
    scratch.write("config.yaml", section.to_owned() + &config(EVERY_KEY));
    let hosts = Hosts::new(&scratch, 2);
    let right = [("NETSPECTRA_PROCESSES", "2"), ("NETSPECTRA_HOSTFILE", hosts.file.as_str())];
    let second = start_with(&scratch, &[&right[..], &[("NETSPECTRA_PROCESS", "1")]].concat(), "--wait 15s");
    // How long it waits alone, which is longer than the configuration says.
    thread::sleep(Duration::from_millis(1500));
    let wrong = [
        ("NETSPECTRA_PROCESSES", "4"),
        ("NETSPECTRA_PROCESS", "3"),
        ("NETSPECTRA_HOSTFILE", "another-that-is-missing"),
    ];
    let args = format!("--wait 15s -o out {}", hosts.flags(0));
    let first = start_with(&scratch, &wrong, &args);
    assert_writes(&scratch, &expected, vec![first, second], "out");
    assert!(!scratch.path("snapshots").exists(), "the second process has made a folder");
    // What the flags do not say.
    let hosts = Hosts::new(&scratch, 2);
    let run = start_with(&scratch, &[], &format!("-o waited {}", hosts.flags(0))).wait();
    run.assert(1, &format!("waited 1 s for {}", hosts.name(1)));
}

#[test]
fn without_a_file_of_hosts_a_cluster_is_on_this_machine() {
    let scratch = with_captures();
    let run = scratch.analyze("-n 2 -p 0 --wait 1s -o out a.pcap");
    run.assert(1, "waited 1 s for process 1 (127.0.0.1:2102)");
    let run = scratch.analyze("-n 2 -p 1 --wait 1s -o out a.pcap");
    run.assert(1, "waited 1 s for process 0 (127.0.0.1:2101)");
    assert_nothing_written(&scratch.path("out"));
}

#[test]
fn bad_usage_of_a_cluster_is_refused_before_anything_is_started() {
    let scratch = with_captures();
    let hosts = Hosts::new(&scratch, 2);
    let refused = |program: &str, args: &str, says: &[&str]| {
        let input = if program == ANALYZER { " a.pcap" } else { "" };
        let run = scratch.start(program, &format!("-o out {args}{input}")).finish();
        says.iter().for_each(|says| run.assert(2, says));
        assert_eq!(run.stdout, "", "{run:?}");
        assert!(!scratch.path("out").exists(), "{args}");
    };
    scratch.write("short", "127.0.0.1:7001\n# 127.0.0.1:7002\n\n");
    let bad_lines =
        ["127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:70001", ":7002", "localhost:1 localhost:2"];
    for (number, line) in bad_lines.iter().enumerate() {
        scratch.write(&format!("bad-{number}"), format!("127.0.0.1:7001\n{line}\n"));
    }
    for (file, section) in [
        ("outside.yaml", "{processes: 2, process: 2}"),
        ("unknown.yaml", "{hosts: here}"),
        ("wait.yaml", "{wait: soon}"),
        ("missing.yaml", "{processes: 2, hostfile: nowhere}"),
    ] {
        scratch.write(file, format!("cluster: {section}\n{}", config(SHIPPED)));
    }
    for program in [ANALYZER, ENGINE] {
        for (args, says) in [
            ("-n 2 -p 2", &["process", "2"][..]),
            ("-n 2 -p 7", &["process", "7"]),
            ("-p 1", &["process", "1"]),
            ("-n 0", &["process", "0"]),
            ("-n two -p 0", &["two"]),
            ("-n 2 -p 0 --hostfile nowhere", &["nowhere"]),
            ("-n 2 -p 0 --hostfile short", &["short"]),
            ("-n 2 -p 0 --wait soon", &["soon"]),
            ("-c outside.yaml", &["process", "2"]),
            ("-c unknown.yaml", &["unknown.yaml", "hosts"]),
            ("-c wait.yaml", &["wait.yaml", "soon"]),
            ("-c missing.yaml", &["nowhere"]),
        ] {
            refused(program, args, says);
        }
        for (number, line) in bad_lines.iter().enumerate() {
            let file = format!("bad-{number}");
            refused(program, &format!("-n 2 -p 0 --hostfile {file}"), &[&file, line]);
        }
        for (variable, value) in [
            ("NETSPECTRA_PROCESSES", "two"),
            ("NETSPECTRA_PROCESS", "-1"),
            ("NETSPECTRA_HOSTFILE", "nowhere"),
        ] {
            let input = if program == ANALYZER { "a.pcap" } else { "" };
            let mut command = scratch.command(program, &format!("-o out {input}"));
            command.env("NETSPECTRA_PROCESSES", "2").env(variable, value);
            Running::start(command).finish().assert(2, value);
            assert!(!scratch.path("out").exists(), "{variable}");
        }
    }
    // All processes read the same files, so that what only one can read is not for a cluster.
    for only_once in ["-", "/dev/stdin"] {
        for process in [0, 1] {
            refused(ANALYZER, &format!("{} {only_once}", hosts.flags(process)), &["--local"]);
        }
    }
}

#[test]
fn the_service_units_are_ones_that_systemd_takes_and_finds_hardened() {
    let scratch = Scratch::new();
    let engine = ["Restart=on-failure", "RestartPreventExitStatus=2", "Environment=NETSPECTRA_PROCESS=%i"];
    // Tenths of a point of exposure: 100 is worst.
    for (unit, instance, program, settings, most) in [
        ("ns-engine", "0", ENGINE, &engine[..], "15"),
        ("ns-probe", "eth0", PROBE, &["Restart=on-failure"], "20"),
    ] {
        let path = format!("{}/systemd/{unit}@.service", env!("CARGO_MANIFEST_DIR"));
        let shipped = fs::read_to_string(&path).unwrap();
        for setting in settings {
            assert!(shipped.lines().any(|line| line == *setting), "{path}: {setting}");
        }
        // It has to name a program that is there.
        let installed = format!("/usr/bin/{unit} ");
        assert!(shipped.contains(&installed), "{shipped}");
        let here = scratch.write(
            &format!("{unit}@{instance}.service"),
            shipped.replace(&installed, &format!("{program} ")),
        );
        let verified = Command::new(tool("systemd-analyze")).arg("verify").arg(&here).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && said.is_empty(), "{said}");
        let mut judge = Command::new(tool("systemd-analyze"));
        judge.args(["security", "--offline=true", "--threshold", most]).arg(&here);
        let judged = judge.output().unwrap();
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    }
}
