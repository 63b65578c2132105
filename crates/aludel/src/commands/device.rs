//! Opens the device that models are computed on, and says what it is.

use std::num::NonZeroUsize;
use std::sync::Arc;

use aludel_distill::record::Fact;
use aludel_document::Problem;
use aludel_kernels::nn::{Cpu, Cuda};

use super::gpu;
use crate::args::{ComputingFlags, DeviceName};
use crate::failure::Refusal;

/// A device that is open.
pub(super) enum Opened {
    Cpu(Arc<Cpu>),
    Cuda(Arc<Cuda>),
}

impl Opened {
    /// What the record of a run says of the machine.
    pub(super) fn facts(&self) -> Vec<Fact> {
        let of_device = match self {
            Self::Cpu(device) => Fact::new("threads", device.threads()),
            Self::Cuda(device) => Fact::new("device", &device.facts().name),
        };
        processor().map(|name| Fact::new("processor", name)).into_iter().chain([of_device]).collect()
    }
}

/// The device that the flags ask for.
pub(super) fn open(flags: &ComputingFlags) -> anyhow::Result<Opened> {
    open_for(flags, 0)
}

/// As [`open`], for the process of this number on its machine.
pub(super) fn open_for(flags: &ComputingFlags, local: usize) -> anyhow::Result<Opened> {
    Ok(match flags.device {
        DeviceName::Cpu => Opened::Cpu(with_threads(flags.threads)?),
        DeviceName::Cuda(ordinal) => Opened::Cuda(gpu::for_models(ordinal.unwrap_or(local))?),
    })
}

/// As [`open`], for a command that computes on the CPU only.
pub(super) fn open_cpu(flags: &ComputingFlags) -> anyhow::Result<Arc<Cpu>> {
    match flags.device {
        DeviceName::Cpu => with_threads(flags.threads),
        DeviceName::Cuda(_) => {
            let problem = Problem::general("--device: this command computes on the CPU only")
                .with_hint("leave the flag out; `aludel distill` and `aludel eval` compute on GPUs");
            Err(Refusal { recipe: None, problems: problem.into() }.into())
        }
    }
}

/// The CPU, with so many threads.
pub(super) fn with_threads(threads: Option<NonZeroUsize>) -> anyhow::Result<Arc<Cpu>> {
    Ok(Arc::new(Cpu::new(threads)?))
}

/// The processor's name, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
