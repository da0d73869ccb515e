//! Snapshots in ClickHouse, over its HTTP interface: a table `<task>_rows` and a view `<task>` for each task, and the table
//! `snapshots`, a row of which makes a task's snapshot of a window visible.
//!
//! Every try to write a snapshot has an identity of its own, which all of its rows bear. Only when the server has taken
//! all of them does one insert name that identity in `snapshots`, for all tasks and windows at once; for each task and
//! window the latest identity counts, and the views show no others. So a try that fails half-way is never seen, a
//! snapshot that is written twice is seen once, and a revision takes the place of what it revises in one step. What
//! nobody sees is deleted once it is an hour old.

use super::bounded::{self, cut};
use super::columns::{Addresses, arrays, columns, time, time_type};
use super::delivery::Destination;
use super::outbox::{Entry, Schemas};
use super::registry::{Opening, SERVER_AWAY, Target, WriterKind, check_names};
use super::text::window_name;
use super::{SinkError, TaskRows};
use crate::bus::{chain, with_way_out};
use crate::capture::live;
use crate::options::{OwnOptions, Secret};
use crate::{debug, warn};
use arrow_array::{ArrayRef, RecordBatch, TimestampNanosecondArray, UInt32Array, UInt64Array};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field as Column};
use axum::http::Uri;
use clickhouse::Client;
use clickhouse::error::Error;
use dataflows::aggregator::OptionsError;
use dataflows::key::KeyColumn;
use dataflows::rows::{Row, Schema, Snapshot};
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Inserts at a time.
const PARALLEL: usize = 4;
/// Rows that are made columns at once.
const CHUNK_ROWS: usize = 1 << 16;
/// Rows from which on a task's rows are inserted in several parts at a time.
const MANY_ROWS: usize = 1 << 17;
/// How long the server may take nothing of an insert.
const SEND: Duration = Duration::from_secs(30);
/// How long it may think about one, or about a query.
const ANSWER: Duration = Duration::from_secs(120);
/// How long it is waited for at the start: one that takes and does not answer holds up nothing else.
const SOON: Duration = Duration::from_secs(5);
/// How long what nobody sees is kept, and how often it is looked for.
const UNSEEN: Duration = Duration::from_secs(3600);
/// Columns of `snapshots`, of which the latest identity of a task and window counts.
const SNAPSHOTS: &str = "task LowCardinality(String), window String, \
    window_start DateTime64(9, 'UTC'), window_end DateTime64(9, 'UTC'), revision UInt32, snapshot_id UInt64, \
    rows UInt64, packets UInt64, bytes UInt64, written_at DateTime64(3, 'UTC')";

/// Longest time that rows can be kept for: 50 years. After that ClickHouse runs out of time.
const MOST_KEEP: Duration = Duration::from_secs(18_250 * 86_400);

pub(super) const KIND: WriterKind = WriterKind {
    name: "clickhouse",
    keys: &["url", "database", "user", "password", "password_file", "keep"],
    read,
};

/// What the configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://host:8123` or `https://host:8443`, without a user.
    pub url: String,
    /// Letters, digits and `_`.
    pub database: String,
    /// The user.
    pub user: String,
    /// Their password; empty for none.
    pub password: Secret,
    /// How long rows are kept, in event time; for ever without.
    pub keep: Option<Duration>,
}

fn read(options: &OwnOptions) -> Result<Arc<dyn Target>, OptionsError> {
    let url = options.text("url")?;
    check_url(&url).map_err(|why| options.refuse("url", why))?;
    let database = options.text_or("database", "netspectra")?;
    let allowed = |character: char| character.is_ascii_alphanumeric() || character == '_';
    if database.is_empty() || !database.chars().all(allowed) {
        let why = format!("database `{database}`: use letters, digits and `_`");
        return Err(options.refuse("database", why));
    }
    let password = options.secret("password")?.unwrap_or_default();
    let keep = options.duration("keep")?;
    if keep.is_some_and(|keep| keep > MOST_KEEP) {
        return Err(options.refuse("keep", "keep: at most 18250d; leave it out for ever"));
    }
    let user = options.text_or("user", "default")?;
    Ok(Arc::new(Settings { url, database, user, password, keep }))
}

fn check_url(url: &str) -> Result<(), &'static str> {
    let url = url.parse::<Uri>().ok().filter(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
    });
    let Some(url) = url else { return Err("`url` must be http://host:8123 or https://host:8443") };
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("no user and password in `url`; they have keys of their own");
    }
    if url.query().is_some() {
        return Err("`url` must end before its `?`");
    }
    Ok(())
}

impl Settings {
    fn client(&self, opening: &Opening<'_>) -> Result<ClickHouse, SinkError> {
        ClickHouse::new(self.clone(), opening.tasks.clone()).map_err(opening.no_threads())
    }
}

impl Target for Settings {
    fn describe(&self) -> String {
        format!("{} database {}", self.url, self.database)
    }

    fn options(&self) -> Value {
        let Self { url, database, user, password, keep } = self;
        let keep = keep.map(|keep| format!("{keep:?}"));
        json!({"url": url, "database": database, "user": user, "password": password, "keep": keep})
    }

    fn check(&self, opening: &Opening<'_>) -> Result<(), SinkError> {
        self.client(opening)?.check()
    }

    fn open(&self, opening: &Opening<'_>) -> Result<Box<dyn Destination>, SinkError> {
        let mut writer = self.client(opening)?;
        opening.unless_wrong(writer.set_up(Some(SOON)))?;
        Ok(Box::new(writer))
    }

    fn check_tasks(&self, tasks: &[Arc<str>]) -> Result<(), OptionsError> {
        check_names((KIND.name, "tables"), (&["snapshots"], &["", "_rows"]), tasks)
    }

    fn gives_up_after(&self) -> Duration {
        SERVER_AWAY
    }
}

/// A ClickHouse server.
pub struct ClickHouse {
    settings: Settings,
    client: Client,
    runtime: Runtime,
    tables: Vec<(Arc<str>, Arc<Schema>)>,
    is_set_up: bool,
    last_id: u64,
    cleaned: Option<Instant>,
}

impl ClickHouse {
    /// A writer of these tasks; asks nothing of the server yet.
    pub fn new(settings: Settings, tasks: Schemas) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        // A connection is for one request: its limit is that of an answer.
        let http =
            HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(bounded::connector()?);
        let client = Client::with_http_client(http)
            .with_url(&settings.url)
            .with_user(&settings.user)
            .with_password(settings.password.reveal())
            .with_product_info("netspectra", env!("CARGO_PKG_VERSION"))
            // A balancer, or a server that takes one connection at a time, is not kept waiting by one that idles.
            .with_header("Connection", "close")
            // What is said to be written is written; a window may be of any month.
            .with_setting("async_insert", "0")
            .with_setting("max_partitions_per_insert_block", "0");
        Ok(Self { settings, client, runtime, tables: tasks, is_set_up: false, last_id: 0, cleaned: None })
    }

    /// Makes what is missing on the server, and checks what is there, within this time where one is given.
    pub fn set_up(&mut self, most: Option<Duration>) -> Result<(), SinkError> {
        if self.is_set_up {
            return Ok(());
        }
        let setup = Setup { settings: &self.settings, client: &self.client };
        let run = setup.run(&self.tables);
        debug!("setting up ClickHouse at {} as user `{}`", self.settings.url, self.settings.user);
        let done = self.runtime.block_on(async {
            match most {
                Some(most) => tokio::time::timeout(most, run).await.ok(),
                None => Some(run.await),
            }
        });
        let last = done.unwrap_or_else(|| Err(setup.failed("set it up", &Error::TimedOut)))?;
        self.last_id = self.last_id.max(last);
        self.is_set_up = true;
        Ok(())
    }

    /// Asks the server whether all could be set up, and changes nothing.
    pub fn check(&self) -> Result<(), SinkError> {
        let setup = Setup { settings: &self.settings, client: &self.client };
        self.runtime.block_on(async {
            setup.identify().await?;
            match setup.has_database().await? {
                true => setup.check_tables(&self.tables).await,
                false => Ok(()),
            }
        })
    }

    fn next_id(&mut self) -> u64 {
        self.last_id = live::now().max(self.last_id + 1);
        self.last_id
    }

    fn try_write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError> {
        self.set_up(None)?;
        // Of several revisions of a window the last is seen.
        let snapshots = entries.iter().flat_map(|entry| &entry.snapshots);
        let latest: BTreeMap<_, _> = snapshots.map(|snapshot| (snapshot.window, snapshot)).collect();
        let snapshots: Vec<(u64, Arc<Snapshot>)> =
            latest.into_values().map(|snapshot| (self.next_id(), snapshot.clone())).collect();
        if snapshots.is_empty() {
            return Ok(());
        }
        let setup = Setup { settings: &self.settings, client: &self.client };
        self.runtime.block_on(async {
            let inserts = parts(&snapshots).into_iter().map(|part| {
                let sql = setup.insert_sql(&part);
                let client = self.client.clone();
                async move {
                    let inserted = tokio::spawn(async move { part.insert(client, sql).await });
                    inserted.await.unwrap_or_else(|error| Err(Error::Other(error.into())))
                }
            });
            let inserted: Result<(), Error> =
                stream::iter(inserts).buffer_unordered(PARALLEL).try_collect().await;
            inserted.map_err(|error| setup.failed("insert rows", &error))?;
            setup.execute("commit a window", &setup.commit_sql(&snapshots)).await
        })
    }

    /// Deletes what nobody sees any more.
    fn clean(&mut self) -> Result<(), SinkError> {
        if self.cleaned.is_some_and(|cleaned| cleaned.elapsed() < UNSEEN) {
            return Ok(());
        }
        self.cleaned = Some(Instant::now());
        let setup = Setup { settings: &self.settings, client: &self.client };
        let before = live::now().saturating_sub(u64::try_from(UNSEEN.as_nanos()).unwrap_or(u64::MAX));
        self.runtime.block_on(async {
            for (task, _) in &self.tables {
                let (table, seen) = (setup.table(&format!("{task}_rows")), setup.seen(task));
                let unseen = format!("snapshot_id < {before} AND snapshot_id NOT IN ({seen})");
                let any = setup.text(&format!("SELECT count() > 0 FROM {table} WHERE {unseen}")).await?;
                if any == "1" {
                    setup.execute("delete old rows", &format!("DELETE FROM {table} WHERE {unseen}")).await?;
                }
            }
            Ok(())
        })
    }
}

impl Destination for ClickHouse {
    fn write(&mut self, entries: &[Arc<Entry>]) -> Result<(), SinkError> {
        if let Err(error) = self.try_write(entries) {
            // Somebody may have dropped a table.
            self.is_set_up = false;
            return Err(error);
        }
        if let Err(error) = self.clean() {
            warn!("{error}; unused rows remain in the table; no view shows them");
        }
        Ok(())
    }
}

/// What is asked of a server beside inserts.
struct Setup<'a> {
    settings: &'a Settings,
    client: &'a Client,
}

impl Setup<'_> {
    fn table(&self, name: &str) -> String {
        format!("`{}`.`{name}`", self.settings.database)
    }

    /// The identities of a task's snapshots that count.
    fn seen(&self, task: &str) -> String {
        format!("SELECT snapshot_id FROM {} FINAL WHERE task = '{task}'", self.table("snapshots"))
    }

    fn failed(&self, action: &str, error: &Error) -> SinkError {
        let text = match error {
            Error::BadResponse(text) => text.trim().to_owned(),
            error => with_way_out(chain(error), "add that CA to the system's trust store"),
        };
        let code = text.strip_prefix("Code: ").and_then(|code| code.split_once('.')?.0.parse::<u32>().ok());
        let Settings { url, user, database, .. } = self.settings;
        let (way_out, is_usage) = match code {
            Some(192 | 193 | 194 | 516) => (format!("; user `{user}` or its password is wrong"), true),
            Some(291 | 497) => {
                let rights = "CREATE DATABASE, CREATE TABLE, CREATE VIEW, SELECT, INSERT, ALTER DELETE";
                (format!("; user `{user}` may not: GRANT {rights} ON `{database}`.* TO `{user}`"), true)
            }
            _ => (String::new(), false),
        };
        let (server, text) = (format!("ClickHouse at {url}"), cut(&text));
        SinkError::Server { server, why: format!("cannot {action}: {text}{way_out}"), is_usage }
    }

    async fn execute(&self, action: &str, sql: &str) -> Result<(), SinkError> {
        let asked = tokio::time::timeout(ANSWER, self.client.query_raw(sql).execute());
        let done = asked.await.unwrap_or(Err(Error::TimedOut));
        done.map_err(|error| self.failed(action, &error))
    }

    /// An answer of text, without its last end of line.
    async fn text(&self, sql: &str) -> Result<String, SinkError> {
        let asked = async {
            let mut answer = self.client.query_raw(sql).fetch_bytes("TabSeparatedRaw")?;
            answer.collect().await
        };
        let answer = tokio::time::timeout(ANSWER, asked).await.unwrap_or(Err(Error::TimedOut));
        let answer = answer.map_err(|error| self.failed("ask it", &error))?;
        Ok(String::from_utf8_lossy(&answer).trim_end_matches('\n').to_owned())
    }

    /// Asks a question whose answer is known: a status of 200 alone is what any web server says.
    async fn identify(&self) -> Result<(), SinkError> {
        let answer = self.text("SELECT concat('ClickHouse ', toString(6 * 7))").await?;
        if answer == "ClickHouse 42" {
            return Ok(());
        }
        let said: String = answer.chars().filter(|character| !character.is_control()).take(60).collect();
        Err(SinkError::Server {
            server: format!("ClickHouse at {}", self.settings.url),
            why: format!(
                "not ClickHouse: it answered a test query with `{said}`; `url` must be that of its HTTP interface, such \
                 as http://host:8123"
            ),
            is_usage: true,
        })
    }

    async fn has_database(&self) -> Result<bool, SinkError> {
        let sql = format!("SELECT count() FROM system.databases WHERE name = '{}'", self.settings.database);
        Ok(self.text(&sql).await? == "1")
    }

    /// Makes what is missing and gives the latest identity.
    async fn run(&self, tasks: &Schemas) -> Result<u64, SinkError> {
        let database = &self.settings.database;
        self.identify().await?;
        if !self.has_database().await? {
            let sql = format!("CREATE DATABASE IF NOT EXISTS `{database}`");
            self.execute(&format!("create database `{database}`"), &sql).await?;
        }
        self.check_tables(tasks).await?;
        // The window of everything has no time; and a time of ClickHouse's ends in 2106.
        let dated =
            "window_end > window_start AND window_start < toDateTime64('2050-01-01 00:00:00', 9, 'UTC')";
        let keep = self.settings.keep.map(|keep| {
            let seconds = keep.as_secs().max(1);
            format!(" TTL toDateTime(window_start) + toIntervalSecond({seconds}) DELETE WHERE {dated}")
        });
        let keep = keep.unwrap_or_default();
        let create = |name: &str, columns: &str, rest: &str| {
            format!("CREATE TABLE IF NOT EXISTS {} ({columns}) {rest}{keep}", self.table(name))
        };
        let rest = "ENGINE = ReplacingMergeTree(snapshot_id) ORDER BY (task, window)";
        self.execute("create table `snapshots`", &create("snapshots", SNAPSHOTS, rest)).await?;
        for (task, schema) in tasks {
            let keys: Vec<_> = schema.key.columns().iter().map(KeyColumn::name).collect();
            let columns = table_columns(schema);
            let addresses = columns.iter().filter(|(_, kind, _)| *kind == "IPv6");
            let indexes = addresses
                .map(|(name, ..)| format!("INDEX {name}_index {name} TYPE bloom_filter(0.01) GRANULARITY 4"));
            let parts = columns.iter().map(|(name, kind, codec)| format!("{name} {kind} {codec}"));
            let parts: Vec<String> = parts.chain(indexes).collect();
            let rest = format!(
                "ENGINE = ReplacingMergeTree PARTITION BY toYYYYMM(window_start) \
                 ORDER BY (window_start, {}, snapshot_id)",
                keys.join(", ")
            );
            let name = format!("{task}_rows");
            let sql = create(&name, &parts.join(", "), &rest);
            self.execute(&format!("create table `{name}`"), &sql).await?;
            let shown: Vec<&str> =
                ["window_start", "window_end", "revision"].into_iter().chain(schema.columns()).collect();
            let sql = format!(
                "CREATE VIEW IF NOT EXISTS {} AS SELECT {} FROM {} WHERE snapshot_id IN ({})",
                self.table(task),
                shown.join(", "),
                self.table(&name),
                self.seen(task)
            );
            self.execute(&format!("create view `{task}`"), &sql).await?;
        }
        let last = self.text(&format!("SELECT max(snapshot_id) FROM {}", self.table("snapshots"))).await?;
        Ok(last.parse().unwrap_or(0))
    }

    /// Holds the tables that are there against what they have to be.
    async fn check_tables(&self, tasks: &Schemas) -> Result<(), SinkError> {
        let database = &self.settings.database;
        let sql = format!(
            "SELECT table, name, type FROM system.columns WHERE database = '{database}' ORDER BY table, position"
        );
        let answer = self.text(&sql).await?;
        let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for line in answer.lines() {
            if let Some((table, column)) = line.split_once('\t') {
                found.entry(table).or_default().push(column.replace('\t', " "));
            }
        }
        let sql = format!("SELECT name FROM system.tables WHERE database = '{database}' AND engine = 'View'");
        let views = self.text(&sql).await?;
        let refuse = |why: String| {
            let server = format!("ClickHouse at {}", self.settings.url);
            SinkError::Server { server, why: cut(&why), is_usage: true }
        };
        for (task, schema) in tasks {
            if found.contains_key(&**task) && !views.lines().any(|view| *view == **task) {
                let what = "is there and no view; use another database, or rename the task";
                return Err(refuse(format!("table {} {what}", self.table(task))));
            }
            let Some(theirs) = found.get(&*format!("{task}_rows")) else { continue };
            let ours: Vec<String> =
                table_columns(schema).into_iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
            if *theirs != ours {
                let differ = theirs.iter().zip(&ours).find(|(theirs, ours)| theirs != ours);
                let differ = differ.map_or_else(
                    || format!("has {} columns; the task `{task}` has {}", theirs.len(), ours.len()),
                    |(theirs, ours)| format!("has the column `{theirs}`; the task `{task}` has `{ours}`"),
                );
                let way_out = "rename the task, use another database, or drop the table and the view";
                return Err(refuse(format!(
                    "table {} {differ}: {way_out}",
                    self.table(&format!("{task}_rows"))
                )));
            }
        }
        Ok(())
    }

    fn insert_sql(&self, part: &Part) -> String {
        let table = self.table(&format!("{}_rows", part.name));
        let columns: Vec<_> = table_columns(&part.schema).into_iter().map(|(name, ..)| name).collect();
        format!("INSERT INTO {table} ({}) FORMAT ArrowStream", columns.join(", "))
    }

    /// Makes snapshots visible, all at once: the table is in one part for an insert of one block.
    fn commit_sql(&self, snapshots: &[(u64, Arc<Snapshot>)]) -> String {
        let mut rows = Vec::new();
        for (id, snapshot) in snapshots {
            let (start, end) = span(snapshot);
            let (window, revision) = (window_name(snapshot.span), snapshot.revision);
            for task in &snapshot.tasks {
                let (name, packets, bytes) = (&task.name, task.total("packets"), task.total("bytes"));
                rows.push(format!(
                    "('{name}', '{window}', fromUnixTimestamp64Nano(toInt64({start}), 'UTC'), \
                     fromUnixTimestamp64Nano(toInt64({end}), 'UTC'), {revision}, {id}, {}, {packets}, {bytes}, now64(3, 'UTC'))",
                    task.len()
                ));
            }
        }
        format!("INSERT INTO {} VALUES {}", self.table("snapshots"), rows.join(", "))
    }
}

/// First and last nanosecond of a window; that of everything has none.
fn span(snapshot: &Snapshot) -> (i64, i64) {
    snapshot.span.map_or((0, 0), |(start, end)| (time(start), time(end)))
}

/// The columns of a task's table: name, type and codec.
fn table_columns(schema: &Schema) -> Vec<(&'static str, &'static str, &'static str)> {
    let before = [
        ("snapshot_id", "UInt64", "CODEC(Delta, ZSTD(1))"),
        ("window_start", "DateTime64(9, 'UTC')", "CODEC(Delta, ZSTD(1))"),
        ("window_end", "DateTime64(9, 'UTC')", "CODEC(Delta, ZSTD(1))"),
        ("revision", "UInt32", "CODEC(Delta, ZSTD(1))"),
    ];
    let own = columns(schema, Addresses::Binary).into_iter().zip(schema.columns()).map(|(column, name)| {
        let (kind, codec) = match column.data_type() {
            DataType::FixedSizeBinary(_) => ("IPv6", "CODEC(ZSTD(1))"),
            DataType::Utf8 => ("String", "CODEC(ZSTD(1))"),
            DataType::UInt8 => ("UInt8", "CODEC(ZSTD(1))"),
            DataType::UInt16 => ("UInt16", "CODEC(ZSTD(1))"),
            kind if *kind == time_type() => ("DateTime64(9, 'UTC')", "CODEC(Delta, ZSTD(1))"),
            _ => ("UInt64", "CODEC(T64, ZSTD(1))"),
        };
        (name, kind, codec)
    });
    before.into_iter().chain(own).collect()
}

/// Rows that one insert takes: of one task, of some workers, of all windows that are written.
struct Part {
    name: Arc<str>,
    schema: Arc<Schema>,
    runs: Vec<Runs>,
}

/// Some of a task's runs in a snapshot.
#[derive(Clone)]
struct Runs {
    /// The snapshot's identity.
    id: u64,
    snapshot: Arc<Snapshot>,
    /// Number of the task in it.
    task: usize,
    /// Numbers of the runs.
    numbers: Vec<usize>,
}

impl Runs {
    fn task(&self) -> &TaskRows {
        &self.snapshot.tasks[self.task]
    }
}

/// Cuts what is to be inserted: of a large task the runs of several workers go at a time.
fn parts(snapshots: &[(u64, Arc<Snapshot>)]) -> Vec<Part> {
    let mut tasks: BTreeMap<&str, Vec<Runs>> = BTreeMap::new();
    for (id, snapshot) in snapshots {
        for (task, rows) in snapshot.tasks.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let numbers = (0..rows.runs.len()).collect();
            let runs = Runs { id: *id, snapshot: snapshot.clone(), task, numbers };
            tasks.entry(&rows.name).or_default().push(runs);
        }
    }
    let mut parts = Vec::new();
    for all in tasks.into_values() {
        let TaskRows { name, schema, .. } = all[0].task().clone();
        let rows: usize = all.iter().map(|runs| runs.task().len()).sum();
        let shards = if rows >= MANY_ROWS { PARALLEL } else { 1 };
        for shard in 0..shards {
            let mut runs = all.clone();
            runs.iter_mut().for_each(|runs| runs.numbers.retain(|number| number % shards == shard));
            runs.retain(|runs| !runs.numbers.is_empty());
            if !runs.is_empty() {
                parts.push(Part { name: name.clone(), schema: schema.clone(), runs });
            }
        }
    }
    parts
}

impl Part {
    async fn insert(self, client: Client, sql: String) -> Result<(), Error> {
        let other = |error: ArrowError| Error::Other(error.into());
        let before = [
            Column::new("snapshot_id", DataType::UInt64, false),
            Column::new("window_start", time_type(), false),
            Column::new("window_end", time_type(), false),
            Column::new("revision", DataType::UInt32, false),
        ];
        let all = before.into_iter().chain(columns(&self.schema, Addresses::Binary));
        let all = Arc::new(arrow_schema::Schema::new(all.collect::<Vec<_>>()));
        let mut stream = StreamWriter::try_new(Vec::new(), &all).map_err(other)?;
        let mut insert = client.insert_formatted_with(sql).with_timeouts(Some(SEND), Some(ANSWER));
        for runs in &self.runs {
            let (start, end) = span(&runs.snapshot);
            for number in &runs.numbers {
                let rows: Vec<Row<'_>> = runs.task().run_rows(*number).collect();
                for rows in rows.chunks(CHUNK_ROWS) {
                    let many = rows.len();
                    let time = |time| -> ArrayRef {
                        Arc::new(TimestampNanosecondArray::from_value(time, many).with_timezone("UTC"))
                    };
                    let before: [ArrayRef; 4] = [
                        Arc::new(UInt64Array::from_value(runs.id, many)),
                        time(start),
                        time(end),
                        Arc::new(UInt32Array::from_value(runs.snapshot.revision, many)),
                    ];
                    let own = arrays(&self.schema, Addresses::Binary, rows);
                    let batch = before.into_iter().chain(own).collect();
                    let batch = RecordBatch::try_new(all.clone(), batch).map_err(other)?;
                    stream.write(&batch).map_err(other)?;
                    insert.send(std::mem::take(stream.get_mut()).into()).await?;
                }
            }
        }
        stream.finish().map_err(other)?;
        insert.send(std::mem::take(stream.get_mut()).into()).await?;
        insert.end().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    /// Bytes that the server has ready.
    const MANY: usize = 64 << 20;

    /// A server that answers one request with this head and [`MANY`] bytes, and says how many were taken.
    fn endless(head: &'static str) -> (String, thread::JoinHandle<usize>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let serve = move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") {
                connection.read_exact(&mut byte).expect("a request");
                request.push(byte[0]);
            }
            connection.write_all(head.as_bytes()).expect("sent");
            let piece = [b'x'; 1 << 16];
            let sent = (0..MANY / piece.len()).take_while(|_| connection.write_all(&piece).is_ok());
            sent.count() * piece.len()
        };
        (url, thread::spawn(serve))
    }

    /// An answer of 4 GB took 15.7 GB of memory, and all of it went to the log.
    #[test]
    fn an_answer_without_end_is_not_read_to_its_end_nor_told_whole() {
        for (head, says) in [
            ("HTTP/1.1 200 OK\r\n\r\n", "longer than 8388608 bytes"),
            ("HTTP/1.1 500 Internal Server Error\r\n\r\n", "500 Internal Server Error"),
        ] {
            let (url, server) = endless(head);
            let (database, user) = ("netspectra".into(), "default".into());
            let settings = Settings { url, database, user, password: Secret::default(), keep: None };
            let error = ClickHouse::new(settings, Vec::new()).expect("a client").check();
            let error = error.expect_err("no answer").to_string();
            assert!(error.contains(says) && error.len() < 2000, "{} bytes: {error:.2000}", error.len());
            let sent = server.join().expect("no panic");
            assert!(sent < MANY / 2, "{sent} bytes were taken");
        }
    }
}
