//! Interpolates between the base and the mean of the models by how much their task vectors agree.
//!
//! With `c` the mean cosine of all pairs of task vectors and `N` models: `t = N c / (1 + (N-1) c)`, then
//! `t mean(x_i) + (1-t) base`. With `filter_wise` that happens for each row, with
//! `granularity` for each row or head. Source: Jang et al., "Model stock" (2024),
//! eq. 8 and appendix. Norm products are floored at 1e-6 and cosines clamped to 1, as mergekit does; sums are in f64.

use aludel_kernels::formula::{Axis, Expr, Graph};

use super::granularity::GRANULARITY;
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

const SMALLEST_PRODUCT: f64 = 1e-6;

/// `model_stock`.
pub(super) struct ModelStock;

impl Method for ModelStock {
    fn name(&self) -> &'static str {
        "model_stock"
    }

    fn summary(&self) -> &'static str {
        "between base and mean, by the angle between task vectors"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (2, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                ParameterSpec {
                    name: "filter_wise",
                    level: Level::Global,
                    kind: Kind::Bool,
                    default: Some(DefaultValue::Bool(false)),
                    summary: "an angle for each row rather than for the whole tensor",
                },
                GRANULARITY,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let axis = if tensor.switch("filter_wise")? {
            tensor.refuse_granularity_beside("filter_wise")?;
            Axis::Row
        } else {
            tensor.groups()?.axis
        };
        let base = tensor.base_input(graph);
        let models: Vec<Expr<'g>> = tensor.members.iter().map(|member| graph.input(member.input)).collect();
        let vectors: Vec<Expr<'g>> = models.iter().map(|&model| model - base).collect();
        let mut cosines = Vec::new();
        for (i, &a) in vectors.iter().enumerate() {
            for &b in &vectors[..i] {
                let product = (a.norm(axis) * b.norm(axis)).max(SMALLEST_PRODUCT);
                cosines.push((a.dot(b, axis) / product).max(-1.0).min(1.0));
            }
        }
        let count = models.len() as f64;
        let mean = |values: &[Expr<'g>]| {
            let sum = values.iter().copied().reduce(|sum, value| sum + value);
            sum.unwrap_or_else(|| graph.constant(0.0)) / values.len() as f64
        };
        let cosine = mean(&cosines);
        let t = cosine * count / (cosine * (count - 1.0) + 1.0);
        Ok(mean(&models) * t + base * (-t + 1.0))
    }
}
