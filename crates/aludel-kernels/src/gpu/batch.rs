//! Computes a batch of tensors that lie in a device's memory.
//!
//! In: tensors, then the bytes of their inputs, through lanes. Out: their outputs' bytes, and a [`Verdict`] for each tensor. Everything is
//! submitted in one order and waited for once, and once more after every pass whose results values per tensor depend on:
//! these are joined and settled on the host, by the code that the CPU's executor uses.

use std::sync::Arc;

use super::emit::selections;
use super::layout::{Group, Layout, bytes_of};
use super::prepared::{Compiled, Prepared, Selecting};
use super::texts::is_magnitude;
use super::{Backend, Selections, ShapesOf, Sizes, Sought};
use crate::cpu::{Cut, Fold, Geometry, Statistic, Values};
use crate::element::Element;
use crate::formula::{Formula, NodeId, Op};
use crate::random::StreamKey;

/// What is to be computed of one tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The formula, which [`Backend::obstacle`] has nothing against.
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
    /// A number on the way was beyond those that all devices compute alike: left to the CPU.
    OutOfRange,
}

/// What reductions have come to, by the operations of a tensor's formula.
pub type Statistics = Vec<(NodeId, Statistic)>;

/// Tensors in a device's memory.
#[derive(Debug)]
pub struct Batch<B: Backend> {
    device: Arc<B>,
    tensors: Vec<Tensor>,
    layout: Layout<B>,
    memory: B::Memory,
}

impl<B: Backend> Batch<B> {
    /// Makes room for tensors, in the memory of an earlier batch where that is large enough.
    ///
    /// # Errors
    /// Where there is not so much memory, or a kernel does not compile.
    pub fn new(device: &Arc<B>, tensors: Vec<Tensor>, earlier: Option<Self>) -> Result<Self, B::Error> {
        Self::shaped(device, tensors, earlier, device.shapes())
    }

    /// The same tensors by other formulas: their inputs stay where they are.
    ///
    /// # Errors
    /// As [`Batch::new`].
    ///
    /// # Panics
    /// Where the tensors are others: in their shapes, or the types of their inputs and outputs.
    pub fn again(self, tensors: Vec<Tensor>) -> Result<Self, B::Error> {
        let stored = |tensor: &Tensor| (tensor.geometry.elements, tensor.inputs.clone(), tensor.output);
        assert!(tensors.iter().map(stored).eq(self.tensors.iter().map(stored)), "other tensors");
        let device = Arc::clone(&self.device);
        let shapes = device.shapes();
        Self::shaped(&device, tensors, Some(self), shapes)
    }

    pub(crate) fn shaped(
        device: &Arc<B>,
        tensors: Vec<Tensor>,
        earlier: Option<Self>,
        shapes: ShapesOf<B>,
    ) -> Result<Self, B::Error> {
        let prepared = tensors.iter().map(|tensor| device.preparations().of(device, tensor, shapes));
        let prepared: Vec<Arc<Prepared<B>>> = prepared.collect::<Result<_, _>>()?;
        let layout = Layout::new(&tensors, &prepared);
        let memory = device.memory(layout.sizes, earlier.map(|batch| batch.memory))?;
        Ok(Self { device: Arc::clone(device), tensors, layout, memory })
    }

    /// Bytes of a device's memory that a tensor takes in a batch, about; compiles its kernels.
    ///
    /// # Errors
    /// Where it is not computed there, or a kernel does not compile.
    pub fn bytes_of(device: &B, tensor: &Tensor) -> Result<Sizes, B::Error> {
        let prepared = device.preparations().of(device, tensor, device.shapes())?;
        Ok(bytes_of(tensor, &prepared))
    }

    /// Its tensors.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Copies bytes of an input to the device: `length` bytes, `offset` from its first, which `fill` puts into place.
    ///
    /// # Errors
    /// Where the device fails.
    ///
    /// # Panics
    /// Where there are more bytes than the lane has room for, or than the input has.
    pub fn upload(
        &self,
        lane: &mut B::Lane,
        (tensor, input): (usize, usize),
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), B::Error> {
        let tensor_of = &self.tensors[tensor];
        let bytes = tensor_of.geometry.elements * tensor_of.inputs[input].size() as u64;
        let place = within(self.layout.inputs[tensor][input], bytes, offset, length);
        B::upload(lane, &self.memory, place, length, fill)
    }

    /// Has `take` see bytes of an output, `length` of them, `offset` from its first.
    ///
    /// # Errors
    /// Where the device fails.
    ///
    /// # Panics
    /// Where there are more bytes than the lane has room for, or than the output has.
    pub fn download<T>(
        &self,
        lane: &mut B::Lane,
        tensor: usize,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, B::Error> {
        let tensor_of = &self.tensors[tensor];
        let bytes = tensor_of.geometry.elements * tensor_of.output.size() as u64;
        let place = within(self.layout.outputs[tensor], bytes, offset, length);
        B::download(lane, &self.memory, place, length, take)
    }

    /// Computes all tensors, whose inputs are in place.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn compute(&self) -> Result<Vec<Verdict>, B::Error> {
        self.computed(&[], |_, _| Ok(()))
    }

    /// As [`Batch::compute`], of tensors whose inputs are as they were when these reductions over them were found, each tensor's own, or none; with
    /// what reductions have come to now. What is known takes no sweep.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn compute_knowing(&self, known: &[Statistics]) -> Result<(Vec<Verdict>, Vec<Statistics>), B::Error> {
        let mut found = vec![Vec::new(); self.tensors.len()];
        let verdicts = self.computed(known, |group, values| {
            self.take_cuts(group, values)?;
            for (&tensor, values) in group.tensors.iter().zip(values) {
                let formula = &self.tensors[tensor].formula;
                let reductions = formula.ids().filter(|&node| formula.op(node).is_reduction());
                found[tensor] = reductions.filter_map(|node| Some((node, values.statistic(node)?))).collect();
            }
            Ok(())
        })?;
        Ok((verdicts, found))
    }

    fn computed(
        &self,
        known: &[Statistics],
        mut look: impl FnMut(&Group<B>, &mut [Values]) -> Result<(), B::Error>,
    ) -> Result<Vec<Verdict>, B::Error> {
        self.device.filled(&self.memory)?;
        self.begin()?;
        for group in &self.layout.groups {
            let mut values = self.values(group, known);
            self.run(group, &mut values)?;
            look(group, &mut values)?;
        }
        let verdicts = self.verdicts()?;
        self.device.computed(&self.memory)?;
        Ok(verdicts)
    }

    /// What is known of the tensors of a group before anything is computed.
    pub(crate) fn values(&self, group: &Group<B>, known: &[Statistics]) -> Vec<Values> {
        let of_tensor = |&tensor: &usize| {
            let of = &self.tensors[tensor];
            let mut values = Values::new(&of.formula, of.geometry);
            for (node, statistic) in known.get(tensor).into_iter().flatten() {
                values.take(*node, statistic.clone());
            }
            values.settle(&of.formula, of.geometry);
            values
        };
        group.tensors.iter().map(of_tensor).collect()
    }

    /// Where elements of an output lie among inputs and outputs.
    ///
    /// # Panics
    /// Where the output has no such elements.
    pub(crate) fn place_of_output(&self, tensor: usize, elements: std::ops::Range<u64>) -> u64 {
        let Tensor { geometry, output, .. } = &self.tensors[tensor];
        let size = output.size() as u64;
        let length = (elements.end - elements.start) * size;
        within(self.layout.outputs[tensor], geometry.elements * size, elements.start * size, length as usize)
    }

    /// Puts the tables into the device's memory.
    pub(crate) fn begin(&self) -> Result<(), B::Error> {
        self.device.send(&self.memory, 0, &self.layout.image(&self.tensors, &self.memory))
    }

    /// Submits everything that a group takes.
    pub(crate) fn run(&self, group: &Group<B>, values: &mut [Values]) -> Result<(), B::Error> {
        self.send_known(group, values)?;
        let (mut kernel, mut selecting, mut reducing) = (0, 0, 0);
        for pass in 0..group.prepared[0].passes.len() {
            let kernels = &group.prepared[0].passes[pass];
            let first_reducing = reducing;
            for (at, of_pass) in kernels.selecting.iter().enumerate() {
                let nodes = |tensor: usize| &group.prepared[tensor].passes[pass].selecting[at].sweep;
                let run = Select { kernels: of_pass, number: selecting, scalars: group.scalars[kernel] };
                self.select(group, &run, &nodes, values)?;
                (kernel, selecting) = (kernel + 1, selecting + 1);
            }
            for (at, of_pass) in kernels.reducing.iter().enumerate() {
                let nodes = |tensor: usize| &group.prepared[tensor].passes[pass].reducing[at];
                if are_known(&nodes, values) {
                    (kernel, reducing) = (kernel + 1, reducing + 1);
                    continue;
                }
                self.bind(group, group.scalars[kernel], &nodes, values)?;
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
            self.settle(group, pass, first_reducing, values)?;
        }
        let nodes = |tensor: usize| &group.prepared[tensor].writing;
        self.bind(group, group.scalars[kernel], &nodes, values)?;
        self.write(group)
    }

    /// Submits the kernel that writes; everything that it needs is known.
    pub(crate) fn write(&self, group: &Group<B>) -> Result<(), B::Error> {
        let writing = &group.prepared[0].writing;
        let blocks = group.chunks.last().copied().unwrap_or_default() * u64::from(writing.text.parts);
        let scalars = group.scalars.last().copied().unwrap_or_default();
        self.launch(writing, blocks, &[group.descriptors, group.blocks, scalars, group.flags])
    }

    /// Submits what finds thresholds and last ties.
    fn select<'a>(
        &self,
        group: &'a Group<B>,
        run: &Select<'_, B>,
        nodes: &impl Fn(usize) -> &'a Compiled<B>,
        values: &mut [Values],
    ) -> Result<(), B::Error> {
        let working = &group.sought[run.number];
        let each = run.kernels.sweep.text.completes.len();
        let mut words = Vec::with_capacity(group.tensors.len() * each * B::SELECTION_WORDS * 8);
        let mut largest = 0;
        let are_known = are_known(nodes, values);
        for (at, tensor) in self.of(group).enumerate() {
            for (slot, &node) in nodes(at).text.completes.iter().enumerate() {
                let count = self.sought(group, at, tensor, node, &mut values[at])?;
                if count > 0 {
                    largest = largest.max(tensor.geometry.elements);
                }
                let place = |offset| B::place(&self.memory, offset);
                let words_of = B::words_of(&Sought {
                    count,
                    geometry: tensor.geometry,
                    space: working.space[at * each + slot].map(place),
                    cut: place(cut_at(group, at, &tensor.formula, node)),
                    flag: place(group.flags + 4 * at as u64),
                });
                words.extend(words_of.iter().flat_map(|word| word.to_le_bytes()));
            }
        }
        if are_known {
            return Ok(());
        }
        self.device.send(&self.memory, working.words, &words)?;
        self.bind(group, run.scalars, nodes, values)?;
        let place = |offset| B::place(&self.memory, offset);
        let selections = Selections {
            descriptors: place(group.descriptors),
            blocks: place(group.blocks),
            scalars: place(run.scalars),
            words: place(working.words),
            flags: place(group.flags),
            tensors: group.tensors.len() as u64,
            chunks: group.chunks.last().copied().unwrap_or_default(),
            largest,
        };
        self.device.select(&self.memory, run.kernels, &selections)
    }

    /// How many magnitudes are sought; 0 where the count alone says what is kept, which is then known.
    fn sought(
        &self,
        group: &Group<B>,
        at: usize,
        tensor: &Tensor,
        node: NodeId,
        values: &mut Values,
    ) -> Result<u64, B::Error> {
        let (Op::Top(_, count) | Op::Kth(_, count)) = tensor.formula.op(node) else { return Ok(0) };
        if values.is_known(node) {
            return Ok(0);
        }
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
                let at = cut_at(group, at, &tensor.formula, node);
                self.device.send(&self.memory, at, &bytes_of_cut(cut))?;
                Ok(0)
            }
        }
    }

    /// Puts the cuts that are known in their places, all at once: a call for each takes longer than a sweep.
    fn send_known(&self, group: &Group<B>, values: &[Values]) -> Result<(), B::Error> {
        let mut image = vec![0; group.tensors.len() * group.selections * 16];
        let mut is_any = false;
        for (at, (tensor, values)) in self.of(group).zip(values).enumerate() {
            for node in selections(&tensor.formula) {
                let Some(cut) = values.cut(node) else { continue };
                let from = (cut_at(group, at, &tensor.formula, node) - group.cuts) as usize;
                image[from..from + 16].copy_from_slice(&bytes_of_cut(cut));
                is_any = true;
            }
        }
        if is_any { self.device.send(&self.memory, group.cuts, &image) } else { Ok(()) }
    }

    /// Makes known what the device has selected.
    fn take_cuts(&self, group: &Group<B>, values: &mut [Values]) -> Result<(), B::Error> {
        if group.selections == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; group.tensors.len() * group.selections * 16];
        self.device.receive(&self.memory, group.cuts, &mut bytes)?;
        let words: &[[u8; 8]] = bytes.as_chunks().0;
        for (at, (tensor, values)) in self.of(group).zip(values).enumerate() {
            for node in selections(&tensor.formula) {
                if values.is_known(node) {
                    continue;
                }
                let from = (cut_at(group, at, &tensor.formula, node) - group.cuts) as usize / 8;
                let [threshold, ties_end] = [words[from], words[from + 1]].map(u64::from_le_bytes);
                values.selected(node, Cut { threshold: threshold as u32, last: ties_end.checked_sub(1) });
            }
        }
        Ok(())
    }

    /// Waits for a pass whose results values per tensor depend on, and settles those.
    fn settle(
        &self,
        group: &Group<B>,
        pass: usize,
        first_reducing: usize,
        values: &mut [Values],
    ) -> Result<(), B::Error> {
        let kernels = &group.prepared[0].passes[pass];
        let magnitudes = self.magnitudes(group, pass);
        if kernels.reducing.is_empty() && magnitudes.is_empty() {
            return Ok(());
        }
        for (number, reducing) in (first_reducing..).zip(&kernels.reducing) {
            let at = number - first_reducing;
            if are_known(&|tensor: usize| &group.prepared[tensor].passes[pass].reducing[at], values) {
                continue;
            }
            let each = reducing.text.completes.len();
            let chunks = group.chunks.last().copied().unwrap_or_default() as usize;
            let mut bytes = vec![0; chunks * each * 8];
            self.device.receive(&self.memory, group.partials[number], &mut bytes)?;
            let partials: Vec<f64> = bytes.as_chunks().0.iter().map(|&raw| f64::from_le_bytes(raw)).collect();
            for (at, values) in values.iter_mut().enumerate() {
                let text = &group.prepared[at].passes[pass].reducing[number - first_reducing].text;
                let rows = group.chunks[at] as usize * each..group.chunks[at + 1] as usize * each;
                for (slot, (&node, &fold)) in text.completes.iter().zip(&text.folds).enumerate() {
                    if values.is_known(node) {
                        continue;
                    }
                    let parts = partials[rows.clone()].iter().skip(slot).step_by(each);
                    values.reduced(node, vec![joined(fold, parts)]);
                }
            }
        }
        let is_sought = |&(at, node): &(usize, NodeId)| !values[at].is_known(node);
        if magnitudes.iter().any(is_sought) {
            let mut bytes = vec![0; group.tensors.len() * group.selections * 16];
            self.device.receive(&self.memory, group.cuts, &mut bytes)?;
            for (at, node) in magnitudes {
                let tensor = &self.tensors[group.tensors[at]];
                if values[at].is_known(node) {
                    continue; // The count alone said it, or an earlier computation.
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
    fn magnitudes(&self, group: &Group<B>, pass: usize) -> Vec<(usize, NodeId)> {
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
        group: &Group<B>,
        at: u64,
        nodes: &impl Fn(usize) -> &'a Compiled<B>,
        values: &[Values],
    ) -> Result<(), B::Error> {
        let scalars = values.iter().enumerate().flat_map(|(tensor, values)| {
            let nodes = nodes(tensor).text.scalars.iter();
            nodes.map(|&node| values.wide(node).first().map_or(0.0, |&value| value as f32))
        });
        let bytes: Vec<u8> = scalars.flat_map(f32::to_le_bytes).collect();
        debug_assert_eq!(values.len(), group.tensors.len());
        self.device.send(&self.memory, at, &bytes)
    }

    fn launch(&self, kernel: &Compiled<B>, blocks: u64, offsets: &[u64]) -> Result<(), B::Error> {
        let places: Vec<u64> = offsets.iter().map(|&at| B::place(&self.memory, at)).collect();
        self.device.launch(&self.memory, &kernel.kernel, kernel.text.threads, blocks, &places)
    }

    fn verdicts(&self) -> Result<Vec<Verdict>, B::Error> {
        let mut verdicts = vec![Verdict::Done; self.tensors.len()];
        let mut flags = vec![0; self.layout.flags as usize];
        self.device.receive(&self.memory, 0, &mut flags)?;
        for group in &self.layout.groups {
            let of_group = flags[group.flags as usize..].as_chunks().0;
            for (&tensor, &flags) in group.tensors.iter().zip(of_group) {
                verdicts[tensor] = match u32::from_le_bytes(flags) {
                    0 => Verdict::Done,
                    flags if flags & 1 != 0 => Verdict::NonFinite,
                    flags if flags & 4 != 0 => Verdict::Misled,
                    flags if flags & 8 != 0 => Verdict::OutOfRange,
                    _ => Verdict::NotANumber,
                };
            }
        }
        Ok(verdicts)
    }

    pub(crate) fn groups(&self) -> &[Group<B>] {
        &self.layout.groups
    }

    pub(crate) const fn memory(&self) -> &B::Memory {
        &self.memory
    }

    fn of<'a>(&'a self, group: &'a Group<B>) -> impl Iterator<Item = &'a Tensor> {
        group.tensors.iter().map(|&tensor| &self.tensors[tensor])
    }
}

/// Whether all that a kernel completes is known, of every tensor of its group.
fn are_known<'a, B: Backend>(nodes: &impl Fn(usize) -> &'a Compiled<B>, values: &[Values]) -> bool {
    let is_known = |(at, values): (usize, &Values)| {
        let completes = &nodes(at).text.completes;
        completes.iter().all(|&node| values.is_known(node))
    };
    values.iter().enumerate().all(is_known)
}

/// A kernel that selects, by its number among those of its group.
struct Select<'a, B: Backend> {
    kernels: &'a Selecting<B>,
    number: usize,
    scalars: u64,
}

/// The place of a cut.
fn cut_at<B: Backend>(group: &Group<B>, at: usize, formula: &Formula, node: NodeId) -> u64 {
    let slot = selections(formula).iter().position(|&known| known == node).unwrap_or_default();
    group.cuts + 16 * (at * group.selections + slot) as u64
}

/// A cut as kernels have it.
fn bytes_of_cut(cut: Cut) -> Vec<u8> {
    let ties_end = cut.last.map_or(0, |last| last + 1);
    [u64::from(cut.threshold), ties_end].map(u64::to_le_bytes).concat()
}

/// Joins partial results in the order of their chunks.
fn joined<'a>(fold: Fold, partials: impl Iterator<Item = &'a f64>) -> f64 {
    partials.fold(fold.start(), |joined, &partial| fold.join(joined, partial))
}

fn within(start: u64, bytes: u64, offset: u64, length: usize) -> u64 {
    let end = offset.checked_add(length as u64);
    assert!(end.is_some_and(|end| end <= bytes), "{length} bytes at {offset} of {bytes}");
    start + offset
}
