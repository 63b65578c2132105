//! Runs the units of waves that sample magnitudes or look for the last tie kept.
//!
//! In: a wave of one unit. Out: the magnitudes met, kept in the wave, from which a selection is bracketed or cut.

use std::ops::Range;

use super::block::{BLOCK, CHUNK, RUN, Segment, Source};
use super::machine::Scratch;
use super::rank::{Bracket, Cut};
use super::wave::Wave;
use crate::random::StreamKey;

/// Elements up to which a selection takes all magnitudes as its sample, and so is exact without a pass.
pub(super) const SMALL: u64 = 2 * CHUNK;

/// Elements sampled from a larger tensor: one in so many, within bounds. A small sample leaves a wide bracket, and what
/// falls inside it is sorted.
const SAMPLED_ONE_IN: u64 = 128;
const SAMPLE_LEAST: u64 = 16_384;
const SAMPLE_MOST: u64 = 65_536;

impl Wave {
    /// All elements of a small tensor in order, else runs of elements spread evenly, each at a random place in its
    /// share of the tensor.
    pub(super) fn sample(&self, source: &dyn Source, scratch: &mut Scratch) {
        let elements = self.geometry.elements;
        if self.samples_all() {
            self.collect(0..elements, source, scratch);
            self.release(source, 0..elements);
        } else {
            self.sample_runs(source, scratch);
        }
        *self.magnitudes() =
            scratch.inside[..self.program.ranks.len()].iter_mut().map(std::mem::take).collect();
    }

    fn sample_runs(&self, source: &dyn Source, scratch: &mut Scratch) {
        let elements = self.geometry.elements;
        let sampled = (elements / SAMPLED_ONE_IN).clamp(SAMPLE_LEAST, SAMPLE_MOST);
        let per_block = (BLOCK / RUN) as u64;
        let blocks = sampled / BLOCK as u64;
        let share = elements / (blocks * per_block);
        let start_of = |run: u64| {
            let jitter = (share - RUN as u64) as f64 * f64::from(crate::random::uniform(StreamKey(0), run));
            (run * share + jitter as u64) & !3
        };
        for block in 0..blocks {
            let segment = |run: u64| Segment {
                start: start_of(block * per_block + run),
                offset: run as usize * RUN,
                length: RUN,
            };
            let segments: Vec<Segment> = (0..per_block).map(segment).collect();
            self.run_block(&segments, BLOCK, source, scratch, &mut [], &mut []);
        }
    }

    pub(super) fn collect_located(&self, source: &dyn Source, scratch: &mut Scratch) {
        let mut met = vec![Vec::new(); self.program.ranks.len()];
        for (slot, &chunk) in self.located.iter().enumerate() {
            let elements = chunk * CHUNK..self.geometry.elements.min((chunk + 1) * CHUNK);
            self.collect(elements.clone(), source, scratch);
            self.release(source, elements);
            met[slot] = std::mem::take(&mut scratch.inside[slot]);
            scratch.inside.iter_mut().for_each(Vec::clear);
        }
        *self.magnitudes() = met;
    }

    /// Appends the magnitudes of consecutive elements to the scratch memory.
    fn collect(&self, elements: Range<u64>, source: &dyn Source, scratch: &mut Scratch) {
        let mut at = elements.start;
        while at < elements.end {
            let length = BLOCK.min((elements.end - at) as usize);
            let segments = [Segment { start: at, offset: 0, length }];
            self.run_block(&segments, length, source, scratch, &mut [], &mut []);
            at += length as u64;
        }
    }

    fn release(&self, source: &dyn Source, elements: Range<u64>) {
        self.program.inputs.iter().for_each(|&input| source.release(usize::from(input), elements.clone()));
    }
}

/// A bracket for a selection from the magnitudes of a sample, or its cut where the sample was the whole tensor.
pub(super) fn judge_sample(sample: &mut [u32], count: u64, elements: u64) -> Result<Cut, Bracket> {
    if elements <= SMALL {
        Ok(Cut::exact(sample, count))
    } else {
        Err(Bracket::from_sample(sample, count, elements))
    }
}
