//! A large step under way: which of its units are handed out, and how far its sweep has passed.

use std::ops::Range;
use std::sync::Arc;

use aludel_kernels::cpu::{Evaluation, Wave, WaveKind};

use super::kept::{Kept, Room};
use super::task::{UnitKind, UnitTask, sweeps};
use crate::derive::Passed;

pub(super) struct Active {
    pub step: usize,
    pub work: Work,
    pub units: usize,
    pub next: usize,
    running: Vec<usize>,
    /// Elements that all have been passed.
    passed: u64,
    pub kept: Kept,
    /// Units of this sweep, or of the next one, that have been read ahead.
    pub asked: usize,
}

pub(super) enum Work {
    Compute {
        evaluation: Box<Evaluation>,
        wave: Arc<Wave>,
    },
    /// Between two waves, while a thread prepares the next one.
    Advancing,
    Copy,
}

impl Active {
    pub(super) fn new(step: usize, work: Work, units: usize) -> Self {
        let kept = Kept::default();
        Self { step, work, units, next: 0, running: Vec::new(), passed: 0, kept, asked: 0 }
    }

    /// The next wave of the step.
    pub(super) fn begin_wave(&mut self, evaluation: Box<Evaluation>, wave: Arc<Wave>, was_sweep: bool) {
        let units = wave.units();
        let asked = if was_sweep { 0 } else { self.asked };
        let next = Self::new(self.step, Work::Compute { evaluation, wave }, units);
        *self = Self { kept: self.kept, asked, ..next };
    }

    /// The next unit, of a tensor of so many elements; whether it was read ahead.
    pub(super) fn claim(&mut self, tile: u64, elements: u64) -> Option<(UnitTask, bool)> {
        if self.next == self.units {
            return None;
        }
        let unit = self.next;
        self.next += 1;
        self.running.push(unit);
        let (step, kept) = (self.step, self.kept.elements());
        let was_asked = self.is_in_sweep() && unit < self.asked;
        let task = match &self.work {
            Work::Compute { wave, .. } => {
                let elements = wave.unit(unit).elements;
                UnitTask { step, kind: UnitKind::Compute(Arc::clone(wave)), unit, elements, kept }
            }
            Work::Copy | Work::Advancing => {
                let elements = unit_of_tile(unit, tile, elements);
                UnitTask { step, kind: UnitKind::Copy, unit, elements, kept }
            }
        };
        Some((task, was_asked))
    }

    /// The next unit of this sweep, or of the one that follows a wave that is none, that nobody has begun or read ahead. So many units
    /// are a sweep.
    pub(super) fn claim_ahead(&mut self, sweep: usize) -> Option<usize> {
        let begun = if self.is_in_sweep() { self.next } else { 0 };
        let unit = self.asked.max(begun);
        (unit < sweep).then(|| {
            self.asked = unit + 1;
            unit
        })
    }

    fn is_in_sweep(&self) -> bool {
        match &self.work {
            Work::Compute { wave, .. } => sweeps(wave),
            Work::Advancing => false,
            Work::Copy => true,
        }
    }

    /// Takes note that a unit has run; what the wave has passed by that.
    pub(super) fn finish(&mut self, unit: usize, tile: u64, elements: u64) -> Passed {
        self.running.retain(|&running| running != unit);
        let first = self.running.iter().copied().min().unwrap_or(self.next);
        let end = (first as u64 * tile).min(elements).max(self.passed);
        let from = std::mem::replace(&mut self.passed, end);
        Passed { elements: from..end, is_end: end == elements }
    }

    /// Whether all elements before this one have been passed by the sweep, and the last of them does not stay mapped for another one.
    pub(super) fn has_passed(&self, end: u64) -> bool {
        let is_last = match &self.work {
            Work::Compute { wave, .. } => wave.kind() == WaveKind::Write,
            Work::Advancing => false,
            Work::Copy => true,
        };
        end <= self.passed && (is_last || end > self.kept.elements())
    }

    /// Whether the pages that a sweep has passed stay mapped for the next one.
    pub(super) fn keep(&mut self, passed: &Range<u64>, width: u64, room: &mut Room, limit: u64) -> bool {
        match &self.work {
            Work::Compute { wave, .. } if wave.kind() == WaveKind::Reduce => {
                self.kept.pass(passed, width, room, limit)
            }
            Work::Compute { wave, .. } if wave.kind() == WaveKind::Write => {
                self.kept.leave(passed, width, room);
                false
            }
            _ => false,
        }
    }

    /// Units that have begun and are not passed: the running ones, and those that wait for a slower one before them.
    pub(super) fn open_units(&self) -> usize {
        self.next - self.running.iter().copied().min().unwrap_or(self.next)
    }

    pub(super) fn is_done(&self) -> bool {
        self.running.is_empty() && self.next == self.units
    }
}

/// The elements of a unit of a sweep over so many.
pub(super) fn unit_of_tile(unit: usize, tile: u64, elements: u64) -> Range<u64> {
    let start = unit as u64 * tile;
    start..elements.min(start + tile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_too_late_has_been_passed() {
        let (tile, elements) = (10, 25);
        let mut active = Active::new(0, Work::Copy, 3);
        let first = active.claim(tile, elements).unwrap().0;
        active.claim(tile, elements).unwrap();
        assert!(!active.has_passed(10), "it is computed on");
        active.finish(first.unit, tile, elements);
        assert!(active.has_passed(10));
        assert!(!active.has_passed(20));
    }
}
