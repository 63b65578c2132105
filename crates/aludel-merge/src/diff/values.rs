//! Says what it means for values to differ, as a formula, and reads what was measured by it.
//!
//! Two elements are the same where they are equal as numbers, or both NaN. They lie beyond the tolerance where they are not the same and
//! `|a - b| <= tolerance + relative |b|` does not hold, or where either is infinite or NaN.

use aludel_kernels::cpu::BLOCK;
use aludel_kernels::formula::{Axis, Expr, Formula, FormulaError, Graph, interpret};
use serde::Serialize;

use super::Settings;
use crate::derive::{Passed, Weights};
use crate::plan::Step;

/// How the values of a tensor differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueDifference {
    /// The tensor.
    pub tensor: String,
    /// Its elements.
    pub elements: u64,
    /// How many differ at all.
    pub differing: u64,
    /// How many lie beyond the tolerance.
    pub beyond_tolerance: u64,
    /// The largest difference that is a finite number; `None` for types that are not computed on.
    pub largest: Option<f64>,
    /// Differences that are none, as one of the values is infinite or NaN.
    pub not_finite: u64,
    /// The first element that lies beyond the tolerance.
    pub first_place: Option<Place>,
}

/// An element of a tensor in two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// Its index along each side.
    pub index: Vec<u64>,
    /// Its value in the first model, as text.
    pub first: String,
    /// Its value in the second.
    pub second: String,
}

/// What two elements are to each other.
struct Compared<'g> {
    gap: Expr<'g>,
    differ: Expr<'g>,
    is_finite: Expr<'g>,
    beyond: Expr<'g>,
}

fn compared<'g>(graph: &'g Graph, settings: &Settings<'_>) -> Compared<'g> {
    let (a, b) = (graph.input(0), graph.input(1));
    let both_nan = (!a.equal(a)).and(!b.equal(b));
    let gap = (a - b).abs();
    let differ = !a.equal(b).or(both_nan);
    let is_finite = gap.less(f64::INFINITY);
    let bound = b.abs() * settings.relative_tolerance + settings.tolerance;
    let beyond = differ.and(!gap.less_or_equal(bound).and(is_finite));
    Compared { gap, differ, is_finite, beyond }
}

/// Measures a tensor: differing, beyond the tolerance, the largest difference, differences that are no finite number.
pub(super) fn figures(settings: &Settings<'_>) -> Result<Formula, FormulaError> {
    let graph = Graph::new();
    let Compared { gap, differ, is_finite, beyond } = compared(&graph, settings);
    let finite = differ.and(is_finite);
    graph.measure(&[
        differ.sum(Axis::Tensor),
        beyond.sum(Axis::Tensor),
        finite.select(gap, 0.0).largest(Axis::Tensor),
        differ.and(!is_finite).sum(Axis::Tensor),
    ])
}

/// 1 for each element that lies beyond the tolerance.
pub(super) fn beyond(settings: &Settings<'_>) -> Result<Formula, FormulaError> {
    let graph = Graph::new();
    let beyond = compared(&graph, settings).beyond;
    graph.finish(beyond)
}

/// What was measured of a tensor; `None` where nothing differs.
pub(super) fn read(step: &Step, figures: &[f64]) -> Option<ValueDifference> {
    let &[differing, beyond, largest, not_finite] = figures else { return None };
    (differing > 0.0).then(|| ValueDifference {
        tensor: step.tensor.clone(),
        elements: step.elements(),
        differing: differing as u64,
        beyond_tolerance: beyond as u64,
        largest: Some(largest),
        not_finite: not_finite as u64,
        first_place: None,
    })
}

/// The first element of a tensor that lies beyond the tolerance.
pub(super) fn first_place(step: &Step, weights: &Weights<'_>, is_beyond: &Formula) -> Option<Place> {
    let [first, second] = &step.inputs[..] else { return None };
    let (first, second) = (first.readable(), second.readable());
    let (mut a, mut b) = (vec![0.0; BLOCK], vec![0.0; BLOCK]);
    let mut start = 0;
    while start < step.elements() {
        let length = BLOCK.min((step.elements() - start) as usize);
        let (a, b) = (&mut a[..length], &mut b[..length]);
        first.read(weights, start, a);
        second.read(weights, start, b);
        let is_same = a.iter().zip(&*b).all(|(a, b)| a.to_bits() == b.to_bits());
        let found = if is_same {
            None
        } else {
            interpret(is_beyond, &[a, b], length, &[]).iter().position(|&x| x == 1.0)
        };
        if let Some(at) = found {
            let index = index(start + at as u64, &step.shape);
            return Some(Place { index, first: a[at].to_string(), second: b[at].to_string() });
        }
        let end = start + length as u64;
        // Pages are given back in pieces: one for each block would cost more than reading it.
        if end.is_multiple_of(RELEASED) {
            let passed = Passed { elements: end - RELEASED..end, is_end: false };
            first.release(weights, &passed);
            second.release(weights, &passed);
        }
        start = end;
    }
    None
}

/// The index along each side of the element at a flat index.
pub(super) fn index(flat: u64, shape: &[usize]) -> Vec<u64> {
    let mut rest = flat;
    let mut index: Vec<u64> = shape
        .iter()
        .rev()
        .map(|&side| {
            let side = (side as u64).max(1);
            let at = rest % side;
            rest /= side;
            at
        })
        .collect();
    index.reverse();
    index
}

/// Elements between two releases; a whole number of blocks.
const RELEASED: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_beyond(tolerance: f64, relative_tolerance: f64, a: f32, b: f32) -> bool {
        let settings =
            Settings { first: "a", second: "b", tolerance, relative_tolerance, ignore_types: false };
        interpret(&beyond(&settings).unwrap(), &[&[a], &[b]], 1, &[]) == [1.0]
    }

    #[test]
    fn a_tolerance_is_for_numbers_alone() {
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        for (a, b, tolerances, expected) in [
            (1.0, 1.0, (0.0, 0.0), false),
            (0.0, -0.0, (0.0, 0.0), false),
            (1.0, 1.5, (0.0, 0.0), true),
            (1.0, 1.5, (0.5, 0.0), false),
            (1.0, 1.5, (0.25, 0.0), true),
            (2.0, 1.0, (0.5, 0.5), false),
            (2.0, 1.0, (0.25, 0.5), true),
            (nan, nan, (0.0, 0.0), false),
            (nan, 1.0, (9.0, 9.0), true),
            (1.0, nan, (9.0, 9.0), true),
            (infinity, infinity, (0.0, 0.0), false),
            (1.0, infinity, (9.0, 9.0), true),
            (infinity, -infinity, (9.0, 9.0), true),
        ] {
            assert_eq!(is_beyond(tolerances.0, tolerances.1, a, b), expected, "{a} and {b}, {tolerances:?}");
        }
    }

    #[test]
    fn an_index_counts_along_the_sides() {
        assert_eq!(index(0, &[]), Vec::<u64>::new());
        assert_eq!(index(7, &[3, 4]), [1, 3]);
        assert_eq!(index(23, &[2, 3, 4]), [1, 2, 3]);
    }
}
