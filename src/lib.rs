//! NetSpectra: packets from capture files to exact, reproducible snapshots.
//!
//! The modules in the order that data moves: [`capture`] finds frames in files and deals them to the workers,
//! [`decode`] turns a frame into a packet, [`engine`] runs the dataflows of the crate `dataflows` over them (with
//! [`archive`] for windows that get late packets), [`sinks`] write the snapshots, [`ledger`] keeps the books and
//! [`report`] tells the user. [`config`] (with [`interpolate`]) says what to run; [`generate`] makes captures to try
//! it on.
//!
//! A stage knows the vocabulary of `dataflows` and never its neighbours; only [`engine`] and the programs put stages
//! together. Everything that is pure is in `dataflows`, and that crate cannot depend on this one.

pub mod account;
pub mod archive;
pub mod bus;
pub mod capture;
pub mod cluster;
pub mod config;
pub mod decode;
pub mod engine;
pub mod generate;
pub mod intake;
pub mod interpolate;
pub mod ledger;
pub mod probe;
pub mod program;
pub mod report;
pub mod sinks;
pub mod state;
pub mod tail;
pub mod wire;
