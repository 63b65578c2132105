//! Writes arrays of a device into a safetensors file and reads them back, bit for bit.
//!
//! In: named arrays. Out: one tensor each, or four for moments in eight bits. A file is opened with the checks that model
//! files get; a tensor that is missing or of another size is an error, and so is one that nobody asked for.

use std::collections::HashMap;
use std::path::Path;

use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::Device;
use aludel_kernels::nn::device::StoredMoments;

use crate::error::Error;

/// A named array.
pub struct Item<C> {
    /// Its name in the file.
    pub name: String,
    /// What it holds.
    pub content: C,
}

/// An array to be saved.
pub enum Content<'a, D: Device> {
    /// f32 elements.
    Buffer(&'a D::Buffer),
    /// Moments in eight bits.
    Moments(&'a D::Moments),
}

/// An array to be restored.
pub enum ContentMut<'a, D: Device> {
    /// f32 elements.
    Buffer(&'a mut D::Buffer),
    /// Moments in eight bits, of so many elements.
    Moments(&'a mut D::Moments, usize),
}

/// Elements that are moved between device and file at a time: 4 MiB.
const PIECE: usize = 1 << 20;

/// Writes the items into a folder, as its model file.
///
/// # Errors
/// [`Error::Checkpoint`], [`Error::Device`].
pub(super) fn write<D: Device>(
    folder: &OutputFolder,
    device: &D,
    items: &[Item<Content<'_, D>>],
) -> Result<(), Error> {
    let mut planned = Vec::new();
    for item in items {
        planned.extend(tensors(device, item)?);
    }
    // All in one file: a state is read whole.
    let layout = Layout::plan(planned, u64::MAX)?;
    let shards = folder.shards(&layout)?;
    let names = layout.tensors().iter().enumerate().map(|(place, tensor)| (tensor.name.as_str(), place));
    let places: HashMap<&str, usize> = names.collect();
    let put = |name: &str, offset: u64, bytes: &[u8]| {
        // Every name was planned above, by the same rules.
        shards.write_at(&layout.placement(places[name]), offset, bytes)
    };
    for Item { name, content } in items {
        match content {
            Content::Buffer(buffer) => {
                let len = device.len(buffer);
                for start in (0..len).step_by(PIECE) {
                    let values = device.read(buffer, start..len.min(start + PIECE))?;
                    put(name, 4 * start as u64, &Element::F32.encode(&values))?;
                }
            }
            Content::Moments(moments) => {
                let StoredMoments { first, first_scales, second, second_scales } =
                    device.read_moments(moments)?;
                let names = moment_names(name);
                put(&names[0], 0, &first)?;
                put(&names[1], 0, &Element::F32.encode(&first_scales))?;
                put(&names[2], 0, &second)?;
                put(&names[3], 0, &Element::F32.encode(&second_scales))?;
            }
        }
    }
    Ok(shards.finish()?)
}

/// The tensors that an item becomes.
fn tensors<D: Device>(device: &D, item: &Item<Content<'_, D>>) -> Result<Vec<OutputTensor>, Error> {
    let tensor =
        |name: &str, dtype, len: usize| OutputTensor { name: name.to_owned(), dtype, shape: vec![len] };
    Ok(match item.content {
        Content::Buffer(buffer) => vec![tensor(&item.name, Dtype::F32, device.len(buffer))],
        Content::Moments(moments) => {
            let stored = device.read_moments(moments)?;
            let [first, first_scales, second, second_scales] = moment_names(&item.name);
            vec![
                tensor(&first, Dtype::U8, stored.first.len()),
                tensor(&first_scales, Dtype::F32, stored.first_scales.len()),
                tensor(&second, Dtype::U8, stored.second.len()),
                tensor(&second_scales, Dtype::F32, stored.second_scales.len()),
            ]
        }
    })
}

fn moment_names(name: &str) -> [String; 4] {
    ["first", "first_scales", "second", "second_scales"].map(|part| format!("{name}/{part}"))
}

/// Reads all items from a folder.
///
/// # Errors
/// [`Error::Checkpoint`], [`Error::Device`]; [`Error::Damaged`] where the file has not exactly these arrays.
pub(super) fn read<D: Device>(
    folder: &Path,
    device: &D,
    items: Vec<Item<ContentMut<'_, D>>>,
) -> Result<(), Error> {
    let file = File::open(folder)?;
    let mut known = 0;
    for Item { name, content } in items {
        match content {
            ContentMut::Buffer(buffer) => {
                file.fill(device, &name, buffer)?;
                known += 1;
            }
            ContentMut::Moments(moments, len) => {
                let [first, first_scales, second, second_scales] = moment_names(&name);
                let stored = StoredMoments {
                    first: file.bytes(&first, Dtype::U8, Some(len))?.to_vec(),
                    first_scales: file.floats(&first_scales)?,
                    second: file.bytes(&second, Dtype::U8, Some(len))?.to_vec(),
                    second_scales: file.floats(&second_scales)?,
                };
                *moments = device
                    .restore_moments(len, &stored)?
                    .ok_or_else(|| file.damaged(&name, "has another number of scales"))?;
                known += 4;
            }
        }
    }
    match file.checkpoint.tensors().len() {
        count if count == known => Ok(()),
        count => {
            Err(Error::damaged(folder, format!("it has {count} arrays where {known} belong to the run")))
        }
    }
}

struct File<'a> {
    folder: &'a Path,
    checkpoint: Checkpoint,
    map: WeightMap,
}

impl<'a> File<'a> {
    fn open(folder: &'a Path) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(folder)?;
        let map = WeightMap::open(&checkpoint)?;
        Ok(Self { folder, checkpoint, map })
    }

    fn damaged(&self, name: &str, detail: &str) -> Error {
        Error::damaged(self.folder, format!("its array `{name}` {detail}"))
    }

    fn entry(&self, name: &str, dtype: Dtype, len: Option<usize>) -> Result<&TensorEntry, Error> {
        let entry = self.checkpoint.tensor(name).ok_or_else(|| self.damaged(name, "is missing"))?;
        let fits = len.is_none_or(|len| entry.elements() == len as u64);
        if entry.dtype == dtype && fits {
            Ok(entry)
        } else {
            Err(self.damaged(name, "is of another type or size than the run's"))
        }
    }

    fn bytes(&self, name: &str, dtype: Dtype, len: Option<usize>) -> Result<&[u8], Error> {
        let entry = self.entry(name, dtype, len)?;
        Ok(self.map.bytes(entry, 0..entry.elements() * aludel_checkpoint::element_bytes(dtype)))
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(Element::F32.decode(self.bytes(name, Dtype::F32, None)?))
    }

    fn fill<D: Device>(&self, device: &D, name: &str, buffer: &mut D::Buffer) -> Result<(), Error> {
        let bytes = self.bytes(name, Dtype::F32, Some(device.len(buffer)))?;
        for (piece, bytes) in bytes.chunks(4 * PIECE).enumerate() {
            device.write(buffer, piece * PIECE, &Element::F32.decode(bytes))?;
        }
        Ok(())
    }
}
