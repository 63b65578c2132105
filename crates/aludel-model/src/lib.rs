//! Runs decoder-only language models forward and backward.
//!
//! In: model folders as transformers reads them, or GGUF files, and packed token ids. Out: hidden states, gradients of
//! every parameter, and model folders and adapters that transformers and peft load. Losses, optimizers and data are not
//! here; nor is any device: operations come from [`aludel_kernels::nn`].
//!
//! Modules in reading order:
//!
//! - `error`: every way in which this crate fails.
//! - [`config`]: a model's shape, parsed from `config.json`.
//! - `names`: parameters and tensors, and which make up which.
//! - `batch`: the documents of a step.
//! - `parameters`: parameters and gradients on a device.
//! - `pool`: buffers for reuse.
//! - [`decoder`]: forward, backward, generation.
//! - `gguf`: folders of GGUF files.
//! - `load`: from a folder onto a device.
//! - `random`: streams of random numbers.
//! - `fresh`: a model of fresh weights.
//! - `student`: a model cut out of another.
//! - `source`: what a saved model takes over.
//! - `save`: a model folder, adapters merged.
//! - `adapter`: low-rank adapters, and their folders.
//! - [`tokenizer`]: text to token ids and back.
//! - [`chat`]: conversations as text.
//! - [`windows`]: a long document in parts, every token predicted once.
//! - [`evaluate`]: how well a model predicts documents.
//! - [`sample`]: a token from logits.
//! - [`generate`]: text, token by token.
#![forbid(unsafe_code)]

pub mod chat;
pub mod config;
pub mod decoder;
pub mod evaluate;
pub mod generate;
pub mod sample;
pub mod tokenizer;
pub mod windows;

mod adapter;
mod batch;
mod error;
mod fresh;
mod gguf;
mod load;
mod names;
mod parameters;
mod pool;
mod random;
mod save;
mod source;
mod student;

pub use adapter::AdapterSpec;
pub use batch::Batch;
pub use chat::ChatTemplate;
pub use config::ModelConfig;
pub use decoder::{Decoder, Extension, Grams, Keep, KeyValueCache, Pass, Site};
pub use error::{Error, Problems};
pub use gguf::model_folder;
pub use load::{Slice, Tensors, Use, WeightType};
pub use parameters::{Gradients, Parameter, Parameters};
pub use student::{Cut, LayerChoice};
pub use tokenizer::Tokenizer;
