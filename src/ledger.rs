//! The run's books: every frame that was read is in exactly one account.

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// Packets and bytes by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
        let add = |account: &mut u64, more: u64| *account = account.saturating_add(more);
        add(&mut self.read, more.read);
        add(&mut self.counted, more.counted);
        add(&mut self.filtered, more.filtered);
        add(&mut self.non_ip, more.non_ip);
        add(&mut self.malformed, more.malformed);
        add(&mut self.late, more.late);
        add(&mut self.bytes_read, more.bytes_read);
        add(&mut self.bytes_counted, more.bytes_counted);
    }
}

/// An input and what became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct InputReport {
    /// The input as the user named it, or as it names itself.
    pub name: String,
    /// Container and compression, such as `pcap` or `pcapng+gzip`; `nats-batch`, `nats-single`, `live`.
    pub format: String,
    /// Frames found, by whoever finds them: held against what the workers decode.
    pub packets: u64,
    /// Accounts that were kept before the packets came here: what a probe did not send on, and why.
    pub before: Counts,
    /// What is known never to have arrived; `None` for a file that speaks of no drops.
    pub losses: Option<Losses>,
    /// Packets that came more than once and were counted once.
    pub repeated: u64,
    /// Frames whose times lie outside of 1970 to 2554 and were put at its ends.
    pub clamped: u64,
    /// Where it is damaged or cut off and how; everything before that is counted.
    pub damage: Option<String>,
    /// Its records whose lengths contradict each other; they are malformed, and what follows them is counted.
    #[serde(default)]
    pub contradictory: Option<String>,
    /// What else people should know of it.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How many earlier runs of a probe it sums up; `None` for a single input.
    #[serde(default)]
    pub runs: Option<u64>,
}

impl InputReport {
    /// Adds the report of another process that has read other frames of the same input.
    pub fn merge(&mut self, other: Self) {
        self.packets += other.packets;
        self.clamped = self.clamped.max(other.clamped);
        self.damage = self.damage.take().or(other.damage);
        self.contradictory = self.contradictory.take().or(other.contradictory);
        self.losses = self.losses.or(other.losses);
        if self.notes.is_empty() {
            self.notes = other.notes;
        }
    }
}

/// Packets that are known never to have arrived, by where they were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// By the interface: it had no room for them.
    pub interface: u64,
    /// By the kernel: the capture did not keep up.
    pub kernel: u64,
    /// By the probe: the bus did not keep up or was away.
    pub probe: u64,
    /// Between probe and engine: gaps in the bus, or the engine did not keep up.
    pub bus: u64,
}

impl AddAssign for Losses {
    fn add_assign(&mut self, more: Self) {
        let Self { interface, kernel, probe, bus } = more;
        self.interface = self.interface.saturating_add(interface);
        self.kernel = self.kernel.saturating_add(kernel);
        self.probe = self.probe.saturating_add(probe);
        self.bus = self.bus.saturating_add(bus);
    }
}

impl Losses {
    /// All of them, and where they were lost, for people; `None` where nothing was.
    pub fn places(self) -> Option<String> {
        let Self { interface, kernel, probe, bus } = self;
        let places = [
            (kernel, "by the kernel"),
            (interface, "by the interface"),
            (probe, "by the probe"),
            (bus, "on the bus"),
        ];
        let places: Vec<String> = places
            .into_iter()
            .filter(|(packets, _)| *packets > 0)
            .map(|(packets, place)| format!("{packets} {place}"))
            .collect();
        let packets = if self.total() == 1 {
            "1 packet was lost".into()
        } else {
            format!("{} packets were lost", self.total())
        };
        (!places.is_empty()).then(|| format!("{packets}: {}", places.join(", ")))
    }

    /// All of them.
    pub fn total(self) -> u64 {
        let Self { interface, kernel, probe, bus } = self;
        interface + kernel + probe + bus
    }

    /// Those that a capture file speaks of, for people.
    pub fn of_a_capture(self) -> String {
        let Self { interface, kernel, .. } = self;
        let packets = if self.total() == 1 { "1 packet".into() } else { format!("{} packets", self.total()) };
        format!(
            "the file reports {packets} dropped during capture ({kernel} by the kernel, {interface} by the interface); counted as lost"
        )
    }
}

/// Whether inputs of this format go on, so that what was counted of them cannot be counted again: all but capture files.
pub(crate) fn is_live(format: &str) -> bool {
    !format.is_empty() && !format.contains("pcap")
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
    counted: u64,
    filtered: u64,
    non_ip: u64,
    malformed: u64,
    late: u64,
    lost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    losses: Option<Losses>,
    damage: Option<String>,
    /// How many earlier runs of a probe this line sums up.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<u64>,
}

impl Ledger {
    /// The books of a run over these inputs, each with the workers' accounts of it, that wrote so many windows.
    pub fn new(inputs: &[(InputReport, Counts)], windows: u64, interrupted: bool) -> Self {
        let mut total = Counts::default();
        let mut lost = 0;
        let input = |(report, decoded): &(InputReport, Counts)| {
            let InputReport { name, format, packets, before, losses, damage, contradictory, runs, .. } =
                report.clone();
            let damage = match (contradictory, damage) {
                (Some(first), Some(second)) => Some(format!("{first}; {second}")),
                (first, second) => first.or(second),
            };
            let mut counts = before;
            counts += *decoded;
            total += counts;
            let lost_here = losses.unwrap_or_default().total();
            lost = u64::saturating_add(lost, lost_here);
            let Counts { counted, filtered, non_ip, malformed, late, .. } = counts;
            let packets = packets + before.read;
            Input {
                name,
                format,
                packets,
                counted,
                filtered,
                non_ip,
                malformed,
                late,
                lost: lost_here,
                losses,
                damage,
                runs,
            }
        };
        let inputs = inputs.iter().map(input).collect();
        let Counts { read, counted, filtered, non_ip, malformed, late, bytes_read, bytes_counted } = total;
        Self {
            packets: Packets { read, counted, filtered, non_ip, malformed, late, lost },
            bytes: Bytes { read: bytes_read, counted: bytes_counted },
            inputs,
            windows,
            interrupted,
        }
    }

    /// The run's accounts in a few words.
    pub fn summary(&self) -> String {
        let Packets { read, counted, filtered, non_ip, malformed, late, lost } = self.packets;
        format!(
            "read {read} = counted {counted} + filtered {filtered} + non_ip {non_ip} + malformed {malformed}; late {late}, lost {lost}"
        )
    }

    /// Whether an input was a link, so that what was counted of it cannot be counted again.
    pub fn is_of_link(&self) -> bool {
        self.inputs.iter().any(|input| is_live(&input.format))
    }

    /// Whether all of so many windows are of this run, and there is nothing in them.
    pub fn has_only_empty(&self, windows: u64) -> bool {
        self.packets.read == 0 && windows <= self.windows
    }

    /// Whether nothing was read of inputs that hold more, or may: they are damaged, or a signal has ended the run.
    pub fn is_of_nothing(&self) -> bool {
        let is_short = self.interrupted || self.inputs.iter().any(|input| input.damage.is_some());
        self.packets.read == 0 && is_short
    }

    /// The names of all inputs.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| &*input.name)
    }

    /// Whether a signal ended the run before its inputs did.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Packets that are known never to have arrived.
    pub fn lost(&self) -> u64 {
        self.packets.lost
    }

    /// The accounts of all inputs.
    pub fn counts(&self) -> Counts {
        let Packets { read, counted, filtered, non_ip, malformed, late, .. } = self.packets;
        let Bytes { read: bytes_read, counted: bytes_counted } = self.bytes;
        Counts { read, counted, filtered, non_ip, malformed, late, bytes_read, bytes_counted }
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
        let none = InputReport::default();
        let ledger = |counts: Counts, found: &InputReport| Ledger::new(&[(found.clone(), counts)], 1, false);
        assert!(ledger(counts, &found).balance(Some(6)).is_ok());
        assert!(ledger(counts, &found).balance(Some(5)).is_err());
        assert!(ledger(counts, &none).balance(Some(6)).is_err());
        assert!(ledger(Counts { malformed: 0, ..counts }, &found).balance(None).is_err());
    }

    #[test]
    fn what_a_probe_kept_back_is_in_the_books_too() {
        let before = Counts { read: 5, filtered: 3, non_ip: 2, bytes_read: 500, ..Counts::default() };
        let losses = Some(Losses { kernel: 1, bus: 2, ..Losses::default() });
        let report = InputReport { packets: 4, before, losses, ..InputReport::default() };
        let counts = Counts { read: 4, counted: 4, bytes_read: 60, bytes_counted: 60, ..Counts::default() };
        let ledger = Ledger::new(&[(report, counts)], 1, false);
        ledger.balance(Some(4)).expect("balanced books");
        let Packets { read, filtered, lost, .. } = ledger.packets;
        assert_eq!((read, filtered, lost, ledger.bytes.read), (9, 3, 3, 560));
    }
}
