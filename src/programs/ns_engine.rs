//! `ns-engine`: packets from NATS, or straight from an interface, to snapshots.

use super::view::{self, Heard, Showing};
use crate::alerts::{Alerts, edits};
use crate::arguments::{self, Habit};
use crate::capture::live::{self, Options};
use crate::cluster::Cluster;
use crate::config::writers::Run;
use crate::config::{self, Config, Registries};
use crate::engine::{Earlier, Job, Progress};
use crate::http::{self, Server, Settings as HttpSettings};
use crate::intake::interface::{self, DEFAULT_RING, DEFAULT_SNAPLEN, SNAPLEN};
use crate::intake::log::Resume;
use crate::intake::nats;
use crate::intake::registry::{InputConfig, InputError, Opening};
use crate::ledger::{Ledger, Losses};
use crate::losses;
use crate::non_ip;
use crate::program::{self, Aggregation, End, Failed, Stopping, Writing, running, usage};
use crate::sinks::delivery::Deliveries;
use crate::sinks::outbox::Kept;
use crate::sinks::text::window_name;
use crate::sinks::{Committing, Ended, Failure, SinkError, Writer};
use crate::state::{Manifest, State, StateError};
use crate::{fail, say, warn};
use anyhow::{Context, anyhow};
use clap::Parser;
use dataflows::field::Extension;
use dataflows::rows::Snapshot;
use serde_json::json;
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const NAME: &str = "ns-engine";

const AFTER_HELP: &str = "\
Examples:
  ns-engine --iface eth0 --window 10s -o out     capture here, a folder every ten seconds
  ns-engine --nats nats://bus:4222 -o out        what probes publish
  ns-engine -c engine.yaml --jetstream --check   try configuration and servers, start nothing";

/// What users of other programs try.
const HABITS: &[Habit] = &[
    ("-r", "captures are read by pcap-analyzer FILE..., or published by ns-probe --read FILE"),
    ("--read", "captures are read by pcap-analyzer FILE..., or published by ns-probe --read FILE"),
    ("-R", "captures are read by pcap-analyzer FILE..., or published by ns-probe --read FILE"),
    ("-nn", "names are never resolved; leave it out (-n N is the number of processes)"),
    ("-n", "names are never resolved; leave it out (-n N is the number of processes)"),
    (
        "--processes",
        "names are never resolved, so tcpdump's -n is not needed; here -n N is the number of processes",
    ),
    (
        "-w",
        "-o DIR writes snapshots into a folder; ns-probe -w FILE keeps frames (-w N is the number of workers)",
    ),
    (
        "--workers",
        "-o DIR writes snapshots into a folder; ns-probe -w FILE keeps frames (-w N is the number of workers)",
    ),
    ("-p", "--no-promiscuous (-p N is the number of this process)"),
    ("--process", "--no-promiscuous (-p N is the number of this process)"),
    ("-A", "payloads are not shown; the tables count packets and bytes by key"),
    ("-X", "payloads are not shown; the tables count packets and bytes by key"),
    ("-x", "payloads are not shown; the tables count packets and bytes by key"),
    ("-t", "times are RFC 3339, UTC; --window 60s sets the length of windows (nfcapd -t)"),
    ("-l", "-o DIR says where snapshots go"),
    ("-D", "ns-probe --list names the interfaces"),
    ("-B", "--ring-size sets the memory of the kernel's rings, such as 64MiB"),
    ("-vv", "-v says more, NETSPECTRA_LOG=debug yet more"),
    ("-F", "write the expression behind -f, such as -f \"$(cat FILE)\""),
];

/// Exact traffic analysis of live links: packets from probes over NATS, or from an interface of this machine.
#[derive(Parser)]
#[command(name = NAME, version, after_help = AFTER_HELP)]
struct Flags {
    /// Length of a snapshot in event time, such as 60s, or `all` [default: window of the configuration]
    #[arg(long, value_name = "DUR")]
    window: Option<String>,
    /// NATS servers, separated by commas [default: inputs of the configuration, else its nats.url]
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
    #[arg(short, long, value_name = "N", default_value_t = DEFAULT_SNAPLEN, requires = "iface", value_parser = clap::value_parser!(u32).range(SNAPLEN))]
    snaplen: u32,
    /// Memory of the kernel's rings, over all workers
    #[arg(long, value_name = "SIZE", default_value = DEFAULT_RING, value_parser = config::size, requires = "iface")]
    ring_size: u64,
    /// Do not ask the interface for frames to other hosts
    #[arg(long, requires = "iface")]
    no_promiscuous: bool,
    /// Answer over HTTP here: metrics, health, the latest windows [default: http.listen of the configuration, else not]
    #[arg(long, value_name = "ADDR", value_parser = config::http::address)]
    http: Option<SocketAddr>,
    /// Try the configuration and its connections, print it as it would run, and start nothing
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    how: Aggregation,
}

/// Runs the program with these aggregators, inputs and writers, and with arguments, the first of which is its own name.
pub fn main(registries: &Registries, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let flags: Flags = arguments::parse(arguments, HABITS, &[program::TMPDIR]);
    program::main(NAME, || run(&flags, registries))
}

fn run(flags: &Flags, registries: &Registries) -> Result<End, Failed> {
    let how = &flags.how;
    let stopping = Stopping::on_signals(Run::Live).map_err(running)?;
    program::raise_open_files();
    let mut config = program::load_config(how.config.as_deref(), registries).map_err(usage)?;
    if let Some(window) = &flags.window {
        config.windowing = config::windowing(window).map_err(|why| usage(anyhow!("--window: {why}")))?;
    }
    if let Some(url) = &flags.nats {
        config.nats.servers = config::nats::servers(url).map_err(|why| usage(anyhow!("--nats: {why}")))?;
    }
    config.nats.jetstream.enabled |= flags.jetstream;
    let cluster = how.cluster(&config.cluster).map_err(usage)?;
    // Others than the one that commits know little, and may be on the same machine.
    config.http.listen = flags.http.or(config.http.listen.filter(|_| cluster.process == 0));
    let http = config.http.settings();
    http.iter().try_for_each(HttpSettings::check).map_err(usage)?;
    let (processes, commits) = (cluster.hosts.len(), cluster.process == 0);
    let windowing = config.windowing;
    let workers = program::workers(how.workers, config.workers);
    let writing = Writing::new(how.output.as_deref(), &config, Run::Live);
    let chosen = chosen(flags, &config);
    let source = &chosen.source;
    let recorded = source.is_log();
    let record = program::record(&writing, &config.tasks, recorded).map_err(usage)?;
    if flags.check {
        return check(&chosen, &config, &writing, (workers, &cluster));
    }

    let mut settings = program::settings(windowing, &config);
    if recorded {
        settings.extend(source.settings());
    }
    let mut earlier = Earlier::default();
    let (mut state, mut writers) = (None, Vec::new());
    // A process alone that goes on from nowhere makes no folder before it knows that it can begin.
    let early = recorded || processes > 1;
    if commits && early {
        // The folder is ours before its records are read.
        let csv = writing.open_record(workers).map_err(running)?;
        let mut last = None;
        if let Some(folder) = &record {
            let open = State::open(folder).map_err(no_records)?;
            last = open.last(&settings).map_err(no_records)?;
            earlier.retired =
                last.iter().try_fold(Vec::new(), |_, last| open.retired(last)).map_err(no_records)?.into();
            state = Some(open);
            earlier.manifest =
                Some(last.clone().unwrap_or_else(|| Manifest::new(settings.clone(), live::now())));
        }
        writers.extend(csv.map(|csv| csv.recover(last.as_ref())).transpose().map_err(program::no_writer)?);
    }
    let known = known_of(&earlier).map_err(running)?;
    program::add_cluster_settings(&mut settings, NAME, &cluster, workers);
    if !recorded {
        settings.extend(source.settings());
    }
    settings.insert(0, ("input".into(), source.describe()));
    let formed = program::form(&cluster, &settings, known, (&stopping, how.quiet))?;
    if let Some(formed) = formed.as_ref().filter(|_| !commits) {
        (earlier.manifest, earlier.retired) = read_known(&formed.known).map_err(running)?;
    }
    let generation = formed.as_ref().map_or_else(live::now, |formed| formed.generation);
    if let Some(manifest) = &mut earlier.manifest {
        earlier.first = manifest.first();
        if manifest.number > 0 && commits && !how.quiet {
            let until = manifest.epoch.map_or_else(|| "-".into(), |epoch| window_name(windowing.span(epoch)));
            say!("going on behind commit {}, window {until}", manifest.number);
        }
    }
    if record.is_some() && commits {
        let counting = config.tasks.iter().find(|task| task.aggregator.schema().counts_every_packet);
        earlier.recall = writing.reader(windowing, counting.map(|task| task.name.clone()));
    }

    let lateness = u64::try_from(config.allowed_lateness.as_nanos()).unwrap_or(u64::MAX);
    let extension = config.plan.extension();
    let opening = Opening { lateness, generation, ..opening(&config, &extension, (workers, &cluster)) };
    let input = source.open(&going_on(opening, &earlier)).map_err(no_input)?;
    if let Some(manifest) = &mut earlier.manifest {
        input.identity().clone_into(&mut manifest.stream);
    }
    if !early {
        let csv = writing.open_record(workers).map_err(running)?;
        writers.extend(csv.map(|csv| csv.recover(None)).transpose().map_err(program::no_writer)?);
    }
    let intake = input.clone().intake();
    writers.push(Box::new(Told { quiet: how.quiet, prepared: Vec::new() }));
    let heard = http.as_ref().map(|http| Arc::new(Heard::new(http.memory)));
    writers.extend(
        heard.clone().map(|heard| Box::new(Showing { heard, prepared: Vec::new() }) as Box<dyn Writer>),
    );
    if how.verbose {
        say!("{workers} workers, {} tasks", config.tasks.len());
    }
    let failure = if processes > 1 { Failure::ending() } else { Failure::default() };
    let progress = Arc::new(Progress::new(failure));
    let standing = earlier.manifest.as_ref().and_then(|manifest| manifest.alerts.clone());
    let is_heard = !config.alerts.outputs.is_empty() || writing.hears_alerts() || http.is_some();
    let judges = commits && is_heard;
    let edited = match program::config_file(how.config.as_deref()).filter(|_| judges) {
        Some(file) => edits::follow(file, registries, &config),
        None => edits::ignore(),
    };
    let edited = edited.map_err(running)?;
    let mut alerts = program::alerts(&config.alerts, Some(standing.unwrap_or_default()), edited, judges)?;
    if let Some((alerts, heard)) = alerts.as_mut().zip(heard.clone()) {
        heard.know(alerts.active());
        alerts.tell_also(Box::new(move |events| heard.hear(events)));
    }
    let left_out = alerts.as_ref().map(Alerts::left_out).unwrap_or_default();
    let job = Arc::new(Job {
        intake,
        tasks: config.tasks,
        extension,
        windowing,
        lateness,
        workers,
        spill: writing.spill(commits),
        grace: config.nats.silent_after,
        earlier,
        stopping: AtomicBool::new(false),
    });
    stopping.begin(program::stop(&job, &progress, processes));
    say!("{}", input.describe());
    let kept = state.as_ref().zip(job.earlier.manifest.as_ref());
    let kept =
        kept.map(|(state, manifest)| Kept { folder: state.folder().join("outbox"), commit: manifest.number });
    let deliveries = match commits {
        true => {
            let began = job.earlier.manifest.as_ref().map_or(generation, |manifest| manifest.began);
            writing.start_others((&job, &progress), &config.nats, (NAME, began), kept)?
        }
        false => Deliveries::default(),
    };
    let server = match http.zip(heard) {
        Some((settings, heard)) => {
            let (job, progress, writers) = (job.clone(), progress.clone(), deliveries.watch());
            let (input, began) = (input.clone(), live::now());
            let view = view::Engine { job, progress, writers, input, heard, left_out, began };
            let server = http::start(settings, Arc::new(view)).map_err(usage)?;
            say!("answering at http://{}", server.address());
            Some(server)
        }
        None => None,
    };
    losses::start(&job, &progress, input.look_every()).map_err(running)?;
    let recorded = job.earlier.manifest.clone().filter(|manifest| manifest.number > 0);
    let committing = Committing { writers, record: writing.named(), deliveries, state, recorded, alerts };
    let ended = program::aggregate(&job, &progress, committing, (formed, commits), Run::Live);
    server.into_iter().for_each(Server::stop);
    let mut ended = ended?;
    if commits {
        finish(&progress, &mut ended, (!input.has_ended(), how.quiet))?;
        ended.alerts.finish();
    }
    input.settle();
    match input.failure() {
        Some(why) => Err(running(anyhow!("{why}"))),
        None => Ok(End::Done),
    }
}

/// Closes the books and tells how it went.
fn finish(progress: &Progress, ended: &mut Ended, (interrupted, quiet): (bool, bool)) -> Result<(), Failed> {
    let ledger = progress.ledger(interrupted).map_err(running)?;
    ended.finish(&ledger).map_err(running)?;
    for (name, counts, noticed) in progress.noticed() {
        non_ip::warnings(&name, counts, &noticed, None).iter().for_each(|warning| warn!("{warning}"));
    }
    for (report, _) in progress.inputs() {
        report.notes.iter().for_each(|note| warn!("{}: {note}", report.name));
        let lost = report.losses.and_then(Losses::places);
        lost.iter().for_each(|lost| warn!("{}: {lost}", report.name));
    }
    if !quiet {
        say!("{} windows; {}", progress.windows(), ledger.summary());
        let repeated: u64 = progress.inputs().iter().map(|(report, _)| report.repeated).sum();
        if repeated > 0 {
            say!("{repeated} packets came more than once and count once");
        }
    }
    Ok(())
}

/// Tries what the configuration names, prints it as it would run, and starts nothing.
fn check(
    chosen: &InputConfig,
    config: &Config,
    writing: &Writing,
    (workers, cluster): (usize, &Cluster),
) -> Result<End, Failed> {
    let hosts = (cluster.hosts.len() > 1).then_some(&cluster.hosts);
    let processes = json!({"processes": cluster.hosts.len(), "process": cluster.process, "hosts": hosts});
    let resolved = config.resolved(workers, Some(chosen), processes, writing.resolved());
    let text = serde_saphyr::to_string(&resolved).map_err(running)?;
    std::io::stdout().write_all(text.as_bytes()).map_err(running)?;
    let mut wrong: Vec<String> = Vec::new();
    let extension = config.plan.extension();
    let opening = opening(config, &extension, (workers, cluster));
    wrong.extend(chosen.source.check(&opening).err().map(|error| error.to_string()));
    wrong.extend(writing.check(&config.tasks, &config.nats, NAME).into_iter().map(|error| error.to_string()));
    let http = config.http.settings();
    wrong.extend(http.and_then(|http| http::check(&http).err()).map(|error| error.to_string()));
    match wrong.pop() {
        None => Ok(End::Done),
        Some(last) => {
            wrong.iter().for_each(|why| fail!("{why}"));
            Err(usage(anyhow!("{last}")))
        }
    }
}

fn no_records(error: StateError) -> Failed {
    if error.is_usage() { usage(error) } else { running(error) }
}

/// What process 0 tells the others of earlier runs: the manifest, the records of retired runs, and their length.
fn known_of(earlier: &Earlier) -> Result<Vec<u8>, serde_json::Error> {
    let mut known = serde_json::to_vec(&earlier.manifest)?;
    known.extend_from_slice(&earlier.retired);
    known.extend_from_slice(&(earlier.retired.len() as u64).to_le_bytes());
    Ok(known)
}

fn read_known(known: &[u8]) -> Result<(Option<Manifest>, Arc<[u8]>), anyhow::Error> {
    let parts = known.split_last_chunk().and_then(|(rest, length)| {
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        rest.split_at_checked(rest.len().checked_sub(length)?)
    });
    let (manifest, retired) = parts.context("what process 0 knows of earlier runs is cut off")?;
    Ok((serde_json::from_slice(manifest)?, retired.into()))
}

/// What is read: what a flag names, else the configuration; else what probes publish.
fn chosen(flags: &Flags, config: &Config) -> InputConfig {
    if let Some(interface) = &flags.iface {
        return interface::configured(Options {
            interface: interface.clone(),
            filter: flags.filter.clone(),
            snaplen: flags.snaplen,
            ring: flags.ring_size,
            promiscuous: !flags.no_promiscuous,
            names_interfaces: false,
        });
    }
    let configured = config.input.clone().filter(|_| flags.nats.is_none() && !flags.jetstream);
    configured.unwrap_or_else(|| nats::configured(&config.nats))
}

/// What an input is tried with: as if there had been no run before.
fn opening<'a>(
    config: &Config,
    extension: &'a Extension,
    (workers, cluster): (usize, &Cluster),
) -> Opening<'a> {
    Opening {
        program: NAME,
        windowing: config.windowing,
        lateness: 0,
        extension,
        process: cluster.process,
        processes: cluster.hosts.len(),
        workers,
        generation: 0,
        began: live::now(),
        resume: Resume::default(),
        identity: "",
    }
}

/// What it is opened with, to go on from earlier runs.
fn going_on<'a>(opening: Opening<'a>, earlier: &'a Earlier) -> Opening<'a> {
    let (first, retired) = (earlier.first, earlier.retired.clone());
    let Some(manifest) = &earlier.manifest else {
        return Opening { resume: Resume { first, retired, ..Resume::default() }, ..opening };
    };
    let positions = manifest.accounts.positions.clone();
    let resume = Resume { positions, first, retired };
    Opening { began: manifest.began, resume, identity: &manifest.stream, ..opening }
}

fn no_input(error: InputError) -> Failed {
    if error.is_usage() { usage(error) } else { running(error) }
}

/// Tells of each snapshot that is written.
struct Told {
    quiet: bool,
    prepared: Vec<String>,
}

impl Writer for Told {
    fn prepare(&mut self, snapshot: &Arc<Snapshot>, _commit: Option<u64>) -> Result<(), SinkError> {
        let packets = snapshot.packets().map(|packets| format!(", {packets} packets")).unwrap_or_default();
        let (window, revision) = (window_name(snapshot.span), snapshot.revision);
        self.prepared.push(format!("window {window} written{packets}, revision {revision}"));
        Ok(())
    }

    fn publish(&mut self) -> Result<(), SinkError> {
        for line in self.prepared.drain(..).filter(|_| !self.quiet) {
            say!("{line}");
        }
        Ok(())
    }

    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_processes_read_what_process_0_knows_and_refuse_what_is_cut_off() {
        let manifest = Some(Manifest::new(vec![("window".into(), "1s".into())], 7));
        let earlier = Earlier { manifest, retired: vec![1, 2, 3, b'}'].into(), ..Earlier::default() };
        let known = known_of(&earlier).expect("known");
        let (manifest, retired) = read_known(&known).expect("read");
        assert_eq!((manifest.expect("a manifest").began, &*retired), (7, &*earlier.retired));
        let (manifest, retired) = read_known(&known_of(&Earlier::default()).expect("known")).expect("read");
        assert!(manifest.is_none() && retired.is_empty());
        for cut in [0, 5, known.len() - 1] {
            assert!(read_known(&known[..cut]).is_err(), "{cut}");
        }
    }
}
