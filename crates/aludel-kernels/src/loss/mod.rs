//! Computes distillation losses and their gradients together, from logits or fused with the head that makes them.
//!
//! In: rows of student and teacher logits, or the hidden states and the head that they come from; labels; a weighted list
//! of terms. Out: the value of every term and the gradient. Nothing here knows a model, a schedule or a file.

pub mod objective;

pub use objective::{Divergence, LabelTerm, Target, Term};
