//! Merges into memory, again and again, models that stay in memory.
//!
//! In: plans that differ in their parameters. Out: the tensors of each merge, bit for bit what a folder of it would hold. Inputs stay mapped
//! from one merge to the next, buffers are used again once nobody holds their tensors, and what reductions have come to is reused
//! where it has not changed, so that new weights take one sweep. Nothing is hashed and nothing written.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use aludel_checkpoint::{Dtype, OutputFolder, WeightMap, element_bytes};
use aludel_kernels::gpu::Backend;

use super::memory::Memory;
use super::on_device::{DeviceTensor, OnDevice};
use super::queue::Queue;
use super::run::{Run, map_inputs};
use super::statistics::Statistics;
use super::writer::Sink;
use super::{Counters, Done, ExecuteOptions, MergeError, Progress, provenance, write_small_files};
use crate::plan::Plan;

/// Models in memory: the host's, and that of a device where there is one.
pub struct Resident<B: Backend> {
    device: Option<OnDevice<B>>,
    /// What is mapped, and whose files they are.
    maps: Vec<WeightMap>,
    files: Vec<(std::path::PathBuf, u64)>,
    seed: u64,
    buffers: Vec<Arc<Vec<u8>>>,
    statistics: Statistics,
}

/// A tensor of a merge in memory.
#[derive(Clone, Debug)]
pub struct Tensor<B: Backend> {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its elements, little-endian.
    pub place: Place<B>,
}

/// Where elements are.
#[derive(Clone, Debug)]
pub enum Place<B: Backend> {
    /// In the host's memory.
    Host(Arc<Vec<u8>>),
    /// In a device's.
    Device(DeviceTensor<B>),
}

/// A merge in memory.
#[derive(Clone, Debug)]
pub struct Merged<B: Backend> {
    /// In the order in which a folder would have them. They are to be dropped before the next merge, which otherwise begins anew.
    pub tensors: Vec<Tensor<B>>,
    /// Bytes of inputs that were read, each sweep counted.
    pub bytes_read: u64,
    /// Reductions that an earlier merge had found.
    pub reused: usize,
    /// Reductions that this one found.
    pub computed: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

impl<B: Backend> Resident<B>
where
    MergeError: From<B::Error>,
{
    /// Of no models yet.
    pub fn new(device: Option<Arc<B>>) -> Self {
        Self {
            device: device.map(OnDevice::new),
            maps: Vec::new(),
            files: Vec::new(),
            seed: 0,
            buffers: Vec::new(),
            statistics: Statistics::default(),
        }
    }

    /// Merges as planned. Of the options what concerns folders and devices is not heeded.
    ///
    /// # Errors
    /// [`MergeError`]; what is resident stays so.
    pub fn merge(&mut self, plan: &Plan, options: &ExecuteOptions<'_>) -> Result<Merged<B>, MergeError> {
        let start = Instant::now();
        self.adopt(plan, options)?;
        let statistics = std::mem::take(&mut self.statistics).next();
        let buffers = std::mem::take(&mut self.buffers);
        let counters = Counters::new(plan, options, &Done::default());
        let run = Run { stays: true, ..Run::new(plan, options, &self.maps, counters) };
        run.align()?;
        let outputs = match &mut self.device {
            Some(device) => device.merge(&run, &statistics)?,
            None => Vec::new(),
        };
        let elsewhere: Vec<bool> = outputs.iter().map(Option::is_some).collect();
        let mut buffers = buffers_of(plan, &elsewhere, buffers);
        {
            let tiles = buffers.iter_mut().zip(&plan.steps).map(|(buffer, step)| {
                let bytes = Arc::get_mut(buffer).map_or(&mut [][..], Vec::as_mut_slice);
                (bytes, (plan.work.tile * element_bytes(step.dtype)) as usize)
            });
            let memory = Memory::new(tiles);
            let queue = Queue::new(plan, &elsewhere, options.pipeline.groups).knowing(&statistics);
            let sink = Sink::into_memory(&memory, plan.work.threads);
            std::thread::scope(|scope| {
                for _ in 0..plan.work.threads {
                    let sink = sink.clone();
                    scope.spawn(|| run.work(&queue, Some(sink)));
                }
                while !queue.wait(WAIT, options.cancel) {}
            });
            queue.into_figures()?;
        }
        if options.cancel.load(Relaxed) {
            return Err(MergeError::Interrupted);
        }
        let (reused, computed) = statistics.counts();
        let bytes_read = run.counters.read.load(Relaxed);
        (self.statistics, self.buffers) = (statistics, buffers);
        let mut outputs = outputs.into_iter();
        let tensor = |(bytes, step): (&Arc<Vec<u8>>, &crate::plan::Step)| Tensor {
            name: step.tensor.clone(),
            dtype: step.dtype,
            shape: step.shape.clone(),
            place: outputs.next().flatten().map_or_else(|| Place::Host(Arc::clone(bytes)), Place::Device),
        };
        let tensors = self.buffers.iter().zip(&plan.steps).map(tensor).collect();
        Ok(Merged { tensors, bytes_read, reused, computed, seconds: start.elapsed().as_secs_f64() })
    }

    /// Maps the models of a plan, and reads them, unless they are those of the merge before.
    fn adopt(&mut self, plan: &Plan, options: &ExecuteOptions<'_>) -> Result<(), MergeError> {
        let files = plan.sources.iter().flat_map(|source| source.checkpoint.files());
        let files: Vec<_> = files.map(|file| (file.path.clone(), file.bytes)).collect();
        if self.files == files && self.seed == plan.seed {
            return Ok(());
        }
        provenance::check(plan, |source, file| {
            options.digests.remembered(&plan.sources[source].checkpoint.files()[file].path)
        })?;
        let device = self.device.take().map(OnDevice::emptied);
        *self = Self { device, maps: map_inputs(plan, options)?, seed: plan.seed, ..Self::new(None) };
        if self.device.is_some() {
            // What the device has no use for is read when it is needed.
            self.files = files;
            return Ok(());
        }
        let all = files.iter().map(|(_, bytes)| bytes).sum();
        let mut read = 0;
        for (source, map) in plan.sources.iter().zip(&self.maps) {
            for (file, bytes) in
                source.checkpoint.files().iter().enumerate().map(|(at, file)| (at, file.bytes))
            {
                for start in (0..bytes).step_by(LOADED_AT_ONCE as usize) {
                    if options.cancel.load(Relaxed) {
                        return Err(MergeError::Interrupted);
                    }
                    let end = bytes.min(start + LOADED_AT_ONCE);
                    map.request(file, &(start..end));
                    map.load(file, &(start..end));
                    read += end - start;
                    let (bytes_hashed, bytes_to_hash) = (0, 0);
                    (options.on_progress)(Progress {
                        bytes_read: read,
                        bytes_to_read: all,
                        bytes_hashed,
                        bytes_to_hash,
                    });
                }
            }
        }
        self.files = files;
        Ok(())
    }
}

/// A buffer for each tensor: those of the merge before that nobody holds any more, as far as they fit; empty ones for what is computed elsewhere.
fn buffers_of(plan: &Plan, elsewhere: &[bool], earlier: Vec<Arc<Vec<u8>>>) -> Vec<Arc<Vec<u8>>> {
    let mut earlier = earlier.into_iter();
    let buffer = |(at, step): (usize, &crate::plan::Step)| {
        let is_here = !elsewhere.get(at).copied().unwrap_or(false);
        let bytes = if is_here { (step.elements() * element_bytes(step.dtype)) as usize } else { 0 };
        let fits = |buffer: &mut Arc<Vec<u8>>| buffer.len() == bytes && Arc::get_mut(buffer).is_some();
        let earlier = earlier.next().and_then(|mut buffer| fits(&mut buffer).then_some(buffer));
        earlier.unwrap_or_else(|| Arc::new(vec![0; bytes]))
    };
    plan.steps.iter().enumerate().map(buffer).collect()
}

/// Writes what a folder of the merge would have beside its weights: config, tokenizer, the recipe.
///
/// # Errors
/// [`MergeError`] where the folder cannot be written.
pub fn write_companions(plan: &Plan, folder: &std::path::Path) -> Result<(), MergeError> {
    let folder = OutputFolder::create(folder, true)?;
    write_small_files(plan, &folder)?;
    folder.finish()?;
    Ok(())
}

/// Between two looks at whether all is done.
const WAIT: Duration = Duration::from_millis(100);

/// Bytes that are read between two looks at whether to go on.
const LOADED_AT_ONCE: u64 = 64 << 20;
