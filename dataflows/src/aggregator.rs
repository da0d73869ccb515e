//! What an aggregator is, what it may build on, and the list of those that ship.

use crate::block::{Block, BlockBuilder};
use crate::field::{FIELDS, Field, Plan};
use crate::groups::{self, Archive, Closed, GroupSet, Observations};
use crate::key::{KeyFields, Mask};
use crate::measure::{MEASURES, Measure, Measures};
use crate::rows::{Schema, ValueKind};
use crate::turns::{self, Reach};
use crate::window::{Epoch, Windowing};
use crate::{changes, count_min, exact, fan_out, hll, measure, new_keys, quantiles, top_k};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::{Scope, Stream};

/// A kind of task: from packets, or from exact groups, to the rows of each window.
pub trait Aggregator: Send + Sync {
    /// The columns of its rows.
    fn schema(&self) -> Arc<Schema>;

    /// The key sets whose exact groups [`Self::build`] will ask for. Shared with all other tasks.
    fn groups(&self) -> Vec<Mask> {
        Vec::new()
    }

    /// The measures that those groups are to have. All groups have packets, bytes, first and last time.
    fn measures(&self) -> Measures {
        Measures::default()
    }

    /// Those key sets with these measures.
    fn group_sets(&self) -> Vec<GroupSet> {
        let set = |mask| GroupSet { mask, measures: self.measures() };
        self.groups().into_iter().map(set).collect()
    }

    /// Whether its rows are the groups of its one key set, each measure a column under its own name: then they can be read
    /// back from what was written, so that late packets revise windows of an earlier run.
    fn shows_groups(&self) -> bool {
        false
    }

    /// On how many windows before its own an answer depends: where one of those is revised, it is too.
    fn reach(&self, _windowing: Windowing) -> u64 {
        0
    }

    /// Builds its dataflow on this worker; called once on each worker, in the same order on all.
    ///
    /// The result is the rows in the layout of [`Self::schema`], in any order, at the time of the epoch that closes
    /// them and with the window they belong to, each key on one worker only. It has to hold all rows of every window
    /// that the epoch shows ([`Flow::turns`]): a window that comes again replaces the earlier rows as a whole. Rows of
    /// other windows are dropped.
    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block>;
}

/// What aggregators build on, on one worker.
pub struct Flow<'s> {
    scope: Scope<'s, Epoch>,
    windowing: Windowing,
    observations: Stream<'s, Epoch, Observations>,
    turns: Stream<'s, Epoch, Block>,
    groups: Vec<(GroupSet, Stream<'s, Epoch, Block>)>,
    closed: Closed,
    /// Number of the task that is being built, and how many there are.
    task: usize,
    tasks: usize,
    /// What they keep.
    kept: RefCell<Vec<Stream<'s, Epoch, Block>>>,
}

impl<'s> Flow<'s> {
    /// The scope of the dataflow.
    pub fn scope(&self) -> Scope<'s, Epoch> {
        self.scope
    }

    /// How event time is cut.
    pub fn windowing(&self) -> Windowing {
        self.windowing
    }

    /// What this worker observes, mostly packets, in batches of one window. A batch whose window is earlier than its time
    /// came late.
    pub fn observations(&self) -> Stream<'s, Epoch, Observations> {
        self.observations.clone()
    }

    /// What each epoch needs and shows, the same on every worker; see [`turns::Turns::receive`].
    pub fn turns(&self) -> Stream<'s, Epoch, Block> {
        self.turns.clone()
    }

    /// The exact groups of a key set named by [`Aggregator::groups`]: for each window that an epoch needs, when the
    /// epoch closes, the rows key, packets, bytes, first and last time of the keys that this worker owns. They are for
    /// aggregators whose [`Aggregator::measures`] are the default.
    pub fn groups(&self, mask: Mask) -> Stream<'s, Epoch, Block> {
        self.measured_groups(&GroupSet::of(mask))
    }

    /// The same of a set with just these measures: the words behind the first four are in the order of [`Measures::names`].
    pub fn measured_groups(&self, set: &GroupSet) -> Stream<'s, Epoch, Block> {
        let built = self.groups.iter().find(|(built, _)| built == set);
        built.expect("an aggregator asks for the groups that it named").1.clone()
    }

    /// The exact groups of the coarsest key set that holds all of this one, where any task asks for such: as
    /// [`Self::groups`] has them.
    pub fn finer_groups(&self, mask: Mask) -> Option<Stream<'s, Epoch, Block>> {
        let finer = self.groups.iter().filter(|(built, _)| built.mask.contains(mask));
        finer.min_by_key(|(built, _)| built.mask.bits()).map(|(_, groups)| groups.clone())
    }

    /// A place for what has to outlive its window, so that late packets can revise it; `None` where nothing comes late.
    pub fn archive(&self) -> Option<Box<dyn Archive>> {
        (self.closed.archive)()
    }

    /// On the committing worker, where it can be read back: what this task has kept of a window in an earlier run, or in this
    /// one where the window has been forgotten since ([`turns::Turns::forgotten`]).
    pub fn kept_before(&self) -> Option<impl Fn(Epoch, bool) -> Option<Vec<u64>> + use<>> {
        let (recall, task) = (self.closed.recall.clone()?, self.task);
        let kept = move |window, is_forgotten| {
            (is_forgotten || recall.may_hold(window)).then(|| recall.kept(task, window))?
        };
        Some(kept)
    }

    /// Whether what [`Self::keep`] is given is written: commits are recorded, and a later run may go on.
    pub fn keeps(&self) -> bool {
        self.closed.keeps
    }

    /// Has blocks of any words written with their windows' snapshots, one a window and time, from the committing worker:
    /// for a task whose rows do not tell all that late packets need, after a restart.
    pub fn keep(&self, blocks: Stream<'s, Epoch, Block>) {
        self.kept.borrow_mut().push(numbered(blocks, self.tasks + self.task));
    }
}

/// Gives blocks a number.
pub(crate) fn numbered<'s>(blocks: Stream<'s, Epoch, Block>, task: usize) -> Stream<'s, Epoch, Block> {
    blocks.unary::<BlockBuilder, _, _, _>(Pipeline, "Number", move |_, _| {
        move |input, output| {
            input.for_each(|message, block| {
                block.task = task;
                output.session_with_builder(&message).give_container(block);
            });
        }
    })
}

/// Builds all tasks on one worker and returns their sorted rows, each block numbered by its task; behind the last task
/// come, in the same order, the numbers of what tasks keep.
///
/// `touched` tells the committing worker which windows an epoch's packets are for; `closed` is what may be revised.
pub fn build_tasks<'s>(
    scope: Scope<'s, Epoch>,
    observations: Stream<'s, Epoch, Observations>,
    touched: Stream<'s, Epoch, Block>,
    (tasks, windowing): (&[Task], Windowing),
    closed: Closed,
) -> Stream<'s, Epoch, Block> {
    let reach = Reach::of(tasks.iter().map(|task| task.aggregator.reach(windowing)));
    let turns = turns::turns(touched, reach, closed.recall.clone());
    let sets = tasks.iter().flat_map(|task| task.aggregator.group_sets());
    let groups = groups::build(&observations, &turns, &groups::plan(sets), &closed);
    let kept = RefCell::default();
    let mut flow =
        Flow { scope, windowing, observations, turns, groups, closed, task: 0, tasks: tasks.len(), kept };
    let mut rows = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        flow.task = number;
        let built = task.aggregator.build(&flow);
        rows.push(crate::rows::sort(built, flow.turns(), task.aggregator.schema(), number));
    }
    rows.extend(flow.kept.into_inner());
    scope.concatenate(rows)
}

/// A configured task.
#[derive(Clone)]
pub struct Task {
    /// Its name, unique in a configuration; the name of its table.
    pub name: Arc<str>,
    /// What it computes.
    pub aggregator: Arc<dyn Aggregator>,
}

/// What keys are measured by.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Packets.
    Packets,
    /// Bytes on the wire.
    #[default]
    Bytes,
}

impl Metric {
    /// The one of two numbers that is measured by.
    pub fn of<T>(self, packets: T, bytes: T) -> T {
        match self {
            Self::Packets => packets,
            Self::Bytes => bytes,
        }
    }

    /// What a column of it holds.
    pub fn kind(self) -> ValueKind {
        self.of(ValueKind::Count, ValueKind::Bytes)
    }
}

/// Rows that one window of a `top_k` or a sketch may have.
pub const MOST_ROWS: usize = 100_000;

/// The fields and measures that options may name, and the plan of all tasks of a run.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Fields by what configuration calls them, in the order in which they are told.
    pub fields: Vec<&'static Field>,
    /// Measures.
    pub measures: Vec<&'static Measure>,
    /// Where extra fields lie. Clones share it.
    pub plan: Plan,
}

impl Default for Vocabulary {
    /// What ships, for tasks that share nothing with those of another vocabulary.
    fn default() -> Self {
        Self { fields: FIELDS.to_vec(), measures: MEASURES.to_vec(), plan: Plan::default() }
    }
}

/// The options of one task as they were configured, all but its name and type.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// By their names.
    pub values: BTreeMap<String, serde_json::Value>,
    /// What they may name.
    pub vocabulary: Vocabulary,
}

impl From<BTreeMap<String, serde_json::Value>> for Options {
    fn from(values: BTreeMap<String, serde_json::Value>) -> Self {
        Self { values, vocabulary: Vocabulary::default() }
    }
}

/// Options that an aggregator refuses.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct OptionsError {
    /// The option that is wrong, where it is one.
    pub key: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Options {
    /// Reads the options into the aggregator's own struct, which should deny unknown fields.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, OptionsError> {
        let object = |options: &BTreeMap<String, serde_json::Value>| {
            serde_json::Value::Object(options.clone().into_iter().collect())
        };
        serde_json::from_value(object(&self.values)).map_err(|error: serde_json::Error| {
            let message = error.to_string();
            if message.starts_with("missing field") {
                return OptionsError { key: None, message };
            }
            if let Some(key) = self.values.keys().find(|key| message.contains(&format!("field `{key}`"))) {
                return OptionsError { key: Some(key.clone()), message };
            }
            // serde does not say which value has the wrong type: it is the one without which the error is another.
            let culprit = self.values.keys().find(|key| {
                let mut others = self.values.clone();
                others.remove(*key);
                let other = serde_json::from_value::<T>(object(&others));
                other.err().is_none_or(|other| other.to_string() != message)
            });
            match culprit {
                Some(key) => self.refuse(key, message),
                None => OptionsError { key: None, message },
            }
        })
    }

    /// Reads the names of a key's fields.
    pub fn fields(&self, key: &str, names: &[String]) -> Result<KeyFields, OptionsError> {
        let Vocabulary { fields, plan, .. } = &self.vocabulary;
        KeyFields::parse_with(names, fields, plan).map_err(|error| self.refuse(key, error))
    }

    /// Reads the names of a key's fields, none of which may be extra: for tasks whose state holds base keys only.
    pub fn base_fields(&self, key: &str, names: &[String]) -> Result<KeyFields, OptionsError> {
        let fields = self.fields(key, names)?;
        match fields.extra() {
            Some(extra) => Err(self.refuse(
                key,
                format!(
                    "a sketch has no room for `{}`; it can have addresses, prefixes, ports, Protocol, TCPFlags, VLAN and \
                     IPVersion (tasks of type exact, top_k, fan_out, new_keys and changes can have all fields)",
                    extra.name
                ),
            )),
            None => Ok(fields),
        }
    }

    /// Reads the names of measures.
    pub fn measures(&self, key: &str, names: &[String]) -> Result<Vec<&'static Measure>, OptionsError> {
        measure::parse(names, &self.vocabulary.measures).map_err(|error| self.refuse(key, error))
    }

    /// Checks a number of rows, 1 to [`MOST_ROWS`].
    pub fn check_rows(&self, key: &str, rows: usize) -> Result<(), OptionsError> {
        match rows {
            1..=MOST_ROWS => Ok(()),
            _ => Err(self.refuse(key, format!("{rows} rows; 1 to {MOST_ROWS}"))),
        }
    }

    /// The error that an option's value is wrong.
    pub fn refuse(&self, key: &str, why: impl Display) -> OptionsError {
        OptionsError { key: Some(key.to_owned()), message: format!("{key}: {why}") }
    }
}

/// Makes an aggregator from its options.
pub type Constructor = fn(&Options) -> Result<Box<dyn Aggregator>, OptionsError>;

/// What a program knows: aggregators, by the `type` that configuration names, fields and measures.
#[derive(Clone, Debug)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Constructor>,
    fields: Vec<&'static Field>,
    measures: Vec<&'static Measure>,
}

impl Default for Registry {
    /// The aggregators that ship: to add one, write its file and add its line.
    fn default() -> Self {
        let kinds = BTreeMap::from([
            ("changes", changes::from_options as Constructor),
            ("count_min", count_min::from_options),
            ("exact", exact::from_options),
            ("fan_out", fan_out::from_options),
            ("hll", hll::from_options),
            ("new_keys", new_keys::from_options),
            ("quantiles", quantiles::from_options),
            ("top_k", top_k::from_options),
        ]);
        Self { kinds, fields: FIELDS.to_vec(), measures: MEASURES.to_vec() }
    }
}

impl Registry {
    /// Adds an aggregator from another crate; one of the same type name is replaced.
    pub fn with(mut self, kind: &'static str, constructor: Constructor) -> Self {
        self.kinds.insert(kind, constructor);
        self
    }

    /// Adds a field from another crate; one of the same name is replaced.
    pub fn with_field(mut self, field: &'static Field) -> Self {
        self.fields.retain(|known| *known != field);
        self.fields.push(field);
        self
    }

    /// Adds a measure from another crate; one of the same name is replaced.
    pub fn with_measure(mut self, measure: &'static Measure) -> Self {
        self.measures.retain(|known| *known != measure);
        self.measures.push(measure);
        self
    }

    /// What options may name, with a plan of its own: for the tasks of a run.
    pub fn vocabulary(&self) -> Vocabulary {
        Vocabulary { fields: self.fields.clone(), measures: self.measures.clone(), plan: Plan::default() }
    }

    /// The known type names, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.kinds.keys().copied()
    }

    /// The constructor of a type.
    pub fn get(&self, kind: &str) -> Option<Constructor> {
        self.kinds.get(kind).copied()
    }
}
