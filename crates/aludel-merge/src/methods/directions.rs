//! Follows directions in the span of a few tensors by their inner products alone.
//!
//! In: expressions of one tensor each. Out: coefficients of combinations of them, as values per tensor. Any vector that a
//! spherical mean meets is a combination of the given ones, so one sweep takes all inner products and whatever
//! iterates afterwards costs nothing that grows with the tensor: two sweeps for any number of iterations.

use aludel_kernels::formula::{Axis, Expr, Graph};

/// Tensors and their inner products.
pub(super) struct Span<'g> {
    vectors: Vec<Expr<'g>>,
    products: Vec<Vec<Expr<'g>>>,
}

impl<'g> Span<'g> {
    pub(super) fn of(vectors: Vec<Expr<'g>>) -> Self {
        let product = |i: usize, j: usize| vectors[i.min(j)].dot(vectors[i.max(j)], Axis::Tensor);
        let row = |i: usize| (0..vectors.len()).map(|j| product(i, j)).collect();
        let products = (0..vectors.len()).map(row).collect();
        Self { vectors, products }
    }

    /// How many tensors there are.
    pub(super) fn count(&self) -> usize {
        self.vectors.len()
    }

    /// The inner product of two of the tensors.
    pub(super) fn product(&self, i: usize, j: usize) -> Expr<'g> {
        self.products[i][j]
    }

    /// The Euclidean norm of one of the tensors.
    pub(super) fn length(&self, i: usize) -> Expr<'g> {
        self.products[i][i].sqrt()
    }

    /// The inner product of each tensor, divided by its entry in `scales`, with a combination of tensors so divided.
    pub(super) fn projections(&self, scales: &[Expr<'g>], combination: &[Expr<'g>]) -> Vec<Expr<'g>> {
        let count = self.vectors.len();
        let term = |i: usize, j: usize| self.products[i][j] / (scales[i] * scales[j]) * combination[j];
        (0..count).map(|i| total((0..count).map(|j| term(i, j)))).collect()
    }

    /// The combination itself, element by element.
    pub(super) fn combined(&self, combination: &[Expr<'g>]) -> Expr<'g> {
        total(self.vectors.iter().zip(combination).map(|(&vector, &factor)| vector * factor))
    }
}

/// `sum a_i b_i`
pub(super) fn dot<'g>(a: &[Expr<'g>], b: &[Expr<'g>]) -> Expr<'g> {
    total(a.iter().zip(b).map(|(&a, &b)| a * b))
}

/// The square root of what may have become slightly negative by rounding.
pub(super) fn root(square: Expr<'_>) -> Expr<'_> {
    square.max(0.0).sqrt()
}

/// One constant for each value.
pub(super) fn constants<'g>(graph: &'g Graph, values: &[f64]) -> Vec<Expr<'g>> {
    values.iter().map(|&value| graph.constant(value)).collect()
}

/// The sum in order; methods are planned with at least one member.
pub(super) fn total<'g>(parts: impl Iterator<Item = Expr<'g>>) -> Expr<'g> {
    parts.reduce(|sum, part| sum + part).unwrap_or_else(|| unreachable!("planned with at least one member"))
}
