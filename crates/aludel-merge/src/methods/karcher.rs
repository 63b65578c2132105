//! Averages the directions of models on the sphere, iteratively, and their lengths.
//!
//! With `u_i = x_i / |x_i|`: from the renormalised mean of the `u_i`, each step goes along the mean `T` of the logarithms
//! `theta_i / sin(theta_i) (u_i - cos(theta_i) m)`, by `cos|T| m + sin|T| / |T| T`, until `|T| < tol` or `max_iter` steps are
//! made. Directions nearer than `tol`, or opposite to `m`, pull nothing, nor do tensors of norm 0. The result has
//! the mean of the norms. Source: Karcher, "Riemannian center of mass" (1977); Buss and Fillmore, "Spherical averages"
//! (2001), algorithm A1, with mergekit's start and stopping rule.
//!
//! The iteration runs in f64 on the inner products, so that any number of steps reads the models twice. Where the mean
//! direction is 0 it starts from the first model (mergekit starts anywhere).

use aludel_kernels::formula::{Expr, Graph};

use super::directions::{Span, constants, dot, root, total};
use super::{Base, Method, Tensor};
use crate::problem::Problem;
use crate::recipe::{DefaultValue, Kind, Level, ParameterSpec};

/// More steps are refused: each takes a place in the formula.
const MOST_STEPS: f64 = 1000.0;

/// How near to opposite, in radians, two directions no longer say which way leads from one to the other.
const OPPOSITE: f64 = 1e-6;

/// `karcher`.
pub(super) struct Karcher;

impl Method for Karcher {
    fn name(&self) -> &'static str {
        "karcher"
    }

    fn summary(&self) -> &'static str {
        "mean of directions on the sphere, by iteration"
    }

    fn base(&self) -> Base {
        Base::Member
    }

    fn members(&self) -> (usize, usize) {
        (1, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[
            ParameterSpec {
                name: "max_iter",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(10.0)),
                summary: "the most steps, up to 1000",
            },
            ParameterSpec {
                name: "tol",
                level: Level::Global,
                kind: Kind::Number,
                default: Some(DefaultValue::Number(1e-5)),
                summary: "angle, in radians, below which a step ends the iteration",
            },
        ]
    }

    fn formula<'g>(&self, graph: &'g Graph, tensor: &Tensor<'_>) -> Result<Expr<'g>, Problem> {
        let steps = tensor.number_within("max_iter", (0.0, MOST_STEPS))? as usize;
        let tolerance = tensor.number("tol")?;
        if let [only] = tensor.members {
            return Ok(graph.input(only.input));
        }
        let span = Span::of(tensor.members.iter().map(|member| graph.input(member.input)).collect());
        Ok(span.combined(&Mean::start(graph, &span, tolerance).after(steps)))
    }
}

/// The iteration: everything is in units of the tensors' directions.
struct Mean<'s, 'g> {
    span: &'s Span<'g>,
    lengths: Vec<Expr<'g>>,
    /// The norms, 1 for those that are 0.
    scales: Vec<Expr<'g>>,
    /// What each direction weighs: one share each, nothing where there is none.
    shares: Vec<Expr<'g>>,
    start: Vec<Expr<'g>>,
    tolerance: f64,
}

impl<'s, 'g> Mean<'s, 'g> {
    fn start(graph: &'g Graph, span: &'s Span<'g>, tolerance: f64) -> Self {
        let count = span.count();
        let lengths: Vec<Expr<'g>> = (0..count).map(|i| span.length(i)).collect();
        let scales: Vec<Expr<'g>> =
            lengths.iter().map(|&length| length.equal(0.0).select(1.0, length)).collect();
        let share = 1.0 / count as f64;
        let shares: Vec<Expr<'g>> =
            lengths.iter().map(|&length| length.equal(0.0).select(0.0, graph.constant(share))).collect();
        let size = root(dot(&shares, &span.projections(&scales, &shares)));
        let cancels = size.less(tolerance);
        let mut first = vec![0.0; count];
        first[0] = 1.0;
        let first = constants(graph, &first);
        let start = shares.iter().zip(first).map(|(&share, one)| cancels.select(one, share / size)).collect();
        Self { span, lengths, scales, shares, start, tolerance }
    }

    /// What each tensor is multiplied by after so many steps.
    fn after(&self, steps: usize) -> Vec<Expr<'g>> {
        let mut mean = self.start.clone();
        let mut is_over = self.shares[0] * 0.0;
        for _ in 0..steps {
            let (next, step) = self.step(&mean);
            is_over = is_over.or(step.less(self.tolerance));
            mean = mean.iter().zip(next).map(|(&now, next)| is_over.select(now, next)).collect();
        }
        let length = total(self.lengths.iter().copied()) / self.lengths.len() as f64;
        mean.iter().zip(&self.scales).map(|(&m, &scale)| m / scale * length).collect()
    }

    fn step(&self, mean: &[Expr<'g>]) -> (Vec<Expr<'g>>, Expr<'g>) {
        let cosines: Vec<Expr<'g>> =
            self.along(mean).into_iter().map(|cosine| cosine.max(-1.0).min(1.0)).collect();
        let pull = |(&cosine, &share): (&Expr<'g>, &Expr<'g>)| {
            let angle = cosine.acos();
            let is_idle = angle.less(self.tolerance).or(angle.sin().less(OPPOSITE));
            is_idle.select(0.0, share * angle / angle.sin())
        };
        let pulls: Vec<Expr<'g>> = cosines.iter().zip(&self.shares).map(pull).collect();
        let along = dot(&pulls, &cosines);
        let tangent: Vec<Expr<'g>> = pulls.iter().zip(mean).map(|(&pull, &m)| pull - along * m).collect();
        let step = root(dot(&tangent, &self.along(&tangent)));
        let (cosine, sine) = (step.cos(), step.sin() / step);
        let next: Vec<Expr<'g>> = mean.iter().zip(&tangent).map(|(&m, &t)| m * cosine + t * sine).collect();
        let size = root(dot(&next, &self.along(&next)));
        (next.into_iter().map(|next| next / size).collect(), step)
    }

    fn along(&self, combination: &[Expr<'g>]) -> Vec<Expr<'g>> {
        self.span.projections(&self.scales, combination)
    }
}
