//! Takes the distance of sorted probabilities: a loss between models that share no vocabulary.
//!
//! In: rows of the student's logits, for each the row of its teacher that speaks of what follows the same text, or none. Out: values, and
//! the gradient in place of the logits. Which rows are of the same text is the caller's to know.
//!
//! Universal logit distillation (Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for
//! LLMs"): with `P` and `Q` sorted from the greatest down and the shorter filled up with zeros, `sum_r |P_(r) - Q_(r)|`. No
//! token of one has to be a token of the other. The permutation that sorts `Q` is constant where no two probabilities are equal, so that
//! `dL/dQ_i = sign(Q_i - P_(rank of i))`, and 0 where they are equal. Columns whose logits are equal, of
//! which there are thousands in bf16, share the mean of the slopes of their ranks: the gradient does not depend on the order of tokens. Known difference
//! from the paper: which rows are compared is the caller's to say, where the paper takes positions of the same number.
//!
//! Of a teacher of which the likeliest `k` columns are known, [`Tail`] says what stands at the other ranks: what is left in equal parts
//! ([`Tail::Bucket`]: none of them can be above any of the known, so that they are in order), nothing after division by the sum
//! ([`Tail::Renormalize`]), or the sum ends after rank k ([`Tail::Ignore`]). Draws have no order.
//!
//! [`mod@reference`] has this in f64; `cpu/sorted.rs` and `cuda/sorted.cu` compute it.

pub mod reference;

use super::device::Columns;
use super::sparse::SparseRows;
#[cfg(doc)]
use super::sparse::Tail;

/// The teacher's rows for some of the student's.
#[derive(Debug)]
pub struct SortedRows<'a, B> {
    /// For each row of the student, the teacher's; `None` where nothing is compared. All are `None` where there is no `teacher`.
    pub partners: &'a [Option<usize>],
    /// What the teacher says.
    pub teacher: Option<Ranked<'a, B>>,
    /// Factor of the terms' gradient: 1 / compared rows of the whole optimizer step.
    pub factor: f64,
}

/// Rows of which the ranks are looked at.
#[derive(Debug)]
pub enum Ranked<'a, B> {
    /// All logits, `[rows, columns.stored]`.
    Logits(&'a B, Columns),
    /// The likeliest columns.
    Known(&'a SparseRows),
}

impl<B> Clone for Ranked<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Ranked<'_, B> {}

/// Rows that a GPU counts at once; Hopper has 132 multiprocessors.
pub(super) const BLOCKS: usize = 128;

/// What a GPU counts so many rows in: seven arrays, as `cuda/sorted.cu` says, with a number for each value of 16 bits, for each row that is at hand.
pub(crate) const fn counting_bytes(rows: usize) -> usize {
    let at_once = if rows < BLOCKS { rows } else { BLOCKS };
    at_once * 7 * (1 << 16) * size_of::<u32>()
}
