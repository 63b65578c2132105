//! Drops elements of task vectors at random and rescales the rest.
//!
//! Source: Yu et al., "Language models are super Mario" (2024): each element is kept with probability `density`. The
//! paper then divides by `density` (`rescale_mode: density`); the default follows mergekit and restores the sum of
//! magnitudes, of the tensor or of each row or head (`granularity`). The mask of an element depends on the seed, the tensor's name, the model's position in the recipe and
//! the element's index alone. `dare_ties` elects signs as TIES does.

use aludel_kernels::formula::{Expr, Graph};

use super::granularity::GRANULARITY;
use super::task_vectors::{
    CONSENSUS, DENSITY, INT8_MASK, LAMBDA, RESCALE_MODE, Signs, Sparsified, WEIGHT, combine, normalize,
    rescale, rescaled,
};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::ParameterSpec;

/// `dare_linear`.
pub(super) struct DareLinear;

/// `dare_ties`.
pub(super) struct DareTies;

impl Method for DareLinear {
    fn name(&self) -> &'static str {
        "dare_linear"
    }

    fn summary(&self) -> &'static str {
        "task vectors with elements dropped at random, added"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale(true), RESCALE_MODE, GRANULARITY, INT8_MASK] }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        dropped_at_random(graph, tensor, Signs::Free)
    }
}

impl Method for DareTies {
    fn name(&self) -> &'static str {
        "dare_ties"
    }

    fn summary(&self) -> &'static str {
        "task vectors with elements dropped at random, with elected signs"
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
                WEIGHT,
                DENSITY,
                LAMBDA,
                normalize(false),
                CONSENSUS,
                rescale(true),
                RESCALE_MODE,
                GRANULARITY,
                INT8_MASK,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        dropped_at_random(graph, tensor, Signs::Elected)
    }
}

fn dropped_at_random<'g>(graph: &'g Graph, tensor: &Tensor<'_>, signs: Signs) -> Result<Expr<'g>, Problem> {
    let (rescale, mode) = (tensor.switch("rescale")?, tensor.choice("rescale_mode")?);
    let groups = tensor.groups()?;
    combine(graph, tensor, signs, |member, whole| {
        let density = tensor.member_number_within("density", member, (0.0, 1.0))?;
        if density == 1.0 {
            return Ok(whole);
        }
        let stream = member.entry.unwrap_or_default() as u16;
        let kept = whole * graph.random(stream).less(density);
        Ok(if rescale { rescaled(graph, Sparsified { whole, kept }, groups, mode, density) } else { kept })
    })
}
