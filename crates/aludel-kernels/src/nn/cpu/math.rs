//! Computes exp, tanh and the normal distribution in f32, without a branch, so that loops over them become vector code.
//!
//! In and out: one lane. Coefficients are least-maximum fits made for this file (Lawson's iteration on the relative error,
//! in f64); each function states its error as measured against f64 by its test. NaN stays NaN.

/// How a multiplication and an addition are done: in one rounding where the machine has the instruction.
pub(crate) trait Arithmetic: Copy {
    /// `a * b + c`.
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32;
}

/// One rounding.
#[derive(Clone, Copy)]
pub(crate) struct Fused;

/// Two roundings: for machines on which the fused one would be a call.
#[derive(Clone, Copy)]
pub(crate) struct Separate;

impl Arithmetic for Fused {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Arithmetic for Separate {
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Below this the result is zero: e^-87 is still a normal number.
const SMALLEST: f32 = -87.0;
const LARGEST: f32 = 88.0;

/// `e^x`, relative error below 2e-7; zero below -87, and above 88 as at 88.
#[inline(always)]
pub(crate) fn exp(a: impl Arithmetic, x: f32) -> f32 {
    // 1.5 * 2^23: adding it leaves the nearest whole number in the lowest bits.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, the first one short, so that its product with a whole number is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = clamp(x, SMALLEST, LARGEST);
    let shifted = a.mul_add(clamped, std::f32::consts::LOG2_E, MAGIC);
    let whole = shifted - MAGIC;
    let rest = a.mul_add(whole, -LN2_LOW, a.mul_add(whole, -LN2_HIGH, clamped));
    let p = polynomial(a, rest, [1.383_683_5e-3, 8.374_824e-3, 4.166_822_6e-2, 0.166_664_2, 0.5]);
    let p = a.mul_add(p * rest, rest, rest) + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23);
    let result = p * power;
    if x < SMALLEST { 0.0 } else { result }
}

/// `tanh x`, relative error below 5e-7.
#[inline(always)]
pub(crate) fn tanh(a: impl Arithmetic, x: f32) -> f32 {
    let magnitude = x.abs();
    let e = exp(a, -2.0 * magnitude);
    let far = (1.0 - e) / (1.0 + e);
    // The difference above loses digits near zero.
    let square = x * x;
    let near = polynomial(
        a,
        square,
        [-5.659_988_7e-3, 2.059_098_9e-2, -5.372_106_8e-2, 0.133_311_28, -0.333_332_6, 1.0],
    ) * magnitude;
    let result = if magnitude < 0.625 { near } else { far };
    result.copysign(x)
}

/// `Phi(x)`, the distribution function of the standard normal, and its density: absolute errors below 2e-7.
#[inline(always)]
pub(in crate::nn) fn normal(a: impl Arithmetic, x: f32) -> (f32, f32) {
    // erfc(z) = e^(-z^2) t p(t) with t = 1 / (1 + 0.4 z), z = |x| / sqrt 2: a form of Hastings'.
    const COEFFICIENTS: [f32; 10] = [
        -2.959_396e-2,
        0.198_011_22,
        -0.498_806_93,
        0.547_429_55,
        -0.284_361_96,
        0.272_063_8,
        0.129_680_42,
        0.214_918_93,
        0.224_952_04,
        0.225_706_9,
    ];
    const DENSITY_AT_ZERO: f32 = 0.398_942_3;
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / a.mul_add(0.4, z, 1.0);
    let e = exp(a, -0.5 * x * x);
    let tail = 0.5 * e * t * polynomial(a, t, COEFFICIENTS);
    (if x > 0.0 { 1.0 - tail } else { tail }, DENSITY_AT_ZERO * e)
}

/// `1 / (1 + e^-x)`, relative error below 4e-7 from -87 on.
#[inline(always)]
pub(in crate::nn) fn sigmoid(a: impl Arithmetic, x: f32) -> f32 {
    1.0 / (1.0 + exp(a, -x))
}

/// By comparisons that are false for NaN, so that NaN passes.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// The polynomial with the coefficient of the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(a: impl Arithmetic, x: f32, coefficients: [f32; N]) -> f32 {
    let mut value = coefficients[0];
    for &coefficient in &coefficients[1..] {
        value = a.mul_add(value, x, coefficient);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::cpu::testing::normal_distribution;

    fn steps(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| from + (to - from) * i as f32 / 200_000.0)
    }

    /// The largest error of `f` against `exact`, divided by what `unit` says.
    fn error(
        values: impl Iterator<Item = f32>,
        f: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
        unit: impl Fn(f64) -> f64,
    ) -> f64 {
        values.fold(0.0, |most: f64, x| {
            let y = exact(f64::from(x));
            most.max((f64::from(f(x)) - y).abs() / unit(y))
        })
    }

    #[test]
    fn errors_are_as_stated() {
        let relative = |y: f64| y.abs().max(f64::MIN_POSITIVE);
        let absolute = |_: f64| 1.0;
        fn both(f: impl Fn(bool) -> f64, bound: f64, name: &str) {
            for fused in [true, false] {
                let error = f(fused);
                assert!(error < bound, "{name}: {error:e}");
            }
        }
        let of = |fused: bool, f: fn(Fused, f32) -> f32, g: fn(Separate, f32) -> f32| {
            move |x| if fused { f(Fused, x) } else { g(Separate, x) }
        };
        both(|b| error(steps(-87.0, 88.0), of(b, exp, exp), f64::exp, relative), 2e-7, "exp");
        both(|b| error(steps(-1.0, 1.0), of(b, exp, exp), f64::exp, relative), 2e-7, "exp near 0");
        both(|b| error(steps(-12.0, 12.0), of(b, tanh, tanh), f64::tanh, relative), 5e-7, "tanh");
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        both(|b| error(steps(-80.0, 80.0), of(b, sigmoid, sigmoid), logistic, relative), 4e-7, "sigmoid");
        let phi = |x: f64| normal_distribution(x);
        let f = |b: bool| move |x| if b { normal(Fused, x).0 } else { normal(Separate, x).0 };
        both(|b| error(steps(-9.0, 9.0), f(b), phi, absolute), 2e-7, "normal");
        let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
        let f = |b: bool| move |x| if b { normal(Fused, x).1 } else { normal(Separate, x).1 };
        both(|b| error(steps(-9.0, 9.0), f(b), density, absolute), 2e-7, "density");
    }

    #[test]
    fn the_ends_are_exact() {
        assert_eq!(exp(Fused, 0.0), 1.0);
        assert_eq!(exp(Fused, f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(Fused, -88.0), 0.0);
        assert!(exp(Fused, f32::INFINITY).is_finite());
        assert!(exp(Fused, f32::NAN).is_nan());
        assert_eq!(tanh(Fused, f32::INFINITY), 1.0);
        assert_eq!(tanh(Fused, f32::NEG_INFINITY), -1.0);
        assert_eq!(tanh(Fused, -0.0).to_bits(), (-0.0f32).to_bits());
        assert!(tanh(Fused, f32::NAN).is_nan());
        assert_eq!(normal(Fused, f32::INFINITY).0, 1.0);
        assert_eq!(normal(Fused, f32::NEG_INFINITY).0, 0.0);
        assert_eq!(sigmoid(Fused, 100.0), 1.0);
    }
}
