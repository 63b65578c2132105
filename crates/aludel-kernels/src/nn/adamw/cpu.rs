//! Runs the update over chunks on the threads.

use super::Step;
use crate::nn::cpu::buffer::ValuesMut;
use crate::nn::cpu::math::Arithmetic;
use crate::nn::cpu::{CHUNK, Cpu, dispatch};
use crate::nn::device::Update;

pub(in crate::nn) fn update(
    cpu: &Cpu,
    update: Update,
    gradient: &[f32],
    master: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    stored: Option<ValuesMut<'_>>,
) {
    let len = master.len();
    assert_eq!((gradient.len(), first.len(), second.len()), (len, len, len), "lengths of an update");
    let step = Step::new(update);
    let stored = stored_chunks(stored, len);
    let pieces = gradient
        .chunks(CHUNK)
        .zip(master.chunks_mut(CHUNK))
        .zip(first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK)))
        .zip(stored);
    cpu.each(pieces.collect(), 16 * len, |(((gradient, master), (first, second)), stored)| {
        dispatch::adamw(step, gradient, master, first, second);
        if let Some(mut stored) = stored {
            stored.encode(master);
        }
    });
}

/// Chunks of the buffer that receives rounded values, or as many times nothing.
pub(in crate::nn) fn stored_chunks(stored: Option<ValuesMut<'_>>, len: usize) -> Vec<Option<ValuesMut<'_>>> {
    match stored {
        Some(stored) => {
            assert_eq!(stored.len(), len, "lengths of an update");
            stored.chunks(CHUNK).into_iter().map(Some).collect()
        }
        None => (0..len.div_ceil(CHUNK)).map(|_| None).collect(),
    }
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
