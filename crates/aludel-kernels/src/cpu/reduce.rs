//! Reduces blocks to partial sums and extremes, in f64 and in an order that only the element's index decides.
//!
//! In: the lanes of one block at a time, in order, for one chunk. Out: a [`Partial`] per reduction and chunk, which
//! [`Joined`] joins in chunk order as they come in. Sixteen lane sums are kept because that many f64 fill the widest registers twice
//! over; the number is part of the result's definition, not of the machine.

use std::collections::BTreeMap;

use super::block::{Geometry, Segment, rows_of};
use super::patterns::magnitudes;
use crate::formula::{Axis, Extent, Formula, NodeId, Op};

const LANES: usize = 16;

/// What is accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    Sum,
    /// The sum of the magnitudes.
    Magnitudes,
    Largest,
    Greatest,
}

/// One reduction over one chunk, being accumulated.
#[derive(Debug)]
pub(super) struct Accumulator {
    axis: Axis,
    fold: Fold,
    lanes: [f64; LANES],
    /// The chunk's first element.
    start: u64,
    /// One value for each row or column, in the order in which the chunk meets them.
    groups: Vec<f64>,
}

/// One reduction over one chunk.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    /// The row or column of the first value.
    first: u64,
    /// One value, or one for each row or column that the chunk touches.
    values: Vec<f64>,
}

impl Accumulator {
    pub(super) fn new(axis: Axis, fold: Fold, start: u64) -> Self {
        Self { axis, fold, lanes: [fold.start(); LANES], start, groups: Vec::new() }
    }

    /// Takes in a block; `value` is that of a lane.
    #[inline(always)]
    pub(super) fn take(&mut self, segment: Segment, geometry: Geometry, x: &[f32], y: Option<&[f32]>) {
        let columns = geometry.columns.max(1);
        match self.axis {
            Axis::Tensor => fold_lanes(self.fold, &mut self.lanes, x, y),
            Axis::Row => {
                for (row, range) in rows_of(segment, columns) {
                    let mut lanes = [self.fold.start(); LANES];
                    fold_lanes(self.fold, &mut lanes, &x[range.clone()], y.map(|y| &y[range]));
                    let index = geometry.band(row - self.start / columns);
                    self.groups.resize(self.groups.len().max(index + 1), self.fold.start());
                    self.groups[index] = self.fold.join(self.groups[index], self.fold.across(&lanes));
                }
            }
            Axis::Column => {
                let mut at = 0;
                while at < segment.length {
                    let index = (segment.start + at as u64 - self.start) % columns;
                    let length = (segment.length - at).min((columns - index) as usize);
                    let (index, end) = (index as usize, index as usize + length);
                    self.groups.resize(self.groups.len().max(end), self.fold.start());
                    let range = segment.offset + at..segment.offset + at + length;
                    let y = y.map(|y| &y[range.clone()]);
                    fold_apart(self.fold, &mut self.groups[index..end], &x[range], y);
                    at += length;
                }
            }
        }
    }

    pub(super) fn finish(self, geometry: Geometry) -> Partial {
        let columns = geometry.columns.max(1);
        match self.axis {
            Axis::Tensor => Partial { first: 0, values: vec![self.fold.across(&self.lanes)] },
            Axis::Row => Partial { first: geometry.band(self.start / columns) as u64, values: self.groups },
            Axis::Column => Partial { first: self.start % columns, values: self.groups },
        }
    }
}

/// The results of a sweep's reductions, joined in chunk order: of chunks that come early nothing but those that wait for
/// an earlier one is kept.
#[derive(Debug)]
pub(super) struct Joined {
    folds: Vec<Fold>,
    values: Vec<Vec<f64>>,
    next: u64,
    waiting: BTreeMap<u64, Vec<Partial>>,
}

impl Joined {
    /// Nothing yet; `reductions` say what runs over what.
    pub(super) fn new(reductions: &[(Axis, Fold)], geometry: Geometry) -> Self {
        let values = |&(axis, fold): &(Axis, Fold)| {
            let count = match axis {
                Axis::Tensor => 1,
                Axis::Row => geometry.bands as usize,
                Axis::Column => geometry.columns as usize,
            };
            vec![fold.start(); count]
        };
        Self {
            folds: reductions.iter().map(|&(_, fold)| fold).collect(),
            values: reductions.iter().map(values).collect(),
            next: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// Takes in one chunk, one partial result for each reduction.
    pub(super) fn add(&mut self, chunk: u64, partials: Vec<Partial>) {
        self.waiting.insert(chunk, partials);
        while let Some(partials) = self.waiting.remove(&self.next) {
            self.next += 1;
            for ((values, &fold), partial) in self.values.iter_mut().zip(&self.folds).zip(&partials) {
                let first = (partial.first as usize).min(values.len());
                let (before, after) = values.split_at_mut(first);
                // Columns and bands go on from the first after the last.
                for (value, &part) in after.iter_mut().chain(before).zip(&partial.values) {
                    *value = fold.join(*value, part);
                }
            }
        }
    }

    /// The values of every reduction: one, or one per row or column.
    pub(super) fn take(&mut self) -> Vec<Vec<f64>> {
        std::mem::take(&mut self.values)
    }
}

impl Fold {
    /// What a reduction accumulates.
    pub(crate) fn of(formula: &Formula, extents: &[Extent], reduction: NodeId) -> Self {
        match formula.op(reduction) {
            Op::Largest(..) => Self::Largest,
            Op::Greatest(..) => Self::Greatest,
            Op::Sum(x, _) if magnitudes(formula, extents, x).is_some() => Self::Magnitudes,
            _ => Self::Sum,
        }
    }

    /// What joins with any value to that value.
    pub(crate) const fn start(self) -> f64 {
        match self {
            Self::Sum | Self::Magnitudes | Self::Largest => 0.0,
            Self::Greatest => f64::NEG_INFINITY,
        }
    }

    #[inline(always)]
    pub(crate) fn join(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Sum | Self::Magnitudes => a + b,
            Self::Largest | Self::Greatest => {
                if b > a {
                    b
                } else {
                    a
                }
            }
        }
    }

    /// Joins neighbours, then pairs of them, and so on.
    #[inline(always)]
    fn across(self, lanes: &[f64; LANES]) -> f64 {
        let mut values = *lanes;
        let mut length = LANES;
        while length > 1 {
            length /= 2;
            for i in 0..length {
                values[i] = self.join(values[2 * i], values[2 * i + 1]);
            }
        }
        values[0]
    }
}

#[inline(always)]
fn fold_lanes(fold: Fold, lanes: &mut [f64; LANES], x: &[f32], y: Option<&[f32]>) {
    match (fold, y) {
        (Fold::Sum, None) => each_lane(lanes, x, |sum, x| sum + f64::from(x)),
        (Fold::Magnitudes, _) => each_lane(lanes, x, |sum, x| sum + f64::from(x.abs())),
        (Fold::Largest, _) => each_lane(lanes, x, |most, x| Fold::Largest.join(most, f64::from(x.abs()))),
        (Fold::Greatest, _) => each_lane(lanes, x, |most, x| Fold::Greatest.join(most, f64::from(x))),
        (Fold::Sum, Some(y)) => {
            let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
            for (x, y) in x.iter().zip(y) {
                for lane in 0..LANES {
                    lanes[lane] += f64::from(x[lane]) * f64::from(y[lane]);
                }
            }
            for (lane, (&x, &y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
                *lane += f64::from(x) * f64::from(y);
            }
        }
    }
}

/// Takes each lane into a value of its own.
#[inline(always)]
fn fold_apart(fold: Fold, values: &mut [f64], x: &[f32], y: Option<&[f32]>) {
    match (fold, y) {
        (Fold::Sum, Some(y)) => {
            for ((value, &x), &y) in values.iter_mut().zip(x).zip(y) {
                *value += f64::from(x) * f64::from(y);
            }
        }
        (Fold::Sum, None) => values.iter_mut().zip(x).for_each(|(value, &x)| *value += f64::from(x)),
        (Fold::Magnitudes, _) => {
            values.iter_mut().zip(x).for_each(|(value, &x)| *value += f64::from(x.abs()));
        }
        (Fold::Largest, _) => {
            values.iter_mut().zip(x).for_each(|(most, &x)| *most = fold.join(*most, f64::from(x.abs())));
        }
        (Fold::Greatest, _) => {
            values.iter_mut().zip(x).for_each(|(most, &x)| *most = fold.join(*most, f64::from(x)));
        }
    }
}

#[inline(always)]
fn each_lane(lanes: &mut [f64; LANES], x: &[f32], f: impl Fn(f64, f32) -> f64) {
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for lane in 0..LANES {
            lanes[lane] = f(lanes[lane], x[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, x);
    }
}
