//! The configuration file: what it may say, what it means where it is silent, and where a mistake is.
//!
//! Every error names file, line, column and what would be right. A task's or writer's own options are read by the
//! aggregator or writer that they are for.

mod alerts;
pub mod http;
pub mod nats;
mod resolved;
pub mod writers;

use crate::bus::Settings;
use crate::interpolate::{Interpolated, interpolate};
use dataflows::aggregator::{Options, OptionsError, Registry, Task};
pub use dataflows::window::duration;
use dataflows::window::{Windowing, scaled};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_saphyr::{Location, Spanned};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The shipped configuration, used where there is no file.
pub const SHIPPED: &str = include_str!("../../config.yaml");

/// Its name in errors.
pub const BUILT_IN: &str = "built-in config.yaml";

/// Worker threads that one process may have. Each has a channel to each other one, for every task.
pub const MOST_WORKERS: usize = 256;

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
}

/// A configuration that was read and checked.
pub struct Config {
    /// Worker threads; 0 is one a core.
    pub workers: usize,
    /// How event time is cut, where no flag says otherwise.
    pub windowing: Windowing,
    /// How long a window stays open behind the watermark.
    pub allowed_lateness: Duration,
    /// What to compute; at least one, names unique.
    pub tasks: Vec<Task>,
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

/// The `cluster` section: what flags and environment do not say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// How many processes.
    pub processes: Option<usize>,
    /// Which of them this one is.
    pub process: Option<usize>,
    /// Where they listen.
    pub hostfile: Option<PathBuf>,
    wait: Option<Spanned<String>>,
    /// How long to wait for the others.
    #[serde(skip)]
    pub patience: Option<Duration>,
}

/// A configuration file as a program reads it that only needs the bus: the other sections are not looked into.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BusFile {
    #[serde(default)]
    nats: Option<nats::Section>,
    #[serde(default, rename = "aggregator")]
    _aggregator: IgnoredAny,
    #[serde(default, rename = "writers")]
    _writers: IgnoredAny,
    #[serde(default, rename = "cluster")]
    _cluster: IgnoredAny,
    #[serde(default, rename = "alerts")]
    _alerts: IgnoredAny,
    #[serde(default, rename = "http")]
    _http: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The bus of `ns-probe` and `ns-engine`: one file serves all programs.
    #[serde(default)]
    nats: Option<nats::Section>,
    #[serde(default)]
    cluster: ClusterSection,
    aggregator: AggregatorSection,
    writers: Spanned<Vec<Spanned<Entry>>>,
    #[serde(default)]
    alerts: alerts::Section,
    #[serde(default)]
    http: http::Section,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AggregatorSection {
    #[serde(default)]
    num_workers: Option<Spanned<usize>>,
    window: Spanned<String>,
    #[serde(default = "default_lateness")]
    allowed_lateness: Spanned<String>,
    tasks: Spanned<Vec<Spanned<Entry>>>,
}

fn default_lateness() -> Spanned<String> {
    Spanned { value: "5s".into(), referenced: Location::UNKNOWN, defined: Location::UNKNOWN }
}

/// A task or a writer: a type, and options that only the type knows.
type Entry = BTreeMap<String, Spanned<serde_json::Value>>;

/// A text and its name, to say where in it something is wrong.
struct Place<'a> {
    file: &'a str,
    /// Hides the values that came from the environment.
    interpolated: &'a Interpolated,
}

impl Place<'_> {
    /// Reads the whole text.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let text = &self.interpolated.text;
        let options = serde_saphyr::options! { with_snippet: false };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let at = error.location().unwrap_or(Location::UNKNOWN);
            self.wrong(at, with_key(text, at, &without_location(&error)))
        })
    }

    fn wrong(&self, at: Location, message: impl Display) -> ConfigError {
        let (line, column) = (at.line(), at.column());
        let message = self.interpolated.redact(&message.to_string());
        ConfigError::Wrong { file: self.file.to_owned(), line, column, message }
    }
}

impl Config {
    /// Reads a configuration file.
    pub fn load(path: &Path, registry: &Registry) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?, &path.display().to_string(), registry, environment)
    }

    /// Reads a configuration from text; `file` names it in errors and `variable` looks `${NAME}` up.
    pub fn parse(
        text: &str,
        file: &str,
        registry: &Registry,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let interpolated = interpolated(text, file, variable)?;
        let place = Place { file, interpolated: &interpolated };
        let parsed: File = place.parse()?;
        let section = parsed.aggregator;
        let windowing = windowing(&section.window.value)
            .map_err(|why| place.wrong(section.window.defined, format!("aggregator.window: {why}")))?;
        let allowed_lateness = duration(&section.allowed_lateness.value).map_err(|why| {
            place.wrong(section.allowed_lateness.defined, format!("aggregator.allowed_lateness: {why}"))
        })?;
        let workers = section.num_workers.as_ref().map_or(0, |workers| workers.value);
        if let Some(workers) = section.num_workers.filter(|workers| workers.value > MOST_WORKERS) {
            let message =
                format!("aggregator.num_workers: at most {MOST_WORKERS} in a process; 0 is one a core");
            return Err(place.wrong(workers.defined, message));
        }
        let tasks = tasks(&place, &section.tasks, registry)?;
        let writers = writers::writers(&place, &parsed.writers, &tasks)?;
        let http = http::settings(&place, parsed.http)?;
        let nats = nats::settings(&place, parsed.nats)?;
        let mut cluster = parsed.cluster;
        if let Some(wait) = &cluster.wait {
            let patience = duration(&wait.value)
                .map_err(|why| place.wrong(wait.defined, format!("cluster.wait: {why}")))?;
            cluster.patience = Some(patience);
        }
        let text = |entry: &Spanned<Entry>| {
            let options: BTreeMap<_, _> =
                entry.value.iter().map(|(key, value)| (key, &value.value)).collect();
            serde_json::to_string(&options).unwrap_or_default()
        };
        let task_texts = section.tasks.value.iter().map(text).collect();
        let rule_texts = parsed.alerts.rules.iter().flatten().map(text).collect();
        let alerts = alerts::settings(&place, parsed.alerts, &tasks)?;
        Ok(Self {
            workers,
            windowing,
            allowed_lateness,
            tasks,
            writers,
            http,
            alerts,
            nats,
            cluster,
            task_texts,
            rule_texts,
        })
    }

    /// Reads the `nats` section alone, of a file or of the built-in text.
    pub fn load_bus(path: Option<&Path>) -> Result<Settings, ConfigError> {
        let (text, file) = match path {
            None => (SHIPPED.to_owned(), BUILT_IN.to_owned()),
            Some(path) => (read(path)?, path.display().to_string()),
        };
        let interpolated = interpolated(&text, &file, environment)?;
        let place = Place { file: &file, interpolated: &interpolated };
        let parsed: BusFile = place.parse()?;
        nats::settings(&place, parsed.nats)
    }
}

/// What a variable of the environment holds.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Io { path: path.to_owned(), error })
}

fn interpolated(
    text: &str,
    file: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Interpolated, ConfigError> {
    interpolate(text, variable).map_err(|error| ConfigError::Wrong {
        file: file.to_owned(),
        line: error.line,
        column: error.column,
        message: error.to_string(),
    })
}

/// The message of a YAML error without the place that is told apart from it.
fn without_location(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// A message led by the key whose value is at this place, where it does not name one itself.
fn with_key(text: &str, at: Location, message: &str) -> String {
    let line = usize::try_from(at.line()).ok().and_then(|line| text.lines().nth(line.checked_sub(1)?));
    let before: Option<String> =
        line.map(|line| line.chars().take(at.column().saturating_sub(1) as usize).collect());
    let key = before.as_deref().and_then(|before| before.trim_end().strip_suffix(':')).map(|key| {
        key.rsplit(|character: char| character.is_whitespace() || "{[,".contains(character))
            .next()
            .unwrap_or(key)
    });
    match key {
        Some(key) if !key.is_empty() && !message.contains(key) => format!("`{key}`: {message}"),
        _ => message.to_owned(),
    }
}

fn tasks(
    place: &Place<'_>,
    entries: &Spanned<Vec<Spanned<Entry>>>,
    registry: &Registry,
) -> Result<Vec<Task>, ConfigError> {
    let mut tasks: Vec<Task> = Vec::new();
    for entry in &entries.value {
        let at = entry.defined;
        let (name, name_at) = text_option(place, &entry.value, at, "name", "a task")?;
        let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        if name.is_empty() || !name.chars().all(allowed) {
            let message =
                format!("task name `{name}`: use letters, digits, `_` and `-`, it becomes a file name");
            return Err(place.wrong(name_at, message));
        }
        if tasks.iter().any(|earlier| *earlier.name == *name) {
            return Err(place.wrong(name_at, format!("two tasks are named `{name}`; names must differ")));
        }
        let (kind, kind_at) = text_option(place, &entry.value, at, "type", "a task")?;
        let Some(constructor) = registry.get(&kind) else {
            let known: Vec<_> = registry.kinds().collect();
            let message = format!("task `{name}`: unknown type `{kind}`; one of {}", known.join(", "));
            return Err(place.wrong(kind_at, message));
        };
        let aggregator = constructor(&own_options(&entry.value, &["name", "type"]))
            .map_err(|error| place.wrong(place_of(entry, &error), format!("task `{name}`: {error}")))?;
        tasks.push(Task { name: name.into(), aggregator: Arc::from(aggregator) });
    }
    if tasks.is_empty() {
        return Err(place.wrong(entries.defined, "aggregator.tasks: name at least one task"));
    }
    Ok(tasks)
}

/// The options of an entry but for some that are read here.
fn own_options(entry: &Entry, without: &[&str]) -> Options {
    let own = entry.iter().filter(|(key, _)| !without.contains(&key.as_str()));
    Options(own.map(|(key, value)| (key.clone(), value.value.clone())).collect())
}

/// Where the option stands that an error names, else the entry.
fn place_of(entry: &Spanned<Entry>, error: &OptionsError) -> Location {
    let option = error.key.as_ref().and_then(|key| entry.value.get(key));
    option.map_or(entry.defined, |value| value.defined)
}

/// An option of a section that is text.
type Text = Option<Spanned<String>>;

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
            let text = std::fs::read_to_string(&file.value).map_err(|error| {
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
    let Some(value) = entry.get(key) else {
        return Err(place.wrong(at, format!("{what} needs the key `{key}`")));
    };
    match &value.value {
        serde_json::Value::String(text) => Ok((text.clone(), value.defined)),
        // A name or password of digits is text where text is wanted.
        serde_json::Value::Number(number) => Ok((number.to_string(), value.defined)),
        other => Err(place.wrong(value.defined, format!("`{key}` must be text, not {other}"))),
    }
}

/// Reads `all` or a duration.
pub fn windowing(text: &str) -> Result<Windowing, String> {
    if text == "all" {
        return Ok(Windowing::All);
    }
    Windowing::every(duration(text)?).ok_or_else(|| format!("`{text}` is no length of a window"))
}

/// Reads a size: a whole or decimal number and a unit of bytes, such as `64MiB`, `10GiB`, `1.5GB`, `4096B`.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("`{text}` is no size; write a number and a unit (B, kB, MB, GB, KiB, MiB, GiB, TiB)");
    let unit_at = text.find(|character: char| character.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let bytes_a_unit = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    scaled(number, bytes_a_unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, "c.yaml", &Registry::default(), |name| (name == "SET").then(|| "per_x".into()))
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
        assert_eq!(config.writers, [writers::WriterConfig::csv("./snapshots".into())]);
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
