//! Renders the model card: what was merged, how, and from exactly which files.

use std::fmt::Write;

use aludel_checkpoint::card::{block, cell, quoted};
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, Role};

/// Of each source, the digests of its files; `None` where another part of the output knows it.
pub(super) type Digests = Vec<Vec<Option<String>>>;

/// What a card says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    version: String,
    method: String,
    seed: u64,
    models: Vec<String>,
    inputs: Vec<Input>,
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
    pub(super) fn of(plan: &Plan, digests: &Digests) -> Self {
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
            recipe: plan.recipe.clone(),
        }
    }

    /// Takes in the digests that another part of the same output knows.
    pub(super) fn take(&mut self, other: &Self) {
        for (own, other) in self.inputs.iter_mut().zip(&other.inputs) {
            own.sha256 = own.sha256.take().or_else(|| other.sha256.clone());
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
        let _ = writeln!(card, "\n## Recipe\n\n{}", block("yaml", &self.recipe));
        card
    }
}
