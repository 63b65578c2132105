//! Makes LoRA adapters, in the layout that peft loads.
//!
//! In: a fine-tuned model and its base, or several adapters. Out: an adapter folder, complete or not there, and a report with the error of what
//! was written.
//! Adding an adapter to a model is not done here but where models are read ([`crate::plan`]).
//!
//! Reading order: [`extract`] and [`combine`], then `factor` (one tensor), `names` (which words name which modules), `output` (the folder).

pub mod combine;
pub mod extract;
mod factor;
mod names;
mod output;

pub(crate) use names::has_inputs_first;
