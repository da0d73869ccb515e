//! `pcap-analyzer`: capture files in, snapshots out.

use anyhow::anyhow;
use clap::Parser;
use dataflows::window::Windowing;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use netspectra::capture::dealer::Dealer;
use netspectra::capture::filter::Filter;
use netspectra::config;
use netspectra::engine::{self, Job, Progress};
use netspectra::intake::frames::Files;
use netspectra::ledger::{InputReport, Ledger};
use netspectra::program::{self, End, Failed, Stopping, running, usage};
use netspectra::report::{HighlightsWriter, Report};
use netspectra::say;
use netspectra::sinks::{Sinks, Writer};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

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

fn main() -> ExitCode {
    let flags = Flags::parse();
    program::main("pcap-analyzer", || run(&flags))
}

fn run(flags: &Flags) -> Result<End, Failed> {
    let began = Instant::now();
    let stopping = Stopping::on_signals().map_err(running)?;
    program::raise_open_files();
    let config = program::load_config(flags.config.as_deref()).map_err(usage)?;
    let windowing = config::windowing(&flags.window).map_err(|why| usage(anyhow!("--window: {why}")))?;
    let workers = program::workers(flags.workers, config.workers);
    let dealer = Arc::new(Dealer::open(&flags.files).map_err(usage)?);
    if let Some(expression) = &flags.filter {
        let mut filter = Filter::new(expression);
        dealer.first_links().try_for_each(|link| filter.check(link)).map_err(usage)?;
    }
    let folders = program::output_folders(flags.output.as_deref(), &config);
    let spill = folders.first().cloned().unwrap_or_else(std::env::temp_dir);
    let highlights = HighlightsWriter::default();
    let mut writers: Vec<Box<dyn Writer>> = vec![Box::new(highlights.clone())];
    writers.extend(program::csv_writers(&folders, workers).map_err(running)?);
    if flags.verbose {
        say!("{} inputs, {workers} workers, {} tasks", flags.files.len(), config.tasks.len());
    }

    let progress = Arc::new(Progress::default());
    let lateness = u64::try_from(config.allowed_lateness.as_nanos()).unwrap_or(u64::MAX);
    let intake = Arc::new(Files { dealer: dealer.clone(), filter: flags.filter.clone() });
    let job = Arc::new(Job { intake, tasks: config.tasks, windowing, lateness, workers, spill });
    let stopped = dealer.clone();
    stopping.begin(move || stopped.stop());
    let bar = show_progress(flags, &dealer, &progress);
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
    finish(flags, &dealer, &progress, &mut writers, &highlights, &folders, began)
}

/// Closes the books and tells how it went.
fn finish(
    flags: &Flags,
    dealer: &Dealer,
    progress: &Progress,
    writers: &mut [Box<dyn Writer>],
    highlights: &HighlightsWriter,
    folders: &[PathBuf],
    began: Instant,
) -> Result<End, Failed> {
    let highlights = highlights.take();
    let inputs = dealer.reports();
    let ledger = Ledger::new(&progress.counts(), &inputs, highlights.totals.windows(), dealer.was_stopped());
    ledger.balance(highlights.totals.packets()).map_err(running)?;
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
    let report =
        Report { ledger: &ledger, counts: ledger.counts(), highlights, elapsed: began.elapsed(), outputs };
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

/// A bar with rate and time left on a terminal; nothing elsewhere.
fn show_progress(flags: &Flags, dealer: &Arc<Dealer>, progress: &Arc<Progress>) -> ProgressBar {
    let (_, total) = dealer.progress();
    if flags.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style = "{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}, {msg}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (dealer, progress, shown) = (dealer.clone(), progress.clone(), bar.clone());
    let draw = move || {
        while !shown.is_finished() {
            shown.set_position(dealer.progress().0);
            shown.set_message(format!(
                "{:.1} M packets",
                progress.counts().values().map(|counts| counts.read).sum::<u64>() as f64 / 1e6
            ));
            thread::sleep(Duration::from_millis(100));
        }
    };
    // Without the thread there is no bar, and that is all.
    let _ = thread::Builder::new().name("progress".into()).spawn(draw);
    bar
}
