//! Describes the files of an adapter that is to be written, so that peft loads it.
//!
//! In: modules with their ranks and what else belongs to them. Out: the text of `adapter_config.json` and the layout of
//! `adapter_model.safetensors`. The values are the caller's to write.

use serde_json::{Map, Value, json};

use super::ADAPTER_WEIGHTS;
use super::names::PREFIX;
use crate::error::Error;
use crate::layout::{Layout, OutputTensor};

/// What an adapter says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterFiles {
    /// What peft is to load it onto: a path or a name on a hub.
    pub base: String,
    /// The rank of modules that `rank_pattern` does not name.
    pub rank: usize,
    /// The product's factor is this over the rank, or over its root.
    pub alpha: f64,
    /// The factor is `alpha / sqrt(rank)`.
    pub rank_stabilised: bool,
    /// Modules by their name or its end.
    pub targets: Vec<String>,
    /// Ranks of single modules.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas of single modules.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are stored whole, by their names or ends of them.
    pub saved: Vec<String>,
    /// Whether the weights of modules have their inputs first.
    pub fan_in_fan_out: bool,
    /// Whether B has biases.
    pub bias: bool,
    /// What peft calls the use of the model, such as `CAUSAL_LM`; `None` where it does not matter.
    pub task: Option<String>,
    /// Whether biases of the model are stored beside the factors.
    pub trains_biases: bool,
    /// Whether a head that is tied to the embedding follows it.
    pub ties_weights: bool,
}

/// What of a module a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterTensor {
    /// `[rank, inputs]`.
    A,
    /// `[outputs, rank]`.
    B,
    /// A of an embedding.
    EmbeddingA,
    /// B of an embedding.
    EmbeddingB,
    /// The bias of B.
    Bias,
    /// A tensor of the model, named in full.
    Whole,
}

impl AdapterTensor {
    /// The name in the file, given the module's or, of a whole tensor, the tensor's name in the model.
    pub fn name(self, of: &str) -> String {
        let end = match self {
            Self::A => ".lora_A.weight",
            Self::B => ".lora_B.weight",
            Self::EmbeddingA => ".lora_embedding_A",
            Self::EmbeddingB => ".lora_embedding_B",
            Self::Bias => ".lora_B.bias",
            Self::Whole => "",
        };
        format!("{PREFIX}{of}{end}")
    }
}

impl AdapterFiles {
    /// The one file of weights.
    ///
    /// Errors: those of [`Layout::plan`].
    pub fn layout(tensors: Vec<OutputTensor>) -> Result<Layout, Error> {
        Layout::single(tensors, ADAPTER_WEIGHTS)
    }

    /// The text of `adapter_config.json`.
    pub fn config_json(&self) -> String {
        // peft takes the keys for regular expressions.
        fn pattern<T: Clone + Into<Value>>(entries: &[(String, T)]) -> Map<String, Value> {
            entries.iter().map(|(name, value)| (regex::escape(name), value.clone().into())).collect()
        }
        let saved = if self.saved.is_empty() { Value::Null } else { json!(self.saved) };
        // What peft takes for an adapter without factors.
        let targets =
            if self.targets.is_empty() { json!("dummy-target-modules") } else { json!(self.targets) };
        let mut config = json!({
            "alpha_pattern": pattern(&self.alpha_pattern),
            "base_model_name_or_path": self.base,
            "bias": if self.trains_biases { "all" } else { "none" },
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": self.alpha,
            "lora_bias": self.bias,
            "lora_dropout": 0.0,
            "modules_to_save": saved,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": pattern(&self.rank_pattern),
            "target_modules": targets,
            "task_type": self.task,
            "use_dora": false,
            "use_rslora": self.rank_stabilised,
        });
        // Not known to every version of peft.
        if self.ties_weights {
            config["ensure_weight_tying"] = true.into();
        }
        format!("{config:#}\n")
    }
}
