//! Finds thresholds on any device: digit by digit, from the uppermost bits down, by histograms.
//!
//! In: what is sought, and where there is room. Out: launches, in their order; `text/selection.wgsl` names the words of a selection.

use ::wgpu::ComputePipeline;

use super::WgpuError;
use super::device::Device;
use super::dialect::THREADS;
use super::memory::Memory;
use crate::cpu::Geometry;
use crate::gpu::{Backend, Selecting, Selections, Sought};

/// Words of a selection, of 64 bits each.
pub(super) const WORDS: usize = 4;

/// Bins of a histogram.
const BINS: u64 = 2048;

/// Digits of a magnitude.
const DIGITS: usize = 3;

/// What is looked for where nothing is.
const OF_NOTHING: u64 = 4;

/// The kernels of a selection that do not count digits.
#[derive(Debug)]
pub struct OfTies {
    pub(super) count: ComputePipeline,
    pub(super) locate: ComputePipeline,
}

/// The kernels that look at no tensor.
#[derive(Debug)]
pub(super) struct Resolving {
    pub(super) clear: ComputePipeline,
    pub(super) digit: ComputePipeline,
    pub(super) chunk: ComputePipeline,
}

/// Bytes of the histogram, and of the counts of ties.
pub(super) fn space_of(geometry: Geometry) -> [u64; 3] {
    [4 * BINS, 4 * geometry.chunks(), 0]
}

pub(super) fn words_of(sought: &Sought) -> Vec<u64> {
    let &Sought { count, geometry, space: [histogram, ties, _], cut, .. } = sought;
    let level = if count == 0 { OF_NOTHING } else { 0 };
    let pair = |low: u64, high: u64| high << 32 | low;
    vec![pair(count, level), pair(0, histogram), pair(ties, geometry.chunks()), pair(cut, 0)]
}

/// Submits what finds thresholds and last ties.
pub(super) fn select(
    device: &Device,
    memory: &Memory,
    kernels: &Selecting<Device>,
    selections: &Selections,
) -> Result<(), WgpuError> {
    let &Selections { descriptors, blocks, scalars, words, flags, tensors, chunks, largest } = selections;
    if largest == 0 {
        return Ok(());
    }
    let resolving = device.resolving();
    let of_selections = |kernel: &ComputePipeline| device.launch(memory, kernel, THREADS, tensors, &[words]);
    let of_chunks = |kernel: &ComputePipeline, count| {
        device.launch(memory, kernel, THREADS, count, &[descriptors, blocks, scalars, words, flags])
    };
    of_selections(&resolving.clear)?;
    for _ in 0..DIGITS {
        of_chunks(&kernels.sweep.kernel, chunks)?;
        of_selections(&resolving.digit)?;
    }
    of_chunks(&kernels.others.count, chunks)?;
    of_selections(&resolving.chunk)?;
    of_chunks(&kernels.others.locate, tensors)
}
