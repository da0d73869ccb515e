//! Subscribes an engine to the bus: the tasks between the connection and the queue of messages.
//!
//! Two connections over core NATS: batches are few and large, single packets many and small, and the room that the client
//! keeps for each is a number of messages.

use super::bus::{Kind, Messages, Rules};
use crate::bus::subscribe::Subscription;
use crate::bus::{Bus, BusError, Settings};
use crate::capture::live::now;
use crate::wire::v1::Taken;
use bytes::Bytes;
use prost::Message;
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
/// Ranges of packets in one message to other engines.
const RANGES: usize = 4096;
/// Ticks after which an engine says that it is there.
const PRESENCE: u32 = 5;
/// How long to wait at the end for what other engines have taken.
const SETTLING: Duration = Duration::from_secs(3);
/// How often the clock is looked at, and other engines are told what was taken.
const TICK: Duration = Duration::from_millis(200);

/// A subscription that feeds a queue. Dropped, it ends.
pub struct Listening {
    /// The queue.
    pub messages: Arc<Messages>,
    /// Subjects and servers, for people.
    pub to: String,
    runtime: Runtime,
    shared: Arc<Shared>,
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
                    match Taken::decode(arrival.message().payload.clone()) {
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
    pub fn start(settings: &Settings, rules: Rules, program: &'static str) -> Result<Self, BusError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| BusError::Failed {
            servers: settings.shown(),
            action: "start the threads for it".into(),
            why: error.to_string(),
        })?;
        let (messages, to, shared) = runtime.block_on(subscribe(settings, rules, program))?;
        Ok(Self { messages, to, runtime, shared })
    }

    /// When all messages have been taken: tells the other engines of the group so, and hears what they have taken.
    pub fn settle(&self) {
        let shared = &self.shared;
        self.runtime.block_on(async {
            if shared.bus.is_away() {
                return;
            }
            let telling = async {
                shared.tell(&self.messages, false).await;
                // Gone through the server, so that the others hear it though we end.
                shared.bus.round_trip().await
            };
            // Where the server goes away just now, the others do without it.
            let _ = tokio::time::timeout(SETTLING, telling).await;
            let began = Instant::now();
            while shared.heard.load(SeqCst) && self.messages.missing() > 0 && began.elapsed() < SETTLING {
                tokio::time::sleep(TICK / 4).await;
            }
        });
    }
}

async fn subscribe(
    settings: &Settings,
    rules: Rules,
    program: &'static str,
) -> Result<(Arc<Messages>, String, Arc<Shared>), BusError> {
    let began = now();
    let (stop, stopped) = watch::channel(false);
    let (taken, mut to_answer) = mpsc::unbounded_channel();
    let room = if settings.jetstream.enabled { SINGLES } else { BATCHES };
    let bus = Bus::connect(settings, program, room).await?;
    let mut subscriptions = Vec::new();
    let mut singles = None;
    let to;
    if settings.jetstream.enabled {
        subscriptions.push(Subscription::log(&bus, settings).await?);
        to = format!("stream {} at {}", settings.jetstream.stream, bus.servers());
    } else {
        let group = Some(settings.queue_group.as_str());
        let single_bus = Bus::connect(settings, program, SINGLES).await?;
        single_bus.hush();
        subscriptions.push(Subscription::core(&bus, &settings.batches(), group).await?);
        subscriptions.push(Subscription::core(&single_bus, &settings.single, group).await?);
        singles = Some(single_bus);
        to = format!("{} and {} at {}", settings.single, settings.batches(), bus.servers());
    }
    let taken_subject = settings.taken();
    let others = Subscription::core(&bus, &taken_subject, None).await?;
    let ends = Box::new(move || {
        stop.send_replace(true);
    });
    let messages = Arc::new(Messages::new(rules, began, taken, ends));

    let mut pumps = JoinSet::new();
    for subscription in subscriptions {
        let (single, batches) = (settings.single.clone(), format!("{}.", settings.batch));
        pumps.spawn(pump(single, batches, subscription, messages.clone(), stopped.clone()));
    }
    let (ended, answering) = (messages.clone(), bus.clone());
    tokio::spawn(async move {
        let mut received_singles = 0;
        while let Some(received) = pumps.join_next().await {
            received_singles += received.unwrap_or(0);
        }
        if let Some(bus) = singles {
            ended.lost_singles(bus.messages_in().saturating_sub(received_singles));
        }
        ended.end();
    });
    tokio::spawn(async move {
        while let Some(reply) = to_answer.recv().await {
            // Where the answer is lost with the connection, whoever asked asks again.
            let _ = answering.client().publish(reply, Bytes::new()).await;
        }
    });
    let ticking = messages.clone();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            ticking.tick();
        }
    });
    let shared =
        Arc::new(Shared { bus, subject: taken_subject, engine: random(), heard: AtomicBool::new(false) });
    tokio::spawn(shared.clone().run(others, messages.clone()));
    Ok((messages, to, shared))
}

/// A number that no other engine has.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), now())
}

/// Moves messages from a subscription to the queue; gives the number of single packets received, lost ones included.
async fn pump(
    single: String,
    batches: String,
    mut subscription: Subscription,
    messages: Arc<Messages>,
    mut stopped: watch::Receiver<bool>,
) -> u64 {
    let mut singles = 0;
    while let Some(arrival) = subscription.next(&mut stopped).await {
        let message = arrival.message();
        let kind = if *message.subject == *single {
            singles += 1;
            Kind::Single
        } else if message.subject.starts_with(&batches) {
            Kind::Batch
        } else {
            // In the log because its stream holds more than our subjects.
            messages.pass(message);
            continue;
        };
        let stopping = *stopped.borrow();
        messages.put(kind, arrival, stopping).await;
    }
    if !*stopped.borrow() {
        messages.fail("the subscription has ended by itself; was the consumer deleted?".into());
    }
    singles
}
