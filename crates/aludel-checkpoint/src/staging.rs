//! Owns the hidden folder beside a target in which an output is staged, and removes those of runs that died.
//!
//! A staging folder is `.<name>.partial-<pid>` and holds a lock file, locked for as long as its run lives. The lock, not
//! the process id, decides whether a run is alive: ids are reused, and those of other containers that share the disk mean
//! nothing here.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The lock file inside a staging folder.
pub(crate) const LOCK_NAME: &str = ".lock";

/// A staging folder of this process; removed with its content when dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    /// Holds the lock while it is open.
    lock: Option<File>,
    renamed: bool,
}

impl Staging {
    /// Creates the staging folder for `target`, whose parent exists.
    ///
    /// Errors: [`Error::TargetExists`] when a live run stages one of that name; [`Error::Io`].
    pub(crate) fn create(target: &Path) -> Result<Self, Error> {
        let mut name = prefix(target);
        name.push(std::process::id().to_string());
        let path = target.with_file_name(name);
        fs::create_dir(&path).map_err(|source| refusal(&path, target, source))?;
        let mut staging = Self { path, lock: None, renamed: false };
        let lock = staging.path.join(LOCK_NAME);
        let file = File::create_new(&lock).map_err(Error::io("create", &lock))?;
        // Some network file systems have no locks; there the process id alone decides.
        let _ = file.try_lock();
        staging.lock = Some(file);
        Ok(staging)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder onto `target`, which does not exist, without its lock file.
    pub(crate) fn rename_onto(mut self, target: &Path) -> Result<(), Error> {
        let lock = self.path.join(LOCK_NAME);
        fs::remove_file(&lock).map_err(Error::io("remove", &lock))?;
        // Only now: with its lock file still there, an unlocked folder would pass for an abandoned one.
        self.lock = None;
        fs::rename(&self.path, target).map_err(Error::io("rename the finished output to", target))?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.lock = None;
        if !self.renamed {
            // Nobody is left to tell when this fails; the next run on the target tries again.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the staging folders beside `target` whose runs died; returns those removed.
///
/// Errors: [`Error::Io`] when the parent cannot be listed or a folder cannot be removed. A missing parent holds none.
pub fn remove_stale(target: &Path) -> Result<Vec<PathBuf>, Error> {
    let absolute = std::path::absolute(target).map_err(Error::io("resolve", target))?;
    let prefix = prefix(&absolute);
    let Some(parent) = absolute.parent().filter(|parent| parent.is_dir()) else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in parent.read_dir().map_err(Error::io("list", parent))? {
        let entry = entry.map_err(Error::io("list", parent))?;
        let Some(process) = process_of(&entry.file_name(), &prefix) else { continue };
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_stale(&path, process) {
            fs::remove_dir_all(&path).map_err(Error::io("remove the abandoned", &path))?;
            removed.push(path);
        }
    }
    Ok(removed)
}

fn is_stale(staging: &Path, process: u32) -> bool {
    let Ok(lock) = File::open(staging.join(LOCK_NAME)) else { return !is_alive(process) };
    match lock.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => !is_alive(process),
    }
}

/// `.<name>.partial-`, to which the process id is added.
fn prefix(target: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".partial-");
    name
}

fn process_of(name: &OsStr, prefix: &OsStr) -> Option<u32> {
    name.to_str()?.strip_prefix(prefix.to_str()?)?.parse().ok()
}

#[cfg(unix)]
fn is_alive(process: u32) -> bool {
    let process = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw);
    // Any answer but "no such process" may mean one that belongs to somebody else.
    process.is_some_and(|id| rustix::process::test_kill_process(id) != Err(rustix::io::Errno::SRCH))
}

/// Unknown here, so nothing is removed on the strength of it.
#[cfg(not(unix))]
fn is_alive(_: u32) -> bool {
    true
}

fn refusal(path: &Path, target: &Path, source: std::io::Error) -> Error {
    if source.kind() == std::io::ErrorKind::AlreadyExists {
        let detail = format!("another run is writing it, by way of {}", path.display());
        return Error::TargetExists { path: target.to_path_buf(), detail };
    }
    Error::Io { action: "create", path: path.to_path_buf(), source }
}
