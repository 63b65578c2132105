//! Opens a model folder or a single file of weights by reading headers only.
//!
//! In: a path. Out: every tensor's name, type, shape and place, the config and the names of the side files. No weight is
//! read; [`crate::WeightMap`] gives access to them. Files of safetensors and of torch are taken as they are; what is
//! quantised is for `source` to say.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use indexmap::map::Entry;
use safetensors::Dtype;

use crate::config::Config;
use crate::dtype::is_float;
use crate::encoded::{Encoded, Form, Strided};
use crate::error::Error;
use crate::header::Header;
use crate::index::FilesOfIndex;
use crate::side_files::find_side_files;
use crate::torch::{TorchFile, TorchTensor};
use crate::weight_files::{Format, WeightFiles, is_listed, refusal_of_file};

/// A model folder or a single file of weights whose headers have been read and checked.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) files: Vec<WeightFile>,
    pub(crate) tensors: IndexMap<String, TensorEntry>,
    pub(crate) encoded: IndexMap<String, Encoded>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) config: Option<Config>,
    pub(crate) side_files: Vec<PathBuf>,
    pub(crate) made_files: Vec<MadeFile>,
    pub(crate) note: Option<String>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A stored tensor that is part of no tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name in the file.
    pub name: String,
    /// Why nothing is lost.
    pub reason: String,
}

/// A file that would travel with the weights, were it not only described by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeFile {
    /// Its name, relative to a model folder.
    pub name: PathBuf,
    /// What it holds.
    pub text: String,
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
    /// Opens a model folder (with an index, a `model.safetensors`, any other safetensors files, or files of torch) or a
    /// single file of safetensors or of torch, which then has neither config nor side files.
    ///
    /// Errors: [`Error::NotFound`] when the path does not exist; [`Error::NotACheckpoint`] when it holds no weights;
    /// [`Error::Unsupported`] when its weights are of another format; [`Error::Damaged`] when a header, the index or
    /// `config.json` is malformed or they contradict one another; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.try_exists().map_err(Error::io("read", path))? {
            let remedy =
                "give a model folder, a file of weights, or the `owner/name` of a model on a hub".into();
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

    /// Every tensor that is stored plainly, in file order and then in offset order.
    pub fn tensors(&self) -> &IndexMap<String, TensorEntry> {
        &self.tensors
    }

    /// Every tensor whose values are computed from what is stored.
    pub fn encoded(&self) -> &IndexMap<String, Encoded> {
        &self.encoded
    }

    /// What is stored besides tensors of the model, with the reason for which nothing is lost without it.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// What a user of the checkpoint should know of how it is stored; nothing of most.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// What the headers of safetensors files say of them besides tensors, of the first file that says something under a key.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Files that travel with the weights and lie nowhere: those that the metadata of a GGUF file describes.
    pub fn made_files(&self) -> &[MadeFile] {
        &self.made_files
    }

    /// The plainly stored tensor of that name.
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
        if Format::of(path).is_none() {
            return Err(refusal_of_file(path));
        }
        let mut checkpoint = Self::empty(path);
        checkpoint.add_file(path.to_path_buf())?;
        Ok(checkpoint)
    }

    fn open_folder(path: &Path) -> Result<Self, Error> {
        let mut checkpoint = Self::empty(path);
        match WeightFiles::find(path)? {
            WeightFiles::Indexed(index, files) => checkpoint.add_indexed(&index, &files)?,
            WeightFiles::Names(names) => {
                for name in names {
                    checkpoint.add_file(path.join(name))?;
                }
            }
        }
        let config = path.join("config.json");
        checkpoint.config = is_listed(&config).then(|| Config::read(&config)).transpose()?;
        checkpoint.side_files = find_side_files(path)?;
        Ok(checkpoint)
    }

    pub(crate) fn empty(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: IndexMap::new(),
            encoded: IndexMap::new(),
            left_out: Vec::new(),
            config: None,
            side_files: Vec::new(),
            made_files: Vec::new(),
            note: None,
            metadata: BTreeMap::new(),
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
            let before = (self.tensors.len(), self.encoded.len());
            self.add_file(path)?;
            self.hold_against_index(before, file, listed, index)?;
        }
        Ok(())
    }

    /// Holds the tensors from these positions on, those of `file`, against the index's list for that file.
    fn hold_against_index(
        &self,
        (plain, encoded): (usize, usize),
        file: &str,
        listed: &[String],
        index: &Path,
    ) -> Result<(), Error> {
        let has = |name: &String| self.tensors.contains_key(name) || self.encoded.contains_key(name);
        // A tensor found in an earlier file is not in that file's list, so it was refused there.
        if let Some(name) = listed.iter().find(|&name| !has(name)) {
            let detail = format!("weight_map places tensor {name:?} in {file:?}, which does not hold it");
            return Err(Error::damaged(index, detail));
        }
        let listed: HashSet<&str> = listed.iter().map(String::as_str).collect();
        let mut held = self.tensors.keys().skip(plain).chain(self.encoded.keys().skip(encoded));
        if let Some(name) = held.find(|name| !listed.contains(name.as_str())) {
            let detail = format!("{file:?} holds tensor {name:?}, which weight_map does not place there");
            return Err(Error::damaged(index, detail));
        }
        Ok(())
    }

    fn add_file(&mut self, path: PathBuf) -> Result<(), Error> {
        match Format::of(&path) {
            Some(Format::Torch) => self.add_torch(path),
            _ => self.add_safetensors(path),
        }
    }

    fn add_safetensors(&mut self, path: PathBuf) -> Result<(), Error> {
        let header = Header::read(&path)?;
        let file = self.files.len();
        self.files.push(WeightFile { path, bytes: header.file_bytes });
        for (key, value) in header.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        self.tensors.reserve(header.tensors.len());
        for tensor in header.tensors {
            let (dtype, shape, offset, bytes) = (tensor.dtype, tensor.shape, tensor.offset, tensor.bytes);
            self.add_plain(tensor.name, TensorEntry { dtype, shape, file, offset, bytes })?;
        }
        Ok(())
    }

    /// A pickle's own order says nothing, and storages may be shared: tensors are taken in the order of the state dict.
    fn add_torch(&mut self, path: PathBuf) -> Result<(), Error> {
        let torch = TorchFile::read(&path)?;
        let file = self.files.len();
        self.files.push(WeightFile { path: path.clone(), bytes: torch.file_bytes });
        for (name, tensor) in torch.tensors {
            let TorchTensor { dtype, shape, offset, strides, reach } = tensor;
            match strides {
                None => self.add_plain(name, TensorEntry { dtype, shape, file, offset, bytes: reach })?,
                Some(strides) if is_float(dtype) => {
                    let form = Form::Strided(Strided::new(dtype, strides, file, offset, reach));
                    self.add_encoded(name, Encoded { shape, dtype, form })?;
                }
                Some(_) => {
                    let detail = format!(
                        "tensor {name:?} of type {dtype} is a view that is not in order; save it as `tensor.contiguous()`"
                    );
                    return Err(Error::unsupported(&path, detail));
                }
            }
        }
        Ok(())
    }

    fn add_plain(&mut self, name: String, entry: TensorEntry) -> Result<(), Error> {
        if let Some(first) = self.encoded.get(&name).and_then(|encoded| encoded.files().next()) {
            return Err(duplicate(&name, first, &self.files));
        }
        match self.tensors.entry(name) {
            Entry::Occupied(known) => Err(duplicate(known.key(), known.get().file, &self.files)),
            Entry::Vacant(place) => {
                place.insert(entry);
                Ok(())
            }
        }
    }

    fn add_encoded(&mut self, name: String, encoded: Encoded) -> Result<(), Error> {
        let known = self.encoded.get(&name).and_then(|encoded| encoded.files().next());
        match known.or_else(|| self.tensors.get(&name).map(|entry| entry.file)) {
            Some(first) => Err(duplicate(&name, first, &self.files)),
            None => {
                self.encoded.insert(name, encoded);
                Ok(())
            }
        }
    }
}

fn duplicate(name: &str, first: usize, files: &[WeightFile]) -> Error {
    let last = &files[files.len() - 1].path;
    let detail = format!("it holds tensor {name:?}, which {} holds too", files[first].path.display());
    Error::damaged(last, detail)
}
