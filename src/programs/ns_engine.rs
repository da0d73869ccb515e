//! `ns-engine`: packets from NATS, or straight from an interface, to snapshots.

use crate::alerts::edits;
use crate::bus::{JetStream, Settings};
use crate::capture::live::{self, Options};
use crate::capture::rings::Rings;
use crate::config::{self, Config};
use crate::engine::{Earlier, Job, Progress};
use crate::intake::Intake;
use crate::intake::books::Rules;
use crate::intake::frames::Interface;
use crate::intake::listen::{Listen, Listening};
use crate::intake::log::Division;
use crate::ledger::Ledger;
use crate::program::{self, Aggregation, End, Failed, Stopping, no_bus, running, usage};
use crate::say;
use crate::sinks::csv::CsvReader;
use crate::sinks::text::window_name;
use crate::sinks::{Failure, SinkError, Writer};
use crate::state::{Manifest, State, StateError};
use anyhow::anyhow;
use clap::Parser;
use dataflows::aggregator::Registry;
use dataflows::rows::Snapshot;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const NAME: &str = "ns-engine";

/// Exact traffic analysis of live links: packets from probes over NATS, or from an interface of this machine.
#[derive(Parser)]
#[command(name = NAME, version, about)]
struct Flags {
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
    #[command(flatten)]
    how: Aggregation,
}

/// Runs the program with these aggregators and arguments, the first of which is its own name.
pub fn main(registry: &Registry, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let flags = Flags::parse_from(arguments);
    program::main(NAME, || run(&flags, registry))
}

fn run(flags: &Flags, registry: &Registry) -> Result<End, Failed> {
    let how = &flags.how;
    let stopping = Stopping::on_signals().map_err(running)?;
    program::raise_open_files();
    let mut config = program::load_config(how.config.as_deref(), registry).map_err(usage)?;
    if let Some(window) = &flags.window {
        config.windowing = config::windowing(window).map_err(|why| usage(anyhow!("--window: {why}")))?;
    }
    if let Some(url) = &flags.nats {
        config.nats.servers = config::nats::servers(url).map_err(|why| usage(anyhow!("--nats: {why}")))?;
    }
    config.nats.jetstream.enabled |= flags.jetstream;
    let cluster = how.cluster(&config.cluster).map_err(usage)?;
    let (processes, commits) = (cluster.hosts.len(), cluster.process == 0);
    let windowing = config.windowing;
    let workers = program::workers(how.workers, config.workers);
    let folders = program::output_folders(how.output.as_deref(), &config);
    let recorded = flags.iface.is_none() && config.nats.jetstream.enabled;

    let mut settings = program::settings(windowing, &config);
    if recorded {
        settings.extend(log_settings(&config.nats));
    }
    let mut earlier = Earlier::default();
    let (mut state, mut writers) = (None, Vec::new());
    // A process alone that goes on from nowhere makes no folder before it knows that it can begin.
    let early = recorded || processes > 1;
    if commits && early {
        let csv = program::csv_writers(&folders, workers).map_err(running)?;
        let mut last = None;
        if recorded {
            let open = State::open(&folders[0]).map_err(no_records)?;
            last = open.last(&settings).map_err(no_records)?;
            state = Some(open);
            earlier.manifest =
                Some(last.clone().unwrap_or_else(|| Manifest::new(settings.clone(), live::now())));
        }
        writers = program::recover(csv, last.as_ref()).map_err(running)?;
    }
    let known = serde_json::to_vec(&earlier.manifest).map_err(running)?;
    program::add_cluster_settings(&mut settings, NAME, &cluster, workers);
    if !recorded && flags.iface.is_none() {
        settings.extend(log_settings(&config.nats));
    }
    settings.insert(0, ("input".into(), input_kind(flags, recorded).into()));
    let formed = program::form(NAME, &cluster, &settings, known, (&stopping, how.quiet))?;
    if let Some(formed) = formed.as_ref().filter(|_| !commits) {
        earlier.manifest = serde_json::from_slice(&formed.known).map_err(running)?;
    }
    let generation = formed.as_ref().map_or_else(live::now, |formed| formed.generation);
    if let Some(manifest) = &mut earlier.manifest {
        earlier.first = manifest.first();
        if manifest.number > 0 && commits && !how.quiet {
            let until = manifest.epoch.map_or_else(|| "-".into(), |epoch| window_name(windowing.span(epoch)));
            say!("{NAME}: going on behind commit {}, window {until}", manifest.number);
        }
    }
    if recorded {
        program::check_recall(&config.tasks).map_err(usage)?;
    }
    if commits && recorded {
        let counting = config.tasks.iter().find(|task| task.aggregator.schema().counts_every_packet);
        let counting = counting.map(|task| task.name.clone());
        earlier.recall = Some(Arc::new(CsvReader { folder: folders[0].clone(), windowing, counting }));
    }

    let lateness = u64::try_from(config.allowed_lateness.as_nanos()).unwrap_or(u64::MAX);
    let division = Division {
        partitions: config.nats.jetstream.partitions,
        first_worker: cluster.process * workers,
        workers,
        peers: processes * workers,
    };
    let input = Input::open(flags, &config, lateness, division, generation, &earlier)?;
    if let (Some(manifest), Input::Bus(listening)) = (&mut earlier.manifest, &input) {
        listening.identity().clone_into(&mut manifest.stream);
    }
    if !early {
        let csv = program::csv_writers(&folders, workers).map_err(running)?;
        writers = program::recover(csv, None).map_err(running)?;
    }
    let intake = input.intake(cluster.process);
    writers.push(Box::new(Told { quiet: how.quiet, prepared: Vec::new() }));
    let spill = if commits { folders[0].clone() } else { program::spill_folder() };
    if how.verbose {
        say!("{NAME}: {workers} workers, {} tasks", config.tasks.len());
    }
    let failure = if processes > 1 { Failure::ending(NAME) } else { Failure::default() };
    let progress = Arc::new(Progress::new(failure));
    let standing = earlier.manifest.as_ref().and_then(|manifest| manifest.alerts.clone());
    let judges = commits && !config.alerts.outputs.is_empty();
    let edited = match program::config_file(how.config.as_deref()).filter(|_| judges) {
        Some(file) => edits::follow(NAME, file, registry, &config),
        None => edits::ignore(),
    };
    let edited = edited.map_err(running)?;
    let alerts = program::alerts(&config.alerts, Some(standing.unwrap_or_default()), edited, commits)?;
    let job = Arc::new(Job {
        intake,
        tasks: config.tasks,
        windowing,
        lateness,
        workers,
        spill,
        earlier,
        stopping: AtomicBool::new(false),
    });
    stopping.begin(program::stop(&job, processes));
    say!("{NAME}: {}", input.describe(flags, workers));
    let (mut writers, outputs) =
        program::aggregate(&job, &progress, writers, (state, alerts), (formed, commits))?;
    if commits {
        finish(&progress, &mut writers, how.quiet)?;
        outputs.finish();
    }
    match input {
        Input::Interface(rings) => match rings.failure() {
            Some(why) => Err(running(anyhow!("{why}; what was captured before that is counted"))),
            None => Ok(End::Done),
        },
        Input::Bus(listening) => {
            listening.settle();
            match listening.failure() {
                Some(why) => Err(running(anyhow!("{why}; what was received before that is counted"))),
                None => Ok(End::Done),
            }
        }
    }
}

/// Closes the books and tells how it went.
fn finish(progress: &Progress, writers: &mut [Box<dyn Writer>], quiet: bool) -> Result<(), Failed> {
    let ledger = progress.ledger(true).map_err(running)?;
    for writer in writers {
        writer.finish(&ledger).map_err(running)?;
    }
    for link in progress.unknown_links() {
        say!("{NAME}: warning: packets of link type {link} are not decoded and count as non_ip");
    }
    if !quiet {
        say!("{NAME}: {} windows; {}", progress.windows(), ledger.summary());
        let repeated: u64 = progress.inputs().iter().map(|(report, _)| report.repeated).sum();
        if repeated > 0 {
            say!("{NAME}: {repeated} packets came more than once and count once");
        }
    }
    Ok(())
}

fn no_records(error: StateError) -> Failed {
    if error.is_usage() { usage(error) } else { running(error) }
}

/// What has to stay the same while an engine goes on in a log where an earlier run has ended.
fn log_settings(nats: &Settings) -> [(String, String); 3] {
    let subjects = format!("{} {}", nats.single, nats.batches());
    let JetStream { stream, partitions, .. } = &nats.jetstream;
    [
        ("stream", stream.clone()),
        ("number of partitions", partitions.to_string()),
        ("list of subjects", subjects),
    ]
    .map(|(what, value)| (what.to_owned(), value))
}

fn input_kind(flags: &Flags, recorded: bool) -> &'static str {
    match (&flags.iface, recorded) {
        (Some(_), _) => "an interface",
        (None, true) => "the durable log of JetStream",
        (None, false) => "core NATS",
    }
}

/// Where packets come from.
enum Input {
    Interface(Arc<Rings>),
    Bus(Box<Listening>),
}

impl Input {
    fn open(
        flags: &Flags,
        config: &Config,
        lateness: u64,
        division: Division,
        generation: u64,
        earlier: &Earlier,
    ) -> Result<Self, Failed> {
        let nats = &config.nats;
        let Some(interface) = &flags.iface else {
            let rules = Rules {
                windowing: config.windowing,
                lateness,
                silent_after: nats.silent_after,
                // A log may pause while there is more in it.
                pause: Duration::from_secs(if nats.jetstream.enabled { 10 } else { 2 }),
                limit: nats.buffer,
                single: nats.single.clone(),
                began: earlier.manifest.as_ref().map_or_else(live::now, |manifest| manifest.began),
            };
            let positions = earlier.manifest.as_ref().map(|manifest| manifest.accounts.positions.clone());
            let resume = (positions.unwrap_or_default(), earlier.first);
            let engine = generation;
            let identity =
                earlier.manifest.as_ref().map(|manifest| manifest.stream.clone()).unwrap_or_default();
            let listen = Listen { settings: nats, rules, program: NAME, division, engine, resume, identity };
            return Listening::start(listen).map(|bus| Self::Bus(Box::new(bus))).map_err(no_bus);
        };
        let options = Options {
            interface: interface.clone(),
            filter: flags.filter.clone(),
            snaplen: flags.snaplen,
            ring: flags.ring_size,
            promiscuous: !flags.no_promiscuous,
        };
        let rings = Rings::open(&options, division.workers).map_err(usage)?;
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

    fn intake(&self, process: usize) -> Arc<dyn Intake> {
        match self {
            Self::Interface(rings) => Arc::new(Interface { rings: rings.clone(), process }),
            Self::Bus(listening) => listening.intake(),
        }
    }
}

/// Tells of each snapshot that is written.
struct Told {
    quiet: bool,
    prepared: Vec<String>,
}

impl Writer for Told {
    fn prepare(&mut self, snapshot: &Snapshot, _commit: Option<u64>) -> Result<(), SinkError> {
        let packets = snapshot.packets().map(|packets| format!(", {packets} packets")).unwrap_or_default();
        let (window, revision) = (window_name(snapshot.span), snapshot.revision);
        self.prepared.push(format!("window {window} written{packets}, revision {revision}"));
        Ok(())
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        for line in self.prepared.drain(..).filter(|_| !self.quiet) {
            say!("{NAME}: {line}");
        }
        Ok(())
    }

    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        Ok(())
    }
}
