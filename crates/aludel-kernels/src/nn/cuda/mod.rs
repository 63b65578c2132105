//! Gives memory and kernels of a CUDA device to the operations of a decoder.
//!
//! In and out: as [`Device`](super::Device) says, on buffers in the device's memory. Activations and their gradients are bf16, sums and
//! gradients of parameters f32. Everything is submitted to one stream, in order; the host waits only where it reads. What the driver or a
//! library refuses is kept, and told by the next call that can tell.
//!
//! Kernels stand beside their operations (`kernels.cu`), are compiled at run time after `instructions.cu` and `prelude.cu`, and remembered. Products of
//! matrices are cuBLASLt's. Where there is no GPU, tests run all of it on CUDA in software (`aludel-soft-cuda`).
//!
//! Tolerance, held by `aludel-distill`'s example `device` on a GPU and its test of that name without one: 1e-2 norm-wise of the CPU's f32 over the same values rounded to bf16. The same inputs give the
//! same bits: nothing is added in an order that depends on time, but for the choices among several ways that are made when a large shape is first met, and
//! remembered (`cuda/choices`).
//!
//! Reading order: `buffer` (memory), `context` (kernels and failures), `device` (the operations), `aside` (an optimizer's state in the host's memory),
//! `layers` (weights there).

mod aside;
mod buffer;
mod context;
mod device;
mod layers;

pub use super::adamw::cuda::{GradientNorm, Moments, Remainders};
pub use aside::Host;
pub(crate) use buffer::code;
pub use buffer::{Buffer, Indices};
pub use context::Cuda;
pub(crate) use context::{Text, lock};
pub use device::{Never, Reading};
pub use layers::Layers;
