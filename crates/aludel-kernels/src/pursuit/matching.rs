//! Chooses rows by orthogonal matching pursuit: the row whose inner product with what is left is largest in magnitude, then the best
//! approximation by all that are chosen, and so on.
//!
//! Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit", Asilomar 1993; for embeddings of tokens: Goddard and Fernandes Neto,
//! "Training-free tokenizer transplantation via orthogonal matching pursuit", arXiv 2506.06607. Rows are taken as they are, not scaled to norm 1, as
//! in mergekit and in scikit-learn. What is left is rounded to f32 before its inner products are taken in f64.
//!
//! It ends early where nothing is left ([`LEFT`]) or where the chosen row depends on those before it; mergekit goes on with whatever rounding
//! has left.

use super::Combination;
use super::table::{Table, dot, rounding, sweep};
use super::triangle::Triangle;

/// What is left of a vector counts as nothing below this share of its norm.
const LEFT: f64 = 1e-6;

/// Approximates vectors by up to `most` rows each; `norms` are those of the rows.
///
/// # Panics
/// Where the lengths do not fit.
pub fn matched(table: &dyn Table, norms: &[f32], vectors: &[f32], most: usize) -> Vec<Combination> {
    let width = table.width();
    assert!(
        norms.len() == table.rows() && vectors.len().is_multiple_of(width),
        "vectors and norms of a table"
    );
    let mut pursuits: Vec<Pursuit<'_>> = vectors.chunks_exact(width).map(Pursuit::new).collect();
    let mut open: Vec<usize> = (0..pursuits.len()).collect();
    for _ in 0..most {
        open.retain(|&vector| !pursuits[vector].is_over);
        if open.is_empty() || !table.is_wanted() {
            break;
        }
        let left: Vec<f32> = open.iter().flat_map(|&vector| &pursuits[vector].left).copied().collect();
        let mut found: Vec<Candidates> =
            open.iter().map(|&vector| Candidates::new(&pursuits[vector])).collect();
        sweep(table, &left, |vector, first, products| {
            found[vector].see(first, products, &norms[first..][..products.len()], width);
        });
        for (&vector, candidates) in open.iter().zip(found) {
            pursuits[vector].choose(table, candidates);
        }
    }
    pursuits.into_iter().map(Pursuit::combination).collect()
}

/// A vector, and what it is approximated by so far.
struct Pursuit<'v> {
    vector: &'v [f32],
    norm: f64,
    left: Vec<f32>,
    chosen: Vec<u32>,
    /// The chosen rows.
    rows: Vec<f32>,
    triangle: Triangle,
    is_over: bool,
}

impl<'v> Pursuit<'v> {
    fn new(vector: &'v [f32]) -> Self {
        let norm = dot(vector, vector).sqrt();
        Self {
            vector,
            norm,
            left: vector.to_vec(),
            chosen: Vec::new(),
            rows: Vec::new(),
            triangle: Triangle::default(),
            is_over: norm == 0.0 || !norm.is_finite(),
        }
    }

    /// Takes the best of the candidates.
    fn choose(&mut self, table: &dyn Table, candidates: Candidates) {
        let (width, mut row) = (self.vector.len(), vec![0.0; self.vector.len()]);
        let mut best: Option<(f64, u32, Vec<f32>)> = None;
        for candidate in candidates.rows() {
            if self.chosen.contains(&candidate) {
                continue;
            }
            table.row(candidate as usize, &mut row);
            let product = dot(&row, &self.left).abs();
            if best.as_ref().is_none_or(|(most, ..)| product > *most) {
                best = Some((product, candidate, row.clone()));
            }
        }
        let Some((_, candidate, row)) = best.filter(|(product, ..)| *product > 0.0) else {
            self.is_over = true;
            return;
        };
        let products: Vec<f64> = self.rows.chunks_exact(width).map(|chosen| dot(chosen, &row)).collect();
        if !self.triangle.push(&products, dot(&row, &row), dot(&row, self.vector)) {
            self.is_over = true;
            return;
        }
        self.chosen.push(candidate);
        self.rows.extend(row);
        self.reckon_left();
    }

    fn reckon_left(&mut self) {
        let mut left: Vec<f64> = self.vector.iter().map(|&x| f64::from(x)).collect();
        for (row, factor) in self.rows.chunks_exact(left.len()).zip(self.triangle.coefficients()) {
            left.iter_mut().zip(row).for_each(|(left, &x)| *left -= factor * f64::from(x));
        }
        self.left.iter_mut().zip(left).for_each(|(to, left)| *to = left as f32);
        self.is_over = dot(&self.left, &self.left).sqrt() <= LEFT * self.norm;
    }

    fn combination(self) -> Combination {
        self.chosen.into_iter().zip(self.triangle.coefficients()).collect()
    }
}

/// The rows that may have the largest product with what is left of a vector.
struct Candidates {
    /// The norm of what is left.
    norm: f64,
    /// What the largest product is at least.
    least: f64,
    /// Rows, with what their products are at most.
    rows: Vec<(u32, f64)>,
    chosen: Vec<u32>,
}

impl Candidates {
    fn new(pursuit: &Pursuit<'_>) -> Self {
        let norm = dot(&pursuit.left, &pursuit.left).sqrt();
        Self { norm, least: 0.0, rows: Vec::new(), chosen: pursuit.chosen.clone() }
    }

    fn see(&mut self, first: usize, products: &[f32], norms: &[f32], width: usize) {
        let rounding = |norm: f32| rounding(width, f64::from(norm) * self.norm);
        // Most blocks have nothing that comes near, which two loops over them tell.
        if f64::from(largest(products)) + rounding(largest(norms)) < self.least {
            return;
        }
        for (row, (&product, &norm)) in (first..).zip(products.iter().zip(norms)) {
            let (product, off, row) = (f64::from(product.abs()), rounding(norm), row as u32);
            // Of one that f32 cannot hold nothing is known: the row is looked at.
            let (at_least, at_most) =
                if product.is_finite() { (product - off, product + off) } else { (0.0, f64::INFINITY) };
            if at_most >= self.least && !self.chosen.contains(&row) {
                self.least = self.least.max(at_least);
                self.rows.push((row, at_most));
            }
        }
        let least = self.least;
        self.rows.retain(|(_, at_most)| *at_most >= least);
    }

    /// In the order of the table.
    fn rows(&self) -> impl Iterator<Item = u32> {
        self.rows.iter().filter(|(_, at_most)| *at_most >= self.least).map(|(row, _)| *row)
    }
}

/// The largest magnitude; what is no number is above all that are. As bits, whose order is the same, so that the loop becomes vector code.
fn largest(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |most, value| most.max(value.abs().to_bits())))
}
