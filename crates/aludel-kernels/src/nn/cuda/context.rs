//! Opens a device for models, starts kernels by their names, and keeps the first failure.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::buffer::{Buffer, Indices, code};
use crate::cuda::choices::Choices;
use crate::cuda::compile::Kernels;
use crate::cuda::driver::{Block, Driver, Kernel, Mark, Memory, Stream};
use crate::cuda::operation::{Argument, Grid};
use crate::cuda::products::{Operands, Products, Shape};
use crate::cuda::{Choice, CudaError, Facts, Submitted};
use crate::element::Element;
use crate::gpu::KernelStore;
use crate::nn::attention::cuda::Table;
use crate::nn::device::{DeviceError, LARGE_BUFFER};

const INSTRUCTIONS: &str = include_str!("instructions.cu");
const PRELUDE: &str = include_str!("prelude.cu");

/// The first architecture that copies asynchronously and multiplies bf16, as two digits.
const OLDEST: u32 = 80;

/// The architecture of which warpgroups multiply. Their instructions are its own, which the letter at the end stands for: no younger one has them.
const HOPPER: &str = "sm_90a";

/// A CUDA device that models are computed on.
pub struct Cuda {
    pub(super) driver: Driver,
    facts: Facts,
    kernels: Kernels,
    loaded: Mutex<HashMap<String, HashMap<&'static str, Kernel>>>,
    pub(crate) stream: Stream,
    /// Copies to the device, copies from it, and sums over devices, beside what is computed.
    pub(super) up: Stream,
    pub(super) down: Stream,
    pub(super) beside: Stream,
    products: Products,
    pub(crate) choices: Arc<Choices>,
    pub(in crate::nn) tables: Mutex<Vec<Table>>,
    pub(crate) supply: Arc<Supply>,
    /// What operations use while they run, one at a time.
    scratch: Mutex<Option<Block>>,
}

/// Where buffers that are there no sooner than they are needed have their memory from, and the first failure that nobody has been told of.
#[derive(Debug)]
pub(crate) struct Supply {
    stream: Stream,
    failure: Mutex<Option<CudaError>>,
}

impl Supply {
    /// Memory of any content, or, with the failure kept, none.
    pub(super) fn block_or_nowhere(&self, bytes: usize) -> Block {
        self.keep(self.stream.block(bytes)).unwrap_or_else(|| self.stream.nowhere(bytes))
    }

    fn keep<T>(&self, result: Result<T, CudaError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                lock(&self.failure).get_or_insert(error);
                None
            }
        }
    }

    /// Refuses to compute on what a failure has left.
    fn is_sound(&self) -> Result<(), CudaError> {
        match *lock(&self.failure) {
            None => Ok(()),
            Some(_) => Err(CudaError::Driver {
                doing: "go on",
                message: "an operation before has failed".to_owned(),
            }),
        }
    }
}

/// A text of kernels: what is defined before it, and its parts one after another. The name stands for all of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    pub(crate) name: &'a str,
    pub(crate) defines: &'a str,
    pub(crate) parts: &'a [&'a str],
}

impl Text<'_> {
    /// All of it.
    pub(crate) fn source(&self) -> String {
        [self.defines, INSTRUCTIONS, PRELUDE].iter().chain(self.parts).copied().collect()
    }

    /// Needs the compiler's library, but no device.
    #[cfg(test)]
    pub(crate) fn assert_compiles(&self) {
        Kernels::of_models(HOPPER, Box::new(crate::gpu::NoStore)).assert_compiles(&self.source());
    }
}

impl Cuda {
    /// Opens a device by its position, with a place where compiled kernels are remembered.
    ///
    /// # Errors
    /// [`CudaError::NoDriver`], [`CudaError::NoDevice`], [`CudaError::NoCompiler`], [`CudaError::NoProducts`] and [`CudaError::TooOld`]
    /// where there is nothing to compute on; others where the driver fails.
    pub fn open(ordinal: usize, store: Box<dyn KernelStore>) -> Result<Self, CudaError> {
        let driver = Driver::open(ordinal)?;
        let facts = driver.facts()?;
        let digits = facts.architecture.trim_start_matches("sm_");
        if digits.parse::<u32>().is_ok_and(|number| number < OLDEST) {
            return Err(CudaError::TooOld { name: facts.name, architecture: facts.architecture });
        }
        driver.keep_blocks()?;
        driver.wait_awake()?;
        let stream = driver.queued_stream()?;
        let (up, down, beside) = (driver.stream()?, driver.stream()?, driver.stream()?);
        let architecture = if is_hopper(&facts) { HOPPER } else { &facts.architecture };
        let kernels = Kernels::of_models(architecture, store);
        let choices = Arc::new(Choices::new(kernels.shared_store(), &facts));
        let products = Products::new(&stream, Arc::clone(&choices))?;
        let supply = Arc::new(Supply { stream: stream.clone(), failure: Mutex::default() });
        let (loaded, tables, scratch) = (Mutex::default(), Mutex::default(), Mutex::default());
        let device = Self {
            driver,
            facts,
            kernels,
            loaded,
            stream,
            up,
            down,
            beside,
            products,
            choices,
            tables,
            supply,
            scratch,
        };
        // A compiler that is missing is told of here rather than in the first step.
        let text = Text { name: "elementwise", defines: "", parts: &[crate::nn::elementwise::cuda::TEXT] };
        device.kernel(text, "fill", 0)?;
        Ok(device)
    }

    /// What the driver says of it.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What was chosen for models on such a device so far, in this process or an earlier one.
    pub fn choices(&self) -> Vec<Choice> {
        self.choices.remembered()
    }

    /// How many shapes this process has timed ways for.
    pub fn timed(&self) -> u64 {
        self.choices.timed()
    }

    /// What it has been told so far, and how.
    pub fn submitted(&self) -> Submitted {
        self.stream.submitted()
    }

    /// Whether warpgroups multiply here.
    pub(crate) fn has_warpgroups(&self) -> bool {
        is_hopper(&self.facts)
    }

    /// Starts a kernel of a text.
    pub(crate) fn run(&self, text: Text<'_>, name: &'static str, grid: Grid, arguments: &[Argument]) {
        self.keep(self.start(text, name, grid, arguments));
    }

    /// Starts a kernel of a text, or says why not.
    pub(crate) fn start(
        &self,
        text: Text<'_>,
        name: &'static str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<(), CudaError> {
        self.supply.is_sound()?;
        let kernel = self.kernel(text, name, grid.shared)?;
        self.stream.start(&kernel, grid, arguments)
    }

    /// Starts a kernel with a thread for each of `count` pieces.
    pub(crate) fn each(&self, text: Text<'_>, name: &'static str, count: usize, arguments: &[Argument]) {
        let blocks = count.div_ceil(256);
        self.run(text, name, Grid { blocks: [blocks as u32, 1, 1], threads: 256, shared: 0 }, arguments);
    }

    /// Starts a kernel with a block for each of `rows` rows.
    pub(crate) fn each_row(&self, text: Text<'_>, name: &'static str, rows: usize, arguments: &[Argument]) {
        self.run(text, name, Grid { blocks: [rows as u32, 1, 1], threads: 256, shared: 0 }, arguments);
    }

    /// Submits a product.
    pub(crate) fn multiply(&self, shape: Shape, alpha: f32, operands: Operands) {
        let multiplied = self.supply.is_sound().and_then(|()| self.products.multiply(shape, alpha, operands));
        self.keep(multiplied);
    }

    /// A buffer of any content for the length of an operation, or, where there is no memory, none: the failure is kept. Small ones lie in the same place every
    /// time, which is there until the end, unless two are needed at once.
    pub(crate) fn scratch(&self, len: usize, element: Element) -> Option<Buffer> {
        let bytes = len * element.size();
        let block = if bytes < LARGE_BUFFER { self.kept_scratch(bytes) } else { self.stream.block(bytes) };
        self.keep(block).map(|block| self.buffer(block, len, element))
    }

    fn kept_scratch(&self, bytes: usize) -> Result<Block, CudaError> {
        let mut kept = lock(&self.scratch);
        match &*kept {
            Some(block) if block.has_parts() => return self.stream.block(bytes),
            Some(block) if block.bytes() >= bytes => return Ok(block.part(0, bytes)),
            _ => {}
        }
        let block = self.stream.block(bytes.next_power_of_two())?;
        Ok(kept.insert(block).part(0, bytes))
    }

    /// Elements as they lie in a block.
    pub(crate) fn buffer(&self, block: Block, len: usize, element: Element) -> Buffer {
        Buffer::new(&self.supply, block, len, element)
    }

    /// A buffer with a copy of elements that lie in a memory of the same device.
    pub(crate) fn fetched(
        &self,
        from: &Memory,
        offset: u64,
        len: usize,
        element: Element,
    ) -> Result<Buffer, DeviceError> {
        let block = self.stream.block(len * element.size());
        self.told(block.and_then(|block| {
            self.stream.fetch(from, offset, &block)?;
            Ok(self.buffer(block, len, element))
        }))
    }

    /// Bytes on the device.
    pub(crate) fn sent(&self, bytes: &[u8]) -> Option<Block> {
        self.keep(self.sent_now(bytes))
    }

    /// Bytes on the device, or why they are not there.
    pub(crate) fn sent_now(&self, bytes: &[u8]) -> Result<Block, CudaError> {
        self.stream.block_of(bytes)
    }

    /// The bytes of a buffer, after everything before.
    pub(crate) fn bytes(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        self.taken(buffer.block())
    }

    /// The bytes of a block, after everything before.
    pub(crate) fn taken(&self, block: &Block) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; block.bytes()];
        self.told(self.stream.take(block, 0, &mut bytes))?;
        Ok(bytes)
    }

    /// The same, after everything before a point of the stream; what was submitted since goes on.
    pub(crate) fn taken_since(&self, block: &Block, there: &Mark) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; block.bytes()];
        // The device goes on with what is held back.
        let submitted = self.stream.flush().and_then(|()| self.down.follow(there));
        self.told(submitted.and_then(|()| self.down.take(block, 0, &mut bytes)))?;
        Ok(bytes)
    }

    /// Numbers on the device.
    pub(crate) fn numbers(&self, values: &[u32]) -> Result<Indices, CudaError> {
        let block = self.sent_now(bytemuck::cast_slice(values))?;
        Ok(Indices { block, host: values.to_vec() })
    }

    /// Converts elements, from positions on.
    pub(crate) fn convert(&self, (from, at): (&Buffer, usize), (to, to_at): (&Buffer, usize), len: usize) {
        assert!(at + len <= from.len && to_at + len <= to.len, "lengths of a conversion");
        let size = from.element.size();
        if from.element == to.element {
            let (from, to) = ((from.block(), at * size), (to.block(), to_at * size));
            let copied = self.supply.is_sound().and_then(|()| self.stream.copy_between(from, to, len * size));
            self.keep(copied);
            return;
        }
        let addresses =
            [from.address() + (at * size) as u64, to.address() + (to_at * to.element.size()) as u64];
        let is_aligned = addresses.iter().all(|address| address.is_multiple_of(16));
        let arguments = [
            Argument::Address(addresses[0]),
            Argument::Int(code(from.element)),
            Argument::Address(addresses[1]),
            Argument::Int(code(to.element)),
            Argument::Long(len as i64),
            Argument::Int(i32::from(is_aligned)),
        ];
        self.each(crate::nn::elementwise::cuda::text(), "convert", len.div_ceil(8), &arguments);
    }

    /// Keeps a failure for the next call that can tell it.
    pub(crate) fn keep<T>(&self, result: Result<T, CudaError>) -> Option<T> {
        self.supply.keep(result)
    }

    /// What has failed since the last time, or `result`.
    pub(crate) fn told<T>(&self, result: Result<T, CudaError>) -> Result<T, DeviceError> {
        let kept = lock(&self.supply.failure).take();
        kept.map_or(result, Err).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: CudaError) -> DeviceError {
        let device = self.facts.name.clone();
        match error {
            CudaError::OutOfMemory { bytes } => DeviceError::OutOfMemory { device, bytes },
            other => DeviceError::Failed { device, detail: other.to_string() },
        }
    }

    fn kernel(&self, text: Text<'_>, name: &'static str, shared: u32) -> Result<Kernel, CudaError> {
        let mut loaded = lock(&self.loaded);
        if let Some(kernel) = loaded.get(text.name).and_then(|kernels| kernels.get(name)) {
            return Ok(kernel.clone());
        }
        let kernel = self.kernels.module(&self.driver, &text.source())?.kernel(name)?;
        if shared > 0 {
            kernel.allow_shared(shared)?;
        }
        loaded.entry(text.name.to_owned()).or_default().insert(name, kernel.clone());
        Ok(kernel)
    }
}

fn is_hopper(facts: &Facts) -> bool {
    facts.architecture == HOPPER.trim_end_matches('a')
}

/// A panic elsewhere leaves nothing half-done here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use crate::nn::{adamw, elementwise, embed, gated, rms_norm, rotate};

    #[test]
    fn kernels_of_operations_compile() {
        let texts = [
            adamw::cuda::text(),
            elementwise::cuda::text(),
            embed::cuda::text(),
            gated::cuda::text(),
            rms_norm::cuda::text(),
            rotate::cuda::text(),
        ];
        for text in texts {
            text.assert_compiles();
        }
    }
}
