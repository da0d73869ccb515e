//! Snapshots and alerts as messages on NATS, for others to build on: `<subject>.<task>` the rows of a task in a window, in
//! parts, `<subject>.windows` when all of a window has gone out, `<subject>.alerts` each event.
//!
//! A message that is sent again bears the same `Nats-Msg-Id`, by which a stream of JetStream keeps it once; that of
//! another run bears another.

use super::delivery::Destination;
use super::outbox::Entry;
use super::pieces::LINES;
use super::registry::{Opening, SERVER_AWAY, Target, WriterKind, check_names};
use super::text::{Text, window_name};
use super::{SinkError, named_summary};
use crate::bus::{Bus, BusError, Settings};
use crate::ledger::Ledger;
use crate::options::OwnOptions;
use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use bytes::Bytes;
use dataflows::aggregator::OptionsError;
use dataflows::rows::{Snapshot, TaskRows};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Bytes of a message of rows, unless the server takes less.
const MESSAGE: usize = 512 << 10;
/// What such a message has beside its rows, at most.
const BESIDE: usize = 4096;
/// Messages that the client may hold.
const CAPACITY: usize = 256;

pub(super) const KIND: WriterKind = WriterKind { name: "nats", keys: &["subject"], read };

fn read(options: &OwnOptions) -> Result<Arc<dyn Target>, OptionsError> {
    let subject = options.text("subject")?;
    let allowed = |character: char| character.is_ascii_graphic() && !matches!(character, '*' | '>');
    if subject.is_empty() || !subject.chars().all(allowed) || subject.split('.').any(str::is_empty) {
        let why = format!("`{subject}` is no subject; words with dots between them, no wildcards");
        return Err(options.refuse("subject", why));
    }
    Ok(Arc::new(Subject(subject)))
}

/// A subject on the servers of the `nats` section.
struct Subject(String);

impl Subject {
    fn client(&self, opening: &Opening<'_>) -> Result<Nats, SinkError> {
        let subject = (self.0.clone(), opening.began);
        Nats::new(opening.nats.clone(), opening.program, subject).map_err(opening.no_threads())
    }
}

impl Target for Subject {
    fn describe(&self) -> String {
        format!("NATS subject {}", self.0)
    }

    fn options(&self) -> Value {
        json!({"subject": self.0})
    }

    fn check(&self, opening: &Opening<'_>) -> Result<(), SinkError> {
        self.client(opening)?.connect()
    }

    fn open(&self, opening: &Opening<'_>) -> Result<Box<dyn Destination>, SinkError> {
        let mut writer = self.client(opening)?;
        opening.unless_wrong(writer.connect())?;
        Ok(Box::new(writer))
    }

    fn check_tasks(&self, tasks: &[Arc<str>]) -> Result<(), OptionsError> {
        check_names((KIND.name, "subjects"), (&["windows", "alerts"], &[""]), tasks)
    }

    fn hears_alerts(&self) -> bool {
        true
    }

    fn gives_up_after(&self) -> Duration {
        SERVER_AWAY
    }
}

/// A subject of a NATS server.
pub struct Nats {
    settings: Settings,
    program: &'static str,
    subject: String,
    began: u64,
    runtime: Runtime,
    bus: Option<Bus>,
}

impl Nats {
    /// A writer to this subject; does not connect yet. `program` names us to the server; when the run `began` tells its
    /// messages from those of another.
    pub fn new(
        settings: Settings,
        program: &'static str,
        (subject, began): (String, u64),
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { settings, program, subject, began, runtime, bus: None })
    }

    /// Connects, where it has not.
    pub fn connect(&mut self) -> Result<(), SinkError> {
        if self.bus.is_none() {
            let connected = self.runtime.block_on(Bus::connect(&self.settings, self.program, CAPACITY));
            self.bus = Some(connected.map_err(|error| self.failed(&error))?);
        }
        Ok(())
    }

    fn failed(&self, error: &BusError) -> SinkError {
        let server = format!("NATS, subject {}", self.subject);
        SinkError::Server { server, why: error.to_string(), is_usage: error.is_usage() }
    }

    fn try_write(&self, bus: &Bus, entries: &[Arc<Entry>]) -> Result<(), BusError> {
        self.runtime.block_on(async {
            let outgoing = Outgoing { bus, subject: &self.subject, began: self.began };
            // What waits in the client while the server is away would be sent twice.
            bus.round_trip().await?;
            for entry in entries {
                for snapshot in &entry.snapshots {
                    outgoing.snapshot(snapshot).await?;
                }
                for event in &entry.events {
                    let payload = serde_json::to_vec(event).expect("an event can be written");
                    outgoing.publish("alerts", &event.name(), payload.into()).await?;
                }
            }
            bus.round_trip().await
        })
    }
}

impl Destination for Nats {
    fn write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError> {
        self.connect()?;
        let Some(bus) = &self.bus else { return Ok(()) };
        let written = self.try_write(bus, entries).map_err(|error| self.failed(&error));
        if written.is_err() {
            // A new connection has nothing left of this one, and knows of no refusal.
            self.bus = None;
        }
        written
    }

    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        self.bus = None;
        Ok(())
    }
}

struct Outgoing<'a> {
    bus: &'a Bus,
    subject: &'a str,
    began: u64,
}

impl Outgoing<'_> {
    async fn publish(&self, last: &str, id: &str, payload: Bytes) -> Result<(), BusError> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, format!("{id}-{}", self.began));
        let subject = format!("{}.{last}", self.subject);
        let sent = self.bus.client().publish_with_headers(subject, headers, payload).await;
        sent.map_err(|error| self.bus.failed("publish", &error))
    }

    async fn snapshot(&self, snapshot: &Snapshot) -> Result<(), BusError> {
        let window = window_name(snapshot.span);
        let id = |task: &str| format!("{task}-{window}-{}", snapshot.revision);
        let told = named_summary(snapshot);
        let most = MESSAGE.min(self.bus.client().server_info().max_payload).saturating_sub(BESIDE);
        for task in &snapshot.tasks {
            let parts = parts(task, most);
            let many = parts.len();
            for (part, rows) in parts.into_iter().enumerate() {
                let head = json!({
                    "task": &*task.name,
                    "window_start": told["window_start"],
                    "window_end": told["window_end"],
                    "revision": snapshot.revision,
                    "part": part,
                    "parts": many,
                });
                let mut payload = head.to_string().into_bytes();
                payload.pop();
                payload.extend_from_slice(b",\"rows\":[");
                payload.extend_from_slice(&rows);
                payload.extend_from_slice(b"]}");
                self.publish(&task.name, &format!("{}-{part}", id(&task.name)), payload.into()).await?;
            }
        }
        let payload = told.to_string().into_bytes();
        self.publish("windows", &id("windows"), payload.into()).await
    }
}

/// A task's rows as objects with commas between them, in parts of about so many bytes; one where there is no row.
fn parts(task: &TaskRows, most: usize) -> Vec<Vec<u8>> {
    let (mut parts, mut part, mut text) = (Vec::new(), Vec::new(), Text::default());
    for piece in task.pieces(LINES) {
        task.visit(&piece, |row| {
            let before = part.len();
            part.extend_from_slice(if part.is_empty() { b"{".as_slice() } else { b",{" });
            text.members(&mut part, &task.schema, &row);
            part.push(b'}');
            if part.len() > most && before > 0 {
                // Without the comma between them.
                let last = part[before + 1..].to_vec();
                part.truncate(before);
                parts.push(std::mem::replace(&mut part, last));
            }
        });
    }
    parts.push(part);
    parts
}
