//! The pure half of NetSpectra: packets in, snapshot rows out.
//!
//! Nothing here opens a file or a socket, starts a thread, reads a clock or logs: the manifest names no crate that
//! could. Programs bring packets, take [`rows::Snapshot`]s and keep what must outlive memory behind
//! [`groups::Archive`].
//!
//! In the order that data moves: [`packet`] and [`window`] are the vocabulary, [`key`] says what a flow is, [`table`]
//! counts, [`groups`] does so over all workers, [`aggregator`] builds the tasks on top, [`rows`] orders their results.
//! [`block`] and [`epochs`] are what the operators share.

pub mod aggregator;
pub mod block;
mod changes;
mod count_min;
pub mod epochs;
pub mod exact;
mod fan_out;
pub mod field;
pub mod groups;
mod hll;
pub mod key;
pub mod layers;
pub mod measure;
mod new_keys;
pub mod packet;
mod prefetch;
mod quantiles;
pub mod rows;
pub mod sketch;
mod sketched;
mod sort;
pub mod standing;
pub mod table;
mod top_k;
#[cfg(test)]
mod trial;
pub mod turns;
pub mod window;
