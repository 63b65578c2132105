//! Names every way in which reading or writing a checkpoint fails.
//!
//! Each variant carries the file or folder at fault and, in its message, what to do about it. Rendering (colour,
//! `hint:` lines, exit codes) is the command line's business.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of this crate; the message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path does not exist.
    #[error("{path} does not exist: {remedy}", path = .path.display())]
    NotFound {
        /// The missing file or folder.
        path: PathBuf,
        /// What to do about it.
        remedy: String,
    },
    /// The path exists but holds nothing that could be a checkpoint.
    #[error("{path} is not a checkpoint: {detail}", path = .path.display())]
    NotACheckpoint {
        /// The folder or file.
        path: PathBuf,
        /// What was looked for and not found.
        detail: String,
    },
    /// A file contradicts its format, its own header or its index.
    #[error("{file} is damaged: {detail}", file = .file.display())]
    Damaged {
        /// The file at fault.
        file: PathBuf,
        /// The field and what is wrong with it.
        detail: String,
    },
    /// The content is intact but of a kind that is not read or written here.
    #[error("{path} is not supported: {detail}", path = .path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// The kind found and what to do instead.
        detail: String,
    },
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
    /// The output's place is taken.
    #[error("{path} exists: {detail}", path = .path.display())]
    TargetExists {
        /// The output folder asked for.
        path: PathBuf,
        /// Why it cannot be used and what to do.
        detail: String,
    },
    /// What a run that died has staged is for another output.
    #[error(
        "{staged} was left by a run with another recipe, other models or settings: run without --resume to begin anew, which removes it",
        staged = .staged.display()
    )]
    OtherOutput {
        /// The output folder asked for.
        path: PathBuf,
        /// What was left.
        staged: PathBuf,
    },
    /// A name of an output file that could leave its folder or that not every file system takes.
    #[error("{name:?} cannot be a file name inside a model folder: {detail}")]
    BadName {
        /// The name as given.
        name: String,
        /// The rule that it breaks.
        detail: &'static str,
    },
    /// A tensor that no safetensors file can hold.
    #[error("output tensor {tensor:?} cannot be laid out: {detail}")]
    Unplannable {
        /// The tensor's name.
        tensor: String,
        /// The rule that it breaks.
        detail: String,
    },
    /// The caller ended the reading of a file.
    #[error("reading {path} was stopped", path = .path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
    },
    /// Writes that do not cover the planned bytes exactly once.
    #[error("{file} was not written as planned: {detail}", file = .file.display())]
    NotAsPlanned {
        /// The output file or folder.
        file: PathBuf,
        /// The bytes at fault.
        detail: String,
    },
}

impl Error {
    /// Returns a closure for `map_err` that adds what was tried and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn damaged(file: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_path_buf(), detail: detail.into() }
    }

    pub(crate) fn unsupported(path: &Path, detail: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_path_buf(), detail: detail.into() }
    }

    pub(crate) fn not_a_checkpoint(path: &Path, detail: impl Into<String>) -> Self {
        Self::NotACheckpoint { path: path.to_path_buf(), detail: detail.into() }
    }
}
