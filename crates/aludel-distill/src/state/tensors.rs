//! Writes arrays of a device into a safetensors file and reads them back, bit for bit.
//!
//! In: named arrays. Out: one tensor each, or four for moments in eight bits. A file is opened with the checks that model
//! files get; a tensor that is missing or of another size is an error, and so is one that nobody asked for. What another process of a group holds
//! comes from there as it is written: the file is the same whoever holds what.

use std::collections::HashMap;
use std::path::Path;

use aludel_checkpoint::{Checkpoint, Dtype, Layout, OutputFolder, OutputTensor, TensorEntry, WeightMap};
use aludel_kernels::element::Element;
use aludel_kernels::nn::Device;
use aludel_kernels::nn::device::StoredMoments;

use crate::error::Error;
use crate::group::Group;

/// A named array.
pub struct Item<C> {
    /// Its name in the file.
    pub name: String,
    /// What it holds.
    pub content: C,
}

/// An array to be saved.
pub enum Content<'a, D: Device> {
    /// f32 elements: those of a buffer, or weights in bf16 and what they lack.
    Buffer(&'a D::Buffer, Option<&'a D::Remainders>),
    /// Moments in eight bits, of so many elements.
    Moments(&'a D::Moments, usize),
    /// Elements of this type in the host's memory.
    Host(&'a D::Host, Dtype),
    /// What another process holds: f32 elements, or moments in eight bits.
    Elsewhere {
        /// The process.
        owner: usize,
        /// Elements.
        len: usize,
        /// Whether they are moments in eight bits.
        is_eight: bool,
    },
}

impl<D: Device> Clone for Content<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Content<'_, D> {}

/// An array to be restored.
pub enum ContentMut<'a, D: Device> {
    /// f32 elements.
    Buffer(&'a mut D::Buffer),
    /// f32 elements that become weights in bf16 and what they lack, which may be another process's to hold.
    Master(&'a mut D::Buffer, Option<&'a mut D::Remainders>),
    /// Moments in eight bits, of so many elements.
    Moments(&'a mut D::Moments, usize),
    /// Elements of this type in the host's memory.
    Host(&'a mut D::Host, Dtype),
    /// So many f32 elements that another process restores.
    Skipped(usize),
    /// Moments in eight bits of so many elements that another process restores.
    SkippedMoments(usize),
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
    group: Option<&Group<D>>,
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
            Content::Buffer(buffer, remainders) => {
                for (start, bytes) in (0..).step_by(PIECE).zip(pieces(device, buffer, *remainders)) {
                    put(name, 4 * start, &bytes?)?;
                }
            }
            Content::Moments(moments, _) => {
                for (name, bytes) in moment_names(name).iter().zip(moment_bytes(device, moments)?) {
                    put(name, 0, &bytes)?;
                }
            }
            Content::Host(host, _) => put(name, 0, device.host_bytes(host)?)?,
            Content::Elsewhere { owner, .. } => {
                let group =
                    group.ok_or_else(|| Error::internal("a share of a checkpoint without its group"))?;
                for tensor in tensors(device, &Item { name: name.clone(), content: *content })? {
                    let bytes = tensor.shape[0] * aludel_checkpoint::element_bytes(tensor.dtype) as usize;
                    group.take(*owner, bytes, |at, bytes| Ok(put(&tensor.name, at as u64, bytes)?))?;
                }
            }
        }
    }
    Ok(shards.finish()?)
}

/// Sends what this process holds of a checkpoint to the first, which asks in the same order.
///
/// # Errors
/// [`Error::Device`], [`Error::Group`].
pub(crate) fn give<D: Device>(
    group: &Group<D>,
    device: &D,
    items: &[Item<Content<'_, D>>],
) -> Result<(), Error> {
    for Item { content, .. } in items {
        match content {
            Content::Buffer(buffer, remainders) => {
                for bytes in pieces(device, buffer, *remainders) {
                    group.give(&bytes?)?;
                }
            }
            Content::Moments(moments, _) => {
                for bytes in moment_bytes(device, moments)? {
                    group.give(&bytes)?;
                }
            }
            Content::Host(host, _) => group.give(device.host_bytes(host)?)?,
            Content::Elsewhere { .. } => {}
        }
    }
    Ok(())
}

/// f32 elements of a device, piece by piece.
fn pieces<D: Device>(
    device: &D,
    buffer: &D::Buffer,
    remainders: Option<&D::Remainders>,
) -> impl Iterator<Item = Result<Vec<u8>, Error>> {
    let len = device.len(buffer);
    (0..len).step_by(PIECE).map(move |start| {
        let range = start..len.min(start + PIECE);
        let values = match remainders {
            None => device.read(buffer, range)?,
            Some(remainders) => device.read_master(buffer, remainders, range)?,
        };
        Ok(Element::F32.encode(&values))
    })
}

/// The four tensors of moments in eight bits.
fn moment_bytes<D: Device>(device: &D, moments: &D::Moments) -> Result<[Vec<u8>; 4], Error> {
    let StoredMoments { first, first_scales, second, second_scales } = device.read_moments(moments)?;
    Ok([first, Element::F32.encode(&first_scales), second, Element::F32.encode(&second_scales)])
}

/// The tensors that an item becomes.
fn tensors<D: Device>(device: &D, item: &Item<Content<'_, D>>) -> Result<Vec<OutputTensor>, Error> {
    let tensor =
        |name: &str, dtype, len: usize| OutputTensor { name: name.to_owned(), dtype, shape: vec![len] };
    let eight = |len: usize| {
        moment_tensors(&item.name, len).map(|(name, dtype, len)| tensor(&name, dtype, len)).to_vec()
    };
    Ok(match item.content {
        Content::Buffer(buffer, _) => vec![tensor(&item.name, Dtype::F32, device.len(buffer))],
        Content::Host(host, dtype) => {
            let elements = device.host_bytes(host)?.len() / aludel_checkpoint::element_bytes(dtype) as usize;
            vec![tensor(&item.name, dtype, elements)]
        }
        Content::Moments(_, len) | Content::Elsewhere { len, is_eight: true, .. } => eight(len),
        Content::Elsewhere { len, is_eight: false, .. } => vec![tensor(&item.name, Dtype::F32, len)],
    })
}

/// Names, types and lengths of the tensors of moments in eight bits, of so many elements.
fn moment_tensors(name: &str, len: usize) -> [(String, Dtype, usize); 4] {
    let [first, first_scales, second, second_scales] = moment_names(name);
    let scales = StoredMoments::scales(len);
    [
        (first, Dtype::U8, len),
        (first_scales, Dtype::F32, scales),
        (second, Dtype::U8, len),
        (second_scales, Dtype::F32, scales),
    ]
}

/// Names of the tensors of moments in eight bits.
pub(crate) fn moment_names(name: &str) -> [String; 4] {
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
                for (start, values) in file.pieces(&name, device.len(buffer))? {
                    device.write(buffer, start, &values)?;
                }
                known += 1;
            }
            ContentMut::Master(weights, mut remainders) => {
                for (start, values) in file.pieces(&name, device.len(weights))? {
                    device.write_master(weights, remainders.as_deref_mut(), start, &values)?;
                }
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
            ContentMut::Host(host, dtype) => {
                let to = device.host_bytes_mut(host)?;
                let len = to.len() / aludel_checkpoint::element_bytes(dtype) as usize;
                to.copy_from_slice(file.bytes(&name, dtype, Some(len))?);
                known += 1;
            }
            ContentMut::Skipped(len) => {
                file.entry(&name, Dtype::F32, Some(len))?;
                known += 1;
            }
            ContentMut::SkippedMoments(len) => {
                for (name, dtype, len) in moment_tensors(&name, len) {
                    file.entry(&name, dtype, Some(len))?;
                    known += 1;
                }
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

    /// So many f32 elements, piece by piece, each with its position.
    fn pieces(&self, name: &str, len: usize) -> Result<impl Iterator<Item = (usize, Vec<f32>)>, Error> {
        let pieces = self.bytes(name, Dtype::F32, Some(len))?.chunks(4 * PIECE).enumerate();
        Ok(pieces.map(|(piece, bytes)| (piece * PIECE, Element::F32.decode(bytes))))
    }
}
