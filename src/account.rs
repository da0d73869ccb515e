//! What the workers of all processes tell the one that commits: what became of which input, and how far it has come.
//!
//! An account travels through the dataflow at the time of an epoch, so that it is there when the epoch's snapshot is:
//! what a commit records is what its snapshots hold, to the packet.

use crate::capture::filter::Headers;
use crate::decode::link::NotIp;
use crate::intake::Notice;
use crate::intake::books::{RunBooks, merged};
use crate::intake::log::LogPosition;
use crate::intake::retired::{Parts, RetiredAccounts, RetiredRuns};
use crate::ledger::{Counts, InputReport, Losses};
use dataflows::layers::Text;
use dataflows::rows::Missing;
use dataflows::window::{Epoch, Windowing};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Windows with lost packets that are remembered.
const MAX_LOSSY_WINDOWS: usize = 1 << 12;

/// Names an input in all processes; the order of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InputKey {
    /// The process that it belongs to; 0 for what all share.
    pub process: usize,
    /// A probe's name; empty for what has a number alone.
    pub name: String,
    /// A file's number, or a probe's run.
    pub number: u64,
}

/// What was found in an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Found {
    /// In a file or on an interface.
    Frames(InputReport),
    /// By messages of a run of a probe, or by all single packets.
    Run(RunBooks),
    /// By messages of runs that are retired.
    Retired(RetiredAccounts),
}

/// Frames without an IP header that hold the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NonIp {
    /// Their link type.
    pub link: u32,
    /// What they hold.
    pub what: NotIp,
    /// How many there are.
    pub frames: u64,
}

/// What was noticed in the frames of an input while they were decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noticed {
    /// Frames without an IP header, in the order of their link types and what they hold.
    pub non_ip: Vec<NonIp>,
    /// Headers behind which the filter has passed a packet.
    pub passed_behind: BTreeSet<Headers>,
    /// Headers behind which it would have passed one, had it looked there.
    pub hidden_behind: BTreeSet<Headers>,
}

impl Noticed {
    /// Counts frames without an IP header.
    pub fn count(&mut self, more: NonIp) {
        match self.non_ip.binary_search_by_key(&(more.link, more.what), |non_ip| (non_ip.link, non_ip.what)) {
            Ok(at) => self.non_ip[at].frames += more.frames,
            Err(at) => self.non_ip.insert(at, more),
        }
    }

    fn merge(&mut self, other: Self) {
        other.non_ip.into_iter().for_each(|more| self.count(more));
        self.passed_behind.extend(other.passed_behind);
        self.hidden_behind.extend(other.hidden_behind);
    }
}

/// What a worker tells of an epoch.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// What became of the frames that it has decoded for the epoch.
    pub counts: Vec<(InputKey, Counts)>,
    /// At the end, what was found in the inputs.
    pub found: Vec<(InputKey, Found)>,
    /// At the end, what was noticed in the inputs.
    pub noticed: Vec<(InputKey, Noticed)>,
    /// From this epoch on: where its partitions of the durable log stand.
    pub positions: Vec<LogPosition>,
    /// Runs that are retired, where no positions tell so.
    pub retired: Vec<InputKey>,
    /// What all other workers are to be told at once.
    pub notices: Vec<Notice>,
    /// Where a signal has ended the input: the first window that its time had not closed.
    pub cut: Option<Epoch>,
    /// Windows in which packets may have been that were lost, and how many at most.
    pub lost: Vec<(Epoch, u64)>,
    /// Long texts of keys that this process has met: whoever writes the rows has to know them.
    pub texts: Vec<String>,
}

impl Account {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let Self { counts, found, noticed, positions, retired, notices, cut, lost, texts } = self;
        cut.is_none()
            && texts.is_empty()
            && lost.is_empty()
            && counts.is_empty()
            && found.is_empty()
            && noticed.is_empty()
            && positions.is_empty()
            && retired.is_empty()
            && notices.is_empty()
    }
}

/// All accounts so far, put together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Accounts {
    /// What became of the frames of each input.
    pub counts: Vec<(InputKey, Counts)>,
    /// Where the partitions of the durable log stand.
    pub positions: BTreeMap<u32, LogPosition>,
    /// What became of the packets of the runs that are retired, in all partitions that tell of them.
    #[serde(default)]
    retired: RetiredAccounts,
    /// Parts of runs that positions have told are retired, and that are not in the record of retired runs yet.
    #[serde(skip)]
    retiring: Vec<(u32, RunBooks)>,
    /// Of runs in the positions, what is retired of them: other parts, and earlier states of the same.
    #[serde(skip)]
    partly_retired: BTreeMap<InputKey, Parts>,
    /// What was found in inputs of each kind. An input is of one kind, and the kinds are apart: no account can fall between.
    #[serde(skip)]
    frames: BTreeMap<InputKey, InputReport>,
    #[serde(skip)]
    runs: BTreeMap<InputKey, RunBooks>,
    #[serde(skip)]
    noticed: BTreeMap<InputKey, Noticed>,
    #[serde(skip)]
    cut: Option<Epoch>,
    #[serde(skip)]
    lost: BTreeMap<Epoch, u64>,
}

impl Accounts {
    /// Adds one; they come in the order of their epochs.
    pub fn add(&mut self, account: Account) {
        let Account { counts, found, noticed, positions, retired, notices: _, cut, lost, texts } = account;
        for text in &texts {
            // Now this process knows it.
            let _ = Text::new(text);
        }
        self.cut = self.cut.into_iter().chain(cut).min();
        for (window, packets) in lost {
            *self.lost.entry(window).or_default() += packets;
        }
        while self.lost.len() > MAX_LOSSY_WINDOWS {
            self.lost.pop_first();
        }
        for (input, more) in counts {
            match self.counts.binary_search_by(|(key, _)| key.cmp(&input)) {
                Ok(at) => self.counts[at].1 += more,
                Err(at) => self.counts.insert(at, (input, more)),
            }
        }
        for (input, found) in found {
            match found {
                // Processes that share a file each tell of the frames that they have dealt.
                Found::Frames(report) => match self.frames.get_mut(&input) {
                    Some(known) => known.merge(report),
                    None => drop(self.frames.insert(input, report)),
                },
                Found::Run(books) => merge_run(&mut self.runs, input, books),
                Found::Retired(more) => self.retired.merge(more),
            }
        }
        for (input, more) in noticed {
            self.noticed.entry(input).or_default().merge(more);
        }
        for mut position in positions {
            let partition = position.partition;
            let retired = std::mem::take(&mut position.retired);
            self.retiring.extend(retired.into_iter().map(|books| (partition, books)));
            self.positions.insert(partition, position);
        }
        retired.iter().for_each(|key| self.sum_up(key));
    }

    /// Moves what was decoded of a retired run to the sum of its probe.
    fn sum_up(&mut self, key: &InputKey) {
        if let Ok(at) = self.counts.binary_search_by(|(input, _)| input.cmp(key)) {
            let (key, counts) = self.counts.remove(at);
            self.retired.count(&key.name, counts);
        }
    }

    /// Moves the accounting of runs that are retired from here to the record of all that are; gives what that record gains.
    ///
    /// A partition may tell sooner than another that a run is retired, and a run that is retired may come again: what the
    /// positions hold of a run in a partition takes the place of what is retired of it there.
    pub fn retire(&mut self, record: &mut RetiredRuns) -> Vec<u8> {
        let mut gained = Vec::new();
        let mut retiring: BTreeMap<InputKey, Vec<(u32, RunBooks)>> = BTreeMap::new();
        for (partition, books) in self.retiring.drain(..) {
            retiring.entry(books.key()).or_default().push((partition, books));
        }
        for (InputKey { name, number, .. }, more) in retiring {
            let earlier = record.get(&name, number);
            earlier.iter().for_each(|parts| self.retired.subtract(&merged(parts.values())));
            let mut parts = earlier.unwrap_or_default();
            parts.extend(more);
            self.retired.add(&merged(parts.values()));
            gained.extend(record.insert(&name, number, &parts));
        }
        self.find_partly_retired(record);
        let here = self.positions.values().flat_map(|position| &position.runs).map(RunBooks::key);
        let here: BTreeSet<InputKey> = here.collect();
        let keys = self.counts.iter().map(|(key, _)| key);
        let gone = keys.filter(|key| record.contains(&key.name, key.number) && !here.contains(key));
        let gone: Vec<InputKey> = gone.cloned().collect();
        gone.iter().for_each(|key| self.sum_up(key));
        gained
    }

    /// Takes from the record what is retired of runs that are not retired in all partitions.
    pub fn find_partly_retired(&mut self, record: &RetiredRuns) {
        let runs = self.positions.values().flat_map(|position| &position.runs).map(RunBooks::key);
        let partly = runs.filter_map(|key| record.get(&key.name, key.number).map(|parts| (key, parts)));
        self.partly_retired = partly.collect();
    }

    /// What was found in each input and what became of it, in the ledger's order; at the end, the sums of retired runs.
    pub fn inputs(&self) -> Vec<(InputReport, Counts)> {
        let (mut runs, mut retired) = (self.runs.clone(), self.retired.clone());
        for books in self.positions.values().flat_map(|position| &position.runs) {
            merge_run(&mut runs, books.key(), books.clone());
        }
        for (key, parts) in &self.partly_retired {
            retired.subtract(&merged(parts.values()));
            let is_here = |partition| {
                let position: Option<&LogPosition> = self.positions.get(partition);
                position.is_some_and(|position| position.runs.iter().any(|books| books.key() == *key))
            };
            for (_, books) in parts.iter().filter(|(partition, _)| !is_here(partition)) {
                merge_run(&mut runs, key.clone(), books.clone());
            }
            // It stays in the sum, where what was decoded of it before is.
            runs.remove(key).iter().for_each(|books| retired.add(books));
        }
        // Of these, what was decoded is told before what was found, or the run is in the sum.
        let others = self.counts.iter().filter(|(key, _)| !key.name.is_empty() && !runs.contains_key(key));
        others.for_each(|(key, counts)| retired.count(&key.name, *counts));
        // What is no message has no name: it is in the account of single packets.
        if let Some(singles) = runs.get_mut(&InputKey::default()) {
            singles.refused += self.positions.values().map(|position| position.refused).sum::<u64>();
        }
        let frames = self.frames.iter().map(|(key, report)| (report.clone(), self.counts_of(key)));
        let runs = runs.iter().map(|(key, books)| (books.report(), self.counts_of(key)));
        frames.chain(runs).chain(retired.inputs()).collect()
    }

    /// What is known to be missing in a window. That of everything lacks what all inputs lack.
    pub fn missing(&self, window: Epoch, windowing: Windowing) -> Missing {
        let lost = match windowing {
            Windowing::All => {
                self.inputs().iter().filter_map(|(report, _)| report.losses).map(Losses::total).sum()
            }
            Windowing::Every(_) => self.lost.get(&window).copied().unwrap_or_default(),
        };
        Missing { interrupted: self.cut.is_some_and(|cut| window >= cut), lost }
    }

    fn counts_of(&self, key: &InputKey) -> Counts {
        self.counts.iter().find(|(input, _)| input == key).map(|(_, counts)| *counts).unwrap_or_default()
    }

    /// Whether a signal has ended an input before its end, in any process.
    pub fn is_interrupted(&self) -> bool {
        self.cut.is_some()
    }

    /// Whether it is known what was found in all inputs.
    pub fn has_found(&self) -> bool {
        !self.frames.is_empty() || !self.runs.is_empty()
    }

    /// The inputs in whose frames something was noticed: name, accounts, and what it was.
    pub fn noticed(&self) -> Vec<(String, Counts, Noticed)> {
        let name =
            |key: &InputKey| self.frames.get(key).map(|report| report.name.clone()).unwrap_or_default();
        self.noticed.iter().map(|(key, noticed)| (name(key), self.counts_of(key), noticed.clone())).collect()
    }
}

/// Adds the books of a part of a run to those of the others.
fn merge_run(runs: &mut BTreeMap<InputKey, RunBooks>, key: InputKey, books: RunBooks) {
    match runs.get_mut(&key) {
        Some(known) => known.merge(&books),
        None => drop(runs.insert(key, books)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1;

    #[test]
    fn accounts_of_inputs_that_have_the_same_key_and_different_kinds_are_all_kept() {
        let report = InputReport { name: "a.pcap".into(), packets: 3, ..InputReport::default() };
        let mut books = RunBooks::of_singles("single".into());
        books.taken = 5;
        let mut accounts = Accounts::default();
        for found in [Found::Frames(report.clone()), Found::Run(books), Found::Frames(report)] {
            let found = vec![(InputKey::default(), found)];
            accounts.add(Account { found, ..Account::default() });
        }
        let inputs = accounts.inputs();
        let packets: Vec<_> = inputs.iter().map(|(report, _)| (&*report.name, report.packets)).collect();
        assert_eq!(packets, [("a.pcap", 6), ("single", 5)]);
    }

    /// A position of a partition, with the runs that it holds and those that are retired: number, packets taken, sent.
    fn position(partition: u32, runs: &[(u64, u64, u64)], retired: &[(u64, u64, u64)]) -> LogPosition {
        let books = |(run, taken, sent): &(u64, u64, u64)| {
            let accounts = v1::Accounts { sent: *sent, filtered: 1, ..v1::Accounts::default() };
            RunBooks::heard("probe", *run, *taken, accounts)
        };
        let [runs, retired] = [runs, retired].map(|runs| runs.iter().map(books).collect());
        LogPosition { partition, runs, retired, ..LogPosition::default() }
    }

    fn positions(positions: Vec<LogPosition>) -> Account {
        Account { positions, ..Account::default() }
    }

    /// Lines of the ledger, packets found in them, and what is lost and filtered.
    fn totals(accounts: &Accounts) -> (usize, [u64; 3]) {
        let inputs = accounts.inputs();
        let lost = inputs.iter().map(|(report, _)| report.losses.unwrap_or_default().bus).sum();
        let filtered = inputs.iter().map(|(report, _)| report.before.filtered).sum();
        (inputs.len(), [inputs.iter().map(|(report, _)| report.packets).sum(), lost, filtered])
    }

    #[test]
    fn a_run_that_one_partition_retires_before_another_is_in_the_ledger_once() {
        let mut record = RetiredRuns::default();
        let mut accounts = Accounts::default();
        let key = InputKey { process: 0, name: "probe".into(), number: 7 };
        let counts = Counts { read: 30, counted: 30, ..Counts::default() };
        accounts.add(Account { counts: vec![(key, counts)], ..Account::default() });
        accounts.add(positions(vec![position(0, &[(7, 10, 30)], &[]), position(1, &[(7, 20, 30)], &[])]));
        assert!(accounts.retire(&mut record).is_empty());
        assert_eq!(totals(&accounts), (1, [30, 0, 1]));
        accounts.add(positions(vec![position(1, &[], &[(7, 20, 30)])]));
        assert!(!accounts.retire(&mut record).is_empty());
        assert_eq!(totals(&accounts), (1, [30, 0, 1]));
        assert_eq!(accounts.counts.len(), 1, "it is not retired everywhere");
        accounts.add(positions(vec![position(0, &[], &[(7, 10, 30)])]));
        accounts.retire(&mut record);
        assert_eq!(totals(&accounts), (1, [30, 0, 1]));
        assert_eq!(accounts.counts.len(), 0, "it is in the sum");
        assert_eq!(accounts.inputs()[0].1.counted, 30);
        // It comes again, in one partition, with more packets; then it is retired again.
        for account in [position(0, &[(7, 25, 50)], &[]), position(0, &[], &[(7, 25, 50)])] {
            accounts.add(positions(vec![account]));
            accounts.retire(&mut record);
            assert_eq!(totals(&accounts), (1, [45, 5, 1]));
            assert_eq!(accounts.inputs()[0].1.counted, 30);
        }
        assert_eq!(accounts.inputs()[0].0.runs, Some(1));
        // As a restart finds them.
        let json = serde_json::to_vec(&accounts).expect("JSON");
        let mut read: Accounts = serde_json::from_slice(&json).expect("accounts");
        read.find_partly_retired(&RetiredRuns::read(&record.write(), Some).expect("records"));
        assert_eq!(totals(&read), totals(&accounts));
    }

    #[test]
    fn a_record_of_a_version_that_retired_no_runs_is_read() {
        let mut accounts = Accounts::default();
        accounts.add(positions(vec![position(0, &[(7, 10, 30)], &[])]));
        let mut json = serde_json::to_value(&accounts).expect("JSON");
        json.as_object_mut().expect("an object").remove("retired").expect("it is there");
        assert!(json["positions"]["0"].get("retired").is_none());
        let read: Accounts = serde_json::from_value(json).expect("accounts");
        assert_eq!(totals(&read), totals(&accounts));
    }
}
