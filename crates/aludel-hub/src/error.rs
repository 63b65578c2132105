//! Names every way in which a model is not found or not fetched. Each message has the model and the remedy.

use std::path::{Path, PathBuf};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A revision of something that has none.
    #[error("`{model}` is on disk, where models have no revisions: leave out `@{revision}`")]
    NoRevisions {
        /// The model as written.
        model: String,
        /// The revision asked for.
        revision: String,
    },
    /// A revision of what is no name on a hub either.
    #[error(
        "`{model}` does not exist, and is no `owner/name` of a model on a hub that could have the revision `{revision}`"
    )]
    NoName {
        /// The model as written.
        model: String,
        /// The revision asked for.
        revision: String,
    },
    /// The environment forbids the network, and the cache has no whole copy.
    #[error("`{model}` is no folder on disk, nor in the cache {cache}, and HF_HUB_OFFLINE is set: unset it, download the model elsewhere, or give a folder", cache = .cache.display())]
    Offline {
        /// The model, with its revision.
        model: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The hub does not answer, and the cache has no whole copy.
    #[error(
        "`{model}` is no folder on disk, nor in the cache, and {endpoint} cannot be reached ({detail}): check the connection and HF_ENDPOINT, or give a folder"
    )]
    Unreachable {
        /// The model, with its revision.
        model: String,
        /// The hub's address.
        endpoint: String,
        /// What went wrong.
        detail: String,
    },
    /// The hub has no such model or revision.
    #[error(
        "`{model}` is no folder on disk, and {endpoint} has no model of that name and revision, or does not show it: check the spelling; for a private model set HF_TOKEN"
    )]
    Unknown {
        /// The model, with its revision.
        model: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "{endpoint} refuses `{model}` ({status}): accept its conditions on its page, and set HF_TOKEN or run `hf auth login`"
    )]
    Forbidden {
        /// The model, with its revision.
        model: String,
        /// The hub's address.
        endpoint: String,
        /// The status of the answer.
        status: u16,
    },
    /// An answer that is none.
    #[error("{endpoint} answers for `{model}` with {detail}: try again later, or check HF_ENDPOINT")]
    Protocol {
        /// The model or file.
        model: String,
        /// The hub's address.
        endpoint: String,
        /// What is wrong with the answer.
        detail: String,
    },
    /// The model has no weights that are read.
    #[error("`{model}` has no weights that are read: {detail}")]
    NoWeights {
        /// The model, with its revision.
        model: String,
        /// What it has instead.
        detail: String,
    },
    /// A download that did not come to its end.
    #[error("the download of {file} of `{model}` stopped ({detail}): run again to go on where it was")]
    Stopped {
        /// The model.
        model: String,
        /// The file.
        file: String,
        /// What went wrong.
        detail: String,
    },
    /// What arrived is not what the hub told of.
    #[error(
        "{file} of `{model}` is not what the hub says it is ({detail}); it was removed: run again to download it anew"
    )]
    Damaged {
        /// The model.
        model: String,
        /// The file.
        file: String,
        /// The difference.
        detail: String,
    },
    /// The disk is too small.
    #[error("`{model}` takes {needed} MB more in the cache {cache}, which has {free} MB free: make room, or set HF_HOME to a folder on another disk", cache = .cache.display())]
    NoRoom {
        /// The model.
        model: String,
        /// The cache.
        cache: PathBuf,
        /// Megabytes to download.
        needed: u64,
        /// Megabytes free.
        free: u64,
    },
    /// It lies in another place, and was not found there.
    #[error("{detail}")]
    Elsewhere {
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
        /// The operating system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// Returns a closure for `map_err` that adds what was tried and where.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
