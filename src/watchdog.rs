//! Watches that a run gets on, and that it ends once it has failed or was told to stop.
//!
//! A run has stalled when it has work (packets that no commit holds yet, or closed epochs that wait to be written) and
//! neither its watermark nor its commits have moved for a while. That is told, not mended: in the log, in `/readyz` and in
//! the metrics. A run that has failed ends within [`FAILED`], one that was told to stop within [`STOPPING`] of the last
//! sign of progress and, live, within [`STOPPED`] of the signal: whatever thread hangs, the process ends with status 1 and
//! its reason. No decision about windows is made here.

use crate::config::writers::Run;
use crate::engine::{Job, Progress, Stall};
use crate::{fail, warn};
use dataflows::window::Windowing;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How long a run that has failed may take to end by itself.
pub const FAILED: Duration = Duration::from_secs(8);
/// How long a run that was told to stop may show no sign of progress.
pub const STOPPING: Duration = Duration::from_secs(60);
/// How long after the signal a live run ends in any case: before systemd would kill it (`TimeoutStopSec=5min`).
pub const STOPPED: Duration = Duration::from_secs(270);
/// How long a run with work may stand still before it counts as stalled.
pub const STALLED: Duration = Duration::from_secs(60);
/// How often a stall is logged.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How often the watchdog looks.
const TICK: Duration = Duration::from_millis(250);

/// Pieces of output files that this process has written.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Notes that a piece of an output file was written: a sign of progress within a commit.
pub fn note_written() {
    WRITTEN.fetch_add(1, Relaxed);
}

/// What moves while a run gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signs {
    /// Packets decoded.
    read: u64,
    /// Nanoseconds since the Unix epoch.
    watermark: u64,
    /// Closed epochs that wait to be written.
    unwritten: u64,
    commits: u64,
    /// Pieces of output files.
    written: u64,
}

impl Signs {
    fn of(progress: &Progress) -> Self {
        Self {
            read: progress.read(),
            watermark: progress.watermark(),
            unwritten: progress.unwritten(),
            commits: progress.commits().0,
            written: WRITTEN.load(Relaxed),
        }
    }
}

/// What the watchdog finds when it looks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Well,
    Stalled(Stall),
    /// A stop takes too long: the run is to fail with this reason.
    Hangs(String),
    /// The run has failed and does not end.
    Overdue,
}

/// What the watchdog remembers between two looks.
struct Watch {
    /// Whether packets that are not committed for long mean a stall: windows of a live run end.
    windows_end: bool,
    /// How long the inputs may rightly hold windows open.
    grace: Duration,
    /// Whether a stop has a limit in all.
    live: bool,
    seen: Signs,
    /// When any sign moved, and when the watermark or the commits did.
    moved: Instant,
    advanced: Instant,
    /// Packets decoded when the last commit was seen.
    committed: u64,
    failed: Option<Instant>,
    stopping: Option<Instant>,
}

impl Watch {
    fn new(windows_end: bool, grace: Duration, live: bool, now: Instant) -> Self {
        Self {
            windows_end,
            grace,
            live,
            seen: Signs::default(),
            moved: now,
            advanced: now,
            committed: 0,
            failed: None,
            stopping: None,
        }
    }

    /// Takes a look at this time.
    fn look(&mut self, signs: Signs, (has_failed, is_stopping): (bool, bool), now: Instant) -> Finding {
        let seen = std::mem::replace(&mut self.seen, signs);
        if signs != seen {
            self.moved = now;
        }
        if signs.commits != seen.commits {
            self.committed = signs.read;
        }
        let has_work = signs.unwritten > 0 || self.windows_end && signs.read > self.committed;
        let advances = signs.commits != seen.commits
            || signs.written != seen.written
            || signs.watermark != seen.watermark && signs.unwritten == 0;
        if advances || !has_work {
            self.advanced = now;
        }
        if has_failed {
            let since = *self.failed.get_or_insert(now);
            return if now - since >= FAILED { Finding::Overdue } else { Finding::Well };
        }
        if is_stopping {
            let since = *self.stopping.get_or_insert(now);
            let still = now - self.moved.max(since);
            if still >= STOPPING || self.live && now - since >= STOPPED {
                return Finding::Hangs(format!(
                    "still running {:.0} s after it was told to stop, and no progress for {:.0} s: {}",
                    (now - since).as_secs_f64(),
                    still.as_secs_f64(),
                    self.waits(signs),
                ));
            }
            return Finding::Well;
        }
        let time = now - self.advanced;
        match time >= STALLED + self.grace {
            true => Finding::Stalled(Stall { time, why: self.waits(signs) }),
            false => Finding::Well,
        }
    }

    /// What is not done.
    fn waits(&self, signs: Signs) -> String {
        let Signs { read, unwritten, .. } = signs;
        match (unwritten, read.saturating_sub(self.committed)) {
            (0, packets) => format!("{packets} packets are in windows that are not closing"),
            (1, _) => "1 finished window is waiting to be written".into(),
            (epochs, _) => format!("{epochs} finished windows are waiting to be written"),
        }
    }
}

/// Starts to watch a run on a thread that ends with the process.
pub fn start(job: &Arc<Job>, progress: &Arc<Progress>, run: Run) -> std::io::Result<()> {
    let live = run == Run::Live;
    let windows_end = live && job.windowing != Windowing::All;
    let mut watch = Watch::new(windows_end, job.grace, live, Instant::now());
    let progress = progress.clone();
    let mut said: Option<Instant> = None;
    let watch = move || {
        loop {
            thread::sleep(TICK);
            let (failure, now) = (&progress.failure, Instant::now());
            let finding =
                watch.look(Signs::of(&progress), (failure.get().is_some(), failure.is_ending()), now);
            let stall = match finding {
                Finding::Well => None,
                Finding::Stalled(stall) => Some(stall),
                Finding::Hangs(why) => {
                    failure.set(why);
                    None
                }
                Finding::Overdue => {
                    fail!("{}", failure.get().unwrap_or_default());
                    std::process::exit(1);
                }
            };
            match &stall {
                Some(Stall { time, why }) if said.is_none_or(|said| now - said >= SAY_EVERY) => {
                    warn!("no progress for {:.0} s: {why}", time.as_secs_f64());
                    said = Some(now);
                }
                Some(_) => {}
                None => said = None,
            }
            progress.set_stall(stall);
        }
    };
    thread::Builder::new().name("watchdog".into()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const RUNS: (bool, bool) = (false, false);

    fn signs(read: u64, watermark: u64, unwritten: u64, commits: u64) -> Signs {
        Signs { read, watermark, unwritten, commits, written: 0 }
    }

    #[test]
    fn a_run_that_reads_but_closes_nothing_stalls_and_recovers_with_a_commit() {
        let began = Instant::now();
        let mut watch = Watch::new(true, 30 * SECOND, true, began);
        // It reads, and its watermark stands still.
        for second in 0..90 {
            let looked = watch.look(signs(10 + u64::from(second), 7, 0, 0), RUNS, began + second * SECOND);
            assert_eq!(looked, Finding::Well, "after {second} s");
        }
        let Finding::Stalled(stall) = watch.look(signs(100, 7, 0, 0), RUNS, began + 91 * SECOND) else {
            panic!("no stall")
        };
        assert_eq!(stall.why, "100 packets are in windows that are not closing");
        assert_eq!(watch.look(signs(100, 7, 0, 1), RUNS, began + 92 * SECOND), Finding::Well);
        // All that was read is committed: there is nothing to wait for.
        assert_eq!(watch.look(signs(100, 7, 0, 1), RUNS, began + 900 * SECOND), Finding::Well);
    }

    #[test]
    fn closed_epochs_that_are_not_written_are_a_stall_though_packets_come() {
        let began = Instant::now();
        let mut watch = Watch::new(false, Duration::ZERO, false, began);
        assert_eq!(watch.look(signs(1, 1, 2, 0), RUNS, began), Finding::Well);
        let looked = watch.look(signs(9, 9, 2, 0), RUNS, began + 60 * SECOND);
        assert!(
            matches!(looked, Finding::Stalled(Stall { why, .. }) if why == "2 finished windows are waiting to be written")
        );
        // A large file that is being written is a sign of progress.
        let looked = watch.look(Signs { written: 1, ..signs(9, 9, 2, 0) }, RUNS, began + 61 * SECOND);
        assert_eq!(looked, Finding::Well);
    }

    #[test]
    fn a_run_that_has_failed_is_overdue_after_its_time() {
        let began = Instant::now();
        let mut watch = Watch::new(true, Duration::ZERO, true, began);
        assert_eq!(watch.look(signs(1, 1, 1, 0), (true, true), began), Finding::Well);
        assert_eq!(watch.look(signs(2, 1, 1, 0), (true, true), began + FAILED), Finding::Overdue);
    }

    #[test]
    fn a_stop_that_shows_no_progress_hangs_and_a_live_one_has_a_limit_in_all() {
        let began = Instant::now();
        for live in [false, true] {
            let mut watch = Watch::new(true, Duration::ZERO, live, began);
            let mut hung = None;
            for second in 0..600 {
                let looked =
                    watch.look(signs(u64::from(second), 1, 0, 0), (false, true), began + second * SECOND);
                if hung.is_none() && matches!(looked, Finding::Hangs(_)) {
                    hung = Some(second);
                }
            }
            assert_eq!(hung, live.then_some(270));
            let mut watch = Watch::new(true, Duration::ZERO, live, began);
            let stop = (false, true);
            assert_eq!(watch.look(signs(5, 1, 1, 0), stop, began), Finding::Well);
            let looked = watch.look(signs(5, 1, 1, 0), stop, began + STOPPING);
            assert!(
                matches!(looked, Finding::Hangs(why) if why.ends_with("1 finished window is waiting to be written"))
            );
        }
    }
}
