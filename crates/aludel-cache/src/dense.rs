//! Codes rows of all columns in few bits, and hidden states.
//!
//! In: logits or hidden states. Out: rows of equal length, read where they lie. A row of logits is `top`, `step` and `floor` in f32,
//! then one whole number `q` a column: with `Q` the greatest, `q > 0` is the logit `top - (Q - q) step`, and 0 is `floor`, which
//! gives all columns below the range their mean probability. A row of hidden states is a factor in f32 and its elements in f16.

use half::f16;

use super::error::Error;
use super::rows::{HiddenRows, LogitRows};

/// Bytes before the columns of a row of logits.
const SCALES: usize = 12;

/// Bytes of a row of logits.
pub(crate) fn logit_row_bytes(columns: usize, bits: u32) -> usize {
    SCALES + (columns * bits as usize).div_ceil(8)
}

/// Bytes of a row of hidden states.
pub(crate) fn hidden_row_bytes(width: usize) -> usize {
    4 + 2 * width
}

/// Rows of quantised logits that were just made, each where it was.
#[derive(Clone, Debug)]
pub struct LogitBuffer {
    rows: Vec<LogitRow>,
    columns: usize,
    bits: u32,
}

/// A row by itself.
#[derive(Clone, Debug)]
pub(crate) struct LogitRow {
    scales: [u8; SCALES],
    levels: Vec<u8>,
}

impl LogitBuffer {
    /// None yet, of `columns` in 8 bits, or in 4.
    pub fn new(columns: usize, in_eight: bool) -> Self {
        Self { rows: Vec::new(), columns, bits: if in_eight { 8 } else { 4 } }
    }

    /// Adds a row as [`LogitRows::stored`] gives it: `top`, `step` and `floor`, and the levels of all columns.
    ///
    /// # Errors
    /// [`Error::Unstorable`] for levels of another number of columns, and for scales that no logits have.
    pub fn push(&mut self, scales: [f32; 3], levels: Vec<u8>) -> Result<(), Error> {
        let length = logit_row_bytes(self.columns, self.bits) - SCALES;
        if levels.len() != length {
            return Err(Error::unstorable(format!(
                "{} bytes of levels, and a row has {length}",
                levels.len()
            )));
        }
        let [top, step, floor] = scales;
        if !top.is_finite() || !step.is_finite() || floor.is_nan() || floor == f32::INFINITY {
            return Err(Error::unstorable("NaN or infinite scales of logits"));
        }
        let mut bytes = [0; SCALES];
        bytes.chunks_exact_mut(4).zip(scales).for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
        self.rows.push(LogitRow { scales: bytes, levels });
        Ok(())
    }

    /// The rows so far.
    pub fn rows(&self) -> LogitRows<'_> {
        LogitRows { stored: Stored::Apart(&self.rows), columns: self.columns, bits: self.bits }
    }
}

/// Where rows lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored<'a> {
    /// One after another, as in a file.
    Joined(&'a [u8]),
    /// As they were made. They are never joined: so much memory takes longer to come than a file to write.
    Apart(&'a [LogitRow]),
}

impl<'a> LogitRows<'a> {
    /// A row as it is stored: `top`, `step` and `floor`, and the levels of all columns, of 8 bits, or of 4 with the first in the low half.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn stored(&self, row: usize) -> ([f32; 3], &'a [u8]) {
        let (scales, levels): (&[u8], &[u8]) = match self.stored {
            Stored::Joined(bytes) => {
                let width = logit_row_bytes(self.columns, self.bits);
                bytes[row * width..(row + 1) * width].split_at(SCALES)
            }
            Stored::Apart(rows) => (&rows[row].scales, &rows[row].levels),
        };
        ([0, 4, 8].map(|at| f32_at(scales, at)), levels)
    }

    /// The bytes of all rows, in pieces.
    pub(crate) fn pieces(&self) -> Vec<&'a [u8]> {
        match self.stored {
            Stored::Joined(bytes) => vec![bytes],
            Stored::Apart(rows) => rows.iter().flat_map(|row| [&row.scales[..], &row.levels]).collect(),
        }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        match self.stored {
            Stored::Joined(bytes) => bytes.len() / logit_row_bytes(self.columns, self.bits),
            Stored::Apart(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Columns of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Writes the logits of a row.
    ///
    /// # Panics
    /// Where there is no such row, or `to` has another length than a row.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        assert_eq!(to.len(), self.columns, "a row of logits");
        let ([top, step, floor], levels) = self.stored(row);
        let most = (1i32 << self.bits) - 1;
        let logit = |q: u8| if q == 0 { floor } else { top - (most - i32::from(q)) as f32 * step };
        let table: [f32; 256] = std::array::from_fn(|q| logit(q as u8));
        if self.bits == 8 {
            to.iter_mut().zip(levels).for_each(|(to, &q)| *to = table[usize::from(q)]);
        } else {
            for (at, to) in to.iter_mut().enumerate() {
                *to = table[usize::from(levels[at / 2] >> (4 * (at % 2)) & 15)];
            }
        }
    }
}

/// Rows are the same wherever they lie.
impl PartialEq for LogitRows<'_> {
    fn eq(&self, other: &Self) -> bool {
        let shape = |rows: &Self| (rows.columns, rows.bits, rows.len());
        let bytes = |rows: &Self| rows.pieces().concat();
        shape(self) == shape(other) && bytes(self) == bytes(other)
    }
}

/// Appends a row of hidden states.
pub(crate) fn push_hidden(values: &[f32], to: &mut Vec<u8>) -> Result<(), Error> {
    let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if !most.is_finite() || values.iter().any(|x| x.is_nan()) {
        return Err(Error::unstorable("the teacher has NaN or infinite hidden states"));
    }
    let factor = if most > 0.0 { most } else { 1.0 };
    to.extend(factor.to_le_bytes());
    values.iter().for_each(|&x| to.extend(f16::from_f32(x / factor).to_le_bytes()));
    Ok(())
}

/// Reads rows of hidden states from bytes of a whole number of them.
pub(crate) fn hidden_rows(bytes: &[u8], width: usize) -> HiddenRows {
    let mut values = Vec::with_capacity(bytes.len() / 2);
    for row in bytes.chunks_exact(hidden_row_bytes(width)) {
        let factor = f32_at(row, 0);
        let halves = row[4..].chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]));
        values.extend(halves.map(|x| x.to_f32() * factor));
    }
    HiddenRows { width, values }
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(columns: usize) -> Vec<f32> {
        (0..columns).map(|at| 3.0 * (0.7 + 1.3 * at as f32).sin() - at as f32 / 40.0).collect()
    }

    #[test]
    fn hidden_states_keep_eleven_bits() {
        let (values, mut bytes) = (logits(30), Vec::new());
        push_hidden(&values, &mut bytes).unwrap();
        push_hidden(&[0.0; 30], &mut bytes).unwrap();
        let rows = hidden_rows(&bytes, 30);
        assert_eq!(rows.values.len(), 60);
        assert!(values.iter().zip(&rows.values).all(|(x, y)| (x - y).abs() <= x.abs() / 2000.0 + 1e-6));
        assert_eq!(rows.values[30..], [0.0; 30]);
    }
}
