//! Computes on CUDA devices: batches of formulas, and what operations on models ask of a driver.
//!
//! A pass of the schedule is said in CUDA C (`dialect`), compiled at run time and remembered (`compile`); memory, streams and launches are the driver's
//! (`driver`; `queue` holds back what models ask for, and repeats it as `graph`s of `operation`s on memory of an `arena`), thresholds are found by way of samples (`selection`), how kernels share work out is tuned (`tune`; `choices` for
//! models), and what is computed is handed to models on the same device (`handover`).
//!
//! What makes the bits those of the CPU: the same instructions in the same order without fused multiplication, partial sums in f64 over
//! sixteen lanes of the same chunks joined in the same order, the same counters of the same random streams, and exact selection. Where
//! an input has a NaN or an infinity, or the output a NaN, the CPU computes the tensor: only there could bits differ.

mod arena;
pub(crate) mod choices;
pub(crate) mod collective;
pub(crate) mod compile;
mod device;
mod dialect;
pub(crate) mod driver;
mod graph;
mod handover;
pub(crate) mod operation;
pub(crate) mod products;
mod queue;
mod selection;
mod tune;

pub use choices::Choice;
pub use collective::Collective;
pub use device::{Device, Lane};
#[cfg(test)]
pub(crate) use dialect::CudaC;
pub use dialect::{Shape, Shapes};
pub use driver::{Facts, find_driver};
pub use queue::Submitted;
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
    #[error(
        "CUDA's library of collectives (libnccl.so.2) is not installed; install NCCL, or `nvidia-nccl-cu13` of PyPI, and name the folder of the library in LD_LIBRARY_PATH"
    )]
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
    /// A formula that the device does not compute; ask [`obstacle`](crate::gpu::obstacle) before.
    #[error("the device does not compute this formula")]
    Formula,
}
