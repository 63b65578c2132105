//! Plans measurements: figures of tensors of several models, in one streamed sweep and without an output.
//!
//! In: models as a recipe names them, and what is wanted of which of their tensors. Out: a [`Plan`] whose formulas measure,
//! which [`measure`](crate::execute::measure) carries out. What the figures mean is known to those who ask for them.

use std::collections::HashMap;
use std::sync::Arc;

use aludel_checkpoint::{Dtype, Layout};
use aludel_hub::Hub;
use aludel_kernels::formula::Formula;

use super::build::{parts, reckon, widths};
use super::models::{Models, Role, Source};
use super::stacks::{only_stack, stacks};
use super::{Action, Compute, Model, Part, Plan, PlanOptions, PlannedFormula, SideFiles, Step, StepInput};
use crate::methods::RowLayout;
use crate::problem::{Problem, Problems};
use crate::recipe::Recipe;

/// Models that are looked at, opened by their headers.
#[derive(Debug)]
pub(crate) struct Opened {
    models: Models,
    /// The place among the models of each that was asked for: one may be asked for twice.
    asked: Vec<usize>,
}

/// A tensor that is measured across models.
pub(crate) struct Wanted {
    /// The step's name.
    pub tensor: String,
    /// The models, by the order in which they were asked for, and the tensor's name in them; the first gives the shape.
    pub inputs: Vec<(usize, String)>,
    /// What is measured.
    pub formula: Arc<Formula>,
}

impl Opened {
    /// Opens models that are named as in a recipe, those of a hub from there.
    pub(crate) fn open(references: &[&str], hub: &Hub) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let mut models = Models::with_stages(std::iter::empty(), hub.clone());
        let mut asked = Vec::new();
        for reference in references {
            match open(reference, &mut models) {
                Ok(model) => asked.push(model),
                Err(faults) => problems.append(faults),
            }
        }
        if problems.is_empty() { Ok(Self { models, asked }) } else { Err(problems) }
    }

    /// The model that was asked for at this place.
    pub(crate) fn model(&self, asked: usize) -> &Model {
        &self.models.list[self.asked[asked]]
    }

    /// What is read.
    pub(crate) fn sources(&self) -> &[Source] {
        &self.models.sources
    }

    /// How many layers the model has that was asked for at this place; `None` where it has none, or several stacks of them.
    pub(crate) fn layers(&self, asked: usize) -> Option<usize> {
        let stacks = stacks(self.model(asked).names());
        only_stack(&stacks).map(|stack| stack.layers.len())
    }

    /// The plan that measures all of these.
    pub(crate) fn plan(self, wanted: Vec<Wanted>, options: &PlanOptions) -> Result<Plan, Problems> {
        let mut formulas: Vec<PlannedFormula> = Vec::new();
        let mut known: HashMap<Arc<Formula>, usize> = HashMap::new();
        let mut steps = Vec::new();
        for Wanted { tensor, inputs, formula } in wanted {
            let formula = *known.entry(Arc::clone(&formula)).or_insert_with(|| {
                formulas.push(PlannedFormula::of(formula));
                formulas.len() - 1
            });
            steps.extend(self.step(tensor, &inputs, formula));
        }
        let layout =
            Layout::plan(Vec::new(), u64::MAX).map_err(|error| Problem::general(error.to_string()))?;
        let parts = parts(&steps, &self.models.sources);
        let work = reckon(&steps, &parts, &formulas, &layout, options)?;
        Ok(Plan {
            version: env!("CARGO_PKG_VERSION"),
            recipe: String::new(),
            method: "measure",
            seed: options.seed,
            allow_non_finite: true,
            part: Part::WHOLE,
            compute: Compute::Exact,
            awaited: Vec::new(),
            stages: Vec::new(),
            sources: self.models.sources,
            formulas,
            steps,
            dropped: Vec::new(),
            side_files: SideFiles::default(),
            layout,
            work,
            config: None,
            delta: None,
            statistics: Vec::new(),
            partners: Vec::new(),
            widths: widths(&parts),
        })
    }

    fn step(&self, tensor: String, inputs: &[(usize, String)], formula: usize) -> Option<Step> {
        let first = inputs.first()?;
        let shape = self.model(first.0).tensors.get(&first.1)?.shape.clone();
        let columns = shape.last().map_or(1, |&side| side.max(1) as u64);
        let inputs = inputs.iter().map(|(asked, tensor)| {
            let model = self.model(*asked);
            let made = model.tensors.get(tensor)?.made.clone();
            Some(StepInput { source: model.source()?, tensor: tensor.clone(), made })
        });
        let inputs = inputs.collect::<Option<Vec<_>>>()?;
        // Nothing is written, so no type is.
        Some(Step {
            tensor,
            shape,
            dtype: Dtype::F32,
            action: Action::compute(formula, RowLayout::of(columns)),
            inputs,
        })
    }
}

/// Opens one model; its position among the models. A recipe of it alone is what knows all that may stand for a model.
pub(super) fn open(reference: &str, models: &mut Models) -> Result<usize, Problems> {
    // A JSON string is a YAML string, whatever is in it.
    let name = serde_json::Value::from(reference);
    let recipe = Recipe::parse(&format!("merge_method: passthrough\nmodels:\n  - model: {name}\n"));
    let recipe = recipe.map_err(nowhere)?;
    let mut problems = Problems::new();
    let mut entries = recipe.scopes().flat_map(|scope| &scope.slice.sources);
    let model = entries.next().and_then(|entry| models.open(&entry.reference, Role::Member, &mut problems));
    model.ok_or_else(|| nowhere(problems))
}

/// The same problems, of a document that nobody has written.
pub(super) fn nowhere(problems: Problems) -> Problems {
    let mut told = Problems::new();
    problems.into_iter().for_each(|problem| told.push(Problem { place: None, ..problem }));
    told
}
