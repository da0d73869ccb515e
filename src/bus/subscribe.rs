//! The engine's side of the bus: messages in the order in which they come, until we have had enough.

use super::{ANSWER, Bus, BusError, JetStream, Settings};
use crate::debug;
use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull::MessagesErrorKind;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::stream::{Config, Info, StorageType};
use async_nats::{Message, Subject};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Messages, and their bytes, asked for at once, of all partitions together.
const AT_ONCE: usize = 4096;
const AT_ONCE_BYTES: usize = 32 << 20;
/// After how long messages are asked for anew, whatever became of the last request.
const RENEWED: Duration = Duration::from_secs(4);
/// How long the log waits to be told that a message is done with, before it hands it out again: longer than any window
/// stays open.
const UNTOLD: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often something may fail while the server is there.
const PATIENCE: u32 = 100;
/// How long the server keeps a consumer that nobody reads.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// How often an idle log is asked whether there is more, while we are told to stop; else how often to see whether the
/// connection was lost.
const LOOK: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(1);

/// What a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `PacketInfo`
    Single,
    /// `PacketBatch`
    Batch,
}

/// Ends the address for the answer to a batch that was sent before and not answered.
pub const SENT_AGAIN: char = 'r';

/// A message and how to say that it was taken.
#[derive(Debug)]
pub struct Incoming {
    /// Where it was published.
    pub subject: Subject,
    /// What it holds.
    pub payload: Bytes,
    /// Where an empty answer says that it was taken.
    pub reply: Option<Subject>,
}

impl Incoming {
    /// Whether its probe has sent it before, and was not answered.
    pub fn is_sent_again(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| reply.ends_with(SENT_AGAIN))
    }
}

/// A message of the durable log.
#[derive(Debug)]
pub struct Logged {
    /// The message; the answer says that it and all before it of its partition are done with.
    pub message: Incoming,
    /// Its number in the log, from 1.
    pub number: u64,
    /// Messages of its partition that are waiting behind it.
    pub waiting: u64,
    /// When the server stored it, nanoseconds since the Unix epoch.
    pub stored: u64,
}

/// What comes of a partition.
#[derive(Debug)]
pub enum Got {
    /// The next message.
    Message(Logged),
    /// None for a while; so many wait at the server.
    Waiting(u64),
}

/// A subscription to a subject over core NATS.
pub struct Subscription {
    bus: Bus,
    subscriber: async_nats::Subscriber,
    /// Once the server has sent us all that it had when we were told to stop: how much of that may be left.
    left: Option<usize>,
}

impl Subscription {
    /// Subscribes to a subject; shares its messages with all others of the queue group, where there is one.
    pub async fn core(bus: &Bus, subject: &str, queue_group: Option<&str>) -> Result<Self, BusError> {
        let subscriber = match queue_group {
            Some(group) => bus.client().queue_subscribe(subject.to_owned(), group.to_owned()).await,
            None => bus.client().subscribe(subject.to_owned()).await,
        };
        let subscriber = subscriber.map_err(|error| bus.failed(format!("subscribe to {subject}"), &error))?;
        bus.round_trip().await?;
        debug!("subscribed to {subject} at {}, queue group {}", bus.servers(), queue_group.unwrap_or("none"));
        Ok(Self { bus: bus.clone(), subscriber, left: None })
    }

    /// The next message. `None` when `stop` has come and all that was there before it has been handed out.
    pub async fn next(&mut self, stop: &mut watch::Receiver<bool>) -> Option<Incoming> {
        if self.left.is_none() {
            tokio::select! {
                biased;
                () = told(stop) => {}
                message = self.subscriber.next() => return message.map(incoming),
            }
            // What the server has sent so far is here once a message to ourselves is. Where the server is away,
            // there is nothing to wait for.
            if !self.bus.is_away() {
                let _ = self.bus.round_trip().await;
            }
            self.left = Some(self.bus.capacity());
        }
        self.left = self.left?.checked_sub(1);
        self.left?;
        // The runtime would say that there is nothing, to give others a turn.
        tokio::task::unconstrained(self.subscriber.next()).now_or_never().flatten().map(incoming)
    }
}

/// A partition of the durable log, read in order from where we say.
///
/// The consumer at the server is ours alone and made anew whenever a message may have gone missing on its way. What it
/// knows of acknowledgements is for those who watch it: where to go on, our own records say.
pub struct Partition {
    bus: Bus,
    stream: jetstream::stream::Stream,
    config: pull::Config,
    consumer: PullConsumer,
    messages: pull::Stream,
    at_once: (usize, usize),
    /// Number of the last message handed out, and of the first one wanted; the consumer's own number of the last.
    last: u64,
    delivered: u64,
    /// How often the connection had been lost when the consumer was made.
    reconnects: u64,
    /// Number of the log's last message when we were told to stop.
    until: Option<u64>,
    /// Whether more waits at the server, as far as was heard.
    waits: bool,
}

/// Which part of the log to read.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name of the consumer at the server, and what tells it from those of other starts: a request of a process that was
    /// lost may reach the server late, and is not to hit ours.
    pub consumer: String,
    /// A number that no other start has.
    pub generation: u64,
    /// The subject.
    pub subject: String,
    /// Number of the first message wanted, from 1.
    pub start: u64,
    /// Whether the server is told what is done with. It remembers each message until then: too much where each holds a
    /// single packet.
    pub acknowledged: bool,
    /// How many partitions are read here.
    pub beside: usize,
}

impl Partition {
    /// Begins to read; gives the number of messages that wait, too.
    pub async fn open(
        bus: &Bus,
        stream: &jetstream::stream::Stream,
        part: Part,
    ) -> Result<(Self, u64), BusError> {
        let Part { consumer: name, generation, subject, start, acknowledged, beside } = part;
        let failed = |error: &dyn std::error::Error| bus.failed(format!("read {subject}"), error);
        let mut others = stream.consumer_names();
        while let Some(other) = others.next().await {
            let other = other.map_err(|error| failed(&error))?;
            let generation = other.strip_prefix(&name).and_then(|rest| rest.strip_prefix('-'));
            if generation.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit())) {
                // Of an earlier start, or of an engine that thinks that it is alone: it is told so by this.
                let _ = stream.delete_consumer(&other).await;
            }
        }
        let name = format!("{name}-{generation:x}");
        let config = pull::Config {
            durable_name: Some(name),
            filter_subject: subject.clone(),
            ack_policy: if acknowledged { AckPolicy::All } else { AckPolicy::None },
            ack_wait: UNTOLD,
            max_ack_pending: if acknowledged { -1 } else { 0 },
            inactive_threshold: FORGOTTEN,
            ..pull::Config::default()
        };
        let at_once = ((AT_ONCE / beside).max(64), (AT_ONCE_BYTES / beside).max(2 << 20));
        let reconnects = bus.reconnects();
        let (consumer, messages) =
            consume(stream, &config, start, at_once).await.map_err(|error| failed(&*error))?;
        let waiting = consumer.cached_info().num_pending;
        debug!("reading {subject} from message {start} of the log; {waiting} wait there");
        let partition = Self {
            bus: bus.clone(),
            stream: stream.clone(),
            config,
            consumer,
            messages,
            at_once,
            last: start.saturating_sub(1),
            delivered: 0,
            reconnects,
            until: None,
            waits: waiting > 0,
        };
        Ok((partition, waiting))
    }

    /// The next message. `None` when `stop` has come and all that was there before it has been handed out, or why there are
    /// no more.
    pub async fn next(&mut self, stop: &mut watch::Receiver<bool>) -> Result<Option<Got>, String> {
        let mut last_look = false;
        let mut patience = PATIENCE;
        loop {
            let stopping = *stop.borrow_and_update();
            if stopping && self.bus.is_away() {
                // It hands out nothing more either.
                return Ok(None);
            }
            if stopping && self.until.is_none() {
                match tokio::time::timeout(ANSWER, self.stream.get_info()).await {
                    Ok(Ok(info)) => self.until = Some(info.state.last_sequence),
                    _ => {
                        patience = self.impatient(patience).await?;
                        continue;
                    }
                }
            }
            if self.until.is_some_and(|until| self.last >= until) {
                return Ok(None);
            }
            if self.bus.reconnects() != self.reconnects && !self.bus.is_away() {
                // What was on its way is lost, and the server does not know.
                self.again(stop).await?;
            }
            tokio::select! {
                biased;
                () = told(stop), if !stopping => {}
                message = self.messages.next() => match message {
                    Some(Ok(message)) => match self.take(message) {
                        Order::Next(logged) if self.until.is_some_and(|until| logged.number > until) => {
                            // What was published after we were told to stop stays in the log.
                            return Ok(None);
                        }
                        Order::Next(logged) => return Ok(Some(Got::Message(logged))),
                        Order::Before => {}
                        Order::Gap => self.again(stop).await?,
                    },
                    Some(Err(error)) if error.kind() == MessagesErrorKind::ConsumerDeleted => {
                        let name = self.config.durable_name.as_deref().unwrap_or_default();
                        return Err(format!("the consumer {name} was deleted; does another engine of this group run?"));
                    }
                    // The connection is away, or the server has restarted.
                    Some(Err(error)) => {
                        if !self.bus.is_away() {
                            self.bus.complain(&format!("reading {}: {error}", self.config.filter_subject));
                        }
                        patience = self.impatient(patience).await?;
                        self.again(stop).await?;
                    }
                    None => {
                        patience = self.impatient(patience).await?;
                        self.again(stop).await?;
                    }
                },
                () = tokio::time::sleep(if stopping { LOOK } else { SELDOM }) => if !stopping {
                    // More may have been said to wait than does: messages are removed, too.
                    if let (true, Ok(info)) = (self.waits, self.consumer.get_info().await) {
                        self.waits = info.num_pending > 0;
                        return Ok(Some(Got::Waiting(info.num_pending)));
                    }
                } else {
                    if last_look {
                        return Ok(None);
                    }
                    match tokio::time::timeout(ANSWER, self.consumer.get_info()).await {
                        // What it has handed out just now is here already: one more look.
                        Ok(Ok(info)) => last_look = info.num_pending == 0,
                        _ => {
                            patience = self.impatient(patience).await?;
                            self.again(stop).await?;
                        }
                    }
                },
            }
        }
    }

    /// Waits a little after something has failed, but not for ever: the server is there.
    async fn impatient(&self, patience: u32) -> Result<u32, String> {
        tokio::time::sleep(LOOK).await;
        match patience.checked_sub(u32::from(!self.bus.is_away())) {
            Some(left) => Ok(left),
            None => Err(format!("{} cannot be read to its end", self.config.filter_subject)),
        }
    }

    fn take(&mut self, message: jetstream::Message) -> Order {
        let Ok(info) = message.info() else { return Order::Gap };
        let (number, delivered, waiting) = (info.stream_sequence, info.consumer_sequence, info.pending);
        let stored = u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(0);
        if delivered > self.delivered + 1 {
            return Order::Gap;
        }
        self.delivered = self.delivered.max(delivered);
        if number <= self.last {
            return Order::Before;
        }
        (self.last, self.waits) = (number, waiting > 0);
        Order::Next(Logged { message: incoming(message.message), number, waiting, stored })
    }

    /// Makes the consumer anew behind the last message handed out; tries until it can, or until it is told to stop and the
    /// server is away.
    async fn again(&mut self, stop: &watch::Receiver<bool>) -> Result<(), String> {
        let mut patience = PATIENCE;
        while !(*stop.borrow() && self.bus.is_away()) {
            let reconnects = self.bus.reconnects();
            let made = match consume(&self.stream, &self.config, self.last + 1, self.at_once).await {
                Ok(made) => self.stream.get_info().await.map(|info| (made, info)).map_err(AnyError::from),
                Err(error) => Err(error),
            };
            match made {
                Ok((_, info)) if info.state.last_sequence < self.last => {
                    let (subject, last) = (&self.config.filter_subject, self.last);
                    return Err(format!("{subject}: the log has lost message {last}, which had been read"));
                }
                Ok(((consumer, messages), _)) => {
                    (self.consumer, self.messages) = (consumer, messages);
                    (self.delivered, self.reconnects) = (0, reconnects);
                    return Ok(());
                }
                Err(error) => {
                    if !self.bus.is_away() {
                        self.bus.complain(&format!("reading {}: {error}", self.config.filter_subject));
                    }
                    patience = self.impatient(patience).await?;
                }
            }
        }
        Ok(())
    }
}

/// Where a message stands in its partition.
enum Order {
    Next(Logged),
    /// It has been handed out.
    Before,
    /// One is missing before it.
    Gap,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn consume(
    stream: &jetstream::stream::Stream,
    config: &pull::Config,
    start: u64,
    (messages, bytes): (usize, usize),
) -> Result<(PullConsumer, pull::Stream), AnyError> {
    if let Some(name) = &config.durable_name {
        // There may be none, or that of an earlier start.
        let _ = stream.delete_consumer(name).await;
    }
    let deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: start.max(1) };
    let consumer = stream.create_consumer(pull::Config { deliver_policy, ..config.clone() }).await?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(messages)
        .max_bytes_per_batch(bytes)
        .expires(RENEWED)
        .heartbeat(RENEWED / 4)
        .messages()
        .await?;
    Ok((consumer, messages))
}

/// Waits until we are told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // Whoever could tell us is gone: that is one way to say it.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn incoming(message: Message) -> Incoming {
    let Message { subject, payload, reply, .. } = message;
    Incoming { subject, payload, reply }
}

/// The stream of the settings, made where it is missing.
pub async fn stream(bus: &Bus, settings: &Settings) -> Result<jetstream::stream::Stream, BusError> {
    let wanted = &settings.jetstream;
    let context = jetstream::new(bus.client().clone());
    let config = Config {
        name: wanted.stream.clone(),
        subjects: vec![settings.single.clone(), settings.batches()],
        storage: StorageType::File,
        max_bytes: i64::try_from(wanted.max_bytes).unwrap_or(i64::MAX),
        max_age: wanted.max_age,
        duplicate_window: wanted.duplicate_window,
        description: Some(format!("{PARTITIONS}{}{MADE}{}", wanted.partitions, bus.client().new_inbox())),
        ..Config::default()
    };
    let mut made = ask(bus, context.get_or_create_stream(config.clone())).await?;
    let given_up = Instant::now() + MAKING;
    while let Err(error) = &made {
        if Instant::now() >= given_up
            || is_final(error.kind())
            || is_anothers(bus, &context, settings, error).await?
        {
            break;
        }
        // Another process may be making it at this moment.
        tokio::time::sleep(LOOK).await;
        made = ask(bus, context.get_or_create_stream(config.clone())).await?;
    }
    let stream = made.map_err(|error| no_stream(bus, settings, error))?;
    debug!("stream {} at {}: {:?}", wanted.stream, bus.servers(), stream.cached_info().state);
    check_partitions(&stream, settings)?;
    Ok(stream)
}

/// Whether the stream of the settings was made for their partitions.
fn check_partitions(stream: &jetstream::stream::Stream, settings: &Settings) -> Result<(), BusError> {
    let wanted = &settings.jetstream;
    // One that was made by hand does not say; then its maker knows.
    let made_for = described(stream.cached_info()).and_then(|(partitions, _)| partitions.parse::<u32>().ok());
    match made_for {
        Some(partitions) if partitions != wanted.partitions => Err(BusError::Partitions {
            stream: wanted.stream.clone(),
            theirs: partitions,
            ours: wanted.partitions,
        }),
        _ => Ok(()),
    }
}

/// Asks JetStream something; what the server refuses meanwhile is why there is no answer.
async fn ask<T>(bus: &Bus, asked: impl Future<Output = T>) -> Result<T, BusError> {
    let refused = async {
        while bus.denied().is_ok() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        answered = asked => Ok(answered),
        () = refused => Err(bus.denied().err().unwrap_or_else(|| bus.failed("ask JetStream", &std::fmt::Error))),
    }
}

/// Whether asking again would not help.
fn is_final(kind: CreateStreamErrorKind) -> bool {
    match kind {
        CreateStreamErrorKind::JetStream(error) => matches!(
            error.error_code(),
            ErrorCode::STORAGE_RESOURCES_EXCEEDED
                | ErrorCode::INSUFFICIENT_RESOURCES
                | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
                | ErrorCode::JETSTREAM_NOT_ENABLED
                | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
                | ErrorCode::MAXIMUM_STREAMS_LIMIT
        ),
        _ => false,
    }
}

/// Whether a stream of another name has the subjects. The server says that they overlap also while another process
/// makes the very stream that we ask for.
async fn is_anothers(
    bus: &Bus,
    context: &jetstream::Context,
    settings: &Settings,
    error: &CreateStreamError,
) -> Result<bool, BusError> {
    let overlaps = matches!(
        error.kind(),
        CreateStreamErrorKind::JetStream(answer) if answer.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP
    );
    Ok(overlaps && stream_in_the_way(bus, context, settings).await?.is_some())
}

/// The name of another stream that has one of our subjects.
async fn stream_in_the_way(
    bus: &Bus,
    context: &jetstream::Context,
    settings: &Settings,
) -> Result<Option<String>, BusError> {
    for subject in [settings.single.clone(), settings.batches()] {
        match ask(bus, context.stream_by_subject(subject)).await? {
            Ok(other) if other != settings.jetstream.stream => return Ok(Some(other)),
            _ => {}
        }
    }
    Ok(None)
}

/// Why there is no stream, and the way out.
fn no_stream(bus: &Bus, settings: &Settings, error: CreateStreamError) -> BusError {
    let JetStream { stream, max_bytes, .. } = &settings.jetstream;
    let refused =
        |why: String| BusError::Stream { servers: bus.servers().to_owned(), stream: stream.clone(), why };
    let CreateStreamErrorKind::JetStream(answer) = error.kind() else {
        let hint = "; is nats-server running with --jetstream?";
        return bus.failed(format!("use the stream {stream}{hint}"), &error);
    };
    let text = answer.to_string();
    match answer.error_code() {
        ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::INSUFFICIENT_RESOURCES => refused(format!(
            "the server has less storage left than the {max_bytes} bytes of nats.jetstream.max_bytes, which it \
             reserves; lower that, or raise the server's max_file_store ({text})"
        )),
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED | ErrorCode::MAXIMUM_STREAMS_LIMIT => refused(format!(
            "the account's limits do not allow it with nats.jetstream.max_bytes at {max_bytes} bytes; lower that, or \
             raise the limits ({text})"
        )),
        ErrorCode::STREAM_SUBJECT_OVERLAP => refused(overlap(settings, "another stream")),
        ErrorCode::JETSTREAM_NOT_ENABLED => {
            refused(format!("the server runs without JetStream; start nats-server with --jetstream ({text})"))
        }
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            refused(format!("JetStream is not enabled for the account of this user ({text})"))
        }
        _ => bus.failed(format!("use the stream {stream}"), &error),
    }
}

fn overlap(settings: &Settings, other: &str) -> String {
    format!(
        "{other} has the subjects {} or {} already; name it in nats.jetstream.stream, use other subjects \
         (nats.subjects), or remove it",
        settings.single,
        settings.batches()
    )
}

/// Asks whether the stream is there or could be made, and leaves nothing behind.
pub(super) async fn check_stream(bus: &Bus, settings: &Settings) -> Result<(), BusError> {
    let wanted = &settings.jetstream;
    let context = jetstream::new(bus.client().clone());
    if let Ok(stream) = ask(bus, context.get_stream(&wanted.stream)).await? {
        return check_partitions(&stream, settings);
    }
    if let Some(other) = stream_in_the_way(bus, &context, settings).await? {
        let (servers, stream) = (bus.servers().to_owned(), wanted.stream.clone());
        let why = overlap(settings, &format!("the stream {other}"));
        return Err(BusError::Stream { servers, stream, why });
    }
    // What the server has room for, only it knows: a stream of another name, that nobody publishes to, finds out.
    let name = format!("netspectra-check-{}", bus.client().new_inbox().replace(['.', '_'], ""));
    let config = Config {
        name: name.clone(),
        subjects: vec![name.clone()],
        storage: StorageType::File,
        max_bytes: i64::try_from(wanted.max_bytes).unwrap_or(i64::MAX),
        ..Config::default()
    };
    let made = ask(bus, context.create_stream(config)).await?;
    made.map_err(|error| no_stream(bus, settings, error))?;
    let deleted = ask(bus, context.delete_stream(&name)).await?;
    deleted
        .map(|_| ())
        .map_err(|error| bus.failed(format!("delete the stream {name}, made to try it"), &error))
}

/// What a stream has that no other has, also of the same name: what its maker gave it, or, where a stream was made by
/// hand, the time. The time alone does not serve: a server that is asked while it makes a stream gives another one.
pub fn identity_of(stream: &Info) -> String {
    match described(stream) {
        Some((_, made)) => made.to_owned(),
        None => stream.created.unix_timestamp_nanos().to_string(),
    }
}

/// What the description of a stream that we made says: its partitions, and its own name among all streams.
fn described(stream: &Info) -> Option<(&str, &str)> {
    stream.config.description.as_deref()?.strip_prefix(PARTITIONS)?.split_once(MADE)
}

/// How long to try to make a stream that another process may be making.
const MAKING: Duration = Duration::from_secs(5);

/// How the description of a stream that we make says how many partitions its batches are spread over.
const PARTITIONS: &str = "NetSpectra packets, partitions: ";
/// What follows there, before what tells the stream from all others.
const MADE: &str = ", made as ";
