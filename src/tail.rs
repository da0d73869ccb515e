//! Prints what is on the bus: one JSON object a line for each packet.
//!
//! Messages that come faster than they can be printed wait in bounded memory; what there is no room for is counted.

use crate::bus::subscribe::{Incoming, Subscription};
use crate::bus::{Bus, BusError, Settings};
use crate::intake::bus::OVERHEAD;
use crate::say;
use crate::sinks::text::rfc3339;
use crate::wire::batch::{Batch, Item};
use crate::wire::fields::{Value as Cell, named};
use crate::wire::single;
use dataflows::field::{Kind, mac};
use dataflows::packet::Packet;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// Messages that the client may hold for each subscription, until they are taken from there.
const CLIENT: usize = 16 << 10;
/// How often to see whether the server lets us listen.
const LOOK: Duration = Duration::from_millis(200);

/// What was printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Printed {
    /// Packets.
    pub packets: u64,
    /// Messages that are none.
    pub refused: u64,
    /// Messages that came faster than they could be printed.
    pub lost: u64,
}

/// Why printing has ended early.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Standard output.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Incoming>,
    bytes: u64,
    received: u64,
    lost: u64,
    ended: bool,
}

/// Messages that wait to be printed: a bounded number of bytes.
struct Backlog {
    queue: Mutex<Queue>,
    limit: u64,
    filled: Notify,
}

impl Backlog {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, message: Incoming) {
        let size = message.payload.len() as u64 + OVERHEAD;
        let mut queue = self.queue();
        queue.received += 1;
        if !queue.messages.is_empty() && queue.bytes + size > self.limit {
            queue.lost += 1;
            return;
        }
        queue.bytes += size;
        queue.messages.push_back(message);
        drop(queue);
        self.filled.notify_one();
    }

    fn end(&self) {
        self.queue().ended = true;
        self.filled.notify_one();
    }

    /// The next message, or whether there will be none.
    fn take(&self) -> Result<Incoming, bool> {
        let mut queue = self.queue();
        let message = queue.messages.pop_front().ok_or(queue.ended)?;
        queue.bytes -= message.payload.len() as u64 + OVERHEAD;
        Ok(message)
    }
}

/// Prints packets of these subjects, `most` of them, or until told to stop.
pub async fn tail(
    settings: &Settings,
    subjects: &[String],
    most: u64,
    mut stop: watch::Receiver<bool>,
    program: &'static str,
) -> Result<Printed, TailError> {
    let bus = Bus::connect(settings, program, CLIENT).await?;
    let backlog = Backlog { queue: Mutex::default(), limit: settings.buffer, filled: Notify::new() };
    let backlog = Arc::new(backlog);
    let (enough, has_enough) = watch::channel(false);
    let mut pumps = JoinSet::new();
    for subject in subjects {
        let mut subscription = Subscription::core(&bus, subject, None).await?;
        let (backlog, mut has_enough) = (backlog.clone(), has_enough.clone());
        pumps.spawn(async move {
            while let Some(arrival) = subscription.next(&mut has_enough).await {
                backlog.put(arrival);
            }
        });
    }
    say!("subscribed to {} at {}", subjects.join(" and "), bus.servers());
    let (ended, listening, done) = (backlog.clone(), bus.clone(), Arc::new(Notify::new()));
    let printed_enough = done.clone();
    let ending = tokio::spawn(async move {
        tokio::select! {
            // Whoever could tell us to stop is gone: that is one way to say it.
            _ = stop.wait_for(|stop| *stop) => {}
            () = printed_enough.notified() => {}
            // The server may deny later than it answers.
            () = deaf(&listening) => {}
        }
        enough.send_replace(true);
        while pumps.join_next().await.is_some() {}
        ended.end();
    });
    let printed = print_all(&backlog, most).await;
    done.notify_one();
    // It has ended, or the runtime does.
    let _ = ending.await;
    let mut printed = printed.map_err(TailError::Output)?;
    // Whatever the client has to say of it is said.
    bus.close().await?;
    let received = backlog.queue().received;
    printed.lost = backlog.queue().lost;
    if bus.overflowed() > 0 {
        // It may have told of the first of many only.
        printed.lost += bus.overflowed().max(bus.messages_in().saturating_sub(received));
    }
    Ok(printed)
}

/// Waits until the server has said that we may not listen.
async fn deaf(bus: &Bus) {
    while bus.deaf().is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Prints packets of what comes, `most` of them.
async fn print_all(backlog: &Backlog, most: u64) -> io::Result<Printed> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut printed = Printed::default();
    while printed.packets < most {
        let arrival = match backlog.take() {
            Ok(arrival) => arrival,
            Err(true) => break,
            Err(false) => {
                // Nothing more at the moment: whoever reads sees all there is.
                out.flush()?;
                backlog.filled.notified().await;
                continue;
            }
        };
        match print_message(&mut out, &arrival, most, &mut printed) {
            // Whoever reads may have read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed),
            written => written?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(printed),
    }
}

fn print_message(
    out: &mut impl Write,
    message: &Incoming,
    most: u64,
    printed: &mut Printed,
) -> io::Result<()> {
    let payload = message.payload.clone();
    let mut written = Ok(());
    // A message is one kind or the other: field 2 is a number in a batch and a message in a packet.
    if let Ok(batch) = Batch::read(payload.clone()) {
        let mut at = 0;
        batch.visit(|item| {
            let (Item::Packet(packet) | Item::Stray(packet)) = item else { return };
            if printed.packets < most && written.is_ok() {
                written = print(out, &packet, Some((&batch, at)));
                printed.packets += 1;
            }
            at += 1;
        });
    } else if let Ok(packet) = single::decode(payload) {
        written = print(out, &packet, None);
        printed.packets += 1;
    } else {
        printed.refused += 1;
    }
    written
}

fn print(out: &mut impl Write, packet: &Packet, from: Option<(&Batch, usize)>) -> io::Result<()> {
    let Packet { time, transport, source, destination, length } = *packet;
    let mut line = json!({
        "time": rfc3339(time),
        "src_ip": IpAddr::from(source).to_string(),
        "dst_ip": IpAddr::from(destination).to_string(),
        "src_port": transport.source_port(),
        "dst_port": transport.destination_port(),
        "protocol": transport.protocol(),
        "bytes": length,
    });
    if let Some((batch, at)) = from {
        line["probe"] = batch.probe.as_str().into();
        for column in batch.fields() {
            let field = named(column.name());
            let cell: Value = match (column.value(at), field) {
                (Cell::Text(text), _) => text.into(),
                (Cell::Number(number), Some(field)) if field.kind == Kind::Mac => mac(number as u64).into(),
                (Cell::Number(number), _) => match u64::try_from(number) {
                    Ok(number) => number.into(),
                    Err(_) => number.to_string().into(),
                },
            };
            let name = field.map_or(column.name(), |field| field.column);
            if line.get(name).is_none() {
                line[name] = cell;
            }
        }
    }
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}
