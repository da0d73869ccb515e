//! `ns-probe`: captures an interface, or replays a file, and publishes to NATS; or prints what others publish.

use anyhow::anyhow;
use clap::{ArgGroup, Parser, ValueEnum};
use dataflows::field::{Field, Kind};
use dataflows::layers::Text;
use netspectra::arguments::{self, Habit};
use netspectra::bus::publish::{Buffer, Delivery, Pacing, Publisher};
use netspectra::bus::{Bus, BusError, Settings};
use netspectra::capture::dealer::Dealer;
use netspectra::capture::filter::Filter;
use netspectra::capture::interface::Interfaces;
use netspectra::capture::live::{self, Drops, Live, Options};
use netspectra::capture::savefile::{Kept, Rotation, Savefile};
use netspectra::capture::{Chunk, Frame};
use netspectra::config::writers::Run;
use netspectra::config::{self, Config, ProbeConfig};
use netspectra::decode::LinkType;
use netspectra::fingerprint::fingerprint;
use netspectra::intake::Taken;
use netspectra::ledger::{InputReport, Losses};
use netspectra::losses::{Loser, LossWatch};
use netspectra::non_ip;
use netspectra::probe::{Encoding, FLUSH, HEARTBEAT, Identity, Probe};
use netspectra::program::{self, End, Failed, Stopping, no_bus, running, usage};
use netspectra::sinks::text::rfc3339;
use netspectra::tail::{TailError, tail};
use netspectra::wire::batch::{BLOCK, LONGEST_NAME};
use netspectra::{say, warn};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: netspectra::memory::Saying = netspectra::memory::Saying;

const NAME: &str = "ns-probe";

/// How often the counters of a capture are read.
const COUNTERS: Duration = Duration::from_millis(250);
/// Longest sleep of a paced replay before it looks whether it is to stop.
const NAP: Duration = Duration::from_millis(50);
/// From which length on a pause of a paced replay is told.
const LONG_WAIT: Duration = Duration::from_secs(10);
/// How long to wait for frames that had arrived when we were told to stop.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// How long the bus may be away, or take, to deliver what is left at the end.
const LAST_AWAY: Duration = Duration::from_secs(8);
const LAST_SENDING: Duration = Duration::from_secs(40);
/// Bytes that tell one capture from another.
const FINGERPRINT: u64 = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Capture or replay, and publish
    #[value(alias = "pub")]
    Probe,
    /// Subscribe and print one JSON object a line
    Sub,
}

/// How fast a file is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pace {
    Max,
    /// Times the speed at which it was captured.
    Times(f64),
}

fn pace(text: &str) -> Result<Pace, String> {
    match text {
        "max" => Ok(Pace::Max),
        "original" => Ok(Pace::Times(1.0)),
        _ => text
            .strip_suffix('x')
            .and_then(|factor| factor.parse::<f64>().ok())
            .filter(|factor| (1e-6..=1e9).contains(factor))
            .map(Pace::Times)
            .ok_or_else(|| {
                "write original, max or a factor such as 2x or 0.5x (0.000001x to 1000000000x)".into()
            }),
    }
}

/// Captures an interface, or replays a capture file, and publishes its packets to NATS.
#[derive(Parser)]
#[command(name = NAME, version, after_help = AFTER_HELP)]
#[command(group(ArgGroup::new("source").args(["iface", "read", "list"])))]
struct Flags {
    /// What to do
    #[arg(long, value_enum, default_value = "probe")]
    mode: Mode,
    /// Interface to capture; `any` is all of them
    #[arg(short, long, value_name = "IF")]
    iface: Option<String>,
    /// Capture file to replay instead; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    read: Option<PathBuf>,
    /// List the interfaces
    #[arg(long)]
    list: bool,
    /// Speed of a replay: original, max, or a factor such as 10x
    #[arg(long, default_value = "max", value_parser = pace, requires = "read")]
    pace: Pace,
    /// Publish only what passes this libpcap filter, such as 'not port 4222'
    #[arg(short, long, value_name = "BPF")]
    filter: Option<String>,
    /// Bytes captured of a frame
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=262_144))]
    snaplen: u32,
    /// Stop after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Memory of the kernel's ring
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = config::size)]
    ring_size: u64,
    /// Do not ask the interface for frames to other hosts
    #[arg(long)]
    no_promiscuous: bool,
    /// NATS servers, separated by commas [default: nats.url of the configuration]
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Publish to the durable log of JetStream
    #[arg(long)]
    jetstream: bool,
    /// Subject to publish on, or to subscribe to [default: those of the configuration; batches go to SUBJ.0, SUBJ.1, ...]
    #[arg(long, value_name = "SUBJ")]
    subject: Option<String>,
    /// How packets are sent
    #[arg(long, value_enum, default_value = "batch")]
    encoding: Encoding,
    /// Fields to send beside what every packet has, such as DSCP,TTL [default: fields of the configuration]
    #[arg(long, value_name = "LIST")]
    fields: Option<String>,
    /// Name of this probe [default: host and source, HOST:IF or HOST:FILE]; a replay of the same file under the same name
    /// is the same run: what was published before counts once
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Configuration; only `nats` and `fields` of it are used [default: ./config.yaml where it exists, else the built-in one]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the captured frames as pcap too
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Begin another file before one grows beyond this
    #[arg(long, value_name = "SIZE", value_parser = config::size, requires = "write")]
    rotate_size: Option<u64>,
    /// Begin another file where frames pass a multiple of this
    #[arg(long, value_name = "DUR", value_parser = config::duration, requires = "write")]
    rotate_every: Option<Duration>,
    /// Become this user once the interface is open
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Print the run's report as JSON
    #[arg(long)]
    json: bool,
    /// Say only what went wrong
    #[arg(short, long)]
    quiet: bool,
}

const AFTER_HELP: &str = "\
Examples:
  ns-probe --iface eth0 -f 'not port 4222'   publish what an interface sees
  ns-probe --read day.pcap.zst --pace 10x    replay a capture ten times as fast as it was
  ns-probe --mode sub --count 5              print the next five packets as JSON";

/// What users of other programs try.
const HABITS: &[Habit] = &[
    ("-n", "names are never resolved; leave it out"),
    ("-nn", "names are never resolved; leave it out"),
    ("-A", "payloads are not shown; `ns-probe --mode sub` prints packets as JSON"),
    ("-X", "payloads are not shown; `ns-probe --mode sub` prints packets as JSON"),
    ("-x", "payloads are not shown; `ns-probe --mode sub` prints packets as JSON"),
    ("-e", "link headers are not shown; `ns-probe --mode sub` prints packets as JSON"),
    ("-t", "times are RFC 3339, UTC; leave it out"),
    ("-tt", "times are RFC 3339, UTC; leave it out"),
    ("-tttt", "times are RFC 3339, UTC; leave it out"),
    ("-v", "NETSPECTRA_LOG=debug says more"),
    ("-vv", "NETSPECTRA_LOG=trace says more"),
    ("-D", "--list names the interfaces"),
    ("-p", "--no-promiscuous"),
    ("-B", "--ring-size sets the memory of the kernel's ring, such as 64MiB"),
    ("-C", "--rotate-size begins another file, such as 100MB"),
    ("-G", "--rotate-every begins another file, such as 1h"),
    ("-W", "files are not removed; --rotate-size and --rotate-every begin others"),
    ("-Z", "--user becomes another user once the interface is open"),
    ("-l", "every line is written at once; leave it out"),
    ("-U", "frames are written as they come; leave it out"),
    ("-F", "write the expression behind -f, such as -f \"$(cat FILE)\""),
    ("-R", "one file is replayed at a time; pcap-analyzer reads several"),
];

fn main() -> ExitCode {
    let flags: Flags = arguments::parse(std::env::args_os(), HABITS, &[]);
    program::main(NAME, || run(&flags))
}

fn run(flags: &Flags) -> Result<End, Failed> {
    if flags.list {
        for (name, description) in live::interfaces().map_err(running)? {
            println(&format!("{name}\t{description}"))?;
        }
        return Ok(End::Done);
    }
    let given = [flags.iface.is_some(), flags.read.is_some(), flags.write.is_some(), flags.user.is_some()];
    if flags.mode == Mode::Sub && (given.contains(&true) || flags.fields.is_some()) {
        return Err(usage(anyhow!("--mode sub takes no --iface, --read, --write, --user or --fields")));
    }
    if flags.encoding == Encoding::Single && flags.fields.is_some() {
        return Err(usage(anyhow!(
            "--fields: a message of one packet has no room for further fields; leave out --encoding single"
        )));
    }
    if flags.id.as_ref().is_some_and(|id| id.is_empty() || id.len() > LONGEST_NAME) {
        return Err(usage(anyhow!("--id: a name of 1 to {LONGEST_NAME} bytes")));
    }
    let run = if flags.read.is_some() { Run::Batch } else { Run::Live };
    let stopping = Stopping::on_signals(run).map_err(running)?;
    let (named, file) = (flags.config.as_deref(), program::config_file(flags.config.as_deref()));
    let config = Config::load_probe(file).map_err(|error| match file {
        Some(file) => usage(program::of_file(error, named, file)),
        None => usage(error),
    })?;
    let ProbeConfig { nats: mut settings, mut fields } = config;
    if let Some(names) = &flags.fields {
        fields = config::fields::parse(names).map_err(|why| usage(anyhow!("--{why}")))?;
    }
    if flags.mode == Mode::Probe && flags.encoding == Encoding::Single && !fields.is_empty() {
        warn!("the fields of the configuration are not sent: a message of one packet has no room for them");
        fields.clear();
    }
    if let Some(url) = &flags.nats {
        settings.servers = config::nats::servers(url).map_err(|why| usage(anyhow!("--nats: {why}")))?;
    }
    settings.jetstream.enabled |= flags.jetstream;
    match flags.mode {
        Mode::Sub => subscribe(flags, &settings, &stopping),
        Mode::Probe => publish(flags, &settings, fields, &stopping),
    }
}

fn println(line: &str) -> Result<(), Failed> {
    match writeln!(std::io::stdout(), "{line}") {
        // Whoever reads may have read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(running(error)),
        _ => Ok(()),
    }
}

fn subscribe(flags: &Flags, settings: &Settings, stopping: &Stopping) -> Result<End, Failed> {
    let subjects = match &flags.subject {
        Some(subject) => vec![subject.clone(), format!("{subject}.*")],
        None => vec![settings.single.clone(), settings.batches()],
    };
    let (stop, stopped) = watch::channel(false);
    stopping.begin(move || {
        stop.send_replace(true);
    });
    let runtime = runtime()?;
    let most = flags.count.unwrap_or(u64::MAX);
    let printed =
        runtime.block_on(tail(settings, &subjects, most, stopped, NAME)).map_err(|error| match error {
            TailError::Bus(error) => no_bus(error),
            error => running(error),
        })?;
    if printed.refused > 0 {
        say!("{} messages were no packets", printed.refused);
    }
    if printed.lost > 0 {
        warn!(
            "{} messages were lost: they came faster than they could be printed; a larger nats.buffer holds more of them",
            printed.lost
        );
        return Ok(End::Damaged);
    }
    Ok(End::Done)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(running)
}

/// Where frames come from.
enum Source {
    Interface(Box<Live>),
    File(Arc<Dealer>),
}

fn publish(
    flags: &Flags,
    settings: &Settings,
    fields: Vec<&'static Field>,
    stopping: &Stopping,
) -> Result<End, Failed> {
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let (source, name) = open(flags, &fields)?;
    if let Some(user) = &flags.user {
        become_user(user).map_err(usage)?;
    }
    let mut savefile = savefile(flags, &source)?;
    let (pacing, dealer) = match &source {
        Source::Interface(_) => (Pacing::Goes, None),
        Source::File(dealer) => (Pacing::Waits, Some(dealer.clone())),
    };
    let started = live::now();
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let identity = Identity {
        name: flags.id.clone().unwrap_or_else(|| shortened(format!("{host}:{name}"))),
        // A replay is the same run each time, under a name that it is given or the default one: its packets are those of the
        // time before.
        run: match &flags.read {
            Some(file) => run_number(file, flags.filter.as_deref(), settings.jetstream.partitions)
                .map_err(usage)?
                .unwrap_or(started),
            None => started,
        },
        started,
    };
    let subject = match (&flags.subject, flags.encoding) {
        (Some(subject), _) => subject.clone(),
        (None, Encoding::Batch) => settings.batch.clone(),
        (None, Encoding::Single) => settings.single.clone(),
    };
    let buffer = Arc::new(Buffer::new(settings.buffer));
    let runtime = runtime()?;
    let bus = runtime.block_on(Bus::connect(settings, NAME, 4096)).map_err(no_bus)?;
    let stopped = stop.clone();
    stopping.begin(move || {
        stopped.store(true, SeqCst);
        if let Some(dealer) = &dealer {
            dealer.stop();
        }
    });
    if !flags.quiet {
        say!("publishing to {subject} at {}", bus.servers());
    }
    let message_identity = format!("{}-{}", identity.name, identity.run);
    let publisher = Publisher::new(
        &bus,
        buffer.clone(),
        &subject,
        settings.jetstream.partitions,
        message_identity,
        pacing,
    );
    let delivery = publisher.delivery();
    let log = settings.jetstream.enabled.then(|| settings.clone());
    let abandoned = buffer.clone();
    let mut sending = runtime.spawn(async move {
        let sent = match log {
            Some(settings) => publisher.run_log(&settings).await,
            None => publisher.run_core().await,
        };
        abandoned.abandon();
        sent
    });
    let max_payload = bus.client().server_info().max_payload;
    let sizes = (max_payload, settings.jetstream.partitions);
    let probe = Probe::new(identity, flags.encoding, pacing, buffer.clone(), stop.clone(), sizes);
    let mut probe = probe.with_fields(fields, max_payload);
    probe.begin();

    let front = Front { flags, bus: &bus, stop: &stop, buffer: &buffer };
    let read = match source {
        Source::Interface(live) => front.capture(*live, &mut probe, &mut savefile),
        Source::File(dealer) => front.replay(&dealer, &mut probe, &mut savefile),
    };
    probe.note_reconnects(bus.reconnects());
    probe.finish();
    buffer.close();
    let sent = runtime.block_on(async {
        tokio::select! {
            sent = &mut sending => sent.map_err(running),
            () = patience(&bus, &delivery, &buffer) => {
                sending.abort();
                Ok(Err(bus.failed("deliver what is left", &gave_up())))
            }
        }
    })?;
    let undelivered = match &sent {
        Ok(()) => 0,
        // Nothing has been let through.
        Err(BusError::Denied { .. }) => u64::MAX,
        Err(_) => delivery.stuck.load(SeqCst) + buffer.left(),
    };
    let kept = savefile.map(Savefile::close).transpose().map_err(running)?;
    let messages = delivery.messages.load(SeqCst);
    if flags.json {
        println(&probe.report(messages, undelivered, kept.as_ref(), began.elapsed()).to_string())?;
    }
    if !flags.quiet {
        say!("{}", probe.summary(undelivered));
    }
    read?;
    sent.map_err(running)?;
    if pacing == Pacing::Waits && !settings.jetstream.enabled && probe.sent() > 0 {
        warn_of_nobody(&subject, &delivery);
    }
    match kept {
        Some(Kept { dropped, error, .. }) if dropped > 0 => {
            let why = error.unwrap_or_else(|| "the disk did not keep up".into());
            Err(running(anyhow!("{dropped} frames were published but not kept: {why}")))
        }
        _ => Ok(End::Done),
    }
}

/// Tells that no engine has taken what was replayed.
fn warn_of_nobody(subject: &str, delivery: &Delivery) {
    if delivery.taken.load(SeqCst) {
        return;
    }
    let why = match delivery.unheard.load(SeqCst) {
        true => "nobody listens there",
        false => "something is subscribed, but it did not acknowledge them",
    };
    warn!("no engine has taken the packets published to {subject}: {why}");
}

/// A name that is not too long, by leaving out its beginning.
fn shortened(name: String) -> String {
    let least = name.len().saturating_sub(LONGEST_NAME);
    let from = (least..=name.len()).find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    name[from..].to_owned()
}

/// Waits as long as it makes sense to wait for the bus at the end.
async fn patience(bus: &Bus, delivery: &Delivery, buffer: &Buffer) {
    let mut left = (0, 0);
    let mut moved = Instant::now();
    let mut here = moved;
    while moved.elapsed() < LAST_SENDING && here.elapsed() < LAST_AWAY {
        let now = (delivery.stuck.load(SeqCst), buffer.left());
        if now != left {
            (left, moved) = (now, Instant::now());
        }
        if !bus.is_away() {
            here = Instant::now();
        }
        tokio::time::sleep(NAP).await;
    }
}

fn gave_up() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "waited in vain")
}

/// A number for a replay, the same each time where the packets have the same numbers and go to the same partitions: by the
/// file, the filter, and this version, which may find other packets in it than another. `None` for what can be read only
/// once.
fn run_number(file: &Path, filter: Option<&str>, partitions: u32) -> std::io::Result<Option<u64>> {
    let metadata = std::fs::metadata(file);
    let Some(metadata) = metadata.ok().filter(std::fs::Metadata::is_file) else { return Ok(None) };
    let length = metadata.len();
    let version = env!("CARGO_PKG_VERSION");
    let (filter, filter_length) = (filter.unwrap_or_default(), filter.map(str::len).unwrap_or(usize::MAX));
    let identity = format!("{version} {BLOCK} {partitions} {length} {filter_length} {filter}");
    let mut identity = identity.into_bytes();
    let mut open = std::fs::File::open(file)?;
    Read::by_ref(&mut open).take(FINGERPRINT).read_to_end(&mut identity)?;
    open.seek(SeekFrom::Start(length.saturating_sub(FINGERPRINT)))?;
    open.take(FINGERPRINT).read_to_end(&mut identity)?;
    Ok(Some(fingerprint(&identity)))
}

/// Opens what is to be captured or replayed; gives its name too.
fn open(flags: &Flags, fields: &[&Field]) -> Result<(Source, String), Failed> {
    if let Some(interface) = &flags.iface {
        let options = Options {
            interface: interface.clone(),
            filter: flags.filter.clone(),
            snaplen: flags.snaplen,
            ring: flags.ring_size,
            promiscuous: !flags.no_promiscuous,
            names_interfaces: fields.iter().any(|field| field.kind == Kind::Text),
        };
        let live = Live::open(&options).map_err(usage)?;
        if !flags.quiet {
            say!("capturing on {interface}");
        }
        return Ok((Source::Interface(Box::new(live)), interface.clone()));
    }
    let Some(file) = &flags.read else {
        return Err(usage(anyhow!("name an interface with --iface, or a capture file with --read")));
    };
    let dealer = Dealer::open(std::slice::from_ref(file)).map_err(usage)?;
    if let Some(expression) = &flags.filter {
        let mut filter = Filter::new(expression);
        dealer.first_links().try_for_each(|link| filter.check(link)).map_err(usage)?;
    }
    let name = Path::new(file).file_name().map_or("-".into(), |name| name.to_string_lossy().into_owned());
    Ok((Source::File(Arc::new(dealer)), name))
}

fn savefile(flags: &Flags, source: &Source) -> Result<Option<Savefile>, Failed> {
    let Some(path) = &flags.write else { return Ok(None) };
    let same = |other: &PathBuf| {
        let (own, other) = (std::fs::metadata(path).ok()?, std::fs::metadata(other).ok()?);
        Some((own.dev(), own.ino()) == (other.dev(), other.ino()))
    };
    if flags.read.as_ref().and_then(same) == Some(true) || path == Path::new("-") {
        return Err(usage(anyhow!("--write: {} cannot be written to, name another file", path.display())));
    }
    let (link, snaplen) = match source {
        Source::Interface(live) => (live.link(), flags.snaplen),
        Source::File(dealer) => (dealer.first_links().next().unwrap_or(LinkType::ETHERNET), 262_144),
    };
    let rotation = Rotation { size: flags.rotate_size, every: flags.rotate_every };
    Savefile::create(path, link, snaplen, rotation).map(Some).map_err(usage)
}

/// Gives up root for good.
fn become_user(name: &str) -> anyhow::Result<()> {
    use nix::unistd::{User, initgroups, setgid, setuid};
    let user = User::from_name(name)?.ok_or_else(|| anyhow!("--user: there is no user {name}"))?;
    let context = |error: nix::Error| anyhow!("--user: cannot become {name}: {}", error.desc());
    let name = std::ffi::CString::new(name)?;
    initgroups(&name, user.gid).map_err(context)?;
    setgid(user.gid).map_err(context)?;
    setuid(user.uid).map_err(context)
}

/// Tells once that frames are not kept.
fn warn_of_savefile(savefile: &Option<Savefile>, told: &mut bool) {
    if let Some(savefile) = savefile.as_ref().filter(|savefile| savefile.dropped() > 0)
        && !std::mem::replace(told, true)
    {
        let why = savefile.error().map_or("the disk does not keep up".into(), |error| error.to_string());
        warn!("frames are not kept: {why}");
    }
}

/// Tells what people should know of a file that was replayed, with the frames of link types that are not decoded.
fn tell_input(input: &InputReport, unknown: &BTreeMap<LinkType, u64>) {
    let name = &input.name;
    for (link, frames) in unknown {
        warn!("{}", non_ip::undecoded(name, *link, *frames));
    }
    input.notes.iter().for_each(|note| warn!("{name}: {note}"));
    if let Some(losses) = input.losses {
        warn!("{name}: {}", losses.of_a_capture());
    }
    if let Some(contradictory) = &input.contradictory {
        warn!("{name}: {contradictory}; everything else is published");
    }
    if let Some(damage) = &input.damage {
        warn!("{name}: {damage}; what came before that is published");
    }
}

/// Gives the probe a frame, and what captured it where fields are sent.
#[inline(always)]
fn feed(probe: &mut Probe, frame: Frame, bytes: &[u8], is_stray: bool, interface: impl FnOnce() -> Text) {
    let Frame { link, time, length, .. } = frame;
    match (probe.sends_fields(), is_stray) {
        (true, _) => probe.frame_with_fields(link, (time, is_stray), length, bytes, interface()),
        (false, true) => probe.stray(link, time, length, bytes),
        (false, false) => probe.frame(link, time, length, bytes),
    }
}

/// What reads frames and feeds the probe.
struct Front<'a> {
    flags: &'a Flags,
    bus: &'a Bus,
    stop: &'a AtomicBool,
    buffer: &'a Buffer,
}

impl Front<'_> {
    /// Whether there is a reason to read no further.
    fn is_over(&self, probe: &Probe) -> bool {
        let enough = self.flags.count.is_some_and(|count| probe.passed() >= count);
        enough || self.stop.load(SeqCst) || self.buffer.is_abandoned()
    }

    /// Captures until told to stop, and then what is left in the ring.
    fn capture(
        &self,
        mut live: Live,
        probe: &mut Probe,
        savefile: &mut Option<Savefile>,
    ) -> Result<(), Failed> {
        let (link, most) = (live.link(), self.flags.count.unwrap_or(u64::MAX));
        let mut counted = Instant::now();
        let name = self.flags.iface.clone().unwrap_or_default();
        let mut losses = LossWatch::new(&[], counted);
        let mut lossy = false;
        // What has arrived when we are told to stop is still read.
        let mut until = u64::MAX;
        let mut beyond = false;
        let own_interface = Text::new(&name);
        let mut interfaces = Interfaces::of_this_machine();
        let ended = loop {
            let clock = live::now();
            if until == u64::MAX && self.is_over(probe) {
                until = clock;
            }
            // At the end, longer than the kernel may keep a block.
            let wait = if until < u64::MAX { LAST_LOOK } else { probe.patience() };
            interfaces.refresh();
            let found = live.next(wait, |time, length, bytes| {
                if time > until || probe.passed() >= most {
                    beyond = true;
                    return;
                }
                if let Some(savefile) = savefile {
                    savefile.frame(time, length, bytes);
                }
                if probe.sends_fields() {
                    let interface = interfaces.name(own_interface, link, bytes);
                    return probe.frame_with_fields(link, (time, false), length, bytes, interface);
                }
                probe.frame(link, time, length, bytes);
            });
            let found = match found {
                Ok(found) => found,
                Err(error) => break Err(running(error)),
            };
            if until < u64::MAX && (found == 0 || beyond) {
                break Ok(());
            }
            if counted.elapsed() >= COUNTERS {
                counted = Instant::now();
                probe.note_drops(live.drops());
                let lost = losses.look(&[(name.clone(), Loser::Interface, probe.losses())], counted);
                lost.iter().for_each(|line| warn!("{line}"));
                probe.note_reconnects(self.bus.reconnects());
                warn_of_savefile(savefile, &mut lossy);
            }
            if let (0, Some(savefile)) = (found, &mut *savefile) {
                savefile.flush();
            }
            probe.tick(if found == 0 { live::settled(clock) } else { 0 });
        };
        probe.note_drops(live.drops());
        ended
    }

    /// Replays a file, or as much of it as is wanted.
    fn replay(
        &self,
        dealer: &Dealer,
        probe: &mut Probe,
        savefile: &mut Option<Savefile>,
    ) -> Result<(), Failed> {
        let mut filter = self.flags.filter.as_deref().map(Filter::new);
        let mut chunk = Chunk::default();
        let mut clock: Option<(Instant, u64)> = None;
        let mut failed = None;
        let mut lossy = false;
        let mut unknown: BTreeMap<LinkType, u64> = BTreeMap::new();
        let mut interfaces = Interfaces::of_files();
        while !self.is_over(probe) && failed.is_none() {
            match dealer.deal(&mut chunk).map_err(running)? {
                Taken::End => break,
                Taken::Wait => {
                    thread::sleep(Duration::from_millis(5));
                    probe.tick(0);
                    continue;
                }
                Taken::Piece => {}
            }
            probe.note_reconnects(self.bus.reconnects());
            probe.heartbeat();
            warn_of_savefile(savefile, &mut lossy);
            let mut over = false;
            chunk.frames_and_interfaces(|frame, bytes, is_stray, format| {
                over = over || self.is_over(probe) || failed.is_some();
                if over {
                    return;
                }
                // A record that contradicts itself has no time to wait for.
                if let (Pace::Times(factor), false) =
                    (self.flags.pace, is_stray || frame.link == LinkType::DAMAGED)
                {
                    over = !self.pace(frame.time, factor, &mut clock, probe);
                    if over {
                        return;
                    }
                }
                match filter.as_mut().map_or(Ok(true), |filter| filter.passes(&frame, bytes)) {
                    Ok(true) => {}
                    Ok(false) => return probe.filtered(if is_stray { 0 } else { frame.time }, frame.length),
                    Err(error) => {
                        failed = Some(error);
                        return;
                    }
                }
                if let Some(savefile) = savefile
                    && frame.link != LinkType::DAMAGED
                {
                    savefile.frame(frame.time, frame.length, bytes);
                }
                if frame.link != LinkType::ETHERNET && !frame.link.is_known() {
                    *unknown.entry(frame.link).or_default() += 1;
                }
                let interface = || interfaces.name(format.interface(frame), frame.link, bytes);
                feed(probe, frame, bytes, is_stray, interface);
            });
        }
        unknown.remove(&LinkType::DAMAGED);
        for input in dealer.reports() {
            tell_input(&input, &unknown);
            let Losses { kernel, interface, .. } = input.losses.unwrap_or_default();
            probe.note_drops(Drops { kernel, interface });
        }
        failed.map_or(Ok(()), |error| Err(running(error)))
    }

    /// Waits until a frame is due; `false` if the replay is to end before that.
    fn pace(&self, time: u64, factor: f64, clock: &mut Option<(Instant, u64)>, probe: &mut Probe) -> bool {
        let (began, first) = *clock.get_or_insert((Instant::now(), time));
        // Where a batch ends depends on the frames alone, so that a replay is the same each time.
        let flush = FLUSH.mul_f64(factor.min(1e6)).as_nanos();
        if probe.first_time().is_some_and(|first| u128::from(time.saturating_sub(first)) >= flush) {
            probe.flush();
        }
        probe.heartbeat();
        let due = Duration::from_nanos(time.saturating_sub(first)).div_f64(factor);
        let mut heartbeat = Instant::now();
        let wait = due.saturating_sub(began.elapsed());
        if wait >= LONG_WAIT && !self.flags.quiet {
            let until = live::now().saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
            let (time, until, seconds) = (rfc3339(time), rfc3339(until), wait.as_secs());
            say!(
                "the next packet is of {time}: waiting {seconds} s for it, until {until}; --pace max does not wait"
            );
        }
        loop {
            let left = due.saturating_sub(began.elapsed());
            if left.is_zero() {
                return true;
            }
            if self.is_over(probe) {
                return false;
            }
            thread::sleep(left.min(NAP));
            if heartbeat.elapsed() >= HEARTBEAT {
                heartbeat = Instant::now();
                // The next frame is that late, and the file's time goes on at this pace until then.
                let passed = began.elapsed().mul_f64(factor.min(1e6)).as_nanos();
                let passed = first.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX));
                probe.tick(passed.min(time));
            }
        }
    }
}
