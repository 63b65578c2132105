//! Merges language-model checkpoints by recipe.
//!
//! In: the text of a mergekit recipe. Out: a model folder that transformers loads, and a report. The phases are types:
//! text becomes a [`Recipe`](recipe::Recipe), that becomes a [`Plan`](plan::Plan) from headers alone, and
//! [`execute`](execute::execute) does exactly what the plan says.
//!
//! Reading order: [`recipe`], [`methods`] (each method is a formula), [`plan`], [`execute`], with [`problem`] for what can
//! be wrong before any weight is read; [`sequence`] makes several merges of one recipe, and [`apply`] a model folder of an output that was
//! stored as a difference. Beside merging, [`inspect`] and [`diff`] look into models with the same machinery, [`adapter`] makes LoRA
//! adapters of them, and [`shuffle`] writes recipes that chance decides.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod apply;
mod derive;
pub mod diff;
pub mod execute;
pub mod inspect;
pub mod methods;
pub mod plan;
pub mod recipe;
pub mod sequence;
pub mod shuffle;
mod streams;
mod threads;

pub use aludel_document::problem;
