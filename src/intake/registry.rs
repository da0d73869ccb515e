//! What an input is to the configuration and the programs, and the list of those that ship.
//!
//! A kind of input is one file, which owns its options, their check, how it is tried and how it is opened. What is special
//! about an input, it says of itself ([`Source`], [`Input`]): the engine asks for no kind. Capture files are not here: the
//! analyser reads them, and takes them from its arguments.

use super::Intake;
use super::log::Resume;
use crate::bus::{BusError, Settings};
use crate::capture::live::LiveError;
use crate::options::{Kind, Kinds, OwnOptions, TypeKeys, type_keys};
use dataflows::aggregator::OptionsError;
use dataflows::field::Extension;
use dataflows::window::Windowing;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The inputs that ship: to add one, write its file and add its line.
const SHIPPED: [InputKind; 2] = [super::nats::KIND, super::interface::KIND];

/// The options of those that ship, for a program that has no such inputs: it does not link them for that.
pub const SHIPPED_KEYS: [TypeKeys; SHIPPED.len()] = type_keys(&SHIPPED);

/// Reads the options of an entry; the `nats` section is there for those that use it.
pub type Read = fn(&OwnOptions, &Settings) -> Result<Arc<dyn Source>, OptionsError>;
/// A kind of input.
pub type InputKind = Kind<Read>;
/// The inputs that a program knows.
pub type InputRegistry = Kinds<Read>;

impl Default for InputRegistry {
    /// The inputs that ship.
    fn default() -> Self {
        Self::new(&SHIPPED)
    }
}

/// An input that a program is to read: its type, and its options read.
#[derive(Clone)]
pub struct InputConfig {
    /// Its `type`.
    pub kind: &'static str,
    /// Where it reads from.
    pub source: Arc<dyn Source>,
}

impl InputConfig {
    /// The input as it runs, secrets hidden.
    pub fn resolved(&self) -> Value {
        let mut resolved = serde_json::json!({"type": self.kind});
        if let (Some(resolved), Value::Object(own)) = (resolved.as_object_mut(), self.source.options()) {
            resolved.extend(own);
        }
        resolved
    }
}

/// Where an input reads from: its options, read and checked.
pub trait Source: Send + Sync {
    /// In a few words what kind of input it is; all processes of a cluster have to have the same here.
    fn describe(&self) -> String;

    /// Its own options as an object, every default put in. Secrets hide themselves ([`crate::options::Secret`]).
    fn options(&self) -> Value;

    /// Asks whether it could be read, for `--check`, and changes nothing.
    fn check(&self, opening: &Opening<'_>) -> Result<(), InputError>;

    /// Opens it for a run. From now on it may receive, and what it receives waits for the workers.
    fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Input>, InputError>;

    /// Whether it is a durable log: then commits are recorded, and a run goes on where an earlier one has ended.
    fn is_log(&self) -> bool {
        false
    }

    /// What else all processes of a cluster have to agree on, and all runs over a durable log: names with their values.
    fn settings(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// An input that is open.
pub trait Input: Send + Sync {
    /// What feeds the workers.
    fn intake(self: Arc<Self>) -> Arc<dyn Intake>;

    /// What it does, in a line without secrets, such as "capturing on eth0 with 2 rings".
    fn describe(&self) -> String;

    /// Why it ended, where it has neither come to its end nor been stopped: the run ends with status 1 then.
    fn failure(&self) -> Option<String> {
        None
    }

    /// Whether it came to its own end: what goes on for ever never does.
    fn has_ended(&self) -> bool {
        false
    }

    /// At the very end, waits a moment until the other side has heard what is done with.
    fn settle(&self) {}

    /// Why nothing comes for now, where it knows: the engine is not ready then.
    fn away(&self) -> Option<String> {
        None
    }

    /// The identity of the durable log that it reads; empty without.
    fn identity(&self) -> &str {
        ""
    }

    /// How often it may be asked what it has lost.
    fn look_every(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// What an input is tried and opened with.
pub struct Opening<'a> {
    /// The program, as a server may be told.
    pub program: &'static str,
    /// How event time is cut.
    pub windowing: Windowing,
    /// Nanoseconds that a window stays open behind the watermark.
    pub lateness: u64,
    /// The extra fields that tasks ask for.
    pub extension: &'a Extension,
    /// The number of this process, and how many there are in its cluster.
    pub process: usize,
    /// Processes of the cluster, at least 1.
    pub processes: usize,
    /// Workers of each process, at least 1.
    pub workers: usize,
    /// The same number for all processes of a cluster, and for no other run.
    pub generation: u64,
    /// When the first of the runs began that this one goes on from, nanoseconds since the Unix epoch; its own beginning
    /// without any.
    pub began: u64,
    /// What earlier runs have recorded of the durable log.
    pub resume: Resume,
    /// The identity of the log that they have read; empty without.
    pub identity: &'a str,
}

/// An input that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be opened at all, or not as it is configured.
    #[error("{0}")]
    Wrong(String),
    /// A file or socket cannot be opened.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// The bus cannot be used.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The interface cannot be captured.
    #[error(transparent)]
    Live(#[from] LiveError),
}

impl InputError {
    /// Whether it is found before anything was started: exit status 2, else 1.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Wrong(_) | Self::Io { .. } | Self::Live(_) => true,
            Self::Bus(error) => error.is_usage(),
        }
    }

    /// The system does not open this path.
    pub fn io(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::Io { what, path: path.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Registries};
    use serde_json::json;
    use std::collections::BTreeMap;

    /// Every option of an input that ships.
    fn given(kind: &str) -> Value {
        match kind {
            "nats" => json!({}),
            "interface" => json!({
                "interface": "eth0",
                "filter": "tcp",
                "snaplen": 256,
                "ring_size": "8MiB",
                "promiscuous": false,
            }),
            other => panic!("add the options of `{other}` to this test"),
        }
    }

    #[test]
    fn every_input_shows_the_options_that_it_takes() {
        let nats = Config::parse("aggregator: {}", "c", &Registries::default(), |_| None).expect("one").nats;
        for kind in InputRegistry::default().iter() {
            let given: BTreeMap<String, Value> = serde_json::from_value(given(kind.name)).expect("an object");
            let options = OwnOptions::new(format!("{} input", kind.name), given, None);
            let source =
                (kind.read)(&options, &nats).unwrap_or_else(|error| panic!("{}: {error}", kind.name));
            let options = source.options();
            let shown: Vec<&str> =
                options.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(shown, kind.keys, "{}", kind.name);
            assert!(!source.describe().is_empty());
        }
    }

    #[test]
    fn a_kind_of_the_same_name_takes_the_place_of_one_that_ships() {
        let keys: &[&str] = &["other"];
        let registry = InputRegistry::default().with(InputKind { keys, ..crate::intake::nats::KIND });
        assert_eq!(registry.get("nats").map(|kind| kind.keys), Some(keys));
        assert_eq!(registry.keys().iter().filter(|(name, _)| *name == "nats").count(), 1);
    }
}
