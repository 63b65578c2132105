//! Draws normal random numbers from counters, as [`crate::random`] draws uniform ones.
//!
//! In: a stream key and the positions of elements. Out: numbers that depend on nothing else. The four words of a Philox block are two
//! pairs of uniform numbers, and each pair is two normal ones (Box and Muller 1958), in f64.

use std::f64::consts::TAU;

use crate::random::{StreamKey, philox, split};

/// Elements from `start` on of a stream of normal numbers of this deviation: the same however they are cut into pieces.
pub fn fill_normal(key: StreamKey, start: u64, deviation: f32, out: &mut [f32]) {
    let (mut at, mut rest) = (start, out);
    while !rest.is_empty() {
        let within = (at % 4) as usize;
        let length = rest.len().min(4 - within);
        let (out, others) = std::mem::take(&mut rest).split_at_mut(length);
        let block = at / 4;
        let [a, b, c, d] = philox([block as u32, (block >> 32) as u32, 0, 0], split(key)).map(unit);
        let [(a, b), (c, d)] = [pair(a, b), pair(c, d)];
        for (out, value) in out.iter_mut().zip(&[a, b, c, d][within..]) {
            *out = (value * f64::from(deviation)) as f32;
        }
        (at, rest) = (at + length as u64, others);
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
        let key = StreamKey(3);
        let mut whole = [0.0; 41];
        fill_normal(key, 0, 0.02, &mut whole);
        for (start, length) in [(20, 21), (3, 1), (5, 9), (39, 2), (7, 0)] {
            let mut piece = vec![0.0; length];
            fill_normal(key, start as u64, 0.02, &mut piece);
            assert_eq!(whole[start..start + length], piece);
        }
    }

    #[test]
    fn moments_are_those_of_a_normal_distribution() {
        let mut values = vec![0.0; 1 << 18];
        fill_normal(StreamKey(7), 0, 2.0, &mut values);
        let mean_of =
            |power: i32| values.iter().map(|&v| f64::from(v).powi(power)).sum::<f64>() / values.len() as f64;
        // Five standard errors of each moment.
        assert!(mean_of(1).abs() < 5.0 * 2.0 / 512.0, "{}", mean_of(1));
        assert!((mean_of(2) - 4.0).abs() < 5.0 * 4.0 * 2f64.sqrt() / 512.0, "{}", mean_of(2));
        assert!((mean_of(4) - 48.0).abs() < 5.0 * 16.0 * 96f64.sqrt() / 512.0, "{}", mean_of(4));
    }
}
