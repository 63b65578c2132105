//! Finds the point whose distances to the models add up to the least: an average that an outlier cannot pull far.
//!
//! Per tensor, `argmin_z sum w_i |z - x_i|`, by Weiszfeld's iteration from the weighted mean: `z = sum b_i x_i / sum b_i` with
//! `b_i = w_i / max(|z - x_i|, smoothing)`. Source: Weiszfeld (1937); smoothed as in Pillutla, Kakade and Harchaoui, "Robust
//! aggregation for federated learning" (2022), algorithm 2. mergekit has no such method.
//!
//! The number of steps is fixed, so that equal inputs give equal bytes. Each step lowers the objective, and the distance to
//! the solution shrinks by a constant factor; where the solution is one of the models it shrinks in proportion to the
//! number of steps only. The iteration runs in f64 on the inner products of `x_i - x_0`: any number of steps reads the
//! models twice.

use aludel_kernels::formula::{Expr, Graph};

use super::directions::{Span, constants, dot, root, total};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

const MOST_STEPS: f64 = 1000.0;

/// `geometric_median`.
pub(super) struct GeometricMedian;

impl Method for GeometricMedian {
    fn name(&self) -> &'static str {
        "geometric_median"
    }

    fn summary(&self) -> &'static str {
        "the point nearest to all models in sum of distances"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[
            ParameterSpec {
                name: "weight",
                level: Level::Model,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(1.0)),
                summary: "factor of the distance to this model; not negative",
            },
            ParameterSpec {
                name: "iterations",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(32.0)),
                summary: "steps, up to 1000",
            },
            ParameterSpec {
                name: "smoothing",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(1e-6)),
                summary: "distance below which a model pulls no harder",
            },
        ]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let weight = |member| tensor.member_number_within("weight", member, (0.0, f64::MAX));
        let weights: Vec<f64> = tensor.members.iter().map(weight).collect::<Result<_, _>>()?;
        let steps = tensor.number_within("iterations", (0.0, MOST_STEPS))? as usize;
        let smoothing = tensor.number_within("smoothing", (f64::MIN_POSITIVE, f64::MAX))?;
        let sum: f64 = weights.iter().sum();
        if sum == 0.0 {
            let message = format!("all weights for {} are 0", tensor.name);
            return Err(Problem::at(tensor.recipe.merge_method.place.clone(), message));
        }
        let first = graph.input(tensor.members[0].input);
        if tensor.members.len() == 1 {
            return Ok(first);
        }
        let others = tensor.members[1..].iter().map(|member| graph.input(member.input) - first).collect();
        let span = Span::of(others);
        let start: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        let shares = shares(&span, &constants(graph, &weights), constants(graph, &start), (steps, smoothing));
        Ok(first + span.combined(&shares[1..]))
    }
}

/// The share of each model after so many steps; `span` holds the differences of all but the first to the first.
fn shares<'g>(
    span: &Span<'g>,
    weights: &[Expr<'g>],
    mut shares: Vec<Expr<'g>>,
    (steps, smoothing): (usize, f64),
) -> Vec<Expr<'g>> {
    for _ in 0..steps {
        let moved = &shares[1..];
        let along: Vec<Expr<'g>> = (0..span.count())
            .map(|i| total(moved.iter().enumerate().map(|(j, &share)| span.product(i, j) * share)))
            .collect();
        let square = dot(moved, &along);
        let pull = |i: usize| {
            let squared = match i.checked_sub(1) {
                None => square,
                Some(i) => square - along[i] * 2.0 + span.product(i, i),
            };
            weights[i] / root(squared).max(smoothing)
        };
        let pulls: Vec<Expr<'g>> = (0..weights.len()).map(pull).collect();
        let sum = total(pulls.iter().copied());
        shares = pulls.into_iter().map(|pull| pull / sum).collect();
    }
    shares
}
