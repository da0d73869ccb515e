//! Synthetic captures: the same options give the same bytes on every machine.
//!
//! Flows follow a Zipf law; their endpoints, ports and sizes come from a hash of their number. Events are planted
//! beside the background, so that an analysis has something to find.

use std::io::{self, Write};
use std::time::Duration;

/// Start of every generated capture: 2023-11-14T22:13:20Z, in seconds since the Unix epoch.
pub const START: u64 = 1_700_000_000;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Options {
    /// Background packets; events come on top.
    pub packets: u64,
    /// Flows to draw from; how many appear depends on `packets` and `zipf`.
    pub flows: u32,
    /// Exponent of the Zipf law, 0 for equal shares.
    pub zipf: f64,
    /// Bytes kept of each frame.
    pub snaplen: u32,
    /// Share of IPv6 flows, 0..=1.
    pub ipv6: f64,
    /// Another seed gives other flows in another order.
    pub seed: u64,
    /// Time from the first packet to the last.
    pub duration: Duration,
    /// Whether to plant events.
    pub events: bool,
    /// Lengths of frames.
    pub size: FrameSize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            packets: 1_000_000,
            flows: 100_000,
            zipf: 1.05,
            snaplen: 65_535,
            ipv6: 0.1,
            seed: 1,
            duration: Duration::from_secs(60),
            events: false,
            size: FrameSize::Mixed,
        }
    }
}

/// How long frames are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameSize {
    /// Small, middle and full frames, by flow.
    Mixed,
    /// This many bytes, or as many as the headers need.
    Bytes(u32),
}

/// A planted event, for the list on standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is.
    pub kind: &'static str,
    /// Who does what to whom.
    pub what: String,
    /// Its packets.
    pub packets: u64,
}

/// SplitMix64 (Steele, Lea, Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform below a bound of at least 1.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws ranks by a Zipf law in constant time (Walker's alias method).
struct Zipf {
    keep: Vec<f32>,
    alias: Vec<u32>,
}

impl Zipf {
    fn new(ranks: u32, exponent: f64) -> Self {
        let mut weight: Vec<f64> = (1..=ranks).map(|rank| f64::from(rank).powf(-exponent)).collect();
        let scale = f64::from(ranks) / weight.iter().sum::<f64>();
        weight.iter_mut().for_each(|weight| *weight *= scale);
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..ranks).partition(|rank| weight[*rank as usize] < 1.0);
        let mut alias: Vec<u32> = (0..ranks).collect();
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            alias[low as usize] = high;
            weight[high as usize] -= 1.0 - weight[low as usize];
            if weight[high as usize] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self { keep: weight.into_iter().map(|weight| weight as f32).collect(), alias }
    }

    fn draw(&self, random: &mut Random) -> u32 {
        let rank = random.below(self.keep.len() as u64) as u32;
        if random.unit() < f64::from(self.keep[rank as usize]) { rank } else { self.alias[rank as usize] }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Bytes of an Ethernet, an IPv6 and a TCP header: the longest that are written.
const MOST_HEADERS: usize = 14 + 40 + 20;
/// Least length of an Ethernet frame without its check sequence.
const LEAST_FRAME: u32 = 60;

/// One frame to write.
#[derive(Clone, Copy)]
struct Packet {
    source: Endpoint,
    destination: Endpoint,
    protocol: u8,
    flags: u8,
    length: u32,
}

#[derive(Clone, Copy)]
struct Endpoint {
    address: Address,
    port: u16,
}

#[derive(Clone, Copy)]
enum Address {
    V4(u32),
    V6(u128),
}

fn v4(a: u8, b: u8, c: u8, d: u8, port: u16) -> Endpoint {
    Endpoint { address: Address::V4(u32::from_be_bytes([a, b, c, d])), port }
}

/// A flow by its number: clients in 10.0.0.0/8 or 2001:db8::/32, fewer servers than clients, ports as they are met.
fn flow(number: u32, options: &Options) -> Packet {
    let mut random = Random(options.seed ^ u64::from(number).wrapping_mul(0xa24b_aed4_963e_e407));
    let clients = u64::from(options.flows / 4).max(1);
    let servers = u64::from(options.flows / 20).max(1);
    let (client, server) = (random.below(clients) as u32, random.below(servers) as u32);
    let (service, protocol) = match random.below(100) {
        0..50 => (443, TCP),
        50..62 => (443, UDP),
        62..74 => (80, TCP),
        74..86 => (53, UDP),
        86..90 => (22, TCP),
        90..93 => (25, TCP),
        93..95 => (123, UDP),
        _ => (1024 + random.below(48_000) as u16, if random.below(3) == 0 { UDP } else { TCP }),
    };
    let port = 32_768 + random.below(28_000) as u16;
    let (client, server) = if random.unit() < options.ipv6 {
        let prefix = 0x2001_0db8_u128 << 96;
        (Address::V6(prefix | u128::from(client)), Address::V6(prefix | 1 << 80 | u128::from(server)))
    } else {
        // A server's number is spread over the public unicast space below 224.0.0.0 by an odd factor.
        let public = server.wrapping_mul(2_654_435_761) % 0xc000_0000 + 0x1400_0000;
        (Address::V4(0x0a00_0000 | (client + 256) & 0x00ff_ffff), Address::V4(public))
    };
    let length = match options.size {
        FrameSize::Bytes(bytes) => bytes,
        FrameSize::Mixed => match random.below(100) {
            0..45 => 66 + random.below(60) as u32,
            45..75 => 200 + random.below(600) as u32,
            _ => 1514,
        },
    };
    let (client, server) = (Endpoint { address: client, port }, Endpoint { address: server, port: service });
    let (source, destination) = if random.below(2) == 0 { (client, server) } else { (server, client) };
    Packet { source, destination, protocol, flags: ACK, length }
}

/// Packets of an event, evenly spread between two moments (as shares of the duration).
struct Planted {
    event: Event,
    from: f64,
    to: f64,
    packet: fn(u64, &mut Random) -> Packet,
}

fn planted(options: &Options) -> Vec<Planted> {
    let at_least = |share: f64, least: u64| ((options.packets as f64 * share) as u64).max(least);
    let event = |kind, what: &str, packets| Event { kind, what: what.into(), packets };
    vec![
        Planted {
            event: event("port-scan", "198.51.100.66 tries ports 1-1024 of 10.0.0.5", 1024),
            from: 0.20,
            to: 0.30,
            packet: |number, _| Packet {
                source: v4(198, 51, 100, 66, 54_321),
                destination: v4(10, 0, 0, 5, number as u16 + 1),
                protocol: TCP,
                flags: SYN,
                length: LEAST_FRAME,
            },
        },
        Planted {
            event: event("syn-flood", "spoofed sources flood 10.0.0.80 port 443", at_least(0.05, 5_000)),
            from: 0.50,
            to: 0.60,
            packet: |_, random| Packet {
                source: Endpoint {
                    address: Address::V4(0x1400_0000 + random.below(0xb000_0000) as u32),
                    port: 1024 + random.below(60_000) as u16,
                },
                destination: v4(10, 0, 0, 80, 443),
                protocol: TCP,
                flags: SYN,
                length: LEAST_FRAME,
            },
        },
        Planted {
            event: event(
                "exfiltration",
                "10.0.0.7 sends far more than anyone to 203.0.113.99 port 443",
                at_least(0.20, 20_000),
            ),
            from: 0.10,
            to: 0.90,
            packet: |_, _| Packet {
                source: v4(10, 0, 0, 7, 51_515),
                destination: v4(203, 0, 113, 99, 443),
                protocol: TCP,
                flags: ACK,
                length: 1514,
            },
        },
        Planted {
            event: event("beacon", "10.0.0.44 calls 192.0.2.200 port 8443 at even intervals", 20),
            from: 0.0,
            to: 1.0,
            packet: |_, _| Packet {
                source: v4(10, 0, 0, 44, 40_404),
                destination: v4(192, 0, 2, 200, 8443),
                protocol: TCP,
                flags: ACK,
                length: 120,
            },
        },
    ]
}

/// Writes a capture (pcap, microseconds, Ethernet) and returns the planted events.
pub fn write(options: &Options, out: &mut impl Write) -> io::Result<Vec<Event>> {
    let mut header = Vec::with_capacity(24);
    header.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
    header.extend_from_slice(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    header.extend_from_slice(&options.snaplen.to_le_bytes());
    header.extend_from_slice(&1u32.to_le_bytes());
    out.write_all(&header)?;

    let mut random = Random(options.seed);
    let zipf = Zipf::new(options.flows.max(1), options.zipf);
    let flows: Vec<Packet> = (0..options.flows.max(1)).map(|number| flow(number, options)).collect();
    let mut begun = vec![false; flows.len()];
    let micros = options.duration.as_micros() as u64;
    let moment = |share: f64| (micros as f64 * share) as u64;
    let mut events: Vec<(Planted, u64)> = match options.events {
        true => planted(options).into_iter().map(|planted| (planted, 0)).collect(),
        false => Vec::new(),
    };
    let mut writer = FrameWriter { out, snaplen: options.snaplen, frame: vec![0; 70_000] };
    let mut number = 0;
    loop {
        let background = (number < options.packets).then(|| {
            (u128::from(micros) * u128::from(number) / u128::from(options.packets.max(2) - 1)) as u64
        });
        let due = |(planted, sent): &(Planted, u64)| {
            let Planted { event, from, to, .. } = planted;
            (*sent < event.packets)
                .then(|| moment(*from) + (moment(*to) - moment(*from)) / event.packets.max(1) * sent)
        };
        let next = events.iter().enumerate().filter_map(|(at, event)| Some((due(event)?, at))).min();
        match (background, next) {
            (Some(time), next) if next.is_none_or(|(due, _)| time <= due) => {
                let rank = zipf.draw(&mut random) as usize;
                let mut packet = flows[rank];
                if !std::mem::replace(&mut begun[rank], true) && packet.protocol == TCP {
                    packet.flags = SYN;
                }
                writer.write(time, &packet)?;
                number += 1;
            }
            (_, Some((time, at))) => {
                let (planted, sent) = &mut events[at];
                writer.write(time, &(planted.packet)(*sent, &mut random))?;
                *sent += 1;
            }
            _ => break,
        }
    }
    Ok(events.into_iter().map(|(planted, _)| planted.event).collect())
}

struct FrameWriter<'a, W> {
    out: &'a mut W,
    snaplen: u32,
    /// Record header, headers, and zeros for the payload.
    frame: Vec<u8>,
}

impl<W: Write> FrameWriter<'_, W> {
    fn write(&mut self, micros: u64, packet: &Packet) -> io::Result<()> {
        let Packet { source, destination, protocol, flags, length } = *packet;
        let transport = if protocol == TCP { 20 } else { 8 };
        let (ether_type, network) = match source.address {
            Address::V4(_) => (0x0800_u16, 20),
            Address::V6(_) => (0x86dd, 40),
        };
        let headers = 14 + network + transport;
        let length = length.clamp(LEAST_FRAME.max(headers as u32), 65_000);
        let captured = length.min(self.snaplen.max(1));
        let seconds = START + micros / 1_000_000;
        let record = [seconds as u32, (micros % 1_000_000) as u32, captured, length];
        self.frame[..16 + MOST_HEADERS].fill(0);
        for (at, word) in record.iter().enumerate() {
            self.frame[at * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        let frame = &mut self.frame[16..];
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
        let payload = length - 14 - network as u32;
        let ip = &mut frame[14..];
        match (source.address, destination.address) {
            (Address::V4(source), Address::V4(destination)) => {
                ip[0] = 0x45;
                ip[2..4].copy_from_slice(&((length - 14) as u16).to_be_bytes());
                (ip[6], ip[8], ip[9]) = (0x40, 64, protocol);
                ip[12..16].copy_from_slice(&source.to_be_bytes());
                ip[16..20].copy_from_slice(&destination.to_be_bytes());
                let checksum = checksum(&ip[..20]);
                ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            (Address::V6(source), Address::V6(destination)) => {
                ip[0] = 0x60;
                ip[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
                (ip[6], ip[7]) = (protocol, 64);
                ip[8..24].copy_from_slice(&source.to_be_bytes());
                ip[24..40].copy_from_slice(&destination.to_be_bytes());
            }
            _ => unreachable!("both ends of a flow are of one family"),
        }
        let segment = &mut ip[network..];
        segment[..2].copy_from_slice(&source.port.to_be_bytes());
        segment[2..4].copy_from_slice(&destination.port.to_be_bytes());
        if protocol == UDP {
            segment[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        } else {
            (segment[12], segment[13]) = (0x50, flags);
        }
        self.out.write_all(&self.frame[..16 + captured as usize])
    }
}

/// The Internet checksum of a header whose own checksum is zero (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Format;
    use crate::decode::{Decoded, decode};

    fn generate(options: &Options) -> (Vec<u8>, Vec<Event>) {
        let mut bytes = Vec::new();
        let events = write(options, &mut bytes).expect("a vector takes all bytes");
        (bytes, events)
    }

    #[test]
    fn every_frame_decodes_in_time_order_and_the_same_seed_gives_the_same_bytes() {
        let options = Options { packets: 5_000, flows: 300, ipv6: 0.4, events: true, ..Options::default() };
        let (bytes, events) = generate(&options);
        assert_eq!(bytes, generate(&options).0);
        assert_ne!(bytes, generate(&Options { seed: 2, ..options.clone() }).0);
        let (mut format, header) = Format::open(&bytes).expect("a capture");
        let (mut frames, mut last, mut v6) = (0, 0, 0);
        format.scan(&bytes[header..], |frame| {
            frames += 1;
            assert!(frame.time >= last);
            last = frame.time;
            let bytes = &bytes[header + frame.start..][..frame.captured as usize];
            match decode(frame.link, bytes, frame.time, frame.length) {
                Decoded::Ip(packet) => v6 += u64::from(packet.transport.ip_version() == 6),
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(frames, 5_000 + events.iter().map(|event| event.packets).sum::<u64>());
        assert!(v6 > 500, "{v6}");
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn frames_are_cut_at_the_snap_length_and_keep_their_length() {
        let options =
            Options { packets: 100, snaplen: 40, size: FrameSize::Bytes(600), ..Options::default() };
        let (bytes, _) = generate(&options);
        assert_eq!(bytes.len(), 24 + 100 * (16 + 40));
        let (mut format, header) = Format::open(&bytes).expect("a capture");
        format.scan(&bytes[header..], |frame| assert_eq!((frame.captured, frame.length), (40, 600)));
    }
}
