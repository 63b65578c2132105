//! Says what is in a model, and how models differ from the base that they come from.
//!
//! In: models as a recipe names them. Out: [`Contents`] from headers alone, or a [`Comparison`] measured in one streamed sweep
//! over all of them: how far each model has moved from the base, where, and how far the models agree about the direction. Both are
//! values that serialise and print themselves; [`page`] renders a comparison as HTML. Nothing is judged here, and no model is run.
//!
//! Reading order: `groups` (layers), `contents`, `sums` (what is measured, as a formula), `figures` (what that means),
//! `compare` (models in, comparison out), `print`, `page`.

mod compare;
mod contents;
mod figures;
mod groups;
pub mod page;
mod print;
mod sums;

pub(crate) use contents::natural;
pub(crate) use print::Table;

pub use compare::{Comparison, Group, Settings, TensorFigures, Uncompared, compare};
pub use contents::{Contents, Counted, TensorFacts, contents};
pub use figures::{Figures, ModelFigures, PairFigures};
