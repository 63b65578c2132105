//! Approximates vectors by few rows of a table: by orthogonal matching pursuit, or by the rows nearest to them.
//!
//! In: vectors in f32, and a [`Table`]. Out: for each vector a [`Combination`]: rows, and what they are multiplied by. What the rows
//! stand for is not known here.
//!
//! Which rows are chosen is decided by inner products and distances in f64, whose sums have a fixed order; equal ones are decided by the
//! position in the table. So that not all of them have to be computed in f64, every sweep over the table multiplies in f32 by the library of
//! products and keeps each row that its rounding, by the bound that holds for sums in any order, may have kept from being the chosen one.
//! The result is the same for any number of threads, any size of batches, and whatever instructions the library has.
//!
//! Reading order: `table` (rows, and sweeps over them), `triangle` (least squares, a row at a time), `matching`, `nearest`.

mod matching;
mod nearest;
mod table;
#[cfg(test)]
mod tests;
mod triangle;

pub use matching::matched;
pub use nearest::{Metric, Weighting, neighbours};
pub use table::{Table, norms};

/// Rows of a table, by their positions, and what each is multiplied by.
pub type Combination = Vec<(u32, f64)>;

/// Bytes that approximating so many vectors of `width` elements by up to `most` rows each takes at the most, beyond the results.
pub const fn bytes(vectors: usize, width: usize, most: usize) -> u64 {
    let most = if most < width { most } else { width };
    let of_vector = width * (3 * size_of::<f32>() + size_of::<f64>())
        + most * (width * size_of::<f32>() + most / 2 * size_of::<f64>())
        + table::BLOCK_ROWS * size_of::<f32>();
    // The rows of a block, and as they are laid out for the library.
    (vectors * of_vector + 2 * table::BLOCK_ROWS * (width + 32) * size_of::<f32>()) as u64
}
