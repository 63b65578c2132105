//! Knows exactly which files a run reads: their digests go into checkpoints and into the student's card.
//!
//! In: the paths of a run. Out: every weight and data file with its SHA-256. A run that goes on from a checkpoint with
//! other files would not be the same run, and is refused.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use aludel_cache::TeacherFile;
use aludel_checkpoint::{Checkpoint, DigestCache};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::prepare::config_file;
use crate::run::{Run, Student, Validation};

/// A file that a run reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// What it is for.
    pub role: Role,
    /// The model or file as the run names it.
    pub given: String,
    /// The file's name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weights of the teacher.
    Teacher,
    /// Weights or shape of the student.
    Student,
    /// Documents to train on.
    Data,
    /// Documents to evaluate on.
    Validation,
}

impl Role {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Teacher => "teacher",
            Self::Student => "student",
            Self::Data => "data",
            Self::Validation => "validation",
        }
    }
}

/// Hashes all files of a run. `on_bytes` is told how many bytes of how many are done.
///
/// # Errors
/// [`Error::Checkpoint`] for a file that cannot be read; [`Error::Interrupted`] when it was asked to stop.
pub fn hash(
    run: &Run,
    digests: &DigestCache,
    cancel: &AtomicBool,
    on_bytes: &dyn Fn(u64, u64),
) -> Result<Vec<Input>, Error> {
    let files = files(run)?;
    let hashed = hash_all(files.iter().map(|(.., path)| path.as_path()), digests, cancel, on_bytes)?;
    let input = |((role, given, _), hashed): ((Role, PathBuf, PathBuf), TeacherFile)| {
        let TeacherFile { file, bytes, sha256 } = hashed;
        Input { role, given: given.display().to_string(), file, bytes, sha256 }
    };
    Ok(files.into_iter().zip(hashed).map(input).collect())
}

/// The weight files of a model with their digests, as a cache names its teacher.
///
/// # Errors
/// As [`hash`].
pub fn weight_files(
    model: &Path,
    digests: &DigestCache,
    cancel: &AtomicBool,
    on_bytes: &dyn Fn(u64, u64),
) -> Result<Vec<TeacherFile>, Error> {
    hash_all(weights(model)?.iter().map(PathBuf::as_path), digests, cancel, on_bytes)
}

fn hash_all<'a>(
    paths: impl Iterator<Item = &'a Path> + Clone,
    digests: &DigestCache,
    cancel: &AtomicBool,
    on_bytes: &dyn Fn(u64, u64),
) -> Result<Vec<TeacherFile>, Error> {
    let total = paths.clone().map(length).sum();
    let mut done = 0;
    let mut files = Vec::new();
    for path in paths {
        let start = done;
        let mut count = |bytes| {
            done += bytes;
            on_bytes(done, total);
            if cancel.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let sha256 = match digests.sha256(path, &mut count) {
            Err(aludel_checkpoint::Error::Stopped { .. }) => return Err(Error::Interrupted),
            result => result?,
        };
        let bytes = length(path);
        done = start + bytes;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(TeacherFile { file, bytes, sha256 });
    }
    Ok(files)
}

/// 0 for what cannot be asked: hashing it fails with the reason.
fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Every file with its role and the name that the run has for it.
fn files(run: &Run) -> Result<Vec<(Role, PathBuf, PathBuf)>, Error> {
    let mut files = Vec::new();
    let mut add = |role: Role, given: &Path, path: &Path| {
        files.push((role, given.to_path_buf(), path.to_path_buf()));
    };
    if let Some(teacher) = &run.teacher {
        weights(teacher)?.iter().for_each(|path| add(Role::Teacher, teacher, path));
    }
    if let Some(cache) = &run.cache {
        add(Role::Teacher, &cache.path, &cache.path.join("cache.json"));
    }
    match &run.student {
        Student::Model(student) => {
            weights(student)?.iter().for_each(|path| add(Role::Student, student, path));
        }
        Student::FromTeacher { .. } => {}
        Student::FromConfig { config, .. } => {
            add(Role::Student, config, &config_file(config));
        }
    }
    run.data.train.iter().for_each(|path| add(Role::Data, path, path));
    if let Some(Validation::Files(paths)) = &run.data.validation {
        paths.iter().for_each(|path| add(Role::Validation, path, path));
    }
    Ok(files)
}

/// The weight files of a model folder, or the GGUF file itself.
fn weights(model: &Path) -> Result<Vec<PathBuf>, Error> {
    if model.is_file() {
        return Ok(vec![model.to_path_buf()]);
    }
    let checkpoint = Checkpoint::open(model)?;
    Ok(checkpoint.files().iter().map(|file| file.path.clone()).collect())
}
