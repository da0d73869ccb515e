//! What the workers of all processes tell the one that commits: what became of which input, and how far it has come.
//!
//! An account travels through the dataflow at the time of an epoch, so that it is there when the epoch's snapshot is:
//! what a commit records is what its snapshots hold, to the packet.

use crate::intake::Notice;
use crate::intake::books::RunBooks;
use crate::intake::log::LogPosition;
use crate::ledger::{Counts, InputReport};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

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
}

/// What a worker tells of an epoch.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Account {
    /// What became of the frames that it has decoded for the epoch.
    pub counts: Vec<(InputKey, Counts)>,
    /// At the end, what was found in the inputs.
    pub found: Vec<(InputKey, Found)>,
    /// Link types that were met and are not decoded.
    pub unknown_links: BTreeSet<u32>,
    /// From this epoch on: where its partitions of the durable log stand.
    pub positions: Vec<LogPosition>,
    /// What all other workers are to be told at once.
    pub notices: Vec<Notice>,
}

impl Account {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let Self { counts, found, unknown_links, positions, notices } = self;
        counts.is_empty()
            && found.is_empty()
            && unknown_links.is_empty()
            && positions.is_empty()
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
    /// What was found in inputs of each kind. An input is of one kind, and the kinds are apart: no account can fall between.
    #[serde(skip)]
    frames: BTreeMap<InputKey, InputReport>,
    #[serde(skip)]
    runs: BTreeMap<InputKey, RunBooks>,
    #[serde(skip)]
    unknown_links: BTreeSet<u32>,
}

impl Accounts {
    /// Adds one; they come in the order of their epochs.
    pub fn add(&mut self, account: Account) {
        let Account { counts, found, unknown_links, positions, notices: _ } = account;
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
            }
        }
        self.unknown_links.extend(unknown_links);
        self.positions.extend(positions.into_iter().map(|position| (position.partition, position)));
    }

    /// What was found in each input and what became of it, in the ledger's order.
    pub fn inputs(&self) -> Vec<(InputReport, Counts)> {
        let mut runs = self.runs.clone();
        for books in self.positions.values().flat_map(|position| &position.runs) {
            merge_run(&mut runs, books.key(), books.clone());
        }
        // What is no message has no name: it is in the account of single packets.
        if let Some(singles) = runs.get_mut(&InputKey::default()) {
            singles.refused += self.positions.values().map(|position| position.refused).sum::<u64>();
        }
        let counts = |key: &InputKey| {
            self.counts.iter().find(|(input, _)| input == key).map(|(_, counts)| *counts).unwrap_or_default()
        };
        let frames = self.frames.iter().map(|(key, report)| (report.clone(), counts(key)));
        frames.chain(runs.iter().map(|(key, books)| (books.report(), counts(key)))).collect()
    }

    /// Whether it is known what was found in all inputs.
    pub fn has_found(&self) -> bool {
        !self.frames.is_empty() || !self.runs.is_empty()
    }

    /// Link types that were met and are not decoded.
    pub fn unknown_links(&self) -> &BTreeSet<u32> {
        &self.unknown_links
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
}
