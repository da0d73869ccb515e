//! A field and a measure of one's own: `FlowLabel`, the flow label of IPv6, as part of a key, and `psh`, packets with PSH.
//!
//! `custom_field analyze -c examples/custom_field.yaml FILE...` is `pcap-analyzer` with them, and
//! `custom_field engine ...` is `ns-engine` with them.

use netspectra::config::Registries;
use netspectra::dataflows::aggregator::Registry;
use netspectra::dataflows::field::{Field, Kind, Lives};
use netspectra::dataflows::measure::{Measure, Merge};
use netspectra::dataflows::rows::ValueKind;
use netspectra::programs::{ns_engine, pcap_analyzer};
use std::process::ExitCode;

static FLOW_LABEL: Field = Field {
    name: "FlowLabel",
    column: "flow_label",
    kind: Kind::Number,
    bits: 20,
    lives: Lives::Extra(|layers| match layers.ip.first_chunk() {
        Some(&[first, second, third, fourth]) if first >> 4 == 6 => {
            u128::from(u32::from_be_bytes([0, second & 0xf, third, fourth]))
        }
        _ => 0,
    }),
    about: "flow label of IPv6; else 0",
};

static PSH: Measure = Measure {
    name: "psh",
    kind: ValueKind::Count,
    merge: Merge::Sum,
    reads: None,
    observe: |seen| if seen.packet.transport.tcp_flags() & 8 > 0 { seen.weight.packets } else { 0 },
    about: "packets with PSH",
};

fn main() -> ExitCode {
    let aggregators = Registry::default().with_field(&FLOW_LABEL).with_measure(&PSH);
    let registries = Registries { aggregators, ..Registries::default() };
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let program = if arguments.len() > 1 { arguments.remove(1) } else { "--help".into() };
    match program.to_str() {
        Some("analyze") => pcap_analyzer::main(&registries, arguments),
        Some("engine") => ns_engine::main(&registries, arguments),
        _ => {
            eprintln!(
                "usage: custom_field analyze|engine [OPTIONS]... as pcap-analyzer and ns-engine have them"
            );
            ExitCode::from(2)
        }
    }
}
