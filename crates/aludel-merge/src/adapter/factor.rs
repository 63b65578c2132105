//! Factors one tensor: finds how many singular values it takes, rounds the factors as they are written, and measures the error that is left.

use aludel_kernels::element::Element;
use aludel_kernels::nn::Cpu;
use aludel_kernels::random::StreamKey;
use aludel_kernels::svd::{Rows, SvdError, Triplets, each_piece, leading, subtract, sum_of_squares};

/// How many singular values are kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// So many at most.
    pub rank: usize,
    /// No more than it takes for this error, as a share of the norm.
    pub error: Option<f64>,
    /// Only those above this one.
    pub epsilon: f64,
}

/// Which of the factors gets the singular values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Each its root.
    Both,
    Left,
    Right,
}

/// `left right`, with a row of `left` for each row of what it is near to.
#[derive(Clone, Debug)]
pub(super) struct Factored {
    /// The singular values that are kept, descending.
    pub values: Vec<f64>,
    pub left: Vec<f32>,
    pub right: Vec<f32>,
    /// The norm of what is left.
    pub error: f64,
}

/// Where a search begins whose rank is not known.
const FIRST_RANK: usize = 16;

/// Factors a matrix of this norm above zero.
pub(super) fn factor(
    cpu: &Cpu,
    delta: &dyn Rows,
    norm: f64,
    (budget, share, element): (Budget, Share, Element),
    key: StreamKey,
    go_on: &mut dyn FnMut(f64) -> bool,
) -> Result<Factored, SvdError> {
    let (rows, columns) = delta.sides();
    let most = budget.rank.min(rows).min(columns);
    let mut wanted = if budget.error.is_some() { FIRST_RANK.min(most) } else { most };
    loop {
        let found = leading(cpu, delta, wanted, key, go_on)?;
        let available = found.values.iter().take(wanted).filter(|&&value| value > budget.epsilon).count();
        let enough = budget.error.and_then(|error| enough(&found.values[..available], norm, error));
        if enough.is_none() && available == wanted && wanted < most {
            wanted = (2 * wanted).min(most);
            continue;
        }
        let mut parts = Parts::new(&found, (rows, columns), share, element);
        let first = enough.unwrap_or(available);
        parts.take(first);
        let mut error = parts.error(cpu, delta);
        // The share was reckoned from the singular values; what is written may lack a little more.
        while budget.error.is_some_and(|share| error > share * norm) && parts.taken() < available {
            parts.take(1);
            error = parts.error(cpu, delta);
        }
        if !error.is_finite() {
            return Err(SvdError::NotFinite);
        }
        return Ok(parts.factored(error));
    }
}

/// How many values leave no more than this share of the norm.
fn enough(values: &[f64], norm: f64, share: f64) -> Option<usize> {
    let allowed = (share * norm).powi(2);
    let mut rest = norm * norm;
    let mut left = values.iter().map(|value| {
        rest -= value * value;
        rest
    });
    left.position(|rest| rest <= allowed).map(|last| last + 1)
}

/// Columns of the left factor and rows of the right one, scaled and rounded, taken one after another.
struct Parts<'t> {
    found: &'t Triplets,
    rows: usize,
    columns: usize,
    share: Share,
    element: Element,
    /// Column after column.
    left: Vec<f32>,
    right: Vec<f32>,
}

impl<'t> Parts<'t> {
    fn new(found: &'t Triplets, (rows, columns): (usize, usize), share: Share, element: Element) -> Self {
        Self { found, rows, columns, share, element, left: Vec::new(), right: Vec::new() }
    }

    fn taken(&self) -> usize {
        self.left.len() / self.rows.max(1)
    }

    /// Takes the next parts.
    fn take(&mut self, count: usize) {
        let first = self.taken();
        for part in first..first + count {
            let value = self.found.values[part];
            let (of_left, of_right) = match self.share {
                Share::Both => (value.sqrt(), 1.0 / value.sqrt()),
                Share::Left => (value, 1.0 / value),
                Share::Right => (1.0, 1.0),
            };
            let width = self.found.values.len();
            let left = (0..self.rows).map(|row| self.found.left[row * width + part]);
            let right = &self.found.right[part * self.columns..(part + 1) * self.columns];
            let scaled = |x: f32, by: f64| (f64::from(x) * by) as f32;
            self.left.extend(left.map(|x| scaled(x, of_left)));
            self.right.extend(right.iter().map(|&x| scaled(x, of_right)));
        }
        round(self.element, &mut self.left[first * self.rows..]);
        round(self.element, &mut self.right[first * self.columns..]);
    }

    /// The norm of what a matrix has beyond the parts that are taken.
    fn error(&self, cpu: &Cpu, matrix: &dyn Rows) -> f64 {
        let count = self.taken();
        let left = transposed(&self.left, count, self.rows);
        let (mut rest, mut total) = (Vec::new(), 0.0);
        each_piece(matrix, |rows, values| {
            rest.clear();
            rest.extend_from_slice(values);
            let left = &left[rows.start * count..rows.end * count];
            subtract(cpu, left, &self.right, count, self.columns, &mut rest);
            total += sum_of_squares(cpu, &rest);
        });
        total.sqrt()
    }

    fn factored(self, error: f64) -> Factored {
        let count = self.taken();
        Factored {
            values: self.found.values[..count].to_vec(),
            left: transposed(&self.left, count, self.rows),
            right: self.right,
            error,
        }
    }
}

fn round(element: Element, values: &mut [f32]) {
    if element != Element::F32 {
        let rounded = element.encode(values);
        element.decode_into(&rounded, values);
    }
}

/// The transpose of a row-major matrix.
pub(super) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use aludel_kernels::svd::Matrix;

    use super::*;

    /// Singular values 8, 4, 2, 1 along the diagonal of a matrix of 6 rows and 5 columns.
    fn diagonal() -> Vec<f32> {
        let mut values = vec![0.0; 30];
        for (at, value) in [8.0, 4.0, 2.0, 1.0].into_iter().enumerate() {
            values[at * 5 + at] = value;
        }
        values
    }

    /// The factors, and what they lack.
    fn factored(budget: Budget, share: Share, element: Element) -> (Factored, Vec<f32>) {
        let mut delta = diagonal();
        let matrix = Matrix { values: &delta, rows: 6, columns: 5 };
        let cpu = Cpu::new(NonZeroUsize::new(1)).unwrap();
        let norm = 85f64.sqrt();
        let how = (budget, share, element);
        let factored = factor(&cpu, &matrix, norm, how, StreamKey(1), &mut |_| true).unwrap();
        subtract(&cpu, &factored.left, &factored.right, factored.values.len(), 5, &mut delta);
        (factored, delta)
    }

    #[test]
    fn no_more_rank_is_spent_than_the_error_asks_for() {
        let norm = 85f64.sqrt();
        for (error, rank) in [(0.6, 1), (0.25, 2), (0.12, 3), (0.1, 4), (1e-9, 4)] {
            let budget = Budget { rank: 5, error: Some(error), epsilon: 0.0 };
            let (got, left) = factored(budget, Share::Both, Element::F32);
            assert_eq!(got.values.len(), rank, "{error}");
            let expected: f64 = [8.0, 4.0, 2.0, 1.0][rank..].iter().map(|x: &f64| x * x).sum::<f64>().sqrt();
            assert!((got.error - expected).abs() < 1e-5 * norm, "{} for {expected}", got.error);
            let norm_left = left.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!((got.error - norm_left).abs() < 1e-6 * norm);
        }
    }

    #[test]
    fn rank_and_small_values_bound_what_is_kept() {
        let of = |rank, epsilon| {
            let budget = Budget { rank, error: None, epsilon };
            factored(budget, Share::Both, Element::F32).0.values.len()
        };
        assert_eq!([of(2, 0.0), of(5, 0.0), of(5, 1.5), of(5, 100.0)], [2, 4, 3, 0]);
    }

    #[test]
    fn the_scale_goes_where_it_is_shared_and_the_error_is_that_of_rounded_factors() {
        let budget = Budget { rank: 1, error: None, epsilon: 0.0 };
        for (share, left, right) in
            [(Share::Both, 8f64.sqrt(), 8f64.sqrt()), (Share::Left, 8.0, 1.0), (Share::Right, 1.0, 8.0)]
        {
            let (got, _) = factored(budget, share, Element::F32);
            let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!((norm(&got.left) - left).abs() < 1e-4 && (norm(&got.right) - right).abs() < 1e-4);
        }
        let (got, left) = factored(budget, Share::Both, Element::BF16);
        assert!(got.left.iter().all(|x| x.to_bits().trailing_zeros() >= 16));
        let product = f64::from(got.left[0]) * f64::from(got.right[0]);
        assert!((f64::from(left[0]) - (8.0 - product)).abs() < 1e-6);
    }
}
