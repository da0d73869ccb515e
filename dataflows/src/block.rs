//! The container of every exchange: rows of fixed layout as plain words, already bound for one worker.
//!
//! The sender sorts rows by their destination while it writes them, so timely moves whole blocks (within a process a
//! pointer, between processes one copy of the words) and never looks at a record.

use crate::window::Epoch;
use std::io::Write;
use std::sync::Arc;
use timely::Accountable;
use timely::bytes::arc::Bytes;
use timely::communication::Push;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::progress::Stamp;

/// Rows of one window and one layout. Cloning shares the words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Worker that receives the block on an exchanged edge.
    pub to: usize,
    /// Number of the task, where rows of several tasks share an edge.
    pub task: usize,
    /// The window that the rows belong to; earlier than the block's own time where they came late.
    pub window: Epoch,
    /// Whether keys are [`crate::key::Wide`], else [`crate::key::Compact`].
    pub wide: bool,
    /// The rows, each a key followed by its values.
    pub words: Arc<Vec<u64>>,
}

/// Output of an operator that makes its own blocks.
pub type BlockBuilder = NoopBuilder<Block>;

/// Counts as one record however many rows it has: a block is never split on its way.
impl Accountable for Block {
    fn record_count(&self) -> i64 {
        1
    }
}

const HEADER_WORDS: usize = 4;

impl ContainerBytes for Block {
    fn from_bytes(bytes: Bytes) -> Self {
        let mut words =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        let mut next = || words.next().expect("a block starts with its header");
        let (to, task, window) = (next() as usize, next() as usize, next());
        let wide = next() == 1;
        Self { to, task, window, wide, words: Arc::new(words.collect()) }
    }

    fn length_in_bytes(&self) -> usize {
        8 * (HEADER_WORDS + self.words.len())
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let header = [self.to as u64, self.task as u64, self.window, self.wide.into()];
        for word in header.iter().chain(self.words.iter()) {
            writer.write_all(&word.to_le_bytes()).expect("timely reserves as many bytes as were asked for");
        }
    }
}

/// Sends each block to the worker that it names.
pub struct ToNamedWorker;

impl Distributor<Block> for ToNamedWorker {
    fn partition<T: Clone, P: Push<Message<T, Block>>>(
        &mut self,
        block: &mut Block,
        stamp: &Stamp<T>,
        pushers: &mut [P],
    ) {
        let to = block.to;
        Message::push_at(block, stamp.clone(), &mut pushers[to]);
    }

    fn flush<T: Clone, P: Push<Message<T, Block>>>(&mut self, _stamp: &Stamp<T>, _pushers: &mut [P]) {}
}

/// The exchange contract of blocks.
pub fn to_named_worker() -> DistributorPact<impl FnOnce(usize) -> ToNamedWorker> {
    DistributorPact(|_peers| ToNamedWorker)
}
