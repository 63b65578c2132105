//! Finds the experts of models, and has each model's put in the order of the leading model's before they are merged.
//!
//! In: the tensors of a stage as they were matched. Out: the same, where inputs that are experts, or belong to them one by one, are made
//! by an [`Alignment`]. The names and shapes of tensors settle which these are; the order is found when weights are read.
//!
//! Experts are tensors whose names have `.experts.` with a number after it, one for each expert and part, or without a number, with all
//! experts stacked along the first side. What belongs to them stands beside `experts`: the router's rows, and biases of one value for
//! each expert.

use std::collections::BTreeMap;
use std::sync::Arc;

use aludel_checkpoint::{Config, is_float};
use aludel_document::Located;
use indexmap::IndexMap;

use super::StepInput;
use super::cast::Cast;
use super::models::{Models, Origin};
use super::tensors::{Matched, TensorOf};
use crate::derive::{Alignment, Experts, MOST_EXPERTS, Made, Moving, Readable, Reordered, Stored};
use crate::methods::Method;
use crate::problem::{Problem, Problems};

/// The experts of a layer, and what belongs to them one by one.
#[derive(Debug, Default)]
struct Block {
    /// By what stands after the number: the tensor of each expert.
    apart: IndexMap<String, BTreeMap<usize, String>>,
    /// Tensors of all experts.
    together: Vec<String>,
}

/// Has experts put in order.
pub(super) fn align(
    asked: &Located<bool>,
    (method, casts): (&dyn Method, &[Cast<'_>]),
    models: &Models,
    config: Option<&Config>,
    tensors: &mut IndexMap<String, Matched>,
    problems: &mut Problems,
) {
    let refused = |message: String| Problem::at(asked.place.clone(), message);
    let blocks = blocks(tensors);
    if blocks.is_empty() {
        let message =
            "`align_experts` has nothing to align: no tensors of experts are merged of two or more models";
        problems.push(refused(message.to_owned()).with_hint("leave it out"));
        return;
    }
    if method.statistics().is_some() {
        let message =
            format!("`{}` reads statistics, which `align_experts` does not put in order", method.name());
        problems.push(refused(message).with_hint("merge the experts by another method"));
        return;
    }
    let layers = Layers { casts, models, groups: groups(config) };
    for (name, block) in blocks {
        let before = problems.count();
        let parts = layers.parts(&name, &block, tensors);
        let aligned = parts.and_then(|parts| layers.align(&name, &parts, tensors));
        if let Err(problem) = aligned {
            problems.push(Problem { place: Some(asked.place.clone()), ..problem });
        }
        if problems.count() > before {
            return; // The next layer has the same problem.
        }
    }
}

/// All experts that are merged of several tensors, by what the names of their layers' tensors begin with.
fn blocks(tensors: &IndexMap<String, Matched>) -> IndexMap<String, Block> {
    let mut blocks: IndexMap<String, Block> = IndexMap::new();
    let merged = || tensors.values().filter(|matched| matched.cast.is_some() && matched.inputs.len() > 1);
    for matched in merged() {
        let Some((block, expert, part)) = expert_name(&matched.name, matched.shape.len()) else { continue };
        if !blocks.contains_key(block) {
            blocks.insert(block.to_owned(), Block::default());
        }
        let block = &mut blocks[block];
        match expert {
            Some(expert) => {
                block.apart.entry(part.to_owned()).or_default().insert(expert, matched.name.clone());
            }
            None => block.together.push(matched.name.clone()),
        }
    }
    for matched in merged() {
        for (dot, _) in matched.name.match_indices('.') {
            let (block, rest) = (&matched.name[..dot], &matched.name[dot + 1..]);
            let first = rest.split('.').next().unwrap_or(rest);
            if let Some(block) = blocks.get_mut(block).filter(|_| BESIDE.contains(&first)) {
                block.together.push(matched.name.clone());
            }
        }
    }
    blocks
}

/// What stands beside experts and may belong to them one by one: routers and their biases, as families name them.
const BESIDE: &[&str] = &["gate", "router", "moe_statics", "e_score_correction_bias", "expert_bias"];

/// Stacked experts that are not called so: Granite's.
const STACKED: &[&str] = &[".input_linear.weight", ".output_linear.weight"];

/// The layer of a tensor of experts, the expert where it is one alone, and what stands after that.
fn expert_name(name: &str, sides: usize) -> Option<(&str, Option<usize>, &str)> {
    if let Some((block, rest)) = name.split_once(".experts.") {
        let (first, part) = rest.split_once('.').unwrap_or((rest, ""));
        let number = first.strip_prefix("expert_").unwrap_or(first);
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let expert = if is_number { Some(number.parse().ok()?) } else { None };
        return Some((block, expert, part));
    }
    let end = STACKED.iter().find(|end| sides == 3 && name.ends_with(**end))?;
    Some((&name[..name.len() - end.len()], None, ""))
}

/// Groups of experts of which routers choose some before they choose experts; 1 where they do not.
fn groups(config: Option<&Config>) -> usize {
    let of_text = |config: &Config| config.value("text_config")?.get("n_group")?.as_u64();
    let groups = config.and_then(|config| {
        config.value("n_group").and_then(|value| value.as_u64()).or_else(|| of_text(config))
    });
    groups.map_or(1, |groups| usize::try_from(groups).unwrap_or(1).max(1))
}

/// A part of each expert of a layer, by names of the output.
struct Part {
    /// A tensor for each expert, or one of all.
    names: Vec<String>,
    /// Elements of one expert.
    length: u64,
}

/// What is known of all layers.
struct Layers<'a> {
    casts: &'a [Cast<'a>],
    models: &'a Models,
    groups: usize,
}

impl Layers<'_> {
    /// The parts of the experts of a layer, and how many experts there are.
    fn parts(
        &self,
        name: &str,
        block: &Block,
        tensors: &IndexMap<String, Matched>,
    ) -> Result<(usize, Vec<Part>), Problem> {
        let first_side = |name: &String| tensors[name].shape.first().copied().unwrap_or(0);
        let stacked = block.together.first().map_or(0, first_side);
        let count = block.apart.values().map(BTreeMap::len).max().unwrap_or(stacked);
        let mut parts = Vec::new();
        for (part, of_experts) in &block.apart {
            if !of_experts.keys().copied().eq(0..count) {
                let message = format!(
                    "the experts of `{name}` cannot be aligned: `{part}` is of {} of them, and their numbers are not all those from 0 on",
                    of_experts.len()
                );
                return Err(Problem::general(message));
            }
            let names: Vec<String> = of_experts.values().cloned().collect();
            parts.push(Part { length: elements(&tensors[&names[0]]), names });
        }
        let mut has_router = false;
        for together in &block.together {
            let (shape, elements) = (&tensors[together].shape, elements(&tensors[together]));
            let has_one_each = shape.first() == Some(&count) || elements == count as u64;
            if has_one_each {
                let is_beside = expert_name(together, shape.len()).is_none();
                has_router |= is_beside && shape.len() > 1 && elements > count as u64;
                parts.push(Part { length: elements / (count as u64).max(1), names: vec![together.clone()] });
            } else if expert_name(together, shape.len()).is_some() {
                let message = format!(
                    "the experts of `{name}` cannot be aligned: `{together}` is {shape:?}, and others have {count} experts"
                );
                return Err(Problem::general(message));
            }
        }
        if !has_router {
            let message = format!(
                "the experts of `{name}` cannot be aligned: it has no router with a row for each of the {count} experts"
            );
            let hint = "the router is looked for beside the experts, as `gate` or `router`";
            return Err(Problem::general(message).with_hint(hint));
        }
        if count > MOST_EXPERTS {
            let message = format!("`{name}` has {count} experts, and at most {MOST_EXPERTS} can be aligned");
            return Err(Problem::general(message));
        }
        Ok((count, parts))
    }

    /// Has the experts of a layer put in order, those of each model but the leading one.
    fn align(
        &self,
        name: &str,
        (count, parts): &(usize, Vec<Part>),
        tensors: &mut IndexMap<String, Matched>,
    ) -> Result<(), Problem> {
        let Some(first) = parts.first().map(|part| &tensors[&part.names[0]]) else { return Ok(()) };
        let (cast, inputs) = (first.cast, first.inputs.len());
        let Some(leading) = cast.map(|cast| self.casts[cast].leading(self.models)) else { return Ok(()) };
        for input in (0..inputs).filter(|&input| input != leading) {
            let mut moving = Vec::new();
            for part in parts {
                moving.push(Moving {
                    reference: self.experts(part, leading, tensors)?,
                    model: self.experts(part, input, tensors)?,
                    length: part.length,
                });
            }
            let model =
                |input: usize| self.models.list[first_input(parts, tensors, input).model].name.clone();
            let alignment = Arc::new(Alignment {
                experts: name.to_owned(),
                model: model(input),
                reference: model(leading),
                count: *count,
                groups: if count.is_multiple_of(self.groups) { self.groups } else { 1 },
                bytes: self.bytes(&moving),
                moving,
                order: Default::default(),
            });
            for (moving, part) in parts.iter().enumerate() {
                for (place, name) in part.names.iter().enumerate() {
                    let place = (part.names.len() > 1).then_some(place);
                    let made = Made::by(Reordered { alignment: Arc::clone(&alignment), moving, place });
                    tensors[name].inputs[input].made = Some(made);
                }
            }
        }
        Ok(())
    }

    /// A part of the experts of the model that is this input.
    fn experts(
        &self,
        part: &Part,
        input: usize,
        tensors: &IndexMap<String, Matched>,
    ) -> Result<Experts, Problem> {
        let mut readable = Vec::new();
        for name in &part.names {
            let matched = &tensors[name];
            let TensorOf { model, tensor, .. } = &matched.inputs[input];
            let model = &self.models.list[*model];
            let Origin::Source(source) = model.origin else {
                let message = format!(
                    "the experts of `{name}` of `{}` cannot be aligned: it is made by this recipe",
                    model.name
                );
                let hint = "write what it is made of to a folder of its own with --intermediate-dir";
                return Err(Problem::general(message).with_hint(hint));
            };
            if !is_float(matched.dtype) {
                let message = format!(
                    "the experts of `{name}` cannot be aligned: it is {}, and not F32, F16 or BF16",
                    matched.dtype
                );
                return Err(Problem::general(message));
            }
            let made = model.tensors.get(tensor).and_then(|facts| facts.made.clone());
            readable.push(Readable { stored: Stored { source, tensor: tensor.clone() }, made });
        }
        Ok(match <[Readable; 1]>::try_from(readable) {
            Ok([all]) => Experts::Together(all),
            Err(each) => Experts::Apart(each),
        })
    }

    /// Bytes that are read of both models.
    fn bytes(&self, moving: &[Moving]) -> u64 {
        let both = moving.iter().flat_map(|moving| [&moving.reference, &moving.model]);
        let input = |readable: &Readable| {
            let Readable { stored: Stored { source, tensor }, made } = readable.clone();
            StepInput { source, tensor, made }
        };
        let bytes = |readable: &Readable| -> u64 {
            let stored = input(readable).stored(1, &self.models.sources);
            stored.iter().map(|part| part.bytes).sum()
        };
        both.flat_map(Experts::tensors).map(bytes).sum()
    }
}

fn first_input<'t>(parts: &[Part], tensors: &'t IndexMap<String, Matched>, input: usize) -> &'t TensorOf {
    &tensors[&parts[0].names[0]].inputs[input]
}

fn elements(matched: &Matched) -> u64 {
    matched.shape.iter().map(|&side| side as u64).product()
}
