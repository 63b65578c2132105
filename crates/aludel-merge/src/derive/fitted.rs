//! Fits a linear layer to those of several models, each over its own inputs: [`regmean`](crate::methods)'s `W`.
//!
//! `W = M + (sum_i w_i (W_i - M) A_i) S^-1` with `S = sum_i w_i A_i`, `A_i = alpha G_i + (1 - alpha) diag G_i + r I` and the
//! weighted mean `M`: the same as `(sum_i w_i W_i A_i) S^-1`, and where the layers are equal exactly they. `r` is `ridge` times
//! the weighted mean of all diagonals, 1 where that is 0.
//!
//! `S` is factored once, by the thread that comes first; rows are solved for in panels, which any number of threads take. Kept
//! in memory are half of `S` in f64 and the panels that are being read; the Gram matrices are read anew for each
//! panel. All of it is in f64, with sums in a fixed order, and rounded to f32 at the end.

use std::sync::{Arc, Mutex, PoisonError};

use aludel_kernels::cpu::{Factor, Panel, Symmetric, TILE, Tile};

use super::panels::Panels;
use super::{Derivation, Passed, Readable, Stored, Weights};

/// A layer of a model, and what is known of its inputs.
#[derive(Debug)]
pub(crate) struct Fitting {
    /// Rows of outputs.
    pub layer: Readable,
    /// The mean of `x x^T`, or any multiple of it.
    pub gram: Stored,
    /// What the matrix is multiplied by.
    pub weight: f64,
}

/// A layer that is fitted to others.
#[derive(Debug)]
pub(crate) struct Fitted {
    layers: Vec<Fitting>,
    rows: usize,
    columns: usize,
    alpha: f64,
    ridge: f64,
    /// Rows of a panel.
    height: usize,
    solver: Mutex<Option<Result<Arc<Solver>, String>>>,
    /// The rows that have been solved for and not been passed.
    panels: Panels,
}

/// What all rows have in common.
#[derive(Debug)]
struct Solver {
    factor: Factor,
    /// What every diagonal is raised by.
    raised: f64,
}

/// Columns of a Gram matrix that are read at a time.
const STRIP: usize = 16 * TILE;

/// How far a product may exceed what the diagonal allows, for matrices stored in bf16.
const SLACK: f64 = 1.02;

impl Fitted {
    pub(crate) fn new(layers: Vec<Fitting>, (rows, columns): (usize, usize), alpha: f64, ridge: f64) -> Self {
        let height = (Panels::LARGEST / columns.max(1) / 8 * 8).clamp(16, TILE).min(rows.max(1));
        let panels = Panels::new(rows * columns, height * columns);
        Self { layers, rows, columns, alpha, ridge, height, solver: Mutex::default(), panels }
    }

    fn sum_of_weights(&self) -> f64 {
        self.layers.iter().map(|layer| layer.weight).sum()
    }

    fn solver(&self, weights: &Weights<'_>) -> Result<Arc<Solver>, String> {
        let mut held = self.solver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*held {
            return known.clone();
        }
        let solver = self.factored(weights).transpose().ok_or("was not fitted: the run was stopped")?;
        held.insert(solver.map(Arc::new)).clone()
    }

    /// Puts `S` together and factors it; `None` where the run was stopped.
    fn factored(&self, weights: &Weights<'_>) -> Result<Option<Solver>, String> {
        let side = self.columns;
        let mut sum = Symmetric::zeros(side);
        let mut diagonal = vec![0.0; side];
        for layer in &self.layers {
            let own = self.diagonal(weights, layer)?;
            diagonal.iter_mut().zip(&own).for_each(|(sum, x)| *sum += layer.weight * x);
            let mut check = Check::new(weights, layer, &own);
            each_strip(weights, &layer.gram, side, |row, first, values| {
                check.see(row, first, values)?;
                sum.add(row, first, values, layer.weight * self.alpha);
                Ok(())
            })?;
            check.finish()?;
        }
        let mean = diagonal.iter().sum::<f64>() / side as f64 / self.sum_of_weights();
        let raised = if mean > 0.0 { self.ridge * mean } else { 1.0 };
        for (row, value) in diagonal.iter().enumerate() {
            sum.set_diagonal(row, value + raised * self.sum_of_weights());
        }
        let factor = sum.factor(|| !weights.is_stopped()).map_err(|indefinite| {
            format!(
                "cannot be fitted: the Gram matrices together are not positive definite at input {}: choose a smaller \
                 `alpha` than {}, or a larger `ridge` than {:e}",
                indefinite.at, self.alpha, self.ridge
            )
        })?;
        Ok(factor.map(|factor| Solver { factor, raised }))
    }

    /// The diagonal of a layer's Gram matrix.
    fn diagonal(&self, weights: &Weights<'_>, layer: &Fitting) -> Result<Vec<f64>, String> {
        let mut diagonal = Vec::with_capacity(self.columns);
        for row in 0..self.columns {
            let mut value = [0.0];
            weights.copy(&layer.gram, (row * (self.columns + 1)) as u64, &mut value);
            if !(value[0].is_finite() && value[0] >= 0.0) {
                let place = format!("{} on its diagonal, at input {row}", value[0]);
                return Err(not_a_gram_matrix(weights, &layer.gram, &place));
            }
            diagonal.push(f64::from(value[0]));
        }
        Ok(diagonal)
    }

    /// The rows of a panel; `None` where the run was stopped.
    fn panel(&self, weights: &Weights<'_>, number: usize) -> Option<Vec<f32>> {
        if weights.is_stopped() {
            return None;
        }
        let first = number * self.height;
        let rows = self.height.min(self.rows - first);
        match self.solver(weights) {
            Ok(solver) => {
                let values = self.solved(weights, &solver, first, rows);
                (!weights.is_stopped()).then_some(values)
            }
            // Whoever made no use of `prepare` gets what is no number.
            Err(_) => Some(vec![f32::NAN; rows * self.columns]),
        }
    }

    fn solved(&self, weights: &Weights<'_>, solver: &Solver, first: usize, rows: usize) -> Vec<f32> {
        let columns = self.columns;
        let start = (first * columns) as u64;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let mut values = vec![0.0; rows * columns];
            for (piece, to) in values.chunks_mut(STRIP).enumerate() {
                layer.layer.read(weights, start + (piece * STRIP) as u64, to);
            }
            layers.push(values);
        }
        let sum = self.sum_of_weights();
        let weighted = |at: usize| -> f64 {
            self.layers.iter().zip(&layers).map(|(layer, values)| layer.weight * f64::from(values[at])).sum()
        };
        let mean: Vec<f64> = (0..rows * columns).map(|at| weighted(at) / sum).collect();
        let mut panel = Panel::zeros(rows, columns);
        for (layer, values) in self.layers.iter().zip(&layers) {
            let mut apart = Panel::zeros(rows, columns);
            for (at, (value, mean)) in values.iter().zip(&mean).enumerate() {
                *apart.at(at / columns, at % columns) = f64::from(*value) - mean;
            }
            self.add_pulls(weights, layer, solver.raised, &apart, &mut panel);
        }
        solver.factor.solve(&mut panel);
        let value = |at: usize| (mean[at] + *panel.at(at / columns, at % columns)) as f32;
        (0..rows * columns).map(value).collect()
    }

    /// Adds `w_i (W_i - M) A_i` to a panel, a tile of `A_i` at a time.
    fn add_pulls(&self, weights: &Weights<'_>, layer: &Fitting, raised: f64, apart: &Panel, to: &mut Panel) {
        let side = self.columns;
        let mut strip = vec![0.0; TILE * STRIP];
        let mut tile: Box<Tile> = Box::new([0.0; TILE * TILE]);
        for (inner, top) in (0..side).step_by(TILE).enumerate() {
            if weights.is_stopped() {
                return;
            }
            let rows = TILE.min(side - top);
            for left in (0..side).step_by(STRIP) {
                let width = STRIP.min(side - left);
                for (row, to) in strip.chunks_mut(STRIP).take(rows).enumerate() {
                    weights.read(&layer.gram, ((top + row) * side + left) as u64, &mut to[..width]);
                }
                for first in (left..left + width).step_by(TILE) {
                    tile.fill(0.0);
                    let columns = TILE.min(side - first);
                    for row in 0..rows {
                        let from = &strip[row * STRIP + first - left..][..columns];
                        for (column, &value) in from.iter().enumerate() {
                            let is_diagonal = top + row == first + column;
                            let value = f64::from(value);
                            let value = if is_diagonal { value + raised } else { self.alpha * value };
                            tile[row * TILE + column] = layer.weight * value;
                        }
                    }
                    to.add_product(first / TILE, apart, inner, &tile);
                }
            }
            let elements = (top * side) as u64..((top + rows) * side) as u64;
            weights.release(&layer.gram, &Passed { is_end: top + rows == side, elements });
        }
    }
}

impl Derivation for Fitted {
    fn describe(&self) -> String {
        let layers = self.layers.len();
        format!("fitted to {layers} layer(s) by a solve of side {} in f64", self.columns)
    }

    fn reads(&self) -> Vec<Stored> {
        let layers = self.layers.iter();
        layers.flat_map(|layer| layer.layer.reads().into_iter().chain([layer.gram.clone()])).collect()
    }

    fn resident(&self) -> u64 {
        let (side, height) = (self.columns, self.height);
        let layers: u64 = self.layers.iter().map(|layer| layer.layer.resident()).sum();
        let read =
            (self.layers.len() * height * side * size_of::<f32>() + TILE * STRIP * size_of::<f32>()) as u64;
        let mapped = (TILE * side * size_of::<f32>()) as u64;
        // Three of the rows that are solved for: their mean, how far a layer is from it, and the solution.
        let solving = 3 * Panel::bytes(height, side);
        Symmetric::bytes(side) + layers + read + mapped + solving + self.panels.bytes()
    }

    fn prepare(&self, weights: &Weights<'_>) -> Result<(), String> {
        self.solver(weights).map(|_| ())
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        self.panels.read(start, to, |number| self.panel(weights, number));
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        self.layers.iter().for_each(|layer| layer.layer.release(weights, passed));
        if self.panels.release(passed) {
            *self.solver.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Shows a square matrix row by row, in pieces, and gives its pages back.
fn each_strip(
    weights: &Weights<'_>,
    matrix: &Stored,
    side: usize,
    mut show: impl FnMut(usize, usize, &[f32]) -> Result<(), String>,
) -> Result<(), String> {
    let mut strip = vec![0.0; STRIP.min(side)];
    for row in 0..side {
        for first in (0..side).step_by(STRIP) {
            let values = &mut strip[..STRIP.min(side - first)];
            weights.read(matrix, (row * side + first) as u64, values);
            show(row, first, values)?;
        }
        if (row + 1).is_multiple_of(TILE) || row + 1 == side {
            let elements = (row / TILE * TILE * side) as u64..((row + 1) * side) as u64;
            weights.release(matrix, &Passed { elements, is_end: row + 1 == side });
        }
    }
    Ok(())
}

/// Holds a matrix against what every Gram matrix fulfils.
struct Check<'a> {
    weights: &'a Weights<'a>,
    gram: &'a Stored,
    roots: Vec<f64>,
    /// For each input the sum of what stands left of the diagonal, of what stands above it, and of the magnitudes.
    sums: Vec<[f64; 3]>,
}

impl<'a> Check<'a> {
    fn new(weights: &'a Weights<'a>, layer: &'a Fitting, diagonal: &[f64]) -> Self {
        let roots: Vec<f64> = diagonal.iter().map(|x| x.sqrt()).collect();
        Self { weights, gram: &layer.gram, sums: vec![[0.0; 3]; roots.len()], roots }
    }

    fn see(&mut self, row: usize, first: usize, values: &[f32]) -> Result<(), String> {
        for (column, &value) in (first..).zip(values) {
            let value = f64::from(value);
            let most = self.roots[row] * self.roots[column] * SLACK;
            // Not a comparison the other way round: NaN is nowhere.
            let fits = value.abs() <= most;
            if !fits {
                let place = format!("{value} for inputs {row} and {column}, whose squares do not allow it");
                return Err(not_a_gram_matrix(self.weights, self.gram, &place));
            }
            let (of, side) = if column < row { (row, 0) } else { (column, 1) };
            if column != row {
                self.sums[of][side] += value;
                self.sums[of][2] += value.abs();
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), String> {
        let differs =
            |[left, above, magnitudes]: &[f64; 3]| (left - above).abs() > magnitudes * (SLACK - 1.0);
        match self.sums.iter().position(differs) {
            Some(input) => {
                let place = format!("another row than column for input {input}");
                Err(not_a_gram_matrix(self.weights, self.gram, &place))
            }
            None => Ok(()),
        }
    }
}

fn not_a_gram_matrix(weights: &Weights<'_>, gram: &Stored, place: &str) -> String {
    let file = &weights.sources[gram.source].model;
    format!(
        "cannot be fitted: `{}` of `{file}` is no Gram matrix, it has {place}: collect it anew",
        gram.tensor
    )
}
