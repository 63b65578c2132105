//! Runs the rotation over rows on the threads.

use crate::nn::cpu::math::Arithmetic;
use crate::nn::cpu::{CHUNK, Cpu, dispatch};
use crate::nn::device::{Direction, Heads};

#[expect(clippy::too_many_arguments, reason = "the tables are two slices")]
pub(in crate::nn) fn rotate(
    cpu: &Cpu,
    direction: Direction,
    shape: Heads,
    rotated: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
    x: &mut [f32],
) {
    let row = shape.heads * shape.width;
    assert_eq!((x.len(), positions.len()), (shape.rows * row, shape.rows), "shapes of a rotation");
    assert!(rotated <= shape.width && rotated.is_multiple_of(2), "elements that are turned");
    if x.is_empty() || rotated == 0 {
        return;
    }
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    let (half, operations) = (rotated / 2, 4 * x.len());
    let rows = (CHUNK / row).max(1);
    cpu.each(x.chunks_mut(rows * row).zip(positions.chunks(rows)).collect(), operations, |(x, positions)| {
        for (x, &position) in x.chunks_exact_mut(row).zip(positions) {
            let at = position as usize * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in x.chunks_exact_mut(shape.width) {
                dispatch::rotate(sign, cos, sin, &mut head[..rotated]);
            }
        }
    });
}

#[inline(always)]
pub(in crate::nn) fn head(a: impl Arithmetic, sign: f32, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let (low, high) = x.split_at_mut(cos.len());
    for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (x, y, sin) = (*low, *high, sign * sin);
        *low = a.mul_add(x, cos, -(y * sin));
        *high = a.mul_add(y, cos, x * sin);
    }
}
