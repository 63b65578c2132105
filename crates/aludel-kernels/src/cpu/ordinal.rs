//! Ranks the magnitudes of rows: for each element, how many of its row come before it.
//!
//! In: the values of whole rows. Out: their ranks, kept in a thread's scratch memory while it works on a chunk. Equal
//! magnitudes keep the order of their index. A row is sorted by three stable passes over its bits rather than by
//! comparisons: several times faster for the thousands of elements of a row, and the same for any data.

use std::ops::Range;

use super::block::{CHUNK, Geometry};
use super::rank::magnitude;

/// Bits of a magnitude that one pass sorts by; three passes take all 31.
const DIGIT: u32 = 11;
const DIGITS: usize = 1 << DIGIT;

/// Rows below this length are sorted by comparisons: emptying the counters would take longer.
const SHORT: usize = 512;

/// The ranks of some consecutive rows.
#[derive(Debug, Default)]
pub(super) struct Ordinals {
    elements: Range<u64>,
    ranks: Vec<f32>,
}

/// What sorting needs; reused from row to row.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    values: Vec<u8>,
    magnitudes: Vec<u32>,
    order: Vec<u32>,
    next: Vec<u32>,
    counts: Vec<u32>,
}

/// The elements of all rows that hold some of `elements`.
pub(super) fn rows_around(elements: &Range<u64>, geometry: Geometry) -> Range<u64> {
    let columns = geometry.columns.max(1);
    elements.start / columns * columns..elements.end.div_ceil(columns) * columns
}

/// Bytes that so many ranks take in a thread's memory.
pub(super) fn bytes(ranks: u64, geometry: Geometry) -> u64 {
    if ranks == 0 {
        return 0;
    }
    let around = (CHUNK + 2 * geometry.columns).min(geometry.elements.max(1));
    size_of::<f32>() as u64 * ((ranks + 1) * around + 3 * geometry.columns + 3 * DIGITS as u64)
}

impl Ordinals {
    /// Holds no ranks any more.
    pub(super) fn forget(&mut self) {
        self.elements = 0..0;
    }

    pub(super) fn covers(&self, rows: &Range<u64>) -> bool {
        self.elements.start <= rows.start && rows.end <= self.elements.end
    }

    /// The ranks of elements that are covered.
    #[inline(always)]
    pub(super) fn of(&self, elements: &Range<u64>) -> &[f32] {
        let start = (elements.start - self.elements.start) as usize;
        &self.ranks[start..start + (elements.end - elements.start) as usize]
    }

    /// Ranks the rows whose values are in the buffers.
    pub(super) fn rank(&mut self, rows: Range<u64>, geometry: Geometry, buffers: &mut Buffers) {
        let columns = geometry.columns.max(1) as usize;
        self.ranks.resize((rows.end - rows.start) as usize, 0.0);
        let values = std::mem::take(&mut buffers.values);
        let bytes = values.chunks_exact(columns * size_of::<f32>());
        for (ranks, row) in self.ranks.chunks_exact_mut(columns).zip(bytes) {
            let raw = row.as_chunks().0.iter();
            buffers.magnitudes.clear();
            buffers.magnitudes.extend(raw.map(|&raw| magnitude(f32::from_le_bytes(raw))));
            buffers.rank(ranks);
        }
        buffers.values = values;
        self.elements = rows;
    }
}

impl Buffers {
    /// Room for the values of these elements, as stored f32.
    pub(super) fn values(&mut self, elements: &Range<u64>) -> &mut [u8] {
        self.values.resize((elements.end - elements.start) as usize * size_of::<f32>(), 0);
        &mut self.values
    }

    fn rank(&mut self, ranks: &mut [f32]) {
        self.order.clear();
        self.order.extend(0..ranks.len() as u32);
        if ranks.len() < SHORT {
            self.order.sort_unstable_by_key(|&i| (self.magnitudes[i as usize], i));
        } else {
            self.sort();
        }
        for (rank, &i) in (0u32..).zip(&self.order) {
            ranks[i as usize] = rank as f32;
        }
    }

    fn sort(&mut self) {
        self.next.resize(self.order.len(), 0);
        for shift in [0, DIGIT, 2 * DIGIT] {
            let digit = |magnitude: u32| (magnitude >> shift) as usize & (DIGITS - 1);
            self.counts.clear();
            self.counts.resize(DIGITS, 0);
            self.magnitudes.iter().for_each(|&m| self.counts[digit(m)] += 1);
            let mut before = 0;
            for count in &mut self.counts {
                before += std::mem::replace(count, before);
            }
            for &i in &self.order {
                let place = &mut self.counts[digit(self.magnitudes[i as usize])];
                self.next[*place as usize] = i;
                *place += 1;
            }
            std::mem::swap(&mut self.order, &mut self.next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{StreamKey, uniform};

    #[test]
    fn ranks_are_those_of_a_stable_sort() {
        for columns in [1usize, 2, 41, SHORT - 1, SHORT, 1271, 5000] {
            // Few distinct values in every other row, so that many are equal; both zeros, and NaN above all.
            let value = |i: usize| match uniform(StreamKey(4), i as u64) - 0.5 {
                _ if i.is_multiple_of(97) => f32::NAN,
                u if (i / columns).is_multiple_of(2) => (u * 9.0).round(),
                u => u * 2f32.powi((u * 40.0) as i32),
            };
            let values: Vec<f32> = (0..3 * columns).map(value).collect();
            let geometry = Geometry::new(values.len() as u64, columns as u64);
            let rows = rows_around(&(columns as u64 / 2..2 * columns as u64 + 1), geometry);
            assert_eq!(rows, 0..3 * columns as u64);
            let (mut ordinals, mut buffers) = (Ordinals::default(), Buffers::default());
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            buffers.values(&rows).copy_from_slice(&bytes);
            ordinals.rank(rows.clone(), geometry, &mut buffers);
            for (row, ranks) in values.chunks(columns).zip(ordinals.of(&rows).chunks(columns)) {
                let mut order: Vec<usize> = (0..columns).collect();
                order.sort_by_key(|&i| (magnitude(row[i]), i));
                let mut expected = vec![0.0; columns];
                order.iter().enumerate().for_each(|(rank, &i)| expected[i] = rank as f32);
                assert_eq!(ranks, expected);
            }
        }
    }
}
