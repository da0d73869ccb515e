//! Tells of packets that are being lost: in the log at most once in ten seconds, and as remarks of `/readyz`.
//!
//! Only what is lost for good is told here: by an interface, a kernel or a probe. What is missing on the bus may still come.
//! The ledger counts all of it; nothing is decided here.

use crate::engine::{Job, Progress};
use crate::ledger::{InputReport, Losses, is_live};
use crate::warn;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often losses are logged.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long after the last loss it is remarked upon.
const REMARKED: Duration = Duration::from_secs(60);

/// Who loses packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loser {
    /// An interface that this process captures.
    Interface,
    /// A probe that sends to this process.
    Probe,
}

/// What is known of an input.
struct Known {
    loser: Loser,
    total: Losses,
    /// What has not been told yet, and since when it was counted.
    untold: Losses,
    since: Instant,
    /// When it last lost a packet, and how that was told.
    lost: Option<Instant>,
    told: Vec<String>,
}

/// Watches the losses of inputs.
pub struct LossWatch {
    inputs: BTreeMap<String, Known>,
    looked: Instant,
    said: Option<Instant>,
}

impl LossWatch {
    /// Begins with what had been lost before.
    pub fn new(before: &[(String, Loser, Losses)], now: Instant) -> Self {
        let known = |(name, loser, total): &(String, Loser, Losses)| {
            (name.clone(), Known { total: *total, ..Known::new(*loser, now) })
        };
        Self { inputs: before.iter().map(known).collect(), looked: now, said: None }
    }

    /// Takes what each input has lost so far; gives the lines to be logged now.
    pub fn look(&mut self, found: &[(String, Loser, Losses)], now: Instant) -> Vec<String> {
        let looked = std::mem::replace(&mut self.looked, now);
        for (name, loser, total) in found {
            let known = self.inputs.entry(name.clone()).or_insert_with(|| Known::new(*loser, looked));
            let before = std::mem::replace(&mut known.total, *total);
            let more = Losses {
                interface: total.interface.saturating_sub(before.interface),
                kernel: total.kernel.saturating_sub(before.kernel),
                probe: total.probe.saturating_sub(before.probe),
                bus: 0,
            };
            if more.total() > 0 {
                if known.untold.total() == 0 {
                    known.since = looked;
                }
                known.untold += more;
                known.lost = Some(now);
            }
        }
        let is_due = self.said.is_none_or(|said| now - said >= SAY_EVERY);
        if !is_due || self.inputs.values().all(|known| known.untold.total() == 0) {
            return Vec::new();
        }
        self.said = Some(now);
        let mut lines = Vec::new();
        for (name, known) in self.inputs.iter_mut().filter(|(_, known)| known.untold.total() > 0) {
            known.told = known.lines(name, now);
            lines.extend(known.told.iter().cloned());
            known.untold = Losses::default();
        }
        lines
    }

    /// What is still worth a remark.
    pub fn remarks(&self, now: Instant) -> Vec<String> {
        let recent = |known: &&Known| known.lost.is_some_and(|lost| now - lost < REMARKED);
        self.inputs.values().filter(recent).flat_map(|known| known.told.iter().cloned()).collect()
    }
}

impl Known {
    fn new(loser: Loser, now: Instant) -> Self {
        let (total, untold) = (Losses::default(), Losses::default());
        Self { loser, total, untold, since: now, lost: None, told: Vec::new() }
    }

    /// What has not been told, by where it was lost, with the way out.
    fn lines(&self, name: &str, now: Instant) -> Vec<String> {
        let seconds = (now - self.since).as_secs_f64().round().max(1.0);
        let whose = match self.loser {
            Loser::Interface => "the kernel",
            Loser::Probe => "the kernel on the probe's host",
        };
        let Losses { interface, kernel, probe, .. } = self.untold;
        let all = self.total;
        let places = [
            (
                kernel,
                all.kernel,
                whose,
                "the capture cannot keep up; try a larger --ring-size, a filter (-f), a smaller --snaplen or more cores",
            ),
            (
                interface,
                all.interface,
                "the network interface",
                "its receive ring was full; `ethtool -G` can enlarge it on most cards",
            ),
            (
                probe,
                all.probe,
                "the probe",
                "NATS did not accept them fast enough; enlarge nats.buffer, or check whether NATS is slow or unreachable",
            ),
        ];
        let line = |(now, all, who, why): (u64, u64, &str, &str)| {
            let packets = if now == 1 { "packet" } else { "packets" };
            format!(
                "{name}: {now} {packets} dropped by {who} in the last {seconds} s ({all} in total); {why}"
            )
        };
        places.into_iter().filter(|(now, ..)| *now > 0).map(line).collect()
    }
}

/// What live inputs have lost; the rings of an interface are one.
fn losses<'a>(inputs: impl Iterator<Item = &'a InputReport>) -> Vec<(String, Loser, Losses)> {
    let mut found: Vec<(String, Loser, Losses)> = Vec::new();
    for InputReport { name, format, losses, .. } in inputs.filter(|input| is_live(&input.format)) {
        let (name, loser) = match format.as_str() {
            "live" => {
                (name.rsplit_once(" ring ").map_or(&**name, |(interface, _)| interface), Loser::Interface)
            }
            _ => (&**name, Loser::Probe),
        };
        let losses = losses.unwrap_or_default();
        match found.iter_mut().find(|(known, ..)| known == name) {
            Some((.., known)) => *known += losses,
            None => found.push((name.to_owned(), loser, losses)),
        }
    }
    found
}

/// Starts to watch the inputs of a live run, one look a tick, on a thread that ends with the process.
pub fn start(job: &Arc<Job>, progress: &Arc<Progress>, tick: Duration) -> std::io::Result<()> {
    let (job, progress, shown) = (job.clone(), progress.clone(), progress.clone());
    let look = move || {
        let inputs = progress.inputs_so_far(&*job.intake);
        losses(inputs.iter().map(|(report, _)| report))
    };
    let watch = move || {
        let mut watch = LossWatch::new(&look(), Instant::now());
        loop {
            thread::sleep(tick);
            let now = Instant::now();
            watch.look(&look(), now).iter().for_each(|line| warn!("{line}"));
            shown.set_losing(watch.remarks(now));
        }
    };
    thread::Builder::new().name("losses".into()).spawn(watch).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn kernel(kernel: u64) -> Vec<(String, Loser, Losses)> {
        vec![("eth0".into(), Loser::Interface, Losses { kernel, ..Losses::default() })]
    }

    #[test]
    fn losses_are_told_at_once_and_then_summed_up_every_ten_seconds() {
        let began = Instant::now();
        let mut watch = LossWatch::new(&kernel(7), began);
        assert_eq!(watch.look(&kernel(7), began + SECOND), Vec::<String>::new(), "lost before this run");
        let lines = watch.look(&kernel(8), began + 2 * SECOND);
        assert!(
            lines[0].starts_with("eth0: 1 packet dropped by the kernel in the last 1 s (8 in total); "),
            "{lines:?}"
        );
        for second in 3..12 {
            let lines = watch.look(&kernel(8 + u64::from(second)), began + second * SECOND);
            assert_eq!(lines, Vec::<String>::new(), "after {second} s");
        }
        let lines = watch.look(&kernel(20), began + 12 * SECOND);
        assert!(
            lines[0].starts_with("eth0: 12 packets dropped by the kernel in the last 10 s (20 in total); "),
            "{lines:?}"
        );
        assert_eq!(watch.look(&kernel(20), began + 40 * SECOND), Vec::<String>::new());
        assert_eq!(watch.remarks(began + 40 * SECOND), lines);
        assert_eq!(watch.remarks(began + 72 * SECOND), Vec::<String>::new(), "a minute after the last loss");
    }

    #[test]
    fn an_interface_is_one_whatever_its_rings_and_what_is_missing_on_the_bus_may_come() {
        let report = |name: &str, format: &str, losses| InputReport {
            name: name.into(),
            format: format.into(),
            losses: Some(losses),
            ..InputReport::default()
        };
        let began = Instant::now();
        let lost = |times: u64| {
            let ring = Losses { kernel: 3 * times, ..Losses::default() };
            let probe = Losses { probe: 2 * times, bus: 9 * times, ..Losses::default() };
            let inputs = [
                report("eth0 ring 0", "live", ring),
                report("eth0 ring 1", "live", ring),
                report("a", "nats-batch", probe),
            ];
            losses(inputs.iter())
        };
        let mut watch = LossWatch::new(&lost(0), began);
        let lines = watch.look(&lost(1), began + SECOND);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("a: 2 packets dropped by the probe in"), "{lines:?}");
        assert!(lines[1].starts_with("eth0: 6 packets dropped by the kernel in"), "{lines:?}");
    }
}
