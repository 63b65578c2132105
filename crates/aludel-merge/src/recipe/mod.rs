//! Turns the text of a mergekit recipe into a value whose every part is well formed.
//!
//! In: YAML. Out: a [`Recipe`], or all of its faults at once with their places. It opens no file and knows no merge
//! method: whether models exist, and which parameters a method takes, is asked by those who know (see
//! [`Recipe::check_parameters`]).
//!
//! Reading order: `value` and `parameters` (what stands under `parameters:`), `reference` and `float` (models and element
//! types), `part` (what is merged: models, slices, modules), `tokenizer`, `read` (the whole recipe), `stages` (several of them), `scope` (which parameters hold
//! where), `check` (parameters against what a method declares). `experts` reads recipes of another kind, for
//! mixtures of experts. YAML itself, and the places in it, come from
//! [`aludel_document`].

mod check;
mod experts;
mod float;
mod keys;
mod parameters;
mod part;
mod read;
mod reference;
mod scope;
mod stages;
mod tokenizer;
mod value;

pub use aludel_document::{Located, Scalar, nearest};
pub use check::{DefaultValue, Kind, Level, ParameterSpec};
pub use experts::{Expert, ExpertsRecipe, GateMode};
pub use float::FloatType;
pub use parameters::{Parameter, Parameters};
pub use part::{ModelEntry, Part, Slice};
pub use reference::ModelReference;
pub use scope::{Input, Scope};
pub use tokenizer::{Token, TokenName, TokenRow, Tokenizer, TokenizerSource};
pub use value::{FilteredValue, Setting, Value, layer_position};

use std::sync::Arc;

use crate::problem::Problems;

/// A merge as its author wrote it.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The text that was parsed, unchanged and with all documents in it.
    pub text: Arc<str>,
    /// What other documents of the text call the result.
    pub name: Option<Located<String>>,
    /// The recipes of the other documents, whose results this one is made of: each after those that it is made of itself.
    pub stages: Vec<Recipe>,
    /// The method's name as written; whether it exists is not checked here.
    pub merge_method: Located<String>,
    /// What is merged: one part for `models` and for `slices`, one for each of `modules`; at least one.
    pub parts: Vec<Part>,
    /// The model that task vectors start from.
    pub base_model: Option<Located<ModelReference>>,
    /// Parameters of the whole merge, and defaults for those of parts, slices and models.
    pub parameters: Parameters,
    /// The type that the reference computes in. Results here do not depend on it beyond the output's type.
    pub dtype: Option<FloatType>,
    /// The type of the output; `dtype` when absent.
    pub out_dtype: Option<FloatType>,
    /// The output's tokenizer, where it is not the base model's as it is.
    pub tokenizer: Option<Tokenizer>,
    /// A chat template, or the name of one, for the output's tokenizer.
    pub chat_template: Option<Located<String>>,
    /// Whether the experts of each model are put in the order of the base model's, or of the first model's, before they are
    /// merged.
    pub align_experts: Option<Located<bool>>,
}

impl Recipe {
    /// Parses a recipe.
    ///
    /// # Errors
    /// All faults found. Faults of syntax end the search: what follows them cannot be read.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        read::recipe(text)
    }

    /// Every slice of every part, in order, with what holds for it.
    pub fn scopes(&self) -> impl Iterator<Item = Scope<'_>> {
        self.parts
            .iter()
            .flat_map(move |part| part.slices.iter().map(move |slice| Scope { recipe: self, part, slice }))
    }

    /// Its random streams, one for each model that is listed: those of other recipes begin after them.
    pub(crate) fn streams(&self) -> u16 {
        let most = self.scopes().map(|scope| scope.slice.sources.len()).max().unwrap_or(0);
        u16::try_from(most).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests;
