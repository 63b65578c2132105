//! Opens a device, prepares the kernels of formulas, and moves bytes through pinned memory.
//!
//! In: a position among the devices, and a store for kernels. Out: a [`Device`] that all threads share, and a [`Lane`] for each thread that
//! feeds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::batch::Batch;
use super::compile::{KernelStore, Kernels};
use super::driver::{Driver, Facts, Kernel, Memory, Pinned, Stream};
use super::source::{self, PassTexts, Shapes, Text};
use super::{CudaError, Tensor, tune};
use crate::element::Element;
use crate::formula::Formula;

/// A CUDA device.
#[derive(Debug)]
pub struct Device {
    pub(super) driver: Driver,
    pub(super) kernels: Kernels,
    facts: Facts,
    shapes: Shapes,
    pub(super) bracket: Kernel,
    pub(super) resolve: Kernel,
    prepared: Mutex<HashMap<Key, Arc<Prepared>>>,
}

/// What the kernels of a formula depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    formula: Arc<Formula>,
    inputs: Vec<Element>,
    output: Element,
    shapes: Shapes,
}

/// The compiled kernels of a formula.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Equal for formulas that share all kernels.
    pub signature: Vec<String>,
    pub passes: Vec<PassKernels>,
    pub writing: Compiled,
}

/// The compiled kernels of a pass.
#[derive(Debug)]
pub(super) struct PassKernels {
    pub selecting: Vec<Selecting>,
    pub reducing: Vec<Compiled>,
}

#[derive(Debug)]
pub(super) struct Selecting {
    pub sample: Kernel,
    pub locate: Kernel,
    /// Sweeps.
    pub sweep: Compiled,
}

/// A kernel and what is bound to it.
#[derive(Debug)]
pub(super) struct Compiled {
    pub kernel: Kernel,
    pub text: Text,
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
        let resolving = kernels.module(&driver, &source::resolving())?;
        let (bracket, resolve) =
            (resolving.kernel("bracket_thresholds")?, resolving.kernel("resolve_thresholds")?);
        let shapes =
            tune::remembered(kernels.store(), &facts).map_or_else(Shapes::default, |tuned| tuned.shapes);
        Ok(Self { driver, kernels, facts, shapes, bracket, resolve, prepared: Mutex::default() })
    }

    /// What the driver says of it.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn free_memory(&self) -> Result<u64, CudaError> {
        self.driver.free_memory()
    }

    /// How many kernels this process had to compile, none being remembered.
    pub fn compiled(&self) -> u64 {
        self.kernels.compiled()
    }

    /// How work is shared out among threads on this device: what tuning has found, or the defaults.
    pub const fn shapes(&self) -> Shapes {
        self.shapes
    }

    /// A thread's means to move bytes, at most `bytes` at once.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn lane(&self, bytes: usize) -> Result<Lane, CudaError> {
        Ok(Lane { stream: self.driver.stream()?, pinned: self.driver.pinned(bytes)? })
    }

    /// Bytes of the device's memory that a tensor takes in a batch, about; compiles its kernels.
    ///
    /// # Errors
    /// [`CudaError::Formula`] where it is not computed here; [`CudaError::Compile`].
    pub fn bytes(&self, tensor: &Tensor) -> Result<u64, CudaError> {
        let prepared = self.prepare(tensor, self.shapes)?;
        Ok(super::batch::bytes_of(tensor, &prepared))
    }

    /// The kernels of a tensor's formula.
    pub(super) fn prepare(&self, tensor: &Tensor, shapes: Shapes) -> Result<Arc<Prepared>, CudaError> {
        let Tensor { formula, inputs, output, .. } = tensor;
        let key = Key { formula: Arc::clone(formula), inputs: inputs.clone(), output: *output, shapes };
        if let Some(prepared) = self.lock().get(&key) {
            return Ok(Arc::clone(prepared));
        }
        let texts = source::texts(formula, inputs, *output, shapes).ok_or(CudaError::Formula)?;
        let mut signature = Vec::new();
        let passes = texts.passes.into_iter().map(|pass| self.pass(pass, &mut signature));
        let passes = passes.collect::<Result<_, _>>()?;
        let writing = self.compile(texts.writing, "write_tensors", &mut signature)?;
        let prepared = Arc::new(Prepared { signature, passes, writing });
        Ok(Arc::clone(self.lock().entry(key).or_insert(prepared)))
    }

    fn pass(&self, texts: PassTexts, signature: &mut Vec<String>) -> Result<PassKernels, CudaError> {
        let mut pass = PassKernels { selecting: Vec::new(), reducing: Vec::new() };
        for text in texts.selecting {
            let module = self.kernels.module(&self.driver, &text.source)?;
            pass.selecting.push(Selecting {
                sample: module.kernel("sample_magnitudes")?,
                locate: module.kernel("locate_ties")?,
                sweep: self.compile(text, "sweep_magnitudes", signature)?,
            });
        }
        for text in texts.reducing {
            pass.reducing.push(self.compile(text, "reduce_chunks", signature)?);
        }
        Ok(pass)
    }

    fn compile(&self, text: Text, name: &str, signature: &mut Vec<String>) -> Result<Compiled, CudaError> {
        let kernel = self.kernels.module(&self.driver, &text.source)?.kernel(name)?;
        signature.push(text.source.clone());
        Ok(Compiled { kernel, text })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Prepared>>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves bytes between the host and a device, for one thread.
#[derive(Debug)]
pub struct Lane {
    stream: Stream,
    pinned: Pinned,
}

impl Lane {
    /// Copies bytes of an input to the device: `length` bytes, `offset` from its first, which `fill` puts into pinned memory. They are there when
    /// this returns.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// Where there are more bytes than the lane has room for, or than the input has.
    pub fn upload(
        &mut self,
        batch: &Batch,
        (tensor, input): (usize, usize),
        offset: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), CudaError> {
        let (memory, to) = batch.input(tensor, input, offset, length);
        let bytes = &mut self.pinned.bytes()?[..length];
        fill(bytes);
        self.stream.upload(bytes, memory, to)
    }

    /// Copies bytes of an output from the device, `length` of them, `offset` from its first.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    ///
    /// # Panics
    /// Where there are more bytes than the lane has room for, or than the output has.
    pub fn download(
        &mut self,
        batch: &Batch,
        tensor: usize,
        offset: u64,
        length: usize,
    ) -> Result<&[u8], CudaError> {
        let (memory, from) = batch.output(tensor, offset, length);
        let bytes = &mut self.pinned.bytes()?[..length];
        self.stream.download(memory, from, bytes)?;
        Ok(bytes)
    }
}

/// Memory of a device and a stream of its own: what a batch lives in. Used by one batch after the other.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) memory: Memory,
    pub(super) stream: Stream,
}

impl Arena {
    pub(super) fn new(device: &Device, bytes: u64) -> Result<Self, CudaError> {
        Ok(Self { memory: device.driver.memory(bytes)?, stream: device.driver.stream()? })
    }
}
