//! Runs the passes over chunks on the threads.

use crate::nn::cpu::buffer::{Values, ValuesMut};
use crate::nn::cpu::window::pieces;
use crate::nn::cpu::{CHUNK, Cpu, dispatch};

pub(in crate::nn) fn copy(cpu: &Cpu, from: Values<'_>, to: ValuesMut<'_>) {
    assert_eq!(from.len(), to.len(), "lengths of a copy");
    let len = to.len();
    let chunks = pieces(0..len, CHUNK).into_iter().zip(to.chunks(CHUNK));
    cpu.each(chunks.collect(), len, |(range, to)| convert(from.slice(range), to));
}

pub(in crate::nn) fn fill(cpu: &Cpu, to: ValuesMut<'_>, value: f32) {
    let len = to.len();
    let mut one = [0u16];
    match to {
        ValuesMut::F32(to) => {
            cpu.each(to.chunks_mut(CHUNK).collect(), len, |to| to.fill(value));
        }
        ValuesMut::BF16(to) => {
            ValuesMut::BF16(&mut one).encode(&[value]);
            cpu.each(to.chunks_mut(CHUNK).collect(), len, |to| to.fill(one[0]));
        }
        ValuesMut::F16(to) => {
            ValuesMut::F16(&mut one).encode(&[value]);
            cpu.each(to.chunks_mut(CHUNK).collect(), len, |to| to.fill(one[0]));
        }
    }
}

pub(in crate::nn) fn add(cpu: &Cpu, x: Values<'_>, scale: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of a sum");
    let len = y.len();
    let chunks = pieces(0..len, CHUNK).into_iter().zip(y.chunks_mut(CHUNK));
    cpu.each(chunks.collect(), 2 * len, |(range, y)| {
        dispatch::add(x.slice(range).decoded(&mut Vec::new()), scale, y);
    });
}

pub(in crate::nn) fn scale(cpu: &Cpu, y: &mut [f32], scale: f32) {
    let len = y.len();
    cpu.each(y.chunks_mut(CHUNK).collect(), len, |y| dispatch::scale(y, scale));
}

pub(crate) fn sum_of_squares(cpu: &Cpu, x: Values<'_>) -> f64 {
    let sums = cpu.map(pieces(0..x.len(), CHUNK), 2 * x.len(), |range| {
        dispatch::sum_of_squares(x.slice(range).decoded(&mut Vec::new()))
    });
    sums.into_iter().sum()
}

/// By way of f32 where both are 16-bit types and differ.
pub(in crate::nn) fn convert(from: Values<'_>, mut to: ValuesMut<'_>) {
    match (from, &mut to) {
        (from, ValuesMut::F32(to)) => from.decode(to),
        (Values::BF16(from), ValuesMut::BF16(to)) | (Values::F16(from), ValuesMut::F16(to)) => {
            to.copy_from_slice(from);
        }
        (from, to) => to.encode(from.decoded(&mut Vec::new())),
    }
}
