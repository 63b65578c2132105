//! Reads the rows of a table and multiplies vectors with all of them.
//!
//! In: a [`Table`]. Out: inner products in f32, a block of rows at a time, with bounds of their rounding; inner products in f64 of single
//! rows. A block is read once for all vectors.

use crate::nn::linear::cpu::multiply_here;

/// Rows that vectors are approximated by.
pub trait Table: Sync {
    /// How many rows there are.
    fn rows(&self) -> usize;

    /// Elements of a row.
    fn width(&self) -> usize;

    /// Reads consecutive rows from `first` on, in a sweep that reads all of them in order.
    fn read(&self, first: usize, to: &mut [f32]);

    /// Reads a row, in no order.
    fn row(&self, row: usize, to: &mut [f32]);

    /// Whether results are wanted still, which is asked every few million products. Where they are not, they are anything.
    fn is_wanted(&self) -> bool {
        true
    }
}

/// Rows of a block: with their width they fill a part of the second cache.
pub(super) const BLOCK_ROWS: usize = 256;

/// Half the distance of 1 to the next number of f32.
const UNIT: f64 = 1.0 / (1u32 << 24) as f64;

/// The norms of all rows, not below their exact values.
pub fn norms(table: &dyn Table) -> Vec<f32> {
    let mut norms = Vec::with_capacity(table.rows());
    each_block(table, |_, rows| {
        norms
            .extend(rows.chunks_exact(table.width()).map(|row| (dot(row, row).sqrt() * (1.0 + 1e-6)) as f32));
    });
    norms
}

/// Shows the inner products of vectors with all rows: for each block of rows and each vector, the vector's position, the first row of the
/// block, and the products.
pub(super) fn sweep(table: &dyn Table, vectors: &[f32], mut see: impl FnMut(usize, usize, &[f32])) {
    let width = table.width();
    let count = vectors.len() / width;
    let mut products = vec![0.0; count * BLOCK_ROWS];
    each_block(table, |first, rows| {
        let height = rows.len() / width;
        let products = &mut products[..count * height];
        if !table.is_wanted() {
            return;
        }
        multiply_here(vectors, rows, width, products);
        for (vector, products) in products.chunks_exact(height).enumerate() {
            see(vector, first, products);
        }
    });
}

/// What an inner product in f32 may be off by, for norms of this product.
pub(super) fn rounding(width: usize, norms: f64) -> f64 {
    // The bound for sums of `width` products in any order, with one rounding of each operand's norm to spare.
    (width + 4) as f64 * UNIT * 1.01 * norms
}

/// The inner product in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    summed(a, b, |a, b| a * b)
}

/// The sum of what `term` makes of two vectors' elements, in f64: lanes of eight, added in order.
pub(super) fn summed(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += term(f64::from(a), f64::from(b));
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| term(f64::from(a), f64::from(b))).sum();
    sums.iter().sum::<f64>() + rest
}

fn each_block(table: &dyn Table, mut see: impl FnMut(usize, &[f32])) {
    let (rows, width) = (table.rows(), table.width());
    let mut block = vec![0.0; BLOCK_ROWS.min(rows) * width];
    for first in (0..rows).step_by(BLOCK_ROWS) {
        let block = &mut block[..BLOCK_ROWS.min(rows - first) * width];
        table.read(first, block);
        see(first, block);
    }
}
