//! Runs the units of one wave: independent pieces of work that may be done in any order and by any thread.
//!
//! In: a compiled program with everything known bound to it, and a unit's index. Out: partial reductions kept in the
//! wave, or the encoded elements of one tile of the output.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::block::{BLOCK, CHUNK, Geometry, NonFinite, RUN, Segment, Source, rows_of};
use super::codec;
use super::dispatch::{self, Level};
use super::lanes::{self, Lanes};
use super::program::{Instruction, Operand, Program};
use super::rank::{Bracket, Cut, LocalHistogram, Ranking, Tally, magnitude};
use super::reduce::{Accumulator, Fold, Partial};
use super::values::{Values, spread};
use crate::element::Element;
use crate::formula::{Formula, NodeId, Op};
use crate::random::{StreamKey, fill_uniform};

/// Elements up to which a selection takes all magnitudes as its sample, and so is exact without a pass.
pub(super) const SMALL: u64 = 2 * CHUNK;

/// Elements sampled from a larger tensor.
const SAMPLE: u64 = 65_536;

/// Blocks of samples after which their pages are given back.
const SAMPLED_AT_ONCE: usize = 2;

/// What the units of a wave do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaveKind {
    /// One unit: samples magnitudes to bracket thresholds.
    Sample,
    /// A sweep over all elements that completes reductions.
    Reduce,
    /// One unit: finds the last element kept among equal magnitudes.
    Locate,
    /// A sweep over all elements that writes the output.
    Write,
}

/// One piece of a wave's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The elements that it covers. For a unit that writes, those of its output.
    pub elements: Range<u64>,
}

/// A wave of a formula's evaluation.
#[derive(Debug)]
pub struct Wave {
    pub(super) kind: WaveKind,
    pub(super) program: Program,
    pub(super) geometry: Geometry,
    pub(super) tile: u64,
    pub(super) level: Level,
    pub(super) output: Element,
    /// Inputs whose elements are checked to be finite.
    pub(super) checked: Vec<u16>,
    scalars: Vec<f32>,
    rows: Vec<Vec<f64>>,
    cuts: Vec<Cut>,
    streams: Vec<StreamKey>,
    folds: Vec<Fold>,
    pub(super) rankings: Vec<Ranking>,
    /// For a wave that locates: which chunk each selection is sought in.
    pub(super) located: Vec<u64>,
    partials: Mutex<BTreeMap<u64, Vec<Partial>>>,
    /// For a wave that samples or locates: the magnitudes met, for each selection.
    magnitudes: Mutex<Vec<Vec<u32>>>,
}

/// What a wave is made of.
pub(super) struct Parts<'a> {
    pub kind: WaveKind,
    pub formula: &'a Formula,
    pub program: Program,
    pub values: &'a Values,
    pub geometry: Geometry,
    pub tile: u64,
    pub level: Level,
    pub output: Element,
    pub streams: &'a [StreamKey],
    pub checked: Vec<u16>,
    pub rankings: Vec<Ranking>,
    pub located: Vec<u64>,
}

/// The memory that a thread computes in; reused from unit to unit.
#[derive(Debug, Default)]
pub struct Scratch {
    registers: Vec<Box<[f32]>>,
    inside: Vec<Vec<u32>>,
    tallies: Vec<Tally>,
    local: LocalHistogram,
}

impl Scratch {
    /// Bytes that a formula of `registers` registers takes in a thread's scratch memory.
    pub const fn bytes(registers: usize) -> u64 {
        (registers * BLOCK * size_of::<f32>()) as u64
    }
}

impl Wave {
    pub(super) fn new(parts: Parts<'_>) -> Self {
        let Parts { program, values, formula, .. } = parts;
        let scalars = program.scalars.iter().map(|&node| values.wide(node)[0] as f32).collect();
        let rows = program.rows.iter().map(|&node| values.wide(node).to_vec()).collect();
        let cuts = program.cuts.iter().filter_map(|&node| values.cut(node)).collect();
        let fold = |&(node, _): &(NodeId, _)| match formula.op(node) {
            Op::Largest(..) => Fold::Largest,
            _ => Fold::Sum,
        };
        let folds = program.reductions.iter().map(fold).collect();
        let magnitudes = Mutex::new(vec![Vec::new(); program.ranks.len()]);
        Self {
            kind: parts.kind,
            geometry: parts.geometry,
            tile: parts.tile,
            level: parts.level,
            output: parts.output,
            checked: parts.checked,
            scalars,
            rows,
            cuts,
            streams: parts.streams.to_vec(),
            folds,
            rankings: parts.rankings,
            located: parts.located,
            partials: Mutex::default(),
            magnitudes,
            program,
        }
    }

    /// What the units do.
    pub const fn kind(&self) -> WaveKind {
        self.kind
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        match self.kind {
            WaveKind::Sample | WaveKind::Locate => 1,
            WaveKind::Reduce | WaveKind::Write => self.geometry.elements.div_ceil(self.tile) as usize,
        }
    }

    /// Whether a sample of this tensor is the whole of it.
    pub const fn samples_all(&self) -> bool {
        self.geometry.elements <= SMALL
    }

    /// The inputs that the units read.
    pub fn reads(&self) -> &[u16] {
        &self.program.inputs
    }

    /// A unit by its index.
    pub fn unit(&self, index: usize) -> Unit {
        let all = 0..self.geometry.elements;
        match self.kind {
            WaveKind::Sample | WaveKind::Locate => Unit { elements: all },
            WaveKind::Reduce | WaveKind::Write => {
                let start = index as u64 * self.tile;
                Unit { elements: start..all.end.min(start + self.tile) }
            }
        }
    }

    /// Runs a unit. `out` is the unit's encoded output in a wave that writes, and empty otherwise.
    ///
    /// # Errors
    /// [`NonFinite`] where an input that is read for the first time has a NaN or an infinity, unless that is allowed.
    pub fn run(
        &self,
        index: usize,
        source: &dyn Source,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), NonFinite> {
        self.prepare(scratch);
        let unit = self.unit(index);
        match self.kind {
            WaveKind::Sample => self.sample(source, scratch),
            WaveKind::Locate => self.collect_located(source, scratch),
            WaveKind::Reduce | WaveKind::Write => {
                self.sweep(unit.elements, source, scratch, out)?;
            }
        }
        Ok(())
    }

    /// The partial results of all chunks, in chunk order.
    pub(super) fn partials(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Partial>>> {
        self.partials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The magnitudes met in a wave that samples or locates.
    pub(super) fn magnitudes(&self) -> MutexGuard<'_, Vec<Vec<u32>>> {
        self.magnitudes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fold(&self, slot: usize) -> Fold {
        self.folds[slot]
    }

    fn prepare(&self, scratch: &mut Scratch) {
        while scratch.registers.len() < self.program.registers {
            scratch.registers.push(vec![0.0; BLOCK].into_boxed_slice());
        }
        scratch.inside.resize_with(self.program.ranks.len().max(scratch.inside.len()), Vec::new);
        scratch.tallies.resize(self.program.ranks.len().max(scratch.tallies.len()), Tally::default());
    }

    fn sweep(
        &self,
        elements: Range<u64>,
        source: &dyn Source,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Result<(), NonFinite> {
        let mut chunk_start = elements.start;
        while chunk_start < elements.end {
            let chunk = chunk_start / CHUNK;
            let chunk_end = elements.end.min((chunk + 1) * CHUNK);
            let from = ((chunk_start - elements.start) as usize) * self.output.size();
            let to = from + ((chunk_end - chunk_start) as usize) * self.output.size();
            let out = if out.is_empty() { &mut [][..] } else { &mut out[from..to] };
            self.check_finite(source, chunk_start..chunk_end)?;
            self.sweep_chunk(chunk, chunk_start..chunk_end, source, scratch, out);
            chunk_start = chunk_end;
        }
        Ok(())
    }

    fn sweep_chunk(
        &self,
        chunk: u64,
        elements: Range<u64>,
        source: &dyn Source,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) {
        let first_row = elements.start / self.geometry.columns.max(1);
        let fresh = |(&(_, axis), &fold)| Accumulator::new(axis, fold, first_row);
        let mut accumulators: Vec<_> = self.program.reductions.iter().zip(&self.folds).map(fresh).collect();
        let mut at = elements.start;
        while at < elements.end {
            let length = BLOCK.min((elements.end - at) as usize);
            let range = (at - elements.start) as usize * self.output.size()..;
            let out =
                if out.is_empty() { &mut [][..] } else { &mut out[range][..length * self.output.size()] };
            let segments = [Segment { start: at, offset: 0, length }];
            self.run_block(&segments, length, source, scratch, &mut accumulators, out);
            at += length as u64;
        }
        if !accumulators.is_empty() {
            self.partials().insert(chunk, accumulators.into_iter().map(Accumulator::finish).collect());
        }
        for (slot, ranking) in self.rankings.iter().enumerate() {
            let Scratch { inside, tallies, local, .. } = &mut *scratch;
            ranking.absorb(chunk, std::mem::take(&mut tallies[slot]), &inside[slot], local);
            inside[slot].clear();
        }
    }

    /// All elements of a small tensor in order, else runs of elements spread evenly, each at a random place in its
    /// share of the tensor.
    fn sample(&self, source: &dyn Source, scratch: &mut Scratch) {
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
        let runs = SAMPLE / RUN as u64;
        let share = self.geometry.elements / runs;
        let start_of = |run: u64| {
            let jitter = (share - RUN as u64) as f64 * f64::from(crate::random::uniform(StreamKey(0), run));
            (run * share + jitter as u64) & !3
        };
        let per_block = (BLOCK / RUN) as u64;
        for block in 0..runs / per_block {
            let segment = |run: u64| Segment {
                start: start_of(block * per_block + run),
                offset: run as usize * RUN,
                length: RUN,
            };
            let segments: Vec<Segment> = (0..per_block).map(segment).collect();
            self.run_block(&segments, BLOCK, source, scratch, &mut [], &mut []);
            if (block + 1).is_multiple_of(SAMPLED_AT_ONCE as u64) || block + 1 == runs / per_block {
                let behind = block / SAMPLED_AT_ONCE as u64 * SAMPLED_AT_ONCE as u64;
                let end = if block + 1 == runs / per_block { runs } else { (block + 1) * per_block };
                self.release(source, behind * per_block * share..self.geometry.elements.min(end * share));
            }
        }
    }

    fn collect_located(&self, source: &dyn Source, scratch: &mut Scratch) {
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

    fn run_block(
        &self,
        segments: &[Segment],
        length: usize,
        source: &dyn Source,
        scratch: &mut Scratch,
        accumulators: &mut [Accumulator],
        out: &mut [u8],
    ) {
        let mut machine = Machine { wave: self, segments, length, source, scratch, accumulators, out };
        dispatch::run(self.level, &mut machine);
    }

    fn release(&self, source: &dyn Source, elements: Range<u64>) {
        self.program.inputs.iter().for_each(|&input| source.release(usize::from(input), elements.clone()));
    }

    fn check_finite(&self, source: &dyn Source, elements: Range<u64>) -> Result<(), NonFinite> {
        for &input in &self.checked {
            let input = usize::from(input);
            let element = source.element(input);
            let bytes = source.bytes(input, elements.clone());
            if dispatch::any_non_finite(self.level, element, bytes) {
                let decoded = element.decode(bytes);
                let found = decoded.iter().enumerate().find(|(_, value)| !value.is_finite());
                let (at, &value) = found.unwrap_or((0, &f32::NAN));
                return Err(NonFinite { input, index: elements.start + at as u64, value });
            }
        }
        Ok(())
    }
}

/// Everything that a block's instructions touch.
pub(super) struct Machine<'a> {
    wave: &'a Wave,
    segments: &'a [Segment],
    length: usize,
    source: &'a dyn Source,
    scratch: &'a mut Scratch,
    accumulators: &'a mut [Accumulator],
    out: &'a mut [u8],
}

/// Runs all instructions over one block.
///
/// Everything below is inlined into the function compiled for a level: what is not would run without its instructions.
#[inline(always)]
pub(super) fn run_block(machine: &mut Machine<'_>) {
    let wave = machine.wave;
    for &instruction in &wave.program.instructions {
        match instruction.target() {
            Some(to) => {
                // The register is taken out while it is written: no instruction reads the register that it writes.
                let to = usize::from(to);
                let mut register = std::mem::take(&mut machine.scratch.registers[to]);
                machine.compute(instruction, &mut register[..machine.length]);
                machine.scratch.registers[to] = register;
            }
            None => machine.consume(instruction),
        }
    }
}

impl Machine<'_> {
    #[inline(always)]
    fn compute(&self, instruction: Instruction, to: &mut [f32]) {
        match instruction {
            Instruction::Load { input, .. } => self.load(usize::from(input), to),
            Instruction::Random { stream, .. } => self.random(usize::from(stream), to),
            Instruction::Row { slot, .. } => self.row(usize::from(slot), to),
            Instruction::Unary { op, x, .. } => lanes::unary(op, self.each(x), to),
            Instruction::Binary { op, a, b, .. } => lanes::binary(op, self.lanes(a), self.lanes(b), to),
            Instruction::Select { c, a, b, .. } => {
                lanes::select(self.each(c), self.lanes(a), self.lanes(b), to);
            }
            Instruction::Keep { x, slot, .. } => self.keep(usize::from(slot), x, to),
            _ => {}
        }
    }

    #[inline(always)]
    fn consume(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Sum { x, slot } | Instruction::Largest { x, slot } => self.reduce(x, None, slot),
            Instruction::Dot { x, y, slot } => self.reduce(x, Some(y), slot),
            Instruction::Rank { x, slot } => self.rank(x, usize::from(slot)),
            Instruction::Store { x } => {
                codec::encode(
                    self.wave.output,
                    &self.scratch.registers[usize::from(x)][..self.length],
                    self.out,
                );
            }
            _ => {}
        }
    }

    #[inline(always)]
    fn each(&self, x: u16) -> &[f32] {
        &self.scratch.registers[usize::from(x)][..self.length]
    }

    #[inline(always)]
    fn lanes(&self, x: Operand) -> Lanes<'_> {
        match x {
            Operand::Register(x) => Lanes::Each(self.each(x)),
            Operand::Scalar(slot) => Lanes::All(self.wave.scalars[usize::from(slot)]),
        }
    }

    #[inline(always)]
    fn load(&self, input: usize, to: &mut [f32]) {
        let element = self.source.element(input);
        for segment in self.segments {
            codec::decode(element, self.source.bytes(input, segment.elements()), &mut to[segment.lanes()]);
        }
    }

    #[inline(always)]
    fn random(&self, stream: usize, to: &mut [f32]) {
        for segment in self.segments {
            fill_uniform(self.wave.streams[stream], segment.start, &mut to[segment.lanes()]);
        }
    }

    #[inline(always)]
    fn row(&self, slot: usize, to: &mut [f32]) {
        let values = &self.wave.rows[slot];
        for &segment in self.segments {
            for (row, lanes) in rows_of(segment, self.wave.geometry.columns) {
                to[lanes].fill(spread(values, row as usize) as f32);
            }
        }
    }

    #[inline(always)]
    fn keep(&self, slot: usize, x: u16, to: &mut [f32]) {
        let (cut, x) = (self.wave.cuts[slot], self.each(x));
        for segment in self.segments {
            let ties = cut.ties_within(segment.start, segment.length);
            lanes::keep(&x[segment.lanes()], cut.threshold, ties, &mut to[segment.lanes()]);
        }
    }

    #[inline(always)]
    fn reduce(&mut self, x: u16, y: Option<u16>, slot: u16) {
        let registers = &self.scratch.registers;
        let lanes = |register: u16| &registers[usize::from(register)][..self.length];
        let Some(accumulator) = self.accumulators.get_mut(usize::from(slot)) else {
            return; // A wave that samples or locates reduces nothing.
        };
        accumulator.take(self.segments[0], self.wave.geometry.columns.max(1), lanes(x), y.map(lanes));
    }

    #[inline(always)]
    fn rank(&mut self, x: u16, slot: usize) {
        let Scratch { registers, inside, tallies, .. } = &mut *self.scratch;
        let x = &registers[usize::from(x)][..self.length];
        match self.wave.rankings.get(slot) {
            Some(ranking) => {
                dispatch::tally(self.wave.level, x, ranking.bracket, &mut tallies[slot], &mut inside[slot]);
            }
            None => inside[slot].extend(x.iter().map(|&x| magnitude(x))),
        }
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
