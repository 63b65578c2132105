//! Settles by headers alone what becomes of every tensor of a fine-tuned model.

use aludel_checkpoint::{Config, Dtype, is_float};
use indexmap::IndexSet;
use regex::Regex;

use super::super::names::{has_inputs_first, is_lookup, last_word, missing_prefix, module_of};
use super::Settings;
use crate::derive::{Readable, Stored};
use crate::plan::{
    DERIVED, Facts, Model, Opened, is_derived, is_embedding, is_head, is_of_vocabulary, name_in,
    ties_embeddings,
};
use crate::problem::{Problem, Problems};
use crate::recipe::nearest;

/// A tensor of both models.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// Its name in the fine-tuned model with its head.
    pub name: String,
    pub finetuned: Readable,
    /// `None` where the base has another number of rows.
    pub base: Option<Readable>,
    pub shape: Vec<usize>,
    /// The fine-tuned model's type.
    pub dtype: Dtype,
    pub treatment: Treatment,
}

impl Pair {
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&side| side as u64).product()
    }

    pub(super) fn module(&self) -> &str {
        module_of(&self.name).0
    }
}

/// What becomes of a tensor whose values differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It gets factors.
    Factor(Kind),
    /// Its module is saved whole.
    Save,
    /// It is the bias of a module with factors, and is saved whole.
    Bias,
    /// It is left out, for this reason.
    LeaveOut(&'static str),
}

/// What a module with factors is, which settles how they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A linear layer: a row for each output.
    Linear,
    /// A linear layer with a row for each input.
    InputsFirst,
    /// An embedding: a row for each input.
    Embedding,
}

/// Why tensors without factors are left out.
const SKIPPED: &str = "--skip-undecomposable";

/// All tensors of both models.
#[derive(Debug)]
pub(super) struct Treated {
    pub pairs: Vec<Pair>,
    /// Tensors that are not compared, and why.
    pub uncompared: Vec<(String, String)>,
    /// Rows of an embedding where the base has another number.
    pub resized: Option<(usize, usize)>,
    /// Whether one matrix is embedding and head in both models.
    pub is_tied: bool,
}

/// Treats every tensor; what keeps the models apart is told all at once.
pub(super) fn treat(opened: &Opened, settings: &Settings<'_>) -> Result<Treated, Problems> {
    let (finetuned, base) = (opened.model(0), opened.model(1));
    let mut problems = Problems::new();
    let choice = Choice {
        include: patterns(settings.include, "--include-regex", &mut problems),
        exclude: patterns(settings.exclude, "--exclude-regex", &mut problems),
        settings,
        config: finetuned.config.as_ref(),
    };
    let is_tied = ties_embeddings(finetuned) && ties_embeddings(base);
    let prefix = missing_prefix(&finetuned.names().collect::<Vec<_>>(), finetuned.config.as_ref());
    let (pairs, uncompared) = Default::default();
    let mut treated = Treated { pairs, uncompared, resized: None, is_tied };
    let names: IndexSet<&str> = finetuned.names().chain(base.names()).collect();
    let mut unmatched = Unmatched::default();
    for name in names {
        if is_derived(name) || is_tied && is_head(name) {
            let reason = if is_derived(name) { DERIVED } else { "tied to the embedding" };
            treated.uncompared.push((name.to_owned(), reason.to_owned()));
            continue;
        }
        let (Some(own), Some(other)) = (found(name, finetuned), found(name, base)) else {
            unmatched.add(name, finetuned, base);
            continue;
        };
        let full = format!("{prefix}{name}");
        if let Some(pair) = choice.pair(full, own, other, &mut treated, &mut problems) {
            treated.pairs.push(pair);
        }
    }
    unmatched.tell(finetuned, base, &mut problems);
    settle_biases(&mut treated.pairs);
    if problems.is_empty() { Ok(treated) } else { Err(problems) }
}

/// A bias whose module's weight gets factors is saved beside them.
fn settle_biases(pairs: &mut [Pair]) {
    let factored: IndexSet<String> = pairs
        .iter()
        .filter(|pair| matches!(pair.treatment, Treatment::Factor(_)))
        .map(|pair| pair.module().to_owned())
        .collect();
    for pair in pairs {
        let has_no_factors = [Treatment::Save, Treatment::LeaveOut(SKIPPED)].contains(&pair.treatment);
        if has_no_factors && pair.name.ends_with(".bias") && factored.contains(pair.module()) {
            pair.treatment = Treatment::Bias;
        }
    }
}

/// The tensor that stands for a name in a model.
struct Found<'m> {
    model: &'m Model,
    facts: &'m Facts,
    readable: Readable,
}

fn found<'m>(name: &str, model: &'m Model) -> Option<Found<'m>> {
    let name = name_in(name, model)?;
    let facts = model.tensors.get(name)?;
    let stored = Stored { source: model.source()?, tensor: name.to_owned() };
    Some(Found { model, facts, readable: Readable { stored, made: facts.made.clone() } })
}

/// What the user chose.
struct Choice<'a> {
    include: Vec<Regex>,
    exclude: Vec<Regex>,
    settings: &'a Settings<'a>,
    config: Option<&'a Config>,
}

impl Choice<'_> {
    fn pair(
        &self,
        name: String,
        own: Found<'_>,
        other: Found<'_>,
        treated: &mut Treated,
        problems: &mut Problems,
    ) -> Option<Pair> {
        let (shape, dtype) = (own.facts.shape.clone(), own.facts.dtype);
        if !is_float(dtype) || !is_float(other.facts.dtype) {
            treated.uncompared.push((name, format!("{dtype} is not computed on")));
            return None;
        }
        let mut treatment = self.treatment(&name, &shape);
        let mut base = Some(other.readable.clone());
        if shape != other.facts.shape {
            let is_resized = is_of_vocabulary(&name) && shape.get(1..) == other.facts.shape.get(1..);
            if !is_resized {
                problems.push(shapes(&name, &own, &other));
                return None;
            }
            base = None;
            if matches!(treatment, Treatment::Factor(_)) {
                treatment = Treatment::Save;
            }
            if is_embedding(&name) {
                treated.resized = Some((other.facts.shape[0], shape[0]));
            }
        }
        Some(Pair { name, finetuned: own.readable, base, shape, dtype, treatment })
    }

    /// In the order of mergekit: what is to be saved goes before what is excluded.
    fn treatment(&self, name: &str, shape: &[usize]) -> Treatment {
        let (module, part) = module_of(name);
        let matches = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(module));
        let is_excluded = matches(&self.exclude);
        if self.settings.save.iter().any(|saved| saved == module || saved == last_word(module)) {
            return Treatment::Save;
        }
        let is_outer = is_lookup(module) || is_head(name) || last_word(module) == "lm_head";
        if is_outer && !self.settings.embed_lora && !is_excluded {
            return Treatment::Save;
        }
        if is_excluded {
            return Treatment::LeaveOut("--exclude-regex");
        }
        if !self.include.is_empty() && !matches(&self.include) {
            return Treatment::LeaveOut("not in --include-regex");
        }
        match shape.len() {
            2 if part == "weight" && is_lookup(module) => Treatment::Factor(Kind::Embedding),
            2 if part == "weight" && has_inputs_first(module, self.config) => {
                Treatment::Factor(Kind::InputsFirst)
            }
            2 if part == "weight" => Treatment::Factor(Kind::Linear),
            _ if self.settings.skip_undecomposable => Treatment::LeaveOut(SKIPPED),
            _ => Treatment::Save,
        }
    }
}

fn patterns(texts: &[String], flag: &str, problems: &mut Problems) -> Vec<Regex> {
    let compiled = texts.iter().map(|text| {
        Regex::new(text).map_err(|error| {
            let problem = Problem::general(format!("{flag}: `{text}` cannot be read: {error}"));
            problem.with_hint("look-around and back-references of Python's expressions are not known")
        })
    });
    compiled.filter_map(|pattern| problems.take(pattern)).collect()
}

fn shapes(name: &str, own: &Found<'_>, other: &Found<'_>) -> Problem {
    let message = format!(
        "`{name}` is {:?} in `{}` and {:?} in `{}`",
        own.facts.shape, own.model.name, other.facts.shape, other.model.name
    );
    Problem::general(message).with_hint("an adapter joins two models of the same shape")
}

/// Tensors that only one of the models has.
#[derive(Default)]
struct Unmatched {
    names: Vec<(String, bool)>,
}

impl Unmatched {
    fn add(&mut self, name: &str, finetuned: &Model, base: &Model) {
        let is_own = found(name, finetuned).is_some();
        debug_assert!(is_own || found(name, base).is_some());
        self.names.push((name.to_owned(), is_own));
    }

    /// One problem for each model that lacks some.
    fn tell(&self, finetuned: &Model, base: &Model, problems: &mut Problems) {
        for (is_own, has, lacks) in [(true, finetuned, base), (false, base, finetuned)] {
            let mut names = self.names.iter().filter(|(_, own)| *own == is_own).map(|(name, _)| name);
            let Some(first) = names.next() else { continue };
            let others = match names.count() {
                0 => String::new(),
                count => format!(" and {count} more"),
            };
            let message =
                format!("`{}` has no tensor `{first}`{others}, which `{}` has", lacks.name, has.name);
            let hint = match nearest(first, lacks.names()) {
                Some(near) => {
                    format!("its nearest is `{near}`; an adapter joins two models of one architecture")
                }
                None => "an adapter joins two models of one architecture".to_owned(),
            };
            problems.push(Problem::general(message).with_hint(hint));
        }
    }
}
