//! Takes steps until a run ends: evaluates, saves and records on the way.
//!
//! In: a training, its data and what the settings say of evaluations and checkpoints. Out: how it ended. Between two steps
//! everything that matters is in the checkpoint's [`Progress`] and arrays, so that a run which goes on from there takes the
//! same steps. A request to stop is heeded between two micro-batches: the step at hand is given up, and the checkpoint is of
//! the one before it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use aludel_checkpoint::resident;
use aludel_kernels::element::Element;
use aludel_kernels::loss::{HeadReport, LossDevice};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

use super::event::{Event, StepEvent};
use super::values::TermNames;
use crate::data::MicroBatch;
use crate::error::Error;
use crate::group::Command;
use crate::record::{Entry, Phase, Record};
use crate::run::{EarlyStopping, Run};
use crate::state::{Best, Progress, States, VERSION};
use crate::step::Trainer;

/// Where the micro-batches of a run come from.
pub trait Source {
    /// The micro-batches of the next optimizer step.
    ///
    /// # Errors
    /// What reading the data fails by.
    fn next_step(&mut self) -> Result<Vec<MicroBatch>, Error>;

    /// Where the next step begins in the data.
    ///
    /// # Errors
    /// [`Error::Internal`] when it cannot be written as JSON.
    fn position(&self) -> Result<Value, Error>;
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps were taken.
    Complete,
    /// The validation loss no longer fell.
    StoppedEarly,
    /// It was asked to stop; a checkpoint is there.
    Interrupted,
}

/// A run between two steps.
pub(super) struct Session<'a, D: LossDevice, S> {
    pub(super) run: &'a Run,
    /// As JSON, for checkpoints.
    pub(super) settings: Value,
    pub(super) inputs: Value,
    pub(super) trainer: Trainer<D>,
    pub(super) source: S,
    pub(super) validation: Vec<MicroBatch>,
    pub(super) steps: u64,
    /// The type that the student's folder stores weights in.
    pub(super) stored: Element,
    pub(super) states: &'a States,
    pub(super) record: Record,
    pub(super) standing: Standing,
    /// Where the step at hand begins in the data.
    pub(super) position: Value,
    pub(super) cancel: &'a AtomicBool,
    pub(super) on_event: &'a dyn Fn(Event),
}

/// What a run remembers of its steps, evaluations and checkpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    /// Tokens that went through the student.
    pub(super) tokens: u64,
    /// The step of the last evaluation.
    pub(super) evaluated: Option<u64>,
    pub(super) best: Option<Best>,
    /// Evaluations since the best one.
    pub(super) waited: u64,
    /// The step of the last checkpoint.
    pub(super) saved: Option<u64>,
}

impl<D: LossDevice, S: Source> Session<'_, D, S> {
    /// Takes steps until the run ends.
    ///
    /// # Errors
    /// [`Error::Diverged`]; what reading, computing or writing fails by. What the last checkpoint holds is not lost.
    pub(super) fn run(&mut self) -> Result<Ending, Error> {
        let names = TermNames::of(&self.run.objective);
        let mut clock = Clock::default();
        loop {
            let done = self.trainer.done();
            self.position = self.source.position()?;
            if self.is_evaluation_due(done) && !self.evaluate(&names)? {
                return self.interrupted();
            }
            if self.has_waited_enough() {
                return Ok(Ending::StoppedEarly);
            }
            if self.is_checkpoint_due(done) {
                self.save()?;
            }
            if done >= self.steps {
                return Ok(Ending::Complete);
            }
            if self.is_cancelled() {
                return self.interrupted();
            }
            let micro_batches = self.source.next_step()?;
            let begin = Instant::now();
            let cancel = self.cancel;
            self.trainer.tell(Command::Step)?;
            let Some(report) = self.trainer.step(&micro_batches, &|| cancel.load(Relaxed))? else {
                return self.interrupted();
            };
            clock.add(report.rows, begin);
            self.standing.tokens += report.rows;
            let mut values = names.of_step(&report, self.trainer.has_shared_tokens());
            values.insert("tokens".into(), self.standing.tokens as f64);
            values.insert("tokens_per_second".into(), clock.last_rate);
            if let Some(bytes) = resident::peak() {
                values.insert("memory_bytes".into(), bytes as f64);
            }
            if let Some(bytes) = self.trainer.device().peak_memory() {
                values.insert("device_memory_bytes".into(), bytes as f64);
            }
            self.append(Phase::Train, values)?;
            (self.on_event)(Event::Step(StepEvent {
                step: self.trainer.done(),
                steps: self.steps,
                loss: report.loss,
                learning_rate: report.learning_rate,
                taken: clock.steps,
                tokens: clock.tokens,
                seconds: clock.seconds,
            }));
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Relaxed)
    }

    /// Before the first step, after the last, and as often as the settings say; each once, also by a run that goes on.
    fn is_evaluation_due(&self, done: u64) -> bool {
        let is_regular = self.run.train.evaluate_every.is_some_and(|every| done.is_multiple_of(every));
        let is_due = done == 0 || done >= self.steps || is_regular;
        is_due && !self.validation.is_empty() && self.standing.evaluated != Some(done)
    }

    /// As often as the settings say, and for every best evaluation that early stopping may go back to.
    fn is_checkpoint_due(&self, done: u64) -> bool {
        let is_regular = self.run.train.save_every.is_some_and(|every| done.is_multiple_of(every));
        let is_best = self.standing.best.is_some_and(|best| best.step == done);
        (is_regular || is_best) && done > 0 && self.standing.saved != Some(done)
    }

    /// Whether the evaluations since the best one are as many as early stopping waits for.
    fn has_waited_enough(&self) -> bool {
        self.run.train.early_stopping.is_some_and(|stopping| self.standing.waited >= stopping.patience)
    }

    /// Scores the held-out documents; `false` when it was asked to stop meanwhile, and nothing has changed.
    fn evaluate(&mut self, names: &TermNames) -> Result<bool, Error> {
        let total = self.validation.iter().map(|micro| micro.targets() as u64).sum();
        let mut sum = HeadReport::default();
        let mut objective = None;
        for (turn, micro_batches) in self.validation.chunks(self.trainer.processes()).enumerate() {
            if self.is_cancelled() {
                return Ok(false);
            }
            self.trainer.tell(Command::Evaluate(turn as u64))?;
            let (report, used) = self.trainer.evaluate(micro_batches)?;
            sum.add(&report);
            objective = Some(used);
            (self.on_event)(Event::Evaluating { done: sum.rows, total });
        }
        let Some(objective) = objective else { return Ok(true) };
        let values = names.of_evaluation(&sum, &objective, self.trainer.has_shared_tokens());
        let step = self.trainer.done();
        self.standing.evaluated = Some(step);
        if let Some(stopping) = self.run.train.early_stopping {
            self.standing.judge(step, values["loss"], stopping);
        }
        self.append(Phase::Validation, values.clone())?;
        (self.on_event)(Event::Evaluated { step, values });
        Ok(true)
    }

    fn append(&mut self, phase: Phase, values: IndexMap<String, f64>) -> Result<(), Error> {
        let step = self.trainer.done();
        self.record.append(&Entry { phase, step, time: crate::record::now(), values })
    }

    /// Writes a checkpoint of the step before.
    fn interrupted(&mut self) -> Result<Ending, Error> {
        if self.standing.saved != Some(self.trainer.done()) {
            self.save()?;
        }
        Ok(Ending::Interrupted)
    }

    /// After a failure: keeps what was trained, if it is not saved yet and can be. The failure is what is told.
    pub(super) fn rescue(&mut self, failure: &Error) {
        // What diverged would diverge again.
        let is_worth_it = self.trainer.done() > 0 && !matches!(failure, Error::Diverged { .. });
        if is_worth_it && self.standing.saved != Some(self.trainer.done()) {
            let _ = self.save();
        }
    }

    fn save(&mut self) -> Result<(), Error> {
        let step = self.trainer.done();
        let progress = Progress {
            version: VERSION,
            run: self.settings.clone(),
            inputs: self.inputs.clone(),
            steps: self.steps,
            step,
            updates: self.trainer.updates(),
            tokens: self.standing.tokens,
            data: self.position.clone(),
            annealing: self.trainer.annealing(),
            record: self.record.positions()?,
            evaluated: self.standing.evaluated,
            best: self.standing.best,
            waited: self.standing.waited,
        };
        let trainer = &self.trainer;
        let holders = trainer.holders();
        if holders.is_some() {
            trainer.tell(Command::Save)?;
        }
        self.states.write(trainer.device(), &progress, &trainer.items(), self.run.train.keep, holders)?;
        self.standing.saved = Some(step);
        (self.on_event)(Event::Saved { step });
        Ok(())
    }
}

impl Standing {
    /// That of a checkpoint.
    pub(super) fn of(progress: &Progress) -> Self {
        Self {
            tokens: progress.tokens,
            evaluated: progress.evaluated,
            best: progress.best,
            waited: progress.waited,
            saved: Some(progress.step),
        }
    }

    /// Counts an evaluation. The one before the first step is not in the running: stopping early gives out something that
    /// was trained.
    fn judge(&mut self, step: u64, loss: f64, stopping: EarlyStopping) {
        if step == 0 {
            return;
        }
        let bar = self.best.map_or(f64::INFINITY, |best| best.loss() - stopping.minimum_improvement);
        if loss < bar {
            self.best = Some(Best::new(step, loss));
            self.waited = 0;
        } else {
            self.waited += 1;
        }
    }
}

/// Time spent in steps.
#[derive(Default)]
struct Clock {
    steps: u64,
    tokens: u64,
    seconds: f64,
    /// Tokens a second of the last step.
    last_rate: f64,
}

impl Clock {
    fn add(&mut self, tokens: u64, begin: Instant) {
        let seconds = begin.elapsed().as_secs_f64();
        self.steps += 1;
        self.tokens += tokens;
        self.seconds += seconds;
        self.last_rate = tokens as f64 / seconds.max(1e-9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_evaluation_is_the_lowest_by_more_than_the_margin() {
        let stopping = EarlyStopping { patience: 2, minimum_improvement: 0.1 };
        let mut standing = Standing::default();
        standing.judge(0, 0.5, stopping);
        assert_eq!(standing, Standing::default());
        for (step, loss, best, waited) in
            [(10, 3.0, 10, 0), (20, 2.95, 10, 1), (30, 2.5, 30, 0), (40, f64::NAN, 30, 1), (50, 2.41, 30, 2)]
        {
            standing.judge(step, loss, stopping);
            assert_eq!((standing.best.unwrap().step, standing.waited), (best, waited), "step {step}");
        }
        assert_eq!(standing.best.unwrap().loss(), 2.5);
    }
}
