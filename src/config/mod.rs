//! The configuration file: what it may say, what it means where it is silent, and where a mistake is.
//!
//! Every error names file, line, column and what would be right; all mistakes of a file are told at once. The own
//! options of a task, an input or a writer are read by what they are for. A value from the environment is in no
//! message: what is wrong with a file that has some is told as it is found in the text with the references.

mod alerts;
pub mod fields;
pub mod http;
mod inputs;
pub mod nats;
mod resolved;
mod section;
mod tree;
pub mod writers;

use crate::bus::Settings;
use crate::intake::registry::{self, InputConfig, InputRegistry};
use crate::interpolate::Filling;
pub use crate::options::size;
use crate::options::{self, TypeKeys};
use crate::sinks::registry::{SHIPPED_KEYS, WriterRegistry};
use dataflows::aggregator::{Options, OptionsError, Registry, Task, Vocabulary};
use dataflows::field::{Field, Plan};
use dataflows::window::Windowing;
pub use dataflows::window::duration;
use section::{Place, Section, unknown_key};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
pub use tree::Location;
use tree::{Node, Slip, Spanned, Tree};

/// The shipped configuration, used where there is no file.
pub const SHIPPED: &str = include_str!("../../config.yaml");

/// Its name in errors.
pub const BUILT_IN: &str = "built-in config.yaml";

/// Worker threads that one process may have. Each has a channel to each other one, for every task.
pub const MOST_WORKERS: usize = 256;

/// Bytes of the name of a task or writer: with an ending it is the name of a file, of which there are 255 at most.
const MAX_NAME: usize = 200;

/// The sections, and the key `fields` beside them.
const SECTIONS: &[&str] =
    &["nats", "inputs", fields::KEY, "cluster", "aggregator", "writers", "alerts", "http"];
const AGGREGATOR_KEYS: &[&str] = &["num_workers", "window", "allowed_lateness", "tasks"];
const CLUSTER_KEYS: &[&str] = &["processes", "process", "hostfile", "wait"];

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{file}:{line}:{column}: {message}")]
    Wrong {
        /// The file, as it was named.
        file: String,
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Several things are, a line each.
    #[error("{}", .0.iter().map(Self::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Self>),
    /// A file that nobody has named.
    #[error("{0}\n{file}: read because no -c names a configuration; if it belongs to another program, name one with -c", file = .1.display())]
    Unnamed(Box<Self>, PathBuf),
}

/// The types that a configuration may name.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// Types of tasks.
    pub aggregators: Registry,
    /// Types of writers.
    pub writers: WriterRegistry,
    /// Types of inputs.
    pub inputs: InputRegistry,
}

/// A configuration that was read and checked.
pub struct Config {
    /// Worker threads; 0 is one a core.
    pub workers: usize,
    /// How event time is cut, where no flag says otherwise.
    pub windowing: Windowing,
    /// How the file says that, unless it is silent or the built-in one.
    pub window_text: Option<String>,
    /// How long a window stays open behind the watermark.
    pub allowed_lateness: Duration,
    /// What to compute; at least one, names unique.
    pub tasks: Vec<Task>,
    /// Where extra fields lie that the tasks ask for.
    pub plan: Plan,
    /// What is read, where the file says so and no flag names another.
    pub input: Option<InputConfig>,
    /// Where snapshots go; at least one.
    pub writers: Vec<writers::WriterConfig>,
    /// Where a running engine can be asked.
    pub http: http::Http,
    /// What alerts are raised for, and where they go.
    pub alerts: crate::alerts::Settings,
    /// The bus.
    pub nats: Settings,
    /// The cluster, where the configuration names one.
    pub cluster: ClusterSection,
    /// The tasks as they are written, for comparison: a name and options each.
    pub task_texts: Vec<String>,
    /// The rules as they are written.
    pub rule_texts: Vec<String>,
}

/// What a probe reads of a configuration.
pub struct ProbeConfig {
    /// The bus.
    pub nats: Settings,
    /// The fields that are sent beside what every packet has.
    pub fields: Vec<&'static Field>,
}

/// The `cluster` section: what flags and environment do not say.
#[derive(Clone, Debug, Default)]
pub struct ClusterSection {
    /// How many processes.
    pub processes: Option<usize>,
    /// Which of them this one is.
    pub process: Option<usize>,
    /// Where they listen.
    pub hostfile: Option<PathBuf>,
    /// How long to wait for the others.
    pub patience: Option<Duration>,
}

/// A task, an input or a writer: a type, and options that only the type knows.
type Entry = BTreeMap<String, Spanned<serde_json::Value>>;

/// An option of a section that is text.
type Text = Option<Spanned<String>>;

/// Looks a variable of the environment up.
type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads a text with this function: the configuration, or all that is wrong with it.
fn read_with<T>(
    (text, file): (&str, &str),
    variable: Variable<'_>,
    read: impl Fn(&Place<'_>, &Node) -> Option<T>,
) -> Result<T, ConfigError> {
    let told = |slips: Vec<Slip>| {
        let wrong = |Slip { at: Location { line, column }, message }| ConfigError::Wrong {
            file: file.to_owned(),
            line,
            column,
            message,
        };
        let mut wrongs: Vec<ConfigError> = slips.into_iter().map(wrong).collect();
        if wrongs.len() == 1 { wrongs.remove(0) } else { ConfigError::Several(wrongs) }
    };
    let tree = Tree::read(text).map_err(|slip| told(vec![slip]))?;
    // What the environment gives is in no message.
    let values = RefCell::new(Vec::new());
    let recorded = |name: &str| {
        let value = variable(name);
        values.borrow_mut().extend(value.clone().filter(|value| !value.is_empty()));
        value
    };
    let once = |filling: &Filling<'_>| {
        let (root, slips) = tree.filled(filling);
        let shows_references = matches!(filling, Filling::References);
        let home = variable("HOME");
        let place = Place { file, home, shows_references, slips: slips.into(), ..Place::default() };
        let found = read(&place, &root);
        let mut slips = place.slips.into_inner();
        // A key that stands for several options may be wrong in each.
        slips.sort_by_key(|slip| slip.at);
        slips.dedup_by(|left, right| left.at == right.at && left.message == right.message);
        (found, slips)
    };
    let (found, slips) = once(&Filling::Values(&recorded));
    match found {
        Some(found) if slips.is_empty() => Ok(found),
        _ => Err(told(without_values(text, slips, &values.borrow(), || once(&Filling::References).1))),
    }
}

/// What is wrong with a text, told of the references in it instead of their values.
fn without_values(
    text: &str,
    slips: Vec<Slip>,
    values: &[String],
    shown: impl FnOnce() -> Vec<Slip>,
) -> Vec<Slip> {
    if values.is_empty() {
        return slips;
    }
    let mut shown = shown();
    let told = |Slip { at, message }| {
        if message.contains("the environment variable `") || message.contains("its value holds") {
            return Slip { at, message };
        }
        if let Some(same) = shown.iter().position(|shown| shown.at == at) {
            return shown.remove(same);
        }
        if !values.iter().any(|value| message.contains(value.as_str())) {
            return Slip { at, message };
        }
        let line = usize::try_from(at.line).ok().and_then(|line| text.lines().nth(line.checked_sub(1)?));
        let names =
            line.unwrap_or_default().split("${").skip(1).filter_map(|behind| behind.split([':', '}']).next());
        let names: Vec<String> = names.map(|name| format!("${{{name}}}")).collect();
        let what = if names.is_empty() { "a variable of the environment".into() } else { names.join(", ") };
        Slip { at, message: format!("the value of {what} is not valid here") }
    };
    slips.into_iter().map(told).collect()
}

impl Config {
    /// Reads a configuration file.
    pub fn load(path: &Path, registries: &Registries) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?, &path.display().to_string(), registries, environment)
    }

    /// Reads a configuration from text; `file` names it in errors and `variable` looks `${NAME}` up.
    pub fn parse(
        text: &str,
        file: &str,
        registries: &Registries,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let shipped = Tree::read(SHIPPED).map(|tree| tree.filled(&Filling::References).0).ok();
        let read = |place: &Place<'_>, root: &Node| Self::read(place, (root, shipped.as_ref()), registries);
        let mut config = read_with((text, file), &variable, read)?;
        config.window_text = config.window_text.filter(|_| file != BUILT_IN);
        Ok(config)
    }

    /// Reads all sections; what is wrong is noted, and `None` where nothing can stand in for it.
    fn read(
        place: &Place<'_>,
        (root, shipped): (&Node, Option<&Node>),
        registries: &Registries,
    ) -> Option<Self> {
        let file = Section::new(place, "", Some(root), SECTIONS);
        let section = file.section("aggregator", AGGREGATOR_KEYS);
        let window = section.text("window", "a duration such as 60s, or `all`");
        let windowing = window.as_ref().map_or(Some(Windowing::Every(60_000_000_000)), |window| {
            place.kept(
                windowing(&window.value)
                    .map_err(|why| place.wrong(window.defined, format!("aggregator.window: {why}"))),
            )
        });
        let allowed_lateness = time(&section, "allowed_lateness", "5s");
        let workers = section.number::<usize>("num_workers");
        if let Some(workers) = workers.as_ref().filter(|workers| workers.value > MOST_WORKERS) {
            let message =
                format!("aggregator.num_workers: at most {MOST_WORKERS} in a process; 0 is one per core");
            place.note(workers.defined, message);
        }
        let shipped = Section::new(place, "", shipped, SECTIONS);
        let entries = section.entries("tasks");
        let entries = entries.or_else(|| shipped.section("aggregator", AGGREGATOR_KEYS).entries("tasks"))?;
        let vocabulary = registries.aggregators.vocabulary();
        let tasks = tasks(place, &entries, &registries.aggregators, &vocabulary);
        place.lacks_tasks.set(tasks.len() < entries.value.len());
        let nats = nats::settings(&nats::section(&file));
        // For probes; that these names are right is told by whoever reads the file.
        fields::fields(&file);
        let input = inputs::input(place, &file, (&registries.inputs, nats.as_ref()));
        let cluster = cluster(&file.section("cluster", CLUSTER_KEYS));
        let written = file.entries("writers").or_else(|| shipped.entries("writers"))?;
        let writers = writers::writers(place, &written, (&registries.writers, &tasks));
        let text = |entry: &Spanned<Entry>| {
            let options: BTreeMap<_, _> =
                entry.value.iter().map(|(key, value)| (key, &value.value)).collect();
            serde_json::to_string(&options).unwrap_or_default()
        };
        let task_texts = entries.value.iter().map(text).collect();
        let alerts = file.section("alerts", alerts::KEYS);
        let rules = alerts.entries("rules").map(|rules| rules.value).unwrap_or_default();
        let rule_texts = rules.iter().map(text).collect();
        let alerts = alerts::settings(&alerts, &rules, &tasks);
        let http = http::settings(&file.section("http", http::KEYS));
        Some(Self {
            workers: workers.map_or(0, |workers| workers.value),
            windowing: windowing?,
            plan: vocabulary.plan,
            window_text: window.map(|window| window.value),
            allowed_lateness: allowed_lateness?,
            tasks,
            input,
            writers,
            http: http?,
            alerts,
            nats: nats?,
            cluster,
            task_texts,
            rule_texts,
        })
    }

    /// Reads what a probe needs of a file or of the built-in text; of the other sections only that their keys are known.
    pub fn load_probe(path: Option<&Path>) -> Result<ProbeConfig, ConfigError> {
        let (text, file) = match path {
            None => (SHIPPED.to_owned(), BUILT_IN.to_owned()),
            Some(path) => (read(path)?, path.display().to_string()),
        };
        read_with((&text, &file), &environment, |place, root| {
            let file = Section::new(place, "", Some(root), SECTIONS);
            file.section("aggregator", AGGREGATOR_KEYS).entries("tasks");
            file.section("cluster", CLUSTER_KEYS);
            file.section("http", http::KEYS);
            let alerts = file.section("alerts", alerts::KEYS);
            alerts::check_keys(place, &alerts);
            writers::check_keys(place, &file, &SHIPPED_KEYS);
            inputs::check_keys(place, &file, &registry::SHIPPED_KEYS);
            let (nats, fields) = (nats::settings(&nats::section(&file)), fields::fields(&file));
            Some(ProbeConfig { nats: nats?, fields: fields? })
        })
    }
}

/// What a variable of the environment holds.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let bytes = std::fs::read(path).map_err(|error| ConfigError::Io { path: path.to_owned(), error })?;
    String::from_utf8(bytes).map_err(|error| {
        let good =
            String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
        let line = good.split('\n').count() as u64;
        let column = good.rsplit('\n').next().unwrap_or_default().chars().count() as u64 + 1;
        let message = "this character is not UTF-8; save the file as UTF-8".to_owned();
        ConfigError::Wrong { file: path.display().to_string(), line, column, message }
    })
}

/// A duration of a section; `None` where it is wrong, which is noted.
fn time(section: &Section<'_>, key: &str, default: &str) -> Option<Duration> {
    let place = section.place;
    let text = section.text(key, "a duration such as 5s");
    let (value, at) =
        text.map_or((default.to_owned(), Location::default()), |text| (text.value, text.defined));
    place.kept(duration(&value).map_err(|why| place.wrong(at, format!("{}{key}: {why}", section.name()))))
}

fn cluster(section: &Section<'_>) -> ClusterSection {
    let is_waiting = section.has("wait");
    ClusterSection {
        processes: section.number("processes").map(|processes| processes.value),
        process: section.number("process").map(|process| process.value),
        hostfile: section.path("hostfile").map(|hostfile| hostfile.value),
        patience: is_waiting.then(|| time(section, "wait", "60s")).flatten(),
    }
}

/// The tasks that are right; what is wrong with others is noted.
fn tasks(
    place: &Place<'_>,
    entries: &Spanned<Vec<Spanned<Entry>>>,
    registry: &Registry,
    vocabulary: &Vocabulary,
) -> Vec<Task> {
    let mut tasks: Vec<Task> = Vec::new();
    for entry in &entries.value {
        tasks.extend(place.kept(task(place, entry, (registry, vocabulary), &tasks)));
    }
    if entries.value.is_empty() {
        let why = "aggregator.tasks: name at least one task, or leave the key out for the six of the shipped configuration";
        place.note(entries.defined, why);
    }
    tasks
}

fn task(
    place: &Place<'_>,
    entry: &Spanned<Entry>,
    (registry, vocabulary): (&Registry, &Vocabulary),
    tasks: &[Task],
) -> Result<Task, ConfigError> {
    let at = entry.defined;
    let (name, name_at) = text_option(place, &entry.value, at, "name", "a task")?;
    check_name(place, &name, "task").map_err(|why| place.wrong(name_at, why))?;
    if tasks.iter().any(|earlier| *earlier.name == *name) {
        return Err(place.wrong(name_at, format!("two tasks are named `{name}`; names must differ")));
    }
    let (kind, kind_at) = text_option(place, &entry.value, at, "type", "a task")?;
    let Some(constructor) = registry.get(&kind) else {
        let known: Vec<_> = registry.kinds().collect();
        let message = format!("task `{name}`: unknown type `{kind}`; one of {}", known.join(", "));
        return Err(place.wrong(kind_at, message));
    };
    let aggregator = constructor(&Options {
        vocabulary: vocabulary.clone(),
        ..own_options(&entry.value, &["name", "type"])
    })
    .map_err(|error| place.wrong(place_of(entry, &error), format!("task `{name}`: {error}")))?;
    Ok(Task { name: name.into(), aggregator: Arc::from(aggregator) })
}

/// Whether a name can be that of a file; a reference in place of its value may be one.
fn check_name(place: &Place<'_>, name: &str, what: &str) -> Result<(), String> {
    if place.shows_references && name.contains("${") {
        return Ok(());
    }
    let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(format!(
            "{what} name `{name}`: use letters, digits, `_` and `-`, it becomes a file name"
        ));
    }
    match name.len() > MAX_NAME {
        true => Err(format!(
            "{what} name of {} characters: at most {MAX_NAME}, it becomes a file name",
            name.len()
        )),
        false => Ok(()),
    }
}

/// The options of an entry but for some that are read here.
fn own_options(entry: &Entry, without: &[&str]) -> Options {
    let own = entry.iter().filter(|(key, _)| !without.contains(&key.as_str()));
    let values = own.map(|(key, value)| (key.clone(), value.value.clone())).collect::<BTreeMap<_, _>>();
    values.into()
}

/// The type of an entry of `what`, such as a writer: one of these, and all of whose keys are known.
fn kind_of(
    place: &Place<'_>,
    entry: &Spanned<Entry>,
    (what, common): (&str, &[&str]),
    kinds: &[TypeKeys],
) -> Result<&'static str, ConfigError> {
    let article = if what.starts_with('i') { "an" } else { "a" };
    let (name, at) = text_option(place, &entry.value, entry.defined, "type", &format!("{article} {what}"))?;
    let Some((name, own)) = kinds.iter().find(|(kind, _)| *kind == name) else {
        let kinds: Vec<_> = kinds.iter().map(|(kind, _)| *kind).collect();
        let message = format!("unknown {what} type `{name}`; one of {}", kinds.join(", "));
        return Err(place.wrong(at, message));
    };
    let known: Vec<_> = common.iter().chain(*own).copied().collect();
    match entry.value.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        Some((key, value)) => {
            Err(place.wrong(value.defined, format!("{name} {what}: {}", unknown_key(key, &known))))
        }
        None => Ok(name),
    }
}

/// Where the option stands that an error names, else the entry.
fn place_of(entry: &Spanned<Entry>, error: &OptionsError) -> Location {
    let option = error.key.as_ref().and_then(|key| entry.value.get(key));
    option.map_or(entry.defined, |value| value.defined)
}

/// A secret that stands there (from the environment) or in a file, and where that was said. A mistake is led by `section`, or
/// by `before` and the key.
fn secret(
    place: &Place<'_>,
    (section, before): (&str, &str),
    key: &str,
    (value, file): (&Text, &Text),
) -> Result<Option<(String, Location)>, ConfigError> {
    match (value, file) {
        (None, None) => Ok(None),
        (Some(value), None) => Ok(Some((value.value.clone(), value.defined))),
        (Some(_), Some(file)) => {
            let message = format!("{section}: give `{key}` or `{key}_file`, not both");
            Err(place.wrong(file.defined, message))
        }
        (None, Some(file)) => {
            let path = place.path(&file.value, file.defined)?;
            let text = std::fs::read_to_string(path).map_err(|error| {
                place.wrong(file.defined, format!("{before}{key}_file: {}: {error}", file.value))
            })?;
            Ok(Some((text.trim_end().to_owned(), file.defined)))
        }
    }
}

/// An option that every entry needs, as text, and where it stands.
fn text_option(
    place: &Place<'_>,
    entry: &Entry,
    at: Location,
    key: &str,
    what: &str,
) -> Result<(String, Location), ConfigError> {
    let value = entry.get(key);
    let at = value.map_or(at, |value| value.defined);
    let text = options::text(value.map(|value| &value.value), key, what);
    text.map(|text| (text, at)).map_err(|why| place.wrong(at, why))
}

/// Reads `all` or a duration.
pub fn windowing(text: &str) -> Result<Windowing, String> {
    if text == "all" {
        return Ok(Windowing::All);
    }
    Windowing::every(duration(text)?).ok_or_else(|| format!("`{text}` is no length of a window"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "c.yaml", &Registries::default(), |name| (name == "SET").then(|| "per_x".into()))
            .map_err(|error| error.to_string())
    }

    fn refused(text: &str) -> String {
        parse(text).err().unwrap_or_else(|| panic!("accepted: {text}"))
    }

    const WRITERS: &str = "writers:\n  - {type: csv, path: ./x}\n";

    #[test]
    fn the_shipped_configuration_is_the_contract_s() {
        let config = parse(SHIPPED).expect("the shipped file");
        let names: Vec<_> = config.tasks.iter().map(|task| &*task.name).collect();
        let expected =
            ["per_src_ip", "per_dst_ip", "per_src_port", "per_dst_port", "per_protocol", "per_five_tuple"];
        assert_eq!(names, expected);
        assert_eq!(config.windowing, Windowing::Every(60_000_000_000));
        assert_eq!(config.allowed_lateness, Duration::from_secs(5));
        let written: Vec<_> = config.writers.iter().map(|writer| writer.target.describe()).collect();
        assert_eq!((config.writers[0].kind, written), ("csv", vec!["./snapshots".to_owned()]));
    }

    #[test]
    fn the_fields_of_a_probe_are_a_list_of_known_names_for_every_program() {
        let with = |fields: &str| format!("fields: {fields}\n{WRITERS}");
        parse(&with("[DSCP, SrcMAC, PayloadBytes]")).map(drop).expect("names of fields");
        parse(&with("[]")).map(drop).expect("none");
        for (fields, says) in [
            ("DSCP", "c.yaml:1:9: fields: a list belongs here; write fields: [DSCP]"),
            ("[DSCP, SrcIP]", "c.yaml:1:16: fields: `SrcIP` comes with every packet"),
            ("[{DSCP: 1}]", "c.yaml:1:10: fields: the name of a field belongs here"),
            ("", "fields has no value"),
            ("[Dscp]", "did you mean `DSCP`?"),
        ] {
            let error = refused(&with(fields));
            assert!(error.contains(says), "{fields}\n-> {error}");
        }
    }

    #[test]
    fn mistakes_are_refused_with_their_place_and_what_would_be_right() {
        let with_task = |task: &str| format!("aggregator:\n  window: 60s\n  tasks:\n    - {task}\n{WRITERS}");
        for (text, place, says) in [
            (format!("aggregator:\n  windw: 60s\n  tasks: []\n{WRITERS}"), "c.yaml:2:", "windw"),
            (format!("aggregator:\n  window: 60\n  tasks: []\n{WRITERS}"), "c.yaml:2:", "60s"),
            (format!("aggregator:\n  window: 60s\n  tasks: []\n{WRITERS}"), "c.yaml:3:", "at least one"),
            (
                with_task("{name: a, type: exakt, key_fields: [SrcIP]}"),
                "c.yaml:4:",
                "one of changes, count_min, exact, fan_out, hll, new_keys, quantiles, top_k",
            ),
            (with_task("{name: a, type: exact, key_fields: [SrcIp]}"), "c.yaml:4:", "SrcIP, DstIP"),
            (with_task("{name: a, type: exact, key_fields: []}"), "c.yaml:4:", "at least one field"),
            (
                with_task("{name: a, type: exact, key_fields: [SrcIP], k: 3}"),
                "c.yaml:4:",
                "unknown field `k`",
            ),
            (with_task("{name: a, type: exact}"), "c.yaml:4:", "key_fields"),
            (with_task("{name: a, type: exact, key_fields: SrcIP}"), "c.yaml:4:", "key_fields"),
            (
                with_task("{name: a, type: exact, key_fields: [SrcIP]}").replace("./x", "''"),
                "c.yaml:6:",
                "empty",
            ),
            (
                format!("aggregator:\n  num_workers: 2000\n  window: 60s\n  tasks: []\n{WRITERS}"),
                "c.yaml:2:",
                "at most 256",
            ),
            (with_task("{type: exact, key_fields: [SrcIP]}"), "c.yaml:4:", "`name`"),
            (with_task("{name: ../a, type: exact, key_fields: [SrcIP]}"), "c.yaml:4:", "file name"),
            (
                with_task(
                    "{name: a, type: exact, key_fields: [SrcIP]}\n    - {name: a, type: exact, key_fields: [DstIP]}",
                ),
                "c.yaml:5:",
                "two tasks",
            ),
            (
                with_task("{name: a, type: exact, key_fields: [SrcIP]}").replace("csv", "cvs"),
                "c.yaml:6:",
                "one of csv",
            ),
            ("aggregator: [".into(), "c.yaml:", ""),
            ("".into(), "c.yaml:", ""),
        ] {
            let error = refused(&text);
            assert!(error.starts_with(place) && error.contains(says), "{text}\n-> {error}");
        }
    }

    #[test]
    fn variables_are_put_in() {
        let text = format!(
            "aggregator:\n  window: 60s\n  tasks: [{{name: \"${{SET}}\", type: exact, key_fields: [SrcIP]}}]\n{WRITERS}"
        );
        assert_eq!(&*parse(&text).expect("a configuration").tasks[0].name, "per_x");
        let error = refused(&text.replace("SET", "UNSET"));
        assert!(error.starts_with("c.yaml:3:") && error.contains("UNSET"), "{error}");
    }

    #[test]
    fn durations_are_exact() {
        for (text, nanos) in
            [("100ms", 100_000_000), ("1.5m", 90_000_000_000), ("1d", 86_400_000_000_000), ("7ns", 7)]
        {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)));
        }
        for bad in
            ["", "s", "1", "-1s", "1x", "1.s", ".5s", "1e3s", "99999999999999d", "1 s", "0.0000000001s"]
        {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(windowing("0s").is_err());
    }
}
