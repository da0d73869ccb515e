//! What csv holds, to hold other writers against; ClickHouse, Parquet's readers and NATS as those who read
//! see them.
//!
//! Python programs come from the environment that `make test` makes; what is missing there fails the test
//! that needs it.

use super::live::{Live, number};
use super::{DEADLINE, Packet, SECOND, Scratch, mixed, read_json, wait_for, windows};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The csv writer of the configurations that tests make.
const CSV: &str = "  - {type: csv, path: ./snapshots}\n";
/// How soon a writer of a test tries again.
pub const SOON: &str = "retry: {first: 50ms, most: 400ms}";
/// The way out that a missing module is told with.
pub const INSTALL: &str = "`make test` installs it; by hand: pip install -r tests/requirements.txt";

/// A configuration with these writers behind its csv writer.
pub fn with_writers(config: &str, writers: &[&str]) -> String {
    assert!(config.contains(CSV), "{config}");
    let lines: String = writers.iter().map(|writer| format!("  - {{{writer}}}\n")).collect();
    config.replacen(CSV, &format!("{CSV}{lines}"), 1)
}

/// Packets of which every fiftieth comes long after its window has closed.
pub fn out_of_order(seed: u64, count: usize, span: u64) -> Vec<Packet> {
    let later = (60 * SECOND * count as u64 / span) as usize;
    let delayed = |at: usize| if at.is_multiple_of(50) { at + later } else { at };
    let packets = mixed(seed, count, span).into_iter().enumerate();
    let mut packets: Vec<_> = packets.map(|(at, packet)| (delayed(at), packet)).collect();
    packets.sort_by_key(|(place, _)| *place);
    packets.into_iter().map(|(_, packet)| packet).collect()
}

/// What does not change for a second any more.
pub fn at_rest<T: PartialEq>(look: impl Fn() -> T) -> T {
    let (mut last, mut since) = (look(), Instant::now());
    wait_for("rest", || {
        let now = look();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_secs(1)).then_some(())
    });
    last
}

/// A port of this machine that nobody uses.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

// What csv holds.

/// The table of a task in a window, cells as csv writes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// `window_start` and `window_end`; `None` for the window of everything.
    pub span: [Option<String>; 2],
    pub revision: u64,
    /// Nothing where a table of no rows does not tell it.
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Answer {
    fn new(told: &Value) -> Self {
        let time = |key: &str| told[key].as_str().map(str::to_owned);
        Self {
            span: [time("window_start"), time("window_end")],
            revision: number(&told["revision"]),
            header: Vec::new(),
            rows: Vec::new(),
        }
    }
}

/// Tables by window and task.
pub type Answers = BTreeMap<(String, String), Answer>;

/// The tables of a folder that the csv writer has written.
pub fn csv_answers(folder: &Path) -> Answers {
    let mut answers = Answers::new();
    for window in windows(folder) {
        let summary = read_json(&folder.join(&window).join("summary.json"));
        for task in summary["tasks"].as_object().unwrap().keys() {
            let path = folder.join(&window).join(format!("{task}.csv"));
            let mut reader = csv::Reader::from_path(&path).unwrap();
            let cells = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
            let mut answer = Answer::new(&summary);
            answer.header = cells(reader.headers().unwrap());
            answer.rows = reader.records().map(|record| cells(&record.unwrap())).collect();
            answers.insert((window.clone(), task.clone()), answer);
        }
    }
    assert!(!answers.is_empty(), "no window in {}", folder.display());
    answers
}

/// The same with their rows in an order of their own: for readers to whom a table has none.
pub fn unordered(mut answers: Answers) -> Answers {
    answers.values_mut().for_each(|answer| answer.rows.sort());
    answers
}

/// Asserts that two readings are the same.
pub fn assert_answers(expected: &Answers, found: &Answers, what: &str) {
    let places = |answers: &Answers| answers.keys().cloned().collect::<BTreeSet<_>>();
    let (expected_places, found_places) = (places(expected), places(found));
    let missing: Vec<_> = expected_places.difference(&found_places).collect();
    let excess: Vec<_> = found_places.difference(&expected_places).collect();
    assert!(missing.is_empty() && excess.is_empty(), "{what}: missing {missing:?}, not expected {excess:?}");
    for (place, expected) in expected {
        let found = &found[place];
        let heads = [expected, found].map(|answer| (&answer.span, answer.revision));
        assert_eq!(heads[0], heads[1], "{what}: {place:?}, window and revision (expected, found)");
        assert!(
            found.rows.is_empty() || expected.header == found.header,
            "{what}: {place:?}: columns {:?} (expected), {:?} (found)",
            expected.header,
            found.header
        );
        let differing = expected.rows.iter().zip(&found.rows).find(|(expected, found)| expected != found);
        let lengths = (expected.rows.len(), found.rows.len());
        assert!(
            expected.rows == found.rows,
            "{what}: {place:?}: {differing:?} (expected, found), rows {lengths:?}"
        );
    }
}

/// The highest revision among them.
pub fn most_revised(answers: &Answers) -> u64 {
    answers.values().map(|answer| answer.revision).max().unwrap()
}

/// How csv writes a cell of JSON.
pub fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Columns and cells of a row of JSON.
fn columns_and_cells(row: &Map<String, Value>) -> (Vec<String>, Vec<String>) {
    row.iter().map(|(column, value)| (column.clone(), cell(value))).unzip()
}

// JSON lines.

/// Puts a line in its table; gives the table's place. Lines come with what they are of in front of their
/// columns.
pub fn take_line(answers: &mut Answers, line: &str) -> (String, String) {
    const BEFORE: [&str; 4] = ["task", "window_start", "window_end", "revision"];
    let row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    let mut row = row.as_object().unwrap_or_else(|| panic!("no object: {line}")).clone();
    assert!(row.keys().take(4).eq(BEFORE), "{line}");
    let told = Value::Object(row.clone());
    BEFORE.iter().for_each(|key| drop(row.shift_remove(*key)));
    let window = told["window_start"].as_str().map_or("all".to_owned(), folder_name);
    let place = (window, told["task"].as_str().unwrap().to_owned());
    let (header, cells) = columns_and_cells(&row);
    let answer = answers.entry(place.clone()).or_insert_with(|| Answer::new(&told));
    let revision = number(&told["revision"]);
    if revision > answer.revision {
        *answer = Answer::new(&told);
    }
    assert_eq!(revision, answer.revision, "an earlier revision behind a later one: {line}");
    assert!(answer.rows.is_empty() || answer.header == header, "{line}");
    answer.header = header;
    answer.rows.push(cells);
    place
}

/// A window's folder by its first time.
fn folder_name(start: &str) -> String {
    format!("{}Z", start[..19].replace(':', "-"))
}

/// The tables of a folder of JSON lines.
pub fn jsonl_answers(folder: &Path) -> Answers {
    let mut answers = Answers::new();
    for window in windows(folder) {
        let summary = read_json(&folder.join(&window).join("summary.json"));
        for task in summary["tasks"].as_object().unwrap().keys() {
            let place = (window.clone(), task.clone());
            answers.insert(place.clone(), Answer::new(&summary));
            let text = fs::read_to_string(folder.join(&window).join(format!("{task}.jsonl"))).unwrap();
            for line in text.lines() {
                assert_eq!(take_line(&mut answers, line), place, "{line}");
            }
        }
    }
    answers
}

// Programs in Python.

/// The interpreter that has the modules of `tests/requirements.txt`.
pub fn python() -> Command {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("test-python/bin/python3");
    let found = env::var_os("NETSPECTRA_TEST_PYTHON").map(PathBuf::from);
    Command::new(found.unwrap_or_else(|| if own.is_file() { own } else { "python3".into() }))
}

/// A program of this folder.
fn script(name: &str) -> Command {
    let mut command = python();
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name));
    command
}

// HTTP.

/// What a server has answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Asks a server of this machine; the answer ends with the connection. Lines of the head end with CR and
/// LF.
pub fn ask(port: u16, request: &str, head: &str, body: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{request} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n{head}{length}\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let answer = String::from_utf8_lossy(&bytes);
    let cut_off =
        || io::Error::new(io::ErrorKind::UnexpectedEof, format!("no answer to {request}: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut_off)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(cut_off)?;
    Ok(Reply { status, head: head.to_lowercase(), body: body.to_owned() })
}

pub fn get(port: u16, path: &str) -> Reply {
    ask(port, &format!("GET {path}"), "", b"").unwrap_or_else(|error| panic!("GET {path}: {error}"))
}

// ClickHouse.

/// ClickHouse on a port of its own; dropped, it is killed.
pub struct Front {
    folder: TempDir,
    port: u16,
    pub options: String,
    running: Option<Live>,
}

impl Front {
    pub fn start() -> Self {
        Self::with("")
    }

    /// One with these options of `clickhouse_front.py`.
    pub fn with(options: &str) -> Self {
        let mut front = Self { options: options.to_owned(), ..Self::away() };
        front.come();
        front
    }

    /// One that has not come yet: its port is known, and nobody answers.
    pub fn away() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, port: free_port(), options: String::new(), running: None }
    }

    /// Starts it, with all tables that it had.
    pub fn come(&mut self) {
        let mut command = script("clickhouse_front.py");
        command.arg(self.folder.path()).arg(self.port.to_string()).args(self.options.split_whitespace());
        let mut running = Live::start(command);
        running.wait_until_says("ready ");
        self.running = Some(running);
    }

    /// A SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A writer to it, with more options.
    pub fn writer(&self, more: &str) -> String {
        format!("type: clickhouse, url: \"{}\"{more}", self.url())
    }

    /// One that does not wait long before it tries again.
    pub fn soon(&self, more: &str) -> String {
        self.writer(&format!(", {SOON}{more}"))
    }

    /// Asks as a user who may; gives the answer, or else what ClickHouse says.
    pub fn try_ask(&self, sql: &str) -> Result<String, String> {
        let words: Vec<_> = self.options.split_whitespace().collect();
        let option = |name: &str| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
        let user = option("--user").map_or_else(String::new, |user| {
            let password = option("--password").unwrap_or_default();
            format!("X-ClickHouse-User: {user}\r\nX-ClickHouse-Key: {password}\r\n")
        });
        let reply = ask(self.port, "POST /", &user, sql.as_bytes()).map_err(|error| error.to_string())?;
        if reply.status == 200 { Ok(reply.body) } else { Err(reply.body) }
    }

    pub fn ask(&self, sql: &str) -> String {
        self.try_ask(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Cells of the answer.
    fn cells(&self, sql: &str) -> Vec<Vec<String>> {
        let answer = self.ask(sql);
        answer.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    }

    /// How many windows can be seen; none where there is no table yet.
    pub fn windows(&self) -> usize {
        let counted = self.try_ask("SELECT uniqExact(window) FROM netspectra.snapshots FINAL");
        counted.map_or(0, |count| count.trim().parse().unwrap())
    }

    /// All that the views show of these tasks, rows in an order of their own.
    pub fn answers(&self, tasks: &BTreeSet<&str>) -> Answers {
        let mut answers = Answers::new();
        let seen = "SELECT window, task, window_start, window_end, revision FROM netspectra.snapshots FINAL";
        for cells in self.cells(seen) {
            let [window, task, start, end, revision]: [String; 5] = cells.try_into().unwrap();
            // The window of everything has no times: these are the epoch.
            let span = [start, end].map(|text| (window != "all").then(|| time(&text)));
            let revision = revision.parse().unwrap();
            let answer = Answer { span, revision, header: Vec::new(), rows: Vec::new() };
            let twice = answers.insert((window.clone(), task.clone()), answer);
            assert!(twice.is_none(), "{task} of {window} is there twice");
        }
        for task in tasks {
            let sql = format!("SELECT * FROM netspectra.`{task}` FORMAT TabSeparatedWithNamesAndTypes");
            let mut lines = self.cells(&sql).into_iter();
            // A table of no rows has a head all the same.
            let (names, types) = (lines.next().unwrap(), lines.next().unwrap());
            assert_eq!(names[..3], ["window_start", "window_end", "revision"], "{task}");
            for line in lines {
                let cells = line.into_iter().zip(&types).map(|(cell, kind)| as_csv(cell, kind));
                let cells: Vec<_> = cells.collect();
                let all = cells[0].starts_with("1970-01-01T00:00:00.");
                let window = if all { "all".to_owned() } else { folder_name(&cells[0]) };
                let place = (window, (*task).to_owned());
                let answer =
                    answers.get_mut(&place).unwrap_or_else(|| panic!("{place:?} has rows, and no snapshot"));
                assert_eq!(cells[2], answer.revision.to_string(), "{place:?}");
                if !all {
                    let span = [&cells[0], &cells[1]].map(|time| Some(time.clone()));
                    assert_eq!(span, answer.span, "{place:?}");
                }
                answer.header = names[3..].to_vec();
                answer.rows.push(cells[3..].to_vec());
            }
        }
        unordered(answers)
    }

    /// Packets and bytes of a task by the first times of windows.
    fn sums(&self, task: &str) -> BTreeMap<String, [u64; 2]> {
        let sql = format!(
            "SELECT window_start, sum(packets), sum(bytes) FROM netspectra.`{task}` GROUP BY window_start"
        );
        let sum = |cells: Vec<String>| {
            let [start, packets, bytes]: [String; 3] = cells.try_into().unwrap();
            (time(&start), [packets, bytes].map(|sum: String| sum.parse().unwrap()))
        };
        self.cells(&sql).into_iter().map(sum).collect()
    }
}

/// ClickHouse's time as RFC 3339.
fn time(text: &str) -> String {
    format!("{}Z", text.replacen(' ', "T", 1))
}

/// A cell as csv writes it.
fn as_csv(text: String, kind: &str) -> String {
    match kind {
        "IPv6" => text.parse::<Ipv6Addr>().unwrap().to_canonical().to_string(),
        kind if kind.starts_with("DateTime64") => time(&text),
        _ => text,
    }
}

/// Asserts that ClickHouse shows what a folder of csv holds, of tasks that count packets and bytes: rows,
/// sums and `snapshots`, each once.
pub fn assert_clickhouse(front: &Front, folder: &Path, what: &str) {
    let expected = csv_answers(folder);
    let tasks: BTreeSet<&str> = expected.keys().map(|(_, task)| &**task).collect();
    assert_answers(&unordered(expected.clone()), &front.answers(&tasks), what);
    let (mut sums, mut snapshots) = (BTreeMap::new(), BTreeMap::new());
    for (window, task) in expected.keys() {
        let summary = read_json(&folder.join(window).join("summary.json"));
        let [rows, packets, bytes] =
            ["rows", "packets", "bytes"].map(|of| number(&summary["tasks"][task][of]));
        let start = summary["window_start"].as_str().unwrap_or("1970-01-01T00:00:00.000000000Z");
        sums.insert((task.clone(), start.to_owned()), [packets, bytes]);
        snapshots.insert((window.clone(), task.clone()), [rows, packets, bytes]);
    }
    let shown = tasks.iter().flat_map(|task| {
        front.sums(task).into_iter().map(move |(start, sums)| (((*task).to_owned(), start), sums))
    });
    let shown: BTreeMap<(String, String), [u64; 2]> = shown.collect();
    assert_eq!(sums, shown, "{what}: sums of packets and bytes");
    let told = front.cells("SELECT window, task, rows, packets, bytes FROM netspectra.snapshots FINAL");
    let told = told.into_iter().map(|cells| {
        let [window, task, counts @ ..]: [String; 5] = cells.try_into().unwrap();
        ((window, task), counts.map(|count| count.parse::<u64>().unwrap()))
    });
    let told: BTreeMap<(String, String), [u64; 3]> = told.collect();
    assert_eq!(snapshots, told, "{what}: the table `snapshots`");
}

// Parquet.

/// What a reader has found in a folder of Parquet, a file each.
pub fn read_parquet(reader: &str, folder: &Path) -> Vec<Value> {
    let run = script("read_parquet.py").arg(reader).arg(folder).output().unwrap();
    assert!(run.status.success(), "{reader}: {}", String::from_utf8_lossy(&run.stderr));
    let lines = String::from_utf8(run.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Types of a column for pyarrow and DuckDB, by its name and, where that says nothing, by a cell of it.
fn types(column: &str, cell: Option<&str>) -> Option<[&'static str; 2]> {
    Some(match column {
        "src_ip" | "dst_ip" | "src_prefix" | "dst_prefix" => ["string", "VARCHAR"],
        "src_port" | "dst_port" | "vlan" => ["uint16", "USMALLINT"],
        "protocol" | "tcp_flags" | "ip_version" => ["uint8", "UTINYINT"],
        _ if cell?.ends_with('Z') => ["timestamp[ns, tz=UTC]", "TIMESTAMPTZ_NS"],
        _ => ["uint64", "UBIGINT"],
    })
}

/// Asserts that both readers find in a folder of Parquet the tables of a folder of csv, rows in the same
/// order, with the types, metadata and statistics that were promised, and that the summaries are the same.
pub fn assert_parquet(folder: &Path, csv: &Path, what: &str) {
    let answers = csv_answers(csv);
    for (number, reader) in ["pyarrow", "duckdb"].into_iter().enumerate() {
        let mut found = BTreeSet::new();
        for file in read_parquet(reader, folder) {
            let text = |key: &str| file[key].as_str().unwrap().to_owned();
            let (window, task) = (text("window"), text("task"));
            let what = format!("{what}: {task} of {window}, read by {reader}");
            let expected = fs::read_to_string(csv.join(&window).join(format!("{task}.csv")));
            let expected = expected.unwrap_or_else(|error| panic!("{what}: csv has none: {error}"));
            let rows = text("csv");
            let differing = expected.lines().zip(rows.lines()).find(|(expected, found)| expected != found);
            assert!(expected == rows, "{what}: {differing:?} (expected, found)");
            let place = (window, task);
            let answer = &answers[&place];
            for (at, column) in answer.header.iter().enumerate() {
                if let Some(types) = types(column, answer.rows.first().map(|row| &*row[at])) {
                    assert_eq!(file["types"][column], types[number], "{what}: {column}");
                }
            }
            if reader == "pyarrow" {
                assert_told(&file, &place.1, answer, &what);
            }
            assert!(found.insert(place), "{what}: twice");
        }
        assert!(found.iter().eq(answers.keys()), "{what}: {reader} finds {found:?} of {:?}", answers.keys());
    }
    for window in windows(csv) {
        let theirs = read_json(&folder.join(format!("window={window}")).join("_summary.json"));
        assert_eq!(theirs, read_json(&csv.join(&window).join("summary.json")), "{what}: summary of {window}");
    }
}

/// Asserts what pyarrow tells of a file beside its rows.
fn assert_told(file: &Value, task: &str, answer: &Answer, what: &str) {
    let [start, end] = answer.span.each_ref().map(|time| time.clone().unwrap_or_default());
    let revision = answer.revision.to_string();
    let metadata =
        [("task", task), ("window_start", &*start), ("window_end", &*end), ("revision", &*revision)];
    for (key, value) in metadata {
        assert_eq!(file["metadata"][format!("netspectra.{key}")], value, "{what}: {key}");
    }
    let groups: Vec<u64> = file["groups"].as_array().unwrap().iter().map(number).collect();
    assert_eq!(groups.iter().sum::<u64>(), answer.rows.len() as u64, "{what}: {groups:?}");
    assert!(groups.iter().rev().skip(1).all(|rows| *rows == 131_072), "{what}: {groups:?}");
    if !answer.rows.is_empty() {
        assert_eq!(file["codecs"], serde_json::json!(["ZSTD"]), "{what}");
        assert_eq!(file["has_statistics"], true, "{what}");
    }
}

/// The files of Parquet that `FOLDER/*/*/*.parquet` names for a reader to whom a dot at the beginning of a
/// name says nothing, as DuckDB.
pub fn glob_parquet(folder: &Path) -> Vec<PathBuf> {
    let below = |path: &Path| {
        // What is renamed meanwhile is not there any more.
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let folders = below(folder).into_iter().flat_map(|window| below(&window));
    let files = folders.flat_map(|task| below(&task));
    files.filter(|path| path.extension().is_some_and(|end| end == "parquet")).collect()
}

// NATS.

/// A message as a subscriber gets it.
#[derive(Clone, Debug)]
pub struct Message {
    pub subject: String,
    /// The header `Nats-Msg-Id`.
    pub id: String,
    pub bytes: usize,
    pub payload: Value,
}

/// A subscriber that speaks the plain protocol and takes headers.
pub struct Listener {
    stream: BufReader<TcpStream>,
    subscriptions: usize,
}

impl Listener {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut listener = Self { stream: BufReader::new(stream), subscriptions: 0 };
        listener.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n");
        listener
    }

    fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub fn subscribe(&mut self, subject: &str) {
        self.subscriptions += 1;
        let number = self.subscriptions;
        self.send(&format!("SUB {subject} {number}\r\n"));
        assert!(self.drain().is_empty());
    }

    /// All messages that have come before the server answers to this.
    pub fn drain(&mut self) -> Vec<Message> {
        self.send("PING\r\n");
        let mut messages = Vec::new();
        loop {
            match self.read() {
                Some(message) => messages.push(message),
                None => return messages,
            }
        }
    }

    /// The next message.
    pub fn next(&mut self) -> Message {
        self.read().expect("a message")
    }

    /// A request to JetStream, and its answer.
    pub fn request(&mut self, subject: &str, request: &Value) -> Value {
        let inbox = format!("_INBOX.test.{}", self.subscriptions);
        self.subscribe(&inbox);
        let request = request.to_string();
        self.send(&format!("PUB {subject} {inbox} {}\r\n{request}\r\n", request.len()));
        let answer = self.next();
        assert_eq!(answer.subject, inbox, "{answer:?}");
        assert!(answer.payload["error"].is_null(), "{subject}: {answer:?}");
        answer.payload
    }

    /// Reads up to the next message, or to the answer to a PING (`None`).
    fn read(&mut self) -> Option<Message> {
        loop {
            let mut line = String::new();
            assert_ne!(self.stream.read_line(&mut line).unwrap(), 0, "the server has closed the connection");
            let words: Vec<_> = line.split_whitespace().collect();
            match words[0] {
                "PING" => self.send("PONG\r\n"),
                "PONG" => return None,
                "-ERR" => panic!("{line}"),
                "MSG" | "HMSG" => {
                    let length = |word: &str| word.parse::<usize>().unwrap();
                    let head = if words[0] == "HMSG" { length(words[words.len() - 2]) } else { 0 };
                    let mut payload = vec![0; length(words[words.len() - 1]) + 2];
                    self.stream.read_exact(&mut payload).unwrap();
                    payload.truncate(payload.len() - 2);
                    let body = payload.split_off(head);
                    let head = String::from_utf8(payload).unwrap();
                    let id = head.lines().find_map(|line| line.strip_prefix("Nats-Msg-Id:"));
                    return Some(Message {
                        subject: words[1].to_owned(),
                        id: id.unwrap_or_default().trim().to_owned(),
                        bytes: body.len(),
                        payload: serde_json::from_slice(&body)
                            .unwrap_or_else(|error| panic!("{error}: {line}")),
                    });
                }
                _ => {}
            }
        }
    }
}

/// What a subscriber has put together of messages under a subject.
#[derive(Default)]
pub struct Heard {
    pub answers: Answers,
    /// Events of alerts, in the order in which they came.
    pub alerts: Vec<Value>,
    /// Windows that were told of as whole.
    pub windows: Vec<String>,
    /// The most parts that a table had.
    pub most_parts: u64,
    /// Parts that are still to come, by window, task and revision.
    due: BTreeMap<(String, String, u64), u64>,
}

impl Heard {
    /// Takes a message of `subject` and below, and asserts that it may come now.
    pub fn take(&mut self, subject: &str, message: &Message) {
        const LIMIT: usize = 512 << 10;
        assert!(message.bytes < LIMIT, "{} bytes on {}", message.bytes, message.subject);
        let last = message.subject.strip_prefix(&format!("{subject}."));
        let last = last.unwrap_or_else(|| panic!("{message:?}"));
        let payload = &message.payload;
        match last {
            "alerts" => self.alerts.push(payload.clone()),
            "windows" => self.window(message),
            task => {
                assert_eq!(payload["task"], task, "{message:?}");
                let window = payload["window_start"].as_str().map_or("all".to_owned(), folder_name);
                let [revision, part, parts] = ["revision", "part", "parts"].map(|key| number(&payload[key]));
                // When the run began comes last.
                let id = message.id.rsplit_once('-').unwrap().0;
                assert_eq!(id, format!("{task}-{window}-{revision}-{part}"));
                let due = self.due.entry((window.clone(), task.to_owned(), revision)).or_insert(0);
                assert_eq!(*due, part, "parts in their order: {}", message.id);
                *due = part + 1;
                assert!(part < parts, "{}: part {part} of {parts}", message.id);
                self.most_parts = self.most_parts.max(parts);
                let place = (window, task.to_owned());
                if part == 0 {
                    self.answers.insert(place.clone(), Answer::new(payload));
                }
                let answer = self.answers.get_mut(&place).unwrap();
                for row in payload["rows"].as_array().unwrap() {
                    let (header, cells) = columns_and_cells(row.as_object().unwrap());
                    answer.header = header;
                    answer.rows.push(cells);
                }
                if part + 1 == parts {
                    // Whole.
                    self.due.insert((place.0, place.1, revision), u64::MAX);
                }
            }
        }
    }

    /// Asserts that all tables of a window have come before it is told of.
    fn window(&mut self, message: &Message) {
        let told = &message.payload;
        let (window, revision) = (told["window"].as_str().unwrap().to_owned(), number(&told["revision"]));
        assert_eq!(message.id.rsplit_once('-').unwrap().0, format!("windows-{window}-{revision}"));
        for (task, totals) in told["tasks"].as_object().unwrap() {
            let whole = self.due.get(&(window.clone(), task.clone(), revision)) == Some(&u64::MAX);
            assert!(whole, "{window} is told of before all of {task} has come");
            let rows = self.answers[&(window.clone(), task.clone())].rows.len() as u64;
            assert_eq!(number(&totals["rows"]), rows, "{task} of {window}");
        }
        self.windows.push(window);
    }
}

// Time.

/// Lets what runs go on for a while that is drawn: a kill comes at any time.
pub fn let_go_on(random: &mut super::Random, most: u64) {
    thread::sleep(Duration::from_millis(random.below(most)));
}

impl Scratch {
    /// The tables that csv has left in a folder here.
    pub fn csv_answers(&self, folder: &str) -> Answers {
        csv_answers(&self.path(folder))
    }
}
