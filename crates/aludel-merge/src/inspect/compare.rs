//! Compares models with the base that they come from, in one streamed sweep over all of them.
//!
//! In: references and a threshold. Out: a [`Comparison`] for every tensor, every layer and the whole. It depends on the models and
//! the threshold alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use aludel_checkpoint::is_float;
use aludel_kernels::formula::Formula;
use indexmap::IndexMap;
use serde::Serialize;

use super::contents::natural;
use super::figures::Figures;
use super::groups::group;
use super::sums::{Sums, formula};
use crate::execute::{ExecuteOptions, MergeError, measure};
use crate::plan::{Facts, Opened, PlanOptions, Wanted};
use crate::problem::{Problem, Problems};

/// What is compared.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// The base.
    pub base: &'a str,
    /// The models; at least one.
    pub models: &'a [&'a str],
    /// A difference of no larger magnitude counts as small.
    pub threshold: f64,
}

/// How models differ from a base.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The base, as it was named.
    pub base: String,
    /// The models, as they were named.
    pub models: Vec<String>,
    /// Up to which magnitude a difference counts as small.
    pub threshold: f64,
    /// Over all tensors.
    pub whole: Figures,
    /// By layer, and by what is in no layer, in the models' order.
    pub groups: Vec<Group>,
    /// By tensor.
    pub tensors: Vec<TensorFigures>,
    /// By kind of tensor and layer: what heatmaps show.
    #[serde(skip)]
    pub(super) kinds: Vec<Kinds>,
    /// What could not be compared, and why.
    pub uncompared: Vec<Uncompared>,
    /// Bytes that were read.
    #[serde(skip)]
    pub bytes_read: u64,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Its name, as `model.layers.3`.
    pub name: String,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
}

/// A tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorFigures {
    /// Its name.
    pub name: String,
    /// Its layer.
    pub group: String,
    /// Its sides.
    pub shape: Vec<usize>,
    /// What was measured.
    #[serde(flatten)]
    pub figures: Figures,
}

/// A tensor that is not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uncompared {
    /// Its name.
    pub tensor: String,
    /// The model that it could not be compared in; `None` for all of them.
    pub model: Option<String>,
    /// Why.
    pub reason: String,
}

/// The layers of a stack by kinds of tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kinds {
    /// What the names of the layers begin with, as `model.layers.`.
    pub prefix: String,
    /// The numbers of its layers, ascending.
    pub layers: Vec<usize>,
    /// By kind, then by layer.
    pub rows: Vec<(String, Vec<Option<Figures>>)>,
}

/// A tensor of the base and those models that have it alike.
struct Compared {
    name: String,
    shape: Vec<usize>,
    present: Vec<usize>,
}

/// Compares.
///
/// # Errors
/// Models that cannot be opened or read, and a run that is stopped from outside.
pub fn compare(
    settings: &Settings<'_>,
    options: &PlanOptions,
    execute: &ExecuteOptions<'_>,
) -> Result<Comparison, MergeError> {
    let references: Vec<&str> =
        std::iter::once(settings.base).chain(settings.models.iter().copied()).collect();
    let opened = Opened::open(&references, &options.hub)?;
    let count = settings.models.len();
    let (compared, uncompared) = matched(&opened, settings);
    if compared.is_empty() {
        let message =
            format!("`{}` has no floating-point tensor that any of the models has alike", settings.base);
        return Err(
            Problems::from(Problem::general(message).with_hint("are they of one architecture?")).into()
        );
    }
    let plan = opened.plan(wanted(&compared, settings.threshold)?, options)?;
    let (figures, bytes_read) = measure(&plan, execute)?;
    let sums = compared.iter().zip(&figures).map(|(tensor, figures)| {
        let elements = tensor.shape.iter().map(|&side| side as u64).product();
        Sums::read(figures, elements, &tensor.present, count)
    });
    let sums: Vec<Sums> = sums.collect();
    let mut whole = Sums::new(count);
    let mut groups: IndexMap<String, Sums> = IndexMap::new();
    for (tensor, sums) in compared.iter().zip(&sums) {
        whole.add(sums);
        groups.entry(group(&tensor.name)).or_insert_with(|| Sums::new(count)).add(sums);
    }
    let tensors = compared.iter().zip(&sums);
    Ok(Comparison {
        base: settings.base.to_owned(),
        models: settings.models.iter().map(|&model| model.to_owned()).collect(),
        threshold: settings.threshold,
        whole: Figures::of(&whole),
        groups: groups
            .iter()
            .map(|(name, sums)| Group { name: name.clone(), figures: Figures::of(sums) })
            .collect(),
        kinds: kinds(tensors.clone().map(|(tensor, sums)| (tensor.name.as_str(), sums)), count),
        tensors: tensors
            .map(|(tensor, sums)| TensorFigures {
                group: group(&tensor.name),
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                figures: Figures::of(sums),
            })
            .collect(),
        uncompared,
        bytes_read,
    })
}

/// The tensors that can be compared, in their natural order, and those that cannot.
fn matched(opened: &Opened, settings: &Settings<'_>) -> (Vec<Compared>, Vec<Uncompared>) {
    let (mut compared, mut uncompared) = (Vec::new(), Vec::new());
    let base = opened.model(0);
    let not = |tensor: &str, model: Option<&str>, reason: String| Uncompared {
        tensor: tensor.to_owned(),
        model: model.map(str::to_owned),
        reason,
    };
    for (name, facts) in &base.tensors {
        if !is_computed(facts) {
            uncompared.push(not(
                name,
                None,
                format!("its type is {:?}, which is not computed on", facts.dtype),
            ));
            continue;
        }
        let mut present = Vec::new();
        for (model, reference) in settings.models.iter().enumerate() {
            match reason_against(facts, opened.model(model + 1).tensors.get(name)) {
                None => present.push(model),
                Some(reason) => uncompared.push(not(name, Some(reference), reason)),
            }
        }
        if !present.is_empty() {
            compared.push(Compared { name: name.clone(), shape: facts.shape.clone(), present });
        }
    }
    for (model, reference) in settings.models.iter().enumerate() {
        let only_here = opened.model(model + 1).names().filter(|name| !base.has(name));
        uncompared
            .extend(only_here.map(|name| not(name, Some(reference), "the base has no such tensor".into())));
    }
    compared.sort_by_cached_key(|tensor| natural(&tensor.name));
    (compared, uncompared)
}

/// Why a model's tensor cannot be compared with the base's.
fn reason_against(base: &Facts, other: Option<&Facts>) -> Option<String> {
    match other {
        None => Some("the model has no such tensor".to_owned()),
        Some(other) if other.shape != base.shape => {
            Some(format!("it is {:?} in the base and {:?} in the model", base.shape, other.shape))
        }
        Some(other) if !is_computed(other) => {
            Some(format!("its type is {:?} in the model, which is not computed on", other.dtype))
        }
        Some(_) => None,
    }
}

fn is_computed(facts: &Facts) -> bool {
    is_float(facts.dtype)
}

fn wanted(compared: &[Compared], threshold: f64) -> Result<Vec<Wanted>, Problems> {
    let mut formulas: HashMap<usize, Arc<Formula>> = HashMap::new();
    let mut wanted = Vec::new();
    for tensor in compared {
        let present = tensor.present.len();
        let made = match formulas.entry(present) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(new) => {
                let internal = |error| Problem::general(format!("internal: comparison: {error}"));
                Arc::clone(new.insert(formula(present, threshold).map_err(internal)?))
            }
        };
        let models = std::iter::once(0).chain(tensor.present.iter().map(|model| model + 1));
        wanted.push(Wanted {
            tensor: tensor.name.clone(),
            inputs: models.map(|model| (model, tensor.name.clone())).collect(),
            formula: made,
        });
    }
    Ok(wanted)
}

/// What is measured of tensors of one kind in each layer.
fn kinds<'a>(tensors: impl Iterator<Item = (&'a str, &'a Sums)>, models: usize) -> Vec<Kinds> {
    type Rows = IndexMap<String, IndexMap<usize, Sums>>;
    let mut stacks: IndexMap<&str, Rows> = IndexMap::new();
    for (name, sums) in tensors {
        if let Some((prefix, layer, kind)) = super::groups::kind(name) {
            let row = stacks.entry(prefix).or_default().entry(kind).or_default();
            row.entry(layer).or_insert_with(|| Sums::new(models)).add(sums);
        }
    }
    let kinds = |(prefix, rows): (&str, Rows)| {
        // Layers are counted by what is there: a number in a name may be anything.
        let mut numbers: Vec<usize> = rows.values().flat_map(|row| row.keys().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let of_row = |(kind, row): (String, IndexMap<usize, Sums>)| {
            (kind, numbers.iter().map(|number| row.get(number).map(Figures::of)).collect())
        };
        let rows = rows.into_iter().map(of_row).collect();
        Kinds { prefix: prefix.to_owned(), layers: numbers, rows }
    };
    stacks.into_iter().map(kinds).collect()
}
