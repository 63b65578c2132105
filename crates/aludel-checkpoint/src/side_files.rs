//! Decides which files of a model folder travel with its weights: tokenizer, chat templates, generation config, remote
//! code, licences.
//!
//! In: a folder. Out: names relative to it. Weights of any sort, indexes, `config.json`, hidden files and the README
//! stay behind.

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::regular::check_side_file;

/// Names relative to `folder`, sorted.
///
/// Errors: [`Error::Io`] when the folder cannot be listed or one of those names is a link to nothing: a download that did
/// not complete leaves such links, and an output without its tokenizer would not show it. [`Error::Unsupported`] where one is no regular file, or
/// a link out of the folder to a file of another name.
pub fn find_side_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut names: Vec<PathBuf> =
        file_names(folder)?.into_iter().filter(|name| travels(name)).map(PathBuf::from).collect();
    let templates = folder.join(TEMPLATE_FOLDER);
    if templates.is_dir() {
        let inner = file_names(&templates)?.into_iter().filter(|name| name.ends_with(".jinja"));
        names.extend(inner.map(|name| Path::new(TEMPLATE_FOLDER).join(name)));
    }
    names.sort();
    names.iter().try_for_each(|name| check_side_file(folder, name))?;
    Ok(names)
}

/// The names directly in `folder` that are no folders, sorted; links to nothing are among them. Hidden names and names
/// that are not UTF-8 are left out: no tool that reads model folders writes any, but some systems add hidden companions.
pub(crate) fn file_names(folder: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && !entry.path().is_dir()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a file of this name belongs to what a user of the output needs.
pub(crate) fn travels(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let ends = |endings: &[&str]| endings.iter().any(|ending| lower.ends_with(ending));
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| lower.starts_with(beginning));
    if ends(WEIGHT_ENDINGS) || lower.contains(".safetensors") {
        return false;
    }
    NAMES.contains(&name) || ends(ENDINGS) || begins(BEGINNINGS)
}

/// Whether a name relative to a model folder is that of an additional chat template.
pub(crate) fn is_chat_template(name: &str) -> bool {
    name.strip_prefix(TEMPLATE_FOLDER).is_some_and(|rest| rest.starts_with('/')) && name.ends_with(".jinja")
}

const TEMPLATE_FOLDER: &str = "additional_chat_templates";

const NAMES: &[&str] = &[
    "added_tokens.json",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
];

const ENDINGS: &[&str] = &[".py", ".jinja", ".model", ".tiktoken"];

/// Licences travel with the weights; `tokenizer.model.v3` is how Mistral numbers its tokenizers.
const BEGINNINGS: &[&str] = &["license", "licence", "notice", "copying", "tokenizer.model"];

const WEIGHT_ENDINGS: &[&str] = &[".bin", ".pt", ".pth", ".gguf", ".index.json"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_of_the_output_needs_travels() {
        for name in NAMES {
            assert!(travels(name), "{name}");
        }
        for name in [
            "chat_template.jinja",
            "modeling_custom.py",
            "spiece.model",
            "qwen.tiktoken",
            "tokenizer.model.v3",
            "LICENSE",
            "LICENSE.txt",
            "Notice.md",
        ] {
            assert!(travels(name), "{name}");
        }
    }

    #[test]
    fn weights_and_what_is_handled_apart_stay_behind() {
        for name in [
            "config.json",
            "README.md",
            "model.safetensors",
            "model.safetensors.index.json",
            "tokenizer.safetensors",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "license.gguf",
            "consolidated.00.pth",
            "training_args.bin",
            "trainer_state.json",
            "adapter_config.json",
        ] {
            assert!(!travels(name), "{name}");
        }
    }
}
