//! Builds an output folder that exists under its name only when it is whole.
//!
//! In: the target and then its files. Out: the folder, renamed into place at the end. A run that fails or is killed leaves
//! a hidden staging folder at most, which the next run on that target removes. What the files mean is not its business.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;
use crate::journal::{JOURNAL_NAME, Journal, WrittenTensor};
use crate::layout::Layout;
use crate::names::fault_of_relative_name;
use crate::shards::ShardWriter;
use crate::staging::{LOCK_NAME, Staging};

pub use crate::staging::remove_stale;

/// An output folder under construction. Dropped without [`OutputFolder::finish`], it removes what it staged.
#[derive(Debug)]
pub struct OutputFolder {
    given: PathBuf,
    /// The target with links followed.
    target: PathBuf,
    staging: Staging,
    replace: bool,
    sync: bool,
    unfinished_writers: Arc<AtomicUsize>,
}

impl OutputFolder {
    /// Stages an output folder beside `target`, whose parents are created where missing. Staging folders of runs that
    /// died are removed first.
    ///
    /// With `replace`, a folder at `target` gives way when this one is finished, not before.
    ///
    /// Errors: [`Error::TargetExists`] when the target is a file, is the folder that this process works in or one above
    /// it, or is a folder with content and `replace` is false; [`Error::Io`].
    pub fn create(target: &Path, replace: bool) -> Result<Self, Error> {
        let resolved = resolve(target)?;
        check_resolved(target, &resolved, replace)?;
        remove_stale(&resolved)?;
        Ok(Self {
            given: target.to_path_buf(),
            staging: Staging::create(&resolved)?,
            target: resolved,
            replace,
            sync: true,
            unfinished_writers: Arc::default(),
        })
    }

    /// As [`OutputFolder::create`], going on with what a run that died has staged, if one has; the tensors that it says are
    /// written. `identity` names everything that the output depends on: what was staged for another output is not gone on with. Files of
    /// weights stay, and those that `stays` names.
    ///
    /// Errors: as [`OutputFolder::create`]; [`Error::OtherOutput`].
    pub fn resume(
        target: &Path,
        replace: bool,
        identity: &str,
        stays: &[&str],
    ) -> Result<(Self, Vec<WrittenTensor>), Error> {
        let resolved = resolve(target)?;
        check_resolved(target, &resolved, replace)?;
        let Some(staging) = Staging::adopt(&resolved)? else {
            return Ok((Self::create(target, replace)?, Vec::new()));
        };
        let recorded = Journal::read(staging.path());
        let Some(recorded) = recorded.filter(|recorded| recorded.identity == identity) else {
            return Err(Error::OtherOutput { path: target.to_path_buf(), staged: staging.keep() });
        };
        // What is written last may be there in part.
        for entry in staging.path().read_dir().map_err(Error::io("list", staging.path()))? {
            let path = entry.map_err(Error::io("list", staging.path()))?.path();
            let stays = stays.iter().any(|name| path.ends_with(name))
                || path.extension().is_some_and(|extension| extension == "safetensors")
                || path.ends_with(LOCK_NAME)
                || path.ends_with(JOURNAL_NAME);
            let removed = if stays {
                Ok(())
            } else if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(Error::io("remove", &path))?;
        }
        let folder = Self {
            given: target.to_path_buf(),
            staging,
            target: resolved,
            replace,
            sync: true,
            unfinished_writers: Arc::default(),
        };
        remove_stale(&folder.target)?;
        Ok((folder, recorded.written))
    }

    /// Begins to remember what is written, for a later [`OutputFolder::resume`]; `written` is what is there already.
    ///
    /// Errors: [`Error::Io`].
    pub fn journal(&self, identity: &str, written: &[WrittenTensor]) -> Result<Journal, Error> {
        Journal::create(self.path(), identity, written)
    }

    /// Leaves what is staged for a later [`OutputFolder::resume`] and says where it is; `None`, with nothing left, where the
    /// journal has no tensor.
    pub fn keep(self) -> Option<PathBuf> {
        let is_begun = Journal::read(self.path()).is_some_and(|recorded| !recorded.written.is_empty());
        is_begun.then(|| self.staging.keep())
    }

    /// Leaves it to the system when the files reach the disk: faster, but a power cut soon after the end may lose them.
    pub fn skip_sync(&mut self) {
        self.sync = false;
    }

    /// The staging folder.
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// Writes a small file. The name may lie in subfolders, parted by `/`.
    ///
    /// Errors: [`Error::BadName`]; [`Error::Io`], also when the file exists already.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.place(name)?;
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        io::Write::write_all(&mut file, bytes).map_err(Error::io("write", &path))
    }

    /// Copies the content of the file at `source`; permissions are not copied. The name may lie in subfolders.
    ///
    /// Errors: as [`OutputFolder::write`].
    pub fn copy_from(&self, source: &Path, name: &str) -> Result<(), Error> {
        let path = self.place(name)?;
        let mut from = crate::regular::open(source)?;
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        io::copy(&mut from, &mut file).map_err(Error::io("write", &path))?;
        Ok(())
    }

    /// Copies all files of a folder, those in subfolders too, whose names in it are wanted.
    ///
    /// Errors: as [`OutputFolder::write`].
    pub fn copy_all_from(&self, folder: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Result<(), Error> {
        self.copy_beneath(folder, Path::new(""), is_wanted)
    }

    fn copy_beneath(
        &self,
        folder: &Path,
        beneath: &Path,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let place = folder.join(beneath);
        for entry in place.read_dir().map_err(Error::io("list", &place))? {
            let entry = entry.map_err(Error::io("list", &place))?;
            let name = beneath.join(entry.file_name());
            if entry.path().is_dir() {
                self.copy_beneath(folder, &name, is_wanted)?;
            } else if is_wanted(&name.to_string_lossy()) {
                self.copy_from(&entry.path(), &name.to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// Creates the shard files with their headers, ready for positioned writes.
    ///
    /// Errors: [`Error::Io`].
    pub fn shards(&self, layout: &Layout) -> Result<ShardWriter, Error> {
        ShardWriter::create(self.path(), layout, Arc::clone(&self.unfinished_writers))
    }

    /// As [`OutputFolder::shards`], for a share of them, over files of which these tensors are said to be written; those that
    /// indeed are. Every byte of them is read. A tensor that has a partner counts only where that is there as well: the two are written
    /// together.
    ///
    /// Errors: [`Error::Io`].
    pub fn shards_again(
        &self,
        layout: &Layout,
        share: Range<usize>,
        written: &[WrittenTensor],
        partner: &dyn Fn(usize) -> Option<usize>,
    ) -> Result<(ShardWriter, Vec<WrittenTensor>), Error> {
        let unfinished = Arc::clone(&self.unfinished_writers);
        ShardWriter::reopen(self.path(), layout, share, written, partner, unfinished)
    }

    /// Takes a large file in that lies on the same file system, without copying it where that can be; it stays where it is as well.
    ///
    /// Errors: as [`OutputFolder::write`].
    pub fn link_from(&self, source: &Path, name: &str) -> Result<(), Error> {
        let path = self.place(name)?;
        fs::hard_link(source, &path)
            .or_else(|_| fs::copy(source, &path).map(drop))
            .map_err(Error::io("write", &path))
    }

    /// Syncs everything to disk and renames the folder onto its target; returns the target as given.
    ///
    /// Errors: [`Error::NotAsPlanned`] when a [`ShardWriter`] of this folder has not finished; [`Error::TargetExists`] when
    /// the target has come to exist meanwhile; [`Error::Io`]. After an error the target is as it was before, with one
    /// exception: when the replaced folder cannot be removed, the new one is in place and the error names the old one.
    pub fn finish(self) -> Result<PathBuf, Error> {
        if self.unfinished_writers.load(Ordering::SeqCst) > 0 {
            let detail = "a shard writer has not finished".into();
            return Err(Error::NotAsPlanned { file: self.given, detail });
        }
        check_resolved(&self.given, &self.target, self.replace)?;
        if self.sync {
            sync_tree(self.path())?;
        }
        let aside = self.move_target_aside()?;
        if let Err(error) = self.staging.rename_onto(&self.target) {
            restore(aside.as_deref(), &self.target)?;
            return Err(error);
        }
        if self.sync {
            sync_folder(parent_of(&self.target))?;
        }
        if let Some(old) = aside {
            fs::remove_dir_all(&old).map_err(Error::io("remove the replaced folder", &old))?;
        }
        Ok(self.given)
    }

    /// The path of an output file, its subfolders made.
    fn place(&self, name: &str) -> Result<PathBuf, Error> {
        let fault = if name == LOCK_NAME || name == JOURNAL_NAME {
            Some("it is in use here")
        } else {
            fault_of_relative_name(name)
        };
        if let Some(detail) = fault {
            return Err(Error::BadName { name: name.to_owned(), detail });
        }
        let path = self.path().join(name);
        let folder = parent_of(&path);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(path)
    }

    /// Moves whatever folder is at the target out of the way and says where it went; an empty one is removed.
    fn move_target_aside(&self) -> Result<Option<PathBuf>, Error> {
        if !self.target.exists() {
            return Ok(None);
        }
        if is_empty(&self.target)? {
            fs::remove_dir(&self.target).map_err(Error::io("remove", &self.target))?;
            return Ok(None);
        }
        let mut name = OsString::from(".");
        name.push(self.target.file_name().unwrap_or_default());
        name.push(format!(".replaced-{}", std::process::id()));
        let aside = self.target.with_file_name(name);
        fs::rename(&self.target, &aside).map_err(Error::io("move aside", &self.target))?;
        Ok(Some(aside))
    }
}

/// The target with links followed, so that the staging folder is on the file system that the output will be on. Parents
/// are created.
fn resolve(target: &Path) -> Result<PathBuf, Error> {
    if target.symlink_metadata().is_ok() {
        return target.canonicalize().map_err(Error::io("resolve", target));
    }
    let absolute = std::path::absolute(target).map_err(Error::io("resolve", target))?;
    let Some(name) = absolute.file_name() else {
        return Err(Error::unsupported(target, "it names no folder"));
    };
    let parent = parent_of(&absolute);
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    Ok(parent.canonicalize().map_err(Error::io("resolve", parent))?.join(name))
}

/// Whether [`OutputFolder::create`] would take the target, without creating anything: for telling before any work.
///
/// Errors: as [`OutputFolder::create`].
pub fn check_target(target: &Path, replace: bool) -> Result<(), Error> {
    match target.canonicalize() {
        Ok(resolved) => check_resolved(target, &resolved, replace),
        Err(_) => Ok(()), // Nothing is there, or what is in the way shows itself when the folder is created.
    }
}

fn check_resolved(given: &Path, resolved: &Path, replace: bool) -> Result<(), Error> {
    let taken = |detail: &str| Err(Error::TargetExists { path: given.to_path_buf(), detail: detail.into() });
    if !resolved.exists() {
        return Ok(());
    }
    if !resolved.is_dir() {
        return taken("it is a file where a folder is to be written; name another target");
    }
    if std::env::current_dir().is_ok_and(|current| current.starts_with(resolved)) {
        return taken("it is the current folder or one above it; name a folder inside it");
    }
    if !replace && !is_empty(resolved)? {
        return taken("it is not empty; name another folder or replace this one with `--force`");
    }
    Ok(())
}

fn is_empty(folder: &Path) -> Result<bool, Error> {
    Ok(folder.read_dir().map_err(Error::io("list", folder))?.next().is_none())
}

fn restore(aside: Option<&Path>, target: &Path) -> Result<(), Error> {
    match aside {
        Some(old) => fs::rename(old, target).map_err(Error::io("restore the previous output from", old)),
        None => Ok(()),
    }
}

/// Every file, then the folder that names it.
fn sync_tree(folder: &Path) -> Result<(), Error> {
    for entry in folder.read_dir().map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            // Windows syncs only what is open for writing.
            let file = OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
            file.sync_all().map_err(Error::io("sync", &path))?;
        }
    }
    sync_folder(folder)
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(Error::io("sync", folder))
}

/// Elsewhere a folder cannot be opened as a file; a rename is in its journal.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> Result<(), Error> {
    Ok(())
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
