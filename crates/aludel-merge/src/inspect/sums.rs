//! Says what is measured of a tensor of several models, as a formula, and reads it back from the formula's figures.
//!
//! Everything is a sum over elements or a maximum, so that the figures of layers and of whole models are those of their tensors
//! added up, exactly as if they had been measured at once.

use std::sync::Arc;

use aludel_kernels::formula::{Axis, Expr, Formula, FormulaError, Graph};

/// What is measured of one model against the base.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ModelSums {
    pub elements: f64,
    /// The sum of squares of the base, of the model, and of their difference.
    pub base: f64,
    pub model: f64,
    pub delta: f64,
    /// The inner product of model and base.
    pub dot: f64,
    /// The largest magnitude of the difference.
    pub largest: f64,
    /// Elements that are the base's, elements whose difference is no larger than the threshold, and elements whose difference is no
    /// finite number.
    pub unchanged: f64,
    pub small: f64,
    pub not_finite: f64,
}

/// What is measured between the differences of two models.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PairSums {
    /// Elements of tensors that both models have.
    pub elements: f64,
    /// The sums of squares of their differences there.
    pub first: f64,
    pub second: f64,
    /// Their inner product.
    pub dot: f64,
    /// Elements that both models change, and how many more of them they change in the same direction than in opposite ones.
    pub both: f64,
    pub surplus: f64,
}

/// What is measured over all models.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct AllSums {
    /// Elements that any model changes, and those that some models raise and others lower.
    pub moved: f64,
    pub conflict: f64,
}

/// What is measured of a tensor, or of several together. `None` where a model has nothing there.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sums {
    pub parameters: u64,
    pub models: Vec<Option<ModelSums>>,
    /// Every pair of models, in the order of [`pairs`].
    pub pairs: Vec<Option<PairSums>>,
    pub all: AllSums,
}

/// Every pair of so many models, once.
pub(super) fn pairs(models: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..models).flat_map(move |first| (first + 1..models).map(move |second| (first, second)))
}

/// Measures so many models, which are the inputs after the base.
pub(super) fn formula(models: usize, threshold: f64) -> Result<Arc<Formula>, FormulaError> {
    let graph = Graph::new();
    let (base, zero, axis) = (graph.input(0), graph.constant(0.0), Axis::Tensor);
    let mut figures = Vec::new();
    let (mut deltas, mut raised, mut lowered) = (Vec::new(), Vec::new(), Vec::new());
    for model in 0..models as u16 {
        let model = graph.input(model + 1);
        let delta = model - base;
        figures.extend([base.dot(base, axis), model.dot(model, axis), delta.dot(delta, axis)]);
        figures.extend([model.dot(base, axis), delta.largest(axis), delta.equal(0.0).sum(axis)]);
        figures.push(delta.abs().less_or_equal(threshold).sum(axis));
        figures.push((!delta.abs().less(f64::INFINITY)).sum(axis));
        deltas.push(delta);
        raised.push(zero.less(delta));
        lowered.push(delta.less(0.0));
    }
    let signs: Vec<Expr<'_>> = raised.iter().zip(&lowered).map(|(&up, &down)| up - down).collect();
    for (a, b) in pairs(models) {
        figures.extend([deltas[a].dot(deltas[a], axis), deltas[b].dot(deltas[b], axis)]);
        figures.push(deltas[a].dot(deltas[b], axis));
        figures.push(signs[a].abs().dot(signs[b].abs(), axis));
        figures.push(signs[a].dot(signs[b], axis));
    }
    if let (Some(up), Some(down)) = (any(&raised), any(&lowered)) {
        figures.extend([up.or(down).sum(axis), up.dot(down, axis)]);
    }
    graph.measure(&figures).map(Arc::new)
}

/// 1 where any of these is.
fn any<'g>(list: &[Expr<'g>]) -> Option<Expr<'g>> {
    list.iter().copied().reduce(Expr::or)
}

impl Sums {
    /// Nothing yet of so many models.
    pub(super) fn new(models: usize) -> Self {
        let pairs = vec![None; pairs(models).count()];
        Self { parameters: 0, models: vec![None; models], pairs, all: AllSums::default() }
    }

    /// What the formula for `present` has measured of a tensor of so many elements, those models being its inputs after the base.
    pub(super) fn read(figures: &[f64], elements: u64, present: &[usize], models: usize) -> Self {
        let mut sums = Self { parameters: elements, ..Self::new(models) };
        // A tensor without elements has no figures: all of them are 0.
        let mut next = figures.iter().copied().chain(std::iter::repeat(0.0));
        let mut take = || next.next().unwrap_or_default();
        for &model in present {
            let [base, of_model, delta, dot] = [take(), take(), take(), take()];
            let [largest, unchanged, small, not_finite] = [take(), take(), take(), take()];
            let elements = elements as f64;
            let of_model = ModelSums {
                elements,
                base,
                model: of_model,
                delta,
                dot,
                largest,
                unchanged,
                small,
                not_finite,
            };
            sums.models[model] = Some(of_model);
        }
        for (a, b) in pairs(present.len()) {
            let at = pairs(models).position(|pair| pair == (present[a], present[b]));
            let [first, second, dot, both, surplus] = [take(), take(), take(), take(), take()];
            if let Some(at) = at {
                sums.pairs[at] =
                    Some(PairSums { elements: elements as f64, first, second, dot, both, surplus });
            }
        }
        sums.all = AllSums { moved: take(), conflict: take() };
        sums
    }

    /// Adds what is measured of another tensor.
    pub(super) fn add(&mut self, other: &Self) {
        self.parameters += other.parameters;
        for (own, other) in self.models.iter_mut().zip(&other.models) {
            if let Some(other) = other {
                own.get_or_insert_default().add(other);
            }
        }
        for (own, other) in self.pairs.iter_mut().zip(&other.pairs) {
            if let Some(other) = other {
                own.get_or_insert_default().add(other);
            }
        }
        self.all.moved += other.all.moved;
        self.all.conflict += other.all.conflict;
    }
}

impl ModelSums {
    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.base += other.base;
        self.model += other.model;
        self.delta += other.delta;
        self.dot += other.dot;
        self.largest = self.largest.max(other.largest);
        self.unchanged += other.unchanged;
        self.small += other.small;
        self.not_finite += other.not_finite;
    }
}

impl PairSums {
    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.first += other.first;
        self.second += other.second;
        self.dot += other.dot;
        self.both += other.both;
        self.surplus += other.surplus;
    }
}
