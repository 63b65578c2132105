//! Opens the models of a recipe by their headers and settles who plays which part.

use std::path::PathBuf;
use std::sync::Arc;

use aludel_checkpoint::Checkpoint;
use serde::Serialize;

use crate::methods::{Base, Member, Method};
use crate::problem::{Problem, Problems};
use crate::recipe::{Input, Recipe};

/// A model that is read.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// The reference as written.
    pub model: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What it is to the merge.
    pub role: Role,
    /// Its tensors.
    pub tensors: usize,
    /// Bytes of its weight files.
    pub bytes: u64,
    #[serde(skip)]
    pub(crate) checkpoint: Arc<Checkpoint>,
}

/// What a model is to the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The base model, which is no member.
    Base,
    /// A member.
    Member,
    /// Statistics of a member, which is a model of its own.
    Statistics,
}

/// The models of a merge and the parts that they play. A model that is listed twice is one source and two members.
#[derive(Debug)]
pub(super) struct Cast {
    /// The models, then the files of statistics.
    pub sources: Vec<Source>,
    /// How many of the sources are models.
    pub models: usize,
    /// The source of each member's statistics, for methods that read some.
    pub statistics: Vec<usize>,
    /// The source of the base, where it is no member.
    pub base: Option<(usize, Member)>,
    /// Sources of the members, in order.
    pub members: Vec<(usize, Member)>,
}

impl Cast {
    /// The sources that are models.
    pub(super) fn models(&self) -> &[Source] {
        &self.sources[..self.models]
    }

    /// The source that gives the output its tensors' order, its config and its side files: the base model where the recipe
    /// names one, else the first model.
    pub(super) fn primary(&self, recipe: &Recipe) -> usize {
        let named = recipe.base_model.as_ref().map(|base| base.value.text());
        self.sources.iter().position(|source| Some(source.model.as_str()) == named).unwrap_or(0)
    }
}

/// Opens every model and casts the parts; what is wrong is added to `problems`, and the models that could be opened are
/// cast all the same, so that what is wrong between them is told too.
pub(super) fn cast(recipe: &Recipe, method: &dyn Method, problems: &mut Problems) -> Cast {
    check_parts(recipe, method, problems);
    let mut cast =
        Cast { sources: Vec::new(), models: 0, statistics: Vec::new(), base: None, members: Vec::new() };
    for input in in_order(recipe, method) {
        let is_base = input.is_base && matches!(method.base(), Base::Required | Base::Optional);
        let Some(source) = open(&mut cast.sources, &input, is_base, problems) else { continue };
        let name = input.reference.value.text().to_owned();
        let part = (source, Member { input: 0, entry: input.entry, name });
        if is_base {
            cast.base.get_or_insert(part);
        } else {
            cast.members.push(part);
        }
    }
    cast.models = cast.sources.len();
    if let Some(parameter) = method.statistics() {
        open_statistics(recipe, parameter, &mut cast, problems);
    }
    cast
}

/// Opens the file of statistics of every member.
fn open_statistics(recipe: &Recipe, parameter: &str, cast: &mut Cast, problems: &mut Problems) {
    for (_, member) in &cast.members {
        let place =
            member.entry.and_then(|entry| recipe.models.get(entry)).map(|model| &model.reference.place);
        let given = match recipe.string(parameter, member.entry, "", 0.0) {
            Ok(Some(given)) => given,
            Ok(None) => {
                let message = format!(
                    "`{}` needs `{parameter}` for model `{}`",
                    recipe.merge_method.value, member.name
                );
                let problem = place.map_or_else(
                    || Problem::general(message.clone()),
                    |place| Problem::at(place.clone(), message.clone()),
                );
                problems.push(problem.with_hint("name the file with its statistics, without a filter"));
                continue;
            }
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let path = PathBuf::from(&given.value);
        match Checkpoint::open(&path) {
            Ok(checkpoint) => {
                cast.statistics.push(cast.sources.len());
                cast.sources.push(Source {
                    model: given.value,
                    path,
                    role: Role::Statistics,
                    tensors: checkpoint.tensors().len(),
                    bytes: checkpoint.files().iter().map(|file| file.bytes).sum(),
                    checkpoint: Arc::new(checkpoint),
                });
            }
            Err(error) => problems.push(Problem::at(given.place, error.to_string())),
        }
    }
}

/// The models that take part, the base first where the method wants it so.
fn in_order<'r>(recipe: &'r Recipe, method: &dyn Method) -> Vec<Input<'r>> {
    let mut inputs = recipe.models_with_base();
    match method.base() {
        Base::Unused => inputs.retain(|input| input.entry.is_some()),
        Base::First => inputs.sort_by_key(|input| !input.is_base),
        Base::Required | Base::Optional | Base::Member => {}
    }
    inputs
}

/// Whether the recipe lists what the method wants.
fn check_parts(recipe: &Recipe, method: &dyn Method, problems: &mut Problems) {
    let place = &recipe.merge_method.place;
    let name = method.name();
    let inputs = recipe.models_with_base();
    let lacks_base = recipe.base_model.is_none();
    if lacks_base && matches!(method.base(), Base::Required | Base::First) {
        let problem = Problem::at(place.clone(), format!("`{name}` needs a base model"));
        problems.push(problem.with_hint("add `base_model:` at the top of the recipe"));
    }
    let unlisted = inputs.iter().find(|input| input.is_base && input.entry.is_none());
    if let (Base::Unused, Some(base)) = (method.base(), unlisted) {
        let message = format!("`{name}` does not use a base model, and `models` does not list this one");
        let problem = Problem::at(base.reference.place.clone(), message);
        problems.push(problem.with_hint("list it under `models` or remove `base_model`"));
    }
    let is_member = |input: &&Input<'_>| match method.base() {
        Base::Required | Base::Optional => !input.is_base,
        Base::First | Base::Member => true,
        Base::Unused => input.entry.is_some(),
    };
    let count = inputs.iter().filter(is_member).count();
    let (least, most) = method.members();
    let is_apart = matches!(method.base(), Base::Required | Base::Optional);
    let besides = if is_apart && !lacks_base { " besides the base" } else { "" };
    if count < least && !(lacks_base && method.base() == Base::First) {
        let message = format!("`{name}` merges at least {least} model(s){besides}, but {count} is listed");
        problems.push(Problem::at(place.clone(), message));
    }
    if count > most {
        let message = format!("`{name}` merges at most {most} model(s){besides}, but {count} are listed");
        problems.push(Problem::at(place.clone(), message));
    }
}

/// The position of the model among the sources, opened unless it is there already.
fn open(
    sources: &mut Vec<Source>,
    input: &Input<'_>,
    is_base: bool,
    problems: &mut Problems,
) -> Option<usize> {
    let reference = &input.reference.value;
    let place = &input.reference.place;
    if let Some(known) = sources.iter().position(|source| source.model == reference.text()) {
        return Some(known);
    }
    if let Some(revision) = reference.revision() {
        let message =
            format!("revision `{revision}` of a model: only models on disk are supported by this version");
        problems
            .push(Problem::at(place.clone(), message).with_hint("download the model and give its folder"));
        return None;
    }
    let path = reference.path();
    match Checkpoint::open(&path) {
        Ok(checkpoint) => {
            sources.push(Source {
                model: reference.text().to_owned(),
                path,
                role: if is_base { Role::Base } else { Role::Member },
                tensors: checkpoint.tensors().len(),
                bytes: checkpoint.files().iter().map(|file| file.bytes).sum(),
                checkpoint: Arc::new(checkpoint),
            });
            Some(sources.len() - 1)
        }
        Err(error) => {
            problems.push(Problem::at(place.clone(), error.to_string()));
            None
        }
    }
}
