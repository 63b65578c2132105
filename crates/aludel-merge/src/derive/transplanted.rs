//! Gives a model the rows of another tokenizer: those of tokens that it knows, and approximations of those that it does not.
//!
//! In: for each row of the new table the model's own row, if it has one; what the others are made of. Out: elements of the new table. An
//! approximation that is measured on another model's table (`Pursued`) writes a row there as a combination of rows of tokens that both
//! models know, and takes the same combination of the model's own rows: sums in f64, rounded once. Which token a row is of is not known
//! here.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use aludel_kernels::cpu::BLOCK;
use aludel_kernels::normal::fill_normal;
use aludel_kernels::pursuit::{self, Combination, Metric, Table, Weighting};
use aludel_kernels::random::StreamKey;

use super::panels::Panels;
use super::{Derivation, Passed, Readable, Stored, Weights};

/// A table whose rows are those of another tokenizer's tokens.
#[derive(Debug)]
pub(crate) struct Transplanted {
    /// The model's own table, of so many rows and columns.
    pub own: Readable,
    pub own_rows: usize,
    pub columns: usize,
    /// For each row the model's own, [`NEW`] or [`EMPTY`].
    pub rows: Vec<u32>,
    /// What the others are.
    pub fill: Fill,
    /// What the others are multiplied by in the end.
    pub scale: f64,
    /// The deviation of noise that is added to the others before that, and its stream.
    pub noise: Option<(f32, StreamKey)>,
    /// The rows that have been made and not been passed.
    pub panels: Panels,
}

/// A row of a token that the model does not know.
pub(crate) const NEW: u32 = u32::MAX;

/// A row of no token: zeros.
pub(crate) const EMPTY: u32 = u32::MAX - 1;

/// How rows of unknown tokens are filled.
#[derive(Debug)]
pub(crate) enum Fill {
    Zero,
    /// With the mean of all rows of the model, once it is known.
    Mean(OnceLock<Vec<f32>>),
    /// With normal random numbers of deviation 1.
    Normal(StreamKey),
    /// With combinations of the model's rows, by the row that is filled; zeros where there is none.
    Combined(HashMap<u32, Combination>),
    Pursued(Pursued),
}

/// Combinations that are measured on another model's table.
#[derive(Debug)]
pub(crate) struct Pursued {
    /// The other model's table, of so many columns. A new row of the output is the row of the same number there.
    pub donor: Readable,
    pub columns: usize,
    /// The rows that tokens have in both: there, and in the model's own table.
    pub shared: Arc<[(u32, u32)]>,
    pub by: By,
    /// The norms of the shared rows, once they are known.
    pub norms: OnceLock<Vec<f32>>,
}

/// How shared rows are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Up to so many by orthogonal matching pursuit.
    Matching(usize),
    /// So many that are nearest.
    Nearest { count: usize, metric: Metric, weighting: Weighting },
}

/// Bytes that the chosen rows of the vectors take that are approximated at once.
const AT_ONCE: usize = 16 << 20;

impl Transplanted {
    /// The rows of a panel of such a table.
    pub(crate) fn panels(rows: usize, columns: usize) -> Panels {
        let height = (Panels::LARGEST / columns.max(1)).max(1);
        Panels::new(rows * columns, height * columns)
    }

    /// The rows of a panel; `None` where the run was stopped.
    fn panel(&self, weights: &Weights<'_>, number: usize) -> Option<Vec<f32>> {
        if weights.is_stopped() {
            return None;
        }
        let height = (Panels::LARGEST / self.columns.max(1)).max(1);
        let first = number * height;
        let rows = &self.rows[first..self.rows.len().min(first + height)];
        let mut values = vec![0.0; rows.len() * self.columns];
        let mut new: Vec<(u32, &mut [f32])> = Vec::new();
        for ((row, own), to) in (first as u32..).zip(rows).zip(values.chunks_exact_mut(self.columns)) {
            match *own {
                NEW => new.push((row, to)),
                EMPTY => {}
                own => read_row(&self.own, weights, self.columns, own, to),
            }
        }
        self.fill(weights, &mut new);
        for (row, to) in &mut new {
            self.finish(*row, to);
        }
        (!weights.is_stopped()).then_some(values)
    }

    fn fill(&self, weights: &Weights<'_>, new: &mut [(u32, &mut [f32])]) {
        match &self.fill {
            Fill::Zero => {}
            Fill::Mean(known) => {
                let mean = known.get_or_init(|| self.mean(weights));
                new.iter_mut().for_each(|(_, to)| to.copy_from_slice(mean));
            }
            Fill::Normal(key) => {
                for (row, to) in new {
                    fill_normal(*key, u64::from(*row) * self.columns as u64, 1.0, to);
                }
            }
            Fill::Combined(combinations) => {
                for (row, to) in new {
                    if let Some(combination) = combinations.get(row) {
                        self.combine(weights, combination.iter().copied(), to);
                    }
                }
            }
            Fill::Pursued(pursued) => {
                for new in new.chunks_mut(pursued.at_once()) {
                    if weights.is_stopped() {
                        return;
                    }
                    let rows: Vec<u32> = new.iter().map(|(row, _)| *row).collect();
                    for ((_, to), combination) in new.iter_mut().zip(pursued.combinations(weights, &rows)) {
                        let own =
                            combination.iter().map(|&(row, factor)| (pursued.shared[row as usize].1, factor));
                        self.combine(weights, own, to);
                    }
                }
            }
        }
    }

    /// A sum of the model's rows, each times a factor.
    fn combine(&self, weights: &Weights<'_>, combination: impl Iterator<Item = (u32, f64)>, to: &mut [f32]) {
        let mut sums = vec![0.0; self.columns];
        let mut values = vec![0.0; self.columns];
        for (row, factor) in combination {
            read_row(&self.own, weights, self.columns, row, &mut values);
            sums.iter_mut().zip(&values).for_each(|(sum, &value)| *sum += factor * f64::from(value));
        }
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = sum as f32);
    }

    fn mean(&self, weights: &Weights<'_>) -> Vec<f32> {
        let mut sums = vec![0.0; self.columns];
        let mut values = vec![0.0; self.columns];
        for row in 0..self.own_rows as u32 {
            read_row(&self.own, weights, self.columns, row, &mut values);
            sums.iter_mut().zip(&values).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        sums.into_iter().map(|sum: f64| (sum / self.own_rows.max(1) as f64) as f32).collect()
    }

    fn finish(&self, row: u32, to: &mut [f32]) {
        if let Some((deviation, key)) = self.noise {
            let mut noise = vec![0.0; self.columns];
            fill_normal(key, u64::from(row) * self.columns as u64, deviation, &mut noise);
            to.iter_mut().zip(noise).for_each(|(to, noise)| *to += noise);
        }
        if self.scale != 1.0 {
            to.iter_mut().for_each(|to| *to = (f64::from(*to) * self.scale) as f32);
        }
    }
}

impl Derivation for Transplanted {
    fn describe(&self) -> String {
        let count = |which: u32| self.rows.iter().filter(|row| **row == which).count();
        let (new, empty) = (count(NEW), count(EMPTY));
        let how = match &self.fill {
            Fill::Zero => "zeros".to_owned(),
            Fill::Mean(_) => "the mean of its rows".to_owned(),
            Fill::Normal(_) => "drawn from a normal distribution".to_owned(),
            Fill::Combined(_) => "made of the rows of their pieces".to_owned(),
            Fill::Pursued(pursued) => pursued.describe(),
        };
        let noise = self
            .noise
            .map_or_else(String::new, |(deviation, _)| format!(", with noise of deviation {deviation}"));
        let scale = if self.scale == 1.0 { String::new() } else { format!(", times {}", self.scale) };
        format!(
            "its rows for the tokens of another tokenizer: {} its own, {new} {how}{noise}{scale}",
            self.rows.len() - new - empty
        )
    }

    fn reads(&self) -> Vec<Stored> {
        let mut reads = self.own.reads();
        if let Fill::Pursued(pursued) = &self.fill {
            reads.extend(pursued.donor.reads());
        }
        reads
    }

    fn resident(&self) -> u64 {
        let sums = self.columns * (2 * size_of::<f64>() + 3 * size_of::<f32>());
        let pursued = match &self.fill {
            Fill::Pursued(pursued) => pursued.resident(),
            _ => 0,
        };
        self.own.resident() + self.panels.bytes() + sums as u64 + pursued
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        self.panels.read(start, to, |number| self.panel(weights, number));
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        self.panels.release(passed);
        // Rows of a stored table are read without mapping them; what one that is made itself has mapped goes.
        if self.own.made.is_some() {
            let elements = 0..(self.own_rows * self.columns) as u64;
            self.own.release(weights, &Passed { elements, is_end: true });
        }
    }
}

impl Pursued {
    /// For new rows, the positions of shared ones and their factors.
    fn combinations(&self, weights: &Weights<'_>, rows: &[u32]) -> Vec<Combination> {
        let table = Shared { pursued: self, weights };
        let norms = self.norms.get_or_init(|| pursuit::norms(&table));
        let mut vectors = vec![0.0; rows.len() * self.columns];
        for (row, to) in rows.iter().zip(vectors.chunks_exact_mut(self.columns)) {
            read_row(&self.donor, weights, self.columns, *row, to);
        }
        match self.by {
            By::Matching(most) => pursuit::matched(&table, norms, &vectors, most),
            By::Nearest { count, metric, weighting } => {
                pursuit::neighbours(&table, norms, &vectors, count, metric, weighting)
            }
        }
    }

    const fn most(&self) -> usize {
        match self.by {
            By::Matching(most) => most,
            By::Nearest { count, .. } => count,
        }
    }

    /// How many vectors are approximated at once: none of them knows.
    fn at_once(&self) -> usize {
        (AT_ONCE / (self.most() * self.columns * size_of::<f32>()).max(1)).clamp(8, 64)
    }

    fn describe(&self) -> String {
        let shared = self.shared.len();
        match self.by {
            By::Matching(most) => {
                format!("by matching pursuit: up to {most} of {shared} tokens that both know")
            }
            By::Nearest { count, metric, weighting } => {
                let near = match metric {
                    Metric::Euclidean => "by distance",
                    Metric::Cosine => "by cosine",
                };
                let weighed = match weighting {
                    Weighting::DistanceProportional => "weighed by it",
                    Weighting::Barycentric => "weighed to add up to 1",
                    Weighting::LeastSquares => "weighed by least squares",
                };
                format!("of the {count} nearest {near} of {shared} tokens that both know, {weighed}")
            }
        }
    }

    fn resident(&self) -> u64 {
        let of_shared = self.shared.len() * (size_of::<(u32, u32)>() + size_of::<f32>());
        let state = pursuit::bytes(self.at_once(), self.columns, self.most());
        self.donor.resident() + of_shared as u64 + state
    }
}

/// The rows of tokens that both models know, in the donor's table.
struct Shared<'a> {
    pursued: &'a Pursued,
    weights: &'a Weights<'a>,
}

impl Table for Shared<'_> {
    fn rows(&self) -> usize {
        self.pursued.shared.len()
    }

    fn width(&self) -> usize {
        self.pursued.columns
    }

    fn read(&self, first: usize, to: &mut [f32]) {
        let Pursued { donor, columns, shared, .. } = self.pursued;
        let rows = &shared[first..first + to.len() / columns];
        for ((row, _), to) in rows.iter().zip(to.chunks_exact_mut(*columns)) {
            for (piece, to) in to.chunks_mut(BLOCK).enumerate() {
                donor.read(self.weights, u64::from(*row) * *columns as u64 + (piece * BLOCK) as u64, to);
            }
        }
        if let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) {
            let element = |row: u32| u64::from(row) * *columns as u64;
            let is_end = shared.last().is_some_and(|(row, _)| row == last);
            donor.release(self.weights, &Passed { elements: element(*first)..element(*last + 1), is_end });
        }
    }

    fn is_wanted(&self) -> bool {
        !self.weights.is_stopped()
    }

    fn row(&self, row: usize, to: &mut [f32]) {
        read_row(&self.pursued.donor, self.weights, self.pursued.columns, self.pursued.shared[row].0, to);
    }
}

/// A row of a table.
fn read_row(table: &Readable, weights: &Weights<'_>, columns: usize, row: u32, to: &mut [f32]) {
    for (piece, to) in to.chunks_mut(BLOCK).enumerate() {
        table.copy(weights, u64::from(row) * columns as u64 + (piece * BLOCK) as u64, to);
    }
}
