//! map
pub mod archive;
pub mod capture;
pub mod config;
pub mod decode;
pub mod engine;
pub mod interpolate;
pub mod ledger;
pub mod sinks;
pub mod report;
pub mod generate;
