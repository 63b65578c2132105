//! Takes divergences against a teacher of which only some columns are known: its likeliest tokens, or draws.
//!
//! In: [`SparseRows`] as a cache holds them, rows of the student's logits. Out: what the losses against whole rows give: values, and
//! the gradient in place of the logits. The teacher's rows are never spread over the vocabulary: known columns are computed one by
//! one in f64, all others share one factor of the student's probability.
//!
//! What becomes of the probability that the known columns leave ([`Tail`]) is part of the objective. Draws have no such rest: their
//! share is an unbiased estimate of the whole distribution, and so is the gradient of a divergence that is linear in it, which
//! forward KL and soft cross-entropy are.
//!
//! What the terms mean stands in [`mod@reference`]; how rows are computed, in `cpu/sparse.rs`.

pub mod reference;

use super::objective::{Divergence, Objective, Target};

/// What becomes of the probability that the known columns leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// All other columns are one more outcome, for teacher and student alike.
    #[default]
    Bucket,
    /// The known columns' probabilities are divided by their sum; all other columns have none.
    Renormalize,
    /// Sums are over the known columns alone, with their probabilities as they are; they need not be 0 where the distributions agree.
    Ignore,
}

/// What the known columns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The likeliest.
    Likeliest(Tail),
    /// Drawn from the teacher's distribution at the one temperature that there is.
    Drawn,
}

/// Rows of which some columns are known.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseRows {
    /// What they are.
    pub known: Known,
    /// Columns of the teacher's vocabulary: divergences are over the first of these that the student has as well.
    pub columns: usize,
    /// The temperatures that the rows can be taken at; of likeliest columns, 1 is the first.
    pub temperatures: Vec<f32>,
    /// T + 1 places in `ids`: where each row's columns begin, and where the last ends. Ignored rows have none.
    pub starts: Vec<usize>,
    /// Ascending columns of each row.
    pub ids: Vec<u32>,
    /// Their log-probabilities at temperature 1; of draws, the logarithms of their shares.
    pub log_p: Vec<f32>,
    /// `[T, temperatures]`: the probability of all other columns. Empty for draws.
    pub tails: Vec<f32>,
    /// `[T]`: the log-sum-exp of the teacher's logits, or empty; [`Divergence::LogitsMse`] needs it.
    pub log_sums: Vec<f32>,
    /// `[T]`: the entropy of the distribution that was drawn from, in nats, or empty.
    pub entropies: Vec<f32>,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseRow<'a> {
    /// What is known.
    pub known: Known,
    /// The temperatures of `tails`.
    pub temperatures: &'a [f32],
    /// Ascending columns.
    pub ids: &'a [u32],
    /// Their log-probabilities.
    pub log_p: &'a [f32],
    /// For each temperature, the probability of all other columns.
    pub tails: &'a [f32],
    /// The log-sum-exp of the teacher's logits.
    pub log_sum: Option<f32>,
    /// Of the distribution that was drawn from.
    pub entropy: Option<f32>,
}

impl SparseRow<'_> {
    /// The likeliest column, the first of those that are equally likely.
    pub(super) fn likeliest(&self) -> Option<u32> {
        let columns = self.ids.iter().zip(self.log_p);
        let first = columns.fold(None, |best: Option<(u32, f32)>, (&id, &x)| match best {
            Some((_, most)) if most >= x => best,
            _ => Some((id, x)),
        });
        first.map(|(id, _)| id)
    }
}

impl SparseRows {
    /// T.
    pub fn rows(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// A row.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, row: usize) -> SparseRow<'_> {
        let range = self.starts[row]..self.starts[row + 1];
        let count = self.temperatures.len();
        SparseRow {
            known: self.known,
            temperatures: &self.temperatures,
            ids: &self.ids[range.clone()],
            log_p: &self.log_p[range],
            tails: self.tails.get(row * count..(row + 1) * count).unwrap_or(&[]),
            log_sum: self.log_sums.get(row).copied(),
            entropy: self.entropies.get(row).copied(),
        }
    }

    /// Why these rows cannot serve an objective; `None` where they can.
    pub fn misfit(&self, objective: &Objective) -> Option<String> {
        misfit(self.known, &self.temperatures, !self.log_sums.is_empty(), objective)
    }
}

/// Why rows of this kind cannot serve an objective; `None` where they can. `logits` says whether log-sum-exps are there.
pub fn misfit(known: Known, temperatures: &[f32], logits: bool, objective: &Objective) -> Option<String> {
    if objective.target() != Target::Teacher && objective.needs_teacher() {
        return Some(
            "a target that moves from student to teacher needs every column of the teacher".to_owned(),
        );
    }
    for term in objective.terms() {
        if !temperatures.contains(&term.temperature) {
            let listed: Vec<String> = temperatures.iter().map(ToString::to_string).collect();
            return Some(format!(
                "a term has temperature {}, and the teacher's rows are stored at {}",
                term.temperature,
                listed.join(", ")
            ));
        }
        if known == Known::Drawn && term.divergence == Divergence::SortedDistance {
            return Some("`uld` compares sorted probabilities, and draws have no order".to_owned());
        }
        let is_linear = matches!(term.divergence, Divergence::ForwardKl | Divergence::SoftCrossEntropy);
        if known == Known::Drawn && !is_linear {
            return Some("draws are unbiased for `forward_kl` and `soft_cross_entropy` alone".to_owned());
        }
        if term.divergence == Divergence::LogitsMse && !logits {
            return Some("`logits_mse` compares logits, and the teacher's were not stored".to_owned());
        }
    }
    None
}
