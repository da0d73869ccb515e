//! Programs that are killed and started again, and trees that are held against each other, byte for byte.
//!
//! A kill is a SIGKILL: nobody can prepare for it. What is left in the end has to be the tree of a run that
//! nothing happened to; a window that a reader sees before that has to be one of it.

use super::live::{ENGINE, JETSTREAM, Live, NatsServer, PROBE, assert_balanced, number, tool};
use super::{Packet, QUERIES, Random, Run, SHIPPED, Scratch, Task, config, entries, pcap, wait_for, windows};
use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The length of all windows here: the option of engine and analyser.
pub const WINDOW: &str = "--window 10s";
/// Options of the durable log with which it soon forgets what it has, so that what is sent twice comes twice.
pub const FORGETFUL: &str = ", duplicate_window: 100ms";
/// How soon a cluster notices that a process was lost: twice of what is promised, for a busy machine.
const LOSS_NOTICED: Duration = Duration::from_secs(10);
/// How long a supervisor waits before it starts what has ended by itself.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a round may take.
const MOST_A_ROUND: Duration = Duration::from_secs(180);

const ALERTS: &str = "\
alerts:
  rules:
    - {name: moving, task: moved, metric: change, comparison: '>', threshold: 3000}
    - {name: talking, task: talkers, metric: packets, comparison: '>', threshold: 3, for: 3}
  outputs:
    - {type: jsonl, path: alerts.jsonl}
";

/// A configuration of these exact tasks, with more options of the durable log; it is small, whatever disk is free.
pub fn exact_config(tasks: &[Task], log: &str) -> String {
    format!("nats:\n  jetstream: {{max_bytes: 512MiB{log}}}\n{}", config(tasks))
}

/// The same with tasks that look back, sketches and alerts.
pub fn log_config(tasks: &[Task], log: &str) -> String {
    exact_config(tasks, log).replace("writers:\n", &format!("{QUERIES}writers:\n")) + ALERTS
}

// Trees.

/// Files and what they hold; folders hold nothing.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Every file and folder under a folder, whatever its name.
pub fn whole_tree(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    for name in entries(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            let below = whole_tree(&path);
            tree.extend(below.into_iter().map(|(below, bytes)| (Path::new(&name).join(below), bytes)));
            tree.insert(name.into(), Vec::new());
        } else {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            tree.insert(name.into(), bytes);
        }
    }
    tree
}

/// Which files two trees do not share, the first line in which others differ, and the ledgers where those do;
/// nothing where the trees are the same.
fn differences(expected: &Tree, found: &Tree) -> String {
    /// Lines that a reader can still take in.
    const MOST: usize = 40;
    let lacking = expected.keys().filter(|path| !found.contains_key(*path));
    let excess = found.keys().filter(|path| !expected.contains_key(*path));
    let mut lines: Vec<String> = lacking.map(|path| format!("missing: {}", path.display())).collect();
    lines.extend(excess.map(|path| format!("not expected: {}", path.display())));
    for (path, bytes) in expected {
        let Some(other) = found.get(path).filter(|other| *other != bytes) else { continue };
        let [left, right] = [bytes, other].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        lines.push(format!("{}: {}", path.display(), first_difference(&left, &right)));
    }
    let ledger = Path::new("ledger.json");
    let ledgers = [expected, found].map(|tree| tree.get(ledger));
    let more = lines.len().saturating_sub(MOST);
    lines.truncate(MOST);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    if ledgers[0] != ledgers[1] {
        for (which, ledger) in ["expected", "found"].iter().zip(ledgers) {
            let text = ledger.map_or("none".into(), |bytes| String::from_utf8_lossy(bytes));
            lines.push(format!("the {which} ledger: {text}"));
        }
    }
    lines.join("\n")
}

fn first_difference(expected: &str, found: &str) -> String {
    let [expected, found] = [expected, found].map(|text| text.lines().collect::<Vec<_>>());
    let same = expected.iter().zip(&found).take_while(|(left, right)| left == right).count();
    let line = |lines: &[&str]| lines.get(same).map_or("nothing".to_owned(), |line| format!("{line:?}"));
    let [left, right] = [&expected, &found].map(|lines| line(lines));
    format!("line {} of {}: expected {left}, found {right}", same + 1, expected.len())
}

/// Asserts that two trees are the same; else says how they differ.
pub fn assert_exact(expected: &Tree, found: &Tree, what: &str) {
    let differences = differences(expected, found);
    assert!(differences.is_empty(), "{what}:\n{differences}");
}

// The place and what runs there.

/// Processes of an engine, and the workers of each.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub processes: usize,
    pub workers: usize,
}

pub const fn shape(processes: usize, workers: usize) -> Shape {
    Shape { processes, workers }
}

impl Display for Shape {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        write!(to, "{}x{}", self.processes, self.workers)
    }
}

/// Ports of this machine that nobody uses.
fn free_ports<const N: usize>() -> [u16; N] {
    // All are held before the first is let go, so that no two are the same.
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// A folder to run in, and a server with a durable log.
pub struct Site {
    pub scratch: Scratch,
    pub server: NatsServer,
    monitor: u16,
}

impl Site {
    pub fn new() -> Self {
        Self::with("")
    }

    /// One with more options of the durable log.
    pub fn with(log: &str) -> Self {
        Self::of(log_config(SHIPPED, log))
    }

    /// One whose engines do not wait for room on a full disk.
    pub fn impatient() -> Self {
        let config = log_config(SHIPPED, "");
        let patient = "path: ./snapshots}";
        assert!(config.contains(patient), "{config}");
        Self::of(config.replace(patient, "path: ./snapshots, retry: {give_up: 0s}}"))
    }

    /// One with exact tasks alone.
    pub fn exact() -> Self {
        Self::of(exact_config(SHIPPED, ""))
    }

    fn of(config: String) -> Self {
        let scratch = Scratch::new();
        scratch.write("config.yaml", config);
        let [monitor, hosts @ ..] = free_ports::<5>();
        let hosts = hosts.map(|port| format!("127.0.0.1:{port}\n"));
        scratch.write("hosts", hosts.concat());
        // The server's monitoring is at a port that is known, instead of any: of two lines the second counts.
        let options = format!("{JETSTREAM}\nhttp: \"127.0.0.1:{monitor}\"");
        Self { scratch, server: NatsServer::with(&options), monitor }
    }

    /// What engines have told of alerts.
    fn alerts(&self) -> String {
        fs::read_to_string(self.scratch.path("alerts.jsonl")).unwrap()
    }

    /// Where engines write to.
    pub fn out(&self) -> PathBuf {
        self.scratch.path("out")
    }

    /// The command line of one process of an engine.
    fn engine_args(&self, shape: Shape, process: usize, output: &str) -> String {
        let Shape { processes, workers } = shape;
        let server = self.server.url();
        let mut args = format!("--nats {server} --jetstream {WINDOW} -o {output} -w {workers}");
        if processes > 1 {
            args += &format!(" -n {processes} -p {process} --hostfile hosts");
        }
        args
    }

    fn start_process(&self, shape: Shape, process: usize) -> Live {
        Live::start(self.scratch.command(ENGINE, &self.engine_args(shape, process, "out")))
    }

    /// Runs an engine with another configuration and other options until it ends.
    pub fn run_engine(&self, config: &str, more: &str) -> Run {
        self.scratch.write("other.yaml", config);
        let args = format!("--nats {} --jetstream -c other.yaml -o out -w 1 {more}", self.server.url());
        Live::start(self.scratch.command(ENGINE, &args)).wait()
    }

    /// Starts the replay of a capture under a name.
    pub fn start_probe(&self, name: &str, capture: &Path, more: &str) -> Live {
        let (server, capture) = (self.server.url(), capture.display());
        let args = format!("--nats {server} --jetstream --id {name} {more} -r '{capture}'");
        Live::start(self.scratch.command(PROBE, &args))
    }

    /// Puts a capture into the durable log.
    pub fn publish(&self, name: &str, capture: &Path) {
        assert_ended_well(&mut self.start_probe(name, capture, ""));
    }

    /// Connections that engines have to the server.
    fn connected_engines(&self) -> usize {
        let page = self.monitor("/connz").unwrap_or_default();
        let is_engine = |connection: &&Value| connection["name"] == "ns-engine";
        page["connections"].as_array().map_or(0, |connections| connections.iter().filter(is_engine).count())
    }

    /// Bytes that the durable log holds.
    pub fn logged_bytes(&self) -> u64 {
        number(&self.monitor("/jsz").unwrap()["bytes"])
    }

    /// The messages of the durable log, each with its subject.
    pub fn stored(&self) -> Vec<(String, Vec<u8>)> {
        let count = number(&self.monitor("/jsz").unwrap()["messages"]);
        let mut client = self.server.connect();
        client.subscribe("stored");
        let config = r#"{"deliver_subject":"stored","deliver_policy":"all","ack_policy":"none"}"#;
        let request = format!(r#"{{"stream_name":"GONS_PACKETS","config":{config}}}"#);
        client.publish("$JS.API.CONSUMER.CREATE.GONS_PACKETS", request.as_bytes());
        client.flush();
        (0..count).map(|_| client.next()).collect()
    }

    /// A page of the server's monitoring; `None` while the server is away.
    fn monitor(&self, page: &str) -> Option<Value> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.monitor)).ok()?;
        stream.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let answer = io::read_to_string(stream).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}

/// Asserts that a program ended by itself, or was killed, and not by a fault of its own.
pub fn assert_no_panic(run: &Run) {
    let faults = ["panicked", "internal error", "RUST_BACKTRACE"];
    assert!(!faults.iter().any(|fault| run.stderr.contains(fault)), "{run:?}");
}

/// Waits for the end of a program, and asserts that all went well.
pub fn assert_ended_well(program: &mut Live) -> Run {
    let run = program.wait();
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_no_panic(&run);
    run
}

/// Kills a program that was not waited for; it may have ended.
pub fn kill(program: &Live) {
    kill_process(Pid::from_raw(program.id() as i32).unwrap(), Signal::KILL).unwrap();
}

/// Whether a process of an engine has found the others and the server, and has not lost the server since.
fn is_ready(process: &Live, processes: usize) -> bool {
    let said = process.said();
    let has_begun = said.contains(if processes > 1 { "has formed" } else { "subscribed to" });
    let times = |text: &str| said.matches(text).count();
    has_begun && times("trying to reconnect") <= times(" again\n")
}

/// An engine of one or more processes; dropped, all of them are killed.
pub struct Engine {
    processes: Vec<Live>,
}

impl Engine {
    pub fn start(site: &Site, shape: Shape) -> Self {
        let processes = (0..shape.processes).map(|process| site.start_process(shape, process));
        Self { processes: processes.collect() }
    }

    /// One of a single worker that writes to a folder on a small disk.
    pub fn start_on(disk: &Disk, site: &Site, output: &str) -> Self {
        let args = site.engine_args(shape(1, 1), 0, output);
        Self { processes: vec![Live::start(disk.command(&site.scratch.path("."), ENGINE, &args))] }
    }

    /// Waits until something is so; an engine that ends instead fails the test.
    pub fn wait_until(&mut self, what: &str, mut look: impl FnMut(&[Live]) -> bool) {
        wait_for(what, || {
            for (number, process) in self.processes.iter_mut().enumerate() {
                assert!(!process.is_over(), "process {number} has ended: {:?}", process.wait());
            }
            look(&self.processes).then_some(())
        });
    }

    /// Waits until all processes have found each other and the server.
    pub fn wait_until_ready(&mut self, site: &Site) {
        self.wait_until("engine that is ready", |processes| {
            processes.iter().all(|process| is_ready(process, processes.len()))
                && site.connected_engines() >= processes.len()
        });
    }

    /// Waits until a reader sees so many windows.
    pub fn wait_for_windows(&mut self, folder: &Path, count: usize) {
        self.wait_until(&format!("{count} windows"), |_| windows(folder).len() >= count);
    }

    /// Kills one process of an engine that runs. The others end by themselves, and say whom they have lost.
    pub fn kill(mut self, victim: usize) {
        kill(&self.processes[victim]);
        let processes = self.processes.len();
        let began = Instant::now();
        for (number, process) in self.processes.iter_mut().enumerate() {
            let run = process.wait();
            assert_no_panic(&run);
            if number == victim {
                assert_eq!(run.code, None, "{run:?}");
            } else if processes == 2 {
                run.assert(1, &format!("lost process {victim} ("));
            } else {
                // Of several, one may end early enough to be missed by another first.
                run.assert(1, "lost process ");
            }
        }
        assert!(began.elapsed() < LOSS_NOTICED, "the others ended after {:?}", began.elapsed());
    }

    /// Tells one process to stop.
    pub fn tell_to_stop(&self, process: usize) {
        self.processes[process].signal("TERM");
    }

    /// Waits for the end of all processes.
    pub fn end(mut self) -> Vec<Run> {
        self.processes.iter_mut().map(|process| process.wait()).collect()
    }

    /// Tells one process to stop, and asserts that all of them end well.
    pub fn stop(mut self, process: usize) -> Vec<Run> {
        self.tell_to_stop(process);
        self.processes.iter_mut().map(assert_ended_well).collect()
    }
}

/// A capture, and the tree of an engine to which nothing happens while it is replayed.
pub struct Case {
    pub capture: PathBuf,
    pub tree: Tree,
    alerts: String,
    _scratch: Scratch,
}

impl Case {
    /// A capture that is generated with these options.
    pub fn generated(options: &str) -> Self {
        let scratch = Scratch::new();
        scratch.generate(&format!("-o a.pcap {options}")).assert(0, "");
        Self::new(scratch)
    }

    pub fn of(packets: &[Packet]) -> Self {
        let scratch = Scratch::new();
        scratch.write("a.pcap", pcap(packets));
        Self::new(scratch)
    }

    fn new(scratch: Scratch) -> Self {
        let (capture, site) = (scratch.path("a.pcap"), Site::new());
        let mut engine = Engine::start(&site, shape(1, 2));
        engine.wait_until_ready(&site);
        site.publish("tap", &capture);
        engine.stop(0);
        assert_balanced(&site.out());
        let tree = whole_tree(&site.out());
        let alerts = site.alerts();
        assert!(alerts.lines().count() > 5, "hardly any alerts: {alerts}");
        site.scratch.analyze(&format!("-q -o offline {WINDOW} '{}'", capture.display())).assert(0, "");
        let offline = whole_tree(&site.scratch.path("offline"));
        let [offline, live] = [offline, tree.clone()].map(|mut tree| {
            // What sketches keep is for a run that goes on.
            tree.retain(|path, _| {
                !path.ends_with("ledger.json") && path.extension().is_none_or(|end| end != "state")
            });
            tree
        });
        assert_eq!(site.alerts(), alerts, "alerts of pcap-analyzer");
        assert_exact(&offline, &live, "an engine that nothing happened to, held against pcap-analyzer");
        Self { capture, tree, alerts, _scratch: scratch }
    }

    pub fn windows(&self) -> usize {
        self.tree.keys().filter(|path| path.ends_with("summary.json")).count()
    }

    /// Asserts that a folder holds this tree; its state, where that had to be inside, is left out.
    pub fn assert_left(&self, folder: &Path, what: &str) {
        let mut found = whole_tree(folder);
        found.retain(|path, _| !path.starts_with(".netspectra"));
        assert_exact(&self.tree, &found, what);
    }

    /// Asserts that the alerts told at a site are those of a run without kills, each once.
    pub fn assert_told(&self, site: &Site, what: &str) {
        assert_eq!(site.alerts(), self.alerts, "alerts: {what}");
    }

    /// Asserts that every window that a reader sees is one of this tree. No packet of the capture may be
    /// late, and no engine may be writing.
    pub fn assert_whole_so_far(&self, folder: &Path) {
        for window in windows(folder) {
            let of_window = self.tree.iter().filter_map(|(path, bytes)| {
                let below = path.strip_prefix(&window).ok()?;
                (below != Path::new("")).then(|| (below.to_owned(), bytes.clone()))
            });
            let (expected, found): (Tree, Tree) = (of_window.collect(), whole_tree(&folder.join(&window)));
            assert_exact(&expected, &found, &format!("{window}, seen before the end"));
        }
    }
}

/// A small disk at a folder, seen only by programs that are started on it. Needs no root where users may make
/// namespaces; gone when dropped.
pub struct Disk {
    holder: Live,
    folder: PathBuf,
}

impl Disk {
    /// What fills it.
    const FILLER: &str = ".filler";

    pub fn new(folder: &Path, size: &str) -> Self {
        fs::create_dir(folder).unwrap();
        let mut command = Command::new(tool("unshare"));
        if !getuid().is_root() {
            command.arg("-Ur");
        }
        let hold = "mount -t tmpfs -o size=$1 tmpfs \"$0\" && echo held >&2 && read -r line";
        command.args(["--mount", "sh", "-c", hold]).arg(folder).arg(size);
        let mut holder = Live::start(command);
        holder.wait_until_says("held");
        Self { holder, folder: folder.canonicalize().unwrap() }
    }

    /// A program that runs in a folder and sees the disk.
    pub fn command(&self, folder: &Path, program: &str, args: &str) -> Command {
        let mut command = Command::new(tool("nsenter"));
        if !getuid().is_root() {
            command.args(["-U", "--preserve-credentials"]);
        }
        command.arg("-t").arg(self.holder.id().to_string());
        // Who enters a namespace of mounts is at its root at first.
        command.args(["-m", "--", "sh", "-c", "cd \"$0\" && exec \"$@\""]);
        command.arg(folder).arg(program).args(args.split_whitespace());
        command
    }

    /// Where the test sees what has this path on the disk.
    pub fn seen(&self, path: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.folder.strip_prefix("/").unwrap()).join(path)
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let mut filler = File::create(self.seen(Self::FILLER)).unwrap();
        for size in [1 << 16, 1 << 10, 1] {
            let piece = vec![1_u8; size];
            let error = loop {
                if let Err(error) = filler.write_all(&piece) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        }
    }

    /// Gives it back.
    pub fn make_room(&self) {
        fs::remove_file(self.seen(Self::FILLER)).unwrap();
    }
}

// Rounds of kills at random.

/// The shapes of the rounds, by their seeds.
const SHAPES: [Shape; 5] = [shape(1, 1), shape(1, 2), shape(2, 1), shape(2, 2), shape(3, 1)];

#[derive(Clone, Copy, Debug)]
enum Victim {
    Engine(usize),
    Server,
    Probe,
}

#[derive(Clone, Copy, Debug)]
struct Kill {
    /// Since the replay began.
    at: Duration,
    victim: Victim,
    /// How long it stays down.
    down: Duration,
}

/// All that will happen in a round; the same seed gives the same plan.
#[derive(Debug)]
pub struct Plan {
    seed: u64,
    shape: Shape,
    /// Whether the durable log forgets soon what it has.
    forgetful: bool,
    kills: Vec<Kill>,
    /// A process to kill while the engine stops, and how long after it was told to.
    last: Option<(usize, Duration)>,
}

impl Plan {
    /// Draws one to three kills, all through a replay of this length and for a little while after it.
    pub fn draw(seed: u64, replay: Duration) -> Self {
        let mut random = Random(seed);
        let shape = SHAPES[(seed % SHAPES.len() as u64) as usize];
        let span = (replay + replay / 8).as_millis() as u64;
        let process = |random: &mut Random| random.below(shape.processes as u64) as usize;
        let one = |random: &mut Random| Kill {
            at: Duration::from_millis(random.below(span)),
            victim: match random.below(4) {
                0 => Victim::Server,
                1 => Victim::Probe,
                _ => Victim::Engine(process(random)),
            },
            down: Duration::from_millis(random.below(500)),
        };
        let count = 1 + random.below(3);
        let mut kills: Vec<_> = (0..count).map(|_| one(&mut random)).collect();
        kills.sort_by_key(|kill| kill.at);
        let forgetful = random.below(2) == 0;
        let while_it_stops = random.below(3) == 0;
        let last = while_it_stops.then(|| (process(&mut random), Duration::from_millis(random.below(200))));
        Self { seed, shape, forgetful, kills, last }
    }
}

/// A program that is started again whenever it has ended.
struct Kept {
    running: Option<Live>,
    /// When it may run again.
    due: Instant,
}

impl Kept {
    fn new() -> Self {
        Self { running: None, due: Instant::now() }
    }

    /// What it has left, where it has ended by itself since the last look.
    fn ended(&mut self) -> Option<Run> {
        if !self.running.as_mut()?.is_over() {
            return None;
        }
        self.due = Instant::now() + PAUSE;
        Some(self.running.take()?.wait())
    }

    fn is_due(&self) -> bool {
        self.running.is_none() && self.due <= Instant::now()
    }

    /// Kills it, where it runs, and leaves it down for a while.
    fn kill(&mut self, down: Duration) -> Option<Run> {
        let mut live = self.running.take()?;
        kill(&live);
        self.due = Instant::now() + down;
        Some(live.wait())
    }
}

/// A server, an engine and a replay that are kept running until the engine's tree holds the whole capture.
struct Round<'a> {
    plan: &'a Plan,
    case: &'a Case,
    pace: &'a str,
    site: Site,
    engine: Vec<Kept>,
    probe: Kept,
    /// When the server, which is away, comes back.
    server_back: Option<Instant>,
    /// Whether the probe has published all of the capture.
    published: bool,
    /// Whether anything was killed so far.
    killed: bool,
    began: Instant,
}

/// Plays a round, and asserts that it leaves the tree of a run without kills.
pub fn play(plan: &Plan, case: &Case, pace: &str) {
    println!("an engine of {}, {plan:?}", plan.shape);
    let mut round = Round {
        plan,
        case,
        pace,
        site: Site::with(if plan.forgetful { FORGETFUL } else { "" }),
        engine: (0..plan.shape.processes).map(|_| Kept::new()).collect(),
        probe: Kept::new(),
        server_back: None,
        published: false,
        killed: false,
        began: Instant::now(),
    };
    for kill in &plan.kills {
        round.look_after(|round| round.began.elapsed() >= kill.at);
        round.kill(*kill);
    }
    round.look_after(|round| round.published);
    round.stop();
    case.assert_left(&round.site.out(), &format!("seed {}", plan.seed));
    case.assert_told(&round.site, &format!("seed {}", plan.seed));
    round.tell("the tree is that of a run without kills");
}

impl Round<'_> {
    fn tell(&self, what: &str) {
        println!("  {:7.3} s: {what}", self.began.elapsed().as_secs_f64());
    }

    /// Starts what has ended and is due, until something is so.
    fn look_after(&mut self, is_over: impl Fn(&Self) -> bool) {
        loop {
            self.start_again();
            if is_over(self) {
                return;
            }
            assert!(self.began.elapsed() < MOST_A_ROUND, "no end of the round: {}", self.said());
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn start_again(&mut self) {
        if self.server_back.is_some_and(|back| back <= Instant::now()) {
            self.server_back = None;
            self.site.server.start_again();
            self.tell("the server is back");
        }
        for process in 0..self.engine.len() {
            if let Some(run) = self.engine[process].ended() {
                self.excuse(&format!("process {process}"), &run);
            } else if self.engine[process].is_due() {
                self.engine[process].running = Some(self.site.start_process(self.plan.shape, process));
            }
        }
        if self.published {
            return;
        }
        match self.probe.ended() {
            Some(run) if run.code == Some(0) => {
                self.published = true;
                self.tell("all is published");
            }
            Some(run) => self.excuse("the probe", &run),
            None if self.probe.is_due() => {
                self.probe.running = Some(self.site.start_probe("tap", &self.case.capture, self.pace));
            }
            None => {}
        }
    }

    /// Asserts that a program that has ended by itself had a reason.
    fn excuse(&self, who: &str, run: &Run) {
        let last = run.stderr.lines().next_back().unwrap_or_default();
        self.tell(&format!("{who} has ended with {:?}: {last}", run.code));
        assert!(self.killed && run.code == Some(1), "{who} has ended: {run:?}");
        assert_no_panic(run);
    }

    fn kill(&mut self, kill: Kill) {
        let Kill { victim, down, .. } = kill;
        self.killed = true;
        match victim {
            Victim::Server if self.server_back.is_some() => self.tell("the server is down already"),
            Victim::Server => {
                self.site.server.kill();
                self.server_back = Some(Instant::now() + down);
                self.tell(&format!("the server is killed, for {down:?}"));
            }
            // It has done its work: an engine has not.
            Victim::Probe if self.published => self.kill_process(0, down),
            Victim::Probe => {
                let killed = self.probe.kill(down).map(|run| run.code);
                self.tell(&format!("the probe is killed ({killed:?}), for {down:?}"));
                // It may have been quicker.
                self.published |= killed == Some(Some(0));
            }
            Victim::Engine(process) => self.kill_process(process, down),
        }
    }

    fn kill_process(&mut self, process: usize, down: Duration) {
        let has_formed =
            |kept: &Kept| kept.running.as_ref().is_some_and(|process| process.said().contains("has formed"));
        let had_formed = self.engine.iter().all(has_formed);
        let Some(run) = self.engine[process].kill(down) else {
            return self.tell(&format!("process {process} is down already"));
        };
        self.tell(&format!("process {process} is killed ({:?}), for {down:?}", run.code));
        assert!(matches!(run.code, None | Some(1)), "process {process}: {run:?}");
        assert_no_panic(&run);
        // Before a cluster has formed the others wait for the one that was killed.
        if had_formed {
            let began = Instant::now();
            for other in (0..self.engine.len()).filter(|other| *other != process) {
                let run = wait_for("end of the other processes", || self.engine[other].ended());
                self.excuse(&format!("process {other}"), &run);
            }
            assert!(began.elapsed() < LOSS_NOTICED, "the others ended after {:?}", began.elapsed());
        }
        if self.engine.iter().all(|kept| kept.running.is_none()) {
            self.case.assert_whole_so_far(&self.site.out());
        }
    }

    fn is_ready(&self) -> bool {
        let of = self.engine.len();
        let is_up = |kept: &Kept| kept.running.as_ref().is_some_and(|process| is_ready(process, of));
        self.server_back.is_none() && self.engine.iter().all(is_up) && self.site.connected_engines() >= of
    }

    /// Stops the engine, which takes all that the durable log holds; it may be killed while it does.
    fn stop(&mut self) {
        let told = self.plan.seed as usize % self.engine.len();
        let mut last = self.plan.last;
        loop {
            self.look_after(Self::is_ready);
            self.engine[told].running.as_ref().unwrap().signal("TERM");
            self.tell(&format!("process {told} is told to stop"));
            let kill = last.take();
            let mut runs = Vec::new();
            if let Some((process, after)) = kill {
                // How long it is let go on, not a wait for anything.
                thread::sleep(after);
                runs.extend(self.engine[process].kill(Duration::ZERO));
                self.tell(&format!("process {process} is killed, {after:?} later"));
            }
            runs.extend(self.engine.iter_mut().filter_map(|kept| Some(kept.running.take()?.wait())));
            runs.iter().for_each(assert_no_panic);
            if runs.iter().all(|run| run.code == Some(0)) {
                return;
            }
            let excused = runs.iter().all(|run| matches!(run.code, None | Some(0 | 1)));
            assert!(kill.is_some() && excused, "the engine has not stopped well: {runs:?}");
        }
    }

    /// What all programs that run have said.
    fn said(&self) -> String {
        let programs = self.engine.iter().chain([&self.probe]).flat_map(|kept| &kept.running);
        programs.map(|program| program.said()).collect::<Vec<_>>().join("\n")
    }
}
