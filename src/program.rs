//! What the programs share: how a run ends, what signals do, and which configuration is read.

use crate::alerts::board::Standing;
use crate::alerts::rule::Rule;
use crate::alerts::{self, Alerts};
use crate::bus::BusError;
use crate::cluster::{self, Cluster, Formed};
use crate::config::{self, ClusterSection, Config, ConfigError, WriterConfig};
use crate::engine::{self, Job, Progress};
use crate::sinks::csv::CsvWriter;
use crate::sinks::{Ended, SinkError, Sinks, Writer};
use crate::state::{Manifest, State};
use anyhow::anyhow;
use crossbeam_channel::Receiver;
use dataflows::aggregator::{Registry, Task};
use dataflows::groups;
use dataflows::key::Mask;
use dataflows::window::Windowing;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Writes a line to standard error; that nobody may be there to read it fails nothing.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All done: exit status 0.
    Done,
    /// Done, but some input was damaged: exit status 3.
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

/// Runs a program and tells how it ended.
pub fn main(name: &'static str, run: impl FnOnce() -> Result<End, Failed>) -> ExitCode {
    // A worker that panics would leave its siblings waiting for ever.
    let said = AtomicBool::new(false);
    std::panic::set_hook(Box::new(move |panic| {
        let lost = thread::current().name().and_then(cluster::lost);
        if !said.swap(true, SeqCst) {
            match lost {
                Some(lost) => {
                    say!("{name}: {lost}");
                    // The others are to notice who was lost before they lose this process too.
                    thread::sleep(cluster::LEAVE);
                }
                None => say!("{name}: internal error, please report: {panic}"),
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
            say!("{name}: {error:#}");
            ExitCode::from(1)
        }
        Err(Failed::Usage(error)) => {
            say!("{name}: {error:#}");
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
    /// From now on the first signal ends the input, and so the run: gracefully. A second one ends the process.
    pub fn on_signals() -> std::io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
        let stopping = Self::default();
        let shared = stopping.clone();
        let wait = move || {
            for (number, signal) in signals.forever().enumerate() {
                if number > 0 {
                    std::process::exit(128 + signal);
                }
                match &mut *shared.lock() {
                    OnSignal::Exit => std::process::exit(0),
                    OnSignal::Wait(stops) => *stops = true,
                    OnSignal::Stop(stop) => stop(),
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(stopping)
    }

    fn lock(&self) -> MutexGuard<'_, OnSignal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    named.or(here.exists().then_some(here))
}

/// Reads the configuration of a program that aggregates.
pub fn load_config(named: Option<&Path>, registry: &Registry) -> Result<Config, ConfigError> {
    match config_file(named) {
        Some(path) => Config::load(path, registry),
        None => Config::parse(config::SHIPPED, config::BUILT_IN, registry, config::environment),
    }
}

/// Checks that all groups can be read back after a restart: the finest key sets of all tasks are those of tasks that
/// count every packet.
pub fn check_recall(tasks: &[Task]) -> anyhow::Result<()> {
    let counted = |mask: &Mask| {
        let mut schemas = tasks.iter().map(|task| task.aggregator.schema());
        schemas.any(|schema| schema.counts_every_packet && schema.key.mask() == *mask)
    };
    let plan = groups::plan(tasks.iter().flat_map(|task| task.aggregator.groups()));
    let root = plan.iter().find(|(mask, parent)| parent.is_none() && !counted(mask));
    let needs = root.and_then(|(mask, _)| tasks.iter().find(|task| task.aggregator.groups().contains(mask)));
    match needs {
        Some(task) => Err(anyhow!(
            "task `{}`: with the durable log its groups are read back from the csv of an `exact` task after a restart, \
             and there is none with all of its fields; add one",
            task.name
        )),
        None => Ok(()),
    }
}

/// Opens what is told of alerts, on the process that commits and where there is anything to tell or to edit.
pub fn alerts(
    settings: &alerts::Settings,
    earlier: Option<Standing>,
    edits: Receiver<Vec<Rule>>,
    commits: bool,
) -> Result<Option<Alerts>, Failed> {
    if !commits || settings.outputs.is_empty() {
        return Ok(None);
    }
    Alerts::open(settings, earlier, edits).map(Some).map_err(usage)
}

/// Worker threads to run: what a flag says, else the configuration; 0 is one a core.
pub fn workers(flag: Option<u16>, configured: usize) -> usize {
    match flag.map_or(configured, usize::from) {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// What programs that aggregate are told about where, how and with whom.
#[derive(clap::Args)]
pub struct Aggregation {
    /// Configuration [default: ./config.yaml where it exists, else the built-in one]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where snapshots go, instead of the csv writer's path
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Worker threads of this process, 0 for one a core [default: num_workers of the configuration]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=config::MOST_WORKERS as i64))]
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
    name: &str,
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
        say!("{name}: cluster of {processes} processes has formed; this is process {}", cluster.process);
    }
    Ok(Some(formed))
}

/// Runs a job to its end and gives back the writers, to be told of the books, and where alerts go, to be finished after that. Only the process that `commits` writes.
pub fn aggregate(
    job: &Arc<Job>,
    progress: &Arc<Progress>,
    writers: Vec<Box<dyn Writer>>,
    (state, alerts): (Option<State>, Option<Alerts>),
    (formed, commits): (Option<Formed>, bool),
) -> Result<Ended, Failed> {
    let sinks = Sinks::start(writers, state, alerts, progress.failure.clone()).map_err(running)?;
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
pub fn stop(job: &Arc<Job>, processes: usize) -> impl Fn() + Send + use<> {
    let job = job.clone();
    move || {
        if processes == 1 {
            job.intake.stop();
        } else {
            job.stopping.store(true, SeqCst);
            job.intake.wake();
        }
    }
}

/// Where a process that writes no snapshots keeps what memory has no room for.
pub fn spill_folder() -> PathBuf {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from);
    // Often /tmp is memory.
    named.unwrap_or_else(|| PathBuf::from("/var/tmp")).canonicalize().unwrap_or_else(|_| std::env::temp_dir())
}

/// The folders of the csv writers; `output` stands for the first.
pub fn output_folders(output: Option<&Path>, config: &Config) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        config.writers.iter().map(|WriterConfig::Csv { path }| path.clone()).collect();
    if let (Some(output), Some(first)) = (output, folders.first_mut()) {
        output.clone_into(first);
    }
    folders
}

/// A csv writer into each folder, on so many threads.
pub fn csv_writers(folders: &[PathBuf], threads: usize) -> Result<Vec<CsvWriter>, SinkError> {
    folders.iter().map(|folder| CsvWriter::open(folder, threads)).collect()
}

/// Has csv writers finish what `last` has committed, and clear away what else a killed run has left.
pub fn recover(writers: Vec<CsvWriter>, last: Option<&Manifest>) -> Result<Vec<Box<dyn Writer>>, SinkError> {
    let recovered = |mut writer: CsvWriter| {
        writer.recover(last)?;
        Ok(Box::new(writer) as Box<dyn Writer>)
    };
    writers.into_iter().map(recovered).collect()
}
