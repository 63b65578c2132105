//! Turns what other tools stored of a teacher into a cache, and a cache into what other tools read.
//!
//! In: Parquet or JSON lines of token ids with the likeliest tokens of each position, plain or as DistillKit packs them, and the run that is to
//! be trained from it; or a cache. Out: a cache of kind `top_k`, as a capture of that run would have written it; or Parquet.
//!
//! Reading order: [`mod@import`] (rows of a source as records of a run's data), `source` (rows of all layouts), `columns` and `lines` (files),
//! `distillkit` (packed rows), `likeliest` (rows of a cache); [`mod@export`] (records as rows), `table` (a file), [`mod@restore`] (exported rows
//! as records again).

mod columns;
mod distillkit;
pub mod export;
pub mod import;
mod likeliest;
mod lines;
pub mod restore;
mod source;
mod table;

pub use export::{Export, Exported, Layout, export};
pub use import::{Import, Imported, import};
pub use restore::{Restore, header_of, restore};

#[cfg(test)]
mod tests;
