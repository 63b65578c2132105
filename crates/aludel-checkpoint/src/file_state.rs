//! Tells whether files are what they were: by size, times, inode and device, without reading them.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What changes when a file's content does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileState {
    pub bytes: u64,
    pub modified_ns: i64,
    pub changed_ns: i64,
    pub inode: u64,
    pub device: u64,
}

/// Files as they were at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStates {
    files: Vec<(PathBuf, FileState)>,
}

impl FileStates {
    /// Takes down the state of files.
    ///
    /// Errors: [`Error::Io`].
    pub fn of<'p>(paths: impl Iterator<Item = &'p Path>) -> Result<Self, Error> {
        let files = paths.map(|path| Ok((path.to_path_buf(), FileState::at(path)?)));
        Ok(Self { files: files.collect::<Result<_, Error>>()? })
    }

    /// What tells these files from others on any machine that sees them: path, bytes, and the nanoseconds of the last change.
    pub fn stamps(&self) -> impl Iterator<Item = (&Path, u64, i64)> {
        self.files.iter().map(|(path, state)| (path.as_path(), state.bytes, state.modified_ns))
    }

    /// Whether all files are what they were.
    ///
    /// Errors: [`Error::Damaged`] with the first file that has changed; [`Error::Io`].
    pub fn check(&self) -> Result<(), Error> {
        match self.files.iter().find(|(path, state)| FileState::at(path).ok() != Some(*state)) {
            None => Ok(()),
            Some((path, _)) => Err(changed(path)),
        }
    }
}

/// A file that has changed while its content was in use.
pub(crate) fn changed(path: &Path) -> Error {
    Error::damaged(path, "it changed while it was read; run again when nobody writes to it")
}

impl FileState {
    fn at(path: &Path) -> Result<Self, Error> {
        Ok(Self::of(&path.metadata().map_err(Error::io("read", path))?))
    }

    #[cfg(unix)]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            device: metadata.dev(),
        }
    }

    #[cfg(not(unix))]
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let modified_ns = metadata.modified().map_or(0, nanoseconds_since_epoch);
        Self { bytes: metadata.len(), modified_ns, changed_ns: modified_ns, inode: 0, device: 0 }
    }

    /// Whether a change from now on would show in the times: clocks of file systems tick as coarsely as every two seconds,
    /// and two changes within one tick look like one.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let newest = self.modified_ns.max(self.changed_ns);
        newest.saturating_add(COARSEST_TICK.as_nanos() as i64) < nanoseconds_since_epoch(now)
    }
}

fn nanoseconds_since_epoch(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// That of FAT.
const COARSEST_TICK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_written_or_gone_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        paths.iter().for_each(|path| std::fs::write(path, "one").unwrap());
        let states = FileStates::of(paths.iter().map(PathBuf::as_path)).unwrap();
        assert_eq!(states.check().map_err(|error| error.to_string()), Ok(()));
        std::fs::write(&paths[1], "more").unwrap();
        let told = states.check().unwrap_err().to_string();
        assert!(told.contains("b is damaged: it changed while it was read"), "{told}");
        std::fs::remove_file(&paths[0]).unwrap();
        assert!(states.check().unwrap_err().to_string().contains("a is damaged"));
    }
}
