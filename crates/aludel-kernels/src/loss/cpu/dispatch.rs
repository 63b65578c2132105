//! Has the inner loops of the losses compiled for each level of vector instructions.
#![expect(
    unsafe_code,
    reason = "calls of functions compiled for CPU features, after the features were found"
)]

use super::lanes::{self, Points, Scales};
use crate::loss::divergence::{Kind, Point, Weights};
use crate::nn::cpu::dispatch::compiled;

compiled! {
    /// See [`lanes::floor`].
    fn floor(from: &[f32], to: &mut [f32]) = lanes::floor;
}
compiled! {
    /// See [`lanes::greatest`].
    fn greatest(x: &[f32], most: f32) -> f32 = lanes::greatest;
}
compiled! {
    /// See [`lanes::sum`].
    fn sum(x: &[f32]) -> f64 = lanes::sum;
}
compiled! {
    /// See [`lanes::exponentials`].
    fn exponentials(x: &[f32], most: f32, inverse: f32, scale: f32, to: &mut [f32]) = lanes::exponentials;
}
compiled! {
    /// See [`lanes::extent`].
    fn extent(x: &[f32]) -> Option<(f32, f32)> = lanes::extent;
}
compiled! {
    /// See [`lanes::levels`].
    fn levels(x: &[f32], top: f32, step: f32, most: u8, to: &mut [u8]) = lanes::levels;
}
compiled! {
    /// See [`lanes::sum_below`].
    fn sum_below(x: &[f32], levels: &[u8]) -> f64 = lanes::sum_below;
}
compiled! {
    /// See [`lanes::interpolate`].
    fn interpolate(student: (&[f32], f32), teacher: (&[f32], f32), t: f32, to: &mut [f32]) = lanes::interpolate;
}
compiled! {
    /// See [`lanes::points`].
    fn points(scales: Scales, student: &[f32], teacher: &[f32], target: &[f32], points: Points<'_>) = lanes::points;
}
compiled! {
    /// See [`lanes::mix`].
    fn mix(weights: Weights, points: Points<'_>) = lanes::mix;
}
compiled! {
    /// See [`lanes::locals`].
    fn locals(kind: Kind, origin: f32, points: Points<'_>, value: &mut [f32], flow: &mut [f32]) = lanes::locals;
}
compiled! {
    /// See [`lanes::flows`].
    fn flows(kind: Kind, origin: f32, points: Points<'_>, flow: &mut [f32]) = lanes::flows;
}
compiled! {
    /// See [`lanes::slope`].
    fn slope(kind: Kind, point: Point) -> f32 = lanes::slope;
}
compiled! {
    /// See [`lanes::squares`].
    fn squares(
        rate: f32,
        share: f32,
        student: &[f32],
        teacher: &[f32],
        value: &mut [f32],
        flow: &mut [f32],
    ) = lanes::squares;
}
compiled! {
    /// See [`lanes::add_gradient`].
    fn add_gradient(factor: f32, total: f32, flow: &[f32], q: &[f32], gradient: &mut [f32]) = lanes::add_gradient;
}
compiled! {
    /// See [`lanes::through_cap`].
    fn through_cap(cap: f32, z: &[f32], gradient: &mut [f32]) = lanes::through_cap;
}
compiled! {
    /// See [`lanes::soft_cap`].
    fn soft_cap(cap: f32, z: &mut [f32]) = lanes::soft_cap;
}
compiled! {
    /// See [`lanes::mean_square`].
    fn mean_square(factor: f64, target: &[f32], x: &mut [f32]) -> f64 = lanes::mean_square;
}
compiled! {
    /// See [`lanes::cosine`].
    fn cosine(factor: f64, target: &[f32], x: &mut [f32]) -> f64 = lanes::cosine;
}
