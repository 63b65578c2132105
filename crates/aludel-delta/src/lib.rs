//! Stores a model as what it differs by from another, element by element and bit by bit, and gives it back exactly.
//!
//! In: chunks of the model's bytes beside those of its base. Out: a folder with `delta.json`, `delta.index` and `delta.bin`, and back. What
//! models are, and how their values come about, is not known here: elements are bit patterns of floating-point numbers, and near values
//! have near patterns.
//!
//! Reading order: [`chunk`] (how a chunk is coded), [`header`], [`mod@write`], [`read`].
#![forbid(unsafe_code)]

pub mod chunk;
mod error;
pub mod header;
pub mod read;
pub mod write;

pub use error::Error;
pub use header::{DATA_FILE, DeltaTensor, HEADER_FILE, Header, INDEX_FILE};
pub use read::Delta;
pub use write::DeltaWriter;

/// Elements of a chunk; the last one of a tensor may have fewer.
pub const CHUNK: u64 = 1 << 16;
