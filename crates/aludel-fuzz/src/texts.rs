//! What people write, and the texts that come with models: recipes, runs, configs, tokenizers, chat templates.

use std::borrow::Cow;
use std::path::Path;

use aludel_checkpoint::Config;
use aludel_distill::run::Run;
use aludel_document::Problems;
use aludel_merge::plan::{Gates, Plan, PlanOptions};
use aludel_merge::recipe::{ExpertsRecipe, Recipe};
use aludel_model::chat::{ChatContext, ChatTemplate, Moment};
use aludel_model::{ModelConfig, Tokenizer};
use serde_json::json;

use crate::scratch::{fixture, folder};

/// Stands for the folder of the models that recipes name.
pub(crate) const MODELS: &str = "MODELS";

pub(crate) fn with_models(bytes: &[u8]) -> String {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    String::from_utf8_lossy(bytes).replace(MODELS, &models.to_string_lossy())
}

/// Problems are told, each with a place, on lines of their own.
pub(crate) fn told(problems: &Problems) {
    assert!(!problems.is_empty(), "refused without a reason");
    for problem in problems {
        assert!(!problem.to_string().contains(char::is_control), "{problem:?} would spoil a terminal");
    }
}

pub(crate) fn options() -> PlanOptions {
    PlanOptions { threads: 1, ..PlanOptions::default() }
}

pub(crate) fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(config) = Config::parse(&text, Path::new("config.json")) else { return };
    drop(ModelConfig::parse(&config));
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    let decoders = ["llama-yarn", "gemma3", "qwen3_moe", "phi3"]
        .map(|name| format!("tests/golden/decoder/{name}/config.json"));
    decoders.iter().map(|path| fixture(path)).collect()
}

pub(crate) fn recipe(bytes: &[u8]) {
    let planned = Recipe::parse(&with_models(bytes)).and_then(|recipe| Plan::new(&recipe, &options()));
    if let Err(problems) = planned {
        told(&problems);
    }
}

pub(crate) fn recipe_seeds() -> Vec<Vec<u8>> {
    let cases = ["dare_ties-gradient", "dare_linear-slices", "della_linear-filters", "fisher-three"];
    cases
        .iter()
        .map(|case| {
            String::from_utf8_lossy(&fixture(&format!("tests/golden/cases/{case}/recipe.yml")))
                .replace("models/", "MODELS/")
                .into_bytes()
        })
        .collect()
}

pub(crate) fn experts(bytes: &[u8]) {
    let recipe = ExpertsRecipe::parse(&with_models(bytes));
    if let Err(problems) = recipe.and_then(|recipe| Plan::of_experts(&recipe, &Gates::Unknown, &options())) {
        told(&problems);
    }
}

pub(crate) fn experts_seeds() -> Vec<Vec<u8>> {
    let random = "base_model: MODELS/base\ngate_mode: random\nexperts:\n- source_model: MODELS/a\n- source_model: MODELS/b\n  noise_scale: 0.5\n";
    let prompted = "base_model: MODELS/base\ngate_mode: hidden\ndtype: bfloat16\nexperts_per_token: 1\narchitecture: mixtral\nexperts:\n- source_model: MODELS/a\n  positive_prompts: [\"a\"]\n  negative_prompts: [\"b\"]\n- source_model: MODELS/b\n  positive_prompts: [c]\n  residual_scale: 0.1\n";
    [random, prompted].map(|text| text.as_bytes().to_vec()).into()
}

/// The expression of a recipe of the method `formula`.
pub(crate) fn formula(bytes: &[u8]) {
    let recipe = json!({
        "merge_method": "formula",
        "base_model": format!("{MODELS}/base"),
        "models": [{"model": format!("{MODELS}/a"), "parameters": {"weight": 0.5, "density": 0.5}}, {"model": format!("{MODELS}/b")}],
        "parameters": {"formula": String::from_utf8_lossy(bytes), "lambda": 0.9},
    });
    self::recipe(recipe.to_string().as_bytes());
}

pub(crate) fn formula_seeds() -> Vec<Vec<u8>> {
    [
        "base + total((model - base) * weight) * lambda",
        "base + total((model - base) * (random() < density) * weight) * lambda",
        "elected = total((model - base) * top(model - base, density * elements)) >= 0; base + total((model - base) * ((model - base >= 0) == elected))",
        "model[0] * 0.5 + model[1] * (1 - 0.5)",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

pub(crate) fn run(bytes: &[u8]) {
    match Run::parse(&String::from_utf8_lossy(bytes)) {
        Ok(run) => drop(run.to_json().expect("a run that was accepted can be recorded")),
        Err(problems) => told(&problems),
    }
}

pub(crate) fn run_seeds() -> Vec<Vec<u8>> {
    let reals = ["jsd", "taid"].map(|name| fixture(&format!("docs/real-distillation/{name}.yml")));
    [fixture("examples/distil.yml")].into_iter().chain(reals).collect()
}

pub(crate) fn tokenizer(bytes: &[u8]) {
    let config = br#"{"bos_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}"#;
    let folder = folder(&[("tokenizer.json", bytes), ("tokenizer_config.json", config)]);
    let Ok(tokenizer) = Tokenizer::open(&folder) else { return };
    if let Ok(ids) = tokenizer.encode("In the beginning é \u{1f600}\n") {
        let vocabulary = tokenizer.vocabulary();
        assert!(ids.iter().all(|&id| (id as usize) < vocabulary), "an id beyond the vocabulary");
    }
}

pub(crate) fn tokenizer_seeds() -> Vec<Vec<u8>> {
    vec![fixture("examples/models/base/tokenizer.json")]
}

pub(crate) fn chat_template(bytes: &[u8]) {
    let Ok(template) = ChatTemplate::parse(&text(bytes), Moment::since_1970(0)) else { return };
    let messages = [
        json!({"role": "system", "content": "Be brief."}),
        json!({"role": "user", "content": "Hello"}),
        json!({"role": "assistant", "content": "Hello to you"}),
    ];
    let context =
        ChatContext { special_tokens: vec![("bos_token", "<s>".into())], tools: serde_json::Value::Null };
    if let Ok(conversation) = template.render_turns(&messages, 0, &context) {
        for span in conversation.spans {
            assert!(conversation.text.get(span).is_some(), "a span outside of the text");
        }
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

pub(crate) fn chat_template_seeds() -> Vec<Vec<u8>> {
    ["generation", "llama3", "qwen3", "smollm2"]
        .map(|name| fixture(&format!("tests/golden/chat/templates/{name}.jinja")))
        .into()
}
