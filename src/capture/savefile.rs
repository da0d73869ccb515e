//! Keeps raw frames as pcap beside what is published of them: blocks of records, filled by the capturing thread and
//! written by another.
//!
//! The capturing thread never waits for the disk: where that falls behind, or fails, frames are dropped and counted.
//! Every frame is either in a file or counted as dropped, and a file ends with a whole record.

use super::pcap::{FILE_HEADER, RECORD_HEADER, file_header, record_header};
use crate::decode::LinkType;
use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Bytes of records that are handed over at once; a longer frame is a block of its own.
const BLOCK: usize = 1 << 20;
/// Blocks that may wait for the disk.
const WAITING: usize = 32;
const NANOS_A_SECOND: u64 = 1_000_000_000;

/// When a savefile is ended and the next one begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Before a file would grow beyond so many bytes; one that holds a single frame may be longer.
    pub size: Option<u64>,
    /// Where the frames' time passes a multiple of this since the Unix epoch. A frame out of order stays in the
    /// file that is open.
    pub every: Option<Duration>,
}

impl Rotation {
    fn is_none(&self) -> bool {
        self.size.is_none() && self.every.is_none()
    }
}

/// Why a savefile cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum SavefileError {
    /// The file system said no.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried: "write", "create", ...
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// A path without a file's name, which rotated files would be named after.
    #[error("{}: this names no file that frames could be written to", path.display())]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// The system gave no thread.
    #[error("cannot start the thread that writes frames: {0}")]
    Thread(io::Error),
    /// The writing thread is gone without having been told to go.
    #[error("the thread that writes frames ended early")]
    Ended,
}

/// What became of the frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Frames in the files.
    pub frames: u64,
    /// Frames that are in no file, because the disk was too slow or failed.
    pub dropped: u64,
    /// The files, in the order they were begun.
    pub files: Vec<PathBuf>,
    /// The first failure of the disk; nothing was written after it.
    pub error: Option<String>,
}

/// The capturing thread's end. Frames that wait in it are lost unless it is closed.
pub struct Savefile {
    block: Block,
    full: Sender<Block>,
    empty: Receiver<Block>,
    dropped: u64,
    shared: Arc<Shared>,
    thread: JoinHandle<(u64, Vec<PathBuf>)>,
}

/// What the writing thread tells while it runs.
#[derive(Default)]
struct Shared {
    dropped: AtomicU64,
    error: OnceLock<String>,
}

/// Whole records, as they stand in the file.
#[derive(Default)]
struct Block {
    records: Vec<u8>,
    frames: u64,
}

impl Savefile {
    /// Opens `path`, or with a rotation makes sure that files can be made beside it, and starts the writing thread.
    ///
    /// Without a rotation the file is exactly `path`, and what it held is gone. With one, a file is named by the UTC
    /// time of its first frame, `<stem>-20261122T091500Z.<extension>`, with `-1`, `-2`, ... behind the time where
    /// that name is taken: no file is ever overwritten. The thread has the rights that the caller has now.
    pub fn create(
        path: &Path,
        link: LinkType,
        snaplen: u32,
        rotation: Rotation,
    ) -> Result<Self, SavefileError> {
        let shared = Arc::new(Shared::default());
        let writer = Writer::create(path, link, snaplen, rotation, Arc::clone(&shared))?;
        Self::start(shared, move |full, empty| writer.run(full, empty))
    }

    fn start(
        shared: Arc<Shared>,
        run: impl FnOnce(Receiver<Block>, Sender<Block>) -> (u64, Vec<PathBuf>) + Send + 'static,
    ) -> Result<Self, SavefileError> {
        let (full, to_write) = bounded(WAITING);
        let (written, empty) = bounded(WAITING);
        let thread = thread::Builder::new()
            .name("savefile".into())
            .spawn(move || run(to_write, written))
            .map_err(SavefileError::Thread)?;
        Ok(Self { block: Block::new(), full, empty, dropped: 0, shared, thread })
    }

    /// Keeps a frame of `length` bytes on the wire, of which `bytes` were captured at `time` (nanoseconds since the
    /// Unix epoch). Never waits: where the disk is a full channel behind, the frames of a block are dropped.
    #[inline]
    pub fn frame(&mut self, time: u64, length: u32, bytes: &[u8]) {
        if self.block.records.len() + RECORD_HEADER + bytes.len() > BLOCK
            && self.block.frames > 0
            && !self.hand_over()
        {
            self.dropped += self.block.frames;
            self.block.clear();
        }
        self.block.records.extend_from_slice(&record_header(time, length, bytes.len()));
        self.block.records.extend_from_slice(bytes);
        self.block.frames += 1;
    }

    /// Hands over what there is, for when the link is quiet. Never waits: where the disk is behind, the frames stay
    /// here until there is room.
    pub fn flush(&mut self) {
        if self.block.frames > 0 {
            self.hand_over();
        }
    }

    /// Frames dropped so far, because the disk was too slow or failed.
    pub fn dropped(&self) -> u64 {
        self.dropped + self.shared.dropped.load(Relaxed)
    }

    /// The first failure of the disk, after which every frame is dropped; `None` while all is well.
    pub fn error(&self) -> Option<&str> {
        self.shared.error.get().map(String::as_str)
    }

    /// Waits until every frame is on its way to the disk and tells what became of them.
    pub fn close(self) -> Result<Kept, SavefileError> {
        let Self { block, full, dropped, shared, thread, .. } = self;
        // Refused only where the thread is gone, and then the join says so.
        let _ = full.send(block);
        drop(full);
        let (frames, files) = thread.join().map_err(|_| SavefileError::Ended)?;
        let dropped = dropped + shared.dropped.load(Relaxed);
        Ok(Kept { frames, dropped, files, error: shared.error.get().cloned() })
    }

    /// Whether the thread took the block; an empty one is in its place then.
    fn hand_over(&mut self) -> bool {
        match self.full.try_send(std::mem::take(&mut self.block)) {
            Ok(()) => {
                self.block = self.empty.try_recv().unwrap_or_else(|_| Block::new());
                true
            }
            Err(refused) => {
                self.block = refused.into_inner();
                false
            }
        }
    }
}

impl Block {
    fn new() -> Self {
        Self { records: Vec::with_capacity(BLOCK), frames: 0 }
    }

    fn clear(&mut self) {
        self.records.clear();
        self.records.shrink_to(BLOCK);
        self.frames = 0;
    }
}

/// The writing thread's state.
struct Writer {
    path: PathBuf,
    header: [u8; FILE_HEADER],
    rotation: Rotation,
    /// `None` before the first frame of a rotation.
    file: Option<File>,
    /// Bytes in the open file: whole records behind the header.
    bytes: u64,
    /// The latest multiple of `rotation.every` that a frame has come to.
    period: u64,
    frames: u64,
    files: Vec<PathBuf>,
    shared: Arc<Shared>,
}

impl Writer {
    fn create(
        path: &Path,
        link: LinkType,
        snaplen: u32,
        rotation: Rotation,
        shared: Arc<Shared>,
    ) -> Result<Self, SavefileError> {
        let mut writer = Self {
            path: path.to_owned(),
            header: file_header(link, snaplen),
            rotation,
            file: None,
            bytes: 0,
            period: 0,
            frames: 0,
            files: Vec::new(),
            shared,
        };
        if rotation.is_none() {
            let file = File::create(path).map_err(|error| failed("create", path, error))?;
            if let Err(error) = writer.begin(file, path.to_owned()) {
                // A full disk keeps nobody from publishing: it is told like one that fills up later.
                writer.shared.error.get_or_init(|| error.to_string());
            }
        } else {
            if path.file_stem().is_none() {
                return Err(SavefileError::NoName { path: path.to_owned() });
            }
            // The first file is named by a frame still to come; what would keep it from being made shows now.
            let folder =
                path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            tempfile::tempfile_in(folder).map_err(|error| failed("create files in", folder, error))?;
        }
        Ok(writer)
    }

    /// Writes blocks until no more can come; the frames written and the files.
    fn run(mut self, full: Receiver<Block>, empty: Sender<Block>) -> (u64, Vec<PathBuf>) {
        for mut block in full {
            self.block(&block);
            block.clear();
            // Where enough empty blocks wait, this one is freed.
            let _ = empty.try_send(block);
        }
        (self.frames, self.files)
    }

    fn block(&mut self, block: &Block) {
        let before = self.frames;
        if self.shared.error.get().is_none()
            && let Err(error) = self.write(&block.records)
        {
            self.shared.error.get_or_init(|| error.to_string());
        }
        self.shared.dropped.fetch_add(block.frames - (self.frames - before), Relaxed);
    }

    /// Writes records, cut into files where the rotation says so.
    fn write(&mut self, records: &[u8]) -> Result<(), SavefileError> {
        let (mut start, mut frames, mut at) = (0, 0, 0);
        while let Some(header) = records[at..].first_chunk::<RECORD_HEADER>() {
            let [seconds, nanos, captured, _] = [0, 4, 8, 12]
                .map(|at| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]));
            let time = u64::from(seconds) * NANOS_A_SECOND + u64::from(nanos);
            let end = at + RECORD_HEADER + captured as usize;
            if self.cuts_before(time, (at - start) as u64, (end - at) as u64) {
                self.append(&records[start..at], frames)?;
                self.rotate(time)?;
                (start, frames) = (at, 0);
            }
            frames += 1;
            at = end;
        }
        self.append(&records[start..], frames)
    }

    /// Whether a record is the first of a new file, when so many bytes are still to be appended to the open one.
    fn cuts_before(&mut self, time: u64, pending: u64, record: u64) -> bool {
        let every =
            self.rotation.every.map_or(0, |every| u64::try_from(every.as_nanos()).unwrap_or(u64::MAX));
        let period = time.checked_div(every).unwrap_or(0);
        let later = period > self.period;
        self.period = self.period.max(period);
        let bytes = self.bytes + pending;
        let too_long = |size| bytes > FILE_HEADER as u64 && bytes + record > size;
        self.file.is_none() || later || self.rotation.size.is_some_and(too_long)
    }

    fn append(&mut self, records: &[u8], frames: u64) -> Result<(), SavefileError> {
        if records.is_empty() {
            return Ok(());
        }
        let file = self.file.as_mut().expect("a rotation opens its first file before the first record");
        if let Err(error) = file.write_all(records) {
            // So that the file ends with a whole record; what is no regular file stays as it is.
            let _ = file.set_len(self.bytes);
            let path = self.files.last().unwrap_or(&self.path);
            return Err(failed("write", path, error));
        }
        self.bytes += records.len() as u64;
        self.frames += frames;
        Ok(())
    }

    /// Ends the open file and begins the one whose first frame is of this time.
    fn rotate(&mut self, time: u64) -> Result<(), SavefileError> {
        self.file = None;
        let mut taken = 0;
        loop {
            let path = rotated(&self.path, time, taken);
            match File::create_new(&path) {
                Ok(file) => return self.begin(file, path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken += 1,
                Err(error) => return Err(failed("create", &path, error)),
            }
        }
    }

    fn begin(&mut self, mut file: File, path: PathBuf) -> Result<(), SavefileError> {
        if let Err(error) = file.write_all(&self.header) {
            // A file of less than a header is no capture. Only one that was made here goes: `path` may be a device.
            if !self.rotation.is_none() {
                let _ = fs::remove_file(&path);
            }
            return Err(failed("write", &path, error));
        }
        self.file = Some(file);
        self.bytes = FILE_HEADER as u64;
        self.files.push(path);
        Ok(())
    }
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> SavefileError {
    SavefileError::Io { action, path: path.to_owned(), error }
}

/// `<stem>-20261122T091500Z.<extension>`, or `<stem>-20261122T091500Z-<taken>.<extension>` above 0.
fn rotated(path: &Path, time: u64, taken: u32) -> PathBuf {
    let second =
        i64::try_from(time / NANOS_A_SECOND).ok().and_then(|second| Timestamp::from_second(second).ok());
    let second = second.expect("64 bits of nanoseconds end in the year 2554");
    let mut name = OsString::from(path.file_stem().unwrap_or_default());
    name.push(second.strftime("-%Y%m%dT%H%M%SZ").to_string());
    if taken > 0 {
        name.push(format!("-{taken}"));
    }
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Format, Scanned, Stop};
    use std::sync::mpsc;

    /// 2026-11-22T09:15:00Z.
    const START: u64 = 1_795_338_900 * NANOS_A_SECOND;
    const ETHERNET: LinkType = LinkType(1);
    /// A frame that fills a block.
    static WHOLE_BLOCK: [u8; BLOCK - RECORD_HEADER] = [7; BLOCK - RECORD_HEADER];

    /// Time, length on the wire and bytes of every frame; the file must end with a whole record.
    fn read(path: &Path) -> Vec<(u64, u32, Vec<u8>)> {
        let bytes = fs::read(path).expect("the file is there");
        let (mut format, header) = Format::open(&bytes).expect("a capture");
        let mut frames = Vec::new();
        let scanned = format.scan(&bytes[header..], |frame| {
            assert_eq!(frame.link, ETHERNET);
            let start = header + frame.start;
            frames.push((frame.time, frame.length, bytes[start..start + frame.captured as usize].to_vec()));
        });
        let consumed = (bytes.len() - header) as u64;
        assert_eq!(scanned, Scanned { consumed, stop: Stop::Needs(RECORD_HEADER) });
        frames
    }

    fn names(kept: &Kept) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
        kept.files.iter().map(name).collect()
    }

    #[test]
    fn frames_come_back_as_they_were_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kept.pcap");
        fs::write(&path, "what was there before").expect("written");
        let mut savefile = Savefile::create(&path, ETHERNET, 128, Rotation::default()).expect("created");
        let frame =
            |number: u64| (START + number * 1_000_000_007, 1514, vec![number as u8; number as usize % 129]);
        for number in 0..50_000 {
            let (time, length, bytes) = frame(number);
            savefile.frame(time, length, &bytes);
            if number % 10_000 == 0 {
                savefile.flush();
            }
        }
        let kept = savefile.close().expect("closed");
        assert_eq!(kept, Kept { frames: 50_000, dropped: 0, files: vec![path.clone()], error: None });
        assert!(read(&path).into_iter().eq((0..50_000).map(frame)));
        let header = fs::read(&path).expect("the file is there")[..FILE_HEADER].to_vec();
        let expected = [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(header, expected);
    }

    #[test]
    fn a_frame_longer_than_a_block_is_kept_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kept.pcap");
        let mut savefile = Savefile::create(&path, ETHERNET, 4 << 20, Rotation::default()).expect("created");
        let long = vec![3; BLOCK + 1000];
        for (number, bytes) in [&[1; 60][..], &long, &[2; 60]].into_iter().enumerate() {
            savefile.frame(START + number as u64, bytes.len() as u32, bytes);
        }
        assert_eq!(savefile.close().expect("closed").frames, 3);
        assert_eq!(read(&path).iter().map(|frame| frame.2.len()).collect::<Vec<_>>(), [60, BLOCK + 1000, 60]);
    }

    #[test]
    fn a_file_ends_before_it_is_too_long() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kept.pcap");
        let taken = folder.path().join("kept-20261122T091500Z.pcap");
        fs::write(&taken, "of an earlier run").expect("written");
        let rotation = Rotation { size: Some(FILE_HEADER as u64 + 250), every: None };
        let mut savefile = Savefile::create(&path, ETHERNET, 65_535, rotation).expect("created");
        // Two records of 100 bytes and a longer one that is a file of its own.
        for (number, length) in [84, 84, 84, 1000, 84, 84].into_iter().enumerate() {
            savefile.frame(START + number as u64, 1514, &vec![number as u8; length]);
        }
        let kept = savefile.close().expect("closed");
        let expected = ["-1", "-2", "-3", "-4"].map(|suffix| format!("kept-20261122T091500Z{suffix}.pcap"));
        assert_eq!((names(&kept), kept.frames, kept.dropped, &kept.error), (expected.to_vec(), 6, 0, &None));
        assert_eq!(kept.files.iter().map(|file| read(file).len()).collect::<Vec<_>>(), [2, 1, 1, 2]);
        assert_eq!(
            kept.files.iter().flat_map(|file| read(file)).map(|frame| frame.2[0]).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5]
        );
        assert_eq!(fs::read(&taken).expect("still there"), b"of an earlier run");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_ends_at_a_multiple_of_the_duration() {
        let folder = tempfile::tempdir().expect("a folder");
        let rotation = Rotation { size: None, every: Some(Duration::from_secs(60)) };
        let mut savefile =
            Savefile::create(&folder.path().join("kept"), ETHERNET, 128, rotation).expect("created");
        // The fourth comes out of order and stays where it came; a minute without frames has no file.
        for second in [30, 59, 61, 58, 119, 240] {
            savefile.frame(START + second * NANOS_A_SECOND, 60, &[second as u8; 60]);
        }
        let kept = savefile.close().expect("closed");
        assert_eq!(names(&kept), ["kept-20261122T091530Z", "kept-20261122T091601Z", "kept-20261122T091900Z"]);
        assert_eq!(kept.files.iter().map(|file| read(file).len()).collect::<Vec<_>>(), [2, 3, 1]);
    }

    #[test]
    fn a_rotation_without_frames_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let rotation = Rotation { size: Some(1 << 20), every: None };
        let savefile =
            Savefile::create(&folder.path().join("kept.pcap"), ETHERNET, 128, rotation).expect("created");
        assert_eq!(savefile.close().expect("closed"), Kept::default());
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn frames_are_dropped_and_counted_while_the_disk_is_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kept.pcap");
        let shared = Arc::new(Shared::default());
        let writer = Writer::create(&path, ETHERNET, 2 << 20, Rotation::default(), Arc::clone(&shared))
            .expect("created");
        let (open, gate) = mpsc::channel();
        let mut savefile = Savefile::start(shared, move |full, empty| {
            gate.recv().expect("the gate is opened");
            writer.run(full, empty)
        })
        .expect("started");
        // The last is still in its block, one block is refused for each of the seven between, the others wait.
        for number in 0..WAITING as u64 + 8 {
            savefile.frame(START + number, WHOLE_BLOCK.len() as u32, &WHOLE_BLOCK);
        }
        assert_eq!(savefile.dropped(), 7);
        savefile.flush();
        assert_eq!((savefile.dropped(), savefile.block.frames), (7, 1));
        open.send(()).expect("the thread waits");
        let kept = savefile.close().expect("closed");
        assert_eq!((kept.frames, kept.dropped, kept.error), (WAITING as u64 + 1, 7, None));
        let numbers = read(&path).into_iter().map(|frame| frame.0 - START);
        assert!(numbers.eq((0..WAITING as u64).chain([WAITING as u64 + 7])));
    }

    #[test]
    fn a_failing_disk_is_told_and_what_follows_is_counted() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kept.pcap");
        let shared = Arc::new(Shared::default());
        let mut writer =
            Writer::create(&path, ETHERNET, 128, Rotation::default(), Arc::clone(&shared)).expect("created");
        // Every write to it fails, as on a full disk.
        writer.file = Some(File::open(&path).expect("opened to read"));
        let mut savefile =
            Savefile::start(shared, move |full, empty| writer.run(full, empty)).expect("started");
        for number in 0..100 {
            savefile.frame(START + number, 60, &[0; 60]);
            savefile.flush();
        }
        let kept = savefile.close().expect("closed, for publishing goes on");
        assert_eq!((kept.frames, kept.dropped), (0, 100));
        assert!(kept.error.is_some_and(|why| why.contains("kept.pcap")));
        assert!(read(&path).is_empty());
    }

    #[test]
    fn a_disk_that_is_full_from_the_start_is_told_and_keeps_nothing() {
        let mut savefile =
            Savefile::create(Path::new("/dev/full"), ETHERNET, 128, Rotation::default()).expect("a savefile");
        savefile.frame(0, 60, &[0; 60]);
        let Kept { frames, dropped, error, .. } = savefile.close().expect("an end");
        assert_eq!((frames, dropped), (0, 1));
        assert!(error.is_some_and(|why| why.contains("/dev/full")));
    }

    #[test]
    fn what_cannot_be_written_to_is_told_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = folder.path().join("missing/kept.pcap");
        let rotating = Rotation { size: Some(1 << 20), every: None };
        for rotation in [Rotation::default(), rotating] {
            let why =
                Savefile::create(&missing, ETHERNET, 128, rotation).err().expect("an error").to_string();
            assert!(why.contains("missing"), "{why}");
        }
        assert!(matches!(
            Savefile::create(Path::new(".."), ETHERNET, 128, rotating),
            Err(SavefileError::NoName { .. })
        ));
    }
}
