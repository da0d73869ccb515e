//! Writers beside csv: whatever they write to, and whatever is killed or away meanwhile, in the end it
//! holds what csv does.
//!
//! ClickHouse is its real engine behind `clickhouse_front.py`; Parquet is read by DuckDB and by pyarrow;
//! messages are read by a subscriber that speaks the plain protocol.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use support::cluster::ANALYZER;
use support::crash::*;
use support::live::{JETSTREAM, Live, NatsServer, certificates, number};
use support::writers::*;
use support::*;

/// Every field that makes a key, with prefixes of both families.
const EVERY_FIELD: &[Task] = &[
    ("per_five_tuple", &["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]),
    ("per_network", &["SrcIP/24/48", "VLAN"]),
    ("to_network", &["DstIP/16", "IPVersion"]),
    ("per_flags", &["TCPFlags", "Protocol"]),
    ("per_version", &["IPVersion", "DstPort"]),
    ("per_source", &["SrcIP"]),
];

/// Late packets all through 200 s, with times of single nanoseconds.
fn late_packets(seed: u64, count: usize) -> Vec<Packet> {
    let mut packets = out_of_order(seed, count, 200 * SECOND);
    for (at, packet) in packets.iter_mut().enumerate() {
        packet.time += at as u64 % 1000;
    }
    packets
}

/// A folder with a capture `a.pcap` of these packets and a configuration with these writers behind csv.
fn scratch_with(packets: &[Packet], tasks: &[Task], writers: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("a.pcap", pcap(packets));
    scratch.write("config.yaml", with_writers(&config(tasks), writers));
    scratch
}

/// A place for an engine with a durable log and these writers behind csv.
fn site_with(writers: &[&str]) -> Site {
    let site = Site::exact();
    site.scratch.write("config.yaml", with_writers(&exact_config(SHIPPED, ""), writers));
    site
}

// ClickHouse.

#[test]
fn clickhouse_shows_what_csv_has_with_revisions_and_after_each_run_the_same() {
    let front = Front::start();
    let scratch = scratch_with(&late_packets(60, 20_000), EVERY_FIELD, &[&front.writer("")]);
    let mut first = None;
    for run in 1..=3 {
        scratch.analyze("-q -o out --window 10s a.pcap").assert(0, "");
        let answers = scratch.csv_answers("out");
        assert!(most_revised(&answers) > 0, "no late packet came too late");
        assert_eq!(*first.get_or_insert_with(|| answers.clone()), answers, "csv, run {run}");
        assert_clickhouse(&front, &scratch.path("out"), &format!("run {run}"));
    }
}

#[test]
fn clickhouse_has_the_window_of_everything() {
    let front = Front::start();
    let packets = mixed(61, 3_000, 10 * SECOND);
    // It has no time, so it is never too old.
    let scratch = scratch_with(&packets, EVERY_FIELD, &[&front.writer(", keep: 3650d")]);
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    front.ask("OPTIMIZE TABLE netspectra.per_source_rows FINAL");
    assert_clickhouse(&front, &scratch.path("out"), "--window all");
    let times = front.ask(
        "SELECT DISTINCT toUnixTimestamp64Nano(window_start), toUnixTimestamp64Nano(window_end)
         FROM netspectra.per_source",
    );
    assert_eq!(times, "0\t0\n");
}

#[test]
fn clickhouse_has_the_types_that_were_promised() {
    let front = Front::start();
    let scratch = scratch_with(&mixed(62, 500, SECOND), EVERY_FIELD, &[&front.writer(", keep: 3650d")]);
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    let time = "DateTime64(9, \\'UTC\\')";
    let before = format!("snapshot_id\tUInt64\nwindow_start\t{time}\nwindow_end\t{time}\nrevision\tUInt32\n");
    let values = format!("packets\tUInt64\nbytes\tUInt64\nfirst_seen\t{time}\nlast_seen\t{time}\n");
    for (task, keys) in [
        (
            "per_five_tuple",
            "src_ip\tIPv6\ndst_ip\tIPv6\nsrc_port\tUInt16\ndst_port\tUInt16\nprotocol\tUInt8\n",
        ),
        ("per_network", "src_prefix\tString\nvlan\tUInt16\n"),
        ("to_network", "dst_prefix\tString\nip_version\tUInt8\n"),
        ("per_flags", "tcp_flags\tUInt8\nprotocol\tUInt8\n"),
    ] {
        let columns = front.ask(&format!(
            "SELECT name, type FROM system.columns WHERE database = 'netspectra' AND table = '{task}_rows'
             ORDER BY position"
        ));
        assert_eq!(columns, format!("{before}{keys}{values}"), "{task}_rows");
    }
    let tables = front.ask(
        "SELECT name, engine, partition_key, sorting_key FROM system.tables
         WHERE database = 'netspectra' AND name IN ('snapshots', 'per_network_rows', 'per_network')
         ORDER BY name",
    );
    let expected = "per_network\tView\t\t\n\
        per_network_rows\tReplacingMergeTree\ttoYYYYMM(window_start)\t\
        window_start, src_prefix, vlan, snapshot_id\n\
        snapshots\tReplacingMergeTree\t\ttask, window\n";
    assert_eq!(tables, expected);
}

#[test]
fn an_engine_and_a_clickhouse_that_are_killed_at_random_leave_there_what_csv_has() {
    let (mut front, mut random) = (Front::start(), Random(11));
    let site = site_with(&[&front.soon("")]);
    let capture = site.scratch.write("a.pcap", pcap(&late_packets(63, 20_000)));
    let mut probe = site.start_probe("tap", &capture, "--pace 25x");
    for round in 1..=4 {
        let mut engine = Engine::start(&site, shape(1, 1 + round % 2));
        engine.wait_for_windows(&site.out(), 4 * round);
        let_go_on(&mut random, 600);
        // Odd rounds: while the engine goes on without it; even ones: both at once.
        front.kill();
        if round % 2 == 1 {
            let_go_on(&mut random, 600);
        }
        engine.kill(0);
        if round % 2 == 1 {
            front.come();
        } else {
            // An engine that starts finds nobody there.
            let mut engine = Engine::start(&site, shape(1, 1));
            engine.wait_for_windows(&site.out(), 4 * round);
            engine.kill(0);
            front.come();
        }
    }
    let mut engine = Engine::start(&site, shape(1, 2));
    assert_ended_well(&mut probe);
    engine.wait_until_ready(&site);
    engine.stop(0);
    assert!(most_revised(&csv_answers(&site.out())) > 0, "no late packet came too late");
    assert_clickhouse(&front, &site.out(), "killed at random");
}

#[test]
fn a_clickhouse_that_comes_later_gets_what_csv_got_meanwhile() {
    let mut front = Front::away();
    let site = site_with(&[&front.soon("")]);
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    site.publish("tap", &site.scratch.write("a.pcap", pcap(&mixed(64, 10_000, 200 * SECOND))));
    engine.wait_for_windows(&site.out(), 19);
    front.come();
    engine.wait_until("windows in ClickHouse", |_| front.windows() >= 19);
    engine.stop(0);
    assert_clickhouse(&front, &site.out(), "it came later");
}

#[test]
fn an_engine_that_may_not_be_ahead_of_its_writer_waits_for_it() {
    let mut front = Front::away();
    let site = site_with(&[&front.soon(", max_behind: 0B")]);
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    site.publish("tap", &site.scratch.write("a.pcap", pcap(&mixed(65, 10_000, 200 * SECOND))));
    engine.wait_for_windows(&site.out(), 1);
    let written = at_rest(|| windows(&site.out()).len());
    assert!(written < 10, "{written} of 20 windows, and none of them is in ClickHouse");
    front.come();
    engine.wait_for_windows(&site.out(), 19);
    engine.stop(0);
    assert_clickhouse(&front, &site.out(), "it was waited for");
}

#[test]
fn an_engine_told_to_stop_while_it_waits_for_a_writer_ends_and_the_next_run_goes_on() {
    let mut front = Front::away();
    let site = site_with(&[&front.soon(", max_behind: 0B")]);
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    site.publish("tap", &site.scratch.write("a.pcap", pcap(&mixed(73, 5_000, 100 * SECOND))));
    engine.wait_for_windows(&site.out(), 1);
    engine.tell_to_stop(0);
    let runs = engine.end();
    runs[0].assert(1, "they are kept for the next run");
    front.come();
    let mut engine = Engine::start(&site, shape(1, 1));
    engine.wait_until_ready(&site);
    engine.stop(0);
    assert_clickhouse(&front, &site.out(), "it was away when the engine was stopped");
}

#[test]
fn a_writer_that_gives_up_ends_the_run_and_csv_is_whole() {
    let front = Front::away();
    let writer = front.writer(", name: warehouse, retry: {first: 100ms, give_up: 1s}");
    let scratch = scratch_with(&mixed(66, 10_000, 100 * SECOND), SHIPPED, &[&writer]);
    scratch.write("alone.yaml", config(SHIPPED));
    scratch.analyze("-q -c alone.yaml -o alone --window 10s a.pcap").assert(0, "");
    let run = scratch.analyze("-q -o out --window 10s a.pcap");
    run.assert(1, "warehouse");
    assert!(run.stderr.contains(&front.url()), "{run:?}");
    assert_answers(&scratch.csv_answers("alone"), &scratch.csv_answers("out"), "csv of a run that gave up");
}

#[test]
fn a_writer_that_is_not_required_is_left_out_and_that_is_told() {
    let front = Front::away();
    let writer = front.writer(", name: extra, required: false, retry: {first: 50ms, give_up: 0s}");
    let scratch = scratch_with(&mixed(67, 5_000, 100 * SECOND), SHIPPED, &[&writer]);
    let run = scratch.analyze("-q -o out --window 10s a.pcap");
    run.assert(0, "extra");
    assert!(!run.stderr.contains("internal error"), "{run:?}");
    let out = scratch.path("out");
    assert_eq!(windows(&out).len(), 10);
    assert!(out.join("ledger.json").exists());
    // Lines such as `writer `extra`: 3 windows were left out for it: why`.
    let left_out = run.stderr.lines().filter(|line| line.contains("left out") && line.contains("`extra`"));
    let count = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.iter().position(|word| word.starts_with("window")).unwrap();
        words[at - 1].parse::<usize>().unwrap_or_else(|_| panic!("{line}"))
    };
    assert_eq!(left_out.map(count).sum::<usize>(), 10, "{run:?}");
}

#[test]
fn a_table_with_other_columns_is_refused_and_left_alone() {
    let front = Front::start();
    front.ask("CREATE DATABASE netspectra");
    front.ask("CREATE TABLE netspectra.per_source_rows (x Int32) ENGINE = MergeTree ORDER BY x");
    let scratch = scratch_with(&mixed(68, 100, SECOND), EVERY_FIELD, &[&front.writer("")]);
    let run = scratch.analyze("-q -o out a.pcap");
    run.assert(2, "per_source_rows");
    assert!(!scratch.path("out/all").exists(), "{run:?}");
    let columns =
        "SELECT name FROM system.columns WHERE database = 'netspectra' AND table = 'per_source_rows'";
    assert_eq!(front.ask(columns), "x\n");
}

#[test]
fn a_wrong_password_and_missing_rights_are_refused_and_name_the_user() {
    let of_us = Front::with("--user analyst --password sesame");
    let scratch = scratch_with(&mixed(69, 100, SECOND), SHIPPED, &[]);
    let refused = |writer: &str, says: &str| {
        scratch.write("config.yaml", with_writers(&config(SHIPPED), &[writer]));
        let run = scratch.analyze("-q -o out a.pcap");
        run.assert(2, "analyst");
        assert!(run.stderr.contains(says), "it should say {says}: {run:?}");
        assert!(!run.stderr.contains("sesame"), "{run:?}");
    };
    refused(&of_us.writer(", user: analyst, password: sesame-not"), "password");
    let may_not = Front::with("--user analyst --password sesame --may-not CREATE");
    refused(&may_not.writer(", user: analyst, password: sesame"), "GRANT");
    // The right one, from a file, with an end of line.
    let file = scratch.write("password", "sesame\n");
    let writer = of_us.writer(&format!(", user: analyst, password_file: {file:?}"));
    scratch.write("config.yaml", with_writers(&config(SHIPPED), &[&writer]));
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    assert_clickhouse(&of_us, &scratch.path("out"), "the password is in a file");
}

// Options.

#[test]
fn a_mistake_in_a_writer_is_refused_with_its_line_and_key() {
    let scratch = scratch_with(&mixed(70, 50, SECOND), SHIPPED, &[]);
    scratch.write("password", "sesame");
    let clickhouse = |more: &str| format!("type: clickhouse, url: \"http://127.0.0.1:9\"{more}");
    let line = 3 + SHIPPED.len() + 3;
    for (writer, says) in [
        ("type: clickhouse, url: \"ftp://127.0.0.1:8123\"".to_owned(), "url"),
        ("type: clickhouse, url: \"http://tap:sesame@127.0.0.1:8123\"".to_owned(), "url"),
        ("type: clickhouse".to_owned(), "url"),
        (clickhouse(", password: sesame, password_file: password"), "password_file"),
        (clickhouse(", password_file: nowhere"), "nowhere"),
        (clickhouse(", tabel: x"), "tabel"),
        (clickhouse(", database: \"a b\""), "database"),
        (clickhouse(", keep: soon"), "keep"),
        ("type: jsonl".to_owned(), "path"),
        ("type: jsonl, path: lines, url: \"http://127.0.0.1:9\"".to_owned(), "url"),
        ("type: parquet, path: p, name: csv".to_owned(), "`csv`"),
        ("type: parquet, path: p, name: \"a b\"".to_owned(), "name"),
        ("type: parquet, path: p, tasks: [per_src_ip, nobody]".to_owned(), "nobody"),
        ("type: parquet, path: p, every: 0".to_owned(), "every"),
        ("type: parquet, path: p, required: perhaps".to_owned(), "required"),
        ("type: parquet, path: p, max_behind: lots".to_owned(), "max_behind"),
        ("type: parquet, path: p, retry: {mostt: 1s}".to_owned(), "mostt"),
        ("type: parquet, path: p, retry: {first: 2s, most: 1s}".to_owned(), "retry"),
        ("type: nats, subject: \"a.*\"".to_owned(), "subject"),
        ("type: nats".to_owned(), "subject"),
        ("type: parket, path: p".to_owned(), "parquet"),
    ] {
        scratch.write("c.yaml", with_writers(&config(SHIPPED), &[&writer]));
        let run = scratch.analyze("-q -c c.yaml -o out a.pcap");
        run.assert(2, &format!("c.yaml:{line}:"));
        assert!(run.stderr.contains(says), "{writer}: it should say {says:?}: {run:?}");
        assert!(!run.stderr.contains("sesame"), "{writer}: {run:?}");
        assert!(!scratch.path("out").exists(), "{writer}: {run:?}");
    }
}

#[test]
fn the_first_csv_writer_is_written_with_each_commit_and_takes_no_options_of_those_behind() {
    let scratch = scratch_with(&mixed(71, 50, SECOND), SHIPPED, &[]);
    for option in ["every: 2", "max_behind: 1MiB", "required: false"] {
        let with = config(SHIPPED).replace("./snapshots}", &format!("./snapshots, {option}}}"));
        scratch.write("c.yaml", with);
        let run = scratch.analyze("-q -c c.yaml -o out a.pcap");
        run.assert(2, &format!("c.yaml:{}:", 3 + SHIPPED.len() + 2));
        assert!(run.stderr.contains(option.split(':').next().unwrap()), "{option}: {run:?}");
    }
}

#[test]
fn tasks_whose_tables_would_collide_are_refused_for_clickhouse_alone() {
    let packets = mixed(72, 50, SECOND);
    let collide: [&[Task]; 2] = [&[("snapshots", &["SrcIP"])], &[("x", &["SrcIP"]), ("x_rows", &["DstIP"])]];
    for tasks in collide {
        let scratch = scratch_with(&packets, tasks, &["type: clickhouse, url: \"http://127.0.0.1:9\""]);
        let run = scratch.analyze("-q -o out a.pcap");
        run.assert(2, "config.yaml:");
        assert!(run.stderr.contains(tasks.last().unwrap().0), "{run:?}");
        let scratch = scratch_with(&packets, tasks, &["type: jsonl, path: lines"]);
        scratch.analyze("-q -o out a.pcap").assert(0, "");
    }
}

#[test]
fn each_writer_gets_its_tasks_and_all_windows() {
    let writers = [
        "type: parquet, path: small, name: small, tasks: [per_protocol, per_src_ip]",
        "type: parquet, path: whole, name: whole",
        "type: jsonl, path: lines, every: 3",
        "type: csv, path: second, name: second, tasks: [per_five_tuple], every: 4",
    ];
    // Twenty windows: the last groups of three are not full.
    let scratch = scratch_with(&mixed(73, 10_000, 200 * SECOND), SHIPPED, &writers);
    scratch.analyze("-q -o out --window 10s a.pcap").assert(0, "");
    let all = scratch.csv_answers("out");
    assert_eq!(windows(&scratch.path("out")).len(), 20);
    let some = |tasks: &[&str]| {
        let mut answers = all.clone();
        answers.retain(|(_, task), _| tasks.contains(&&**task));
        answers
    };
    assert_answers(&all, &jsonl_answers(&scratch.path("lines")), "every: 3");
    assert_answers(&some(&["per_five_tuple"]), &scratch.csv_answers("second"), "the second csv writer");
    assert_parquet(&scratch.path("whole"), &scratch.path("out"), "whole");
    let expected: BTreeSet<_> = some(&["per_protocol", "per_src_ip"]).into_keys().collect();
    let found = read_parquet("duckdb", &scratch.path("small")).into_iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found: BTreeSet<_> = found.map(|file| (text(&file["window"]), text(&file["task"]))).collect();
    assert_eq!(expected, found);
}

#[test]
fn a_writer_of_the_first_csv_takes_tasks_too() {
    let scratch = scratch_with(&mixed(74, 1_000, SECOND), SHIPPED, &["type: jsonl, path: lines"]);
    let some = fs::read_to_string(scratch.path("config.yaml")).unwrap();
    scratch.write("config.yaml", some.replace("./snapshots}", "./snapshots, tasks: [per_src_ip]}"));
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    let tasks: Vec<_> = scratch.csv_answers("out").into_keys().map(|(_, task)| task).collect();
    assert_eq!(tasks, ["per_src_ip"]);
    assert_eq!(jsonl_answers(&scratch.path("lines")).len(), SHIPPED.len());
}

#[test]
fn an_engine_hands_over_so_many_windows_at_a_time_and_the_rest_at_its_end() {
    let site = site_with(&["type: jsonl, path: lines, every: 3", "type: parquet, path: parquet"]);
    let mut engine = Engine::start(&site, shape(1, 2));
    engine.wait_until_ready(&site);
    site.publish("tap", &site.scratch.write("a.pcap", pcap(&mixed(75, 10_000, 200 * SECOND))));
    engine.wait_for_windows(&site.out(), 15);
    let lines = site.scratch.path("lines");
    let [in_csv, in_lines] = at_rest(|| [&site.out(), &lines].map(|folder| windows(folder).len()));
    assert!(in_lines <= in_csv && in_csv - in_lines < 3, "{in_lines} windows of {in_csv}");
    engine.stop(0);
    assert_answers(&csv_answers(&site.out()), &jsonl_answers(&lines), "every: 3");
    assert_parquet(&site.scratch.path("parquet"), &site.out(), "an engine");
}

#[test]
fn clickhouse_is_written_over_tls_where_its_certificate_is_trusted() {
    let scratch = Scratch::new();
    let folder = scratch.path(".").canonicalize().unwrap();
    certificates(&folder, "ours");
    let file = |name: &str| folder.join(name).display().to_string();
    let mut front = Front::with(&format!("--tls {} {}", file("ours-signed.pem"), file("ours-signed.key")));
    let url = front.url().replace("http://127.0.0.1", "https://localhost");
    let writer = format!("type: clickhouse, url: \"{url}\", retry: {{give_up: 1s}}");
    scratch.write("a.pcap", pcap(&mixed(72, 2_000, 30 * SECOND)));
    scratch.write("config.yaml", with_writers(&config(SHIPPED), &[&writer]));
    let args = "-q -o out --window 10s a.pcap";
    let run = scratch.analyze(args);
    run.assert(1, "certificate");
    let mut trusting = scratch.command(ANALYZER, args);
    trusting.env("SSL_CERT_FILE", file("ours.pem"));
    let run = Live::start(trusting).finish();
    assert_eq!(run.code, Some(0), "{run:?}");
    // What is there is asked for without.
    front.kill();
    front.options.clear();
    front.come();
    assert_clickhouse(&front, &scratch.path("out"), "over TLS");
}

#[test]
fn every_query_of_the_dashboard_is_answered() {
    let front = Front::start();
    let scratch = scratch_with(&late_packets(71, 20_000), SHIPPED, &[&front.writer("")]);
    scratch.analyze("-q -o out --window 10s a.pcap").assert(0, "");
    let dashboard: Value = serde_json::from_str(include_str!("../docs/grafana/netspectra.json")).unwrap();
    let mut queries = Vec::new();
    raw_queries(&dashboard, &mut queries);
    assert!(queries.len() > 15, "{queries:?}");
    let (from, to) = (START / SECOND, START / SECOND + 300);
    // What Grafana puts in; see the descriptions in the dashboard.
    let time = |column: &str| format!("{column} >= toDateTime({from}) AND {column} <= toDateTime({to})");
    for network in ["", "0.0.0.0/0", "::/0", "10.0.0.0/8"] {
        for query in &queries {
            let mut sql = query.replace("$__interval_s", "10").replace("${database}", "netspectra");
            sql = sql.replace("${top}", "5").replace("${network}", network);
            while let Some((before, rest)) = sql.clone().split_once("$__timeFilter(") {
                let (column, after) = rest.split_once(')').unwrap();
                sql = format!("{before}{}{after}", time(column));
            }
            assert!(!sql.contains('$'), "what Grafana is to put in here is not known: {sql}");
            let answer = front.ask(&sql);
            assert!(!network.is_empty() || !answer.trim().is_empty(), "nothing is shown by {sql}");
        }
    }
}

/// The SQL of all panels below this.
fn raw_queries(value: &Value, queries: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            queries.extend(members.get("rawSql").map(|sql| sql.as_str().unwrap().to_owned()));
            members.values().for_each(|member| raw_queries(member, queries));
        }
        Value::Array(items) => items.iter().for_each(|item| raw_queries(item, queries)),
        _ => {}
    }
}

// Parquet.

#[test]
fn parquet_has_the_rows_of_csv_for_duckdb_and_pyarrow_revisions_and_a_second_run_replace() {
    let scratch = scratch_with(&late_packets(76, 10_000), EVERY_FIELD, &["type: parquet, path: parquet"]);
    let (parquet, out) = (scratch.path("parquet"), scratch.path("out"));
    scratch.analyze("-q -o out --window 10s a.pcap").assert(0, "");
    assert!(most_revised(&csv_answers(&out)) > 0, "no late packet came too late");
    assert_parquet(&parquet, &out, "late packets");
    let ledgers = [parquet.join("_ledger.json"), out.join("ledger.json")];
    let ledgers = ledgers.map(|ledger| fs::read_to_string(ledger).unwrap());
    assert_eq!(ledgers[0], ledgers[1], "ledger.json");
    // Other packets in the same windows.
    scratch.write("a.pcap", pcap(&late_packets(77, 8_000)));
    scratch.analyze("-q -o out --window 10s -w 2 a.pcap").assert(0, "");
    assert_parquet(&parquet, &out, "a second run");
    let hidden: Vec<_> = entries(&parquet).into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

#[test]
fn parquet_and_json_lines_have_what_every_type_of_task_answers() {
    let scratch = Scratch::new();
    scratch.generate("-o a.pcap --packets 30000 --flows 5000 --duration 30s --events").assert(0, "");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/alerts.yaml");
    let writers = ["type: parquet, path: parquet", "type: jsonl, path: lines"];
    scratch.write("config.yaml", with_writers(&fs::read_to_string(example).unwrap(), &writers));
    scratch.analyze("-q -o out --window 3s a.pcap").assert(0, "");
    let answers = scratch.csv_answers("out");
    let tasks: BTreeSet<_> = answers.keys().map(|(_, task)| task.clone()).collect();
    assert_eq!(tasks.len(), 14, "{tasks:?}");
    assert_parquet(&scratch.path("parquet"), &scratch.path("out"), "examples/alerts.yaml");
    assert_answers(&answers, &jsonl_answers(&scratch.path("lines")), "examples/alerts.yaml");
}

/// Waits until no thread of a program that was told to stop runs any more.
fn wait_until_stopped(program: &Live) {
    let threads = format!("/proc/{}/task", program.id());
    let is_still = |thread: &Path| {
        let stat = fs::read_to_string(thread.join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold blanks. One that has ended is still too.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 't', 'Z', 'X']))
    };
    wait_for("program that stands still", || {
        let mut threads = fs::read_dir(&threads).into_iter().flatten().flatten();
        threads.all(|thread| is_still(&thread.path())).then_some(())
    });
}

#[test]
fn a_reader_of_parquet_never_sees_a_window_that_is_not_whole() {
    // Windows that take a while to write.
    let scratch = Scratch::new();
    scratch.generate("-o a.pcap --packets 60000 --flows 60000 --duration 100s").assert(0, "");
    scratch.write("config.yaml", with_writers(&config(SHIPPED), &["type: parquet, path: parquet"]));
    let parquet = scratch.path("parquet");
    let tasks: BTreeSet<String> = SHIPPED.iter().map(|(task, _)| format!("task={task}")).collect();
    // Every name a reader may find belongs to a window that is in its place, and that is whole.
    let assert_whole = || {
        for path in glob_parquet(&parquet) {
            let below = path.strip_prefix(&parquet).unwrap().to_string_lossy().into_owned();
            assert!(below.starts_with("window=2"), "a reader sees {below} before its window is whole");
        }
        let whole = tasks.iter().cloned().chain(["_summary.json".to_owned()]).collect();
        for window in windows(&parquet).iter().filter(|name| name.starts_with("window=")) {
            assert_eq!(entries(&parquet.join(window)), whole, "{window}");
        }
    };
    let mut random = Random(5);
    for _ in 0..4 {
        let mut running = Live::start(scratch.command(ANALYZER, "-q -o out --window 10s -w 1 a.pcap"));
        wait_for("a window of Parquet that is built", || {
            (parquet.exists() && !entries(&parquet).is_empty() || running.is_over()).then_some(())
        });
        // A few moments of it, in each of which nothing moves.
        while !running.is_over() && random.below(20) > 0 {
            running.signal("STOP");
            wait_until_stopped(&running);
            assert_whole();
            running.signal("CONT");
            let_go_on(&mut random, 10);
        }
        drop(running);
        assert_whole();
        // Two readers, to whom a file that is cut off is a mistake.
        for reader in ["duckdb", "pyarrow"] {
            read_parquet(reader, &parquet);
        }
    }
    scratch.analyze("-q -o out --window 10s a.pcap").assert(0, "");
    assert_whole();
    assert_parquet(&parquet, &scratch.path("out"), "after it was killed");
}

// JSON lines.

#[test]
fn json_lines_in_a_folder_have_the_rows_of_csv() {
    let scratch = scratch_with(&late_packets(78, 10_000), EVERY_FIELD, &["type: jsonl, path: lines"]);
    scratch.analyze("-q -o out --window 10s a.pcap").assert(0, "");
    let lines = scratch.path("lines");
    assert_answers(&scratch.csv_answers("out"), &jsonl_answers(&lines), "late packets");
    for window in windows(&lines) {
        let [theirs, ours] =
            [&lines, &scratch.path("out")].map(|folder| folder.join(&window).join("summary.json"));
        assert_eq!(read_json(&theirs), read_json(&ours), "{window}");
    }
    scratch.analyze("-q -o out a.pcap").assert(0, "");
    let all = fs::read_to_string(lines.join("all/per_flags.jsonl")).unwrap();
    let first =
        "{\"task\":\"per_flags\",\"window_start\":null,\"window_end\":null,\"revision\":0,\"tcp_flags\":";
    assert!(all.starts_with(first), "{}", all.lines().next().unwrap());
}

#[test]
fn json_lines_on_standard_output_are_alone_there() {
    let scratch = scratch_with(&late_packets(79, 10_000), EVERY_FIELD, &["type: jsonl, path: \"-\""]);
    for flags in ["-q", ""] {
        let run = scratch.analyze(&format!("{flags} -o out --window 10s a.pcap"));
        assert_eq!(run.code, Some(0), "{flags}: {:?}", run.stderr);
        let mut answers = Answers::new();
        run.stdout.lines().for_each(|line| drop(take_line(&mut answers, line)));
        assert_answers(&scratch.csv_answers("out"), &answers, &format!("standard output with {flags:?}"));
    }
    // There is only one standard output.
    scratch.analyze("--json -o out --window 10s a.pcap").assert(2, "--json");
}

// NATS.

/// A configuration with a server, tasks of every kind, alerts, and a writer to a subject of that server.
fn told_config(server: &NatsServer) -> String {
    let config =
        log_config(SHIPPED, "").replacen("nats:\n", &format!("nats:\n  url: \"{}\"\n", server.url()), 1);
    with_writers(&config, &[&format!("type: nats, subject: told.by.us, {SOON}")])
}

/// Asserts that what was heard is what csv and the file of alerts hold.
fn assert_heard(heard: &Heard, scratch: &Scratch, what: &str) {
    assert_answers(&scratch.csv_answers("out"), &heard.answers, what);
    assert_eq!(heard.windows, windows(&scratch.path("out")), "{what}: windows");
    let alerts = fs::read_to_string(scratch.path("alerts.jsonl")).unwrap();
    let alerts: Vec<Value> = alerts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!alerts.is_empty(), "{what}: no alert to compare");
    assert_eq!(heard.alerts, alerts, "{what}: alerts");
}

#[test]
fn a_subscriber_gets_all_rows_in_parts_then_the_window_and_alerts() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    scratch.generate("-o a.pcap --packets 60000 --flows 60000 --duration 60s").assert(0, "");
    scratch.write("config.yaml", told_config(&server));
    let mut listener = Listener::connect(server.address());
    listener.subscribe("told.by.us.>");
    let mut heard = Heard::default();
    let mut run = scratch.start_analyzer("-q -o out --window 10s a.pcap");
    while !run.is_over() {
        listener.drain().iter().for_each(|message| heard.take("told.by.us", message));
    }
    run.wait().assert(0, "");
    listener.drain().iter().for_each(|message| heard.take("told.by.us", message));
    assert_heard(&heard, &scratch, "a subscriber");
    assert!(heard.most_parts > 1, "no table was so large that it took parts");
}

#[test]
fn a_nats_server_that_is_killed_gets_what_came_meanwhile() {
    let (scratch, mut server) = (Scratch::new(), NatsServer::with(JETSTREAM));
    scratch.write("config.yaml", told_config(&server));
    // The server keeps what it was told, each message once, by its id.
    let mut listener = Listener::connect(server.address());
    let stream = json!({
        "name": "TOLD", "subjects": ["told.by.us.>"], "storage": "file", "retention": "limits",
        "max_bytes": 64 << 20, "num_replicas": 1, "duplicate_window": 120 * SECOND,
    });
    listener.request("$JS.API.STREAM.CREATE.TOLD", &stream);
    let packets = mixed(80, 12_000, 200 * SECOND);
    let (first, rest) = packets.split_at(packets.len() / 2);
    let out = scratch.path("out");
    let mut run = scratch.start_analyzer("-q -o out --window 10s -");
    run.stdin().write_all(&pcap(first)).unwrap();
    wait_for("window", || (windows(&out).len() > 2).then_some(()));
    let written = at_rest(|| windows(&out).len());
    let info = json!({"subjects_filter": "told.by.us.windows"});
    wait_for("windows in the stream", || {
        let told = listener.request("$JS.API.STREAM.INFO.TOLD", &info);
        (told["state"]["subjects"]["told.by.us.windows"] == written).then_some(())
    });
    server.kill();
    run.stdin().write_all(&pcap(rest)[FILE_HEADER..]).unwrap();
    wait_for("windows while the server is away", || (windows(&out).len() > written).then_some(()));
    server.start_again();
    let run = run.finish();
    assert_eq!(run.code, Some(0), "{run:?}");
    let mut listener = Listener::connect(server.address());
    let kept = listener.request("$JS.API.STREAM.INFO.TOLD", &json!({}));
    listener.subscribe("all.of.it");
    let config = json!({"deliver_subject": "all.of.it", "deliver_policy": "all", "ack_policy": "none"});
    // What it delivers may come before the answer to this, so nobody waits for that one.
    let mut asking = Listener::connect(server.address());
    asking.request("$JS.API.CONSUMER.CREATE.TOLD", &json!({"stream_name": "TOLD", "config": config}));
    let mut heard = Heard::default();
    for _ in 0..number(&kept["state"]["messages"]) {
        // Answers to others' requests come here too.
        let mut messages = std::iter::repeat_with(|| listener.next());
        let message = messages.find(|message| !message.subject.starts_with("_INBOX."));
        heard.take("told.by.us", &message.unwrap());
    }
    assert_heard(&heard, &scratch, "a server that was killed");
}

// All of them.

#[test]
fn an_engine_killed_at_random_leaves_the_same_with_every_writer() {
    let front = Front::start();
    let mut random = Random(23);
    let site = site_with(&[
        &front.soon(""),
        "type: parquet, path: parquet",
        "type: jsonl, path: lines, every: 2",
        "type: csv, path: second, name: second",
    ]);
    let capture = site.scratch.write("a.pcap", pcap(&late_packets(81, 20_000)));
    let mut probe = site.start_probe("tap", &capture, "--pace 30x");
    for round in 1..=4 {
        let mut engine = Engine::start(&site, shape(1, 1 + round % 2));
        engine.wait_for_windows(&site.out(), 4 * round);
        let_go_on(&mut random, 800);
        engine.kill(0);
    }
    let mut engine = Engine::start(&site, shape(1, 2));
    assert_ended_well(&mut probe);
    engine.wait_until_ready(&site);
    engine.stop(0);
    let (scratch, out) = (&site.scratch, site.out());
    let expected = csv_answers(&out);
    assert!(most_revised(&expected) > 0, "no late packet came too late");
    assert_clickhouse(&front, &out, "killed at random");
    assert_parquet(&scratch.path("parquet"), &out, "killed at random");
    assert_answers(&expected, &jsonl_answers(&scratch.path("lines")), "json lines, killed at random");
    assert_answers(&expected, &scratch.csv_answers("second"), "a second csv, killed at random");
    // What the analyser makes of the capture is what all of them hold.
    scratch.write("alone.yaml", config(SHIPPED));
    scratch.analyze("-q -c alone.yaml -o offline --window 10s a.pcap").assert(0, "");
    let rows = |mut answers: Answers| {
        answers.values_mut().for_each(|answer| answer.revision = 0);
        answers
    };
    assert_answers(&rows(scratch.csv_answers("offline")), &rows(expected), "csv, killed at random");
}
