//! Speaks to the CUDA driver and its run-time compiler: with [`super::graph`], [`super::products`] and [`super::collective`] the only file of this folder with
//! `unsafe`.
//!
//! In: source texts, bytes, addresses that [`crate::gpu`] and [`crate::nn::cuda`] have laid out. Out: compiled images, device memory, copies
//! and launches. Both libraries are looked for when they are first needed; a program that runs without them is told so by an error, and
//! links to neither. It knows nothing of formulas.
#![expect(unsafe_code, reason = "a driver is a foreign library, and kernels are told addresses")]

use std::ffi::{CStr, CString};
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PinnedHostSlice,
    PushKernelArg, result, sys,
};
use cudarc::nvrtc;

use super::CudaError;
use super::operation::{Argument, Grid, Operation};
use super::queue::{Queue, Submitted};

/// A device and its context.
#[derive(Debug)]
pub(crate) struct Driver {
    context: Arc<CudaContext>,
}

/// What the driver says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its architecture, such as `sm_90`.
    pub architecture: String,
    /// Its memory, in bytes.
    pub memory: u64,
    /// Its multiprocessors.
    pub multiprocessors: u32,
}

impl Facts {
    /// The name of a file of what is known of such devices.
    pub(super) fn file_of(&self, what: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let device: String = self.name.chars().map(plain).collect();
        format!("{what}-{device}-{}.json", self.architecture)
    }
}

/// Bytes of a device's memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    address: u64,
    bytes: u64,
    context: Arc<CudaContext>,
}

/// Bytes of the host that copies go to and come from without a detour.
#[derive(Debug)]
pub(crate) struct Pinned {
    bytes: PinnedHostSlice<u8>,
}

/// An order of copies and launches.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    stream: Arc<CudaStream>,
    /// What is held back, where something is.
    queue: Option<Arc<Queue>>,
}

/// Bytes of a device's memory that belong to what a stream does: given back in its order, once all parts of a block are dropped.
#[derive(Debug)]
pub(crate) struct Block {
    address: u64,
    bytes: usize,
    allocation: Arc<Allocation>,
}

#[derive(Debug)]
struct Allocation {
    address: u64,
    bytes: usize,
    stream: Stream,
}

/// A point in what a stream does.
#[derive(Debug)]
pub(crate) struct Mark {
    event: CudaEvent,
}

/// Memory that is left when some can be spared.
const LEFT: usize = 512 << 20;

/// A loaded image of kernels.
#[derive(Debug)]
pub(crate) struct Module {
    module: Arc<CudaModule>,
}

/// One kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    function: CudaFunction,
}

/// Whether the driver's library is there.
///
/// # Errors
/// [`CudaError::NoDriver`].
pub fn find_driver() -> Result<(), CudaError> {
    // SAFETY: loads the library by its name, as any later call would, and calls nothing in it.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(CudaError::NoDriver) }
}

/// How many devices the driver shows.
pub(super) fn count() -> Result<usize, CudaError> {
    find_driver()?;
    let count = CudaContext::device_count().map_err(|error| match error.0 {
        sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => CudaError::NoDevice,
        _ => driver("count devices")(error),
    })?;
    Ok(usize::try_from(count).unwrap_or_default())
}

impl Driver {
    /// Opens a device by its position.
    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        if ordinal >= count()? {
            return Err(CudaError::NoDevice);
        }
        let context = CudaContext::new(ordinal).map_err(driver("open the device"))?;
        // Threads that wait for the device leave their core to those that read files.
        context.set_blocking_synchronize().map_err(driver("set up the device"))?;
        // SAFETY: the events would order uses of one slice of memory on several streams. No such slices are used here: every
        // function that copies waits for its copy, and a batch computes on one stream.
        unsafe { context.disable_event_tracking() };
        Ok(Self { context })
    }

    pub(crate) fn facts(&self) -> Result<Facts, CudaError> {
        let failed = driver("ask for the device's properties");
        let (major, minor) = self.context.compute_capability().map_err(&failed)?;
        let count = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(Facts {
            name: self.context.name().map_err(&failed)?,
            architecture: format!("sm_{major}{minor}"),
            memory: self.context.total_mem().map_err(&failed)? as u64,
            multiprocessors: self.context.attribute(count).map_err(&failed)? as u32,
        })
    }

    /// Threads that wait for the device stay awake where there are cores enough: waking one takes longer than many a kernel.
    pub(crate) fn wait_awake(&self) -> Result<(), CudaError> {
        self.context.set_flags(sys::CUctx_flags::CU_CTX_SCHED_AUTO).map_err(driver("set up the device"))
    }

    /// Lets blocks that streams give back stay at hand for the next ones.
    pub(crate) fn keep_blocks(&self) -> Result<(), CudaError> {
        let mut everything = u64::MAX;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the device's own, and the attribute's value is a 64-bit number.
        unsafe { sys::cuMemPoolSetAttribute(self.pool()?, attribute, (&raw mut everything).cast()).result() }
            .map_err(driver("set up the device's memory"))
    }

    /// Bytes that blocks have had at most, at once.
    pub(crate) fn peak_of_blocks(&self) -> Result<u64, CudaError> {
        let mut bytes = 0u64;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
        // SAFETY: as above.
        unsafe { sys::cuMemPoolGetAttribute(self.pool()?, attribute, (&raw mut bytes).cast()).result() }
            .map_err(driver("ask for the device's memory"))?;
        Ok(bytes)
    }

    fn pool(&self) -> Result<sys::CUmemoryPool, CudaError> {
        self.context.bind_to_thread().map_err(driver("use the device"))?;
        let mut pool = std::ptr::null_mut();
        // SAFETY: writes the pool's handle, which lives as long as the device.
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, self.context.cu_device()).result() }
            .map_err(driver("find the device's memory"))?;
        Ok(pool)
    }

    /// Bytes of the device's memory that nobody has.
    pub(crate) fn free_memory(&self) -> Result<u64, CudaError> {
        self.context.mem_get_info().map(|(free, _)| free as u64).map_err(driver("ask for free memory"))
    }

    pub(super) fn memory(&self, bytes: u64) -> Result<Memory, CudaError> {
        let length = usize::try_from(bytes).map_err(|_| CudaError::OutOfMemory { bytes })?;
        self.context.bind_to_thread().map_err(driver("use the device"))?;
        // SAFETY: a plain allocation, which `Memory` frees once.
        let address = unsafe { result::malloc_sync(length.max(1)) }.map_err(|error| match error.0 {
            sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { bytes },
            _ => driver("take memory of the device")(error),
        })?;
        Ok(Memory { address, bytes, context: Arc::clone(&self.context) })
    }

    pub(crate) fn pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let failed = driver("pin memory of the host");
        // SAFETY: every byte is written before any is read. No flags: the memory is read by the host too.
        unsafe {
            let mut pinned = self.context.alloc_pinned_with_flags::<u8>(bytes, 0).map_err(&failed)?;
            pinned.as_mut_ptr().map_err(&failed)?.write_bytes(0, bytes);
            Ok(Pinned { bytes: pinned })
        }
    }

    pub(crate) fn stream(&self) -> Result<Stream, CudaError> {
        let stream = self.context.new_stream().map_err(driver("make a stream"))?;
        Ok(Stream { stream, queue: None })
    }

    /// A stream whose operations are submitted by batches.
    pub(crate) fn queued_stream(&self) -> Result<Stream, CudaError> {
        let Stream { stream, .. } = self.stream()?;
        Ok(Stream { queue: Some(Arc::new(Queue::new(&stream)?)), stream })
    }

    /// Loads a compiled image.
    pub(crate) fn load(&self, image: Vec<u8>) -> Result<Module, CudaError> {
        let image = nvrtc::Ptx::from_binary(image);
        let module = self.context.load_module(image).map_err(driver("load a kernel"))?;
        Ok(Module { module })
    }
}

impl Module {
    pub(crate) fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let function = self.module.load_function(name).map_err(driver("find a kernel"))?;
        Ok(Kernel { function })
    }
}

impl Kernel {
    /// Lets blocks of threads have so many bytes of shared memory.
    pub(crate) fn allow_shared(&self, bytes: u32) -> Result<(), CudaError> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.function.set_attribute(attribute, bytes as i32).map_err(driver("set up a kernel"))
    }

    /// The driver's name of it.
    pub(super) fn raw(&self) -> sys::CUfunction {
        self.function.cu_function()
    }

    /// Registers of a thread.
    pub(crate) fn registers(&self) -> u32 {
        self.function.num_regs().map_or(0, |count| count as u32)
    }
}

impl Memory {
    pub(super) const fn address(&self) -> u64 {
        self.address
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The address of a range.
    ///
    /// # Panics
    /// Where the range leaves the memory.
    pub(super) fn at(&self, offset: u64, length: usize) -> u64 {
        let end = offset.checked_add(length as u64);
        assert!(end.is_some_and(|end| end <= self.bytes), "{length} bytes at {offset} of {}", self.bytes);
        self.address + offset
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A failure to free is a failure of the context, which every later call reports.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the address came from an allocation that nobody else frees. Freeing waits for the device.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Block {
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Zeros it; not waited for.
    pub(crate) fn clear(&self) -> Result<(), CudaError> {
        self.allocation.stream.push(Operation::Clear { at: self.address, bytes: self.bytes })
    }

    /// A part of it, which is the same memory: uses of both are in the order of what is submitted.
    ///
    /// # Panics
    /// Where the range leaves the block.
    pub(crate) fn part(&self, offset: usize, bytes: usize) -> Self {
        Self { address: self.at(offset, bytes), bytes, allocation: Arc::clone(&self.allocation) }
    }

    /// Whether somebody else has a part of it.
    pub(crate) fn has_parts(&self) -> bool {
        Arc::strong_count(&self.allocation) > 1
    }

    /// The address of a range.
    ///
    /// # Panics
    /// Where the range leaves the block.
    fn at(&self, offset: usize, length: usize) -> u64 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.bytes), "{length} bytes at {offset} of {}", self.bytes);
        self.address + offset as u64
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.address != 0 {
            match &self.stream.queue {
                Some(queue) => queue.free(self.address, self.bytes),
                None => free(&self.stream.stream, self.address),
            }
        }
    }
}

impl Mark {
    /// Seconds from here to a later point, both of [`Stream::timed_mark`]; waited for.
    pub(crate) fn seconds_until(&self, later: &Self) -> Result<f64, CudaError> {
        let milliseconds = self.event.elapsed_ms(&later.event).map_err(driver("ask for a time"))?;
        Ok(f64::from(milliseconds) / 1000.0)
    }
}

impl Pinned {
    pub(crate) fn bytes(&mut self) -> Result<&mut [u8], CudaError> {
        self.bytes.as_mut_slice().map_err(driver("wait for a copy"))
    }

    pub(crate) fn read(&self) -> Result<&[u8], CudaError> {
        self.bytes.as_slice().map_err(driver("wait for a copy"))
    }
}

impl Stream {
    /// Copies bytes to the device; they are there when this returns.
    pub(super) fn upload(&self, bytes: &[u8], to: &Memory, offset: u64) -> Result<(), CudaError> {
        let address = to.at(offset, bytes.len());
        let failed = driver("copy to the device");
        self.bind()?;
        // SAFETY: the range lies within the memory, and the source outlives the copy, which is waited for.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }.map_err(&failed)?;
        self.synchronize()
    }

    /// Sends bytes to the device, in order with what is submitted before and after; not waited for.
    pub(super) fn send(&self, bytes: &[u8], to: &Memory, offset: u64) -> Result<(), CudaError> {
        let address = to.at(offset, bytes.len());
        self.bind()?;
        // SAFETY: the range lies within the memory. Of memory that is not pinned, which no other part of the program has but
        // `Pinned`, the driver takes a copy before it returns ("API synchronization behavior" in its documentation).
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }
            .map_err(driver("send tables to the device"))
    }

    /// Copies bytes from the device.
    pub(super) fn download(&self, from: &Memory, offset: u64, to: &mut [u8]) -> Result<(), CudaError> {
        let address = from.at(offset, to.len());
        let failed = driver("copy from the device");
        self.bind()?;
        // SAFETY: the range lies within the memory, and the target outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(to, address, self.stream.cu_stream()) }.map_err(&failed)?;
        self.synchronize()
    }

    /// Copies within the device's memory; not waited for.
    pub(super) fn copy(&self, memory: &Memory, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        let (from, to) = (memory.at(from, bytes), memory.at(to, bytes));
        self.bind()?;
        // SAFETY: both ranges lie within the memory, which the caller keeps until the stream is waited for.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(driver("copy on the device"))
    }

    /// Copies bytes of a memory into a block of this stream; waited for, as nothing else orders the memory's uses by this stream.
    pub(crate) fn fetch(&self, from: &Memory, offset: u64, to: &Block) -> Result<(), CudaError> {
        let (from, to, bytes) = (from.at(offset, to.bytes()), to.at(0, to.bytes()), to.bytes());
        self.flush()?;
        // SAFETY: both ranges lie within what they are of, which live on until the copy is waited for.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(driver("copy on the device"))?;
        self.synchronize()
    }

    /// Starts a kernel; not waited for.
    ///
    /// Every argument is an address that the batch has laid out in its own memory, which it keeps until the stream has been
    /// waited for; `text/*.cu` names the arguments of each kernel.
    pub(super) fn launch(
        &self,
        kernel: &Kernel,
        blocks: u64,
        threads: u32,
        arguments: &[u64],
    ) -> Result<(), CudaError> {
        let Ok(blocks) = u32::try_from(blocks) else {
            return Err(CudaError::Driver { doing: "start a kernel", message: format!("{blocks} blocks") });
        };
        if blocks == 0 {
            return Ok(());
        }
        let config =
            LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&kernel.function);
        for argument in arguments {
            launch.arg(argument);
        }
        // SAFETY: kernels take 64-bit addresses only, and touch what lies at them and at the addresses in the tables there, all
        // of which lie within a batch's memory (`gpu/layout.rs` lays them out and fills them in).
        unsafe { launch.launch(config) }.map(drop).map_err(driver("start a kernel"))
    }

    /// Memory for what is submitted from now on.
    pub(crate) fn block(&self, bytes: usize) -> Result<Block, CudaError> {
        self.bind()?;
        let taken = || {
            let small = self.queue.as_ref().and_then(|queue| queue.small(bytes, |room| self.allocate(room)));
            small.unwrap_or_else(|| self.allocate(bytes))
        };
        let address = match (taken(), &self.queue) {
            // What is still to be given back may be enough.
            (Err(CudaError::OutOfMemory { .. }), Some(queue)) => queue.trim().and_then(|()| taken())?,
            (taken, _) => taken?,
        };
        let allocation = Arc::new(Allocation { address, bytes, stream: self.clone() });
        Ok(Block { address, bytes, allocation })
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        // SAFETY: a plain allocation, which `Allocation` frees once, or the queue that shares it out.
        let address = unsafe { result::malloc_async(self.stream.cu_stream(), bytes.max(1)) };
        address.map_err(|error| match error.0 {
            sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { bytes: bytes as u64 },
            _ => driver("take memory of the device")(error),
        })
    }

    /// The same order of work without the queue: for blocks that things in the queue hold on to.
    pub(super) fn unqueued(&self) -> Self {
        Self { stream: Arc::clone(&self.stream), queue: None }
    }

    /// A block that there was no memory for: the driver refuses to copy to it and from it.
    pub(crate) fn nowhere(&self, bytes: usize) -> Block {
        let allocation = Arc::new(Allocation { address: 0, bytes, stream: self.clone() });
        Block { address: 0, bytes, allocation }
    }

    /// Sends bytes into a block, in order with what is submitted before and after; the source is free when this returns.
    pub(crate) fn put(&self, bytes: &[u8], to: &Block, offset: usize) -> Result<(), CudaError> {
        let address = to.at(offset, bytes.len());
        self.flush()?;
        self.sent(bytes, address)
    }

    /// A new block with these bytes; the source is free when this returns. It is nobody's yet, so that what is held back need not go first.
    pub(crate) fn block_of(&self, bytes: &[u8]) -> Result<Block, CudaError> {
        let block = self.block(bytes.len())?;
        self.sent(bytes, block.address())?;
        Ok(block)
    }

    fn sent(&self, bytes: &[u8], address: u64) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the range lies within a block, and of memory that is not pinned the driver takes a copy, as in `send`.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }
            .map_err(driver("copy to the device"))
    }

    /// Copies bytes of a block to the host, after everything before.
    pub(crate) fn take(&self, from: &Block, offset: usize, to: &mut [u8]) -> Result<(), CudaError> {
        let address = from.at(offset, to.len());
        self.flush()?;
        // SAFETY: the range lies within the block, and the target outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(to, address, self.stream.cu_stream()) }
            .map_err(driver("copy from the device"))?;
        self.synchronize()
    }

    /// Sends pinned bytes to the beginning of a block; not waited for: the caller keeps both as they are until the stream is.
    pub(crate) fn send_pinned(
        &self,
        from: &Pinned,
        range: std::ops::Range<usize>,
        to: &Block,
    ) -> Result<(), CudaError> {
        let (bytes, address) = (&from.read()?[range.clone()], to.at(0, range.len()));
        self.flush()?;
        // SAFETY: both ranges lie within what they are of, which the caller keeps until the stream is waited for.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }
            .map_err(driver("copy to the device"))
    }

    /// Copies the beginning of a block into pinned bytes; not waited for: the caller looks at neither until the stream is.
    pub(crate) fn take_pinned(
        &self,
        from: &Block,
        to: &mut Pinned,
        range: std::ops::Range<usize>,
    ) -> Result<(), CudaError> {
        let (address, bytes) = (from.at(0, range.len()), &mut to.bytes()?[range]);
        self.flush()?;
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream.cu_stream()) }
            .map_err(driver("copy from the device"))
    }

    /// The point that it has come to with what is submitted so far.
    pub(crate) fn mark(&self) -> Result<Mark, CudaError> {
        self.flush()?;
        let event = self.stream.record_event(None).map_err(driver("mark a point of a stream"))?;
        Ok(Mark { event })
    }

    /// The same, with the device's time.
    pub(crate) fn timed_mark(&self) -> Result<Mark, CudaError> {
        self.flush()?;
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = self.stream.record_event(flags).map_err(driver("mark a point of a stream"))?;
        Ok(Mark { event })
    }

    /// Memory that can be spared for a while: as much is left as kernels and libraries take that are yet to be loaded.
    pub(crate) fn spare_block(&self, bytes: usize) -> Result<Block, CudaError> {
        let (free, _) = self.stream.context().mem_get_info().map_err(driver("ask for free memory"))?;
        if free < bytes.saturating_add(LEFT) {
            return Err(CudaError::OutOfMemory { bytes: bytes as u64 });
        }
        self.block(bytes)
    }

    /// What is submitted from now on waits for a point of another stream.
    pub(crate) fn follow(&self, mark: &Mark) -> Result<(), CudaError> {
        self.flush()?;
        self.stream.wait(&mark.event).map_err(driver("order two streams"))
    }

    /// Copies bytes between blocks; not waited for.
    pub(crate) fn copy_between(
        &self,
        (from, from_offset): (&Block, usize),
        (to, to_offset): (&Block, usize),
        bytes: usize,
    ) -> Result<(), CudaError> {
        let (from, to) = (from.at(from_offset, bytes), to.at(to_offset, bytes));
        self.push(Operation::Copy { from, to, bytes })
    }

    /// Starts a kernel of the operations on models; not waited for.
    ///
    /// Every address is that of a [`Block`] on this stream, of a length that the operation has held against the shapes which it
    /// tells the kernel; each `.cu` beside its operation names the arguments.
    pub(crate) fn start(&self, kernel: &Kernel, grid: Grid, arguments: &[Argument]) -> Result<(), CudaError> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.push(Operation::Launch { kernel: kernel.clone(), grid, arguments: arguments.to_vec() })
    }

    /// Submits an operation, or holds it back to submit it with others.
    pub(super) fn push(&self, operation: Operation) -> Result<(), CudaError> {
        match &self.queue {
            Some(queue) => queue.push(operation),
            None => self.bind().and_then(|()| submit(&self.stream, &operation)),
        }
    }

    /// Submits what was held back, and makes the device that of the calling thread.
    pub(crate) fn flush(&self) -> Result<(), CudaError> {
        self.queue.as_ref().map_or(Ok(()), |queue| queue.flush())?;
        self.bind()
    }

    /// What has been submitted by way of graphs.
    pub(crate) fn submitted(&self) -> Submitted {
        self.queue.as_ref().map_or_else(Submitted::default, |queue| queue.submitted())
    }

    /// The driver's name of it, for the library of collectives, which comes after what was held back.
    pub(super) fn raw(&self) -> Result<sys::CUstream, CudaError> {
        self.flush()?;
        Ok(self.stream.cu_stream())
    }

    /// Waits until everything before it is done.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.flush()?;
        self.stream.synchronize().map_err(driver("wait for the device"))
    }

    /// Makes the device that of the calling thread.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.stream.context().bind_to_thread().map_err(driver("use the device"))
    }
}

/// Submits an operation to a stream of the calling thread's device; not waited for.
pub(super) fn submit(stream: &CudaStream, operation: &Operation) -> Result<(), CudaError> {
    let raw = stream.cu_stream();
    match operation {
        Operation::Launch { kernel, grid, arguments } => {
            let Grid { blocks: [x, y, z], threads, shared } = *grid;
            let mut places = Argument::places(arguments);
            // SAFETY: the arguments are those of the kernel's text, in their types and order, and it touches what lies within the blocks
            // that `Stream::start` was told of; blocks are given back in the stream's order.
            unsafe {
                result::launch_kernel(kernel.raw(), (x, y, z), (threads, 1, 1), shared, raw, &mut places)
            }
            .map_err(driver("start a kernel"))
        }
        // SAFETY: the range is a block's, which is given back in the stream's order.
        Operation::Clear { at, bytes } => unsafe { result::memset_d8_async(*at, 0, *bytes, raw) }
            .map_err(driver("clear memory of the device")),
        // SAFETY: both ranges lie within their blocks, which are given back in the stream's order.
        Operation::Copy { from, to, bytes } => unsafe { result::memcpy_dtod_async(*to, *from, *bytes, raw) }
            .map_err(driver("copy on the device")),
        Operation::Product(product) => product.submit(raw),
    }
}

/// Gives memory back, after all that was submitted before.
pub(super) fn free(stream: &CudaStream, address: u64) {
    // A failure to free is a failure of the context, which every later call reports.
    if stream.context().bind_to_thread().is_ok() {
        // SAFETY: the address came from an allocation on this stream that nobody else frees.
        let _ = unsafe { result::free_async(address, stream.cu_stream()) };
    }
}

/// Compiles a text for an architecture, to an image that any driver of its age or younger loads.
pub(crate) fn compile(source: &str, options: &[String]) -> Result<Vec<u8>, CudaError> {
    // SAFETY: loads the library by its name, and calls nothing in it.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(CudaError::NoCompiler);
    }
    let internal = |message: &str| CudaError::Compile { log: message.to_owned() };
    let source = CString::new(source).map_err(|_| internal("a source with a NUL"))?;
    let program =
        nvrtc::result::create_program(&source, None).map_err(|error| internal(&format!("{error:?}")))?;
    // SAFETY: the program was made above and is destroyed once, below; the sizes are the library's own, and the image's bytes
    // are written by it up to that size before they are read.
    unsafe {
        let compiled = nvrtc::result::compile_program(program, options);
        let image = match compiled {
            Ok(()) => {
                let mut bytes = 0;
                let sized = nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut bytes).result();
                let mut image = vec![0u8; bytes];
                sized
                    .and_then(|()| nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result())
                    .map(|()| image)
                    .map_err(|error| internal(&format!("{error:?}")))
            }
            Err(error) => {
                let log = nvrtc::result::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).collect();
                let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
                Err(internal(&format!("{error:?}: {log}")))
            }
        };
        let _ = nvrtc::result::destroy_program(program);
        image
    }
}

/// Says what failed.
pub(super) fn driver(doing: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { doing, message: format!("{error}") }
}
