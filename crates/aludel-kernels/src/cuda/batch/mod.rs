//! Computes a batch of tensors that lie in the device's memory.
//!
//! In: tensors, then the bytes of their inputs, through lanes. Out: their outputs' bytes, and a [`Verdict`] for each tensor. Everything is
//! submitted to one stream and waited for once, and once more after every pass whose results values per tensor depend on:
//! these are joined and settled on the host, by the code that the CPU's executor uses.

mod layout;

use std::sync::Arc;

pub(in crate::cuda) use layout::bytes_of;
use layout::{Group, Layout, capacity, sampled};

use super::CudaError;
use super::device::{Arena, Compiled, Device, Prepared, Selecting};
use super::driver::Memory;
use super::emit::selections;
use super::source::{RESOLVERS, SAMPLING_BLOCKS, SELECTION_WORDS, Shapes, is_magnitude};
use crate::cpu::{Cut, Fold, Geometry, Values};
use crate::element::Element;
use crate::formula::{Formula, NodeId, Op};
use crate::random::StreamKey;

/// What is to be computed of one tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The formula, which [`obstacle`](super::obstacle) has nothing against.
    pub formula: Arc<Formula>,
    /// The shape of all its tensors; at least one element, and fewer than 2^32.
    pub geometry: Geometry,
    /// The key of each random stream.
    pub streams: Vec<StreamKey>,
    /// The storage types of the inputs.
    pub inputs: Vec<Element>,
    /// The storage type of the output.
    pub output: Element,
}

/// How a tensor came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its output is in the device's memory.
    Done,
    /// An input has a NaN or an infinity: left to the CPU.
    NonFinite,
    /// The output has a NaN: left to the CPU, whose NaN has other bits.
    NotANumber,
    /// A sample misled the selection: left to the CPU.
    Misled,
}

/// Tensors in a device's memory.
#[derive(Debug)]
pub struct Batch {
    device: Arc<Device>,
    tensors: Vec<Tensor>,
    layout: Layout,
    arena: Arena,
}

const NOWHERE: u64 = 0xffff_ffff;
const MAGNITUDE: u64 = 0x7fff_ffff;

impl Batch {
    /// Makes room for tensors, in the memory of an earlier batch where that is large enough.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`]; [`CudaError::Formula`] and [`CudaError::Compile`] of their kernels.
    pub fn new(device: &Arc<Device>, tensors: Vec<Tensor>, earlier: Option<Self>) -> Result<Self, CudaError> {
        Self::shaped(device, tensors, earlier, device.shapes())
    }

    pub(super) fn shaped(
        device: &Arc<Device>,
        tensors: Vec<Tensor>,
        earlier: Option<Self>,
        shapes: Shapes,
    ) -> Result<Self, CudaError> {
        let prepared = tensors.iter().map(|tensor| device.prepare(tensor, shapes));
        let prepared: Vec<Arc<Prepared>> = prepared.collect::<Result<_, _>>()?;
        let layout = Layout::new(&tensors, &prepared);
        let fits = |arena: &Arena| arena.memory.bytes() >= layout.bytes;
        // What is too small is given back before more is asked for.
        let arena = match earlier.map(|batch| batch.arena).filter(fits) {
            Some(arena) => arena,
            None => Arena::new(device, layout.bytes)?,
        };
        Ok(Self { device: Arc::clone(device), tensors, layout, arena })
    }

    /// Its tensors.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The place of bytes of an input.
    pub(super) fn input(&self, tensor: usize, input: usize, offset: u64, length: usize) -> (&Memory, u64) {
        let tensor_of = &self.tensors[tensor];
        let bytes = tensor_of.geometry.elements * tensor_of.inputs[input].size() as u64;
        (&self.arena.memory, place(self.layout.inputs[tensor][input], bytes, offset, length))
    }

    /// The place of bytes of an output.
    pub(super) fn output(&self, tensor: usize, offset: u64, length: usize) -> (&Memory, u64) {
        let tensor_of = &self.tensors[tensor];
        let bytes = tensor_of.geometry.elements * tensor_of.output.size() as u64;
        (&self.arena.memory, place(self.layout.outputs[tensor], bytes, offset, length))
    }

    /// Computes all tensors, whose inputs are in place.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn compute(&self) -> Result<Vec<Verdict>, CudaError> {
        self.begin()?;
        for group in &self.layout.groups {
            self.run(group)?;
        }
        self.verdicts()
    }

    /// Puts the tables into the device's memory.
    pub(super) fn begin(&self) -> Result<(), CudaError> {
        let Arena { memory, stream } = &self.arena;
        stream.send(&self.layout.image(&self.tensors, memory.address()), memory, 0)
    }

    /// Submits everything that a group takes.
    pub(super) fn run(&self, group: &Group) -> Result<(), CudaError> {
        let mut values: Vec<Values> =
            self.of(group).map(|tensor| Values::new(&tensor.formula, tensor.geometry)).collect();
        let (mut kernel, mut selecting, mut reducing) = (0, 0, 0);
        for pass in 0..group.prepared[0].passes.len() {
            let kernels = &group.prepared[0].passes[pass];
            let first_reducing = reducing;
            for (at, of_pass) in kernels.selecting.iter().enumerate() {
                let nodes = |tensor: usize| &group.prepared[tensor].passes[pass].selecting[at].sweep;
                let run = Select { kernels: of_pass, number: selecting, scalars: group.scalars[kernel] };
                self.select(group, &run, &nodes, &mut values)?;
                (kernel, selecting) = (kernel + 1, selecting + 1);
            }
            for (at, of_pass) in kernels.reducing.iter().enumerate() {
                let nodes = |tensor: usize| &group.prepared[tensor].passes[pass].reducing[at];
                self.bind(group, group.scalars[kernel], &nodes, &values)?;
                let arguments = [
                    group.descriptors,
                    group.blocks,
                    group.scalars[kernel],
                    group.partials[reducing],
                    group.flags,
                ];
                let blocks = group.chunks.last().copied().unwrap_or_default();
                self.launch(of_pass, blocks, &arguments)?;
                (kernel, reducing) = (kernel + 1, reducing + 1);
            }
            self.settle(group, pass, first_reducing, &mut values)?;
        }
        let nodes = |tensor: usize| &group.prepared[tensor].writing;
        self.bind(group, group.scalars[kernel], &nodes, &values)?;
        self.write(group)
    }

    /// Submits the kernel that writes; everything that it needs is known.
    pub(super) fn write(&self, group: &Group) -> Result<(), CudaError> {
        let writing = &group.prepared[0].writing;
        let blocks = group.chunks.last().copied().unwrap_or_default() * u64::from(writing.text.parts);
        let scalars = group.scalars.last().copied().unwrap_or_default();
        self.launch(writing, blocks, &[group.descriptors, group.blocks, scalars, group.flags])
    }

    /// Submits what finds thresholds and last ties.
    fn select<'a>(
        &self,
        group: &'a Group,
        run: &Select<'_>,
        nodes: &impl Fn(usize) -> &'a Compiled,
        values: &mut [Values],
    ) -> Result<(), CudaError> {
        let sought = &group.sought[run.number];
        let each = run.kernels.sweep.text.completes.len();
        let mut words = Vec::with_capacity(group.tensors.len() * each * SELECTION_WORDS * 8);
        let mut is_sampled = false;
        for (at, tensor) in self.of(group).enumerate() {
            for (slot, &node) in nodes(at).text.completes.iter().enumerate() {
                let space = sought.space[at * each + slot];
                let count = self.sought(group, at, tensor, node, &mut values[at])?;
                is_sampled |= count > 0 && sampled(tensor.geometry.elements) > 0;
                let words_of = self.selection_words(group, at, tensor, node, count, space);
                words.extend(words_of.iter().flat_map(|word| word.to_le_bytes()));
            }
        }
        let Arena { memory, stream } = &self.arena;
        stream.send(&words, memory, sought.words)?;
        self.bind(group, run.scalars, nodes, values)?;
        let (count, chunks) = (group.tensors.len() as u64, group.chunks.last().copied().unwrap_or_default());
        let device = &self.device;
        let addresses = |offsets: &[u64]| offsets.iter().map(|at| memory.address() + at).collect::<Vec<_>>();
        let threads = run.kernels.sweep.text.threads;
        let of_tensors = addresses(&[group.descriptors, run.scalars, sought.words]);
        if is_sampled {
            stream.launch(&run.kernels.sample, count * SAMPLING_BLOCKS, threads, &of_tensors)?;
            stream.launch(&device.bracket, count * each as u64, RESOLVERS, &addresses(&[sought.words]))?;
        }
        let sweep = [group.descriptors, group.blocks, run.scalars, sought.words, group.flags];
        self.launch(&run.kernels.sweep, chunks, &sweep)?;
        stream.launch(&device.resolve, count * each as u64, RESOLVERS, &addresses(&[sought.words]))?;
        stream.launch(&run.kernels.locate, count * each as u64, threads, &of_tensors)
    }

    /// How many magnitudes are sought; 0 where the count alone says what is kept, which is then known.
    fn sought(
        &self,
        group: &Group,
        at: usize,
        tensor: &Tensor,
        node: NodeId,
        values: &mut Values,
    ) -> Result<u64, CudaError> {
        let (Op::Top(_, count) | Op::Kth(_, count)) = tensor.formula.op(node) else { return Ok(0) };
        let count = values.wide(count).first().map_or(0, |&count| count as u64);
        let elements = tensor.geometry.elements;
        match Cut::trivial(count, elements) {
            None => Ok(count),
            // The least magnitude is not known without a look; anything keeps all.
            Some(_) if is_magnitude(&tensor.formula, node) && count == elements => Ok(count),
            Some(_) if is_magnitude(&tensor.formula, node) => {
                values.reduced(node, vec![if count == 0 { f64::INFINITY } else { 0.0 }]);
                Ok(0)
            }
            Some(cut) => {
                let ties_end = cut.last.map_or(0, |last| last + 1);
                let bytes = [u64::from(cut.threshold), ties_end].map(u64::to_le_bytes).concat();
                let at = cut_at(group, at, &tensor.formula, node);
                self.arena.stream.send(&bytes, &self.arena.memory, at)?;
                Ok(0)
            }
        }
    }

    fn selection_words(
        &self,
        group: &Group,
        at: usize,
        tensor: &Tensor,
        node: NodeId,
        count: u64,
        [sample, keys, ties]: [u64; 3],
    ) -> [u64; SELECTION_WORDS] {
        let base = self.arena.memory.address();
        let elements = tensor.geometry.elements;
        // Nothing lies in the bracket of a selection that is known; without a sample everything does.
        let (bracket, sampled) = match (count, sampled(elements)) {
            // Sampled along with the others of its tensor, and not looked at.
            (0, sampled) => (NOWHERE << 32 | NOWHERE, sampled),
            (_, 0) => (MAGNITUDE << 32, 0),
            (_, sampled) => (0, sampled),
        };
        let counted = NOWHERE << 32 | NOWHERE;
        [
            count,
            elements,
            base + sample,
            sampled,
            base + keys,
            capacity(elements),
            base + ties,
            tensor.geometry.chunks(),
            base + cut_at(group, at, &tensor.formula, node),
            base + group.flags + 4 * at as u64,
            0,
            0,
            bracket,
            counted,
            NOWHERE,
            0,
        ]
    }

    /// Waits for a pass whose results values per tensor depend on, and settles those.
    fn settle(
        &self,
        group: &Group,
        pass: usize,
        first_reducing: usize,
        values: &mut [Values],
    ) -> Result<(), CudaError> {
        let kernels = &group.prepared[0].passes[pass];
        let magnitudes = self.magnitudes(group, pass);
        if kernels.reducing.is_empty() && magnitudes.is_empty() {
            return Ok(());
        }
        let Arena { memory, stream } = &self.arena;
        for (number, reducing) in (first_reducing..).zip(&kernels.reducing) {
            let each = reducing.text.completes.len();
            let chunks = group.chunks.last().copied().unwrap_or_default() as usize;
            let mut bytes = vec![0; chunks * each * 8];
            stream.download(memory, group.partials[number], &mut bytes)?;
            let partials: Vec<f64> = bytes.as_chunks().0.iter().map(|&raw| f64::from_le_bytes(raw)).collect();
            for (at, values) in values.iter_mut().enumerate() {
                let text = &group.prepared[at].passes[pass].reducing[number - first_reducing].text;
                let rows = group.chunks[at] as usize * each..group.chunks[at + 1] as usize * each;
                for (slot, (&node, &fold)) in text.completes.iter().zip(&text.folds).enumerate() {
                    let parts = partials[rows.clone()].iter().skip(slot).step_by(each);
                    values.reduced(node, vec![joined(fold, parts)]);
                }
            }
        }
        if !magnitudes.is_empty() {
            let mut bytes = vec![0; group.tensors.len() * group.selections * 16];
            stream.download(memory, group.cuts, &mut bytes)?;
            for (at, node) in magnitudes {
                let tensor = &self.tensors[group.tensors[at]];
                if !values[at].wide(node).is_empty() {
                    continue; // The count alone said it.
                }
                let from = (cut_at(group, at, &tensor.formula, node) - group.cuts) as usize;
                let raw = bytes[from..].first_chunk().copied().unwrap_or_default();
                values[at].reduced(node, vec![f64::from(f32::from_bits(u32::from_le_bytes(raw)))]);
            }
        }
        for (tensor, values) in self.of(group).zip(values) {
            values.settle(&tensor.formula, tensor.geometry);
        }
        Ok(())
    }

    /// The selections of a pass that are values per tensor: each with its tensor's position in the group.
    fn magnitudes(&self, group: &Group, pass: usize) -> Vec<(usize, NodeId)> {
        let tensors = group.tensors.iter().zip(&group.prepared).enumerate();
        let of_tensor = tensors.flat_map(|(at, (&tensor, prepared))| {
            let formula = &self.tensors[tensor].formula;
            let nodes = prepared.passes[pass].selecting.iter().flat_map(|s| &s.sweep.text.completes);
            nodes.filter(|&&node| is_magnitude(formula, node)).map(move |&node| (at, node))
        });
        of_tensor.collect()
    }

    /// Puts the values per tensor of a kernel in place.
    fn bind<'a>(
        &self,
        group: &Group,
        at: u64,
        nodes: &impl Fn(usize) -> &'a Compiled,
        values: &[Values],
    ) -> Result<(), CudaError> {
        let scalars = values.iter().enumerate().flat_map(|(tensor, values)| {
            let nodes = nodes(tensor).text.scalars.iter();
            nodes.map(|&node| values.wide(node).first().map_or(0.0, |&value| value as f32))
        });
        let bytes: Vec<u8> = scalars.flat_map(f32::to_le_bytes).collect();
        debug_assert_eq!(values.len(), group.tensors.len());
        self.arena.stream.send(&bytes, &self.arena.memory, at)
    }

    fn launch(&self, kernel: &Compiled, blocks: u64, offsets: &[u64]) -> Result<(), CudaError> {
        let Arena { memory, stream } = &self.arena;
        let addresses: Vec<u64> = offsets.iter().map(|at| memory.address() + at).collect();
        stream.launch(&kernel.kernel, blocks, kernel.text.threads, &addresses)
    }

    fn verdicts(&self) -> Result<Vec<Verdict>, CudaError> {
        let Arena { memory, stream } = &self.arena;
        let mut verdicts = vec![Verdict::Done; self.tensors.len()];
        for group in &self.layout.groups {
            let mut flags = vec![0; group.tensors.len() * 4];
            stream.download(memory, group.flags, &mut flags)?;
            for (&tensor, &flags) in group.tensors.iter().zip(flags.as_chunks().0) {
                verdicts[tensor] = match u32::from_le_bytes(flags) {
                    0 => Verdict::Done,
                    flags if flags & 1 != 0 => Verdict::NonFinite,
                    flags if flags & 4 != 0 => Verdict::Misled,
                    _ => Verdict::NotANumber,
                };
            }
        }
        Ok(verdicts)
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.layout.groups
    }

    pub(super) const fn arena(&self) -> &Arena {
        &self.arena
    }

    fn of<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Tensor> {
        group.tensors.iter().map(|&tensor| &self.tensors[tensor])
    }
}

/// A kernel that selects, by its number among those of its group.
struct Select<'a> {
    kernels: &'a Selecting,
    number: usize,
    scalars: u64,
}

/// The place of a cut.
fn cut_at(group: &Group, at: usize, formula: &Formula, node: NodeId) -> u64 {
    let slot = selections(formula).iter().position(|&known| known == node).unwrap_or_default();
    group.cuts + 16 * (at * group.selections + slot) as u64
}

/// Joins partial results in the order of their chunks.
fn joined<'a>(fold: Fold, partials: impl Iterator<Item = &'a f64>) -> f64 {
    partials.fold(fold.start(), |joined, &partial| fold.join(joined, partial))
}

fn place(start: u64, bytes: u64, offset: u64, length: usize) -> u64 {
    let end = offset.checked_add(length as u64);
    assert!(end.is_some_and(|end| end <= bytes), "{length} bytes at {offset} of {bytes}");
    start + offset
}
