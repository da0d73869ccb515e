//! The run's books: every frame that was read is in exactly one account.

use crate::capture::dealer::InputReport;
use serde::Serialize;
use std::ops::AddAssign;

/// Packets and bytes by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames read.
    pub read: u64,
    /// Packets in the snapshots.
    pub counted: u64,
    /// Frames that the BPF filter took out.
    pub filtered: u64,
    /// Frames without an IP header.
    pub non_ip: u64,
    /// Frames whose IP header is broken or cut off.
    pub malformed: u64,
    /// How many of the counted came after their window had closed.
    pub late: u64,
    /// Length on the wire of all frames read.
    pub bytes_read: u64,
    /// Length on the wire of all packets counted.
    pub bytes_counted: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.read += more.read;
        self.counted += more.counted;
        self.filtered += more.filtered;
        self.non_ip += more.non_ip;
        self.malformed += more.malformed;
        self.late += more.late;
        self.bytes_read += more.bytes_read;
        self.bytes_counted += more.bytes_counted;
    }
}

/// The books do not balance: a fault of this program, never of its input.
#[derive(Debug, thiserror::Error)]
#[error("the books do not balance: {0}; the snapshots cannot be trusted, please report this")]
pub struct Unbalanced(String);

/// `ledger.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Ledger {
    packets: Packets,
    bytes: Bytes,
    inputs: Vec<Input>,
    windows: u64,
    /// Whether a signal ended the inputs before their end.
    interrupted: bool,
}

#[derive(Clone, Debug, Serialize)]
struct Packets {
    read: u64,
    counted: u64,
    filtered: u64,
    non_ip: u64,
    malformed: u64,
    late: u64,
    lost: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Bytes {
    read: u64,
    counted: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Input {
    name: String,
    format: String,
    packets: u64,
    damage: Option<String>,
}

impl Ledger {
    /// The books of a run over these inputs that wrote so many windows.
    pub fn new(counts: Counts, inputs: &[InputReport], windows: u64, interrupted: bool) -> Self {
        let Counts { read, counted, filtered, non_ip, malformed, late, bytes_read, bytes_counted } = counts;
        let input = |report: &InputReport| {
            let InputReport { name, format, packets, damage, .. } = report.clone();
            Input { name, format, packets, damage }
        };
        Self {
            packets: Packets { read, counted, filtered, non_ip, malformed, late, lost: 0 },
            bytes: Bytes { read: bytes_read, counted: bytes_counted },
            inputs: inputs.iter().map(input).collect(),
            windows,
            interrupted,
        }
    }

    /// Holds the accounts against each other, against the frames that were found in the inputs, and against the
    /// packets that the snapshots hold, where a task counts them all (`None` where none does).
    pub fn balance(&self, in_snapshots: Option<u64>) -> Result<(), Unbalanced> {
        let Packets { read, counted, filtered, non_ip, malformed, .. } = self.packets;
        let accounts = counted + filtered + non_ip + malformed;
        if read != accounts {
            return Err(Unbalanced(format!("{read} packets read, {accounts} accounted for")));
        }
        let found: u64 = self.inputs.iter().map(|input| input.packets).sum();
        if read != found {
            return Err(Unbalanced(format!("{found} packets found in the inputs, {read} decoded")));
        }
        match in_snapshots {
            Some(held) if held != counted => {
                Err(Unbalanced(format!("{counted} packets counted, {held} in the snapshots")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_in_no_account_is_noticed() {
        let found = InputReport { packets: 10, ..InputReport::default() };
        let counts =
            Counts { read: 10, counted: 6, filtered: 1, non_ip: 2, malformed: 1, ..Counts::default() };
        assert!(Ledger::new(counts, std::slice::from_ref(&found), 1, false).balance(Some(6)).is_ok());
        assert!(Ledger::new(counts, std::slice::from_ref(&found), 1, false).balance(Some(5)).is_err());
        assert!(Ledger::new(counts, &[], 1, false).balance(None).is_err());
        assert!(Ledger::new(Counts { malformed: 0, ..counts }, &[found], 1, false).balance(None).is_err());
    }
}
