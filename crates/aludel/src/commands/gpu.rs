//! Opens the GPU that merges or models are computed on, and remembers its kernels in the user's cache.

use std::path::PathBuf;
use std::sync::Arc;

use aludel_checkpoint::{replace_file, user_cache};
use aludel_document::Problem;
use aludel_kernels::cuda::{self, CudaError};
use aludel_kernels::gpu::KernelStore;
use aludel_kernels::nn::Cuda;
use aludel_kernels::wgpu::{self, WgpuError};
use aludel_merge::execute::{Device, Opening};

use crate::args::MergeDevice;
use crate::failure::Refusal;

/// What writes the same without a GPU.
const ON_THE_CPU: &str = "`--device cpu` writes the same output";

/// The GPU that is asked for, by CUDA on its way, unless there is no driver; none for the CPU, and where `auto` finds none.
pub(super) fn for_merges(device: MergeDevice) -> Result<Option<Opening>, Refusal> {
    let by_cuda = match device {
        MergeDevice::Cuda(ordinal) => {
            cuda::find_driver().map_err(|error| refusal(ordinal, &error, ON_THE_CPU)).map(|()| true)?
        }
        MergeDevice::Auto => cuda::find_driver().is_ok(),
        MergeDevice::Cpu | MergeDevice::Wgpu(_) => false,
    };
    if by_cuda {
        return Ok(Some(Opening::begin(move || opened(device).map_err(|refusal| refusal.problems))));
    }
    Ok(opened(device)?.map(Opening::from))
}

/// The GPU that is asked for; none where `auto` finds none.
fn opened(device: MergeDevice) -> Result<Option<Device>, Refusal> {
    let cuda = |ordinal| open(ordinal).map(Arc::new).map(Device::Cuda);
    let opened = match device {
        MergeDevice::Cpu => return Ok(None),
        MergeDevice::Auto => return Ok(cuda(0).ok().or_else(first_by_wgpu)),
        MergeDevice::Cuda(ordinal) => cuda(ordinal).map_err(|error| refusal(ordinal, &error, ON_THE_CPU)),
        MergeDevice::Wgpu(ordinal) => {
            let opened = wgpu::Device::open(ordinal, store()).map(Device::Wgpu);
            opened.map_err(|error| refusal_by_wgpu(ordinal, &error))
        }
    };
    opened.map(Some)
}

/// The GPU in whose memory merges stay.
pub(super) fn for_resident_merges(ordinal: usize) -> Result<Arc<cuda::Device>, Refusal> {
    open(ordinal).map(Arc::new).map_err(|error| refusal(ordinal, &error, "`--device cpu` needs none"))
}

/// A GPU by its position.
pub(super) fn open(ordinal: usize) -> Result<cuda::Device, CudaError> {
    cuda::Device::open(ordinal, store())
}

/// The first adapter, where it is more than a program on the CPU and computes what the CPU does.
fn first_by_wgpu() -> Option<Device> {
    let is_gpu = wgpu::adapters().first().is_some_and(|adapter| !adapter.is_software);
    is_gpu.then(|| wgpu::Device::open(0, store()).ok().map(Device::Wgpu)).flatten()
}

/// The GPU that models are computed on.
pub(super) fn for_models(ordinal: usize) -> Result<Arc<Cuda>, Refusal> {
    let opened = Cuda::open(ordinal, store()).map(Arc::new);
    opened.map_err(|error| refusal(ordinal, &error, "`--device cpu` needs none"))
}

fn store() -> Box<dyn KernelStore> {
    Box::new(UserStore { folder: user_cache().map(|cache| cache.join("kernels")) })
}

fn refusal_by_wgpu(ordinal: usize, error: &WgpuError) -> Refusal {
    let remedy = match error {
        WgpuError::NoAdapter => format!("install the GPU's driver; {ON_THE_CPU}"),
        WgpuError::NoSuchAdapter { .. } => format!("`aludel devices` lists the GPUs; {ON_THE_CPU}"),
        _ => ON_THE_CPU.to_owned(),
    };
    let problem = Problem::general(format!("--device wgpu:{ordinal}: {error}")).with_hint(remedy);
    Refusal { recipe: None, problems: problem.into() }
}

/// `instead` says what the CPU is good for.
fn refusal(ordinal: usize, error: &CudaError, instead: &str) -> Refusal {
    let remedy = match error {
        CudaError::NoDriver | CudaError::NoDevice => format!("`aludel devices` lists the GPUs; {instead}"),
        CudaError::NoCompiler => {
            format!("install CUDA's libraries, or put the folder of libnvrtc into LD_LIBRARY_PATH; {instead}")
        }
        CudaError::NoProducts => {
            format!(
                "install CUDA's libraries, or put the folder of libcublasLt into LD_LIBRARY_PATH; {instead}"
            )
        }
        _ => instead.to_owned(),
    };
    let problem = Problem::general(format!("--device cuda:{ordinal}: {error}")).with_hint(remedy);
    Refusal { recipe: None, problems: problem.into() }
}

/// Files in the user's cache. What cannot be read or written there is made anew the next time.
struct UserStore {
    folder: Option<PathBuf>,
}

impl KernelStore for UserStore {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.folder.as_ref()?.join(name)).ok()
    }

    fn save(&self, name: &str, bytes: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let _ = replace_file(&folder.join(name), bytes);
    }
}
