//! Holds the rotation and its reverse to f64.

use super::reference;
use crate::nn::cpu::testing::*;
use crate::nn::device::{Device, Direction, Heads};

/// (heads, width, turned elements of a head)
const SHAPES: [(usize, usize, usize); 4] = [(1, 2, 2), (9, 64, 64), (3, 41, 20), (2, 80, 0)];

/// Tables of 11 positions.
fn tables(rotated: usize) -> (Vec<f32>, Vec<f32>) {
    let half = rotated / 2;
    let angle = |i: usize| (i / half.max(1)) as f32 / (1.7f32).powi((i % half.max(1)) as i32);
    (0..11 * half).map(|i| (angle(i).cos(), angle(i).sin())).unzip()
}

#[test]
fn both_directions_are_the_reference() {
    let cpu = cpu(2);
    for (heads, width, rotated) in SHAPES {
        for rows in [0, 1, 41, 401] {
            let positions: Vec<u32> = (0..rows).map(|t| (t * 7 % 11) as u32).collect();
            let (cos, sin) = tables(rotated);
            let x = values(rows * heads * width, 5);
            for (direction, sign) in [(Direction::Forward, 1.0), (Direction::Backward, -1.0)] {
                let mut y = floats(&cpu, &x);
                let at = cpu.indices(&positions).unwrap();
                let (c, s) = (floats(&cpu, &cos), floats(&cpu, &sin));
                cpu.rotate(direction, Heads { rows, heads, width }, rotated, &c, &s, &at, &mut y);
                let shape = (heads, width, rotated);
                let expected =
                    reference::rotate(sign, shape, &wide(&cos), &wide(&sin), &positions, &wide(&x));
                assert_close("y", &read(&cpu, &y), &expected, 2e-7);
            }
        }
    }
}

#[test]
fn backward_is_the_gradient() {
    let cpu = cpu(1);
    let (heads, width, rotated) = (3, 10, 8);
    let positions = [4, 0, 10];
    let (cos, sin) = tables(rotated);
    let (x, dy) = (values(3 * heads * width, 1), values(3 * heads * width, 2));
    let mut dx = floats(&cpu, &dy);
    let shape = Heads { rows: 3, heads, width };
    let at = cpu.indices(&positions).unwrap();
    let (c, s) = (floats(&cpu, &cos), floats(&cpu, &sin));
    cpu.rotate(Direction::Backward, shape, rotated, &c, &s, &at, &mut dx);
    let (cos, sin, dy) = (wide(&cos), wide(&sin), wide(&dy));
    let shape = (heads, width, rotated);
    let loss = |x: &[f64]| dot(&reference::rotate(1.0, shape, &cos, &sin, &positions, x), &dy);
    assert_gradient("dx", &read(&cpu, &dx), &wide(&x), loss, 1e-6);
}

#[test]
fn threads_change_no_bit() {
    let (cos, sin) = tables(64);
    let positions: Vec<u32> = (0..401).map(|t| t % 11).collect();
    let x = values(401 * 9 * 64, 1);
    assert_same_bits(|cpu| {
        let mut y = floats(cpu, &x);
        let shape = Heads { rows: 401, heads: 9, width: 64 };
        let at = cpu.indices(&positions).unwrap();
        let (c, s) = (floats(cpu, &cos), floats(cpu, &sin));
        cpu.rotate(Direction::Forward, shape, 64, &c, &s, &at, &mut y);
        vec![read(cpu, &y)]
    });
}
