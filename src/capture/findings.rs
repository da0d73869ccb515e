//! What a capture says beside its frames, and what is odd about it: counted while it is scanned, told at the end.

use super::Frame;
use super::live::Drops;
use crate::decode::LinkType;

/// How often something was met, and where first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    count: u64,
    first: u64,
}

impl Met {
    /// Once more, `at` behind the start of the scanned bytes.
    pub fn note(&mut self, start: u64, at: usize) {
        if self.count == 0 {
            self.first = start + at as u64;
        }
        self.count += 1;
    }
}

/// What was found in a capture, or in several that follow one another in one input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Where the bytes that are being scanned begin in the input.
    pub start: u64,
    /// Frames whose times lie outside of 1970 to 2554 and were put at its ends.
    pub clamped: u64,
    /// Blocks whose length is not a multiple of 4.
    pub unpadded: Met,
    /// Captures behind the first one.
    pub captures: Met,
    /// What earlier sections or captures said they dropped.
    pub drops: Drops,
    contradictory: Met,
    /// Captured bytes and length of the first record that contradicts itself.
    contradiction: (u32, u32),
}

impl Findings {
    /// Notes a record whose lengths contradict each other, and gives the frame that stands for it: malformed, and without
    /// its time, which may be as wrong.
    pub fn contradiction(&mut self, at: usize, frame: Frame) -> Frame {
        if self.contradictory.count == 0 {
            self.contradiction = (frame.captured, frame.length);
        }
        self.contradictory.note(self.start, at);
        Frame { link: LinkType::DAMAGED, time: 0, ..frame }
    }

    /// The records whose lengths contradict each other, for people; `None` where there are none.
    pub fn contradictory(&self) -> Option<String> {
        let Met { count, first } = self.contradictory;
        let (captured, length) = self.contradiction;
        let records = if count == 1 {
            "1 record contradicts itself".into()
        } else {
            format!("{count} records contradict themselves")
        };
        let what = format!(
            "{records} (the first at byte {first}: {captured} captured bytes of a frame of {length})"
        );
        (count > 0).then(|| format!("{what} and counted as malformed"))
    }

    /// What people should know although all of it was read.
    pub fn notes(&self) -> Vec<String> {
        let Met { count: more, first } = self.captures;
        let captures = (more > 0).then(|| {
            format!(
                "contains {} concatenated captures (the second begins at byte {first}); all were read",
                more + 1
            )
        });
        let Met { count, first } = self.unpadded;
        let blocks =
            if count == 1 { "1 block has a length".into() } else { format!("{count} blocks have lengths") };
        let unpadded = (count > 0).then(|| {
            format!("{blocks} that pcapng does not allow, no multiple of 4 (the first at byte {first}); rounded up and read on")
        });
        captures.into_iter().chain(unpadded).collect()
    }
}
