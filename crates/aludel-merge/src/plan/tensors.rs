//! Matches the tensors of all models: what is merged, what is copied, what is dropped and why.
//!
//! In: the cast of a merge. Out: one [`Matched`] for each output tensor, in the primary model's order. Every input tensor
//! ends up in an output tensor or among the dropped; nothing disappears silently.

use std::collections::HashSet;

use aludel_checkpoint::{Dtype, TensorEntry, is_float};
use indexmap::IndexSet;

use super::sources::{Cast, Source};
use super::{Dropped, StepInput};
use crate::problem::{Problem, Problems};
use crate::recipe::nearest;

const HEAD: &str = "lm_head.weight";

/// An output tensor and where it comes from.
#[derive(Debug)]
pub(super) struct Matched {
    pub name: String,
    pub shape: Vec<usize>,
    /// The primary model's type.
    pub dtype: Dtype,
    /// One for each source, in the sources' order.
    pub inputs: Vec<StepInput>,
}

/// All output tensors, and the input tensors that are not among them.
pub(super) fn matched(cast: &Cast, primary: usize, problems: &mut Problems) -> (Vec<Matched>, Vec<Dropped>) {
    let sources = cast.models();
    let mut names: IndexSet<&str> =
        sources[primary].checkpoint.tensors().keys().map(String::as_str).collect();
    names.extend(sources.iter().flat_map(|source| source.checkpoint.tensors().keys().map(String::as_str)));
    let (mut tensors, mut dropped) = (Vec::new(), Vec::new());
    for name in names {
        if let Some(reason) = reason_to_drop(name, &sources[primary], sources) {
            let owners = (0..sources.len()).filter(|&source| entry(sources, source, name).is_some());
            dropped.extend(owners.map(|source| Dropped {
                source,
                tensor: name.to_owned(),
                reason: reason.clone(),
            }));
            continue;
        }
        if let Some(matched) = match_one(name, sources, primary, problems) {
            tensors.push(matched);
        }
    }
    dropped.extend(unused_statistics(cast, &tensors));
    (tensors, dropped)
}

/// Statistics of tensors that are not merged.
fn unused_statistics(cast: &Cast, tensors: &[Matched]) -> Vec<Dropped> {
    let merged: HashSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let of_source = |&source: &usize| {
        let names = cast.sources[source].checkpoint.tensors().keys();
        let unused = names.filter(|name| !merged.contains(name.as_str()));
        let reason = "statistics of no tensor of the output";
        unused.map(move |tensor| Dropped { source, tensor: tensor.clone(), reason: reason.to_owned() })
    };
    cast.statistics.iter().flat_map(of_source).collect()
}

fn match_one(name: &str, sources: &[Source], primary: usize, problems: &mut Problems) -> Option<Matched> {
    let mut inputs = Vec::new();
    for (source, model) in sources.iter().enumerate() {
        match name_in(name, model) {
            Some(tensor) => inputs.push(StepInput { source, tensor: tensor.to_owned() }),
            None => problems.push(missing(name, source, sources)),
        }
    }
    if inputs.len() < sources.len() {
        return None;
    }
    let entries: Vec<&TensorEntry> =
        inputs.iter().filter_map(|i| entry(sources, i.source, &i.tensor)).collect();
    let model = *entries.get(primary)?;
    let before = problems.count();
    for (input, other) in inputs.iter().zip(&entries) {
        check_alike(name, &sources[primary], model, &sources[input.source], other, problems);
    }
    let (shape, dtype) = (model.shape.clone(), model.dtype);
    (problems.count() == before).then(|| Matched { name: name.to_owned(), shape, dtype, inputs })
}

fn entry<'s>(sources: &'s [Source], source: usize, name: &str) -> Option<&'s TensorEntry> {
    sources[source].checkpoint.tensor(name)
}

/// The tensor that stands for `name` in a model: itself, or the embedding that a head is tied to.
fn name_in<'n>(name: &'n str, source: &'n Source) -> Option<&'n str> {
    let tensors = source.checkpoint.tensors();
    if tensors.contains_key(name) {
        return Some(name);
    }
    let embedding = || tensors.keys().map(String::as_str).find(|name| is_embedding(name));
    (is_head(name) && ties_embeddings(source)).then(embedding).flatten()
}

fn is_head(name: &str) -> bool {
    name == HEAD || name.ends_with(".lm_head.weight")
}

fn is_embedding(name: &str) -> bool {
    name.ends_with("embed_tokens.weight") || name.ends_with("wte.weight")
}

fn ties_embeddings(source: &Source) -> bool {
    source.checkpoint.config().and_then(aludel_checkpoint::Config::ties_embeddings).unwrap_or(false)
}

/// Why a tensor is in no output, if so.
fn reason_to_drop(name: &str, primary: &Source, sources: &[Source]) -> Option<String> {
    if is_head(name) && ties_embeddings(primary) && sources.iter().any(has_embedding) {
        return Some(format!("the output's head is tied to its embedding, as `{}` has it", primary.model));
    }
    let is_derived = [".rotary_emb.inv_freq", ".attn.masked_bias"].iter().any(|end| name.ends_with(end));
    is_derived.then(|| "computed by the model's code, not learned".to_owned())
}

fn has_embedding(source: &Source) -> bool {
    source.checkpoint.tensors().keys().any(|name| is_embedding(name))
}

fn missing(name: &str, source: usize, sources: &[Source]) -> Problem {
    let model = &sources[source].model;
    let owner = sources.iter().find(|other| other.checkpoint.tensor(name).is_some());
    let owner = owner.map_or("another model", |owner| owner.model.as_str());
    let problem = Problem::general(format!("`{model}` has no tensor `{name}`, which `{owner}` has"));
    let names = sources[source].checkpoint.tensors().keys().map(String::as_str);
    match nearest(name, names) {
        Some(near) => {
            problem.with_hint(format!("its nearest is `{near}`; are the models of one architecture?"))
        }
        None => problem.with_hint("are the models of one architecture?"),
    }
}

/// Reports what keeps two tensors from being merged.
fn check_alike(
    name: &str,
    primary: &Source,
    a: &TensorEntry,
    other: &Source,
    b: &TensorEntry,
    problems: &mut Problems,
) {
    let (first, second) = (&primary.model, &other.model);
    if a.shape != b.shape {
        let message = format!("`{name}` is {:?} in `{first}` and {:?} in `{second}`", a.shape, b.shape);
        let is_vocabulary = (is_head(name) || is_embedding(name)) && a.shape.get(1..) == b.shape.get(1..);
        let hint = if is_vocabulary {
            "the vocabularies differ in size: resize the embeddings of one model to the other's first"
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
