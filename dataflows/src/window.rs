//! Event-time windows, and the rule that says when one is closed and which packets come late.
//!
//! The rule depends on the order of the packets in their stream alone, never on a clock or on threads, so any number
//! of workers decides alike.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use std::time::Duration;

/// Timely time of the dataflows: the index of a window, `time / length`; 0 for the one window of [`Windowing::All`].
pub type Epoch = u64;

/// How event time is cut into tumbling windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windowing {
    /// One window holds everything; it closes when the input ends.
    All,
    /// Windows of this many nanoseconds (at least 1) that start at multiples of it since the Unix epoch.
    Every(u64),
}

impl Windowing {
    /// Windows of this length, or `None` for a length of zero or of more than 584 years.
    pub fn every(length: Duration) -> Option<Self> {
        u64::try_from(length.as_nanos()).ok().filter(|nanos| *nanos > 0).map(Self::Every)
    }

    /// Index of the window that holds this time.
    #[inline]
    pub fn index(self, time: u64) -> Epoch {
        match self {
            Self::All => 0,
            Self::Every(length) => time / length,
        }
    }

    /// First nanosecond of a window and the first after it; `None` for the window of everything.
    pub fn span(self, index: Epoch) -> Option<(u64, u64)> {
        match self {
            Self::All => None,
            Self::Every(length) => {
                let start = index.saturating_mul(length);
                Some((start, start.saturating_add(length)))
            }
        }
    }
}

/// How far back a standing answer looks: so many windows, or so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Horizon {
    /// Windows, at least 1; the one that the answer is for is the last of them.
    Windows(u64),
    /// Time, rounded up to whole windows.
    Length(Duration),
}

impl Default for Horizon {
    /// The window itself.
    fn default() -> Self {
        Self::Windows(1)
    }
}

/// Windows that a horizon may span.
const MOST_WINDOWS: u64 = 100_000;

impl Horizon {
    /// In windows, 1 to 100 000; 1 where one window holds everything.
    pub fn windows(self, windowing: Windowing) -> u64 {
        let windows = match (self, windowing) {
            (_, Windowing::All) => 1,
            (Self::Windows(windows), _) => windows,
            (Self::Length(length), Windowing::Every(window)) => {
                u64::try_from(length.as_nanos()).unwrap_or(u64::MAX).div_ceil(window)
            }
        };
        windows.clamp(1, MOST_WINDOWS)
    }
}

impl<'de> Deserialize<'de> for Horizon {
    /// A duration such as `5m`, or a number of windows.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a horizon is a duration such as 5m, or a whole number of windows")]
        enum Written {
            Windows(u64),
            Length(String),
        }
        match Written::deserialize(from)? {
            Written::Windows(windows @ 1..=MOST_WINDOWS) => Ok(Self::Windows(windows)),
            Written::Windows(_) => Err(D::Error::custom(format!("1 to {MOST_WINDOWS} windows"))),
            Written::Length(text) => match duration(&text).map_err(D::Error::custom)? {
                Duration::ZERO => Err(D::Error::custom("a horizon is at least one window")),
                length => Ok(Self::Length(length)),
            },
        }
    }
}

/// Reads a duration: a whole or decimal number and a unit, such as `100ms`, `60s`, `1.5m`, `1h`, `1d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("`{text}` is no duration; write a number and a unit (ns, us, ms, s, m, h, d), such as 60s")
    };
    let unit_at = text.find(|character: char| character.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let nanos_a_unit: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return Err(wrong()),
    };
    scaled(number, nanos_a_unit).map(Duration::from_nanos).ok_or_else(wrong)
}

/// A whole or decimal number (up to nine decimals) times a unit.
pub fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let value = whole.parse::<u128>().ok()?.checked_mul(scale)?.checked_add(fraction.parse().ok()?)?;
    u64::try_from(value.checked_mul(unit.into())? / scale).ok()
}

/// Follows one ordered stream of packet times and tells which windows its past has closed.
///
/// The watermark is the latest time seen so far, capped by what other streams still promise; a window is closed once
/// its end is at or before the watermark less the allowed lateness.
#[derive(Clone, Copy, Debug)]
pub struct Watermark {
    windowing: Windowing,
    lateness: u64,
    /// Latest time of this stream so far.
    latest: u64,
    /// Earliest watermark of all other streams.
    others: u64,
    /// Time that windows have been closed by whatever the streams say.
    floor: u64,
    closed: Epoch,
    /// `latest` has to reach this before `closed` can change.
    next_change: u64,
}

impl Watermark {
    /// A stream that has seen times up to `latest` beside others whose least watermark is `others` (`u64::MAX`
    /// without any). `lateness` in nanoseconds.
    pub fn new(windowing: Windowing, lateness: u64, latest: u64, others: u64) -> Self {
        let mut watermark = Self { windowing, lateness, latest, others, floor: 0, closed: 0, next_change: 0 };
        watermark.settle();
        watermark
    }

    /// The same, where windows have been closed already as by a watermark of `floor`: a stream that joins late, or
    /// comes back, reopens nothing.
    #[must_use]
    pub fn not_before(mut self, floor: u64) -> Self {
        self.floor = floor;
        self.settle();
        self
    }

    /// Takes the next packet's time and returns the first window that is still open, or the open window with this
    /// packet's time counted in: a packet whose own window comes before it is late.
    #[inline(always)]
    pub fn observe(&mut self, time: u64) -> Epoch {
        if time > self.latest {
            self.latest = time;
            if time >= self.next_change {
                self.settle();
            }
        }
        self.closed
    }

    /// The first window that is not closed.
    pub fn first_open(&self) -> Epoch {
        self.closed
    }

    fn settle(&mut self) {
        let Windowing::Every(length) = self.windowing else {
            (self.closed, self.next_change) = (0, u64::MAX);
            return;
        };
        self.closed = self.latest.min(self.others).max(self.floor).saturating_sub(self.lateness) / length;
        let next_end = (self.closed.saturating_add(1)).saturating_mul(length).saturating_add(self.lateness);
        self.next_change = if next_end > self.others { u64::MAX } else { next_end };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_closes_when_the_watermark_passes_its_end_and_the_lateness() {
        let mut watermark = Watermark::new(Windowing::Every(10), 5, 0, u64::MAX);
        assert_eq!(watermark.observe(14), 0);
        assert_eq!(watermark.observe(15), 1);
        assert_eq!(watermark.observe(3), 1, "time going backwards reopens nothing");
        assert_eq!(watermark.observe(1000), 99);
    }

    #[test]
    fn the_slowest_stream_holds_windows_open() {
        let mut watermark = Watermark::new(Windowing::Every(10), 0, 0, 25);
        assert_eq!(watermark.observe(1000), 2);
    }

    #[test]
    fn what_is_closed_stays_closed_for_a_stream_that_is_behind() {
        let mut watermark = Watermark::new(Windowing::Every(10), 0, 5, u64::MAX).not_before(40);
        assert_eq!(watermark.observe(17), 4);
        assert_eq!(watermark.observe(39), 4);
        assert_eq!(watermark.observe(51), 5);
    }

    #[test]
    fn one_window_of_everything_never_closes() {
        assert_eq!(Watermark::new(Windowing::All, 0, 0, u64::MAX).observe(u64::MAX), 0);
        assert_eq!(Windowing::All.span(0), None);
    }

    #[test]
    fn the_far_end_of_time_does_not_overflow() {
        let mut watermark = Watermark::new(Windowing::Every(7), 3, 0, u64::MAX);
        let closed = watermark.observe(u64::MAX);
        assert_eq!(closed, (u64::MAX - 3) / 7);
        assert_eq!(Windowing::Every(7).span(u64::MAX / 7), Some((u64::MAX / 7 * 7, u64::MAX)));
    }
}
