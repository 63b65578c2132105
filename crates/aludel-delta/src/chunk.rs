//! Codes the elements of a chunk by how far each lies from that of the base.
//!
//! A floating-point number is taken as a whole number that grows with it, so that the difference of two near numbers is a few units in
//! the last place. Runs of equal elements and the differences between them are coded by adaptive probabilities that begin anew with
//! each chunk. Where that takes no less than the bytes themselves, these are stored.

use aludel_coder::{Decoder, Encoder, Number};
use aludel_kernels::element::Element;
use crc32c::crc32c;
use safetensors::Dtype;

use crate::fp8;

/// A chunk as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coded {
    /// What stands in the file.
    pub bytes: Vec<u8>,
    /// How it is to be taken.
    pub form: Form,
    /// The CRC-32C of the bytes that come back.
    pub crc: u32,
}

/// What the bytes of a stored chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Distances from the base's elements, coded.
    Distances,
    /// The chunk's own bytes.
    Whole,
    /// Numbers of FP8 to add to the base's elements, coded: see [`crate::fp8`].
    Fp8,
}

/// The type of a tensor's elements where they can be told apart from a base's; `None` for those that are stored as bytes alone.
pub const fn element(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::F16 => Some(Element::F16),
        Dtype::BF16 => Some(Element::BF16),
        Dtype::F32 => Some(Element::F32),
        _ => None,
    }
}

/// The element at a position, as a number that grows with it.
fn ordinal(element: Element, bytes: &[u8], at: usize) -> u32 {
    let start = at * element.size();
    match bytes[start..start + element.size()] {
        [low, high] => {
            let bits = u16::from_le_bytes([low, high]);
            u32::from(if bits >> 15 == 1 { !bits } else { bits | 1 << 15 })
        }
        ref four => {
            let bits = four.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte));
            if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
        }
    }
}

/// Writes the element at a position.
fn put(element: Element, bytes: &mut [u8], at: usize, ordinal: u32) {
    let start = at * element.size();
    if element.size() == 2 {
        let ordinal = ordinal as u16;
        let bits = if ordinal >> 15 == 1 { ordinal & !(1 << 15) } else { !ordinal };
        bytes[start..start + 2].copy_from_slice(&bits.to_le_bytes());
    } else {
        let bits = if ordinal >> 31 == 1 { ordinal & !(1 << 31) } else { !ordinal };
        bytes[start..start + 4].copy_from_slice(&bits.to_le_bytes());
    }
}

/// How far an element lies from another, in 16 or 32 bits that wrap.
fn distance(element: Element, from: u32, to: u32) -> i32 {
    let distance = to.wrapping_sub(from);
    if element.size() == 2 { i32::from(distance as u16 as i16) } else { distance as i32 }
}

/// Codes the elements of `bytes` by those of `base`, of which there are as many; with no base the bytes are stored.
pub fn encode(bytes: &[u8], base: Option<(&[u8], Element)>) -> Coded {
    let crc = crc32c(bytes);
    let code = base.map(|(base, element)| distances(bytes, base, element));
    match code.filter(|code| code.len() < bytes.len()) {
        Some(code) => Coded { bytes: code, form: Form::Distances, crc },
        None => Coded { bytes: bytes.to_vec(), form: Form::Whole, crc },
    }
}

fn distances(bytes: &[u8], base: &[u8], element: Element) -> Vec<u8> {
    let count = bytes.len().min(base.len()) / element.size();
    let (mut encoder, mut gaps, mut distances) = (Encoder::new(), Number::NEW, Number::NEW);
    let mut gap = 0;
    for at in 0..count {
        let distance = distance(element, ordinal(element, base, at), ordinal(element, bytes, at));
        if distance == 0 {
            gap += 1;
            continue;
        }
        encoder.number(&mut gaps, gap);
        // Without zero, so that the widest distance is a number as well.
        encoder.number(&mut distances, ((distance << 1) ^ (distance >> 31)) as u32 - 1);
        gap = 0;
    }
    encoder.number(&mut gaps, gap);
    encoder.finish()
}

/// Decodes a chunk into `to`, which has the base's bytes before; for a whole chunk it does not matter what it has. `false` where the bytes
/// that come back are not those that were stored.
pub fn decode(coded: &[u8], form: Form, crc: u32, element: Element, to: &mut [u8]) -> bool {
    let is_read = match form {
        Form::Whole => {
            let fits = coded.len() == to.len();
            if fits {
                to.copy_from_slice(coded);
            }
            fits
        }
        Form::Distances => {
            add_distances(coded, element, to);
            true
        }
        Form::Fp8 => fp8::add(coded, element, to),
    };
    is_read && crc32c(to) == crc
}

fn add_distances(coded: &[u8], element: Element, to: &mut [u8]) {
    let count = to.len() / element.size();
    let (mut decoder, mut gaps, mut distances) = (Decoder::new(coded), Number::NEW, Number::NEW);
    let mut at = 0;
    loop {
        at += decoder.number(&mut gaps) as usize;
        if at >= count || decoder.is_past_end() {
            break;
        }
        let folded = decoder.number(&mut distances).wrapping_add(1);
        let distance = (folded >> 1) ^ (folded & 1).wrapping_neg();
        put(element, to, at, ordinal(element, to, at).wrapping_add(distance));
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
    }

    #[test]
    fn near_numbers_are_few_units_apart() {
        let pair = bytes(&[1.0, 1.0078125]);
        let element = |at| ordinal(Element::BF16, &pair, at);
        assert_eq!(distance(Element::BF16, element(0), element(1)), 1);
        let around_zero = bytes(&[f32::from_bits(0x8001_0000), -0.0, 0.0, f32::from_bits(0x0001_0000)]);
        let elements: Vec<u32> = (0..4).map(|at| ordinal(Element::BF16, &around_zero, at)).collect();
        assert!(elements.windows(2).all(|pair| pair[1] == pair[0] + 1), "{elements:?}");
    }

    /// One in five of 65,536 elements is moved by a few units: the entropy of where is 0.72 bits an element, that of 8 distances 3 bits
    /// for those that are moved; the bound is 5 % above their sum.
    #[test]
    fn a_sparse_change_takes_what_its_entropy_says() {
        let base: Vec<f32> = (0..65_536).map(|at| (at as f32 * 0.37).sin()).collect();
        let base = bytes(&base);
        let mut moved = base.clone();
        let (mut state, mut count) = (7u64, 0);
        for at in 0..65_536 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if state >> 40 & 0xff < 51 {
                let distance = [1, 2, 3, 4, 0xffff, 0xfffe, 0xfffd, 0xfffc][(state >> 50 & 7) as usize];
                put(Element::BF16, &mut moved, at, ordinal(Element::BF16, &base, at).wrapping_add(distance));
                count += 1;
            }
        }
        let coded = encode(&moved, Some((&base, Element::BF16)));
        let bits = 65_536.0 * 0.7207 + f64::from(count) * 3.0;
        assert!((coded.bytes.len() as f64) < 1.05 * bits / 8.0, "{} of {}", coded.bytes.len(), bits / 8.0);
        let mut back = base;
        assert!(decode(&coded.bytes, coded.form, coded.crc, Element::BF16, &mut back));
        assert_eq!(back, moved);
    }

    #[test]
    fn equal_chunks_take_next_to_nothing_and_noise_is_stored() {
        let base = bytes(&[0.5; 4096]);
        let coded = encode(&base, Some((&base, Element::BF16)));
        assert!(coded.bytes.len() < 12 && coded.form == Form::Distances);
        let noise: Vec<u8> = (0..8192u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let coded = encode(&noise, Some((&base, Element::BF16)));
        assert!(coded.form == Form::Whole && coded.bytes == noise);
        assert!(encode(&base, None).form == Form::Whole);
    }

    proptest! {
        #[test]
        fn all_bits_come_back(pairs in prop::collection::vec((any::<u32>(), prop_oneof![Just(0u32), 1u32..9, any::<u32>()]), 0..300), is_wide in any::<bool>()) {
            let element = if is_wide { Element::F32 } else { Element::BF16 };
            let take = |bits: u32| bits.to_le_bytes()[..element.size()].to_vec();
            let base: Vec<u8> = pairs.iter().flat_map(|&(base, _)| take(base)).collect();
            let model: Vec<u8> = pairs.iter().flat_map(|&(base, change)| take(base ^ change)).collect();
            let coded = encode(&model, Some((&base, element)));
            let mut back = base.clone();
            prop_assert!(decode(&coded.bytes, coded.form, coded.crc, element, &mut back));
            prop_assert_eq!(&back, &model);
            // With another base, or a damaged code, nothing else comes back unnoticed.
            if base != model && coded.form != Form::Whole {
                let mut other = base;
                other[0] ^= 1;
                prop_assert!(!decode(&coded.bytes, coded.form, coded.crc, element, &mut other));
            }
        }

        #[test]
        fn any_code_is_read_without_a_panic(code in prop::collection::vec(any::<u8>(), 0..64), length in 0usize..100) {
            decode(&code, Form::Distances, 0, Element::BF16, &mut vec![3; 2 * length]);
            decode(&code, Form::Distances, 0, Element::F32, &mut vec![3; 4 * length]);
            decode(&code, Form::Fp8, 0, Element::F16, &mut vec![3; 2 * length]);
            decode(&code, Form::Whole, 0, Element::BF16, &mut vec![3; length]);
        }
    }
}
