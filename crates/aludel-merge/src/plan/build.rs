//! Builds a plan: opens, matches, asks the method for formulas, lays out, reckons.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aludel_checkpoint::{
    Config, Dtype, Layout, OutputTensor, check_target, element_bytes, free_space, is_float,
};
use aludel_kernels::cpu::registers_of;
use aludel_kernels::formula::{Formula, Graph, Schedule};

use super::budget::{self, Fit, Needs, Work};
use super::layers::Layers;
use super::sources::{self, Cast};
use super::tensors::{self, Matched};
use super::{Action, Plan, PlanOptions, PlannedFormula, SideFiles, Source, Step, StepInput};
use crate::methods::{self, Member, Method, Tensor};
use crate::problem::{Problem, Problems};
use crate::recipe::{Located, Recipe, TokenizerSource};
use aludel_checkpoint::resident;

/// What a process is taken to have resident where the system does not tell.
const RESIDENT_UNKNOWN: u64 = 8 << 20;

/// Room that the output's small files may need.
const SMALL_FILES: u64 = 1 << 20;

pub(super) fn plan(recipe: &Recipe, options: &PlanOptions) -> Result<Plan, Problems> {
    let mut problems = Problems::new();
    let Some(method) = methods::find(&recipe.merge_method.value) else {
        let name = &recipe.merge_method.value;
        let problem =
            Problem::at(recipe.merge_method.place.clone(), format!("unknown merge method `{name}`"));
        return Err(problem.with_hint(methods::hint_for(name)).into());
    };
    match method.own_numbers(recipe) {
        Ok(numbers) => problems.append(recipe.check_parameters_and(method.parameters(), &numbers)),
        Err(faults) => problems.append(faults),
    }
    check_unsupported(recipe, &mut problems);
    let before = problems.count();
    let cast = sources::cast(recipe, method, &mut problems);
    let is_complete = problems.count() == before;
    if cast.sources.is_empty() {
        return Err(problems);
    }
    let primary = cast.primary(recipe);
    let (matched, dropped) = tensors::matched(&cast, primary, &mut problems);
    let side_files = side_files(recipe, &cast, primary, &mut problems);
    let mut builder = Builder { recipe, method, cast: &cast, formulas: Vec::new(), known: HashMap::new() };
    let names: Vec<&str> = matched.iter().map(|tensor| tensor.name.as_str()).collect();
    let layers = Layers::of(names.into_iter());
    let planned = matched.iter().filter(|_| is_complete);
    let steps: Vec<Step> =
        planned.filter_map(|tensor| problems.take(builder.step(tensor, &layers))).collect();
    let formulas = builder.formulas;
    let mut problems = deduplicated(problems);
    check_output(options, &mut problems);
    let Some(layout) = problems.take(layout(&steps, options)) else { return Err(problems) };
    let steps = in_writing_order(steps, &layout);
    let work = problems.take(reckon(&steps, &formulas, &cast, &layout, options));
    check_space(&layout, options.target.as_deref(), &mut problems);
    let config = config(&cast, primary, &steps);
    let Some(work) = work.filter(|_| problems.is_empty()) else { return Err(problems) };
    Ok(Plan {
        version: env!("CARGO_PKG_VERSION"),
        recipe: recipe.text.clone(),
        method: method.name(),
        seed: options.seed,
        allow_non_finite: options.allow_non_finite,
        sources: cast.sources,
        formulas,
        steps,
        dropped,
        side_files,
        layout,
        work,
        config,
    })
}

/// Turns matched tensors into steps, each distinct formula once.
struct Builder<'a> {
    recipe: &'a Recipe,
    method: &'static dyn Method,
    cast: &'a Cast,
    formulas: Vec<PlannedFormula>,
    known: HashMap<Arc<Formula>, usize>,
}

impl Builder<'_> {
    fn step(&mut self, tensor: &Matched, layers: &Layers<'_>) -> Result<Step, Problem> {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        if !is_float(tensor.dtype) {
            let inputs = tensor.inputs.clone();
            return Ok(Step { tensor: name, shape, dtype: tensor.dtype, action: Action::Copy, inputs });
        }
        let statistics = self.statistics(tensor)?;
        let mut inputs = tensor.inputs.clone();
        let mut numbered = Vec::new();
        for input in statistics {
            numbered.push(input.is_some().then_some(inputs.len() as u16));
            inputs.extend(input);
        }
        let (formula, columns) = self.formula(tensor, layers.position(&tensor.name), &numbered)?;
        let output = self.recipe.out_dtype.or(self.recipe.dtype).map_or(tensor.dtype, Dtype::from);
        let action = Action::Compute { formula: self.intern(formula), columns };
        Ok(Step { tensor: name, shape, dtype: output, action, inputs })
    }

    /// Each member's statistics of a tensor, where its file has them.
    fn statistics(&self, tensor: &Matched) -> Result<Vec<Option<StepInput>>, Problem> {
        let expected = self.method.statistics_shape(&tensor.shape);
        let of_source = |&source: &usize| {
            let Source { model, checkpoint, .. } = &self.cast.sources[source];
            let Some(entry) = checkpoint.tensor(&tensor.name) else { return Ok(None) };
            if entry.shape != expected || !is_float(entry.dtype) {
                let (name, found) = (&tensor.name, &entry.shape);
                let message = format!(
                    "`{name}` is {} {found:?} in `{model}`, but has to be F32, F16 or BF16 {expected:?}",
                    entry.dtype
                );
                return Err(Problem::general(message).with_hint("are these the statistics of this model?"));
            }
            Ok(Some(StepInput { source, tensor: tensor.name.clone() }))
        };
        self.cast.statistics.iter().map(of_source).collect()
    }

    /// The formula, and the elements of a row.
    fn formula(
        &self,
        tensor: &Matched,
        position: f64,
        statistics: &[Option<u16>],
    ) -> Result<(Formula, u64), Problem> {
        let numbered =
            |(source, member): &(usize, Member)| Member { input: *source as u16, ..member.clone() };
        let base = self.cast.base.as_ref().map(numbered);
        let members: Vec<Member> = self.cast.members.iter().map(numbered).collect();
        let elements = tensor.shape.iter().map(|&side| side as u64).product();
        let mut context = Tensor {
            name: &tensor.name,
            shape: &tensor.shape,
            elements,
            columns: columns(&tensor.shape),
            position,
            base: base.as_ref(),
            members: &members,
            statistics,
            recipe: self.recipe,
            specs: self.method.parameters(),
        };
        context.columns = self.method.row_length(&context)?;
        let graph = Graph::new();
        let output = self.method.formula(&graph, &context)?;
        let internal = |error| Problem::general(format!("internal: {}: {error}", self.method.name()));
        Ok((graph.finish(output).map_err(internal)?, context.columns))
    }

    fn intern(&mut self, formula: Formula) -> usize {
        let formula = Arc::new(formula);
        *self.known.entry(Arc::clone(&formula)).or_insert_with(|| {
            let passes = Schedule::of(&formula).passes;
            self.formulas.push(PlannedFormula {
                text: formula.to_string(),
                passes: passes.len(),
                registers: registers_of(&formula),
                reads: passes.into_iter().map(|pass| pass.reads).collect(),
                formula,
            });
            self.formulas.len() - 1
        })
    }
}

impl PlannedFormula {
    /// How many thresholds it seeks.
    pub(super) fn selections(&self) -> usize {
        self.formula.nodes().iter().filter(|op| op.is_selection()).count()
    }
}

/// The elements of each row: the last side, or all of a vector.
fn columns(shape: &[usize]) -> u64 {
    shape.last().map_or(1, |&side| (side as u64).max(1))
}

fn layout(steps: &[Step], options: &PlanOptions) -> Result<Layout, Problem> {
    let tensor = |step: &Step| OutputTensor {
        name: step.tensor.clone(),
        dtype: step.dtype,
        shape: step.shape.clone(),
    };
    Layout::plan(steps.iter().map(tensor).collect(), options.shard_bytes)
        .map_err(|error| Problem::general(error.to_string()))
}

fn in_writing_order(steps: Vec<Step>, layout: &Layout) -> Vec<Step> {
    let mut by_name: HashMap<String, Step> =
        steps.into_iter().map(|step| (step.tensor.clone(), step)).collect();
    layout.tensors().iter().filter_map(|tensor| by_name.remove(&tensor.name)).collect()
}

fn reckon(
    steps: &[Step],
    formulas: &[PlannedFormula],
    cast: &Cast,
    layout: &Layout,
    options: &PlanOptions,
) -> Result<Work, Problem> {
    let mut needs = Needs::default();
    let mut bytes_read = 0;
    for step in steps {
        let input = |input: &StepInput| {
            let checkpoint = &cast.sources[input.source].checkpoint;
            let entry = checkpoint.tensor(&input.tensor)?;
            Some(((element_bytes(entry.dtype), checkpoint.files()[entry.file].bytes), entry.bytes))
        };
        let (inputs, bytes): (Vec<_>, Vec<u64>) = step.inputs.iter().filter_map(input).unzip();
        let formula = match step.action {
            Action::Compute { formula, .. } => Some(&formulas[formula]),
            Action::Copy => None,
        };
        needs.include(step, formula, &inputs, element_bytes(step.dtype));
        if formula.is_some_and(|formula| formula.passes > 1) {
            needs.revisit(bytes.iter().sum());
        }
        bytes_read += budget::bytes_read(step, formulas, &bytes);
    }
    let Fit { threads, tile, bytes, kept } = needs.fit(options.threads, options.tile, options.memory)?;
    Ok(Work {
        threads,
        tile,
        kept,
        buffers: Needs::buffers(threads),
        bytes_read,
        bytes_written: layout.total_bytes(),
        peak_memory: resident::now().unwrap_or(RESIDENT_UNKNOWN) + bytes,
    })
}

fn check_space(layout: &Layout, target: Option<&Path>, problems: &mut Problems) {
    let Some(target) = target else { return };
    let needed = layout.total_bytes() + SMALL_FILES;
    match free_space(target) {
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

/// The primary model's config with the output's type, when that is one for all floating-point tensors.
fn config(cast: &Cast, primary: usize, steps: &[Step]) -> Option<Config> {
    let config = cast.sources[primary].checkpoint.config()?;
    let mut types = steps.iter().filter(|step| is_float(step.dtype)).map(|step| step.dtype);
    let first = types.next();
    match first {
        Some(dtype) if types.all(|other| other == dtype) => Some(config.with_dtype(dtype)),
        _ => Some(config.clone()),
    }
}

/// Recipe keys that a later version will understand.
fn check_unsupported(recipe: &Recipe, problems: &mut Problems) {
    if let Some(template) = &recipe.chat_template {
        let message = "setting a chat template is not supported by this version yet";
        let hint = "remove the key: the base model's template is copied";
        problems.push(Problem::at(template.place.clone(), message).with_hint(hint));
    }
}

/// The files beside the weights: the primary model's, with the tokenizer that the recipe asks for.
fn side_files(recipe: &Recipe, cast: &Cast, primary: usize, problems: &mut Problems) -> SideFiles {
    let source = match &recipe.tokenizer_source {
        None | Some(Located { value: TokenizerSource::Base, .. }) => primary,
        Some(Located { value: TokenizerSource::Model(model), place }) => {
            match cast.models().iter().position(|source| source.model == model.text()) {
                Some(source) => source,
                None => {
                    let message = format!("`{}` is none of the merge's models", model.text());
                    problems.push(
                        Problem::at(place.clone(), message).with_hint("name one of `models`, or `base`"),
                    );
                    primary
                }
            }
        }
        Some(Located { value: TokenizerSource::Union, place }) => {
            if !have_same_tokenizer(cast) {
                let message =
                    "the models' tokenizers differ, and uniting them is not supported by this version yet";
                problems.push(Problem::at(place.clone(), message).with_hint("use `tokenizer_source: base`"));
            }
            primary
        }
    };
    let checkpoint = &cast.sources[source].checkpoint;
    let folder = checkpoint.path().to_path_buf();
    SideFiles { folder, names: checkpoint.side_files().to_vec() }
}

fn have_same_tokenizer(cast: &Cast) -> bool {
    let read = |name: &str| -> Vec<Option<Vec<u8>>> {
        cast.models().iter().map(|source| std::fs::read(source.path.join(name)).ok()).collect()
    };
    let all_same = |files: &[Option<Vec<u8>>]| files.windows(2).all(|pair| pair[0] == pair[1]);
    ["tokenizer.json", "tokenizer.model"].iter().all(|name| all_same(&read(name)))
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
