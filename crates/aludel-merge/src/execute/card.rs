//! Renders the model card: what was merged, how, and from exactly which files.

use std::fmt::Write;

use aludel_checkpoint::card::{block, cell, quoted};

use crate::plan::{Plan, Role};

/// The card in Markdown with a YAML front matter, as model hubs read it. `digests` are those of each source's files.
pub(super) fn render(plan: &Plan, digests: &[Vec<String>]) -> String {
    let mut card = String::from("---\nlibrary_name: transformers\nbase_model:\n");
    for source in plan.sources.iter().filter(|source| source.role != Role::Statistics) {
        let _ = writeln!(card, "- {}", quoted(&source.model));
    }
    let _ = writeln!(card, "tags:\n- merge\n- aludel\n---\n\n# Merged model\n");
    let _ = writeln!(
        card,
        "Merged with aludel {} by the `{}` method, seed {}.\n",
        plan.version, plan.method, plan.seed
    );
    let _ = writeln!(card, "## Inputs\n\n| model | file | bytes | SHA-256 |\n|---|---|---|---|");
    for (source, digests) in plan.sources.iter().zip(digests) {
        for (file, digest) in source.checkpoint.files().iter().zip(digests) {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            let _ =
                writeln!(card, "| {} | {} | {} | `{digest}` |", cell(&source.model), cell(&name), file.bytes);
        }
    }
    let _ = writeln!(card, "\n## Recipe\n\n{}", block("yaml", &plan.recipe));
    card
}
