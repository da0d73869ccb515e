//! `ns-engine`: packets from NATS, or straight from an interface, to snapshots.

use anyhow::anyhow;
use clap::Parser;
use dataflows::rows::Snapshot;
use dataflows::window::Windowing;
use netspectra::bus::Settings;
use netspectra::capture::live::Options;
use netspectra::capture::rings::Rings;
use netspectra::config::{self, Config};
use netspectra::engine::{self, Job, Progress};
use netspectra::intake::Intake;
use netspectra::intake::bus::Rules;
use netspectra::intake::listen::Listening;
use netspectra::ledger::Ledger;
use netspectra::program::{self, End, Failed, Stopping, no_bus, running, usage};
use netspectra::report::Totals;
use netspectra::say;
use netspectra::sinks::text::window_name;
use netspectra::sinks::{SinkError, Sinks, Writer};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const NAME: &str = "ns-engine";

/// Exact traffic analysis of live links: packets from probes over NATS, or from an interface of this machine.
#[derive(Parser)]
#[command(version, about)]
struct Flags {
    /// Configuration [default: ./config.yaml where it exists, else the built-in one]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where snapshots go, instead of the csv writer's path
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Worker threads, 0 for one a core [default: num_workers of the configuration]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=config::MOST_WORKERS as i64))]
    workers: Option<u16>,
    /// Length of a snapshot in event time, such as 60s, or `all` [default: window of the configuration]
    #[arg(long, value_name = "DUR")]
    window: Option<String>,
    /// NATS servers, separated by commas [default: nats.url of the configuration]
    #[arg(long, value_name = "URL", conflicts_with = "iface")]
    nats: Option<String>,
    /// Read the durable log of JetStream instead of passing messages
    #[arg(long, conflicts_with = "iface")]
    jetstream: bool,
    /// Capture this interface (`any` for all) instead of listening to NATS
    #[arg(short, long, value_name = "IF")]
    iface: Option<String>,
    /// Count only what passes this libpcap filter, such as 'tcp port 443'
    #[arg(short, long, value_name = "BPF", requires = "iface")]
    filter: Option<String>,
    /// Bytes captured of a frame
    #[arg(short, long, value_name = "N", default_value_t = 128, requires = "iface", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    snaplen: u32,
    /// Memory of the kernel's rings, over all workers
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = config::size, requires = "iface")]
    ring_size: u64,
    /// Do not ask the interface for frames to other hosts
    #[arg(long, requires = "iface")]
    no_promiscuous: bool,
    /// Say only what went wrong
    #[arg(short, long)]
    quiet: bool,
    /// Say more on standard error
    #[arg(short, long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    program::main(NAME, || run(&flags))
}

fn run(flags: &Flags) -> Result<End, Failed> {
    let stopping = Stopping::on_signals().map_err(running)?;
    program::raise_open_files();
    let mut config = program::load_config(flags.config.as_deref()).map_err(usage)?;
    if let Some(window) = &flags.window {
        config.windowing = config::windowing(window).map_err(|why| usage(anyhow!("--window: {why}")))?;
    }
    if let Some(url) = &flags.nats {
        config.nats.servers = config::nats::servers(url).map_err(|why| usage(anyhow!("--nats: {why}")))?;
    }
    config.nats.jetstream.enabled |= flags.jetstream;
    let workers = program::workers(flags.workers, config.workers);
    let folders = program::output_folders(flags.output.as_deref(), &config);
    let lateness = u64::try_from(config.allowed_lateness.as_nanos()).unwrap_or(u64::MAX);

    let input = Input::open(flags, &config.nats, config.windowing, lateness, workers)?;
    let intake = input.intake();
    let totals = TotalsWriter { quiet: flags.quiet, ..TotalsWriter::default() };
    let mut writers: Vec<Box<dyn Writer>> = program::csv_writers(&folders, workers).map_err(running)?;
    writers.push(Box::new(totals.clone()));
    let stopped = intake.clone();
    stopping.begin(move || stopped.stop());
    say!("{NAME}: {}", input.describe(flags, workers));
    let Config { windowing, tasks, .. } = config;
    let spill = folders.first().cloned().unwrap_or_else(std::env::temp_dir);
    if flags.verbose {
        say!("{NAME}: {workers} workers, {} tasks", tasks.len());
    }
    let progress = Arc::new(Progress::default());
    let job = Arc::new(Job { intake: intake.clone(), tasks, windowing, lateness, workers, spill });
    let sinks = Sinks::start(writers, progress.failure.clone()).map_err(running)?;
    let ran = engine::run(job.clone(), &progress, &sinks);
    if windowing == Windowing::All && progress.windows() == 0 && progress.failure.get().is_none() {
        // Nothing was counted, and that is an answer too.
        let _ = sinks.sender().send((engine::empty_snapshot(&job, 0, 0), Box::new(|| {})));
    }
    let mut writers = sinks.join();
    ran.map_err(|why| running(anyhow!(why)))?;
    if let Some(why) = progress.failure.get() {
        return Err(running(anyhow!("{why}")));
    }
    if let Input::Bus(listening) = &input {
        listening.settle();
    }
    let totals = std::mem::take(&mut *totals.totals.lock().unwrap_or_else(PoisonError::into_inner));
    let ledger = Ledger::new(&progress.counts(), &intake.reports(), totals.windows(), true);
    ledger.balance(totals.packets()).map_err(running)?;
    for writer in &mut writers {
        writer.finish(&ledger).map_err(running)?;
    }
    for link in progress.unknown_links() {
        say!("{NAME}: warning: packets of link type {link} are not decoded and count as non_ip");
    }
    if !flags.quiet {
        say!("{NAME}: {} windows; {}", totals.windows(), ledger.summary());
    }
    match input {
        Input::Interface(rings) => match rings.failure() {
            Some(why) => Err(running(anyhow!("{why}; what was captured before that is counted"))),
            None => Ok(End::Done),
        },
        Input::Bus(listening) => match listening.messages.failure() {
            Some(why) => Err(running(anyhow!("{why} What was received before that is counted"))),
            None => Ok(End::Done),
        },
    }
}

/// Where packets come from.
enum Input {
    Interface(Arc<Rings>),
    Bus(Listening),
}

impl Input {
    fn open(
        flags: &Flags,
        nats: &Settings,
        windowing: Windowing,
        lateness: u64,
        workers: usize,
    ) -> Result<Self, Failed> {
        let Some(interface) = &flags.iface else {
            let rules = Rules {
                windowing,
                lateness,
                silent_after: nats.silent_after,
                // A log may pause while there is more in it.
                pause: Duration::from_secs(if nats.jetstream.enabled { 10 } else { 2 }),
                limit: nats.buffer,
                single: nats.single.clone(),
            };
            let listening = Listening::start(nats, rules, NAME).map_err(no_bus)?;
            return Ok(Self::Bus(listening));
        };
        let options = Options {
            interface: interface.clone(),
            filter: flags.filter.clone(),
            snaplen: flags.snaplen,
            ring: flags.ring_size,
            promiscuous: !flags.no_promiscuous,
        };
        let rings = Rings::open(&options, workers).map_err(usage)?;
        Ok(Self::Interface(Arc::new(rings)))
    }

    fn describe(&self, flags: &Flags, workers: usize) -> String {
        match self {
            Self::Interface(_) => {
                format!("capturing on {} with {workers} rings", flags.iface.as_deref().unwrap_or_default())
            }
            Self::Bus(listening) => format!("subscribed to {}", listening.to),
        }
    }

    fn intake(&self) -> Arc<dyn Intake> {
        match self {
            Self::Interface(rings) => rings.clone(),
            Self::Bus(listening) => listening.messages.clone(),
        }
    }
}

/// Counts what the snapshots hold, and tells of each.
#[derive(Clone, Default)]
struct TotalsWriter {
    totals: Arc<Mutex<Totals>>,
    quiet: bool,
}

impl Writer for TotalsWriter {
    fn write(&mut self, snapshot: &Snapshot) -> Result<(), SinkError> {
        let packets = self.totals.lock().unwrap_or_else(PoisonError::into_inner).add(snapshot);
        if !self.quiet {
            let packets = packets.map(|packets| format!(", {packets} packets")).unwrap_or_default();
            say!(
                "{NAME}: window {} written{packets}, revision {}",
                window_name(snapshot.span),
                snapshot.revision
            );
        }
        Ok(())
    }

    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        Ok(())
    }
}
