//! The `nats` section: where the bus is, who we are to it, and how it is used.

use super::section::Section;
use super::tree::{Location, Spanned};
use super::{ConfigError, Text, duration, secret, size};
use crate::bus::{Credentials, JetStream, Settings, Tls};
use async_nats::ServerAddr;
use std::time::Duration;

const KEYS: &[&str] = &[
    "url",
    "connect_timeout",
    "user",
    "password",
    "password_file",
    "token",
    "token_file",
    "nkey_file",
    "credentials_file",
    "tls",
    "subjects",
    "queue_group",
    "silent_after",
    "buffer",
    "jetstream",
];

/// The section of a file.
pub(super) fn section<'a>(file: &Section<'a>) -> Section<'a> {
    file.section("nats", KEYS)
}

/// Batches may be spread over so many subjects.
const MOST_PARTITIONS: u32 = 1024;

/// Checks the section; what it leaves out has its default. `None` where something is wrong, which is noted.
pub(super) fn settings(section: &Section<'_>) -> Option<Settings> {
    let place = section.place;
    let url = text(section, "url", "nats://127.0.0.1:4222");
    let servers = servers(&url.value).map_err(|why| place.wrong(url.defined, format!("nats.url: {why}")));
    let servers = place.kept(servers);
    let connect_timeout = time(section, "connect_timeout", "5s");
    let credentials = place.kept(credentials(section));
    let tls = tls(&section.section("tls", &["required", "ca", "certificate", "key"]));
    let subjects = section.section("subjects", &["single", "batch"]);
    let single = name(&subjects, "single", "gons.packets.raw", true);
    let batch = name(&subjects, "batch", "gons.packets.batch", true);
    let queue_group = name(section, "queue_group", "ns-engine", false);
    let silent_after = time(section, "silent_after", "30s");
    let buffer = bytes(section, "buffer", "64MiB");
    let keys = &["enabled", "stream", "partitions", "max_bytes", "max_age", "duplicate_window"];
    let jetstream = jetstream(&section.section("jetstream", keys));
    Some(Settings {
        servers: servers?,
        connect_timeout: connect_timeout?,
        credentials: credentials?,
        tls: tls?,
        single: single?,
        batch: batch?,
        queue_group: queue_group?,
        silent_after: silent_after?,
        buffer: buffer?,
        jetstream: jetstream?,
    })
}

fn tls(section: &Section<'_>) -> Option<Tls> {
    let (required, ca) = (section.flag("required"), section.path("ca").map(|ca| ca.value));
    let own = match (section.path("certificate"), section.path("key")) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.value, key.value)),
        (Some(one), None) | (None, Some(one)) => {
            let message = "nats.tls: `certificate` and `key` go together; one of them is missing";
            section.place.note(one.defined, message);
            return None;
        }
    };
    Some(Tls { required, ca, own })
}

fn jetstream(section: &Section<'_>) -> Option<JetStream> {
    let partitions = match section.number::<u32>("partitions") {
        None => Some(16),
        Some(partitions) if (1..=MOST_PARTITIONS).contains(&partitions.value) => Some(partitions.value),
        Some(partitions) => {
            let message = format!("nats.jetstream.partitions: 1 to {MOST_PARTITIONS}");
            section.place.note(partitions.defined, message);
            None
        }
    };
    let enabled = section.flag("enabled");
    let stream = name(section, "stream", "GONS_PACKETS", false);
    let max_bytes = bytes(section, "max_bytes", "10GiB");
    let max_age = time(section, "max_age", "1d");
    let duplicate_window = time(section, "duplicate_window", "2m");
    Some(JetStream {
        enabled,
        stream: stream?,
        partitions: partitions?,
        max_bytes: max_bytes?,
        max_age: max_age?,
        duplicate_window: duplicate_window?,
    })
}

/// A text, or the default, and where it stands.
fn text(section: &Section<'_>, key: &str, default: &str) -> Spanned<String> {
    let text = section.text(key, &format!("a text such as {default}"));
    text.unwrap_or_else(|| Spanned { value: default.to_owned(), defined: Location::default() })
}

/// A text that is read with this; what is wrong is noted.
fn read<T>(
    section: &Section<'_>,
    (key, default): (&str, &str),
    read: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let text = text(section, key, default);
    let read = read(&text.value);
    let place = section.place;
    place.kept(read.map_err(|why| place.wrong(text.defined, format!("{}{key}: {why}", section.name()))))
}

fn time(section: &Section<'_>, key: &str, default: &str) -> Option<Duration> {
    read(section, (key, default), duration)
}

fn bytes(section: &Section<'_>, key: &str, default: &str) -> Option<u64> {
    read(section, (key, default), size)
}

fn name(section: &Section<'_>, key: &str, default: &str, dots: bool) -> Option<String> {
    read(section, (key, default), |value| {
        let allowed = |character: char| {
            character.is_ascii_alphanumeric()
                || matches!(character, '_' | '-' | '$')
                || dots && character == '.'
        };
        if value.is_empty() || !value.chars().all(allowed) || value.split('.').any(str::is_empty) {
            let dots = if dots { ", dots between words" } else { "" };
            return Err(format!("`{value}`: use letters, digits, `_` and `-`{dots}; no wildcards"));
        }
        Ok(value.to_owned())
    })
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
fn credentials(section: &Section<'_>) -> Result<Credentials, ConfigError> {
    let place = section.place;
    let text = |key: &str| section.text(key, "a text");
    let secret = |key: &str| -> Result<_, ConfigError> {
        let value: Text = if key == "nkey" { None } else { text(key) };
        secret(place, ("nats", "nats."), key, (&value, &text(&format!("{key}_file"))))
    };
    let (password, token, nkey) = (secret("password")?, secret("token")?, secret("nkey")?);
    let mut given = Vec::new();
    match (text("user"), password) {
        (Some(user), password) => {
            let password = password.map(|(password, _)| password).unwrap_or_default();
            given.push((Credentials::User(user.value, password), user.defined));
        }
        (None, Some((_, at))) => return Err(place.wrong(at, "nats.password: whose? `user` is missing")),
        (None, None) => {}
    }
    given.extend(token.map(|(token, at)| (Credentials::Token(token), at)));
    given.extend(nkey.map(|(seed, at)| (Credentials::Nkey(seed), at)));
    given.extend(section.path("credentials_file").map(|file| (Credentials::File(file.value), file.defined)));
    match given.len() {
        0 => Ok(Credentials::None),
        1 => Ok(given.remove(0).0),
        _ => {
            let message = "nats: give one of user, token, nkey_file and credentials_file";
            Err(place.wrong(given[1].1, message))
        }
    }
}
