//! Rules: which rows of a task's table, or which sums over them, call for an alert.
//!
//! One table at a time: in how many windows in a row a rule holds, and what becomes of that, is not known here.

use crate::config::size;
use crate::sinks::text::rfc3339;
use dataflows::aggregator::{Options, OptionsError, Task};
use dataflows::field::{Kind, mac, parse_mac};
use dataflows::key::{KeyColumn, KeyValue};
use dataflows::layers::Text;
use dataflows::packet::Address;
use dataflows::rows::{Row, Schema, TaskRows, ValueKind};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Windows in a row that a rule may ask for.
const MOST_WINDOWS: u64 = 100_000;

/// A rule as it is written; what is needed is checked by [`Rule::read`], so that the first mistake is an unknown key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    task: Option<String>,
    metric: Option<String>,
    comparison: Option<String>,
    threshold: Option<Value>,
    #[serde(default)]
    r#match: BTreeMap<String, Value>,
    r#for: Option<u64>,
}

/// A rule that was read and checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// The task whose rows it is about.
    pub task: Arc<str>,
    /// What is compared, as it is spelled.
    pub metric: String,
    measure: Measure,
    /// How it is compared.
    pub comparison: Comparison,
    /// With what.
    pub threshold: u64,
    /// What the rows have to be, beside: what key columns have to hold.
    pub conditions: Conditions,
    /// In how many windows in a row it has to hold, at least 1.
    pub windows: u64,
}

/// Where a metric is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Measure {
    /// A value column of each row.
    Column(usize),
    /// The sum of a value column.
    Total(usize),
    /// The number of rows.
    Rows,
}

/// How a metric is compared with the threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    /// `>`
    Above,
    /// `>=`
    AtLeast,
    /// `<`
    Below,
    /// `<=`
    AtMost,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

impl Comparison {
    const ALL: [Self; 6] =
        [Self::Above, Self::AtLeast, Self::Below, Self::AtMost, Self::Equal, Self::NotEqual];

    /// As configuration spells it.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Above => ">",
            Self::AtLeast => ">=",
            Self::Below => "<",
            Self::AtMost => "<=",
            Self::Equal => "==",
            Self::NotEqual => "!=",
        }
    }

    #[inline]
    fn holds(self, value: u64, threshold: u64) -> bool {
        match self {
            Self::Above => value > threshold,
            Self::AtLeast => value >= threshold,
            Self::Below => value < threshold,
            Self::AtMost => value <= threshold,
            Self::Equal => value == threshold,
            Self::NotEqual => value != threshold,
        }
    }
}

/// What a key column has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// This number.
    Number(u64),
    /// This link-layer address.
    Mac(u64),
    /// This text.
    Text(Text),
    /// An address or a prefix in this network.
    Network {
        /// The network's address; IPv4 as [`Address`] has it.
        address: u128,
        /// The bits that count.
        mask: u128,
        /// Its family: `::/0` holds no IPv4 address.
        is_v4: bool,
    },
}

impl Condition {
    /// Reads what a field has to be.
    fn read(column: &KeyColumn, value: &Value) -> Result<Self, String> {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match column.field.kind {
            Kind::Address => Self::network(&text, column.prefix),
            Kind::Mac => {
                let wrong = || format!("`{text}` is no link-layer address; write 00:1b:21:aa:bb:cc");
                parse_mac(&text).map(Self::Mac).ok_or_else(wrong)
            }
            Kind::Text => Ok(Self::Text(Text::new(&text))),
            Kind::Number => {
                let most = column.field.most();
                let number = text.parse::<u64>().ok().filter(|number| *number <= most);
                number.map(Self::Number).ok_or_else(|| format!("`{text}` is no number from 0 to {most}"))
            }
        }
    }

    /// Reads a network or an address, for a column that keeps so many bits of an address of either family.
    fn network(text: &str, kept: (u8, u8)) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no network and no address; write 10.0.0.0/8, 2001:db8::/32 or 192.0.2.1");
        let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        // An IPv4 address is the end of an IPv6 address.
        let (before, whole) = if ip.is_ipv4() { (96u8, 32u8) } else { (0, 128) };
        let length = match length {
            None => whole,
            Some(length) => length.parse::<u8>().ok().filter(|length| *length <= whole).ok_or_else(wrong)?,
        };
        let bits = before + length;
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        let Address(given) = ip.into();
        let address = given & mask;
        let is_v4 = Address(address).is_v4() && bits >= 96;
        let (length, most) = if is_v4 { (bits - 96, kept.0) } else { (bits, kept.1) };
        if given != address {
            let network = IpAddr::from(Address(address));
            return Err(format!("`{text}` has bits behind its prefix; write {network}/{length}"));
        }
        if length > most {
            return Err(format!("`{text}` is narrower than the column, which keeps {most} bits"));
        }
        Ok(Self::Network { address, mask, is_v4 })
    }

    #[inline]
    fn holds(self, value: KeyValue) -> bool {
        match (self, value) {
            (Self::Number(wanted), KeyValue::Number(number)) | (Self::Mac(wanted), KeyValue::Mac(number)) => {
                number == wanted
            }
            (Self::Text(wanted), KeyValue::Text(text)) => text == wanted,
            (
                Self::Network { address, mask, is_v4 },
                KeyValue::Address(found) | KeyValue::Prefix(found, _),
            ) => found.0 & mask == address && found.is_v4() == is_v4,
            _ => false,
        }
    }
}

/// What key columns of a task have to hold, each by its number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions(Vec<(usize, Condition)>);

/// Why there can be no such conditions.
#[derive(Debug)]
pub enum NoCondition {
    /// There is no such key column.
    Column(String),
    /// The column cannot hold that.
    Value(String),
}

impl Conditions {
    /// Reads them, each a key column of this task and what it has to be.
    pub fn read(
        task: &str,
        schema: &Schema,
        written: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Self, NoCondition> {
        let columns = schema.key.columns();
        let read = |(name, value): (String, Value)| {
            let Some(column) = columns.iter().position(|column| column.name() == name) else {
                let known: Vec<&str> = columns.iter().map(KeyColumn::name).collect();
                let why =
                    format!("the key of task `{task}` has no column `{name}`; one of {}", known.join(", "));
                return Err(NoCondition::Column(why));
            };
            let condition = Condition::read(&columns[column], &value);
            Ok((column, condition.map_err(|why| NoCondition::Value(format!("{name}: {why}")))?))
        };
        written.into_iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a row is so.
    #[inline]
    pub fn hold(&self, schema: &Schema, row: &Row<'_>) -> bool {
        self.0.iter().all(|(column, condition)| condition.holds(row.key(schema, *column)))
    }
}

/// The value of a key column, in the order that rows have: IPv4 before IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cell {
    /// A number.
    Number(u64),
    /// A link-layer address.
    Mac(u64),
    /// A text.
    Text(Text),
    /// A whole address.
    Address(IpAddr),
    /// A network and its length in bits.
    Prefix(IpAddr, u8),
}

impl From<KeyValue> for Cell {
    fn from(value: KeyValue) -> Self {
        match value {
            KeyValue::Number(number) => Self::Number(number),
            KeyValue::Mac(number) => Self::Mac(number),
            KeyValue::Text(text) => Self::Text(text),
            KeyValue::Address(address) => Self::Address(address.into()),
            KeyValue::Prefix(address, bits) => Self::Prefix(address.into(), bits),
        }
    }
}

impl fmt::Display for Cell {
    /// As tables have it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Mac(number) => formatter.write_str(&mac(*number)),
            Self::Text(text) => formatter.write_str(&text.text()),
            Self::Address(address) => write!(formatter, "{address}"),
            Self::Prefix(address, bits) => write!(formatter, "{address}/{bits}"),
        }
    }
}

/// The key of a row that matched: its columns in order, each with its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MatchKey(Vec<(&'static str, Cell)>);

impl MatchKey {
    fn of(schema: &Schema, row: &Row<'_>) -> Self {
        let cell =
            |(number, column): (usize, &KeyColumn)| (column.name(), Cell::from(row.key(schema, number)));
        Self(schema.key.columns().iter().enumerate().map(cell).collect())
    }

    /// Column and value: numbers as numbers, addresses as text.
    pub fn json(&self) -> Map<String, Value> {
        let value = |cell: &Cell| match cell {
            Cell::Number(number) => Value::from(*number),
            _ => Value::from(cell.to_string()),
        };
        self.0.iter().map(|(column, cell)| ((*column).to_owned(), value(cell))).collect()
    }
}

impl fmt::Display for MatchKey {
    /// `src_ip=10.0.0.1 dst_port=443`
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.0.iter().map(|(column, cell)| format!("{column}={cell}")).collect();
        formatter.write_str(&columns.join(" "))
    }
}

/// Something for which a rule holds in one window.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    /// The row's; `None` for the totals of the task.
    pub key: Option<MatchKey>,
    /// The metric.
    pub value: u64,
}

impl Match {
    /// The key's columns; none for totals.
    fn cells(&self) -> impl Iterator<Item = &(&'static str, Cell)> {
        self.key.iter().flat_map(|key| &key.0)
    }
}

impl Rule {
    /// Reads a rule. That its name is unique is for the caller to see to.
    pub fn read(options: &Options, tasks: &[Task]) -> Result<Self, OptionsError> {
        let written: Written = options.read()?;
        let missing =
            |key: &str| OptionsError { key: None, message: format!("a rule needs the key `{key}`") };
        let name = written.name.ok_or_else(|| missing("name"))?;
        let task = written.task.ok_or_else(|| missing("task"))?;
        let metric = written.metric.ok_or_else(|| missing("metric"))?;
        let comparison = written.comparison.ok_or_else(|| missing("comparison"))?;
        let threshold = written.threshold.ok_or_else(|| missing("threshold"))?;
        let windows = written.r#for.unwrap_or(1);

        let allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
        if name.is_empty() || !name.chars().all(allowed) {
            return Err(options.refuse("name", format!("`{name}`: use letters, digits, `_` and `-`")));
        }
        let Some(task) = tasks.iter().find(|known| *known.name == *task) else {
            let known: Vec<&str> = tasks.iter().map(|known| &*known.name).collect();
            let why = format!("there is no task `{task}`; one of {}", known.join(", "));
            return Err(options.refuse("task", why));
        };
        let schema = task.aggregator.schema();
        let metrics = metrics(&schema);
        let Some(&(_, measure, in_bytes)) = metrics.iter().find(|(known, ..)| *known == metric) else {
            let known: Vec<&str> = metrics.iter().map(|(known, ..)| known.as_str()).collect();
            let why = format!("task `{}` has no number `{metric}`; one of {}", task.name, known.join(", "));
            return Err(options.refuse("metric", why));
        };
        let Some(comparison) = Comparison::ALL.into_iter().find(|known| known.symbol() == comparison) else {
            let known = Comparison::ALL.map(Comparison::symbol).join(" ");
            return Err(options.refuse("comparison", format!("`{comparison}` is unknown; one of {known}")));
        };
        let threshold =
            read_threshold(&threshold, in_bytes).map_err(|why| options.refuse("threshold", why))?;
        let conditions =
            Conditions::read(&task.name, &schema, written.r#match).map_err(|error| match error {
                NoCondition::Column(why) | NoCondition::Value(why) => options.refuse("match", why),
            })?;
        if !(1..=MOST_WINDOWS).contains(&windows) {
            return Err(options.refuse("for", format!("1 to {MOST_WINDOWS} windows")));
        }
        let task = task.name.clone();
        Ok(Self { name, task, metric, measure, comparison, threshold, conditions, windows })
    }

    /// What the rule holds for in its task's rows, ordered by key: a match a row, or at most one for totals.
    ///
    /// A key without a row matches nothing, whatever the comparison. Totals are there without any row, and are 0.
    pub fn matches(&self, rows: &TaskRows) -> Vec<Match> {
        let column = match self.measure {
            Measure::Column(column) => column,
            Measure::Total(column) => return self.matching_total(rows, |row| row.values()[column]),
            Measure::Rows => return self.matching_total(rows, |_| 1),
        };
        let schema = &rows.schema;
        let holds = |row: &Row<'_>| {
            self.comparison.holds(row.values()[column], self.threshold) && self.conditions.hold(schema, row)
        };
        let found =
            |row: Row<'_>| Match { key: Some(MatchKey::of(schema, &row)), value: row.values()[column] };
        let mut matches: Vec<Match> = rows.rows().filter(holds).map(found).collect();
        matches.sort_unstable();
        matches
    }

    fn matching_total(&self, rows: &TaskRows, value: impl Fn(&Row<'_>) -> u64) -> Vec<Match> {
        let selected = rows.rows().filter(|row| self.conditions.hold(&rows.schema, row));
        let total = selected.fold(0u64, |total, row| total.saturating_add(value(&row)));
        let holds = self.comparison.holds(total, self.threshold);
        holds.then_some(Match { key: None, value: total }).into_iter().collect()
    }

    /// The first rows behind each of these matches, of all tables of a window: for keys, of the finest table that counts
    /// every packet and has the keys' columns; else of the rule's own. However many matches there are, the table is read
    /// once.
    pub fn contributors<'a>(
        &self,
        tables: impl Iterator<Item = &'a TaskRows> + Clone,
        matches: &[&Match],
        count: usize,
    ) -> Vec<Vec<Value>> {
        let own = tables.clone().find(|rows| rows.name == self.task);
        let has_key = |rows: &&TaskRows| {
            let (fields, key) =
                (rows.schema.key.columns(), own.iter().flat_map(|own| own.schema.key.columns()));
            rows.schema.counts_every_packet && key.into_iter().all(|field| fields.contains(field))
        };
        let finer = tables.filter(has_key).max_by_key(|rows| rows.schema.key.mask().bits());
        let has_keys = matches.iter().all(|found| found.key.is_some());
        let table = finer.filter(|_| has_keys).or(own);
        table.map_or_else(|| vec![Vec::new(); matches.len()], |rows| self.top(rows, matches, count))
    }

    /// The first rows of a table for each match, column and value; of the rule's own task only those that it selects,
    /// and with a key only those whose columns of the key's names hold the same.
    fn top(&self, rows: &TaskRows, matches: &[&Match], count: usize) -> Vec<Vec<Value>> {
        let schema = &rows.schema;
        let column = |name: &str| schema.key.columns().iter().position(|column| column.name() == name);
        // All matches of a rule are of the same columns.
        let columns: Vec<usize> = matches
            .iter()
            .take(1)
            .flat_map(|found| found.cells())
            .filter_map(|(name, _)| column(name))
            .collect();
        let wanted = |found: &&Match| -> Vec<Cell> {
            let cells = found.cells().filter(|(name, _)| column(name).is_some());
            cells.map(|(_, cell)| *cell).collect()
        };
        let places: HashMap<Vec<Cell>, usize> = matches.iter().map(wanted).zip(0..).collect();
        let has_one_each = schema.counts_every_packet && columns.len() == schema.key.columns().len();
        let count = if has_one_each { count.min(1) } else { count };
        let is_own = rows.name == self.task;
        let mut tops = vec![Vec::new(); matches.len()];
        let mut missing = if count == 0 { 0 } else { places.len() };
        let mut key = Vec::with_capacity(columns.len());
        rows.visit_while(|row| {
            key.clear();
            key.extend(columns.iter().map(|column| Cell::from(row.key(schema, *column))));
            if let Some(&place) = places.get(&key)
                && tops[place].len() < count
                && (!is_own || self.conditions.hold(schema, &row))
            {
                tops[place].push(json(schema, &row));
                missing -= usize::from(tops[place].len() == count);
            }
            missing > 0
        });
        tops
    }
}

/// What a rule may compare in rows of this schema: its name, where it is found, and whether it is a number of bytes.
fn metrics(schema: &Schema) -> Vec<(String, Measure, bool)> {
    let (mut metrics, mut totals) = (Vec::new(), Vec::new());
    for (number, column) in schema.values.iter().enumerate() {
        if column.kind == ValueKind::Time {
            continue;
        }
        let in_bytes = column.kind == ValueKind::Bytes;
        metrics.push((column.name.to_owned(), Measure::Column(number), in_bytes));
        if matches!(column.name, "packets" | "bytes") {
            totals.push((format!("total.{}", column.name), Measure::Total(number), in_bytes));
        }
    }
    metrics.append(&mut totals);
    metrics.push(("total.rows".to_owned(), Measure::Rows, false));
    metrics
}

fn read_threshold(value: &Value, in_bytes: bool) -> Result<u64, String> {
    match (value.as_u64(), value.as_str()) {
        (Some(threshold), _) => Ok(threshold),
        (None, Some(text)) if in_bytes => size(text),
        _ if in_bytes => {
            Err(format!("{value} is no whole number of bytes, and no size such as 1GB or 512MiB"))
        }
        _ => Err(format!("{value} is no whole number from 0")),
    }
}

/// A row, column and value: numbers as numbers, addresses and times as text.
fn json(schema: &Schema, row: &Row<'_>) -> Value {
    let mut object = MatchKey::of(schema, row).json();
    object.extend(schema.values.iter().zip(row.values()).map(|(column, word)| {
        let value = match column.kind {
            ValueKind::Count | ValueKind::Bytes | ValueKind::Number => Value::from(*word),
            ValueKind::Time => Value::from(rfc3339(*word)),
        };
        (column.name.to_owned(), value)
    }));
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::event;
    use crate::trial::{FLOWS, rows, task};
    use serde_json::json;

    fn flows() -> (Task, TaskRows) {
        let task = task(&["SrcIP", "DstPort"]);
        let rows = rows(&task, &FLOWS);
        (task, rows)
    }

    /// A rule of the task with these keys beside or instead of the usual ones; `null` leaves one out.
    fn read(task: &Task, keys: Value) -> Result<Rule, OptionsError> {
        let usual =
            json!({"name": "r", "task": "flows", "metric": "packets", "comparison": ">", "threshold": 4});
        let mut options: BTreeMap<String, Value> = serde_json::from_value(usual).expect("a map");
        options.extend(serde_json::from_value::<BTreeMap<String, Value>>(keys).expect("a map"));
        options.retain(|_, value| !value.is_null());
        Rule::read(&options.into(), std::slice::from_ref(task))
    }

    fn found(task: &Task, rows: &TaskRows, keys: Value) -> Vec<(String, u64)> {
        let matches = read(task, keys).expect("a rule").matches(rows);
        let text = |key: Option<MatchKey>| key.map(|key| key.to_string()).unwrap_or_default();
        matches.into_iter().map(|found| (text(found.key), found.value)).collect()
    }

    #[test]
    fn rows_match_in_the_order_of_their_keys() {
        let (task, rows) = flows();
        let expected = [
            ("src_ip=10.0.0.1 dst_port=443", 5),
            ("src_ip=10.0.0.2 dst_port=443", 5),
            ("src_ip=192.0.2.1 dst_port=443", 9),
            ("src_ip=2001:db8::1 dst_port=443", 7),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value));
        assert_eq!(found(&task, &rows, json!({})), expected);
        let matching = json!({"match": {"src_ip": "10.0.0.0/8", "dst_port": 443}});
        assert_eq!(found(&task, &rows, matching), expected[..2]);
        assert_eq!(found(&task, &rows, json!({"match": {"src_ip": "::/0"}})), expected[3..]);
        assert_eq!(found(&task, &rows, json!({"match": {"src_ip": "0.0.0.0/0"}})), expected[..3]);
        assert_eq!(found(&task, &rows, json!({"match": {"src_ip": "192.0.2.1"}})), expected[2..3]);
        assert!(found(&task, &rows, json!({"match": {"dst_port": "80"}})).is_empty());
    }

    #[test]
    fn every_comparison_is_what_it_says() {
        let (task, rows) = flows();
        for (comparison, count) in [(">", 2), (">=", 4), ("<", 1), ("<=", 3), ("==", 2), ("!=", 3)] {
            let keys = json!({"comparison": comparison, "threshold": 5});
            assert_eq!(found(&task, &rows, keys).len(), count, "{comparison}");
        }
    }

    #[test]
    fn totals_are_sums_over_the_rows_that_match() {
        let (task, rows) = flows();
        let total = |keys: Value| found(&task, &rows, keys);
        assert_eq!(total(json!({"metric": "total.packets"})), [(String::new(), 27)]);
        assert_eq!(total(json!({"metric": "total.bytes", "threshold": "2.5kB"})), [(String::new(), 2560)]);
        assert!(total(json!({"metric": "total.bytes", "threshold": "3kB"})).is_empty());
        let matching = json!({"metric": "total.rows", "threshold": 1, "match": {"src_ip": "10.0.0.1"}});
        assert_eq!(total(matching), [(String::new(), 2)]);
        let nothing = json!({"metric": "total.rows", "comparison": "==", "threshold": 0});
        assert_eq!(found(&task, &self::rows(&task, &[]), nothing), [(String::new(), 0)]);
    }

    #[test]
    fn prefixes_match_by_network() {
        let task = task(&["SrcIP/24/48"]);
        let rows = rows(&task, &[("10.0.0.0", 0, 9, 1), ("2001:db8::", 0, 9, 1)]);
        let matching = |network: &str| found(&task, &rows, json!({"match": {"src_prefix": network}}));
        assert_eq!(matching("10.0.0.0/8"), [("src_prefix=10.0.0.0/24".to_owned(), 9)]);
        assert_eq!(matching("2001:db8::/32"), [("src_prefix=2001:db8::/48".to_owned(), 9)]);
        for narrower in ["10.0.0.1", "10.0.0.0/25", "2001:db8::/49"] {
            let error = read(&task, json!({"match": {"src_prefix": narrower}})).expect_err("too narrow");
            assert!(error.message.contains("narrower"), "{error}");
        }
    }

    #[test]
    fn the_first_rows_are_told_whole() {
        let (task, rows) = flows();
        let rule = read(&task, json!({"match": {"dst_port": 443}})).expect("a rule");
        let bytes = |top: &[Value]| top.iter().map(|row| row["bytes"].clone()).collect::<Value>();
        let all = Match { key: None, value: 0 };
        assert_eq!(bytes(&rule.top(&rows, &[&all], 3)[0]), json!([900, 700, 500]));
        let found = rule.matches(&rows);
        let first = |rows: &TaskRows, count| rule.top(rows, &[&found[0]], count).remove(0);
        let expected = concat!(
            r#"[{"src_ip":"10.0.0.1","dst_port":443,"packets":5,"bytes":900,"#,
            r#""first_seen":"1970-01-01T00:00:00.000000000Z","last_seen":"1970-01-01T00:00:01.000000001Z"}]"#
        );
        assert_eq!(Value::from(first(&rows, 5)).to_string(), expected);
        assert_eq!(first(&rows, 0), Vec::<Value>::new());
        let each: Vec<&Match> = found.iter().collect();
        let tops = rule.top(&rows, &each, 5);
        let tops: Vec<_> = tops.iter().map(|top| bytes(top)).collect();
        assert_eq!(tops, [json!([900]), json!([500]), json!([400]), json!([700])]);
        // Of another table, what is the same in the columns that both have; the rule's own conditions are not for it.
        let mut other = self::rows(&self::task(&["SrcIP"]), &FLOWS[..2]);
        other.name = "other".into();
        assert_eq!(bytes(&first(&other, 5)), json!([900]));
        assert_eq!(bytes(&rule.top(&other, &[&all], 5)[0]), json!([900, 500]));
    }

    #[test]
    fn keys_are_told_in_json_and_in_ids() {
        let (task, rows) = flows();
        let key = read(&task, json!({})).expect("a rule").matches(&rows).remove(0).key.expect("a key");
        assert_eq!(Value::from(key.json()), json!({"src_ip": "10.0.0.1", "dst_port": 443}));
        assert_eq!(event::id("port-scan", Some(&key), (7, 0)), "624dba08753861b1");
    }

    #[test]
    fn mistakes_are_named() {
        let task = task(&["SrcIP", "DstPort"]);
        for (keys, key, says) in [
            (json!({"treshold": 5}), Some("treshold"), "unknown field `treshold`"),
            (json!({"name": null}), None, "needs the key `name`"),
            (json!({"threshold": null}), None, "needs the key `threshold`"),
            (json!({"name": "a b"}), Some("name"), "letters"),
            (json!({"task": "none"}), Some("task"), "one of flows"),
            (
                json!({"metric": "elements"}),
                Some("metric"),
                "one of packets, bytes, total.packets, total.bytes, total.rows",
            ),
            (json!({"metric": "last_seen"}), Some("metric"), "one of packets, bytes"),
            (json!({"comparison": "=>"}), Some("comparison"), "one of > >= < <= == !="),
            (json!({"threshold": -1}), Some("threshold"), "whole number"),
            (json!({"threshold": 1.5}), Some("threshold"), "whole number"),
            (json!({"threshold": "1kB"}), Some("threshold"), "whole number"),
            (json!({"metric": "bytes", "threshold": "1 kB"}), Some("threshold"), "no size"),
            (json!({"metric": "bytes", "threshold": true}), Some("threshold"), "512MiB"),
            (
                json!({"match": {"src_ip": "10.0.0.0/33"}}),
                Some("match"),
                "src_ip: `10.0.0.0/33` is no network",
            ),
            (json!({"match": {"src_ip": "10.0.0.1/8"}}), Some("match"), "write 10.0.0.0/8"),
            (json!({"match": {"src_ip": 10}}), Some("match"), "no network"),
            (json!({"match": {"dst_port": 65536}}), Some("match"), "0 to 65535"),
            (json!({"match": {"dst_ip": "10.0.0.1"}}), Some("match"), "one of src_ip, dst_port"),
            (json!({"match": 443}), Some("match"), "expected a map"),
            (json!({"for": 0}), Some("for"), "1 to 100000"),
            (json!({"for": "3"}), Some("for"), "u64"),
        ] {
            let error = read(&task, keys.clone()).err().unwrap_or_else(|| panic!("accepted: {keys}"));
            assert_eq!(error.key.as_deref(), key, "{keys}: {error}");
            assert!(error.message.contains(says), "{keys}: {error}");
        }
    }
}
