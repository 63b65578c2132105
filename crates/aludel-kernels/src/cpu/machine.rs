//! Runs a program's instructions over one block.
//!
//! In: a wave with everything known bound to it, and the elements of the block. Out: what the instructions leave in the
//! thread's scratch memory, its accumulators and the output. Everything here is inlined into the function compiled for a
//! level: what is not would run without its instructions.

use super::ahead::Ahead;
use super::bands;
use super::block::{BLOCK, Geometry, RUN, Segment, Source, rows_of};
use super::codec;
use super::dispatch;
use super::fused;
use super::lanes::{self, Lanes};
use super::ordinal::{self, Ordinals};
use super::program::{Electors, Instruction, MaskSlot, Operand};
use super::rank::{LocalHistogram, Tally, magnitude};
use super::reduce::Accumulator;
use super::values::spread;
use super::wave::Wave;
use crate::formula::{Formula, Op};
use crate::random::{unit, words_below};

/// The memory that a thread computes in; reused from unit to unit.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) registers: Vec<Box<[f32]>>,
    /// Random words of a block.
    pub(super) words: Box<[u32]>,
    pub(super) inside: Vec<Vec<u32>>,
    pub(super) tallies: Vec<Tally>,
    pub(super) local: LocalHistogram,
    /// Ranks within rows.
    pub(super) ordinals: Vec<Ordinals>,
    pub(super) ordering: ordinal::Buffers,
    /// A band of which the largest magnitudes are sought.
    pub(super) band: bands::Buffers,
}

impl Scratch {
    /// Bytes that a formula of `registers` registers takes in a thread's scratch memory.
    pub const fn bytes(registers: usize) -> u64 {
        (registers * BLOCK * size_of::<f32>()) as u64
    }

    /// Bytes that ranks and selections within rows of a formula take in a thread's scratch memory, with mapped inputs of `input_width`
    /// bytes for an element.
    pub fn row_bytes(formula: &Formula, geometry: Geometry, input_width: u64) -> u64 {
        let ranks = formula.nodes().iter().filter(|op| matches!(op, Op::Rank(_))).count() as u64;
        let selects = formula.nodes().iter().any(|op| matches!(op, Op::RowTop(..)));
        ordinal::bytes(ranks, geometry) + if selects { bands::bytes(geometry, input_width) } else { 0 }
    }
}

/// Everything that a block's instructions touch.
pub(super) struct Machine<'a> {
    pub wave: &'a Wave,
    pub segments: &'a [Segment],
    pub length: usize,
    pub source: &'a dyn Source,
    pub scratch: &'a mut Scratch,
    pub accumulators: &'a mut [Accumulator],
    pub out: &'a mut [u8],
    /// Set where an input that the wave checks has a NaN or an infinity.
    pub met_non_finite: bool,
}

/// Runs all instructions over one block.
#[inline(always)]
pub(super) fn run_block(machine: &mut Machine<'_>) {
    let wave = machine.wave;
    let mut ahead = Ahead::of(wave, machine.source, machine.segments);
    for &instruction in &wave.program.instructions {
        ahead.fetch();
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

impl<'a> Machine<'a> {
    #[inline(always)]
    fn compute(&mut self, instruction: Instruction, to: &mut [f32]) {
        match instruction {
            Instruction::Load { input, .. } => self.load(usize::from(input), to),
            Instruction::Random { stream, .. } => self.random(stream, to),
            Instruction::Row { slot, .. } => self.row(usize::from(slot), to),
            Instruction::Column { slot, .. } => self.column(usize::from(slot), to),
            Instruction::Ordinal { slot, .. } => self.ordinal(usize::from(slot), to),
            Instruction::Unary { op, x, .. } => lanes::unary(op, self.each(x), to),
            Instruction::Binary { op, a, b, .. } => lanes::binary(op, self.lanes(a), self.lanes(b), to),
            Instruction::Select { c, a, b, .. } => {
                lanes::select(self.each(c), self.lanes(a), self.lanes(b), to);
            }
            Instruction::Keep { x, slot, .. } => self.keep(usize::from(slot), x, to),
            Instruction::KeepInRow { x, slot, .. } => self.keep_in_row(usize::from(slot), x, to),
            Instruction::Difference { input, x, .. } => self.difference(usize::from(input), x, to),
            Instruction::Masked { x, mask, factors, .. } => {
                let factors = factors.map(|slot| slot.map_or(1.0, |slot| self.scalar(slot)));
                match mask {
                    MaskSlot::Cut(slot) => self.keep_scaled(usize::from(slot), x, factors, to),
                    MaskSlot::Chance { stream, below } => self.draw(stream, below, x, factors, to),
                }
            }
            Instruction::Elect { election, .. } => self.elect(&election, to),
            _ => {}
        }
    }

    #[inline(always)]
    fn consume(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Sum { x, slot }
            | Instruction::Largest { x, slot }
            | Instruction::Greatest { x, slot } => self.reduce(x, None, slot),
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
            Operand::Scalar(slot) => Lanes::All(self.scalar(slot)),
        }
    }

    #[inline(always)]
    fn scalar(&self, slot: u16) -> f32 {
        self.wave.scalars[usize::from(slot)]
    }

    #[inline(always)]
    fn load(&mut self, input: usize, to: &mut [f32]) {
        let (source, segments) = (self.source, self.segments);
        if source.is_made(input) {
            return self.make(input, to);
        }
        let element = source.element(input);
        if let [segment] = segments {
            codec::decode(element, self.bytes(input, *segment), to);
        } else {
            for segment in segments {
                let mut gathered = [0; RUN * size_of::<f32>()];
                let gathered = &mut gathered[..segment.length * element.size()];
                source.gather(input, segment.elements(), gathered);
                codec::decode(element, gathered, &mut to[segment.lanes()]);
            }
        }
    }

    /// The bytes of a block's only segment, checked to be finite where that is asked for.
    #[inline(always)]
    fn bytes(&mut self, input: usize, segment: Segment) -> &'a [u8] {
        let (source, wave) = (self.source, self.wave);
        let bytes = source.bytes(input, segment.elements());
        if wave.is_checked(input) {
            self.met_non_finite |= codec::any_non_finite(source.element(input), bytes);
        }
        bytes
    }

    /// Has the source make the block's elements, which are checked to be finite where that is asked for.
    #[inline(always)]
    fn make(&mut self, input: usize, to: &mut [f32]) {
        for segment in self.segments {
            self.source.make(input, segment.start, &mut to[segment.lanes()]);
        }
        if self.wave.is_checked(input) {
            self.met_non_finite |= codec::any_non_finite_value(to);
        }
    }

    #[inline(always)]
    fn difference(&mut self, input: usize, x: u16, to: &mut [f32]) {
        let element = self.source.element(input);
        if let (&[segment], false) = (self.segments, self.source.is_made(input)) {
            let bytes = self.bytes(input, segment);
            fused::difference(element, bytes, self.each(x), to);
        } else {
            self.load(input, to);
            to.iter_mut().zip(self.each(x)).for_each(|(to, &x)| *to -= x);
        }
    }

    #[inline(always)]
    fn random(&mut self, stream: u16, to: &mut [f32]) {
        let words = self.draw_words(stream);
        for (to, &word) in to.iter_mut().zip(&words) {
            *to = unit(word);
        }
        self.scratch.words = words;
    }

    #[inline(always)]
    fn draw(&mut self, stream: u16, below: u16, x: u16, factors: [f32; 2], to: &mut [f32]) {
        let words = self.draw_words(stream);
        fused::draw(self.each(x), &words, words_below(self.scalar(below)), factors, to);
        self.scratch.words = words;
    }

    /// The random words of the block, taken out of the scratch memory.
    #[inline(always)]
    fn draw_words(&mut self, stream: u16) -> Box<[u32]> {
        let key = self.wave.streams[usize::from(stream)];
        let mut words = std::mem::take(&mut self.scratch.words);
        for segment in self.segments {
            dispatch::fill_words(self.wave.level, key, segment.start, &mut words[segment.lanes()]);
        }
        words
    }

    #[inline(always)]
    fn elect(&self, election: &Electors, to: &mut [f32]) {
        match election.count {
            2 => self.elect_among::<2>(election, to),
            3 => self.elect_among::<3>(election, to),
            _ => self.elect_among::<4>(election, to),
        }
    }

    #[inline(always)]
    fn elect_among<const N: usize>(&self, election: &Electors, to: &mut [f32]) {
        let (mut parts, mut weights) = ([&[][..]; N], [1.0; N]);
        for part in 0..N {
            parts[part] = &self.each(election.parts[part])[..to.len()];
            if let Some(slot) = election.weights[part] {
                weights[part] = self.scalar(slot);
            }
        }
        if election.is_divided {
            fused::elect_divided(parts, weights, to);
        } else {
            fused::elect(parts, to);
        }
    }

    #[inline(always)]
    fn row(&self, slot: usize, to: &mut [f32]) {
        let values = &self.wave.rows[slot];
        for &segment in self.segments {
            for (row, lanes) in rows_of(segment, self.wave.geometry.columns) {
                to[lanes].fill(spread(values, self.wave.geometry.band(row)) as f32);
            }
        }
    }

    #[inline(always)]
    fn column(&self, slot: usize, to: &mut [f32]) {
        let values = &self.wave.columns[slot];
        for &segment in self.segments {
            for (row, lanes) in rows_of(segment, self.wave.geometry.columns) {
                let start = segment.start + (lanes.start - segment.offset) as u64;
                let first = (start - row * self.wave.geometry.columns) as usize;
                match values.get(first..first + lanes.len()) {
                    Some(values) => to[lanes].copy_from_slice(values),
                    None => to[lanes].fill(values.first().copied().unwrap_or_default()),
                }
            }
        }
    }

    #[inline(always)]
    fn ordinal(&self, slot: usize, to: &mut [f32]) {
        for &segment in self.segments {
            to[segment.lanes()].copy_from_slice(self.scratch.ordinals[slot].of(&segment.elements()));
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
    fn keep_in_row(&self, slot: usize, x: u16, to: &mut [f32]) {
        let (cuts, x, geometry) = (&self.wave.row_cuts[slot], self.each(x), self.wave.geometry);
        for &segment in self.segments {
            for (row, lanes) in rows_of(segment, geometry.columns) {
                let cut = cuts[geometry.band(row)];
                let start = segment.start + (lanes.start - segment.offset) as u64;
                let ties = cut.ties_within(start, lanes.len());
                lanes::keep(&x[lanes.clone()], cut.threshold, ties, &mut to[lanes]);
            }
        }
    }

    #[inline(always)]
    fn keep_scaled(&self, slot: usize, x: u16, factors: [f32; 2], to: &mut [f32]) {
        let (cut, x) = (self.wave.cuts[slot], self.each(x));
        for segment in self.segments {
            let ties = cut.ties_within(segment.start, segment.length);
            fused::keep(&x[segment.lanes()], cut.threshold, ties, factors, &mut to[segment.lanes()]);
        }
    }

    #[inline(always)]
    fn reduce(&mut self, x: u16, y: Option<u16>, slot: u16) {
        let registers = &self.scratch.registers;
        let lanes = |register: u16| &registers[usize::from(register)][..self.length];
        let Some(accumulator) = self.accumulators.get_mut(usize::from(slot)) else {
            return; // A wave that samples or locates reduces nothing.
        };
        accumulator.take(self.segments[0], self.wave.geometry, lanes(x), y.map(lanes));
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
