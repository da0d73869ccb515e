//! Thousands of packets a message: `PacketBatch`, in columns that are read where they lie.
//!
//! A column of fixed-size numbers has the same bytes whether a schema calls it packed numbers or bytes. So [`Batch`]
//! reads them as bytes, which prost hands out without a copy; a test holds that the generated message agrees.
//! 22 bytes a packet for IPv4, and what the columns of [`fields`] take where there are any.

use super::WireError;
use super::fields::{self, Asked, Column};
use super::v1::Accounts;
use bytes::Bytes;
use dataflows::field::{Extension, Field};
use dataflows::layers::Layers;
use dataflows::packet::{Address, Packet, Transport};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::ops::Deref;

/// More packets or bytes than any run has: what is above is no count of ours.
pub const MOST: u64 = 1 << 53;
/// Bytes that a probe's name may have.
pub const LONGEST_NAME: usize = 128;

/// Packets in a full batch: about 90 kB of IPv4.
pub const FULL: usize = 4096;

/// Packets that go to one subject before the next: the largest batch that a probe sends.
pub const BLOCK: u64 = 2 * FULL as u64;
/// Longest block and stride that a probe may have.
const MAX_STRIDE: u64 = 1 << 40;

/// What a batch says beside its packets. Field by field as in `proto/packets.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct Header {
    /// Name of the probe.
    #[prost(string, tag = "1")]
    pub probe: String,
    /// Which run of it.
    #[prost(fixed64, tag = "2")]
    pub run: u64,
    /// Number of the batch in the run.
    #[prost(uint64, tag = "3")]
    pub sequence: u64,
    /// Packets in the batch; [`BatchBuilder::finish`] sets it.
    #[prost(uint32, tag = "4")]
    pub packets: u32,
    /// Number of its first packet in the run.
    #[prost(uint64, tag = "5")]
    pub first_packet: u64,
    /// Latest time before its first packet, nanoseconds since the Unix epoch.
    #[prost(fixed64, tag = "6")]
    pub watermark: u64,
    /// Latest time through its last packet.
    #[prost(fixed64, tag = "7")]
    pub latest: u64,
    /// The probe's accounts before the batch.
    #[prost(message, required, tag = "8")]
    pub before: Accounts,
    /// The probe's accounts through the batch.
    #[prost(message, required, tag = "9")]
    pub after: Accounts,
    /// Nothing comes after it.
    #[prost(bool, tag = "10")]
    pub last: bool,
    /// When the run began, on the probe's clock.
    #[prost(fixed64, tag = "11")]
    pub started: u64,
    /// Packets that go to one subject before the next; 0 where batches are spread by their own number.
    #[prost(uint64, tag = "12")]
    pub block: u64,
    /// Packets after which the first subject gets the next block.
    #[prost(uint64, tag = "13")]
    pub stride: u64,
    /// When the batch was made, on the probe's clock; 0 where it does not say.
    #[prost(fixed64, tag = "14")]
    pub clock: u64,
    /// What its times are told from; [`BatchBuilder::finish`] sets it.
    #[prost(fixed64, tag = "16")]
    pub base_time: u64,
}

/// Its packets, a column each, as bytes.
#[derive(Clone, PartialEq, Message)]
struct Columns {
    #[prost(bytes = "bytes", tag = "17")]
    time_offset: Bytes,
    #[prost(bytes = "bytes", tag = "18")]
    time: Bytes,
    #[prost(bytes = "bytes", tag = "19")]
    transport: Bytes,
    #[prost(bytes = "bytes", tag = "20")]
    length: Bytes,
    #[prost(bytes = "bytes", tag = "21")]
    ipv4: Bytes,
    #[prost(bytes = "bytes", tag = "22")]
    wide: Bytes,
    #[prost(bytes = "bytes", tag = "23")]
    ipv6: Bytes,
    #[prost(bytes = "bytes", tag = "24")]
    raised_at: Bytes,
    #[prost(bytes = "bytes", tag = "25")]
    raised_to: Bytes,
    #[prost(bytes = "bytes", tag = "26")]
    fields: Bytes,
}

/// `v1.PacketBatch`: a header and columns, which are one message on the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    header: Header,
    columns: Columns,
    /// Those of fields that the probe was told to send.
    fields: Vec<Column>,
}

impl Deref for Batch {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

/// A batch's event: a packet, or the latest time where packets alone do not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The next packet.
    Packet(Packet),
    /// The next packet, which is dated ahead by mistake and moves no watermark.
    Stray(Packet),
    /// The watermark before the next packet, nanoseconds since the Unix epoch.
    Raised(u64),
}

/// In place of a time to which the latest time is raised: the packet there is a stray.
const STRAY: u64 = 0;

fn u32s(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks().0.iter().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64s(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks().0.iter().map(|chunk| u64::from_le_bytes(*chunk))
}

impl Batch {
    /// Reads a message and checks that its columns belong together, so that [`Self::visit`] meets no surprise.
    pub fn read(bytes: Bytes) -> Result<Self, WireError> {
        // Each passes over the fields of the other.
        let (header, columns) = (Header::decode(bytes.clone())?, Columns::decode(bytes)?);
        let mut batch = Self { header, columns, fields: Vec::new() };
        let columns = &batch.columns;
        if batch.probe.is_empty() {
            return Err(WireError::Missing("probe"));
        }
        if batch.probe.len() > LONGEST_NAME {
            let found = batch.probe.len();
            return Err(WireError::Length { field: "probe", found, expected: LONGEST_NAME });
        }
        let packets = batch.packets as usize;
        let range = |field, value: u64| WireError::Range { field, value: value.into() };
        batch.check_accounts()?;
        if batch.first_packet > MOST {
            return Err(range("first_packet", batch.first_packet));
        }
        if batch.before.sent != batch.first_packet || batch.after.sent != batch.first_packet + packets as u64
        {
            return Err(range("sent", batch.after.sent));
        }
        batch.check_block()?;
        if batch.latest < batch.watermark {
            return Err(range("latest", batch.latest));
        }
        let length = |field, column: &Bytes, entries: usize, size: usize| {
            let (found, expected) = (column.len(), entries.saturating_mul(size));
            if found == expected { Ok(()) } else { Err(WireError::Length { field, found, expected }) }
        };
        let wide = columns.wide.len() / 4;
        if wide > packets {
            return Err(range("wide", wide as u64));
        }
        length("wide", &columns.wide, wide, 4)?;
        length("ipv4", &columns.ipv4, packets - wide, 8)?;
        length("ipv6", &columns.ipv6, wide, 32)?;
        length("transport", &columns.transport, packets, 8)?;
        if columns.time.is_empty() {
            length("time_offset", &columns.time_offset, packets, 4)?;
        } else {
            length("time", &columns.time, packets, 8)?;
        }
        if columns.length.len() != packets * 2 {
            length("length", &columns.length, packets, 4)?;
        }
        let raised = columns.raised_at.len() / 4;
        length("raised_at", &columns.raised_at, raised, 4)?;
        length("raised_to", &columns.raised_to, raised, 8)?;
        ascending("wide", &columns.wide, packets, 1)?;
        ascending("raised_at", &columns.raised_at, packets, 0)?;
        let last = match columns.time.is_empty() {
            true => batch.base_time.saturating_add(u32s(&columns.time_offset).max().unwrap_or(0).into()),
            false => u64s(&columns.time).max().unwrap_or(0),
        };
        let last = u64s(&columns.raised_to).fold(last, u64::max);
        if last > batch.latest && packets > 0 && batch.latest_time() > batch.latest {
            // Windows are closed by what it says.
            return Err(range("latest", batch.latest));
        }
        batch.fields = fields::read(columns.fields.clone(), packets)?;
        Ok(batch)
    }

    /// The columns of fields that the probe was told to send.
    pub fn fields(&self) -> &[Column] {
        &self.fields
    }

    /// Finds the fields that tasks ask for among them.
    pub fn asked(&self, extension: &Extension) -> Asked<'_> {
        Asked::new(&self.fields, extension)
    }

    /// Checks that no count is more than any run has.
    fn check_accounts(&self) -> Result<(), WireError> {
        for accounts in [&self.before, &self.after] {
            let Accounts { filtered, non_ip, malformed, uncounted_bytes, sent, dropped, .. } = *accounts;
            let Accounts { kernel_dropped, interface_dropped, .. } = *accounts;
            let counts = [filtered, non_ip, malformed, uncounted_bytes, sent, dropped];
            let mut counts = counts.into_iter().chain([kernel_dropped, interface_dropped]);
            if let Some(count) = counts.find(|count| *count > MOST) {
                return Err(WireError::Range { field: "accounts", value: count.into() });
            }
        }
        Ok(())
    }

    /// Checks that its packets are of one block, where the run has blocks.
    fn check_block(&self) -> Result<(), WireError> {
        let Header { block, stride, first_packet, .. } = self.header;
        if block == 0 && stride == 0 {
            return Ok(());
        }
        if block == 0 || !stride.is_multiple_of(block) || !(block..=MAX_STRIDE).contains(&stride) {
            return Err(WireError::Range { field: "stride", value: stride.into() });
        }
        if first_packet % block + u64::from(self.packets) > block {
            return Err(WireError::Range { field: "block", value: block.into() });
        }
        Ok(())
    }

    /// The number of its first packet among those of the run that go to the same subject, where the run has blocks; else its
    /// number in the run.
    pub fn first_in_subject(&self) -> u64 {
        let Header { block, stride, first_packet, .. } = self.header;
        match stride {
            0 => first_packet,
            _ => first_packet / stride * block + first_packet % block,
        }
    }

    /// The numbers of its packets in the run.
    pub fn numbers(&self) -> std::ops::Range<u64> {
        self.first_packet..self.first_packet + u64::from(self.packets)
    }

    /// The latest time that it shows, strays left out.
    fn latest_time(&self) -> u64 {
        let mut latest = 0;
        self.visit(|item| match item {
            Item::Packet(Packet { time, .. }) | Item::Raised(time) => latest = latest.max(time),
            Item::Stray(_) => {}
        });
        latest
    }

    /// Time of its earliest packet, nanoseconds since the Unix epoch.
    pub fn earliest(&self) -> u64 {
        self.base_time
    }

    /// Visits the packets in the order in which the probe read them.
    #[inline]
    pub fn visit(&self, visit: impl FnMut(Item)) {
        match (self.columns.time.is_empty(), self.columns.length.len() == self.packets as usize * 2) {
            (true, true) => self.visit_columns(self.offsets(), self.short_lengths(), visit),
            (true, false) => self.visit_columns(self.offsets(), u32s(&self.columns.length), visit),
            (false, true) => self.visit_columns(u64s(&self.columns.time), self.short_lengths(), visit),
            (false, false) => self.visit_columns(u64s(&self.columns.time), u32s(&self.columns.length), visit),
        }
    }

    fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        u32s(&self.columns.time_offset).map(|offset| self.base_time.saturating_add(offset.into()))
    }

    fn short_lengths(&self) -> impl Iterator<Item = u32> + '_ {
        self.columns.length.as_chunks().0.iter().map(|chunk| u16::from_le_bytes(*chunk).into())
    }

    #[inline(always)]
    fn visit_columns(
        &self,
        times: impl Iterator<Item = u64>,
        lengths: impl Iterator<Item = u32>,
        mut visit: impl FnMut(Item),
    ) {
        let none = u32::MAX;
        let (mut wide, mut ipv6) = (u32s(&self.columns.wide), self.columns.ipv6.as_chunks::<16>().0.iter());
        let mut ipv4 = u32s(&self.columns.ipv4);
        let mut next_wide = wide.next().unwrap_or(none);
        let mut raised = u32s(&self.columns.raised_at).zip(u64s(&self.columns.raised_to));
        let mut next_raised = raised.next();
        let mut raise_at = next_raised.map_or(none, |(at, _)| at);
        for (at, ((time, transport), length)) in
            (0..).zip(times.zip(u64s(&self.columns.transport)).zip(lengths))
        {
            let mut is_stray = false;
            while at == raise_at {
                match next_raised {
                    Some((_, STRAY)) => is_stray = true,
                    Some((_, to)) => visit(Item::Raised(to)),
                    None => {}
                }
                next_raised = raised.next();
                raise_at = next_raised.map_or(none, |(at, _)| at);
            }
            let (source, destination) = if at == next_wide {
                next_wide = wide.next().unwrap_or(none);
                let mut next = || Address(ipv6.next().map_or(0, |bytes| u128::from_be_bytes(*bytes)));
                (next(), next())
            } else {
                let mut next = || Address::v4(ipv4.next().unwrap_or(0));
                (next(), next())
            };
            let transport = Transport(transport);
            let packet = Packet { time, transport, source, destination, length };
            visit(if is_stray { Item::Stray(packet) } else { Item::Packet(packet) });
        }
    }
}

/// Checks that places ascend, by so much at least, and lie within the batch.
fn ascending(field: &'static str, places: &[u8], packets: usize, by: u64) -> Result<(), WireError> {
    let mut least = 0;
    for place in u32s(places).map(u64::from) {
        if place < least || place >= packets as u64 {
            return Err(WireError::Range { field, value: place.into() });
        }
        least = place + by;
    }
    Ok(())
}

/// Collects packets into the columns of a batch.
pub struct BatchBuilder {
    times: Vec<u64>,
    transport: Vec<u8>,
    lengths: Vec<u32>,
    ipv4: Vec<u8>,
    wide: Vec<u8>,
    ipv6: Vec<u8>,
    raised_at: Vec<u8>,
    raised_to: Vec<u8>,
    fields: fields::Columns,
    /// Latest time that whoever reads the batch knows.
    known: u64,
    bytes: u64,
}

impl BatchBuilder {
    /// An empty batch behind frames up to this time, nanoseconds since the Unix epoch.
    pub fn new(watermark: u64) -> Self {
        Self {
            times: Vec::with_capacity(FULL),
            transport: Vec::with_capacity(FULL * 8),
            lengths: Vec::with_capacity(FULL),
            ipv4: Vec::with_capacity(FULL * 8),
            wide: Vec::new(),
            ipv6: Vec::new(),
            raised_at: Vec::new(),
            raised_to: Vec::new(),
            fields: fields::Columns::default(),
            known: watermark,
            bytes: 0,
        }
    }

    /// The same, with columns of these fields: [`Self::push_fields`] comes before each packet.
    pub fn with_fields(self, fields: &[&'static Field]) -> Self {
        Self { fields: fields::Columns::new(fields), ..self }
    }

    /// Appends the fields of the packet that is pushed next.
    #[inline]
    pub fn push_fields(&mut self, layers: &Layers<'_>) {
        self.fields.push(layers);
    }

    /// Bytes of the texts in the columns of fields.
    pub fn text_bytes(&self) -> usize {
        self.fields.text_bytes()
    }

    /// Appends a packet; `latest` is the latest time of all frames read so far, its own included.
    #[inline]
    pub fn push(&mut self, packet: &Packet, latest: u64) {
        self.known = self.known.max(packet.time);
        self.raise(latest);
        self.append(packet);
    }

    /// Appends a packet that is dated ahead by mistake; `latest` is the latest time without it.
    #[cold]
    pub fn push_stray(&mut self, packet: &Packet, latest: u64) {
        self.raise(latest);
        self.note_raised(STRAY);
        self.append(packet);
    }

    /// Tells of the latest time where packets alone do not show it.
    #[inline(always)]
    fn raise(&mut self, latest: u64) {
        if latest > self.known {
            self.known = latest;
            self.note_raised(latest);
        }
    }

    fn note_raised(&mut self, to: u64) {
        let at = self.times.len() as u32;
        self.raised_at.extend_from_slice(&at.to_le_bytes());
        self.raised_to.extend_from_slice(&to.to_le_bytes());
    }

    #[inline(always)]
    fn append(&mut self, packet: &Packet) {
        let at = self.times.len() as u32;
        let Packet { time, transport, source, destination, length } = *packet;
        self.times.push(time);
        self.transport.extend_from_slice(&transport.0.to_le_bytes());
        self.lengths.push(length);
        self.bytes += u64::from(length);
        if source.is_v4() && destination.is_v4() {
            let both = u64::from(source.0 as u32) | u64::from(destination.0 as u32) << 32;
            self.ipv4.extend_from_slice(&both.to_le_bytes());
        } else {
            self.wide.extend_from_slice(&at.to_le_bytes());
            self.ipv6.extend_from_slice(&source.0.to_be_bytes());
            self.ipv6.extend_from_slice(&destination.0.to_be_bytes());
        }
    }

    /// Packets collected.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Bytes on the wire of the packets collected.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Throws away what was collected and begins the next batch behind frames up to `latest`.
    pub fn clear(&mut self, latest: u64) {
        self.times.clear();
        self.lengths.clear();
        for column in [&mut self.transport, &mut self.ipv4, &mut self.wide] {
            column.clear();
        }
        for column in [&mut self.ipv6, &mut self.raised_at, &mut self.raised_to] {
            column.clear();
        }
        self.fields.clear();
        (self.known, self.bytes) = (latest, 0);
    }

    /// Time of the first packet.
    pub fn first_time(&self) -> Option<u64> {
        self.times.first().copied()
    }

    /// Makes a message of the columns and begins the next behind it.
    pub fn finish(&mut self, mut header: Header) -> Bytes {
        let base_time = self.times.iter().copied().min().unwrap_or(0);
        let span = self.times.iter().copied().max().unwrap_or(0) - base_time;
        let short_times = span <= u32::MAX.into();
        let short_lengths = self.lengths.iter().all(|length| *length <= u16::MAX.into());
        let packets = self.times.len();
        (header.packets, header.base_time) = (packets as u32, base_time);
        let mut fields = self.fields.message(packets);

        let columns = [
            (19, &mut self.transport),
            (21, &mut self.ipv4),
            (22, &mut self.wide),
            (23, &mut self.ipv6),
            (24, &mut self.raised_at),
            (25, &mut self.raised_to),
            (26, &mut fields),
        ];
        let time_bytes = packets * if short_times { 4 } else { 8 };
        let length_bytes = packets * if short_lengths { 2 } else { 4 };
        let column_bytes: usize = columns.iter().map(|(_, column)| column.len()).sum();
        // A key of two bytes and a length of at most ten before each column.
        let most = header.encoded_len() + column_bytes + time_bytes + length_bytes + 12 * (columns.len() + 2);
        let mut message = Vec::with_capacity(most);
        header.encode(&mut message).expect("a buffer with room for the message");
        begin_column(17 + u32::from(!short_times), time_bytes, &mut message);
        if short_times {
            message.extend(self.times.iter().flat_map(|time| ((time - base_time) as u32).to_le_bytes()));
        } else {
            message.extend(self.times.iter().flat_map(|time| time.to_le_bytes()));
        }
        begin_column(20, length_bytes, &mut message);
        if short_lengths {
            message.extend(self.lengths.iter().flat_map(|length| (*length as u16).to_le_bytes()));
        } else {
            message.extend(self.lengths.iter().flat_map(|length| length.to_le_bytes()));
        }
        for (tag, column) in columns {
            begin_column(tag, column.len(), &mut message);
            message.append(column);
        }
        self.clear(header.latest);
        message.into()
    }
}

/// Begins a field of so many bytes; without any there is no field.
fn begin_column(tag: u32, bytes: usize, message: &mut Vec<u8>) {
    if bytes > 0 {
        encode_key(tag, WireType::LengthDelimited, message);
        encode_varint(bytes as u64, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1::PacketBatch;
    use dataflows::field::Plan;
    use proptest::prelude::*;

    fn packet() -> impl Strategy<Value = Packet> {
        let address = prop_oneof![
            4 => any::<u32>().prop_map(Address::v4),
            1 => any::<u128>().prop_map(Address),
        ];
        let time = prop_oneof![8 => 0u64..1_000_000, 1 => any::<u64>()];
        let length = prop_oneof![8 => 0u32..2000, 1 => any::<u32>()];
        (time, any::<u64>(), address.clone(), address, length).prop_map(
            |(time, transport, source, destination, length)| Packet {
                time,
                transport: Transport(transport),
                source,
                destination,
                length,
            },
        )
    }

    fn bytes_of(batch: &Batch) -> Bytes {
        [batch.header.encode_to_vec(), batch.columns.encode_to_vec()].concat().into()
    }

    /// Packets, each with the time of a frame before it that is not sent.
    fn built(frames: &[(u64, Packet)], watermark: u64) -> (Bytes, Vec<Item>) {
        built_with(&[], frames, watermark)
    }

    /// The same with columns of these fields.
    fn built_with(fields: &[&'static Field], frames: &[(u64, Packet)], watermark: u64) -> (Bytes, Vec<Item>) {
        let mut builder = BatchBuilder::new(watermark).with_fields(fields);
        let (mut latest, mut known, mut items) = (watermark, watermark, Vec::new());
        for (other, packet) in frames {
            latest = latest.max(*other).max(packet.time);
            known = known.max(packet.time);
            if latest > known {
                known = latest;
                items.push(Item::Raised(latest));
            }
            items.push(Item::Packet(*packet));
            builder.push_fields(&Layers { source_mac: packet.time, ..Layers::default() });
            builder.push(packet, latest);
        }
        let sent = frames.len() as u64;
        let header = Header {
            probe: "p".into(),
            run: 7,
            sequence: 3,
            watermark,
            latest,
            after: Accounts { sent, ..Accounts::default() },
            ..Header::default()
        };
        (builder.finish(header), items)
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_in_order(
            frames in proptest::collection::vec((prop_oneof![Just(0), 0u64..2_000_000], packet()), 0..200),
            watermark in 0u64..1_000_000,
        ) {
            let (batch, items) = built(&frames, watermark);
            let read = Batch::read(batch).expect("our own batch");
            let mut seen = Vec::new();
            read.visit(|item| seen.push(item));
            prop_assert_eq!(seen, items);
        }

        #[test]
        fn the_generated_message_reads_and_writes_the_same_bytes(
            frames in proptest::collection::vec((Just(0), packet()), 0..50),
        ) {
            let fields: Vec<_> = ["SrcMAC", "Interface"].into_iter().filter_map(fields::named).collect();
            let (batch, _) = built_with(&fields, &frames, 5);
            let generated = PacketBatch::decode(&batch[..]).expect("the same message");
            let transports: Vec<u64> = frames.iter().map(|(_, packet)| packet.transport.0).collect();
            prop_assert_eq!(&generated.transport, &transports);
            let again = Batch::read(generated.encode_to_vec().into()).expect("the same batch");
            prop_assert_eq!(again, Batch::read(batch).expect("our own batch"));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(batch) = Batch::read(bytes.into()) {
                batch.visit(|_| {});
            }
        }

        #[test]
        fn a_damaged_batch_does_not_panic(
            frames in proptest::collection::vec((Just(9_000_000), packet()), 1..20),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = built(&frames, 5).0.to_vec();
            *at.get_mut(&mut bytes) = byte;
            if let Ok(batch) = Batch::read(bytes.into()) {
                batch.visit(|_| {});
            }
        }
    }

    #[test]
    fn an_ipv4_packet_takes_less_than_24_bytes() {
        let packet =
            Packet { source: Address::v4(1), destination: Address::v4(2), length: 1514, ..Packet::default() };
        let (batch, _) = built(&vec![(0, packet); FULL], 0);
        assert!(batch.len() < FULL * 23, "{}", batch.len());
    }

    #[test]
    fn the_values_of_fields_are_those_of_their_packets() {
        let field = fields::named("SrcMAC").expect("a field that ships");
        let packet = |time| (0, Packet { time, source: Address(1), ..Packet::default() });
        let (batch, _) = built_with(&[field], &[packet(7), packet(5), packet(9)], 0);
        let (read, plan) = (Batch::read(batch).expect("our own batch"), Plan::default());
        plan.place_in_keys(field).expect("room");
        let asked = read.asked(&plan.extension());
        assert_eq!([0, 1, 2, 3].map(|at| asked.words(at)[0]), [7, 5, 9, 0]);
        let (older, _) = built(&[packet(7)], 0);
        let older = Batch::read(older).expect("a batch without columns");
        assert_eq!(older.asked(&plan.extension()).missing(), ["SrcMAC"]);
        assert!(older.fields().is_empty() && older.asked(&Extension::default()).missing().is_empty());
    }

    #[test]
    fn columns_that_do_not_belong_together_are_refused() {
        let (batch, _) = built(
            &[(0, Packet { source: Address::v4(1), destination: Address::v4(2), ..Packet::default() })],
            0,
        );
        let batch = Batch::read(batch).expect("our own batch");
        for spoil in [
            |batch: &mut Batch| batch.header.packets = 2,
            |batch: &mut Batch| batch.columns.transport = Bytes::new(),
            |batch: &mut Batch| batch.columns.wide = Bytes::from_static(&[0; 4]),
            |batch: &mut Batch| batch.columns.wide = Bytes::from_static(&[9; 8]),
            |batch: &mut Batch| batch.columns.raised_at = Bytes::from_static(&[1, 0, 0, 0]),
            |batch: &mut Batch| batch.header.first_packet = u64::MAX,
            |batch: &mut Batch| batch.header.probe.clear(),
            |batch: &mut Batch| batch.header.watermark = 1,
            |batch: &mut Batch| batch.header.block = 1,
            |batch: &mut Batch| (batch.header.block, batch.header.stride) = (2, 3),
            |batch: &mut Batch| (batch.header.block, batch.header.stride) = (1, u64::MAX),
            |batch: &mut Batch| batch.header.stride = 2,
            |batch: &mut Batch| {
                batch.columns.fields = Bytes::from_static(b"\x0a\x09\x0a\x03TTL\x12\x02\x40\x40")
            },
            |batch: &mut Batch| batch.columns.fields = Bytes::from_static(&[0xff]),
        ] {
            let mut spoilt = batch.clone();
            spoil(&mut spoilt);
            Batch::read(bytes_of(&spoilt)).expect_err("a batch to refuse");
        }
        Batch::read(bytes_of(&batch)).expect("the batch itself");
    }

    #[test]
    fn a_batch_over_the_end_of_a_block_is_refused() {
        let packet = Packet { source: Address::v4(1), destination: Address::v4(2), ..Packet::default() };
        let (batch, _) = built(&[(0, packet); 4], 0);
        let mut batch = Batch::read(batch).expect("our own batch");
        (batch.header.block, batch.header.stride) = (8, 24);
        for (first, in_subject) in
            [(0, Some(0)), (4, Some(4)), (5, None), (8, Some(0)), (24, Some(8)), (52, Some(20))]
        {
            batch.header.first_packet = first;
            (batch.header.before.sent, batch.header.after.sent) = (first, first + 4);
            let read = Batch::read(bytes_of(&batch)).ok();
            assert_eq!(read.map(|batch| batch.first_in_subject()), in_subject, "{first}");
        }
    }
}
