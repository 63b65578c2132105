//! Runs the norm over rows on the threads. The gradient of the weight is summed over pieces of a fixed number of rows, and
//! the pieces in order.

use crate::nn::cpu::buffer::Values;
use crate::nn::cpu::math::Arithmetic;
use crate::nn::cpu::{Cpu, dispatch, lanes};
use crate::nn::device::{Accumulate, Norm, Rows};

/// Rows of a piece.
const ROWS: usize = 32;

pub(in crate::nn) fn forward(
    cpu: &Cpu,
    norm: Norm,
    shape: Rows,
    x: &[f32],
    weight: Values<'_>,
    y: &mut [f32],
    rstd: &mut [f32],
) {
    let Rows { rows, width } = shape;
    assert_eq!((x.len(), y.len(), rstd.len()), (rows * width, rows * width, rows), "shapes of a norm");
    let gain = gain(norm, weight, width);
    let piece = pieces_of(rows, width) * width.max(1);
    let pieces = x.chunks(piece).zip(y.chunks_mut(piece)).zip(rstd.chunks_mut(piece / width.max(1)));
    cpu.each(pieces.collect(), 8 * x.len(), |((x, y), rstd)| {
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd);
        for ((x, y), rstd) in rows {
            *rstd = dispatch::rms_norm(norm, x, &gain, y);
        }
    });
}

#[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
pub(in crate::nn) fn backward(
    cpu: &Cpu,
    norm: Norm,
    shape: Rows,
    x: &[f32],
    weight: Values<'_>,
    rstd: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    into: Accumulate,
    d_weight: Option<&mut [f32]>,
) {
    let Rows { rows, width } = shape;
    assert_eq!((x.len(), dy.len(), dx.len()), (rows * width, rows * width, rows * width), "shapes of a norm");
    assert_eq!(rstd.len(), rows, "rows of a norm");
    let gain = gain(norm, weight, width);
    let wants_weight = d_weight.is_some();
    let rows_of_piece = pieces_of(rows, width);
    let piece = rows_of_piece * width.max(1);
    let pieces =
        x.chunks(piece).zip(dy.chunks(piece)).zip(dx.chunks_mut(piece)).zip(rstd.chunks(rows_of_piece));
    let sums = cpu.map(pieces.collect(), 16 * x.len(), |(((x, dy), dx), rstd)| {
        let mut sum = wants_weight.then(|| vec![0.0; width]);
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
        for (((x, dy), dx), &rstd) in rows.zip(rstd) {
            dispatch::rms_norm_backward(x, &gain, rstd, dy, dx, into, sum.as_deref_mut());
        }
        sum
    });
    if let Some(d_weight) = d_weight {
        assert_eq!(d_weight.len(), width, "the weight of a norm");
        for sum in sums.into_iter().flatten() {
            dispatch::add(&sum, 1.0, d_weight);
        }
    }
}

#[inline(always)]
pub(in crate::nn) fn forward_row(
    a: impl Arithmetic,
    norm: Norm,
    x: &[f32],
    gain: &[f32],
    y: &mut [f32],
) -> f32 {
    let mean = lanes::dot(a, x, x) / x.len() as f32;
    let rstd = 1.0 / (mean + norm.epsilon).sqrt();
    for ((y, &x), &gain) in y.iter_mut().zip(x).zip(gain) {
        *y = x * rstd * gain;
    }
    rstd
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
pub(in crate::nn) fn backward_row(
    a: impl Arithmetic,
    x: &[f32],
    gain: &[f32],
    rstd: f32,
    dy: &[f32],
    dx: &mut [f32],
    into: Accumulate,
    d_weight: Option<&mut [f32]>,
) {
    // The sum runs over products of three; the first pair is made where the result goes only if that is free.
    let mut sum = 0.0;
    let mut products = [0.0; 256];
    for ((x, dy), gain) in x.chunks(256).zip(dy.chunks(256)).zip(gain.chunks(256)) {
        let products = &mut products[..x.len()];
        for ((p, &dy), &gain) in products.iter_mut().zip(dy).zip(gain) {
            *p = dy * gain;
        }
        sum += lanes::dot(a, x, products);
    }
    let shift = rstd * rstd * (sum / x.len() as f32);
    match into {
        Accumulate::Overwrite => {
            for (((dx, &x), &dy), &gain) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
                *dx = rstd * a.mul_add(-x, shift, dy * gain);
            }
        }
        Accumulate::Add => {
            for (((dx, &x), &dy), &gain) in dx.iter_mut().zip(x).zip(dy).zip(gain) {
                *dx = a.mul_add(rstd, a.mul_add(-x, shift, dy * gain), *dx);
            }
        }
    }
    if let Some(d_weight) = d_weight {
        for ((d, &x), &dy) in d_weight.iter_mut().zip(x).zip(dy) {
            *d = a.mul_add(dy, x * rstd, *d);
        }
    }
}

/// Narrow rows (heads) go in larger pieces.
fn pieces_of(rows: usize, width: usize) -> usize {
    (ROWS * 512 / width.max(1)).clamp(ROWS / 4, 8 * ROWS).min(rows.max(1))
}

fn gain(norm: Norm, weight: Values<'_>, width: usize) -> Vec<f32> {
    assert_eq!(weight.len(), width, "the weight of a norm");
    let mut gain = vec![0.0; width];
    weight.decode(&mut gain);
    if norm.one_plus {
        gain.iter_mut().for_each(|gain| *gain += 1.0);
    }
    gain
}
