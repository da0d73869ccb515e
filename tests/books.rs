//! The books of the live programs where they are hardest to keep: programs that are frozen, servers that are gone,
//! messages that overtake each other, runs that are repeated, probes that stand still.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant, SystemTime};
use support::live::*;
use support::*;

const SINGLE: &str = "gons.packets.raw";
const DAY: u64 = 86_400 * SECOND;
const MINUTE: u64 = 60 * SECOND;

/// The shipped tasks, with lines of the section `nats`. Streams are small, whatever disk is free.
fn live_config(nats: &str) -> String {
    format!("nats:\n  jetstream: {{max_bytes: 256MiB}}\n{nats}{}", config(SHIPPED))
}

/// One whose windows close soon, and wait a second for a probe that is silent.
fn quick_config() -> String {
    let quick = "window: 1s\n  allowed_lateness: 500ms";
    live_config("  silent_after: 1s\n").replace("window: 60s", quick)
}

/// Nanoseconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// So many packets, a millisecond apart.
fn in_a_row(count: u64) -> Vec<Packet> {
    (0..count).map(|number| packet(number, "10.0.0.1", "10.0.0.2")).collect()
}

fn packets(ledger: &Value, part: &str) -> u64 {
    number(&ledger["packets"][part])
}

/// Asserts that so many packets were counted, and none was lost.
fn assert_counted(ledger: &Value, count: u64) {
    assert_eq!([packets(ledger, "counted"), packets(ledger, "lost")], [count, 0], "{ledger}");
}

// Frozen.

#[test]
fn frames_in_the_rings_of_frozen_programs_are_counted_when_they_are_told_to_stop() {
    for (ring, has_room) in [("64MiB", true), ("1MiB", false)] {
        let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
        scratch.generate("-o sent.pcap --packets 20000 --flows 2000 --ipv6 0.2").assert(0, "");
        let server = NatsServer::start_in(&namespaces.right, "");
        let on_link = format!("--iface right -f 'ip or ip6' --ring-size {ring}");
        let engines = [1, 2].map(|workers| {
            let args = format!("{on_link} -o out-{workers} -w {workers}");
            scratch.start_engine_in(&namespaces.right, &args)
        });
        let args = format!("{on_link} --json --nats {}", server.url());
        let mut probe = Live::start(scratch.command_in(&namespaces.right, PROBE, &args));
        probe.wait_until_says("publishing to");

        let before = namespaces.arrived();
        let programs = [&engines[0], &engines[1], &probe];
        programs.iter().for_each(|program| program.signal("STOP"));
        namespaces.send_at_once(&scratch, "sent.pcap");
        let frames = namespaces.arrived() - before;
        assert!(frames > 10_000, "only {frames} frames came over the link");
        programs.iter().for_each(|program| program.stop_frozen());

        let report = probe.report();
        let [read, dropped] = ["read", "kernel_dropped"].map(|part| packets(&report, part));
        assert_eq!(read + dropped, frames, "{ring}: {report}");
        assert_eq!(dropped == 0, has_room, "{ring}: {report}");
        for (workers, engine) in (1..).zip(engines) {
            let ledger = engine.ledger(&scratch.path(&format!("out-{workers}")));
            let [counted, lost] = ["counted", "lost"].map(|part| packets(&ledger, part));
            assert_eq!(counted + lost, frames, "{ring}, {workers} workers: {ledger}");
            assert_eq!(lost == 0, has_room, "{ring}, {workers} workers: {ledger}");
        }
    }
}

#[test]
fn an_engine_without_the_durable_log_keeps_earlier_windows_and_names_the_one_that_it_replaces() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let out = scratch.path("out");
    for (minutes, replaces) in [([0, 1], false), ([1, 2], true)] {
        let args = format!("--nats {} -o out --window 60s", server.url());
        let mut engine = scratch.start_engine(&args);
        let mut client = server.connect();
        for minute in minutes {
            let packet = packet(minute * 60_000, "10.0.0.1", "10.0.0.2");
            client.publish(SINGLE, &packet_info(&packet));
        }
        client.flush();
        engine.signal("TERM");
        let run = engine.wait();
        let name = window_name((START / MINUTE + 1) * MINUTE);
        let says = format!("out/{name}: overwriting this window of an earlier run");
        assert_eq!((run.code, run.stderr.contains(&says)), (Some(0), replaces), "{run:?}");
    }
    assert_eq!(windows(&out).len(), 3);
    scratch.write("a.pcap", pcap(&in_a_row(10)));
    scratch.analyze("-o out a.pcap").assert(2, "written by ns-engine");
    assert_eq!(windows(&out).len(), 3);
}

/// The answer to a request, from within a network namespace.
fn ask_within(place: &Place, said: &str, path: &str) -> String {
    let port = said.split_once("http://127.0.0.1:").unwrap().1.lines().next().unwrap();
    let request = format!("GET {path} HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n");
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3");
    let output = place.command("bash").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Nothing was said before the end, where nothing said where, and all windows looked whole.
#[test]
fn what_the_kernel_drops_is_told_while_it_happens_in_the_windows_and_at_the_end() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    scratch.write("config.yaml", quick_config());
    scratch.generate("-o few.pcap --packets 100").assert(0, "");
    scratch.generate("-o many.pcap --packets 20000 --flows 100").assert(0, "");
    let out = scratch.path("out");
    for workers in [1, 2] {
        let args = format!("--iface right -o out -w {workers} --ring-size 1MiB --http 127.0.0.1:0");
        let mut engine = scratch.start_engine_in(&namespaces.right, &args);
        engine.wait_until_says("answering at");
        namespaces.send_at_once(&scratch, "few.pcap");
        let whole = wait_for("window", || windows(&out).pop());
        engine.signal("STOP");
        namespaces.send_at_once(&scratch, "many.pcap");
        engine.signal("CONT");
        engine.wait_until_says(" dropped by the kernel in ");
        let line = engine.said().lines().find(|line| line.contains("dropped")).unwrap().to_owned();
        assert!(
            line.contains("right: ")
                && line.contains(" packets dropped by the kernel in the last ")
                && line.contains("--ring-size"),
            "{line}"
        );
        wait_for("remark", || {
            let ready = ask_within(&namespaces.right, &engine.said(), "/readyz");
            assert!(ready.contains(" 200 "), "{ready}");
            ready.contains(" dropped by the kernel in ").then_some(())
        });
        engine.signal("TERM");
        let run = engine.wait();
        assert_eq!(run.code, Some(0), "{run:?}");
        let ledger = assert_balanced(&out);
        let lost = packets(&ledger, "lost");
        let by_ring = ledger["inputs"].as_array().unwrap().iter().map(|input| number(&input["lost"]));
        for (ring, lost) in by_ring.enumerate().filter(|(_, lost)| *lost > 0) {
            let name = if workers == 1 { "right".to_owned() } else { format!("right ring {ring}") };
            let packets = if lost == 1 { "1 packet was".into() } else { format!("{lost} packets were") };
            assert!(run.stderr.contains(&format!("{name}: {packets} lost: {lost} by the kernel")), "{run:?}");
        }
        let missing = |window: &str| {
            read_json(&out.join(window).join("summary.json"))["incomplete"]["lost"].as_u64().unwrap_or(0)
        };
        assert_eq!(missing(&whole), 0, "it was written before anything was lost");
        let missing: Vec<_> = windows(&out).iter().map(|window| missing(window)).collect();
        assert!(
            missing.iter().all(|missing| *missing <= lost) && missing.iter().sum::<u64>() >= lost,
            "{missing:?} of {lost}"
        );
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn what_a_probe_loses_is_told_by_it_and_by_the_engine() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    scratch.write("config.yaml", quick_config());
    scratch.generate("-o many.pcap --packets 20000 --flows 100").assert(0, "");
    let server = NatsServer::start_in(&namespaces.right, "");
    let mut engine = scratch.start_engine_in(&namespaces.right, &format!("--nats {} -o out", server.url()));
    let args = format!("--nats {} --json --id tap -i right --ring-size 1MiB", server.url());
    let mut probe = Live::start(scratch.command_in(&namespaces.right, PROBE, &args));
    probe.wait_until_says("publishing to");
    probe.signal("STOP");
    namespaces.send_at_once(&scratch, "many.pcap");
    probe.signal("CONT");
    probe.wait_until_says(" dropped by the kernel in ");
    assert!(probe.said().contains("right: "), "{}", probe.said());
    engine.wait_until_says(" dropped by the kernel on the probe's host in ");
    assert!(engine.said().contains("tap: "), "{}", engine.said());
    probe.signal("TERM");
    let dropped = packets(&probe.report(), "kernel_dropped");
    engine.signal("TERM");
    let run = engine.wait();
    assert!(
        run.stderr.contains(&format!("tap: {dropped} packets were lost: {dropped} by the kernel")),
        "{run:?}"
    );
}

#[test]
fn single_messages_that_wait_for_a_frozen_engine_are_counted_when_it_is_told_to_stop() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    engine.signal("STOP");
    let mut client = server.connect();
    in_a_row(5_000).iter().for_each(|packet| client.publish(SINGLE, &packet_info(packet)));
    client.flush();
    engine.stop_frozen();
    assert_counted(&engine.ledger(&scratch.path("out")), 5_000);
}

#[test]
fn batches_of_several_probes_that_wait_for_a_frozen_engine_are_counted_when_it_is_told_to_stop() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    engine.signal("STOP");
    let (mut client, started) = (server.connect(), now());
    for (sequence, packets) in (0..).zip(in_a_row(5_000).chunks(50)) {
        for probe in ["north", "east", "south", "west"] {
            client.publish_batch(&Batch::new(probe, started, sequence, sequence * 50, packets));
        }
    }
    client.flush();
    engine.stop_frozen();
    let ledger = engine.ledger(&scratch.path("out"));
    assert_counted(&ledger, 20_000);
    for probe in ["north", "east", "south", "west"] {
        assert_eq!(input(&ledger, probe)["counted"], 5_000, "{ledger}");
    }
}

#[test]
fn an_engine_told_to_stop_as_soon_as_it_listens_leaves_a_ledger() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    for round in 0..10 {
        let engine = scratch.start_engine(&format!("--nats {} -o out-{round} -w 2", server.url()));
        // At once: a shell that sends it takes longer than the engine to begin.
        kill_process(Pid::from_raw(engine.id() as i32).unwrap(), Signal::INT).unwrap();
        assert_counted(&engine.ledger(&scratch.path(&format!("out-{round}"))), 0);
    }
}

// The server is gone.

#[test]
fn a_probe_whose_server_is_gone_ends_soon_and_reports_what_it_could_not_send() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    scratch.write("config.yaml", live_config("  buffer: 1MiB\n"));
    scratch.generate("-o sent.pcap --packets 2000 --flows 200").assert(0, "");
    scratch.generate("-o long.pcap --packets 20000 --flows 1000 --duration 160s").assert(0, "");
    let mut on_link = NatsServer::start_in(&namespaces.right, JETSTREAM);
    let mut elsewhere = NatsServer::start();
    let live = format!("--json --nats {} -i right -f ip", on_link.url());
    let replay = format!("--json --nats {}", elsewhere.url());

    let mut watching = ["max", "paced"].map(|subject| {
        let mut client = elsewhere.connect();
        client.subscribe(&format!("{subject}.>"));
        client
    });
    let mut probes = [
        Live::start(scratch.command_in(&namespaces.right, PROBE, &live)),
        Live::start(scratch.command_in(&namespaces.right, PROBE, &format!("{live} --jetstream"))),
        scratch.start_probe(&format!("{replay} --subject max -r -")),
        scratch.start_probe(&format!("{replay} --subject paced --pace 20x -r long.pcap")),
    ];
    probes[2].flood();
    probes.iter_mut().for_each(|probe| probe.wait_until_says("publishing to"));
    watching.iter_mut().for_each(|client| (0..3).for_each(|_| drop(client.next())));
    namespaces.send_at_once(&scratch, "sent.pcap");
    on_link.kill();
    elsewhere.kill();
    namespaces.send_at_once(&scratch, "sent.pcap");

    let told = Instant::now();
    probes.iter().for_each(|probe| probe.signal("INT"));
    let kinds = ["live", "live over JetStream", "replay", "replay at a pace"];
    for (kind, mut probe) in kinds.into_iter().zip(probes) {
        wait_for(&format!("end of the probe ({kind})"), || probe.is_over().then_some(()));
        let (report, _) = probe.report_and_run(1);
        assert_ne!(packets(&report, "read"), 0, "{kind}: {report}");
        let took = told.elapsed();
        assert!(took < Duration::from_secs(20), "{kind}: {took:?} until it ended: {report}");
    }
}

// Messages in any order.

#[test]
fn a_last_word_that_overtakes_its_packet_stops_no_engine() {
    let server = NatsServer::start();
    let sent = [packet(0, "10.0.0.1", "10.0.0.2"), packet(100_000, "10.0.0.3", "10.0.0.4")];
    // The last word may know of the packet that it has overtaken, or not.
    for (workers, known) in [(1, 0), (1, 1), (2, 0), (2, 1)] {
        let scratch = Scratch::new();
        let engine = scratch.start_engine(&format!("--nats {} -o out -w {workers}", server.url()));
        let (mut client, started) = (server.connect(), now());
        let last = Batch::new("x", started, known, known, &[]);
        client.publish_batch(&Batch { latest: START + DAY, last: true, ..last });
        client.publish_batch(&Batch::new("x", started, 0, 0, &sent[..1]));
        client.publish_batch(&Batch::new("y", started, 0, 0, &sent[1..]));
        client.flush();
        engine.stop_engine(&scratch.path("out"));
        assert_holds(&scratch.path("out"), &sent, MINUTE, SHIPPED);
    }
}

#[test]
fn what_is_missing_between_the_batches_heard_is_lost_and_what_came_before_them_is_not() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let started = now() - MINUTE;
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let (mut client, packets) = (server.connect(), in_a_row(1_300));
    for first in [1_000, 900, 1_200] {
        let packets = &packets[first as usize..][..100];
        client.publish_batch(&Batch::new("tap", started, first / 100, first, packets));
    }
    client.flush();
    let ledger = engine.stop_engine(&scratch.path("out"));
    let tap = input(&ledger, "tap");
    assert_eq!(["counted", "lost"].map(|part| number(&tap[part])), [300, 100], "{ledger}");
}

#[test]
fn accounts_that_arrive_after_newer_ones_take_nothing_back() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
    let (mut client, started) = (server.connect(), now());
    client.publish_batch(&Batch::new("tap", started, 0, 0, &in_a_row(10)));
    let heartbeat = |filtered: u64, dropped, kernel_dropped| Batch {
        latest: START + SECOND,
        accounts: Accounts { filtered, uncounted_bytes: filtered * 60, dropped, kernel_dropped },
        ..Batch::new("tap", started, 1, 10, &[])
    };
    client.publish_batch(&heartbeat(50, 4, 7));
    client.publish_batch(&heartbeat(20, 1, 3));
    client.flush();
    let ledger = engine.stop_engine(&scratch.path("out"));
    let tap = input(&ledger, "tap");
    assert_eq!(["counted", "filtered", "lost"].map(|part| number(&tap[part])), [10, 50, 11], "{ledger}");
    assert_eq!(ledger["bytes"]["read"], 10 * 100 + 50 * 60, "{ledger}");
}

// What other engines say.

const TAKEN: &str = "gons.packets.taken.ns-engine";

#[test]
fn nobody_can_say_of_packets_that_were_not_sent_that_another_engine_has_taken_them() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let (mut client, started) = (server.connect(), now());
    let packets = in_a_row(3_000);
    let batch =
        |first: u64| Batch::new("tap", started, first / 1_000, first, &packets[first as usize..][..1_000]);
    let forge = |client: &mut Client| {
        client.publish(TAKEN, &taken("tap", 0..1 << 50));
        client.publish(TAKEN, &taken("tap", 1_000..2_000));
    };
    // Before anything is known of the run, and after.
    forge(&mut client);
    client.publish_batch(&batch(0));
    forge(&mut client);
    client.publish_batch(&batch(1_000));
    client.publish_batch(&batch(2_000));
    client.flush();
    assert_counted(&engine.stop_engine(&scratch.path("out")), 3_000);
}

#[test]
fn what_another_engine_says_that_it_took_is_not_lost() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let (mut client, started) = (server.connect(), now());
    let packets = in_a_row(3_000);
    let batch =
        |first: u64| Batch::new("tap", started, first / 1_000, first, &packets[first as usize..][..1_000]);
    client.publish(TAKEN, &taken("tap", 1_000..1_900));
    client.publish_batch(&batch(0));
    client.publish_batch(&batch(2_000));
    client.flush();
    let ledger = engine.stop_engine(&scratch.path("out"));
    assert_eq!(["counted", "lost"].map(|part| number(&ledger["packets"][part])), [2_000, 100], "{ledger}");
}

#[test]
fn what_is_kept_of_what_other_engines_say_is_bounded() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
    let mut client = server.connect();
    let before = engine.peak_memory();
    for number in 0..400 {
        let name = format!("{number}{}", "x".repeat(900_000));
        client.publish(TAKEN, &taken(&name, 0..1));
    }
    client.publish_batch(&Batch { last: true, ..Batch::new("tap", now(), 0, 0, &in_a_row(10)) });
    client.flush();
    wait_for("messages that have gone to the engine", || (server.messages_out() > 400).then_some(()));
    let grown = engine.peak_memory() - before;
    assert_counted(&engine.stop_engine(&scratch.path("out")), 10);
    assert!(grown < 200 << 20, "{} MiB of memory for what engines say", grown >> 20);
}

// Names.

#[test]
fn a_replay_published_in_both_encodings_under_one_name_is_counted_in_each() {
    let (scratch, server) = (Scratch::new(), NatsServer::with(JETSTREAM));
    let sent = mixed(31, 5_000, MINUTE);
    scratch.write("config.yaml", live_config(""));
    scratch.write("a.pcap", pcap(&sent));
    let engine = scratch.start_engine(&format!("--nats {} --jetstream -o out -w 2", server.url()));
    for encoding in ["batch", "single"] {
        let args = format!("--nats {} --jetstream --id same --encoding {encoding} -r a.pcap", server.url());
        scratch.replay(&args);
    }
    server.wait_until_delivered();
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &[&sent[..], &sent].concat(), MINUTE, SHIPPED);
}

#[test]
fn replays_of_two_captures_under_one_name_are_both_counted() {
    // As long as the other, at the same times.
    let captures = [mixed(32, 5_000, MINUTE), mixed(33, 5_000, MINUTE)];
    for (options, flags) in [("", ""), (JETSTREAM, "--jetstream")] {
        let (scratch, server) = (Scratch::new(), NatsServer::with(options));
        scratch.write("config.yaml", live_config(""));
        let engine = scratch.start_engine(&format!("--nats {} {flags} -o out -w 2", server.url()));
        for (name, packets) in ["a.pcap", "b.pcap"].into_iter().zip(&captures) {
            scratch.write(name, pcap(packets));
            scratch.replay(&format!("--nats {} {flags} --id same -r {name}", server.url()));
        }
        if options == JETSTREAM {
            server.wait_until_delivered();
        }
        engine.stop_engine(&scratch.path("out"));
        assert_holds(&scratch.path("out"), &captures.concat(), MINUTE, SHIPPED);
    }
}

#[test]
fn a_replay_that_is_repeated_to_its_end_gives_the_tables_of_the_capture() {
    let scratch = Scratch::new();
    scratch.write("config.yaml", live_config(""));
    scratch.write("a.pcap", pcap(&mixed(34, 20_000, 5 * MINUTE)));
    scratch.analyze("-q -o offline --window 60s a.pcap").assert(0, "");
    for (options, flags) in [("", ""), (JETSTREAM, "--jetstream")] {
        let server = NatsServer::with(options);
        let (to, out) = (format!("--nats {} {flags}", server.url()), format!("out{flags}"));
        let engine = scratch.start_engine(&format!("{to} -o {out} -w 2"));
        // Whole batches, so that those of both replays are the same as far as the first one comes.
        for count in ["--count 8192", ""] {
            scratch.replay(&format!("{to} --id res -r a.pcap {count}"));
        }
        if options == JETSTREAM {
            server.wait_until_delivered();
        }
        assert_counted(&engine.stop_engine(&scratch.path(&out)), 20_000);
        // The window in which the first replay ended was written then, and is revised.
        assert_same(&tables(&scratch.path("offline")), &tables(&scratch.path(&out)), &out);
    }
}

// Standing still.

/// An engine with short windows, and a probe that has sent these packets, sends no more and does not end.
fn beside_a_probe_that_stands_still(
    scratch: &Scratch,
    server: &NatsServer,
    packets: &[Packet],
) -> (Live, Live) {
    scratch.write("config.yaml", quick_config());
    let engine = scratch.start_engine(&format!("--nats {} -o out -w 2", server.url()));
    let mut client = server.connect();
    client.subscribe("gons.packets.batch.>");
    let mut probe = scratch.start_probe(&format!("--nats {} --id still -r -", server.url()));
    probe.stdin().write_all(&pcap(packets)).unwrap();
    // That it begins, and its packets.
    (0..2).for_each(|_| drop(client.next()));
    (engine, probe)
}

#[test]
fn a_probe_that_stands_still_keeps_no_window_of_others_open() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let (engine, mut still) = beside_a_probe_that_stands_still(&scratch, &server, &in_a_row(1));
    let minute: Vec<_> = (0..60).map(|second| packet(second * 1000, "10.0.0.3", "10.0.0.4")).collect();
    scratch.write("a.pcap", pcap(&minute));
    scratch.replay(&format!("--nats {} -r a.pcap", server.url()));
    let late = scratch.path("out").join(window_name(START + 50 * SECOND));
    wait_for("window that does not wait", || late.exists().then_some(()));
    assert!(!still.is_over(), "{:?}", still.wait());
    assert_eq!(still.finish().code, Some(0));
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &[in_a_row(1), minute].concat(), SECOND, SHIPPED);
}

#[test]
fn a_probe_that_stands_still_a_day_ahead_keeps_no_packets_of_others_back() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    let tomorrow = [packet(86_400_000, "10.0.0.1", "10.0.0.2")];
    let (engine, mut still) = beside_a_probe_that_stands_still(&scratch, &server, &tomorrow);
    let mut today = scratch.start_probe(&format!("--nats {} --id today -r -", server.url()));
    let packets = [0, 1_800].map(|milliseconds| packet(milliseconds, "10.0.0.3", "10.0.0.4"));
    today.stdin().write_all(&pcap(&packets)).unwrap();
    let (sent, first) = (Instant::now(), scratch.path("out").join(window_name(START)));
    wait_for("window of today", || first.exists().then_some(()));
    assert!(sent.elapsed() < Duration::from_secs(8), "{:?} until it was written", sent.elapsed());
    assert!(!still.is_over() && !today.is_over());
    for probe in [still, today] {
        assert_eq!(probe.finish().code, Some(0));
    }
    engine.stop_engine(&scratch.path("out"));
    assert_holds(&scratch.path("out"), &[&packets[..], &tomorrow].concat(), SECOND, SHIPPED);
}

// The link.

#[test]
fn engines_of_one_link_that_have_the_same_process_number_each_count_every_frame() {
    let (scratch, namespaces) = (Scratch::new(), Namespaces::new());
    scratch.generate("-o sent.pcap --packets 12000 --flows 2000 --ipv6 0.2").assert(0, "");
    let place = namespaces.right.with_own_processes();
    let engines = ["one", "other"].map(|out| {
        let engine = scratch.start_engine_in(&place, &format!("--iface right -f 'ip or ip6' -o {out} -w 2"));
        (out, engine)
    });
    let before = namespaces.arrived();
    namespaces.send(&scratch, "sent.pcap", 10_000);
    let frames = namespaces.arrived() - before;
    for (out, engine) in engines {
        // The engine is the child of who gave it its namespace, and who heeds no signal.
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", engine.id())).unwrap();
        scratch.start("sh", &format!("-c 'kill -TERM {children}'")).finish().assert(0, "");
        assert_counted(&engine.ledger(&scratch.path(out)), frames);
    }
}

// Flags.

#[test]
fn flags_that_cannot_be_meant_are_refused() {
    let scratch = Scratch::new();
    let capture = pcap(&in_a_row(10));
    scratch.write("a.pcap", &capture);
    symlink("a.pcap", scratch.path("b.pcap")).unwrap();
    scratch.write("config.yaml", live_config("  connect_timeout: 1s\n"));
    let tiny = format!("--pace 0.{}1x -r a.pcap", "0".repeat(45));
    for (args, says) in [
        ("--id '' -r a.pcap", "--id"),
        (&tiny, "--pace"),
        ("--mode sub --iface lo", "--iface"),
        ("-r a.pcap -w a.pcap", "a.pcap"),
        ("-r a.pcap -w ./a.pcap", "a.pcap"),
        ("-r a.pcap -w b.pcap", "b.pcap"),
    ] {
        scratch.start(PROBE, args).finish().assert(2, says);
        assert!(fs::read(scratch.path("a.pcap")).unwrap() == capture, "{args} has changed its own input");
    }
}

#[test]
fn a_password_with_a_comma_is_not_printed() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&in_a_row(10)));
    scratch.write("config.yaml", live_config("  connect_timeout: 1s\n"));
    for (program, args) in [(ENGINE, "-o out"), (PROBE, "-r a.pcap"), (PROBE, "--mode sub")] {
        let run = scratch.start(program, &format!("--nats 'nats://user:hunter,2@h:4222' {args}")).finish();
        assert!(matches!(run.code, Some(1 | 2)), "{run:?}");
        assert!(!run.stderr.is_empty() && !format!("{run:?}").contains("hunter"), "{run:?}");
    }
}

#[test]
fn a_token_in_the_url_opens_a_server_and_is_not_printed() {
    let (scratch, token) = (Scratch::new(), "correct-horse");
    scratch.write("a.pcap", pcap(&in_a_row(100)));
    let server = NatsServer::with(&format!("authorization: {{token: {token}}}"));
    let to = format!("--nats nats://{token}@{}", server.address());
    let engine = scratch.start_engine(&format!("{to} -o out -v"));
    let run = scratch.start_probe(&format!("{to} -r a.pcap")).wait();
    assert_eq!(run.code, Some(0), "{run:?}");
    let said = format!("{}{run:?}", engine.said());
    assert!(!said.contains(token), "a secret was printed: {said}");
    assert_counted(&engine.stop_engine(&scratch.path("out")), 100);
}

// The disk.

#[test]
fn a_disk_that_is_full_keeps_no_frames_and_no_packet_from_being_published() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    scratch.write("a.pcap", pcap(&in_a_row(1_000)));
    let engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
    let probe = scratch.start_probe(&format!("--nats {} --json -r a.pcap -w /dev/full", server.url()));
    let (report, run) = probe.report_and_run(1);
    assert!(run.stderr.contains("/dev/full"), "{run:?}");
    assert_eq!(report["packets"]["sent"], 1_000, "{report}");
    let savefile = &report["savefile"];
    assert_eq!(["frames", "dropped"].map(|part| number(&savefile[part])), [0, 1_000], "{report}");
    assert_counted(&engine.stop_engine(&scratch.path("out")), 1_000);
}

// Sharing.

#[test]
fn engines_of_one_group_share_the_packets_and_none_takes_the_others_for_lost() {
    let scratch = Scratch::new();
    scratch.write("config.yaml", live_config(""));
    scratch.generate("-o a.pcap --packets 60000 --flows 1000").assert(0, "");
    let server = NatsServer::start();
    let engines = ["left", "right"]
        .map(|out| (out, scratch.start_engine(&format!("--nats {} -o {out}", server.url()))));
    scratch.replay(&format!("--nats {} -r a.pcap", server.url()));
    let counted = engines.map(|(out, engine)| {
        let ledger = engine.stop_engine(&scratch.path(out));
        assert_eq!(ledger["packets"]["lost"], 0, "{ledger}");
        ledger["packets"]["counted"].as_u64().unwrap()
    });
    assert!(counted.iter().sum::<u64>() == 60_000 && !counted.contains(&0), "{counted:?}");
}
