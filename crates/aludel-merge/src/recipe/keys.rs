//! Lists the keys of a recipe.
//!
//! Keys that mergekit has and this version refuses are among them, each with what to do instead. Parameters of merge
//! methods are not listed here: each method brings its own.

use aludel_document::Key;

/// The keys of the whole recipe.
pub(super) const RECIPE: &[Key] = &[
    Key::read("merge_method"),
    Key::read("models"),
    Key::read("slices"),
    Key::read("modules"),
    Key::read("base_model"),
    Key::read("parameters"),
    Key::read("dtype"),
    Key::read("out_dtype"),
    Key::read("tokenizer_source"),
    Key::read("tokenizer"),
    Key::read("chat_template"),
    Key::read("align_experts"),
    Key::read("name"),
];

/// The keys of one entry of `models`.
pub(super) const MODEL: &[Key] = &[
    Key::read("model"),
    Key::read("parameters"),
    Key::later("layer_range", "it belongs to the sources of `slices`; merge whole models"),
];

/// The keys of one entry of `modules`.
pub(super) const MODULE: &[Key] = &[Key::read("models"), Key::read("slices"), Key::read("parameters")];

/// The keys of one entry of `slices`.
pub(super) const SLICE: &[Key] = &[
    Key::read("sources"),
    Key::read("base_model"),
    Key::read("parameters"),
    Key::later("residual_weight", "remove it: mergekit reads it and does nothing with it"),
    Key::later(
        "merge_method",
        "the method is one for all slices: merge the slices one by one and then stack them",
    ),
];

/// The keys of one entry of a slice's `sources`.
pub(super) const SOURCE: &[Key] = &[Key::read("model"), Key::read("layer_range"), Key::read("parameters")];

/// The keys of a model that is written as a mapping.
pub(super) const REFERENCE: &[Key] = &[
    Key::read("model"),
    Key::read("lora"),
    Key::later(
        "override_architecture",
        "remove it: names and shapes of tensors say what is merged, whatever the architecture is called",
    ),
];

/// The keys of its path, where that is a mapping too.
pub(super) const MODEL_PATH: &[Key] = &[Key::read("path"), Key::read("revision")];

/// The keys of one entry of a filtered value.
pub(super) const FILTERED: &[Key] = &[Key::read("filter"), Key::read("value")];

/// The keys of `tokenizer`.
pub(super) const TOKENIZER: &[Key] =
    &[Key::read("source"), Key::read("tokens"), Key::read("pad_to_multiple_of")];

/// The keys of one entry of a tokenizer's `tokens`.
pub(super) const TOKEN: &[Key] = &[Key::read("source"), Key::read("force")];

/// The keys of a token's `source`.
pub(super) const TOKEN_ROW: &[Key] =
    &[Key::read("kind"), Key::read("model"), Key::read("token"), Key::read("token_id")];

/// The keys of a recipe that builds a mixture of experts.
pub(super) const EXPERTS: &[Key] = &[
    Key::read("base_model"),
    Key::read("experts"),
    Key::read("shared_experts"),
    Key::read("gate_mode"),
    Key::read("experts_per_token"),
    Key::read("dtype"),
    Key::read("architecture"),
];

/// The keys of one of its experts.
pub(super) const EXPERT: &[Key] = &[
    Key::read("source_model"),
    Key::read("positive_prompts"),
    Key::read("negative_prompts"),
    Key::read("noise_scale"),
    Key::read("residual_scale"),
];
