//! Holds what records are made of: their names, and rows in the form that encoders take and decoders give.

use serde::{Deserialize, Serialize};

use super::dense::Stored;

/// Which of the rows of the data a record is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Set {
    /// Those that are trained on.
    #[default]
    Train,
    /// Those that are kept for validation.
    Validation,
}

/// The name of a record: a piece of one row of the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    /// The set of rows.
    pub set: Set,
    /// The row's number in it, from 0.
    pub row: u64,
    /// Tokens of the row's document before the piece.
    pub start: u32,
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = match self.set {
            Set::Train => "training",
            Set::Validation => "validation",
        };
        write!(f, "{set} row {} from token {}", self.row, self.start)
    }
}

/// A checksum over a piece's tokens and labels: a record is of these and no others.
pub fn content_check(ids: &[u32], labels: &[u32]) -> u32 {
    let words = |crc, words: &[u32]| {
        words.iter().fold(crc, |crc, word| crc32c::crc32c_append(crc, &word.to_le_bytes()))
    };
    words(words(0, ids), labels)
}

/// The rows of a record: one for each label that is learned, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Rows<'a> {
    /// Of [`Contents::TopK`](crate::Contents::TopK) and [`Contents::Sampled`](crate::Contents::Sampled).
    Sparse(SparseRows),
    /// Of [`Contents::Int8`](crate::Contents::Int8) and [`Contents::Int4`](crate::Contents::Int4).
    Logits(LogitRows<'a>),
    /// Of [`Contents::Hidden`](crate::Contents::Hidden).
    Hidden(HiddenRows),
}

/// Rows of which some columns are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseRows {
    /// Where each row's columns end in `ids`.
    pub ends: Vec<usize>,
    /// Columns in ascending order, those of one row after those of another.
    pub ids: Vec<u32>,
    /// Their log-probabilities: at temperature 1, or of draws the logarithm of their share.
    pub log_p: Vec<f32>,
    /// For each row, and each temperature of the header, the probability of all other columns. None of draws.
    pub tails: Vec<f32>,
    /// For each row, the log-sum-exp of the logits at temperature 1, where it is stored.
    pub log_sums: Vec<f32>,
    /// For each row of draws, the entropy of the distribution that was drawn from, in nats.
    pub entropies: Vec<f32>,
}

impl SparseRows {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Puts rows after these.
    pub fn append(&mut self, rows: &Self) {
        let before = self.ids.len();
        self.ends.extend(rows.ends.iter().map(|end| before + end));
        self.ids.extend_from_slice(&rows.ids);
        self.log_p.extend_from_slice(&rows.log_p);
        self.tails.extend_from_slice(&rows.tails);
        self.log_sums.extend_from_slice(&rows.log_sums);
        self.entropies.extend_from_slice(&rows.entropies);
    }

    /// Where a row's columns are.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn range(&self, row: usize) -> std::ops::Range<usize> {
        row.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[row]
    }
}

/// Quantised logits, as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct LogitRows<'a> {
    pub(crate) stored: Stored<'a>,
    pub(crate) columns: usize,
    pub(crate) bits: u32,
}

/// Hidden states.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiddenRows {
    /// Elements of a row.
    pub width: usize,
    /// `[rows, width]`.
    pub values: Vec<f32>,
}
