//! Remembers beside a result in between that it is whole and what it was made of, so that a run that goes on need not make it again.
//!
//! The mark is a hidden file beside the folder. It is believed where the plan has the identity that it names, and the folder's weights are
//! files of the size and time that they had. One that is made before the folder is there says nothing of files: as a folder under its final name
//! is complete, it then is the result, whenever the run that began it was killed.

use std::path::{Path, PathBuf};

use aludel_checkpoint::{Checkpoint, Error, FileStates};
use serde::{Deserialize, Serialize};

use super::{MergeError, identity};
use crate::plan::Plan;

#[derive(Serialize, Deserialize)]
struct Mark {
    identity: String,
    /// Path, bytes and time of each file of weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    files: Option<Vec<(PathBuf, u64, i64)>>,
}

impl Mark {
    fn of(plan: &Plan, target: &Path) -> Result<Self, MergeError> {
        let weights = Checkpoint::open(target)?;
        let states = FileStates::of(weights.files().iter().map(|file| file.path.as_path()))?;
        let files = states.stamps().map(|(path, bytes, time)| (path.to_path_buf(), bytes, time));
        let identity = identity::identity(plan, &identity::inputs(plan)?)?;
        Ok(Self { identity, files: Some(files.collect()) })
    }

    fn write(&self, target: &Path) -> Result<(), MergeError> {
        let text = serde_json::to_string(self).map_err(identity::undescribed)?;
        let path = mark_beside(target);
        let folder = path.parent().unwrap_or(target);
        let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, text));
        written.map_err(|source| Error::Io { action: "write", path, source }.into())
    }
}

/// Marks the result of a plan, which has just been written.
///
/// # Errors
/// [`MergeError::Checkpoint`] where the mark cannot be written.
pub fn mark_finished(plan: &Plan, target: &Path) -> Result<(), MergeError> {
    Mark::of(plan, target)?.write(target)
}

/// Marks the result of a plan before it is written, unless something is in its place.
///
/// # Errors
/// As [`mark_finished`].
pub fn mark_begun(plan: &Plan, target: &Path) -> Result<(), MergeError> {
    if target.exists() {
        forget_finished(target);
        return Ok(());
    }
    let identity = identity::identity(plan, &identity::inputs(plan)?)?;
    Mark { identity, files: None }.write(target)
}

/// Whether the result of a plan is there from an earlier run, whole and as it was written.
pub fn is_finished(plan: &Plan, target: &Path) -> bool {
    let read = || serde_json::from_str::<Mark>(&std::fs::read_to_string(mark_beside(target)).ok()?).ok();
    // What cannot be read or opened is not finished: making it again tells why.
    read().is_some_and(|mark| {
        Mark::of(plan, target).is_ok_and(|found| {
            found.identity == mark.identity && (mark.files.is_none() || mark.files == found.files)
        })
    })
}

/// Removes the mark of a result, when nothing is left to go on with.
pub fn forget_finished(target: &Path) {
    // A mark that stays is believed no more than any other.
    let _ = std::fs::remove_file(mark_beside(target));
}

fn mark_beside(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".finished");
    target.with_file_name(name)
}
