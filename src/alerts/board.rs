//! The board: which alerts are active, kept by joining rules with the tables of the latest windows.
//!
//! Rules and tables are two differential collections that are joined by task. A new window adds tables, an older one
//! takes its own away, an edited file adds and takes away rules: either way the join names just the matches that have
//! come or gone, however many rules and tables stay as they are. Tables are scanned by the join and are not copied.
//!
//! Windows in a row are counted by the windows' numbers, so the board depends on the snapshots alone. A rule has a limited
//! number of active alerts, and an active one keeps its place until the rule does not hold any more.

use super::event::{self, Event, Kind};
use super::rule::{Match, Rule};
use crate::sinks::text::rfc3339;
use dataflows::rows::{Snapshot, TaskRows};
use dataflows::window::Epoch;
use differential_dataflow::consolidation::consolidate;
use differential_dataflow::input::{Input, InputSession};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use timely::WorkerConfig;
use timely::communication::Allocator;
use timely::communication::allocator::thread::Thread;
use timely::dataflow::ProbeHandle;
use timely::progress::Stamp;
use timely::worker::Worker;

/// Rows behind an alert that are told with it.
const TOP: usize = 5;
/// Alerts of one rule that may be active at a time.
pub const MAX_ACTIVE: usize = 10_000;

/// What a run has to know of the alerts of those before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The active alerts, as they were raised.
    pub active: Vec<Event>,
    /// Rule, window, and the keys for which the rule held there.
    pub held: Vec<(String, Epoch, BTreeSet<String>)>,
    /// The events of the latest commit.
    pub events: Vec<Event>,
    /// The latest window that was judged.
    #[serde(default)]
    pub latest: Option<Epoch>,
    /// How often alerts were raised in it: rule, key and number.
    #[serde(default)]
    pub raised: Vec<(String, String, u64)>,
}

/// A table as the join has it: its window and its number in the store.
type Table = (Epoch, u64);
/// A match that has come or gone: rule, window, what matches.
type Change = ((u64, Epoch, Match), isize);
/// A rule by its number, and a window.
type Place = (u64, Epoch);

/// What numbers in the collections stand for.
#[derive(Default)]
struct Store {
    tables: BTreeMap<u64, TaskRows>,
    rules: Vec<Arc<Rule>>,
}

/// A window that is retained.
struct Retained {
    span: Option<(u64, u64)>,
    revision: u32,
    /// The number of each task's table.
    tables: Vec<u64>,
}

/// The alerts of one run.
pub struct Board {
    worker: Worker,
    tables: InputSession<u64, (u64, Table), isize>,
    rules: InputSession<u64, (u64, u64), isize>,
    probe: ProbeHandle<u64>,
    turn: u64,
    store: Rc<RefCell<Store>>,
    changes: Rc<RefCell<Vec<Change>>>,
    /// Numbers of the rules in force, in their order.
    in_force: Vec<u64>,
    retained: BTreeMap<Epoch, Retained>,
    /// The latest window of this run and those before it.
    latest: Option<Epoch>,
    next_table: u64,
    /// For what rules hold, by the key's text.
    matches: BTreeMap<Place, BTreeMap<String, Match>>,
    /// For what they held in windows of earlier runs.
    earlier: BTreeMap<(String, Epoch), BTreeSet<String>>,
    /// By rule and key's text.
    active: BTreeMap<(String, String), Event>,
    /// How often alerts were raised in the latest window: edits and late packets may raise one again.
    raised: BTreeMap<(String, String), u64>,
    /// Keys for which a rule holds without an alert, by the rule's name: it has as many as it may.
    left_out: BTreeMap<String, u64>,
}

impl Retained {
    /// RFC 3339; `None` for the window of everything.
    fn times(&self) -> [Option<String>; 2] {
        match self.span {
            Some((start, end)) => [start, end].map(|time| Some(rfc3339(time))),
            None => [None, None],
        }
    }
}

/// The event that a match raises.
fn raise(
    rule: &Rule,
    found: &Match,
    (id, top): (String, Vec<serde_json::Value>),
    ([window_start, window_end], revision): (&[Option<String>; 2], u32),
) -> Event {
    Event {
        id,
        event: Kind::Raised,
        rule: rule.name.clone(),
        task: rule.task.to_string(),
        metric: rule.metric.clone(),
        comparison: rule.comparison.symbol().to_owned(),
        threshold: rule.threshold,
        value: Some(found.value),
        key: found.key.as_ref().map(|key| key.json()),
        window_start: window_start.clone(),
        window_end: window_end.clone(),
        revision,
        top,
    }
}

fn text(found: &Match) -> String {
    found.key.as_ref().map(ToString::to_string).unwrap_or_default()
}

impl Board {
    /// A board with these rules, of a run that goes on where another has left this.
    pub fn new(rules: Vec<Rule>, earlier: Standing) -> Self {
        let allocator = Allocator::Thread(Thread::default());
        let mut worker = Worker::new(WorkerConfig::default(), allocator, Some(Instant::now()));
        let store: Rc<RefCell<Store>> = Rc::default();
        let changes: Rc<RefCell<Vec<Change>>> = Rc::default();
        let (stored, gathered, probe) = (store.clone(), changes.clone(), ProbeHandle::new());
        let (tables, rules_in) = worker.dataflow::<u64, _, _>(|scope| {
            let (tables_in, tables) = scope.new_collection::<(u64, Table), isize>();
            let (rules_in, rules) = scope.new_collection::<(u64, u64), isize>();
            let matches = tables.join_core(rules.arrange_by_key(), move |_, (window, table), rule| {
                let store = stored.borrow();
                let matches = store.tables.get(table).map(|rows| store.rules[*rule as usize].matches(rows));
                let (window, rule) = (*window, *rule);
                matches.into_iter().flatten().map(move |found| (rule, window, found))
            });
            let gather = move |_: &Stamp<u64>, batch: &[((u64, Epoch, Match), u64, isize)]| {
                gathered.borrow_mut().extend(batch.iter().map(|(found, _, by)| (found.clone(), *by)));
            };
            matches.inspect_batch(gather).probe_with(&probe);
            (tables_in, rules_in)
        });
        let Standing { active, held, latest, raised, .. } = earlier;
        let place = |event: Event| ((event.rule.clone(), event.key_text()), event);
        let mut board = Self {
            worker,
            tables,
            rules: rules_in,
            probe,
            turn: 0,
            store,
            changes,
            in_force: Vec::new(),
            retained: BTreeMap::new(),
            latest,
            raised: raised.into_iter().map(|(rule, key, number)| ((rule, key), number)).collect(),
            next_table: 0,
            matches: BTreeMap::new(),
            earlier: held.into_iter().map(|(rule, window, keys)| ((rule, window), keys)).collect(),
            active: active.into_iter().map(place).collect(),
            left_out: BTreeMap::new(),
        };
        board.put_in_force(rules);
        board
    }

    /// Puts other rules in force, and tells what that does to the alerts of the latest window.
    pub fn edit(&mut self, rules: Vec<Rule>) -> Vec<Event> {
        self.put_in_force(rules);
        self.step();
        self.evaluate()
    }

    fn put_in_force(&mut self, rules: Vec<Rule>) {
        let mut store = self.store.borrow_mut();
        let numbers = rules.into_iter().map(|rule| {
            let known = store.rules.iter().position(|known| **known == rule);
            let number = known.unwrap_or_else(|| {
                store.rules.push(Arc::new(rule));
                store.rules.len() - 1
            });
            number as u64
        });
        let before = std::mem::replace(&mut self.in_force, numbers.collect());
        // The same rule twice, out and in again, is no change.
        for (rule, by) in
            before.iter().map(|rule| (*rule, -1)).chain(self.in_force.iter().map(|rule| (*rule, 1)))
        {
            self.rules.update((task_number(&store.rules[rule as usize].task), rule), by);
        }
    }

    /// Takes the snapshots of a commit, and tells what they do to alerts.
    pub fn commit<S: Deref<Target = Snapshot>>(&mut self, snapshots: &[S]) -> Vec<Event> {
        let mut gone = Vec::new();
        for snapshot in snapshots {
            if self.latest < Some(snapshot.window) {
                self.latest = Some(snapshot.window);
                self.raised.clear();
            }
            let oldest_needed = self.oldest_needed(self.latest.unwrap_or_default());
            if snapshot.window < oldest_needed {
                continue;
            }
            let tables = snapshot.tasks.iter().map(|rows| {
                let number = self.next_table;
                self.next_table += 1;
                self.store.borrow_mut().tables.insert(number, rows.clone());
                self.tables.update((task_number(&rows.name), (snapshot.window, number)), 1);
                number
            });
            let Snapshot { span, revision, .. } = **snapshot;
            let retained = Retained { span, revision, tables: tables.collect() };
            let replaced = self.retained.insert(snapshot.window, retained).map(|old| (snapshot.window, old));
            gone.extend(replaced);
            let kept = self.retained.split_off(&oldest_needed);
            gone.extend(std::mem::replace(&mut self.retained, kept));
            self.earlier.retain(|(_, window), _| *window >= oldest_needed);
        }
        for (window, old) in &gone {
            for table in &old.tables {
                let name = task_number(&self.store.borrow().tables[table].name);
                self.tables.update((name, (*window, *table)), -1);
            }
        }
        self.step();
        let mut store = self.store.borrow_mut();
        gone.iter().flat_map(|(_, old)| &old.tables).for_each(|table| {
            store.tables.remove(table);
        });
        drop(store);
        self.evaluate()
    }

    /// The first window that a rule looks at when this is the latest.
    fn oldest_needed(&self, latest: Epoch) -> Epoch {
        let store = self.store.borrow();
        let most = self.in_force.iter().map(|rule| store.rules[*rule as usize].windows).max().unwrap_or(1);
        latest.saturating_sub(most - 1)
    }

    /// Has the join take in what has changed, and follows the matches.
    fn step(&mut self) {
        self.turn += 1;
        self.tables.advance_to(self.turn);
        self.tables.flush();
        self.rules.advance_to(self.turn);
        self.rules.flush();
        while self.probe.less_than(&self.turn) {
            self.worker.step();
        }
        let mut changes = std::mem::take(&mut *self.changes.borrow_mut());
        consolidate(&mut changes);
        // What goes, goes before what takes its place.
        changes.sort_by_key(|(_, by)| *by);
        for ((rule, window, found), by) in changes {
            let place = self.matches.entry((rule, window)).or_default();
            if by > 0 {
                place.insert(text(&found), found);
            } else {
                place.remove(&text(&found));
                if place.is_empty() {
                    self.matches.remove(&(rule, window));
                }
            }
        }
    }

    /// Whether a rule held for a key in a window.
    fn held(&self, number: u64, name: &str, window: Epoch, key: &str) -> bool {
        if self.retained.contains_key(&window) {
            return self.matches.get(&(number, window)).is_some_and(|matches| matches.contains_key(key));
        }
        self.earlier.get(&(name.to_owned(), window)).is_some_and(|keys| keys.contains(key))
    }

    /// For how many keys each rule holds without an alert, since it has [`MAX_ACTIVE`]; a rule that has fewer is not in it.
    pub fn left_out(&self) -> &BTreeMap<String, u64> {
        &self.left_out
    }

    /// For what a rule calls for an alert in the latest window, by the key's text and in its order.
    fn calls(&self, number: u64, latest: Epoch) -> impl Iterator<Item = (&String, &Match)> {
        let rule = self.store.borrow().rules[number as usize].clone();
        let matches = self.matches.get(&(number, latest)).into_iter().flatten();
        matches.filter(move |(key, _)| {
            let mut earlier = (1..rule.windows).map(|age| latest.checked_sub(age));
            earlier.all(|window| window.is_some_and(|window| self.held(number, &rule.name, window, key)))
        })
    }

    /// The active alerts of the latest window, compared with those before.
    fn evaluate(&mut self) -> Vec<Event> {
        // Where the latest window is of an earlier run, its rows are not here: the next window will tell.
        let Some((&latest, retained)) = self.retained.last_key_value() else { return Vec::new() };
        if self.latest != Some(latest) {
            return Vec::new();
        }
        let store = self.store.borrow();
        let times = retained.times();
        // What is not active any more is left of them.
        let mut before = std::mem::take(&mut self.active);
        let (mut active, mut left_out, mut raised) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for &number in &self.in_force {
            let rule = &store.rules[number as usize];
            let mut new = Vec::new();
            let earlier = active.len();
            for (key, found) in self.calls(number, latest) {
                match before.remove_entry(&(rule.name.clone(), key.clone())) {
                    Some((place, event)) => drop(active.insert(place, event)),
                    None => new.push(found),
                }
            }
            let room = MAX_ACTIVE.saturating_sub(active.len() - earlier);
            if new.len() > room {
                left_out.insert(rule.name.clone(), (new.len() - room) as u64);
                new.truncate(room);
            }
            let tables = retained.tables.iter().map(|table| &store.tables[table]);
            let tops = if new.is_empty() { Vec::new() } else { rule.contributors(tables, &new, TOP) };
            for (found, top) in new.into_iter().zip(tops) {
                let place = (rule.name.clone(), text(found));
                let again = self.raised.get(&place).copied().unwrap_or_default();
                let id = event::id(&rule.name, found.key.as_ref(), (latest, again));
                let event = raise(rule, found, (id, top), (&times, retained.revision));
                raised.push(event.clone());
                active.insert(place, event);
            }
        }
        for event in &raised {
            *self.raised.entry((event.rule.clone(), event.key_text())).or_default() += 1;
        }
        (self.active, self.left_out) = (active, left_out);
        let [window_start, window_end] = times;
        let withdrawn = before.into_values().map(|event| Event {
            event: Kind::Withdrawn,
            value: None,
            window_start: window_start.clone(),
            window_end: window_end.clone(),
            revision: retained.revision,
            top: Vec::new(),
            ..event
        });
        withdrawn.chain(raised).collect()
    }

    /// What the next run has to know.
    pub fn standing(&self, events: &[Event]) -> Standing {
        let store = self.store.borrow();
        let mut held: BTreeMap<(String, Epoch), BTreeSet<String>> = self.earlier.clone();
        for ((rule, window), matches) in &self.matches {
            let place = (store.rules[*rule as usize].name.clone(), *window);
            held.insert(place, matches.keys().cloned().collect());
        }
        let held = held.into_iter().map(|((rule, window), keys)| (rule, window, keys));
        Standing {
            active: self.active.values().cloned().collect(),
            held: held.collect(),
            events: events.to_vec(),
            latest: self.latest,
            raised: self
                .raised
                .iter()
                .map(|((rule, key), number)| (rule.clone(), key.clone(), *number))
                .collect(),
        }
    }
}

/// A task in the collections.
fn task_number(name: &str) -> u64 {
    crate::fingerprint::fingerprint(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{Flow, rows, task};
    use dataflows::aggregator::Options;
    use serde_json::json;

    /// A rule that holds for each source with more than one packet.
    fn rule() -> Rule {
        let options =
            json!({"name": "busy", "task": "flows", "metric": "packets", "comparison": ">", "threshold": 1});
        let options =
            Options { values: serde_json::from_value(options).expect("a map"), ..Options::default() };
        Rule::read(&options, &[task(&["SrcIP"])]).expect("a rule")
    }

    /// A window in which each of these sources has so many packets.
    fn snapshot(window: Epoch, sources: impl Iterator<Item = (u32, u64)>) -> Snapshot {
        let flows: Vec<_> = sources
            .map(|(source, packets)| {
                (std::net::Ipv4Addr::from_bits(0x0a00_0000 + source).to_string(), packets)
            })
            .collect();
        let flows: Vec<Flow<'_>> =
            flows.iter().map(|(source, packets)| (&source[..], 0, *packets, 60)).collect();
        let span = Some((window * 10, window * 10 + 10));
        Snapshot {
            window,
            span,
            revision: 0,
            tasks: vec![rows(&task(&["SrcIP"]), &flows)],
            missing: Default::default(),
        }
    }

    fn count(events: &[Event], kind: Kind) -> usize {
        events.iter().filter(|event| event.event == kind).count()
    }

    /// A rule that held for 25 000 rows took 18 s a window, and one for 100 000 did not end.
    #[test]
    fn a_rule_that_holds_for_very_many_rows_has_so_many_alerts_and_tells_how_many_it_lacks() {
        const SOURCES: u32 = 25_000;
        let mut board = Board::new(vec![rule()], Standing::default());
        let raised = board.commit(&[&snapshot(1, (0..SOURCES).map(|source| (source, 2)))]);
        assert_eq!((count(&raised, Kind::Raised), raised.len()), (MAX_ACTIVE, MAX_ACTIVE));
        assert!(raised.iter().all(|event| event.top.len() == 1
            && event.top[0]["src_ip"] == event.key.as_ref().expect("a key")["src_ip"]));
        assert_eq!(board.left_out(), &BTreeMap::from([("busy".to_owned(), 15_000)]));
        // A restart in between changes nothing.
        let standing = board.standing(&raised);
        let mut restarted = Board::new(vec![rule()], standing);
        let calm = raised[7].key.clone().expect("a key")["src_ip"].clone();
        let packets =
            |source| if json!(std::net::Ipv4Addr::from_bits(0x0a00_0000 + source)) == calm { 1 } else { 3 };
        let next = snapshot(2, (0..SOURCES).map(|source| (source, packets(source))));
        // One has ended, and makes room for one.
        let events = board.commit(&[&next]);
        assert_eq!((count(&events, Kind::Withdrawn), count(&events, Kind::Raised)), (1, 1));
        assert_eq!(events[0].key, raised[7].key);
        assert_eq!(board.left_out()["busy"], 14_999);
        assert_eq!(restarted.commit(&[&next]), events);
        let none = board.commit(&[&snapshot(3, std::iter::empty())]);
        assert_eq!((count(&none, Kind::Withdrawn), none.len()), (MAX_ACTIVE, MAX_ACTIVE));
        assert!(board.left_out().is_empty());
    }
}
