//! `aludel moe`: builds a mixture of experts out of dense models.

mod gates;

use std::path::Path;

use aludel_document::Problems;
use aludel_merge::plan::{Gates, Plan, PlanOptions};
use aludel_merge::recipe::ExpertsRecipe;

use crate::args::MoeArguments;
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::settings::plan_options;

use super::recipe::RECIPE;
use super::{device, merge, text};

/// Plans, runs the base model over the prompts where gates are made of that, plans anew with what it said, and builds.
pub(super) fn run(arguments: &MoeArguments, printer: &Printer) -> anyhow::Result<()> {
    arguments.mergekit.heed(printer)?;
    if arguments.load_in_4bit || arguments.load_in_8bit {
        let note = "--load-in-4bit and --load-in-8bit have no effect: the base model runs as it is stored, with sums in float32";
        printer.warning(&note);
    }
    let options = PlanOptions {
        hub: hub::open(printer),
        ..plan_options(
            &arguments.planning,
            arguments.seed.seed,
            Some(&arguments.output),
            arguments.writing.folder.force,
        )
    };
    let (name, recipe) = read(&arguments.recipe)?;
    if let Some(problem) = recipe.all_the_same().filter(|_| !arguments.all_the_same) {
        return Err(Refusal { recipe: Some(name), problems: problem.into() }.into());
    }
    let prompts = gates::tokenized(&name, &recipe, &options.hub)?;
    // What does not fit is told before the base model runs.
    let mut plan = planned(&name, &recipe, &gates::known(&recipe, &prompts), &options)?;
    if recipe.gate_mode.value.is_hidden() {
        let device = device::with_threads(arguments.planning.threads)?;
        let rows = gates::of_hidden_states(&name, &recipe, &prompts, device, &options.hub, printer)?;
        plan = planned(&name, &recipe, &Gates::Rows(rows), &options)?;
    }
    merge::carry_out(&plan, &arguments.output, &arguments.writing, printer)
}

/// Plans a mixture for showing; its gates may be open.
pub(super) fn plan(name: &str, text: &str, options: &PlanOptions) -> anyhow::Result<Plan> {
    let recipe = parsed(name, text)?;
    let prompts = gates::tokenized(name, &recipe, &options.hub)?;
    Ok(planned(name, &recipe, &gates::known(&recipe, &prompts), options)?)
}

/// The recipe of a file, and the file's name.
fn read(path: &Path) -> Result<(String, ExpertsRecipe), Refusal> {
    let (name, text) = text::read(path, RECIPE)?;
    let recipe = parsed(&name, &text)?;
    Ok((name, recipe))
}

fn parsed(name: &str, text: &str) -> Result<ExpertsRecipe, Refusal> {
    ExpertsRecipe::parse(text).map_err(refusal(name))
}

fn planned(
    name: &str,
    recipe: &ExpertsRecipe,
    gates: &Gates,
    options: &PlanOptions,
) -> Result<Plan, Refusal> {
    Plan::of_experts(recipe, gates, options).map_err(refusal(name))
}

fn refusal(name: &str) -> impl Fn(Problems) -> Refusal {
    |problems| Refusal { recipe: Some(name.to_owned()), problems: problems.in_order_of_place() }
}
