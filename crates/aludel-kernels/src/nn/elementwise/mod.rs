//! Copies, fills, adds and scales buffers, and sums their squares.
//!
//! Tolerance: exact up to the rounding of the result; `add` with one rounding where the machine has a fused multiplication.
//! The sum of squares is in f64: chunks in order, each in sixteen lanes.

pub(crate) mod cpu;
pub(crate) mod cuda;
#[cfg(test)]
mod tests;
