//! Clusters on this machine: where their processes meet, and processes that are started, waited for and lost
//! together.

use super::live::{ENGINE, Live, number};
use super::{Random, Record, Run, Scratch, Task, entries, mixed, read_json, rows, tree, wait_for, windows};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub const ANALYZER: &str = env!("CARGO_BIN_EXE_pcap-analyzer");

/// So many frames of both families over `span` nanoseconds: out of order by a few places, some late by a
/// quarter of the span, with frames that hold no IP and broken headers in between.
pub fn disordered(seed: u64, count: usize, span: u64) -> Vec<Record> {
    let mut random = Random(seed);
    let mut frames: Vec<_> = mixed(seed, count, span)
        .iter()
        .enumerate()
        .map(|(at, packet)| {
            let delay = if at % 97 == 0 { count / 4 } else { random.below(80) as usize };
            let mut record = packet.record();
            record.time += at as u64 % 1000;
            if at % 500 == 0 {
                record.bytes[12..14].copy_from_slice(&[8, 6]);
            } else if at % 500 == 250 {
                // A header shorter than any.
                record.bytes.splice(12.., [8, 0, 0x41, 0, 0, 40]);
            }
            (at + delay, record)
        })
        .collect();
    frames.sort_by_key(|(place, _)| *place);
    frames.into_iter().map(|(_, record)| record).collect()
}

// Where they meet.

/// Ports that clusters of this program were given: none is given twice.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Addresses of this machine where nobody listens.
pub fn free_addresses(count: usize) -> Vec<String> {
    let mut given = GIVEN.lock().unwrap();
    // All are held until the last is found, so that no two are the same.
    let mut listeners = Vec::new();
    while listeners.len() < count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if given.insert(listener.local_addr().unwrap().port()) {
            listeners.push(listener);
        }
    }
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// The hosts of a cluster, and the file that names them.
pub struct Hosts {
    pub addresses: Vec<String>,
    pub file: String,
}

impl Hosts {
    /// Free ports of this machine for so many processes.
    pub fn new(scratch: &Scratch, count: usize) -> Self {
        let addresses = free_addresses(count);
        let file = format!("hosts-{}", addresses[0].replace(':', "-"));
        Self::of(scratch, &file, addresses)
    }

    /// These addresses. The file also holds comments, blank lines, and a host more than there are processes.
    pub fn of(scratch: &Scratch, file: &str, addresses: Vec<String>) -> Self {
        let text = format!("# one a process\n\n{}\n\n# spare\n127.0.0.1:9\n", addresses.join("\n# next\n\n"));
        scratch.write(file, text);
        Self { addresses, file: file.to_owned() }
    }

    /// The flags that make a program this process of the cluster.
    pub fn flags(&self, process: usize) -> String {
        format!("-n {} -p {process} --hostfile {}", self.addresses.len(), self.file)
    }

    /// What the others call this process.
    pub fn name(&self, process: usize) -> String {
        format!("process {process} ({})", self.addresses[process])
    }
}

// Processes.

/// The folder that a process is told to write to; none but the first may make it.
pub fn folder_of(process: usize, out: &str) -> String {
    if process == 0 { out.to_owned() } else { format!("{out}-of-{process}") }
}

impl Scratch {
    /// Starts one process of a cluster.
    pub fn start_process(&self, hosts: &Hosts, process: usize, program: &str, out: &str, args: &str) -> Live {
        let args = format!("{} -o {} {args}", hosts.flags(process), folder_of(process, out));
        Live::start(self.command(program, &args))
    }

    /// Starts so many processes that meet on free ports, all with the same arguments.
    pub fn start_cluster(&self, count: usize, program: &str, out: &str, args: &str) -> (Hosts, Vec<Live>) {
        let hosts = Hosts::new(self, count);
        let start = |process| self.start_process(&hosts, process, program, out, args);
        let processes = (0..count).map(start).collect();
        (hosts, processes)
    }

    /// Starts engines and waits until no packet passes them by.
    pub fn start_engines(&self, count: usize, out: &str, args: &str) -> (Hosts, Vec<Live>) {
        let (hosts, mut engines) = self.start_cluster(count, ENGINE, out, args);
        for engine in &mut engines {
            if count > 1 {
                engine.wait_until_says(&formed(count));
            }
            engine.wait_until_says("subscribed to");
        }
        (hosts, engines)
    }

    /// Waits for the end of a cluster that went well: every process ends with status 0, and only the first
    /// has made a folder and printed a summary. Gives what they said.
    pub fn assert_end_well(&self, processes: Vec<Live>, out: &str) -> Vec<Run> {
        let runs: Vec<_> = processes.into_iter().map(|mut process| process.wait()).collect();
        for (process, run) in runs.iter().enumerate() {
            assert_eq!(run.code, Some(0), "process {process} of {runs:?}");
            let wrong = ["internal error", "panicked", "lost process"].map(|text| run.stderr.contains(text));
            assert_eq!(wrong, [false; 3], "process {process} of {runs:?}");
            if process > 0 {
                assert_eq!(run.stdout, "", "process {process} of {runs:?}");
                let folder = self.path(&folder_of(process, out));
                assert!(!folder.exists(), "process {process} made {}", folder.display());
            }
        }
        runs
    }

    /// Kills one process of a cluster that has begun to write, and asserts that each of the others ends with
    /// status 1 within five seconds and says whom it has lost, and that they leave whole windows of these
    /// tasks and no ledger.
    pub fn assert_loss_is_told(
        &self,
        (hosts, mut processes): (Hosts, Vec<Live>),
        victim: usize,
        out: &str,
        tasks: &[Task],
    ) {
        let folder = self.path(out);
        wait_for("two windows", || (windows(&folder).len() >= 2).then_some(()));
        let mut killed = processes.remove(victim);
        killed.signal("KILL");
        let began = Instant::now();
        assert_eq!(killed.wait().code, None);
        for process in &mut processes {
            let run = process.wait();
            let took = began.elapsed();
            run.assert(1, &format!("lost {}", hosts.name(victim)));
            assert!(!run.stderr.contains("panicked"), "{run:?}");
            assert!(took < Duration::from_secs(5), "it took {took:?} to end without {victim}: {run:?}");
        }
        assert!(!folder.join("ledger.json").exists(), "a ledger without process {victim}");
        assert!(assert_all_whole(&folder, tasks) >= 2);
    }
}

/// What each process of a cluster says once all are there.
pub fn formed(count: usize) -> String {
    format!("cluster of {count} processes has formed")
}

// What they leave.

/// Every file under a folder, the ledger as it is.
pub fn every_byte(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = tree(folder);
    files.insert("ledger.json".into(), fs::read(folder.join("ledger.json")).unwrap());
    files
}

/// Asserts that a run that was never begun has left nothing.
pub fn assert_nothing_written(folder: &Path) {
    assert_eq!(windows(folder), Vec::<String>::new(), "in {}", folder.display());
    assert!(!folder.join("ledger.json").exists(), "a ledger in {}", folder.display());
}

/// Asserts that every window that a reader sees in a folder has all these tables, and in each what its
/// summary says; gives how many windows there are.
fn assert_all_whole(folder: &Path, tasks: &[Task]) -> usize {
    let windows = windows(folder);
    for window in &windows {
        let window = folder.join(window);
        let tables = tasks.iter().map(|(task, _)| format!("{task}.csv"));
        let files: BTreeSet<String> = tables.chain(["summary.json".to_owned()]).collect();
        assert_eq!(entries(&window), files, "the files in {}", window.display());
        let summary = read_json(&window.join("summary.json"));
        for (task, _) in tasks {
            let rows = rows(&window.join(format!("{task}.csv")));
            let sum = |column: &str| rows.iter().map(|row| row[column].parse::<u64>().unwrap()).sum::<u64>();
            let found = [rows.len() as u64, sum("packets"), sum("bytes")];
            let said = ["rows", "packets", "bytes"].map(|total| number(&summary["tasks"][task][total]));
            assert_eq!(found, said, "{task} in {}", window.display());
        }
    }
    windows.len()
}
