//! Computes distillation losses and their gradients together, from logits or fused with the head that makes them.
//!
//! In: rows of student and teacher logits, or the hidden states and the head that they come from; labels; a weighted list
//! of terms. Out: the value of every term and the gradient. Nothing here knows a model, a schedule or a file.
//!
//! Tolerance, held by tests: value and gradient of a batch lie within 1e-5 (relative, norm-wise) of the specification in f64
//! over the same inputs, whatever their type. Only where the distributions of all rows agree to three digits is the gradient
//! so small that the rounding of f32 shows more, up to 1e-4. Rows are computed by themselves: threads and chunks change no bit of a row's
//! value or of its gradient by the logits. Padded columns, columns of one model only, ignored rows and logits of `-inf` are
//! where their documentation says; NaN stays in its row and shows in the value.
//!
//! Reading order: [`objective`] (the terms), [`mod@reference`] (what they mean, in f64), [`head`] (the loop over chunks of
//! rows), [`hidden`] (losses between hidden states), [`device`] (what both ask of a device), `divergence` (the terms, one
//! column at a time), `cpu` and `cuda` (its kernels), [`sparse`] (teachers of which some columns are known), [`extract`] (what a cache keeps of
//! logits), [`sorted`] (teachers of another vocabulary), [`taid`] (targets that move).

mod cpu;
mod cuda;
pub mod device;
mod divergence;
pub mod extract;
pub mod head;
pub mod hidden;
pub mod objective;
pub mod reference;
pub mod sorted;
pub mod sparse;
pub mod taid;

pub use device::{Column, Columns, LossDevice, Mode, RowDistance, RowLoss};
pub use extract::{Draws, LevelBits, Likeliest, Quantised, draw, likeliest, quantise};
pub use head::{
    Aligned, HEAD_MEMORY, Head, HeadGradient, HeadReport, LogitSource, Measured, TeacherRows, each_logits,
    head_loss, logits_loss, map_logits,
};
pub use hidden::{HiddenGradient, HiddenLoss, HiddenStates, hidden_loss};
pub use objective::{Divergence, IGNORED, LabelTerm, Objective, ObjectiveError, Target, Term};
pub use sorted::{Ranked, SortedRows};
pub use sparse::{Known, SparseRow, SparseRows, Tail};
pub use taid::{Annealing, Mixture, Taid, TaidSettings};
