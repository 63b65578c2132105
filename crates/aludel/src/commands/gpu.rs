//! Opens the GPU that merges or models are computed on, and remembers its kernels in the user's cache.

use std::path::PathBuf;
use std::sync::Arc;

use aludel_checkpoint::{replace_file, user_cache};
use aludel_document::Problem;
use aludel_kernels::cuda::{CudaError, Device, KernelStore};
use aludel_kernels::nn::Cuda;

use crate::args::MergeDevice;
use crate::failure::Refusal;

/// The GPU that is asked for; none for the CPU, and where `auto` finds none.
pub(super) fn for_merges(device: MergeDevice) -> Result<Option<Arc<Device>>, Refusal> {
    match device {
        MergeDevice::Cpu => Ok(None),
        MergeDevice::Auto => Ok(open(0).ok().map(Arc::new)),
        MergeDevice::Cuda(ordinal) => open(ordinal)
            .map(Arc::new)
            .map(Some)
            .map_err(|error| refusal(ordinal, &error, "`--device cpu` writes the same output")),
    }
}

/// A GPU by its position.
pub(super) fn open(ordinal: usize) -> Result<Device, CudaError> {
    Device::open(ordinal, store())
}

/// The GPU that models are computed on.
pub(super) fn for_models(ordinal: usize) -> Result<Arc<Cuda>, Refusal> {
    let opened = Cuda::open(ordinal, store()).map(Arc::new);
    opened.map_err(|error| refusal(ordinal, &error, "`--device cpu` needs none"))
}

fn store() -> Box<dyn KernelStore> {
    Box::new(UserStore { folder: user_cache().map(|cache| cache.join("kernels")) })
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
