//! Matches the tensors of slices: runs of layers, stacked and renumbered, between what stands before and after them.
//!
//! In: the casts of one part's slices. Out: one [`Matched`] for each output tensor. Tensors of no layer come from the models
//! of the first slice where they stand before the layers (embeddings), and from those of the last slice where they stand
//! after them (the final norm, heads, poolers), as in mergekit. Which is which is told by the name, as nothing else in a
//! checkpoint tells it.

use std::collections::HashMap;

use indexmap::IndexSet;

use super::cast::{Cast, Taken};
use super::layer_config::Counted;
use super::models::{Model, Models};
use super::stacks::{LayerName, Stack, only_stack, stacks};
use super::tensors::{
    DERIVED, DroppedTensors, Matched, Read, Wanted, has_embedding, is_derived, is_embedding, is_head,
    tied_head, ties_embeddings,
};
use crate::problem::{Problem, Problems};
use crate::recipe::layer_position;

/// The stacked layers of a part of the output.
#[derive(Debug)]
pub(super) struct Stacked {
    /// What the names of its layers' tensors begin with.
    pub prefix: String,
    /// The model and the layer that each output layer takes after, in what its config says of layers.
    pub origins: Vec<Origin>,
    /// Whether the part has a head of its own.
    pub has_head: bool,
}

/// A layer of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub model: usize,
    pub layer: usize,
}

/// All tensors of an output, or of a part of it, that slices are stacked into.
pub(super) fn sliced(
    (first_cast, casts): (usize, &[Cast<'_>]),
    read: Read<'_>,
    config_of: usize,
    owns: &dyn Fn(&str) -> bool,
    dropped: &mut DroppedTensors,
    problems: &mut Problems,
) -> Option<(Vec<Matched>, Stacked)> {
    let models = read.models;
    let prefix = prefix_of(casts, models, owns, problems)?;
    let learned: HashMap<usize, Stack<'_>> = stacks_of(casts, models, &prefix, problems)?;
    check_ranges(casts, models, &learned, problems)?;
    let slices = Slices { first_cast, casts, read, config_of, owns, prefix: &prefix, stacks: learned };
    let has_head = slices.has_head();
    if !has_head {
        let among: Vec<usize> = (0..models.list.len()).collect();
        let heads = models.list.iter().flat_map(Model::names).filter(|name| is_head(name) && owns(name));
        let heads: IndexSet<&str> = heads.collect();
        let reason = tied_head(&models.list[config_of]);
        heads.into_iter().for_each(|head| dropped.add(head, models, &among, &reason));
    }
    let matched = slices.matched(has_head, problems);
    let origins = slices.origins();
    let has_head = matched.iter().any(|matched| is_head(&matched.name));
    Some((matched, Stacked { prefix, origins, has_head }))
}

/// Where the layers are, learned from the model that leads the first slice.
fn prefix_of(
    casts: &[Cast<'_>],
    models: &Models,
    owns: &dyn Fn(&str) -> bool,
    problems: &mut Problems,
) -> Option<String> {
    let cast = casts.first()?;
    let model = &models.list[cast.taken.get(cast.leading(models))?.model];
    let stacks = stacks(model.names().filter(|name| owns(name)));
    if let Some(stack) = only_stack(&stacks) {
        return Some(stack.prefix.to_owned());
    }
    let place = cast.scope.slice.place.clone();
    problems.push(if stacks.is_empty() {
        Problem::at(
            place,
            format!(
                "`{}` has no layers to slice: no names of its tensors are numbered from layer to layer",
                model.name
            ),
        )
        .with_hint("merge it whole, under `models`")
    } else {
        let listed: Vec<String> =
            stacks.iter().map(|stack| format!("{}N ({})", stack.prefix, stack.layers.len())).collect();
        let message = format!("`{}` has layers in several places: {}", model.name, listed.join(", "));
        Problem::at(place, message).with_hint("say which are meant under `modules`")
    });
    None
}

/// The stack of that prefix in every model.
fn stacks_of<'m>(
    casts: &[Cast<'_>],
    models: &'m Models,
    prefix: &str,
    problems: &mut Problems,
) -> Option<HashMap<usize, Stack<'m>>> {
    let mut learned = HashMap::new();
    let before = problems.count();
    for (cast, taken) in casts.iter().flat_map(|cast| cast.taken.iter().map(move |taken| (cast, taken))) {
        if learned.contains_key(&taken.model) {
            continue;
        }
        let model = &models.list[taken.model];
        match stacks(model.names()).into_iter().find(|stack| stack.prefix == prefix) {
            Some(stack) => {
                learned.insert(taken.model, stack);
            }
            None => {
                let message = format!("`{}` has no layers named `{prefix}N`", model.name);
                let place = cast.scope.entry(taken.entry).map(|entry| entry.reference.place.clone());
                let place = place.unwrap_or_else(|| cast.scope.slice.place.clone());
                problems.push(Problem::at(place, message).with_hint("are the models of one architecture?"));
            }
        }
    }
    (problems.count() == before).then_some(learned)
}

/// The layers that a model has: those of its stack, or the fewer that its config counts, as some checkpoints keep further
/// layers, for predicting several tokens, behind those that the config counts.
fn layer_count(model: &Model, stack: &Stack<'_>) -> usize {
    let counted = model.config.as_ref().and_then(|config| Counted::of(config, stack.prefix));
    let counted = counted.map_or(0, |counted| counted.layers);
    if counted > 0 { counted.min(stack.layers.len()) } else { stack.layers.len() }
}

fn check_ranges(
    casts: &[Cast<'_>],
    models: &Models,
    stacks: &HashMap<usize, Stack<'_>>,
    problems: &mut Problems,
) -> Option<()> {
    let before = problems.count();
    for cast in casts {
        for entry in &cast.scope.slice.sources {
            let Some(model) = models.position(&entry.reference.value) else { continue };
            let (Some(layers), Some(stack)) = (&entry.layers, stacks.get(&model)) else { continue };
            let count = layer_count(&models.list[model], stack);
            if layers.value.end > count {
                let message = format!(
                    "the layer range [{}, {}] goes beyond `{}`, which has {count} layers",
                    layers.value.start,
                    layers.value.end,
                    entry.reference.value.text()
                );
                let hint = format!("its layers are [0, {count}]");
                problems.push(Problem::at(layers.place.clone(), message).with_hint(hint));
            }
        }
    }
    (problems.count() == before).then_some(())
}

struct Slices<'a> {
    first_cast: usize,
    casts: &'a [Cast<'a>],
    read: Read<'a>,
    config_of: usize,
    owns: &'a dyn Fn(&str) -> bool,
    prefix: &'a str,
    stacks: HashMap<usize, Stack<'a>>,
}

impl Slices<'_> {
    /// Whether the output has a head of its own: where the last slice's models store one that is not their embedding, or the
    /// model that gives the config has its head apart.
    fn has_head(&self) -> bool {
        let last = self.casts.iter().next_back();
        let stores_head = |taken: &Taken| {
            let model = &self.read.models.list[taken.model];
            model.names().any(is_head) && !ties_embeddings(model)
        };
        let config = &self.read.models.list[self.config_of];
        !ties_embeddings(config)
            || !has_embedding(config)
            || last.is_some_and(|cast| cast.taken.iter().any(stores_head))
    }

    fn matched(&self, has_head: bool, problems: &mut Problems) -> Vec<Matched> {
        let last = self.casts.len() - 1;
        let mut matched = Vec::new();
        for name in self.outside(0).into_iter().filter(|name| is_before_the_layers(name)) {
            matched.extend(self.same_name(0, name, problems));
        }
        matched.extend(self.of_whole_stack(problems));
        let mut first_layer = 0;
        for slice in 0..self.casts.len() {
            matched.extend(self.layers(slice, first_layer, problems));
            first_layer += self.casts[slice].scope.slice.layers().unwrap_or(0);
        }
        let mut after: IndexSet<&str> =
            self.outside(last).into_iter().filter(|name| !is_before_the_layers(name)).collect();
        after.retain(|name| has_head || !is_head(name));
        if has_head && !after.iter().any(|name| is_head(name)) {
            // The last slice's models have their heads tied; their embedding stands in for the one that the config asks for.
            let heads = self.read.models.list[self.config_of].names().filter(|name| is_head(name));
            after.extend(heads.filter(|name| (self.owns)(name)));
        }
        for name in after {
            matched.extend(self.same_name(last, name, problems));
        }
        matched
    }

    /// The tensors of no layer, of any model of a slice; the leading model's first.
    fn outside(&self, slice: usize) -> IndexSet<&str> {
        let cast = &self.casts[slice];
        let leading = cast.leading(self.read.models);
        let models = std::iter::once(&cast.taken[leading]).chain(&cast.taken);
        let names = models.flat_map(|taken| self.read.models.list[taken.model].names());
        let is_outside = |name: &&str| LayerName::of(name).is_none_or(|name| name.prefix != self.prefix);
        names.filter(is_outside).filter(|name| (self.owns)(name) && !is_derived(name)).collect()
    }

    /// A tensor that has the same name in the output as in all models of a slice.
    fn same_name(&self, slice: usize, name: &str, problems: &mut Problems) -> Option<Matched> {
        self.wanted(slice, name.to_owned(), |_| name.to_owned()).matched(
            self.read,
            Some(self.first_cast + slice),
            layer_position(None, 1),
            problems,
        )
    }

    /// What a stack keeps in its first layer for all of them: it stays in the first layer, from the first slice's models.
    fn of_whole_stack(&self, problems: &mut Problems) -> Vec<Matched> {
        let mut rests: Vec<&str> = self.casts[0]
            .taken
            .iter()
            .flat_map(|taken| self.stacks[&taken.model].of_whole_stack.iter().copied())
            .collect();
        rests.sort_unstable();
        rests.dedup();
        rests.into_iter().filter_map(|rest| self.same_name(0, &self.layer_name(0, rest), problems)).collect()
    }

    /// The tensors of a slice's layers, which in the output are numbered from `first_layer` on.
    fn layers(&self, slice: usize, first_layer: usize, problems: &mut Problems) -> Vec<Matched> {
        let cast = &self.casts[slice];
        let count = cast.scope.slice.layers().unwrap_or(0);
        let leading = cast.leading(self.read.models);
        let mut matched = Vec::new();
        for layer in 0..count {
            let rests = |taken: &Taken| {
                let stack = &self.stacks[&taken.model];
                let rests = stack.layers[taken.first_layer.unwrap_or(0) + layer].iter().copied();
                rests
                    .filter(|rest| !stack.of_whole_stack.contains(rest) && !is_derived(rest))
                    .collect::<Vec<_>>()
            };
            let models = std::iter::once(&cast.taken[leading]).chain(&cast.taken);
            let rests: IndexSet<&str> = models.flat_map(rests).collect();
            for rest in rests {
                let output = self.layer_name(first_layer + layer, rest);
                let wanted = self.wanted(slice, output, |taken| {
                    self.layer_name(taken.first_layer.unwrap_or(0) + layer, rest)
                });
                let position = layer_position(Some(layer), count);
                matched.extend(wanted.matched(self.read, Some(self.first_cast + slice), position, problems));
            }
        }
        matched
    }

    fn wanted(&self, slice: usize, output: String, name_in: impl Fn(&Taken) -> String) -> Wanted {
        let cast = &self.casts[slice];
        let tensors = cast.taken.iter().map(|taken| (taken.model, name_in(taken))).collect();
        Wanted {
            output,
            tensors,
            leading: cast.leading(self.read.models),
            base: cast.base_of(self.read.models),
        }
    }

    fn layer_name(&self, layer: usize, rest: &str) -> String {
        let dot = if rest.is_empty() { "" } else { "." };
        format!("{}{layer}{dot}{rest}", self.prefix)
    }

    fn origins(&self) -> Vec<Origin> {
        let of_slice = |cast: &Cast<'_>| {
            let taken = cast.taken[cast.leading(self.read.models)];
            let first = taken.first_layer.unwrap_or(0);
            let count = cast.scope.slice.layers().unwrap_or(0);
            (first..first + count).map(move |layer| Origin { model: taken.model, layer })
        };
        self.casts.iter().flat_map(of_slice).collect()
    }
}

/// Why a tensor is in no output that slices are stacked into.
pub(super) fn reason_unused(stacked: &Stacked, is_in_a_slice: bool, name: &str) -> String {
    let of_layer = LayerName::of(name).filter(|name| name.prefix == stacked.prefix);
    if is_derived(name) {
        DERIVED.into()
    } else if !is_in_a_slice {
        "no slice takes anything of this model, which gives its config and side files".into()
    } else if of_layer.is_some() {
        "its layer is in no slice".into()
    } else if is_before_the_layers(name) {
        "what stands before the layers comes from the first slice".into()
    } else {
        "what stands after the layers comes from the last slice".into()
    }
}

/// Whether a tensor of no layer works on what goes into the layers, by its name: embeddings of any sort and what follows
/// them. Everything else works on what comes out.
fn is_before_the_layers(name: &str) -> bool {
    let is_output = |part: &str| part == "embed_out" || part == "unembed" || part == "lm_head";
    let is_input = |part: &str| {
        part.contains("embed") || matches!(part, "wte" | "wpe" | "shared" | "project_in" | "conv1" | "conv2")
    };
    is_embedding(name) || (name.split('.').any(is_input) && !name.split('.').any(is_output))
}

#[cfg(test)]
mod tests {
    use super::is_before_the_layers;

    #[test]
    fn what_stands_before_the_layers_is_told_by_its_name() {
        for name in [
            "model.embed_tokens.weight",
            "transformer.wte.weight",
            "transformer.wpe.weight",
            "gpt_neox.embed_in.weight",
            "bert.embeddings.LayerNorm.weight",
            "bert.embeddings.position_ids",
            "transformer.word_embeddings_layernorm.bias",
            "model.tok_embeddings.weight",
            "shared.weight",
            "model.encoder.conv1.bias",
            "model.decoder.project_in.weight",
        ] {
            assert!(is_before_the_layers(name), "{name}");
        }
        for name in [
            "model.norm.weight",
            "lm_head.weight",
            "embed_out.weight",
            "transformer.ln_f.bias",
            "bert.pooler.dense.weight",
            "cls.predictions.decoder.weight",
            "decoder.final_layer_norm.weight",
            "model.decoder.project_out.weight",
            "classifier.bias",
            "model.language_model.lm_head.weight",
        ] {
            assert!(!is_before_the_layers(name), "{name}");
        }
    }
}
