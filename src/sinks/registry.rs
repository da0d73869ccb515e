//! What a writer is to the configuration and the programs, and the list of those that ship.
//!
//! A kind of writer is one file, which owns its options, their check, how it is tried and how it is opened. The
//! configuration knows only the options that all writers have, and nothing outside of its file asks for its kind: what is
//! special about a writer, it says of itself ([`Target`]).

use super::delivery::Destination;
use super::earlier::Reuse;
use super::outbox::Schemas;
use super::{SinkError, Writer};
use crate::bus::Settings;
use crate::engine::Written;
use crate::options::{Kind, Kinds, OwnOptions, TypeKeys, type_keys};
use crate::state::Manifest;
use crate::warn;
use dataflows::aggregator::OptionsError;
use dataflows::window::Windowing;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long a batch waits for a server that is away ([`Target::gives_up_after`]).
pub const SERVER_AWAY: Duration = Duration::from_secs(60);

/// The writers that ship: to add one, write its file and add its line.
const SHIPPED: [WriterKind; 5] =
    [super::csv::KIND, super::parquet::KIND, super::json::KIND, super::clickhouse::KIND, super::nats::KIND];

/// Those of the writers that ship, for a program that writes nothing: it does not link them for that.
pub const SHIPPED_KEYS: [TypeKeys; SHIPPED.len()] = type_keys(&SHIPPED);

/// Reads the options of an entry.
pub type Read = fn(&OwnOptions) -> Result<Arc<dyn Target>, OptionsError>;
/// A kind of writer.
pub type WriterKind = Kind<Read>;
/// The writers that a program knows.
pub type WriterRegistry = Kinds<Read>;

impl Default for WriterRegistry {
    /// The writers that ship.
    fn default() -> Self {
        Self::new(&SHIPPED)
    }
}

/// Where a writer writes: its options, read and checked.
pub trait Target: Send + Sync {
    /// In a few words, without secrets: the end of the sentence "rows are written to ...".
    fn describe(&self) -> String;

    /// Its own options as an object, every default put in. Secrets hide themselves ([`crate::options::Secret`]). Two
    /// writers of a kind whose options are the same here write to the same place, and are refused.
    fn options(&self) -> Value;

    /// Asks whether it could be written to, for `--check`, and changes nothing.
    fn check(&self, opening: &Opening<'_>) -> Result<(), SinkError>;

    /// Opens it for a run. A server that is away is not an error here: see [`Opening::unless_wrong`].
    fn open(&self, opening: &Opening<'_>) -> Result<Box<dyn Destination>, SinkError>;

    /// Checks the names of the tasks that it is given: they may have to become names of tables or subjects.
    fn check_tasks(&self, _tasks: &[Arc<str>]) -> Result<(), OptionsError> {
        Ok(())
    }

    /// The folder that it writes into: no other writer may.
    fn folder(&self) -> Option<&Path> {
        None
    }

    /// Whether it writes to standard output: nothing else is printed there then.
    fn is_on_stdout(&self) -> bool {
        false
    }

    /// Whether it passes alerts on: rules are evaluated for it then.
    fn hears_alerts(&self) -> bool {
        false
    }

    /// How long a batch tries again where the configuration does not say: a file that cannot be written ends it at once.
    fn gives_up_after(&self) -> Duration {
        Duration::ZERO
    }

    /// The first writer that has this is the record of commits, and is not behind the outbox.
    fn record(&self) -> Option<&dyn Record> {
        None
    }
}

/// A target that can be the record of commits: it is written within the commit, and read back at a restart.
pub trait Record {
    /// Its folder; the records of commits are beside it.
    fn folder(&self) -> &Path;

    /// The same in another folder, which the user has named with `-o`.
    fn moved(&self, folder: &Path) -> Arc<dyn Target>;

    /// Opens it on so many threads.
    fn open_record(&self, threads: usize) -> Result<Box<dyn RecordWriter>, SinkError>;

    /// Reads back what it has written. `counting` is the first task that counts every packet, if any.
    fn reader(&self, windowing: Windowing, counting: Option<Arc<str>>) -> Arc<dyn Written>;
}

/// The record of commits while a run writes it.
pub trait RecordWriter: Writer {
    /// Finishes what `last` has committed, and removes what else a killed run has left. Comes before anything is written.
    fn recover(&mut self, last: Option<&Manifest>) -> Result<(), SinkError>;

    /// What the run does about the windows of an earlier one; comes after [`Self::recover`].
    fn reuse(&mut self, reuse: Reuse) -> Result<(), SinkError>;
}

/// What a writer is tried and opened with.
pub struct Opening<'a> {
    /// The writer's name.
    pub name: &'a str,
    /// The tasks that it is given.
    pub tasks: Schemas,
    /// Threads that may work for it, at least 1.
    pub threads: usize,
    /// Whether what is written has to be there when the machine has gone down.
    pub sync: bool,
    /// The program, as a server may be told.
    pub program: &'static str,
    /// Tells this run, and those that it goes on from, from all others.
    pub began: u64,
    /// The `nats` section.
    pub nats: &'a Settings,
    /// What the run does about the windows of an earlier one.
    pub reuse: Reuse,
}

impl Opening<'_> {
    /// What became of a first try: what is away may come, and is said; what is wrong stays wrong.
    pub fn unless_wrong(&self, tried: Result<(), SinkError>) -> Result<(), SinkError> {
        match tried {
            Err(error) if !error.is_usage() => {
                warn!("writer `{}`: {error}; trying again while running", self.name);
                Ok(())
            }
            tried => tried,
        }
    }

    /// The system gives the writer no threads.
    pub(super) fn no_threads(&self) -> impl Fn(io::Error) -> SinkError + use<> {
        SinkError::io("start threads for", Path::new(self.name))
    }
}

/// Of what tasks have at a server, each with these endings, nothing may have the name of anything else there.
pub(super) fn check_names(
    (kind, what): (&str, &str),
    (own, endings): (&[&str], &[&str]),
    tasks: &[Arc<str>],
) -> Result<(), OptionsError> {
    let mut names: BTreeSet<String> = own.iter().map(|name| (*name).to_owned()).collect();
    for (task, ending) in tasks.iter().flat_map(|task| endings.iter().map(move |ending| (task, ending))) {
        let name = format!("{task}{ending}");
        if names.contains(&name) {
            let message = format!("{kind} writer: two {what} would be named `{name}`; rename task `{task}`");
            return Err(OptionsError { key: Some("tasks".into()), message });
        }
        names.insert(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::csv;
    use serde_json::json;
    use std::collections::BTreeMap;

    /// Options that each shipped writer takes, every one of its keys given unless another excludes it.
    fn given(kind: &str) -> Value {
        match kind {
            "csv" | "parquet" | "jsonl" => json!({"path": "./x"}),
            "clickhouse" => json!({
                "url": "http://h:8123",
                "database": "d",
                "user": "u",
                "password": "hunter2",
                "keep": "1d",
            }),
            "nats" => json!({"subject": "a.b"}),
            other => panic!("add the options of `{other}` to this test"),
        }
    }

    fn read(kind: WriterKind) -> Arc<dyn Target> {
        let given: BTreeMap<String, Value> = serde_json::from_value(given(kind.name)).expect("an object");
        let options = OwnOptions::new(format!("{} writer", kind.name), given, None);
        (kind.read)(&options).unwrap_or_else(|error| panic!("{}: {error}", kind.name))
    }

    #[test]
    fn every_writer_shows_the_options_that_it_takes_and_no_secret() {
        for kind in WriterRegistry::default().iter() {
            let target = read(*kind);
            let options = target.options();
            let shown: Vec<&str> =
                options.as_object().expect("an object").keys().map(String::as_str).collect();
            let taken = kind.keys.iter().filter(|key| !key.ends_with("_file")).copied();
            assert_eq!(shown, taken.collect::<Vec<_>>(), "{}", kind.name);
            let all = format!("{options} {}", target.describe());
            assert!(!all.contains("hunter2"), "{all}");
        }
    }

    #[test]
    fn only_one_kind_that_ships_can_be_the_record() {
        let kinds = WriterRegistry::default();
        let records: Vec<_> =
            kinds.iter().filter(|kind| read(**kind).record().is_some()).map(|kind| kind.name).collect();
        assert_eq!(records, ["csv"]);
    }

    #[test]
    fn a_kind_of_the_same_name_takes_the_place_of_one_that_ships() {
        let keys: &[&str] = &["other"];
        let registry = WriterRegistry::default().with(WriterKind { keys, ..csv::KIND });
        assert_eq!(registry.get("csv").map(|kind| kind.keys), Some(keys));
        assert_eq!(registry.keys().iter().filter(|(name, _)| *name == "csv").count(), 1);
    }
}
