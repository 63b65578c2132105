//! Executes formulas on a CUDA device: whole batches of tensors in its memory, bit for bit as the CPU does.
//!
//! In: [`Tensor`]s, and the bytes of their inputs. Out: the bytes of their outputs, and for each tensor whether it is done or left to the
//! CPU. A pass of the schedule is printed as CUDA C (`emit`, `source`), compiled at run time and remembered (`compile`), and run over all
//! tensors of a batch at once (`batch`). Nothing of a tensor lies in the device's memory but its inputs, its output and, where it
//! selects, a few magnitudes around the threshold. Files, threads and batches of a model are the caller's.
//!
//! What makes the bits those of the CPU: the same instructions in the same order without fused multiplication, partial sums in f64 over
//! sixteen lanes of the same chunks joined in the same order, the same counters of the same random streams, and exact selection. Values
//! per tensor are computed on the host by the same code. Where an input has a NaN or an infinity, or the output a NaN, the CPU
//! computes the tensor: only there could bits differ.

mod batch;
pub(crate) mod collective;
pub(crate) mod compile;
mod device;
pub(crate) mod driver;
mod emit;
pub(crate) mod products;
mod source;
mod tune;

pub use batch::{Batch, Tensor, Verdict};
pub use collective::Collective;
pub use compile::{KernelStore, NoStore};
pub use device::{Device, Lane};
pub use driver::Facts;
pub use emit::obstacle;
pub use source::{Shape, Shapes};
pub use tune::{Finding, Tuned};

/// What can go wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not there.
    #[error("the CUDA driver (libcuda) is not installed")]
    NoDriver,
    /// The driver has no device.
    #[error("the CUDA driver shows no device")]
    NoDevice,
    /// The compiler's library is not there.
    #[error("CUDA's run-time compiler (libnvrtc) is not installed")]
    NoCompiler,
    /// The library of products is not there.
    #[error("CUDA's library of products (libcublasLt) is not installed")]
    NoProducts,
    /// The library of products refuses something.
    #[error("libcublasLt failed to {doing}: {message}")]
    Product {
        /// What it was to do.
        doing: &'static str,
        /// What it says.
        message: String,
    },
    /// The library of collectives is not there.
    #[error("CUDA's library of collectives (libnccl) is not installed")]
    NoCollectives,
    /// The library of collectives refuses something.
    #[error("libnccl failed to {doing}: {message}")]
    Collective {
        /// What it was to do.
        doing: &'static str,
        /// What it says.
        message: String,
    },
    /// The device is too old for the operations on models.
    #[error("{name} is {architecture}; models are computed on sm_80 and later")]
    TooOld {
        /// Its name.
        name: String,
        /// Its architecture.
        architecture: String,
    },
    /// A kernel does not compile.
    #[error("a kernel does not compile: {log}")]
    Compile {
        /// What the compiler says.
        log: String,
    },
    /// The device has too little memory.
    #[error("the device has no {bytes} bytes of memory left")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
    },
    /// The driver refuses something.
    #[error("the CUDA driver failed to {doing}: {message}")]
    Driver {
        /// What it was to do.
        doing: &'static str,
        /// What it says.
        message: String,
    },
    /// A formula that the device does not compute; ask [`obstacle`] before.
    #[error("the device does not compute this formula")]
    Formula,
}
