//! A real nats-server and its plain protocol, two joined network namespaces, and programs watched while they run.
//!
//! Every program that is missing fails the test that needs it, with the name of its Debian package.

use super::{
    DEADLINE, Packet, QUERIES, Run, Running, SECOND, Scratch, entries, mixed, pcap, read_json, tree,
    wait_for, windows,
};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const PROBE: &str = env!("CARGO_BIN_EXE_ns-probe");
pub const ENGINE: &str = env!("CARGO_BIN_EXE_ns-engine");
/// Where the Debian packages put what the tests run.
const PACKAGES: [(&str, &str); 12] = [
    ("ip", "iproute2"),
    ("nats-server", "nats-server"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("perl", "perl-base"),
    ("promtool", "prometheus"),
    ("setpriv", "util-linux"),
    ("strace", "strace"),
    ("systemd-analyze", "systemd"),
    ("tcpdump", "tcpdump"),
    ("tcpreplay", "tcpreplay"),
    ("unshare", "util-linux"),
];

/// The path of a program that the tests need.
pub fn tool(name: &str) -> PathBuf {
    let (_, package) = PACKAGES.iter().find(|(tool, _)| *tool == name).unwrap();
    let path = env::var_os("PATH").unwrap_or_default();
    // A user's path often lacks the folders of the administrator's programs.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; on Debian: apt-get install {package}"))
}

fn tool_name(name: &str) -> String {
    tool(name).into_os_string().into_string().unwrap()
}

// Programs.

/// A running program whose standard error can be read meanwhile; dropped, it is killed.
pub struct Live {
    running: Running,
    said: Arc<Mutex<String>>,
}

impl Live {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdout, stderr) = (child.stdout.take().unwrap(), BufReader::new(child.stderr.take().unwrap()));
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        let listen = move || {
            stderr.lines().for_each(|line| *heard.lock().unwrap() += &format!("{}\n", line.unwrap()));
            heard.lock().unwrap().clone()
        };
        let outputs = vec![thread::spawn(|| io::read_to_string(stdout).unwrap()), thread::spawn(listen)];
        Self { running: Running { child, outputs }, said }
    }

    pub fn id(&self) -> u32 {
        self.running.child.id()
    }

    /// What it has said on standard error so far.
    pub fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Waits for a text on standard error; a program that ends instead of saying it fails the test.
    pub fn wait_until_says(&mut self, text: &str) {
        wait_for(&format!("{text:?} on standard error"), || {
            if self.is_over() {
                panic!("it has ended without having said {text:?}: {:?}", self.wait());
            }
            self.said().contains(text).then_some(())
        });
    }

    /// Tells it to stop, and waits for its end.
    pub fn stop(mut self) -> Run {
        self.signal("TERM");
        self.wait()
    }

    /// Closes its standard input and waits for its end.
    pub fn finish(mut self) -> Run {
        drop(self.running.child.stdin.take());
        self.wait()
    }

    /// Tells it to stop, asserts that it ends well, and gives the ledger of this folder once it balances.
    pub fn stop_engine(self, folder: &Path) -> Value {
        self.signal("TERM");
        self.ledger(folder)
    }

    /// Tells it to stop before it goes on, where it was frozen.
    pub fn stop_frozen(&self) {
        self.signal("INT");
        self.signal("CONT");
    }

    /// Waits for the end of an engine that was told to stop, asserts that it ends well, and gives the ledger of this
    /// folder once it balances.
    pub fn ledger(mut self, folder: &Path) -> Value {
        let run = self.wait();
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(!run.stderr.contains("internal error") && !run.stderr.contains("panicked"), "{run:?}");
        assert_balanced(folder)
    }

    /// Waits for the end of a probe that was started with `--json`, and gives its report.
    pub fn report(self) -> Value {
        self.report_and_run(0).0
    }

    /// The report of one that ends with this exit status, and all that it has said.
    pub fn report_and_run(mut self, code: i32) -> (Value, Run) {
        let run = self.wait();
        assert_eq!(run.code, Some(code), "{run:?}");
        let report: Value =
            serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
        let packets = &report["packets"];
        let parts = ["filtered", "non_ip", "malformed", "sent", "dropped"].map(|part| number(&packets[part]));
        assert_eq!(number(&packets["read"]), parts.iter().sum::<u64>(), "{report}");
        (report, run)
    }

    /// Writes a capture without end to its standard input, a minute of event time after the other.
    pub fn flood(&mut self) {
        let mut stdin = self.running.child.stdin.take().unwrap();
        let mut packets = mixed(5, 10_000, 60 * SECOND);
        thread::spawn(move || {
            // Fails when the program has ended.
            let mut written = stdin.write_all(&pcap(&[]));
            while written.is_ok() {
                written = stdin.write_all(&pcap(&packets)[super::FILE_HEADER..]);
                packets.iter_mut().for_each(|packet| packet.time += 60 * SECOND);
            }
        });
    }

    /// The most memory that it has had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// Seconds of processor time that it has used.
    pub fn processor_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        // The name, in parentheses, may hold blanks. Linux counts in hundredths of a second.
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
    }
}

impl Deref for Live {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.running
    }
}

impl DerefMut for Live {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.running
    }
}

/// Words, or anything between single quotes.
fn words(args: &str) -> impl Iterator<Item = &str> {
    args.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    })
}

impl Scratch {
    /// A program that will run in this folder.
    pub fn command(&self, program: &str, args: &str) -> Command {
        self.command_in(&Place::default(), program, args)
    }

    pub fn command_in(&self, place: &Place, program: &str, args: &str) -> Command {
        let mut command = place.command(program);
        command.args(words(args)).current_dir(self.path("."));
        command
    }

    /// Starts an engine and waits until no packet passes it by.
    pub fn start_engine(&self, args: &str) -> Live {
        self.start_engine_in(&Place::default(), args)
    }

    pub fn start_engine_in(&self, place: &Place, args: &str) -> Live {
        let mut engine = Live::start(self.command_in(place, ENGINE, args));
        engine.wait_until_says(if args.contains("--iface") { "capturing on" } else { "subscribed to" });
        engine
    }

    pub fn start_probe(&self, args: &str) -> Live {
        Live::start(self.command(PROBE, args))
    }

    /// Publishes a capture, and gives the probe's report.
    pub fn replay(&self, args: &str) -> Value {
        self.start_probe(&format!("--json {args}")).report()
    }
}

// What programs leave.

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} should be a number"))
}

/// Every file of every window under a folder.
pub fn snapshots(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = tree(folder);
    files.remove(Path::new("ledger.json"));
    files
}

/// The tables among them: what they hold does not depend on when packets came.
pub fn tables(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = snapshots(folder);
    files.retain(|path, _| path.extension().is_some_and(|extension| extension == "csv"));
    files
}

/// The sum of a column over all rows of a table, if it has that column.
fn total(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let column = lines.next().unwrap().split(',').position(|column| column == name)?;
    Some(lines.map(|line| line.split(',').nth(column).unwrap().parse::<u64>().unwrap()).sum())
}

/// Asserts that the books balance, in total and over the inputs, that each table of each window holds what its
/// summary says and all windows what was counted, and that nothing else is left; gives the ledger.
pub fn assert_balanced(folder: &Path) -> Value {
    let ledger = read_json(&folder.join("ledger.json"));
    let packets = |part: &str| number(&ledger["packets"][part]);
    let accounts = ["counted", "filtered", "non_ip", "malformed"];
    assert_eq!(packets("read"), accounts.map(packets).iter().sum::<u64>(), "{ledger}");
    for (part, of_input) in [("read", "packets"), ("late", "late"), ("lost", "lost")]
        .into_iter()
        .chain(accounts.map(|part| (part, part)))
    {
        let inputs = ledger["inputs"].as_array().unwrap();
        let sum: u64 = inputs.iter().map(|input| number(&input[of_input])).sum();
        assert_eq!(packets(part), sum, "{part} over the inputs: {ledger}");
    }
    let mut held: BTreeMap<(String, &str), u64> = BTreeMap::new();
    for window in windows(folder) {
        let folder = folder.join(window);
        for (task, said) in read_json(&folder.join("summary.json"))["tasks"].as_object().unwrap() {
            // These count something else.
            if QUERIES.contains(&format!("name: {task},")) {
                continue;
            }
            // A task may have other measures.
            for name in ["packets", "bytes"] {
                let Some(total) = total(&folder.join(format!("{task}.csv")), name) else { continue };
                assert_eq!(total, number(&said[name]), "{name} of {task} in {folder:?}");
                *held.entry((task.clone(), name)).or_default() += total;
            }
        }
    }
    for ((task, name), sum) in &held {
        assert_eq!(*sum, number(&ledger[*name]["counted"]), "{name} of {task}: {ledger}");
    }
    assert!(!held.is_empty() || packets("counted") == 0, "{ledger}");
    assert_eq!(number(&ledger["windows"]), windows(folder).len() as u64);
    assert!(!entries(folder).iter().any(|name| name.starts_with('.')), "{:?}", entries(folder));
    ledger
}

/// Asserts that a probe's packets were counted, or are known to be lost; gives how many are lost.
pub fn assert_accounted(report: &Value, account: &Value) -> u64 {
    let lost = number(&account["lost"]);
    let sent = number(&report["packets"]["sent"]) + number(&report["packets"]["dropped"]);
    assert_eq!(sent, number(&account["counted"]) + lost, "{report}\n{account}");
    lost
}

/// The ledger's entry of a probe.
pub fn input<'a>(ledger: &'a Value, probe: &str) -> &'a Value {
    let mut inputs = ledger["inputs"].as_array().unwrap().iter();
    let named = inputs.find(|input| input["name"].as_str().is_some_and(|name| name.contains(probe)));
    named.unwrap_or_else(|| panic!("no input {probe}: {ledger}"))
}

// Messages.

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 127 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A protobuf field of bytes.
fn field(tag: u64, bytes: &[u8]) -> Vec<u8> {
    [&varint(tag << 3 | 2), &varint(bytes.len() as u64), bytes].concat()
}

fn number_field(tag: u64, number: u64) -> Vec<u8> {
    [varint(tag << 3), varint(number)].concat()
}

fn fixed_field(tag: u64, number: u64) -> Vec<u8> {
    [&varint(tag << 3 | 1), &number.to_le_bytes()[..]].concat()
}

/// A packet as a `PacketInfo` message.
pub fn packet_info(packet: &Packet) -> Vec<u8> {
    let address = |tag, address| match address {
        IpAddr::V4(v4) => field(tag, &v4.octets()),
        IpAddr::V6(v6) => field(tag, &v6.octets()),
    };
    let time = [number_field(1, packet.time / SECOND), number_field(2, packet.time % SECOND)].concat();
    let flow = [
        address(1, packet.source),
        address(2, packet.destination),
        number_field(3, packet.ports.0.into()),
        number_field(4, packet.ports.1.into()),
        number_field(5, packet.protocol.into()),
    ];
    [field(1, &time), field(2, &flow.concat()), number_field(3, packet.length.into())].concat()
}

/// The fields of a message: their tags, with numbers or bytes.
fn fields(mut message: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    let number = |message: &mut &[u8]| {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = message.split_off_first().unwrap();
            value |= u64::from(byte & 127) << shift;
            if byte < &128 {
                break;
            }
        }
        value
    };
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message);
        let (value, length) = match key & 7 {
            0 => (number(&mut message), 0),
            1 => (0, 8),
            2 => (0, number(&mut message) as usize),
            5 => (0, 4),
            kind => panic!("a field of kind {kind}"),
        };
        fields.push((key >> 3, value, message.split_off(..length).unwrap().to_vec()));
    }
    fields
}

/// The numbers of the packets in a `PacketBatch` message.
pub fn batch_numbers(message: &[u8]) -> std::ops::Range<u64> {
    let fields = fields(message);
    let number = |tag| fields.iter().find(|field| field.0 == tag).map_or(0, |field| field.1);
    number(5)..number(5) + number(4)
}

/// The time in a `PacketInfo` message.
pub fn packet_info_time(message: &[u8]) -> u64 {
    let time = fields(message).into_iter().find(|field| field.0 == 1).map(|field| fields(&field.2)).unwrap();
    let number = |tag| time.iter().find(|field| field.0 == tag).map_or(0, |field| field.1);
    number(1) * SECOND + number(2)
}

/// What a probe says became of its frames; what it has sent follows from the numbers of its packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accounts {
    pub filtered: u64,
    pub uncounted_bytes: u64,
    pub dropped: u64,
    pub kernel_dropped: u64,
}

impl Accounts {
    fn encode(&self, sent: u64) -> Vec<u8> {
        let Self { filtered, uncounted_bytes, dropped, kernel_dropped } = *self;
        let counts = [(1, filtered), (4, uncounted_bytes), (5, sent), (6, dropped), (7, kernel_dropped)];
        counts.iter().flat_map(|(tag, count)| number_field(*tag, *count)).collect()
    }
}

/// A `PacketBatch` of IPv4; without packets it is a heartbeat.
#[derive(Clone, Debug)]
pub struct Batch {
    pub probe: &'static str,
    pub run: u64,
    /// When the run began.
    pub started: u64,
    pub sequence: u64,
    /// Number of its first packet.
    pub first: u64,
    pub packets: Vec<Packet>,
    /// Latest time of all frames through this batch.
    pub latest: u64,
    pub accounts: Accounts,
    pub last: bool,
}

impl Batch {
    /// A batch of a probe's first run, of packets in time order.
    pub fn new(probe: &'static str, started: u64, sequence: u64, first: u64, packets: &[Packet]) -> Self {
        let latest = packets.last().map_or(0, |packet| packet.time);
        let (accounts, packets) = (Accounts::default(), packets.to_vec());
        Self { probe, run: 1, started, sequence, first, packets, latest, accounts, last: false }
    }

    fn encode(&self) -> Vec<u8> {
        let column = |of: &dyn Fn(&Packet) -> Vec<u8>| self.packets.iter().flat_map(of).collect::<Vec<u8>>();
        let transport = |packet: &Packet| {
            let (source, destination) = packet.ports;
            let vlan = u64::from(packet.vlan.unwrap_or(0));
            let ports = u64::from(source) << 48 | u64::from(destination) << 32;
            let number =
                ports | u64::from(packet.protocol) << 24 | u64::from(packet.flags) << 16 | vlan << 4 | 4;
            number.to_le_bytes().to_vec()
        };
        let addresses = |packet: &Packet| {
            let number = |address| match address {
                IpAddr::V4(v4) => v4.to_bits().to_le_bytes(),
                IpAddr::V6(v6) => panic!("{v6} in a batch of IPv4"),
            };
            [packet.source, packet.destination].map(number).concat()
        };
        let earliest = self.packets.first().map_or(self.latest, |packet| packet.time);
        let count = self.packets.len() as u64;
        [
            field(1, self.probe.as_bytes()),
            fixed_field(2, self.run),
            number_field(3, self.sequence),
            number_field(4, count),
            number_field(5, self.first),
            fixed_field(6, earliest),
            fixed_field(7, self.latest),
            field(8, &self.accounts.encode(self.first)),
            field(9, &self.accounts.encode(self.first + count)),
            number_field(10, self.last.into()),
            fixed_field(11, self.started),
            fixed_field(16, earliest),
            field(18, &column(&|packet| packet.time.to_le_bytes().to_vec())),
            field(19, &column(&transport)),
            field(20, &column(&|packet| packet.length.to_le_bytes().to_vec())),
            field(21, &column(&addresses)),
        ]
        .concat()
    }
}

/// What an engine, that is not ours, says that it has taken of a probe's first run.
pub fn taken(probe: &str, packets: std::ops::Range<u64>) -> Vec<u8> {
    let numbers = [number_field(3, packets.start), number_field(4, packets.end)].concat();
    let range = [field(1, probe.as_bytes()), fixed_field(2, 1), numbers].concat();
    [fixed_field(1, 99), field(2, &range)].concat()
}

// The server.

/// Where a program runs: what stands before its command line.
#[derive(Clone, Debug, Default)]
pub struct Place {
    before: Vec<String>,
}

impl Place {
    pub fn command(&self, program: &str) -> Command {
        let mut line = self.before.iter().map(String::as_str).chain([program]);
        let mut command = Command::new(line.next().unwrap());
        command.args(line);
        command
    }

    /// The same place, where the program has no capability but `CAP_NET_RAW`.
    pub fn with_net_raw_only(&self) -> Self {
        let only = [tool_name("setpriv"), "--bounding-set=-all,+net_raw".into()];
        Self { before: self.before.iter().cloned().chain(only).collect() }
    }

    /// The same place, where the program is the first process that it knows of. Needs root.
    pub fn with_own_processes(&self) -> Self {
        let own = ["--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned);
        Self { before: self.before.iter().cloned().chain([tool_name("unshare")]).chain(own).collect() }
    }
}

/// A server's option: streams in a folder of its own.
pub const JETSTREAM: &str = "jetstream: {store_dir: streams}";

/// A nats-server on a free port; dropped, it is killed.
pub struct NatsServer {
    folder: TempDir,
    options: String,
    place: Place,
    running: Option<Live>,
    /// 0 until it has run once.
    port: u16,
    monitor: u16,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::with("")
    }

    /// One with these lines in its configuration.
    pub fn with(options: &str) -> Self {
        let server = Self::start_in(&Place::default(), options);
        // It greets those who connect, with TLS as well.
        let mut greeting = [0; 5];
        TcpStream::connect(server.address()).unwrap().read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"INFO ");
        server
    }

    pub fn start_in(place: &Place, options: &str) -> Self {
        let (folder, place) = (tempfile::tempdir().unwrap(), place.clone());
        let mut server =
            Self { folder, options: options.to_owned(), place, running: None, port: 0, monitor: 0 };
        server.start_again();
        server
    }

    /// Starts it after it was stopped, with the same port and streams.
    pub fn start_again(&mut self) {
        let ports = self.folder.path().join("ports");
        // A server that was killed has left its file.
        let _ = fs::remove_dir_all(&ports);
        fs::create_dir(&ports).unwrap();
        let port = if self.port == 0 { -1 } else { self.port.into() };
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {ports:?}\n{}\n",
            self.options
        );
        fs::write(self.folder.path().join("server.conf"), config).unwrap();
        let mut command = self.place.command(&tool_name("nats-server"));
        command.args(["-c", "server.conf"]).current_dir(self.folder.path());
        let mut running = Live::start(command);
        // It writes the file once it listens.
        let listening: Value = wait_for("nats-server that listens", || {
            assert!(!running.is_over(), "nats-server has ended: {}", running.said());
            let file = fs::read_dir(&ports).unwrap().next()?.unwrap().path();
            serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
        });
        let port =
            |kind: &str| listening[kind][0].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        (self.port, self.monitor) = (port("nats"), port("monitoring"));
        self.running = Some(running);
    }

    pub fn stop(&mut self) {
        self.running.take().unwrap().stop();
    }

    pub fn kill(&mut self) {
        self.running = None;
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// A page of its monitoring.
    fn monitor(&self, page: &str) -> Value {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitor)).unwrap();
        stream.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let answer = io::read_to_string(stream).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// Messages that it has sent to whoever is connected.
    pub fn messages_out(&self) -> u64 {
        let page = self.monitor("/connz");
        let connections = page["connections"].as_array().cloned().unwrap_or_default();
        connections.iter().map(|connection| number(&connection["out_msgs"])).sum()
    }

    /// Waits until somebody has subscribed to packets.
    pub fn wait_until_subscribed(&self) {
        wait_for("subscription to packets", || {
            self.monitor("/connz?subs=1").to_string().contains("\"gons.packets.").then_some(())
        });
    }

    /// Waits until all that its streams hold is with the engines.
    pub fn wait_until_delivered(&self) {
        let (mut last, mut since) = (Vec::new(), Instant::now());
        wait_for("stream that was read to its end", || {
            let page = self.monitor("/jsz?consumers=1");
            let below = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
            let accounts = below(&page, "account_details");
            let streams = accounts.iter().flat_map(|account| below(account, "stream_detail"));
            let consumers: Vec<_> = streams.flat_map(|stream| below(&stream, "consumer_detail")).collect();
            let state = consumers.iter().map(|consumer| {
                ["num_pending", "num_ack_pending"].map(|count| consumer[count].as_u64().unwrap_or(0))
            });
            let state: Vec<_> = state.collect();
            if state != last {
                (last, since) = (state, Instant::now());
            }
            let empty = !last.is_empty() && last.iter().all(|[pending, _]| *pending == 0);
            // The last messages may still be between the two: acknowledgements have come to rest.
            (empty && since.elapsed() > Duration::from_millis(500)).then_some(())
        });
    }
}

/// A connection that speaks the plain protocol, so that any bytes can be published.
pub struct Client {
    stream: BufReader<TcpStream>,
    /// What has come and was not asked for yet, with its subject.
    pub messages: VecDeque<(String, Vec<u8>)>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Self { stream: BufReader::new(stream), messages: VecDeque::new() };
        client.send(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false}\r\n");
        client.flush();
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub fn publish(&mut self, subject: &str, payload: &[u8]) {
        let head = format!("PUB {subject} {}\r\n", payload.len());
        self.send(&[head.as_bytes(), payload, b"\r\n"].concat());
    }

    pub fn publish_batch(&mut self, batch: &Batch) {
        self.publish_to(batch.sequence % 16, batch);
    }

    pub fn publish_to(&mut self, partition: u64, batch: &Batch) {
        self.publish(&format!("gons.packets.batch.{partition}"), &batch.encode());
    }

    pub fn subscribe(&mut self, subject: &str) {
        self.send(format!("SUB {subject} 1\r\n").as_bytes());
        self.flush();
    }

    /// Waits until the server has taken all that was published, and passed it on before anything later.
    pub fn flush(&mut self) {
        self.send(b"PING\r\n");
        while self.read() != "PONG" {}
    }

    /// The next message of what it has subscribed to.
    pub fn next(&mut self) -> (String, Vec<u8>) {
        while self.messages.is_empty() {
            self.read();
        }
        self.messages.pop_front().unwrap()
    }

    /// Reads one operation and gives its name; a message is kept.
    fn read(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.stream.read_line(&mut line).unwrap(), 0, "the server has closed the connection");
        let words: Vec<_> = line.split_whitespace().collect();
        match words[0] {
            "PING" => self.send(b"PONG\r\n"),
            "-ERR" => panic!("{line}"),
            // Messages with headers carry them before the payload.
            "MSG" | "HMSG" => {
                let number = |word: &str| word.parse::<usize>().unwrap();
                let headers = if words[0] == "HMSG" { number(words[words.len() - 2]) } else { 0 };
                let mut payload = vec![0; number(words[words.len() - 1]) + 2];
                self.stream.read_exact(&mut payload).unwrap();
                payload.truncate(payload.len() - 2);
                self.messages.push_back((words[1].to_owned(), payload.split_off(headers)));
            }
            _ => {}
        }
        words[0].to_owned()
    }
}

// Certificates.

/// Makes an authority's certificate `<authority>.pem` in a folder, and one for this machine, signed by it:
/// `<authority>-signed.pem` and `.key`.
pub fn certificates(folder: &Path, authority: &str) {
    let config = "[req]\ndistinguished_name = name\n[name]\n\
        [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
        [signed]\nbasicConstraints = CA:FALSE\nsubjectAltName = DNS:localhost, IP:127.0.0.1\n\
        extendedKeyUsage = serverAuth, clientAuth\n";
    fs::write(folder.join("openssl.conf"), config).unwrap();
    let make = |kind: &str, name: &str, options: &str| {
        let args = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -config openssl.conf \
             -subj /CN={name} -extensions {kind} -keyout {name}.key -out {name}.pem {options}"
        );
        let run = Command::new(tool("openssl")).args(words(&args)).current_dir(folder).output().unwrap();
        assert!(run.status.success(), "openssl {args}: {run:?}");
    };
    make("authority", authority, "");
    make("signed", &format!("{authority}-signed"), &format!("-CA {authority}.pem -CAkey {authority}.key"));
}

// The network.

/// Holds its namespace while its standard input is open, and says so. The socket that asks for time stamps
/// (`SO_TIMESTAMP`, which has no name in Perl) makes the kernel stamp each frame once, on arrival, so that all who
/// capture it see the same time.
const HOLDER: &str = r#"socket(S, PF_INET, SOCK_DGRAM, 0) && setsockopt(S, SOL_SOCKET, 29, pack("i", 1))
    or die "no socket: $!"; print STDERR "held\n"; <STDIN>"#;

/// Two network namespaces joined by a link that carries nothing but what a test sends: interface `left` in one,
/// `right` in the other. Needs no root where users may make namespaces; gone when dropped.
pub struct Namespaces {
    pub left: Place,
    pub right: Place,
    _holders: [Live; 2],
}

impl Namespaces {
    pub fn new() -> Self {
        let user = if rustix::process::getuid().is_root() { "" } else { "-U" };
        let hold = |place: &Place, options: &str| {
            let mut command = place.command(&tool_name("unshare"));
            command.args(words(options)).arg(tool("perl")).args(["-MSocket", "-e", HOLDER]);
            let mut holder = Live::start(command);
            holder.wait_until_says("held");
            holder
        };
        let inside = |holder: &Live, options: &str| {
            let target = format!("-t {} {options} --", holder.id());
            Place {
                before: [tool_name("nsenter")].into_iter().chain(words(&target).map(str::to_owned)).collect(),
            }
        };
        // Both are of one user namespace, or the link could not be between them.
        let (users, as_user) = if user.is_empty() { ("", "") } else { ("-Ur", "-U --preserve-credentials") };
        let one = hold(&Place::default(), &format!("{users} -n"));
        let within = if user.is_empty() { Place::default() } else { inside(&one, as_user) };
        let other = hold(&within, "-n");
        let places = [&one, &other].map(|holder| inside(holder, &format!("{as_user} -n")));
        let run = |place: &Place, program: &str, args: &str| {
            let output = place.command(program).args(words(args)).output().unwrap();
            assert!(output.status.success(), "{program} {args}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let ip = tool_name("ip");
        let silent = "for of in all default; do f=/proc/sys/net/ipv6/conf/$of/disable_ipv6; [ ! -e $f ] || echo 1 >$f; done";
        for place in &places {
            run(place, "sh", &format!("-c '{silent}'"));
            run(place, &ip, "link set lo up");
        }
        let link = format!("link add left mtu 9000 type veth peer name right mtu 9000 netns {}", other.id());
        run(&places[0], &ip, &link);
        let ends = [(&places[1], "right"), (&places[0], "left")];
        for (place, name) in ends {
            run(place, &ip, &format!("link set {name} arp off multicast off up"));
        }
        for (place, name) in ends {
            wait_for("link that is up", || {
                run(place, &ip, &format!("-o link show {name}")).contains("state UP").then_some(())
            });
        }
        let [left, right] = places;
        Self { left, right, _holders: [one, other] }
    }

    /// Starts tcpdump at the right end; it ends when it has written so many packets.
    pub fn start_tcpdump(&self, scratch: &Scratch, file: &str, count: usize, filter: &str) -> Live {
        let root = rustix::process::getuid().is_root();
        assert!(root, "Debian's tcpdump wants to set its groups, which only root may: run this as root");
        let args = format!("-Z root --nano -s 128 -B 65536 -i right -w {file} -c {count} '{filter}'");
        let mut tcpdump = Live::start(scratch.command_in(&self.right, &tool_name("tcpdump"), &args));
        tcpdump.wait_until_says("listening on");
        tcpdump
    }

    /// Sends a capture's frames into the left end.
    pub fn send(&self, scratch: &Scratch, file: &str, packets_per_second: u32) {
        self.send_at(scratch, file, &format!("--pps {packets_per_second}"));
    }

    /// Sends them as fast as the link takes them.
    pub fn send_at_once(&self, scratch: &Scratch, file: &str) {
        self.send_at(scratch, file, "--topspeed");
    }

    /// Frames that have come to the right end: the kernel may drop some on their way there.
    pub fn arrived(&self) -> u64 {
        let args = ["-json", "-statistics", "link", "show", "right"];
        let output = self.right.command(&tool_name("ip")).args(args).output().unwrap();
        let links: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        number(&links[0]["stats64"]["rx"]["packets"])
    }

    fn send_at(&self, scratch: &Scratch, file: &str, speed: &str) {
        let args = format!("-q -i left {speed} {file}");
        let run = Live::start(scratch.command_in(&self.left, &tool_name("tcpreplay"), &args)).wait();
        assert_eq!(run.code, Some(0), "{run:?}");
    }
}
