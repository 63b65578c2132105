//! Divides a tensor into blocks (what is computed at once), chunks (what is reduced at once) and tiles (one unit of
//! work).

use std::ops::Range;

use crate::element::Element;

/// Elements computed at once: a handful of f32 registers of this length stay in the first-level cache.
pub const BLOCK: usize = 1024;

/// Elements whose partial reductions are kept apart. Tiles are whole numbers of chunks, so that the order in which
/// partial results are combined does not depend on the tile.
pub const CHUNK: u64 = 65_536;

/// Elements of one run in a block that gathers samples; a multiple of four, the random generator's group.
pub(super) const RUN: usize = 64;

/// The shape that matters to a formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Elements of each tensor.
    pub elements: u64,
    /// Elements of each row, at least 1; divides `elements`.
    pub columns: u64,
    /// How many values there are by row: rows whose numbers are equal modulo this count as one. As many as rows, unless told
    /// otherwise.
    pub bands: u64,
}

impl Geometry {
    /// Rows of so many elements, each by itself.
    pub fn new(elements: u64, columns: u64) -> Self {
        Self { elements, columns, bands: elements / columns.max(1) }
    }

    /// Of the rows, every so many-th counts to the same band.
    #[must_use]
    pub fn in_bands(self, bands: u64) -> Self {
        Self { bands: bands.clamp(1, self.rows().max(1)), ..self }
    }

    /// Whether rows that are apart count as one.
    pub fn is_banded(self) -> bool {
        self.bands < self.rows()
    }

    /// The value by row that holds for a row.
    #[inline(always)]
    pub(super) fn band(self, row: u64) -> usize {
        (row % self.bands.max(1)) as usize
    }

    pub(super) fn rows(self) -> u64 {
        self.elements / self.columns.max(1)
    }

    pub(crate) fn chunks(self) -> u64 {
        self.elements.div_ceil(CHUNK)
    }
}

/// Where a formula's input tensors come from: their bytes as they are stored, or values that are made when they are asked for.
pub trait Source: Sync {
    /// The storage type of an input.
    fn element(&self, input: usize) -> Element;

    /// The stored bytes of a range of elements of an input, little-endian. Not asked for where the input is made.
    fn bytes(&self, input: usize, elements: Range<u64>) -> &[u8];

    /// Whether an input's values are made instead of stored.
    fn is_made(&self, input: usize) -> bool {
        let _ = input;
        false
    }

    /// Consecutive elements of an input, from `start` on, at most a block of them: the same values however they are cut into
    /// ranges. Blocks are computed on by it where the input is made.
    fn make(&self, input: usize, start: u64, to: &mut [f32]) {
        let elements = start..start + to.len() as u64;
        self.element(input).decode_into(self.bytes(input, elements), to);
    }

    /// Copies the stored bytes of a few elements out of many places.
    fn gather(&self, input: usize, elements: Range<u64>, to: &mut [u8]) {
        to.copy_from_slice(self.bytes(input, elements));
    }

    /// Says that a range of an input that was sampled or searched is not needed any more. What a sweep has passed, its
    /// caller knows.
    fn release(&self, input: usize, elements: Range<u64>) {
        let _ = (input, elements);
    }
}

/// An input element that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonFinite {
    /// The input.
    pub input: usize,
    /// The flat index of the first such element of the unit.
    pub index: u64,
    /// Its value.
    pub value: f32,
}

/// A piece of a block: consecutive elements of the tensor at an offset in the block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub start: u64,
    pub offset: usize,
    pub length: usize,
}

impl Segment {
    pub(super) fn elements(&self) -> Range<u64> {
        self.start..self.start + self.length as u64
    }

    pub(super) fn lanes(&self) -> Range<usize> {
        self.offset..self.offset + self.length
    }
}

/// Cuts a segment at row boundaries: `(row, lanes)` in order.
#[inline(always)]
pub(super) fn rows_of(segment: Segment, columns: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let end = segment.start + segment.length as u64;
    let mut at = segment.start;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let row = at / columns;
            let stop = end.min((row + 1) * columns);
            let lanes = segment.offset + (at - segment.start) as usize
                ..segment.offset + (stop - segment.start) as usize;
            at = stop;
            (row, lanes)
        })
    })
}
