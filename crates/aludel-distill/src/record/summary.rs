//! Keeps what a run was, apart from its measurements: `run.json`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A line of a table: what, and its value as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl Fact {
    /// A fact.
    pub fn new(name: impl Into<String>, value: impl ToString) -> Self {
        Self { name: name.into(), value: value.to_string() }
    }
}

/// What a run was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// What the page is headed.
    pub title: String,
    /// The run's file, word for word.
    pub settings: String,
    /// Models, data and what the settings came to.
    pub models: Vec<Fact>,
    /// Tool, machine, device, threads.
    pub environment: Vec<Fact>,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// How the run stands: "complete", "stopped early at step 300"; empty while it runs.
    pub outcome: String,
}

impl Summary {
    /// Reads the summary in a run's folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`].
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = path(folder);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        serde_json::from_str(&text).map_err(|error| Error::damaged(&path, error.to_string()))
    }

    /// Writes it, in place of the one that was there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = path(folder);
        let text =
            serde_json::to_string_pretty(self).map_err(|error| Error::damaged(&path, error.to_string()))?;
        super::replace(&path, text.as_bytes())
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("run.json")
}
