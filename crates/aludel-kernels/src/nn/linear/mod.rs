//! Multiplies rows by a weight as a linear layer stores it, and computes both gradients; one weight, or one for each expert.
//!
//! `y = s x w^T + b`; `dx = s dy w`; `dw += s dy^T x`, `db += sum over rows of dy`. A grouped product is the same over
//! ranges of rows, each with its own weight. LoRA (Hu et al. 2022) is two such products, `y += (alpha / r) (x A^T) B^T`, the
//! factor folded into the second.
//!
//! Weights may be f32, bf16 or f16: panels of 16-bit ones are decoded into a scratch of each thread inside the product. Few
//! rows are multiplied where the weight lies, once over its bytes.
//!
//! Tolerance: `2e-7 sqrt(I)` of `|x| |w|` (norms of the row and of the weight's row), likewise for the gradients with the
//! length of their sums.

pub(crate) mod cpu;
pub(in crate::nn) mod cuda;
pub(in crate::nn) mod few;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
