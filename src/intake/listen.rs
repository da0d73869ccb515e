//! Subscribes an engine to the bus: the tasks between the connection and the queue of messages.
//!
//! Two connections over core NATS: batches are few and large, single packets many and small, and the room that the client
//! keeps for each is a number of messages. One for the durable log, with a consumer for each partition of this process.

use super::Intake;
use super::books::{Rules, TICK};
use super::bus::Messages;
use super::log::{Division, Log, LogPosition, Resume};
use crate::bus::subscribe::{Got, Kind, Logged, Part, Partition, Subscription, identity_of, stream};
use crate::bus::{Bus, BusError, Settings, no_threads};
use crate::capture::live;
use crate::warn;
use crate::wire::v1::Taken;
use async_nats::Subject;
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Batches, and single packets, that the client may hold before the queue. What the log hands out is bounded by what is
/// asked for.
const BATCHES: usize = 512;
const SINGLES: usize = 64 << 10;
/// Ranges of packets in one message to other engines, bytes of the largest such message, and how many may wait.
const RANGES: usize = 4096;
const MAX_TAKEN_BYTES: usize = 1 << 20;
const TAKEN: usize = 64;
/// Ticks after which an engine says that it is there.
const PRESENCE: u32 = 5;
/// How long to wait at the end for what other engines have taken.
const SETTLING: Duration = Duration::from_secs(3);

/// A subscription that feeds the workers. Dropped, it ends.
pub struct Listening {
    /// Subjects and servers, for people.
    pub to: String,
    from: From,
    bus: Bus,
    runtime: Runtime,
}

enum From {
    Core(Arc<Messages>),
    /// With the identity of the stream, where it is one.
    Log(Arc<Log>, String),
}

/// What this process listens to, and who else does.
pub struct Listen<'a> {
    /// Where the bus is.
    pub settings: &'a Settings,
    /// How messages are taken.
    pub rules: Rules,
    /// Names us to the server.
    pub program: &'static str,
    /// Who reads which partitions.
    pub division: Division,
    /// The same number for all processes of a cluster, and for no other engine.
    pub engine: u64,
    /// What earlier runs have recorded of the durable log.
    pub resume: Resume,
    /// The identity of the stream that they have read; empty where none has.
    pub identity: String,
}

/// What engines of one group tell each other.
struct Shared {
    bus: Bus,
    subject: String,
    /// Tells this engine from the others.
    engine: u64,
    /// Whether another has said anything.
    heard: AtomicBool,
}

impl Shared {
    /// Says what was taken here, and hears what was taken elsewhere.
    async fn run(self: Arc<Self>, mut others: Subscription, messages: Arc<Messages>) {
        // Listens for as long as the engine lives.
        let (_stop, mut never) = watch::channel(false);
        let mut interval = tokio::time::interval(TICK);
        let mut silent = 0;
        loop {
            tokio::select! {
                _ = interval.tick() => {
                    // Now and then without any ranges: there is another engine.
                    silent = (silent + 1) % PRESENCE;
                    self.tell(&messages, silent == 1).await;
                }
                arrival = others.next(&mut never) => {
                    let Some(arrival) = arrival else { return };
                    if arrival.payload.len() > MAX_TAKEN_BYTES {
                        continue;
                    }
                    match Taken::decode(arrival.payload.clone()) {
                        Ok(taken) if taken.engine != self.engine && taken.engine != 0 => {
                            self.heard.store(true, SeqCst);
                            messages.told(taken.ranges);
                        }
                        // Our own words, or nothing that an engine says.
                        _ => {}
                    }
                }
            }
        }
    }

    /// When all messages have been taken: tells the others so, and hears what they have taken.
    async fn settle(&self, messages: &Messages) {
        if self.bus.is_away() {
            return;
        }
        let telling = async {
            self.tell(messages, false).await;
            // Gone through the server, so that the others hear it though we end.
            self.bus.round_trip().await
        };
        // Where the server goes away just now, the others do without it.
        let _ = tokio::time::timeout(SETTLING, telling).await;
        let began = Instant::now();
        while self.heard.load(SeqCst) && messages.missing() > 0 && began.elapsed() < SETTLING {
            tokio::time::sleep(TICK / 4).await;
        }
    }

    async fn tell(&self, messages: &Messages, anyway: bool) {
        // While the server is away it keeps.
        if self.bus.is_away() || !self.bus.may_share() {
            return;
        }
        let mut ranges = messages.tell();
        if ranges.is_empty() && !anyway {
            return;
        }
        loop {
            let rest = ranges.split_off(ranges.len().min(RANGES));
            let taken = Taken { engine: self.engine, ranges: std::mem::replace(&mut ranges, rest) };
            // Without the server there is nobody to tell.
            let _ = self.bus.client().publish(self.subject.clone(), taken.encode_to_vec().into()).await;
            if ranges.is_empty() {
                return;
            }
        }
    }
}

impl Listening {
    /// Connects and subscribes.
    pub fn start(listen: Listen<'_>) -> Result<Self, BusError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(no_threads(listen.settings))?;
        let (bus, from, to) = runtime.block_on(async {
            let room = if listen.settings.jetstream.enabled { SINGLES } else { BATCHES };
            let bus = Bus::connect(listen.settings, listen.program, room).await?;
            let (from, to) = match listen.settings.jetstream.enabled {
                true => read_log(&bus, listen).await?,
                false if listen.division.peers > listen.division.workers => divide(&bus, listen).await?,
                false => subscribe(&bus, listen).await?,
            };
            Ok((bus, from, to))
        })?;
        Ok(Self { to, from, bus, runtime })
    }

    /// What feeds the workers.
    pub fn intake(&self) -> Arc<dyn Intake> {
        match &self.from {
            From::Core(messages) => messages.clone(),
            From::Log(log, _) => log.clone(),
        }
    }

    /// The connection.
    pub fn bus(&self) -> Bus {
        self.bus.clone()
    }

    /// The identity of the stream that is read; empty where none is.
    pub fn identity(&self) -> &str {
        match &self.from {
            From::Core(_) => "",
            From::Log(_, identity) => identity,
        }
    }

    /// Why messages have ended, where nobody stopped them.
    pub fn failure(&self) -> Option<String> {
        match &self.from {
            From::Core(messages) => messages.failure(),
            From::Log(log, _) => log.failure(),
        }
    }

    /// Waits until the server has heard what is done with. Where it goes away just now, our own records say it.
    pub fn settle(&self) {
        if !self.bus.is_away() {
            let _ =
                self.runtime.block_on(async { tokio::time::timeout(SETTLING, self.bus.round_trip()).await });
        }
    }
}

/// Answers where it is told to.
fn answer(bus: &Bus, mut replies: mpsc::UnboundedReceiver<Subject>) {
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some(reply) = replies.recv().await {
            // Where the answer is lost with the connection, whoever asked asks again.
            let _ = bus.client().publish(reply, Bytes::new()).await;
        }
    });
}

/// What the server denies it may say later than it answers: an engine that hears nothing does not go on.
fn hears(buses: &[Bus], intake: &impl Intake, fail: impl FnOnce(String)) {
    if let Err(error) = buses.iter().try_for_each(Bus::deaf) {
        fail(error.to_string());
        intake.stop();
    }
}

/// Does something now and then, for as long as the engine lives.
fn each_tick(tick: impl Fn() + Send + 'static) {
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            tick();
        }
    });
}

async fn subscribe(bus: &Bus, listen: Listen<'_>) -> Result<(From, String), BusError> {
    let Listen { settings, rules, program, engine, .. } = listen;
    let (stop, stopped) = watch::channel(false);
    let (taken, to_answer) = mpsc::unbounded_channel();
    let group = Some(settings.queue_group.as_str());
    let single_bus = Bus::connect(settings, program, SINGLES).await?;
    single_bus.hush();
    let buses = [bus.clone(), single_bus.clone()];
    let subscriptions = [
        (Kind::Batch, Subscription::core(bus, &settings.batches(), group).await?),
        (Kind::Single, Subscription::core(&single_bus, &settings.single, group).await?),
    ];
    let to = format!("{} and {} at {}", settings.single, settings.batches(), bus.servers());
    let taken_subject = settings.taken();
    // On a connection of its own: few of them may wait there.
    let taken_bus = Bus::connect(settings, program, TAKEN).await?;
    taken_bus.hush();
    let others = Subscription::core(&taken_bus, &taken_subject, None).await?;
    let ends = Box::new(move || {
        stop.send_replace(true);
    });
    let messages = Arc::new(Messages::new(rules, taken, ends));
    let mut pumps = JoinSet::new();
    for (kind, subscription) in subscriptions {
        pumps.spawn(pump(kind, subscription, messages.clone(), stopped.clone()));
    }
    let heard = AtomicBool::new(false);
    let shared = Arc::new(Shared { bus: taken_bus, subject: taken_subject, engine, heard });
    let (ended, settling) = (messages.clone(), shared.clone());
    tokio::spawn(async move {
        let mut received_singles = 0;
        while let Some(received) = pumps.join_next().await {
            received_singles += received.unwrap_or(0);
        }
        ended.lost_singles(single_bus.messages_in().saturating_sub(received_singles));
        ended.drained().await;
        settling.settle(&ended).await;
        ended.end();
    });
    answer(bus, to_answer);
    let ticking = messages.clone();
    each_tick(move || {
        hears(&buses, &*ticking, |why| ticking.fail(why));
        ticking.tick();
    });
    tokio::spawn(shared.run(others, messages.clone()));
    Ok((From::Core(messages), to))
}

/// Subscribes to the partitions of this process, over core NATS.
async fn divide(bus: &Bus, listen: Listen<'_>) -> Result<(From, String), BusError> {
    let Listen { settings, rules, program, division, resume, .. } = listen;
    let (stop, stopped) = watch::channel(false);
    let (taken, to_answer) = mpsc::unbounded_channel();
    let group = Some(settings.queue_group.as_str());
    let mut subscriptions = Vec::new();
    for number in division.own() {
        let (bus, subject) = if number == division.partitions {
            let single_bus = Bus::connect(settings, program, SINGLES).await?;
            single_bus.hush();
            (single_bus, settings.single.clone())
        } else {
            (bus.clone(), format!("{}.{number}", settings.batch))
        };
        subscriptions.push((number, Subscription::core(&bus, &subject, group).await?, bus));
    }
    let ends = Box::new(move || {
        stop.send_replace(true);
    });
    let buses: Vec<Bus> = subscriptions.iter().map(|(_, _, bus)| bus.clone()).collect();
    let log = Arc::new(Log::new(rules, division, None, resume, taken, ends));
    for (number, mut subscription, bus) in subscriptions {
        let (log, mut stopped) = (log.clone(), stopped.clone());
        tokio::spawn(async move {
            let mut received = 0;
            while let Some(message) = subscription.next(&mut stopped).await {
                received += 1;
                let stopping = *stopped.borrow();
                log.put(
                    number,
                    Logged { message, number: received, waiting: 0, stored: live::now() },
                    stopping,
                )
                .await;
            }
            if !*stopped.borrow() {
                log.fail("the subscription has ended by itself".into());
            }
            if number == division.partitions {
                log.lost_singles(bus.messages_in().saturating_sub(received));
            }
            log.end(number);
        });
    }
    answer(bus, to_answer);
    let ticking = log.clone();
    each_tick(move || {
        hears(&buses, &*ticking, |why| ticking.fail(why));
        ticking.wake();
    });
    let to = format!("{} and {} at {}", settings.single, settings.batches(), bus.servers());
    Ok((From::Log(log, String::new()), to))
}

async fn read_log(bus: &Bus, listen: Listen<'_>) -> Result<(From, String), BusError> {
    let Listen { settings, rules, division, engine, resume, identity, .. } = listen;
    let stream = stream(bus, settings).await?;
    let info = stream.cached_info();
    let (identity_now, last) = (identity_of(info), info.state.last_sequence);
    let read =
        |position: &LogPosition| position.start.saturating_sub(1).max(position.boundary.0.saturating_sub(1));
    let recorded = resume.positions.values().map(read).max().unwrap_or(0);
    if recorded > last || !identity.is_empty() && identity != identity_now {
        let why = std::io::Error::other(format!(
            "it was made anew or has lost messages: its last is number {last}, and earlier runs have read {recorded} of \
             theirs; to begin anew too, use another output folder"
        ));
        return Err(bus.failed(format!("go on in the stream {}", settings.jetstream.stream), &why));
    }
    let earliest = resume.positions.values().map(|position| position.start).min().unwrap_or(0);
    if earliest > 0 && earliest < info.state.first_sequence {
        let first = info.state.first_sequence;
        warn!("the log now begins with message {first}; those from {earliest} on were not read");
    }
    let (stop, stopped) = watch::channel(false);
    let (done, to_answer) = mpsc::unbounded_channel();
    let own: Vec<u32> = division.own().collect();
    let (mut partitions, mut waiting) = (Vec::new(), BTreeMap::new());
    for number in &own {
        let single = *number == division.partitions;
        let part = Part {
            consumer: format!(
                "{}-{}",
                settings.queue_group,
                if single { "single".into() } else { number.to_string() }
            ),
            generation: engine,
            subject: if single { settings.single.clone() } else { format!("{}.{number}", settings.batch) },
            start: resume.positions.get(number).map_or(1, |position| position.start),
            acknowledged: !single,
            beside: own.len(),
        };
        let (partition, behind) = Partition::open(bus, &stream, part).await?;
        waiting.insert(*number, behind);
        partitions.push((*number, partition));
    }
    bus.denied()?;
    let ends = Box::new(move || {
        stop.send_replace(true);
    });
    let log = Arc::new(Log::new(rules, division, Some(&waiting), resume, done, ends));
    for (number, mut partition) in partitions {
        let (log, mut stopped) = (log.clone(), stopped.clone());
        tokio::spawn(async move {
            loop {
                match partition.next(&mut stopped).await {
                    Ok(Some(Got::Message(message))) => log.put(number, message, true).await,
                    Ok(Some(Got::Waiting(waiting))) => log.wait_for(number, waiting),
                    Ok(None) => break,
                    Err(why) => {
                        log.fail(why);
                        // Without one partition the others would only run ahead.
                        log.stop();
                        break;
                    }
                }
            }
            log.end(number);
        });
    }
    answer(bus, to_answer);
    let ticking = log.clone();
    each_tick(move || ticking.wake());
    let to = format!("stream {} at {}", settings.jetstream.stream, bus.servers());
    Ok((From::Log(log, identity_now), to))
}

/// Moves messages from a subscription to the queue; gives the number of single packets received, lost ones included.
async fn pump(
    kind: Kind,
    mut subscription: Subscription,
    messages: Arc<Messages>,
    mut stopped: watch::Receiver<bool>,
) -> u64 {
    let mut received = 0;
    while let Some(message) = subscription.next(&mut stopped).await {
        received += 1;
        let stopping = *stopped.borrow();
        messages.put(kind, message, stopping).await;
    }
    if !*stopped.borrow() {
        messages.fail("the subscription has ended by itself".into());
    }
    if kind == Kind::Single { received } else { 0 }
}
