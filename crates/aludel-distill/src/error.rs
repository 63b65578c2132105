//! Names every way in which a distillation fails.

use std::io;
use std::path::{Path, PathBuf};

use aludel_document::{Problem, Problems};
use aludel_kernels::loss::ObjectiveError;
use aludel_kernels::nn::DeviceError;

/// A failure; the message names the file or the part at fault and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run, its models and its data do not fit each other, or something is in the way.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// It was asked to stop before anything was trained.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb phrase: "read", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file contradicts its format or itself.
    #[error("{file} is damaged: {detail}", file = .file.display())]
    Damaged {
        /// The file at fault.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A model folder or a checkpoint could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] aludel_checkpoint::Error),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A model could not be loaded, changed or run.
    #[error(transparent)]
    Model(#[from] aludel_model::Error),
    /// The numbers of an objective are out of range.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// An objective names a layer that is not there.
    #[error("layer {layer} of the {whose} is compared, which has layers 0 to {last}", last = .count - 1)]
    Layers {
        /// The layer, counted from 0.
        layer: u64,
        /// "student" or "teacher".
        whose: &'static str,
        /// How many that model has; at least one.
        count: usize,
    },
    /// The gradient is no longer finite.
    #[error(
        "step {step} diverged: its loss is {loss} and its gradient is not finite; try a lower learning rate, a longer warm-up or a smaller `clip`"
    )]
    Diverged {
        /// The step that could not be taken.
        step: u64,
        /// Its loss.
        loss: f64,
    },
    /// Something that cannot happen did.
    #[error("a defect of this program: {detail}")]
    Internal {
        /// What happened.
        detail: String,
    },
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problems(problem.into())
    }
}

impl Error {
    /// Returns a closure for `map_err` that adds what was tried and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::Internal { detail: detail.into() }
    }

    pub(crate) fn damaged(file: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_path_buf(), detail: detail.into() }
    }
}
