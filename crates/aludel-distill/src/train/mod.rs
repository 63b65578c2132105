//! Carries out a run: from its models and data to the student's folder.
//!
//! In: a [`Run`] and a device. Out: the output folder, under its name only when it is complete, and beside it
//! `<output>.run` with the record and the checkpoints. Asked to stop, a run leaves a checkpoint and no output.
//!
//! Reading order: this file (the stages), [`session`](self) (the loop), `values` (what is recorded), `finish` (the output),
//! `card`, [`Event`] (what is told meanwhile), [`follow()`] (the other processes of a training with several).

mod card;
mod corpus;
mod event;
mod finish;
mod follow;
mod session;
mod summary;
mod values;

pub(crate) use corpus::Corpus;
pub use event::{Event, StepEvent};
pub use finish::Outcome;
pub use follow::follow;
pub use session::{Ending, Source};

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use aludel_checkpoint::DigestCache;
use aludel_document::{Problem, Problems};
use aludel_kernels::loss::LossDevice;
use serde_json::Value;

use crate::cache::CachedTeacher;
use crate::error::Error;
use crate::folder::{self, Beginning, RunFolder};
use crate::forecast::{self, Fitted};
use crate::group::{Command, Place};
use crate::inputs::{self, Input};
use crate::prepare::Models;
use crate::record::{self, Fact, Record};
use crate::run::Run;
use crate::state::Progress;
use crate::step::Trainer;
use session::{Session, Standing};

/// How a run is carried out; none of it changes what is trained.
pub struct Options<'a> {
    /// Where it begins.
    pub beginning: Beginning,
    /// Whether an output folder that exists gives way.
    pub replace: bool,
    /// Where the inputs' digests are remembered.
    pub digests: DigestCache,
    /// Threads and the like, for the record.
    pub environment: Vec<Fact>,
    /// Which of several processes this one is, the first; `None` where it is alone.
    pub place: Option<Place>,
    /// Bytes that the run may take, of the device's own memory where it has some; `None` for all that are free.
    pub memory: Option<u64>,
    /// Set from outside to stop.
    pub cancel: &'a AtomicBool,
    /// Called for everything that happens.
    pub on_event: &'a dyn Fn(Event),
}

/// Carries out a run; `text` is its file, word for word.
///
/// # Errors
/// [`Error::Problems`] before anything is trained; [`Error::Interrupted`] when it was asked to stop before then; whatever
/// training, saving and writing fail by. The output is then as it was.
pub fn distil<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
    text: &str,
    options: &Options<'_>,
) -> Result<Outcome, Error> {
    let start = Instant::now();
    check_output(run, options.replace)?;
    if let Some(place) = &options.place {
        follow::check_shares(run, place)?;
    }
    let processes = options.place.as_ref().map_or(1, |place| place.size);
    let recorded =
        if options.beginning == Beginning::Resuming { forecast::last_recorded(&run.output)? } else { None };
    let given = run;
    let run = recorded.map_or_else(|| run.clone(), |recorded| forecast::as_recorded(run, &recorded));
    let limit = forecast::Limit::of(device.as_ref(), options.memory);
    let Fitted { run, savings, .. } = forecast::fit(device.as_ref(), &run, processes, limit)?;
    let (run, is_short) = (&run, run.train.moments != given.train.moments);
    let chosen = forecast::told(&savings);
    let models = Models::load(device, run)?;
    let mut corpus = Corpus::open(run, &models.tokenizers).map_err(Error::into_problem)?;
    let cache = CachedTeacher::of_run(device, run, models.tokenizers.of_teacher(), corpus.fingerprint())?
        .map(|cache| cache.check_teacher(run, &options.digests, options.cancel))
        .transpose()?;
    let folder = RunFolder::open(&run.output, options.beginning)?;
    let inputs = inputs::hash(run, &options.digests, options.cancel, &|done, total| {
        (options.on_event)(Event::Hashing { done, total });
    })?;
    let (settings, input_values) = (json(run.to_json())?, json(serde_json::to_value(&inputs))?);
    let last = folder.states().steps()?.last().copied();
    let group = match &options.place {
        Some(place) => {
            Some(follow::lead(place, given, &input_values, device.as_ref(), (last, &savings, is_short))?)
        }
        None => None,
    };
    let progress = last.map(|step| folder.states().read(step)).transpose()?;
    if let Some(progress) = &progress {
        check_same(run, progress, &input_values)?;
    }
    chosen.iter().for_each(|chosen| (options.on_event)(Event::Chosen(chosen.clone())));
    corpus.warnings().iter().for_each(|warning| (options.on_event)(Event::Warning(warning.clone())));
    let steps = corpus.steps();
    let environment: Vec<Fact> =
        options.environment.iter().cloned().chain(chosen.map(|told| Fact::new("chosen", told))).collect();
    let mut summary = summary::of(run, text, &models, &inputs, steps, &environment);
    summary.write(folder.path())?;
    let stored = models.stored;
    let trainer = Trainer::of_group(models.student, models.teacher, run, steps, group)?;
    let mut trainer = trainer.with_cache(cache);
    let (record, standing) = match &progress {
        None => (Record::create(folder.path())?, Standing::default()),
        Some(progress) => {
            folder.states().restore(progress.step, device.as_ref(), trainer.items_mut())?;
            trainer.resume(progress.step, progress.updates, progress.annealing)?;
            corpus.seek(&progress.data)?;
            (Record::resume(folder.path(), &progress.record)?, Standing::of(progress))
        }
    };
    (options.on_event)(begun(&trainer, steps));
    let validation = corpus.validation()?;
    let mut session = Session {
        run,
        settings,
        inputs: input_values,
        trainer,
        source: corpus,
        validation,
        steps,
        stored,
        states: folder.states(),
        record,
        standing,
        position: Value::Null,
        cancel: options.cancel,
        on_event: options.on_event,
    };
    let outcome = session.run().and_then(|ending| match ending {
        Ending::Interrupted => session.interrupted_outcome(&folder, start),
        ending => session.finish(ending, &folder, (text, &inputs), options, start),
    });
    if let Err(failure) = &outcome {
        session.rescue(failure);
    }
    // Those that follow end, now that nothing they hold is wanted any more; where this process fails they find it gone.
    let _ = session.trainer.tell(Command::End);
    if let Ok(outcome) = &outcome {
        summary.outcome = match outcome.ending {
            Ending::Complete => "complete".to_owned(),
            Ending::StoppedEarly => {
                format!("stopped early, output of step {}", outcome.output_step.unwrap_or(0))
            }
            Ending::Interrupted => String::new(),
        };
        summary.write(folder.path())?;
    }
    // The page is of use after a failure too; the failure is what is told then.
    let page = record::write_report(folder.path());
    let outcome = outcome?;
    page?;
    Ok(outcome)
}

/// Refuses an output folder that has content, before anything is read.
fn check_output(run: &Run, replace: bool) -> Result<(), Error> {
    let is_empty = |path: &Path| path.read_dir().is_ok_and(|mut entries| entries.next().is_none());
    let taken = |path: &Path| path.exists() && !is_empty(path);
    let adapters = run.train.lora.as_ref().map(|_| folder::adapter_path_for(&run.output));
    match [Some(run.output.clone()), adapters].into_iter().flatten().find(|path| taken(path)) {
        Some(path) if !replace => {
            Err(Problem::general(format!("{} exists and is not empty", path.display()))
                .with_hint(
                    "name another `output`, or pass --force to replace it once the new one is complete",
                )
                .into())
        }
        _ => Ok(()),
    }
}

/// Refuses to go on with a run that a checkpoint is not of.
fn check_same(run: &Run, progress: &Progress, inputs: &Value) -> Result<(), Error> {
    let mut problems = Problems::new();
    let differences = run.differences(&progress.run).map_err(|error| Error::internal(error.to_string()))?;
    for difference in differences {
        problems.push(
            Problem::general(format!("the checkpoint is of another run: {difference}"))
                .with_hint("put it back to go on, or begin anew by --force"),
        );
    }
    let changed = changed_files(&progress.inputs, inputs);
    if problems.is_empty() && !changed.is_empty() {
        let message = format!("files have changed since the checkpoint was written: {}", changed.join(", "));
        problems
            .push(Problem::general(message).with_hint("put them back to go on, or begin anew by --force"));
    }
    Ok(problems.into_result(())?)
}

/// The names of files that are not what they were.
fn changed_files(recorded: &Value, now: &Value) -> Vec<String> {
    let list = |value: &Value| serde_json::from_value::<Vec<Input>>(value.clone()).unwrap_or_default();
    let (recorded, now) = (list(recorded), list(now));
    let changed = now.iter().filter(|input| !recorded.contains(input));
    let gone =
        recorded.iter().filter(|old| !now.iter().any(|new| new.file == old.file && new.given == old.given));
    changed.chain(gone).map(|input| format!("{} ({})", input.file, input.given)).collect()
}

fn begun<D: LossDevice>(trainer: &Trainer<D>, steps: u64) -> Event {
    let parameters = trainer.student().parameters();
    Event::Begun {
        done: trainer.done(),
        steps,
        trained: parameters.trainable().map(|parameter| parameter.elements() as u64).sum(),
        parameters: parameters.iter().map(|parameter| parameter.elements() as u64).sum(),
    }
}

fn json(value: Result<Value, serde_json::Error>) -> Result<Value, Error> {
    value.map_err(|error| Error::internal(error.to_string()))
}

#[cfg(test)]
mod tests;
