//! The board: which alerts are active, kept by joining rules with the tables of the latest windows.
//!
//! Rules and tables are two differential collections that are joined by task. A new window adds tables, an older one
//! takes its own away, an edited file adds and takes away rules: either way the join names just the matches that have
//! come or gone, however many rules and tables stay as they are. Tables are scanned by the join and are not copied.
//!
//! Windows in a row are counted by the windows' numbers, so the board depends on the snapshots alone.

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

    /// The active alerts of the latest window, compared with those before.
    fn evaluate(&mut self) -> Vec<Event> {
        // Where the latest window is of an earlier run, its rows are not here: the next window will tell.
        let Some((&latest, retained)) = self.retained.last_key_value() else { return Vec::new() };
        if self.latest != Some(latest) {
            return Vec::new();
        }
        let store = self.store.borrow();
        let [window_start, window_end] = match retained.span {
            Some((start, end)) => [start, end].map(|time| Some(rfc3339(time))),
            None => [None, None],
        };
        // What is not active any more is left of them.
        let mut before = std::mem::take(&mut self.active);
        let mut active = BTreeMap::new();
        let mut raised = Vec::new();
        for &number in &self.in_force {
            let rule = &store.rules[number as usize];
            for (key, found) in self.matches.get(&(number, latest)).into_iter().flatten() {
                let mut earlier = (1..rule.windows).map(|age| latest.checked_sub(age));
                if !earlier
                    .all(|window| window.is_some_and(|window| self.held(number, &rule.name, window, key)))
                {
                    continue;
                }
                let place = (rule.name.clone(), key.clone());
                let event = before.remove(&place).unwrap_or_else(|| {
                    let again = self.raised.get(&place).copied().unwrap_or_default();
                    let tables = retained.tables.iter().map(|table| &store.tables[table]);
                    let event = Event {
                        id: event::id(&rule.name, found.key.as_ref(), (latest, again)),
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
                        revision: retained.revision,
                        top: rule.contributors(tables, found.key.as_ref(), TOP),
                    };
                    raised.push(event.clone());
                    event
                });
                active.insert(place, event);
            }
        }
        for event in &raised {
            *self.raised.entry((event.rule.clone(), event.key_text())).or_default() += 1;
        }
        self.active = active;
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
