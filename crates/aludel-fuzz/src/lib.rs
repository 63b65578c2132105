//! Feeds bytes to every reader of files that come from elsewhere: one [`Target`] for each.
//!
//! In: any bytes. Out: nothing; a reader takes them or refuses them with an error. What fails is a panic, a hang, or memory that the file's length
//! does not justify. The tests of this crate run every target on its seeds and on variants of them; `fuzz/` at the root of the
//! repository runs the same functions under libFuzzer. Where checksums stand before a decoder, a target gives it bytes whose checksums are right.
//!
//! Reading order: `scratch` (a file or folder of these bytes), then the readers: `weights`, `texts`, `vocabularies`,
//! `stored`, `captures`, `answers`, `records`; [`corpus`] (what was found).
#![forbid(unsafe_code)]

mod answers;
mod captures;
pub mod corpus;
mod records;
mod scratch;
mod stored;
mod texts;
mod vocabularies;
mod weights;

/// A reader and what it is tried with.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also of the fuzz target.
    pub name: &'static str,
    /// Feeds bytes to it.
    pub run: fn(&[u8]),
    /// Files as it expects them, from which variants are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All readers.
pub const TARGETS: &[Target] = &[
    Target { name: "safetensors", run: weights::safetensors, seeds: weights::safetensors_seeds },
    Target { name: "index", run: weights::index, seeds: weights::index_seeds },
    Target { name: "gguf", run: weights::gguf, seeds: weights::gguf_seeds },
    Target { name: "torch", run: weights::torch, seeds: weights::torch_seeds },
    Target { name: "pickle", run: weights::pickle, seeds: weights::pickle_seeds },
    Target { name: "adapter", run: weights::adapter, seeds: weights::adapter_seeds },
    Target { name: "config", run: texts::config, seeds: texts::config_seeds },
    Target { name: "recipe", run: texts::recipe, seeds: texts::recipe_seeds },
    Target { name: "experts", run: texts::experts, seeds: texts::experts_seeds },
    Target { name: "formula", run: texts::formula, seeds: texts::formula_seeds },
    Target { name: "run", run: texts::run, seeds: texts::run_seeds },
    Target { name: "tokenizer", run: texts::tokenizer, seeds: texts::tokenizer_seeds },
    Target { name: "chat_template", run: texts::chat_template, seeds: texts::chat_template_seeds },
    Target { name: "roles", run: vocabularies::roles, seeds: vocabularies::roles_seeds },
    Target { name: "vocabulary", run: vocabularies::vocabulary, seeds: vocabularies::vocabulary_seeds },
    Target { name: "transplant", run: vocabularies::transplant, seeds: vocabularies::vocabulary_seeds },
    Target { name: "side_files", run: vocabularies::side_files, seeds: vocabularies::side_files_seeds },
    Target { name: "model", run: vocabularies::model, seeds: vocabularies::model_seeds },
    Target { name: "statistics", run: weights::statistics, seeds: weights::statistics_seeds },
    Target { name: "served", run: answers::served, seeds: answers::served_seeds },
    Target { name: "listing", run: answers::listing, seeds: answers::listing_seeds },
    Target { name: "capture", run: captures::capture, seeds: captures::capture_seeds },
    Target { name: "exported", run: captures::exported, seeds: captures::exported_seeds },
    Target { name: "state", run: records::state, seeds: records::state_seeds },
    Target { name: "part", run: records::part, seeds: records::part_seeds },
    Target { name: "report", run: records::report, seeds: records::report_seeds },
    Target { name: "searched", run: records::searched, seeds: records::searched_seeds },
    Target { name: "varied", run: records::varied, seeds: records::varied_seeds },
    Target { name: "digests", run: records::digests, seeds: records::digests_seeds },
    Target { name: "rows", run: stored::rows, seeds: stored::rows_seeds },
    Target { name: "cache_header", run: stored::cache_header, seeds: stored::cache_header_seeds },
    Target { name: "cache_shard", run: stored::cache_shard, seeds: stored::cache_shard_seeds },
    Target { name: "cache_rows", run: stored::cache_rows, seeds: stored::cache_rows_seeds },
    Target { name: "delta", run: stored::delta, seeds: stored::delta_seeds },
    Target { name: "journal", run: stored::journal, seeds: stored::journal_seeds },
];

/// Finds a reader by its name.
///
/// # Panics
/// Where there is none.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no target `{name}`"))
}
