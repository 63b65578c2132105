//! Computes what exponentials and logarithms lose near 0 and 1, without a branch, so that loops become vector code.
//!
//! In and out: one lane. Coefficients are least-maximum fits made for this file (Lawson's iteration on the relative error,
//! in f64). NaN stays NaN.

use crate::nn::cpu::math::{Arithmetic, exp};

/// Where the series of [`excess`] ends.
pub(in crate::loss) const NEAR: f32 = 0.5;

/// `e^x - 1 - x` for `|x|` up to [`NEAR`], relative error below 3e-7; anything else gives any number.
#[inline(always)]
pub(in crate::loss) fn excess(a: impl Arithmetic, x: f32) -> f32 {
    const SERIES: [f32; 6] =
        [1.987_562_9e-4, 1.398_199_7e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5];
    polynomial(a, x, SERIES) * x * x
}

/// `e^x - 1` for `x <= 0`, relative error below 5e-7.
#[inline(always)]
pub(in crate::loss) fn exp_minus_one(a: impl Arithmetic, x: f32) -> f32 {
    let far = exp(a, x) - 1.0;
    if x > -NEAR { excess(a, x) + x } else { far }
}

/// `log x` for positive normal numbers, relative error below 3e-7 away from 1; near 1 it is that of `x - 1`, as exact as
/// `x` is.
#[inline(always)]
pub(in crate::loss) fn log(a: impl Arithmetic, x: f32) -> f32 {
    /// The bits of the square root of a half: exponents are cut there, so that the rest lies around 1.
    const CUT: u32 = 0x3f35_04f3;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const SERIES: [f32; 8] = [
        -7.634_493e-2,
        0.127_615_75,
        -0.131_601_83,
        0.142_017_59,
        -0.166_233_57,
        0.200_012_27,
        -0.250_008_2,
        0.333_333_3,
    ];
    let above = x.to_bits().wrapping_sub(CUT);
    let whole = (above.cast_signed() >> 23) as f32;
    let rest = f32::from_bits((above & 0x007f_ffff).wrapping_add(CUT)) - 1.0;
    let square = rest * rest;
    let tail = a.mul_add(polynomial(a, rest, SERIES) * rest, square, -0.5 * square);
    let low = a.mul_add(whole, LN2_LOW, tail);
    let result = a.mul_add(whole, LN2_HIGH, low + rest);
    if x.is_nan() { x } else { result }
}

/// `log (1 + x)` for `x` in (-1, 1], where `one_plus` is `1 + x`, rounded once. Relative error below 5e-7.
#[inline(always)]
pub(in crate::loss) fn log_one_plus(a: impl Arithmetic, x: f32, one_plus: f32) -> f32 {
    // What rounding took away, to first order.
    let lost = (x - (one_plus - 1.0)) / one_plus;
    log(a, one_plus) + if x > -NEAR { lost } else { 0.0 }
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
    use crate::nn::cpu::math::{Fused, Separate};

    /// The largest relative error over 400,000 steps, and over powers of two of each step.
    fn error(from: f32, to: f32, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let mut most: f64 = 0.0;
        for i in 0..=400_000 {
            for power in [1.0, 2f32.powi(-7), 2f32.powi(-20)] {
                let x = (from + (to - from) * i as f32 / 400_000.0) * power;
                let y = exact(f64::from(x));
                if y != 0.0 {
                    most = most.max(((f64::from(f(x)) - y) / y).abs());
                }
            }
        }
        most
    }

    #[test]
    fn errors_are_as_stated() {
        fn series(x: f64) -> f64 {
            if x.abs() > 0.01 {
                x.exp_m1() - x
            } else {
                x * x * (0.5 + x / 6.0 + x * x / 24.0 + x.powi(3) / 120.0 + x.powi(4) / 720.0)
            }
        }
        macro_rules! both {
            ($bound:literal, $from:expr, $to:expr, $f:expr, $exact:expr) => {
                let error_fused = error($from, $to, |x| $f(Fused, x), $exact);
                let error_separate = error($from, $to, |x| $f(Separate, x), $exact);
                assert!(
                    error_fused < $bound && error_separate < $bound,
                    "{error_fused:e} {error_separate:e}"
                );
            };
        }
        both!(3e-7, -0.5, 0.5, excess, series);
        both!(5e-7, -80.0, 0.0, exp_minus_one, f64::exp_m1);
        both!(5e-7, -1.0, 0.0, exp_minus_one, f64::exp_m1);
        both!(3e-7, 1e-6, 0.9, log, f64::ln);
        both!(3e-7, 1.1, 1e6, |a, x: f32| log(a, x.max(1.1)), |x: f64| x.max(f64::from(1.1f32)).ln());
        both!(5e-7, -0.999_9, 0.5, |a, x| log_one_plus(a, x, 1.0 + x), f64::ln_1p);
    }

    #[test]
    fn ends_are_exact() {
        assert_eq!(exp_minus_one(Fused, -1e30), -1.0);
        assert_eq!(exp_minus_one(Fused, 0.0), 0.0);
        assert_eq!(log(Fused, 1.0), 0.0);
        assert!(log(Fused, f32::NAN).is_nan() && exp_minus_one(Fused, f32::NAN).is_nan());
    }
}
