//! The end of a run, told to people as a table and to programs as JSON.

use crate::account::Noticed;
use crate::ledger::{Counts, Ledger};
use crate::non_ip;
use crate::sinks::text::{Text, window_name};
use crate::sinks::{SinkError, Writer};
use comfy_table::{CellAlignment, Table, presets};
use dataflows::rows::{Schema, Snapshot, ValueKind};
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
    /// What its snapshots held.
    pub highlights: Highlights,
    /// How long it took.
    pub elapsed: Duration,
    /// Where the snapshots are.
    pub outputs: Vec<String>,
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
                    let keys = task.schema.key.fields().len();
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
        json!({
            "ledger": self.ledger,
            "seconds": seconds,
            "packets_per_second": (self.counts.read as f64 / seconds).round(),
            "bits_per_second": (self.counts.bytes_read as f64 * 8.0 / seconds).round(),
            "outputs": self.outputs,
            "non_ip": self.non_ip().map(|share| share.json()).collect::<Vec<_>>(),
            "tasks": self.highlights.tasks.iter().map(task).collect::<serde_json::Map<_, _>>(),
        })
    }

    /// The inputs of which a part worth telling is not IP.
    fn non_ip(&self) -> impl Iterator<Item = non_ip::Share<'_>> {
        self.noticed.iter().filter_map(|(name, counts, noticed)| non_ip::Share::of(name, *counts, noticed))
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for task in self.highlights.tasks.iter().filter(|task| !task.rows.is_empty()) {
            out.push_str(&format!("\n{}\n{}\n", task.name, self.task_table(task)));
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
        out.push_str(&format!(
            "{} window(s) in {}\n",
            self.highlights.windows.len(),
            self.outputs.join(", ")
        ));
        out
    }

    fn task_table(&self, task: &TopTask) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let many_windows = self.highlights.windows.len() > 1;
        let keys = task.schema.key.fields().len();
        let mut header: Vec<&str> = task.schema.columns().collect();
        if many_windows {
            header.insert(0, "window");
        }
        table.set_header(header);
        for row in task.rows.iter().take(TOP_IN_TABLE) {
            let mut cells: Vec<String> = row.cells[..keys].to_vec();
            for (column, value) in task.schema.values.iter().zip(&row.values) {
                cells.push(match column.kind {
                    ValueKind::Count => grouped(*value),
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
        for (at, column) in task.schema.values.iter().enumerate() {
            if column.kind != ValueKind::Time
                && let Some(column) = table.column_mut(first_number + at)
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
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

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_234_567)),
            ("0".into(), "999".into(), "1 234 567".into())
        );
        assert_eq!((scaled(999.0, "B"), scaled(1_234_567.0, "B")), ("999 B".into(), "1.23 MB".into()));
    }
}
