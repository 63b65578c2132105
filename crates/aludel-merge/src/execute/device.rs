//! Names the devices that merges are computed on, and has lanes feed whichever it is.

use std::sync::Arc;

use aludel_kernels::gpu::Backend;
use aludel_kernels::{cuda, wgpu};

use super::MergeError;
use super::lanes::{Feeding, Lanes};
use super::share::Share;
use crate::plan::Plan;

/// A device that is open.
#[derive(Clone, Debug)]
pub enum Device {
    /// One of NVIDIA's, by CUDA.
    Cuda(Arc<cuda::Device>),
    /// Any GPU, by Metal, Vulkan or Direct3D 12.
    Wgpu(Arc<wgpu::Device>),
}

impl Device {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Cuda(device) => device.name(),
            Self::Wgpu(device) => device.name(),
        }
    }

    /// The steps that it takes.
    pub(super) fn share(&self, plan: &Plan, done: &[bool]) -> Result<Share, MergeError> {
        Ok(match self {
            Self::Cuda(device) => Share::of(plan, &**device, done)?,
            Self::Wgpu(device) => Share::of(plan, &**device, done)?,
        })
    }

    /// What feeds it.
    pub(super) fn lanes<'d>(&'d self, share: &'d Share, has_batches: bool) -> Box<dyn Feeding + 'd> {
        match self {
            Self::Cuda(device) => Box::new(Lanes::new(device, share, has_batches)),
            Self::Wgpu(device) => Box::new(Lanes::new(device, share, has_batches)),
        }
    }
}
