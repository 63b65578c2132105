//! Keeps the complete files of a cache: in a folder, or wherever a program puts them.
//!
//! In: files that are complete. Out: the same, by their names, whole or in part. A file is put there once, and then never changes.
//! What grows is no concern of a shelf: it lies on a disk until it is complete.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::write::nameless;

/// Where the complete files of a cache are.
pub trait Shelf: Debug + Send + Sync {
    /// A file's place, for people.
    fn place(&self, name: &str) -> PathBuf;

    /// Puts a file there, unless there is one of its name.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Elsewhere`].
    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Error>;

    /// The length of a file; `None` where there is none.
    ///
    /// # Errors
    /// As [`Shelf::create`].
    fn length(&self, name: &str) -> Result<Option<u64>, Error>;

    /// Some bytes of a file that is there.
    ///
    /// # Errors
    /// As [`Shelf::create`]; [`Error::Damaged`] where it is shorter.
    fn range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error>;

    /// Takes a complete file over under this name; nothing is at its path any more.
    ///
    /// # Errors
    /// As [`Shelf::create`]; [`Error::Damaged`] where there is another of its name that it cannot take the place of.
    fn take(&self, path: &Path, name: &str) -> Result<(), Error>;
}

/// A folder on a disk, in which files also grow.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    sync: bool,
}

impl Folder {
    /// `sync`: whether a complete file waits for the disk.
    pub fn new(path: &Path, sync: bool) -> Self {
        Self { path: path.to_path_buf(), sync }
    }
}

impl Shelf for Folder {
    fn place(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.place(name);
        if path.exists() {
            return Ok(());
        }
        let file = nameless(&self.path);
        let mut file = file.map_err(Error::io("create a file in", &self.path))?;
        file.write_all(bytes).map_err(Error::io("write", &path))?;
        if self.sync {
            file.as_file().sync_all().map_err(Error::io("sync", &path))?;
        }
        match file.persist_noclobber(&path) {
            // Another part was faster.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(Error::io("create", &path)(error.error)),
            Ok(_) => Ok(()),
        }
    }

    fn length(&self, name: &str) -> Result<Option<u64>, Error> {
        let path = self.place(name);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    fn range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        let path = self.place(name);
        let mut file = File::open(&path).map_err(Error::io("read", &path))?;
        file.seek(SeekFrom::Start(range.start)).map_err(Error::io("read", &path))?;
        let (length, mut bytes) = (range.end.saturating_sub(range.start), Vec::new());
        file.take(length).read_to_end(&mut bytes).map_err(Error::io("read", &path))?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(Error::damaged(&path, "it is cut short")) }
    }

    fn take(&self, path: &Path, name: &str) -> Result<(), Error> {
        fs::rename(path, self.place(name)).map_err(Error::io("rename", path))?;
        if self.sync {
            let folder = File::open(&self.path).map_err(Error::io("open", &self.path))?;
            folder.sync_all().map_err(Error::io("sync", &self.path))?;
        }
        Ok(())
    }
}
