//! Generates counter-based random numbers: Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
//! 2011).
//!
//! In: a stream key and an element index. Out: a uniform f32 in `[0, 1)` with 24 random bits. The number depends on
//! nothing else, so a mask is the same for any thread count, tile size, device or resumed run. Deriving keys from
//! seeds and tensor names is the caller's.

pub(crate) const MULTIPLIERS: (u32, u32) = (0xD251_1F53, 0xCD9E_8D57);
const WEYL: (u32, u32) = (0x9E37_79B9, 0xBB67_AE85);
/// Rounds of a block: the paper's recommendation.
const ROUNDS: u32 = 10;
/// Rounds of the streams that masks are drawn from: the fewest that pass all of BigCrush in the paper. A merge draws a word
/// for every element of every model, in each pass, and rounds are what that costs.
pub(crate) const STREAM_ROUNDS: u32 = 7;
const LOW: u64 = 0xffff_ffff;

/// The 64-bit key of one stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey(pub u64);

/// One Philox4x32-10 block: four words for one counter.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    block::<ROUNDS>(counter, key)
}

fn block<const ROUNDS: u32>(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut lanes = counter.map(|word| [u64::from(word)]);
    rounds::<ROUNDS, 1>(&mut lanes, key);
    lanes.map(|[word]| word as u32)
}

/// The uniform number in `[0, 1)` of element `index`.
pub fn uniform(key: StreamKey, index: u64) -> f32 {
    unit(block::<STREAM_ROUNDS>(counter(index / 4), split(key))[(index % 4) as usize])
}

/// Fills `out` with the random words of elements `start..start + out.len()`; [`unit()`] makes uniform numbers of them.
///
/// `start` is a multiple of four; the length may be anything.
#[inline(always)]
pub(crate) fn fill_words(key: StreamKey, start: u64, out: &mut [u32]) {
    debug_assert_eq!(start % 4, 0);
    const GROUP: usize = 16;
    let key = split(key);
    for (group, out) in out.chunks_mut(4 * GROUP).enumerate() {
        let first = start / 4 + (group * GROUP) as u64;
        let mut lanes = [[0u64; GROUP]; 4];
        let [low, high, ..] = &mut lanes;
        for (counter, (low, high)) in (first..).zip(low.iter_mut().zip(high)) {
            (*low, *high) = (counter & LOW, counter >> 32);
        }
        rounds::<STREAM_ROUNDS, GROUP>(&mut lanes, key);
        let mut words = [0; 4 * GROUP];
        for lane in 0..GROUP {
            for word in 0..4 {
                words[4 * lane + word] = lanes[word][lane] as u32;
            }
        }
        out.copy_from_slice(&words[..out.len()]);
    }
}

/// The number of words, counted by their upper 24 bits, whose uniform number is below `bound`: a word `w` is below it
/// exactly where `w >> 8` is below this.
pub(crate) fn words_below(bound: f32) -> u32 {
    // Exact in f64; a NaN is above nothing and becomes 0.
    (f64::from(bound) * 16_777_216.0).ceil().clamp(0.0, 16_777_216.0) as u32
}

/// So many rounds over `N` counters side by side: lane arrays, so that the loops become vector instructions. Each word sits in
/// the low half of 64 bits, which is where the widening multiplication of vector units takes and leaves it; what gathers in
/// the high half is never read.
#[inline(always)]
fn rounds<const ROUNDS: u32, const N: usize>(lanes: &mut [[u64; N]; 4], mut key: [u32; 2]) {
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = *lanes;
        let [k0, k1] = key.map(u64::from);
        for n in 0..N {
            let p0 = (c0[n] & LOW) * u64::from(MULTIPLIERS.0);
            let p1 = (c2[n] & LOW) * u64::from(MULTIPLIERS.1);
            lanes[0][n] = (p1 >> 32) ^ c1[n] ^ k0;
            lanes[1][n] = p1;
            lanes[2][n] = (p0 >> 32) ^ c3[n] ^ k1;
            lanes[3][n] = p0;
        }
        key = next_key(key);
    }
}

/// The key of the next round.
#[inline(always)]
pub(crate) fn next_key([k0, k1]: [u32; 2]) -> [u32; 2] {
    [k0.wrapping_add(WEYL.0), k1.wrapping_add(WEYL.1)]
}

fn counter(block: u64) -> [u32; 4] {
    [block as u32, (block >> 32) as u32, 0, 0]
}

#[inline(always)]
pub(crate) fn split(key: StreamKey) -> [u32; 2] {
    [key.0 as u32, (key.0 >> 32) as u32]
}

/// The upper 24 bits as a multiple of 2^-24: every value is exact in f32.
#[inline(always)]
pub(crate) fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library.
    #[test]
    fn philox_agrees_with_the_published_vectors() {
        let digits = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let cases = [([0; 4], [0; 2]), ([u32::MAX; 4], [u32::MAX; 2]), (digits, [0xa409_3822, 0x299f_31d0])];
        let of_ten = [
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ];
        let of_seven = [
            [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48],
            [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662],
            [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a],
        ];
        for ((counter, key), (ten, seven)) in cases.into_iter().zip(of_ten.into_iter().zip(of_seven)) {
            assert_eq!(philox(counter, key), ten);
            assert_eq!(block::<STREAM_ROUNDS>(counter, key), seven);
        }
    }

    #[test]
    fn filled_words_equal_those_drawn_one_by_one() {
        for (key, start, length) in [(7, 0, 1271), (u64::MAX, 4, 41), (3, (1 << 34) - 64, 256)] {
            let key = StreamKey(key);
            let mut filled = vec![0; length];
            fill_words(key, start, &mut filled);
            let filled: Vec<f32> = filled.into_iter().map(unit).collect();
            let single: Vec<f32> = (0..length as u64).map(|i| uniform(key, start + i)).collect();
            assert_eq!(filled, single);
        }
    }

    #[test]
    fn a_word_is_below_a_bound_where_its_number_is() {
        let bounds =
            [0.0, 0.5, 0.3, 1.0, 2.0, -0.5, 5.9e-8, 6e-8, 1.0 - 6e-8, f32::INFINITY, f32::NAN, f32::MIN];
        for bound in bounds {
            let limit = words_below(bound);
            let near = |at: u32| [at.saturating_sub(1), at.min(0xff_ffff), (at + 1).min(0xff_ffff)];
            for upper in near(limit).into_iter().chain([0, 1, 0x80_0000, 0xff_ffff]) {
                for word in [upper << 8, upper << 8 | 0xff] {
                    assert_eq!(word >> 8 < limit, unit(word) < bound, "{word:#x} {bound}");
                }
            }
        }
    }

    #[test]
    fn numbers_fill_the_unit_interval_evenly() {
        let mut words = vec![0; 1 << 18];
        fill_words(StreamKey(11), 0, &mut words);
        let mut buckets = [0usize; 16];
        for u in words.into_iter().map(unit) {
            assert!((0.0..1.0).contains(&u));
            buckets[(u * 16.0) as usize] += 1;
        }
        // Sixteen buckets of 16384 expected: five standard deviations are 620.
        assert!(buckets.iter().all(|&b| b.abs_diff(16_384) < 620), "{buckets:?}");
    }
}
