//! Adds a LoRA adapter to a tensor while it is read: `W + s B A`, with DoRA's magnitudes where it has them.
//!
//! Source: Hu et al., "LoRA" (2021); Kalajdzievski, "rsLoRA" (2023) for s; Liu et al., "DoRA" (2024): each output of
//! `V = W + s B A` is scaled to its magnitude, `m V / |V|`. Products are sums in f32 in the order of the rank; norms are
//! in f64. Of a row or column of zeros, which DoRA has no direction for, zeros stay (peft writes NaN).
//!
//! Of the factors, the one along the rows of the tensor is kept in f32 while the tensor is merged; DoRA's norms are
//! computed once.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use aludel_kernels::cpu::{BLOCK, low_rank};

use super::{Derivation, Passed, Readable, Show, Stored, Weights};

/// Which way a module's weight lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orientation {
    /// A row for each output, as linear layers are stored.
    OutputsFirst,
    /// A row for each input, as embeddings and GPT-2's layers are stored.
    InputsFirst,
}

/// A weight with an adapter.
#[derive(Debug)]
pub(crate) struct Adapted {
    pub weight: Readable,
    pub a: Stored,
    pub b: Stored,
    pub magnitude: Option<Stored>,
    pub orientation: Orientation,
    pub rank: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub scale: f32,
    /// What the adapter is called, for people.
    pub adapter: String,
    pub state: State,
}

/// What is computed once for a tensor.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The factor along the rows, `[rank, columns]`, while the tensor is merged.
    right: Mutex<Option<Arc<[f32]>>>,
    /// Bits of the norm of each row, [`UNKNOWN`] where it has not been asked for.
    of_rows: OnceLock<Box<[AtomicU32]>>,
    /// The norm of each column.
    of_columns: OnceLock<Box<[f32]>>,
}

/// No norm has these bits: it is a NaN.
const UNKNOWN: u32 = u32::MAX;

impl Derivation for Adapted {
    fn describe(&self) -> String {
        let of = self.weight.describe().map_or_else(String::new, |inner| format!("{inner} and "));
        format!("{of}with adapter `{}`", self.adapter)
    }

    fn reads(&self) -> Vec<Stored> {
        let mut reads = self.weight.reads();
        reads.extend([&self.a, &self.b].into_iter().chain(&self.magnitude).cloned());
        reads
    }

    fn resident(&self) -> u64 {
        let norms = if self.magnitude.is_some() { self.outputs } else { 0 };
        4 * (self.rank * self.columns() + norms) as u64 + self.weight.resident()
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        let right = self.right(weights);
        self.add(weights, &right, start, to);
        if let Some(magnitude) = &self.magnitude {
            self.scale(weights, magnitude, &right, start, to);
        }
    }

    fn locate(&self, weights: &Weights<'_>, elements: &Range<u64>, show: &mut Show<'_>) {
        self.weight.locate(weights, elements, show);
    }

    fn release(&self, weights: &Weights<'_>, passed: &Passed) {
        self.weight.release(weights, passed);
        if passed.elements.end == (self.inputs * self.outputs) as u64 {
            *self.state.right.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Adapted {
    fn columns(&self) -> usize {
        match self.orientation {
            Orientation::OutputsFirst => self.inputs,
            Orientation::InputsFirst => self.outputs,
        }
    }

    fn rows(&self) -> usize {
        match self.orientation {
            Orientation::OutputsFirst => self.outputs,
            Orientation::InputsFirst => self.inputs,
        }
    }

    /// The factor along the rows of the tensor.
    fn right(&self, weights: &Weights<'_>) -> Arc<[f32]> {
        let mut held = self.state.right.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(held.get_or_insert_with(|| match self.orientation {
            Orientation::OutputsFirst => weights.first(&self.a, self.rank * self.inputs).into(),
            Orientation::InputsFirst => {
                let b = weights.first(&self.b, self.outputs * self.rank);
                (0..b.len()).map(|i| b[i % self.outputs * self.rank + i / self.outputs]).collect()
            }
        }))
    }

    /// The other factor's part for a row.
    fn left(&self, weights: &Weights<'_>, row: usize, to: &mut [f32]) {
        match self.orientation {
            Orientation::OutputsFirst => weights.read(&self.b, (row * self.rank) as u64, to),
            Orientation::InputsFirst => {
                for (r, to) in to.iter_mut().enumerate() {
                    weights.read(&self.a, (r * self.inputs + row) as u64, std::slice::from_mut(to));
                }
            }
        }
    }

    /// Elements of `W + s B A`.
    fn add(&self, weights: &Weights<'_>, right: &[f32], start: u64, to: &mut [f32]) {
        self.weight.read(weights, start, to);
        let columns = self.columns();
        let mut left = vec![0.0; self.rank];
        for (row, first, to) in segments(columns, start, to) {
            self.left(weights, row, &mut left);
            let mut product = [0.0; BLOCK];
            let product = &mut product[..to.len()];
            low_rank(&left, right, columns, first, product);
            to.iter_mut().zip(product).for_each(|(to, product)| *to += *product * self.scale);
        }
    }

    /// Scales what was added to the magnitudes of the outputs.
    fn scale(&self, weights: &Weights<'_>, magnitude: &Stored, right: &[f32], start: u64, to: &mut [f32]) {
        for (row, first, to) in segments(self.columns(), start, to) {
            match self.orientation {
                Orientation::OutputsFirst => {
                    let mut target = [0.0];
                    weights.read(magnitude, row as u64, &mut target);
                    let factor = factor(target[0], self.norm_of_row(weights, right, row));
                    to.iter_mut().for_each(|to| *to *= factor);
                }
                Orientation::InputsFirst => {
                    let mut targets = [0.0; BLOCK];
                    let targets = &mut targets[..to.len()];
                    weights.read(magnitude, first as u64, targets);
                    let norms = &self.norms_of_columns(weights, right)[first..];
                    for ((to, target), norm) in to.iter_mut().zip(targets).zip(norms) {
                        *to *= factor(*target, *norm);
                    }
                }
            }
        }
    }

    fn norm_of_row(&self, weights: &Weights<'_>, right: &[f32], row: usize) -> f32 {
        let unknown = || (0..self.rows()).map(|_| AtomicU32::new(UNKNOWN)).collect();
        let norm = &self.state.of_rows.get_or_init(unknown)[row];
        match norm.load(Relaxed) {
            UNKNOWN => {
                let computed = self.computed_norm_of_row(weights, right, row);
                // Whoever else computes it gets the same.
                norm.store(computed.to_bits(), Relaxed);
                computed
            }
            bits => f32::from_bits(bits),
        }
    }

    fn computed_norm_of_row(&self, weights: &Weights<'_>, right: &[f32], row: usize) -> f32 {
        let columns = self.columns();
        let mut squares = [0.0_f64; LANES];
        self.each_block(weights, right, row * columns..(row + 1) * columns, |_, block| {
            for values in block.chunks(LANES) {
                for (sum, &value) in squares.iter_mut().zip(values) {
                    *sum += f64::from(value) * f64::from(value);
                }
            }
        });
        squares.iter().sum::<f64>().sqrt() as f32
    }

    fn norms_of_columns(&self, weights: &Weights<'_>, right: &[f32]) -> &[f32] {
        self.state.of_columns.get_or_init(|| {
            let columns = self.columns();
            let mut squares = vec![0.0_f64; columns];
            self.each_block(weights, right, 0..self.rows() * columns, |start, block| {
                for (_, first, block) in segments(columns, start as u64, block) {
                    for (sum, &mut value) in squares[first..].iter_mut().zip(block) {
                        *sum += f64::from(value) * f64::from(value);
                    }
                }
            });
            squares.iter().map(|squares| squares.sqrt() as f32).collect()
        })
    }

    /// Shows elements of `W + s B A` in order, in blocks that begin at multiples of [`BLOCK`] from the first.
    fn each_block(
        &self,
        weights: &Weights<'_>,
        right: &[f32],
        elements: Range<usize>,
        mut show: impl FnMut(usize, &mut [f32]),
    ) {
        let mut room = vec![0.0; BLOCK];
        let end = elements.end;
        for start in elements.step_by(BLOCK) {
            let block = &mut room[..BLOCK.min(end - start)];
            self.add(weights, right, start as u64, block);
            show(start, block);
        }
    }
}

/// Sums of squares that are kept apart, so that the compiler can compute them side by side.
const LANES: usize = 16;

fn factor(magnitude: f32, norm: f32) -> f32 {
    if norm == 0.0 { 0.0 } else { magnitude / norm }
}

/// The pieces of consecutive elements that lie in one row each: its number, the first column, the elements.
fn segments(columns: usize, start: u64, to: &mut [f32]) -> impl Iterator<Item = (usize, usize, &mut [f32])> {
    let (mut at, mut rest) = (start as usize, to);
    std::iter::from_fn(move || {
        let (row, first) = (at / columns, at % columns);
        let length = rest.len().min(columns - first);
        let (piece, others) = std::mem::take(&mut rest).split_at_mut(length);
        (at, rest) = (at + length, others);
        (length > 0).then_some((row, first, piece))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aludel_checkpoint::WeightMap;

    use super::*;
    use crate::plan::{Plan, PlanOptions};
    use crate::recipe::Recipe;

    #[test]
    fn elements_are_the_same_however_they_are_cut() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/adapters");
        for (model, adapter) in
            [("llama", "patterns"), ("llama", "dora"), ("llama", "embedding"), ("gpt2", "conv1d-dora")]
        {
            let recipe = format!(
                "merge_method: passthrough\nmodels: [{{model: '{}+{}'}}]\n",
                golden.join("models").join(model).display(),
                golden.join("adapters").join(adapter).display()
            );
            let plan = Plan::new(&Recipe::parse(&recipe).unwrap(), &PlanOptions::default()).unwrap();
            let maps = plan.sources.iter().map(|source| WeightMap::open(&source.checkpoint).unwrap());
            let maps: Vec<_> = maps.collect();
            let weights = Weights::new(&plan.sources, &maps);
            let mut count = 0;
            for step in &plan.steps {
                let Some(made) = &step.inputs[0].made else { continue };
                let mut whole = vec![0.0; step.elements() as usize];
                for (block, to) in whole.chunks_mut(BLOCK).enumerate() {
                    made.make(&weights, (block * BLOCK) as u64, to);
                }
                for (start, length) in [(0, 1), (1, 17), (5, 41), (50, 77), (whole.len() - 3, 3)] {
                    let mut piece = vec![0.0; length];
                    made.make(&weights, start as u64, &mut piece);
                    assert_eq!(piece, whole[start..start + length], "{} of {adapter}", step.tensor);
                    made.release(&weights, &Passed { elements: 0..whole.len() as u64, is_end: true });
                }
                count += 1;
            }
            assert!(count > 3, "{adapter}");
        }
    }
}
