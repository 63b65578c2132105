//! Lays out a batch in the device's memory, and fills in the tables that kernels find everything by.
//!
//! In: tensors with their kernels. Out: the place of every input, output, table and working space as an offset, and the first bytes of the memory
//! with all addresses in them. Tensors that share all kernels make a group, which is computed by one launch of each.

use std::sync::Arc;

use super::Tensor;
use crate::cpu::CHUNK;
use crate::cuda::device::Prepared;
use crate::cuda::emit::selections;
use crate::cuda::source::{SELECTION_WORDS, words_of};

/// Elements up to which a selection looks at all magnitudes instead of a sample.
const SMALL: u64 = 131_072;

/// Elements sampled of a larger tensor: one in so many, within bounds.
const SAMPLED_ONE_IN: u64 = 16;
const SAMPLE_LEAST: u64 = 65_536;
const SAMPLE_MOST: u64 = 131_072;

/// Vectors of a thread are at most so long, and a sample is whole vectors.
const LONGEST_VECTOR: u64 = 16;

/// Where everything lies: offsets into the memory.
#[derive(Debug, Default)]
pub(in crate::cuda) struct Layout {
    pub groups: Vec<Group>,
    pub inputs: Vec<Vec<u64>>,
    pub outputs: Vec<u64>,
    /// Bytes of tables at the beginning.
    pub tables: u64,
    pub bytes: u64,
}

/// Tensors that are computed together.
#[derive(Debug)]
pub(in crate::cuda) struct Group {
    /// Their positions in the batch.
    pub tensors: Vec<usize>,
    /// The kernels of each, which are the same but for the operations that they are bound to.
    pub prepared: Vec<Arc<Prepared>>,
    pub descriptors: u64,
    pub blocks: u64,
    pub cuts: u64,
    pub keys: u64,
    pub flags: u64,
    /// The values per tensor of every kernel, in the order in which kernels run.
    pub scalars: Vec<u64>,
    /// Of every kernel that selects.
    pub sought: Vec<Sought>,
    /// The partial results of every kernel that reduces.
    pub partials: Vec<u64>,
    /// The first chunk of every tensor among those of the group, and the end of the last.
    pub chunks: Vec<u64>,
    /// Cuts and keys of each tensor: as many as the formula with the most of them has.
    pub selections: usize,
    pub streams: usize,
}

/// The working space of a kernel that selects.
#[derive(Debug)]
pub(in crate::cuda) struct Sought {
    pub words: u64,
    /// For each tensor and selection: the sample, the keys inside the bracket, the counts of ties.
    pub space: Vec<[u64; 3]>,
}

/// Hands out space, aligned as any load likes it.
#[derive(Debug, Default)]
struct Space {
    bytes: u64,
}

impl Space {
    fn take(&mut self, bytes: u64) -> u64 {
        let at = self.bytes;
        self.bytes = (at + bytes.max(1)).next_multiple_of(256);
        at
    }
}

/// How many elements are sampled.
pub(super) fn sampled(elements: u64) -> u64 {
    if elements <= SMALL {
        return 0;
    }
    (elements / SAMPLED_ONE_IN).clamp(SAMPLE_LEAST, SAMPLE_MOST) / LONGEST_VECTOR * LONGEST_VECTOR
}

/// How many keys there is room for inside a bracket.
pub(super) fn capacity(elements: u64) -> u64 {
    if elements <= SMALL { elements } else { elements / 32 + SMALL }
}

/// Bytes that a tensor takes, about.
pub(in crate::cuda) fn bytes_of(tensor: &Tensor, prepared: &Prepared) -> u64 {
    let elements = tensor.geometry.elements;
    let stored: u64 = tensor.inputs.iter().map(|input| input.size() as u64).sum();
    let selecting = prepared.passes.iter().flat_map(|pass| &pass.selecting);
    let sought: u64 = selecting.map(|selecting| selecting.sweep.text.completes.len() as u64).sum();
    let chunks = elements.div_ceil(CHUNK);
    let space = sampled(elements) * 4 + capacity(elements) * 8 + chunks * 12 + 1024;
    elements * (stored + tensor.output.size() as u64) + sought * space + chunks * 64 + 8192
}

impl Layout {
    pub(super) fn new(tensors: &[Tensor], prepared: &[Arc<Prepared>]) -> Self {
        let mut space = Space::default();
        let mut groups: Vec<Group> = Vec::new();
        for (at, kernels) in prepared.iter().enumerate() {
            let is_like = |group: &&mut Group| group.prepared[0].signature == kernels.signature;
            match groups.iter_mut().find(is_like) {
                Some(group) => {
                    group.tensors.push(at);
                    group.prepared.push(Arc::clone(kernels));
                }
                None => groups.push(Group::of(at, kernels)),
            }
        }
        groups.iter_mut().for_each(|group| group.place_tables(tensors, &mut space));
        let tables = space.bytes;
        groups.iter_mut().for_each(|group| group.place_space(tensors, &mut space));
        let inputs = tensors.iter().map(|tensor| {
            let bytes = |input: &crate::element::Element| tensor.geometry.elements * input.size() as u64;
            tensor.inputs.iter().map(|input| space.take(bytes(input))).collect()
        });
        let inputs = inputs.collect();
        let output = |tensor: &Tensor| space.take(tensor.geometry.elements * tensor.output.size() as u64);
        let outputs = tensors.iter().map(output).collect();
        Self { groups, inputs, outputs, tables, bytes: space.bytes }
    }

    /// The bytes of the tables, for a memory that begins at `base`.
    pub(super) fn image(&self, tensors: &[Tensor], base: u64) -> Vec<u8> {
        let mut image = Image { bytes: vec![0; self.tables as usize], base };
        for group in &self.groups {
            group.fill(self, tensors, &mut image);
        }
        image.bytes
    }
}

impl Group {
    fn of(first: usize, prepared: &Arc<Prepared>) -> Self {
        Self {
            tensors: vec![first],
            prepared: vec![Arc::clone(prepared)],
            descriptors: 0,
            blocks: 0,
            cuts: 0,
            keys: 0,
            flags: 0,
            scalars: Vec::new(),
            sought: Vec::new(),
            partials: Vec::new(),
            chunks: Vec::new(),
            selections: 0,
            streams: 0,
        }
    }

    fn place_tables(&mut self, tensors: &[Tensor], space: &mut Space) {
        let (count, first) = (self.tensors.len() as u64, &tensors[self.tensors[0]]);
        let mut end = 0;
        self.chunks.push(0);
        for &tensor in &self.tensors {
            let of = &tensors[tensor];
            end += of.geometry.chunks();
            self.selections = self.selections.max(selections(&of.formula).len());
            self.streams = self.streams.max(of.formula.streams());
            self.chunks.push(end);
        }
        self.descriptors = space.take(count * 8 * words_of(&first.formula) as u64);
        self.blocks = space.take(end * 8);
        self.cuts = space.take(count * 16 * self.selections as u64);
        self.keys = space.take(count * 8 * self.streams as u64);
        self.flags = space.take(count * 4);
        for pass in &self.prepared[0].passes {
            for selecting in &pass.selecting {
                let text = &selecting.sweep.text;
                let words = space.take(count * (text.completes.len() * SELECTION_WORDS * 8) as u64);
                self.sought.push(Sought { words, space: Vec::new() });
                self.scalars.push(space.take(count * 4 * text.scalars.len() as u64));
            }
            for reducing in &pass.reducing {
                self.scalars.push(space.take(count * 4 * reducing.text.scalars.len() as u64));
            }
        }
        self.scalars.push(space.take(count * 4 * self.prepared[0].writing.text.scalars.len() as u64));
    }

    fn place_space(&mut self, tensors: &[Tensor], space: &mut Space) {
        let end = self.chunks.last().copied().unwrap_or_default();
        let passes = &self.prepared[0].passes;
        let selecting = passes.iter().flat_map(|pass| &pass.selecting);
        for (sought, selecting) in self.sought.iter_mut().zip(selecting) {
            for &tensor in &self.tensors {
                let geometry = tensors[tensor].geometry;
                for _ in &selecting.sweep.text.completes {
                    sought.space.push([
                        space.take(4 * sampled(geometry.elements)),
                        space.take(8 * capacity(geometry.elements)),
                        space.take(12 * geometry.chunks()),
                    ]);
                }
            }
        }
        for reducing in passes.iter().flat_map(|pass| &pass.reducing) {
            self.partials.push(space.take(end * 8 * reducing.text.completes.len() as u64));
        }
    }

    fn fill(&self, layout: &Layout, tensors: &[Tensor], image: &mut Image) {
        let words = words_of(&tensors[self.tensors[0]].formula) as u64;
        let streams = self.streams as u64;
        for (at, &tensor) in (0u64..).zip(&self.tensors) {
            let Tensor { geometry, streams: keys, .. } = &tensors[tensor];
            let descriptor = self.descriptors + at * words * 8;
            let (cuts, own_keys) =
                (self.cuts + at * 16 * self.selections as u64, self.keys + at * 8 * streams);
            image.word(descriptor, geometry.elements);
            for (word, place) in [(1, layout.outputs[tensor]), (2, cuts), (3, own_keys)] {
                image.address(descriptor + 8 * word, place);
            }
            for (input, &place) in (4..).zip(&layout.inputs[tensor]) {
                image.address(descriptor + 8 * input, place);
            }
            for (stream, key) in (0..streams).zip(keys) {
                image.word(own_keys + 8 * stream, key.0);
            }
            for chunk in 0..geometry.chunks() {
                let block = self.blocks + 8 * (self.chunks[at as usize] + chunk);
                image.word(block, chunk << 32 | at);
            }
        }
    }
}

struct Image {
    bytes: Vec<u8>,
    base: u64,
}

impl Image {
    fn word(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn address(&mut self, at: u64, place: u64) {
        self.word(at, self.base + place);
    }
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

    #[test]
    fn space_is_aligned_and_never_shared() {
        let mut space = Space::default();
        assert_eq!([0, 1, 256, 257, 3].map(|bytes| space.take(bytes)), [0, 256, 512, 768, 1280]);
        assert_eq!(space.bytes, 1536);
    }
}
