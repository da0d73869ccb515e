//! The end of a run, told to people as a table and to programs as JSON.

use crate::account::Noticed;
use crate::ledger::{Counts, Ledger};
use crate::non_ip;
use crate::sinks::earlier::Replaced;
use crate::sinks::text::{Text, window_name};
use crate::sinks::{SinkError, Writer};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use dataflows::rows::{Schema, Snapshot, ValueColumn, ValueKind};
use dataflows::window::Epoch;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Rows kept of each task for programs.
const TOP: usize = 10;
/// Rows of each task in the table for people.
const TOP_IN_TABLE: usize = 5;

/// A row that may be shown.
struct TopRow {
    window: Epoch,
    window_name: String,
    order: u64,
    /// Key and value cells.
    cells: Vec<String>,
    values: Vec<u64>,
}

/// One task's largest rows over all windows.
struct TopTask {
    name: Arc<str>,
    schema: Arc<Schema>,
    rows: Vec<TopRow>,
}

/// What the snapshots held, with the rows to show.
#[derive(Default)]
pub struct Highlights {
    tasks: Vec<TopTask>,
    /// Windows, each once.
    windows: BTreeSet<Epoch>,
}

/// Collects the highlights of a run as one more writer.
#[derive(Clone, Default)]
pub struct HighlightsWriter(Arc<Mutex<Highlights>>);

impl HighlightsWriter {
    /// What was collected.
    pub fn take(&self) -> Highlights {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Writer for HighlightsWriter {
    fn prepare(&mut self, snapshot: &Arc<Snapshot>, _commit: Option<u64>) -> Result<(), SinkError> {
        let mut highlights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        highlights.windows.insert(snapshot.window);
        let name = window_name(snapshot.span);
        let mut text = Text::default();
        for (number, task) in snapshot.tasks.iter().enumerate() {
            if highlights.tasks.len() <= number {
                highlights.tasks.push(TopTask {
                    name: task.name.clone(),
                    schema: task.schema.clone(),
                    rows: Vec::new(),
                });
            }
            let top = &mut highlights.tasks[number];
            // A revision replaces the window's rows; they only grow, so none that was passed over comes back.
            top.rows.retain(|row| row.window != snapshot.window);
            for row in task.first(TOP) {
                let mut line = Vec::new();
                text.row(&mut line, &task.schema, &row, b'\t');
                let cells = String::from_utf8_lossy(&line).split('\t').map(str::to_owned).collect();
                let values = row.values().to_vec();
                let order = values[task.schema.order_by];
                top.rows.push(TopRow {
                    window: snapshot.window,
                    window_name: name.clone(),
                    order,
                    cells,
                    values,
                });
            }
            top.rows.sort_by_key(|row| std::cmp::Reverse(row.order));
            top.rows.truncate(TOP);
        }
        Ok(())
    }

    fn finish(&mut self, _ledger: &Ledger) -> Result<(), SinkError> {
        Ok(())
    }
}

/// A run that ended well.
pub struct Report<'a> {
    /// Its books.
    pub ledger: &'a Ledger,
    /// Its accounts.
    pub counts: Counts,
    /// What was noticed in the frames of its inputs: name, accounts, and what it was.
    pub noticed: Vec<(String, Counts, Noticed)>,
    /// The filter of the run.
    pub filter: Option<&'a str>,
    /// What its snapshots held.
    pub highlights: Highlights,
    /// How long it took.
    pub elapsed: Duration,
    /// Where the snapshots are.
    pub outputs: Vec<String>,
    /// What else is to be told of how it ran.
    pub note: Option<String>,
    /// What writers have replaced.
    pub replaced: Vec<Replaced>,
}

impl Report<'_> {
    /// For programs.
    pub fn json(&self) -> Value {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let task = |task: &TopTask| {
            let rows: Vec<Value> = task
                .rows
                .iter()
                .map(|row| {
                    let cells = task.schema.columns().zip(&row.cells).enumerate();
                    let keys = task.schema.key.columns().len();
                    let cell = |(at, (column, cell)): (usize, (&str, &String))| {
                        let is_number = at >= keys && task.schema.values[at - keys].kind != ValueKind::Time;
                        let number = cell
                            .parse::<u64>()
                            .ok()
                            .filter(|_| is_number || cell.bytes().all(|b| b.is_ascii_digit()));
                        (column.to_owned(), number.map_or_else(|| json!(cell), |number| json!(number)))
                    };
                    let mut object =
                        serde_json::Map::from_iter([("window".to_owned(), json!(row.window_name))]);
                    object.extend(cells.map(cell));
                    Value::Object(object)
                })
                .collect();
            (task.name.to_string(), json!({"top": rows}))
        };
        let mut object = json!({
            "ledger": self.ledger,
            "seconds": seconds,
            "packets_per_second": (self.counts.read as f64 / seconds).round(),
            "bits_per_second": (self.counts.bytes_read as f64 * 8.0 / seconds).round(),
            "outputs": self.outputs,
            "replaced": self.replaced.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "hints": self.hints().collect::<Vec<_>>(),
            "non_ip": self.non_ip().map(|share| share.json()).collect::<Vec<_>>(),
            "tasks": self.highlights.tasks.iter().map(task).collect::<serde_json::Map<_, _>>(),
        });
        if let Some(note) = &self.note {
            object["note"] = json!(note);
        }
        object
    }

    /// The inputs of which a part worth telling is not IP.
    fn non_ip(&self) -> impl Iterator<Item = non_ip::Share<'_>> {
        self.noticed.iter().filter_map(|(name, counts, noticed)| non_ip::Share::of(name, *counts, noticed))
    }

    /// Of each input, the filter that passes what the run's own has missed.
    fn hints(&self) -> impl Iterator<Item = String> {
        let hint =
            |(name, _, noticed): &(String, Counts, Noticed)| non_ip::filter_hint(name, noticed, self.filter);
        self.noticed.iter().filter_map(hint)
    }

    /// For people, in so many columns where there is a limit: tables that are wider go without their times, and then
    /// with cells of several lines.
    pub fn table(&self, columns: Option<usize>) -> String {
        let mut out = String::new();
        let mut lacks_times = false;
        for task in self.highlights.tasks.iter().filter(|task| !task.rows.is_empty()) {
            let mut table = self.task_table(task, true);
            if columns.is_some_and(|columns| width(&table) > columns) {
                lacks_times = true;
                table = self.task_table(task, false);
            }
            if let Some(columns) = columns.filter(|columns| width(&table) > *columns) {
                table.set_content_arrangement(ContentArrangement::Dynamic);
                table.set_width(u16::try_from(columns).unwrap_or(u16::MAX));
            }
            out.push_str(&format!("\n{}\n{table}\n", task.name));
        }
        if lacks_times {
            out.push_str("\n(the terminal has no room for the columns first_seen and last_seen)\n");
        }
        let Counts { read, counted, filtered, non_ip, malformed, late, bytes_read, .. } = self.counts;
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        out.push_str(&format!(
            "\n{} packets, {} on the wire, in {seconds:.2} s: {} packets/s, {}bit/s\n",
            grouped(read),
            scaled(bytes_read as f64, "B"),
            scaled(read as f64 / seconds, ""),
            scaled(bytes_read as f64 * 8.0 / seconds, ""),
        ));
        out.push_str(&format!(
            "counted {} + filtered {} + not IP {} + malformed {} = read {}; late {}, lost {}\n",
            grouped(counted),
            grouped(filtered),
            grouped(non_ip),
            grouped(malformed),
            grouped(read),
            grouped(late),
            grouped(self.ledger.lost()),
        ));
        self.non_ip().for_each(|share| out.push_str(&format!("{share}\n")));
        self.hints().for_each(|hint| out.push_str(&format!("{hint}\n")));
        self.replaced.iter().for_each(|replaced| out.push_str(&format!("{replaced}\n")));
        let note = self.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        let (windows, outputs) = (self.highlights.windows.len(), self.outputs.join(", "));
        out.push_str(&format!("{windows} window(s) in {outputs}{note}\n"));
        out.extend(self.interruption().map(|line| format!("{line}\n")));
        out
    }

    /// That a signal ended the run, where one has.
    pub fn interruption(&self) -> Option<String> {
        let read = grouped(self.counts.read);
        self.ledger.is_interrupted().then(|| {
            format!("interrupted by a signal before all input was read; the results cover only the {read} packets read so far")
        })
    }

    fn task_table(&self, task: &TopTask, has_times: bool) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let many_windows = self.highlights.windows.len() > 1;
        let keys = task.schema.key.columns().len();
        let mut header: Vec<&str> = task.schema.columns().take(keys).collect();
        let is_shown = |column: &&ValueColumn| has_times || column.kind != ValueKind::Time;
        header.extend(task.schema.values.iter().filter(is_shown).map(|column| column.name));
        if many_windows {
            header.insert(0, "window");
        }
        table.set_header(header);
        for row in task.rows.iter().take(TOP_IN_TABLE) {
            let mut cells: Vec<String> = row.cells[..keys].to_vec();
            for (column, value) in task.schema.values.iter().zip(&row.values) {
                if !is_shown(&column) {
                    continue;
                }
                cells.push(match column.kind {
                    ValueKind::Count => grouped(*value),
                    ValueKind::Number => value.to_string(),
                    ValueKind::Bytes => scaled(*value as f64, "B"),
                    ValueKind::Time => crate::sinks::text::rfc3339(*value).replace('T', " ")[..23].to_owned(),
                });
            }
            if many_windows {
                cells.insert(0, row.window_name.clone());
            }
            table.add_row(cells);
        }
        let first_number = keys + usize::from(many_windows);
        for (at, column) in task.schema.values.iter().filter(is_shown).enumerate() {
            if column.kind != ValueKind::Time
                && let Some(column) = table.column_mut(first_number + at)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

/// Columns of a terminal that a table takes.
fn width(table: &Table) -> usize {
    table.lines().map(|line| line.chars().count()).max().unwrap_or(0)
}

/// 1234567 as "1 234 567".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// 1234567 as "1.23 M".
fn scaled(mut number: f64, unit: &str) -> String {
    let mut prefixes = ["", "k", "M", "G", "T", "P", "E"].into_iter();
    let mut prefix = prefixes.next().unwrap_or_default();
    while number >= 1000.0
        && let Some(next) = prefixes.next()
    {
        number /= 1000.0;
        prefix = next;
    }
    let decimals = if prefix.is_empty() { 0 } else { 2 };
    format!("{number:.decimals$} {prefix}{unit}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataflows::rows::Missing;

    #[test]
    fn tables_keep_to_the_width_of_the_terminal() {
        let highlights = HighlightsWriter::default();
        let task = crate::trial::task(&["SrcIP", "DstPort"]);
        let tasks = vec![crate::trial::rows(&task, &crate::trial::FLOWS)];
        let snapshot = Snapshot { window: 0, span: None, revision: 0, tasks, missing: Missing::default() };
        highlights.clone().prepare(&Arc::new(snapshot), None).expect("highlights");
        let ledger = Ledger::new(&[], 1, false);
        let report = Report {
            ledger: &ledger,
            counts: Counts::default(),
            filter: None,
            noticed: Vec::new(),
            highlights: highlights.take(),
            elapsed: Duration::from_secs(1),
            outputs: Vec::new(),
            note: None,
            replaced: Vec::new(),
        };
        let widest = |text: &str| {
            let table = text
                .lines()
                .filter(|line| line.starts_with(['|', '+', '\u{2502}', '\u{250c}', '\u{2514}', '\u{251c}']));
            table.map(|line| line.chars().count()).max().expect("a table")
        };
        let whole = report.table(None);
        assert!(whole.contains("first_seen") && widest(&whole) > 80, "{whole}");
        assert_eq!(report.table(Some(200)), whole);
        for columns in [80, 60, 40] {
            let narrow = report.table(Some(columns));
            assert!(widest(&narrow) <= columns, "{columns}:\n{narrow}");
            assert!(narrow.contains("no room for the columns"), "{narrow}");
        }
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_234_567)),
            ("0".into(), "999".into(), "1 234 567".into())
        );
        assert_eq!((scaled(999.0, "B"), scaled(1_234_567.0, "B")), ("999 B".into(), "1.23 MB".into()));
    }
}
