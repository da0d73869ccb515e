//! Prints what is on the bus: one JSON object a line for each packet.

use crate::bus::subscribe::Subscription;
use crate::bus::{Bus, BusError, Settings};
use crate::say;
use crate::sinks::text::rfc3339;
use crate::wire::batch::{Batch, Item};
use crate::wire::single;
use dataflows::packet::Packet;
use serde_json::json;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use tokio::sync::watch;

/// Messages that may wait to be printed.
const WAITING: usize = 8192;

/// What was printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Printed {
    /// Packets.
    pub packets: u64,
    /// Messages that are none.
    pub refused: u64,
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

/// Prints packets of these subjects, `most` of them, or until told to stop.
pub async fn tail(
    settings: &Settings,
    subjects: &[String],
    most: u64,
    stop: watch::Receiver<bool>,
    program: &'static str,
) -> Result<Printed, TailError> {
    let bus = Bus::connect(settings, program, WAITING).await?;
    let (sender, mut messages) = tokio::sync::mpsc::channel(WAITING);
    for subject in subjects {
        let mut subscription = Subscription::core(&bus, subject, None).await?;
        let (sender, mut stop) = (sender.clone(), stop.clone());
        tokio::spawn(async move {
            while let Some(arrival) = subscription.next(&mut stop).await {
                if sender.send(arrival).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    say!("subscribed to {} at {}", subjects.join(" and "), bus.servers());
    let mut out = BufWriter::new(io::stdout().lock());
    let mut printed = Printed::default();
    while printed.packets < most {
        let arrival = match messages.try_recv() {
            Ok(arrival) => arrival,
            Err(_) => {
                // Nothing more at the moment: whoever reads sees all there is.
                out.flush().map_err(TailError::Output)?;
                match messages.recv().await {
                    Some(arrival) => arrival,
                    None => break,
                }
            }
        };
        let payload = arrival.payload.clone();
        let mut written = Ok(());
        // A message is one kind or the other: field 2 is a number in a batch and a message in a packet.
        if let Ok(batch) = Batch::read(payload.clone()) {
            batch.visit(|item| {
                if let (Item::Packet(packet) | Item::Stray(packet), true, true) =
                    (item, printed.packets < most, written.is_ok())
                {
                    written = print(&mut out, &packet, Some(&batch.probe));
                    printed.packets += 1;
                }
            });
        } else if let Ok(packet) = single::decode(payload) {
            written = print(&mut out, &packet, None);
            printed.packets += 1;
        } else {
            printed.refused += 1;
        }
        match written {
            // Whoever reads may have read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed),
            written => written.map_err(TailError::Output)?,
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(TailError::Output(error)),
        _ => Ok(printed),
    }
}

fn print(out: &mut impl Write, packet: &Packet, probe: Option<&str>) -> io::Result<()> {
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
    if let Some(probe) = probe {
        line["probe"] = probe.into();
    }
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}
