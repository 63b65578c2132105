//! Updates parameters by AdamW (Loshchilov and Hutter 2019, algorithm 2) in one pass over memory.
//!
//! With `g` the scaled gradient and `t` the step: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
//! `w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + epsilon)`.
//!
//! `blockwise` keeps the moments in eight bits, `split` masters beside weights in bf16.
//!
//! Tolerance: 1e-6 relative for moments, `1e-6 lr` and one rounding for a parameter.

pub(in crate::nn) mod blockwise;
pub(in crate::nn) mod cpu;
pub(in crate::nn) mod cuda;
#[cfg(test)]
mod reference;
pub(crate) mod split;
#[cfg(test)]
mod tests;

pub use blockwise::Moments;
pub use split::Remainders;

use super::device::Update;

/// What an update is to every element: factors, made once in f64.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(in crate::nn) gradient_scale: f32,
    pub(in crate::nn) beta1: f32,
    pub(in crate::nn) rest1: f32,
    pub(in crate::nn) beta2: f32,
    pub(in crate::nn) rest2: f32,
    /// `1 - lr decay`.
    pub(in crate::nn) keep: f32,
    /// `lr / (1 - b1^t)`.
    pub(in crate::nn) rate: f32,
    /// `1 / sqrt(1 - b2^t)`.
    pub(in crate::nn) correction: f32,
    pub(in crate::nn) epsilon: f32,
}

impl Step {
    pub(in crate::nn) fn new(update: Update) -> Self {
        let power = |beta: f32| f64::from(beta).powf(update.step as f64);
        let rate = f64::from(update.learning_rate);
        Self {
            gradient_scale: update.gradient_scale,
            beta1: update.beta1,
            rest1: (1.0 - f64::from(update.beta1)) as f32,
            beta2: update.beta2,
            rest2: (1.0 - f64::from(update.beta2)) as f32,
            keep: (1.0 - rate * f64::from(update.weight_decay)) as f32,
            rate: (rate / (1.0 - power(update.beta1))) as f32,
            correction: (1.0 / (1.0 - power(update.beta2)).sqrt()) as f32,
            epsilon: update.epsilon,
        }
    }
}
