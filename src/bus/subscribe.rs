//! The engine's side of the bus: messages in the order in which they come, until we have had enough.

use super::{ANSWER, Bus, BusError, Settings};
use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::{Message, Subject};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use std::time::Duration;
use tokio::sync::watch;

/// Messages that JetStream may have handed out and not seen taken.
const MOST_UNTAKEN: i64 = 16384;
/// Messages, and their bytes, asked for at once.
const AT_ONCE: usize = 2048;
const AT_ONCE_BYTES: usize = 16 << 20;
/// After how long messages are asked for anew, whatever became of the last request.
const RENEWED: Duration = Duration::from_secs(4);
/// How often an idle log is asked whether there is more.
const LOOK: Duration = Duration::from_millis(100);

/// A message and how to say that it was taken.
pub struct Incoming {
    /// Where it was published.
    pub subject: Subject,
    /// What it holds.
    pub payload: Bytes,
    /// Where an empty answer says that it was taken.
    pub reply: Option<Subject>,
    /// Its number in the durable log, from 1.
    pub logged: Option<u64>,
    /// Whether the log has handed it out before.
    pub again: bool,
}

/// A message as it arrived, and whether it has to be taken.
pub enum Arrival {
    /// May be dropped where there is no room: whoever sent it has gone on.
    Passing(Incoming),
    /// Is handed out again until it is taken.
    Logged(Incoming),
}

impl Arrival {
    /// The message.
    pub fn message(&self) -> &Incoming {
        match self {
            Self::Passing(message) | Self::Logged(message) => message,
        }
    }
}

/// A subscription to a subject, in either mode.
pub struct Subscription {
    bus: Bus,
    source: Source,
    /// Once the server has sent us all that it had when we were told to stop: how much of that may be left.
    left: Option<usize>,
    /// Number of the log's last message when we were told to stop.
    until: Option<u64>,
}

enum Source {
    Core(async_nats::Subscriber),
    Log { stream: Box<jetstream::stream::Stream>, consumer: Box<PullConsumer>, messages: Box<pull::Stream> },
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
        Ok(Self { bus: bus.clone(), source: Source::Core(subscriber), left: None, until: None })
    }

    /// Reads the durable log from where the queue group has come.
    pub async fn log(bus: &Bus, settings: &Settings) -> Result<Self, BusError> {
        let stream = stream(bus, settings).await?;
        let name = &settings.queue_group;
        let wanted = pull::Config {
            durable_name: Some(name.clone()),
            ack_policy: AckPolicy::Explicit,
            max_ack_pending: MOST_UNTAKEN,
            ..pull::Config::default()
        };
        let consumer = stream
            .get_or_create_consumer(name, wanted)
            .await
            .map_err(|error| bus.failed(format!("make the consumer {name}"), &error))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(AT_ONCE)
            .max_bytes_per_batch(AT_ONCE_BYTES)
            .expires(RENEWED)
            .heartbeat(RENEWED / 4)
            .messages()
            .await
            .map_err(|error| bus.failed("read the stream", &error))?;
        bus.denied()?;
        let (stream, consumer) = (Box::new(stream), Box::new(consumer));
        let source = Source::Log { stream, consumer, messages: Box::new(messages) };
        Ok(Self { bus: bus.clone(), source, left: None, until: None })
    }

    /// The next message. `None` when `stop` has come and all that was there before it has been handed out.
    pub async fn next(&mut self, stop: &mut watch::Receiver<bool>) -> Option<Arrival> {
        match &mut self.source {
            Source::Core(subscriber) => {
                if self.left.is_none() {
                    tokio::select! {
                        biased;
                        () = told(stop) => {}
                        message = subscriber.next() => return message.map(passing),
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
                tokio::task::unconstrained(subscriber.next()).now_or_never().flatten().map(passing)
            }
            Source::Log { stream, consumer, messages } => loop {
                let stopping = *stop.borrow_and_update();
                if stopping && self.until.is_none() {
                    // Where the server is away, it hands out nothing more either.
                    let info = tokio::time::timeout(ANSWER, stream.info()).await;
                    let last = info.ok().and_then(Result::ok).map(|info| info.state.last_sequence);
                    self.until = Some(last.unwrap_or(0));
                }
                tokio::select! {
                    biased;
                    () = told(stop), if !stopping => {}
                    message = messages.next() => match message {
                        Some(Ok(message)) => {
                            let arrival = logged(message);
                            let number = arrival.message().logged;
                            // What was published after we were told to stop stays in the log.
                            if self.until.is_some_and(|until| number.is_some_and(|number| number > until)) {
                                return None;
                            }
                            return Some(arrival);
                        }
                        // The connection is away, or the server has restarted: the stream of messages goes on.
                        Some(Err(error)) => {
                            if !self.bus.is_away() {
                                self.bus.complain(&format!("reading the stream: {error}"));
                            }
                            if stopping {
                                return None;
                            }
                            tokio::time::sleep(LOOK).await;
                        }
                        None => return None,
                    },
                    () = tokio::time::sleep(LOOK), if stopping => {
                        match tokio::time::timeout(ANSWER, consumer.info()).await {
                            Ok(Ok(info)) if info.num_pending > 0 => {}
                            _ => return None,
                        }
                    }
                }
            },
        }
    }
}

/// Waits until we are told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // Whoever could tell us is gone: that is one way to say it.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn passing(message: Message) -> Arrival {
    let Message { subject, payload, reply, .. } = message;
    Arrival::Passing(Incoming { subject, payload, reply, logged: None, again: false })
}

fn logged(message: jetstream::Message) -> Arrival {
    let info = message.info().ok().map(|info| (info.stream_sequence, info.delivered > 1));
    let (logged, again) = info.unzip();
    let again = again.unwrap_or(false);
    let Message { subject, payload, reply, .. } = message.message;
    Arrival::Logged(Incoming { subject, payload, reply, logged, again })
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
        ..Config::default()
    };
    let stream = context.get_or_create_stream(config).await;
    stream.map_err(|error| {
        let hint = "; is nats-server running with --jetstream?";
        bus.failed(format!("use the stream {}{hint}", wanted.stream), &error)
    })
}
