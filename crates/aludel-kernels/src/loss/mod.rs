//! Computes distillation losses and their gradients together, from logits or fused with the head that makes them.
//!
//! In: rows of student and teacher logits, or the hidden states and the head that they come from; labels; a weighted list
//! of terms. Out: the value of every term and the gradient. Nothing here knows a model, a schedule or a file.
//!
//! Reading order: [`objective`] (the terms), [`mod@reference`] (what they mean, in f64), [`head`] (the loop over chunks of
//! rows), [`hidden`] (losses between hidden states), [`device`] (what both ask of a device), `divergence` (the terms, one
//! column at a time) and `cpu` (its kernels), [`taid`] (targets that move).

mod cpu;
pub mod device;
mod divergence;
pub mod head;
pub mod hidden;
pub mod objective;
pub mod reference;
pub mod taid;

pub use device::{Column, Columns, LossDevice, Mode, RowDistance, RowLoss};
pub use head::{Head, HeadGradient, HeadReport, TeacherRows, head_loss, logits_loss};
pub use hidden::{HiddenGradient, HiddenLoss, HiddenStates, hidden_loss};
pub use objective::{Divergence, IGNORED, LabelTerm, Objective, ObjectiveError, Target, Term};
pub use taid::{Annealing, Mixture, Taid, TaidSettings};
