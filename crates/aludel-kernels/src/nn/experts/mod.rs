//! Routes rows to experts, brings them into the order of the experts, and combines what comes back, forward and backward.
//!
//! `p = softmax(logits)` over all experts; the N largest are the row's weights, divided by their sum where asked for
//! (Jiang et al. 2024; Qwen3). Rows are then gathered into slots sorted by expert, so that each layer of all experts is one
//! grouped product (see [`linear`](super::linear)), and `y = sum of w_n x_n`.
//!
//! Backward of the choice: `dl = w (dw - sum w dw)` over the chosen where they are divided by their sum; otherwise
//! `dl_j = p_j (dw_j [chosen] - sum p_n dw_n)` over all.
//!
//! Tolerance: 1e-6 of a weight, 1e-5 norm-wise backward; gathering is exact.

mod assignment;
pub(in crate::nn) mod cpu;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use assignment::Assignment;
