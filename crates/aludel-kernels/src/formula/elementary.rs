//! Computes exponentials and logarithms from additions, multiplications and bits alone.
//!
//! In: any f64. Out: the function to a few units in the last place of f64, so that an f32 result is the correctly rounded
//! one but for rare ties. The standard library leaves these to the system, whose results differ from one to the next and
//! whose calls keep a loop from becoming vector instructions; these are the same bits everywhere. No table, no branch.

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};

/// `LN_2` without its last bits, so that a small whole multiple of it is exact; and the rest.
const LN_2_HIGH: f64 = f64::from_bits(LN_2.to_bits() & !0xffff_ffff);
const LN_2_LOW: f64 = 4.749_325_039_031_672_6e-7;

/// Adding it to a number of magnitude below 2^51 leaves the nearest whole number in the low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// Below it the exponential is taken for 0, above its opposite for infinity.
const LARGEST: f64 = 708.0;

/// Below it three terms of a series are exact to f64.
const SMALL: f64 = 1e-5;

/// The exponential. Below -708 it is 0, above 708 infinity.
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    let within = x.clamp(-LARGEST, LARGEST);
    let rounded = within * LOG2_E + ROUNDER;
    let whole = rounded - ROUNDER;
    let rest = within - whole * LN_2_HIGH - whole * LN_2_LOW;
    let mut sum = 1.0 / FACTORIALS[0];
    for factorial in &FACTORIALS[1..] {
        sum = sum * rest + 1.0 / factorial;
    }
    // The low bits of `rounded` are the whole number, which belongs into the exponent.
    let power = f64::from_bits((rounded.to_bits() << 52).wrapping_add(1023 << 52));
    let value = sum * power;
    let value = if x > LARGEST { f64::INFINITY } else { value };
    if x < -LARGEST { 0.0 } else { value }
}

/// 13! to 0!: the remainder is below 0.35, whose fourteenth power over 14! is below 1e-17.
const FACTORIALS: [f64; 14] = [
    6_227_020_800.0,
    479_001_600.0,
    39_916_800.0,
    3_628_800.0,
    362_880.0,
    40_320.0,
    5_040.0,
    720.0,
    120.0,
    24.0,
    6.0,
    2.0,
    1.0,
    1.0,
];

/// The natural logarithm: negative infinity at 0, NaN below it.
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    const SHIFT: f64 = (1u64 << 54) as f64;
    let is_subnormal = x < f64::MIN_POSITIVE;
    let normal = if is_subnormal { x * SHIFT } else { x };
    let bits = normal.to_bits();
    let mantissa = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 1.0f64.to_bits());
    // The exponent becomes a number by way of the low bits of 2^52.
    const TWO_TO_52: f64 = (1u64 << 52) as f64;
    let exponent = f64::from_bits(bits >> 52 | TWO_TO_52.to_bits()) - TWO_TO_52 - 1023.0;
    let exponent = if is_subnormal { exponent - 54.0 } else { exponent };
    let is_large = mantissa > SQRT_2;
    let mantissa = if is_large { mantissa * 0.5 } else { mantissa };
    let exponent = if is_large { exponent + 1.0 } else { exponent };
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    // ln m = 2 (s + s^3 / 3 + s^5 / 5 + ...), where s^2 is below 0.0295.
    let mut sum = 1.0 / 23.0;
    for odd in [21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    let value = exponent * LN_2_HIGH + (2.0 * ratio * sum + exponent * LN_2_LOW);
    let value = if x == f64::INFINITY { x } else { value };
    let value = if x == 0.0 { f64::NEG_INFINITY } else { value };
    if x >= 0.0 { value } else { f64::NAN }
}

/// The exponential less 1, to a relative 1e-11 near 0.
#[inline(always)]
pub(crate) fn exp_m1(x: f64) -> f64 {
    let near = x + x * x * (0.5 + x * (1.0 / 6.0));
    let far = exp(x) - 1.0;
    if x.abs() < SMALL { near } else { far }
}

/// The natural logarithm of 1 more, to a relative 1e-11 near 0.
#[inline(always)]
pub(crate) fn ln_1p(x: f64) -> f64 {
    let near = x - x * x * (0.5 - x * (1.0 / 3.0));
    let far = ln(1.0 + x);
    if x.abs() < SMALL { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all sizes and both signs.
    fn numbers() -> impl Iterator<Item = f64> {
        (-1074..1024).flat_map(|power| [1.0, 1.2, 1.414, 1.415, 1.99].map(|m| m * 2f64.powi(power)))
    }

    fn close(a: f64, b: f64, tolerance: f64) -> bool {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * b.abs()
    }

    #[test]
    fn exponentials_and_logarithms_agree_with_the_library() {
        for x in numbers().filter(|&x| x > 0.0) {
            assert!(close(ln(x), x.ln(), 4e-16), "ln {x:e}: {:e}, {:e}", ln(x), x.ln());
            assert!(ln(-x).is_nan());
        }
        for x in numbers().flat_map(|x| [x, -x]).filter(|x| x.abs() < LARGEST) {
            assert!(close(exp(x), x.exp(), 2e-15), "exp {x}: {:e}, {:e}", exp(x), x.exp());
            assert!(close(exp_m1(x), x.exp_m1(), 2e-11), "expm1 {x:e}");
            assert!(close(ln_1p(x), x.ln_1p(), 2e-11), "log1p {x:e}: {:e}, {:e}", ln_1p(x), x.ln_1p());
        }
    }

    #[test]
    fn f32_results_are_those_of_f64_rounded() {
        for i in 0..200_000u32 {
            let x = f32::from_bits(i.wrapping_mul(21_473) | 1);
            if x.is_finite() {
                let wide = f64::from(x);
                assert_eq!((exp(wide) as f32).to_bits(), (wide.exp() as f32).to_bits(), "exp {x:e}");
                assert_eq!(ln(wide.abs()) as f32, wide.abs().ln() as f32, "ln {x:e}");
            }
        }
    }

    #[test]
    fn the_ends_are_those_of_the_library() {
        assert_eq!((exp(f64::INFINITY), exp(f64::NEG_INFINITY), exp(0.0)), (f64::INFINITY, 0.0, 1.0));
        assert_eq!((ln(f64::INFINITY), ln(0.0), ln(1.0)), (f64::INFINITY, f64::NEG_INFINITY, 0.0));
        assert!(exp(f64::NAN).is_nan() && ln(f64::NAN).is_nan() && exp_m1(f64::NAN).is_nan());
        assert_eq!((exp_m1(0.0), ln_1p(0.0), ln_1p(-1.0)), (0.0, 0.0, f64::NEG_INFINITY));
        assert!(ln_1p(-1.5).is_nan() && exp_m1(f64::NEG_INFINITY) == -1.0);
    }
}
