//! Writes a model as a folder that transformers loads.
//!
//! In: a [`Decoder`] and the type that its weights are to have. Out: safetensors under Hugging Face names, the config.json of
//! the source with what changed, and the source's tokenizer and other side files. Adapters are merged on the way, one
//! matrix at a time; the model itself stays as it is. Values are rounded once.

use std::collections::HashMap;
use std::path::Path;

use aludel_checkpoint::{Dtype, Layout, OutputFolder, OutputTensor, Placement, ShardWriter};
use aludel_kernels::element::Element;
use aludel_kernels::nn::{Device, DeviceError, Product};

use crate::decoder::Decoder;
use crate::error::Error;
use crate::names::Adapter;

impl<D: Device> Decoder<D> {
    /// Writes the model to the folder `target`, which comes to be whole or not at all; see [`OutputFolder::create`] for
    /// `replace`.
    ///
    /// Errors: those of the folder; what the device says.
    pub fn save(&self, target: &Path, replace: bool, dtype: Element) -> Result<(), Error> {
        let folder = OutputFolder::create(target, replace)?;
        self.write(&folder, dtype)?;
        folder.finish()?;
        Ok(())
    }

    /// Writes the model's files into a folder under construction, to which the caller may add others.
    ///
    /// Errors: as [`Decoder::save`].
    pub fn write(&self, folder: &OutputFolder, dtype: Element) -> Result<(), Error> {
        let stored_type = stored_type(dtype);
        let outputs = self.stored().iter().map(|stored| OutputTensor {
            name: stored.name.clone(),
            dtype: stored_type,
            shape: stored.shape.clone(),
        });
        let layout = Layout::plan(outputs.collect(), SHARD_BYTES)?;
        if let Some(index) = layout.index_json() {
            folder.write("model.safetensors.index.json", index.as_bytes())?;
        }
        let config = self.source().config.with_dtype(stored_type);
        folder.write("config.json", config.to_json().as_bytes())?;
        self.copy_side_files(folder)?;
        let parts: HashMap<&str, &[usize]> =
            self.stored().iter().map(|stored| (stored.name.as_str(), &*stored.parts)).collect();
        let writer = folder.shards(&layout)?;
        for (index, tensor) in layout.tensors().iter().enumerate() {
            let mut output = Output { writer: &writer, at: layout.placement(index), done: 0, dtype };
            for &part in parts[tensor.name.as_str()] {
                match self.adapter_of(part) {
                    None => self.write_buffer(&self.parameters().at(part).buffer, &mut output)?,
                    Some(adapter) => self.write_buffer(&self.merged(part, adapter)?, &mut output)?,
                }
            }
        }
        writer.finish()?;
        Ok(())
    }

    fn copy_side_files(&self, folder: &OutputFolder) -> Result<(), Error> {
        let source = self.source();
        let Some(from) = &source.folder else { return Ok(()) };
        for name in &source.side_files {
            let parts: Vec<_> = name.iter().map(|part| part.to_string_lossy()).collect();
            folder.copy_from(&from.join(name), &parts.join("/"))?;
        }
        Ok(())
    }

    fn write_buffer(&self, buffer: &D::Buffer, output: &mut Output<'_>) -> Result<(), Error> {
        let len = self.device().len(buffer);
        for start in (0..len).step_by(PIECE) {
            let end = len.min(start + PIECE);
            output.write(&self.device().read(buffer, start..end)?)?;
        }
        Ok(())
    }

    /// `W + scale B A`, in f32.
    fn merged(&self, weight: usize, adapter: Adapter) -> Result<D::Buffer, DeviceError> {
        let device = self.device();
        let [outputs, inputs] = [0, 1].map(|side| self.parameters().at(weight).shape[side]);
        let b = device.read(self.parameters().buffer(adapter.b), 0..outputs * adapter.rank)?;
        let mut transposed = device.zeros(b.len(), device.activation())?;
        device.write(&mut transposed, 0, &transpose(&b, adapter.rank))?;
        let mut a = device.zeros(adapter.rank * inputs, device.activation())?;
        device.copy(self.parameters().buffer(adapter.a), &mut a);
        let mut sum = device.zeros(outputs * inputs, Element::F32)?;
        device.copy(self.parameters().buffer(weight), &mut sum);
        // B A is what a linear layer's weight gradient is: the product of two matrices over their rows.
        let product = Product { rows: adapter.rank, inputs, outputs, scale: adapter.scale };
        device.linear_backward_weight(product, &transposed, &a, &mut sum, None);
        Ok(sum)
    }
}

/// A tensor that is being written.
pub(crate) struct Output<'a> {
    pub(crate) writer: &'a ShardWriter,
    pub(crate) at: Placement,
    pub(crate) done: u64,
    pub(crate) dtype: Element,
}

impl Output<'_> {
    pub(crate) fn write(&mut self, values: &[f32]) -> Result<(), Error> {
        let bytes = self.dtype.encode(values);
        self.writer.write_at(&self.at, self.done, &bytes)?;
        self.done += bytes.len() as u64;
        Ok(())
    }
}

pub(crate) fn stored_type(element: Element) -> Dtype {
    match element {
        Element::F32 => Dtype::F32,
        Element::F16 => Dtype::F16,
        Element::BF16 => Dtype::BF16,
    }
}

/// Rows of `width` as columns.
fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width)).copied().collect()
}

/// The size that transformers writes.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Elements that are on the host at a time.
const PIECE: usize = 1 << 20;
