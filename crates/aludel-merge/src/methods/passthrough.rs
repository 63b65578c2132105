//! Takes the tensor of one model, times `scale`.

use aludel_kernels::formula::{Expr, Graph};

use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// `passthrough`.
pub(super) struct Passthrough;

impl Method for Passthrough {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn summary(&self) -> &'static str {
        "one model's tensors, scaled"
    }

    fn base(&self) -> Base {
        Base::Unused
    }

    fn members(&self) -> (usize, usize) {
        (1, 1)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[ParameterSpec {
            name: "scale",
            level: Level::Model,
            kind: Kind::Number,
            default: Some(DefaultValue::Number(1.0)),
            summary: "factor of all elements",
        }]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let member = &tensor.members[0];
        let scale = tensor.member_number("scale", member)?;
        let x = graph.input(member.input);
        Ok(if scale == 1.0 { x } else { x * scale })
    }
}
