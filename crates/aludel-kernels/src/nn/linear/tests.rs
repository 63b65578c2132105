//! Holds products and their gradients to sums in f64.

use super::reference;
use crate::element::Element;
use crate::nn::cpu::testing::*;
use crate::nn::cpu::{Buffer, Cpu};
use crate::nn::device::{Accumulate, Device, Product};

const ELEMENTS: [Element; 3] = [Element::F32, Element::F16, Element::BF16];

/// (T, I, O): few rows and many, panels that end inside, one of everything.
const SHAPES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (1, 1271, 401), (3, 2100, 5), (5, 41, 401), (41, 401, 67), (530, 67, 200), (7, 300, 530)];

struct Case {
    product: Product,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

fn case((rows, inputs, outputs): (usize, usize, usize)) -> Case {
    Case {
        product: Product { rows, inputs, outputs, scale: 0.75 },
        x: values(rows * inputs, 1),
        w: values(inputs * outputs, 2),
        bias: values(outputs, 3),
        dy: values(rows * outputs, 4),
    }
}

/// The error that a sum of `terms` products of values around one may have, as a share of the largest sum.
fn tolerance(terms: usize) -> f64 {
    2e-7 * (terms as f64).sqrt().max(4.0)
}

#[test]
fn forward_is_the_reference_for_every_type_of_weight() {
    let cpu = cpu(2);
    for shape in SHAPES {
        let c = case(shape);
        for element in ELEMENTS {
            let w = buffer(&cpu, &c.w, element);
            let bias = buffer(&cpu, &c.bias, element);
            let [exact_w, exact_bias] = [&w, &bias].map(|b| wide(&read(&cpu, b)));
            let zero = vec![0.0; c.bias.len()];
            let plain = reference::linear(shape.1, 0.75, &wide(&c.x), &exact_w, &zero);
            let mut y = poison(&cpu, c.dy.len());
            cpu.linear(c.product, &floats(&cpu, &c.x), &w, None, &mut y, Accumulate::Overwrite);
            assert_close("y", &read(&cpu, &y), &plain, tolerance(shape.1));
            cpu.linear(c.product, &floats(&cpu, &c.x), &w, Some(&bias), &mut y, Accumulate::Add);
            let twice: Vec<f64> =
                plain.iter().zip(exact_bias.iter().cycle()).map(|(y, b)| 2.0 * y + b).collect();
            assert_close("y + y + b", &read(&cpu, &y), &twice, tolerance(shape.1));
        }
    }
}

#[test]
fn gradients_of_inputs_are_products_with_the_weight() {
    let cpu = cpu(2);
    for shape in SHAPES {
        let c = case(shape);
        let (_, inputs, outputs) = shape;
        for element in ELEMENTS {
            let w = buffer(&cpu, &c.w, element);
            let exact = wide(&read(&cpu, &w));
            // dy w = dy (w^T)^T
            let transposed: Vec<f64> = (0..inputs)
                .flat_map(|i| (0..outputs).map(move |o| (o, i)))
                .map(|(o, i)| exact[o * inputs + i])
                .collect();
            let expected = reference::linear(outputs, 0.75, &wide(&c.dy), &transposed, &vec![0.0; inputs]);
            let mut dx = poison(&cpu, c.x.len());
            cpu.linear_backward_input(c.product, &floats(&cpu, &c.dy), &w, &mut dx, Accumulate::Overwrite);
            assert_close("dx", &read(&cpu, &dx), &expected, tolerance(outputs));
            cpu.linear_backward_input(c.product, &floats(&cpu, &c.dy), &w, &mut dx, Accumulate::Add);
            let twice: Vec<f64> = expected.iter().map(|x| 2.0 * x).collect();
            assert_close("dx + dx", &read(&cpu, &dx), &twice, tolerance(outputs));
        }
    }
}

#[test]
fn gradients_of_weights_are_added_to_what_is_there() {
    let cpu = cpu(2);
    for shape in SHAPES {
        let c = case(shape);
        let (rows, inputs, outputs) = shape;
        let column = |v: &[f32], width: usize, i: usize| -> Vec<f64> {
            (0..rows).map(|t| f64::from(v[t * width + i])).collect()
        };
        let x: Vec<Vec<f64>> = (0..inputs).map(|i| column(&c.x, inputs, i)).collect();
        let expected: Vec<f64> = (0..outputs)
            .flat_map(|o| {
                let dy = column(&c.dy, outputs, o);
                x.iter().map(move |x| 0.75 * dot(&dy, x)).collect::<Vec<_>>()
            })
            .zip(&c.w)
            .map(|(product, &w)| f64::from(w) + product)
            .collect();
        let of_bias: Vec<f64> = (0..outputs)
            .map(|o| f64::from(c.bias[o]) + column(&c.dy, outputs, o).iter().sum::<f64>())
            .collect();
        let (mut dw, mut db) = (floats(&cpu, &c.w), floats(&cpu, &c.bias));
        let (dy, x) = (floats(&cpu, &c.dy), floats(&cpu, &c.x));
        cpu.linear_backward_weight(c.product, &dy, &x, &mut dw, Some(&mut db));
        assert_close("dw", &read(&cpu, &dw), &expected, tolerance(rows));
        assert_close("db", &read(&cpu, &db), &of_bias, tolerance(rows));
    }
}

#[test]
fn gradients_are_differences_of_the_reference() {
    let cpu = cpu(1);
    let c = case((5, 7, 11));
    let [bx, bw, bdy] = [&c.x, &c.w, &c.dy].map(|v| floats(&cpu, v));
    let (mut dx, mut dw) = (poison(&cpu, 35), floats(&cpu, &[0.0; 77]));
    let mut db = floats(&cpu, &[0.0; 11]);
    cpu.linear_backward_input(c.product, &bdy, &bw, &mut dx, Accumulate::Overwrite);
    cpu.linear_backward_weight(c.product, &bdy, &bx, &mut dw, Some(&mut db));
    let (x, w, b, dy) = (wide(&c.x), wide(&c.w), wide(&c.bias), wide(&c.dy));
    let loss = |x: &[f64], w: &[f64], b: &[f64]| dot(&reference::linear(7, 0.75, x, w, b), &dy);
    assert_gradient("dx", &read(&cpu, &dx), &x, |x| loss(x, &w, &b), 1e-6);
    assert_gradient("dw", &read(&cpu, &dw), &w, |w| loss(&x, w, &b), 1e-6);
    assert_gradient("db", &read(&cpu, &db), &b, |b| loss(&x, &w, b), 1e-6);
}

/// `y += (alpha / r) (x A^T) B^T` and its gradients, from the operations alone.
#[test]
fn lora_is_two_products() {
    let cpu = cpu(2);
    let (rows, inputs, outputs, rank, scale) = (41, 67, 53, 8, 2.0);
    let down = Product { rows, inputs, outputs: rank, scale: 1.0 };
    let up = Product { rows, inputs: rank, outputs, scale };
    let (x, a, b) = (values(rows * inputs, 1), values(rank * inputs, 2), values(outputs * rank, 3));
    let (dy, base) = (values(rows * outputs, 4), values(rows * outputs, 5));
    let [bx, ba, bb, bdy] = [&x, &a, &b, &dy].map(|v| floats(&cpu, v));
    let (mut h, mut y) = (poison(&cpu, rows * rank), floats(&cpu, &base));
    cpu.linear(down, &bx, &ba, None, &mut h, Accumulate::Overwrite);
    cpu.linear(up, &h, &bb, None, &mut y, Accumulate::Add);
    let lora = |x: &[f64], a: &[f64], b: &[f64]| {
        let h = reference::linear(inputs, 1.0, x, a, &[0.0; 8]);
        reference::linear(rank, f64::from(scale), &h, b, &[0.0; 53])
    };
    let [x64, a64, b64, dy64] = [&x, &a, &b, &dy].map(|v| wide(v));
    let expected: Vec<f64> =
        lora(&x64, &a64, &b64).iter().zip(&base).map(|(y, &base)| y + f64::from(base)).collect();
    assert_close("y", &read(&cpu, &y), &expected, 2e-6);

    let (mut dh, mut dx) = (poison(&cpu, rows * rank), floats(&cpu, &vec![0.0; rows * inputs]));
    let (mut da, mut db) = (floats(&cpu, &vec![0.0; a.len()]), floats(&cpu, &vec![0.0; b.len()]));
    cpu.linear_backward_weight(up, &bdy, &h, &mut db, None);
    cpu.linear_backward_input(up, &bdy, &bb, &mut dh, Accumulate::Overwrite);
    cpu.linear_backward_weight(down, &dh, &bx, &mut da, None);
    cpu.linear_backward_input(down, &dh, &ba, &mut dx, Accumulate::Add);
    let loss = |x: &[f64], a: &[f64], b: &[f64]| dot(&lora(x, a, b), &dy64);
    assert_gradient("da", &read(&cpu, &da), &a64, |a| loss(&x64, a, &b64), 2e-6);
    assert_gradient("db", &read(&cpu, &db), &b64, |b| loss(&x64, &a64, b), 2e-6);
    assert_gradient("dx", &read(&cpu, &dx), &x64, |x| loss(x, &a64, &b64), 2e-6);
}

#[test]
fn empty_products() {
    let cpu = cpu(2);
    let run = |rows, inputs, outputs| {
        let product = Product { rows, inputs, outputs, scale: 1.0 };
        let [x, w] = [rows * inputs, outputs * inputs].map(|len| floats(&cpu, &vec![1.0; len]));
        let (mut y, mut dx) = (poison(&cpu, rows * outputs), poison(&cpu, rows * inputs));
        let mut dw = floats(&cpu, &vec![0.5; outputs * inputs]);
        cpu.linear(product, &x, &w, None, &mut y, Accumulate::Overwrite);
        cpu.linear_backward_input(product, &y, &w, &mut dx, Accumulate::Overwrite);
        cpu.linear_backward_weight(product, &y, &x, &mut dw, None);
        [y, dx, dw].map(|b| read(&cpu, &b))
    };
    assert_eq!(run(2, 0, 3), [vec![0.0; 6], vec![], vec![]]);
    assert_eq!(run(0, 2, 3), [vec![], vec![], vec![0.5; 6]]);
    assert_eq!(run(9, 2, 0), [vec![], vec![0.0; 18], vec![]]);
}

fn everything(cpu: &Cpu, c: &Case, element: Element) -> Vec<Buffer> {
    let [x, dy] = [&c.x, &c.dy].map(|v| floats(cpu, v));
    let w = buffer(cpu, &c.w, element);
    let (mut y, mut dx) = (poison(cpu, c.dy.len()), poison(cpu, c.x.len()));
    let (mut dw, mut db) = (floats(cpu, &c.w), floats(cpu, &c.bias));
    cpu.linear(c.product, &x, &w, Some(&floats(cpu, &c.bias)), &mut y, Accumulate::Overwrite);
    cpu.linear_backward_input(c.product, &dy, &w, &mut dx, Accumulate::Overwrite);
    cpu.linear_backward_weight(c.product, &dy, &x, &mut dw, Some(&mut db));
    vec![y, dx, dw, db]
}

#[test]
fn threads_change_no_bit() {
    for shape in [(1, 1271, 401), (257, 401, 1271), (600, 97, 300)] {
        for element in [Element::F32, Element::BF16] {
            let c = case(shape);
            assert_same_bits(|cpu| everything(cpu, &c, element).iter().map(|b| read(cpu, b)).collect());
        }
    }
}
