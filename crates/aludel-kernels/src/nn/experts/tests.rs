//! Holds routing and grouped products to one expert at a time in f64.

use super::reference;
use crate::element::Element;
use crate::nn::cpu::testing::*;
use crate::nn::cpu::{Buffer, Cpu};
use crate::nn::device::{Accumulate, Device, Product, Routing};

struct Case {
    routing: Routing,
    inputs: usize,
    outputs: usize,
    logits: Vec<f32>,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
}

fn case(routing: Routing, inputs: usize, outputs: usize) -> Case {
    Case {
        routing,
        inputs,
        outputs,
        logits: values(routing.rows * routing.experts, 1).iter().map(|x| 2.0 * x).collect(),
        x: values(routing.rows * inputs, 2),
        w: values(routing.experts * outputs * inputs, 3),
        dy: values(routing.rows * outputs, 4),
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for renormalise in [false, true] {
        for (rows, experts, chosen, inputs, outputs) in
            [(1, 1, 1, 1, 1), (1, 8, 2, 5, 3), (6, 5, 5, 4, 3), (13, 8, 2, 7, 5), (3, 32, 4, 6, 2)]
        {
            all.push(case(Routing { rows, experts, chosen, renormalise }, inputs, outputs));
        }
    }
    all
}

struct Gradients {
    y: Vec<f32>,
    logits: Vec<f32>,
    x: Vec<f32>,
    w: Vec<f32>,
}

/// A whole mixture of single products, forward and backward, from the operations alone.
fn mixture(cpu: &Cpu, c: &Case) -> Gradients {
    let Routing { rows, experts, chosen, .. } = c.routing;
    let slots = rows * chosen;
    let product = Product { rows: slots, inputs: c.inputs, outputs: c.outputs, scale: 1.0 };
    let [logits, x, dy] = [&c.logits, &c.x, &c.dy].map(|v| floats(cpu, v));
    let each = c.inputs * c.outputs;
    let w: Vec<Buffer> = c.w.chunks(each).map(|w| floats(cpu, w)).collect();
    let w: Vec<&Buffer> = w.iter().collect();
    let mut weights = poison(cpu, slots);
    let assignment = cpu.route(c.routing, &logits, &mut weights).unwrap();
    let (mut gathered, mut h) = (poison(cpu, slots * c.inputs), poison(cpu, slots * c.outputs));
    cpu.gather_experts(&assignment, c.inputs, &x, &mut gathered);
    cpu.grouped_linear(&assignment, product, &gathered, &w, &mut h, Accumulate::Overwrite);
    let mut y = poison(cpu, rows * c.outputs);
    cpu.combine_experts(&assignment, c.outputs, &h, &weights, &mut y, Accumulate::Overwrite);

    let (mut dh, mut d_weights) = (poison(cpu, slots * c.outputs), poison(cpu, slots));
    cpu.combine_experts_backward(&assignment, c.outputs, &h, &weights, &dy, &mut dh, &mut d_weights);
    let mut dw: Vec<Buffer> = (0..experts).map(|_| floats(cpu, &vec![0.0; each])).collect();
    let mut into: Vec<&mut Buffer> = dw.iter_mut().collect();
    cpu.grouped_linear_backward_weight(&assignment, product, &dh, &gathered, &mut into);
    let mut d_gathered = poison(cpu, slots * c.inputs);
    let overwrite = Accumulate::Overwrite;
    cpu.grouped_linear_backward_input(&assignment, product, &dh, &w, &mut d_gathered, overwrite);
    let (mut dx, mut d_logits) = (poison(cpu, c.x.len()), poison(cpu, c.logits.len()));
    cpu.gather_experts_backward(&assignment, c.inputs, &d_gathered, &mut dx, overwrite);
    cpu.route_backward(c.routing, &assignment, &logits, &d_weights, &mut d_logits);
    Gradients {
        y: read(cpu, &y),
        logits: read(cpu, &d_logits),
        x: read(cpu, &dx),
        w: dw.iter().flat_map(|dw| read(cpu, dw)).collect(),
    }
}

#[test]
fn a_mixture_and_its_gradients_are_the_reference() {
    let cpu = cpu(2);
    for c in cases() {
        let got = mixture(&cpu, &c);
        let Routing { experts, chosen, renormalise, .. } = c.routing;
        let (logits, x, w, dy) = (wide(&c.logits), wide(&c.x), wide(&c.w), wide(&c.dy));
        let y = |logits: &[f64], x: &[f64], w: &[f64]| {
            reference::mixture((experts, chosen, renormalise), (c.inputs, c.outputs), logits, x, w)
        };
        assert_close("y", &got.y, &y(&logits, &x, &w), 2e-6);
        let loss = |logits: &[f64], x: &[f64], w: &[f64]| dot(&y(logits, x, w), &dy);
        if experts == 1 || chosen == 1 && renormalise {
            assert!(got.logits.iter().all(|x| x.abs() < 1e-6), "one choice has weight 1");
        } else {
            assert_gradient("d_logits", &got.logits, &logits, |l| loss(l, &x, &w), 1e-5);
        }
        assert_gradient("dx", &got.x, &x, |x| loss(&logits, x, &w), 1e-5);
        assert_gradient("dw", &got.w, &w, |w| loss(&logits, &x, w), 1e-5);
    }
}

#[test]
fn equal_logits_are_taken_in_the_order_of_the_experts() {
    let cpu = cpu(1);
    let routing = Routing { rows: 2, experts: 4, chosen: 2, renormalise: true };
    let mut weights = poison(&cpu, 4);
    let logits = floats(&cpu, &[1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    let assignment = cpu.route(routing, &logits, &mut weights).unwrap();
    assert_eq!(assignment.experts(), [1, 2, 0, 1]);
    assert_eq!(read(&cpu, &weights), [0.5; 4]);
}

#[test]
fn undefined_logits_still_choose() {
    let cpu = cpu(1);
    let routing = Routing { rows: 1, experts: 3, chosen: 2, renormalise: false };
    let mut weights = poison(&cpu, 2);
    let logits = floats(&cpu, &[1.0, f32::NAN, 2.0]);
    let assignment = cpu.route(routing, &logits, &mut weights).unwrap();
    assert_eq!(assignment.experts().len(), 2);
    assert!(read(&cpu, &weights).iter().all(|w| w.is_nan()));
}

#[test]
fn no_rows() {
    let routing = Routing { rows: 0, experts: 3, chosen: 2, renormalise: true };
    let got = mixture(&cpu(1), &case(routing, 4, 5));
    assert!(got.y.is_empty() && got.x.is_empty() && got.logits.is_empty());
    assert_eq!(got.w, [0.0; 60]);
}

/// Each expert's rows are multiplied as a product of their own would be, for weights of 16 bits too.
#[test]
fn grouped_products_are_products_of_groups() {
    let cpu = cpu(2);
    let routing = Routing { rows: 401, experts: 5, chosen: 2, renormalise: false };
    let c = case(routing, 67, 211);
    let mut weights = poison(&cpu, 802);
    let assignment = cpu.route(routing, &floats(&cpu, &c.logits), &mut weights).unwrap();
    let (x, dy) = (values(802 * 67, 5), values(802 * 211, 6));
    let product = Product { rows: 802, inputs: 67, outputs: 211, scale: 0.5 };
    for element in [Element::F32, Element::BF16] {
        let w: Vec<Buffer> = c.w.chunks(67 * 211).map(|w| buffer(&cpu, w, element)).collect();
        let w: Vec<&Buffer> = w.iter().collect();
        let (mut y, mut dx) = (floats(&cpu, &dy), floats(&cpu, &x));
        cpu.grouped_linear(&assignment, product, &floats(&cpu, &x), &w, &mut y, Accumulate::Add);
        let add = Accumulate::Add;
        cpu.grouped_linear_backward_input(&assignment, product, &floats(&cpu, &dy), &w, &mut dx, add);
        let (y, dx) = (read(&cpu, &y), read(&cpu, &dx));
        for (rows, w) in assignment.groups().into_iter().zip(w) {
            let own = Product { rows: rows.len(), ..product };
            let (i, o) = (rows.start * 67..rows.end * 67, rows.start * 211..rows.end * 211);
            let [own_x, own_dy] = [&x[i.clone()], &dy[o.clone()]].map(|v| floats(&cpu, v));
            let [mut own_y, mut own_dx] = [&dy[o.clone()], &x[i.clone()]].map(|v| floats(&cpu, v));
            cpu.linear(own, &own_x, w, None, &mut own_y, Accumulate::Add);
            cpu.linear_backward_input(own, &own_dy, w, &mut own_dx, Accumulate::Add);
            assert_eq!(read(&cpu, &own_y), y[o]);
            assert_eq!(read(&cpu, &own_dx), dx[i]);
        }
    }
}

#[test]
fn threads_change_no_bit() {
    let routing = Routing { rows: 257, experts: 8, chosen: 2, renormalise: true };
    let c = case(routing, 96, 300);
    assert_same_bits(|cpu| {
        let got = mixture(cpu, &c);
        vec![got.y, got.logits, got.x, got.w]
    });
}
