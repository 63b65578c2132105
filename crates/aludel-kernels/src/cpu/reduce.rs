//! Reduces blocks to partial sums and extremes, in f64 and in an order that only the element's index decides.
//!
//! In: the lanes of one block at a time, in order, for one chunk. Out: a [`Partial`] per reduction and chunk, which
//! [`combine`] joins in chunk order. Sixteen lane sums are kept because that many f64 fill the widest registers twice
//! over; the number is part of the result's definition, not of the machine.

use super::block::{Geometry, Segment, rows_of};
use crate::formula::Axis;

const LANES: usize = 16;

/// What is accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    Sum,
    /// The sum of the magnitudes.
    Magnitudes,
    Largest,
}

/// One reduction over one chunk, being accumulated.
#[derive(Debug)]
pub(super) struct Accumulator {
    axis: Axis,
    fold: Fold,
    lanes: [f64; LANES],
    first_row: u64,
    rows: Vec<f64>,
}

/// One reduction over one chunk.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    first_row: u64,
    /// One value, or one for each row that the chunk touches.
    values: Vec<f64>,
}

impl Accumulator {
    pub(super) fn new(axis: Axis, fold: Fold, first_row: u64) -> Self {
        Self { axis, fold, lanes: [0.0; LANES], first_row, rows: Vec::new() }
    }

    /// Takes in a block; `value` is that of a lane.
    #[inline(always)]
    pub(super) fn take(&mut self, segment: Segment, columns: u64, x: &[f32], y: Option<&[f32]>) {
        match self.axis {
            Axis::Tensor => fold_lanes(self.fold, &mut self.lanes, x, y),
            Axis::Row => {
                for (row, range) in rows_of(segment, columns) {
                    let mut lanes = [0.0; LANES];
                    fold_lanes(self.fold, &mut lanes, &x[range.clone()], y.map(|y| &y[range]));
                    let index = (row - self.first_row) as usize;
                    self.rows.resize(self.rows.len().max(index + 1), 0.0);
                    self.rows[index] = self.fold.join(self.rows[index], self.fold.across(&lanes));
                }
            }
        }
    }

    pub(super) fn finish(self) -> Partial {
        let values = match self.axis {
            Axis::Tensor => vec![self.fold.across(&self.lanes)],
            Axis::Row => self.rows,
        };
        Partial { first_row: self.first_row, values }
    }
}

/// Joins the partial results of all chunks, in chunk order: one value, or one per row.
pub(super) fn combine<'a>(
    axis: Axis,
    fold: Fold,
    geometry: Geometry,
    partials: impl Iterator<Item = &'a Partial>,
) -> Vec<f64> {
    let count = if axis == Axis::Tensor { 1 } else { geometry.rows() as usize };
    let mut values = vec![0.0; count];
    for partial in partials {
        let first = if axis == Axis::Tensor { 0 } else { partial.first_row as usize };
        for (value, &part) in values[first..].iter_mut().zip(&partial.values) {
            *value = fold.join(*value, part);
        }
    }
    values
}

impl Fold {
    #[inline(always)]
    fn join(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Sum | Self::Magnitudes => a + b,
            Self::Largest => {
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
