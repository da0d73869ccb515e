//! What a running engine tells of itself over HTTP.

use crate::alerts::event::{Event, Kind};
use crate::engine::{Job, Progress};
use crate::http::metrics::{Measured, WriterFigures};
use crate::http::recent::Recent;
use crate::http::{Health, View};
use crate::intake::registry::Input;
use crate::intake::skew::remark;
use crate::ledger::Ledger;
use crate::sinks::delivery::{Status, Watch};
use crate::sinks::{SinkError, Writer};
use dataflows::rows::{Schema, Snapshot};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Active alerts that are kept to be asked for.
const MOST_ALERTS: usize = 100_000;

/// The engine as it can be asked.
pub(super) struct Engine {
    pub(super) job: Arc<Job>,
    pub(super) progress: Arc<Progress>,
    pub(super) writers: Watch,
    pub(super) input: Arc<dyn Input>,
    pub(super) heard: Arc<Heard>,
    pub(super) left_out: Arc<AtomicU64>,
    pub(super) began: u64,
}

/// What is told to who asks.
pub(super) struct Heard {
    recent: Recent,
    alerts: Mutex<Alerts>,
    raised: AtomicU64,
    withdrawn: AtomicU64,
}

#[derive(Default)]
struct Alerts {
    /// By when they were raised.
    active: BTreeMap<u64, Event>,
    /// When each was.
    raised: HashMap<String, u64>,
    next: u64,
    /// How many are active, kept or not.
    many: u64,
}

impl Heard {
    /// Nothing yet; keeps so many bytes of windows.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            recent: Recent::new(memory),
            alerts: Mutex::default(),
            raised: AtomicU64::new(0),
            withdrawn: AtomicU64::new(0),
        }
    }

    fn alerts(&self) -> MutexGuard<'_, Alerts> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Knows what has become of alerts.
    pub(super) fn know(&self, events: &[Event]) {
        let mut alerts = self.alerts();
        for event in events {
            match event.event {
                Kind::Raised => {
                    let number = alerts.next;
                    alerts.many += 1;
                    alerts.next += 1;
                    alerts.raised.insert(event.id.clone(), number);
                    alerts.active.insert(number, event.clone());
                    if alerts.active.len() > MOST_ALERTS
                        && let Some((_, oldest)) = alerts.active.pop_first()
                    {
                        alerts.raised.remove(&oldest.id);
                    }
                }
                Kind::Withdrawn => {
                    alerts.many = alerts.many.saturating_sub(1);
                    if let Some(number) = alerts.raised.remove(&event.id) {
                        alerts.active.remove(&number);
                    }
                }
            }
        }
    }

    /// Hears of it just now.
    pub(super) fn hear(&self, events: &[Event]) {
        self.know(events);
        for event in events {
            let counter = match event.event {
                Kind::Raised => &self.raised,
                Kind::Withdrawn => &self.withdrawn,
            };
            counter.fetch_add(1, SeqCst);
        }
        self.recent.told(events);
    }
}

impl View for Engine {
    fn tasks(&self) -> Vec<(Arc<str>, Arc<Schema>)> {
        self.job.schemas()
    }

    fn measured(&self) -> Measured {
        let figures = |(status, (windows, bytes)): (&Status, (usize, u64))| WriterFigures {
            name: status.name.clone(),
            kind: status.kind,
            required: status.required,
            windows: status.windows.load(SeqCst),
            rows: status.rows.load(SeqCst),
            retries: status.retries.load(SeqCst),
            dropped: status.dropped.load(SeqCst),
            queue_windows: windows as u64,
            queue_bytes: bytes,
            up: status.error().is_none(),
            last_write: Some(status.last_write.load(SeqCst)).filter(|time| *time > 0),
        };
        let progress = &self.progress;
        let (commits, last_commit) = progress.commits();
        Measured {
            inputs: progress.inputs_so_far(&*self.job.intake),
            decoded: progress.read(),
            watermark: Some(progress.watermark()).filter(|time| *time > 0),
            skews: self.job.intake.skews(),
            windows: progress.windows(),
            commits,
            last_commit: Some(last_commit).filter(|time| *time > 0),
            commit_queue: progress.unwritten(),
            stalled: progress.stall().map_or(Duration::ZERO, |stall| stall.time),
            raised: self.heard.raised.load(SeqCst),
            withdrawn: self.heard.withdrawn.load(SeqCst),
            active: self.heard.alerts().many,
            left_out: self.left_out.load(SeqCst),
            began: self.began,
            close: progress.close().clone(),
            writers: self.writers.writers().map(figures).collect(),
        }
    }

    fn health(&self) -> Health {
        let writer = |(status, (windows, _)): (&Status, (usize, u64))| {
            let why = status.error().filter(|_| status.required)?;
            Some(format!("writer {} is behind by {windows} windows: {why}", status.name))
        };
        let away = self.input.away();
        let stall = self.progress.stall();
        let stall = stall.map(|stall| format!("no progress for {} s: {}", stall.time.as_secs(), stall.why));
        let reasons =
            away.into_iter().chain(stall).chain(self.writers.writers().filter_map(writer)).collect();
        let skews = self.job.intake.skews();
        let remarks = skews
            .iter()
            .filter_map(remark)
            .chain(self.job.intake.remarks())
            .chain(self.progress.losing())
            .collect();
        Health { failed: self.progress.failure.get().map(str::to_owned), reasons, remarks }
    }

    fn alerts(&self) -> Vec<Event> {
        self.heard.alerts().active.values().rev().cloned().collect()
    }

    fn recent(&self) -> &Recent {
        &self.heard.recent
    }
}

/// Gives what is committed to who asks.
pub(super) struct Showing {
    pub(super) heard: Arc<Heard>,
    pub(super) prepared: Vec<Arc<Snapshot>>,
}

impl Writer for Showing {
    fn prepare(&mut self, snapshot: &Arc<Snapshot>, _commit: Option<u64>) -> Result<(), SinkError> {
        self.prepared.push(snapshot.clone());
        Ok(())
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        self.prepared.drain(..).for_each(|snapshot| self.heard.recent.push(snapshot));
        Ok(())
    }

    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        Ok(())
    }
}
