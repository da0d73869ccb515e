//! `${NAME}` and `${NAME:-default}` in the values of a YAML text; `$${` is a literal `${`.
//!
//! Each reference is first replaced by a mark of the same width, so that the text can be read as YAML with every place
//! as it was, and a reference in a comment is never looked at. The marks in the values are then filled in: with the
//! values of the variables, or, for messages, with the references as they are written. So a value from the
//! environment is hidden by where it stands: no message is ever made from it.

use std::fmt::Write;

/// The first of the characters that number references: the supplementary private use plane.
const FIRST: u32 = 0xF_0000;
/// References that one text may have.
const MAX_REFERENCES: usize = 0xF000;
/// Fills a mark up to the width of its reference.
const FILLER: char = '\u{FFFFD}';

/// What a reference stands for.
#[derive(Debug)]
enum Reference {
    /// A variable, and what stands for it where it is not set or empty.
    Variable { name: String, default: Option<String> },
    /// `$${`: a literal `${`.
    Escape,
    /// `${` without its `}` in the line.
    Open,
}

/// A text with marks in place of its references.
#[derive(Debug)]
pub struct Marked {
    /// The text; every line and column is as it was.
    pub text: String,
    references: Vec<Reference>,
}

/// With what marks are filled in.
pub enum Filling<'a> {
    /// With the values of variables.
    Values(&'a dyn Fn(&str) -> Option<String>),
    /// With the references as they are written, for messages.
    References,
}

/// Puts marks in place of all references.
pub fn mark(text: &str) -> Marked {
    let mut marked = Marked { text: String::with_capacity(text.len()), references: Vec::new() };
    let mut rest = text;
    while let Some(start) = rest.find("${").filter(|_| marked.references.len() < MAX_REFERENCES) {
        let is_escape = rest[..start].ends_with('$');
        let (before, reference) = rest.split_at(start - usize::from(is_escape));
        marked.text.push_str(before);
        let line = reference.lines().next().unwrap_or_default();
        let (reference, width) = match (is_escape, line.find('}')) {
            (true, _) => (Reference::Escape, 3),
            (false, None) => (Reference::Open, 2),
            (false, Some(end)) => (variable(&line[2..end]), end + 1),
        };
        let number = marked.references.len();
        marked.references.push(reference);
        let (written, behind) = rest[before.len()..].split_at(width);
        let mark = char::from_u32(FIRST + number as u32).into_iter();
        marked.text.extend(mark.chain(std::iter::repeat_n(FILLER, written.chars().count() - 1)));
        rest = behind;
    }
    marked.text.push_str(rest);
    marked
}

fn variable(inside: &str) -> Reference {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default.to_owned())),
        None => (inside, None),
    };
    Reference::Variable { name: name.to_owned(), default }
}

/// Whether a character belongs to a mark; no other text may have it.
pub fn is_mark(character: char) -> bool {
    (FIRST..=u32::from(FILLER)).contains(&u32::from(character))
}

impl Marked {
    /// Fills in the marks of a value; the error says what is wrong about a reference.
    pub fn fill(&self, value: &str, filling: &Filling<'_>) -> Result<String, String> {
        let mut filled = String::with_capacity(value.len());
        for character in value.chars().filter(|character| *character != FILLER) {
            let number = u32::from(character).checked_sub(FIRST).map(|number| number as usize);
            match number.and_then(|number| self.references.get(number)) {
                None => filled.push(character),
                Some(reference) => reference.fill(&mut filled, filling)?,
            }
        }
        Ok(filled)
    }
}

impl Reference {
    fn fill(&self, out: &mut String, filling: &Filling<'_>) -> Result<(), String> {
        let (name, default) = match self {
            Self::Escape => {
                out.push_str("${");
                return Ok(());
            }
            Self::Open => {
                return Err("`${` without its `}`; write ${NAME}, or $${ for a literal ${".into());
            }
            Self::Variable { name, default } => (name, default),
        };
        let is_name = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            !name.is_empty() && name.bytes().all(allowed) && !name.as_bytes()[0].is_ascii_digit()
        };
        if !is_name(name) {
            let way_out = "letters, digits and `_`, as in ${NAME} or ${NAME:-default}";
            return Err(format!("`{name}` is not the name of an environment variable; use {way_out}"));
        }
        let variable = match filling {
            Filling::References => {
                // A default is no secret.
                let _ = match default {
                    Some(default) => write!(out, "${{{name}:-{default}}}"),
                    None => write!(out, "${{{name}}}"),
                };
                return Ok(());
            }
            Filling::Values(variable) => variable(name),
        };
        match (variable.filter(|value| default.is_none() || !value.is_empty()), default) {
            (Some(value), _)
                if value.chars().any(|character| character.is_control() || is_mark(character)) =>
            {
                Err(format!("`{name}`: its value holds control characters or several lines"))
            }
            (Some(value), _) => {
                out.push_str(&value);
                Ok(())
            }
            (None, Some(default)) => {
                out.push_str(default);
                Ok(())
            }
            (None, None) => Err(format!(
                "the environment variable `{name}` is not set; set it, or give a default as in ${{{name}:-default}}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, String> {
        let variable = |name: &str| match name {
            "N" => Some("4".to_owned()),
            "EMPTY" => Some(String::new()),
            "LINES" => Some("a\nb".to_owned()),
            _ => None,
        };
        mark(text).fill(&mark(text).text, &Filling::Values(&variable))
    }

    #[test]
    fn references_become_values() {
        assert_eq!(with("a: ${N}\nb: ${NO:-7}"), Ok("a: 4\nb: 7".into()));
        assert_eq!(with("a: ${EMPTY:-z}${EMPTY}"), Ok("a: z".into()));
        assert_eq!(with("$$N $N $ {N} $$${N}"), Ok("$$N $N $ {N} $${N}".into()));
    }

    #[test]
    fn an_escaped_reference_is_text() {
        assert_eq!(with("$${HOME}/${N}/$${"), Ok("${HOME}/4/${".into()));
    }

    #[test]
    fn marks_are_as_wide_as_what_they_stand_for() {
        let text = "a: ${NAME} b\nc: $${é} ${é:-ü} ${open\nd";
        let marked = mark(text);
        let widths = |text: &str| text.lines().map(|line| line.chars().count()).collect::<Vec<_>>();
        assert_eq!(widths(&marked.text), widths(text));
    }

    #[test]
    fn what_is_not_set_or_not_closed_is_an_error() {
        for (text, says) in [
            ("${NO}", "`NO` is not set"),
            ("${N", "without its `}`"),
            ("${}", "not the name"),
            ("${N N}", "`N N` is not the name"),
            ("${LINES}", "several lines"),
        ] {
            assert!(with(text).is_err_and(|error| error.contains(says)), "{text}");
        }
    }

    #[test]
    fn a_message_shows_the_reference_and_not_the_value() {
        let marked = mark("x${N}y${NO:-z}");
        assert_eq!(marked.fill(&marked.text, &Filling::References), Ok("x${N}y${NO:-z}".into()));
    }
}
