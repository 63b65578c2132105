//! Finds out what gates are made of: reads prompts, and runs the base model over them.
//!
//! In: a recipe. Out: token ids and hidden states as plain numbers, for a planner that knows neither tokenizers nor models. What rows are
//! made of them otherwise is the planner's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aludel_document::Problem;
use aludel_hub::Hub;
use aludel_kernels::nn::{Cpu, Device};
use aludel_merge::plan::{GateRows, Gates, PromptTokens};
use aludel_merge::recipe::{Expert, ExpertsRecipe, GateMode};
use aludel_model::decoder::{Decoder, Keep};
use aludel_model::{Batch, Tokenizer, Use};

use crate::failure::{Interrupted, Refusal};
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};
use crate::signals::Signals;

/// The prompts of a gated expert, each as token ids.
#[derive(Debug, Default)]
pub(super) struct Prompts {
    positive: Vec<Vec<u32>>,
    negative: Vec<Vec<u32>>,
}

/// Reads the prompts of every gated expert with the base model's tokenizer: each begins with its `bos_token` where it has one, as
/// mergekit has it. None where gates are made of chance.
pub(super) fn tokenized(name: &str, recipe: &ExpertsRecipe, hub: &Hub) -> anyhow::Result<Vec<Prompts>> {
    if !recipe.gate_mode.value.reads_prompts() {
        return Ok(Vec::new());
    }
    let folder = base_folder(recipe, hub)?;
    let tokenizer = Tokenizer::open(&folder).map_err(|error| refuse(name, recipe, &error.to_string()))?;
    let bos = tokenizer.special().texts().iter().find(|(role, _)| *role == "bos_token");
    let bos = bos.map_or("", |(_, text)| text.as_str());
    let read = |prompts: &[String]| -> anyhow::Result<Vec<Vec<u32>>> {
        let one = |prompt: &String| {
            let ids = tokenizer.encode_plain(&format!("{bos}{prompt}"))?.ids;
            if ids.is_empty() {
                let message = format!("the prompt {} has no tokens", aludel_document::quoted(prompt));
                anyhow::bail!(refuse(name, recipe, &message));
            }
            Ok(ids)
        };
        prompts.iter().map(one).collect()
    };
    let prompts = |expert: &&Expert| {
        Ok(Prompts { positive: read(&expert.positive_prompts)?, negative: read(&expert.negative_prompts)? })
    };
    recipe.gated().iter().map(prompts).collect()
}

/// What is known of the gates without running a model.
pub(super) fn known(recipe: &ExpertsRecipe, prompts: &[Prompts]) -> Gates {
    if !recipe.gate_mode.value.reads_prompts() {
        return Gates::Unknown;
    }
    let joined = |prompts: &Prompts| PromptTokens {
        positive: prompts.positive.concat(),
        negative: prompts.negative.concat(),
    };
    Gates::Tokens(prompts.iter().map(joined).collect())
}

/// The rows that hidden states of the base model give: for each layer what goes into it, at the last token of a prompt or its mean over
/// the tokens; the mean over the positive prompts less that over the negative ones, of norm 1.
pub(super) fn of_hidden_states(
    name: &str,
    recipe: &ExpertsRecipe,
    prompts: &[Prompts],
    device: Arc<Cpu>,
    hub: &Hub,
    printer: &Printer,
) -> anyhow::Result<GateRows> {
    let folder = base_folder(recipe, hub)?;
    let opened = Decoder::open(&folder, device, Use::Frozen);
    let model = opened.map_err(|error| refuse(name, recipe, &error.to_string()))?;
    let (layers, width) = (model.config().layers.len(), model.config().hidden);
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let total = prompts.iter().map(|prompts| prompts.positive.len() + prompts.negative.len()).sum::<usize>();
    let mut done = 0;
    let mut mean = |prompts: &[Vec<u32>]| -> anyhow::Result<Vec<f64>> {
        let mut sum = vec![0.0; layers * width];
        for prompt in prompts {
            if let Some(signal) = signals.received() {
                return Err(Interrupted { signal, left: None }.into());
            }
            let states = states(&model, recipe.gate_mode.value, prompt)?;
            sum.iter_mut().zip(states).for_each(|(sum, state)| *sum += state / prompts.len() as f64);
            done += 1;
            progress.show(Stage::measured(
                "reading prompts",
                done as u64,
                total as u64,
                format!("{done} of {total}"),
            ));
        }
        Ok(sum)
    };
    let mut values = vec![0.0; layers * prompts.len() * width];
    for (index, expert) in prompts.iter().enumerate() {
        let mut rows = mean(&expert.positive)?;
        let negative = mean(&expert.negative)?;
        rows.iter_mut().zip(negative).for_each(|(row, negative)| *row -= negative);
        for (layer, row) in rows.chunks(width).enumerate() {
            let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt().max(LEAST_NORM);
            let to = &mut values[(layer * prompts.len() + index) * width..][..width];
            to.iter_mut().zip(row).for_each(|(to, value)| *to = (value / norm) as f32);
        }
    }
    drop(progress);
    Ok(GateRows { values: values.into(), layers, experts: prompts.len(), width })
}

/// What goes into each layer for a prompt, `layers * width` elements.
fn states(model: &Decoder<Cpu>, mode: GateMode, prompt: &[u32]) -> anyhow::Result<Vec<f64>> {
    let layers = model.config().layers.len();
    let (width, rows) = (model.config().hidden, prompt.len());
    let wanted: Vec<usize> = (0..layers).collect();
    let pass = model.forward(&Batch::pack([prompt]), Keep::Nothing, &wanted)?;
    let mut all = Vec::with_capacity(layers * width);
    for layer in wanted {
        let Some(state) = pass.state(layer) else { unreachable!("it was asked for") };
        if mode == GateMode::HiddenAverage {
            let mut sum = vec![0.0; width];
            for row in model.device().read(state, 0..rows * width)?.chunks(width) {
                sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            all.extend(sum.into_iter().map(|sum| sum / rows as f64));
        } else {
            let last = model.device().read(state, (rows - 1) * width..rows * width)?;
            all.extend(last.into_iter().map(f64::from));
        }
    }
    Ok(all)
}

/// The floor of norms, as mergekit has it.
const LEAST_NORM: f64 = 1e-8;

/// Where the base model lies; without an adapter, which only its weights know of.
fn base_folder(recipe: &ExpertsRecipe, hub: &Hub) -> anyhow::Result<PathBuf> {
    let reference = &recipe.base_model;
    let mut model = reference.value.clone();
    if let Some((carrier, _)) = model.adapter() {
        if recipe.gate_mode.value.is_hidden() {
            let message = "hidden states of a model with an adapter are not computed by this version";
            let problem = Problem::at(reference.place.clone(), message);
            let hint = "merge the adapter first (`passthrough`), or choose `gate_mode: cheap_embed`";
            return Err(Refusal { recipe: None, problems: problem.with_hint(hint).into() }.into());
        }
        model = carrier;
    }
    Ok(hub::locate(hub, Path::new(model.text()))?)
}

fn refuse(name: &str, recipe: &ExpertsRecipe, message: &str) -> Refusal {
    let problem = Problem::at(recipe.base_model.place.clone(), message);
    Refusal { recipe: Some(name.to_owned()), problems: problem.into() }
}
