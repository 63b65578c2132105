//! Turns heads on a CUDA device.

use crate::cuda::operation::Argument;
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
    let half = rotated / 2;
    let is_eight = half.is_multiple_of(8) && width.is_multiple_of(8);
    let pieces = rows * heads * half / if is_eight { 8 } else { 1 };
    assert!(u32::try_from(pieces).is_ok(), "pieces that 32 bits count");
    let arguments = [
        x.halves(),
        cos.floats(),
        sin.floats(),
        positions.argument(),
        Argument::Int(pieces as u32 as i32),
        Argument::Int(heads as i32),
        Argument::Int(width as i32),
        Argument::Int(half as i32),
        Argument::Float(sign),
        Argument::Int(i32::from(is_eight)),
    ];
    cuda.each(text(), "rotate", pieces, &arguments);
}
