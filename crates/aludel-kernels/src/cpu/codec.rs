//! Decodes stored elements into f32 lanes and encodes lanes for storage.
//!
//! Held by its tests to [`Element::decode`] and [`Encoding::encode`] over every 16-bit pattern.

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::block::BLOCK;
use crate::element::{Element, Encoding};

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

/// Decodes any number of stored elements, for those who read them outside of a pass; `bytes` and `to` are equally many.
pub fn decode_stored(element: Element, bytes: &[u8], to: &mut [f32]) {
    for (bytes, to) in bytes.chunks(BLOCK * element.size()).zip(to.chunks_mut(BLOCK)) {
        decode(element, bytes, to);
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
pub(super) fn encode(encoding: Encoding, from: &[f32], bytes: &mut [u8]) {
    match encoding {
        Encoding::Plain(Element::F32) => {
            for (raw, value) in bytes.as_chunks_mut().0.iter_mut().zip(from) {
                *raw = value.to_le_bytes();
            }
        }
        Encoding::Plain(Element::BF16) => {
            for (raw, value) in bytes.as_chunks_mut().0.iter_mut().zip(from) {
                *raw = round_to_bf16(*value).to_le_bytes();
            }
        }
        Encoding::Plain(Element::F16) => encode_f16(from, bytes),
        Encoding::E4m3 => {
            for (raw, value) in bytes.iter_mut().zip(from) {
                *raw = round_to_e4m3(*value);
            }
        }
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

/// The code of [`through_e4m3`].
#[inline(always)]
fn round_to_e4m3(value: f32) -> u8 {
    /// The difference of the exponents' biases, where a float has its exponent.
    const BIAS: u32 = (127 - 7) << 23;
    let magnitude = through_e4m3(value).abs();
    let normal = magnitude.to_bits().wrapping_sub(BIAS) >> 20;
    let small = (magnitude + SMALL).to_bits().wrapping_sub(SMALL.to_bits());
    let code = if magnitude < LEAST_NORMAL { small } else { normal };
    let code = if value.is_nan() { 0x7f } else { code };
    (code | (value.to_bits() >> 24 & 0x80)) as u8
}

/// The nearest number of E4M3. Without a branch, as [`round_to_bf16`].
#[inline(always)]
pub(super) fn through_e4m3(value: f32) -> f32 {
    let magnitude = value.abs();
    let magnitude = if magnitude > Encoding::E4M3_LARGEST { Encoding::E4M3_LARGEST } else { magnitude };
    let bits = magnitude.to_bits();
    let normal = f32::from_bits(bits.wrapping_add(0x7_ffff + ((bits >> 20) & 1)) & !0xf_ffff);
    let rounded = if magnitude < LEAST_NORMAL { (magnitude + SMALL) - SMALL } else { normal };
    let rounded = f32::from_bits(rounded.to_bits() | (value.to_bits() & 0x8000_0000));
    if value.is_nan() { value } else { rounded }
}

/// Of E4M3.
const LEAST_NORMAL: f32 = 0.015_625;

/// Where floats are as far apart as the numbers of E4M3 below the least normal one, so that an addition rounds these.
const SMALL: f32 = 16_384.0;

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

/// As [`any_non_finite`], of values that are decoded.
#[inline(always)]
pub(super) fn any_non_finite_value(values: &[f32]) -> bool {
    // A fold without an end before the last: the compiler makes vector code of it.
    values.iter().fold(0, |most, value| most.max(value.to_bits() & 0x7f80_0000)) == 0x7f80_0000
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
                assert_eq!(any_non_finite_value(expected), non_finite);
            }
            let mut all = vec![0.0; expected.len()];
            decode_stored(element, &stored, &mut all);
            assert!(all.iter().zip(&expected).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
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
                encode(element.into(), values, &mut got[..values.len() * element.size()]);
                let got = element.decode(&got[..values.len() * element.size()]);
                let expected = element.decode(&element.encode(values));
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(got.iter().zip(&expected).all(same), "{element:?}");
            }
        }
    }

    #[test]
    fn fp8_rounds_as_defined() {
        // Every pattern of sign, exponent and the upper seven bits of the mantissa, with lower halves beside midpoints.
        let lower = [0u32, 1, 0x7fff, 0x8000, 0xffff];
        let values: Vec<f32> =
            (0..=u16::MAX).flat_map(|u| lower.map(|l| f32::from_bits(u32::from(u) << 16 | l))).collect();
        let mut got = vec![0; values.len()];
        encode(Encoding::E4m3, &values, &mut got);
        let expected = Encoding::E4m3.encode(&values);
        let differ = got.iter().zip(&expected).position(|(got, expected)| got != expected);
        assert_eq!(differ.map(|at| (values[at], got[at], expected[at])), None);
    }

    #[test]
    fn fp8_is_the_nearest_number_and_the_even_one_of_two() {
        let code = |value: f32| Encoding::E4m3.encode(&[value])[0];
        let least = 2f32.powi(-9);
        for (value, expected) in [
            (0.0, 0x00),
            (-0.0, 0x80),
            (1.0, 0x38),
            (448.0, 0x7e),
            (463.0, 0x7e),
            (1e30, 0x7e),
            (f32::NEG_INFINITY, 0xfe),
            (0.5 * least, 0x00),
            (1.5 * least, 0x02),
            (2.5 * least, 0x02),
            (7.5 * least, 0x08),
            (1.0625, 0x38),
            (1.1875, 0x3a),
            (432.0, 0x7e),
            (431.9, 0x7d),
        ] {
            assert_eq!(code(value), expected, "{value}");
        }
        assert_eq!(code(f32::NAN) & 0x7f, 0x7f);
    }
}
