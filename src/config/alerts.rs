//! The `alerts` section: rules over the tasks' tables, and where alerts go.

use super::section::{Place, Section, unknown_key};
use super::tree::{Location, Spanned};
use super::{ConfigError, Entry, own_options, text_option};
use crate::alerts::rule::Rule;
use crate::alerts::{Output, Settings, webhook};
use dataflows::aggregator::{OptionsError, Task};

/// Keys of the section.
pub(super) const KEYS: &[&str] = &["rules", "outputs"];

/// The rules and outputs that are right; what is wrong with others is noted.
pub(super) fn settings(section: &Section<'_>, entries: &[Spanned<Entry>], tasks: &[Task]) -> Settings {
    let place = section.place;
    let mut rules: Vec<Rule> = Vec::new();
    for entry in entries {
        rules.extend(place.kept(rule(place, entry, tasks, &rules)));
    }
    let mut outputs = Vec::new();
    for entry in section.entries("outputs").iter().flat_map(|outputs| &outputs.value) {
        let output = output(place, entry).and_then(|output| match outputs.contains(&output) {
            true => Err(place.wrong(entry.defined, "two alert outputs are identical")),
            false => Ok(output),
        });
        outputs.extend(place.kept(output));
    }
    Settings { rules, outputs }
}

/// Notes keys of outputs that are not known, and reads nothing.
pub(super) fn check_keys(place: &Place<'_>, section: &Section<'_>) {
    section.entries("rules");
    for entry in section.entries("outputs").iter().flat_map(|outputs| &outputs.value) {
        place.kept(kind(place, entry));
    }
}

fn rule(
    place: &Place<'_>,
    entry: &Spanned<Entry>,
    tasks: &[Task],
    rules: &[Rule],
) -> Result<Rule, ConfigError> {
    let name = text_option(place, &entry.value, entry.defined, "name", "a rule")?;
    let options = own_options(&entry.value, &[]);
    let rule = Rule::read(&options, tasks)
        .map_err(|error| wrong(place, entry, &format!("rule `{}`", name.0), &error))?;
    match rules.iter().any(|earlier| earlier.name == rule.name) {
        true => Err(place.wrong(name.1, format!("two rules are named `{}`; names must differ", rule.name))),
        false => Ok(rule),
    }
}

/// The type of an output, all of whose keys are known.
fn kind(place: &Place<'_>, entry: &Spanned<Entry>) -> Result<String, ConfigError> {
    let (kind, kind_at) = text_option(place, &entry.value, entry.defined, "type", "an output of alerts")?;
    let known: &[&str] = match kind.as_str() {
        "jsonl" => &["type", "path"],
        "webhook" => &["type", "url", "secret"],
        _ => {
            let message = format!("unknown type of alerts' output `{kind}`; one of jsonl, webhook");
            return Err(place.wrong(kind_at, message));
        }
    };
    match entry.value.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        Some((key, value)) => {
            Err(place.wrong(value.defined, format!("alerts to {kind}: {}", unknown_key(key, known))))
        }
        None => Ok(kind),
    }
}

fn output(place: &Place<'_>, entry: &Spanned<Entry>) -> Result<Output, ConfigError> {
    let text = |key: &str, what: &str| text_option(place, &entry.value, entry.defined, key, what);
    let kind = kind(place, entry)?;
    if kind == "jsonl" {
        let (path, at) = text("path", "a jsonl output")?;
        if path.is_empty() {
            return Err(place.wrong(at, "jsonl output: `path` is empty; name a file, such as ./alerts.jsonl"));
        }
        return Ok(Output::JsonLines { path: place.path(&path, at)? });
    }
    let (url, _) = text("url", "a webhook")?;
    let secret = match entry.value.contains_key("secret") {
        true => Some(text("secret", "a webhook")?.0),
        false => None,
    };
    let settings = webhook::Settings::new(&url, secret);
    settings.map(Output::Webhook).map_err(|error| wrong(place, entry, "webhook", &error))
}

/// A mistake in an entry, at the key that it names.
fn wrong(place: &Place<'_>, entry: &Spanned<Entry>, what: &str, error: &OptionsError) -> ConfigError {
    let at: Location = super::place_of(entry, error);
    place.wrong(at, format!("{what}: {error}"))
}
