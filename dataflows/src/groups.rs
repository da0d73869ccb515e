//! Exact groups: the operators that turn packets into one group a key and window, whole, on the key's owner.
//!
//! Each worker folds what it reads into tables of its own, one an owner of keys. When the epoch closes (or a table grows
//! large) the groups of others go to their owners, and each owner merges what it gets into the table that it has
//! folded itself. So one elephant flow is a single row on the exchange, and no worker's share depends on it. A key set
//! contained in a finer one never sees a packet: it is folded from the finer set's finished groups.

use crate::block::{Block, BlockBuilder, to_named_worker};
use crate::epochs::Epochs;
use crate::key::{Key, Layout, Mask};
use crate::measure::{MOST, Measures, Merges, Weight};
use crate::packet::Packet;
use crate::table::{COUNTS, Table, owner, route};
use crate::turns::Turns;
use crate::window::Epoch;
use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use timely::Accountable;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Concat;
use timely::dataflow::operators::generic::operator::{Operator, empty};

/// Observations of one window, in the order of their stream: what flows into the tasks. Cloning shares them.
///
/// Mostly each is one captured packet. An observation may as well stand for many packets over an interval within the window,
/// such as a flow record of a router: then it has a weight.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    /// The window that holds them; earlier than the batch's own time where they came late, later where they are dated ahead
    /// of all others by mistake.
    pub window: Epoch,
    /// The packets, or of each observation with a weight, what all its packets share.
    pub packets: Arc<Vec<Packet>>,
    /// The extension words of each, so many for keys and then so many for measures, as many as are used; empty where no
    /// task asks for any.
    pub extra: Arc<Vec<u64>>,
    /// How many of them are for keys, and how many for measures.
    pub extra_words: (usize, usize),
    /// What each adds, of the first so many: the others are one packet each.
    pub weights: Arc<Vec<Weight>>,
}

impl Observations {
    /// Captured packets of a window, without extension words.
    pub fn packets(window: Epoch, packets: Vec<Packet>) -> Self {
        Self { window, packets: Arc::new(packets), ..Self::default() }
    }

    /// What the observation of this number adds, which has these fields.
    #[inline(always)]
    pub fn weight(&self, number: usize, packet: &Packet) -> Weight {
        self.weights.get(number).copied().unwrap_or_else(|| Weight::of(packet))
    }

    /// Its extension words, those for keys and those for measures.
    #[inline(always)]
    pub fn extra(&self, number: usize) -> (&[u64], &[u64]) {
        let (keys, measures) = self.extra_words;
        let words = self.extra.get(number * (keys + measures)..).unwrap_or_default();
        match words.split_at_checked(keys) {
            Some((of_keys, rest)) => (of_keys, rest.get(..measures).unwrap_or_default()),
            None => (&[], &[]),
        }
    }

    /// Packets that they stand for.
    pub fn count(&self) -> u64 {
        let more: u64 = self.weights.iter().map(|weight| weight.packets).sum();
        more + self.packets.len().saturating_sub(self.weights.len()) as u64
    }

    /// All with what they add.
    pub fn weighted(&self) -> impl Iterator<Item = (&Packet, Weight)> {
        self.packets.iter().enumerate().map(|(number, packet)| (packet, self.weight(number, packet)))
    }
}

impl Accountable for Observations {
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
    /// The groups of a key set in a window: each a key and the words of its measures, no key twice.
    fn recall(&self, set: &GroupSet, window: Epoch) -> Vec<(Key, Vec<u64>)>;

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

/// A key set, and the measures of its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSet {
    /// What the keys hold.
    pub mask: Mask,
    /// The measures.
    pub measures: Measures,
}

impl GroupSet {
    /// Groups of the default measures.
    pub fn of(mask: Mask) -> Self {
        Self { mask, measures: Measures::default() }
    }

    /// Whether the groups of `coarse` can be made of these.
    fn contains(&self, coarse: &Self) -> bool {
        self.mask.contains(coarse.mask) && self.measures.contain(&coarse.measures)
    }
}

/// Words of a group with compact and with wide keys, where there are no other measures.
const PLAIN: [usize; 2] = [2 + COUNTS, 5 + COUNTS];

/// Visits the groups of a block.
pub fn visit(block: &Block, mut visit: impl FnMut(Key, Counts)) {
    visit_all(block, |key, counts, _| visit(key, counts));
}

/// Visits the groups of a block, with the words behind the first four.
#[inline(always)]
fn visit_all(block: &Block, mut visit: impl FnMut(Key, Counts, &[u64])) {
    debug_assert!(block.sorted.is_none(), "groups have no order");
    match (block.layout, block.width) {
        (Layout::Compact, width) if width == PLAIN[0] => {
            for &[a, b, packets, bytes, first, last] in block.words.as_chunks::<{ PLAIN[0] }>().0 {
                visit(Key::Compact([a, b]), [packets, bytes, first, last], &[]);
            }
        }
        (Layout::Wide, width) if width == PLAIN[1] => {
            for &[a, b, c, d, e, packets, bytes, first, last] in block.words.as_chunks::<{ PLAIN[1] }>().0 {
                visit(Key::Wide([a, b, c, d, e]), [packets, bytes, first, last], &[]);
            }
        }
        (layout, width) => {
            for row in block.words.chunks_exact(width.max(1)) {
                let (key, values) = row.split_at(layout.words());
                if let Some((counts, more)) = values.split_first_chunk() {
                    visit(Key::of_words(layout, key), *counts, more);
                }
            }
        }
    }
}

/// Groups of one window and key set, by layout; those with full keys are all in the first table.
#[derive(Default)]
struct Tables<const KC: usize, const SC: usize, const KW: usize, const SW: usize> {
    compact: Table<KC, SC>,
    wide: Table<KW, SW>,
}

/// Keyed groups on their way into the tables of their owners, a batch of each layout and owner. Empty between folds, so
/// that all folds of a worker share them; made when the first group comes, since workers may be many and idle.
#[derive(Default)]
struct Batches<const SC: usize, const SW: usize> {
    compact: Vec<Batch<SC>>,
    wide: Vec<Batch<SW>>,
}

struct Batch<const S: usize> {
    groups: [[u64; S]; 64],
    len: usize,
}

impl<const S: usize> Batch<S> {
    const EMPTY: Self = Self { groups: [[0; S]; 64], len: 0 };

    #[inline(always)]
    fn push<const K: usize>(&mut self, group: [u64; S], table: &mut Table<K, S>, merges: &Merges) {
        self.groups[self.len] = group;
        self.len += 1;
        if self.len == self.groups.len() {
            table.absorb(&self.groups, merges);
            self.len = 0;
        }
    }

    #[inline(always)]
    fn finish<const K: usize>(&mut self, table: &mut Table<K, S>, merges: &Merges) {
        table.absorb(&self.groups[..self.len], merges);
        self.len = 0;
    }
}

/// A group of a key, counts and further words; words that are missing are 0.
#[inline(always)]
fn group<const K: usize, const S: usize>(key: &[u64; K], counts: Counts, more: &[u64]) -> [u64; S] {
    let mut group = [0; S];
    group[..K].copy_from_slice(key);
    group[K..K + COUNTS].copy_from_slice(&counts);
    if S > K + COUNTS {
        group[K + COUNTS..].iter_mut().zip(more).for_each(|(word, more)| *word = *more);
    }
    group
}

/// As many batches as there are owners.
#[cold]
#[inline(never)]
fn make_batches<const S: usize>(batches: &mut Vec<Batch<S>>, peers: usize) {
    batches.resize_with(peers, || Batch::EMPTY);
}

/// The tables of a key set. Which kind there is depends on how long keys and groups are: see [`with_store`].
trait Store: Default + 'static {
    /// See [`Batches`].
    type Batches: Default + 'static;
    /// Whether keys have no extension words, and groups no further words.
    const HAS_EXTRA: bool;
    const HAS_MORE: bool;

    /// The key of a packet with these extension words.
    fn key(mask: Mask, packet: &Packet, extra: &[u64]) -> Key;
    fn len(&self) -> usize;
    /// Adds groups of this very key set.
    fn absorb(&mut self, block: &Block, merges: &Merges);
    /// All groups as blocks, without a copy.
    fn into_blocks(self, to: usize, window: Epoch) -> impl Iterator<Item = Block>;
    /// Adds a group to the share of its owner.
    fn push(
        batches: &mut Self::Batches,
        key: Key,
        values: (Counts, &[u64]),
        shares: &mut [Self],
        merges: &Merges,
    );
    fn finish(batches: &mut Self::Batches, shares: &mut [Self], merges: &Merges);
}

impl<const KC: usize, const SC: usize, const KW: usize, const SW: usize> Store for Tables<KC, SC, KW, SW> {
    type Batches = Batches<SC, SW>;
    const HAS_EXTRA: bool = KC > 2;
    const HAS_MORE: bool = SC > KC + COUNTS;

    #[inline(always)]
    fn key(mask: Mask, packet: &Packet, extra: &[u64]) -> Key {
        let Packet { source, destination, transport, .. } = *packet;
        match KC {
            2 => mask.key(source, destination, transport),
            3 => mask.key_with_word(source, destination, transport, extra.first().copied().unwrap_or(0)),
            _ => mask.of(packet, extra),
        }
    }

    fn len(&self) -> usize {
        self.compact.len() + self.wide.len()
    }

    fn absorb(&mut self, block: &Block, merges: &Merges) {
        match block.layout {
            Layout::Compact | Layout::CompactExtra | Layout::Full => {
                self.compact.absorb(block.words.as_chunks().0, merges);
            }
            Layout::Wide | Layout::WideExtra => self.wide.absorb(block.words.as_chunks().0, merges),
        }
    }

    fn into_blocks(self, to: usize, window: Epoch) -> impl Iterator<Item = Block> {
        let layouts = match KC {
            2 => (Layout::Compact, Layout::Wide),
            3 => (Layout::CompactExtra, Layout::WideExtra),
            _ => (Layout::Full, Layout::Full),
        };
        let compact = self.compact.into_chunks().map(move |chunk| (layouts.0, SC, chunk.into_flattened()));
        let wide = self.wide.into_chunks().map(move |chunk| (layouts.1, SW, chunk.into_flattened()));
        compact.chain(wide).map(move |(layout, width, words)| Block {
            to,
            window,
            layout,
            width,
            words: words.into(),
            ..Block::default()
        })
    }

    #[inline(always)]
    fn push(
        batches: &mut Self::Batches,
        key: Key,
        (counts, more): (Counts, &[u64]),
        shares: &mut [Self],
        merges: &Merges,
    ) {
        let peers = shares.len();
        let of = |route: u64| if peers == 1 { 0 } else { owner(route, peers) };
        match key {
            Key::Compact(_) | Key::CompactExtra(_) | Key::Full(_) => {
                let key: &[u64; KC] = key.words().first_chunk().expect("keys of a set are of its layouts");
                let owner = of(route(key));
                if owner >= batches.compact.len() {
                    make_batches(&mut batches.compact, peers);
                }
                let group = group(key, counts, more);
                batches.compact[owner].push(group, &mut shares[owner].compact, merges);
            }
            Key::Wide(_) | Key::WideExtra(_) => {
                let key: &[u64; KW] = key.words().first_chunk().expect("keys of a set are of its layouts");
                let owner = of(route(key));
                if owner >= batches.wide.len() {
                    make_batches(&mut batches.wide, peers);
                }
                let group = group(key, counts, more);
                batches.wide[owner].push(group, &mut shares[owner].wide, merges);
            }
        }
    }

    fn finish(batches: &mut Self::Batches, shares: &mut [Self], merges: &Merges) {
        for (tables, batch) in shares.iter_mut().zip(&mut batches.compact) {
            batch.finish(&mut tables.compact, merges);
        }
        for (tables, batch) in shares.iter_mut().zip(&mut batches.wide) {
            batch.finish(&mut tables.wide, merges);
        }
    }
}

/// Calls a generic function for the tables of a key set. A group has room for 0, 4 or 12 words behind the first four, so
/// that a handful of tables serve: those of plain keys and four words are what the shipped tasks run on.
macro_rules! with_store {
    ($set:expr, $($call:ident).+ ( $($argument:expr),* $(,)? )) => {{
        match ($set.mask.extra_words(), $set.measures.more()) {
            (0, 0) => $($call).+::<Tables<2, 6, 5, 9>>($($argument),*),
            (0, 1..=4) => $($call).+::<Tables<2, 10, 5, 13>>($($argument),*),
            (0, _) => $($call).+::<Tables<2, 18, 5, 21>>($($argument),*),
            (1, 0) => $($call).+::<Tables<3, 7, 6, 10>>($($argument),*),
            (1, _) => $($call).+::<Tables<3, 19, 6, 22>>($($argument),*),
            (_, 0) => $($call).+::<Tables<9, 13, 9, 13>>($($argument),*),
            (_, _) => $($call).+::<Tables<9, 25, 9, 25>>($($argument),*),
        }
    }};
}

/// How groups of a key set are folded.
#[derive(Clone, Debug, Default)]
struct Folding {
    set: GroupSet,
    /// Of groups of a finer set, which of their words behind the first four become ours.
    from: Vec<usize>,
}

/// What can be folded into groups: observations, or the groups of a finer key set.
trait Fold {
    /// Groups of another worker before they move to it early: what bounds memory when keys are many.
    const FLUSH_AT: usize;

    fn window(&self) -> Epoch;
    fn fold<T: Store>(&self, folding: &Folding, batches: &mut T::Batches, shares: &mut [T]);
}

impl Fold for Observations {
    /// Large, because most groups are met again: measured in `benches/`.
    const FLUSH_AT: usize = 1 << 20;

    fn window(&self) -> Epoch {
        self.window
    }

    fn fold<T: Store>(&self, Folding { set, .. }: &Folding, batches: &mut T::Batches, shares: &mut [T]) {
        let GroupSet { mask, measures } = set;
        let merges = measures.merges();
        if !T::HAS_EXTRA && !T::HAS_MORE && self.weights.is_empty() {
            for packet in self.packets.iter() {
                let key = mask.key(packet.source, packet.destination, packet.transport);
                T::push(batches, key, (Weight::of(packet).words(), &[]), shares, merges);
            }
        } else {
            let mut more = [0; MOST];
            for (number, packet) in self.packets.iter().enumerate() {
                let (weight, (of_key, of_measures)) = (self.weight(number, packet), self.extra(number));
                if T::HAS_MORE {
                    measures.observe(packet, weight, of_measures, &mut more);
                }
                let key = T::key(*mask, packet, of_key);
                T::push(batches, key, (weight.words(), &more), shares, merges);
            }
        }
        T::finish(batches, shares, merges);
    }
}

impl Fold for Block {
    /// Finished groups come once: where their keys are many, few of them fall together.
    const FLUSH_AT: usize = 1 << 17;

    fn window(&self) -> Epoch {
        self.window
    }

    fn fold<T: Store>(&self, Folding { set, from }: &Folding, batches: &mut T::Batches, shares: &mut [T]) {
        let merges = set.measures.merges();
        let mut more = [0; MOST];
        visit_all(self, |key, counts, finer| {
            if T::HAS_MORE {
                more.iter_mut().zip(from).for_each(|(word, from)| *word = finer[*from]);
            }
            T::push(batches, key.under(set.mask), (counts, &more), shares, merges);
        });
        T::finish(batches, shares, merges);
    }
}

/// What a worker holds of the keys that it owns itself, by epoch and window: shared by the folding operator and the
/// merging one of the same worker, which takes it when both have been told that the epoch is over.
type Own<T> = Rc<RefCell<BTreeMap<(Epoch, Epoch), T>>>;

/// Folds a stream into partial groups: those of others for their owners, this worker's own into `own`.
fn fold<'s, T: Store, C: Fold + Accountable + Clone + Default + 'static>(
    input: Stream<'s, Epoch, C>,
    folding: Folding,
    own: Own<T>,
    batches: Rc<RefCell<T::Batches>>,
) -> Stream<'s, Epoch, Block> {
    let scope = input.scope();
    let (index, peers) = (scope.index(), scope.peers());
    input.unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "Fold", move |_, info| {
        let activator = scope.activator_for(info.address);
        let mut waiting: VecDeque<(Epoch, C)> = VecDeque::new();
        // By window, one share for each owner.
        let mut epochs: Epochs<BTreeMap<Epoch, Vec<T>>> = Epochs::default();
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
                    windows.entry(window).or_insert_with(|| (0..peers).map(|_| T::default()).collect());
                let mut own = own.borrow_mut();
                let held_of_own = own.entry((*held.time(), window)).or_default();
                std::mem::swap(held_of_own, &mut shares[index]);
                batch.fold::<T>(&folding, &mut batches.borrow_mut(), shares);
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

    fn merge_into<T: Store>(&mut self, tables: &mut T, merges: &Merges) {
        self.words = 0;
        self.blocks.drain(..).for_each(|block| tables.absorb(&block, merges));
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
fn merge<'s, T: Store>(
    partials: Stream<'s, Epoch, Block>,
    turns: Stream<'s, Epoch, Block>,
    (own, merges): (Own<T>, Merges),
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
                            let mut own = own.borrow_mut();
                            arrived.merge_into(own.entry((*held.time(), window)).or_default(), &merges);
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
                        arrived.merge_into(&mut tables, &merges);
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
fn recalled<'s, T: Store>(
    turns: Stream<'s, Epoch, Block>,
    set: GroupSet,
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
                    let (mut batches, mut shares) = (T::Batches::default(), Vec::new());
                    shares.resize_with(peers, T::default);
                    let merges = set.measures.merges();
                    for (key, values) in recall.recall(&set, window) {
                        if let Some((counts, more)) = values.split_first_chunk() {
                            T::push(&mut batches, key, (*counts, more), &mut shares, merges);
                        }
                    }
                    T::finish(&mut batches, &mut shares, merges);
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
                let mut words = block.words.to_vec();
                for row in words.chunks_exact_mut(block.width.max(1)) {
                    row[block.layout.words()..][..COUNTS].copy_from_slice(&[1, 0, 0, 0]);
                }
                block.words = words.into();
                output.session_with_builder(&message).give_container(block);
            });
        }
    });
    let folding = Folding { set: GroupSet::of(key), from: Vec::new() };
    let set = folding.set.clone();
    with_store!(set, roll_up(ones, folding, Rc::default()))
}

/// Batches of each kind of tables, for all folds of a worker.
#[derive(Default)]
struct Shared(HashMap<TypeId, Box<dyn Any>>);

impl Shared {
    fn batches<T: Store>(&mut self) -> Rc<RefCell<T::Batches>> {
        let made =
            self.0.entry(TypeId::of::<T>()).or_insert_with(|| Box::<Rc<RefCell<T::Batches>>>::default());
        made.downcast_ref::<Rc<RefCell<T::Batches>>>().cloned().unwrap_or_default()
    }

    fn count<'s, T: Store>(
        &mut self,
        observations: &Stream<'s, Epoch, Observations>,
        turns: &Stream<'s, Epoch, Block>,
        set: &GroupSet,
        closed: &Closed,
    ) -> Stream<'s, Epoch, Block> {
        count::<T>(observations.clone(), turns.clone(), set.clone(), closed, self.batches::<T>())
    }

    fn roll_up<'s, T: Store>(
        &mut self,
        finer: &Stream<'s, Epoch, Block>,
        folding: Folding,
    ) -> Stream<'s, Epoch, Block> {
        roll_up::<T>(finer.clone(), folding, self.batches::<T>())
    }
}

/// Groups made of those of a finer set.
fn roll_up<'s, T: Store>(
    finer: Stream<'s, Epoch, Block>,
    folding: Folding,
    batches: Rc<RefCell<T::Batches>>,
) -> Stream<'s, Epoch, Block> {
    let (scope, own) = (finer.scope(), Own::<T>::default());
    let merges = *folding.set.measures.merges();
    merge(fold(finer, folding, own.clone(), batches), empty(scope), (own, merges), None)
}

/// Groups made of observations.
fn count<'s, T: Store>(
    observations: Stream<'s, Epoch, Observations>,
    turns: Stream<'s, Epoch, Block>,
    set: GroupSet,
    closed: &Closed,
    batches: Rc<RefCell<T::Batches>>,
) -> Stream<'s, Epoch, Block> {
    let (own, merges) = (Own::<T>::default(), *set.measures.merges());
    // Every worker builds the same operators; what recalls nothing sends nothing.
    let earlier = recalled::<T>(turns.clone(), set.clone(), closed.recall.clone());
    let partials = fold(observations, Folding { set, from: Vec::new() }, own.clone(), batches);
    merge(partials.concat(earlier), turns, (own, merges), (closed.archive)())
}

/// A set of groups with the number of the set that it is rolled up from.
pub type Planned = (GroupSet, Option<usize>);

/// Each set with the number of the set that it is rolled up from; finer sets come first and none comes twice.
pub fn plan(sets: impl IntoIterator<Item = GroupSet>) -> Vec<Planned> {
    let mut planned: Vec<Planned> = Vec::new();
    let mut sets: Vec<GroupSet> = sets.into_iter().collect();
    sets.sort_by_key(|set| std::cmp::Reverse((set.mask.bits(), set.measures.more())));
    for set in sets {
        if planned.iter().all(|(earlier, _)| *earlier != set) {
            // The least of the finer sets has the fewest groups to roll up; they are sorted, so it is the last.
            let parent = planned.iter().rposition(|(finer, _)| finer.contains(&set));
            planned.push((set, parent));
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

/// The groups of every planned set, as streams of finished windows on their owners.
pub fn build<'s>(
    observations: &Stream<'s, Epoch, Observations>,
    turns: &Stream<'s, Epoch, Block>,
    plan: &[Planned],
    closed: &Closed,
) -> Vec<(GroupSet, Stream<'s, Epoch, Block>)> {
    let mut built: Vec<(GroupSet, Stream<'s, Epoch, Block>)> = Vec::new();
    // Sets with the same tables share their batches.
    let mut shared = Shared::default();
    for (set, parent) in plan {
        let groups = match parent {
            None => with_store!(set, shared.count(observations, turns, set, closed)),
            Some(parent) => {
                let (finer, groups) = &built[*parent];
                let finer = &finer.measures;
                let word = |name| finer.word_of(name).map(|word| word - COUNTS);
                let from = set.measures.names().filter_map(word).collect();
                let folding = Folding { set: set.clone(), from };
                with_store!(set, shared.roll_up(groups, folding))
            }
        };
        built.push((set.clone(), groups));
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Plan;
    use crate::key::KeyFields;
    use crate::measure::{MEASURES, parse};

    fn mask(names: &[&str]) -> Mask {
        KeyFields::parse(names).expect("fields").mask()
    }

    #[test]
    fn a_worker_without_packets_has_no_batches() {
        // 256 workers once took 1.4 GB for one packet: each had a batch for each of 256 owners and six key sets.
        type Plain = Tables<2, 6, 5, 9>;
        let (mut batches, merges) = (Batches::default(), Merges::default());
        let mut shares: Vec<Plain> = (0..256).map(|_| Tables::default()).collect();
        Plain::finish(&mut batches, &mut shares, &merges);
        assert_eq!((batches.compact.capacity(), batches.wide.capacity()), (0, 0));
        Plain::push(&mut batches, Key::Compact([1, 2]), ([1, 60, 7, 7], &[]), &mut shares, &merges);
        Plain::finish(&mut batches, &mut shares, &merges);
        assert_eq!((batches.compact.len(), batches.wide.capacity()), (256, 0));
        assert_eq!(shares.iter().map(Store::len).sum::<usize>(), 1);
    }

    #[test]
    fn a_contained_set_is_rolled_up_from_the_least_finer_one_that_has_its_measures() {
        let five = mask(&["SrcIP", "DstIP", "SrcPort", "DstPort", "Protocol"]);
        let pair = mask(&["SrcIP", "DstIP"]);
        let source = mask(&["SrcIP"]);
        let vlan = mask(&["VLAN"]);
        let plain = GroupSet::of;
        let planned = plan([source, vlan, five, pair, source].map(plain));
        let expected = [(five, None), (pair, Some(0)), (source, Some(1)), (vlan, None)];
        assert_eq!(planned, expected.map(|(mask, parent)| (plain(mask), parent)));
        let shown =
            parse(&["syn", "packets", "bytes", "first_seen", "last_seen"], &MEASURES).expect("measures");
        let measures = Measures::new(&shown, &Plan::default()).expect("room");
        let with_syn = |mask| GroupSet { mask, measures: measures.clone() };
        let planned = plan([plain(five), with_syn(pair), with_syn(source), plain(source), plain(pair)]);
        let expected = [
            (plain(five), None),
            (with_syn(pair), None),
            (plain(pair), Some(1)),
            (with_syn(source), Some(1)),
            (plain(source), Some(3)),
        ];
        assert_eq!(planned, expected);
    }
}
