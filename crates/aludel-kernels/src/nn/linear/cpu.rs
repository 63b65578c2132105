//! Cuts products into panels by their shape and runs the panels on the threads.
//!
//! A product is a list of groups: rows, and the weight that they share. A dense product has one.

use std::cell::RefCell;
use std::ops::Range;

use crate::nn::cpu::buffer::Values;
use crate::nn::cpu::window::{Matrix, Window, pieces};
use crate::nn::cpu::{Cpu, dispatch};
use crate::nn::device::{Accumulate, Product};

/// Rows that share a weight.
#[derive(Clone)]
pub(crate) struct Group<'a> {
    pub(crate) rows: Range<usize>,
    pub(crate) weight: Values<'a>,
}

/// Up to this many rows a product is bound by the weight's bytes, and packing a panel for the library costs more than
/// multiplying.
pub(in crate::nn) const FEW_ROWS: usize = 4;

/// Rows of a panel of outputs, at most: the library packs a panel of the weight once for all of them.
const PANEL_ROWS: usize = 512;
/// Where the columns make fewer panels than this, the rows are cut into smaller ones: the products of a LoRA have few
/// columns.
const FEWEST_PANELS: usize = 4;
const FEWEST_ROWS: usize = 64;
/// Columns of a panel of outputs: few, so that a narrow layer still has a panel for every core.
const PANEL_COLUMNS: usize = 96;
/// Rows and columns of a panel of a weight's gradient, at most.
const GRADIENT_ROWS: usize = 192;
const GRADIENT_COLUMNS: usize = 512;
/// Rows of a weight that are decoded at once for the gradient of inputs.
const PANEL_DEPTH: usize = 512;

thread_local! {
    /// Decoded panels of a weight. Grows to the largest panel, a few hundred thousand elements.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `y = s x w^T + b`, or added to `y`. The rows of the groups ascend; rows of `y` outside them stay.
pub(crate) fn forward(
    cpu: &Cpu,
    product: Product,
    groups: &[Group<'_>],
    x: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
    into: Accumulate,
) {
    let Product { rows, inputs, outputs, scale } = product;
    assert_eq!((x.len(), y.len()), (rows * inputs, rows * outputs), "shapes of a product");
    assert!(groups.iter().all(|group| group.weight.len() == inputs * outputs), "the weight of a product");
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "the bias of a product");
    let panels = panels(groups, y, outputs, PANEL_COLUMNS);
    cpu.each(panels, 2 * covered(groups) * inputs * outputs, |(group, mut window)| {
        let (rows, columns) = (window.rows(), window.columns());
        let x = &x[rows.start * inputs..rows.end * inputs];
        let weight = group.weight.slice(columns.start * inputs..columns.end * inputs);
        if rows.len() <= FEW_ROWS {
            few_rows(&mut window, inputs, scale, x, weight, into);
        } else {
            SCRATCH.with_borrow_mut(|scratch| {
                let w = packable(weight, columns.len(), inputs, scratch).transposed();
                window.multiply(scale, Matrix::dense(x, rows.len(), inputs), w, into);
            });
        }
        if let Some(bias) = bias {
            for row in 0..rows.len() {
                dispatch::add(&bias[columns.clone()], 1.0, window.row(row));
            }
        }
    });
}

/// `y = x w^T`, on the thread that asks.
pub(crate) fn multiply_here(x: &[f32], w: &[f32], inputs: usize, y: &mut [f32]) {
    let (rows, outputs) = (x.len() / inputs.max(1), w.len() / inputs.max(1));
    SCRATCH.with_borrow_mut(|scratch| {
        let w = packable(Values::F32(w), outputs, inputs, scratch).transposed();
        Window::whole(y, rows, outputs).multiply(
            1.0,
            Matrix::dense(x, rows, inputs),
            w,
            Accumulate::Overwrite,
        );
    });
}

/// `dx = s dy w`, or added to `dx`.
pub(crate) fn backward_input(
    cpu: &Cpu,
    product: Product,
    groups: &[Group<'_>],
    dy: &[f32],
    dx: &mut [f32],
    into: Accumulate,
) {
    let Product { rows, inputs, outputs, scale } = product;
    assert_eq!((dx.len(), dy.len()), (rows * inputs, rows * outputs), "shapes of a product");
    assert!(groups.iter().all(|group| group.weight.len() == inputs * outputs), "the weight of a product");
    let panels = panels(groups, dx, inputs, PANEL_COLUMNS);
    cpu.each(panels, 2 * covered(groups) * inputs * outputs, |(group, mut window)| {
        let (rows, columns) = (window.rows(), window.columns());
        let dy = &dy[rows.start * outputs..rows.end * outputs];
        if let Values::F32(w) = group.weight {
            let w = Matrix::new(&w[columns.start.min(w.len())..], outputs, columns.len(), inputs);
            window.multiply(scale, Matrix::dense(dy, rows.len(), outputs), w, into);
            return;
        }
        let mut into = into;
        for depth in pieces(0..outputs, PANEL_DEPTH) {
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(scratch.len().max(depth.len() * columns.len()), 0.0);
                let scratch = &mut scratch[..depth.len() * columns.len()];
                for (row, to) in depth.clone().zip(scratch.chunks_exact_mut(columns.len())) {
                    group.weight.slice(row * inputs + columns.start..row * inputs + columns.end).decode(to);
                }
                let w = Matrix::dense(scratch, depth.len(), columns.len());
                let dy = Matrix::new(&dy[depth.start..], rows.len(), depth.len(), outputs);
                window.multiply(scale, dy, w, into);
            });
            into = Accumulate::Add;
        }
        if outputs == 0 && into == Accumulate::Overwrite {
            window.fill(0.0);
        }
    });
}

/// `dw += s dy^T x` for each group with rows; `dw` has one gradient for each group.
pub(crate) fn backward_weight(
    cpu: &Cpu,
    product: Product,
    groups: &[Range<usize>],
    dy: &[f32],
    x: &[f32],
    dw: &mut [&mut [f32]],
) {
    let Product { rows, inputs, outputs, scale } = product;
    assert_eq!((x.len(), dy.len()), (rows * inputs, rows * outputs), "shapes of a product");
    assert_eq!(groups.len(), dw.len(), "gradients of a grouped product");
    let mut panels = Vec::new();
    let mut operations = 0;
    for (rows, dw) in groups.iter().zip(dw) {
        assert_eq!(dw.len(), inputs * outputs, "the gradient of a weight");
        if !rows.is_empty() {
            let windows = Window::split(
                dw,
                inputs,
                &even_pieces(outputs, GRADIENT_ROWS),
                &even_pieces(inputs, GRADIENT_COLUMNS),
            );
            panels.extend(windows.into_iter().map(|window| (rows.clone(), window)));
            operations += 2 * rows.len() * inputs * outputs;
        }
    }
    cpu.each(panels, operations, |(rows, mut window)| {
        let (of_output, of_input) = (window.rows(), window.columns());
        let dy =
            Matrix::new(&dy[rows.start * outputs + of_output.start..], rows.len(), of_output.len(), outputs);
        let x = Matrix::new(&x[rows.start * inputs + of_input.start..], rows.len(), of_input.len(), inputs);
        window.multiply(scale, dy.transposed(), x, Accumulate::Add);
    });
}

/// `db += sum over rows of dy`, in the order of the rows.
pub(in crate::nn) fn backward_bias(cpu: &Cpu, product: Product, dy: &[f32], d_bias: &mut [f32]) {
    let outputs = product.outputs;
    assert_eq!(d_bias.len(), outputs, "the gradient of a bias");
    let columns = pieces(0..outputs, PANEL_COLUMNS).into_iter().zip(d_bias.chunks_mut(PANEL_COLUMNS));
    cpu.each(columns.collect(), dy.len(), |(columns, d_bias)| {
        for dy in dy.chunks_exact(outputs) {
            dispatch::add(&dy[columns.clone()], 1.0, d_bias);
        }
    });
}

/// Each group's windows of the output, with the group.
fn panels<'g, 'w, 'y>(
    groups: &'g [Group<'w>],
    y: &'y mut [f32],
    width: usize,
    columns: usize,
) -> Vec<(&'g Group<'w>, Window<'y>)> {
    let columns = pieces(0..width, columns);
    let cuts = FEWEST_PANELS.div_ceil(columns.len().max(1));
    let mut of_window = Vec::new();
    let mut rows = Vec::new();
    for group in groups {
        let size = group.rows.len().div_ceil(cuts).next_multiple_of(16).clamp(FEWEST_ROWS, PANEL_ROWS);
        for piece in pieces(group.rows.clone(), size) {
            of_window.push(group);
            rows.push(piece);
        }
    }
    let windows = Window::split(y, width, &rows, &columns);
    windows.into_iter().enumerate().map(|(i, window)| (of_window[i / columns.len()], window)).collect()
}

fn covered(groups: &[Group<'_>]) -> usize {
    groups.iter().map(|group| group.rows.len()).sum()
}

/// The weight's rows as a matrix of f32, decoded into the scratch or where they are.
///
/// The library reads a column of it at a time. Where rows lie a multiple of 1 KiB apart, the elements of a column share a few
/// sets of the first cache and drive each other out, so such rows are copied to a stride that is an odd number of lines.
fn packable<'v>(weight: Values<'v>, rows: usize, inputs: usize, scratch: &'v mut Vec<f32>) -> Matrix<'v> {
    const LINE: usize = 16;
    match weight {
        Values::F32(w) if !inputs.is_multiple_of(16 * LINE) => Matrix::dense(w, rows, inputs),
        _ => {
            let stride = (inputs.div_ceil(LINE) | 1) * LINE;
            if scratch.len() < rows * stride {
                scratch.resize(rows * stride, 0.0);
            }
            for (row, to) in scratch.chunks_exact_mut(stride).take(rows).enumerate() {
                weight.slice(row * inputs..(row + 1) * inputs).decode(&mut to[..inputs]);
            }
            Matrix::new(scratch, rows, inputs, stride)
        }
    }
}

/// Cuts `0..len` into equal pieces of at most about `size`, whole lines where possible.
fn even_pieces(len: usize, size: usize) -> Vec<Range<usize>> {
    let count = len.div_ceil(size).max(1);
    pieces(0..len, len.div_ceil(count).next_multiple_of(16).max(16))
}

/// Reads every row of the weight once and multiplies it with all rows of `x`.
fn few_rows(
    window: &mut Window<'_>,
    inputs: usize,
    scale: f32,
    x: &[f32],
    weight: Values<'_>,
    into: Accumulate,
) {
    let mut sums = [[0.0; FEW_ROWS]; PANEL_COLUMNS];
    let (rows, columns) = (window.rows().len(), window.columns().len());
    if inputs > 0 {
        dispatch::few_rows(x, inputs, weight, &mut sums[..columns]);
    }
    for row in 0..rows {
        for (y, sums) in window.row(row).iter_mut().zip(&sums) {
            *y = match into {
                Accumulate::Overwrite => scale * sums[row],
                Accumulate::Add => *y + scale * sums[row],
            };
        }
    }
}
