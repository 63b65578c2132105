//! Makes a model folder of a sparse delta and the base that it was taken from.
//!
//! In: the folder of the delta, and the base in any form that a recipe takes. Out: a model folder whose every chunk has the checksum that
//! the merge took when it made it, so that it is the merge's output bit for bit, or an error.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use aludel_checkpoint::{
    Layout, OutputFolder, OutputTensor, ShardWriter, WeightMap, element_bytes, tensor_bytes,
};
use aludel_delta::{DATA_FILE, Delta, DeltaTensor, HEADER_FILE, INDEX_FILE};
use aludel_hub::Hub;
use crc32c::crc32c_append;
use serde::Serialize;

use crate::derive::{Passed, Readable, Stored, Weights};
use crate::execute::MergeError;
use crate::plan::{Opened, element_of};
use crate::problem::{Problem, Problems};
use crate::threads::Threads;

/// How a delta is applied.
pub struct Options<'a> {
    /// Another base than the one that the delta names.
    pub base: Option<&'a str>,
    /// Whether a folder that exists gives way.
    pub replace: bool,
    /// Whether the output is on disk before it gets its name.
    pub sync: bool,
    /// Threads that compute; at least 1.
    pub threads: usize,
    /// The most tensor data in one output file, in bytes.
    pub shard_bytes: u64,
    /// Where models are looked for.
    pub hub: &'a Hub,
    /// Set from outside to stop: the run then ends with [`MergeError::Interrupted`] and leaves nothing.
    pub cancel: &'a AtomicBool,
    /// Called about ten times a second with the bytes that are made and those in all.
    pub on_progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// The folder that was written.
    pub output: PathBuf,
    /// The base.
    pub base: String,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of the delta.
    pub delta_bytes: u64,
    /// Bytes of weight files.
    pub bytes: u64,
    /// From start to end.
    pub seconds: f64,
}

/// Applies the delta of a folder.
///
/// # Errors
/// [`MergeError`]: another base, a damaged delta, or files that cannot be read or written; the target is then as it was before.
pub fn apply(folder: &Path, target: &Path, options: &Options<'_>) -> Result<Applied, MergeError> {
    let start = Instant::now();
    let delta = Delta::open(folder)?;
    let base = options.base.unwrap_or(&delta.header().base).to_owned();
    let opened = Opened::open(&[&base], options.hub)?;
    let bases = bases(&delta, &base, &opened)?;
    let tensor = |tensor: &DeltaTensor| OutputTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
    };
    let layout = Layout::plan(delta.header().tensors.iter().map(tensor).collect(), options.shard_bytes)?;
    let mut output = OutputFolder::create(target, options.replace)?;
    if !options.sync {
        output.skip_sync();
    }
    let sources = opened.sources();
    let maps =
        sources.iter().map(|source| WeightMap::open(&source.checkpoint)).collect::<Result<Vec<_>, _>>()?;
    let run = Run {
        delta: &delta,
        base: &base,
        bases,
        layout: &layout,
        placed: placed(&delta, &layout),
        weights: Weights::new(sources, &maps),
        shards: output.shards(&layout)?,
        options,
    };
    run.all()?;
    run.shards.finish()?;
    output.copy_all_from(folder, &|name| ![HEADER_FILE, INDEX_FILE, DATA_FILE].contains(&name))?;
    if let Some(index) = layout.index_json() {
        output.write("model.safetensors.index.json", index.as_bytes())?;
    }
    let output = output.finish()?;
    Ok(Applied {
        output,
        base,
        tensors: layout.tensors().len(),
        delta_bytes: delta.header().data_bytes,
        bytes: layout.total_bytes(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// The base's tensor for each of the delta's; `None` for those that are stored without one.
fn bases(delta: &Delta, base: &str, opened: &Opened) -> Result<Vec<Option<Readable>>, Problems> {
    let mut problems = Problems::new();
    let model = opened.model(0);
    let tensors = delta.header().tensors.iter().map(|tensor| {
        tensor.base_crc32c?;
        let facts = model.tensors.get(&tensor.name).filter(|facts| facts.shape == tensor.shape);
        let found = facts.zip(model.source()).map(|(facts, source)| Readable {
            stored: Stored { source, tensor: tensor.name.clone() },
            made: facts.made.clone(),
        });
        if found.is_none() {
            problems.push(other_base(delta, base, &tensor.name));
        }
        found
    });
    let tensors = tensors.collect();
    if problems.is_empty() { Ok(tensors) } else { Err(problems) }
}

/// The positions of the delta's tensors in the layout.
fn placed(delta: &Delta, layout: &Layout) -> Vec<usize> {
    let names = layout.tensors().iter().zip(0..).map(|(tensor, at)| (tensor.name.as_str(), at));
    let places: HashMap<&str, usize> = names.collect();
    delta.header().tensors.iter().map(|tensor| places[tensor.name.as_str()]).collect()
}

fn other_base(delta: &Delta, base: &str, tensor: &str) -> Problem {
    Problem::general(format!("`{base}` is not the base that the delta was taken from: `{tensor}` is another"))
        .with_hint(format!("it was taken from `{}`; give that model with --base", delta.header().base))
}

/// What a thread makes a chunk in.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

struct Run<'a> {
    delta: &'a Delta,
    base: &'a str,
    bases: Vec<Option<Readable>>,
    layout: &'a Layout,
    /// The positions of the delta's tensors in the layout, which orders them anew.
    placed: Vec<usize>,
    weights: Weights<'a>,
    shards: ShardWriter,
    options: &'a Options<'a>,
}

impl Run<'_> {
    /// Makes all tensors, on several threads, chunk by chunk.
    fn all(&self) -> Result<(), MergeError> {
        let tensors = &self.delta.header().tensors;
        let total = tensors.iter().filter_map(|tensor| tensor_bytes(tensor.dtype, &tensor.shape)).sum();
        let made = AtomicU64::new(0);
        let threads = Threads {
            count: self.options.threads,
            cancel: self.options.cancel,
            on_progress: &|| (self.options.on_progress)(made.load(Relaxed), total),
        };
        threads.share(self.delta.chunks(), |chunk, scratch: &mut Scratch| {
            let (tensor, chunk) = self.delta.place(chunk);
            self.chunk(tensor, chunk, scratch)?;
            made.fetch_add(scratch.bytes.len() as u64, Relaxed);
            Ok(())
        })
    }

    fn chunk(&self, tensor: usize, chunk: u64, scratch: &mut Scratch) -> Result<(), MergeError> {
        let known = &self.delta.header().tensors[tensor];
        let (elements, width) = (self.delta.elements(tensor, chunk), element_bytes(known.dtype));
        self.base_bytes(tensor, chunk, scratch);
        let bytes = &mut scratch.bytes;
        bytes.resize(((elements.end - elements.start) * width) as usize, 0);
        match self.delta.apply(tensor, chunk, bytes) {
            Err(aludel_delta::Error::Mismatch { .. }) => return Err(self.mismatch(tensor)),
            result => result?,
        }
        self.shards.write_at(&self.layout.placement(self.placed[tensor]), elements.start * width, bytes)?;
        Ok(())
    }

    /// The bytes of the base's chunk, in the delta's type; none without a base.
    fn base_bytes(&self, tensor: usize, chunk: u64, Scratch { values, bytes }: &mut Scratch) {
        let elements = self.delta.elements(tensor, chunk);
        let element = element_of(self.delta.header().tensors[tensor].dtype);
        bytes.clear();
        if let Some((base, element)) = self.bases[tensor].as_ref().zip(element) {
            values.resize((elements.end - elements.start) as usize, 0.0);
            base.read(&self.weights, elements.start, values);
            bytes.extend(element.encode(values));
            base.release(&self.weights, &Passed { elements, is_end: false });
        }
    }

    /// Why a tensor does not come back.
    fn mismatch(&self, tensor: usize) -> MergeError {
        let known = &self.delta.header().tensors[tensor];
        let (mut scratch, mut crc) = (Scratch::default(), 0);
        for chunk in 0..known.chunks().unwrap_or(0) {
            self.base_bytes(tensor, chunk, &mut scratch);
            crc = crc32c_append(crc, &scratch.bytes);
        }
        if known.base_crc32c.is_some_and(|stored| stored != crc) {
            return Problems::from(other_base(self.delta, self.base, &known.name)).into();
        }
        aludel_delta::Error::Damaged {
            file: DATA_FILE.into(),
            detail: format!("`{}` does not come back", known.name),
        }
        .into()
    }
}
