//! Makes models of merges in memory, on the device that scores them, from wherever their tensors are.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use aludel_checkpoint::Dtype;
use aludel_kernels::cuda;
use aludel_kernels::element::Element;
use aludel_kernels::loss::LossDevice;
use aludel_kernels::nn::{Cpu, Cuda, DeviceError};
use aludel_merge::execute::{Merged, Place, Tensor};
use aludel_model::{Slice, Tensors};

/// A device that merges are scored on, wherever they are.
pub(super) trait Scoring: LossDevice {
    /// Elements of a tensor of a merge.
    fn elements(
        &self,
        place: &Place<cuda::Device>,
        range: Range<usize>,
        element: Element,
    ) -> Result<Self::Buffer, DeviceError>;
}

impl Scoring for Cpu {
    fn elements(
        &self,
        place: &Place<cuda::Device>,
        range: Range<usize>,
        element: Element,
    ) -> Result<Self::Buffer, DeviceError> {
        imported(self, place, range, element)
    }
}

impl Scoring for Cuda {
    fn elements(
        &self,
        place: &Place<cuda::Device>,
        range: Range<usize>,
        element: Element,
    ) -> Result<Self::Buffer, DeviceError> {
        match place {
            Place::Host(_) => imported(self, place, range, element),
            Place::Device(tensor) => {
                self.output_of(tensor.batch(), tensor.tensor(), range.start as u64..range.end as u64)
            }
        }
    }
}

/// Elements by way of the host.
fn imported<D: LossDevice>(
    device: &D,
    place: &Place<cuda::Device>,
    range: Range<usize>,
    element: Element,
) -> Result<D::Buffer, DeviceError> {
    let bytes = match place {
        Place::Host(bytes) => Arc::clone(bytes),
        Place::Device(tensor) => Arc::new(
            tensor
                .bytes()
                .map_err(|error| DeviceError::Failed { device: device.name(), detail: error.to_string() })?,
        ),
    };
    let range = range.start * element.size()..range.end * element.size();
    device.import(Arc::new(Slice { bytes, range }), element)
}

/// The tensors of a merge, by their names.
pub(super) struct Held<'m> {
    tensors: HashMap<&'m str, &'m Tensor<cuda::Device>>,
}

impl<'m> Held<'m> {
    pub(super) fn of(merged: &'m Merged<cuda::Device>) -> Self {
        Self { tensors: merged.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect() }
    }
}

impl<D: Scoring> Tensors<D> for Held<'_> {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().copied()
    }

    fn facts(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensors.get(name).map(|tensor| (tensor.dtype, &*tensor.shape))
    }

    fn elements(
        &self,
        device: &D,
        name: &str,
        range: Range<usize>,
        element: Element,
    ) -> Result<D::Buffer, DeviceError> {
        device.elements(&self.tensors[name].place, range, element)
    }
}
