//! Multiplies tiles of matrices in f64, which is what factoring and solving spend their time in.
//!
//! Each element is a sum in the order of the inner side, a multiplication and an addition at a time, so that its bits depend
//! neither on how many rows are multiplied at once nor on the vector instructions.

use super::dispatch::{self, level};

/// Side of a tile.
pub const TILE: usize = 64;

/// A square of values, row by row.
pub type Tile = [f64; TILE * TILE];

/// Rows that are multiplied at once; what is multiplied has a multiple of them.
pub(super) const ROWS: usize = 4;

/// Adds the product of `left`, rows of [`TILE`] elements, and `right` to `to`.
///
/// # Panics
/// Where `to` and `left` are of different lengths, or have not a multiple of four rows.
pub(super) fn add_product(to: &mut [f64], left: &[f64], right: &Tile) {
    assert!(to.len() == left.len() && to.len().is_multiple_of(ROWS * TILE), "pieces of whole rows");
    dispatch::add_product(level(), to, left, right);
}

/// As [`add_product`], to be compiled for a level whose registers hold sums of four rows and `COLUMNS` columns.
#[inline(always)]
pub(super) fn multiply<const COLUMNS: usize>(to: &mut [f64], left: &[f64], right: &Tile) {
    let (right, _) = right.as_chunks::<TILE>();
    for (to, left) in to.chunks_exact_mut(ROWS * TILE).zip(left.chunks_exact(ROWS * TILE)) {
        for first in (0..TILE).step_by(COLUMNS) {
            let mut sums = [[0.0; COLUMNS]; ROWS];
            for (k, right) in right.iter().enumerate() {
                let Some(right) = right[first..].first_chunk::<COLUMNS>() else { continue };
                for (row, sums) in sums.iter_mut().enumerate() {
                    let factor = left[row * TILE + k];
                    sums.iter_mut().zip(right).for_each(|(sum, x)| *sum += factor * x);
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                to[row * TILE + first..].iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::Level;
    use super::*;

    #[test]
    fn products_are_the_same_at_every_level_and_in_any_company() {
        let value = |i: usize| ((i * 7919 + 13) % 1000) as f64 / 499.0 - 1.0;
        let right: Tile = std::array::from_fn(value);
        let left: Vec<f64> = (0..12 * TILE).map(|i| value(3 * i + 1)).collect();
        let mut expected = vec![1.0; left.len()];
        for (row, to) in expected.chunks_mut(TILE).enumerate() {
            for (column, to) in to.iter_mut().enumerate() {
                let product = |k: usize| left[row * TILE + k] * right[k * TILE + column];
                *to += (0..TILE).fold(0.0, |sum, k| sum + product(k));
            }
        }
        for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
            for rows in [4, 8, 12] {
                let mut to = vec![1.0; rows * TILE];
                dispatch::add_product(level, &mut to, &left[..rows * TILE], &right);
                assert_eq!(to, expected[..rows * TILE], "{rows} rows, {level:?}");
            }
        }
    }
}
