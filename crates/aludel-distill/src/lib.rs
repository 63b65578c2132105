//! Distils a teacher model into a student.
//!
//! In: the text of `run.yml`. Out: a model folder and the record of its training. The phases are types: text becomes a
//! [`Run`](run::Run); its data become batches of tokens; a [`Trainer`](step::Trainer) takes steps with them.
//!
//! Reading order: [`run`] (what is asked for), [`data`] (files to batches), [`schedule`], [`optimizer`], [`hidden`] and
//! [`step`] (what a step is), [`cache`] (teachers that spoke before), [`state`] (checkpoints), [`record`] (what a run leaves for people), [`prepare`], [`inputs`], [`folder`]
//! (models, files, places), [`train`] (the whole run), [`forecast`] (what it
//! takes), [`evaluate`] (a model on files), [`statistics`] (what merges want to know of a model), [`error`].
#![forbid(unsafe_code)]

pub mod cache;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod folder;
pub mod forecast;
pub mod group;
pub mod hidden;
pub mod inputs;
pub mod optimizer;
pub mod prepare;
pub mod record;
pub mod run;
pub mod schedule;
pub mod state;
pub mod statistics;
pub mod step;
pub mod train;

pub use error::Error;
