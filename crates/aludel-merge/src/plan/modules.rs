//! Learns which tensors a module of a model with several parts means.
//!
//! In: the names under `modules`, and the tensor names of the model that the output takes after. Out: which module owns each
//! name, and which names no module owns. A module is a word of the tensors' names (`encoder`, `vision_tower`), a dotted
//! beginning of them, or one of mergekit's names for parts that checkpoints call otherwise (`text_decoder`). The longest
//! beginning that matches owns a name, so that a projector inside of a tower is not the tower's.

use aludel_document::{Located, listed};

use super::tensors::is_head;
use crate::problem::Problem;

/// The tensors of each part, by its position among [`Recipe::parts`](crate::recipe::Recipe::parts).
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Beginnings of names, each with its dot, and their owners; without owner where they keep a part out of the rest.
    beginnings: Vec<(String, Option<usize>)>,
    /// The owner of heads that no beginning matches.
    heads: Option<usize>,
    /// The owner of everything that no beginning matches.
    rest: Option<usize>,
}

/// mergekit's names for parts, with what checkpoints call them.
const ALIASES: [(&str, &[&str]); 4] = [
    ("text_decoder", &["language_model", "text_model"]),
    ("vision_tower", &["vision_tower", "vision_model", "visual"]),
    ("vision_model", &["vision_model", "vision_tower", "visual"]),
    ("multi_modal_projector", &["multi_modal_projector", "mm_projector", "visual.merger", "connector"]),
];

/// What is no part of a text decoder that has no word of its own in the names.
const NOT_TEXT: [&str; 9] = [
    "vision_tower",
    "vision_model",
    "visual",
    "multi_modal_projector",
    "mm_projector",
    "connector",
    "audio_tower",
    "image_newline",
    "embed_vision",
];

impl Modules {
    /// Everything belongs to the one part of a recipe without modules.
    pub(super) fn one() -> Self {
        Self { rest: Some(0), ..Self::default() }
    }

    /// Finds every module among the names of the model of this name.
    pub(super) fn learn(
        modules: &[&Located<String>],
        model: &str,
        names: &[&str],
        problems: &mut crate::problem::Problems,
    ) -> Self {
        let mut learned = Self::default();
        for (part, module) in modules.iter().enumerate() {
            let name = module.value.as_str();
            let aliases =
                ALIASES.iter().find(|(known, _)| *known == name).map_or(&[] as &[&str], |(_, all)| all);
            let found = std::iter::once(name)
                .chain(aliases.iter().copied())
                .find_map(|word| beginning_with(word, names));
            match (found, name) {
                (Some(beginning), _) => learned.add(beginning, part, module, modules, problems),
                (None, "default") => learned.rest = Some(part),
                (None, "text_decoder") if names.iter().any(|name| is_text(name)) => {
                    let others = NOT_TEXT.iter().filter_map(|word| beginning_with(word, names));
                    learned.beginnings.extend(others.map(|beginning| (beginning, None)));
                    learned.rest = Some(part);
                }
                (None, _) => problems.push(unknown(module, model, names)),
            }
            if matches!(name, "text_decoder" | "shared") {
                learned.heads = Some(part);
            }
        }
        learned
    }

    fn add(
        &mut self,
        beginning: String,
        part: usize,
        module: &Located<String>,
        modules: &[&Located<String>],
        problems: &mut crate::problem::Problems,
    ) {
        if let Some((_, Some(other))) = self.beginnings.iter().find(|(known, _)| *known == beginning) {
            let message = format!(
                "module `{}` is `{beginning}*` in the models, which module `{}` is too",
                module.value, modules[*other].value
            );
            problems.push(Problem::at(module.place.clone(), message).with_hint("keep one of them"));
        }
        self.beginnings.push((beginning, Some(part)));
    }

    /// The part that a tensor belongs to.
    pub(super) fn owner(&self, name: &str) -> Option<usize> {
        let matching = self.beginnings.iter().filter(|(beginning, _)| begins(name, beginning));
        match matching.max_by_key(|(beginning, owner)| (beginning.len(), owner.is_some())) {
            Some((_, owner)) => *owner,
            None if self.heads.is_some() && is_head(name) => self.heads,
            None => self.rest,
        }
    }
}

/// Whether a name lies under a beginning with its dot, or is it.
fn begins(name: &str, beginning: &str) -> bool {
    name.starts_with(beginning) || Some(name) == beginning.strip_suffix('.')
}

/// The shortest beginning of any name that ends in these words.
fn beginning_with(words: &str, names: &[&str]) -> Option<String> {
    let framed = format!(".{words}.");
    let found = names.iter().filter_map(|name| {
        let name = format!(".{name}.");
        name.find(&framed).map(|at| name[1..at + framed.len()].to_owned())
    });
    found.min_by_key(String::len)
}

fn is_text(name: &str) -> bool {
    !name.split('.').any(|part| NOT_TEXT.contains(&part))
}

fn unknown(module: &Located<String>, model: &str, names: &[&str]) -> Problem {
    let mut words: Vec<&str> = Vec::new();
    for name in names {
        let mut parts = name.split('.');
        let first = parts.next().unwrap_or("");
        let word = if first == "model" { parts.next().unwrap_or(first) } else { first };
        if !words.contains(&word) && words.len() < MOST_WORDS {
            words.push(word);
        }
    }
    let message = format!("`{model}` has no module `{}`", module.value);
    Problem::at(module.place.clone(), message).with_hint(format!("its tensors begin with {}", listed(words)))
}

/// Words of a model that a message lists.
const MOST_WORDS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Place, Problems};

    fn owners(modules: &[&str], names: &[&str]) -> (Vec<Option<usize>>, Problems) {
        let place = Place { line: 1, column: 1, path: String::new() };
        let modules: Vec<_> =
            modules.iter().map(|&name| Located { value: name.to_owned(), place: place.clone() }).collect();
        let mut problems = Problems::new();
        let modules: Vec<_> = modules.iter().collect();
        let learned = Modules::learn(&modules, "m", names, &mut problems);
        (names.iter().map(|name| learned.owner(name)).collect(), problems)
    }

    #[test]
    fn modules_are_words_of_the_names() {
        let t5 = ["shared.weight", "encoder.block.0.q", "decoder.block.0.q", "lm_head.weight"];
        let (owned, problems) = owners(&["encoder", "decoder", "shared"], &t5);
        assert_eq!((owned, problems.is_empty()), (vec![Some(2), Some(0), Some(1), Some(2)], true));
        assert_eq!(owners(&["decoder"], &t5).0, [None, None, Some(0), None]);
        let whisper =
            ["model.encoder.layers.0.q", "model.decoder.layers.0.encoder_attn.q", "proj_out.weight"];
        assert_eq!(owners(&["encoder", "decoder"], &whisper).0, [Some(0), Some(1), None]);
        assert_eq!(owners(&["default"], &whisper).0, [Some(0); 3]);
        assert_eq!(owners(&["model.encoder"], &whisper).0, [Some(0), None, None]);
    }

    #[test]
    fn the_parts_of_vision_language_models_are_found_under_every_name() {
        let llava = [
            "language_model.model.layers.0.q",
            "language_model.lm_head.weight",
            "vision_tower.vision_model.encoder.layers.0.q",
            "multi_modal_projector.linear.weight",
        ];
        let modules = ["text_decoder", "vision_tower", "multi_modal_projector"];
        assert_eq!(owners(&modules, &llava).0, [Some(0), Some(0), Some(1), Some(2)]);
        let recent = ["model.language_model.layers.0.q", "lm_head.weight", "model.vision_tower.layers.0.q"];
        assert_eq!(owners(&["text_decoder"], &recent).0, [Some(0), Some(0), None]);
        let qwen2 = ["model.layers.0.q", "lm_head.weight", "visual.blocks.0.q", "visual.merger.mlp.0.weight"];
        assert_eq!(owners(&modules, &qwen2).0, [Some(0), Some(0), Some(1), Some(2)]);
        assert_eq!(owners(&["text_decoder"], &qwen2).0, [Some(0), Some(0), None, None]);
    }

    #[test]
    fn a_module_that_is_not_there_is_told_with_those_that_are() {
        let (_, problems) = owners(&["vision_tower"], &["model.layers.0.q", "lm_head.weight"]);
        assert_eq!(
            problems.to_string(),
            "1:1: `m` has no module `vision_tower` (its tensors begin with `layers`, `lm_head`)"
        );
        let (_, problems) = owners(&["vision_tower", "visual"], &["visual.blocks.0.q"]);
        assert!(problems.to_string().contains("which module `vision_tower` is too"), "{problems}");
    }
}
