//! `pcap-analyzer`: capture files in, snapshots out.

use anyhow::anyhow;
use clap::Parser;
use dataflows::aggregator::Registry;
use dataflows::window::Windowing;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use netspectra::capture::dealer::{Dealer, InputReport};
use netspectra::capture::filter::Filter;
use netspectra::config::{self, Config, WriterConfig};
use netspectra::engine::{self, Job, Progress};
use netspectra::ledger::Ledger;
use netspectra::report::{HighlightsWriter, Report};
use netspectra::sinks::csv::CsvWriter;
use netspectra::sinks::{Sinks, Writer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Writes a line to standard error; that nobody may be there to read it fails nothing.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

/// Exact traffic analysis of capture files: who talked to whom, how much and when.
#[derive(Parser)]
#[command(version, about)]
struct Flags {
    /// Captures, pcap or pcapng, plain, gzip or zstd (told by content); `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Configuration [default: ./config.yaml where it exists, else the built-in one]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where snapshots go, instead of the csv writer's path
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Count only what passes this libpcap filter, such as 'tcp port 443'
    #[arg(short, long, value_name = "BPF")]
    filter: Option<String>,
    /// Length of a snapshot in event time, such as 60s, or `all`
    #[arg(long, value_name = "DUR", default_value = "all")]
    window: String,
    /// Worker threads, 0 for one a core [default: num_workers of the configuration]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=config::MOST_WORKERS as i64))]
    workers: Option<u16>,
    /// Print the run's summary as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print no summary and no progress, only errors
    #[arg(short, long)]
    quiet: bool,
    /// Say more on standard error
    #[arg(short, long)]
    verbose: bool,
}

/// How a run ended, as an exit status.
enum End {
    Done,
    Damaged,
}

/// Why a run did not end well.
enum Failed {
    /// Nothing was started.
    Usage(anyhow::Error),
    /// It failed while running.
    Running(anyhow::Error),
}

fn main() -> ExitCode {
    // A worker that panics would leave its siblings waiting for ever.
    std::panic::set_hook(Box::new(|panic| {
        say!("pcap-analyzer: internal error, please report: {panic}");
        std::process::exit(1);
    }));
    match run(&Flags::parse()) {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Damaged) => ExitCode::from(3),
        Err(Failed::Running(error)) => {
            say!("pcap-analyzer: {error:#}");
            ExitCode::from(1)
        }
        Err(Failed::Usage(error)) => {
            say!("pcap-analyzer: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn usage(error: impl Into<anyhow::Error>) -> Failed {
    Failed::Usage(error.into())
}

fn running(error: impl Into<anyhow::Error>) -> Failed {
    Failed::Running(error.into())
}

fn run(flags: &Flags) -> Result<End, Failed> {
    let began = Instant::now();
    let stopping = Stopping::on_signals().map_err(running)?;
    raise_open_files();
    let config = load_config(flags).map_err(usage)?;
    let windowing = config::windowing(&flags.window).map_err(|why| usage(anyhow!("--window: {why}")))?;
    let workers = match flags.workers.map_or(config.workers, usize::from) {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    let dealer = Dealer::open(&flags.files).map_err(usage)?;
    if let Some(expression) = &flags.filter {
        let mut filter = Filter::new(expression);
        dealer.first_links().try_for_each(|link| filter.check(link)).map_err(usage)?;
    }
    let folders = output_folders(flags, &config);
    let spill = folders.first().cloned().unwrap_or_else(std::env::temp_dir);
    let highlights = HighlightsWriter::default();
    let mut writers: Vec<Box<dyn Writer>> = vec![Box::new(highlights.clone())];
    for folder in &folders {
        writers.push(Box::new(CsvWriter::open(folder, workers).map_err(running)?));
    }
    if flags.verbose {
        say!("{} inputs, {workers} workers, {} tasks", flags.files.len(), config.tasks.len());
    }

    let progress = Arc::new(Progress::default());
    let lateness = u64::try_from(config.allowed_lateness.as_nanos()).unwrap_or(u64::MAX);
    let filter = flags.filter.clone();
    let job = Arc::new(Job { dealer, filter, tasks: config.tasks, windowing, lateness, workers, spill });
    stopping.begin(job.clone());
    let bar = show_progress(flags, &job, &progress);
    let sinks = Sinks::start(writers, progress.failure.clone()).map_err(running)?;
    let ran = engine::run(job.clone(), &progress, &sinks);
    bar.finish_and_clear();
    if windowing == Windowing::All && progress.windows() == 0 && progress.failure.get().is_none() {
        // Nothing was counted, and that is an answer too.
        let _ = sinks.sender().send((engine::empty_snapshot(&job, 0, 0), Box::new(|| {})));
    }
    let mut writers = sinks.join();
    ran.map_err(|why| running(anyhow!(why)))?;
    if let Some(why) = progress.failure.get() {
        return Err(running(anyhow!("{why}")));
    }
    finish(flags, &job, &progress, &mut writers, &highlights, &folders, began)
}

/// Closes the books and tells how it went.
fn finish(
    flags: &Flags,
    job: &Job,
    progress: &Progress,
    writers: &mut [Box<dyn Writer>],
    highlights: &HighlightsWriter,
    folders: &[PathBuf],
    began: Instant,
) -> Result<End, Failed> {
    let highlights = highlights.take();
    let inputs = job.dealer.reports();
    let counts = progress.counts();
    let ledger = Ledger::new(counts, &inputs, highlights.windows(), job.dealer.was_stopped());
    ledger.balance(highlights.packets()).map_err(running)?;
    for writer in writers {
        writer.finish(&ledger).map_err(running)?;
    }
    for link in progress.unknown_links() {
        say!("pcap-analyzer: warning: packets of link type {link} are not decoded and count as non_ip");
    }
    for input in inputs.iter().filter(|input| input.clamped > 0) {
        let InputReport { name, clamped, .. } = input;
        say!(
            "pcap-analyzer: warning: {name}: the times of {clamped} packets lie outside of 1970 to 2554 and were put at its ends"
        );
    }
    let mut end = End::Done;
    for (input, damage) in inputs.iter().filter_map(|input| Some((input, input.damage.as_ref()?))) {
        say!(
            "pcap-analyzer: {}: {damage}; the results hold the {} packets before that",
            input.name,
            input.packets
        );
        end = End::Damaged;
    }
    let outputs = folders.iter().map(|folder| folder.display().to_string()).collect();
    let report = Report { ledger: &ledger, counts, highlights, elapsed: began.elapsed(), outputs };
    let text = match (flags.json, flags.quiet) {
        (true, _) => format!("{:#}\n", report.json()),
        (false, true) => String::new(),
        (false, false) => report.table(),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads may have read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(running(error)),
        _ => Ok(end),
    }
}

fn load_config(flags: &Flags) -> Result<Config, config::ConfigError> {
    let registry = Registry::default();
    let here = Path::new("config.yaml");
    match &flags.config {
        Some(path) => Config::load(path, &registry),
        None if here.exists() => Config::load(here, &registry),
        None => {
            Config::parse(config::SHIPPED, "built-in config.yaml", &registry, |name| std::env::var(name).ok())
        }
    }
}

/// The folders of the csv writers; `--output` stands for the first.
fn output_folders(flags: &Flags, config: &Config) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        config.writers.iter().map(|WriterConfig::Csv { path }| path.clone()).collect();
    if let (Some(output), Some(first)) = (&flags.output, folders.first_mut()) {
        first.clone_from(output);
    }
    folders
}

/// What SIGINT and SIGTERM do.
#[derive(Clone, Default)]
struct Stopping(Arc<Mutex<Option<Arc<Job>>>>);

impl Stopping {
    /// From now on the first signal ends the inputs, and so the run: gracefully. A second one ends the process.
    fn on_signals() -> std::io::Result<Self> {
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
        let stopping = Self::default();
        let shared = stopping.clone();
        let wait = move || {
            for (number, signal) in signals.forever().enumerate() {
                if number > 0 {
                    std::process::exit(128 + signal);
                }
                match &*shared.0.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(job) => job.dealer.stop(),
                    // Nothing has been received: the inputs are still being opened.
                    None => std::process::exit(0),
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(stopping)
    }

    /// The job that a signal stops.
    fn begin(&self, job: Arc<Job>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
    }
}

/// As many inputs may overlap in time as the system lets this user open.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, the first input that cannot be opened says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// A bar with rate and time left on a terminal; nothing elsewhere.
fn show_progress(flags: &Flags, job: &Arc<Job>, progress: &Arc<Progress>) -> ProgressBar {
    let (_, total) = job.dealer.progress();
    if flags.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}, {msg}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (job, progress, shown) = (job.clone(), progress.clone(), bar.clone());
    let draw = move || {
        while !shown.is_finished() {
            shown.set_position(job.dealer.progress().0);
            shown.set_message(format!("{:.1} M packets", progress.counts().read as f64 / 1e6));
            thread::sleep(Duration::from_millis(100));
        }
    };
    // Without the thread there is no bar, and that is all.
    let _ = thread::Builder::new().name("progress".into()).spawn(draw);
    bar
}
