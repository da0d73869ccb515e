//! Chunks of frames, dealt from files or captured from an interface: filtered, decoded and put into windows.

use super::{Intake, Placer, Position, Reader, Taken};
use crate::account::{Found, InputKey, NonIp, Noticed};
use crate::capture::dealer::Dealer;
use crate::capture::filter::{Filter, FilterError, Headers};
use crate::capture::interface::Interfaces;
use crate::capture::rings::Rings;
use crate::capture::{Chunk, Frame};
use crate::decode::link::{NotIp, what_is_not_ip};
use crate::decode::{self, Decoded};
use crate::ledger::{Counts, InputReport};
use dataflows::field::{INTERFACE, WORDS};
use dataflows::layers::{Layers, Text};
use dataflows::packet::Packet;
use std::sync::Arc;
use timely::scheduling::SyncActivator;

/// Gives workers chunks of frames.
trait Deal: Send + Sync {
    fn deal(&self, worker: usize, chunk: &mut Chunk) -> Result<Taken, String>;

    /// As [`Reader::cut`].
    fn cut(&self) -> Option<u64> {
        None
    }
}

impl Deal for Dealer {
    fn deal(&self, _worker: usize, chunk: &mut Chunk) -> Result<Taken, String> {
        Dealer::deal(self, chunk).map_err(|error| error.to_string())
    }

    fn cut(&self) -> Option<u64> {
        Dealer::cut(self)
    }
}

impl Deal for Rings {
    fn deal(&self, worker: usize, chunk: &mut Chunk) -> Result<Taken, String> {
        Ok(Rings::deal(self, worker, chunk))
    }
}

/// Capture files, with a filter in libpcap's language.
pub struct Files {
    /// Deals their frames.
    pub dealer: Arc<Dealer>,
    /// The filter.
    pub filter: Option<String>,
    /// Whose files they are: 0 where all processes of a cluster share them.
    pub owner: usize,
}

impl Intake for Files {
    fn reader(self: Arc<Self>, worker: usize) -> Box<dyn Reader> {
        let filter = self.filter.as_deref().map(Filter::new);
        Box::new(FrameReader {
            from: self.dealer.clone(),
            owner: self.owner,
            worker,
            chunk: Chunk::default(),
            filter,
            interfaces: Interfaces::of_files(),
        })
    }

    fn register(&self, activator: SyncActivator) {
        self.dealer.register(activator);
    }

    fn stop(&self) {
        self.dealer.stop();
    }

    fn wake(&self) {
        self.dealer.wake();
    }

    fn found(&self) -> Vec<(InputKey, Found)> {
        found(self.owner, self.dealer.reports())
    }
}

/// Names an input of frames by its owner and number.
fn key(owner: usize, number: usize) -> InputKey {
    InputKey { process: owner, name: String::new(), number: number as u64 }
}

fn found(owner: usize, reports: Vec<InputReport>) -> Vec<(InputKey, Found)> {
    let name = |(number, report)| (key(owner, number), Found::Frames(report));
    reports.into_iter().enumerate().map(name).collect()
}

/// An interface of one process, with a ring a worker. What a filter takes out, the kernel keeps.
pub struct Interface {
    /// The rings.
    pub rings: Arc<Rings>,
    /// Whose they are.
    pub process: usize,
}

impl Intake for Interface {
    fn reader(self: Arc<Self>, worker: usize) -> Box<dyn Reader> {
        let worker = worker % self.rings.len().max(1);
        Box::new(FrameReader {
            from: self.rings.clone(),
            owner: self.process,
            worker,
            chunk: Chunk::default(),
            filter: None,
            interfaces: Interfaces::of_this_machine(),
        })
    }

    fn register(&self, activator: SyncActivator) {
        self.rings.register(activator);
    }

    fn stop(&self) {
        self.rings.stop();
    }

    fn wake(&self) {
        self.rings.wake();
    }

    fn found(&self) -> Vec<(InputKey, Found)> {
        found(self.process, self.rings.reports())
    }
}

struct FrameReader<D> {
    from: Arc<D>,
    /// Whose inputs they are.
    owner: usize,
    worker: usize,
    chunk: Chunk,
    filter: Option<Filter>,
    interfaces: Interfaces,
}

impl<D: Deal> Reader for FrameReader<D> {
    fn take(&mut self) -> Result<(Taken, Position), String> {
        let taken = self.from.deal(self.worker, &mut self.chunk)?;
        let Chunk { latest, others, .. } = self.chunk;
        Ok((taken, Position { latest, others, floor: 0, hold: latest.min(others) }))
    }

    fn decode(&mut self, into: &mut Placer) -> Result<(), String> {
        let input = self.chunk.input;
        let noticed = into.noticed.remove(&input).unwrap_or_default();
        let filter = self.filter.as_mut();
        let mut decoding = Decoding { into, filter, counts: Counts::default(), noticed, failed: None };
        // Mostly nobody asks for more than packets, and strays are seldom: the loop is compiled without either.
        if !decoding.into.extension().is_empty() {
            self.interfaces.refresh();
            decode_with_layers(&mut self.chunk, &mut decoding, &mut self.interfaces);
        } else if self.chunk.has_strays() {
            decode_with_strays(&mut self.chunk, &mut decoding);
        } else {
            self.chunk.frames(|frame, bytes| decoding.frame(frame, bytes, false));
        }
        let Decoding { into, counts, noticed, failed, .. } = decoding;
        if noticed != Noticed::default() {
            into.noticed.insert(input, noticed);
        }
        self.chunk.take_gaps().into_iter().for_each(|gap| into.lose(gap));
        into.finish(input, Some(counts));
        failed.map_or(Ok(()), |error| Err(error.to_string()))
    }

    fn cut(&self) -> Option<u64> {
        self.from.cut()
    }

    fn key(&self, input: usize) -> InputKey {
        key(self.owner, input)
    }
}

#[inline(never)]
fn decode_with_strays(chunk: &mut Chunk, decoding: &mut Decoding<'_>) {
    chunk.frames_and_strays(|frame, bytes, is_stray| decoding.frame(frame, bytes, is_stray));
}

#[inline(never)]
fn decode_with_layers(chunk: &mut Chunk, decoding: &mut Decoding<'_>, interfaces: &mut Interfaces) {
    let names = decoding.into.extension().reads(&INTERFACE);
    chunk.frames_and_interfaces(|frame, bytes, is_stray, format| {
        let interface = match names {
            true => interfaces.name(format.interface(frame), frame.link, bytes),
            false => Text::default(),
        };
        decoding.frame_with_layers(frame, bytes, is_stray, interface);
    });
}

/// What becomes of the frames of a chunk.
struct Decoding<'a> {
    into: &'a mut Placer,
    filter: Option<&'a mut Filter>,
    counts: Counts,
    noticed: Noticed,
    failed: Option<FilterError>,
}

impl Decoding<'_> {
    /// Counts a frame that is read; whether it is to be decoded.
    #[inline(always)]
    fn admits(&mut self, frame: Frame, bytes: &[u8], is_stray: bool) -> bool {
        self.counts.read += 1;
        self.counts.bytes_read += u64::from(frame.length);
        if !is_stray {
            self.into.observe(frame.time);
        }
        if self.filter.is_some() && !self.passes(frame, bytes) {
            self.counts.filtered += 1;
            return false;
        }
        true
    }

    #[inline(always)]
    fn frame(&mut self, frame: Frame, bytes: &[u8], is_stray: bool) {
        if !self.admits(frame, bytes, is_stray) {
            return;
        }
        if let Some(packet) = decode::decode_plain(frame.link, bytes, frame.time, frame.length) {
            return self.place(packet, is_stray);
        }
        match decode::decode(frame.link, bytes, frame.time, frame.length) {
            Decoded::Ip(packet) => self.place(packet, is_stray),
            Decoded::Malformed => self.counts.malformed += 1,
            Decoded::NonIp => {
                notice_non_ip(&mut self.noticed, frame, bytes);
                self.counts.non_ip += 1;
            }
        }
    }

    #[inline(always)]
    fn frame_with_layers(&mut self, frame: Frame, bytes: &[u8], is_stray: bool, interface: Text) {
        if !self.admits(frame, bytes, is_stray) {
            return;
        }
        let Frame { link, time, length, .. } = frame;
        if let Some((packet, layers)) = decode::decode_plain_with_layers(link, bytes, time, length, interface)
        {
            return self.place_with(packet, &layers, is_stray);
        }
        match decode::decode_with_layers(link, bytes, time, length, interface) {
            Decoded::Ip((packet, layers)) => self.place_with(packet, &layers, is_stray),
            Decoded::Malformed => self.counts.malformed += 1,
            Decoded::NonIp => {
                notice_non_ip(&mut self.noticed, frame, bytes);
                self.counts.non_ip += 1;
            }
        }
    }

    #[inline(always)]
    fn place_with(&mut self, packet: Packet, layers: &Layers<'_>, is_stray: bool) {
        let extra = self.into.extension().read(layers);
        if is_stray { self.into.place_stray(packet, extra) } else { self.into.place_with(packet, extra) }
    }

    #[inline(always)]
    fn place(&mut self, packet: Packet, is_stray: bool) {
        if is_stray { self.into.place_stray(packet, [0; WORDS]) } else { self.into.place(packet) }
    }

    #[inline(never)]
    fn passes(&mut self, frame: Frame, bytes: &[u8]) -> bool {
        let Some(filter) = &mut self.filter else { return true };
        match filter.passes(&frame, bytes) {
            Ok(true) => {
                notice_passed(&mut self.noticed, &frame, bytes);
                true
            }
            Ok(false) => {
                notice_filtered(&mut self.noticed, filter, &frame, bytes);
                false
            }
            Err(error) => {
                self.failed = Some(error);
                false
            }
        }
    }
}

/// Frames are passed by value: one whose address is taken would go through memory on the common path too.
#[inline(never)]
fn notice_non_ip(noticed: &mut Noticed, frame: Frame, bytes: &[u8]) {
    let what = what_is_not_ip(frame.link, bytes).unwrap_or(NotIp::CutOff);
    noticed.count(NonIp { link: frame.link.0, what, frames: 1 });
}

fn notice_passed(noticed: &mut Noticed, frame: &Frame, bytes: &[u8]) {
    if let Some(headers) = Headers::of(frame.link, bytes) {
        noticed.passed_behind.insert(headers);
    }
}

/// Looks once for each kind of headers whether the filter has missed a packet behind them, unless it has found one there.
fn notice_filtered(noticed: &mut Noticed, filter: &mut Filter, frame: &Frame, bytes: &[u8]) {
    if let Some(headers) = Headers::of(frame.link, bytes)
        && !noticed.passed_behind.contains(&headers)
        && !noticed.hidden_behind.contains(&headers)
        && filter.would_pass_behind(headers, frame, bytes)
    {
        noticed.hidden_behind.insert(headers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Format;
    use crate::capture::pcap::{file_header, record_header};
    use crate::decode::LinkType;
    use dataflows::field::{Plan, TTL};
    use dataflows::groups::Observations;
    use dataflows::window::Windowing;
    use std::time::Duration;

    /// Deals the same chunk each time.
    struct Same {
        bytes: Vec<u8>,
        strays: Vec<u64>,
    }

    impl Deal for Same {
        fn deal(&self, _worker: usize, chunk: &mut Chunk) -> Result<Taken, String> {
            let (format, header) = Format::open(&self.bytes)?;
            (chunk.bytes, chunk.format) = (self.bytes[header..].to_vec(), Some(format));
            (chunk.strays, chunk.others) = (self.strays.clone(), u64::MAX);
            Ok(Taken::Piece)
        }
    }

    fn chunk() -> Same {
        let mut ipv4 = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        ipv4.extend_from_slice(&[0, 53, 0, 54, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let frame = |headers: &[u8], packet: &[u8]| [&[2; 12], headers, packet].concat();
        let frames = [
            (1, frame(&[8, 0], &ipv4)),
            (2, frame(&[0x81, 0, 0, 5, 8, 0], &ipv4)),
            (3, frame(&[8, 6], &[0; 28])),
            (4, frame(&[8, 0], &[0x45; 10])),
            (9_000, frame(&[8, 0], &ipv4)),
            (30, frame(&[8, 0], &ipv4[..25])),
            (5, frame(&[8, 0], &ipv4)),
        ];
        let mut bytes = file_header(LinkType::ETHERNET, 65535).to_vec();
        for (seconds, frame) in &frames {
            bytes.extend_from_slice(&record_header(seconds * 1_000_000_000, 60, frame.len()));
            bytes.extend_from_slice(frame);
        }
        Same { bytes, strays: vec![4] }
    }

    #[test]
    fn the_loop_with_layers_counts_and_places_as_the_one_without() {
        let decoded = |with_layers: bool, filter: Option<&str>| {
            let windowing = Windowing::every(Duration::from_secs(10)).expect("a window");
            let plan = Plan::default();
            if with_layers {
                plan.place_in_keys(&TTL).expect("room");
            }
            let mut placer = Placer::new(windowing, 0, 0).with_extension(plan.extension());
            let mut reader = FrameReader {
                from: Arc::new(chunk()),
                owner: 0,
                worker: 0,
                chunk: Chunk::default(),
                filter: filter.map(Filter::new),
                interfaces: Interfaces::of_files(),
            };
            let (_, position) = reader.take().expect("a chunk");
            placer.seek(position);
            reader.decode(&mut placer).expect("they are decoded");
            let Placer { counts, noticed, batches, touched, .. } = placer;
            let packets = |(epoch, batch): (u64, Observations)| {
                let ttls = if with_layers { vec![64; batch.packets.len()] } else { Vec::new() };
                assert_eq!(*batch.extra, ttls);
                (epoch, batch.window, batch.packets.as_ref().clone())
            };
            let batches: Vec<_> = batches.into_iter().map(packets).collect();
            (counts, noticed, batches, touched)
        };
        for filter in [None, Some("ether proto 0x800"), Some("vlan")] {
            let without = decoded(false, filter);
            assert!(!without.2.is_empty());
            assert_eq!(decoded(true, filter), without, "{filter:?}");
        }
    }
}
