//! Turns a GGUF file, as llama.cpp reads them, into a model folder as transformers reads them.
//!
//! In: one .gguf file, untrusted. Out: safetensors weights under Hugging Face names, config.json, and the tokenizer
//! rebuilt from the metadata. It writes no GGUF, joins no split files, and decodes neither lattice (IQ*) nor ternary
//! block types.
//!
//! ```no_run
//! use std::path::Path;
//! use aludel_checkpoint::gguf::{Conversion, ConvertOptions};
//! use aludel_checkpoint::OutputFolder;
//!
//! # fn main() -> Result<(), aludel_checkpoint::Error> {
//! let options = ConvertOptions { dtype: None, shard_bytes: 5_000_000_000 };
//! let conversion = Conversion::plan(Path::new("model.gguf"), &options)?;
//! println!("{} bytes will be written", conversion.output_bytes());
//! let folder = OutputFolder::create(Path::new("model"), false)?;
//! let report = conversion.write(&folder, &mut |progress| eprintln!("{}/{}", progress.bytes, progress.total_bytes))?;
//! folder.finish()?;
//! println!("{} tensors as {:?}", report.tensors, report.dtype);
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order:
//!
//! - `block`: the block types and their decoding.
//! - `metadata`: keys and values, read on demand from the header's bytes.
//! - `header`: the header, parsed and held against the file's length.
//! - `architecture`: the table of architectures.
//! - `names`: Hugging Face names and what undoes the converter's changes.
//! - `rope`: the scaling of the rotary embedding.
//! - `model_config`: config.json.
//! - `vocabulary`, `merges`, `pre_tokenizer`, `tokenizer`: tokenizer.json and the files beside it.
//! - `weights`: tensors, tile by tile.
//! - `convert`: the plan and its execution.

mod architecture;
mod block;
mod convert;
mod header;
mod merges;
mod metadata;
mod model_config;
mod names;
mod pre_tokenizer;
mod rope;
mod tokenizer;
mod vocabulary;
mod weights;

pub use block::BlockType;
pub use convert::{Conversion, ConvertOptions, ConvertProgress, ConvertReport, convert};
pub use header::{Header, TensorInfo};
pub use names::Dropped;

pub(crate) use convert::OfFile;
pub(crate) use names::Change;
