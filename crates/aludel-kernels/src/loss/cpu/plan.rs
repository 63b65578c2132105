//! Sorts the terms of an objective into what the row kernel does for each: groups that share their probabilities.
//!
//! In: a [`RowLoss`]. Out: a [`Plan`], the same for all rows.

use crate::loss::device::{Column, Mode, RowLoss};
use crate::loss::divergence::Kind;
use crate::loss::objective::{Divergence, Target, Term};

/// What is done with every row.
pub(super) struct Plan {
    /// The student's distinct temperatures; the first is 1, the labels'.
    pub(super) temperatures: Vec<f32>,
    /// Terms by temperature and target.
    pub(super) groups: Vec<Group>,
    /// How many terms the objective has: the first columns of the values.
    pub(super) terms: usize,
    /// Factor of the gradient of the cross-entropy against the label.
    pub(super) label_factor: f64,
    /// Columns that divergences are over.
    pub(super) common: usize,
    /// The student's columns that are not padding.
    pub(super) valid: usize,
    /// The gradient goes back through this cap.
    pub(super) soft_cap: Option<f32>,
    /// Whether the student's logits become the gradient.
    pub(super) with_gradient: bool,
}

/// Terms of one temperature and one target.
pub(super) struct Group {
    /// Where the temperature is in [`Plan::temperatures`].
    pub(super) temperature: usize,
    pub(super) target: Target,
    pub(super) slots: Vec<Slot>,
}

/// One term.
pub(super) struct Slot {
    pub(super) what: What,
    /// Factor of `flow_i - Q_i sum_j flow_j` in the gradient.
    pub(super) factor: f64,
    /// Factor of the value.
    pub(super) scale: f64,
    /// Column of the values.
    pub(super) place: usize,
}

/// A divergence by what it compares.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum What {
    Distributions(Kind),
    Logits,
}

impl What {
    pub(super) fn is_balanced(self) -> bool {
        match self {
            Self::Distributions(kind) => kind.is_balanced(),
            Self::Logits => true,
        }
    }
}

impl Group {
    /// Whether the gradient needs no sum over the row beyond the log-sum-exps.
    pub(super) fn is_balanced(&self) -> bool {
        self.slots.iter().all(|slot| slot.what.is_balanced())
    }

    /// Whether probabilities are needed at all.
    pub(super) fn compares_distributions(&self) -> bool {
        self.slots.iter().any(|slot| slot.what != What::Logits)
    }
}

impl Plan {
    pub(super) fn new(loss: &RowLoss<'_>) -> Self {
        let objective = loss.objective;
        let terms = objective.terms().len();
        let label_weight = objective.labels().map_or(0.0, |labels| f64::from(labels.weight));
        let mut plan = Self {
            temperatures: vec![1.0],
            groups: vec![],
            terms,
            label_factor: loss.factor * label_weight,
            common: loss.teacher.map_or(loss.student.valid, |teacher| teacher.valid.min(loss.student.valid)),
            valid: loss.student.valid,
            soft_cap: loss.soft_cap,
            with_gradient: loss.mode == Mode::Gradient,
        };
        for (place, term) in objective.terms().iter().enumerate() {
            plan.add(term, objective.target(), loss.factor, place);
        }
        if loss.mode == Mode::Values && loss.teacher.is_some() {
            for (divergence, column) in
                [(Divergence::ForwardKl, Column::ForwardKl), (Divergence::ReverseKl, Column::ReverseKl)]
            {
                let term = Term { divergence, weight: 0.0, temperature: 1.0, scale_by_t2: false };
                plan.add(&term, Target::Teacher, 0.0, terms + column as usize);
            }
        }
        plan
    }

    fn add(&mut self, term: &Term, target: Target, factor: f64, place: usize) {
        let target = match target {
            Target::Mixture { a: 1.0, difficulty: 0.0 } => Target::Teacher,
            target => target,
        };
        let scale = term.squared_temperature();
        let tau = f64::from(term.temperature);
        let slot = Slot {
            what: Kind::of(term.divergence).map_or(What::Logits, What::Distributions),
            factor: factor * f64::from(term.weight) * scale / tau,
            scale,
            place,
        };
        let known = self.temperatures.iter().position(|&known| known == term.temperature);
        let temperature = known.unwrap_or_else(|| {
            self.temperatures.push(term.temperature);
            self.temperatures.len() - 1
        });
        let fits = |group: &&mut Group| group.temperature == temperature && group.target == target;
        match self.groups.iter_mut().find(fits) {
            Some(group) => group.slots.push(slot),
            None => self.groups.push(Group { temperature, target, slots: vec![slot] }),
        }
    }
}
