//! What can be asked, and the answers: JSON, or an error in JSON with its reason.
//!
//! A request is let in by `guard`, its parameters are read strictly (one that is unknown or given twice is refused), and
//! work that grows with a table is done aside, so that health is told whatever else is asked. An answer holds no more
//! rows than were asked for, and no more than there may be.

use super::connections::{MAX_CONNECTIONS, Visit};
use super::{View, metrics, stopped};
use crate::alerts::rule::{Conditions, NoCondition};
use crate::http::recent::{Told, WindowName};
use crate::sinks::text::{Text, rfc3339, window_name};
use crate::trace;
use axum::body::{Body, HttpBody};
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use dataflows::field::Kind;
use dataflows::key::KeyValue;
use dataflows::rows::{Row, Schema, Snapshot, TaskRows, ValueKind};
use futures_util::stream;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Bytes of a path with its parameters.
const MOST_URI: usize = 8192;
/// Requests at once.
const REQUESTS: usize = 64;
/// Listeners at once.
const LISTENERS: usize = 16;
/// How often a listener hears that nothing has happened.
const QUIET: Duration = Duration::from_secs(15);
/// Windows or alerts of an answer.
const ENTRIES: RangeInclusive<usize> = 1..=1000;
/// Rows of an answer.
const ROWS: RangeInclusive<usize> = 1..=10_000;
/// Entries or rows where no number is asked for.
const FEW: usize = 100;
/// Conditions of a filter.
const CONDITIONS: usize = 16;
/// Characters of a column's name.
const COLUMN: usize = 64;
/// What these paths are, for who asks and for tools.
const OPENAPI: &str = include_str!("openapi.json");

/// All that answers are made of.
struct Site {
    view: Arc<dyn View>,
    access: Access,
    openapi: Vec<u8>,
    requests: Arc<Semaphore>,
    listeners: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// A request's place among those at once; kept until all that is done for it is done.
type Place = Arc<OwnedSemaphorePermit>;
type Answer = Result<Response, Refusal>;

/// Who is answered.
pub(super) struct Access {
    /// The digest of what every request has to know.
    token: Option<[u8; 32]>,
    /// Whether only this machine reaches the server. Then a name in `Host` that is not this machine's is that of a page
    /// in a browser here whose name was pointed at this address (DNS rebinding).
    is_loopback: bool,
}

impl Access {
    /// Those who know the token, if there is one; `address` is where the server listens.
    pub(super) fn new(token: Option<&str>, address: SocketAddr) -> Self {
        let token = token.filter(|token| !token.is_empty()).map(|token| digest(token.as_bytes()));
        Self { token, is_loopback: address.ip().to_canonical().is_loopback() }
    }

    /// Refuses a request for another host, and one without the token.
    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        let hosts = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
        let mut hosts = hosts.chain(uri.authority().map(|authority| authority.as_str().as_bytes()));
        let foreign = hosts.find(|host| self.is_loopback && !is_this_machine(host));
        if let Some(host) = foreign {
            let host = String::from_utf8_lossy(&host[..host.len().min(64)]);
            let why = format!(
                "Host `{host}` is not a loopback name; this server answers only requests to localhost or 127.0.0.1"
            );
            return Err(Refusal::new(StatusCode::MISDIRECTED_REQUEST, why));
        }
        if !self.token.as_ref().is_none_or(|token| is_token(token, headers)) {
            let why =
                "this needs the header `Authorization: Bearer TOKEN` with the token of the configuration";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, why));
        }
        Ok(())
    }
}

/// Whether a `Host`, with a port or without, is `localhost` or a loopback address.
fn is_this_machine(host: &[u8]) -> bool {
    let Ok(host) = str::from_utf8(host) else { return false };
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return false;
    }
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse::<Ipv6Addr>().is_ok_and(|address| address.to_canonical().is_loopback()),
        None => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

/// All paths, for those who have access; streams end when `stopping` says so.
pub(super) fn router(view: Arc<dyn View>, access: Access, stopping: watch::Receiver<bool>) -> Router {
    let site = Arc::new(Site {
        view,
        openapi: openapi(access.token.is_some()),
        access,
        requests: Arc::new(Semaphore::new(REQUESTS)),
        listeners: Arc::new(Semaphore::new(LISTENERS)),
        stopping,
    });
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(numbers))
        .route("/openapi.json", get(description))
        .route("/api/v1/tasks", get(tasks))
        .route("/api/v1/windows", get(windows))
        .route("/api/v1/windows/{window}/{task}", get(rows))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/events", get(events))
        .method_not_allowed_fallback(no_such_method)
        .fallback(no_such_path)
        .layer(from_fn_with_state(site.clone(), guard))
        .with_state(site)
}

/// The description of all paths for this version, and whether a token is wanted.
fn openapi(has_token: bool) -> Vec<u8> {
    let mut description: Value = serde_json::from_str(OPENAPI).expect("the description is JSON");
    description["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    if has_token {
        description["security"] = json!([{"bearer": []}]);
    }
    description.to_string().into_bytes()
}

/// Why there is no other answer.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    why: String,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    fn bad(why: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, why)
    }

    fn missing(why: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, why)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({"error": self.why}))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let headers = response.headers_mut();
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            // Who has no token keeps no connection.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Lets a request in or refuses it, and tells its connection when it begins and when the answer is there.
async fn guard(
    State(site): State<Arc<Site>>,
    ConnectInfo(visit): ConnectInfo<Visit>,
    mut request: Request,
    next: Next,
) -> Response {
    visit.asked();
    let asked = (request.method().clone(), request.uri().path().to_owned());
    let admitted = site.admit(&request, &visit);
    let mut response = match admitted {
        Ok(place) => {
            request.extensions_mut().insert(place);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    trace!("http: {} {}: {}", asked.0, asked.1, response.status());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if visit.is_reserved() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    visit.answered(response.body().size_hint().exact().is_none());
    response
}

impl Site {
    /// A place for the request; who asks for health needs none.
    fn admit(&self, request: &Request<Body>, visit: &Visit) -> Result<Option<Place>, Refusal> {
        let uri = request.uri();
        self.access.check(uri, request.headers())?;
        if uri.path_and_query().map_or(0, |uri| uri.as_str().len()) > MOST_URI {
            let why = format!("the path and its parameters are longer than {MOST_URI} bytes");
            return Err(Refusal::new(StatusCode::URI_TOO_LONG, why));
        }
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if reads && !request.body().is_end_stream() {
            return Err(Refusal::bad("nothing is read here but the path and its parameters; send no body"));
        }
        if matches!(uri.path(), "/healthz" | "/readyz") {
            return Ok(None);
        }
        if visit.is_reserved() {
            let why = format!("{MAX_CONNECTIONS} connections are being answered; ask again later");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        let place = self.requests.clone().try_acquire_owned().map_err(|_| {
            let why = format!("{REQUESTS} requests are being answered; ask again later");
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
        })?;
        Ok(Some(Arc::new(place)))
    }
}

fn digest(text: &[u8]) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// Whether the request has the token of this digest; takes as long whatever is wrong about it.
fn is_token(token: &[u8; 32], headers: &HeaderMap) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
    let Some((scheme, given)) = given else { return false };
    let differing = digest(given).iter().zip(token).fold(0, |bits, (left, right)| bits | (left ^ right));
    scheme.eq_ignore_ascii_case(b"Bearer ") && std::hint::black_box(differing) == 0
}

async fn no_such_path() -> Refusal {
    Refusal::missing("there is no such path; /openapi.json names them all")
}

async fn no_such_method() -> Response {
    let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this can only be read: use GET");
    ([(ALLOW, "GET,HEAD")], refusal).into_response()
}

/// Does what may take long away from the thread that answers.
async fn aside<T: Send + 'static>(
    place: Option<Place>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(move || {
        // It is not free before this is done, even if nobody waits for the answer any more.
        let _place = place;
        work()
    });
    done.await.map_err(|_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "this could not be answered"))
}

/// JSON that is written already.
fn written(body: impl Into<Body>) -> Response {
    let body: Body = body.into();
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// Parameters that may be given several times: all of them hold.
const REPEATED: &[&str] = &["filter"];

/// The parameters of a request, all of them known and each given once but for those of [`REPEATED`].
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(uri: &Uri, known: &[&str]) -> Result<Self, Refusal> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Refusal::bad(format!("the parameters cannot be read: {error}")))?;
        for (at, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let known = match known {
                    [] => "this path has none".to_owned(),
                    known => format!("known are {}", known.join(", ")),
                };
                return Err(Refusal::bad(format!("unknown parameter `{name}`; {known}")));
            }
            if !REPEATED.contains(&name.as_str()) && pairs[..at].iter().any(|(earlier, _)| earlier == name) {
                return Err(Refusal::bad(format!("parameter `{name}` is given twice")));
            }
        }
        Ok(Self(pairs))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn limit(&self, allowed: &RangeInclusive<usize>) -> Result<usize, Refusal> {
        let Some(text) = self.get("limit") else { return Ok(FEW) };
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| is_number && allowed.contains(number));
        number.ok_or_else(|| {
            let (least, most) = (allowed.start(), allowed.end());
            Refusal::bad(format!("limit: `{text}` is no number from {least} to {most}"))
        })
    }
}

async fn healthz(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    Ok(match site.view.health().failed {
        None => Json(json!({"status": "ok"})).into_response(),
        Some(why) => {
            let failed = Json(json!({"status": "failed", "why": why}));
            (StatusCode::SERVICE_UNAVAILABLE, failed).into_response()
        }
    })
}

async fn readyz(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    let health = site.view.health();
    let mut reasons: Vec<String> = health.failed.into_iter().chain(health.reasons).collect();
    let is_ready = reasons.is_empty();
    // An engine is not taken out of service because the clock of somebody else is wrong.
    reasons.extend(health.remarks);
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({"ready": is_ready, "reasons": reasons}))).into_response())
}

async fn numbers(
    State(site): State<Arc<Site>>,
    uri: Uri,
    Extension(place): Extension<Option<Place>>,
) -> Answer {
    Parameters::read(&uri, &[])?;
    let text = aside(place, move || metrics::text(&*site.view)).await?;
    let text = text.map_err(|error| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the metrics cannot be written: {error}"))
    })?;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

async fn description(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    Ok(written(site.openapi.clone()))
}

async fn tasks(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    let task = |(name, schema): &(Arc<str>, Arc<Schema>)| {
        let order_by = schema.values.get(schema.order_by).map(|column| column.name);
        json!({"name": &**name, "columns": columns(schema), "order_by": order_by})
    };
    let tasks: Vec<Value> = site.view.tasks().iter().map(task).collect();
    Ok(Json(json!({"tasks": tasks})).into_response())
}

fn columns(schema: &Schema) -> Vec<Value> {
    let keys = schema.key.columns().iter().map(|column| {
        let kind = match column.field.kind {
            Kind::Address if column.is_prefix() => "prefix",
            Kind::Address => "address",
            Kind::Number => "number",
            Kind::Mac => "mac",
            Kind::Text => "text",
        };
        json!({"name": column.name(), "type": kind, "role": "key"})
    });
    let values = schema.values.iter().map(|column| {
        let kind = match column.kind {
            ValueKind::Count => "count",
            ValueKind::Bytes => "bytes",
            ValueKind::Time => "time",
            ValueKind::Number => "number",
        };
        json!({"name": column.name, "type": kind, "role": "value"})
    });
    keys.chain(values).collect()
}

async fn windows(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    let parameters = Parameters::read(&uri, &["limit", "before"])?;
    let limit = parameters.limit(&ENTRIES)?;
    let before = parameters.get("before").map(|text| {
        let why = format!("before: `{text}` is no window; write one as /api/v1/windows has it, or its start as RFC 3339 has it");
        WindowName::read(text).ok_or_else(|| Refusal::bad(why))
    });
    let windows = site.view.recent().windows(before.transpose()?.as_ref(), limit);
    Ok(written(format!("{{\"windows\":[{}]}}", windows.join(","))))
}

async fn alerts(
    State(site): State<Arc<Site>>,
    uri: Uri,
    Extension(place): Extension<Option<Place>>,
) -> Answer {
    let limit = Parameters::read(&uri, &["limit"])?.limit(&ENTRIES)?;
    let answer = aside(place, move || {
        let alerts = site.view.alerts();
        // The engine may know of more than it keeps.
        let active = site.view.measured().active.max(alerts.len() as u64);
        json!({"alerts": &alerts[..alerts.len().min(limit)], "active": active})
    });
    Ok(Json(answer.await?).into_response())
}

/// Which rows of a table are asked for, as far as it can be read without the table.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    limit: usize,
    /// Column, and whether the largest comes first.
    sort: Option<(String, bool)>,
    /// Key columns and what they have to hold.
    filter: Vec<(String, String)>,
}

impl Asked {
    fn read(parameters: &Parameters) -> Result<Self, Refusal> {
        let limit = parameters.limit(&ROWS)?;
        let sort = parameters.get("sort").map(|text| {
            let (column, descends) = match text.strip_prefix('-') {
                Some(column) => (column, true),
                None => (text, false),
            };
            let wrong = || Refusal::bad(format!("sort: `{text}` is no column, nor one with `-` before it"));
            is_column(column).then(|| (column.to_owned(), descends)).ok_or_else(wrong)
        });
        let mut filter = Vec::new();
        for text in parameters.all("filter") {
            filter.extend(read_filter(text)?);
        }
        if filter.len() > CONDITIONS {
            return Err(Refusal::bad(format!("filter: more than {CONDITIONS} conditions")));
        }
        Ok(Self { limit, sort: sort.transpose()?, filter })
    }
}

fn is_column(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=COLUMN).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// Whether it looks like a number, an address or a network.
fn is_operand(text: &str) -> bool {
    let (start, length) = text.split_once('/').map_or((text, None), |(start, length)| (start, Some(length)));
    let is_start = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    (1..=45).contains(&start.len())
        && start.bytes().all(is_start)
        && length.is_none_or(|length| {
            (1..=3).contains(&length.len()) && length.bytes().all(|byte| byte.is_ascii_digit())
        })
}

fn read_filter(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut filter: Vec<(String, String)> = Vec::new();
    for condition in text.split(',') {
        let parts = condition.split_once(':');
        let Some((column, operand)) =
            parts.filter(|(column, operand)| is_column(column) && is_operand(operand))
        else {
            let why = "write column:value with an address, a network or a number";
            return Err(Refusal::bad(format!("filter: `{condition}`: {why}")));
        };
        if filter.iter().any(|(earlier, _)| earlier == column) {
            return Err(Refusal::bad(format!("filter: `{column}` is named twice")));
        }
        filter.push((column.to_owned(), operand.to_owned()));
    }
    Ok(filter)
}

async fn rows(
    State(site): State<Arc<Site>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    Extension(place): Extension<Option<Place>>,
) -> Answer {
    let Ok(Path((name, task))) = path else {
        return Err(Refusal::bad("the path is not UTF-8"));
    };
    let asked = Asked::read(&Parameters::read(&uri, &["limit", "sort", "filter"])?)?;
    let recent = site.view.recent();
    let snapshot = match (&*name, WindowName::read(&name)) {
        ("latest", _) => recent.latest().ok_or_else(|| "no window has been written yet".to_owned()),
        (_, Some(window)) => recent.get(&window).ok_or_else(|| {
            format!(
                "there is no window `{name}` in memory; /api/v1/windows lists those, the writers have all"
            )
        }),
        (_, None) => Err(format!(
            "`{name}` is not a window: write `latest`, `all`, or a start such as 2026-11-22T09-15-00Z or \
             2026-11-22T09:15:00Z"
        )),
    };
    let snapshot = snapshot.map_err(Refusal::missing)?;
    Ok(written(aside(place, move || answer(&snapshot, &task, &asked)).await??))
}

/// The rows of a task that are asked for, as JSON.
fn answer(snapshot: &Snapshot, task: &str, asked: &Asked) -> Result<Vec<u8>, Refusal> {
    let Some(table) = snapshot.tasks.iter().find(|table| *table.name == *task) else {
        let known: Vec<&str> = snapshot.tasks.iter().map(|table| &*table.name).collect();
        return Err(Refusal::missing(format!("there is no task `{task}`; one of {}", known.join(", "))));
    };
    let schema = &table.schema;
    let conditions = conditions(table, &asked.filter)?;
    let order = asked.sort.as_ref().map(|(column, descends)| Order::read(table, column, *descends));
    let wanted = |row: &Row<'_>| conditions.hold(schema, row);
    let (matched, found) = match order.transpose()? {
        None if asked.filter.is_empty() => (table.len(), table.first(asked.limit)),
        None => {
            let matched = table.rows().filter(wanted).count();
            (matched, table.first_where(asked.limit.min(matched), wanted))
        }
        Some(order) => best(table, wanted, order, asked.limit),
    };
    let head = json!({
        "window": window_name(snapshot.span),
        "window_start": snapshot.span.map(|(start, _)| rfc3339(start)),
        "window_end": snapshot.span.map(|(_, end)| rfc3339(end)),
        "revision": snapshot.revision,
        "task": task,
        "rows": table.len(),
        "matched": matched,
        "columns": schema.columns().collect::<Vec<_>>(),
    });
    let mut out = head.to_string().into_bytes();
    out.pop();
    out.extend_from_slice(b",\"data\":[");
    let mut text = Text::default();
    for (number, row) in found.iter().enumerate() {
        out.extend_from_slice(if number == 0 { b"{" } else { b",{" });
        text.members(&mut out, schema, row);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

/// What the key columns of a table have to hold.
fn conditions(table: &TaskRows, filter: &[(String, String)]) -> Result<Conditions, Refusal> {
    let read = |(name, operand): &(String, String)| (name.clone(), Value::from(operand.as_str()));
    let conditions = Conditions::read(&table.name, &table.schema, filter.iter().map(read));
    conditions.map_err(|error| match error {
        NoCondition::Column(why) => Refusal::missing(format!("filter: {why}")),
        NoCondition::Value(why) => Refusal::bad(format!("filter: {why}")),
    })
}

/// Another order than the table's own; rows that are equal in it stay in that.
#[derive(Clone, Copy)]
struct Order {
    column: Column,
    descends: bool,
}

#[derive(Clone, Copy)]
enum Column {
    Key(usize),
    Value(usize),
}

impl Order {
    fn read(table: &TaskRows, name: &str, descends: bool) -> Result<Self, Refusal> {
        let schema = &table.schema;
        let key = schema.key.columns().iter().position(|column| column.name() == name).map(Column::Key);
        let column = key.or_else(|| schema.value_named(name).map(Column::Value)).ok_or_else(|| {
            let known = schema.columns().collect::<Vec<_>>().join(", ");
            Refusal::missing(format!("sort: `{name}` is no column of task `{}`; one of {known}", table.name))
        })?;
        Ok(Self { column, descends })
    }

    /// The least comes first.
    fn rank(self, schema: &Schema, row: &Row<'_>) -> u128 {
        let rank = match self.column {
            Column::Key(column) => ordinal(row.key(schema, column)),
            Column::Value(column) => row.values()[column].into(),
        };
        if self.descends { !rank } else { rank }
    }
}

/// Place of a cell in the order of its column.
fn ordinal(value: KeyValue) -> u128 {
    match value {
        KeyValue::Number(number) | KeyValue::Mac(number) => number.into(),
        KeyValue::Text(text) => text.0,
        KeyValue::Address(address) | KeyValue::Prefix(address, _) => address.ordinal(),
    }
}

/// A row with its place in an order.
struct Ranked<'a> {
    rank: u128,
    row: Row<'a>,
    schema: &'a Schema,
}

impl Ord for Ranked<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by = self.schema.order_by;
        let cells = |ranked: &Self| {
            let (schema, row) = (ranked.schema, ranked.row);
            (0..schema.key.columns().len()).map(move |column| ordinal(row.key(schema, column)))
        };
        self.rank
            .cmp(&other.rank)
            .then_with(|| other.row.values()[by].cmp(&self.row.values()[by]))
            .then_with(|| cells(self).cmp(cells(other)))
    }
}

impl PartialOrd for Ranked<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked<'_> {}

/// How many rows are wanted, and the first `limit` of them in an order; no others are held or sorted.
fn best<'a>(
    table: &'a TaskRows,
    wanted: impl Fn(&Row<'_>) -> bool,
    order: Order,
    limit: usize,
) -> (usize, Vec<Row<'a>>) {
    let schema = &*table.schema;
    let mut matched = 0;
    let mut best: BinaryHeap<Ranked<'a>> = BinaryHeap::new();
    for row in table.rows().filter(|row| wanted(row)) {
        matched += 1;
        let ranked = Ranked { rank: order.rank(schema, &row), row, schema };
        if best.len() < limit {
            best.push(ranked);
        } else if let Some(mut last) = best.peek_mut()
            && ranked < *last
        {
            *last = ranked;
        }
    }
    (matched, best.into_sorted_vec().into_iter().map(|ranked| ranked.row).collect())
}

/// Somebody who is told what happens.
struct Listening {
    told: Receiver<Told>,
    stopping: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

async fn events(State(site): State<Arc<Site>>, uri: Uri) -> Answer {
    Parameters::read(&uri, &[])?;
    let place = site.listeners.clone().try_acquire_owned().map_err(|_| {
        let why = format!("{LISTENERS} are listening already");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let told = site.view.recent().subscribe();
    let listening = Listening { told, stopping: site.stopping.clone(), _place: place };
    let keep_alive = KeepAlive::new().interval(QUIET);
    Ok(Sse::new(stream::unfold(listening, next)).keep_alive(keep_alive).into_response())
}

/// What is told next; `None` when the server stops.
async fn next(mut listening: Listening) -> Option<(Result<Event, Infallible>, Listening)> {
    let told = tokio::select! {
        biased;
        () = stopped(listening.stopping.clone()) => return None,
        told = listening.told.recv() => told,
    };
    let event = match told {
        Ok(Told::Window(text)) => Event::default().event("window").data(text),
        Ok(Told::Alert(text)) => Event::default().event("alert").data(text),
        Err(RecvError::Lagged(missed)) => {
            Event::default().event("missed").data(json!({"missed": missed}).to_string())
        }
        Err(RecvError::Closed) => return None,
    };
    Some((Ok(event), listening))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::recent::example;
    use crate::trial::FLOWS;

    fn asked(query: &str) -> Result<Asked, Refusal> {
        let uri: Uri = format!("/?{query}").parse().expect("a path");
        Asked::read(&Parameters::read(&uri, &["limit", "sort", "filter"])?)
    }

    /// How many match, and the bytes of the rows.
    fn found(query: &str) -> (u64, Vec<u64>) {
        let answer = answer(&example(60, 0, &FLOWS), "flows", &asked(query).expect("a query")).expect("rows");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        let data = answer["data"].as_array().expect("rows").iter();
        let bytes = data.map(|row| row["bytes"].as_u64().expect("a number")).collect();
        (answer["matched"].as_u64().expect("a number"), bytes)
    }

    #[test]
    fn rows_are_sorted_with_ties_in_the_order_of_the_table() {
        let usual = found("").1;
        assert_eq!(found("sort=bytes"), (5, vec![60, 400, 500, 700, 900]));
        assert_eq!(found("sort=-bytes&limit=2"), (5, vec![900, 700]));
        assert_eq!(found("sort=src_ip&limit=2").1.len(), 2);
        assert_eq!(found("sort=src_ip").1[2..], [500, 400, 700]);
        assert_eq!(found("sort=-src_ip").1[..3], [700, 400, 500]);
        // Four rows are of one port.
        let of_port: Vec<u64> = usual.iter().copied().filter(|bytes| *bytes != 60).collect();
        for limit in 1..=4 {
            assert_eq!(found(&format!("sort=-dst_port&limit={limit}")), (5, of_port[..limit].to_vec()));
        }
    }

    #[test]
    fn filters_select_by_key() {
        assert_eq!(found("filter=src_ip:10.0.0.0/8&sort=bytes"), (3, vec![60, 500, 900]));
        assert_eq!(found("filter=src_ip:10.0.0.0/8,dst_port:443&sort=bytes"), (2, vec![500, 900]));
        assert_eq!(found("filter=src_ip:2001:db8::/32"), (1, vec![700]));
        assert_eq!(found("filter=dst_port:443&limit=1").0, 4);
        assert_eq!(found("filter=dst_port:22"), (0, vec![]));
        let both = "filter=src_ip:10.0.0.0%2F8,dst_port:443";
        assert_eq!(found("filter=src_ip:10.0.0.0%2F8&filter=dst_port:443"), found(both));
        assert_ne!(found("filter=src_ip:10.0.0.0%2F8"), found(both));
    }

    #[test]
    fn questions_are_read_strictly() {
        let sort = Some(("bytes".to_owned(), true));
        let filter = vec![("src_ip".to_owned(), "2001:db8::/32".to_owned())];
        let read = asked("sort=-bytes&filter=src_ip%3A2001%3Adb8%3A%3A%2F32&limit=10000");
        assert_eq!(read, Ok(Asked { limit: 10_000, sort, filter }));
        for wrong in [
            "limit=",
            "limit=0",
            "limit=10001",
            "limit=1e3",
            "limit=-1",
            "limit=99999999999999999999",
            "sort=",
            "sort=-",
            "sort=--bytes",
            "sort=a%20b",
            "filter=",
            "filter=dst_port",
            "filter=dst_port:",
            "filter=:443",
            "filter=dst_port:%2B443",
            "filter=dst_port:443,",
            "filter=src_ip:10.0.0.0/",
            "filter=src_ip:10.0.0.0/+8",
            "filter=dst_port:1,dst_port:2",
            "filter=%FF:1",
            "filter=dst_port:443%00",
        ] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_is_compared_whole() {
        let token = digest(b"s3cret");
        let is_token = |value: &str| {
            let value = HeaderValue::from_str(value).expect("a header");
            is_token(&token, &HeaderMap::from_iter([(AUTHORIZATION, value)]))
        };
        assert!(is_token("Bearer s3cret") && is_token("BEARER s3cret"));
        for wrong in
            ["", "Bearer", "Bearer ", "Bearer s3cre", "Bearer s3cret2", "Bearer  s3cret", "Basic s3cret"]
        {
            assert!(!is_token(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_description_is_of_this_version() {
        let description: Value = serde_json::from_slice(&openapi(true)).expect("JSON");
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(description["security"], json!([{"bearer": []}]));
        assert_eq!(description["paths"].as_object().map(serde_json::Map::len), Some(9));
    }
}
