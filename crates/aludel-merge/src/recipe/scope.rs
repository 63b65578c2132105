//! Says what holds in one slice of a recipe: its models, its base, and which of the parameters given at several levels.
//!
//! In: a recipe, one of its parts and one of its slices. Out: the models that take part there, and the value of a parameter
//! for a model and a tensor: the model's own where its filters select the tensor, else the slice's, else the part's, else the
//! recipe's.

use aludel_document::{Located, Scalar};

use super::check::{as_bool, as_choice, as_number, as_text};
use super::{ModelEntry, ModelReference, Parameters, Part, Recipe, Slice};
use crate::problem::Problem;

/// A slice of a recipe, and what it lies in.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'r> {
    /// The recipe.
    pub recipe: &'r Recipe,
    /// The part of it.
    pub part: &'r Part,
    /// The slice of that.
    pub slice: &'r Slice,
}

/// A model that takes part in the merge of a slice.
#[derive(Debug, Clone, Copy)]
pub struct Input<'r> {
    /// Which model.
    pub reference: &'r Located<ModelReference>,
    /// Its position in [`Slice::sources`]; `None` for a base model that is not listed there and so has no parameters
    /// of its own.
    pub entry: Option<usize>,
    /// Whether it is the base model.
    pub is_base: bool,
}

impl<'r> Scope<'r> {
    /// The base model: the slice's own, else the recipe's.
    pub fn base_model(&self) -> Option<&'r Located<ModelReference>> {
        self.slice.base_model.as_ref().or(self.recipe.base_model.as_ref())
    }

    /// Every model of the slice: those listed, in their order, then the base model unless it is listed already. A slice
    /// with layer ranges has no model that is not listed, since nothing would say which of its layers are meant.
    pub fn models_with_base(&self) -> Vec<Input<'r>> {
        let base = self.base_model();
        let is_base =
            |reference: &Located<ModelReference>| base.is_some_and(|base| base.value == reference.value);
        let listed = self.slice.sources.iter().enumerate().map(|(index, model)| Input {
            reference: &model.reference,
            entry: Some(index),
            is_base: is_base(&model.reference),
        });
        let mut inputs: Vec<Input<'r>> = listed.collect();
        let has_base = inputs.iter().any(|input| input.is_base);
        if let Some(base) = base.filter(|_| !has_base && self.slice.is_whole) {
            inputs.push(Input { reference: base, entry: None, is_base: true });
        }
        inputs
    }

    /// The entry of a model by its position in [`Slice::sources`].
    pub fn entry(&self, model: Option<usize>) -> Option<&'r ModelEntry> {
        self.slice.sources.get(model?)
    }

    /// The value of a parameter for a tensor at a position from 0 to 1 (see [`layer_position`](super::layer_position)), from
    /// the first level that has one whose filters select the tensor. `model` is a position in [`Slice::sources`], or `None`
    /// for parameters of the whole merge and for a base model that is not listed.
    pub fn scalar(
        &self,
        name: &str,
        model: Option<usize>,
        tensor: &str,
        position: f64,
    ) -> Option<Located<Scalar>> {
        let own = self.entry(model).map(|entry| &entry.parameters);
        own.into_iter().chain(self.levels()).find_map(|level| level.resolve(name, tensor, position))
    }

    /// Whether any level that holds for the model gives the parameter, under whatever filter.
    pub fn is_given(&self, name: &str, model: Option<usize>) -> bool {
        let own = self.entry(model).map(|entry| &entry.parameters);
        own.into_iter().chain(self.levels()).any(|level| level.find(name).is_some())
    }

    /// The levels above the models, the nearest first.
    pub fn levels(&self) -> [&'r Parameters; 3] {
        [&self.slice.parameters, &self.part.parameters, &self.recipe.parameters]
    }

    /// As [`Scope::scalar`], as a number.
    ///
    /// # Errors
    /// The value is not a number.
    pub fn number(
        &self,
        name: &str,
        model: Option<usize>,
        tensor: &str,
        position: f64,
    ) -> Result<Option<f64>, Problem> {
        self.scalar(name, model, tensor, position).map(|scalar| as_number(&scalar)).transpose()
    }

    /// As [`Scope::scalar`], as a truth value; 1 is true and 0 false.
    ///
    /// # Errors
    /// The value is neither.
    pub fn boolean(
        &self,
        name: &str,
        model: Option<usize>,
        tensor: &str,
        position: f64,
    ) -> Result<Option<bool>, Problem> {
        self.scalar(name, model, tensor, position).map(|scalar| as_bool(&scalar)).transpose()
    }

    /// As [`Scope::scalar`], as one of these words.
    ///
    /// # Errors
    /// The value is none of them.
    pub fn choice(
        &self,
        name: &str,
        words: &[&'static str],
        model: Option<usize>,
        tensor: &str,
        position: f64,
    ) -> Result<Option<&'static str>, Problem> {
        self.scalar(name, model, tensor, position).map(|scalar| as_choice(&scalar, words)).transpose()
    }

    /// As [`Scope::scalar`], as text.
    ///
    /// # Errors
    /// The value is a number or a truth value.
    pub fn string(
        &self,
        name: &str,
        model: Option<usize>,
        tensor: &str,
        position: f64,
    ) -> Result<Option<Located<String>>, Problem> {
        self.scalar(name, model, tensor, position).map(|scalar| as_text(&scalar)).transpose()
    }
}
