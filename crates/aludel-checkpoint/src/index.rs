//! Reads `model.safetensors.index.json` or `pytorch_model.bin.index.json`, which says which file holds which tensor.
//!
//! In: the index's path. Out: tensor names by file, with every file name checked to stay inside the folder. Whether the
//! files exist and hold those tensors is the checkpoint's question.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;

use crate::error::Error;
use crate::names::fault_of_plain_name;
use crate::regular::read_text;

/// The name under which an index lies in a model folder.
pub(crate) const INDEX_NAME: &str = "model.safetensors.index.json";

/// The tensors that each file holds according to the index, files sorted by name.
pub(crate) type FilesOfIndex = BTreeMap<String, Vec<String>>;

/// Reads an index of files that `is_read` knows by their names.
///
/// Errors: [`Error::Io`], or [`Error::Damaged`] when it is malformed, empty or names a file outside its folder.
pub(crate) fn read_index(path: &Path, is_read: impl Fn(&str) -> bool) -> Result<FilesOfIndex, Error> {
    let text = read_text(path, MAX_INDEX_BYTES)?;
    let index: Index = serde_json::from_str(&text)
        .map_err(|error| Error::damaged(path, format!("it is no index: {error}")))?;
    let mut files = FilesOfIndex::new();
    for (tensor, file) in index.weight_map {
        if let Some(tensors) = files.get_mut(&file) {
            tensors.push(tensor);
        } else {
            check_file_name(&file, path, &is_read)?;
            files.insert(file, vec![tensor]);
        }
    }
    if files.is_empty() {
        return Err(Error::damaged(path, "its weight_map is empty"));
    }
    Ok(files)
}

fn check_file_name(file: &str, path: &Path, is_read: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    if let Some(fault) = fault_of_plain_name(file) {
        let detail = format!("weight_map names {file:?}, which cannot be a file of this folder: {fault}");
        return Err(Error::damaged(path, detail));
    }
    if !is_read(file) {
        let detail = format!("weight_map names {file:?}, which is no file of weights of the index's format");
        return Err(Error::unsupported(path, detail));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Index {
    weight_map: IndexMap<String, String>,
}

/// The format caps a header at this; an index lists less per tensor than a header does.
const MAX_INDEX_BYTES: u64 = crate::header::MAX_HEADER_BYTES;
