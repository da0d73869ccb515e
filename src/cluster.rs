//! Forms a cluster of processes: who they are, whether they are to do the same, and the sockets that they share.
//!
//! Every process connects to those before it and is connected to by those behind it. timely's own start waits for ever,
//! takes anyone for a peer and knows nothing of settings; so the handshake is ours, and timely gets the sockets. Process 0
//! mints a generation, which tells this forming of the cluster from others, and sends everybody what it knows of earlier
//! runs. There is no rejoining: when a process is lost, the others end and all of them start again.
//!
//! Who connects is heard by `introduction`, which bounds what strangers can take and says nothing of the settings to
//! them. Nothing here is authenticated: the ports belong into a network of the cluster's own.

mod introduction;

use crate::debug;
use anyhow::{Context, anyhow};
use introduction::{
    Difference, Differences, Greeting, INTRODUCTION, Introduced, Kind, Port, receive_text, send_text,
};
use rustix::net::sockopt;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// Where processes listen on this machine when no hostfile says otherwise: 2101, 2102, ...
const FIRST_PORT: usize = 2101;
/// Processes of one cluster at most.
pub const MOST_PROCESSES: usize = 1024;
/// How often to try again, and to look whether those that are connected still are.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of what process 0 knows.
const MOST_KNOWN: u64 = 1 << 30;
/// How long a process that comes too late tries again: those of a cluster that has lost one end within five seconds.
const ENDING: Duration = Duration::from_secs(8);
/// How long what was sent may stay unacknowledged: then whoever should have is lost. With a quiet line asked after each
/// second, a cut network is noticed within five.
const SILENCE: u32 = 3500;
/// How long a process that has lost another stays connected to the rest.
pub const LEAVE: Duration = Duration::from_millis(500);
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
    /// Tells those that come too late.
    _port: Port,
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
    /// The others have begun without this process.
    #[error(
        "process {process} ({host}) belongs to a cluster that has formed already; stop all processes and start them together"
    )]
    Formed {
        /// The other one.
        process: usize,
        /// Where it listens.
        host: String,
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
    /// Since when another process has said that it belongs to a cluster that has formed.
    late: Option<(usize, Instant)>,
}

/// Why a process has not welcomed this one.
enum Refused {
    /// It may do so later.
    Yet(io::Error),
    /// It belongs to a cluster that has formed.
    Formed,
    /// It never will.
    Ever(FormError),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Yet(error)
    }
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
    /// Another process is to do something else.
    fn differs(&self, process: usize, what: String, theirs: String, settings: &Settings) -> FormError {
        let host = self.hosts.get(process).cloned().unwrap_or_default();
        let ours = introduction::value(settings, &what);
        FormError::Differs { process, host, what, theirs, ours }
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
        let port = Port::open(listener, (self.process, self.hosts.len()), settings)
            .map_err(|error| FormError::Listen { process: self.process, host: own.clone(), error })?;
        let mut forming = Forming {
            sockets: self.hosts.iter().map(|_| None).collect(),
            ready: vec![false; self.hosts.len()],
            generation: crate::capture::live::now(),
            known,
            absent: (usize::from(self.process == 0), "it has not connected".into()),
            late: None,
        };
        loop {
            if self.is_formed(settings, &port, deadline, &mut forming)? {
                port.has_formed();
                let _ = PEERS.set(self.hosts.clone());
                let Forming { sockets, generation, known, .. } = forming;
                return Ok(Formed { process: self.process, sockets, generation, known, _port: port });
            }
            let is_over = Instant::now() >= deadline;
            if let Some((process, since)) = forming.late
                && (is_over || since.elapsed() >= ENDING)
            {
                return Err(FormError::Formed { process, host: self.hosts[process].clone() });
            }
            if is_over {
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
        port: &Port,
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
        if !self.is_welcome(settings, deadline, forming)? {
            return Ok(false);
        }
        while let Ok(introduced) = port.introduced.recv_timeout(LOOK / 10) {
            self.welcome(settings, introduced, forming)?;
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

    /// Connects to those before this process that it is not connected to; whether it is to all of them.
    fn is_welcome(
        &self,
        settings: &Settings,
        deadline: Instant,
        forming: &mut Forming,
    ) -> Result<bool, FormError> {
        for process in
            (0..self.process).filter(|process| forming.sockets[*process].is_none()).collect::<Vec<_>>()
        {
            match self.dial(process, forming.generation, settings, deadline) {
                Ok((socket, welcome, known)) => {
                    forming.late = None;
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
                Err(Refused::Ever(error)) => return Err(error),
                Err(Refused::Formed) => {
                    forming.late.get_or_insert((process, Instant::now()));
                    forming.lose(process, &"it belongs to a cluster that has formed already");
                }
                Err(Refused::Yet(error)) => {
                    forming.late = None;
                    forming.lose(process, &error);
                }
            }
            if forming.sockets[process].is_none() {
                thread::sleep(LOOK);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Answers one that has connected.
    fn welcome(
        &self,
        settings: &Settings,
        Introduced { mut socket, hello, difference }: Introduced,
        forming: &mut Forming,
    ) -> Result<(), FormError> {
        let from = hello.from as usize;
        let is_ours =
            hello.to as usize == self.process && (self.process + 1..self.hosts.len()).contains(&from);
        if let Some(Difference { told, what, theirs }) = difference {
            // It does not come again for a word that is lost, but for the same reason.
            let _ = send_text(&mut socket, &told);
            if is_ours && told.is_member() {
                return Err(self.differs(from, what, theirs, settings));
            }
            if is_ours && forming.sockets[from].is_none() {
                forming.absent =
                    (from, format!("a process that claims to be it has a different {}", told.names()));
            }
            return Ok(());
        }
        let known: &[u8] = if self.process == 0 { &forming.known } else { &[] };
        let mut welcome = Greeting::new(Kind::Welcome);
        (welcome.generation, welcome.length) = (forming.generation, known.len() as u64);
        (welcome.from, welcome.to) = (hello.to, hello.from);
        let answered = welcome.send(&mut socket, known);
        let is_now = self.process == 0 || hello.generation == forming.generation;
        if is_now && is_ours && answered.is_ok() && socket.set_write_timeout(None).is_ok() {
            // One that comes again has been started again.
            forming.ready[from] = false;
            forming.sockets[from] = Some(socket);
        }
        Ok(())
    }

    fn dial(
        &self,
        process: usize,
        generation: u64,
        settings: &Settings,
        deadline: Instant,
    ) -> Result<(TcpStream, Greeting, Vec<u8>), Refused> {
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
        let mut hello = Greeting::new(Kind::Hello);
        // There are few processes.
        (hello.from, hello.to) = (self.process as u32, process as u32);
        (hello.generation, hello.digest) = (generation, introduction::digest(settings));
        hello.send(&mut socket, &[])?;
        // It answers once those before it have answered it.
        socket.set_read_timeout(Some(left()))?;
        let answer = Greeting::receive(&mut socket)?;
        match answer.kind {
            _ if !answer.is_understood() => {
                Err(io::Error::other("it is of another version of NetSpectra").into())
            }
            Kind::Welcome => {
                let mut known = Vec::new();
                let length = answer.length.min(MOST_KNOWN);
                (&mut socket).take(length).read_to_end(&mut known)?;
                if known.len() as u64 != length {
                    return Err(io::Error::other("it has hung up").into());
                }
                socket.set_read_timeout(None)?;
                Ok((socket, answer, known))
            }
            Kind::Differs => Err(self.told(process, settings, &mut socket)?),
            Kind::Formed => Err(Refused::Formed),
            Kind::Hello | Kind::Other => {
                Err(io::Error::other("it is of another version of NetSpectra").into())
            }
        }
    }

    /// What another process tells one that runs with other settings.
    fn told(&self, process: usize, settings: &Settings, socket: &mut TcpStream) -> io::Result<Refused> {
        send_text(socket, settings)?;
        let Differences(told) = receive_text(socket)?;
        let names = told.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let Some((what, theirs)) = told.into_iter().next() else {
            return Err(io::Error::other("it runs with other settings"));
        };
        let theirs =
            theirs.unwrap_or_else(|| format!("not told, since more than two settings differ ({names})"));
        Ok(Refused::Ever(self.differs(process, what, theirs, settings)))
    }
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

    #[test]
    fn one_that_is_started_again_alone_is_soon_told_that_the_others_have_begun() {
        let hosts = free()[..2].to_vec();
        let settings = vec![("window".to_owned(), "60s".to_owned())];
        let start = |process: usize| {
            let (cluster, settings) = (cluster(process, &hosts), settings.clone());
            thread::spawn(move || cluster.form(&settings, Vec::new()))
        };
        let [first, second] =
            [start(0), start(1)].map(|one| one.join().expect("a thread").expect("a cluster"));
        // It ends, and leaves the port.
        drop(second);
        let again = Cluster { wait: Duration::from_secs(1), ..cluster(1, &hosts) };
        let said = again.form(&settings, Vec::new()).err().expect("no cluster").to_string();
        assert!(said.contains(&format!("process 0 ({})", hosts[0])), "{said}");
        assert!(said.contains("has formed already; stop all processes"), "{said}");
        drop(first);
    }

    #[test]
    fn a_stranger_learns_no_value_and_holds_nobody_up() {
        let hosts = free()[..2].to_vec();
        let names = ["window", "tasks", "filter"];
        let settings: Settings = names.map(|name| (name.to_owned(), format!("secret {name}"))).to_vec();
        let start = |process: usize| {
            let (cluster, settings) = (cluster(process, &hosts), settings.clone());
            thread::spawn(move || cluster.form(&settings, b"known".to_vec()))
        };
        let first = start(0);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stranger = loop {
            match TcpStream::connect(&hosts[0]) {
                Ok(stranger) => break stranger,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        stranger.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
        let mut hello = Greeting::new(Kind::Hello);
        hello.from = 1;
        hello.send(&mut stranger, &[]).expect("sent");
        assert_eq!(Greeting::receive(&mut stranger).expect("an answer"), Greeting::new(Kind::Differs));
        send_text(&mut stranger, &vec![("guess", "1")]).expect("sent");
        let mut told = String::new();
        stranger.read_to_string(&mut told).expect("the rest");
        assert!(told.contains("window") && !told.contains("secret") && !told.contains("known"), "{told}");
        let second = start(1);
        for one in [first, second] {
            assert_eq!(one.join().expect("a thread").expect("a cluster").known, b"known");
        }
    }
}
