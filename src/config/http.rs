//! The `http` section: where a running engine can be asked.

use super::{ConfigError, Place, Text, secret, size};
use crate::http::Settings;
use serde::Deserialize;
use std::net::SocketAddr;

/// Bytes of the latest windows that are kept to be asked for, where nothing else is said.
const MEMORY: u64 = 256 << 20;

/// The section as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    listen: Text,
    token: Text,
    token_file: Text,
    memory: Text,
}

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

pub(super) fn settings(place: &Place<'_>, section: Section) -> Result<Http, ConfigError> {
    let listen = section.listen.as_ref().map(|text| {
        address(&text.value).map_err(|why| place.wrong(text.defined, format!("http.listen: {why}")))
    });
    let token = secret(place, ("http", "http."), "token", (&section.token, &section.token_file))?;
    if let Some((_, at)) = token.as_ref().filter(|(token, _)| token.is_empty()) {
        return Err(place.wrong(*at, "http: the token is empty"));
    }
    let memory = section.memory.as_ref().map(|text| {
        size(&text.value).map_err(|why| place.wrong(text.defined, format!("http.memory: {why}")))
    });
    let token = token.map(|(token, _)| token);
    Ok(Http { listen: listen.transpose()?, token, memory: memory.transpose()?.unwrap_or(MEMORY) })
}
