//! Moves each element towards the other model's, the more the nearer the two are.
//!
//! `w = clamp(t / |a - b|, 0, 1)`, the distance floored at 1e-6, then `w b + (1 - w) a`, where `a` is the base model.
//! Source: the NearSwap merge of alchemonaut's QuartetAnemoi-70B, as mergekit computes it: the reciprocal of the distance
//! is rounded before it is multiplied by `t`.

use aludel_kernels::formula::{Expr, Graph};

use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{Kind, Level, ParameterSpec};

const SMALLEST_DISTANCE: f64 = 1e-6;

/// `nearswap`.
pub(super) struct NearSwap;

impl Method for NearSwap {
    fn name(&self) -> &'static str {
        "nearswap"
    }

    fn summary(&self) -> &'static str {
        "base model moved to another where the two are near"
    }

    fn base(&self) -> Base {
        Base::First
    }

    fn members(&self) -> (usize, usize) {
        (2, 2)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[ParameterSpec {
            name: "t",
            level: Level::Global,
            kind: Kind::Number,
            default: None,
            summary: "distance at which an element is taken over whole",
        }]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let t = tensor.number("t")?;
        let (a, b) = (graph.input(tensor.members[0].input), graph.input(tensor.members[1].input));
        let nearness = graph.constant(1.0) / (a - b).abs().max(SMALLEST_DISTANCE);
        let share = (nearness * t).max(0.0).min(1.0);
        Ok(share * b + (graph.constant(1.0) - share) * a)
    }
}
