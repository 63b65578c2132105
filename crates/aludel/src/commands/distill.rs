//! `aludel distill`: trains a student as a run says.

use std::path::Path;
use std::sync::Arc;

use aludel_checkpoint::DigestCache;
use aludel_distill::folder::Beginning;
use aludel_distill::forecast::{self, Forecast, Timing};
use aludel_distill::group::Place;
use aludel_distill::record::Fact;
use aludel_distill::run::Run;
use aludel_distill::train::{self, Ending, Event, Options, Outcome, StepEvent};
use aludel_kernels::loss::LossDevice;
use aludel_merge::plan::Bytes;

use super::device::{self, Opened};
use super::run_file::RunFile;
use crate::args::DistillArguments;
use crate::failure::Interrupted;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::{Size, Verbosity};
use crate::signals::Signals;
use crate::storage;

/// Trains, and prints a summary; the outcome is the result where JSON is asked for.
pub(super) fn run(arguments: &DistillArguments, printer: &Printer) -> anyhow::Result<()> {
    let file = RunFile::read(&arguments.run)?;
    let hub = hub::open(printer);
    let run = file.parse()?.with_models(|model| hub::locate(&hub, model))?;
    let run = run.with_cache(|cache| storage::local(cache, printer))?;
    let place = Place::of_environment().map_err(|error| file.failure(error, None, None))?;
    // What is predicted is the same in all processes: the first says it.
    if arguments.dry_run && place.as_ref().is_some_and(|place| place.rank > 0) {
        return Ok(());
    }
    let device = device::open_for(&arguments.computing, place.as_ref().map_or(0, |place| place.local))?;
    let mut environment = device.facts();
    environment.extend(place.as_ref().map(|place| Fact::new("processes", place.size)));
    match device {
        Opened::Cpu(device) => train_on(&device, &run, &file, (environment, place), arguments, printer),
        Opened::Cuda(device) => train_on(&device, &run, &file, (environment, place), arguments, printer),
    }
}

fn train_on<D: LossDevice>(
    device: &Arc<D>,
    run: &Run,
    file: &RunFile,
    (environment, place): (Vec<Fact>, Option<Place>),
    arguments: &DistillArguments,
    printer: &Printer,
) -> anyhow::Result<()> {
    let memory = arguments.memory.map(|Size(bytes)| bytes);
    if arguments.dry_run {
        let processes = place.as_ref().map_or(1, |place| place.size);
        let is_json = printer.talk().json;
        let tell = |counted: &Forecast| {
            if !is_json {
                // Who has gone away is not told the rest either.
                let _ = printer.data(&counted_lines(counted));
            }
        };
        let forecast = forecast::forecast(device, run, processes, memory, &tell);
        let forecast = forecast.map_err(|error| file.failure(error, None, None))?;
        return if is_json { printer.json(&forecast) } else { Ok(printer.data(&timing_lines(&forecast))?) };
    }
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let options = Options {
        beginning: beginning(arguments),
        replace: arguments.force,
        digests: DigestCache::user(),
        environment,
        place: place.clone(),
        memory,
        cancel: signals.cancel(),
        on_event: &|event| show(&event, &progress, printer),
    };
    if let Some(place) = place.filter(|place| place.rank > 0) {
        // The first process listens to signals, shows what happens, and says when this one ends.
        let followed = train::follow(device, run, &place, &options);
        return followed.map_err(|error| file.failure(error, None, None));
    }
    let result = train::distil(device, run, &file.text, &options);
    drop(progress);
    let outcome = result.map_err(|error| file.failure(error, signals.received(), None))?;
    if outcome.ending == Ending::Interrupted {
        let left = left(&outcome, &arguments.run);
        return Err(Interrupted { signal: signals.received().unwrap_or(2), left: Some(left) }.into());
    }
    printer.say(Verbosity::Normal, &summary(&outcome));
    if printer.talk().json { printer.json(&outcome) } else { Ok(()) }
}

/// What is known of a run before anything is timed.
fn counted_lines(forecast: &Forecast) -> String {
    let Forecast { steps, tokens_per_step, parameters, trained, memory, chosen, timing: _ } = forecast;
    let mut lines = vec![
        format!("steps    {steps} of {tokens_per_step} tokens at the most"),
        format!("student  {parameters} parameters, {trained} trained"),
        format!("memory   {memory}"),
    ];
    if !chosen.is_empty() {
        lines.push(format!("chosen   {}", chosen.join(", ")));
    }
    lines.join("\n")
}

fn timing_lines(forecast: &Forecast) -> String {
    match &forecast.timing {
        Some(Timing { tokens, tokens_per_second, seconds, .. }) => {
            let time = duration(*seconds);
            format!(
                "speed    {tokens_per_second:.0} tokens/s, timed on {tokens} tokens\ntime     {time}, evaluations and checkpoints not counted"
            )
        }
        None => "speed    not timed: there is nothing to learn".to_owned(),
    }
}

const fn beginning(arguments: &DistillArguments) -> Beginning {
    match (arguments.resume, arguments.force) {
        (true, _) => Beginning::Resuming,
        (false, true) => Beginning::Replacing,
        (false, false) => Beginning::Fresh,
    }
}

/// What an interrupted run leaves, and how to go on with it.
fn left(outcome: &Outcome, run: &Path) -> String {
    format!(
        "with a checkpoint after step {} of {} in {}: go on by `aludel distill {} --resume`",
        outcome.step,
        outcome.steps,
        outcome.run.display(),
        run.display(),
    )
}

fn show(event: &Event, progress: &Progress<'_>, printer: &Printer) {
    match event {
        Event::Hashing { done, total } => progress.show(Stage::bytes("hashing inputs", *done, *total)),
        Event::Begun { done, steps, trained, parameters } => {
            progress.clear();
            let from = if *done > 0 {
                format!("going on after step {done} of {steps}")
            } else {
                format!("{steps} steps")
            };
            let line = format!("training {trained} of {parameters} parameters: {from}");
            printer.say(Verbosity::Normal, &line);
        }
        Event::Step(step) => progress.show(Stage::measured("training", step.step, step.steps, figures(step))),
        Event::Evaluating { done, total } => {
            let figures = format!("{done} of {total} tokens");
            progress.show(Stage::measured("evaluating", *done, *total, figures));
        }
        Event::Evaluated { step, values } => {
            progress.clear();
            let shown = ["loss", "perplexity", "accuracy", "kl", "top1"];
            let values = shown.iter().filter_map(|name| Some(format!("{name} {:.4}", values.get(*name)?)));
            let line = format!("step {step}: held-out {}", values.collect::<Vec<_>>().join(", "));
            printer.say(Verbosity::Normal, &line);
        }
        Event::Saved { step } => {
            progress.clear();
            printer.say(Verbosity::Verbose, &format_args!("step {step}: checkpoint written"));
        }
        Event::Writing => progress.show(Stage::waiting("writing")),
        Event::Chosen(chosen) => {
            progress.clear();
            printer.say(Verbosity::Normal, chosen);
        }
        Event::Warning(warning) => {
            progress.clear();
            printer.warning(warning);
        }
        _ => {}
    }
}

/// `step 12 of 100, loss 2.3456, rate 1.0e-4, 1520 tokens/s, 3 min 20 s left`.
fn figures(event: &StepEvent) -> String {
    let StepEvent { step, steps, loss, learning_rate, tokens, seconds, taken } = *event;
    let left = seconds / taken.max(1) as f64 * steps.saturating_sub(step) as f64;
    let rate = tokens as f64 / seconds.max(1e-9);
    format!(
        "step {step} of {steps}, loss {loss:.4}, rate {learning_rate:.1e}, {rate:.0} tokens/s, {} left",
        duration(left)
    )
}

/// `trained 100 steps into out in 3.2 s: loss 2.3456, 409600 tokens, peak memory 2.10 GB; report in out.run/report.html`.
fn summary(outcome: &Outcome) -> String {
    let output = outcome.output.as_deref().unwrap_or(Path::new("")).display();
    let loss = outcome.loss.map_or(String::new(), |loss| format!("loss {loss:.4}, "));
    let memory = outcome.peak_memory.map_or(String::new(), |bytes| format!(", peak memory {}", Bytes(bytes)));
    let early = match (outcome.ending, outcome.output_step) {
        (Ending::StoppedEarly, Some(step)) => format!(", stopped early with the weights of step {step}"),
        (_, Some(step)) if step != outcome.step => format!(", with the weights of step {step}"),
        _ => String::new(),
    };
    format!(
        "trained {} steps into {output} in {}{early}: {loss}{} tokens{memory}; report in {}",
        outcome.step,
        duration(outcome.seconds),
        outcome.tokens,
        outcome.report.display(),
    )
}
