//! Says what a merge did: the counterpart of the plan, with what was measured.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::derive::Aligned;
use crate::plan::Plan;
use aludel_checkpoint::resident;

/// What a merge did.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The folder that was written.
    pub output: PathBuf,
    /// The merge method.
    pub method: &'static str,
    /// Tensors written.
    pub tensors: usize,
    /// Those of them that an earlier run had written.
    pub tensors_resumed: usize,
    /// Bytes read from the inputs for computing, each pass counted.
    pub bytes_read: u64,
    /// Bytes that were copied as they are, between buffers or to the system: samples, tensors that are not computed on, and the output,
    /// once. Reading copies nothing: what is computed on lies mapped.
    pub bytes_copied: u64,
    /// Bytes of inputs that were hashed, their digests not being known.
    pub bytes_hashed: u64,
    /// Bytes of weight files written.
    pub bytes_written: u64,
    /// Bytes of weight files that the output would have had, had it not been stored as a delta.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_dense: Option<u64>,
    /// The experts that were put in order, layer by layer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aligned: Vec<Aligned>,
    /// Sweeps over a tensor, over all tensors.
    pub sweeps: u64,
    /// Threads that computed.
    pub threads: usize,
    /// What a device computed, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceReport>,
    /// From start to end.
    pub seconds: f64,
    /// Where the time went.
    pub phases: Phases,
    /// The most memory the process had resident, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// What the plan had expected of that.
    pub planned_peak_memory: u64,
}

/// What a device did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Tensors that it computed.
    pub tensors: usize,
    /// Tensors that the CPU computed or copied, by the reason.
    pub on_cpu: BTreeMap<&'static str, usize>,
    /// Kernels that were compiled, none being remembered.
    pub compiled: u64,
}

/// Seconds of each phase. `compute` and `write` happen during `weights`; `compute` is summed over threads and includes
/// waiting for the inputs and for the writer.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// Creating the output, mapping the inputs, and putting experts in order.
    pub prepare: f64,
    /// Computing and writing all weights, and hashing.
    pub weights: f64,
    /// Threads being busy with units.
    pub compute: f64,
    /// Writing, summed over the threads that write.
    pub write: f64,
    /// Syncing and renaming.
    pub finish: f64,
}

impl Report {
    /// What is known without running.
    pub(super) fn of(plan: &Plan) -> Self {
        Self {
            output: PathBuf::new(),
            method: plan.method,
            tensors: plan.steps.len(),
            tensors_resumed: 0,
            bytes_read: 0,
            bytes_copied: 0,
            bytes_hashed: 0,
            bytes_written: 0,
            bytes_dense: None,
            aligned: Vec::new(),
            sweeps: 0,
            threads: plan.work.threads,
            device: None,
            seconds: 0.0,
            phases: Phases::default(),
            peak_memory: resident::peak(),
            planned_peak_memory: plan.work.peak_memory,
        }
    }
}
