//! Says what an adapter's tensor is by its name.

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The factor at the input.
    A { is_embedding: bool },
    /// The factor at the output.
    B { is_embedding: bool },
    /// DoRA's magnitudes.
    Magnitude,
    /// The bias of B.
    Bias,
    /// A tensor of the model itself; what is named is the tensor and not a module.
    Whole,
}

/// The ends of names. A magnitude was a parameter and is a module's weight in newer versions of peft.
const ENDS: [(&str, Part); 7] = [
    (".lora_A.weight", Part::A { is_embedding: false }),
    (".lora_B.weight", Part::B { is_embedding: false }),
    (".lora_embedding_A", Part::A { is_embedding: true }),
    (".lora_embedding_B", Part::B { is_embedding: true }),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_B.bias", Part::Bias),
];

/// What peft puts in front of the names of the model that it wraps.
pub(super) const PREFIX: &str = "base_model.model.";

/// The module or tensor of the model, and what the tensor is to it; `None` for a tensor that LoRA has not.
pub(super) fn part_of(name: &str) -> Option<(String, Part)> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    if let Some((module, part)) = ENDS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part))) {
        return is_plain(module).then(|| (module.to_owned(), part));
    }
    // A wrapped module's own weight, and a module that was trained whole.
    let tensor = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".");
    is_plain(&tensor).then_some((tensor, Part::Whole))
}

/// Whether no part of a name is one that peft gives.
fn is_plain(name: &str) -> bool {
    let is_known = |word: &str| {
        word.starts_with("lora_")
            || matches!(word, "" | "base_layer" | "modules_to_save" | "token_adapter" | "original_module")
            || word.starts_with("trainable_tokens")
    };
    !name.split('.').any(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_module_and_the_part() {
        let a = Part::A { is_embedding: false };
        for (name, module, part) in [
            ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "model.layers.0.mlp.up_proj", a),
            ("model.layers.0.mlp.up_proj.lora_A.weight", "model.layers.0.mlp.up_proj", a),
            ("base_model.model.x.lora_B.bias", "x", Part::Bias),
            ("base_model.model.wte.lora_embedding_B", "wte", Part::B { is_embedding: true }),
            ("base_model.model.x.lora_magnitude_vector", "x", Part::Magnitude),
            ("base_model.model.x.lora_magnitude_vector.weight", "x", Part::Magnitude),
            ("base_model.model.lm_head.weight", "lm_head.weight", Part::Whole),
            ("base_model.model.wte.base_layer.weight", "wte.weight", Part::Whole),
            ("base_model.model.score.modules_to_save.weight", "score.weight", Part::Whole),
        ] {
            assert_eq!(part_of(name), Some((module.to_owned(), part)), "{name}");
        }
    }

    #[test]
    fn names_that_lora_has_not_are_told() {
        for name in [
            "base_model.model.x.lora_A.default.weight",
            "base_model.model.x.lora_E",
            "base_model.model.x.base_layer.lora_A.weight",
            "base_model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "base_model.model..lora_A.weight",
            ".lora_A.weight",
            "",
        ] {
            assert_eq!(part_of(name), None, "{name}");
        }
    }
}
