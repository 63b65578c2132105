//! Carries out a plan: reads tiles, computes, writes, and leaves a whole model folder or none.
//!
//! In: a [`Plan`] and a target folder. Out: the folder and a [`Report`]. Threads take tasks from one `queue`; others read `ahead` of them what
//! they will compute on, and put encoded tiles in their places; inputs are hashed beside the work. Memory is the plan's: nothing here
//! grows with the models. Nothing is decided here either.

mod active;
mod ahead;
mod align;
mod card;
mod delta;
mod device;
mod error;
mod finished;
mod group;
mod hashing;
mod identity;
mod in_memory;
mod join;
mod kept;
mod lanes;
mod measure;
mod memory;
mod on_device;
mod part;
mod passes;
mod provenance;
mod queue;
mod reader;
mod report;

mod run;
mod share;
mod stand_in;
mod statistics;
mod task;
mod turns;
mod windows;
mod writer;

pub use crate::derive::Aligned;
pub use device::{Device, Opening};
pub use error::MergeError;
pub use finished::{forget_finished, is_finished, mark_begun, mark_finished};
pub use in_memory::{Merged, Place, Resident, Tensor, write_companions};
pub use join::{JoinOptions, Joined, join, parts_of};
pub(crate) use measure::measure;
pub use on_device::DeviceTensor;
pub use report::{DeviceReport, Phases, Report};
pub(crate) use stand_in::StandIn;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use aludel_checkpoint::{Config, DigestCache, OutputFolder, WrittenTensor, resident};
use aludel_delta::{DATA_FILE, DeltaWriter, INDEX_FILE};

use crate::derive::Alignment;
use crate::plan::{Part, Plan, alignments};
use crate::problem::Problem;
use card::Card;
use hashing::is_hashed_by;
use part::PartRecord;
use run::{Run, map_inputs};
use share::Share;
use writer::{Output, Writer};

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
    /// A device that computes what it can; the rest and everything without one is the CPU's. It is waited for once the output's files are made.
    pub device: Option<Opening>,
    /// What goes on at once.
    pub pipeline: Pipeline,
}

/// Nothing gives way, nothing is remembered or told, and nobody stops it.
impl Default for ExecuteOptions<'_> {
    fn default() -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self {
            replace: false,
            digests: DigestCache::disabled(),
            cancel: &NEVER,
            on_progress: &|_| {},
            sync: true,
            resume: false,
            device: None,
            pipeline: Pipeline::default(),
        }
    }
}

/// What goes on at once in a merge. All of it is for speed; to do without is for measuring what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// Whether reading, computing and writing overlap, rather than take turns.
    pub overlaps: bool,
    /// Whether small tensors are merged several at once, by programs that are compiled once, rather than one at a time.
    pub groups: bool,
    /// Whether what was read for the last time and what was written leave the page cache; where the models are too large for it when `None`.
    pub leaves_cache: Option<bool>,
}

impl Default for Pipeline {
    fn default() -> Self {
        Self { overlaps: true, groups: true, leaves_cache: None }
    }
}

impl Pipeline {
    /// Whether a plan's files leave the page cache: what it reads and writes would take more than half of what there is to have.
    fn leaves_cache(self, plan: &Plan) -> bool {
        let read: u64 = plan.sources.iter().map(|source| source.bytes).sum();
        let is_large =
            || resident::available().is_some_and(|free| read + plan.layout.total_bytes() > free / 2);
        self.leaves_cache.unwrap_or_else(is_large)
    }
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
    // A device that is refused already leaves no trace, and never takes what an earlier run has left.
    if let Some(opening) = options.device.as_ref().filter(|opening| options.resume || opening.is_over()) {
        opening.device()?;
    }
    let (mut folder, written) = if options.resume {
        OutputFolder::resume(target, options.replace, &identity, &[DATA_FILE, INDEX_FILE])?
    } else {
        (OutputFolder::create(target, options.replace)?, Vec::new())
    };
    if !options.sync {
        folder.skip_sync();
    }
    let leaves_cache = options.pipeline.leaves_cache(plan);
    let (output, written) = match &plan.delta {
        Some(_) => {
            let (writer, written) = DeltaWriter::resume(folder.path(), delta::tensors(plan), &written)?;
            let journal = folder.journal(&identity, &written)?;
            (Output::Delta(Mutex::new((writer, journal))), written)
        }
        None => {
            let share = plan.part.shards(&plan.layout);
            let (mut shards, written) =
                folder.shards_again(&plan.layout, share, &written, &|step| plan.partners[step])?;
            if leaves_cache {
                shards.leave_cache();
            }
            if options.device.is_some() && plan.work.threads >= SIDE_BY_SIDE {
                shards.write_side_by_side();
            }
            let journal = folder.journal(&identity, &written)?;
            (Output::Shards(shards, Mutex::new(journal)), written)
        }
    };
    let done = Done::of(plan, &written);
    let device = options.device.as_ref().map_or(Ok(None), Opening::device)?;
    let share = match &device {
        Some(device) => device.share(plan, &done.steps)?,
        None => Share::default(),
    };
    let mut counters = Counters::new(plan, options, &done);
    counters.to_read = counters.to_read.saturating_sub(share.bytes_spared(plan));
    let maps = map_inputs(plan, options)?;
    let run = Run { leaves_cache, device, ..Run::new(plan, options, &maps, counters) };
    let writer = Writer::new(plan, output, written);
    let merged = run.align().and_then(|aligned| {
        let (digests, written, merged) = run.merge(&done, &share, writer, start)?;
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

/// Lanes of a device from which on all of them write to a RAM disk, side by side. Writing bounds them; who computes on a CPU has other things to do.
const SIDE_BY_SIDE: usize = 8;

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
    /// Bytes of inputs that were copied as they are.
    copied: AtomicU64,
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
        let [read, copied, sweeps, hashed] = Default::default();
        Self {
            read,
            copied,
            to_read: plan.work.bytes_read.saturating_sub(done.bytes),
            sweeps,
            hashed,
            to_hash,
        }
    }
}
