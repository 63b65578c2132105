//! Reads views whose elements do not lie one after another in row-major order.
//!
//! The pages of such a tensor stay mapped until all of it has been read: a row of a transposed matrix has an element in each
//! of them.

use std::ops::Range;

use half::{bf16, f16};
use safetensors::Dtype;

use super::raw;
use crate::checkpoint::TensorEntry;
use crate::dtype::element_bytes;
use crate::map::WeightMap;

/// A view of plain numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Strided {
    /// F32, F16 or BF16.
    dtype: Dtype,
    /// Elements from one to the next, along each side.
    strides: Vec<u64>,
    /// The bytes from the first element to the last.
    stored: TensorEntry,
}

impl Strided {
    /// A view whose first element lies at `offset` and whose last ends `reach` bytes later.
    pub(crate) fn new(dtype: Dtype, strides: Vec<u64>, file: usize, offset: u64, reach: u64) -> Self {
        Self { dtype, strides, stored: raw(file, offset, reach) }
    }

    pub(super) fn stored(&self) -> &TensorEntry {
        &self.stored
    }

    pub(super) fn describe(&self) -> String {
        format!("a view of {} that is not in order", self.dtype)
    }

    pub(super) fn fill(&self, map: &WeightMap, shape: &[usize], elements: Range<u64>, to: &mut [f32]) {
        let width = element_bytes(self.dtype);
        let bytes = map.bytes(&self.stored, 0..self.stored.bytes);
        let (columns, stride) = match (shape.last(), self.strides.last()) {
            (Some(&columns), Some(&stride)) => ((columns as u64).max(1), stride),
            _ => (1, 0),
        };
        let mut next = elements.start;
        let mut rest = to;
        while next < elements.end {
            let (row, column) = (next / columns, next % columns);
            let count = (columns - column).min(elements.end - next);
            let (line, later) = rest.split_at_mut(count as usize);
            let first = self.first_of(row, shape) + column * stride;
            for (value, index) in line.iter_mut().zip(0..) {
                *value = number(self.dtype, &bytes[((first + index * stride) * width) as usize..]);
            }
            rest = later;
            next += count;
        }
    }

    /// Elements before a row's first, by the row's number among all rows of the tensor.
    fn first_of(&self, mut row: u64, shape: &[usize]) -> u64 {
        let mut first = 0;
        for (&side, &stride) in shape.iter().zip(&self.strides).rev().skip(1) {
            let side = (side as u64).max(1);
            first += row % side * stride;
            row /= side;
        }
        first
    }

    pub(super) fn release(&self, map: &WeightMap, is_end: bool) {
        if is_end {
            map.release(&self.stored, 0..self.stored.bytes);
        }
    }
}

/// The number at the beginning of some bytes. Other types than these three are not made into views.
fn number(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d, ..]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::F16, &[a, b, ..]) => f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::BF16, &[a, b, ..]) => bf16::from_le_bytes([a, b]).to_f32(),
        _ => f32::NAN,
    }
}
