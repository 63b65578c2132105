//! Writes a delta: chunks in any order, the index beside them, the header at the end.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crc32c::crc32c_append;

use crate::chunk::Coded;
use crate::error::Error;
use crate::header::{DATA_FILE, DeltaTensor, FORMAT, HEADER_FILE, Header, INDEX_FILE};

/// Writes chunks. One thread owns it.
#[derive(Debug)]
pub struct DeltaWriter {
    folder: PathBuf,
    data: BufWriter<File>,
    index: File,
    tensors: Vec<DeltaTensor>,
    /// The first chunk of each tensor, and their number.
    starts: Vec<u64>,
    is_written: Vec<bool>,
    bytes: u64,
}

impl DeltaWriter {
    /// Begins a delta in a folder; tensors with no elements have no chunks.
    ///
    /// Errors: [`Error::Io`].
    pub fn create(folder: &Path, tensors: Vec<DeltaTensor>) -> Result<Self, Error> {
        let create = |name: &str| {
            let path = folder.join(name);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(Error::io("create", &path))
        };
        let mut starts = vec![0];
        for tensor in &tensors {
            starts.push(starts[starts.len() - 1] + tensor.chunks().unwrap_or(0));
        }
        let chunks = starts[tensors.len()];
        let index = create(INDEX_FILE)?;
        index.set_len(chunks * 16).map_err(Error::io("write", &folder.join(INDEX_FILE)))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            data: BufWriter::with_capacity(1 << 20, create(DATA_FILE)?),
            index,
            tensors,
            starts,
            is_written: vec![false; chunks as usize],
            bytes: 0,
        })
    }

    /// Writes the chunk of this number of a tensor.
    ///
    /// Errors: [`Error::Io`]; a chunk that there is none of, or that is written already, is [`Error::Damaged`].
    pub fn add(&mut self, tensor: usize, chunk: u64, coded: &Coded) -> Result<(), Error> {
        let at = self.starts[tensor] + chunk;
        let is_new =
            at < self.starts[tensor + 1] && !std::mem::replace(&mut self.is_written[at as usize], true);
        if !is_new {
            return Err(
                self.not_as_planned(format!("chunk {chunk} of tensor {tensor} is written twice or is none"))
            );
        }
        let whole = if coded.is_whole { 1 << 31 } else { 0 };
        let mut record = [0; 16];
        record[..8].copy_from_slice(&self.bytes.to_le_bytes());
        record[8..12].copy_from_slice(&(coded.bytes.len() as u32 | whole).to_le_bytes());
        record[12..].copy_from_slice(&coded.crc.to_le_bytes());
        write_at(&self.index, &record, at * 16).map_err(Error::io("write", &self.folder.join(INDEX_FILE)))?;
        self.data.write_all(&coded.bytes).map_err(Error::io("write", &self.folder.join(DATA_FILE)))?;
        self.bytes += coded.bytes.len() as u64;
        Ok(())
    }

    /// Writes the header: the delta is complete. `base_crcs` are those of each tensor's base.
    ///
    /// Errors: [`Error::Io`]; [`Error::Damaged`] where a chunk is missing.
    pub fn finish(mut self, base: &str, base_crcs: &[Option<u32>]) -> Result<Header, Error> {
        if let Some(missing) = self.is_written.iter().position(|written| !written) {
            return Err(self.not_as_planned(format!("chunk {missing} was never written")));
        }
        self.data.flush().map_err(Error::io("write", &self.folder.join(DATA_FILE)))?;
        let tensors = std::mem::take(&mut self.tensors).into_iter().zip(base_crcs);
        let header = Header {
            format: FORMAT,
            tool: format!("aludel {}", env!("CARGO_PKG_VERSION")),
            base: base.to_owned(),
            tensors: tensors.map(|(tensor, &crc)| DeltaTensor { base_crc32c: crc, ..tensor }).collect(),
            data_bytes: self.bytes,
            index_crc32c: crc_of(&self.folder.join(INDEX_FILE))?,
        };
        let path = self.folder.join(HEADER_FILE);
        let text =
            serde_json::to_string_pretty(&header).map_err(|error| Error::io("write", &path)(error.into()))?;
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        file.write_all(text.as_bytes()).map_err(Error::io("write", &path))?;
        Ok(header)
    }

    fn not_as_planned(&self, detail: String) -> Error {
        Error::Damaged { file: self.folder.join(INDEX_FILE), detail }
    }
}

fn crc_of(path: &Path) -> Result<u32, Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut crc, mut piece) = (0, vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece).map_err(Error::io("read", path))? {
            0 => return Ok(crc),
            length => crc = crc32c_append(crc, &piece[..length]),
        }
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}
