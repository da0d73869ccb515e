//! Exact groups: the operators that turn packets into one group a key and window, whole, on the key's owner.
//!
//! Each worker folds what it reads into tables of its own, hands partial groups to their owners when the epoch closes
//! (or a table grows large), and owners merge them. So one elephant flow is a single row on the exchange, and no
//! worker's share depends on it. A key set contained in a finer one never sees a packet: it is folded from the finer
//! set's finished groups.
//!
//! Invariant: the keys of one block of groups are distinct, and those of all blocks that a lone worker folds in an epoch.

use crate::block::{Block, BlockBuilder, to_named_worker};
use crate::epochs::Epochs;
use crate::key::{Key, Mask};
use crate::packet::Packet;
use crate::table::{CHUNK_GROUPS, COMPACT_GROUP, Table, WIDE_GROUP, key_of, owner};
use crate::window::Epoch;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use timely::Accountable;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::{Operator, empty};
use timely::dataflow::{Scope, Stream};

/// Groups in a worker's own tables before they move to their owners early: what bounds memory when keys are many.
/// Large, because most groups are met again: measured in `benches/`.
const FLUSH_AT: usize = 1 << 20;

/// Decoded packets of one window, in the order of their stream. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    /// The window that holds them; earlier than the batch's own time where they came late.
    pub window: Epoch,
    /// The packets.
    pub packets: Arc<Vec<Packet>>,
}

impl Accountable for Packets {
    fn record_count(&self) -> i64 {
        self.packets.len() as i64
    }
}

/// Keeps the groups of closed windows, so that late packets can revise them. One a worker and key set.
pub trait Archive {
    /// Keeps a block of the finished groups of a window.
    fn put(&mut self, block: Block);
    /// Gives back all blocks of a window and forgets them.
    fn take(&mut self, window: Epoch) -> Vec<Block>;
}

/// Groups of one window and key set, by layout.
#[derive(Default)]
struct Tables {
    compact: Table<2, COMPACT_GROUP>,
    wide: Table<5, WIDE_GROUP>,
}

/// Keyed groups on their way into [`Tables`], a batch of each layout.
struct Batches<'t> {
    tables: &'t mut Tables,
    compact: [[u64; COMPACT_GROUP]; 64],
    compact_len: usize,
    wide: [[u64; WIDE_GROUP]; 64],
    wide_len: usize,
}

impl<'t> Batches<'t> {
    fn new(tables: &'t mut Tables) -> Self {
        Self {
            tables,
            compact: [[0; COMPACT_GROUP]; 64],
            compact_len: 0,
            wide: [[0; WIDE_GROUP]; 64],
            wide_len: 0,
        }
    }

    #[inline(always)]
    fn push(&mut self, key: Key, counts: [u64; 4]) {
        match key {
            Key::Compact([a, b]) => {
                let [packets, bytes, first, last] = counts;
                self.compact[self.compact_len] = [a, b, packets, bytes, first, last];
                self.compact_len += 1;
                if self.compact_len == self.compact.len() {
                    self.tables.compact.absorb(&self.compact);
                    self.compact_len = 0;
                }
            }
            Key::Wide([a, b, c, d, e]) => {
                let [packets, bytes, first, last] = counts;
                self.wide[self.wide_len] = [a, b, c, d, e, packets, bytes, first, last];
                self.wide_len += 1;
                if self.wide_len == self.wide.len() {
                    self.tables.wide.absorb(&self.wide);
                    self.wide_len = 0;
                }
            }
        }
    }

    fn finish(self) {
        self.tables.compact.absorb(&self.compact[..self.compact_len]);
        self.tables.wide.absorb(&self.wide[..self.wide_len]);
    }
}

/// What can be folded into groups under a mask: packets, or the groups of a finer key set.
trait Fold {
    fn window(&self) -> Epoch;
    fn fold(&self, mask: Mask, tables: &mut Tables);
}

impl Fold for Packets {
    fn window(&self) -> Epoch {
        self.window
    }

    fn fold(&self, mask: Mask, tables: &mut Tables) {
        let mut batches = Batches::new(tables);
        for packet in self.packets.iter() {
            batches.push(mask.of(packet), [1, packet.length.into(), packet.time, packet.time]);
        }
        batches.finish();
    }
}

impl Fold for Block {
    fn window(&self) -> Epoch {
        self.window
    }

    fn fold(&self, mask: Mask, tables: &mut Tables) {
        let mut batches = Batches::new(tables);
        if self.wide {
            for &[a, b, c, d, e, packets, bytes, first, last] in self.words.as_chunks::<WIDE_GROUP>().0 {
                batches.push(mask.coarsen_wide(&[a, b, c, d, e]), [packets, bytes, first, last]);
            }
        } else {
            for &[a, b, packets, bytes, first, last] in self.words.as_chunks::<COMPACT_GROUP>().0 {
                batches.push(Key::Compact(mask.coarsen_compact(&[a, b])), [packets, bytes, first, last]);
            }
        }
        batches.finish();
    }
}

impl Tables {
    fn len(&self) -> usize {
        self.compact.len() + self.wide.len()
    }

    /// Adds groups of this very key set.
    fn absorb(&mut self, block: &Block) {
        if block.wide {
            self.wide.absorb(block.words.as_chunks().0);
        } else {
            self.compact.absorb(block.words.as_chunks().0);
        }
    }

    /// All groups as blocks for their owners.
    fn into_partials(self, window: Epoch, peers: usize, give: &mut impl FnMut(Block)) {
        if peers == 1 {
            for block in self.into_blocks(window) {
                give(block);
            }
        } else {
            deal(self.compact, false, window, peers, give);
            deal(self.wide, true, window, peers, give);
        }
    }

    /// All groups as blocks, without a copy.
    fn into_blocks(self, window: Epoch) -> impl Iterator<Item = Block> {
        let compact = self.compact.into_chunks().map(|chunk| (false, chunk.into_flattened()));
        let wide = self.wide.into_chunks().map(|chunk| (true, chunk.into_flattened()));
        compact.chain(wide).map(move |(wide, words)| Block {
            window,
            wide,
            merged: true,
            words: Arc::new(words),
            ..Block::default()
        })
    }
}

/// Deals the groups of a table to their owners.
fn deal<const K: usize, const S: usize>(
    table: Table<K, S>,
    wide: bool,
    window: Epoch,
    peers: usize,
    give: &mut impl FnMut(Block),
) {
    let mut open: Vec<Vec<u64>> = vec![Vec::new(); peers];
    let block = |to, words| Block { to, window, wide, words: Arc::new(words), ..Block::default() };
    // What is not filled is not reserved either: windows may be many and small.
    let reserve = if table.len() >= peers * CHUNK_GROUPS { CHUNK_GROUPS * S } else { 0 };
    for group in table.into_chunks().flatten() {
        let to = owner(key_of::<K, S>(&group), peers);
        let words = &mut open[to];
        if words.capacity() == 0 {
            words.reserve_exact(reserve);
        }
        words.extend_from_slice(&group);
        if words.len() == CHUNK_GROUPS * S {
            give(block(to, std::mem::take(words)));
        }
    }
    for (to, mut words) in open.into_iter().enumerate().filter(|(_, words)| !words.is_empty()) {
        words.shrink_to_fit();
        give(block(to, words));
    }
}

/// Folds a stream into this worker's partial groups, bound for their owners.
fn fold<'s, C: Fold + Accountable + Clone + Default + 'static>(
    input: Stream<'s, Epoch, C>,
    mask: Mask,
) -> Stream<'s, Epoch, Block> {
    let peers = input.scope().peers();
    input.unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "Fold", move |_, _| {
        let mut epochs: Epochs<BTreeMap<Epoch, Tables>> = Epochs::default();
        move |(input, frontier), output| {
            let port = output.output_index();
            input.for_each(|message, batch| {
                let Some((held, windows)) = epochs.at(&message, port) else { return };
                let window = batch.window();
                let tables = windows.entry(window).or_default();
                std::mem::take(batch).fold(mask, tables);
                if peers > 1 && tables.len() >= FLUSH_AT {
                    let mut session = output.session_with_builder(&*held);
                    let full = std::mem::take(tables);
                    full.into_partials(window, peers, &mut |mut block| session.give_container(&mut block));
                }
            });
            while let Some((held, windows)) = epochs.close(&[frontier]) {
                let mut session = output.session_with_builder(&held);
                for (window, tables) in windows {
                    tables.into_partials(window, peers, &mut |mut block| session.give_container(&mut block));
                }
            }
        }
    })
}

/// Groups of one window at their owner: as they came while they are merged already, else in tables.
#[derive(Default)]
struct Merged {
    blocks: Vec<Block>,
    tables: Tables,
}

impl Merged {
    fn absorb(&mut self, block: Block) {
        if block.merged && self.tables.len() == 0 {
            return self.blocks.push(block);
        }
        self.merge();
        self.tables.absorb(&block);
    }

    /// Merges whatever came, so that more can be merged with it.
    fn merge(&mut self) {
        self.blocks.drain(..).for_each(|block| self.tables.absorb(&block));
    }

    fn into_blocks(self, window: Epoch) -> impl Iterator<Item = Block> {
        self.blocks.into_iter().chain(self.tables.into_blocks(window))
    }
}

/// One epoch at an owner: groups by window, and the closed windows that packets came late for, on any worker.
#[derive(Default)]
struct Closing {
    windows: BTreeMap<Epoch, Merged>,
    late: BTreeSet<Epoch>,
}

/// Merges partial groups at their owners and emits each window's groups, whole, when its epoch closes.
///
/// `late` names, on every worker, the closed windows that an epoch's packets came late for; with an archive such a
/// window is emitted again with all it holds. Without one (groups rolled up from groups) whatever arrives is whole.
fn merge<'s>(
    partials: Stream<'s, Epoch, Block>,
    late: Stream<'s, Epoch, Block>,
    mut archive: Option<Box<dyn Archive>>,
) -> Stream<'s, Epoch, Block> {
    let (contract, late_contract) = (to_named_worker(), to_named_worker());
    partials.binary_frontier::<_, BlockBuilder, _, _, _, _>(
        late,
        contract,
        late_contract,
        "Merge",
        move |_, _| {
            let mut epochs: Epochs<Closing> = Epochs::default();
            move |(partials, partials_frontier), (late, late_frontier), output| {
                let port = output.output_index();
                partials.for_each(|message, block| {
                    if let Some((_, closing)) = epochs.at(&message, port) {
                        closing.windows.entry(block.window).or_default().absorb(std::mem::take(block));
                    }
                });
                late.for_each(|message, block| {
                    if let Some((_, closing)) = epochs.at(&message, port) {
                        closing.late.insert(block.window);
                    }
                });
                while let Some((held, mut closing)) = epochs.close(&[partials_frontier, late_frontier]) {
                    let mut session = output.session_with_builder(&held);
                    for window in closing.late {
                        let merged = closing.windows.entry(window).or_default();
                        let earlier =
                            archive.as_mut().map(|archive| archive.take(window)).unwrap_or_default();
                        if !earlier.is_empty() {
                            merged.merge();
                            earlier.iter().for_each(|block| merged.tables.absorb(block));
                        }
                    }
                    for (window, merged) in closing.windows {
                        for mut block in merged.into_blocks(window) {
                            if let Some(archive) = &mut archive {
                                archive.put(block.clone());
                            }
                            session.give_container(&mut block);
                        }
                    }
                }
            }
        },
    )
}

/// Each key set with the number of the key set it is rolled up from; finer sets come first and none comes twice.
pub fn plan(masks: impl IntoIterator<Item = Mask>) -> Vec<(Mask, Option<usize>)> {
    let mut planned: Vec<(Mask, Option<usize>)> = Vec::new();
    let mut masks: Vec<Mask> = masks.into_iter().collect();
    masks.sort_by_key(|mask| std::cmp::Reverse(mask.bits()));
    for mask in masks {
        if planned.iter().all(|(earlier, _)| *earlier != mask) {
            // The least of the finer sets has the fewest groups to roll up; they are sorted, so it is the last.
            let parent = planned.iter().rposition(|(finer, _)| finer.contains(mask));
            planned.push((mask, parent));
        }
    }
    planned
}

/// The groups of every planned key set, as streams of finished windows on their owners.
pub fn build<'s>(
    scope: Scope<'s, Epoch>,
    packets: &Stream<'s, Epoch, Packets>,
    late: &Stream<'s, Epoch, Block>,
    plan: &[(Mask, Option<usize>)],
    mut archive: impl FnMut() -> Option<Box<dyn Archive>>,
) -> Vec<(Mask, Stream<'s, Epoch, Block>)> {
    let mut built: Vec<(Mask, Stream<'s, Epoch, Block>)> = Vec::new();
    for &(mask, parent) in plan {
        let groups = match parent {
            None => merge(fold(packets.clone(), mask), late.clone(), archive()),
            Some(parent) => merge(fold(built[parent].1.clone(), mask), empty(scope), None),
        };
        built.push((mask, groups));
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyFields;

    fn mask(names: &[&str]) -> Mask {
        KeyFields::parse(names).expect("fields").mask()
    }

    #[test]
    fn a_contained_key_set_is_rolled_up_from_the_least_finer_one() {
        let five = mask(&["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]);
        let pair = mask(&["SrcIP", "DstIP"]);
        let source = mask(&["SrcIP"]);
        let vlan = mask(&["VLAN"]);
        let planned = plan([source, vlan, five, pair, source]);
        assert_eq!(planned, [(five, None), (pair, Some(0)), (source, Some(1)), (vlan, None)]);
    }
}
