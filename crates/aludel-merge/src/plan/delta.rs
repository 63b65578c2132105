//! Finds what each tensor of an output is stored as the difference from: that of the base model, as the recipe names it.

use std::collections::HashMap;

use aludel_checkpoint::is_float;
use aludel_delta::Values;

use super::Step;
use super::models::{Models, Origin};
use crate::derive::{Readable, Stored};
use crate::problem::Problem;
use crate::recipe::Recipe;

/// The base of a sparse delta.
#[derive(Clone, Debug)]
pub(crate) struct DeltaPlan {
    /// Its reference as written.
    pub base: String,
    /// What is stored of the differences.
    pub values: Values,
    /// The base's tensors, by the names of the output's that have their shape; none but those of numbers.
    pub tensors: HashMap<String, Readable>,
}

impl DeltaPlan {
    /// The base of a recipe's output.
    ///
    /// # Errors
    /// A recipe without a base model, or with one that it makes itself.
    pub(super) fn of(
        recipe: &Recipe,
        values: Values,
        models: &Models,
        steps: &[Step],
    ) -> Result<Self, Problem> {
        let Some(base) = &recipe.base_model else {
            let place = recipe.merge_method.place.clone();
            return Err(Problem::at(
                place,
                "a sparse delta is a difference from `base_model`, and there is none",
            )
            .with_hint("name the base model, or leave `--output sparse-delta` out"));
        };
        let model = models.position(&base.value).map(|position| &models.list[position]);
        let Some((model, Origin::Source(source))) = model.map(|model| (model, model.origin)) else {
            let message = format!(
                "`{}` is made by this recipe, and a sparse delta needs a base on disk",
                base.value.text()
            );
            return Err(Problem::at(base.place.clone(), message));
        };
        let tensor = |step: &Step| {
            let facts = model.tensors.get(&step.tensor)?;
            let fits = facts.shape == step.shape && is_float(facts.dtype) && is_float(step.dtype);
            let stored = Stored { source, tensor: step.tensor.clone() };
            fits.then(|| (step.tensor.clone(), Readable { stored, made: facts.made.clone() }))
        };
        let tensors = steps.iter().filter_map(tensor).collect();
        Ok(Self { base: base.value.text().to_owned(), values, tensors })
    }
}
