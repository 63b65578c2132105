//! Names the model shapes that benchmarks run on.
//!
//! In: a spec such as `llama-1.1b`. Out: the tensors of that Llama, in the order of a real file, and its `config.json`. The
//! values of the weights are `values`' business.

use std::str::FromStr;

use aludel_checkpoint::{Dtype, OutputTensor};
use anyhow::bail;
use serde::Serialize;
use serde_json::{Value, json};

/// A set of models: a base and three fine-tunes of one shape.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ModelSpec {
    /// The spec as it was named.
    pub(crate) name: String,
    pub(crate) shape: Shape,
    /// Every weight is zero and takes no room on a file system with sparse files: for measuring memory only.
    pub(crate) zero: bool,
}

/// The sides of a Llama decoder with an untied head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Shape {
    layers: usize,
    hidden: usize,
    ffn: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    /// Expert networks of each layer, with a router; 0 for one network and none.
    #[serde(skip_serializing_if = "is_none")]
    experts: usize,
}

const fn is_none(experts: &usize) -> bool {
    *experts == 0
}

impl FromStr for ModelSpec {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let (shape_name, zero) = match name.strip_suffix("-zero") {
            Some(rest) => (rest, true),
            None => (name, false),
        };
        let shape = match shape_name {
            "llama-tiny" => TINY,
            // The same tensors in four layers: for profiles and for comparing two builds.
            "llama-0.3b" => Shape { layers: 4, ..TINY_LLAMA },
            "llama-0.6b" => Shape { layers: 11, ..TINY_LLAMA },
            "llama-1.1b" => TINY_LLAMA,
            "llama-3b" => MIDDLE_LLAMA,
            // As wide and almost as deep as Llama 7B: five times the weights in little more tensors, as in real models.
            "llama-5.5b" => WIDE_LLAMA,
            "llama-7b" => Shape { layers: 32, ..WIDE_LLAMA },
            "llama-163m" => SMOL_LLAMA,
            "llama-wide-head" => WIDE_HEAD,
            "experts-128" => EXPERTS,
            "llama-405b-layer" => LARGEST_LAYER,
            "llama-405b" => Shape { layers: 126, ..LARGEST_LAYER },
            _ => bail!(
                "unknown model `{name}`: there are llama-tiny, llama-163m, llama-wide-head, llama-0.3b, llama-0.6b, llama-1.1b, \
                 llama-3b, llama-5.5b, llama-7b, llama-405b-layer, llama-405b and experts-128, each also with -zero"
            ),
        };
        Ok(Self { name: name.to_owned(), shape, zero })
    }
}

impl Shape {
    /// Every tensor, in bf16.
    pub(crate) fn tensors(&self) -> Vec<OutputTensor> {
        let mut tensors = vec![self.matrix("model.embed_tokens", self.vocabulary, self.hidden)];
        for layer in 0..self.layers {
            tensors.extend(self.layer(&format!("model.layers.{layer}")));
        }
        tensors.push(self.norm("model.norm"));
        tensors.push(self.matrix("lm_head", self.vocabulary, self.hidden));
        tensors
    }

    /// The model's `config.json`.
    pub(crate) fn config(&self) -> Value {
        let (architecture, model_type) = match self.experts {
            0 => ("LlamaForCausalLM", "llama"),
            _ => ("Qwen3MoeForCausalLM", "qwen3_moe"),
        };
        let mut config = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
        });
        if self.experts > 0 {
            config["num_experts"] = self.experts.into();
            config["moe_intermediate_size"] = self.ffn.into();
        }
        config
    }

    fn layer(&self, at: &str) -> Vec<OutputTensor> {
        let kv = self.hidden / self.heads * self.kv_heads;
        let matrix = |name: &str, rows, columns| self.matrix(&format!("{at}.{name}"), rows, columns);
        let mut tensors = vec![self.norm(&format!("{at}.input_layernorm"))];
        for expert in 0..self.experts {
            tensors.extend(self.network(&format!("{at}.mlp.experts.{expert}")));
        }
        if self.experts == 0 {
            tensors.extend(self.network(&format!("{at}.mlp")));
        } else {
            tensors.push(matrix("mlp.gate", self.experts, self.hidden));
        }
        tensors.extend([
            self.norm(&format!("{at}.post_attention_layernorm")),
            matrix("self_attn.k_proj", kv, self.hidden),
            matrix("self_attn.o_proj", self.hidden, self.hidden),
            matrix("self_attn.q_proj", self.hidden, self.hidden),
            matrix("self_attn.v_proj", kv, self.hidden),
        ]);
        tensors
    }

    fn network(&self, at: &str) -> [OutputTensor; 3] {
        [
            self.matrix(&format!("{at}.down_proj"), self.hidden, self.ffn),
            self.matrix(&format!("{at}.gate_proj"), self.ffn, self.hidden),
            self.matrix(&format!("{at}.up_proj"), self.ffn, self.hidden),
        ]
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> OutputTensor {
        OutputTensor { name: format!("{name}.weight"), dtype: Dtype::BF16, shape: vec![rows, columns] }
    }

    fn norm(&self, name: &str) -> OutputTensor {
        OutputTensor { name: format!("{name}.weight"), dtype: Dtype::BF16, shape: vec![self.hidden] }
    }
}

/// TinyLlama-1.1B.
const TINY_LLAMA: Shape =
    Shape { layers: 22, hidden: 2048, ffn: 5632, heads: 32, kv_heads: 4, vocabulary: 32_000, experts: 0 };
/// As wide and as deep as Llama 3.2 3B, with a head of its own.
const MIDDLE_LLAMA: Shape =
    Shape { layers: 28, hidden: 3072, ffn: 8192, heads: 24, kv_heads: 8, vocabulary: 128_256, experts: 0 };
const WIDE_LLAMA: Shape =
    Shape { layers: 26, hidden: 4096, ffn: 11_008, heads: 32, kv_heads: 32, vocabulary: 32_000, experts: 0 };

/// SmolLM2-135M with a head of its own.
const SMOL_LLAMA: Shape =
    Shape { layers: 30, hidden: 576, ffn: 1536, heads: 9, kv_heads: 3, vocabulary: 49_152, experts: 0 };

/// The vocabulary of Qwen2 on a decoder that takes almost nothing: for measuring the head.
const WIDE_HEAD: Shape =
    Shape { layers: 1, hidden: 256, ffn: 512, heads: 4, kv_heads: 2, vocabulary: 151_936, experts: 0 };

/// The experts of a Qwen3-MoE with 128 of them in 48 layers, so narrow that what a tensor costs besides its weights shows.
const EXPERTS: Shape =
    Shape { layers: 48, hidden: 128, ffn: 48, heads: 4, kv_heads: 2, vocabulary: 2048, experts: 128 };

/// One layer of Llama 3.1 405B with its embedding and its head.
const LARGEST_LAYER: Shape = Shape {
    layers: 1,
    hidden: 16_384,
    ffn: 53_248,
    heads: 128,
    kv_heads: 8,
    vocabulary: 128_256,
    experts: 0,
};

/// Small enough for tests, large enough for statistics.
const TINY: Shape =
    Shape { layers: 2, hidden: 64, ffn: 176, heads: 4, kv_heads: 2, vocabulary: 512, experts: 0 };

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(name: &str) -> usize {
        let spec: ModelSpec = name.parse().unwrap();
        spec.shape.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_large_shapes_hold_what_their_names_say() {
        assert_eq!(parameters("llama-1.1b"), 1_100_048_384, "the published count of TinyLlama");
        assert_eq!(parameters("llama-405b"), 405_853_388_800, "the published count of Llama 3.1 405B");
        assert_eq!(parameters("llama-7b"), 6_738_415_616, "the published count of Llama 7B");
        assert_eq!(parameters("llama-163m"), 134_515_008 + 49_152 * 576, "SmolLM2-135M and one more matrix");
        let times = parameters("llama-5.5b") as f64 / parameters("llama-1.1b") as f64;
        assert!((times - 5.0).abs() < 0.05, "{times}");
        let experts: ModelSpec = "experts-128".parse().unwrap();
        assert_eq!(experts.shape.tensors().len(), 48 * (3 * 128 + 7) + 3);
        let largest: ModelSpec = "llama-405b-layer".parse().unwrap();
        let shapes: Vec<_> = largest.shape.tensors().into_iter().map(|tensor| tensor.shape).collect();
        assert!(shapes.contains(&vec![16_384, 53_248]) && shapes.contains(&vec![128_256, 16_384]));
    }

    #[test]
    fn an_unknown_shape_is_refused_by_name() {
        let error = "llama-8b".parse::<ModelSpec>().unwrap_err();
        assert!(error.to_string().contains("`llama-8b`"), "{error}");
        assert!("llama-tiny-zero".parse::<ModelSpec>().unwrap().zero);
    }
}
