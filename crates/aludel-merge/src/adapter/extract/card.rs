//! Renders the card of an extracted adapter: from what, how exact, and from exactly which files.

use std::fmt::Write;

use aludel_checkpoint::card::{cell, quoted};

use super::report::{Report, figure};
use crate::plan::Source;

/// The card in Markdown with a YAML front matter, as hubs read it. `digests` are those of each source's files.
pub(super) fn render(report: &Report, sources: &[Source], digests: &[Vec<String>]) -> String {
    let mut card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\ntags:\n- lora\n- aludel\n---\n\n# Extracted adapter\n\n",
        quoted(&report.base)
    );
    let _ = writeln!(
        card,
        "What `{}` has beyond `{}`, extracted with aludel {}.\n\n{}: |D - BA| / |D| in Frobenius' norm over all that differs.\n",
        plain(&report.finetuned),
        plain(&report.base),
        env!("CARGO_PKG_VERSION"),
        report.summary(),
    );
    if let Some((before, after)) = report.resized {
        let _ = writeln!(
            card,
            "The embedding has {after} rows where the base has {before}: with peft, call `model.resize_token_embeddings({after})` on the base \
             before the adapter is loaded.\n"
        );
    }
    let _ = writeln!(card, "## Inputs\n\n| model | file | bytes | SHA-256 |\n|---|---|---|---|");
    for (source, digests) in sources.iter().zip(digests) {
        for (file, digest) in source.checkpoint.files().iter().zip(digests) {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            let _ =
                writeln!(card, "| {} | {} | {} | `{digest}` |", cell(&source.model), cell(&name), file.bytes);
        }
    }
    let left_out: Vec<_> = report.left_out.iter().filter(|left_out| left_out.norm.is_some()).collect();
    if !left_out.is_empty() {
        let _ = writeln!(card, "\n## Left out\n\n| tensor | norm | why |\n|---|---|---|");
        for left_out in left_out {
            let norm = left_out.norm.map_or_else(String::new, figure);
            let _ = writeln!(card, "| {} | {norm} | {} |", cell(&left_out.tensor), cell(&left_out.reason));
        }
    }
    card
}

/// A name inside of backquotes that it cannot end.
fn plain(name: &str) -> String {
    name.replace(['`', '\n'], " ")
}
