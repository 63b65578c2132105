//! Reads a recipe and plans its merge; whatever is wrong becomes a [`Refusal`] that names the recipe.

use std::path::Path;

use aludel_document::Problems;
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;

use super::text::{self, Kind};
use crate::failure::Refusal;

const RECIPE: Kind = Kind { noun: "recipe", hint: "give the recipe's YAML file, then the output folder" };

/// Plans the merge of the recipe at a path; `-` is standard input.
pub(super) fn plan(path: &Path, options: &PlanOptions) -> Result<Plan, Refusal> {
    let (name, text) = text::read(path, RECIPE)?;
    plan_text(&name, &text, options)
}

/// Plans the merge of a recipe that goes by this name.
pub(super) fn plan_text(name: &str, text: &str, options: &PlanOptions) -> Result<Plan, Refusal> {
    let refuse = |problems: Problems| Refusal {
        recipe: Some(name.to_owned()),
        problems: problems.in_order_of_place(),
    };
    let recipe = Recipe::parse(text).map_err(refuse)?;
    Plan::new(&recipe, options).map_err(refuse)
}
