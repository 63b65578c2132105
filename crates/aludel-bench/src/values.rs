//! Computes the weights of synthetic models from counters.
//!
//! In: a model's role, a tensor and a range of its elements. Out: their bf16 values, which depend on nothing else, so any
//! thread may make any part. Base weights are near normal with a standard deviation of 0.02, norms lie around 1. A fine-tune
//! is the base plus a small difference whose scale varies by row, rounded to bf16: most differences are then a few units
//! in the last place, and many tie exactly, as they do between real fine-tunes.

use half::bf16;

/// The four models of a set: their folders, and what makes their values differ.
pub(crate) const ROLES: [&str; 4] = ["base", "a", "b", "c"];

/// One tensor of one model, ready to be computed at any place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values {
    base_key: u64,
    /// `None` for the base itself.
    difference_key: Option<u64>,
    columns: u64,
    mean: f32,
    deviation: f32,
}

impl Values {
    /// The values of the tensor of that name and shape in the model of that role.
    pub(crate) fn new(seed: u64, role: &str, name: &str, shape: &[usize]) -> Self {
        let is_norm = shape.len() == 1;
        Self {
            base_key: key(seed, ROLES[0], name),
            difference_key: (role != ROLES[0]).then(|| key(seed, role, name)),
            columns: shape.last().map_or(1, |&side| side as u64),
            mean: if is_norm { 1.0 } else { 0.0 },
            deviation: if is_norm { 0.1 } else { 0.02 },
        }
    }

    /// The little-endian bytes of elements `start..start + count`.
    pub(crate) fn bytes(&self, start: u64, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * count);
        let end = start + count as u64;
        let mut index = start;
        while index < end {
            let row = index / self.columns;
            let row_end = end.min((row + 1) * self.columns);
            self.push_row(row, index..row_end, &mut bytes);
            index = row_end;
        }
        bytes
    }

    fn push_row(&self, row: u64, elements: std::ops::Range<u64>, bytes: &mut Vec<u8>) {
        let scale = self.difference_key.map(|key| (key, difference_scale(key, row)));
        for index in elements {
            let mut value = bf16::from_f32(self.mean + self.deviation * normal(self.base_key, index));
            if let Some((key, scale)) = scale {
                value = bf16::from_f32(value.to_f32() + scale * normal(key, index));
            }
            bytes.extend_from_slice(&value.to_le_bytes());
        }
    }
}

/// Between 2e-4 and 2e-3, evenly in the logarithm: one to a dozen units in the last place of a typical weight.
fn difference_scale(key: u64, row: u64) -> f32 {
    let unit = (word(!key, row) >> 40) as f32 / (1u64 << 24) as f32;
    2e-4 * 10f32.powf(unit)
}

/// The sum of four uniform numbers, centred, with variance 1: the tails end at 3.46 deviations.
fn normal(key: u64, index: u64) -> f32 {
    let word = word(key, index);
    let sum: u32 = (0..4).map(|part| (word >> (16 * part)) as u32 & 0xFFFF).sum();
    (sum as f32 - 2.0 * 65_535.0) * (1.0 / (65_536.0 * 0.577_350_26))
}

fn key(seed: u64, role: &str, name: &str) -> u64 {
    role.bytes().chain([0]).chain(name.bytes()).fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)))
}

/// The number at a counter: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn word(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const SHAPE: [usize; 2] = [256, 401];

    fn decoded(role: &str, name: &str, shape: &[usize]) -> Vec<f32> {
        let bytes = Values::new(1, role, name, shape).bytes(0, shape.iter().product());
        bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect()
    }

    fn deviation(values: &[f32]) -> f64 {
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    }

    #[test]
    fn parts_equal_the_whole() {
        let values = Values::new(1, "a", "w", &SHAPE);
        let whole = values.bytes(0, SHAPE[0] * SHAPE[1]);
        let parts: Vec<u8> = [(0, 7), (7, 1271), (1278, 101_378)].map(|(at, n)| values.bytes(at, n)).concat();
        assert_eq!(parts, whole);
    }

    #[test]
    fn weights_and_norms_have_the_spread_of_a_real_model() {
        assert!((deviation(&decoded("base", "w", &SHAPE)) - 0.02).abs() < 2e-4);
        let norm = decoded("base", "norm", &[4096]);
        let mean = norm.iter().sum::<f32>() / norm.len() as f32;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn differences_are_small_vary_by_row_and_tie() {
        let base = decoded("base", "w", &SHAPE);
        let differences: Vec<f32> = decoded("a", "w", &SHAPE).iter().zip(&base).map(|(a, b)| a - b).collect();
        let rows: Vec<f64> = differences.chunks_exact(SHAPE[1]).map(deviation).collect();
        let (least, most) = rows.iter().fold((f64::MAX, 0f64), |(l, m), &d| (l.min(d), m.max(d)));
        assert!(least > 1.5e-4 && least < 2.5e-4 && most > 1.6e-3 && most < 2.4e-3, "{least} to {most}");
        let mut counts = HashMap::new();
        differences.iter().for_each(|d| *counts.entry(d.abs().to_bits()).or_insert(0) += 1);
        let distinct = counts.len() as f64 / differences.len() as f64;
        assert!(distinct < 0.05, "{distinct} of the magnitudes are distinct");
    }

    #[test]
    fn models_and_tensors_differ() {
        let a = decoded("a", "w", &SHAPE);
        assert_ne!(a, decoded("b", "w", &SHAPE));
        assert_ne!(a, decoded("a", "v", &SHAPE));
    }
}
