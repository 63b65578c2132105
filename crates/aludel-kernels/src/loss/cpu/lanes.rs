//! Runs the inner loops of the losses over one block of columns: plain code that becomes vector instructions of whichever
//! level the caller was compiled for.
//!
//! In and out: slices of equal length, a multiple of [`LANES`]; what is behind the last column is [`FLOOR`], which has no
//! probability and so adds nothing. Sums are in f64, in a fixed number of lanes.

use crate::loss::divergence::{
    Balanced, EXCLUDED, Kind, Point, Weights, forward_kl, jensen_shannon, mixed, reverse_kl,
    skewed_forward_kl, skewed_reverse_kl, soft_cross_entropy, total_variation,
};
use crate::nn::cpu::lanes::sum_of_squares;
use crate::nn::cpu::math::{Arithmetic, exp, tanh};

/// Lanes of a sum.
pub(super) const LANES: usize = 16;

/// Stands for a logit of `-inf`, with which no difference is infinite or NaN. Logits below it count as `-inf`.
pub(super) const FLOOR: f32 = -1e30;

/// `to[i] = max(from[i], FLOOR)`, NaN kept; [`FLOOR`] behind the end of `from`.
#[inline(always)]
pub(super) fn floor(_: impl Arithmetic, from: &[f32], to: &mut [f32]) {
    let (head, tail) = to.split_at_mut(from.len());
    for (to, &z) in head.iter_mut().zip(from) {
        *to = if z < FLOOR { FLOOR } else { z };
    }
    tail.fill(FLOOR);
}

/// The greatest element and `most`; NaN is passed over.
#[inline(always)]
pub(super) fn greatest(_: impl Arithmetic, x: &[f32], most: f32) -> f32 {
    let mut lanes = [most; LANES];
    for group in x.as_chunks::<LANES>().0 {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.into_iter().fold(most, |most, x| if x > most { x } else { most })
}

/// The sum of all elements.
#[inline(always)]
pub(super) fn sum(_: impl Arithmetic, x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for group in x.as_chunks::<LANES>().0 {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane += f64::from(x);
        }
    }
    lanes.into_iter().sum()
}

/// `to[i] = scale * e^((x[i] - most) * inverse)`.
#[inline(always)]
pub(super) fn exponentials(
    a: impl Arithmetic,
    x: &[f32],
    most: f32,
    inverse: f32,
    scale: f32,
    to: &mut [f32],
) {
    for (to, &x) in to.iter_mut().zip(x) {
        *to = exp(a, (x - most) * inverse) * scale;
    }
}

/// The least element above [`FLOOR`] and the greatest; `None` where one is NaN or infinity.
#[inline(always)]
pub(super) fn extent(_: impl Arithmetic, x: &[f32]) -> Option<(f32, f32)> {
    let (mut least, mut most) = ([f32::INFINITY; LANES], [FLOOR; LANES]);
    let mut is_sound = [true; LANES];
    for group in x.as_chunks::<LANES>().0 {
        for (lane, &x) in group.iter().enumerate() {
            is_sound[lane] &= x < f32::INFINITY;
            least[lane] = if x > FLOOR && x < least[lane] { x } else { least[lane] };
            most[lane] = if x > most[lane] { x } else { most[lane] };
        }
    }
    let (least, most) =
        (least.into_iter().fold(f32::INFINITY, f32::min), most.into_iter().fold(FLOOR, f32::max));
    is_sound.into_iter().all(|lane| lane).then_some((least, most))
}

/// `to[i] = most - (top - x[i]) / step`, to nearest, and 0 where that is less. `most` is at most 255.
#[inline(always)]
pub(super) fn levels(_: impl Arithmetic, x: &[f32], top: f32, step: f32, most: u8, to: &mut [u8]) {
    // Beside 2^23 the last digit is that of whole numbers.
    const WHOLE: f32 = 8_388_608.0;
    for (to, &x) in to.iter_mut().zip(x) {
        let down = (top - x) / step;
        let down = if down < f32::from(most) { down } else { f32::from(most) };
        *to = most - (down + WHOLE).to_bits() as u8;
    }
}

/// The sum of the elements whose level is 0.
#[inline(always)]
pub(super) fn sum_below(_: impl Arithmetic, x: &[f32], levels: &[u8]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    for (group, levels) in x.as_chunks::<LANES>().0.iter().zip(levels.as_chunks::<LANES>().0) {
        for (lane, (&x, &level)) in lanes.iter_mut().zip(group.iter().zip(levels)) {
            *lane += f64::from(if level == 0 { x } else { 0.0 });
        }
    }
    lanes.into_iter().sum()
}

/// `to = s + t (z - s)`, with both logits counted from their greatest.
#[inline(always)]
pub(super) fn interpolate(
    a: impl Arithmetic,
    student: (&[f32], f32),
    teacher: (&[f32], f32),
    t: f32,
    to: &mut [f32],
) {
    for ((to, &s), &z) in to.iter_mut().zip(student.0).zip(teacher.0) {
        let s = s - student.1;
        *to = a.mul_add(t, (z - teacher.1) - s, s);
    }
}

/// What turns a row's logits into probabilities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales {
    /// `1 / tau`.
    pub(super) inverse: f32,
    /// The student's greatest logit, the inverse and the logarithm of its sum of exponentials.
    pub(super) student: (f32, f32, f32),
    /// The target's greatest logit and the inverse of its sum of exponentials.
    pub(super) target: (f32, f32),
    /// `log P - log Q = rate (z_teacher - z_student - shift)`, with the shift in two parts.
    pub(super) rate: f32,
    pub(super) shift: (f32, f32),
}

/// The columns of a block as [`Point`]s, one array for each part.
#[derive(Debug)]
pub(super) struct Points<'a> {
    pub(super) p: &'a mut [f32],
    pub(super) q: &'a mut [f32],
    pub(super) d: &'a mut [f32],
    pub(super) log_q: &'a mut [f32],
}

/// Makes points from the logits of student, teacher and target.
#[inline(always)]
pub(super) fn points(
    a: impl Arithmetic,
    scales: Scales,
    student: &[f32],
    teacher: &[f32],
    target: &[f32],
    points: Points<'_>,
) {
    let Scales { inverse, student: (most_q, scale_q, log_sum), target: (most_p, scale_p), rate, shift } =
        scales;
    let len = student.len();
    let (teacher, target) = (&teacher[..len], &target[..len]);
    let Points { p, q, d, log_q } = points;
    let (p, q, d, log_q) = (&mut p[..len], &mut q[..len], &mut d[..len], &mut log_q[..len]);
    for i in 0..len {
        let from_most = (student[i] - most_q) * inverse;
        log_q[i] = from_most - log_sum;
        q[i] = exp(a, from_most) * scale_q;
        p[i] = exp(a, (target[i] - most_p) * inverse) * scale_p;
        // The difference and what its rounding lost (Knuth's two-sum): where P is close to Q, all that is left is that.
        let (z, s) = (teacher[i], student[i]);
        let high = z - s;
        let back = z - high;
        let low = (z - (high + back)) + (back - s);
        let difference = ((high - shift.0) + (low - shift.1)) * rate;
        d[i] = if z <= FLOOR { EXCLUDED } else { difference };
    }
}

/// Replaces `P` of every point by `of_p P + of_q Q`.
#[inline(always)]
pub(super) fn mix(a: impl Arithmetic, weights: Weights, points: Points<'_>) {
    let len = points.p.len();
    let Points { p, q, d, log_q } = points;
    let (q, d, log_q) = (&q[..len], &mut d[..len], &log_q[..len]);
    for i in 0..len {
        let point = mixed(a, weights, Point { p: p[i], q: q[i], d: d[i], log_q: log_q[i] });
        p[i] = point.p;
        d[i] = point.d;
    }
}

/// Value and flow of every point. A slope becomes the flow `q (slope - origin)`, whose sum over the row is still to be
/// taken off: with the slope of the likeliest column as the origin, that sum is small where one column has nearly all the
/// probability, and nothing cancels.
#[inline(always)]
pub(super) fn locals(
    a: impl Arithmetic,
    kind: Kind,
    origin: f32,
    points: Points<'_>,
    value: &mut [f32],
    flow: &mut [f32],
) {
    for_each_point::<true>(a, kind, origin, points, &mut value[..flow.len()], flow);
}

/// As [`locals`], without the values.
#[inline(always)]
pub(super) fn flows(a: impl Arithmetic, kind: Kind, origin: f32, points: Points<'_>, flow: &mut [f32]) {
    for_each_point::<false>(a, kind, origin, points, &mut [], flow);
}

#[inline(always)]
fn for_each_point<const VALUES: bool>(
    a: impl Arithmetic,
    kind: Kind,
    origin: f32,
    points: Points<'_>,
    value: &mut [f32],
    flow: &mut [f32],
) {
    let len = flow.len();
    let (p, q, d, log_q) = (&points.p[..len], &points.q[..len], &points.d[..len], &points.log_q[..len]);
    // A macro, for a closure of this size would not be inlined, and then be compiled for the lowest level.
    macro_rules! each {
        ($x:ident => $local:expr) => {
            for i in 0..len {
                let $x = Point { p: p[i], q: q[i], d: d[i], log_q: log_q[i] };
                let Balanced { value: of_value, slope } = $local;
                if VALUES {
                    value[i] = of_value;
                }
                flow[i] = slope;
            }
        };
    }
    match kind {
        Kind::ForwardKl => each!(x => forward_kl(a, x)),
        Kind::ReverseKl => each!(x => reverse_kl(a, x).from(origin, x)),
        Kind::JensenShannon(weights) => each!(x => jensen_shannon(a, weights, x).from(origin, x)),
        Kind::SkewedForwardKl(weights) => each!(x => skewed_forward_kl(a, weights, x).from(origin, x)),
        Kind::SkewedReverseKl(weights) => each!(x => skewed_reverse_kl(a, weights, x).from(origin, x)),
        Kind::TotalVariation => each!(x => total_variation(a, x).from(origin, x)),
        Kind::SoftCrossEntropy => each!(x => soft_cross_entropy(a, x)),
    }
}

/// The slope of one point: an origin for [`locals`]. A divergence that has flows needs none.
#[inline(always)]
pub(super) fn slope(a: impl Arithmetic, kind: Kind, point: Point) -> f32 {
    match kind {
        Kind::ForwardKl | Kind::SoftCrossEntropy => 0.0,
        Kind::ReverseKl => reverse_kl(a, point).slope,
        Kind::JensenShannon(weights) => jensen_shannon(a, weights, point).slope,
        Kind::SkewedForwardKl(weights) => skewed_forward_kl(a, weights, point).slope,
        Kind::SkewedReverseKl(weights) => skewed_reverse_kl(a, weights, point).slope,
        Kind::TotalVariation => total_variation(a, point).slope,
    }
}

/// Squared differences of logits, `value = difference^2 / count` and `flow = 2 difference / count`, with
/// `difference = rate (s - z)`.
#[inline(always)]
pub(super) fn squares(
    _: impl Arithmetic,
    rate: f32,
    share: f32,
    student: &[f32],
    teacher: &[f32],
    value: &mut [f32],
    flow: &mut [f32],
) {
    let len = student.len();
    let (teacher, value, flow) = (&teacher[..len], &mut value[..len], &mut flow[..len]);
    for i in 0..len {
        let difference = if teacher[i] <= FLOOR { 0.0 } else { (student[i] - teacher[i]) * rate };
        value[i] = difference * difference * share;
        flow[i] = 2.0 * difference * share;
    }
}

/// `gradient += factor (flow - total q)`.
#[inline(always)]
pub(super) fn add_gradient(
    a: impl Arithmetic,
    factor: f32,
    total: f32,
    flow: &[f32],
    q: &[f32],
    gradient: &mut [f32],
) {
    for ((gradient, &flow), &q) in gradient.iter_mut().zip(flow).zip(q) {
        *gradient = a.mul_add(factor, a.mul_add(-total, q, flow), *gradient);
    }
}

/// Takes a gradient back through the soft cap that gave `z`.
#[inline(always)]
pub(super) fn through_cap(_: impl Arithmetic, cap: f32, z: &[f32], gradient: &mut [f32]) {
    let inverse = 1.0 / cap;
    for (gradient, &z) in gradient.iter_mut().zip(z) {
        let bent = z * inverse;
        *gradient *= (1.0 - bent) * (1.0 + bent);
    }
}

/// `z = cap tanh(z / cap)`.
#[inline(always)]
pub(super) fn soft_cap(a: impl Arithmetic, cap: f32, z: &mut [f32]) {
    let inverse = 1.0 / cap;
    for z in z {
        *z = cap * tanh(a, *z * inverse);
    }
}

/// `mean (x - target)^2`; `x` becomes `factor` times the gradient.
#[inline(always)]
pub(super) fn mean_square(_: impl Arithmetic, factor: f64, target: &[f32], x: &mut [f32]) -> f64 {
    let count = x.len() as f64;
    let value = fold(x, target, |x, t| (f64::from(x) - f64::from(t)).powi(2)) / count;
    let slope = (2.0 * factor / count) as f32;
    for (x, &target) in x.iter_mut().zip(target) {
        *x = slope * (*x - target);
    }
    value
}

/// `1 - cos(x, target)`; `x` becomes `factor` times the gradient.
#[inline(always)]
pub(super) fn cosine(a: impl Arithmetic, factor: f64, target: &[f32], x: &mut [f32]) -> f64 {
    let dot = fold(x, target, |x, t| f64::from(x) * f64::from(t));
    let (of_x, of_target) = (sum_of_squares(a, x), sum_of_squares(a, target));
    let norms = (of_x * of_target).sqrt();
    if norms == 0.0 {
        x.fill(0.0);
        return 1.0;
    }
    let cosine = dot / norms;
    let (along_x, along_target) = (factor * cosine / of_x, factor / norms);
    for (x, &target) in x.iter_mut().zip(target) {
        *x = (along_x * f64::from(*x) - along_target * f64::from(target)) as f32;
    }
    1.0 - cosine
}

/// The sum of `f` over pairs, for slices of any length.
#[inline(always)]
fn fold(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (x_groups, x_rest) = x.as_chunks::<LANES>();
    let (y_groups, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in x_groups.iter().zip(y_groups) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(x[i], y[i]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane += f(x, y);
    }
    lanes.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::cpu::math::{Fused, Separate};

    const EVERY: [Kind; 7] = [
        Kind::ForwardKl,
        Kind::ReverseKl,
        Kind::JensenShannon(Weights { of_p: 0.25, of_q: 0.75 }),
        Kind::SkewedForwardKl(Weights { of_p: 0.125, of_q: 0.875 }),
        Kind::SkewedReverseKl(Weights { of_p: 0.875, of_q: 0.125 }),
        Kind::TotalVariation,
        Kind::SoftCrossEntropy,
    ];

    fn values_and_flows(a: impl Arithmetic, kind: Kind, with_mixture: bool) -> (f64, Vec<f32>) {
        let logits = |step: f32| (0..64).map(|i| 6.0 * (0.7 + step * i as f32).sin()).collect::<Vec<f32>>();
        let (student, teacher) = (logits(1.3), logits(1.1));
        let scales = Scales {
            inverse: 0.5,
            student: (6.0, 0.04, 25f32.ln()),
            target: (6.0, 0.05),
            rate: 0.5,
            shift: (0.25, 1e-9),
        };
        let mut arrays = [const { [0.0; 64] }; 4];
        let [p, q, d, log_q] = &mut arrays;
        points(a, scales, &student, &teacher, &teacher, Points { p, q, d, log_q });
        if with_mixture {
            mix(a, Weights { of_p: 0.75, of_q: 0.25 }, Points { p, q, d, log_q });
        }
        let (mut value, mut flow, mut again) = ([0.0; 64], [0.0; 64], [0.0; 64]);
        locals(a, kind, 0.25, Points { p, q, d, log_q }, &mut value, &mut flow);
        flows(a, kind, 0.25, Points { p, q, d, log_q }, &mut again);
        assert_eq!(flow, again);
        (sum(a, &value), flow.to_vec())
    }

    /// Machines without the fused instruction run the same loops with two roundings.
    #[test]
    fn two_roundings_are_as_good_as_one() {
        for kind in EVERY {
            for with_mixture in [false, true] {
                let (value, flow) = values_and_flows(Fused, kind, with_mixture);
                let (again, flow_again) = values_and_flows(Separate, kind, with_mixture);
                assert!(value > 0.01 && (value - again).abs() < 1e-6 * value, "{kind:?}: {value} {again}");
                let most = flow.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                assert!(most > 1e-3, "{kind:?}");
                for (a, b) in flow.iter().zip(flow_again) {
                    assert!((a - b).abs() < 1e-6 * most, "{kind:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn sums_take_every_length() {
        for len in [0, 1, 15, 16, 17, 41] {
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let expected: f64 = (0..len).map(|i| f64::from(i * i)).sum();
            assert_eq!(sum_of_squares(Fused, &x), expected);
        }
        assert_eq!(sum(Fused, &[0.5; 32]), 16.0);
    }
}
