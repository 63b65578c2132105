//! Decodes blocks of a GGUF file for any range of elements, and undoes what the converter to GGUF did.

use std::ops::Range;

use super::raw;
use crate::checkpoint::TensorEntry;
use crate::gguf::{BlockType, Change};
use crate::map::WeightMap;

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Blocks {
    block: BlockType,
    change: Change,
    /// All of its blocks.
    stored: TensorEntry,
}

impl Blocks {
    /// A tensor whose blocks lie there.
    pub(crate) fn new(block: BlockType, change: Change, file: usize, offset: u64, bytes: u64) -> Self {
        Self { block, change, stored: raw(file, offset, bytes) }
    }

    pub(super) fn stored(&self) -> &TensorEntry {
        &self.stored
    }

    pub(super) fn describe(&self) -> String {
        self.block.name().to_owned()
    }

    pub(super) fn fill(&self, map: &WeightMap, shape: &[usize], elements: Range<u64>, to: &mut [f32]) {
        let mut rest = &mut *to;
        for run in self.runs(shape, elements) {
            let (now, later) = rest.split_at_mut((run.end - run.start) as usize);
            self.decode(map, run, now);
            rest = later;
        }
        if self.change == Change::SubtractOne {
            to.iter_mut().for_each(|value| *value -= 1.0);
        }
    }

    /// The bytes of the blocks that hold some elements.
    pub(super) fn locate(&self, shape: &[usize], elements: &Range<u64>) -> Range<u64> {
        let unit = self.unit(shape);
        let whole = elements.start / unit * unit..elements.end.next_multiple_of(unit).min(self.elements());
        self.bytes_of(&self.covering(&whole))
    }

    /// Elements that lie in another order than the file's among themselves: rows of a head that is not passed are read later.
    fn unit(&self, shape: &[usize]) -> u64 {
        match self.change {
            Change::UnpairRotary { rows } => rows * columns(shape),
            _ => 1,
        }
    }

    pub(super) fn release(&self, map: &WeightMap, shape: &[usize], elements: Range<u64>, is_end: bool) {
        let unit = self.unit(shape);
        let block = self.block.elements();
        let start = elements.start / unit * unit / block * block;
        if is_end {
            map.release(&self.stored, self.bytes_of(&(start..self.elements())));
        } else {
            map.release_passed(
                &self.stored,
                self.bytes_of(&(start..elements.end / unit * unit / block * block)),
            );
        }
    }

    fn elements(&self) -> u64 {
        self.stored.bytes / self.block.bytes() * self.block.elements()
    }

    /// Elements of the file that follow each other here too, in order.
    fn runs(&self, shape: &[usize], elements: Range<u64>) -> Vec<Range<u64>> {
        let Change::UnpairRotary { rows } = self.change else { return vec![elements] };
        let columns = columns(shape);
        let mut runs = Vec::new();
        let mut next = elements.start;
        while next < elements.end {
            let (row, column) = (next / columns, next % columns);
            let count = (columns - column).min(elements.end - next);
            let start = Change::paired_row(row, rows) * columns + column;
            runs.push(start..start + count);
            next += count;
        }
        runs
    }

    /// Decodes elements that follow each other in the file, some blocks at a time.
    fn decode(&self, map: &WeightMap, elements: Range<u64>, to: &mut [f32]) {
        let covering = self.covering(&elements);
        let piece = (PIECE_ELEMENTS / self.block.elements()).max(1) * self.block.elements();
        let (mut room, mut values) = (Vec::new(), Vec::new());
        let mut start = covering.start;
        while start < covering.end {
            let end = covering.end.min(start + piece);
            let bytes = map.bytes(&self.stored, self.bytes_of(&(start..end)));
            let wanted = start.max(elements.start)..end.min(elements.end);
            let at = (wanted.start - elements.start) as usize;
            let to = &mut to[at..at + (wanted.end - wanted.start) as usize];
            if wanted == (start..end) {
                self.block.decode_into(bytes, &mut room, to);
            } else {
                values.resize((end - start) as usize, 0.0);
                self.block.decode_into(bytes, &mut room, &mut values);
                let first = (wanted.start - start) as usize;
                to.copy_from_slice(&values[first..first + to.len()]);
            }
            start = end;
        }
    }

    /// The whole blocks that hold some elements.
    fn covering(&self, elements: &Range<u64>) -> Range<u64> {
        let block = self.block.elements();
        elements.start / block * block..elements.end.next_multiple_of(block)
    }

    fn bytes_of(&self, blocks: &Range<u64>) -> Range<u64> {
        let bytes = |elements: u64| elements / self.block.elements() * self.block.bytes();
        bytes(blocks.start)..bytes(blocks.end)
    }
}

/// Elements of a row: of all sides but the first.
fn columns(shape: &[usize]) -> u64 {
    shape.iter().skip(1).map(|&side| side as u64).product::<u64>().max(1)
}

/// A multiple of every block's elements; its values stay in the first-level cache.
const PIECE_ELEMENTS: u64 = 4096;
