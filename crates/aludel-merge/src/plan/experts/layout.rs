//! Describes the architectures that a mixture of experts can be written as, and chooses among them.
//!
//! In: the families of the models, and the recipe. Out: a [`Layout`]: what its tensors are called, which tensors of the base it has a
//! place for, and what its config says. Names and keys are those that transformers reads (DeepSeek's: its own code on the hub).

use aludel_document::{listed, quoted};
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::recipe::ExpertsRecipe;

/// An output architecture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// As recipes name it.
    pub name: &'static str,
    /// The class, in `architectures` of config.json.
    pub class: &'static str,
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// The families that it can be made of, by their `model_type`.
    pub families: &'static [&'static str],
    pub shared: Shared,
    /// The module of a layer that holds router and experts.
    pub block: &'static str,
    /// What the projections of an expert are called, in the order of [`PROJECTIONS`].
    pub projections: [&'static str; 3],
    /// The module of a shared expert in the block.
    pub shared_module: &'static str,
    /// The projections of attention that may have a bias.
    pub biases: &'static [&'static str],
    /// Whether those biases have to be there.
    pub needs_biases: bool,
    /// Whether queries and keys are normalised.
    pub has_query_norms: bool,
}

/// Experts that see every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    None,
    /// Exactly one, with a gate of its own.
    OneGated,
    /// At most one, without a gate.
    OneUngated,
}

/// The projections of a dense feed-forward layer.
pub(super) const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The last of them, which adds to the residual stream.
pub(super) const LAST_PROJECTION: &str = PROJECTIONS[2];

/// In the order in which they are tried, which is mergekit's.
const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "Mixtral",
        class: "MixtralForCausalLM",
        model_type: "mixtral",
        families: &["llama", "mistral"],
        shared: Shared::None,
        block: "block_sparse_moe",
        projections: ["w1", "w3", "w2"],
        shared_module: "",
        biases: &[],
        needs_biases: false,
        has_query_norms: false,
    },
    Layout {
        name: "DeepSeek MoE",
        class: "DeepseekForCausalLM",
        model_type: "deepseek",
        families: &["llama", "mistral"],
        shared: Shared::OneUngated,
        block: "mlp",
        projections: PROJECTIONS,
        shared_module: "shared_experts",
        biases: &["q_proj", "k_proj", "v_proj", "o_proj"],
        needs_biases: false,
        has_query_norms: false,
    },
    Layout {
        name: "Qwen MoE",
        class: "Qwen2MoeForCausalLM",
        model_type: "qwen2_moe",
        families: &["llama", "mistral", "qwen2"],
        shared: Shared::OneGated,
        block: "mlp",
        projections: PROJECTIONS,
        shared_module: "shared_expert",
        biases: &["q_proj", "k_proj", "v_proj"],
        needs_biases: true,
        has_query_norms: false,
    },
    Layout {
        name: "Qwen3 MoE",
        class: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        families: &["qwen3"],
        shared: Shared::None,
        block: "mlp",
        projections: PROJECTIONS,
        shared_module: "",
        biases: &["q_proj", "k_proj", "v_proj", "o_proj"],
        needs_biases: false,
        has_query_norms: true,
    },
];

impl Layout {
    /// The first layout that a recipe for models of this family fits.
    pub(super) fn choose(recipe: &ExpertsRecipe, family: &str) -> Result<&'static Self, Problem> {
        let is_asked = |layout: &&Self| {
            let asked = recipe.architecture.as_ref().map_or("", |asked| asked.value.as_str());
            layout.name.to_lowercase().starts_with(&asked.to_lowercase())
        };
        let asked: Vec<&'static Self> = LAYOUTS.iter().filter(is_asked).collect();
        if let (Some(name), true) = (&recipe.architecture, asked.is_empty()) {
            let message = format!("no architecture's name begins with {}", quoted(&name.value));
            let names = listed(LAYOUTS.iter().map(|layout| layout.name));
            let problem = Problem::at(name.place.clone(), message);
            return Err(problem.with_hint(format!("there are {names}")));
        }
        let unfit: Vec<Option<String>> = asked.iter().map(|layout| layout.unfit(recipe, family)).collect();
        if let Some(fit) = unfit.iter().position(Option::is_none) {
            return Ok(asked[fit]);
        }
        let reasons = asked.iter().zip(unfit);
        let reasons: Vec<String> = reasons
            .map(|(layout, reason)| format!("{} {}", layout.name, reason.unwrap_or_default()))
            .collect();
        let message = format!("no mixture of experts can be made of these `{family}` models");
        let place = recipe.architecture.as_ref().map_or(&recipe.base_model.place, |asked| &asked.place);
        Err(Problem::at(place.clone(), message).with_hint(reasons.join("; ")))
    }

    /// What keeps a recipe from this layout, as what follows its name.
    fn unfit(&self, recipe: &ExpertsRecipe, family: &str) -> Option<String> {
        let (shared, gated) = (recipe.shared_experts.len(), recipe.gates_shared());
        let by_chance = !recipe.gate_mode.value.reads_prompts();
        if !self.families.contains(&family) {
            return Some(format!("is made of {}", listed(self.families.iter().copied())));
        }
        match self.shared {
            Shared::None if shared > 0 => Some("has no shared experts".into()),
            Shared::OneGated if shared != 1 => Some(format!("has one shared expert, not {shared}")),
            Shared::OneGated if !gated => {
                Some("has a gate for its shared expert, which needs prompts".into())
            }
            Shared::OneUngated if shared > 1 => Some(format!("has one shared expert, not {shared}")),
            Shared::OneUngated if gated && !by_chance && shared > 0 => {
                Some("has no gate for its shared expert: leave its prompts out".into())
            }
            _ => None,
        }
    }

    /// Whether the output has a tensor of this name in each layer, of those that come from the base.
    pub(super) fn takes_over(&self, rest: &str) -> bool {
        if matches!(rest, "input_layernorm.weight" | "post_attention_layernorm.weight") {
            return true;
        }
        let Some((module, kind)) =
            rest.strip_prefix("self_attn.").and_then(|attention| attention.rsplit_once('.'))
        else {
            return false;
        };
        match (module, kind) {
            ("q_proj" | "k_proj" | "v_proj" | "o_proj", "weight") => true,
            ("q_norm" | "k_norm", "weight") => self.has_query_norms,
            (module, "bias") => self.biases.contains(&module),
            _ => false,
        }
    }

    /// The keys of config.json that say what the experts are, besides those of the class.
    pub(super) fn keys(&self, recipe: &ExpertsRecipe, intermediate: &Value) -> Vec<(&'static str, Value)> {
        let (experts, per_token) = (json!(recipe.experts.len()), json!(recipe.experts_per_token));
        let qwen = [
            ("num_experts", experts.clone()),
            ("num_experts_per_tok", per_token.clone()),
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!([])),
            ("norm_topk_prob", json!(true)),
            ("moe_intermediate_size", intermediate.clone()),
        ];
        match self.model_type {
            "mixtral" => vec![("num_local_experts", experts), ("num_experts_per_tok", per_token)],
            "deepseek" => vec![
                ("n_routed_experts", experts),
                ("n_shared_experts", Some(recipe.shared_experts.len()).filter(|&count| count > 0).into()),
                ("num_experts_per_tok", per_token),
                ("first_k_dense_replace", json!(0)),
                ("moe_layer_freq", json!(1)),
                ("scoring_func", json!("softmax")),
                ("norm_topk_prob", json!(true)),
                ("moe_intermediate_size", intermediate.clone()),
                (
                    "auto_map",
                    json!({
                        "AutoConfig": format!("{DEEPSEEK_CODE}--configuration_deepseek.DeepseekConfig"),
                        "AutoModel": format!("{DEEPSEEK_CODE}--modeling_deepseek.DeepseekModel"),
                        "AutoModelForCausalLM": format!("{DEEPSEEK_CODE}--modeling_deepseek.DeepseekForCausalLM"),
                    }),
                ),
            ],
            "qwen2_moe" => {
                let shared = ("shared_expert_intermediate_size", intermediate.clone());
                qwen.into_iter().chain([shared]).collect()
            }
            _ => qwen.into(),
        }
    }
}

/// Where the code lies that runs DeepSeek's first mixtures of experts, which transformers does not have.
const DEEPSEEK_CODE: &str = "deepseek-ai/deepseek-moe-16b-base";

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(keys: &str, family: &str) -> Result<&'static str, String> {
        let text = format!(
            "base_model: a\nexperts: [{{source_model: a, positive_prompts: [x]}}, {{source_model: b, positive_prompts: [y]}}]\n{keys}"
        );
        let recipe = ExpertsRecipe::parse(&text).unwrap();
        Layout::choose(&recipe, family).map(|layout| layout.name).map_err(|problem| problem.to_string())
    }

    #[test]
    fn the_first_layout_that_fits_is_chosen() {
        let gated = "shared_experts: [{source_model: a, positive_prompts: [z]}]\n";
        let ungated = "shared_experts: [{source_model: a}]\n";
        for (keys, family, name) in [
            ("", "llama", "Mixtral"),
            ("", "mistral", "Mixtral"),
            ("architecture: deepseek\n", "llama", "DeepSeek MoE"),
            (ungated, "mistral", "DeepSeek MoE"),
            (gated, "llama", "Qwen MoE"),
            (gated, "qwen2", "Qwen MoE"),
            ("", "qwen3", "Qwen3 MoE"),
            ("architecture: qwen\n", "qwen3", "Qwen3 MoE"),
        ] {
            assert_eq!(chosen(keys, family).as_deref(), Ok(name), "{keys} {family}");
        }
    }

    #[test]
    fn what_fits_no_layout_is_refused_with_the_reason_of_each() {
        let problem = chosen("", "qwen2").unwrap_err();
        assert!(problem.contains("Qwen MoE has one shared expert, not 0"), "{problem}");
        let problem = chosen("architecture: mixtral\n", "qwen2").unwrap_err();
        assert!(problem.starts_with("3:15 architecture: "), "{problem}");
        assert!(problem.contains("Mixtral is made of"), "{problem}");
        let problem = chosen("architecture: phi\n", "llama").unwrap_err();
        assert!(problem.contains("no architecture's name begins with `phi`"), "{problem}");
    }
}
