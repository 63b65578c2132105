//! Models whose tokenizers, configs and other files beside the weights come from elsewhere, in plans of merges and transplants, in
//! comparisons, and in memory.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use aludel_kernels::nn::cpu::Cpu;
use aludel_merge::diff::{self, diff};
use aludel_merge::execute::ExecuteOptions;
use aludel_merge::plan::{Approximation, Likeness, PieceWeights, Plan, Transplant};
use aludel_merge::recipe::Recipe;
use aludel_model::chat::Moment;
use aludel_model::{Batch, Decoder, Keep, Tokenizer, Use};
use serde_json::Value;

use crate::scratch::{fixture, folder, joined, parts};
use crate::texts::{options, told};

/// Models of a few tokens.
const MODELS: &str = "tests/golden/vocabulary/models";

/// A model beside another that has fuzzed files of a tokenizer: the text of `tokenizer.json`, and that of `tokenizer_config.json` where there is one.
fn beside(bytes: &[u8]) -> (String, String) {
    let [tokenizer, config] = parts(bytes);
    let own = |name: &str| fixture(&format!("{MODELS}/b/{name}"));
    let (model_config, weights) = (own("config.json"), own("model.safetensors"));
    let mut files: Vec<(&str, &[u8])> = vec![
        ("b/config.json", &model_config),
        ("b/model.safetensors", &weights),
        ("b/tokenizer.json", tokenizer),
    ];
    if !config.is_empty() {
        files.push(("b/tokenizer_config.json", config));
    }
    let fuzzed = folder(&files).join("b");
    let sound = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(MODELS).join("a");
    (sound.display().to_string(), fuzzed.display().to_string())
}

/// Merges whose tokens are those of both models, or those of the first.
pub(crate) fn vocabulary(bytes: &[u8]) {
    let (sound, fuzzed) = beside(bytes);
    for tokenizer in ["{source: union, pad_to_multiple_of: 8}", "base"] {
        let key = if tokenizer == "base" { "tokenizer_source" } else { "tokenizer" };
        let recipe = format!(
            "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: '{fuzzed}'}}, {{model: '{sound}'}}]\n{key}: {tokenizer}\n"
        );
        match Plan::new(&Recipe::parse(&recipe).expect("a recipe"), &options()) {
            Ok(plan) => written(&plan),
            Err(problems) => told(&problems),
        }
    }
}

/// What a plan writes of a tokenizer can be read again, and its tables are no larger than what they are made of.
fn written(plan: &Plan) {
    for file in &plan.side_files.written {
        if file.name.extension().is_some_and(|extension| extension == "json") {
            serde_json::from_str::<Value>(&file.text).expect("JSON");
        }
    }
    assert!(
        plan.layout.total_bytes() < 1 << 24,
        "{} bytes of a model of some kilobytes",
        plan.layout.total_bytes()
    );
}

pub(crate) fn vocabulary_seeds() -> Vec<Vec<u8>> {
    let file = |model: &str, name: &str| fixture(&format!("{MODELS}/{model}/{name}"));
    ["b", "b-unigram", "b-wordpiece"]
        .map(|model| joined(&[&file(model, "tokenizer.json"), &file("b", "tokenizer_config.json")]))
        .into()
}

/// A model that gets a fuzzed tokenizer, and one with a fuzzed tokenizer that gets another.
pub(crate) fn transplant(bytes: &[u8]) {
    let (sound, fuzzed) = beside(bytes);
    let tokenizer = Tokenizer::open(Path::new(&fuzzed));
    let cut = |text: &str| match &tokenizer {
        Ok(tokenizer) => {
            tokenizer.encode_plain(text).map(|tokens| tokens.ids).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    let asked = [
        (&sound, &fuzzed, Approximation::Matching { k: 4 }),
        (&fuzzed, &sound, Approximation::Pieces(PieceWeights::Mean)),
    ];
    for (model, donor, approximation) in asked {
        let transplant = Transplant {
            model,
            donor,
            approximation,
            prefix_match: Likeness::Both,
            byte_match: Likeness::Both,
            noise: 0.0,
            scale: 1.0,
        };
        match Plan::of_transplant(&transplant, &cut, &options()) {
            Ok(plan) => written(&plan),
            Err(problems) => told(&problems),
        }
    }
}

/// Files beside `tokenizer.json` that give tokens a role: `tokenizer_config.json`, `special_tokens_map.json`, `generation_config.json`.
pub(crate) fn roles(bytes: &[u8]) {
    let [config, special, generation] = parts(bytes);
    let tokenizer = fixture(&format!("{MODELS}/a/tokenizer.json"));
    let mut files: Vec<(&str, &[u8])> = vec![("tokenizer.json", &tokenizer)];
    let given = [
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", special),
        ("generation_config.json", generation),
    ];
    files.extend(given.into_iter().filter(|(_, text)| !text.is_empty()));
    let Ok(tokenizer) = Tokenizer::open(&folder(&files)) else { return };
    drop(tokenizer.encode("the hill <s>"));
    drop(tokenizer.chat_template(Moment::since_1970(0)));
}

pub(crate) fn roles_seeds() -> Vec<Vec<u8>> {
    let file = |name: &str| fixture(&format!("{MODELS}/a/{name}"));
    let generation = br#"{"eos_token_id": [1, 2]}"#;
    let chat = br#"{"chat_template": [{"name": "default", "template": "{{ messages }}"}], "add_bos_token": true, "bos_token": {"content": "<s>"}}"#;
    vec![
        joined(&[&file("tokenizer_config.json"), &file("special_tokens_map.json"), generation]),
        joined(&[chat, b"", generation]),
    ]
}

/// A comparison with a model whose files are fuzzed: `config.json`, `tokenizer.json`, `tokenizer_config.json`.
pub(crate) fn side_files(bytes: &[u8]) {
    let [config, tokenizer, tokenizer_config] = parts(bytes);
    let own = |name: &str| fixture(&format!("{MODELS}/a/{name}"));
    let weights = own("model.safetensors");
    let files = [
        ("a/model.safetensors", weights.as_slice()),
        ("a/config.json", config),
        ("a/tokenizer.json", tokenizer),
        ("a/tokenizer_config.json", tokenizer_config),
    ];
    let second = folder(&files).join("a");
    let first = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(MODELS).join("a");
    let settings = diff::Settings {
        first: &first.to_string_lossy(),
        second: &second.to_string_lossy(),
        tolerance: 0.0,
        relative_tolerance: 0.0,
        ignore_types: false,
    };
    if let Ok(difference) = diff(&settings, &options(), &ExecuteOptions::default()) {
        assert!(difference.values.is_empty(), "the weights are the same");
    }
}

pub(crate) fn side_files_seeds() -> Vec<Vec<u8>> {
    let file = |model: &str, name: &str| fixture(&format!("{MODELS}/{model}/{name}"));
    ["a", "b", "a-unigram"]
        .map(|model| {
            joined(
                &["config.json", "tokenizer.json", "tokenizer_config.json"]
                    .map(|name| file(model, name))
                    .each_ref()
                    .map(Vec::as_slice),
            )
        })
        .into()
}

/// A model with a fuzzed config, which computes where it is one of its weights.
pub(crate) fn model(bytes: &[u8]) {
    const MODEL: &str = "tests/golden/training/student";
    let weights = fixture(&format!("{MODEL}/model.safetensors"));
    let path = folder(&[("config.json", bytes), ("model.safetensors", &weights)]);
    let device = Arc::new(Cpu::new(NonZeroUsize::new(1)).expect("a thread"));
    let Ok(decoder) = Decoder::open(&path, device, Use::Frozen) else { return };
    drop(decoder.forward(&Batch::pack([[1, 2, 3].as_slice()]), Keep::Nothing, &[]));
}

pub(crate) fn model_seeds() -> Vec<Vec<u8>> {
    vec![fixture("tests/golden/training/student/config.json")]
}
