//! Matches the tensors of whole models: what is merged, what is copied, what is dropped and why.
//!
//! In: the cast of a merge. Out: one [`Matched`] for each output tensor, in the leading model's order. Every input tensor
//! ends up in an output tensor or among the dropped; nothing disappears silently.

use std::collections::HashSet;

use aludel_checkpoint::{Config, Dtype, is_float};
use indexmap::IndexSet;

use super::cast::Cast;
use super::models::{Facts, Model, Models};
use super::stacks::Layers;
use super::vocabulary::{Vocabulary, is_of_vocabulary};
use crate::derive::Made;
use crate::problem::{Problem, Problems};
use crate::recipe::nearest;

pub(crate) const HEAD: &str = "lm_head.weight";

/// An output tensor and where it comes from.
#[derive(Debug)]
pub(super) struct Matched {
    pub name: String,
    pub shape: Vec<usize>,
    /// The leading model's type.
    pub dtype: Dtype,
    /// One for each of what the cast takes, in its order.
    pub inputs: Vec<TensorOf>,
    /// What filters of the models' parameters are held against, for each input.
    pub filtered_by: Vec<String>,
    /// Where it stands among the layers, from 0 to 1.
    pub position: f64,
    /// The cast that it belongs to; `None` for a tensor that is taken over as it is.
    pub cast: Option<usize>,
}

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorOf {
    /// The model's position among [`Models::list`].
    pub model: usize,
    pub tensor: String,
    /// How the merge makes it of the model's tensor, where it does; else it is the model's own.
    pub made: Option<Made>,
}

/// A tensor of a model that nothing is made of.
#[derive(Debug)]
pub(super) struct Unused {
    /// The model's position among [`Models::list`].
    pub model: usize,
    pub tensor: String,
    pub reason: String,
}

/// Input tensors that are not in the output.
#[derive(Debug, Default)]
pub(super) struct DroppedTensors {
    pub list: Vec<Unused>,
}

impl DroppedTensors {
    /// Takes note that a tensor is dropped from every model that has it, among those given.
    pub(super) fn add(&mut self, tensor: &str, models: &Models, among: &[usize], reason: &str) {
        for &model in among {
            if models.list[model].has(tensor) {
                self.list.push(Unused { model, tensor: tensor.to_owned(), reason: reason.to_owned() });
            }
        }
    }

    /// Takes note of every tensor of the models `among` that no output tensor reads and nothing is said about yet.
    pub(super) fn add_unused(
        &mut self,
        models: &Models,
        among: &[usize],
        used: &[Matched],
        reason: impl Fn(usize, &str) -> String,
    ) {
        let inputs = used.iter().flat_map(|matched| &matched.inputs);
        let mut known: HashSet<(usize, &str)> =
            inputs.map(|input| (input.model, input.tensor.as_str())).collect();
        known.extend(self.list.iter().map(|unused| (unused.model, unused.tensor.as_str())));
        let mut unused = Vec::new();
        for &model in among {
            for name in models.list[model].names().filter(|&name| !known.contains(&(model, name))) {
                unused.push(Unused { model, tensor: name.to_owned(), reason: reason(model, name) });
            }
        }
        self.list.append(&mut unused);
    }
}

/// All tensors of an output that whole models are merged into.
pub(super) fn whole(
    (number, cast): (usize, &Cast<'_>),
    read: Read<'_>,
    leading: usize,
    owns: &dyn Fn(&str) -> bool,
    dropped: &mut DroppedTensors,
    problems: &mut Problems,
) -> Vec<Matched> {
    let models = read.models;
    let base = cast.base_of(models);
    let taken: Vec<usize> = cast.taken.iter().map(|taken| taken.model).collect();
    let model = |position: usize| &models.list[taken[position]];
    let mut names: IndexSet<&str> = model(leading).names().collect();
    names.extend(taken.iter().flat_map(|&taken| models.list[taken].names()));
    names.retain(|name| owns(name));
    let mut merged: Vec<&str> = Vec::new();
    for name in names {
        match reason_to_drop(name, model(leading), taken.iter().map(|&taken| &models.list[taken])) {
            Some(reason) => dropped.add(name, models, &taken, &reason),
            None => merged.push(name),
        }
    }
    let layers = Layers::of(merged.iter().copied());
    let matched = merged.iter().filter_map(|&name| {
        let wanted = Wanted {
            output: name.to_owned(),
            tensors: taken.iter().map(|&model| (model, name.to_owned())).collect(),
            leading,
            base,
        };
        wanted.matched(read, Some(number), layers.position(name), problems)
    });
    matched.collect()
}

/// What output tensors are matched from.
#[derive(Clone, Copy)]
pub(super) struct Read<'a> {
    pub models: &'a Models,
    /// The output's tokens, where the recipe settles them.
    pub vocabulary: Option<&'a Vocabulary>,
}

/// An output tensor that is to be made of these.
#[derive(Debug)]
pub(super) struct Wanted {
    pub output: String,
    /// Models and the names of their tensors.
    pub tensors: Vec<(usize, String)>,
    /// Which of them gives the output its shape and type.
    pub leading: usize,
    /// The base model, which goes before others where one lacks a token.
    pub base: Option<usize>,
}

impl Wanted {
    /// Finds the tensors; those that are missing, or differ where they may not, are problems.
    pub(super) fn matched(
        self,
        Read { models, vocabulary }: Read<'_>,
        cast: Option<usize>,
        position: f64,
        problems: &mut Problems,
    ) -> Option<Matched> {
        let among: Vec<usize> = self.tensors.iter().map(|(model, _)| *model).collect();
        let mut inputs = Vec::new();
        for &(model, ref name) in &self.tensors {
            match name_in(name, &models.list[model]) {
                Some(tensor) => inputs.push(TensorOf { model, tensor: tensor.to_owned(), made: None }),
                None => problems.push(missing(name, model, &among, models)),
            }
        }
        if inputs.len() < self.tensors.len() {
            return None;
        }
        let vocabulary = vocabulary.filter(|_| is_of_vocabulary(&self.output));
        if let Some(vocabulary) = vocabulary {
            problems.take(vocabulary.remap(&self.output, &mut inputs, self.base, models))?;
        }
        let facts: Vec<(&Model, Facts)> = inputs
            .iter()
            .filter_map(|input| {
                let model = &models.list[input.model];
                let stored = model.tensors.get(&input.tensor)?;
                let vocabulary = vocabulary.filter(|_| input.made.is_some());
                let shape = vocabulary.map_or_else(|| stored.shape.clone(), |all| all.shape(&stored.shape));
                Some((model, Facts { shape, ..stored.clone() }))
            })
            .collect();
        let first = facts.get(self.leading)?;
        let before = problems.count();
        facts.iter().for_each(|other| check_alike(&self.output, first, other, problems));
        (problems.count() == before).then(|| Matched {
            name: self.output,
            shape: first.1.shape.clone(),
            dtype: first.1.dtype,
            inputs,
            filtered_by: self.tensors.into_iter().map(|(_, name)| name).collect(),
            position,
            cast,
        })
    }
}

/// The tensor that stands for `name` in a model: itself, or the embedding that a head is tied to.
pub(crate) fn name_in<'n>(name: &'n str, model: &'n Model) -> Option<&'n str> {
    if model.has(name) {
        return Some(name);
    }
    let embedding = || model.names().find(|name| is_embedding(name));
    (is_head(name) && ties_embeddings(model)).then(embedding).flatten()
}

pub(crate) fn is_head(name: &str) -> bool {
    name == HEAD || name.ends_with(".lm_head.weight")
}

pub(crate) fn is_embedding(name: &str) -> bool {
    name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight")
}

pub(crate) fn ties_embeddings(model: &Model) -> bool {
    model.config.as_ref().and_then(Config::ties_embeddings).unwrap_or(false)
}

/// Why a tensor is in no output, if so.
fn reason_to_drop<'m>(
    name: &str,
    leading: &Model,
    mut models: impl Iterator<Item = &'m Model>,
) -> Option<String> {
    if is_head(name) && ties_embeddings(leading) && models.any(has_embedding) {
        return Some(tied_head(leading));
    }
    is_derived(name).then(|| DERIVED.to_owned())
}

pub(super) fn tied_head(leading: &Model) -> String {
    format!("the output's head is tied to its embedding, as `{}` has it", leading.name)
}

/// Why derived tensors are dropped.
pub(crate) const DERIVED: &str = "computed by the model's code, not learned";

/// Whether a tensor is computed by the model's code.
pub(crate) fn is_derived(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".attn.masked_bias"].iter().any(|end| name.ends_with(end))
}

pub(super) fn has_embedding(model: &Model) -> bool {
    model.names().any(is_embedding)
}

fn missing(name: &str, source: usize, among: &[usize], models: &Models) -> Problem {
    let model = &models.list[source];
    let owner = among.iter().map(|&model| &models.list[model]).find(|other| other.has(name));
    let owner = owner.map_or("another model", |owner| owner.name.as_str());
    let problem = Problem::general(format!("`{}` has no tensor `{name}`, which `{owner}` has", model.name));
    match nearest(name, model.names()) {
        Some(near) => {
            problem.with_hint(format!("its nearest is `{near}`; are the models of one architecture?"))
        }
        None => problem.with_hint("are the models of one architecture?"),
    }
}

/// Reports what keeps two tensors from being merged.
fn check_alike(
    name: &str,
    (first, a): &(&Model, Facts),
    (second, b): &(&Model, Facts),
    problems: &mut Problems,
) {
    let (first, second) = (&first.name, &second.name);
    if a.shape != b.shape {
        let message = format!("`{name}` is {:?} in `{first}` and {:?} in `{second}`", a.shape, b.shape);
        let is_vocabulary = is_of_vocabulary(name) && a.shape.get(1..) == b.shape.get(1..);
        let hint = if is_vocabulary {
            "the vocabularies differ in size: say with `tokenizer_source` whose tokens the output has, `base`, `union` or one of the models"
        } else {
            "only models of the same shape can be merged"
        };
        problems.push(Problem::general(message).with_hint(hint));
    }
    let both_float = is_float(a.dtype) && is_float(b.dtype);
    if !both_float && a.dtype != b.dtype {
        let message = format!("`{name}` is {} in `{first}` and {} in `{second}`", a.dtype, b.dtype);
        let hint = "types other than F32, F16 and BF16 are copied, so all models have to agree on them";
        problems.push(Problem::general(message).with_hint(hint));
    }
}
