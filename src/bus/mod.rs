//! NATS, as users run it: several servers, every kind of credentials, TLS, connections that come back.
//!
//! [`publish`] is the probe's side, [`subscribe`] the engine's. Nothing here knows what a message holds. A secret is never
//! printed: servers are named without the user in their address.

pub mod publish;
mod strangers;
pub mod subscribe;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

use crate::{debug, say, warn};

/// How long a server may take to answer while it is up.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to connect again.
const MOST_BACKOFF: Duration = Duration::from_secs(2);
/// The pause of a connection that is given up where it is lost: it is closed long before that.
const GIVEN_UP: Duration = Duration::from_secs(24 * 3600);

/// Who we are to the server.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular, or the user in the server's address.
    #[default]
    None,
    /// A user and a password.
    User(String, String),
    /// A token.
    Token(String),
    /// An nkey's seed.
    Nkey(String),
    /// A file with a user's JWT and nkey, as `nsc` writes it.
    File(PathBuf),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::None => "None",
            Self::User(..) => "User",
            Self::Token(_) => "Token",
            Self::Nkey(_) => "Nkey",
            Self::File(_) => "File",
        })
    }
}

/// TLS to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether to refuse a connection without it; `tls://` does so too.
    pub required: bool,
    /// Certificates of authorities to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// The durable log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JetStream {
    /// Whether messages go through it.
    pub enabled: bool,
    /// Name of the stream; made where it is missing.
    pub stream: String,
    /// Subjects that batches are spread over.
    pub partitions: u32,
    /// Bytes that a stream made here may hold.
    pub max_bytes: u64,
    /// How long a stream made here keeps a message.
    pub max_age: Duration,
    /// How long a stream made here remembers message identifiers.
    pub duplicate_window: Duration,
}

/// Where the bus is and how it is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The servers, at least one.
    pub servers: Vec<ServerAddr>,
    /// How long to wait for one of them at the start.
    pub connect_timeout: Duration,
    /// Who we are.
    pub credentials: Credentials,
    /// TLS.
    pub tls: Tls,
    /// Subject of single packets.
    pub single: String,
    /// Subject of batches, without the partition at its end.
    pub batch: String,
    /// Engines of one group share the messages.
    pub queue_group: String,
    /// How long a probe may say nothing before windows close without it.
    pub silent_after: Duration,
    /// Bytes of messages held while the other side does not take them.
    pub buffer: u64,
    /// The durable log.
    pub jetstream: JetStream,
}

impl BusError {
    /// Whether it is a mistake in the configuration, found before anything was started.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::File { .. } | Self::Partitions { .. } | Self::Stranger { .. } | Self::Stream { .. }
        )
    }
}

impl Settings {
    /// The subjects that batches come on.
    pub fn batches(&self) -> String {
        format!("{}.*", self.batch)
    }

    /// The subject on which engines of one group tell each other what they took: beside that of batches.
    pub fn taken(&self) -> String {
        let parent = self.batch.rsplit_once('.').map_or("", |(parent, _)| parent);
        format!("{parent}.taken.{}", self.queue_group).trim_start_matches('.').to_owned()
    }

    /// The servers by address, without users and passwords.
    pub fn shown(&self) -> String {
        let shown =
            |server: &ServerAddr| format!("{}://{}:{}", server.scheme(), server.host(), server.port());
        self.servers.iter().map(shown).collect::<Vec<_>>().join(",")
    }
}

/// The bus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No server answers, or none lets us in.
    #[error("cannot connect to NATS at {servers}: {why}")]
    Connect {
        /// The servers, without secrets.
        servers: String,
        /// What they, or the system, said.
        why: String,
    },
    /// A file with credentials or certificates cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Something else than NATS listens there.
    #[error(
        "{server} is not NATS: {said}; nats.url must be that of a nats-server, which listens on port 4222 by default"
    )]
    Stranger {
        /// The server, without secrets.
        server: String,
        /// What it says instead of a greeting.
        said: String,
    },
    /// The server cannot have the stream that the settings describe.
    #[error("NATS at {servers}: the stream {stream} cannot be made: {why}")]
    Stream {
        /// The servers, without secrets.
        servers: String,
        /// The stream.
        stream: String,
        /// Why not, and the way out.
        why: String,
    },
    /// The server does not allow what we need.
    #[error("NATS at {servers} refuses: {why}")]
    Denied {
        /// The servers, without secrets.
        servers: String,
        /// The server's words; they name the subject.
        why: String,
    },
    /// The stream was made for another number of partitions.
    #[error("the stream {stream} was made for {theirs} partitions; nats.jetstream.partitions is {ours} here")]
    Partitions {
        /// The stream.
        stream: String,
        /// Those that it was made for.
        theirs: u32,
        /// Those of our settings.
        ours: u32,
    },
    /// A request to the server has failed.
    #[error("NATS at {servers}: cannot {action}: {why}")]
    Failed {
        /// The servers, without secrets.
        servers: String,
        /// What was tried.
        action: String,
        /// Why it failed.
        why: String,
    },
}

/// What is known of a connection.
#[derive(Default)]
struct Link {
    away: AtomicBool,
    reconnects: AtomicU64,
    denied: Mutex<Option<String>>,
    came_back: Notify,
    lost: Notify,
    closed: Notify,
    /// Once it is lost, it is not to come back.
    once: AtomicBool,
    /// Messages that the client had no room for, as far as it has said so.
    overflowed: AtomicU64,
    round_trips: AtomicU64,
    /// Inboxes of our own round trips that are under way: a server that refuses one has answered, too.
    trips: Mutex<HashMap<String, Arc<Notify>>>,
    unshared: AtomicBool,
    hushed: AtomicBool,
}

/// A connection that comes back.
#[derive(Clone)]
pub struct Bus {
    client: Client,
    link: Arc<Link>,
    servers: String,
    program: &'static str,
    capacity: usize,
}

impl Bus {
    /// Connects; waits for a server as long as the settings say. `program` names us to the server;
    /// `capacity` is the number of messages that the client may hold for each subscription.
    pub async fn connect(
        settings: &Settings,
        program: &'static str,
        capacity: usize,
    ) -> Result<Self, BusError> {
        Self::connect_with(settings, program, capacity, Arc::default()).await
    }

    /// Connects once more, to send: a connection that says nothing, and that does not come back once it is lost, so that it
    /// never sends later what it holds then.
    async fn connect_once(settings: &Settings, program: &'static str) -> Result<Self, BusError> {
        let link = Arc::new(Link::default());
        link.hushed.store(true, SeqCst);
        let bus = Self::connect_with(settings, program, 256, link).await?;
        bus.link.once.store(true, SeqCst);
        Ok(bus)
    }

    async fn connect_with(
        settings: &Settings,
        program: &'static str,
        capacity: usize,
        link: Arc<Link>,
    ) -> Result<Self, BusError> {
        let servers = settings.shown();
        let deadline = Instant::now() + settings.connect_timeout;
        loop {
            let options = options(settings, program, capacity, &link).await?;
            debug!("connecting to NATS at {servers} with {:?} as credentials", settings.credentials);
            let error = match options.connect(settings.servers.clone()).await {
                Ok(client) => {
                    let info = client.server_info();
                    let (name, version, most) = (&info.server_name, &info.version, info.max_payload);
                    debug!(
                        "connected to NATS at {servers}: {name}, version {version}, {most} bytes a message"
                    );
                    return Ok(Self { client, link, servers, program, capacity });
                }
                Err(error) => error,
            };
            debug!("no connection to NATS at {servers}: {}", chain(&error));
            if let Some(stranger) = strangers::found(settings, &error).await {
                return Err(stranger);
            }
            let waiting = matches!(
                error.kind(),
                ConnectErrorKind::Io | ConnectErrorKind::Dns | ConnectErrorKind::TimedOut
            );
            if !waiting || is_certificate(&error) || Instant::now() >= deadline {
                let waited = if waiting && !is_certificate(&error) {
                    let seconds = settings.connect_timeout.as_secs_f64();
                    format!(" (waited {seconds} s; is nats-server running there?)")
                } else {
                    String::new()
                };
                let why = with_way_out(chain(&error), "name it in nats.tls.ca");
                return Err(BusError::Connect { servers, why: format!("{why}{waited}") });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The client itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Messages that the client may hold for each subscription.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says nothing of losing the connection and finding it again: another connection to the same servers does.
    pub fn hush(&self) {
        self.link.hushed.store(true, SeqCst);
    }

    /// Tells whoever reads the log.
    pub fn complain(&self, what: &str) {
        warn!("NATS at {}: {what}", self.servers);
    }

    /// The servers, without secrets.
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// How often the connection was lost and found again.
    pub fn reconnects(&self) -> u64 {
        self.link.reconnects.load(SeqCst)
    }

    /// Whether the connection is lost at the moment.
    pub fn is_away(&self) -> bool {
        self.link.away.load(SeqCst)
    }

    /// Waits until the connection is lost.
    async fn lost(&self) {
        loop {
            let lost = self.link.lost.notified();
            if self.is_away() {
                return;
            }
            lost.await;
        }
    }

    /// Waits until the connection has been lost and found again.
    pub async fn came_back(&self) {
        self.link.came_back.notified().await;
    }

    /// What the server has refused, if it has.
    pub fn denied(&self) -> Result<(), BusError> {
        match &*self.link.denied.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(BusError::Denied { servers: self.servers.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    /// What the server does not let us hear, if there is anything.
    pub fn deaf(&self) -> Result<(), BusError> {
        match self.denied() {
            Err(BusError::Denied { servers, why }) if why.to_lowercase().contains("subscription") => {
                Err(BusError::Denied { servers, why })
            }
            _ => Ok(()),
        }
    }

    /// Messages that came faster than they were taken from the client and are lost, as far as the client has said so.
    pub fn overflowed(&self) -> u64 {
        self.link.overflowed.load(SeqCst)
    }

    /// Closes the connection, and waits until all that the server has said on it is known: what it denies it says beside the
    /// messages, and whoever takes those may be ahead.
    pub async fn close(&self) -> Result<(), BusError> {
        self.denied()?;
        if !self.is_away() && self.client.drain().await.is_ok() {
            // Where so much was said that this is not heard, what was denied is known.
            let _ = tokio::time::timeout(ANSWER, self.link.closed.notified()).await;
        }
        self.denied()
    }

    /// Messages that came in on this connection, our own round trips left out.
    pub fn messages_in(&self) -> u64 {
        let all = self.client.statistics().in_messages.load(SeqCst);
        all.saturating_sub(self.link.round_trips.load(SeqCst))
    }

    /// An error of a request to the server.
    pub fn failed(&self, action: impl Into<String>, error: &dyn std::error::Error) -> BusError {
        BusError::Failed { servers: self.servers.clone(), action: action.into(), why: chain(error) }
    }

    /// Goes to the server and back: it has then seen all that was sent before, and we all that it sent before. Needs no
    /// right: a server that refuses the way has seen it, too.
    pub async fn round_trip(&self) -> Result<(), BusError> {
        let inbox = self.client.new_inbox();
        let trips = || self.link.trips.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = trips().entry(inbox.clone()).or_default().clone();
        let went = tokio::time::timeout(ANSWER, self.go(&inbox, &refused)).await;
        trips().remove(&inbox);
        went.map_err(|error| self.failed("go there and back", &error))??;
        self.link.round_trips.fetch_add(1, SeqCst);
        self.denied()
    }

    async fn go(&self, inbox: &str, refused: &Notify) -> Result<(), BusError> {
        let failed = |error: &dyn std::error::Error| self.failed("go there and back", error);
        let mut back = self.client.subscribe(inbox.to_owned()).await.map_err(|error| failed(&error))?;
        self.client.publish(inbox.to_owned(), bytes::Bytes::new()).await.map_err(|error| failed(&error))?;
        tokio::select! {
            message = back.next() => match message {
                Some(_) => Ok(()),
                None => Err(failed(&std::io::Error::from(std::io::ErrorKind::ConnectionAborted))),
            },
            () = refused.notified() => Ok(()),
        }
    }

    /// Whether the server lets engines of a group tell each other what they took.
    pub fn may_share(&self) -> bool {
        !self.link.unshared.load(SeqCst)
    }
}

/// The system gives no threads to work with a server.
pub(crate) fn no_threads(settings: &Settings) -> impl Fn(std::io::Error) -> BusError {
    let servers = settings.shown();
    move |error| BusError::Failed {
        servers: servers.clone(),
        action: "start the threads for it".into(),
        why: error.to_string(),
    }
}

/// Tries whether a server of the settings lets us in.
pub fn check(settings: &Settings, program: &'static str) -> Result<(), BusError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(no_threads(settings))?;
    runtime.block_on(async {
        let bus = Bus::connect(settings, program, 16).await?;
        bus.round_trip().await?;
        if settings.jetstream.enabled { subscribe::check_stream(&bus, settings).await } else { Ok(()) }
    })
}

/// A certificate that is not right does not get better by waiting.
fn is_certificate(error: &ConnectError) -> bool {
    error.kind() == ConnectErrorKind::Tls || chain(error).to_lowercase().contains("certificate")
}

/// An error and all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// What is said of a certificate, with what to do about it; `trusted` is how an authority is made known here.
pub(crate) fn with_way_out(why: String, trusted: &str) -> String {
    let known = [
        (
            "UnknownIssuer",
            format!("the server's certificate is not signed by a CA that this machine trusts; {trusted}"),
        ),
        ("NotValidForName", "the server's certificate does not match the host name in the address".into()),
        (
            "certificate not valid for name",
            "the server's certificate does not match the host name in the address".into(),
        ),
        ("Expired", "the server's certificate has expired, or this machine's clock is wrong".into()),
        ("expired", "the server's certificate has expired, or this machine's clock is wrong".into()),
        ("NotValidYet", "the server's certificate is not valid yet, or this machine's clock is wrong".into()),
        (
            "CertificateRequired",
            "the server requires a client certificate: set nats.tls.certificate and nats.tls.key".into(),
        ),
        ("UnknownCA", "the server does not trust the CA of our client certificate".into()),
        ("InvalidContentType", "the server does not speak TLS there".into()),
    ];
    match known.iter().find(|(sign, _)| why.contains(sign)) {
        Some((_, hint)) => format!("{why}: {hint}"),
        None => why,
    }
}

/// The text that a part of an address stands for: `%40` is `@` (RFC 3986).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits =
            digits.filter(|digits| *first == b'%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

async fn options(
    settings: &Settings,
    program: &'static str,
    capacity: usize,
    link: &Arc<Link>,
) -> Result<ConnectOptions, BusError> {
    let (events, once) = (link.clone(), link.clone());
    let (servers, taken) = (settings.shown(), settings.taken());
    let mut options = ConnectOptions::new()
        .name(program)
        .subscription_capacity(capacity)
        .client_capacity(256)
        .connection_timeout(ANSWER)
        .reconnect_delay_callback(move |attempts| {
            if once.once.load(SeqCst) {
                return GIVEN_UP;
            }
            let exponent = u32::try_from(attempts.min(10)).unwrap_or(10);
            Duration::from_millis(2u64.saturating_pow(exponent + 2)).min(MOST_BACKOFF)
        })
        .event_callback(move |event| {
            take_event(&events, &servers, &taken, &event);
            async {}
        });
    options = match &settings.credentials {
        Credentials::None => {
            let in_address = settings
                .servers
                .iter()
                .find_map(|server| Some((decoded(server.username()?), server.password().map(decoded))));
            match in_address {
                Some((user, Some(password))) => options.user_and_password(user, password),
                // As every client of NATS reads it: a lone word before the host is a token.
                Some((token, None)) => options.token(token),
                None => options,
            }
        }
        Credentials::User(user, password) => options.user_and_password(user.clone(), password.clone()),
        Credentials::Token(token) => options.token(token.clone()),
        Credentials::Nkey(seed) => options.nkey(seed.clone()),
        Credentials::File(path) => options
            .credentials_file(path)
            .await
            .map_err(|error| BusError::File { path: path.clone(), why: error.to_string() })?,
    };
    let readable = |path: &PathBuf| match std::fs::File::open(path) {
        Ok(_) => Ok(path.clone()),
        Err(error) => Err(BusError::File { path: path.clone(), why: error.to_string() }),
    };
    if let Some(ca) = &settings.tls.ca {
        options = options.add_root_certificates(readable(ca)?);
    }
    if let Some((certificate, key)) = &settings.tls.own {
        options = options.add_client_certificate(readable(certificate)?, readable(key)?);
    }
    Ok(options.require_tls(settings.tls.required))
}

fn take_event(link: &Link, servers: &str, taken: &str, event: &Event) {
    match event {
        Event::Disconnected => {
            if !link.away.swap(true, SeqCst) && !link.hushed.load(SeqCst) {
                warn!("lost the connection to NATS at {servers}, trying to reconnect");
            }
            link.lost.notify_waiters();
        }
        Event::Connected => {
            if link.away.swap(false, SeqCst) {
                link.reconnects.fetch_add(1, SeqCst);
                if !link.hushed.load(SeqCst) {
                    say!("connected to NATS at {servers} again");
                }
                link.came_back.notify_one();
            }
        }
        Event::ServerError(error) => {
            let text = match error {
                ServerError::Other(text) => text.clone(),
                other => other.to_string(),
            };
            let denied = text.to_lowercase().contains("permissions violation");
            let trips = link.trips.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, trip)) = trips.iter().find(|(inbox, _)| denied && text.contains(*inbox)) {
                debug!("NATS at {servers} says: {text}; that is as good as an answer");
                trip.notify_one();
                return;
            }
            drop(trips);
            if denied && text.contains(taken) {
                if !link.unshared.swap(true, SeqCst) {
                    warn!("engines of one group cannot tell each other what they take: {text}");
                }
                return;
            }
            if denied {
                link.denied.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text.clone());
            }
            warn!("NATS at {servers} says: {text}");
        }
        Event::SlowConsumer(_) => {
            let lost = link.overflowed.fetch_add(1, SeqCst) + 1;
            if lost.is_power_of_two() {
                warn!("messages come from NATS at {servers} faster than they are taken: {lost} lost so far");
            }
        }
        Event::LameDuckMode => warn!("NATS at {servers} is about to shut down"),
        Event::Closed => link.closed.notify_one(),
        Event::ClientError(_) | Event::Draining => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_an_address_is_what_its_escapes_stand_for() {
        for (text, expected) in [
            ("p%40s%3As%2Fw%23d%2541", "p@s:s/w#d%41"),
            ("plain", "plain"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%C3%A9", "\u{e9}"),
            ("%ff", "%ff"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(decoded(text), expected);
        }
    }

    #[test]
    fn causes_of_tls_are_told_in_words() {
        let told = with_way_out("invalid peer certificate: UnknownIssuer".into(), "name it in nats.tls.ca");
        assert!(
            told.contains("UnknownIssuer")
                && told.contains("this machine trusts")
                && told.contains("nats.tls.ca"),
            "{told}"
        );
        assert_eq!(with_way_out("connection refused".into(), "-"), "connection refused");
    }
}
