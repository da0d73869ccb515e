//! `${NAME}` and `${NAME:-default}` in the values of a YAML text.
//!
//! Done on the text so that numbers and lists can come from the environment too; comments are left alone, and a value
//! is quoted as its place asks, so it cannot become structure. YAML's block scalars are not told apart.

/// A reference that cannot be put in.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct InterpolateError {
    /// From 1.
    pub line: u64,
    /// From 1.
    pub column: u64,
    message: String,
}

/// Text with all references put in.
#[derive(Debug)]
pub struct Interpolated {
    /// The text; every line has the number it had.
    pub text: String,
    secrets: Vec<(String, String)>,
}

impl Interpolated {
    /// A message with every value that came from a variable replaced by the variable's name.
    pub fn redact(&self, message: &str) -> String {
        let redact = |message: String, (name, value): &(String, String)| {
            if value.is_empty() { message } else { message.replace(value, &format!("${{{name}}}")) }
        };
        self.secrets.iter().fold(message.to_owned(), redact)
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Quote {
    Plain,
    Single,
    Double,
}

/// Puts in every reference outside of comments.
pub fn interpolate(
    text: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Interpolated, InterpolateError> {
    let mut out = Interpolated { text: String::with_capacity(text.len()), secrets: Vec::new() };
    let mut quote = Quote::Plain;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let mut previous = ' ';
        let mut rest = line;
        while let Some(character) = rest.chars().next() {
            if character == '#' && quote == Quote::Plain && previous.is_whitespace() {
                out.text.push_str(rest);
                break;
            }
            if let Some(reference) = rest.strip_prefix("${") {
                let column = line[..line.len() - rest.len()].chars().count() as u64 + 1;
                let wrong = |message| InterpolateError { line: number as u64 + 1, column, message };
                let (inside, behind) =
                    reference.split_once('}').ok_or_else(|| wrong("`${` without its `}`".into()))?;
                let (name, default) = match inside.split_once(":-") {
                    Some((name, default)) => (name, Some(default)),
                    None => (inside, None),
                };
                let value = match (
                    variable(name).filter(|value| default.is_none() || !value.is_empty()),
                    default,
                ) {
                    (Some(value), _) => {
                        out.secrets.push((name.to_owned(), value.clone()));
                        value
                    }
                    (None, Some(default)) => default.to_owned(),
                    (None, None) => {
                        let message = format!(
                            "the environment variable `{name}` is not set; set it, or give a default as in ${{{name}:-default}}"
                        );
                        return Err(wrong(message));
                    }
                };
                push_value(&mut out.text, quote, &value).map_err(|why| wrong(format!("`{name}`: {why}")))?;
                (previous, rest) = ('}', behind);
                continue;
            }
            quote = match (quote, character) {
                (Quote::Plain, '"') if !previous.is_alphanumeric() => Quote::Double,
                (Quote::Plain, '\'') if !previous.is_alphanumeric() => Quote::Single,
                (Quote::Double, '"') if previous != '\\' => Quote::Plain,
                (Quote::Single, '\'') => Quote::Plain,
                (quote, _) => quote,
            };
            out.text.push(character);
            // An escaped backslash escapes nothing further.
            previous = if previous == '\\' && character == '\\' { ' ' } else { character };
            rest = &rest[character.len_utf8()..];
        }
    }
    Ok(out)
}

fn push_value(out: &mut String, quote: Quote, value: &str) -> Result<(), &'static str> {
    if value.chars().any(char::is_control) {
        return Err("its value holds control characters or several lines");
    }
    match quote {
        Quote::Double => out.push_str(&value.replace('\\', "\\\\").replace('"', "\\\"")),
        Quote::Single => out.push_str(&value.replace('\'', "''")),
        Quote::Plain => {
            let structure = value.contains(": ")
                || value.contains(" #")
                || value.ends_with(':')
                || value.starts_with(|first: char| {
                    "!&*?|>@`\"'%#{}[],-".contains(first)
                        && value.len() > 1
                        && !value[1..].starts_with(|second: char| second.is_ascii_digit())
                })
                || value.contains(['{', '}', '[', ']', ',']);
            if structure {
                return Err("its value would be read as YAML; write the reference in double quotes");
            }
            out.push_str(value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, String> {
        let variable = |name: &str| match name {
            "N" => Some("4".to_owned()),
            "EMPTY" => Some(String::new()),
            "ODD" => Some("a\"b\\c: 'd' # {".to_owned()),
            _ => None,
        };
        interpolate(text, variable)
            .map(|out| out.text)
            .map_err(|error| format!("{}:{}: {error}", error.line, error.column))
    }

    #[test]
    fn references_become_values() {
        assert_eq!(with("a: ${N}\nb: ${NO:-7}"), Ok("a: 4\nb: 7".into()));
        assert_eq!(with("a: \"x${N}y\" # ${NO}"), Ok("a: \"x4y\" # ${NO}".into()));
        assert_eq!(with("a: ${EMPTY:-z}${EMPTY}"), Ok("a: z".into()));
    }

    #[test]
    fn values_stay_values() {
        assert_eq!(with("a: \"${ODD}\""), Ok("a: \"a\\\"b\\\\c: 'd' # {\"".into()));
        assert_eq!(with("a: '${ODD}'"), Ok("a: 'a\"b\\c: ''d'' # {'".into()));
        assert!(with("a: ${ODD}").is_err_and(|error| error.contains("double quotes")));
    }

    #[test]
    fn what_is_not_set_or_not_closed_is_an_error_at_its_place() {
        assert!(
            with("a: 1\nb:  ${NO}").is_err_and(|error| error.starts_with("2:5:") && error.contains("`NO`"))
        );
        assert!(with("a: ${N").is_err());
    }

    #[test]
    fn a_message_does_not_show_a_value() {
        let out = interpolate("a: ${N}", |_| Some("hunter2".into())).expect("text");
        assert_eq!(out.redact("invalid value hunter2"), "invalid value ${N}");
    }
}
