//! The webhook: a thread that posts events to a URL, in their order and each once, and again until they are taken.
//!
//! Nothing waits for it: events stand in a bounded queue, and those that the receiver does not take in time are dropped,
//! counted and said. Taken is what is answered with a status of 2xx, but not with a web page: that is what a login or an
//! empty site answers to anything. An event may arrive twice (an answer was lost), always under the same idempotency key. The secret is
//! never printed, nor is more of the URL than its host: its path may be one too.

use super::event::Event;
use crate::bus::with_way_out;
use crate::warn;
use dataflows::aggregator::OptionsError;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use ureq::Agent;
use ureq::http::{StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};

/// Events that may wait.
const MOST_WAITING: usize = 1024;
/// Events that are known again when they come a second time.
const MOST_KNOWN: usize = 8192;
/// How long the receiver may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Shortest and longest pause before an event is posted again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// How long one event is tried.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
/// Bytes of an answer that are looked at.
const MAX_LOOK: u64 = 512;

/// Where events go, and how they are signed.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    url: Uri,
    secret: Option<String>,
    give_up_after: Duration,
}

impl Settings {
    /// Checks a webhook's options; with a secret, events are signed.
    pub fn new(url: &str, secret: Option<String>) -> Result<Self, OptionsError> {
        let refuse =
            |key: &str, why: &str| OptionsError { key: Some(key.into()), message: format!("{key}: {why}") };
        let is_web = |url: &Uri| {
            matches!(url.scheme_str(), Some("http" | "https"))
                && url.host().is_some_and(|host| !host.is_empty())
        };
        let Some(url) = url.parse::<Uri>().ok().filter(is_web) else {
            return Err(refuse("url", "no address of the web; write http://host:9000/path, or https://"));
        };
        if secret.as_ref().is_some_and(String::is_empty) {
            return Err(refuse("secret", "it is empty; leave it out where events are not to be signed"));
        }
        Ok(Self { url, secret, give_up_after: GIVE_UP_AFTER })
    }

    /// What may be printed of the URL.
    pub fn server(&self) -> String {
        let (scheme, host) = (self.url.scheme_str().unwrap_or_default(), self.url.host().unwrap_or_default());
        let port = self.url.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}")
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Settings");
        debug.field("server", &self.server()).field("signs", &self.secret.is_some()).finish_non_exhaustive()
    }
}

/// What has become of the events; one that was known already is in neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The receiver has taken them.
    pub delivered: u64,
    /// There was no room, they were refused, or there was no time left.
    pub dropped: u64,
}

/// The names of the latest events.
#[derive(Default)]
struct Known {
    names: HashSet<String>,
    order: VecDeque<String>,
}

impl Known {
    /// Whether it was not known before.
    fn insert(&mut self, name: String) -> bool {
        if !self.names.insert(name.clone()) {
            return false;
        }
        self.order.push_back(name);
        if self.order.len() > MOST_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        true
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// No event comes any more; those that wait are tried.
    Ending,
    /// Nobody waits for them any more.
    Closed,
}

#[derive(Default)]
struct State {
    stage: Stage,
    waiting: VecDeque<Event>,
    /// Whether one more is being sent.
    sending: bool,
    known: Known,
    counts: Counts,
    /// What was complained of since all was well.
    said: BTreeSet<String>,
}

impl State {
    /// Forgets an event that was not delivered: it may come again.
    fn give_up(&mut self, event: &Event) {
        self.counts.dropped += 1;
        self.known.names.remove(&event.name());
    }
}

/// What the thread and those who send share.
struct Shared {
    settings: Settings,
    agent: Agent,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running webhook; dropped, it gives up at once.
pub struct Webhook(Arc<Shared>);

impl Webhook {
    /// Starts the thread. Nothing is sent to the receiver before there is an event.
    pub fn open(settings: Settings) -> std::io::Result<Self> {
        // What the system trusts, so that a receiver may have a certificate of one's own authority.
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // A POST that is redirected loses its body, or goes where nobody has sent it.
            .max_redirects(0)
            .proxy(None)
            // Events are rare: a connection that is kept is one that the receiver has closed.
            .max_idle_connections(0)
            .timeout_global(Some(ANSWER))
            .user_agent(concat!("netspectra/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        let shared = Arc::new(Shared { settings, agent, state: Mutex::default(), changed: Condvar::new() });
        let sending = shared.clone();
        thread::Builder::new().name("webhook".into()).spawn(move || sending.run())?;
        Ok(Self(shared))
    }

    /// Queues an event, unless one of its name waits or was sent lately; where there is no room, the oldest makes some.
    pub fn send(&self, event: Event) {
        let mut state = self.0.state();
        if !state.known.insert(event.name()) {
            return;
        }
        if state.waiting.len() == MOST_WAITING
            && let Some(oldest) = state.waiting.pop_front()
        {
            state.give_up(&oldest);
            let what = format!("{MOST_WAITING} events wait; the oldest are dropped");
            self.0.complain(&mut state, what);
        }
        state.waiting.push_back(event);
        self.0.changed.notify_all();
    }

    /// What has become of the events so far.
    pub fn counts(&self) -> Counts {
        self.0.state().counts
    }

    /// Delivers what waits, as far as that can be done in this time.
    pub fn finish(self, patience: Duration) -> Counts {
        self.0.close(patience);
        self.counts()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.0.close(Duration::ZERO);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is wrong, each thing once until all is well again.
    fn complain(&self, state: &mut State, what: String) {
        if !state.said.contains(&what) {
            warn!("webhook {}: {what}", self.settings.server());
            state.said.insert(what);
        }
    }

    /// Ends the thread: when nothing waits, at the latest after this time. A second time does nothing.
    fn close(&self, patience: Duration) {
        let mut state = self.state();
        if state.stage != Stage::Open {
            return;
        }
        state.stage = Stage::Ending;
        self.changed.notify_all();
        let is_busy = |state: &mut State| state.sending || !state.waiting.is_empty();
        let waited = self.changed.wait_timeout_while(state, patience, is_busy);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.stage = Stage::Closed;
        self.changed.notify_all();
        let left = state.waiting.len() as u64 + u64::from(state.sending);
        state.waiting.clear();
        state.counts.dropped += left;
        if left > 0 {
            self.complain(&mut state, format!("the run has ended with {left} events not delivered"));
        }
    }

    /// The thread: sends one event after another until there will be no more.
    fn run(&self) {
        while let Some(event) = self.next() {
            let delivered = self.deliver(&event);
            let mut state = self.state();
            if state.stage == Stage::Closed {
                // It is counted as not delivered.
                return;
            }
            match delivered {
                Ok(()) => {
                    state.counts.delivered += 1;
                    if state.waiting.is_empty() {
                        state.said.clear();
                    }
                }
                Err(why) => {
                    state.give_up(&event);
                    self.complain(&mut state, format!("{why}; such events are dropped"));
                }
            }
            state.sending = false;
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Event> {
        let idle = |state: &mut State| state.waiting.is_empty() && state.stage == Stage::Open;
        let waited = self.changed.wait_while(self.state(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        let event = state.waiting.pop_front();
        state.sending = event.is_some();
        event
    }

    /// Posts an event until it is taken; the error says why it is given up.
    fn deliver(&self, event: &Event) -> Result<(), String> {
        let body = serde_json::to_vec(event).map_err(|error| error.to_string())?;
        let give_up_at = Instant::now() + self.settings.give_up_after;
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match self.post(event, &body) {
                Ok((status, false)) if status.is_success() => return Ok(()),
                Ok((status, true)) if status.is_success() => {
                    return Err(format!(
                        "it answered {status} with a web page: nothing there takes events; look at the path of `url`"
                    ));
                }
                Ok((status, _)) => {
                    let why = format!("it answered {status}");
                    if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
                        return Err(why);
                    }
                    why
                }
                Err(error) => with_way_out(error.to_string(), "add that CA to the system's trust store"),
            };
            if Instant::now() + pause >= give_up_at {
                return Err(format!("{why}, for {:?}", self.settings.give_up_after));
            }
            self.complain(&mut self.state(), format!("{why}; trying again"));
            pause = self.pause(pause).ok_or(why)?;
        }
    }

    /// Posts an event once; gives the status of the answer, and whether it is a web page.
    fn post(&self, event: &Event, body: &[u8]) -> Result<(StatusCode, bool), ureq::Error> {
        let mut request = self
            .agent
            .post(self.settings.url.clone())
            .content_type("application/json")
            .header("X-NetSpectra-Id", &event.id)
            .header("X-NetSpectra-Event", event.event.to_string())
            .header("Idempotency-Key", event.name());
        if let Some(secret) = &self.settings.secret {
            request = request.header("X-NetSpectra-Signature", signature(secret, body));
        }
        let mut response = request.send(body)?;
        let mut start = Vec::new();
        // What cannot be read was not understood to be needed: the status counts.
        let _ = response.body_mut().as_reader().take(MAX_LOOK).read_to_end(&mut start);
        let start =
            String::from_utf8_lossy(&start).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
        let is_page = start.starts_with("<!doctype html") || start.starts_with("<html");
        Ok((response.status(), is_page))
    }

    /// Waits before another attempt; returns how long to wait before the one after it, `None` where there is none.
    fn pause(&self, pause: Duration) -> Option<Duration> {
        let state = self.state();
        let stage = state.stage;
        let waited = self.changed.wait_timeout_while(state, pause, |state| state.stage == stage);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.stage {
            Stage::Closed => None,
            _ if waited.timed_out() => Some((pause * 2).min(MOST_PAUSE)),
            // Somebody waits from now on.
            _ => Some(FIRST_PAUSE),
        }
    }
}

/// The signature of a body: `sha256=` and its HMAC (RFC 2104) in hex.
fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(body);
    let code = mac.finalize().into_bytes();
    let digits: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digits}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::event::Kind;
    use crossbeam_channel::{Receiver, unbounded};
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// What came to a receiver.
    struct Request {
        head: Vec<String>,
        body: Vec<u8>,
    }

    impl Request {
        fn read(connection: TcpStream) -> (Self, TcpStream) {
            let mut connection = BufReader::new(connection);
            let mut request = Self { head: Vec::new(), body: Vec::new() };
            loop {
                let mut line = String::new();
                connection.read_line(&mut line).expect("a line");
                if line.trim_end().is_empty() {
                    break;
                }
                request.head.push(line.trim_end().to_owned());
            }
            let length = request.header("content-length").parse::<usize>().expect("a length");
            request.body.resize(length, 0);
            connection.read_exact(&mut request.body).expect("a body");
            (request, connection.into_inner())
        }

        fn header(&self, name: &str) -> &str {
            let mut headers = self.head.iter().filter_map(|line| line.split_once(": "));
            headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
        }
    }

    /// A receiver that gives these answers to one connection each (an empty one: it closes it), and what it was sent.
    fn receiver(answers: &'static [&'static str]) -> (String, Receiver<Request>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let (requests, received) = unbounded();
        thread::spawn(move || {
            for answer in answers {
                let (connection, _) = listener.accept().expect("a connection");
                let (request, mut connection) = Request::read(connection);
                requests.send(request).expect("a test");
                if !answer.is_empty() {
                    let (status, body) = answer.split_once('\n').unwrap_or((answer, ""));
                    let head = format!("content-length: {}\r\nconnection: close", body.len());
                    write!(connection, "HTTP/1.1 {status}\r\n{head}\r\n\r\n{body}").expect("an answer");
                }
            }
        });
        (url, received)
    }

    fn open(url: &str, secret: Option<&str>) -> Webhook {
        let settings = Settings::new(url, secret.map(str::to_owned)).expect("settings");
        Webhook::open(settings).expect("a thread")
    }

    /// RFC 4231, test case 2.
    #[test]
    fn a_signature_is_the_hmac_of_the_body() {
        let expected = "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(signature("Jefe", b"what do ya want for nothing?"), expected);
    }

    #[test]
    fn an_event_arrives_signed_and_named() {
        let (url, received) = receiver(&["204 No Content"]);
        let (webhook, event) = (open(&url, Some("hunter2")), Event::example("ab12", Kind::Raised));
        webhook.send(event.clone());
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 1, dropped: 0 });
        let request = received.recv_timeout(PATIENCE).expect("a request");
        assert_eq!(request.head[0], "POST /hook HTTP/1.1");
        assert_eq!(request.body, serde_json::to_vec(&event).expect("JSON"));
        assert_eq!(request.header("X-NetSpectra-Signature"), signature("hunter2", &request.body));
        for (name, value) in [
            ("Content-Type", "application/json"),
            ("X-NetSpectra-Id", "ab12"),
            ("X-NetSpectra-Event", "raised"),
            ("Idempotency-Key", "ab12-raised"),
        ] {
            assert_eq!(request.header(name), value);
        }
    }

    #[test]
    fn without_a_secret_nothing_is_signed() {
        let (url, received) = receiver(&["200 OK"]);
        let webhook = open(&url, None);
        webhook.send(Event::example("a", Kind::Raised));
        webhook.finish(PATIENCE);
        assert_eq!(received.recv_timeout(PATIENCE).expect("a request").header("X-NetSpectra-Signature"), "");
    }

    #[test]
    fn an_event_is_posted_again_until_it_is_taken() {
        let (url, received) = receiver(&["500 Internal Server Error", "", "429 Too Many Requests", "200 OK"]);
        let webhook = open(&url, None);
        webhook.send(Event::example("a", Kind::Raised));
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 1, dropped: 0 });
        let requests: Vec<Request> = received.iter().collect();
        assert_eq!(requests.len(), 4);
        assert!(requests.iter().all(|request| request.body == requests[0].body));
        assert!(requests.iter().all(|request| request.header("Idempotency-Key") == "a-raised"));
    }

    #[test]
    fn the_body_of_an_answer_is_not_read() {
        /// Far more than sockets hold.
        const MANY: usize = 64 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let webhook = open(&format!("http://{}/", listener.local_addr().expect("an address")), None);
        let serve = move || {
            let (_, mut connection) = Request::read(listener.accept().expect("a connection").0);
            write!(connection, "HTTP/1.1 200 OK\r\n\r\n").expect("a head");
            let piece = [b'x'; 1 << 16];
            (0..MANY / piece.len()).take_while(|_| connection.write_all(&piece).is_ok()).count() * piece.len()
        };
        let sent = thread::spawn(serve);
        webhook.send(Event::example("a", Kind::Raised));
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 1, dropped: 0 });
        let sent = sent.join().expect("no panic");
        assert!(sent < MANY / 2, "{sent} bytes were taken");
    }

    #[test]
    fn an_event_is_sent_once_and_in_its_order() {
        let (url, received) = receiver(&["200 OK", "200 OK"]);
        let webhook = open(&url, None);
        for kind in [Kind::Raised, Kind::Raised, Kind::Withdrawn, Kind::Raised, Kind::Withdrawn] {
            webhook.send(Event::example("a", kind));
        }
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 2, dropped: 0 });
        let kinds: Vec<String> =
            received.iter().map(|request| request.header("X-NetSpectra-Event").to_owned()).collect();
        assert_eq!(kinds, ["raised", "withdrawn"]);
    }

    #[test]
    fn an_event_that_is_refused_does_not_hold_up_the_next() {
        let (url, received) = receiver(&["400 Bad Request", "302 Found", "200 OK"]);
        let webhook = open(&url, None);
        for id in ["a", "b", "c"] {
            webhook.send(Event::example(id, Kind::Raised));
        }
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 1, dropped: 2 });
        assert_eq!(received.iter().count(), 3);
    }

    /// A web server that knows nothing of events answers 200 with its own page to anything.
    #[test]
    fn a_web_page_is_not_a_receiver() {
        let page = "200 OK\n\r\n<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head></html>";
        let (url, received) = receiver(Vec::leak(vec![page, "200 OK\nok", "204 No Content"]));
        let webhook = open(&url, None);
        for id in ["a", "b", "c"] {
            webhook.send(Event::example(id, Kind::Raised));
        }
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 2, dropped: 1 });
        assert_eq!(received.iter().count(), 3);
    }

    #[test]
    fn an_event_is_given_up_after_its_time_and_may_come_again() {
        let (url, _received) = receiver(&["503 Service Unavailable", "503 Service Unavailable"]);
        let mut settings = Settings::new(&url, None).expect("settings");
        settings.give_up_after = Duration::ZERO;
        let webhook = Webhook::open(settings).expect("a thread");
        for dropped in [1, 2] {
            webhook.send(Event::example("a", Kind::Raised));
            let deadline = Instant::now() + PATIENCE;
            while webhook.counts().dropped < dropped {
                assert!(Instant::now() < deadline, "it is still tried");
                thread::yield_now();
            }
        }
        assert_eq!(webhook.finish(PATIENCE), Counts { delivered: 0, dropped: 2 });
    }

    #[test]
    fn the_oldest_make_room_and_the_end_is_not_waited_for() {
        // It takes connections and never answers.
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let webhook = open(&format!("http://{}/", listener.local_addr().expect("an address")), None);
        let send = |number: usize| webhook.send(Event::example(&number.to_string(), Kind::Raised));
        send(0);
        let deadline = Instant::now() + PATIENCE;
        while !webhook.0.state().sending {
            assert!(Instant::now() < deadline, "it is not sent");
            thread::yield_now();
        }
        (1..MOST_WAITING + 3).for_each(send);
        assert_eq!(webhook.counts(), Counts { delivered: 0, dropped: 2 });
        assert_eq!(webhook.0.state().waiting.front().map(|event| event.id.clone()), Some("3".into()));
        let began = Instant::now();
        let all = MOST_WAITING as u64 + 3;
        assert_eq!(webhook.finish(Duration::from_millis(50)), Counts { delivered: 0, dropped: all });
        assert!(began.elapsed() < ANSWER / 2);
    }

    #[test]
    fn known_events_are_bounded() {
        let mut known = Known::default();
        assert!((0..=MOST_KNOWN).all(|number| known.insert(number.to_string())));
        assert_eq!((known.names.len(), known.order.len()), (MOST_KNOWN, MOST_KNOWN));
        assert!(!known.insert("1".into()), "the latest are known");
        assert!(known.insert("0".into()), "the oldest is forgotten");
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = "https://user:hunter3@example.org:9000/hunter4?key=hunter5";
        let settings = Settings::new(url, Some("hunter2".into())).expect("settings");
        let shown = format!("{settings:?}");
        assert!(shown.contains("https://example.org:9000") && !shown.contains("hunter"), "{shown}");
        for (url, secret, key) in [
            ("ftp://hunter3", None, "url"),
            ("hunter3", None, "url"),
            ("http://", None, "url"),
            ("http:///hunter3", None, "url"),
            ("http://hunter3/", Some(""), "secret"),
        ] {
            let error = Settings::new(url, secret.map(str::to_owned)).expect_err("refused");
            assert_eq!(error.key.as_deref(), Some(key));
            assert!(!error.message.contains("hunter"), "{error}");
        }
    }
}
