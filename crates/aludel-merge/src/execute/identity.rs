//! Names what the bytes of an output depend on, so that nobody goes on with what was begun for another one.
//!
//! Threads, memory and tiles are not among it. Inputs count as what they are by their size and time: they are not read for it.

use std::path::PathBuf;

use aludel_checkpoint::{Config, Error, FileStates, hexadecimal};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::MergeError;
use crate::plan::Plan;

/// The files that an output depends on, as they are now: weights, and what says how they are to be read.
pub(super) fn inputs(plan: &Plan) -> Result<FileStates, Error> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for source in &plan.sources {
        paths.extend(source.checkpoint.files().iter().map(|file| file.path.clone()));
        let beside = SETTINGS.iter().map(|name| source.checkpoint.path().join(name));
        paths.extend(beside.filter(|path| path.is_file()));
    }
    FileStates::of(paths.iter().map(PathBuf::as_path))
}

/// A digest of everything that the output of a plan depends on, its own part of it included.
pub(super) fn identity(plan: &Plan, inputs: &FileStates) -> Result<String, MergeError> {
    digest(plan, (plan.part, inputs.stamps().collect::<Vec<_>>()))
}

/// The same for all parts of an output, whatever machines they are written on: inputs count by their names and sizes.
pub(super) fn identity_of_whole(plan: &Plan) -> Result<String, MergeError> {
    let files = plan.sources.iter().flat_map(|source| source.checkpoint.files());
    let files: Vec<_> =
        files.map(|file| (file.path.file_name().map(|name| name.to_string_lossy()), file.bytes)).collect();
    digest(plan, files)
}

fn digest(plan: &Plan, inputs: impl Serialize) -> Result<String, MergeError> {
    let config = plan.config.as_ref().map(Config::to_json);
    let settings = (
        plan.version,
        &plan.recipe,
        plan.seed,
        plan.allow_non_finite,
        plan.delta.as_ref().map(|delta| format!("{:?}", delta.values)),
        config,
    );
    let output = (&plan.formulas, &plan.steps, &plan.layout, &plan.side_files.names);
    let written: Vec<&str> = plan.side_files.written.iter().map(|file| file.text.as_str()).collect();
    let text = serde_json::to_vec(&(settings, output, written, inputs)).map_err(undescribed)?;
    Ok(hexadecimal(&Sha256::digest(text)))
}

/// A plan that JSON cannot express.
pub(super) fn undescribed(error: serde_json::Error) -> Error {
    Error::Io { action: "describe the merge for", path: "a later run".into(), source: error.into() }
}

/// Files beside weights that settle what is made of them.
const SETTINGS: [&str; 3] = ["config.json", "adapter_config.json", "tokenizer.json"];
