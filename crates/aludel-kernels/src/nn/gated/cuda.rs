//! Runs gated activations on a CUDA device.

use crate::cuda::driver::Argument;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::driver::Grid;
    use crate::nn::Device;
    use crate::nn::cpu::testing::{cpu, floats, read, values};
    use crate::nn::cuda::on_cpu::{self, Given, distance, rounded};

    /// The gradient, and what the activation was, in place of what came in.
    #[test]
    fn the_gradient_comes_out_as_the_cpus() {
        let len = 1003;
        for (activation, number) in [(Activation::Silu, 0), (Activation::Gelu, 1), (Activation::GeluTanh, 2)]
        {
            let given = [1, 2, 3].map(|seed| rounded(&values(len, seed)));
            let cpu = cpu(1);
            let [mut dy, mut gate, mut up] = [0, 1, 2].map(|at| floats(&cpu, &given[at]));
            cpu.gated_backward(activation, &mut dy, &mut gate, &mut up);
            let [dy_there, gate_there, up_there] = [0, 1, 2].map(|at| Given::halves(&given[at]));
            let mut arguments = [Given::Int(number), dy_there, gate_there, up_there, Given::Long(len as i64)];
            let grid = Grid { blocks: [1, 1, 1], threads: 256, shared: 0 };
            if !on_cpu::run(&text(), "gated_backward", grid, 1, &mut arguments) {
                return;
            }
            for (at, want) in [dy, gate, up].iter().enumerate() {
                let apart = distance(&arguments[1 + at].to_halves(), &read(&cpu, want));
                assert!(apart < 4e-3, "{activation:?}, result {at}: {apart:.1e}");
            }
        }
    }
}
