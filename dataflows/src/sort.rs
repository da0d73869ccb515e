//! Sorting rows: what orders a row and where it stands are packed into one number, and the numbers are sorted.
//!
//! Of a rank only the bits that differ between rows are kept, in their order: of the ranks of a window few do, so nearly
//! always the whole rank has room beside the place, and comparing two rows is one comparison without a branch. Where it
//! has not, rows that agree in what had room are told apart by themselves.

use crate::block::Words;
use crate::prefetch::prefetch;
use std::cmp::Ordering;

/// How far ahead rows are asked for while they are copied in their order.
const AHEAD: usize = 16;

/// Where rows stand: the block above the row in it.
struct Places<'a> {
    blocks: &'a [Words],
    width: usize,
    row_bits: u32,
    bits: u32,
}

impl<'a> Places<'a> {
    fn new(blocks: &'a [Words], width: usize) -> Self {
        let bits = |things: usize| things.next_power_of_two().trailing_zeros();
        let row_bits = bits(blocks.iter().map(|words| words.len() / width).max().unwrap_or(0));
        Self { blocks, width, row_bits, bits: row_bits + bits(blocks.len()) }
    }

    /// The block of a packed place and the first word of its row there.
    #[inline(always)]
    fn find(&self, packed: u128) -> (&'a Words, usize) {
        let place = packed as usize & ((1 << self.bits) - 1);
        (&self.blocks[place >> self.row_bits], (place & ((1 << self.row_bits) - 1)) * self.width)
    }

    #[inline(always)]
    fn row(&self, packed: u128) -> &'a [u64] {
        let (block, start) = self.find(packed);
        &block[start..][..self.width]
    }

    /// Visits all rows with their places.
    #[inline(always)]
    fn visit(&self, mut visit: impl FnMut(u64, &[u64])) {
        for (number, block) in self.blocks.iter().enumerate() {
            for (row, words) in block.chunks_exact(self.width).enumerate() {
                visit((number << self.row_bits | row) as u64, words);
            }
        }
    }
}

/// Bits of a rank's word, as many as have room.
#[derive(Clone, Copy, Default)]
struct Piece {
    shift: u32,
    width: u32,
}

/// Rows of `width` words, given as blocks in any order, in the order of their ranks; rows of equal rank in that of
/// `tell_apart`.
pub(crate) fn sorted<const W: usize>(
    blocks: &[Words],
    width: usize,
    rank: impl Fn(&[u64]) -> [u64; W],
    tell_apart: impl Fn(&[u64], &[u64]) -> Ordering,
) -> Vec<u64> {
    let places = Places::new(blocks, width);
    let mut first = None;
    let mut differ = [0; W];
    places.visit(|_, row| {
        let rank = rank(row);
        let first = first.get_or_insert(rank);
        for word in 0..W {
            differ[word] |= rank[word] ^ first[word];
        }
    });
    let mut room = u128::BITS - places.bits;
    let pieces = differ.map(|differ| {
        let (low, high) = (differ.trailing_zeros(), u64::BITS - differ.leading_zeros());
        let width = high.saturating_sub(low).min(room);
        room -= width;
        Piece { shift: high - width, width }
    });
    let mut packed: Vec<u128> = Vec::with_capacity(blocks.iter().map(|words| words.len() / width).sum());
    places.visit(|place, row| {
        let rank = rank(row);
        let mut number = 0;
        for (word, Piece { shift, width }) in rank.into_iter().zip(pieces) {
            if width > 0 {
                number = number << width | u128::from(word >> shift & u64::MAX >> (u64::BITS - width));
            }
        }
        packed.push(number << places.bits | u128::from(place));
    });
    packed.sort_unstable();
    for equal in packed.chunk_by_mut(|left, right| left >> places.bits == right >> places.bits) {
        if equal.len() > 1 {
            equal.sort_unstable_by(|left, right| {
                let (left, right) = (places.row(*left), places.row(*right));
                rank(left).cmp(&rank(right)).then_with(|| tell_apart(left, right))
            });
        }
    }
    match width {
        6 => copied::<6>(&places, &packed),
        9 => copied::<9>(&places, &packed),
        _ => packed.iter().flat_map(|packed| places.row(*packed)).copied().collect(),
    }
}

/// The rows of these places, each of `S` words.
fn copied<const S: usize>(places: &Places<'_>, packed: &[u128]) -> Vec<u64> {
    let mut copied = Vec::with_capacity(packed.len() * S);
    for (number, place) in packed.iter().enumerate() {
        if let Some(later) = packed.get(number + AHEAD) {
            let (block, start) = places.find(*later);
            prefetch(block, start);
            prefetch(block, start + S - 1);
        }
        let (block, start) = places.find(*place);
        let row: &[u64; S] = block[start..].first_chunk().expect("a block holds whole rows");
        copied.extend_from_slice(row);
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows of a rank of three words and a word that tells them apart.
    fn rows() -> impl Strategy<Value = Vec<Vec<[u64; 4]>>> {
        let word = || prop_oneof![Just(0), 0u64..4, any::<u64>(), (0u32..64).prop_map(|bit| 1 << bit)];
        let row = (word(), word(), word(), any::<u64>()).prop_map(|(a, b, c, d)| [a, b, c, d]);
        proptest::collection::vec(proptest::collection::vec(row, 0..40), 0..6)
    }

    proptest! {
        #[test]
        fn rows_come_in_the_order_of_their_ranks_and_then_of_what_tells_them_apart(blocks in rows()) {
            let mut expected = blocks.concat();
            expected.sort();
            let words: Vec<Words> = blocks.into_iter().map(|rows| rows.concat().into()).collect();
            let found = sorted(&words, 4, |row| [row[0], row[1], row[2]], |left, right| left[3].cmp(&right[3]));
            prop_assert_eq!(found.as_chunks::<4>().0, &expected[..]);
            let ties = sorted(&words, 4, |row| [row[0]], |left, right| left.cmp(right));
            prop_assert_eq!(ties, found);
        }
    }
}
