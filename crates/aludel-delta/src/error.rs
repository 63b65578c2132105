//! Names every way in which a delta cannot be read.

use std::io;
use std::path::PathBuf;

/// A failure; the message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder holds no delta.
    #[error("{path} is no delta: {detail}", path = .path.display())]
    NotADelta {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        detail: String,
    },
    /// A file contradicts its format.
    #[error("{file} is damaged: {detail}; copy the folder anew, or make the delta again", file = .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A chunk does not give what was stored, with this base.
    #[error("tensor `{tensor}` does not come back")]
    Mismatch {
        /// The tensor.
        tensor: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// What the checkpoint crate refuses.
    #[error(transparent)]
    Checkpoint(#[from] aludel_checkpoint::Error),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
