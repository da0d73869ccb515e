//! What an alert tells the world: one JSON object each time that it is raised or withdrawn.

use super::rule::MatchKey;
use crate::fingerprint::fingerprint;
use dataflows::window::Epoch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// What has become of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It is active from now on.
    Raised,
    /// It is not active any more.
    Withdrawn,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Raised => "raised",
            Self::Withdrawn => "withdrawn",
        })
    }
}

/// One thing that happened to an alert; its JSON has these fields in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The alert's, see [`id`]: the same when it is raised and when it is withdrawn.
    pub id: String,
    /// What has become of it.
    pub event: Kind,
    /// The rule's name.
    pub rule: String,
    /// The task's name.
    pub task: String,
    /// What is compared, as the rule spells it.
    pub metric: String,
    /// How, as the rule spells it.
    pub comparison: String,
    /// With what.
    pub threshold: u64,
    /// The metric in the window that it was raised in; `None` where it is withdrawn.
    pub value: Option<u64>,
    /// Column and value; `None` for the totals of a task.
    pub key: Option<Map<String, Value>>,
    /// RFC 3339; `None` for the window of everything.
    pub window_start: Option<String>,
    /// RFC 3339; `None` for the window of everything.
    pub window_end: Option<String>,
    /// Of the window's snapshot.
    pub revision: u32,
    /// The first rows behind it.
    pub top: Vec<Value>,
}

impl Event {
    /// What tells it from every other event.
    pub fn name(&self) -> String {
        format!("{}-{}", self.id, self.event)
    }

    /// The key as [`MatchKey`] writes it; nothing for totals.
    pub fn key_text(&self) -> String {
        let text = |(column, value): (&String, &Value)| match value.as_str() {
            Some(text) => format!("{column}={text}"),
            None => format!("{column}={value}"),
        };
        self.key.iter().flatten().map(text).collect::<Vec<_>>().join(" ")
    }
}

/// The alert that a rule raises in a window for a key (`None` for totals): 16 hex digits, the same in every run.
///
/// `again` tells apart an alert that is raised in one window more than once.
pub fn id(rule: &str, key: Option<&MatchKey>, (raised_in, again): (Epoch, u64)) -> String {
    let key = key.map(MatchKey::to_string).unwrap_or_default();
    let again = if again > 0 { format!(" {again}") } else { String::new() };
    format!("{:016x}", fingerprint(format!("{rule} {key} {raised_in}{again}").as_bytes()))
}

#[cfg(test)]
impl Event {
    /// An event of the totals of a task.
    pub(super) fn example(id: &str, event: Kind) -> Self {
        Self {
            id: id.into(),
            event,
            rule: "flood".into(),
            task: "flows".into(),
            metric: "total.bytes".into(),
            comparison: ">=".into(),
            threshold: 500,
            value: Some(501),
            key: None,
            window_start: Some("2023-11-14T22:13:00.000000000Z".into()),
            window_end: None,
            revision: 2,
            top: vec![serde_json::json!({"dst_port": 443, "bytes": 501})],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_json_that_was_promised() {
        let json = serde_json::to_string(&Event::example("53515aab9ce61251", Kind::Raised)).expect("JSON");
        let expected = concat!(
            r#"{"id":"53515aab9ce61251","event":"raised","rule":"flood","task":"flows","metric":"total.bytes","#,
            r#""comparison":">=","threshold":500,"value":501,"key":null,"#,
            r#""window_start":"2023-11-14T22:13:00.000000000Z","window_end":null,"revision":2,"#,
            r#""top":[{"dst_port":443,"bytes":501}]}"#
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn the_events_of_an_alert_are_named_after_it() {
        let (raised, withdrawn) = (Event::example("a", Kind::Raised), Event::example("a", Kind::Withdrawn));
        assert_eq!((raised.name(), withdrawn.name()), ("a-raised".into(), "a-withdrawn".into()));
    }

    /// Receivers keep ids: they may not change from version to version.
    #[test]
    fn ids_stay_what_they_are() {
        assert_eq!(id("port-scan", None, (7, 0)), "53515aab9ce61251");
        assert_ne!(id("port-scan", None, (8, 0)), id("port-scan", None, (7, 0)));
    }
}
