//! Plans tensors that are fitted to the members' layers rather than computed element by element.
//!
//! In: a matched tensor, its members and where their statistics are. Out: the one input that the tensor is, made by
//! [`Fitted`] while it is read; or why the tensor cannot be fitted.

use super::StepInput;
use super::models::Models;
use super::stage::Stage;
use super::tensors::Matched;
use crate::derive::{Fitted, Fitting, Made, Readable, Stored};
use crate::methods::{Fit, Member};
use crate::problem::Problem;

/// The layers of one output tensor.
pub(super) struct Layers<'a> {
    pub stage: &'a Stage<'a>,
    /// Whether the stage is the last.
    pub is_output: bool,
    pub models: &'a Models,
    pub tensor: &'a Matched,
}

impl Layers<'_> {
    /// The input that is fitted to what the members' layers make of their inputs.
    pub(super) fn fitted(
        &self,
        fit: Fit,
        members: &[Member],
        statistics: &[Option<Stored>],
    ) -> Result<StepInput, Problem> {
        let method = self.stage.method.name();
        let name = &self.tensor.name;
        if !self.is_output {
            let message =
                format!("`{method}` solves for whole tensors, which no later recipe can go on from");
            return self
                .refused(message, "merge this recipe by itself first, and give the folder that it writes");
        }
        let &[rows, columns] = self.tensor.shape.as_slice() else {
            return self.refused(format!("`{name}` is no matrix"), "leave it out of the statistics");
        };
        if self.has_inputs_first() {
            let message = format!(
                "`{name}` has a row for each input, as GPT-2's layers are stored, and `{method}` merges rows of outputs"
            );
            return self.refused(message, "leave such tensors out of the statistics: they are averaged then");
        }
        let mut layers = Vec::new();
        for ((member, gram), weight) in members.iter().zip(statistics.iter().flatten()).zip(fit.weights) {
            layers.push(Fitting { layer: self.layer(member)?, gram: gram.clone(), weight });
        }
        let Some(Stored { source, tensor }) = layers.first().map(|first| first.layer.stored.clone()) else {
            return self.refused(format!("`{method}` merges at least 1 model(s)"), "list one under `models`");
        };
        let made = Made::by(Fitted::new(layers, (rows, columns), fit.alpha, fit.ridge));
        Ok(StepInput { source, tensor, made: Some(made) })
    }

    /// The layer of a member.
    fn layer(&self, member: &Member) -> Result<Readable, Problem> {
        let input = &self.tensor.inputs[usize::from(member.input)];
        let model = &self.models.list[input.model];
        let Some(source) = model.source() else {
            let method = self.stage.method.name();
            let message =
                format!("`{}` is made by this recipe, and `{method}` merges models on disk", model.name);
            return self.refused(message, "merge in two runs: first what it is to be merged with");
        };
        let own = || model.tensors.get(&input.tensor)?.made.as_ref();
        let made = input.made.as_ref().or_else(own).cloned();
        Ok(Readable { stored: Stored { source, tensor: input.tensor.clone() }, made })
    }

    /// Whether the tensor is stored with a row for each input, which square ones do not show.
    fn has_inputs_first(&self) -> bool {
        let config = self.stage.config.as_ref();
        let kind = config.and_then(|config| config.value("model_type")?.as_str());
        kind.is_some_and(|kind| INPUTS_FIRST.contains(&kind))
            && LAYERS.iter().any(|layer| self.tensor.name.ends_with(layer))
    }

    fn refused<T>(&self, message: String, hint: &str) -> Result<T, Problem> {
        Err(Problem::at(self.stage.recipe.merge_method.place.clone(), message).with_hint(hint))
    }
}

/// Values of `model_type` whose layers have a row for each input: what transformers calls `Conv1D`.
const INPUTS_FIRST: &[&str] = &["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/// What the names of these layers end in.
const LAYERS: &[&str] = &[".c_attn.weight", ".q_attn.weight", ".c_proj.weight", ".c_fc.weight"];
