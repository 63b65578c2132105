//! Owns the hidden folder beside a target in which an output is staged, and removes those of runs that died.
//!
//! A staging folder is `.<name>.partial-<pid>` and holds a lock file, locked for as long as its run lives. The lock, not
//! the process id, decides whether a run is alive: ids are reused, and those of other containers that share the disk mean
//! nothing here.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::journal::JOURNAL_NAME;

/// The lock file inside a staging folder.
pub(crate) const LOCK_NAME: &str = ".lock";

/// A staging folder of this process; removed with its content when dropped, unless it is kept.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    /// Holds the lock while it is open.
    lock: Option<File>,
    stays: bool,
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
        let mut staging = Self { path, lock: None, stays: false };
        let lock = staging.path.join(LOCK_NAME);
        let file = File::create_new(&lock).map_err(Error::io("create", &lock))?;
        // Some network file systems have no locks; there the process id alone decides.
        let _ = file.try_lock();
        staging.lock = Some(file);
        Ok(staging)
    }

    /// Takes over the staging folder of a run that died and has left a journal, the newest where there are several; it is
    /// removed when dropped, as if this process had made it.
    ///
    /// Errors: [`Error::Io`].
    pub(crate) fn adopt(target: &Path) -> Result<Option<Self>, Error> {
        let mut found = Vec::new();
        for (path, process) in stagings(target)? {
            let journal = path.join(JOURNAL_NAME).metadata().and_then(|journal| journal.modified());
            found.extend(journal.ok().map(|modified| (modified, path, process)));
        }
        found.sort();
        for (_, path, process) in found.into_iter().rev() {
            let lock = path.join(LOCK_NAME);
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&lock);
            let file = file.map_err(Error::io("open", &lock))?;
            let is_free = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                Err(TryLockError::Error(_)) => !is_alive(process),
            };
            if !is_free {
                continue;
            }
            let mut name = prefix(target);
            name.push(std::process::id().to_string());
            let own = target.with_file_name(name);
            if own != path {
                fs::rename(&path, &own).map_err(Error::io("take over", &path))?;
            }
            return Ok(Some(Self { path: own, lock: Some(file), stays: false }));
        }
        Ok(None)
    }

    /// Leaves the folder to whoever goes on with it; where it is.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.stays = true;
        self.path.clone()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the folder onto `target`, which does not exist, without its lock file.
    pub(crate) fn rename_onto(mut self, target: &Path) -> Result<(), Error> {
        let lock = self.path.join(LOCK_NAME);
        fs::remove_file(&lock).map_err(Error::io("remove", &lock))?;
        let journal = self.path.join(JOURNAL_NAME);
        if journal.exists() {
            fs::remove_file(&journal).map_err(Error::io("remove", &journal))?;
        }
        // Only now: with its lock file still there, an unlocked folder would pass for an abandoned one.
        self.lock = None;
        fs::rename(&self.path, target).map_err(Error::io("rename the finished output to", target))?;
        self.stays = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.lock = None;
        if !self.stays {
            // Nobody is left to tell when this fails; the next run on the target tries again.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the staging folders beside `target` whose runs died; returns those removed.
///
/// Errors: [`Error::Io`] when the parent cannot be listed or a folder cannot be removed. A missing parent holds none.
pub fn remove_stale(target: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut removed = Vec::new();
    for (path, process) in stagings(target)? {
        if is_stale(&path, process) {
            fs::remove_dir_all(&path).map_err(Error::io("remove the abandoned", &path))?;
            removed.push(path);
        }
    }
    Ok(removed)
}

/// Bytes of the file system that the staging folders beside `target` hold whose runs died.
///
/// Errors: [`Error::Io`] when one cannot be listed.
pub(crate) fn stale_bytes(target: &Path) -> Result<u64, Error> {
    let stale = stagings(target)?.into_iter().filter(|(path, process)| is_stale(path, *process));
    let mut bytes = 0;
    for (path, _) in stale {
        for entry in path.read_dir().map_err(Error::io("list", &path))?.flatten() {
            bytes += entry.metadata().map_or(0, |metadata| held(&metadata));
        }
    }
    Ok(bytes)
}

/// What a file takes: less than its length where that has holes.
#[cfg(unix)]
fn held(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

#[cfg(not(unix))]
fn held(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

/// The staging folders beside a target, with the ids of the processes that made them.
fn stagings(target: &Path) -> Result<Vec<(PathBuf, u32)>, Error> {
    let absolute = std::path::absolute(target).map_err(Error::io("resolve", target))?;
    let prefix = prefix(&absolute);
    let Some(parent) = absolute.parent().filter(|parent| parent.is_dir()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in parent.read_dir().map_err(Error::io("list", parent))? {
        let entry = entry.map_err(Error::io("list", parent))?;
        let process = process_of(&entry.file_name(), &prefix);
        let process = process.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(process.map(|process| (entry.path(), process)));
    }
    Ok(found)
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
