//! Averages the directions of any number of models, and their lengths.
//!
//! With `u_i = x_i / (|x_i| + eps)` and weights `w` (divided by their sum unless `normalize_weights: false`): `m` is the
//! weighted mean of the `u_i`, renormalised; `T = sum w_i (u_i - <u_i, m> m)` its mean tangent; the result is
//! `cos|T| m + sin|T| / |T| T`, times `sum w_i |x_i|`. With a base model `x_i` are the task vectors, and the result is added
//! to the base. A single model comes out as it is.
//!
//! Source: one step of the mean on the sphere (Buss and Fillmore, "Spherical averages", 2001) from the projected mean, as
//! mergekit does. All of it in f64 from the inner products. Where the directions cancel (`|mean| < eps`) the models are
//! averaged linearly; mergekit gives up there, or writes zeros.

use aludel_kernels::formula::{Expr, Graph};

use super::directions::{Span, constants, dot, root, total};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// `multislerp`.
pub(super) struct MultiSlerp;

impl Method for MultiSlerp {
    fn name(&self) -> &'static str {
        "multislerp"
    }

    fn summary(&self) -> &'static str {
        "weighted mean of directions and lengths, of models or of task vectors"
    }

    fn base(&self) -> Base {
        Base::Optional
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
                default: None,
                summary: "share of this model",
            },
            ParameterSpec {
                name: "normalize_weights",
                level: Level::Global,
                kind: Kind::Bool,
                default: Some(DefaultValue::Bool(true)),
                summary: "divide the weights by their sum",
            },
            ParameterSpec {
                name: "eps",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(1e-8)),
                summary: "norms below which there is no direction",
            },
        ]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let weights = weights(tensor)?;
        let eps = tensor.number("eps")?;
        if let [only] = tensor.members {
            return Ok(graph.input(only.input));
        }
        let base = tensor.optional_base(graph);
        let vector = |input: u16| base.map_or(graph.input(input), |base| graph.input(input) - base);
        let span = Span::of(tensor.members.iter().map(|member| vector(member.input)).collect());
        let factors = factors(&span, &constants(graph, &weights), eps);
        let mixed = span.combined(&factors);
        Ok(base.map_or(mixed, |base| base + mixed))
    }
}

fn weights(tensor: &Tensor<'_>) -> Result<Vec<f64>, Problem> {
    let weights = tensor.members.iter().map(|member| tensor.member_number("weight", member));
    let weights: Vec<f64> = weights.collect::<Result<_, _>>()?;
    let sum: f64 = weights.iter().sum();
    match tensor.switch("normalize_weights")? {
        true if sum == 0.0 => {
            let message = format!("the weights for {} sum to 0, so they cannot be normalised", tensor.name);
            let problem = Problem::at(tensor.recipe.merge_method.place.clone(), message);
            Err(problem.with_hint("change a weight or set `normalize_weights: false`"))
        }
        true => Ok(weights.iter().map(|weight| weight / sum).collect()),
        false => Ok(weights),
    }
}

/// What each tensor is multiplied by.
fn factors<'g>(span: &Span<'g>, weights: &[Expr<'g>], eps: f64) -> Vec<Expr<'g>> {
    let lengths: Vec<Expr<'g>> = (0..weights.len()).map(|i| span.length(i)).collect();
    let scales: Vec<Expr<'g>> = lengths.iter().map(|&length| length + eps).collect();
    let size = root(dot(weights, &span.projections(&scales, weights)));
    let mean: Vec<Expr<'g>> = weights.iter().map(|&weight| weight / size).collect();
    let along = span.projections(&scales, &mean);
    let share = dot(weights, &along);
    let tangent: Vec<Expr<'g>> = weights.iter().zip(&mean).map(|(&weight, &m)| weight - share * m).collect();
    let angle = root(dot(&tangent, &span.projections(&scales, &tangent)));
    let is_there = angle.less(eps);
    let (cosine, sine) = (is_there.select(1.0, angle.cos()), is_there.select(0.0, angle.sin() / angle));
    let length = total(weights.iter().zip(&lengths).map(|(&weight, &length)| weight * length));
    let cancels = size.less(eps);
    let factor = |i: usize| {
        let direction = (mean[i] * cosine + tangent[i] * sine) / scales[i];
        cancels.select(weights[i], direction * length)
    };
    (0..weights.len()).map(factor).collect()
}
