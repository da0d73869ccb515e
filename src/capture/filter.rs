//! BPF filters over captured frames, compiled and run by libpcap.
//!
//! libpcap compiles for the capture that a filter is given to: on a savefile of this link type and byte order it uses
//! the numbers of that file and refuses what only a live capture knows; on a handle without a file it would use those of
//! this host. Whether a frame's link type is decoded at all is decided before its filter.
//!
//! The one `unsafe` of this crate: the `pcap` crate's own filter call takes a frame's captured bytes for all of it, so
//! `greater 1000` would be wrong on every capture with a snap length; `bpf_filter` is told both lengths. And a file
//! descriptor has to be handed over, so that no name of a file is needed.
#![allow(unsafe_code)]

use super::pcap::file_header_in;
use super::{Frame, MOST_LIMIT};
use crate::decode::LinkType;
use pcap::{BpfInstruction, BpfProgram, Capture, Offline};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::write;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::IntoRawFd;

/// libpcap refuses the expression.
#[derive(Debug, thiserror::Error)]
#[error("filter `{expression}` cannot be used on packets of {}: {why}", described(*link))]
pub struct FilterError {
    expression: String,
    link: LinkType,
    why: String,
}

/// A header that pcap-filter(7) steps over when it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Header {
    Vlan,
    Mpls,
    Pppoe,
}

/// The headers before a frame's IP header, as pcap-filter(7) names them, from the outermost; at most four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Headers([Option<Header>; 4]);

impl Headers {
    /// Those of a frame, where it has any.
    #[inline]
    pub fn of(link: LinkType, frame: &[u8]) -> Option<Self> {
        let ether_type = *frame.get(12..)?.first_chunk::<2>()?;
        let has_any =
            matches!(u16::from_be_bytes(ether_type), 0x8100 | 0x88a8 | 0x9100 | 0x8847 | 0x8848 | 0x8864);
        (has_any && link == LinkType::ETHERNET).then(|| Self::read(ether_type, &frame[14..]))
    }

    fn read(mut ether_type: [u8; 2], mut bytes: &[u8]) -> Self {
        let mut headers = [None; 4];
        let mut in_labels = false;
        for header in &mut headers {
            let (kind, length) = match u16::from_be_bytes(ether_type) {
                0x8100 | 0x88a8 | 0x9100 => (Header::Vlan, 4),
                0x8847 | 0x8848 => (Header::Mpls, 4),
                0x8864 => (Header::Pppoe, 8),
                _ => break,
            };
            let Some(tag) = bytes.get(..length) else { break };
            *header = Some(kind);
            in_labels |= kind == Header::Mpls;
            if kind == Header::Vlan {
                ether_type = [tag[2], tag[3]];
            } else if !in_labels || tag[2] & 1 == 1 {
                break;
            }
            bytes = &bytes[length..];
        }
        Self(headers)
    }
}

impl fmt::Display for Headers {
    /// The words before an expression that looks behind these headers: `vlan and mpls and `.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().flatten().try_for_each(|header| {
            out.write_str(match header {
                Header::Vlan => "vlan and ",
                Header::Mpls => "mpls and ",
                Header::Pppoe => "pppoes and ",
            })
        })
    }
}

/// A filter expression and its programs.
pub struct Filter {
    expression: String,
    /// By link type and byte order; `None` where no packet can pass.
    programs: BTreeMap<(LinkType, bool), Option<BpfProgram>>,
    /// What looks behind headers, where the expression does not.
    behind: BTreeMap<Headers, Option<BpfProgram>>,
    /// Whether the expression has words of its own for headers.
    names_headers: bool,
}

unsafe extern "C" {
    fn bpf_filter(program: *const BpfInstruction, packet: *const u8, wire: u32, captured: u32) -> u32;
}

impl Filter {
    /// A filter in libpcap's language (pcap-filter(7)); nothing is compiled yet.
    pub fn new(expression: &str) -> Self {
        let names_headers = ["vlan", "mpls", "pppoe"].iter().any(|word| expression.contains(word));
        Self {
            expression: expression.to_owned(),
            programs: BTreeMap::new(),
            behind: BTreeMap::new(),
            names_headers,
        }
    }

    /// Compiles the expression for a link type, so that mistakes show before anything is read. What is not decoded is not
    /// filtered either; for such a link type it is enough that the expression is one.
    pub fn check(&mut self, link: LinkType) -> Result<(), FilterError> {
        if link.is_known() {
            return self.compile(link, false);
        }
        let own = compiled(&self.expression, link, false);
        own.or_else(|_| compiled(&self.expression, LinkType::ETHERNET, false))
            .map(drop)
            .map_err(|why| self.refused(link, why))
    }

    fn refused(&self, link: LinkType, why: String) -> FilterError {
        FilterError { expression: self.expression.clone(), link, why }
    }

    fn compile(&mut self, link: LinkType, big_endian: bool) -> Result<(), FilterError> {
        if self.programs.contains_key(&(link, big_endian)) {
            return Ok(());
        }
        let program = compiled(&self.expression, link, big_endian).map_err(|why| self.refused(link, why))?;
        self.programs.insert((link, big_endian), program);
        Ok(())
    }

    /// Whether a frame passes. All frames do that are not decoded: what they hold is not known.
    pub fn passes(&mut self, frame: &Frame, bytes: &[u8]) -> Result<bool, FilterError> {
        if !frame.link.is_known() {
            return Ok(true);
        }
        self.compile(frame.link, frame.big_endian)?;
        let program = self.programs.get(&(frame.link, frame.big_endian));
        Ok(program.and_then(Option::as_ref).is_some_and(|program| run(program, bytes, frame.length)))
    }

    /// Whether a frame that did not pass would have, had the expression looked behind these headers of it.
    #[cold]
    pub fn would_pass_behind(&mut self, headers: Headers, frame: &Frame, bytes: &[u8]) -> bool {
        if self.names_headers {
            return false;
        }
        let program = self.behind.entry(headers).or_insert_with(|| {
            compiled(&format!("{headers}({})", self.expression), frame.link, frame.big_endian).ok().flatten()
        });
        program.as_ref().is_some_and(|program| run(program, bytes, frame.length))
    }
}

fn run(program: &BpfProgram, bytes: &[u8], length: u32) -> bool {
    let instructions = program.get_instructions();
    let captured = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    // SAFETY: `bpf_filter` (libpcap, pcap/bpf.h) reads the instructions up to the return that ends every program of
    // `pcap_compile`, which made these, and of the packet only `captured` bytes: the slice's own length.
    let taken = unsafe { bpf_filter(instructions.as_ptr(), bytes.as_ptr(), length, captured) };
    taken != 0
}

/// An empty savefile of this link type and byte order, opened by libpcap.
fn savefile(link: LinkType, big_endian: bool) -> Result<Capture<Offline>, String> {
    // What the BSDs number for themselves is one link type in files.
    let link = match link {
        LinkType::RAW_BSD | LinkType::RAW_OPENBSD => LinkType::RAW,
        link => link,
    };
    let header = file_header_in(big_endian, link, MOST_LIMIT);
    let failed = |error: rustix::io::Errno| format!("no file in memory for it: {error}");
    let file = memfd_create("netspectra-filter", MemfdFlags::CLOEXEC).map_err(failed)?;
    write(&file, &header).map_err(failed)?;
    seek(&file, SeekFrom::Start(0)).map_err(failed)?;
    // SAFETY: the descriptor was just made, and `into_raw_fd` gives up the only owner it had.
    unsafe { Capture::from_raw_fd(file.into_raw_fd()) }.map_err(|error| plain(&error))
}

/// The program of an expression; `None` where libpcap knows that no packet can pass.
fn compiled(expression: &str, link: LinkType, big_endian: bool) -> Result<Option<BpfProgram>, String> {
    match savefile(link, big_endian)?.compile(expression, true) {
        Ok(program) => Ok(Some(program)),
        Err(error) => match plain(&error) {
            why if why.contains("rejects all packets") => Ok(None),
            why if why.contains("savefile") => Err(format!("{why}; only a live capture could tell")),
            why => Err(why),
        },
    }
}

/// libpcap's words alone.
fn plain(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(why) => why.clone(),
        other => other.to_string(),
    }
}

/// A link type with the name that libpcap has for it: `link type 239 (NFLOG)`.
pub fn described(link: LinkType) -> String {
    let name = match link.0 {
        147..=162 => Some(format!("USER{}", link.0 - 147)),
        _ => savefile(link, false).ok().and_then(|file| file.get_datalink().get_name().ok()),
    };
    name.map_or_else(|| format!("link type {}", link.0), |name| format!("link type {} ({name})", link.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(filter: &mut Filter, link: LinkType, big_endian: bool, bytes: &[u8], length: u32) -> bool {
        let captured = bytes.len() as u32;
        let frame = Frame { time: 0, start: 0, captured, length, link, big_endian, interface: 0 };
        filter.passes(&frame, bytes).expect("a filter")
    }

    #[test]
    fn lengths_are_those_on_the_wire() {
        let mut filter = Filter::new("greater 1000");
        assert!(passes(&mut filter, LinkType::ETHERNET, false, &[0; 60], 1000));
        assert!(!passes(&mut filter, LinkType::ETHERNET, false, &[0; 60], 999));
    }

    fn dns() -> Vec<u8> {
        let mut frame = vec![0; 42];
        (frame[12], frame[14], frame[23], frame[37]) = (8, 0x45, 17, 53);
        frame
    }

    #[test]
    fn ports_are_matched_and_short_frames_are_not() {
        let mut filter = Filter::new("udp dst port 53");
        let frame = dns();
        assert!(passes(&mut filter, LinkType::ETHERNET, false, &frame, 42));
        assert!(!passes(&mut filter, LinkType::ETHERNET, false, &frame[..30], 42));
        for link in [LinkType::RAW, LinkType::RAW_BSD, LinkType::RAW_OPENBSD] {
            assert!(passes(&mut filter, link, false, &frame[14..], 28), "{link:?}");
        }
    }

    #[test]
    fn a_filter_that_no_packet_of_a_link_type_can_pass_passes_none() {
        let mut filter = Filter::new("arp");
        for link in [LinkType::RAW, LinkType::RAW_OPENBSD] {
            assert!(!passes(&mut filter, link, false, &[0x45; 40], 40), "{link:?}");
        }
    }

    #[test]
    fn loopback_frames_are_matched_by_the_families_of_all_systems_in_the_files_byte_order() {
        let mut filter = Filter::new("ip6");
        for family in [24, 28, 30] {
            let (little, big) = ([family, 0, 0, 0], [0, 0, 0, family]);
            let frame = |header: [u8; 4]| [&header[..], &[0x60], &[0; 39]].concat();
            assert!(passes(&mut filter, LinkType::NULL, false, &frame(little), 44), "{family}");
            assert!(passes(&mut filter, LinkType::NULL, true, &frame(big), 44), "{family}");
            assert!(passes(&mut filter, LinkType::LOOP, false, &frame(big), 44), "{family}");
        }
        assert!(!passes(&mut filter, LinkType::NULL, true, &[0, 0, 0, 2, 0x45, 0, 0, 0], 8));
        let mut filter = Filter::new("ip");
        assert!(passes(&mut filter, LinkType::NULL, true, &[0, 0, 0, 2, 0x45, 0, 0, 0], 8));
        assert!(!passes(&mut filter, LinkType::NULL, true, &[0, 0, 0, 30, 0x60, 0, 0, 0], 8));
    }

    #[test]
    fn what_is_not_decoded_is_not_filtered() {
        let mut filter = Filter::new("udp port 53");
        for link in [LinkType(147), LinkType(239), LinkType::DAMAGED] {
            assert!(passes(&mut filter, link, false, &[0x45; 40], 40), "{link:?}");
        }
    }

    #[test]
    fn what_only_a_live_capture_knows_is_refused() {
        for expression in ["inbound", "outbound", "ifindex 1", "not outbound and udp"] {
            let error = Filter::new(expression).check(LinkType::ETHERNET).expect_err("refused").to_string();
            assert!(error.contains(expression) && error.contains("live capture could tell"), "{error}");
        }
        // Cooked captures hold the direction.
        Filter::new("inbound").check(LinkType::LINUX_SLL).expect("a filter");
    }

    #[test]
    fn a_bad_expression_is_named_for_every_link_type() {
        for link in [LinkType::ETHERNET, LinkType(147), LinkType(105)] {
            let error = Filter::new("udp prot").check(link).expect_err("a bad expression");
            assert!(error.to_string().contains("`udp prot`"), "{error}");
        }
        Filter::new("wlan type mgt").check(LinkType(105)).expect("a filter of its own link type");
        Filter::new("ether host 02:00:00:00:00:01").check(LinkType(147)).expect("a filter");
    }

    #[test]
    fn packets_behind_headers_are_noticed_where_the_expression_does_not_look() {
        let behind = |headers: &[u8]| [&dns()[..12], headers, &dns()[14..]].concat();
        let would = |expression: &str, bytes: &[u8]| {
            let frame = Frame {
                time: 0,
                start: 0,
                captured: bytes.len() as u32,
                length: bytes.len() as u32,
                link: LinkType::ETHERNET,
                big_endian: false,
                interface: 0,
            };
            let headers = Headers::of(frame.link, bytes)?;
            let mut filter = Filter::new(expression);
            assert!(!filter.passes(&frame, bytes).expect("a filter"));
            Some((headers.to_string(), filter.would_pass_behind(headers, &frame, bytes)))
        };
        for (headers, words) in [
            (&[0x81, 0, 0, 5, 8, 0][..], "vlan and "),
            (&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0], "vlan and vlan and "),
            (&[0x88, 0x47, 0, 6, 0x41, 255], "mpls and "),
            (&[0x81, 0, 0, 5, 0x88, 0x47, 0, 6, 0x40, 255, 0, 6, 0x41, 255], "vlan and mpls and mpls and "),
            (&[0x88, 0x64, 0x11, 0, 0, 1, 0, 30, 0, 0x21], "pppoes and "),
        ] {
            assert_eq!(would("udp port 53", &behind(headers)), Some((words.into(), true)));
            assert_eq!(would("udp port 54", &behind(headers)), Some((words.into(), false)));
        }
        assert_eq!(
            would("vlan 6 and udp", &behind(&[0x81, 0, 0, 5, 8, 0])),
            Some(("vlan and ".into(), false))
        );
        assert_eq!(would("tcp", &dns()), None);
    }

    #[test]
    fn link_types_are_named() {
        assert_eq!(described(LinkType(239)), "link type 239 (NFLOG)");
        assert_eq!(described(LinkType(147)), "link type 147 (USER0)");
        assert_eq!(described(LinkType(60_000)), "link type 60000");
    }
}
