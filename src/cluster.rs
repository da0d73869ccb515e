//! Forms a cluster of processes: who they are, whether they are to do the same, and the sockets that they share.
//!
//! Every process connects to those before it and is connected to by those behind it. timely's own start waits for ever,
//! takes anyone for a peer and knows nothing of settings; so the handshake is ours, and timely gets the sockets. Process 0
//! mints a generation, which tells this forming of the cluster from others, and sends everybody what it knows of earlier
//! runs. There is no rejoining: when a process is lost, the others end and all of them start again.
//!
//! Nothing here is secret or authenticated: the ports belong into a network of the cluster's own.

use crate::{debug, warn};
use anyhow::{Context, anyhow};
use rustix::net::sockopt;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Where processes listen on this machine when no hostfile says otherwise: 2101, 2102, ...
const FIRST_PORT: usize = 2101;
/// Processes of one cluster at most.
pub const MOST_PROCESSES: usize = 1024;
/// How long whoever connects may take to say who it is.
const INTRODUCTION: Duration = Duration::from_secs(5);
/// How often to try again, and to look whether those that are connected still are.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of an introduction, and of what process 0 knows.
const MOST_HELLO: usize = 1 << 20;
const MOST_KNOWN: usize = 1 << 30;
/// How long what was sent may stay unacknowledged: then whoever should have is lost. With a quiet line asked after each
/// second, a cut network is noticed within five.
const SILENCE: u32 = 3500;
/// How long a process that has lost another stays connected to the rest.
pub const LEAVE: Duration = Duration::from_millis(500);
/// What every introduction begins with.
const MAGIC: [u8; 8] = *b"nspectra";

/// What the processes of a cluster have to agree on: a name and a value each.
pub type Settings = Vec<(String, String)>;

/// A cluster to be formed, as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// This process, from 0.
    pub process: usize,
    /// Where each process listens, `host:port`; at least one.
    pub hosts: Vec<String>,
    /// How long to wait for the others.
    pub wait: Duration,
}

/// A cluster that has formed.
pub struct Formed {
    /// This process, from 0.
    pub process: usize,
    /// Connections in the order of the processes; none to this one.
    pub sockets: Vec<Option<TcpStream>>,
    /// Tells this forming of the cluster from all others.
    pub generation: u64,
    /// What process 0 knows of earlier runs.
    pub known: Vec<u8>,
}

/// Why no cluster has formed.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// Two processes are not to do the same.
    #[error("process {process} ({host}) runs with another {what}: {theirs}; here it is {ours}")]
    Differs {
        /// The other one.
        process: usize,
        /// Where it listens.
        host: String,
        /// What differs.
        what: String,
        /// Its value there.
        theirs: String,
        /// And here.
        ours: String,
    },
    /// Somebody did not come.
    #[error("waited {seconds} s for process {process} ({host}); is it running? ({why})")]
    Absent {
        /// Who.
        process: usize,
        /// Where it should listen.
        host: String,
        /// How long.
        seconds: f64,
        /// What went wrong last.
        why: String,
    },
    /// This process cannot listen.
    #[error("cannot listen on {host}, where process {process} should: {error}")]
    Listen {
        /// This process.
        process: usize,
        /// Where.
        host: String,
        /// The system's word.
        error: io::Error,
    },
}

impl FormError {
    /// Whether it is a mistake of whoever started the processes.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Differs { .. })
    }
}

/// What a process says when it connects.
#[derive(Serialize, Deserialize)]
struct Hello {
    from: usize,
    to: usize,
    generation: u64,
    settings: Settings,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
struct Welcome {
    generation: u64,
    settings: Settings,
    /// Bytes that follow: what process 0 knows.
    known: usize,
}

/// Where each process listens, from a file with `host:port` a line, or else on this machine.
pub fn hosts(file: Option<&Path>, processes: usize) -> anyhow::Result<Vec<String>> {
    let Some(file) = file else {
        return Ok((0..processes).map(|process| format!("127.0.0.1:{}", FIRST_PORT + process)).collect());
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("hostfile {}", file.display()))?;
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).take(processes);
    let mut hosts: Vec<String> = Vec::new();
    for (number, line) in lines {
        let is_address = line.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(char::is_whitespace)
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        let place = format!("hostfile {}:{number}", file.display());
        if !is_address {
            return Err(anyhow!("{place}: `{line}` is no host:port"));
        }
        if hosts.iter().any(|host| host == line) {
            return Err(anyhow!("{place}: {line} is named twice"));
        }
        hosts.push(line.to_owned());
    }
    if hosts.len() < processes {
        let found = hosts.len();
        return Err(anyhow!("hostfile {}: {found} hosts for {processes} processes", file.display()));
    }
    Ok(hosts)
}

/// Where the others listen, once the cluster has formed.
static PEERS: OnceLock<Vec<String>> = OnceLock::new();

/// What has happened when a thread of this name, which moves data between processes, cannot go on.
pub fn lost(thread: &str) -> Option<String> {
    let moved = thread.strip_prefix("timely:send-").or_else(|| thread.strip_prefix("timely:recv-"));
    let process: usize = moved?.parse().ok()?;
    let host = PEERS.get()?.get(process)?;
    Some(format!(
        "lost process {process} ({host}): it has ended or cannot be reached; start all processes again"
    ))
}

fn send(socket: &mut TcpStream, message: &impl Serialize, more: &[u8]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    socket.write_all(&[&MAGIC[..], &length.to_le_bytes(), &text, more].concat())
}

fn receive<T: for<'de> Deserialize<'de>>(socket: &mut TcpStream) -> io::Result<T> {
    let (mut magic, mut length) = ([0; 8], [0; 4]);
    socket.read_exact(&mut magic)?;
    if magic != MAGIC {
        return Err(io::Error::other("it does not speak as a process of ours"));
    }
    socket.read_exact(&mut length)?;
    let mut text = vec![0; (u32::from_le_bytes(length) as usize).min(MOST_HELLO)];
    socket.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Has a lost peer noticed though nothing comes that would tell, and small messages sent at once.
fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, SILENCE)?;
    Ok(())
}

fn is_alive(socket: &TcpStream) -> bool {
    if socket.set_nonblocking(true).is_err() {
        return false;
    }
    let alive = match socket.peek(&mut [0]) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    };
    alive && socket.set_nonblocking(false).is_ok()
}

/// What process 0 hears from each process that is connected to all others, and tells all when it has heard it from all.
const READY: u8 = b'r';
const GO: u8 = b'g';

/// A cluster on its way.
struct Forming {
    sockets: Vec<Option<TcpStream>>,
    /// Who has said that it is ready.
    ready: Vec<bool>,
    generation: u64,
    known: Vec<u8>,
    /// Who was missing last, and why.
    absent: (usize, String),
}

impl Forming {
    fn lose(&mut self, process: usize, why: &dyn std::fmt::Display) {
        self.sockets[process] = None;
        self.ready[process] = false;
        self.absent = (process, why.to_string());
    }

    /// Takes one byte that a process has sent, if it has.
    fn hear(&mut self, process: usize, byte: u8) -> bool {
        let Some(socket) = &mut self.sockets[process] else { return false };
        let heard = socket.set_nonblocking(true).and_then(|()| {
            let mut said = [0];
            let read = socket.read(&mut said);
            socket.set_nonblocking(false)?;
            match read {
                Ok(1) if said[0] == byte => Ok(true),
                Ok(_) => Err(io::Error::other("it has ended")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(error) => Err(error),
            }
        });
        heard.unwrap_or_else(|error| {
            self.lose(process, &error);
            false
        })
    }
}

impl Cluster {
    /// The first thing that differs between two processes.
    fn compare(&self, process: usize, theirs: &Settings, ours: &Settings) -> Result<(), FormError> {
        let named = |settings: &Settings, what: &str| {
            let found = settings.iter().find(|(name, _)| name == what);
            found.map_or("none".to_owned(), |(_, value)| value.clone())
        };
        let names = ours.iter().chain(theirs).map(|(name, _)| name);
        for what in names {
            let (theirs, ours) = (named(theirs, what), named(ours, what));
            if theirs != ours {
                let host = self.hosts.get(process).cloned().unwrap_or_default();
                return Err(FormError::Differs { process, host, what: what.clone(), theirs, ours });
            }
        }
        Ok(())
    }

    /// Waits for all processes and connects them. `known` is what process 0 knows of earlier runs.
    pub fn form(&self, settings: &Settings, known: Vec<u8>) -> Result<Formed, FormError> {
        let began = Instant::now();
        let deadline = began + self.wait;
        let own = &self.hosts[self.process];
        let listener = loop {
            match TcpListener::bind(own.as_str()) {
                Ok(listener) => break listener,
                // Whoever ran here before may still be on its way out.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    thread::sleep(LOOK);
                }
                Err(error) => {
                    return Err(FormError::Listen { process: self.process, host: own.clone(), error });
                }
            }
        };
        let (introduced, introductions) = channel();
        listen(listener, introduced);
        let mut forming = Forming {
            sockets: self.hosts.iter().map(|_| None).collect(),
            ready: vec![false; self.hosts.len()],
            generation: crate::capture::live::now(),
            known,
            absent: (usize::from(self.process == 0), "it has not connected".into()),
        };
        loop {
            if self.is_formed(settings, &introductions, deadline, &mut forming)? {
                let _ = PEERS.set(self.hosts.clone());
                let Forming { sockets, generation, known, .. } = forming;
                return Ok(Formed { process: self.process, sockets, generation, known });
            }
            if Instant::now() >= deadline {
                let (process, why) = forming.absent;
                let (host, seconds) = (self.hosts[process].clone(), self.wait.as_secs_f64());
                return Err(FormError::Absent { process, host, seconds, why });
            }
        }
    }

    /// Goes a step further; whether all are there and know it.
    fn is_formed(
        &self,
        settings: &Settings,
        introductions: &Receiver<(TcpStream, Hello)>,
        deadline: Instant,
        forming: &mut Forming,
    ) -> Result<bool, FormError> {
        for process in 0..self.hosts.len() {
            // Process 0 says nothing until all are there; the others say so to it.
            let silent = self.process != 0 && process != 0 || !forming.ready[process];
            if silent && forming.sockets[process].as_ref().is_some_and(|socket| !is_alive(socket)) {
                forming.lose(process, &"it has ended");
            }
        }
        for process in
            (0..self.process).filter(|process| forming.sockets[*process].is_none()).collect::<Vec<_>>()
        {
            match self.dial(process, forming.generation, settings, deadline) {
                Ok((socket, welcome, known)) => {
                    self.compare(process, &welcome.settings, settings)?;
                    if process == 0 {
                        // Whoever was there before belongs to an earlier start.
                        forming.sockets.iter_mut().for_each(|socket| *socket = None);
                        forming.ready.fill(false);
                        (forming.generation, forming.known) = (welcome.generation, known);
                        forming.sockets[0] = Some(socket);
                    } else if welcome.generation == forming.generation {
                        forming.sockets[process] = Some(socket);
                    } else {
                        // Or this process does: process 0 may have been started again.
                        forming.lose(0, &"the cluster is being started again");
                        forming.lose(process, &"it belongs to another start of the cluster");
                    }
                }
                Err(error) => forming.lose(process, &error),
            }
            if forming.sockets[process].is_none() {
                thread::sleep(LOOK);
                return Ok(false);
            }
        }
        while let Ok((socket, hello)) = introductions.recv_timeout(LOOK / 10) {
            self.welcome(settings, socket, hello, forming)?;
        }
        let is_missing = |process: &usize| *process != self.process && forming.sockets[*process].is_none();
        if let Some(missing) = (0..self.hosts.len()).find(is_missing) {
            if forming.absent.0 != missing {
                forming.absent = (missing, "it has not connected".into());
            }
            return Ok(false);
        }
        let said = |socket: &mut Option<TcpStream>, byte| {
            socket.as_mut().is_some_and(|socket| socket.write_all(&[byte]).is_ok())
        };
        if self.process > 0 {
            if !std::mem::replace(&mut forming.ready[self.process], true)
                && !said(&mut forming.sockets[0], READY)
            {
                forming.lose(0, &"it has ended");
            }
            let go = forming.hear(0, GO);
            if forming.sockets[0].is_none() {
                forming.ready[self.process] = false;
            }
            return Ok(go);
        }
        for process in 1..self.hosts.len() {
            forming.ready[process] |= !forming.ready[process] && forming.hear(process, READY);
            if !forming.ready[process] && forming.sockets[process].is_some() {
                forming.absent = (process, "it is not connected to all others yet".into());
            }
        }
        let all = (1..self.hosts.len()).all(|process| forming.ready[process]);
        Ok(all && forming.sockets[1..].iter_mut().all(|socket| said(socket, GO)))
    }

    /// Answers one that has connected.
    fn welcome(
        &self,
        settings: &Settings,
        mut socket: TcpStream,
        hello: Hello,
        forming: &mut Forming,
    ) -> Result<(), FormError> {
        let behind = self.process + 1..self.hosts.len();
        let is_ours = hello.to == self.process && behind.contains(&hello.from);
        let known: &[u8] = if self.process == 0 { &forming.known } else { &[] };
        let welcome =
            Welcome { generation: forming.generation, settings: settings.clone(), known: known.len() };
        let answered = send(&mut socket, &welcome, known);
        if !is_ours {
            return Ok(());
        }
        // It has been told what differs; then so are we.
        self.compare(hello.from, &hello.settings, settings)?;
        let is_now = self.process == 0 || hello.generation == forming.generation;
        if is_now && answered.is_ok() && socket.set_read_timeout(None).is_ok() {
            // One that comes again has been started again.
            forming.ready[hello.from] = false;
            forming.sockets[hello.from] = Some(socket);
        }
        Ok(())
    }

    fn dial(
        &self,
        process: usize,
        generation: u64,
        settings: &Settings,
        deadline: Instant,
    ) -> io::Result<(TcpStream, Welcome, Vec<u8>)> {
        let left = || deadline.saturating_duration_since(Instant::now()).max(LOOK);
        let addresses = self.hosts[process].to_socket_addrs()?;
        let mut found = Err(io::Error::other("it has no address"));
        for address in addresses {
            found = TcpStream::connect_timeout(&address, left().min(INTRODUCTION));
            if found.is_ok() {
                break;
            }
        }
        let mut socket = found?;
        debug!("connected to process {process} at {}", self.hosts[process]);
        tune(&socket)?;
        let hello = Hello { from: self.process, to: process, generation, settings: settings.clone() };
        send(&mut socket, &hello, &[])?;
        // It answers once those before it have answered it.
        socket.set_read_timeout(Some(left()))?;
        let welcome: Welcome = receive(&mut socket)?;
        let mut known = vec![0; welcome.known.min(MOST_KNOWN)];
        socket.read_exact(&mut known)?;
        socket.set_read_timeout(None)?;
        Ok((socket, welcome, known))
    }
}

/// Takes connections and hears who they are, each on a thread of its own: strangers hold nobody up.
fn listen(listener: TcpListener, introduced: Sender<(TcpStream, Hello)>) {
    let hear = |mut socket: TcpStream| -> io::Result<(TcpStream, Hello)> {
        socket.set_read_timeout(Some(INTRODUCTION))?;
        tune(&socket)?;
        let hello = receive(&mut socket)?;
        Ok((socket, hello))
    };
    let accept = move || {
        for socket in listener.incoming().flatten() {
            let introduced = introduced.clone();
            let hear = move || {
                if let Ok(introduction) = hear(socket) {
                    // Nobody waits any more once the cluster has formed.
                    let _ = introduced.send(introduction);
                }
            };
            if thread::Builder::new().name("introduction".into()).spawn(hear).is_err() {
                warn!("cannot hear who connects: no thread");
            }
        }
    };
    // Without it nobody comes, and that is what will be said.
    let _ = thread::Builder::new().name("cluster".into()).spawn(accept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostfile_has_a_host_and_port_a_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let read = |text: &str, processes| {
            std::fs::write(file.path(), text).expect("written");
            hosts(Some(file.path()), processes).map_err(|error| format!("{error:#}"))
        };
        let three = "# ours\n\na:1\n [::1]:2 \nc:3\n";
        assert_eq!(read(three, 2), Ok(vec!["a:1".into(), "[::1]:2".into()]));
        for (text, says) in [
            (three, "3 hosts for 4 processes"),
            ("a:1\nb\n", ":2: `b` is no host:port"),
            ("a:0\n", "no host:port"),
            ("a b:1\n", "no host:port"),
            ("a:1\na:1\n", ":2: a:1 is named twice"),
        ] {
            let refused = read(text, 4).expect_err("a refusal");
            assert!(refused.contains(says), "{refused}");
        }
        assert_eq!(hosts(None, 2).expect("hosts"), ["127.0.0.1:2101", "127.0.0.1:2102"]);
    }

    fn cluster(process: usize, hosts: &[String]) -> Cluster {
        Cluster { process, hosts: hosts.to_vec(), wait: Duration::from_secs(10) }
    }

    fn free() -> Vec<String> {
        let open: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        open.iter().map(|open| open.local_addr().expect("an address").to_string()).collect()
    }

    #[test]
    fn processes_find_each_other_and_hear_what_the_first_knows() {
        let hosts = free();
        let settings = vec![("window".to_owned(), "60s".to_owned())];
        let start = |process: usize| {
            let (cluster, settings) = (cluster(process, &hosts), settings.clone());
            thread::spawn(move || {
                cluster.form(&settings, if process == 0 { b"known".to_vec() } else { Vec::new() })
            })
        };
        let running: Vec<_> = [2, 1, 0].map(start).into_iter().collect();
        let formed: Vec<_> =
            running.into_iter().map(|one| one.join().expect("a thread").expect("a cluster")).collect();
        for (formed, process) in formed.iter().zip([2, 1, 0]) {
            assert_eq!(formed.known, b"known");
            let connected: Vec<_> = formed.sockets.iter().map(Option::is_some).collect();
            assert_eq!(connected, [0, 1, 2].map(|other| other != process));
        }
        assert!(formed.windows(2).all(|two| two[0].generation == two[1].generation));
    }

    #[test]
    fn processes_that_are_to_do_something_else_refuse_each_other() {
        let hosts = free()[..2].to_vec();
        let start = |process: usize| {
            let (cluster, window) = (cluster(process, &hosts), format!("{}s", 10 + process));
            thread::spawn(move || cluster.form(&vec![("window".into(), window)], Vec::new()))
        };
        let said = [start(0), start(1)].map(|one| match one.join().expect("a thread") {
            Ok(_) => panic!("formed"),
            Err(error) => error.to_string(),
        });
        assert!(said[0].contains("process 1") && said[0].contains("another window: 11s; here it is 10s"));
        assert!(said[1].contains("process 0") && said[1].contains("another window: 10s; here it is 11s"));
    }
}
