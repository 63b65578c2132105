//! Speaks to the CUDA driver and its run-time compiler: the only file of this folder with `unsafe`.
//!
//! In: source texts, bytes, addresses that [`super::batch`] has laid out. Out: compiled images, device memory, copies and
//! launches. Both libraries are looked for when they are first needed; a program that runs without them is told so by an error, and
//! links to neither. It knows nothing of formulas.
#![expect(unsafe_code, reason = "a driver is a foreign library, and kernels are told addresses")]

use std::ffi::{CStr, CString};
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PinnedHostSlice,
    PushKernelArg, result, sys,
};
use cudarc::nvrtc;

use super::CudaError;

/// A device and its context.
#[derive(Debug)]
pub(super) struct Driver {
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

/// Bytes of a device's memory, given back when dropped.
#[derive(Debug)]
pub(super) struct Memory {
    address: u64,
    bytes: u64,
    context: Arc<CudaContext>,
}

/// Bytes of the host that copies go to and come from without a detour.
#[derive(Debug)]
pub(super) struct Pinned {
    bytes: PinnedHostSlice<u8>,
}

/// An ordered queue of copies and launches.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    stream: Arc<CudaStream>,
}

/// A loaded image of kernels.
#[derive(Debug)]
pub(super) struct Module {
    module: Arc<CudaModule>,
}

/// One kernel.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    function: CudaFunction,
}

/// How many devices the driver shows.
pub(super) fn count() -> Result<usize, CudaError> {
    // SAFETY: loads the library by its name, as any later call would, and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let count = CudaContext::device_count().map_err(|error| match error.0 {
        sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => CudaError::NoDevice,
        _ => driver("count devices")(error),
    })?;
    Ok(usize::try_from(count).unwrap_or_default())
}

impl Driver {
    /// Opens a device by its position.
    pub(super) fn open(ordinal: usize) -> Result<Self, CudaError> {
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

    pub(super) fn facts(&self) -> Result<Facts, CudaError> {
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

    /// Bytes of the device's memory that nobody has.
    pub(super) fn free_memory(&self) -> Result<u64, CudaError> {
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

    pub(super) fn pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let failed = driver("pin memory of the host");
        // SAFETY: every byte is written before any is read. No flags: the memory is read by the host too.
        unsafe {
            let mut pinned = self.context.alloc_pinned_with_flags::<u8>(bytes, 0).map_err(&failed)?;
            pinned.as_mut_ptr().map_err(&failed)?.write_bytes(0, bytes);
            Ok(Pinned { bytes: pinned })
        }
    }

    pub(super) fn stream(&self) -> Result<Stream, CudaError> {
        let stream = self.context.new_stream().map_err(driver("make a stream"))?;
        Ok(Stream { stream })
    }

    /// Loads a compiled image.
    pub(super) fn load(&self, image: Vec<u8>) -> Result<Module, CudaError> {
        let image = nvrtc::Ptx::from_binary(image);
        let module = self.context.load_module(image).map_err(driver("load a kernel"))?;
        Ok(Module { module })
    }
}

impl Module {
    pub(super) fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let function = self.module.load_function(name).map_err(driver("find a kernel"))?;
        Ok(Kernel { function })
    }
}

impl Kernel {
    /// Registers of a thread.
    pub(super) fn registers(&self) -> u32 {
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

impl Pinned {
    pub(super) fn bytes(&mut self) -> Result<&mut [u8], CudaError> {
        self.bytes.as_mut_slice().map_err(driver("wait for a copy"))
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
        // of which lie within a batch's memory (`batch/layout.rs` lays them out and fills them in).
        unsafe { launch.launch(config) }.map(drop).map_err(driver("start a kernel"))
    }

    /// Waits until everything before it is done.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(driver("wait for the device"))
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.stream.context().bind_to_thread().map_err(driver("use the device"))
    }
}

/// Compiles a text for an architecture, to an image that any driver of its age or younger loads.
pub(super) fn compile(source: &str, options: &[String]) -> Result<Vec<u8>, CudaError> {
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
fn driver(doing: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Driver { doing, message: format!("{error}") }
}
