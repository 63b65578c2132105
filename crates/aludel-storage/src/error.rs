//! Names every way in which object storage fails.

use std::io;
use std::path::{Path, PathBuf};

/// A failure; the message names the address or the file and, where there is one, the remedy. No message holds a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that begins as an address and is none.
    #[error("{text:?} is no address of object storage: {detail}")]
    Address {
        /// The text.
        text: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The environment does not say who asks, or says it wrongly.
    #[error("{address} cannot be reached: {detail}")]
    Settings {
        /// The address.
        address: String,
        /// Which variable, and what to do.
        detail: String,
    },
    /// The storage does not know who asks, or does not let them.
    #[error(
        "{address} refuses ({detail}): see whether AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN are right and may {action} there"
    )]
    Refused {
        /// The address.
        address: String,
        /// "read", "write" or "list".
        action: &'static str,
        /// Its answer.
        detail: String,
    },
    /// There is no such bucket or object.
    #[error("{address} is not there: {detail}")]
    Absent {
        /// The address of the object.
        address: String,
        /// Its answer, or the remedy.
        detail: String,
    },
    /// There was no answer, or one that tells of a failure.
    #[error("cannot {action} {address} at {endpoint}: {detail}")]
    Unreachable {
        /// The address of the object.
        address: String,
        /// "read", "write" or "list".
        action: &'static str,
        /// Where it was asked.
        endpoint: String,
        /// What went wrong.
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
}

impl Error {
    /// Returns a closure for `map_err` that adds what was tried and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
