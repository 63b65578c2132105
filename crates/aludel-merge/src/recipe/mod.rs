//! Turns the text of a mergekit recipe into a value whose every part is well formed.
//!
//! In: YAML. Out: a [`Recipe`], or all of its faults at once with their places. It opens no file and knows no merge
//! method: whether models exist, and which parameters a method takes, is asked by those who know (see
//! [`Recipe::check_parameters`]).
//!
//! Reading order: `value` and `parameters` (what stands under `parameters:`), `reference` and `float` (models and element
//! types), `read` (the whole recipe), `check` (parameters against what a method declares). YAML itself, and the places in
//! it, come from [`aludel_document`].

mod check;
mod float;
mod keys;
mod parameters;
mod read;
mod reference;
mod value;

pub use aludel_document::{Located, Scalar, nearest};
pub use check::{DefaultValue, Kind, Level, ParameterSpec};
pub use float::FloatType;
pub use parameters::{Parameter, Parameters};
pub use reference::{ModelReference, TokenizerSource};
pub use value::{FilteredValue, Setting, Value, layer_position};

use crate::problem::Problems;

/// A merge as its author wrote it.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The text that was parsed, unchanged.
    pub text: String,
    /// The method's name as written; whether it exists is not checked here.
    pub merge_method: Located<String>,
    /// The models listed, in the author's order; at least one. The base model is among them only if listed.
    pub models: Vec<ModelEntry>,
    /// The model that task vectors start from.
    pub base_model: Option<Located<ModelReference>>,
    /// Parameters of the whole merge, and defaults for those of the models.
    pub parameters: Parameters,
    /// The type that the reference computes in. Results here do not depend on it beyond the output's type.
    pub dtype: Option<FloatType>,
    /// The type of the output; `dtype` when absent.
    pub out_dtype: Option<FloatType>,
    /// Where the output's tokenizer comes from.
    pub tokenizer_source: Option<Located<TokenizerSource>>,
    /// A chat template, or the name of one, for the output's tokenizer.
    pub chat_template: Option<Located<String>>,
}

/// One entry of `models`.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// Which model.
    pub reference: Located<ModelReference>,
    /// Its own parameters, which go before those of the whole merge.
    pub parameters: Parameters,
}

/// A model that takes part in the merge.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Which model.
    pub reference: &'a Located<ModelReference>,
    /// Its position in [`Recipe::models`]; `None` for a base model that is not listed there and so has no parameters
    /// of its own.
    pub entry: Option<usize>,
    /// Whether it is the base model.
    pub is_base: bool,
}

impl Recipe {
    /// Parses a recipe.
    ///
    /// # Errors
    /// All faults found. Faults of syntax end the search: what follows them cannot be read.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        read::recipe(text)
    }

    /// Every model of the merge: those listed, in their order, then the base model unless it is listed already.
    pub fn models_with_base(&self) -> Vec<Input<'_>> {
        let is_base = |reference: &Located<ModelReference>| {
            self.base_model.as_ref().is_some_and(|base| base.value == reference.value)
        };
        let listed = self.models.iter().enumerate().map(|(index, model)| Input {
            reference: &model.reference,
            entry: Some(index),
            is_base: is_base(&model.reference),
        });
        let mut inputs: Vec<Input<'_>> = listed.collect();
        if let Some(base) = self.base_model.as_ref().filter(|_| !inputs.iter().any(|input| input.is_base)) {
            inputs.push(Input { reference: base, entry: None, is_base: true });
        }
        inputs
    }
}

#[cfg(test)]
mod tests;
