//! Computes the values of tensors that are not stored as plain numbers in order: views, quantised blocks, scaled FP8.
//!
//! In: a mapped checkpoint and a range of elements. Out: their values in f32, the same bits however a tensor is cut into
//! ranges. No more than a few kilobytes are held beside the range itself. What is stored plainly is not its business.
//!
//! - `strided`: views that are not in row-major order, such as a transposed matrix in a file of torch.
//! - `blocks`: blocks of GGUF.
//! - `scaled`: FP8 with scales for the tensor, its rows or its blocks.

mod blocks;
mod scaled;
mod strided;

use std::ops::Range;

use safetensors::Dtype;

use crate::checkpoint::TensorEntry;
use crate::map::WeightMap;

pub(crate) use blocks::Blocks;
pub use scaled::e4m3_value;
pub(crate) use scaled::{Scale, Scaled};
pub(crate) use strided::Strided;

/// A tensor whose values are computed from what is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Sides, slowest first.
    pub shape: Vec<usize>,
    /// The type that its values are kept in where nothing else is asked for: F32, F16 or BF16.
    pub dtype: Dtype,
    pub(crate) form: Form,
}

/// How it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    Strided(Strided),
    Blocks(Blocks),
    Scaled(Scaled),
}

impl Encoded {
    /// The number of elements; 1 for a scalar.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&side| side as u64).product()
    }

    /// The stored bytes that it is computed from.
    pub fn stored_bytes(&self) -> u64 {
        self.stored().map(|entry| entry.bytes).sum()
    }

    /// The positions in [`crate::Checkpoint::files`] of the files that it is read from.
    pub fn files(&self) -> impl Iterator<Item = usize> {
        self.stored().map(|entry| entry.file)
    }

    /// Stored bytes that stay in memory until all of it has been read.
    pub fn resident_bytes(&self) -> u64 {
        match &self.form {
            Form::Strided(strided) => strided.stored().bytes,
            Form::Blocks(_) => 0,
            Form::Scaled(scaled) => scaled.scale().bytes,
        }
    }

    fn stored(&self) -> impl Iterator<Item = &TensorEntry> {
        let (values, scales) = match &self.form {
            Form::Strided(strided) => (strided.stored(), None),
            Form::Blocks(blocks) => (blocks.stored(), None),
            Form::Scaled(scaled) => (scaled.stored(), Some(scaled.scale())),
        };
        std::iter::once(values).chain(scales)
    }

    /// What it is stored as, for people: "Q4_K", "F8_E4M3 with scales for blocks of 128 x 128".
    pub fn describe(&self) -> String {
        match &self.form {
            Form::Strided(strided) => strided.describe(),
            Form::Blocks(blocks) => blocks.describe(),
            Form::Scaled(scaled) => scaled.describe(),
        }
    }

    /// Computes the elements of the range, counted in row-major order.
    ///
    /// # Panics
    /// When the range leaves the tensor, `to` is of another length, or the map is of another checkpoint.
    pub fn fill(&self, map: &WeightMap, elements: Range<u64>, to: &mut [f32]) {
        let (start, end, all) = (elements.start, elements.end, self.elements());
        assert!(start <= end && end <= all, "elements {elements:?} of {all}");
        assert_eq!(end - start, to.len() as u64, "a buffer of another length than the range");
        match &self.form {
            Form::Strided(strided) => strided.fill(map, &self.shape, elements, to),
            Form::Blocks(blocks) => blocks.fill(map, &self.shape, elements, to),
            Form::Scaled(scaled) => scaled.fill(map, &self.shape, elements, to),
        }
    }

    /// The stored tensor in which the elements lie one after another, and the bytes that they are computed from; `None` where they are in no
    /// such order. Scales are left out: they are few.
    pub fn locate(&self, elements: &Range<u64>) -> Option<(&TensorEntry, Range<u64>)> {
        match &self.form {
            Form::Strided(_) => None,
            Form::Blocks(blocks) => Some((blocks.stored(), blocks.locate(&self.shape, elements))),
            Form::Scaled(scaled) => Some((scaled.stored(), elements.clone())),
        }
    }

    /// Gives back the pages that hold what these elements are computed from, as they have been passed in order; `is_end` where
    /// they are the last.
    pub fn release(&self, map: &WeightMap, elements: Range<u64>, is_end: bool) {
        match &self.form {
            Form::Strided(strided) => strided.release(map, is_end),
            Form::Blocks(blocks) => blocks.release(map, &self.shape, elements, is_end),
            Form::Scaled(scaled) => scaled.release(map, elements, is_end),
        }
    }
}

/// Bytes of a file as an entry of bytes.
fn raw(file: usize, offset: u64, bytes: u64) -> TensorEntry {
    TensorEntry { dtype: Dtype::U8, shape: vec![bytes as usize], file, offset, bytes }
}
