//! A section of a configuration: which keys it may have, and values of the kind that a key wants.
//!
//! What is wrong is noted with its place and reading goes on, so that one run tells of all slips of a file.

use super::tree::{Kind, Location, Member, Node, Slip, Spanned};
use super::{ConfigError, Entry, Text};
use crate::options;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

/// What a file is read with.
#[derive(Default)]
pub(super) struct Place<'a> {
    pub(super) file: &'a str,
    /// What `~` stands for.
    pub(super) home: Option<String>,
    pub(super) slips: RefCell<Vec<Slip>>,
    /// Whether references stand there as they are written.
    pub(super) shows_references: bool,
    /// Tasks are missing because something is wrong with them: that there is no such task is not said.
    pub(super) lacks_tasks: Cell<bool>,
}

impl Place<'_> {
    pub(super) fn wrong(&self, at: Location, message: impl Display) -> ConfigError {
        let Location { line, column } = at;
        ConfigError::Wrong { file: self.file.to_owned(), line, column, message: message.to_string() }
    }

    /// Notes what is wrong.
    pub(super) fn note(&self, at: Location, message: impl Into<String>) {
        let message = message.into();
        if !self.lacks_tasks.get() || !message.contains("there is no task `") {
            self.slips.borrow_mut().push(Slip { at, message });
        }
    }

    /// What was read, else nothing: why not is noted.
    pub(super) fn kept<T>(&self, read: Result<T, ConfigError>) -> Option<T> {
        match read {
            Ok(read) => return Some(read),
            Err(ConfigError::Wrong { line, column, message, .. }) => {
                self.note(Location { line, column }, message)
            }
            Err(other) => self.note(Location::default(), other.to_string()),
        }
        None
    }

    /// A path with the home folder in place of `~`.
    pub(super) fn path(&self, text: &str, at: Location) -> Result<PathBuf, ConfigError> {
        options::path(text, self.home.as_deref()).map_err(|why| self.wrong(at, why))
    }
}

/// A section as it is written, or one that is left out.
pub(super) struct Section<'a> {
    pub(super) place: &'a Place<'a>,
    /// Its name and a dot; nothing for the file itself.
    name: String,
    members: &'a [Member],
}

impl<'a> Section<'a> {
    /// The section that this is, which may have these keys.
    pub(super) fn new(place: &'a Place<'a>, name: &str, node: Option<&'a Node>, known: &[&str]) -> Self {
        let mut section = Self { place, name: name.to_owned(), members: &[] };
        let Some(node) = node else { return section };
        match &node.kind {
            Kind::Section(members) => section.members = members,
            // All of its keys may be commented out.
            _ if node.is_nothing() => {}
            _ => place.note(node.at, section.no_section(node, known)),
        }
        for member in section.members.iter().filter(|member| !known.contains(&member.key.as_str())) {
            place.note(member.at, format!("{}{}", section.before(), unknown_key(&member.key, known)));
        }
        section
    }

    /// Its name and a dot.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn before(&self) -> String {
        let name = self.name.trim_end_matches('.');
        if name.is_empty() { String::new() } else { format!("{name}: ") }
    }

    fn no_section(&self, node: &Node, known: &[&str]) -> String {
        let hint = match &node.kind {
            Kind::Scalar(text, _) => without_space(text, known),
            _ => None,
        };
        let hint =
            hint.unwrap_or_else(|| format!("write keys with their values, such as `{}: ...`", known[0]));
        format!("{}a section of keys belongs here, not {}; {hint}", self.before(), node.describe())
    }

    /// The value of a key, unless it is left out.
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.members.iter().find(|member| member.key == key).map(|member| &member.value)
    }

    /// The section below a key.
    pub(super) fn section(&self, key: &str, known: &[&str]) -> Section<'a> {
        Section::new(self.place, &format!("{}{key}.", self.name), self.get(key), known)
    }

    fn scalar(&self, key: &str, wanted: &str) -> Option<(&'a str, Location)> {
        let node = self.get(key)?;
        let name = format!("{}{key}", self.name);
        match &node.kind {
            _ if node.is_nothing() => {
                let why = format!("{name} has no value; write {wanted}, or leave the key out");
                self.place.note(node.at, why);
            }
            Kind::Scalar(text, _) => return Some((text, node.at)),
            _ => self.place.note(node.at, format!("{name}: {wanted} belongs here, not {}", node.describe())),
        }
        None
    }

    /// A text.
    pub(super) fn text(&self, key: &str, wanted: &str) -> Text {
        let (text, defined) = self.scalar(key, wanted)?;
        Some(Spanned { value: text.to_owned(), defined })
    }

    /// A path.
    pub(super) fn path(&self, key: &str) -> Option<Spanned<PathBuf>> {
        let (text, defined) = self.scalar(key, "a path")?;
        let path = self.place.path(text, defined).map(|value| Spanned { value, defined });
        self.place.kept(path)
    }

    /// A whole number.
    pub(super) fn number<T: std::str::FromStr>(&self, key: &str) -> Option<Spanned<T>> {
        let (text, defined) = self.scalar(key, "a whole number")?;
        let value = text.parse::<T>().ok();
        if value.is_none() {
            let whole =
                text.split_once('.').map(|(whole, _)| whole).filter(|whole| whole.parse::<u64>().is_ok());
            let hint = whole.map(|whole| format!("; write {whole}")).unwrap_or_default();
            self.place.note(defined, format!("{}{key}: `{text}` is not a whole number{hint}", self.name));
        }
        Some(Spanned { value: value?, defined })
    }

    /// Yes or no; no where nothing is said.
    pub(super) fn flag(&self, key: &str) -> bool {
        match self.scalar(key, "true or false") {
            None => false,
            Some((text, defined)) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => true,
                "false" | "no" | "off" => false,
                _ => {
                    self.place.note(defined, format!("{}{key}: `{text}`: write true or false", self.name));
                    false
                }
            },
        }
    }

    /// The texts of a list; none where the key is left out. `None` where it is no such list, which is noted.
    pub(super) fn texts(&self, key: &str, wanted: &str) -> Option<Vec<Spanned<String>>> {
        let Some(node) = self.get(key) else { return Some(Vec::new()) };
        let name = format!("{}{key}", self.name);
        let nodes = match &node.kind {
            Kind::List(nodes) => nodes,
            _ if node.is_nothing() => {
                let why = format!("{name} has no value; write a list such as [...], or leave the key out");
                self.place.note(node.at, why);
                return None;
            }
            Kind::Scalar(text, _) => {
                let why = format!("{name}: a list belongs here; write {key}: [{text}]");
                self.place.note(node.at, why);
                return None;
            }
            Kind::Section(_) => {
                self.place.note(node.at, format!("{name}: a list belongs here, not {}", node.describe()));
                return None;
            }
        };
        let text = |node: &Node| match &node.kind {
            Kind::Scalar(text, _) if !node.is_nothing() => {
                Some(Spanned { value: text.clone(), defined: node.at })
            }
            _ => {
                let why = format!("{name}: {wanted} belongs here, not {}", node.describe());
                self.place.note(node.at, why);
                None
            }
        };
        nodes.iter().map(text).collect()
    }

    /// Entries of a list, each a section of its own; `None` where the key is left out.
    pub(super) fn entries(&self, key: &str) -> Option<Spanned<Vec<Spanned<Entry>>>> {
        let node = self.get(key)?;
        let name = format!("{}{key}", self.name);
        let nodes: &[Node] = match &node.kind {
            Kind::List(nodes) => nodes,
            _ if node.is_nothing() => &[],
            _ => {
                let why = format!(
                    "{name}: a list belongs here, not {}; begin each entry with `- `",
                    node.describe()
                );
                self.place.note(node.at, why);
                return None;
            }
        };
        let entry = |node: &Node| {
            let Kind::Section(members) = &node.kind else {
                let why = format!(
                    "{name}: an entry is a section of keys, not {}; write - {{key: value, ...}}",
                    node.describe()
                );
                self.place.note(node.at, why);
                return None;
            };
            let value = |member: &Member| {
                if member.value.is_nothing() {
                    let why = match without_space(&member.key, &[]) {
                        Some(hint) => format!("{name}: `{}`: {hint}", member.key),
                        None => {
                            format!("{name}: `{}` has no value; write one, or leave the key out", member.key)
                        }
                    };
                    self.place.note(member.at, why);
                    return None;
                }
                let value = Spanned { value: member.value.json(), defined: member.value.at };
                Some((member.key.clone(), value))
            };
            let entry: BTreeMap<_, _> = members.iter().filter_map(value).collect();
            Some(Spanned { value: entry, defined: node.at })
        };
        Some(Spanned { value: nodes.iter().filter_map(entry).collect(), defined: node.at })
    }
}

/// What to do about `key:value`.
fn without_space(text: &str, known: &[&str]) -> Option<String> {
    let (key, value) = text.split_once(':')?;
    let is_key = known.contains(&key)
        || known.is_empty()
            && !key.is_empty()
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_key.then(|| format!("a space is missing behind the colon: write `{key}: {value}`"))
}

/// That a key is not known, and which one may be meant.
pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    if let Some(hint) = without_space(key, known) {
        return format!("unknown key `{key}`; {hint}");
    }
    let closest = known.iter().map(|known| (distance(key, known), *known)).min();
    let meant = match closest {
        Some((distance, known)) if distance <= 2 && distance < key.len() => {
            format!("did you mean `{known}`? ")
        }
        _ => String::new(),
    };
    format!("unknown key `{key}`; {meant}one of {}", known.join(", "))
}

/// How many letters are different, missing or too many.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, one) in left.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], above + 1);
        for (before, other) in right.bytes().enumerate() {
            let changed = corner + usize::from(one.to_ascii_lowercase() != other);
            corner = row[before + 1];
            row[before + 1] = changed.min(corner + 1).min(row[before] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_names_the_one_that_is_meant() {
        assert_eq!(
            unknown_key("windw", &["window", "tasks"]),
            "unknown key `windw`; did you mean `window`? one of window, tasks"
        );
        assert_eq!(unknown_key("x", &["window"]), "unknown key `x`; one of window");
        assert!(unknown_key("window:60s", &["window"]).contains("write `window: 60s`"));
    }

    #[test]
    fn a_tilde_is_the_home_folder_and_a_bare_variable_is_refused() {
        let place =
            |home: Option<&str>| Place { file: "c", home: home.map(str::to_owned), ..Place::default() };
        let path =
            |text: &str, home| place(home).path(text, Location::default()).map_err(|error| error.to_string());
        assert_eq!(path("~/x", Some("/home/a")), Ok("/home/a/x".into()));
        assert_eq!(path("./~x/${HOME}", None), Ok("./~x/${HOME}".into()));
        assert_eq!(path("./a$", None), Ok("./a$".into()));
        for (text, says) in
            [("~/x", "HOME is not set"), ("~b/x", "in full"), ("./$HOME_2/x", "written ${HOME_2} here")]
        {
            assert!(path(text, None).is_err_and(|error| error.contains(says)), "{text}");
        }
    }
}
