//! Names the devices that merges are computed on, opens them beside other work, and has lanes feed whichever it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use aludel_kernels::gpu::Backend;
use aludel_kernels::{cuda, wgpu};

use super::MergeError;
use super::lanes::{Feeding, Lanes};
use super::share::Share;
use crate::plan::Plan;
use crate::problem::{Problem, Problems};

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

/// A device that is opened on a thread of its own: a driver takes a third of a second, in which a merge can be planned and its files be made.
#[derive(Clone, Debug)]
pub struct Opening(Arc<Mutex<Stage>>);

/// What opening a device gives; there may be none.
type Opened = Result<Option<Device>, Problems>;

#[derive(Debug)]
enum Stage {
    UnderWay(JoinHandle<Opened>),
    Over(Option<Device>),
}

/// One that is open already.
impl From<Device> for Opening {
    fn from(device: Device) -> Self {
        Self(Arc::new(Mutex::new(Stage::Over(Some(device)))))
    }
}

impl Opening {
    /// Begins.
    pub fn begin(open: impl FnOnce() -> Opened + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Stage::UnderWay(thread::spawn(open)))))
    }

    /// Whether nobody would have to wait.
    pub(super) fn is_over(&self) -> bool {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Stage::UnderWay(thread) => thread.is_finished(),
            Stage::Over(_) => true,
        }
    }

    /// The device, or none where that was the outcome; waits for it. A failure is told once.
    pub(super) fn device(&self) -> Opened {
        let mut stage = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match std::mem::replace(&mut *stage, Stage::Over(None)) {
            Stage::UnderWay(thread) => thread.join().unwrap_or_else(|_| {
                Err(Problem::general("the thread that opens the device has failed").into())
            })?,
            Stage::Over(device) => device,
        };
        *stage = Stage::Over(device.clone());
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_by_who_waits() {
        let opening = Opening::begin(|| Err(Problem::general("there is none").into()));
        assert!(opening.device().unwrap_err().to_string().contains("there is none"));
        assert!(opening.is_over());
        let opening = Opening::begin(|| Ok(None));
        assert!(opening.device().unwrap().is_none());
        assert!(opening.device().unwrap().is_none());
    }
}
