//! Looks rows of a table up, and adds their gradients back.
//!
//! Tolerance: forward exact up to the rounding of `scale`; backward one rounding for each row that is added, in the order of
//! the rows.

pub(in crate::nn) mod cpu;
pub(in crate::nn) mod cuda;
#[cfg(test)]
mod tests;
