//! Kills: whatever is killed in the middle of a replay through the durable log, and however it is started
//! again, the tree in the end is that of a run that nothing happened to, ledger and all.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::crash::*;
use support::live::{self, Live, batch_numbers, input, number, packet_info_time};
use support::*;

/// Twenty windows, and the first packet of one more.
const SMALL: &str = "--packets 20000 --flows 2000 --duration 200s";
/// Seconds that a capture of a round lasts, and how many of them pass in one of its replay.
const LENGTH: u64 = 200;
const PACE: u64 = 60;

#[test]
fn kills_at_random_leave_the_tree_of_a_run_without_kills() {
    let rounds = setting("NETSPECTRA_CRASH_ROUNDS", 3);
    let packets = setting("NETSPECTRA_CRASH_PACKETS", 200_000);
    // With this one the first three rounds kill everything there is, and engines that stop.
    let first = setting("NETSPECTRA_CRASH_SEED", 35);
    let flows = packets.div_ceil(20);
    let case = Case::generated(&format!("--packets {packets} --flows {flows} --duration {LENGTH}s"));
    for round in 1..=rounds {
        let seed = first.wrapping_add(round - 1);
        println!(
            "round {round} of {rounds}; alone: NETSPECTRA_CRASH_ROUNDS=1 NETSPECTRA_CRASH_SEED={seed} \
             NETSPECTRA_CRASH_PACKETS={packets}"
        );
        let plan = Plan::draw(seed, Duration::from_secs(LENGTH) / PACE as u32);
        play(&plan, &case, &format!("--pace {PACE}x"));
    }
}

// Engines.

/// Asserts that an engine that is killed again and again in the middle of a replay, one process of it each
/// time, and goes on in the next shape, leaves what one leaves that nothing happened to.
fn assert_goes_on(site: &Site, killed: &[(Shape, usize)], last: Shape) {
    let case = Case::generated(SMALL);
    let out = site.out();
    let mut probe = site.start_probe("tap", &case.capture, "--pace 40x");
    for (at, (shape, victim)) in killed.iter().enumerate() {
        let mut engine = Engine::start(site, *shape);
        engine.wait_for_windows(&out, 4 * (at + 1));
        engine.kill(*victim);
        case.assert_whole_so_far(&out);
    }
    assert!(windows(&out).len() < case.windows(), "nothing was left to do");
    assert!(!out.join("ledger.json").exists(), "a ledger of an engine that was killed");
    let mut engine = Engine::start(site, last);
    assert_ended_well(&mut probe);
    engine.wait_until_ready(site);
    engine.stop(last.processes - 1);
    case.assert_left(&out, &format!("{killed:?}, then {last}"));
    case.assert_told(site, &format!("{killed:?}, then {last}"));
}

#[test]
fn a_killed_engine_goes_on_with_another_number_of_workers() {
    assert_goes_on(&Site::new(), &[(shape(1, 1), 0), (shape(1, 3), 0)], shape(1, 2));
}

#[test]
fn a_killed_engine_goes_on_with_more_processes() {
    assert_goes_on(&Site::new(), &[(shape(1, 2), 0), (shape(2, 1), 1)], shape(3, 1));
}

#[test]
fn a_killed_engine_goes_on_with_fewer_processes() {
    assert_goes_on(&Site::new(), &[(shape(3, 1), 2), (shape(2, 2), 0)], shape(1, 1));
}

/// Packets of which every fiftieth comes a minute after its time: its window has been committed by then.
fn out_of_order() -> Vec<Packet> {
    let delayed = |at: usize| if at.is_multiple_of(50) { at + 6_000 } else { at };
    let mut packets: Vec<_> = mixed(30, 20_000, LENGTH * SECOND)
        .into_iter()
        .enumerate()
        .map(|(at, packet)| (delayed(at), packet))
        .collect();
    packets.sort_by_key(|(place, _)| *place);
    packets.into_iter().map(|(_, packet)| packet).collect()
}

/// Revisions of all windows that a reader sees.
fn revisions(folder: &Path) -> u64 {
    // A summary that is replaced while it is opened may be in neither of the two folders.
    let summaries = windows(folder).into_iter().filter_map(|window| {
        let summary = fs::read_to_string(folder.join(window).join("summary.json")).ok()?;
        serde_json::from_str::<Value>(&summary).ok()
    });
    summaries.map(|summary| number(&summary["revision"])).sum()
}

#[test]
fn an_engine_killed_while_late_packets_revise_windows_revises_each_as_often_as_without() {
    let packets = out_of_order();
    let (case, site) = (Case::of(&packets), Site::new());
    let out = site.out();
    let expected: Value = serde_json::from_slice(&case.tree[Path::new("ledger.json")]).unwrap();
    assert_eq!(number(&expected["packets"]["late"]), late(&packets, 10 * SECOND));
    let mut probe = site.start_probe("tap", &case.capture, "--pace 40x");
    for revised in [1, 6] {
        let mut engine = Engine::start(&site, shape(1, 2));
        engine.wait_until(&format!("{revised} revisions"), |_| revisions(&out) >= revised);
        engine.kill(0);
    }
    assert!(windows(&out).len() < case.windows(), "nothing was left to do");
    let mut engine = Engine::start(&site, shape(1, 1));
    assert_ended_well(&mut probe);
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&out, "killed while it revised windows");
}

#[test]
fn late_packets_after_a_restart_revise_windows_committed_before_it() {
    let site = Site::exact();
    let out = site.out();
    let newer = mixed(31, 6_000, 100 * SECOND);
    // Few enough for one batch, so that each window is revised once.
    let older = mixed(32, 300, 30 * SECOND);
    let captures = [("newer.pcap", &newer), ("older.pcap", &older)];
    let [newer_capture, older_capture] =
        captures.map(|(name, packets)| site.scratch.write(name, pcap(packets)));
    let mut engine = Engine::start(&site, shape(1, 2));
    site.publish("newer", &newer_capture);
    engine.wait_for_windows(&out, 9);
    engine.kill(0);
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    site.publish("older", &older_capture);
    engine.stop(0);
    assert_holds(&out, &[newer, older].concat(), 10 * SECOND, SHIPPED);
    for number in 0..10 {
        let summary = out.join(window_name(START + number * 10 * SECOND)).join("summary.json");
        assert_eq!(read_json(&summary)["revision"], u64::from(number < 3), "{}", summary.display());
    }
    let ledger = site.scratch.ledger("out");
    assert_eq!(["newer", "older"].map(|probe| number(&input(&ledger, probe)["late"])), [0, 300], "{ledger}");
}

#[test]
fn late_packets_for_windows_that_a_long_run_keeps_no_longer_are_added_to_what_it_has_written() {
    let site = Site::new();
    let out = site.out();
    // More windows than are kept.
    let newer = mixed(38, 6_400, 640 * SECOND);
    let older = mixed(39, 300, 30 * SECOND);
    let captures = [("newer.pcap", &newer), ("older.pcap", &older)];
    let [newer_capture, older_capture] =
        captures.map(|(name, packets)| site.scratch.write(name, pcap(packets)));
    let args = format!("--nats {} --jetstream --window 1s -o out -w 2", site.server.url());
    let engine = Live::start(site.scratch.command(live::ENGINE, &args));
    site.publish("newer", &newer_capture);
    let most = windows_of(&newer, SECOND) - 1;
    wait_for("windows of a long run", || (windows(&out).len() >= most).then_some(()));
    site.publish("older", &older_capture);
    let ledger = engine.stop_engine(&out);
    assert_eq!(number(&input(&ledger, "older")["late"]), 300, "{ledger}");
    site.scratch.analyze("-q --window 1s -o offline newer.pcap older.pcap").assert(0, "");
    let offline = live::tables(&site.scratch.path("offline"));
    assert_same(&offline, &live::tables(&out), "windows that were read back");
}

#[test]
fn a_packet_dated_ahead_by_mistake_holds_up_no_engine_that_starts_again() {
    let site = Site::exact();
    let out = site.out();
    let packets = mixed(35, 6_000, 150 * SECOND);
    let until = |seconds: u64| packets.partition_point(|packet| packet.time < START + seconds * SECOND);
    let parts = [&packets[..until(50)], &packets[until(50)..until(100)], &packets[until(100)..]];
    let first = with_strays(parts[0].to_vec());
    let captures = [&first[..], parts[1], parts[2]].map(|part| part.to_vec());
    // The windows of strays: two, and those an hour ahead and, last, behind the others.
    let strays = windows_of(&captures[0], 10 * SECOND) - windows_of(parts[0], 10 * SECOND);
    for (number, part) in captures.iter().enumerate() {
        let mut engine = Engine::start(&site, shape(1, 2));
        engine.wait_until_ready(&site);
        site.publish(&number.to_string(), &site.scratch.write(&format!("{number}.pcap"), pcap(part)));
        engine.wait_for_windows(&out, strays + 5 * (number + 1) - 1);
        match number {
            0 => engine.kill(0),
            _ => drop(engine.stop(0)),
        }
    }
    assert_holds(&out, &captures.concat(), 10 * SECOND, SHIPPED);
    assert_eq!(number(&site.scratch.ledger("out")["packets"]["late"]), 0);
}

/// Windows that hold packets.
fn windows_of(packets: &[Packet], length: u64) -> usize {
    packets.iter().map(|packet| packet.time / length).collect::<BTreeSet<_>>().len()
}

#[test]
fn after_a_probes_clock_was_put_back_an_engine_that_starts_again_goes_on_to_write() {
    let site = Site::exact();
    let config = fs::read_to_string(site.scratch.path("config.yaml")).unwrap();
    assert!(config.contains("nats:\n"), "{config}");
    site.scratch.write("config.yaml", config.replacen("nats:\n", "nats:\n  silent_after: 1s\n", 1));
    let out = site.out();
    let right = mixed(36, 600, 10 * SECOND);
    let mut ahead = mixed(37, 600, 10 * SECOND);
    ahead.iter_mut().for_each(|packet| packet.time += 3600 * SECOND);
    let args = format!("--nats {} --jetstream --window 1s -o out -w 2", site.server.url());
    let start = || Live::start(site.scratch.command(live::ENGINE, &args));
    let engine = start();
    site.publish("ahead", &site.scratch.write("ahead.pcap", pcap(&ahead)));
    wait_for("windows of the clock that is ahead", || (windows(&out).len() >= 10).then_some(()));
    live_kill(engine);
    let engine = start();
    site.publish("right", &site.scratch.write("right.pcap", pcap(&right)));
    wait_for("windows of the clock that was put back", || (windows(&out).len() >= 20).then_some(()));
    engine.stop_engine(&out);
    assert_holds(&out, &[ahead, right].concat(), SECOND, SHIPPED);
}

/// Publishes these runs of a probe, each of three packets and an end, into a log of two partitions; gives the packets.
fn publish_runs(site: &Site, runs: std::ops::Range<u64>) -> Vec<Packet> {
    let mut client = site.server.connect();
    let mut all = Vec::new();
    for run in runs {
        let packets: Vec<_> = (0..3).map(|at| packet(10 * run + at, "10.0.0.1", "10.0.0.2")).collect();
        let batch = live::Batch { run, ..live::Batch::new("job", START, 0, 0, &packets) };
        let end = live::Batch {
            sequence: 1,
            first: 3,
            packets: Vec::new(),
            latest: batch.latest,
            last: true,
            ..batch.clone()
        };
        client.publish_to(run % 2, &batch);
        (0..2).for_each(|partition| client.publish_to(partition, &end));
        all.extend(packets);
    }
    client.flush();
    all
}

/// Bytes of the last record of a commit, and of all files beside it.
fn record_sizes(site: &Site) -> [u64; 2] {
    let folder = site.scratch.path("out.state");
    let sizes = fs::read_dir(&folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        // One may be removed while the others are looked at.
        (entry.file_name().into_string().unwrap(), entry.metadata().map_or(0, |metadata| metadata.len()))
    });
    let (manifests, others): (Vec<_>, Vec<_>) =
        sizes.filter(|(name, _)| name != "outbox").partition(|(name, _)| name.starts_with("manifest-"));
    let (_, last) = manifests.into_iter().max().unwrap();
    [last, others.into_iter().map(|(_, size)| size).sum()]
}

#[test]
fn thousands_of_runs_that_have_ended_are_remembered_outside_of_the_record_of_a_commit() {
    let site = Site::exact();
    let config = fs::read_to_string(site.scratch.path("config.yaml")).unwrap();
    assert!(config.contains("jetstream: {"), "{config}");
    site.scratch.write("config.yaml", config.replacen("jetstream: {", "jetstream: {partitions: 2, ", 1));
    let out = site.out();
    let args = format!("--nats {} --jetstream --window 1s -o out -w 2", site.server.url());
    let start = || {
        let mut engine = Live::start(site.scratch.command(live::ENGINE, &args));
        engine.wait_until_says("subscribed to");
        engine
    };
    let (mut packets, mut sizes) = (Vec::new(), Vec::new());
    // The first two are killed: in the middle, and when all is written that can be.
    for (life, until) in (0..3).zip([3, 19, 29]) {
        let engine = start();
        packets.extend(publish_runs(&site, 1000 * life..1000 * (life + 1)));
        wait_for("windows", || (windows(&out).len() >= until).then_some(()));
        match life {
            0 => live_kill(engine),
            _ => {
                site.server.wait_until_delivered();
                sizes.push(record_sizes(&site));
                live_kill(engine);
            }
        }
    }
    println!("bytes of the record of a commit, and beside it: {sizes:?}");
    let [[before, _], [after, kept]] = sizes[..] else { panic!("{sizes:?}") };
    assert!(after < 64 << 10 && after < before + (8 << 10), "bytes of a record: {before}, then {after}");
    assert!(kept < 3000 * 100, "{kept} bytes for 3000 runs");
    // All of them come again, and one more.
    let engine = start();
    publish_runs(&site, 0..3000);
    packets.extend(publish_runs(&site, 3000..3001));
    site.server.wait_until_delivered();
    let run = engine.stop();
    run.assert(0, "9000 packets came more than once and count once");
    let ledger = live::assert_balanced(&out);
    // The last ones of either worker that are not retired, their sum, single packets, and the one more.
    assert!(ledger["inputs"].as_array().unwrap().len() <= 2 * 16 + 3, "{ledger}");
    assert_holds(&out, &packets, SECOND, SHIPPED);
}

fn live_kill(mut engine: Live) {
    kill(&engine);
    assert_eq!(engine.wait().code, None);
}

#[test]
fn an_engine_killed_while_it_stops_stops_again_with_everything() {
    let (case, site) = (Case::generated(SMALL), Site::new());
    let mut engine = Engine::start(&site, shape(1, 2));
    engine.wait_until_ready(&site);
    site.publish("tap", &case.capture);
    engine.tell_to_stop(0);
    drop(engine);
    let mut engine = Engine::start(&site, shape(1, 2));
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&site.out(), "killed while it stopped");
}

#[test]
fn a_stopped_engine_goes_on_later_and_its_ledger_holds_everything() {
    let site = Site::exact();
    let out = site.out();
    let packets = mixed(33, 6_000, 100 * SECOND);
    let (first, rest) = packets.split_at(packets.partition_point(|packet| packet.time < START + 60 * SECOND));
    // The first two windows are of the past by then.
    let second = [&mixed(34, 200, 20 * SECOND)[..], rest].concat();
    let sessions: [(&str, &[Packet], Shape); 2] =
        [("first", first, shape(1, 2)), ("second", &second, shape(1, 1))];
    for (name, packets, shape) in sessions {
        let mut engine = Engine::start(&site, shape);
        engine.wait_until_ready(&site);
        site.publish(name, &site.scratch.write(name, pcap(packets)));
        engine.stop(0);
    }
    let before = whole_tree(&out);
    let mut engine = Engine::start(&site, shape(2, 1));
    engine.wait_until_ready(&site);
    engine.stop(0);
    assert_exact(&before, &whole_tree(&out), "a start and a stop, and nothing in between");
    assert_holds(&out, &[first, &second[..]].concat(), 10 * SECOND, SHIPPED);
    for number in 0..10 {
        let summary = out.join(window_name(START + number * 10 * SECOND)).join("summary.json");
        assert_eq!(read_json(&summary)["revision"], u64::from(number < 2), "{}", summary.display());
    }
    let ledger = live::assert_balanced(&out);
    let counted = ["first", "second"].map(|probe| number(&input(&ledger, probe)["counted"]));
    assert_eq!(counted, [first.len() as u64, second.len() as u64], "{ledger}");
}

#[test]
fn a_restart_with_other_settings_is_refused_and_changes_nothing() {
    let (case, site) = (Case::generated(SMALL), Site::new());
    let out = site.out();
    let mut engine = Engine::start(&site, shape(1, 1));
    site.publish("tap", &case.capture);
    engine.wait_for_windows(&out, 5);
    engine.kill(0);
    let shipped = log_config(SHIPPED, "");
    let lateness = shipped.replace("window: 60s", "window: 60s\n  allowed_lateness: 1s");
    let refused = [
        ("window", shipped, "--window 20s"),
        ("task", log_config(&SHIPPED[1..], ""), WINDOW),
        ("lateness", lateness, WINDOW),
        ("partitions", log_config(SHIPPED, ", partitions: 4"), WINDOW),
        ("stream", log_config(SHIPPED, ", stream: OTHER"), WINDOW),
    ];
    let assert_refused = |(what, config, window): &(&str, String, &str)| {
        let before = whole_tree(&out);
        let run = site.run_engine(config, window);
        run.assert(2, "out.state");
        assert!(run.stderr.contains(what), "it should name the {what}: {run:?}");
        assert_exact(&before, &whole_tree(&out), what);
    };
    refused.iter().for_each(assert_refused);
    let mut engine = Engine::start(&site, shape(1, 2));
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&out, "after it was refused with other settings");
    // The ledger of a whole run is not given up either.
    assert_refused(&refused[0]);
    case.assert_left(&out, "refused after a good end");
}

/// The file of a state folder that was written last.
fn newest_manifest(state: &Path) -> PathBuf {
    let is_manifest = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        path.is_file() && !name.contains("partial") && name.contains("manifest")
    };
    let paths = whole_tree(state).into_keys().map(|below| state.join(below));
    let newest = paths.filter(is_manifest).max_by_key(|path| {
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        (modified, path.clone())
    });
    newest.unwrap_or_else(|| panic!("no manifest in {}: {:?}", state.display(), entries(state)))
}

#[test]
fn a_damaged_manifest_is_named_and_changes_nothing() {
    let (case, site) = (Case::generated(SMALL), Site::new());
    let out = site.out();
    let mut engine = Engine::start(&site, shape(1, 1));
    site.publish("tap", &case.capture);
    engine.wait_for_windows(&out, 5);
    engine.kill(0);
    let manifest = newest_manifest(&site.scratch.path("out.state"));
    let (name, before) = (manifest.file_name().unwrap().to_str().unwrap(), whole_tree(&out));
    let whole = fs::read(&manifest).unwrap();
    let (cut_off, mut flipped) = (whole[..whole.len() / 2].to_vec(), whole.clone());
    flipped[whole.len() / 2] ^= 1;
    let garbage = (0..whole.len()).map(|at| (at * 7 + 1) as u8).collect();
    for (how, bytes) in
        [("empty", Vec::new()), ("cut off", cut_off), ("one bit", flipped), ("garbage", garbage)]
    {
        fs::write(&manifest, bytes).unwrap();
        let run = site.run_engine(&log_config(SHIPPED, ""), WINDOW);
        assert!(matches!(run.code, Some(1 | 2)), "{how}: {run:?}");
        assert!(run.stderr.contains(name), "{how}: it should name {name}: {run:?}");
        assert_no_panic(&run);
        assert_exact(&before, &whole_tree(&out), how);
    }
    fs::write(&manifest, whole).unwrap();
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&out, "after its manifest was damaged and mended");
}

#[test]
fn an_engine_whose_disk_was_full_goes_on_once_there_is_room() {
    let case = Case::generated(SMALL);
    // A folder on the small disk, and the disk itself: then the state is inside.
    for (output, path) in [("disk/out", "out"), ("disk", "")] {
        let site = Site::impatient();
        let disk = Disk::new(&site.scratch.path("disk"), "32m");
        let out = disk.seen(path);
        let mut probe = site.start_probe("tap", &case.capture, &format!("--pace {PACE}x"));
        let mut engine = Engine::start_on(&disk, &site, output);
        engine.wait_for_windows(&out, 4);
        disk.fill();
        let assert_fails = |engine: Engine| {
            let runs = engine.end();
            runs[0].assert(1, output);
            assert_no_panic(&runs[0]);
            case.assert_whole_so_far(&out);
            assert!(!out.join("ledger.json").exists(), "a ledger of an engine that failed");
        };
        assert_fails(engine);
        // A supervisor does not know why it has ended.
        assert_fails(Engine::start_on(&disk, &site, output));
        assert!(windows(&out).len() < case.windows(), "nothing was left to do");
        assert_ended_well(&mut probe);
        disk.make_room();
        let mut engine = Engine::start_on(&disk, &site, output);
        engine.wait_until_ready(&site);
        engine.stop(0);
        case.assert_left(&out, &format!("-o {output} on a disk that was full"));
    }
}

#[test]
fn an_engine_whose_disk_is_full_for_a_while_waits_for_room() {
    let case = Case::generated(SMALL);
    let site = Site::new();
    let disk = Disk::new(&site.scratch.path("disk"), "32m");
    let out = disk.seen("out");
    let mut probe = site.start_probe("tap", &case.capture, &format!("--pace {PACE}x"));
    let mut engine = Engine::start_on(&disk, &site, "disk/out");
    engine.wait_for_windows(&out, 4);
    disk.fill();
    engine.wait_until("trouble", |processes| processes[0].said().contains("trying again"));
    disk.make_room();
    assert_ended_well(&mut probe);
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&out, "on a disk that was full for a while");
}

// Probes and servers.

/// Kills a program, and asserts that it had not ended before.
fn kill_in_the_middle(mut program: Live) {
    assert!(!program.is_over(), "{:?}", program.wait());
    kill(&program);
    assert_eq!(program.wait().code, None);
}

#[test]
fn a_replay_that_is_killed_and_started_again_is_counted_once() {
    let case = Case::generated(SMALL);
    for log in ["", FORGETFUL] {
        let site = Site::with(log);
        let mut engine = Engine::start(&site, shape(1, 2));
        let start = || site.start_probe("tap", &case.capture, "--pace 100x");
        let probe = start();
        engine.wait_for_windows(&site.out(), 6);
        kill_in_the_middle(probe);
        assert_ended_well(&mut start());
        engine.stop(0);
        case.assert_left(&site.out(), "a replay that was killed");
    }
}

#[test]
fn packets_that_come_twice_are_told_of_and_not_in_the_ledger() {
    let (case, site) = (Case::generated(SMALL), Site::with(FORGETFUL));
    let mut engine = Engine::start(&site, shape(1, 1));
    site.publish("tap", &case.capture);
    engine.wait_for_windows(&site.out(), 5);
    engine.kill(0);
    let mut engine = Engine::start(&site, shape(1, 2));
    engine.wait_until_ready(&site);
    let once = site.logged_bytes();
    wait_for("packets for the second time", || {
        site.publish("tap", &case.capture);
        // The server takes them again when it has forgotten them; before, only that a replay begins and ends.
        (site.logged_bytes() > once + once / 2).then_some(())
    });
    let runs = engine.stop(0);
    assert!(runs[0].stderr.contains("came more than once"), "{runs:?}");
    case.assert_left(&site.out(), "packets that came twice");
}

#[test]
fn a_server_that_is_killed_twice_loses_nothing() {
    let (case, mut site) = (Case::generated(SMALL), Site::new());
    let out = site.out();
    let mut engine = Engine::start(&site, shape(1, 2));
    let mut probe = site.start_probe("tap", &case.capture, "--pace 40x");
    for count in [4, 10] {
        engine.wait_for_windows(&out, count);
        site.server.kill();
        site.server.start_again();
    }
    assert!(windows(&out).len() < case.windows(), "nothing was left to do");
    assert_ended_well(&mut probe);
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&out, "a server that was killed");
    case.assert_told(&site, "a server that was killed");
}

/// Much of the capture is on its way at once: what the server had not stored when it was killed may not come behind what
/// was sent after it.
#[test]
fn a_server_that_is_killed_keeps_a_replay_in_order() {
    let mut site = Site::new();
    site.scratch.generate("-o a.pcap --packets 600000 --flows 2000 --duration 400s").assert(0, "");
    let capture = site.scratch.path("a.pcap");
    for (name, encoding, share) in [("batches", "batch", 3 << 20), ("singles", "single", 1 << 20)] {
        let more = if encoding == "single" { "--encoding single --count 60000" } else { "" };
        let mut probe = site.start_probe(name, &capture, more);
        for _ in 0..3 {
            let before = site.logged_bytes();
            wait_for("more in the log", || {
                (probe.is_over() || site.logged_bytes() >= before + share).then_some(())
            });
            site.server.kill();
            site.server.start_again();
        }
        assert_ended_well(&mut probe);
    }
    let stored = site.stored();
    assert_batches_in_order(&stored);
    let singles = stored.iter().filter(|(subject, _)| subject == "gons.packets.raw");
    let times: Vec<u64> = singles.map(|(_, message)| packet_info_time(message)).collect();
    assert_eq!(times.len(), 60_000);
    assert!(times.is_sorted(), "single packets in another order than they were sent");
}

/// Asserts that no batch of a partition holds packets before those that have been there, but for repeats.
fn assert_batches_in_order(stored: &[(String, Vec<u8>)]) {
    let mut seen: BTreeMap<&str, (BTreeSet<u64>, u64)> = BTreeMap::new();
    let mut packets = 0;
    for (subject, message) in stored.iter().filter(|(subject, _)| subject.contains("batch")) {
        let range = batch_numbers(message);
        let (firsts, end) = seen.entry(subject).or_default();
        if range.is_empty() || !firsts.insert(range.start) {
            continue;
        }
        assert!(range.start >= *end, "{subject}: {range:?} came after {end}");
        *end = range.end;
        packets += range.end - range.start;
    }
    assert_eq!(packets, 600_000);
}

// What was found by reading, and kept from coming back.

/// Without the ledgers, whose inputs are other ones.
fn snapshots_of(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    tree.remove(Path::new("ledger.json"));
    tree
}

#[test]
fn single_packets_are_read_again_once_by_an_engine_that_was_killed() {
    let packets = mixed(40, 4_000, LENGTH * SECOND);
    let (case, site) = (Case::of(&packets), Site::new());
    let out = site.out();
    let mut probe = site.start_probe("tap", &case.capture, "--encoding single --pace 40x");
    for (at, shape) in [shape(1, 1), shape(1, 2), shape(2, 1)].into_iter().enumerate() {
        let mut engine = Engine::start(&site, shape);
        engine.wait_for_windows(&out, 4 * (at + 1));
        engine.kill(0);
        case.assert_whole_so_far(&out);
    }
    let mut engine = Engine::start(&site, shape(1, 1));
    assert_ended_well(&mut probe);
    engine.wait_until_ready(&site);
    engine.stop(0);
    assert_exact(&snapshots_of(&case.tree), &snapshots_of(&whole_tree(&out)), "single packets");
    assert_eq!(number(&live::assert_balanced(&out)["packets"]["counted"]), packets.len() as u64);
}

#[test]
fn processes_without_a_partition_change_nothing_and_pass_a_signal_on() {
    let alike = [(shape(3, 1), 0), (shape(3, 1), 0)];
    assert_goes_on(&Site::with(", partitions: 2"), &alike, shape(3, 1));
}

#[test]
fn a_stop_and_a_start_use_up_no_window() {
    let packets = mixed(41, 3_000, 100 * SECOND);
    let (first, rest) = packets.split_at(packets.partition_point(|packet| packet.time < START + 50 * SECOND));
    let site = Site::exact();
    let out = site.out();
    for (name, packets) in [("first", first), ("none", &[][..]), ("none", &[]), ("none", &[]), ("rest", rest)]
    {
        let mut engine = Engine::start(&site, shape(1, 1));
        engine.wait_until_ready(&site);
        if !packets.is_empty() {
            site.publish(name, &site.scratch.write(name, pcap(packets)));
        }
        engine.stop(0);
    }
    assert_holds(&out, &packets, 10 * SECOND, SHIPPED);
    assert_eq!(revisions(&out), 0);
    assert_eq!(number(&live::assert_balanced(&out)["packets"]["late"]), 0);
}

/// Copies of a killed engine's folders, with everything else that a copy does not keep.
fn replace_by_copies(site: &Site, names: &[&str]) {
    for name in names {
        let [original, copy] = [site.scratch.path(name), site.scratch.path(&format!("{name}.copy"))];
        let copied = Command::new("cp").arg("-a").args([&original, &copy]).status().unwrap();
        assert!(copied.success());
        fs::remove_dir_all(&original).unwrap();
        fs::rename(copy, original).unwrap();
    }
}

/// A copy lacked the windows of the last commit where the engine was killed before they were in their places.
#[test]
fn an_engine_goes_on_in_a_copy_of_what_a_killed_one_has_left() {
    let (case, site) = (Case::generated(SMALL), Site::new());
    let (out, state) = (site.out(), site.scratch.path("out.state"));
    let summaries = case.tree.keys().filter(|path| path.ends_with("summary.json"));
    let window = summaries.map(|path| path.parent().unwrap()).nth(5).unwrap();
    // A folder that is no snapshot is not replaced: the commit is recorded, and goes no further.
    fs::create_dir_all(out.join(window)).unwrap();
    fs::write(out.join(window).join("in the way"), "").unwrap();
    let engine = Engine::start(&site, shape(1, 1));
    site.publish("tap", &case.capture);
    let named = format!("\"name\":\"{}\"", window.display());
    wait_for("commit that is recorded and not published", || {
        let is_it = |name: &String| {
            let manifest = fs::read_to_string(state.join(name));
            name.starts_with("manifest") && manifest.is_ok_and(|text| text.contains(&named))
        };
        (state.is_dir() && entries(&state).iter().any(is_it)).then_some(())
    });
    drop(engine);
    fs::remove_dir_all(out.join(window)).unwrap();
    replace_by_copies(&site, &["out", "out.state"]);
    let mut engine = Engine::start(&site, shape(1, 2));
    engine.wait_until_ready(&site);
    engine.stop(0);
    case.assert_left(&out, "a copy of what a killed engine has left");
    case.assert_told(&site, "a copy of what a killed engine has left");
}

// Edited rules.

/// The events of alerts so far.
fn alert_events(site: &Site) -> Vec<Value> {
    let text = fs::read_to_string(site.scratch.path("alerts.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What an edit had raised was raised again under another identifier by the engine that went on.
#[test]
fn an_alert_that_an_edit_has_raised_is_not_raised_again_after_a_kill() {
    let site = Site::exact();
    let (tasks, out) = (exact_config(SHIPPED, ""), site.out());
    let rules = |threshold: u64| {
        format!(
            "{tasks}alerts:\n  rules:\n    - {{name: busy, task: per_protocol, metric: total.packets, \
             comparison: '>', threshold: {threshold}}}\n  outputs:\n    - {{type: jsonl, path: alerts.jsonl}}\n"
        )
    };
    site.scratch.write("config.yaml", rules(1_000_000));
    let packets = mixed(42, 12_000, 200 * SECOND);
    let (first, rest) = packets.split_at(6_000);
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    site.publish("first", &site.scratch.write("first.pcap", pcap(first)));
    engine.wait_for_windows(&out, 9);
    assert_eq!(alert_events(&site), Vec::<Value>::new());
    site.scratch.write("config.yaml", rules(5));
    engine.wait_until("an alert of the edit", |_| !alert_events(&site).is_empty());
    let told = alert_events(&site);
    engine.kill(0);
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    site.publish("rest", &site.scratch.write("rest.pcap", pcap(rest)));
    engine.stop(0);
    assert_holds(&out, &packets, 10 * SECOND, SHIPPED);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(alert_events(&site), told, "told before the kill, and in all");
}
