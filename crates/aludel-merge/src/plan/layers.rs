//! Learns from tensor names which layer each belongs to and how many layers there are.
//!
//! A layer number is the first part of a name that is all digits, as in `model.layers.12.mlp.up_proj.weight`. Parts with
//! different text before the number, as a vision tower's, are counted apart.

use std::collections::HashMap;

use crate::recipe::layer_position;

/// The number of layers below each prefix.
#[derive(Debug, Default)]
pub(super) struct Layers<'n> {
    counts: HashMap<&'n str, usize>,
}

impl<'n> Layers<'n> {
    pub(super) fn of(names: impl Iterator<Item = &'n str>) -> Self {
        let mut layers = Self::default();
        for (prefix, layer) in names.filter_map(split) {
            let count = layers.counts.entry(prefix).or_default();
            *count = (*count).max(layer.saturating_add(1));
        }
        layers
    }

    /// Where a tensor stands among its layers, from 0 to 1.
    pub(super) fn position(&self, name: &str) -> f64 {
        match split(name) {
            Some((prefix, layer)) => {
                layer_position(Some(layer), self.counts.get(prefix).copied().unwrap_or(1))
            }
            None => layer_position(None, 1),
        }
    }
}

fn split(name: &str) -> Option<(&str, usize)> {
    let mut start = 0;
    for part in name.split('.') {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some((&name[..start], part.parse().ok()?));
        }
        start += part.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_run_from_the_first_layer_to_the_last() {
        let names = [
            "model.embed_tokens.weight",
            "model.layers.0.a",
            "model.layers.4.a",
            "vision.layers.1.a",
            "h.0.b",
        ];
        let layers = Layers::of(names.into_iter());
        let positions = names.map(|name| layers.position(name));
        assert_eq!(positions, [0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(layers.position("model.layers.3.experts.7.w"), 0.75);
    }

    #[test]
    fn a_number_that_is_no_layer_is_none() {
        let huge = "a.99999999999999999999999.b";
        assert_eq!(Layers::of([huge].into_iter()).position(huge), 0.0);
        assert_eq!(Layers::of(["..", ""].into_iter()).position(".."), 0.0);
    }
}
