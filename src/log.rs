//! What programs say on standard error: events of `tracing`, as lines for people or as JSON.
//!
//! `NETSPECTRA_LOG` says how much (`error`, `warn`, `info`, `debug`, `trace`, `off`, or directives for parts of the program
//! and its libraries), `NETSPECTRA_LOG_FORMAT=json` how. What is no level is refused: as a filter it would silence errors
//! too. That nobody may be there to read it fails nothing.

use std::fmt;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

/// Where nothing is said: our own at `info`.
const DEFAULT: &str = "off,netspectra=info";

/// Says what has happened.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { ::tracing::info!(target: "netspectra", $($text)*) };
}

/// Warns of what may go wrong, or has without harm.
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { ::tracing::warn!(target: "netspectra", $($text)*) };
}

/// Says what ends the program.
#[macro_export]
macro_rules! fail {
    ($($text:tt)*) => { ::tracing::error!(target: "netspectra", $($text)*) };
}

/// Says what who looks for a fault wants to know: connections, subscriptions, commits, pauses.
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => { ::tracing::debug!(target: "netspectra", $($text)*) };
}

/// Says what happens several times a second: epochs, requests, messages of rows.
#[macro_export]
macro_rules! trace {
    ($($text:tt)*) => { ::tracing::trace!(target: "netspectra", $($text)*) };
}

/// The directives that a value of `NETSPECTRA_LOG` stands for; the error says what would be right.
fn directives(value: &str) -> Result<String, String> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    // What others call a level.
    let level =
        |word: &str| if word.eq_ignore_ascii_case("warning") { "warn".to_owned() } else { word.to_owned() };
    let levels = "error, warn (or warning), info, debug, trace, off";
    let mut directives = match level(value.trim()) {
        empty if empty.is_empty() => return Ok(DEFAULT.to_owned()),
        // A level alone is about what is our own.
        alone if is_level(&alone) => return Ok(format!("off,netspectra={alone}")),
        // Directives add to what is said where none are given.
        _ => DEFAULT.to_owned(),
    };
    for directive in value.split(',').map(str::trim) {
        let (part, word) =
            directive.rsplit_once('=').map_or((None, directive), |(part, word)| (Some(part), word));
        let word = level(word.trim());
        if !is_level(&word) {
            let example = "NETSPECTRA_LOG=debug, or NETSPECTRA_LOG=info,async_nats=debug for a part";
            return Err(format!("NETSPECTRA_LOG: `{word}` is not a level; one of {levels}, as in {example}"));
        }
        directives.push(',');
        directives.extend(part.map(|part| format!("{}=", part.trim())));
        directives.push_str(&word);
    }
    Ok(directives)
}

/// Begins to write what is said, once a process; the error says what is wrong about the variables.
pub fn start(program: &'static str) -> Result<(), String> {
    let value = std::env::var_os("NETSPECTRA_LOG").unwrap_or_default();
    let filter = directives(&value.to_string_lossy()).and_then(|directives| {
        EnvFilter::try_new(directives).map_err(|error| format!("NETSPECTRA_LOG: {error}"))
    });
    let (filter, mut mistake) = match filter {
        Ok(filter) => (filter, None),
        Err(why) => (EnvFilter::new(DEFAULT), Some(why)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);
    // Fails where there is one already.
    let format = std::env::var_os("NETSPECTRA_LOG_FORMAT").unwrap_or_default();
    let _ = match &*format.to_string_lossy() {
        "json" => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
        format => {
            if !matches!(format, "" | "text") {
                mistake.get_or_insert(format!(
                    "NETSPECTRA_LOG_FORMAT: `{format}` is not a format; one of text, json"
                ));
            }
            builder.event_format(Lines { program }).try_init()
        }
    };
    mistake.map_or(Ok(()), Err)
}

/// `program: message`, with `warning: ` and the like before messages that are not of the usual level.
struct Lines {
    program: &'static str,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::WARN => "warning: ",
            Level::DEBUG => "debug: ",
            Level::TRACE => "trace: ",
            _ => "",
        };
        write!(writer, "{}: {level}", self.program)?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_about_what_is_our_own_and_directives_silence_no_error() {
        for (value, expected) in [
            ("", "off,netspectra=info"),
            ("debug", "off,netspectra=debug"),
            ("WARN", "off,netspectra=WARN"),
            ("warning", "off,netspectra=warn"),
            ("off", "off,netspectra=off"),
            ("async_nats=debug", "off,netspectra=info,async_nats=debug"),
            ("warning, async_nats=Warning", "off,netspectra=info,warn,async_nats=warn"),
        ] {
            assert_eq!(directives(value), Ok(expected.into()), "{value}");
        }
    }

    #[test]
    fn a_word_that_is_not_a_level_is_refused_with_the_levels() {
        for wrong in ["verbose", "netspectra", "netspectra=verbose", "info,", "debug;info", "=x"] {
            let error = directives(wrong).expect_err(wrong);
            assert!(error.contains("error, warn (or warning), info, debug, trace, off"), "{error}");
        }
    }
}
