//! The `writers` section: where snapshots go, and what becomes of them while a writer fails.

use super::section::{Place, Section, unknown_key};
use super::tree::{Location, Spanned};
use super::{ConfigError, Entry, Text, check_name, duration, secret, size, text_option};
use crate::sinks::clickhouse;
use crate::sinks::delivery::Retry;
use crate::sinks::outbox::Schemas;
use axum::http::Uri;
use dataflows::aggregator::Task;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Options that every writer has.
const COMMON: [&str; 7] = ["type", "name", "tasks", "every", "required", "max_behind", "retry"];
/// What may wait for a writer on disk before the engine waits, in bytes.
const MAX_BEHIND: u64 = 1 << 30;
/// Longest time that rows can be kept for: 50 years. After that ClickHouse runs out of time.
const MOST_KEEP: Duration = Duration::from_secs(18_250 * 86_400);
/// Windows that a writer may be given at a time.
const MOST_WINDOWS: u64 = 100_000;

/// A configured writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterConfig {
    /// Letters, digits, `_` and `-`; no two writers have the same.
    pub name: String,
    /// Where it writes.
    pub target: Target,
    /// The tasks that it is given; all of them without.
    pub tasks: Option<BTreeSet<Arc<str>>>,
    /// Windows that it is given at a time, at least 1.
    pub every: usize,
    /// Whether nothing may be left out for it.
    pub required: bool,
    /// Bytes that may wait for it.
    pub max_behind: u64,
    first: Duration,
    most: Duration,
    give_up: Option<GiveUp>,
}

/// Where a writer writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// [`crate::sinks::csv`], into a folder.
    Csv(PathBuf),
    /// [`crate::sinks::json`], into a folder; to standard output without.
    JsonLines(Option<PathBuf>),
    /// [`crate::sinks::parquet`], into a folder.
    Parquet(PathBuf),
    /// [`crate::sinks::clickhouse`]
    ClickHouse(clickhouse::Settings),
    /// [`crate::sinks::nats`], to this subject of the bus.
    Nats(String),
}

impl Target {
    /// As the configuration spells its type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Csv(_) => "csv",
            Self::JsonLines(_) => "jsonl",
            Self::Parquet(_) => "parquet",
            Self::ClickHouse(_) => "clickhouse",
            Self::Nats(_) => "nats",
        }
    }

    /// The folder that it writes into.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Csv(path) | Self::Parquet(path) | Self::JsonLines(Some(path)) => Some(path),
            Self::JsonLines(None) | Self::ClickHouse(_) | Self::Nats(_) => None,
        }
    }

    /// In a few words, without secrets.
    pub fn describe(&self) -> String {
        match self {
            Self::Csv(path) | Self::Parquet(path) | Self::JsonLines(Some(path)) => path.display().to_string(),
            Self::JsonLines(None) => "standard output".into(),
            Self::ClickHouse(settings) => format!("{} database {}", settings.url, settings.database),
            Self::Nats(subject) => format!("NATS subject {subject}"),
        }
    }
}

/// When what fails is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GiveUp {
    Never,
    After(Duration),
}

/// What kind of run writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// One that ends with its input.
    Batch,
    /// One that goes on.
    Live,
}

impl WriterConfig {
    /// A csv writer with no other option, into this folder.
    pub fn csv(path: PathBuf) -> Self {
        Self {
            name: "csv".into(),
            target: Target::Csv(path),
            tasks: None,
            every: 1,
            required: true,
            max_behind: MAX_BEHIND,
            first: Duration::from_secs(1),
            most: Duration::from_secs(30),
            give_up: None,
        }
    }

    /// How it is tried again, where the configuration is silent as the run needs it: a file that cannot be written ends a
    /// batch at once, a server that is away does not; a live run goes on, but for the record of its commits (`is_record`).
    pub fn retry(&self, run: Run, is_record: bool) -> Retry {
        let is_server = matches!(self.target, Target::ClickHouse(_) | Target::Nats(_));
        let give_up = match (self.give_up, run) {
            (Some(GiveUp::Never), _) => None,
            (Some(GiveUp::After(time)), _) => Some(time),
            (None, Run::Batch) => Some(Duration::from_secs(if is_server { 60 } else { 0 })),
            (None, Run::Live) => is_record.then_some(Duration::from_secs(10)),
        };
        Retry { first: self.first, most: self.most, give_up }
    }

    /// Those of the tasks that it is given.
    pub fn selected(&self, mut schemas: Schemas) -> Schemas {
        schemas.retain(|(name, _)| self.tasks.as_ref().is_none_or(|tasks| tasks.contains(name)));
        schemas
    }

    /// The writer as it runs, secrets hidden.
    pub fn resolved(&self, run: Run, is_record: bool) -> Value {
        let Self { name, target, every, required, max_behind, .. } = self;
        let retry = self.retry(run, is_record);
        let mut resolved = json!({"type": target.kind(), "name": name});
        match target {
            Target::Csv(path) | Target::Parquet(path) | Target::JsonLines(Some(path)) => {
                resolved["path"] = json!(path.display().to_string());
            }
            Target::JsonLines(None) => resolved["path"] = json!("-"),
            Target::ClickHouse(settings) => {
                let clickhouse::Settings { url, database, user, password, keep } = settings;
                resolved["url"] = json!(url);
                resolved["database"] = json!(database);
                resolved["user"] = json!(user);
                resolved["password"] = json!(if password.is_empty() { "" } else { "***" });
                resolved["keep"] = json!(keep.map(|keep| format!("{keep:?}")));
            }
            Target::Nats(subject) => resolved["subject"] = json!(subject),
        }
        resolved["tasks"] = json!(
            self.tasks.as_ref().map(|tasks| tasks.iter().map(|task| task.to_string()).collect::<Vec<_>>())
        );
        if !is_record {
            resolved["every"] = json!(every);
            resolved["required"] = json!(required);
            resolved["max_behind"] = json!(format!("{max_behind}B"));
        }
        let give_up = retry.give_up.map_or_else(|| "never".into(), |time| format!("{time:?}"));
        let (first, most) = (format!("{:?}", retry.first), format!("{:?}", retry.most));
        resolved["retry"] = json!({"first": first, "most": most, "give_up": give_up});
        resolved
    }
}

/// The writers that are right; what is wrong with others is noted.
pub(super) fn writers(
    place: &Place<'_>,
    entries: &Spanned<Vec<Spanned<Entry>>>,
    tasks: &[Task],
) -> Vec<WriterConfig> {
    let mut writers: Vec<WriterConfig> = Vec::new();
    for entry in &entries.value {
        let reader = Reader { place, entry };
        writers.extend(place.kept(reader.writer(tasks, &writers)));
    }
    if entries.value.is_empty() {
        let why = "writers: name at least one writer, or leave the key out for csv into ./snapshots";
        place.note(entries.defined, why);
    }
    writers
}

/// Notes keys of writers that are not known, and reads nothing.
pub(super) fn check_keys(place: &Place<'_>, file: &Section<'_>) {
    for entry in file.entries("writers").iter().flat_map(|entries| &entries.value) {
        place.kept(Reader { place, entry }.kind());
    }
}

struct Reader<'a> {
    place: &'a Place<'a>,
    entry: &'a Spanned<Entry>,
}

impl Reader<'_> {
    fn get(&self, key: &str) -> Option<&Spanned<Value>> {
        self.entry.value.get(key)
    }

    /// A mistake at a key, or where there is none at the entry.
    fn wrong(&self, key: &str, why: impl std::fmt::Display) -> ConfigError {
        let at: Location = self.get(key).map_or(self.entry.defined, |value| value.defined);
        self.place.wrong(at, why)
    }

    fn text(&self, key: &str, what: &str) -> Result<String, ConfigError> {
        text_option(self.place, &self.entry.value, self.entry.defined, key, what).map(|(text, _)| text)
    }

    /// A text and where it stands, where there is one.
    fn spanned(&self, key: &str) -> Result<Text, ConfigError> {
        let read = |value: &Spanned<Value>| {
            Ok(Spanned { value: self.text(key, "a writer")?, defined: value.defined })
        };
        self.get(key).map(read).transpose()
    }

    fn text_or(&self, key: &str, default: &str) -> Result<String, ConfigError> {
        if self.get(key).is_some() { self.text(key, "a writer") } else { Ok(default.to_owned()) }
    }

    /// Its type, all of whose keys are known.
    fn kind(&self) -> Result<String, ConfigError> {
        let kind = self.text("type", "a writer")?;
        let own: &[&str] = match kind.as_str() {
            "csv" | "jsonl" | "parquet" => &["path"],
            "clickhouse" => &["url", "database", "user", "password", "password_file", "keep"],
            "nats" => &["subject"],
            _ => {
                let message =
                    format!("unknown writer type `{kind}`; one of csv, parquet, jsonl, clickhouse, nats");
                return Err(self.wrong("type", message));
            }
        };
        let known: Vec<_> = COMMON.iter().chain(own).copied().collect();
        match self.entry.value.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(self.wrong(key, format!("{kind} writer: {}", unknown_key(key, &known)))),
            None => Ok(kind),
        }
    }

    fn writer(&self, tasks: &[Task], earlier: &[WriterConfig]) -> Result<WriterConfig, ConfigError> {
        let kind = self.kind()?;
        let target = self.target(&kind)?;
        let is_same = |earlier: &&WriterConfig| {
            earlier.target == target
                || target.folder().is_some() && earlier.target.folder() == target.folder()
        };
        if let Some(same) = earlier.iter().find(is_same) {
            let key = if target.folder().is_some() { "path" } else { "type" };
            let message =
                format!("writes to the same place as writer `{}`: {}", same.name, target.describe());
            return Err(self.wrong(key, format!("{kind} writer: {message}")));
        }
        let mut writer =
            WriterConfig { name: self.name(&kind, earlier)?, target, ..WriterConfig::csv(PathBuf::new()) };
        self.common(&mut writer, tasks)?;
        let is_record = kind == "csv" && earlier.iter().all(|earlier| earlier.target.kind() != "csv");
        let within = ["every", "max_behind", "required"].into_iter().find(|key| self.get(key).is_some());
        if let Some(key) = within.filter(|key| is_record && (*key != "required" || !writer.required)) {
            let message = format!(
                "csv writer: the first one is the record of what is committed, and is written with each commit; it takes no `{key}`"
            );
            return Err(self.wrong(key, message));
        }
        match kind.as_str() {
            "clickhouse" => self.check_names(&writer, tasks, (&["snapshots"], &["", "_rows"], "tables"))?,
            "nats" => self.check_names(&writer, tasks, (&["windows", "alerts"], &[""], "subjects"))?,
            _ => {}
        }
        Ok(writer)
    }

    /// The name that it is given, else its type, with a number from the second on.
    fn name(&self, kind: &str, earlier: &[WriterConfig]) -> Result<String, ConfigError> {
        let is_taken = |name: &str| earlier.iter().any(|earlier| earlier.name == name);
        if self.get("name").is_none() {
            let numbered = (2..).map(|number| format!("{kind}-{number}"));
            let mut names = std::iter::once(kind.to_owned()).chain(numbered);
            return Ok(names.find(|name| !is_taken(name)).unwrap_or_default());
        }
        let name = self.text("name", "a writer")?;
        check_name(self.place, &name, "writer").map_err(|why| self.wrong("name", why))?;
        if is_taken(&name) {
            return Err(self.wrong("name", format!("two writers are named `{name}`; names must differ")));
        }
        Ok(name)
    }

    fn common(&self, writer: &mut WriterConfig, tasks: &[Task]) -> Result<(), ConfigError> {
        if let Some(value) = self.get("tasks") {
            let names: Option<Vec<&str>> =
                value.value.as_array().and_then(|names| names.iter().map(Value::as_str).collect());
            let Some(names) = names.filter(|names| !names.is_empty()) else {
                return Err(self
                    .wrong("tasks", "writer: `tasks` must be a list of tasks' names; leave it out for all"));
            };
            let find =
                |name: &str| tasks.iter().find(|task| *task.name == *name).map(|task| task.name.clone());
            let mut selected = BTreeSet::new();
            for name in names {
                let known: Vec<&str> = tasks.iter().map(|task| &*task.name).collect();
                let unknown =
                    || self.wrong("tasks", format!("there is no task `{name}`; one of {}", known.join(", ")));
                selected.insert(find(name).ok_or_else(unknown)?);
            }
            writer.tasks = Some(selected);
        }
        if let Some(value) = self.get("every") {
            let windows = value.value.as_u64().filter(|windows| (1..=MOST_WINDOWS).contains(windows));
            let windows = windows.ok_or_else(|| {
                self.wrong(
                    "every",
                    format!("writer: `every` must be a number of windows, 1 to {MOST_WINDOWS}"),
                )
            })?;
            writer.every = usize::try_from(windows).unwrap_or(usize::MAX);
        }
        if let Some(value) = self.get("required") {
            let required = value.value.as_bool();
            writer.required =
                required.ok_or_else(|| self.wrong("required", "writer: `required` must be true or false"))?;
        }
        if self.get("max_behind").is_some() {
            let text = self.text("max_behind", "a writer")?;
            writer.max_behind =
                size(&text).map_err(|why| self.wrong("max_behind", format!("writer: max_behind: {why}")))?;
        }
        self.retry(writer)
    }

    fn retry(&self, writer: &mut WriterConfig) -> Result<(), ConfigError> {
        let Some(value) = self.get("retry") else { return Ok(()) };
        let wrong = |why: String| self.wrong("retry", format!("writer: retry: {why}"));
        let options = value
            .value
            .as_object()
            .ok_or_else(|| wrong("write {first: 1s, most: 30s, give_up: never}, or some of that".into()))?;
        for (key, value) in options {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let time = || duration(&text).map_err(|why| wrong(format!("{key}: {why}")));
            match key.as_str() {
                "first" => writer.first = time()?,
                "most" => writer.most = time()?,
                "give_up" if text == "never" => writer.give_up = Some(GiveUp::Never),
                // Durations are above nothing.
                "give_up" if matches!(text.as_str(), "0s" | "0") => {
                    writer.give_up = Some(GiveUp::After(Duration::ZERO))
                }
                "give_up" => writer.give_up = Some(GiveUp::After(time()?)),
                _ => return Err(wrong(format!("unknown key `{key}`; one of first, most, give_up"))),
            }
        }
        if writer.first > writer.most {
            return Err(wrong("`first` is longer than `most`".into()));
        }
        Ok(())
    }

    fn target(&self, kind: &str) -> Result<Target, ConfigError> {
        match kind {
            "clickhouse" => self.clickhouse().map(Target::ClickHouse),
            "nats" => {
                let subject = self.text("subject", "a nats writer")?;
                let allowed =
                    |character: char| character.is_ascii_graphic() && !matches!(character, '*' | '>');
                if subject.is_empty()
                    || !subject.chars().all(allowed)
                    || subject.split('.').any(str::is_empty)
                {
                    let message = format!(
                        "nats writer: `{subject}` is no subject; words with dots between them, no wildcards"
                    );
                    return Err(self.wrong("subject", message));
                }
                Ok(Target::Nats(subject))
            }
            kind => {
                let path = self.text("path", &format!("a {kind} writer"))?;
                if path.is_empty() {
                    let message =
                        format!("{kind} writer: `path` is empty; name a folder, such as ./snapshots");
                    return Err(self.wrong("path", message));
                }
                if path == "-" && kind != "jsonl" {
                    let message = format!(
                        "{kind} writer: `-` is standard output for jsonl only; name a folder (./- is one of that name)"
                    );
                    return Err(self.wrong("path", message));
                }
                let at = self.get("path").map_or(self.entry.defined, |value| value.defined);
                let folder = || self.place.path(&path, at);
                Ok(match kind {
                    "jsonl" if path == "-" => Target::JsonLines(None),
                    "jsonl" => Target::JsonLines(Some(folder()?)),
                    "parquet" => Target::Parquet(folder()?),
                    _ => Target::Csv(folder()?),
                })
            }
        }
    }

    fn clickhouse(&self) -> Result<clickhouse::Settings, ConfigError> {
        let url = self.text("url", "a clickhouse writer")?;
        let parsed = url.parse::<Uri>().ok().filter(|url| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.host().is_some_and(|host| !host.is_empty())
        });
        let Some(parsed) = parsed else {
            return Err(
                self.wrong("url", "clickhouse writer: `url` must be http://host:8123 or https://host:8443")
            );
        };
        if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            let message = "clickhouse writer: no user and password in `url`; they have keys of their own";
            return Err(self.wrong("url", message));
        }
        if parsed.query().is_some() {
            return Err(self.wrong("url", "clickhouse writer: `url` must end before its `?`"));
        }
        let database = self.text_or("database", "netspectra")?;
        let allowed = |character: char| character.is_ascii_alphanumeric() || character == '_';
        if database.is_empty() || !database.chars().all(allowed) {
            return Err(self.wrong(
                "database",
                format!("clickhouse writer: database `{database}`: use letters, digits and `_`"),
            ));
        }
        let texts = (&self.spanned("password")?, &self.spanned("password_file")?);
        let what = ("clickhouse writer", "clickhouse writer: ");
        let password = match secret(self.place, what, "password", texts)? {
            Some((password, at)) if password.chars().any(char::is_control) => {
                let message = "clickhouse writer: the password has several lines or control characters";
                return Err(self.place.wrong(at, message));
            }
            password => password.map(|(password, _)| password).unwrap_or_default(),
        };
        let keep = match self.get("keep") {
            None => None,
            Some(_) => {
                let text = self.text("keep", "a clickhouse writer")?;
                let keep = duration(&text);
                let keep =
                    keep.map_err(|why| self.wrong("keep", format!("clickhouse writer: keep: {why}")))?;
                if keep > MOST_KEEP {
                    return Err(
                        self.wrong("keep", "clickhouse writer: keep: at most 18250d; leave it out for ever")
                    );
                }
                Some(keep)
            }
        };
        let user = self.text_or("user", "default")?;
        Ok(clickhouse::Settings { url, database, user, password, keep })
    }

    /// Of what a task has there, each with its ending, nothing may have the name of anything else.
    fn check_names(
        &self,
        writer: &WriterConfig,
        tasks: &[Task],
        (own, endings, what): (&[&str], &[&str], &str),
    ) -> Result<(), ConfigError> {
        let mut names: BTreeSet<String> = own.iter().map(|name| (*name).to_owned()).collect();
        let selected = |task: &&Task| writer.tasks.as_ref().is_none_or(|tasks| tasks.contains(&task.name));
        for task in tasks.iter().filter(selected) {
            for ending in endings {
                let name = format!("{}{ending}", task.name);
                if !names.insert(name.clone()) {
                    let kind = writer.target.kind();
                    let message = format!(
                        "{kind} writer: two {what} would be named `{name}`; rename task `{}`",
                        task.name
                    );
                    return Err(self.wrong("tasks", message));
                }
            }
        }
        Ok(())
    }
}
