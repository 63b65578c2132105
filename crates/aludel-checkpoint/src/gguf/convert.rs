//! Plans and makes the model folder of a GGUF file.
//!
//! In: a .gguf file and the wanted type and shard size. Out: a [`Conversion`], which knows every output file and its size
//! before a weight is read, and from it the files in an [`OutputFolder`]. The folder is created and finished by the
//! caller, who can so check the disk's space and add files of its own.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::block::BlockType;
use super::header::Header;
use super::model_config::{Model, describe};
use super::names::{Dropped, Mapped, map};
use super::tokenizer::{SideFile, pretty, rebuild};
use super::weights::WeightReader;
use crate::dtype::torch_name;
use crate::error::Error;
use crate::folder::OutputFolder;
use crate::layout::{Layout, OutputTensor};

/// What the user chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The type of every output tensor: F32, F16 or BF16. `None` keeps F32, F16 or BF16 where the file's tensors are all
    /// of it, F32 aside in the latter two, and is BF16 otherwise: most models that get quantised were published in it,
    /// no value is too large for it, and what it rounds away is less than what the quantisation did.
    pub dtype: Option<Dtype>,
    /// Most bytes of tensor data in one shard.
    pub shard_bytes: u64,
}

/// A conversion that has been planned: everything but the weights' values.
#[derive(Debug)]
pub struct Conversion {
    header: Header,
    dtype: Dtype,
    mapped: HashMap<String, Mapped>,
    dropped: Vec<Dropped>,
    warnings: Vec<String>,
    layout: Layout,
    side_files: Vec<SideFile>,
}

/// A planned conversion as the parts of a checkpoint that decodes the file while it is read.
#[derive(Debug)]
pub(crate) struct OfFile {
    pub(crate) header: Header,
    /// The type of every tensor.
    pub(crate) dtype: Dtype,
    /// In the file's order.
    pub(crate) mapped: Vec<Mapped>,
    pub(crate) dropped: Vec<Dropped>,
    /// Files beside the weights.
    pub(crate) side_files: Vec<SideFile>,
}

/// How far the weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConvertProgress<'a> {
    /// The tensor that was worked on, by its output name.
    pub tensor: &'a str,
    /// Bytes of tensor data written since the beginning.
    pub bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConvertReport {
    /// The type of every output tensor.
    pub dtype: Dtype,
    /// Tensors written.
    pub tensors: usize,
    /// Bytes of tensor data read, before decoding.
    pub bytes_read: u64,
    /// Bytes of tensor data written.
    pub bytes_written: u64,
    /// Tensors that the output does without, and why.
    pub dropped: Vec<Dropped>,
    /// What the user should know or check.
    pub warnings: Vec<String>,
}

/// Converts the GGUF file at `source` into `folder`: plans, then writes.
///
/// Errors: those of [`Conversion::plan`] and [`Conversion::write`].
pub fn convert(
    source: &Path,
    folder: &OutputFolder,
    options: &ConvertOptions,
    on_progress: &mut dyn FnMut(ConvertProgress<'_>),
) -> Result<ConvertReport, Error> {
    Conversion::plan(source, options)?.write(folder, on_progress)
}

impl Conversion {
    /// Plans the conversion of the GGUF file at `source`. Reads the header and, where the model's rotary embedding is
    /// scaled, the few factors that say how.
    ///
    /// Errors: [`Error::NotFound`], [`Error::NotACheckpoint`]; [`Error::Unsupported`] for an architecture, tensor, block
    /// type, tokenizer or setting that is not known, by name; [`Error::Damaged`]; [`Error::Io`].
    pub fn plan(source: &Path, options: &ConvertOptions) -> Result<Self, Error> {
        let header = Header::read(source)?;
        let model = describe(&header)?;
        let names = map(&header, model.row, model.layers, model.heads)?;
        let dtype = dtype(&header, &names.mapped, options)?;
        let tokenizer = rebuild(&header, model.vocabulary)?;
        let config = config(model, &tokenizer.ids, dtype);
        let mut side_files = tokenizer.files;
        side_files.push(("config.json", pretty(&config.into())));
        let layout = Layout::plan(outputs(&header, &names.mapped, dtype), options.shard_bytes)?;
        let mapped = names.mapped.into_iter().map(|mapped| (mapped.name.clone(), mapped)).collect();
        let warnings = tokenizer.warnings;
        Ok(Self { header, dtype, mapped, dropped: names.dropped, warnings, layout, side_files })
    }

    /// The parts of the conversion.
    pub(crate) fn into_parts(self) -> OfFile {
        let Self { header, dtype, mapped, dropped, side_files, .. } = self;
        let mut mapped: Vec<Mapped> = mapped.into_values().collect();
        mapped.sort_by_key(|mapped| mapped.tensor);
        OfFile { header, dtype, mapped, dropped, side_files }
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The type of every output tensor.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The weight files and the place of every tensor in them.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes of all files that [`Conversion::write`] writes.
    pub fn output_bytes(&self) -> u64 {
        let side: usize = self.side_files.iter().map(|(_, bytes)| bytes.len()).sum();
        let index = self.layout.index_json().map_or(0, |index| index.len());
        self.layout.total_bytes() + (side + index) as u64
    }

    /// Names of the files beside the weights, `config.json` among them.
    pub fn side_files(&self) -> impl Iterator<Item = &str> {
        self.side_files.iter().map(|(name, _)| *name)
    }

    /// Content of a file beside the weights, by its name.
    pub fn side_file(&self, name: &str) -> Option<&[u8]> {
        self.side_files.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.as_slice())
    }

    /// Tensors that the output does without, and why.
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// What the user should know or check.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Writes every file into `folder`, tensor by tensor and tile by tile.
    ///
    /// Errors: [`Error::Damaged`] when the file changed since it was planned; [`Error::Unsupported`] when a value is too
    /// large for the type; those of the folder.
    pub fn write(
        &self,
        folder: &OutputFolder,
        on_progress: &mut dyn FnMut(ConvertProgress<'_>),
    ) -> Result<ConvertReport, Error> {
        self.check_unchanged()?;
        self.write_side_files(folder)?;
        let bytes_written = self.write_weights(folder, on_progress)?;
        let tensors = self.header.tensors();
        Ok(ConvertReport {
            dtype: self.dtype,
            tensors: self.mapped.len(),
            bytes_read: self.mapped.values().map(|mapped| tensors[mapped.tensor].bytes).sum(),
            bytes_written,
            dropped: self.dropped.clone(),
            warnings: self.warnings.clone(),
        })
    }

    fn check_unchanged(&self) -> Result<(), Error> {
        let path = self.header.path();
        let bytes = path.metadata().map_err(Error::io("read", path))?.len();
        if bytes == self.header.file_bytes() {
            return Ok(());
        }
        let detail =
            format!("it had {} bytes when it was planned and has {bytes} now", self.header.file_bytes());
        Err(Error::damaged(path, detail))
    }

    fn write_side_files(&self, folder: &OutputFolder) -> Result<(), Error> {
        for (name, bytes) in &self.side_files {
            folder.write(name, bytes)?;
        }
        match self.layout.index_json() {
            Some(index) => folder.write("model.safetensors.index.json", index.as_bytes()),
            None => Ok(()),
        }
    }

    fn write_weights(
        &self,
        folder: &OutputFolder,
        on_progress: &mut dyn FnMut(ConvertProgress<'_>),
    ) -> Result<u64, Error> {
        let writer = folder.shards(&self.layout)?;
        let mut reader = WeightReader::open(self.header.path())?;
        let outputs = self.layout.tensors();
        let total_bytes = (0..outputs.len()).map(|index| self.layout.placement(index).bytes).sum();
        let mut bytes = 0;
        for (index, output) in outputs.iter().enumerate() {
            let placement = self.layout.placement(index);
            let mapped = &self.mapped[&output.name];
            let tensor = &self.header.tensors()[mapped.tensor];
            let before = bytes;
            reader.encode(tensor, mapped.change, self.dtype, &mut |piece| {
                writer.write_at(&placement, bytes - before, piece)?;
                bytes += piece.len() as u64;
                on_progress(ConvertProgress { tensor: &output.name, bytes, total_bytes });
                Ok(())
            })?;
        }
        writer.finish()?;
        Ok(bytes)
    }
}

/// The chosen type, or the one that loses least without growing the model.
fn dtype(header: &Header, mapped: &[Mapped], options: &ConvertOptions) -> Result<Dtype, Error> {
    let blocks = || mapped.iter().map(|mapped| header.tensors()[mapped.tensor].block);
    let all = |kept: &[BlockType]| blocks().all(|block| kept.contains(&block));
    match options.dtype {
        Some(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16)) => Ok(dtype),
        Some(other) => {
            let detail = format!("{other:?} is not a type to convert to; choose F32, F16 or BF16");
            Err(Error::unsupported(header.path(), detail))
        }
        None if all(&[BlockType::F32]) => Ok(Dtype::F32),
        None if all(&[BlockType::F32, BlockType::F16]) => Ok(Dtype::F16),
        None => Ok(Dtype::BF16),
    }
}

fn config(model: Model, ids: &Map<String, Value>, dtype: Dtype) -> Map<String, Value> {
    let mut config = model.config;
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        // Without a value, transformers would take the architecture's default.
        config.insert(key.into(), ids.get(key).cloned().unwrap_or(Value::Null));
    }
    config.insert("torch_dtype".into(), torch_name(dtype).into());
    config
}

fn outputs(header: &Header, mapped: &[Mapped], dtype: Dtype) -> Vec<OutputTensor> {
    let output = |mapped: &Mapped| {
        let shape = header.tensors()[mapped.tensor].shape.clone();
        OutputTensor { name: mapped.name.clone(), dtype, shape }
    };
    mapped.iter().map(output).collect()
}
