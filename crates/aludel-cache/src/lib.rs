//! Stores what a teacher says of every token of some data, small and verifiable, so that students can be trained without it.
//!
//! In: for each piece of a document, the teacher's rows: its likeliest tokens, draws, quantised logits, or hidden states. Out: a
//! folder with a header and shards, of which any record is read through a memory map. The bytes are specified in
//! `docs/teacher-cache.md`. No model, tokenizer or training is known here, and nothing is computed of a row beyond its coding.
//!
//! Reading order: [`header`] (what a cache is of), [`rows`] (what a record holds), `coder` (bits), `levels` (probabilities as whole
//! numbers), `sets` (which tokens), `sparse` and `dense` (rows as bytes), `shard` (records as a file), [`shelf`] (where files are),
//! [`write`](mod@write), [`read`], [`error`].
#![forbid(unsafe_code)]

mod dense;
mod levels;
mod sets;
mod shard;
mod sparse;

pub mod error;
pub mod header;
pub mod read;
pub mod rows;
pub mod shelf;
pub mod write;

pub use dense::LogitBuffer;
pub use error::Error;
pub use header::{Contents, Header, Teacher, TeacherFile, TokenizerPrint};
pub use read::{Cache, Record, check_shard, is_file_of_cache};
pub use rows::{HiddenRows, LogitRows, RecordId, Rows, Set, SparseRows, content_check};
pub use shelf::{Folder, Shelf};
pub use write::{Part, Writer, WriterOptions};
