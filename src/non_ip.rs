//! Tells what frames without an IP header are, and what a filter has missed behind tags and labels.

use crate::account::{NonIp, Noticed};
use crate::capture::filter::described;
use crate::decode::LinkType;
use crate::decode::link::NotIp;
use crate::ledger::Counts;
use serde_json::{Value, json};
use std::fmt;

/// Kinds of frames that are told one by one.
const MOST_KINDS: usize = 8;

/// A part of an input's frames is told when it is more than one in so many.
const WORTH_TELLING: u64 = 100;

fn is_worth_telling(frames: u64, of: u64) -> bool {
    frames.saturating_mul(WORTH_TELLING) > of
}

fn plural(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The frames of an input that are not IP, where they are more than 1 % of it.
pub struct Share<'a> {
    name: &'a str,
    counts: Counts,
    /// Most frequent first.
    kinds: Vec<NonIp>,
}

impl<'a> Share<'a> {
    /// That of an input; `None` where there is little to tell.
    pub fn of(name: &'a str, counts: Counts, noticed: &Noticed) -> Option<Self> {
        let mut kinds = noticed.non_ip.clone();
        kinds.sort_by_key(|kind| (std::cmp::Reverse(kind.frames), kind.link, kind.what));
        is_worth_telling(counts.non_ip, counts.read).then_some(Self { name, counts, kinds })
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let kind = |kind: &NonIp| {
            let mut object = json!({
                "link_type": kind.link,
                "link": described(LinkType(kind.link)),
                "what": kind.what.to_string(),
                "frames": kind.frames,
            });
            if let NotIp::EtherType(number) = kind.what {
                object["ether_type"] = json!(format!("{number:#06x}"));
            }
            object
        };
        json!({
            "name": self.name,
            "read": self.counts.read,
            "non_ip": self.counts.non_ip,
            "kinds": self.kinds.iter().map(kind).collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Share<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, counts: Counts { read, non_ip, .. }, kinds } = self;
        write!(out, "{name}: {non_ip} of {} not IP", plural(*read, "frame is", "frames are"))?;
        let mut link = None;
        for kind in kinds.iter().take(MOST_KINDS) {
            out.write_str(if link.is_none() { ": " } else { ", " })?;
            if link.replace(kind.link) != Some(kind.link) {
                write!(out, "{}: ", described(LinkType(kind.link)))?;
            }
            write!(out, "{} {}", kind.what, kind.frames)?;
        }
        let others: u64 = kinds.iter().skip(MOST_KINDS).map(|kind| kind.frames).sum();
        if others > 0 { write!(out, ", others {others}") } else { Ok(()) }
    }
}

/// That frames of this input are of a link type that is not decoded.
pub fn undecoded(name: &str, link: LinkType, frames: u64) -> String {
    let (are, count) = if frames == 1 { ("is", "counts") } else { ("are", "count") };
    let (packets, link) = (plural(frames, "packet", "packets"), described(link));
    format!("{name}: {packets} of {link} {are} not decoded and {count} as non_ip")
}

/// What a user has to know of an input for the numbers not to mislead: link types that are not decoded, protocols that
/// may hide IP, and what the filter missed where it passed nothing at all.
pub fn warnings(name: &str, counts: Counts, noticed: &Noticed, filter: Option<&str>) -> Vec<String> {
    let mut warnings = Vec::new();
    for kind in noticed.non_ip.iter().filter(|kind| kind.what == NotIp::LinkType) {
        warnings.push(undecoded(name, LinkType(kind.link), kind.frames));
    }
    let hiding = |kind: &&NonIp| kind.what != NotIp::LinkType && !kind.what.is_plain_control();
    let mut hiding: Vec<NonIp> = noticed.non_ip.iter().filter(hiding).copied().collect();
    let frames = hiding.iter().map(|kind| kind.frames).sum();
    if is_worth_telling(frames, counts.read) {
        hiding.sort_by_key(|kind| std::cmp::Reverse(kind.frames));
        let kinds: Vec<String> = hiding
            .iter()
            .take(MOST_KINDS)
            .map(|kind| format!("{} in {}", kind.what, plural(kind.frames, "frame", "frames")))
            .collect();
        let (of, kinds) = (plural(counts.read, "frame", "frames"), kinds.join(", "));
        warnings.push(format!(
            "{name}: {frames} of {of} may hold IP that is not decoded, and count as non_ip: {kinds}"
        ));
    }
    if counts.counted == 0 {
        warnings.extend(filter_hint(name, noticed, filter));
    }
    warnings
}

/// Where a filter passed no packet behind tags and labels of an input, and such packets are there: the filter that passes
/// them too.
pub fn filter_hint(name: &str, noticed: &Noticed, filter: Option<&str>) -> Option<String> {
    let (filter, mut hidden) = (filter?, noticed.hidden_behind.difference(&noticed.passed_behind).peekable());
    hidden.peek()?;
    let hints: Vec<String> = hidden.map(|headers| format!("({filter}) or ({headers}({filter}))")).collect();
    let hints = hints.join("` or `");
    Some(format!(
        "{name}: the filter `{filter}` does not look behind VLAN tags, MPLS labels or PPPoE headers, and matching packets are there; use `{hints}` to include them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noticed(kinds: &[(u32, NotIp, u64)]) -> Noticed {
        let mut noticed = Noticed::default();
        for &(link, what, frames) in kinds {
            noticed.count(NonIp { link, what, frames });
        }
        noticed
    }

    fn counts(read: u64, non_ip: u64) -> Counts {
        Counts { read, non_ip, ..Counts::default() }
    }

    #[test]
    fn more_than_one_per_cent_is_told_with_its_ether_types_and_less_is_not() {
        let seen = noticed(&[(1, NotIp::EtherType(0x0806), 2), (1, NotIp::Llc(0x42, 0x42), 9)]);
        assert!(Share::of("a.pcap", counts(1100, 11), &seen).is_none());
        let share = Share::of("a.pcap", counts(1099, 11), &seen).expect("more than 1 %");
        let text = "a.pcap: 11 of 1099 frames are not IP: link type 1 (EN10MB): LLC 42/42 (spanning tree) 9, EtherType 0x0806 (ARP) 2";
        assert_eq!(share.to_string(), text);
        assert_eq!(share.json()["kinds"][1]["ether_type"], "0x0806");
    }

    #[test]
    fn what_may_hide_ip_is_a_warning_and_what_never_carries_it_is_none() {
        let control = noticed(&[(1, NotIp::EtherType(0x0806), 90), (1, NotIp::CutOff, 5)]);
        assert_eq!(warnings("a", counts(100, 95), &control, None), Vec::<String>::new());
        let hidden = noticed(&[(1, NotIp::EtherType(0x88e5), 2), (239, NotIp::LinkType, 1)]);
        let told = warnings("a", counts(100, 3), &hidden, None);
        assert_eq!(told[0], "a: 1 packet of link type 239 (NFLOG) is not decoded and counts as non_ip");
        assert!(
            told[1].contains("2 of 100 frames") && told[1].contains("0x88e5 (MACsec) in 2 frames"),
            "{told:?}"
        );
    }
}
