//! Defines the norm in f64.

use crate::nn::device::Norm;

pub(super) fn rms_norm(norm: Norm, width: usize, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let shift = if norm.one_plus { 1.0 } else { 0.0 };
    x.chunks(width)
        .flat_map(|x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let r = 1.0 / (mean + f64::from(norm.epsilon)).sqrt();
            x.iter().zip(weight).map(move |(x, g)| x * r * (g + shift)).collect::<Vec<_>>()
        })
        .collect()
}
