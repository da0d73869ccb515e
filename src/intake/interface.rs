//! The input `interface`: frames of an interface of this machine, with a ring a worker.

use super::Intake;
use super::frames::Interface;
use super::registry::{Input, InputConfig, InputError, InputKind, Opening, Source};
use crate::capture::live::Options;
use crate::capture::rings::Rings;
use crate::options::{OwnOptions, size};
use dataflows::aggregator::OptionsError;
use dataflows::field::INTERFACE;
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Bytes that may be captured of a frame.
pub const SNAPLEN: RangeInclusive<i64> = 1..=262_144;
/// What is captured of a frame where nothing is said.
pub const DEFAULT_SNAPLEN: u32 = 128;
/// The memory of the kernel's rings where nothing is said.
pub const DEFAULT_RING: &str = "64MiB";

const TYPE: &str = "interface";

pub(super) const KIND: InputKind = InputKind {
    name: TYPE,
    keys: &["interface", "filter", "snaplen", "ring_size", "promiscuous"],
    read: |options, _| Ok(Arc::new(Captured(read(options)?))),
};

/// One that flags name.
pub fn configured(options: Options) -> InputConfig {
    InputConfig { kind: TYPE, source: Arc::new(Captured(options)) }
}

fn read(options: &OwnOptions) -> Result<Options, OptionsError> {
    let interface = options.text("interface")?;
    if interface.is_empty() {
        return Err(options.refuse("interface", "`interface` is empty; name one, such as eth0"));
    }
    let snaplen = match options.get("snaplen") {
        None => DEFAULT_SNAPLEN,
        Some(value) => {
            let snaplen = value.as_i64().filter(|bytes| SNAPLEN.contains(bytes));
            let snaplen = snaplen.and_then(|bytes| u32::try_from(bytes).ok());
            let wrong = || format!("`snaplen` must be a number of bytes, 1 to {}", SNAPLEN.end());
            snaplen.ok_or_else(|| options.refuse("snaplen", wrong()))?
        }
    };
    let ring = options.text_or("ring_size", DEFAULT_RING)?;
    let promiscuous = match options.get("promiscuous").map(Value::as_bool) {
        None => true,
        Some(given) => {
            given.ok_or_else(|| options.refuse("promiscuous", "`promiscuous` must be true or false"))?
        }
    };
    Ok(Options {
        interface,
        filter: options.get("filter").map(|_| options.text("filter")).transpose()?,
        snaplen,
        ring: size(&ring).map_err(|why| options.refuse("ring_size", format!("ring_size: {why}")))?,
        promiscuous,
        names_interfaces: false,
    })
}

/// How it is captured.
struct Captured(Options);

impl Captured {
    fn rings(&self, opening: &Opening<'_>, rings: usize) -> Result<Rings, InputError> {
        let names_interfaces = opening.extension.reads(&INTERFACE);
        Ok(Rings::open(&Options { names_interfaces, ..self.0.clone() }, rings)?)
    }
}

impl Source for Captured {
    fn describe(&self) -> String {
        "an interface".into()
    }

    fn options(&self) -> Value {
        let Options { interface, filter, snaplen, ring, promiscuous, names_interfaces: _ } = &self.0;
        let ring_size = format!("{ring}B");
        json!({
            "interface": interface,
            "filter": filter,
            "snaplen": snaplen,
            "ring_size": ring_size,
            "promiscuous": promiscuous,
        })
    }

    fn check(&self, opening: &Opening<'_>) -> Result<(), InputError> {
        self.rings(opening, 1).map(drop)
    }

    fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Input>, InputError> {
        let rings = Arc::new(self.rings(opening, opening.workers)?);
        Ok(Arc::new(Capturing { interface: self.0.interface.clone(), rings, process: opening.process }))
    }
}

/// An interface that is being captured.
struct Capturing {
    interface: String,
    rings: Arc<Rings>,
    process: usize,
}

impl Input for Capturing {
    fn intake(self: Arc<Self>) -> Arc<dyn Intake> {
        Arc::new(Interface { rings: self.rings.clone(), process: self.process })
    }

    fn describe(&self) -> String {
        format!("capturing on {} with {} rings", self.interface, self.rings.len())
    }

    fn failure(&self) -> Option<String> {
        self.rings.failure().map(|why| format!("{why}; what was captured before that is counted"))
    }
}
