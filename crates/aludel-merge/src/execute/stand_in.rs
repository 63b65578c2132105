//! Stands in for the output of a plan that has not been carried out, so that later plans can be made of it.
//!
//! In: a plan. Out: a folder with everything that planning reads, until it is dropped: headers, config, tokenizer. Its weight files have
//! their size and no content, and take no room on the disk.

use std::path::Path;

use aludel_checkpoint::{OutputFolder, ShardWriter};

use super::{MergeError, write_small_files};
use crate::plan::Plan;

/// A folder that has what planning reads of an output.
#[derive(Debug)]
pub(crate) struct StandIn {
    folder: OutputFolder,
    _shards: ShardWriter,
}

impl StandIn {
    /// Makes the stand-in for what a plan will write, in a new folder beside `target`.
    pub(crate) fn of(plan: &Plan, target: &Path) -> Result<Self, MergeError> {
        let folder = OutputFolder::create(target, false)?;
        let shards = folder.shards(&plan.layout)?;
        write_small_files(plan, &folder)?;
        Ok(Self { folder, _shards: shards })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}
