//! Finds the pickle and the storages in the zip archive of torch 1.6 and later.
//!
//! Storages have to be stored as they are, as torch stores them: compressed ones could not be mapped.

use std::io::{BufRead, BufReader, Read, Seek};

use indexmap::IndexMap;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::Pickle;
use super::tensors::tensors;
use super::{Fault, Place, REMEDY, TorchTensor, damaged, unsupported};

/// What a zip archive begins with.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// The tensors of an archive of so many bytes.
pub(super) fn read<R: BufRead + Seek>(reader: R, bytes: u64) -> Result<IndexMap<String, TorchTensor>, Fault> {
    let archive = ZipArchive::new(reader)
        .map_err(|error| Fault::Damaged(format!("it is no whole zip archive: {error}")))?;
    let mut archive = Archive { folder: folder(&archive)?, archive, bytes };
    archive.check_order()?;
    let pickle = archive.pickle()?;
    tensors(&pickle, &mut |key| archive.place(&format!("data/{key}")))
}

struct Archive<R> {
    archive: ZipArchive<R>,
    /// The folder in the archive that everything lies in, with its slash.
    folder: String,
    bytes: u64,
}

/// torch names the folder after the file that it wrote first.
fn folder<R: Read + Seek>(archive: &ZipArchive<R>) -> Result<String, Fault> {
    let mut folders = archive.file_names_raw().filter_map(|name| {
        let folder = std::str::from_utf8(name).ok()?.strip_suffix("data.pkl")?;
        (folder.ends_with('/') && folder.matches('/').count() == 1).then(|| folder.to_owned())
    });
    match folders.next() {
        Some(folder) => Ok(folder),
        None => unsupported(
            "it is a zip archive without the `data.pkl` that torch.save writes; save the model as safetensors",
        ),
    }
}

impl<R: BufRead + Seek> Archive<R> {
    /// Files of machines with the other order of bytes say so.
    fn check_order(&mut self) -> Result<(), Fault> {
        let name = format!("{}byteorder", self.folder);
        let Some(index) = self.archive.index_for_name_raw(name.as_bytes()) else { return Ok(()) };
        let mut order = Vec::new();
        self.entry(index)?.take(LONGEST_ORDER).read_to_end(&mut order)?;
        if order == b"little" {
            return Ok(());
        }
        unsupported(format!("its numbers are not stored as little-endian; {REMEDY}"))
    }

    fn pickle(&mut self) -> Result<Pickle, Fault> {
        let name = format!("{}data.pkl", self.folder);
        match self.archive.index_for_name_raw(name.as_bytes()) {
            Some(index) => Pickle::read(&mut BufReader::new(self.entry(index)?)),
            None => damaged("its pickle is missing"),
        }
    }

    /// Where an entry's bytes lie; `None` when there is no such entry.
    fn place(&mut self, name: &str) -> Result<Option<Place>, Fault> {
        let name = format!("{}{name}", self.folder);
        let Some(index) = self.archive.index_for_name_raw(name.as_bytes()) else { return Ok(None) };
        let all = self.bytes;
        let entry = self.entry(index)?;
        let (offset, bytes) = (entry.data_start().unwrap_or(u64::MAX), entry.size());
        match offset.checked_add(bytes) {
            Some(end) if end <= all => Ok(Some(Place { offset, bytes })),
            _ => damaged("a storage of it reaches beyond its end; download or copy it again"),
        }
    }

    fn entry(&mut self, index: usize) -> Result<zip::read::ZipFile<'_, R>, Fault> {
        let entry = self.archive.by_index_raw(index);
        let entry = entry
            .map_err(|error| Fault::Damaged(format!("an entry of its zip archive is invalid: {error}")))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return unsupported(format!(
                "it is compressed or encrypted, which torch.save does not do; {REMEDY}"
            ));
        }
        if entry.compressed_size() != entry.size() {
            return damaged("an entry of its zip archive has two sizes");
        }
        Ok(entry)
    }
}

const LONGEST_ORDER: u64 = 16;
