//! Keeps an f32 as a bf16, which products take as it is, and the 16 bits that the bf16 lacks: a master costs two bytes beside its weight instead of four.
//!
//! In: f32. Out: a weight, which is the f32 rounded to nearest, ties away from zero, and its remainder, the lower half of the f32's bits; both together are
//! the f32 to the bit. The tie's direction differs from that of other roundings to bf16 because a remainder of 16 bits is to tell on which side it lies.

/// The weight and its remainder.
pub(crate) const fn split(value: f32) -> [u16; 2] {
    let bits = value.to_bits();
    [(bits.wrapping_add(0x8000) >> 16) as u16, bits as u16]
}

/// What was split.
pub(crate) const fn join(weight: u16, remainder: u16) -> f32 {
    // A remainder of the upper half has rounded its weight up.
    let carried = (remainder >> 15) as u32;
    f32::from_bits((((weight as u32).wrapping_sub(carried)) << 16) | remainder as u32)
}

/// What weights in bf16 lack of f32, in the host's memory.
#[derive(Debug)]
pub struct Remainders(pub(in crate::nn) Vec<u16>);

/// Values that an update changes: f32, or weights and their remainders.
pub(in crate::nn) enum Masters<'a> {
    Floats(&'a mut [f32]),
    Split(&'a mut [u16], &'a mut [u16]),
}

impl<'a> Masters<'a> {
    pub(in crate::nn) fn len(&self) -> usize {
        match self {
            Self::Floats(values) => values.len(),
            Self::Split(weights, remainders) => {
                assert_eq!(weights.len(), remainders.len(), "weights and their remainders");
                weights.len()
            }
        }
    }

    /// Pieces of `len` elements, the last one shorter.
    pub(in crate::nn) fn chunks(self, len: usize) -> Vec<Self> {
        match self {
            Self::Floats(values) => values.chunks_mut(len).map(Self::Floats).collect(),
            Self::Split(weights, remainders) => {
                let pieces = weights.chunks_mut(len).zip(remainders.chunks_mut(len));
                pieces.map(|(weights, remainders)| Self::Split(weights, remainders)).collect()
            }
        }
    }

    /// Lets the values be changed as f32.
    pub(in crate::nn) fn change(self, change: impl FnOnce(&mut [f32])) {
        match self {
            Self::Floats(values) => change(values),
            Self::Split(weights, remainders) => {
                let joined = weights.iter().zip(&*remainders);
                let mut values: Vec<f32> =
                    joined.map(|(&weight, &remainder)| join(weight, remainder)).collect();
                change(&mut values);
                for ((weight, remainder), value) in weights.iter_mut().zip(remainders).zip(values) {
                    [*weight, *remainder] = split(value);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn both_halves_are_the_value_and_the_weight_is_the_nearest() {
        let patterns =
            (0..=u32::MAX).step_by(9973).chain([0x3f80_8000, 0x3f81_8000, 0xbf80_8000, 0x3f80_7fff]);
        for value in patterns.map(f32::from_bits) {
            let [weight, remainder] = split(value);
            assert_eq!(join(weight, remainder).to_bits(), value.to_bits());
            let is_tie = value.to_bits() & 0xffff == 0x8000;
            if value.is_finite() && !is_tie {
                assert_eq!(weight, bf16::from_f32(value).to_bits(), "{value}");
            }
        }
        assert_eq!(split(f32::from_bits(0x3f80_8000))[0], 0x3f81);
        assert_eq!(split(f32::from_bits(0xbf80_8000))[0], 0xbf81);
    }
}
