//! Keeps the head of a teacher beside its hidden states.
//!
//! In: a head on a device. Out: a safetensors file with its matrix, and a head on a device again.

use std::path::Path;
use std::sync::Arc;

use aludel_checkpoint::MappedFile;
use aludel_kernels::element::Element;
use aludel_kernels::loss::Head;
use aludel_kernels::nn::Device;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::Error;

const NAME: &str = "lm_head.weight";

/// The head of a cache of hidden states.
pub(super) struct CachedHead<D: Device> {
    pub(super) weight: D::Buffer,
    pub(super) vocabulary: usize,
    pub(super) width: usize,
    pub(super) scale: f32,
    pub(super) soft_cap: Option<f32>,
}

impl<D: Device> CachedHead<D> {
    pub(super) fn head(&self) -> Head<'_, D::Buffer> {
        Head {
            weight: &self.weight,
            bias: None,
            vocabulary: self.vocabulary,
            valid: self.vocabulary,
            width: self.width,
            scale: self.scale,
            soft_cap: self.soft_cap,
        }
    }
}

/// The file of a head, in the type that it has on the device; f32 for types that safetensors does not share with it.
pub(super) fn bytes<D: Device>(device: &D, head: &Head<'_, D::Buffer>) -> Result<Vec<u8>, Error> {
    let values = device.read(head.weight, 0..head.valid * head.width)?;
    let (element, dtype) = match device.element(head.weight) {
        Element::BF16 => (Element::BF16, Dtype::BF16),
        Element::F16 => (Element::F16, Dtype::F16),
        _ => (Element::F32, Dtype::F32),
    };
    let bytes = element.encode(&values);
    let failed = |error: safetensors::SafeTensorError| Error::internal(error.to_string());
    let view = TensorView::new(dtype, vec![head.valid, head.width], &bytes).map_err(failed)?;
    safetensors::serialize([(NAME, view)], None).map_err(failed)
}

/// The matrix of a head's file.
pub(super) fn read<D: Device>(device: &D, path: &Path, shape: [usize; 2]) -> Result<D::Buffer, Error> {
    let map = MappedFile::open(path)?;
    let damaged = |detail: String| Error::damaged(path, detail);
    let tensors = SafeTensors::deserialize(map.bytes()).map_err(|error| damaged(error.to_string()))?;
    let tensor = tensors.tensor(NAME).map_err(|error| damaged(error.to_string()))?;
    let element = match tensor.dtype() {
        Dtype::BF16 => Element::BF16,
        Dtype::F16 => Element::F16,
        Dtype::F32 => Element::F32,
        other => return Err(damaged(format!("its matrix is of type {other:?}"))),
    };
    if tensor.shape() != shape {
        return Err(damaged(format!("its matrix is {:?}, and the header says {shape:?}", tensor.shape())));
    }
    Ok(device.import(Arc::new(tensor.data().to_vec()), element)?)
}
