//! Decides where every output tensor will lie before any weight is read.
//!
//! In: the output's tensors in the order in which they should lie, and the size of a shard. Out: shard files with their
//! finished headers, a place for every tensor, and the index. It writes nothing and depends on nothing but its input, so
//! the same input gives the same bytes.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Serialize;
use serde_json::json;

use crate::dtype::{element_bytes, tensor_bytes};
use crate::error::Error;
use crate::header::{MAX_HEADER_BYTES, PREFIX_BYTES};
use crate::weight_files::SINGLE_NAME;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutputTensor {
    /// Its name, unique in the output.
    pub name: String,
    /// Type of one element.
    pub dtype: Dtype,
    /// Sides, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
}

/// Where one tensor lies in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Position in [`Layout::shards`].
    pub shard: usize,
    /// First byte, from the start of the file; a multiple of the element's size.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// One output file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shard {
    /// `model.safetensors`, or `model-00001-of-00002.safetensors` where there are several.
    pub file_name: String,
    /// Length of the whole file.
    pub bytes: u64,
    /// Everything before the first tensor: length prefix, JSON and the spaces that align the data to 64 bytes.
    #[serde(skip)]
    pub header: Vec<u8>,
}

/// The output's files and the place of every tensor in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    tensors: Vec<OutputTensor>,
    placements: Vec<Placement>,
    shards: Vec<Shard>,
}

impl Layout {
    /// Lays the tensors out in the given order, a new shard beginning wherever the next tensor would take the current one
    /// past `shard_bytes` of tensor data (headers not counted). A tensor larger than that has a shard to itself.
    ///
    /// Within a shard, tensors of larger elements come first and otherwise keep their order: so every offset is a
    /// multiple of its element's size without gaps, which the format does not allow.
    ///
    /// Errors: [`Error::Unplannable`] for a name that is used twice or is `__metadata__`, a size that overflows or is no
    /// whole number of bytes, and a header larger than the format's 100 MB.
    pub fn plan(tensors: Vec<OutputTensor>, shard_bytes: u64) -> Result<Self, Error> {
        Self::plan_with(tensors, shard_bytes, &BTreeMap::new())
    }

    /// As [`Layout::plan`], where some tensors, by their names, lie in the same file as the one that follows them.
    ///
    /// Errors: as [`Layout::plan`].
    pub fn plan_beside(
        tensors: Vec<OutputTensor>,
        shard_bytes: u64,
        stays: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        Self::grouped(tensors, &BTreeMap::new(), |sized| group(sized, shard_bytes, stays))
    }

    /// As [`Layout::plan`], with something to say about the tensors in the header of every shard, besides `format`.
    ///
    /// Errors: as [`Layout::plan`].
    pub fn plan_with(
        tensors: Vec<OutputTensor>,
        shard_bytes: u64,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        Self::grouped(tensors, metadata, |sized| group(sized, shard_bytes, |_| false))
    }

    fn grouped(
        tensors: Vec<OutputTensor>,
        metadata: &BTreeMap<String, String>,
        group: impl FnOnce(Vec<Sized>) -> Vec<Vec<Sized>>,
    ) -> Result<Self, Error> {
        check_names(&tensors)?;
        let groups = group(with_bytes(tensors)?);
        let mut layout = Self { tensors: Vec::new(), placements: Vec::new(), shards: Vec::new() };
        let count = groups.len();
        for (shard, group) in groups.into_iter().enumerate() {
            layout.add_shard(file_name(shard, count), group, metadata)?;
        }
        Ok(layout)
    }

    /// As [`Layout::plan`], with all tensors in one file of this name.
    ///
    /// Errors: as [`Layout::plan`].
    pub fn single(tensors: Vec<OutputTensor>, file_name: &str) -> Result<Self, Error> {
        let mut layout = Self::plan(tensors, u64::MAX)?;
        // No tensor passes the greatest size, so there is one shard.
        for shard in &mut layout.shards {
            shard.file_name = file_name.to_owned();
        }
        Ok(layout)
    }

    /// Every tensor in writing order: shard by shard, by offset.
    pub fn tensors(&self) -> &[OutputTensor] {
        &self.tensors
    }

    /// The place of the tensor at this position of [`Layout::tensors`].
    ///
    /// # Panics
    /// When there is no such tensor.
    pub fn placement(&self, tensor: usize) -> Placement {
        self.placements[tensor]
    }

    /// The output files; at least one, even without tensors.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Bytes of all output files together, headers included, the index not.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// The text of `model.safetensors.index.json`; `None` for one shard, which needs no index.
    pub fn index_json(&self) -> Option<String> {
        if self.shards.len() == 1 {
            return None;
        }
        let total: u64 = self.placements.iter().map(|placement| placement.bytes).sum();
        let file_of = |placement: &Placement| &self.shards[placement.shard].file_name;
        let weight_map: BTreeMap<&str, &String> = self
            .tensors
            .iter()
            .zip(&self.placements)
            .map(|(tensor, at)| (tensor.name.as_str(), file_of(at)))
            .collect();
        Some(format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": weight_map })))
    }

    fn add_shard(
        &mut self,
        file_name: String,
        mut group: Vec<Sized>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        group.sort_by_key(|sized| std::cmp::Reverse(element_bytes(sized.tensor.dtype)));
        let ranges = ranges(&group);
        let header = header(&group, &ranges, metadata)?;
        let data_start = header.len() as u64;
        let bytes = data_start + ranges.last().map_or(0, |range| range.end);
        let shard = self.shards.len();
        self.shards.push(Shard { file_name, bytes, header });
        for (sized, range) in group.into_iter().zip(ranges) {
            self.tensors.push(sized.tensor);
            self.placements.push(Placement { shard, offset: data_start + range.start, bytes: sized.bytes });
        }
        Ok(())
    }
}

/// A tensor whose size has been checked.
struct Sized {
    tensor: OutputTensor,
    bytes: u64,
}

fn check_names(tensors: &[OutputTensor]) -> Result<(), Error> {
    let mut seen = HashSet::with_capacity(tensors.len());
    for OutputTensor { name, .. } in tensors {
        if name == METADATA_KEY {
            return Err(unplannable(name, "the format reserves this name"));
        }
        if !seen.insert(name) {
            return Err(unplannable(name, "two tensors have this name"));
        }
    }
    Ok(())
}

fn with_bytes(tensors: Vec<OutputTensor>) -> Result<Vec<Sized>, Error> {
    let mut total = 0u64;
    let mut sized = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let bytes = tensor_bytes(tensor.dtype, &tensor.shape)
            .ok_or_else(|| unplannable(&tensor.name, "its size overflows or is no whole number of bytes"))?;
        // Headers are at most a fraction of this bound, so no later sum of offsets can overflow.
        total = total
            .checked_add(bytes)
            .filter(|&total| total <= u64::MAX / 2)
            .ok_or_else(|| unplannable(&tensor.name, "the output's size overflows"))?;
        sized.push(Sized { tensor, bytes });
    }
    Ok(sized)
}

/// Greedy, in the given order; at least one group.
fn group(tensors: Vec<Sized>, shard_bytes: u64, stays: impl Fn(&str) -> bool) -> Vec<Vec<Sized>> {
    let mut groups = Vec::new();
    let mut current: Vec<Sized> = Vec::new();
    let mut filled = 0;
    let mut tensors = tensors.into_iter().peekable();
    while let Some(sized) = tensors.next() {
        let stays_here = current.last().is_some_and(|last| stays(&last.tensor.name));
        let beside = tensors.peek().filter(|_| stays(&sized.tensor.name)).map_or(0, |next| next.bytes);
        let wanted = sized.bytes + beside;
        if filled > 0 && wanted > 0 && filled + wanted > shard_bytes && !stays_here {
            groups.push(std::mem::take(&mut current));
            filled = 0;
        }
        filled += sized.bytes;
        current.push(sized);
    }
    groups.push(current);
    groups
}

/// Offsets from the start of the data.
fn ranges(group: &[Sized]) -> Vec<Range<u64>> {
    let mut end = 0;
    group
        .iter()
        .map(|sized| {
            let start = end;
            end += sized.bytes;
            start..end
        })
        .collect()
}

/// The length prefix, the JSON and spaces up to a multiple of 64 bytes.
fn header(group: &[Sized], ranges: &[Range<u64>], said: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let first = group.first().map_or("", |sized| &sized.tensor.name);
    let infos = group.iter().zip(ranges).map(|(sized, range)| {
        let data_offsets = (range.start as usize, range.end as usize);
        let OutputTensor { name, dtype, shape } = &sized.tensor;
        (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets })
    });
    let metadata = Metadata::new(None, infos.collect())
        .map_err(|error| unplannable(first, format!("the header of its shard is invalid: {error}")))?;
    let no_json = |error| unplannable(first, format!("the header of its shard is no JSON: {error}"));
    // Put in by hand: the crate would leave what is said in the random order of a hash map.
    let mut said = said.clone();
    said.insert("format".to_owned(), "pt".to_owned());
    let mut json = format!("{{\"{METADATA_KEY}\":").into_bytes();
    json.extend(serde_json::to_vec(&said).map_err(no_json)?);
    let tensors = serde_json::to_vec(&metadata).map_err(no_json)?;
    json.extend(if group.is_empty() { b"".as_slice() } else { b"," });
    json.extend_from_slice(tensors.get(1..).unwrap_or_default());
    let padded =
        (PREFIX_BYTES as usize + json.len()).next_multiple_of(DATA_ALIGNMENT) - PREFIX_BYTES as usize;
    json.resize(padded, b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(unplannable(first, "the header of its shard is larger than 100 MB; use smaller shards"));
    }
    Ok([(json.len() as u64).to_le_bytes().as_slice(), &json].concat())
}

fn file_name(shard: usize, count: usize) -> String {
    if count == 1 { SINGLE_NAME.into() } else { format!("model-{:05}-of-{count:05}.safetensors", shard + 1) }
}

fn unplannable(tensor: &str, detail: impl Into<String>) -> Error {
    Error::Unplannable { tensor: tensor.to_owned(), detail: detail.into() }
}

const METADATA_KEY: &str = "__metadata__";

/// A cache line: no two tensors of a shard's start share one with its header, and readers can map the data aligned.
const DATA_ALIGNMENT: usize = 64;
