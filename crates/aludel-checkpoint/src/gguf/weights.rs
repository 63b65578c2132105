//! Reads a tensor of a GGUF file in tiles, decodes it, undoes the converter's change and rounds it to the output's type.
//!
//! In: an open file, a tensor's place, a change and a type. Out: the output's bytes, in order, piece by piece. No more
//! than a few tiles are in memory, however large the tensor. Values are rounded once, to nearest, ties to even.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

use super::block::BLOCK_ALIGNMENT;
use super::header::{TensorInfo, open};
use super::names::Change;
use crate::error::Error;

/// Decodes tensors of one file.
#[derive(Debug)]
pub(super) struct WeightReader {
    file: File,
    path: PathBuf,
    /// Where the file is read next, so that reading in order needs no seek.
    position: u64,
    raw: Vec<u8>,
    values: Vec<f32>,
    encoded: Vec<u8>,
}

/// Elements of the tensor, in the file's order, that follow each other in the output too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    elements: u64,
}

impl WeightReader {
    /// Errors: as those of opening a file.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            file: open(path)?,
            path: path.to_path_buf(),
            position: 0,
            raw: Vec::new(),
            values: Vec::new(),
            encoded: Vec::new(),
        })
    }

    /// Hands the tensor's output bytes to `sink`, in order.
    ///
    /// Errors: [`Error::Io`]; [`Error::Unsupported`] when a value is too large for `dtype`; whatever `sink` returns.
    pub(super) fn encode(
        &mut self,
        tensor: &TensorInfo,
        change: Change,
        dtype: Dtype,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for run in runs(tensor, change) {
            let mut done = 0;
            while done < run.elements {
                let first = run.first + done;
                let room = TILE_ELEMENTS - self.values.len() as u64;
                let elements = room.min(run.elements - done);
                self.read(tensor, first, elements)?;
                done += elements;
                if self.values.len() as u64 >= TILE_ELEMENTS {
                    self.flush(tensor, change, dtype, sink)?;
                }
            }
        }
        self.flush(tensor, change, dtype, sink)
    }

    /// The values of a small tensor, unchanged.
    ///
    /// Errors: [`Error::Io`].
    pub(super) fn values(&mut self, tensor: &TensorInfo) -> Result<Vec<f32>, Error> {
        self.read(tensor, 0, tensor.elements())?;
        Ok(std::mem::take(&mut self.values))
    }

    /// Appends `elements` elements from `first` on, which is a block's beginning, to the values.
    fn read(&mut self, tensor: &TensorInfo, first: u64, elements: u64) -> Result<(), Error> {
        let blocks = |elements: u64| elements / tensor.block.elements() * tensor.block.bytes();
        let start = tensor.offset + blocks(first);
        let length = blocks(elements) as usize;
        if self.position != start {
            self.file.seek(SeekFrom::Start(start)).map_err(Error::io("read", &self.path))?;
        }
        self.raw.resize(length + BLOCK_ALIGNMENT, 0);
        // A vector of bytes may begin anywhere.
        let skip = self.raw.as_ptr().align_offset(BLOCK_ALIGNMENT).min(BLOCK_ALIGNMENT);
        let raw = &mut self.raw[skip..skip + length];
        self.file.read_exact(raw).map_err(Error::io("read", &self.path))?;
        self.position = start + length as u64;
        let decoded = tensor.block.decode(raw, &mut self.values);
        decoded.map_err(|detail| Error::damaged(&self.path, format!("tensor {:?}: {detail}", tensor.name)))
    }

    fn flush(
        &mut self,
        tensor: &TensorInfo,
        change: Change,
        dtype: Dtype,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if change == Change::SubtractOne {
            self.values.iter_mut().for_each(|value| *value -= 1.0);
        }
        self.encoded.clear();
        encode(&self.values, dtype, &mut self.encoded).map_err(|fault| {
            let detail = format!("tensor {:?}: {fault}", tensor.name);
            Error::unsupported(&self.path, detail)
        })?;
        self.values.clear();
        sink(&self.encoded)
    }
}

/// The output's elements in order, as runs of the file's.
fn runs(tensor: &TensorInfo, change: Change) -> Box<dyn Iterator<Item = Run>> {
    let elements = tensor.elements();
    let Change::UnpairRotary { rows } = change else {
        return Box::new(std::iter::once(Run { first: 0, elements }));
    };
    let all_rows = tensor.shape[0] as u64;
    let row_elements = elements / all_rows;
    Box::new((0..all_rows).map(move |row| {
        let paired = Change::paired_row(row, rows);
        Run { first: paired * row_elements, elements: row_elements }
    }))
}

/// Appends the values as bytes of `dtype`; says what is wrong when a finite value becomes infinite.
fn encode(values: &[f32], dtype: Dtype, bytes: &mut Vec<u8>) -> Result<(), String> {
    match dtype {
        Dtype::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Dtype::BF16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            check_range(values, &rounded, dtype, |value: &bf16| value.is_finite())?;
            bytes.extend(rounded.iter().flat_map(|value| value.to_le_bytes()));
        }
        Dtype::F16 => {
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            check_range(values, &rounded, dtype, |value: &f16| value.is_finite())?;
            bytes.extend(rounded.iter().flat_map(|value| value.to_le_bytes()));
        }
        _ => return Err(format!("{dtype:?} is not written; choose F32, BF16 or F16")),
    }
    Ok(())
}

fn check_range<T>(
    values: &[f32],
    rounded: &[T],
    dtype: Dtype,
    finite: impl Fn(&T) -> bool,
) -> Result<(), String> {
    match values.iter().zip(rounded).find(|(value, rounded)| value.is_finite() && !finite(rounded)) {
        Some((value, _)) => Err(format!("its value {value} is too large for {dtype:?}; choose F32 or BF16")),
        None => Ok(()),
    }
}

/// A multiple of every block's elements. Some tiles of f32 and their bytes stay in a core's cache.
const TILE_ELEMENTS: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::super::block::BlockType;
    use super::*;

    fn tensor(shape: &[usize]) -> TensorInfo {
        let elements: usize = shape.iter().product();
        let bytes = 4 * elements as u64;
        TensorInfo { name: "t".into(), block: BlockType::F32, shape: shape.to_vec(), offset: 0, bytes }
    }

    #[test]
    fn pairs_of_rows_go_back_to_halves() {
        // Two heads of four rows of three elements. The converter put rows 0 and 2 of a head first, then 1 and 3.
        let firsts: Vec<u64> =
            runs(&tensor(&[8, 3]), Change::UnpairRotary { rows: 4 }).map(|run| run.first / 3).collect();
        assert_eq!(firsts, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn a_bias_is_reordered_by_element() {
        let runs: Vec<Run> = runs(&tensor(&[6]), Change::UnpairRotary { rows: 6 }).collect();
        let firsts: Vec<u64> = runs.iter().map(|run| run.first).collect();
        assert_eq!(firsts, [0, 2, 4, 1, 3, 5]);
        assert!(runs.iter().all(|run| run.elements == 1));
    }

    #[test]
    fn values_are_rounded_once_to_nearest_even() {
        let mut bytes = Vec::new();
        // 1 + 2^-8 lies half-way between two bf16; 1 + 3 * 2^-8 too, and goes up to the even one.
        let step = 1.0 / 256.0;
        encode(&[1.0 + step, 1.0 + 3.0 * step, -0.0, f32::NAN], Dtype::BF16, &mut bytes).unwrap();
        assert_eq!(bytes[..6], [0x80, 0x3f, 0x82, 0x3f, 0x00, 0x80]);
        assert!(bf16::from_le_bytes([bytes[6], bytes[7]]).is_nan());
    }

    #[test]
    fn a_value_that_would_become_infinite_is_an_error() {
        assert!(encode(&[65504.0, f32::INFINITY], Dtype::F16, &mut Vec::new()).is_ok());
        let message = encode(&[65520.0], Dtype::F16, &mut Vec::new()).unwrap_err();
        assert_eq!(message, "its value 65520 is too large for F16; choose F32 or BF16");
        assert!(encode(&[f32::MAX], Dtype::BF16, &mut Vec::new()).is_err());
    }
}
