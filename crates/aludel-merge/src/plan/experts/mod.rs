//! Plans a mixture of experts: attention, norms and embeddings of a base model, and the feed-forward layers of several models as the
//! experts of each layer.
//!
//! In: an [`ExpertsRecipe`] and its [`Gates`]. Out: a [`Plan`] as merges have it, every tensor of which is one of a model or made while
//! it is written. Reading order: `layout` (what the output can be), `config`, `gates` (what routers are made of), then here.

mod config;
mod gates;
mod layout;

pub use gates::{GateRows, Gates, PromptTokens};

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aludel_checkpoint::{Config, Dtype, is_float};
use aludel_kernels::formula::Graph;

use super::build::Draft;
use super::models::{Facts, Model, Models, Role};
use super::stacks::LayerName;
use super::tensors::{DERIVED, has_embedding, is_derived, is_head, tied_head, ties_embeddings};
use super::{Action, Dropped, Plan, PlanOptions, PlannedFormula, Step, StepInput};
use crate::derive::{Given, Made, Noisy, Readable, Stored};
use crate::methods::RowLayout;
use crate::problem::{Problem, Problems};
use crate::recipe::{Expert, ExpertsRecipe};
use crate::streams::stream_key;
use gates::Rows;
use layout::{LAST_PROJECTION, Layout, PROJECTIONS, Shared};

/// The method that plans and reports of mixtures name.
const METHOD: &str = "moe";

/// What the names of layers' tensors begin with, in all families that are read.
const LAYERS: &str = "model.layers.";

pub(super) fn plan(recipe: &ExpertsRecipe, gates: &Gates, options: &PlanOptions) -> Result<Plan, Problems> {
    let mut problems = Problems::new();
    let mut models = Models::with_stages(std::iter::empty(), options.hub.clone());
    let all = || recipe.experts.iter().chain(&recipe.shared_experts);
    let is_expert = all().any(|expert| expert.source_model.value == recipe.base_model.value);
    let role = if is_expert { Role::Member } else { Role::Base };
    let base = models.open(&recipe.base_model, role, &mut problems);
    let experts: Vec<Option<usize>> =
        all().map(|expert| models.open(&expert.source_model, Role::Member, &mut problems)).collect();
    let experts: Option<Vec<usize>> = experts.into_iter().collect();
    let (Some(base), Some(experts)) = (base, experts) else { return Err(problems) };
    let building = Building::new(recipe, &models, base, experts, options.seed)?;
    let rows = Rows::of(&building, gates)?;
    let (steps, formulas) = building.steps(&rows, &mut problems);
    let config = problems.take(building.config());
    let dropped = building.dropped(&steps);
    let awaited = matches!(rows, Rows::Awaited).then(|| {
        let (count, name) = (recipe.gated().len(), recipe.base_model.value.text());
        format!("gates are made of what `{name}` makes of the prompts of {count} experts")
    });
    let side_files = models.list[base].side_files.clone();
    let draft = Draft {
        recipe: recipe.text.to_string(),
        method: METHOD,
        stages: Vec::new(),
        formulas,
        steps,
        dropped,
        side_files,
        config,
        delta: None,
        statistics: Vec::new(),
        awaited: awaited.into_iter().collect(),
        sources: models.sources,
    };
    draft.finished(options, problems)
}

/// A mixture in the making.
struct Building<'a> {
    recipe: &'a ExpertsRecipe,
    models: &'a Models,
    /// The positions of the models among [`Models::list`]: the base, and those of the experts, shared ones last.
    base: usize,
    experts: Vec<usize>,
    seed: u64,
    family: String,
    layout: &'static Layout,
    /// The base's layers, and the elements of a hidden state.
    layers: usize,
    width: usize,
}

impl<'a> Building<'a> {
    /// Takes in models that are of one family, and for which there is a layout.
    fn new(
        recipe: &'a ExpertsRecipe,
        models: &'a Models,
        base: usize,
        experts: Vec<usize>,
        seed: u64,
    ) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let family = problems.take(family(&models.list[base], &recipe.base_model));
        let all = recipe.experts.iter().chain(&recipe.shared_experts);
        for (expert, &model) in all.zip(&experts) {
            let of_expert = problems.take(self::family(&models.list[model], &expert.source_model));
            if let (Some(family), Some(of_expert)) = (&family, of_expert)
                && *family != of_expert
            {
                let name = recipe.base_model.value.text();
                let message =
                    format!("this model is of the family `{of_expert}`, and `{name}` is `{family}`");
                let hint = "the experts of a mixture are models of one family with their base";
                problems.push(Problem::at(expert.source_model.place.clone(), message).with_hint(hint));
            }
        }
        let layout = family.as_ref().and_then(|family| problems.take(Layout::choose(recipe, family)));
        let config = models.list[base].config.as_ref();
        let width = config.and_then(|config| config.value("hidden_size")?.as_u64());
        match (family, layout) {
            (Some(family), Some(layout)) if problems.is_empty() => Ok(Self {
                recipe,
                models,
                base,
                experts,
                seed,
                family,
                layout,
                layers: config.and_then(Config::hidden_layers).unwrap_or(0),
                width: width.unwrap_or(0) as usize,
            }),
            _ => Err(problems),
        }
    }

    fn model(&self, model: usize) -> &Model {
        &self.models.list[model]
    }

    fn config(&self) -> Result<Config, Problem> {
        let Some(base) = &self.model(self.base).config else { unreachable!("its family is known") };
        config::config_of(base, &self.family, self.layout, self.recipe)
    }

    /// A tensor of a model.
    fn readable(&self, model: usize, name: &str) -> Result<(Readable, &Facts), Problem> {
        let model = self.model(model);
        let found = model.tensors.get(name).and_then(|facts| Some((model.source()?, facts)));
        let (source, facts) =
            found.ok_or_else(|| Problem::general(format!("`{}` has no tensor `{name}`", model.name)))?;
        if !is_float(facts.dtype) {
            let message = format!("`{name}` of `{}` is {}, not a type of weights", model.name, facts.dtype);
            return Err(Problem::general(message));
        }
        let stored = Stored { source, tensor: name.to_owned() };
        Ok((Readable { stored, made: facts.made.clone() }, facts))
    }

    /// Every tensor of the output, in the order of the base's.
    fn steps(&self, rows: &Rows, problems: &mut Problems) -> (Vec<Step>, Vec<PlannedFormula>) {
        let mut steps = Steps { building: self, steps: Vec::new(), formulas: Formulas::default() };
        for name in self.model(self.base).names() {
            if let Err(problem) = steps.of_base(name, problems) {
                problems.push(problem);
            }
        }
        for layer in 0..self.layers {
            steps.block(layer, rows, problems);
        }
        problems.append(self.misfits());
        (steps.steps, steps.formulas.list)
    }

    /// The name of a tensor of a layer's feed-forward part in the models.
    fn projection(layer: usize, projection: &str) -> String {
        format!("{LAYERS}{layer}.mlp.{projection}.weight")
    }

    /// Tensors of experts' feed-forward layers that the base has none beside of: deeper models, and biases.
    fn misfits(&self) -> Problems {
        let mut problems = Problems::new();
        let all = self.recipe.experts.iter().chain(&self.recipe.shared_experts);
        for (expert, &model) in all.zip(&self.experts).filter(|(_, model)| **model != self.base) {
            let is_misfit = |name: &&str| {
                let is_of_layer = LayerName::of(name).is_some_and(|name| name.rest.starts_with("mlp."));
                is_of_layer && layer_of_projection(name).is_none_or(|layer| layer >= self.layers)
            };
            if let Some(name) = self.model(model).names().find(is_misfit) {
                let message = format!("`{name}` has no place in {} made of this base", self.layout.name);
                let hint = "experts have the layers of the base, each of three projections without a bias";
                problems.push(Problem::at(expert.source_model.place.clone(), message).with_hint(hint));
            }
        }
        problems
    }

    /// Why the output has nothing of a tensor of the base, if so.
    fn reason_to_drop(&self, name: &str) -> Option<String> {
        let base = self.model(self.base);
        if is_head(name) && ties_embeddings(base) && has_embedding(base) {
            return Some(tied_head(base));
        }
        if is_derived(name) {
            return Some(DERIVED.to_owned());
        }
        let layer = layer_of_projection(name).filter(|&layer| layer < self.layers);
        layer.map(|_| "the feed-forward layers are those of the experts".to_owned())
    }

    /// Every tensor of a model that the output has nothing of, with the reason.
    fn dropped(&self, steps: &[Step]) -> Vec<Dropped> {
        let inputs = steps.iter().flat_map(|step| &step.inputs);
        let used: HashSet<Stored> = inputs.flat_map(StepInput::reads).collect();
        let mut dropped = Vec::new();
        for (source, model) in self.models.sources.iter().enumerate() {
            for left_out in model.checkpoint.left_out() {
                let (tensor, reason) = (left_out.name.clone(), left_out.reason.clone());
                dropped.push(Dropped { source, tensor, reason });
            }
            let is_base = self.model(self.base).source() == Some(source);
            for tensor in model.checkpoint.tensors().keys().chain(model.checkpoint.encoded().keys()) {
                if used.contains(&Stored { source, tensor: tensor.clone() }) {
                    continue;
                }
                let of_base = is_base.then(|| self.reason_to_drop(tensor)).flatten();
                let reason =
                    of_base.unwrap_or_else(|| "only the feed-forward layers of an expert are taken".into());
                dropped.push(Dropped { source, tensor: tensor.clone(), reason });
            }
        }
        dropped
    }
}

/// The family of a model: its `model_type`.
fn family(
    model: &Model,
    reference: &aludel_document::Located<crate::recipe::ModelReference>,
) -> Result<String, Problem> {
    let family = model.config.as_ref().and_then(|config| config.value("model_type")?.as_str());
    family.map(str::to_owned).ok_or_else(|| {
        let message = format!("`{}` has no config.json that names its `model_type`", model.name);
        Problem::at(reference.place.clone(), message)
            .with_hint("give a model folder as transformers saves it")
    })
}

/// The layer of a projection that experts are made of.
fn layer_of_projection(name: &str) -> Option<usize> {
    let LayerName { prefix: LAYERS, layer, rest } = LayerName::of(name)? else { return None };
    let projection = rest.strip_prefix("mlp.")?.strip_suffix(".weight")?;
    PROJECTIONS.contains(&projection).then_some(layer)
}

/// The steps of a mixture, as they are found.
struct Steps<'a> {
    building: &'a Building<'a>,
    steps: Vec<Step>,
    formulas: Formulas,
}

impl Steps<'_> {
    /// A tensor that comes from the base as it is.
    fn of_base(&mut self, name: &str, problems: &mut Problems) -> Result<(), Problem> {
        let Building { layout, base, .. } = *self.building;
        if self.building.reason_to_drop(name).is_some() {
            return Ok(());
        }
        let has_place = match LayerName::of(name) {
            Some(LayerName { prefix: LAYERS, rest, .. }) => layout.takes_over(rest),
            _ => matches!(name, "model.embed_tokens.weight" | "model.norm.weight") || is_head(name),
        };
        if !has_place {
            let base = &self.building.model(base).name;
            let message = format!("`{name}` of `{base}` has no place in {}", layout.name);
            let hint =
                "another `architecture` may have one; leaving it out would change what the model computes";
            return Err(Problem::general(message).with_hint(hint));
        }
        let (input, facts) = self.building.readable(base, name)?;
        let (shape, dtype) = (facts.shape.clone(), facts.dtype);
        problems.take(self.push(name.to_owned(), shape, dtype, input, 1.0));
        Ok(())
    }

    /// The router, the experts and the shared experts of a layer.
    fn block(&mut self, layer: usize, rows: &Rows, problems: &mut Problems) {
        let Building { recipe, layout, ref experts, seed, width, .. } = *self.building;
        let module = format!("{LAYERS}{layer}.{}", layout.block);
        let routed = recipe.experts.len();
        for (index, (expert, &model)) in recipe.experts.iter().zip(experts).enumerate() {
            let module = format!("{module}.experts.{index}");
            self.expert(layer, &module, expert, model, layout.projections, problems);
        }
        for (expert, &model) in recipe.shared_experts.iter().zip(&experts[routed..]) {
            let module = format!("{module}.{}", layout.shared_module);
            self.expert(layer, &module, expert, model, PROJECTIONS, problems);
        }
        let mut routers = vec![(format!("{module}.gate.weight"), (0, routed))];
        if layout.shared == Shared::OneGated {
            routers.push((format!("{module}.shared_expert_gate.weight"), (routed, 1)));
        }
        for (name, experts) in routers {
            let made = rows.made(&name, seed, layer, experts, width);
            self.made(layer, name, vec![experts.1, width], made, problems);
        }
        if layout.needs_biases {
            self.biases(layer, problems);
        }
    }

    /// The projections of one expert of a layer.
    fn expert(
        &mut self,
        layer: usize,
        module: &str,
        expert: &Expert,
        model: usize,
        names: [&str; 3],
        problems: &mut Problems,
    ) {
        for (projection, name) in PROJECTIONS.into_iter().zip(names) {
            let (read, name) = (Building::projection(layer, projection), format!("{module}.{name}.weight"));
            let step = self.projection(&read, name, expert, model, projection == LAST_PROJECTION);
            problems.take(step.map_err(|problem| Problem {
                place: problem.place.or_else(|| Some(expert.source_model.place.clone())),
                ..problem
            }));
        }
    }

    fn projection(
        &mut self,
        read: &str,
        name: String,
        expert: &Expert,
        model: usize,
        is_last: bool,
    ) -> Result<(), Problem> {
        let (_, of_base) = self.building.readable(self.building.base, read)?;
        let (mut input, facts) = self.building.readable(model, read)?;
        if facts.shape != of_base.shape {
            let (of_expert, base) =
                (&self.building.model(model).name, &self.building.model(self.building.base).name);
            let (shape, expected) = (&facts.shape, &of_base.shape);
            let message = format!("`{read}` is {shape:?} in `{of_expert}` and {expected:?} in `{base}`");
            return Err(Problem::general(message).with_hint("all experts have the shape of the base"));
        }
        let (shape, dtype) = (facts.shape.clone(), of_base.dtype);
        if let Some(scale) = expert.noise_scale.filter(|&scale| scale != 0.0) {
            let (stored, key) = (input.stored.clone(), stream_key(self.building.seed, &name, 0));
            let made = Made::by(Noisy { weight: input, deviation: scale as f32, key });
            input = Readable { stored, made: Some(made) };
        }
        let scale = expert.residual_scale.filter(|_| is_last).unwrap_or(1.0);
        self.push(name, shape, dtype, input, scale)
    }

    /// Biases of zeros where the layout has some and the base has none.
    fn biases(&mut self, layer: usize, problems: &mut Problems) {
        for module in self.building.layout.biases {
            let name = format!("{LAYERS}{layer}.self_attn.{module}");
            let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
            if self.building.model(self.building.base).has(&bias) {
                continue;
            }
            let Some((_, facts)) = problems.take(self.building.readable(self.building.base, &weight)) else {
                continue;
            };
            let outputs = facts.shape.first().copied().unwrap_or(0);
            let zeros = Given { values: vec![0.0; outputs].into(), part: 0..outputs, what: "zeros" };
            self.made(layer, bias, vec![outputs], Made::by(zeros), problems);
        }
    }

    /// A tensor that no model has.
    fn made(&mut self, layer: usize, name: String, shape: Vec<usize>, made: Made, problems: &mut Problems) {
        let beside = Building::projection(layer, LAST_PROJECTION);
        let Some((readable, facts)) = problems.take(self.building.readable(self.building.base, &beside))
        else {
            return;
        };
        let stored = Stored { source: readable.stored.source, tensor: name.clone() };
        let input = Readable { stored, made: Some(made) };
        problems.take(self.push(name, shape, facts.dtype, input, 1.0));
    }

    fn push(
        &mut self,
        tensor: String,
        shape: Vec<usize>,
        dtype: Dtype,
        input: Readable,
        scale: f64,
    ) -> Result<(), Problem> {
        let formula = self.formulas.scaled(scale)?;
        let columns = shape.last().map_or(1, |&side| side.max(1) as u64);
        let Readable { stored: Stored { source, tensor: read }, made } = input;
        self.steps.push(Step {
            tensor,
            shape,
            dtype: self.building.recipe.dtype.map_or(dtype, Dtype::from),
            action: Action::compute(formula, RowLayout::of(columns)),
            inputs: vec![StepInput { source, tensor: read, made }],
        });
        Ok(())
    }
}

/// The formulas of a mixture: a tensor as it is, or times a number.
#[derive(Default)]
struct Formulas {
    list: Vec<PlannedFormula>,
    known: HashMap<u64, usize>,
}

impl Formulas {
    fn scaled(&mut self, scale: f64) -> Result<usize, Problem> {
        if let Some(&known) = self.known.get(&scale.to_bits()) {
            return Ok(known);
        }
        let graph = Graph::new();
        let x = graph.input(0);
        let formula = graph
            .finish(if scale == 1.0 { x } else { x * scale })
            .map_err(|error| Problem::general(format!("internal: {METHOD}: {error}")))?;
        self.list.push(PlannedFormula::of(Arc::new(formula)));
        self.known.insert(scale.to_bits(), self.list.len() - 1);
        Ok(self.list.len() - 1)
    }
}
