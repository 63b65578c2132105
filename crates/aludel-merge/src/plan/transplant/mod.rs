//! Plans a model with the tokenizer of another: its tables of tokens get the rows of that tokenizer's tokens, all else is copied.
//!
//! In: a [`Transplant`]. Out: a [`Plan`] as merges have it, whose tables are made while they are written ([`crate::derive`]). A row whose token the model knows is the
//! model's own, to the bit. The tokenizer's files and the ids of tokens with a role are the donor's.
//!
//! Reading order: `settings`, `texts` (what tokens stand for), `assignment` (which are the same), `pieces`, then here.

mod assignment;
mod pieces;
mod settings;
mod texts;

pub use settings::{Approximation, Likeness, PieceWeights, Transplant};

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use aludel_checkpoint::{Config, is_float};
use aludel_kernels::formula::Graph;
use aludel_kernels::pursuit::Combination;

use super::build::Draft;
use super::measure::{nowhere, open};
use super::models::{Facts, Model, Models};
use super::tensors::{DERIVED, has_embedding, is_derived, is_head, tied_head, ties_embeddings};
use super::vocabulary::{Member, TableKind, Target, no_tokenizer, table_kind, with_vocabulary};
use super::{Action, Dropped, Plan, PlanOptions, PlannedFormula, Step, StepInput};
use crate::derive::{By, EMPTY, Fill, Made, NEW, Pursued, Readable, Stored, Transplanted};
use crate::methods::RowLayout;
use crate::problem::{Place, Problem, Problems};
use crate::streams::stream_key;
use assignment::Assignment;
use pieces::Cutting;
use texts::{Meaning, Meanings};

/// The method that plans and reports name.
const METHOD: &str = "tokensurgeon";

/// What counts as the same beside tokens that stand for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alike {
    prefix: bool,
    byte: bool,
}

pub(super) fn plan(
    transplant: &Transplant<'_>,
    cut: &dyn Fn(&str) -> Result<Vec<u32>, String>,
    options: &PlanOptions,
) -> Result<Plan, Problems> {
    let mut models = Models::with_stages(std::iter::empty(), options.hub.clone());
    let mut problems = Problems::new();
    let mut opened = |name: &str| match open(name, &mut models) {
        Ok(model) => Some(model),
        Err(faults) => {
            problems.append(faults);
            None
        }
    };
    let (model, donor) = (opened(transplant.model), opened(transplant.donor));
    let (Some(model), Some(donor)) = (model, donor) else { return Err(problems) };
    let surgery = Surgery::new(transplant, &models.list[model], &models.list[donor], options.seed);
    let surgery = surgery.map_err(|problem| nowhere(problem.into()))?;
    let steps = surgery.steps(cut, &mut problems);
    let side_files = problems.take(surgery.side_files());
    let config = surgery.config();
    let dropped = surgery.dropped(&models, &steps);
    if !problems.is_empty() {
        return Err(nowhere(problems));
    }
    let draft = Draft {
        recipe: transplant.text(),
        method: METHOD,
        stages: Vec::new(),
        formulas: vec![identity()?],
        steps,
        dropped,
        side_files: side_files.unwrap_or_default(),
        config,
        delta: None,
        statistics: Vec::new(),
        awaited: Vec::new(),
        sources: models.sources,
    };
    draft.finished(options, problems)
}

/// A transplant in the making.
struct Surgery<'a> {
    transplant: &'a Transplant<'a>,
    model: &'a Model,
    donor: &'a Model,
    seed: u64,
    /// What the tokens of the model and of the output stand for.
    own: Meanings,
    new: Meanings,
    target: Target,
    /// Rows of the output's tables.
    rows: usize,
}

impl<'a> Surgery<'a> {
    fn new(
        transplant: &'a Transplant<'a>,
        model: &'a Model,
        donor: &'a Model,
        seed: u64,
    ) -> Result<Self, Problem> {
        // What is read of a recipe has a place; this is none.
        let place = Place { line: 1, column: 1, path: String::new() };
        let member = |model: &Model| Member::read(model, &place)?.ok_or_else(|| no_tokenizer(model, &place));
        let (own, other) = (member(model)?, member(donor)?);
        let target = other.target(donor, &place)?;
        let rows = target.known.rows();
        let unreadable = |model: &'a Model| {
            move |error| {
                Problem::general(format!("tokenizer.json of `{}` cannot be read: {error}", model.name))
            }
        };
        Ok(Self {
            transplant,
            model,
            donor,
            seed,
            own: Meanings::of(&own.known, &own.texts, own.size).map_err(unreadable(model))?,
            new: Meanings::of(&target.known, &target.texts, rows).map_err(unreadable(donor))?,
            target,
            rows,
        })
    }

    fn side_files(&self) -> Result<super::SideFiles, Problem> {
        let mut files = self.donor.side_files.clone();
        self.target.put(&mut files).map_err(|error| {
            Problem::general(format!("tokenizer.json of `{}` cannot be read: {error}", self.donor.name))
        })?;
        Ok(files)
    }

    fn config(&self) -> Option<Config> {
        let config = self.model.config.as_ref()?;
        Some(with_vocabulary(config, self.rows, self.donor.config.as_ref()))
    }

    /// Every tensor of the output, in the order of the model's.
    fn steps(&self, cut: &dyn Fn(&str) -> Result<Vec<u32>, String>, problems: &mut Problems) -> Vec<Step> {
        let cutting = Cutting::new(&self.own, cut);
        let mut steps = Vec::new();
        let mut tables = 0;
        for (name, facts) in self.model.tensors.iter().filter(|(name, _)| self.reason_to_drop(name).is_none())
        {
            let kind = table_kind(name).filter(|_| !facts.shape.is_empty());
            tables += usize::from(kind.is_some_and(|kind| kind != TableKind::Bias));
            let step = match kind {
                Some(kind) => self.table(name, facts, kind, &cutting),
                None => self.copied(name, facts),
            };
            steps.extend(problems.take(step));
        }
        if tables == 0 {
            let message = format!("`{}` has no embedding, as far as names tell", self.model.name);
            problems.push(Problem::general(message).with_hint("its tensors are listed by `aludel inspect`"));
        }
        steps
    }

    fn copied(&self, name: &str, facts: &Facts) -> Result<Step, Problem> {
        let columns = facts.shape.last().map_or(1, |&side| side.max(1) as u64);
        let action =
            if facts.made.is_some() { Action::compute(0, RowLayout::of(columns)) } else { Action::Copy };
        let input = self.input(name, facts.made.clone())?;
        Ok(Step {
            tensor: name.to_owned(),
            shape: facts.shape.clone(),
            dtype: facts.dtype,
            action,
            inputs: vec![input],
        })
    }

    fn input(&self, name: &str, made: Option<Made>) -> Result<StepInput, Problem> {
        let Stored { source, tensor } = stored(self.model, name)?;
        Ok(StepInput { source, tensor, made })
    }

    /// A table with the rows of the output's tokens.
    fn table(
        &self,
        name: &str,
        facts: &Facts,
        kind: TableKind,
        cutting: &Cutting<'_>,
    ) -> Result<Step, Problem> {
        let (own_rows, columns) = sides(name, facts, self.model)?;
        let alike = Alike {
            prefix: self.transplant.prefix_match.holds(kind),
            byte: self.transplant.byte_match.holds(kind),
        };
        let assignment = Assignment::of(&self.new, &self.own, alike);
        let mut rows = vec![EMPTY; self.rows];
        assignment.new.iter().for_each(|&id| rows[id as usize] = NEW);
        let assigned = [&assignment.same, &assignment.bytes, &assignment.prefixes].into_iter().flatten();
        for &(id, own) in assigned {
            // A table may have fewer rows than the config counts.
            rows[id as usize] = if (own as usize) < own_rows { own } else { NEW };
        }
        let own = Readable { stored: stored(self.model, name)?, made: facts.made.clone() };
        let fill = self.fill(name, kind, &rows, &assignment, cutting)?;
        let noise = (self.transplant.noise != 0.0)
            .then(|| (self.transplant.noise as f32, stream_key(self.seed, name, 1)));
        let transplanted = Transplanted {
            panels: Transplanted::panels(rows.len(), columns),
            own,
            own_rows,
            columns,
            rows,
            fill,
            scale: self.transplant.scale,
            noise,
        };
        let mut shape = facts.shape.clone();
        shape[0] = self.rows;
        Ok(Step {
            tensor: name.to_owned(),
            shape,
            dtype: facts.dtype,
            action: Action::compute(0, RowLayout::of(columns as u64)),
            inputs: vec![self.input(name, Some(Made::by(transplanted)))?],
        })
    }

    /// What rows of tokens are filled with that the model does not know.
    fn fill(
        &self,
        name: &str,
        kind: TableKind,
        rows: &[u32],
        assignment: &Assignment,
        cutting: &Cutting<'_>,
    ) -> Result<Fill, Problem> {
        let by = match self.transplant.approximation {
            Approximation::Zero => return Ok(Fill::Zero),
            Approximation::Normal => return Ok(Fill::Normal(stream_key(self.seed, name, 0))),
            Approximation::Pieces(weights) => {
                let is_new = |id: &u32| rows[*id as usize] == NEW;
                let new = self.new.tokens.iter().filter(|(id, _)| is_new(id));
                let combination = |(id, meaning): &(u32, Meaning)| {
                    Ok((*id, weights.combination(&cutting.pieces(meaning)?, kind)))
                };
                return new
                    .map(combination)
                    .collect::<Result<HashMap<u32, Combination>, Problem>>()
                    .map(Fill::Combined);
            }
            // A bias of the donor's head is no vector in any space.
            _ if kind == TableKind::Bias => return Ok(Fill::Mean(OnceLock::new())),
            Approximation::Mean => return Ok(Fill::Mean(OnceLock::new())),
            Approximation::Matching { k } => By::Matching(k),
            Approximation::Nearest { k, metric, weighting } => By::Nearest { count: k, metric, weighting },
        };
        let (table, facts) = self.of_donor(name, kind)?;
        let (donor_rows, columns) = sides(table, facts, self.donor)?;
        if donor_rows < self.rows {
            let (model, rows) = (&self.donor.name, self.rows);
            let message = format!("`{table}` of `{model}` has {donor_rows} rows for {rows} tokens");
            return Err(Problem::general(message));
        }
        let fits = |&&(id, own): &&(u32, u32)| rows[id as usize] == own;
        let shared: Arc<[(u32, u32)]> = assignment.same.iter().filter(fits).copied().collect();
        if shared.is_empty() && rows.contains(&NEW) {
            let message = format!(
                "`{}` and `{}` have no token in common, of which others could be made",
                self.model.name, self.donor.name
            );
            let hint = "choose `--approximation-method mean` or `zero`, and train the model on";
            return Err(Problem::general(message).with_hint(hint));
        }
        let donor = Readable { stored: stored(self.donor, table)?, made: facts.made.clone() };
        Ok(Fill::Pursued(Pursued { donor, columns, shared, by, norms: OnceLock::new() }))
    }

    /// The donor's table of this kind: of this name, else the first; a head that is tied to the embedding is that.
    fn of_donor(&self, name: &str, kind: TableKind) -> Result<(&str, &Facts), Problem> {
        let of_kind =
            |kind: TableKind| self.donor.tensors.iter().find(move |(name, _)| table_kind(name) == Some(kind));
        let found = self.donor.tensors.get_key_value(name).or_else(|| of_kind(kind));
        let found = found.or_else(|| of_kind(TableKind::Embedding).filter(|_| kind == TableKind::Head));
        let (table, facts) = found.ok_or_else(|| {
            let message = format!(
                "`{}` has no embedding, as far as names tell, which `{name}` could be made of",
                self.donor.name
            );
            Problem::general(message).with_hint("its tensors are listed by `aludel inspect`")
        })?;
        Ok((table, facts))
    }

    /// Why the output has nothing of a tensor of the model, if so.
    fn reason_to_drop(&self, name: &str) -> Option<String> {
        if is_head(name) && ties_embeddings(self.model) && has_embedding(self.model) {
            return Some(tied_head(self.model));
        }
        is_derived(name).then(|| DERIVED.to_owned())
    }

    /// Every tensor that the output has nothing of, with the reason.
    fn dropped(&self, models: &Models, steps: &[Step]) -> Vec<Dropped> {
        let used: std::collections::HashSet<Stored> =
            steps.iter().flat_map(|step| &step.inputs).flat_map(StepInput::reads).collect();
        let own = self.model.source();
        let mut dropped = Vec::new();
        for (source, model) in models.sources.iter().enumerate() {
            for left_out in model.checkpoint.left_out() {
                let (tensor, reason) = (left_out.name.clone(), left_out.reason.clone());
                dropped.push(Dropped { source, tensor, reason });
            }
            for tensor in model.checkpoint.tensors().keys().chain(model.checkpoint.encoded().keys()) {
                if !used.contains(&Stored { source, tensor: tensor.clone() }) {
                    let of_own = (own == Some(source)).then(|| self.reason_to_drop(tensor)).flatten();
                    let reason = of_own.unwrap_or_else(|| "the donor gives its tokenizer alone".to_owned());
                    dropped.push(Dropped { source, tensor: tensor.clone(), reason });
                }
            }
        }
        dropped
    }
}

/// Where a tensor of a model lies.
fn stored(model: &Model, name: &str) -> Result<Stored, Problem> {
    let source =
        model.source().ok_or_else(|| Problem::general(format!("internal: `{}` is a stage", model.name)))?;
    Ok(Stored { source, tensor: name.to_owned() })
}

/// The rows and columns of a table.
fn sides(name: &str, facts: &Facts, model: &Model) -> Result<(usize, usize), Problem> {
    let (rows, columns) = match *facts.shape.as_slice() {
        [rows] => (rows, 1),
        [rows, columns] => (rows, columns),
        _ => (0, 0),
    };
    if columns > 0 && is_float(facts.dtype) {
        return Ok((rows, columns));
    }
    let Facts { shape, dtype, .. } = facts;
    Err(Problem::general(format!(
        "`{name}` of `{}` is {dtype} {shape:?}, not a table of weights",
        model.name
    )))
}

/// The formula of a tensor that is taken as it is made.
fn identity() -> Result<PlannedFormula, Problem> {
    let graph = Graph::new();
    let formula = graph
        .finish(graph.input(0))
        .map_err(|error| Problem::general(format!("internal: {METHOD}: {error}")))?;
    Ok(PlannedFormula::of(Arc::new(formula)))
}
