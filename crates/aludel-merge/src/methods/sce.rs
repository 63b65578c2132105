//! Selects the elements that differ most between models, calculates a weight for each model, erases minority signs.
//!
//! Of the elements whose task vectors differ at all between the models, the `floor(select_topk * count)` of largest variance
//! are kept, the lowest flat index first among equals. Then `w_i = mean(d_i^2) / sum`, the sign of `sum d_i` is elected (0
//! counts as positive), and the result is `base + sum w_i d_i [agrees] / sum w_i [agrees]`, the divisor floored at 1e-6.
//! Source: Wan et al., "FuseChat" (2024), section 3.3.
//!
//! As in mergekit the weights are equal where the sum of the mean squares is below 1e-6, which it is for most fine-tunes;
//! `weight_floor: 0` gives the paper's weights always. For one model and `select_topk` below 1 mergekit keeps nothing; that
//! is refused here, as one model varies nowhere.

use aludel_kernels::formula::{Axis, Expr, Graph};

use super::directions::total;
use super::task_vectors::INT8_MASK;
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

const SMALLEST_DIVISOR: f64 = 1e-6;

/// `sce`.
pub(super) struct Sce;

impl Method for Sce {
    fn name(&self) -> &'static str {
        "sce"
    }

    fn summary(&self) -> &'static str {
        "task vectors where they vary most, weighted by their squares, with elected signs"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec {
                    name: "select_topk",
                    level: Level::Global,
                    kind: Kind::Number,
                    default: Some(DefaultValue::Number(1.0)),
                    summary: "share of the varying elements that is kept, 0 to 1",
                },
                ParameterSpec {
                    name: "weight_floor",
                    level: Level::Global,
                    kind: Kind::Number,
                    default: Some(DefaultValue::Number(1e-6)),
                    summary: "sum of mean squares below which all models weigh the same",
                },
                INT8_MASK,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let base = tensor.base_input(graph);
        let vectors: Vec<Expr<'g>> =
            tensor.members.iter().map(|member| graph.input(member.input) - base).collect();
        let share = tensor.number_within("select_topk", (0.0, 1.0))?;
        if share < 1.0 && vectors.len() < 2 {
            return Err(one_model(tensor));
        }
        let kept = if share < 1.0 {
            let kept = most_varied(&vectors, share);
            vectors.iter().map(|&vector| vector * kept).collect()
        } else {
            vectors
        };
        let weights = weights(&kept, tensor.elements, tensor.number("weight_floor")?);
        let zero = graph.constant(0.0);
        let is_positive = zero.less_or_equal(total(kept.iter().copied()));
        let agrees = |&vector: &Expr<'g>| is_positive.select(zero.less(vector), vector.less(0.0));
        let agreement: Vec<Expr<'g>> = kept.iter().map(agrees).collect();
        let parts = kept.iter().zip(&weights).zip(&agreement);
        let mixed = total(parts.map(|((&vector, &weight), &agrees)| vector * weight * agrees));
        let divisor = total(weights.iter().zip(&agreement).map(|(&weight, &agrees)| agrees * weight));
        Ok(base + mixed / divisor.max(SMALLEST_DIVISOR))
    }
}

/// 1 where the variance is among the largest.
///
/// Variances of what exceeds the first model's task vector: 0 exactly where all are equal.
fn most_varied<'g>(vectors: &[Expr<'g>], share: f64) -> Expr<'g> {
    let count = vectors.len() as f64;
    let excess: Vec<Expr<'g>> = vectors.iter().map(|&vector| vector - vectors[0]).collect();
    let mean = total(excess[1..].iter().copied()) / count;
    let squares = excess.iter().map(|&excess| (excess - mean) * (excess - mean));
    let variance = total(squares) / count;
    let varying = (!variance.equal(0.0)).sum(Axis::Tensor);
    variance.top(varying * share)
}

/// The mean squares over their sum; equal where the sum is below the floor.
fn weights<'g>(vectors: &[Expr<'g>], elements: u64, floor: f64) -> Vec<Expr<'g>> {
    let square = |vector: &Expr<'g>| vector.dot(*vector, Axis::Tensor) / elements as f64;
    let squares: Vec<Expr<'g>> = vectors.iter().map(square).collect();
    let sum = total(squares.iter().copied());
    let is_small = sum.less(floor).or(sum.equal(0.0));
    squares.iter().map(|&square| is_small.select(1.0 / vectors.len() as f64, square / sum)).collect()
}

fn one_model(tensor: &Tensor<'_>) -> Problem {
    let message = "`select_topk` selects by the variance between models, and there is one";
    Problem::at(tensor.recipe.merge_method.place.clone(), message)
        .with_hint("list another model or remove `select_topk`")
}
