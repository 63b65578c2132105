//! Carries out a plan: reads tiles, computes, writes, and leaves a whole model folder or none.
//!
//! In: a [`Plan`] and a target folder. Out: the folder and a [`Report`]. Threads take units from one `queue`; one
//! writer puts encoded tiles in their places; inputs are hashed beside the work. Memory is the plan's: nothing here grows
//! with the models. Nothing is decided here either.

mod align;
mod card;
mod delta;
mod error;
mod identity;
mod join;
mod kept;
mod lanes;
mod measure;
mod part;
mod provenance;
mod queue;
mod reader;
mod report;
mod share;
mod stand_in;
mod writer;

pub use crate::derive::Aligned;
pub use error::MergeError;
pub use join::{JoinOptions, Joined, join, parts_of};
pub(crate) use measure::measure;
pub use report::{DeviceReport, Phases, Report};
pub(crate) use stand_in::StandIn;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aludel_checkpoint::{Config, DigestCache, OutputFolder, WeightMap, WrittenTensor};
use aludel_delta::DeltaWriter;
use aludel_kernels::cpu::Scratch;
use aludel_kernels::cuda::Device;

use crate::derive::{Alignment, Weights};
use crate::plan::{Part, Plan, alignments};
use crate::problem::Problem;
use card::{Card, Digests};
use delta::Coder;
use lanes::Lanes;
use part::PartRecord;
use queue::{Queue, Task, TaskKind};
use reader::StepSource;
use share::Share;
use writer::Output;

/// How a plan is carried out; none of it changes the bytes of the output.
pub struct ExecuteOptions<'a> {
    /// Whether a folder that exists gives way.
    pub replace: bool,
    /// Where the inputs' digests are remembered.
    pub digests: DigestCache,
    /// Set from outside to stop: the run then ends with [`MergeError::Interrupted`] and leaves nothing.
    pub cancel: &'a AtomicBool,
    /// Called at the beginning, and about ten times a second.
    pub on_progress: &'a (dyn Fn(Progress) + Sync),
    /// Whether the output is on disk before it gets its name.
    pub sync: bool,
    /// Whether to go on with what a run that died or failed has left.
    pub resume: bool,
    /// A device that computes what it can; the rest and everything without one is the CPU's.
    pub device: Option<Arc<Device>>,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the inputs read, each pass counted.
    pub bytes_read: u64,
    /// Bytes to read in all.
    pub bytes_to_read: u64,
    /// Bytes of inputs hashed.
    pub bytes_hashed: u64,
    /// Bytes of inputs to hash: those whose digests are not known yet.
    pub bytes_to_hash: u64,
}

/// Merges.
///
/// # Errors
/// [`MergeError`]; the target is then as it was before. After [`MergeError::Unfinished`] a later run can go on.
pub fn execute(plan: &Plan, target: &Path, options: &ExecuteOptions<'_>) -> Result<Report, MergeError> {
    let start = Instant::now();
    if let Some(awaited) = plan.awaited.first() {
        let message = format!("this plan is for showing: before it is carried out, {awaited}");
        return Err(MergeError::Problems(Problem::general(message).into()));
    }
    // What is remembered costs nothing to ask; the rest is known when all inputs are hashed.
    let path = |source: usize, file: usize| &plan.sources[source].checkpoint.files()[file].path;
    provenance::check(plan, |source, file| options.digests.remembered(path(source, file)))?;
    let inputs = identity::inputs(plan)?;
    let identity = identity::identity(plan, &inputs)?;
    let (mut folder, written) = if options.resume {
        OutputFolder::resume(target, options.replace, &identity)?
    } else {
        (OutputFolder::create(target, options.replace)?, Vec::new())
    };
    if !options.sync {
        folder.skip_sync();
    }
    let (output, written) = match &plan.delta {
        Some(_) => {
            let writer = DeltaWriter::create(folder.path(), delta::tensors(plan))?;
            (Output::Delta(writer), Vec::new())
        }
        None => {
            let share = plan.part.shards(&plan.layout);
            let (shards, written) =
                folder.shards_again(&plan.layout, share, &written, &|step| plan.partners[step])?;
            let journal = folder.journal(&identity, &written)?;
            (Output::Shards(shards, journal), written)
        }
    };
    let maps = plan
        .sources
        .iter()
        .map(|source| WeightMap::open(&source.checkpoint))
        .collect::<Result<Vec<_>, _>>()?;
    let done = Done::of(plan, &written);
    let share = match &options.device {
        Some(device) => Share::of(plan, device, &done.steps)?,
        None => Share::default(),
    };
    let mut counters = Counters::new(plan, options, &done);
    counters.to_read = counters.to_read.saturating_sub(share.bytes_spared(plan));
    let run = Run { plan, maps, options, start, counters };
    let coder = Coder::of(plan, Weights { sources: &plan.sources, maps: &run.maps });
    let (writer, sink) = writer::channel(plan, output, written, coder);
    let merged = run.align().and_then(|aligned| {
        let (digests, written, merged) = run.merge(&done, &share, writer, sink)?;
        let merged = Report { aligned, ..merged };
        inputs.check()?;
        let card = Card::of(plan, &digests, &merged.aligned);
        if plan.part == Part::WHOLE {
            write_small_files(plan, &folder)?;
            folder.write("README.md", card.render().as_bytes())?;
            return Ok(merged);
        }
        if plan.part.number == 1 {
            write_small_files(plan, &folder)?;
        }
        PartRecord::write(plan, &folder, &written, card)?;
        Ok(merged)
    });
    let merged = match merged {
        Ok(merged) => merged,
        Err(cause) if cause.may_pass() => {
            return Err(match folder.keep() {
                Some(kept) => MergeError::Unfinished { cause: Box::new(cause), kept },
                None => cause,
            });
        }
        Err(cause) => return Err(cause),
    };
    let finishing = Instant::now();
    let target = folder.finish()?;
    let phases = Phases { finish: finishing.elapsed().as_secs_f64(), ..merged.phases };
    Ok(Report { output: target, seconds: start.elapsed().as_secs_f64(), phases, ..merged })
}

/// Everything that is neither weights nor the card: config, index, side files, the recipe.
fn write_small_files(plan: &Plan, folder: &OutputFolder) -> Result<(), MergeError> {
    if let Some(config) = plan.config.as_ref().map(Config::to_json) {
        folder.write("config.json", config.as_bytes())?;
    }
    if let Some(index) = plan.layout.index_json().filter(|_| plan.delta.is_none()) {
        folder.write("model.safetensors.index.json", index.as_bytes())?;
    }
    for name in &plan.side_files.names {
        folder.copy_from(&plan.side_files.folder.join(name), &name.to_string_lossy())?;
    }
    for file in &plan.side_files.written {
        folder.write(&file.name.to_string_lossy(), file.text.as_bytes())?;
    }
    folder.write("recipe.yml", plan.recipe.as_bytes())?;
    Ok(())
}

/// The steps that an earlier run has done, or that are another part's.
#[derive(Debug, Default)]
struct Done {
    /// By step; none where it is empty.
    steps: Vec<bool>,
    /// Those of an earlier run.
    count: usize,
    /// Bytes that need not be read.
    bytes: u64,
}

impl Done {
    fn of(plan: &Plan, written: &[WrittenTensor]) -> Self {
        let share = plan.part.shards(&plan.layout);
        let is_anothers = |step| !share.contains(&plan.layout.placement(step).shard);
        let mut steps: Vec<bool> = (0..plan.steps.len()).map(is_anothers).collect();
        written.iter().for_each(|written| steps[written.tensor] = true);
        let done = steps.iter().enumerate().filter(|(_, is_done)| **is_done);
        let bytes: u64 = done.map(|(step, _)| plan.bytes_read(step)).sum();
        // Experts are put in order anew for what is left: the order stands in no file.
        let aligning = |alignments: Vec<&Alignment>| alignments.iter().map(|each| each.bytes).sum::<u64>();
        let bytes = bytes + aligning(alignments(&plan.steps)) - aligning(align::of_part(plan));
        Self { steps, count: written.len(), bytes }
    }
}

struct Counters {
    read: AtomicU64,
    to_read: u64,
    sweeps: AtomicU64,
    hashed: AtomicU64,
    to_hash: u64,
}

impl Counters {
    fn new(plan: &Plan, options: &ExecuteOptions<'_>, done: &Done) -> Self {
        let files = plan.sources.iter().flat_map(|source| source.checkpoint.files()).zip(1..);
        let files = files.filter(|(_, number)| is_hashed_by(plan.part, *number)).map(|(file, _)| file);
        let unknown = files.filter(|file| options.digests.remembered(&file.path).is_none());
        let to_hash = unknown.map(|file| file.bytes).sum();
        let [read, sweeps, hashed] = Default::default();
        Self { read, to_read: plan.work.bytes_read.saturating_sub(done.bytes), sweeps, hashed, to_hash }
    }
}

/// Whether the digest of an input file of this number is a part's to find.
const fn is_hashed_by(part: Part, file: usize) -> bool {
    file % part.of == part.number % part.of
}

struct Run<'a> {
    plan: &'a Plan,
    maps: Vec<WeightMap>,
    options: &'a ExecuteOptions<'a>,
    start: Instant,
    counters: Counters,
}

impl Run<'_> {
    /// Computes and writes all weights that are not done, and hashes all inputs.
    fn merge(
        &self,
        done: &Done,
        share: &Share,
        writer: writer::Writer<'_>,
        sink: writer::Sink<'_>,
    ) -> Result<(Digests, Vec<WrittenTensor>, Report), MergeError> {
        let work = &self.plan.work;
        let elsewhere = share.and_done(self.plan, &done.steps);
        let queue = Queue::new(self.plan, &elsewhere);
        let lanes = self.options.device.as_ref().map(|device| Lanes::new(device, share));
        let (mut digests, mut written) = (Ok(Vec::new()), Ok(writer::Done::default()));
        let weights = Instant::now();
        let mut computing = 0.0;
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let result = writer.run();
                if result.is_err() {
                    queue.stop();
                }
                result
            });
            let hashing = scope.spawn(|| self.hash(&queue));
            let moving: Vec<_> = lanes
                .iter()
                .flat_map(|lanes| (0..lanes.count(work.threads)).map(move |_| lanes))
                .map(|lanes| {
                    let (sink, queue) = (sink.clone(), &queue);
                    scope.spawn(move || lanes.work(self, queue, &sink))
                })
                .collect();
            let is_hashed = || hashing.is_finished() && moving.iter().all(|lane| lane.is_finished());
            let workers: Vec<_> = (0..work.threads)
                .map(|_| {
                    let sink = sink.clone();
                    scope.spawn(|| self.work(&queue, Some(sink)))
                })
                .collect();
            drop(sink);
            self.report_progress(&queue, is_hashed);
            for worker in workers {
                computing += worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            for lane in moving {
                lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
            written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            digests = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        let phases = Phases {
            prepare: (weights - self.start).as_secs_f64(),
            weights: weights.elapsed().as_secs_f64(),
            compute: computing,
            ..Phases::default()
        };
        // The cause before its consequences: a failed unit first, then the writer, then the hashes.
        queue.into_figures()?;
        if self.options.cancel.load(Relaxed) {
            return Err(MergeError::Interrupted);
        }
        let writer::Done { seconds: write, tensors: written, delta_bytes } = written?;
        let digests = digests?;
        provenance::check(self.plan, |source, file| digests[source][file].clone())?;
        let report = Report {
            bytes_read: self.counters.read.load(Relaxed),
            bytes_hashed: self.counters.hashed.load(Relaxed),
            tensors: self.tensors(),
            bytes_written: delta_bytes.unwrap_or_else(|| self.plan.part.bytes(&self.plan.layout)),
            bytes_dense: delta_bytes.map(|_| self.plan.layout.total_bytes()),
            tensors_resumed: done.count,
            device: lanes.as_ref().map(|lanes| lanes.report()),
            sweeps: self.counters.sweeps.load(Relaxed),
            phases: Phases { write, ..phases },
            ..Report::of(self.plan)
        };
        Ok((digests, written, report))
    }

    /// How many tensors the part of the output has.
    fn tensors(&self) -> usize {
        let share = self.plan.part.shards(&self.plan.layout);
        (0..self.plan.steps.len())
            .filter(|&step| share.contains(&self.plan.layout.placement(step).shard))
            .count()
    }

    /// Takes units until there are none; the seconds spent computing. A run that measures has no sink.
    fn work(&self, queue: &Queue<'_>, sink: Option<writer::Sink<'_>>) -> f64 {
        let _stop = queue.stop_on_panic();
        let mut scratch = Scratch::default();
        let mut busy = Duration::ZERO;
        while let Some(task) = queue.claim(self.options.cancel) {
            let begin = Instant::now();
            let source = StepSource::new(self.plan, &self.maps, task.step, task.kept);
            let result = self.run_task(&task, &source, &mut scratch, sink.as_ref());
            busy += begin.elapsed();
            self.counters.read.fetch_add(task.bytes_read(self.plan), Relaxed);
            match result {
                Ok(true) => {
                    let passed = queue.complete(&task, &self.counters.sweeps).filter(|_| task.sweeps());
                    if let Some(passed) = passed {
                        source.release_passed(&passed);
                    }
                }
                Ok(false) => break, // The writer has failed and says why.
                Err(error) => queue.fail(error),
            }
        }
        busy.as_secs_f64()
    }

    /// Runs one unit; `false` when the writer is gone.
    fn run_task(
        &self,
        task: &Task,
        source: &StepSource<'_>,
        scratch: &mut Scratch,
        sink: Option<&writer::Sink<'_>>,
    ) -> Result<bool, MergeError> {
        let width = source.output_width();
        let elements = task.elements();
        let length = (elements.end - elements.start) as usize * width;
        if task.sweeps() {
            source.prefetch(&task.reads(self.plan), &self.ahead_of(task));
        }
        match &task.kind {
            TaskKind::Compute(wave) if !task.writes() => {
                source.run(wave, task.unit(), scratch, &mut []).map(|()| true)
            }
            kind => {
                let Some((sink, mut tile)) = sink.and_then(|sink| Some((sink, sink.buffer(length)?))) else {
                    return Ok(false);
                };
                match kind {
                    TaskKind::Compute(wave) => source.run(wave, task.unit(), scratch, &mut tile)?,
                    TaskKind::Copy => source.copy(elements.clone(), &mut tile)?,
                }
                let is_taken = sink.write(task.step, elements.start * width as u64, tile);
                Ok(is_taken && self.write_scales(task, sink))
            }
        }
    }

    /// Writes the scales of the rows that begin in a unit, where the step has some; `false` when the writer is gone.
    fn write_scales(&self, task: &Task, sink: &writer::Sink<'_>) -> bool {
        let TaskKind::Compute(wave) = &task.kind else { return true };
        let scales = wave.scales(task.unit()).filter(|(_, scales)| !scales.is_empty());
        let Some(((first, scales), step)) = scales.zip(self.plan.partners[task.step]) else { return true };
        // Only now, with the unit's tile handed over: a thread never holds two buffers.
        let Some(mut tile) = sink.buffer(scales.len() * size_of::<f32>()) else { return false };
        for (raw, &scale) in tile.as_chunks_mut().0.iter_mut().zip(scales) {
            *raw = (scale as f32).to_le_bytes();
        }
        sink.write(step, first * size_of::<f32>() as u64, tile)
    }

    /// The elements that this thread is likely to need after the unit.
    fn ahead_of(&self, task: &Task) -> std::ops::Range<u64> {
        let all = self.plan.steps[task.step].elements();
        let work = &self.plan.work;
        let start = all.min(task.elements().start + work.threads as u64 * work.tile);
        start..all.min(start + work.tile)
    }

    /// The digest of every file of every source; of a part of the output, those of a part of the files.
    fn hash(&self, queue: &Queue<'_>) -> Result<Digests, MergeError> {
        let stopped = || queue.is_stopped() || self.options.cancel.load(Relaxed);
        let mut digests = Vec::new();
        let mut number = 0;
        for source in &self.plan.sources {
            let mut of_source = Vec::new();
            for file in source.checkpoint.files() {
                number += 1;
                if !is_hashed_by(self.plan.part, number) {
                    of_source.push(None);
                    continue;
                }
                if stopped() {
                    return Err(MergeError::Interrupted);
                }
                let mut count = |bytes| {
                    self.counters.hashed.fetch_add(bytes, Relaxed);
                    if stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                };
                of_source.push(Some(self.options.digests.sha256(&file.path, &mut count)?));
            }
            digests.push(of_source);
        }
        Ok(digests)
    }

    /// Tells how far the run is, once at its beginning and then until all units have run and all inputs are hashed, or it is stopped.
    fn report_progress(&self, queue: &Queue<'_>, is_hashed: impl Fn() -> bool) {
        self.report();
        loop {
            let is_over = queue.wait(Duration::from_millis(100), self.options.cancel);
            if is_over && (is_hashed() || queue.is_stopped() || self.options.cancel.load(Relaxed)) {
                break;
            }
            if is_over {
                std::thread::sleep(Duration::from_millis(20));
            }
            self.report();
        }
    }

    fn report(&self) {
        let read = self.counters.read.load(Relaxed);
        (self.options.on_progress)(Progress {
            bytes_read: read,
            bytes_to_read: self.counters.to_read.max(read),
            bytes_hashed: self.counters.hashed.load(Relaxed),
            bytes_to_hash: self.counters.to_hash,
        });
    }
}
