//! Says what batches ask of a device: memory, kernels, and the means to move bytes.

use std::fmt::Debug;

use super::dialect::Dialect;
use super::prepared::{Preparations, Selecting};
use super::{ShapesOf, Tensor, emit};
use crate::cpu::Geometry;

/// A device and its language. What is submitted to a memory is done in its order.
pub trait Backend: Debug + Send + Sync + Sized + 'static {
    /// What can go wrong.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The language of its kernels.
    type Dialect: Dialect;

    /// A compiled kernel.
    type Kernel: Debug + Send + Sync;

    /// What a selection takes besides the kernel that sweeps.
    type Selection: Debug + Send + Sync;

    /// What a batch lives in.
    type Memory: Debug + Send + Sync;

    /// A thread's means to move bytes.
    type Lane;

    /// Words of 64 bits that say what is sought by a selection, and what is known of it.
    const SELECTION_WORDS: usize;

    /// The kernel of a selecting text that sweeps.
    const SWEEP: &'static str;

    /// Why tensors that it began are left to the CPU.
    const LEFT: &'static str;

    /// Bytes of a batch at the most, where its tensors are small.
    fn batch_bytes(&self) -> u64 {
        1 << 30
    }

    /// Its name.
    fn name(&self) -> &str;

    /// How many kernels this process had to compile, none being remembered.
    fn compiled(&self) -> u64;

    /// How work is shared out among its threads.
    fn shapes(&self) -> ShapesOf<Self>;

    /// The kernels that are prepared.
    fn preparations(&self) -> &Preparations<Self>;

    /// Bytes that each of so many batches can have of the memory that is free.
    ///
    /// # Errors
    /// Where the device does not tell.
    fn room(&self, batches: u64) -> Result<u64, Self::Error>;

    /// A thread's means to move bytes, at most `bytes` at once.
    ///
    /// # Errors
    /// Where the device has no more.
    fn lane(&self, bytes: usize) -> Result<Self::Lane, Self::Error>;

    /// That a formula is none that is computed here.
    fn no_text() -> Self::Error;

    /// Compiles a kernel.
    ///
    /// # Errors
    /// What the compiler says.
    fn kernel(&self, source: &str, name: &str) -> Result<Self::Kernel, Self::Error>;

    /// Compiles what a selecting text has besides its sweep.
    ///
    /// # Errors
    /// What the compiler says.
    fn selection(&self, source: &str) -> Result<Self::Selection, Self::Error>;

    /// Memory for a batch, that of an earlier one where it is large enough: what is among its inputs and outputs then stays.
    ///
    /// # Errors
    /// Where there is not so much.
    fn memory(&self, sizes: Sizes, earlier: Option<Self::Memory>) -> Result<Self::Memory, Self::Error>;

    /// How kernels are told of a place among tables and working space.
    fn place(memory: &Self::Memory, offset: u64) -> u64;

    /// How kernels are told of a place among inputs and outputs.
    fn place_of_data(memory: &Self::Memory, offset: u64) -> u64;

    /// Sends bytes to tables or working space. No place is sent to twice in a run of a batch.
    ///
    /// # Errors
    /// Where the device fails.
    fn send(&self, memory: &Self::Memory, offset: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Waits for all that is submitted, and copies bytes of tables or working space.
    ///
    /// # Errors
    /// Where the device fails.
    fn receive(&self, memory: &Self::Memory, offset: u64, to: &mut [u8]) -> Result<(), Self::Error>;

    /// Starts so many blocks of a kernel; `places` are its arguments.
    ///
    /// # Errors
    /// Where the device fails.
    fn launch(
        &self,
        memory: &Self::Memory,
        kernel: &Self::Kernel,
        threads: u32,
        blocks: u64,
        places: &[u64],
    ) -> Result<(), Self::Error>;

    /// Bytes of the working space of one selection, in three pieces.
    fn space_of(geometry: Geometry) -> [u64; 3];

    /// The words of a selection.
    fn words_of(sought: &Sought) -> Vec<u64>;

    /// Starts what finds thresholds and last ties.
    ///
    /// # Errors
    /// Where the device fails.
    fn select(
        &self,
        memory: &Self::Memory,
        kernels: &Selecting<Self>,
        selections: &Selections,
    ) -> Result<(), Self::Error>;

    /// Says that all inputs are in place, before anything is computed.
    ///
    /// # Errors
    /// Where the device fails.
    fn filled(&self, memory: &Self::Memory) -> Result<(), Self::Error> {
        let _ = memory;
        Ok(())
    }

    /// Says that everything is computed and waited for, before outputs are asked for.
    ///
    /// # Errors
    /// Where the device fails.
    fn computed(&self, memory: &Self::Memory) -> Result<(), Self::Error> {
        let _ = memory;
        Ok(())
    }

    /// Copies bytes among inputs and outputs, which `fill` puts where they are told. They are there when this returns, or when the inputs are
    /// said to be in place.
    ///
    /// # Errors
    /// Where the device fails.
    fn upload(
        lane: &mut Self::Lane,
        memory: &Self::Memory,
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Self::Error>;

    /// Has `take` see bytes of inputs and outputs.
    ///
    /// # Errors
    /// Where the device fails.
    fn download<T>(
        lane: &mut Self::Lane,
        memory: &Self::Memory,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, Self::Error>;

    /// Why a formula is not computed here; `None` where it is.
    fn obstacle(&self, tensor: &Tensor) -> Option<&'static str> {
        emit::obstacle_in::<Self::Dialect>(&tensor.formula)
    }
}

/// Bytes that a batch takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Of tables and working space.
    pub working: u64,
    /// Of inputs and outputs.
    pub data: u64,
}

impl Sizes {
    /// All of them.
    pub const fn all(self) -> u64 {
        self.working + self.data
    }
}

/// A selection that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    /// How many magnitudes are sought; 0 where what is kept is known.
    pub count: u64,
    /// Of how many.
    pub geometry: Geometry,
    /// The places of its working space.
    pub space: [u64; 3],
    /// The place of its cut.
    pub cut: u64,
    /// The place of its tensor's flags.
    pub flag: u64,
}

/// The selections of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct Selections {
    /// The places of tables: descriptions of tensors, their chunks, values per tensor, the selections' words, flags.
    pub descriptors: u64,
    /// See `descriptors`.
    pub blocks: u64,
    /// See `descriptors`.
    pub scalars: u64,
    /// See `descriptors`.
    pub words: u64,
    /// See `descriptors`.
    pub flags: u64,
    /// How many tensors there are.
    pub tensors: u64,
    /// How many chunks all of them have.
    pub chunks: u64,
    /// Elements of the largest tensor in which something is sought.
    pub largest: u64,
}
