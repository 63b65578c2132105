//! Makes an output's linear weights FP8, each with a tensor of scales, as compressed-tensors stores them.
//!
//! In: the plan of a plain output. Out: the same with `X.weight` in E4M3 and `X.weight_scale`, one F32 for each row, and a config that
//! says so. The value of an element is divided by its row's scale in f32 and rounded once, to nearest with ties to even; nothing is
//! rounded to the output's own type before. Embeddings, heads, norms, biases, routers and towers of other senses stay as they are.
//!
//! The names and keys are those of <https://github.com/vllm-project/compressed-tensors>: format `float-quantized`, strategy `channel`
//! for weights and `token`, dynamic, for activations.

use std::collections::HashMap;
use std::sync::Arc;

use aludel_checkpoint::{Dtype, is_float};
use aludel_kernels::element::Encoding;
use serde_json::{Value, json};

use super::build::Draft;
use super::stacks::LayerName;
use super::tensors::{is_embedding, is_head};
use super::{Action, PlannedFormula, Step};
use crate::methods::RowLayout;
use crate::problem::Problem;

/// Makes the linear weights of an output FP8.
///
/// # Errors
/// An output without linear weights or without a config.
pub(super) fn quantise(draft: &mut Draft) -> Result<(), Problem> {
    let (linear, others): (Vec<&Step>, Vec<&Step>) = draft.steps.iter().partition(|step| is_linear(step));
    let kept = others.into_iter().filter_map(module_that_stays).collect::<Vec<_>>();
    let Some(config) = draft.config.as_ref().filter(|_| !linear.is_empty()) else {
        let message = "the output has no linear weights in layers that a `config.json` describes, so nothing of it can be FP8";
        return Err(Problem::general(message).with_hint("leave `--output fp8` out"));
    };
    draft.config = Some(config.with("quantization_config", quantisation(kept)));
    let mut formulas = Scaled::default();
    let mut steps = Vec::with_capacity(draft.steps.len());
    for mut step in std::mem::take(&mut draft.steps) {
        let Action::Compute { formula, columns, bands } = step.action else {
            steps.push(step);
            continue;
        };
        let is_scaled = is_linear(&step);
        let mut rows = RowLayout { columns, bands };
        if is_scaled {
            let own = RowLayout::of(step.shape[1] as u64);
            if rows != own && draft.formulas[formula].formula.computes_by_row() {
                return Err(by_head(&step.tensor));
            }
            rows = own;
        }
        let formula = match is_scaled {
            true => formulas.scaled(&draft.formulas[formula], formula)?,
            false => formulas.plain(&draft.formulas[formula], formula),
        };
        step.action = Action::compute(formula, rows);
        if is_scaled {
            step.dtype = Dtype::F8_E4M3;
            steps.push(Step {
                tensor: scales_of(&step.tensor),
                shape: vec![step.shape[0], 1],
                dtype: Dtype::F32,
                action: Action::Scales,
                inputs: Vec::new(),
            });
        }
        steps.push(step);
    }
    (draft.steps, draft.formulas) = (steps, formulas.list);
    Ok(())
}

/// The rows that FP8 has scales for are not those that the merge computes by.
fn by_head(tensor: &str) -> Problem {
    let message =
        format!("`{tensor}` is merged by head, and FP8 has a scale for each row: one pass cannot do both");
    Problem::general(message)
        .with_hint("merge without `--output fp8`, then `aludel convert MERGED OUT --dtype fp8`")
}

/// For each step, the other one of a tensor and its scales; nothing where no step has scales.
pub(super) fn partners(steps: &[Step]) -> Vec<Option<usize>> {
    let mut partners = vec![None; steps.len()];
    let is_scales = |(_, step): &(usize, &Step)| step.action == Action::Scales;
    let scales: HashMap<&str, usize> =
        steps.iter().enumerate().filter(is_scales).map(|(at, step)| (step.tensor.as_str(), at)).collect();
    for (at, step) in steps.iter().enumerate().filter(|(_, step)| step.dtype == Dtype::F8_E4M3) {
        if let Some(&scales) = scales.get(scales_of(&step.tensor).as_str()) {
            (partners[at], partners[scales]) = (Some(scales), Some(at));
        }
    }
    partners
}

fn scales_of(weight: &str) -> String {
    format!("{weight}_scale")
}

/// Whether a tensor is the weight of a linear module that is quantised: a matrix in a layer that is applied to what the layers hand on.
fn is_linear(step: &Step) -> bool {
    let Some(module) = matrix(step) else { return false };
    let last = module.rsplit('.').next().unwrap_or(module);
    let is_of_another_sense = OTHER_SENSES.iter().any(|sense| module.contains(sense));
    let is_decided_on = ROUTERS.contains(&last) || last.starts_with(CONVOLUTIONS);
    matches!(step.action, Action::Compute { .. })
        && LayerName::of(module).is_some()
        && !is_of_another_sense
        && !is_decided_on
        && !is_not_linear(&step.tensor)
}

/// The name of a module that may be linear and stays as it is.
fn module_that_stays(step: &Step) -> Option<&str> {
    matrix(step).filter(|_| !is_embedding(&step.tensor))
}

/// The module whose weight is this matrix of numbers.
fn matrix(step: &Step) -> Option<&str> {
    let is_matrix = step.shape.len() == 2 && is_float(step.dtype);
    step.tensor.strip_suffix(".weight").filter(|_| is_matrix)
}

fn is_not_linear(tensor: &str) -> bool {
    is_embedding(tensor) || is_head(tensor) || tensor.contains("embed") || tensor.contains("norm")
}

/// What the config says of the weights.
fn quantisation(kept: Vec<&str>) -> Value {
    let mut ignore: Vec<&str> = kept;
    if !ignore.iter().any(|module| module.ends_with(HEAD)) {
        // A head that is tied to the embedding has no tensor, and is a linear module all the same.
        ignore.push(HEAD);
    }
    let numbers = |strategy: &str, dynamic: bool| {
        json!({
            "num_bits": 8, "type": "float", "symmetric": true, "group_size": null, "strategy": strategy,
            "block_structure": null, "dynamic": dynamic, "actorder": null,
            "observer": if dynamic { Value::Null } else { "minmax".into() }, "observer_kwargs": {},
        })
    };
    json!({
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": numbers("channel", false),
                "input_activations": numbers("token", true),
                "output_activations": null,
            },
        },
        "kv_cache_scheme": null,
        "ignore": ignore,
    })
}

/// The formulas of the output, by those that they are made of.
#[derive(Default)]
struct Scaled {
    list: Vec<PlannedFormula>,
    known: HashMap<(usize, bool), usize>,
}

impl Scaled {
    fn plain(&mut self, formula: &PlannedFormula, number: usize) -> usize {
        *self.known.entry((number, false)).or_insert_with(|| {
            self.list.push(formula.clone());
            self.list.len() - 1
        })
    }

    /// The formula with scales. Whatever the method, a matrix is computed by rows that are those of its last side.
    fn scaled(
        &mut self,
        PlannedFormula { formula, .. }: &PlannedFormula,
        number: usize,
    ) -> Result<usize, Problem> {
        if let Some(&known) = self.known.get(&(number, true)) {
            return Ok(known);
        }
        let scaled = formula
            .scaled(Encoding::E4M3_LARGEST)
            .map_err(|error| Problem::general(format!("internal: FP8: {error}")))?;
        self.list.push(PlannedFormula::of(Arc::new(scaled)));
        self.known.insert((number, true), self.list.len() - 1);
        Ok(self.list.len() - 1)
    }
}

const HEAD: &str = "lm_head";

/// Last parts of the names of modules whose few outputs decide where the rest goes, and of Mamba's step sizes, whose weight its kernels
/// take as it is.
const ROUTERS: [&str; 5] = ["gate", "router", "shared_expert_gate", "wg", "dt_proj"];

/// What the modules of GPT-2 are called, whose weights are stored the other way round and have no rows of one output.
const CONVOLUTIONS: &str = "c_";

/// Parts of models that see or hear.
const OTHER_SENSES: [&str; 4] = ["vision", "visual", "audio", "image"];
