//! The time of one capture, frame by frame, and the frames that are dated ahead of it by mistake: *strays*.
//!
//! A frame more than [`JUMP`] ahead of the latest time before it is a jump. It is a stray if one of the next
//! eight frames is dated more than [`JUMP`] before it; then it does not move the capture's time. So one packet
//! dated 2500 does not make all that follows late, while a pause of hours between two packets is only a pause. The rule
//! looks at the frames in their order and at nothing else: however the capture is cut, it finds the same strays.

use std::collections::VecDeque;

/// Nanoseconds that a frame may be ahead of those before it without others that confirm its time.
pub const JUMP: u64 = 600_000_000_000;
/// Frames after a jump that may contradict it.
const WITNESSES: usize = 8;

/// The latest time of the frames so far, strays left out.
#[derive(Debug, Default)]
pub struct Clock {
    latest: u64,
    /// A frame up to this time is no jump.
    limit: u64,
    /// Frames seen.
    frames: u64,
    /// Numbers and times of the frames from the first jump on that is neither confirmed nor contradicted.
    undecided: VecDeque<(u64, u64)>,
    is_undecided: bool,
    /// Whether the first frame of all is believed, where nobody should wait for more of them.
    believes: bool,
    strays: Vec<u64>,
}

impl Clock {
    /// The clock of a capture that has shown times up to this, nanoseconds since the Unix epoch; 0 before its first frame.
    pub fn new(latest: u64) -> Self {
        Self { latest, limit: latest.saturating_add(JUMP), ..Self::default() }
    }

    /// The same, but the first frame of all is believed, whatever follows.
    pub fn believing(latest: u64) -> Self {
        Self { believes: true, ..Self::new(latest) }
    }

    /// Takes the time of the next frame.
    #[inline(always)]
    pub fn see(&mut self, time: u64) {
        if time > self.limit || self.is_undecided {
            self.doubt(time);
        } else if time > self.latest {
            self.latest = time;
            self.limit = time.saturating_add(JUMP);
        }
        self.frames += 1;
    }

    #[cold]
    fn doubt(&mut self, time: u64) {
        self.undecided.push_back((self.frames, time));
        self.decide(false);
    }

    /// Decides what can be decided; at the end of the capture everything, and a jump that nothing contradicts is confirmed
    /// by any frame after it, or by being all that there is.
    fn decide(&mut self, end: bool) {
        while let Some(&(number, time)) = self.undecided.front() {
            let is_believed = self.believes && self.latest == 0;
            if time > self.latest.saturating_add(JUMP) && !is_believed {
                let mut witnesses = self.undecided.iter().skip(1).take(WITNESSES);
                let count = witnesses.len();
                if witnesses.any(|(_, witness)| witness.saturating_add(JUMP) < time) {
                    self.strays.push(number);
                    self.undecided.pop_front();
                    continue;
                }
                if count < WITNESSES && !end {
                    break;
                }
                if count == 0 && self.latest > 0 {
                    self.strays.push(number);
                    self.undecided.pop_front();
                    continue;
                }
            }
            self.latest = self.latest.max(time);
            self.undecided.pop_front();
        }
        self.is_undecided = !self.undecided.is_empty();
        self.limit = self.latest.saturating_add(JUMP);
    }

    /// Nothing comes any more.
    pub fn end(&mut self) {
        self.decide(true);
    }

    /// Frames seen.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The frames before the first that cannot be judged yet, where there is one.
    pub fn decided(&self) -> Option<u64> {
        self.undecided.front().map(|(number, _)| *number)
    }

    /// The latest time of the frames that have been judged, nanoseconds since the Unix epoch.
    pub fn latest(&self) -> u64 {
        self.latest
    }

    /// The numbers of the strays, ascending, from 0.
    pub fn into_strays(self) -> Vec<u64> {
        self.strays
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clock_of(latest: u64, times: &[u64]) -> Clock {
        let mut clock = Clock::new(latest);
        times.iter().for_each(|time| clock.see(*time));
        clock
    }

    fn judged(latest: u64, times: &[u64]) -> (u64, Vec<u64>) {
        let mut clock = clock_of(latest, times);
        clock.end();
        (clock.latest(), clock.into_strays())
    }

    const NOW: u64 = 1_700_000_000_000_000_000;
    const FAR: u64 = 16_725_225_600_000_000_000;

    #[test]
    fn frames_dated_far_ahead_among_others_are_strays() {
        assert_eq!(judged(0, &[NOW, NOW + 1, FAR, NOW + 2]), (NOW + 2, vec![2]));
        assert_eq!(judged(0, &[FAR, NOW, NOW + 1]), (NOW + 1, vec![0]), "the first");
        assert_eq!(judged(0, &[NOW, FAR]), (NOW, vec![1]), "the last");
        assert_eq!(judged(0, &[NOW, FAR, FAR + 1, FAR, NOW + 3]), (NOW + 3, vec![1, 2, 3]), "several");
        assert_eq!(
            judged(0, &[NOW, NOW + 6 * JUMP, FAR, NOW + 1]),
            (NOW + 1, vec![1, 2]),
            "of different times"
        );
    }

    #[test]
    fn a_pause_is_no_stray() {
        let hours = [0, 9, 18, 27].map(|jumps| NOW + jumps * JUMP);
        assert_eq!(judged(0, &hours), (hours[2], vec![3]), "nothing confirms the last");
        assert_eq!(judged(0, &[NOW, hours[2], hours[2] + 1]), (hours[2] + 1, vec![]));
        assert_eq!(judged(0, &[NOW]), (NOW, vec![]), "there is nothing but this");
        let mut many = vec![NOW, FAR];
        many.extend((0..WITNESSES as u64).map(|more| FAR + more));
        many.push(NOW);
        assert!(judged(0, &many).1.is_empty(), "enough frames confirm it");
    }

    #[test]
    fn the_first_frame_of_a_pipe_is_believed() {
        let mut clock = Clock::believing(0);
        clock.see(FAR);
        assert_eq!((clock.decided(), clock.latest()), (None, FAR));
    }

    #[test]
    fn what_cannot_be_judged_yet_is_told() {
        let clock = clock_of(NOW, &[NOW + 1, FAR, FAR + 1]);
        assert_eq!((clock.decided(), clock.latest()), (Some(1), NOW + 1));
        assert_eq!(clock_of(NOW, &[NOW + 1, FAR, NOW]).decided(), None);
    }

    proptest! {
        #[test]
        fn strays_do_not_depend_on_where_a_capture_is_cut(
            times in proptest::collection::vec(prop_oneof![1u64..50, 5000u64..5050, 90_000u64..90_050], 0..60),
            cuts in proptest::collection::vec(1usize..20, 1..60),
        ) {
            let times: Vec<u64> = times.into_iter().map(|tenths| tenths * (JUMP / 10)).collect();
            let whole = judged(0, &times);
            let (mut latest, mut strays, mut from) = (0, Vec::new(), 0);
            let mut take = 0;
            for cut in cuts.iter().cycle() {
                take += cut;
                let end = (from + take).min(times.len());
                let mut clock = clock_of(latest, &times[from..end]);
                if end == times.len() {
                    clock.end();
                }
                let decided = clock.decided().unwrap_or(clock.frames()) as usize;
                latest = clock.latest();
                strays.extend(clock.into_strays().into_iter().map(|number| number + from as u64));
                from += decided;
                take = if decided == 0 { take } else { 0 };
                if end == times.len() {
                    break;
                }
            }
            prop_assert_eq!((latest, strays), whole);
        }
    }
}
