//! The hash table of exact groups: key words to packets, bytes, first and last time, and other measures.
//!
//! Groups lie densely in the order of their first packet, in chunks that are never moved; a small index of 4 bytes a
//! slot points at them, and each slot carries the hash bits that the group's number leaves free, so that a probe rarely
//! touches a wrong group.
//! Groups arrive in batches: hash all, fetch all index lines, fetch all groups, then update, so that cache misses
//! overlap. Nothing observable depends on the seed or on the order of groups.

use crate::measure::{MOST, Merges};
use crate::prefetch::prefetch;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

/// Words of every group behind its key: packets, bytes, first time, last time (nanoseconds). Those of other measures follow.
pub const COUNTS: usize = 4;

/// Groups that are looked up together.
const BATCH: usize = 64;
/// Groups in a chunk, some 400 kB: a table grows by chunks and is handed on by chunks, and so few are always near.
pub const CHUNK_GROUPS: usize = 1 << 13;
/// No group: its number would be more than a table of this size holds. Not zero, because zeroed memory is mapped on the
/// first read and once more, with an interrupt to all other cores, on the first write.
const EMPTY: u32 = u32::MAX;
/// Fewest slots of an index: windows may be many and small.
const LEAST_SLOTS: usize = 16;

/// A secret of this process, so that no sender of packets can choose keys that collide.
static SEED: LazyLock<[u64; 2]> = LazyLock::new(|| {
    let state = RandomState::new();
    [0, 1].map(|number| {
        let mut hasher = state.build_hasher();
        hasher.write_u64(number);
        hasher.finish()
    })
});

/// Full multiply of two words, halves folded together.
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Hash of a key under a seed; all bits are usable.
#[inline(always)]
fn hash<const K: usize>(key: &[u64; K], seed: &[u64; 2]) -> u64 {
    let mut hash = seed[0];
    let mut pairs = key.chunks_exact(2);
    for pair in &mut pairs {
        hash = fold(pair[0] ^ hash, pair[1] ^ seed[1]);
    }
    if let [last] = pairs.remainder() {
        hash = fold(last ^ hash, seed[1]);
    }
    fold(hash ^ seed[1], 0x9e37_79b9_7f4a_7c15)
}

/// The hash that decides which worker owns a key: the same in every process and on every machine.
#[inline(always)]
pub fn route<const K: usize>(key: &[u64; K]) -> u64 {
    const ROUTE: [u64; 2] = [0xa076_1d64_78bd_642f, 0xe703_7ed1_a0b4_28db];
    hash(key, &ROUTE)
}

/// The worker out of `peers` that owns the keys of a [`route`].
#[inline(always)]
pub fn owner(route: u64, peers: usize) -> usize {
    ((u128::from(route) * peers as u128) >> 64) as usize
}

/// Groups of `S` words whose first `K` are the key.
#[derive(Clone, Debug)]
pub struct Table<const K: usize, const S: usize> {
    /// Power of two slots: [`EMPTY`], or hash bits above the number of the group.
    index: Vec<u32>,
    /// All but the last are full.
    chunks: Vec<Vec<[u64; S]>>,
    len: usize,
    seed: [u64; 2],
}

impl<const K: usize, const S: usize> Default for Table<K, S> {
    fn default() -> Self {
        const { assert!(S >= K + COUNTS && S <= K + COUNTS + MOST && CHUNK_GROUPS.is_multiple_of(BATCH)) };
        Self { index: Vec::new(), chunks: Vec::new(), len: 0, seed: *SEED }
    }
}

impl<const K: usize, const S: usize> Table<K, S> {
    /// Number of distinct keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The groups, in no promised order.
    pub fn groups(&self) -> impl Iterator<Item = &[u64; S]> {
        self.chunks.iter().flatten()
    }

    /// The groups, in no promised order, at most [`CHUNK_GROUPS`] at once; what was handed on is the caller's to free.
    pub fn into_chunks(mut self) -> impl Iterator<Item = Vec<[u64; S]>> {
        // A chunk may be kept for long, by an archive or to be asked for, and half of it may be room for groups that never came.
        if let Some(last) = self.chunks.last_mut() {
            last.shrink_to_fit();
        }
        self.chunks.into_iter()
    }

    #[inline(always)]
    fn group_mut(&mut self, number: usize) -> Option<&mut [u64; S]> {
        self.chunks.get_mut(number / CHUNK_GROUPS)?.get_mut(number % CHUNK_GROUPS)
    }

    fn push(&mut self, group: &[u64; S]) {
        match self.chunks.last_mut() {
            Some(last) if last.len() < CHUNK_GROUPS => last.push(*group),
            // Small tables are many: the first chunk starts small and grows.
            None => self.chunks.push(vec![*group]),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK_GROUPS);
                chunk.push(*group);
                self.chunks.push(chunk);
            }
        }
        self.len += 1;
    }

    /// Adds every group to the one of its key: packets and bytes sum up, first and last time widen, and what is behind them
    /// merges as it should.
    pub fn absorb(&mut self, groups: &[[u64; S]], merges: &Merges) {
        for batch in groups.chunks(BATCH) {
            self.absorb_batch(batch, merges);
        }
    }

    #[inline]
    fn absorb_batch(&mut self, batch: &[[u64; S]], merges: &Merges) {
        self.reserve(batch.len());
        let mask = self.index.len() - 1;
        let bits = self.index.len().trailing_zeros();
        let mut hashes = [0u64; BATCH];
        for (hash_of, group) in hashes.iter_mut().zip(batch) {
            *hash_of = hash(key_of::<K, S>(group), &self.seed);
            prefetch(&self.index, *hash_of as usize & mask);
        }
        let mut found = [u32::MAX; BATCH];
        for (found, hash) in found.iter_mut().zip(&hashes[..batch.len()]) {
            let tag = tag(*hash, bits);
            let mut at = *hash as usize & mask;
            loop {
                let slot = self.index[at];
                if slot == EMPTY {
                    break;
                }
                if slot >> bits == tag {
                    *found = slot & mask as u32;
                    let number = *found as usize;
                    if let Some(group) = self.chunks[number / CHUNK_GROUPS].get(number % CHUNK_GROUPS) {
                        prefetch(group, 0);
                        prefetch(group, S - 1);
                    }
                    break;
                }
                at = (at + 1) & mask;
            }
        }
        for ((group, found), hash) in batch.iter().zip(found).zip(hashes) {
            match self.group_mut(found as usize) {
                Some(entry) if key_of::<K, S>(entry) == key_of::<K, S>(group) => {
                    merge::<K, S>(entry, group, merges)
                }
                _ => self.upsert(group, hash, merges),
            }
        }
    }

    /// Finds the key's group by probing, or adds it. The index has room.
    fn upsert(&mut self, group: &[u64; S], hash: u64, merges: &Merges) {
        let mask = self.index.len() - 1;
        let bits = self.index.len().trailing_zeros();
        let tag = tag(hash, bits);
        let mut at = hash as usize & mask;
        loop {
            let slot = self.index[at];
            if slot == EMPTY {
                self.index[at] = tag << bits | self.len as u32;
                self.push(group);
                return;
            }
            if slot >> bits == tag {
                let number = (slot & mask as u32) as usize;
                let entry = self.group_mut(number).expect("the index points at groups that are there");
                if key_of::<K, S>(entry) == key_of::<K, S>(group) {
                    return merge::<K, S>(entry, group, merges);
                }
            }
            at = (at + 1) & mask;
        }
    }

    /// Makes room for so many more groups, at a load of at most 5/8.
    fn reserve(&mut self, more: usize) {
        let needed = (self.len + more) * 8 / 5;
        if needed < self.index.len() {
            return;
        }
        let slots = needed.next_power_of_two().max(LEAST_SLOTS);
        assert!(slots <= 1 << 31, "a table holds at most 1.3 billion groups");
        self.index = vec![EMPTY; slots];
        let mask = slots - 1;
        let bits = slots.trailing_zeros();
        let mut hashes = [0u64; BATCH];
        for (batch, groups) in self.chunks.iter().flat_map(|chunk| chunk.chunks(BATCH)).enumerate() {
            for (hash_of, group) in hashes.iter_mut().zip(groups) {
                *hash_of = hash(key_of::<K, S>(group), &self.seed);
                prefetch(&self.index, *hash_of as usize & mask);
            }
            for (number, hash) in hashes[..groups.len()].iter().enumerate() {
                let mut at = *hash as usize & mask;
                while self.index[at] != EMPTY {
                    at = (at + 1) & mask;
                }
                self.index[at] = tag(*hash, bits) << bits | (batch * BATCH + number) as u32;
            }
        }
    }
}

/// The key words of a group.
#[inline(always)]
pub fn key_of<const K: usize, const S: usize>(group: &[u64; S]) -> &[u64; K] {
    group.first_chunk().expect("a group starts with its key")
}

/// The topmost hash bits that fit above `bits` bits in a slot.
#[inline(always)]
fn tag(hash: u64, bits: u32) -> u32 {
    (hash >> (32 + bits)) as u32
}

#[inline(always)]
fn merge<const K: usize, const S: usize>(entry: &mut [u64; S], group: &[u64; S], merges: &Merges) {
    entry[K] += group[K];
    entry[K + 1] += group[K + 1];
    entry[K + 2] = entry[K + 2].min(group[K + 2]);
    entry[K + 3] = entry[K + 3].max(group[K + 3]);
    if S > K + COUNTS {
        let entry = entry[K + COUNTS..].iter_mut();
        for ((entry, group), merge) in entry.zip(&group[K + COUNTS..]).zip(merges) {
            *entry = merge.of(*entry, *group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn naive(groups: &[[u64; 6]]) -> BTreeMap<[u64; 2], [u64; 4]> {
        let mut all: BTreeMap<[u64; 2], [u64; 4]> = BTreeMap::new();
        for &[a, b, packets, bytes, first, last] in groups {
            let entry = all.entry([a, b]).or_insert([0, 0, u64::MAX, 0]);
            *entry = [entry[0] + packets, entry[1] + bytes, entry[2].min(first), entry[3].max(last)];
        }
        all
    }

    fn as_map(table: &Table<2, 6>) -> BTreeMap<[u64; 2], [u64; 4]> {
        table.groups().map(|&[a, b, p, y, f, l]| ([a, b], [p, y, f, l])).collect()
    }

    proptest! {
        #[test]
        fn a_table_equals_a_naive_map(
            groups in proptest::collection::vec((0u64..300, 0u64..4, 0u64..9, 0u64..99, any::<u32>(), any::<u32>()), 0..4000)
        ) {
            let groups: Vec<[u64; 6]> =
                groups.into_iter().map(|(a, b, p, y, f, l)| [a << 40, b, p, y, f.into(), l.into()]).collect();
            let mut table = Table::default();
            table.absorb(&groups, &Merges::default());
            prop_assert_eq!(table.len(), as_map(&table).len());
            prop_assert_eq!(as_map(&table), naive(&groups));
        }
    }

    #[test]
    fn a_table_grows_and_keeps_every_group() {
        let groups: Vec<[u64; 9]> = (0..200_000u64).map(|n| [0, n, n >> 3, 1, 0, 1, n, n, n]).collect();
        let mut table = Table::<5, 9>::default();
        table.absorb(&groups, &Merges::default());
        table.absorb(&groups, &Merges::default());
        assert_eq!(table.len(), groups.len());
        assert!(table.groups().all(|group| group[5] == 2 && group[6] == group[1] * 2));
    }

    #[test]
    fn chunks_that_are_handed_on_have_no_room_to_spare() {
        for groups in [1, 5, 1000, CHUNK_GROUPS, CHUNK_GROUPS + 1] {
            let mut table = Table::<2, 6>::default();
            table.absorb(
                &(0..groups as u64).map(|n| [n, 0, 1, 1, n, n]).collect::<Vec<_>>(),
                &Merges::default(),
            );
            let room: usize = table.into_chunks().map(|chunk| chunk.capacity()).sum();
            assert_eq!(room, groups);
        }
    }

    #[test]
    fn owners_are_spread_evenly_and_do_not_move() {
        let mut share = [0usize; 3];
        for n in 0..30_000u64 {
            share[owner(route(&[n << 32, n % 7]), 3)] += 1;
        }
        assert!(share.iter().all(|count| (9_000..11_000).contains(count)), "{share:?}");
        // A worker that disagreed with its peers about the owner would split a flow: these never change.
        let owners =
            [route(&[1, 2]), route(&[3, 4]), route(&[5, 6, 7, 8, 9])].map(|route| owner(route, 1000));
        assert_eq!(owners, [148, 194, 458]);
    }
}
