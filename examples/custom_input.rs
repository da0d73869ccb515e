//! An input of one's own, `json_lines`: observations of many packets each, a JSON object a line, from a file, a pipe or a
//! Unix socket. docs/EXTENDING.md goes through it step by step.
//!
//! ```json
//! {"src_ip":"192.0.2.1","dst_ip":"192.0.2.2","src_port":1234,"dst_port":443,"protocol":6,
//!  "packets":10,"bytes":1500,"first":"2026-11-22T09:15:00Z","last":"2026-11-22T09:15:07.5Z"}
//! ```
//!
//! `custom_input -c examples/custom_input.yaml` is `ns-engine` with it. What a line does not say is 0; the columns of extra
//! fields (`ttl`, `dscp`, ...) may stand there too. A line that is no observation counts as one malformed packet.

use netspectra::account::{Found, InputKey};
use netspectra::bus::Settings;
use netspectra::config::Registries;
use netspectra::dataflows::aggregator::OptionsError;
use netspectra::dataflows::field::{Extension, WORDS, parse_extra};
use netspectra::dataflows::measure::Weight;
use netspectra::dataflows::packet::{Packet, Transport};
use netspectra::intake::registry::{Input, InputError, InputKind, InputRegistry, Opening, Source};
use netspectra::intake::{Intake, Placer, Position, Reader, Taken, Wakers};
use netspectra::ledger::{Counts, InputReport};
use netspectra::options::OwnOptions;
use netspectra::programs::ns_engine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use timely::scheduling::SyncActivator;

const KIND: InputKind = InputKind { name: "json_lines", keys: &["path"], read };

/// Bytes read at once, and of the longest line.
const READ: usize = 64 << 10;
/// Pieces that wait for the workers.
const AHEAD: usize = 16;
/// How long to wait for lines before looking whether to stop.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// How long a socket may go on to send when the engine stops.
const DRAIN: Duration = Duration::from_secs(1);

/// The options: a file, a pipe, or a socket on which somebody listens.
struct JsonLines {
    path: PathBuf,
}

fn read(options: &OwnOptions, _nats: &Settings) -> Result<Arc<dyn Source>, OptionsError> {
    let path = options.path("path")?;
    if path.as_os_str().is_empty() {
        return Err(options.refuse("path", "`path` is empty; name a file or socket, such as /run/obs.sock"));
    }
    Ok(Arc::new(JsonLines { path }))
}

impl Source for JsonLines {
    fn describe(&self) -> String {
        "lines of JSON".into()
    }

    fn options(&self) -> Value {
        json!({"path": self.path.display().to_string()})
    }

    fn check(&self, _opening: &Opening<'_>) -> Result<(), InputError> {
        self.path.metadata().map(drop).map_err(InputError::io("find", &self.path))
    }

    fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Input>, InputError> {
        if opening.processes > 1 {
            let why = "json_lines: every process of a cluster would count all lines; run one process";
            return Err(InputError::Wrong(why.into()));
        }
        let failed = |what| InputError::io(what, &self.path);
        let is_socket = self.path.metadata().map_err(failed("find"))?.file_type().is_socket();
        let from = match is_socket {
            true => UnixStream::connect(&self.path).map(|stream| File::from(OwnedFd::from(stream))),
            false => File::open(&self.path),
        };
        let from = from.map_err(failed("open"))?;
        let lines = Arc::new(Lines {
            name: self.path.display().to_string(),
            is_socket,
            extension: opening.extension.clone(),
            state: Mutex::default(),
            room: Condvar::new(),
            wakers: Wakers::default(),
        });
        let reading = lines.clone();
        let started = thread::Builder::new().name("json_lines".into()).spawn(move || reading.run(from));
        started.map_err(failed("start a thread for"))?;
        Ok(lines)
    }
}

// Lines.

/// A line as it is written.
#[derive(Deserialize)]
struct Line {
    src_ip: IpAddr,
    dst_ip: IpAddr,
    #[serde(default)]
    src_port: u16,
    #[serde(default)]
    dst_port: u16,
    #[serde(default)]
    protocol: u8,
    #[serde(default)]
    tcp_flags: u8,
    #[serde(default)]
    vlan: u16,
    packets: u64,
    bytes: u64,
    #[serde(deserialize_with = "time")]
    first: u64,
    #[serde(deserialize_with = "time")]
    last: u64,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// Nanoseconds since the Unix epoch.
fn time<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let time: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
    u64::try_from(time.as_nanosecond()).map_err(|_| D::Error::custom(format!("`{text}` is before 1970")))
}

struct Observation {
    fields: Packet,
    weight: Weight,
    extra: [u64; WORDS],
}

fn observation(line: &[u8], extension: &Extension) -> Result<Observation, String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let Line { src_port, dst_port, protocol, tcp_flags, vlan, packets, bytes, first, last, .. } = line;
    let weight = Weight { packets, bytes, first, last };
    weight.check().map_err(|error| error.to_string())?;
    let (source, destination) = (line.src_ip.into(), line.dst_ip.into());
    let version = if line.src_ip.is_ipv4() && line.dst_ip.is_ipv4() { 4 } else { 6 };
    let transport = Transport::new(src_port, dst_port, protocol, tcp_flags, vlan, version);
    let mut extra = [0; WORDS];
    for (field, place) in extension.fields() {
        let Some(value) = line.more.get(field.column) else { continue };
        let cell = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let read = parse_extra(field, &cell);
        place.set(&mut extra, read.ok_or_else(|| format!("`{}` cannot be {value}", field.column))?);
    }
    Ok(Observation { fields: Packet { transport, source, destination, ..Packet::default() }, weight, extra })
}

/// Observations that came together.
#[derive(Default)]
struct Piece {
    observations: Vec<Observation>,
    malformed: u64,
    /// The latest time of a first packet in all pieces before this one.
    latest: u64,
}

/// Cuts what is read into lines.
#[derive(Default)]
struct Cutter {
    /// The beginning of a line.
    rest: Vec<u8>,
    /// Whether it is too long and has been told of.
    skips: bool,
    /// Lines so far.
    lines: u64,
}

impl Cutter {
    /// Takes the next bytes, or the end, and puts what their lines hold into a piece.
    fn take(&mut self, bytes: &[u8], is_end: bool, extension: &Extension, report: &mut Report) -> Piece {
        let mut piece = Piece::default();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            let is_whole = part.ends_with(b"\n");
            if is_whole || self.rest.len() > READ && !self.skips {
                self.line(&mut piece, extension, report);
            }
            self.skips = !is_whole && (self.skips || self.rest.len() > READ);
            if is_whole || self.skips {
                self.rest.clear();
            }
        }
        if is_end && !self.rest.is_empty() {
            self.line(&mut piece, extension, report);
        }
        piece
    }

    fn line(&mut self, piece: &mut Piece, extension: &Extension, report: &mut Report) {
        if std::mem::take(&mut self.skips) {
            return;
        }
        self.lines += 1;
        let line = self.rest.trim_ascii();
        let read = match () {
            () if self.rest.len() > READ => Err(format!("it has more than {READ} bytes")),
            () if line.is_empty() => return,
            () => observation(line, extension),
        };
        match read {
            Ok(observation) => {
                report.packets = report.packets.saturating_add(observation.weight.packets);
                piece.observations.push(observation);
            }
            Err(why) => {
                report.malformed += 1;
                report.first_malformed.get_or_insert(format!("line {}: {why}", self.lines));
                piece.malformed += 1;
            }
        }
    }
}

// The input: a thread that reads lines, and workers that take them.

/// What is known of all that was read.
#[derive(Default)]
struct Report {
    packets: u64,
    malformed: u64,
    first_malformed: Option<String>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Piece>,
    /// The latest time behind all pieces, and behind those that were taken.
    latest: u64,
    taken: u64,
    report: Report,
    /// The thread has ended.
    ended: bool,
    /// A signal asks for that, and has ended it before the end of the lines.
    stops: bool,
    cut: bool,
    failed: Option<String>,
}

/// Lines that are being read: one stream, in one order, for all workers.
struct Lines {
    name: String,
    is_socket: bool,
    extension: Extension,
    state: Mutex<State>,
    room: Condvar,
    wakers: Wakers,
}

impl Lines {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, from: File) {
        let read = self.read(from);
        let mut state = self.state();
        state.ended = true;
        state.failed = read.err().map(|error| format!("cannot read {}: {error}", self.name));
        drop(state);
        self.wakers.wake();
    }

    /// Reads to the end, or until it is stopped: of a socket what has come by then, of anything else no more.
    fn read(&self, mut from: File) -> io::Result<()> {
        let (mut cutter, mut buffer) = (Cutter::default(), vec![0; READ]);
        let mut stopped = None;
        loop {
            if stopped.is_none() && self.state().stops {
                stopped = Some(Instant::now());
            }
            let is_late = stopped.is_some_and(|since| !self.is_socket || since.elapsed() > DRAIN);
            let wait = if stopped.is_some() { Timespec { tv_sec: 0, tv_nsec: 0 } } else { WAIT };
            if is_late || poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&wait))? == 0 {
                match stopped {
                    Some(_) => {
                        self.state().cut = true;
                        return Ok(());
                    }
                    None => continue,
                }
            }
            let count = match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            self.put(&mut cutter, &buffer[..count]);
            if count == 0 {
                return Ok(());
            }
        }
    }

    fn put(&self, cutter: &mut Cutter, bytes: &[u8]) {
        let mut report = Report::default();
        let mut piece = cutter.take(bytes, bytes.is_empty(), &self.extension, &mut report);
        let mut state = self.state();
        while state.pieces.len() >= AHEAD {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.report.packets = state.report.packets.saturating_add(report.packets);
        state.report.malformed += report.malformed;
        state.report.first_malformed = state.report.first_malformed.take().or(report.first_malformed);
        piece.latest = state.latest;
        let times = piece.observations.iter().map(|observation| observation.weight.first);
        state.latest = times.max().unwrap_or(0).max(state.latest);
        if !piece.observations.is_empty() || piece.malformed > 0 {
            state.pieces.push_back(piece);
        }
        drop(state);
        self.wakers.wake();
    }
}

impl Input for Lines {
    fn intake(self: Arc<Self>) -> Arc<dyn Intake> {
        self
    }

    fn describe(&self) -> String {
        format!("reading observations from {}", self.name)
    }

    fn failure(&self) -> Option<String> {
        self.state().failed.clone()
    }

    fn has_ended(&self) -> bool {
        !self.state().cut
    }
}

impl Intake for Lines {
    fn reader(self: Arc<Self>, _worker: usize) -> Box<dyn Reader> {
        Box::new(LinesReader { from: self, piece: Piece::default() })
    }

    fn register(&self, activator: SyncActivator) {
        self.wakers.add(activator);
    }

    fn stop(&self) {
        self.state().stops = true;
    }

    fn wake(&self) {
        self.wakers.wake();
    }

    fn found(&self) -> Vec<(InputKey, Found)> {
        let state = self.state();
        let Report { packets, malformed, first_malformed } = &state.report;
        let note = |first: &String| match malformed {
            1 => format!("1 line is no observation and counts as malformed: {first}"),
            _ => {
                format!("{malformed} lines are no observations and count as malformed, the first is {first}")
            }
        };
        let report = InputReport {
            name: self.name.clone(),
            format: "json_lines".into(),
            packets: packets.saturating_add(*malformed),
            notes: first_malformed.iter().map(note).collect(),
            ..InputReport::default()
        };
        vec![(InputKey::default(), Found::Frames(report))]
    }
}

/// A worker's end.
struct LinesReader {
    from: Arc<Lines>,
    piece: Piece,
}

impl Reader for LinesReader {
    fn take(&mut self) -> Result<(Taken, Position), String> {
        let mut state = self.from.state();
        // The piece and its position under one lock: no worker is ahead of what another may still take.
        let taken = match state.pieces.pop_front() {
            Some(piece) => {
                let times = piece.observations.iter().map(|observation| observation.weight.first);
                state.taken = times.max().unwrap_or(0).max(piece.latest);
                self.piece = piece;
                self.from.room.notify_one();
                Taken::Piece
            }
            None if state.ended => Taken::End,
            None => Taken::Wait,
        };
        let latest = if taken == Taken::Piece { self.piece.latest } else { state.taken };
        Ok((taken, Position { latest, others: u64::MAX, floor: 0, hold: latest }))
    }

    fn decode(&mut self, into: &mut Placer) -> Result<(), String> {
        let malformed = self.piece.malformed;
        let mut counts = Counts { read: malformed, malformed, ..Counts::default() };
        for Observation { fields, weight, extra } in self.piece.observations.drain(..) {
            counts.read += weight.packets;
            counts.bytes_read += weight.bytes;
            into.observe(weight.first);
            into.place_weighted(fields, weight, extra).map_err(|error| error.to_string())?;
        }
        into.finish(0, Some(counts));
        Ok(())
    }

    /// What a signal has cut off is missing in the windows that were open; a socket has no end.
    fn cut(&self) -> Option<u64> {
        let state = self.from.state();
        Some(state.taken).filter(|_| state.cut && !self.from.is_socket)
    }

    fn key(&self, _input: usize) -> InputKey {
        InputKey::default()
    }
}

fn main() -> ExitCode {
    let inputs = InputRegistry::default().with(KIND);
    ns_engine::main(&Registries { inputs, ..Registries::default() }, std::env::args_os())
}
