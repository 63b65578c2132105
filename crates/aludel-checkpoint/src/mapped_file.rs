//! Maps one whole file of any kind into memory, read-only: for readers that know its format themselves.
//!
//! In: a path. Out: its bytes. Weight files have maps of their own, which also give pages back.
#![expect(unsafe_code, reason = "memory maps cannot be made safe: another process may change the file")]

use std::fs::File;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

use crate::error::Error;
use crate::regular::open;

/// A read-only shared map of one whole file. It must not be truncated or rewritten while it is mapped; replacing it by renaming
/// another onto it is harmless.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps a file; reads nothing.
    ///
    /// Errors: [`Error::Io`]; [`Error::Unsupported`] when the path is no regular file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { map: map_whole(&open(path)?, path)? })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Maps a whole file, read-only.
pub(crate) fn map_whole(file: &File, path: &Path) -> Result<Mmap, Error> {
    // SAFETY: the map is read-only and handed out as `&[u8]`. That nobody changes the file meanwhile is the documented
    // condition on both kinds of maps; the standard library offers no way to enforce it.
    unsafe { MmapOptions::new().map(file) }.map_err(Error::io("map", path))
}
