//! Renders the model card: what was merged, how, and from exactly which files.

use std::fmt::Write;

use aludel_checkpoint::card::{block, cell, quoted};
use serde::{Deserialize, Serialize};

use crate::derive::Aligned;
use crate::plan::{Plan, Role};

/// Of each source, the digests of its files; `None` where another part of the output knows it.
pub(super) type Digests = Vec<Vec<Option<String>>>;

/// What a card says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Card {
    version: String,
    method: String,
    seed: u64,
    models: Vec<String>,
    inputs: Vec<Input>,
    /// The experts that were put in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aligned: Vec<Aligned>,
    recipe: String,
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Input {
    model: String,
    file: String,
    bytes: u64,
    /// `None` where another part of the output knows it.
    sha256: Option<String>,
}

impl Card {
    /// The card of a plan's output; `digests` are those of each source's files.
    pub(super) fn of(plan: &Plan, digests: &Digests, aligned: &[Aligned]) -> Self {
        let of_weights = plan.sources.iter().filter(|source| source.role != Role::Statistics);
        let inputs = plan.sources.iter().zip(digests).flat_map(|(source, digests)| {
            source.checkpoint.files().iter().zip(digests).map(|(file, digest)| Input {
                model: source.model.clone(),
                file: file.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: file.bytes,
                sha256: digest.clone(),
            })
        });
        Self {
            version: plan.version.to_owned(),
            method: plan.method.to_owned(),
            seed: plan.seed,
            models: of_weights.map(|source| source.model.clone()).collect(),
            inputs: inputs.collect(),
            aligned: aligned.to_vec(),
            recipe: plan.recipe.clone(),
        }
    }

    /// Takes in the digests, and the orders of experts, that another part of the same output knows.
    pub(super) fn take(&mut self, other: &Self) {
        for (own, other) in self.inputs.iter_mut().zip(&other.inputs) {
            own.sha256 = own.sha256.take().or_else(|| other.sha256.clone());
        }
        for other in &other.aligned {
            let is_same = |own: &Aligned| (&own.experts, &own.model) == (&other.experts, &other.model);
            if !self.aligned.iter().any(is_same) {
                self.aligned.push(other.clone());
            }
        }
    }

    /// The card in Markdown with a YAML front matter, as model hubs read it.
    pub(super) fn render(&self) -> String {
        let mut card = String::from("---\nlibrary_name: transformers\nbase_model:\n");
        for model in &self.models {
            let _ = writeln!(card, "- {}", quoted(model));
        }
        let _ = writeln!(card, "tags:\n- merge\n- aludel\n---\n\n# Merged model\n");
        let Self { version, method, seed, .. } = self;
        let _ = writeln!(card, "Merged with aludel {version} by the `{method}` method, seed {seed}.\n");
        let _ = writeln!(card, "## Inputs\n\n| model | file | bytes | SHA-256 |\n|---|---|---|---|");
        for Input { model, file, bytes, sha256 } in &self.inputs {
            let sha256 = sha256.as_deref().unwrap_or("unknown");
            let _ = writeln!(card, "| {} | {} | {bytes} | `{sha256}` |", cell(model), cell(file));
        }
        self.render_experts(&mut card);
        let _ = writeln!(card, "\n## Recipe\n\n{}", block("yaml", &self.recipe));
        card
    }
    fn render_experts(&self, card: &mut String) {
        if self.aligned.is_empty() {
            return;
        }
        let _ = writeln!(
            card,
            "\n## Experts\n\nOf each model the experts were put in the order of another's before they were merged. The order names, place \
             by place, the expert that took it; the cosine is that of all that moved, before and after.\n"
        );
        let _ = writeln!(card, "| model | in the order of | layer | cosine | order |\n|---|---|---|---|---|");
        for Aligned { experts, model, reference, order, cosine_as_stored, cosine } in &self.aligned {
            let order: Vec<String> = order.iter().map(usize::to_string).collect();
            let (model, reference, experts) = (cell(model), cell(reference), cell(experts));
            let _ = writeln!(
                card,
                "| {model} | {reference} | {experts} | {cosine_as_stored:.4}, {cosine:.4} | {} |",
                order.join(" ")
            );
        }
    }
}
