//! `pcap-analyzer`: capture files in, snapshots out.

use crate::alerts::edits;
use crate::arguments::{self, Habit};
use crate::capture::dealer::{self, Dealer};
use crate::capture::filter::Filter;
use crate::capture::live;
use crate::config::{self, Config, Registries, writers::Run};
use crate::engine::{Earlier, Job, Progress};
use crate::intake::frames::Files;
use crate::ledger::InputReport;
use crate::non_ip;
use crate::program::{self, Aggregation, End, Failed, Stopping, Writing, running, usage};
use crate::report::{HighlightsWriter, Report};
use crate::sinks::delivery::Deliveries;
use crate::sinks::{Committing, Ended, Failure, Writer};
use crate::{say, warn};
use anyhow::anyhow;
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

const NAME: &str = "pcap-analyzer";

const AFTER_HELP: &str = "\
Examples:
  pcap-analyzer -o out incident.pcap                 one snapshot of everything, out/all/TASK.csv
  pcap-analyzer -o out --window 60s day/*.pcap.zst   one folder per minute over a rotated series
  zcat big.pcap.gz | pcap-analyzer -o out -f 'tcp port 443' -";

/// What users of other programs try.
const HABITS: &[Habit] = &[
    ("-r", "captures are named without a flag: pcap-analyzer FILE..."),
    ("--read", "captures are named without a flag: pcap-analyzer FILE..."),
    ("-R", "captures are named without a flag, all of a folder as DIR/*: pcap-analyzer FILE..."),
    ("-i", "an interface is captured by ns-engine --iface or ns-probe --iface"),
    ("-nn", "names are never resolved; leave it out (-n N is the number of processes)"),
    ("-n", "names are never resolved; leave it out (-n N is the number of processes)"),
    (
        "--processes",
        "names are never resolved, so tcpdump's -n is not needed; here -n N is the number of processes",
    ),
    (
        "-w",
        "-o DIR writes snapshots into a folder; ns-probe --read FILE -w FILE writes frames (-w N is the number of workers)",
    ),
    (
        "--workers",
        "-o DIR writes snapshots into a folder; ns-probe --read FILE -w FILE writes frames (-w N is the number of workers)",
    ),
    ("-A", "payloads are not shown; the tables count packets and bytes by key"),
    ("-X", "payloads are not shown; the tables count packets and bytes by key"),
    ("-x", "payloads are not shown; the tables count packets and bytes by key"),
    ("-e", "packets are not listed; a task with the key field VLAN counts by VLAN"),
    ("-s", "every task of the configuration is a table, the largest rows first; add a task for another key"),
    ("-a", "every task of the configuration is a table by its key; add a task for another key"),
    ("-t", "times are RFC 3339, UTC; --window 60s cuts them into windows"),
    ("-tt", "times are RFC 3339, UTC; leave it out"),
    ("-ttt", "times are RFC 3339, UTC; leave it out"),
    ("-tttt", "times are RFC 3339, UTC; leave it out"),
    ("-vv", "-v says more, NETSPECTRA_LOG=debug yet more"),
    ("-F", "write the expression behind -f, such as -f \"$(cat FILE)\""),
    ("-Y", "filters are libpcap's, behind -f, such as -f 'tcp port 443'"),
    ("-T", "tables are csv, or of another writer of the configuration; --json prints the summary"),
    ("-O", "rows are ordered by bytes, the largest first"),
    ("-l", "leave it out: the table is written at the end"),
    ("-S", "sequence numbers are not shown; leave it out"),
];

/// Exact traffic analysis of capture files: who talked to whom, how much and when.
#[derive(Parser)]
#[command(name = NAME, version, after_help = AFTER_HELP)]
struct Flags {
    /// Captures, pcap or pcapng, plain, gzip or zstd (told by content); `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Count only what passes this libpcap filter, such as 'tcp port 443'
    #[arg(short, long, value_name = "BPF")]
    filter: Option<String>,
    /// Length of a snapshot in event time, such as 60s, or `all` [default: all, whatever the configuration says]
    #[arg(long, value_name = "DUR")]
    window: Option<String>,
    /// Print the run's summary as JSON instead of a table
    #[arg(long)]
    json: bool,
    /// The files are this process's own; without it, the processes of a cluster divide the same files
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    how: Aggregation,
}

/// Runs the program with these aggregators, inputs and writers, and with arguments, the first of which is its own name.
pub fn main(registries: &Registries, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let flags: Flags = arguments::parse(arguments, HABITS, &[program::TMPDIR]);
    program::main(NAME, || run(&flags, registries))
}

fn run(flags: &Flags, registries: &Registries) -> Result<End, Failed> {
    let began = Instant::now();
    let how = &flags.how;
    let stopping = Stopping::on_signals(Run::Batch).map_err(running)?;
    program::raise_open_files();
    let config = program::load_config(how.config.as_deref(), registries).map_err(usage)?;
    let window = flags.window.as_deref().unwrap_or("all");
    let windowing = config::windowing(window).map_err(|why| usage(anyhow!("--window: {why}")))?;
    let note = note_of_window(flags, &config);
    let cluster = how.cluster(&config.cluster).map_err(usage)?;
    let (process, processes) = (cluster.process, cluster.hosts.len());
    let workers = program::workers(how.workers, config.workers);
    let shares = if flags.local { (0, 1) } else { (process, processes) };
    if let Some(name) = dealer::one_time(&flags.files).filter(|_| shares.1 > 1) {
        let why = "processes cannot divide what can be read only once; --local if it is this one's own";
        return Err(usage(anyhow!("{}: {why}", name.display())));
    }
    let dealer = Arc::new(Dealer::open(&flags.files).map_err(usage)?.divided(shares.0, shares.1));
    if let Some(expression) = &flags.filter {
        let mut filter = Filter::new(expression);
        dealer.first_links().try_for_each(|link| filter.check(link)).map_err(usage)?;
    }
    let commits = process == 0;
    let writing = Writing::new(how.output.as_deref(), &config, Run::Batch);
    if flags.json && writing.is_on_stdout() {
        return Err(usage(anyhow!("--json: a writer has standard output already")));
    }
    let highlights = HighlightsWriter::default();
    let mut writers: Vec<Box<dyn Writer>> = vec![Box::new(highlights.clone())];
    if commits {
        let csv = writing.open_record(workers).map_err(running)?;
        writers.extend(csv.map(|csv| csv.recover(None)).transpose().map_err(program::no_writer)?);
    }
    if how.verbose {
        say!("{} inputs, {workers} workers, {} tasks", flags.files.len(), config.tasks.len());
    }
    let connected = if processes > 1 {
        let mut settings = program::settings(windowing, &config);
        program::add_cluster_settings(&mut settings, NAME, &cluster, workers);
        let input = match flags.local {
            true => "its own".to_owned(),
            false => dealer::describe(&flags.files).map_err(usage)?,
        };
        settings.push(("input".into(), input));
        settings.push(("filter".into(), flags.filter.clone().unwrap_or_else(|| "none".into())));
        program::form(&cluster, &settings, Vec::new(), (&stopping, how.quiet))?
    } else {
        None
    };

    let failure = if processes > 1 { Failure::ending() } else { Failure::default() };
    let progress = Arc::new(Progress::new(failure));
    let lateness = u64::try_from(config.allowed_lateness.as_nanos()).unwrap_or(u64::MAX);
    let owner = if flags.local { process } else { 0 };
    let intake = Arc::new(Files { dealer: dealer.clone(), filter: flags.filter.clone(), owner });
    let job = Arc::new(Job {
        intake,
        tasks: config.tasks,
        extension: config.plan.extension(),
        windowing,
        lateness,
        workers,
        spill: writing.spill(commits),
        grace: Duration::ZERO,
        earlier: Earlier::default(),
        stopping: AtomicBool::new(false),
    });
    stopping.begin(program::stop(&job, &progress, processes));
    let bar = show_progress(how.quiet, &dealer, &progress);
    let is_heard = commits && (!config.alerts.outputs.is_empty() || writing.hears_alerts());
    let alerts = program::alerts(&config.alerts, None, edits::none(), is_heard)?;
    let deliveries = match commits {
        true => writing.start_others((&job, &progress), &config.nats, (NAME, live::now()), None)?,
        false => Deliveries::default(),
    };
    let committing =
        Committing { writers, record: writing.named(), deliveries, state: None, recorded: None, alerts };
    let ran = program::aggregate(&job, &progress, committing, (connected, commits), Run::Batch);
    bar.finish_and_clear();
    let mut ended = ran?;
    if !commits {
        return Ok(End::Done);
    }
    let end = finish(flags, &progress, &mut ended, &highlights, (&writing, note), began);
    ended.alerts.finish();
    end
}

/// That the window of the configuration is not that of this run, where one is written there.
fn note_of_window(flags: &Flags, config: &Config) -> Option<String> {
    let written = config.window_text.as_deref().filter(|text| flags.window.is_none() && *text != "all")?;
    let file = program::config_file(flags.how.config.as_deref())?.display();
    Some(format!("`window: {written}` in {file} applies to ns-engine only; here use --window {written}"))
}

/// Closes the books and tells how it went.
fn finish(
    flags: &Flags,
    progress: &Progress,
    ended: &mut Ended,
    highlights: &HighlightsWriter,
    (writing, note): (&Writing, Option<String>),
    began: Instant,
) -> Result<End, Failed> {
    let highlights = highlights.take();
    let inputs: Vec<InputReport> = progress.inputs().into_iter().map(|(report, _)| report).collect();
    let ledger = progress.ledger(progress.is_interrupted()).map_err(running)?;
    ended.finish(&ledger).map_err(running)?;
    let noticed = progress.noticed();
    for (name, counts, noticed) in &noticed {
        let warnings = non_ip::warnings(name, *counts, noticed, flags.filter.as_deref());
        warnings.iter().for_each(|warning| warn!("{warning}"));
    }
    inputs.iter().for_each(tell_input);
    let is_damaged = |input: &InputReport| input.damage.is_some() || input.contradictory.is_some();
    let end = if inputs.iter().any(is_damaged) { End::Damaged } else { End::Done };
    let outputs = writing.describe();
    let filter = flags.filter.as_deref();
    let report = Report {
        ledger: &ledger,
        counts: ledger.counts(),
        noticed,
        filter,
        highlights,
        elapsed: began.elapsed(),
        outputs,
        note,
        replaced: writing.replaced(),
    };
    let is_for_people = !(flags.json || flags.how.quiet || writing.is_on_stdout());
    if !is_for_people {
        let news = report.replaced.iter().filter(|replaced| replaced.is_news);
        news.for_each(|replaced| warn!("{replaced}"));
        report.interruption().iter().for_each(|what| warn!("{what}"));
    }
    let text = match (flags.json, is_for_people) {
        (true, _) => format!("{:#}\n", report.json()),
        (false, false) => String::new(),
        (false, true) => report.table(width_of(std::io::stdout()).map(usize::from)),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads may have read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(running(error)),
        _ => Ok(end),
    }
}

/// Tells what people should know of an input.
fn tell_input(input: &InputReport) {
    let InputReport { name, packets, clamped, losses, damage, contradictory, notes, .. } = input;
    notes.iter().for_each(|note| warn!("{name}: {note}"));
    if *clamped > 0 {
        warn!("{name}: the times of {clamped} packets lie outside of 1970 to 2554 and were put at its ends");
    }
    if let Some(losses) = losses {
        warn!("{name}: {}", losses.of_a_capture());
    }
    if let Some(contradictory) = contradictory {
        warn!("{name}: {contradictory}; everything else is in the results");
    }
    if let Some(damage) = damage {
        warn!("{name}: {damage}; the results hold the {packets} packets before that");
    }
}

/// Columns of the terminal that a stream is, where it is one.
fn width_of(stream: impl AsFd) -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(size.ws_col).filter(|columns| *columns > 0)
}

/// A bar with rate and time left on a terminal; nothing elsewhere.
fn show_progress(quiet: bool, dealer: &Arc<Dealer>, progress: &Arc<Progress>) -> ProgressBar {
    let (_, total) = dealer.progress();
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = progress_style(total, width_of(std::io::stderr()));
    let total = Some(total).filter(|total| *total > 0);
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (dealer, progress, shown) = (dealer.clone(), progress.clone(), bar.clone());
    let draw = move || {
        while !shown.is_finished() {
            shown.set_position(dealer.progress().0);
            shown.set_message(format!("{:.1} M packets", progress.read() as f64 / 1e6));
            thread::sleep(Duration::from_millis(100));
        }
    };
    // Without the thread there is no bar, and that is all.
    let _ = thread::Builder::new().name("progress".into()).spawn(draw);
    bar
}

/// What the bar shows: of inputs whose length is not known no share, and on a narrow terminal no more than fits.
fn progress_style(total_bytes: u64, width: Option<u16>) -> &'static str {
    match (total_bytes, width.unwrap_or(80)) {
        (0, 0..24) => "{msg}",
        (0, _) => "{msg}, {elapsed}",
        (_, 0..34) => "{percent}%",
        (_, 34..60) => "{percent}% {msg}, {eta} left",
        (_, 60..90) => "{wide_bar} {bytes}/{total_bytes}, {msg}, {eta} left",
        _ => "{wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}, {msg}, {eta} left",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that a terminal of this width would show.
    fn line(total: u64, width: u16) -> String {
        let all = [
            ("{bytes}", "1023.99 MiB"),
            ("{total_bytes}", "1023.99 MiB"),
            ("{binary_bytes_per_sec}", "1023.99 MiB/s"),
            ("{msg}", "9999.9 M packets"),
            ("{eta}", "59m"),
            ("{elapsed}", "59m"),
            ("{percent}", "100"),
            ("{wide_bar}", "-----"),
        ];
        all.iter()
            .fold(progress_style(total, Some(width)).to_owned(), |line, (key, text)| line.replace(key, text))
    }

    #[test]
    fn the_bar_fits_a_narrow_terminal_and_shows_no_share_of_what_has_no_length() {
        for width in [20, 30, 40, 59, 60, 72, 89, 90, 120] {
            for total in [0, 1] {
                let line = line(total, width);
                assert!(line.chars().count() <= width.into(), "{width}: {line}");
                assert!(total > 0 || !line.contains("MiB") && !line.contains("left"), "{line}");
            }
        }
    }
}
