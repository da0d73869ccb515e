//! The container of every exchange: rows of fixed layout as plain words, already bound for one worker.
//!
//! The sender sorts rows by their destination while it writes them, so timely moves whole blocks (within a process a
//! pointer, between processes one copy of the words) and never looks at a record.

use crate::window::Epoch;
use std::io::Write;
use std::ops::Deref;
use std::sync::Arc;
use timely::Accountable;
use timely::bytes::arc::Bytes;
use timely::communication::Push;
use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::dataflow::operators::generic::operator::Operator;
use timely::progress::Stamp;

/// Words that are shared: made here, or still the bytes that another process sent. Cloning copies nothing.
#[derive(Clone)]
pub struct Words(Held);

#[derive(Clone)]
enum Held {
    Own(Arc<Vec<u64>>),
    /// A whole number of words, aligned as words are.
    Received(Bytes),
}

impl Words {
    /// Takes words as another process sent them; copies them only where they are not aligned.
    fn received(bytes: Bytes) -> Self {
        match bytemuck::try_cast_slice::<u8, u64>(&bytes) {
            Ok(_) => Self(Held::Received(bytes)),
            Err(_) => {
                let words = bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
                Self::from(words.collect::<Vec<_>>())
            }
        }
    }
}

impl Deref for Words {
    type Target = [u64];

    #[inline]
    fn deref(&self) -> &[u64] {
        match &self.0 {
            Held::Own(words) => words,
            Held::Received(bytes) => bytemuck::cast_slice(bytes),
        }
    }
}

impl From<Vec<u64>> for Words {
    fn from(words: Vec<u64>) -> Self {
        Self(Held::Own(Arc::new(words)))
    }
}

impl Default for Words {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(formatter)
    }
}

impl PartialEq for Words {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Words {}

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
    pub words: Words,
}

impl Block {
    /// A message of any bytes to a worker, in the words of a block: how many there are, then the bytes.
    pub fn message(to: usize, bytes: &[u8]) -> Self {
        let mut words = vec![0; 1 + bytes.len().div_ceil(8)];
        words[0] = bytes.len() as u64;
        bytemuck::cast_slice_mut(&mut words[1..])[..bytes.len()].copy_from_slice(bytes);
        Self { to, words: words.into(), ..Self::default() }
    }

    /// The bytes of a message; none of what is no message.
    pub fn message_bytes(&self) -> &[u8] {
        let Some((length, words)) = self.words.split_first() else { return &[] };
        bytemuck::cast_slice(words).get(..*length as usize).unwrap_or_default()
    }
}

/// Output of an operator that makes its own blocks.
pub type BlockBuilder = NoopBuilder<Block>;

/// Counts as one record however many rows it has: a block is never split on its way.
impl Accountable for Block {
    fn record_count(&self) -> i64 {
        1
    }
}

/// Words of a block's header on its way to another process; their order of bytes is that of the machine, which all
/// processes of a cluster share.
const HEADER_WORDS: usize = 4;

impl ContainerBytes for Block {
    fn from_bytes(mut bytes: Bytes) -> Self {
        let header = bytes.extract_to(8 * HEADER_WORDS);
        let mut words = header.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let (to, task, window, wide) = (next() as usize, next() as usize, next(), next() == 1);
        Self { to, task, window, wide, words: Words::received(bytes) }
    }

    fn length_in_bytes(&self) -> usize {
        8 * (HEADER_WORDS + self.words.len())
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let header = [self.to as u64, self.task as u64, self.window, self.wide.into()];
        let written = writer
            .write_all(bytemuck::cast_slice(&header))
            .and_then(|()| writer.write_all(bytemuck::cast_slice(&self.words)));
        written.expect("timely reserves as many bytes as were asked for");
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

/// Moves blocks to the workers that they name.
pub fn exchange<'s>(blocks: Stream<'s, Epoch, Block>) -> Stream<'s, Epoch, Block> {
    blocks.unary::<BlockBuilder, _, _, _>(to_named_worker(), "Exchange", move |_, _| {
        move |input, output| {
            input.for_each(|message, block| output.session_with_builder(&message).give_container(block));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use timely::bytes::arc::BytesMut;

    fn sent(block: &Block, shift: usize) -> Block {
        let mut bytes = vec![0; shift];
        block.into_bytes(&mut bytes);
        assert_eq!(bytes.len(), shift + block.length_in_bytes());
        let mut bytes = BytesMut::from(bytes).freeze();
        bytes.extract_to(shift);
        Block::from_bytes(bytes)
    }

    #[test]
    fn a_block_comes_as_it_was_sent_wherever_its_bytes_lie() {
        let words = (0..1000).map(|word| word << 40 | 7).collect::<Vec<u64>>().into();
        for block in [Block::default(), Block { to: 3, task: 2, window: u64::MAX, wide: true, words }] {
            for shift in [0, 8, 3] {
                assert_eq!(sent(&block, shift), block);
            }
        }
    }

    #[test]
    fn a_message_holds_any_bytes() {
        for length in [0, 1, 7, 8, 9, 100] {
            let bytes: Vec<u8> = (0..length).collect();
            assert_eq!(sent(&Block::message(1, &bytes), 0).message_bytes(), bytes);
        }
        assert_eq!(Block::default().message_bytes(), [0; 0]);
        let lies = Block { words: vec![9, 1].into(), ..Block::default() };
        assert_eq!(lies.message_bytes(), [0; 0]);
    }
}
