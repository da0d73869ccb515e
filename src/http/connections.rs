//! The server's connections: how many there are at once, how long each may take, and which one is closed to admit another.
//!
//! A connection without a request in progress holds a place only while nobody else needs it: where all places are taken,
//! the one that has been idle longest is closed. Where all have requests in progress, a few more connections are admitted
//! for `/healthz` and `/readyz` alone. So no number of connections that ask nothing keeps a health check away.
//!
//! A connection learns from [`Visit::asked`] and [`Visit::answered`] what its request is doing; bytes are all it sees itself.

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::task::AtomicWaker;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// Connections at once that may ask anything.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// Further connections, which are answered about health alone.
const RESERVE: usize = 16;
/// Bytes that may come before they make a request: a path of the greatest length and headers.
const MAX_HEAD: usize = 64 << 10;
/// How long the first request may take to arrive whole.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may stay open between an answer and the next whole request.
const IDLE: Duration = Duration::from_secs(30);
/// How long an answer may take to be made.
const ANSWER: Duration = Duration::from_secs(90);
/// How long the client may take none of an answer. Streams send something more often than that.
const TAKE: Duration = Duration::from_secs(30);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first request has not arrived whole.
    New,
    /// An answer has been sent and no other request has arrived whole.
    Idle,
    /// An answer is being made.
    Answering,
    /// An answer is being sent; one without an end where `is_stream`.
    Sending { is_stream: bool },
}

impl Phase {
    fn limit(self) -> Duration {
        match self {
            Self::New => HEAD,
            Self::Idle => IDLE,
            Self::Answering => ANSWER,
            Self::Sending { .. } => TAKE,
        }
    }

    fn is_idle(self) -> bool {
        matches!(self, Self::New | Self::Idle)
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the phase began, or the last bytes were written in it.
    since: Instant,
    /// Bytes read since the last request.
    unasked: usize,
    /// Whether it has to make room for another.
    is_evicted: bool,
}

/// What is known of one connection: shared by its bytes, its requests and the list of all.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    is_reserved: bool,
    evicted: AtomicWaker,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can panic between two changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.state();
        (state.phase, state.since) = (phase, Instant::now());
        if phase == Phase::Answering {
            state.unasked = 0;
        }
    }
}

/// A client's connection, as its requests see it.
#[derive(Clone, Debug)]
pub(super) struct Visit(Arc<Shared>);

impl Visit {
    /// Whether it was admitted beyond [`MAX_CONNECTIONS`], to ask for health alone.
    pub(super) fn is_reserved(&self) -> bool {
        self.0.is_reserved
    }

    /// A whole request has arrived.
    pub(super) fn asked(&self) {
        self.0.enter(Phase::Answering);
    }

    /// The answer begins to be sent; one without an end where `is_stream`.
    pub(super) fn answered(&self, is_stream: bool) {
        self.0.enter(Phase::Sending { is_stream });
    }
}

impl Connected<IncomingStream<'_, Admission>> for Visit {
    fn connect_info(stream: IncomingStream<'_, Admission>) -> Self {
        Self(stream.io().shared.clone())
    }
}

/// All open connections.
#[derive(Default)]
struct Open {
    connections: Mutex<(u64, BTreeMap<u64, Arc<Shared>>)>,
    /// Told when one has been closed.
    closed: Notify,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Shared>>)> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, if there is one now. Where there is none, an idle connection is told to make room.
    fn place(&self) -> Option<(u64, Arc<Shared>)> {
        let mut open = self.lock();
        let (next, connections) = &mut *open;
        if connections.len() >= MAX_CONNECTIONS {
            // One that has been told will be gone soon; then there is a place for all.
            if connections.values().any(|one| one.state().is_evicted) {
                return None;
            }
            let idle = connections.values().filter(|one| one.state().phase.is_idle());
            if let Some(longest) = idle.min_by_key(|one| one.state().since) {
                longest.state().is_evicted = true;
                longest.evicted.wake();
                return None;
            }
        }
        if connections.len() >= MAX_CONNECTIONS + RESERVE {
            return None;
        }
        let state = State { phase: Phase::New, since: Instant::now(), unasked: 0, is_evicted: false };
        let is_reserved = connections.len() >= MAX_CONNECTIONS;
        let shared = Arc::new(Shared { state: Mutex::new(state), is_reserved, evicted: AtomicWaker::new() });
        let id = *next;
        *next += 1;
        connections.insert(id, shared.clone());
        Some((id, shared))
    }
}

/// Accepts connections while there are places for them.
pub(super) struct Admission {
    listener: tokio::net::TcpListener,
    open: Arc<Open>,
}

impl Admission {
    pub(super) fn new(listener: tokio::net::TcpListener) -> Self {
        Self { listener, open: Arc::default() }
    }
}

/// How often to look again for a connection that can make room: one becomes idle without a word.
const LOOK: Duration = Duration::from_millis(100);

impl Listener for Admission {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        // Where it cannot be set, answers are a little slower.
        let _ = stream.set_nodelay(true);
        let (id, shared) = loop {
            match self.open.place() {
                Some(place) => break place,
                None => {
                    let _ = tokio::time::timeout(LOOK, self.open.closed.notified()).await;
                }
            }
        };
        let over = Box::pin(tokio::time::sleep(HEAD));
        let place = Place { id, open: self.open.clone() };
        (Connection { stream, over, shared, _place: place }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A place among the open connections, free again when dropped.
struct Place {
    id: u64,
    open: Arc<Open>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().1.remove(&self.id);
        self.open.closed.notify_one();
    }
}

/// A connection that is closed when a phase takes longer than it may, when too much comes that is no request, and when
/// another one needs its place.
pub(super) struct Connection {
    stream: TcpStream,
    over: Pin<Box<Sleep>>,
    shared: Arc<Shared>,
    _place: Place,
}

impl Connection {
    /// The same, or why the connection is to be closed rather than waited for.
    fn or_over<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            return polled;
        }
        self.shared.evicted.register(context.waker());
        loop {
            let deadline = {
                let state = self.shared.state();
                if state.is_evicted {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                state.since + state.phase.limit()
            };
            if self.over.deadline() != deadline {
                self.over.as_mut().reset(deadline);
            }
            if self.over.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if self.over.deadline() == deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
    }

    fn written<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.shared.state().since = Instant::now();
        }
        self.or_over(context, polled)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        {
            let mut state = self.shared.state();
            state.unasked += buffer.filled().len() - before;
            if state.unasked > MAX_HEAD {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
        self.or_over(context, polled)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(context, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        // An answer with an end is one piece: it has been written whole when it is flushed.
        if matches!(polled, Poll::Ready(Ok(()))) {
            let is_sent = self.shared.state().phase == Phase::Sending { is_stream: false };
            if is_sent {
                self.shared.enter(Phase::Idle);
            }
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_all_are_answered_there_is_room_for_health_alone() {
        let open = Open::default();
        let place = || open.place().map(|(id, shared)| (id, Visit(shared)));
        let busy: Vec<_> = (0..MAX_CONNECTIONS).map(|_| place().expect("a place")).collect();
        busy.iter().for_each(|(_, visit)| visit.asked());
        for _ in 0..RESERVE {
            let (_, visit) = place().expect("a place of the reserve");
            assert!(visit.is_reserved());
            visit.asked();
        }
        assert!(place().is_none());
        assert!(busy.iter().all(|(_, visit)| !visit.is_reserved() && !visit.0.state().is_evicted));
    }

    #[test]
    fn the_one_that_has_been_idle_longest_makes_room() {
        let open = Open::default();
        let place = || open.place().map(|(id, shared)| (id, Visit(shared)));
        let visits: Vec<_> = (0..MAX_CONNECTIONS).map(|_| place().expect("a place")).collect();
        visits[0].1.asked();
        assert!(place().is_none());
        let evicted: Vec<_> = visits.iter().filter(|(_, visit)| visit.0.state().is_evicted).collect();
        assert_eq!(evicted.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1]);
        // No other one is closed before this one is.
        assert!(place().is_none());
        assert_eq!(visits.iter().filter(|(_, visit)| visit.0.state().is_evicted).count(), 1);
        open.lock().1.remove(&1);
        assert!(!place().expect("its place").1.is_reserved());
    }
}
