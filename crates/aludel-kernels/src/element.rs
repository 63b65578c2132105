//! Names the element types that kernels decode from and encode to.
//!
//! Arithmetic is always in f32 (reductions in f64); these are storage types only. Conversion from f32 rounds once,
//! to nearest, ties to even.

use half::{bf16, f16};

/// A floating-point storage type of tensor elements, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Element {
    /// Bytes that one element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Decodes a whole slice of stored elements.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.size()];
        self.decode_into(bytes, &mut values);
        values
    }

    /// Decodes as many stored elements as both have: the plain definition that the block decoder is held to.
    pub fn decode_into(self, bytes: &[u8], to: &mut [f32]) {
        match self {
            Self::F32 => each(bytes, to, f32::from_le_bytes),
            Self::F16 => each(bytes, to, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::BF16 => each(bytes, to, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        }
    }

    /// Encodes values: the plain definition that the block encoder is held to.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }
}

/// How the elements of an output are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As numbers of a type that inputs have as well.
    Plain(Element),
    /// As E4M3 of FP8, which has NaN and no infinities: to nearest, ties to even, and beyond its greatest number as that.
    E4m3,
}

impl Encoding {
    /// The greatest number of E4M3.
    pub const E4M3_LARGEST: f32 = 448.0;

    /// Bytes that one element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::Plain(element) => element.size(),
            Self::E4m3 => 1,
        }
    }

    /// Encodes values: the plain definition that the block encoder is held to.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::Plain(element) => element.encode(values),
            Self::E4m3 => values.iter().map(|&value| e4m3(value)).collect(),
        }
    }
}

impl From<Element> for Encoding {
    fn from(element: Element) -> Self {
        Self::Plain(element)
    }
}

/// The nearest number of E4M3, as [`Encoding::E4m3`] has it: the plain definition that the lanes are held to.
pub(crate) fn rounded_to_e4m3(value: f32) -> f32 {
    if value.is_nan() {
        return value;
    }
    let (octave, count) = in_e4m3(value);
    (count * 2f64.powi(i32::from(octave) - 9)).copysign(f64::from(value)) as f32
}

/// The code of [`rounded_to_e4m3`]: eight for each octave.
fn e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    let (octave, count) = in_e4m3(value);
    sign | (8 * octave + count as u8)
}

/// The nearest magnitude of E4M3 as a count of the numbers' distance, which is 2^-9 up to 2^-5 and doubles with every power of two, an octave, from
/// there.
fn in_e4m3(value: f32) -> (u8, f64) {
    let magnitude = f64::from(value.abs().min(Encoding::E4M3_LARGEST));
    let mut distance = 2f64.powi(-9);
    let mut octave = 0;
    while magnitude >= 16.0 * distance {
        distance *= 2.0;
        octave += 1;
    }
    (octave, (magnitude / distance).round_ties_even())
}

fn each<const N: usize>(bytes: &[u8], to: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (to, &bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
        *to = value(bytes);
    }
}
