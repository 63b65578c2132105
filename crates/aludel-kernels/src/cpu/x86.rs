//! Counts blocks for selections with the vector instructions of x86-64, where plain loops do not become them: picking the
//! few lanes inside a bracket out of a vector.
//!
//! Held to [`rank::tally`](super::rank::tally) by its test.
#![expect(unsafe_code, reason = "vector loads and stores take pointers")]

use std::arch::x86_64::*;

use super::rank::{Bracket, Tally, tally};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Calls the lines that hold these bytes into the cache.
#[inline(always)]
pub(super) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        // SAFETY: the address lies in a slice; a prefetch has no effect but on the cache.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// As [`tally`], sixteen lanes at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,popcnt")]
pub(super) fn tally_avx512(x: &[f32], bracket: Bracket, counts: &mut Tally, inside: &mut Vec<u32>) {
    let (groups, rest) = x.as_chunks::<16>();
    let splat = |value: u32| _mm512_set1_epi32(value.cast_signed());
    let (low, high, guess) = (splat(bracket.low), splat(bracket.high), splat(bracket.guess));
    let (span, magnitude, one) = (splat(bracket.high - bracket.low), splat(0x7fff_ffff), splat(1));
    let (mut above, mut unequal) = (splat(0), splat(0));
    let before = inside.len();
    inside.reserve(x.len() + 16);
    let room = inside.spare_capacity_mut();
    let mut used = 0;
    for group in groups {
        // SAFETY: `group` is sixteen f32, 64 readable bytes; the load needs no alignment.
        let bits = unsafe { _mm512_loadu_si512(group.as_ptr().cast()) };
        let m = _mm512_and_si512(bits, magnitude);
        let is_unequal = _mm512_cmpneq_epu32_mask(m, guess);
        above = _mm512_mask_add_epi32(above, _mm512_cmpgt_epu32_mask(m, high), above, one);
        unequal = _mm512_mask_add_epi32(unequal, is_unequal, unequal, one);
        let is_inside = _mm512_mask_cmple_epu32_mask(is_unequal, _mm512_sub_epi32(m, low), span);
        let to = &mut room[used..used + 16];
        // SAFETY: `to` is 64 writable bytes; the store needs no alignment.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(is_inside, m)) };
        used += is_inside.count_ones() as usize;
    }
    // SAFETY: the loop has written the first `used` elements of the spare capacity: each group writes sixteen, and the next
    // starts after those that count.
    unsafe { inside.set_len(before + used) };
    counts.above += u64::from(_mm512_reduce_add_epi32(above).cast_unsigned());
    counts.equal += 16 * groups.len() as u32 - _mm512_reduce_add_epi32(unequal).cast_unsigned();
    tally(rest, bracket, counts, inside);
}

/// As [`tally`], eight lanes at a time. Magnitudes are below 2^31, so that signed comparisons order them.
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn tally_avx2(x: &[f32], bracket: Bracket, counts: &mut Tally, inside: &mut Vec<u32>) {
    let (groups, rest) = x.as_chunks::<8>();
    let splat = |value: u32| _mm256_set1_epi32(value.cast_signed());
    let (low, high, guess, magnitude) =
        (splat(bracket.low), splat(bracket.high), splat(bracket.guess), splat(0x7fff_ffff));
    let mask = |lanes: __m256i| _mm256_movemask_ps(_mm256_castsi256_ps(lanes)).cast_unsigned();
    let (mut above, mut equal) = (0, 0);
    for group in groups {
        // SAFETY: `group` is eight f32, 32 readable bytes; the load needs no alignment.
        let bits = unsafe { _mm256_loadu_si256(group.as_ptr().cast()) };
        let m = _mm256_and_si256(bits, magnitude);
        let is_above = mask(_mm256_cmpgt_epi32(m, high));
        let is_below = mask(_mm256_cmpgt_epi32(low, m));
        let is_equal = mask(_mm256_cmpeq_epi32(m, guess));
        above += is_above.count_ones();
        equal += is_equal.count_ones();
        let mut is_inside = !(is_above | is_below | is_equal) & 0xff;
        while is_inside != 0 {
            inside.push(group[is_inside.trailing_zeros() as usize].to_bits() & 0x7fff_ffff);
            is_inside &= is_inside - 1;
        }
    }
    counts.above += u64::from(above);
    counts.equal += equal;
    tally(rest, bracket, counts, inside);
}
