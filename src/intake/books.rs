//! What is known of the runs of probes: how far each has come, what it has sent, what came of it, and what is lost.
//!
//! A run comes in one part or in several, each in order: all that a process alone hears over core NATS is one, each
//! partition of the durable log is one. A run has come as far as the part of it that is furthest behind. Windows wait for
//! the least watermark of the runs; not for one whose time has stood still, nor for one that joins behind what is closed.
//! A probe greets every partition, and tells each at least once a second how far it is: so a run is known in all its parts
//! soon after it is known in one, and until then nothing is closed.
//!
//! Runs that have ended, or have been silent for long, are retired: see [`super::retired`].

use super::Notice;
use super::retired::{OTHERS, Parts, RetiredAccounts, RetiredRuns};
use crate::account::InputKey;
use crate::capture::clock::JUMP;
use crate::ledger::{Counts, InputReport, Losses};
use crate::warn;
use crate::wire::batch::Batch;
use crate::wire::v1::Accounts;
use dataflows::window::Windowing;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Runs of probes that may be active at once; retired ones do not count.
const MAX_RUNS: usize = 1 << 16;
/// Runs that have ended and are not retired yet: the ledger has a line for each of them.
pub const MAX_ENDED: usize = 16;
/// Silence after which a run that has not said its end is retired.
const RETIRED_AFTER: Duration = Duration::from_secs(3600);
/// Runs that other workers are told of at once.
const MAX_UNTOLD: usize = 1 << 10;
/// Retired runs whose names are known for packets of theirs that are not accounted for yet.
const MAX_RETIRED_NAMES: usize = 1 << 16;
/// How often it is said that there are too many runs.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// Gaps that are remembered of a probe; what is missing in earlier ones stays lost.
pub const MOST_GAPS: usize = 1 << 16;
/// How often the clock is looked at.
pub const TICK: Duration = Duration::from_millis(200);
/// Without a look for so long, the engine itself stood still: it was stopped, or its machine was.
const STOOD_STILL: Duration = Duration::from_secs(1);
/// Single packets in a row that are taken to be dated ahead by mistake; the next one is believed.
const MOST_AHEAD: u32 = 8;
/// The same of one partition of the durable log: they are in every record of a commit. A probe that spreads blocks leaves
/// none but where packets are missing.
const MAX_PARTITION_GAPS: usize = 1 << 10;

/// How an engine takes messages.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How event time is cut: when nobody is left to wait for, the windows begun are closed.
    pub windowing: Windowing,
    /// Nanoseconds that a window stays open behind the watermark.
    pub lateness: u64,
    /// How long a probe may say nothing before windows close without it.
    pub silent_after: Duration,
    /// How long single packets may pause before the clock moves their watermark.
    pub pause: Duration,
    /// Bytes of messages that may wait for the workers.
    pub limit: u64,
    /// Runs that have ended and are not retired yet.
    pub max_ended: usize,
    /// Name of the input of single packets, and of what is no message at all.
    pub single: String,
    /// When the engine began to listen, nanoseconds since the Unix epoch; what was sent before that over core NATS is not
    /// its own.
    pub began: u64,
}

impl Rules {
    /// The least watermark that leaves this window open and none before it.
    pub fn closes_before(&self, open: u64) -> u64 {
        match self.windowing {
            Windowing::All => 0,
            Windowing::Every(length) => open.saturating_mul(length).saturating_add(self.lateness),
        }
    }

    /// The first window that a watermark leaves open.
    pub fn first_open(&self, watermark: u64) -> u64 {
        match self.windowing {
            Windowing::All => 0,
            Windowing::Every(length) => watermark.saturating_sub(self.lateness) / length,
        }
    }
}

#[cfg(test)]
impl Rules {
    /// Windows of so many nanoseconds, without lateness; no clock matters.
    pub(super) fn trial(length: u64) -> Self {
        let hour = Duration::from_secs(3600);
        Self {
            windowing: Windowing::Every(length),
            lateness: 0,
            silent_after: hour,
            pause: hour,
            limit: 1 << 20,
            max_ended: MAX_ENDED,
            single: "single".into(),
            began: 0,
        }
    }
}

/// Ranges of numbers that have been seen: ascending, apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// First of each range, and the first after it.
    pub ranges: BTreeMap<u64, u64>,
}

impl Seen {
    /// Adds `start..end`; gives the parts of it that have not been seen before.
    pub fn add(&mut self, start: u64, end: u64) -> Vec<Range<u64>> {
        let mut fresh = Vec::new();
        let mut merged = start..end;
        let mut from = start;
        // Those that overlap it or touch it, in ascending order.
        let near = self.ranges.range(..=end).rev().map(|(start, end)| *start..*end);
        let near: Vec<_> = near.take_while(|range| range.end >= start).collect();
        for range in near.into_iter().rev() {
            if from < range.start.min(end) {
                fresh.push(from..range.start.min(end));
            }
            from = from.max(range.end);
            merged = merged.start.min(range.start)..merged.end.max(range.end);
            self.ranges.remove(&range.start);
        }
        if from < end {
            fresh.push(from..end);
        }
        if merged.start < merged.end {
            self.ranges.insert(merged.start, merged.end);
        }
        self.forget_beyond(MOST_GAPS);
        fresh
    }

    /// Fills the first gaps for good where there are more than so many: what comes from one of them now has come twice, as
    /// far as anyone can tell.
    fn forget_beyond(&mut self, most: usize) {
        while self.ranges.len() > most {
            let Some((first, _)) = self.ranges.pop_first() else { break };
            if let Some((_, next_end)) = self.ranges.pop_first() {
                self.ranges.insert(first, next_end);
            }
        }
    }
}

/// The books of a run of a probe, or of all single packets: those of one part, or of several put together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunBooks {
    /// The probe's name.
    pub name: String,
    /// Which run of it; 0 for single packets.
    pub run: u64,
    /// Whether they are single packets.
    pub single: bool,
    /// Time up to which everything has come that is not late; 0 until anything with a time has.
    pub watermark: u64,
    /// Latest time of a packet.
    pub newest: u64,
    /// Nothing more comes.
    pub ended: bool,
    /// Numbers of packets that have come: in the run, or among those of the run that come to this partition.
    pub seen: Seen,
    /// Packets taken, and those that came twice.
    pub taken: u64,
    /// Packets that came more than once.
    pub repeated: u64,
    /// Packets that another engine of the group has taken.
    pub elsewhere: u64,
    /// Accounts when this engine first heard of it, and the latest; none before it has.
    pub(super) accounts: Option<(Accounts, Accounts)>,
    /// Packets known to be lost here, where they have no numbers.
    pub lost: u64,
    /// Messages that are none.
    pub refused: u64,
    /// Of single packets: their latest time, as their own order tells it, and packets in a row that are ahead of it.
    #[serde(default)]
    pub(super) shown: u64,
    #[serde(default)]
    pub(super) ahead: u32,
}

impl RunBooks {
    /// Books of single packets on this subject.
    pub fn of_singles(name: String) -> Self {
        Self { name, single: true, ..Self::default() }
    }

    /// Books of a run of which so many packets were taken, and whose probe has told these accounts.
    #[cfg(test)]
    pub fn heard(name: &str, run: u64, taken: u64, accounts: Accounts) -> Self {
        let accounts = Some((Accounts::default(), accounts));
        Self { name: name.into(), run, taken, accounts, ..Self::default() }
    }

    /// Names the run in all processes. Single packets come first.
    pub fn key(&self) -> InputKey {
        let name = if self.single { String::new() } else { self.name.clone() };
        InputKey { process: 0, name, number: self.run }
    }

    /// Whether the next single packet, which came or was stored at this time, is dated ahead by mistake: far ahead of those
    /// before it and of that time too, and not the last of many in a row. Whoever reads the packets again finds the same.
    pub fn is_stray(&mut self, time: u64, came: u64) -> bool {
        let is_jump = self.shown > 0 && time > self.shown.max(came).saturating_add(JUMP);
        self.ahead = if is_jump { self.ahead + 1 } else { 0 };
        let is_stray = is_jump && self.ahead <= MOST_AHEAD;
        if !is_stray {
            (self.shown, self.ahead) = (self.shown.max(time), 0);
        }
        is_stray
    }

    /// Whether anything of it has come in this part.
    pub fn is_heard(&self) -> bool {
        self.accounts.is_some()
    }

    /// Takes a probe's own accounts. They only grow, though batches may come again and in another order.
    fn account(&mut self, batch: &Batch, began: u64) {
        // What it sent before this engine listened is not ours.
        let first = if batch.started < began { batch.before } else { Accounts::default() };
        let (baseline, latest) = self.accounts.get_or_insert((first, first));
        *latest = each(latest, &batch.after, u64::max);
        if batch.packets > 0 {
            // An earlier batch than the first that was heard.
            *baseline = each(baseline, &batch.before, u64::min);
        }
    }

    /// Which of a batch's packets, by number in the run, are new in a part that one of the probe's subjects comes to. Packets
    /// have numbers, so it does not matter how a run that is repeated is cut into batches.
    pub fn fresh_of(&mut self, batch: &Batch) -> Vec<Range<u64>> {
        let (first, here) = (batch.first_packet, batch.first_in_subject());
        let mut fresh = self.fresh(here, batch.packets.into());
        self.seen.forget_beyond(MAX_PARTITION_GAPS);
        fresh.iter_mut().for_each(|range| *range = range.start - here + first..range.end - here + first);
        fresh
    }

    /// The same where all subjects come to one part.
    pub fn fresh_packets_of(&mut self, batch: &Batch) -> Vec<Range<u64>> {
        self.fresh(batch.first_packet, batch.packets.into())
    }

    fn fresh(&mut self, first: u64, packets: u64) -> Vec<Range<u64>> {
        if packets == 0 {
            return Vec::new();
        }
        let fresh = self.seen.add(first, first.saturating_add(packets));
        self.count(packets, fresh.iter().map(|range| range.end - range.start).sum());
        fresh
    }

    fn count(&mut self, packets: u64, new: u64) {
        self.repeated += packets - new;
        self.taken += new;
    }

    /// Packets that the probe has sent, as far as was heard here.
    pub fn sent(&self) -> u64 {
        self.accounts.map_or(0, |(_, latest)| latest.sent)
    }

    /// Another engine of the group has taken these packets; those that the probe is not known to have sent are left out.
    pub fn take_elsewhere(&mut self, packets: Range<u64>) {
        let Some((baseline, latest)) = &self.accounts else { return };
        let (first, end) = (packets.start.max(baseline.sent), packets.end.min(latest.sent));
        if first < end {
            let fresh = self.seen.add(first, end);
            self.elsewhere += fresh.iter().map(|range| range.end - range.start).sum::<u64>();
        }
    }

    /// Adds the books of another part.
    pub fn merge(&mut self, other: &Self) {
        self.watermark = self.watermark.min(other.watermark);
        self.newest = self.newest.max(other.newest);
        self.ended &= other.ended;
        self.taken += other.taken;
        self.repeated += other.repeated;
        self.elsewhere += other.elsewhere;
        self.lost += other.lost;
        self.refused += other.refused;
        self.accounts = match (self.accounts, other.accounts) {
            (Some((baseline, latest)), Some((other_baseline, other_latest))) => {
                Some((each(&baseline, &other_baseline, u64::min), each(&latest, &other_latest, u64::max)))
            }
            (own, other) => own.or(other),
        };
    }

    /// For the ledger.
    pub fn report(&self) -> InputReport {
        let (baseline, latest) = self.accounts.unwrap_or_default();
        let since = |of: fn(&Accounts) -> u64| of(&latest).saturating_sub(of(&baseline));
        let filtered = since(|accounts| accounts.filtered);
        let non_ip = since(|accounts| accounts.non_ip);
        let malformed = since(|accounts| accounts.malformed) + self.refused;
        let before = Counts {
            read: filtered + non_ip + malformed,
            filtered,
            non_ip,
            malformed,
            bytes_read: since(|accounts| accounts.uncounted_bytes),
            ..Counts::default()
        };
        let losses = Losses {
            interface: since(|accounts| accounts.interface_dropped),
            kernel: since(|accounts| accounts.kernel_dropped),
            probe: since(|accounts| accounts.dropped),
            bus: since(|accounts| accounts.sent).saturating_sub(self.taken.saturating_add(self.elsewhere))
                + self.lost,
        };
        InputReport {
            name: self.name.clone(),
            format: if self.single { "nats-single" } else { "nats-batch" }.into(),
            packets: self.taken,
            before,
            losses: Some(losses),
            repeated: self.repeated,
            ..InputReport::default()
        }
    }
}

/// The books of all parts of a run, put together.
pub fn merged<'a>(parts: impl IntoIterator<Item = &'a RunBooks>) -> RunBooks {
    let mut parts = parts.into_iter().filter(|part| part.is_heard());
    let mut all = parts.next().cloned().unwrap_or_default();
    parts.for_each(|part| all.merge(part));
    all
}

/// Puts two accounts together, count by count.
fn each(left: &Accounts, right: &Accounts, of: fn(u64, u64) -> u64) -> Accounts {
    Accounts {
        filtered: of(left.filtered, right.filtered),
        non_ip: of(left.non_ip, right.non_ip),
        malformed: of(left.malformed, right.malformed),
        uncounted_bytes: of(left.uncounted_bytes, right.uncounted_bytes),
        sent: of(left.sent, right.sent),
        dropped: of(left.dropped, right.dropped),
        kernel_dropped: of(left.kernel_dropped, right.kernel_dropped),
        interface_dropped: of(left.interface_dropped, right.interface_dropped),
        reconnects: of(left.reconnects, right.reconnects),
    }
}

/// A run, in all the parts that come here.
pub struct Run {
    /// The books of each part.
    pub parts: Vec<RunBooks>,
    /// When the message came that last moved the watermark of each part.
    moved: Vec<Instant>,
    /// Parts that windows do not wait for: nothing came for too long, and they have not caught up since.
    silent: Vec<bool>,
    /// Whether windows wait for it.
    active: bool,
    /// Whether it was retired before: what was decoded of it then is in the sum of its probe.
    was_retired: bool,
}

impl Run {
    /// A run that has just been heard of: until all its parts have shown how far they are, no window is closed.
    fn new(parts: Vec<RunBooks>) -> Self {
        let active = parts.iter().all(|part| !part.single);
        let (moved, silent) = (vec![Instant::now(); parts.len()], vec![false; parts.len()]);
        Self { parts, moved, silent, active, was_retired: false }
    }

    /// The parts that windows may wait for, with their numbers.
    fn heard(&self) -> impl Iterator<Item = (usize, &RunBooks)> {
        let parts = self.parts.iter().zip(&self.silent).enumerate();
        parts.filter(|(_, (part, silent))| !part.ended && !**silent).map(|(number, (part, _))| (number, part))
    }

    /// When the message came that last moved a watermark.
    fn last_moved(&self) -> Option<Instant> {
        self.moved.iter().max().copied()
    }

    /// The watermark of the part that is furthest behind.
    fn watermark(&self) -> u64 {
        let least = self.heard().map(|(_, part)| part.watermark).min();
        least.unwrap_or_else(|| self.parts.iter().map(|part| part.watermark).max().unwrap_or(0))
    }

    /// Whether some part of it has not been heard of yet, or only that it is there.
    fn is_beginning(&self) -> bool {
        self.active && self.heard().any(|(_, part)| part.watermark == 0)
    }

    fn newest(&self) -> u64 {
        self.parts.iter().map(|part| part.newest).max().unwrap_or(0)
    }

    fn has_ended(&self) -> bool {
        !self.active && self.parts.iter().all(|part| part.ended)
    }

    fn is_single(&self) -> bool {
        self.parts.iter().any(|part| part.single)
    }
}

/// Parts of retired runs, in the order in which they were retired, until a commit records that they were.
#[derive(Default)]
struct Leaving {
    /// How many have been recorded.
    recorded: u64,
    parts: VecDeque<RunBooks>,
}

/// When what has come, and has not been looked at yet, began to come.
#[derive(Default)]
pub struct Waiting {
    /// Of single packets.
    pub singles: Option<Instant>,
    /// Of each part of batches.
    pub parts: Vec<Option<Instant>>,
}

impl Waiting {
    fn earliest(&self) -> Option<Instant> {
        self.parts.iter().chain([&self.singles]).flatten().min().copied()
    }
}

/// All runs that come here.
pub struct Books {
    /// How messages are taken.
    pub rules: Rules,
    /// Runs that are not retired, by their numbers here; number 0 is the single packets. A number is never used again.
    runs: BTreeMap<usize, Run>,
    /// The number of the next run.
    next: usize,
    /// Runs by their own number, which several probes may have.
    by_number: HashMap<u64, Vec<usize>>,
    /// Parts of each batched run.
    parts: usize,
    /// As many of the runs have ended at the most.
    ended: usize,
    /// All other runs, with the numbers of parts for partitions.
    retired: RetiredRuns,
    /// What became of the packets of the retired runs, as far as they came here.
    retired_accounts: RetiredAccounts,
    /// By part, what was retired.
    leaving: Vec<Leaving>,
    /// Names of runs that were retired lately, by their numbers here; and the keys of those retired since this was asked.
    retired_names: BTreeMap<usize, String>,
    left: Vec<InputKey>,
    /// When it was last said that there are too many runs.
    said: Option<Instant>,
    /// Windows have been closed as by this watermark.
    pub floor: u64,
    /// What an earlier run of the engine has read is being read again: how far the runs had come then is not known yet.
    resuming: bool,
    /// The first window that workers have been told is open, and when that was.
    open: u64,
    advanced: Instant,
    /// When the clock was looked at last.
    ticked: Instant,
    /// Since then, packets of closed windows have come.
    late: bool,
    /// What the other workers are to hear, the window of single packets that they have heard of, and runs that they have not.
    pub notices: Vec<Notice>,
    singles_told: u64,
    untold: Vec<(String, u64)>,
    /// What other workers that were alone have said, in order.
    alone: VecDeque<Alone>,
}

/// What another worker that was alone has said.
struct Alone {
    floor: u64,
    /// Runs that it knows.
    runs: Vec<(String, u64)>,
    heard: Instant,
}

impl Books {
    /// Books without any run but the single packets.
    pub fn new(rules: Rules, parts: usize) -> Self {
        let singles = Run::new(vec![RunBooks::of_singles(rules.single.clone())]);
        Self {
            rules,
            runs: BTreeMap::from([(0, singles)]),
            next: 1,
            by_number: HashMap::new(),
            parts,
            ended: 0,
            retired: RetiredRuns::default(),
            retired_accounts: RetiredAccounts::default(),
            leaving: (0..parts).map(|_| Leaving::default()).collect(),
            retired_names: BTreeMap::new(),
            left: Vec::new(),
            said: None,
            floor: 0,
            resuming: false,
            open: 0,
            advanced: Instant::now(),
            ticked: Instant::now(),
            late: false,
            notices: Vec::new(),
            singles_told: 0,
            untold: Vec::new(),
            alone: VecDeque::new(),
        }
    }

    /// The runs that are not retired; the single packets come first.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.values()
    }

    /// A run that is not retired, by its number here.
    pub fn run(&self, number: usize) -> &Run {
        self.runs.get(&number).expect("a run in use is not retired")
    }

    fn run_mut(&mut self, number: usize) -> &mut Run {
        self.runs.get_mut(&number).expect("a run in use is not retired")
    }

    /// The books of a part of a run that is not retired.
    pub fn part(&mut self, number: usize, part: usize) -> &mut RunBooks {
        &mut self.run_mut(number).parts[part]
    }

    /// The books of single packets.
    pub fn singles(&mut self) -> &mut RunBooks {
        self.part(0, 0)
    }

    /// Names a run in all processes; a retired one has the key of all retired runs of its probe.
    pub fn key(&self, number: usize) -> InputKey {
        self.runs.get(&number).map(|run| run.parts[0].key()).unwrap_or_else(|| {
            let name = self.retired_names.get(&number).cloned().unwrap_or_else(|| OTHERS.into());
            InputKey { process: 0, name, number: u64::MAX }
        })
    }

    /// The number here of a run that is not retired.
    fn known(&self, probe: &str, run: u64) -> Option<usize> {
        let mut numbers = self.by_number.get(&run).into_iter().flatten().copied();
        numbers.find(|number| self.run(*number).parts[0].name == probe)
    }

    /// Whether anything was ever heard of a run.
    fn was_heard(&self, probe: &str, run: u64) -> bool {
        self.known(probe, run).is_some() || self.retired.contains(probe, run)
    }

    /// The number here of a run that was heard of; it is retired no more.
    pub fn find(&mut self, probe: &str, run: u64) -> Option<usize> {
        self.known(probe, run).or_else(|| self.revive(probe, run))
    }

    /// Adds a run; `None` where too many are active.
    fn add(&mut self, name: &str, run: u64) -> Option<usize> {
        self.retire_ended();
        if self.runs.len() >= MAX_RUNS {
            self.retire_if(|run| !run.active);
        }
        if self.runs.len() >= MAX_RUNS {
            if self.said.is_none_or(|said| said.elapsed() >= SAID_AGAIN) {
                self.said = Some(Instant::now());
                warn!(
                    "{MAX_RUNS} probe runs are active, which is the maximum; batches from further runs are refused. \
                     Stop some probes or use several engines"
                );
            }
            return None;
        }
        if self.untold.len() >= MAX_UNTOLD {
            let runs = std::mem::take(&mut self.untold);
            self.notices.push(Notice::Heard { runs });
        }
        self.untold.push((name.to_owned(), run));
        let part = RunBooks { name: name.to_owned(), run, ..RunBooks::default() };
        Some(self.enter(Run::new(vec![part; self.parts])))
    }

    fn enter(&mut self, run: Run) -> usize {
        let number = self.next;
        self.next += 1;
        self.by_number.entry(run.parts[0].run).or_default().push(number);
        self.runs.insert(number, run);
        number
    }

    /// Keeps what is known of retired runs, by number of the part.
    pub fn restore_retired(&mut self, retired: RetiredRuns) {
        self.retired = retired;
    }

    /// Takes a run up again as it was when it was retired.
    fn revive(&mut self, name: &str, run: u64) -> Option<usize> {
        let known = self.retired.take(name, run)?;
        let part = RunBooks { name: name.to_owned(), run, ..RunBooks::default() };
        let mut parts = vec![part; self.parts];
        for (number, books) in known {
            if let Some(part) = parts.get_mut(number as usize) {
                *part = books;
            }
        }
        self.retired_accounts.subtract(&merged(&parts));
        self.ended += 1;
        Some(self.enter(Run { active: false, was_retired: true, ..Run::new(parts) }))
    }

    /// Retires a run of batches.
    fn retire(&mut self, number: usize) {
        let Some(run) = self.runs.remove(&number) else { return };
        let (name, run_number) = (run.parts[0].name.clone(), run.parts[0].run);
        if let Some(numbers) = self.by_number.get_mut(&run_number) {
            numbers.retain(|known| *known != number);
            if numbers.is_empty() {
                self.by_number.remove(&run_number);
            }
        }
        self.left.push(run.parts[0].key());
        self.retired_names.insert(number, name.clone());
        if self.retired_names.len() > MAX_RETIRED_NAMES {
            self.retired_names.pop_first();
        }
        self.retired_accounts.add(&merged(&run.parts));
        let heard = (0..).zip(run.parts).filter(|(_, books)| books.is_heard());
        let heard: Parts = heard.collect();
        self.retired.insert(&name, run_number, &heard);
        for (part, books) in heard {
            self.leaving[part as usize].parts.push_back(books);
        }
    }

    fn retire_if(&mut self, which: impl Fn(&Run) -> bool) {
        let which = self.runs.iter().filter(|(_, run)| !run.is_single() && which(run));
        let which: Vec<usize> = which.map(|(number, _)| *number).collect();
        which.into_iter().for_each(|number| self.retire(number));
    }

    /// Retires runs that have ended, but for the last ones.
    fn retire_ended(&mut self) {
        let but = self.rules.max_ended;
        if self.ended <= but {
            return;
        }
        let ended = self.runs.iter().filter(|(_, run)| !run.is_single() && run.has_ended());
        let mut ended: Vec<_> = ended.map(|(number, run)| (run.last_moved(), *number)).collect();
        ended.sort_unstable();
        ended.iter().rev().skip(but).for_each(|(_, number)| self.retire(*number));
        self.ended = ended.len().min(but);
    }

    /// How many runs have been retired in this part.
    pub fn retired_here(&self, part: usize) -> u64 {
        self.leaving.get(part).map_or(0, |leaving| leaving.recorded + leaving.parts.len() as u64)
    }

    /// The first `until` runs that were retired in this part, without those that this has given before.
    pub fn leave(&mut self, part: usize, until: u64) -> Vec<RunBooks> {
        let Some(leaving) = self.leaving.get_mut(part) else { return Vec::new() };
        let count = until.saturating_sub(leaving.recorded).min(leaving.parts.len() as u64);
        leaving.recorded += count;
        leaving.parts.drain(..count as usize).collect()
    }

    /// The keys of runs that were retired since this was last asked.
    pub fn left(&mut self) -> Vec<InputKey> {
        std::mem::take(&mut self.left)
    }

    /// The books of all runs that were never retired, and the sums of all others.
    pub fn found(&self) -> (impl Iterator<Item = &RunBooks>, RetiredAccounts) {
        let (again, never): (Vec<&Run>, Vec<&Run>) = self.runs().partition(|run| run.was_retired);
        let mut retired = self.retired_accounts.clone();
        again.into_iter().for_each(|run| retired.add(&merged(&run.parts)));
        (never.into_iter().flat_map(|run| &run.parts), retired)
    }

    /// Packets that were lost between the probes and the engine, as far as is known.
    pub fn missing(&self) -> u64 {
        let runs = self.runs().flat_map(|run| &run.parts);
        let missing: u64 = runs.map(|books| books.report().losses.unwrap_or_default().bus).sum();
        missing + self.retired_accounts.lost_on_bus()
    }

    /// The number of a batch's run, which may be new; the probe's accounts are taken. `None` where too many runs are active.
    pub fn run_of(&mut self, batch: &Batch, part: usize) -> Option<usize> {
        let known = self.find(&batch.probe, batch.run);
        let number = known.or_else(|| self.add(&batch.probe, batch.run))?;
        let began = self.rules.began;
        self.part(number, part).account(batch, began);
        Some(number)
    }

    /// Takes up where an earlier run of the engine has left: it had closed all windows before `first`. Until what it had
    /// read is read again, all probes are waited for, however far behind they are.
    pub fn resume(&mut self, first: u64) {
        self.open = self.open.max(first);
        self.resuming = first > 0;
    }

    /// What an earlier run had read is read again: now it is known how far the probes had come. One that is behind all the
    /// same, because its clock was put back, is not waited for.
    pub fn resumed(&mut self, first: u64) {
        if std::mem::take(&mut self.resuming) {
            self.floor = self.floor.max(self.rules.closes_before(first));
        }
    }

    /// Takes up the books of a part where an earlier run of the engine has left them.
    pub fn restore(&mut self, part: usize, books: RunBooks) {
        if books.single {
            self.run_mut(0).active = books.watermark > 0 && !books.ended;
            *self.singles() = books;
            return;
        }
        // Other parts of it may have been retired then.
        let known = self.find(&books.name, books.run);
        let Some(number) = known.or_else(|| self.add(&books.name, books.run)) else { return };
        let run = self.run_mut(number);
        run.parts[part] = books;
        run.active = run.parts.iter().any(|part| !part.ended);
        self.ended += usize::from(!run.active);
    }

    /// Takes the watermark of a message of a part that came at this moment.
    pub fn hear(&mut self, number: usize, part: usize, watermark: u64, last: bool, arrived: Instant) {
        let floor = self.floor;
        let run = self.run_mut(number);
        let books = &mut run.parts[part];
        books.ended = last;
        if watermark > books.watermark {
            books.watermark = watermark;
            (run.moved[part], run.active) = (arrived, true);
            run.silent[part] &= watermark < floor;
        }
        run.active &= run.parts.iter().any(|part| !part.ended);
        self.ended += usize::from(run.has_ended());
    }

    /// Notes the times of packets that were taken.
    pub fn note(&mut self, number: usize, part: usize, earliest: u64, newest: u64) {
        let books = self.part(number, part);
        books.newest = books.newest.max(newest);
        if let Windowing::Every(length) = self.rules.windowing {
            self.late |= earliest / length < self.open.max(self.rules.first_open(self.floor));
        }
    }

    /// The runs that windows wait for, with their numbers. One that has joined, or come back, behind what is closed is not
    /// waited for until it has caught up.
    fn awaited(&self) -> impl Iterator<Item = (usize, &Run)> {
        let runs = self.runs.iter().map(|(number, run)| (*number, run));
        runs.filter(move |(_, run)| run.active && (self.resuming || run.watermark() >= self.floor))
    }

    /// The part that windows wait for most: whether it is that of single packets, and its number.
    pub fn furthest_behind(&self) -> Option<(bool, usize)> {
        let parts = self.awaited().flat_map(|(_, run)| run.heard());
        let part = parts.min_by_key(|(_, part)| part.watermark);
        part.map(|(number, part)| (part.single, number))
    }

    /// The least watermark of all other runs that windows wait for.
    pub fn others(&self, number: usize) -> u64 {
        let others = self.awaited().filter(|(other, _)| *other != number);
        others.map(|(_, run)| run.watermark()).min().unwrap_or(u64::MAX)
    }

    /// Looks at the clock: leaves silent probes behind, retires those that are silent for long, and moves single packets on
    /// that pause. Of single packets, and of each part of batches, what has come since the moment in `waiting` has not been looked at yet.
    pub fn tick(&mut self, now: Instant, waiting: &Waiting) {
        self.pass_over_standstill(now);
        for run in self.runs.values_mut().filter(|run| run.active) {
            let is_single = run.parts.iter().all(|part| part.single);
            let waiting = if is_single { std::slice::from_ref(&waiting.singles) } else { &waiting.parts[..] };
            let quiet = |part: usize| {
                let now = waiting.get(part).copied().flatten().unwrap_or(now);
                now.saturating_duration_since(run.moved[part])
            };
            for part in 0..run.parts.len() {
                run.silent[part] |= quiet(part) >= self.rules.silent_after;
            }
            let (quiet, is_heard) = (quiet(0), run.heard().count() > 0);
            run.active = is_heard;
            if let [singles @ RunBooks { single: true, .. }] = &mut run.parts[..]
                && run.active
                && quiet >= self.rules.pause
            {
                let passed = u64::try_from(quiet.as_nanos()).unwrap_or(u64::MAX);
                singles.watermark = singles.newest.saturating_add(passed).max(singles.watermark);
            }
        }
        self.retire_ended();
        let now = waiting.earliest().unwrap_or(now);
        self.retire_if(|run| {
            let quiet = run.last_moved().map_or(Duration::ZERO, |moved| now.saturating_duration_since(moved));
            !run.active && quiet >= RETIRED_AFTER
        });
    }

    /// While the engine stood still nobody could be heard: that time is nobody's silence.
    fn pass_over_standstill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(std::mem::replace(&mut self.ticked, now));
        if since < STOOD_STILL {
            return;
        }
        let stood = since.saturating_sub(TICK);
        let later = |time: &mut Instant| *time = (*time + stood).min(now);
        self.runs.values_mut().flat_map(|run| &mut run.moved).for_each(later);
        self.alone.iter_mut().for_each(|alone| later(&mut alone.heard));
        later(&mut self.advanced);
    }

    /// Moves the floor to the least watermark of those that windows wait for; whether a window was closed by that.
    pub fn close(&mut self) -> bool {
        let Windowing::Every(length) = self.rules.windowing else { return false };
        if self.runs().any(Run::is_beginning) {
            return false;
        }
        self.follow();
        let end_of = |window: u64| {
            let (_, end) = self.rules.windowing.span(window).unwrap_or_default();
            end.saturating_add(self.rules.lateness)
        };
        let least = self.awaited().map(|(_, run)| run.watermark()).min();
        let newest = self.runs().map(Run::newest).fold(self.retired.newest(), u64::max);
        // One that is a window behind will get here by itself; one whose clock is wrong will not.
        let near = self.floor.saturating_sub(length.saturating_add(self.rules.lateness));
        let catches_up = || self.runs().any(|run| run.active && run.watermark() >= near);
        let mut floor = self.floor;
        let mut alone = false;
        match least {
            Some(watermark) => floor = floor.max(watermark),
            None if self.resuming || newest == 0 || catches_up() => {}
            None => {
                // Nobody is left to wait for: close what was begun. Late packets after that are held in a window that
                // nobody goes on to fill: it is closed too, no faster than time goes.
                floor = floor.max(end_of(newest / length));
                let patience = self.rules.silent_after.max(Duration::from_nanos(length));
                if self.late && self.advanced.elapsed() >= patience {
                    floor = floor.max(end_of(self.open));
                }
                alone = true;
            }
        }
        self.floor = floor;
        let open = self.rules.first_open(floor);
        let closed = open > self.open;
        if closed {
            (self.open, self.late, self.advanced) = (open, false, Instant::now());
            if alone {
                let runs = std::mem::take(&mut self.untold);
                self.notices.push(Notice::Alone { floor, runs });
            }
        }
        let singles = self.run(0).watermark();
        if self.rules.first_open(singles) > self.singles_told {
            self.singles_told = self.rules.first_open(singles);
            self.notices.push(Notice::Singles(singles));
        }
        closed
    }

    /// Who waits for nobody closes windows when another worker does so; but what that one has heard to its end may only
    /// begin to come here, so not before everything has been heard of that it knows. Messages may be gone from the log:
    /// that is waited for no longer than for a probe that is silent.
    fn follow(&mut self) {
        let mut floor = self.floor;
        while let Some(mut alone) = self.alone.pop_front() {
            while alone.runs.pop_if(|(probe, run)| self.was_heard(probe, *run)).is_some() {}
            if !alone.runs.is_empty() && alone.heard.elapsed() < self.rules.silent_after {
                self.alone.push_front(alone);
                break;
            }
            floor = floor.max(alone.floor);
        }
        if self.awaited().next().is_none() {
            self.floor = floor;
        }
    }

    /// Takes what another worker has said.
    pub fn heed(&mut self, notice: Notice) {
        match notice {
            Notice::Singles(watermark) => {
                self.singles_told = self.singles_told.max(self.rules.first_open(watermark));
                self.hear(0, 0, watermark, false, Instant::now());
            }
            Notice::Alone { floor, runs } => {
                self.alone.push_back(Alone { floor, runs, heard: Instant::now() });
            }
            Notice::Heard { runs } => {
                self.alone.push_back(Alone { floor: 0, runs, heard: Instant::now() });
            }
            Notice::Stop => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_number_is_seen_once() {
        let mut seen = Seen::default();
        assert_eq!(seen.add(0, 10), vec![0..10]);
        assert_eq!(seen.add(20, 30), vec![20..30]);
        assert_eq!(seen.add(10, 15), vec![10..15]);
        assert_eq!(seen.add(0, 10), vec![]);
        assert_eq!(seen.add(14, 16), vec![15..16]);
        assert_eq!(seen.add(25, 35), vec![30..35]);
        assert_eq!(seen.add(5, 40), vec![16..20, 35..40]);
        assert_eq!(seen.add(7, 7), vec![]);
        assert_eq!(seen.ranges, BTreeMap::from([(0, 40)]));
    }

    fn books(silent_after: Duration) -> Books {
        Books::new(Rules { silent_after, ..Rules::trial(100) }, 1)
    }

    /// Books of a worker that has heard a run, of one packet at this time, to its end, and what it tells the others.
    fn alone_after(time: u64) -> (Books, Notice) {
        let mut books = books(Duration::from_secs(3600));
        let run = books.add("probe", 7).expect("room");
        books.hear(run, 0, time, true, Instant::now());
        books.note(run, 0, time, time);
        assert!(books.close(), "nobody is left to wait for");
        let notice = books.notices.pop().expect("a notice");
        (books, notice)
    }

    #[test]
    fn who_has_not_heard_of_a_run_does_not_close_its_windows_because_another_worker_did() {
        let (ahead, notice) = alone_after(250);
        assert_eq!(ahead.floor, 300);
        let mut behind = books(Duration::from_secs(3600));
        behind.heed(notice);
        behind.close();
        assert_eq!(behind.floor, 0, "its packets may come yet");
        let run = behind.add("probe", 7).expect("room");
        behind.close();
        assert_eq!(behind.floor, 0, "the run is beginning");
        behind.hear(run, 0, 250, true, Instant::now());
        behind.close();
        assert_eq!(behind.floor, 300, "it has ended here too");
    }

    #[test]
    fn nobody_waits_for_ever_for_a_run_that_is_gone_from_the_log() {
        let (_, notice) = alone_after(250);
        let mut behind = books(Duration::ZERO);
        behind.heed(notice);
        behind.close();
        assert_eq!(behind.floor, 300);
    }

    /// Ticks for so long, from the first moment given, and returns the last.
    fn tick_for(books: &mut Books, from: Instant, length: Duration) -> Instant {
        let ticks = length.as_millis() / TICK.as_millis();
        (1..=ticks as u32)
            .map(|tick| from + TICK * tick)
            .inspect(|now| books.tick(*now, &Waiting::default()))
            .last()
            .unwrap_or(from)
    }

    #[test]
    fn time_in_which_the_engine_stood_still_is_nobodys_silence() {
        let silent_after = Duration::from_secs(10);
        let mut books = books(silent_after);
        let began = Instant::now();
        let run = books.add("probe", 7).expect("room");
        books.hear(run, 0, 50, false, began);
        let stopped = tick_for(&mut books, began, Duration::from_secs(4));
        let woken = stopped + Duration::from_secs(40);
        books.tick(woken, &Waiting::default());
        assert!(books.run(run).active, "stopped for 40 s");
        let later = tick_for(&mut books, woken, Duration::from_secs(5));
        assert!(books.run(run).active, "9 s of listening");
        tick_for(&mut books, later, Duration::from_secs(2));
        assert!(!books.run(run).active, "11 s of listening");
    }

    #[test]
    fn windows_do_not_wait_for_a_part_that_says_nothing_though_others_of_its_run_go_on() {
        let silent_after = Duration::from_secs(10);
        let mut books = Books::new(Rules { silent_after, ..Rules::trial(100) }, 2);
        let mut now = Instant::now();
        let run = books.add("probe", 7).expect("room");
        books.hear(run, 0, 150, false, now);
        books.hear(run, 1, 150, false, now);
        let mut go_on = |books: &mut Books, seconds: u64, waiting: &Waiting| {
            for _ in 0..seconds * 5 {
                now += TICK;
                let time = books.run(run).parts[0].watermark + 50;
                books.hear(run, 0, time, false, now);
                books.tick(now, waiting);
            }
            books.close();
            books.floor
        };
        let unread = Waiting { singles: None, parts: vec![None, Some(Instant::now())] };
        assert_eq!(go_on(&mut books, 15, &unread), 150, "what has come is not silence");
        let floor = go_on(&mut books, 15, &Waiting::default());
        assert!(floor > 1000, "{floor}");
        books.hear(run, 1, 200, false, Instant::now());
        books.close();
        assert!(books.awaited().any(|(_, run)| run.watermark() > 200), "it has not caught up");
        books.hear(run, 0, floor + 500, false, Instant::now());
        books.hear(run, 1, floor + 10, false, Instant::now());
        let caught_up = books.awaited().map(|(_, run)| run.watermark()).min();
        assert_eq!(caught_up, Some(floor + 10), "it is waited for again");
    }

    #[test]
    fn after_a_restart_nobody_waits_for_a_probe_whose_clock_was_put_back() {
        let mut books = books(Duration::from_secs(3600));
        // Windows up to 3600 were closed by its clock when that was ahead.
        books.resume(36);
        books.resumed(36);
        let run = books.add("probe", 8).expect("room");
        books.hear(run, 0, 120, false, Instant::now());
        books.note(run, 0, 110, 120);
        books.close();
        assert_eq!(books.floor, 3600);
        assert!(books.awaited().next().is_none());
        books.rules.silent_after = Duration::ZERO;
        books.tick(Instant::now(), &Waiting::default());
        books.close();
        assert!(books.floor > 3600, "its late packets are written: {}", books.floor);
    }

    #[test]
    fn what_was_read_before_a_restart_is_read_again_before_anyone_is_left_behind() {
        let mut books = books(Duration::from_secs(3600));
        books.resume(36);
        let run = books.add("probe", 8).expect("room");
        books.hear(run, 0, 3000, false, Instant::now());
        books.close();
        assert_eq!((books.floor, books.awaited().count()), (3000, 1));
        books.resumed(36);
        assert_eq!((books.floor, books.awaited().count()), (3600, 0));
    }

    #[test]
    fn a_single_packet_far_ahead_of_the_others_is_a_stray_until_many_follow() {
        let mut singles = RunBooks::of_singles("single".into());
        let far = 100 * JUMP;
        assert!(!singles.is_stray(JUMP * 3, 0), "the first");
        assert!(!singles.is_stray(JUMP * 4, 0), "no further than what is believed");
        assert!(singles.is_stray(far, 0));
        assert!(!singles.is_stray(JUMP * 4, 0));
        assert!(!singles.is_stray(far, far - 1), "it is of the time at which it came");
        assert!((0..MOST_AHEAD).all(|more| singles.is_stray(2 * far + u64::from(more), 0)));
        assert!(!singles.is_stray(2 * far, 0), "so many are believed");
    }

    #[test]
    fn runs_are_named_once() {
        let (mut ahead, notice) = alone_after(250);
        assert!(matches!(notice, Notice::Alone { runs, .. } if runs == [("probe".to_owned(), 7)]));
        let run = ahead.add("another", 8).expect("room");
        ahead.hear(run, 0, 950, true, Instant::now());
        ahead.note(run, 0, 950, 950);
        assert!(ahead.close());
        let notice = ahead.notices.pop().expect("a notice");
        assert_eq!(notice, Notice::Alone { floor: 1000, runs: vec![("another".to_owned(), 8)] });
    }

    /// Has a run of one packet come to its end.
    fn hear_all_of(books: &mut Books, run: u64, time: u64) -> usize {
        let batch = batch("probe", run, time, true);
        let number = books.run_of(&batch, 0).expect("room");
        books.part(number, 0).fresh_packets_of(&batch);
        books.hear(number, 0, time, true, Instant::now());
        books.note(number, 0, time, time);
        number
    }

    /// A batch of one packet of a run.
    fn batch(probe: &str, run: u64, time: u64, last: bool) -> Batch {
        let sent = |sent| Accounts { sent, ..Accounts::default() };
        let mut builder = crate::wire::batch::BatchBuilder::new(time);
        let transport = dataflows::packet::Transport::new(1, 1, 6, 0, 0, 4);
        let address = dataflows::packet::Address::v4(1);
        let (source, destination) = (address, address);
        builder.push(&dataflows::packet::Packet { time, transport, source, destination, length: 60 }, time);
        let header = crate::wire::batch::Header {
            probe: probe.into(),
            run,
            watermark: time,
            latest: time,
            after: sent(1),
            last,
            ..crate::wire::batch::Header::default()
        };
        Batch::read(builder.finish(header).to_vec().into()).expect("a batch")
    }

    #[test]
    fn a_run_that_has_ended_is_retired_and_comes_back_as_it_was() {
        let mut books = books(Duration::from_secs(3600));
        let first = hear_all_of(&mut books, 100, 50);
        let before = books.part(first, 0).clone();
        for run in 1..1000 {
            hear_all_of(&mut books, 100 + run, 50 + run);
        }
        assert!(books.runs().count() <= MAX_ENDED + 2, "{}", books.runs().count());
        assert_eq!(books.known("probe", 100), None);
        assert_eq!(books.key(first), InputKey { process: 0, name: "probe".into(), number: u64::MAX });
        let (report, _) = books.retired_accounts.inputs().next().expect("a sum");
        let retired = 1001 - books.runs().count() as u64;
        assert_eq!(
            (report.packets, report.runs, report.losses.map(|losses| losses.total())),
            (retired, Some(retired), Some(0))
        );
        let again = books.find("probe", 100).expect("it is known");
        assert_eq!(*books.part(again, 0), before);
        assert!(!books.run(again).active, "nobody waits for it");
        assert_eq!(books.part(again, 0).fresh_packets_of(&batch("probe", 100, 50, true)), []);
        let (report, _) = books.retired_accounts.inputs().next().expect("a sum");
        assert_eq!(report.packets, retired - 1);
    }

    #[test]
    fn a_run_that_has_not_said_its_end_is_retired_after_an_hour_of_silence() {
        let mut books = books(Duration::from_secs(10));
        let began = Instant::now();
        let run = books.run_of(&batch("probe", 7, 50, false), 0).expect("room");
        books.hear(run, 0, 50, false, began);
        books.ticked = began;
        let later = tick_for(&mut books, began, Duration::from_secs(3590));
        assert!(books.known("probe", 7).is_some() && !books.run(run).active);
        tick_for(&mut books, later, Duration::from_secs(20));
        assert_eq!(books.known("probe", 7), None);
        assert!(books.was_heard("probe", 7));
    }

    #[test]
    fn a_follower_waits_for_runs_that_the_other_worker_has_retired_before_it_told_of_them() {
        let mut ahead = books(Duration::from_secs(3600));
        let times: Vec<u64> = [550].into_iter().chain((0..3 * MAX_UNTOLD).map(|_| 50)).collect();
        for (run, time) in (0..).zip(&times) {
            hear_all_of(&mut ahead, run, *time);
        }
        assert!(ahead.close(), "nobody is left to wait for");
        assert_eq!(ahead.floor, 600);
        let mut behind = books(Duration::from_secs(3600));
        std::mem::take(&mut ahead.notices).into_iter().for_each(|notice| behind.heed(notice));
        for (run, time) in times.iter().enumerate().rev() {
            behind.close();
            assert!(behind.floor <= 100, "run {run} may come yet: {}", behind.floor);
            hear_all_of(&mut behind, run as u64, *time);
        }
        behind.close();
        assert_eq!(behind.floor, 600);
    }

    #[test]
    fn active_runs_are_bounded_and_retired_ones_do_not_count() {
        let mut books = books(Duration::from_secs(3600));
        for run in 0..MAX_RUNS as u64 + 10 {
            let number = books.run_of(&batch("probe", run, 50, false), 0).expect("room");
            // Silent, without an end.
            books.run_mut(number).active = false;
        }
        books.runs.values_mut().for_each(|run| run.active = true);
        while books.runs.len() < MAX_RUNS {
            books.add("another", books.next as u64).expect("room");
        }
        assert_eq!(books.run_of(&batch("one more", 1, 50, false), 0), None);
    }

    #[test]
    fn the_gaps_that_are_remembered_are_bounded() {
        let mut seen = Seen::default();
        assert!((0..2 * MOST_GAPS as u64).all(|number| !seen.add(number * 2, number * 2 + 1).is_empty()));
        assert_eq!(seen.ranges.len(), MOST_GAPS);
        assert_eq!(seen.add(1, 2), [], "an early gap stays lost");
        let last = 4 * MOST_GAPS as u64 - 3;
        assert_eq!(seen.add(last, last + 1), vec![last..last + 1]);
    }

    proptest! {
        #[test]
        fn what_is_fresh_is_what_a_set_of_numbers_did_not_hold(
            ranges in proptest::collection::vec((0u64..60, 0u64..20), 0..40),
        ) {
            let (mut seen, mut naive) = (Seen::default(), BTreeSet::new());
            for (start, length) in ranges {
                let fresh: Vec<u64> = seen.add(start, start + length).into_iter().flatten().collect();
                let expected: Vec<u64> = (start..start + length).filter(|number| naive.insert(*number)).collect();
                prop_assert_eq!(fresh, expected);
            }
        }
    }
}
