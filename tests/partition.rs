//! Engines on several machines whose network fails: they end with the exact answer; or they stop, say whom
//! they have lost and leave nothing that is not whole, and a restart gives the exact answer.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};
use support::live::*;
use support::partition::*;
use support::*;

/// Where nats-server is, on the first machine.
const SERVER: &str = "nats://10.77.0.1:4222";
/// Seconds of event time in the capture, which is replayed in a third of that.
const SPAN: u64 = 24;
/// When all processes have to know of a cut, and how much longer a busy machine may take.
const KNOWN: Duration = Duration::from_secs(5);
const MARGIN: Duration = Duration::from_secs(2);

/// Three processes that count together what a server on the first machine has in its stream, and the tree
/// that this should give.
struct Trial {
    engines: Vec<Live>,
    _server: Live,
    network: Network,
    hosts: Vec<String>,
    expected: BTreeMap<PathBuf, Vec<u8>>,
    scratch: Scratch,
}

impl Trial {
    fn start(network: Network) -> Self {
        let scratch = Scratch::new();
        let config = config(SHIPPED).replace("window: 60s", "window: 1s\n  allowed_lateness: 500ms");
        scratch.write("config.yaml", format!("nats:\n  jetstream: {{max_bytes: 256MiB}}\n{config}"));
        scratch.generate(&format!("-o a.pcap --packets 48000 --flows 2000 --duration {SPAN}s")).assert(0, "");
        scratch.analyze("-q -o offline --window 1s a.pcap").assert(0, "");
        let expected = snapshots(&scratch.path("offline"));
        let mut server = network.command(0, tool("nats-server").to_str().unwrap());
        server.args(["-a", "0.0.0.0", "-p", "4222", "-js", "-sd", "streams"]).current_dir(scratch.path("."));
        let mut server = Live::start(server);
        server.wait_until_says("Server is ready");
        let (engines, hosts) = (Vec::new(), Vec::new());
        let mut trial = Self { engines, _server: server, network, hosts, expected, scratch };
        trial.start_engines(&[0, 1, 2]);
        trial
    }

    /// Starts a process on each of these machines, and waits until they have found each other.
    fn start_engines(&mut self, machines: &[usize]) {
        let host = |(process, machine): (usize, &usize)| format!("{}:{}", address(*machine), 2101 + process);
        self.hosts = machines.iter().enumerate().map(host).collect();
        self.scratch.write("hosts", self.hosts.join("\n"));
        let count = machines.len();
        let start = |(process, machine): (usize, &usize)| {
            let mut command = self.network.command(*machine, ENGINE);
            let place = format!("-n {count} -p {process} --hostfile hosts --wait 15s");
            let args = format!("--nats {SERVER} --jetstream -o out -w 1 {place}");
            command.args(args.split(' ')).current_dir(self.scratch.path("."));
            Live::start(command)
        };
        self.engines = machines.iter().enumerate().map(start).collect();
        for engine in &mut self.engines {
            engine.wait_until_says(&format!("cluster of {count} processes has formed"));
            engine.wait_until_says("subscribed to");
        }
    }

    /// Starts to replay the capture on a machine, and waits until there are windows of it.
    fn start_replay(&mut self, machine: usize) -> Live {
        let mut command = self.network.command(machine, PROBE);
        let args = format!("--nats {SERVER} --jetstream --json --id tap --pace 3x -r a.pcap");
        command.args(args.split(' ')).current_dir(self.scratch.path("."));
        let mut probe = Live::start(command);
        let out = self.scratch.path("out");
        wait_for("windows", || {
            self.assert_running();
            assert!(!probe.is_over(), "the replay has ended: {}", probe.said());
            (windows(&out).len() >= 3).then_some(())
        });
        probe
    }

    fn has_lost_one(&mut self) -> bool {
        self.engines.iter_mut().any(|engine| engine.is_over())
    }

    fn assert_running(&mut self) {
        for engine in &mut self.engines {
            assert!(!engine.is_over(), "{:?}", engine.wait());
        }
    }

    /// Asserts that all processes end by themselves soon enough after this one was cut off, say whom they
    /// have lost, and leave what is whole.
    fn assert_stopped(&mut self, cut_off: usize, since: Instant) {
        let mut engines = std::mem::take(&mut self.engines);
        wait_for("end of all processes", || engines.iter_mut().all(|engine| engine.is_over()).then_some(()));
        let took = since.elapsed();
        let runs: Vec<Run> = engines.iter_mut().map(|engine| engine.wait()).collect();
        assert!(took < KNOWN + MARGIN, "it took {took:?}: {runs:?}");
        let mut named = false;
        for (process, run) in runs.iter().enumerate() {
            assert_eq!(run.code, Some(1), "process {process}: {run:?}");
            assert_no_panic(run);
            let says = |(lost, host): (usize, &String)| {
                run.stderr.contains(&format!("lost process {lost} ({host})")).then_some(lost)
            };
            let lost: Vec<usize> = self.hosts.iter().enumerate().filter_map(says).collect();
            assert!(!lost.is_empty() && !lost.contains(&process), "process {process}: {run:?}");
            // Whoever hears of it last may have lost one that has ended because of it.
            named |= process != cut_off && lost.contains(&cut_off);
        }
        assert!(named, "nobody has named process {cut_off}: {runs:?}");
        self.assert_whole();
    }

    /// Asserts that whatever looks like a window is one, as it will be in the end; and no ledger is there.
    fn assert_whole(&self) {
        let out = self.scratch.path("out");
        assert!(!out.join("ledger.json").exists());
        let windows = windows(&out);
        assert!((3..SPAN as usize).contains(&windows.len()), "{windows:?}");
        for window in windows {
            let of_window = |(path, bytes): (&PathBuf, &Vec<u8>)| {
                Some((path.strip_prefix(&window).ok()?.to_owned(), bytes.clone()))
            };
            let expected: BTreeMap<_, _> = self.expected.iter().filter_map(of_window).collect();
            assert_same(&expected, &tree(&out.join(&window)), &window);
        }
    }

    /// Waits for the end of the replay, stops the processes, and asserts that their answer is exact.
    fn assert_exact(mut self, probe: Live) -> Network {
        let report = probe.report();
        assert_eq!(number(&report["packets"]["sent"]), 48_000, "{report}");
        self.assert_running();
        self.engines[0].signal("TERM");
        for (process, engine) in self.engines.iter_mut().enumerate() {
            let run = engine.wait();
            assert_eq!(run.code, Some(0), "process {process}: {run:?}");
            assert_no_panic(&run);
        }
        let (ledger, offline) = (assert_balanced(&self.scratch.path("out")), self.scratch.ledger("offline"));
        assert_same(&self.expected, &snapshots(&self.scratch.path("out")), "the capture and the cluster");
        for part in ["packets", "bytes"] {
            assert_eq!(ledger[part], offline[part], "{ledger}");
        }
        self.network
    }
}

fn assert_no_panic(run: &Run) {
    for word in ["panicked", "internal error"] {
        assert!(!run.stderr.contains(word), "{run:?}");
    }
}

/// How long a cable is out.
#[derive(Clone, Copy)]
enum Cut {
    Lasts(Duration),
    /// The process goes on on the first machine.
    ForGood,
}

/// Cuts a machine off in the middle of a replay, and asserts that the answer is exact in the end.
fn assert_exact_through(cut_off: usize, cut: Cut) {
    let mut trial = Trial::start(Network::new());
    let mut probe = trial.start_replay(0);
    trial.network.pull(cut_off);
    let since = Instant::now();
    assert!(!probe.is_over(), "the replay ended before the cut");
    let mut machines = [0, 1, 2];
    match cut {
        Cut::Lasts(length) => {
            let stops = length > KNOWN + MARGIN;
            if stops {
                trial.assert_stopped(cut_off, since);
            }
            // How long it is cut off, not a wait for anything.
            thread::sleep(length.saturating_sub(since.elapsed()));
            trial.network.plug(cut_off);
            if !stops {
                wait_for("end of the replay or of a process", || {
                    (probe.is_over() || trial.has_lost_one()).then_some(())
                });
                if !trial.has_lost_one() {
                    trial.assert_exact(probe);
                    return;
                }
                trial.assert_stopped(cut_off, since);
            }
        }
        Cut::ForGood => {
            trial.assert_stopped(cut_off, since);
            machines[cut_off] = 0;
        }
    }
    trial.start_engines(&machines);
    trial.assert_exact(probe);
}

#[test]
fn a_process_cut_off_for_three_seconds_changes_no_answer() {
    assert_exact_through(1, Cut::Lasts(Duration::from_secs(3)));
}

#[test]
fn a_process_cut_off_until_it_is_noticed_changes_no_answer_or_a_restart_gives_it() {
    // What it has said when it ends comes out of its cable while the next one starts.
    assert_exact_through(1, Cut::Lasts(Duration::from_millis(3_800)));
}

#[test]
fn a_process_cut_off_for_ten_seconds_stops_all_and_a_restart_gives_the_exact_answer() {
    assert_exact_through(1, Cut::Lasts(Duration::from_secs(10)));
}

#[test]
fn a_first_process_cut_off_for_ten_seconds_stops_all_and_a_restart_gives_the_exact_answer() {
    assert_exact_through(0, Cut::Lasts(Duration::from_secs(10)));
}

#[test]
fn a_process_cut_off_for_good_stops_all_and_a_restart_elsewhere_gives_the_exact_answer() {
    assert_exact_through(2, Cut::ForGood);
}

#[test]
fn a_network_that_delays_reorders_and_repeats_changes_no_answer() {
    let mut trial = Trial::start(Network::with_bad_switch());
    let probe = trial.start_replay(2);
    trial.assert_exact(probe).assert_was_bad();
}
