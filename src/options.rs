//! The options of one entry of the configuration, such as a writer, as the kind that they belong to reads them.
//!
//! An error names its option, and the configuration adds where that stands. The only files that are read here are those of
//! secrets: reading options connects to nothing, creates nothing and may happen twice.

use dataflows::aggregator::OptionsError;
use dataflows::window::{duration, scaled};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// What is shown in place of a secret.
pub const HIDDEN: &str = "***";

/// A type name, and the options of its own that it has.
pub type TypeKeys = (&'static str, &'static [&'static str]);

/// A kind of what a list of the configuration has, such as a writer.
#[derive(Clone, Copy, Debug)]
pub struct Kind<R> {
    /// The `type` that configuration names.
    pub name: &'static str,
    /// Its own options, in the order in which a message lists them. Those that all entries of its list have (`type`, and of
    /// writers `name`, `tasks`, `every`, `required`, `max_behind`, `retry`) cannot be among them.
    pub keys: &'static [&'static str],
    /// Reads its options. Connects to nothing and creates nothing.
    pub read: R,
}

impl<R> Kind<R> {
    const fn type_keys(&self) -> TypeKeys {
        (self.name, self.keys)
    }
}

/// The options of these kinds, for a program that only checks them: it does not link what reads them.
pub const fn type_keys<R, const N: usize>(kinds: &[Kind<R>; N]) -> [TypeKeys; N] {
    let mut keys: [TypeKeys; N] = [("", &[]); N];
    let mut number = 0;
    while number < N {
        keys[number] = kinds[number].type_keys();
        number += 1;
    }
    keys
}

/// The kinds that a program knows, by the `type` that configuration names. What ships is its `default()`.
#[derive(Clone, Debug)]
pub struct Kinds<R>(Vec<Kind<R>>);

impl<R: Copy> Kinds<R> {
    /// These kinds.
    pub(crate) fn new(kinds: &[Kind<R>]) -> Self {
        Self(kinds.to_vec())
    }

    /// Adds one from another crate; one of the same type name is replaced.
    pub fn with(mut self, kind: Kind<R>) -> Self {
        self.0.retain(|other| other.name != kind.name);
        self.0.push(kind);
        self
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Kind<R>> {
        self.0.iter()
    }

    /// The known type names, and the options of each.
    pub fn keys(&self) -> Vec<TypeKeys> {
        self.iter().map(Kind::type_keys).collect()
    }

    /// The kind of a type name.
    pub fn get(&self, name: &str) -> Option<Kind<R>> {
        self.iter().find(|kind| kind.name == name).copied()
    }
}

/// The options of an entry, but for those that all entries of its list have.
pub struct OwnOptions {
    what: String,
    values: BTreeMap<String, Value>,
    home: Option<String>,
}

impl OwnOptions {
    /// The options of a `what`, such as "csv writer"; `home` is what `~` stands for in a path.
    pub fn new(what: String, values: BTreeMap<String, Value>, home: Option<String>) -> Self {
        Self { what, values, home }
    }

    /// An option as it was written; `None` where it is left out.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A text that has to be there.
    pub fn text(&self, key: &str) -> Result<String, OptionsError> {
        let article = if self.what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        let text = text(self.get(key), key, &format!("{article} {}", self.what));
        text.map_err(|message| OptionsError { key: Some(key.to_owned()), message })
    }

    /// A text, or this one where it is left out.
    pub fn text_or(&self, key: &str, default: &str) -> Result<String, OptionsError> {
        if self.get(key).is_some() { self.text(key) } else { Ok(default.to_owned()) }
    }

    /// A path that has to be there, with the home folder in place of `~`.
    pub fn path(&self, key: &str) -> Result<PathBuf, OptionsError> {
        let path = path(&self.text(key)?, self.home.as_deref());
        path.map_err(|message| OptionsError { key: Some(key.to_owned()), message })
    }

    /// A duration such as `30s`; `None` where it is left out.
    pub fn duration(&self, key: &str) -> Result<Option<Duration>, OptionsError> {
        if self.get(key).is_none() {
            return Ok(None);
        }
        let read = duration(&self.text(key)?);
        read.map(Some).map_err(|why| self.refuse(key, format!("{key}: {why}")))
    }

    /// A secret of one line: the option `key`, or the content of the file that the option `<key>_file` names; `None` where
    /// both are left out.
    pub fn secret(&self, key: &str) -> Result<Option<Secret>, OptionsError> {
        let in_file = format!("{key}_file");
        let optional = |key: &str| self.get(key).map(|_| self.text(key)).transpose();
        let (secret, key_of_it) = match (optional(key)?, optional(&in_file)?) {
            (None, None) => return Ok(None),
            (Some(secret), None) => (secret, key),
            (Some(_), Some(_)) => {
                return Err(self.refuse(&in_file, format!("give `{key}` or `{in_file}`, not both")));
            }
            (None, Some(name)) => {
                let text = fs::read_to_string(self.path(&in_file)?);
                let text = text.map_err(|error| self.refuse(&in_file, format!("{in_file}: {name}: {error}")));
                (text?.trim_end().to_owned(), in_file.as_str())
            }
        };
        match secret.chars().any(char::is_control) {
            true => Err(self.refuse(key_of_it, format!("the {key} has several lines or control characters"))),
            false => Ok(Some(Secret(secret))),
        }
    }

    /// The error that an option's value is wrong.
    pub fn refuse(&self, key: &str, why: impl Display) -> OptionsError {
        OptionsError { key: Some(key.to_owned()), message: format!("{}: {why}", self.what) }
    }
}

/// A secret of the configuration. Neither its debug output nor its serialized form has it: it is hidden wherever it goes,
/// whatever its value is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is shown instead; nothing in place of an empty one.
    fn shown(&self) -> &'static str {
        if self.0.is_empty() { "" } else { HIDDEN }
    }
}

impl Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.shown())
    }
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

/// The text of the option `key`, which `what` (such as "a csv writer") needs.
pub(crate) fn text(value: Option<&Value>, key: &str, what: &str) -> Result<String, String> {
    match value {
        None => Err(format!("{what} needs the key `{key}`")),
        Some(Value::String(text)) => Ok(text.clone()),
        // A name or password of digits is text where text is wanted.
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => Err(format!("`{key}` must be text, not {other}")),
    }
}

/// A path with the home folder in place of `~`.
pub(crate) fn path(text: &str, home: Option<&str>) -> Result<PathBuf, String> {
    let begins_name =
        |rest: &str| rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if let Some((_, rest)) = text.split_once('$').filter(|(_, rest)| begins_name(rest)) {
        let is_name = |character: &char| character.is_ascii_alphanumeric() || *character == '_';
        let name: String = rest.chars().take_while(is_name).collect();
        return Err(format!("`{text}`: a variable is written ${{{name}}} here, not ${name}"));
    }
    let Some(rest) = text.strip_prefix('~') else { return Ok(PathBuf::from(text)) };
    if !rest.is_empty() && !rest.starts_with('/') {
        let why =
            "`~/` is your own home folder; write the path to another one in full, or ./ before this name";
        return Err(format!("`{text}`: {why}"));
    }
    match home.filter(|home| !home.is_empty()) {
        Some(home) => Ok(PathBuf::from(format!("{home}{rest}"))),
        None => Err(format!("`{text}`: HOME is not set; write the path in full")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_secret_is_hidden_wherever_it_goes() {
        let options = OwnOptions::new(
            "new writer".into(),
            BTreeMap::from([("password".to_owned(), json!("hunter2"))]),
            None,
        );
        let secret = options.secret("password").ok().flatten().expect("a secret");
        assert_eq!(secret.reveal(), "hunter2");
        assert_eq!(json!({"password": secret}).to_string(), r#"{"password":"***"}"#);
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(json!(Secret::default()), json!(""));
    }

    #[test]
    fn what_is_wrong_names_its_option() {
        let options = OwnOptions::new(
            "new writer".into(),
            BTreeMap::from([
                ("list".to_owned(), json!([1])),
                ("short".to_owned(), json!("5")),
                ("token".to_owned(), json!("a\nb")),
                ("key".to_owned(), json!("k")),
                ("key_file".to_owned(), json!("./key")),
                ("no_file".to_owned(), json!("./is/not/there")),
            ]),
            None,
        );
        let said =
            |error: Option<OptionsError>| error.map(|error| (error.key.unwrap_or_default(), error.message));
        for (error, key, says) in [
            (options.text("path").err(), "path", "a new writer needs the key `path`"),
            (options.text("list").err(), "list", "`list` must be text, not [1]"),
            (options.duration("short").err(), "short", "new writer: short: "),
            (options.secret("token").err(), "token", "new writer: the token has several lines"),
            (options.secret("key").err(), "key_file", "new writer: give `key` or `key_file`, not both"),
            (options.secret("no").err(), "no_file", "new writer: no_file: ./is/not/there: "),
        ] {
            let (at, message) = said(error).expect("an error");
            assert!(at == key && message.starts_with(says), "{at}: {message}");
        }
    }
}
