//! Builds a plan: stage by stage, then formulas, layout and cost.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use aludel_checkpoint::{
    Config, Layout, OutputTensor, check_target, element_bytes, free_for_output, is_float, resident,
};

use super::budget::{self, Fit, Needs, Work};
use super::formulas::Formulas;
use super::models::{Models, Origin, Role, Source};
use super::stage::Stage;
use super::{
    Action, Compute, DeltaPlan, Dropped, Form, Plan, PlanOptions, PlannedFormula, PlannedStage, SideFiles,
    Step, StepInput, StoredPart, alignments, fp8,
};
use crate::derive::Stored;
use crate::problem::{Problem, Problems};
use crate::recipe::Recipe;

/// What a process is taken to have resident where the system does not tell.
const RESIDENT_UNKNOWN: u64 = 8 << 20;

/// Room that the output's small files may need.
const SMALL_FILES: u64 = 1 << 20;

pub(super) fn plan(recipe: &Recipe, options: &PlanOptions) -> Result<Plan, Problems> {
    let mut problems = Problems::new();
    let (models, mut stages) = stages(recipe, options, &mut problems);
    let Some(output) = stages.pop().flatten() else { return Err(problems) };
    let is_complete = output.is_complete && stages.iter().all(Option::is_some);
    let stages: Vec<Stage<'_>> = stages.into_iter().flatten().collect();
    let mut formulas = Formulas::new(&models, &stages, &output, options.compute);
    if options.compute == Compute::Fp8 {
        problems.take(formulas.check_rounding());
    }
    let planned = output.tensors.values().filter(|_| is_complete);
    let steps: Vec<Step> = planned.filter_map(|tensor| problems.take(formulas.step(tensor))).collect();
    let formulas = formulas.planned();
    let mut problems = deduplicated(problems);
    let delta = match options.form {
        Form::SparseDelta(values) => problems.take(DeltaPlan::of(recipe, values, &models, &steps)),
        Form::Dense | Form::Fp8 => None,
    };
    let statistics = stages.iter().chain([&output]).flat_map(|stage| &stage.casts);
    let statistics = statistics.flat_map(|cast| cast.statistics_of(&models)).collect();
    let dropped = dropped(&models, &stages, &output, &steps);
    let stages = stages.iter().map(|stage| PlannedStage {
        name: stage.recipe.name.as_ref().map_or_else(String::new, |name| name.value.clone()),
        method: stage.method.name(),
    });
    let draft = Draft {
        recipe: recipe.text.to_string(),
        method: output.method.name(),
        stages: stages.collect(),
        sources: models.sources,
        formulas,
        steps,
        dropped,
        side_files: output.side_files,
        config: output.config,
        delta,
        statistics,
        awaited: Vec::new(),
    };
    draft.finished(options, problems)
}

/// A plan whose tensors are known, and not yet where they will lie and what they cost.
pub(super) struct Draft {
    pub recipe: String,
    pub method: &'static str,
    pub stages: Vec<PlannedStage>,
    pub sources: Vec<Source>,
    pub formulas: Vec<PlannedFormula>,
    pub steps: Vec<Step>,
    pub dropped: Vec<Dropped>,
    pub side_files: SideFiles,
    pub config: Option<Config>,
    pub delta: Option<DeltaPlan>,
    pub statistics: Vec<(usize, usize)>,
    pub awaited: Vec<String>,
}

impl Draft {
    /// Lays the output out and reckons its cost; `problems` are those that were found before.
    pub(super) fn finished(
        mut self,
        options: &PlanOptions,
        mut problems: Problems,
    ) -> Result<Plan, Problems> {
        check_output(options, &mut problems);
        if options.form == Form::Fp8 && problems.is_empty() {
            problems.take(fp8::quantise(&mut self));
        }
        if matches!(options.form, Form::SparseDelta(_)) && self.delta.is_none() && problems.is_empty() {
            let problem = Problem::general("this output is no difference from one base model");
            problems.push(problem.with_hint("leave `--output sparse-delta` out"));
        }
        let Some(layout) = problems.take(layout(&self.steps, options)) else { return Err(problems) };
        let steps = in_writing_order(self.steps, &layout);
        let parts = parts(&steps, &self.sources);
        let work = problems.take(reckon(&steps, &parts, &self.formulas, &layout, options));
        if let Err(problem) = options.part.check(&layout) {
            problems.push(problem);
        }
        check_space(options.part.bytes(&layout), options.target.as_deref(), &mut problems);
        let Some(work) = work.filter(|_| problems.is_empty()) else { return Err(problems) };
        Ok(Plan {
            version: env!("CARGO_PKG_VERSION"),
            recipe: self.recipe,
            method: self.method,
            seed: options.seed,
            allow_non_finite: options.allow_non_finite,
            part: options.part,
            compute: options.compute,
            awaited: self.awaited,
            stages: self.stages,
            sources: self.sources,
            formulas: self.formulas,
            dropped: self.dropped,
            side_files: self.side_files,
            config: self.config.map(|config| with_type(config, &steps)),
            delta: self.delta,
            statistics: self.statistics,
            partners: fp8::partners(&steps),
            widths: widths(&parts),
            steps,
            layout,
            work,
        })
    }
}

/// Every stage in order, and the output's own last; `None` for those that cannot be planned.
fn stages<'r>(
    recipe: &'r Recipe,
    options: &PlanOptions,
    problems: &mut Problems,
) -> (Models, Vec<Option<Stage<'r>>>) {
    let names = recipe.stages.iter().filter_map(|stage| Some(stage.name.as_ref()?.value.clone()));
    let mut models = Models::with_stages(names, options.hub.clone()).with_results(options.results.clone());
    let mut stages = Vec::new();
    let mut first_stream = options.first_stream.saturating_add(recipe.streams());
    for (number, recipe) in recipe.stages.iter().enumerate() {
        let name = recipe.name.as_ref().map_or("", |name| name.value.as_str());
        let before = problems.count();
        let stage = Stage::plan(recipe, first_stream, &mut models, problems);
        let stage = stage.filter(|stage| stage.is_complete && problems.count() == before);
        match &stage {
            Some(stage) => models.add_stage(stage.as_model(name, Origin::Stage(number))),
            None => models.add_failed_stage(name),
        }
        stages.push(stage);
        first_stream = first_stream.saturating_add(recipe.streams());
    }
    stages.push(Stage::plan(recipe, options.first_stream, &mut models, problems));
    (models, stages)
}

/// The tensors of checkpoints that nothing is made of, with the first reason that a stage gives, the output's own first.
fn dropped(models: &Models, stages: &[Stage<'_>], output: &Stage<'_>, steps: &[Step]) -> Vec<Dropped> {
    let used: HashSet<Stored> =
        steps.iter().flat_map(|step| &step.inputs).flat_map(StepInput::reads).collect();
    let mut told: HashSet<(usize, &str)> = HashSet::new();
    let mut dropped = Vec::new();
    for entry in std::iter::once(output).chain(stages).flat_map(|stage| &stage.dropped) {
        let Origin::Source(source) = models.list[entry.model].origin else { continue };
        let key = (source, entry.tensor.as_str());
        if !used.contains(&Stored { source, tensor: entry.tensor.clone() }) && told.insert(key) {
            dropped.push(Dropped { source, tensor: entry.tensor.clone(), reason: entry.reason.clone() });
        }
    }
    for (source, model) in models.sources.iter().enumerate() {
        for left_out in model.checkpoint.left_out() {
            dropped.push(Dropped { source, tensor: left_out.name.clone(), reason: left_out.reason.clone() });
        }
        for tensor in model.checkpoint.tensors().keys().chain(model.checkpoint.encoded().keys()) {
            let key = (source, tensor.as_str());
            if !used.contains(&Stored { source, tensor: tensor.clone() }) && !told.contains(&key) {
                let reason = match model.role {
                    Role::Statistics => "statistics of no tensor of the output",
                    Role::Base | Role::Member | Role::Adapter => "no later recipe takes what is made of it",
                };
                dropped.push(Dropped { source, tensor: tensor.clone(), reason: reason.to_owned() });
            }
        }
    }
    dropped
}

fn layout(steps: &[Step], options: &PlanOptions) -> Result<Layout, Problem> {
    let tensor = |step: &Step| OutputTensor {
        name: step.tensor.clone(),
        dtype: step.dtype,
        shape: step.shape.clone(),
    };
    // Scales are written with the weight that follows them, by one process.
    let scales: HashSet<&str> =
        steps.iter().filter(|step| step.action == Action::Scales).map(|step| step.tensor.as_str()).collect();
    let tensors = steps.iter().map(tensor).collect();
    Layout::plan_beside(tensors, options.shard_bytes, |name| scales.contains(name))
        .map_err(|error| Problem::general(error.to_string()))
}

fn in_writing_order(steps: Vec<Step>, layout: &Layout) -> Vec<Step> {
    let mut by_name: HashMap<String, Step> =
        steps.into_iter().map(|step| (step.tensor.clone(), step)).collect();
    layout.tensors().iter().filter_map(|tensor| by_name.remove(&tensor.name)).collect()
}

/// What is stored of each input of each step.
pub(super) fn parts(steps: &[Step], sources: &[Source]) -> Vec<Vec<Vec<StoredPart>>> {
    steps
        .iter()
        .map(|step| step.inputs.iter().map(|input| input.stored(step.elements(), sources)).collect())
        .collect()
}

/// As [`Plan::widths`].
pub(super) fn widths(parts: &[Vec<Vec<StoredPart>>]) -> Vec<Vec<u64>> {
    let width = |parts: &Vec<StoredPart>| parts.iter().map(|part| part.width).sum();
    parts.iter().map(|inputs| inputs.iter().map(width).collect()).collect()
}

/// What the steps cost, fitted into the memory.
pub(super) fn reckon(
    steps: &[Step],
    parts: &[Vec<Vec<StoredPart>>],
    formulas: &[PlannedFormula],
    layout: &Layout,
    options: &PlanOptions,
) -> Result<Work, Problem> {
    let mut needs = Needs::default();
    let mut bytes_read = 0;
    for (step, inputs) in steps.iter().zip(parts) {
        let bytes: Vec<u64> = inputs.iter().map(|parts| parts.iter().map(|part| part.bytes).sum()).collect();
        let formula = match step.action {
            Action::Compute { formula, .. } => Some(&formulas[formula]),
            Action::Copy => None,
            Action::Scales => continue,
        };
        needs.include(step, formula, inputs, element_bytes(step.dtype));
        needs.hold(
            step.inputs.iter().filter_map(|input| input.made.as_ref()).map(|made| made.resident()).sum(),
        );
        if formula.is_some_and(|formula| formula.passes > 1) {
            needs.revisit(bytes.iter().sum());
        }
        bytes_read += budget::bytes_read(step, formulas, &bytes);
    }
    for alignment in alignments(steps) {
        needs.align(alignment.resident());
        bytes_read += alignment.bytes;
    }
    // Tokenizers and headers are read in planning, and their memory is free again when the work begins.
    let planning = resident::peak().unwrap_or(0);
    let Fit { threads, tile, ahead, bytes, kept } =
        needs.fit(options.threads, options.tile, options.memory)?;
    Ok(Work {
        threads,
        tile,
        kept,
        ahead,
        buffers: Needs::buffers(threads),
        bytes_read,
        bytes_written: layout.total_bytes(),
        peak_memory: planning.max(resident::now().unwrap_or(RESIDENT_UNKNOWN) + bytes),
    })
}

fn check_space(bytes: u64, target: Option<&Path>, problems: &mut Problems) {
    let Some(target) = target else { return };
    let needed = bytes + SMALL_FILES;
    match free_for_output(target) {
        Ok(Some(free)) if free < needed => {
            let message = format!(
                "the output takes {} MB, but {} has {} MB free",
                needed / 1_000_000,
                target.display(),
                free / 1_000_000
            );
            problems.push(
                Problem::general(message).with_hint("make room or choose an output folder on another disk"),
            );
        }
        Ok(_) => {}
        Err(error) => problems.push(Problem::general(error.to_string())),
    }
}

/// An output folder that is in the way is told before any work.
fn check_output(options: &PlanOptions, problems: &mut Problems) {
    let Some(target) = options.target.as_deref() else { return };
    if let Err(error) = check_target(target, options.replace) {
        problems.push(Problem::general(error.to_string()));
    }
}

/// The config with the output's type, when that is one for all floating-point tensors.
fn with_type(config: Config, steps: &[Step]) -> Config {
    let plain = steps.iter().filter(|step| step.action != Action::Scales && is_float(step.dtype));
    let mut types = plain.map(|step| step.dtype);
    let first = types.next();
    match first {
        Some(dtype) if types.all(|other| other == dtype) => config.with_dtype(dtype),
        _ => config,
    }
}

/// The same problem at the same place, met at every tensor, is said once.
fn deduplicated(problems: Problems) -> Problems {
    let mut once = Problems::new();
    let mut seen = std::collections::HashSet::new();
    for problem in problems {
        let key = (problem.place.clone().map(|place| (place.line, place.column)), problem.hint.clone());
        if problem.place.is_none() || seen.insert(key) {
            once.push(problem);
        }
    }
    once
}
