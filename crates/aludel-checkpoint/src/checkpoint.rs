//! Opens a model folder or a single safetensors file by reading headers only.
//!
//! In: a path. Out: every tensor's name, type, shape and place, the config and the names of the side files. No weight is
//! read; [`crate::WeightMap`] gives access to them.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use indexmap::map::Entry;
use safetensors::Dtype;

use crate::config::Config;
use crate::error::Error;
use crate::header::Header;
use crate::index::{FilesOfIndex, INDEX_NAME, read_index};
use crate::side_files::{file_names, find_side_files};

/// A model folder or a single safetensors file whose headers have been read and checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<WeightFile>,
    tensors: IndexMap<String, TensorEntry>,
    config: Option<Config>,
    side_files: Vec<PathBuf>,
}

/// One file of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightFile {
    /// The folder's path joined with the file's name.
    pub path: PathBuf,
    /// Length of the whole file, header included.
    pub bytes: u64,
}

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Type of one element.
    pub dtype: Dtype,
    /// Sides, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Position in [`Checkpoint::files`].
    pub file: usize,
    /// First byte, from the start of the file. Foreign files need not align it to the element.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl TensorEntry {
    /// The number of elements; 1 for a scalar. Cannot overflow for an entry of a [`Checkpoint`], whose header was checked.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&side| side as u64).product()
    }
}

impl Checkpoint {
    /// Opens a model folder (with an index, a `model.safetensors`, or any other safetensors files) or a single
    /// `.safetensors` file, which then has neither config nor side files.
    ///
    /// Errors: [`Error::NotFound`] when the path does not exist; [`Error::NotACheckpoint`] when it holds no weights;
    /// [`Error::Unsupported`] when its weights are of another format; [`Error::Damaged`] when a header, the index or
    /// `config.json` is malformed or they contradict one another; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.try_exists().map_err(Error::io("read", path))? {
            let remedy =
                "give a model folder or a .safetensors file; models on a hub are downloaded first".into();
            return Err(Error::NotFound { path: path.to_path_buf(), remedy });
        }
        if path.is_dir() { Self::open_folder(path) } else { Self::open_file(path) }
    }

    /// The path that was opened, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of weights in reading order: sorted by name.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// Every tensor, in file order and then in offset order.
    pub fn tensors(&self) -> &IndexMap<String, TensorEntry> {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.tensors.get(name)
    }

    /// The folder's `config.json`, when it has one.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The files that travel with the weights (tokenizer, chat templates, generation config, remote code, licences):
    /// names relative to the folder, sorted.
    pub fn side_files(&self) -> &[PathBuf] {
        &self.side_files
    }

    fn open_file(path: &Path) -> Result<Self, Error> {
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(refusal_of_file(path));
        }
        let mut checkpoint = Self::empty(path);
        checkpoint.add_file(path.to_path_buf())?;
        Ok(checkpoint)
    }

    fn open_folder(path: &Path) -> Result<Self, Error> {
        let mut checkpoint = Self::empty(path);
        let index = path.join(INDEX_NAME);
        if is_listed(&index) {
            checkpoint.add_indexed(&index, &read_index(&index)?)?;
        } else {
            for name in weight_file_names(path)? {
                checkpoint.add_file(path.join(name))?;
            }
        }
        let config = path.join("config.json");
        checkpoint.config = is_listed(&config).then(|| Config::read(&config)).transpose()?;
        checkpoint.side_files = find_side_files(path)?;
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: IndexMap::new(),
            config: None,
            side_files: Vec::new(),
        }
    }

    fn add_indexed(&mut self, index: &Path, files: &FilesOfIndex) -> Result<(), Error> {
        for (file, listed) in files {
            let path = self.path.join(file);
            if !path.exists() {
                let detail =
                    format!("weight_map names {file:?}, which is missing; download or copy it again");
                return Err(Error::damaged(index, detail));
            }
            let before = self.tensors.len();
            self.add_file(path)?;
            self.hold_against_index(before, file, listed, index)?;
        }
        Ok(())
    }

    /// Holds the tensors from position `from` on, those of `file`, against the index's list for that file.
    fn hold_against_index(
        &self,
        from: usize,
        file: &str,
        listed: &[String],
        index: &Path,
    ) -> Result<(), Error> {
        // A tensor found in an earlier file is not in that file's list, so it was refused there.
        if let Some(name) = listed.iter().find(|&name| !self.tensors.contains_key(name)) {
            let detail = format!("weight_map places tensor {name:?} in {file:?}, which does not hold it");
            return Err(Error::damaged(index, detail));
        }
        let listed: HashSet<&str> = listed.iter().map(String::as_str).collect();
        if let Some(name) = self.tensors.keys().skip(from).find(|name| !listed.contains(name.as_str())) {
            let detail = format!("{file:?} holds tensor {name:?}, which weight_map does not place there");
            return Err(Error::damaged(index, detail));
        }
        Ok(())
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), Error> {
        let header = Header::read(&path)?;
        let file = self.files.len();
        self.files.push(WeightFile { path, bytes: header.file_bytes });
        self.tensors.reserve(header.tensors.len());
        for tensor in header.tensors {
            match self.tensors.entry(tensor.name) {
                Entry::Occupied(entry) => return Err(duplicate(entry.key(), entry.get().file, &self.files)),
                Entry::Vacant(entry) => entry.insert(TensorEntry {
                    dtype: tensor.dtype,
                    shape: tensor.shape,
                    file,
                    offset: tensor.offset,
                    bytes: tensor.bytes,
                }),
            };
        }
        Ok(())
    }
}

fn duplicate(name: &str, first: usize, files: &[WeightFile]) -> Error {
    let last = &files[files.len() - 1].path;
    let detail = format!("it holds tensor {name:?}, which {} holds too", files[first].path.display());
    Error::damaged(last, detail)
}

/// The weights of a folder without an index: `model.safetensors`, else every safetensors file, sorted by name.
fn weight_file_names(folder: &Path) -> Result<Vec<String>, Error> {
    let names = file_names(folder)?;
    let mut weights: Vec<String> =
        names.iter().filter(|name| name.ends_with(".safetensors")).cloned().collect();
    if weights.iter().any(|name| name == SINGLE_NAME) {
        return Ok(vec![SINGLE_NAME.into()]);
    }
    // The same weights in the layout of their trainer, beside those that transformers loads.
    if weights.iter().any(|name| !is_consolidated(name)) {
        weights.retain(|name| !is_consolidated(name));
    }
    check_complete(folder, &weights)?;
    if weights.is_empty() { Err(refusal_of_folder(folder, &names)) } else { Ok(weights) }
}

fn is_consolidated(name: &str) -> bool {
    name.starts_with("consolidated")
}

/// Without an index, only the names can tell that a shard is missing. `names` is sorted.
fn check_complete(folder: &Path, names: &[String]) -> Result<(), Error> {
    let series: BTreeSet<(&str, &str)> = names.iter().filter_map(|name| shard_of(name)).collect();
    for (stem, count) in series {
        let is_missing = |&number: &usize| {
            let name = format!("{stem}-{number:0width$}-of-{count}.safetensors", width = count.len());
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

/// The stem and the count of a name like `model-00001-of-00002.safetensors`.
fn shard_of(name: &str) -> Option<(&str, &str)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(number) && is_number(count)).then_some((stem, count))
}

/// Whether the folder has this name, even as a link to nothing: such a link is an incomplete download, not an absence.
fn is_listed(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn refusal_of_folder(folder: &Path, names: &[String]) -> Error {
    match names.iter().find_map(|name| remedy_for_format(&folder.join(name))) {
        Some(remedy) => Error::unsupported(folder, remedy),
        None => Error::not_a_checkpoint(folder, "it holds no .safetensors file"),
    }
}

fn refusal_of_file(path: &Path) -> Error {
    if path.to_string_lossy().ends_with(".index.json") {
        return Error::not_a_checkpoint(path, "it is an index; give the folder that it lies in");
    }
    match remedy_for_format(path) {
        Some(remedy) => Error::unsupported(path, remedy),
        None => Error::not_a_checkpoint(path, "its name does not end in .safetensors"),
    }
}

/// What to do with weights of another format.
fn remedy_for_format(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    match file.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "gguf" => Some(format!(
            "it is in GGUF; run `aludel convert {} out/` and give the folder `out/`",
            file.display()
        )),
        "bin" | "pt" | "pth" if !name.starts_with("training_args") => Some(format!(
            "{name} is a pickle, which can run code when it is read; load the model in transformers and save it as \
             safetensors with `save_pretrained(folder)`"
        )),
        _ => None,
    }
}

/// The name of the weights in a folder with one file of them.
pub(crate) const SINGLE_NAME: &str = "model.safetensors";
