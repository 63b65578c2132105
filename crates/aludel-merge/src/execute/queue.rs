//! Hands out units of work so that all threads are busy across the ends of passes and tensors.
//!
//! In: a plan. Out: [`Task`]s, and what is read before they are begun. A step's waves follow one another; while the last units of a wave
//! run, other threads go on with the next step. So few steps are under way at once that memory does not grow. Small steps are handed out
//! whole, several at once. The order in which tasks run never changes what they compute.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aludel_kernels::cpu::{Compiled, Evaluation, Job, level};
use aludel_kernels::element::{Element, Encoding};
use aludel_kernels::formula::Formula;
use aludel_kernels::random::StreamKey;

use super::MergeError;
use super::active::{Active, Work};
use super::ahead::{Ahead, Wanted};
use super::kept::Room;
use super::statistics::Statistics;
use super::task::{Task, UnitTask, sweeps};
use crate::derive::Passed;
use crate::methods::RowLayout;
use crate::plan::{Action, Plan, Step, encoding_of};
use crate::streams::stream_key;

/// Steps under way besides one for each thread.
const LOOK_AHEAD: usize = 1;

/// The work of a plan, shared by all threads.
pub(super) struct Queue<'p> {
    plan: &'p Plan,
    /// Steps that need no work; none where it is empty.
    done: &'p [bool],
    /// Whether small steps are handed out together, and steps of one formula share what is compiled of it.
    has_groups: bool,
    /// The plan's formulas.
    compiled: Vec<Arc<Compiled>>,
    /// What merges before have found out of the same tensors, and what this one does.
    statistics: Option<&'p Statistics>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    next_step: usize,
    active: VecDeque<Active>,
    /// Groups that are running.
    groups: usize,
    ahead: Ahead,
    room: Room,
    stopped: bool,
    error: Option<MergeError>,
    /// What has been measured, by step.
    figures: Vec<(usize, Vec<f64>)>,
}

impl<'p> Queue<'p> {
    /// The steps of a plan, without those that are `done`: one for each step, or none.
    pub(super) fn new(plan: &'p Plan, done: &'p [bool], has_groups: bool) -> Self {
        let compiled = (0..plan.formulas.len()).map(|formula| compiled(plan, formula)).collect();
        let (state, changed) = Default::default();
        let queue = Self { plan, done, has_groups, compiled, statistics: None, state, changed };
        queue.lock().next_step = queue.undone(0);
        queue
    }

    /// The same steps, by what is known of their tensors already.
    pub(super) fn knowing(self, statistics: &'p Statistics) -> Self {
        Self { statistics: Some(statistics), ..self }
    }

    /// The first step from this one on that is not done.
    fn undone(&self, step: usize) -> usize {
        (step..self.plan.steps.len()).find(|&step| !self.is_done(step)).unwrap_or(self.plan.steps.len())
    }

    fn is_done(&self, step: usize) -> bool {
        self.done.get(step).copied().unwrap_or(false)
    }

    /// Whether a step is written together with another: a tensor and the scales of its rows lie apart.
    fn has_scales(&self, step: usize) -> bool {
        self.plan.partners.get(step).is_some_and(Option::is_some)
    }

    /// The steps from this one on that are small enough to be handed out together.
    fn group(&self, step: usize) -> Option<Range<usize>> {
        let shard = self.plan.shard(step);
        let mut elements = 0u64;
        let fits = |&next: &usize| {
            elements = elements.saturating_add(self.plan.steps[next].elements());
            elements <= self.plan.work.tile
                && !self.is_done(next)
                && self.plan.shard(next) == shard
                && !self.has_scales(next)
        };
        let count = (step..self.plan.steps.len()).take_while(fits).count();
        (self.has_groups && count > 0).then(|| step..step + count)
    }

    /// The next task; waits for one. `None` when there are no more or the run is stopped.
    pub(super) fn claim(&self, cancel: &AtomicBool) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.stopped || cancel.load(Relaxed) {
                return None;
            }
            // So few units are open, over all steps under way, that what has been read and not yet passed stays small.
            let open = state.groups + state.active.iter().map(Active::open_units).sum::<usize>();
            let has_room = open < self.plan.work.window();
            if let Some(unit) = has_room.then(|| self.next_of_active(&mut state)).flatten() {
                return Some(Task::Unit(unit));
            }
            let step = state.next_step;
            if step == self.plan.steps.len() && state.active.is_empty() {
                self.changed.notify_all();
                return None;
            }
            let group = if step < self.plan.steps.len() { self.group(step) } else { None };
            if let Some(group) = group.clone().filter(|_| has_room) {
                state.next_step = self.undone(group.end);
                state.groups += 1;
                state.ahead.begin_group(step);
                return Some(Task::Group(group));
            }
            if group.is_none()
                && step < self.plan.steps.len()
                && state.active.len() < self.plan.work.threads + LOOK_AHEAD
            {
                state.next_step = self.undone(step + 1);
                let mut active = self.begin(step);
                active.asked = state.ahead.begin_step(step, self.tiles(step));
                state.active.push_back(active);
                self.skip_empty(&mut state);
            } else {
                let timeout = Duration::from_millis(50); // The cancel flag wakes nobody.
                state = self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// What is to be read before anybody asks for it; waits until there is something. `None` when there is no more or the run is stopped.
    pub(super) fn claim_ahead(&self, cancel: &AtomicBool) -> Option<Vec<Wanted>> {
        let mut state = self.lock();
        loop {
            if state.stopped || cancel.load(Relaxed) {
                return None;
            }
            if state.next_step == self.plan.steps.len() && state.active.is_empty() {
                return None;
            }
            let State { active, ahead, next_step, .. } = &mut *state;
            let depth = self.plan.work.ahead;
            let wanted = ahead.of_current(active, depth, self.plan).or_else(|| {
                ahead.of_later(
                    *next_step,
                    depth,
                    self.plan,
                    |step| self.group(step),
                    |step| self.undone(step),
                )
            });
            if wanted.is_some() {
                return wanted;
            }
            let timeout = Duration::from_millis(50);
            state = self.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether none of these is computed on any more, in this sweep over their tensors, and their pages do not stay for another.
    pub(super) fn has_passed(&self, wanted: &[Wanted]) -> bool {
        let state = self.lock();
        wanted.iter().all(|Wanted { step, elements, .. }| {
            match state.active.iter().find(|active| active.step == *step) {
                Some(active) => active.has_passed(elements.end),
                None => *step < state.next_step,
            }
        })
    }

    /// Says that a group has run, and what its steps have measured.
    pub(super) fn complete_group(&self, figures: Vec<(usize, Vec<f64>)>) {
        let mut state = self.lock();
        state.groups -= 1;
        state.figures.extend(figures);
        self.changed.notify_all();
    }

    /// Says that a unit has run; what its wave has passed by that and nothing will read soon. The thread that completes a
    /// wave prepares the next one, the queue being free meanwhile.
    pub(super) fn complete(&self, task: &UnitTask, swept: &AtomicU64) -> Option<Passed> {
        let mut state = self.lock();
        let State { active, room, .. } = &mut *state;
        let active = active.iter_mut().find(|active| active.step == task.step)?;
        let passed = active.finish(task.unit, self.plan.work.tile, self.plan.steps[task.step].elements());
        let width = self.plan.input_width(task.step);
        let is_kept = active.keep(&passed.elements, width, room, self.plan.work.kept);
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
                    Some(next) => {
                        if let Some(active) = state.active.iter_mut().find(|active| active.step == task.step)
                        {
                            active.begin_wave(evaluation, next, sweeps(&wave));
                        }
                    }
                    None => {
                        swept.fetch_add(evaluation.sweeps() as u64, Relaxed);
                        self.remember(task.step, &evaluation);
                        state.figures.push((task.step, evaluation.figures()));
                        state.active.retain(|active| active.step != task.step);
                    }
                }
            }
            Work::Advancing | Work::Copy => {
                swept.fetch_add(1, Relaxed);
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
                || (state.active.is_empty() && state.groups == 0 && state.next_step == self.plan.steps.len())
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

    fn next_of_active(&self, state: &mut State) -> Option<UnitTask> {
        let State { active, ahead, .. } = state;
        let active = active.iter_mut().find(|active| active.next < active.units)?;
        let (task, was_asked) = active.claim(self.plan.work.tile, self.plan.steps[active.step].elements())?;
        if was_asked {
            ahead.begin_unit();
        }
        Some(task)
    }

    /// The units of a sweep over a step's tensor; none where it is written with another.
    fn tiles(&self, step: usize) -> usize {
        if self.plan.steps[step].action == Action::Scales {
            return 0;
        }
        self.plan.steps[step].elements().div_ceil(self.plan.work.tile) as usize
    }

    /// A tensor without elements has nothing to do.
    fn skip_empty(&self, state: &mut State) {
        state.active.retain(|active| active.units > 0);
        self.changed.notify_all();
    }

    fn begin(&self, index: usize) -> Active {
        let step = &self.plan.steps[index];
        let (work, units) = match step.action {
            Action::Copy => (Work::Copy, self.tiles(index)),
            Action::Scales => (Work::Copy, 0),
            Action::Compute { formula, columns, bands } => {
                let job = self.job(step, formula, RowLayout { columns, bands });
                let (evaluation, wave) = Evaluation::start(job);
                let units = if step.elements() == 0 { 0 } else { wave.units() };
                (Work::Compute { evaluation: Box::new(evaluation), wave }, units)
            }
        };
        Active::new(index, work, units)
    }

    /// What is computed of a step.
    pub(super) fn job(&self, step: &Step, formula: usize, rows: RowLayout) -> Job {
        let formula =
            if self.has_groups { Arc::clone(&self.compiled[formula]) } else { compiled(self.plan, formula) };
        let known = self.statistics.map(|statistics| statistics.of(step, formula.formula()));
        Job {
            known: known.unwrap_or_default(),
            streams: streams_of(self.plan, step, formula.formula()),
            geometry: rows.geometry(step.elements()),
            output: output_of(step),
            tile: self.plan.work.tile,
            allow_non_finite: self.plan.allow_non_finite,
            level: level(),
            formula,
        }
    }
}

impl Queue<'_> {
    /// Keeps what the reductions of a step have come to, for a merge that follows.
    pub(super) fn remember(&self, step: usize, evaluation: &Evaluation) {
        if let (Some(statistics), step) = (self.statistics, &self.plan.steps[step])
            && let Action::Compute { formula, .. } = step.action
        {
            statistics.keep(step, &self.plan.formulas[formula].formula, evaluation.statistics());
        }
    }
}

/// One of a plan's formulas, to be compiled anew.
fn compiled(plan: &Plan, formula: usize) -> Arc<Compiled> {
    Arc::new(Compiled::new(Arc::clone(&plan.formulas[formula].formula)))
}

/// The keys of the random numbers of a step's formula.
pub(super) fn streams_of(plan: &Plan, step: &Step, formula: &Formula) -> Vec<StreamKey> {
    (0..formula.streams() as u32).map(|stream| stream_key(plan.seed, &step.tensor, stream)).collect()
}

/// How the output of a step is stored; a step that measures has none.
pub(super) fn output_of(step: &Step) -> Encoding {
    encoding_of(step.dtype).unwrap_or(Encoding::Plain(Element::F32))
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
