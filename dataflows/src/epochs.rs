//! State that an operator holds by epoch, each with the capability to emit its result.

use crate::window::Epoch;
use std::collections::BTreeMap;
use timely::dataflow::operators::{Capability, InputCapability};
use timely::progress::frontier::MutableAntichain;

/// The epochs that an operator has begun and not yet closed.
pub struct Epochs<S> {
    open: BTreeMap<Epoch, (Capability<Epoch>, S)>,
}

impl<S> Default for Epochs<S> {
    fn default() -> Self {
        Self { open: BTreeMap::new() }
    }
}

impl<S: Default> Epochs<S> {
    /// The state of the epoch of a message, begun where it is new, with the capability for output `port`.
    ///
    /// `None` for a message without a time, which no source of ours sends.
    pub fn at(
        &mut self,
        message: &InputCapability<Epoch>,
        port: usize,
    ) -> Option<&mut (Capability<Epoch>, S)> {
        let epoch = *message.least()?;
        Some(self.open.entry(epoch).or_insert_with(|| (message.delayed(&epoch, port), S::default())))
    }

    /// Takes out the earliest epoch that all frontiers have passed.
    pub fn close(&mut self, frontiers: &[&MutableAntichain<Epoch>]) -> Option<(Capability<Epoch>, S)> {
        let earliest = self.open.first_entry()?;
        if frontiers.iter().any(|frontier| frontier.less_equal(earliest.key())) {
            return None;
        }
        Some(earliest.remove())
    }
}
