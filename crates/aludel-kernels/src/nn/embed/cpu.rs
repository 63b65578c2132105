//! Runs the look-up over rows, and its gradient over columns of the table, on the threads: rows may repeat, columns do not.

use crate::nn::cpu::buffer::Values;
use crate::nn::cpu::window::{Window, pieces};
use crate::nn::cpu::{CHUNK, Cpu, dispatch};

/// Columns that one thread adds to.
const COLUMNS: usize = 256;

pub(in crate::nn) fn forward(
    cpu: &Cpu,
    ids: &[u32],
    table: Values<'_>,
    width: usize,
    scale: f32,
    y: &mut [f32],
) {
    assert_eq!(y.len(), ids.len() * width, "rows of an embedding");
    if y.is_empty() {
        return;
    }
    let rows = (CHUNK / width).max(1);
    let operations = y.len();
    cpu.each(ids.chunks(rows).zip(y.chunks_mut(rows * width)).collect(), operations, |(ids, y)| {
        for (&id, y) in ids.iter().zip(y.chunks_exact_mut(width)) {
            let at = id as usize * width;
            table.slice(at..at + width).decode(y);
            if scale != 1.0 {
                dispatch::scale(y, scale);
            }
        }
    });
}

pub(in crate::nn) fn backward(
    cpu: &Cpu,
    ids: &[u32],
    dy: &[f32],
    width: usize,
    scale: f32,
    d_table: &mut [f32],
) {
    assert_eq!(dy.len(), ids.len() * width, "rows of an embedding");
    if dy.is_empty() {
        return;
    }
    let rows = d_table.len() / width;
    let windows = Window::split(d_table, width, &pieces(0..rows, rows.max(1)), &pieces(0..width, COLUMNS));
    cpu.each(windows, dy.len(), |mut window| {
        let columns = window.columns();
        for (&id, dy) in ids.iter().zip(dy.chunks_exact(width)) {
            dispatch::add(&dy[columns.clone()], scale, window.row(id as usize));
        }
    });
}
