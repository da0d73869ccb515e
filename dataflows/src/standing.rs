//! Standing answers: collections over a horizon of windows that slides by retraction, maintained by changes.
//!
//! The exact groups of a window enter a differential collection when the horizon comes to it, change their part in the
//! answer as they age, and are taken back when the horizon has passed them: what a window costs is what has changed.
//! The time of a change is a *turn*: the epoch, then the window that is answered for in it. In most epochs there is one
//! turn. Where packets have come late the horizon goes back, answers for each window that reaches back to them, with the
//! same operators, and returns to the latest window. Times are totally ordered, so the operators that need it serve.
//!
//! A key is on the worker that owns it when it comes here: nothing but answers is exchanged after that.

use crate::aggregator::{Flow, numbered};
use crate::block::{self, Block, BlockBuilder};
use crate::epochs::{ByWindow, Epochs};
use crate::groups::{self, Counts};
use crate::key::{Key, KeyFields, Layout, Mask};
use crate::rows::{COMMITTER, Schema, TaskRows};
use crate::table::owner;
use crate::window::Epoch;
use differential_dataflow::difference::{Abelian, IsZero};
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::operators::arrange::arrangement::{Arranged, arrange_core};
use differential_dataflow::trace::implementations::{KeyBatcher, KeySpine};
use differential_dataflow::{AsCollection, Data, ExchangeData, VecCollection};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::{Concat, Enter, Leave};
use timely::dataflow::{Scope, Stream};

/// An epoch, and the window that is answered for in it.
pub type Turn = (Epoch, Epoch);

/// Changes of a collection, with the turns from which they hold.
pub type Changes<D, R = isize> = Vec<(D, Turn, R)>;

/// What a group of a window adds to an answer, by the age of the window.
pub trait Part: 'static {
    /// Parts are added up; what leaves the horizon is taken away.
    type Weight: Abelian + ExchangeData;

    /// Windows of the same stage add the same; `None` where they add nothing. The window that is answered for has age 0.
    fn stage(&self, age: u64) -> Option<u8>;

    /// What packets and bytes of a group add at a stage.
    fn weight(&self, stage: u8, packets: u64, bytes: u64) -> Self::Weight;
}

/// The groups of one window, as they were when they came.
#[derive(Clone, Default)]
struct Held {
    blocks: Vec<Block>,
    /// Tells them from those that came before or after.
    version: u64,
}

/// Where the collection stands: which groups it holds, in which stage.
struct Slide<P> {
    part: P,
    reach: u64,
    /// Groups of windows within reach.
    held: BTreeMap<Epoch, Held>,
    /// What the collection holds of windows.
    applied: BTreeMap<Epoch, (u8, Held)>,
    versions: u64,
}

impl<P: Part> Slide<P> {
    /// Changes the collection to what holds for a window.
    fn turn(&mut self, turn: Turn, give: &mut impl FnMut((Key, Turn, P::Weight))) {
        let windows: BTreeSet<Epoch> = self.held.keys().chain(self.applied.keys()).copied().collect();
        for window in windows {
            let stage = turn.1.checked_sub(window).and_then(|age| self.part.stage(age));
            let wanted = stage.zip(self.held.get(&window));
            let applied = self.applied.get(&window);
            let state = |(stage, held): (u8, &Held)| (stage, held.version);
            if wanted.map(state) == applied.map(|(stage, held)| state((*stage, held))) {
                continue;
            }
            let wanted = wanted.map(|(stage, held)| (stage, held.clone()));
            if let Some((stage, held)) = self.applied.remove(&window) {
                self.give(stage, &held, |key, mut weight| {
                    weight.negate();
                    give((key, turn, weight));
                });
            }
            if let Some((stage, held)) = wanted {
                self.give(stage, &held, |key, weight| give((key, turn, weight)));
                self.applied.insert(window, (stage, held));
            }
        }
    }

    fn give(&self, stage: u8, held: &Held, mut give: impl FnMut(Key, P::Weight)) {
        for block in &held.blocks {
            groups::visit(block, |key, [packets, bytes, ..]: Counts| {
                let weight = self.part.weight(stage, packets, bytes);
                if !weight.is_zero() {
                    give(key, weight);
                }
            });
        }
    }
}

/// The changes of a collection of keys, from their groups. `reach` is the greatest age of any stage.
pub fn slide<'s, P: Part>(
    flow: &Flow<'s>,
    groups: Stream<'s, Epoch, Block>,
    reach: u64,
    part: P,
) -> Stream<'s, Epoch, Changes<Key, P::Weight>> {
    let mut slide = Slide { part, reach, held: BTreeMap::new(), applied: BTreeMap::new(), versions: 0 };
    groups.binary_frontier::<_, CapacityContainerBuilder<Changes<Key, P::Weight>>, _, _, _, _>(
        flow.turns(),
        Pipeline,
        Pipeline,
        "Slide",
        move |_, _| {
            let mut epochs: Epochs<ByWindow> = Epochs::default();
            move |(groups, groups_frontier), (turns, turns_frontier), output| {
                let port = output.output_index();
                groups.for_each(|message, block| epochs.gather(&message, port, block));
                turns.for_each(|message, block| epochs.receive(&message, port, block));
                while let Some((capability, ByWindow { mut windows, turns })) =
                    epochs.close(&[groups_frontier, turns_frontier])
                {
                    let epoch = *capability.time();
                    let mut session = output.session_with_builder(&capability);
                    for window in turns.needed.keys() {
                        slide.versions += 1;
                        let blocks = windows.remove(window).unwrap_or_default();
                        slide.held.insert(*window, Held { blocks, version: slide.versions });
                    }
                    for window in turns.answered() {
                        slide.turn((epoch, window), &mut |change| session.give(change));
                    }
                    slide.held.retain(|window, _| window.saturating_add(slide.reach) >= turns.latest);
                }
            }
        },
    )
}

/// Runs a part of a dataflow on turns.
pub fn on_turns<'s, D: Data, E: Data, R: Abelian + ExchangeData>(
    scope: Scope<'s, Epoch>,
    name: &str,
    changes: Stream<'s, Epoch, Changes<D, R>>,
    build: impl for<'t> FnOnce(VecCollection<'t, Turn, D, R>) -> VecCollection<'t, Turn, E>,
) -> Stream<'s, Epoch, Changes<E>> {
    scope.scoped::<Turn, _, _>(name, |inner| build(changes.enter(inner).as_collection()).inner.leave(scope))
}

/// Indexes a collection whose records are on the workers that they belong to.
pub fn indexed<'t, D: ExchangeData, R: Abelian + ExchangeData>(
    collection: VecCollection<'t, Turn, D, R>,
) -> Arranged<'t, TraceAgent<KeySpine<D, Turn, R>>> {
    let records = collection.map(|record| (record, ()));
    arrange_core::<_, _, KeyBatcher<D, Turn, R>, _>(records.inner, Pipeline, "Index", KeyBatcher::new)
}

/// What a query makes of a collection: it follows the changes, and gives the rows when it is asked.
pub trait Answer<D>: 'static {
    /// A record has come (1) or gone (-1).
    fn change(&mut self, record: D, by: isize);

    /// The rows for a window, of either layout, of this worker; `groups` are what [`answers`] was given for the window.
    fn rows(&mut self, groups: &[Block], rows: &mut Rows);
}

/// One record a key, each a row.
pub struct Records<V, const N: usize> {
    records: BTreeMap<Key, V>,
    values: fn(&V) -> [u64; N],
}

impl<V, const N: usize> Records<V, N> {
    /// None yet; `values` makes the value columns of a record.
    pub fn new(values: fn(&V) -> [u64; N]) -> Self {
        Self { records: BTreeMap::new(), values }
    }
}

impl<V: 'static, const N: usize> Answer<(Key, V)> for Records<V, N> {
    fn change(&mut self, (key, record): (Key, V), by: isize) {
        if by > 0 {
            self.records.insert(key, record);
        } else {
            self.records.remove(&key);
        }
    }

    fn rows(&mut self, _: &[Block], rows: &mut Rows) {
        self.records.iter().for_each(|(key, record)| rows.push(key, &(self.values)(record)));
    }
}

/// Rows that are gathered, by layout.
#[derive(Default)]
pub struct Rows {
    words: [Vec<u64>; Layout::ALL.len()],
    /// Value words of a row.
    values: usize,
}

impl Rows {
    /// Adds a row.
    pub fn push(&mut self, key: &Key, values: &[u64]) {
        let words = &mut self.words[key.layout() as usize];
        words.extend_from_slice(key.words());
        words.extend_from_slice(values);
        self.values = values.len();
    }

    /// As blocks of a window for a worker.
    pub fn into_blocks(self, to: usize, window: Epoch) -> impl Iterator<Item = Block> {
        let (values, blocks) = (self.values, Layout::ALL.into_iter().zip(self.words));
        blocks.filter(|(_, words)| !words.is_empty()).map(move |(layout, words)| {
            let width = layout.words() + values;
            Block { to, window, layout, width, words: words.into(), ..Block::default() }
        })
    }
}

/// Follows the changes of a collection and gives the rows of each window that is shown. `groups` are handed on to the
/// answer for the windows that they are of.
pub fn answers<'s, D: Data>(
    flow: &Flow<'s>,
    changes: Stream<'s, Epoch, Changes<D>>,
    groups: Option<Stream<'s, Epoch, Block>>,
    mut answer: impl Answer<D>,
) -> Stream<'s, Epoch, Block> {
    const TURNS: usize = 0;
    const GROUPS: usize = 1;
    let mut blocks = numbered(flow.turns(), TURNS);
    if let Some(groups) = groups {
        blocks = blocks.concat(numbered(groups, GROUPS));
    }
    changes.binary_frontier::<_, BlockBuilder, _, _, _, _>(
        blocks,
        Pipeline,
        Pipeline,
        "Answer",
        move |_, _| {
            let mut epochs: Epochs<ByWindow> = Epochs::default();
            // A message may hold changes of epochs behind its own.
            let mut gathered: BTreeMap<Epoch, Changes<D>> = BTreeMap::new();
            move |(changes, changes_frontier), (blocks, blocks_frontier), output| {
                let port = output.output_index();
                changes.for_each(|_, changes| {
                    for change in changes.drain(..) {
                        gathered.entry(change.1.0).or_default().push(change);
                    }
                });
                blocks.for_each(|message, block| match block.task {
                    TURNS => epochs.receive(&message, port, block),
                    _ => epochs.gather(&message, port, block),
                });
                while let Some((held, ByWindow { windows: groups, turns })) =
                    epochs.close(&[changes_frontier, blocks_frontier])
                {
                    let mut changes = gathered.remove(held.time()).unwrap_or_default();
                    // What goes, goes before what takes its place.
                    changes.sort_unstable_by_key(|(_, turn, by)| (*turn, *by));
                    let mut changes = changes.into_iter().peekable();
                    let mut session = output.session_with_builder(&held);
                    for window in turns.answered() {
                        while let Some((record, _, by)) = changes.next_if(|(_, turn, _)| turn.1 == window) {
                            answer.change(record, by);
                        }
                        if turns.is_shown(window) {
                            let mut rows = Rows::default();
                            answer.rows(groups.get(&window).map_or(&[], Vec::as_slice), &mut rows);
                            rows.into_blocks(COMMITTER, window)
                                .for_each(|mut block| session.give_container(&mut block));
                        }
                    }
                }
            }
        },
    )
}

/// The rows of each window from the groups of that window alone, as this worker has them.
pub fn by_window<'s>(
    groups: Stream<'s, Epoch, Block>,
    mut rows_of: impl FnMut(&[Block]) -> Rows + 'static,
) -> Stream<'s, Epoch, Block> {
    each_window(groups, move |window, blocks, give| {
        rows_of(blocks).into_blocks(COMMITTER, window).for_each(give);
    })
}

/// Makes blocks of each window's, when its epoch closes.
pub(crate) fn each_window<'s>(
    groups: Stream<'s, Epoch, Block>,
    mut make: impl FnMut(Epoch, &[Block], &mut dyn FnMut(Block)) + 'static,
) -> Stream<'s, Epoch, Block> {
    groups.unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "EachWindow", move |_, _| {
        let mut epochs: Epochs<ByWindow> = Epochs::default();
        move |(input, frontier), output| {
            let port = output.output_index();
            input.for_each(|message, block| epochs.gather(&message, port, block));
            while let Some((held, ByWindow { windows, .. })) = epochs.close(&[frontier]) {
                let mut session = output.session_with_builder(&held);
                for (window, blocks) in windows {
                    make(window, &blocks, &mut |mut block| session.give_container(&mut block));
                }
            }
        }
    })
}

/// The first rows of a window, of those of all workers, in the order of the schema.
pub fn first<'s>(
    rows: Stream<'s, Epoch, Block>,
    schema: Arc<Schema>,
    count: usize,
) -> Stream<'s, Epoch, Block> {
    by_window(block::exchange(rows), move |blocks| {
        let mut rows = Rows::default();
        let all = TaskRows::of_blocks(&schema, blocks);
        all.first(count).iter().for_each(|row| rows.push(&row.key_words(), row.values()));
        rows
    })
}

/// Moves the groups of a fine key set to the owners of the coarser keys that they belong to.
pub fn by_owner<'s>(groups: Stream<'s, Epoch, Block>, key: Mask) -> Stream<'s, Epoch, Block> {
    let peers = groups.scope().peers();
    let moved = groups.unary::<BlockBuilder, _, _, _>(Pipeline, "Move", move |_, _| {
        move |input, output| {
            input.for_each(|message, block| {
                let mut session = output.session_with_builder(&message);
                let mut shares: Vec<Rows> = (0..peers).map(|_| Rows::default()).collect();
                groups::visit(block, |fine, values: Counts| {
                    let owner = owner(fine.under(key).route(), peers);
                    shares[owner].push(&fine, &values);
                });
                for (to, rows) in shares.into_iter().enumerate() {
                    rows.into_blocks(to, block.window)
                        .for_each(|mut block| session.give_container(&mut block));
                }
            });
        }
    });
    block::exchange(moved)
}

/// The key set that holds two others, which share no field.
pub fn joined(key: &KeyFields, element: &KeyFields) -> Result<KeyFields, crate::key::FieldError> {
    KeyFields::new(key.columns().iter().chain(element.columns()).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregator::Registry;
    use crate::packet::Packet;
    use crate::trial::{self, LENGTH, any_packets};
    use proptest::prelude::*;
    use serde_json::json;

    const KEYS: [&[&str]; 2] = [&["SrcIP"], &["DstPort", "Protocol"]];

    fn aggregators(horizon: u64) -> Vec<Box<dyn crate::aggregator::Aggregator>> {
        let build = |kind: &str, options: serde_json::Value| {
            let options: BTreeMap<String, serde_json::Value> =
                serde_json::from_value(options).expect("options");
            Registry::default().get(kind).expect("a type")(&options.into()).expect("options")
        };
        let mut all = Vec::new();
        for key_fields in KEYS {
            all.push(build("top_k", json!({"key_fields": key_fields, "k": 2, "horizon": horizon})));
            all.push(build("new_keys", json!({"key_fields": key_fields, "horizon": horizon})));
            all.push(build(
                "changes",
                json!({"key_fields": key_fields, "threshold": 1.5, "at_least": 3, "metric": "packets", "horizon": 2}),
            ));
        }
        all.push(build(
            "fan_out",
            json!({"key_fields": ["SrcIP"], "element_fields": ["DstPort"], "threshold": 1, "horizon": horizon}),
        ));
        all
    }

    /// Packets, bytes, first and last time of the keys of some windows.
    fn totals(packets: &[Packet], key: &KeyFields, windows: std::ops::Range<u64>) -> BTreeMap<Key, [u64; 4]> {
        let mut totals = BTreeMap::new();
        for packet in packets.iter().filter(|packet| windows.contains(&(packet.time / LENGTH))) {
            let sum = totals.entry(key.mask().of(packet, &[])).or_insert([0, 0, u64::MAX, 0]);
            *sum = [
                sum[0] + 1,
                sum[1] + u64::from(packet.length),
                sum[2].min(packet.time),
                sum[3].max(packet.time),
            ];
        }
        totals
    }

    fn row(key: &Key, values: &[u64]) -> Vec<u64> {
        [key.words(), values].concat()
    }

    /// All answers from all packets, a window at a time.
    fn naive(packets: &[Packet], horizon: u64) -> trial::Rows {
        let mut all = trial::Rows::new();
        let windows: BTreeSet<u64> = packets.iter().map(|packet| packet.time / LENGTH).collect();
        for window in windows {
            let past = |windows: u64| (window + 1).saturating_sub(windows)..window + 1;
            let mut task = 0;
            let mut add = |mut rows: Vec<Vec<u64>>| {
                rows.sort();
                if !rows.is_empty() {
                    all.insert((window, task), rows);
                }
                task += 1;
            };
            for names in KEYS {
                let key = KeyFields::parse(names).expect("fields");
                let words = |key: &Key| -> (Layout, Vec<u64>) { (key.layout(), row(key, &[])) };
                let mut top: Vec<_> = totals(packets, &key, past(horizon)).into_iter().collect();
                top.sort_by(|(left, a), (right, b)| {
                    let ((l, left), (r, right)) = (words(left), words(right));
                    b[1].cmp(&a[1]).then_with(|| key.compare((l, &left), (r, &right)))
                });
                add(top.iter().take(2).map(|(key, sum)| row(key, &sum[..2])).collect());
                let before = totals(packets, &key, window.saturating_sub(horizon)..window);
                let new = totals(packets, &key, past(1));
                let new = new.iter().filter(|(key, _)| !before.contains_key(key));
                add(new.map(|(key, sum)| row(key, sum)).collect());
                let (now, both) = (totals(packets, &key, past(2)), totals(packets, &key, past(4)));
                let moves = both.iter().filter_map(|(key, sum)| {
                    let now = now.get(key).map_or(0, |sum| sum[0]);
                    let before = sum[0] - now;
                    let moved = 2 * now.max(before) > 3 * now.min(before) && now.max(before) >= 3;
                    moved.then(|| row(key, &[before, now, now.abs_diff(before)]))
                });
                add(moves.collect());
            }
            let pair = KeyFields::parse(&["SrcIP", "DstPort"]).expect("fields");
            let source = KeyFields::parse(&["SrcIP"]).expect("fields").mask();
            let mut elements: BTreeMap<Key, u64> = BTreeMap::new();
            for key in totals(packets, &pair, past(horizon)).keys() {
                *elements.entry(key.under(source)).or_default() += 1;
            }
            let many = elements.iter().filter(|(_, elements)| **elements > 1);
            add(many.map(|(key, elements)| row(key, &[*elements])).collect());
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn each_query_equals_a_naive_recomputation_on_one_two_and_three_workers(
            packets in any_packets(), horizon in 1u64..5
        ) {
            let expected = naive(&packets, horizon);
            for workers in 1..=3 {
                let found = trial::rows_of(trial::run(workers, &packets, move || aggregators(horizon)));
                prop_assert_eq!(&found, &expected, "{} workers", workers);
            }
        }

        #[test]
        fn packets_grouped_before_at_random_give_the_same(
            packets in any_packets(), numbers in proptest::collection::vec(0u8..3, 1..9), horizon in 1u64..5
        ) {
            let expected = naive(&packets, horizon);
            for workers in 1..=3 {
                let grouped = trial::grouped(&packets, &numbers);
                let found = trial::run_observations(workers, grouped, move || aggregators(horizon));
                prop_assert_eq!(&trial::rows_of(found), &expected, "{} workers", workers);
            }
        }
    }
}
