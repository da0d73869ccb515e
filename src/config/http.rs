//! The `http` section: where a running engine can be asked.

use super::section::Section;
use super::{secret, size};
use crate::http::Settings;
use std::net::SocketAddr;

/// Bytes of the latest windows that are kept to be asked for, where nothing else is said.
const MEMORY: u64 = 256 << 20;

/// Keys of the section.
pub(super) const KEYS: &[&str] = &["listen", "token", "token_file", "memory"];

/// What the section says; whether there is a server at all is in [`Http::listen`].
#[derive(Clone, Debug)]
pub struct Http {
    /// Where to listen; nowhere without.
    pub listen: Option<SocketAddr>,
    /// What who asks has to know.
    pub token: Option<String>,
    /// Bytes of windows that are kept.
    pub memory: u64,
}

impl Http {
    /// The server, where there is to be one.
    pub fn settings(&self) -> Option<Settings> {
        let Self { listen, token, memory } = self.clone();
        listen.map(|listen| Settings { listen, token, memory })
    }
}

/// Reads an address to listen on.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is no address to listen on; write 127.0.0.1:9477 or [::1]:9477"))
}

/// Checks the section; `None` where something is wrong, which is noted.
pub(super) fn settings(section: &Section<'_>) -> Option<Http> {
    let place = section.place;
    let listen = section.text("listen", "an address such as 127.0.0.1:9477").map(|text| {
        let read = address(&text.value);
        place.kept(read.map_err(|why| place.wrong(text.defined, format!("http.listen: {why}"))))
    });
    let texts = (&section.text("token", "a token"), &section.text("token_file", "a path"));
    let token = place.kept(secret(place, ("http", "http."), "token", texts));
    if let Some(Some((_, at))) =
        token.as_ref().filter(|token| matches!(token, Some((text, _)) if text.is_empty()))
    {
        place.note(*at, "http: the token is empty");
    }
    let memory = section.text("memory", "a size such as 256MiB").map(|text| {
        let read = size(&text.value);
        place.kept(read.map_err(|why| place.wrong(text.defined, format!("http.memory: {why}"))))
    });
    // What is said has to be right; what is not said has its default.
    let (listen, memory) =
        (listen.map_or(Some(None), |listen| listen.map(Some))?, memory.unwrap_or(Some(MEMORY))?);
    Some(Http { listen, token: token?.map(|(token, _)| token), memory })
}
