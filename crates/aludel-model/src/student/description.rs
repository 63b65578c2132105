//! Describes a student before it is made: its config, and the config.json that says the same.
//!
//! Where the teacher's config.json has a rule for its layers (every sixth one sees everything), a student's has a list.

use aludel_checkpoint::Config;
use serde_json::{Value, json};

use crate::config::{FeedForward, ModelConfig, Scaling};
use crate::error::Error;

/// How heads are cut.
#[derive(Clone, Copy, Debug)]
pub(super) enum HeadCut {
    /// So many groups stay whole.
    Groups(usize),
    /// So many heads of each group stay.
    Within(usize),
}

impl HeadCut {
    pub(super) fn new(config: &ModelConfig, heads: usize) -> Result<Self, Error> {
        // All layers have the same heads: config.json has one number for them.
        let Some(attention) = config.layers.first().map(|layer| &layer.attention) else {
            return Err(Error::change("a model without layers has no heads"));
        };
        let is_long = config.ropes.iter().any(|rope| matches!(rope.scaling, Scaling::Long { .. }));
        if is_long && heads != attention.heads {
            // transformers counts the factors of a head by the width of the model and the number of heads.
            return Err(Error::change(
                "heads are not cut where longrope has factors for each head's elements",
            ));
        }
        let (all, groups) = (attention.heads, attention.key_heads);
        let group = all / groups;
        let fits = |heads: usize| {
            (heads.is_multiple_of(group) || heads.is_multiple_of(groups))
                && config.hidden.is_multiple_of(heads)
        };
        if heads == 0 || heads > all || !fits(heads) {
            let allowed: Vec<String> =
                (1..=all).filter(|&heads| fits(heads)).map(|heads| heads.to_string()).collect();
            let detail = format!("{heads} of {all} heads cannot be kept; {} can", allowed.join(", "));
            return Err(Error::change(detail));
        }
        Ok(if heads.is_multiple_of(group) {
            Self::Groups(heads / group)
        } else {
            Self::Within(heads / groups)
        })
    }
}

/// The student, described.
pub(super) fn expected_config(
    config: &ModelConfig,
    layers: &[usize],
    heads: Option<HeadCut>,
    width: Option<usize>,
) -> ModelConfig {
    let mut student = config.clone();
    student.layers = layers.iter().map(|&layer| config.layers[layer].clone()).collect();
    for layer in &mut student.layers {
        let attention = &mut layer.attention;
        match heads {
            Some(HeadCut::Groups(groups)) => {
                attention.heads = attention.heads / attention.key_heads * groups;
                attention.key_heads = groups;
            }
            Some(HeadCut::Within(heads)) => attention.heads = heads * attention.key_heads,
            None => {}
        }
        if let (Some(kept), FeedForward::Dense { width, .. }) = (width, &mut layer.feed_forward) {
            *width = kept;
        }
    }
    student
}

/// The student's config.json: the teacher's with what changed, and lists where the teacher's has rules for its layers.
pub(super) fn student_json(
    teacher: &Config,
    config: &ModelConfig,
    layers: &[usize],
    student: &ModelConfig,
) -> Config {
    let mut json = teacher.with("num_hidden_layers", layers.len().into());
    if let Some(layer) = student.layers.first() {
        let attention = &layer.attention;
        let before = &config.layers[layers[0]].attention;
        if attention.heads != before.heads {
            json = json
                .with("num_attention_heads", attention.heads.into())
                .with("num_key_value_heads", attention.key_heads.into())
                .with("head_dim", attention.width.into());
        }
    }
    let width = student.layers.iter().find_map(|layer| match layer.feed_forward {
        FeedForward::Dense { width, .. } => Some(width),
        FeedForward::Experts { .. } => None,
    });
    if let Some(width) = width {
        json = json.with("intermediate_size", width.into());
    }
    if config.family.has_layer_types() {
        let types = student.layers.iter().map(|layer| match layer.attention.window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        });
        json = json.with("layer_types", types.collect::<Vec<_>>().into());
    }
    if json.value("no_rope_layers").is_some()
        || config.layers.iter().any(|layer| layer.attention.rope.is_none())
    {
        let flags = student.layers.iter().map(|layer| u8::from(layer.attention.rope.is_some()));
        json = json.with("no_rope_layers", flags.collect::<Vec<_>>().into());
    }
    if json.value("decoder_sparse_step").is_some() || json.value("mlp_only_layers").is_some() {
        let is_dense = |layer: &FeedForward| matches!(layer, FeedForward::Dense { .. });
        let dense: Vec<usize> =
            (0..layers.len()).filter(|&layer| is_dense(&student.layers[layer].feed_forward)).collect();
        json = json.with("mlp_only_layers", dense.into()).with("decoder_sparse_step", json!(1));
    }
    if json.value("max_window_layers").and_then(Value::as_u64).is_some_and(|n| n > layers.len() as u64) {
        json = json.with("max_window_layers", layers.len().into());
    }
    json
}
