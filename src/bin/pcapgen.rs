//! `pcapgen`: writes a deterministic synthetic capture for demos, tests and benchmarks.

use anyhow::Context;
use clap::Parser;
use netspectra::config::duration;
use netspectra::generate::{self, FrameSize, Options};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const AFTER_HELP: &str = "\
Examples:
  pcapgen -o demo.pcap --events                      a million packets; lists the events in it
  pcapgen -o small.pcap --packets 1000 --flows 10    a thousand packets of ten flows
  pcapgen -o - --size min | pcap-analyzer -o out -   minimum-size packets, analysed at once

Environment: none; the same options give the same bytes everywhere";

/// Writes a synthetic capture: the same options give the same bytes.
#[derive(Parser)]
#[command(name = "pcapgen", version, after_help = AFTER_HELP)]
struct Flags {
    /// The capture to write (pcap); `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Background packets; planted events come on top
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: u64,
    /// Flows to draw from
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    flows: u32,
    /// Exponent of the Zipf law by which flows are drawn, 0 for equal shares
    #[arg(long, value_name = "S", default_value_t = 1.05, value_parser = zipf)]
    zipf: f64,
    /// Bytes kept of each frame
    #[arg(long, value_name = "N", default_value_t = 65_535, value_parser = clap::value_parser!(u32).range(1..=65_535))]
    snaplen: u32,
    /// Share of IPv6 flows, 0 to 1
    #[arg(long, value_name = "FRACTION", default_value_t = 0.1, value_parser = fraction)]
    ipv6: f64,
    /// Another seed gives another capture
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Time from the first packet to the last
    #[arg(long, value_name = "DUR", default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// Plant a port scan, a SYN flood, an exfiltration and a beacon, and list them
    #[arg(long)]
    events: bool,
    /// Length of frames on the wire: `mixed`, `min`, or a number of bytes
    #[arg(long, value_name = "SIZE", default_value = "mixed", value_parser = frame_size)]
    size: FrameSize,
}

fn fraction(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "a number from 0 to 1".into())
}

fn zipf(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|exponent| (0.0..=10.0).contains(exponent))
        .ok_or_else(|| "a number from 0 to 10".into())
}

fn frame_size(text: &str) -> Result<FrameSize, String> {
    match text {
        "mixed" => Ok(FrameSize::Mixed),
        "min" => Ok(FrameSize::Bytes(0)),
        bytes => {
            bytes.parse().map(FrameSize::Bytes).map_err(|_| "`mixed`, `min` or a number of bytes".into())
        }
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pcapgen: {}: {error:#}", flags.output.display());
            ExitCode::from(1)
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let options = Options {
        packets: flags.packets,
        flows: flags.flows,
        zipf: flags.zipf,
        snaplen: flags.snaplen,
        ipv6: flags.ipv6,
        seed: flags.seed,
        duration: flags.duration,
        events: flags.events,
        size: flags.size,
    };
    let to_stdout = flags.output == Path::new("-");
    let out: Box<dyn Write> =
        if to_stdout { Box::new(io::stdout()) } else { Box::new(File::create(&flags.output)?) };
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let events = generate::write(&options, &mut out).context("cannot write")?;
    out.flush().context("cannot write")?;
    // The list is data, but not where the capture itself goes to standard output.
    let mut list: Box<dyn Write> = if to_stdout { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
    for event in events {
        writeln!(list, "{}\t{} packets\t{}", event.kind, event.packets, event.what)?;
    }
    Ok(())
}
