//! Decides which rows embeddings and heads have for the output's tokens.
//!
//! In: the tensors that one output tensor is made of. Out: for each how its rows are put into the output's order. A model that
//! lacks a token has the base model's row for it; without a base model that has it, the mean of the rows of all that have it, first
//! of those that are merged, then of the merge's others; and zeros where none has it. Rows that a recipe asks for go first.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use aludel_checkpoint::is_float;

use super::super::models::{Facts, Models, Origin};
use super::super::tensors::{TensorOf, name_in};
use super::{NO_TOKEN, Vocabulary};
use crate::derive::rows::{Part, Row, Rows};
use crate::derive::{Made, Readable, Stored};
use crate::problem::Problem;

/// A tensor that rows may be taken from.
struct Donor<'a> {
    model: usize,
    tensor: String,
    facts: &'a Facts,
    ids: &'a [u32],
}

impl Donor<'_> {
    fn has(&self, id: usize) -> Option<u32> {
        let own = self.ids[id];
        (own != NO_TOKEN && (own as usize) < self.facts.shape[0]).then_some(own)
    }
}

impl Vocabulary {
    /// Puts the rows of every input of an output tensor into the order of the output's tokens, where they are not in it.
    ///
    /// # Errors
    /// Rows that cannot be taken from where they are.
    pub(in super::super) fn remap(
        &self,
        output: &str,
        inputs: &mut [TensorOf],
        base: Option<usize>,
        models: &Models,
    ) -> Result<(), Problem> {
        let mut donors: Vec<Donor<'_>> = Vec::new();
        for input in &*inputs {
            if !donors.iter().any(|donor| (donor.model, &donor.tensor) == (input.model, &input.tensor)) {
                donors.extend(self.donor(input.model, &input.tensor, models));
            }
        }
        let Some(first) = donors.first() else { return Ok(()) };
        let columns = first.facts.shape[1..].to_vec();
        // What else differs between the tensors is told where they are compared.
        if donors.iter().any(|donor| donor.facts.shape[1..] != columns || !is_float(donor.facts.dtype)) {
            return Ok(());
        }
        let merged = donors.len();
        self.add_others(output, &mut donors, models)?;
        let defaults = self.defaults(&donors, merged, base);
        let parts: Vec<Option<Part>> = donors.iter().map(|donor| part(donor, models)).collect();
        for input in inputs {
            let same = |donor: &Donor<'_>| (donor.model, &donor.tensor) == (input.model, &input.tensor);
            let Some(number) = donors.iter().position(same) else { continue };
            let rows = self.rows_of(&donors[number], number, &defaults.rows);
            if self.is_in_order(&rows, number, donors[number].facts) {
                continue;
            }
            let is_used = |part: usize| part == number || uses(part, &rows, &defaults.averages);
            if let Some(stage) = (0..parts.len()).find(|&part| parts[part].is_none() && is_used(part)) {
                return Err(self.of_a_stage(&models.list[donors[stage].model].name));
            }
            // A stage that nothing is taken from leaves its place to a part that is not read either.
            let filled = parts.iter().map(|part| part.clone().or_else(|| parts[number].clone()));
            let Some(filled) = filled.collect::<Option<Vec<Part>>>() else { continue };
            input.made = Some(Made::by(Rows {
                parts: filled.into(),
                own: number as u16,
                columns: columns.iter().map(|&side| side as u64).product::<u64>().max(1),
                rows,
                padded: self.padded as u64,
                averages: Arc::clone(&defaults.averages),
                mean: OnceLock::new(),
            }));
        }
        Ok(())
    }

    /// The shape of a tensor whose rows are the output's.
    pub(in super::super) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        std::iter::once(self.padded).chain(shape.iter().skip(1).copied()).collect()
    }

    fn donor<'a>(&'a self, model: usize, tensor: &str, models: &'a Models) -> Option<Donor<'a>> {
        let facts = models.list[model].tensors.get(tensor).filter(|facts| !facts.shape.is_empty())?;
        Some(Donor { model, tensor: tensor.to_owned(), facts, ids: self.ids.get(&model)? })
    }

    /// Adds the tensors of models that are not merged here, and from which rows come: those that the recipe asks for, and, where no
    /// model of a slice has a token, all that do.
    fn add_others<'a>(
        &'a self,
        output: &str,
        donors: &mut Vec<Donor<'a>>,
        models: &'a Models,
    ) -> Result<(), Problem> {
        let columns = donors[0].facts.shape[1..].to_vec();
        let merged: Vec<usize> = donors.iter().map(|donor| donor.model).collect();
        let nobody_has = |id: usize| donors.iter().all(|donor| donor.has(id).is_none());
        let is_lacking = (0..self.rows).any(|id| !self.asked.contains_key(&(id as u32)) && nobody_has(id));
        for &model in self.ids.keys().filter(|model| !merged.contains(model)) {
            let is_asked = self.asked.values().any(|asked| asked.row.is_some_and(|(of, _)| of == model));
            let tensor = name_in(output, &models.list[model]);
            let donor = tensor.and_then(|tensor| self.donor(model, tensor, models));
            let fits = |donor: &Donor<'_>| donor.facts.shape[1..] == columns && is_float(donor.facts.dtype);
            match donor.filter(fits) {
                Some(donor) if is_asked || is_lacking => donors.push(donor),
                None if is_asked => {
                    let name = &models.list[model].name;
                    let message =
                        format!("`{name}` has no `{output}` whose rows fit, of which `tokens` takes some");
                    return Err(Problem::at(self.place.clone(), message)
                        .with_hint("take them from a model with an embedding of the same width"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The rows for those that have none of their own, or have to take another. The first `merged` donors are merged.
    fn defaults(&self, donors: &[Donor<'_>], merged: usize, base: Option<usize>) -> Defaults {
        let base = donors[..merged].iter().position(|donor| Some(donor.model) == base);
        let mut averages = Vec::new();
        let of = |part: usize, row: u32| Row::Of { part: part as u16, row };
        let default = |id: usize| {
            if let Some(asked) = self.asked.get(&(id as u32)) {
                let row = asked.row.and_then(|(model, row)| {
                    Some(of(donors.iter().position(|donor| donor.model == model)?, row))
                });
                return row.unwrap_or(Row::Zero);
            }
            let rows = |parts: Range<usize>| -> Vec<(u16, u32)> {
                parts.filter_map(|part| Some((part as u16, donors[part].has(id)?))).collect()
            };
            let having = rows(0..merged);
            let from_base = base.and_then(|part| Some(of(part, donors[part].has(id)?)));
            if having.len() == merged {
                return Row::Zero; // Nobody takes it.
            }
            if let Some(row) = from_base {
                return row;
            }
            let having = if having.is_empty() { rows(merged..donors.len()) } else { having };
            match having.as_slice() {
                [] => Row::Zero,
                &[(part, row)] => Row::Of { part, row },
                _ => {
                    averages.push(having);
                    Row::Average(averages.len() as u32 - 1)
                }
            }
        };
        let rows = (0..self.rows).map(default).collect();
        Defaults { rows, averages: averages.into() }
    }

    fn rows_of(&self, donor: &Donor<'_>, part: usize, defaults: &[Row]) -> Vec<Row> {
        let row = |(id, &default): (usize, &Row)| match (donor.has(id), self.asked.get(&(id as u32))) {
            (Some(row), None | Some(super::Asked { force: false, .. })) => Row::Of { part: part as u16, row },
            _ => default,
        };
        defaults.iter().enumerate().map(row).collect()
    }

    /// Whether a tensor is what it would be made into.
    fn is_in_order(&self, rows: &[Row], part: usize, facts: &Facts) -> bool {
        let own = |id: usize| Row::Of { part: part as u16, row: id as u32 };
        facts.shape[0] == rows.len()
            && self.padded == rows.len()
            && rows.iter().enumerate().all(|(id, row)| *row == own(id))
    }

    fn of_a_stage(&self, name: &str) -> Problem {
        let message =
            format!("rows of `{name}` would have to move to other places, but it is made in the same pass");
        Problem::at(self.place.clone(), message).with_hint(
            "write it to a folder of its own with --intermediate-dir, or give its recipe and all models here the same tokens",
        )
    }
}

struct Defaults {
    rows: Vec<Row>,
    averages: Arc<[Vec<(u16, u32)>]>,
}

fn uses(part: usize, rows: &[Row], averages: &[Vec<(u16, u32)>]) -> bool {
    rows.iter().any(|row| match *row {
        Row::Of { part: of, .. } => usize::from(of) == part,
        Row::Average(average) => averages[average as usize].iter().any(|&(of, _)| usize::from(of) == part),
        Row::Zero => false,
    })
}

/// Where a donor's tensor is; `None` where a stage makes it.
fn part(donor: &Donor<'_>, models: &Models) -> Option<Part> {
    match models.list[donor.model].origin {
        Origin::Source(source) => Some(Part {
            tensor: Readable {
                stored: Stored { source, tensor: donor.tensor.clone() },
                made: donor.facts.made.clone(),
            },
            elements: donor.facts.shape.iter().map(|&side| side as u64).product(),
        }),
        Origin::Stage(_) => None,
    }
}

/// Whether a tensor has a row for each token, by its name: embeddings, heads, and heads' biases.
pub(crate) fn is_of_vocabulary(name: &str) -> bool {
    table_kind(name).is_some()
}

/// A tensor that has a row for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum TableKind {
    Embedding,
    Head,
    /// The bias of a head.
    Bias,
}

/// What a tensor has a row for each token as, by its name; `None` where it has none.
pub(in crate::plan) fn table_kind(name: &str) -> Option<TableKind> {
    let parts: Vec<&str> = name.split('.').collect();
    let [.., of, kind] = parts.as_slice() else { return None };
    let of_other_input = ["vision", "visual", "audio", "image"];
    if parts.iter().any(|part| of_other_input.iter().any(|other| part.contains(other))) {
        return None;
    }
    let is_head = HEADS.contains(of);
    match *kind {
        "weight" if EMBEDDINGS.contains(of) => Some(TableKind::Embedding),
        "weight" if is_head || name.ends_with("predictions.decoder.weight") => Some(TableKind::Head),
        "bias"
            if is_head
                || name.ends_with("predictions.decoder.bias")
                || name.ends_with("cls.predictions.bias") =>
        {
            Some(TableKind::Bias)
        }
        _ => None,
    }
}

const EMBEDDINGS: [&str; 7] =
    ["embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "embeddings"];

const HEADS: [&str; 6] =
    ["lm_head", "embed_out", "proj_out", "vocab_projector", "generator_lm_head", "unembed"];

#[cfg(test)]
mod tests {
    use super::is_of_vocabulary;

    #[test]
    fn tensors_with_a_row_for_each_token_are_told_by_their_names() {
        for name in [
            "model.embed_tokens.weight",
            "lm_head.weight",
            "lm_head.bias",
            "transformer.wte.weight",
            "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
            "shared.weight",
            "encoder.embed_tokens.weight",
            "gpt_neox.embed_in.weight",
            "embed_out.weight",
            "proj_out.weight",
            "language_model.lm_head.weight",
        ] {
            assert!(is_of_vocabulary(name), "{name}");
        }
        for name in [
            "model.norm.weight",
            "transformer.wpe.weight",
            "bert.embeddings.position_embeddings.weight",
            "bert.embeddings.token_type_embeddings.weight",
            "model.embed_positions.weight",
            "vision_model.embed_tokens.weight",
            "cls.predictions.transform.dense.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "lm_head",
        ] {
            assert!(!is_of_vocabulary(name), "{name}");
        }
    }
}
