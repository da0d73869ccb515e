//! A configuration's text as a tree of values, each with its line and column.
//!
//! What the text says is told from what it means: nothing here knows a key. A text that is not YAML is refused in words
//! that say what to do to the file.

use crate::interpolate::{Filling, Marked, is_mark, mark};
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Number, Value};
use std::collections::HashMap;

/// Values of a text, those that aliases repeat included.
const MAX_NODES: usize = 100_000;
/// How deep lists and sections may be in each other.
const MAX_DEPTH: usize = 64;

/// A place in a text: line and column, from 1; 0 where something stands in no text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
}

/// A value and where it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Spanned<T> {
    pub(super) value: T,
    pub(super) defined: Location,
}

/// Something that is wrong at a place.
#[derive(Clone, Debug)]
pub(super) struct Slip {
    pub(super) at: Location,
    pub(super) message: String,
}

impl Slip {
    fn new(at: Location, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Location,
    pub(super) kind: Kind,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// One value, and whether it stands there without quotes.
    Scalar(String, bool),
    List(Vec<Node>),
    /// Keys in the order of the text, each once.
    Section(Vec<Member>),
}

/// A key of a section and its value.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) key: String,
    pub(super) at: Location,
    pub(super) value: Node,
}

impl Node {
    /// Whether nothing stands there.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(&self.kind, Kind::Scalar(text, true) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The value for who reads options; a number that is written in another way than numbers are printed stays text.
    pub(super) fn json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(..) if self.is_nothing() => Value::Null,
            Kind::Scalar(text, false) => Value::String(text.clone()),
            Kind::Scalar(text, true) => match text.as_str() {
                "true" | "True" | "TRUE" => Value::Bool(true),
                "false" | "False" | "FALSE" => Value::Bool(false),
                text => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
            },
            Kind::List(nodes) => nodes.iter().map(Self::json).collect(),
            Kind::Section(members) => {
                members.iter().map(|member| (member.key.clone(), member.value.json())).collect()
            }
        }
    }

    /// What it is, for a message.
    pub(super) fn describe(&self) -> String {
        match &self.kind {
            Kind::Scalar(text, _) => format!("`{text}`"),
            Kind::List(_) => "a list".into(),
            Kind::Section(_) => "a section of keys".into(),
        }
    }

    fn nodes(&self) -> usize {
        1 + match &self.kind {
            Kind::Scalar(..) => 0,
            Kind::List(nodes) => nodes.iter().map(Self::nodes).sum(),
            Kind::Section(members) => members.iter().map(|member| member.value.nodes()).sum(),
        }
    }
}

fn number(text: &str) -> Option<Number> {
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '.')) {
        return None;
    }
    let whole = text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from));
    match whole {
        Ok(number) => Some(number).filter(|number| number.to_string() == text),
        Err(_) => {
            text.parse::<f64>().ok().and_then(Number::from_f64).filter(|_| text.contains(['.', 'e', 'E']))
        }
    }
}

/// A text that was read.
pub(super) struct Tree {
    root: Node,
    marked: Marked,
    /// Keys that are given twice.
    slips: Vec<Slip>,
}

impl Tree {
    /// Reads a text; what is wrong beside its being YAML comes with [`Tree::filled`].
    pub(super) fn read(text: &str) -> Result<Self, Slip> {
        if let Some((at, character)) = place_of(text, is_mark) {
            return Err(Slip::new(at, format!("the character {character:?} has no meaning here")));
        }
        let marked = mark(text);
        let mut loader = Loader::default();
        let mut documents = 0;
        for event in Parser::new_from_str(&marked.text) {
            let (event, span) = event.map_err(|error| not_yaml(text, &error))?;
            documents += usize::from(matches!(event, Event::DocumentStart(..)));
            if documents > 1 {
                let why = "a second YAML document begins here; use only one: remove `---` and duplicate keys";
                return Err(Slip::new(place(&span), why));
            }
            loader.take(event, place(&span))?;
        }
        let Loader { root, slips, .. } = loader;
        let root = root.filter(|root| !root.is_nothing()).ok_or_else(|| {
            let why = "the file is empty; one section is enough, such as `aggregator: {window: 60s}`, and what is \
                       left out has its default";
            Slip::new(Location { line: 1, column: 1 }, why)
        })?;
        Ok(Self { root, marked, slips })
    }

    /// The values with their references filled in, and what is wrong about keys and references. A plain value that is
    /// nothing but references to nothing is left out, as is its key.
    pub(super) fn filled(&self, filling: &Filling<'_>) -> (Node, Vec<Slip>) {
        let mut slips = self.slips.clone();
        let root = self.fill(&self.root, filling, &mut slips);
        (root.unwrap_or_else(|| self.root.clone()), slips)
    }

    fn fill(&self, node: &Node, filling: &Filling<'_>, slips: &mut Vec<Slip>) -> Option<Node> {
        let kind = match &node.kind {
            Kind::Scalar(text, is_plain) => {
                let filled = match self.marked.fill(text, filling) {
                    Ok(filled) => filled,
                    Err(why) => {
                        slips.push(Slip::new(node.at, why));
                        return None;
                    }
                };
                if filled.is_empty() && !text.is_empty() && *is_plain {
                    return None;
                }
                Kind::Scalar(filled, *is_plain)
            }
            Kind::List(nodes) => {
                Kind::List(nodes.iter().filter_map(|node| self.fill(node, filling, slips)).collect())
            }
            Kind::Section(members) => {
                let mut filled = Vec::new();
                for Member { key, at, value } in members {
                    let key = self.marked.fill(key, filling).unwrap_or_else(|why| {
                        slips.push(Slip::new(*at, why));
                        String::new()
                    });
                    filled.extend(self.fill(value, filling, slips).map(|value| Member {
                        key,
                        at: *at,
                        value,
                    }));
                }
                Kind::Section(filled)
            }
        };
        Some(Node { at: node.at, kind })
    }
}

/// A list or section that is not closed yet.
struct Open {
    node: Node,
    anchor: usize,
    /// A key that has no value yet.
    key: Option<(String, Location)>,
}

#[derive(Default)]
struct Loader {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    nodes: usize,
    slips: Vec<Slip>,
}

impl Loader {
    fn take(&mut self, event: Event<'_>, at: Location) -> Result<(), Slip> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let is_plain = style == ScalarStyle::Plain && !is_text;
                self.count(1, at)?;
                self.add(Node { at, kind: Kind::Scalar(text.into_owned(), is_plain) }, anchor)
            }
            Event::Alias(anchor) => {
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Slip::new(at, "this repeats a value within itself"));
                };
                node.at = at;
                self.count(node.nodes(), at)?;
                self.add(node, 0)
            }
            Event::SequenceStart(_, anchor, _) => self.begin(Kind::List(Vec::new()), anchor, at),
            Event::MappingStart(_, anchor, _) => self.begin(Kind::Section(Vec::new()), anchor, at),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { node, anchor, .. }) => self.add(node, anchor),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, kind: Kind, anchor: usize, at: Location) -> Result<(), Slip> {
        if self.open.len() == MAX_DEPTH {
            return Err(Slip::new(at, format!("sections are more than {MAX_DEPTH} deep in each other")));
        }
        self.count(1, at)?;
        self.open.push(Open { node: Node { at, kind }, anchor, key: None });
        Ok(())
    }

    fn count(&mut self, nodes: usize, at: Location) -> Result<(), Slip> {
        self.nodes += nodes;
        match self.nodes > MAX_NODES {
            true => Err(Slip::new(at, format!("the file has more than {MAX_NODES} values"))),
            false => Ok(()),
        }
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Slip> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut open.node.kind, open.key.take()) {
            (Kind::List(nodes), _) => nodes.push(node),
            (Kind::Section(_), None) => match node.kind {
                Kind::Scalar(text, _) => open.key = Some((text, node.at)),
                _ => {
                    return Err(Slip::new(
                        node.at,
                        "a key is one word; is a bracket or a quotation mark missing?",
                    ));
                }
            },
            (Kind::Section(members), Some((key, at))) => {
                let merged = match (key.as_str(), node) {
                    ("<<", Node { kind: Kind::Section(merged), .. }) => merged
                        .into_iter()
                        .filter(|one| members.iter().all(|earlier| earlier.key != one.key))
                        .collect(),
                    (_, value) => vec![Member { key, at, value }],
                };
                for member in merged {
                    match members.iter().find(|earlier| earlier.key == member.key) {
                        Some(earlier) => {
                            let (key, line) = (&member.key, earlier.at.line);
                            let message =
                                format!("`{key}` is given twice; the first one is in line {line}: keep one");
                            self.slips.push(Slip::new(member.at, message));
                        }
                        None => members.push(member),
                    }
                }
            }
            (Kind::Scalar(..), _) => {}
        }
        Ok(())
    }
}

fn place(span: &Span) -> Location {
    Location { line: span.start.line() as u64, column: span.start.col() as u64 + 1 }
}

/// The first character that is so, and where it stands.
fn place_of(text: &str, is: impl Fn(char) -> bool) -> Option<(Location, char)> {
    let mut lines = (1..).zip(text.lines());
    lines.find_map(|(line, text)| {
        let (column, character) = (1..).zip(text.chars()).find(|(_, character)| is(*character))?;
        Some((Location { line, column }, character))
    })
}

/// A key and its value with no space between them: the key, if the line is that.
fn key_without_space(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim().trim_start_matches("- ").split_once(':')?;
    let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let is_value = value.starts_with(|first: char| !first.is_whitespace() && first != '/');
    (is_key && is_value).then_some((key, value))
}

/// What to do about a text that is not YAML.
fn not_yaml(text: &str, error: &ScanError) -> Slip {
    let mark = error.marker();
    let at = Location { line: mark.line() as u64, column: mark.col() as u64 + 1 };
    let mut before = (1..=at.line).zip(text.lines()).collect::<Vec<_>>();
    before.reverse();
    // The reader may have noticed it lines later.
    let lines = before.iter().take(3);
    let glued = lines.into_iter().find_map(|(line, text)| Some((*line, *text, key_without_space(text)?)));
    if let Some((line, text, (key, value))) = glued {
        let column = text.chars().take_while(|character| character.is_whitespace()).count() as u64 + 1;
        let message = format!("a space is missing behind the colon: write `{key}: {}`", value.trim_end());
        return Slip::new(Location { line, column }, message);
    }
    let tab = before.iter().take(2).find_map(|(line, text)| {
        let indent = text.chars().take_while(|character| character.is_whitespace());
        let column = indent.take_while(|character| *character != '\t').count() as u64 + 1;
        text.trim_start_matches(' ').starts_with('\t').then_some(Location { line: *line, column })
    });
    if let Some(at) = tab {
        return Slip::new(at, "a tab where a line is indented; use spaces");
    }
    Slip::new(at, reason(error.kind()))
}

fn reason(kind: &ErrorKind) -> String {
    match kind {
        ErrorKind::UnclosedFlowCollection { open } => format!("`{open}` is not closed"),
        ErrorKind::UnexpectedEofFlowSequence => "`[` is not closed".into(),
        ErrorKind::UnexpectedEofFlowMapping | ErrorKind::UnexpectedEofImplicitFlowMapping => {
            "`{` is not closed".into()
        }
        ErrorKind::MismatchedFlowCollectionEnd { open, close } => {
            format!("`{open}` is closed by `{close}`")
        }
        ErrorKind::ExpectedFlowMappingSeparator | ErrorKind::ExpectedFlowSequenceSeparator => {
            "a comma or a closing bracket is missing before this".into()
        }
        ErrorKind::MisplacedFlowCollectionEnd => "a closing bracket that nothing has opened".into(),
        ErrorKind::UnclosedQuotedScalar | ErrorKind::DocumentIndicatorInQuotedScalar => {
            "a quotation mark is not closed".into()
        }
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => {
            "something follows a closing quotation mark; quote all of the value, or nothing of it".into()
        }
        ErrorKind::UnknownQuotedScalarEscape
        | ErrorKind::InvalidQuotedScalarHexEscape
        | ErrorKind::InvalidUnicodeEscape => {
            "a backslash between double quotes begins an escape; write `\\\\`, or use single quotes".into()
        }
        ErrorKind::UnexpectedCharacter { character } => {
            format!("a value cannot begin with `{character}`; write it in double quotes")
        }
        ErrorKind::UnknownAnchor => {
            "a value beginning with `*` is a YAML alias, and no anchor of that name exists; put it in double quotes"
                .into()
        }
        ErrorKind::MappingValueNotAllowed
        | ErrorKind::InvalidColonPlacement
        | ErrorKind::MappingKeyNotAllowed => {
            "a colon where no key can stand; write a value with a colon in double quotes, and each key in a line of its own"
                .into()
        }
        ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::BlockSequenceEntryNotAllowed => {
            "wrong indentation, or not a `key: value` line".into()
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => {
            "a line that is no `key: value`; is a colon missing, or the space behind it?".into()
        }
        ErrorKind::RecursionLimitExceeded => "sections are too deep in each other".into(),
        _ => "this cannot be read; look at quotation marks, brackets and how the line is indented".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let slip = Tree::read(text).err().unwrap_or_else(|| panic!("read: {text}"));
        format!("{}:{}: {}", slip.at.line, slip.at.column, slip.message)
    }

    fn json(text: &str) -> String {
        let tree = Tree::read(text).unwrap_or_else(|slip| panic!("{text}: {slip:?}"));
        let (root, slips) = tree.filled(&Filling::Values(&|name| (name == "N").then(|| "4".to_owned())));
        assert!(slips.is_empty(), "{text}: {slips:?}");
        root.json().to_string()
    }

    #[test]
    fn values_are_what_they_are_written_as() {
        for (text, expected) in [
            ("{a: 1, b: -2, c: 1.5, d: true, e: x}", r#"{"a":1,"b":-2,"c":1.5,"d":true,"e":"x"}"#),
            (
                "{a: '1', b: \"true\", c: 007, d: 10.0.0.0/8}",
                r#"{"a":"1","b":"true","c":"007","d":"10.0.0.0/8"}"#,
            ),
            ("{a: ${N}, b: '${N}', c: x${N}, d: ${NO:-}}", r#"{"a":4,"b":"4","c":"x4"}"#),
            ("a: ./x-'y\n# ${NOT_SET} 'z", r#"{"a":"./x-'y"}"#),
            ("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", r#"{"a":{"b":1},"c":{"b":1},"d":{"b":1,"e":2}}"#),
        ] {
            assert_eq!(json(text), expected);
        }
    }

    #[test]
    fn a_text_that_is_not_yaml_is_refused_with_what_to_do() {
        for (text, place, says) in [
            ("", "1:1:", "the file is empty"),
            ("# only this\n", "1:1:", "the file is empty"),
            ("a:\n  window:60s\n  b: 5s\n", "2:3:", "write `window: 60s`"),
            ("a: [1, 2", "1:", "`[` is not closed"),
            ("a:\n\tb: 1\n", "2:1:", "use spaces"),
            ("a: 'x", "1:", "quotation mark"),
            ("a: 1\n---\na: 2\n", "2:1:", "a second YAML document"),
            ("a: @x\n", "1:", "double quotes"),
            ("a: b: c\n", "1:", "colon"),
            ("a: \u{f0000}", "1:4:", "no meaning"),
        ] {
            let error = refused(text);
            assert!(error.starts_with(place) && error.contains(says), "{text:?}\n-> {error}");
        }
    }

    #[test]
    fn aliases_cannot_fill_the_memory() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let repeated = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{repeated}]\n"));
        }
        assert!(refused(&text).contains("values"));
    }
}
