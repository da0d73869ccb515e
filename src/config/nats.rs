//! The `nats` section: where the bus is, who we are to it, and how it is used.

use super::{ConfigError, Place, Text, duration, secret, size};
use crate::bus::{Credentials, JetStream, Settings, Tls};
use async_nats::ServerAddr;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use std::path::PathBuf;
use std::time::Duration;

/// The section as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    url: Text,
    connect_timeout: Text,
    user: Text,
    password: Text,
    password_file: Text,
    token: Text,
    token_file: Text,
    nkey_file: Text,
    credentials_file: Text,
    tls: TlsSection,
    subjects: SubjectsSection,
    queue_group: Text,
    silent_after: Text,
    buffer: Text,
    jetstream: JetStreamSection,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsSection {
    required: bool,
    ca: Option<PathBuf>,
    certificate: Option<Spanned<PathBuf>>,
    key: Option<Spanned<PathBuf>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SubjectsSection {
    single: Text,
    batch: Text,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JetStreamSection {
    enabled: bool,
    stream: Text,
    partitions: Option<Spanned<u32>>,
    max_bytes: Text,
    max_age: Text,
    duplicate_window: Text,
}

/// Batches may be spread over so many subjects.
const MOST_PARTITIONS: u32 = 1024;

/// Checks the section; what it leaves out has its default.
pub(super) fn settings(place: &Place<'_>, section: Option<Section>) -> Result<Settings, ConfigError> {
    let section = section.unwrap_or_default();
    let wrong = |at: Location, key: &str, why: String| place.wrong(at, format!("nats.{key}: {why}"));
    let time = |key: &str, text: &Text, default: &str| -> Result<Duration, ConfigError> {
        let (value, at) = value(text, default);
        duration(&value).map_err(|why| wrong(at, key, why))
    };
    let bytes = |key: &str, text: &Text, default: &str| -> Result<u64, ConfigError> {
        let (value, at) = value(text, default);
        size(&value).map_err(|why| wrong(at, key, why))
    };
    let name = |key: &str, text: &Text, default: &str, dots: bool| -> Result<String, ConfigError> {
        let (value, at) = value(text, default);
        let allowed = |character: char| {
            character.is_ascii_alphanumeric()
                || matches!(character, '_' | '-' | '$')
                || dots && character == '.'
        };
        if value.is_empty() || !value.chars().all(allowed) || value.split('.').any(str::is_empty) {
            let dots = if dots { ", dots between words" } else { "" };
            let why = format!("`{value}`: use letters, digits, `_` and `-`{dots}; no wildcards");
            return Err(wrong(at, key, why));
        }
        Ok(value)
    };
    let (url, at) = value(&section.url, "nats://127.0.0.1:4222");
    let servers = servers(&url).map_err(|why| wrong(at, "url", why))?;
    let partitions = match &section.jetstream.partitions {
        None => 16,
        Some(partitions) if (1..=MOST_PARTITIONS).contains(&partitions.value) => partitions.value,
        Some(partitions) => {
            let message = format!("nats.jetstream.partitions: 1 to {MOST_PARTITIONS}");
            return Err(place.wrong(partitions.defined, message));
        }
    };
    let own = match (&section.tls.certificate, &section.tls.key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.value.clone(), key.value.clone())),
        (Some(one), None) | (None, Some(one)) => {
            let message = "nats.tls: `certificate` and `key` go together; one of them is missing";
            return Err(place.wrong(one.defined, message));
        }
    };
    Ok(Settings {
        servers,
        connect_timeout: time("connect_timeout", &section.connect_timeout, "5s")?,
        credentials: credentials(place, &section)?,
        tls: Tls { required: section.tls.required, ca: section.tls.ca.clone(), own },
        single: name("subjects.single", &section.subjects.single, "gons.packets.raw", true)?,
        batch: name("subjects.batch", &section.subjects.batch, "gons.packets.batch", true)?,
        queue_group: name("queue_group", &section.queue_group, "ns-engine", false)?,
        silent_after: time("silent_after", &section.silent_after, "30s")?,
        buffer: bytes("buffer", &section.buffer, "64MiB")?,
        jetstream: JetStream {
            enabled: section.jetstream.enabled,
            stream: name("jetstream.stream", &section.jetstream.stream, "GONS_PACKETS", false)?,
            partitions,
            max_bytes: bytes("jetstream.max_bytes", &section.jetstream.max_bytes, "10GiB")?,
            max_age: time("jetstream.max_age", &section.jetstream.max_age, "1d")?,
            duplicate_window: time("jetstream.duplicate_window", &section.jetstream.duplicate_window, "2m")?,
        },
    })
}

/// A value, or the default, and where it stands.
fn value(text: &Text, default: &str) -> (String, Location) {
    text.as_ref().map_or((default.to_owned(), Location::UNKNOWN), |text| (text.value.clone(), text.defined))
}

/// Reads the addresses of servers, separated by commas.
pub fn servers(text: &str) -> Result<Vec<ServerAddr>, String> {
    let one = |(number, address): (usize, &str)| {
        address.trim().parse::<ServerAddr>().map_err(|error| {
            // An address may hold a password, and a password a comma.
            let shown =
                if text.contains('@') { format!("address {}", number + 1) } else { format!("`{address}`") };
            format!("{shown} is no address of a server ({error}); write nats://host:4222 or tls://host:4222")
        })
    };
    text.split(',').enumerate().map(one).collect()
}

/// The one kind of credentials that is given; a secret comes as a value (from the environment) or in a file.
fn credentials(place: &Place<'_>, section: &Section) -> Result<Credentials, ConfigError> {
    let secret = |key, value: &Text, file: &Text| secret(place, ("nats", "nats."), key, (value, file));
    let password = secret("password", &section.password, &section.password_file)?;
    let token = secret("token", &section.token, &section.token_file)?;
    let nkey = secret("nkey", &None, &section.nkey_file)?;
    let mut given = Vec::new();
    match (&section.user, password) {
        (Some(user), password) => {
            let password = password.map(|(password, _)| password).unwrap_or_default();
            given.push((Credentials::User(user.value.clone(), password), user.defined));
        }
        (None, Some((_, at))) => return Err(place.wrong(at, "nats.password: whose? `user` is missing")),
        (None, None) => {}
    }
    given.extend(token.map(|(token, at)| (Credentials::Token(token), at)));
    given.extend(nkey.map(|(seed, at)| (Credentials::Nkey(seed), at)));
    if let Some(file) = &section.credentials_file {
        given.push((Credentials::File(PathBuf::from(&file.value)), file.defined));
    }
    match given.len() {
        0 => Ok(Credentials::None),
        1 => Ok(given.remove(0).0),
        _ => {
            let message = "nats: give one of user, token, nkey_file and credentials_file";
            Err(place.wrong(given[1].1, message))
        }
    }
}
