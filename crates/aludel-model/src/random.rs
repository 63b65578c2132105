//! Names the streams of random numbers that fresh weights are drawn from: a stream depends on a seed and a parameter's name, and on
//! nothing else.

use aludel_kernels::random::StreamKey;

/// The stream of a parameter: FNV-1a over its name, mixed with the seed.
pub(crate) fn stream(seed: u64, name: &str) -> StreamKey {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The finaliser of SplitMix64 keeps neighbouring seeds apart.
    let mut mixed = hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    StreamKey(mixed ^ (mixed >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_names_part_streams() {
        let keys = [stream(0, "a"), stream(1, "a"), stream(0, "b"), stream(1, "b")];
        for (i, first) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|second| first != second));
        }
    }
}
