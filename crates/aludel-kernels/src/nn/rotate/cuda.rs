//! Turns heads on a CUDA device.

use crate::cuda::driver::Argument;
use crate::nn::cuda::{Buffer, Cuda, Indices, Text};
use crate::nn::device::{Direction, Heads};

pub(in crate::nn) const fn text() -> Text<'static> {
    Text { name: "rotate", defines: "", parts: &[include_str!("kernels.cu")] }
}

pub(in crate::nn) fn rotate(
    cuda: &Cuda,
    direction: Direction,
    shape: Heads,
    rotated: usize,
    [cos, sin]: [&Buffer; 2],
    positions: &Indices,
    x: &mut Buffer,
) {
    let Heads { rows, heads, width } = shape;
    assert_eq!((x.len(), positions.len()), (rows * heads * width, rows), "heads and positions");
    assert!(rotated <= width, "more is turned than there is");
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let arguments = [
        x.halves(),
        cos.floats(),
        sin.floats(),
        positions.argument(),
        Argument::Long(rows as i64),
        Argument::Int(heads as i32),
        Argument::Int(width as i32),
        Argument::Int((rotated / 2) as i32),
        Argument::Float(sign),
    ];
    cuda.each(text(), "rotate", rows * heads * (rotated / 2), &arguments);
}
