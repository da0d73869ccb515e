//! Bytes of one input: a plain file read at its offset, or a stream (compressed file, pipe) read by a thread.
//!
//! Nothing is mapped, so a file that shrinks while it is read gives an error and not a signal.

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Bytes that a stream's thread hands over at once.
const STREAM_BLOCK: usize = 1 << 20;
/// Bytes that it asks for in one call.
const READ: usize = 128 << 10;
/// Blocks that a stream's thread may be ahead.
const STREAM_AHEAD: usize = 4;

/// How long a stream's thread may take from a read to handing the bytes over.
const HANDING_OVER: Duration = Duration::from_millis(50);

/// Called when a stream that had nothing to give has something again.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// The bytes of an input from a cursor on.
pub enum Source {
    /// A regular file, and the offset of the cursor.
    File(File, u64),
    /// Anything that can only be read once, in order.
    Stream(Stream),
    /// An input that is read no further.
    Ended,
}

/// When a stream's bytes are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As soon as there are any: a pipe may be live.
    AsItComes,
    /// As many as were wanted: where chunks end must not depend on how fast a file is decompressed.
    WholeBlocks,
}

/// What a look at the bytes found.
#[derive(Debug, PartialEq, Eq)]
pub enum Peek {
    /// As many bytes as were wanted, or all there are now; more may follow.
    Some,
    /// All bytes to the end of the input.
    Last,
    /// All bytes that were received before the input was stopped.
    Stopped,
    /// Nothing new yet; the wake function will be called.
    Wait,
}

impl Source {
    /// Fills `buffer` with at least `want` bytes from the cursor on, where there are as many. The cursor stays.
    pub fn peek(&mut self, buffer: &mut Vec<u8>, want: usize) -> io::Result<Peek> {
        match self {
            Self::File(file, cursor) => {
                buffer.resize(want, 0);
                let mut filled = 0;
                while filled < want {
                    match file.read_at(&mut buffer[filled..], *cursor + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                buffer.truncate(filled);
                if filled == 0 && *cursor > file.metadata()?.len() {
                    return Err(skipped_beyond_the_end());
                }
                Ok(if filled < want { Peek::Last } else { Peek::Some })
            }
            Self::Stream(stream) => stream.peek(buffer, want),
            Self::Ended => {
                buffer.clear();
                Ok(Peek::Last)
            }
        }
    }

    /// Whether its bytes may come as they are captured, so that nobody should wait for more of them.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Stream(Stream { pace: Pace::AsItComes, .. }))
    }

    /// Ends the input where it is: a file at once, a stream after what has been received of it.
    pub fn stop(&mut self) {
        match self {
            Self::Stream(stream) => stream.stop.store(true, Relaxed),
            source => *source = Self::Ended,
        }
    }

    /// Moves the cursor on by so many bytes, of which `buffer` holds the first, as the last [`Self::peek`] left them.
    pub fn consume(&mut self, buffer: &mut Vec<u8>, bytes: u64) {
        match self {
            Self::File(_, cursor) => *cursor += bytes,
            Self::Stream(stream) => stream.consume(buffer.as_slice(), bytes),
            Self::Ended => {}
        }
        buffer.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    }
}

fn skipped_beyond_the_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the input ends in the middle of a block")
}

/// Bytes that a thread of its own reads ahead.
pub struct Stream {
    blocks: Receiver<io::Result<Vec<u8>>>,
    pace: Pace,
    /// Bytes received and not consumed.
    carried: Vec<u8>,
    /// How many of them a look has seen already.
    left: usize,
    /// Bytes still to be passed over.
    skip: u64,
    ended: bool,
    failed: Option<io::Error>,
    /// Tells the thread to read no further.
    stop: Arc<AtomicBool>,
}

impl Stream {
    /// Starts the thread.
    pub fn new(reader: Box<dyn Read + Send>, pace: Pace, wake: Wake) -> io::Result<Self> {
        let (sender, blocks) = bounded(STREAM_AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let read = move || {
            read_blocks(reader, pace, &stopped, &sender, &wake);
            drop(sender);
            wake();
        };
        std::thread::Builder::new().name("capture-stream".into()).spawn(read)?;
        Ok(Self { blocks, pace, carried: Vec::new(), left: 0, skip: 0, ended: false, failed: None, stop })
    }

    fn peek(&mut self, buffer: &mut Vec<u8>, want: usize) -> io::Result<Peek> {
        let stopped = self.stop.load(Relaxed);
        while self.carried.len() < want && !self.ended {
            let received = match (stopped, self.blocks.try_recv()) {
                // The thread may hold what it has just read; else it waits for bytes that are not received any more.
                (true, Err(TryRecvError::Empty)) => {
                    self.blocks.recv_timeout(HANDING_OVER).map_err(|_| TryRecvError::Disconnected)
                }
                (_, received) => received,
            };
            match received {
                Ok(Ok(mut block)) => {
                    let skipped = self.skip.min(block.len() as u64);
                    self.skip -= skipped;
                    block.drain(..skipped as usize);
                    if self.carried.is_empty() {
                        self.carried = block;
                    } else {
                        self.carried.extend_from_slice(&block);
                    }
                }
                Ok(Err(error)) => (self.failed, self.ended) = (Some(error), true),
                Err(TryRecvError::Disconnected) => self.ended = true,
                Err(TryRecvError::Empty)
                    if self.pace == Pace::AsItComes && self.carried.len() > self.left =>
                {
                    break;
                }
                Err(TryRecvError::Empty) => return Ok(Peek::Wait),
            }
        }
        if self.ended
            && self.carried.len() == self.left
            && let Some(error) = self.failed.take()
        {
            return Err(error);
        }
        if self.ended && std::mem::take(&mut self.skip) > 0 && !stopped {
            return Err(skipped_beyond_the_end());
        }
        std::mem::swap(buffer, &mut self.carried);
        self.carried.clear();
        Ok(match (self.ended && self.failed.is_none(), stopped) {
            (true, true) => Peek::Stopped,
            (true, false) => Peek::Last,
            (false, _) => Peek::Some,
        })
    }

    fn consume(&mut self, buffer: &[u8], bytes: u64) {
        let within = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffer.len());
        self.carried.extend_from_slice(&buffer[within..]);
        self.left = self.carried.len();
        self.skip += bytes - within as u64;
    }
}

/// Reads to the end, handing over blocks at the stream's pace.
fn read_blocks(
    mut reader: Box<dyn Read + Send>,
    pace: Pace,
    stop: &AtomicBool,
    sender: &Sender<io::Result<Vec<u8>>>,
    wake: &Wake,
) {
    let mut read_now = vec![0; READ];
    let mut block = Vec::with_capacity(STREAM_BLOCK);
    loop {
        let read = match reader.read(&mut read_now) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read,
        };
        block.extend_from_slice(&read_now[..*read.as_ref().unwrap_or(&0)]);
        let over = !matches!(read, Ok(1..)) || stop.load(Relaxed);
        if !block.is_empty() && (over || pace == Pace::AsItComes || block.len() >= STREAM_BLOCK - READ) {
            if sender.send(Ok(std::mem::replace(&mut block, Vec::with_capacity(STREAM_BLOCK)))).is_err() {
                return;
            }
            wake();
        }
        if let Err(error) = read {
            // Nobody receives it any more when the run is over.
            let _ = sender.send(Err(error));
        }
        if over {
            return;
        }
    }
}
