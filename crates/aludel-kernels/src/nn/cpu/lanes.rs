//! Runs the loops that several operations share: plain code that becomes vector instructions of whichever level the caller
//! was compiled for.
//!
//! Sums run in a fixed number of lanes, whatever the machine's vectors hold.

use super::math::Arithmetic;

/// Lanes of a sum in f32: four vectors of sixteen, so that additions do not wait for each other.
pub(in crate::nn) const LANES: usize = 16;
const VECTORS: usize = 4;

#[inline(always)]
pub(in crate::nn) fn decode_bf16(_: impl Arithmetic, from: &[u16], to: &mut [f32]) {
    for (to, &bits) in to.iter_mut().zip(from) {
        *to = of_bf16(bits);
    }
}

#[inline(always)]
pub(in crate::nn) fn decode_f16(_: impl Arithmetic, from: &[u16], to: &mut [f32]) {
    for (to, &bits) in to.iter_mut().zip(from) {
        *to = of_f16(bits);
    }
}

#[inline(always)]
pub(in crate::nn) fn of_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Exact, without a branch: the exponent is moved by a multiplication, which makes subnormal numbers normal ones.
#[inline(always)]
pub(in crate::nn) fn of_f16(bits: u16) -> f32 {
    // 2^112: the difference of the exponents' biases.
    const MOVE: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let moved = (f32::from_bits(magnitude) * MOVE).to_bits();
    // Infinity and NaN have the largest exponent in both types.
    let special = magnitude | 0x7f80_0000;
    let value = if magnitude >= 0x1f << 23 { special } else { moved };
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

/// Without a branch, so that the loop becomes vector instructions. NaN stays NaN.
#[inline(always)]
pub(in crate::nn) fn encode_bf16(_: impl Arithmetic, from: &[f32], to: &mut [u16]) {
    for (to, &value) in to.iter_mut().zip(from) {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        *to = (if value.is_nan() { quiet } else { rounded }) as u16;
    }
}

#[inline(always)]
pub(in crate::nn) fn add(a: impl Arithmetic, x: &[f32], scale: f32, y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = a.mul_add(scale, x, *y);
    }
}

#[inline(always)]
pub(in crate::nn) fn scale(_: impl Arithmetic, y: &mut [f32], scale: f32) {
    for y in y {
        *y *= scale;
    }
}

#[inline(always)]
pub(in crate::nn) fn dot(a: impl Arithmetic, x: &[f32], y: &[f32]) -> f32 {
    sum(x, y, |x, y, sum| a.mul_add(x, y, sum))
}

/// Folds pairs into lanes with `f(x, y, lane)` and adds the lanes up in a fixed order.
#[inline(always)]
pub(in crate::nn) fn sum(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [[0.0f32; LANES]; VECTORS];
    let (x_groups, x_rest) = x.as_chunks::<{ LANES * VECTORS }>();
    let (y_groups, y_rest) = y.as_chunks::<{ LANES * VECTORS }>();
    for (x, y) in x_groups.iter().zip(y_groups) {
        for (v, vector) in lanes.iter_mut().enumerate() {
            for (i, lane) in vector.iter_mut().enumerate() {
                *lane = f(x[v * LANES + i], y[v * LANES + i], *lane);
            }
        }
    }
    let (x_groups, x_rest) = x_rest.as_chunks::<LANES>();
    let (y_groups, y_rest) = y_rest.as_chunks::<LANES>();
    for (x, y) in x_groups.iter().zip(y_groups) {
        for (i, lane) in lanes[0].iter_mut().enumerate() {
            *lane = f(x[i], y[i], *lane);
        }
    }
    for (lane, (&x, &y)) in lanes[1].iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane = f(x, y, *lane);
    }
    total(&lanes)
}

/// The sum of all lanes: vectors in order, then by halves.
#[inline(always)]
pub(in crate::nn) fn total<const V: usize>(vectors: &[[f32; LANES]; V]) -> f32 {
    let mut total = vectors[0];
    for vector in &vectors[1..] {
        for (total, lane) in total.iter_mut().zip(vector) {
            *total += lane;
        }
    }
    halve(total)
}

/// The greatest element and `most`; NaN is passed over.
#[inline(always)]
pub(in crate::nn) fn greatest(x: &[f32], most: f32) -> f32 {
    let mut lanes = [most; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(most, |most, x| if x > most { x } else { most })
}

/// The greatest magnitude; 0 for nothing; NaN is passed over.
#[inline(always)]
pub(in crate::nn) fn greatest_magnitude(x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x.abs() > *lane { x.abs() } else { *lane };
    }
    lanes.into_iter().fold(0.0, |most, x| if x > most { x } else { most })
}

#[inline(always)]
pub(crate) fn sum_of_squares(_: impl Arithmetic, x: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x) * f64::from(x);
    }
    lanes.into_iter().sum()
}

/// Adds sixteen lanes by halves.
#[inline(always)]
fn halve(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}
