//! Reckons what a merge costs, and fits it into the memory that it may take.
//!
//! In: the steps. Out: the number of threads, the tile, and the figures of a plan. Memory does not grow with the models:
//! the pages of a few tiles of each input are resident, and encoded tiles wait in a fixed number of buffers. What memory is
//! left keeps pages of a tensor mapped between its passes: to map them again costs more than to compute on them.

use aludel_checkpoint::WeightMap;
use aludel_kernels::cpu::{CHUNK, Scratch};
use serde::Serialize;

use super::{Action, PlannedFormula, Step, StoredPart};
use crate::problem::Problem;

/// Bytes that a merge may take unless told otherwise.
pub const MEMORY_DEFAULT: u64 = 128 << 20;

/// Chunks of a tile where the memory allows: units of about a millisecond.
const TILE_CHUNKS: u64 = 4;

/// Encoded tiles that wait for a writer, besides one for each thread that computes or writes.
const WAITING_TILES: usize = 1;

/// Threads that one writer keeps up with: copying a tile into the page cache takes about a quarter of the time of the lightest merges.
const THREADS_PER_WRITER: usize = 4;

/// Threads that one reader keeps up with: it asks and waits, and copies nothing.
const THREADS_PER_READER: usize = 8;

/// Threads for which one finds digests: it takes as long over a file as a merge on two threads that needs one pass.
const THREADS_PER_HASHER: usize = 2;

/// Tiles that are read ahead where the memory allows.
const AHEAD: usize = 4;

/// Bytes of a selection: its histogram and its counts, for as many steps as are under way.
const SELECTION: u64 = 256 << 10;

/// What a merge costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Threads that compute.
    pub threads: usize,
    /// Elements per unit of work.
    pub tile: u64,
    /// Bytes of inputs that stay mapped from one pass to the next.
    pub kept: u64,
    /// Tiles of the inputs that are read before they are computed on, of the tensors under way and as many of those that follow.
    pub ahead: usize,
    /// Buffers for encoded tiles.
    pub buffers: usize,
    /// Bytes read from the inputs, each pass counted.
    pub bytes_read: u64,
    /// Bytes of the output's weight files.
    pub bytes_written: u64,
    /// The most memory that the process is expected to have resident, mapped pages included, in bytes.
    pub peak_memory: u64,
}

impl Work {
    /// Units that are under way at once: one for each thread, and one that waits to be passed.
    pub(crate) const fn window(&self) -> usize {
        window(self.threads)
    }

    /// Threads that write.
    pub(crate) const fn writers(&self) -> usize {
        writers(self.threads)
    }

    /// Threads that find digests of inputs, beside those that compute.
    pub(crate) const fn hashers(&self) -> usize {
        self.threads.div_ceil(THREADS_PER_HASHER)
    }

    /// Threads that read ahead.
    pub(crate) const fn readers(&self) -> usize {
        self.threads.div_ceil(THREADS_PER_READER)
    }
}

const fn window(threads: usize) -> usize {
    threads + 1
}

const fn writers(threads: usize) -> usize {
    threads.div_ceil(THREADS_PER_WRITER)
}

/// The needs of the largest step of a plan.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// Bytes of one element of all inputs together.
    input_width: u64,
    /// Bytes of the inputs that stay resident beyond the tiles, as pages are given back in larger pieces.
    slack: u64,
    /// Bytes of one element of the output.
    output_width: u64,
    scratch: u64,
    selections: u64,
    /// Elements of all steps: small ones share a tile.
    elements: u64,
    /// Bytes that derived inputs of a step keep.
    held: u64,
    /// Bytes of the inputs of the largest step that reads them more than once.
    revisited: u64,
    /// Bytes that a thread takes that puts experts in order, before anything is merged.
    aligning: u64,
}

/// What fits into the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub threads: usize,
    pub tile: u64,
    /// Tiles that are read ahead.
    pub ahead: usize,
    /// Bytes that all of it takes, `kept` included.
    pub bytes: u64,
    /// Bytes of inputs that stay mapped from one pass to the next.
    pub kept: u64,
}

impl Needs {
    /// Takes a step in, with what is stored of each of its inputs.
    pub(super) fn include(
        &mut self,
        step: &Step,
        formula: Option<&PlannedFormula>,
        inputs: &[Vec<StoredPart>],
        output: u64,
    ) {
        // Up to one piece before the window waits to be given back, and half of one after it on average.
        let slack = |part: &StoredPart| part.file.min(WeightMap::RELEASED_AT_ONCE * 3 / 2);
        let input_width = inputs.iter().flatten().map(|part| part.width).sum();
        self.input_width = self.input_width.max(input_width);
        self.slack = self.slack.max(inputs.iter().flatten().map(slack).sum());
        self.output_width = self.output_width.max(output);
        self.elements = self.elements.saturating_add(step.elements());
        if let Some(formula) = formula {
            let rows = step
                .geometry()
                .map_or(0, |geometry| Scratch::row_bytes(&formula.formula, geometry, input_width));
            self.scratch = self.scratch.max(Scratch::bytes(formula.registers) + rows);
            self.selections = self.selections.max(formula.selections() as u64);
        }
    }

    /// Takes in what the derived inputs of a step keep in memory.
    pub(super) fn hold(&mut self, bytes: u64) {
        self.held = self.held.max(bytes);
    }

    /// Takes in what a thread needs to put experts in order.
    pub(super) fn align(&mut self, bytes: u64) {
        self.aligning = self.aligning.max(bytes);
    }

    /// Takes in the bytes of the inputs of a step that reads them more than once.
    pub(super) fn revisit(&mut self, bytes: u64) {
        self.revisited = self.revisited.max(bytes);
    }

    /// Bytes that so many threads take with tiles of so many elements, of which so many are read ahead.
    fn bytes(&self, threads: usize, tile: u64, ahead: usize) -> u64 {
        let tile = tile.min(self.elements.max(1));
        let buffers = Self::buffers(threads) as u64 * tile * self.output_width;
        let windows = (window(threads) + 2 * ahead) as u64 * tile * self.input_width + self.slack;
        let threads = threads as u64;
        // So many steps may be under way at once.
        let held = (threads + 1) * self.held;
        let merging =
            held + windows + buffers + threads * self.scratch + self.selections * (threads + 1) * SELECTION;
        merging.max(threads * self.aligning)
    }

    /// Threads and tile that fit: smaller tiles first, then fewer threads.
    pub(super) fn fit(&self, threads: usize, tile: Option<u64>, memory: u64) -> Result<Fit, Problem> {
        let tiles = match tile {
            Some(tile) => vec![tile],
            None => vec![TILE_CHUNKS * CHUNK, TILE_CHUNKS / 2 * CHUNK, CHUNK],
        };
        for threads in (1..=threads.max(1)).rev() {
            for &tile in &tiles {
                let fits = |&ahead: &usize| self.bytes(threads, tile, ahead) <= memory;
                if let Some(ahead) = (0..=AHEAD).rev().find(fits) {
                    let bytes = self.bytes(threads, tile, ahead);
                    let kept = self.revisited.min(memory - bytes);
                    return Ok(Fit { threads, tile, ahead, bytes: bytes + kept, kept });
                }
            }
        }
        let least = self.bytes(1, tiles.iter().copied().min().unwrap_or(CHUNK), 0).div_ceil(1 << 20);
        let message = format!("the merge needs {least} MiB of memory, and may take {} MiB", memory >> 20);
        Err(Problem::general(message).with_hint(format!("give it `--memory {least}MiB` or more")))
    }

    pub(super) const fn buffers(threads: usize) -> usize {
        threads + writers(threads) + WAITING_TILES
    }
}

/// Bytes that a step reads, each pass counted.
pub(super) fn bytes_read(step: &Step, formulas: &[PlannedFormula], input_bytes: &[u64]) -> u64 {
    match step.action {
        Action::Copy => input_bytes.iter().sum(),
        Action::Scales => 0,
        Action::Compute { formula, .. } => {
            formulas[formula].reads.iter().flatten().map(|&input| input_bytes[usize::from(input)]).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_memory_leaves_keeps_pages_mapped() {
        let mut needs = Needs { input_width: 8, output_width: 2, elements: 1 << 24, ..Needs::default() };
        let fit = |needs: &Needs, memory| needs.fit(2, None, memory).unwrap();
        let alone = fit(&needs, MEMORY_DEFAULT);
        assert_eq!(alone.kept, 0, "nothing is read twice");
        needs.revisit(40 << 20);
        needs.revisit(30 << 20);
        let with = fit(&needs, MEMORY_DEFAULT);
        assert_eq!(with, Fit { bytes: alone.bytes + (40 << 20), kept: 40 << 20, ..alone });
        let tight = fit(&needs, alone.bytes + 1000);
        assert_eq!(tight, Fit { bytes: alone.bytes + 1000, kept: 1000, ..alone });
    }
}
