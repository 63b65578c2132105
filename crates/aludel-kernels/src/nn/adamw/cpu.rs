//! Runs the update over chunks on the threads.

use super::Step;
use super::split::Masters;
use crate::nn::cpu::math::Arithmetic;
use crate::nn::cpu::{CHUNK, Cpu, dispatch};
use crate::nn::device::Update;

pub(in crate::nn) fn update(
    cpu: &Cpu,
    update: Update,
    gradient: &[f32],
    master: Masters<'_>,
    first: &mut [f32],
    second: &mut [f32],
) {
    let len = master.len();
    assert_eq!((gradient.len(), first.len(), second.len()), (len, len, len), "lengths of an update");
    let step = Step::new(update);
    let pieces = gradient
        .chunks(CHUNK)
        .zip(master.chunks(CHUNK))
        .zip(first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK)));
    cpu.each(pieces.collect(), 16 * len, |((gradient, master), (first, second))| {
        master.change(|master| dispatch::adamw(step, gradient, master, first, second));
    });
}

#[inline(always)]
pub(in crate::nn) fn lanes(
    a: impl Arithmetic,
    step: Step,
    gradient: &[f32],
    master: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    for (((master, &gradient), first), second) in master.iter_mut().zip(gradient).zip(first).zip(second) {
        let g = gradient * step.gradient_scale;
        let m = a.mul_add(step.beta1, *first, step.rest1 * g);
        let v = a.mul_add(step.beta2, *second, step.rest2 * g * g);
        (*first, *second) = (m, v);
        let move_by = step.rate * m / a.mul_add(v.sqrt(), step.correction, step.epsilon);
        *master = a.mul_add(*master, step.keep, -move_by);
    }
}
