//! Names every way in which this crate fails.
//!
//! A folder is refused with all of its problems at once, each with the key or the tensor that it is about.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use aludel_kernels::nn::DeviceError;
use indexmap::IndexSet;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] aludel_checkpoint::Error),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A `config.json` that describes no model that can be run here.
    #[error("config.json describes no model that can be run: {0}")]
    Config(Problems),
    /// Weights that do not fit the model that their `config.json` describes.
    #[error("the weights of {path} do not fit its config.json: {problems}", path = .path.display())]
    Weights {
        /// The model folder.
        path: PathBuf,
        /// One line for each tensor.
        problems: Problems,
    },
    /// A change of the model (an adapter, a student cut from a teacher) that is not possible.
    #[error("{0}")]
    Change(Problems),
    /// Files of a tokenizer that cannot be used.
    #[error("the tokenizer of {path} cannot be used: {detail}", path = .path.display())]
    Tokenizer {
        /// The model folder or file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Two models whose token ids do not mean the same.
    #[error("the tokenizers differ: {detail}")]
    Tokenizers {
        /// The first difference.
        detail: String,
    },
    /// A chat template that does not compile.
    #[error("the chat template cannot be used: {detail}")]
    ChatTemplate {
        /// What is wrong with it, and on which line.
        detail: String,
    },
    /// A conversation that a chat template does not take.
    #[error("the chat template does not take this conversation: {detail}")]
    Conversation {
        /// What the template said.
        detail: String,
    },
    /// Token ids or documents that a model cannot take.
    #[error("a step cannot be run: {detail}")]
    Batch {
        /// What is wrong with it.
        detail: String,
    },
}

/// Everything that is wrong with one thing; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl Problems {
    /// The problems, one line each.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// `Ok` where there are none.
    pub(crate) fn none_or(problems: Vec<String>, error: impl FnOnce(Self) -> Error) -> Result<(), Error> {
        // What is read twice is complained of once.
        let problems: IndexSet<String> = problems.into_iter().collect();
        if problems.is_empty() { Ok(()) } else { Err(error(Self(problems.into_iter().collect()))) }
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => f.write_str(only),
            lines => lines.iter().try_for_each(|line| write!(f, "\n  - {line}")),
        }
    }
}

impl Error {
    pub(crate) fn tokenizer(path: &Path, detail: impl Into<String>) -> Self {
        Self::Tokenizer { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn config(problem: impl Into<String>) -> Self {
        Self::Config(Problems(vec![problem.into()]))
    }

    pub(crate) fn change(problem: impl Into<String>) -> Self {
        Self::Change(Problems(vec![problem.into()]))
    }

    pub(crate) fn batch(detail: impl Into<String>) -> Self {
        Self::Batch { detail: detail.into() }
    }
}
