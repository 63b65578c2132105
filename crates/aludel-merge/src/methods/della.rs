//! Drops elements of task vectors at random, small ones more often than large ones, and rescales the rest.
//!
//! Source: Deep et al., "DELLA-merging" (2024). In each row (a vector is one row) the elements are ranked by magnitude,
//! ascending from 0, the lowest index first among equals; an element of rank `r` is kept with probability
//! `density - epsilon + 2 epsilon r / (columns - 1)`. That needs `0 < density - epsilon` and `density + epsilon < 1`; with
//! `density: 1` nothing is dropped. The masks are drawn as for DARE (see [`super::dare`]), and `rescale` does as there. The
//! paper divides each kept element by its own probability; `rescale_mode: density` divides by their mean, the density, and
//! the default follows mergekit and restores the sum of magnitudes.
//!
//! In a row of one element the probability is `density`; mergekit drops such elements always. Rows of more than 1,048,576
//! elements are refused: a thread ranks a row whole, and its memory is bounded.

use aludel_kernels::formula::{Expr, Graph};

use super::task_vectors::{
    CONSENSUS, DENSITY, INT8_MASK, LAMBDA, RESCALE_MODE, Signs, Sparsified, WEIGHT, combine, normalize,
    rescale, rescaled,
};
use super::{Base, Member, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// Elements of the longest row that is ranked.
const LONGEST_ROW: u64 = 1 << 20;

const EPSILON: ParameterSpec = ParameterSpec {
    name: "epsilon",
    level: Level::Model,
    kind: Kind::Number,
    default: Some(DefaultValue::Number(0.15)),
    summary: "how far the probability of the largest and smallest elements of a row is from the density",
};

/// `della_linear`.
pub(super) struct DellaLinear;

/// `della`.
pub(super) struct Della;

impl Method for DellaLinear {
    fn name(&self) -> &'static str {
        "della_linear"
    }

    fn summary(&self) -> &'static str {
        "task vectors with small elements dropped more often, added"
    }

    fn base(&self) -> Base {
        Base::Required
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(false), rescale(true), RESCALE_MODE, INT8_MASK] }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        dropped_by_rank(graph, tensor, Signs::Free)
    }
}

impl Method for Della {
    fn name(&self) -> &'static str {
        "della"
    }

    fn summary(&self) -> &'static str {
        "task vectors with small elements dropped more often, with elected signs"
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
                EPSILON,
                LAMBDA,
                normalize(true),
                CONSENSUS,
                rescale(true),
                RESCALE_MODE,
                INT8_MASK,
            ]
        }
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        dropped_by_rank(graph, tensor, Signs::Elected)
    }
}

fn dropped_by_rank<'g>(graph: &'g Graph, tensor: &Tensor<'_>, signs: Signs) -> Result<Expr<'g>, Problem> {
    let (rescale, mode) = (tensor.switch("rescale")?, tensor.choice("rescale_mode")?);
    let groups = tensor.groups()?;
    combine(graph, tensor, signs, |member, whole| {
        let density = tensor.member_number_within("density", member, (0.0, 1.0))?;
        if density == 1.0 {
            return Ok(whole);
        }
        let epsilon = tensor.member_number_within("epsilon", member, (0.0, 1.0))?;
        check(tensor, member, density, epsilon)?;
        let stream = member.entry.unwrap_or_default() as u16;
        let numbers = graph.random(stream);
        let is_kept = if tensor.columns > 1 {
            let step = 2.0 * epsilon / (tensor.columns - 1) as f64;
            numbers.less(whole.rank() * step + (density - epsilon))
        } else {
            numbers.less(density)
        };
        let kept = whole * is_kept;
        Ok(if rescale { rescaled(graph, Sparsified { whole, kept }, groups, mode, density) } else { kept })
    })
}

fn check(tensor: &Tensor<'_>, member: &Member, density: f64, epsilon: f64) -> Result<(), Problem> {
    if density - epsilon <= 0.0 || density + epsilon >= 1.0 {
        let message = format!(
            "`density` {density} with `epsilon` {epsilon} for {}: density - epsilon and density + epsilon have to lie \
             between 0 and 1",
            tensor.name
        );
        let problem = tensor.problem_of("density", member, message);
        return Err(problem.with_hint("choose a smaller `epsilon`, or `density: 1` to keep everything"));
    }
    if tensor.columns > LONGEST_ROW {
        let message = format!(
            "{} has rows of {} elements; rows of at most {LONGEST_ROW} can be ranked",
            tensor.name, tensor.columns
        );
        return Err(Problem::general(message).with_hint("set `density: 1` for it by a filter"));
    }
    Ok(())
}
