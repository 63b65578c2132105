//! Turns the text of `run.yml` into a value whose every part is well formed and fits the others.
//!
//! In: YAML. Out: a [`Run`], or all of its faults at once with their places. It opens no file: whether models and data
//! exist is asked by those who read them. Paths are relative to the current folder, as in merge recipes. The meaning of
//! every key stands in `docs/distil-run.md`.
//!
//! Reading order: the types (this file, [`teacher`], [`data`], [`objective`], [`train`]), `fields` (one value at a time), `read` (the whole
//! run and what holds between its parts), `record` (a run beside the one of a checkpoint).

pub(crate) mod fields;
mod read;
mod record;

pub mod data;
pub mod objective;
pub mod teacher;
pub mod train;

use std::path::{Path, PathBuf};

use aludel_document::Problems;
use serde::Serialize;

pub use data::{BadRows, Columns, Data, LongDocuments, LossOn, Packing, Validation};
pub use objective::{Layers, Loss, Objective, ObjectiveTerm, Taid};
pub use record::Difference;
pub use teacher::{Protocol, ServedTeacher, TailRule, TeacherCache};
pub use train::{
    Checkpointing, EarlyStopping, Length, Lora, LoraTargets, Moments, Offload, Open, Schedule, Train, Warmup,
    Weights,
};

/// A distillation, or a plain fine-tuning when it has no teacher.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// The teacher's folder or GGUF file.
    pub teacher: Option<PathBuf>,
    /// What a teacher said before, in the place of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<TeacherCache>,
    /// A teacher that answers elsewhere, to be captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served: Option<ServedTeacher>,
    /// Where the student's first weights come from.
    pub student: Student,
    /// What is read, and how it becomes sequences.
    pub data: Data,
    /// What is minimised.
    pub objective: Objective,
    /// How the target moves from student to teacher.
    pub taid: Option<Taid>,
    /// How long and with which settings.
    pub train: Train,
    /// The folder that the run writes: student, checkpoints, record.
    pub output: PathBuf,
}

/// Where the student's first weights come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Student {
    /// A model folder.
    Model(PathBuf),
    /// The teacher, with fewer layers, heads or inner units.
    FromTeacher {
        /// Which of its layers.
        layers: KeptLayers,
        /// Query heads kept, by importance; all when `None`.
        heads: Option<u64>,
        /// Width of the feed-forward blocks kept, by importance; all when `None`.
        ffn: Option<u64>,
    },
    /// Random weights in the shape that a `config.json`, or the folder that holds it, describes.
    FromConfig {
        /// The file or folder.
        config: PathBuf,
        /// Of the random numbers.
        seed: u64,
    },
}

/// Layers of the teacher that become the student's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptLayers {
    /// All of them.
    All,
    /// These, counted from 0, each once and in ascending order.
    These(Vec<u64>),
    /// Layers 0, n, 2n and so on.
    Every(u64),
}

impl Run {
    /// Parses a run.
    ///
    /// # Errors
    /// All faults found. Faults of syntax end the search: what follows them cannot be read.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        read::run(text)
    }

    /// The settings under `data:` as the teacher's rows are made by: a teacher with other tokens writes conversations by its own chat
    /// template.
    pub fn teachers_data(&self) -> Data {
        let chat_template = self.data.chat_template.clone().filter(|_| !self.objective.is_sorted());
        Data { chat_template, ..self.data.clone() }
    }

    /// The same run, with the paths of its models as `find` has them.
    ///
    /// # Errors
    /// What `find` says.
    pub fn with_models<E>(mut self, find: impl Fn(&Path) -> Result<PathBuf, E>) -> Result<Self, E> {
        self.teacher = self.teacher.as_deref().map(&find).transpose()?;
        if let Student::Model(path) = &self.student {
            self.student = Student::Model(find(path)?);
        }
        Ok(self)
    }

    /// The same run, with the path of its cache as `find` has it.
    ///
    /// # Errors
    /// What `find` says.
    pub fn with_cache<E>(mut self, find: impl Fn(&Path) -> Result<PathBuf, E>) -> Result<Self, E> {
        if let Some(cache) = &mut self.cache {
            cache.path = find(&cache.path)?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
