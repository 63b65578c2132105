//! Learns from tensor names where a model's layers are: any `<prefix>.<number>.<rest>` that repeats from layer to layer.
//!
//! In: the names of one model's tensors. Out: its [`Stack`]s: one for most models (`model.layers.`, `transformer.h.`,
//! `bert.encoder.layer.`), one for each half of an encoder-decoder, one for each tower of a vision-language model. No
//! architecture is known by name. The number of a layer is the first part of a name that is all digits, so that experts inside
//! of layers are no layers.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::recipe::layer_position;

/// The name of a tensor in a layer, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerName<'n> {
    /// Up to the number, with the dot before it.
    pub prefix: &'n str,
    /// The layer.
    pub layer: usize,
    /// After the number and its dot.
    pub rest: &'n str,
}

impl<'n> LayerName<'n> {
    /// `None` for the name of a tensor of no layer.
    pub(crate) fn of(name: &'n str) -> Option<Self> {
        let mut start = 0;
        for part in name.split('.') {
            let end = start + part.len();
            if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
                let rest = name.get(end + 1..).unwrap_or("");
                return Some(Self { prefix: &name[..start], layer: part.parse().ok()?, rest });
            }
            start = end + 1;
        }
        None
    }
}

/// Layers that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stack<'n> {
    /// What the names of its tensors begin with, up to the number.
    pub prefix: &'n str,
    /// What follows the number, for each layer, in the order of the model.
    pub layers: Vec<Vec<&'n str>>,
    /// Those of the first layer that are parameters of the whole stack, as T5 keeps its relative positions there.
    pub of_whole_stack: HashSet<&'n str>,
}

/// What the first layer has beyond all that any other layer has, where it lacks nothing of theirs. A first layer of another
/// kind, dense before sparse ones, has nothing of the sort.
fn of_whole_stack<'n>(layers: &[Vec<&'n str>]) -> HashSet<&'n str> {
    let Some((first, others)) = layers.split_first().filter(|(_, others)| !others.is_empty()) else {
        return HashSet::new();
    };
    let of_others: HashSet<&str> = others.iter().flatten().copied().collect();
    let of_first: HashSet<&str> = first.iter().copied().collect();
    if of_others.is_subset(&of_first) { &of_first - &of_others } else { HashSet::new() }
}

/// Every stack among the names: numbered from 0 without a gap, with something in common to all of its layers.
pub(super) fn stacks<'n>(names: impl Iterator<Item = &'n str>) -> Vec<Stack<'n>> {
    let mut order: Vec<&str> = Vec::new();
    let mut found: HashMap<&str, BTreeMap<usize, Vec<&str>>> = HashMap::new();
    for name in names.filter_map(LayerName::of) {
        let layers = found.entry(name.prefix).or_insert_with(|| {
            order.push(name.prefix);
            BTreeMap::new()
        });
        layers.entry(name.layer).or_default().push(name.rest);
    }
    let stack = |prefix: &'n str| {
        let layers = found.remove(prefix)?;
        let is_gapless = layers.keys().copied().eq(0..layers.len());
        let layers: Vec<Vec<&str>> = layers.into_values().collect();
        let is_stack = is_gapless && have_something_in_common(&layers);
        is_stack.then(|| Stack { prefix, of_whole_stack: of_whole_stack(&layers), layers })
    };
    order.into_iter().filter_map(stack).collect()
}

fn have_something_in_common(layers: &[Vec<&str>]) -> bool {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for rest in layers.iter().flatten() {
        *counts.entry(rest).or_default() += 1;
    }
    counts.values().any(|&count| count == layers.len())
}

/// The stack that `slices` without `modules` mean: the only one, or the only one of two and more layers.
pub(super) fn only_stack<'s, 'n>(stacks: &'s [Stack<'n>]) -> Option<&'s Stack<'n>> {
    let mut long = stacks.iter().filter(|stack| stack.layers.len() > 1);
    match (stacks, long.next(), long.next()) {
        ([only], ..) | (_, Some(only), None) => Some(only),
        _ => None,
    }
}

/// The number of layers below each prefix, for the positions of gradients over whole models. A gap or a difference between
/// layers is no hindrance here.
#[derive(Debug, Default)]
pub(super) struct Layers<'n> {
    counts: HashMap<&'n str, usize>,
}

impl<'n> Layers<'n> {
    pub(super) fn of(names: impl Iterator<Item = &'n str>) -> Self {
        let mut layers = Self::default();
        for name in names.filter_map(LayerName::of) {
            let count = layers.counts.entry(name.prefix).or_default();
            *count = (*count).max(name.layer.saturating_add(1));
        }
        layers
    }

    /// Where a tensor stands among its layers, from 0 to 1.
    pub(super) fn position(&self, name: &str) -> f64 {
        match LayerName::of(name) {
            Some(name) => {
                layer_position(Some(name.layer), self.counts.get(name.prefix).copied().unwrap_or(1))
            }
            None => layer_position(None, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned<'n>(names: &[&'n str]) -> Vec<(&'n str, usize)> {
        stacks(names.iter().copied()).iter().map(|stack| (stack.prefix, stack.layers.len())).collect()
    }

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
        assert_eq!(LayerName::of("a.7"), Some(LayerName { prefix: "a.", layer: 7, rest: "" }));
        assert_eq!(LayerName::of("0.b"), Some(LayerName { prefix: "", layer: 0, rest: "b" }));
    }

    #[test]
    fn stacks_of_every_naming_are_found() {
        for (names, expected) in [
            (vec!["model.norm.weight", "model.layers.0.w", "model.layers.1.w"], vec![("model.layers.", 2)]),
            (vec!["transformer.h.1.attn.w", "transformer.h.0.attn.w"], vec![("transformer.h.", 2)]),
            (
                vec!["decoder.block.0.layer.0.q", "decoder.block.0.layer.1.q", "encoder.block.0.layer.0.q"],
                vec![("decoder.block.", 1), ("encoder.block.", 1)],
            ),
            (vec!["l.0.experts.0.w", "l.0.experts.1.w", "l.1.experts.0.w"], vec![("l.", 2)]),
            // A gap, and layers without anything in common, are no stack; neither is a number out of any range.
            (vec!["l.0.w", "l.2.w", "m.1.w", "n.0.a", "n.1.b", "o.18446744073709551615.w"], vec![]),
        ] {
            assert_eq!(learned(&names), expected, "{names:?}");
        }
    }

    #[test]
    fn only_a_stack_without_a_rival_is_meant() {
        let only = |names: &[&'static str]| {
            let stacks = stacks(names.iter().copied());
            only_stack(&stacks).map(|stack| stack.prefix)
        };
        assert_eq!(only(&["l.0.w"]), Some("l."));
        assert_eq!(only(&["l.0.w", "l.1.w", "head.0.w"]), Some("l."));
        assert_eq!(only(&["l.0.w", "l.1.w", "v.0.w", "v.1.w"]), None);
        assert_eq!(only(&["a.0.w", "b.0.w"]), None);
        assert_eq!(only(&["w"]), None);
    }

    #[test]
    fn what_the_first_layer_alone_has_belongs_to_the_stack_unless_it_is_of_another_kind() {
        let of = |names: &[&'static str]| {
            let mut extra: Vec<_> = stacks(names.iter().copied())[0].of_whole_stack.iter().copied().collect();
            extra.sort_unstable();
            extra
        };
        assert_eq!(of(&["b.0.q", "b.0.bias", "b.1.q", "b.2.q"]), ["bias"]);
        assert_eq!(of(&["l.0.q", "l.0.dense", "l.1.q", "l.1.expert"]), [""; 0]);
        assert_eq!(of(&["l.0.q", "l.0.k"]), [""; 0]);
        assert_eq!(of(&["l.0.q", "l.0.x", "l.1.q", "l.2.q", "l.2.x"]), [""; 0]);
    }
}
