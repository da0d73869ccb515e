//! NetSpectra: packets from capture files, links and NATS to exact, reproducible snapshots.
//!
//! The modules in the order that data moves: [`capture`] finds frames in files and on links, [`decode`] turns
//! a frame into a packet; [`probe`] puts packets into messages ([`wire`]) on the [`bus`], and [`tail`] prints
//! those; [`intake`] feeds all of that to the workers of the [`engine`], which run the dataflows of the crate
//! `dataflows` over it (with [`archive`] for windows that get late packets) in the processes of a
//! [`cluster`]. An [`account`] is what they tell the one that commits; [`sinks`] write the snapshots,
//! [`alerts`] tell of what rules find in them, [`state`] records what is committed, [`ledger`] keeps the
//! books and [`report`] tells the user; [`http`] answers who asks a running engine, [`log`] says what happens.
//! [`config`] (with [`interpolate`] and [`options`]) and [`arguments`] say what to run, [`program`] is what the programs share, [`programs`] are
//! those that aggregate, [`generate`] makes captures to try it on, [`fingerprint`] a number for bytes, and
//! [`histogram`] counts how long things take; [`watchdog`] watches that a run gets on and ends.
//!
//! A stage knows the vocabulary of `dataflows` and never its neighbours; only [`engine`] and the programs put
//! stages together. Everything that is pure is in `dataflows`, and that crate cannot depend on this one.

pub mod account;
pub mod alerts;
pub mod archive;
pub mod arguments;
pub mod bus;
pub mod capture;
pub mod cluster;
pub mod config;
pub mod decode;
pub mod engine;
pub mod fingerprint;
pub mod generate;
pub mod histogram;
pub mod http;
pub mod intake;
pub mod interpolate;
pub mod ledger;
pub mod log;
pub mod losses;
pub mod memory;
pub mod non_ip;
pub mod options;
pub mod probe;
pub mod program;
pub mod programs;
pub mod report;
pub mod sinks;
pub mod state;
pub mod tail;
#[cfg(test)]
mod trial;
pub mod watchdog;
pub mod wire;

// What an aggregator of one's own is written with.
pub use {dataflows, differential_dataflow, timely};
