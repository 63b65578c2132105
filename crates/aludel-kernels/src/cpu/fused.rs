//! Runs groups of operations over the lanes of a block as one loop; see `patterns`.
//!
//! Each loop does the arithmetic of its operations in their order: a mask is the number 1 or 0 that a value is multiplied by,
//! so that signs of zeros and NaN come out as they do one operation at a time.

use super::codec;
use crate::element::Element;

/// Decodes elements and subtracts `x`.
#[inline(always)]
pub(super) fn difference(element: Element, bytes: &[u8], x: &[f32], to: &mut [f32]) {
    match element {
        Element::BF16 => {
            for ((to, &raw), &x) in to.iter_mut().zip(bytes.as_chunks().0).zip(x) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16) - x;
            }
        }
        Element::F32 | Element::F16 => {
            codec::decode(element, bytes, to);
            for (to, &x) in to.iter_mut().zip(x) {
                *to -= x;
            }
        }
    }
}

/// `x` where its magnitude is above the threshold, or equal to it in the first `kept_ties` lanes, times both factors.
#[inline(always)]
pub(super) fn keep(x: &[f32], threshold: u32, kept_ties: usize, factors: [f32; 2], to: &mut [f32]) {
    let (early, late) = to.split_at_mut(kept_ties);
    let (early_x, late_x) = x.split_at(kept_ties);
    for (to, &x) in early.iter_mut().zip(early_x) {
        *to = x * number(x.to_bits() & 0x7fff_ffff >= threshold) * factors[0] * factors[1];
    }
    for (to, &x) in late.iter_mut().zip(late_x) {
        *to = x * number(x.to_bits() & 0x7fff_ffff > threshold) * factors[0] * factors[1];
    }
}

/// `x` where the random word's upper 24 bits are below `limit`, times both factors.
#[inline(always)]
pub(super) fn draw(x: &[f32], words: &[u32], limit: u32, factors: [f32; 2], to: &mut [f32]) {
    for ((to, &x), &word) in to.iter_mut().zip(x).zip(words) {
        *to = x * number(word >> 8 < limit) * factors[0] * factors[1];
    }
}

/// The sum of the values whose sign is that of the sum of all; 0 counts as positive.
#[inline(always)]
pub(super) fn elect<const N: usize>(parts: [&[f32]; N], to: &mut [f32]) {
    for (i, to) in to.iter_mut().enumerate() {
        let (values, agreements) = agreements(parts, i);
        let mut mixed = values[0] * agreements[0];
        for part in 1..N {
            mixed += values[part] * agreements[part];
        }
        *to = mixed;
    }
}

/// As [`elect`], divided by the sum of the weights that took part; by 1 where that is 0.
#[inline(always)]
pub(super) fn elect_divided<const N: usize>(parts: [&[f32]; N], weights: [f32; N], to: &mut [f32]) {
    for (i, to) in to.iter_mut().enumerate() {
        let (values, agreements) = agreements(parts, i);
        let mut mixed = values[0] * agreements[0];
        let mut divisor = agreements[0] * weights[0];
        for part in 1..N {
            mixed += values[part] * agreements[part];
            divisor += agreements[part] * weights[part];
        }
        let is_zero = u32::from(divisor == 0.0).wrapping_neg();
        let divisor = f32::from_bits((1f32.to_bits() & is_zero) | (divisor.to_bits() & !is_zero));
        *to = mixed / divisor;
    }
}

/// The values at a lane, and 1 or 0 for each.
#[inline(always)]
fn agreements<const N: usize>(parts: [&[f32]; N], lane: usize) -> ([f32; N], [f32; N]) {
    let (mut values, mut agreements) = ([0.0; N], [0.0; N]);
    values[0] = parts[0][lane];
    let mut votes = values[0];
    for part in 1..N {
        values[part] = parts[part][lane];
        votes += values[part];
    }
    let is_positive = 0.0 <= votes;
    for part in 0..N {
        let (is_above, is_below) = (0.0 < values[part], values[part] < 0.0);
        agreements[part] = number((is_positive & is_above) | (!is_positive & is_below));
    }
    (values, agreements)
}

/// 1 or 0, by bits: as a choice it may become a branch or a gather.
#[inline(always)]
fn number(condition: bool) -> f32 {
    f32::from_bits(1f32.to_bits() & u32::from(condition).wrapping_neg())
}
