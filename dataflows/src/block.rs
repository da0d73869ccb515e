//! The container of every exchange: rows of fixed layout as plain words, already bound for one worker.
//!
//! The sender sorts rows by their destination while it writes them, so timely moves whole blocks (within a process a
//! pointer, between processes one copy of the words) and never looks at a record.

use crate::key::Layout;
use crate::prefetch::prefetch;
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

/// Rows that are asked for while others before them are read.
pub(crate) const AHEAD: usize = 16;

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

/// Rows in an order, left where they are: a large table is not copied to be sorted.
#[derive(Debug, PartialEq, Eq)]
pub struct Sorted {
    blocks: Vec<Words>,
    /// Words of a row.
    width: usize,
    row_bits: u32,
    /// In their order, of each row its block above its number there.
    places: Vec<u32>,
}

impl Sorted {
    /// Rows of `width` words, still in no order; a place is the number of a block above `row_bits` bits that number the
    /// row in it.
    pub(crate) fn new(blocks: Vec<Words>, width: usize, row_bits: u32) -> Self {
        Self { blocks, width, row_bits, places: Vec::new() }
    }

    /// The same rows in the order of these places, each of which holds a row.
    pub(crate) fn in_order(self, places: Vec<u32>) -> Self {
        Self { places, ..self }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    #[inline(always)]
    fn find(&self, place: u32) -> (&Words, usize) {
        let place = place as usize;
        let row = place & ((1 << self.row_bits) - 1);
        (&self.blocks[place >> self.row_bits], row * self.width)
    }

    /// All rows with their places, in no order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, &[u64])> {
        let blocks = (0u32..).zip(&self.blocks);
        blocks.flat_map(move |(block, words)| {
            let first = block.unbounded_shl(self.row_bits);
            (0..).zip(words.chunks_exact(self.width)).map(move |(row, words): (u32, _)| (first | row, words))
        })
    }

    /// How many rows there are in all places.
    pub(crate) fn count(&self) -> usize {
        self.blocks.iter().map(|words| words.len() / self.width).sum()
    }

    /// The words of the row in a place.
    #[inline(always)]
    pub(crate) fn at(&self, place: u32) -> &[u64] {
        let (block, start) = self.find(place);
        &block[start..][..self.width]
    }

    /// The words of the row of this number.
    #[inline(always)]
    pub fn row(&self, number: usize) -> &[u64] {
        self.at(self.places[number])
    }

    /// Has the row of this number fetched, which will be wanted soon; none where there is no such row.
    #[inline(always)]
    pub fn fetch(&self, number: usize) {
        if let Some(place) = self.places.get(number) {
            let (block, start) = self.find(*place);
            prefetch(block, start);
            prefetch(block, start + self.width - 1);
        }
    }
}

/// Rows of one window and one layout. Cloning shares the words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Worker that receives the block on an exchanged edge.
    pub to: usize,
    /// Number of the task, where rows of several tasks share an edge.
    pub task: usize,
    /// The window that the rows belong to; earlier than the block's own time where they came late.
    pub window: Epoch,
    /// How the keys lie.
    pub layout: Layout,
    /// Words of a row: its key's and its values'; 0 where the words are no rows.
    pub width: usize,
    /// The rows, each a key followed by its values.
    pub words: Words,
    /// The rows in place of `words`, once they have an order.
    pub sorted: Option<Arc<Sorted>>,
}

impl Block {
    /// Number of all words.
    pub fn len(&self) -> usize {
        self.sorted.as_ref().map_or(self.words.len(), |sorted| sorted.len() * sorted.width)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all words and of their order.
    pub fn bytes(&self) -> usize {
        let places = self.sorted.as_ref().map_or(0, |sorted| sorted.len());
        size_of::<u64>() * self.len() + size_of::<u32>() * places
    }

    /// Visits all words, in pieces, in their order.
    pub fn visit_words<E>(&self, mut visit: impl FnMut(&[u64]) -> Result<(), E>) -> Result<(), E> {
        let Some(sorted) = &self.sorted else { return visit(&self.words) };
        for number in 0..sorted.len() {
            sorted.fetch(number + AHEAD);
            visit(sorted.row(number))?;
        }
        Ok(())
    }

    /// All words in no order, which is the quickest way through them: blocks of whole rows.
    pub fn unordered(&self) -> impl Iterator<Item = &[u64]> {
        let sorted = self.sorted.iter().flat_map(|sorted| &sorted.blocks);
        std::iter::once(&self.words).chain(sorted).map(|words| &**words)
    }

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
        let (to, task, window, rows) = (next() as usize, next() as usize, next(), next());
        let (layout, width) = (Layout::numbered(rows & 0xff).unwrap_or_default(), (rows >> 8) as usize);
        Self { to, task, window, layout, width, words: Words::received(bytes), sorted: None }
    }

    fn length_in_bytes(&self) -> usize {
        8 * (HEADER_WORDS + self.len())
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let rows = (self.width as u64) << 8 | self.layout as u64;
        let header = [self.to as u64, self.task as u64, self.window, rows];
        let written = writer
            .write_all(bytemuck::cast_slice(&header))
            .and_then(|()| self.visit_words(|words| writer.write_all(bytemuck::cast_slice(words))));
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
        let (layout, width) = (Layout::WideExtra, 10);
        let whole = Block { to: 3, task: 2, window: u64::MAX, layout, width, words, sorted: None };
        for block in [Block::default(), whole] {
            for shift in [0, 8, 3] {
                assert_eq!(sent(&block, shift), block);
            }
        }
    }

    #[test]
    fn rows_in_an_order_come_in_it() {
        let blocks = [vec![10, 11, 20, 21], vec![30, 31]].map(Words::from).to_vec();
        let sorted = Arc::new(Sorted::new(blocks, 2, 1).in_order(vec![0b10, 0b01, 0b00]));
        let came = sent(&Block { sorted: Some(sorted), ..Block::default() }, 8);
        assert_eq!(*came.words, [30, 31, 20, 21, 10, 11]);
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
