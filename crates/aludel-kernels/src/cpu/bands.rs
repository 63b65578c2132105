//! Selects the largest magnitudes of each band: of a row, or of the rows that count as one.
//!
//! In: a wave that computes what is selected by, and how many are kept. Out: a [`Cut`] for each band. A band is gathered whole into a
//! thread's memory, from wherever its rows lie, so one look is enough and nothing is sampled. The units of a wave share the bands out
//! by number; a unit may read elements that other units sweep over.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::block::{BLOCK, CHUNK, Geometry, RUN, Segment, Source};
use super::machine::Scratch;
use super::rank::{Cut, magnitude};
use super::wave::Wave;

/// Elements of a long band after which the pages of those passed are given back.
const STRETCH: u64 = 4 * CHUNK;

/// One selection within bands, being made.
#[derive(Debug)]
pub(super) struct Selection {
    /// Stores what is selected by.
    wave: Box<Wave>,
    count: u64,
    /// Those of all bands.
    cuts: Mutex<Vec<Cut>>,
}

/// The values of a band; reused from band to band.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    block: Vec<u8>,
    magnitudes: Vec<u32>,
    sorted: Vec<u32>,
}

/// Bytes that a band takes in a thread's memory, with the mapped pages that are read for it beyond a unit's own.
pub(super) fn bytes(geometry: Geometry, input_width: u64) -> u64 {
    let band = geometry.elements / geometry.bands.max(1);
    let magnitudes = 2 * size_of::<u32>() as u64 * band;
    let mapped = span(geometry).min(2 * STRETCH) * input_width;
    magnitudes + mapped + (BLOCK * size_of::<f32>()) as u64
}

/// Elements from the first to the last of a band.
fn span(geometry: Geometry) -> u64 {
    if geometry.is_banded() { geometry.elements } else { geometry.columns }
}

impl Selection {
    pub(super) fn new(wave: Wave, count: u64) -> Self {
        let none = Cut { threshold: 0, last: None };
        let cuts = Mutex::new(vec![none; wave.geometry.bands as usize]);
        Self { wave: Box::new(wave), count, cuts }
    }

    pub(super) fn registers(&self) -> usize {
        self.wave.program.registers
    }

    /// Selects within some of the bands.
    fn select(&self, bands: Range<u64>, source: &dyn Source, scratch: &mut Scratch) {
        let Geometry { elements, bands: all, .. } = self.wave.geometry;
        let trivial = Cut::trivial(self.count, elements / all.max(1));
        let mut found = Vec::with_capacity((bands.end - bands.start) as usize);
        for band in bands.clone() {
            found.push(trivial.unwrap_or_else(|| {
                let mut buffers = std::mem::take(&mut scratch.band);
                self.gather(band, source, scratch, &mut buffers);
                let cut = self.cut(band, &mut buffers);
                scratch.band = buffers;
                cut
            }));
        }
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        cuts[bands.start as usize..bands.end as usize].copy_from_slice(&found);
    }

    /// Takes the magnitudes of a band, in flat order.
    fn gather(&self, band: u64, source: &dyn Source, scratch: &mut Scratch, buffers: &mut Buffers) {
        let geometry = self.wave.geometry;
        let rows = (band..geometry.rows()).step_by(geometry.bands as usize);
        // Only a block of one piece may have longer ones.
        let longest = if geometry.is_banded() { RUN } else { BLOCK };
        let is_long = span(geometry) > STRETCH;
        let (mut segments, mut filled) = (Vec::with_capacity(BLOCK / RUN + 1), 0);
        let mut held = band * geometry.columns;
        buffers.magnitudes.clear();
        for row in rows {
            let (mut at, end) = (row * geometry.columns, (row + 1) * geometry.columns);
            while at < end {
                let length = ((end - at) as usize).min(longest).min(BLOCK - filled);
                segments.push(Segment { start: at, offset: filled, length });
                (at, filled) = (at + length as u64, filled + length);
                if filled == BLOCK {
                    self.take(&segments, filled, source, scratch, buffers);
                    segments.clear();
                    filled = 0;
                    if is_long && at - held >= STRETCH {
                        self.release(held..at, source);
                        held = at;
                    }
                }
            }
        }
        if filled > 0 {
            self.take(&segments, filled, source, scratch, buffers);
        }
        if is_long {
            self.release(held..geometry.elements.min(band * geometry.columns + span(geometry)), source);
        }
    }

    fn take(
        &self,
        segments: &[Segment],
        length: usize,
        source: &dyn Source,
        scratch: &mut Scratch,
        buffers: &mut Buffers,
    ) {
        buffers.block.resize(length * size_of::<f32>(), 0);
        self.wave.run_block(segments, length, source, scratch, &mut [], &mut buffers.block);
        let values = buffers.block.as_chunks().0.iter().map(|&raw| f32::from_le_bytes(raw));
        buffers.magnitudes.extend(values.map(magnitude));
    }

    fn release(&self, elements: Range<u64>, source: &dyn Source) {
        let inputs = self.wave.program.inputs.iter();
        inputs.for_each(|&input| source.release(usize::from(input), elements.clone()));
    }

    /// The cut of the band in the buffers; some of it is kept and some is not.
    fn cut(&self, band: u64, buffers: &mut Buffers) -> Cut {
        let Buffers { magnitudes, sorted, .. } = buffers;
        sorted.clear();
        sorted.extend_from_slice(magnitudes);
        let place = sorted.len() - self.count as usize;
        let threshold = *sorted.select_nth_unstable(place).1;
        let above = magnitudes.iter().filter(|&&m| m > threshold).count();
        let ties = magnitudes.iter().enumerate().filter(|&(_, &m)| m == threshold);
        let last = ties.map(|(i, _)| i as u64).nth(self.count as usize - above - 1);
        let Geometry { columns, bands, .. } = self.wave.geometry;
        let flat = |i: u64| (i / columns * bands + band) * columns + i % columns;
        Cut { threshold, last: last.map(flat) }
    }
}

impl Wave {
    /// Makes a unit's share of the selections within bands.
    pub(super) fn select_in_bands(&self, unit: usize, source: &dyn Source, scratch: &mut Scratch) {
        let (bands, unit, units) = (self.geometry.bands, unit as u64, self.units() as u64);
        let share = bands * unit / units..bands * (unit + 1) / units;
        self.selections.iter().for_each(|selection| selection.select(share.clone(), source, scratch));
    }

    /// The cuts of all bands, for each selection.
    pub(super) fn row_cuts_found(&self) -> Vec<Vec<Cut>> {
        let cuts = |selection: &Selection| {
            std::mem::take(&mut *selection.cuts.lock().unwrap_or_else(PoisonError::into_inner))
        };
        self.selections.iter().map(cuts).collect()
    }
}
