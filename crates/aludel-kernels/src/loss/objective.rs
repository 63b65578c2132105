//! Names the terms that a distillation objective is a weighted sum of, and checks the sum.
//!
//! In: numbers from a settings file. Out: an [`Objective`] whose numbers are in range. What a term means is in
//! [`reference`](super::reference).
//!
//! Notation: `P` teacher and `Q` student distribution, both softmaxes at temperature `tau`; `z` student logits. With
//! `g = dL/dQ`, `dL/dz_i = Q_i (g_i - sum_j Q_j g_j) / tau`.

/// The label of a row that contributes nothing, to value or gradient.
pub const IGNORED: u32 = u32::MAX;

/// Temperatures that a [`Term`] may have: logits are divided by them in f32.
pub const TEMPERATURES: std::ops::RangeInclusive<f32> = 0.01..=1000.0;

/// A distance between the teacher's and the student's distribution over the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Divergence {
    /// `KL(P, Q) = sum P (log P - log Q)` (Hinton et al. 2015).
    ForwardKl,
    /// `KL(Q, P)` (Gu et al. 2024, MiniLLM). Columns that the teacher rules out (logit `-inf`) would make it infinite:
    /// it is summed as `Q log(Q / P) - Q + P`, which is the same over all columns, and they are left out of the sum.
    ReverseKl,
    /// `beta KL(P, M) + (1 - beta) KL(Q, M)`, `M = beta P + (1 - beta) Q` (Agarwal et al. 2024, GKD). This tends to 0 as
    /// beta tends to 0 or 1, and so, as GKD's authors define it, 0 stands for forward KL and 1 for reverse KL.
    JensenShannon {
        /// In `[0, 1]`.
        beta: f32,
    },
    /// `KL(P, lambda P + (1 - lambda) Q)` (Ko et al. 2024, DistiLLM).
    SkewedForwardKl {
        /// In `[0, 1)`.
        lambda: f32,
    },
    /// `KL(Q, (1 - lambda) P + lambda Q)` (Ko et al. 2024, DistiLLM).
    SkewedReverseKl {
        /// In `[0, 1)`.
        lambda: f32,
    },
    /// `0.5 sum |P - Q|`.
    TotalVariation,
    /// `-sum P log Q`.
    SoftCrossEntropy,
    /// Mean over the columns that both models have of the squared difference of logits divided by the temperature.
    /// A column that the teacher rules out counts as no difference.
    LogitsMse,
    /// `sum_r |P_(r) - Q_(r)|` over ranks (Boizard et al. 2024, ULD); see [`sorted`](super::sorted). It stands with others of its
    /// kind and labels alone, because there is nothing else to compare where vocabularies differ.
    SortedDistance,
}

impl Divergence {
    /// Whether its slope is `-P / Q`, as that of forward KL, by name or by its parameter.
    pub(crate) fn is_forward(self) -> bool {
        match self {
            Self::ForwardKl | Self::SoftCrossEntropy => true,
            Self::JensenShannon { beta } => beta == 0.0,
            Self::SkewedForwardKl { lambda } => lambda == 0.0,
            _ => false,
        }
    }
}

/// One divergence in an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Which.
    pub divergence: Divergence,
    /// Factor of value and gradient.
    pub weight: f32,
    /// `tau`, within [`TEMPERATURES`].
    pub temperature: f32,
    /// Value and gradient are multiplied by `tau^2` as well.
    pub scale_by_t2: bool,
}

impl Term {
    /// `tau^2` where it is asked for, else 1.
    pub fn squared_temperature(&self) -> f64 {
        if self.scale_by_t2 { f64::from(self.temperature).powi(2) } else { 1.0 }
    }
}

/// Cross-entropy against the labels in an objective, at temperature 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelTerm {
    /// Factor of value and gradient.
    pub weight: f32,
}

/// What the divergences are taken against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The teacher's distribution.
    Teacher,
    /// TAID as published (Shing et al. 2025): `softmax(((1 - t) z_student + t z_teacher) / tau)`, the student's part
    /// detached. For every divergence, `P` is this distribution, and the logits of [`Divergence::LogitsMse`] are these.
    InterpolatedLogits {
        /// In `[0, 1]`.
        t: f32,
    },
    /// `a_row P_teacher + (1 - a_row) P_student`, the student's part detached, with
    /// `a_row = a (1 - difficulty (1 - Q_label))`: the less of its probability the student gives to the row's label (at
    /// temperature 1, detached), the nearer to itself is what it is asked for.
    Mixture {
        /// In `[0, 1]`.
        a: f32,
        /// In `[0, 1]`; 0 gives every row the same `a`.
        difficulty: f32,
    },
}

/// A weighted sum of divergences from a target and of the cross-entropy against labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    terms: Vec<Term>,
    labels: Option<LabelTerm>,
    target: Target,
}

/// Why numbers do not make an objective.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectiveError {
    /// There is nothing to minimise.
    #[error("an objective needs at least one term")]
    Empty,
    /// A number is not in its range.
    #[error("{name} of term {term} is {value}, which is not in {range}")]
    OutOfRange {
        /// Place in the list of terms, counted from 0; the labels' term comes after the others.
        term: usize,
        /// The number's name.
        name: &'static str,
        /// What it is.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// The target's number is not in its range.
    #[error("{name} of the target is {value}, which is not in [0, 1]")]
    Target {
        /// The number's name.
        name: &'static str,
        /// What it is.
        value: f32,
    },
    /// A mixture of probabilities has no logits to compare.
    #[error("logits_mse compares logits, and a mixture of probabilities has none")]
    MixtureOfLogits,
    /// Columns of different vocabularies cannot be compared.
    #[error(
        "a distance of sorted probabilities stands with no term that compares columns, and has no target but the teacher"
    )]
    SortedWithOthers,
}

impl Objective {
    /// Checks all numbers.
    ///
    /// # Errors
    /// The first number out of range, an empty sum, [`Divergence::LogitsMse`] against [`Target::Mixture`], or
    /// [`Divergence::SortedDistance`] with other divergences or another target than the teacher.
    pub fn new(terms: Vec<Term>, labels: Option<LabelTerm>, target: Target) -> Result<Self, ObjectiveError> {
        if terms.is_empty() && labels.is_none() {
            return Err(ObjectiveError::Empty);
        }
        for (place, term) in terms.iter().enumerate() {
            check_term(place, term)?;
        }
        if let Some(LabelTerm { weight }) = labels {
            check(terms.len(), "weight", weight, weight >= 0.0 && weight.is_finite(), "[0, infinity)")?;
        }
        Self { terms, labels, target }.with_target(target)
    }

    /// The same sum against another target: what an annealed target does after each step.
    ///
    /// # Errors
    /// As [`Objective::new`].
    pub fn with_target(self, target: Target) -> Result<Self, ObjectiveError> {
        let numbers = match target {
            Target::Teacher => vec![],
            Target::InterpolatedLogits { t } => vec![("t", t)],
            Target::Mixture { a, difficulty } => vec![("a", a), ("difficulty", difficulty)],
        };
        for (name, value) in numbers {
            if !(0.0..=1.0).contains(&value) {
                return Err(ObjectiveError::Target { name, value });
            }
        }
        let compares_logits = self.terms.iter().any(|term| term.divergence == Divergence::LogitsMse);
        if compares_logits && matches!(target, Target::Mixture { .. }) {
            return Err(ObjectiveError::MixtureOfLogits);
        }
        let sorted = self.terms.iter().filter(|term| term.divergence == Divergence::SortedDistance).count();
        if sorted > 0 && (sorted < self.terms.len() || target != Target::Teacher) {
            return Err(ObjectiveError::SortedWithOthers);
        }
        Ok(Self { target, ..self })
    }

    /// The divergences.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The cross-entropy against labels.
    pub fn labels(&self) -> Option<LabelTerm> {
        self.labels
    }

    /// What the divergences are taken against.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Whether its divergences are distances of sorted probabilities.
    pub fn is_sorted(&self) -> bool {
        self.terms.iter().any(|term| term.divergence == Divergence::SortedDistance)
    }

    /// Whether a teacher is needed.
    pub fn needs_teacher(&self) -> bool {
        !self.terms.is_empty()
    }
}

fn check_term(place: usize, term: &Term) -> Result<(), ObjectiveError> {
    let Term { weight, temperature, .. } = *term;
    check(place, "weight", weight, weight >= 0.0 && weight.is_finite(), "[0, infinity)")?;
    check(place, "temperature", temperature, TEMPERATURES.contains(&temperature), "[0.01, 1000]")?;
    match term.divergence {
        Divergence::JensenShannon { beta } => {
            check(place, "beta", beta, (0.0..=1.0).contains(&beta), "[0, 1]")
        }
        Divergence::SkewedForwardKl { lambda } | Divergence::SkewedReverseKl { lambda } => {
            check(place, "lambda", lambda, (0.0..1.0).contains(&lambda), "[0, 1)")
        }
        _ => Ok(()),
    }
}

fn check(
    term: usize,
    name: &'static str,
    value: f32,
    fits: bool,
    range: &'static str,
) -> Result<(), ObjectiveError> {
    if fits { Ok(()) } else { Err(ObjectiveError::OutOfRange { term, name, value, range }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(divergence: Divergence) -> Term {
        Term { divergence, weight: 1.0, temperature: 2.0, scale_by_t2: true }
    }

    #[test]
    fn numbers_out_of_range_are_named_with_their_term() {
        let terms = vec![term(Divergence::ForwardKl), term(Divergence::SkewedForwardKl { lambda: 1.0 })];
        assert_eq!(
            Objective::new(terms, None, Target::Teacher).unwrap_err(),
            ObjectiveError::OutOfRange { term: 1, name: "lambda", value: 1.0, range: "[0, 1)" }
        );
        for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let terms = vec![Term { temperature, ..term(Divergence::ForwardKl) }];
            let error = Objective::new(terms, None, Target::Teacher).unwrap_err();
            assert!(
                matches!(error, ObjectiveError::OutOfRange { term: 0, name: "temperature", .. }),
                "{error}"
            );
        }
        let labels = Some(LabelTerm { weight: f32::NAN });
        let error = Objective::new(vec![term(Divergence::ForwardKl)], labels, Target::Teacher).unwrap_err();
        assert!(matches!(error, ObjectiveError::OutOfRange { term: 1, name: "weight", .. }), "{error}");
    }

    #[test]
    fn sorted_distances_stand_alone() {
        let sorted = || term(Divergence::SortedDistance);
        let objective = Objective::new(vec![sorted(), sorted()], None, Target::Teacher).unwrap();
        assert!(objective.is_sorted());
        let mixed = vec![sorted(), term(Divergence::ForwardKl)];
        assert_eq!(
            Objective::new(mixed, None, Target::Teacher).unwrap_err(),
            ObjectiveError::SortedWithOthers
        );
        let moved = objective.with_target(Target::InterpolatedLogits { t: 0.5 });
        assert_eq!(moved.unwrap_err(), ObjectiveError::SortedWithOthers);
    }

    #[test]
    fn an_objective_has_something_to_minimise() {
        assert_eq!(Objective::new(vec![], None, Target::Teacher).unwrap_err(), ObjectiveError::Empty);
        let labels = Objective::new(vec![], Some(LabelTerm { weight: 1.0 }), Target::Teacher).unwrap();
        assert!(!labels.needs_teacher());
    }

    #[test]
    fn a_target_is_checked_whenever_it_is_set() {
        let objective = Objective::new(vec![term(Divergence::LogitsMse)], None, Target::Teacher).unwrap();
        let interpolated = objective.clone().with_target(Target::InterpolatedLogits { t: 0.4 }).unwrap();
        assert_eq!(interpolated.target(), Target::InterpolatedLogits { t: 0.4 });
        assert_eq!(
            objective.clone().with_target(Target::InterpolatedLogits { t: 1.5 }).unwrap_err(),
            ObjectiveError::Target { name: "t", value: 1.5 }
        );
        assert_eq!(
            objective.with_target(Target::Mixture { a: 0.9, difficulty: 0.0 }).unwrap_err(),
            ObjectiveError::MixtureOfLogits
        );
    }
}
