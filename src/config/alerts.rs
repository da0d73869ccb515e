//! The `alerts` section: rules over the tasks' tables, and where alerts go.

use super::{ConfigError, Entry, Place, Spanned, own_options, text_option};
use crate::alerts::rule::Rule;
use crate::alerts::{Output, Settings, webhook};
use dataflows::aggregator::{OptionsError, Task};
use serde::Deserialize;
use serde_saphyr::Location;

/// The section as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    /// A key with nothing behind it is an empty list.
    pub(super) rules: Option<Vec<Spanned<Entry>>>,
    outputs: Option<Vec<Spanned<Entry>>>,
}

pub(super) fn settings(place: &Place<'_>, section: Section, tasks: &[Task]) -> Result<Settings, ConfigError> {
    let mut rules: Vec<Rule> = Vec::new();
    for entry in section.rules.iter().flatten() {
        let name = text_option(place, &entry.value, entry.defined, "name", "a rule")?;
        let options = own_options(&entry.value, &[]);
        let rule = Rule::read(&options, tasks)
            .map_err(|error| wrong(place, entry, &format!("rule `{}`", name.0), &error))?;
        if rules.iter().any(|earlier| earlier.name == rule.name) {
            return Err(
                place.wrong(name.1, format!("two rules are named `{}`; names must differ", rule.name))
            );
        }
        rules.push(rule);
    }
    let mut outputs = Vec::new();
    for entry in section.outputs.iter().flatten() {
        let output = output(place, entry)?;
        if outputs.contains(&output) {
            return Err(place.wrong(entry.defined, "two outputs of alerts are the same"));
        }
        outputs.push(output);
    }
    Ok(Settings { rules, outputs })
}

fn output(place: &Place<'_>, entry: &Spanned<Entry>) -> Result<Output, ConfigError> {
    let text = |key: &str, what: &str| text_option(place, &entry.value, entry.defined, key, what);
    let (kind, kind_at) = text("type", "an output of alerts")?;
    let known: &[&str] = match kind.as_str() {
        "jsonl" => &["type", "path"],
        "webhook" => &["type", "url", "secret"],
        _ => {
            let message = format!("unknown type of alerts' output `{kind}`; one of jsonl, webhook");
            return Err(place.wrong(kind_at, message));
        }
    };
    if let Some((key, value)) = entry.value.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        let message = format!("alerts to {kind}: unknown key `{key}`; one of {}", known.join(", "));
        return Err(place.wrong(value.defined, message));
    }
    if kind == "jsonl" {
        let (path, at) = text("path", "a jsonl output")?;
        if path.is_empty() {
            return Err(place.wrong(at, "jsonl output: `path` is empty; name a file, such as ./alerts.jsonl"));
        }
        return Ok(Output::JsonLines { path: path.into() });
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
