//! What a thread is handed at once: a unit of a large step, or several small steps as a whole.

use std::ops::Range;
use std::sync::Arc;

use aludel_kernels::cpu::{Wave, WaveKind};

use crate::plan::Plan;

/// A piece of work.
#[derive(Debug)]
pub(super) enum Task {
    Unit(UnitTask),
    /// Steps that together are no larger than a tile, and lie side by side in the output: all passes over all of them.
    Group(Range<usize>),
}

/// A unit of a step.
#[derive(Debug)]
pub(super) struct UnitTask {
    pub step: usize,
    pub kind: UnitKind,
    /// The position in its wave.
    pub unit: usize,
    /// The elements that it covers.
    pub elements: Range<u64>,
    /// Elements at the start of the step's tensors whose pages stay mapped for the next pass.
    pub kept: u64,
}

#[derive(Debug)]
pub(super) enum UnitKind {
    Compute(Arc<Wave>),
    Copy,
}

impl UnitTask {
    /// Whether the unit belongs to a sweep over all elements.
    pub(super) fn sweeps(&self) -> bool {
        match &self.kind {
            UnitKind::Compute(wave) => sweeps(wave),
            UnitKind::Copy => true,
        }
    }

    /// The inputs that the unit reads.
    pub(super) fn reads(&self, plan: &Plan) -> Vec<u16> {
        match &self.kind {
            UnitKind::Compute(wave) => wave.reads().to_vec(),
            UnitKind::Copy => all_inputs(plan, self.step),
        }
    }

    /// Whether the unit produces a tile of the output.
    pub(super) fn writes(&self) -> bool {
        match &self.kind {
            UnitKind::Compute(wave) => wave.kind() == WaveKind::Write,
            UnitKind::Copy => true,
        }
    }

    /// Bytes of the inputs that count as read when the unit has run.
    pub(super) fn bytes_read(&self, plan: &Plan) -> u64 {
        let count = self.elements.end - self.elements.start;
        match &self.kind {
            UnitKind::Compute(wave) => bytes_read(plan, self.step, wave, count),
            UnitKind::Copy => count * plan.input_width(self.step),
        }
    }
}

/// Whether a wave passes over all elements.
pub(super) fn sweeps(wave: &Wave) -> bool {
    matches!(wave.kind(), WaveKind::Reduce | WaveKind::Write)
}

/// Bytes of a step's inputs that a wave reads of so many elements: those of a sweep, and of a sample that takes in the whole tensor and
/// so stands for one.
pub(super) fn bytes_read(plan: &Plan, step: usize, wave: &Wave, elements: u64) -> u64 {
    let is_whole_sample = wave.kind() == WaveKind::Sample && wave.samples_all();
    if !sweeps(wave) && !is_whole_sample {
        return 0;
    }
    let widths = &plan.widths[step];
    elements * wave.reads().iter().map(|&input| widths[usize::from(input)]).sum::<u64>()
}

/// All inputs of a step.
pub(super) fn all_inputs(plan: &Plan, step: usize) -> Vec<u16> {
    (0..plan.steps[step].inputs.len() as u16).collect()
}
