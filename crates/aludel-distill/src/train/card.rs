//! Renders the student's model card: who taught it, how, and from exactly which files.

use std::fmt::Write;

use aludel_checkpoint::card::{block, cell, quoted};

use crate::inputs::{Input, Role};

/// What a card says.
pub(super) struct Card<'a> {
    /// The run's file, word for word.
    pub(super) text: &'a str,
    pub(super) inputs: &'a [Input],
    /// The step that the weights are of, and how many the run was to have.
    pub(super) step: u64,
    pub(super) steps: u64,
    pub(super) tokens: u64,
    /// Measures of the student on held-out documents, by name: before the first step, and of these weights.
    pub(super) measures: Vec<(String, Option<f64>, Option<f64>)>,
}

impl Card<'_> {
    /// The card in Markdown with a YAML front matter, as model hubs read it.
    pub(super) fn render(&self) -> String {
        let mut card = String::from("---\nlibrary_name: transformers\n");
        let mut models: Vec<&str> = self.of(Role::Student).map(|input| input.given.as_str()).collect();
        if models.is_empty() {
            models = self.of(Role::Teacher).map(|input| input.given.as_str()).collect();
        }
        models.dedup();
        if !models.is_empty() {
            card.push_str("base_model:\n");
            models.iter().for_each(|model| {
                let _ = writeln!(card, "- {}", quoted(model));
            });
        }
        let is_taught = self.of(Role::Teacher).next().is_some();
        let title = if is_taught { "Distilled model" } else { "Trained model" };
        let tag = if is_taught { "- distillation\n" } else { "" };
        let _ = write!(card, "tags:\n{tag}- aludel\n---\n\n# {title}\n\n");
        let taught = match self.of(Role::Teacher).next() {
            Some(teacher) => format!(", taught by {}", code(&teacher.given)),
            None => String::new(),
        };
        let _ = writeln!(
            card,
            "Trained with aludel {}{taught}: {} of {} steps, {} tokens.\n",
            env!("CARGO_PKG_VERSION"),
            self.step,
            self.steps,
            self.tokens,
        );
        self.render_measures(&mut card);
        let _ =
            writeln!(card, "## Inputs\n\n| role | given | file | bytes | SHA-256 |\n|---|---|---|---|---|");
        for Input { role, given, file, bytes, sha256 } in self.inputs {
            let (role, given, file) = (role.name(), cell(given), cell(file));
            let _ = writeln!(card, "| {role} | {given} | {file} | {bytes} | `{sha256}` |");
        }
        let _ = writeln!(card, "\n## Run\n\n{}", block("yaml", self.text));
        card
    }

    fn render_measures(&self, card: &mut String) {
        if self.measures.is_empty() {
            return;
        }
        let _ = writeln!(card, "## Held-out documents\n\n| measure | before | after |\n|---|---|---|");
        let number = |value: &Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
        for (name, before, after) in &self.measures {
            let _ = writeln!(card, "| {} | {} | {} |", cell(name), number(before), number(after));
        }
        card.push('\n');
    }

    fn of(&self, role: Role) -> impl Iterator<Item = &Input> {
        self.inputs.iter().filter(move |input| input.role == role)
    }
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace(['`', '\n'], " "))
}
