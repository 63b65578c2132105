//! The files beside the weights of a model or an output: copied from a folder, or written with a text of their own.

use std::path::{Path, PathBuf};

use aludel_checkpoint::{LARGEST_SIDE_FILE, read_bounded};
use serde::Serialize;

/// Files beside the weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SideFiles {
    /// The folder that those which are copied come from.
    pub folder: PathBuf,
    /// Their names in it.
    pub names: Vec<PathBuf>,
    /// Files that are written instead of copied.
    pub written: Vec<WrittenFile>,
}

/// A file that is written with a text of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WrittenFile {
    /// Its name in the output folder.
    pub name: PathBuf,
    /// What it holds. Not part of the plan as a value: tokenizers have megabytes.
    #[serde(skip)]
    pub text: String,
}

impl SideFiles {
    /// The names of all.
    pub(crate) fn all_names(&self) -> impl Iterator<Item = &Path> {
        let copied = self.names.iter().map(PathBuf::as_path);
        copied.chain(self.written.iter().map(|file| file.name.as_path()))
    }

    /// The content of a file of that name; `None` where there is none, it cannot be read, or it is larger than any real one.
    pub(crate) fn read(&self, name: impl AsRef<Path>) -> Option<Vec<u8>> {
        let name = name.as_ref();
        if let Some(written) = self.written.iter().find(|file| file.name == name) {
            return Some(written.text.clone().into_bytes());
        }
        let is_there = self.names.iter().any(|known| known == name);
        is_there.then(|| read_bounded(&self.folder.join(name), LARGEST_SIDE_FILE).ok()).flatten()
    }

    /// As [`SideFiles::read`], of text.
    pub(super) fn read_text(&self, name: &str) -> Option<String> {
        String::from_utf8(self.read(name)?).ok()
    }

    /// Writes a file in the place of any of that name.
    pub(super) fn write(&mut self, name: &str, text: String) {
        let name = PathBuf::from(name);
        self.names.retain(|known| *known != name);
        self.written.retain(|known| known.name != name);
        self.written.push(WrittenFile { name, text });
    }

    /// Leaves files out.
    pub(super) fn remove(&mut self, is_out: impl Fn(&Path) -> bool) {
        self.names.retain(|name| !is_out(name));
        self.written.retain(|file| !is_out(&file.name));
    }
}
