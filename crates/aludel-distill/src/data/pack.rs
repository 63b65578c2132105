//! Puts documents into sequences of a fixed length.
//!
//! In: pieces of documents in order, none longer than a sequence. Out: sequences in order. First fit over a few open
//! sequences: a piece goes into the first that has room; when none has, the fullest is given out and a new one is opened. No
//! piece is cut to fill a sequence, so that every token sees all of its document that comes before it; what stays empty
//! is not computed, since sequences are not padded.

use std::ops::Range;
use std::sync::Arc;

use super::encode::Document;
use super::stream::Origin;
use crate::run::Packing;

/// A part of a document that fits into a sequence.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) origin: Origin,
    /// The number of the row in the data.
    pub(super) row: u64,
    pub(super) document: Arc<Document>,
    pub(super) rows: Range<usize>,
}

/// Pieces that are trained on side by side.
#[derive(Debug, Clone, Default)]
pub(super) struct Sequence {
    pub(super) pieces: Vec<Piece>,
    pub(super) rows: usize,
}

/// Sequences that are not full yet.
#[derive(Debug)]
pub(super) struct Packer {
    length: usize,
    packing: Packing,
    open: Vec<Sequence>,
}

/// Sequences that are open at once: more fill better and mix the order more.
const OPEN: usize = 16;

impl Packer {
    pub(super) fn new(length: usize, packing: Packing) -> Self {
        Self { length, packing, open: Vec::new() }
    }

    /// The sequences that are open, the oldest first.
    pub(super) fn open(&self) -> &[Sequence] {
        &self.open
    }

    /// Opens a sequence with these pieces, as it was before.
    pub(super) fn reopen(&mut self, sequence: Sequence) {
        self.open.push(sequence);
    }

    /// Takes a piece, and gives out a sequence that is complete.
    pub(super) fn add(&mut self, piece: Piece) -> Option<Sequence> {
        let rows = piece.rows.len();
        let alone = |piece| Sequence { pieces: vec![piece], rows };
        if self.packing == Packing::None || rows >= self.length {
            return Some(alone(piece));
        }
        if let Some(at) = self.open.iter().position(|sequence| sequence.rows + rows <= self.length) {
            let sequence = &mut self.open[at];
            sequence.pieces.push(piece);
            sequence.rows += rows;
            return (sequence.rows == self.length).then(|| self.open.remove(at));
        }
        self.open.push(alone(piece));
        if self.open.len() > OPEN { self.fullest().map(|at| self.open.remove(at)) } else { None }
    }

    /// Gives out the oldest sequence that is open.
    pub(super) fn flush(&mut self) -> Option<Sequence> {
        (!self.open.is_empty()).then(|| self.open.remove(0))
    }

    /// The oldest of the fullest.
    fn fullest(&self) -> Option<usize> {
        (0..self.open.len()).rev().max_by_key(|&at| self.open[at].rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(position: u64, rows: usize) -> Piece {
        let document = Document { ids: vec![1; rows], labels: vec![1; rows], ..Document::default() };
        let origin = Origin { epoch: 0, position, start: 0 };
        Piece { origin, row: position, document: Arc::new(document), rows: 0..rows }
    }

    /// The pieces of each sequence, by their positions.
    fn packed(length: usize, packing: Packing, sizes: &[usize]) -> Vec<Vec<u64>> {
        let mut packer = Packer::new(length, packing);
        let pieces = sizes.iter().enumerate().map(|(at, &rows)| piece(at as u64, rows));
        let mut sequences: Vec<Sequence> = pieces.filter_map(|piece| packer.add(piece)).collect();
        sequences.extend(std::iter::from_fn(|| packer.flush()));
        for sequence in &sequences {
            assert_eq!(sequence.rows, sequence.pieces.iter().map(|piece| piece.rows.len()).sum::<usize>());
            assert!(sequence.rows <= length);
        }
        let positions =
            |sequence: &Sequence| sequence.pieces.iter().map(|piece| piece.origin.position).collect();
        sequences.iter().map(positions).collect()
    }

    #[test]
    fn pieces_go_where_they_fit_first() {
        assert_eq!(packed(8, Packing::Fill, &[5, 4, 3, 8, 2, 1]), [vec![0, 2], vec![3], vec![1, 4, 5]]);
        assert_eq!(packed(8, Packing::Fill, &[1]), [[0]]);
        assert_eq!(packed(8, Packing::Fill, &[]), [[0u64; 0]; 0]);
        assert_eq!(packed(8, Packing::None, &[5, 3, 8]), [[0], [1], [2]]);
    }

    #[test]
    fn the_fullest_makes_room() {
        let mut sizes = vec![6; OPEN];
        sizes[3] = 7;
        sizes.push(6);
        let sequences = packed(8, Packing::Fill, &sizes);
        assert_eq!((sequences.len(), &sequences[0]), (OPEN + 1, &vec![3]));
        assert_eq!(sequences[1], [0]);
    }

    #[test]
    fn many_short_documents_fill_sequences_well() {
        // Lengths from 1 to 700 in an order without pattern.
        let sizes: Vec<usize> = (0..2000u64).map(|at| (at * 7919 % 701 + 1).min(700) as usize).collect();
        let sequences = packed(1024, Packing::Fill, &sizes).len();
        let filled = sizes.iter().sum::<usize>() as f64 / (sequences * 1024) as f64;
        assert!(filled > 0.97, "{filled}");
    }
}
