//! Runs the gate over chunks on the threads.

use crate::nn::cpu::math::{Arithmetic, normal, sigmoid, tanh};
use crate::nn::cpu::{CHUNK, Cpu, dispatch};
use crate::nn::device::Activation;

/// Arithmetic for one element, about.
const OPERATIONS: usize = 24;

pub(in crate::nn) fn forward(cpu: &Cpu, activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert_eq!((gate.len(), up.len()), (y.len(), y.len()), "lengths of a gate");
    let operations = OPERATIONS * y.len();
    let pieces = gate.chunks(CHUNK).zip(up.chunks(CHUNK)).zip(y.chunks_mut(CHUNK));
    cpu.each(pieces.collect(), operations, |((gate, up), y)| dispatch::gated(activation, gate, up, y));
}

pub(in crate::nn) fn backward(
    cpu: &Cpu,
    activation: Activation,
    dy: &mut [f32],
    gate: &mut [f32],
    up: &mut [f32],
) {
    assert_eq!((gate.len(), up.len()), (dy.len(), dy.len()), "lengths of a gate");
    let operations = 2 * OPERATIONS * dy.len();
    let pieces = dy.chunks_mut(CHUNK).zip(gate.chunks_mut(CHUNK)).zip(up.chunks_mut(CHUNK));
    cpu.each(pieces.collect(), operations, |((dy, gate), up)| {
        dispatch::gated_backward(activation, dy, gate, up);
    });
}

#[inline(always)]
pub(in crate::nn) fn forward_lanes(
    a: impl Arithmetic,
    activation: Activation,
    gate: &[f32],
    up: &[f32],
    y: &mut [f32],
) {
    match activation {
        Activation::Silu => apply(gate, up, y, |x| silu(a, x).0),
        Activation::Gelu => apply(gate, up, y, |x| gelu(a, x).0),
        Activation::GeluTanh => apply(gate, up, y, |x| gelu_tanh(a, x).0),
    }
}

#[inline(always)]
pub(in crate::nn) fn backward_lanes(
    a: impl Arithmetic,
    activation: Activation,
    dy: &mut [f32],
    gate: &mut [f32],
    up: &mut [f32],
) {
    match activation {
        Activation::Silu => apply_backward(dy, gate, up, |x| silu(a, x)),
        Activation::Gelu => apply_backward(dy, gate, up, |x| gelu(a, x)),
        Activation::GeluTanh => apply_backward(dy, gate, up, |x| gelu_tanh(a, x)),
    }
}

#[inline(always)]
fn apply(gate: &[f32], up: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32) {
    for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
        *y = f(gate) * up;
    }
}

#[inline(always)]
fn apply_backward(dy: &mut [f32], gate: &mut [f32], up: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
    for ((dy, gate), up) in dy.iter_mut().zip(gate).zip(up) {
        let (value, slope) = f(*gate);
        let product = value * *up;
        *gate = *dy * *up * slope;
        *up = *dy * value;
        *dy = product;
    }
}

/// Value and slope.
#[inline(always)]
fn silu(a: impl Arithmetic, x: f32) -> (f32, f32) {
    let s = sigmoid(a, x);
    let value = x * s;
    (value, a.mul_add(value, 1.0 - s, s))
}

#[inline(always)]
fn gelu(a: impl Arithmetic, x: f32) -> (f32, f32) {
    let (distribution, density) = normal(a, x);
    (x * distribution, a.mul_add(x, density, distribution))
}

#[inline(always)]
fn gelu_tanh(a: impl Arithmetic, x: f32) -> (f32, f32) {
    // sqrt(2 / pi), and the factor of the cube.
    const ROOT: f32 = 0.797_884_6;
    const CUBE: f32 = 0.044_715;
    let square = x * x;
    let t = tanh(a, ROOT * x * a.mul_add(CUBE, square, 1.0));
    let inner_slope = ROOT * a.mul_add(3.0 * CUBE, square, 1.0);
    let half = a.mul_add(0.5, t, 0.5);
    (x * half, a.mul_add(0.5 * x * (1.0 - t * t), inner_slope, half))
}
