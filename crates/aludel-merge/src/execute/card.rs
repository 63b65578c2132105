//! Renders the model card: what was merged, how, and from exactly which files.

use std::fmt::Write;

use crate::plan::Plan;

/// The card in Markdown with a YAML front matter, as model hubs read it. `digests` are those of each source's files.
pub(super) fn render(plan: &Plan, digests: &[Vec<String>]) -> String {
    let mut card = String::from("---\nlibrary_name: transformers\nbase_model:\n");
    for source in &plan.sources {
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
    let fence = fence_for(&plan.recipe);
    let _ = writeln!(card, "\n## Recipe\n\n{fence}yaml\n{}\n{fence}", plan.recipe.trim_end());
    card
}

/// A YAML string that nothing in it can end early.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// A fence longer than any in the text.
fn fence_for(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(longest.max(2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_recipe_or_a_name_breaks_out_of_the_card() {
        assert_eq!(fence_for("a: b # ```` c"), "`````");
        assert_eq!(fence_for("plain"), "```");
        assert_eq!(quoted("a\"\nb"), r#""a\"\nb""#);
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }
}
