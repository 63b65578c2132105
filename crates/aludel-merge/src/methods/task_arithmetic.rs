//! Adds weighted task vectors to the base model.
//!
//! Source: Ilharco et al., "Editing models with task arithmetic" (2023). See [`super::task_vectors`] for the formula.

use aludel_kernels::formula::{Expr, Graph};

use super::task_vectors::{INT8_MASK, LAMBDA, Signs, WEIGHT, combine, normalize};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::ParameterSpec;

/// `task_arithmetic`.
pub(super) struct TaskArithmetic;

impl Method for TaskArithmetic {
    fn name(&self) -> &'static str {
        "task_arithmetic"
    }

    fn summary(&self) -> &'static str {
        "base model plus weighted task vectors"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[WEIGHT, LAMBDA, normalize(false), INT8_MASK] }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        combine(graph, tensor, Signs::Free, |_, vector| Ok(vector))
    }
}
