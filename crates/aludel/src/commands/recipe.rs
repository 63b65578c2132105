//! Reads a recipe and plans its merge; whatever is wrong becomes a [`Refusal`] that names the recipe.

use std::path::Path;

use aludel_document::{Problem, Problems};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::{ExpertsRecipe, Recipe};
use aludel_merge::sequence::{Run, Sequence};

use super::moe;
use super::text::{self, Kind};
use crate::failure::Refusal;

pub(super) const RECIPE: Kind =
    Kind { noun: "recipe", hint: "give the recipe's YAML file, then the output folder" };

/// Plans the merge of the recipe at a path; `-` is standard input.
pub(super) fn plan(path: &Path, options: &PlanOptions) -> Result<Plan, Refusal> {
    let (name, text) = text::read(path, RECIPE)?;
    plan_text(&name, &text, options)
}

/// As [`plan`], for showing: also of a recipe that builds a mixture of experts.
pub(super) fn plan_any(path: &Path, options: &PlanOptions) -> anyhow::Result<Plan> {
    let (name, text) = text::read(path, RECIPE)?;
    if ExpertsRecipe::is_one(&text) {
        return moe::plan(&name, &text, options);
    }
    Ok(plan_text(&name, &text, options)?)
}

/// Plans the merge of a recipe that goes by this name.
pub(super) fn plan_text(name: &str, text: &str, options: &PlanOptions) -> Result<Plan, Refusal> {
    let recipe = parsed(name, text)?;
    Plan::new(&recipe, options).map_err(|problems| refusal(name, problems))
}

/// The merges of a recipe with several documents, each by itself.
pub(super) struct Runs {
    recipe: String,
    sequence: Sequence,
    /// What the runs will be; only the first holds before the others have run.
    pub(super) foreseen: Vec<Plan>,
}

impl Runs {
    /// Plans a merge for each document of the recipe at a path, with the results in between in subfolders of `results`.
    pub(super) fn of(path: &Path, options: &PlanOptions, results: &Path) -> Result<Self, Refusal> {
        let (name, text) = text::read(path, RECIPE)?;
        let refuse = |problems: Problems| refusal(&name, problems);
        let recipe = parsed(&name, &text)?;
        let sequence = Sequence::of(recipe, options, results).map_err(refuse)?;
        let foreseen = sequence.plans().map_err(refuse)?;
        Ok(Self { recipe: name, sequence, foreseen })
    }

    /// The runs, in order.
    pub(super) fn runs(&self) -> &[Run] {
        self.sequence.runs()
    }

    /// The plan of a run, when those before it have run.
    pub(super) fn plan(&self, run: &Run) -> Result<Plan, Refusal> {
        run.plan().map_err(|problems| refusal(&self.recipe, problems))
    }
}

/// The recipe of a merge; one of another kind is sent to its own command.
fn parsed(name: &str, text: &str) -> Result<Recipe, Refusal> {
    if ExpertsRecipe::is_one(text) {
        let message = "this recipe has `experts`: it is no merge, but builds a mixture of experts";
        let problem = Problem::general(message).with_hint("give it to `aludel moe`");
        return Err(refusal(name, problem.into()));
    }
    Recipe::parse(text).map_err(|problems| refusal(name, problems))
}

fn refusal(name: &str, problems: Problems) -> Refusal {
    Refusal { recipe: Some(name.to_owned()), problems: problems.in_order_of_place() }
}
