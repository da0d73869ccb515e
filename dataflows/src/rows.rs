//! Result rows: their schema, their order, and the finished snapshot that sinks get.
//!
//! A row is the words of its key followed by one word a value column. Workers sort their own rows; a task of a
//! snapshot is a handful of sorted runs that are merged while they are written, in as many pieces as there are hands.

use crate::block::{AHEAD, Block, BlockBuilder, Words};
use crate::epochs::{ByWindow, Epochs};
use crate::key::{Key, KeyColumn, KeyFields, KeyValue, Layout, natural_order};
use crate::sort::sorted;
use crate::window::Epoch;
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator;

/// What the word of a value column means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A number of things.
    Count,
    /// A number of bytes.
    Bytes,
    /// Nanoseconds since the Unix epoch, UTC.
    Time,
    /// A number that is no amount: a set of flags, a time to live.
    Number,
}

/// A value column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueColumn {
    /// Name in every table.
    pub name: &'static str,
    /// Type and unit.
    pub kind: ValueKind,
}

/// The columns of a task's rows: the key's, then the values'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Key columns.
    pub key: KeyFields,
    /// Value columns.
    pub values: Vec<ValueColumn>,
    /// The value column that orders the rows, largest first; ties go by key columns, least first.
    pub order_by: usize,
    /// Whether every packet of a window is in exactly one row's `packets`, so that the books can be held against them.
    pub counts_every_packet: bool,
}

impl Schema {
    /// Names of all columns in order.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.key.columns().iter().map(KeyColumn::name).chain(self.values.iter().map(|value| value.name))
    }

    /// Number of the value column of this name.
    pub fn value_named(&self, name: &str) -> Option<usize> {
        self.values.iter().position(|value| value.name == name)
    }

    /// Words of a row of a layout.
    pub fn row_words(&self, layout: Layout) -> usize {
        layout.words() + self.values.len()
    }
}

/// One row of a task, borrowed from its run.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    layout: Layout,
    words: &'a [u64],
}

impl<'a> Row<'a> {
    /// The value of a key column.
    #[inline]
    pub fn key(&self, schema: &Schema, column: usize) -> KeyValue {
        schema.key.value(column, self.layout, self.words)
    }

    /// The words of the value columns.
    #[inline]
    pub fn values(&self) -> &'a [u64] {
        &self.words[self.layout.words()..]
    }

    /// The key.
    #[inline]
    pub fn key_words(&self) -> Key {
        Key::of_words(self.layout, self.words)
    }

    /// The words of addresses and transport, if the row's addresses are all IPv4.
    #[inline]
    pub fn compact_key(&self) -> Option<&'a [u64; 2]> {
        matches!(self.layout, Layout::Compact | Layout::CompactExtra).then(|| self.words.first_chunk())?
    }
}

/// A row with numbers that order it.
#[derive(Clone, Copy)]
struct Ranked<'a> {
    row: Row<'a>,
    /// The value, inverted, and the key where its columns stand in their natural order.
    rank: [u64; 7],
}

impl<'a> Ranked<'a> {
    #[inline(always)]
    fn new(row: Row<'a>, schema: &Schema) -> Self {
        let value = !row.values()[schema.order_by];
        let [a, b, c, d, e, f] =
            if schema.key.in_natural_order() { natural_order(row.layout, row.words) } else { [0; 6] };
        Self { row, rank: [value, a, b, c, d, e, f] }
    }

    #[inline(always)]
    fn is_before(&self, other: &Self, schema: &Schema) -> bool {
        // Spelled out, so that it is done word by word and mostly after one or two.
        for (left, right) in self.rank.iter().zip(&other.rank) {
            if left != right {
                return left < right;
            }
        }
        let key = |row: &Row<'a>| (row.layout, row.words);
        schema.key.compare(key(&self.row), key(&other.row)) == Ordering::Less
    }
}

/// Sorts the rows of a task in the windows that are shown, one run a window and layout, and binds the runs, numbered,
/// for the committing worker.
pub(crate) fn sort<'s>(
    rows: Stream<'s, Epoch, Block>,
    turns: Stream<'s, Epoch, Block>,
    schema: Arc<Schema>,
    task: usize,
) -> Stream<'s, Epoch, Block> {
    // A window without rows is told of all the same, once.
    let tells = task == 0 && rows.scope().index() == COMMITTER;
    rows.binary_frontier::<_, BlockBuilder, _, _, _, _>(turns, Pipeline, Pipeline, "Sort", move |_, _| {
        let mut epochs: Epochs<ByWindow> = Epochs::default();
        move |(rows, rows_frontier), (turns, turns_frontier), output| {
            let port = output.output_index();
            rows.for_each(|message, block| epochs.gather(&message, port, block));
            turns.for_each(|message, block| epochs.receive(&message, port, block));
            while let Some((held, ByWindow { mut windows, turns })) =
                epochs.close(&[rows_frontier, turns_frontier])
            {
                let mut session = output.session_with_builder(&held);
                for window in turns.shown() {
                    let blocks = windows.remove(&window).unwrap_or_default();
                    for run in runs(&blocks, &schema) {
                        if !run.is_empty() || tells && run.layout == Layout::Compact {
                            session.give_container(&mut Block { to: COMMITTER, task, window, ..run });
                        }
                    }
                }
            }
        }
    })
}

/// The worker that gathers snapshots.
pub const COMMITTER: usize = 0;

/// A task's rows, given as blocks in any order, as a sorted run of each layout.
fn runs(blocks: &[Block], schema: &Schema) -> Vec<Block> {
    let run = |layout| {
        let of_layout = blocks.iter().filter(|block| block.layout == layout);
        debug_assert!(blocks.iter().all(|block| block.sorted.is_none()), "rows that have no order yet");
        sort_words(of_layout.map(|block| block.words.clone()).collect(), layout, schema)
    };
    let is_used = |layout: &Layout| {
        *layout == Layout::Compact || blocks.iter().any(|block| block.layout == *layout && block.width > 0)
    };
    Layout::ALL.into_iter().filter(is_used).map(run).collect()
}

/// A task's rows, given as words in any order, in the order of the schema.
pub fn sort_words(blocks: Vec<Words>, layout: Layout, schema: &Schema) -> Block {
    let width = schema.row_words(layout);
    let (by, key) = (layout.words() + schema.order_by, &schema.key);
    let by_columns = |left: &[u64], right: &[u64]| key.compare((layout, left), (layout, right));
    let sorted = match (layout, key.in_natural_order()) {
        (Layout::Compact, _) => {
            let rank = |row: &[u64]| {
                let [high, low] = key.compact_order(&[row[0], row[1]]);
                [!row[by], high, low]
            };
            sorted(blocks, width, rank, by_columns)
        }
        (Layout::CompactExtra, true) => {
            sorted(blocks, width, |row| [!row[by], row[0], row[1], row[2]], by_columns)
        }
        (Layout::Wide, true) => {
            let rank = |row: &[u64]| {
                let [a, b, c, d, e, _] = natural_order(layout, row);
                [!row[by], a, b, c, d, e]
            };
            sorted(blocks, width, rank, by_columns)
        }
        (_, true) => {
            let rank = |row: &[u64]| {
                let [a, b, c, d, e, f] = natural_order(layout, row);
                [!row[by], a, b, c, d, e, f]
            };
            sorted(blocks, width, rank, by_columns)
        }
        (_, false) => {
            let rank = |row: &[u64]| {
                let first = key.first_order(layout, row);
                [!row[by], (first >> 64) as u64, first as u64]
            };
            sorted(blocks, width, rank, by_columns)
        }
    };
    Block { layout, width, sorted: Some(Arc::new(sorted)), ..Block::default() }
}

/// All rows of one task in one window.
#[derive(Clone, Debug)]
pub struct TaskRows {
    /// The task's name.
    pub name: Arc<str>,
    /// Its columns.
    pub schema: Arc<Schema>,
    /// Sorted runs; no key is in two of them.
    pub runs: Vec<Block>,
    /// What the task keeps for a later run, beside its rows.
    pub kept: Option<Words>,
}

/// Rows that follow each other in a task's order, a range of rows in each of its runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece(Vec<Range<usize>>);

impl TaskRows {
    /// Blocks of rows, in any order, put in the order of the schema.
    pub(crate) fn of_blocks(schema: &Arc<Schema>, blocks: &[Block]) -> Self {
        let runs = runs(blocks, schema).to_vec();
        Self { name: Arc::default(), schema: schema.clone(), runs, kept: None }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|run| self.run_len(run)).sum()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.runs.iter().all(Block::is_empty)
    }

    /// Sum of the value column of this name over all rows; 0 where there is none.
    pub fn total(&self, name: &str) -> u64 {
        let Some(column) = self.schema.value_named(name) else { return 0 };
        let sum = |run: &Block| -> u64 {
            let (width, at) = (self.schema.row_words(run.layout), run.layout.words() + column);
            run.unordered().flat_map(|words| words.chunks_exact(width)).map(|row| row[at]).sum()
        };
        self.runs.iter().map(sum).sum()
    }

    fn run_len(&self, run: &Block) -> usize {
        run.len() / self.schema.row_words(run.layout)
    }

    fn row<'a>(&'a self, run: &'a Block, number: usize) -> Row<'a> {
        let words = match &run.sorted {
            Some(sorted) => {
                sorted.fetch(number + AHEAD);
                sorted.row(number)
            }
            None => {
                let width = self.schema.row_words(run.layout);
                &run.words[number * width..][..width]
            }
        };
        Row { layout: run.layout, words }
    }

    #[inline(always)]
    fn ranked<'a>(&'a self, run: &'a Block, number: usize) -> Ranked<'a> {
        Ranked::new(self.row(run, number), &self.schema)
    }

    /// Cuts the rows, in order, into pieces of about `rows` rows (at least 1); one empty piece where there is no row.
    pub fn pieces(&self, rows: usize) -> Vec<Piece> {
        let longest = self.runs.iter().max_by_key(|run| self.run_len(run));
        let Some(longest) = longest else { return vec![Piece(Vec::new())] };
        let step = (rows * self.run_len(longest)).div_ceil(self.len().max(1)).max(1);
        let mut starts = vec![0; self.runs.len()];
        let mut pieces = Vec::new();
        for pivot in (step..self.run_len(longest)).step_by(step) {
            let pivot = self.ranked(longest, pivot);
            let ends = self.runs.iter().map(|run| self.first_not_before(run, &pivot)).collect::<Vec<_>>();
            pieces.push(Piece(starts.iter().zip(&ends).map(|(start, end)| *start..*end).collect()));
            starts = ends;
        }
        let ends = self.runs.iter().map(|run| self.run_len(run));
        pieces.push(Piece(starts.into_iter().zip(ends).map(|(start, end)| start..end).collect()));
        pieces
    }

    /// Number of a run's rows that come before this one.
    fn first_not_before(&self, run: &Block, pivot: &Ranked<'_>) -> usize {
        let (mut low, mut high) = (0, self.run_len(run));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.ranked(run, middle).is_before(pivot, &self.schema) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Visits the rows of a piece in order.
    pub fn visit<'a>(&'a self, piece: &Piece, mut visit: impl FnMut(Row<'a>)) {
        self.merge(&piece.0, |row| {
            visit(row);
            true
        });
    }

    /// The first rows in order, at most `count`.
    pub fn first(&self, count: usize) -> Vec<Row<'_>> {
        self.first_where(count, |_| true)
    }

    /// The first rows in order that are wanted, at most `count`.
    pub fn first_where(&self, count: usize, wanted: impl Fn(&Row<'_>) -> bool) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        self.visit_while(|row| {
            if rows.len() < count && wanted(&row) {
                rows.push(row);
            }
            rows.len() < count
        });
        rows
    }

    /// Visits the rows in order until told to stop.
    pub fn visit_while<'a>(&'a self, visit: impl FnMut(Row<'a>) -> bool) {
        let all: Vec<_> = self.runs.iter().map(|run| 0..self.run_len(run)).collect();
        self.merge(&all, visit);
    }

    /// All rows, run by run.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.runs.len()).flat_map(|run| self.run_rows(run))
    }

    /// The rows of the run of this number, in order.
    pub fn run_rows(&self, run: usize) -> impl Iterator<Item = Row<'_>> {
        let run = &self.runs[run];
        (0..self.run_len(run)).map(|number| self.row(run, number))
    }

    /// Merges a range of rows of each run until told to stop.
    fn merge<'a>(&'a self, ranges: &[Range<usize>], mut visit: impl FnMut(Row<'a>) -> bool) {
        let mut heads: Vec<(Ranked<'a>, &'a Block, Range<usize>)> = Vec::new();
        for (run, range) in self.runs.iter().zip(ranges) {
            let mut range = range.clone();
            if let Some(first) = range.next() {
                heads.push((self.ranked(run, first), run, range));
            }
        }
        while !heads.is_empty() {
            let mut least = 0;
            for at in 1..heads.len() {
                if heads[at].0.is_before(&heads[least].0, &self.schema) {
                    least = at;
                }
            }
            let (head, run, range) = &mut heads[least];
            if !visit(head.row) {
                return;
            }
            match range.next() {
                Some(next) => *head = self.ranked(run, next),
                None => drop(heads.swap_remove(least)),
            }
        }
    }
}

/// All rows of a closed window, one entry a task in configured order.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The window.
    pub window: Epoch,
    /// Its first nanosecond and the first after it; `None` for the window of everything.
    pub span: Option<(u64, u64)>,
    /// 0 for the first snapshot of the window, one more each time that late packets changed it.
    pub revision: u32,
    /// The tasks' rows.
    pub tasks: Vec<TaskRows>,
    /// What it is known to lack.
    pub missing: Missing,
}

/// What is known to be missing in the snapshot of a closed window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// A signal has ended the input before its time had closed the window.
    pub interrupted: bool,
    /// Packets that may have been of the window and were lost before they could be counted, at most.
    pub lost: u64,
}

impl Snapshot {
    /// Bytes of all rows with their order, and of what tasks keep beside them.
    pub fn bytes(&self) -> u64 {
        let bytes = |task: &TaskRows| {
            let rows = task.runs.iter().map(Block::bytes).sum::<usize>();
            rows + task.kept.as_ref().map_or(0, |kept| size_of::<u64>() * kept.len())
        };
        self.tasks.iter().map(bytes).sum::<usize>() as u64
    }

    /// The packets that it holds, where a task counts every packet once.
    pub fn packets(&self) -> Option<u64> {
        let counting = self.tasks.iter().find(|task| task.schema.counts_every_packet);
        counting.map(|task| task.total("packets"))
    }
}
