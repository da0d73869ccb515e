//! Who connects to the port of a cluster: the messages of an introduction, and the thread that hears them.
//!
//! An introduction begins with a [`Greeting`] of fixed size each way. The one that connects speaks first and says what it
//! runs with as a digest; nothing of the settings is said to one that has not shown that it runs with nearly the same.
//! Two fields are free for a proof by a shared secret, and a byte names the way of proving. So far there is none.
//!
//! Everything is bounded, before the cluster has formed and after: introductions at once, bytes and time of each. One
//! thread hears all of them and waits for none.

use super::Settings;
use crate::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What every greeting begins with.
const MAGIC: [u8; 8] = *b"nspectra";
/// The version of these messages.
const VERSION: u8 = 2;
/// Nothing has to be proven.
const NO_PROOF: u8 = 0;
/// Bytes of a greeting.
const GREETING: usize = 160;
/// Bytes of settings as they are sent where two processes differ.
const MAX_SETTINGS: usize = 1 << 20;
/// Settings of one process at most.
const MAX_NAMES: usize = 64;
/// Settings that may differ before the other one counts as a stranger.
const MAX_DIFFERENT: usize = 2;
/// How long whoever connects may take to say who it is.
pub(super) const INTRODUCTION: Duration = Duration::from_secs(5);
/// Introductions heard at once while the cluster forms, and after. The oldest is dropped for a new one.
const MAX_FORMING: usize = 256;
const MAX_FORMED: usize = 16;
/// Of these, the ones whose settings are being read.
const MAX_DIFFERING: usize = 4;
/// How long the thread waits when the system gives no connection: without it, it would ask again at once, for ever.
const PAUSE: Duration = Duration::from_millis(200);

/// How often it is said that there is no connection to be had.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What a greeting is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of the one that connects.
    Hello,
    /// It is expected; [`Greeting::length`] bytes of what process 0 knows follow.
    Welcome,
    /// It runs with other settings: it is to send them, and is told which differ.
    Differs,
    /// The cluster has formed already.
    Formed,
    /// It speaks another version, or proves itself in another way.
    Other,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Hello, Self::Welcome, Self::Differs, Self::Formed, Self::Other];
}

/// The first message each way: 160 bytes whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) version: u8,
    /// How the sender proves that it belongs to the cluster; 0: not at all.
    pub(super) scheme: u8,
    pub(super) kind: Kind,
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) generation: u64,
    /// Bytes that follow a [`Kind::Welcome`].
    pub(super) length: u64,
    /// Of the settings; zeros from one that does not say what it runs with.
    pub(super) digest: [u8; 32],
    /// For a proof, zeros without one: a number used once, and the proof over the other side's.
    pub(super) nonce: [u8; 32],
    pub(super) proof: [u8; 32],
}

impl Greeting {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            version: VERSION,
            scheme: NO_PROOF,
            kind,
            from: 0,
            to: 0,
            generation: 0,
            length: 0,
            digest: [0; 32],
            nonce: [0; 32],
            proof: [0; 32],
        }
    }

    fn encode(&self) -> [u8; GREETING] {
        let mut bytes = [0; GREETING];
        bytes[..8].copy_from_slice(&MAGIC);
        (bytes[8], bytes[9], bytes[10]) = (self.version, self.scheme, self.kind as u8);
        bytes[12..16].copy_from_slice(&self.from.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.to.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.generation.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..72].copy_from_slice(&self.digest);
        bytes[72..104].copy_from_slice(&self.nonce);
        bytes[104..136].copy_from_slice(&self.proof);
        bytes
    }

    /// `None` of bytes that no process of ours has sent.
    fn decode(bytes: &[u8; GREETING]) -> Option<Self> {
        let part = |from: usize| bytes[from..].first_chunk::<8>().map(|part| u64::from_le_bytes(*part));
        let half = |from: usize| bytes[from..].first_chunk::<4>().map(|part| u32::from_le_bytes(*part));
        let digest = |from: usize| bytes[from..].first_chunk::<32>().copied();
        if bytes[..8] != MAGIC {
            return None;
        }
        Some(Self {
            version: bytes[8],
            scheme: bytes[9],
            kind: Kind::ALL.into_iter().find(|kind| *kind as u8 == bytes[10]).unwrap_or(Kind::Other),
            from: half(12)?,
            to: half(16)?,
            generation: part(24)?,
            length: part(32)?,
            digest: digest(40)?,
            nonce: digest(72)?,
            proof: digest(104)?,
        })
    }

    pub(super) fn send(&self, socket: &mut TcpStream, more: &[u8]) -> io::Result<()> {
        socket.write_all(&self.encode())?;
        socket.write_all(more)
    }

    pub(super) fn receive(socket: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = [0; GREETING];
        socket.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::other("it has hung up"),
            _ => error,
        })?;
        Self::decode(&bytes).ok_or_else(|| io::Error::other("it is not a NetSpectra process"))
    }

    /// Whether it is of this version and proves itself as is done here.
    pub(super) fn is_understood(&self) -> bool {
        (self.version, self.scheme) == (VERSION, NO_PROOF)
    }
}

/// A digest that is the same for the same settings only.
pub(super) fn digest(settings: &Settings) -> [u8; 32] {
    let mut digest = Sha256::new();
    for text in settings.iter().flat_map(|(name, value)| [name, value]) {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    digest.finalize().into()
}

/// What differs between two processes: names, each with its value at the one that tells it, or none where it does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Differences(pub(super) Vec<(String, Option<String>)>);

impl Differences {
    /// What of our settings another one's do not have, or have with another value, and the other way round. The values
    /// are for one that runs with nearly the same: `None` in place of each for anyone else.
    pub(super) fn between(ours: &Settings, theirs: &Settings) -> Self {
        let names = ours.iter().chain(theirs.iter().filter(|(name, _)| !has(ours, name)));
        let differing = names.map(|(name, _)| name).filter(|name| value(ours, name) != value(theirs, name));
        let names: Vec<&String> = differing.collect();
        let is_member = names.len() <= MAX_DIFFERENT;
        // A name that only the other one has is not repeated to a stranger.
        let told = names.into_iter().filter(|name| is_member || has(ours, name));
        Self(told.map(|name| (name.clone(), is_member.then(|| value(ours, name)))).collect())
    }

    /// Whether the other one runs with nearly the same.
    pub(super) fn is_member(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(_, value)| value.is_some())
    }

    pub(super) fn names(&self) -> String {
        self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

fn has(settings: &Settings, name: &str) -> bool {
    settings.iter().any(|(one, _)| one == name)
}

/// The value of a setting; `none` where there is none.
pub(super) fn value(settings: &Settings, name: &str) -> String {
    let found = settings.iter().find(|(one, _)| one == name);
    found.map_or("none".to_owned(), |(_, value)| value.clone())
}

/// Sends settings, or what differs.
pub(super) fn send_text(socket: &mut TcpStream, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    socket.write_all(&[&length.to_le_bytes()[..], &text].concat())
}

/// Receives what [`send_text`] has sent.
pub(super) fn receive_text<T: for<'de> Deserialize<'de>>(socket: &mut TcpStream) -> io::Result<T> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut text = Vec::new();
    socket.take(u64::from(u32::from_le_bytes(length)).min(MAX_SETTINGS as u64)).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// One that has introduced itself; its connection waits for an answer.
pub(super) struct Introduced {
    pub(super) socket: TcpStream,
    pub(super) hello: Greeting,
    /// Where it does not run with what this process runs with.
    pub(super) difference: Option<Difference>,
}

/// What another process runs with otherwise.
pub(super) struct Difference {
    /// What it is to be told.
    pub(super) told: Differences,
    /// The first setting that differs, and its value there.
    pub(super) what: String,
    pub(super) theirs: String,
}

/// What this process tells of itself.
struct Own {
    process: u32,
    processes: u32,
    settings: Settings,
    digest: [u8; 32],
    has_formed: AtomicBool,
    stops: AtomicBool,
}

/// The open port, and who has come. Closed when dropped.
pub(super) struct Port {
    listener: Arc<TcpListener>,
    own: Arc<Own>,
    pub(super) introduced: Receiver<Introduced>,
    thread: Option<JoinHandle<()>>,
}

impl Port {
    /// Hears from now on who connects.
    pub(super) fn open(
        listener: TcpListener,
        (process, processes): (usize, usize),
        settings: &Settings,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let own = Arc::new(Own {
            process: u32::try_from(process).map_err(io::Error::other)?,
            processes: u32::try_from(processes).map_err(io::Error::other)?,
            settings: settings.clone(),
            digest: digest(settings),
            has_formed: AtomicBool::new(false),
            stops: AtomicBool::new(false),
        });
        let (introduce, introduced) = sync_channel(MAX_FORMING);
        let listener = Arc::new(listener);
        let hearing = Hearing {
            listener: listener.clone(),
            own: own.clone(),
            introduce,
            heard: Vec::new(),
            differing: 0,
            warned: None,
        };
        let thread = thread::Builder::new().name("cluster".into()).spawn(move || hearing.run())?;
        Ok(Self { listener, own, introduced, thread: Some(thread) })
    }

    /// From now on whoever connects is told that it comes too late, and nothing else.
    pub(super) fn has_formed(&self) {
        self.own.has_formed.store(true, SeqCst);
        while self.introduced.try_recv().is_ok() {}
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.own.stops.store(true, SeqCst);
        // Wakes the thread.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One that is about to say who it is.
struct Heard {
    socket: TcpStream,
    since: Instant,
    bytes: Vec<u8>,
    /// Its greeting, where its settings are to follow.
    hello: Option<Greeting>,
}

/// What becomes of one that has said something.
enum Next {
    /// There is more to come.
    Wait,
    Introduced(Box<Introduced>),
    /// It gets no other answer.
    Close,
}

/// The thread that hears who connects.
struct Hearing {
    listener: Arc<TcpListener>,
    own: Arc<Own>,
    introduce: SyncSender<Introduced>,
    heard: Vec<Heard>,
    /// Of these, the ones whose settings are being read.
    differing: usize,
    /// When it was said last that there is no room.
    warned: Option<Instant>,
}

impl Hearing {
    fn run(mut self) {
        while !self.own.stops.load(SeqCst) {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(_) => {
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            let mut ready = ready.into_iter();
            let is_asked = ready.next().unwrap_or(false);
            self.differing = self.heard.iter().filter(|heard| heard.hello.is_some()).count();
            for (heard, is_ready) in std::mem::take(&mut self.heard).into_iter().zip(ready) {
                let heard = if is_ready { self.hear(heard) } else { Some(heard) };
                self.heard.extend(heard.filter(|heard| heard.since.elapsed() < INTRODUCTION));
            }
            if is_asked {
                self.accept();
            }
        }
    }

    /// Waits until something happens, for a second at most while somebody is heard; then which of the listener and the
    /// connections have something.
    fn wait(&self) -> io::Result<Vec<bool>> {
        let mut polled = vec![PollFd::new(&*self.listener, PollFlags::IN)];
        polled.extend(self.heard.iter().map(|heard| PollFd::new(&heard.socket, PollFlags::IN)));
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        match poll(&mut polled, (!self.heard.is_empty()).then_some(&second)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(polled.iter().map(|one| !one.revents().is_empty()).collect())
    }

    /// Takes the connections that wait; for one too many the oldest goes.
    fn accept(&mut self) {
        let max = if self.own.has_formed.load(SeqCst) { MAX_FORMED } else { MAX_FORMING };
        // Those that are heard already have their turn in between.
        for _ in 0..max {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if super::tune(&socket).and_then(|()| socket.set_nonblocking(true)).is_err() {
                        continue;
                    }
                    let excess = (self.heard.len() + 1).saturating_sub(max);
                    self.heard.drain(..excess);
                    let (since, bytes) = (Instant::now(), Vec::new());
                    self.heard.push(Heard { socket, since, bytes, hello: None });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if !self.own.stops.load(SeqCst) {
                        self.give_way(&error);
                    }
                    return;
                }
            }
        }
    }

    /// There is no room for a connection: those of this thread are closed, and it waits a little.
    fn give_way(&mut self, error: &io::Error) {
        if self.warned.is_none_or(|warned| warned.elapsed() > WARN_EVERY) {
            warn!("cannot take a connection at the port of the cluster: {error}");
            self.warned = Some(Instant::now());
        }
        self.heard.clear();
        thread::sleep(PAUSE);
    }

    /// Goes on with one that has sent something; `None` when it has said who it is, or is not worth to be heard.
    fn hear(&mut self, mut heard: Heard) -> Option<Heard> {
        loop {
            let missing = heard.wanted()? - heard.bytes.len();
            if missing == 0 {
                match self.next(&mut heard) {
                    Next::Wait => continue,
                    Next::Introduced(introduced) => {
                        // Nobody waits any more, or too many wait already: it will come again.
                        let _ = self.introduce.try_send(*introduced);
                        return None;
                    }
                    Next::Close => return None,
                }
            }
            let mut some = [0; 4096];
            match heard.socket.read(&mut some[..missing.min(4096)]) {
                Ok(0) => return None,
                Ok(read) => heard.bytes.extend_from_slice(&some[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(heard),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Answers what has come whole.
    fn next(&mut self, heard: &mut Heard) -> Next {
        let Some(hello) = heard.hello.take() else { return self.greet(heard) };
        let text = heard.bytes.get(4..).unwrap_or_default();
        let Ok(theirs) = serde_json::from_slice::<Settings>(text) else { return Next::Close };
        if theirs.len() > MAX_NAMES {
            return Next::Close;
        }
        let told = Differences::between(&self.own.settings, &theirs);
        // Equal settings have equal digests.
        let Some((what, _)) = told.0.first() else { return Next::Close };
        let (what, theirs) = (what.clone(), value(&theirs, what));
        heard.introduced(hello, Some(Difference { told, what, theirs }))
    }

    /// Answers a greeting.
    fn greet(&mut self, heard: &mut Heard) -> Next {
        let Some(hello) = heard.bytes.first_chunk().and_then(Greeting::decode) else { return Next::Close };
        heard.bytes.clear();
        let refuse = |heard: &mut Heard, kind| match Greeting::new(kind).send(&mut heard.socket, &[]) {
            Ok(()) if kind == Kind::Differs => Next::Wait,
            _ => Next::Close,
        };
        if !hello.is_understood() {
            return refuse(heard, Kind::Other);
        }
        if hello.kind != Kind::Hello {
            return Next::Close;
        }
        if self.own.has_formed.load(SeqCst) {
            return refuse(heard, Kind::Formed);
        }
        if hello.digest != self.own.digest {
            if self.differing >= MAX_DIFFERING {
                return Next::Close;
            }
            self.differing += 1;
            heard.hello = Some(hello);
            return refuse(heard, Kind::Differs);
        }
        let is_ours =
            hello.to == self.own.process && hello.from > hello.to && hello.from < self.own.processes;
        if is_ours { heard.introduced(hello, None) } else { Next::Close }
    }
}

impl Heard {
    /// Bytes until something can be answered; `None` when it wants to send too many.
    fn wanted(&self) -> Option<usize> {
        match (&self.hello, self.bytes.first_chunk()) {
            (None, _) => Some(GREETING),
            (Some(_), None) => Some(4),
            (Some(_), Some(length)) => {
                let length = u32::from_le_bytes(*length) as usize;
                (length > 0 && length <= MAX_SETTINGS).then_some(4 + length)
            }
        }
    }

    /// Hands it over with a connection of its own.
    fn introduced(&self, hello: Greeting, difference: Option<Difference>) -> Next {
        let socket = self.socket.try_clone().and_then(|socket| {
            socket.set_nonblocking(false)?;
            socket.set_write_timeout(Some(INTRODUCTION))?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => Next::Introduced(Box::new(Introduced { socket, hello, difference })),
            Err(_) => Next::Close,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_greeting_is_read_as_it_was_written() {
        let mut greeting = Greeting::new(Kind::Welcome);
        (greeting.from, greeting.to, greeting.generation, greeting.length) = (1, 2, 3 << 40, 4 << 40);
        (greeting.digest, greeting.nonce, greeting.proof) = ([5; 32], [6; 32], [7; 32]);
        assert_eq!(Greeting::decode(&greeting.encode()), Some(greeting));
        assert_eq!(Greeting::decode(&[0; GREETING]), None);
    }

    #[test]
    fn values_are_told_to_those_that_run_with_nearly_the_same() {
        let ours = settings(&[("window", "1s"), ("tasks", "a"), ("filter", "tcp")]);
        let near = settings(&[("window", "2s"), ("tasks", "a"), ("filter", "tcp")]);
        let differences = Differences::between(&ours, &near);
        assert_eq!(differences.0, [("window".to_owned(), Some("1s".to_owned()))]);
        assert!(differences.is_member());
        let stranger = Differences::between(&ours, &settings(&[("guess", "x")]));
        let names = ["window", "tasks", "filter"].map(|name| (name.to_owned(), None));
        assert_eq!(stranger.0, names);
        assert!(!stranger.is_member() && !Differences::between(&ours, &Settings::new()).is_member());
    }

    #[test]
    fn a_digest_tells_names_from_values() {
        let digests = [
            settings(&[("a", "bc")]),
            settings(&[("ab", "c")]),
            settings(&[("a", "b"), ("c", "")]),
            settings(&[]),
        ];
        for (at, one) in digests.iter().enumerate() {
            assert!(digests[..at].iter().all(|other| digest(one) != digest(other)));
        }
    }
}
