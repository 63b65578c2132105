//! Interpolates two models along the great circle between their directions, by their weights.
//!
//! `t = w1 / (w0 + w1)` (0.5 where the sum is below 1e-6 in magnitude), then as slerp: `sin((1-t) theta) / sin(theta) v0 +
//! sin(t theta) / sin(theta) v1` with `theta` the angle between `v0` and `v1`, norms floored at 1e-8. Where `sin(theta)` is
//! below 1e-6 the models are interpolated linearly. With a base model `v` are the task vectors, and the result is added to
//! the base. With `nuslerp_flatten: false` there is an angle for each vector along the last dimension, with
//! `nuslerp_row_wise: true` as well for each along the first; with `granularity` one for each row or head.
//!
//! Source: Shoemake, "Animating rotation with quaternion curves" (1985), with the weights and dimensions of mergekit's
//! method of this name. Angles are computed in f64, where mergekit uses f32: there, opposite tensors (an angle of pi) come
//! out thousands of times too large.

use aludel_kernels::formula::{Axis, Expr, Graph};

use super::granularity::GRANULARITY;
use super::{Base, Method, RowLayout, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

const SMALLEST_NORM: f64 = 1e-8;
const SMALLEST_SINE: f64 = 1e-6;
const SMALLEST_SUM: f64 = 1e-6;

/// `nuslerp`.
pub(super) struct NuSlerp;

impl Method for NuSlerp {
    fn name(&self) -> &'static str {
        "nuslerp"
    }

    fn summary(&self) -> &'static str {
        "spherical interpolation by weight, of models or of task vectors"
    }

    fn base(&self) -> Base {
        Base::Optional
    }

    fn members(&self) -> (usize, usize) {
        (2, 2)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec {
                    name: "weight",
                    level: Level::Model,
                    kind: Kind::Number,
                    default: None,
                    summary: "share of this model",
                },
                ParameterSpec {
                    name: "nuslerp_flatten",
                    level: Level::Global,
                    kind: Kind::Bool,
                    default: Some(DefaultValue::Bool(true)),
                    summary: "one angle for the whole tensor rather than one for each row or column",
                },
                ParameterSpec {
                    name: "nuslerp_row_wise",
                    level: Level::Global,
                    kind: Kind::Bool,
                    default: Some(DefaultValue::Bool(false)),
                    summary: "unless flattened: angles along the first dimension rather than the last",
                },
                GRANULARITY,
            ]
        }
    }

    /// Along the first dimension, everything that shares a place in it is a row.
    fn rows(&self, tensor: &Tensor<'_>) -> Result<RowLayout, Problem> {
        if let Some(rows) = tensor.asked_rows()? {
            return Ok(rows);
        }
        let first = tensor.shape.first().copied().unwrap_or(1).max(1) as u64;
        let columns = if is_along_first(tensor)? { (tensor.elements / first).max(1) } else { tensor.columns };
        Ok(RowLayout::of(columns))
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let base = tensor.optional_base(graph);
        let vector = |member: usize| {
            let x = graph.input(tensor.members[member].input);
            base.map_or(x, |base| x - base)
        };
        let (a, b) = (vector(0), vector(1));
        let weight = |member: usize| tensor.member_number("weight", &tensor.members[member]);
        let (first, second) = (weight(0)?, weight(1)?);
        let sum = first + second;
        let t = if sum.abs() < SMALLEST_SUM { 0.5 } else { second / sum };
        let axis = match (tensor.switch("nuslerp_flatten")?, is_along_first(tensor)?) {
            (true, _) => tensor.groups()?.axis,
            (false, true) => Axis::Column,
            (false, false) => Axis::Row,
        };
        if !tensor.switch("nuslerp_flatten")? {
            tensor.refuse_granularity_beside("nuslerp_flatten")?;
        }
        let length = |v: Expr<'g>| v.norm(axis).max(SMALLEST_NORM);
        let cosine = a.dot(b, axis) / (length(a) * length(b));
        let angle = cosine.max(-1.0).min(1.0).acos();
        let is_straight = angle.sin().less(SMALLEST_SINE);
        let share = |part: f64| is_straight.select(part, (angle * part).sin() / angle.sin());
        let mixed = a * share(1.0 - t) + b * share(t);
        Ok(base.map_or(mixed, |base| base + mixed))
    }
}

fn is_along_first(tensor: &Tensor<'_>) -> Result<bool, Problem> {
    Ok(!tensor.switch("nuslerp_flatten")? && tensor.switch("nuslerp_row_wise")?)
}
