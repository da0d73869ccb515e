//! Runs of probes from which nothing more is expected, and the few bytes that an engine keeps of each.
//!
//! A run that has ended, or has been silent for long, is *retired*: its accounting by probe leaves the readers and the record
//! of commits, and is kept here, packed. When a message of it comes after all, a replay under the same `--id` for example,
//! the run is *revived*: its accounting is unpacked as it was. Retiring loses nothing, so it changes no answer, and it does
//! not matter when it happens or whether a restart repeats it.
//!
//! Retired runs are kept for as long as the engine has its records, because a replay may come at any time.

use super::books::{RunBooks, Seen};
use crate::fingerprint::fingerprint;
use crate::ledger::{Counts, InputReport, Losses};
use crate::wire::v1::Accounts;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

/// Probes that retired runs are summed up for by name; those of all others are summed up together.
const MAX_NAMES: usize = 256;
/// The name of all others in the ledger.
pub const OTHERS: &str = "other probes";
/// More partitions than any configuration has.
const MAX_PARTITIONS: u64 = 1 << 16;

/// The accounting of a run by partition.
pub type Parts = BTreeMap<u32, RunBooks>;

/// Names a run: its number, and the fingerprint of its probe's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct RunId {
    run: u64,
    name: u64,
}

impl RunId {
    fn of(name: &str, run: u64) -> Self {
        Self { run, name: fingerprint(name.as_bytes()) }
    }
}

/// The accounting of retired runs, packed.
#[derive(Clone, Debug, Default)]
pub struct RetiredRuns {
    runs: HashMap<RunId, Box<[u8]>>,
    /// Bytes of all records, as [`RetiredRuns::write`] writes them.
    size: u64,
    newest: u64,
}

impl RetiredRuns {
    /// Whether a run is retired.
    pub fn contains(&self, name: &str, run: u64) -> bool {
        self.runs.contains_key(&RunId::of(name, run))
    }

    /// The accounting of a run by partition; `None` where it is not retired.
    pub fn get(&self, name: &str, run: u64) -> Option<Parts> {
        unpack(self.runs.get(&RunId::of(name, run))?, name, run)
    }

    /// The same, and removes it from here.
    pub fn take(&mut self, name: &str, run: u64) -> Option<Parts> {
        let parts = self.get(name, run)?;
        let packed = self.runs.remove(&RunId::of(name, run))?;
        self.size -= record_size(&packed);
        Some(parts)
    }

    /// Keeps the accounting of a run, in place of what was kept of it before; gives its record.
    pub fn insert(&mut self, name: &str, run: u64, parts: &Parts) -> Vec<u8> {
        let (id, packed) = (RunId::of(name, run), pack(parts));
        let mut record = Vec::new();
        write_record(&mut record, id, &packed);
        self.newest = parts.values().map(|books| books.newest).fold(self.newest, u64::max);
        self.keep(id, packed);
        record
    }

    fn keep(&mut self, id: RunId, packed: Box<[u8]>) {
        self.size += record_size(&packed);
        let before = self.runs.insert(id, packed);
        self.size -= before.map_or(0, |packed| record_size(&packed));
    }

    /// The latest time of a packet of any of them, nanoseconds since the Unix epoch; 0 without any.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Bytes that [`RetiredRuns::write`] writes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A record of each run.
    pub fn write(&self) -> Vec<u8> {
        let mut runs: Vec<_> = self.runs.iter().collect();
        runs.sort_unstable();
        let mut bytes = Vec::new();
        runs.into_iter().for_each(|(id, packed)| write_record(&mut bytes, *id, packed));
        bytes
    }

    /// Reads records; of a run that has several, the last counts. Partitions are given the numbers that `number` gives them;
    /// those that it gives none are left out. The error is the offset of a record that cannot be read.
    pub fn read(bytes: &[u8], number: impl Fn(u32) -> Option<u32>) -> Result<Self, usize> {
        let (mut retired, mut rest) = (Self::default(), Unpacker(bytes));
        while !rest.0.is_empty() {
            let offset = bytes.len() - rest.0.len();
            let (id, parts) = read_record(&mut rest).ok_or(offset)?;
            let own = parts.into_iter().filter_map(|(partition, books)| Some((number(partition)?, books)));
            let own: Parts = own.collect();
            retired.newest = own.values().map(|books| books.newest).fold(retired.newest, u64::max);
            if !own.is_empty() {
                retired.keep(id, pack(&own));
            }
        }
        Ok(retired)
    }
}

/// Bytes of a record: the run, the fingerprint of the name, the length of what follows (4 bytes), and what is packed.
fn record_size(packed: &[u8]) -> u64 {
    20 + packed.len() as u64
}

fn write_record(bytes: &mut Vec<u8>, id: RunId, packed: &[u8]) {
    bytes.extend_from_slice(&id.run.to_le_bytes());
    bytes.extend_from_slice(&id.name.to_le_bytes());
    bytes.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    bytes.extend_from_slice(packed);
}

fn read_record(rest: &mut Unpacker<'_>) -> Option<(RunId, Parts)> {
    let run = u64::from_le_bytes(*rest.chunk()?);
    let name = u64::from_le_bytes(*rest.chunk()?);
    let length = u32::from_le_bytes(*rest.chunk()?) as usize;
    let (packed, after) = rest.0.split_at_checked(length)?;
    rest.0 = after;
    Some((RunId { run, name }, unpack(packed, "", run)?))
}

/// What differs from the part before it, as bits of a byte.
const WATERMARK: u8 = 1;
const NEWEST: u8 = 1 << 1;
const ENDED: u8 = 1 << 2;
const SEEN: u8 = 1 << 3;
const TAKEN: u8 = 1 << 4;
const REPEATED: u8 = 1 << 5;
const ELSEWHERE: u8 = 1 << 6;
const ACCOUNTS: u8 = 1 << 7;

/// Packs the accounting of a run of batches. Partitions in a row that hold the same are one entry: the first of them, how
/// many they are, and what differs from the entry before. Most partitions of a short run have got none of its packets.
fn pack(parts: &Parts) -> Box<[u8]> {
    let mut packer = Packer(Vec::new());
    let mut before = &RunBooks::default();
    let mut rest = parts.iter().peekable();
    while let Some((first, books)) = rest.next() {
        let mut count = 1;
        while rest.next_if(|(number, next)| **number == first + count && *next == books).is_some() {
            count += 1;
        }
        packer.number(u64::from(*first));
        packer.number(u64::from(count));
        packer.part(before, books);
        before = books;
    }
    packer.0.into()
}

fn unpack(bytes: &[u8], name: &str, run: u64) -> Option<Parts> {
    let (mut rest, mut parts) = (Unpacker(bytes), Parts::new());
    let mut books = RunBooks { name: name.to_owned(), run, ..RunBooks::default() };
    while !rest.0.is_empty() {
        let (first, count) = (rest.number()?, rest.number()?);
        let end = first.checked_add(count).filter(|end| *end <= MAX_PARTITIONS)?;
        rest.part(&mut books)?;
        parts.extend((first..end).map(|number| (number as u32, books.clone())));
    }
    Some(parts)
}

struct Packer(Vec<u8>);

impl Packer {
    /// Seven bits a byte, the lowest first; the highest bit says that more follow.
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// A number that is near zero on either side, in two's complement.
    fn difference(&mut self, number: u64) {
        self.number((number << 1) ^ ((number as i64 >> 63) as u64));
    }

    fn part(&mut self, before: &RunBooks, books: &RunBooks) {
        let ahead = |books: &RunBooks| books.newest.wrapping_sub(books.watermark);
        let differs = [
            (WATERMARK, books.watermark != before.watermark),
            (NEWEST, ahead(books) != ahead(before)),
            (ENDED, books.ended != before.ended),
            (SEEN, books.seen != before.seen),
            (TAKEN, books.taken != before.taken),
            (REPEATED, books.repeated != before.repeated),
            (ELSEWHERE, books.elsewhere != before.elsewhere),
            (ACCOUNTS, books.accounts != before.accounts),
        ];
        let bits = differs.iter().filter(|(_, differs)| *differs).fold(0, |bits, (bit, _)| bits | bit);
        self.0.push(bits);
        for bit in differs.iter().filter(|(_, differs)| *differs).map(|(bit, _)| *bit) {
            match bit {
                WATERMARK => self.number(books.watermark),
                NEWEST => self.difference(ahead(books)),
                SEEN => self.seen(&books.seen),
                TAKEN => self.number(books.taken),
                REPEATED => self.number(books.repeated),
                ELSEWHERE => self.number(books.elsewhere),
                ACCOUNTS => self.accounts(books.accounts.as_ref()),
                _ => {}
            }
        }
    }

    fn seen(&mut self, seen: &Seen) {
        self.number(seen.ranges.len() as u64);
        let mut at = 0;
        for (start, end) in &seen.ranges {
            self.number(start - at);
            self.number(end - start);
            at = *end;
        }
    }

    fn accounts(&mut self, accounts: Option<&(Accounts, Accounts)>) {
        match accounts {
            None => self.0.push(0),
            Some((baseline, latest)) if *baseline == Accounts::default() => {
                self.0.push(1);
                numbers_of(latest).into_iter().for_each(|number| self.number(number));
            }
            Some((baseline, latest)) => {
                self.0.push(2);
                let both = [numbers_of(baseline), numbers_of(latest)];
                both.into_iter().flatten().for_each(|number| self.number(number));
            }
        }
    }
}

fn numbers_of(accounts: &Accounts) -> [u64; 9] {
    let Accounts { filtered, non_ip, malformed, uncounted_bytes, sent, dropped, .. } = *accounts;
    let Accounts { kernel_dropped: kernel, interface_dropped: interface, reconnects, .. } = *accounts;
    [filtered, non_ip, malformed, uncounted_bytes, sent, dropped, kernel, interface, reconnects]
}

/// What is left to unpack; every method gives `None` where the bytes are none that were packed here.
struct Unpacker<'a>(&'a [u8]);

impl<'a> Unpacker<'a> {
    fn chunk<const LENGTH: usize>(&mut self) -> Option<&'a [u8; LENGTH]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(chunk)
    }

    fn byte(&mut self) -> Option<u8> {
        self.chunk::<1>().map(|[byte]| *byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn difference(&mut self) -> Option<u64> {
        self.number().map(|number| (number >> 1) ^ (number & 1).wrapping_neg())
    }

    /// Changes the part before into the next one.
    fn part(&mut self, books: &mut RunBooks) -> Option<()> {
        let bits = self.byte()?;
        let mut ahead = books.newest.wrapping_sub(books.watermark);
        if bits & WATERMARK != 0 {
            books.watermark = self.number()?;
        }
        if bits & NEWEST != 0 {
            ahead = self.difference()?;
        }
        books.newest = books.watermark.wrapping_add(ahead);
        books.ended ^= bits & ENDED != 0;
        if bits & SEEN != 0 {
            books.seen = self.seen()?;
        }
        for (bit, count) in
            [(TAKEN, &mut books.taken), (REPEATED, &mut books.repeated), (ELSEWHERE, &mut books.elsewhere)]
        {
            if bits & bit != 0 {
                *count = self.number()?;
            }
        }
        if bits & ACCOUNTS != 0 {
            books.accounts = match self.byte()? {
                0 => None,
                1 => Some((Accounts::default(), self.accounts()?)),
                _ => Some((self.accounts()?, self.accounts()?)),
            };
        }
        Some(())
    }

    fn seen(&mut self) -> Option<Seen> {
        let (count, mut at, mut seen) = (self.number()?, 0u64, Seen::default());
        for _ in 0..count {
            let start = at.checked_add(self.number()?)?;
            at = start.checked_add(self.number()?)?;
            seen.ranges.insert(start, at);
        }
        Some(seen)
    }

    fn accounts(&mut self) -> Option<Accounts> {
        Some(Accounts {
            filtered: self.number()?,
            non_ip: self.number()?,
            malformed: self.number()?,
            uncounted_bytes: self.number()?,
            sent: self.number()?,
            dropped: self.number()?,
            kernel_dropped: self.number()?,
            interface_dropped: self.number()?,
            reconnects: self.number()?,
        })
    }
}

/// What became of the packets of retired runs, summed up by the name of their probe: so the ledger has a line a probe for
/// them, and its counts are those that a line a run would have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetiredAccounts(BTreeMap<String, RetiredAccount>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct RetiredAccount {
    runs: u64,
    packets: u64,
    repeated: u64,
    before: Counts,
    losses: Losses,
    /// What the workers have decoded.
    counts: Counts,
}

impl RetiredAccount {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds or subtracts a report, count by count.
    fn change(&mut self, report: &InputReport, of: fn(u64, u64) -> u64) {
        let Counts { read, filtered, non_ip, malformed, bytes_read, .. } = report.before;
        let Losses { interface, kernel, probe, bus } = report.losses.unwrap_or_default();
        for (sum, more) in [
            (&mut self.runs, 1),
            (&mut self.packets, report.packets),
            (&mut self.repeated, report.repeated),
            (&mut self.before.read, read),
            (&mut self.before.filtered, filtered),
            (&mut self.before.non_ip, non_ip),
            (&mut self.before.malformed, malformed),
            (&mut self.before.bytes_read, bytes_read),
            (&mut self.losses.interface, interface),
            (&mut self.losses.kernel, kernel),
            (&mut self.losses.probe, probe),
            (&mut self.losses.bus, bus),
        ] {
            *sum = of(*sum, more);
        }
    }
}

impl RetiredAccounts {
    /// The sum that a probe's runs belong to. Names are never removed, so it is always the same one.
    fn of(&mut self, name: &str) -> &mut RetiredAccount {
        let name = if self.0.len() < MAX_NAMES || self.0.contains_key(name) { name } else { OTHERS };
        self.0.entry(name.to_owned()).or_default()
    }

    /// A run is retired.
    pub fn add(&mut self, books: &RunBooks) {
        self.of(&books.name).change(&books.report(), u64::saturating_add);
    }

    /// A run is retired no more.
    pub fn subtract(&mut self, books: &RunBooks) {
        self.of(&books.name).change(&books.report(), u64::saturating_sub);
    }

    /// Adds what the workers have decoded of a retired run.
    pub fn count(&mut self, name: &str, counts: Counts) {
        self.of(name).counts += counts;
    }

    /// Adds the sums of another list.
    pub fn merge(&mut self, other: Self) {
        for (name, more) in other.0 {
            let sum = self.of(&name);
            let RetiredAccount { runs, packets, repeated, before, losses, counts } = more;
            let Losses { interface, kernel, probe, bus } = losses;
            sum.runs += runs;
            sum.packets += packets;
            sum.repeated += repeated;
            sum.before += before;
            sum.losses.interface += interface;
            sum.losses.kernel += kernel;
            sum.losses.probe += probe;
            sum.losses.bus += bus;
            sum.counts += counts;
        }
    }

    /// Packets that were lost between the probes and the engine.
    pub fn lost_on_bus(&self) -> u64 {
        self.0.values().map(|sum| sum.losses.bus).sum()
    }

    /// For the ledger: a line a probe.
    pub fn inputs(&self) -> impl Iterator<Item = (InputReport, Counts)> {
        self.0.iter().filter(|(_, sum)| !sum.is_empty()).map(|(name, sum)| {
            let report = InputReport {
                name: name.clone(),
                format: "nats-batch".into(),
                packets: sum.packets,
                before: sum.before,
                losses: Some(sum.losses),
                repeated: sum.repeated,
                runs: Some(sum.runs),
                ..InputReport::default()
            };
            (report, sum.counts)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accounts(sent: u64, filtered: u64) -> Accounts {
        Accounts { sent, filtered, reconnects: sent % 3, ..Accounts::default() }
    }

    /// The books of a part, of which these ranges have been seen.
    fn part(watermark: u64, newest: u64, ranges: &[(u64, u64)], sent: u64) -> RunBooks {
        let mut books = RunBooks { name: "probe".into(), run: 7, watermark, newest, ..RunBooks::default() };
        ranges.iter().for_each(|(start, length)| drop(books.seen.add(*start, start + length)));
        books.taken = books.seen.ranges.iter().map(|(start, end)| end - start).sum();
        books.accounts = (sent > 0).then(|| (accounts(sent / 4, 0), accounts(sent, 2)));
        books.ended = sent % 2 == 1;
        (books.repeated, books.elsewhere) = (sent / 2, sent / 3);
        books
    }

    #[test]
    fn a_short_run_over_all_partitions_takes_few_bytes() {
        let time = 1_790_000_000_000_000_000;
        let mut parts: Parts = (0..16).map(|number| (number, part(time, time, &[], 41))).collect();
        parts.values_mut().for_each(|books| books.accounts = Some((Accounts::default(), accounts(41, 2))));
        parts.insert(5, RunBooks { taken: 41, seen: part(0, 0, &[(0, 41)], 0).seen, ..parts[&5].clone() });
        let mut retired = RetiredRuns::default();
        let record = retired.insert("probe", 7, &parts);
        assert!(record.len() < 80, "{}", record.len());
        assert_eq!(retired.get("probe", 7), Some(parts));
        assert_eq!((retired.get("probe", 8), retired.get("another", 7)), (None, None));
    }

    #[test]
    fn the_last_record_of_a_run_counts_and_damage_is_told_with_its_offset() {
        let mut retired = RetiredRuns::default();
        let parts = |watermark| Parts::from([(3, part(watermark, 9, &[(0, 5)], 5)), (4, part(1, 2, &[], 0))]);
        let first = retired.insert("probe", 7, &parts(10));
        let second = retired.insert("another", 7, &parts(11));
        let last = retired.insert("probe", 7, &parts(12));
        let bytes = [&first[..], &second, &last].concat();
        let read = RetiredRuns::read(&bytes, Some).expect("read");
        assert_eq!(read.get("probe", 7), Some(parts(12)));
        assert_eq!((read.size(), read.newest()), ((second.len() + last.len()) as u64, 9));
        assert_eq!(read.write().len() as u64, read.size());
        assert_eq!(RetiredRuns::read(&read.write(), Some).expect("read").write(), read.write());
        let own = RetiredRuns::read(&bytes, |number| (number == 3).then_some(0)).expect("read");
        assert_eq!(own.get("probe", 7), Some(Parts::from([(0, parts(12)[&3].clone())])));
        let cut = RetiredRuns::read(&bytes[..bytes.len() - 1], Some).expect_err("it is cut off");
        assert_eq!(cut, first.len() + second.len());
    }

    #[test]
    fn sums_of_many_names_are_bounded_and_exact() {
        let mut sums = RetiredAccounts::default();
        let books =
            |number: u64| RunBooks { name: format!("probe {number}"), taken: 3, ..part(1, 1, &[], 0) };
        (0..2 * MAX_NAMES as u64).for_each(|number| sums.add(&books(number)));
        sums.subtract(&books(1));
        sums.subtract(&books(2 * MAX_NAMES as u64 - 1));
        let inputs: Vec<_> = sums.inputs().collect();
        assert_eq!(inputs.len(), MAX_NAMES, "one of them is empty, and one is of all others");
        let packets: u64 = inputs.iter().map(|(report, _)| report.packets).sum();
        let runs: u64 = inputs.iter().filter_map(|(report, _)| report.runs).sum();
        assert_eq!((packets, runs), (3 * 2 * (MAX_NAMES as u64 - 1), 2 * (MAX_NAMES as u64 - 1)));
    }

    proptest! {
        #[test]
        fn what_is_unpacked_is_what_was_packed(
            parts in proptest::collection::btree_map(
                0u32..20,
                (any::<u64>(), any::<u64>(), proptest::collection::vec((0u64..1 << 40, 1u64..1000), 0..5), 0u64..9),
                0..8,
            ),
        ) {
            let parts: Parts = parts.into_iter().map(|(number, (watermark, newest, ranges, sent))| (number, part(watermark, newest, &ranges, sent))).collect();
            prop_assert_eq!(unpack(&pack(&parts), "probe", 7), Some(parts));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RetiredRuns::read(&bytes, Some);
            let _ = unpack(&bytes, "probe", 7);
        }
    }
}
