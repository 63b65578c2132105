//! Finds thresholds on a CUDA device: a sample brackets each, one sweep counts and collects what lies within, and another looks for the last tie.
//!
//! In: what is sought, and where there is room. Out: launches, in their order; `text/selection.cu` names the words of a selection.

use super::CudaError;
use super::device::Device;
use super::dialect::{RESOLVERS, SAMPLING_BLOCKS};
use super::driver::{Kernel, Stream};
use crate::cpu::Geometry;
use crate::gpu::{Selecting, Selections, Sought};

/// Words of a selection; see `text/selection.cu`.
pub(super) const WORDS: usize = 16;

/// Elements up to which a selection looks at all magnitudes instead of a sample.
const SMALL: u64 = 131_072;

/// Elements sampled of a larger tensor: one in so many, within bounds.
const SAMPLED_ONE_IN: u64 = 16;
const SAMPLE_LEAST: u64 = 65_536;
const SAMPLE_MOST: u64 = 131_072;

/// Vectors of a thread are at most so long, and a sample is whole vectors.
const LONGEST_VECTOR: u64 = 16;

const NOWHERE: u64 = 0xffff_ffff;
const MAGNITUDE: u64 = 0x7fff_ffff;

/// The kernels of a selection that do not sweep.
#[derive(Debug)]
pub struct Around {
    pub(super) sample: Kernel,
    pub(super) locate: Kernel,
}

/// Bytes of the sample, of the keys inside the bracket, and of the counts of ties.
pub(super) fn space_of(geometry: Geometry) -> [u64; 3] {
    [4 * sampled(geometry.elements), 8 * capacity(geometry.elements), 12 * geometry.chunks()]
}

pub(super) fn words_of(sought: &Sought) -> Vec<u64> {
    let &Sought { count, geometry, space: [sample, keys, ties], cut, flag } = sought;
    let elements = geometry.elements;
    // Nothing lies in the bracket of a selection that is known; without a sample everything does.
    let (bracket, sampled) = match (count, sampled(elements)) {
        // Sampled along with the others of its tensor, and not looked at.
        (0, sampled) => (NOWHERE << 32 | NOWHERE, sampled),
        (_, 0) => (MAGNITUDE << 32, 0),
        (_, sampled) => (0, sampled),
    };
    let counted = NOWHERE << 32 | NOWHERE;
    let (chunks, capacity) = (geometry.chunks(), capacity(elements));
    let known = [count, elements, sample, sampled, keys, capacity, ties, chunks, cut, flag];
    known.into_iter().chain([0, 0, bracket, counted, NOWHERE, 0]).collect()
}

/// Submits what finds thresholds and last ties.
pub(super) fn select(
    device: &Device,
    stream: &Stream,
    kernels: &Selecting<Device>,
    selections: &Selections,
) -> Result<(), CudaError> {
    let &Selections { descriptors, blocks, scalars, words, flags, tensors, chunks, largest } = selections;
    let each = kernels.sweep.text.completes.len() as u64;
    let threads = kernels.sweep.text.threads;
    let of_tensors = [descriptors, scalars, words];
    if sampled(largest) > 0 {
        stream.launch(&kernels.others.sample, tensors * SAMPLING_BLOCKS, threads, &of_tensors)?;
        stream.launch(&device.bracket, tensors * each, RESOLVERS, &[words])?;
    }
    let sweep = [descriptors, blocks, scalars, words, flags];
    let parts = u64::from(kernels.sweep.text.parts);
    stream.launch(&kernels.sweep.kernel, chunks * parts, threads, &sweep)?;
    stream.launch(&device.resolve, tensors * each, RESOLVERS, &[words])?;
    stream.launch(&kernels.others.locate, tensors * each, threads, &of_tensors)
}

/// How many elements are sampled.
fn sampled(elements: u64) -> u64 {
    if elements <= SMALL {
        return 0;
    }
    (elements / SAMPLED_ONE_IN).clamp(SAMPLE_LEAST, SAMPLE_MOST) / LONGEST_VECTOR * LONGEST_VECTOR
}

/// How many keys there is room for inside a bracket.
fn capacity(elements: u64) -> u64 {
    if elements <= SMALL { elements } else { elements / 32 + SMALL }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_whole_vectors_and_small_tensors_have_none() {
        assert_eq!(sampled(SMALL), 0);
        for elements in [SMALL + 1, 1_000_003, 4_194_304, 1 << 30] {
            let sample = sampled(elements);
            assert!(sample.is_multiple_of(LONGEST_VECTOR) && sample <= elements / 2 && sample > 0);
            assert!(capacity(elements) >= elements / 32);
        }
        assert_eq!(capacity(41), 41);
    }
}
