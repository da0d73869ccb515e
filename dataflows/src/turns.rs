//! Which windows an epoch shows: those that its packets are for, and those whose answers reach back to them.
//!
//! An answer over a horizon depends on earlier windows too. So when packets come late for one window, later ones have to
//! be shown again, and for that the groups of still others are needed. One worker, which hears of all packets' windows
//! and knows which exist, decides it for an epoch and tells all: exact groups of the windows that are *needed* are given
//! out again, answers are given in *turns*, one for each window that is to be shown, in order.
//!
//! It also decides which windows are kept for late packets: where all others can be read back, those of the latest
//! epochs, as [`Lately`] has them, so that what is kept does not grow with the age of the run.

use crate::block::{self, Block, BlockBuilder, to_named_worker};
use crate::epochs::Epochs;
use crate::groups::Recall;
use crate::rows::COMMITTER;
use crate::window::Epoch;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::rc::Rc;
use timely::dataflow::Stream;
use timely::dataflow::operators::generic::operator::Operator;

/// What a worker is told of a window: bits of a word.
const SHOWN: u64 = 1;
const RECALLED: u64 = 2;
const FORGOTTEN: u64 = 4;

/// What is to be done in an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// The windows whose groups are given out, and whether the window is shown.
    pub needed: BTreeMap<Epoch, bool>,
    /// Those of them that nobody keeps and that may have been written: they are read back.
    pub recalled: BTreeSet<Epoch>,
    /// Windows that are kept no longer from this epoch on.
    pub forgotten: Vec<Epoch>,
    /// The latest window so far, but for those of packets that are dated ahead by mistake: where horizons stand when the
    /// epoch is over.
    pub latest: Epoch,
}

impl Turns {
    /// The windows that are shown, in order.
    pub fn shown(&self) -> impl Iterator<Item = Epoch> + '_ {
        self.needed.iter().filter(|(_, shown)| **shown).map(|(window, _)| *window)
    }

    /// Whether this window is shown.
    pub fn is_shown(&self, window: Epoch) -> bool {
        self.needed.get(&window) == Some(&true)
    }

    /// The windows that horizons come to, in order: those that are shown, and where they stand in the end.
    pub fn answered(&self) -> impl Iterator<Item = Epoch> + '_ {
        let is_passed = self.shown().last().is_some_and(|last| last >= self.latest);
        self.shown().chain((!is_passed).then_some(self.latest))
    }

    fn to_block(&self, to: usize) -> Block {
        let needed = self.needed.iter().flat_map(|(window, shown)| {
            let recalled = if self.recalled.contains(window) { RECALLED } else { 0 };
            [*window, u64::from(*shown) | recalled]
        });
        let words = needed.chain(self.forgotten.iter().flat_map(|window| [*window, FORGOTTEN]));
        Block { to, window: self.latest, words: words.collect::<Vec<_>>().into(), ..Block::default() }
    }

    /// Takes what the worker that decides has sent.
    pub fn receive(&mut self, block: &Block) {
        self.latest = block.window;
        let windows = || block.words.as_chunks().0.iter().map(|[window, what]| (*window, *what));
        let needed = windows().filter(|(_, what)| what & FORGOTTEN == 0);
        self.needed = needed.map(|(window, what)| (window, what & SHOWN != 0)).collect();
        let recalled = windows().filter(|(_, what)| what & RECALLED != 0);
        self.recalled = recalled.map(|(window, _)| window).collect();
        let forgotten = windows().filter(|(_, what)| what & FORGOTTEN != 0);
        self.forgotten = forgotten.map(|(window, _)| window).collect();
    }
}

/// How many windows before its own an answer depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reach {
    /// At most.
    pub most: u64,
    /// The least that is not 0: whoever reaches back at all holds so many windows before the latest.
    pub held: Option<u64>,
}

impl Reach {
    /// Of several tasks that reach so far each.
    pub fn of(tasks: impl Iterator<Item = u64>) -> Self {
        tasks.filter(|reach| *reach > 0).fold(Self::default(), |Self { most, held }, reach| Self {
            most: most.max(reach),
            held: Some(held.map_or(reach, |held| held.min(reach))),
        })
    }
}

/// Windows that epochs dealt with lately. All others are forgotten: what is wanted of them has to be read back.
#[derive(Debug)]
pub struct Lately {
    /// How many epochs a window is remembered after the last that dealt with it.
    remembered: u64,
    epochs: u64,
    /// The number of the epoch that dealt with it last.
    windows: BTreeMap<Epoch, u64>,
    /// All that epochs dealt with, those first that will be forgotten first.
    order: VecDeque<(u64, Epoch)>,
    /// No window behind this one was ever forgotten.
    last_forgotten: Option<Epoch>,
}

impl Lately {
    /// How many epochs a window is remembered at least.
    pub const EPOCHS: u64 = 512;

    /// None yet, of so many workers. Each of them may run a few epochs ahead of what is written: windows are remembered for
    /// longer than that, so that what is read back is what was written last.
    pub fn new(workers: usize) -> Self {
        let remembered = Self::EPOCHS + 16 * workers as u64;
        let (windows, order) = (BTreeMap::new(), VecDeque::new());
        Self { remembered, epochs: 0, windows, order, last_forgotten: None }
    }

    /// Whether it was forgotten, as far as that is known: a window that never was may be among those that were.
    pub fn has_forgotten(&self, window: Epoch) -> bool {
        self.last_forgotten >= Some(window) && !self.windows.contains_key(&window)
    }

    /// Whether it is remembered.
    pub fn remembers(&self, window: Epoch) -> bool {
        self.windows.contains_key(&window)
    }

    /// Another epoch has dealt with these windows; gives those that are forgotten now.
    pub fn note(&mut self, windows: impl Iterator<Item = Epoch>) -> Vec<Epoch> {
        self.epochs += 1;
        for window in windows {
            self.windows.insert(window, self.epochs);
            self.order.push_back((self.epochs, window));
        }
        let mut forgotten = Vec::new();
        let oldest = self.epochs.saturating_sub(self.remembered);
        while let Some((epoch, window)) = self.order.pop_front_if(|(epoch, _)| *epoch < oldest) {
            // A later epoch may have dealt with it again.
            if self.windows.get(&window) == Some(&epoch) {
                self.windows.remove(&window);
                self.last_forgotten = self.last_forgotten.max(Some(window));
                forgotten.push(window);
            }
        }
        forgotten
    }
}

/// What is known of windows by the worker that decides.
struct Known {
    reach: Reach,
    /// Windows that hold packets.
    existing: BTreeSet<Epoch>,
    recall: Option<Rc<dyn Recall>>,
    /// Windows of earlier runs that it was asked for.
    asked: BTreeSet<Epoch>,
    /// The latest window.
    latest: Option<Epoch>,
    /// Windows that are kept, where all others can be read back.
    lately: Lately,
}

impl Known {
    /// The windows that hold packets, of these ranges, which are in the order of their starts.
    fn exist(&mut self, ranges: impl Iterator<Item = RangeInclusive<Epoch>>) -> BTreeSet<Epoch> {
        let (mut found, mut from) = (BTreeSet::new(), 0);
        for range in ranges {
            // Ranges overlap: what was looked at is not looked at again.
            let (start, end) = ((*range.start()).max(from), *range.end());
            if start > end {
                continue;
            }
            self.ask(start, end);
            found.extend(self.existing.range(start..=end).copied());
            from = end.saturating_add(1);
        }
        found
    }

    /// Finds out which of these windows earlier runs have, each once.
    fn ask(&mut self, start: Epoch, end: Epoch) {
        let Some(recall) = &self.recall else { return };
        let first_new = recall.first_new();
        if start < first_new {
            for window in start..=end.min(first_new.saturating_sub(1)) {
                if self.asked.insert(window) && recall.holds(window) {
                    self.existing.insert(window);
                }
            }
        }
    }

    /// What to do in an epoch whose packets are for these windows.
    fn close(&mut self, epoch: Epoch, touched: &BTreeSet<Epoch>) -> Turns {
        self.existing.extend(touched);
        let Reach { most, held } = self.reach;
        // Only packets that are dated ahead by mistake make windows behind the epoch's own.
        let after = touched.iter().map(|window| *window..=window.saturating_add(most));
        let shown = self.exist(after);
        let latest = self.latest;
        let is_held = |window: Epoch| {
            let held = latest.zip(held);
            held.is_some_and(|(latest, held)| window <= latest && latest - window <= held)
        };
        let before = shown.iter().map(|window| window.saturating_sub(most)..=*window);
        let reached = self.exist(before).into_iter();
        let mut needed: BTreeMap<Epoch, bool> =
            reached.filter(|window| !is_held(*window)).map(|window| (window, false)).collect();
        needed.extend(shown.iter().map(|window| (*window, true)));
        self.latest = latest.max(shown.range(..=epoch).next_back().copied());
        let (recalled, forgotten) = self.keep(&needed);
        Turns { needed, recalled, forgotten, latest: self.latest.unwrap_or_default() }
    }

    /// Which of the windows that an epoch needs are read back, and which others are not kept any more.
    fn keep(&mut self, needed: &BTreeMap<Epoch, bool>) -> (BTreeSet<Epoch>, Vec<Epoch>) {
        let Some(recall) = &self.recall else { return Default::default() };
        let lately = &mut self.lately;
        let is_recalled = |window: &Epoch| {
            !lately.remembers(*window) && (recall.may_hold(*window) || lately.has_forgotten(*window))
        };
        let recalled = needed.keys().copied().filter(is_recalled).collect();
        (recalled, lately.note(needed.keys().copied()))
    }
}

/// Decides for each epoch, from the windows that workers have packets for (told to worker [`COMMITTER`]), and tells all
/// workers. `recall` is what knows of the windows of earlier runs, on that worker.
pub(crate) fn turns<'s>(
    touched: Stream<'s, Epoch, Block>,
    reach: Reach,
    recall: Option<Rc<dyn Recall>>,
) -> Stream<'s, Epoch, Block> {
    let peers = touched.scope().peers();
    let decided = touched.unary_frontier::<BlockBuilder, _, _, _>(to_named_worker(), "Turns", move |_, _| {
        let mut epochs: Epochs<BTreeSet<Epoch>> = Epochs::default();
        let existing = recall.as_ref().map(|recall| recall.ahead()).unwrap_or_default();
        let (asked, lately) = (BTreeSet::new(), Lately::new(peers));
        let mut known = Known { reach, existing, recall, asked, latest: None, lately };
        move |(input, frontier), output| {
            let port = output.output_index();
            input.for_each(|message, block| {
                if let Some((_, touched)) = epochs.at(&message, port) {
                    touched.insert(block.window);
                }
            });
            while let Some((held, touched)) = epochs.close(&[frontier]) {
                let turns = known.close(*held.time(), &touched);
                let mut session = output.session_with_builder(&held);
                (0..peers).for_each(|to| session.give_container(&mut turns.to_block(to)));
            }
        }
    });
    block::exchange(decided)
}

/// The news that a worker has packets for a window.
pub fn touches(window: Epoch) -> Block {
    Block { to: COMMITTER, window, ..Block::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::GroupSet;
    use crate::key::Key;

    fn close(known: &mut Known, epoch: Epoch, touched: &[Epoch]) -> (Vec<(Epoch, bool)>, Epoch) {
        let turns = known.close(epoch, &touched.iter().copied().collect());
        let mut received = Turns::default();
        received.receive(&turns.to_block(0));
        assert_eq!(received, turns);
        (turns.needed.into_iter().collect(), turns.latest)
    }

    fn known(reach: u64) -> Known {
        Known {
            reach: Reach::of([0, reach].into_iter()),
            existing: BTreeSet::new(),
            recall: None,
            asked: BTreeSet::new(),
            latest: None,
            lately: Lately::new(0),
        }
    }

    /// All windows before this one were written by an earlier run.
    struct Earlier(Epoch);

    impl Recall for Earlier {
        fn recall(&self, _: &GroupSet, _: Epoch) -> Vec<(Key, Vec<u64>)> {
            Vec::new()
        }

        fn holds(&self, window: Epoch) -> bool {
            window < self.0
        }

        fn kept(&self, _: usize, _: Epoch) -> Option<Vec<u64>> {
            None
        }

        fn first_new(&self) -> Epoch {
            self.0
        }
    }

    /// Closes an epoch of its own window and a late one; which windows are read back, and which forgotten.
    fn kept(known: &mut Known, epoch: Epoch, late: &[Epoch]) -> (Vec<Epoch>, Vec<Epoch>) {
        let touched = late.iter().copied().chain([epoch]).collect();
        let Turns { recalled, forgotten, .. } = known.close(epoch, &touched);
        (recalled.into_iter().collect(), forgotten)
    }

    #[test]
    fn windows_that_no_epoch_has_dealt_with_for_long_are_forgotten_and_read_back() {
        let mut known = Known { recall: Some(Rc::new(Earlier(3))), ..known(0) };
        assert_eq!(kept(&mut known, 3, &[]), (vec![], vec![]));
        assert_eq!(kept(&mut known, 4, &[1]), (vec![1], vec![]), "an earlier run has it");
        assert_eq!(kept(&mut known, 5, &[1]), (vec![], vec![]), "it is kept");
        let last = 3 + Lately::EPOCHS;
        for epoch in 6..=last {
            assert_eq!(kept(&mut known, epoch, &[]), (vec![], vec![]));
        }
        assert_eq!(kept(&mut known, last + 1, &[]), (vec![], vec![3]));
        assert_eq!(kept(&mut known, last + 2, &[4]), (vec![], vec![]), "just in time");
        assert_eq!(kept(&mut known, last + 3, &[3]), (vec![3], vec![1, 5]));
        assert_eq!(kept(&mut known, last + 4, &[3]), (vec![], vec![6]));
        assert_eq!(known.lately.windows.len() as u64, Lately::EPOCHS + 3);
    }

    #[test]
    fn without_anything_to_read_back_from_no_window_is_forgotten() {
        let mut known = known(0);
        for epoch in 0..2 * Lately::EPOCHS {
            assert_eq!(kept(&mut known, epoch, &[0]), (vec![], vec![]));
        }
    }

    #[test]
    fn without_reach_an_epoch_shows_what_it_has_packets_for() {
        let mut known = known(0);
        assert_eq!(close(&mut known, 5, &[5]), (vec![(5, true)], 5));
        assert_eq!(close(&mut known, 6, &[6]), (vec![(6, true)], 6));
        assert_eq!(close(&mut known, 7, &[5]), (vec![(5, true)], 6));
    }

    #[test]
    fn a_window_ahead_of_its_epoch_is_shown_and_moves_no_horizon() {
        let mut known = known(2);
        assert_eq!(close(&mut known, 5, &[5]), (vec![(5, true)], 5));
        assert_eq!(close(&mut known, 6, &[6, 8, 900]), (vec![(6, true), (8, true), (900, true)], 6));
        // 8 reaches back to 7.
        assert_eq!(close(&mut known, 7, &[7]), (vec![(7, true), (8, true)], 7));
        assert_eq!(close(&mut known, 9, &[9]), (vec![(8, false), (9, true)], 9));
    }

    #[test]
    fn late_packets_show_the_windows_that_reach_back_to_them_again() {
        let mut known = known(2);
        for window in [5, 6, 8, 10, 11] {
            assert_eq!(close(&mut known, window, &[window]), (vec![(window, true)], window));
        }
        // 6 and 8 depend on 6; 8 on nothing that is not shown; 10 and 11 are held.
        let (needed, latest) = close(&mut known, 12, &[6, 12]);
        assert_eq!(needed, [(5, false), (6, true), (8, true), (12, true)]);
        assert_eq!(latest, 12);
    }
}
