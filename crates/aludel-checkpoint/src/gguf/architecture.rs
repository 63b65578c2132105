//! Lists the model architectures whose GGUF files are understood: names of tensors and what the converter did to them.
//!
//! A table, not code: one row per architecture. An architecture that is not listed is refused by name.

/// One architecture.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture` and the prefix of its metadata keys.
    pub(super) gguf: &'static str,
    /// `model_type` in config.json.
    pub(super) model_type: &'static str,
    /// `architectures` in config.json.
    pub(super) class: &'static str,
    /// The feed-forward activation.
    pub(super) activation: &'static str,
    /// Whether rows of query and key were reordered for rotary embedding in neighbouring pairs.
    pub(super) pairs_rotary: bool,
    /// Whether 1 was added to the norms' weights.
    pub(super) shifts_norms: bool,
    /// Tensors of layer N: the name after `blk.N.` and the name after `model.layers.N.`, both without `.weight`/`.bias`.
    pub(super) layer: &'static [(&'static str, &'static str)],
}

/// The row of an architecture.
pub(super) fn find(gguf: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|row| row.gguf == gguf)
}

/// Every name that [`find`] knows, for the message that refuses another.
pub(super) fn known() -> String {
    ARCHITECTURES.map(|row| row.gguf).join(", ")
}

/// Mistral's models are llama to GGUF and differ from it in name only.
pub(super) const MISTRAL: Architecture =
    Architecture { model_type: "mistral", class: "MistralForCausalLM", ..LLAMA };

const LLAMA: Architecture = Architecture {
    gguf: "llama",
    model_type: "llama",
    class: "LlamaForCausalLM",
    activation: "silu",
    pairs_rotary: true,
    shifts_norms: false,
    layer: LLAMA_LAYER,
};

const ARCHITECTURES: [Architecture; 10] = [
    LLAMA,
    Architecture {
        gguf: "qwen2",
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        activation: "silu",
        pairs_rotary: false,
        shifts_norms: false,
        layer: LLAMA_LAYER,
    },
    Architecture {
        gguf: "qwen3",
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        activation: "silu",
        pairs_rotary: false,
        shifts_norms: false,
        layer: QK_NORM_LAYER,
    },
    Architecture {
        gguf: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        activation: "silu",
        pairs_rotary: false,
        shifts_norms: false,
        layer: PHI3_LAYER,
    },
    Architecture {
        gguf: "gemma",
        model_type: "gemma",
        class: "GemmaForCausalLM",
        activation: "gelu_pytorch_tanh",
        pairs_rotary: false,
        shifts_norms: true,
        layer: LLAMA_LAYER,
    },
    Architecture {
        gguf: "gemma2",
        model_type: "gemma2",
        class: "Gemma2ForCausalLM",
        activation: "gelu_pytorch_tanh",
        pairs_rotary: false,
        shifts_norms: true,
        layer: GEMMA2_LAYER,
    },
    Architecture {
        gguf: "gemma3",
        model_type: "gemma3_text",
        class: "Gemma3ForCausalLM",
        activation: "gelu_pytorch_tanh",
        pairs_rotary: false,
        shifts_norms: true,
        layer: GEMMA2_LAYER,
    },
    Architecture {
        gguf: "granite",
        model_type: "granite",
        class: "GraniteForCausalLM",
        activation: "silu",
        pairs_rotary: true,
        shifts_norms: false,
        layer: LLAMA_LAYER,
    },
    Architecture {
        gguf: "olmo2",
        model_type: "olmo2",
        class: "Olmo2ForCausalLM",
        activation: "silu",
        pairs_rotary: false,
        shifts_norms: false,
        layer: OLMO2_LAYER,
    },
    Architecture {
        gguf: "starcoder2",
        model_type: "starcoder2",
        class: "Starcoder2ForCausalLM",
        activation: "gelu_pytorch_tanh",
        pairs_rotary: false,
        shifts_norms: false,
        layer: STARCODER2_LAYER,
    },
];

const LLAMA_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const QK_NORM_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const PHI3_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Gemma 3 has the norms of query and key besides.
const GEMMA2_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const OLMO2_LAYER: &[(&str, &str)] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const STARCODER2_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_up", "mlp.c_fc"),
    ("ffn_down", "mlp.c_proj"),
];
