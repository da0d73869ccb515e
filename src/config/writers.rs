//! The `writers` section: which writers there are, what each of them is given, and what becomes of that while it fails.
//!
//! Here are only the options that all writers have. Those of its own are read by the writer's kind, which a registry has.

use super::section::{Place, Section};
use super::tree::{Location, Spanned};
use super::{ConfigError, Entry, check_name, duration, kind_of, own_options, place_of, size, text_option};
use crate::options::{OwnOptions, TypeKeys};
use crate::sinks::delivery::Retry;
use crate::sinks::outbox::Schemas;
use crate::sinks::registry::{Target, WriterKind, WriterRegistry};
use dataflows::aggregator::{OptionsError, Task};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Options that every writer has.
const COMMON: [&str; 7] = ["type", "name", "tasks", "every", "required", "max_behind", "retry"];
/// What may wait for a writer on disk before the engine waits, in bytes.
const MAX_BEHIND: u64 = 1 << 30;
/// Windows that a writer may be given at a time.
const MOST_WINDOWS: u64 = 100_000;

/// A configured writer.
#[derive(Clone)]
pub struct WriterConfig {
    /// Letters, digits, `_` and `-`; no two writers have the same.
    pub name: String,
    /// Its `type`.
    pub kind: &'static str,
    /// Where it writes.
    pub target: Arc<dyn Target>,
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
    /// A writer to this target with no other option; its name is its type.
    pub fn new(kind: &'static str, target: Arc<dyn Target>) -> Self {
        Self {
            name: kind.into(),
            kind,
            target,
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
        let give_up = match (self.give_up, run) {
            (Some(GiveUp::Never), _) => None,
            (Some(GiveUp::After(time)), _) => Some(time),
            (None, Run::Batch) => Some(self.target.gives_up_after()),
            (None, Run::Live) => is_record.then_some(Duration::from_secs(10)),
        };
        Retry { first: self.first, most: self.most, give_up }
    }

    /// Those of the tasks that it is given.
    pub fn selected(&self, mut schemas: Schemas) -> Schemas {
        schemas.retain(|(name, _)| self.is_given(name));
        schemas
    }

    fn is_given(&self, task: &Arc<str>) -> bool {
        self.tasks.as_ref().is_none_or(|tasks| tasks.contains(task))
    }

    /// The writer as it runs, secrets hidden.
    pub fn resolved(&self, run: Run, is_record: bool) -> Value {
        let Self { name, kind, target, every, required, max_behind, .. } = self;
        let retry = self.retry(run, is_record);
        let mut resolved = json!({"type": kind, "name": name});
        if let (Some(resolved), Value::Object(own)) = (resolved.as_object_mut(), target.options()) {
            resolved.extend(own);
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
    (registry, tasks): (&WriterRegistry, &[Task]),
) -> Vec<WriterConfig> {
    let keys = registry.keys();
    let mut writers: Vec<WriterConfig> = Vec::new();
    for entry in &entries.value {
        let reader = Reader { place, entry };
        let kind = place.kept(reader.kind(&keys)).and_then(|name| registry.get(name));
        let writer = kind.and_then(|kind| place.kept(reader.writer(&kind, tasks, &writers)));
        writers.extend(writer);
    }
    if entries.value.is_empty() {
        let why = "writers: name at least one writer, or leave the key out for csv into ./snapshots";
        place.note(entries.defined, why);
    }
    writers
}

/// Notes types of writers and keys of theirs that are not known, and reads nothing.
pub(super) fn check_keys(place: &Place<'_>, file: &Section<'_>, kinds: &[TypeKeys]) {
    for entry in file.entries("writers").iter().flat_map(|entries| &entries.value) {
        place.kept(Reader { place, entry }.kind(kinds));
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

    /// What the writer's kind finds wrong.
    fn refused(&self, error: OptionsError) -> ConfigError {
        self.place.wrong(place_of(self.entry, &error), error)
    }

    fn text(&self, key: &str) -> Result<String, ConfigError> {
        text_option(self.place, &self.entry.value, self.entry.defined, key, "a writer").map(|(text, _)| text)
    }

    /// Its type, one of these and all of whose keys are known.
    fn kind(&self, kinds: &[TypeKeys]) -> Result<&'static str, ConfigError> {
        kind_of(self.place, self.entry, ("writer", &COMMON), kinds)
    }

    fn target(&self, kind: &WriterKind) -> Result<Arc<dyn Target>, ConfigError> {
        let own = own_options(&self.entry.value, &COMMON);
        let options = OwnOptions::new(format!("{} writer", kind.name), own.values, self.place.home.clone());
        (kind.read)(&options).map_err(|error| self.refused(error))
    }

    fn writer(
        &self,
        kind: &WriterKind,
        tasks: &[Task],
        earlier: &[WriterConfig],
    ) -> Result<WriterConfig, ConfigError> {
        let target = self.target(kind)?;
        self.check_place(kind, &*target, earlier)?;
        let is_record =
            target.record().is_some() && earlier.iter().all(|earlier| earlier.target.record().is_none());
        let name = self.name(kind.name, earlier)?;
        let mut writer = WriterConfig { name, ..WriterConfig::new(kind.name, target) };
        self.common(&mut writer, tasks)?;
        let within = ["every", "max_behind", "required"].into_iter().find(|key| self.get(key).is_some());
        if let Some(key) = within.filter(|key| is_record && (*key != "required" || !writer.required)) {
            let message = format!(
                "{} writer: the first csv writer is part of every commit, so it cannot have `{key}`",
                kind.name
            );
            return Err(self.wrong(key, message));
        }
        let names = tasks.iter().map(|task| task.name.clone());
        let names: Vec<_> = names.filter(|name| writer.is_given(name)).collect();
        writer.target.check_tasks(&names).map_err(|error| self.refused(error))?;
        Ok(writer)
    }

    /// No two writers write to the same place.
    fn check_place(
        &self,
        kind: &WriterKind,
        target: &dyn Target,
        earlier: &[WriterConfig],
    ) -> Result<(), ConfigError> {
        let (folder, options) = (target.folder(), target.options());
        let is_same = |earlier: &&WriterConfig| {
            earlier.kind == kind.name && earlier.target.options() == options
                || folder.is_some() && earlier.target.folder() == folder
        };
        let Some(same) = earlier.iter().find(is_same) else { return Ok(()) };
        let key = if folder.is_some() { "path" } else { "type" };
        let place = target.describe();
        let message = format!("writes to the same place as writer `{}`: {place}", same.name);
        Err(self.wrong(key, format!("{} writer: {message}", kind.name)))
    }

    /// The name that it is given, else its type, with a number from the second on.
    fn name(&self, kind: &str, earlier: &[WriterConfig]) -> Result<String, ConfigError> {
        let is_taken = |name: &str| earlier.iter().any(|earlier| earlier.name == name);
        if self.get("name").is_none() {
            let numbered = (2..).map(|number| format!("{kind}-{number}"));
            let mut names = std::iter::once(kind.to_owned()).chain(numbered);
            return Ok(names.find(|name| !is_taken(name)).unwrap_or_default());
        }
        let name = self.text("name")?;
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
            let text = self.text("max_behind")?;
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
}
