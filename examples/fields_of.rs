//! Prints what extra fields and measures are read from, one line a frame: `cargo run --example fields_of -- a.pcap`.
//!
//! A frame without an IP packet has a line with its number alone. `tests/fields.py` holds this against tshark.

use netspectra::capture::interface::Interfaces;
use netspectra::capture::{Chunk, Format};
use netspectra::decode::{Decoded, decode_with_layers};
use std::error::Error;
use std::fmt::Write;

/// The columns of [`lines`].
pub(crate) const COLUMNS: &str = "frame,dscp,ecn,ttl,icmp_type,icmp_code,inner_vlan,mpls_label,src_mac,dst_mac,interface,\
fragment,protocol,tcp_flags,ip_bytes,transport_bytes,payload_bytes";

/// The lines of a capture file's bytes.
///
/// # Errors
/// What the bytes are where they are no capture.
pub(crate) fn lines(capture: Vec<u8>) -> Result<Vec<String>, Box<dyn Error>> {
    let (format, header) = Format::open(&capture)?;
    let mut chunk = Chunk { bytes: capture, format: Some(format), ..Chunk::default() };
    chunk.bytes.drain(..header);
    let (mut lines, mut interfaces) = (Vec::new(), Interfaces::of_files());
    chunk.frames_and_interfaces(|frame, bytes, _, format| {
        let interface = interfaces.name(format.interface(frame), frame.link, bytes);
        let mut line = (lines.len() + 1).to_string();
        if let Decoded::Ip((packet, layers)) =
            decode_with_layers(frame.link, bytes, frame.time, frame.length, interface)
        {
            let [icmp_type, icmp_code] = layers.icmp();
            let class = layers.traffic_class();
            let numbers = [
                u32::from(class >> 2),
                u32::from(class & 3),
                layers.ttl().into(),
                icmp_type.into(),
                icmp_code.into(),
                layers.inner_vlan.into(),
                layers.mpls_label,
            ];
            numbers.iter().for_each(|number| line += &format!(",{number}"));
            [layers.source_mac, layers.destination_mac].iter().for_each(|address| line += &mac(*address));
            let fragment = layers.fragment;
            let (protocol, flags) = (packet.transport.protocol(), packet.transport.tcp_flags());
            let lengths = [layers.ip_length, layers.transport_length, layers.payload_length()];
            line += &format!(",{},{fragment},{protocol},{flags}", layers.interface.text());
            lengths.iter().for_each(|length| line += &format!(",{length}"));
        }
        lines.push(line);
    });
    Ok(lines)
}

fn mac(address: u64) -> String {
    let mut text = String::new();
    for (number, byte) in address.to_be_bytes()[2..].iter().enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{byte:02x}", if number == 0 { ',' } else { ':' });
    }
    text
}

#[allow(dead_code, reason = "a test uses this file as a module")]
fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: fields_of CAPTURE")?;
    println!("{COLUMNS}");
    for line in lines(std::fs::read(path)?)? {
        println!("{line}");
    }
    Ok(())
}
