//! Chooses the vector instructions for the operations of a decoder and for losses: the one place of both that asks for CPU
//! features.
//!
//! The same Rust code is compiled three times. Unlike merges, these levels may differ in the last bits: those with fused
//! multiplication and addition use it. On one machine the level never changes.
#![expect(
    unsafe_code,
    reason = "calls of functions compiled for CPU features, after the features were found"
)]

use std::sync::OnceLock;

use super::buffer::Values;
use super::lanes;
use crate::nn::device::{Accumulate, Activation, Norm};
use crate::nn::linear::cpu::FEW_ROWS;
use crate::nn::{adamw, attention, gated, linear, rms_norm, rotate};

/// A set of vector instructions.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The highest level of this machine.
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    use crate::cpu;
    let has_fused = is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2");
    match cpu::level() {
        cpu::Level::Avx512 if has_fused => Level::Avx512,
        cpu::Level::Avx512 | cpu::Level::Avx2 if has_fused => Level::Avx2,
        _ => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// Defines a function that runs `$body` compiled for the machine's level. `$body` is `#[inline(always)]` and takes the
/// arithmetic of the level first.
macro_rules! compiled {
    ($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path;) => {
        $(#[$doc])*
        #[expect(clippy::allow_attributes, reason = "few of the functions have that many arguments")]
        #[allow(clippy::too_many_arguments, reason = "slices and numbers of one inner loop")]
        pub(crate) fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? {
                $body($crate::nn::cpu::math::Fused, $($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                $body($crate::nn::cpu::math::Fused, $($argument),*)
            }
            use $crate::nn::cpu::dispatch::{Level, level};
            match level() {
                // SAFETY: `level` found the features that the function was compiled for.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($argument),*) },
                Level::Baseline => $body($crate::nn::cpu::math::Separate, $($argument),*),
            }
        }
    };
}
pub(crate) use compiled;

compiled! {
    /// `to[i] = from[i]`, exact.
    fn decode_bf16(from: &[u16], to: &mut [f32]) = lanes::decode_bf16;
}
compiled! {
    /// `to[i] = from[i]`, exact.
    fn decode_f16(from: &[u16], to: &mut [f32]) = lanes::decode_f16;
}
compiled! {
    /// Products of few rows with rows of a weight, `sums[column][row]`.
    fn few_rows(x: &[f32], inputs: usize, weight: Values<'_>, sums: &mut [[f32; FEW_ROWS]])
        = linear::few::products;
}
compiled! {
    /// `to[i] = from[i]`, to nearest with ties to even.
    fn encode_bf16(from: &[f32], to: &mut [u16]) = lanes::encode_bf16;
}
compiled! {
    /// `y += scale * x`.
    fn add(x: &[f32], scale: f32, y: &mut [f32]) = lanes::add;
}
compiled! {
    /// `y *= scale`.
    fn scale(y: &mut [f32], scale: f32) = lanes::scale;
}
compiled! {
    /// The product of two vectors.
    fn dot(x: &[f32], y: &[f32]) -> f32 = lanes::dot;
}
compiled! {
    /// The sum of squares, in f64.
    fn sum_of_squares(x: &[f32]) -> f64 = lanes::sum_of_squares;
}
compiled! {
    /// One row; returns its `rstd`.
    fn rms_norm(norm: Norm, x: &[f32], weight: &[f32], y: &mut [f32]) -> f32 = rms_norm::cpu::forward_row;
}
compiled! {
    /// One row; `d_weight` is added to.
    fn rms_norm_backward(
        x: &[f32],
        gain: &[f32],
        rstd: f32,
        dy: &[f32],
        dx: &mut [f32],
        into: Accumulate,
        d_weight: Option<&mut [f32]>,
    ) = rms_norm::cpu::backward_row;
}
compiled! {
    /// One head.
    fn rotate(sign: f32, cos: &[f32], sin: &[f32], x: &mut [f32]) = rotate::cpu::head;
}
compiled! {
    /// Scores to `exp(score - most)`; returns the new greatest score and the sum of the exponentials.
    fn exponentials(scores: &mut [f32], soft_cap: Option<f32>, most: f32) -> (f32, f32)
        = attention::cpu::exponentials;
}
compiled! {
    /// Scores to probabilities, and the gradient of probabilities to that of scores.
    fn score_gradients(
        scores: &mut [f32],
        gradients: &mut [f32],
        soft_cap: Option<f32>,
        lse: f32,
        delta: f32,
    ) = attention::cpu::score_gradients;
}
compiled! {
    /// `y = f(gate) * up`.
    fn gated(activation: Activation, gate: &[f32], up: &[f32], y: &mut [f32]) = gated::cpu::forward_lanes;
}
compiled! {
    /// `gate` and `up` become their gradients, and `dy` their product.
    fn gated_backward(activation: Activation, dy: &mut [f32], gate: &mut [f32], up: &mut [f32])
        = gated::cpu::backward_lanes;
}
compiled! {
    /// One block of parameters.
    fn adamw(
        step: adamw::Step,
        gradient: &[f32],
        master: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
    ) = adamw::cpu::lanes;
}
compiled! {
    /// One block of parameters with moments in eight bits; `place` is the step's seed and the first element's number.
    fn adamw8(
        step: adamw::Step,
        place: [u32; 2],
        gradient: &[f32],
        master: &mut [f32],
        first: (&mut [u8], &mut f32),
        second: (&mut [u8], &mut f32),
    ) = adamw::blockwise::lanes;
}
