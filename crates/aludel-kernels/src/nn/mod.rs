//! Holds the operations that a decoder is made of, forward and backward, behind one trait for every device.
//!
//! In: buffers on a device and the shapes of what is in them. Out: buffers on that device. An operation knows no model, no
//! layer and no file; it keeps no state between calls. Products of matrices come from libraries.
//!
//! Reading order: [`device`] (what a decoder may ask for), [`cpu`] (memory, threads and vector instructions), [`cuda`] (memory and kernels of a GPU), `tally` (a device that counts), then one folder
//! for each operation, with its contract, its reference in f64 and its kernels side by side.

mod adamw;
mod attention;
pub mod cpu;
pub mod cuda;
pub mod device;
pub(crate) mod elementwise;
mod embed;
mod experts;
mod gated;
pub(crate) mod linear;
mod rms_norm;
mod rotate;
pub(crate) mod rows;
mod tally;

pub use adamw::{Moments, Remainders};
pub use cpu::Cpu;
pub use cuda::Cuda;
pub use device::{
    Accumulate, Activation, Attention, Device, DeviceError, Direction, Heads, Master, Missing, MomentsMut,
    Norm, ParameterUpdate, Product, Routing, Rows, SharedBytes, Span, StoredMoments, Update,
};
pub use experts::Assignment;
pub use tally::{Like, Tally};
