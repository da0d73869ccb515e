//! State that an operator holds by epoch, each with the capability to emit its result.

use crate::block::Block;
use crate::turns::Turns;
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

    /// The state of an epoch that is open, with its capability.
    pub fn open(&mut self, epoch: Epoch) -> Option<&mut (Capability<Epoch>, S)> {
        self.open.get_mut(&epoch)
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

/// What an operator gathers of an epoch that it works off window by window.
#[derive(Default)]
pub(crate) struct ByWindow {
    /// Blocks by their windows.
    pub(crate) windows: BTreeMap<Epoch, Vec<Block>>,
    /// What the epoch needs and shows, for those that are told.
    pub(crate) turns: Turns,
}

impl Epochs<ByWindow> {
    /// Takes a block of a window.
    pub(crate) fn gather(&mut self, message: &InputCapability<Epoch>, port: usize, block: &mut Block) {
        if let Some((_, ByWindow { windows, .. })) = self.at(message, port) {
            windows.entry(block.window).or_default().push(std::mem::take(block));
        }
    }

    /// Takes the turns of an epoch.
    pub(crate) fn receive(&mut self, message: &InputCapability<Epoch>, port: usize, block: &Block) {
        if let Some((_, ByWindow { turns, .. })) = self.at(message, port) {
            turns.receive(block);
        }
    }
}
