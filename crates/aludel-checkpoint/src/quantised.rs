//! Finds out how a checkpoint is quantised and pairs its FP8 weights with their scales.
//!
//! In: a checkpoint with its `config.json`. Out: the same checkpoint in which every FP8 tensor is an [`Encoded`] one, scales are part of
//! the tensors that they scale, and the config no longer says that anything is quantised. Quantisations that pack
//! several numbers into one are known by name only, to be refused.

use indexmap::IndexMap;
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::checkpoint::{Checkpoint, LeftOut, TensorEntry};
use crate::config::Config;
use crate::encoded::{Encoded, Form, Scale, Scaled};
use crate::error::Error;

/// FP8 weights, with the block that a scale is for where the checkpoint has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fp8 {
    block: Option<[u64; 2]>,
}

/// The checkpoint with its FP8 tensors decoded; one that is not quantised comes back as it is.
///
/// Errors: [`Error::Unsupported`] for other quantisations, by name; [`Error::Damaged`] when an FP8 tensor has no scales, or
/// scales have no tensor or do not fit.
pub(crate) fn dequantised(checkpoint: Checkpoint) -> Result<Checkpoint, Error> {
    let Some(config) = &checkpoint.config else { return Ok(checkpoint) };
    let fp8 = match fp8(config) {
        Ok(None) => return Ok(checkpoint),
        Ok(Some(fp8)) => fp8,
        Err(detail) => return Err(Error::unsupported(&checkpoint.path, detail)),
    };
    let dtype = declared_type(config).unwrap_or(Dtype::BF16);
    let config = without_quantisation(config);
    let Checkpoint { path, tensors, mut encoded, mut left_out, .. } = checkpoint.clone();
    let damaged = |detail: String| Error::damaged(&path, detail);
    let mut plain = IndexMap::new();
    for (name, entry) in &tensors {
        if is_fp8(entry.dtype) {
            let scale = scale_of(name, entry, &tensors, fp8).map_err(damaged)?;
            let form = Form::Scaled(Scaled::new(entry.clone(), scale));
            encoded.insert(name.clone(), Encoded { shape: entry.shape.clone(), dtype, form });
        } else if is_activation_scale(name) {
            let reason = "it scales activations, which the output does not quantise".to_owned();
            left_out.push(LeftOut { name: name.clone(), reason });
        } else if let Some(weight) = weight_of(name) {
            if !tensors.get(weight).is_some_and(|weight| is_fp8(weight.dtype)) {
                return Err(damaged(format!(
                    "tensor {name:?} scales {weight:?}, which is no FP8 tensor of it"
                )));
            }
        } else {
            plain.insert(name.clone(), entry.clone());
        }
    }
    let note = "FP8 weights are multiplied by their scales; the output is not quantised".to_owned();
    Ok(Checkpoint { tensors: plain, encoded, left_out, config: Some(config), note: Some(note), ..checkpoint })
}

/// What the config says; `None` where nothing is quantised.
fn fp8(config: &Config) -> Result<Option<Fp8>, String> {
    let Some(quantisation) = quantisation(config) else { return Ok(None) };
    let text = |key: &str| quantisation.get(key).and_then(Value::as_str);
    match text("quant_method") {
        Some("fp8" | "fbgemm_fp8") => Ok(Some(Fp8 { block: block(quantisation.get("weight_block_size")) })),
        Some("modelopt") if text("quant_algo") == Some("FP8") => Ok(Some(Fp8 { block: None })),
        Some("compressed-tensors") => compressed(quantisation).map(Some),
        Some(method) => {
            let kind = text("quant_algo").map_or(String::new(), |kind| format!(" ({kind})"));
            Err(refusal(&format!("{method}{kind}")))
        }
        None => Err(refusal("a method that it does not name")),
    }
}

/// The object that describes the quantisation, at the top or in the text model's part.
fn quantisation(config: &Config) -> Option<&Map<String, Value>> {
    let of = |object: &Map<String, Value>| KEYS.iter().find_map(|key| object.get(*key)?.as_object().cloned());
    let object = config.object();
    KEYS.iter().find_map(|key| object.get(*key)?.as_object()).or_else(|| {
        let text = object.get("text_config")?.as_object()?;
        of(text)?;
        KEYS.iter().find_map(|key| text.get(*key)?.as_object())
    })
}

/// compressed-tensors has groups of modules; all have to be FP8.
fn compressed(quantisation: &Map<String, Value>) -> Result<Fp8, String> {
    let format = quantisation.get("format").and_then(Value::as_str).unwrap_or("no format");
    let refused = || refusal(&format!("compressed-tensors ({format})"));
    let groups = quantisation.get("config_groups").and_then(Value::as_object).ok_or_else(refused)?;
    let mut found = Fp8 { block: None };
    for weights in groups.values().map(|group| group.get("weights")) {
        let weights = weights.and_then(Value::as_object).ok_or_else(refused)?;
        let is_float = weights.get("type").and_then(Value::as_str) == Some("float");
        if !is_float || weights.get("num_bits").and_then(Value::as_u64) != Some(8) {
            return Err(refused());
        }
        found.block = found.block.or(block(weights.get("block_structure")));
    }
    Ok(found)
}

fn block(value: Option<&Value>) -> Option<[u64; 2]> {
    match value?.as_array()?.as_slice() {
        [rows, columns] => Some([rows.as_u64()?, columns.as_u64()?]),
        _ => None,
    }
}

fn refusal(method: &str) -> String {
    format!(
        "its weights are quantised by {method}, and only FP8 with scales is decoded here; take the model that it was made of, or load it in \
         transformers, call `dequantize()` and save it"
    )
}

/// The scales of an FP8 tensor.
fn scale_of(
    name: &str,
    entry: &TensorEntry,
    tensors: &IndexMap<String, TensorEntry>,
    fp8: Fp8,
) -> Result<Scale, String> {
    let found = SCALES.iter().find_map(|ending| tensors.get_key_value(&format!("{name}{ending}")));
    let Some((scale, scales)) = found else {
        return Err(format!("tensor {name:?} is {} and has no scales (`{name}{}`)", entry.dtype, SCALES[0]));
    };
    Scale::fit(scale, scales, entry, fp8.block).map_err(|fault| format!("tensor {name:?}: {fault}"))
}

/// The name of the tensor that a tensor of this name scales.
fn weight_of(name: &str) -> Option<&str> {
    let weight = SCALES.iter().find_map(|ending| name.strip_suffix(ending))?;
    weight.ends_with("weight").then_some(weight).or_else(|| name.strip_suffix("_scale_inv"))
}

fn is_activation_scale(name: &str) -> bool {
    ACTIVATION_SCALES.iter().any(|ending| name.ends_with(ending))
}

fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// The type that the config declares for the weights, where it is one that a merge computes on.
fn declared_type(config: &Config) -> Option<Dtype> {
    let text = config.object().get("text_config").and_then(Value::as_object);
    let name = [Some(config.object()), text]
        .into_iter()
        .flatten()
        .find_map(|object| object.get("dtype").or_else(|| object.get("torch_dtype"))?.as_str())?;
    match name {
        "float32" => Some(Dtype::F32),
        "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::BF16),
        _ => None,
    }
}

fn without_quantisation(config: &Config) -> Config {
    let mut object = config.object().clone();
    KEYS.iter().for_each(|key| drop(object.shift_remove(*key)));
    if let Some(text) = object.get_mut("text_config").and_then(Value::as_object_mut) {
        KEYS.iter().for_each(|key| drop(text.shift_remove(*key)));
    }
    Config::from_object(object)
}

/// The second is what compressed-tensors once called it.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// DeepSeek and those after it, whose inverse is the scale all the same, and everybody else.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

const ACTIVATION_SCALES: [&str; 8] = [
    ".input_scale",
    ".input_scale_ub",
    ".activation_scale",
    ".activation_scale_inv",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn found(quantisation: &str) -> Result<Option<Fp8>, String> {
        let text = format!(r#"{{"quantization_config": {quantisation}}}"#);
        fp8(&Config::parse(&text, Path::new("config.json")).unwrap())
    }

    #[test]
    fn fp8_is_known_in_the_words_of_each_maker() {
        let blocks = Fp8 { block: Some([128, 128]) };
        let whole = Fp8 { block: None };
        for (quantisation, expected) in [
            (r#"{"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}"#, blocks),
            (r#"{"quant_method": "fp8", "activation_scheme": "static"}"#, whole),
            (r#"{"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}"#, whole),
            (r#"{"quant_method": "modelopt", "quant_algo": "FP8"}"#, whole),
            (
                r#"{"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}}"#,
                whole,
            ),
            (
                r#"{"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}}}}"#,
                blocks,
            ),
        ] {
            assert_eq!(found(quantisation).unwrap(), Some(expected), "{quantisation}");
        }
        assert_eq!(fp8(&Config::from_object(Map::new())).unwrap(), None);
        let nested = r#"{"text_config": {"quantization_config": {"quant_method": "fp8"}}}"#;
        assert_eq!(fp8(&Config::parse(nested, Path::new("c")).unwrap()).unwrap(), Some(whole));
    }

    #[test]
    fn other_quantisations_are_refused_by_name() {
        for (quantisation, name) in [
            (r#"{"quant_method": "gptq", "bits": 4}"#, "gptq"),
            (r#"{"quant_method": "awq"}"#, "awq"),
            (r#"{"quant_method": "bitsandbytes"}"#, "bitsandbytes"),
            (r#"{"quant_method": "mxfp4"}"#, "mxfp4"),
            (r#"{"quant_method": "modelopt", "quant_algo": "NVFP4"}"#, "modelopt (NVFP4)"),
            (
                r#"{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}}"#,
                "compressed-tensors (pack-quantized)",
            ),
            (r#"{"quant_method": "compressed-tensors"}"#, "compressed-tensors (no format)"),
            ("{}", "a method that it does not name"),
        ] {
            let refusal = found(quantisation).unwrap_err();
            assert!(
                refusal.contains(&format!("by {name},")) && refusal.contains("dequantize()"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn the_config_of_the_output_says_nothing_of_quantisation() {
        let text =
            r#"{"a": 1, "quantization_config": {}, "text_config": {"compression_config": {}, "b": 2}}"#;
        let config = without_quantisation(&Config::parse(text, Path::new("c")).unwrap());
        assert_eq!(config, Config::parse(r#"{"a": 1, "text_config": {"b": 2}}"#, Path::new("c")).unwrap());
    }
}
