//! Answers of servers with a limit: what a server sends without end is not taken into memory, nor into a log.
//!
//! The limit is on what is read from a connection. Each of them is for one request (`Connection: close`), so no client that
//! collects a whole body, be it that of an error, collects more than that.

use hyper::Uri;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;
use tower_service::Service;

/// Bytes of an answer, head and body.
pub const MAX_ANSWER: usize = 8 << 20;
/// Bytes of a server's own words in a message.
const MAX_WORDS: usize = 1000;
/// Bytes that are read at a time.
const PIECE: usize = 8 << 10;
/// How long a connection may be silent before its peer is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A server's words as a message has them: the first 1000 bytes of longer ones.
pub fn cut(words: &str) -> String {
    if words.len() <= MAX_WORDS {
        return words.to_owned();
    }
    let end = (0..=MAX_WORDS).rev().find(|end| words.is_char_boundary(*end)).unwrap_or(0);
    format!("{}... (the first {end} of {} bytes)", &words[..end], words.len())
}

/// Connects to `http` and `https` servers whose answers have at most [`MAX_ANSWER`] bytes. The authorities are those that the
/// system trusts.
pub fn connector() -> io::Result<HttpsConnector<Bounded>> {
    let mut connector = HttpConnector::new();
    connector.set_keepalive(Some(KEEPALIVE));
    connector.enforce_http(false);
    let provider = rustls::crypto::ring::default_provider();
    let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
    Ok(builder.https_or_http().enable_http1().wrap_connector(Bounded(connector)))
}

/// Connects as [`HttpConnector`] does.
#[derive(Clone)]
pub struct Bounded(HttpConnector);

impl Service<Uri> for Bounded {
    type Response = Answer;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let connected = self.0.call(server);
        Box::pin(async move { Ok(Answer { connection: connected.await?, left: MAX_ANSWER }) })
    }
}

/// A connection that has so many bytes left to be read.
pub struct Answer {
    connection: TokioIo<TcpStream>,
    left: usize,
}

impl Answer {
    fn connection(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().connection)
    }
}

impl Read for Answer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut piece = [0; PIECE];
        let length = buffer.remaining().min(PIECE);
        let mut read = ReadBuf::new(&mut piece[..length]);
        ready!(self.as_mut().connection().poll_read(context, read.unfilled()))?;
        let Some(left) = self.left.checked_sub(read.filled().len()) else {
            return Poll::Ready(Err(io::Error::other(format!(
                "its answer is longer than {MAX_ANSWER} bytes"
            ))));
        };
        self.left = left;
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for Answer {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.connection().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection().poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.connection().poll_write_vectored(context, pieces)
    }
}

impl Connection for Answer {
    fn connected(&self) -> Connected {
        self.connection.connected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_cut_at_a_character_and_say_so() {
        assert_eq!(cut("Code: 60"), "Code: 60");
        let cut = cut(&format!("x{}", "ä".repeat(5000)));
        assert!(cut.starts_with("xä") && cut.ends_with("ä... (the first 999 of 10001 bytes)"), "{cut}");
    }
}
