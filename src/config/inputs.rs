//! The `inputs` section: what an engine reads, where it is neither what the `nats` section says nor what flags name.
//!
//! All options but the type are the input's own and read by its kind, which a registry has.

use super::section::{Place, Section};
use super::tree::Spanned;
use super::{ConfigError, Entry, kind_of, own_options, place_of};
use crate::bus::Settings;
use crate::intake::registry::{InputConfig, InputRegistry};
use crate::options::{OwnOptions, TypeKeys};

/// Options that every input has.
const COMMON: [&str; 1] = ["type"];

/// The input that is named, if one is; what is wrong is noted. What needs the `nats` section is not read without it.
pub(super) fn input(
    place: &Place<'_>,
    file: &Section<'_>,
    (registry, nats): (&InputRegistry, Option<&Settings>),
) -> Option<InputConfig> {
    let entries = file.entries("inputs")?;
    let mut inputs = entries.value.iter();
    let Some(entry) = inputs.next() else {
        let why = "inputs: name an input, or leave the key out to read what the `nats` section says";
        place.note(entries.defined, why);
        return None;
    };
    if let Some(second) = inputs.next() {
        let why = "inputs: an engine reads one input, and this is the second; leave it out, or run another engine for it";
        place.note(second.defined, why);
    }
    place.kept(read(place, entry, (registry, nats?)))
}

fn read(
    place: &Place<'_>,
    entry: &Spanned<Entry>,
    (registry, nats): (&InputRegistry, &Settings),
) -> Result<InputConfig, ConfigError> {
    let name = kind_of(place, entry, ("input", &COMMON), &registry.keys())?;
    let kind = registry.get(name).expect("its keys are in the registry");
    let own = own_options(&entry.value, &COMMON);
    let options = OwnOptions::new(format!("{name} input"), own.values, place.home.clone());
    let source = (kind.read)(&options, nats);
    let source = source.map_err(|error| place.wrong(place_of(entry, &error), error))?;
    Ok(InputConfig { kind: kind.name, source })
}

/// Notes types of inputs and keys of theirs that are not known, and reads nothing.
pub(super) fn check_keys(place: &Place<'_>, file: &Section<'_>, kinds: &[TypeKeys]) {
    for entry in file.entries("inputs").iter().flat_map(|entries| &entries.value) {
        place.kept(kind_of(place, entry, ("input", &COMMON), kinds));
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Registries};

    #[test]
    fn an_input_is_named_with_its_options_and_mistakes_with_their_places() {
        let read = |inputs: &str| Config::parse(inputs, "c.yaml", &Registries::default(), |_| None);
        assert!(read("nats: {}").is_ok_and(|config| config.input.is_none()));
        let config = read("inputs:\n  - {type: interface, interface: eth0, snaplen: 96}").ok();
        let input = config.and_then(|config| config.input).expect("an input");
        let shown = r#"{"type":"interface","interface":"eth0","filter":null,"snaplen":96,"ring_size":"67108864B","promiscuous":true}"#;
        assert_eq!(input.resolved().to_string(), shown);
        let log = read("nats: {jetstream: {enabled: true}}\ninputs: [{type: nats}]").ok();
        assert!(log.and_then(|config| config.input).is_some_and(|input| input.source.is_log()));
        for (inputs, place, says) in [
            ("  []", "2:", "name an input, or leave the key out"),
            ("- {path: x}", "2:", "an input needs the key `type`"),
            ("- {type: files}", "2:", "unknown input type `files`; one of nats, interface"),
            ("- {type: nats}\n- {type: nats}", "3:", "an engine reads one input, and this is the second"),
            ("- {type: nats, url: x}", "2:", "nats input: unknown key `url`; one of type"),
            ("- {type: interface}", "2:", "an interface input needs the key `interface`"),
            ("- {type: interface, interface: ''}", "2:", "`interface` is empty"),
            ("- {type: interface, interface: a, snaplen: 0}", "2:", "a number of bytes, 1 to 262144"),
            ("- {type: interface, interface: a, ring_size: 64}", "2:", "ring_size: `64` is no size"),
            ("- {type: interface, interface: a, promiscuous: 1}", "2:", "must be true or false"),
        ] {
            let error = read(&format!("inputs:\n{inputs}")).err().map(|error| error.to_string());
            let error = error.unwrap_or_else(|| panic!("accepted: {inputs}"));
            assert!(
                error.starts_with(&format!("c.yaml:{place}")) && error.contains(says),
                "{inputs}\n-> {error}"
            );
        }
    }
}
