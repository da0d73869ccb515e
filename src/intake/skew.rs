//! How far the clocks of probes are from this machine's.
//!
//! A clock that is wrong makes packets late, or windows close too early; nothing here decides that, it is only told.

use crate::wire::batch::Batch;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Seconds from which on a difference is worth a word.
pub const NOTABLE: u64 = 60;
/// Probes that are remembered.
const MOST: usize = 1000;
/// How long, after their last message.
const REMEMBERED: Duration = Duration::from_secs(300);

/// The differences, by name of the probe: nanoseconds, positive where its clock is ahead of ours.
#[derive(Debug, Default)]
pub struct Skews(Mutex<BTreeMap<String, (i64, Instant)>>);

impl Skews {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (i64, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a batch that has just come, at this time of ours.
    pub fn hear(&self, batch: &Batch, now: u64) {
        if let Some(skew) = skew_of(batch.clock, batch.latest, now) {
            self.note(&batch.probe, skew);
        }
    }

    /// Takes packets up to this time, which came without a word of their probe's clock: it is ahead if they are.
    pub fn hear_of(&self, name: &str, newest: u64, now: u64) {
        self.note(name, difference(newest.max(now), now));
    }

    fn note(&self, name: &str, skew: i64) {
        let mut skews = self.lock();
        if let Some(known) = skews.get_mut(name) {
            *known = (skew, Instant::now());
            return;
        }
        skews.retain(|_, (_, heard)| heard.elapsed() < REMEMBERED);
        if skews.len() < MOST {
            skews.insert(name.to_owned(), (skew, Instant::now()));
        }
    }

    /// Of each probe that was heard of late.
    pub fn all(&self) -> Vec<(String, i64)> {
        let skews = self.lock();
        let heard = skews.iter().filter(|(_, (_, heard))| heard.elapsed() < REMEMBERED);
        heard.map(|(name, (skew, _))| (name.clone(), *skew)).collect()
    }
}

/// By the probe's clock where the batch has it, unless its packets are dated later still.
fn skew_of(clock: u64, latest: u64, now: u64) -> Option<i64> {
    match clock {
        0 if latest <= now => None,
        _ if latest > clock.max(now) => Some(difference(latest, now)),
        _ => Some(difference(clock, now)),
    }
}

fn difference(theirs: u64, ours: u64) -> i64 {
    i64::try_from(i128::from(theirs) - i128::from(ours)).unwrap_or(if theirs > ours {
        i64::MAX
    } else {
        i64::MIN
    })
}

/// What is to be said of a probe, if anything is.
pub fn remark((name, skew): &(String, i64)) -> Option<String> {
    let seconds = skew.unsigned_abs() / 1_000_000_000;
    let which = if *skew > 0 { "ahead of" } else { "behind" };
    let name = name.escape_debug();
    (seconds >= NOTABLE).then(|| format!("the clock of probe {name} is {seconds} s {which} this engine's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_of_an_old_capture_has_the_clock_of_its_probe() {
        assert_eq!(skew_of(900, 5, 1000), Some(-100));
        assert_eq!(skew_of(1100, 5, 1000), Some(100));
        assert_eq!(skew_of(1000, 9000, 1000), Some(8000), "packets of the future");
        assert_eq!(skew_of(0, 5, 1000), None, "nothing is known of its clock");
        assert_eq!(skew_of(0, 1500, 1000), Some(500));
        assert_eq!(skew_of(5, u64::MAX, 0), Some(i64::MAX));
    }

    #[test]
    fn only_what_matters_is_remarked_on() {
        let of = |seconds: i64| remark(&("p".into(), seconds * 1_000_000_000));
        assert_eq!((of(59), of(-59)), (None, None));
        assert_eq!(of(3600).as_deref(), Some("the clock of probe p is 3600 s ahead of this engine's"));
        assert_eq!(of(-61).as_deref(), Some("the clock of probe p is 61 s behind this engine's"));
    }
}
