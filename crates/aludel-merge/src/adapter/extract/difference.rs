//! Reads what a tensor of the fine-tuned model has beyond the base's.
//!
//! In: both tensors as they are stored. Out: their difference in f32, a few rows at a time or, once it is [held](Difference::hold), from memory.
//! Values that are not finite are found when all is read for the first time, for its norm.

use std::ops::Range;

use aludel_kernels::cpu::BLOCK;
use aludel_kernels::nn::Cpu;
use aludel_kernels::svd::{Rows, sum_of_squares};

use super::treatment::Pair;
use crate::derive::{Passed, Readable, Weights};
use crate::execute::MergeError;
use crate::plan::Opened;

/// Elements that one thread reads at once.
const PIECE: usize = 64 * BLOCK;

/// A tensor of the fine-tuned model less the base's.
pub(super) struct Difference<'a> {
    cpu: &'a Cpu,
    weights: &'a Weights<'a>,
    opened: &'a Opened,
    pair: &'a Pair,
    base: &'a Readable,
    held: Option<Vec<f32>>,
}

impl<'a> Difference<'a> {
    pub(super) const fn new(
        cpu: &'a Cpu,
        (weights, opened): (&'a Weights<'a>, &'a Opened),
        pair: &'a Pair,
        base: &'a Readable,
    ) -> Self {
        Self { cpu, weights, opened, pair, base, held: None }
    }

    /// Its norm; all of it is read.
    pub(super) fn norm(&self) -> Result<f64, MergeError> {
        let elements = self.pair.elements() as usize;
        let starts: Vec<usize> = (0..elements).step_by(PIECE).collect();
        let sums = self.cpu.map(starts, elements.saturating_mul(2), |start| {
            let mut piece = vec![0.0; PIECE.min(elements - start)];
            self.subtract(start, &mut piece)?;
            Ok::<_, MergeError>(piece.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>())
        });
        let mut total = 0.0;
        for sum in sums {
            total += sum?;
        }
        self.release(0..elements);
        Ok(total.sqrt())
    }

    /// Reads all of it into memory; its norm.
    pub(super) fn hold(&mut self) -> Result<f64, MergeError> {
        let mut values = vec![0.0; self.pair.elements() as usize];
        self.fill(0, &mut values)?;
        let norm = sum_of_squares(self.cpu, &values).sqrt();
        self.held = Some(values);
        Ok(norm)
    }

    /// Reads consecutive elements, from `first` on.
    fn fill(&self, first: usize, to: &mut [f32]) -> Result<(), MergeError> {
        let all = first..first + to.len();
        let pieces: Vec<(usize, &mut [f32])> = to.chunks_mut(PIECE).enumerate().collect();
        let read = self.cpu.map(pieces, all.len().saturating_mul(2), |(number, piece)| {
            self.subtract(first + number * PIECE, piece)
        });
        read.into_iter().collect::<Result<(), _>>()?;
        self.release(all);
        Ok(())
    }

    /// As [`Self::fill`], on one thread.
    fn subtract(&self, start: usize, to: &mut [f32]) -> Result<(), MergeError> {
        let mut other = [0.0; BLOCK];
        let read = start..start + to.len();
        for (number, to) in to.chunks_mut(BLOCK).enumerate() {
            let at = (start + number * BLOCK) as u64;
            let other = &mut other[..to.len()];
            for (model, readable, values) in
                [(0, &self.pair.finetuned, &mut *to), (1, self.base, &mut *other)]
            {
                readable.read(self.weights, at, values);
                if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                    let model = self.opened.model(model).name.clone();
                    let (tensor, value) = (self.pair.name.clone(), values[index]);
                    return Err(MergeError::NonFinite { tensor, model, index: at + index as u64, value });
                }
            }
            to.iter_mut().zip(&*other).for_each(|(to, other)| *to -= other);
        }
        self.release(read);
        Ok(())
    }

    /// Gives back the pages of elements that have been read, so that tensors larger than the memory are not mapped whole.
    fn release(&self, elements: Range<usize>) {
        release(self.weights, self.pair, elements);
    }
}

/// Gives back the pages of elements of both tensors.
pub(super) fn release(weights: &Weights<'_>, pair: &Pair, elements: Range<usize>) {
    let elements = elements.start as u64..elements.end as u64;
    let passed = Passed { is_end: elements.end == pair.elements(), elements };
    for readable in pair.base.iter().chain([&pair.finetuned]) {
        readable.release(weights, &passed);
    }
}

impl Rows for Difference<'_> {
    fn sides(&self) -> (usize, usize) {
        (self.pair.shape[0], self.pair.shape[1])
    }

    fn read(&self, rows: Range<usize>, to: &mut [f32]) {
        let (_, columns) = self.sides();
        if self.fill(rows.start * columns, to).is_err() {
            to.fill(f32::NAN); // It was finite before: the file has changed, and no factors come of it.
        }
    }

    fn at_hand(&self) -> Option<&[f32]> {
        self.held.as_deref()
    }
}
