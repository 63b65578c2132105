//! Normalises rows on a CUDA device: a warp to a narrow row, a block to a wide one.

use crate::cuda::operation::{Argument, Grid};
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda, Text};
use crate::nn::device::{Accumulate, Norm, Rows};
use crate::nn::elementwise::cuda::{add_columns, add_parts};

pub(in crate::nn) const fn text() -> Text<'static> {
    Text { name: "rms_norm", defines: "", parts: &[include_str!("kernels.cu")] }
}

/// Rows up to this width are a warp's.
const NARROW: usize = 512;

/// Columns that a block looks at in one go, eight to a thread.
const CHUNK: usize = 2048;

/// Chunks of which a thread's registers hold everything.
const CHUNKS: usize = 4;

/// Blocks that share out wide rows: about as many as a large device holds at once.
const BLOCKS: usize = 1024;

/// The same where they sum a weight's gradient. No function of the device, so that sums are the same on all.
const PARTS: usize = 512;

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
    if is_wide(width) {
        let arguments = [
            x.halves(),
            weight.argument(),
            weight.type_argument(),
            y.halves(),
            rstd.floats(),
            Argument::Long(rows as i64),
            Argument::Int(width as i32),
            Argument::Float(norm.epsilon),
            Argument::Int(i32::from(norm.one_plus)),
        ];
        let defines = defines(width);
        let grid = Grid { blocks: [rows.min(BLOCKS) as u32, 1, 1], threads: 256, shared: 0 };
        cuda.run(text_of_wide(&defines), "rms_norm_wide", grid, &arguments);
        return;
    }
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
    mut d_weight: Option<&mut Buffer>,
) {
    let Rows { rows, width } = shape;
    let lengths = (x.len(), dy.len(), dx.len(), weight.len(), rstd.len());
    let all = rows * width;
    assert_eq!(lengths, (all, all, all, width, rows), "operands of a norm's gradient");
    if let (true, Some(d_weight)) = (is_wide(width), &mut d_weight) {
        return backward_sums(cuda, norm, shape, [x, weight, rstd, dy], dx, into, d_weight);
    }
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

/// Rows that a block's registers hold.
fn is_wide(width: usize) -> bool {
    width.is_multiple_of(8) && (NARROW + 1..=CHUNKS * CHUNK).contains(&width)
}

fn defines(width: usize) -> String {
    format!("#define CHUNKS {}\n", width.div_ceil(CHUNK))
}

fn text_of_wide(defines: &str) -> Text<'_> {
    Text { name: defines, defines, parts: &[include_str!("wide.cu")] }
}

/// With the weight's gradient, in one sweep.
fn backward_sums(
    cuda: &Cuda,
    norm: Norm,
    shape: Rows,
    [x, weight, rstd, dy]: [&Buffer; 4],
    dx: &mut Buffer,
    into: Accumulate,
    d_weight: &mut Buffer,
) {
    let Rows { rows, width } = shape;
    let parts = rows.clamp(1, PARTS);
    let Some(sums) = cuda.scratch(parts * width, Element::F32) else { return };
    let arguments = [
        x.halves(),
        weight.argument(),
        weight.type_argument(),
        rstd.floats(),
        dy.halves(),
        dx.halves(),
        Argument::Long(rows as i64),
        Argument::Int(width as i32),
        Argument::Int(i32::from(norm.one_plus)),
        Argument::Int(i32::from(into == Accumulate::Add)),
        sums.argument(),
    ];
    let defines = defines(width);
    let grid = Grid { blocks: [parts as u32, 1, 1], threads: 256, shared: 0 };
    cuda.run(text_of_wide(&defines), "rms_norm_backward_sums", grid, &arguments);
    add_parts(cuda, &sums, parts, d_weight);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_wide_rows_compile_for_every_width() {
        for chunks in 1..=CHUNKS {
            text_of_wide(&defines(chunks * CHUNK)).assert_compiles();
        }
    }
}
