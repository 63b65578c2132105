//! Makes the rows of a router of the embeddings of prompts: `cheap_embed` of mergekit-moe.
//!
//! The row of an expert is `u(u(P) - u(N))`, where P and N are the sums of the embeddings of all tokens of its positive and of its
//! negative prompts, and `u(x) = x / max(|x|, 1e-8)`; without negative prompts `u(P)`. Sums and norms are in f64, rounded once; mergekit
//! has f32 throughout. All layers have the same rows, which are made once.

use std::sync::{Arc, OnceLock};

use aludel_kernels::cpu::BLOCK;

use super::{Derivation, Passed, Readable, Stored, Weights};

/// The rows of all experts.
#[derive(Debug)]
pub(crate) struct PromptRows {
    pub embedding: Readable,
    /// Elements of the embedding.
    pub elements: u64,
    /// Elements of a row.
    pub columns: usize,
    /// The tokens of each expert's positive prompts, and of its negative ones; each is a row of the embedding.
    pub prompts: Vec<(Vec<u32>, Vec<u32>)>,
    pub made: OnceLock<Vec<f32>>,
}

/// The rows of a router, from the one of this expert on.
#[derive(Debug)]
pub(crate) struct Prompted {
    pub rows: Arc<PromptRows>,
    pub first: usize,
}

impl Derivation for Prompted {
    fn describe(&self) -> String {
        "made of the embeddings of its experts' prompts".to_owned()
    }

    fn reads(&self) -> Vec<Stored> {
        self.rows.embedding.reads()
    }

    fn resident(&self) -> u64 {
        let row = self.rows.columns as u64;
        let sums = 3 * row * size_of::<f64>() as u64;
        self.rows.embedding.resident() + sums + self.rows.prompts.len() as u64 * row * size_of::<f32>() as u64
    }

    fn make(&self, weights: &Weights<'_>, start: u64, to: &mut [f32]) {
        let start = self.first * self.rows.columns + start as usize;
        to.copy_from_slice(&self.rows.all(weights)[start..start + to.len()]);
    }

    /// Rows of a stored embedding are read without mapping them; what one that is made itself has mapped goes.
    fn release(&self, weights: &Weights<'_>, _: &Passed) {
        let PromptRows { embedding, elements, .. } = &*self.rows;
        if embedding.made.is_some() {
            embedding.release(weights, &Passed { elements: 0..*elements, is_end: true });
        }
    }
}

impl PromptRows {
    /// The rows, made by the first thread that needs them.
    fn all(&self, weights: &Weights<'_>) -> &[f32] {
        self.made.get_or_init(|| {
            let rows = self.prompts.iter().flat_map(|(positive, negative)| {
                let mut row = self.direction(weights, positive);
                if !negative.is_empty() {
                    let negative = self.direction(weights, negative);
                    row.iter_mut().zip(negative).for_each(|(row, negative)| *row -= negative);
                    normalise(&mut row);
                }
                row.into_iter().map(|value| value as f32)
            });
            rows.collect()
        })
    }

    /// The sum of the rows of these tokens, of norm 1.
    fn direction(&self, weights: &Weights<'_>, tokens: &[u32]) -> Vec<f64> {
        let mut sum = vec![0.0; self.columns];
        let mut values = [0.0; BLOCK];
        for &token in tokens {
            for (piece, sum) in sum.chunks_mut(BLOCK).enumerate() {
                let start = token as usize * self.columns + piece * BLOCK;
                let values = &mut values[..sum.len()];
                self.embedding.copy(weights, start as u64, values);
                sum.iter_mut().zip(&*values).for_each(|(sum, &value)| *sum += f64::from(value));
            }
        }
        normalise(&mut sum);
        sum
    }
}

fn normalise(values: &mut [f64]) {
    let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt().max(LEAST_NORM);
    values.iter_mut().for_each(|value| *value /= norm);
}

/// The floor of norms, as mergekit has it.
const LEAST_NORM: f64 = 1e-8;
