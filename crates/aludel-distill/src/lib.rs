//! Distils a teacher model into a student.
//!
//! In: the text of `run.yml`. Out: a model folder and the record of its training. The phases are types: text becomes a
//! [`Run`](run::Run); its data become batches of tokens; a [`Trainer`](step::Trainer) takes steps with them.
//!
//! Reading order: [`run`] (what is asked for), [`data`] (files to batches), [`schedule`], [`optimizer`], [`hidden`] and
//! [`step`] (what a step is), [`state`] (checkpoints), [`record`] (what a run leaves for people), [`error`].
#![forbid(unsafe_code)]

pub mod data;
pub mod error;
pub mod hidden;
pub mod optimizer;
pub mod record;
pub mod run;
pub mod schedule;
pub mod state;
pub mod step;

pub use error::Error;
