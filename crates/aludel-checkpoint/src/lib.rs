//! Reads model checkpoints lazily and writes them whole.
//!
//! In: model folders and single files of weights: safetensors, files of torch, GGUF. Out: their tensors' names, types, shapes and places, zero-copy
//! windows over the weights, and output folders that exist under their name only when they are complete.
//! This crate does no arithmetic on weights and knows nothing of models, recipes or merges.
//!
//! Modules in reading order:
//!
//! - `error`: every way in which this crate fails.
//! - `dtype`: element types, their sizes and their names in torch.
//! - `names`: checks on names that come from files.
//! - `replace`: small files, replaced at once.
//! - `regular`: regular files, read up to a size.
//! - `header`: the header of one safetensors file, parsed and held against the file's length.
//! - `index`: `model.safetensors.index.json`, which says which file holds which tensor.
//! - `torch`: the files of `torch.save`, read without running them.
//! - `weight_files`: which files of a folder hold its weights.
//! - `side_files`: which other files of a model folder travel with its weights.
//! - `home`: paths that begin with `~/`.
//! - `config`: `config.json` as an ordered JSON object.
//! - `checkpoint`: a model folder, opened by reading headers only.
//! - `source`: what a merge reads: a checkpoint, with quantised tensors decoded, or a GGUF file.
//! - `quantised`: FP8 weights and their scales, and the refusal of other quantisations.
//! - `encoded`: values of tensors that are not stored as plain numbers.
//! - `adapter`: LoRA adapters in peft's layout, opened by headers, and the config of those that are written.
//! - `map`: zero-copy windows over the weights; with `mapped_file`, one whole file of any kind, and `memory_file` the only `unsafe` of this crate.
//! - `layout`: where every output tensor will lie.
//! - `staging`: the hidden folder beside the target, and those of runs that died.
//! - `folder`: the staged output folder.
//! - `shards`: positioned writes into the planned shards, and the proof that no hole is left.
//! - `memory_file`: the same into files on a RAM disk, by many threads at once.
//! - `page_cache`: files that are passed over once leave it again.
//! - `space`: the free space of a file system.
//! - [`gguf`]: GGUF files, turned into model folders.
//! - [`card`]: texts in model cards.
//! - [`resident`]: the memory of this process.
//! - `digest`: SHA-256 of input files, remembered between runs.

mod adapter;
pub mod card;
mod checkpoint;
mod config;
mod digest;
mod dtype;
mod encoded;
mod error;
mod file_state;
mod folder;
pub mod gguf;
mod header;
mod home;
mod index;
mod journal;
mod layout;
mod map;
mod mapped_file;
mod memory_file;
mod names;
mod page_cache;
mod quantised;
mod regular;
mod replace;
pub mod resident;
mod shards;
mod side_files;
mod source;
mod space;
mod staging;
mod torch;
#[cfg(unix)]
mod unreadable;
mod verify;
mod weight_files;

pub use adapter::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, AdapterConfig, AdapterFiles, AdapterModule, AdapterTensor,
    needed_adapter_files,
};
pub use checkpoint::{Checkpoint, LeftOut, MadeFile, TensorEntry, WeightFile};
pub use config::Config;
pub use digest::{DigestCache, hexadecimal, user_cache};
pub use dtype::{element_bytes, is_float, tensor_bytes, torch_name};
pub use encoded::{Encoded, e4m3_value};
pub use error::Error;
pub use file_state::FileStates;
pub use folder::{OutputFolder, check_target, remove_stale};
pub use home::expand_home;
pub use journal::{Journal, WrittenTensor};
pub use layout::{Layout, OutputTensor, Placement, Shard};
pub use map::WeightMap;
pub use mapped_file::MappedFile;
pub use names::fault_of_relative_name;
pub use regular::{LARGEST_SIDE_FILE, read_bounded, read_text};
pub use replace::replace_file;
pub use safetensors::Dtype;
pub use shards::ShardWriter;
pub use side_files::find_side_files;
pub use source::is_gguf;
pub use space::{free_for_output, free_space};
#[cfg(unix)]
pub use unreadable::tell_of_unreadable_files;
pub use verify::{crc_of_file, crc_of_shard};
pub use weight_files::needed_files;
