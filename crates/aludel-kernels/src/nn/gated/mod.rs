//! Applies the gate of a feed-forward block: `y = f(gate) * up` (Shazeer 2020), forward and backward.
//!
//! `f` is SiLU `x s(x)`, GELU `x Phi(x)` or its tanh approximation (Hendrycks and Gimpel 2016). Backward, in place:
//! `d_gate = dy up f'(gate)`, `d_up = dy f(gate)`, and `dy` becomes `y` again.
//!
//! Tolerance: absolute error of `f` and `f'` below `1e-6 max(1, |x|)` for f32 inputs.

pub(in crate::nn) mod cpu;
pub(in crate::nn) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
