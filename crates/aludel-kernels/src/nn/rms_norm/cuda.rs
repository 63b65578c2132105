//! Normalises rows on a CUDA device: a warp to a narrow row, a block to a wide one.

use crate::cuda::driver::{Argument, Grid};
use crate::nn::cuda::{Buffer, Cuda, Text};
use crate::nn::device::{Accumulate, Norm, Rows};
use crate::nn::elementwise::cuda::add_columns;

pub(in crate::nn) const fn text() -> Text<'static> {
    Text { name: "rms_norm", defines: "", parts: &[include_str!("kernels.cu")] }
}

/// Rows up to this width are a warp's.
const NARROW: usize = 512;

fn grid(shape: Rows) -> (Grid, Argument) {
    let group = if shape.width <= NARROW { 32 } else { 256 };
    let blocks = shape.rows.div_ceil(256 / group);
    (Grid { blocks: [blocks as u32, 1, 1], threads: 256, shared: 0 }, Argument::Int(group as i32))
}

pub(in crate::nn) fn forward(
    cuda: &Cuda,
    norm: Norm,
    shape: Rows,
    x: &Buffer,
    weight: &Buffer,
    y: &mut Buffer,
    rstd: &mut Buffer,
) {
    let Rows { rows, width } = shape;
    let lengths = (x.len(), y.len(), weight.len(), rstd.len());
    assert_eq!(lengths, (rows * width, rows * width, width, rows), "operands of a norm");
    let (grid, group) = grid(shape);
    let arguments = [
        x.halves(),
        weight.argument(),
        weight.type_argument(),
        y.halves(),
        rstd.floats(),
        Argument::Long(rows as i64),
        Argument::Long(width as i64),
        Argument::Float(norm.epsilon),
        Argument::Int(i32::from(norm.one_plus)),
        group,
    ];
    cuda.run(text(), "rms_norm", grid, &arguments);
}

#[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
pub(in crate::nn) fn backward(
    cuda: &Cuda,
    norm: Norm,
    shape: Rows,
    x: &Buffer,
    weight: &Buffer,
    rstd: &Buffer,
    dy: &Buffer,
    dx: &mut Buffer,
    into: Accumulate,
    d_weight: Option<&mut Buffer>,
) {
    let Rows { rows, width } = shape;
    let lengths = (x.len(), dy.len(), dx.len(), weight.len(), rstd.len());
    let all = rows * width;
    assert_eq!(lengths, (all, all, all, width, rows), "operands of a norm's gradient");
    let (grid, group) = grid(shape);
    let arguments = [
        x.halves(),
        weight.argument(),
        weight.type_argument(),
        rstd.floats(),
        dy.halves(),
        dx.halves(),
        Argument::Long(rows as i64),
        Argument::Long(width as i64),
        Argument::Int(i32::from(norm.one_plus)),
        group,
        Argument::Int(i32::from(into == Accumulate::Add)),
    ];
    cuda.run(text(), "rms_norm_backward", grid, &arguments);
    if let Some(d_weight) = d_weight {
        add_columns(cuda, rows, dy, Some((x, rstd)), d_weight);
    }
}
