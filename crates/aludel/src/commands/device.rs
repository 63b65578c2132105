//! Opens the device that models are computed on, and says what it is.

use std::num::NonZeroUsize;
use std::sync::Arc;

use aludel_distill::record::Fact;
use aludel_kernels::nn::Cpu;

use crate::args::{ComputingFlags, DeviceName};

/// The device that the flags ask for.
pub(super) fn open(flags: &ComputingFlags) -> anyhow::Result<Arc<Cpu>> {
    match flags.device {
        DeviceName::Cpu => with_threads(flags.threads),
    }
}

/// The CPU, with so many threads.
pub(super) fn with_threads(threads: Option<NonZeroUsize>) -> anyhow::Result<Arc<Cpu>> {
    Ok(Arc::new(Cpu::new(threads)?))
}

/// What the record of a run says of the machine.
pub(super) fn facts(device: &Cpu) -> Vec<Fact> {
    let processor = processor().map(|name| Fact::new("processor", name));
    let threads = Fact::new("threads", device.threads());
    processor.into_iter().chain([threads]).collect()
}

/// The processor's name, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
