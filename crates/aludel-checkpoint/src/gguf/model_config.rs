//! Rebuilds config.json from a GGUF file's metadata.
//!
//! In: the header and its architecture's row. Out: the config as transformers names its keys, and the head counts that
//! the tensors' mapping needs. Keys that transformers fills with the same default are left out. The weights' type is set
//! later, when it has been chosen.

use serde_json::{Map, Value, json};

use super::architecture::{Architecture, MISTRAL, find, known};
use super::header::Header;
use super::names::Heads;
use super::rope::{Rotary, scaling};
use crate::error::Error;

/// The model as its metadata describes it.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) row: &'static Architecture,
    pub(super) layers: u64,
    pub(super) heads: Heads,
    pub(super) config: Map<String, Value>,
    /// Rows of the embedding.
    pub(super) vocabulary: u64,
}

/// Describes the model of a file.
///
/// Errors: [`Error::Unsupported`] for an architecture without a row and for settings that config.json cannot express;
/// [`Error::Damaged`] for missing or senseless values; [`Error::Io`].
pub(super) fn describe(header: &Header) -> Result<Model, Error> {
    let architecture = header.architecture()?;
    let row = row(header, architecture)?;
    let keys = Keys { header, prefix: row.gguf };
    let layers = keys.required("block_count")?;
    let shape = Shape::read(&keys)?;
    let vocabulary = vocabulary(header)?;
    let mut config = Map::new();
    config.insert("architectures".into(), json!([row.class]));
    config.insert("model_type".into(), row.model_type.into());
    config.insert("vocab_size".into(), vocabulary.into());
    config.insert("num_hidden_layers".into(), layers.into());
    shape.write(&mut config, row);
    write_epsilon(&keys, &mut config)?;
    write_rotary(&keys, row, &shape, &mut config)?;
    write_attention(&keys, row, &shape, layers, &mut config)?;
    config.insert("tie_word_embeddings".into(), header.tensor("output.weight").is_none().into());
    Ok(Model { row, layers, heads: shape.heads, config, vocabulary })
}

fn row(header: &Header, architecture: &str) -> Result<&'static Architecture, Error> {
    let row = find(architecture).ok_or_else(|| {
        let detail = format!("its architecture {architecture:?} is not known; known are {}", known());
        Error::unsupported(header.path(), detail)
    })?;
    let has_bias = header.tensor("blk.0.attn_q.bias").is_some();
    Ok(if row.gguf == "llama" && !has_bias && is_mistral(header)? { &MISTRAL } else { row })
}

/// Nothing but its name tells a Mistral model from a Llama.
fn is_mistral(header: &Header) -> Result<bool, Error> {
    for key in ["general.basename", "general.name"] {
        if header.metadata.text(key)?.is_some_and(|name| name.to_ascii_lowercase().contains("mistral")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The embedding's rows: the metadata's count leaves out rows that only pad.
fn vocabulary(header: &Header) -> Result<u64, Error> {
    let embedding = header.tensor("token_embd.weight").filter(|tensor| tensor.shape.len() == 2);
    let rows = embedding.map(|tensor| tensor.shape[0] as u64);
    rows.ok_or_else(|| Error::damaged(header.path(), "it has no matrix \"token_embd.weight\""))
}

/// Metadata keys of one architecture.
struct Keys<'a> {
    header: &'a Header,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn count(&self, name: &str) -> Result<Option<u64>, Error> {
        self.header.metadata.count(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        self.header.metadata.number(&self.key(name))
    }

    fn required(&self, name: &str) -> Result<u64, Error> {
        let positive = self.count(name)?.filter(|&count| count > 0 && count <= LARGEST_COUNT);
        positive.ok_or_else(|| {
            self.damaged(format!("metadata key {:?} is missing or out of range", self.key(name)))
        })
    }

    fn damaged(&self, detail: impl Into<String>) -> Error {
        Error::damaged(self.header.path(), detail)
    }

    fn unsupported(&self, detail: impl Into<String>) -> Error {
        Error::unsupported(self.header.path(), detail)
    }
}

/// The sizes that every architecture has.
struct Shape {
    hidden: u64,
    intermediate: u64,
    heads: Heads,
    head_width: u64,
    /// Whether the heads' width is not simply the hidden size divided by their number, or the file names it.
    head_width_stated: bool,
    positions: u64,
}

impl Shape {
    fn read(keys: &Keys<'_>) -> Result<Self, Error> {
        let hidden = keys.required("embedding_length")?;
        let query = keys.required("attention.head_count")?;
        let key = keys.count("attention.head_count_kv")?.unwrap_or(query);
        let stated = keys.count("attention.key_length")?;
        if key == 0 || !query.is_multiple_of(key) {
            return Err(keys.damaged(format!("{query} query heads do not share {key} key heads")));
        }
        if let (Some(key), Some(value)) = (stated, keys.count("attention.value_length")?)
            && key != value
        {
            return Err(keys.unsupported(format!("keys of {key} and values of {value} dimensions differ")));
        }
        let head_width = stated.or_else(|| rows_per_head(keys.header, query)).unwrap_or(hidden / query);
        let head_width_stated = stated.is_some() || head_width * query != hidden;
        let intermediate = keys.required("feed_forward_length")?;
        let positions = keys.required("context_length")?;
        Ok(Self {
            hidden,
            intermediate,
            heads: Heads { query, key },
            head_width,
            head_width_stated,
            positions,
        })
    }

    fn write(&self, config: &mut Map<String, Value>, row: &Architecture) {
        config.insert("hidden_size".into(), self.hidden.into());
        config.insert("intermediate_size".into(), self.intermediate.into());
        config.insert("num_attention_heads".into(), self.heads.query.into());
        config.insert("num_key_value_heads".into(), self.heads.key.into());
        if self.head_width_stated || DEFAULTS_ITS_HEAD_WIDTH.contains(&row.gguf) {
            config.insert("head_dim".into(), self.head_width.into());
        }
        config.insert("hidden_act".into(), row.activation.into());
        if row.shifts_norms {
            config.insert("hidden_activation".into(), row.activation.into());
        }
        config.insert("max_position_embeddings".into(), self.positions.into());
    }
}

/// The heads' width as the query's weights have it: files from before `attention.key_length` do not name it.
fn rows_per_head(header: &Header, heads: u64) -> Option<u64> {
    let rows = *header.tensor("blk.0.attn_q.weight")?.shape.first()? as u64;
    rows.is_multiple_of(heads).then_some(rows / heads)
}

fn write_epsilon(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<(), Error> {
    let (gguf, name) = match keys.prefix {
        "starcoder2" => ("attention.layer_norm_epsilon", "norm_epsilon"),
        _ => ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    };
    let epsilon = keys.number(gguf)?;
    let epsilon =
        epsilon.ok_or_else(|| keys.damaged(format!("metadata key {:?} is missing", keys.key(gguf))))?;
    config.insert(name.into(), epsilon.into());
    Ok(())
}

fn write_rotary(
    keys: &Keys<'_>,
    row: &Architecture,
    shape: &Shape,
    config: &mut Map<String, Value>,
) -> Result<(), Error> {
    let default = if row.gguf == "gemma3" { 1_000_000.0 } else { 10_000.0 };
    let theta = keys.number("rope.freq_base")?.unwrap_or(default);
    let dimensions = keys.count("rope.dimension_count")?.unwrap_or(shape.head_width);
    if dimensions != shape.head_width {
        if row.gguf != "phi3" || dimensions > shape.head_width {
            let detail = format!("{dimensions} of {} dimensions of a head are rotated", shape.head_width);
            return Err(keys.unsupported(detail));
        }
        config.insert("partial_rotary_factor".into(), (dimensions as f64 / shape.head_width as f64).into());
    }
    config.insert("rope_theta".into(), theta.into());
    let scaling = scaling(keys.header, row.gguf, Rotary { theta, dimensions })?;
    if let Some(length) = keys.count("rope.scaling.original_context_length")?.filter(|_| row.gguf == "phi3") {
        config.insert("original_max_position_embeddings".into(), length.into());
    }
    config.insert("rope_scaling".into(), scaling.unwrap_or(Value::Null));
    Ok(())
}

/// What one architecture has and another has not.
fn write_attention(
    keys: &Keys<'_>,
    row: &Architecture,
    shape: &Shape,
    layers: u64,
    config: &mut Map<String, Value>,
) -> Result<(), Error> {
    let has = |name: &str| keys.header.tensor(name).is_some();
    let window = keys.count("attention.sliding_window")?.filter(|&window| window > 0);
    match row.model_type {
        "llama" | "granite" | "qwen3" | "olmo2" | "gemma" | "gemma2" | "gemma3_text" => {
            config.insert("attention_bias".into(), has("blk.0.attn_q.bias").into());
        }
        "starcoder2" => {
            config.insert("use_bias".into(), has("blk.0.attn_q.bias").into());
        }
        _ => {}
    }
    match row.model_type {
        "llama" | "granite" => {
            config.insert("mlp_bias".into(), has("blk.0.ffn_up.bias").into());
        }
        "mistral" | "phi3" | "starcoder2" => {
            config.insert("sliding_window".into(), window.into());
        }
        "gemma2" | "gemma3_text" => {
            config.insert("query_pre_attn_scalar".into(), query_scale(row, shape, layers).into());
            write_gemma(keys, row, window, config)?;
        }
        _ => {}
    }
    if row.gguf == "granite" {
        write_granite(keys, config)?;
    }
    Ok(())
}

/// The largest Gemmas scale their queries by the hidden size per head, the others by the heads' width.
fn query_scale(row: &Architecture, shape: &Shape, layers: u64) -> u64 {
    match (row.gguf, layers) {
        ("gemma2", 46) | ("gemma3", 62) => shape.hidden / shape.heads.query,
        _ => shape.head_width,
    }
}

fn write_gemma(
    keys: &Keys<'_>,
    row: &Architecture,
    window: Option<u64>,
    config: &mut Map<String, Value>,
) -> Result<(), Error> {
    if let Some(window) = window {
        config.insert("sliding_window".into(), window.into());
    }
    config.insert("final_logit_softcapping".into(), keys.number("final_logit_softcapping")?.into());
    config.insert("attn_logit_softcapping".into(), keys.number("attn_logit_softcapping")?.into());
    if row.gguf == "gemma3" {
        let local = keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        config.insert("rope_local_base_freq".into(), local.into());
        config.insert("sliding_window_pattern".into(), 6.into());
    }
    Ok(())
}

fn write_granite(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<(), Error> {
    for (gguf, name) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        config.insert(name.into(), keys.number(gguf)?.unwrap_or(1.0).into());
    }
    Ok(())
}

/// Architectures whose config class has a head width of its own, whatever the other sizes are.
const DEFAULTS_ITS_HEAD_WIDTH: [&str; 5] = ["llama", "qwen3", "gemma", "gemma2", "gemma3"];

/// Keeps products of sizes within u64.
const LARGEST_COUNT: u64 = 1 << 31;
