//! Hands out units of work so that all threads are busy across the ends of passes and tensors.
//!
//! In: a plan. Out: [`Task`]s. A step's waves follow one another; while the last units of a wave run, other threads go on
//! with the next step. So few steps are under way at once that memory does not grow. The order in which units run never
//! changes what they compute.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aludel_kernels::cpu::{Evaluation, Geometry, Job, Wave, WaveKind, level};
use aludel_kernels::element::{Element, Encoding};

use super::MergeError;
use super::kept::{Kept, Room};
use crate::derive::Passed;
use crate::plan::{Action, Plan, Step, encoding_of};
use crate::streams::stream_key;

/// Steps under way besides one for each thread.
const LOOK_AHEAD: usize = 1;

/// A unit of a step.
#[derive(Debug)]
pub(super) struct Task {
    pub step: usize,
    pub kind: TaskKind,
    unit: usize,
    elements: Range<u64>,
    /// Elements at the start of the step's tensors whose pages stay mapped for the next pass.
    pub kept: u64,
}

#[derive(Debug)]
pub(super) enum TaskKind {
    Compute(Arc<Wave>),
    Copy,
}

impl Task {
    /// The elements that the unit covers.
    pub(super) fn elements(&self) -> Range<u64> {
        self.elements.clone()
    }

    /// The unit's position in its wave.
    pub(super) const fn unit(&self) -> usize {
        self.unit
    }

    /// Whether the unit belongs to a sweep over all elements.
    pub(super) fn sweeps(&self) -> bool {
        match &self.kind {
            TaskKind::Compute(wave) => matches!(wave.kind(), WaveKind::Reduce | WaveKind::Write),
            TaskKind::Copy => true,
        }
    }

    fn is_whole_sample(&self) -> bool {
        matches!(&self.kind, TaskKind::Compute(wave) if wave.kind() == WaveKind::Sample && wave.samples_all())
    }

    /// The inputs that the unit reads.
    pub(super) fn reads(&self, plan: &Plan) -> Vec<u16> {
        match &self.kind {
            TaskKind::Compute(wave) => wave.reads().to_vec(),
            TaskKind::Copy => (0..plan.steps[self.step].inputs.len() as u16).collect(),
        }
    }

    /// Whether the unit produces a tile of the output.
    pub(super) fn writes(&self) -> bool {
        match &self.kind {
            TaskKind::Compute(wave) => wave.kind() == WaveKind::Write,
            TaskKind::Copy => true,
        }
    }

    /// Bytes of the inputs that count as read when the unit has run: those of a sweep, and of a sample that took in the whole
    /// tensor and so stands for one.
    pub(super) fn bytes_read(&self, plan: &Plan) -> u64 {
        if !self.sweeps() && !self.is_whole_sample() {
            return 0;
        }
        let (count, widths) = (self.elements.end - self.elements.start, &plan.widths[self.step]);
        count * self.reads(plan).into_iter().map(|input| widths[usize::from(input)]).sum::<u64>()
    }
}

/// The work of a plan, shared by all threads.
pub(super) struct Queue<'p> {
    plan: &'p Plan,
    /// Steps that need no work; none where it is empty.
    done: &'p [bool],
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next_step: usize,
    active: VecDeque<Active>,
    room: Room,
    stopped: bool,
    error: Option<MergeError>,
    /// What has been measured, by step.
    figures: Vec<(usize, Vec<f64>)>,
}

struct Active {
    step: usize,
    work: Work,
    units: usize,
    next: usize,
    running: Vec<usize>,
    /// Elements that all have been passed.
    passed: u64,
    kept: Kept,
}

impl Active {
    fn new(step: usize, work: Work, units: usize) -> Self {
        Self { step, work, units, next: 0, running: Vec::new(), passed: 0, kept: Kept::default() }
    }

    /// Takes note that a unit has run; what the wave has passed by that.
    fn finish(&mut self, unit: usize, tile: u64, elements: u64) -> Passed {
        self.running.retain(|&running| running != unit);
        let first = self.running.iter().copied().min().unwrap_or(self.next);
        let end = (first as u64 * tile).min(elements).max(self.passed);
        let from = std::mem::replace(&mut self.passed, end);
        Passed { elements: from..end, is_end: end == elements }
    }

    /// Whether the pages that a sweep has passed stay mapped for the next one.
    fn keep(&mut self, passed: &Range<u64>, width: u64, room: &mut Room, limit: u64) -> bool {
        match &self.work {
            Work::Compute { wave, .. } if wave.kind() == WaveKind::Reduce => {
                self.kept.pass(passed, width, room, limit)
            }
            Work::Compute { wave, .. } if wave.kind() == WaveKind::Write => {
                self.kept.leave(passed, width, room);
                false
            }
            _ => false,
        }
    }

    /// Units that have begun and are not passed: the running ones, and those that wait for a slower one before them.
    fn open_units(&self) -> usize {
        self.next - self.running.iter().copied().min().unwrap_or(self.next)
    }

    fn is_done(&self) -> bool {
        self.running.is_empty() && self.next == self.units
    }
}

enum Work {
    Compute {
        evaluation: Box<Evaluation>,
        wave: Arc<Wave>,
    },
    /// Between two waves, while a thread prepares the next one.
    Advancing,
    Copy,
}

impl<'p> Queue<'p> {
    /// The steps of a plan, without those that are `done`: one for each step, or none.
    pub(super) fn new(plan: &'p Plan, done: &'p [bool]) -> Self {
        let queue = Self { plan, done, state: Mutex::default(), changed: Condvar::new() };
        queue.lock().next_step = queue.undone(0);
        queue
    }

    /// The first step from this one on that is not done.
    fn undone(&self, step: usize) -> usize {
        let is_done = |step: &usize| self.done.get(*step).copied().unwrap_or(false);
        (step..self.plan.steps.len()).find(|step| !is_done(step)).unwrap_or(self.plan.steps.len())
    }

    /// The next unit; waits for one. `None` when there are no more or the run is stopped.
    pub(super) fn claim(&self, cancel: &AtomicBool) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.stopped || cancel.load(Relaxed) {
                return None;
            }
            if let Some(task) = self.next_of_active(&mut state) {
                return Some(task);
            }
            if state.next_step < self.plan.steps.len()
                && state.active.len() < self.plan.work.threads + LOOK_AHEAD
            {
                let step = state.next_step;
                state.next_step = self.undone(step + 1);
                let active = self.begin(step);
                state.active.push_back(active);
                self.skip_empty(&mut state);
            } else if state.active.is_empty() && state.next_step == self.plan.steps.len() {
                self.changed.notify_all();
                return None;
            } else {
                let timeout = Duration::from_millis(50); // The cancel flag wakes nobody.
                state = self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Says that a unit has run; what its wave has passed by that and nothing will read soon. The thread that completes a
    /// wave prepares the next one, the queue being free meanwhile.
    pub(super) fn complete(&self, task: &Task, sweeps: &AtomicU64) -> Option<Passed> {
        let mut state = self.lock();
        let State { active, room, .. } = &mut *state;
        let active = active.iter_mut().find(|active| active.step == task.step)?;
        let passed = active.finish(task.unit, self.plan.work.tile, self.plan.steps[task.step].elements());
        let width = self.plan.input_width(task.step);
        let is_kept = active.keep(&passed.elements, width, room, self.plan.work.kept);
        let kept = active.kept;
        let passed = (!is_kept).then_some(passed);
        if !active.is_done() {
            self.changed.notify_all();
            return passed;
        }
        match std::mem::replace(&mut active.work, Work::Advancing) {
            Work::Compute { mut evaluation, wave } => {
                drop(state);
                let next = evaluation.advance(&wave);
                let mut state = self.lock();
                match next {
                    Some(wave) => {
                        let units = wave.units();
                        if let Some(active) = state.active.iter_mut().find(|active| active.step == task.step)
                        {
                            let work = Work::Compute { evaluation, wave };
                            *active = Active { kept, ..Active::new(task.step, work, units) };
                        }
                    }
                    None => {
                        sweeps.fetch_add(evaluation.sweeps() as u64, Relaxed);
                        state.figures.push((task.step, evaluation.figures()));
                        state.active.retain(|active| active.step != task.step);
                    }
                }
            }
            Work::Advancing | Work::Copy => {
                sweeps.fetch_add(1, Relaxed);
                state.active.retain(|active| active.step != task.step);
            }
        }
        self.changed.notify_all();
        passed
    }

    /// Ends the run with an error; the first one counts.
    pub(super) fn fail(&self, error: MergeError) {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        state.stopped = true;
        self.changed.notify_all();
    }

    /// Ends the run for a reason that is told elsewhere.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Waits for so long or until the work has ended; whether it has.
    pub(super) fn wait(&self, time: Duration, cancel: &AtomicBool) -> bool {
        let state = self.lock();
        let is_over = |state: &State| {
            state.stopped
                || cancel.load(Relaxed)
                || (state.active.is_empty() && state.next_step == self.plan.steps.len())
        };
        if is_over(&state) {
            return true;
        }
        let deadline = std::time::Instant::now() + time;
        let mut state = state;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if is_over(&state) {
                return true;
            }
        }
    }

    /// A guard that ends the run if its thread panics, so that the others do not wait for it.
    pub(super) fn stop_on_panic(&self) -> impl Drop + use<'_, 'p> {
        StopOnPanic { queue: self }
    }

    /// What each step has measured, or what went wrong. A step that writes has measured nothing, and so has one without
    /// elements.
    pub(super) fn into_figures(self) -> Result<Vec<Vec<f64>>, MergeError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.error {
            return Err(error);
        }
        let mut figures = vec![Vec::new(); self.plan.steps.len()];
        for (step, measured) in state.figures {
            figures[step] = measured;
        }
        Ok(figures)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_of_active(&self, state: &mut State) -> Option<Task> {
        // So few units are open, over all steps under way, that what has been read and not yet passed stays small.
        if state.active.iter().map(Active::open_units).sum::<usize>() >= self.plan.work.window() {
            return None;
        }
        let active = state.active.iter_mut().find(|active| active.next < active.units)?;
        let unit = active.next;
        active.next += 1;
        active.running.push(unit);
        let (step, kept) = (active.step, active.kept.elements());
        Some(match &active.work {
            Work::Compute { wave, .. } => {
                let elements = wave.unit(unit).elements;
                Task { step, kind: TaskKind::Compute(Arc::clone(wave)), unit, elements, kept }
            }
            Work::Copy | Work::Advancing => {
                let tile = self.plan.work.tile;
                let start = unit as u64 * tile;
                let end = self.plan.steps[step].elements().min(start + tile);
                Task { step, kind: TaskKind::Copy, unit, elements: start..end, kept }
            }
        })
    }

    /// A tensor without elements has nothing to do.
    fn skip_empty(&self, state: &mut State) {
        state.active.retain(|active| active.units > 0);
        self.changed.notify_all();
    }

    fn begin(&self, index: usize) -> Active {
        let step = &self.plan.steps[index];
        let (work, units) = match step.action {
            Action::Copy => (Work::Copy, step.elements().div_ceil(self.plan.work.tile) as usize),
            Action::Scales => (Work::Copy, 0),
            Action::Compute { formula, columns } => {
                let (evaluation, wave) = Evaluation::start(job(self.plan, step, formula, columns));
                let units = if step.elements() == 0 { 0 } else { wave.units() };
                (Work::Compute { evaluation: Box::new(evaluation), wave }, units)
            }
        };
        Active::new(index, work, units)
    }
}

/// What is computed of a step.
pub(super) fn job(plan: &Plan, step: &Step, formula: usize, columns: u64) -> Job {
    let formula = Arc::clone(&plan.formulas[formula].formula);
    Job {
        streams: (0..formula.streams() as u32)
            .map(|stream| stream_key(plan.seed, &step.tensor, stream))
            .collect(),
        geometry: Geometry { elements: step.elements(), columns },
        output: encoding_of(step.dtype).unwrap_or(Encoding::Plain(Element::F32)),
        tile: plan.work.tile,
        allow_non_finite: plan.allow_non_finite,
        level: level(),
        formula,
    }
}

struct StopOnPanic<'q, 'p> {
    queue: &'q Queue<'p>,
}

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.queue.stop();
        }
    }
}
