//! The latest snapshots, in memory up to a number of bytes, and who listens for new ones.

use crate::alerts::event::Event;
use crate::sinks::named_summary;
use crate::sinks::text::window_name;
use dataflows::rows::Snapshot;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// What waits for a listener at most; one that is further behind misses some.
const WAITING: usize = 1024;
/// What a window takes beside its rows and its summary.
const BESIDE: u64 = 1024;

/// A window by its name. Names are ordered as the windows are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowName {
    /// Of its start, `2026-11-22T09-15-00`; or `all`.
    seconds: String,
    /// Digits of a fraction without zeros at their end.
    fraction: String,
}

impl WindowName {
    /// Reads a name as [`window_name`] writes it, or the window's start as RFC 3339 has it; `None` if it is neither.
    pub fn read(text: &str) -> Option<Self> {
        let of_time = |text: &str| text.contains(':').then(|| Self::of_folder(&text.replace(':', "-")))?;
        Self::of_folder(text).or_else(|| of_time(text)).or_else(|| {
            // Of another offset than UTC's.
            let start = text.parse::<jiff::Timestamp>().ok().filter(|_| text.contains(':'))?;
            let start = u64::try_from(start.as_nanosecond()).ok()?;
            Self::of_folder(&window_name(Some((start, start))))
        })
    }

    /// Reads a name as folders have it.
    fn of_folder(text: &str) -> Option<Self> {
        if text == "all" {
            return Some(Self { seconds: text.to_owned(), fraction: String::new() });
        }
        let time = text.strip_suffix('Z')?;
        let (seconds, fraction) = match time.split_once('.') {
            Some((seconds, fraction)) => (seconds, Some(fraction)),
            None => (time, None),
        };
        let is_like =
            |(byte, like): (u8, u8)| if like == b'0' { byte.is_ascii_digit() } else { byte == like };
        let like = b"0000-00-00T00-00-00";
        if seconds.len() != like.len() || !seconds.bytes().zip(*like).all(is_like) {
            return None;
        }
        let is_fraction =
            |text: &str| matches!(text.len(), 1..=9) && text.bytes().all(|byte| byte.is_ascii_digit());
        if !fraction.is_none_or(is_fraction) {
            return None;
        }
        let fraction = fraction.unwrap_or_default().trim_end_matches('0').to_owned();
        Some(Self { seconds: seconds.to_owned(), fraction })
    }
}

/// Something that listeners are told; its JSON.
#[derive(Clone, Debug)]
pub enum Told {
    /// A window was written, or written anew.
    Window(Arc<str>),
    /// An alert was raised or withdrawn.
    Alert(Arc<str>),
}

/// A window that is kept.
struct Kept {
    snapshot: Arc<Snapshot>,
    /// As lists of windows have it.
    summary: Arc<str>,
    bytes: u64,
}

#[derive(Default)]
struct Windows {
    by_name: BTreeMap<WindowName, Kept>,
    bytes: u64,
}

/// The latest snapshots.
pub struct Recent {
    most: u64,
    windows: Mutex<Windows>,
    listeners: broadcast::Sender<Told>,
}

impl Recent {
    /// None yet, later so many bytes of them; the latest window is always kept.
    pub fn new(bytes: u64) -> Self {
        Self { most: bytes, windows: Mutex::default(), listeners: broadcast::Sender::new(WAITING) }
    }

    fn lock(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a snapshot in; a revision takes the place of what it revises. The oldest windows go.
    pub fn push(&self, snapshot: Arc<Snapshot>) {
        let name = window_name(snapshot.span);
        let summary: Arc<str> = named_summary(&snapshot).to_string().into();
        let bytes = snapshot.bytes() + summary.len() as u64 + BESIDE;
        let name = WindowName::read(&name).expect("what is named can be read");
        let kept = Kept { snapshot, summary: summary.clone(), bytes };
        let mut gone = Vec::new();
        let mut windows = self.lock();
        windows.bytes += bytes;
        gone.extend(windows.by_name.insert(name, kept));
        windows.bytes -= gone.iter().map(|old| old.bytes).sum::<u64>();
        while windows.bytes > self.most && windows.by_name.len() > 1 {
            let Some((_, old)) = windows.by_name.pop_first() else { break };
            windows.bytes -= old.bytes;
            gone.push(old);
        }
        drop(windows);
        // Nobody waits while a large table is given back.
        drop(gone);
        self.tell(|| Told::Window(summary));
    }

    /// Tells listeners what has become of alerts.
    pub fn told(&self, events: &[Event]) {
        for event in events {
            self.tell(|| {
                let text = serde_json::to_string(event).expect("an event can be written");
                Told::Alert(text.into())
            });
        }
    }

    fn tell(&self, told: impl FnOnce() -> Told) {
        if self.listeners.receiver_count() > 0 {
            // Fails where the last has just gone.
            let _ = self.listeners.send(told());
        }
    }

    /// The latest windows, at most `limit`, newest first, each as a JSON object; only those before `before`.
    pub fn windows(&self, before: Option<&WindowName>, limit: usize) -> Vec<Arc<str>> {
        let windows = self.lock();
        let names = windows.by_name.iter().rev();
        let older = names.skip_while(|(name, _)| before.is_some_and(|before| *name >= before));
        older.take(limit).map(|(_, kept)| kept.summary.clone()).collect()
    }

    /// The snapshot of a window.
    pub fn get(&self, name: &WindowName) -> Option<Arc<Snapshot>> {
        self.lock().by_name.get(name).map(|kept| kept.snapshot.clone())
    }

    /// The snapshot of the latest window.
    pub fn latest(&self) -> Option<Arc<Snapshot>> {
        self.lock().by_name.last_key_value().map(|(_, kept)| kept.snapshot.clone())
    }

    /// Bytes of all that are kept.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// How many windows are kept.
    pub fn len(&self) -> usize {
        self.lock().by_name.len()
    }

    /// Whether no window is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Told> {
        self.listeners.subscribe()
    }
}

/// A window of a minute from this second on, with a task `flows`: source, destination port, packets, bytes.
#[cfg(test)]
pub(super) fn example(second: u64, revision: u32, flows: &[crate::trial::Flow<'_>]) -> Arc<Snapshot> {
    let task = crate::trial::rows(&crate::trial::task(&["SrcIP", "DstPort"]), flows);
    let span = Some((second * 1_000_000_000, (second + 60) * 1_000_000_000));
    Arc::new(Snapshot { window: second / 60, span, revision, tasks: vec![task], missing: Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const FLOW: [(&str, u16, u64, u64); 1] = [("10.0.0.1", 443, 1, 100)];

    fn name(text: &str) -> WindowName {
        WindowName::read(text).expect("a name")
    }

    fn names(recent: &Recent, before: Option<&str>, limit: usize) -> Vec<String> {
        let listed = recent.windows(before.map(name).as_ref(), limit);
        let window = |text: &Arc<str>| {
            let object: Value = serde_json::from_str(text).expect("JSON");
            object["window"].as_str().expect("a name").to_owned()
        };
        listed.iter().map(window).collect()
    }

    #[test]
    fn names_are_in_the_order_of_time() {
        let ordered = [
            "2023-11-14T22-13-59.9Z",
            "2023-11-14T22-14-00Z",
            "2023-11-14T22-14-00.25Z",
            "2023-11-14T22-14-00.3Z",
            "2023-11-14T22-14-01Z",
        ];
        assert!(ordered.windows(2).all(|pair| name(pair[0]) < name(pair[1])));
        assert_eq!(name("2023-11-14T22-14-00.250Z"), name("2023-11-14T22-14-00.25Z"));
        for wrong in [
            "",
            "latest",
            "2023-11-14",
            "2023-11-14T22-14-00",
            "2023-11-14T22-14-00.Z",
            "2023-11-14T22:14:00",
        ] {
            assert_eq!(WindowName::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_window_is_found_by_its_start_as_rfc_3339_has_it() {
        for (time, expected) in [
            ("2023-11-14T22:14:00Z", "2023-11-14T22-14-00Z"),
            ("2023-11-14T22:14:00.250000000Z", "2023-11-14T22-14-00.25Z"),
            ("2023-11-14T23:14:00+01:00", "2023-11-14T22-14-00Z"),
            ("2023-11-14t22:14:00z", "2023-11-14T22-14-00Z"),
        ] {
            assert_eq!(WindowName::read(time), Some(name(expected)), "{time}");
        }
    }

    #[test]
    fn the_oldest_window_goes_first_and_the_latest_never() {
        let one = Recent::new(0);
        one.push(example(0, 0, &FLOW));
        let each = one.bytes();
        assert_eq!(one.len(), 1);
        one.push(example(60, 0, &FLOW));
        assert_eq!((one.len(), names(&one, None, 9)), (1, vec!["1970-01-01T00-01-00Z".to_owned()]));

        let recent = Recent::new(2 * each + each / 2);
        [60, 120, 0, 180].into_iter().for_each(|second| recent.push(example(second, 0, &FLOW)));
        assert_eq!(names(&recent, None, 9), ["1970-01-01T00-03-00Z", "1970-01-01T00-02-00Z"]);
        assert_eq!(names(&recent, None, 1), ["1970-01-01T00-03-00Z"]);
        assert_eq!(names(&recent, Some("1970-01-01T00-03-00Z"), 9), ["1970-01-01T00-02-00Z"]);
        // A window that is not kept any more, or never was, is a time all the same.
        assert_eq!(names(&recent, Some("1970-01-01T00-02-30Z"), 9), ["1970-01-01T00-02-00Z"]);
        assert!(names(&recent, Some("1970-01-01T00-00-00Z"), 9).is_empty());
    }

    #[test]
    fn a_revision_takes_the_place_of_its_window() {
        let recent = Recent::new(1 << 20);
        recent.push(example(0, 0, &FLOW));
        recent.push(example(60, 0, &FLOW));
        let before = recent.bytes();
        recent.push(example(0, 1, &FLOW));
        assert_eq!((recent.len(), recent.bytes()), (2, before));
        let first = recent.get(&name("1970-01-01T00-00-00Z")).expect("kept");
        assert_eq!(first.revision, 1);
        assert_eq!(recent.latest().map(|latest| latest.window), Some(1));
    }

    #[test]
    fn listeners_are_told_of_windows() {
        let recent = Recent::new(0);
        let mut listener = recent.subscribe();
        recent.push(example(0, 0, &FLOW));
        let Ok(Told::Window(text)) = listener.try_recv() else { panic!("nothing told") };
        let start = r#"{"window":"1970-01-01T00-00-00Z","window_start":"1970-01-01T00:00:00.000000000Z","#;
        assert!(text.starts_with(start), "{text}");
        assert!(listener.try_recv().is_err());
    }
}
