//! Sketches: counts, distinct elements and packet sizes a key, in memory that only the [`Shape`] decides.
//!
//! All three are grids of `depth` rows and `width` cells. A row hashes a key to one of its cells, so a cell holds what
//! its keys have together and a key is bounded by all of its cells (Cormode and Muthukrishnan, "An improved data
//! stream summary: the count-min sketch and its applications", J. Algorithms 55, 2005). Each cell also names one of its
//! keys: the key of the item that drew the least number, where the draw is a hash of the item and, for weighted items,
//! exponential with the weight as its rate (Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007;
//! Duffield, Lund and Thorup, "Priority sampling", J. ACM 54, 2007). So a cell names a key with the probability of the
//! key's share of the cell, and a key that rules one of its cells is found.
//!
//! Invariant: a state is sums, maxima and minima of integers and nothing else, so it is the same for any split and any
//! order of its updates. Deliberately absent for that reason: conservative update, heaps of heavy keys, estimators that
//! watch the order of arrival, and floating point in a state. Floating point appears only between a finished state and
//! its estimate, in one fixed order, with operations that IEEE 754 rounds exactly.
//!
//! All bounds hold with a probability of at least 99 %, over the choice of the seed, for traffic that was not chosen
//! with knowledge of the seed. What other keys add is bounded for all named keys at once: whoever orders keys by their
//! estimate looks at those that collisions made large, and bounds that hold for 99 % of keys fail for most of these.

use crate::prefetch::prefetch;

/// Words of a compact key.
const COMPACT: usize = 2;
/// Words of a wide key.
const WIDE: usize = 5;
/// Most rows of a shape.
const MOST_ROWS: usize = 16;
/// Widest row of a shape.
const MOST_CELLS: usize = 1 << 20;
/// Words before the cells: kind and version, width and depth, seed, checksum.
const HEADER: usize = 4;
/// In the first word of a state; the low byte is the version of the layout.
const MAGIC: u64 = 0x4e53_6b65_7463_0001;

/// What decides the memory of a sketch and where its keys fall. Only states of equal shapes can be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Cells of a row: a power of two, 16..=1048576. Collisions shrink with it.
    pub width: usize,
    /// Rows, 1..=16. The chance that a key collides badly in all of them shrinks with it.
    pub depth: usize,
    /// Selects the hash functions. Who knows it can choose keys that collide.
    pub seed: u64,
}

impl Shape {
    /// Why the shape is outside of its ranges, if it is.
    pub const fn check(&self) -> Result<(), &'static str> {
        if !self.width.is_power_of_two() || self.width < 16 || self.width > MOST_CELLS {
            return Err("width must be a power of two from 16 to 1048576");
        }
        if self.depth < 1 || self.depth > MOST_ROWS {
            return Err("depth must be from 1 to 16");
        }
        Ok(())
    }

    const fn cells(&self) -> usize {
        self.width * self.depth
    }
}

/// An estimate and the bounds of the truth: `lower <= value <= upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The best single number.
    pub value: u64,
    /// The truth is at least this.
    pub lower: u64,
    /// The truth is at most this.
    pub upper: u64,
}

impl Estimate {
    const NONE: Self = Self { value: 0, lower: 0, upper: 0 };
}

/// A key that a sketch names, with its estimates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<V> {
    /// Whether the key is wide.
    pub wide: bool,
    /// The key's words: 5 if wide, else 2.
    pub key: Vec<u64>,
    /// What the sketch says of it.
    pub value: V,
}

/// 1 for a wide key, else 0, then the words of the key, then zeros.
type Name = [u64; 1 + WIDE];

/// Full multiply of two words, halves folded together.
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

/// Next of a stream of secrets (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
const fn secret(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Fixed-point fraction bits of [`exponential`].
const FRACTION: u32 = 57;

/// Weights above draw as this one.
const MOST_RATE: u64 = 1 << 56;

/// `-log2(1 - i / 512)` for i in 0..=256, with [`FRACTION`] bits; the last entry is there twice.
const LOGARITHMS: [u64; 258] = {
    let mut table = [1 << FRACTION; 258];
    let mut i = 0;
    while i < 256 {
        // Digit by digit: squaring doubles the logarithm, and what leaves 1..2 is its next bit.
        let mut value = (512 - i as u64) << (63 - 8);
        let mut logarithm = 0u64;
        let mut bit = 0;
        if i > 0 {
            while bit < FRACTION {
                let square = (value as u128 * value as u128) >> 63;
                let carry = (square >> 64) as u64;
                value = (square >> carry) as u64;
                logarithm = logarithm << 1 | carry;
                bit += 1;
            }
            table[i] = (1 << FRACTION) - logarithm;
        } else {
            table[i] = 0;
        }
        i += 1;
    }
    table
};

/// Turns a uniform word into an exponential draw, `-log2(1 - draw / 2^64)` with [`FRACTION`] bits: monotone, at least
/// `draw >> 7` and below 2^63.1.
fn exponential(draw: u64) -> u64 {
    let rest = !draw | 1;
    let zeros = rest.leading_zeros();
    let below = (rest << zeros).wrapping_neg();
    let step = (below >> 55) as usize;
    let part = below & ((1 << 55) - 1);
    let rise = (LOGARITHMS[step + 1] - LOGARITHMS[step]) as u128 * part as u128;
    let logarithm = ((zeros as u64) << FRACTION) + LOGARITHMS[step] + (rise >> 55) as u64;
    logarithm.max(draw >> (64 - FRACTION))
}

/// The key's cell within a row.
#[inline(always)]
fn place(secrets: &[u64; 4], hash: [u64; 2], width: usize) -> usize {
    (fold(hash[0] ^ secrets[0], hash[1] ^ secrets[1]) >> (64 - width.trailing_zeros())) as usize
}

/// The item's draw in a row.
#[inline(always)]
fn draw(secrets: &[u64; 4], item: [u64; 2]) -> u64 {
    fold(item[0] ^ secrets[2], item[1] ^ secrets[3])
}

/// Lets a cell name a key if `best` is greater than the cell's, ties to the greater key.
#[cold]
#[inline(never)]
fn offer((held, held_name): (&mut u64, &mut Name), used: &mut Used, cell: usize, best: u64, name: Name) {
    if best > *held || (best == *held && name > *held_name) {
        used.insert(cell);
        *held = best;
        *held_name = name;
    }
}

/// Which cells hold something, a bit a cell: what reads a sketch or clears it visits these alone.
#[derive(Clone)]
struct Used(Vec<u64>);

impl Used {
    fn new(cells: usize) -> Self {
        Self(vec![0; cells.div_ceil(64)])
    }

    fn insert(&mut self, cell: usize) {
        self.0[cell / 64] |= 1 << (cell % 64);
    }

    /// The cells of this range that hold something, ascending.
    fn within(&self, cells: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
        (cells.start / 64..cells.end.div_ceil(64)).flat_map(move |at| {
            let mut word = self.0[at];
            std::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                word &= word.checked_sub(1)?;
                Some(at * 64 + bit)
            })
            .filter({
                let cells = cells.clone();
                move |cell| cells.contains(cell)
            })
        })
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        self.within(0..self.0.len() * 64)
    }

    /// Forgets all cells, and gives each to `each`.
    fn drain(&mut self, mut each: impl FnMut(usize)) {
        self.iter().for_each(&mut each);
        self.0.fill(0);
    }
}

/// What all sketches share: hashing, the cells' named keys and the layout of states.
///
/// Of the `HOT` words of a cell the first is the complement of the least draw so far, 0 while the cell is empty; a
/// second counts.
#[derive(Clone)]
struct Grid<const HOT: usize> {
    shape: Shape,
    /// For words of keys and items.
    secrets: [u64; 12],
    /// A row: two for the place of a key, two for the draw of an item.
    rows: [[u64; 4]; MOST_ROWS],
    /// Touched by every update.
    hot: Vec<[u64; HOT]>,
    /// Touched only when a cell names another key.
    names: Vec<Name>,
    /// The cells that name a key.
    used: Used,
}

impl<const HOT: usize> Grid<HOT> {
    fn new(shape: Shape) -> Self {
        if let Err(why) = shape.check() {
            panic!("{why}");
        }
        let mut state = shape.seed;
        let secrets = std::array::from_fn(|_| secret(&mut state));
        let rows = std::array::from_fn(|_| std::array::from_fn(|_| secret(&mut state)));
        let cells = shape.cells();
        let (hot, names) = (vec![[0; HOT]; cells], vec![[0; 1 + WIDE]; cells]);
        Self { shape, secrets, rows, hot, names, used: Used::new(cells) }
    }

    /// Empties the cells that hold something; `each` empties what else belongs to one.
    fn clear(&mut self, mut each: impl FnMut(usize)) {
        let (hot, names) = (&mut self.hot, &mut self.names);
        self.used.drain(|cell| {
            (hot[cell], names[cell]) = ([0; HOT], [0; 1 + WIDE]);
            each(cell);
        });
    }

    /// Two hashes of a key.
    #[inline(always)]
    fn hash(&self, wide: bool, key: &[u64]) -> [u64; 2] {
        let s = &self.secrets;
        let (a, b) = match (wide, key) {
            (false, &[k0, k1]) => (fold(k0 ^ s[0], k1 ^ s[1]), fold(k0 ^ s[2], k1 ^ s[3])),
            (true, &[k0, k1, k2, k3, k4]) => {
                let a = fold(k2 ^ s[0], k3 ^ fold(k0 ^ s[4], k1 ^ s[5]));
                let b = fold(k2 ^ s[2], k3 ^ fold(k0 ^ s[6], k1 ^ s[7]));
                (fold(k4 ^ s[1], a ^ s[4]), fold(k4 ^ s[3], b ^ s[6]))
            }
            _ => panic!("a key has 2 words, or 5 if it is wide"),
        };
        // A constant word in a key leaves one multiplication by a constant; a second round breaks its pattern.
        [fold(a ^ s[8], b ^ s[9]), fold(b ^ s[10], a.rotate_left(32) ^ s[11])]
    }

    /// The key's cells, one a row.
    fn places(&self, hash: [u64; 2]) -> impl Iterator<Item = usize> {
        let Shape { width, depth, .. } = self.shape;
        let rows = self.rows[..depth].iter().enumerate();
        rows.map(move |(row, secrets)| row * width + place(secrets, hash, width))
    }

    /// Fetches the key's cells, before they are updated.
    #[inline(always)]
    fn prefetch(&self, hash: [u64; 2], mut each: impl FnMut(usize, &[u64; 4])) {
        let Shape { width, depth, .. } = self.shape;
        for (row, secrets) in self.rows[..depth].iter().enumerate() {
            let cell = row * width + place(secrets, hash, width);
            prefetch(&self.hot, cell);
            each(cell, secrets);
        }
    }

    /// Two hashes of the pair of a key, by its hashes, and a word.
    #[inline(always)]
    fn pair(&self, hash: [u64; 2], word: u64) -> [u64; 2] {
        let first = fold(hash[0] ^ word, hash[1] ^ self.secrets[5]);
        [first, fold(first ^ self.secrets[7], hash[0] ^ word.rotate_left(32))]
    }

    fn offer(&mut self, cell: &Cell) {
        let held = (&mut self.hot[cell.place][0], &mut self.names[cell.place]);
        offer(held, &mut self.used, cell.place, cell.best, cell.name);
    }

    /// All named keys, each once, in the order of their words.
    fn named(&self) -> Vec<Name> {
        let mut names = self.used.iter().map(|cell| self.names[cell]).collect::<Vec<_>>();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn found<V>(&self, mut value: impl FnMut([u64; 2]) -> V) -> Vec<Found<V>> {
        let names = self.named();
        let found = names.iter().map(|name| {
            let wide = name[0] == 1;
            let key = name[1..][..if wide { WIDE } else { COMPACT }].to_vec();
            let value = value(self.hash(wide, &key));
            Found { wide, key, value }
        });
        found.collect()
    }

    fn header(&self, kind: u64) -> [u64; HEADER] {
        let size = (self.shape.width as u64) << 32 | self.shape.depth as u64;
        [MAGIC | kind << 8, size, self.shape.seed, 0]
    }

    /// Words of a state: the header and the cells that hold something. `body` appends what a cell holds besides its
    /// name, and says of how many entries.
    fn words(&self, kind: u64, mut body: impl FnMut(usize, &mut Vec<u64>) -> u64) -> Vec<u64> {
        let mut words = self.header(kind).to_vec();
        for cell in self.used.iter() {
            let (hot, name) = (&self.hot[cell], &self.names[cell]);
            let head = words.len();
            words.extend([cell as u64 | name[0] << 24, hot[0]]);
            words.extend(&name[1..][..if name[0] == 1 { WIDE } else { COMPACT }]);
            let entries = body(cell, &mut words);
            words[head] |= entries << 32;
        }
        words[HEADER - 1] = checksum(&words);
        words
    }

    /// Reads a state of the same kind and shape, all of it before anything is merged.
    fn read<'w>(&self, kind: u64, words: &'w [u64], body: Body) -> Result<Vec<Cell<'w>>, &'static str> {
        let Some((header, mut rest)) = words.split_at_checked(HEADER) else {
            return Err("the state of a sketch is cut short");
        };
        let expected = self.header(kind);
        if header[0] != expected[0] {
            return Err("not a state of this kind of sketch");
        }
        if header[1..HEADER - 1] != expected[1..HEADER - 1] {
            return Err("the sketch has another width, depth or seed");
        }
        if header[HEADER - 1] != checksum(words) {
            return Err("the state of a sketch is damaged: wrong checksum");
        }
        let mut cells: Vec<Cell> = Vec::new();
        while !rest.is_empty() {
            let cell = Cell::read(&mut rest, &body).ok_or("the state of a sketch is damaged: bad cell")?;
            if cell.place >= self.shape.cells() || cells.last().is_some_and(|last| last.place >= cell.place) {
                return Err("the state of a sketch is damaged: cells out of order");
            }
            cells.push(cell);
        }
        Ok(cells)
    }

    fn bytes(&self) -> usize {
        self.hot.capacity() * size_of::<[u64; HOT]>()
            + self.names.capacity() * size_of::<Name>()
            + self.used.0.capacity() * size_of::<u64>()
    }
}

/// Hash of all words but the checksum itself.
fn checksum(words: &[u64]) -> u64 {
    let mut hash = words.len() as u64;
    for (place, word) in words.iter().enumerate().filter(|(place, _)| *place != HEADER - 1) {
        hash = fold(hash ^ word ^ MAGIC, 0x9e37_79b9_7f4a_7c15 ^ (place as u64) << 1);
    }
    hash
}

/// How the part of a cell that differs by kind is laid out.
struct Body {
    /// Words, from the number of entries.
    length: fn(usize) -> usize,
    /// Whether [`Grid::words`] could have made it.
    valid: fn(usize, &[u64]) -> bool,
}

/// One cell of a state, read back.
struct Cell<'w> {
    place: usize,
    best: u64,
    name: Name,
    entries: usize,
    body: &'w [u64],
}

impl<'w> Cell<'w> {
    fn read(words: &mut &'w [u64], layout: &Body) -> Option<Self> {
        let (&[head, best], rest) = words.split_first_chunk()?;
        let wide = head >> 24 & 1;
        if head >> 25 & 0x7f != 0 || best == 0 {
            return None;
        }
        let (key, rest) = rest.split_at_checked(if wide == 1 { WIDE } else { COMPACT })?;
        let entries = (head >> 32) as usize;
        let (body, rest) = rest.split_at_checked((layout.length)(entries))?;
        if !(layout.valid)(entries, body) {
            return None;
        }
        let name = name_of(wide == 1, key);
        *words = rest;
        Some(Self { place: (head & 0xff_ffff) as usize, best, name, entries, body })
    }
}

fn name_of(wide: bool, key: &[u64]) -> Name {
    let mut name = [0; 1 + WIDE];
    name[0] = wide as u64;
    name[1..=key.len()].copy_from_slice(key);
    name
}

/// What other keys add to a key's cells, learnt from the cells of the sketch itself.
///
/// A key's place in a row is uniform and independent of what the other keys put there. So the chance that they put more
/// than t into the key's cell is the share of cells above t in the row without the key, which is at most the share with
/// it. The limits below follow from the shares of all rows without any assumption on the traffic; by Markov's
/// inequality they are never above N / width * (1 / chance)^(1 / depth), the bound of Cormode and Muthukrishnan.
struct Noise {
    /// Cells of a row.
    width: usize,
    /// Values of the cells of each row that hold something, ascending; those of all others are 0.
    rows: Vec<Vec<u64>>,
}

impl Noise {
    /// From the value of each cell that holds something.
    fn new<const HOT: usize>(grid: &Grid<HOT>, value: impl Fn(usize) -> u64) -> Self {
        let Shape { width, depth, .. } = grid.shape;
        let rows = (0..depth).map(|row| {
            let used = grid.used.within(row * width..(row + 1) * width);
            let mut values = used.map(&value).collect::<Vec<_>>();
            values.sort_unstable();
            values
        });
        Self { width, rows: rows.collect() }
    }

    /// The least t so that fewer than `clean` cells of a key get at most t from other keys with at most this chance.
    fn limit(&self, clean: usize, chance: f64) -> u64 {
        let depth = self.rows.len();
        let holds = |limit: u64| {
            // The distribution of the number of rows above the limit (Poisson binomial).
            let mut above = [0.0; MOST_ROWS + 1];
            above[0] = 1.0;
            for (before, row) in self.rows.iter().enumerate() {
                let count = row.len() - row.partition_point(|&value| value <= limit);
                let share = count as f64 / self.width as f64;
                for rows in (0..=before).rev() {
                    above[rows + 1] += above[rows] * share;
                    above[rows] *= 1.0 - share;
                }
            }
            above[depth + 1 - clean..=depth].iter().sum::<f64>() <= chance
        };
        let (mut low, mut high) =
            (0, self.rows.iter().filter_map(|row| row.last()).max().copied().unwrap_or(0));
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    fn median(&self, row: usize) -> u64 {
        let empty = self.width - self.rows[row].len();
        (self.width / 2).checked_sub(empty).map_or(0, |at| self.rows[row][at])
    }
}

/// The chance that other keys add more to one key than its bound says, so that all named keys together, at most one a
/// cell, are within their bounds with 99 %.
fn chance(shape: Shape) -> f64 {
    0.01 / shape.cells() as f64
}

impl Grid<2> {
    /// Adds to the count of a cell in every row, lets it name the key, and tells `each` its place.
    #[inline(always)]
    fn add(&mut self, wide: bool, key: &[u64], weight: u64, packet: u64, mut each: impl FnMut(usize)) {
        let hash = self.hash(wide, key);
        let item = self.pair(hash, packet);
        let rate = weight.min(MOST_RATE);
        let shift = 64 - FRACTION + rate.next_power_of_two().trailing_zeros();
        let Shape { width, depth, .. } = self.shape;
        for (row, secrets) in self.rows[..depth].iter().enumerate() {
            let cell = row * width + place(secrets, hash, width);
            let draw = draw(secrets, item);
            let hot = &mut self.hot[cell];
            hot[1] = hot[1].saturating_add(weight);
            each(cell);
            // A draw that is too large for a greater weight already needs neither logarithm nor division.
            if draw >> shift <= !hot[0] {
                let best = !(exponential(draw) / rate);
                let held = (&mut hot[0], &mut self.names[cell]);
                offer(held, &mut self.used, cell, best, name_of(wide, key));
            }
        }
    }
}

/// Weight a key (packets or bytes), never below the truth: Cormode and Muthukrishnan 2005.
///
/// `upper` is the least of the key's cells and certain (sums stop at 2^64 - 1). `lower` is `upper` less what other keys
/// add to the least of a key's cells with a chance of at most 1 % / (width * depth), read off the cells themselves; it
/// holds for all named keys together with 99 %. By Markov's inequality that is at most
/// N / width * (100 * width * depth)^(1 / depth) for the total weight N; mostly it is below e * N / width, the bound of
/// the paper for one key. `value` is `upper` less the median of what other keys add, but not below `lower`.
/// A cell names a key with the probability of its share of the cell's weight, independently in each row. Takes 64 bytes
/// a cell.
#[derive(Clone)]
pub struct CountMin {
    grid: Grid<2>,
}

/// Limits of the noise in counts.
struct CountNoise {
    median: u64,
    high: u64,
}

impl CountNoise {
    fn new(grid: &Grid<2>) -> Self {
        let noise = Noise::new(grid, |cell| grid.hot[cell][1]);
        Self { median: noise.limit(1, 0.5), high: noise.limit(1, chance(grid.shape)) }
    }
}

impl CountMin {
    const KIND: u64 = 1;
    const BODY: Body = Body { length: |_| 1, valid: |entries, body| entries == 0 && body[0] > 0 };

    /// An empty sketch.
    ///
    /// # Panics
    /// If the shape is outside of its ranges, see [`Shape::check`].
    pub fn new(shape: Shape) -> Self {
        Self { grid: Grid::new(shape) }
    }

    /// Makes it as [`Self::new`] has. Costs what was in it.
    pub fn clear(&mut self) {
        self.grid.clear(|_| ());
    }

    /// Adds the weight of one packet; `packet` tells packets of one key apart. Nothing changes for a weight of 0.
    ///
    /// # Panics
    /// If the key has not 2 words, or 5 if `wide`.
    #[inline]
    pub fn update(&mut self, wide: bool, key: &[u64], weight: u64, packet: u64) {
        if weight > 0 {
            self.grid.add(wide, key, weight, packet, |_| ());
        }
    }

    /// Fetches what [`Self::update`] of this key will touch. It is as fast again where that is called some packets later.
    #[inline]
    pub fn prefetch(&self, wide: bool, key: &[u64]) {
        self.grid.prefetch(self.grid.hash(wide, key), |_, _| ());
    }

    /// Adds a state made by [`Self::words`] under the same shape. Anything else is refused and changes nothing.
    pub fn merge(&mut self, words: &[u64]) -> Result<(), &'static str> {
        for cell in self.grid.read(Self::KIND, words, Self::BODY)? {
            let count = &mut self.grid.hot[cell.place][1];
            *count = count.saturating_add(cell.body[0]);
            self.grid.offer(&cell);
        }
        Ok(())
    }

    /// The state; equal states give equal words. 4 words and 5 (compact) or 8 (wide) a touched cell.
    pub fn words(&self) -> Vec<u64> {
        self.grid.words(Self::KIND, |cell, words| {
            words.push(self.grid.hot[cell][1]);
            0
        })
    }

    /// The keys that cells name, each once, in the order of their words.
    pub fn found(&self) -> Vec<Found<Estimate>> {
        let noise = CountNoise::new(&self.grid);
        self.grid.found(|hash| self.bound(&noise, hash))
    }

    /// The same for one key, seen or not. Costs a pass over all cells; for many keys take [`Self::found`].
    pub fn estimate(&self, wide: bool, key: &[u64]) -> Estimate {
        self.bound(&CountNoise::new(&self.grid), self.grid.hash(wide, key))
    }

    /// Bytes held, fixed by the shape.
    pub fn bytes(&self) -> usize {
        self.grid.bytes()
    }

    fn bound(&self, noise: &CountNoise, hash: [u64; 2]) -> Estimate {
        let counts = self.grid.places(hash).map(|cell| self.grid.hot[cell][1]);
        let upper = counts.min().unwrap_or(0);
        let lower = upper.saturating_sub(noise.high);
        Estimate { value: upper.saturating_sub(noise.median), lower, upper }
    }
}

/// Registers of a cell of [`Distinct`].
const REGISTERS: usize = 256;
/// Greatest rank of a register: one more than the hash bits that do not choose the register.
const MOST_RANK: usize = 57;
/// Fractions in which the estimates of cells are held while bounds are made.
const PARTS: f64 = 256.0;
/// Most registers of a cell that a state lists one by one, 4 a word; more are written all, 10 a word.
const LISTED: usize = 100;

/// Distinct elements a key: a [HyperLogLog](https://algo.inria.fr/flajolet/Publications/FlFuGaMe07.pdf) of 256
/// registers a cell, over pairs of key and element.
///
/// As in SpreadSketch (Tang, Huang and Lee, INFOCOM 2020) the named key is that of a random distinct pair of the cell,
/// and repeated pairs change nothing. Cells are estimated as in Ertl, "New cardinality estimation algorithms for
/// HyperLogLog sketches", 2017 (standard error 1.04 / 16 = 6.5 %). Rows hash pairs independently, so rows without bad
/// collisions average their errors: down to 2.7 % at depth 6.
///
/// `upper` is the least over k of the mean of the k smallest rows, raised by the error of that mean, plus one element;
/// `lower` the greatest over k of that mean, lowered by its error and by what other keys add to k cells at least.
/// Errors are taken so wide that they hold for all choices of rows together, and what other keys add so that of all
/// named keys fewer than one is expected to have more. `value` is the mean of the rows that agree
/// with the smallest one, less the median cell, and between the bounds. Takes 312 bytes a cell: 1.9 MB for 1024 x 6.
#[derive(Clone)]
pub struct Distinct {
    grid: Grid<1>,
    registers: Vec<u8>,
    /// Pairs that were added lately, by their hashes: to add one again changes nothing.
    recent: Vec<[u64; 2]>,
    /// Whether there are any.
    has_recent: bool,
}

/// Pairs that [`Distinct`] knows again.
const RECENT: usize = 1 << 13;

/// The estimates of all cells, in [`PARTS`], and the limits of the noise in them.
struct DistinctNoise {
    cells: Vec<u64>,
    medians: Vec<u64>,
    /// For 1, 2, ... clean rows.
    high: Vec<u64>,
}

impl Distinct {
    const KIND: u64 = 2;
    const BODY: Body = Body { length: Self::body_words, valid: Self::body_valid };

    /// An empty sketch.
    ///
    /// # Panics
    /// If the shape is outside of its ranges, see [`Shape::check`].
    pub fn new(shape: Shape) -> Self {
        Self {
            grid: Grid::new(shape),
            registers: vec![0; shape.cells() * REGISTERS],
            recent: vec![[0; 2]; RECENT],
            has_recent: false,
        }
    }

    /// Makes it as [`Self::new`] has. Costs what was in it.
    pub fn clear(&mut self) {
        let registers = &mut self.registers;
        self.grid.clear(|cell| registers[cell * REGISTERS..][..REGISTERS].fill(0));
        if std::mem::take(&mut self.has_recent) {
            self.recent.fill([0; 2]);
        }
    }

    /// Adds an element of any number of words to the set of a key.
    ///
    /// # Panics
    /// If the key has not 2 words, or 5 if `wide`.
    #[inline]
    pub fn update(&mut self, wide: bool, key: &[u64], element: &[u64]) {
        let (hash, item) = self.hash(wide, key, element);
        if std::mem::replace(&mut self.recent[item[1] as usize % RECENT], item) == item {
            return;
        }
        self.has_recent = true;
        let Shape { width, depth, .. } = self.grid.shape;
        for (row, secrets) in self.grid.rows[..depth].iter().enumerate() {
            let cell = row * width + place(secrets, hash, width);
            let draw = draw(secrets, item);
            let register = &mut self.registers[cell * REGISTERS + draw as usize % REGISTERS];
            let rank = (draw | (REGISTERS as u64 - 1)).leading_zeros() as u8 + 1;
            // Not a maximum: that would write, and so move, a cache line each time.
            if rank > *register {
                *register = rank;
            }
            let best = !draw.min(u64::MAX - 1);
            let hot = &mut self.grid.hot[cell][0];
            if best >= *hot {
                let held = (hot, &mut self.grid.names[cell]);
                offer(held, &mut self.grid.used, cell, best, name_of(wide, key));
            }
        }
    }

    /// Hashes of a key, and of the pair with an element.
    #[inline(always)]
    fn hash(&self, wide: bool, key: &[u64], element: &[u64]) -> ([u64; 2], [u64; 2]) {
        let hash = self.grid.hash(wide, key);
        let mut item = [hash[0], hash[1] ^ element.len() as u64];
        for &word in element {
            item = self.grid.pair(item, word);
        }
        (hash, item)
    }

    /// Fetches what [`Self::update`] of this pair will touch. It is as fast again where that is called some packets later.
    #[inline]
    pub fn prefetch(&self, wide: bool, key: &[u64], element: &[u64]) {
        let (hash, item) = self.hash(wide, key, element);
        if self.recent[item[1] as usize % RECENT] != item {
            self.grid.prefetch(hash, |cell, secrets| {
                prefetch(&self.registers, cell * REGISTERS + draw(secrets, item) as usize % REGISTERS);
            });
        }
    }

    /// Adds a state made by [`Self::words`] under the same shape. Anything else is refused and changes nothing.
    pub fn merge(&mut self, words: &[u64]) -> Result<(), &'static str> {
        for cell in self.grid.read(Self::KIND, words, Self::BODY)? {
            let registers = &mut self.registers[cell.place * REGISTERS..][..REGISTERS];
            for (register, rank) in Self::ranks(cell.entries, cell.body) {
                registers[register] = rank.max(registers[register]);
            }
            self.grid.offer(&cell);
        }
        Ok(())
    }

    /// The state; equal states give equal words. 4 words and, a touched cell, 4 (compact) or 7 (wide) and one for each
    /// 4 registers in use, at most 26.
    pub fn words(&self) -> Vec<u64> {
        self.grid.words(Self::KIND, |cell, words| {
            let registers = &self.registers[cell * REGISTERS..][..REGISTERS];
            let used = used_registers(registers).map(|(register, rank)| (register as u16) << 8 | rank as u16);
            let mut listed = [0u16; REGISTERS];
            let mut count = 0;
            used.for_each(|entry| {
                listed[count] = entry;
                count += 1;
            });
            if count <= LISTED {
                let pack = |entries: &[u16]| {
                    entries.iter().rev().fold(0, |word, entry| word << 16 | u64::from(*entry))
                };
                words.extend(listed[..count].chunks(4).map(pack));
            } else {
                let pack = |ranks: &[u8]| ranks.iter().rev().fold(0, |word, rank| word << 6 | *rank as u64);
                words.extend(registers.chunks(10).map(pack));
            }
            count as u64
        })
    }

    /// The keys that cells name, each once, in the order of their words.
    pub fn found(&self) -> Vec<Found<Estimate>> {
        let noise = self.noise();
        self.grid.found(|hash| self.bound(&noise, hash))
    }

    /// The same for one key, seen or not. Costs a pass over all cells; for many keys take [`Self::found`].
    pub fn estimate(&self, wide: bool, key: &[u64]) -> Estimate {
        self.bound(&self.noise(), self.grid.hash(wide, key))
    }

    /// Bytes held, fixed by the shape.
    pub fn bytes(&self) -> usize {
        self.grid.bytes() + self.registers.capacity() + self.recent.capacity() * size_of::<[u64; 2]>()
    }

    fn body_words(entries: usize) -> usize {
        if entries <= LISTED { entries.div_ceil(4) } else { REGISTERS.div_ceil(10) }
    }

    fn body_valid(entries: usize, body: &[u64]) -> bool {
        let mut next = 0;
        let mut used = 0;
        for (register, rank) in Self::ranks(entries, body) {
            if register < next || rank as usize > MOST_RANK {
                return false;
            }
            next = register + 1;
            used += (rank > 0) as usize;
        }
        let spare = match entries {
            0..=LISTED => entries.is_multiple_of(4) || body[body.len() - 1] >> (entries % 4 * 16) == 0,
            _ => body.iter().all(|word| word >> 60 == 0) && body[body.len() - 1] >> (REGISTERS % 10 * 6) == 0,
        };
        entries > 0 && used == entries && next <= REGISTERS && spare
    }

    /// Registers and ranks of a cell's body.
    fn ranks(entries: usize, body: &[u64]) -> impl Iterator<Item = (usize, u8)> {
        let listed = entries <= LISTED;
        (0..if listed { entries } else { REGISTERS }).map(move |place| {
            if listed {
                let entry = body[place / 4] >> (place % 4 * 16);
                ((entry >> 8 & 0xff) as usize, entry as u8)
            } else {
                (place, (body[place / 10] >> (place % 10 * 6) & 0x3f) as u8)
            }
        })
    }

    fn noise(&self) -> DistinctNoise {
        let shape = self.grid.shape;
        let mut cells = vec![0; shape.cells()];
        for cell in self.grid.used.iter() {
            let registers = &self.registers[cell * REGISTERS..][..REGISTERS];
            cells[cell] = (cardinality(registers) * PARTS + 0.5) as u64;
        }
        let noise = Noise::new(&self.grid, |cell| cells[cell]);
        let medians = (0..shape.depth).map(|row| noise.median(row)).collect();
        // Of all named keys half a one is expected beyond the noise; the errors of registers leave room on top.
        let chance = 50.0 * chance(shape) / shape.depth as f64;
        let high = (1..=shape.depth).map(|clean| noise.limit(clean, chance)).collect();
        DistinctNoise { cells, medians, high }
    }

    fn bound(&self, noise: &DistinctNoise, hash: [u64; 2]) -> Estimate {
        let depth = self.grid.shape.depth;
        let error = 1.04 / (REGISTERS as f64).sqrt();
        // So many standard errors that all 2^depth choices of rows together go wrong with a chance of 0.2 %.
        let errors = (7.7 + 1.386 * depth as f64).sqrt() * error;
        let mut rows = [(0, 0); MOST_ROWS];
        for ((slot, cell), median) in rows.iter_mut().zip(self.grid.places(hash)).zip(&noise.medians) {
            *slot = (noise.cells[cell], *median);
        }
        let rows = &mut rows[..depth];
        rows.sort_unstable();
        let least = rows[0].0 as f64;
        if least == 0.0 {
            return Estimate::NONE;
        }
        let (mut lower, mut upper) = (0.0, f64::INFINITY);
        let (mut sum, mut typical, mut value) = (0.0, 0.0, least);
        for (before, &(cell, median)) in rows.iter().enumerate() {
            let agrees = cell as f64 <= least * (1.0 + 6.0 * error);
            let clean = (before + 1) as f64;
            sum += cell as f64;
            typical += median as f64;
            let mean = sum / clean;
            let spread = errors / clean.sqrt();
            upper = f64::min(upper, mean / (1.0 - spread));
            lower = f64::max(lower, mean / (1.0 + spread) - noise.high[before] as f64);
            if agrees {
                value = (sum - typical) / clean;
            }
        }
        let upper = (upper / PARTS).ceil() as u64 + 1;
        let lower = ((lower / PARTS).floor() as u64).min(upper);
        let value = f64::max(value / PARTS + 0.5, 0.0) as u64;
        Estimate { value: value.clamp(lower, upper), lower, upper }
    }
}

/// Registers that are not 0, with their ranks. Mostly few are: eight are passed over at a time.
fn used_registers(registers: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    let eights = registers.chunks(8).enumerate().filter(|(_, eight)| eight.iter().any(|rank| *rank > 0));
    let ranks = eights
        .flat_map(|(at, eight)| eight.iter().enumerate().map(move |(place, rank)| (at * 8 + place, *rank)));
    ranks.filter(|(_, rank)| *rank > 0)
}

/// Number of elements that made these registers (Ertl 2017, algorithm 6: the improved raw estimator).
fn cardinality(registers: &[u8]) -> f64 {
    let mut counts = [0u32; MOST_RANK + 1];
    counts[0] = REGISTERS as u32;
    let mut top = 0;
    for (_, rank) in used_registers(registers) {
        let rank = (rank as usize).min(MOST_RANK);
        counts[rank] += 1;
        counts[0] -= 1;
        top = rank.max(top);
    }
    let size = REGISTERS as f64;
    let mut sum = size * tau(1.0 - counts[MOST_RANK] as f64 / size);
    // Above the greatest rank the sum is 0.
    for &count in counts[..MOST_RANK.min(top + 1)].iter().skip(1).rev() {
        sum = 0.5 * (sum + count as f64);
    }
    sum += size * sigma(counts[0] as f64 / size);
    // 1 / (2 ln 2)
    0.721_347_520_444_481_7 * size * size / sum
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x) * (1.0 - x) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

/// Greatest size that has a bucket of its own kind; above lies the rest.
const MOST_SIZE: u32 = 65_535;
/// Last size of the bucket that begins at `first`: half of its width is at most 4 % of its middle.
const fn last(first: u32) -> u32 {
    let last = first as u64 * 26 / 24;
    if last > MOST_SIZE as u64 { MOST_SIZE } else { last as u32 }
}

/// Buckets of a cell of [`Sizes`].
const BUCKETS: usize = {
    let (mut buckets, mut first) = (1, 0);
    while first <= MOST_SIZE {
        first = last(first) + 1;
        buckets += 1;
    }
    buckets
};

/// Last size of each bucket.
const LASTS: [u32; BUCKETS] = {
    let mut lasts = [u32::MAX; BUCKETS];
    let (mut bucket, mut first) = (0, 0);
    while first <= MOST_SIZE {
        lasts[bucket] = last(first);
        first = lasts[bucket] + 1;
        bucket += 1;
    }
    lasts
};

/// First bucket of the sizes that share their highest bit and the three bits below it; sizes below 8 are alone.
const FIRSTS: [u8; 8 + 13 * 8] = {
    let mut firsts = [0; 8 + 13 * 8];
    let (mut class, mut bucket) = (0, 0);
    while class < firsts.len() {
        let size = if class < 8 { class as u32 } else { (8 + class as u32 % 8) << (class / 8 - 1) };
        while LASTS[bucket] < size {
            bucket += 1;
        }
        firsts[class] = bucket as u8;
        class += 1;
    }
    firsts
};

#[inline(always)]
fn bucket(size: u32) -> usize {
    if size > MOST_SIZE {
        return BUCKETS - 1;
    }
    let shift = (28 - (size | 8).leading_zeros()) as usize;
    let class = if size < 8 { size as usize } else { 8 * shift + (size as usize >> shift) };
    let mut bucket = FIRSTS[class] as usize;
    bucket += (size > LASTS[bucket]) as usize;
    bucket + (size > LASTS[bucket]) as usize
}

/// The quantiles of [`Sizes`], in percent.
const QUANTILES: [u64; 3] = [50, 90, 99];

/// Packets and quantiles of packet sizes a key: a histogram of logarithmic buckets a cell, as in DDSketch (Masson, Rim
/// and Lee, VLDB 2019), for sizes of 0..=65535 bytes within 4 % and one bucket for all above.
///
/// A quantile q is the least size that at least q * n of the key's n packets do not exceed. Of a key's cells each
/// bucket's least count is taken, which is never below the key's own. Packets: `upper` is the sum of these, `lower`
/// and `value` are as for [`CountMin`]. Quantiles: with n at least `lower`, the key's own is between rank q * `lower`
/// and rank `upper - (1 - q) * lower` of these counts. The bounds are the first size of the bucket at the one and the
/// last size of the bucket at the other, so they hold whenever `lower` does. A bucket stops at 2^32 - 1 packets;
/// quantiles of keys in such a cell are not bounded. Takes 524 bytes a cell.
#[derive(Clone)]
pub struct Sizes {
    grid: Grid<2>,
    buckets: Vec<u32>,
}

impl Sizes {
    const KIND: u64 = 3;
    const BODY: Body = Body { length: |entries| entries.saturating_add(1), valid: Self::body_valid };

    /// An empty sketch.
    ///
    /// # Panics
    /// If the shape is outside of its ranges, see [`Shape::check`].
    pub fn new(shape: Shape) -> Self {
        Self { grid: Grid::new(shape), buckets: vec![0; shape.cells() * BUCKETS] }
    }

    /// Makes it as [`Self::new`] has. Costs what was in it.
    pub fn clear(&mut self) {
        let buckets = &mut self.buckets;
        self.grid.clear(|cell| buckets[cell * BUCKETS..][..BUCKETS].fill(0));
    }

    /// Adds so many packets of `size` bytes each; `packet` tells packets of one key apart.
    ///
    /// # Panics
    /// If the key has not 2 words, or 5 if `wide`.
    #[inline]
    pub fn update(&mut self, wide: bool, key: &[u64], (size, packets): (u32, u64), packet: u64) {
        let bucket = bucket(size);
        self.grid.add(wide, key, packets, packet, |cell| {
            let count = &mut self.buckets[cell * BUCKETS + bucket];
            *count = count.saturating_add(1);
        });
    }

    /// Fetches what [`Self::update`] of this key will touch. It is as fast again where that is called some packets later.
    #[inline]
    pub fn prefetch(&self, wide: bool, key: &[u64], size: u32) {
        let bucket = bucket(size);
        self.grid
            .prefetch(self.grid.hash(wide, key), |cell, _| prefetch(&self.buckets, cell * BUCKETS + bucket));
    }

    /// Adds a state made by [`Self::words`] under the same shape. Anything else is refused and changes nothing.
    pub fn merge(&mut self, words: &[u64]) -> Result<(), &'static str> {
        for cell in self.grid.read(Self::KIND, words, Self::BODY)? {
            let count = &mut self.grid.hot[cell.place][1];
            *count = count.saturating_add(cell.body[0]);
            for entry in &cell.body[1..] {
                let count = &mut self.buckets[cell.place * BUCKETS + (entry >> 32) as usize];
                *count = count.saturating_add(*entry as u32);
            }
            self.grid.offer(&cell);
        }
        Ok(())
    }

    /// The state; equal states give equal words. 4 words and, a touched cell, 5 (compact) or 8 (wide) and one for each
    /// bucket in use.
    pub fn words(&self) -> Vec<u64> {
        self.grid.words(Self::KIND, |cell, words| {
            words.push(self.grid.hot[cell][1]);
            let before = words.len();
            let buckets = self.buckets[cell * BUCKETS..][..BUCKETS].iter().enumerate();
            words.extend(
                buckets.filter(|(_, count)| **count > 0).map(|(b, count)| (b as u64) << 32 | *count as u64),
            );
            (words.len() - before) as u64
        })
    }

    /// The keys that cells name, each once, in the order of their words: packets, then the quantiles 50 %, 90 % and
    /// 99 % of their sizes in bytes.
    pub fn found(&self) -> Vec<Found<(Estimate, [Estimate; 3])>> {
        let noise = CountNoise::new(&self.grid);
        self.grid.found(|hash| self.bound(&noise, hash))
    }

    /// The same for one key, seen or not. Costs a pass over all cells; for many keys take [`Self::found`].
    pub fn estimate(&self, wide: bool, key: &[u64]) -> (Estimate, [Estimate; 3]) {
        self.bound(&CountNoise::new(&self.grid), self.grid.hash(wide, key))
    }

    /// Bytes held, fixed by the shape.
    pub fn bytes(&self) -> usize {
        self.grid.bytes() + self.buckets.capacity() * size_of::<u32>()
    }

    fn body_valid(entries: usize, body: &[u64]) -> bool {
        let places = body[1..].iter().map(|entry| (entry >> 32) as usize);
        let ascends = body[1..].is_sorted_by(|before, after| before >> 32 < after >> 32);
        let total = body[1..].iter().fold(0, |sum: u64, entry| sum.saturating_add(*entry as u32 as u64));
        let filled = body[1..].iter().all(|entry| *entry as u32 > 0);
        entries > 0
            && ascends
            && filled
            && total <= body[0]
            && places.max().is_none_or(|place| place < BUCKETS)
    }

    fn bound(&self, noise: &CountNoise, hash: [u64; 2]) -> (Estimate, [Estimate; 3]) {
        let mut least = [u32::MAX; BUCKETS];
        let mut count = u64::MAX;
        for cell in self.grid.places(hash) {
            count = count.min(self.grid.hot[cell][1]);
            for (least, count) in least.iter_mut().zip(&self.buckets[cell * BUCKETS..][..BUCKETS]) {
                *least = (*least).min(*count);
            }
        }
        let total = least.iter().map(|count| *count as u64).sum::<u64>();
        if total == 0 {
            return (Estimate::NONE, [Estimate::NONE; 3]);
        }
        let full = least.contains(&u32::MAX);
        let upper = if full { count } else { total };
        let lower = count.saturating_sub(noise.high).min(upper);
        let value = count.saturating_sub(noise.median).clamp(lower, upper);
        let packets = Estimate { value, lower, upper };
        let sure = lower.min(total);
        let at = |rank: u64| {
            let mut below = 0;
            let reaches = |count: &u32| {
                below += *count as u64;
                below >= rank
            };
            least.iter().position(reaches).unwrap_or(BUCKETS - 1)
        };
        let quantiles = QUANTILES.map(|percent| {
            let low = at(share(sure, percent).max(1));
            let high = at(total - (sure - share(sure, percent)));
            let middle = at(share(total, percent)).clamp(low, high);
            Estimate { value: middle_of(middle), lower: first_of(low), upper: LASTS[high] as u64 }
        });
        (packets, quantiles)
    }
}

/// The rank of a quantile in percent among `count`: rounded up.
const fn share(count: u64, percent: u64) -> u64 {
    (count as u128 * percent as u128).div_ceil(100) as u64
}

fn first_of(bucket: usize) -> u64 {
    if bucket == 0 { 0 } else { LASTS[bucket - 1] as u64 + 1 }
}

/// The size that is relatively as near to the first as to the last of its bucket; of the rest, the first.
fn middle_of(bucket: usize) -> u64 {
    let (first, last) = (first_of(bucket), LASTS[bucket] as u64);
    if bucket == BUCKETS - 1 || last == 0 {
        first
    } else {
        (2 * first * last + (first + last) / 2) / (first + last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const MEDIUM: Shape = Shape { width: 4096, depth: 5, seed: 0x5eed };
    const SPREAD: Shape = Shape { width: 1024, depth: 6, seed: 0x5eed };
    const SMALL: Shape = Shape { width: 64, depth: 3, seed: 7 };

    struct Random(u64);

    impl Random {
        fn word(&mut self) -> u64 {
            secret(&mut self.0)
        }

        fn below(&mut self, limit: u64) -> u64 {
            ((self.word() as u128 * limit as u128) >> 64) as u64
        }

        fn unit(&mut self) -> f64 {
            self.word() as f64 / 18_446_744_073_709_551_616.0
        }
    }

    /// One packet: key, size, element, identity.
    #[derive(Clone)]
    struct Seen {
        wide: bool,
        key: [u64; 5],
        size: u32,
        element: u64,
        packet: u64,
    }

    impl Seen {
        fn key(&self) -> &[u64] {
            if self.wide { &self.key } else { &self.key[..2] }
        }
    }

    /// Keys as a task makes them: few bits differ, and every fourth key is wide.
    fn flow(number: u64) -> (bool, [u64; 5]) {
        let source = 0x0a00_0000 + number;
        match number % 4 {
            3 => (true, [0x2001_0db8 << 32, number, 0x2001_0db8 << 32, 1, 443 << 16]),
            _ => (false, [source << 32 | 0xc0a8_0001, 443 << 16 | 6, 0, 0, 0]),
        }
    }

    fn seen(random: &mut Random, number: u64, element: u64) -> Seen {
        let (wide, key) = flow(number);
        let size = match (number + random.below(3)) % 5 {
            0 => 64,
            1 => 1500,
            2 => 40 + random.below(1460) as u32,
            3 => 500 + (number % 100) as u32,
            _ => 40 + (random.unit() * random.unit() * 9000.0) as u32,
        };
        Seen { wide, key, size, element, packet: random.word() }
    }

    fn zipf(packets: usize, keys: usize, exponent: f64) -> Vec<Seen> {
        let mut random = Random(1);
        let mut sum = 0.0;
        let shares = (1..=keys).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        let shares = shares.collect::<Vec<_>>();
        let draw = |_| {
            let at = random.unit() * sum;
            let key = shares.partition_point(|share| *share < at) as u64;
            let element = random.below(1 << 40);
            seen(&mut random, key, element)
        };
        (0..packets).map(draw).collect()
    }

    fn uniform(packets: usize, keys: u64) -> Vec<Seen> {
        let mut random = Random(2);
        let draw = |_| {
            let (key, element) = (random.below(keys), random.below(1 << 40));
            seen(&mut random, key, element)
        };
        (0..packets).map(draw).collect()
    }

    /// Half of the packets, each with a new element, are of key 0.
    fn elephant(packets: usize) -> Vec<Seen> {
        let mut all = uniform(packets, 50_000);
        let (wide, key) = flow(0);
        all.iter_mut().step_by(2).for_each(|one| (one.wide, one.key) = (wide, key));
        all
    }

    /// Two elements for each of many keys; key 0 has a new element each tenth packet.
    fn spreader(packets: usize) -> Vec<Seen> {
        let mut all = uniform(packets, 100_000);
        all.iter_mut().for_each(|one| one.element %= 2);
        let (wide, key) = flow(0);
        let tenth = all.iter_mut().step_by(10).enumerate();
        tenth.for_each(|(number, one)| (one.wide, one.key, one.element) = (wide, key, number as u64));
        all
    }

    /// The key's cell in the first row.
    fn first(grid: &Grid<2>, key: &[u64]) -> Option<usize> {
        grid.places(grid.hash(false, key)).next()
    }

    /// Heavy keys that all fall into the victims' cells of a sketch of another seed, and keys that differ in one bit.
    fn adversary(packets: usize, shape: Shape) -> Vec<Seen> {
        let guess = Grid::<2>::new(Shape { seed: 0, ..shape });
        let mut random = Random(3);
        let victim = first(&guess, &[1, 6]);
        let mut keys = (2..3_000_000).map(|word| [word, 6]).collect::<Vec<_>>();
        keys.retain(|key| first(&guess, key) == victim);
        keys.extend((0..64).map(|bit| [1 << bit, 6]));
        keys.extend((0..64).map(|bit| [1, 6 ^ 1 << bit]));
        keys.extend((0..20_000).map(|number| [number << 48, number]));
        let draw = |number: usize| {
            let few = if number.is_multiple_of(2) { 700 } else { keys.len() as u64 };
            let words = keys[random.below(few) as usize];
            let element = random.below(1 << 40);
            let mut one = seen(&mut random, 0, element);
            (one.wide, one.key) = (false, [words[0], words[1], 0, 0, 0]);
            one
        };
        (0..packets).map(draw).collect()
    }

    fn traffics(packets: usize, shape: Shape) -> Vec<(&'static str, Vec<Seen>)> {
        vec![
            ("zipf 1.1", zipf(packets, 200_000, 1.1)),
            ("zipf 0.8", zipf(packets, 200_000, 0.8)),
            ("uniform", uniform(packets, 100_000)),
            ("elephant", elephant(packets)),
            ("spreader", spreader(packets)),
            ("adversary", adversary(packets, shape)),
        ]
    }

    type Exact = HashMap<(bool, Vec<u64>), u64>;

    fn sums(traffic: &[Seen], weight: impl Fn(&Seen) -> u64) -> Exact {
        let mut sums = Exact::new();
        traffic
            .iter()
            .for_each(|one| *sums.entry((one.wide, one.key().to_vec())).or_default() += weight(one));
        sums
    }

    fn distinct(traffic: &[Seen]) -> Exact {
        let pairs = traffic.iter().map(|one| (one.wide, one.key(), one.element)).collect::<HashSet<_>>();
        let mut sums = Exact::new();
        pairs.iter().for_each(|(wide, key, _)| *sums.entry((*wide, key.to_vec())).or_default() += 1);
        sums
    }

    fn count_min(shape: Shape, traffic: &[Seen], bytes: bool) -> CountMin {
        let mut sketch = CountMin::new(shape);
        for one in traffic {
            sketch.update(one.wide, one.key(), if bytes { one.size as u64 } else { 1 }, one.packet);
        }
        sketch
    }

    fn spread(shape: Shape, traffic: &[Seen]) -> Distinct {
        let mut sketch = Distinct::new(shape);
        traffic.iter().for_each(|one| sketch.update(one.wide, one.key(), &[one.element]));
        sketch
    }

    fn sizes(shape: Shape, traffic: &[Seen]) -> Sizes {
        let mut sketch = Sizes::new(shape);
        traffic.iter().for_each(|one| sketch.update(one.wide, one.key(), (one.size, 1), one.packet));
        sketch
    }

    /// Bounds hold for 99 % of all keys and of the named keys, and keys with 1 % of the total are named.
    fn judge(
        name: &str,
        exact: &Exact,
        estimate: impl Fn(bool, &[u64]) -> Estimate,
        found: &[Found<Estimate>],
    ) {
        let total = exact.values().sum::<u64>();
        let holds = |truth: u64, bound: Estimate| {
            assert!(bound.lower <= bound.value && bound.value <= bound.upper, "{name}: {bound:?}");
            (truth >= bound.lower && truth <= bound.upper) as usize
        };
        let all = exact.iter().map(|((wide, key), truth)| holds(*truth, estimate(*wide, key))).sum::<usize>();
        let mut by_name = HashMap::new();
        let mut named = 0;
        for one in found {
            let key = (one.wide, one.key.clone());
            named += holds(exact[&key], one.value);
            assert!(by_name.insert(key, one.value).is_none(), "{name}: a key twice");
        }
        // The rows that a task shows are those that luck made large.
        let mut shown = found.iter().collect::<Vec<_>>();
        shown.sort_by_key(|one| std::cmp::Reverse(one.value.value));
        shown.truncate(100);
        let shown =
            shown.iter().map(|one| holds(exact[&(one.wide, one.key.clone())], one.value)).sum::<usize>();
        assert!(shown >= 99, "{name}: {shown} of 100 shown");
        let mut heaviest = exact.iter().collect::<Vec<_>>();
        heaviest.sort_by_key(|(key, truth)| (std::cmp::Reverse(**truth), (*key).clone()));
        let mut errors = [0.0; 3];
        let mut top = 0;
        for (key, truth) in heaviest.iter().take(100) {
            let Some(value) = by_name.get(*key) else { continue };
            top += 1;
            let error = |bound: u64| (bound as f64 - **truth as f64).abs() / **truth as f64;
            errors[0] += error(value.value);
            errors[1] += error(value.lower);
            errors[2] += error(value.upper);
        }
        println!(
            "{name}: {} keys, hold {:.3} % of all, {:.3} % of {} named; top 100: {top} named, heaviest {} of {total}, \
             error of value {:.2} %, lower {:.2} %, upper {:.2} %",
            exact.len(),
            100.0 * all as f64 / exact.len() as f64,
            100.0 * named as f64 / found.len() as f64,
            found.len(),
            heaviest[0].1,
            errors[0] / top as f64 * 100.0,
            errors[1] / top as f64 * 100.0,
            errors[2] / top as f64 * 100.0,
        );
        assert!(all * 100 >= exact.len() * 99, "{name}: all keys");
        assert!(named * 100 >= found.len() * 99, "{name}: named keys");
        for (key, truth) in exact.iter().filter(|(_, truth)| **truth * 100 >= total) {
            assert!(by_name.contains_key(key), "{name}: {key:x?} with {truth} of {total} is not named");
        }
    }

    #[test]
    fn weights_of_keys_are_within_their_bounds() {
        for (name, traffic) in traffics(400_000, MEDIUM) {
            for bytes in [false, true] {
                let sketch = count_min(MEDIUM, &traffic, bytes);
                let exact = sums(&traffic, |one| if bytes { one.size as u64 } else { 1 });
                let noise = CountNoise::new(&sketch.grid);
                let estimate = |wide, key: &[u64]| sketch.bound(&noise, sketch.grid.hash(wide, key));
                judge(&format!("{name}, bytes {bytes}"), &exact, estimate, &sketch.found());
                let mean = exact.values().sum::<u64>() as f64 / MEDIUM.width as f64;
                println!("noise {:.2} of the mean", noise.high as f64 / mean);
                assert!(noise.high as f64 <= mean * (100.0 * MEDIUM.cells() as f64).powf(0.2) + 1.0);
            }
        }
    }

    #[test]
    fn distinct_elements_of_keys_are_within_their_bounds() {
        for (name, traffic) in traffics(400_000, SPREAD) {
            let sketch = spread(SPREAD, &traffic);
            let noise = sketch.noise();
            let estimate = |wide, key: &[u64]| sketch.bound(&noise, sketch.grid.hash(wide, key));
            judge(name, &distinct(&traffic), estimate, &sketch.found());
        }
    }

    #[test]
    fn packets_and_quantiles_of_sizes_are_within_their_bounds() {
        let shape = Shape { width: 1024, ..MEDIUM };
        for (name, traffic) in traffics(400_000, shape) {
            let sketch = sizes(shape, &traffic);
            let noise = CountNoise::new(&sketch.grid);
            let bound = |wide, key: &[u64]| sketch.bound(&noise, sketch.grid.hash(wide, key));
            let packets = sketch.found().into_iter();
            let packets = packets.map(|one| Found { wide: one.wide, key: one.key, value: one.value.0 });
            let exact = sums(&traffic, |_| 1);
            judge(name, &exact, |wide, key| bound(wide, key).0, &packets.collect::<Vec<_>>());
            let mut by_key: HashMap<(bool, Vec<u64>), Vec<u32>> = HashMap::new();
            traffic
                .iter()
                .for_each(|one| by_key.entry((one.wide, one.key().to_vec())).or_default().push(one.size));
            let (mut holds, mut errors, mut widths, mut heavy) = ([0; 3], [0.0; 3], [0.0; 3], 0);
            for ((wide, key), sizes) in &mut by_key {
                sizes.sort_unstable();
                let quantiles = bound(*wide, key).1;
                let counts = sizes.len() * 200 >= traffic.len();
                heavy += counts as usize;
                for (place, percent) in QUANTILES.into_iter().enumerate() {
                    let truth = sizes[share(sizes.len() as u64, percent) as usize - 1] as u64;
                    let one = quantiles[place];
                    assert!(one.lower <= one.value && one.value <= one.upper);
                    holds[place] += (one.lower <= truth && truth <= one.upper) as usize;
                    if counts {
                        errors[place] += one.value.abs_diff(truth) as f64 / truth as f64 * 100.0;
                        widths[place] += (one.upper - one.lower) as f64 / truth as f64 * 100.0;
                    }
                }
            }
            for place in 0..3 {
                println!(
                    "  p{}: hold {:.3} %, keys of 0.5 %: error {:.2} %, width {:.2} %",
                    QUANTILES[place],
                    100.0 * holds[place] as f64 / by_key.len() as f64,
                    errors[place] / heavy as f64,
                    widths[place] / heavy as f64
                );
                assert!(holds[place] * 100 >= by_key.len() * 99, "{name}");
            }
        }
    }

    #[test]
    fn sets_of_every_size_are_within_their_bounds() {
        for size in [1, 2, 3, 4, 5, 7, 10, 20, 50, 100, 256, 600, 1000, 3000, 20_000] {
            let (mut held, mut error, trials) = (0, 0.0, if size > 999 { 40 } else { 400 });
            for seed in 0..trials {
                let mut sketch = Distinct::new(Shape { width: 16, depth: 6, seed });
                (0..size).for_each(|element| sketch.update(false, &[9, 9], &[element, 5]));
                let one = sketch.estimate(false, &[9, 9]);
                held += (one.lower <= size && size <= one.upper) as u64;
                error += (one.value as f64 / size as f64 - 1.0).powi(2);
            }
            println!(
                "{size}: held {held} of {trials}, error {:.2} %",
                (error / trials as f64).sqrt() * 100.0
            );
            assert!(held * 100 >= trials * 99, "{size}: {held} of {trials}");
        }
    }

    #[test]
    fn merged_splits_equal_the_whole_in_any_order() {
        let traffic = zipf(20_000, 3_000, 1.0);
        for parts in [1, 2, 3, 8] {
            let mut random = Random(parts);
            let mut split = vec![Vec::new(); parts as usize];
            traffic.iter().for_each(|one| split[random.below(parts) as usize].push(one.clone()));
            split.iter_mut().step_by(2).for_each(|part| part.reverse());
            for shape in [SMALL, SPREAD] {
                let (mut a, mut b, mut c) = (CountMin::new(shape), Distinct::new(shape), Sizes::new(shape));
                for part in split.iter().rev() {
                    a.merge(&count_min(shape, part, true).words()).expect("what was made here");
                    b.merge(&spread(shape, part).words()).expect("what was made here");
                    c.merge(&sizes(shape, part).words()).expect("what was made here");
                }
                assert!(a.words() == count_min(shape, &traffic, true).words());
                assert!(c.words() == sizes(shape, &traffic).words());
                assert!(b.words() == spread(shape, &traffic).words());
                assert_eq!(a.found(), count_min(shape, &traffic, true).found());
                b.merge(&spread(shape, &traffic[..5_000]).words()).expect("what was made here");
                assert!(
                    b.words() == spread(shape, &traffic).words(),
                    "elements that are known change nothing"
                );
            }
        }
    }

    #[test]
    fn states_read_back_as_they_were_and_are_short_when_little_was_touched() {
        for packets in [0, 1, 5, 500, 30_000] {
            let traffic = uniform(packets, 2_000);
            let words = [
                count_min(SPREAD, &traffic, true).words(),
                spread(SPREAD, &traffic).words(),
                sizes(SPREAD, &traffic).words(),
            ];
            let (mut a, mut b, mut c) = (CountMin::new(SPREAD), Distinct::new(SPREAD), Sizes::new(SPREAD));
            a.merge(&words[0]).expect("what was made here");
            b.merge(&words[1]).expect("what was made here");
            c.merge(&words[2]).expect("what was made here");
            assert!([a.words(), b.words(), c.words()] == words);
            assert!(words.iter().all(|words| words.len() <= HEADER + packets * SPREAD.depth * 10));
        }
        let one = [seen(&mut Random(5), 3, 9)];
        assert_eq!(count_min(SMALL, &one, false).words().len(), HEADER + 3 * 8);
    }

    #[test]
    fn many_elements_of_few_keys_read_back_as_they_were() {
        for elements in [99, 100, 101, 130, 170, 400, 5_000] {
            let mut sketch = Distinct::new(SMALL);
            for element in 0..elements {
                sketch.update(false, &[1, 2], &[element]);
                sketch.update(true, &[1, 2, 3, 4, 5], &[element, element]);
            }
            let mut other = Distinct::new(SMALL);
            other.merge(&sketch.words()).expect("what was made here");
            assert!(other.words() == sketch.words());
        }
    }

    #[test]
    fn a_cleared_sketch_is_a_new_one() {
        // Windows use a sketch one after the other: nothing of one may be in the next.
        let (mut counts, mut distinct, mut lengths) =
            (CountMin::new(SMALL), Distinct::new(SMALL), Sizes::new(SMALL));
        for packets in [0, 1, 3_000, 20, 0, 500] {
            let traffic = uniform(packets, 1 + packets as u64 / 3);
            for one in &traffic {
                counts.update(one.wide, one.key(), one.size.into(), one.packet);
                distinct.update(one.wide, one.key(), &[one.element]);
                lengths.update(one.wide, one.key(), (one.size, 1), one.packet);
            }
            let (new_counts, new_distinct, new_lengths) =
                (count_min(SMALL, &traffic, true), spread(SMALL, &traffic), sizes(SMALL, &traffic));
            assert!(counts.words() == new_counts.words() && counts.found() == new_counts.found());
            assert!(distinct.words() == new_distinct.words() && distinct.found() == new_distinct.found());
            assert!(lengths.words() == new_lengths.words() && lengths.found() == new_lengths.found());
            counts.clear();
            distinct.clear();
            lengths.clear();
        }
    }

    #[test]
    fn used_cells_are_visited_in_order_and_no_others() {
        let mut used = Used::new(200);
        [199, 0, 63, 64, 100, 64].iter().for_each(|cell| used.insert(*cell));
        assert_eq!(used.iter().collect::<Vec<_>>(), [0, 63, 64, 100, 199]);
        assert_eq!(used.within(16..96).collect::<Vec<_>>(), [63, 64]);
        let mut drained = Vec::new();
        used.drain(|cell| drained.push(cell));
        assert_eq!((drained.len(), used.iter().count()), (5, 0));
    }

    #[test]
    fn damaged_and_foreign_states_are_refused_and_change_nothing() {
        let traffic = uniform(2_000, 300);
        let (mut a, mut b, mut c) =
            (count_min(SMALL, &traffic, true), spread(SMALL, &traffic), sizes(SMALL, &traffic));
        let good = [a.words(), b.words(), c.words()];
        let mut refused = |words: &[u64]| {
            assert!(a.merge(words).is_err() && b.merge(words).is_err() && c.merge(words).is_err());
            assert!(a.words() == good[0] && b.words() == good[1] && c.words() == good[2]);
        };
        let mut random = Random(4);
        refused(&[]);
        for length in 0..200 {
            refused(&(0..length).map(|_| random.word()).collect::<Vec<_>>());
        }
        let others = [
            Shape { width: 128, ..SMALL },
            Shape { depth: 4, ..SMALL },
            Shape { seed: 8, ..SMALL },
            Shape { width: 1024, depth: 6, seed: 0 },
        ];
        for shape in others {
            refused(&count_min(shape, &traffic, true).words());
            refused(&spread(shape, &traffic).words());
            refused(&sizes(shape, &traffic).words());
        }
        for words in &good {
            for _ in 0..300 {
                let mut words = words.clone();
                let place = random.below(words.len() as u64) as usize;
                words[place] ^= 1 << random.below(64);
                refused(&words);
                words.truncate(place);
                refused(&words);
            }
        }
    }

    #[test]
    fn nothing_panics_on_states_that_are_damaged_under_a_right_checksum() {
        let traffic = uniform(2_000, 300);
        let states = [
            count_min(SMALL, &traffic, true).words(),
            spread(SMALL, &traffic).words(),
            sizes(SMALL, &traffic).words(),
        ];
        let mut random = Random(6);
        for (kind, state) in states.iter().enumerate() {
            for round in 0..3_000 {
                let mut words = state.clone();
                for _ in 0..1 + round % 3 {
                    let place = HEADER + random.below((words.len() - HEADER) as u64) as usize;
                    words[place] = match round % 4 {
                        0 => random.word(),
                        1 => words[place] ^ 1 << random.below(64),
                        2 => u64::MAX,
                        _ => 0,
                    };
                }
                if round % 5 == 0 {
                    words.truncate(HEADER + random.below((words.len() - HEADER) as u64) as usize);
                }
                words[HEADER - 1] = checksum(&words);
                let (mut a, mut b, mut c) = (CountMin::new(SMALL), Distinct::new(SMALL), Sizes::new(SMALL));
                let merged = match kind {
                    0 => a.merge(&words).map(|()| (a.found().len(), a.words())),
                    1 => b.merge(&words).map(|()| (b.found().len(), b.words())),
                    _ => c.merge(&words).map(|()| (c.found().len(), c.words())),
                };
                if let Ok((_, again)) = merged {
                    assert!(again == words, "what is accepted is what a sketch writes");
                }
            }
        }
    }

    #[test]
    fn memory_does_not_grow_with_the_traffic() {
        let traffic = uniform(100_000, 50_000);
        assert_eq!(CountMin::new(MEDIUM).bytes(), count_min(MEDIUM, &traffic, true).bytes());
        assert_eq!(Distinct::new(SPREAD).bytes(), spread(SPREAD, &traffic).bytes());
        assert_eq!(Sizes::new(SMALL).bytes(), sizes(SMALL, &traffic).bytes());
        assert_eq!(CountMin::new(MEDIUM).bytes(), 4096 * 5 * 64 + 4096 * 5 / 8);
        assert_eq!(Sizes::new(SMALL).bytes(), 64 * 3 * (64 + 4 * BUCKETS) + 64 * 3 / 8);
        assert!(Distinct::new(SPREAD).bytes() <= 2 << 20);
        assert_eq!(64 + 4 * BUCKETS, 524);
    }

    #[test]
    fn cells_name_keys_by_their_share_of_the_weight() {
        let mut heavy = 0;
        for seed in 0..4_000 {
            let mut sketch = CountMin::new(Shape { width: 16, depth: 1, seed });
            // One packet of 3000 against ten of 100: three in four.
            sketch.update(false, &[1, 1], 3_000, 0);
            let one = first(&sketch.grid, &[1, 1]);
            let other =
                (2..).find(|word| first(&sketch.grid, &[*word, 1]) == one).expect("what was made here");
            (0..10).for_each(|packet| sketch.update(false, &[other, 1], 100, packet));
            heavy += (sketch.found()[0].key[0] == 1) as u32;
        }
        assert!((2_890..=3_110).contains(&heavy), "{heavy}");
    }

    #[test]
    fn draws_are_exponential_and_never_below_their_quick_bound() {
        let mut random = Random(8);
        let mut draws = [0, 1, u64::MAX - 1, u64::MAX, 1 << 63, (1 << 63) - 1].to_vec();
        draws.extend((0..20_000).map(|number| random.word() >> (number % 64)));
        draws.extend((0..20_000).map(|number| !(random.word() >> (number % 64))));
        draws.sort_unstable();
        assert!(draws.is_sorted_by_key(|draw| exponential(*draw)));
        for draw in draws {
            let got = exponential(draw);
            let real = -(-(draw as f64 / 2f64.powi(64))).ln_1p() / std::f64::consts::LN_2 * 2f64.powi(57);
            assert!(got >= draw >> 7 && got < u64::MAX / 2 + (1 << 61));
            // Above 2^63 a float cannot tell the draw from 2^64 well enough; the logarithm of the rest can.
            let real =
                if draw >> 63 == 1 { (64.0 - (!draw as f64 + 1.0).log2()) * 2f64.powi(57) } else { real };
            assert!(
                (got as f64 - real).abs() <= real * 0.002 + 2.0 || !draw < 4096,
                "{draw:x}: {got} {real}"
            );
        }
    }

    #[test]
    fn every_size_is_in_the_bucket_that_covers_it() {
        for size in (0..=70_000).chain([1 << 20, u32::MAX - 1, u32::MAX]) {
            let place = bucket(size);
            assert!(first_of(place) <= size as u64 && size <= LASTS[place], "{size}");
            if size <= MOST_SIZE {
                let error = middle_of(place).abs_diff(size as u64) as f64;
                assert!(error <= 0.04 * size as f64 + 0.5, "{size}: {}", middle_of(place));
            }
        }
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn compact_and_wide_keys_are_different_keys() {
        let mut sketch = CountMin::new(SMALL);
        sketch.update(false, &[1, 2], 10, 1);
        sketch.update(true, &[1, 2, 0, 0, 0], 20, 1);
        let found = sketch.found();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].wide, &found[0].key[..], found[0].value.upper), (false, &[1, 2][..], 10));
        assert_eq!(
            (found[1].wide, &found[1].key[..], found[1].value.upper),
            (true, &[1, 2, 0, 0, 0][..], 20)
        );
        assert_eq!(sketch.estimate(false, &[7, 7]).lower, 0);
    }

    #[test]
    fn an_empty_sketch_knows_nothing() {
        assert!(CountMin::new(SMALL).found().is_empty() && Sizes::new(SMALL).found().is_empty());
        assert_eq!(CountMin::new(SMALL).estimate(false, &[1, 2]), Estimate::NONE);
        assert_eq!(Distinct::new(SMALL).estimate(false, &[1, 2]), Estimate::NONE);
        assert_eq!(Sizes::new(SMALL).estimate(false, &[1, 2]), (Estimate::NONE, [Estimate::NONE; 3]));
        let mut sketch = CountMin::new(SMALL);
        sketch.update(false, &[1, 2], 0, 1);
        assert_eq!(sketch.words(), CountMin::new(SMALL).words());
    }

    #[test]
    fn shapes_outside_of_their_ranges_are_refused() {
        for (width, depth) in [(0, 5), (8, 5), (100, 5), (1 << 21, 5), (64, 0), (64, 17)] {
            assert!(Shape { width, depth, seed: 0 }.check().is_err());
        }
        assert_eq!(Shape { width: 1 << 20, depth: 16, seed: 0 }.check(), Ok(()));
    }
}
