//! Multiplies few rows by a weight where it lies: each of its bytes is read once, in order, and decoded in registers.
//!
//! In: up to four rows, and rows of a weight. Out: their products, not yet scaled.

use super::cpu::FEW_ROWS;
use crate::nn::cpu::buffer::Values;
use crate::nn::cpu::lanes::{self, LANES, of_bf16, of_f16};
use crate::nn::cpu::math::Arithmetic;

/// `sums[column][row]`; `x` has up to four rows of `inputs`.
#[inline(always)]
pub(in crate::nn) fn products(
    a: impl Arithmetic,
    x: &[f32],
    inputs: usize,
    weight: Values<'_>,
    sums: &mut [[f32; FEW_ROWS]],
) {
    match weight {
        Values::F32(w) => typed(a, x, inputs, w, sums, |w| w),
        Values::BF16(w) => typed(a, x, inputs, w, sums, of_bf16),
        Values::F16(w) => typed(a, x, inputs, w, sums, of_f16),
    }
}

#[inline(always)]
fn typed<W: Copy>(
    a: impl Arithmetic,
    x: &[f32],
    inputs: usize,
    weight: &[W],
    sums: &mut [[f32; FEW_ROWS]],
    decode: impl Fn(W) -> f32 + Copy,
) {
    let row = |index: usize| &x[index * inputs..(index + 1) * inputs];
    for (w, sums) in weight.chunks_exact(inputs).zip(sums) {
        match x.len() / inputs {
            1 => sums[..1].copy_from_slice(&column::<1, 4, W>(a, [row(0)], w, decode)),
            2 => sums[..2].copy_from_slice(&column::<2, 2, W>(a, [row(0), row(1)], w, decode)),
            3 => sums[..3].copy_from_slice(&column::<3, 2, W>(a, [row(0), row(1), row(2)], w, decode)),
            _ => *sums = column::<4, 2, W>(a, [row(0), row(1), row(2), row(3)], w, decode),
        }
    }
}

/// One row of the weight with `R` rows of inputs, in `V` vectors each, so that additions do not wait for each other.
#[inline(always)]
fn column<const R: usize, const V: usize, W: Copy>(
    a: impl Arithmetic,
    x: [&[f32]; R],
    w: &[W],
    decode: impl Fn(W) -> f32,
) -> [f32; R] {
    let mut sums = [[[0.0f32; LANES]; V]; R];
    let (lines, rest) = w.as_chunks::<LANES>();
    let (groups, lines) = lines.as_chunks::<V>();
    let x_rest = x.map(|x| &x[w.len() - rest.len()..w.len()]);
    let x_lines = x.map(|x| x.as_chunks::<LANES>().0.as_chunks::<V>());
    // Loops of constant length alone keep the sums in registers.
    for (index, group) in groups.iter().enumerate() {
        for v in 0..V {
            let w = decoded(&group[v], &decode);
            for r in 0..R {
                add_line(a, &x_lines[r].0[index][v], &w, &mut sums[r][v]);
            }
        }
    }
    for (index, line) in lines.iter().enumerate() {
        let w = decoded(line, &decode);
        for r in 0..R {
            add_line(a, &x_lines[r].1[index], &w, &mut sums[r][0]);
        }
    }
    for (sums, x) in sums.iter_mut().zip(x_rest) {
        for ((sum, &x), &w) in sums[0].iter_mut().zip(x).zip(rest) {
            *sum = a.mul_add(x, decode(w), *sum);
        }
    }
    sums.map(|sums| lanes::total(&sums))
}

#[inline(always)]
fn add_line(a: impl Arithmetic, x: &[f32; LANES], w: &[f32; LANES], sums: &mut [f32; LANES]) {
    for i in 0..LANES {
        sums[i] = a.mul_add(x[i], w[i], sums[i]);
    }
}

/// As a loop: the library's `map` of an array is not made into vector code.
#[inline(always)]
fn decoded<W: Copy>(line: &[W; LANES], decode: impl Fn(W) -> f32) -> [f32; LANES] {
    let mut decoded = [0.0; LANES];
    for i in 0..LANES {
        decoded[i] = decode(line[i]);
    }
    decoded
}
