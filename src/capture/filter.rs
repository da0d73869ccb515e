//! BPF filters over captured frames, compiled and run by libpcap.
//!
//! The one `unsafe` of this crate: the `pcap` crate's own filter call takes a frame's captured bytes for all of it, so
//! `greater 1000` would be wrong on every capture with a snap length; `bpf_filter` is told both lengths.
#![allow(unsafe_code)]

use crate::decode::LinkType;
use pcap::{BpfInstruction, BpfProgram, Capture, Linktype};
use std::collections::BTreeMap;

/// libpcap refuses the expression.
#[derive(Debug, thiserror::Error)]
#[error("filter `{expression}` cannot be used on packets of link type {}: {why}", link.0)]
pub struct FilterError {
    expression: String,
    link: LinkType,
    why: String,
}

/// A filter expression and its programs, one a link type.
pub struct Filter {
    expression: String,
    /// `None` where no packet of the link type can pass.
    programs: BTreeMap<LinkType, Option<BpfProgram>>,
}

unsafe extern "C" {
    fn bpf_filter(program: *const BpfInstruction, packet: *const u8, wire: u32, captured: u32) -> u32;
}

impl Filter {
    /// A filter in libpcap's language (pcap-filter(7)); nothing is compiled yet.
    pub fn new(expression: &str) -> Self {
        Self { expression: expression.to_owned(), programs: BTreeMap::new() }
    }

    /// Compiles the expression for a link type, so that mistakes show before anything is read.
    pub fn check(&mut self, link: LinkType) -> Result<(), FilterError> {
        if self.programs.contains_key(&link) {
            return Ok(());
        }
        // libpcap's compiler knows raw IP by this platform's own number.
        let dlt = match link {
            LinkType::RAW | LinkType::RAW_OPENBSD => 12,
            LinkType(number) => number as i32,
        };
        let program =
            match Capture::dead(Linktype(dlt)).and_then(|capture| capture.compile(&self.expression, true)) {
                Ok(program) => Some(program),
                Err(error) if error.to_string().contains("rejects all packets") => None,
                // What is not decoded could not be counted either.
                Err(_) if !link.is_known() => None,
                Err(error) => {
                    return Err(FilterError {
                        expression: self.expression.clone(),
                        link,
                        why: error.to_string(),
                    });
                }
            };
        self.programs.insert(link, program);
        Ok(())
    }

    /// Whether a frame, `length` bytes long on the wire, passes.
    pub fn passes(&mut self, link: LinkType, frame: &[u8], length: u32) -> Result<bool, FilterError> {
        self.check(link)?;
        let Some(Some(program)) = self.programs.get(&link) else { return Ok(false) };
        let instructions = program.get_instructions();
        // SAFETY: `bpf_filter` (libpcap, pcap/bpf.h) reads the instructions up to the return that ends every program of
        // `pcap_compile`, which made these, and of the packet only `captured` bytes: the slice's own length.
        let taken = unsafe {
            bpf_filter(
                instructions.as_ptr(),
                frame.as_ptr(),
                length,
                u32::try_from(frame.len()).unwrap_or(u32::MAX),
            )
        };
        Ok(taken != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_on_the_wire() {
        let mut filter = Filter::new("greater 1000");
        assert!(filter.passes(LinkType::ETHERNET, &[0; 60], 1000).expect("a filter"));
        assert!(!filter.passes(LinkType::ETHERNET, &[0; 60], 999).expect("a filter"));
    }

    #[test]
    fn ports_are_matched_and_short_frames_are_not() {
        let mut filter = Filter::new("udp dst port 53");
        let mut frame = [0; 42];
        (frame[12], frame[14], frame[23], frame[37]) = (8, 0x45, 17, 53);
        assert!(filter.passes(LinkType::ETHERNET, &frame, 42).expect("a filter"));
        assert!(!filter.passes(LinkType::ETHERNET, &frame[..30], 42).expect("a filter"));
        assert!(filter.passes(LinkType::RAW, &frame[14..], 28).expect("a filter"));
    }

    #[test]
    fn a_filter_that_no_packet_of_a_link_type_can_pass_passes_none() {
        let mut filter = Filter::new("arp");
        for link in [LinkType::RAW, LinkType::RAW_OPENBSD, LinkType(147)] {
            assert!(!filter.passes(link, &[0x45; 40], 40).expect("a filter"), "{link:?}");
        }
    }

    #[test]
    fn a_bad_expression_is_named() {
        let error = Filter::new("udp port").check(LinkType::ETHERNET).expect_err("a bad expression");
        assert!(error.to_string().contains("`udp port`"), "{error}");
    }
}
