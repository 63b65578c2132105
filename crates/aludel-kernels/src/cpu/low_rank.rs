//! Multiplies a vector with a matrix of few rows, for elements of the product of two low-rank factors.
//!
//! Each element is a sum in the order of the rows, a multiplication and an addition at a time, so that its bits depend
//! neither on the range that it is computed in nor on the vector instructions.

use super::dispatch::{self, level};

/// Sets `to[j]` to the sum over `r` of `left[r] * right[r * stride + first + j]`.
///
/// # Panics
/// Where `right` has not all these elements.
pub fn low_rank(left: &[f32], right: &[f32], stride: usize, first: usize, to: &mut [f32]) {
    dispatch::low_rank(level(), Factors { left, right, stride, first }, to);
}

/// The operands of [`low_rank`].
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    pub left: &'a [f32],
    pub right: &'a [f32],
    pub stride: usize,
    pub first: usize,
}

impl<'a> Factors<'a> {
    #[inline(always)]
    fn row(&self, row: usize, len: usize) -> &'a [f32] {
        &self.right[row * self.stride + self.first..][..len]
    }
}

/// As [`low_rank`], to be compiled for a level.
#[inline(always)]
pub(super) fn multiply(factors: Factors<'_>, to: &mut [f32]) {
    to.fill(0.0);
    let len = to.len();
    let (groups, rest) = factors.left.as_chunks::<4>();
    // Four rows at once load and store each sum a quarter as often, and add in the same order.
    for (group, &[a, b, c, d]) in groups.iter().enumerate() {
        let row = |row: usize| factors.row(4 * group + row, len);
        let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
        for (to, (((x, y), z), w)) in to.iter_mut().zip(rows) {
            *to = (((*to + a * x) + b * y) + c * z) + d * w;
        }
    }
    for (number, &factor) in rest.iter().enumerate() {
        for (to, x) in to.iter_mut().zip(factors.row(4 * groups.len() + number, len)) {
            *to += factor * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::Level;
    use super::*;

    #[test]
    fn elements_are_the_same_in_every_range_and_at_every_level() {
        let value = |i: usize| ((i * 7919 + 13) % 1000) as f32 / 499.0 - 1.0;
        for (rank, columns) in [(1, 1), (3, 41), (4, 1024), (9, 401), (16, 130)] {
            let left: Vec<f32> = (0..rank).map(value).collect();
            let right: Vec<f32> = (rank..rank + rank * columns).map(value).collect();
            let expected: Vec<f32> = (0..columns)
                .map(|column| (0..rank).fold(0.0, |sum, r| sum + left[r] * right[r * columns + column]))
                .collect();
            for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
                for (start, end) in
                    [(0, columns), (columns / 3, columns), (0, columns / 2), (columns, columns)]
                {
                    let mut to = vec![f32::NAN; end - start];
                    let factors = Factors { left: &left, right: &right, stride: columns, first: start };
                    dispatch::low_rank(level, factors, &mut to);
                    assert_eq!(to, expected[start..end], "rank {rank}, {columns} columns, {level:?}");
                }
            }
        }
    }
}
