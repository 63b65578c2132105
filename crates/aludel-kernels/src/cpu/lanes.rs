//! Runs one operation over the lanes of a block: plain loops that the compiler turns into vector instructions of
//! whichever level the caller was compiled for.

use super::codec;
use crate::formula::{Binary, Unary, elementary};

/// A whole block of operand values, or one value for all lanes.
#[derive(Clone, Copy)]
pub(super) enum Lanes<'a> {
    Each(&'a [f32]),
    All(f32),
}

#[inline(always)]
pub(super) fn unary(op: Unary, x: &[f32], to: &mut [f32]) {
    match op {
        Unary::Negate => map(x, to, |x| -x),
        Unary::Absolute => map(x, to, f32::abs),
        Unary::SquareRoot => map(x, to, f32::sqrt),
        Unary::Exponential => map(x, to, |x| elementary::exp(f64::from(x)) as f32),
        Unary::ExponentialLessOne => map(x, to, |x| elementary::exp_m1(f64::from(x)) as f32),
        Unary::Logarithm => map(x, to, |x| elementary::ln(f64::from(x)) as f32),
        Unary::LogarithmOfOneMore => map(x, to, |x| elementary::ln_1p(f64::from(x)) as f32),
        Unary::RoundToE4m3 => map(x, to, codec::through_e4m3),
        Unary::Sine | Unary::Cosine | Unary::ArcCosine => unreachable!("verified: not on elements"),
    }
}

#[inline(always)]
pub(super) fn binary(op: Binary, a: Lanes<'_>, b: Lanes<'_>, to: &mut [f32]) {
    match op {
        Binary::Add => zip(a, b, to, |a, b| a + b),
        Binary::Subtract => zip(a, b, to, |a, b| a - b),
        Binary::Multiply => zip(a, b, to, |a, b| a * b),
        Binary::Divide => zip(a, b, to, |a, b| a / b),
        Binary::Minimum => zip(a, b, to, |a, b| if b < a { b } else { a }),
        Binary::Maximum => zip(a, b, to, |a, b| if b > a { b } else { a }),
        Binary::Less => zip(a, b, to, |a, b| truth(a < b)),
        Binary::LessOrEqual => zip(a, b, to, |a, b| truth(a <= b)),
        Binary::Equal => zip(a, b, to, |a, b| truth(a == b)),
    }
}

#[inline(always)]
pub(super) fn select(c: &[f32], a: Lanes<'_>, b: Lanes<'_>, to: &mut [f32]) {
    match (a, b) {
        (Lanes::Each(a), Lanes::Each(b)) => {
            for (((to, &c), &a), &b) in to.iter_mut().zip(c).zip(a).zip(b) {
                *to = choose(c, a, b);
            }
        }
        (Lanes::Each(a), Lanes::All(b)) => {
            for ((to, &c), &a) in to.iter_mut().zip(c).zip(a) {
                *to = choose(c, a, b);
            }
        }
        (Lanes::All(a), Lanes::Each(b)) => {
            for ((to, &c), &b) in to.iter_mut().zip(c).zip(b) {
                *to = choose(c, a, b);
            }
        }
        (Lanes::All(a), Lanes::All(b)) => {
            for (to, &c) in to.iter_mut().zip(c) {
                *to = choose(c, a, b);
            }
        }
    }
}

/// By bits: as a branch it becomes a choice between two addresses, and the loop a gather several times slower.
#[inline(always)]
fn choose(c: f32, a: f32, b: f32) -> f32 {
    let mask = u32::from(c != 0.0).wrapping_neg();
    f32::from_bits((a.to_bits() & mask) | (b.to_bits() & !mask))
}

/// 1 where the magnitude is above the threshold, or equal to it at an index up to the last one kept.
///
/// `kept_ties` is how many of these lanes come no later than the last one kept.
#[inline(always)]
pub(super) fn keep(x: &[f32], threshold: u32, kept_ties: usize, to: &mut [f32]) {
    let magnitude = |x: f32| x.to_bits() & 0x7fff_ffff;
    let (early, late) = to.split_at_mut(kept_ties);
    map(&x[..kept_ties], early, |x| truth(magnitude(x) >= threshold));
    map(&x[kept_ties..], late, |x| truth(magnitude(x) > threshold));
}

#[inline(always)]
fn map(x: &[f32], to: &mut [f32], f: impl Fn(f32) -> f32) {
    for (to, &x) in to.iter_mut().zip(x) {
        *to = f(x);
    }
}

#[inline(always)]
fn zip(a: Lanes<'_>, b: Lanes<'_>, to: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Lanes::Each(a), Lanes::Each(b)) => {
            for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
                *to = f(a, b);
            }
        }
        (Lanes::Each(a), Lanes::All(b)) => map(a, to, |a| f(a, b)),
        (Lanes::All(a), Lanes::Each(b)) => map(b, to, |b| f(a, b)),
        (Lanes::All(a), Lanes::All(b)) => to.fill(f(a, b)),
    }
}

#[inline(always)]
fn truth(condition: bool) -> f32 {
    f32::from(u8::from(condition))
}
