//! Merges a recipe of several documents in several runs, the result of each in a model folder of its own.
//!
//! In: a recipe, and a folder for results in between. Out: [`Run`]s, one for each document, in an order in which each comes after
//! what it is made of. It is for those who want the results in between, and for chains that cannot be one pass; a plan of the
//! whole recipe ([`Plan::new`]) needs no such folder.

use std::path::{Path, PathBuf};

use aludel_checkpoint::fault_of_relative_name;
use aludel_document::quoted;

use crate::execute::StandIn;
use crate::plan::{Form, Plan, PlanOptions};
use crate::problem::{Problem, Problems};
use crate::recipe::Recipe;

/// One merge of several.
#[derive(Clone, Debug)]
pub struct Run {
    recipe: Recipe,
    options: PlanOptions,
    /// What other recipes call its result; `None` for the last.
    name: Option<String>,
}

/// Merges that follow each other.
#[derive(Clone, Debug)]
pub struct Sequence {
    runs: Vec<Run>,
}

impl Sequence {
    /// A run for each document of a recipe: those with the results in between write into subfolders of `results`, by their names,
    /// and the last to the target that the options have.
    ///
    /// # Errors
    /// Names that are none of folders.
    pub fn of(recipe: Recipe, options: &PlanOptions, results: &Path) -> Result<Self, Problems> {
        let mut problems = Problems::new();
        let mut output = recipe;
        let stages = std::mem::take(&mut output.stages);
        let mut first_stream = output.streams();
        let (mut runs, mut known) = (Vec::new(), Vec::new());
        for recipe in stages {
            let Some(name) = recipe.name.clone() else { continue };
            if let Some(fault) = fault_of_relative_name(&name.value) {
                let message = format!("{} cannot be a folder: {fault}", quoted(&name.value));
                let hint = "the result is written to a folder of this name; choose another";
                problems.push(Problem::at(name.place, message).with_hint(hint));
                continue;
            }
            let folder = results.join(&name.value);
            let streams = recipe.streams();
            let options = PlanOptions {
                target: options.target.is_some().then(|| folder.clone()),
                results: known.clone(),
                // What others are made of is whole and not rounded twice.
                form: Form::Dense,
                first_stream,
                ..options.clone()
            };
            first_stream = first_stream.saturating_add(streams);
            known.push((name.value.clone(), folder));
            runs.push(Run { recipe, options, name: Some(name.value) });
        }
        runs.push(Run {
            recipe: output,
            options: PlanOptions { results: known, first_stream: 0, ..options.clone() },
            name: None,
        });
        if problems.is_empty() { Ok(Self { runs }) } else { Err(problems) }
    }

    /// The runs, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Plans all runs before any of them has run.
    ///
    /// # Errors
    /// The problems of the first run that has some, and that the headers of results in between cannot be kept in the system's
    /// folder for temporary files.
    pub fn plans(&self) -> Result<Vec<Plan>, Problems> {
        let place = tempfile::tempdir().map_err(|error| Problem::general(error.to_string()))?;
        let mut stand_ins: Vec<StandIn> = Vec::new();
        let mut plans: Vec<Plan> = Vec::new();
        for (number, run) in self.runs.iter().enumerate() {
            let known = run.options.results.iter().zip(&stand_ins);
            let results = known.map(|((name, _), made)| (name.clone(), made.path().to_path_buf())).collect();
            let mut plan = Plan::new(&run.recipe, &PlanOptions { results, ..run.options.clone() })?;
            if run.name.is_some() {
                let made = StandIn::of(&plan, &place.path().join(number.to_string()));
                stand_ins.push(made.map_err(|error| Problem::general(error.to_string()))?);
            }
            for source in &mut plan.sources {
                if let Some(folder) = run.folder_of(&source.model) {
                    source.path = folder.to_path_buf();
                }
            }
            plans.push(plan);
        }
        Ok(plans)
    }
}

impl Run {
    /// Plans the merge: what it is made of has to have been written.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self) -> Result<Plan, Problems> {
        Plan::new(&self.recipe, &self.options)
    }

    /// What other recipes call its result; `None` for the last.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The folder that it writes, where the sequence has a target.
    pub fn target(&self) -> Option<&PathBuf> {
        self.options.target.as_ref()
    }

    fn folder_of(&self, model: &str) -> Option<&Path> {
        let (_, folder) = self.options.results.iter().find(|(name, _)| name == model)?;
        Some(folder)
    }
}
