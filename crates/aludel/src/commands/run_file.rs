//! Reads the run that a command is given, and says how its work failed.

use std::path::Path;

use aludel_distill::Error;
use aludel_distill::run::Run;
use aludel_document::Problems;

use super::text::{self, Kind};
use crate::failure::{self, Refusal};

const RUN: Kind = Kind { noun: "run", hint: "give the run's YAML file" };

/// A run as it was written.
pub(super) struct RunFile {
    name: String,
    /// What the file holds.
    pub(super) text: String,
}

impl RunFile {
    /// Reads the file, or standard input for `-`.
    pub(super) fn read(path: &Path) -> Result<Self, Refusal> {
        let (name, text) = text::read(path, RUN)?;
        Ok(Self { name, text })
    }

    /// The run that it describes.
    pub(super) fn parse(&self) -> Result<Run, Refusal> {
        Run::parse(&self.text).map_err(|problems| self.refuse(problems))
    }

    /// Why the run's work ended: refused in its file's words, or stopped by the signal that was received, and what that left.
    pub(super) fn failure(&self, error: Error, signal: Option<u8>, left: Option<String>) -> anyhow::Error {
        match error {
            Error::Problems(problems) => self.refuse(problems).into(),
            error => failure::of_distilling(error, signal, left),
        }
    }

    fn refuse(&self, problems: Problems) -> Refusal {
        Refusal { recipe: Some(self.name.clone()), problems: problems.in_order_of_place() }
    }
}
