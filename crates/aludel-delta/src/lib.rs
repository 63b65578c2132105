//! Stores a model as what it differs by from another, element by element, and gives it back: bit by bit, or, where that is asked for, with what is added to the other rounded to FP8.
//!
//! In: chunks of the model's bytes beside those of its base. Out: a folder with `delta.json`, `delta.index` and `delta.bin`, and back. What
//! models are, and how their values come about, is not known here: elements are bit patterns of floating-point numbers, and near values
//! have near patterns.
//!
//! Reading order: [`chunk`] (how a chunk is coded), [`fp8`], [`header`], `record` (the index), [`mod@write`], [`read`].
#![forbid(unsafe_code)]

pub mod chunk;
mod error;
pub mod fp8;
pub mod header;
pub mod read;
mod record;
pub mod write;

pub use error::Error;
pub use header::{DATA_FILE, DeltaTensor, HEADER_FILE, Header, INDEX_FILE, Values};
pub use read::Delta;
pub use write::DeltaWriter;

/// Elements of a chunk; the last one of a tensor may have fewer.
pub const CHUNK: u64 = 1 << 16;
