//! Input, output and configuration that are not as they should be: exit status, message, and what is left.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use support::*;

const LITTLE: Order = Order { big: false };

/// A run that ends with status 2, says this and writes nothing.
fn assert_refused(scratch: &Scratch, args: &str, says: &[&str]) {
    let before = entries(&scratch.path("."));
    let run = scratch.analyze(args);
    says.iter().for_each(|says| run.assert(2, says));
    assert_eq!(run.stdout, "", "{run:?}");
    assert_eq!(entries(&scratch.path(".")), before, "{args} wrote something");
}

/// Asserts that an input which is damaged behind its first `good` packets gives exactly those, and status 3.
fn assert_damaged(scratch: &Scratch, input: &[u8], packets: &[Packet], good: usize, says: &[&str]) {
    scratch.write("damaged", input);
    for workers in [1, 3] {
        let run = scratch.analyze(&format!("-o out -w {workers} damaged"));
        run.assert(3, "damaged");
        says.iter().for_each(|says| run.assert(3, says));
        assert_holds(&scratch.path("out"), &packets[..good], 0, SHIPPED);
        assert_eq!(scratch.ledger("out")["packets"]["read"], good as u64);
    }
    let run = scratch.analyze_stdin("-o stdin -", input);
    run.assert(3, "-");
    assert_holds(&scratch.path("stdin"), &packets[..good], 0, SHIPPED);
}

/// Offset in [`pcap`]'s file of a packet's record.
fn offset_of(packets: &[Packet], number: usize) -> usize {
    pcap(&packets[..number]).len()
}

#[test]
fn a_last_record_that_is_cut_off_is_named_with_its_offset_and_all_before_it_is_counted() {
    let scratch = Scratch::new();
    let packets = mixed(1, 6_000, SECOND);
    let whole = pcap(&packets);
    let last = offset_of(&packets, 5_999);
    for cut in [last + 1, last + RECORD_HEADER - 1, last + RECORD_HEADER, whole.len() - 1] {
        assert_damaged(&scratch, &whole[..cut], &packets, 5_999, &[&last.to_string(), "cut off"]);
    }
    let ng = pcapng(LITTLE, 9, &records(&packets));
    let last = pcapng(LITTLE, 9, &records(&packets[..5_999])).len();
    assert_damaged(&scratch, &ng[..ng.len() - 4], &packets, 5_999, &[&last.to_string(), "cut off"]);
}

#[test]
fn a_record_longer_than_any_frame_is_named_with_its_offset() {
    let scratch = Scratch::new();
    let packets = mixed(2, 5_000, SECOND);
    let offset = offset_of(&packets, 4_000);
    for length in [300_000_000_u32, u32::MAX] {
        let mut bytes = pcap(&packets);
        bytes[offset + 8..][..4].copy_from_slice(&length.to_le_bytes());
        assert_damaged(&scratch, &bytes, &packets, 4_000, &[&offset.to_string(), &length.to_string()]);
    }
}

#[test]
fn a_record_longer_than_the_rest_of_the_file_is_cut_off() {
    let scratch = Scratch::new();
    let packets = mixed(3, 10, SECOND);
    let offset = offset_of(&packets, 9);
    let mut bytes = pcap(&packets);
    bytes[offset + 8..][..4].copy_from_slice(&60_000_u32.to_le_bytes());
    assert_damaged(&scratch, &bytes, &packets, 9, &[&offset.to_string()]);
}

#[test]
fn a_pcapng_block_that_cannot_be_one_is_named_with_its_offset() {
    let scratch = Scratch::new();
    let packets = mixed(4, 100, SECOND);
    let good = pcapng(LITTLE, 9, &records(&packets));
    for tail in [LITTLE.words(&[6, 13, 0]), LITTLE.words(&[6, 4, 4]), LITTLE.words(&[6, u32::MAX - 3, 0])] {
        assert_damaged(&scratch, &[&good[..], &tail].concat(), &packets, 100, &[&good.len().to_string()]);
    }
    let differing = [&good[..], &LITTLE.words(&[1, 20, 1, 0, 24])].concat();
    assert_damaged(&scratch, &differing, &packets, 100, &[&good.len().to_string()]);
}

#[test]
fn a_record_longer_than_the_snap_length_counts_with_its_length_on_the_wire() {
    let scratch = Scratch::new();
    let packets = [Packet { length: 9_000, ..packet(0, "10.0.0.1", "10.0.0.2") }];
    let mut bytes = pcap(&packets);
    bytes[16..20].copy_from_slice(&10_u32.to_le_bytes());
    scratch.write("a.pcap", bytes);
    scratch.analyze("-o out a.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
}

#[test]
fn zero_length_records_are_read_and_hold_no_ip() {
    let scratch = Scratch::new();
    let packets = mixed(5, 50, SECOND);
    let empty = Record { time: START, length: 0, bytes: Vec::new() };
    let all: Vec<_> =
        records(&packets).into_iter().flat_map(|record| [empty.clone(), record, empty.clone()]).collect();
    for (name, bytes) in [("pcap", pcap_of(&all)), ("pcapng", pcapng(LITTLE, 9, &all))] {
        scratch.write(name, bytes);
        scratch.analyze(&format!("-o out {name}")).assert(0, "");
        assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
        let ledger = scratch.ledger("out");
        assert_eq!((&ledger["packets"]["read"], &ledger["packets"]["non_ip"]), (&150.into(), &100.into()));
    }
}

#[test]
fn an_input_that_is_missing_or_no_capture_is_named_and_nothing_is_written() {
    let scratch = Scratch::new();
    let good = pcap(&mixed(6, 50, SECOND));
    scratch.write("good.pcap", &good);
    scratch.write("empty", "");
    scratch.write("short", &good[..FILE_HEADER - 1]);
    scratch.write("text", "a line of text that is no capture at all\n");
    scratch.write("text.gz", gzip(b"a line of text that is no capture at all\n"));
    scratch.write("text.zst", zstd(b"a line of text that is no capture at all\n"));
    scratch.write("garbage.gz", [0x1f, 0x8b, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]);
    scratch.write("version", [&good[..4], &[9, 0, 9, 0], &good[8..]].concat());
    fs::create_dir(scratch.path("folder")).unwrap();
    for bad in ["missing", "folder", "empty", "short", "text", "text.gz", "text.zst", "garbage.gz", "version"]
    {
        assert_refused(&scratch, &format!("-o out {bad}"), &[bad]);
        assert_refused(&scratch, &format!("-o out good.pcap {bad}"), &[bad]);
    }
    for bytes in [&b""[..], b"a line of text that is no capture at all\n"] {
        scratch.analyze_stdin("-o out -", bytes).assert(2, "-:");
        assert!(!scratch.path("out").exists());
    }
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    let scratch = Scratch::new();
    // Nobody may read its own memory from the start, root included; a file mode would not stop root.
    symlink("/proc/self/mem", scratch.path("unreadable")).unwrap();
    assert_refused(&scratch, "-o out unreadable", &["unreadable"]);
}

#[test]
fn the_same_file_twice_is_refused_whatever_it_is_called() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(7, 50, SECOND)));
    symlink("a.pcap", scratch.path("soft")).unwrap();
    fs::hard_link(scratch.path("a.pcap"), scratch.path("hard")).unwrap();
    for twice in ["a.pcap a.pcap", "a.pcap ./a.pcap", "a.pcap soft", "hard a.pcap"] {
        let second = twice.split(' ').next_back().unwrap();
        assert_refused(&scratch, &format!("-o out {twice}"), &[second, "same file"]);
    }
    assert_refused(&scratch, "-o out a.pcap missing a.pcap", &["missing"]);
    let run = scratch.analyze_stdin("-o out - -", &pcap(&[]));
    run.assert(2, "-");
    assert!(!scratch.path("out").exists());
}

#[test]
fn a_capture_without_packets_is_an_empty_snapshot() {
    let scratch = Scratch::new();
    let headers = [
        pcap(&[]),
        pcap_as(MICROS, Order { big: true }, ETHERNET, &[]),
        pcapng(LITTLE, 9, &[]),
        gzip(&pcap(&[])),
        section(LITTLE, 1, 6)[..28].to_vec(),
    ];
    for (number, header) in headers.iter().enumerate() {
        scratch.write("a.pcap", header);
        let out = format!("out{number}");
        scratch.analyze(&format!("-o {out} a.pcap")).assert(0, "");
        assert_holds(&scratch.path(&out), &[], 0, SHIPPED);
        assert_eq!(scratch.ledger(&out)["packets"]["read"], 0);
    }
    // Windows of a length hold packets or are not there.
    scratch.analyze("-o windows --window 1s a.pcap").assert(0, "");
    assert_holds(&scratch.path("windows"), &[], SECOND, SHIPPED);
    scratch.analyze_stdin("-o stdin -", &pcap(&[])).assert(0, "");
    assert_holds(&scratch.path("stdin"), &[], 0, SHIPPED);
}

#[test]
fn damaged_compressed_input_gives_what_was_before_the_damage() {
    let scratch = Scratch::new();
    let packets = mixed(8, 5_000, SECOND);
    let plain = pcap(&packets);
    for compressed in [gzip(&plain), zstd(&plain)] {
        let garbage = [&compressed[..], b"this is neither a member nor a frame"].concat();
        assert_damaged(&scratch, &garbage, &packets, 5_000, &[]);
        let checksum_cut = &compressed[..compressed.len() - 1];
        scratch.write("cut", checksum_cut);
        scratch.analyze("-o out cut").assert(3, "cut");
    }
    // Whole members, then one that is cut short or broken: everything of the whole ones is there.
    let first = offset_of(&packets, 3_000);
    for compress in [gzip as fn(&[u8]) -> Vec<u8>, zstd] {
        let (whole, second) = (compress(&plain[..first]), compress(&plain[first..]));
        let cut = [&whole[..], &second[..12]].concat();
        assert_damaged(&scratch, &cut, &packets, 3_000, &[]);
        let mut broken = [whole, second].concat();
        let middle = broken.len() - 5_000;
        broken[middle..middle + 3_000].fill(0xee);
        scratch.write("broken", &broken);
        for out in ["out-1 -w 1", "out-3 -w 3"] {
            scratch.analyze(&format!("-o {out} broken")).assert(3, "broken");
        }
        let ledger = scratch.ledger("out-1");
        let read = ledger["packets"]["read"].as_u64().unwrap();
        assert!((3_000..5_000).contains(&read), "{read}");
        assert_same(&tree(&scratch.path("out-1")), &tree(&scratch.path("out-3")), "1 and 3 workers");
    }
}

#[test]
fn damage_never_takes_the_packets_of_a_small_compressed_capture_before_it() {
    let scratch = Scratch::new();
    let packets = mixed(26, 1_000, SECOND);
    let whole = gzip(&pcap(&packets));
    scratch.write("cut.gz", &whole[..whole.len() - 1]);
    scratch.write("garbage.gz", [&whole[..], b"garbage"].concat());
    // What the decompressing thread hands over, and when, must not matter.
    for attempt in 0..20 {
        for file in ["cut.gz", "garbage.gz"] {
            scratch.analyze(&format!("-q -o out -w 3 {file}")).assert(3, file);
            let read = &scratch.ledger("out")["packets"]["read"];
            assert_eq!(*read, 1_000, "{file}, attempt {attempt}");
        }
    }
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
}

#[test]
fn damage_in_one_file_does_not_touch_the_others() {
    let scratch = Scratch::new();
    let packets = mixed(9, 3_000, 30 * SECOND);
    let (first, second) = packets.split_at(1_000);
    scratch.write("first.pcap", &pcap(first)[..offset_of(first, 400) + 20]);
    scratch.write("second.pcap", pcap(second));
    let run = scratch.analyze("-o out first.pcap second.pcap");
    run.assert(3, "first.pcap");
    assert!(!run.stderr.contains("second.pcap"), "{run:?}");
    assert_holds(&scratch.path("out"), &[&first[..400], second].concat(), 0, SHIPPED);
    let inputs = &scratch.ledger("out")["inputs"];
    assert!(inputs[0]["damage"].is_string() && inputs[1]["damage"].is_null(), "{inputs}");
}

#[test]
fn a_file_that_grows_while_it_is_read_is_read_to_its_end() {
    let scratch = Scratch::new();
    let packets = mixed(10, 20_000, 60 * SECOND);
    let running = scratch.start_half_read(&packets);
    let more = mixed(11, 5_000, SECOND)
        .into_iter()
        .map(|packet| Packet { time: packet.time + 60 * SECOND, ..packet });
    let more: Vec<_> = more.collect();
    let mut file = OpenOptions::new().append(true).open(scratch.path("half.pcap")).unwrap();
    file.write_all(&pcap(&more)[FILE_HEADER..]).unwrap();
    running.finish().assert(0, "");
    let all = [packets, more, vec![half_time()]].concat();
    assert_holds(&scratch.path("out"), &all, SECOND, SHIPPED);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_damaged_and_what_was_read_stays() {
    let scratch = Scratch::new();
    let packets = mixed(12, 20_000, 60 * SECOND);
    for length in [0, 100, offset_of(&packets, 19_000) as u64 + 5] {
        let running = scratch.start_half_read(&packets);
        OpenOptions::new().write(true).open(scratch.path("half.pcap")).unwrap().set_len(length).unwrap();
        running.finish().assert(3, "half.pcap");
        let read = scratch.ledger("out")["packets"]["read"].as_u64().unwrap() as usize - 1;
        assert!((8_000..20_000).contains(&read), "{read}");
        let all = [&packets[..read], &[half_time()]].concat();
        assert_holds(&scratch.path("out"), &all, SECOND, SHIPPED);
        fs::remove_dir_all(scratch.path("out")).unwrap();
    }
}

#[test]
fn a_file_that_is_gone_or_replaced_before_its_turn_is_named_and_not_all_is_done() {
    let scratch = Scratch::new();
    let packets = mixed(13, 100, SECOND);
    for bytes in [None, Some(&b""[..]), Some(b"a line of text that is no capture at all\n")] {
        scratch.write("changes.pcap", pcap(&packets));
        let mut running = scratch.start_analyzer("-o out - changes.pcap");
        running.stdin().write_all(&pcap(&packets[..1])[..FILE_HEADER]).unwrap();
        running.wait_until_running();
        fs::remove_file(scratch.path("changes.pcap")).unwrap();
        bytes.map(|bytes| scratch.write("changes.pcap", bytes));
        let run = running.finish();
        // Failed or damaged: the contract leaves open which.
        run.assert(if run.code == Some(3) { 3 } else { 1 }, "changes.pcap");
    }
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(14, 50, SECOND)));
    scratch.write("taken", "a file");
    for out in ["taken", "taken/below", "/proc/nowhere"] {
        scratch.analyze(&format!("-o {out} a.pcap")).assert(1, out);
    }
    assert_eq!(fs::read(scratch.path("taken")).unwrap(), b"a file");
}

#[test]
fn a_file_where_a_windows_folder_should_be_is_named_and_stays() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(14, 50, SECOND)));
    fs::create_dir(scratch.path("out")).unwrap();
    scratch.write("out/all", "a file");
    scratch.analyze("-o out a.pcap").assert(2, "out/all");
    assert_eq!(fs::read(scratch.path("out/all")).unwrap(), b"a file");
}

/// Runs the analyser where no file may grow beyond 8 KiB.
fn analyze_on_little_disk(scratch: &Scratch, args: &str) -> Run {
    let mut command = Command::new("bash");
    let limited = format!("trap '' XFSZ; ulimit -f 8; exec {} {args}", env!("CARGO_BIN_EXE_pcap-analyzer"));
    command.args(["-c", &limited]).current_dir(scratch.path("."));
    Running::start(command).finish()
}

#[test]
fn a_disk_that_is_full_fails_the_run_and_leaves_no_window_that_looks_finished() {
    let scratch = Scratch::new();
    let (old, new) = (mixed(15, 200, SECOND), mixed(16, 5_000, 5 * SECOND));
    scratch.write("old.pcap", pcap(&old));
    scratch.write("new.pcap", pcap(&new));
    for (window, length) in [("all", 0), ("1s", SECOND)] {
        let out = scratch.path(window);
        let run = analyze_on_little_disk(&scratch, &format!("-o {window} --window {window} -w 2 new.pcap"));
        run.assert(1, window);
        assert!(run.stderr.contains("os error 27"), "{run:?}");
        assert_eq!(entries(&out), Default::default());
        // What an earlier run left stays whole, with its ledger, until there is a window in its place.
        scratch.analyze(&format!("-o {window} --window {window} old.pcap")).assert(0, "");
        analyze_on_little_disk(&scratch, &format!("-o {window} --window {window} -w 2 new.pcap"))
            .assert(1, window);
        let old_window = if length == 0 { "all".to_owned() } else { window_name(START) };
        assert_eq!(entries(&out), [old_window.clone(), "ledger.json".into()].into());
        assert_window_holds(&out.join(old_window), &old, SHIPPED);
    }
}

#[test]
fn a_full_standard_output_fails_the_run_but_not_its_snapshots() {
    let scratch = Scratch::new();
    let packets = mixed(17, 50, SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let mut command = Command::new("bash");
    let to_full = format!("exec {} -o out a.pcap >/dev/full", env!("CARGO_BIN_EXE_pcap-analyzer"));
    command.args(["-c", &to_full]).current_dir(scratch.path("."));
    Running::start(command).finish().assert(1, "No space left");
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
    scratch.generate("-o /dev/full --packets 5000").assert(1, "No space left");
}

/// A folder that was used twice held windows of both runs, with other tasks, and a ledger that spoke of one.
#[test]
fn a_run_replaces_all_that_an_earlier_one_of_another_capture_has_left_and_says_so() {
    let scratch = Scratch::new();
    let old = mixed(18, 2_000, 6 * SECOND);
    let new: Vec<_> = mixed(19, 2_000, 6 * SECOND)
        .into_iter()
        .map(|packet| Packet { time: packet.time + 4 * SECOND, ..packet })
        .collect();
    scratch.write("old.pcap", pcap(&old));
    scratch.write("new.pcap", pcap(&new));
    const OLD: &[Task] = &[("gone", &["SrcIP"]), ("kept", &["DstIP"])];
    const NEW: &[Task] = &[("kept", &["DstIP"])];
    scratch.write("old.yaml", config(OLD));
    scratch.write("new.yaml", config(NEW));
    scratch.analyze("-c old.yaml -o out --window 1s old.pcap").assert(0, "");
    scratch.write("out/notes.txt", "a user's own file");
    fs::create_dir(scratch.path("out/mine")).unwrap();
    let run = scratch.analyze("-q -c new.yaml -o out --window 1s new.pcap");
    run.assert(0, "out: the results of an earlier run over old.pcap");
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    assert_eq!(fs::read(scratch.path("out/notes.txt")).unwrap(), b"a user's own file");
    fs::remove_file(scratch.path("out/notes.txt")).unwrap();
    fs::remove_dir(scratch.path("out/mine")).unwrap();
    assert_holds(&scratch.path("out"), &new, SECOND, NEW);
}

#[test]
fn a_run_with_another_filter_or_window_leaves_nothing_of_the_earlier_one() {
    let scratch = Scratch::new();
    let packets = mixed(22, 2_000, 6 * SECOND);
    scratch.write("a.pcap", pcap(&packets));
    scratch.analyze("-o out --window 1s a.pcap").assert(0, "");
    // The same again is no news.
    scratch.analyze("-o out --window 1s a.pcap").assert(0, "");
    assert_holds(&scratch.path("out"), &packets, SECOND, SHIPPED);
    let analyze = |args: &str, replaces: bool| {
        let run = scratch.analyze(&format!("-o out {args} a.pcap"));
        run.assert(0, "");
        let says = run.stdout.contains("out: removed windows of an earlier run that this run did not write");
        assert_eq!(says, replaces, "{args}: {run:?}");
    };
    analyze("--window 2s", true);
    assert_holds(&scratch.path("out"), &packets, 2 * SECOND, SHIPPED);
    analyze("--window 2s -f 'greater 65535'", true);
    assert_eq!(entries(&scratch.path("out")), ["ledger.json".to_owned()].into());
    analyze("--window 2s", false);
    analyze("", true);
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
}

/// Under xargs the first answers were gone, and nothing said so.
#[test]
fn runs_between_which_xargs_divides_a_list_of_files_say_that_each_replaces_the_one_before() {
    let scratch = Scratch::new();
    let files = [23, 24].map(|seed| {
        let packets = mixed(seed, 500, SECOND);
        scratch.write(&format!("{seed}.pcap"), pcap(&packets));
        packets
    });
    let program = env!("CARGO_BIN_EXE_pcap-analyzer");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("echo 23.pcap 24.pcap | xargs -n 1 '{program}' -q -o out")]);
    command.current_dir(scratch.path("."));
    Running::start(command).finish().assert(0, "xargs");
    assert_holds(&scratch.path("out"), &files[1], 0, SHIPPED);
}

#[test]
fn a_window_with_something_else_in_it_and_the_windows_of_an_engine_are_refused_and_kept() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(25, 500, 2 * SECOND)));
    let run = "-o out --window 1s a.pcap";
    scratch.analyze(run).assert(0, "");
    let window = scratch.path("out").join(window_name(START + SECOND));
    fs::write(window.join("plot.png"), "a user's own file").unwrap();
    let before = tree(&scratch.path("out"));
    let assert_refused = |says: &str| {
        let run = scratch.analyze(run);
        run.assert(2, says);
        run.assert(2, "name another folder (-o)");
    };
    assert_refused("plot.png");
    assert_same(&before, &tree(&scratch.path("out")), "what was refused");
    fs::remove_file(window.join("plot.png")).unwrap();
    // As an engine leaves it.
    let ledger = scratch.ledger("out").to_string();
    scratch.write("out/ledger.json", ledger.replace("\"pcap\"", "\"live\""));
    assert_refused("ns-engine");
    assert!(window.exists());
}

#[test]
fn a_folder_that_another_run_holds_is_refused_and_the_other_run_ends_well() {
    let scratch = Scratch::new();
    let packets = mixed(20, 500, SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let mut first = scratch.start_analyzer("-o out -");
    first.stdin().write_all(&pcap(&packets)).unwrap();
    first.wait_until_running();
    scratch.analyze("-o out a.pcap").assert(1, "out");
    scratch.analyze("-o out a.pcap").assert(1, "another run");
    assert_eq!(windows(&scratch.path("out")), Vec::<String>::new());
    first.finish().assert(0, "");
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
    scratch.analyze("-o out a.pcap").assert(0, "");
}

#[test]
fn a_bad_configuration_is_refused_with_its_line_and_key() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(21, 50, SECOND)));
    let good = config(&[("a", &["SrcIP"]), ("b", &["DstIP"])]);
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    for (text, line, says) in [
        (with("window: 60s", "windw: 60s"), 2, "windw"),
        (with("window: 60s", "window: 60 parsecs"), 2, "60 parsecs"),
        (with("window: 60s", "window: 60s\n  allowed_lateness: soon"), 3, "allowed_lateness"),
        (with("window: 60s", "window: 60s\n  num_workers: many"), 3, "num_workers"),
        (with("name: b", "name: a"), 5, "`a`"),
        (with("type: exact", "type: exakt"), 4, "exact"),
        (with("[DstIP]", "[DestIP]"), 5, "DstIP"),
        (with("[DstIP]", "[DstIP/129]"), 5, "key_fields"),
        (with("[DstIP]", "[]"), 5, "key_fields"),
        (with("[DstIP]}", "[DstIP], k: 3}"), 5, "`k`"),
        (with("type: csv", "type: cvs"), 7, "csv"),
        (with("path: ./snapshots", "path: \"${NETSPECTRA_NOT_SET}\""), 7, "NETSPECTRA_NOT_SET"),
        (with("writers:", "writer:"), 6, "writer"),
    ] {
        scratch.write("c.yaml", &text);
        assert_refused(&scratch, "-c c.yaml -o out a.pcap", &[&format!("c.yaml:{line}:"), says]);
    }
    scratch.write("c.yaml", "aggregator: [");
    assert_refused(&scratch, "-c c.yaml -o out a.pcap", &["c.yaml:1:"]);
    assert_refused(&scratch, "-c missing.yaml -o out a.pcap", &["missing.yaml"]);
    // Without -c the file of this name counts where it exists.
    scratch.write("config.yaml", with("type: exact", "type: exakt"));
    assert_refused(&scratch, "-o out a.pcap", &["config.yaml:4:"]);
}

#[test]
fn bad_usage_is_refused() {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(&mixed(22, 50, SECOND)));
    for (args, says) in [
        ("", "FILE"),
        ("--no-such-flag a.pcap", "--no-such-flag"),
        ("--window soon a.pcap", "soon"),
        ("--window 0s a.pcap", "0s"),
        ("--window -1s a.pcap", "-1"),
        ("--window 60 a.pcap", "60"),
        ("-w many a.pcap", "many"),
        ("-w 257 a.pcap", "from 1 to 256"),
        ("-w -1 a.pcap", "-1"),
    ] {
        assert_refused(&scratch, &format!("-o out {args}"), &[says]);
    }
    for args in [
        "",
        "-o x.pcap --ipv6 2",
        "-o x.pcap --duration soon",
        "-o x.pcap --packets many",
        "-o x.pcap --flows 0",
    ] {
        let run = scratch.generate(args);
        assert_eq!(run.code, Some(2), "{args}: {run:?}");
    }
    assert!(!scratch.path("x.pcap").exists());
    let run = scratch.generate("-o missing/x.pcap");
    assert!(run.code != Some(0) && run.stderr.contains("missing/x.pcap"), "{run:?}");
}

#[test]
fn a_bad_filter_is_refused_for_every_kind_of_input() {
    let scratch = Scratch::new();
    let packets = records(&mixed(23, 50, SECOND));
    let ng = pcapng(LITTLE, 9, &packets);
    let captures = [
        pcap_of(&packets),
        pcap_of(&[]),
        ng.clone(),
        pcapng(LITTLE, 9, &[]),
        gzip(&ng),
        zstd(&pcap_of(&packets)),
    ];
    for capture in &captures {
        scratch.write("capture", capture);
        assert_refused(&scratch, "-o out -f 'udp prot 53' capture", &["udp prot 53"]);
        scratch.analyze_stdin("-o out -f 'udp prot 53' -", capture).assert(2, "udp prot 53");
        assert!(!scratch.path("out").exists());
    }
}

#[test]
fn a_filter_takes_out_what_it_should_and_the_ledger_says_how_much() {
    let scratch = Scratch::new();
    let packets = mixed(24, 3_000, 3 * SECOND);
    let arp = Record { time: START, length: 60, bytes: [&[0xff; 12][..], &[8, 6], &[0; 28]].concat() };
    let all = [records(&packets), vec![arp]].concat();
    let untagged = |packet: &Packet| packet.vlan.is_none();
    let kept = |keep: &dyn Fn(&Packet) -> bool| -> Vec<Packet> {
        packets.iter().filter(|packet| keep(packet)).cloned().collect()
    };
    let udp = kept(&|packet| untagged(packet) && packet.protocol == UDP);
    // All frames are cut off behind their headers: the length on the wire counts.
    let long = kept(&|packet| packet.length >= 1000);
    let no_arp = packets.clone();
    for (name, bytes) in [("pcap", pcap_of(&all)), ("pcapng", pcapng(LITTLE, 9, &all))] {
        scratch.write("a", bytes);
        for (expression, expected) in [("udp", &udp), ("greater 1000", &long), ("not arp", &no_arp)] {
            for (window, length) in [("all", 0), ("1s", SECOND)] {
                let out = format!("{name}-{}-{window}", expected.len());
                let run = scratch.analyze(&format!("-o {out} -w 2 --window {window} -f '{expression}' a"));
                run.assert(0, "");
                assert_holds(&scratch.path(&out), expected, length, SHIPPED);
                let ledger = scratch.ledger(&out);
                assert_eq!(
                    ledger["packets"]["filtered"],
                    (all.len() - expected.len()) as u64,
                    "{expression}"
                );
                assert_eq!(ledger["packets"]["non_ip"], 0);
            }
        }
    }
}

#[test]
fn nobody_reading_the_summary_is_no_failure() {
    let scratch = Scratch::new();
    let packets = mixed(25, 50, SECOND);
    scratch.write("a.pcap", pcap(&packets));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_pcap-analyzer"))
        .args(["-o", "out", "a.pcap"])
        .current_dir(scratch.path("."))
        .stdout(writer)
        .stderr(File::create(scratch.path("errors")).unwrap())
        .status();
    assert_eq!(
        (status.unwrap().code(), fs::read_to_string(Path::new(&scratch.path("errors"))).unwrap()),
        (Some(0), "".into())
    );
    assert_holds(&scratch.path("out"), &packets, 0, SHIPPED);
}

#[test]
fn a_run_without_memory_ends_with_a_word_about_it_and_leaves_no_half_window() {
    let scratch = Scratch::new();
    let flow = |number: u32| Packet {
        source: std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into(),
        ..packet(0, "10.0.0.1", "192.0.2.1")
    };
    scratch.write("flows.pcap", pcap(&(0..300_000).map(flow).collect::<Vec<_>>()));
    let run = |kilobytes: u32| {
        let program = env!("CARGO_BIN_EXE_pcap-analyzer");
        let limited = format!("ulimit -v {kilobytes}; exec {program} -q -w 1 -o out flows.pcap");
        Command::new("sh").args(["-c", &limited]).current_dir(scratch.path("")).output().unwrap()
    };
    // The first limit that is too low for the tables.
    let mut limits = (0..30).map(|step| 600_000 - 20_000 * step).map(|limit| (limit, run(limit)));
    let (limit, failed) = limits.find(|(_, run)| !run.status.success()).expect("a limit that is too low");
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{limit}: {said}");
    assert!(said.starts_with("pcap-analyzer: out of memory: the system has no "), "{limit}: {said}");
}
