//! Decodes stored elements into f32 lanes and encodes lanes for storage.
//!
//! Held by its tests to [`Element::decode`] and [`Element::encode`] over every 16-bit pattern.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::block::BLOCK;
use crate::element::Element;

/// Decodes `bytes` into `to`; their lengths match.
#[inline(always)]
pub(super) fn decode(element: Element, bytes: &[u8], to: &mut [f32]) {
    match element {
        Element::F32 => {
            for (to, &raw) in to.iter_mut().zip(bytes.as_chunks().0) {
                *to = f32::from_le_bytes(raw);
            }
        }
        Element::BF16 => {
            for (to, &raw) in to.iter_mut().zip(bytes.as_chunks().0) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16);
            }
        }
        Element::F16 => decode_f16(bytes, to),
    }
}

/// Through an aligned copy, because the library's conversion (F16C where there is one) takes 16-bit slices.
fn decode_f16(bytes: &[u8], to: &mut [f32]) {
    let mut halves = [0u16; BLOCK];
    for (half, &raw) in halves.iter_mut().zip(bytes.as_chunks().0) {
        *half = u16::from_le_bytes(raw);
    }
    let halves: &[f16] = halves[..to.len()].reinterpret_cast();
    halves.convert_to_f32_slice(to);
}

/// Encodes `from` into `bytes`, to nearest with ties to even; their lengths match.
#[inline(always)]
pub(super) fn encode(element: Element, from: &[f32], bytes: &mut [u8]) {
    match element {
        Element::F32 => {
            for (raw, value) in bytes.as_chunks_mut().0.iter_mut().zip(from) {
                *raw = value.to_le_bytes();
            }
        }
        Element::BF16 => {
            for (raw, value) in bytes.as_chunks_mut().0.iter_mut().zip(from) {
                *raw = round_to_bf16(*value).to_le_bytes();
            }
        }
        Element::F16 => encode_f16(from, bytes),
    }
}

fn encode_f16(from: &[f32], bytes: &mut [u8]) {
    let mut halves = [f16::ZERO; BLOCK];
    let halves = &mut halves[..from.len()];
    halves.convert_from_f32_slice(from);
    for (raw, half) in bytes.as_chunks_mut().0.iter_mut().zip(&*halves) {
        *raw = half.to_le_bytes();
    }
}

/// Without a branch, so that the loop becomes vector instructions. NaN stays NaN (quiet, sign kept).
#[inline(always)]
fn round_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// Whether any stored element is NaN or infinite.
#[inline(always)]
pub(super) fn any_non_finite(element: Element, bytes: &[u8]) -> bool {
    match element {
        Element::F32 => {
            largest(bytes.as_chunks().0, |raw| u32::from_le_bytes(raw) & 0x7f80_0000) == 0x7f80_0000
        }
        Element::BF16 => largest(bytes.as_chunks().0, |raw| u16::from_le_bytes(raw) & 0x7f80) == 0x7f80,
        Element::F16 => largest(bytes.as_chunks().0, |raw| u16::from_le_bytes(raw) & 0x7c00) == 0x7c00,
    }
}

#[inline(always)]
fn largest<const N: usize, T: Ord + Default + Copy>(raw: &[[u8; N]], exponent: impl Fn([u8; N]) -> T) -> T {
    raw.iter().fold(T::default(), |most, &raw| most.max(exponent(raw)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sixteen_bit_pattern_decodes_as_defined() {
        let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for element in [Element::F16, Element::BF16] {
            let expected = element.decode(&stored);
            let mut got = vec![0.0; BLOCK];
            for (bytes, expected) in stored.chunks(2 * BLOCK).zip(expected.chunks(BLOCK)) {
                decode(element, bytes, &mut got);
                assert!(got.iter().zip(expected).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
                let non_finite = expected.iter().any(|v| !v.is_finite());
                assert_eq!(any_non_finite(element, bytes), non_finite);
            }
        }
    }

    #[test]
    fn encoding_rounds_as_defined() {
        // Every bf16 pattern with the lower halves that matter to rounding: just below, at and above the midpoint.
        let lower = [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let values: Vec<f32> =
            (0..=u16::MAX).flat_map(|u| lower.map(|l| f32::from_bits(u32::from(u) << 16 | l))).collect();
        for element in [Element::F32, Element::F16, Element::BF16] {
            let mut got = vec![0; BLOCK * element.size()];
            for values in values.chunks(BLOCK) {
                encode(element, values, &mut got[..values.len() * element.size()]);
                let got = element.decode(&got[..values.len() * element.size()]);
                let expected = element.decode(&element.encode(values));
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(got.iter().zip(&expected).all(same), "{element:?}");
            }
        }
    }
}
