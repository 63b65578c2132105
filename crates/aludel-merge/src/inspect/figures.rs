//! Says what was measured in the terms that people compare models by.

use serde::Serialize;

use super::sums::{AllSums, ModelSums, PairSums, Sums, pairs};

/// What was measured of a tensor, a layer or a whole model. Shares are of elements, from 0 to 1; what has no meaning, as the cosine
/// of a difference that is zero, is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Elements of the base that were compared.
    pub parameters: u64,
    /// The share of elements that any model changes.
    pub moved: Option<f64>,
    /// The share of those that some models raise and others lower.
    pub conflict: Option<f64>,
    /// One for each model; `None` where it has nothing to compare.
    pub models: Vec<Option<ModelFigures>>,
    /// Every pair of models; `None` where they share nothing.
    pub pairs: Vec<Option<PairFigures>>,
}

/// One model against the base.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ModelFigures {
    /// The Euclidean norm of model less base.
    pub delta_norm: f64,
    /// That norm over the base's own.
    pub relative: Option<f64>,
    /// The largest magnitude of model less base.
    pub largest: f64,
    /// The cosine between model and base.
    pub cosine: Option<f64>,
    /// The share of elements that are exactly the base's.
    pub unchanged: Option<f64>,
    /// The share of elements whose difference is no larger than the threshold.
    pub small: Option<f64>,
    /// Elements whose difference is NaN or infinite. Where there are any, the norms and cosines are not finite either.
    pub not_finite: u64,
}

/// The differences of two models from the base.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairFigures {
    /// The first model, by its position.
    pub first: usize,
    /// The second.
    pub second: usize,
    /// The cosine between the differences.
    pub cosine: Option<f64>,
    /// The share of elements that both models change.
    pub both: Option<f64>,
    /// The share of those that both change in the same direction.
    pub agreement: Option<f64>,
    /// The share of those that they change in opposite directions.
    pub conflict: Option<f64>,
}

impl Figures {
    pub(super) fn of(sums: &Sums) -> Self {
        let AllSums { moved, conflict } = sums.all;
        let pair = |((first, second), sums): ((usize, usize), &Option<PairSums>)| {
            sums.as_ref().map(|sums| PairFigures::of(first, second, sums))
        };
        Self {
            parameters: sums.parameters,
            moved: ratio(moved, sums.parameters as f64),
            conflict: ratio(conflict, moved),
            models: sums.models.iter().map(|model| model.as_ref().map(ModelFigures::of)).collect(),
            pairs: pairs(sums.models.len()).zip(&sums.pairs).map(pair).collect(),
        }
    }
}

impl ModelFigures {
    fn of(sums: &ModelSums) -> Self {
        Self {
            delta_norm: sums.delta.sqrt(),
            relative: ratio(sums.delta.sqrt(), sums.base.sqrt()),
            largest: sums.largest,
            cosine: cosine(sums.dot, sums.base, sums.model),
            unchanged: ratio(sums.unchanged, sums.elements),
            small: ratio(sums.small, sums.elements),
            not_finite: sums.not_finite as u64,
        }
    }
}

impl PairFigures {
    fn of(first: usize, second: usize, sums: &PairSums) -> Self {
        Self {
            first,
            second,
            cosine: cosine(sums.dot, sums.first, sums.second),
            both: ratio(sums.both, sums.elements),
            // Both are whole numbers: those that agree less those that do not, and their sum.
            agreement: ratio((sums.both + sums.surplus) / 2.0, sums.both),
            conflict: ratio((sums.both - sums.surplus) / 2.0, sums.both),
        }
    }
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole != 0.0).then_some(part / whole)
}

/// The cosine between two vectors of these squares; rounding never takes it out of its range.
fn cosine(dot: f64, first: f64, second: f64) -> Option<f64> {
    // Squares of f32 multiply within the range of f64, and the root of a number's square is that number.
    ratio(dot, (first * second).sqrt()).map(|cosine| cosine.clamp(-1.0, 1.0))
}
