//! Computes causal attention over spans with a streamed softmax, and its gradient by computing the scores again.
//!
//! `s = scale q k^T`, capped `s = c tanh(s / c)`; `p = softmax(s)` over the keys that a query sees; `y = p v`. Forward keeps
//! the running greatest score and sum of each row (Milakov and Gimelshein 2018; Dao et al. 2022) and leaves the log-sum-exp.
//! Backward, with `D = dy . y`: `dv = p^T dy`, `ds = p (dy v^T - D) (1 - (s / c)^2)`, `dq = scale ds k`, `dk = scale ds^T q`.
//! Only tiles of the scores exist at any time.
//!
//! Tolerance: 2e-6 of the largest value forward, 2e-5 norm-wise backward, for f32 inputs.

pub(in crate::nn) mod cpu;
pub(in crate::nn) mod cuda;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
