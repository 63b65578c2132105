//! Opens a device, and does for batches in its memory what they ask of any: through one stream for each, and through pinned memory.
//!
//! In: a position among the devices, and a store for kernels. Out: a [`Device`] that all threads share, and a [`Lane`] for each thread that
//! feeds it.

use super::choices::{self, Choice};
use super::compile::Kernels;
use super::dialect::{self, CudaC, Shapes};
use super::driver::{Driver, Facts, Kernel, Memory, Pinned, Stream};
use super::selection::{self, Around};
use super::{CudaError, tune};
use crate::cpu::Geometry;
use crate::gpu::{Backend, KernelStore, Preparations, Selecting, Selections, Sizes, Sought};

/// A CUDA device.
#[derive(Debug)]
pub struct Device {
    pub(super) driver: Driver,
    pub(super) kernels: Kernels,
    facts: Facts,
    shapes: Shapes,
    pub(super) bracket: Kernel,
    pub(super) resolve: Kernel,
    preparations: Preparations<Self>,
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`] and [`CudaError::NoCompiler`] where there is nothing to open; others where the driver
    /// fails.
    pub fn open(ordinal: usize, store: Box<dyn KernelStore>) -> Result<Self, CudaError> {
        let driver = Driver::open(ordinal)?;
        let facts = driver.facts()?;
        let kernels = Kernels::new(&facts.architecture, store);
        let resolving = kernels.module(&driver, &dialect::resolving())?;
        let (bracket, resolve) =
            (resolving.kernel("bracket_thresholds")?, resolving.kernel("resolve_thresholds")?);
        let shapes =
            tune::remembered(kernels.store(), &facts).map_or_else(Shapes::default, |tuned| tuned.shapes);
        Ok(Self { driver, kernels, facts, shapes, bracket, resolve, preparations: Preparations::default() })
    }

    /// What the driver says of it.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What was chosen for models on such a device, in the order in which it was.
    pub fn choices_of_models(&self) -> Vec<Choice> {
        choices::of_models(self.kernels.store(), &self.facts)
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn free_memory(&self) -> Result<u64, CudaError> {
        self.driver.free_memory()
    }

    /// How work is shared out among threads on this device: what tuning has found, or the defaults.
    pub const fn shapes(&self) -> Shapes {
        self.shapes
    }
}

impl Backend for Device {
    type Error = CudaError;
    type Dialect = CudaC;
    type Kernel = Kernel;
    type Selection = Around;
    type Memory = Arena;
    type Lane = Lane;

    const SELECTION_WORDS: usize = selection::WORDS;
    const SWEEP: &'static str = "sweep_magnitudes";
    const LEFT: &'static str = "it has NaN or infinities, or its sample misled";

    fn name(&self) -> &str {
        &self.facts.name
    }

    fn compiled(&self) -> u64 {
        self.kernels.compiled()
    }

    fn shapes(&self) -> Shapes {
        self.shapes
    }

    fn preparations(&self) -> &Preparations<Self> {
        &self.preparations
    }

    fn room(&self, batches: u64) -> Result<u64, CudaError> {
        Ok(self.driver.free_memory()? / 10 * 9 / batches.max(1))
    }

    fn lane(&self, bytes: usize) -> Result<Lane, CudaError> {
        Ok(Lane { stream: self.driver.stream()?, pinned: self.driver.pinned(bytes)? })
    }

    fn no_text() -> CudaError {
        CudaError::Formula
    }

    fn kernel(&self, source: &str, name: &str) -> Result<Kernel, CudaError> {
        self.kernels.module(&self.driver, source)?.kernel(name)
    }

    fn selection(&self, source: &str) -> Result<Around, CudaError> {
        let module = self.kernels.module(&self.driver, source)?;
        Ok(Around { sample: module.kernel("sample_magnitudes")?, locate: module.kernel("locate_ties")? })
    }

    fn memory(&self, sizes: Sizes, earlier: Option<Arena>) -> Result<Arena, CudaError> {
        let (working, data, stream) = match earlier {
            Some(Arena { working, data, stream }) => (Some(working), Some(data), stream),
            None => (None, None, self.driver.stream()?),
        };
        // What is too small is given back before more is asked for.
        let enough = |memory: Option<Memory>, bytes| match memory.filter(|memory| memory.bytes() >= bytes) {
            Some(memory) => Ok(memory),
            None => self.driver.memory(bytes),
        };
        Ok(Arena { working: enough(working, sizes.working)?, data: enough(data, sizes.data)?, stream })
    }

    fn place(arena: &Arena, offset: u64) -> u64 {
        arena.working.address() + offset
    }

    fn place_of_data(arena: &Arena, offset: u64) -> u64 {
        arena.data.address() + offset
    }

    fn send(&self, arena: &Arena, offset: u64, bytes: &[u8]) -> Result<(), CudaError> {
        arena.stream.send(bytes, &arena.working, offset)
    }

    fn receive(&self, arena: &Arena, offset: u64, to: &mut [u8]) -> Result<(), CudaError> {
        arena.stream.download(&arena.working, offset, to)
    }

    fn launch(
        &self,
        arena: &Arena,
        kernel: &Kernel,
        threads: u32,
        blocks: u64,
        places: &[u64],
    ) -> Result<(), CudaError> {
        arena.stream.launch(kernel, blocks, threads, places)
    }

    fn space_of(geometry: Geometry) -> [u64; 3] {
        selection::space_of(geometry)
    }

    fn words_of(sought: &Sought) -> Vec<u64> {
        selection::words_of(sought)
    }

    fn select(
        &self,
        arena: &Arena,
        kernels: &Selecting<Self>,
        selections: &Selections,
    ) -> Result<(), CudaError> {
        selection::select(self, &arena.stream, kernels, selections)
    }

    fn upload(
        lane: &mut Lane,
        arena: &Arena,
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), CudaError> {
        let bytes = &mut lane.pinned.bytes()?[..length];
        fill(bytes);
        lane.stream.upload(bytes, &arena.data, offset)
    }

    fn download<T>(
        lane: &mut Lane,
        arena: &Arena,
        offset: u64,
        length: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, CudaError> {
        let bytes = &mut lane.pinned.bytes()?[..length];
        lane.stream.download(&arena.data, offset, bytes)?;
        Ok(take(bytes))
    }
}

/// Moves bytes between the host and a device, for one thread.
#[derive(Debug)]
pub struct Lane {
    stream: Stream,
    pinned: Pinned,
}

/// Memory of a device and a stream of its own: what a batch lives in. Used by one batch after the other.
#[derive(Debug)]
pub struct Arena {
    /// Tables and working space.
    working: Memory,
    /// Inputs and outputs.
    pub(super) data: Memory,
    pub(super) stream: Stream,
}
