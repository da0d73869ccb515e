//! What other engines of a group say that they have taken, until the probe is known to have sent it.
//!
//! Anybody who may publish can say so. A range is checked against what the probe has sent, as its own messages say, before
//! it counts; until then it is kept here, in bounded memory.

use super::books::Seen;
use crate::wire::batch::{LONGEST_NAME, MOST};
use crate::wire::v1::TakenRange;
use std::collections::BTreeMap;
use std::ops::Range;

/// Runs that ranges are kept of, and ranges of all runs together. Fewer than [`Seen`] holds, which would fill gaps.
const MAX_RUNS: usize = 1 << 10;
const MAX_RANGES: usize = 1 << 15;

/// Ranges that wait, by number and name of the run.
#[derive(Default)]
pub struct Claims {
    runs: BTreeMap<(u64, String), Seen>,
    ranges: usize,
}

impl Claims {
    /// Keeps a range; one that cannot be is left out. Gives whether it was kept.
    pub fn add(&mut self, range: TakenRange) -> bool {
        let TakenRange { probe, run, first, end } = range;
        if probe.is_empty() || probe.len() > LONGEST_NAME || first >= end || end > MOST {
            return false;
        }
        let seen = self.runs.entry((run, probe)).or_default();
        self.ranges -= seen.ranges.len();
        seen.add(first, end);
        self.ranges += seen.ranges.len();
        while self.runs.len() > MAX_RUNS {
            self.ranges -= self.runs.pop_first().map_or(0, |(_, seen)| seen.ranges.len());
        }
        while self.ranges > MAX_RANGES {
            // The run with the most: no engine has reason to name so many.
            let longest = self.runs.iter().max_by_key(|(_, seen)| seen.ranges.len());
            let Some(key) = longest.map(|(key, _)| key.clone()) else { break };
            self.ranges -= self.runs.remove(&key).map_or(0, |seen| seen.ranges.len());
        }
        true
    }

    /// Takes out what was said of the first `sent` packets of a run.
    pub fn take(&mut self, probe: &str, run: u64, sent: u64) -> Vec<Range<u64>> {
        if self.runs.is_empty() {
            return Vec::new();
        }
        let key = (run, probe.to_owned());
        let Some(seen) = self.runs.get_mut(&key) else { return Vec::new() };
        self.ranges -= seen.ranges.len();
        let mut later = seen.ranges.split_off(&sent);
        let mut taken = std::mem::take(&mut seen.ranges);
        if let Some(mut last) = taken.last_entry().filter(|last| *last.get() > sent) {
            later.insert(sent, last.insert(sent));
        }
        if later.is_empty() {
            self.runs.remove(&key);
        } else {
            self.ranges += later.len();
            seen.ranges = later;
        }
        taken.into_iter().map(|(start, end)| start..end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(probe: &str, run: u64, first: u64, end: u64) -> TakenRange {
        TakenRange { probe: probe.into(), run, first, end }
    }

    /// What is taken out, as first and end of each range.
    fn take(claims: &mut Claims, probe: &str, run: u64, sent: u64) -> Vec<(u64, u64)> {
        claims.take(probe, run, sent).into_iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn a_range_counts_once_the_probe_has_sent_it() {
        let mut claims = Claims::default();
        for (first, end) in [(0, 10), (20, 30), (40, 50)] {
            assert!(claims.add(range("tap", 7, first, end)));
        }
        assert_eq!(take(&mut claims, "tap", 8, 100), []);
        assert_eq!(take(&mut claims, "other", 7, 100), []);
        assert_eq!(take(&mut claims, "tap", 7, 25), [(0, 10), (20, 25)]);
        assert_eq!(take(&mut claims, "tap", 7, 25), []);
        assert_eq!(take(&mut claims, "tap", 7, 40), [(25, 30)]);
        assert_eq!(take(&mut claims, "tap", 7, 100), [(40, 50)]);
        assert_eq!((claims.runs.len(), claims.ranges), (0, 0));
    }

    #[test]
    fn ranges_that_cannot_be_are_left_out() {
        let mut claims = Claims::default();
        let long = "x".repeat(LONGEST_NAME + 1);
        for (probe, first, end) in
            [("", 0, 1), (&*long, 0, 1), ("tap", 5, 5), ("tap", 6, 5), ("tap", 0, MOST + 1)]
        {
            assert!(!claims.add(range(probe, 7, first, end)), "{probe} {first} {end}");
        }
        assert_eq!(claims.runs.len(), 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut claims = Claims::default();
        claims.add(range("tap", 7, 0, 10));
        for number in 0..2 * MAX_RANGES as u64 {
            claims.add(range("many ranges", 7, 2 * number, 2 * number + 1));
        }
        assert!(claims.ranges <= MAX_RANGES, "{}", claims.ranges);
        assert_eq!(take(&mut claims, "tap", 7, 10), [(0, 10)], "it is another run that has too many");
        for run in 0..2 * MAX_RUNS as u64 {
            claims.add(range("many runs", run, 0, 1));
        }
        assert!(claims.runs.len() <= MAX_RUNS, "{}", claims.runs.len());
    }
}
