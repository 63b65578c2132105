//! Multiplies FP8 values by the scales that are stored beside them.
//!
//! A scale tensor has the weight's sides, each either whole, 1, or divided by a block's side and rounded up. So one rule serves a scale for the
//! tensor, for its rows (channels) and for its blocks: the scale of an element is found along each side by dividing its index. The product is
//! computed in f32.

use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

use crate::checkpoint::TensorEntry;
use crate::dtype::element_bytes;
use crate::map::WeightMap;

/// An FP8 tensor and its scales.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scaled {
    stored: TensorEntry,
    scale: Scale,
}

/// A tensor of scales.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) name: String,
    pub(crate) entry: TensorEntry,
    /// Elements of the weight that one scale is for, along each side.
    pub(crate) block: Vec<u64>,
}

impl Scale {
    /// Fits a tensor of scales to a weight. `block` is that of the last two sides, where the checkpoint has blocks.
    ///
    /// Errors: what does not fit.
    pub(crate) fn fit(
        name: &str,
        entry: &TensorEntry,
        weight: &TensorEntry,
        block: Option<[u64; 2]>,
    ) -> Result<Self, String> {
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E8M0) {
            return Err(format!("its scales `{name}` are of type {}", entry.dtype));
        }
        let sides: Vec<u64> = weight.shape.iter().map(|&side| side as u64).collect();
        let mut scales: Vec<u64> = entry.shape.iter().map(|&side| side as u64).collect();
        // A vector of scales is one for each row; a single number is one for the tensor.
        let is_by_row = scales.len() == 1 && sides.len() > 1 && scales[0] == sides[0] && scales[0] != 1;
        if is_by_row || scales.iter().product::<u64>() == 1 {
            scales.resize(sides.len(), 1);
        }
        let unfit = || format!("its scales `{name}` are {:?}, and it is {:?}", entry.shape, weight.shape);
        if scales.len() != sides.len() {
            return Err(unfit());
        }
        let blocks_begin = sides.len().saturating_sub(2);
        let fit = |(at, (&side, &scales)): (usize, (&u64, &u64))| {
            let block = block.and_then(|block| block.get(at.checked_sub(blocks_begin)?).copied());
            match (scales, block) {
                (1, _) => Some(side.max(1)),
                (scales, _) if scales == side => Some(1),
                (scales, Some(block)) if block > 0 && scales == side.div_ceil(block) => Some(block),
                _ => None,
            }
        };
        let block: Option<Vec<u64>> = sides.iter().zip(&scales).enumerate().map(fit).collect();
        Ok(Self { name: name.to_owned(), entry: entry.clone(), block: block.ok_or_else(unfit)? })
    }

    /// The scale at a position.
    fn value(&self, map: &WeightMap, index: u64) -> f32 {
        let width = element_bytes(self.entry.dtype);
        match (self.entry.dtype, map.bytes(&self.entry, index * width..(index + 1) * width)) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (Dtype::F8_E8M0, &[exponent]) => power_of_two(exponent),
            _ => f32::NAN,
        }
    }
}

impl Scaled {
    /// `stored` is of type F8_E4M3 or F8_E5M2.
    pub(crate) fn new(stored: TensorEntry, scale: Scale) -> Self {
        Self { stored, scale }
    }

    pub(super) fn stored(&self) -> &TensorEntry {
        &self.stored
    }

    pub(super) fn scale(&self) -> &TensorEntry {
        &self.scale.entry
    }

    pub(super) fn describe(&self) -> String {
        let by = match &*self.scale.block {
            block if block.iter().zip(&self.stored.shape).all(|(&block, &side)| block >= side as u64) => {
                "a scale of its own".to_owned()
            }
            [.., 1, _] | [1] => "a scale for each row".to_owned(),
            [.., rows, columns] => format!("scales for blocks of {rows} x {columns}"),
            _ => "scales".to_owned(),
        };
        format!("{} with {by}", self.stored.dtype)
    }

    pub(super) fn fill(&self, map: &WeightMap, shape: &[usize], elements: Range<u64>, to: &mut [f32]) {
        let is_e5m2 = self.stored.dtype == Dtype::F8_E5M2;
        let columns = shape.last().map_or(1, |&side| side as u64).max(1);
        let block = self.scale.block.last().copied().unwrap_or(1);
        let bytes = map.bytes(&self.stored, elements.clone());
        let mut next = elements.start;
        while next < elements.end {
            let (row, column) = (next / columns, next % columns);
            // As far as the block reaches in this row.
            let end = ((column / block + 1) * block).min(columns).min(column + elements.end - next);
            let scale = self.scale.value(map, self.scale_of(shape, row, column));
            let at = (next - elements.start) as usize..(next - elements.start + end - column) as usize;
            // One decoder to a loop, so that the compiler can make vector code of it.
            let pairs = to[at.clone()].iter_mut().zip(&bytes[at]);
            if is_e5m2 {
                pairs.for_each(|(value, &byte)| *value = e5m2(byte) * scale);
            } else {
                pairs.for_each(|(value, &byte)| *value = e4m3_value(byte) * scale);
            }
            next += end - column;
        }
    }

    /// The position of an element's scale; `row` counts all rows of the tensor.
    fn scale_of(&self, shape: &[usize], row: u64, column: u64) -> u64 {
        let (mut index, mut size, mut rest) = (0, 1, row);
        for (at, (&side, &block)) in shape.iter().zip(&self.scale.block).enumerate().rev() {
            let side = (side as u64).max(1);
            let position = if at + 1 == shape.len() { column } else { rest % side };
            if at + 1 < shape.len() {
                rest /= side;
            }
            index += position / block * size;
            size *= side.div_ceil(block);
        }
        index
    }

    pub(super) fn release(&self, map: &WeightMap, elements: Range<u64>, is_end: bool) {
        if is_end {
            map.release(&self.stored, elements);
            map.release(&self.scale.entry, 0..self.scale.entry.bytes);
        } else {
            map.release_passed(&self.stored, elements);
        }
    }
}

/// 2 to the power of a biased exponent; 255 is no number.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The value of a byte of sign, four bits of exponent and three of mantissa, which is exact in f32. It is the kind of machine learning: without
/// infinities, and with NaN where exponent and mantissa are all ones.
#[inline]
pub fn e4m3_value(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f);
    // The exponent counts from -7 here, and from -127 in f32.
    let normal = f32::from_bits((magnitude << 20) + (120 << 23));
    let value = if magnitude < 1 << 3 { magnitude as f32 * (1.0 / 512.0) } else { normal };
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    signed(value, byte)
}

/// The value of a byte of sign, five bits of exponent and two of mantissa, which is exact in f32.
#[inline]
fn e5m2(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f);
    let normal = f32::from_bits((magnitude << 21) + (112 << 23));
    let value = if magnitude < 1 << 2 { magnitude as f32 * (1.0 / 65536.0) } else { normal };
    // Infinity and NaN have the largest exponent in f32 too.
    let value = if magnitude >= 0x7c { f32::from_bits(magnitude << 21 | 0x7f80_0000) } else { value };
    signed(value, byte)
}

/// The value with the sign of the byte.
#[inline]
fn signed(value: f32, byte: u8) -> f32 {
    f32::from_bits(value.to_bits() | u32::from(byte & 0x80) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_numbers_of_the_formats() {
        for (byte, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(e4m3_value(byte), value, "{byte:#04x}");
        }
        assert!(e4m3_value(0x7f).is_nan() && e4m3_value(0xff).is_nan());
        assert!(e4m3_value(0x80).is_sign_negative() && e4m3_value(0x80) == 0.0);
        for (byte, value) in [
            (0x01, 2f32.powi(-16)),
            (0x3c, 1.0),
            (0x7b, 57344.0),
            (0x7c, f32::INFINITY),
            (0xfc, f32::NEG_INFINITY),
        ] {
            assert_eq!(e5m2(byte), value, "{byte:#04x}");
        }
        assert!(e5m2(0x7d).is_nan());
    }

    /// Every byte, by the definition of its format in f64.
    #[test]
    fn every_byte_is_its_significand_times_a_power_of_two() {
        for byte in 0..=255_u8 {
            for (got, bits, bias) in [(e4m3_value(byte), 3, 7), (e5m2(byte), 2, 15)] {
                let (exponent, mantissa) =
                    (i32::from(byte & 0x7f) >> bits, u32::from(byte) & ((1 << bits) - 1));
                let (significand, power) = if exponent == 0 {
                    (mantissa, 1 - bias)
                } else {
                    (mantissa | 1 << bits, exponent - bias)
                };
                let value = f64::from(significand) * 2f64.powi(power - bits);
                let value = if byte & 0x80 == 0 { value } else { -value };
                let is_special = if bits == 3 { byte & 0x7f == 0x7f } else { byte & 0x7f >= 0x7c };
                assert!(
                    if is_special { !got.is_finite() } else { f64::from(got) == value },
                    "{byte:#04x}: {got}"
                );
            }
        }
    }

    #[test]
    fn exponents_alone_are_powers_of_two() {
        assert_eq!(
            [0, 1, 127, 254].map(power_of_two),
            [2f32.powi(-127), 2f32.powi(-126), 1.0, 2f32.powi(127)]
        );
        assert!(power_of_two(255).is_nan());
    }

    fn entry(dtype: Dtype, shape: &[usize]) -> TensorEntry {
        TensorEntry { dtype, shape: shape.to_vec(), file: 0, offset: 0, bytes: 0 }
    }

    #[test]
    fn scales_fit_tensors_rows_and_blocks() {
        let fit = |scales: &[usize], weight: &[usize], block| {
            Scale::fit("s", &entry(Dtype::F32, scales), &entry(Dtype::F8_E4M3, weight), block)
                .map(|scale| scale.block)
        };
        let blocks = Some([128, 128]);
        assert_eq!(fit(&[], &[4, 6], None).unwrap(), [4, 6]);
        assert_eq!(fit(&[1], &[4, 6], None).unwrap(), [4, 6]);
        assert_eq!(fit(&[4, 1], &[4, 6], None).unwrap(), [1, 6]);
        assert_eq!(fit(&[4], &[4, 6], None).unwrap(), [1, 6]);
        assert_eq!(fit(&[3, 2], &[300, 200], blocks).unwrap(), [128, 128]);
        assert_eq!(fit(&[2, 3, 1], &[2, 300, 100], blocks).unwrap(), [1, 128, 100]);
        for (scales, weight, block) in [
            (&[3, 2][..], &[300, 300][..], blocks),
            (&[3, 2], &[300, 200], None),
            (&[5], &[4, 6], None),
            (&[2, 2, 2], &[4, 6], None),
        ] {
            assert!(fit(scales, weight, block).is_err(), "{scales:?} {weight:?}");
        }
        let unread = Scale::fit("s", &entry(Dtype::I32, &[]), &entry(Dtype::F8_E4M3, &[2]), None);
        assert_eq!(unread.unwrap_err(), "its scales `s` are of type I32");
    }
}
