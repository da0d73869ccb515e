//! The configuration as a program runs it: every default put in, every secret hidden.

use super::Config;
use super::writers::Run;
use crate::alerts::Output;
use crate::bus::{Credentials, Settings};
use crate::intake::registry::InputConfig;
use crate::options::HIDDEN;
use dataflows::window::Windowing;
use serde_json::{Value, json};
use std::time::Duration;

fn time(duration: Duration) -> Value {
    json!(format!("{duration:?}"))
}

impl Config {
    /// All sections but those that flags and the machine decide: `input`, `cluster` and `writers` are given.
    pub fn resolved(
        &self,
        workers: usize,
        input: Option<&InputConfig>,
        cluster: Value,
        writers: Value,
    ) -> Value {
        let window = match self.windowing {
            Windowing::All => json!("all"),
            Windowing::Every(nanos) => time(Duration::from_nanos(nanos)),
        };
        let read = |texts: &[String]| -> Value {
            texts.iter().map(|text| serde_json::from_str(text).unwrap_or(Value::Null)).collect()
        };
        let output = |output: &Output| match output {
            Output::JsonLines { path } => json!({"type": "jsonl", "path": path.display().to_string()}),
            Output::Webhook(settings) => {
                json!({"type": "webhook", "url": format!("{}/{HIDDEN}", settings.server())})
            }
        };
        let listen = self.http.listen.map(|address| address.to_string());
        let token = self.http.token.as_ref().map(|_| HIDDEN);
        let mut resolved = json!({
            "nats": nats(&self.nats),
            "inputs": input.map(|input| [input.resolved()]),
            "cluster": cluster,
            "aggregator": {
                "num_workers": workers,
                "window": window,
                "allowed_lateness": time(self.allowed_lateness),
                "tasks": read(&self.task_texts),
            },
            "writers": writers,
            "alerts": {
                "rules": read(&self.rule_texts),
                "outputs": self.alerts.outputs.iter().map(output).collect::<Vec<_>>(),
            },
            "http": {"listen": listen, "token": token, "memory": format!("{}B", self.http.memory)},
        });
        leave_out_nulls(&mut resolved);
        resolved
    }
}

impl Config {
    /// All but the rules, as text to compare: what a program that runs cannot take over. Secrets are left out.
    pub fn settled(&self) -> String {
        let writers = self.writers.iter().map(|writer| writer.resolved(Run::Live, false));
        let mut resolved = self.resolved(self.workers, self.input.as_ref(), Value::Null, writers.collect());
        resolved["alerts"]["rules"] = Value::Null;
        resolved.to_string()
    }
}

/// What is not set has no line.
fn leave_out_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(leave_out_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_nulls),
        _ => {}
    }
}

fn nats(settings: &Settings) -> Value {
    let jetstream = &settings.jetstream;
    let mut nats = json!({"url": settings.shown(), "connect_timeout": time(settings.connect_timeout)});
    match &settings.credentials {
        Credentials::None => {}
        Credentials::User(user, _) => {
            nats["user"] = json!(user);
            nats["password"] = json!(HIDDEN);
        }
        Credentials::Token(_) => nats["token"] = json!(HIDDEN),
        Credentials::Nkey(_) => nats["nkey_file"] = json!(HIDDEN),
        Credentials::File(path) => nats["credentials_file"] = json!(path.display().to_string()),
    }
    let path = |path: &std::path::PathBuf| path.display().to_string();
    let own = settings.tls.own.as_ref();
    nats["tls"] = json!({
        "required": settings.tls.required,
        "ca": settings.tls.ca.as_ref().map(path),
        "certificate": own.map(|(certificate, _)| path(certificate)),
        "key": own.map(|(_, key)| path(key)),
    });
    nats["subjects"] = json!({"single": settings.single, "batch": settings.batch});
    nats["queue_group"] = json!(settings.queue_group);
    nats["silent_after"] = time(settings.silent_after);
    nats["buffer"] = json!(format!("{}B", settings.buffer));
    nats["jetstream"] = json!({
        "enabled": jetstream.enabled,
        "stream": jetstream.stream,
        "partitions": jetstream.partitions,
        "max_bytes": format!("{}B", jetstream.max_bytes),
        "max_age": time(jetstream.max_age),
        "duplicate_window": time(jetstream.duplicate_window),
    });
    nats
}
