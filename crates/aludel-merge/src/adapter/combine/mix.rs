//! Mixes tensors of several adapters, element by element.

use aludel_kernels::random::{StreamKey, uniform};

/// What becomes of the numbers that adapters have in one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mixing {
    /// Their weighted sum.
    Linear,
    /// The weighted sum of those of the largest magnitudes of each adapter.
    MagnitudePrune {
        /// The share of each adapter that is kept.
        density: f64,
    },
    /// The weighted mean of those of the largest magnitudes that have the sign of most.
    Ties {
        /// The share of each adapter that is kept.
        density: f64,
        /// Which sign is that of most.
        sign: Sign,
    },
    /// The weighted sum of those that chance has kept.
    DareLinear {
        /// The share of each adapter that is kept.
        density: f64,
    },
    /// The weighted mean of those that chance has kept and that have the sign of most.
    DareTies {
        /// The share of each adapter that is kept.
        density: f64,
        /// Which sign is that of most.
        sign: Sign,
    },
}

/// Whose sign is the sign of most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// That of the sum.
    Total,
    /// That of more numbers.
    Frequency,
}

impl Mixing {
    /// Mixes tensors of equal length with their weights. `keys` are those of their random numbers.
    pub(super) fn mix(self, mut tensors: Vec<Vec<f32>>, weights: &[f32], keys: &[StreamKey]) -> Vec<f32> {
        match self {
            Self::Linear => {}
            Self::MagnitudePrune { density } | Self::Ties { density, .. } => {
                tensors.iter_mut().for_each(|tensor| keep_largest(tensor, density));
            }
            Self::DareLinear { density } | Self::DareTies { density, .. } => {
                tensors.iter_mut().zip(keys).for_each(|(tensor, &key)| keep_drawn(tensor, density, key));
            }
        }
        match self {
            Self::Ties { sign, .. } | Self::DareTies { sign, .. } => elected(&tensors, weights, sign),
            Self::Linear | Self::MagnitudePrune { .. } | Self::DareLinear { .. } => summed(&tensors, weights),
        }
    }
}

/// Sets all but the `floor(density n)` largest magnitudes to zero; of equal ones, the first are kept.
fn keep_largest(tensor: &mut [f32], density: f64) {
    if density >= 1.0 {
        return;
    }
    let kept = (density * tensor.len() as f64) as usize;
    let mut order: Vec<u32> = (0..tensor.len() as u32).collect();
    let magnitude = |at: &u32| tensor[*at as usize].abs();
    let before = |a: &u32, b: &u32| magnitude(b).total_cmp(&magnitude(a)).then(a.cmp(b));
    if kept < order.len() {
        order.select_nth_unstable_by(kept, before);
    }
    order[kept..].iter().for_each(|&at| tensor[at as usize] = 0.0);
}

/// Keeps each element with this probability, divided by it.
fn keep_drawn(tensor: &mut [f32], density: f64, key: StreamKey) {
    if density >= 1.0 {
        return;
    }
    let density = density as f32;
    for (at, value) in tensor.iter_mut().enumerate() {
        *value = if uniform(key, at as u64) < density { *value / density } else { 0.0 };
    }
}

fn summed(tensors: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let mut sum = vec![0.0; tensors.first().map_or(0, Vec::len)];
    for (tensor, weight) in tensors.iter().zip(weights) {
        sum.iter_mut().zip(tensor).for_each(|(sum, value)| *sum += value * weight);
    }
    sum
}

fn elected(tensors: &[Vec<f32>], weights: &[f32], sign: Sign) -> Vec<f32> {
    let signum = |value: f32| if value == 0.0 { 0.0 } else { value.signum() };
    let element = |at: usize| {
        let values = || tensors.iter().map(|tensor| tensor[at]);
        let most: f32 = match sign {
            Sign::Total => values().sum(),
            Sign::Frequency => values().map(signum).sum(),
        };
        let most = if most >= 0.0 { 1.0 } else { -1.0 };
        let (mut sum, mut count) = (0.0, 0.0f32);
        for (value, weight) in values().zip(weights).filter(|&(value, _)| signum(value) == most) {
            sum += value * weight;
            count += 1.0;
        }
        sum / count.max(1.0)
    };
    (0..tensors.first().map_or(0, Vec::len)).map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_kept_and_the_first_of_equals() {
        let kept = |density: f64| {
            let mut values = vec![1.0, -3.0, 2.0, -1.0, 1.0];
            keep_largest(&mut values, density);
            values
        };
        assert_eq!(kept(0.6), [1.0, -3.0, 2.0, 0.0, 0.0]);
        assert_eq!(kept(0.0), [0.0; 5]);
        assert_eq!(kept(1.0), [1.0, -3.0, 2.0, -1.0, 1.0]);
    }

    #[test]
    fn signs_are_elected_before_weights_count() {
        let tensors = vec![vec![1.0, 1.0, 0.0, -1.0], vec![-3.0, 2.0, 0.0, 0.0], vec![1.0, -1.0, 0.0, -1.0]];
        let weights = [10.0, 1.0, 2.0];
        // Total: -1, 2, 0 (which counts as above), -2.
        assert_eq!(elected(&tensors, &weights, Sign::Total), [-3.0, 6.0, 0.0, -6.0]);
        assert_eq!(elected(&tensors, &weights, Sign::Frequency), [6.0, 6.0, 0.0, -6.0]);
    }

    #[test]
    fn what_chance_keeps_has_the_mean_of_all() {
        let mut values = vec![1.0; 1 << 16];
        keep_drawn(&mut values, 0.3, StreamKey(5));
        let kept = values.iter().filter(|&&value| value != 0.0).count() as f64 / values.len() as f64;
        assert!((kept - 0.3).abs() < 0.01, "{kept}");
        assert!(values.iter().all(|&value| value == 0.0 || value == 1.0 / 0.3f32));
        let mixed = Mixing::DareLinear { density: 1.0 }.mix(vec![vec![2.0], vec![3.0]], &[0.5, -1.0], &[]);
        assert_eq!(mixed, [-2.0]);
    }
}
