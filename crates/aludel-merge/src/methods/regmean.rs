//! Merges linear layers so that the result's outputs are nearest to those of every model on its own inputs.
//!
//! `W = (sum_i w_i W_i A_i) (sum_i w_i A_i)^-1` with rows of outputs, where `A_i = alpha G_i + (1 - alpha) diag G_i` and `G_i`
//! is the mean of `x x^T` over the inputs `x` of model `i`'s layer: what minimises `sum_i w_i |X_i W^T - X_i W_i^T|^2` for
//! `alpha = 1`. Source: Jin, Ren, Preotiuc-Pietro and Cheng, "Dataless Knowledge Fusion by Merging Weights of Language Models"
//! (2022), eq. 2 and section 3.3. mergekit has no such method.
//!
//! `G_i` is read from the safetensors file that `gram` names: a square of the layer's inputs under the name of its weight.
//! Tensors that no file has are averaged by `weight`, as the paper does with all that is no linear layer.
//!
//! Beyond the paper: models have weights; and every `G_i` is raised on its diagonal by `ridge` times the mean of all
//! diagonals, so that inputs which no model has ever had are averaged rather than divided by nothing.

use aludel_kernels::formula::{Expr, Graph};

use super::directions::total;
use super::{Base, Method, Statistics, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// `regmean`.
pub(super) struct RegMean;

/// How a linear layer is fitted to those of the members.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Factors of the members' Gram matrices, not negative and not all 0.
    pub weights: Vec<f64>,
    /// Factor of what is not on a diagonal.
    pub alpha: f64,
    /// What is added to diagonals, as a share of their mean.
    pub ridge: f64,
}

impl Method for RegMean {
    fn name(&self) -> &'static str {
        "regmean"
    }

    fn summary(&self) -> &'static str {
        "linear layers by least squares over each model's inputs, whose Gram matrices are read from files"
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
                default: Some(DefaultValue::Number(1.0)),
                summary: "factor of this model's Gram matrices; not negative",
            },
            ParameterSpec {
                name: "gram",
                level: Level::Model,
                kind: Kind::Text,
                default: None,
                summary: "safetensors file or folder with the Gram matrices of this model's linear layers",
            },
            ParameterSpec {
                name: "alpha",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(0.9)),
                summary: "factor of what is not on the diagonal of a Gram matrix, from 0 to 1",
            },
            ParameterSpec {
                name: "ridge",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(1e-6)),
                summary: "what is added to the diagonals, as a share of their mean",
            },
        ]
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(Statistics::Gram)
    }

    fn fit(&self, tensor: &Tensor<'_>) -> Result<Option<Fit>, Problem> {
        let fit = Fit {
            weights: weights(tensor)?,
            alpha: tensor.number_within("alpha", (0.0, 1.0))?,
            ridge: tensor.number_within("ridge", (0.0, f64::MAX))?,
        };
        Ok(tensor.statistics_of_all()?.map(|_| fit))
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let weights = weights(tensor)?;
        let models = tensor.members.iter().map(|member| graph.input(member.input));
        Ok(total(models.zip(&weights).map(|(x, &weight)| x * weight)) / weights.iter().sum::<f64>())
    }
}

fn weights(tensor: &Tensor<'_>) -> Result<Vec<f64>, Problem> {
    let weight = |member| tensor.member_number_within("weight", member, (0.0, f64::MAX));
    let weights: Vec<f64> = tensor.members.iter().map(weight).collect::<Result<_, _>>()?;
    if weights.iter().sum::<f64>() == 0.0 {
        let message = format!("all weights for {} are 0", tensor.name);
        return Err(Problem::at(tensor.recipe.merge_method.place.clone(), message));
    }
    Ok(weights)
}
