//! Opens what a merge reads: a checkpoint whose quantised tensors are decoded, or a GGUF file.
//!
//! In: a path. Out: a [`Checkpoint`] under the names of Hugging Face, whatever the file calls its tensors. No weight is read.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, LeftOut, MadeFile, TensorEntry, WeightFile};
use crate::config::Config;
use crate::encoded::{Blocks, Encoded, Form};
use crate::error::Error;
use crate::gguf::{BlockType, Change, Conversion, ConvertOptions, OfFile, TensorInfo};
use crate::quantised::dequantised;

impl Checkpoint {
    /// Opens what a merge reads: as [`Checkpoint::open`], with FP8 weights and their scales taken together and their description removed from
    /// the config; and GGUF files, with config and side files rebuilt from the metadata.
    ///
    /// Errors: those of [`Checkpoint::open`]; [`Error::Unsupported`] for other quantisations, by name; those of
    /// [`Conversion::plan`].
    pub fn open_source(path: &Path) -> Result<Self, Error> {
        if is_gguf(path) { of_gguf(path) } else { dequantised(Self::open(path)?) }
    }
}

/// Whether a path is a GGUF file, by its name or its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    let is_named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    path.is_file() && (is_named || begins_with(path, *b"GGUF"))
}

fn begins_with(path: &Path, magic: [u8; 4]) -> bool {
    let mut first = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == magic
}

fn of_gguf(path: &Path) -> Result<Checkpoint, Error> {
    // The size of shards says nothing here, as none are written.
    let options = ConvertOptions { dtype: None, shard_bytes: u64::MAX };
    let OfFile { header, dtype, mapped, dropped, side_files } =
        Conversion::plan(path, &options)?.into_parts();
    let mut checkpoint = Checkpoint::empty(path);
    checkpoint.files.push(WeightFile { path: path.to_path_buf(), bytes: header.file_bytes() });
    for mapped in mapped {
        let info = &header.tensors()[mapped.tensor];
        match plain_type(info, mapped.change).filter(|plain| *plain == dtype) {
            Some(dtype) => {
                let (shape, offset, bytes) = (info.shape.clone(), info.offset, info.bytes);
                checkpoint.tensors.insert(mapped.name, TensorEntry { dtype, shape, file: 0, offset, bytes });
            }
            None => {
                let form = Form::Blocks(Blocks::new(info.block, mapped.change, 0, info.offset, info.bytes));
                checkpoint.encoded.insert(mapped.name, Encoded { shape: info.shape.clone(), dtype, form });
            }
        }
    }
    for dropped in dropped {
        checkpoint.left_out.push(LeftOut { name: dropped.name, reason: dropped.reason.to_owned() });
    }
    for (name, bytes) in side_files {
        let text = String::from_utf8(bytes)
            .map_err(|error| Error::damaged(path, format!("{name} of it would not be UTF-8: {error}")))?;
        if name == "config.json" {
            checkpoint.config = Some(Config::parse(&text, path)?);
        } else {
            checkpoint.made_files.push(MadeFile { name: PathBuf::from(name), text });
        }
    }
    checkpoint.note = Some(format!("GGUF, decoded while it is read; {dtype} where the recipe names no type"));
    Ok(checkpoint)
}

/// The type of a tensor that can be read as it is stored.
fn plain_type(info: &TensorInfo, change: Change) -> Option<Dtype> {
    match (info.block, change) {
        (BlockType::F32, Change::None) => Some(Dtype::F32),
        (BlockType::F16, Change::None) => Some(Dtype::F16),
        (BlockType::BF16, Change::None) => Some(Dtype::BF16),
        _ => None,
    }
}
