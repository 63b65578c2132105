//! Finds the attention heads in the tensors of projections, by names, shapes and `config.json`.
//!
//! In: the config of a model, and a tensor's name and sides. Out: which elements belong to which head, as rows of a regular layout: a head of a
//! query, key or value projection is a run of outputs, one of an output projection is a run of inputs. Heads of keys and values that several
//! heads of queries share are heads like any other, and so are those of a fused projection: in every order in which families fuse
//! them, a run of as many outputs as a head is wide belongs to one head and to one of query, key and value.

use aludel_checkpoint::Config;

use crate::adapter::has_inputs_first;
use crate::methods::RowLayout;

/// Where the heads of a tensor are: `None` where it is no projection of an attention, or has one value for all heads.
///
/// # Errors
/// It is one, and its heads cannot be told.
pub(super) fn heads(
    name: &str,
    shape: &[usize],
    config: Option<&Config>,
) -> Result<Option<RowLayout>, String> {
    let Some((module, part)) = name.rsplit_once('.') else { return Ok(None) };
    let Some(side) = projection(module).filter(|_| matches!(part, "weight" | "bias")) else {
        return Ok(None);
    };
    let has_inputs_first = has_inputs_first(module, config);
    let (rows_are_heads, length) = match (shape, side) {
        (&[_], Side::Inputs) => return Ok(None),
        (&[outputs], Side::Outputs) => (true, outputs),
        (&[rows, columns], side) => {
            let rows_are_heads = (side == Side::Outputs) != has_inputs_first;
            (rows_are_heads, if rows_are_heads { rows } else { columns })
        }
        _ => return Ok(None),
    };
    let width = width(config)?;
    if length == 0 || !length.is_multiple_of(width) {
        return Err(format!("{length} values of `{name}` are no multiple of the {width} of a head"));
    }
    let across = shape.iter().product::<usize>() / length;
    Ok(Some(if rows_are_heads {
        RowLayout::of((width * across) as u64)
    } else {
        RowLayout { columns: width as u64, bands: Some((length / width) as u64) }
    }))
}

/// Which side of a projection's weight the heads are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Outputs,
    Inputs,
}

/// What a module projects, where it is part of an attention.
fn projection(module: &str) -> Option<Side> {
    let (parents, word) = module.rsplit_once('.').unwrap_or(("", module));
    let is_attention = parents.contains("attn") || parents.contains("attention");
    if parents.contains(LINEAR) || !is_attention {
        return None;
    }
    match word {
        _ if TO_HEADS.contains(&word) => Some(Side::Outputs),
        _ if FROM_HEADS.contains(&word) => Some(Side::Inputs),
        _ => None,
    }
}

/// Values of one head.
fn width(config: Option<&Config>) -> Result<usize, String> {
    let config = config.ok_or("there is no config.json")?;
    if let Some(key) = OTHERWISE.iter().find(|key| config.value(key).is_some()) {
        return Err(format!("config.json has `{key}`, so that heads are not all of one width"));
    }
    let number = |keys: &[&str]| {
        let value = keys.iter().find_map(|key| config.value(key).filter(|value| !value.is_null()))?;
        value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|&number| number > 0)
    };
    if let Some(width) = number(&["head_dim"]) {
        return Ok(width);
    }
    let (hidden, heads) = (number(HIDDEN), number(HEADS));
    let (Some(hidden), Some(heads)) = (hidden, heads) else {
        return Err("config.json has neither `head_dim` nor `hidden_size` and `num_attention_heads`".into());
    };
    if hidden.is_multiple_of(heads) {
        Ok(hidden / heads)
    } else {
        Err(format!("a hidden size of {hidden} is no multiple of {heads} heads"))
    }
}

/// Modules whose outputs are heads.
const TO_HEADS: &[&str] = &[
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "W_pack",
    "Wqkv",
    "wqkv",
    "wq",
    "wk",
    "wv",
    "qkv",
    "query_key_value",
    "query",
    "key",
    "value",
    "c_attn",
    "q_attn",
];

/// Modules whose inputs are heads.
const FROM_HEADS: &[&str] = &["o_proj", "out_proj", "dense", "c_proj", "wo"];

/// What attention without a softmax is called, whose heads are of other widths.
const LINEAR: &str = "linear_attn";

/// Keys of models of several parts, of latent attention, and of layers whose heads differ.
const OTHERWISE: &[&str] =
    &["text_config", "vision_config", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim", "global_head_dim"];

const HIDDEN: &[&str] = &["hidden_size", "n_embd", "d_model"];
const HEADS: &[&str] = &["num_attention_heads", "n_head", "n_heads"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: serde_json::Value) -> Config {
        Config::parse(&value.to_string(), std::path::Path::new("config.json")).unwrap()
    }

    #[test]
    fn heads_are_runs_of_outputs_or_of_inputs() {
        let llama = config(json!({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}));
        let of = |name: &str, shape: &[usize]| heads(name, shape, Some(&llama)).unwrap();
        let attention = "model.layers.0.self_attn";
        assert_eq!(of(&format!("{attention}.q_proj.weight"), &[64, 64]), Some(RowLayout::of(16 * 64)));
        assert_eq!(of(&format!("{attention}.k_proj.weight"), &[32, 64]), Some(RowLayout::of(16 * 64)));
        assert_eq!(of(&format!("{attention}.qkv_proj.weight"), &[128, 64]), Some(RowLayout::of(16 * 64)));
        let output = RowLayout { columns: 16, bands: Some(4) };
        assert_eq!(of(&format!("{attention}.o_proj.weight"), &[64, 64]), Some(output));
        assert_eq!(of(&format!("{attention}.q_proj.bias"), &[64]), Some(RowLayout::of(16)));
        for (name, shape) in [
            ("model.layers.0.self_attn.o_proj.bias", &[64][..]),
            ("model.layers.0.self_attn.q_norm.weight", &[16]),
            ("model.layers.0.mlp.c_proj.weight", &[64, 64]),
            ("model.layers.0.linear_attn.out_proj.weight", &[64, 64]),
            ("lm_head.weight", &[100, 64]),
            ("scale", &[1]),
        ] {
            assert_eq!(of(name, shape), None, "{name}");
        }
    }

    #[test]
    fn weights_with_their_inputs_first_have_heads_on_the_other_side() {
        let gpt2 = config(json!({"model_type": "gpt2", "n_embd": 8, "n_head": 2}));
        let of = |name: &str, shape: &[usize]| heads(name, shape, Some(&gpt2)).unwrap();
        assert_eq!(of("h.0.attn.c_attn.weight", &[8, 24]), Some(RowLayout { columns: 4, bands: Some(6) }));
        assert_eq!(of("h.0.attn.c_proj.weight", &[8, 8]), Some(RowLayout::of(32)));
        assert_eq!(of("h.0.attn.c_attn.bias", &[24]), Some(RowLayout::of(4)));
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let name = "layers.0.self_attn.q_proj.weight";
        let reason = |value| heads(name, &[60, 64], Some(&config(value))).unwrap_err();
        assert_eq!(heads(name, &[4, 4], None).unwrap_err(), "there is no config.json");
        assert_eq!(
            reason(json!({"hidden_size": 64, "num_attention_heads": 4})),
            format!("60 values of `{name}` are no multiple of the 16 of a head")
        );
        assert_eq!(
            reason(json!({"hidden_size": 64, "num_attention_heads": 5})),
            "a hidden size of 64 is no multiple of 5 heads"
        );
        assert_eq!(
            reason(json!({"hidden_size": 64})),
            "config.json has neither `head_dim` nor `hidden_size` and `num_attention_heads`"
        );
        assert_eq!(
            reason(json!({"head_dim": 16, "kv_lora_rank": 8})),
            "config.json has `kv_lora_rank`, so that heads are not all of one width"
        );
    }
}
