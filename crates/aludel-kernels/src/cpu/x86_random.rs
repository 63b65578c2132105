//! Draws random words with the vector instructions of x86-64: 32 counters side by side, so that the long latency of the
//! widening multiplication is hidden.
//!
//! Held to [`fill_words`] by its test. Each word sits in the low half of 64 bits, where the multiplication takes and leaves
//! it; what gathers in the high half is never read.
#![expect(unsafe_code, reason = "vector stores take pointers")]

use std::arch::x86_64::*;

use crate::random::{MULTIPLIERS, STREAM_ROUNDS, StreamKey, fill_words, next_key, split};

/// Vectors of eight counters that are computed side by side.
const SIDE_BY_SIDE: usize = 4;

/// As [`fill_words`], 128 elements at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,popcnt")]
pub(super) fn fill_words_avx512(key: StreamKey, start: u64, out: &mut [u32]) {
    let (groups, rest) = out.as_chunks_mut::<{ 32 * SIDE_BY_SIDE }>();
    let mut first = start / 4;
    for group in groups {
        fill_group(split(key), first, group);
        first += 8 * SIDE_BY_SIDE as u64;
    }
    fill_words(key, 4 * first, rest);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,popcnt")]
fn fill_group(mut key: [u32; 2], first: u64, out: &mut [u32; 32 * SIDE_BY_SIDE]) {
    let splat = |value: u32| _mm512_set1_epi64(i64::from(value));
    let (m0, m1) = (splat(MULTIPLIERS.0), splat(MULTIPLIERS.1));
    // So that the two interleavings at the end put the words of counters 0..4 and 4..8 in order.
    let order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    let zero = _mm512_setzero_si512();
    let mut vectors = [[zero; 4]; SIDE_BY_SIDE];
    for (vector, first) in vectors.iter_mut().zip((first..).step_by(8)) {
        vector[0] = _mm512_add_epi64(_mm512_set1_epi64(first.cast_signed()), order);
        vector[1] = _mm512_srli_epi64::<32>(vector[0]);
    }
    for _ in 0..STREAM_ROUNDS {
        let [k0, k1] = key.map(splat);
        for [c0, c1, c2, c3] in &mut vectors {
            let p0 = _mm512_mul_epu32(*c0, m0);
            let p1 = _mm512_mul_epu32(*c2, m1);
            // 0x96 is the exclusive or of three.
            *c0 = _mm512_ternarylogic_epi64::<0x96>(_mm512_srli_epi64::<32>(p1), *c1, k0);
            *c2 = _mm512_ternarylogic_epi64::<0x96>(_mm512_srli_epi64::<32>(p0), *c3, k1);
            (*c1, *c3) = (p1, p0);
        }
        key = next_key(key);
    }
    let (halves, _) = out.as_chunks_mut::<16>();
    for ([c0, c1, c2, c3], halves) in vectors.into_iter().zip(halves.chunks_exact_mut(2)) {
        let pair = |low, high| _mm512_mask_shuffle_epi32::<0b10_10_00_00>(low, 0xaaaa, high);
        let (a, b) = (pair(c0, c1), pair(c2, c3));
        let words = [_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)];
        for (half, words) in halves.iter_mut().zip(words) {
            // SAFETY: `half` is sixteen u32, 64 writable bytes; the store needs no alignment.
            unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), words) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dispatch::{Level, fill_words as dispatched};
    use super::*;

    #[test]
    fn every_level_draws_the_same_words() {
        let cases =
            [(7, 0, 1271), (u64::MAX, 4, 41), (3, (1 << 34) - 64, 256), (9, (1 << 34) - 4, 1024), (1, 0, 0)];
        for (key, start, length) in cases {
            let mut expected = vec![0; length];
            fill_words(StreamKey(key), start, &mut expected);
            for level in [Level::Baseline, Level::Avx2, Level::Avx512] {
                let mut words = vec![0; length];
                dispatched(level, StreamKey(key), start, &mut words);
                assert_eq!(words, expected, "{level:?} from {start}");
            }
        }
    }
}
