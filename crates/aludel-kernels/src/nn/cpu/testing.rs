//! Makes seeded values and compares results with references in f64, for the tests of the operations.

use std::num::NonZeroUsize;

use super::{Buffer, Cpu};
use crate::element::Element;
use crate::nn::device::Device;

/// Values around zero, the same for the same seed: a linear congruence, its upper bits, summed to something bell-shaped.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 1.7).collect()
}

pub(crate) fn cpu(threads: usize) -> Cpu {
    Cpu::new(NonZeroUsize::new(threads)).unwrap()
}

/// A buffer of these values, in the type's rounding.
pub(in crate::nn) fn buffer(cpu: &Cpu, values: &[f32], element: Element) -> Buffer {
    let mut buffer = cpu.zeros(values.len(), element).unwrap();
    cpu.write(&mut buffer, 0, values).unwrap();
    buffer
}

pub(crate) fn floats(cpu: &Cpu, values: &[f32]) -> Buffer {
    buffer(cpu, values, Element::F32)
}

/// A buffer that no operation may read from.
pub(in crate::nn) fn poison(cpu: &Cpu, len: usize) -> Buffer {
    floats(cpu, &vec![f32::NAN; len])
}

pub(crate) fn read(cpu: &Cpu, buffer: &Buffer) -> Vec<f32> {
    cpu.read(buffer, 0..cpu.len(buffer)).unwrap()
}

pub(in crate::nn) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub(in crate::nn) fn dot(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Holds every element to the reference within `tolerance` of the largest one.
#[track_caller]
pub(in crate::nn) fn assert_close(name: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(1e-30, |most: f64, x| most.max(x.abs()));
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs() / largest;
        assert!(error <= tolerance, "{name}[{index}]: {got} for {expected}, off by {error:e} of the largest");
    }
}

/// Holds a gradient to central differences of `loss`, which is in f64, at `at`: within `tolerance` of its largest element.
#[track_caller]
pub(in crate::nn) fn assert_gradient(
    name: &str,
    got: &[f32],
    at: &[f64],
    loss: impl Fn(&[f64]) -> f64,
    tolerance: f64,
) {
    const STEP: f64 = 1e-5;
    let mut at = at.to_vec();
    let expected: Vec<f64> = (0..at.len())
        .map(|index| {
            let x = at[index];
            at[index] = x + STEP;
            let above = loss(&at);
            at[index] = x - STEP;
            let below = loss(&at);
            at[index] = x;
            (above - below) / (2.0 * STEP)
        })
        .collect();
    assert_close(name, got, &expected, tolerance);
}

/// Holds the bits of whatever `f` computes to be those of one thread, for two and seven threads.
#[track_caller]
pub(in crate::nn) fn assert_same_bits(f: impl Fn(&Cpu) -> Vec<Vec<f32>>) {
    let bits = |threads| -> Vec<Vec<u32>> {
        f(&cpu(threads)).iter().map(|part| part.iter().map(|x| x.to_bits()).collect()).collect()
    };
    let one = bits(1);
    assert!(one.iter().flatten().any(|&bits| bits != 0));
    for threads in [2, 7] {
        assert!(bits(threads) == one, "{threads} threads give other bits than one");
    }
}

/// The distribution function of the standard normal: its series near zero, its continued fraction far from it.
pub(in crate::nn) fn normal_distribution(x: f64) -> f64 {
    let density = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= x * x / (2 * n + 1) as f64;
            sum += term;
        }
        return 0.5 + density * sum;
    }
    let fraction = (1..=60).rev().fold(0.0, |rest, n| f64::from(n) / (x.abs() + rest));
    let tail = density / (x.abs() + fraction);
    if x > 0.0 { 1.0 - tail } else { tail }
}
