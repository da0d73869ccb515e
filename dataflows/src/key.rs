//! Keys: which fields of a packet make a flow, and the fixed layouts that hold any combination of them.
//!
//! A key is the packet's own address and transport words, and its extension words where the key has extra fields, with
//! everything masked out that the task does not name: so rolling a fine key up to a coarser one is masking again. Where all
//! addresses left are IPv4 (or none is left) the key is compact, else it is wide; one flow never appears in both. A key that
//! needs more than one extension word is full, whatever its addresses are.

use crate::field::{FIELDS, Field, KEY_WORDS, Kind, Lives, NoRoom, Place, Plan, parse_extra};
use crate::layers::Text;
use crate::packet::{Address, Packet, Transport};
use crate::table::route;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Two words: source IPv4 (high half) and destination IPv4 (low half), then [`Transport`].
pub type Compact = [u64; 2];
/// Five words: source address, destination address (high word first), then [`Transport`].
pub type Wide = [u64; 5];
/// A compact key, then an extension word.
pub type CompactExtra = [u64; 3];
/// A wide key, then an extension word.
pub type WideExtra = [u64; 6];
/// A wide key, then all extension words that keys can hold.
pub type Full = [u64; 5 + KEY_WORDS];

/// How the words of a key lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Layout {
    /// [`Compact`].
    #[default]
    Compact,
    /// [`Wide`].
    Wide,
    /// [`CompactExtra`].
    CompactExtra,
    /// [`WideExtra`].
    WideExtra,
    /// [`Full`].
    Full,
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 5] = [Self::Compact, Self::Wide, Self::CompactExtra, Self::WideExtra, Self::Full];

    /// Words of a key.
    #[inline(always)]
    pub const fn words(self) -> usize {
        match self {
            Self::Compact => 2,
            Self::Wide => 5,
            Self::CompactExtra => 3,
            Self::WideExtra => 6,
            Self::Full => 5 + KEY_WORDS,
        }
    }

    /// The layout of this number, as `as u64` gives it.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// Why a field name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Not a field at all.
    #[error("unknown field `{name}`; one of {}, or a prefix such as SrcIP/24 (IPv4), SrcIP/64 (IPv6), SrcIP/24/64 (both)", known.join(", "))]
    Unknown {
        /// What it says.
        name: String,
        /// The names of all fields.
        known: Vec<&'static str>,
    },
    /// A prefix length outside of its family's range.
    #[error(
        "bad prefix in `{0}`: 1 to 32 bits for IPv4, 33 to 128 for IPv6 alone, or both as in SrcIP/24/48"
    )]
    Prefix(String),
    /// Two fields that would make the same column.
    #[error("`{0}` is named twice")]
    Twice(String),
    /// No field at all.
    #[error("a key needs at least one field")]
    Empty,
    /// Too many extra fields.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// A column of a key: a field, and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyColumn {
    /// The field.
    pub field: &'static Field,
    /// Of an address, the bits kept in IPv4, 1..=32, and IPv6, 1..=128; 32 and 128 keep it whole.
    pub prefix: (u8, u8),
    /// Of an extra field, where it lies.
    pub place: Option<Place>,
}

const WHOLE: (u8, u8) = (32, 128);

impl KeyColumn {
    /// Reads a name as configuration spells it: `SrcIP`, `DstPort`, `SrcIP/24`, `DstIP/24/64`.
    ///
    /// A single prefix length of at most 32 cuts IPv4 addresses and one above 32 cuts IPv6 addresses; the other family
    /// stays whole.
    fn parse(name: &str, fields: &[&'static Field], plan: &Plan) -> Result<Self, FieldError> {
        let mut parts = name.split('/');
        let base = parts.next().unwrap_or_default();
        let lengths = parts
            .map(|part| part.parse::<u8>().map_err(|_| FieldError::Prefix(name.into())))
            .collect::<Result<Vec<_>, _>>()?;
        let prefix = match lengths[..] {
            [] => WHOLE,
            [both @ 1..=32] => (both, 128),
            [both @ 33..=128] => (32, both),
            [v4 @ 1..=32, v6 @ 1..=128] => (v4, v6),
            _ => return Err(FieldError::Prefix(name.into())),
        };
        let field = fields.iter().copied().find(|field| {
            // Only an address has prefixes.
            field.name == base && (lengths.is_empty() || field.kind == Kind::Address)
        });
        let Some(field) = field else {
            let known = fields.iter().map(|field| field.name).collect();
            return Err(FieldError::Unknown { name: name.into(), known });
        };
        Self::of(field, prefix, plan)
    }

    fn of(field: &'static Field, prefix: (u8, u8), plan: &Plan) -> Result<Self, FieldError> {
        let place = field.is_extra().then(|| plan.place_in_keys(field)).transpose()?;
        Ok(Self { field, prefix, place })
    }

    /// A whole base field.
    pub fn base(field: &'static Field) -> Self {
        Self { field, prefix: WHOLE, place: None }
    }

    /// A prefix of an address, so many bits of IPv4 and of IPv6.
    pub fn prefix_of(field: &'static Field, prefix: (u8, u8)) -> Self {
        Self { field, prefix, place: None }
    }

    /// The column's name in every table.
    pub fn name(&self) -> &'static str {
        match (self.field.lives, self.prefix) {
            (Lives::Source, prefix) if prefix != WHOLE => "src_prefix",
            (Lives::Destination, prefix) if prefix != WHOLE => "dst_prefix",
            _ => self.field.column,
        }
    }

    /// Whether the column holds whole addresses.
    pub fn is_address(&self) -> bool {
        self.field.kind == Kind::Address && self.prefix == WHOLE
    }

    /// Whether the column holds prefixes.
    pub fn is_prefix(&self) -> bool {
        self.field.kind == Kind::Address && self.prefix != WHOLE
    }

    /// What comes before it where keys pack their columns.
    fn rank(&self) -> (usize, usize, u32) {
        match (self.field.lives, self.place) {
            (Lives::Source, _) => (0, 0, 0),
            (Lives::Destination, _) => (1, 0, 0),
            (Lives::Transport(shift), _) => (2, 0, 64 - shift),
            (Lives::Extra(_), place) => place.map_or((3, 0, 0), |place| (3, place.word, 64 - place.shift)),
        }
    }
}

/// What is kept of one address: nothing, or a prefix a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct AddressMask {
    v4: u32,
    v6: u128,
}

impl AddressMask {
    fn new((v4, v6): (u8, u8)) -> Self {
        Self { v4: u32::MAX << (32 - u32::from(v4)), v6: u128::MAX << (128 - u32::from(v6)) }
    }

    #[inline(always)]
    fn apply(self, address: Address) -> Address {
        if self.v6 == 0 {
            Address(0)
        } else if address.is_v4() {
            Address(address.0 & (u128::MAX << 32 | u128::from(self.v4)))
        } else {
            Address(address.0 & self.v6)
        }
    }

    /// Whether an address under this mask fits into 32 bits.
    #[inline(always)]
    fn fits_compact(self, address: Address) -> bool {
        self.v6 == 0 || address.is_v4()
    }

    fn union(self, other: Self) -> Self {
        Self { v4: self.v4 | other.v4, v6: self.v6 | other.v6 }
    }
}

/// Which bits of a packet a key keeps. Masks order key sets: the finer one holds all bits of the coarser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask {
    source: AddressMask,
    destination: AddressMask,
    transport: u64,
    extra: [u64; KEY_WORDS],
}

/// A key in the layout that its mask and its addresses call for. Its own order is that of the words, not that of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// All addresses are IPv4, or there are none.
    Compact(Compact),
    /// At least one address is IPv6.
    Wide(Wide),
    /// Compact, with an extension word.
    CompactExtra(CompactExtra),
    /// Wide, with an extension word.
    WideExtra(WideExtra),
    /// With more extension words.
    Full(Full),
}

impl Key {
    /// The key that words of a layout begin with.
    #[inline(always)]
    pub fn of_words(layout: Layout, words: &[u64]) -> Self {
        fn first<const N: usize>(words: &[u64]) -> [u64; N] {
            *words.first_chunk().expect("a key has all of its words")
        }
        match layout {
            Layout::Compact => Self::Compact(first(words)),
            Layout::Wide => Self::Wide(first(words)),
            Layout::CompactExtra => Self::CompactExtra(first(words)),
            Layout::WideExtra => Self::WideExtra(first(words)),
            Layout::Full => Self::Full(first(words)),
        }
    }

    /// Its words.
    #[inline(always)]
    pub fn words(&self) -> &[u64] {
        match self {
            Self::Compact(words) => words,
            Self::Wide(words) => words,
            Self::CompactExtra(words) => words,
            Self::WideExtra(words) => words,
            Self::Full(words) => words,
        }
    }

    /// How they lie.
    #[inline(always)]
    pub fn layout(&self) -> Layout {
        match self {
            Self::Compact(_) => Layout::Compact,
            Self::Wide(_) => Layout::Wide,
            Self::CompactExtra(_) => Layout::CompactExtra,
            Self::WideExtra(_) => Layout::WideExtra,
            Self::Full(_) => Layout::Full,
        }
    }

    /// Its ports, protocol, flags, VLAN and version.
    pub fn transport(&self) -> Transport {
        Parts::of(self.layout(), self.words()).transport
    }

    /// The hash that decides which worker owns the key: see [`route`].
    pub fn route(&self) -> u64 {
        match self {
            Self::Compact(key) => route(key),
            Self::Wide(key) => route(key),
            Self::CompactExtra(key) => route(key),
            Self::WideExtra(key) => route(key),
            Self::Full(key) => route(key),
        }
    }

    /// The key rolled up to a coarser key set.
    #[inline(always)]
    pub fn under(&self, mask: Mask) -> Self {
        match self {
            Self::Compact(key) => Self::Compact(mask.coarsen_compact(key)),
            Self::Wide(key) => mask.coarsen_wide(key),
            _ => mask.key_of(Parts::of(self.layout(), self.words())),
        }
    }
}

/// What a key is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Parts {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Ports, protocol, flags, VLAN, version.
    pub transport: Transport,
    /// Extension words.
    pub extra: [u64; KEY_WORDS],
}

impl Parts {
    /// The parts of a key; a masked-out address of a compact key reads as 0.0.0.0.
    #[inline(always)]
    fn of(layout: Layout, words: &[u64]) -> Self {
        let address = |high: u64, low: u64| Address(u128::from(high) << 64 | u128::from(low));
        let none = [0; KEY_WORDS];
        let one = |word| {
            let mut extra = none;
            extra[0] = word;
            extra
        };
        let (source, destination, transport, extra) = match (layout, words) {
            (Layout::Compact | Layout::CompactExtra, &[addresses, transport, ref rest @ ..]) => {
                let extra = match (layout, rest) {
                    (Layout::CompactExtra, &[word, ..]) => one(word),
                    _ => none,
                };
                (Address::v4((addresses >> 32) as u32), Address::v4(addresses as u32), transport, extra)
            }
            (_, &[a, b, c, d, transport, ref rest @ ..]) => {
                let extra = match (layout, rest) {
                    (Layout::WideExtra, &[word, ..]) => one(word),
                    (Layout::Full, rest) => rest.first_chunk().copied().unwrap_or(none),
                    _ => none,
                };
                (address(a, b), address(c, d), transport, extra)
            }
            _ => unreachable!("a row holds its whole key"),
        };
        Self { source, destination, transport: Transport(transport), extra }
    }
}

impl Mask {
    /// Whether every key under `coarse` can be computed from a key under `self`.
    pub fn contains(self, coarse: Self) -> bool {
        self.source.union(coarse.source) == self.source
            && self.destination.union(coarse.destination) == self.destination
            && self.transport | coarse.transport == self.transport
            && self.extra.iter().zip(coarse.extra).all(|(fine, coarse)| fine | coarse == *fine)
    }

    /// How many bits are kept, both families together: a first guess at how many keys there are.
    pub fn bits(self) -> u32 {
        let address = |mask: AddressMask| mask.v4.count_ones() + mask.v6.count_ones();
        let extra = self.extra.iter().map(|word| word.count_ones()).sum::<u32>();
        address(self.source) + address(self.destination) + self.transport.count_ones() + extra
    }

    /// Extension words of its keys: 0, 1 or [`KEY_WORDS`].
    #[inline(always)]
    pub fn extra_words(self) -> usize {
        match self.extra {
            [0, rest @ ..] if rest == [0; KEY_WORDS - 1] => 0,
            [_, rest @ ..] if rest == [0; KEY_WORDS - 1] => 1,
            _ => KEY_WORDS,
        }
    }

    /// The key of these parts, none of them extra, under a mask without extra fields.
    #[inline(always)]
    pub fn key(self, source: Address, destination: Address, transport: Transport) -> Key {
        let transport = transport.0 & self.transport;
        if self.source.fits_compact(source) && self.destination.fits_compact(destination) {
            let source = source.0 as u32 & self.source.v4;
            let destination = destination.0 as u32 & self.destination.v4;
            Key::Compact([u64::from(source) << 32 | u64::from(destination), transport])
        } else {
            Key::Wide(self.wide(source, destination, transport))
        }
    }

    #[inline(always)]
    fn wide(self, source: Address, destination: Address, transport: u64) -> Wide {
        let (source, destination) = (self.source.apply(source).0, self.destination.apply(destination).0);
        [(source >> 64) as u64, source as u64, (destination >> 64) as u64, destination as u64, transport]
    }

    /// The key of these parts under this mask.
    #[inline(always)]
    pub fn key_of(self, Parts { source, destination, transport, extra }: Parts) -> Key {
        match self.extra_words() {
            0 => self.key(source, destination, transport),
            1 => self.key_with_word(source, destination, transport, extra[0]),
            _ => Key::Full(self.full(source, destination, transport, extra)),
        }
    }

    /// The key of these parts under a mask with one extension word.
    #[inline(always)]
    pub fn key_with_word(
        self,
        source: Address,
        destination: Address,
        transport: Transport,
        extra: u64,
    ) -> Key {
        let extra = extra & self.extra[0];
        match self.key(source, destination, transport) {
            Key::Compact([addresses, transport]) => Key::CompactExtra([addresses, transport, extra]),
            Key::Wide([a, b, c, d, transport]) => Key::WideExtra([a, b, c, d, transport, extra]),
            other => other,
        }
    }

    /// Addresses are not told apart by family here: what is masked out of either is 0.
    #[inline(always)]
    fn full(
        self,
        source: Address,
        destination: Address,
        transport: Transport,
        extra: [u64; KEY_WORDS],
    ) -> Full {
        let mut full = [0; 5 + KEY_WORDS];
        full[..5].copy_from_slice(&self.wide(source, destination, transport.0 & self.transport));
        for (at, word) in extra.into_iter().enumerate() {
            full[5 + at] = word & self.extra[at];
        }
        full
    }

    /// The key of a packet, of which these are the extension words, under this mask.
    #[inline(always)]
    pub fn of(self, packet: &Packet, extra: &[u64]) -> Key {
        let Packet { source, destination, transport, .. } = *packet;
        match self.extra_words() {
            0 => self.key(source, destination, transport),
            1 => self.key_with_word(source, destination, transport, extra.first().copied().unwrap_or(0)),
            _ => {
                let mut words = [0; KEY_WORDS];
                words.iter_mut().zip(extra).for_each(|(word, extra)| *word = *extra);
                let extra = words;
                Key::Full(self.full(source, destination, transport, extra))
            }
        }
    }

    /// A compact key of a finer mask, rolled up to this one.
    #[inline(always)]
    pub fn coarsen_compact(self, key: &Compact) -> Compact {
        [key[0] & (u64::from(self.source.v4) << 32 | u64::from(self.destination.v4)), key[1] & self.transport]
    }

    /// A wide key of a finer mask, rolled up to this one; it may turn compact.
    #[inline(always)]
    pub fn coarsen_wide(self, key: &Wide) -> Key {
        let Parts { source, destination, transport, .. } = Parts::of(Layout::Wide, key);
        self.key(source, destination, transport)
    }
}

/// The value of one key column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyValue {
    /// A whole address.
    Address(Address),
    /// A network address and its prefix length in bits.
    Prefix(Address, u8),
    /// A port, protocol, VLAN, set of flags or any other number.
    Number(u64),
    /// A link-layer address.
    Mac(u64),
    /// A text.
    Text(Text),
}

/// The fields of a key in the order of their columns; at least one, no column twice.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyFields {
    columns: Vec<KeyColumn>,
    mask: Mask,
    /// Whether the columns stand in the order in which a key packs them.
    natural: bool,
}

impl KeyFields {
    /// Checks and keeps the columns in the given order.
    pub fn new(columns: Vec<KeyColumn>) -> Result<Self, FieldError> {
        if columns.is_empty() {
            return Err(FieldError::Empty);
        }
        let mut mask = Mask::default();
        for (at, column) in columns.iter().enumerate() {
            if columns[..at].iter().any(|earlier| earlier.name() == column.name()) {
                return Err(FieldError::Twice(column.name().into()));
            }
            match column.field.lives {
                Lives::Source => mask.source = mask.source.union(AddressMask::new(column.prefix)),
                Lives::Destination => {
                    mask.destination = mask.destination.union(AddressMask::new(column.prefix));
                }
                Lives::Transport(shift) => mask.transport |= column.field.most() << shift,
                Lives::Extra(_) => {
                    let words = column.place.map(Place::mask).unwrap_or_default();
                    mask.extra.iter_mut().zip(words).for_each(|(mask, word)| *mask |= word);
                }
            }
        }
        let natural = columns.windows(2).all(|pair| pair[0].rank() < pair[1].rank());
        Ok(Self { columns, mask, natural })
    }

    /// Reads names of the fields that ship as configuration spells them. Extra fields get places of their own, which other
    /// keys do not share: for a run's tasks, see [`Self::parse_with`].
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, FieldError> {
        Self::parse_with(names, &FIELDS, &Plan::default())
    }

    /// Reads the names of these fields; the plan gives places to extra ones.
    pub fn parse_with<S: AsRef<str>>(
        names: &[S],
        fields: &[&'static Field],
        plan: &Plan,
    ) -> Result<Self, FieldError> {
        let columns = names.iter().map(|name| KeyColumn::parse(name.as_ref(), fields, plan));
        Self::new(columns.collect::<Result<_, _>>()?)
    }

    /// The columns, in their order.
    pub fn columns(&self) -> &[KeyColumn] {
        &self.columns
    }

    /// The first extra field among them.
    pub fn extra(&self) -> Option<&'static Field> {
        self.columns.iter().map(|column| column.field).find(|field| field.is_extra())
    }

    /// The key whose columns read as these cells; `None` where they are not what a table of these fields holds.
    pub fn read<'a>(&self, cells: impl IntoIterator<Item = &'a str>) -> Option<Key> {
        let (mut source, mut destination) = (None, None);
        let mut transport = 0;
        let mut extra = [0; crate::field::WORDS];
        let mut cells = cells.into_iter();
        for column in &self.columns {
            let cell = cells.next()?;
            let address = |known: Option<Address>| {
                let address: IpAddr = cell.split('/').next()?.parse().ok()?;
                // An address and its prefix may both be columns.
                Some(Some(Address(Address::from(address).0 | known.map_or(0, |known| known.0))))
            };
            match column.field.lives {
                Lives::Source => source = address(source)?,
                Lives::Destination => destination = address(destination)?,
                Lives::Transport(shift) => {
                    let number = cell.parse::<u64>().ok().filter(|number| *number <= column.field.most())?;
                    transport |= number << shift;
                }
                Lives::Extra(_) => column.place?.set(&mut extra, parse_extra(column.field, cell)?),
            }
        }
        let unnamed = Address::v4(0);
        Some(self.mask.key_of(Parts {
            source: source.unwrap_or(unnamed),
            destination: destination.unwrap_or(unnamed),
            transport: Transport(transport),
            extra: *extra.first_chunk()?,
        }))
    }

    /// The bits of a packet that these fields keep.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// A compact key's words rearranged so that comparing them compares the columns in order; only for keys without extra
    /// fields.
    #[inline]
    pub fn compact_order(&self, key: &Compact) -> Compact {
        if self.natural {
            return *key;
        }
        let Parts { source, destination, transport, .. } = Parts::of(Layout::Compact, key);
        let mut order: u128 = 0;
        // An address and its prefix overlap: each adds only the bits that the other has not added before it.
        let (mut source_used, mut destination_used) = (0, 0);
        for column in &self.columns {
            let (value, width) = match column.field.lives {
                Lives::Source => next_bits(source, &mut source_used, column.prefix.0),
                Lives::Destination => next_bits(destination, &mut destination_used, column.prefix.0),
                Lives::Transport(shift) => {
                    ((transport.0 >> shift & column.field.most()).into(), column.field.bits)
                }
                Lives::Extra(_) => (0, 0),
            };
            order = order << width | value;
        }
        [(order >> 64) as u64, order as u64]
    }

    /// Whether the columns stand in the order in which a key packs them, so that [`natural_order`] is theirs.
    #[inline(always)]
    pub fn in_natural_order(&self) -> bool {
        self.natural
    }

    /// The value of a column; `words` begin with a key of this layout.
    #[inline(always)]
    pub fn value(&self, column: usize, layout: Layout, words: &[u64]) -> KeyValue {
        let Parts { source, destination, transport, extra } = Parts::of(layout, words);
        let KeyColumn { field, prefix, place } = self.columns[column];
        let address = |address: Address| match prefix {
            WHOLE => KeyValue::Address(address),
            (v4, _) if address.is_v4() => KeyValue::Prefix(Address::v4(cut_v4(address, v4)), v4),
            (_, v6) => KeyValue::Prefix(Address(address.0 & u128::MAX << (128 - u32::from(v6))), v6),
        };
        match field.lives {
            Lives::Source => address(source),
            Lives::Destination => address(destination),
            Lives::Transport(shift) => KeyValue::Number(transport.0 >> shift & field.most()),
            Lives::Extra(_) => {
                let value = place.map_or(0, |place| place.get(&extra));
                match field.kind {
                    Kind::Mac => KeyValue::Mac(value as u64),
                    Kind::Text => KeyValue::Text(Text(value)),
                    Kind::Number | Kind::Address => KeyValue::Number(value as u64),
                }
            }
        }
    }

    /// Order of two keys of any layout, column by column.
    pub fn compare(&self, left: (Layout, &[u64]), right: (Layout, &[u64])) -> std::cmp::Ordering {
        self.ordinals(left.0, left.1).cmp(self.ordinals(right.0, right.1))
    }

    /// Numbers of a key so that comparing them compares the columns in order.
    pub fn order(&self, key: &Key) -> Box<[u128]> {
        self.ordinals(key.layout(), key.words()).collect()
    }

    /// A number of the first column so that comparing it compares that column.
    pub fn first_order(&self, layout: Layout, words: &[u64]) -> u128 {
        self.ordinals(layout, words).next().unwrap_or_default()
    }

    /// Numbers in the order of the columns' values, a column each.
    fn ordinals<'a>(&'a self, layout: Layout, words: &'a [u64]) -> impl Iterator<Item = u128> + 'a {
        (0..self.columns.len()).map(move |column| match self.value(column, layout, words) {
            KeyValue::Address(address) | KeyValue::Prefix(address, _) => address.ordinal(),
            KeyValue::Number(number) | KeyValue::Mac(number) => number.into(),
            KeyValue::Text(text) => text.0,
        })
    }
}

/// Numbers of a key of any layout so that comparing them compares columns that stand in their natural order, but for what
/// is behind the first extension word.
#[inline(always)]
pub fn natural_order(layout: Layout, words: &[u64]) -> [u64; 6] {
    match (layout, words) {
        (Layout::Compact, &[addresses, transport, ..]) => {
            [0, addresses >> 32, 0, addresses & 0xffff_ffff, transport, 0]
        }
        (Layout::CompactExtra, &[addresses, transport, extra, ..]) => {
            [0, addresses >> 32, 0, addresses & 0xffff_ffff, transport, extra]
        }
        _ => {
            let Parts { source, destination, transport, extra } = Parts::of(layout, words);
            let (source, destination) = (source.ordinal(), destination.ordinal());
            let high = |ordinal: u128| (ordinal >> 64) as u64;
            [high(source), source as u64, high(destination), destination as u64, transport.0, extra[0]]
        }
    }
}

#[inline(always)]
fn cut_v4(address: Address, bits: u8) -> u32 {
    address.0 as u32 & u32::MAX << (32 - u32::from(bits))
}

/// The bits of an IPv4 address from `used` to `upto`, as a number and its width in bits; `used` moves on.
fn next_bits(address: Address, used: &mut u8, upto: u8) -> (u128, u32) {
    if upto <= *used {
        return (0, 0);
    }
    let width = u32::from(upto - *used);
    let value = u64::from(address.0 as u32) >> (32 - upto) & ((1 << width) - 1);
    *used = upto;
    (value.into(), width)
}

impl fmt::Debug for KeyFields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.columns.iter().map(KeyColumn::name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn names_and_prefixes_are_read() {
        let parse = |name: &str| {
            KeyFields::parse(&[name])
                .map(|fields| (fields.columns()[0].field.name, fields.columns()[0].prefix))
        };
        assert_eq!(parse("SrcIP"), Ok(("SrcIP", WHOLE)));
        assert_eq!(parse("SrcIP/24"), Ok(("SrcIP", (24, 128))));
        assert_eq!(parse("DstIP/64"), Ok(("DstIP", (32, 64))));
        assert_eq!(parse("DstIP/24/48"), Ok(("DstIP", (24, 48))));
        assert_eq!(parse("DSCP"), Ok(("DSCP", WHOLE)));
        for bad in ["SrcIP/0", "SrcIP/129", "SrcIP/24/0", "SrcIP/33/64", "SrcIP/1/2/3", "SrcIP/x", "SrcIP/"] {
            assert!(matches!(parse(bad), Err(FieldError::Prefix(_))), "{bad}");
        }
        for bad in ["srcip", "", "Port", "SrcPort/8", "TTL/8"] {
            assert!(matches!(parse(bad), Err(FieldError::Unknown { .. })), "{bad}");
        }
        assert_eq!(KeyFields::parse(&["SrcIP", "SrcIP"]), Err(FieldError::Twice("src_ip".into())));
        assert_eq!(KeyFields::parse::<&str>(&[]), Err(FieldError::Empty));
    }

    #[test]
    fn the_layout_follows_the_extra_fields() {
        let plan = Plan::default();
        let fields = |names: &[&str]| KeyFields::parse_with(names, &FIELDS, &plan).expect("fields");
        let (one, many) = (fields(&["SrcIP", "DSCP", "TTL"]), fields(&["DSCP", "SrcMAC", "DstMAC"]));
        let mut extra = [0; crate::field::WORDS];
        for (column, value) in many.columns().iter().chain(&one.columns()[2..]).zip([46, 0x0a0b, 0x0c0d, 63])
        {
            column.place.expect("an extra field").set(&mut extra, value);
        }
        let packet = |source| Packet { source, ..Packet::default() };
        for (source, layout) in
            [(address("192.0.2.1"), Layout::CompactExtra), (address("2001:db8::1"), Layout::WideExtra)]
        {
            let key = one.mask().of(&packet(source), &extra);
            assert_eq!(key.layout(), layout);
            let value = |column| one.value(column, layout, key.words());
            assert_eq!(
                [0, 1, 2].map(value),
                [KeyValue::Address(source), KeyValue::Number(46), KeyValue::Number(63)]
            );
            let key = many.mask().of(&packet(source), &extra);
            assert_eq!(key.layout(), Layout::Full);
            assert_eq!(many.value(2, key.layout(), key.words()), KeyValue::Mac(0x0c0d));
            assert_eq!(many.read(["46", "00:00:00:00:0a:0b", "0-0-0-0-c-d"]), Some(key));
        }
        assert_eq!(one.read(["192.0.2.1", "64", "1"]), None, "no such code point");
    }

    #[test]
    fn a_key_without_addresses_is_the_same_for_both_families() {
        let mask = KeyFields::parse(&["DstPort"]).expect("fields").mask();
        let transport = Transport::new(1, 443, 6, 0, 0, 0);
        let v4 = mask.key(address("192.0.2.1"), address("192.0.2.2"), transport);
        let v6 = mask.key(address("2001:db8::1"), address("2001:db8::2"), transport);
        assert_eq!(v4, v6);
    }

    #[test]
    fn a_mixed_pair_rolls_up_to_the_ipv4_key_of_its_ipv4_side() {
        let (v4, v6) = (address("::ffff:192.0.2.1"), address("2001:db8::1"));
        let pair = KeyFields::parse(&["SrcIP", "DstIP"]).expect("fields").mask();
        let source = KeyFields::parse(&["SrcIP/24"]).expect("fields").mask();
        let Key::Wide(wide) = pair.key(v4, v6, Transport::default()) else { panic!("one side is IPv6") };
        let direct = source.key(address("192.0.2.77"), address("192.0.2.2"), Transport::default());
        assert_eq!(source.coarsen_wide(&wide), direct);
    }

    /// Columns of base fields, in any order; where `extras` is set, of all fields but the text, in places of one plan.
    fn any_columns(extras: bool) -> impl Strategy<Value = Vec<KeyColumn>> {
        let any = (0..if extras { FIELDS.len() } else { 8 }, any::<bool>(), 1u8..=32, 1u8..=128);
        proptest::collection::vec(any, 1..8).prop_map(|columns| {
            let plan = Plan::default();
            let column = |(field, whole, v4, v6): (usize, bool, u8, u8)| {
                let field = FIELDS[field];
                let prefix = if whole || field.kind != Kind::Address { WHOLE } else { (v4, v6) };
                KeyColumn::of(field, prefix, &plan).ok()
            };
            FIELDS.iter().filter(|field| field.is_extra() && field.kind != Kind::Text).for_each(|field| {
                plan.place_in_keys(field).expect("room");
            });
            columns.into_iter().filter_map(column).collect()
        })
    }

    fn any_address() -> impl Strategy<Value = Address> {
        prop_oneof![
            any::<u32>().prop_map(Address::v4),
            any::<u128>().prop_map(Address),
            (0u128..1 << 50).prop_map(Address),
        ]
    }

    proptest! {
        #[test]
        fn rolling_up_equals_masking_the_packet(
            fine in any_columns(true), coarse in any_columns(true), source in any_address(),
            destination in any_address(), transport in any::<u64>(), extra in any::<[u64; KEY_WORDS]>(),
        ) {
            let (Ok(fine), Ok(coarse)) = (KeyFields::new(fine), KeyFields::new(coarse)) else { return Ok(()) };
            let (fine, coarse) = (fine.mask(), coarse.mask());
            prop_assume!(fine.contains(coarse));
            let parts = Parts { source, destination, transport: Transport(transport), extra };
            prop_assert_eq!(fine.key_of(parts).under(coarse), coarse.key_of(parts));
        }

        #[test]
        fn compact_order_agrees_with_the_columns(
            fields in any_columns(false), left in any::<(u32, u32, u64)>(), right in any::<(u32, u32, u64)>(),
        ) {
            let Ok(fields) = KeyFields::new(fields) else { return Ok(()) };
            let key = |(source, destination, transport)| match fields.mask().key(
                Address::v4(source), Address::v4(destination), Transport(transport),
            ) {
                Key::Compact(key) => key,
                _ => unreachable!("both are IPv4"),
            };
            let (left, right) = (key(left), key(right));
            let (wide_left, wide_right) = ((Layout::Compact, &left[..]), (Layout::Compact, &right[..]));
            prop_assert_eq!(
                fields.compact_order(&left).cmp(&fields.compact_order(&right)),
                fields.compare(wide_left, wide_right)
            );
        }

        #[test]
        fn natural_order_agrees_with_the_columns(
            fields in any_columns(true), left in (any_address(), any_address(), any::<u64>(), any::<u64>()),
            right in (any_address(), any_address(), any::<u64>(), any::<u64>()), same_source in any::<bool>(),
        ) {
            let Ok(fields) = KeyFields::new(fields) else { return Ok(()) };
            let key = |(source, destination, transport, word)| {
                let extra = [word, 0, 0, 0];
                fields.mask().key_of(Parts { source, destination, transport: Transport(transport), extra })
            };
            let right = if same_source { (left.0, right.1, right.2, right.3) } else { right };
            let (left, right) = (key(left), key(right));
            let (left, right) = ((left.layout(), left.words()), (right.layout(), right.words()));
            if fields.in_natural_order() {
                let order = natural_order(left.0, left.1).cmp(&natural_order(right.0, right.1));
                prop_assert_eq!(order, fields.compare(left, right));
            }
        }
    }
}
