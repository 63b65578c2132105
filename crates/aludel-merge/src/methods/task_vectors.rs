//! Combines task vectors, the part that a family of methods shares: `base + lambda * M`.
//!
//! With `d_i = x_i - base` (sparsified by the method) and `W_i = w_i d_i`, `M = sum W_i`. Under a sign consensus only the
//! elements that agree with the elected sign `s` count: `M = sum W_i [sign W_i = s]`. With `normalize`, `M` is divided
//! by the sum of the weights that took part (1 where that is 0).
//!
//! Consensus `sum` elects the sign of `sum W_i` (0 counts as positive; TIES, Yadav et al. 2023), `count` that of
//! `sum sign(W_i)`, one vote for each model, and `unanimous` keeps an element only where all signs that are not 0 agree.
//! mergekit has no key for the last two.
//!
//! As in mergekit, a sum of weights below 1e-8 in magnitude counts as 1 where no sign is elected.

use aludel_kernels::formula::{Expr, Graph};

use super::granularity::Groups;
use super::{Member, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// Norms below which a task vector is not rescaled.
const SMALLEST_NORM: f64 = 1e-7;

/// Sums of weights below which nothing is divided.
const SMALLEST_DIVISOR: f32 = 1e-8;

pub(super) const WEIGHT: ParameterSpec = ParameterSpec {
    name: "weight",
    level: Level::Model,
    kind: Kind::Number,
    default: None,
    summary: "factor of this model's task vector",
};
pub(super) const DENSITY: ParameterSpec = ParameterSpec {
    name: "density",
    level: Level::Model,
    kind: Kind::Number,
    default: Some(DefaultValue::Number(1.0)),
    summary: "share of the task vector that is kept, 0 to 1",
};
pub(super) const LAMBDA: ParameterSpec = ParameterSpec {
    name: "lambda",
    level: Level::Global,
    kind: Kind::Number,
    default: Some(DefaultValue::Number(1.0)),
    summary: "factor of the combined task vectors",
};
pub(super) const INT8_MASK: ParameterSpec = ParameterSpec {
    name: "int8_mask",
    level: Level::Global,
    kind: Kind::Bool,
    default: Some(DefaultValue::Bool(false)),
    summary: "accepted for mergekit's sake; changes nothing",
};
pub(super) const CONSENSUS: ParameterSpec = ParameterSpec {
    name: "consensus",
    level: Level::Global,
    kind: Kind::Choice(&["sum", "count", "unanimous"]),
    default: Some(DefaultValue::Text("sum")),
    summary: "how the sign of an element is elected",
};
pub(super) const RESCALE_MODE: ParameterSpec = ParameterSpec {
    name: "rescale_mode",
    level: Level::Global,
    kind: Kind::Choice(&["l1", "l2", "linf", "density"]),
    default: Some(DefaultValue::Text("l1")),
    summary: "what rescaling restores: a norm of the task vector, or its mean (density)",
};

/// `normalize`, with the method's own default.
pub(super) const fn normalize(default: bool) -> ParameterSpec {
    ParameterSpec {
        name: "normalize",
        level: Level::Global,
        kind: Kind::Bool,
        default: Some(DefaultValue::Bool(default)),
        summary: "divide by the sum of the weights that took part",
    }
}

/// `rescale`, with the method's own default.
pub(super) const fn rescale(default: bool) -> ParameterSpec {
    ParameterSpec {
        name: "rescale",
        level: Level::Global,
        kind: Kind::Bool,
        default: Some(DefaultValue::Bool(default)),
        summary: "scale what is kept up to what was there",
    }
}

/// A task vector before and after it was sparsified.
#[derive(Clone, Copy)]
pub(super) struct Sparsified<'g> {
    pub whole: Expr<'g>,
    pub kept: Expr<'g>,
}

/// Whether the method elects signs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    Free,
    Elected,
}

/// The merged tensor of a method that sparsifies by `sparsify(member, task vector)`.
pub(super) fn combine<'g>(
    graph: &'g Graph,
    tensor: &Tensor<'_>,
    signs: Signs,
    sparsify: impl Fn(&Member, Expr<'g>) -> Result<Expr<'g>, Problem>,
) -> Result<Expr<'g>, Problem> {
    let base = tensor.base_input(graph);
    let mut parts = Vec::new();
    for member in tensor.members {
        let weight = tensor.member_number("weight", member)? as f32;
        let vector = sparsify(member, graph.input(member.input) - base)?;
        parts.push(Part { weight, weighted: times(vector, weight) });
    }
    let normalize = tensor.switch("normalize")?;
    let mixed = match signs {
        Signs::Free => mix(&parts, normalize),
        Signs::Elected => mix_agreeing(graph, &parts, tensor.choice("consensus")?, normalize),
    };
    let lambda = tensor.number("lambda")?;
    Ok(base + if lambda == 1.0 { mixed } else { mixed * lambda })
}

struct Part<'g> {
    weight: f32,
    weighted: Expr<'g>,
}

fn mix<'g>(parts: &[Part<'g>], normalize: bool) -> Expr<'g> {
    let mixed = total(parts.iter().map(|part| part.weighted));
    let divisor: f32 = parts.iter().map(|part| part.weight).sum();
    if normalize && divisor.abs() >= SMALLEST_DIVISOR { mixed / f64::from(divisor) } else { mixed }
}

fn mix_agreeing<'g>(graph: &'g Graph, parts: &[Part<'g>], consensus: &str, normalize: bool) -> Expr<'g> {
    let zero = graph.constant(0.0);
    let agreement: Vec<Expr<'g>> = match consensus {
        "unanimous" => {
            let positive = parts.iter().map(|part| zero.less(part.weighted)).reduce(Expr::or).unwrap_or(zero);
            let negative = parts.iter().map(|part| part.weighted.less(0.0)).reduce(Expr::or).unwrap_or(zero);
            let agreed = !positive.and(negative);
            parts.iter().map(|part| agreed.and(!part.weighted.equal(0.0))).collect()
        }
        _ => {
            let votes = match consensus {
                "count" => total(parts.iter().map(|part| sign(zero, part.weighted))),
                _ => total(parts.iter().map(|part| part.weighted)),
            };
            let is_positive = zero.less_or_equal(votes);
            let agrees =
                |part: &Part<'g>| is_positive.select(zero.less(part.weighted), part.weighted.less(0.0));
            parts.iter().map(agrees).collect()
        }
    };
    let mixed = total(parts.iter().zip(&agreement).map(|(part, &agrees)| part.weighted * agrees));
    if !normalize {
        return mixed;
    }
    let divisor = total(parts.iter().zip(&agreement).map(|(part, &agrees)| times(agrees, part.weight)));
    mixed / divisor.equal(0.0).select(1.0, divisor)
}

/// The product; a factor of 1 changes no bit and is left out.
fn times(x: Expr<'_>, factor: f32) -> Expr<'_> {
    if factor == 1.0 { x } else { x * f64::from(factor) }
}

fn sign<'g>(zero: Expr<'g>, x: Expr<'g>) -> Expr<'g> {
    zero.less(x) - x.less(0.0)
}

/// The sum in order; there is at least one part.
fn total<'g>(parts: impl Iterator<Item = Expr<'g>>) -> Expr<'g> {
    parts.reduce(|sum, part| sum + part).unwrap_or_else(|| unreachable!("planned with at least one member"))
}

/// Scales what was kept of a task vector up to what was there.
///
/// `density` divides by it, as DARE's paper does (Yu et al. 2024, eq. 3): unbiased. The others restore a norm of the
/// vector, of each group of its elements, that was there; mergekit's default is `l1`. A vector of norm below 1e-7 stays as it is.
pub(super) fn rescaled<'g>(
    graph: &'g Graph,
    parts: Sparsified<'g>,
    Groups { axis, .. }: Groups,
    mode: &str,
    density: f64,
) -> Expr<'g> {
    let norm = |x: Expr<'g>| match mode {
        "l2" => x.norm(axis),
        "linf" => x.largest(axis),
        _ => x.abs().sum(axis),
    };
    if mode == "density" {
        return if density > 0.0 { parts.kept / density } else { parts.kept };
    }
    let (whole, kept) = (norm(parts.whole), norm(parts.kept));
    let smallest = graph.constant(SMALLEST_NORM);
    let is_tiny = whole.less(smallest).or(kept.less(smallest));
    parts.kept * is_tiny.select(1.0, whole / kept)
}

/// How many elements `density` keeps: `floor(density * n)`.
pub(super) fn kept_count(density: f64, elements: u64) -> u64 {
    ((density * elements as f64).floor() as u64).min(elements)
}
