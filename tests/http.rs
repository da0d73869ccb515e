//! The engine asked over HTTP, and its operation: what it answers is what csv holds, what it counts is what
//! the ledger does, and nothing is told to those who may not know.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::Stdio;
use std::time::Duration;
use support::crash::whole_tree;
use support::live::*;
use support::writers::*;
use support::*;

/// A rule that every window raises, and the next one does not end.
const ALERTS: &str = "alerts:
  rules:
    - {name: busy, task: per_protocol, metric: total.packets, comparison: '>', threshold: 0}
  outputs: []
";
/// Ten windows of ten seconds.
const LENGTH: u64 = 100 * SECOND;

/// An engine that is asked while it runs.
struct Asked {
    scratch: Scratch,
    server: NatsServer,
    engine: Live,
    port: u16,
}

impl Asked {
    /// One with these writers behind csv and these lines at the end of its configuration.
    fn start(writers: &[&str], more: &str) -> Self {
        let (scratch, server, port) = (Scratch::new(), NatsServer::start(), free_port());
        let config = with_writers(&config(SHIPPED), writers);
        scratch.write("config.yaml", format!("nats:\n  silent_after: 1s\n{config}{more}"));
        let args = format!("--nats {} --window 10s -o out -w 2 --http 127.0.0.1:{port}", server.url());
        let engine = scratch.start_engine(&args);
        wait_for("answer", || ask(port, "GET /healthz", "", b"").ok());
        Self { scratch, server, engine, port }
    }

    /// One that has eleven windows to tell of, ten of them with the packets of a tap.
    fn with_data() -> Self {
        let asked = Self::start(&[], ALERTS);
        asked.replay("tap", &mixed(90, 10_000, LENGTH), "");
        asked.close_windows();
        asked
    }

    fn replay(&self, name: &str, packets: &[Packet], more: &str) -> Value {
        let capture = format!("{name}.pcap");
        self.scratch.write(&capture, pcap(packets));
        self.scratch.replay(&format!("--nats {} --id {name} -r {capture} {more}", self.server.url()))
    }

    /// Publishes a packet so late that all ten windows before it are closed, and waits until they and its own can be
    /// asked for.
    fn close_windows(&self) {
        self.replay("closer", &[packet(1_000_000, "192.0.2.1", "192.0.2.2")], "");
        wait_for("eleven windows", || (self.window_names().len() == 11).then_some(()));
    }

    fn get(&self, path: &str) -> Reply {
        get(self.port, path)
    }

    /// An answer that has to be one.
    fn json(&self, path: &str) -> Value {
        let reply = self.get(path);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert!(reply.head.contains("content-type: application/json"), "{path}: {reply:?}");
        reply.json()
    }

    /// Newest first.
    fn window_names(&self) -> Vec<String> {
        let windows = self.json("/api/v1/windows?limit=1000");
        let windows = windows["windows"].as_array().unwrap().iter();
        windows.map(|window| window["window"].as_str().unwrap().to_owned()).collect()
    }

    /// Asserts that a request is refused with this status and a reason that says this.
    fn assert_refused(&self, path: &str, status: u16, says: &str) {
        let reply = self.get(path);
        assert_eq!(reply.status, status, "{path}: {reply:?}");
        let error = reply.json()["error"].as_str().unwrap_or_else(|| panic!("{path}: {reply:?}")).to_owned();
        assert!(error.contains(says), "{path}: it should say {says:?}: {error}");
    }

    /// Figures by series, as `/metrics` writes them.
    fn metrics(&self) -> BTreeMap<String, f64> {
        let reply = self.get("/metrics");
        assert_eq!(reply.status, 200, "{reply:?}");
        let lines = reply.body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines
            .map(|line| {
                let (series, figure) = line.rsplit_once(' ').unwrap();
                (series.to_owned(), figure.parse().unwrap_or_else(|_| panic!("{line}")))
            })
            .collect()
    }
}

/// The sum of all series of a name with these labels.
fn figure(metrics: &BTreeMap<String, f64>, name: &str, labels: &[(&str, &str)]) -> u64 {
    let name = format!("netspectra_{name}");
    let has = |series: &str| {
        let (found, rest) = series.split_once('{').unwrap_or((series, ""));
        let labelled = |(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
        found == name && labels.iter().all(labelled)
    };
    let mut found = metrics.iter().filter(|(series, _)| has(series)).peekable();
    assert!(found.peek().is_some(), "no {name} with {labels:?}: {:?}", metrics.keys());
    found.map(|(_, figure)| *figure).sum::<f64>() as u64
}

// Answers.

/// Rows of an answer as cells, as csv writes them.
fn data(answer: &Value) -> Vec<Vec<String>> {
    let rows = answer["data"].as_array().unwrap().iter();
    rows.map(|row| row.as_object().unwrap().values().map(cell).collect()).collect()
}

#[test]
fn every_table_is_answered_as_csv_has_it() {
    let asked = Asked::with_data();
    let answers = asked.scratch.csv_answers("out");
    let mut names = windows(&asked.scratch.path("out"));
    names.reverse();
    assert_eq!(asked.window_names(), names, "newest first");
    for ((window, task), expected) in &answers {
        let answer = asked.json(&format!("/api/v1/windows/{window}/{task}?limit=10000"));
        let what = format!("{task} of {window}");
        let rows = expected.rows.len();
        assert_eq!((&answer["rows"], &answer["matched"]), (&json!(rows), &json!(rows)), "{what}");
        assert_eq!((&answer["window"], &answer["task"]), (&json!(window), &json!(task)), "{what}");
        let span = ["window_start", "window_end"].map(|key| answer[key].as_str().map(str::to_owned));
        assert_eq!((span, &answer["revision"]), (expected.span.clone(), &json!(expected.revision)), "{what}");
        assert_eq!(answer["columns"], json!(expected.header), "{what}");
        assert!(data(&answer) == expected.rows, "{what}: rows or their order");
        let first = answer["data"][0].as_object().unwrap();
        assert!(first.keys().eq(&expected.header), "{what}: {first:?}");
        assert!(first["packets"].is_u64() && first["first_seen"].is_string(), "{what}: {first:?}");
    }
    let tasks = asked.json("/api/v1/tasks");
    let named: Vec<_> = tasks["tasks"].as_array().unwrap().iter().map(|task| cell(&task["name"])).collect();
    assert_eq!(named, SHIPPED.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for task in tasks["tasks"].as_array().unwrap() {
        let columns = task["columns"].as_array().unwrap().iter().map(|column| cell(&column["name"]));
        let place = (names[0].clone(), cell(&task["name"]));
        assert_eq!(columns.collect::<Vec<_>>(), answers[&place].header, "{task}");
        assert_eq!(task["order_by"], "bytes", "{task}");
    }
}

#[test]
fn windows_are_listed_in_pages_and_the_latest_has_a_name() {
    let asked = Asked::with_data();
    let names = asked.window_names();
    let page = asked.json("/api/v1/windows?limit=3");
    let list = |page: &Value| -> Vec<String> {
        page["windows"].as_array().unwrap().iter().map(|window| cell(&window["window"])).collect()
    };
    assert_eq!(list(&page), names[..3]);
    let next = asked.json(&format!("/api/v1/windows?limit=4&before={}", names[2]));
    assert_eq!(list(&next), names[3..7]);
    assert_eq!(list(&asked.json(&format!("/api/v1/windows?before={}", names[10]))), Vec::<String>::new());
    for window in page["windows"].as_array().unwrap() {
        let folder = asked.scratch.path("out").join(cell(&window["window"]));
        let summary = read_json(&folder.join("summary.json"));
        for key in ["window_start", "window_end", "revision", "tasks"] {
            assert_eq!(window[key], summary[key], "{key}: {window}");
        }
    }
    let latest = asked.json("/api/v1/windows/latest/per_src_ip");
    assert_eq!(latest["window"], names[0]);
    assert_eq!(latest, asked.json(&format!("/api/v1/windows/{}/per_src_ip", names[0])));
}

#[test]
fn rows_are_sorted_filtered_and_limited_as_asked() {
    let asked = Asked::with_data();
    let window = asked.window_names().pop().unwrap();
    let answers = asked.scratch.csv_answers("out");
    let table = &answers[&(window.clone(), "per_five_tuple".to_owned())];
    let at = |column: &str| table.header.iter().position(|name| name == column).unwrap();
    let path = |query: &str| format!("/api/v1/windows/{window}/per_five_tuple?{query}");
    // The default order, and fewer rows.
    assert!(table.rows.len() > 100, "{} rows", table.rows.len());
    assert_eq!(data(&asked.json(&path("limit=3"))), table.rows[..3]);
    assert_eq!(data(&asked.json(&path(""))), table.rows[..100]);
    // Orders of numbers, either way; rows that tie may be in any.
    for (sort, column, descending) in [("-packets", "packets", true), ("dst_port", "dst_port", false)] {
        let answer = asked.json(&path(&format!("sort={sort}&limit=10000")));
        let numbers = |rows: &[Vec<String>]| -> Vec<u64> {
            rows.iter().map(|row| row[at(column)].parse().unwrap()).collect()
        };
        let mut expected = numbers(&table.rows);
        expected.sort_unstable();
        if descending {
            expected.reverse();
        }
        let mut rows = data(&answer);
        assert_eq!(numbers(&rows), expected, "{sort}");
        let few = numbers(&data(&asked.json(&path(&format!("sort={sort}&limit=7")))));
        assert_eq!(few, expected[..7], "{sort}, the first seven");
        let mut all = table.rows.clone();
        rows.sort();
        all.sort();
        assert!(rows == all, "{sort}: not the rows of the table");
    }
    // Addresses are sorted as numbers, IPv4 before IPv6.
    let rows = data(&asked.json(&path("sort=src_ip&limit=10000")));
    let addresses: Vec<IpAddr> = rows.iter().map(|row| row[at("src_ip")].parse().unwrap()).collect();
    assert!(addresses.is_sorted(), "{addresses:?}");
    // Filters: what is expected is counted from csv.
    let within = |text: &str, network: u128, bits: u32, v6: bool| match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => !v6 && u128::from(v4.to_bits()) >> (32 - bits) == network >> (32 - bits),
        IpAddr::V6(v6_address) => v6 && v6_address.to_bits() >> (128 - bits) == network >> (128 - bits),
    };
    type Keep<'a> = Box<dyn Fn(&[String]) -> bool + 'a>;
    let in_ten = |row: &[String]| within(&row[at("src_ip")], 0x0a00_0000, 28, false);
    let to_https = |row: &[String]| row[at("dst_port")] == "443";
    let filters: [(&str, Keep<'_>); 6] = [
        ("src_ip:10.0.0.0/28", Box::new(in_ten)),
        ("dst_port:443", Box::new(to_https)),
        ("src_ip:10.0.0.0/28,dst_port:443", Box::new(|row| in_ten(row) && to_https(row))),
        ("src_ip:10.0.0.3", Box::new(|row| row[at("src_ip")] == "10.0.0.3")),
        ("dst_ip:2001:db8::/32", Box::new(|row| within(&row[at("dst_ip")], 0x2001_0db8 << 96, 32, true))),
        ("dst_port:4", Box::new(|_| false)),
    ];
    for (filter, keep) in filters {
        let expected: Vec<_> = table.rows.iter().filter(|row| keep(row)).cloned().collect();
        assert!(!expected.is_empty() || filter == "dst_port:4", "{filter} keeps nothing");
        let answer = asked.json(&path(&format!("filter={filter}&limit=10000")));
        let totals = (&answer["rows"], &answer["matched"]);
        assert_eq!(totals, (&json!(table.rows.len()), &json!(expected.len())), "{filter}");
        assert!(data(&answer) == expected, "{filter}: rows or their order");
        let one = asked.json(&path(&format!("filter={filter}&limit=1")));
        assert_eq!(
            (one["matched"].clone(), data(&one).len()),
            (json!(expected.len()), expected.len().min(1))
        );
    }
}

#[test]
fn what_is_unknown_or_wrong_is_refused_and_no_path_leads_out() {
    let asked = Asked::with_data();
    let rows = "/api/v1/windows/latest/per_src_ip";
    asked.assert_refused("/api/v1/windows/2001-01-01T00-00-00Z/per_src_ip", 404, "2001-01-01T00-00-00Z");
    asked.assert_refused("/api/v1/windows/latest/per_nobody", 404, "per_nobody");
    asked.assert_refused("/api/v2/windows", 404, "");
    asked.assert_refused("/", 404, "");
    for (query, says) in [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("filter=src_ip", "src_ip"),
        ("filter=src_ip:10.0.0.300", "10.0.0.300"),
        ("filter=src_ip:10.0.0.0/33", "10.0.0.0/33"),
    ] {
        asked.assert_refused(&format!("{rows}?{query}"), 400, says);
    }
    for (query, says) in
        [("sort=nothing", "nothing"), ("filter=nothing:1", "nothing"), ("filter=packets:3", "packets")]
    {
        asked.assert_refused(&format!("{rows}?{query}"), 404, says);
    }
    for path in ["/api/v1/windows?limit=0", "/api/v1/windows?limit=1001", "/api/v1/alerts?limit=1001"] {
        asked.assert_refused(path, 400, "limit");
    }
    for path in [
        "/api/v1/windows/../../../../etc/passwd",
        "/api/v1/windows/..%2f..%2f..%2fetc/passwd",
        "/api/v1/windows/%2e%2e/%2e%2e",
        "/api/v1/windows/../ledger.json",
        "/api/v1/windows/latest/..%2fper_src_ip",
        "/api/v1/windows/latest/per_src_ip%00",
        "/api/v1/windows/latest/%ff",
        "//etc/passwd",
        "/../../etc/passwd",
    ] {
        let reply = asked.get(path);
        assert!((400..=404).contains(&reply.status), "{path}: {reply:?}");
        assert!(!reply.body.contains("root:"), "{path}: {reply:?}");
    }
    let status = |request: &str, body: &[u8]| ask(asked.port, request, "", body).unwrap().status;
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        assert_eq!(status(&format!("{method} {rows}"), b""), 405, "{method}");
    }
    assert_eq!(status(&format!("GET {rows}?sort={}", "a".repeat(9_000)), b""), 414);
    let refused = status(&format!("GET {rows}"), b"a body");
    assert!((400..=417).contains(&refused), "a body: {refused}");
    let head = ask(asked.port, "HEAD /healthz", "", b"").unwrap();
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(asked.json("/healthz"), json!({"status": "ok"}));
}

#[test]
fn schemathesis_finds_nothing_that_the_description_does_not_say() {
    let asked = Asked::with_data();
    let url = format!("http://127.0.0.1:{}/openapi.json", asked.port);
    let run = "from schemathesis.cli import schemathesis; schemathesis()";
    let mut command = python();
    command.args(["-c", run, "run", &url, "--checks", "all", "--max-examples", "30", "--seed", "1"]);
    // A stream of events has no end to wait for.
    command.args(["--exclude-path", "/api/v1/events", "--generation-deterministic", "--no-color"]);
    command.args(["--request-timeout", "10"]);
    let run = command.current_dir(asked.scratch.path(".")).output().unwrap();
    let [said, errors] = [&run.stdout, &run.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(!errors.contains("ModuleNotFoundError"), "{errors}{INSTALL}");
    assert!(run.status.success(), "{said}\n{errors}");
    assert_eq!(asked.json("/healthz"), json!({"status": "ok"}));
}

#[test]
fn alerts_are_answered_while_they_are_active() {
    let asked = Asked::with_data();
    let alerts = asked.json("/api/v1/alerts");
    assert_eq!(alerts["active"], 1, "{alerts}");
    let event = &alerts["alerts"][0];
    let told = [&event["event"], &event["rule"], &event["task"]];
    assert_eq!(told, [&json!("raised"), &json!("busy"), &json!("per_protocol")], "{event}");
    assert_eq!(event["window_start"], rfc3339(START), "{event}");
    assert_eq!(figure(&asked.metrics(), "alerts_active", &[]), 1);
    assert_eq!(figure(&asked.metrics(), "alerts_events_total", &[("event", "raised")]), 1);
}

/// Reads events until all of these have come; gives the data of the first of each.
fn events(port: u16, wanted: &[&str], listening: impl FnOnce()) -> Vec<Value> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /api/v1/events HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("an event before the deadline"));
    let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    assert!(head[0].contains(" 200 "), "{head:?}");
    assert!(head.join("\n").to_lowercase().contains("content-type: text/event-stream"), "{head:?}");
    listening();
    let (mut found, mut name) = (BTreeMap::new(), String::new());
    while found.len() < wanted.len() {
        let line = lines.next().expect("the stream goes on");
        if let Some(event) = line.strip_prefix("event:") {
            name = event.trim().to_owned();
        } else if let Some(data) = line.strip_prefix("data:")
            && wanted.contains(&&*name)
        {
            let data: Value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
            found.entry(name.clone()).or_insert(data);
        }
    }
    wanted.iter().map(|name| found[*name].clone()).collect()
}

#[test]
fn a_listener_is_told_of_a_new_window_and_of_an_alert() {
    let asked = Asked::start(&[], ALERTS);
    let told = events(asked.port, &["window", "alert"], || {
        asked.replay("tap", &mixed(91, 5_000, LENGTH), "");
        asked.close_windows();
    });
    let [window, alert]: [Value; 2] = told.try_into().unwrap();
    let windows = asked.json("/api/v1/windows?limit=1000");
    let listed = windows["windows"].as_array().unwrap().last().unwrap();
    assert_eq!(&window, listed, "the first window");
    assert_eq!(alert, asked.json("/api/v1/alerts")["alerts"][0], "the alert");
}

// Metrics.

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let asked = Asked::with_data();
    let reply = asked.get("/metrics");
    assert!(reply.head.contains("content-type: text/plain"), "{}", reply.head);
    let mut promtool = std::process::Command::new(tool("promtool"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(reply.body.as_bytes()).unwrap();
    let run = promtool.wait_with_output().unwrap();
    let said = [run.stdout, run.stderr].concat();
    assert!(run.status.success() && said.is_empty(), "{}\n{}", String::from_utf8_lossy(&said), reply.body);
}

#[test]
fn what_is_counted_is_what_the_ledger_holds() {
    let asked = Asked::start(&["type: jsonl, path: lines"], "");
    let mut packets = mixed(92, 10_000, LENGTH);
    // Some come after their windows have closed.
    let late = packets[..100].to_vec();
    packets.extend(late);
    let report = asked.replay("tap", &packets, "-f 'not udp'");
    assert!(number(&report["packets"]["filtered"]) > 0, "{report}");
    asked.close_windows();
    let counted = number(&report["packets"]["sent"]);
    // Windows that were revised are committed a little later.
    let tap = |metrics: &BTreeMap<String, f64>, name: &str| -> u64 {
        let of_tap = |series: &&String| series.contains("tap") && series.contains(&format!("_{name}{{"));
        metrics.keys().filter(of_tap).map(|series| metrics[series] as u64).sum()
    };
    wait_for("all packets in committed windows", || {
        (tap(&asked.metrics(), "input_packets_counted_total") == counted).then_some(())
    });
    let metrics = asked.metrics();
    wait_for("windows in the lines", || {
        let written = figure(&asked.metrics(), "writer_windows_written_total", &[("writer", "jsonl")]);
        (written >= 10).then_some(())
    });
    let is_up = figure(&asked.metrics(), "writer_up", &[("writer", "jsonl"), ("type", "jsonl")]);
    assert_eq!(is_up, 1);
    let Asked { scratch, engine, .. } = asked;
    let ledger = engine.stop_engine(&scratch.path("out"));
    let input = input(&ledger, "tap");
    let labels = [("input", input["name"].as_str().unwrap()), ("format", input["format"].as_str().unwrap())];
    for (name, of_ledger) in [
        ("read", "packets"),
        ("counted", "counted"),
        ("filtered", "filtered"),
        ("non_ip", "non_ip"),
        ("malformed", "malformed"),
        ("late", "late"),
    ] {
        let found = figure(&metrics, &format!("input_packets_{name}_total"), &labels);
        assert_eq!(found, number(&input[of_ledger]), "{name}: {ledger}");
    }
    assert!(number(&input["late"]) > 0, "{ledger}");
    let lost = tap(&metrics, "input_packets_lost_total");
    assert_eq!(lost, number(&input["lost"]), "{ledger}");
    assert_eq!(figure(&metrics, "windows_written_total", &[]), 11);
    let decoded = figure(&metrics, "decoded_packets_total", &[]);
    assert!(decoded >= counted, "{decoded} packets decoded, {counted} counted");
    assert!(figure(&metrics, "window_close_seconds_count", &[]) >= 10);
}

#[test]
fn an_engine_is_not_ready_while_a_writer_is_away_and_says_so() {
    let mut front = Front::away();
    let asked = Asked::start(&[&front.soon("")], "");
    asked.replay("tap", &mixed(93, 5_000, LENGTH), "");
    asked.close_windows();
    let labels = [("writer", "clickhouse"), ("type", "clickhouse")];
    let reply = wait_for("engine that is not ready", || {
        let reply = asked.get("/readyz");
        (reply.status == 503).then_some(reply)
    });
    let told = reply.json();
    assert_eq!(told["ready"], false, "{told}");
    assert!(told["reasons"].to_string().contains("clickhouse"), "{told}");
    assert_eq!(asked.json("/healthz"), json!({"status": "ok"}));
    let metrics = asked.metrics();
    assert_eq!(figure(&metrics, "writer_up", &labels), 0);
    assert!(figure(&metrics, "writer_queue_windows", &labels) >= 10);
    assert!(figure(&metrics, "writer_retries_total", &labels) >= 1);
    front.come();
    wait_for("engine that is ready", || (asked.get("/readyz").status == 200).then_some(()));
    assert_eq!(asked.json("/readyz"), json!({"ready": true, "reasons": []}));
    wait_for("writer that has all", || {
        let metrics = asked.metrics();
        (figure(&metrics, "writer_queue_windows", &labels) == 0).then_some(())
    });
    assert_eq!(figure(&asked.metrics(), "writer_up", &labels), 1);
    let Asked { scratch, engine, .. } = asked;
    engine.stop_engine(&scratch.path("out"));
    assert_clickhouse(&front, &scratch.path("out"), "it was away");
}

// Who may ask.

#[test]
fn an_address_that_others_reach_is_refused_without_a_token() {
    let (scratch, server, port) = (Scratch::new(), NatsServer::start(), free_port());
    scratch.write("config.yaml", config(SHIPPED));
    let url = server.url();
    let run =
        |args: &str| Live::start(scratch.command(ENGINE, &format!("--nats {url} -o out {args}"))).wait();
    run(&format!("--http 0.0.0.0:{port}")).assert(2, "token");
    run("--http nowhere").assert(2, "nowhere");
    assert!(!scratch.path("out").exists());
}

#[test]
fn with_a_token_every_path_wants_it() {
    let (scratch, server, port) = (Scratch::new(), NatsServer::start(), free_port());
    let token_file = scratch.write("token", "sesame-http\n");
    let section = format!("http: {{listen: \"0.0.0.0:{port}\", token_file: {token_file:?}}}\n");
    scratch.write("config.yaml", config(SHIPPED) + &section);
    let _engine = scratch.start_engine(&format!("--nats {} -o out", server.url()));
    let status =
        |path: &str, head: &str| ask(port, &format!("GET {path}"), head, b"").map(|reply| reply.status);
    let with = "Authorization: Bearer sesame-http\r\n";
    wait_for("answer", || status("/healthz", with).ok());
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/api/v1/tasks", "/api/v1/nothing"] {
        for head in [
            "",
            "Authorization: Bearer sesame-htt\r\n",
            "Authorization: Bearer sesame-http2\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: Basic sesame-http\r\n",
        ] {
            assert_eq!(status(path, head).unwrap(), 401, "{path} with {head:?}");
        }
        let expected = if path.ends_with("nothing") { 404 } else { 200 };
        assert_eq!(status(path, with).unwrap(), expected, "{path}");
    }
}

// Before it runs, and what it says.

/// A folder for `--check` with secrets in all places that take them.
fn scratch_with_secrets(server: &NatsServer, of_clickhouse: &str) -> Scratch {
    let scratch = Scratch::new();
    let url = server.url().replace("nats://", "nats://tap:sesame-nats@");
    let token_file = scratch.write("token", "sesame-token");
    let password_file = scratch.write("password", "sesame-file");
    let writers = [
        format!("{of_clickhouse}, user: analyst, password: \"${{NETSPECTRA_TEST_SECRET}}\""),
        format!(
            "{of_clickhouse}, name: other, database: other, user: analyst, password_file: {password_file:?}"
        ),
        "type: parquet, path: parquet".to_owned(),
        "type: nats, subject: told".to_owned(),
    ];
    let writers: Vec<&str> = writers.iter().map(String::as_str).collect();
    let more = format!("http: {{listen: \"127.0.0.1:{}\", token_file: {token_file:?}}}\n", free_port());
    let config = with_writers(&config(SHIPPED), &writers);
    scratch.write("config.yaml", format!("nats:\n  url: \"{url}\"\n{config}{more}"));
    scratch
}

/// Runs `--check`, asserts that it leaves everything as it was and tells no secret, and gives what it did.
fn check(scratch: &Scratch) -> Run {
    let before = whole_tree(&scratch.path("."));
    let mut command = scratch.command(ENGINE, "--check");
    command.env("NETSPECTRA_TEST_SECRET", "sesame-file");
    let run = Live::start(command).wait();
    assert!(whole_tree(&scratch.path(".")) == before, "it has written something: {run:?}");
    let secrets = ["sesame-nats", "sesame-file", "sesame-token"];
    let told = secrets.iter().find(|secret| run.stdout.contains(**secret) || run.stderr.contains(**secret));
    assert!(told.is_none(), "it tells {told:?}: {run:?}");
    run
}

#[test]
fn a_check_shows_the_configuration_without_secrets_and_writes_nothing() {
    let server = NatsServer::with("authorization {user: tap, password: \"sesame-nats\"}");
    let front = Front::with("--user analyst --password sesame-file");
    let scratch = scratch_with_secrets(&server, &front.writer(""));
    let run = check(&scratch);
    run.assert(0, "");
    for shown in ["***", "per_five_tuple", "clickhouse", "parquet", "told", front.url().as_str()] {
        assert!(run.stdout.contains(shown), "it should show {shown}: {run:?}");
    }
    let databases = front.ask("SELECT count() FROM system.databases WHERE name IN ('netspectra', 'other')");
    assert_eq!(databases, "0\n");
}

#[test]
fn a_check_names_what_cannot_be_reached_or_may_not_be_used() {
    let authorization = "authorization {user: tap, password: \"sesame-nats\"}";
    let mut server = NatsServer::with(authorization);
    let mut front = Front::with("--user analyst --password sesame-file");
    let scratch = scratch_with_secrets(&server, &front.writer(""));
    // Another password than the one that is configured.
    let stranger = Front::with("--user analyst --password another");
    let refused = check(&scratch_with_secrets(&server, &stranger.writer("")));
    refused.assert(2, "analyst");
    front.kill();
    check(&scratch).assert(2, &front.url());
    front.come();
    check(&scratch).assert(0, "");
    let address = server.address().to_string();
    server.kill();
    let run = check(&scratch);
    run.assert(2, &address);
    // It goes on to the others, and shows the configuration all the same.
    assert!(run.stdout.contains("per_five_tuple"), "{run:?}");
}

#[test]
fn a_check_of_a_wrong_configuration_says_where_it_is_wrong() {
    let scratch = Scratch::new();
    scratch.write("config.yaml", with_writers(&config(SHIPPED), &["type: parket, path: p"]));
    check(&scratch).assert(2, "config.yaml:12:");
}

#[test]
fn a_log_for_programs_is_an_object_a_line() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    scratch.write("config.yaml", config(SHIPPED));
    let mut command = scratch.command(ENGINE, &format!("--nats {} -o out", server.url()));
    command.env("NETSPECTRA_LOG_FORMAT", "json");
    let mut engine = Live::start(command);
    engine.wait_until_says("subscribed to");
    let run = engine.stop();
    assert_eq!(run.code, Some(0), "{run:?}");
    let is_object = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    };
    assert!(run.stderr.lines().count() > 1, "{run:?}");
    run.stderr.lines().for_each(is_object);
    // A mistake that ends it is told so too.
    let mut command = scratch.command(ENGINE, "-c missing.yaml");
    command.env("NETSPECTRA_LOG_FORMAT", "json");
    let run = Live::start(command).wait();
    run.assert(2, "missing.yaml");
    run.stderr.lines().for_each(is_object);
}

#[test]
fn a_log_of_warnings_alone_does_not_tell_what_goes_well() {
    let (scratch, server) = (Scratch::new(), NatsServer::start());
    scratch.write("config.yaml", config(SHIPPED));
    let mut command = scratch.command(ENGINE, &format!("--nats {} -o out", server.url()));
    command.env("NETSPECTRA_LOG", "warn");
    let engine = Live::start(command);
    server.wait_until_subscribed();
    let run = engine.stop();
    assert_eq!((run.code, &*run.stderr), (Some(0), ""));
}
