//! Averages the changes that models share, and keeps whole the changes that one model alone has made.
//!
//! A model has changed an element where `|d_i| > epsilon`. An element that several models have changed gets the mean of
//! their changes; one that a single model has changed gets that change (`ram`), or the change times
//! `1 + r clip(shared_i / unique_i, 0, alpha)` (`ramplus_tl`), where `shared_i` and `unique_i` count the elements of the tensor
//! that model `i` has changed with others and alone. Source: Yuan et al., "Behavior knowledge merge in reinforced agentic
//! models" (2026); `tl` takes the counts per tensor. Sums in the order of the models, in f32.

use aludel_kernels::formula::{Axis, Expr, Graph};

use super::directions::total;
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

const EPSILON: ParameterSpec = ParameterSpec {
    name: "epsilon",
    level: Level::Global,
    kind: Kind::Number,
    default: Some(DefaultValue::Number(1e-5)),
    summary: "magnitude above which an element counts as changed",
};

/// `ram`.
pub(super) struct Ram;

/// `ramplus_tl`.
pub(super) struct RamPlus;

impl Method for Ram {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn summary(&self) -> &'static str {
        "mean of shared changes, unique changes whole"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[EPSILON] }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let changes = Changes::of(graph, tensor)?;
        let mixed = total(changes.parts.iter().map(|part| part.vector * part.is_changed));
        Ok(changes.base + mixed / changes.count.max(1.0))
    }
}

impl Method for RamPlus {
    fn name(&self) -> &'static str {
        "ramplus_tl"
    }

    fn summary(&self) -> &'static str {
        "mean of shared changes, unique changes raised by how much a model shares"
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
                EPSILON,
                ParameterSpec {
                    name: "r",
                    level: Level::Global,
                    kind: Kind::Number,
                    default: Some(DefaultValue::Number(0.1)),
                    summary: "how much unique changes are raised",
                },
                ParameterSpec {
                    name: "alpha",
                    level: Level::Global,
                    kind: Kind::Number,
                    default: Some(DefaultValue::Number(0.2)),
                    summary: "the most that the ratio of shared to unique elements counts",
                },
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let (r, alpha) = (tensor.number("r")?, tensor.number("alpha")?);
        let changes = Changes::of(graph, tensor)?;
        let is_unique = changes.count.equal(1.0);
        let raised = |part: &Part<'g>| {
            let unique = (part.is_changed * is_unique).sum(Axis::Tensor);
            let shared = part.is_changed.sum(Axis::Tensor) - unique;
            // A model without unique elements raises none: its factor is not used.
            let factor = (shared / unique.max(1.0)).max(0.0).min(alpha) * r + 1.0;
            part.vector * part.is_changed * is_unique.select(factor, 1.0)
        };
        let mixed = total(changes.parts.iter().map(raised));
        Ok(changes.base + mixed / changes.count.max(1.0))
    }
}

struct Changes<'g> {
    base: Expr<'g>,
    parts: Vec<Part<'g>>,
    /// How many models have changed an element.
    count: Expr<'g>,
}

struct Part<'g> {
    vector: Expr<'g>,
    is_changed: Expr<'g>,
}

impl<'g> Changes<'g> {
    fn of(graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Self, Problem> {
        let base = tensor.base_input(graph);
        let epsilon = graph.constant(tensor.number("epsilon")?);
        let part = |input: u16| {
            let vector = graph.input(input) - base;
            Part { vector, is_changed: epsilon.less(vector.abs()) }
        };
        let parts: Vec<Part<'g>> = tensor.members.iter().map(|member| part(member.input)).collect();
        let count = total(parts.iter().map(|part| part.is_changed));
        Ok(Self { base, parts, count })
    }
}
