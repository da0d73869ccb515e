//! Tables made by hand, for the unit tests of whoever looks at tables.

use dataflows::aggregator::Task;
use dataflows::exact::Exact;
use dataflows::key::{KeyFields, Layout};
use dataflows::packet::{Address, Transport};
use dataflows::rows::{TaskRows, sort_words};
use std::net::IpAddr;
use std::sync::Arc;

/// Source, destination port, packets and bytes.
pub(crate) type Flow<'a> = (&'a str, u16, u64, u64);

/// A few of them.
pub(crate) const FLOWS: [Flow<'static>; 5] = [
    ("10.0.0.2", 443, 5, 500),
    ("10.0.0.1", 443, 5, 900),
    ("10.0.0.1", 80, 1, 60),
    ("192.0.2.1", 443, 9, 400),
    ("2001:db8::1", 443, 7, 700),
];

/// An exact task `flows` with this key.
pub(crate) fn task(fields: &[&str]) -> Task {
    let fields = KeyFields::parse(fields).expect("fields");
    Task { name: "flows".into(), aggregator: Arc::new(Exact::new(fields)) }
}

/// A task's rows.
pub(crate) fn rows(task: &Task, flows: &[Flow<'_>]) -> TaskRows {
    let schema = task.aggregator.schema();
    let mut words = [Vec::new(), Vec::new()];
    for (source, port, packets, bytes) in flows {
        let source: IpAddr = source.parse().expect("an address");
        let transport = Transport::new(0, *port, 6, 0, 0, 4);
        let key = schema.key.mask().key(source.into(), Address::v4(0), transport);
        words[usize::from(source.is_ipv6())].extend(key.words());
        words[usize::from(source.is_ipv6())].extend([*packets, *bytes, 0, 1_000_000_001]);
    }
    let run = |(layout, words): (Layout, Vec<u64>)| sort_words(vec![words.into()], layout, &schema);
    let runs = [Layout::Compact, Layout::Wide].into_iter().zip(words).map(run).collect();
    TaskRows { name: task.name.clone(), schema: schema.clone(), runs, kept: None }
}
