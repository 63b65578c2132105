//! Computes formulas on any GPU by way of wgpu: Metal on Apple's machines, Vulkan, Direct3D 12.
//!
//! In: an adapter by its position. Out: a [`Device`] for batches of [`crate::gpu`], whose passes are said in WGSL (`dialect`), compiled by the adapter's
//! driver and remembered where it lets them be (`compile`), and submitted together (`memory`).
//!
//! WGSL has neither f64 nor a promise about the last bit of a quotient, and compilers of it may fuse operations. So sums of f64, quotients
//! and roots are made of whole numbers, and no operation sees another's result but through them. Where an input is not finite, or a number on the way
//! is below 2^-126 or beyond all numbers, the CPU computes the tensor. A device is only used when a batch whose output is
//! known comes out right to the bit (`prove`). Exponentials and logarithms of elements, which are f64, are the CPU's.

mod compile;
mod device;
mod dialect;
mod memory;
mod prove;
mod selection;
#[cfg(test)]
mod tests;

pub use device::{AdapterFacts, Device, adapters};
#[cfg(test)]
pub(crate) use dialect::Wgsl;

/// What can go wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuError {
    /// No driver shows an adapter.
    #[error("no driver for {} shows an adapter", APIS)]
    NoAdapter,
    /// There are fewer adapters.
    #[error("there is no adapter {ordinal}: there are {count}")]
    NoSuchAdapter {
        /// The position asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// It computes something else than the CPU.
    #[error("{name} does not compute the CPU's bits")]
    Differs {
        /// Its name.
        name: String,
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
    /// The device refuses something.
    #[error("the device failed to {doing}: {message}")]
    Failed {
        /// What it was to do.
        doing: &'static str,
        /// What it says.
        message: String,
    },
    /// A formula that the device does not compute; ask [`Backend::obstacle`](crate::gpu::Backend::obstacle) before.
    #[error("the device does not compute this formula")]
    Formula,
}

/// What adapters are reached by.
const APIS: &str = if cfg!(target_vendor = "apple") {
    "Metal"
} else if cfg!(windows) {
    "Vulkan or Direct3D 12"
} else {
    "Vulkan"
};
