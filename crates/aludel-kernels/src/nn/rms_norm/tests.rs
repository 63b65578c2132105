//! Holds the normalisation and its gradient to f64.

use super::reference;
use crate::element::Element;
use crate::nn::cpu::testing::*;
use crate::nn::device::{Accumulate, Device, Norm, Rows};

const NORMS: [Norm; 2] = [Norm { epsilon: 1e-5, one_plus: false }, Norm { epsilon: 1e-6, one_plus: true }];

#[test]
fn forward_is_the_reference() {
    let cpu = cpu(2);
    for norm in NORMS {
        for (rows, width) in [(1, 1), (3, 41), (1271, 64), (67, 401), (0, 8)] {
            for element in [Element::F32, Element::BF16, Element::F16] {
                let x = values(rows * width, 1);
                let weight = buffer(&cpu, &values(width, 2), element);
                let (mut y, mut rstd) = (poison(&cpu, x.len()), poison(&cpu, rows));
                let shape = Rows { rows, width };
                cpu.rms_norm(norm, shape, &floats(&cpu, &x), &weight, &mut y, &mut rstd);
                let expected = reference::rms_norm(norm, width, &wide(&x), &wide(&read(&cpu, &weight)));
                for (got, expected) in read(&cpu, &y).chunks(width).zip(expected.chunks(width)) {
                    assert_close("y", got, expected, 2e-6);
                }
                for (rstd, x) in read(&cpu, &rstd).iter().zip(wide(&x).chunks(width)) {
                    let mean = dot(x, x) / width as f64;
                    let exact = 1.0 / (mean + f64::from(norm.epsilon)).sqrt();
                    assert!((f64::from(*rstd) / exact - 1.0).abs() < 1e-6);
                }
            }
        }
    }
}

#[test]
fn gradients_are_differences_of_the_reference() {
    let cpu = cpu(2);
    for norm in NORMS {
        for (rows, width) in [(1, 1), (3, 41), (2, 401)] {
            let (x, w, dy) = (values(rows * width, 1), values(width, 2), values(rows * width, 3));
            let [bx, bw, bdy] = [&x, &w, &dy].map(|v| floats(&cpu, v));
            let shape = Rows { rows, width };
            let (mut y, mut rstd) = (poison(&cpu, x.len()), poison(&cpu, rows));
            cpu.rms_norm(norm, shape, &bx, &bw, &mut y, &mut rstd);
            let (mut dx, mut dw) = (poison(&cpu, x.len()), floats(&cpu, &vec![0.0; width]));
            let into = Accumulate::Overwrite;
            cpu.rms_norm_backward(norm, shape, &bx, &bw, &rstd, &bdy, &mut dx, into, Some(&mut dw));
            let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
            let loss = |x: &[f64], w: &[f64]| dot(&reference::rms_norm(norm, width, x, w), &dy);
            // A row of one element has a gradient near zero: the difference of what cancels.
            let tolerance = if width == 1 { 0.1 } else { 1e-5 };
            assert_gradient("dx", &read(&cpu, &dx), &x, |x| loss(x, &w), tolerance);
            assert_gradient("dw", &read(&cpu, &dw), &w, |w| loss(&x, w), 1e-5);

            let (once, weight_once) = (read(&cpu, &dx), read(&cpu, &dw));
            let into = Accumulate::Add;
            cpu.rms_norm_backward(norm, shape, &bx, &bw, &rstd, &bdy, &mut dx, into, Some(&mut dw));
            cpu.rms_norm_backward(norm, shape, &bx, &bw, &rstd, &bdy, &mut dx, into, None);
            let times = |n: f64, x: &[f32]| x.iter().map(|&x| n * f64::from(x)).collect::<Vec<_>>();
            assert_close("three times", &read(&cpu, &dx), &times(3.0, &once), 1e-6);
            assert_close("twice", &read(&cpu, &dw), &times(2.0, &weight_once), 1e-6);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let (rows, width) = (401, 576);
    let (x, w, dy) = (values(rows * width, 1), values(width, 2), values(rows * width, 3));
    assert_same_bits(|cpu| {
        let [bx, bw, bdy] = [&x, &w, &dy].map(|v| floats(cpu, v));
        let [mut y, mut dx] = [(); 2].map(|()| poison(cpu, x.len()));
        let (mut rstd, mut dw) = (poison(cpu, rows), floats(cpu, &vec![0.0; width]));
        let shape = Rows { rows, width };
        cpu.rms_norm(NORMS[0], shape, &bx, &bw, &mut y, &mut rstd);
        let into = Accumulate::Overwrite;
        cpu.rms_norm_backward(NORMS[0], shape, &bx, &bw, &rstd, &bdy, &mut dx, into, Some(&mut dw));
        [y, rstd, dx, dw].iter().map(|b| read(cpu, b)).collect()
    });
}
