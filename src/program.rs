//! What the programs share: how a run ends, what signals do, and which configuration is read.

use crate::bus::BusError;
use crate::config::{self, Config, ConfigError, WriterConfig};
use crate::sinks::csv::CsvWriter;
use crate::sinks::{SinkError, Writer};
use dataflows::aggregator::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

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
    std::panic::set_hook(Box::new(move |panic| {
        say!("{name}: internal error, please report: {panic}");
        std::process::exit(1);
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

/// What a signal does, once there is something to stop.
type Stop = Box<dyn Fn() + Send>;

/// What SIGINT and SIGTERM do.
#[derive(Clone, Default)]
pub struct Stopping(Arc<Mutex<Option<Stop>>>);

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
                match &*shared.0.lock().unwrap_or_else(PoisonError::into_inner) {
                    Some(stop) => stop(),
                    // Nothing has been received: the inputs are still being opened.
                    None => std::process::exit(0),
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(stopping)
    }

    /// What a signal does from now on.
    pub fn begin(&self, stop: impl Fn() + Send + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(stop));
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
pub fn load_config(named: Option<&Path>) -> Result<Config, ConfigError> {
    let registry = Registry::default();
    match config_file(named) {
        Some(path) => Config::load(path, &registry),
        None => Config::parse(config::SHIPPED, config::BUILT_IN, &registry, config::environment),
    }
}

/// Worker threads to run: what a flag says, else the configuration; 0 is one a core.
pub fn workers(flag: Option<u16>, configured: usize) -> usize {
    match flag.map_or(configured, usize::from) {
        0 => thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
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
pub fn csv_writers(folders: &[PathBuf], threads: usize) -> Result<Vec<Box<dyn Writer>>, SinkError> {
    folders.iter().map(|folder| Ok(Box::new(CsvWriter::open(folder, threads)?) as Box<dyn Writer>)).collect()
}
