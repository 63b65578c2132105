//! Parses real configs in miniature, the same with one thing wrong, and arbitrary ones.

use std::path::Path;

use aludel_checkpoint::Config;
use aludel_kernels::nn::Activation;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{FeedForward, ModelConfig, QueryKeyNorm, Scaling, supported_families};
use crate::Error;

fn config(value: &Value) -> Config {
    Config::parse(&value.to_string(), Path::new("config.json")).unwrap()
}

fn parse(value: &Value) -> ModelConfig {
    ModelConfig::parse(&config(value)).unwrap()
}

fn problems(value: &Value) -> Vec<String> {
    match ModelConfig::parse(&config(value)) {
        Err(Error::Config(problems)) => problems.lines().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "vocab_size": 50,
    })
}

/// The same with some keys set.
fn with(mut base: Value, keys: Value) -> Value {
    base.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    base
}

#[test]
fn absent_keys_have_the_defaults_of_the_family() {
    let parsed = parse(&llama());
    let attention = &parsed.layers[2].attention;
    assert_eq!((attention.heads, attention.key_heads, attention.width), (6, 3, 2));
    assert_eq!(attention.scale, 0.5f32.sqrt());
    assert_eq!((parsed.norm.epsilon, parsed.tied, parsed.positions), (1e-6, false, 2048));
    assert_eq!((parsed.ropes.len(), parsed.ropes[0].theta), (1, 10_000.0));
    // A null number of key heads means one for each head; an absent one is the family's.
    let mistral = with(
        llama(),
        json!({"model_type": "mistral", "architectures": null, "num_attention_heads": 16, "head_dim": 4}),
    );
    let keys = |value: &Value| parse(value).layers[0].attention.key_heads;
    assert_eq!(keys(&with(mistral.clone(), json!({"num_key_value_heads": null}))), 16);
    let mut absent = mistral.clone();
    absent.as_object_mut().unwrap().remove("num_key_value_heads");
    assert_eq!(keys(&absent), 8);
    assert_eq!(
        parse(&with(mistral.clone(), json!({"num_key_value_heads": 4}))).layers[0].attention.window,
        Some(4096)
    );
    let all = with(mistral, json!({"num_key_value_heads": 4, "sliding_window": null}));
    assert_eq!(parse(&all).layers[0].attention.window, None);
}

#[test]
fn the_config_of_a_real_smollm2_is_understood() {
    // As it is published, with the keys that change nothing.
    let parsed = parse(&json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false,
        "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "transformers_version": "4.42.3",
        "use_cache": true, "vocab_size": 49152
    }));
    assert_eq!((parsed.layers.len(), parsed.hidden, parsed.vocabulary, parsed.tied), (30, 576, 49152, true));
    assert_eq!(parsed.layers[7].attention.width, 64);
    assert_eq!(parsed.ropes[0].theta, 100_000.0);
    assert_eq!(
        parsed.layers[0].feed_forward,
        FeedForward::Dense { width: 1536, activation: Activation::Silu, bias: false }
    );
}

#[test]
fn the_config_of_a_real_gemma3_is_understood() {
    let parsed = parse(&json!({
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 18, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000.0, "sliding_window": 512, "use_bidirectional_attention": false,
        "vocab_size": 262144, "use_cache": true
    }));
    let windows: Vec<bool> = parsed.layers.iter().map(|layer| layer.attention.window.is_some()).collect();
    assert_eq!(windows.iter().filter(|slides| !**slides).count(), 3);
    assert!(!windows[5] && !windows[11] && !windows[17]);
    assert_eq!((parsed.ropes[0].theta, &parsed.ropes[0].scaling), (1e6, &Scaling::Linear { factor: 8.0 }));
    assert_eq!((parsed.ropes[1].theta, &parsed.ropes[1].scaling), (1e4, &Scaling::None));
    assert_eq!((parsed.layers[5].attention.rope, parsed.layers[6].attention.rope), (Some(0), Some(1)));
    assert_eq!(parsed.embedding_scale, 640f32.sqrt());
    assert_eq!(parsed.layers[0].attention.scale, 1.0 / 16.0);
    assert!(parsed.norm.one_plus && parsed.tied);
    assert_eq!(parsed.layers[0].attention.query_key_norm, QueryKeyNorm::Head);
}

#[test]
fn what_is_not_supported_is_refused_with_the_nearest_that_is() {
    let of = |model_type: Value| problems(&with(llama(), json!({"model_type": model_type}))).remove(0);
    let supported = supported_families().collect::<Vec<_>>().join(", ");
    assert_eq!(
        of(json!("gemma3n_text")),
        format!(
            "model_type \"gemma3n_text\" is not supported; the nearest is gemma3_text; supported are {supported}"
        )
    );
    assert_eq!(
        of(json!("deepseek_v3")),
        format!("model_type \"deepseek_v3\" is not supported; supported are {supported}")
    );
    assert_eq!(of(json!(3)), format!("it names no model_type; supported are {supported}"));
    assert_eq!(
        problems(&with(llama(), json!({"architectures": ["LlamaForSequenceClassification"]}))),
        ["architecture \"LlamaForSequenceClassification\" is not supported; of llama, LlamaForCausalLM is"]
    );
}

#[test]
fn keys_that_could_change_numbers_are_not_passed_over() {
    for (key, value) in [
        ("rope_interleaved", json!(true)),
        ("quantization_config", json!({"bits": 4})),
        ("sliding_window", json!(128)),
        ("logits_scaling", json!(2.0)),
        ("num_local_experts", json!(8)),
        ("layer_multipliers", json!([1.0])),
    ] {
        let lines = problems(&with(llama(), json!({key: value})));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("key \"{key}\" is not understood for llama")), "{lines:?}");
    }
    assert_eq!(
        problems(&with(llama(), json!({"rms_norm_epsilon": 1e-3}))),
        [
            "key \"rms_norm_epsilon\" is not understood for llama (the nearest is rms_norm_eps); remove it if it changes nothing"
        ]
    );
    let inert = json!({"rope_interleaved": false, "foo": null, "bar": "x", "_baz": 3, "pretraining_tp": 2});
    assert_eq!(parse(&with(llama(), inert)), parse(&llama()));
    let rope = json!({"rope_scaling": {"rope_type": "linear", "factor": 2, "ramp": 3}});
    assert_eq!(problems(&with(llama(), rope)), ["\"ramp\" of the rotary embedding is not understood"]);
}

#[test]
fn all_problems_are_found_at_once() {
    let wrong = json!({
        "hidden_size": 0, "num_attention_heads": 5, "num_key_value_heads": 2, "vocab_size": null,
        "rms_norm_eps": -1, "attention_bias": "yes", "hidden_act": "relu",
        "rope_scaling": {"type": "linear"}, "head_dim": 3
    });
    assert_eq!(
        problems(&with(llama(), wrong)),
        [
            "hidden_size is 0, which is no whole number from 1 to 1048576",
            "5 query heads do not share 2 key heads",
            "rms_norm_eps is -1, which is no number above 0",
            "a rotary embedding of 3 elements with base 10000: the elements must be even and the base above 1",
            "factor of the rotary embedding is missing",
            "attention_bias is \"yes\", which is neither true nor false",
            "hidden_act \"relu\" is not supported; silu, gelu and gelu_pytorch_tanh are",
            "vocab_size is missing",
        ]
    );
}

#[test]
fn scalings_are_read_in_both_spellings() {
    let scaling = |value: Value| parse(&with(with(llama(), json!({"head_dim": 8})), value)).ropes[0].clone();
    let old = |value: Value| scaling(json!({"rope_theta": 500.0, "rope_scaling": value}));
    let new = |mut value: Value| {
        value["rope_theta"] = json!(500.0);
        scaling(json!({"rope_parameters": value}))
    };
    for (value, expected) in [
        (json!({"rope_type": "default"}), Scaling::None),
        (json!({"type": "linear", "factor": 4}), Scaling::Linear { factor: 4.0 }),
        (json!({"rope_type": "dynamic", "factor": 2.0}), Scaling::Dynamic { factor: 2.0, positions: 2048 }),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024}),
            Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 1024 },
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
            Scaling::Yarn {
                factor: 4.0,
                attention: 0.1 * 4f64.ln() + 1.0,
                fast: 32.0,
                slow: 1.0,
                truncated: true,
                original: 512,
            },
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 0.5,
                "mscale_all_dim": 2.0, "beta_fast": 16, "beta_slow": 2, "truncate": false}),
            Scaling::Yarn {
                factor: 4.0,
                attention: (0.05 * 4f64.ln() + 1.0) / (0.2 * 4f64.ln() + 1.0),
                fast: 16.0,
                slow: 2.0,
                truncated: false,
                original: 512,
            },
        ),
    ] {
        let (old, new) = (old(value.clone()), new(value.clone()));
        assert_eq!(old.scaling, expected, "{value}");
        assert_eq!((old.theta, &new), (500.0, &old), "{value}");
    }
    let kind = problems(&with(llama(), json!({"rope_scaling": {"rope_type": "mrope"}})));
    assert_eq!(
        kind,
        ["rope_type \"mrope\" is not supported; default, linear, dynamic, llama3, yarn and longrope are"]
    );
}

#[test]
fn experts_are_where_the_config_says() {
    let mixture = json!({
        "model_type": "qwen3_moe", "architectures": null, "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 7, "norm_topk_prob": true, "decoder_sparse_step": 2, "mlp_only_layers": []
    });
    let parsed = parse(&with(llama(), mixture.clone()));
    let kinds: Vec<bool> = parsed
        .layers
        .iter()
        .map(|layer| {
            matches!(
                layer.feed_forward,
                FeedForward::Experts { count: 6, chosen: 2, width: 7, normalised: true, .. }
            )
        })
        .collect();
    assert_eq!(kinds, [false, true, false]);
    let wrong = with(with(llama(), mixture), json!({"num_experts_per_tok": 7}));
    assert_eq!(problems(&wrong), ["num_experts_per_tok chooses 7 of 6 experts"]);
}

/// Values as they may be found in a hostile file.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..6).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!("default")),
        Just(json!([1, 0, 1])),
        Just(json!(["full_attention", "sliding_attention", "x"])),
        Just(json!({"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1})),
        Just(json!({"rope_type": "longrope", "short_factor": [1e-300], "long_factor": [0.0]})),
        Just(json!({"full_attention": {"rope_type": "dynamic", "factor": 0.1}, "sliding_attention": 3})),
    ]
}

const KEYS: [&str; 32] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "no_rope_layers",
    "no_rope_layer_interval",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "sliding_window_pattern",
    "attention_multiplier",
    "logits_scaling",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "decoder_sparse_step",
    "mlp_only_layers",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "rope_local_base_freq",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is in the file, the answer is a model within bounds or a list of problems; the tables of a model that
    /// is accepted can be made.
    #[test]
    fn arbitrary_configs_do_no_harm(
        family in 0..13usize,
        changes in proptest::collection::vec((0..KEYS.len(), any_value()), 0..5),
    ) {
        let family = supported_families().nth(family).unwrap();
        let mut value = with(llama(), json!({"model_type": family, "architectures": null}));
        for (key, change) in changes {
            value[KEYS[key]] = change;
        }
        if let Ok(parsed) = ModelConfig::parse(&config(&value)) {
            for layer in &parsed.layers {
                let attention = &layer.attention;
                prop_assert!(attention.heads.is_multiple_of(attention.key_heads));
                prop_assert!(attention.scale.is_finite() && attention.scale > 0.0);
            }
            for rope in &parsed.ropes {
                prop_assert!(rope.rotated >= 2 && rope.rotated <= parsed.layers[0].attention.width);
                prop_assert_eq!(rope.frequencies(9).len(), rope.rotated / 2);
            }
        }
    }
}
