//! Runs routing, gathering and combining over rows on the threads.

use super::Assignment;
use crate::nn::cpu::{CHUNK, Cpu, dispatch};
use crate::nn::device::{Accumulate, Routing};

pub(in crate::nn) fn route(routing: Routing, logits: &[f32], weights: &mut [f32]) -> Assignment {
    let Routing { rows, experts, chosen, renormalise } = routing;
    assert!(chosen <= experts, "more experts are chosen than there are");
    assert_eq!((logits.len(), weights.len()), (rows * experts, rows * chosen), "shapes of routing");
    let mut of_choices = Vec::with_capacity(rows * chosen);
    if chosen > 0 {
        for (logits, weights) in logits.chunks_exact(experts).zip(weights.chunks_exact_mut(chosen)) {
            let p = softmax(logits);
            let mut order: Vec<u32> = (0..experts as u32).collect();
            // Stable, so that equals stay in the order of the experts; NaN counts as greatest and breaks nothing.
            order.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]));
            order.truncate(chosen);
            let sum: f64 = order.iter().map(|&expert| p[expert as usize]).sum();
            let divisor = if renormalise { sum } else { 1.0 };
            for (weight, &expert) in weights.iter_mut().zip(&order) {
                *weight = (p[expert as usize] / divisor) as f32;
            }
            of_choices.extend(order);
        }
    }
    Assignment::new(of_choices, chosen, experts)
}

pub(in crate::nn) fn route_backward(
    routing: Routing,
    assignment: &Assignment,
    logits: &[f32],
    d_weights: &[f32],
    d_logits: &mut [f32],
) {
    let Routing { rows, experts, chosen, renormalise } = routing;
    assert_eq!((logits.len(), d_logits.len()), (rows * experts, rows * experts), "shapes of routing");
    assert_eq!((d_weights.len(), assignment.chosen()), (rows * chosen, chosen), "shapes of routing");
    if chosen == 0 {
        return d_logits.fill(0.0);
    }
    let rows = logits.chunks_exact(experts).zip(d_logits.chunks_exact_mut(experts));
    let choices = assignment.experts().chunks_exact(chosen).zip(d_weights.chunks_exact(chosen));
    for ((logits, d_logits), (choices, d_weights)) in rows.zip(choices) {
        let mut p = softmax(logits);
        if renormalise {
            let sum: f64 = choices.iter().map(|&expert| p[expert as usize]).sum();
            let kept: Vec<f64> = choices.iter().map(|&expert| p[expert as usize] / sum).collect();
            p.fill(0.0);
            choices.iter().zip(kept).for_each(|(&expert, weight)| p[expert as usize] = weight);
        }
        let given = || choices.iter().map(|&expert| expert as usize).zip(d_weights);
        let mean: f64 = given().map(|(expert, &d)| p[expert] * f64::from(d)).sum();
        for (d_logit, &p) in d_logits.iter_mut().zip(&p) {
            *d_logit = (-p * mean) as f32;
        }
        for (expert, &d) in given() {
            d_logits[expert] = (p[expert] * (f64::from(d) - mean)) as f32;
        }
    }
}

/// In f64: there are few logits.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut p: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

pub(in crate::nn) fn gather(cpu: &Cpu, assignment: &Assignment, width: usize, x: &[f32], y: &mut [f32]) {
    let choices = assignment.choices();
    check(assignment, width, y, x);
    if y.is_empty() {
        return;
    }
    let (chosen, rows, operations) = (assignment.chosen(), rows_of(width), y.len());
    cpu.each(choices.chunks(rows).zip(y.chunks_mut(rows * width)).collect(), operations, |(choices, y)| {
        for (&choice, y) in choices.iter().zip(y.chunks_exact_mut(width)) {
            y.copy_from_slice(row(x, choice as usize / chosen, width));
        }
    });
}

pub(in crate::nn) fn gather_backward(
    cpu: &Cpu,
    assignment: &Assignment,
    width: usize,
    dy: &[f32],
    dx: &mut [f32],
    into: Accumulate,
) {
    sum_slots(cpu, assignment, width, dy, None, dx, into);
}

pub(in crate::nn) fn combine(
    cpu: &Cpu,
    assignment: &Assignment,
    width: usize,
    x: &[f32],
    weights: &[f32],
    y: &mut [f32],
    into: Accumulate,
) {
    assert_eq!(weights.len(), assignment.slots().len(), "weights of experts");
    sum_slots(cpu, assignment, width, x, Some(weights), y, into);
}

/// Each row's sum over its slots of `x`, weighted where there are weights.
fn sum_slots(
    cpu: &Cpu,
    assignment: &Assignment,
    width: usize,
    x: &[f32],
    weights: Option<&[f32]>,
    y: &mut [f32],
    into: Accumulate,
) {
    check(assignment, width, x, y);
    let chosen = assignment.chosen();
    if into == Accumulate::Overwrite {
        y.fill(0.0);
    }
    if x.is_empty() {
        return;
    }
    let rows = rows_of(width);
    let pieces = assignment.slots().chunks(rows * chosen).zip(y.chunks_mut(rows * width)).enumerate();
    cpu.each(pieces.collect(), 2 * x.len(), |(piece, (slots, y))| {
        for (index, &slot) in slots.iter().enumerate() {
            let weight = weights.map_or(1.0, |weights| weights[piece * rows * chosen + index]);
            let t = index / chosen;
            dispatch::add(row(x, slot as usize, width), weight, &mut y[t * width..(t + 1) * width]);
        }
    });
}

#[expect(clippy::too_many_arguments, reason = "what the gradient depends on")]
pub(in crate::nn) fn combine_backward(
    cpu: &Cpu,
    assignment: &Assignment,
    width: usize,
    x: &[f32],
    weights: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    d_weights: &mut [f32],
) {
    let choices = assignment.choices();
    assert_eq!((weights.len(), d_weights.len()), (choices.len(), choices.len()), "weights of experts");
    assert_eq!(x.len(), dx.len(), "rows of experts");
    check(assignment, width, x, dy);
    let chosen = assignment.chosen();
    if x.is_empty() {
        return d_weights.fill(0.0);
    }
    let rows = rows_of(width);
    cpu.each(choices.chunks(rows).zip(dx.chunks_mut(rows * width)).collect(), x.len(), |(choices, dx)| {
        for (&choice, dx) in choices.iter().zip(dx.chunks_exact_mut(width)) {
            dx.copy_from_slice(row(dy, choice as usize / chosen, width));
            dispatch::scale(dx, weights[choice as usize]);
        }
    });
    let pieces =
        assignment.slots().chunks(rows * chosen).zip(d_weights.chunks_mut(rows * chosen)).enumerate();
    cpu.each(pieces.collect(), 2 * x.len(), |(piece, (slots, d_weights))| {
        for (index, (&slot, d_weight)) in slots.iter().zip(d_weights).enumerate() {
            let t = piece * rows + index / chosen;
            *d_weight = dispatch::dot(row(dy, t, width), row(x, slot as usize, width));
        }
    });
}

fn row(x: &[f32], index: usize, width: usize) -> &[f32] {
    &x[index * width..(index + 1) * width]
}

/// Rows of a piece.
fn rows_of(width: usize) -> usize {
    (CHUNK / width).max(1)
}

fn check(assignment: &Assignment, width: usize, of_slots: &[f32], of_rows: &[f32]) {
    let slots = assignment.slots().len();
    assert_eq!(of_slots.len(), slots * width, "slots of experts");
    assert_eq!(of_rows.len() * assignment.chosen(), slots * width, "rows of experts");
}
