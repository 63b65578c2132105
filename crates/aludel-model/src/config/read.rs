//! Parses `config.json` into a [`ModelConfig`]: every number within bounds, every key understood.
//!
//! A key that nobody asked for is refused where its value could change what the model computes; names, nulls and switches
//! that are off cannot. So a model is never run as something that it is not.

use aludel_checkpoint::Config;
use aludel_kernels::nn::{Activation, Norm};
use serde_json::Value;

use super::family::{self, Bias, Family, Scores};
use super::keys::{Keys, short};
use super::{AttentionConfig, FeedForward, LayerConfig, ModelConfig};
use crate::error::{Error, Problems};

impl ModelConfig {
    /// Parses a `config.json`.
    ///
    /// Errors: [`Error::Config`] with every problem: a family that is not supported, a key that is missing, out of bounds or
    /// not understood.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        let family = family_of(config)?;
        let mut keys = Keys::new(config);
        let parsed = Reader { family, keys: &mut keys }.read();
        refuse_unknown(config, family, &mut keys);
        Problems::none_or(keys.problems, Error::Config)?;
        Ok(parsed)
    }
}

/// The row of the family that the file names.
fn family_of(config: &Config) -> Result<&'static Family, Error> {
    let supported = || family::supported_families().collect::<Vec<_>>().join(", ");
    let Some(name) = config.value("model_type").and_then(Value::as_str) else {
        return Err(Error::config(format!("it names no model_type; supported are {}", supported())));
    };
    let Some(family) = family::find(name) else {
        let hint = match nearest(name, family::supported_families()) {
            Some(nearest) => format!("; the nearest is {nearest}"),
            None => String::new(),
        };
        let name = short(&name.into());
        return Err(Error::config(format!(
            "model_type {name} is not supported{hint}; supported are {}",
            supported()
        )));
    };
    match config.architecture() {
        Some(class) if class != family.class => {
            let class = short(&class.into());
            Err(Error::config(format!(
                "architecture {class} is not supported; of {name}, {} is",
                family.class
            )))
        }
        _ => Ok(family),
    }
}

pub(super) struct Reader<'a, 'b> {
    pub(super) family: &'static Family,
    pub(super) keys: &'a mut Keys<'b>,
}

/// What all layers share, before windows and rotary embeddings are given out.
pub(super) struct Shape {
    hidden: usize,
    pub(super) layers: usize,
    heads: usize,
    key_heads: usize,
    pub(super) width: usize,
    pub(super) positions: usize,
}

impl Reader<'_, '_> {
    fn read(&mut self) -> ModelConfig {
        let family = self.family;
        let shape = self.shape();
        let epsilon = self.keys.positive("rms_norm_eps").unwrap_or(family.defaults.epsilon);
        let (score_cap, logit_cap) = self.soft_caps();
        let (embedding, residual, logits) = self.multipliers();
        let windows = self.windows(&shape);
        let (ropes, rope_of) = self.ropes(&shape, &windows);
        let attention = self.attention(&shape, score_cap);
        let feed_forward = self.feed_forwards(shape.layers);
        let layers = feed_forward.into_iter().enumerate().map(|(index, feed_forward)| LayerConfig {
            attention: AttentionConfig { window: windows[index], rope: rope_of[index], ..attention.clone() },
            feed_forward,
        });
        ModelConfig {
            family,
            hidden: shape.hidden,
            vocabulary: self.keys.required("vocab_size", MOST_TOKENS),
            positions: shape.positions,
            layers: layers.collect(),
            ropes,
            norm: Norm { epsilon: epsilon as f32, one_plus: family.one_plus },
            embedding_scale: if family.embedding_root { (shape.hidden as f32).sqrt() } else { embedding },
            residual_scale: residual,
            logit_scale: 1.0 / logits,
            logit_soft_cap: logit_cap,
            tied: self.keys.flag("tie_word_embeddings", family.defaults.tied),
            initializer_range: self.keys.positive("initializer_range").unwrap_or(0.02) as f32,
        }
    }

    fn shape(&mut self) -> Shape {
        let defaults = self.family.defaults;
        let hidden = self.keys.required("hidden_size", MOST_WIDE);
        let heads = self.keys.required("num_attention_heads", MOST_HEADS);
        let layers = self.keys.required("num_hidden_layers", MOST_LAYERS);
        // Only an absent key has the family's number; a null means one for each head.
        let absent = self.keys.is_absent("num_key_value_heads");
        let default = if absent { defaults.key_heads.unwrap_or(heads) } else { heads };
        let key_heads = self.keys.count("num_key_value_heads", MOST_HEADS).unwrap_or(default);
        if !heads.is_multiple_of(key_heads) {
            self.keys.problem(format!("{heads} query heads do not share {key_heads} key heads"));
        }
        let stated = self.keys.count("head_dim", MOST_HEAD_WIDTH);
        let absent = self.keys.is_absent("head_dim");
        let width = stated.or(defaults.head_width.filter(|_| absent)).unwrap_or(hidden / heads);
        if stated.is_none() && !hidden.is_multiple_of(heads) && defaults.head_width.is_none() {
            self.keys.problem(format!(
                "hidden_size {hidden} is no multiple of {heads} heads, and there is no head_dim"
            ));
        }
        if width == 0 || width > MOST_HEAD_WIDTH {
            self.keys.problem(format!("heads of {width} elements; 1 to {MOST_HEAD_WIDTH} are supported"));
        }
        let positions =
            self.keys.count("max_position_embeddings", MOST_POSITIONS).unwrap_or(defaults.positions);
        Shape { hidden, layers, heads, key_heads: key_heads.max(1), width: width.max(1), positions }
    }

    fn attention(&mut self, shape: &Shape, soft_cap: Option<f32>) -> AttentionConfig {
        let scale = match self.family.scores {
            Scores::HeadWidth => (shape.width as f64).powf(-0.5),
            Scores::Scalar => {
                // The default of the config class, whatever the heads are.
                self.keys.positive("query_pre_attn_scalar").unwrap_or(256.0).powf(-0.5)
            }
            Scores::Multiplier => self.keys.positive("attention_multiplier").unwrap_or(1.0),
        };
        let (bias, output_bias) = match self.family.attention_bias {
            Bias::Never => (false, false),
            Bias::Inputs => (true, false),
            Bias::Key => {
                let bias = self.keys.flag("attention_bias", false);
                (bias, bias)
            }
        };
        AttentionConfig {
            heads: shape.heads,
            key_heads: shape.key_heads,
            width: shape.width,
            scale: scale as f32,
            window: None,
            soft_cap,
            rope: None,
            query_key_norm: self.family.query_key_norm,
            bias,
            output_bias,
        }
    }

    fn activation(&mut self) -> Activation {
        // Gemma 2 and 3 read the second key and keep the first for old readers.
        let key = if self.family.soft_caps.is_some() {
            self.keys.value("hidden_act");
            "hidden_activation"
        } else {
            self.keys.value("hidden_activation");
            "hidden_act"
        };
        let Some(value) = self.keys.value(key) else { return self.family.defaults.activation };
        match value.as_str() {
            Some("silu" | "swish") => Activation::Silu,
            Some("gelu") => Activation::Gelu,
            Some("gelu_pytorch_tanh" | "gelu_new") => Activation::GeluTanh,
            _ => {
                self.keys.problem(format!(
                    "{key} {} is not supported; silu, gelu and gelu_pytorch_tanh are",
                    short(value)
                ));
                Activation::Silu
            }
        }
    }

    fn feed_forwards(&mut self, layers: usize) -> Vec<FeedForward> {
        let activation = self.activation();
        let bias = self.family.mlp_bias && self.keys.flag("mlp_bias", false);
        if !self.family.is_mixture {
            let width = self.keys.required("intermediate_size", MOST_WIDE);
            return vec![FeedForward::Dense { width, activation, bias }; layers];
        }
        if self.family.model_type == "mixtral" {
            let width = self.keys.required("intermediate_size", MOST_WIDE);
            let experts = self.experts(width, &["num_local_experts"], (8, 2), activation, true);
            return vec![experts; layers];
        }
        let width = self.keys.count("moe_intermediate_size", MOST_WIDE).unwrap_or(768);
        let normalised = self.keys.flag("norm_topk_prob", false);
        let experts =
            self.experts(width, &["num_experts", "num_local_experts"], (128, 8), activation, normalised);
        let step = self.keys.count("decoder_sparse_step", MOST_LAYERS).unwrap_or(1);
        let dense = self.keys.numbers("mlp_only_layers", MOST_LAYERS);
        let is_dense = |layer: usize| dense.contains(&layer) || !(layer + 1).is_multiple_of(step);
        let width = if (0..layers).any(is_dense) {
            self.keys.required("intermediate_size", MOST_WIDE)
        } else {
            self.keys.count("intermediate_size", MOST_WIDE).unwrap_or(1)
        };
        let dense = FeedForward::Dense { width, activation, bias: false };
        (0..layers).map(|layer| if is_dense(layer) { dense } else { experts }).collect()
    }

    fn experts(
        &mut self,
        width: usize,
        count_keys: &[&'static str],
        defaults: (usize, usize),
        activation: Activation,
        normalised: bool,
    ) -> FeedForward {
        let counts: Vec<usize> =
            count_keys.iter().filter_map(|key| self.keys.count(key, MOST_EXPERTS)).collect();
        let count = counts.first().copied().unwrap_or(defaults.0);
        let chosen = self.keys.count("num_experts_per_tok", MOST_EXPERTS).unwrap_or(defaults.1);
        if self.layers_of_experts(count) > MOST_EXPERT_BLOCKS {
            self.keys.problem(format!("{count} experts in each layer are more than are supported"));
        }
        if chosen > count {
            self.keys.problem(format!("num_experts_per_tok chooses {chosen} of {count} experts"));
        }
        FeedForward::Experts { count, chosen, width, activation, normalised }
    }

    /// Experts of all layers.
    fn layers_of_experts(&mut self, count: usize) -> usize {
        self.keys.count("num_hidden_layers", MOST_LAYERS).unwrap_or(1) * count
    }

    /// Caps of scores and of logits.
    fn soft_caps(&mut self) -> (Option<f32>, Option<f32>) {
        let Some((score, logit)) = self.family.soft_caps else { return (None, None) };
        let mut cap = |key, default: Option<f64>| {
            let default = default.filter(|_| self.keys.is_absent(key));
            self.keys.positive(key).or(default).map(|cap| cap as f32)
        };
        let caps = (cap("attn_logit_softcapping", score), cap("final_logit_softcapping", logit));
        if self.family.local_rope && caps.0.is_some() {
            self.keys.problem(
                "attn_logit_softcapping is set, which transformers does not apply for gemma3_text; remove it",
            );
        }
        caps
    }

    /// Of embedded tokens and residuals, and the divisor of logits.
    fn multipliers(&mut self) -> (f32, f32, f32) {
        if !self.family.multipliers {
            return (1.0, 1.0, 1.0);
        }
        let mut factor = |key| self.keys.positive(key).unwrap_or(1.0) as f32;
        (factor("embedding_multiplier"), factor("residual_multiplier"), factor("logits_scaling"))
    }
}

/// Refuses keys that nobody asked for and whose value could change what the model computes.
fn refuse_unknown(config: &Config, family: &Family, keys: &mut Keys<'_>) {
    let unknown = config.entries().filter(|(key, value)| {
        !keys.knows(key) && !INERT.contains(key) && !key.starts_with('_') && could_matter(value)
    });
    let unknown: Vec<&str> = unknown.map(|(key, _)| key).collect();
    for key in unknown {
        let hint = match nearest(key, keys.asked()) {
            Some(nearest) => format!(" (the nearest is {nearest})"),
            None => String::new(),
        };
        let key = short(&key.into());
        keys.problem(format!(
            "key {key} is not understood for {}{hint}; remove it if it changes nothing",
            family.model_type
        ));
    }
}

/// Nothing that is off, absent or a name changes numbers.
pub(super) fn could_matter(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false) | Value::String(_))
}

/// The known word that was probably meant.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None; // Comparing takes time in the product of the lengths.
    }
    let near = known.map(|known| (strsim::jaro_winkler(word, known), known)).filter(|(near, _)| *near > 0.8);
    near.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}

/// Keys that change nothing in what is computed here. Dropout rates count among them: there is no dropout here.
const INERT: &[&str] = &[
    "architectures",
    "attention_dropout",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "id2label",
    "is_llama_config",
    "label2id",
    "max_window_layers",
    "model_type",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "resid_pdrop",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

// Far above any model, and such that products of a few of them stay within 64 bits.
const MOST_WIDE: usize = 1 << 20;
const MOST_HEADS: usize = 1 << 12;
const MOST_HEAD_WIDTH: usize = 1 << 12;
pub(super) const MOST_LAYERS: usize = 1 << 12;
const MOST_EXPERTS: usize = 1 << 12;
const MOST_EXPERT_BLOCKS: usize = 1 << 16;
const MOST_TOKENS: usize = 1 << 26;
pub(super) const MOST_POSITIONS: usize = 1 << 31;
