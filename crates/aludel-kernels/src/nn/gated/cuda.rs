//! Runs gated activations on a CUDA device.

use crate::cuda::operation::Argument;
use crate::nn::cuda::{Buffer, Cuda, Text};
use crate::nn::device::Activation;

pub(in crate::nn) const fn text() -> Text<'static> {
    Text { name: "gated", defines: "", parts: &[include_str!("kernels.cu")] }
}

const fn code(activation: Activation) -> Argument {
    Argument::Int(match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
    })
}

pub(in crate::nn) fn forward(
    cuda: &Cuda,
    activation: Activation,
    gate: &Buffer,
    up: &Buffer,
    y: &mut Buffer,
) {
    let len = y.len();
    assert_eq!((gate.len(), up.len()), (len, len), "gate and up");
    let arguments = [code(activation), gate.halves(), up.halves(), y.halves(), Argument::Long(len as i64)];
    cuda.each(text(), "gated", len.div_ceil(8), &arguments);
}

pub(in crate::nn) fn backward(
    cuda: &Cuda,
    activation: Activation,
    dy: &mut Buffer,
    gate: &mut Buffer,
    up: &mut Buffer,
) {
    let len = dy.len();
    assert_eq!((gate.len(), up.len()), (len, len), "gate and up");
    let arguments = [code(activation), dy.halves(), gate.halves(), up.halves(), Argument::Long(len as i64)];
    cuda.each(text(), "gated_backward", len.div_ceil(8), &arguments);
}
