//! Ends a run: the student's folder, its card, and what is told of it all.

use std::path::PathBuf;
use std::time::Instant;

use aludel_checkpoint::{OutputFolder, resident};
use aludel_kernels::loss::LossDevice;
use indexmap::IndexMap;
use serde::Serialize;

use super::Options;
use super::card::Card;
use super::event::Event;
use super::session::{Ending, Session, Source};
use crate::error::Error;
use crate::folder::{RunFolder, adapter_path_for};
use crate::inputs::Input;
use crate::record::{Entry, Phase, metrics_path, read_metrics};
use crate::run::{Run, Student};
use crate::step::Trainer;

/// What a run did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// The student's folder; `None` when the run was interrupted.
    pub output: Option<PathBuf>,
    /// The folder of the low-rank adapters alone, where the run trained such.
    pub adapters: Option<PathBuf>,
    /// The folder with record and checkpoints.
    pub run: PathBuf,
    /// The page that shows the run.
    pub report: PathBuf,
    /// Steps taken.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The step that the output's weights are of.
    pub output_step: Option<u64>,
    /// Tokens that went through the student, those of earlier parts of the run included.
    pub tokens: u64,
    /// Seconds since this part of the run began.
    pub seconds: f64,
    /// Of the last step.
    pub loss: Option<f64>,
    /// What the evaluation before the first step measured.
    pub before: IndexMap<String, f64>,
    /// What the evaluation of the output's weights, or else the last one, measured.
    pub after: IndexMap<String, f64>,
    /// The most memory the process had resident, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

impl<D: LossDevice, S: Source> Session<'_, D, S> {
    /// What an interrupted run did.
    pub(super) fn interrupted_outcome(&self, folder: &RunFolder, start: Instant) -> Result<Outcome, Error> {
        self.outcome(Ending::Interrupted, folder, start, None)
    }

    /// Writes the student, and removes the checkpoints unless they were asked for.
    pub(super) fn finish(
        &mut self,
        ending: Ending,
        folder: &RunFolder,
        (text, inputs): (&str, &[Input]),
        options: &Options<'_>,
        start: Instant,
    ) -> Result<Outcome, Error> {
        let step = self.trainer.done();
        let chosen = self.standing.best.map_or(step, |best| best.step);
        if chosen != step {
            let progress = self.states.read(chosen)?;
            let device = self.trainer.shared_device();
            self.states.restore(chosen, device.as_ref(), self.trainer.items_mut())?;
            self.trainer.resume(chosen, progress.updates, progress.annealing)?;
            self.standing.tokens = progress.tokens;
        }
        (self.on_event)(Event::Writing);
        let mut outcome = self.outcome(ending, folder, start, Some(chosen))?;
        outcome.adapters = write_adapters(self.run, &self.trainer, options.replace)?;
        let output = OutputFolder::create(&self.run.output, options.replace)?;
        self.trainer.student().write(&output, self.stored)?;
        let card = Card {
            text,
            inputs,
            step: chosen,
            steps: self.steps,
            tokens: self.standing.tokens,
            measures: measures(&outcome),
        };
        output.write("run.yml", text.as_bytes())?;
        output.write("README.md", card.render().as_bytes())?;
        outcome.output = Some(output.finish()?);
        if self.run.train.save_every.is_none() {
            folder.remove_checkpoints()?;
        }
        outcome.step = step;
        outcome.seconds = start.elapsed().as_secs_f64();
        outcome.peak_memory = resident::peak();
        Ok(outcome)
    }

    fn outcome(
        &self,
        ending: Ending,
        folder: &RunFolder,
        start: Instant,
        chosen: Option<u64>,
    ) -> Result<Outcome, Error> {
        let entries = read_metrics(&metrics_path(folder.path()))?;
        let evaluations = || entries.iter().filter(|entry| entry.phase == Phase::Validation);
        let values = |entry: Option<&Entry>| entry.map_or_else(IndexMap::new, |entry| entry.values.clone());
        let mut trained = entries.iter().filter(|entry| entry.phase == Phase::Train);
        let is_of_output = |entry: &&Entry| chosen.is_none_or(|step| entry.step == step);
        Ok(Outcome {
            ending,
            output: None,
            adapters: None,
            run: folder.path().to_path_buf(),
            report: folder.path().join("report.html"),
            step: self.trainer.done(),
            steps: self.steps,
            output_step: chosen,
            tokens: self.standing.tokens,
            seconds: start.elapsed().as_secs_f64(),
            loss: trained.next_back().and_then(|entry| entry.values.get("loss").copied()),
            before: values(evaluations().find(|entry| entry.step == 0)),
            after: values(evaluations().rfind(is_of_output)),
            peak_memory: resident::peak(),
        })
    }
}

/// The adapters alone, for those who have the student that they were trained on.
fn write_adapters<D: LossDevice>(
    run: &Run,
    trainer: &Trainer<D>,
    replace: bool,
) -> Result<Option<PathBuf>, Error> {
    let (Some(_), Student::Model(base)) = (&run.train.lora, &run.student) else { return Ok(None) };
    let path = adapter_path_for(&run.output);
    let folder = OutputFolder::create(&path, replace)?;
    trainer.student().write_adapters(&folder, &base.display().to_string())?;
    Ok(Some(folder.finish()?))
}

/// Every measure, before and after.
fn measures(outcome: &Outcome) -> Vec<(String, Option<f64>, Option<f64>)> {
    let names = outcome.before.keys().chain(outcome.after.keys());
    let names: indexmap::IndexSet<&String> = names.collect();
    let value = |values: &IndexMap<String, f64>, name: &String| values.get(name).copied();
    names
        .into_iter()
        .map(|name| (name.clone(), value(&outcome.before, name), value(&outcome.after, name)))
        .collect()
}
