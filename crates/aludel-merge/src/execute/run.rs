//! Runs the threads of a merge: those that compute, those that read ahead of them, and those that write.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use aludel_checkpoint::{WeightMap, WrittenTensor};
use aludel_kernels::cpu::Scratch;

use super::ahead::Wanted;
use super::card::Digests;
use super::delta::Coder;
use super::device::Device;
use super::queue::Queue;
use super::reader::StepSource;
use super::share::Share;
use super::task::{Task, UnitKind, UnitTask};
use super::turns::Turns;
use super::windows::Windows;
use super::writer::{self, Sink, Span, Writer};
use super::{Counters, Done, ExecuteOptions, MergeError, Phases, Progress, Report, provenance};
use crate::derive::{Passed, Weights};
use crate::plan::Plan;

/// A plan being carried out.
pub(super) struct Run<'a> {
    pub plan: &'a Plan,
    pub maps: &'a [WeightMap],
    pub options: &'a ExecuteOptions<'a>,
    pub counters: Counters,
    pub turns: Turns,
    /// Whether what was read for the last time leaves the page cache.
    pub leaves_cache: bool,
    /// Computes what it can.
    pub device: Option<Device>,
    /// Whether the inputs stay mapped for runs that follow.
    pub stays: bool,
}

/// Maps all inputs of a plan, and reads none.
pub(super) fn map_inputs(plan: &Plan, options: &ExecuteOptions<'_>) -> Result<Vec<WeightMap>, MergeError> {
    let open = |source: &crate::plan::Source| WeightMap::open(&source.checkpoint);
    let maps = plan.sources.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    if !options.pipeline.overlaps {
        maps.iter().for_each(WeightMap::read_as_asked);
    }
    Ok(maps)
}

impl<'a> Run<'a> {
    /// Of a plan whose inputs are mapped.
    pub(super) fn new(
        plan: &'a Plan,
        options: &'a ExecuteOptions<'a>,
        maps: &'a [WeightMap],
        counters: Counters,
    ) -> Self {
        let turns = Turns::new(options.pipeline.overlaps);
        Self { plan, maps, options, counters, turns, leaves_cache: false, device: None, stays: false }
    }

    /// Computes and writes all weights that are not done, and hashes all inputs.
    pub(super) fn merge(
        &self,
        done: &Done,
        share: &Share,
        writer: Writer<'_>,
        start: Instant,
    ) -> Result<(Digests, Vec<WrittenTensor>, Report), MergeError> {
        let work = &self.plan.work;
        let elsewhere = share.and_done(self.plan, &done.steps);
        let queue = Queue::new(self.plan, &elsewhere, self.options.pipeline.groups);
        let lanes = self.device.as_ref().map(|device| device.lanes(share, self.options.pipeline.groups));
        let mut digests = Ok(Vec::new());
        let mut written = Ok(());
        let weights = Instant::now();
        let mut computing = 0.0;
        std::thread::scope(|scope| {
            let coder = Coder::of(self.plan, self.weights());
            let overlaps = self.options.pipeline.overlaps;
            let (outlet, sink) = writer.ends(coder, overlaps);
            let of_lanes = writer.sink_of_lanes(&outlet, &sink);
            // One for each file at the most: who writes to a file waits for who else writes to it.
            let writers = work.writers().min(self.plan.layout.shards().len().max(1));
            let count = if overlaps { writers } else { 0 };
            let writing: Vec<_> = (0..count)
                .map(|_| {
                    let outlet = outlet.clone();
                    let (queue, writer) = (&queue, &writer);
                    scope.spawn(move || {
                        let _stop = queue.stop_on_panic();
                        writer.run(&outlet, || queue.stop())
                    })
                })
                .collect();
            drop(outlet);
            let hashing = scope.spawn(|| self.hash(&queue));
            let moving: Vec<_> = lanes
                .iter()
                .flat_map(|lanes| (0..lanes.count(work.threads)).map(move |_| lanes))
                .map(|lanes| {
                    let (sink, queue) = (of_lanes.clone(), &queue);
                    scope.spawn(move || lanes.work(self, queue, &sink))
                })
                .collect();
            let is_hashed = || hashing.is_finished() && moving.iter().all(|lane| lane.is_finished());
            self.read_ahead(scope, &queue);
            let workers: Vec<_> = (0..work.threads)
                .map(|_| {
                    let sink = sink.clone();
                    scope.spawn(|| self.work(&queue, Some(sink)))
                })
                .collect();
            drop((sink, of_lanes));
            self.report_progress(&queue, is_hashed);
            for worker in workers {
                computing += joined(worker);
            }
            moving.into_iter().for_each(joined);
            written = writing.into_iter().map(joined).fold(Ok(()), Result::and);
            digests = joined(hashing);
        });
        let phases = Phases {
            prepare: (weights - start).as_secs_f64(),
            weights: weights.elapsed().as_secs_f64(),
            compute: computing,
            ..Phases::default()
        };
        // The cause before its consequences: a failed unit first, then the writers, then the hashes.
        queue.into_figures()?;
        if self.options.cancel.load(Relaxed) {
            return Err(MergeError::Interrupted);
        }
        written?;
        let writer::Done { seconds: write, tensors: written, delta_bytes } = writer.finish()?;
        let digests = digests?;
        provenance::check(self.plan, |source, file| digests[source][file].clone())?;
        let bytes_written = delta_bytes.unwrap_or_else(|| self.plan.part.bytes(&self.plan.layout));
        let report = Report {
            bytes_read: self.counters.read.load(Relaxed),
            bytes_hashed: self.counters.hashed.load(Relaxed),
            // What is written is copied once, by the system.
            bytes_copied: self.counters.copied.load(Relaxed) + bytes_written,
            tensors: self.tensors(),
            bytes_written,
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

    /// Starts the threads that read ahead; they end with the queue.
    pub(super) fn read_ahead<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>, queue: &'s Queue<'_>) {
        if self.options.pipeline.overlaps && self.plan.work.ahead > 0 && !self.stays {
            for _ in 0..self.plan.work.readers() {
                scope.spawn(move || self.read(queue));
            }
        }
    }

    /// Reads what will be computed on. One window is asked for before the one in hand is waited for, so that the disk always has one to
    /// go on with.
    fn read(&self, queue: &Queue<'_>) {
        let mut in_hand: Option<(Vec<Wanted>, Windows)> = None;
        while let Some(wanted) = queue.claim_ahead(self.options.cancel) {
            let next = self.windows(&wanted);
            next.request(self.maps);
            let Some((wanted, windows)) = in_hand.replace((wanted, next)) else { continue };
            windows.load(self.maps);
            // Who computes may have overtaken: what it gave back meanwhile is mapped again by now.
            if queue.has_passed(&wanted) {
                windows.release(self.maps);
            }
        }
    }

    fn windows(&self, wanted: &[Wanted]) -> Windows {
        let mut windows = Windows::default();
        for Wanted { step, inputs, elements } in wanted {
            self.source(*step, 0).locate(inputs, elements, &mut windows);
        }
        windows.joined()
    }

    /// The inputs of a step, of which so many elements stay mapped.
    pub(super) fn source(&self, step: usize, kept: u64) -> StepSource<'_> {
        let kept = if self.stays { u64::MAX } else { kept };
        StepSource::new(self.plan, self.weights(), step, kept, &self.counters.copied)
    }

    /// The inputs' weights, read until the run is stopped.
    pub(super) fn weights(&self) -> Weights<'_> {
        Weights::new(&self.plan.sources, self.maps).until(self.options.cancel)
    }

    /// Does tasks until there are none; the seconds spent on them. A run that measures has no sink.
    pub(super) fn work(&self, queue: &Queue<'_>, sink: Option<Sink<'_>>) -> f64 {
        let _stop = queue.stop_on_panic();
        let mut scratch = Scratch::default();
        let mut busy = Duration::ZERO;
        while let Some(task) = queue.claim(self.options.cancel) {
            let begin = Instant::now();
            let result = match task {
                Task::Unit(unit) => self.unit(&unit, queue, &mut scratch, sink.as_ref()),
                Task::Group(steps) => self.group(steps, queue, &mut scratch, sink.as_ref()),
            };
            busy += begin.elapsed();
            match result {
                Ok(true) => {}
                Ok(false) => break, // The writers have failed and say why.
                Err(error) => queue.fail(error),
            }
        }
        busy.as_secs_f64()
    }

    /// Runs one unit; `false` when the writers are gone.
    fn unit(
        &self,
        task: &UnitTask,
        queue: &Queue<'_>,
        scratch: &mut Scratch,
        sink: Option<&Sink<'_>>,
    ) -> Result<bool, MergeError> {
        let source = self.source(task.step, task.kept);
        if !self.options.pipeline.overlaps && task.sweeps() {
            let (step, elements) = (task.step, task.elements.clone());
            let windows = self.windows(&[Wanted { step, inputs: task.reads(self.plan), elements }]);
            self.turns.transfer(|| windows.fetch(self.maps));
        }
        if !self.compute(task, &source, scratch, sink)? {
            return Ok(false);
        }
        self.counters.read.fetch_add(task.bytes_read(self.plan), Relaxed);
        let passed = queue.complete(task, &self.counters.sweeps).filter(|_| task.sweeps() && !self.stays);
        if let Some(passed) = passed {
            source.release_passed(&passed);
            if self.leaves_cache && task.writes() {
                self.leave_cache(&source, &passed);
            }
        }
        Ok(true)
    }

    fn compute(
        &self,
        task: &UnitTask,
        source: &StepSource<'_>,
        scratch: &mut Scratch,
        sink: Option<&Sink<'_>>,
    ) -> Result<bool, MergeError> {
        let width = source.output_width();
        let length = (task.elements.end - task.elements.start) as usize * width;
        match &task.kind {
            UnitKind::Compute(wave) if !task.writes() => {
                self.turns.compute(|| source.run(wave, task.unit, scratch, &mut []))?;
                Ok(true)
            }
            kind => {
                let Some((sink, mut tile)) = sink.and_then(|sink| Some((sink, sink.buffer(length)?))) else {
                    return Ok(false);
                };
                self.turns.compute(|| match kind {
                    UnitKind::Compute(wave) => source.run(wave, task.unit, scratch, &mut tile),
                    UnitKind::Copy => source.copy(task.elements.clone(), &mut tile),
                })?;
                let span = Span { tensor: task.step, offset: task.elements.start * width as u64, length };
                Ok(self.turns.transfer(|| sink.write(&[span], tile))? && self.write_scales(task, sink)?)
            }
        }
    }

    /// Writes the scales of the rows that begin in a unit, where the step has some; `false` when the writers are gone.
    fn write_scales(&self, task: &UnitTask, sink: &Sink<'_>) -> Result<bool, MergeError> {
        let UnitKind::Compute(wave) = &task.kind else { return Ok(true) };
        let scales = wave.scales(task.unit).filter(|(_, scales)| !scales.is_empty());
        let Some(((first, scales), tensor)) = scales.zip(self.plan.partners[task.step]) else {
            return Ok(true);
        };
        // Only now, with the unit's tile handed over: a thread never holds two buffers.
        let length = scales.len() * size_of::<f32>();
        let Some(mut tile) = sink.buffer(length) else { return Ok(false) };
        for (raw, &scale) in tile.as_chunks_mut().0.iter_mut().zip(scales) {
            *raw = (scale as f32).to_le_bytes();
        }
        let span = Span { tensor, offset: first * size_of::<f32>() as u64, length };
        self.turns.transfer(|| sink.write(&[span], tile))
    }

    /// Drops what the last sweep has passed from the page cache. The pages of the last piece before it may have been mapped until now.
    fn leave_cache(&self, source: &StepSource<'_>, passed: &Passed) {
        let mut windows = Windows::default();
        let start = passed.elements.start.saturating_sub(WeightMap::RELEASED_AT_ONCE);
        source.locate_all(&(start..passed.elements.end), &mut windows);
        windows.leave_cache(self.maps);
    }

    /// Tells how far the run is, once at its beginning and then until all units have run and all inputs are hashed, or it is stopped.
    pub(super) fn report_progress(&self, queue: &Queue<'_>, is_hashed: impl Fn() -> bool) {
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

    pub(super) fn report(&self) {
        let read = self.counters.read.load(Relaxed);
        (self.options.on_progress)(Progress {
            bytes_read: read,
            bytes_to_read: self.counters.to_read.max(read),
            bytes_hashed: self.counters.hashed.load(Relaxed),
            bytes_to_hash: self.counters.to_hash,
        });
    }
}

/// What a thread has returned; its panic goes on here.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
