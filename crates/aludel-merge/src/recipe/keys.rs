//! Lists the keys of a recipe.
//!
//! Keys that mergekit has and this version refuses are among them, each with what to do instead. Parameters of merge
//! methods are not listed here: each method brings its own.

use aludel_document::Key;

/// The keys of the whole recipe.
pub(super) const RECIPE: &[Key] = &[
    Key::read("merge_method"),
    Key::read("models"),
    Key::later("slices", "merge whole models: list them under `models`"),
    Key::later("modules", "merge whole models: list them under `models`"),
    Key::read("base_model"),
    Key::read("parameters"),
    Key::read("dtype"),
    Key::read("out_dtype"),
    Key::read("tokenizer_source"),
    Key::later("tokenizer", "use `tokenizer_source` with `base`, `union` or one of the models"),
    Key::read("chat_template"),
    Key::later("name", "keep one recipe per file and leave its name out"),
];

/// The keys of one entry of `models`.
pub(super) const MODEL: &[Key] = &[
    Key::read("model"),
    Key::read("parameters"),
    Key::later("layer_range", "it belongs to the sources of `slices`; merge whole models"),
];

/// The keys of one entry of a filtered value.
pub(super) const FILTERED: &[Key] = &[Key::read("filter"), Key::read("value")];
