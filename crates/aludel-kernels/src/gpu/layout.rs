//! Lays out a batch in a device's memory, and fills in the tables that kernels find everything by.
//!
//! In: tensors with their kernels. Out: the place of every input, output, table and working space as an offset, and the bytes of the tables,
//! which come first, with all places in them. Tensors that share all kernels make a group, which is computed by one launch of each.

use std::sync::Arc;

use super::batch::Tensor;
use super::emit::selections;
use super::prepared::Prepared;
use super::texts::words_of;
use super::{Backend, Sizes};
use crate::element::Element;

/// Where everything lies: offsets among tables and working space, and for inputs and outputs among these.
#[derive(Debug)]
pub(super) struct Layout<B: Backend> {
    pub groups: Vec<Group<B>>,
    pub inputs: Vec<Vec<u64>>,
    pub outputs: Vec<u64>,
    /// Bytes of tables at the beginning, and of flags at theirs.
    pub tables: u64,
    pub flags: u64,
    pub sizes: Sizes,
}

/// Tensors that are computed together.
#[derive(Debug)]
pub(crate) struct Group<B: Backend> {
    /// Their positions in the batch.
    pub tensors: Vec<usize>,
    /// The kernels of each, which are the same but for the operations that they are bound to.
    pub prepared: Vec<Arc<Prepared<B>>>,
    pub descriptors: u64,
    pub blocks: u64,
    pub cuts: u64,
    pub keys: u64,
    pub flags: u64,
    /// The values per tensor of every kernel, in the order in which kernels run.
    pub scalars: Vec<u64>,
    /// Of every kernel that selects.
    pub sought: Vec<Working>,
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
pub(crate) struct Working {
    pub words: u64,
    /// For each tensor and selection.
    pub space: Vec<[u64; 3]>,
}

/// What every place is a multiple of, as any load likes it.
const ALIGNMENT: u64 = 256;

/// Hands out space.
#[derive(Debug, Default)]
struct Space {
    bytes: u64,
}

impl Space {
    fn take(&mut self, bytes: u64) -> u64 {
        let at = self.bytes;
        self.bytes = (at + bytes.max(1)).next_multiple_of(ALIGNMENT);
        at
    }
}

/// Bytes that a tensor takes, about.
pub(super) fn bytes_of<B: Backend>(tensor: &Tensor, prepared: &Prepared<B>) -> Sizes {
    let geometry = tensor.geometry;
    let stored: u64 = tensor.inputs.iter().map(|input| input.size() as u64).sum();
    let selecting = prepared.passes.iter().flat_map(|pass| &pass.selecting);
    let sought: u64 = selecting.map(|selecting| selecting.sweep.text.completes.len() as u64).sum();
    let space = B::space_of(geometry).iter().sum::<u64>() + 1024;
    Sizes {
        working: sought * space + geometry.chunks() * 64 + 8192,
        data: geometry.elements * (stored + tensor.output.size() as u64)
            + (tensor.inputs.len() as u64 + 1) * ALIGNMENT,
    }
}

impl<B: Backend> Layout<B> {
    pub(super) fn new(tensors: &[Tensor], prepared: &[Arc<Prepared<B>>]) -> Self {
        let mut space = Space::default();
        let mut groups: Vec<Group<B>> = Vec::new();
        for (at, kernels) in prepared.iter().enumerate() {
            let is_like = |group: &&mut Group<B>| group.prepared[0].signature == kernels.signature;
            match groups.iter_mut().find(is_like) {
                Some(group) => {
                    group.tensors.push(at);
                    group.prepared.push(Arc::clone(kernels));
                }
                None => groups.push(Group::of(at, kernels)),
            }
        }
        groups.iter_mut().for_each(|group| group.flags = space.take(4 * group.tensors.len() as u64));
        let flags = space.bytes;
        groups.iter_mut().for_each(|group| group.place_tables(tensors, &mut space));
        let tables = space.bytes;
        groups.iter_mut().for_each(|group| group.place_space(tensors, &mut space));
        let mut data = Space::default();
        let mut stored =
            |tensor: &Tensor, element: Element| data.take(tensor.geometry.elements * element.size() as u64);
        let inputs =
            tensors.iter().map(|tensor| tensor.inputs.iter().map(|&input| stored(tensor, input)).collect());
        let inputs = inputs.collect();
        let outputs = tensors.iter().map(|tensor| stored(tensor, tensor.output)).collect();
        let sizes = Sizes { working: space.bytes, data: data.bytes };
        Self { groups, inputs, outputs, tables, flags, sizes }
    }

    /// The bytes of the tables, for a memory.
    pub(super) fn image(&self, tensors: &[Tensor], memory: &B::Memory) -> Vec<u8> {
        let mut image = Image { bytes: vec![0; self.tables as usize] };
        for group in &self.groups {
            group.fill(self, tensors, memory, &mut image);
        }
        image.bytes
    }
}

impl<B: Backend> Group<B> {
    fn of(first: usize, prepared: &Arc<Prepared<B>>) -> Self {
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
        for pass in &self.prepared[0].passes {
            for selecting in &pass.selecting {
                let text = &selecting.sweep.text;
                let words = space.take(count * (text.completes.len() * B::SELECTION_WORDS * 8) as u64);
                self.sought.push(Working { words, space: Vec::new() });
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
                for _ in &selecting.sweep.text.completes {
                    sought.space.push(B::space_of(tensors[tensor].geometry).map(|bytes| space.take(bytes)));
                }
            }
        }
        for reducing in passes.iter().flat_map(|pass| &pass.reducing) {
            self.partials.push(space.take(end * 8 * reducing.text.completes.len() as u64));
        }
    }

    fn fill(&self, layout: &Layout<B>, tensors: &[Tensor], memory: &B::Memory, image: &mut Image) {
        let words = words_of(&tensors[self.tensors[0]].formula) as u64;
        let streams = self.streams as u64;
        for (at, &tensor) in (0u64..).zip(&self.tensors) {
            let Tensor { geometry, streams: keys, .. } = &tensors[tensor];
            let descriptor = self.descriptors + at * words * 8;
            let (cuts, own_keys) =
                (self.cuts + at * 16 * self.selections as u64, self.keys + at * 8 * streams);
            image.word(descriptor, geometry.elements);
            image.word(descriptor + 8, B::place_of_data(memory, layout.outputs[tensor]));
            for (word, place) in [(2, cuts), (3, own_keys)] {
                image.word(descriptor + 8 * word, B::place(memory, place));
            }
            for (input, &place) in (4..).zip(&layout.inputs[tensor]) {
                image.word(descriptor + 8 * input, B::place_of_data(memory, place));
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
}

impl Image {
    fn word(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_aligned_and_never_shared() {
        let mut space = Space::default();
        assert_eq!([0, 1, 256, 257, 3].map(|bytes| space.take(bytes)), [0, 256, 512, 768, 1280]);
        assert_eq!(space.bytes, 1536);
    }
}
