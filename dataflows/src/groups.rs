//! Exact groups: the operators that turn packets into one group a key and window, whole, on the key's owner.
//!
//! Each worker folds what it reads into tables of its own, one an owner of keys. When the epoch closes (or a table grows
//! large) the groups of others go to their owners, and each owner merges what it gets into the table that it has
//! folded itself. So one elephant flow is a single row on the exchange, and no worker's share depends on it. A key set
//! contained in a finer one never sees a packet: it is folded from the finer set's finished groups.

use crate::block::{Block, BlockBuilder, to_named_worker};
use crate::epochs::Epochs;
use crate::key::{Key, Mask};
use crate::packet::Packet;
use crate::table::{COMPACT_GROUP, Table, WIDE_GROUP, owner, route};
use crate::turns::Turns;
use crate::window::Epoch;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use timely::Accountable;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::operator::{Operator, empty};
use timely::dataflow::{Scope, Stream};

/// Decoded packets of one window, in the order of their stream. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Packets {
    /// The window that holds them; earlier than the batch's own time where they came late, later where they are dated ahead
    /// of all others by mistake.
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
    /// Forgets a window.
    fn forget(&mut self, window: Epoch);
}

/// Brings back the exact groups of windows that an earlier run has closed, or this one long ago, from what was written.
pub trait Recall {
    /// The groups of a key set in a window: each a key, packets, bytes, first and last time, no key twice.
    fn recall(&self, mask: Mask, window: Epoch) -> Vec<(Key, [u64; 4])>;

    /// Whether there is a snapshot of this window.
    fn holds(&self, window: Epoch) -> bool;

    /// What the task of this number kept of a window, in [`crate::aggregator::Flow::keep`]; `None` where there is nothing.
    fn kept(&self, task: usize, window: Epoch) -> Option<Vec<u64>>;

    /// The first window that no earlier run has closed.
    fn first_new(&self) -> Epoch;

    /// Windows from that one on that an earlier run has written all the same: packets were dated ahead by mistake.
    fn ahead(&self) -> BTreeSet<Epoch> {
        BTreeSet::new()
    }

    /// Whether an earlier run may have written this window.
    fn may_hold(&self, window: Epoch) -> bool {
        window < self.first_new() || self.ahead().contains(&window)
    }
}

/// Packets, bytes, first and last time of a group.
pub type Counts = [u64; 4];

/// Visits the groups of a block.
pub fn visit(block: &Block, mut visit: impl FnMut(Key, Counts)) {
    debug_assert!(block.sorted.is_none(), "groups have no order");
    if block.wide {
        for &[a, b, c, d, e, packets, bytes, first, last] in block.words.as_chunks::<WIDE_GROUP>().0 {
            visit(Key::Wide([a, b, c, d, e]), [packets, bytes, first, last]);
        }
    } else {
        for &[a, b, packets, bytes, first, last] in block.words.as_chunks::<COMPACT_GROUP>().0 {
            visit(Key::Compact([a, b]), [packets, bytes, first, last]);
        }
    }
}

/// Groups of one window and key set, by layout.
#[derive(Default)]
struct Tables {
    compact: Table<2, COMPACT_GROUP>,
    wide: Table<5, WIDE_GROUP>,
}

/// Keyed groups on their way into the tables of their owners, a batch of each layout and owner. Empty between folds, so
/// that all folds of a worker share them; made when the first group comes, since workers may be many and idle.
#[derive(Default)]
struct Batches {
    compact: Vec<Batch<COMPACT_GROUP>>,
    wide: Vec<Batch<WIDE_GROUP>>,
}

struct Batch<const S: usize> {
    groups: [[u64; S]; 64],
    len: usize,
}

impl<const S: usize> Batch<S> {
    const EMPTY: Self = Self { groups: [[0; S]; 64], len: 0 };

    #[inline(always)]
    fn push<const K: usize>(&mut self, group: [u64; S], table: &mut Table<K, S>) {
        self.groups[self.len] = group;
        self.len += 1;
        if self.len == self.groups.len() {
            table.absorb(&self.groups);
            self.len = 0;
        }
    }
}

impl Batches {
    /// As many batches as there are owners.
    #[cold]
    #[inline(never)]
    fn make<const S: usize>(batches: &mut Vec<Batch<S>>, peers: usize) {
        batches.resize_with(peers, || Batch::EMPTY);
    }

    #[inline(always)]
    fn push(&mut self, key: Key, [packets, bytes, first, last]: [u64; 4], shares: &mut [Tables]) {
        let peers = shares.len();
        match key {
            Key::Compact(key @ [a, b]) => {
                let owner = if peers == 1 { 0 } else { owner(route(&key), peers) };
                let group = [a, b, packets, bytes, first, last];
                if owner >= self.compact.len() {
                    Self::make(&mut self.compact, peers);
                }
                self.compact[owner].push(group, &mut shares[owner].compact);
            }
            Key::Wide(key @ [a, b, c, d, e]) => {
                let owner = if peers == 1 { 0 } else { owner(route(&key), peers) };
                let group = [a, b, c, d, e, packets, bytes, first, last];
                if owner >= self.wide.len() {
                    Self::make(&mut self.wide, peers);
                }
                self.wide[owner].push(group, &mut shares[owner].wide);
            }
        }
    }

    fn finish(&mut self, shares: &mut [Tables]) {
        for (tables, batch) in shares.iter_mut().zip(&mut self.compact) {
            tables.compact.absorb(&batch.groups[..batch.len]);
            batch.len = 0;
        }
        for (tables, batch) in shares.iter_mut().zip(&mut self.wide) {
            tables.wide.absorb(&batch.groups[..batch.len]);
            batch.len = 0;
        }
    }
}

/// What can be folded into groups under a mask: packets, or the groups of a finer key set.
trait Fold {
    /// Groups of another worker before they move to it early: what bounds memory when keys are many.
    const FLUSH_AT: usize;

    fn window(&self) -> Epoch;
    fn fold(&self, mask: Mask, batches: &mut Batches, shares: &mut [Tables]);
}

impl Fold for Packets {
    /// Large, because most groups are met again: measured in `benches/`.
    const FLUSH_AT: usize = 1 << 20;

    fn window(&self) -> Epoch {
        self.window
    }

    fn fold(&self, mask: Mask, batches: &mut Batches, shares: &mut [Tables]) {
        for packet in self.packets.iter() {
            batches.push(mask.of(packet), [1, packet.length.into(), packet.time, packet.time], shares);
        }
        batches.finish(shares);
    }
}

impl Fold for Block {
    /// Finished groups come once: where their keys are many, few of them fall together.
    const FLUSH_AT: usize = 1 << 17;

    fn window(&self) -> Epoch {
        self.window
    }

    fn fold(&self, mask: Mask, batches: &mut Batches, shares: &mut [Tables]) {
        visit(self, |key, values| batches.push(key.under(mask), values, shares));
        batches.finish(shares);
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

    /// All groups as blocks, without a copy.
    fn into_blocks(self, to: usize, window: Epoch) -> impl Iterator<Item = Block> {
        let compact = self.compact.into_chunks().map(|chunk| (false, chunk.into_flattened()));
        let wide = self.wide.into_chunks().map(|chunk| (true, chunk.into_flattened()));
        compact.chain(wide).map(move |(wide, words)| Block {
            to,
            window,
            wide,
            words: words.into(),
            ..Block::default()
        })
    }
}

/// What a worker holds of the keys that it owns itself, by epoch and window: shared by the folding operator and the
/// merging one of the same worker, which takes it when both have been told that the epoch is over.
type Own = Rc<RefCell<BTreeMap<(Epoch, Epoch), Tables>>>;

/// Folds a stream into partial groups: those of others for their owners, this worker's own into `own`.
fn fold<'s, C: Fold + Accountable + Clone + Default + 'static>(
    input: Stream<'s, Epoch, C>,
    mask: Mask,
    own: Own,
    batches: Rc<RefCell<Batches>>,
) -> Stream<'s, Epoch, Block> {
    let scope = input.scope();
    let (index, peers) = (scope.index(), scope.peers());
    input.unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "Fold", move |_, info| {
        let activator = scope.activator_for(info.address);
        let mut waiting: VecDeque<(Epoch, C)> = VecDeque::new();
        // By window, one share for each owner.
        let mut epochs: Epochs<BTreeMap<Epoch, Vec<Tables>>> = Epochs::default();
        move |(input, frontier), output| {
            let port = output.output_index();
            input.for_each(|message, batch| {
                if let Some((held, _)) = epochs.at(&message, port) {
                    waiting.push_back((*held.time(), std::mem::take(batch)));
                }
            });
            while let Some((epoch, batch)) = waiting.pop_front() {
                let Some((held, windows)) = epochs.open(epoch) else { continue };
                let window = batch.window();
                let shares =
                    windows.entry(window).or_insert_with(|| (0..peers).map(|_| Tables::default()).collect());
                let mut own = own.borrow_mut();
                let held_of_own = own.entry((*held.time(), window)).or_default();
                std::mem::swap(held_of_own, &mut shares[index]);
                batch.fold(mask, &mut batches.borrow_mut(), shares);
                std::mem::swap(held_of_own, &mut shares[index]);
                let mut has_sent = false;
                for (to, tables) in shares.iter_mut().enumerate().filter(|(to, _)| *to != index) {
                    if tables.len() >= C::FLUSH_AT {
                        let mut session = output.session_with_builder(&*held);
                        let full = std::mem::take(tables).into_blocks(to, window);
                        full.for_each(|mut block| session.give_container(&mut block));
                        has_sent = true;
                    }
                }
                if has_sent {
                    // What all workers send each other is merged before more of it comes.
                    activator.activate();
                    return;
                }
            }
            while let Some((held, windows)) = epochs.close(&[frontier]) {
                let mut session = output.session_with_builder(&held);
                for (window, shares) in windows {
                    for (to, tables) in shares.into_iter().enumerate() {
                        if to == index {
                            // Tells the merging operator to look, and gives it the right to emit.
                            session.give_container(&mut Block { to, window, ..Block::default() });
                        } else {
                            tables
                                .into_blocks(to, window)
                                .for_each(|mut block| session.give_container(&mut block));
                        }
                    }
                }
            }
        }
    })
}

/// Words that may have come of a window before they are merged: so that most of them are in one go.
const MOST_ARRIVED: usize = 1 << 20;

/// What has come of one window from other workers and is not merged yet.
#[derive(Default)]
struct Arrived {
    blocks: Vec<Block>,
    words: usize,
}

impl Arrived {
    fn push(&mut self, block: Block) {
        self.words += block.words.len();
        self.blocks.push(block);
    }

    /// Whether it takes more memory than it should.
    fn is_much(&self) -> bool {
        self.words > MOST_ARRIVED
    }

    fn merge_into(&mut self, tables: &mut Tables) {
        self.words = 0;
        self.blocks.drain(..).for_each(|block| tables.absorb(&block));
    }
}

/// One epoch at an owner: groups by window, and the windows that are needed.
#[derive(Default)]
struct Closing {
    windows: BTreeMap<Epoch, Arrived>,
    turns: Turns,
}

/// Merges partial groups at their owners and emits each needed window's groups, whole, when its epoch closes.
///
/// `turns` names, on every worker, the windows that are needed; with an archive such a window is emitted again with all
/// it holds. Without one (groups rolled up from groups) whatever arrives is whole.
fn merge<'s>(
    partials: Stream<'s, Epoch, Block>,
    turns: Stream<'s, Epoch, Block>,
    own: Own,
    mut archive: Option<Box<dyn Archive>>,
) -> Stream<'s, Epoch, Block> {
    partials.binary_frontier::<_, BlockBuilder, _, _, _, _>(
        turns,
        to_named_worker(),
        Pipeline,
        "Merge",
        move |_, _| {
            let mut epochs: Epochs<Closing> = Epochs::default();
            move |(partials, partials_frontier), (turns, turns_frontier), output| {
                let port = output.output_index();
                partials.for_each(|message, block| {
                    if let Some((held, closing)) = epochs.at(&message, port) {
                        let window = block.window;
                        let arrived = closing.windows.entry(window).or_default();
                        arrived.push(std::mem::take(block));
                        if arrived.is_much() {
                            arrived.merge_into(own.borrow_mut().entry((*held.time(), window)).or_default());
                        }
                    }
                });
                turns.for_each(|message, block| {
                    if let Some((_, closing)) = epochs.at(&message, port) {
                        closing.turns.receive(block);
                    }
                });
                while let Some((held, mut closing)) = epochs.close(&[partials_frontier, turns_frontier]) {
                    let mut session = output.session_with_builder(&held);
                    for window in closing.turns.needed.into_keys() {
                        let earlier =
                            archive.as_mut().map(|archive| archive.take(window)).unwrap_or_default();
                        let arrived = closing.windows.entry(window).or_default();
                        earlier.into_iter().for_each(|block| arrived.push(block));
                    }
                    for (window, mut arrived) in closing.windows {
                        let mut tables = own.borrow_mut().remove(&(*held.time(), window)).unwrap_or_default();
                        arrived.merge_into(&mut tables);
                        for mut block in tables.into_blocks(0, window) {
                            if let Some(archive) = &mut archive {
                                archive.put(block.clone());
                            }
                            session.give_container(&mut block);
                        }
                    }
                    if let Some(archive) = &mut archive {
                        closing.turns.forgotten.into_iter().for_each(|window| archive.forget(window));
                    }
                }
            }
        },
    )
}

/// On one worker: the groups that were written of a window that the archive does not have, for their owners, in the epoch
/// that needs them. From then on the archive has them again.
fn recalled<'s>(
    turns: Stream<'s, Epoch, Block>,
    mask: Mask,
    recall: Option<Rc<dyn Recall>>,
) -> Stream<'s, Epoch, Block> {
    let peers = turns.scope().peers();
    turns.unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "Recall", move |_, _| {
        let mut epochs: Epochs<Turns> = Epochs::default();
        move |(input, frontier), output| {
            let port = output.output_index();
            input.for_each(|message, block| {
                if let Some((_, turns)) = epochs.at(&message, port) {
                    turns.receive(block);
                }
            });
            while let Some((held, turns)) = epochs.close(&[frontier]) {
                let Some(recall) = &recall else { continue };
                let mut session = output.session_with_builder(&held);
                for window in turns.recalled {
                    let (mut batches, mut shares) = (Batches::default(), Vec::new());
                    shares.resize_with(peers, Tables::default);
                    for (key, values) in recall.recall(mask, window) {
                        batches.push(key, values, &mut shares);
                    }
                    batches.finish(&mut shares);
                    for (to, tables) in shares.into_iter().enumerate() {
                        tables
                            .into_blocks(to, window)
                            .for_each(|mut block| session.give_container(&mut block));
                    }
                }
            }
        }
    })
}

/// How many groups of a finer key set each key has in a window: in place of packets, on the key's owner.
pub(crate) fn elements<'s>(groups: Stream<'s, Epoch, Block>, key: Mask) -> Stream<'s, Epoch, Block> {
    let ones = groups.unary::<BlockBuilder, _, _, _>(Pipeline, "Ones", move |_, _| {
        move |input, output| {
            input.for_each(|message, block| {
                let width = if block.wide { WIDE_GROUP } else { COMPACT_GROUP };
                let mut words = block.words.to_vec();
                for row in words.chunks_exact_mut(width) {
                    row[width - 4..].copy_from_slice(&[1, 0, 0, 0]);
                }
                block.words = words.into();
                output.session_with_builder(&message).give_container(block);
            });
        }
    });
    let (scope, own) = (ones.scope(), Own::default());
    merge(fold(ones, key, own.clone(), Rc::default()), empty(scope), own, None)
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

/// What is left of closed windows, so that late packets can revise them.
#[derive(Clone)]
pub struct Closed {
    /// Makes a place for what has to outlive its window; `None` where nothing can come late.
    pub archive: Rc<dyn Fn() -> Option<Box<dyn Archive>>>,
    /// What earlier runs have written: on the committing worker.
    pub recall: Option<Rc<dyn Recall>>,
    /// Whether commits are recorded, so that a later run may go on.
    pub keeps: bool,
}

/// The groups of every planned key set, as streams of finished windows on their owners.
pub fn build<'s>(
    scope: Scope<'s, Epoch>,
    packets: &Stream<'s, Epoch, Packets>,
    turns: &Stream<'s, Epoch, Block>,
    plan: &[(Mask, Option<usize>)],
    closed: &Closed,
) -> Vec<(Mask, Stream<'s, Epoch, Block>)> {
    let mut built: Vec<(Mask, Stream<'s, Epoch, Block>)> = Vec::new();
    let batches: Rc<RefCell<Batches>> = Rc::default();
    for &(mask, parent) in plan {
        let own = Own::default();
        let groups = match parent {
            None => {
                let partials = fold(packets.clone(), mask, own.clone(), batches.clone());
                // Every worker builds the same operators; what recalls nothing sends nothing.
                let earlier = recalled(turns.clone(), mask, closed.recall.clone());
                merge(partials.concat(earlier), turns.clone(), own, (closed.archive)())
            }
            Some(parent) => {
                let partials = fold(built[parent].1.clone(), mask, own.clone(), batches.clone());
                merge(partials, empty(scope), own, None)
            }
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
    fn a_worker_without_packets_has_no_batches() {
        // 256 workers once took 1.4 GB for one packet: each had a batch for each of 256 owners and six key sets.
        let mut batches = Batches::default();
        let mut shares: Vec<Tables> = (0..256).map(|_| Tables::default()).collect();
        batches.finish(&mut shares);
        assert_eq!((batches.compact.capacity(), batches.wide.capacity()), (0, 0));
        batches.push(Key::Compact([1, 2]), [1, 60, 7, 7], &mut shares);
        batches.finish(&mut shares);
        assert_eq!((batches.compact.len(), batches.wide.capacity()), (256, 0));
        assert_eq!(shares.iter().map(Tables::len).sum::<usize>(), 1);
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
