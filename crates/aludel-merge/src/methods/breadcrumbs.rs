//! Keeps a band of each task vector's magnitudes: neither the largest nor the smallest.
//!
//! Source: Davari and Belilovsky, "Model breadcrumbs" (2023). Of `n` elements, `target = floor(density n)` are kept after
//! the `top = floor(gamma n)` largest are dropped; where that leaves too few, fewer of the largest are dropped.
//! mergekit zeroes the whole vector where `top` is 0; here the band then reaches up to the largest element.

use aludel_kernels::formula::{Expr, Graph};

use super::task_vectors::{
    CONSENSUS, DENSITY, INT8_MASK, LAMBDA, RESCALE_MODE, Signs, Sparsified, WEIGHT, combine, kept_count,
    normalize, rescale, rescaled,
};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

const GAMMA: ParameterSpec = ParameterSpec {
    name: "gamma",
    level: Level::Model,
    kind: Kind::Number,
    default: Some(DefaultValue::Number(0.01)),
    summary: "share of the largest elements that is dropped, 0 to 1",
};

/// `breadcrumbs`.
pub(super) struct Breadcrumbs;

/// `breadcrumbs_ties`.
pub(super) struct BreadcrumbsTies;

impl Method for Breadcrumbs {
    fn name(&self) -> &'static str {
        "breadcrumbs"
    }

    fn summary(&self) -> &'static str {
        "task vectors without their largest and smallest elements, added"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale(false), RESCALE_MODE, INT8_MASK] }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        banded(graph, tensor, Signs::Free)
    }
}

impl Method for BreadcrumbsTies {
    fn name(&self) -> &'static str {
        "breadcrumbs_ties"
    }

    fn summary(&self) -> &'static str {
        "task vectors without their largest and smallest elements, with elected signs"
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
                GAMMA,
                LAMBDA,
                normalize(false),
                CONSENSUS,
                rescale(false),
                RESCALE_MODE,
                INT8_MASK,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        banded(graph, tensor, Signs::Elected)
    }
}

fn banded<'g>(graph: &'g Graph, tensor: &Tensor<'_>, signs: Signs) -> Result<Expr<'g>, Problem> {
    let (rescale, mode) = (tensor.switch("rescale")?, tensor.choice("rescale_mode")?);
    let groups = tensor.groups()?;
    combine(graph, tensor, signs, |member, whole| {
        let density = tensor.member_number_within("density", member, (0.0, 1.0))?;
        if density == 1.0 {
            return Ok(whole);
        }
        let gamma = tensor.member_number_within("gamma", member, (0.0, 1.0))?;
        let Band { dropped, kept } = Band::of(density, gamma, tensor.elements);
        let up_to_band = whole.top(dropped + kept);
        let mask = if dropped == 0 { up_to_band } else { up_to_band.and(!whole.top(dropped)) };
        let kept = whole * mask;
        Ok(if rescale { rescaled(graph, Sparsified { whole, kept }, groups, mode, density) } else { kept })
    })
}

/// How many of the largest elements are dropped, and how many of the next are kept.
#[derive(Debug, PartialEq, Eq)]
struct Band {
    dropped: u64,
    kept: u64,
}

impl Band {
    fn of(density: f64, gamma: f64, elements: u64) -> Self {
        let kept = kept_count(density, elements);
        let dropped = kept_count(gamma, elements).min(elements - kept);
        Self { dropped, kept }
    }
}

#[cfg(test)]
mod tests {
    use super::Band;

    #[test]
    fn too_wide_a_band_drops_fewer_of_the_largest() {
        assert_eq!(Band::of(0.5, 0.1, 100), Band { dropped: 10, kept: 50 });
        assert_eq!(Band::of(0.95, 0.1, 100), Band { dropped: 5, kept: 95 });
        assert_eq!(Band::of(0.5, 0.01, 10), Band { dropped: 0, kept: 5 });
        assert_eq!(Band::of(0.0, 1.0, 10), Band { dropped: 10, kept: 0 });
    }
}
