//! How runs begin, end and are ended: signals, kills, what a reader of the output sees, what is printed.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use support::*;

/// Asserts that every window that a reader sees in a folder has all its files; gives how many there are.
fn assert_all_whole(folder: &Path) -> usize {
    let windows = windows(folder);
    for window in &windows {
        let window = folder.join(window);
        let tables = SHIPPED.iter().map(|(task, _)| format!("{task}.csv"));
        for file in tables.chain(["summary.json".to_owned()]) {
            assert!(window.join(&file).exists(), "{} has no {file}", window.display());
        }
    }
    windows.len()
}

#[test]
fn a_signal_ends_a_live_run_with_everything_received_counted() {
    for (signal, window, length, workers) in
        [("INT", "all", 0, 1), ("TERM", "all", 0, 2), ("INT", "1s", SECOND, 2), ("TERM", "1s", SECOND, 1)]
    {
        let scratch = Scratch::new();
        let packets = mixed(1, 60_000, 20 * SECOND);
        let bytes = pcap(&packets);
        let mut running = scratch.start_analyzer(&format!("-o out -w {workers} --window {window} -"));
        running.stdin().write_all(&bytes[..FILE_HEADER]).unwrap();
        running.wait_until_running();
        running.stdin().write_all(&bytes[FILE_HEADER..]).unwrap();
        running.wait_until_read();
        running.signal(signal);
        let run = running.wait();
        run.assert(0, "");
        assert!(run.stdout.lines().last().unwrap().starts_with("interrupted by a signal"), "{run:?}");
        assert_eq!(scratch.ledger("out")["packets"]["read"], packets.len() as u64, "{signal}, {window}");
        assert_holds(&scratch.path("out"), &packets, length, SHIPPED);
    }
}

/// What a window's summary says that is missing in it; null where nothing is.
fn incomplete(folder: &Path, window: &str) -> serde_json::Value {
    read_json(&folder.join(window).join("summary.json"))["incomplete"].clone()
}

#[test]
fn the_windows_that_time_had_not_closed_say_that_a_signal_has_ended_the_run() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let packets = mixed(8, 10_000, 60 * SECOND);
    let mut running = scratch.start_half_read(&packets);
    running.signal("INT");
    let run = running.wait();
    run.assert(0, "");
    let last = run.stdout.lines().last().unwrap();
    assert!(last.starts_with("interrupted by a signal before all input was read"), "{run:?}");
    assert_eq!(scratch.ledger("out")["interrupted"], true);
    let windows = windows(&out);
    let whole = windows.iter().filter(|window| incomplete(&out, window).is_null());
    // Five seconds behind the packet that the file has waited for, all is there.
    let expected = (0..25).map(|second| window_name(START + second * SECOND)).collect::<Vec<_>>();
    assert_eq!(whole.cloned().collect::<Vec<_>>(), expected);
    assert!(windows.len() > expected.len(), "{windows:?}");
    for window in &windows[expected.len()..] {
        assert_eq!(incomplete(&out, window), serde_json::json!({"interrupted": true}), "{window}");
    }
    // Nothing is interrupted where all was read.
    scratch.analyze("-o out --window 1s half.pcap").assert(0, "");
    assert!(support::windows(&out).iter().all(|window| incomplete(&out, window).is_null()));
}

#[test]
fn a_quiet_run_and_one_for_programs_say_that_a_signal_has_ended_them() {
    for (flags, is_json) in [("-q", false), ("--json", true)] {
        let scratch = Scratch::new();
        let mut running = scratch.start_analyzer(&format!("{flags} -o out -"));
        running.stdin().write_all(&pcap(&mixed(9, 500, SECOND))).unwrap();
        running.wait_until_running();
        running.wait_until_read();
        running.signal("TERM");
        let run = running.wait();
        assert_eq!((run.code, run.stderr.contains("interrupted by a signal")), (Some(0), true), "{run:?}");
        assert_eq!(incomplete(&scratch.path("out"), "all"), serde_json::json!({"interrupted": true}));
        if is_json {
            let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
            assert_eq!(json["ledger"]["interrupted"], true);
        }
    }
}

#[test]
fn a_signal_while_an_input_is_still_being_opened_is_told() {
    let scratch = Scratch::new();
    let mut running = scratch.start_analyzer("-q -o out -");
    running.wait_for_thread("signals");
    running.signal("INT");
    let run = running.wait();
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("interrupted before anything was read"), "{run:?}");
    assert!(windows(&scratch.path("out")).is_empty());
}

/// They went for an answer of nothing.
#[test]
fn a_run_that_reads_no_packet_before_damage_or_a_signal_keeps_the_earlier_answer_and_says_so() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(3, 100, SECOND)));
    scratch.write("b.pcap", [pcap(&[]), vec![0; 7]].concat());
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    let before = tree(&scratch.path("out"));
    for flags in ["-q", "--json"] {
        let run = scratch.analyze(&format!("{flags} -o out b.pcap"));
        assert_eq!(run.code, Some(3), "{run:?}");
        assert!(run.stderr.contains("out: kept the windows all of an earlier run"), "{run:?}");
        assert_same(&before, &tree(&scratch.path("out")), flags);
    }
    let mut running = scratch.start_analyzer("-q -o out -");
    running.stdin().write_all(&pcap(&[])).unwrap();
    running.wait_until_running();
    running.signal("INT");
    let run = running.wait();
    assert!(run.code == Some(0) && run.stderr.contains("out: kept the windows all"), "{run:?}");
    assert_same(&before, &tree(&scratch.path("out")), "a signal");
}

/// They were deleted, by a run that ended well and by one that failed.
#[test]
fn files_of_somebody_in_the_place_of_a_window_are_refused_and_stay_with_everything_else() {
    for (files, window) in
        [(vec![("summary.json", "{}"), ("thesis.txt", "x")], None), (vec![("x", "")], Some("2s"))]
    {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        scratch.write("a.pcap", pcap(&mixed(3, 1_000, 10 * SECOND)));
        if let Some(window) = window {
            scratch.analyze(&format!("-q --window {window} -o out a.pcap")).assert(0, "");
        }
        fs::create_dir_all(out.join("all")).unwrap();
        files.iter().for_each(|(name, text)| fs::write(out.join("all").join(name), text).unwrap());
        let before = tree(&out);
        let named = format!("out/all/{}", files.last().unwrap().0);
        scratch.analyze("-q -o out a.pcap").assert(2, &named);
        assert_same(&before, &tree(&out), &named);
    }
}

#[test]
fn a_run_for_programs_warns_of_what_it_has_replaced_but_not_of_the_same_file_by_another_name() {
    let scratch = Scratch::new();
    for name in ["a.pcap", "b.pcap"] {
        scratch.write(name, pcap(&mixed(3, 100, SECOND)));
    }
    scratch.analyze("--json -o out a.pcap").assert(0, "");
    scratch.analyze("--json -o out ./a.pcap").assert(0, "");
    let run = scratch.analyze("--json -o out b.pcap");
    assert!(
        run.code == Some(0) && run.stderr.contains("out: the results of an earlier run over ./a.pcap"),
        "{run:?}"
    );
}

#[test]
fn a_signal_before_any_packet_gives_an_empty_snapshot() {
    for signal in ["INT", "TERM"] {
        let scratch = Scratch::new();
        let mut running = scratch.start_analyzer("-o out -");
        running.stdin().write_all(&pcap(&[])).unwrap();
        running.wait_until_running();
        running.signal(signal);
        running.wait().assert(0, "");
        assert_holds(&scratch.path("out"), &[], 0, SHIPPED);
    }
}

#[test]
fn a_window_is_written_as_soon_as_time_has_closed_it() {
    for workers in [1, 2, 3] {
        let scratch = Scratch::new();
        let packets = mixed(7, 8_000, 30 * SECOND);
        let mut running = scratch.start_analyzer(&format!("-o out --window 1s -w {workers} -"));
        running.stdin().write_all(&pcap(&packets)).unwrap();
        // The last packet's time has closed all windows that end five seconds before it; nothing more comes.
        let out = scratch.path("out");
        let closed: Vec<_> = (0..24).map(|second| window_name(START + second * SECOND)).collect();
        wait_for("24 closed windows", || (windows(&out) == closed).then_some(()));
        let first: Vec<_> = packets.iter().filter(|packet| packet.time < START + SECOND).cloned().collect();
        assert_window_holds(&out.join(&closed[0]), &first, SHIPPED);
        // One that is late is not waited for either.
        let late = packet(500, "10.0.0.1", "10.0.0.2");
        running.stdin().write_all(&pcap(std::slice::from_ref(&late))[FILE_HEADER..]).unwrap();
        running.finish().assert(0, "");
        assert_holds(&out, &[&packets[..], &[late]].concat(), SECOND, SHIPPED);
        assert_eq!(read_json(&out.join(&closed[0]).join("summary.json"))["revision"], 1);
    }
}

#[test]
fn a_killed_run_leaves_whole_windows_and_no_ledger_and_the_next_run_cleans_up() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    scratch.write("old.pcap", pcap(&mixed(2, 100, SECOND)));
    scratch.analyze("-o out --window 1s old.pcap").assert(0, "");
    assert!(out.join("ledger.json").exists());
    let packets = mixed(3, 10_000, 60 * SECOND);
    let mut running = scratch.start_half_read(&packets);
    running.signal("KILL");
    assert_eq!(running.wait().code, None);
    assert!(assert_all_whole(&out) >= 20);
    assert!(!out.join("ledger.json").exists(), "a ledger of another run");
    // As if it had been killed in the middle of a window and of its ledger.
    fs::create_dir(out.join(".2001-01-01T00-00-00Z.netspectra-partial")).unwrap();
    scratch.write("out/.2001-01-01T00-00-00Z.netspectra-partial/per_src_ip.csv", "src_ip,pack");
    scratch.write("out/.ledger.json.netspectra-partial", "{");
    scratch.analyze("-o out --window 1s half.pcap").assert(0, "");
    assert_holds(&out, &packets, SECOND, SHIPPED);
}

#[test]
fn a_run_killed_while_it_writes_a_window_shows_none_of_it() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    scratch.generate("-o a.pcap --packets 150000 --flows 150000 --zipf 0.5").assert(0, "");
    let partial = |folder: &Path| {
        folder.exists()
            && entries(folder)
                .iter()
                .any(|name| name.starts_with('.') && name.ends_with(".netspectra-partial"))
    };
    // The folder is there for a moment only and may be missed: then the run has ended, and another is tried.
    let killed = (0..20).any(|_| {
        if out.exists() {
            fs::remove_dir_all(&out).unwrap();
        }
        let mut running = scratch.start_analyzer("-q -o out -w 1 a.pcap");
        wait_for("folder that is being written", || (partial(&out) || running.is_over()).then_some(()));
        if running.is_over() {
            return false;
        }
        running.signal("KILL");
        running.wait().code.is_none() && partial(&out)
    });
    assert!(killed, "no run was caught while it wrote");
    assert_eq!(windows(&out), Vec::<String>::new());
    assert!(!out.join("ledger.json").exists());
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    let names = ["all", "ledger.json"].map(str::to_owned);
    assert_eq!(entries(&out), BTreeSet::from(names));
    assert_eq!(assert_all_whole(&out), 1);
}

#[test]
fn a_reader_never_sees_a_window_without_all_its_files() {
    let scratch = Scratch::new();
    // Every window is written, then revised several times.
    let minute = mixed(4, 4_000, 20 * SECOND);
    let packets = [&minute[..], &minute, &minute].concat();
    scratch.write("a.pcap", pcap(&packets));
    let mut running = scratch.start_analyzer("-q -o out --window 1s -w 2 a.pcap");
    let (mut looks, mut seen) = (0, BTreeSet::new());
    wait_for("end of the run", || {
        seen.insert(assert_all_whole(&scratch.path("out")));
        looks += 1;
        running.is_over().then_some(())
    });
    running.wait().assert(0, "");
    assert!(seen.len() > 2, "{looks} looks saw {seen:?} windows");
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
}

#[test]
fn windows_are_named_by_their_start_in_utc() {
    let scratch = Scratch::new();
    let packets = [packet(0, "10.0.0.1", "10.0.0.2"), packet(3_600_000, "10.0.0.1", "10.0.0.2")];
    scratch.write("a.pcap", pcap(&packets));
    for (window, names) in [
        ("all", &["all"][..]),
        ("1s", &["2023-11-14T22-13-20Z", "2023-11-14T23-13-20Z"]),
        ("60s", &["2023-11-14T22-13-00Z", "2023-11-14T23-13-00Z"]),
        ("1h", &["2023-11-14T22-00-00Z", "2023-11-14T23-00-00Z"]),
        ("1d", &["2023-11-14T00-00-00Z"]),
    ] {
        scratch.analyze(&format!("-o {window} --window {window} a.pcap")).assert(0, "");
        assert_eq!(windows(&scratch.path(window)), names);
        assert_eq!(scratch.ledger(window)["windows"], names.len() as u64);
    }
}

#[test]
fn json_is_the_summary_for_programs_and_quiet_prints_nothing() {
    let scratch = Scratch::new();
    let packets = mixed(5, 2_000, 4 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    for window in ["all", "1s"] {
        let run = scratch.analyze(&format!("--json -o out-{window} --window {window} a.pcap"));
        run.assert(0, "");
        let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(json["ledger"], scratch.ledger(&format!("out-{window}")));
        let quiet = scratch.analyze(&format!("-q -o out-{window} --window {window} a.pcap"));
        quiet.assert(0, "");
        assert_eq!(quiet.stdout, "");
    }
    // Quiet is not silent about damage.
    let whole = pcap(&packets);
    scratch.write("cut.pcap", &whole[..whole.len() - 1]);
    let run = scratch.analyze("-q -o cut cut.pcap");
    run.assert(3, "cut.pcap");
    assert_eq!(run.stdout, "");
}

#[test]
fn the_table_has_totals_and_top_rows_and_no_colour_or_progress_where_no_terminal_is() {
    let scratch = Scratch::new();
    let packets = mixed(6, 30_000, 4 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let run = scratch.analyze("-o out a.pcap");
    run.assert(0, "");
    assert!(!run.stdout.contains(['\x1b', '\r']), "{run:?}");
    for (task, _) in SHIPPED {
        assert!(run.stdout.contains(task), "{task}");
    }
    let top = &rows(&scratch.path("out/all/per_src_ip.csv"))[0]["src_ip"];
    assert!(run.stdout.contains(top.as_str()) && run.stdout.contains("30 000"), "{run:?}");
}

#[test]
fn without_flags_the_configuration_says_what_to_do_and_where() {
    let scratch = Scratch::new();
    let packets = mixed(7, 200, SECOND);
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("a.pcap").assert(0, "");
    assert_holds(&scratch.path("snapshots"), &packets, 0, SHIPPED);
    const OWN: &[Task] = &[("own", &["Protocol"])];
    scratch.write("config.yaml", config(OWN).replace("./snapshots", "./own"));
    scratch.analyze("a.pcap").assert(0, "");
    assert_holds(&scratch.path("own"), &packets, 0, OWN);
    scratch.write("other.yaml", config(SHIPPED));
    scratch.analyze("-c other.yaml -o elsewhere a.pcap").assert(0, "");
    assert_holds(&scratch.path("elsewhere"), &packets, 0, SHIPPED);
}

#[test]
fn the_allowed_lateness_of_the_configuration_counts() {
    let scratch = Scratch::new();
    let at = |milliseconds| packet(milliseconds, "10.0.0.1", "10.0.0.2");
    let packets = [at(0), at(1_500), at(100)];
    scratch.write("a.pcap", pcap(&packets));
    for (lateness, late) in [("0s", 1), ("499ms", 1), ("501ms", 0), ("1h", 0)] {
        let with = format!("window: 60s\n  allowed_lateness: {lateness}");
        scratch.write("c.yaml", config(SHIPPED).replace("window: 60s", &with));
        scratch.analyze(&format!("-c c.yaml -o {lateness} --window 1s a.pcap")).assert(0, "");
        assert_holds(&scratch.path(lateness), &packets, SECOND, SHIPPED);
        assert_eq!(scratch.ledger(lateness)["packets"]["late"], late, "{lateness}");
        let summary = scratch.path(lateness).join(window_name(START)).join("summary.json");
        assert_eq!(read_json(&summary)["revision"], late, "{lateness}");
    }
}

#[test]
fn a_generated_capture_depends_on_its_options_alone() {
    let scratch = Scratch::new();
    let generate = |options: &str| {
        scratch.generate(&format!("-o x.pcap --packets 3000 --flows 500 {options}")).assert(0, "");
        fs::read(scratch.path("x.pcap")).unwrap()
    };
    let base = generate("");
    assert_eq!(base, generate(""));
    assert_eq!(base, generate("--seed 1 --duration 60s"));
    for other in ["--seed 2", "--ipv6 0.9", "--zipf 0", "--duration 61s", "--snaplen 50", "--events"] {
        assert_ne!(base, generate(other), "{other}");
    }
    scratch
        .generate("-o a.pcap --packets 3000 --flows 500 --ipv6 1 --snaplen 60 --duration 10s")
        .assert(0, "");
    scratch.analyze("-o out --window 1s a.pcap").assert(0, "");
    let ledger = scratch.ledger("out");
    assert_eq!((&ledger["packets"]["read"], &ledger["packets"]["counted"]), (&3000.into(), &3000.into()));
    assert_eq!(ledger["windows"], 11);
    let sources = rows(&scratch.path("out/2023-11-14T22-13-20Z/per_src_ip.csv"));
    assert!(!sources.is_empty() && sources.iter().all(|row| row["src_ip"].contains(':')), "{sources:?}");
}

#[test]
fn planted_events_are_listed_and_found() {
    let scratch = Scratch::new();
    let listed = scratch.generate("-o a.pcap --packets 30000 --flows 5000 --events");
    listed.assert(0, "");
    let lines: Vec<_> = listed.stdout.lines().collect();
    assert_eq!(lines.len(), 4, "{listed:?}");
    for (kind, line) in ["port-scan", "syn-flood", "exfiltration", "beacon"].iter().zip(&lines) {
        assert!(line.starts_with(kind), "{line}");
    }
    scratch.analyze("-o out a.pcap").assert(0, "");
    let flows = rows(&scratch.path("out/all/per_five_tuple.csv"));
    let distinct = |column: &str, of: &[(&str, &str)]| {
        let matching = flows.iter().filter(|row| of.iter().all(|(column, value)| row[*column] == *value));
        matching.map(|row| row[column].clone()).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(distinct("dst_port", &[("src_ip", "198.51.100.66"), ("dst_ip", "10.0.0.5")]), 1024);
    assert!(distinct("src_ip", &[("dst_ip", "10.0.0.80"), ("dst_port", "443")]) > 4_900);
    let exfiltration = ["10.0.0.7", "203.0.113.99", "51515", "443", "6"];
    let first =
        ["src_ip", "dst_ip", "src_port", "dst_port", "protocol"].map(|column| flows[0][column].as_str());
    assert_eq!(first, exfiltration);
    let bytes = |row: usize| flows[row]["bytes"].parse::<u64>().unwrap();
    assert!(bytes(0) > 2 * bytes(1), "{} and {}", bytes(0), bytes(1));
    let beacon = flows.iter().find(|row| row["dst_ip"] == "192.0.2.200").unwrap();
    assert_eq!((&*beacon["src_ip"], &*beacon["packets"]), ("10.0.0.44", "20"));
    // At even intervals over the whole minute.
    scratch.analyze("-o windows --window 3s a.pcap").assert(0, "");
    for window in windows(&scratch.path("windows")).iter().take(20) {
        let targets = rows(&scratch.path("windows").join(window).join("per_dst_ip.csv"));
        let beacon = targets.iter().find(|row| row["dst_ip"] == "192.0.2.200");
        assert_eq!(beacon.map(|row| &*row["packets"]), Some("1"), "{window}");
    }
}

#[test]
fn a_generated_capture_can_be_piped() {
    let scratch = Scratch::new();
    scratch.generate("-o a.pcap --packets 5000 --events").assert(0, "");
    let piped = "'@GEN' -o - --packets 5000 --events 2>events | '@RUN' -q -o piped -"
        .replace("@GEN", env!("CARGO_BIN_EXE_pcapgen"))
        .replace("@RUN", env!("CARGO_BIN_EXE_pcap-analyzer"));
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {piped}")]).current_dir(scratch.path("."));
    Running::start(command).finish().assert(0, "");
    assert_eq!(fs::read_to_string(scratch.path("events")).unwrap().lines().count(), 4);
    scratch.analyze("-o file a.pcap").assert(0, "");
    assert_same(&tree(&scratch.path("file")), &tree(&scratch.path("piped")), "file and pipe");
}

#[test]
fn every_program_tells_its_version_and_its_flags() {
    let scratch = Scratch::new();
    for program in [env!("CARGO_BIN_EXE_pcap-analyzer"), env!("CARGO_BIN_EXE_pcapgen")] {
        let version = scratch.start(program, "--version").finish();
        version.assert(0, "");
        assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
        let help = scratch.start(program, "--help").finish();
        help.assert(0, "");
        assert!(help.stdout.contains("--output"), "{help:?}");
    }
}
