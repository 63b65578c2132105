//! Names every way in which a distillation fails.

use std::io;
use std::path::{Path, PathBuf};

/// A failure; the message names the file or the part at fault and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
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
}
