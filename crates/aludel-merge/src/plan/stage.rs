//! Plans one recipe of possibly several: opens its models, casts its slices, matches its tensors.
//!
//! In: a recipe, and the results of the stages before it as models. Out: a [`Stage`]: every tensor that it makes and what of,
//! its config and its side files. Formulas are built when all stages are known.

use aludel_checkpoint::{Config, Dtype, is_float};
use indexmap::{IndexMap, IndexSet};

use super::SideFiles;
use super::align::align;
use super::cast::{self, Cast};
use super::chat_template;
use super::models::{Facts, Model, Models, Origin, Role};
use super::output::Output;
use super::tensors::{Matched, Read, Unused};
use super::vocabulary::Vocabulary;
use crate::methods::{self, Method};
use crate::problem::{Problem, Problems};
use crate::recipe::Recipe;

/// A recipe whose tensors are matched.
pub(super) struct Stage<'r> {
    pub recipe: &'r Recipe,
    pub method: &'static dyn Method,
    pub casts: Vec<Cast<'r>>,
    pub tensors: IndexMap<String, Matched>,
    pub dropped: Vec<Unused>,
    pub config: Option<Config>,
    pub side_files: SideFiles,
    /// Its random streams are counted from here on, so that no two stages share one.
    pub first_stream: u16,
    /// Whether all of its models could be opened.
    pub is_complete: bool,
}

impl<'r> Stage<'r> {
    /// Plans a recipe; `None` where it has no method or no model to speak of.
    pub(super) fn plan(
        recipe: &'r Recipe,
        first_stream: u16,
        models: &mut Models,
        problems: &mut Problems,
    ) -> Option<Self> {
        let method = problems.take(method_of(recipe))?;
        match method.own_numbers(recipe) {
            Ok(numbers) => problems.append({
                let specs = method.parameters();
                recipe.check_parameters_and(specs, &numbers, &methods::taking)
            }),
            Err(faults) => problems.append(faults),
        }
        let before = problems.count();
        let casts: Vec<Cast<'r>> =
            recipe.scopes().map(|scope| cast::cast(scope, method, models, problems)).collect();
        let primary = primary(recipe, &casts, models, problems)?;
        let is_complete = problems.count() == before && casts.iter().all(|cast| cast.is_complete);
        let before = problems.count();
        let vocabulary = vocabulary(recipe, &casts, models, primary, problems);
        if problems.count() > before {
            return None;
        }
        let read = Read { models, vocabulary: vocabulary.as_ref() };
        let output = Output::of(recipe, &casts, read, primary, is_complete, problems);
        let side_files = side_files(recipe, &casts, read, primary, problems);
        let mut tensors: IndexMap<String, Matched> =
            output.tensors.into_iter().map(|matched| (matched.name.clone(), matched)).collect();
        let asked = recipe.align_experts.as_ref().filter(|asked| asked.value);
        if let Some(asked) = asked.filter(|_| is_complete && problems.count() == before) {
            align(asked, (method, &casts), models, output.config.as_ref(), &mut tensors, problems);
        }
        let (dropped, config) = (output.dropped, output.config);
        Some(Self { recipe, method, casts, tensors, dropped, config, side_files, first_stream, is_complete })
    }

    /// The type that a tensor of the result has.
    pub(super) fn dtype(&self, tensor: &Matched) -> Dtype {
        let asked = self.recipe.out_dtype.or(self.recipe.dtype);
        asked.filter(|_| is_float(tensor.dtype)).map_or(tensor.dtype, Dtype::from)
    }

    /// The result as a model for the stages after it.
    pub(super) fn as_model(&self, name: &str, origin: Origin) -> Model {
        let facts =
            |tensor: &Matched| Facts { shape: tensor.shape.clone(), dtype: self.dtype(tensor), made: None };
        Model {
            name: name.to_owned(),
            tensors: self.tensors.iter().map(|(name, tensor)| (name.clone(), facts(tensor))).collect(),
            config: self.config.clone(),
            side_files: self.side_files.clone(),
            origin,
        }
    }
}

fn method_of(recipe: &Recipe) -> Result<&'static dyn Method, Problem> {
    let name = &recipe.merge_method.value;
    methods::find(name).ok_or_else(|| {
        let problem =
            Problem::at(recipe.merge_method.place.clone(), format!("unknown merge method `{name}`"));
        problem.with_hint(methods::hint_for(name))
    })
}

/// The model that gives the output its config and its side files: the base model where the recipe names one, else the first
/// model that is read.
fn primary(
    recipe: &Recipe,
    casts: &[Cast<'_>],
    models: &mut Models,
    problems: &mut Problems,
) -> Option<usize> {
    let first = casts.iter().find_map(|cast| cast.taken.first()).map(|taken| taken.model);
    let may_leave_out = |cast: &Cast<'_>| !cast.scope.slice.is_whole || cast.scope.part.name.is_some();
    match &recipe.base_model {
        // Slices and modules may leave the base out: then its config and what no module names come from it.
        Some(base) if casts.iter().any(may_leave_out) => models.open(base, Role::Base, problems),
        Some(base) => models.position(&base.value).or(first),
        None => first,
    }
}

/// The output's tokens, where the recipe asks for some.
fn vocabulary(
    recipe: &Recipe,
    casts: &[Cast<'_>],
    models: &Models,
    primary: usize,
    problems: &mut Problems,
) -> Option<Vocabulary> {
    Vocabulary::of(recipe.tokenizer.as_ref()?, primary, &taken(casts), models, problems)
}

/// The files beside the weights: the primary model's, with the tokenizer and the chat template that the recipe asks for.
fn side_files(
    recipe: &Recipe,
    casts: &[Cast<'_>],
    Read { models, vocabulary }: Read<'_>,
    primary: usize,
    problems: &mut Problems,
) -> SideFiles {
    let own = || models.list[primary].side_files.clone();
    let files = vocabulary.and_then(|vocabulary| problems.take(vocabulary.side_files(models)));
    let mut files = files.unwrap_or_else(own);
    if let Some(asked) = &recipe.chat_template {
        let of_models: Vec<&SideFiles> =
            taken(casts).into_iter().map(|model| &models.list[model].side_files).collect();
        let template = problems.take(chat_template::template(asked, &of_models));
        template.into_iter().for_each(|template| chat_template::put(template, &mut files));
    }
    files
}

/// The models that any slice takes something of, each once.
fn taken(casts: &[Cast<'_>]) -> IndexSet<usize> {
    casts.iter().flat_map(|cast| &cast.taken).map(|taken| taken.model).collect()
}
