//! Saves everything that a run knows between two steps, and finds it again.
//!
//! In: arrays on a device and a [`Progress`]. Out: one folder for each checkpoint, under its name only when it is complete
//! and on disk. A run that goes on from one is bit for bit the run that was never stopped.

mod tensors;

pub use tensors::{Content, ContentMut, Item};
pub(crate) use tensors::{give, moment_names};

use std::fs;
use std::path::{Path, PathBuf};

use aludel_checkpoint::{OutputFolder, remove_stale};
use aludel_kernels::loss::Annealing;
use aludel_kernels::nn::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::group::Group;
use crate::record::Positions;

/// What a run knows between two steps, apart from its arrays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Version of this file.
    pub version: u32,
    /// The settings of the run, as [`crate::run::Run::to_json`] has them.
    pub run: Value,
    /// Digests of the files that the run reads.
    pub inputs: Value,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Those of them that changed the student: all that had a valid token.
    pub updates: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Where the data goes on.
    pub data: Value,
    /// The target's schedule.
    pub annealing: Option<Annealing>,
    /// Where the logs were.
    pub record: Positions,
    /// The step of the last evaluation.
    pub evaluated: Option<u64>,
    /// The best evaluation so far, where a run keeps it.
    pub best: Option<Best>,
    /// Evaluations since then.
    pub waited: u64,
}

/// The evaluation with the lowest loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Optimizer steps taken by then.
    pub step: u64,
    /// Its loss, as the bits of an f64.
    loss: u64,
}

impl Best {
    /// An evaluation.
    pub fn new(step: u64, loss: f64) -> Self {
        Self { step, loss: loss.to_bits() }
    }

    /// Its loss.
    pub fn loss(&self) -> f64 {
        f64::from_bits(self.loss)
    }
}

/// The version that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub struct States {
    folder: PathBuf,
}

impl States {
    /// Those in a folder, which is created where it is missing. What runs that died left half-written is removed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Checkpoint`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let states = Self { folder: folder.to_path_buf() };
        for name in states.names()? {
            if let Some((target, _)) = name.strip_prefix('.').and_then(|name| name.split_once(".partial-")) {
                remove_stale(&states.folder.join(target))?;
            }
        }
        Ok(states)
    }

    /// Those in a folder, to be read.
    pub(crate) fn of(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    /// Steps of the checkpoints, ascending.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn steps(&self) -> Result<Vec<u64>, Error> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// The folder of a checkpoint.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:08}"))
    }

    /// Writes a checkpoint, then removes those that are no longer kept: all but the newest `keep` and the best one. What other processes of the group
    /// hold, they give.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], [`Error::Device`], [`Error::Group`], [`Error::Io`]. Former checkpoints are as they were then.
    pub fn write<D: Device>(
        &self,
        device: &D,
        progress: &Progress,
        items: &[Item<Content<'_, D>>],
        keep: usize,
        group: Option<&Group<D>>,
    ) -> Result<(), Error> {
        let folder = OutputFolder::create(&self.path(progress.step), true)?;
        tensors::write(&folder, device, items, group)?;
        let text = serde_json::to_vec_pretty(progress).map_err(|error| Error::internal(error.to_string()))?;
        folder.write(STATE, &text)?;
        folder.finish()?;
        self.prune(keep, progress.best.map(|best| best.step))
    }

    /// Reads what a checkpoint knows apart from its arrays.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Damaged`], also for another version's.
    pub fn read(&self, step: u64) -> Result<Progress, Error> {
        let path = self.path(step).join(STATE);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let damaged = |error: serde_json::Error| Error::damaged(&path, error.to_string());
        let value: Value = serde_json::from_str(&text).map_err(damaged)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            _ => return Err(Error::damaged(&path, "another version of this program wrote it")),
        }
        let progress: Progress = serde_json::from_value(value).map_err(damaged)?;
        if progress.step != step {
            return Err(Error::damaged(&path, format!("it is of step {}", progress.step)));
        }
        Ok(progress)
    }

    /// Reads the arrays of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], [`Error::Device`]; [`Error::Damaged`] where the arrays are not exactly these.
    pub fn restore<D: Device>(
        &self,
        step: u64,
        device: &D,
        items: Vec<Item<ContentMut<'_, D>>>,
    ) -> Result<(), Error> {
        tensors::read(&self.path(step), device, items)
    }

    fn prune(&self, keep: usize, best: Option<u64>) -> Result<(), Error> {
        let steps = self.steps()?;
        let old = &steps[..steps.len().saturating_sub(keep.max(1))];
        for &step in old.iter().filter(|&&step| Some(step) != best) {
            let path = self.path(step);
            fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        let list = || -> std::io::Result<Vec<String>> {
            let entries = self.folder.read_dir()?.map(|entry| Ok(entry?.file_name().into_string().ok()));
            Ok(entries.collect::<std::io::Result<Vec<_>>>()?.into_iter().flatten().collect())
        };
        list().map_err(Error::io("list", &self.folder))
    }
}

/// The step in a checkpoint's name.
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

const PREFIX: &str = "step-";
const STATE: &str = "state.json";
