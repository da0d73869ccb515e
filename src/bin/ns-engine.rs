//! `ns-engine`: packets from NATS, or straight from an interface, to snapshots.

use dataflows::aggregator::Registry;
use netspectra::programs::ns_engine;
use std::process::ExitCode;

fn main() -> ExitCode {
    ns_engine::main(&Registry::default(), std::env::args_os())
}
