//! Asks methods for the formulas of tensors, and makes steps of them, each distinct formula once.
//!
//! In: the stages and the output. Out: [`Step`]s. Where a tensor is made of what a stage makes, the stage's formula is built
//! into the tensor's own, so that stages need no files and nothing is rounded between them.

use std::collections::HashMap;
use std::sync::Arc;

use aludel_checkpoint::is_float;
use aludel_kernels::cpu::registers_of;
use aludel_kernels::formula::{Expr, Formula, FormulaError, Graph, Schedule};
use aludel_kernels::gpu::obstacle;
use indexmap::IndexSet;

use super::cast::Cast;
use super::heads::heads;
use super::models::{Models, Origin, Source};
use super::stage::Stage;
use super::tensors::Matched;
use super::{Action, Compute, PlannedFormula, Step, StepInput, fits};
use crate::derive::{Made, Stored};
use crate::methods::{self, Member, RowLayout, Tensor};
use crate::problem::Problem;

/// The formulas of a plan.
pub(super) struct Formulas<'a> {
    models: &'a Models,
    stages: &'a [Stage<'a>],
    output: &'a Stage<'a>,
    compute: Compute,
    planned: Vec<PlannedFormula>,
    known: HashMap<Arc<Formula>, usize>,
}

impl<'a> Formulas<'a> {
    pub(super) fn new(
        models: &'a Models,
        stages: &'a [Stage<'a>],
        output: &'a Stage<'a>,
        compute: Compute,
    ) -> Self {
        Self { models, stages, output, compute, planned: Vec::new(), known: HashMap::new() }
    }

    /// Refuses recipes of which no input is a model's alone.
    pub(super) fn check_rounding(&self) -> Result<(), Problem> {
        let place = &self.output.recipe.merge_method.place;
        let hint = "leave `--compute fp8` out";
        if !self.stages.is_empty() {
            let message = "`--compute fp8` rounds what models have, and this recipe merges what others make";
            return Err(Problem::at(place.clone(), message).with_hint(hint));
        }
        if self.output.method.statistics().is_some() {
            let message = format!(
                "`{}` reads statistics beside models, which `--compute fp8` knows no rounding for",
                self.output.method.name()
            );
            return Err(Problem::at(place.clone(), message).with_hint(hint));
        }
        Ok(())
    }

    /// The distinct formulas.
    pub(super) fn planned(self) -> Vec<PlannedFormula> {
        self.planned
    }

    /// The step of a tensor of the output.
    pub(super) fn step(&mut self, tensor: &Matched) -> Result<Step, Problem> {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        let dtype = self.output.dtype(tensor);
        let mut inputs = Inputs::default();
        if !is_float(tensor.dtype) {
            self.copied(tensor, &mut inputs);
            return Ok(Step { tensor: name, shape, dtype, action: Action::Copy, inputs: inputs.into_list() });
        }
        let graph = Graph::new();
        let mut built = Built::default();
        let output = self.expression(&graph, self.output, tensor, &mut inputs, &mut built)?;
        let method = self.output.method.name();
        let formula =
            graph.finish(output).map_err(|error| Problem::general(format!("internal: {method}: {error}")))?;
        let formula = match self.compute {
            Compute::Fp8 if built.members.len() > 1 || built.base.is_some() => formula
                .with_rounded(&built.members, built.base)
                .map_err(|error| internal(self.output, &error))?,
            Compute::Fp8 | Compute::Exact => formula,
        };
        let rows = built.rows.map_or_else(|| RowLayout::of(columns(&tensor.shape)), |seen| seen.rows);
        let action = Action::compute(self.intern(formula), rows);
        Ok(Step { tensor: name, shape, dtype, action, inputs: inputs.into_list() })
    }

    /// The value of a tensor of a stage, in terms of tensors of checkpoints.
    fn expression<'g>(
        &self,
        graph: &'g Graph,
        stage: &Stage<'_>,
        tensor: &Matched,
        inputs: &mut Inputs,
        built: &mut Built<'g>,
    ) -> Result<Expr<'g>, Problem> {
        let Some(cast) = tensor.cast.map(|cast| &stage.casts[cast]) else {
            let mut values = self.values(graph, tensor, inputs, built)?;
            return Ok(values.swap_remove(0));
        };
        let named = |member: &Member| Member {
            tensor: tensor.filtered_by[usize::from(member.input)].clone(),
            ..member.clone()
        };
        let base = cast.base.as_ref().map(named);
        let members: Vec<Member> = cast.members.iter().map(named).collect();
        let stored = self.statistics(stage, cast, tensor, &members)?;
        // They are inputs after those that are models.
        let mut next = tensor.inputs.len() as u16..;
        let statistics: Vec<Option<u16>> =
            stored.iter().map(|stored| stored.as_ref().and_then(|_| next.next())).collect();
        let asks_for_heads = stage.method.parameters().iter().any(|spec| spec.name == methods::GRANULARITY);
        let found = asks_for_heads.then(|| heads(&tensor.name, &tensor.shape, stage.config.as_ref()));
        let mut context = Tensor {
            name: &tensor.name,
            shape: &tensor.shape,
            elements: tensor.shape.iter().map(|&side| side as u64).product(),
            columns: columns(&tensor.shape),
            heads: found.as_ref().map_or(Ok(None), |found| found.as_ref().copied().map_err(String::as_str)),
            position: tensor.position,
            base: base.as_ref(),
            members: &members,
            statistics: &statistics,
            recipe: stage.recipe,
            scope: cast.scope,
            specs: stage.method.parameters(),
        };
        let rows = stage.method.rows(&context)?;
        context.columns = rows.columns;
        if let Some(fit) = stage.method.fit(&context)? {
            let is_output = std::ptr::eq(stage, self.output);
            let layers = fits::Layers { stage, is_output, models: self.models, tensor };
            return Ok(graph.input(inputs.take(layers.fitted(fit, &members, &stored)?)?));
        }
        let mut values = self.values(graph, tensor, inputs, built)?;
        for stored in stored.into_iter().flatten() {
            values.push(graph.input(inputs.number(stored.source, &stored.tensor, None)?));
        }
        let number = |member: &Member| values[usize::from(member.input)].as_input();
        built.members = members.iter().filter_map(number).collect();
        built.base = base.as_ref().and_then(number);
        if self.stages.is_empty() {
            built.rows = Some(SeenRows { rows, method: stage.method.name() });
        } else {
            built.see_rows(stage, &context, rows)?;
        }
        graph.within(&values, stage.first_stream, || stage.method.formula(graph, &context))
    }

    /// The values of the tensors that a tensor is made of.
    fn values<'g>(
        &self,
        graph: &'g Graph,
        tensor: &Matched,
        inputs: &mut Inputs,
        built: &mut Built<'g>,
    ) -> Result<Vec<Expr<'g>>, Problem> {
        let mut values = Vec::new();
        for input in &tensor.inputs {
            let model = &self.models.list[input.model];
            values.push(match model.origin {
                Origin::Source(source) => {
                    let made =
                        input.made.as_ref().or_else(|| model.tensors.get(&input.tensor)?.made.as_ref());
                    graph.input(inputs.number(source, &input.tensor, made)?)
                }
                Origin::Stage(number) => {
                    let key = (number, input.tensor.clone());
                    if let Some(&known) = built.values.get(&key) {
                        known
                    } else {
                        let stage = &self.stages[number];
                        let value =
                            self.expression(graph, stage, &stage.tensors[&input.tensor], inputs, built)?;
                        built.values.insert(key, value);
                        value
                    }
                }
            });
        }
        Ok(values)
    }

    /// Where each member's statistics of a tensor are; `None` for those whose file has none.
    fn statistics(
        &self,
        stage: &Stage<'_>,
        cast: &Cast<'_>,
        tensor: &Matched,
        members: &[Member],
    ) -> Result<Vec<Option<Stored>>, Problem> {
        let Some(statistics) = stage.method.statistics() else { return Ok(Vec::new()) };
        let of_member = |(&source, member): (&usize, &Member)| {
            let Source { model, checkpoint, .. } = &self.models.sources[source];
            let name = &member.tensor;
            let Some(entry) = checkpoint.tensor(name) else { return Ok(None) };
            let is_moved = tensor.inputs[usize::from(member.input)].made.is_some();
            if is_moved && statistics.is_by_row() {
                return Err(moved(model, name));
            }
            let expected = statistics.shape(&tensor.shape);
            if expected.as_ref() == Some(&entry.shape) && is_float(entry.dtype) {
                return Ok(Some(Stored { source, tensor: name.clone() }));
            }
            let (dtype, found) = (entry.dtype, &entry.shape);
            let expected = expected
                .map_or_else(|| "left out".to_owned(), |expected| format!("F32, F16 or BF16 {expected:?}"));
            let message = format!("`{name}` is {dtype} {found:?} in `{model}`, but has to be {expected}");
            Err(Problem::general(message).with_hint("are these the statistics of this model?"))
        };
        cast.statistics.iter().zip(members).map(of_member).collect()
    }

    /// The tensors of checkpoints that a tensor is copied from, which have to agree.
    fn copied(&self, tensor: &Matched, inputs: &mut Inputs) {
        for input in &tensor.inputs {
            match self.models.list[input.model].origin {
                Origin::Source(source) => {
                    let made = None;
                    inputs.set.insert(StepInput { source, tensor: input.tensor.clone(), made });
                }
                Origin::Stage(stage) => self.copied(&self.stages[stage].tensors[&input.tensor], inputs),
            }
        }
    }

    fn intern(&mut self, formula: Formula) -> usize {
        let formula = Arc::new(formula);
        *self.known.entry(Arc::clone(&formula)).or_insert_with(|| {
            self.planned.push(PlannedFormula::of(formula));
            self.planned.len() - 1
        })
    }
}

impl PlannedFormula {
    /// What the plan says of a formula.
    pub(super) fn of(formula: Arc<Formula>) -> Self {
        let passes = Schedule::of(&formula).passes;
        Self {
            text: formula.to_string(),
            // The last pass of a formula that measures has nothing to do.
            passes: passes.len() - usize::from(formula.measures()),
            registers: registers_of(&formula),
            only_on_cpu: obstacle(&formula),
            reads: passes.into_iter().map(|pass| pass.reads).collect(),
            formula,
        }
    }
}

/// What a graph has been built of so far.
#[derive(Default)]
struct Built<'g> {
    /// Values of stages' tensors.
    values: HashMap<(usize, String), Expr<'g>>,
    rows: Option<SeenRows>,
    /// The inputs that are members, and the one that is the base, where they are tensors of models.
    members: Vec<u16>,
    base: Option<u16>,
}

/// What the rows of a tensor are, and to which method.
#[derive(Clone, Copy)]
struct SeenRows {
    rows: RowLayout,
    method: &'static str,
}

impl Built<'_> {
    /// Takes in how a stage's formula sees the rows of its tensor. One pass has rows of one length; a formula that computes
    /// nothing by row fits any.
    fn see_rows(&mut self, stage: &Stage<'_>, context: &Tensor<'_>, rows: RowLayout) -> Result<(), Problem> {
        let method = stage.method.name();
        match self.rows {
            Some(seen) if seen.rows != rows => {
                if !computes_by_row(stage, context)? {
                    return Ok(());
                }
                let message = format!(
                    "`{}` is made by `{method}` of what `{}` makes, and the two see rows of {} and of {} elements in it",
                    context.name, seen.method, rows.columns, seen.rows.columns
                );
                let place = stage.recipe.merge_method.place.clone();
                let hint = "write the earlier recipe's result to a folder of its own with --intermediate-dir";
                Err(Problem::at(place, message).with_hint(hint))
            }
            Some(_) => Ok(()),
            None => {
                if computes_by_row(stage, context)? {
                    self.rows = Some(SeenRows { rows, method });
                }
                Ok(())
            }
        }
    }
}

/// Whether the formula of a stage, taken by itself, has a value for each row or column.
fn computes_by_row(stage: &Stage<'_>, context: &Tensor<'_>) -> Result<bool, Problem> {
    let graph = Graph::new();
    let output = stage.method.formula(&graph, context)?;
    let formula = graph.finish(output).map_err(|error| internal(stage, &error))?;
    Ok(formula.computes_by_row())
}

/// Statistics by row, of a tensor whose rows the merge puts into another order.
fn moved(file: &str, tensor: &str) -> Problem {
    let message =
        format!("the rows of `{tensor}` are put into another order, in which `{file}` does not have them");
    Problem::general(message).with_hint("leave that tensor out of the statistics: it then counts as unknown")
}

fn internal(stage: &Stage<'_>, error: &FormulaError) -> Problem {
    Problem::general(format!("internal: {}: {error}", stage.method.name()))
}

/// The tensors of checkpoints that a step reads, in the order in which they are met.
#[derive(Default)]
struct Inputs {
    set: IndexSet<StepInput>,
}

impl Inputs {
    fn number(&mut self, source: usize, tensor: &str, made: Option<&Made>) -> Result<u16, Problem> {
        self.take(StepInput { source, tensor: tensor.to_owned(), made: made.cloned() })
    }

    fn take(&mut self, input: StepInput) -> Result<u16, Problem> {
        let (number, _) = self.set.insert_full(input);
        u16::try_from(number)
            .map_err(|_| Problem::general(format!("a tensor is made of more than {} tensors", u16::MAX)))
    }

    fn into_list(self) -> Vec<StepInput> {
        self.set.into_iter().collect()
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
