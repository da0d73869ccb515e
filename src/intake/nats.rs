//! The input `nats`: what probes publish, over core NATS or from the durable log, as the `nats` section says.

use super::Intake;
use super::books::{MAX_ENDED, Rules};
use super::listen::{Listen, Listening};
use super::log::Division;
use super::registry::{Input, InputConfig, InputError, InputKind, Opening, Source};
use crate::bus::{self, JetStream, Settings};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const TYPE: &str = "nats";

pub(super) const KIND: InputKind = InputKind { name: TYPE, keys: &[], read: |_, nats| Ok(source(nats)) };

/// That of an engine that is told of no other.
pub fn configured(nats: &Settings) -> InputConfig {
    InputConfig { kind: TYPE, source: source(nats) }
}

fn source(nats: &Settings) -> Arc<dyn Source> {
    Arc::new(Subscribed(nats.clone()))
}

/// The `nats` section.
struct Subscribed(Settings);

impl Source for Subscribed {
    fn describe(&self) -> String {
        if self.is_log() { "the durable log of JetStream".into() } else { "core NATS".into() }
    }

    fn options(&self) -> Value {
        json!({})
    }

    fn check(&self, opening: &Opening<'_>) -> Result<(), InputError> {
        Ok(bus::check(&self.0, opening.program)?)
    }

    fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Input>, InputError> {
        let Self(settings) = self;
        let Opening { windowing, lateness, process, processes, workers, began, .. } = *opening;
        let rules = Rules {
            windowing,
            lateness,
            silent_after: settings.silent_after,
            // A log may pause while there is more in it.
            pause: Duration::from_secs(if self.is_log() { 10 } else { 2 }),
            limit: settings.buffer,
            max_ended: MAX_ENDED,
            single: settings.single.clone(),
            began,
        };
        let division = Division {
            partitions: settings.jetstream.partitions,
            first_worker: process * workers,
            workers,
            peers: processes * workers,
        };
        let listening = Listening::start(Listen {
            settings,
            rules,
            program: opening.program,
            division,
            engine: opening.generation,
            resume: opening.resume.clone(),
            identity: opening.identity.to_owned(),
        })?;
        Ok(Arc::new(listening))
    }

    fn is_log(&self) -> bool {
        self.0.jetstream.enabled
    }

    /// What has to stay the same while an engine goes on in a log where an earlier run has ended.
    fn settings(&self) -> Vec<(String, String)> {
        let Self(settings) = self;
        let subjects = format!("{} {}", settings.single, settings.batches());
        let JetStream { stream, partitions, .. } = &settings.jetstream;
        [
            ("stream", stream.clone()),
            ("number of partitions", partitions.to_string()),
            ("list of subjects", subjects),
        ]
        .map(|(what, value)| (what.to_owned(), value))
        .to_vec()
    }
}

impl Input for Listening {
    fn intake(self: Arc<Self>) -> Arc<dyn Intake> {
        Listening::intake(&self)
    }

    fn describe(&self) -> String {
        format!("subscribed to {}", self.to)
    }

    fn failure(&self) -> Option<String> {
        Listening::failure(self).map(|why| format!("{why}; what was received before that is counted"))
    }

    fn settle(&self) {
        Listening::settle(self);
    }

    fn away(&self) -> Option<String> {
        let bus = self.bus();
        bus.is_away().then(|| format!("NATS at {} is away", bus.servers()))
    }

    fn identity(&self) -> &str {
        Listening::identity(self)
    }

    /// The accounts of many probes take a while.
    fn look_every(&self) -> Duration {
        Duration::from_secs(5)
    }
}
