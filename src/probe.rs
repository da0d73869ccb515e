//! The probe's front: frames from a link or a file become messages, and every frame lands in one account.
//!
//! What is put into the buffer counts as sent; what the buffer has no room for is dropped and counted, never waited for,
//! where the link is live. A replay waits.

use crate::bus::publish::{Buffer, Outgoing, Pacing};
use crate::capture::live::{self, Drops};
use crate::capture::savefile::Kept;
use crate::decode::{self, Decoded, LinkType};
use crate::ledger::Losses;
use crate::wire::batch::{BLOCK, BatchBuilder, FULL, Header};
use crate::wire::fields;
use crate::wire::single;
use crate::wire::v1::Accounts;
use bytes::{Bytes, BytesMut};
use dataflows::field::Field;
use dataflows::layers::{Layers, MAX_TEXT, Text};
use dataflows::packet::Packet;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long a packet waits for others to fill its batch.
pub const FLUSH: Duration = Duration::from_millis(50);
/// How often a link that is quiet says how far it has come.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Bytes that may stay allocated between messages.
const KEPT_MEMORY: usize = 16 << 20;
/// Single packets handed to the publisher at once.
const SINGLES: usize = 256;
/// Bytes that a packet takes in a batch at most, and a batch beside its packets.
const MOST_A_PACKET: usize = 72;
const HEADER: usize = 2048;
/// Bytes of the texts in a batch from which on it is sent; each is short.
const ENOUGH_TEXTS: usize = 16 << 10;
/// How long to wait for room, or for frames, before looking up.
const LOOK: Duration = Duration::from_millis(100);
/// How long a replay that is told to stop waits for the bus to take what was read.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// How packets are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Encoding {
    /// Thousands a message, in columns
    Batch,
    /// One a message, for engines in the field
    Single,
}

/// Who the probe is, and how it sends.
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Which run of it.
    pub run: u64,
    /// When that began, nanoseconds since the Unix epoch.
    pub started: u64,
}

/// Turns frames into messages.
pub struct Probe {
    identity: Identity,
    encoding: Encoding,
    pacing: Pacing,
    buffer: Arc<Buffer>,
    stop: Arc<AtomicBool>,
    /// Fields that are read of each frame and sent beside its packet.
    fields: Vec<&'static Field>,
    /// Bytes that a packet takes in a batch at most.
    a_packet: usize,
    /// Packets in a full batch: as many as the server takes in one message.
    full: usize,
    /// Packets in the batch that is being filled once it is full, or its block is.
    room: usize,
    builder: BatchBuilder,
    singles: Vec<Bytes>,
    scratch: BytesMut,
    accounts: Accounts,
    /// The accounts when the last batch ended, and the latest time then.
    before: Accounts,
    watermark: u64,
    latest: u64,
    sequence: u64,
    read: u64,
    bytes_read: u64,
    bytes_sent: u64,
    /// When the batch that is being filled was begun.
    begun: Instant,
    /// When all partitions were last told something, and the blocks begun since.
    said: Instant,
    unsaid: u64,
    /// Subjects that batches are spread over.
    partitions: u64,
}

impl Probe {
    /// A probe that has seen nothing. The server takes `max_payload` bytes in one message, and batches are spread
    /// over so many partitions; once `stop` is set, it waits for room no longer.
    pub fn new(
        identity: Identity,
        encoding: Encoding,
        pacing: Pacing,
        buffer: Arc<Buffer>,
        stop: Arc<AtomicBool>,
        (max_payload, partitions): (usize, u32),
    ) -> Self {
        // The C library then keeps the memory of messages instead of giving it back after each.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_MEMORY)));
        let full = full(pacing, max_payload.saturating_sub(HEADER), MOST_A_PACKET);
        Self {
            identity,
            encoding,
            pacing,
            buffer,
            stop,
            fields: Vec::new(),
            a_packet: MOST_A_PACKET,
            full,
            room: full,
            builder: BatchBuilder::new(0),
            singles: Vec::new(),
            scratch: BytesMut::new(),
            accounts: Accounts::default(),
            before: Accounts::default(),
            watermark: 0,
            latest: 0,
            sequence: 0,
            read: 0,
            bytes_read: 0,
            bytes_sent: 0,
            begun: Instant::now(),
            said: Instant::now(),
            unsaid: 0,
            partitions: partitions.max(1).into(),
        }
    }

    /// The same, which sends these fields too: frames come by [`Self::frame_with_fields`]. The server takes `max_payload`
    /// bytes in one message.
    pub fn with_fields(self, fields: Vec<&'static Field>, max_payload: usize) -> Self {
        if fields.is_empty() {
            return self;
        }
        let a_packet = MOST_A_PACKET + fields.iter().map(|field| fields::width(field)).sum::<usize>();
        let full = full(self.pacing, max_payload.saturating_sub(HEADER + ENOUGH_TEXTS + MAX_TEXT), a_packet);
        let builder = self.builder.with_fields(&fields);
        Self { fields, a_packet, full, room: full, builder, ..self }
    }

    /// Whether any fields are sent beside packets.
    pub fn sends_fields(&self) -> bool {
        !self.fields.is_empty()
    }

    /// Takes a frame that the filter has passed.
    #[inline(always)]
    pub fn frame(&mut self, link: LinkType, time: u64, length: u32, bytes: &[u8]) {
        self.read += 1;
        self.bytes_read += u64::from(length);
        self.latest = self.latest.max(time);
        match decode::decode_plain(link, bytes, time, length) {
            Some(packet) => self.packet(&packet),
            None => self.other(link, time, length, bytes),
        }
    }

    /// Takes a frame that is not plain; apart, so that what is plain never leaves registers.
    #[inline(never)]
    fn other(&mut self, link: LinkType, time: u64, length: u32, bytes: &[u8]) {
        if let Some(packet) = self.ip(decode::decode(link, bytes, time, length), length) {
            self.packet(&packet);
        }
    }

    /// What was decoded of a frame, unless it is no packet, which is counted.
    #[inline(always)]
    fn ip<T>(&mut self, decoded: Decoded<T>, length: u32) -> Option<T> {
        match decoded {
            Decoded::Ip(packet) => return Some(packet),
            Decoded::Malformed => self.accounts.malformed += 1,
            Decoded::NonIp => self.accounts.non_ip += 1,
        }
        self.accounts.uncounted_bytes += u64::from(length);
        None
    }

    /// Takes a frame that the filter has passed, captured by this interface, with the fields that are sent beside packets.
    #[inline(never)]
    pub fn frame_with_fields(
        &mut self,
        link: LinkType,
        (time, is_stray): (u64, bool),
        length: u32,
        bytes: &[u8],
        interface: Text,
    ) {
        self.read += 1;
        self.bytes_read += u64::from(length);
        if !is_stray {
            self.latest = self.latest.max(time);
        }
        let decoded = match decode::decode_plain_with_layers(link, bytes, time, length, interface) {
            Some(plain) => Decoded::Ip(plain),
            None => decode::decode_with_layers(link, bytes, time, length, interface),
        };
        let Some((packet, layers)) = self.ip(decoded, length) else { return };
        self.with_layers(&packet, &layers, is_stray);
    }

    #[inline(always)]
    fn with_layers(&mut self, packet: &Packet, layers: &Layers<'_>, is_stray: bool) {
        self.builder.push_fields(layers);
        if is_stray {
            self.stray_packet(packet);
        } else {
            self.packet(packet);
        }
        if self.builder.text_bytes() >= ENOUGH_TEXTS {
            self.flush();
        }
    }

    /// Takes a frame that the filter has passed and that is dated ahead by mistake: it moves no watermark.
    pub fn stray(&mut self, link: LinkType, time: u64, length: u32, bytes: &[u8]) {
        self.read += 1;
        self.bytes_read += u64::from(length);
        if let Some(packet) = self.ip(decode::decode(link, bytes, time, length), length) {
            self.stray_packet(&packet);
        }
    }

    #[cold]
    fn stray_packet(&mut self, packet: &Packet) {
        match self.encoding {
            Encoding::Batch => {
                if self.builder.is_empty() {
                    self.begun = Instant::now();
                }
                self.builder.push_stray(packet, self.latest);
                if self.builder.len() >= self.room {
                    self.flush();
                }
            }
            Encoding::Single => self.single(packet),
        }
    }

    /// Takes a frame that the filter has taken out, with its time, or 0 where it is dated ahead by mistake.
    pub fn filtered(&mut self, time: u64, length: u32) {
        self.read += 1;
        self.bytes_read += u64::from(length);
        self.latest = self.latest.max(time);
        self.accounts.filtered += 1;
        self.accounts.uncounted_bytes += u64::from(length);
    }

    #[inline(always)]
    fn packet(&mut self, packet: &Packet) {
        match self.encoding {
            Encoding::Batch => {
                if self.builder.is_empty() {
                    self.begun = Instant::now();
                }
                self.builder.push(packet, self.latest);
                if self.builder.len() >= self.room {
                    self.flush();
                }
            }
            Encoding::Single => self.single(packet),
        }
    }

    #[inline(never)]
    fn single(&mut self, packet: &Packet) {
        if self.singles.is_empty() {
            self.begun = Instant::now();
        }
        single::encode(packet, &mut self.scratch);
        self.singles.push(self.scratch.split().freeze());
        self.bytes_sent += u64::from(packet.length);
        if self.singles.len() >= SINGLES {
            self.flush();
        }
    }

    /// Time of the first packet of the batch that is being filled.
    pub fn first_time(&self) -> Option<u64> {
        self.builder.first_time()
    }

    /// What never came here: goes with the next message.
    pub fn note_drops(&mut self, drops: Drops) {
        self.accounts.kernel_dropped = drops.kernel;
        self.accounts.interface_dropped = drops.interface;
    }

    /// What was lost on this side of the bus so far.
    pub fn losses(&self) -> Losses {
        let Accounts { interface_dropped, kernel_dropped, dropped, .. } = self.accounts;
        Losses { interface: interface_dropped, kernel: kernel_dropped, probe: dropped, bus: 0 }
    }

    /// How long until there is something to do, if no frame comes.
    pub fn patience(&self) -> Duration {
        if self.builder.is_empty() && self.singles.is_empty() {
            LOOK
        } else {
            FLUSH.saturating_sub(self.begun.elapsed())
        }
    }

    /// How often the connection was lost: goes with the next message.
    pub fn note_reconnects(&mut self, reconnects: u64) {
        self.accounts.reconnects = reconnects;
    }

    /// Sends what there is, if it has waited long enough, and says something on a quiet link: that nothing from before
    /// `promise` (nanoseconds since the Unix epoch) comes any more.
    pub fn tick(&mut self, promise: u64) {
        if self.begun.elapsed() >= FLUSH {
            self.flush();
        }
        if self.is_due() && promise > self.latest {
            self.flush();
            self.latest = promise;
            (self.before, self.watermark) = (self.accounts, self.latest);
        }
        self.heartbeat();
    }

    /// Tells every partition how far the probe has come, where some have heard nothing for long.
    pub fn heartbeat(&mut self) {
        if self.is_due() {
            self.say(false);
        }
    }

    fn is_due(&self) -> bool {
        // While the bus takes nothing, heartbeats would only pile up.
        let says = self.encoding == Encoding::Batch && self.buffer.is_empty();
        says && self.said.elapsed() >= HEARTBEAT
    }

    /// Sends the packets collected so far.
    pub fn flush(&mut self) {
        match self.encoding {
            Encoding::Batch => {
                let packets = self.builder.len() as u64;
                if packets > 0 && self.make_room(packets, packets * self.a_packet as u64) {
                    self.accounts.sent += packets;
                    self.bytes_sent += self.builder.bytes();
                    self.send_batch(packets);
                } else if packets > 0 {
                    self.builder.clear(self.latest);
                    self.measure_room();
                    (self.before, self.watermark) = (self.accounts, self.latest);
                }
            }
            Encoding::Single => {
                let payloads = std::mem::take(&mut self.singles);
                let packets = payloads.len() as u64;
                let bytes = payloads.iter().map(|payload| payload.len() as u64 + 64).sum();
                if packets > 0 && self.make_room(packets, bytes) {
                    self.accounts.sent += packets;
                    self.buffer.push(Outgoing::Singles(payloads));
                }
            }
        }
    }

    /// Waits for room where that may be; else the packets that there is no room for are dropped.
    fn make_room(&mut self, packets: u64, bytes: u64) -> bool {
        match self.pacing {
            Pacing::Waits => {
                let began = Instant::now();
                while !self.buffer.wait_for_room(bytes, LOOK) {
                    if self.stop.load(SeqCst) && began.elapsed() >= LAST_WAIT {
                        self.accounts.dropped += packets;
                        return false;
                    }
                }
                true
            }
            Pacing::Goes if self.buffer.has_room(bytes) => true,
            Pacing::Goes => {
                self.accounts.dropped += packets;
                false
            }
        }
    }

    /// Sends a batch of what was collected.
    fn send_batch(&mut self, packets: u64) {
        let header = self.header(self.latest, self.accounts, false);
        let (sequence, first_packet) = (self.sequence, self.before.sent);
        let payload = self.builder.finish(header);
        self.buffer.push(Outgoing::Batch { sequence, first_packet, packets, last: false, payload });
        (self.before, self.watermark) = (self.accounts, self.latest);
        self.sequence += 1;
        self.measure_room();
        self.unsaid += u64::from(first_packet.is_multiple_of(BLOCK));
        if self.unsaid >= self.partitions {
            // Each partition has got one.
            (self.unsaid, self.said) = (0, Instant::now());
        }
    }

    /// A packet's number decides where it goes, so no batch goes on behind the end of a block.
    fn measure_room(&mut self) {
        let left = BLOCK - self.accounts.sent % BLOCK;
        self.room = self.full.min(left as usize);
    }

    /// Tells all partitions how far the probe has come: a batch without packets, which stands before those that are being
    /// collected.
    fn say(&mut self, last: bool) {
        let header = self.header(self.watermark, self.before, last);
        let (sequence, first_packet) = (self.sequence, self.before.sent);
        let payload = BatchBuilder::new(0).finish(header);
        self.buffer.push(Outgoing::Batch { sequence, first_packet, packets: 0, last, payload });
        (self.unsaid, self.said) = (0, Instant::now());
    }

    fn header(&self, latest: u64, after: Accounts, last: bool) -> Header {
        Header {
            probe: self.identity.name.clone(),
            run: self.identity.run,
            sequence: self.sequence,
            first_packet: self.before.sent,
            watermark: self.watermark,
            latest,
            before: self.before,
            after,
            last,
            started: self.identity.started,
            block: BLOCK,
            stride: BLOCK * self.partitions,
            clock: live::now(),
            ..Header::default()
        }
    }

    /// Tells engines that the run begins, before its first packet.
    pub fn begin(&mut self) {
        if self.encoding == Encoding::Batch {
            self.say(false);
        }
    }

    /// Sends what is left, and that it was the last.
    pub fn finish(&mut self) {
        self.flush();
        if self.encoding == Encoding::Batch {
            (self.before, self.watermark) = (self.accounts, self.latest);
            self.say(true);
        }
    }

    /// Frames taken that passed the filter.
    pub fn passed(&self) -> u64 {
        self.read - self.accounts.filtered
    }

    /// Packets that have gone into the buffer.
    pub fn sent(&self) -> u64 {
        self.accounts.sent
    }

    /// The run's books, for programs; `undelivered` packets were read and went no further than this process.
    pub fn report(&self, messages: u64, undelivered: u64, kept: Option<&Kept>, elapsed: Duration) -> Value {
        let Accounts { filtered, non_ip, malformed, kernel_dropped, interface_dropped, .. } = self.accounts;
        let (sent, dropped) = self.sent_and_dropped(undelivered);
        let mut report = json!({
            "id": self.identity.name,
            "run": self.identity.run,
            "packets": {
                "read": self.read, "filtered": filtered, "non_ip": non_ip, "malformed": malformed,
                "sent": sent, "dropped": dropped,
                "kernel_dropped": kernel_dropped, "interface_dropped": interface_dropped,
            },
            "bytes": {"read": self.bytes_read, "sent": self.bytes_sent},
            "messages": messages,
            "reconnects": self.accounts.reconnects,
            "elapsed_seconds": elapsed.as_secs_f64(),
        });
        if let Some(Kept { frames, dropped, .. }) = kept {
            report["savefile"] = json!({"frames": frames, "dropped": dropped});
        }
        report
    }

    fn sent_and_dropped(&self, undelivered: u64) -> (u64, u64) {
        let Accounts { sent, dropped, .. } = self.accounts;
        let undelivered = undelivered.min(sent);
        (sent - undelivered, dropped + undelivered)
    }

    /// The run's books in one line.
    pub fn summary(&self, undelivered: u64) -> String {
        let Accounts { filtered, non_ip, malformed, kernel_dropped, interface_dropped, .. } = self.accounts;
        let (sent, dropped) = self.sent_and_dropped(undelivered);
        format!(
            "read {} = sent {sent} + filtered {filtered} + non_ip {non_ip} + malformed {malformed} + dropped {dropped}; kernel dropped {kernel_dropped}, interface dropped {interface_dropped}",
            self.read
        )
    }
}

/// Packets in a full batch of so many bytes at most.
fn full(pacing: Pacing, bytes: usize, a_packet: usize) -> usize {
    // To send a batch costs a live probe more than its bytes do.
    let most = if pacing == Pacing::Goes { BLOCK as usize } else { FULL };
    (bytes / a_packet).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::batch::Batch;
    use crate::wire::fields::Value as Cell;
    use futures_util::FutureExt;

    const MAX_PAYLOAD: usize = 1 << 20;

    fn frame() -> Vec<u8> {
        let ip = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        [&[2; 12][..], &[8, 0], &ip, &[0, 53, 0, 54, 0, 8, 0, 0]].concat()
    }

    /// What a replay sends of what it is fed with.
    fn sent(names: &[&str], feed: impl FnOnce(&mut Probe)) -> Vec<Batch> {
        let identity = Identity { name: "p".into(), run: 1, started: 0 };
        let buffer = Arc::new(Buffer::new(1 << 30));
        let (encoding, pacing, sizes) = (Encoding::Batch, Pacing::Waits, (MAX_PAYLOAD, 3));
        let probe = Probe::new(identity, encoding, pacing, buffer.clone(), Arc::default(), sizes);
        let mut probe =
            probe.with_fields(names.iter().filter_map(|name| fields::named(name)).collect(), MAX_PAYLOAD);
        feed(&mut probe);
        probe.finish();
        buffer.close();
        let sent = std::iter::from_fn(|| buffer.next().now_or_never().flatten());
        let read = |message| {
            let Outgoing::Batch { payload, .. } = message else { panic!("a single packet") };
            assert!(payload.len() <= MAX_PAYLOAD);
            Batch::read(payload).expect("a batch that engines read")
        };
        sent.map(read).collect()
    }

    #[test]
    fn a_packet_dated_ahead_at_the_end_of_a_block_ends_the_batch_too() {
        for names in [&[][..], &["TTL"]] {
            let batches = sent(names, |probe| {
                for number in 0..BLOCK + 100 {
                    let is_stray = number == BLOCK - 1;
                    let (time, link) = (if is_stray { 1 << 60 } else { number }, LinkType::ETHERNET);
                    match (probe.sends_fields(), is_stray) {
                        (true, _) => {
                            probe.frame_with_fields(link, (time, is_stray), 60, &frame(), Text::default());
                        }
                        (false, true) => probe.stray(link, time, 60, &frame()),
                        (false, false) => probe.frame(link, time, 60, &frame()),
                    }
                    if number == 10 {
                        // A pace cuts batches anywhere.
                        probe.flush();
                    }
                }
            });
            let packets: u64 = batches.iter().map(|batch| u64::from(batch.packets)).sum();
            assert_eq!(packets, BLOCK + 100);
        }
    }

    #[test]
    fn long_names_of_many_interfaces_are_spread_over_batches() {
        let name = |number: u64| format!("{number:0>200}");
        let batches = sent(&["Interface"], |probe| {
            for number in 0..2000 {
                let interface = Text::new(&name(number));
                probe.frame_with_fields(LinkType::ETHERNET, (number, false), 60, &frame(), interface);
            }
        });
        let mut names = Vec::new();
        for batch in batches.iter().filter(|batch| batch.packets > 0) {
            names.extend((0..batch.packets as usize).map(|at| match batch.fields()[0].value(at) {
                Cell::Text(text) => text.to_owned(),
                Cell::Number(number) => panic!("{number}"),
            }));
        }
        assert_eq!(names, (0..2000).map(name).collect::<Vec<_>>());
        assert!(batches.len() > 20, "{}", batches.len());
    }
}
