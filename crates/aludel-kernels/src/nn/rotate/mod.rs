//! Turns pairs of elements of heads by angles that grow with the position (rotary embedding, Su et al. 2021), in place.
//!
//! `(a, b) = (x_i, x_{i + R/2})` become `(a cos - b sin, b cos + a sin)`. Backward is the rotation by minus the angle.
//!
//! Tolerance: 2e-7 of the pair's length.

pub(in crate::nn) mod cpu;
pub(in crate::nn) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
