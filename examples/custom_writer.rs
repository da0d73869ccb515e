//! A writer of one's own, `datagram`: every row of every snapshot as a JSON object, in a datagram of its own to a Unix
//! socket. docs/EXTENDING.md goes through it step by step.
//!
//! `custom_writer analyze -c examples/custom_writer.yaml FILE...` is `pcap-analyzer` with it, and `custom_writer engine ...`
//! is `ns-engine` with it.

use netspectra::config::Registries;
use netspectra::dataflows::aggregator::OptionsError;
use netspectra::options::OwnOptions;
use netspectra::programs::{ns_engine, pcap_analyzer};
use netspectra::sinks::SinkError;
use netspectra::sinks::delivery::Destination;
use netspectra::sinks::json::rows;
use netspectra::sinks::outbox::Entry;
use netspectra::sinks::registry::{Opening, SERVER_AWAY, Target, WriterKind, WriterRegistry};
use serde_json::{Value, json};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const KIND: WriterKind = WriterKind { name: "datagram", keys: &["path", "send_timeout"], read };

/// The options: a socket that somebody else has made, and how long it may take no datagram.
#[derive(Clone)]
struct Datagram {
    path: PathBuf,
    send_timeout: Duration,
}

fn read(options: &OwnOptions) -> Result<Arc<dyn Target>, OptionsError> {
    let path = options.path("path")?;
    if path.as_os_str().is_empty() {
        return Err(options.refuse("path", "`path` is empty; name a socket, such as /run/rows.sock"));
    }
    let send_timeout = options.duration("send_timeout")?.unwrap_or(Duration::from_secs(5));
    Ok(Arc::new(Datagram { path, send_timeout }))
}

impl Datagram {
    fn connect(&self) -> Result<UnixDatagram, SinkError> {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect(&self.path)?;
            socket.set_write_timeout(Some(self.send_timeout))?;
            Ok(socket)
        };
        connect().map_err(SinkError::io("connect to", &self.path))
    }
}

impl Target for Datagram {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn options(&self) -> Value {
        json!({"path": self.describe(), "send_timeout": format!("{:?}", self.send_timeout)})
    }

    fn check(&self, _opening: &Opening<'_>) -> Result<(), SinkError> {
        self.connect().map(drop)
    }

    fn open(&self, opening: &Opening<'_>) -> Result<Box<dyn Destination>, SinkError> {
        // Nobody may listen yet: that is said, and the first window is tried until somebody does.
        opening.unless_wrong(self.check(opening))?;
        Ok(Box::new(self.clone()))
    }

    fn gives_up_after(&self) -> Duration {
        SERVER_AWAY
    }
}

impl Destination for Datagram {
    fn write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError> {
        // What fails is tried again from the first entry on: the receiver tells by task, window, revision and key what it has.
        let socket = self.connect()?;
        let mut snapshots = entries.iter().flat_map(|entry| &entry.snapshots);
        let sent = snapshots.try_for_each(|snapshot| rows(snapshot, |row| socket.send(row).map(drop)));
        sent.map_err(SinkError::io("send to", &self.path))
    }
}

fn main() -> ExitCode {
    let writers = WriterRegistry::default().with(KIND);
    let registries = Registries { writers, ..Registries::default() };
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let program = if arguments.len() > 1 { arguments.remove(1) } else { "--help".into() };
    match program.to_str() {
        Some("analyze") => pcap_analyzer::main(&registries, arguments),
        Some("engine") => ns_engine::main(&registries, arguments),
        _ => {
            eprintln!(
                "usage: custom_writer analyze|engine [OPTIONS]... as pcap-analyzer and ns-engine have them"
            );
            ExitCode::from(2)
        }
    }
}
