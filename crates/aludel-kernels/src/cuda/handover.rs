//! Hands what a merge has computed on a device to a model that is computed there, without a way through the host.
//!
//! In: a batch that is computed. Out: buffers of [`Cuda`], copies of its outputs, so that the batch may compute something else. Both must be of
//! one device, whose context all parts of a process share.

use std::ops::Range;

use super::device::Device;
use crate::gpu::Batch;
use crate::nn::DeviceError;
use crate::nn::cuda::{Buffer, Cuda};

impl Cuda {
    /// A copy of elements of a tensor's output, counted from its first.
    ///
    /// # Errors
    /// Where there is not so much memory, or the device fails.
    ///
    /// # Panics
    /// Where the output has no such elements.
    pub fn output_of(
        &self,
        batch: &Batch<Device>,
        tensor: usize,
        elements: Range<u64>,
    ) -> Result<Buffer, DeviceError> {
        let count = (elements.end - elements.start) as usize;
        let place = batch.place_of_output(tensor, elements);
        self.fetched(&batch.memory().data, place, count, batch.tensors()[tensor].output)
    }
}
