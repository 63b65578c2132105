//! Takes from a model the elements whose change matters most, and keeps the base elsewhere.
//!
//! The importance of an element is `|x - base|` times the divergence of its row: `KL(softmax(x) + 1e-8, softmax(base) + 1e-8)`
//! over the last dimension. An element is taken where its importance is at least `median + 1.5 (q3 - q1)` of the tensor's
//! importances; median and quartiles are elements themselves: those at `floor(q (n - 1))` in ascending order. Source:
//! Arcee AI's Arcee Fusion, as mergekit computes it.
//!
//! The divergence of two nearly equal rows is a small difference of large sums. Here each term is computed from `x - base`
//! and so keeps its precision; mergekit's, in f32, are off by about 1e-4, so that elements so near the threshold may
//! be decided otherwise.

use aludel_kernels::formula::{Axis, Expr, Graph};

use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::ParameterSpec;

/// Added to every probability.
const FLOOR: f64 = 1e-8;

/// `arcee_fusion`.
pub(super) struct ArceeFusion;

impl Method for ArceeFusion {
    fn name(&self) -> &'static str {
        "arcee_fusion"
    }

    fn summary(&self) -> &'static str {
        "base model with the most important changes of another"
    }

    fn base(&self) -> Base {
        Base::First
    }

    fn members(&self) -> (usize, usize) {
        (2, 2)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let (base, x) = (graph.input(tensor.members[0].input), graph.input(tensor.members[1].input));
        let change = x - base;
        let importance = change.abs() * divergence(base, x, change);
        let last = tensor.elements.saturating_sub(1);
        // The element at a place in ascending order, counted from 0.
        let quantile = |share: f64| importance.kth(tensor.elements - (share * last as f64) as u64);
        let threshold = quantile(0.5) + (quantile(0.75) - quantile(0.25)) * 1.5;
        Ok(base + change * threshold.less_or_equal(importance))
    }
}

/// `sum p log(p / q)` of each row, with `p` of `x` and `q` of `base`.
///
/// With `t` the logarithm of the ratio of the probabilities as they are, `p - q = q (e^t - 1)`.
fn divergence<'g>(base: Expr<'g>, x: Expr<'g>, change: Expr<'g>) -> Expr<'g> {
    let (from, to) = (Softmax::of(base), Softmax::of(x));
    let ratio = change - (to.logarithm() - from.logarithm());
    let q = from.powers / from.sum;
    let excess = q * ratio.exp_m1();
    let terms = (q + excess + FLOOR) * (excess / (q + FLOOR)).ln_1p();
    terms.sum(Axis::Row).max(0.0)
}

struct Softmax<'g> {
    greatest: Expr<'g>,
    powers: Expr<'g>,
    sum: Expr<'g>,
}

impl<'g> Softmax<'g> {
    fn of(x: Expr<'g>) -> Self {
        let greatest = x.greatest(Axis::Row);
        let powers = (x - greatest).exp();
        Self { greatest, powers, sum: powers.sum(Axis::Row) }
    }

    /// The logarithm of the sum of the exponentials.
    fn logarithm(&self) -> Expr<'g> {
        self.greatest + self.sum.ln()
    }
}
