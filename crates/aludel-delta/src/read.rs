//! Reads a delta: opened by its header, chunks from mapped files in any order.

use std::path::{Path, PathBuf};

use aludel_checkpoint::{MappedFile, read_text};
use aludel_kernels::element::Element;
use crc32c::crc32c;

use crate::CHUNK;
use crate::chunk::{Form, decode};
use crate::error::Error;
use crate::header::{DATA_FILE, DeltaTensor, HEADER_FILE, Header, INDEX_FILE, LATEST};
use crate::record::{RECORD, Record};

/// A delta that is open.
#[derive(Debug)]
pub struct Delta {
    folder: PathBuf,
    header: Header,
    starts: Vec<u64>,
    index: MappedFile,
    data: MappedFile,
}

impl Delta {
    /// Opens the delta of a folder.
    ///
    /// Errors: [`Error::NotADelta`], [`Error::Damaged`], [`Error::Io`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(HEADER_FILE);
        if !path.is_file() {
            let detail = format!("it has no {HEADER_FILE}; `aludel merge --output sparse-delta` makes one");
            return Err(Error::NotADelta { path: folder.to_path_buf(), detail });
        }
        let damaged = |detail: String| Error::Damaged { file: path.clone(), detail };
        let text = read_text(&path, MOST_HEADER)?;
        let header: Header = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if !(1..=LATEST).contains(&header.format) {
            let detail = format!("its format is {}, and this version reads up to {LATEST}", header.format);
            return Err(Error::NotADelta { path: folder.to_path_buf(), detail });
        }
        let mut starts = vec![0u64];
        for tensor in &header.tensors {
            let end = tensor.chunks().and_then(|chunks| starts[starts.len() - 1].checked_add(chunks));
            starts.push(end.ok_or_else(|| damaged(format!("`{}` has too many elements", tensor.name)))?);
        }
        let map = |name: &str| MappedFile::open(&folder.join(name));
        let (index, data) = (map(INDEX_FILE)?, map(DATA_FILE)?);
        let (chunks, bytes) = (starts[header.tensors.len()], index.bytes());
        if chunks.checked_mul(RECORD) != Some(bytes.len() as u64) || crc32c(bytes) != header.index_crc32c {
            let detail = format!("it is not the index of {chunks} chunks that the header says");
            return Err(Error::Damaged { file: folder.join(INDEX_FILE), detail });
        }
        if data.bytes().len() as u64 != header.data_bytes {
            let detail = format!("it has {} bytes and not {}", data.bytes().len(), header.data_bytes);
            return Err(Error::Damaged { file: folder.join(DATA_FILE), detail });
        }
        Ok(Self { folder: folder.to_path_buf(), header, starts, index, data })
    }

    /// What it is of.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Turns the bytes of the base's chunk into those of the model's.
    ///
    /// Errors: [`Error::Mismatch`] where that does not give what was stored: with another base, or from a damaged file;
    /// [`Error::Damaged`] where the index points beyond the data.
    ///
    /// # Panics
    /// Where there is no such tensor or chunk.
    pub fn apply(&self, tensor: usize, chunk: u64, bytes: &mut [u8]) -> Result<(), Error> {
        assert!(chunk < self.starts[tensor + 1] - self.starts[tensor], "chunk {chunk} of tensor {tensor}");
        let at = (self.starts[tensor] + chunk) as usize;
        let record = Record::of(self.index.bytes().as_chunks().0[at]);
        let (start, length) = (usize::try_from(record.offset).ok(), record.length() as usize);
        let code = start.and_then(|start| self.data.bytes().get(start..start.checked_add(length)?));
        let Some(code) = code else {
            let detail = format!("chunk {chunk} of tensor {tensor} lies beyond the data");
            return Err(Error::Damaged { file: self.folder.join(INDEX_FILE), detail });
        };
        let known: &DeltaTensor = &self.header.tensors[tensor];
        let form = record.form();
        let is_back = match known.element() {
            None if form != Form::Whole => false,
            element => decode(code, form, record.crc, element.unwrap_or(Element::F32), bytes),
        };
        if is_back { Ok(()) } else { Err(Error::Mismatch { tensor: known.name.clone() }) }
    }

    /// How many chunks all tensors have together.
    pub fn chunks(&self) -> u64 {
        self.starts[self.header.tensors.len()]
    }

    /// The tensor that a chunk belongs to, counted over all tensors, and its number there.
    ///
    /// # Panics
    /// Where there is no such chunk.
    pub fn place(&self, chunk: u64) -> (usize, u64) {
        assert!(chunk < self.chunks(), "chunk {chunk} of {}", self.chunks());
        let tensor = self.starts.partition_point(|&start| start <= chunk) - 1;
        (tensor, chunk - self.starts[tensor])
    }

    /// The elements of a chunk of a tensor.
    pub fn elements(&self, tensor: usize, chunk: u64) -> std::ops::Range<u64> {
        let all = self.header.tensors[tensor].elements().unwrap_or(0);
        chunk * CHUNK..all.min((chunk + 1) * CHUNK)
    }
}

/// Far more than the names of the most tensors take.
const MOST_HEADER: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::chunk::encode;
    use crate::{DeltaWriter, Values};

    fn tensor(name: &str, dtype: Dtype, elements: usize) -> DeltaTensor {
        DeltaTensor { name: name.into(), dtype, shape: vec![elements], base_crc32c: None }
    }

    /// Two tensors, one of two chunks; the bytes of both.
    fn written(folder: &Path) -> [Vec<u8>; 2] {
        let count = CHUNK as usize + 3;
        let model: Vec<u8> = (0..2 * count).map(|at| (at / 7) as u8).collect();
        let tensors = vec![tensor("w", Dtype::BF16, count), tensor("n", Dtype::I64, 2)];
        let mut writer = DeltaWriter::create(folder, tensors).unwrap();
        let base = vec![0; model.len()];
        let split = 2 * CHUNK as usize;
        writer.add(0, 1, &encode(&model[split..], Some((&base[split..], Element::BF16)))).unwrap();
        writer.add(1, 0, &encode(&[9; 16], None)).unwrap();
        assert!(writer.add(1, 0, &encode(&[9; 16], None)).is_err());
        writer.add(0, 0, &encode(&model[..split], Some((&base[..split], Element::BF16)))).unwrap();
        writer.finish("base", Values::Exact, &[Some(1), None]).unwrap();
        [model, vec![9; 16]]
    }

    #[test]
    fn what_is_written_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let [model, whole] = written(folder.path());
        let delta = Delta::open(folder.path()).unwrap();
        assert_eq!((delta.header().base.as_str(), delta.header().tensors[0].base_crc32c), ("base", Some(1)));
        let mut back = Vec::new();
        for chunk in 0..2 {
            let mut bytes = vec![0; 2 * delta.elements(0, chunk).count()];
            delta.apply(0, chunk, &mut bytes).unwrap();
            back.extend(bytes);
        }
        assert_eq!(back, model);
        assert_eq!(
            (0..delta.chunks()).map(|chunk| delta.place(chunk)).collect::<Vec<_>>(),
            [(0, 0), (0, 1), (1, 0)]
        );
        let mut bytes = vec![0; 16];
        delta.apply(1, 0, &mut bytes).unwrap();
        assert_eq!(bytes, whole);
        let mut other = vec![1; 2 * CHUNK as usize];
        assert!(matches!(delta.apply(0, 0, &mut other), Err(Error::Mismatch { .. })));
    }

    #[test]
    fn a_damaged_file_is_told_unless_the_bytes_are_those_stored() {
        let folder = tempfile::tempdir().unwrap();
        let [model, numbers] = written(folder.path());
        for name in [INDEX_FILE, DATA_FILE, HEADER_FILE] {
            let path = folder.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            for at in (0..whole.len()).step_by(whole.len() / 40 + 1) {
                let mut bytes = whole.clone();
                bytes[at] ^= 0x55;
                std::fs::write(&path, bytes).unwrap();
                let Ok(delta) = Delta::open(folder.path()) else { continue };
                if name == HEADER_FILE {
                    continue; // A name or the tool may be any text.
                }
                let read = |tensor: usize, chunk: u64| {
                    let width = if tensor == 0 { 2 } else { 8 };
                    let mut bytes = vec![0; width * delta.elements(tensor, chunk).count()];
                    delta.apply(tensor, chunk, &mut bytes).map(|()| bytes)
                };
                let (first, second, other) = (read(0, 0), read(0, 1), read(1, 0));
                if let (Ok(first), Ok(second), Ok(other)) = (first, second, other) {
                    // A code has bytes that nothing depends on, such as its first.
                    assert!([first, second].concat() == model && other == numbers, "byte {at} of {name}");
                }
            }
            std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            assert!(Delta::open(folder.path()).is_err(), "{name} cut short");
            std::fs::write(&path, whole).unwrap();
        }
        assert!(matches!(Delta::open(&folder.path().join("x")), Err(Error::NotADelta { .. })));
    }

    #[test]
    fn a_delta_that_is_not_all_written_has_no_header() {
        let folder = tempfile::tempdir().unwrap();
        let writer = DeltaWriter::create(folder.path(), vec![tensor("w", Dtype::F32, 5)]).unwrap();
        assert!(writer.finish("base", Values::Exact, &[None]).is_err());
        assert!(!folder.path().join(HEADER_FILE).exists());
    }
}
