//! Reads the header of one safetensors file and holds it against the file's length.
//!
//! In: a path. Out: where each tensor lies, in offset order. The tensors' bytes are never read, so opening a file takes
//! the same time whatever its size. Offsets, shapes and overlaps are checked by the safetensors crate.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::Error;
use crate::regular::open;

/// A header that has been held against its file.
#[derive(Debug)]
pub(crate) struct Header {
    /// Length of the whole file.
    pub(crate) file_bytes: u64,
    /// In offset order, tensors without bytes at the same offset by name.
    pub(crate) tensors: Vec<HeaderTensor>,
    /// What the file says of itself.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// One tensor's line in a header.
#[derive(Debug)]
pub(crate) struct HeaderTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// From the start of the file.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Header {
    /// Reads the header of the safetensors file at `path`.
    ///
    /// Errors: [`Error::Io`], or [`Error::Damaged`] when the header is malformed or does not fit the file's length.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let file = open(path)?;
        let file_bytes = file.metadata().map_err(Error::io("read", path))?.len();
        let json = read_json(file, file_bytes, path)?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|error| Error::damaged(path, format!("its safetensors header is invalid: {error}")))?;
        let data_start = PREFIX_BYTES + json.len() as u64;
        let expected = data_start.checked_add(metadata.data_len() as u64);
        hold_against_length(expected.unwrap_or(u64::MAX), file_bytes, path)?;
        let said = metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        let tensors = tensors_by_offset(&metadata, data_start);
        Ok(Self { file_bytes, tensors, metadata: said.collect() })
    }
}

fn read_json(mut file: File, file_bytes: u64, path: &Path) -> Result<Vec<u8>, Error> {
    let mut prefix = [0; PREFIX_BYTES as usize];
    if file_bytes < PREFIX_BYTES {
        return Err(Error::damaged(path, format!("it has {file_bytes} bytes, too few for a header length")));
    }
    file.read_exact(&mut prefix).map_err(Error::io("read", path))?;
    let length = checked_length(u64::from_le_bytes(prefix), file_bytes, path)?;
    let mut json = vec![0; length];
    file.read_exact(&mut json).map_err(Error::io("read", path))?;
    if json.first() != Some(&b'{') {
        return Err(Error::damaged(path, "its safetensors header does not begin with '{'"));
    }
    Ok(json)
}

/// Caps the header's length before anything of that length is allocated.
fn checked_length(length: u64, file_bytes: u64, path: &Path) -> Result<usize, Error> {
    let available = file_bytes - PREFIX_BYTES;
    if length > available {
        let detail = format!("its header claims {length} bytes where {available} follow");
        return Err(Error::damaged(path, detail));
    }
    if length > MAX_HEADER_BYTES {
        let detail = format!("its header claims {length} bytes where the format allows {MAX_HEADER_BYTES}");
        return Err(Error::damaged(path, detail));
    }
    usize::try_from(length).map_err(|_| Error::damaged(path, "its header is too large for this machine"))
}

/// Trailing bytes are refused like missing ones: no reader of the format accepts them.
fn hold_against_length(expected: u64, actual: u64, path: &Path) -> Result<(), Error> {
    let fault = match actual.cmp(&expected) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => "it is cut off; download or copy it again",
        std::cmp::Ordering::Greater => "bytes follow the last tensor",
    };
    Err(Error::damaged(path, format!("it has {actual} bytes where its header describes {expected}: {fault}")))
}

/// The crate's own order leaves tensors without bytes at one offset in the random order of a hash map.
fn tensors_by_offset(metadata: &Metadata, data_start: u64) -> Vec<HeaderTensor> {
    let mut tensors: Vec<HeaderTensor> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| HeaderTensor {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            offset: data_start + info.data_offsets.0 as u64,
            bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
        })
        .collect();
    tensors.sort_by(|left, right| {
        (left.offset, left.bytes, &left.name).cmp(&(right.offset, right.bytes, &right.name))
    });
    tensors
}

/// Length of the header's length, a little-endian u64 at the start of the file.
pub(crate) const PREFIX_BYTES: u64 = 8;

/// The format's own cap.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
