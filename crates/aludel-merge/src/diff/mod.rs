//! Finds what differs between two models: tensors, config, tokenizer and the other files beside the weights.
//!
//! In: two models as a recipe names them, and how far values may lie apart. Out: a [`Difference`] that serialises and prints itself.
//! Values are compared as numbers, in one streamed sweep; tensors of types that are not computed on, by their bytes. How much a difference
//! matters is not judged here.
//!
//! Reading order: `values` (what differs means, as a formula), `tensors` (which are compared), `stored` (bytes), `files`, `tokenizer`,
//! `print`.

mod files;
mod print;
mod stored;
mod tensors;
mod tokenizer;
mod values;

pub use files::{Changed, FileDifference};
pub use tensors::{Shapes, Types};
pub use tokenizer::TokenizerDifference;
pub use values::{Place, ValueDifference};

use std::collections::HashMap;
use std::sync::Arc;

use aludel_checkpoint::WeightMap;
use serde::Serialize;

use crate::derive::Weights;
use crate::execute::{ExecuteOptions, MergeError, measure};
use crate::plan::{Opened, PlanOptions, Wanted};
use crate::problem::{Problem, Problems};

/// What is compared, and how closely.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// A model.
    pub first: &'a str,
    /// Another.
    pub second: &'a str,
    /// How far values may lie apart...
    pub tolerance: f64,
    /// ... and how much farther for each unit of the second value's magnitude.
    pub relative_tolerance: f64,
    /// Whether the types in which weights are stored may differ.
    pub ignore_types: bool,
}

/// What differs between two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The first model, as it was named.
    pub first: String,
    /// The second.
    pub second: String,
    /// Whether nothing differs.
    pub equal: bool,
    /// Tensors whose values were compared.
    pub compared: usize,
    /// How many of them differ within the tolerance.
    pub within_tolerance: usize,
    /// Tensors that only the first model has.
    pub only_in_first: Vec<String>,
    /// Tensors that only the second has.
    pub only_in_second: Vec<String>,
    /// Tensors of different shapes.
    pub shapes: Vec<Shapes>,
    /// Tensors that are stored in different types.
    pub types: Vec<Types>,
    /// Tensors whose values differ by more than the tolerance.
    pub values: Vec<ValueDifference>,
    /// Keys of the configs with different values.
    pub config: Vec<Changed>,
    /// What differs between the tokenizers; `None` where nothing does.
    pub tokenizer: Option<TokenizerDifference>,
    /// Other files beside the weights that differ.
    pub files: Vec<FileDifference>,
}

/// Compares two models.
///
/// # Errors
/// Models that cannot be opened or read, and a run that is stopped from outside.
pub fn diff(
    settings: &Settings<'_>,
    options: &PlanOptions,
    execute: &ExecuteOptions<'_>,
) -> Result<Difference, MergeError> {
    let opened = Opened::open(&[settings.first, settings.second], &options.hub)?;
    let matched = tensors::matched(&opened, settings.ignore_types);
    let config = files::config(&opened, settings.ignore_types);
    let (tokenizer, files) = files::beside_weights(&opened);
    let mut difference = Difference {
        first: settings.first.to_owned(),
        second: settings.second.to_owned(),
        equal: false,
        compared: matched.computed.len() + matched.stored.len(),
        within_tolerance: 0,
        only_in_first: matched.only_in_first,
        only_in_second: matched.only_in_second,
        shapes: matched.shapes,
        types: matched.types,
        values: Vec::new(),
        config,
        tokenizer,
        files,
    };
    let internal = |error| Problems::from(Problem::general(format!("internal: difference: {error}")));
    let formula = Arc::new(values::figures(settings).map_err(internal)?);
    let wanted = |name: &String| Wanted {
        tensor: name.clone(),
        inputs: vec![(0, name.clone()), (1, name.clone())],
        formula: Arc::clone(&formula),
    };
    let plan = opened.plan(matched.computed.iter().map(wanted).collect(), options)?;
    let (figures, _) = measure(&plan, execute)?;
    let maps = plan.sources.iter().map(|source| WeightMap::open(&source.checkpoint));
    let maps = maps.collect::<Result<Vec<_>, _>>()?;
    let weights = Weights::new(&plan.sources, &maps);
    let is_beyond = values::beyond(settings).map_err(internal)?;
    for (step, figures) in plan.steps.iter().zip(&figures) {
        match values::read(step, figures) {
            Some(mut found) if found.beyond_tolerance > 0 => {
                found.first_place = values::first_place(step, &weights, &is_beyond);
                difference.values.push(found);
            }
            Some(_) => difference.within_tolerance += 1,
            None => {}
        }
    }
    difference.values.extend(matched.stored.iter().filter_map(|tensor| stored::compare(tensor, &weights)));
    let order: HashMap<&String, usize> = matched.order.iter().zip(0..).collect();
    difference.values.sort_by_key(|found| order.get(&found.tensor).copied());
    difference.equal = difference.is_nothing();
    Ok(difference)
}

impl Difference {
    fn is_nothing(&self) -> bool {
        let of_tensors =
            self.only_in_first.len() + self.only_in_second.len() + self.shapes.len() + self.types.len();
        let of_files = self.config.len() + self.files.len() + usize::from(self.tokenizer.is_some());
        of_tensors + self.values.len() + of_files == 0
    }
}
