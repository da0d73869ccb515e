//! `ns-engine`: packets from NATS, or straight from an interface, to snapshots.

use netspectra::config::Registries;
use netspectra::programs::ns_engine;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: netspectra::memory::Saying = netspectra::memory::Saying;

fn main() -> ExitCode {
    ns_engine::main(&Registries::default(), std::env::args_os())
}
