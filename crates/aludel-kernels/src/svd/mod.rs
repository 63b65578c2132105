//! Finds the leading singular values and vectors of a matrix by randomised subspace iteration.
//!
//! In: a dense matrix `D` in f32, whole or [a few rows at a time](Rows), and how many are wanted. Out: [`Triplets`], so that `left[.., ..k] right[..k, ..]` is close to the best
//! approximation of rank `k`. How close is for the caller to measure ([`subtract`] and [`sum_of_squares`]): no bound is promised.
//!
//! Source: Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithm 4.4. The subspace is that of
//! `(D D^T)^3 D W`, orthonormalised after every product. W is uniform in [-1, 1) instead of normal, so that its bits are the same on
//! every machine. Half as many columns as are wanted, and at least 16, are tried beyond them: with three powers, errors stay within
//! a hundredth of the best ones, on spectra without any decay too.
//!
//! Orthonormal bases come from matrices of inner products, in f64, by Cholesky's factors (CholeskyQR; Yamamoto et al. 2015: twice where
//! it has to be exact), or by their eigenvectors where vectors are all but dependent. Products are in f32 and cut by shape
//! alone: neither the number of threads nor whether the matrix is at hand changes a bit. Beside the matrix, memory is taken for a few
//! times the vectors that are tried. Unlike merges, bits may differ between CPUs.

mod basis;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::nn::Cpu;
use crate::nn::cpu::buffer::Values;
use crate::nn::device::{Accumulate, Product};
use crate::nn::linear::cpu::{Group, backward_input, backward_weight, forward};
use crate::random::{StreamKey, uniform};
use basis::{Vectors, gram, orthonormalising, spectrum};

/// A matrix that is looked at a few rows at a time, several times.
pub trait Rows {
    /// How many rows, and how many columns.
    fn sides(&self) -> (usize, usize);

    /// Some of the rows; the same values every time.
    fn read(&self, rows: Range<usize>, to: &mut [f32]);

    /// All rows, where they are in memory.
    fn at_hand(&self) -> Option<&[f32]> {
        None
    }
}

/// Elements that are looked at at once: a product with so many rows is no slower than with all.
const PIECE: usize = 1 << 23;

/// Looks at all rows of a matrix in order, in pieces that depend on its sides alone.
pub fn each_piece(matrix: &dyn Rows, mut look: impl FnMut(Range<usize>, &[f32])) {
    let (rows, columns) = matrix.sides();
    let height = (PIECE / columns.max(1)).max(1);
    let mut read = Vec::new();
    for first in (0..rows).step_by(height) {
        let piece = first..rows.min(first + height);
        if let Some(values) = matrix.at_hand() {
            look(piece.clone(), &values[piece.start * columns..piece.end * columns]);
        } else {
            read.resize(piece.len() * columns, 0.0);
            matrix.read(piece.clone(), &mut read);
            look(piece, &read);
        }
    }
}

/// A dense matrix, row by row.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// `rows * columns` finite elements.
    pub values: &'a [f32],
    /// How many rows.
    pub rows: usize,
    /// How many columns.
    pub columns: usize,
}

impl Rows for Matrix<'_> {
    fn sides(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    fn read(&self, rows: Range<usize>, to: &mut [f32]) {
        to.copy_from_slice(&self.values[rows.start * self.columns..rows.end * self.columns]);
    }

    fn at_hand(&self) -> Option<&[f32]> {
        Some(self.values)
    }
}

/// The leading part of `D = U S V^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct Triplets {
    /// Singular values, descending and above zero. As many as were tried, so that some come after those that were asked for; the last
    /// ones are less exact.
    pub values: Vec<f64>,
    /// U: a row for each row of D and a column for each value.
    pub left: Vec<f32>,
    /// `S V^T`: a row for each value and a column for each column of D.
    pub right: Vec<f32>,
}

/// Why there are no triplets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvdError {
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
    /// The matrix has values that are not finite, or products that are not.
    #[error("its values are too large for f32")]
    NotFinite,
}

/// Products of powers of the matrix.
const POWERS: usize = 3;

/// Columns that are tried beyond those that are wanted, at least.
const FEWEST_BEYOND: usize = 16;

/// Products with the matrix: to begin with, two for each power, and the last.
const PRODUCTS: usize = 2 * POWERS + 2;

/// Finds the `wanted` leading triplets, or all that there are. `go_on` is asked between products with the share that is done.
///
/// # Errors
/// [`SvdError`].
pub fn leading(
    cpu: &Cpu,
    matrix: &dyn Rows,
    wanted: usize,
    key: StreamKey,
    go_on: &mut dyn FnMut(f64) -> bool,
) -> Result<Triplets, SvdError> {
    let (rows, columns) = matrix.sides();
    let tried = (wanted + FEWEST_BEYOND.max(wanted / 2)).min(rows).min(columns);
    let mut done = 0;
    let mut step = || {
        done += 1;
        go_on((done - 1) as f64 / PRODUCTS as f64).then_some(()).ok_or(SvdError::Stopped)
    };
    let drawn: Vec<f32> = (0..(tried * columns) as u64).map(|at| 2.0 * uniform(key, at) - 1.0).collect();
    step()?;
    let mut left = OfColumns::product(cpu, matrix, &drawn, tried).orthonormal(cpu)?;
    for _ in 0..POWERS {
        step()?;
        let right = left.projection(cpu, matrix).orthonormal(cpu)?;
        step()?;
        left = OfColumns::product(cpu, matrix, &right.values, right.count).orthonormal(cpu)?;
    }
    left = left.orthonormal(cpu)?;
    step()?;
    let right = left.projection(cpu, matrix);
    let (squares, rotation) = spectrum(&gram(cpu, right.vectors())).ok_or(SvdError::NotFinite)?;
    let count = squares.len();
    Ok(Triplets {
        values: squares.into_iter().map(f64::sqrt).collect(),
        left: left.rotated(cpu, &rotation, count).values,
        right: right.rotated(cpu, &rotation, count).values,
    })
}

/// `matrix -= left right`, where `left` has a row of `depth` elements for each row of the matrix.
///
/// # Panics
/// Where the lengths do not fit.
pub fn subtract(cpu: &Cpu, left: &[f32], right: &[f32], depth: usize, columns: usize, matrix: &mut [f32]) {
    let product =
        Product { rows: matrix.len() / columns.max(1), inputs: columns, outputs: depth, scale: -1.0 };
    let groups = [Group { rows: 0..product.rows, weight: Values::F32(right) }];
    backward_input(cpu, product, &groups, left, matrix, Accumulate::Add);
}

/// The sum of squares, in f64.
pub fn sum_of_squares(cpu: &Cpu, values: &[f32]) -> f64 {
    crate::nn::elementwise::cpu::sum_of_squares(cpu, Values::F32(values))
}

/// Vectors that are the columns of a tall matrix.
struct OfColumns {
    values: Vec<f32>,
    count: usize,
}

/// Vectors that are the rows of a wide matrix.
struct OfRows {
    values: Vec<f32>,
    count: usize,
}

impl OfColumns {
    /// `D W^T`, with `count` rows in `W`.
    fn product(cpu: &Cpu, matrix: &dyn Rows, w: &[f32], count: usize) -> Self {
        let (rows, columns) = matrix.sides();
        let mut product = vec![0.0; rows * count];
        each_piece(matrix, |rows, values| {
            let product = &mut product[rows.start * count..rows.end * count];
            times_transposed(cpu, values, columns, w, count, product);
        });
        Self { values: product, count }
    }

    /// `Q^T D`.
    fn projection(&self, cpu: &Cpu, matrix: &dyn Rows) -> OfRows {
        let (count, (_, columns)) = (self.count, matrix.sides());
        let mut product = vec![0.0; count * columns];
        each_piece(matrix, |rows, values| {
            let shape = Product { rows: rows.len(), inputs: columns, outputs: count, scale: 1.0 };
            let left = &self.values[rows.start * count..rows.end * count];
            let all = 0..rows.len();
            backward_weight(cpu, shape, std::slice::from_ref(&all), left, values, &mut [&mut product]);
        });
        OfRows { values: product, count }
    }

    fn orthonormal(&self, cpu: &Cpu) -> Result<Self, SvdError> {
        let gram = gram(cpu, Vectors::Columns(&self.values, self.count));
        let (count, change) = orthonormalising(&gram).ok_or(SvdError::NotFinite)?;
        Ok(self.rotated(cpu, &change, count))
    }

    /// `Q M^T`, with `count` rows in `M`.
    fn rotated(&self, cpu: &Cpu, change: &[f32], count: usize) -> Self {
        let mut values = vec![0.0; self.values.len() / self.count.max(1) * count];
        times_transposed(cpu, &self.values, self.count, change, count, &mut values);
        Self { values, count }
    }
}

impl OfRows {
    fn vectors(&self) -> Vectors<'_> {
        Vectors::Rows(&self.values, self.count)
    }

    fn orthonormal(&self, cpu: &Cpu) -> Result<Self, SvdError> {
        let (count, change) = orthonormalising(&gram(cpu, self.vectors())).ok_or(SvdError::NotFinite)?;
        Ok(self.rotated(cpu, &change, count))
    }

    /// `M Z`, with `count` rows in `M`.
    fn rotated(&self, cpu: &Cpu, change: &[f32], count: usize) -> Self {
        let columns = self.values.len() / self.count.max(1);
        let mut values = vec![0.0; count * columns];
        let product = Product { rows: count, inputs: columns, outputs: self.count, scale: 1.0 };
        let groups = [Group { rows: 0..count, weight: Values::F32(&self.values) }];
        backward_input(cpu, product, &groups, change, &mut values, Accumulate::Overwrite);
        Self { values, count }
    }
}

/// `y = x w^T`.
fn times_transposed(cpu: &Cpu, x: &[f32], inputs: usize, w: &[f32], outputs: usize, y: &mut [f32]) {
    let product = Product { rows: x.len() / inputs.max(1), inputs, outputs, scale: 1.0 };
    let groups = [Group { rows: 0..product.rows, weight: Values::F32(w) }];
    forward(cpu, product, &groups, x, None, y, Accumulate::Overwrite);
}
