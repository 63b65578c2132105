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

use std::path::Path;

use aludel_cache::SparseRows;

use crate::error::Error;

/// The rows of a source that any of its positions make, for those who try its readers without a run.
///
/// # Errors
/// What is wrong with the source.
#[doc(hidden)]
pub fn read_source(path: &Path, configuration: Option<&Path>) -> Result<SparseRows, Error> {
    let mut source = source::Source::open(path, configuration)?;
    let mut rows = SparseRows::default();
    while source.next_tokens()?.is_some() {
        let told = source.told()?;
        let rules = likeliest::Rules {
            vocabulary: source.vocabulary().unwrap_or(64),
            k: 8,
            is_cut: true,
            are_logits: source.is_fitted(),
            slack: likeliest::EXACT,
        };
        for at in 0..told.id_ends.len().min(told.value_ends.len()) {
            let ids = source::of_list(&told.ids, &told.id_ends, at);
            let values = source::of_list(&told.values, &told.value_ends, at);
            // What is no row leaves the rows as they were.
            let _ = likeliest::push(&rules, ids, values, &mut rows);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
