//! Deals the frames of all inputs to the workers, a chunk at a time, in the order of time.
//!
//! Dealing is the one sequential step: under a lock, the worker that wants work reads about 256 KiB at the cursor of the
//! input that is furthest behind in time, walks the record headers to the last whole record and moves the cursor.
//! Decoding what it got is its own affair. So one large file keeps every worker busy, and so do many small ones.
//!
//! Which input is dealt from, where a chunk ends, and the watermark that a chunk carries depend on the bytes alone: any
//! number of workers is dealt the same chunks.

use super::clock::Clock;
use super::findings::Findings;
use super::gzip::Members;
use super::live::Drops;
use super::source::{Pace, Peek, Source, Stream, Wake};
use super::{Chunk, Format, HEADER_BYTES, Scanned, Stop, foreign};
use crate::decode::LinkType;
use crate::fingerprint::fingerprint;
use crate::intake::{Taken, Wakers};
use crate::ledger::{InputReport, Losses};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use timely::scheduling::SyncActivator;

/// Bytes read for a chunk: a few thousand packets, and no more than fits a core's cache.
const CHUNK: usize = 256 << 10;

/// An input that cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Missing, unreadable, a folder.
    #[error("{name}: {error}")]
    Io {
        /// The input as the user named it.
        name: String,
        /// The system's word.
        error: io::Error,
    },
    /// Readable, but no capture.
    #[error("{name}: {why}")]
    NoCapture {
        /// The input as the user named it.
        name: String,
        /// What it is instead.
        why: String,
    },
    /// The same file twice.
    #[error("{name}: is the same file as {earlier}, its packets would count twice")]
    Twice {
        /// The input as the user named it.
        name: String,
        /// The one given before.
        earlier: String,
    },
}

impl InputError {
    /// Whether the input itself changed, and not what this process may do.
    fn is_about_this_input(&self) -> bool {
        match self {
            Self::Io { error, .. } => {
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::NoCapture { .. } | Self::Twice { .. } => true,
        }
    }

    /// The error without the input's name.
    fn why(&self) -> String {
        match self {
            Self::Io { error, .. } => error.to_string(),
            Self::NoCapture { why, .. } => why.clone(),
            Self::Twice { earlier, .. } => format!("is the same file as {earlier}"),
        }
    }
}

/// One input while it is read.
struct Input {
    report: InputReport,
    source: Source,
    format: Format,
    /// Bytes consumed, for messages and progress; counts decompressed bytes.
    offset: u64,
    latest: u64,
    /// The findings that are in the report.
    told: (Findings, Drops),
    /// Whether it was stopped before its end.
    is_cut: bool,
}

/// An input that waits for its turn.
enum Waiting {
    /// To be opened when its time comes: a regular file.
    Closed { number: usize, path: PathBuf },
    /// Open already, for it can be opened only once.
    Open { number: usize, input: Box<Input> },
}

struct State {
    /// By the time of their first frame, then in the order they were given.
    waiting: BTreeMap<(u64, usize), Waiting>,
    open: BTreeMap<usize, Input>,
    reports: Vec<InputReport>,
    /// Chunks found so far.
    chunks: u64,
    /// Bytes read of regular files, compressed ones as they lie.
    done_bytes: Arc<AtomicU64>,
    /// The watermark up to which the inputs were read that [`Dealer::stop`] has ended before their own ends.
    cut: Option<u64>,
}

/// Deals all inputs' frames.
pub struct Dealer {
    state: Mutex<State>,
    wakers: Wakers,
    /// Bytes of all regular files.
    total_bytes: u64,
    done_bytes: Arc<AtomicU64>,
    first_links: BTreeSet<LinkType>,
    wake: Wake,
    /// Of how many shares of the chunks this dealer deals which.
    share: u64,
    shares: u64,
}

impl Dealer {
    /// Opens every input far enough to know that it is a capture and when it starts. `-` is standard input.
    pub fn open(names: &[PathBuf]) -> Result<Self, InputError> {
        let wakers = Wakers::default();
        let waking = wakers.clone();
        let wake: Wake = Arc::new(move || waking.wake());
        let mut seen: Vec<((u64, u64), String)> = Vec::new();
        let done_bytes = Arc::new(AtomicU64::new(0));
        let mut state = State {
            waiting: BTreeMap::new(),
            open: BTreeMap::new(),
            reports: Vec::new(),
            chunks: 0,
            done_bytes: done_bytes.clone(),
            cut: None,
        };
        let mut total_bytes = 0;
        let mut first_links = BTreeSet::new();
        for (number, path) in names.iter().enumerate() {
            let name = path.display().to_string();
            let io_error = |error| InputError::Io { name: name.clone(), error };
            let (waiting, first_time) = if path == Path::new("-") {
                refuse_twice(&mut seen, identity_of_stdin(), &name)?;
                (
                    Waiting::Open {
                        number,
                        input: Box::new(open_stream(&name, Box::new(io::stdin()), Pace::AsItComes, &wake)?),
                    },
                    0,
                )
            } else {
                let file = File::open(path).map_err(io_error)?;
                let metadata = file.metadata().map_err(io_error)?;
                if metadata.is_dir() {
                    return Err(InputError::Io { name, error: io::ErrorKind::IsADirectory.into() });
                }
                refuse_twice(&mut seen, (metadata.dev(), metadata.ino()), &name)?;
                if metadata.is_file() {
                    total_bytes += metadata.len();
                    let (format, first_time) = first_look(&name, file)?;
                    first_links.extend(links(&format));
                    (Waiting::Closed { number, path: path.clone() }, first_time)
                } else {
                    (
                        Waiting::Open {
                            number,
                            input: Box::new(open_stream(&name, Box::new(file), Pace::AsItComes, &wake)?),
                        },
                        0,
                    )
                }
            };
            if let Waiting::Open { input, .. } = &waiting {
                first_links.extend(links(&input.format));
            }
            state.reports.push(InputReport { name, ..InputReport::default() });
            state.waiting.insert((first_time, number), waiting);
        }
        Ok(Self {
            state: Mutex::new(state),
            wakers,
            total_bytes,
            done_bytes,
            first_links,
            wake,
            share: 0,
            shares: 1,
        })
    }

    /// Deals one of so many shares of the frames: the processes of a cluster that are given the same files each find all
    /// chunks, and each deals its own. Each has to be able to read every input from its beginning: see [`one_time`].
    pub fn divided(mut self, share: usize, shares: usize) -> Self {
        (self.share, self.shares) = (share as u64, shares as u64);
        self
    }

    /// The link types that show in the inputs' first bytes.
    pub fn first_links(&self) -> impl Iterator<Item = LinkType> + '_ {
        self.first_links.iter().copied()
    }

    /// Has a worker's operator activated whenever an input that had nothing ready has something.
    pub fn register(&self, activator: SyncActivator) {
        self.wakers.add(activator);
    }

    /// Ends all inputs where they are: files at once, streams after what has been received of them. Then activates
    /// all registered operators.
    pub fn stop(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = state.waiting.iter().filter(|(_, waiting)| matches!(waiting, Waiting::Closed { .. }));
        let closed = closed.map(|((first_time, _), _)| *first_time).min();
        let files = state.open.values().filter(|input| matches!(input.source, Source::File(..)));
        let files = files.map(|input| input.latest).min();
        state.cut = state.cut.into_iter().chain(closed).chain(files).min();
        state.waiting.retain(|_, waiting| matches!(waiting, Waiting::Open { .. }));
        let waiting = state.waiting.values_mut().filter_map(|waiting| match waiting {
            Waiting::Open { input, .. } => Some(&mut **input),
            Waiting::Closed { .. } => None,
        });
        waiting.for_each(|input| input.source.stop());
        state.open.values_mut().for_each(|input| input.source.stop());
        drop(state);
        self.wake();
    }

    /// The watermark up to which the inputs were read that [`Self::stop`] has ended before their own ends, once all have
    /// ended.
    pub fn cut(&self) -> Option<u64> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).cut
    }

    /// Activates all registered operators.
    pub fn wake(&self) {
        self.wakers.wake();
    }

    /// Bytes read of the regular files, compressed ones as they lie, and of how many; of none where all are pipes.
    pub fn progress(&self) -> (u64, u64) {
        (self.done_bytes.load(Relaxed), self.total_bytes)
    }

    /// What became of the inputs, in the order they were given.
    pub fn reports(&self) -> Vec<InputReport> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reports = state.reports.clone();
        for (number, input) in &state.open {
            reports[*number] = input.report.clone();
        }
        reports
    }

    /// Deals the next chunk. Whatever it returns, `chunk.latest` and `chunk.others` tell the watermark: no frame dealt
    /// from now on comes from before it but by running backwards within its own input.
    ///
    /// Fails where an input that could be opened when the run began cannot be opened any more.
    pub fn deal(&self, chunk: &mut Chunk) -> Result<Taken, InputError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some(number) = state.furthest_behind(&self.wake)? else {
                (chunk.latest, chunk.others) = (u64::MAX, u64::MAX);
                return Ok(Taken::End);
            };
            chunk.others = state.least_of_others(number);
            let State { open, chunks, .. } = &mut *state;
            let Some(input) = open.get_mut(&number) else { continue };
            chunk.input = number;
            chunk.latest = input.latest;
            match input.next(chunk) {
                Next::Chunk(packets) => {
                    if let Source::File(..) = input.source {
                        self.done_bytes.fetch_add(chunk.bytes.len() as u64, Relaxed);
                    }
                    let is_ours = *chunks % self.shares == self.share;
                    *chunks += 1;
                    if is_ours {
                        input.report.packets += packets;
                        return Ok(Taken::Piece);
                    }
                }
                Next::Wait => return Ok(Taken::Wait),
                Next::End => {
                    if let Some(input) = state.open.remove(&number) {
                        let cut = input.is_cut.then_some(input.latest);
                        state.cut = state.cut.into_iter().chain(cut).min();
                        state.reports[number] = input.report;
                    }
                }
            }
        }
    }
}

/// The first of these inputs that can be read only once: standard input, a pipe.
pub fn one_time(names: &[PathBuf]) -> Option<&Path> {
    let is_one_time = |path: &&PathBuf| {
        path.as_path() == Path::new("-")
            || path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir())
    };
    names.iter().find(is_one_time).map(PathBuf::as_path)
}

/// Names files so that processes can tell whether they have the same: length, and a hash of the first 64 KiB.
pub fn describe(names: &[PathBuf]) -> Result<String, InputError> {
    let describe = |path: &PathBuf| {
        let name = path.display().to_string();
        let io_error = |error| InputError::Io { name: name.clone(), error };
        let mut file = File::open(path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let head = read_up_to(&mut file, 64 << 10).map_err(io_error)?;
        Ok(format!("{name} ({length} bytes, {:016x})", fingerprint(&head)))
    };
    Ok(names.iter().map(describe).collect::<Result<Vec<_>, _>>()?.join(" "))
}

/// Tells standard input from all files, but for the one that it is.
fn identity_of_stdin() -> (u64, u64) {
    let found = rustix::fs::fstat(io::stdin()).ok();
    let file = found.filter(|found| rustix::fs::FileType::from_raw_mode(found.st_mode).is_file());
    file.map_or((u64::MAX, u64::MAX), |file| (file.st_dev, file.st_ino))
}

fn refuse_twice(
    seen: &mut Vec<((u64, u64), String)>,
    identity: (u64, u64),
    name: &str,
) -> Result<(), InputError> {
    if let Some((_, earlier)) = seen.iter().find(|(other, _)| *other == identity) {
        return Err(InputError::Twice { name: name.to_owned(), earlier: earlier.clone() });
    }
    seen.push((identity, name.to_owned()));
    Ok(())
}

impl State {
    /// The input whose watermark is least, opened if need be; ties go to the one given first.
    fn furthest_behind(&mut self, wake: &Wake) -> Result<Option<usize>, InputError> {
        loop {
            let open = self.open.iter().map(|(number, input)| (input.latest, *number)).min();
            let next = self.waiting.first_key_value().map(|(key, _)| *key);
            match (open, next) {
                (Some(open), Some(next)) if open <= next => return Ok(Some(open.1)),
                (open, None) => return Ok(open.map(|(_, number)| number)),
                (_, Some(_)) => {
                    let Some(((first_time, _), waiting)) = self.waiting.pop_first() else { continue };
                    let (number, input) = match waiting {
                        Waiting::Open { number, input } => (number, *input),
                        Waiting::Closed { number, path } => match open_file(&path, wake, &self.done_bytes) {
                            Ok(input) => (number, input),
                            Err(error) if error.is_about_this_input() => {
                                self.reports[number].damage =
                                    Some(format!("was a capture when the run began, but {}", error.why()));
                                continue;
                            }
                            Err(error) => return Err(error),
                        },
                    };
                    // Others have closed windows by what this input promised when the run began.
                    self.open.insert(number, Input { latest: first_time, ..input });
                }
            }
        }
    }

    /// The least watermark of all inputs but one.
    fn least_of_others(&self, number: usize) -> u64 {
        let open =
            self.open.iter().filter(|(other, _)| **other != number).map(|(_, input)| input.latest).min();
        let waiting = self.waiting.first_key_value().map(|((first_time, _), _)| *first_time);
        open.unwrap_or(u64::MAX).min(waiting.unwrap_or(u64::MAX))
    }
}

enum Next {
    /// So many packets.
    Chunk(u64),
    Wait,
    End,
}

impl Input {
    fn new(name: String, suffix: &str, format: Format, (source, offset): (Source, u64)) -> Self {
        let report =
            InputReport { name, format: format!("{}{suffix}", format.name()), ..InputReport::default() };
        Self { report, source, format, offset, latest: 0, told: Default::default(), is_cut: false }
    }

    /// Puts what the format has found into the report, where it is news.
    fn report_findings(&mut self) {
        let mut findings = *self.format.findings();
        findings.start = 0;
        let found = (findings, self.format.drops());
        if std::mem::replace(&mut self.told, found) == found {
            return;
        }
        let Drops { kernel, interface } = found.1;
        self.report.clamped = findings.clamped;
        self.report.contradictory = findings.contradictory();
        self.report.notes = findings.notes();
        if kernel > 0 || interface > 0 {
            self.report.losses = Some(Losses { kernel, interface, ..Losses::default() });
        }
    }

    /// Takes the next chunk of whole records.
    fn next(&mut self, chunk: &mut Chunk) -> Next {
        let mut want = CHUNK;
        loop {
            let peek = match self.source.peek(&mut chunk.bytes, want) {
                Ok(Peek::Wait) => return Next::Wait,
                Ok(peek) => peek,
                Err(error) => {
                    self.report.damage = Some(format!("after {} bytes: {error}", self.offset));
                    return Next::End;
                }
            };
            self.format.locate(self.offset);
            let (packets, scanned) = self.scan(chunk, peek != Peek::Some);
            let held = chunk.bytes.len() as u64;
            let consumed = scanned.as_ref().map_or_else(|consumed| *consumed, |scanned| scanned.consumed);
            self.report_findings();
            // The worker that is dealt the frames finds them again.
            self.format.take_gaps();
            self.offset += consumed;
            self.source.consume(&mut chunk.bytes, consumed);
            let over = match scanned.map(|scanned| scanned.stop) {
                Err(_) => {
                    if packets == 0 {
                        want = held as usize + CHUNK;
                    }
                    false
                }
                Ok(Stop::Damaged(what)) => {
                    self.report.damage = Some(format!("at byte {}: {what}", self.offset));
                    true
                }
                Ok(Stop::Needs(_)) if peek == Peek::Stopped => {
                    self.is_cut = true;
                    true
                }
                Ok(Stop::Needs(_)) if peek == Peek::Last && consumed < held => {
                    let cut = held - consumed;
                    self.report.damage = Some(format!(
                        "cut off in the middle of a record ({cut} bytes of it) at byte {}",
                        self.offset
                    ));
                    true
                }
                Ok(Stop::Needs(_)) if peek == Peek::Last && consumed == held => true,
                Ok(Stop::Needs(more)) => {
                    if consumed == 0 {
                        // Nothing whole in what was read: read on, for as much as the record says it has.
                        want = more.max(CHUNK);
                    }
                    false
                }
            };
            if packets > 0 {
                // Where the input is over, the next look finds its end again, or its damage already told.
                if over {
                    self.source = Source::Ended;
                }
                return Next::Chunk(packets);
            }
            if over {
                return Next::End;
            }
        }
    }
}

impl Input {
    /// Scans a chunk, of which nothing follows where it is the `last`; gives the packets in it. Frames whose times cannot
    /// be judged before more of the input is read do not belong to it: the error is the bytes before them.
    fn scan(&mut self, chunk: &mut Chunk, last: bool) -> (u64, Result<Scanned, u64>) {
        let mut clock = match self.source.is_live() {
            true => Clock::believing(self.latest),
            false => Clock::new(self.latest),
        };
        chunk.format = Some(self.format.clone());
        let scanned = self.format.scan(&chunk.bytes, |frame| clock.see(frame.time));
        if last || matches!(scanned.stop, Stop::Damaged(_)) {
            clock.end();
        }
        let packets = clock.decided().unwrap_or(clock.frames());
        let scanned = match &chunk.format {
            Some(before) if clock.decided().is_some() => {
                self.format = before.clone();
                Err(self.format.pass(&chunk.bytes, packets))
            }
            _ => Ok(scanned),
        };
        self.latest = clock.latest();
        chunk.strays = clock.into_strays();
        (packets, scanned)
    }
}

/// The format of an input that begins like this, or what it is instead.
fn open_format(name: &str, head: &[u8]) -> Result<(Format, usize), InputError> {
    Format::open(head).map_err(|why| {
        let why = foreign::advice(head, name).unwrap_or(why);
        InputError::NoCapture { name: name.to_owned(), why }
    })
}

/// A compressed file whose bytes are counted as they are read.
struct Counted {
    file: File,
    done_bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.done_bytes.fetch_add(read as u64, Relaxed);
        Ok(read)
    }
}

/// Opens a regular file; what is read of a compressed one is added to `done_bytes`.
fn open_file(path: &Path, wake: &Wake, done_bytes: &Arc<AtomicU64>) -> Result<Input, InputError> {
    let name = path.display().to_string();
    let io_error = |error| InputError::Io { name: name.clone(), error };
    let mut file = File::open(path).map_err(io_error)?;
    let head = read_up_to(&mut file, HEADER_BYTES).map_err(io_error)?;
    if Compression::of(&head) != Compression::None {
        let whole = io::Cursor::new(head).chain(Counted { file, done_bytes: done_bytes.clone() });
        return open_stream(&name, Box::new(whole), Pace::WholeBlocks, wake);
    }
    let (format, header) = open_format(&name, &head)?;
    let offset = header as u64;
    Ok(Input::new(name, "", format, (Source::File(file, offset), offset)))
}

/// Opens what can only be read once, in order, compressed or not.
fn open_stream(
    name: &str,
    mut pipe: Box<dyn Read + Send>,
    pace: Pace,
    wake: &Wake,
) -> Result<Input, InputError> {
    let io_error = |error| InputError::Io { name: name.to_owned(), error };
    let no_capture = |why: String| InputError::NoCapture { name: name.to_owned(), why };
    let magic = read_up_to(&mut pipe, 4).map_err(io_error)?;
    let compression = Compression::of(&magic);
    let mut decoder = compression.decoder(Box::new(io::Cursor::new(magic).chain(pipe))).map_err(io_error)?;
    let mut head = read_up_to(&mut decoder, HEADER_BYTES).map_err(|error| no_capture(error.to_string()))?;
    let (format, header) = open_format(name, &head)?;
    let rest = head.split_off(header);
    let source =
        Stream::new(Box::new(io::Cursor::new(rest).chain(decoder)), pace, wake.clone()).map_err(io_error)?;
    Ok(Input::new(name.to_owned(), compression.suffix(), format, (Source::Stream(source), header as u64)))
}

/// Bytes that are looked at for a file's first frame.
const FIRST_LOOK: usize = 64 << 10;

/// A file's first bytes, decompressed: its format after what of them could be scanned, and the time of the first frame
/// that is not dated ahead by mistake, 0 where they show none.
fn first_look(name: &str, mut file: File) -> Result<(Format, u64), InputError> {
    let io_error = |error| InputError::Io { name: name.to_owned(), error };
    let magic = read_up_to(&mut file, 4).map_err(io_error)?;
    let compression = Compression::of(&magic);
    let whole = io::Cursor::new(magic).chain(file);
    let mut decoder = compression.decoder(Box::new(whole)).map_err(io_error)?.take(FIRST_LOOK as u64);
    let mut head = Vec::new();
    if let Err(error) = decoder.read_to_end(&mut head)
        && head.len() < HEADER_BYTES
    {
        return Err(InputError::NoCapture { name: name.to_owned(), why: error.to_string() });
    }
    let (mut format, header) = open_format(name, &head)?;
    let (mut times, mut clock) = (Vec::new(), Clock::new(0));
    format.scan(&head[header..], |frame| {
        times.push(frame.time);
        clock.see(frame.time);
    });
    clock.end();
    let strays = clock.into_strays();
    let is_stray = |(number, _): &(u64, &u64)| strays.contains(number);
    let first = (0..).zip(&times).find(|frame| !is_stray(frame)).map_or(0, |(_, time)| *time);
    Ok((format, first))
}

/// The link types that a format is known to hold so far. Where it knows none yet: what is no filter for Ethernet is most
/// likely none at all.
fn links(format: &Format) -> Vec<LinkType> {
    let links: Vec<LinkType> = match format {
        Format::Pcap(pcap) => vec![pcap.link()],
        Format::Pcapng(pcapng) => pcapng.links().collect(),
    };
    if links.is_empty() { vec![LinkType::ETHERNET] } else { links }
}

/// The next bytes, at most `most`.
fn read_up_to(reader: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How an input is compressed, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }

    fn decoder(self, compressed: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::None => compressed,
            Self::Gzip => Box::new(Members::new(io::BufReader::with_capacity(256 << 10, compressed))),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::new(compressed)?;
                decoder.window_log_max(MOST_WINDOW_LOG)?;
                Box::new(Zstd(decoder))
            }
        })
    }
}

/// A zstd window that is kept in memory has at most so many bytes, as a power of two: 1 GiB.
const MOST_WINDOW_LOG: u32 = 30;

/// Decompressed zstd, whose errors say what to do.
struct Zstd<R: io::BufRead>(zstd::Decoder<'static, R>);

impl<R: io::BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.to_string() {
            why if why.contains("too much memory") => {
                let most = 1u64 << (MOST_WINDOW_LOG - 20);
                let why = format!(
                    "needs a zstd window of over {most} MiB, more than is kept in memory here; unpack it with `zstd -dc --long=31`"
                );
                io::Error::new(error.kind(), why)
            }
            _ => error,
        })
    }
}
