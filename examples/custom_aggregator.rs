//! An aggregator of one's own, `tcp_flags`: how many packets of a key had which TCP flag set. docs/AGGREGATORS.md goes
//! through it step by step.
//!
//! `custom_aggregator analyze -c examples/custom_aggregator.yaml FILE...` is `pcap-analyzer` with it, and
//! `custom_aggregator engine ...` is `ns-engine` with it.

use netspectra::config::Registries;
use netspectra::dataflows::aggregator::{Aggregator, Flow, Options, OptionsError, Registry};
use netspectra::dataflows::block::{Block, BlockBuilder};
use netspectra::dataflows::epochs::Epochs;
use netspectra::dataflows::field::TCP_FLAGS;
use netspectra::dataflows::groups::visit;
use netspectra::dataflows::key::{Key, KeyColumn, KeyFields, Mask};
use netspectra::dataflows::rows::{COMMITTER, Schema, ValueColumn, ValueKind};
use netspectra::dataflows::standing::{Rows, by_owner};
use netspectra::dataflows::window::Epoch;
use netspectra::programs::{ns_engine, pcap_analyzer};
use netspectra::timely::dataflow::{
    Stream, channels::pact::Pipeline, operators::generic::operator::Operator,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

const FLAGS: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpFlagsOptions {
    key_fields: Vec<String>,
}

struct TcpFlags {
    schema: Arc<Schema>,
    /// The key and the flags: exact groups of both are what is counted.
    with_flags: Mask,
}

fn from_options(options: &Options) -> Result<Box<dyn Aggregator>, OptionsError> {
    let TcpFlagsOptions { key_fields } = options.read()?;
    let key = options.fields("key_fields", &key_fields)?;
    let fields = key.columns().iter().copied().chain([KeyColumn::base(&TCP_FLAGS)]).collect();
    let with_flags = KeyFields::new(fields).map_err(|error| options.refuse("key_fields", error))?.mask();
    let values = FLAGS.map(|name| ValueColumn { name, kind: ValueKind::Count }).to_vec();
    let schema = Arc::new(Schema { key, values, order_by: 1, counts_every_packet: false });
    Ok(Box::new(TcpFlags { schema, with_flags }))
}

impl Aggregator for TcpFlags {
    fn schema(&self) -> Arc<Schema> {
        self.schema.clone()
    }

    fn groups(&self) -> Vec<Mask> {
        vec![self.with_flags]
    }

    fn build<'s>(&self, flow: &Flow<'s>) -> Stream<'s, Epoch, Block> {
        let key = self.schema.key.mask();
        let groups = by_owner(flow.groups(self.with_flags), key);
        groups.unary_frontier::<BlockBuilder, _, _, _>(Pipeline, "TcpFlags", move |_, _| {
            let mut epochs: Epochs<BTreeMap<(Epoch, Key), [u64; FLAGS.len()]>> = Epochs::default();
            move |(input, frontier), output| {
                let port = output.output_index();
                input.for_each(|message, block| {
                    let Some((_, counts)) = epochs.at(&message, port) else { return };
                    visit(block, |fine, [packets, ..]| {
                        let flags = fine.transport().tcp_flags();
                        let counts = counts.entry((block.window, fine.under(key))).or_default();
                        for (bit, count) in counts.iter_mut().enumerate() {
                            *count += packets * u64::from(flags >> bit & 1);
                        }
                    });
                });
                while let Some((held, counts)) = epochs.close(&[frontier]) {
                    let mut windows: BTreeMap<Epoch, Rows> = BTreeMap::new();
                    for ((window, key), counts) in &counts {
                        windows.entry(*window).or_default().push(key, counts);
                    }
                    let mut session = output.session_with_builder(&held);
                    for (window, rows) in windows {
                        rows.into_blocks(COMMITTER, window)
                            .for_each(|mut block| session.give_container(&mut block));
                    }
                }
            }
        })
    }
}

fn main() -> ExitCode {
    let aggregators = Registry::default().with("tcp_flags", from_options);
    let registries = Registries { aggregators, ..Registries::default() };
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let program = if arguments.len() > 1 { arguments.remove(1) } else { "--help".into() };
    match program.to_str() {
        Some("analyze") => pcap_analyzer::main(&registries, arguments),
        Some("engine") => ns_engine::main(&registries, arguments),
        _ => {
            eprintln!(
                "usage: custom_aggregator analyze|engine [OPTIONS]... as pcap-analyzer and ns-engine have them"
            );
            ExitCode::from(2)
        }
    }
}
