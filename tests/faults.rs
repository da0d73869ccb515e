//! Faults of the file system: whichever system call of a run fails, once or for good, the run ends in time with status 1
//! and a reason, or goes on with the right answer; and the next run, without the fault, leaves what a run leaves to
//! which nothing ever happened. So it does where the run is killed at that call.
//!
//! `NETSPECTRA_FAULTS` says how many faults each test tries (all of them: 100000), `NETSPECTRA_FAULT_SEED` which.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs;
use std::time::{Duration, Instant};
use support::crash::*;
use support::faults::{self, Fault, leftovers};
use support::live::{ENGINE, Live};
use support::*;

const ANALYZER: &str = env!("CARGO_BIN_EXE_pcap-analyzer");
/// How soon a run ends that has failed, its retries aside.
const ENDS: Duration = Duration::from_secs(10);

fn drawn(points: &[faults::Point], default: u64) -> Vec<Fault> {
    assert!(points.len() > 20, "hardly any calls were recorded: {points:?}");
    let count = setting("NETSPECTRA_FAULTS", default) as usize;
    let faults = faults::draw(points, count, setting("NETSPECTRA_FAULT_SEED", 1));
    println!("{} faults of {} calls on paths", faults.len(), points.len());
    faults
}

/// Packets of three windows of ten seconds, and late ones that revise the first two.
fn revising() -> Vec<Packet> {
    let mut packets = mixed(31, 300, 30 * SECOND);
    let late = packets.iter().filter(|packet| packet.time < START + 12 * SECOND).step_by(9).cloned();
    let late: Vec<_> = late.collect();
    packets.extend(late);
    packets
}

#[test]
fn a_batch_run_in_which_a_call_fails_ends_with_a_reason_or_the_right_answer() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&revising()));
    let root = scratch.path(".").canonicalize().unwrap();
    let config =
        config(&SHIPPED[..2]) + &format!("  - {{type: parquet, path: {}/out/lake}}\n", root.display());
    scratch.write("config.yaml", config);
    let args = format!("-q -w 2 {WINDOW} -o {}/out/csv a.pcap", root.display());
    let (out, record) = (scratch.path("out"), scratch.path("record"));
    let run = Running::start(faults::recorded(&record, ANALYZER, &args, &root)).finish();
    run.assert(0, "");
    let expected = whole_tree(&out);
    for fault in drawn(&faults::points(&record, &format!("{}/out", root.display())), 70) {
        fs::remove_dir_all(&out).unwrap();
        let began = Instant::now();
        let run = Running::start(fault.command(ANALYZER, &args, &root)).finish();
        assert!(began.elapsed() < ENDS, "{fault}: ended after {:?}", began.elapsed());
        assert_no_panic(&run);
        match run.code {
            Some(0) => {
                let mut found = whole_tree(&out);
                // What could not be removed is removed by the next run.
                found.retain(|path, _| !path.to_string_lossy().contains(".netspectra-partial"));
                assert_exact(&expected, &found, &format!("{fault}, and the run went well: {run:?}"));
            }
            Some(1 | 2) => assert!(!run.stderr.is_empty(), "{fault}: failed without a reason"),
            None if fault.kills() => {}
            code => panic!("{fault}: ended with {code:?}: {run:?}"),
        }
        fs::create_dir_all(&out).unwrap();
        let again = scratch.analyze(&args);
        again.assert(0, "");
        assert_exact(&expected, &whole_tree(&out), &format!("the run after {fault}"));
        assert_eq!(leftovers(&out.join("csv")), Vec::<String>::new(), "{fault}");
    }
}

/// Of fifteen such runs ten hung: all workers were parked, waiting for epochs to be written.
#[test]
fn a_batch_run_on_a_disk_that_fills_ends_with_the_reason() {
    let scratch = Scratch::new();
    scratch.generate("-o a.pcap --packets 50000 --flows 5000 --duration 600s").assert(0, "");
    for round in 0..5 {
        let folder = format!("disk{round}");
        let disk = Disk::new(&scratch.path(&folder), "2m");
        let args = format!("-q {WINDOW} -w 2 -o {folder}/out a.pcap");
        let began = Instant::now();
        let run = Live::start(disk.command(&scratch.path("."), ANALYZER, &args)).wait();
        run.assert(1, "No space left on device");
        assert!(began.elapsed() < ENDS, "ended after {:?}", began.elapsed());
        let left = windows(&disk.seen("out"));
        assert!(!left.is_empty() && left.len() < 61, "windows of a disk that was full: {left:?}");
    }
}

/// Runs an engine until it has ended by itself or has taken all that the durable log holds.
fn run_engine(mut engine: Live, last: &str) -> Run {
    let began = Instant::now();
    while !engine.is_over() && !engine.said().contains(last) {
        assert!(began.elapsed() < 2 * ENDS, "neither an end nor the last window: {}", engine.said());
        std::thread::sleep(Duration::from_millis(5));
    }
    if !engine.is_over() {
        engine.signal("TERM");
    }
    engine.wait()
}

#[test]
fn an_engine_in_which_a_call_fails_ends_with_a_reason_or_heals_and_goes_on_exactly() {
    let case = Case::of(&revising());
    let start = |site: &Site| {
        let retry = "retry: {first: 10ms, most: 50ms, give_up: 300ms}";
        let config =
            log_config(SHIPPED, "").replace("path: ./snapshots}", &format!("path: ./snapshots, {retry}}}"));
        assert!(config.contains(retry));
        site.scratch.write("config.yaml", config);
        let root = site.scratch.path(".").canonicalize().unwrap();
        let args =
            format!("--nats {} --jetstream {WINDOW} -o {}/out -w 1", site.server.url(), root.display());
        (root, args)
    };
    // The first windows are revised before the last one is closed by the end of the replay.
    let last = "window 2023-11-14T22-13-40Z written";
    let site = Site::new();
    site.publish("tap", &case.capture);
    let (root, args) = start(&site);
    let record = site.scratch.path("record");
    let run = run_engine(Live::start(faults::recorded(&record, ENGINE, &args, &root)), last);
    assert_eq!(run.code, Some(0), "{run:?}");
    case.assert_left(&site.out(), "a run that was recorded");
    let home = format!("{}/out", root.display());
    for fault in drawn(&faults::points(&record, &home), 22) {
        let site = Site::new();
        let (here, args) = start(&site);
        let fault = fault.moved(&root, &here);
        site.publish("tap", &case.capture);
        let run = run_engine(Live::start(fault.command(ENGINE, &args, &here)), last);
        assert_no_panic(&run);
        match run.code {
            Some(0) => {}
            Some(1) => assert!(!run.stderr.is_empty(), "{fault}: failed without a reason"),
            None if fault.kills() => {}
            code => panic!("{fault}: ended with {code:?}: {run:?}"),
        }
        // A stop takes all that the durable log holds.
        let mut again = Live::start(site.scratch.command(ENGINE, &args));
        again.wait_until_says("subscribed to");
        let again = again.stop();
        assert_eq!(again.code, Some(0), "the run after {fault}: {again:?}");
        case.assert_left(&site.out(), &format!("the run after {fault}, which ended so: {run:?}"));
        case.assert_told(&site, &format!("{fault}"));
    }
}
