//! `pcap-analyzer`: capture files in, snapshots out.

use dataflows::aggregator::Registry;
use netspectra::programs::pcap_analyzer;
use std::process::ExitCode;

fn main() -> ExitCode {
    pcap_analyzer::main(&Registry::default(), std::env::args_os())
}
