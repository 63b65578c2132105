//! Keeps the moments of AdamW in eight bits an element: blocks of 256 with one scale each, as Dettmers et al. 2022 (8-bit
//! optimizers via block-wise quantization) do.
//!
//! In: gradients, masters, codes and scales. Out: the same, updated in one pass. Arithmetic is that of the f32 update;
//! between steps a moment is `scale * code`. Differences from the paper: a code is a small float rather than a dynamic tree,
//! because its rounding is a shift of the f32's bits; and it is rounded up or down at random in proportion (a hash of the
//! step and of the element's number, so that a resumed run takes the same bits), because rounding to nearest would hold a
//! slow second moment still.
//!
//! Error of a stored moment: below 1/8 of it, zero on average. The first moment becomes zero below 2^-15.75 of the largest of
//! its block; the second, if not zero, is at least 2^-31.75 of it.

use super::split::Masters;
use super::{Step, cpu};
use crate::nn::cpu::math::Arithmetic;
use crate::nn::cpu::{CHUNK, Cpu, dispatch, lanes};
use crate::nn::device::{StoredMoments, Update};

/// Elements that share a scale.
pub(in crate::nn) const BLOCK: usize = 256;

/// Bits of an f32 that a code leaves out: three of the mantissa stay.
const LOST: u32 = 20;
/// What remains of 1: the largest of a block has the largest code.
const ONE: u32 = 1.0f32.to_bits() >> LOST;
const LARGEST_FIRST: u32 = 127;
const LARGEST_SECOND: u32 = 255;

/// Both moments of a buffer of parameters.
pub struct Moments(StoredMoments);

impl Moments {
    pub(in crate::nn) fn zeros(len: usize) -> Self {
        Self(zeros(len))
    }

    pub(in crate::nn) fn stored(&self) -> &StoredMoments {
        &self.0
    }

    /// `None` where a length is not that of `len` elements.
    pub(in crate::nn) fn restore(len: usize, stored: &StoredMoments) -> Option<Self> {
        are_of(len, stored).then(|| Self(stored.clone()))
    }
}

/// Moments of zero.
pub(in crate::nn) fn zeros(len: usize) -> StoredMoments {
    let blocks = len.div_ceil(BLOCK);
    StoredMoments {
        first: vec![0; len],
        first_scales: vec![0.0; blocks],
        second: vec![0; len],
        second_scales: vec![0.0; blocks],
    }
}

/// Whether the lengths are those of `len` elements.
pub(in crate::nn) fn are_of(len: usize, stored: &StoredMoments) -> bool {
    let blocks = len.div_ceil(BLOCK);
    stored.first.len() == len
        && stored.second.len() == len
        && stored.first_scales.len() == blocks
        && stored.second_scales.len() == blocks
}

/// One block of a buffer.
struct Block<'a> {
    gradient: &'a [f32],
    master: &'a mut [f32],
    first: (&'a mut [u8], &'a mut f32),
    second: (&'a mut [u8], &'a mut f32),
}

pub(in crate::nn) fn update(
    cpu: &Cpu,
    update: Update,
    gradient: &[f32],
    master: Masters<'_>,
    moments: &mut Moments,
) {
    const BLOCKS: usize = CHUNK / BLOCK;
    let len = master.len();
    let moments = &mut moments.0;
    assert_eq!((gradient.len(), moments.first.len()), (len, len), "lengths of an update");
    let step = Step::new(update);
    let seed = mix(update.step as u32);
    let first = moments.first.chunks_mut(CHUNK).zip(moments.first_scales.chunks_mut(BLOCKS));
    let second = moments.second.chunks_mut(CHUNK).zip(moments.second_scales.chunks_mut(BLOCKS));
    let pieces = gradient.chunks(CHUNK).zip(master.chunks(CHUNK)).zip(first.zip(second));
    let pieces = pieces.enumerate();
    cpu.each(pieces.collect(), 64 * len, |(index, ((gradient, master), (first, second)))| {
        master.change(|master| {
            let blocks = gradient.chunks(BLOCK).zip(master.chunks_mut(BLOCK));
            let first = first.0.chunks_mut(BLOCK).zip(first.1);
            let second = second.0.chunks_mut(BLOCK).zip(second.1);
            for (block, ((gradient, master), (first, second))) in blocks.zip(first.zip(second)).enumerate() {
                let number = (index * CHUNK + block * BLOCK) as u32;
                let (first, second) = ((first.0, first.1), (second.0, second.1));
                Block { gradient, master, first, second }.update(step, seed, number);
            }
        });
    });
}

impl Block<'_> {
    fn update(self, step: Step, seed: u32, number: u32) {
        let Self { gradient, master, first, second } = self;
        dispatch::adamw8(step, [seed, number], gradient, master, first, second);
    }
}

/// One block, whose first element is `number` of the buffer.
#[inline(always)]
pub(in crate::nn) fn lanes(
    a: impl Arithmetic,
    step: Step,
    [seed, number]: [u32; 2],
    gradient: &[f32],
    master: &mut [f32],
    first: (&mut [u8], &mut f32),
    second: (&mut [u8], &mut f32),
) {
    let (mut m, mut v) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
    let (m, v) = (&mut m[..gradient.len()], &mut v[..gradient.len()]);
    decode::<LARGEST_FIRST>(first.0, *first.1, m);
    decode::<LARGEST_SECOND>(second.0, *second.1, v);
    cpu::lanes(a, step, gradient, master, m, v);
    *first.1 = lanes::greatest_magnitude(m);
    *second.1 = lanes::greatest_magnitude(v);
    let (first_factor, second_factor) = (inverse(*first.1), inverse(*second.1));
    let moments = m.iter().zip(&*v).zip(first.0.iter_mut().zip(second.0.iter_mut()));
    for (index, ((&m, &v), (first, second))) in moments.enumerate() {
        let noise = mix(seed ^ number.wrapping_add(index as u32));
        let code = encode::<LARGEST_FIRST>((m * first_factor).abs(), noise & ((1 << LOST) - 1));
        *first = (code | (m.to_bits() >> 31) << 7) as u8;
        let code = encode::<LARGEST_SECOND>(v * second_factor, noise >> (32 - LOST));
        *second = code.max(u32::from(v > 0.0)) as u8;
    }
}

/// Codes above 127 of the first moment are negative.
#[inline(always)]
fn decode<const LARGEST: u32>(codes: &[u8], scale: f32, to: &mut [f32]) {
    for (to, &code) in to.iter_mut().zip(codes) {
        let magnitude = u32::from(code) & LARGEST;
        let bits = (magnitude + (ONE - LARGEST)) << LOST;
        let bits = if magnitude == 0 { 0 } else { bits };
        let sign = (u32::from(code) & !LARGEST) << 24;
        *to = f32::from_bits(bits | sign) * scale;
    }
}

/// The code of a share of the block's largest, rounded up where `noise` carries over.
#[inline(always)]
fn encode<const LARGEST: u32>(share: f32, noise: u32) -> u32 {
    let kept = share.to_bits().wrapping_add(noise) >> LOST;
    kept.saturating_sub(ONE - LARGEST).min(LARGEST)
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// A hash of 32 bits in which every bit of the input moves about half of the output's: multiply and shift twice.
#[inline(always)]
pub(in crate::nn) fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}
