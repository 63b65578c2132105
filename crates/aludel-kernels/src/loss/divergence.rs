//! Defines each divergence once: what a column of the vocabulary adds to the value, and to the gradient.
//!
//! In: one lane of probabilities and of the difference of their logarithms. Out: the column's part of the value and, up to a
//! constant, the slope `g = dL/dQ`, from which the gradient is `Q_i (g_i - sum_j Q_j g_j) / tau`. Where that sum is known
//! beforehand, the column gives its part of the gradient instead, the flow `Q_i (g_i - sum_j Q_j g_j)`. Which rows, columns
//! and temperatures there are is not known here.
//!
//! Values are written as `p phi(log p - log q)` with `phi(x) = e^-x - 1 + x`, which is never negative and whose sum is the
//! same, because `P` and `Q` both sum to 1: nothing cancels when `P` and `Q` are close, where `phi` is summed as a series.
//! The specification is [`reference`](mod@super::reference).

use super::cpu::elementary::{NEAR, excess, exp_minus_one, log_one_plus};
use super::objective::Divergence;
use crate::nn::cpu::math::{Arithmetic, exp};

/// `log P - log Q` in a column that the target rules out: below everything that finite logits give.
pub(super) const EXCLUDED: f32 = -1e30;

/// One column of the vocabulary.
#[derive(Clone, Copy)]
pub(super) struct Point {
    pub(super) p: f32,
    pub(super) q: f32,
    /// `log p - log q`: known better than either logarithm.
    pub(super) d: f32,
    pub(super) log_q: f32,
}

/// What one column adds to the value, and its slope or its flow.
#[derive(Clone, Copy)]
pub(super) struct Local<const IS_FLOW: bool> {
    pub(super) value: f32,
    pub(super) slope: f32,
}

/// With the slope.
pub(super) type Sloped = Local<false>;

/// With the flow.
pub(super) type Balanced = Local<true>;

impl Sloped {
    /// The flow, with slopes counted from `origin`.
    #[inline(always)]
    pub(super) fn from(self, origin: f32, x: Point) -> Balanced {
        Local { value: self.value, slope: x.q * (self.slope - origin) }
    }
}

/// A divergence between distributions, with the special cases of its parameter taken out. Weights sum to 1 and neither is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    ForwardKl,
    ReverseKl,
    JensenShannon(Weights),
    SkewedForwardKl(Weights),
    SkewedReverseKl(Weights),
    TotalVariation,
    SoftCrossEntropy,
}

/// `M = of_p P + of_q Q`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weights {
    pub(super) of_p: f32,
    pub(super) of_q: f32,
}

impl Weights {
    /// A weight of P, and the rest for Q.
    pub(super) fn of_p(of_p: f64) -> Self {
        Self { of_p: of_p as f32, of_q: (1.0 - of_p) as f32 }
    }
}

/// Smaller weights make no difference in f32: exponentials end before.
const LEAST_WEIGHT: f32 = 1e-30;

impl Kind {
    /// None for what is not summed over columns of both distributions.
    pub(super) fn of(divergence: Divergence) -> Option<Self> {
        Some(match divergence {
            Divergence::ForwardKl => Self::ForwardKl,
            Divergence::ReverseKl => Self::ReverseKl,
            Divergence::JensenShannon { beta } if beta < LEAST_WEIGHT => Self::ForwardKl,
            Divergence::JensenShannon { beta: 1.0 } => Self::ReverseKl,
            Divergence::JensenShannon { beta } => Self::JensenShannon(Weights::of_p(beta.into())),
            Divergence::SkewedForwardKl { lambda } if lambda < LEAST_WEIGHT => Self::ForwardKl,
            Divergence::SkewedForwardKl { lambda } => Self::SkewedForwardKl(Weights::of_p(lambda.into())),
            Divergence::SkewedReverseKl { lambda } if lambda < LEAST_WEIGHT => Self::ReverseKl,
            Divergence::SkewedReverseKl { lambda } => {
                Self::SkewedReverseKl(Weights { of_p: (1.0 - f64::from(lambda)) as f32, of_q: lambda })
            }
            Divergence::TotalVariation => Self::TotalVariation,
            Divergence::SoftCrossEntropy => Self::SoftCrossEntropy,
            Divergence::LogitsMse | Divergence::SortedDistance => return None,
        })
    }

    /// Whether a column gives its flow, so that no sum over the row is needed before the gradient.
    pub(super) fn is_balanced(self) -> bool {
        matches!(self, Self::ForwardKl | Self::SoftCrossEntropy)
    }
}

#[inline(always)]
pub(super) fn forward_kl(a: impl Arithmetic, x: Point) -> Balanced {
    let phi = excess(a, -x.d);
    let near = is_near(x.d);
    let value = if near { x.p * phi } else { a.mul_add(x.p, x.d - 1.0, x.q) };
    Local { value, slope: gap(a, x) }
}

#[inline(always)]
pub(super) fn reverse_kl(a: impl Arithmetic, x: Point) -> Sloped {
    let far = a.mul_add(-x.q, x.d + 1.0, x.p);
    let value = if is_near(x.d) { x.q * excess(a, x.d) } else { far };
    let is_excluded = x.d <= EXCLUDED;
    Local { value: if is_excluded { 0.0 } else { value }, slope: if is_excluded { 0.0 } else { -x.d } }
}

#[inline(always)]
pub(super) fn jensen_shannon(a: impl Arithmetic, weights: Weights, x: Point) -> Sloped {
    let Between { p_over_m, q_over_m, .. } = between(a, weights, x.d);
    let is_near = is_near(x.d);
    let of_p = if is_near { excess(a, -p_over_m) } else { p_over_m };
    let of_q = if is_near { excess(a, -q_over_m) } else { q_over_m };
    Local {
        value: a.mul_add(weights.of_p * x.p, of_p, weights.of_q * x.q * of_q),
        slope: weights.of_q * q_over_m,
    }
}

#[inline(always)]
pub(super) fn skewed_forward_kl(a: impl Arithmetic, weights: Weights, x: Point) -> Sloped {
    let Between { p_over_m, excess_over_m, .. } = between(a, weights, x.d);
    let far = a.mul_add(x.p, p_over_m, weights.of_q * (x.q - x.p));
    let value = if is_near(x.d) { x.p * excess(a, -p_over_m) } else { far };
    // p / m - 1 = of_q (p - q) / m
    Local { value, slope: -weights.of_q * weights.of_q * excess_over_m }
}

#[inline(always)]
pub(super) fn skewed_reverse_kl(a: impl Arithmetic, weights: Weights, x: Point) -> Sloped {
    let Between { q_over_m, excess_over_m, .. } = between(a, weights, x.d);
    let far = a.mul_add(x.q, q_over_m, weights.of_p * (x.p - x.q));
    let value = if is_near(x.d) { x.q * excess(a, -q_over_m) } else { far };
    // log(q / m) - of_q (q / m - 1), and q / m - 1 = -of_p (p - q) / m
    Local { value, slope: a.mul_add(weights.of_q * weights.of_p, excess_over_m, q_over_m) }
}

#[inline(always)]
pub(super) fn total_variation(a: impl Arithmetic, x: Point) -> Sloped {
    let gap = gap(a, x);
    let sign = if gap < 0.0 { -0.5 } else { 0.5 };
    Local { value: 0.5 * gap.abs(), slope: if gap == 0.0 { 0.0 } else { sign } }
}

#[inline(always)]
pub(super) fn soft_cross_entropy(a: impl Arithmetic, x: Point) -> Balanced {
    Local { value: -x.p * x.log_q, slope: gap(a, x) }
}

/// The column with `P` replaced by `of_p P + of_q Q`.
#[inline(always)]
pub(super) fn mixed(a: impl Arithmetic, weights: Weights, x: Point) -> Point {
    let Between { q_over_m, .. } = between(a, weights, x.d);
    Point { p: a.mul_add(weights.of_p, x.p, weights.of_q * x.q), d: -q_over_m, ..x }
}

/// `q - p`, with the digits that the difference of close numbers loses.
#[inline(always)]
fn gap(a: impl Arithmetic, x: Point) -> f32 {
    let near = x.p * (excess(a, -x.d) - x.d);
    if is_near(x.d) { near } else { x.q - x.p }
}

#[inline(always)]
fn is_near(d: f32) -> bool {
    d.abs() < NEAR
}

/// Where `M` lies between `P` and `Q`.
struct Between {
    /// `log(p / m)`.
    p_over_m: f32,
    /// `log(q / m)`.
    q_over_m: f32,
    /// `(p - q) / m`.
    excess_over_m: f32,
}

/// From `d = log p - log q` alone, by the larger of `p` and `q`, so that no exponential overflows; by the smaller where that
/// one has most of the weight and is close to `M`, so that the logarithm of their ratio keeps its digits.
#[inline(always)]
fn between(a: impl Arithmetic, weights: Weights, d: f32) -> Between {
    let down = -d.abs();
    let of_smaller = if d > 0.0 { weights.of_q } else { weights.of_p };
    let of_larger = if d > 0.0 { weights.of_p } else { weights.of_q };
    // The smaller over the larger, minus 1.
    let ratio = exp_minus_one(a, down);
    // M over the larger, and that minus 1.
    let x = of_smaller * ratio;
    let far = a.mul_add(of_smaller, exp(a, down), of_larger);
    let m = if x > -NEAR { 1.0 + x } else { far };
    // M over the smaller, minus 1.
    let y = -of_larger * ratio / (1.0 + ratio);
    let by_smaller = of_larger < of_smaller && y < NEAR;
    let (above, one_plus) = if by_smaller { (y, 1.0 + y) } else { (x, m) };
    let log = log_one_plus(a, above, one_plus);
    let larger_over_m = if by_smaller { -log - down } else { -log };
    let smaller_over_m = if by_smaller { -log } else { down - log };
    let magnitude = -ratio / m;
    Between {
        p_over_m: if d > 0.0 { larger_over_m } else { smaller_over_m },
        q_over_m: if d > 0.0 { smaller_over_m } else { larger_over_m },
        excess_over_m: if d > 0.0 { magnitude } else { -magnitude },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_at_the_ends_are_plain_divergences() {
        assert_eq!(Kind::of(Divergence::JensenShannon { beta: 0.0 }), Some(Kind::ForwardKl));
        assert_eq!(Kind::of(Divergence::JensenShannon { beta: 1.0 }), Some(Kind::ReverseKl));
        assert_eq!(Kind::of(Divergence::SkewedForwardKl { lambda: 0.0 }), Some(Kind::ForwardKl));
        assert_eq!(Kind::of(Divergence::SkewedReverseKl { lambda: 0.0 }), Some(Kind::ReverseKl));
        assert_eq!(Kind::of(Divergence::LogitsMse), None);
    }
}
