//! Links the recipes of a text with several documents: each may name its result, and others merge that as if it were a model.
//!
//! In: the recipes of all documents. Out: the one whose result is written, with the others as its stages in an order in
//! which each comes after what it is made of. Whether stages need files of their own is not decided here.

use std::collections::HashMap;

use aludel_document::{Located, quoted};

use super::{ModelReference, Recipe};
use crate::problem::{Problem, Problems};

/// Far more than recipes have; formulas of stages are built into one another, and that nests.
const MOST_STAGES: usize = 64;

/// Links recipes; the output is the one without a name, or the last where all have one.
pub(super) fn linked(recipes: Vec<Recipe>, problems: &mut Problems) -> Option<Recipe> {
    let names = names(&recipes, problems);
    let output = output(&recipes, problems)?;
    let uses: Vec<Vec<Use>> = recipes.iter().map(|recipe| uses(recipe, &names)).collect();
    let order = order(&recipes, &uses, output, problems);
    check_all_used(&recipes, &names, &order, problems);
    let mut recipes: Vec<Option<Recipe>> = recipes.into_iter().map(Some).collect();
    let stages = order.iter().filter(|&&stage| stage != output).filter_map(|&stage| recipes[stage].take());
    let stages = stages.collect();
    Some(Recipe { stages, ..recipes[output].take()? })
}

/// A model of a recipe that is the result of another one.
struct Use {
    stage: usize,
    reference: Located<ModelReference>,
}

fn names(recipes: &[Recipe], problems: &mut Problems) -> HashMap<String, usize> {
    let mut names: HashMap<String, usize> = HashMap::new();
    for (stage, recipe) in recipes.iter().enumerate() {
        let Some(name) = &recipe.name else { continue };
        if names.contains_key(&name.value) {
            let message = format!("{} is the name of an earlier recipe too", quoted(&name.value));
            problems.push(Problem::at(name.place.clone(), message).with_hint("give each its own name"));
        }
        names.entry(name.value.clone()).or_insert(stage);
    }
    names
}

fn output(recipes: &[Recipe], problems: &mut Problems) -> Option<usize> {
    if recipes.len() > MOST_STAGES {
        let message = format!("{} recipes in one file; at most {MOST_STAGES} are linked", recipes.len());
        problems.push(Problem::at(recipes[MOST_STAGES].merge_method.place.clone(), message));
        return None;
    }
    let mut unnamed = (0..recipes.len()).filter(|&stage| recipes[stage].name.is_none());
    let output = unnamed.next();
    for other in unnamed {
        let message =
            "this recipe has no `name`, and neither has an earlier one: only one result can be the output";
        let place = recipes[other].merge_method.place.clone();
        problems.push(Problem::at(place, message).with_hint("name all but the one that is to be written"));
    }
    output.or_else(|| recipes.len().checked_sub(1))
}

fn uses(recipe: &Recipe, names: &HashMap<String, usize>) -> Vec<Use> {
    let slices = recipe.parts.iter().flat_map(|part| &part.slices);
    let of_slices = slices
        .flat_map(|slice| slice.sources.iter().map(|source| &source.reference).chain(&slice.base_model));
    let references = recipe.base_model.iter().chain(of_slices);
    let stage = |reference: &Located<ModelReference>| {
        let stage = *names.get(reference.value.text())?;
        Some(Use { stage, reference: reference.clone() })
    };
    references.filter_map(stage).collect()
}

/// Everything that the output is made of, each after what it is made of itself, the output last.
fn order(recipes: &[Recipe], uses: &[Vec<Use>], output: usize, problems: &mut Problems) -> Vec<usize> {
    let mut search = Search { recipes, uses, path: Vec::new(), done: Vec::new(), problems };
    search.visit(output, None);
    search.done
}

struct Search<'a> {
    recipes: &'a [Recipe],
    uses: &'a [Vec<Use>],
    path: Vec<usize>,
    done: Vec<usize>,
    problems: &'a mut Problems,
}

impl Search<'_> {
    /// Visits a stage and what it is made of; as deep as there are stages.
    fn visit(&mut self, stage: usize, reference: Option<&Located<ModelReference>>) {
        if self.done.contains(&stage) {
            return;
        }
        if let Some(start) = self.path.iter().position(|&above| above == stage) {
            let circle: Vec<String> =
                self.path[start..].iter().chain([&stage]).map(|&stage| self.name(stage)).collect();
            let message = format!("{} is made of itself: {}", circle[0], circle.join(" of "));
            let place = reference.map_or(&self.recipes[stage].merge_method.place, |used| &used.place);
            let hint = "a recipe can only merge results that do not need its own";
            self.problems.push(Problem::at(place.clone(), message).with_hint(hint));
            return;
        }
        self.path.push(stage);
        let uses = self.uses;
        for used in &uses[stage] {
            self.visit(used.stage, Some(&used.reference));
        }
        self.path.pop();
        self.done.push(stage);
    }

    fn name(&self, stage: usize) -> String {
        self.recipes[stage].name.as_ref().map_or_else(|| "the output".to_owned(), |name| quoted(&name.value))
    }
}

fn check_all_used(
    recipes: &[Recipe],
    names: &HashMap<String, usize>,
    order: &[usize],
    problems: &mut Problems,
) {
    for (stage, recipe) in recipes.iter().enumerate() {
        // A name that is given twice has been told.
        let is_first = |name: &Located<String>| names.get(&name.value) == Some(&stage);
        let unused = recipe.name.as_ref().filter(|name| is_first(name) && !order.contains(&stage));
        if let Some(name) = unused {
            let message = format!("nothing is made of {}", quoted(&name.value));
            let hint = "merge it in another recipe of this file, or remove it";
            problems.push(Problem::at(name.place.clone(), message).with_hint(hint));
        }
    }
}
