//! Names every way in which a cache cannot be written or read.

use std::io;
use std::path::{Path, PathBuf};

/// A failure; the message names the file and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder is no cache.
    #[error("{path} is not a teacher cache: {detail}", path = .path.display())]
    NotACache {
        /// The folder.
        path: PathBuf,
        /// What was looked for.
        detail: String,
    },
    /// A file contradicts its checksum, its format or its header.
    #[error("{file} is damaged: {detail}", file = .file.display())]
    Damaged {
        /// The file at fault.
        file: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Parts or shards are missing.
    #[error("{path} is not complete: {detail}", path = .path.display())]
    Incomplete {
        /// The cache.
        path: PathBuf,
        /// What is missing, and how to go on.
        detail: String,
    },
    /// The cache is of something else than is asked for.
    #[error("{path} does not fit: {}", .reasons.join("; "), path = .path.display())]
    Differs {
        /// The cache.
        path: PathBuf,
        /// Each difference; at least one.
        reasons: Vec<String>,
    },
    /// Another process writes the same part.
    #[error("another process is writing part {part} of {path}", path = .path.display())]
    Busy {
        /// The cache.
        path: PathBuf,
        /// The part, counted from 1.
        part: u32,
    },
    /// A record that is not there.
    #[error("{path} has no record of {what}", path = .path.display())]
    NoRecord {
        /// The cache.
        path: PathBuf,
        /// Which.
        what: String,
    },
    /// Rows that no record can hold.
    #[error("rows cannot be stored: {detail}")]
    Unstorable {
        /// Why.
        detail: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Where complete files are kept refused.
    #[error("{source}")]
    Elsewhere {
        /// Its reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be mapped.
    #[error(transparent)]
    Checkpoint(#[from] aludel_checkpoint::Error),
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

    pub(crate) fn unstorable(detail: impl Into<String>) -> Self {
        Self::Unstorable { detail: detail.into() }
    }
}
