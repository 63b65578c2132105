//! `aludel cache capture`: runs a teacher over the data of a run.

use aludel_cache::WriterOptions;
use aludel_checkpoint::DigestCache;
use aludel_distill::Error;
use aludel_distill::cache::{self, Capture, Captured, Wanted};
use aludel_distill::run::Run;

use crate::args::{CacheMode, CaptureArguments};
use crate::commands::device;
use crate::commands::text::{self, Kind};
use crate::failure::{Interrupted, Refusal};
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::Verbosity;
use crate::signals::Signals;

const RUN: Kind = Kind { noun: "run", hint: "give the run's YAML file" };

/// Captures, and says what was stored.
pub(super) fn run(arguments: &CaptureArguments, printer: &Printer) -> anyhow::Result<()> {
    let (name, text) = text::read(&arguments.run, RUN)?;
    let refuse = |problems: aludel_document::Problems| Refusal {
        recipe: Some(name.clone()),
        problems: problems.in_order_of_place(),
    };
    let run = Run::parse(&text).map_err(refuse)?;
    let device = device::open(&arguments.computing)?;
    let (signals, progress) = (Signals::listen()?, Progress::new(printer));
    let options =
        WriterOptions { part: arguments.part, shard_bytes: arguments.shard_size.0, sync: !arguments.no_sync };
    let result = cache::capture(
        &device,
        &Capture {
            run: &run,
            folder: &arguments.cache,
            wanted: wanted(arguments),
            temperatures: arguments.temperatures.clone(),
            options,
            digests: &DigestCache::user(),
            cancel: signals.cancel(),
            on_stage: &|stage| show(stage, &progress),
        },
    );
    drop(progress);
    let captured = match (result, signals.received()) {
        (Ok(captured), _) => captured,
        (Err(Error::Interrupted), Some(signal)) => {
            let left = format!(
                "{} holds what was captured: run the command again to go on",
                arguments.cache.display()
            );
            return Err(Interrupted { signal, left: Some(left) }.into());
        }
        (Err(Error::Problems(problems)), _) => return Err(refuse(problems).into()),
        (Err(error), _) => return Err(error.into()),
    };
    printer.say(Verbosity::Normal, &summary(&captured, arguments));
    if printer.talk().json { printer.json(&captured) } else { Ok(()) }
}

const fn wanted(arguments: &CaptureArguments) -> Wanted {
    match arguments.mode {
        CacheMode::TopK => Wanted::TopK { k: arguments.k },
        CacheMode::Sampled => Wanted::Sampled { draws: arguments.draws, seed: arguments.seed },
        CacheMode::Int8 => Wanted::Int8,
        CacheMode::Int4 => Wanted::Int4,
        CacheMode::Hidden => Wanted::Hidden,
    }
}

fn show(stage: cache::Stage, progress: &Progress<'_>) {
    match stage {
        cache::Stage::Hashing { done, total } => {
            progress.show(Stage::bytes("hashing the teacher", done, total));
        }
        cache::Stage::Capturing { done, total, now, targets, seconds } => {
            let rate = targets as f64 / seconds.max(1e-9);
            let left = seconds / now.max(1) as f64 * total.saturating_sub(done) as f64;
            let figures = format!(
                "{done} of {total} documents, {targets} tokens, {rate:.0} tokens/s, {} left",
                duration(left)
            );
            progress.show(Stage::measured("capturing", done, total, figures));
        }
        _ => {}
    }
}

/// `captured 12345 tokens in 67 records into cache in 3.2 s, 100 tokens of them earlier`.
fn summary(captured: &Captured, arguments: &CaptureArguments) -> String {
    let Captured { records, targets, before, seconds, .. } = captured;
    let part = match arguments.part {
        aludel_cache::Part::WHOLE => String::new(),
        aludel_cache::Part { number, of } => format!(", part {number} of {of}"),
    };
    let earlier = if *before > 0 { format!(", {before} tokens of them earlier") } else { String::new() };
    let (cache, took) = (arguments.cache.display(), duration(*seconds));
    format!("captured {targets} tokens in {records} records into {cache} in {took}{part}{earlier}")
}
