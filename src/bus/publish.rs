//! The probe's side of the bus: a bounded buffer in front of it, and the sender behind.
//!
//! Batches are kept until an engine (or the durable log) has said that it took them, and sent again after the connection
//! was lost: whoever reads them counts each packet number once. Who can wait (a replay) never has more on the way than
//! that; who cannot (a live link) goes on, and then the oldest are kept no longer.

use super::subscribe::{SENT_AGAIN, stream};
use super::{Bus, BusError, Settings, no_threads};
use crate::fingerprint::fingerprint;
use crate::wire::batch::BLOCK;
use async_nats::jetstream::{self, context::PublishAckFuture, message::PublishMessage};
use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

/// Messages on the way that nobody has taken yet, where the probe can wait.
const WINDOW: usize = 32;
/// Single packets on their way into the durable log.
const SINGLES_LOGGING: usize = 4096;
/// Messages kept to be sent again, where it cannot.
const KEPT: usize = 256;
/// One in so many single packets asks for an answer.
const ASK_EVERY: u64 = 256;
/// One in so many batches does, where the probe cannot wait: every answer wakes a thread.
const ASK_EVERY_BATCH: u64 = 8;
/// How long to wait for the first answer of an engine before going on without answers.
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// How long to wait for an engine that has answered before, and at the end for the bus.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait at the end for an engine that is gone, or that a live probe need not wait for.
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// How long to wait before the durable log is tried again.
const PAUSE: Duration = Duration::from_millis(200);
/// After how long without an answer messages are sent again.
const AGAIN: Duration = Duration::from_secs(1);

/// A message to be sent.
pub enum Outgoing {
    /// A batch: its number (the next one's for a heartbeat), whether it holds packets, and its bytes.
    Batch {
        /// Number in the run.
        sequence: u64,
        /// Number of its first packet in the run.
        first_packet: u64,
        /// Packets in it.
        packets: u64,
        /// Whether it is the last of the run.
        last: bool,
        /// The message.
        payload: Bytes,
    },
    /// Single packets, a message each.
    Singles(Vec<Bytes>),
}

impl Outgoing {
    fn size(&self) -> u64 {
        match self {
            Self::Batch { payload, .. } => payload.len() as u64,
            Self::Singles(payloads) => payloads.iter().map(|payload| payload.len() as u64 + 64).sum(),
        }
    }

    fn packets(&self) -> u64 {
        match self {
            Self::Batch { packets, .. } => *packets,
            Self::Singles(payloads) => payloads.len() as u64,
        }
    }
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Outgoing>,
    bytes: u64,
    closed: bool,
    /// Packets of messages that came when nobody sent them any more.
    refused: u64,
}

/// Messages that wait to be sent: a bounded number of bytes.
pub struct Buffer {
    waiting: Mutex<Waiting>,
    limit: u64,
    abandoned: AtomicBool,
    room: Condvar,
    filled: Notify,
}

impl Buffer {
    /// A buffer of so many bytes.
    pub fn new(limit: u64) -> Self {
        let abandoned = AtomicBool::new(false);
        Self { waiting: Mutex::default(), limit, abandoned, room: Condvar::new(), filled: Notify::new() }
    }

    /// Whether a message of about so many bytes would be taken now.
    pub fn has_room(&self, bytes: u64) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.messages.is_empty() || waiting.bytes + bytes <= self.limit
    }

    /// Whether nobody sends what is put in any more.
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(SeqCst)
    }

    /// Nobody sends what is put in any more: it is counted and not kept.
    pub fn abandon(&self) {
        self.abandoned.store(true, SeqCst);
        self.room.notify_all();
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).messages.is_empty()
    }

    /// Waits for room for about so many bytes; `false` if there was none in that time.
    pub fn wait_for_room(&self, bytes: u64, most: Duration) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |waiting: &mut Waiting| {
            !self.is_abandoned() && !waiting.messages.is_empty() && waiting.bytes + bytes > self.limit
        };
        let waited = self.room.wait_timeout_while(waiting, most, full);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Adds a message, whatever room there is.
    pub fn push(&self, message: Outgoing) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_abandoned() {
            waiting.refused += message.packets();
        } else {
            waiting.bytes += message.size();
            waiting.messages.push_back(message);
        }
        drop(waiting);
        self.filled.notify_one();
    }

    /// Nothing comes after what is there.
    pub fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.filled.notify_one();
    }

    fn take(&self) -> Option<Outgoing> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let message = waiting.messages.pop_front()?;
        waiting.bytes -= message.size();
        self.room.notify_all();
        Some(message)
    }

    /// The next message; `None` when the buffer is closed and empty.
    pub(crate) async fn next(&self) -> Option<Outgoing> {
        loop {
            if let Some(message) = self.take() {
                return Some(message);
            }
            if self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed {
                return self.take();
            }
            self.filled.notified().await;
        }
    }

    /// Packets that wait, and those that came when nobody sent them any more.
    pub fn left(&self) -> u64 {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.messages.iter().map(Outgoing::packets).sum::<u64>() + waiting.refused
    }
}

/// How messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pacing {
    /// No more than the bus takes: a replay waits.
    Waits,
    /// What comes must go: a live link does not wait.
    Goes,
}

/// How far the sender has come.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Messages sent, each once however often it was sent again.
    pub messages: AtomicU64,
    /// Packets taken from the buffer that are not known to have left.
    pub stuck: AtomicU64,
    /// Over core NATS: whether an engine has ever answered, and whether the server has ever said that nobody listens.
    pub taken: AtomicBool,
    /// See there.
    pub unheard: AtomicBool,
}

/// Sends what comes through a buffer until it is closed.
pub struct Publisher {
    bus: Bus,
    buffer: Arc<Buffer>,
    subject: String,
    partitions: u64,
    /// Where in them this probe begins, so that not all begin in the same.
    first_partition: u64,
    /// Tells the messages of this run from those of others, in the durable log.
    identity: String,
    pacing: Pacing,
    delivery: Arc<Delivery>,
    /// Packets handed to the client while it was away: they leave when it is back.
    held: u64,
}

impl Publisher {
    /// A publisher of single packets on `subject`, of batches on its partitions.
    pub fn new(
        bus: &Bus,
        buffer: Arc<Buffer>,
        subject: &str,
        partitions: u32,
        identity: String,
        pacing: Pacing,
    ) -> Self {
        let (bus, subject, partitions) = (bus.clone(), subject.to_owned(), u64::from(partitions.max(1)));
        let first_partition = fingerprint(identity.as_bytes()) % partitions;
        Self {
            bus,
            buffer,
            subject,
            partitions,
            first_partition,
            identity,
            pacing,
            delivery: Arc::default(),
            held: 0,
        }
    }

    /// How far it has come, to be looked at while it sends and after.
    pub fn delivery(&self) -> Arc<Delivery> {
        self.delivery.clone()
    }

    /// The subject of a block of packets.
    fn subject(&self, block: u64) -> String {
        let partition = (block % self.partitions + self.first_partition) % self.partitions;
        format!("{}.{partition}", self.subject)
    }

    /// The subjects of a batch: one without packets goes to all partitions, first to that of the next packet.
    fn subjects(&self, first_packet: u64, packets: u64) -> impl Iterator<Item = String> + use<> {
        let partitions = if packets > 0 { 1 } else { self.partitions };
        let block = first_packet / BLOCK;
        let subjects: Vec<String> =
            (0..partitions).map(|partition| self.subject(block + partition)).collect();
        subjects.into_iter()
    }

    fn failed(&self, error: &dyn std::error::Error) -> BusError {
        self.bus.failed(format!("publish on {}", self.subject), error)
    }

    /// Sends over core NATS.
    pub async fn run_core(mut self) -> Result<(), BusError> {
        let inbox = self.bus.client().new_inbox();
        let answers = self.bus.client().subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| self.failed(&error))?;
        self.bus.round_trip().await?;
        let mut unanswered = Unanswered::new(answers, self.pacing);
        let mut ended = false;
        loop {
            // What is sent again after an outage has to come before what is new.
            let waits = self.pacing == Pacing::Waits && self.bus.is_away();
            let room = !ended && !waits && !unanswered.is_full();
            if ended && unanswered.is_settled() {
                break;
            }
            tokio::select! {
                biased;
                () = self.bus.came_back() => {
                    unanswered.again = true;
                    self.delivery.stuck.fetch_sub(std::mem::take(&mut self.held), SeqCst);
                }
                () = unanswered.hear() => {}
                message = self.buffer.next(), if room => match message {
                    Some(message) => {
                        let packets = message.packets();
                        self.delivery.stuck.fetch_add(packets, SeqCst);
                        self.send_core(message, &inbox, &mut unanswered).await?;
                        if self.bus.is_away() {
                            self.held += packets;
                        } else {
                            self.delivery.stuck.fetch_sub(packets, SeqCst);
                        }
                    }
                    None => ended = true,
                },
                () = tokio::time::sleep(AGAIN) => unanswered.grow_tired(),
            }
            self.bus.denied()?;
            self.delivery.taken.fetch_or(unanswered.engine, SeqCst);
            self.delivery.unheard.fetch_or(unanswered.unheard, SeqCst);
            if std::mem::take(&mut unanswered.again) {
                let again: Vec<_> = unanswered.batches().collect();
                for (sequence, (to, payload)) in again {
                    let reply = format!("{inbox}.{sequence}{SENT_AGAIN}");
                    let published = self.bus.client().publish_with_reply(to, reply, payload).await;
                    published.map_err(|error| self.failed(&error))?;
                }
            }
        }
        self.finish().await
    }

    async fn send_core(
        &mut self,
        message: Outgoing,
        inbox: &str,
        unanswered: &mut Unanswered,
    ) -> Result<(), BusError> {
        match message {
            Outgoing::Batch { sequence, first_packet, packets, last, payload } => {
                let mut subjects = self.subjects(first_packet, packets);
                let to = subjects.next().unwrap_or_default();
                // A heartbeat has the number of the next batch and need not be kept.
                if packets > 0 || last {
                    unanswered.keep(sequence, Some((to.clone(), payload.clone())));
                }
                let asks = match self.pacing {
                    Pacing::Waits => packets > 0,
                    Pacing::Goes => packets > 0 && unanswered.may_ask(),
                };
                let client = self.bus.client();
                let published = if asks || last {
                    client.publish_with_reply(to, format!("{inbox}.{sequence}"), payload.clone()).await
                } else {
                    client.publish(to, payload.clone()).await
                };
                published.map_err(|error| self.failed(&error))?;
                for to in subjects {
                    client.publish(to, payload.clone()).await.map_err(|error| self.failed(&error))?;
                }
                self.delivery.messages.fetch_add(1, SeqCst);
            }
            Outgoing::Singles(payloads) => {
                for payload in payloads {
                    let number = self.delivery.messages.fetch_add(1, SeqCst) + 1;
                    let client = self.bus.client();
                    let published = if self.pacing == Pacing::Waits && number % ASK_EVERY == 1 {
                        unanswered.keep(number, None);
                        client
                            .publish_with_reply(self.subject.clone(), format!("{inbox}.{number}"), payload)
                            .await
                    } else {
                        client.publish(self.subject.clone(), payload).await
                    };
                    published.map_err(|error| self.failed(&error))?;
                }
            }
        }
        Ok(())
    }

    /// Waits until the server has all of it, and has said what it denies.
    async fn finish(self) -> Result<(), BusError> {
        loop {
            let error = match self.bus.round_trip().await {
                Ok(()) => return self.bus.close().await,
                Err(error) => error,
            };
            self.bus.denied()?;
            if !self.bus.is_away() {
                return Err(error);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Sends over JetStream: every message is acknowledged once it is in the stream.
    pub async fn run_log(mut self, settings: &Settings) -> Result<(), BusError> {
        stream(&self.bus, settings).await?;
        let mut line = Line::open(&self.bus, settings).await?;
        let mut sending: VecDeque<Sending> = VecDeque::new();
        let mut most = 2 * WINDOW;
        loop {
            let next = if sending.is_empty() {
                let Some(message) = self.buffer.next().await else { return Ok(()) };
                Some(message)
            } else if sending.len() < most {
                self.buffer.take()
            } else {
                None
            };
            let Some(message) = next else {
                // Nothing to send at the moment: see what has arrived.
                self.confirm_first(&mut line, &mut sending, settings).await?;
                continue;
            };
            if let Outgoing::Singles(_) = message {
                most = SINGLES_LOGGING;
            }
            self.delivery.stuck.fetch_add(message.packets(), SeqCst);
            for message in self.log_messages(message) {
                let answer = Some(line.send(&message).await);
                sending.push_back(Sending { message, answer });
            }
        }
    }

    fn log_messages(&mut self, message: Outgoing) -> Vec<Logging> {
        let identity = &self.identity;
        let messages: Vec<Logging> = match message {
            Outgoing::Batch { first_packet, packets, payload, .. } => {
                // A heartbeat is no repeat of the batch that has its number. A batch that is cut in another way has another
                // name, or the same packets.
                let id = (packets > 0).then(|| format!("{identity}-{first_packet}+{packets}"));
                let subjects = self.subjects(first_packet, packets);
                subjects
                    .map(|subject| Logging { subject, payload: payload.clone(), id: id.clone(), packets })
                    .collect()
            }
            Outgoing::Singles(payloads) => {
                let first = self.delivery.messages.load(SeqCst);
                let one = |(at, payload)| {
                    let id = Some(format!("{identity}-single-{}", first + at));
                    Logging { subject: self.subject.clone(), payload, id, packets: 1 }
                };
                (0..).zip(payloads).map(one).collect()
            }
        };
        self.delivery.messages.fetch_add(messages.len() as u64, SeqCst);
        messages
    }

    /// Waits until the message that is longest on its way is in the stream.
    ///
    /// Where it is not, the messages behind it may not get there first: whoever reads the log takes them in its order. So the
    /// connection is given up with all that it holds, and what nobody has confirmed is sent again on another one, the first
    /// alone until it is there. A message that was there already is dropped by the server, or by whoever reads the log.
    async fn confirm_first(
        &mut self,
        line: &mut Line,
        sending: &mut VecDeque<Sending>,
        settings: &Settings,
    ) -> Result<(), BusError> {
        let began = Instant::now();
        let mut again = false;
        while let Some(first) = sending.front_mut() {
            let Some(answer) = first.answer.take() else { break };
            let error = match line.answered(answer).await {
                Ok(()) => {
                    self.delivery.stuck.fetch_sub(first.message.packets, SeqCst);
                    sending.pop_front();
                    break;
                }
                Err(error) => error,
            };
            again = true;
            self.bus.denied()?;
            line.bus.denied()?;
            loop {
                if self.pacing == Pacing::Waits && !self.bus.is_away() && began.elapsed() > PATIENCE {
                    return Err(self.failed(&*error));
                }
                tokio::time::sleep(PAUSE).await;
                // Where there is no connection yet, the next may come.
                if let Ok(opened) = Line::open(&self.bus, settings).await {
                    *line = opened;
                    break;
                }
            }
            first.answer = Some(line.send(&first.message).await);
        }
        if again {
            for Sending { message, answer } in sending {
                *answer = Some(line.send(message).await);
            }
        }
        Ok(())
    }
}

/// A connection into the durable log, used until something goes wrong on it, and never after.
struct Line {
    bus: Bus,
    context: jetstream::Context,
    /// A message could not be sent: none behind it is.
    broken: bool,
    _tasks: Tasks,
}

/// Where the tasks of a connection run. Dropped, they end at once, and what they have not sent is never sent.
struct Tasks(Option<Runtime>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Line {
    /// Connects to where `bus` is connected.
    async fn open(bus: &Bus, settings: &Settings) -> Result<Self, BusError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let tasks = Tasks(Some(runtime.map_err(no_threads(settings))?));
        let (settings, program) = (settings.clone(), bus.program);
        let opening = async move {
            let bus = Bus::connect_once(&settings, program).await?;
            let context = jetstream::new(bus.client().clone());
            Ok((bus, context))
        };
        let opened = tasks.0.as_ref().map(|runtime| runtime.spawn(opening));
        let opened = match opened {
            Some(opened) => opened.await.map_err(|error| bus.failed("connect once more", &error))?,
            None => return Err(bus.failed("connect once more", &gone())),
        };
        let (bus, context) = opened?;
        Ok(Self { bus, context, broken: false, _tasks: tasks })
    }

    /// Sends a message; the answer comes later.
    async fn send(&mut self, message: &Logging) -> Result<PublishAckFuture, AnyError> {
        if self.broken || self.bus.is_away() {
            return Err(gone().into());
        }
        let mut publish = PublishMessage::build().payload(message.payload.clone());
        if let Some(id) = &message.id {
            publish = publish.message_id(id);
        }
        let sent = self.context.send_publish(message.subject.clone(), publish).await;
        self.broken = sent.is_err();
        Ok(sent?)
    }

    /// Waits for the answer that a message is in the stream.
    async fn answered(&self, answer: Result<PublishAckFuture, AnyError>) -> Result<(), AnyError> {
        let answer = answer?.into_future();
        tokio::select! {
            biased;
            answered = answer => Ok(answered.map(drop)?),
            () = self.bus.lost() => Err(gone().into()),
        }
    }
}

fn gone() -> std::io::Error {
    std::io::ErrorKind::ConnectionAborted.into()
}

/// A message on its way into the durable log.
struct Sending {
    message: Logging,
    /// What was heard when it was last sent.
    answer: Option<Result<PublishAckFuture, AnyError>>,
}

/// A message for the durable log.
struct Logging {
    subject: String,
    payload: Bytes,
    id: Option<String>,
    packets: u64,
}

/// Messages that nobody has said to have taken.
struct Unanswered {
    answers: Subscriber,
    pacing: Pacing,
    /// By number, each with its subject; single packets are not kept.
    messages: BTreeMap<u64, Option<(String, Bytes)>>,
    /// Whether an engine has answered, and when anything last did or was first waited for.
    engine: bool,
    since: Instant,
    /// The server has said that nobody listens.
    unheard: bool,
    /// Nobody answers: whoever listens does not say what it takes.
    unpaced: bool,
    /// Send them again.
    again: bool,
    /// Since when nobody listens any more, though an engine did.
    gone: Option<Instant>,
    /// Batches since one has asked, and when that was.
    unasked: u64,
    asked: Instant,
}

impl Unanswered {
    fn new(answers: Subscriber, pacing: Pacing) -> Self {
        let (messages, since) = (BTreeMap::new(), Instant::now());
        Self {
            answers,
            pacing,
            messages,
            engine: false,
            since,
            unheard: false,
            unpaced: false,
            again: false,
            gone: None,
            unasked: 0,
            asked: since,
        }
    }

    fn is_full(&self) -> bool {
        self.pacing == Pacing::Waits && !self.unpaced && self.messages.len() >= WINDOW
    }

    fn is_settled(&self) -> bool {
        let patience = if self.pacing == Pacing::Waits { PATIENCE } else { LAST_ANSWER };
        let waited = self.since.elapsed() >= if self.engine { patience } else { FIRST_ANSWER };
        let gone = self.gone.is_some_and(|since| since.elapsed() >= LAST_ANSWER);
        self.messages.is_empty() || self.unpaced || waited || gone
    }

    fn keep(&mut self, number: u64, batch: Option<(String, Bytes)>) {
        if self.messages.is_empty() {
            self.since = Instant::now();
        }
        self.messages.insert(number, batch);
        while self.messages.len() > KEPT {
            self.messages.pop_first();
        }
    }

    /// Whether the next batch is to ask, of a probe that cannot wait.
    fn may_ask(&mut self) -> bool {
        self.unasked += 1;
        let asks = self.unasked >= ASK_EVERY_BATCH || self.asked.elapsed() >= AGAIN;
        if asks {
            (self.unasked, self.asked) = (0, Instant::now());
        }
        asks
    }

    /// The batches, in order.
    fn batches(&self) -> impl Iterator<Item = (u64, (String, Bytes))> + '_ {
        self.messages.iter().filter_map(|(number, batch)| Some((*number, batch.clone()?)))
    }

    /// Waits for an answer.
    async fn hear(&mut self) {
        let Some(answer) = self.answers.next().await else { return std::future::pending().await };
        let number = answer.subject.rsplit('.').next();
        let number = number.and_then(|number| number.trim_end_matches(SENT_AGAIN).parse::<u64>().ok());
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            self.unheard = true;
            // Nobody listens. An engine that did will be back; else nobody misses anything.
            if self.engine {
                self.gone.get_or_insert_with(Instant::now);
            } else {
                self.answered(number);
            }
            return;
        }
        (self.engine, self.unpaced, self.gone, self.since) = (true, false, None, Instant::now());
        self.answered(number);
    }

    /// Forgets a message; where not each of them asks, those before it too.
    fn answered(&mut self, number: Option<u64>) {
        match (number, self.pacing) {
            (None, _) => {}
            (Some(number), Pacing::Waits) => drop(self.messages.remove(&number)),
            (Some(number), Pacing::Goes) => {
                self.messages = self.messages.split_off(&number.saturating_add(1))
            }
        }
    }

    /// A second without anything to do but to wait.
    fn grow_tired(&mut self) {
        if self.messages.is_empty() || self.pacing == Pacing::Goes {
            return;
        }
        let waited = self.since.elapsed();
        if waited >= if self.engine { PATIENCE } else { FIRST_ANSWER } {
            (self.unpaced, self.engine) = (true, false);
            self.messages.clear();
        } else if self.engine && waited >= AGAIN {
            self.again = true;
            if self.messages.values().all(Option::is_none) {
                // Single packets are not sent twice, and what was asked has been lost.
                self.messages.clear();
            }
        }
    }
}
