//! A running engine asked over HTTP: health, metrics, latest windows, alerts, and a stream of what happens.
//!
//! [`View`] is all that is known here of an engine, [`api`] says what is asked and answered, [`metrics`] how the numbers
//! are told to Prometheus, [`recent`] holds the windows that can be asked for. Nothing can be changed from here.
//!
//! Everything is bounded: connections and how long each may take (`connections`), requests at once, listeners and
//! answers. A server has a thread of its own, so nothing that is asked can hold up what is counted.

pub mod api;
mod connections;
pub mod metrics;
pub mod recent;

use crate::alerts::event::Event;
use connections::{Admission, Visit};
use dataflows::rows::Schema;
use metrics::Measured;
use recent::Recent;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::watch;

/// How long the end waits for answers.
const PATIENCE: Duration = Duration::from_secs(1);
/// Answers that are made at a time, beside those that need no work.
const HANDS: usize = 4;

/// What is known of a running engine.
pub trait View: Send + Sync + 'static {
    /// Its tasks, in configured order.
    fn tasks(&self) -> Vec<(Arc<str>, Arc<Schema>)>;
    /// Plain numbers for the metrics, as they are now.
    fn measured(&self) -> Measured;
    /// Whether it works.
    fn health(&self) -> Health;
    /// The active alerts, latest first.
    fn alerts(&self) -> Vec<Event>;
    /// The windows that can be asked for.
    fn recent(&self) -> &Recent;
}

/// Whether an engine works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the run has failed, if it has.
    pub failed: Option<String>,
    /// Why it is not ready; none where it is.
    pub reasons: Vec<String>,
    /// What is wrong around it, though it works.
    pub remarks: Vec<String>,
}

/// Where and to whom is answered.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The address to listen on; port 0 for a free one.
    pub listen: SocketAddr,
    /// What whoever asks has to know. Never shown.
    pub token: Option<String>,
    /// Bytes of windows that are kept to be asked for.
    pub memory: u64,
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.listen, self.memory)
    }
}

impl Settings {
    /// Refuses an address that others can reach where there is no token, and a token that no request can hold.
    pub fn check(&self) -> Result<(), HttpError> {
        let token = self.token.as_deref().unwrap_or_default();
        if token.is_empty() && !self.listen.ip().to_canonical().is_loopback() {
            return Err(HttpError::Open { address: self.listen });
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HttpError::Token);
        }
        Ok(())
    }
}

/// There can be no server.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Anybody could ask.
    #[error(
        "http: {address} can be reached from other machines; set http.token or http.token_file, or listen on 127.0.0.1"
    )]
    Open {
        /// Where.
        address: SocketAddr,
    },
    /// It could not stand in a header.
    #[error("http: the token may hold letters, digits and signs of ASCII, no spaces")]
    Token,
    /// The address cannot be had.
    #[error("http: cannot listen on {address}: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's word.
        error: io::Error,
    },
    /// The system gives no thread, or nothing to wait with.
    #[error("http: cannot start a server: {0}")]
    Start(io::Error),
}

/// Looks whether there could be a server, and starts none.
pub fn check(settings: &Settings) -> Result<(), HttpError> {
    listen(settings).map(drop)
}

fn listen(settings: &Settings) -> Result<(TcpListener, SocketAddr), HttpError> {
    settings.check()?;
    let failed = |error| HttpError::Listen { address: settings.listen, error };
    let listener = TcpListener::bind(settings.listen).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Answers from now on.
pub fn start(settings: Settings, view: Arc<dyn View>) -> Result<Server, HttpError> {
    let (listener, address) = listen(&settings)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(HANDS)
        .thread_name("http-work")
        .build()
        .map_err(HttpError::Start)?;
    let (stop, stopping) = watch::channel(false);
    let access = api::Access::new(settings.token.as_deref(), address);
    let answers = api::router(view, access, stopping.clone());
    let listener = {
        let _within = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(HttpError::Start)?
    };
    let answers = answers.into_make_service_with_connect_info::<Visit>();
    let admission = Admission::new(listener);
    let serve = move || {
        runtime.block_on(async {
            let served = axum::serve(admission, answers).with_graceful_shutdown(stopped(stopping.clone()));
            let over = async {
                stopped(stopping).await;
                tokio::time::sleep(PATIENCE).await;
            };
            tokio::select! {
                // It ends when it is stopped and all is answered.
                _ = served.into_future() => {}
                () = over => {}
            }
        });
        // Whatever is still worked on has nobody any more who would hear of it.
        runtime.shutdown_background();
    };
    let thread = thread::Builder::new().name("http".into()).spawn(serve).map_err(HttpError::Start)?;
    Ok(Server { address, stop, thread })
}

/// Waits until the server is stopped, or is gone.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// A server that answers.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all streams, waits a second at most for what is being answered, and ends.
    pub fn stop(self) {
        self.stop.send_replace(true);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

#[cfg(test)]
mod tests {
    use super::recent::example;
    use super::*;
    use serde_json::{Value, json};
    use std::io::{Read, Write};

    struct Still {
        recent: Recent,
        health: Health,
    }

    impl View for Still {
        fn tasks(&self) -> Vec<(Arc<str>, Arc<Schema>)> {
            let snapshot = example(60, 0, &[]);
            snapshot.tasks.iter().map(|task| (task.name.clone(), task.schema.clone())).collect()
        }

        fn measured(&self) -> Measured {
            Measured::default()
        }

        fn health(&self) -> Health {
            self.health.clone()
        }

        fn alerts(&self) -> Vec<Event> {
            Vec::new()
        }

        fn recent(&self) -> &Recent {
            &self.recent
        }
    }

    fn server(token: Option<&str>, health: Health) -> Server {
        let recent = Recent::new(1 << 20);
        recent.push(example(60, 0, &[("10.0.0.1", 443, 3, 300), ("10.0.0.2", 53, 1, 100)]));
        let listen = "127.0.0.1:0".parse().expect("an address");
        let settings = Settings { listen, token: token.map(str::to_owned), memory: 1 << 20 };
        start(settings, Arc::new(Still { recent, health })).expect("a server")
    }

    /// Sends a request line and headers, and reads all of the answer.
    fn raw(server: &Server, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(server.address()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
        let request = format!("{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn get(server: &Server, path: &str) -> (u16, Value) {
        let answer = raw(server, &format!("GET {path} HTTP/1.1"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    #[test]
    fn nobody_listens_to_the_world_without_a_token() {
        let check = |listen: &str, token: Option<&str>| {
            let listen = listen.parse().expect("an address");
            Settings { listen, token: token.map(str::to_owned), memory: 0 }.check().is_ok()
        };
        assert!(check("127.0.0.1:9477", None) && check("[::1]:9477", None) && check("127.9.9.9:1", Some("")));
        assert!(!check("0.0.0.0:9477", None) && !check("[::]:9477", None) && !check("192.0.2.1:1", Some("")));
        assert!(check("0.0.0.0:9477", Some("s3cret")) && !check("127.0.0.1:9477", Some("two words")));
    }

    #[test]
    fn a_token_is_wanted_on_every_path() {
        let server = server(Some("s3cret"), Health::default());
        let status = |path: &str, token: &str| {
            let answer = raw(&server, &format!("GET {path} HTTP/1.1\r\nAuthorization: {token}"));
            answer.split(' ').nth(1).map(str::to_owned).expect("a status")
        };
        for path in ["/healthz", "/metrics", "/api/v1/tasks", "/nothing"] {
            assert_eq!(get(&server, path).0, 401, "{path}");
        }
        assert_eq!(status("/healthz", "Bearer s3cret"), "200");
        assert_eq!(status("/healthz", "bearer s3cret"), "200");
        assert_eq!(status("/healthz", "Bearer s3cre"), "401");
        assert_eq!(status("/healthz", "Basic s3cret"), "401");
        assert!(raw(&server, "GET /healthz HTTP/1.1").to_lowercase().contains("www-authenticate: bearer"));
        server.stop();
    }

    fn connect(server: &Server) -> std::net::TcpStream {
        let stream = std::net::TcpStream::connect(server.address()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
        stream
    }

    #[test]
    fn connections_that_ask_nothing_keep_no_health_check_away() {
        // 257 of them once kept it away for two minutes.
        let server = server(None, Health::default());
        let mut idle: Vec<_> = (0..257).map(|_| connect(&server)).collect();
        assert_eq!(get(&server, "/healthz").0, 200);
        // The ones that have been idle longest have made room; the latest has not.
        let request = b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n";
        let mut latest = idle.pop().expect("the latest");
        latest.write_all(request).expect("sent");
        let mut answer = String::new();
        latest.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(idle[0].read(&mut [0]).expect("closed"), 0);
        server.stop();
    }

    #[test]
    fn a_head_without_end_is_not_read_on() {
        let server = server(None, Health::default());
        let mut stream = connect(&server);
        let head = format!("GET /healthz HTTP/1.1\r\nX: {}", "a".repeat(100_000));
        // It may be closed while this is written.
        let _ = stream.write_all(head.as_bytes());
        match stream.read(&mut [0; 64]) {
            Ok(read) => assert_eq!(read, 0),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        server.stop();
    }

    #[test]
    fn on_loopback_no_other_name_of_this_address_is_answered() {
        // A page in a browser of this machine, whose name was pointed at 127.0.0.1, once could read everything.
        let server = server(None, Health::default());
        let ask = |head: &str| {
            let mut stream = connect(&server);
            stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
            answer
        };
        for host in ["localhost", "LocalHost:9477", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:9477"] {
            let answer = ask(&format!("GET /api/v1/tasks HTTP/1.1\r\nHost: {host}"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
        }
        for host in
            ["rebound.example", "rebound.example:9477", "localhost.example", "192.0.2.1", "[::2]", "::1", ""]
        {
            let answer = ask(&format!("GET /api/v1/tasks HTTP/1.1\r\nHost: {host}"));
            assert!(answer.starts_with("HTTP/1.1 421"), "{host}: {answer}");
            assert!(
                answer.contains("{\"error\":") && answer.contains("only requests to localhost"),
                "{host}: {answer}"
            );
        }
        let answer = ask("GET http://rebound.example/metrics HTTP/1.1\r\nHost: localhost");
        assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
        // A client that names no host is no browser.
        assert!(ask("GET /healthz HTTP/1.0").starts_with("HTTP/1.0 200"));
        server.stop();
    }

    #[test]
    fn health_is_told_by_status() {
        let good = server(None, Health::default());
        assert_eq!(get(&good, "/healthz"), (200, json!({"status": "ok"})));
        assert_eq!(get(&good, "/readyz"), (200, json!({"ready": true, "reasons": []})));
        good.stop();
        let (failed, reasons) = (Some("no room".into()), vec!["a writer is behind".into()]);
        let remarks = vec!["the clock of probe p is wrong".to_owned()];
        let works = server(None, Health { remarks: remarks.clone(), ..Health::default() });
        assert_eq!(get(&works, "/readyz"), (200, json!({"ready": true, "reasons": remarks})));
        works.stop();
        let bad = server(None, Health { failed, reasons, remarks });
        assert_eq!(get(&bad, "/healthz"), (503, json!({"status": "failed", "why": "no room"})));
        let expected = json!({"ready": false, "reasons": ["no room", "a writer is behind", "the clock of probe p is wrong"]});
        assert_eq!(get(&bad, "/readyz"), (503, expected));
        bad.stop();
    }

    #[test]
    fn rows_are_answered_as_they_are_asked_for() {
        let server = server(None, Health::default());
        let row = |ip: &str, port: u16, packets: u64| {
            let (first, last) = ("1970-01-01T00:00:00.000000000Z", "1970-01-01T00:00:01.000000001Z");
            json!({"src_ip": ip, "dst_port": port, "packets": packets, "bytes": packets * 100,
                "first_seen": first, "last_seen": last})
        };
        let (status, all) = get(&server, "/api/v1/windows/latest/flows");
        assert_eq!((status, &all["rows"], &all["matched"]), (200, &json!(2), &json!(2)));
        assert_eq!(all["window"], "1970-01-01T00-01-00Z");
        assert_eq!(all["window_start"], "1970-01-01T00:01:00.000000000Z");
        assert_eq!(all["data"].as_array().map(Vec::len), Some(2));
        let path = "/api/v1/windows/1970-01-01T00-01-00Z/flows?sort=packets&limit=1";
        assert_eq!(get(&server, path).1["data"], json!([row("10.0.0.2", 53, 1)]));
        let (_, some) = get(&server, "/api/v1/windows/latest/flows?filter=src_ip:10.0.0.0%2F31,dst_port:443");
        assert_eq!((&some["matched"], &some["data"]), (&json!(1), &json!([row("10.0.0.1", 443, 3)])));
        assert_eq!(
            get(&server, "/api/v1/windows?before=1970-01-01T00-01-00Z"),
            (200, json!({"windows": []}))
        );
        let (_, windows) = get(&server, "/api/v1/windows");
        assert_eq!(windows["windows"][0]["tasks"]["flows"], json!({"rows": 2, "packets": 4, "bytes": 400}));
        server.stop();
    }

    #[test]
    fn what_is_wrong_is_refused_and_named() {
        let server = server(None, Health::default());
        let long = format!("/healthz?{}", "a".repeat(9000));
        for (path, status, says) in [
            ("/api/v1/windows?limit=0", 400, "1 to 1000"),
            ("/api/v1/windows?limit=1001", 400, "1 to 1000"),
            ("/api/v1/windows?limit=%2B5", 400, "1 to 1000"),
            ("/api/v1/windows?limit=1&limit=2", 400, "`limit` is given twice"),
            ("/api/v1/windows?lim=1", 400, "limit, before"),
            ("/api/v1/windows?before=yesterday", 400, "`yesterday` is no window"),
            ("/healthz?verbose", 400, "`verbose`"),
            ("/api/v1/windows/latest/none", 404, "flows"),
            ("/api/v1/windows/2000-01-01T00-00-00Z/flows", 404, "2000-01-01T00-00-00Z"),
            ("/api/v1/windows/latest/flows?sort=-elements", 404, "src_ip, dst_port, packets"),
            ("/api/v1/windows/latest/flows?filter=packets:3", 404, "src_ip, dst_port"),
            ("/api/v1/windows/latest/flows?filter=src_ip:10.0.0.1%2F8", 400, "10.0.0.0/8"),
            ("/api/v1/windows/latest/flows?filter=dst_port", 400, "column:value"),
            ("/api/v1/windows/%ff/flows", 400, "UTF-8"),
            ("/api/v1/windows/", 404, "no such path"),
            ("/api/v2", 404, "no such path"),
            (long.as_str(), 414, "8192"),
        ] {
            let (found, answer) = get(&server, path);
            let why = answer["error"].as_str().unwrap_or_default();
            assert_eq!(found, status, "{path}: {answer}");
            assert!(why.contains(says), "{path}: {why}");
        }
        let post = raw(&server, "POST /api/v1/tasks HTTP/1.1").to_lowercase();
        assert!(post.starts_with("http/1.1 405") && post.contains("allow: get,head"), "{post}");
        assert!(post.contains("cache-control: no-store") && post.contains("{\"error\":"), "{post}");
        let body = raw(&server, "GET /healthz HTTP/1.1\r\nContent-Length: 1");
        assert!(body.starts_with("HTTP/1.1 400"), "{body}");
        let head = raw(&server, "HEAD /healthz HTTP/1.1");
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        server.stop();
    }

    #[test]
    fn streams_end_when_the_server_stops() {
        let server = server(None, Health::default());
        let mut stream = std::net::TcpStream::connect(server.address()).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
        stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
        let mut first = [0; 15];
        stream.read_exact(&mut first).expect("a head");
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        server.stop();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the end");
        assert!(rest.to_lowercase().contains("text/event-stream"), "{rest}");
    }
}
