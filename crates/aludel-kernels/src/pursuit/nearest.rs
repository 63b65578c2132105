//! Chooses the rows nearest to a vector, and weighs them.
//!
//! Source: the interpolation between common tokens of mergekit's tokensurgeon, whose weightings these are. Distances are in f64 between the values
//! as they are; of rows that are equally near, the one that comes first in the table is nearer.

use super::Combination;
use super::table::{Table, dot, rounding, summed, sweep};
use super::triangle::Triangle;

/// What is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// A small distance `|x - d|`.
    Euclidean,
    /// A large cosine; that with a vector of zeros is 0.
    Cosine,
}

/// How the nearest rows are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weighting {
    /// By the reciprocal of their distance, or by their cosine; divided by the sum of weights, each with a floor of 1e-6.
    DistanceProportional,
    /// Weights that add up to 1 and bring their mean nearest to the vector.
    Barycentric,
    /// Weights that bring their sum nearest to the vector.
    LeastSquares,
}

/// The floor of distances and of sums of weights, as mergekit has it.
const FLOOR: f64 = 1e-6;

/// Approximates vectors by the `count` rows nearest to each; `norms` are those of the rows.
///
/// Where a row depends on nearer ones, and [`Weighting::Barycentric`] or [`Weighting::LeastSquares`] leaves its weight open, it has none.
///
/// # Panics
/// Where the lengths do not fit.
pub fn neighbours(
    table: &dyn Table,
    norms: &[f32],
    vectors: &[f32],
    count: usize,
    metric: Metric,
    weighting: Weighting,
) -> Vec<Combination> {
    let width = table.width();
    assert!(
        norms.len() == table.rows() && vectors.len().is_multiple_of(width),
        "vectors and norms of a table"
    );
    let mut found: Vec<Near> =
        vectors.chunks_exact(width).map(|vector| Near::new(vector, count, metric)).collect();
    sweep(table, vectors, |vector, first, products| {
        found[vector].see(first, products, &norms[first..][..products.len()], width);
    });
    let weighed = vectors.chunks_exact(width).zip(found).map(|(vector, near)| {
        let nearest = Nearest::of(table, vector, near);
        nearest.weighed(vector, weighting)
    });
    weighed.collect()
}

/// The rows that may be among the nearest to a vector.
struct Near {
    count: usize,
    metric: Metric,
    norm: f64,
    /// A nearness that at least `count` rows have.
    least: f64,
    /// Rows, with bounds of their nearness: the cosine times the vector's norm, or what the square of the distance falls short of the vector's
    /// by, halved.
    rows: Vec<(u32, f64, f64)>,
}

impl Near {
    fn new(vector: &[f32], count: usize, metric: Metric) -> Self {
        let norm = dot(vector, vector).sqrt();
        Self { count, metric, norm, least: f64::NEG_INFINITY, rows: Vec::new() }
    }

    fn see(&mut self, first: usize, products: &[f32], norms: &[f32], width: usize) {
        for (row, (&product, &norm)) in (first..).zip(products.iter().zip(norms)) {
            let (product, norm) = (f64::from(product), f64::from(norm));
            let off = rounding(width, norm * self.norm.max(norm));
            let (near, off) = match self.metric {
                Metric::Euclidean => (product - norm * norm / 2.0, off),
                Metric::Cosine if norm == 0.0 => (0.0, 0.0),
                Metric::Cosine => (product / norm, off / norm + 4e-6 * self.norm),
            };
            // A product that is no number says nothing: the row is looked at.
            let (at_least, at_most) = if near.is_finite() {
                // Norms are a little above what they are.
                let off = off + 4e-6 * norm * norm;
                (near - off, near + off)
            } else {
                (f64::NEG_INFINITY, f64::INFINITY)
            };
            if at_most >= self.least {
                self.rows.push((row as u32, at_least, at_most));
            }
        }
        if self.rows.len() > 4 * self.count + 64 {
            self.narrow();
        }
    }

    /// Drops rows that are farther than `count` others.
    fn narrow(&mut self) {
        if self.count == 0 || self.rows.len() <= self.count {
            return;
        }
        let mut bounds: Vec<f64> = self.rows.iter().map(|(_, at_least, _)| *at_least).collect();
        bounds.select_nth_unstable_by(self.count - 1, |a, b| b.total_cmp(a));
        self.least = bounds[self.count - 1];
        let least = self.least;
        self.rows.retain(|(_, _, at_most)| *at_most >= least);
    }
}

/// The nearest rows, the nearest first.
struct Nearest {
    metric: Metric,
    rows: Vec<u32>,
    /// Distances, or cosines.
    apart: Vec<f64>,
    values: Vec<f32>,
}

impl Nearest {
    fn of(table: &dyn Table, vector: &[f32], mut near: Near) -> Self {
        near.narrow();
        let mut measured: Vec<(f64, u32, Vec<f32>)> = Vec::new();
        for &(row, ..) in &near.rows {
            let mut values = vec![0.0; vector.len()];
            table.row(row as usize, &mut values);
            let apart = match near.metric {
                Metric::Euclidean => distance(vector, &values),
                Metric::Cosine => {
                    let norms = near.norm * dot(&values, &values).sqrt();
                    if norms > 0.0 { dot(vector, &values) / norms } else { 0.0 }
                }
            };
            measured.push((apart, row, values));
        }
        match near.metric {
            Metric::Euclidean => measured.sort_by(|a, b| a.0.total_cmp(&b.0)),
            Metric::Cosine => measured.sort_by(|a, b| b.0.total_cmp(&a.0)),
        }
        measured.truncate(near.count);
        let mut nearest =
            Self { metric: near.metric, rows: Vec::new(), apart: Vec::new(), values: Vec::new() };
        for (apart, row, values) in measured {
            nearest.rows.push(row);
            nearest.apart.push(apart);
            nearest.values.extend(values);
        }
        nearest
    }

    fn weighed(&self, vector: &[f32], weighting: Weighting) -> Combination {
        let weights = match weighting {
            Weighting::DistanceProportional => self.proportional(),
            Weighting::LeastSquares => fitted(&widened(vector), &widened(&self.values)),
            Weighting::Barycentric => self.barycentric(vector),
        };
        self.rows.iter().copied().zip(weights).collect()
    }

    fn proportional(&self) -> Vec<f64> {
        let weights: Vec<f64> = match self.metric {
            Metric::Euclidean => self.apart.iter().map(|distance| 1.0 / distance.max(FLOOR)).collect(),
            Metric::Cosine => self.apart.clone(),
        };
        let sum = weights.iter().sum::<f64>().max(FLOOR);
        weights.into_iter().map(|weight| weight / sum).collect()
    }

    /// Least squares over differences from the nearest row, which has what the others leave of 1.
    fn barycentric(&self, vector: &[f32]) -> Vec<f64> {
        let Some((nearest, others)) = self.values.split_at_checked(vector.len()) else { return Vec::new() };
        let less = |values: &[f32]| {
            let pairs = values.iter().zip(nearest);
            pairs.map(|(&x, &nearest)| f64::from(x) - f64::from(nearest)).collect::<Vec<f64>>()
        };
        let differences: Vec<f64> = others.chunks_exact(vector.len()).flat_map(less).collect();
        let others = fitted(&less(vector), &differences);
        std::iter::once(1.0 - others.iter().sum::<f64>()).chain(others).collect()
    }
}

/// Least squares over rows; those that depend on ones before them have 0.
fn fitted(vector: &[f64], rows: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut triangle = Triangle::default();
    let mut taken: Vec<&[f64]> = Vec::new();
    let mut is_taken = Vec::new();
    for row in rows.chunks_exact(vector.len()) {
        let products: Vec<f64> = taken.iter().map(|taken| dot(taken, row)).collect();
        is_taken.push(triangle.push(&products, dot(row, row), dot(row, vector)));
        if is_taken.last() == Some(&true) {
            taken.push(row);
        }
    }
    let mut weights = triangle.coefficients().into_iter();
    is_taken.into_iter().map(|is_taken| if is_taken { weights.next().unwrap_or(0.0) } else { 0.0 }).collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    summed(a, b, |a, b| (a - b) * (a - b)).sqrt()
}
