//! Finds the files that hold a folder's weights, and says what to do where there are none that are read.
//!
//! In: a folder. Out: file names, with an index where there is one. Safetensors go before files of torch, an index before
//! single files, and what trainers keep besides the weights is no weight. No file is opened but the index.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::index::{FilesOfIndex, read_index};
use crate::names::{fault_of_plain_name, fault_of_relative_name};
use crate::side_files::{file_names, is_chat_template, travels};

/// The weights of a folder.
pub(crate) enum WeightFiles {
    /// As an index lists them.
    Indexed(PathBuf, FilesOfIndex),
    /// By name.
    Names(Vec<String>),
}

impl WeightFiles {
    /// Those of a folder.
    ///
    /// Errors: [`Error::NotACheckpoint`], [`Error::Unsupported`], [`Error::Damaged`] when a shard is missing, [`Error::Io`].
    pub(crate) fn find(folder: &Path) -> Result<Self, Error> {
        let names = file_names(folder)?;
        for (format, index, single) in FORMATS {
            let index = folder.join(index);
            if is_listed(&index) {
                let files = read_index(&index, |name| format.is_of(name))?;
                return Ok(Self::Indexed(index, files));
            }
            let mut files: Vec<String> = names.iter().filter(|name| format.is_of(name)).cloned().collect();
            if files.iter().any(|name| name == single) {
                return Ok(Self::Names(vec![single.into()]));
            }
            // The same weights in the layout of their trainer, beside those that transformers loads.
            if files.iter().any(|name| !is_consolidated(name)) {
                files.retain(|name| !is_consolidated(name));
            }
            check_complete(folder, &files)?;
            if !files.is_empty() {
                format.check_several(folder, &files)?;
                return Ok(Self::Names(files));
            }
        }
        Err(refusal_of_folder(folder, &names))
    }
}

/// The files of a model folder that are read, of all that it would have: config, what travels with the weights, and weights in one format
/// with their index.
///
/// Errors: why no weights are among them.
pub fn needed_files(names: &[String]) -> Result<Vec<String>, String> {
    let mut top: Vec<&String> = names.iter().filter(|name| fault_of_plain_name(name).is_none()).collect();
    top.sort();
    let beneath =
        names.iter().filter(|name| is_chat_template(name) && fault_of_relative_name(name).is_none());
    let mut needed: Vec<String> = top
        .iter()
        .copied()
        .filter(|name| *name == "config.json" || travels(name))
        .chain(beneath)
        .cloned()
        .collect();
    for (format, index, single) in FORMATS {
        let all: Vec<&String> = top.iter().copied().filter(|name| format.is_of(name)).collect();
        let has = |wanted: &str| top.iter().any(|name| *name == wanted);
        let series = || all.iter().copied().filter(|name| shard_of(name).is_some() && !is_consolidated(name));
        let weights: Vec<&String> = match (has(index), has(single)) {
            (true, _) if series().next().is_some() => series().collect(),
            (_, true) => all.iter().copied().filter(|name| *name == single).collect(),
            _ if all.iter().all(|name| is_consolidated(name)) => all,
            _ => all.into_iter().filter(|name| !is_consolidated(name)).collect(),
        };
        if !weights.is_empty() {
            needed.extend(has(index).then(|| index.to_owned()));
            needed.extend(weights.into_iter().cloned());
            return Ok(needed);
        }
    }
    let gguf = names.iter().find(|name| name.ends_with(".gguf"));
    Err(match gguf {
        Some(name) => {
            format!("it has files of GGUF such as {name}; download the one that is meant and name it")
        }
        None => "it has neither safetensors nor files of torch".to_owned(),
    })
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    /// What `torch.save` writes.
    Torch,
}

impl Format {
    /// That of a file, by its name; `None` for files of other kinds.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        [Self::Safetensors, Self::Torch].into_iter().find(|format| format.is_of(name))
    }

    fn is_of(self, name: &str) -> bool {
        match self {
            Self::Safetensors => name.ends_with(".safetensors"),
            Self::Torch => {
                let lower = name.to_ascii_lowercase();
                [".bin", ".pt", ".pth"].iter().any(|ending| lower.ends_with(ending)) && !is_of_trainer(&lower)
            }
        }
    }

    /// Of several safetensors files each has its tensors; several files of torch that are no series are versions or parts of
    /// the same ones.
    fn check_several(self, folder: &Path, files: &[String]) -> Result<(), Error> {
        let is_series = || files.iter().all(|name| shard_of(name).is_some());
        if self == Self::Safetensors || files.len() == 1 || is_series() {
            return Ok(());
        }
        let detail =
            format!("it holds {} and {}, among others; give the one file that is meant", files[0], files[1]);
        Err(Error::not_a_checkpoint(folder, detail))
    }
}

/// Formats by preference, with the names of their index and of a single file.
const FORMATS: [(Format, &str, &str); 2] = [
    (Format::Safetensors, crate::index::INDEX_NAME, SINGLE_NAME),
    (Format::Torch, "pytorch_model.bin.index.json", "pytorch_model.bin"),
];

/// The name of the weights in a folder with one file of them.
pub(crate) const SINGLE_NAME: &str = "model.safetensors";

/// What trainers keep for going on; `lower` is the name in lower case.
fn is_of_trainer(lower: &str) -> bool {
    ["training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states"]
        .iter()
        .any(|beginning| lower.starts_with(beginning))
}

fn is_consolidated(name: &str) -> bool {
    name.starts_with("consolidated")
}

/// Without an index, only the names can tell that a shard is missing. `names` is sorted.
fn check_complete(folder: &Path, names: &[String]) -> Result<(), Error> {
    let series: BTreeSet<(&str, &str, &str)> = names.iter().filter_map(|name| shard_of(name)).collect();
    for (stem, count, ending) in series {
        let is_missing = |&number: &usize| {
            let name = format!("{stem}-{number:0width$}-of-{count}.{ending}", width = count.len());
            names.binary_search(&name).is_err()
        };
        let shards: usize = count.parse().unwrap_or(usize::MAX);
        let first = usize::from(is_missing(&0));
        // A folder holds finitely many files, so the search ends even where the names claim more shards than that.
        if let Some(number) = (first..shards.saturating_add(first)).find(is_missing) {
            let detail =
                format!("shard {number} of {count} of {stem:?} is missing; download or copy it again");
            return Err(Error::damaged(folder, detail));
        }
    }
    Ok(())
}

/// The stem, the count and the ending of a name like `model-00001-of-00002.safetensors`.
fn shard_of(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, ending) = name.rsplit_once('.')?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(count)).then_some((stem, count, ending))
}

/// Whether the folder has this name, even as a link to nothing: such a link is an incomplete download, not an absence.
pub(crate) fn is_listed(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn refusal_of_folder(folder: &Path, names: &[String]) -> Error {
    match names.iter().find_map(|name| remedy_for_format(&folder.join(name))) {
        Some(remedy) => Error::unsupported(folder, remedy),
        None => Error::not_a_checkpoint(
            folder,
            "it holds no weights: no .safetensors file, and none of torch (.bin, .pt, .pth)",
        ),
    }
}

/// Why a file is not read.
pub(crate) fn refusal_of_file(path: &Path) -> Error {
    if path.to_string_lossy().ends_with(".index.json") {
        return Error::not_a_checkpoint(path, "it is an index; give the folder that it lies in");
    }
    match remedy_for_format(path) {
        Some(remedy) => Error::unsupported(path, remedy),
        None => {
            Error::not_a_checkpoint(path, "its name does not end in .safetensors, nor in .bin, .pt or .pth")
        }
    }
}

/// What to do with weights of another format.
fn remedy_for_format(file: &Path) -> Option<String> {
    let extension = file.extension()?.to_str()?;
    extension.eq_ignore_ascii_case("gguf").then(|| {
        let file = file.display();
        format!("it is in GGUF; name the file itself in a recipe, or run `aludel convert {file} out/` and give the folder `out/`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(names: &[&str]) -> Result<Vec<String>, String> {
        needed_files(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn one_format_of_the_weights_is_needed() {
        let both = [
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "README.md",
            "tokenizer.json",
            "onnx/model.onnx",
        ];
        assert_eq!(needed(&both).unwrap(), ["config.json", "tokenizer.json", "model.safetensors"]);
        let shards = [
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "additional_chat_templates/tool.jinja",
        ];
        assert_eq!(needed(&shards).unwrap(), [shards[4], shards[3], shards[1], shards[2]]);
        assert_eq!(needed(&["pytorch_model.bin", "optimizer.pt"]).unwrap(), ["pytorch_model.bin"]);
    }

    #[test]
    fn names_that_leave_the_folder_are_not_needed() {
        assert!(needed(&["../model.safetensors", "a/model.safetensors", "/x.safetensors"]).is_err());
        assert!(needed(&["model-Q4_K_M.gguf"]).unwrap_err().contains("model-Q4_K_M.gguf"));
        assert_eq!(
            needed(&["m.safetensors", "additional_chat_templates/../../x.jinja"]).unwrap(),
            ["m.safetensors"]
        );
    }
}
