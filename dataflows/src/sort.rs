//! Sorting rows: what orders a row and where it stands are packed into one number, and the numbers are sorted.
//!
//! Of a rank only the bits that differ between rows are kept, in their order: of the ranks of a window few do, so nearly
//! always the whole rank has room beside the place, and comparing two rows is one comparison without a branch. Where it
//! has not, rows that agree in what had room are told apart by themselves. The rows stay where they are.

use crate::block::{Sorted, Words};
use std::cmp::Ordering;
use std::ops::RangeInclusive;

/// Rows that are sorted at once, about: a larger table is sorted range by range, so that the numbers take little memory
/// beside the rows. They do where rows differ in what has room.
const AT_ONCE: usize = 1 << 20;

/// Ranges at most, for each walks all rows.
const MOST_RANGES: usize = 8;

/// Rows that are looked at to find each range.
const SAMPLED: usize = 64;

/// Bits of a rank's word, as many as have room.
#[derive(Clone, Copy, Default)]
struct Piece {
    shift: u32,
    width: u32,
}

/// How a rank and a place are packed into a number.
struct Packing<const W: usize> {
    pieces: [Piece; W],
    place_bits: u32,
}

impl<const W: usize> Packing<W> {
    /// The packing for ranks that differ in these bits.
    fn new(differ: [u64; W], place_bits: u32) -> Self {
        let mut room = u128::BITS - place_bits;
        let pieces = differ.map(|differ| {
            let (low, high) = (differ.trailing_zeros(), u64::BITS - differ.leading_zeros());
            let width = high.saturating_sub(low).min(room);
            room -= width;
            Piece { shift: high - width, width }
        });
        Self { pieces, place_bits }
    }

    #[inline(always)]
    fn pack(&self, rank: [u64; W], place: u32) -> u128 {
        let mut number = 0;
        for (word, Piece { shift, width }) in rank.into_iter().zip(self.pieces) {
            if width > 0 {
                number = number << width | u128::from(word >> shift & u64::MAX >> (u64::BITS - width));
            }
        }
        number << self.place_bits | u128::from(place)
    }

    #[inline(always)]
    fn place(&self, number: u128) -> u32 {
        number as u32 & u32::MAX.unbounded_shr(u32::BITS - self.place_bits)
    }
}

/// Rows of `width` words, given as blocks in any order, in the order of their ranks; rows of equal rank in that of
/// `tell_apart`.
pub(crate) fn sorted<const W: usize>(
    blocks: Vec<Words>,
    width: usize,
    rank: impl Fn(&[u64]) -> [u64; W],
    tell_apart: impl Fn(&[u64], &[u64]) -> Ordering,
) -> Sorted {
    sorted_by_ranges(blocks, width, (rank, tell_apart), AT_ONCE)
}

fn sorted_by_ranges<const W: usize>(
    blocks: Vec<Words>,
    width: usize,
    (rank, tell_apart): (impl Fn(&[u64]) -> [u64; W], impl Fn(&[u64], &[u64]) -> Ordering),
    at_once: usize,
) -> Sorted {
    let bits = |things: usize| things.next_power_of_two().trailing_zeros();
    let row_bits = bits(blocks.iter().map(|words| words.len() / width).max().unwrap_or(0));
    let place_bits = row_bits + bits(blocks.len());
    if place_bits > u32::BITS {
        // Many blocks beside one that is large: as one block they have the least numbers.
        let whole = blocks.iter().flat_map(|words| words.iter().copied()).collect::<Vec<_>>();
        assert!(whole.len() / width <= u32::MAX as usize, "a table has at most 4 billion rows");
        return sorted_by_ranges(vec![whole.into()], width, (rank, tell_apart), at_once);
    }
    let rows = Sorted::new(blocks, width, row_bits);
    let mut first = None;
    let mut differ = [0; W];
    rows.places().for_each(|(_, row)| {
        let rank = rank(row);
        let first = first.get_or_insert(rank);
        for word in 0..W {
            differ[word] |= rank[word] ^ first[word];
        }
    });
    let packing = Packing::new(differ, place_bits);
    let numbers = || rows.places().map(|(place, row)| packing.pack(rank(row), place));
    let count = rows.count();
    let at_once = at_once.max(count.div_ceil(MOST_RANGES));
    let mut places = Vec::with_capacity(count);
    let mut sorting = Vec::with_capacity(count.min(at_once + at_once / 4));
    for range in ranges(numbers(), count.div_ceil(at_once), count, place_bits) {
        sorting.clear();
        sorting.extend(numbers().filter(|number| range.contains(number)));
        sorting.sort_unstable();
        for equal in sorting.chunk_by_mut(|left, right| left >> place_bits == right >> place_bits) {
            if equal.len() > 1 {
                equal.sort_unstable_by(|left, right| {
                    let [left, right] = [left, right].map(|number| rows.at(packing.place(*number)));
                    rank(left).cmp(&rank(right)).then_with(|| tell_apart(left, right))
                });
            }
        }
        places.extend(sorting.iter().map(|number| packing.place(*number)));
    }
    rows.in_order(places)
}

/// Cuts all numbers into about so many ranges, in each of which about as many of these `numbers` lie; rows that have to
/// be told apart are in one of them.
fn ranges(
    numbers: impl Iterator<Item = u128>,
    many: usize,
    count: usize,
    place_bits: u32,
) -> impl Iterator<Item = RangeInclusive<u128>> {
    let mut starts = vec![0];
    if many > 1 {
        let mut sample: Vec<u128> = numbers.step_by((count / (many * SAMPLED)).max(1)).collect();
        sample.sort_unstable();
        starts.extend((1..many).map(|range| sample[range * sample.len() / many] >> place_bits << place_bits));
        starts.dedup();
    }
    let ends: Vec<u128> = starts[1..].iter().map(|start| start - 1).chain([u128::MAX]).collect();
    starts.into_iter().zip(ends).map(|(start, end)| start..=end)
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
            let rows = |sorted: Sorted| (0..sorted.len()).map(|row| sorted.row(row).to_vec()).collect::<Vec<_>>();
            let all = (|row: &[u64]| [row[0], row[1], row[2]], |left: &[u64], right: &[u64]| left[3].cmp(&right[3]));
            let one = (|row: &[u64]| [row[0]], |left: &[u64], right: &[u64]| left.cmp(right));
            for at_once in [AT_ONCE, 1, 7] {
                prop_assert_eq!(&rows(sorted_by_ranges(words.clone(), 4, all, at_once)), &expected);
                prop_assert_eq!(&rows(sorted_by_ranges(words.clone(), 4, one, at_once)), &expected);
            }
        }
    }
}
