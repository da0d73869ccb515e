//! `pcap-analyzer`: capture files in, snapshots out.

use netspectra::config::Registries;
use netspectra::programs::pcap_analyzer;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: netspectra::memory::Saying = netspectra::memory::Saying;

fn main() -> ExitCode {
    pcap_analyzer::main(&Registries::default(), std::env::args_os())
}
