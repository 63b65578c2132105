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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::driver::Grid;
    use crate::nn::Device;
    use crate::nn::cpu::testing::{cpu, floats, read, values};
    use crate::nn::cuda::on_cpu::{self, Given, distance, rounded};

    /// Eight pairs at a time, and one.
    #[test]
    fn heads_come_out_as_the_cpus() {
        for (width, rotated, eight) in [(64, 32, true), (24, 20, false)] {
            let shape @ Heads { rows, heads, .. } = Heads { rows: 5, heads: 3, width };
            let (half, positions) = (rotated / 2, [3, 0, 7, 7, 1]);
            let (cos, sin) = (values(8 * half, 1), values(8 * half, 2));
            let x = rounded(&values(rows * heads * width, 3));
            let cpu = cpu(1);
            let mut turned = floats(&cpu, &x);
            let (cos_there, sin_there) = (floats(&cpu, &cos), floats(&cpu, &sin));
            let places = cpu.indices(&positions).unwrap();
            cpu.rotate(Direction::Backward, shape, rotated, &cos_there, &sin_there, &places, &mut turned);
            let pieces = rows * heads * half / if eight { 8 } else { 1 };
            let mut arguments = [
                Given::halves(&x),
                Given::floats(&cos),
                Given::floats(&sin),
                Given::numbers(&positions),
                Given::Int(pieces as i32),
                Given::Int(heads as i32),
                Given::Int(width as i32),
                Given::Int(half as i32),
                Given::Float(-1.0),
                Given::Int(i32::from(eight)),
            ];
            let grid = Grid { blocks: [1, 1, 1], threads: 256, shared: 0 };
            if !on_cpu::run(&text(), "rotate", grid, 1, &mut arguments) {
                return;
            }
            let apart = distance(&arguments[0].to_halves(), &read(&cpu, &turned));
            assert!(apart < 4e-3, "heads of {width}: {apart:.1e}");
        }
    }
}
