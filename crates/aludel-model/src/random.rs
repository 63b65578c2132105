//! Draws fresh weights: numbers that depend on a seed, a parameter's name and an element's position, and on nothing else.

use std::f64::consts::TAU;

use aludel_kernels::random::{StreamKey, philox};

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

/// Elements `start..` of a stream of normal numbers of this deviation; `start` is a multiple of four.
///
/// The four words of a Philox block are two pairs of uniform numbers, and each pair is two normal ones (Box and Muller
/// 1958), in f64.
pub(crate) fn fill_normal(key: StreamKey, start: u64, deviation: f32, out: &mut [f32]) {
    debug_assert!(start.is_multiple_of(4));
    let words = [key.0 as u32, (key.0 >> 32) as u32];
    for (block, out) in (start / 4..).zip(out.chunks_mut(4)) {
        let [a, b, c, d] = philox([block as u32, (block >> 32) as u32, 0, 0], words).map(unit);
        let [(a, b), (c, d)] = [pair(a, b), pair(c, d)];
        for (out, value) in out.iter_mut().zip([a, b, c, d]) {
            *out = (value * f64::from(deviation)) as f32;
        }
    }
}

fn pair(first: f64, second: f64) -> (f64, f64) {
    // 1 - u lies in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - first).ln()).sqrt();
    let (sin, cos) = (TAU * second).sin_cos();
    (radius * cos, radius * sin)
}

/// In `[0, 1)`.
fn unit(word: u32) -> f64 {
    f64::from(word) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_stream_are_the_stream() {
        let key = stream(3, "model.norm.weight");
        let mut whole = [0.0; 41];
        fill_normal(key, 0, 0.02, &mut whole);
        let mut tail = [0.0; 21];
        fill_normal(key, 20, 0.02, &mut tail);
        assert_eq!(whole[20..], tail);
    }

    #[test]
    fn moments_are_those_of_a_normal_distribution() {
        let mut values = vec![0.0; 1 << 18];
        fill_normal(stream(7, "w"), 0, 2.0, &mut values);
        let mean_of =
            |power: i32| values.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / values.len() as f64;
        // Five standard errors of each moment.
        assert!(mean_of(1).abs() < 5.0 * 2.0 / 512.0, "{}", mean_of(1));
        assert!((mean_of(2) - 4.0).abs() < 5.0 * 4.0 * 2f64.sqrt() / 512.0, "{}", mean_of(2));
        assert!((mean_of(4) - 48.0).abs() < 5.0 * 16.0 * 96f64.sqrt() / 512.0, "{}", mean_of(4));
    }

    #[test]
    fn seeds_and_names_part_streams() {
        let keys = [stream(0, "a"), stream(1, "a"), stream(0, "b"), stream(1, "b")];
        for (i, first) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|second| first != second));
        }
    }
}
