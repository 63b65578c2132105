//! Opens adapters by their headers and matches their modules; whatever keeps them apart is told at once.

use aludel_checkpoint::{Adapter, is_float};
use aludel_hub::Hub;
use indexmap::IndexMap;

use super::{Of, Settings};
use crate::problem::{Problem, Problems};

/// Adapters, and what each has of every module.
#[derive(Debug)]
pub(super) struct Matched {
    pub adapters: Vec<Opened>,
    /// Modules in the order in which they are met, with the adapters that have them.
    pub modules: IndexMap<String, Vec<usize>>,
}

/// An adapter as it was named.
#[derive(Debug)]
pub(super) struct Opened {
    pub name: String,
    pub weight: f64,
    pub adapter: Adapter,
}

pub(super) fn matched(settings: &Settings<'_>, hub: &Hub) -> Result<Matched, Problems> {
    let mut problems = Problems::new();
    let mut adapters = Vec::new();
    for (name, weight) in settings.adapters {
        if let Some(adapter) = problems.take(open(name, hub)) {
            adapters.push(Opened { name: name.clone(), weight: *weight, adapter });
        }
    }
    let mut modules: IndexMap<String, Vec<usize>> = IndexMap::new();
    for (position, opened) in adapters.iter().enumerate() {
        opened.check(&mut problems);
        for module in opened.adapter.modules().keys() {
            modules.entry(module.clone()).or_default().push(position);
        }
    }
    let matched = Matched { adapters, modules };
    let unlike: Vec<String> = matched
        .modules
        .keys()
        .filter_map(|module| matched.check(module, settings.of, &mut problems))
        .collect();
    if let Some((first, others)) = unlike.split_first() {
        let more =
            if others.is_empty() { String::new() } else { format!(" (nor those of {} more)", others.len()) };
        let message = format!("{first}, and their factors cannot be mixed{more}");
        let hint = "take `cat`, `svd`, or the method's name with `_svd`, which combine products";
        problems.push(Problem::general(message).with_hint(hint));
    }
    if problems.is_empty() { Ok(matched) } else { Err(problems) }
}

fn open(name: &str, hub: &Hub) -> Result<Adapter, Problem> {
    let (path, revision) = match name.split_once('@') {
        Some((path, revision)) => (path, Some(revision)),
        None => (name, None),
    };
    let located = hub.locate_adapter(path, revision).map_err(|error| Problem::general(error.to_string()))?;
    Adapter::open(&located.path).map_err(|error| Problem::general(error.to_string()))
}

impl Opened {
    /// Tells what of an adapter has no counterpart in a combination.
    fn check(&self, problems: &mut Problems) {
        let mut tell = |what: &str| {
            let message = format!("adapter `{}` has {what}, which cannot be combined", self.name);
            let hint = "merge models instead: in a recipe, a model may be written `base+adapter`";
            problems.push(Problem::general(message).with_hint(hint));
        };
        if self.adapter.config().is_dora() {
            tell("magnitudes (DoRA)");
        }
        if let Some(tensor) = self.adapter.replaced().keys().next() {
            tell(&format!("whole tensors of the model, such as `{tensor}`"));
        }
        if self.adapter.modules().values().any(|module| module.bias.is_some()) {
            tell("biases (`lora_bias`)");
        }
        if let Some((name, entry)) =
            self.adapter.checkpoint().tensors().iter().find(|(_, entry)| !is_float(entry.dtype))
        {
            tell(&format!("`{name}` of type {}", entry.dtype));
        }
    }
}

impl Matched {
    /// Tells where the adapters of a module do not fit each other; which ranks keep their factors apart.
    fn check(&self, module: &str, of: Of, problems: &mut Problems) -> Option<String> {
        let of_module = |position: &usize| {
            let opened = &self.adapters[*position];
            (opened, &opened.adapter.modules()[module])
        };
        let mut having = self.modules[module].iter().map(of_module);
        let (first, facts) = having.next()?;
        for (other, others) in having {
            let shapes = |module: &aludel_checkpoint::AdapterModule| {
                (module.inputs, module.outputs, module.is_embedding)
            };
            if shapes(facts) != shapes(others) {
                let message = format!(
                    "`{module}` has {} inputs and {} outputs in `{}`, and {} and {} in `{}`",
                    facts.inputs, facts.outputs, first.name, others.inputs, others.outputs, other.name
                );
                problems
                    .push(Problem::general(message).with_hint("only adapters of one base can be combined"));
            } else if of == Of::Factors && facts.rank != others.rank {
                let ranks = (facts.rank, others.rank);
                return Some(format!(
                    "`{module}` has rank {} in `{}` and {} in `{}`",
                    ranks.0, first.name, ranks.1, other.name
                ));
            }
        }
        None
    }
}
