//! How long things take, in buckets, counted while they happen.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Upper bounds in seconds.
pub const BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// How often something took how many seconds.
#[derive(Debug, Default)]
pub struct Histogram {
    observed: Mutex<Observed>,
}

#[derive(Clone, Debug, Default)]
struct Observed {
    buckets: [u64; BUCKETS.len() + 1],
    sum: f64,
}

impl Clone for Histogram {
    /// As it is now.
    fn clone(&self) -> Self {
        Self { observed: Mutex::new(self.lock().clone()) }
    }
}

impl Histogram {
    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts something that took so many seconds.
    pub fn observe(&self, seconds: f64) {
        let mut observed = self.lock();
        observed.buckets[BUCKETS.partition_point(|bound| *bound < seconds)] += 1;
        observed.sum += seconds;
    }

    /// How many fell into each bucket and into none before it, the last of which has no bound; and the sum of all seconds.
    pub fn counts(&self) -> ([u64; BUCKETS.len() + 1], f64) {
        let observed = self.lock();
        (observed.buckets, observed.sum)
    }
}
