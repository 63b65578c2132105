//! Names every way in which a distillation fails.

use std::io;
use std::path::{Path, PathBuf};

use aludel_document::{Problem, Problems};
use aludel_kernels::loss::ObjectiveError;
use aludel_kernels::nn::DeviceError;

use crate::data::RowProblem;

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
    /// A teacher cache could not be read or written, or does not fit.
    #[error(transparent)]
    Cache(#[from] aludel_cache::Error),
    /// A served teacher does not answer, or not what it was asked.
    #[error("{url}: {detail}; what was captured is kept: run the command again to go on")]
    Served {
        /// Its address.
        url: String,
        /// What went wrong.
        detail: String,
    },
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
    /// Rows of the data that cannot be used.
    #[error("{}", listed(.problems, *.count))]
    Rows {
        /// The first of them; at least one.
        problems: Vec<RowProblem>,
        /// How many there are.
        count: u64,
    },
    /// No row is left to train or to evaluate on.
    #[error("the data have no row to {what} on")]
    NoRows {
        /// "train" or "evaluate".
        what: &'static str,
    },
    /// Rows, but none of them with anything to learn.
    #[error("no row of the data has anything to learn; look at `loss_on` and at the roles of the messages")]
    NoTargets,
    /// A place in the data that these data do not have.
    #[error("the checkpoint names a place that is not in the data; resume with the data that it was made on")]
    Cursor,
    /// The processes of a training do not come together, or one of them has gone.
    #[error("training with several processes: {detail}")]
    Group {
        /// What went wrong.
        detail: String,
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

/// Problems of rows, one on each line.
fn listed(problems: &[RowProblem], count: u64) -> String {
    let mut lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let more = count.saturating_sub(problems.len() as u64);
    if more > 0 {
        lines.push(format!("and {more} more rows that cannot be used"));
    }
    lines.join("\n")
}

impl Error {
    /// The same failure as a problem of the run: what happens before anything is trained is a refusal.
    pub(crate) fn into_problem(self) -> Self {
        match self {
            Self::Problems(_) | Self::Interrupted | Self::Internal { .. } => self,
            other => Problem::general(other.to_string()).into(),
        }
    }

    /// Returns a closure for `map_err` that adds what was tried and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn group(detail: impl Into<String>) -> Self {
        Self::Group { detail: detail.into() }
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::Internal { detail: detail.into() }
    }

    pub(crate) fn damaged(file: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_path_buf(), detail: detail.into() }
    }
}
