//! Reads whole numbers of any number of bits, and numbers with fractions by the name of their type.
//!
//! In: bytes or words. Out: numbers. Bytes hold their bits with the highest first, one number after another; words of 64 bits hold as many
//! numbers as fit whole, the first in the lowest bits.

use half::{bf16, f16};

/// A type of numbers with fractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F16,
    BF16,
    F32,
    F64,
}

/// Their names.
pub(super) const KINDS: [(&str, Kind); 4] =
    [("float16", Kind::F16), ("bfloat16", Kind::BF16), ("float32", Kind::F32), ("float64", Kind::F64)];

impl Kind {
    /// Bytes of a number.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The number of so many bytes.
    pub(super) fn read(self, bytes: &[u8]) -> f64 {
        let of = |at: usize| bytes.get(at).copied().unwrap_or(0);
        match self {
            Self::F16 => f16::from_le_bytes([of(0), of(1)]).to_f64(),
            Self::BF16 => bf16::from_le_bytes([of(0), of(1)]).to_f64(),
            Self::F32 => f64::from(f32::from_le_bytes(std::array::from_fn(of))),
            Self::F64 => f64::from_le_bytes(std::array::from_fn(of)),
        }
    }

    /// A number as this type holds it.
    pub(super) fn round(self, number: f64) -> f64 {
        match self {
            Self::F16 => f16::from_f64(number).to_f64(),
            Self::BF16 => bf16::from_f64(number).to_f64(),
            Self::F32 => f64::from(number as f32),
            Self::F64 => number,
        }
    }
}

/// Bits of an index into so many columns: reckoned in f32, as the writer does.
pub(super) fn index_bits(columns: u32) -> u32 {
    (columns as f32).log2().ceil() as u32
}

/// Bytes of so many numbers.
pub(super) const fn packed_bytes(count: usize, bits: u32) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Numbers of 1 to 64 bits. There are to be bytes for all of them.
pub(super) fn from_bytes(bytes: &[u8], bits: u32, count: usize) -> impl Iterator<Item = u64> + '_ {
    let (mut held, mut length, mut bytes) = (0u128, 0u32, bytes.iter());
    (0..count).map(move |_| {
        while length < bits {
            held = held << 8 | u128::from(bytes.next().copied().unwrap_or(0));
            length += 8;
        }
        length -= bits;
        let number = (held >> length) as u64;
        held &= (1u128 << length) - 1;
        number
    })
}

/// Words for so many numbers of 1 to 63 bits.
pub(super) const fn packed_words(count: usize, bits: u32) -> usize {
    count.div_ceil((64 / bits) as usize)
}

/// Numbers of 1 to 63 bits. There are to be words for all of them.
pub(super) fn from_words(words: &[i64], bits: u32, count: usize) -> impl Iterator<Item = u64> + '_ {
    let in_word = (64 / bits) as usize;
    let number = move |at: usize| {
        let word = words.get(at / in_word).map_or(0, |word| *word as u64);
        word >> (bits as usize * (at % in_word)) & ((1 << bits) - 1)
    };
    (0..count).map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_with_their_highest_bit() {
        let numbers: Vec<u64> = from_bytes(&[0b1010_0110, 0b1100_0000], 3, 4).collect();
        assert_eq!(numbers, [0b101, 0b001, 0b101, 0b100]);
        let wide: Vec<u64> = from_bytes(&[1, 2, 3, 4, 5, 6, 7, 8, 255], 64, 1).collect();
        assert_eq!(wide, [0x0102_0304_0506_0708]);
        assert_eq!((packed_bytes(4, 3), packed_bytes(8, 3)), (2, 3));
    }

    #[test]
    fn words_begin_with_their_lowest_bits_and_leave_what_does_not_fit() {
        let word = 5 | 9 << 18 | 200_000 << 36;
        let numbers: Vec<u64> = from_words(&[word, 7], 18, 4).collect();
        assert_eq!(numbers, [5, 9, 200_000, 7]);
        assert_eq!(packed_words(4, 18), 2);
        assert_eq!(from_words(&[-1], 63, 1).collect::<Vec<_>>(), [u64::MAX >> 1]);
    }

    #[test]
    fn an_index_has_the_bits_that_its_columns_need() {
        assert_eq!([2, 3, 49_152, 65_536, 65_537, 151_936].map(index_bits), [1, 2, 16, 16, 17, 18]);
    }
}
