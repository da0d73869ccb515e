//! What programs say on standard error: events of `tracing`, as lines for people or as JSON.
//!
//! `NETSPECTRA_LOG` says how much (`error`, `warn`, `info`, `debug`, or directives for parts of the program and its
//! libraries), `NETSPECTRA_LOG_FORMAT=json` how. That nobody may be there to read it fails nothing.

use std::fmt;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

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

/// Begins to write what is said; once a process.
pub fn start(program: &'static str) {
    let filter = std::env::var("NETSPECTRA_LOG").ok().filter(|filter| !filter.is_empty());
    let directives = match filter.as_deref() {
        None => "off,netspectra=info".to_owned(),
        // A level alone is about what is our own.
        Some(level) if level.parse::<Level>().is_ok() => format!("off,netspectra={level}"),
        Some(directives) => directives.to_owned(),
    };
    let (filter, mistake) = match EnvFilter::try_new(&directives) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("off,netspectra=info"), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .log_internal_errors(false);
    // Fails where there is one already.
    let _ = match std::env::var("NETSPECTRA_LOG_FORMAT").as_deref() {
        Ok("json") => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
        _ => builder.event_format(Lines { program }).try_init(),
    };
    if let Some(error) = mistake {
        warn!("NETSPECTRA_LOG: {error}; logging at info");
    }
}

/// `program: message`, and `program: warning: message`.
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
        let warning = if *event.metadata().level() == Level::WARN { "warning: " } else { "" };
        write!(writer, "{}: {warning}", self.program)?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
