//! Looks rows up on a CUDA device. For the gradient the rows of each id are brought together on the host, so that they are added in order.

use crate::cuda::operation::Argument;
use crate::nn::cuda::{Buffer, Cuda, Indices, Text};

pub(in crate::nn) const fn text() -> Text<'static> {
    Text { name: "embed", defines: "", parts: &[include_str!("kernels.cu")] }
}

pub(in crate::nn) fn forward(
    cuda: &Cuda,
    ids: &Indices,
    table: &Buffer,
    width: usize,
    scale: f32,
    y: &mut Buffer,
) {
    assert_eq!(y.len(), ids.len() * width, "rows that are looked up");
    let arguments = [
        ids.argument(),
        table.argument(),
        table.type_argument(),
        Argument::Long(width as i64),
        Argument::Float(scale),
        y.halves(),
    ];
    cuda.each_row(text(), "embed", ids.len(), &arguments);
}

pub(in crate::nn) fn backward(
    cuda: &Cuda,
    ids: &Indices,
    dy: &Buffer,
    width: usize,
    scale: f32,
    d_table: &mut Buffer,
) {
    assert_eq!(dy.len(), ids.len() * width, "rows that were looked up");
    let host = ids.host();
    let mut rows: Vec<u32> = (0..host.len() as u32).collect();
    rows.sort_by_key(|&row| host[row as usize]);
    let (mut found, mut starts) = (Vec::new(), Vec::new());
    for (at, &row) in rows.iter().enumerate() {
        let id = host[row as usize];
        if found.last() != Some(&id) {
            found.push(id);
            starts.push(at as u32);
        }
    }
    starts.push(rows.len() as u32);
    let count = found.len();
    let tables = [found, starts, rows].map(|numbers| cuda.keep(cuda.numbers(&numbers)));
    let [Some(found), Some(starts), Some(rows)] = tables else { return };
    let arguments = [
        found.argument(),
        starts.argument(),
        rows.argument(),
        dy.halves(),
        Argument::Long(width as i64),
        Argument::Float(scale),
        d_table.argument(),
        d_table.type_argument(),
    ];
    cuda.each_row(text(), "embed_backward", count, &arguments);
}
