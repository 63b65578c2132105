//! Writes a delta: chunks in any order, the index beside them, the header at the end.
//!
//! Chunks are appended as they come. At the end they are put in the order of the index, so that the files are the same whoever was first, and
//! whatever an earlier run had left.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use aludel_checkpoint::WrittenTensor;
use crc32c::crc32c_append;

use crate::chunk::Coded;
use crate::error::Error;
use crate::header::{DATA_FILE, DeltaTensor, HEADER_FILE, Header, INDEX_FILE, Values};
use crate::record::{RECORD, Record};

/// Writes chunks. One thread owns it.
#[derive(Debug)]
pub struct DeltaWriter {
    folder: PathBuf,
    data: BufWriter<File>,
    index: File,
    tensors: Vec<DeltaTensor>,
    /// The first chunk of each tensor, and their number.
    starts: Vec<u64>,
    /// The CRC-32C of each chunk that is written: of its record without the offset, and of its bytes.
    written: Vec<Option<u32>>,
    /// Chunks of each tensor that are not written.
    missing: Vec<u64>,
    /// Bytes of the data file.
    end: u64,
}

impl DeltaWriter {
    /// Begins a delta in a folder; tensors with no elements have no chunks. Files that are there give way.
    ///
    /// Errors: [`Error::Io`].
    pub fn create(folder: &Path, tensors: Vec<DeltaTensor>) -> Result<Self, Error> {
        Ok(Self::resume(folder, tensors, &[])?.0)
    }

    /// As [`DeltaWriter::create`], going on with what an earlier writer of the same tensors has left; those that it is said to have written and
    /// whose bytes are there. What else is there is passed over.
    ///
    /// Errors: [`Error::Io`].
    pub fn resume(
        folder: &Path,
        tensors: Vec<DeltaTensor>,
        written: &[WrittenTensor],
    ) -> Result<(Self, Vec<WrittenTensor>), Error> {
        let open = |name: &str| {
            let path = folder.join(name);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(written.is_empty());
            options.open(&path).map_err(Error::io("open", &path))
        };
        let mut starts = vec![0];
        for tensor in &tensors {
            starts.push(starts[starts.len() - 1] + tensor.chunks().unwrap_or(0));
        }
        let chunks = starts[tensors.len()];
        let (index, data) = (open(INDEX_FILE)?, open(DATA_FILE)?);
        index.set_len(chunks * RECORD).map_err(Error::io("write", &folder.join(INDEX_FILE)))?;
        let end = data.metadata().map_err(Error::io("look at", &folder.join(DATA_FILE)))?.len();
        let mut writer = Self {
            folder: folder.to_path_buf(),
            data: BufWriter::with_capacity(1 << 20, data),
            index,
            missing: starts.windows(2).map(|ends| ends[1] - ends[0]).collect(),
            tensors,
            starts,
            written: vec![None; chunks as usize],
            end,
        };
        let found = written.iter().copied().filter(|written| writer.take_over(written)).collect();
        std::io::Seek::seek(&mut writer.data, std::io::SeekFrom::Start(end))
            .map_err(Error::io("write", &folder.join(DATA_FILE)))?;
        Ok((writer, found))
    }

    /// Writes the chunk of this number of a tensor. The tensor's CRC-32C where that was its last one: all of it is then handed to the system.
    ///
    /// Errors: [`Error::Io`]; a chunk that there is none of, or that is written already, is [`Error::Damaged`].
    pub fn add(&mut self, tensor: usize, chunk: u64, coded: &Coded) -> Result<Option<u32>, Error> {
        let at = self.starts[tensor] + chunk;
        if at >= self.starts[tensor + 1] || self.written[at as usize].is_some() {
            return Err(
                self.not_as_planned(format!("chunk {chunk} of tensor {tensor} is written twice or is none"))
            );
        }
        let record = Record::new(self.end, coded);
        write_at(&self.index, &record.bytes(), at * RECORD)
            .map_err(Error::io("write", &self.folder.join(INDEX_FILE)))?;
        let data = self.folder.join(DATA_FILE);
        self.data.write_all(&coded.bytes).map_err(Error::io("write", &data))?;
        self.end += coded.bytes.len() as u64;
        self.written[at as usize] = Some(record.crc_with(&coded.bytes));
        self.missing[tensor] -= 1;
        if self.missing[tensor] > 0 {
            return Ok(None);
        }
        self.data.flush().map_err(Error::io("write", &data))?;
        Ok(self.crc(tensor))
    }

    /// Puts the chunks in order and writes the header: the delta is complete. `values` is what the chunks may be, `base_crcs` are those of each tensor's base.
    ///
    /// Errors: [`Error::Io`]; [`Error::Damaged`] where a chunk is missing.
    pub fn finish(mut self, base: &str, values: Values, base_crcs: &[Option<u32>]) -> Result<Header, Error> {
        if let Some(missing) = self.written.iter().position(Option::is_none) {
            return Err(self.not_as_planned(format!("chunk {missing} was never written")));
        }
        self.data.flush().map_err(Error::io("write", &self.folder.join(DATA_FILE)))?;
        let data_bytes = self.put_in_order()?;
        let tensors = std::mem::take(&mut self.tensors).into_iter().zip(base_crcs);
        let header = Header {
            format: values.format(),
            tool: format!("aludel {}", env!("CARGO_PKG_VERSION")),
            base: base.to_owned(),
            tensors: tensors.map(|(tensor, &crc)| DeltaTensor { base_crc32c: crc, ..tensor }).collect(),
            data_bytes,
            index_crc32c: crc_of(&self.folder.join(INDEX_FILE))?,
        };
        let path = self.folder.join(HEADER_FILE);
        let text =
            serde_json::to_string_pretty(&header).map_err(|error| Error::io("write", &path)(error.into()))?;
        let mut file = File::create_new(&path).map_err(Error::io("create", &path))?;
        file.write_all(text.as_bytes()).map_err(Error::io("write", &path))?;
        Ok(header)
    }

    /// Copies the chunks into files in which they follow one another, unless they do; the bytes of the data.
    fn put_in_order(&self) -> Result<u64, Error> {
        let (index, data) = (self.folder.join(INDEX_FILE), self.folder.join(DATA_FILE));
        let mut end = 0;
        let mut is_in_order = true;
        for record in self.records(&index)? {
            let record = record?;
            is_in_order &= record.offset == end;
            end += record.length();
        }
        if is_in_order && end == self.end {
            return Ok(end);
        }
        let ordered = |path: &Path| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".ordered");
            path.with_file_name(name)
        };
        let create = |path: &Path| {
            File::create(ordered(path)).map(BufWriter::new).map_err(Error::io("create", &ordered(path)))
        };
        let (mut to_index, mut to_data) = (create(&index)?, create(&data)?);
        let (mut at, mut piece) = (0, Vec::new());
        for record in self.records(&index)? {
            let record = record?;
            piece.resize(record.length() as usize, 0);
            read_at(self.data.get_ref(), &mut piece, record.offset).map_err(Error::io("read", &data))?;
            to_data.write_all(&piece).map_err(Error::io("write", &ordered(&data)))?;
            to_index.write_all(&record.moved_to(at).bytes()).map_err(Error::io("write", &ordered(&index)))?;
            at += record.length();
        }
        for (file, path) in [(to_index, &index), (to_data, &data)] {
            file.into_inner().map_err(|error| Error::io("write", &ordered(path))(error.into_error()))?;
            fs::rename(ordered(path), path).map_err(Error::io("rename", &ordered(path)))?;
        }
        Ok(end)
    }

    /// The records of the index, in order.
    fn records(&self, index: &Path) -> Result<impl Iterator<Item = Result<Record, Error>>, Error> {
        let mut reader = BufReader::new(File::open(index).map_err(Error::io("open", index))?);
        let index = index.to_path_buf();
        Ok((0..self.written.len()).map(move |_| {
            let mut bytes = [0; RECORD as usize];
            reader.read_exact(&mut bytes).map_err(Error::io("read", &index))?;
            Ok(Record::of(bytes))
        }))
    }

    /// Takes note of the chunks of a tensor that an earlier writer has written, if its bytes are those that it wrote.
    fn take_over(&mut self, written: &WrittenTensor) -> bool {
        let tensor = written.tensor;
        if self.missing.get(tensor).is_none_or(|&missing| missing == 0) {
            return false;
        }
        let chunks = self.starts[tensor]..self.starts[tensor + 1];
        for chunk in chunks.clone() {
            self.written[chunk as usize] = self.crc_there(chunk);
        }
        let is_there = self.crc(tensor) == Some(written.crc);
        if is_there {
            self.missing[tensor] = 0;
        } else {
            chunks.for_each(|chunk| self.written[chunk as usize] = None);
        }
        is_there
    }

    /// The CRC-32C of a chunk as it is in the files.
    fn crc_there(&self, chunk: u64) -> Option<u32> {
        let mut record = [0; RECORD as usize];
        read_at(&self.index, &mut record, chunk * RECORD).ok()?;
        let record = Record::of(record);
        // A length that the file does not have is never allocated.
        record.offset.checked_add(record.length()).filter(|&end| end <= self.end)?;
        let mut bytes = vec![0; record.length() as usize];
        read_at(self.data.get_ref(), &mut bytes, record.offset).ok()?;
        Some(record.crc_with(&bytes))
    }

    /// The CRC-32C of those of a tensor's chunks; `None` where one is missing.
    fn crc(&self, tensor: usize) -> Option<u32> {
        let chunks = &self.written[self.starts[tensor] as usize..self.starts[tensor + 1] as usize];
        chunks.iter().try_fold(0, |crc, chunk| Some(crc32c_append(crc, &(*chunk)?.to_le_bytes())))
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

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::CHUNK;
    use crate::chunk::encode;

    const ELEMENTS: u64 = 2 * CHUNK + 5;

    fn tensors() -> Vec<DeltaTensor> {
        let tensor = |name: &str| DeltaTensor {
            name: name.into(),
            dtype: Dtype::U8,
            shape: vec![ELEMENTS as usize],
            base_crc32c: None,
        };
        ["a", "b", "c"].map(tensor).to_vec()
    }

    fn coded(tensor: usize, chunk: u64) -> Coded {
        let count = CHUNK.min(ELEMENTS - chunk * CHUNK);
        encode(&(0..count).map(|at| (at * (tensor as u64 + 3) + chunk) as u8).collect::<Vec<_>>(), None)
    }

    /// Writes these tensors' chunks; what a journal has of them.
    fn write(writer: &mut DeltaWriter, tensors: &[usize], chunks: &[u64]) -> Vec<WrittenTensor> {
        let mut journal = Vec::new();
        for &tensor in tensors {
            for &chunk in chunks {
                let crc = writer.add(tensor, chunk, &coded(tensor, chunk)).unwrap();
                journal.extend(crc.map(|crc| WrittenTensor { tensor, crc, base: None }));
            }
        }
        journal
    }

    fn files(folder: &Path) -> Vec<Vec<u8>> {
        let mut names: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        names.iter().map(|name| fs::read(name).unwrap()).collect()
    }

    #[test]
    fn files_are_the_same_in_any_order_and_after_a_resumption() {
        let (in_order, other, resumed) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut writer = DeltaWriter::create(in_order.path(), tensors()).unwrap();
        assert_eq!(write(&mut writer, &[0, 1, 2], &[0, 1, 2]).len(), 3);
        writer.finish("base", Values::Exact, &[None; 3]).unwrap();
        let expected = files(in_order.path());

        let mut writer = DeltaWriter::create(other.path(), tensors()).unwrap();
        write(&mut writer, &[2, 0, 1], &[1, 2, 0]);
        writer.finish("base", Values::Exact, &[None; 3]).unwrap();
        assert!(files(other.path()) == expected);

        let mut writer = DeltaWriter::create(resumed.path(), tensors()).unwrap();
        let mut journal = write(&mut writer, &[1, 0], &[2, 0, 1]);
        assert!(write(&mut writer, &[2], &[1]).is_empty(), "one of its chunks is no tensor");
        drop(writer);
        journal.push(WrittenTensor { tensor: 2, crc: 7, base: None });
        let (mut writer, found) = DeltaWriter::resume(resumed.path(), tensors(), &journal).unwrap();
        assert_eq!(found, journal[..2]);
        write(&mut writer, &[2], &[0, 1, 2]);
        writer.finish("base", Values::Exact, &[None; 3]).unwrap();
        assert!(files(resumed.path()) == expected);
    }

    #[test]
    fn what_is_damaged_is_not_gone_on_with() {
        for (file, at) in [(DATA_FILE, 10), (INDEX_FILE, 3), (INDEX_FILE, 9), (INDEX_FILE, 14)] {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = DeltaWriter::create(folder.path(), tensors()).unwrap();
            let journal = write(&mut writer, &[0, 1], &[0, 1, 2]);
            drop(writer);
            let path = folder.path().join(file);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] ^= 0x40;
            fs::write(&path, bytes).unwrap();
            let (_, found) = DeltaWriter::resume(folder.path(), tensors(), &journal).unwrap();
            assert_eq!(found, journal[1..], "{file}, byte {at}");
        }
    }
}
