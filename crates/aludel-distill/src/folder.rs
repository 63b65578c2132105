//! Owns the folder beside the output in which a run works: `<output>.run`.
//!
//! In it are the record (`run.json`, `metrics.jsonl`, `tensorboard/`, `report.html`) and the checkpoints. It is there from
//! a run's first moment and stays when the run is over; the output appears beside it only when it is complete. A lock
//! keeps two processes from training in one folder.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use aludel_document::{Problem, Problems};

use crate::error::Error;
use crate::record::Summary;
use crate::state::States;

/// The folder of a run, locked.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    states: States,
    /// Holds the lock while it is open.
    _lock: File,
}

/// How a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// At the first step, where no earlier run is in the way.
    Fresh,
    /// At the first step; an earlier run is discarded.
    Replacing,
    /// At the last checkpoint, or at the first step where there is none.
    Resuming,
}

/// The folder in which the run for this output works.
pub fn path_for(output: &Path) -> PathBuf {
    beside(output, ".run")
}

/// The folder of the adapters that a run trains beside the merged student.
pub fn adapter_path_for(output: &Path) -> PathBuf {
    beside(output, ".adapter")
}

fn beside(output: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(output.file_name().unwrap_or_default());
    name.push(ending);
    output.with_file_name(name)
}

impl RunFolder {
    /// Opens the folder of the run for this output, creating it where it is missing. Where a run begins at its first step,
    /// what an earlier one left is removed; without leave to, an earlier run that has anything to lose is a problem.
    ///
    /// # Errors
    /// [`Error::Problems`]; [`Error::Io`], [`Error::Checkpoint`].
    pub fn open(output: &Path, beginning: Beginning) -> Result<Self, Error> {
        let path = path_for(output);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        let lock = lock(&path)?;
        let checkpoints = path.join(CHECKPOINTS);
        let states = States::open(&checkpoints)?;
        let last = states.steps()?.last().copied();
        let is_complete = Summary::read(&path).is_ok_and(|summary| !summary.outcome.is_empty());
        match beginning {
            Beginning::Resuming if last.is_some() => {}
            Beginning::Fresh if last.is_some() || is_complete => return Err(in_the_way(&path, last).into()),
            Beginning::Fresh | Beginning::Replacing | Beginning::Resuming => {
                fs::remove_dir_all(&checkpoints).map_err(Error::io("remove", &checkpoints))?;
                fs::create_dir(&checkpoints).map_err(Error::io("create", &checkpoints))?;
            }
        }
        Ok(Self { path, states, _lock: lock })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes its checkpoints.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_checkpoints(&self) -> Result<(), Error> {
        let path = self.path.join(CHECKPOINTS);
        fs::remove_dir_all(&path).map_err(Error::io("remove", &path))
    }

    /// The checkpoints of the run for this output, which another process has opened.
    pub(crate) fn states_of(output: &Path) -> States {
        States::of(&path_for(output).join(CHECKPOINTS))
    }

    /// Its checkpoints.
    pub fn states(&self) -> &States {
        &self.states
    }
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    // Some network file systems have no locks; there nobody is kept out.
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = format!("another process is training in {}", folder.display());
            Err(Problem::general(message).with_hint("wait for it, or name another `output`").into())
        }
        _ => Ok(file),
    }
}

fn in_the_way(folder: &Path, last: Option<u64>) -> Problems {
    let what = match last {
        Some(step) => format!("an earlier run, up to step {step}"),
        None => "the record of an earlier run".to_owned(),
    };
    let hint = match last {
        Some(_) => "go on with it by --resume, or discard it by --force",
        None => "discard it by --force, or name another `output`",
    };
    Problem::general(format!("{} holds {what}", folder.display())).with_hint(hint).into()
}

const CHECKPOINTS: &str = "checkpoints";

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out");
        (folder, output)
    }

    fn message(result: Result<RunFolder, Error>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_earlier_run_is_not_discarded_without_leave() {
        let (_folder, output) = output();
        let opened = RunFolder::open(&output, Beginning::Fresh).unwrap();
        assert_eq!(opened.path().file_name().unwrap(), "out.run");
        fs::create_dir(opened.states().path(7)).unwrap();
        drop(opened);
        let text = message(RunFolder::open(&output, Beginning::Fresh));
        assert!(
            text.contains("out.run holds an earlier run, up to step 7 (go on with it by --resume"),
            "{text}"
        );
        let resumed = RunFolder::open(&output, Beginning::Resuming).unwrap();
        assert_eq!(resumed.states().steps().unwrap(), [7]);
        drop(resumed);
        let replaced = RunFolder::open(&output, Beginning::Replacing).unwrap();
        assert!(replaced.states().steps().unwrap().is_empty());
    }

    #[test]
    fn a_run_that_saved_nothing_is_not_in_the_way_and_a_complete_one_is() {
        let (_folder, output) = output();
        let mut summary = Summary::default();
        drop(RunFolder::open(&output, Beginning::Fresh).unwrap());
        summary.write(&path_for(&output)).unwrap();
        drop(RunFolder::open(&output, Beginning::Fresh).unwrap());
        summary.outcome = "complete".into();
        summary.write(&path_for(&output)).unwrap();
        let text = message(RunFolder::open(&output, Beginning::Fresh));
        assert!(text.contains("holds the record of an earlier run"), "{text}");
    }

    #[test]
    fn two_cannot_train_in_one_folder() {
        let (_folder, output) = output();
        let first = RunFolder::open(&output, Beginning::Fresh).unwrap();
        let text = message(RunFolder::open(&output, Beginning::Resuming));
        assert!(text.contains("another process is training in"), "{text}");
        drop(first);
        RunFolder::open(&output, Beginning::Resuming).unwrap();
    }
}
