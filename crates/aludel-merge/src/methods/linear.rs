//! Averages models with weights: `sum w_i x_i / sum w_i`.
//!
//! Source: Wortsman et al., "Model soups" (2022). Weights, products and sums are rounded to f32 in the order of the
//! models, as mergekit rounds them.

use aludel_kernels::formula::{Expr, Graph};

use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// `linear`.
pub(super) struct Linear;

impl Method for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn summary(&self) -> &'static str {
        "weighted average of the models"
    }

    fn base(&self) -> Base {
        Base::Unused
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
                name: "normalize",
                level: Level::Global,
                kind: Kind::Bool,
                default: Some(DefaultValue::Bool(true)),
                summary: "divide by the sum of the weights",
            },
        ]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let mut sum: Option<Expr<'g>> = None;
        let mut total = 0f32;
        for member in tensor.members {
            let weight = tensor.member_number("weight", member)? as f32;
            let term = graph.input(member.input) * f64::from(weight);
            sum = Some(sum.map_or(term, |sum| sum + term));
            total += weight;
        }
        let sum = sum.unwrap_or_else(|| graph.constant(0.0));
        match tensor.switch("normalize")? {
            true if total == 0.0 => Err(zero_total(tensor)),
            true => Ok(sum / f64::from(total)),
            false => Ok(sum),
        }
    }
}

fn zero_total(tensor: &Tensor<'_>) -> Problem {
    let message = format!("the weights for {} sum to 0, so they cannot be normalised", tensor.name);
    Problem::at(tensor.recipe.merge_method.place.clone(), message)
        .with_hint("change a weight or set `normalize: false`")
}
