//! Turns files of texts and conversations into the steps of a training: packed tokens with the label of each.
//!
//! In: the settings under `data:`, the student's tokenizer, a seed. Out: a [`Stream`] of [`Step`]s, the same for the same
//! settings whatever happens in between: a [`Cursor`] taken after any step gives all the steps that follow it. Of the data
//! themselves, memory holds where each row begins, and the rows of a few sequences. No model is known here.
//!
//! Reading order: `format`, `scan`, `parquet` and `pages` (files to rows), `rows` (any row by its number), `record` (what a row holds),
//! `encode` (tokens and labels), `align` (beside a teacher's with other tokens), `order` (shuffling), `pack` (sequences), `stream` (steps, and where they are), `loader`
//! (a thread that works ahead).

mod align;
mod encode;
mod format;
mod loader;
mod order;
mod pack;
pub(crate) mod pages;
mod parquet;
mod record;
mod rows;
mod scan;
mod stream;

pub use align::Taught;
pub use encode::{Document, Encoder};
pub use format::Format;
pub use loader::Loader;
pub use order::Order;
pub use record::Record;
pub use rows::{Corpus, RowProblem, Rows};
pub use stream::{Aligned, Cursor, MicroBatch, Origin, Step, Stream, StreamSettings};

#[cfg(test)]
mod tests;
