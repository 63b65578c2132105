//! Remembers where a model came from: its `config.json` and the files that travel with its weights.

use std::path::PathBuf;

use aludel_checkpoint::{Checkpoint, Config};

/// What a saved model takes over from the folder that it was loaded from.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// As the saved model is to have it, but for the type of its weights.
    pub(crate) config: Config,
    /// The folder.
    pub(crate) folder: Option<PathBuf>,
    /// Names relative to it.
    pub(crate) side_files: Vec<PathBuf>,
}

impl Source {
    pub(crate) fn of(checkpoint: &Checkpoint, config: Config) -> Self {
        Self {
            config,
            folder: Some(checkpoint.path().to_path_buf()),
            side_files: checkpoint.side_files().to_vec(),
        }
    }
}
