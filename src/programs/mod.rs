//! The programs that aggregate, with whatever aggregators, inputs and writers the registries have: for the binaries, and for programs
//! of others.

pub mod ns_engine;
pub mod pcap_analyzer;
mod view;
