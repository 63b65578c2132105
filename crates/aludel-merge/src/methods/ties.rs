//! Trims task vectors to their largest magnitudes, elects a sign for each element and adds what agrees.
//!
//! Source: Yadav et al., "TIES-merging" (2023). Exactly `floor(density * n)` elements of each task vector are kept, the
//! lowest flat index first among equal magnitudes (mergekit leaves that order to torch, and fails where it is 0
//! elements). With `granularity` that is so for each row or head by itself.

use aludel_kernels::formula::{Expr, Graph};

use super::granularity::GRANULARITY;
use super::task_vectors::{
    CONSENSUS, DENSITY, INT8_MASK, LAMBDA, RESCALE_MODE, Signs, Sparsified, WEIGHT, combine, kept_count,
    normalize, rescale, rescaled,
};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::ParameterSpec;

/// `ties`.
pub(super) struct Ties;

impl Method for Ties {
    fn name(&self) -> &'static str {
        "ties"
    }

    fn summary(&self) -> &'static str {
        "task vectors trimmed to their largest elements, with elected signs"
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
                normalize(true),
                CONSENSUS,
                rescale(false),
                RESCALE_MODE,
                GRANULARITY,
                INT8_MASK,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let (rescale, mode) = (tensor.switch("rescale")?, tensor.choice("rescale_mode")?);
        let groups = tensor.groups()?;
        combine(graph, tensor, Signs::Elected, |member, whole| {
            let density = tensor.member_number_within("density", member, (0.0, 1.0))?;
            if density == 1.0 {
                return Ok(whole);
            }
            let kept = whole * groups.top(whole, kept_count(density, groups.elements));
            Ok(if rescale {
                rescaled(graph, Sparsified { whole, kept }, groups, mode, density)
            } else {
                kept
            })
        })
    }
}
