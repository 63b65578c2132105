//! Holds the gated activations and their gradients to f64.

use super::reference::activate;
use crate::nn::cpu::testing::*;
use crate::nn::device::{Activation, Device};

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

/// Gates over the whole range that matters, then random ones.
fn gates(len: usize) -> Vec<f32> {
    (0..len / 2)
        .map(|i| i as f32 * 60.0 / len as f32 - 15.0)
        .chain(values(len - len / 2, 1).iter().map(|x| 3.0 * x))
        .collect()
}

#[test]
fn value_and_gradients_are_the_reference() {
    let cpu = cpu(2);
    for activation in ACTIVATIONS {
        for len in [0, 1, 41, 401, 70_001] {
            let (gate, up, dy) = (gates(len), values(len, 2), values(len, 3));
            let mut y = poison(&cpu, len);
            let [mut d_gate, mut d_up] = [&gate, &up].map(|v| floats(&cpu, v));
            cpu.gated(activation, &d_gate, &d_up, &mut y);
            let mut again = floats(&cpu, &dy);
            cpu.gated_backward(activation, &mut again, &mut d_gate, &mut d_up);
            let (y, d_gate, d_up) = (read(&cpu, &y), read(&cpu, &d_gate), read(&cpu, &d_up));
            assert_eq!(read(&cpu, &again), y);
            for i in 0..len {
                let [g, u, d] = [gate[i], up[i], dy[i]].map(f64::from);
                let f = activate(activation, g);
                let slope = (activate(activation, g + 1e-5) - activate(activation, g - 1e-5)) / 2e-5;
                let bound = 1e-6 * g.abs().max(1.0);
                let off = |got: f32, exact: f64, factor: f64| {
                    let error = (f64::from(got) - exact).abs();
                    assert!(error <= bound * factor.abs() + 1e-9, "{activation:?}({g}): {got} for {exact}");
                };
                off(y[i], f * u, u);
                off(d_gate[i], d * u * slope, d * u);
                off(d_up[i], d * f, d);
            }
        }
    }
}

#[test]
fn infinite_and_undefined_gates() {
    let cpu = cpu(1);
    for activation in ACTIVATIONS {
        let gate = floats(&cpu, &[f32::NAN, 1e30, -1e30, -200.0]);
        let mut y = poison(&cpu, 4);
        cpu.gated(activation, &gate, &floats(&cpu, &[1.0; 4]), &mut y);
        let y = read(&cpu, &y);
        assert!(y[0].is_nan());
        assert_eq!(y[1], 1e30);
        // e^88 is the most that the sigmoid's denominator becomes.
        assert!((-1e-6..=0.0).contains(&y[2]) && (-1e-6..=0.0).contains(&y[3]), "{activation:?} {y:?}");
    }
}

#[test]
fn threads_change_no_bit() {
    let (gate, up, dy) = (gates(70_001), values(70_001, 2), values(70_001, 3));
    assert_same_bits(|cpu| {
        let mut y = poison(cpu, gate.len());
        let [mut d_gate, mut d_up] = [&gate, &up].map(|v| floats(cpu, v));
        cpu.gated(Activation::Silu, &d_gate, &d_up, &mut y);
        let mut again = floats(cpu, &dy);
        cpu.gated_backward(Activation::Silu, &mut again, &mut d_gate, &mut d_up);
        [y, again, d_gate, d_up].iter().map(|b| read(cpu, b)).collect()
    });
}
