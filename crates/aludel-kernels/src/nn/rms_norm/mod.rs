//! Normalises rows by their root mean square, forward and backward.
//!
//! `y = x r g` with `r = 1 / sqrt(mean(x^2) + epsilon)` and `g` the weight, or one more than it (Zhang and Sennrich 2019).
//! Backward, with `h = dy g`: `dx = r (h - x r^2 mean(h x))` and `dg = sum over rows of dy x r`.
//!
//! Tolerance: 2e-6 of the row's largest output forward, 1e-5 norm-wise backward, for f32 inputs.

pub(in crate::nn) mod cpu;
pub(in crate::nn) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
