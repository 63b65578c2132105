//! Runs copies, sums and scalings on a CUDA device.

use crate::cuda::operation::{Argument, Grid};
use crate::element::Element;
use crate::nn::cuda::{Buffer, Cuda, Text, code};
use crate::nn::device::{Device, DeviceError};
use crate::nn::rows::runs;

pub(in crate::nn) const TEXT: &str = include_str!("kernels.cu");

pub(crate) const fn text() -> Text<'static> {
    Text { name: "elementwise", defines: "", parts: &[TEXT] }
}

/// Elements whose squares a block sums; a multiple of four.
const PIECE: usize = 1 << 18;

pub(in crate::nn) fn fill(cuda: &Cuda, y: &mut Buffer, value: f32) {
    let arguments = [y.argument(), y.type_argument(), Argument::Float(value), Argument::Long(y.len() as i64)];
    cuda.each(text(), "fill", y.len().div_ceil(8), &arguments);
}

pub(in crate::nn) fn add(cuda: &Cuda, x: &Buffer, scale: f32, y: &mut Buffer) {
    assert_eq!(x.len(), y.len(), "lengths of a sum");
    let arguments = [
        x.argument(),
        x.type_argument(),
        Argument::Float(scale),
        y.argument(),
        y.type_argument(),
        Argument::Long(y.len() as i64),
    ];
    cuda.each(text(), "add", y.len().div_ceil(8), &arguments);
}

pub(in crate::nn) fn scale(cuda: &Cuda, y: &mut Buffer, factor: f32) {
    let arguments =
        [y.argument(), y.type_argument(), Argument::Float(factor), Argument::Long(y.len() as i64)];
    cuda.each(text(), "scale", y.len().div_ceil(8), &arguments);
}

/// Whose rows are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::nn) enum Named {
    Sources,
    Targets,
}

/// `to[i, :] = from[rows[i], :]`, or `to[rows[i], :] = from[i, :]`: neighbours by a copy, others row by row.
pub(in crate::nn) fn move_rows(
    cuda: &Cuda,
    from: &Buffer,
    (rows, named): (&[usize], Named),
    width: usize,
    to: &mut Buffer,
) {
    let (here, there) = if named == Named::Sources { (from, &*to) } else { (&*to, from) };
    let reached = rows.iter().max().map_or(0, |last| last + 1);
    assert!(reached * width <= here.len() && rows.len() * width <= there.len(), "rows to move");
    let mut runs = runs(rows);
    match (runs.next(), runs.next()) {
        (None, _) => {}
        (Some((_, run)), None) => {
            let start = run.start * width;
            let (at, to_at) = if named == Named::Sources { (start, 0) } else { (0, start) };
            cuda.convert((from, at), (to, to_at), run.len() * width);
        }
        _ => {
            let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
            let Some(numbers) = cuda.keep(cuda.numbers(&rows)) else { return };
            let arguments = [
                numbers.argument(),
                Argument::Int(i32::from(named == Named::Targets)),
                from.argument(),
                from.type_argument(),
                to.argument(),
                to.type_argument(),
                Argument::Long(width as i64),
            ];
            cuda.each_row(text(), "move_rows", rows.len(), &arguments);
        }
    }
}

/// `y[t, :] += bias`.
pub(in crate::nn) fn add_bias(cuda: &Cuda, bias: &Buffer, rows: usize, y: &mut Buffer) {
    let arguments = [
        bias.argument(),
        bias.type_argument(),
        y.halves(),
        Argument::Long(rows as i64),
        Argument::Long(bias.len() as i64),
    ];
    cuda.each(text(), "add_bias", y.len(), &arguments);
}

/// `y += ` the sum over rows of `dy`, or of `dy x rstd`; in an order that depends on the shape alone.
pub(in crate::nn) fn add_columns(
    cuda: &Cuda,
    rows: usize,
    dy: &Buffer,
    normalised: Option<(&Buffer, &Buffer)>,
    y: &mut Buffer,
) {
    let width = y.len();
    assert_eq!(dy.len(), rows * width, "rows to add up");
    let columns = width.div_ceil(64);
    let parts = (rows / 64).clamp(1, (2048 / columns.max(1)).max(1));
    let Some(sums) = cuda.scratch(parts * width, Element::F32) else { return };
    let (x, rstd) =
        normalised.map_or((Argument::Address(0), Argument::Address(0)), |(x, r)| (x.halves(), r.floats()));
    let grid = Grid { blocks: [columns as u32, parts as u32, 1], threads: 256, shared: 0 };
    let arguments =
        [dy.halves(), x, rstd, Argument::Long(rows as i64), Argument::Long(width as i64), sums.argument()];
    cuda.run(text(), "sum_columns", grid, &arguments);
    add_parts(cuda, &sums, parts, y);
}

/// `y += ` the sum over rows of `sums`, in their order.
pub(in crate::nn) fn add_parts(cuda: &Cuda, sums: &Buffer, parts: usize, y: &mut Buffer) {
    let width = y.len();
    assert_eq!(sums.len(), parts * width, "parts to add up");
    let grid = Grid { blocks: [width.div_ceil(32) as u32, 1, 1], threads: 256, shared: 0 };
    let adds = Argument::Int(i32::from(!y.take_zero()));
    let numbers = [Argument::Int(parts as i32), Argument::Long(width as i64)];
    let arguments = [sums.floats(), numbers[0], numbers[1], y.floats(), adds];
    cuda.run(text(), "add_parts", grid, &arguments);
}

/// The sum of squares of each piece of buffers in f32 or bf16: f64, each in the place of two elements.
pub(in crate::nn) fn squares(cuda: &Cuda, buffers: &[&Buffer]) -> Result<Buffer, DeviceError> {
    let table: Vec<u32> = buffers
        .iter()
        .flat_map(|buffer| {
            let (address, len, element) = (buffer.address(), buffer.len(), buffer.element());
            assert_ne!(element, Element::F16, "squares are summed of f32 or bf16");
            let size = element.size() as u64;
            (0..len).step_by(PIECE).map(move |at| {
                [
                    address + size * at as u64,
                    PIECE.min(len - at) as u64 | (u64::from(code(element).cast_unsigned()) << 32),
                ]
            })
        })
        .flatten()
        .flat_map(|number| [number as u32, (number >> 32) as u32])
        .collect();
    let pieces = table.len() / 4;
    let table = cuda.told(cuda.numbers(&table))?;
    let sums = cuda.room(2 * pieces, Element::F32)?;
    let grid = Grid { blocks: [pieces as u32, 1, 1], threads: 256, shared: 0 };
    cuda.run(text(), "sum_squares", grid, &[table.argument(), sums.argument()]);
    Ok(sums)
}
