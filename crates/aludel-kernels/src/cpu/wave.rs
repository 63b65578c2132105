//! Runs the units of one wave: independent pieces of work that may be done in any order and by any thread.
//!
//! In: a compiled program with everything known bound to it, and a unit's index. Out: partial reductions kept in the
//! wave, or the encoded elements of one tile of the output.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bands::Selection;
use super::block::{BLOCK, CHUNK, Geometry, NonFinite, Segment, Source};
use super::compiled::Compiled;
use super::dispatch::{self, Level};
use super::machine::{Machine, Scratch};
use super::ordinal::{self, Ordinals};
use super::program::Program;
use super::rank::{Cut, Ranking, Tally};
use super::reduce::{Accumulator, Joined};
use super::sample::SMALL;
use super::values::Values;
use crate::element::{Element, Encoding};
use crate::formula::{NodeId, Op};
use crate::random::StreamKey;

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
    pub(super) program: Arc<Program>,
    pub(super) geometry: Geometry,
    pub(super) tile: u64,
    pub(super) level: Level,
    pub(super) output: Encoding,
    /// Inputs whose elements are checked to be finite.
    pub(super) checked: Vec<u16>,
    pub(super) scalars: Vec<f32>,
    pub(super) rows: Vec<Vec<f64>>,
    pub(super) columns: Vec<Vec<f32>>,
    /// The slot among `rows` of the scales that the formula has beside its output.
    scales: Option<usize>,
    /// What is ranked within rows, as waves that compute it.
    ordinals: Vec<Self>,
    pub(super) cuts: Vec<Cut>,
    pub(super) row_cuts: Vec<Arc<[Cut]>>,
    /// What is selected within rows by this wave.
    pub(super) selections: Vec<Selection>,
    pub(super) streams: Vec<StreamKey>,
    pub(super) rankings: Vec<Ranking>,
    /// For a wave that locates: which chunk each selection is sought in.
    pub(super) located: Vec<u64>,
    joined: Mutex<Joined>,
    /// For a wave that samples or locates: the magnitudes met, for each selection.
    magnitudes: Mutex<Vec<Vec<u32>>>,
}

/// What a wave is made of.
pub(super) struct Parts<'a> {
    pub kind: WaveKind,
    pub compiled: &'a Compiled,
    pub program: Arc<Program>,
    pub values: &'a Values,
    pub geometry: Geometry,
    pub tile: u64,
    pub level: Level,
    pub output: Encoding,
    pub streams: &'a [StreamKey],
    pub checked: Vec<u16>,
    pub rankings: Vec<Ranking>,
    pub located: Vec<u64>,
}

impl Wave {
    pub(super) fn new(parts: Parts<'_>) -> Self {
        let Parts { ref program, values, geometry, .. } = parts;
        let scalars = program.scalars.iter().map(|&node| values.wide(node)[0] as f32).collect();
        let rows = program.rows.iter().map(|&node| values.wide(node).to_vec()).collect();
        let narrowed = |&node: &NodeId| {
            let values = values.wide(node).iter();
            values.map(|&value| value as f32).collect::<Vec<_>>()
        };
        let scales = program.rows.iter().position(|&node| Some(node) == parts.compiled.formula().scales());
        let columns = program.columns.iter().map(narrowed).collect();
        let ordinals = program.ordinals.iter().filter_map(|&node| Self::ranked(node, &parts)).collect();
        let cuts = program.cuts.iter().filter_map(|&node| values.cut(node)).collect();
        let row_cuts = program.row_cuts.iter().filter_map(|&node| values.row_cut(node)).collect();
        let selections = program.row_tops.iter().filter_map(|&node| Self::selected(node, &parts)).collect();
        let axes = program.reductions.iter().map(|&(_, axis)| axis);
        let joined = Joined::new(&axes.zip(program.folds.iter().copied()).collect::<Vec<_>>(), geometry);
        let magnitudes = Mutex::new(vec![Vec::new(); program.ranks.len()]);
        Self {
            kind: parts.kind,
            geometry,
            tile: parts.tile,
            level: parts.level,
            output: parts.output,
            checked: parts.checked,
            scalars,
            rows,
            scales,
            columns,
            ordinals,
            cuts,
            row_cuts,
            selections,
            streams: parts.streams.to_vec(),
            rankings: parts.rankings,
            located: parts.located,
            joined: Mutex::new(joined),
            magnitudes,
            program: parts.program,
        }
    }

    /// Computes what a rank of the formula ranks.
    fn ranked(rank: NodeId, parts: &Parts<'_>) -> Option<Self> {
        let Op::Rank(operand) = parts.compiled.formula().op(rank) else { return None };
        Some(Self::storing(operand, parts.checked.clone(), parts))
    }

    /// Computes what a selection within rows selects by. What is gathered is not checked: a sweep will see it.
    fn selected(top: NodeId, parts: &Parts<'_>) -> Option<Selection> {
        let Op::RowTop(operand, count) = parts.compiled.formula().op(top) else { return None };
        let count = parts.values.wide(count).first().map_or(0, |&count| count as u64);
        Some(Selection::new(Self::storing(operand, Vec::new(), parts), count))
    }

    /// Stores a value for each element.
    fn storing(value: NodeId, checked: Vec<u16>, parts: &Parts<'_>) -> Self {
        Self::new(Parts {
            kind: WaveKind::Write,
            program: parts.compiled.storing(value),
            output: Element::F32.into(),
            checked,
            rankings: Vec::new(),
            located: Vec::new(),
            ..*parts
        })
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
        &self.program.reads
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

    /// The scales of the rows that begin in a unit of a wave that writes, and the first of those rows; `None` where the formula has
    /// no scales.
    pub fn scales(&self, index: usize) -> Option<(u64, &[f64])> {
        let scales = self.rows.get(self.scales?)?;
        let Unit { elements } = self.unit(index);
        let columns = self.geometry.columns.max(1);
        let rows = elements.start.div_ceil(columns)..elements.end.div_ceil(columns);
        Some((rows.start, &scales[rows.start as usize..rows.end as usize]))
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
        scratch.ordinals.iter_mut().for_each(Ordinals::forget);
        let unit = self.unit(index);
        match self.kind {
            WaveKind::Sample => self.sample(source, scratch),
            WaveKind::Locate => self.collect_located(source, scratch),
            WaveKind::Reduce | WaveKind::Write => {
                self.select_in_bands(index, source, scratch);
                self.sweep(unit.elements, source, scratch, out)?;
            }
        }
        Ok(())
    }

    /// The results of the chunks that have run.
    pub(super) fn joined(&self) -> MutexGuard<'_, Joined> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The magnitudes met in a wave that samples or locates.
    pub(super) fn magnitudes(&self) -> MutexGuard<'_, Vec<Vec<u32>>> {
        self.magnitudes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an input's elements are checked to be finite.
    #[inline(always)]
    pub(super) fn is_checked(&self, input: usize) -> bool {
        self.checked.iter().any(|&checked| usize::from(checked) == input)
    }

    fn prepare(&self, scratch: &mut Scratch) {
        if scratch.words.is_empty() {
            scratch.words = vec![0; BLOCK].into_boxed_slice();
        }
        let selected = self.selections.iter().map(Selection::registers);
        let ranked = self.ordinals.iter().map(|wave| wave.program.registers).chain(selected);
        let registers = ranked.fold(self.program.registers, usize::max);
        scratch.ordinals.resize_with(self.ordinals.len().max(scratch.ordinals.len()), Ordinals::default);
        while scratch.registers.len() < registers {
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
        if self.program.instructions.is_empty() {
            return Ok(()); // Nothing but selections within rows.
        }
        let mut chunk_start = elements.start;
        while chunk_start < elements.end {
            let chunk = chunk_start / CHUNK;
            let chunk_end = elements.end.min((chunk + 1) * CHUNK);
            let from = ((chunk_start - elements.start) as usize) * self.output.size();
            let to = from + ((chunk_end - chunk_start) as usize) * self.output.size();
            let out = if out.is_empty() { &mut [][..] } else { &mut out[from..to] };
            self.sweep_chunk(chunk, chunk_start..chunk_end, source, scratch, out)?;
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
    ) -> Result<(), NonFinite> {
        for (slot, wave) in self.ordinals.iter().enumerate() {
            wave.rank_rows(&elements, source, scratch, slot)?;
        }
        let fresh = |(&(_, axis), &fold)| Accumulator::new(axis, fold, elements.start);
        let mut accumulators: Vec<_> =
            self.program.reductions.iter().zip(&self.program.folds).map(fresh).collect();
        let mut at = elements.start;
        while at < elements.end {
            let length = BLOCK.min((elements.end - at) as usize);
            let range = (at - elements.start) as usize * self.output.size()..;
            let out =
                if out.is_empty() { &mut [][..] } else { &mut out[range][..length * self.output.size()] };
            let segments = [Segment { start: at, offset: 0, length }];
            if self.run_block(&segments, length, source, scratch, &mut accumulators, out) {
                self.find_non_finite(source, at..at + length as u64)?;
            }
            at += length as u64;
        }
        if !accumulators.is_empty() {
            let finish = |accumulator: Accumulator| accumulator.finish(self.geometry);
            let partials = accumulators.into_iter().map(finish).collect();
            self.joined().add(chunk, partials);
        }
        for (slot, ranking) in self.rankings.iter().enumerate() {
            let Scratch { inside, tallies, local, .. } = &mut *scratch;
            ranking.absorb(chunk, std::mem::take(&mut tallies[slot]), &inside[slot], local);
            inside[slot].clear();
        }
        Ok(())
    }

    /// Ranks the elements of all rows that hold some of `elements`, unless that was done.
    fn rank_rows(
        &self,
        elements: &Range<u64>,
        source: &dyn Source,
        scratch: &mut Scratch,
        slot: usize,
    ) -> Result<(), NonFinite> {
        let rows = ordinal::rows_around(elements, self.geometry);
        if scratch.ordinals[slot].covers(&rows) {
            return Ok(());
        }
        let mut buffers = std::mem::take(&mut scratch.ordering);
        let values = buffers.values(&rows);
        let mut at = rows.start;
        while at < rows.end {
            let length = BLOCK.min((rows.end - at) as usize);
            let segments = [Segment { start: at, offset: 0, length }];
            let from = (at - rows.start) as usize * size_of::<f32>();
            let out = &mut values[from..from + length * size_of::<f32>()];
            if self.run_block(&segments, length, source, scratch, &mut [], out) {
                self.find_non_finite(source, at..at + length as u64)?;
            }
            at += length as u64;
        }
        scratch.ordinals[slot].rank(rows, self.geometry, &mut buffers);
        scratch.ordering = buffers;
        Ok(())
    }

    /// Runs the program over a block; whether it met a value that is not finite where that is checked.
    pub(super) fn run_block(
        &self,
        segments: &[Segment],
        length: usize,
        source: &dyn Source,
        scratch: &mut Scratch,
        accumulators: &mut [Accumulator],
        out: &mut [u8],
    ) -> bool {
        let mut machine = Machine {
            wave: self,
            segments,
            length,
            source,
            scratch,
            accumulators,
            out,
            met_non_finite: false,
        };
        dispatch::run(self.level, &mut machine);
        machine.met_non_finite
    }

    /// The first value that is not finite in the inputs that are checked.
    fn find_non_finite(&self, source: &dyn Source, elements: Range<u64>) -> Result<(), NonFinite> {
        for &input in &self.checked {
            let input = usize::from(input);
            let mut values = [0.0; BLOCK];
            let values = &mut values[..(elements.end - elements.start) as usize];
            source.make(input, elements.start, values);
            if let Some((at, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
                return Err(NonFinite { input, index: elements.start + at as u64, value });
            }
        }
        Ok(())
    }
}
