//! Knows where the files of a model lie in the cache, in the layout of Python's `huggingface_hub`.
//!
//! `models--owner--name/` has `refs/<revision>`, a file with the commit; `snapshots/<commit>/`, the model folder, of links; and
//! `blobs/<etag>`, the content.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::error::Error;
use crate::hub::Needed;
use crate::id::Id;
use crate::listing::{Listing, RemoteFile};

/// The place of one model at one revision.
pub(crate) struct Place {
    repo: CacheRepo,
    folder: PathBuf,
    revision: String,
}

impl Place {
    pub(crate) fn of(id: &Id, cache: &Path) -> Self {
        let repo = Repo::with_revision(id.name.clone(), RepoType::Model, id.revision.clone());
        let folder = cache.join(repo.folder_name());
        Self { repo: Cache::new(cache.to_path_buf()).repo(repo), folder, revision: id.revision.clone() }
    }

    /// The model folder of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// The model folder that the revision was last known to be, where it is there with what is `needed`; which of its files belong together, it says itself.
    pub(crate) fn known(&self, needed: Needed) -> Option<PathBuf> {
        let stored = fs::read_to_string(self.folder.join("refs").join(&self.revision)).ok();
        let commit = stored.map_or_else(|| self.revision.clone(), |commit| commit.trim().to_owned());
        if commit.contains(['/', '\\']) || commit.starts_with('.') {
            return None;
        }
        let snapshot = self.snapshot(&commit);
        let entries = fs::read_dir(&snapshot).ok()?;
        let names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        needed(&names).is_ok().then_some(snapshot)
    }

    /// The content of a file, whether it is there or not.
    pub(crate) fn blob(&self, file: &RemoteFile) -> PathBuf {
        self.folder.join("blobs").join(&file.etag)
    }

    /// Whether a file is in the snapshot of a commit, whole.
    pub(crate) fn has(&self, commit: &str, file: &RemoteFile) -> bool {
        let is_whole = |path: &Path| path.metadata().is_ok_and(|metadata| metadata.len() == file.bytes);
        is_whole(&self.snapshot(commit).join(&file.name)) || is_whole(&self.blob(file))
    }

    /// Puts a file whose content is there into the snapshot.
    pub(crate) fn link(&self, commit: &str, file: &RemoteFile) -> Result<(), Error> {
        let path = self.snapshot(commit).join(&file.name);
        let blob = self.blob(file);
        if path.exists() {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&path);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        // From the file up to the model's folder: past its snapshot, the folder of snapshots, and its own subfolders.
        let mut relative: PathBuf = std::iter::repeat_n("..", 2 + file.name.matches('/').count()).collect();
        relative.push("blobs");
        relative.push(&file.etag);
        match symlink(&relative, &path) {
            Ok(()) => Ok(()),
            Err(_) if path.exists() => Ok(()), // Another process was first.
            // Where links are not allowed, as on most of Windows, the snapshot has the content itself.
            Err(_) => fs::rename(&blob, &path).map_err(Error::io("move into the cache", &path)),
        }
    }

    /// Takes note that the revision is this commit.
    pub(crate) fn remember(&self, listing: &Listing) -> Result<(), Error> {
        if self.revision == listing.commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&self.revision);
        self.repo.create_ref(&listing.commit).map_err(Error::io("write", &path))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}
