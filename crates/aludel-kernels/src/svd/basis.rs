//! Makes orthonormal bases of vectors from their inner products.
//!
//! In: vectors in f32. Out: their matrix of inner products in f64, and what to multiply the vectors with so that they become orthonormal, or
//! lie along the axes of their scatter.

use std::ops::Range;

use nalgebra::{Cholesky, DMatrix, SymmetricEigen};

use crate::nn::Cpu;
use crate::nn::cpu::window::pieces;

/// Vectors, and how many.
#[derive(Clone, Copy)]
pub(super) enum Vectors<'a> {
    /// The columns of a row-major matrix.
    Columns(&'a [f32], usize),
    /// Its rows.
    Rows(&'a [f32], usize),
}

/// Positions of a tile: the tile of two hundred vectors stays in the second cache.
const TILE: usize = 64;

/// Pieces whose sums are kept apart until they are added in order, at most.
const MOST_PIECES: usize = 16;

/// A vector whose part outside the span of those before it is shorter than this share of it is taken for dependent on them: what is
/// left of it in f32 is rounding.
const DEPENDENT: f64 = 1e-5;

/// Inner products below this share of the largest are rounding.
const VANISHING: f64 = 1e-12;

/// The inner products of all pairs of vectors.
pub(super) fn gram(cpu: &Cpu, vectors: Vectors<'_>) -> DMatrix<f64> {
    let (count, length) = (vectors.count(), vectors.length());
    let size = length.div_ceil(MOST_PIECES).next_multiple_of(TILE).max(TILE);
    let sums = cpu.map(pieces(0..length, size), 2 * length * count * count, |piece| {
        let mut sums = vec![0.0; count * count];
        let mut tile = vec![[0.0; TILE]; count];
        for positions in pieces(piece, TILE) {
            vectors.fill(positions, &mut tile);
            add_products(&tile, &mut sums);
        }
        sums
    });
    let mut total = vec![0.0; count * count];
    for sums in sums {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    DMatrix::from_fn(count, count, |i, j| total[i.min(j) * count + i.max(j)])
}

impl Vectors<'_> {
    const fn count(self) -> usize {
        match self {
            Self::Columns(_, count) | Self::Rows(_, count) => count,
        }
    }

    fn length(self) -> usize {
        let (Self::Columns(values, count) | Self::Rows(values, count)) = self;
        values.len() / count.max(1)
    }

    /// Some positions of every vector, and zeros beyond.
    fn fill(self, positions: Range<usize>, tile: &mut [[f64; TILE]]) {
        tile.iter_mut().for_each(|of| of.fill(0.0));
        match self {
            Self::Columns(values, count) => {
                for (at, position) in positions.enumerate() {
                    let row = &values[position * count..(position + 1) * count];
                    tile.iter_mut().zip(row).for_each(|(of, &value)| of[at] = value.into());
                }
            }
            Self::Rows(values, _) => {
                let length = self.length();
                for (row, of) in values.chunks_exact(length).zip(tile) {
                    of.iter_mut().zip(&row[positions.clone()]).for_each(|(of, &value)| *of = value.into());
                }
            }
        }
    }
}

/// Adds the products of a tile's vectors, each with itself and those after it.
fn add_products(tile: &[[f64; TILE]], sums: &mut [f64]) {
    let count = tile.len();
    for (i, first) in tile.iter().enumerate() {
        let sums = &mut sums[i * count..(i + 1) * count];
        let (fours, rest) = tile[i..].as_chunks::<4>();
        let (sums, rest_sums) = sums[i..].split_at_mut(4 * fours.len());
        for (four, sums) in fours.iter().zip(sums.as_chunks_mut::<4>().0) {
            let products = products(first, four);
            sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
        }
        for (one, sum) in rest.iter().zip(rest_sums) {
            let [product] = products(first, std::array::from_ref(one));
            *sum += product;
        }
    }
}

/// The products of a vector with others, in lanes of fixed number so that they become vector instructions.
fn products<const N: usize>(a: &[f64; TILE], others: &[[f64; TILE]; N]) -> [f64; N] {
    const LANES: usize = 4;
    let mut sums = [[0.0; LANES]; N];
    for at in (0..TILE).step_by(LANES) {
        for (sums, b) in sums.iter_mut().zip(others) {
            for lane in 0..LANES {
                sums[lane] += a[at + lane] * b[at + lane];
            }
        }
    }
    sums.map(|[a, b, c, d]| (a + c) + (b + d))
}

/// How many rows, and the rows of the matrix that makes vectors of these inner products orthonormal; fewer than there are vectors where
/// some depend on others. `None` where a product is not finite.
pub(super) fn orthonormalising(gram: &DMatrix<f64>) -> Option<(usize, Vec<f32>)> {
    if gram.is_empty() {
        return Some((0, Vec::new()));
    }
    if let Some(inverse) = inverse_of_factor(gram) {
        return Some((inverse.nrows(), row_major(&inverse)));
    }
    let (values, axes) = spectrum(gram)?;
    let count = gram.nrows();
    let scaled =
        axes.iter().enumerate().map(|(at, &axis)| (f64::from(axis) / values[at / count].sqrt()) as f32);
    Some((values.len(), scaled.collect()))
}

/// The inverse of Cholesky's factor, unless vectors are all but dependent.
fn inverse_of_factor(gram: &DMatrix<f64>) -> Option<DMatrix<f64>> {
    let factor = Cholesky::new(gram.clone())?.unpack();
    let is_apart = |i: usize| factor[(i, i)] > DEPENDENT * gram[(i, i)].sqrt();
    let is_apart = (0..gram.nrows()).all(is_apart);
    is_apart.then(|| factor.solve_lower_triangular(&DMatrix::identity(gram.nrows(), gram.nrows())))?
}

/// The eigenvalues above zero, descending, and a row with the eigenvector of each. `None` where a product is not finite.
pub(super) fn spectrum(gram: &DMatrix<f64>) -> Option<(Vec<f64>, Vec<f32>)> {
    let count = gram.nrows();
    if gram.iter().any(|product| !product.is_finite()) {
        return None;
    }
    if gram.is_empty() {
        return Some((Vec::new(), Vec::new()));
    }
    let eigen = SymmetricEigen::try_new(gram.clone(), f64::EPSILON, 1000 * count.max(1))?;
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let largest = order.first().map_or(0.0, |&first| eigen.eigenvalues[first]);
    order.retain(|&at| eigen.eigenvalues[at] > VANISHING * largest && eigen.eigenvalues[at] > 0.0);
    let values = order.iter().map(|&at| eigen.eigenvalues[at]).collect();
    let axes = order
        .iter()
        .flat_map(|&at| eigen.eigenvectors.column(at).iter().map(|&x| x as f32).collect::<Vec<_>>());
    Some((values, axes.collect()))
}

fn row_major(matrix: &DMatrix<f64>) -> Vec<f32> {
    matrix.row_iter().flat_map(|row| row.iter().map(|&x| x as f32).collect::<Vec<_>>()).collect()
}
