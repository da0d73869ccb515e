//! What listens where NATS should: a server of NATS greets with `INFO`, and whoever says something else is told of as that.

use super::{BusError, Settings};
use async_nats::{ConnectError, ConnectErrorKind, ServerAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a greeting is waited for.
const GREETING: Duration = Duration::from_millis(700);

/// A server that says something else than NATS would, if that is why there is no connection.
pub(super) async fn found(settings: &Settings, error: &ConnectError) -> Option<BusError> {
    if !matches!(
        error.kind(),
        ConnectErrorKind::Io | ConnectErrorKind::ServerParse | ConnectErrorKind::TimedOut
    ) {
        return None;
    }
    let mut stranger = None;
    for server in &settings.servers {
        // One that may be NATS, or is away, may yet be what was meant.
        stranger = Some(said(server).await?);
    }
    stranger
}

/// What a server says that is not NATS. `None` where it greets as NATS does, says nothing, or is away.
async fn said(server: &ServerAddr) -> Option<BusError> {
    if server.tls_required() || server.is_websocket() {
        return None;
    }
    let address = (server.host().trim_matches(['[', ']']), server.port());
    let mut stream = timeout(GREETING, TcpStream::connect(address)).await.ok()?.ok()?;
    let mut greeting = [0; 64];
    let read = match timeout(GREETING, stream.read(&mut greeting)).await {
        Ok(read) => read.ok()?,
        Err(_) => {
            // Most that do not greet answer: a web server with an error.
            stream.write_all(b"PING\r\n\r\n").await.ok()?;
            timeout(GREETING, stream.read(&mut greeting)).await.ok()?.ok()?
        }
    };
    let greeting = &greeting[..read];
    if greeting.is_empty() || greeting.starts_with(b"INFO") || greeting.starts_with(b"-ERR") {
        return None;
    }
    let said = if greeting.starts_with(b"HTTP/") {
        "a web server answers there".to_owned()
    } else {
        let text = String::from_utf8_lossy(greeting);
        format!("it says `{}`", text.lines().next().unwrap_or_default().escape_debug())
    };
    Some(BusError::Stranger { server: format!("{}:{}", server.host(), server.port()), said })
}
