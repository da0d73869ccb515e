//! What an aggregator is, what it may build on, and the list of those that ship.

use crate::block::Block;
use crate::exact::Exact;
use crate::groups::{self, Closed, Packets};
use crate::key::Mask;
use crate::rows::Schema;
use crate::window::Epoch;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::{Scope, Stream};

/// A kind of task: from packets, or from exact groups, to the rows of each window.
pub trait Aggregator: Send + Sync {
    /// The columns of its rows.
    fn schema(&self) -> Arc<Schema>;

    /// The key sets whose exact groups [`Self::build`] will ask for. Shared with all other tasks.
    fn groups(&self) -> Vec<Mask>;

    /// Builds its dataflow on this worker; called once on each worker, in the same order on all.
    ///
    /// The result is the rows in the layout of [`Self::schema`], in any order, at the time of the epoch that closes
    /// them and with the window they belong to, each key on one worker only. A window that comes again replaces the
    /// earlier rows as a whole.
    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block>;
}

/// What aggregators build on, on one worker.
pub struct Flow<'s> {
    scope: Scope<'s, Epoch>,
    packets: Stream<'s, Epoch, Packets>,
    groups: Vec<(Mask, Stream<'s, Epoch, Block>)>,
}

impl<'s> Flow<'s> {
    /// The scope of the dataflow.
    pub fn scope(&self) -> Scope<'s, Epoch> {
        self.scope
    }

    /// The packets that this worker reads, in batches of one window. A batch whose window is earlier than its time
    /// came late.
    pub fn packets(&self) -> Stream<'s, Epoch, Packets> {
        self.packets.clone()
    }

    /// The exact groups of a key set named by [`Aggregator::groups`]: for each window, when its epoch closes, the rows
    /// key, packets, bytes, first and last time of the keys that this worker owns.
    pub fn groups(&self, mask: Mask) -> Stream<'s, Epoch, Block> {
        let built = self.groups.iter().find(|(built, _)| *built == mask);
        built.expect("an aggregator asks for the groups that it named").1.clone()
    }
}

/// Builds all tasks on one worker and returns their sorted rows, each block numbered by its task.
///
/// `late` tells every worker which closed windows an epoch's packets came late for; `closed` brings them back.
pub fn build_tasks<'s>(
    scope: Scope<'s, Epoch>,
    packets: Stream<'s, Epoch, Packets>,
    late: &Stream<'s, Epoch, Block>,
    tasks: &[Task],
    closed: Closed<'_>,
) -> Stream<'s, Epoch, Block> {
    let plan = groups::plan(tasks.iter().flat_map(|task| task.aggregator.groups()));
    let groups = groups::build(scope, &packets, late, &plan, closed);
    let flow = Flow { scope, packets, groups };
    let rows = tasks.iter().enumerate().map(|(number, task)| {
        crate::rows::sorted(task.aggregator.build(&flow), task.aggregator.schema(), number)
    });
    let rows: Vec<_> = rows.collect();
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

/// The options of one task as they were configured, all but its name and type.
#[derive(Clone, Debug, Default)]
pub struct Options(pub BTreeMap<String, serde_json::Value>);

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
        serde_json::from_value(object(&self.0)).map_err(|error: serde_json::Error| {
            let message = error.to_string();
            if let Some(key) = self.0.keys().find(|key| message.contains(&format!("field `{key}`"))) {
                return OptionsError { key: Some(key.clone()), message };
            }
            // serde does not say which value has the wrong type: it is the one without which the error is another.
            let culprit = self.0.keys().find(|key| {
                let mut others = self.0.clone();
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

    /// The error that an option's value is wrong.
    pub fn refuse(&self, key: &str, why: impl Display) -> OptionsError {
        OptionsError { key: Some(key.to_owned()), message: format!("{key}: {why}") }
    }
}

/// Makes an aggregator from its options.
pub type Constructor = fn(&Options) -> Result<Box<dyn Aggregator>, OptionsError>;

/// The aggregators that a program knows, by the `type` that configuration names.
#[derive(Clone, Debug)]
pub struct Registry(BTreeMap<&'static str, Constructor>);

impl Default for Registry {
    /// The aggregators that ship: to add one, write its file and add its line.
    fn default() -> Self {
        Self(BTreeMap::from([
            ("exact", Exact::from_options as Constructor), //
        ]))
    }
}

impl Registry {
    /// Adds an aggregator from another crate; one of the same type name is replaced.
    pub fn with(mut self, kind: &'static str, constructor: Constructor) -> Self {
        self.0.insert(kind, constructor);
        self
    }

    /// The known type names, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.keys().copied()
    }

    /// The constructor of a type.
    pub fn get(&self, kind: &str) -> Option<Constructor> {
        self.0.get(kind).copied()
    }
}
