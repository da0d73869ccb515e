//! Probes that do not send what tasks ask for: each is named once, and its packets have the fields' empty values.
//!
//! The books are no matter of this: a packet counts whatever is known of it.

use crate::warn;
use crate::wire::batch::Batch;
use crate::wire::fields::Asked;
use dataflows::field::Extension;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Probes that are remembered.
const MAX_PROBES: usize = 1000;
/// How long a probe is remarked on after its last packet without a field.
const REMARKED: Duration = Duration::from_secs(300);

/// What is missing, by the packets that lack it: those of a probe, or those of a subject.
#[derive(Debug, Default)]
pub struct Unsent(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    probes: BTreeMap<String, Missing>,
    is_full: bool,
}

#[derive(Debug)]
struct Missing {
    /// The fields that were told.
    fields: Vec<&'static str>,
    /// When it last sent packets without some of them; `None` once it has sent all.
    heard: Option<Instant>,
}

impl Unsent {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the fields that tasks ask for in a batch, and names its probe where it does not send them all.
    pub fn find<'a>(&self, batch: &'a Batch, extension: &Extension) -> Asked<'a> {
        let asked = batch.asked(extension);
        if !extension.is_empty() {
            let packets = format!("packets of probe {}", batch.probe.escape_debug());
            if let Some(fields) = self.hear(packets.clone(), asked.missing()) {
                let fields = fields.join(", ");
                warn!(
                    "{packets} come without {fields}, which tasks ask for: these columns are empty for them; name what is to \
                     be sent under `fields` in the configuration of that probe, or with its --fields"
                );
            }
        }
        asked
    }

    /// Takes packets that came in a message each, which has no room for further fields.
    pub fn hear_singles(&self, subject: &str, extension: &Extension) {
        if extension.is_empty() {
            return;
        }
        let packets = format!("packets on {subject}");
        if let Some(fields) = self.hear(packets.clone(), Asked::new(&[], extension).missing()) {
            let fields = fields.join(", ");
            warn!(
                "{packets} come without {fields}, which tasks ask for: these columns are empty for them; probes send fields \
                 with --encoding batch"
            );
        }
    }

    /// Notes what the packets of a probe do not have; gives what is to be told.
    fn hear(&self, packets: String, missing: &[&'static str]) -> Option<Vec<&'static str>> {
        let mut known = self.lock();
        let heard = Some(Instant::now()).filter(|_| !missing.is_empty());
        if let Some(probe) = known.probes.get_mut(&packets) {
            probe.heard = heard;
            let told = missing.iter().all(|field| probe.fields.contains(field));
            if told {
                return None;
            }
            let new = missing.iter().copied().filter(|field| !probe.fields.contains(field));
            let new: Vec<_> = new.collect();
            probe.fields.extend(&new);
            return Some(new);
        }
        if missing.is_empty() || known.is_full {
            return None;
        }
        known.is_full = known.probes.len() + 1 == MAX_PROBES;
        if known.is_full {
            warn!("more than {MAX_PROBES} probes do not send what tasks ask for; no more of them are named");
        }
        known.probes.insert(packets, Missing { fields: missing.to_vec(), heard });
        Some(missing.to_vec())
    }

    /// What is to be said of probes that were heard of late.
    pub fn remarks(&self) -> Vec<String> {
        let known = self.lock();
        let late = |probe: &Missing| probe.heard.is_some_and(|heard| heard.elapsed() < REMARKED);
        let late = known.probes.iter().filter(|(_, probe)| late(probe));
        let remark = |(packets, Missing { fields, .. }): (&String, &Missing)| {
            format!("{packets} come without {}, which tasks ask for", fields.join(", "))
        };
        late.map(remark).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_named_once_and_again_only_for_other_fields() {
        let unsent = Unsent::default();
        let hear = |name: &str, missing: &[&'static str]| unsent.hear(name.to_owned(), missing);
        assert_eq!(hear("tap", &[]), None);
        assert_eq!(hear("tap", &["TTL"]), Some(vec!["TTL"]));
        assert_eq!(hear("tap", &["TTL"]), None);
        assert_eq!(hear("tap", &["DSCP", "TTL"]), Some(vec!["DSCP"]));
        assert_eq!(unsent.remarks(), ["tap come without TTL, DSCP, which tasks ask for"]);
        assert_eq!(hear("tap", &[]), None);
        assert!(unsent.remarks().is_empty(), "it was told to send them");
        assert_eq!(hear("tap", &["TTL"]), None, "named before");
        assert_eq!(unsent.remarks().len(), 1);
    }

    #[test]
    fn however_many_names_come_a_bounded_number_is_remembered() {
        let unsent = Unsent::default();
        for number in 0..2 * MAX_PROBES {
            let told = unsent.hear(number.to_string(), &["TTL"]);
            assert_eq!(told.is_some(), number < MAX_PROBES, "{number}");
        }
        assert_eq!(unsent.lock().probes.len(), MAX_PROBES);
    }
}
