//! Tasks by sketch: every worker sketches the packets that it reads (or the exact groups that other tasks have of them),
//! the committing one merges the sketches of a window.
//!
//! Memory is that of the sketches whatever the traffic is: one a worker and open window, a few that wait to be used again,
//! and the merged ones of closed windows, which the archive keeps so that late packets can be added. Time is that of the
//! packets: a window clears the cells that it has used and no others, and maps no new memory.

use crate::aggregator::{Flow, Options, OptionsError};
use crate::block::{self, Block, BlockBuilder};
use crate::epochs::{ByWindow, Epochs};
use crate::groups::{Archive, Counts, visit};
use crate::key::{Key, KeyFields, Layout, Mask};
use crate::measure::Weight;
use crate::packet::Packet;
use crate::rows::{COMMITTER, Schema, ValueColumn, ValueKind};
use crate::sketch::{Estimate, Found, Shape};
use crate::standing::{Rows, each_window, first};
use crate::window::Epoch;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;

/// What a task of this kind keeps of a window's packets, whatever their order, on however many workers.
pub(crate) trait Sketch: 'static {
    /// Fetches what taking this packet will touch.
    fn prefetch(&self, packet: &Packet);

    /// Takes a packet, or what all packets of an observation share, with what it adds.
    fn update(&mut self, packet: &Packet, weight: Weight);

    /// Takes what another sketch of the same options has seen, as its words. The error is of words that are something
    /// else.
    fn merge(&mut self, words: &[u64]) -> Result<(), &'static str>;

    /// Forgets everything: then it is as a new one. Costs what was in it.
    fn clear(&mut self);

    /// All of it in words, the same for the same packets.
    fn words(&self) -> Vec<u64>;

    /// The rows of the keys that it can name.
    fn rows(&self, rows: &mut Rows);
}

/// Empty sketches that wait to be used again, of one operator at most.
const MAX_SPARE: usize = 2;

/// Sketches of one operator. A new one costs all of its memory, one that is used again what was in it.
struct Pool<S> {
    new: Box<dyn Fn() -> S>,
    spare: Rc<RefCell<Vec<S>>>,
}

impl<S: Sketch> Pool<S> {
    fn new(new: impl Fn() -> S + 'static) -> Self {
        Self { new: Box::new(new), spare: Rc::default() }
    }

    /// An empty sketch; it comes back when it is dropped.
    fn take(&self) -> Pooled<S> {
        let sketch = self.spare.borrow_mut().pop().unwrap_or_else(&self.new);
        Pooled { sketch: Some(sketch), spare: self.spare.clone() }
    }
}

/// A sketch of a [`Pool`].
pub(crate) struct Pooled<S: Sketch> {
    /// There until it is dropped.
    sketch: Option<S>,
    spare: Rc<RefCell<Vec<S>>>,
}

impl<S: Sketch> Deref for Pooled<S> {
    type Target = S;

    #[inline(always)]
    fn deref(&self) -> &S {
        self.sketch.as_ref().expect("it is there until it is dropped")
    }
}

impl<S: Sketch> DerefMut for Pooled<S> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut S {
        self.sketch.as_mut().expect("it is there until it is dropped")
    }
}

impl<S: Sketch> Drop for Pooled<S> {
    fn drop(&mut self) {
        let mut spare = self.spare.borrow_mut();
        if let Some(mut sketch) = self.sketch.take().filter(|_| spare.len() < MAX_SPARE) {
            sketch.clear();
            spare.push(sketch);
        }
    }
}

/// Packets whose cells are fetched before the first of them is taken.
const AHEAD: usize = 16;

/// Where a sketch may be made from exact groups, and how a group is taken.
pub(crate) type FromGroups<'s, S> = Option<(Stream<'s, Epoch, Block>, fn(&mut S, Key, Counts))>;

/// The rows of sketches that `new` makes: the first `k` of each window.
///
/// Where other tasks have the groups, there is less to take than packets, and a window comes whole each time; else what
/// is merged of a window is kept, so that late packets can be added.
pub(crate) fn sketched<'s, S: Sketch>(
    flow: &Flow<'s>,
    (schema, k): (Arc<Schema>, usize),
    from_groups: FromGroups<'s, S>,
    new: impl Fn() -> S + Clone + 'static,
) -> Stream<'s, Epoch, Block> {
    let merged = match from_groups {
        Some((groups, take)) => {
            let pool = Pool::new(new.clone());
            let sketches = each_window(groups, move |window, blocks, give| {
                let mut sketch = pool.take();
                blocks.iter().for_each(|block| visit(block, |key, counts| take(&mut sketch, key, counts)));
                give(to_block(window, &*sketch));
            });
            merge(flow, sketches, None, None::<fn(Epoch, bool) -> Option<Vec<u64>>>, new)
        }
        None => {
            let merged = merge(flow, sketch(flow, new.clone()), flow.archive(), flow.kept_before(), new);
            if flow.keeps() {
                flow.keep(each_merged(&merged, |window, sketch, give| give(to_block(window, sketch))));
            }
            merged
        }
    };
    let rows = each_merged(&merged, |window, sketch, give| {
        let mut rows = Rows::default();
        sketch.rows(&mut rows);
        rows.into_blocks(COMMITTER, window).for_each(give);
    });
    first(rows, schema, k)
}

/// The merged sketch of each window, on the committing worker.
type Merged<'s, S> = Stream<'s, Epoch, Vec<(Epoch, Rc<Pooled<S>>)>>;

/// Blocks of merged sketches.
fn each_merged<'s, S: Sketch>(
    merged: &Merged<'s, S>,
    make: impl Fn(Epoch, &S, &mut dyn FnMut(Block)) + 'static,
) -> Stream<'s, Epoch, Block> {
    merged.clone().unary::<BlockBuilder, _, _, _>(Pipeline, "EachMerged", move |_, _| {
        move |input, output| {
            input.for_each(|message, merged| {
                let mut session = output.session_with_builder(&message);
                for (window, sketch) in merged.drain(..) {
                    make(window, &sketch, &mut |mut block| session.give_container(&mut block));
                }
            });
        }
    })
}

/// A sketch on its way to the committing worker.
fn to_block(window: Epoch, sketch: &impl Sketch) -> Block {
    Block { to: COMMITTER, window, words: sketch.words().into(), ..Block::default() }
}

/// The sketches of the packets that this worker reads, for the committing worker.
fn sketch<'s, S: Sketch>(flow: &Flow<'s>, new: impl Fn() -> S + 'static) -> Stream<'s, Epoch, Block> {
    flow.observations().unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "Sketch", move |_, _| {
        let pool = Pool::new(new);
        let mut epochs: Epochs<BTreeMap<Epoch, Pooled<S>>> = Epochs::default();
        move |(input, frontier), output| {
            let port = output.output_index();
            input.for_each(|message, batch| {
                let Some((_, windows)) = epochs.at(&message, port) else { return };
                let sketch = &mut **windows.entry(batch.window).or_insert_with(|| pool.take());
                for (chunk, packets) in batch.packets.chunks(AHEAD).enumerate() {
                    packets.iter().for_each(|packet| sketch.prefetch(packet));
                    for (number, packet) in (chunk * AHEAD..).zip(packets) {
                        sketch.update(packet, batch.weight(number, packet));
                    }
                }
            });
            while let Some((held, windows)) = epochs.close(&[frontier]) {
                let mut session = output.session_with_builder(&held);
                windows
                    .iter()
                    .for_each(|(window, sketch)| session.give_container(&mut to_block(*window, &**sketch)));
            }
        }
    })
}

/// The merged sketch of each window that is shown, on the committing worker.
fn merge<'s, S: Sketch>(
    flow: &Flow<'s>,
    sketches: Stream<'s, Epoch, Block>,
    mut archive: Option<Box<dyn Archive>>,
    kept_before: Option<impl Fn(Epoch, bool) -> Option<Vec<u64>> + 'static>,
    new: impl Fn() -> S + 'static,
) -> Merged<'s, S> {
    let is_committer = flow.scope().index() == COMMITTER;
    let (sketches, turns) = (block::exchange(sketches), flow.turns());
    sketches.binary_frontier::<_, CapacityContainerBuilder<Vec<(Epoch, Rc<Pooled<S>>)>>, _, _, _, _>(
        turns,
        Pipeline,
        Pipeline,
        "Merge",
        move |_, _| {
            let pool = Pool::new(new);
            let mut epochs: Epochs<ByWindow> = Epochs::default();
            // No window behind this one was ever forgotten.
            let mut last_forgotten: Option<Epoch> = None;
            move |(sketches, sketches_frontier), (turns, turns_frontier), output| {
                let port = output.output_index();
                sketches.for_each(|message, block| epochs.gather(&message, port, block));
                turns.for_each(|message, block| epochs.receive(&message, port, block));
                while let Some((held, ByWindow { mut windows, turns })) =
                    epochs.close(&[sketches_frontier, turns_frontier])
                {
                    let mut session = output.session_with_builder(&held);
                    for window in turns.shown().filter(|_| is_committer) {
                        let mut sketch = pool.take();
                        let mut add =
                            |words: &[u64]| sketch.merge(words).expect("a task has one kind of sketch");
                        let earlier =
                            archive.as_mut().map(|archive| archive.take(window)).unwrap_or_default();
                        let is_forgotten = last_forgotten >= Some(window);
                        if earlier.is_empty()
                            && let Some(kept) =
                                kept_before.as_ref().and_then(|kept| kept(window, is_forgotten))
                        {
                            add(&kept);
                        }
                        let arrived = windows.remove(&window).unwrap_or_default();
                        earlier.iter().chain(&arrived).for_each(|block| add(&block.words));
                        if let Some(archive) = &mut archive {
                            archive.put(to_block(window, &*sketch));
                        }
                        session.give((window, Rc::new(sketch)));
                    }
                    last_forgotten = last_forgotten.max(turns.forgotten.iter().max().copied());
                    if let Some(archive) = &mut archive {
                        turns.forgotten.iter().for_each(|window| archive.forget(*window));
                    }
                }
            }
        },
    )
}

/// The words of a key under a mask.
#[inline(always)]
pub(crate) fn with_key<T>(mask: Mask, packet: &Packet, take: impl FnOnce(bool, &[u64]) -> T) -> T {
    with_words(&mask.of(packet, &[]), take)
}

/// The words of a key, and whether it is wide.
#[inline(always)]
pub(crate) fn with_words<T>(key: &Key, take: impl FnOnce(bool, &[u64]) -> T) -> T {
    take(matches!(key, Key::Wide(_)), key.words())
}

/// Adds rows of keys that a sketch has named.
pub(crate) fn push<V, const N: usize>(rows: &mut Rows, found: &Found<V>, values: [u64; N]) {
    let layout = if found.wide { Layout::Wide } else { Layout::Compact };
    rows.push(&Key::of_words(layout, &found.key), &values);
}

/// The columns of [`push_above`], which estimate something of this kind.
pub(crate) fn estimates(key: KeyFields, kind: ValueKind) -> Arc<Schema> {
    let values = ["estimate", "lower", "upper"].map(|name| ValueColumn { name, kind }).to_vec();
    Arc::new(Schema { key, values, order_by: 0, counts_every_packet: false })
}

/// Adds the rows of keys whose estimate is above a threshold.
pub(crate) fn push_above(rows: &mut Rows, found: &[Found<Estimate>], threshold: u64) {
    for found in found.iter().filter(|found| found.value.value > threshold) {
        let Estimate { value, lower, upper } = found.value;
        push(rows, found, [value, lower, upper]);
    }
}

/// Where keys fall when no seed is set: the same in every run, so that runs can be compared.
const SEED: u64 = 0x6e65_7473_7065_6374;

/// Checks the shape that options name.
pub(crate) fn shape(
    options: &Options,
    width: usize,
    depth: usize,
    seed: Option<u64>,
) -> Result<Shape, OptionsError> {
    let shape = Shape { width, depth, seed: seed.unwrap_or(SEED) };
    shape
        .check()
        .map_err(|why| options.refuse(if why.starts_with("width") { "width" } else { "depth" }, why))?;
    Ok(shape)
}
