//! Codes what is added to the base's elements as numbers of FP8 (E4M3) with one scale for each chunk.
//!
//! The model that comes back is near the one that was merged, and the same each time: an element is the base's plus the number times the scale,
//! in f32, rounded to the element's type. What a number rounds away of a difference is at most 1/16 of it, or 1/1024 of the scale where the difference is among the
//! least, 1/229376 of the chunk's largest and below.

use aludel_checkpoint::e4m3_value;
use aludel_coder::{Bit, Decoder, Encoder, Number};
use aludel_kernels::element::{Element, Encoding};
use crc32c::crc32c;

use crate::chunk::{Coded, Form, encode};

/// Codes the elements of `bytes` by those of `base`, of which there are as many: by numbers of FP8, or as [`encode`] does it where that takes no more.
pub fn encode_fp8(bytes: &[u8], base: &[u8], element: Element) -> Coded {
    let exact = encode(bytes, Some((base, element)));
    match added(bytes, base, element).filter(|coded| coded.bytes.len() < exact.bytes.len()) {
        Some(coded) => coded,
        None => exact,
    }
}

/// `None` where a difference is not finite, or all are too small for a scale.
fn added(bytes: &[u8], base: &[u8], element: Element) -> Option<Coded> {
    let (model, from) = (element.decode(bytes), element.decode(base));
    let differences: Vec<f32> = model.iter().zip(&from).map(|(model, base)| model - base).collect();
    let are_finite = differences.iter().all(|difference| difference.is_finite());
    let largest = differences.iter().fold(0f32, |largest, difference| largest.max(difference.abs()));
    let scale = largest / Encoding::E4M3_LARGEST;
    if !are_finite || !scale.is_normal() {
        return None;
    }
    let scaled: Vec<f32> = differences.iter().map(|difference| difference / scale).collect();
    let numbers = Encoding::E4m3.encode(&scaled);
    let sums: Vec<f32> = from.iter().zip(&numbers).map(|(&base, &number)| sum(base, number, scale)).collect();
    let sums = element.encode(&sums);
    let mut writer = Writer::new(scale);
    let mut back = base.to_vec();
    let places = back.chunks_exact_mut(element.size()).zip(sums.chunks_exact(element.size()));
    for (&number, (place, sum)) in numbers.iter().zip(places) {
        let changes = number & 0x7f != 0 && *place != *sum;
        writer.number(changes.then_some(number));
        if changes {
            place.copy_from_slice(sum);
        }
    }
    Some(Coded { bytes: writer.finish(), form: Form::Fp8, crc: crc32c(&back) })
}

/// The element that comes back.
fn sum(base: f32, number: u8, scale: f32) -> f32 {
    base + e4m3_value(number) * scale
}

/// Adds the numbers of a coded chunk to the base's elements in `to`; `false` where it is no such chunk.
pub(crate) fn add(coded: &[u8], element: Element, to: &mut [u8]) -> bool {
    let Some((&scale, code)) = coded.split_first_chunk() else { return false };
    let scale = f32::from_le_bytes(scale);
    let mut values = element.decode(to);
    let (mut decoder, mut gaps, mut numbers) = (Decoder::new(code), Number::NEW, Numbers::NEW);
    let mut changed = Vec::new();
    let mut at = 0;
    loop {
        at += decoder.number(&mut gaps) as usize;
        if at >= values.len() || decoder.is_past_end() {
            break;
        }
        values[at] = sum(values[at], numbers.read(&mut decoder), scale);
        changed.push(at);
        at += 1;
    }
    // The bits of all others stay, those of NaN as well.
    let sums = element.encode(&values);
    for at in changed {
        let place = at * element.size()..(at + 1) * element.size();
        to[place.clone()].copy_from_slice(&sums[place]);
    }
    true
}

struct Writer {
    scale: f32,
    encoder: Encoder,
    gaps: Number,
    numbers: Numbers,
    gap: u32,
}

impl Writer {
    fn new(scale: f32) -> Self {
        Self { scale, encoder: Encoder::new(), gaps: Number::NEW, numbers: Numbers::NEW, gap: 0 }
    }

    /// The next element's; `None` where it stays the base's.
    fn number(&mut self, number: Option<u8>) {
        let Some(number) = number else {
            self.gap += 1;
            return;
        };
        self.encoder.number(&mut self.gaps, self.gap);
        self.numbers.write(&mut self.encoder, number);
        self.gap = 0;
    }

    fn finish(mut self) -> Vec<u8> {
        self.encoder.number(&mut self.gaps, self.gap);
        let mut bytes = self.scale.to_le_bytes().to_vec();
        bytes.extend(self.encoder.finish());
        bytes
    }
}

/// What is known of numbers so far: of the sign, and of the magnitude's seven bits as a tree, the highest first.
struct Numbers {
    sign: Bit,
    magnitude: [Bit; 128],
}

impl Numbers {
    const NEW: Self = Self { sign: Bit::EVEN, magnitude: [Bit::EVEN; 128] };

    fn write(&mut self, encoder: &mut Encoder, number: u8) {
        encoder.bit(&mut self.sign, number >> 7 == 1);
        let mut node = 1;
        for digit in (0..7).rev() {
            let bit = number >> digit & 1 == 1;
            encoder.bit(&mut self.magnitude[node], bit);
            node = 2 * node + usize::from(bit);
        }
    }

    fn read(&mut self, decoder: &mut Decoder<'_>) -> u8 {
        let sign = decoder.bit(&mut self.sign);
        let mut node = 1;
        for _ in 0..7 {
            node = 2 * node + usize::from(decoder.bit(&mut self.magnitude[node]));
        }
        u8::from(sign) << 7 | (node - 128) as u8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chunk::decode;

    fn normal(at: usize) -> f32 {
        // Sums of twelve evenly spread numbers, which come from a counter.
        let mut state = at as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..12).map(|_| next()).sum::<f32>() - 6.0
    }

    /// A quarter of the elements in f32 moved by a hundredth: 2^-4 of each difference is what may be lost, and of 4 bytes less than one is stored.
    #[test]
    fn differences_come_back_to_four_digits_in_a_quarter_of_the_bytes() {
        let base: Vec<f32> = (0..65_536).map(normal).collect();
        let moved =
            |at: usize| base[at] + if at.is_multiple_of(4) { 0.01 * normal(at + 65_536) } else { 0.0 };
        let model: Vec<f32> = (0..65_536).map(moved).collect();
        let (base_bytes, bytes) = (Element::F32.encode(&base), Element::F32.encode(&model));
        let coded = encode_fp8(&bytes, &base_bytes, Element::F32);
        let exact = encode(&bytes, Some((&base_bytes, Element::F32)));
        assert_eq!(coded.form, Form::Fp8);
        assert!(coded.bytes.len() * 2 < exact.bytes.len(), "{} of {}", coded.bytes.len(), exact.bytes.len());
        let mut back = base_bytes;
        assert!(decode(&coded.bytes, coded.form, coded.crc, Element::F32, &mut back));
        let largest =
            model.iter().zip(&base).fold(0f32, |largest, (model, base)| largest.max((model - base).abs()));
        for ((back, model), base) in Element::F32.decode(&back).iter().zip(&model).zip(&base) {
            let bound = (model - base).abs() / 16.0 + largest / 448.0 / 1024.0 + base.abs() * f32::EPSILON;
            assert!((back - model).abs() <= bound, "{base} + {} became {back}", model - base);
        }
    }

    /// Differences of a few units in the last place take less as what they are.
    #[test]
    fn what_is_smaller_exact_stays_exact() {
        let base = Element::BF16.encode(&(0..4096).map(normal).collect::<Vec<_>>());
        let mut model = base.clone();
        model.chunks_mut(2).step_by(3).for_each(|element| element[0] ^= 1);
        let coded = encode_fp8(&model, &base, Element::BF16);
        assert_eq!(coded, encode(&model, Some((&base, Element::BF16))));
        let not_finite = Element::F32.encode(&[f32::NAN, 1.0]);
        let coded = encode_fp8(&not_finite, &Element::F32.encode(&[0.0, 2.0]), Element::F32);
        assert_ne!(coded.form, Form::Fp8);
    }

    proptest! {
        #[test]
        fn what_is_written_comes_back_checked(
            pairs in prop::collection::vec((any::<f32>(), prop_oneof![Just(0f32), -1e3f32..1e3, any::<f32>()]), 0..200),
            which in 0usize..3,
        ) {
            let element = [Element::F32, Element::F16, Element::BF16][which];
            let base = element.encode(&pairs.iter().map(|pair| pair.0).collect::<Vec<_>>());
            let model = element.encode(&pairs.iter().map(|pair| pair.0 + pair.1).collect::<Vec<_>>());
            let coded = encode_fp8(&model, &base, element);
            let mut back = base;
            prop_assert!(decode(&coded.bytes, coded.form, coded.crc, element, &mut back));
            if coded.form != Form::Fp8 {
                prop_assert_eq!(back, model);
            }
        }
    }
}
