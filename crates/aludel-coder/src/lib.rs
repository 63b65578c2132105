//! Codes bits by probabilities that it learns as it goes, and whole numbers as such bits.
//!
//! In: bits and numbers. Out: bytes, and back. The arithmetic is the range coder of LZMA: a range of 32 bits is split in
//! proportion to the probability of a 1, and bytes leave it from the top. What bits mean is not known here; a decoder that is given
//! other bytes than an encoder wrote gives other bits, never a panic, and says when it has read past the end.
#![forbid(unsafe_code)]

/// The probability that a bit is 1, learned at two rates; their mean is what counts.
#[derive(Clone, Copy, Debug)]
pub struct Bit {
    fast: u16,
    slow: u16,
}

/// A number from 0 to `u32::MAX - 1`: the exponent of itself plus 1 in unary, then the digits below the leading one.
#[derive(Clone, Debug)]
pub struct Number {
    more: [Bit; 32],
    /// For each exponent, the first [`LEARNED`] digits as a tree.
    digits: [[Bit; 1 << LEARNED]; 32],
}

/// Digits of a number that have probabilities of their own; the others are taken to be even.
const LEARNED: u32 = 3;

/// Probabilities are in units of 1 / 32768, and at least this far from both ends.
const LEAST: u32 = 32;

impl Bit {
    /// Both are equally likely so far.
    pub const EVEN: Self = Self { fast: 1 << 15, slow: 1 << 15 };

    fn chance(self) -> u32 {
        ((u32::from(self.fast) + u32::from(self.slow)) >> 2).clamp(LEAST, (1 << 15) - LEAST)
    }

    fn learn(&mut self, bit: bool) {
        if bit {
            self.fast += (u16::MAX - self.fast) >> 4;
            self.slow += (u16::MAX - self.slow) >> 7;
        } else {
            self.fast -= self.fast >> 4;
            self.slow -= self.slow >> 7;
        }
    }
}

impl Number {
    /// Nothing is learned yet.
    pub const NEW: Self = Self { more: [Bit::EVEN; 32], digits: [[Bit::EVEN; 1 << LEARNED]; 32] };
}

/// Writes bits.
#[derive(Debug)]
pub struct Encoder {
    low: u64,
    range: u32,
    /// The byte that a carry may still change, and how many bytes of 255 follow it.
    held: u8,
    run: u64,
    bytes: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// Nothing is written yet.
    pub fn new() -> Self {
        Self { low: 0, range: u32::MAX, held: 0, run: 1, bytes: Vec::new() }
    }

    /// Writes a bit.
    pub fn bit(&mut self, chance: &mut Bit, bit: bool) {
        let bound = (self.range >> 15) * chance.chance();
        if bit {
            self.range = bound;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
        }
        chance.learn(bit);
        self.normalise();
    }

    /// Digits of even probability, the highest first.
    fn even(&mut self, value: u32, digits: u32) {
        for digit in (0..digits).rev() {
            self.range >>= 1;
            if value >> digit & 1 == 1 {
                self.low += u64::from(self.range);
            }
            self.normalise();
        }
    }

    /// Writes a number; `u32::MAX` is none.
    pub fn number(&mut self, number: &mut Number, value: u32) {
        let value = value.saturating_add(1);
        let exponent = value.ilog2();
        for at in 0..exponent {
            self.bit(&mut number.more[at as usize], true);
        }
        if exponent < 31 {
            self.bit(&mut number.more[exponent as usize], false);
        }
        let learned = exponent.min(LEARNED);
        let mut node = 1;
        for digit in (exponent - learned..exponent).rev() {
            let bit = value >> digit & 1 == 1;
            self.bit(&mut number.digits[exponent as usize][node], bit);
            node = 2 * node + usize::from(bit);
        }
        self.even(value, exponent - learned);
    }

    /// Writes a number with a sign; `i32::MIN` is none.
    pub fn signed(&mut self, number: &mut Number, value: i32) {
        self.number(number, (value << 1 ^ value >> 31) as u32);
    }

    fn normalise(&mut self) {
        while self.range < 1 << 24 {
            self.range <<= 8;
            self.shift();
        }
    }

    /// Takes the top byte off, once it is known whether a carry reaches it.
    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > u64::from(u32::MAX) {
            let carry = (self.low >> 32) as u8;
            let mut byte = self.held;
            while self.run > 0 {
                self.bytes.push(byte.wrapping_add(carry));
                byte = 0xff;
                self.run -= 1;
            }
            self.held = (self.low >> 24) as u8;
        }
        self.run += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    /// Everything that was written.
    pub fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        self.bytes
    }
}

/// Reads bits.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    code: u32,
    range: u32,
}

impl<'a> Decoder<'a> {
    /// Reads what an encoder has written.
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, at: 0, code: 0, range: u32::MAX };
        for _ in 0..5 {
            decoder.code = decoder.code << 8 | u32::from(decoder.byte());
        }
        decoder
    }

    /// Zero behind the end.
    fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    /// Whether more was read than there is.
    pub fn is_past_end(&self) -> bool {
        self.at > self.bytes.len()
    }

    /// Whether all was read, and it is what an encoder ends with.
    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len() && self.code == 0
    }

    /// The next bit.
    pub fn bit(&mut self, chance: &mut Bit) -> bool {
        let bound = (self.range >> 15) * chance.chance();
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        chance.learn(bit);
        self.normalise();
        bit
    }

    fn even(&mut self, digits: u32) -> u32 {
        let mut value = 0;
        for _ in 0..digits {
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            value = value << 1 | u32::from(bit);
            self.normalise();
        }
        value
    }

    /// The next number.
    pub fn number(&mut self, number: &mut Number) -> u32 {
        let mut exponent = 0;
        while exponent < 31 && self.bit(&mut number.more[exponent as usize]) {
            exponent += 1;
        }
        let learned = exponent.min(LEARNED);
        let mut node = 1;
        for _ in 0..learned {
            let bit = self.bit(&mut number.digits[exponent as usize][node]);
            node = 2 * node + usize::from(bit);
        }
        // The tree's node is the leading one and the learned digits.
        let rest = exponent - learned;
        let value = (node as u32) << rest | self.even(rest);
        value - 1
    }

    /// The next number with a sign.
    pub fn signed(&mut self, number: &mut Number) -> i32 {
        let value = self.number(number);
        (value >> 1) as i32 ^ -((value & 1) as i32)
    }

    fn normalise(&mut self) {
        while self.range < 1 << 24 {
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(self.byte());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_likely_takes_little() {
        let mut encoder = Encoder::new();
        let mut bit = Bit::EVEN;
        (0..10_000).for_each(|at| encoder.bit(&mut bit, at % 100 == 0));
        let bytes = encoder.finish().len();
        // The entropy of 1 in 100 is 101 bytes.
        assert!((95..140).contains(&bytes), "{bytes}");
    }

    proptest! {
        #[test]
        fn numbers_come_back(values in prop::collection::vec(prop_oneof![0u32..20, 0u32..100_000, Just(u32::MAX - 1)], 0..200),
                             signed in prop::collection::vec(any::<i32>().prop_filter("widest", |x| *x != i32::MIN), 0..20)) {
            let mut encoder = Encoder::new();
            let mut number = Number::NEW;
            values.iter().for_each(|&value| encoder.number(&mut number, value));
            signed.iter().for_each(|&value| encoder.signed(&mut number, value));
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let mut number = Number::NEW;
            let got: Vec<u32> = values.iter().map(|_| decoder.number(&mut number)).collect();
            prop_assert_eq!(got, values);
            let got: Vec<i32> = signed.iter().map(|_| decoder.signed(&mut number)).collect();
            prop_assert_eq!(got, signed);
            prop_assert!(decoder.is_at_end());
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::new(&bytes);
            let mut number = Number::NEW;
            for _ in 0..200 {
                decoder.number(&mut number);
            }
        }
    }
}
