//! Solves least squares over vectors that come one at a time, by Cholesky's factor of their inner products, in f64.

/// A share of a vector's square, below which what is outside the span of those before it is rounding.
const DEPENDENT: f64 = 1e-12;

/// Vectors that a target is approximated by, and the factor of their inner products.
#[derive(Debug, Default)]
pub(super) struct Triangle {
    /// The lower factor, row by row.
    rows: Vec<f64>,
    /// The target along each vector that the factorisation makes orthonormal.
    along: Vec<f64>,
}

impl Triangle {
    /// Adds a vector: its inner products with those before it, with itself, and with the target. `false`, and nothing is added, where it depends
    /// on those before it.
    pub(super) fn push(&mut self, products: &[f64], square: f64, with_target: f64) -> bool {
        let count = self.along.len();
        let begin = self.rows.len();
        for (row, product) in products.iter().enumerate().take(count) {
            let (before, own) = self.rows.split_at(begin);
            let known = &before[start(row)..][..=row];
            let sum: f64 = known[..row].iter().zip(own).map(|(a, b)| a * b).sum();
            self.rows.push((product - sum) / known[row]);
        }
        let own = &self.rows[begin..];
        let rest = square - own.iter().map(|x| x * x).sum::<f64>();
        // Not a comparison the other way round: NaN is no pivot.
        let is_independent = rest > DEPENDENT * square;
        if !is_independent {
            self.rows.truncate(begin);
            return false;
        }
        let pivot = rest.sqrt();
        let sum: f64 = own.iter().zip(&self.along).map(|(a, b)| a * b).sum();
        self.rows.push(pivot);
        self.along.push((with_target - sum) / pivot);
        true
    }

    /// What the vectors are multiplied by so that their sum is nearest to the target.
    pub(super) fn coefficients(&self) -> Vec<f64> {
        let mut solved = self.along.clone();
        for row in (0..solved.len()).rev() {
            let known = &self.rows[start(row)..][..=row];
            solved[row] /= known[row];
            let value = solved[row];
            solved[..row].iter_mut().zip(known).for_each(|(before, factor)| *before -= value * factor);
        }
        solved
    }
}

const fn start(row: usize) -> usize {
    row * (row + 1) / 2
}
