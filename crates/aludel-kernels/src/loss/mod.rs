//! Computes distillation losses and their gradients together, from logits or fused with the head that makes them.
//!
//! In: rows of student and teacher logits, or the hidden states and the head that they come from; labels; a weighted list
//! of terms. Out: the value of every term and the gradient. Nothing here knows a model, a schedule or a file.
//!
//! Reading order: [`objective`] (the terms), [`mod@reference`] (what they mean, in f64), [`head`] (the loop over
//! chunks of rows), [`device`] (what it asks of a device), [`taid`] (targets that move).

pub mod device;
pub mod head;
pub mod objective;
pub mod reference;
pub mod taid;

pub use device::{Column, Columns, LossDevice, Mode, RowDistance, RowLoss};
pub use head::{Head, HeadGradient, HeadReport, TeacherRows, head_loss, logits_loss};
pub use objective::{Divergence, IGNORED, LabelTerm, Objective, ObjectiveError, Target, Term};
pub use taid::{Annealing, Mixture, Taid, TaidSettings};
