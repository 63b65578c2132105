//! Goes on in the direction in which training went: beyond a model, away from the base.
//!
//! `x + alpha (x - base)`, which is `(1 + alpha) x - alpha base`. Source: Zheng et al., "Weak-to-strong extrapolation expedites
//! alignment" (2024), eq. 2, where the base is the model before preference training and `x` the one after. mergekit has no
//! method of this name; `task_arithmetic` with `weight: 1 + alpha` is the same but for rounding.

use aludel_kernels::formula::{Expr, Graph};

use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{Kind, Level, ParameterSpec};

/// `expo`.
pub(super) struct Expo;

impl Method for Expo {
    fn name(&self) -> &'static str {
        "expo"
    }

    fn summary(&self) -> &'static str {
        "one model, extrapolated away from the base"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, 1)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[ParameterSpec {
            name: "alpha",
            level: Level::Global,
            kind: Kind::Number,
            default: None,
            summary: "how far to go on, in lengths of the task vector",
        }]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let alpha = tensor.number("alpha")?;
        let x = graph.input(tensor.members[0].input);
        Ok(x + (x - tensor.base_input(graph)) * alpha)
    }
}
