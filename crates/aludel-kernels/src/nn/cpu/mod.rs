//! Runs the operations of a decoder on the CPU: f32 activations, any number of threads, the same bits.
//!
//! In: buffers in memory, weights in f32, bf16 or f16 where they lie. Out: buffers in memory. Work is cut into pieces by its
//! shape alone and sums across pieces are taken in order, so that the number of threads changes no bit. Kernels lie with
//! their operations.
//!
//! Reading order: [`buffer`], `window` (outputs that many threads write, and the library of products), `dispatch` (vector
//! instructions), `lanes` and `math` (what the inner loops share).

pub mod buffer;
mod device;
pub(crate) mod dispatch;
pub(crate) mod lanes;
pub(crate) mod math;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod window;

use std::num::NonZeroUsize;

use rayon::prelude::*;

pub use self::buffer::Buffer;
use super::device::DeviceError;

/// The CPU as a [`Device`](super::Device), with threads of its own.
pub struct Cpu {
    pool: rayon::ThreadPool,
}

/// Numbers in memory.
pub struct Indices(pub(crate) Vec<u32>);

/// Elements that one thread works on without a break in operations that are one pass over memory.
pub(crate) const CHUNK: usize = 16 * 1024;

/// Below this many operations of arithmetic, handing pieces to other threads takes longer than doing them.
const SMALL: usize = 1 << 18;

impl Cpu {
    /// With this many threads, or one for each processor.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] if the system gives no threads.
    pub fn new(threads: Option<NonZeroUsize>) -> Result<Self, DeviceError> {
        let threads = threads.or_else(|| std::thread::available_parallelism().ok());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.map_or(1, NonZeroUsize::get))
            .thread_name(|index| format!("cpu-{index}"))
            .build()
            .map_err(|error| DeviceError::Failed { device: "CPU".to_owned(), detail: error.to_string() })?;
        Ok(Self { pool })
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `f` for every piece on the threads, in any order. `operations` is the arithmetic of all pieces together; where
    /// it is little, the pieces are run here.
    pub fn each<T: Send>(&self, pieces: Vec<T>, operations: usize, f: impl Fn(T) + Send + Sync) {
        if pieces.len() < 2 || operations < SMALL {
            return pieces.into_iter().for_each(f);
        }
        self.pool.install(|| pieces.into_par_iter().with_max_len(1).for_each(f));
    }

    /// As [`Cpu::each`], with results in the order of the pieces.
    pub fn map<T: Send, R: Send>(
        &self,
        pieces: Vec<T>,
        operations: usize,
        f: impl Fn(T) -> R + Send + Sync,
    ) -> Vec<R> {
        if pieces.len() < 2 || operations < SMALL {
            return pieces.into_iter().map(f).collect();
        }
        self.pool.install(|| pieces.into_par_iter().with_max_len(1).map(f).collect())
    }
}
