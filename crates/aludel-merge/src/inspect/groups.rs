//! Says which layer a tensor belongs to, by its name alone.

use crate::plan::LayerName;

/// The layer of a tensor, as `model.layers.3`; what stands before its last word, as `model.norm`, where it is in no layer.
pub(super) fn group(name: &str) -> String {
    match LayerName::of(name) {
        Some(layer) => format!("{}{}", layer.prefix, layer.layer),
        None => name.rsplit_once('.').map_or(name, |(group, _)| group).to_owned(),
    }
}

/// The stack of a tensor in a layer, the layer, and what the tensor is there: `("model.layers.", 3, "mlp.experts.*.w1.weight")`.
/// Experts of one layer are one kind.
pub(super) fn kind(name: &str) -> Option<(&str, usize, String)> {
    let layer = LayerName::of(name)?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = layer.rest.split('.').map(|part| if is_number(part) { "*" } else { part });
    Some((layer.prefix, layer.layer, parts.collect::<Vec<_>>().join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_belongs_to_its_layer_or_to_what_it_is_part_of() {
        for (name, expected) in [
            ("model.layers.12.mlp.experts.3.w1.weight", "model.layers.12"),
            ("h.0.ln_1.bias", "h.0"),
            ("model.embed_tokens.weight", "model.embed_tokens"),
            ("lm_head.weight", "lm_head"),
            ("shared", "shared"),
        ] {
            assert_eq!(group(name), expected);
        }
    }

    #[test]
    fn experts_are_of_one_kind() {
        let expected = Some(("model.layers.", 12, "mlp.experts.*.w1.weight".to_owned()));
        assert_eq!(kind("model.layers.12.mlp.experts.3.w1.weight"), expected);
        assert_eq!(kind("model.norm.weight"), None);
    }
}
