//! Puts the output together from its parts: every tensor, what is dropped and why, and the config that is true of them.
//!
//! In: the casts of all slices and the opened models. Out: an [`Output`]. What no module names is taken over from the model
//! that gives the config, so that nothing is missing.

use std::ops::Range;

use aludel_checkpoint::Config;
use indexmap::IndexSet;
use serde_json::Value;

use super::cast::Cast;
use super::layer_config::{Counted, with_layers};
use super::models::Models;
use super::modules::Modules;
use super::slices::{Stacked, reason_unused, sliced};
use super::tensors::{DERIVED, DroppedTensors, Matched, Read, Unused, Wanted, is_derived, whole};
use crate::problem::{Problem, Problems};
use crate::recipe::Recipe;

/// What a merge writes.
#[derive(Debug)]
pub(super) struct Output {
    pub tensors: Vec<Matched>,
    pub dropped: Vec<Unused>,
    pub config: Option<Config>,
}

impl Output {
    /// The output of a recipe. `primary` gives the config; where not all models could be opened, whole models are still
    /// matched, so that what is wrong between them is told too.
    pub(super) fn of(
        recipe: &Recipe,
        casts: &[Cast<'_>],
        read: Read<'_>,
        primary: usize,
        is_complete: bool,
        problems: &mut Problems,
    ) -> Self {
        let models = read.models;
        let before = problems.count();
        let modules = modules(recipe, models, primary, problems);
        let is_complete = is_complete && problems.count() == before;
        let mut building =
            Building { casts, read, primary, tensors: Vec::new(), dropped: DroppedTensors::default() };
        let mut stacks = Vec::new();
        for (part, range) in ranges(recipe).into_iter().enumerate() {
            let owns = |name: &str| modules.owner(name) == Some(part);
            let is_whole = casts[range.start].scope.slice.is_whole;
            if is_whole {
                building.add_whole(range.start, &owns, problems);
            } else if is_complete {
                stacks.extend(building.add_sliced(range, &owns, problems).map(|stacked| (part, stacked)));
            }
        }
        building.take_over(&modules, problems);
        building.tell_unused(&modules, &stacks);
        let config = models.list[primary].config.clone();
        let config = match config {
            Some(config) => problems.take(config_of(config, &stacks, models)),
            None => None,
        };
        let config = match (config, read.vocabulary) {
            (Some(config), Some(vocabulary)) => Some(vocabulary.config(config, primary, models)),
            (config, _) => config,
        };
        Self { tensors: building.tensors, dropped: building.dropped.list, config }
    }
}

/// Which casts belong to each part.
fn ranges(recipe: &Recipe) -> Vec<Range<usize>> {
    let mut start = 0;
    let range = |slices: usize| {
        let range = start..start + slices;
        start = range.end;
        range
    };
    recipe.parts.iter().map(|part| part.slices.len()).map(range).collect()
}

fn modules(recipe: &Recipe, models: &Models, primary: usize, problems: &mut Problems) -> Modules {
    let named: Vec<_> = recipe.parts.iter().filter_map(|part| part.name.as_ref()).collect();
    if named.is_empty() {
        return Modules::one();
    }
    let model = &models.list[primary];
    Modules::learn(&named, &model.name, &model.names().collect::<Vec<_>>(), problems)
}

struct Building<'a> {
    casts: &'a [Cast<'a>],
    read: Read<'a>,
    primary: usize,
    tensors: Vec<Matched>,
    dropped: DroppedTensors,
}

impl Building<'_> {
    fn add_whole(&mut self, number: usize, owns: &dyn Fn(&str) -> bool, problems: &mut Problems) {
        let cast = &self.casts[number];
        if cast.taken.is_empty() {
            return;
        }
        let leading = cast.taken.iter().position(|taken| taken.model == self.primary).unwrap_or(0);
        let matched = whole((number, cast), self.read, leading, owns, &mut self.dropped, problems);
        self.tensors.extend(matched);
    }

    fn add_sliced(
        &mut self,
        range: Range<usize>,
        owns: &dyn Fn(&str) -> bool,
        problems: &mut Problems,
    ) -> Option<Stacked> {
        let casts = (range.start, &self.casts[range]);
        let (matched, stacked) = sliced(casts, self.read, self.primary, owns, &mut self.dropped, problems)?;
        self.tensors.extend(matched);
        Some(stacked)
    }

    /// Takes over what no module names.
    fn take_over(&mut self, modules: &Modules, problems: &mut Problems) {
        let model = &self.read.models.list[self.primary];
        let unowned = model.names().filter(|name| modules.owner(name).is_none() && !is_derived(name));
        for name in unowned {
            let tensors = vec![(self.primary, name.to_owned())];
            let wanted = Wanted { output: name.to_owned(), tensors, leading: 0, base: None };
            self.tensors.extend(wanted.matched(self.read, None, 0.0, problems));
        }
    }

    /// Names every input tensor that is in no output tensor, with the reason.
    fn tell_unused(&mut self, modules: &Modules, stacks: &[(usize, Stacked)]) {
        let Self { casts, read: Read { models, .. }, primary, tensors, dropped } = self;
        let is_taken = |model| casts.iter().flat_map(|cast| &cast.taken).any(|taken| taken.model == model);
        let taken = casts.iter().flat_map(|cast| &cast.taken).map(|taken| taken.model);
        let among: IndexSet<usize> = taken.chain([*primary]).collect();
        let among: Vec<usize> = among.into_iter().collect();
        dropped.add_unused(models, &among, tensors, |model, name| {
            let stacked = stacks.iter().find(|(part, _)| modules.owner(name) == Some(*part));
            match (modules.owner(name), stacked) {
                (_, Some((_, stacked))) => reason_unused(stacked, is_taken(model), name),
                (None, _) if !is_derived(name) => {
                    format!("no module names it, so that it comes from `{}`", models.list[*primary].name)
                }
                _ if is_derived(name) => DERIVED.into(),
                _ => "no module takes it from this model".into(),
            }
        });
    }
}

fn config_of(config: Config, stacks: &[(usize, Stacked)], models: &Models) -> Result<Config, Problem> {
    let mut config = config;
    for (_, stacked) in stacks {
        config = with_layers(&config, stacked, models)?;
        config = if stacked.has_head { untied(config) } else { config };
    }
    for (_, stacked) in stacks {
        let counted = Counted::of(&config, &stacked.prefix).map(|counted| counted.layers);
        if counted != Some(stacked.origins.len()) {
            let message = format!(
                "config.json counts the layers `{}N` together with those of another part, and they become differently many",
                stacked.prefix
            );
            let hint = "give config.json a count for each part, as in `num_layers` and `num_decoder_layers`";
            return Err(Problem::general(message).with_hint(hint));
        }
    }
    Ok(config)
}

/// The config of a model whose head is stored apart, which it then has to say.
pub(super) fn untied(config: Config) -> Config {
    const KEY: &str = "tie_word_embeddings";
    let mut object = config.object().clone();
    let top = object.get_mut(KEY);
    let tied = Value::from(true);
    match top {
        Some(value) if *value == tied => *value = false.into(),
        _ => {
            let nested = object.get_mut("text_config").and_then(Value::as_object_mut);
            if let Some(value) = nested.and_then(|nested| nested.get_mut(KEY)).filter(|value| **value == tied)
            {
                *value = false.into();
            }
        }
    }
    Config::from_object(object)
}
