//! Lists the supported families: what their layers have and what transformers assumes where a config.json says nothing.
//!
//! A table, not code: one row a family. A family that is not listed is refused by name.

use aludel_kernels::nn::Activation;

use super::{Norms, QueryKeyNorm};

/// One family of models, as `model_type` names it.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// `architectures` in config.json.
    pub class: &'static str,
    pub(crate) norms: Norms,
    /// Norms multiply by 1 + weight.
    pub(crate) one_plus: bool,
    pub(crate) query_key_norm: QueryKeyNorm,
    pub(super) attention_bias: Bias,
    /// `mlp_bias` is a key of the family.
    pub(super) mlp_bias: bool,
    pub(super) windows: Windows,
    pub(super) scores: Scores,
    /// Embedded tokens are multiplied by sqrt(D).
    pub(super) embedding_root: bool,
    /// `embedding_multiplier`, `residual_multiplier` and `logits_scaling` are keys.
    pub(super) multipliers: bool,
    /// `attn_logit_softcapping` and `final_logit_softcapping` are keys; the numbers are the defaults.
    pub(super) soft_caps: Option<(Option<f64>, Option<f64>)>,
    /// Some layers do without rotary embedding.
    pub(super) skips_rope: bool,
    /// Sliding layers have a rotary embedding of their own.
    pub(super) local_rope: bool,
    pub(super) partial_rotary: bool,
    /// Some or all layers have experts.
    pub(super) is_mixture: bool,
    pub(crate) experts: ExpertNames,
    /// Query, key and value are stored as one matrix, gate and up as another.
    pub(crate) fused: bool,
    pub(super) defaults: Defaults,
}

/// Where attention has biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    Never,
    /// On query, key and value.
    Inputs,
    /// On all four where `attention_bias` says so.
    Key,
}

/// Which layers see only a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    /// All of them, where `sliding_window` is a number.
    All,
    /// All of them, where `use_sliding_window` says so as well.
    AllIfUsed,
    /// Those from `max_window_layers` on, where `use_sliding_window` says so.
    Last,
    /// Those without rotary embedding, where `use_sliding_window` says so.
    WithoutRope,
    /// All but every n-th.
    Alternating {
        /// n, where `sliding_window_pattern` says nothing.
        period: usize,
    },
}

/// Where the factor of the scores comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scores {
    /// `E^-0.5`.
    HeadWidth,
    /// `query_pre_attn_scalar^-0.5`.
    Scalar,
    /// `attention_multiplier`.
    Multiplier,
}

/// How the parts of a mixture of experts are called in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpertNames {
    /// After `model.layers.N.`.
    pub(crate) block: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

/// Values of absent keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Defaults {
    pub(super) key_heads: Option<usize>,
    /// Where it is not D / H.
    pub(super) head_width: Option<usize>,
    pub(super) positions: usize,
    pub(super) epsilon: f64,
    pub(super) theta: f64,
    pub(super) window: Option<usize>,
    pub(super) activation: Activation,
    pub(super) tied: bool,
}

/// Every supported `model_type`, for messages.
pub fn supported_families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

pub(super) fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type)
}

impl Family {
    /// Whether config.json may say of each layer whether it slides.
    pub(crate) fn has_layer_types(&self) -> bool {
        matches!(self.windows, Windows::Last | Windows::WithoutRope | Windows::Alternating { .. })
    }
}

const LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    norms: Norms::Before,
    one_plus: false,
    query_key_norm: QueryKeyNorm::None,
    attention_bias: Bias::Key,
    mlp_bias: true,
    windows: Windows::None,
    scores: Scores::HeadWidth,
    embedding_root: false,
    multipliers: false,
    soft_caps: None,
    skips_rope: false,
    local_rope: false,
    partial_rotary: false,
    is_mixture: false,
    experts: ExpertNames { block: "mlp", gate: "gate_proj", up: "up_proj", down: "down_proj" },
    fused: false,
    defaults: Defaults {
        key_heads: None,
        head_width: None,
        positions: 2048,
        epsilon: 1e-6,
        theta: 10_000.0,
        window: None,
        activation: Activation::Silu,
        tied: false,
    },
};

const QWEN2: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    attention_bias: Bias::Inputs,
    mlp_bias: false,
    windows: Windows::Last,
    defaults: Defaults { key_heads: Some(32), positions: 32_768, window: Some(4096), ..LLAMA.defaults },
    ..LLAMA
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    query_key_norm: QueryKeyNorm::Head,
    attention_bias: Bias::Key,
    defaults: Defaults { head_width: Some(128), ..QWEN2.defaults },
    ..QWEN2
};

const GEMMA: Family = Family {
    model_type: "gemma",
    class: "GemmaForCausalLM",
    one_plus: true,
    mlp_bias: false,
    embedding_root: true,
    defaults: Defaults {
        key_heads: Some(16),
        head_width: Some(256),
        positions: 8192,
        activation: Activation::GeluTanh,
        tied: true,
        ..LLAMA.defaults
    },
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    norms: Norms::Both,
    windows: Windows::Alternating { period: 2 },
    scores: Scores::Scalar,
    soft_caps: Some((Some(50.0), Some(30.0))),
    defaults: Defaults { key_heads: Some(4), window: Some(4096), ..GEMMA.defaults },
    ..GEMMA
};

static FAMILIES: [Family; 13] = [
    LLAMA,
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        attention_bias: Bias::Never,
        mlp_bias: false,
        windows: Windows::All,
        defaults: Defaults { key_heads: Some(8), positions: 131_072, window: Some(4096), ..LLAMA.defaults },
        ..LLAMA
    },
    QWEN2,
    QWEN3,
    Family {
        model_type: "smollm3",
        class: "SmolLM3ForCausalLM",
        windows: Windows::WithoutRope,
        skips_rope: true,
        defaults: Defaults {
            key_heads: Some(4),
            positions: 32_768,
            theta: 2_000_000.0,
            tied: true,
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Family {
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        attention_bias: Bias::Never,
        mlp_bias: false,
        windows: Windows::All,
        partial_rotary: true,
        fused: true,
        defaults: Defaults { positions: 4096, epsilon: 1e-5, ..LLAMA.defaults },
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Family {
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        query_key_norm: QueryKeyNorm::Head,
        windows: Windows::Alternating { period: 6 },
        soft_caps: Some((None, None)),
        local_rope: true,
        defaults: Defaults { positions: 131_072, theta: 1_000_000.0, ..GEMMA2.defaults },
        ..GEMMA2
    },
    Family {
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        norms: Norms::After,
        query_key_norm: QueryKeyNorm::Row,
        mlp_bias: false,
        defaults: Defaults { epsilon: 1e-5, ..LLAMA.defaults },
        ..LLAMA
    },
    Family {
        model_type: "granite",
        class: "GraniteForCausalLM",
        scores: Scores::Multiplier,
        multipliers: true,
        ..LLAMA
    },
    Family {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        attention_bias: Bias::Never,
        mlp_bias: false,
        windows: Windows::All,
        is_mixture: true,
        experts: ExpertNames { block: "block_sparse_moe", gate: "w1", up: "w3", down: "w2" },
        defaults: Defaults {
            key_heads: Some(8),
            positions: 131_072,
            epsilon: 1e-5,
            theta: 1_000_000.0,
            ..LLAMA.defaults
        },
        ..LLAMA
    },
    Family {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        windows: Windows::AllIfUsed,
        is_mixture: true,
        defaults: Defaults { key_heads: Some(4), head_width: None, ..QWEN3.defaults },
        ..QWEN3
    },
];
