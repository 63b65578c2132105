//! Writes the config of a mixture of experts: the base model's, with the keys that say what the experts are.
//!
//! In: the base's config and the output's layout. Out: the config to write. A key that the base leaves to the default of its own
//! family is written out, as the output's family may have another.

use aludel_checkpoint::Config;
use serde_json::{Value, json};

use super::layout::Layout;
use crate::problem::Problem;
use crate::recipe::ExpertsRecipe;

/// The config of the output.
pub(super) fn config_of(
    base: &Config,
    family: &str,
    layout: &Layout,
    recipe: &ExpertsRecipe,
) -> Result<Config, Problem> {
    let mut object = base.object().clone();
    for key in ["auto_map", "pretraining_tp", "mlp_bias"] {
        object.shift_remove(key);
    }
    if layout.biases.is_empty() || layout.needs_biases {
        object.shift_remove("attention_bias");
    }
    let needed = |key: &str| {
        let value = base.value(key).filter(|value| value.is_u64()).cloned();
        value.ok_or_else(|| {
            let name = recipe.base_model.value.text();
            let message = format!("config.json of `{name}` has no number `{key}`");
            Problem::at(recipe.base_model.place.clone(), message)
        })
    };
    for key in ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        needed(key)?;
    }
    for (key, value) in defaults(family, &needed("num_attention_heads")?) {
        let is_given = match key {
            // A window that is null is none; one that is absent is the default.
            "sliding_window" => object.contains_key(key),
            "rope_theta" => object.contains_key(key) || object.contains_key("rope_parameters"),
            _ => object.get(key).is_some_and(|value| !value.is_null()),
        };
        if !is_given {
            object.insert(key.to_owned(), value);
        }
    }
    if family == "mistral" && layout.model_type == "qwen2_moe" {
        let has_window = object.get("sliding_window").is_some_and(|window| !window.is_null());
        object.insert("use_sliding_window".into(), has_window.into());
        object.insert("max_window_layers".into(), json!(0));
    }
    object.insert("architectures".into(), json!([layout.class]));
    object.insert("model_type".into(), layout.model_type.into());
    for (key, value) in layout.keys(recipe, &needed("intermediate_size")?) {
        object.insert(key.into(), value);
    }
    Ok(Config::from_object(object))
}

/// What transformers takes for keys that a config of this family leaves out.
fn defaults(family: &str, heads: &Value) -> Vec<(&'static str, Value)> {
    let (theta, epsilon) = (("rope_theta", json!(10000.0)), ("rms_norm_eps", json!(1e-6)));
    let keys = |heads: Value, positions: u32| {
        vec![
            theta.clone(),
            epsilon.clone(),
            ("num_key_value_heads", heads),
            ("max_position_embeddings", json!(positions)),
        ]
    };
    let with = |mut keys: Vec<(&'static str, Value)>, more: &[(&'static str, Value)]| {
        keys.extend(more.iter().cloned());
        keys
    };
    match family {
        "llama" => keys(heads.clone(), 2048),
        "mistral" => with(keys(json!(8), 4096 * 32), &[("sliding_window", json!(4096))]),
        "qwen3" => with(keys(json!(32), 32_768), &[("head_dim", json!(128))]),
        _ => keys(json!(32), 32_768),
    }
}
