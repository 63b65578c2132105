//! Averages models element by element, each by how much its loss depends on the element.
//!
//! `sum w_i F_i x_i / sum w_i F_i`, where `F_i` is the diagonal of model `i`'s Fisher information: the mean square of the
//! gradients of its log-likelihood. Source: Matena and Raffel, "Merging models with Fisher-weighted averaging" (2022), eq. 5.
//! mergekit has no such method.
//!
//! `F_i` is read from the safetensors file that `fisher` names: tensors of the models' names and shapes, none negative. So
//! that elements of which no model knows anything are averaged rather than divided by nothing, every `F_i` is raised to at
//! least `fisher_floor` times the tensor's mean over all models (the paper's code has a fixed floor, which has to be tuned to
//! the scale of the gradients). Tensors that no file has are averaged by `weight` alone; that some files have a tensor and
//! others not is refused.

use aludel_kernels::formula::{Axis, Expr, Graph};

use super::directions::total;
use super::{Base, Method, Statistics, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// `fisher`.
pub(super) struct Fisher;

impl Method for Fisher {
    fn name(&self) -> &'static str {
        "fisher"
    }

    fn summary(&self) -> &'static str {
        "average weighted by each model's Fisher information, read from files"
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
                summary: "factor of this model's information; not negative",
            },
            ParameterSpec {
                name: "fisher",
                level: Level::Model,
                kind: Kind::Text,
                default: None,
                summary: "safetensors file with the diagonal of this model's Fisher information",
            },
            ParameterSpec {
                name: "fisher_floor",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(1e-6)),
                summary: "least information of an element, as a share of the tensor's mean",
            },
        ]
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(Statistics::Fisher)
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let weight = |member| tensor.member_number_within("weight", member, (0.0, f64::MAX));
        let weights: Vec<f64> = tensor.members.iter().map(weight).collect::<Result<_, _>>()?;
        let floor = tensor.number_within("fisher_floor", (0.0, f64::MAX))?;
        let sum: f64 = weights.iter().sum();
        if sum == 0.0 {
            let message = format!("all weights for {} are 0", tensor.name);
            return Err(Problem::at(tensor.recipe.merge_method.place.clone(), message));
        }
        let models: Vec<Expr<'g>> = tensor.members.iter().map(|member| graph.input(member.input)).collect();
        let average = total(models.iter().zip(&weights).map(|(&x, &weight)| x * weight)) / sum;
        let Some(inputs) = tensor.statistics_of_all()? else { return Ok(average) };
        let information: Vec<Expr<'g>> = inputs.into_iter().map(|input| graph.input(input)).collect();
        let count = information.len() as f64 * tensor.elements as f64;
        let mean = total(information.iter().map(|fisher| fisher.sum(Axis::Tensor))) / count;
        let shares: Vec<Expr<'g>> = information
            .iter()
            .zip(&weights)
            .map(|(&fisher, &weight)| fisher.max(mean * floor) * weight)
            .collect();
        let divisor = total(shares.iter().copied());
        let mixed = total(models.iter().zip(&shares).map(|(&x, &share)| x * share));
        Ok(graph.constant(0.0).less(divisor).select(mixed / divisor, average))
    }
}
