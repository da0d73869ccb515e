//! What the programs share: how a run ends, what signals do, and which configuration is read.

use crate::alerts::board::Standing;
use crate::alerts::rule::Rule;
use crate::alerts::{self, Alerts};
use crate::arguments::Variable;
use crate::bus::{self, BusError};
use crate::cluster::{self, Cluster, Formed};
use crate::config::writers::{Run, WriterConfig};
use crate::config::{self, ClusterSection, Config, ConfigError, Registries};
use crate::engine::{self, Job, Progress, Written};
use crate::sinks::csv;
use crate::sinks::delivery::{Behind, Deliveries, PATIENCE, Retry, Selecting};
use crate::sinks::earlier::{Replaced, Reuse, Told};
use crate::sinks::outbox::{Kept, Place};
use crate::sinks::registry::{Opening, Record, RecordWriter};
use crate::sinks::{Committing, Ended, SinkError, Sinks, Writer};
use crate::state::Manifest;
use crate::{fail, log, memory, say, warn, watchdog};
use anyhow::anyhow;
use clap::builder::{PathBufValueParser, TypedValueParser};
use crossbeam_channel::Receiver;
use dataflows::aggregator::Task;
use dataflows::groups::{self, GroupSet};
use dataflows::window::Windowing;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All done: exit status 0.
    Done,
    /// Done, but some input was damaged, or lost on its way: exit status 3.
    Damaged,
}

/// Why a run did not end well.
#[derive(Debug)]
pub enum Failed {
    /// Nothing was started: exit status 2.
    Usage(anyhow::Error),
    /// It failed while running: exit status 1.
    Running(anyhow::Error),
}

/// A mistake of whoever started the program.
pub fn usage(error: impl Into<anyhow::Error>) -> Failed {
    Failed::Usage(error.into())
}

/// Something that went wrong while it ran.
pub fn running(error: impl Into<anyhow::Error>) -> Failed {
    Failed::Running(error.into())
}

/// The bus cannot be used.
pub fn no_bus(error: BusError) -> Failed {
    if error.is_usage() { usage(error) } else { running(error) }
}

/// A writer cannot be used.
pub fn no_writer(error: SinkError) -> Failed {
    if error.is_usage() { usage(error) } else { running(error) }
}

/// Runs a program and tells how it ended.
pub fn main(name: &'static str, run: impl FnOnce() -> Result<End, Failed>) -> ExitCode {
    if let Err(why) = log::start(name) {
        fail!("{why}");
        return ExitCode::from(2);
    }
    memory::set_name(name);
    memory::give_back_large();
    // A worker that panics would leave its siblings waiting for ever.
    let said = AtomicBool::new(false);
    std::panic::set_hook(Box::new(move |panic| {
        let lost = thread::current().name().and_then(cluster::lost);
        if !said.swap(true, SeqCst) {
            match lost {
                Some(lost) => {
                    fail!("{lost}");
                    // The others are to notice who was lost before they lose this process too.
                    thread::sleep(cluster::LEAVE);
                }
                None => fail!("internal error, please report: {panic}"),
            }
            std::process::exit(1);
        }
        // Another thread has said why, and ends the process.
        thread::park();
    }));
    match run() {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Damaged) => ExitCode::from(3),
        Err(Failed::Running(error)) => {
            fail!("{error:#}");
            ExitCode::from(1)
        }
        Err(Failed::Usage(error)) => {
            // All mistakes of a configuration, a line each.
            format!("{error:#}").lines().for_each(|line| fail!("{line}"));
            ExitCode::from(2)
        }
    }
}

/// What SIGINT and SIGTERM do.
#[derive(Clone, Default)]
pub struct Stopping(Arc<Mutex<OnSignal>>);

#[derive(Default)]
enum OnSignal {
    /// Nothing has been received: the inputs are still being opened.
    #[default]
    Exit,
    /// Others count on this process: it stops as soon as it can do so in order. Whether it is to.
    Wait(bool),
    /// There is something to stop.
    Stop(Box<dyn Fn() + Send>),
}

impl Stopping {
    /// From now on the first signal ends the input, and so the run: gracefully. A second one ends the process. A batch that is
    /// ended before it has read anything says so.
    pub fn on_signals(run: Run) -> std::io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
        let stopping = Self::default();
        let shared = stopping.clone();
        let wait = move || {
            for (number, signal) in signals.forever().enumerate() {
                if number > 0 {
                    std::process::exit(128 + signal);
                }
                // On a thread of its own: a stop that does not return must not keep a second signal from being heard.
                let first = shared.clone();
                let stop = move || first.stop(run);
                if thread::Builder::new().name("stop".into()).spawn(stop).is_err() {
                    shared.stop(run);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(stopping)
    }

    fn lock(&self) -> MutexGuard<'_, OnSignal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what a first signal does now.
    fn stop(&self, run: Run) {
        match &mut *self.lock() {
            OnSignal::Exit => {
                if run == Run::Batch {
                    warn!("interrupted before anything was read");
                }
                std::process::exit(0)
            }
            OnSignal::Wait(stops) => *stops = true,
            OnSignal::Stop(stop) => stop(),
        }
    }

    /// From now on a signal is kept until it is known what it does.
    pub fn wait(&self) {
        *self.lock() = OnSignal::Wait(false);
    }

    /// What a signal does from now on.
    pub fn begin(&self, stop: impl Fn() + Send + 'static) {
        let mut on_signal = self.lock();
        if let OnSignal::Wait(true) = *on_signal {
            stop();
        }
        *on_signal = OnSignal::Stop(Box::new(stop));
    }
}

/// As many files as the system lets this user open.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, the first file that cannot be opened says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The configuration file that was named, else `./config.yaml`; `None` where the built-in text is to be read.
pub fn config_file(named: Option<&Path>) -> Option<&Path> {
    let here = Path::new("config.yaml");
    // A link that leads nowhere is a mistake, not the wish for the built-in text.
    named.or(here.symlink_metadata().is_ok().then_some(here))
}

/// Reads the configuration of a program that aggregates.
pub fn load_config(named: Option<&Path>, registries: &Registries) -> Result<Config, ConfigError> {
    match config_file(named) {
        Some(path) => Config::load(path, registries).map_err(|error| of_file(error, named, path)),
        None => Config::parse(config::SHIPPED, config::BUILT_IN, registries, config::environment),
    }
}

/// What is wrong with a configuration file; whether somebody has named it, too.
pub fn of_file(error: ConfigError, named: Option<&Path>, file: &Path) -> ConfigError {
    match named {
        Some(_) => error,
        None => ConfigError::Unnamed(Box::new(error), file.to_owned()),
    }
}

/// A folder to write into.
fn output(folder: PathBuf) -> Result<PathBuf, String> {
    match folder.to_str() {
        Some("-") => {
            Err("snapshots are files in a folder, not a stream: name a folder (./- is one of that name). \
                    On standard output are --json's summary, and rows of a writer {type: jsonl, path: \"-\"}"
                .into())
        }
        _ => Ok(folder),
    }
}

/// Checks that all groups can be read back after a restart: the finest key sets of all tasks are those of tasks that show
/// them.
fn check_recall(tasks: &[Task]) -> anyhow::Result<()> {
    let shown = |set: &GroupSet| {
        let mut shown = tasks.iter().filter(|task| task.aggregator.shows_groups());
        shown.any(|task| task.aggregator.group_sets().contains(set))
    };
    let plan = groups::plan(tasks.iter().flat_map(|task| task.aggregator.group_sets()));
    let root = plan.iter().find(|(set, parent)| parent.is_none() && !shown(set));
    let needs =
        root.and_then(|(set, _)| tasks.iter().find(|task| task.aggregator.group_sets().contains(set)));
    match needs {
        Some(task) => Err(anyhow!(
            "task `{}`: with the durable log its groups are read back from the csv of an `exact` task after a restart, \
             and there is none with all of its fields; add one",
            task.name
        )),
        None => Ok(()),
    }
}

/// Opens what is told of alerts, on the process that commits and where anything is told or `is_heard` otherwise.
pub fn alerts(
    settings: &alerts::Settings,
    earlier: Option<Standing>,
    edits: Receiver<Vec<Rule>>,
    is_heard: bool,
) -> Result<Option<Alerts>, Failed> {
    match is_heard {
        true => Alerts::open(settings, earlier, edits).map(Some).map_err(usage),
        false => Ok(None),
    }
}

/// Worker threads to run: what a flag says, else the configuration; 0 is one a core.
pub fn workers(flag: Option<u16>, configured: usize) -> usize {
    match flag.map_or(configured, usize::from) {
        0 => thread::available_parallelism().map_or(1, usize::from).min(config::MOST_WORKERS),
        workers => workers,
    }
}

/// Reads `--workers`.
fn worker_threads(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(workers) if usize::from(workers) <= config::MOST_WORKERS => Ok(workers),
        _ => Err(format!(
            "a number from 1 to {}, or 0 for one per core; for more workers run more processes (-n)",
            config::MOST_WORKERS
        )),
    }
}

// What programs that aggregate are told about where, how and with whom. No documentation: clap would take it for the
// program's own sentence.
#[derive(clap::Args)]
#[allow(missing_docs)]
pub struct Aggregation {
    /// Configuration [default: ./config.yaml where it exists, else the built-in one]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where snapshots go, instead of the csv writer's path
    #[arg(short, long, value_name = "DIR", value_parser = PathBufValueParser::new().try_map(output))]
    pub output: Option<PathBuf>,
    /// Worker threads of this process, 0 for one a core [default: num_workers of the configuration]
    #[arg(short, long, value_name = "N", value_parser = worker_threads)]
    pub workers: Option<u16>,
    /// Processes of the cluster [default: cluster.processes of the configuration, else 1]
    #[arg(short = 'n', long, value_name = "N", env = "NETSPECTRA_PROCESSES", hide_env_values = true)]
    pub processes: Option<usize>,
    /// Which of them this one is, from 0
    #[arg(short = 'p', long, value_name = "I", env = "NETSPECTRA_PROCESS", hide_env_values = true)]
    pub process: Option<usize>,
    /// Where the processes listen, host:port a line [default: 127.0.0.1:2101, :2102, ...]
    #[arg(long, value_name = "FILE", env = "NETSPECTRA_HOSTFILE", hide_env_values = true)]
    pub hostfile: Option<PathBuf>,
    /// How long to wait for the other processes at the start [default: cluster.wait of the configuration, else 60s]
    #[arg(long, value_name = "DUR", value_parser = config::duration)]
    pub wait: Option<Duration>,
    /// Say only what went wrong
    #[arg(short, long)]
    pub quiet: bool,
    /// Say more on standard error
    #[arg(short, long)]
    pub verbose: bool,
}

/// How long the processes of a cluster wait for each other where nobody says otherwise.
const WAIT: Duration = Duration::from_secs(60);

impl Aggregation {
    /// The cluster that this process belongs to; a process alone is one of one.
    pub fn cluster(&self, section: &ClusterSection) -> anyhow::Result<Cluster> {
        let processes = self.processes.or(section.processes).unwrap_or(1);
        let process = self.process.or(section.process);
        if !(1..=cluster::MOST_PROCESSES).contains(&processes) {
            return Err(anyhow!("--processes: {processes} processes; 1 to {}", cluster::MOST_PROCESSES));
        }
        let hostfile = self.hostfile.as_deref().or(section.hostfile.as_deref());
        let hosts = cluster::hosts(hostfile.filter(|_| processes > 1), processes)?;
        let process = match process {
            Some(process) if process >= processes => {
                return Err(anyhow!(
                    "--process: there is no process {process} of {processes}; they count from 0"
                ));
            }
            None if processes > 1 => {
                return Err(anyhow!("--process: which of the {processes} processes is this?"));
            }
            process => process.unwrap_or(0),
        };
        Ok(Cluster { process, hosts, wait: self.wait.or(section.patience).unwrap_or(WAIT) })
    }
}

/// What all processes of a cluster have to agree on, and all runs that go on where another has ended.
pub fn settings(windowing: Windowing, config: &Config) -> cluster::Settings {
    let window = match windowing {
        Windowing::All => "all".to_owned(),
        Windowing::Every(nanos) => format!("{:?}", Duration::from_nanos(nanos)),
    };
    let lateness = format!("{:?}", config.allowed_lateness);
    let pairs = [("window", window), ("allowed lateness", lateness), ("tasks", config.task_texts.join(" "))];
    pairs.map(|(what, value)| (what.to_owned(), value)).to_vec()
}

/// What they have to agree on beside that.
pub fn add_cluster_settings(
    settings: &mut cluster::Settings,
    program: &str,
    cluster: &Cluster,
    workers: usize,
) {
    let order = if cfg!(target_endian = "little") { "little-endian" } else { "big-endian" };
    settings.extend(
        [
            ("program", format!("{program} {}", env!("CARGO_PKG_VERSION"))),
            ("workers", workers.to_string()),
            ("hosts", cluster.hosts.join(" ")),
            ("order of bytes", order.to_owned()),
        ]
        .map(|(what, value)| (what.to_owned(), value)),
    );
}

/// Waits for the other processes; `None` where there are none.
pub fn form(
    cluster: &Cluster,
    settings: &cluster::Settings,
    known: Vec<u8>,
    (stopping, quiet): (&Stopping, bool),
) -> Result<Option<Formed>, Failed> {
    let processes = cluster.hosts.len();
    if processes == 1 {
        return Ok(None);
    }
    let formed = cluster.form(settings, known);
    let formed = formed.map_err(|error| if error.is_usage() { usage(error) } else { running(error) })?;
    stopping.wait();
    if !quiet {
        say!("cluster of {processes} processes has formed; this is process {}", cluster.process);
    }
    Ok(Some(formed))
}

/// Runs a job to its end and gives back what is to be told of the books. Only the process that `commits` writes.
pub fn aggregate(
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    committing: Committing,
    (formed, commits): (Option<Formed>, bool),
    kind: Run,
) -> Result<Ended, Failed> {
    watchdog::start(job, progress, kind).map_err(running)?;
    let sinks = Sinks::start(committing, progress.failure.clone()).map_err(running)?;
    let ran = engine::run(job, progress, commits.then(|| sinks.sender()), formed);
    if commits {
        engine::answer_nothing(job, progress, &sinks.sender());
    }
    let ended = sinks.join();
    ran.map_err(|why| running(anyhow!(why)))?;
    match progress.failure.get() {
        Some(why) => Err(running(anyhow!("{why}"))),
        None => Ok(ended),
    }
}

/// Ends the inputs of a job, in all processes.
pub fn stop(job: &Arc<Job>, progress: &Arc<Progress>, processes: usize) -> impl Fn() + Send + use<> {
    let (job, progress) = (job.clone(), progress.clone());
    move || {
        progress.failure.set_ending();
        if processes == 1 {
            job.intake.stop();
        } else {
            job.stopping.store(true, SeqCst);
            job.intake.wake();
        }
    }
}

/// The variable that names the folder of [`spill_folder`].
pub const TMPDIR: Variable =
    ("TMPDIR", "folder for temporary files when no csv is written [default: /var/tmp]");

/// Where a process that writes no snapshots keeps what memory has no room for.
pub fn spill_folder() -> PathBuf {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from);
    // Often /tmp is memory.
    named.unwrap_or_else(|| PathBuf::from("/var/tmp")).canonicalize().unwrap_or_else(|_| std::env::temp_dir())
}

/// Who writes snapshots.
pub struct Writing {
    /// The writer that is the record of what is committed, if there is any.
    record: Option<WriterConfig>,
    /// All others.
    behind: Vec<WriterConfig>,
    run: Run,
    windowing: Windowing,
    /// Where writers into folders tell of what they have replaced.
    told: Told,
}

impl Writing {
    /// As configured, with `output` for the record's folder; for that of csv where no record is configured.
    pub fn new(output: Option<&Path>, config: &Config, run: Run) -> Self {
        let mut behind = config.writers.clone();
        let first = behind.iter().position(|writer| writer.target.record().is_some());
        let mut record = first.map(|first| behind.remove(first));
        if let Some(output) = output {
            let csv = || WriterConfig::new(csv::TYPE, csv::into_folder(output));
            let record = record.get_or_insert_with(csv);
            if let Some(moved) = record.target.record().map(|target| target.moved(output)) {
                record.target = moved;
            }
        }
        Self { record, behind, run, windowing: config.windowing, told: Told::default() }
    }

    /// What such a run does about the windows of an earlier one.
    fn reuse(&self) -> Reuse {
        match self.run {
            Run::Batch => Reuse::Replace(self.told.clone()),
            Run::Live => Reuse::Continue(Some(self.windowing)),
        }
    }

    /// What writers have replaced, once the run has ended.
    pub fn replaced(&self) -> Vec<Replaced> {
        self.told.take()
    }

    /// All of them.
    fn writers(&self) -> impl Iterator<Item = &WriterConfig> {
        self.record.iter().chain(&self.behind)
    }

    /// Where the record writes.
    fn record(&self) -> Option<&dyn Record> {
        self.record.as_ref().and_then(|writer| writer.target.record())
    }

    /// The record's name, and how it is tried again.
    pub fn named(&self) -> (String, Retry) {
        let record = self.record.as_ref();
        let none = Retry { first: Duration::ZERO, most: Duration::ZERO, give_up: Some(Duration::ZERO) };
        let retry = record.map_or(none, |writer| writer.retry(self.run, true));
        (record.map(|writer| writer.name.clone()).unwrap_or_default(), retry)
    }

    /// All writers as they run, secrets hidden.
    pub fn resolved(&self) -> serde_json::Value {
        let record = self.record.iter().map(|writer| writer.resolved(self.run, true));
        record.chain(self.behind.iter().map(|writer| writer.resolved(self.run, false))).collect()
    }

    /// Where they write, in a few words each.
    pub fn describe(&self) -> Vec<String> {
        self.writers().map(|writer| writer.target.describe()).collect()
    }

    /// Whether lines for programs go to standard output.
    pub fn is_on_stdout(&self) -> bool {
        self.behind.iter().any(|writer| writer.target.is_on_stdout())
    }

    /// Whether alerts are heard by a writer.
    pub fn hears_alerts(&self) -> bool {
        self.behind.iter().any(|writer| writer.target.hears_alerts())
    }

    /// Where what memory has no room for is kept.
    pub fn spill(&self, commits: bool) -> PathBuf {
        let folder = self.record().map(Record::folder).filter(|_| commits);
        folder.map_or_else(spill_folder, Path::to_owned)
    }

    /// Reads back what the record has written, where there is one; see [`Record::reader`].
    pub fn reader(&self, windowing: Windowing, counting: Option<Arc<str>>) -> Option<Arc<dyn Written>> {
        self.record().map(|record| record.reader(windowing, counting))
    }

    /// Opens the record, where there is one, on so many threads; it has to recover before it is written to.
    pub fn open_record(&self, threads: usize) -> Result<Option<OpenRecord>, SinkError> {
        let Some((config, record)) = self.record.as_ref().zip(self.record()) else { return Ok(None) };
        let writer = record.open_record(threads)?;
        Ok(Some(OpenRecord { writer, tasks: config.tasks.clone(), reuse: self.reuse() }))
    }

    /// Opens the other writers and starts their threads. What is wrong with the configuration is refused; a server that
    /// is away is tried again while the job runs.
    pub fn start_others(
        &self,
        (job, progress): (&Arc<Job>, &Arc<Progress>),
        nats: &bus::Settings,
        (program, began): (&'static str, u64),
        kept: Option<Kept>,
    ) -> Result<Deliveries, Failed> {
        let failed = |error: SinkError| if error.is_usage() { usage(error) } else { running(error) };
        let mut behind = Vec::new();
        for config in &self.behind {
            let place = Place {
                name: config.name.clone(),
                required: config.required,
                every: config.every,
                max_behind: config.max_behind,
            };
            let opening = Opening {
                name: &config.name,
                tasks: config.selected(job.schemas()),
                threads: job.workers,
                sync: kept.is_some(),
                program,
                began,
                nats,
                reuse: self.reuse(),
            };
            let destination = config.target.open(&opening).map_err(failed)?;
            let (kind, tasks, retry) = (config.kind, config.tasks.clone(), config.retry(self.run, false));
            behind.push(Behind { place, kind, tasks, retry, destination });
        }
        let patience = (self.run == Run::Live).then_some(PATIENCE);
        let failure = progress.failure.clone();
        Deliveries::start(behind, (kept, &job.spill, job.schemas()), patience, failure).map_err(running)
    }

    /// Asks all servers whether they can be written to, and writes nothing.
    pub fn check(&self, tasks: &[Task], nats: &bus::Settings, program: &'static str) -> Vec<SinkError> {
        let check = |writer: &WriterConfig| {
            let tasks = writer.selected(engine::schemas(tasks));
            let name = &writer.name;
            let reuse = Reuse::Continue(None);
            writer.target.check(&Opening {
                name,
                tasks,
                threads: 1,
                sync: false,
                program,
                began: 0,
                nats,
                reuse,
            })
        };
        self.writers().filter_map(|writer| check(writer).err()).collect()
    }
}

/// The record, opened.
pub struct OpenRecord {
    writer: Box<dyn RecordWriter>,
    tasks: Option<BTreeSet<Arc<str>>>,
    reuse: Reuse,
}

impl OpenRecord {
    /// Finishes what `last` has committed, and clears away what else a killed run has left.
    pub fn recover(self, last: Option<&Manifest>) -> Result<Box<dyn Writer>, SinkError> {
        let Self { mut writer, tasks, reuse } = self;
        writer.recover(last)?;
        writer.reuse(reuse)?;
        Ok(match tasks {
            Some(tasks) => Box::new(Selecting { tasks, writer }),
            None => writer,
        })
    }
}

/// The folder of the record where commits are recorded: it has to hold all that is read back from it.
pub fn record(writing: &Writing, tasks: &[Task], recorded: bool) -> anyhow::Result<Option<PathBuf>> {
    if !recorded {
        return Ok(None);
    }
    let Some((config, record)) = writing.record.as_ref().zip(writing.record()) else {
        let why = "with the durable log there has to be a csv writer: beside its folder is the record of what is committed";
        return Err(anyhow!("writers: {why}"));
    };
    if config.tasks.is_some() {
        return Err(anyhow!("writer `{}`: with the durable log it has to be given all tasks", config.name));
    }
    check_recall(tasks)?;
    Ok(Some(record.folder().to_owned()))
}
