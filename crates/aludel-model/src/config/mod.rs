//! Describes a decoder: one plain value for every supported family, parsed from `config.json`.
//!
//! In: the JSON of a model folder, in the spelling of transformers 4 or 5, untrusted. Out: a [`ModelConfig`] whose numbers
//! are within bounds and whose layers say everything that the decoder needs. Nothing of a family is known beyond this
//! module and `names`. It reads no weights.
//!
//! Modules in reading order: `family` (the table of what families have), `keys` (bounded reading), `read` (the parse, with
//! `read_layers` and `read_rope`), `rope` (rotary frequencies).

mod family;
mod keys;
mod read;
mod read_layers;
mod read_rope;
mod rope;

#[cfg(test)]
mod tests;

use aludel_kernels::nn::{Activation, Norm};

pub use family::{Family, supported_families};
pub use rope::{Rope, Scaling};

/// A decoder-only model, as far as computing needs to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family that its config.json names.
    pub family: &'static Family,
    /// D, width of the hidden states.
    pub hidden: usize,
    /// V, rows of the embedding.
    pub vocabulary: usize,
    /// Positions that the model was made for; longer documents are computed all the same.
    pub positions: usize,
    /// What each layer is.
    pub layers: Vec<LayerConfig>,
    /// Rotary embeddings that layers refer to.
    pub ropes: Vec<Rope>,
    /// Every normalisation of the model.
    pub norm: Norm,
    /// Factor of the embedded tokens: sqrt(D) for Gemma, a multiplier for Granite.
    pub embedding_scale: f32,
    /// Factor of what each half of a layer adds to the hidden states (Granite).
    pub residual_scale: f32,
    /// Factor of the logits (Granite divides by its `logits_scaling`).
    pub logit_scale: f32,
    /// Logits become `cap * tanh(logit / cap)` (Gemma 2).
    pub logit_soft_cap: Option<f32>,
    /// Input and output embedding are one matrix.
    pub tied: bool,
    /// Standard deviation of fresh weights.
    pub initializer_range: f32,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Its first half.
    pub attention: AttentionConfig,
    /// Its second half.
    pub feed_forward: FeedForward,
}

/// Attention of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// H.
    pub heads: usize,
    /// K; divides H.
    pub key_heads: usize,
    /// E; even.
    pub width: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// A query sees only this many last keys, its own included.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Position in [`ModelConfig::ropes`]; without one, the layer does not see positions.
    pub rope: Option<usize>,
    /// Normalisation of queries and keys before they are turned.
    pub query_key_norm: QueryKeyNorm,
    /// Query, key and value have a bias.
    pub bias: bool,
    /// The output has a bias.
    pub output_bias: bool,
}

/// Whether and how queries and keys are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// They are not.
    None,
    /// Each head by itself, with one weight `[E]` for all of them (Qwen3, Gemma 3).
    Head,
    /// All heads of a row together, with weights `[H E]` and `[K E]` (OLMo 2).
    Row,
}

/// The second half of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// `down(f(gate(x)) * up(x))`.
    Dense {
        /// F.
        width: usize,
        /// f.
        activation: Activation,
        /// The three products have biases.
        bias: bool,
    },
    /// A choice of such blocks for each token.
    Experts {
        /// How many there are.
        count: usize,
        /// How many of them serve a token.
        chosen: usize,
        /// F of each.
        width: usize,
        /// f.
        activation: Activation,
        /// The chosen weights are divided by their sum.
        normalised: bool,
    },
}

/// Where the two halves of a layer are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// What goes in.
    Before,
    /// What comes out, before it is added (OLMo 2).
    After,
    /// Both (Gemma 2 and 3).
    Both,
}

impl AttentionConfig {
    /// Elements of a row of queries, `H E`.
    pub fn query_width(&self) -> usize {
        self.heads * self.width
    }

    /// Elements of a row of keys or values, `K E`.
    pub fn key_width(&self) -> usize {
        self.key_heads * self.width
    }
}
