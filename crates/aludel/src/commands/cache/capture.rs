//! `aludel cache capture`: runs a teacher over the data of a run.

use aludel_cache::WriterOptions;
use aludel_checkpoint::DigestCache;
use aludel_distill::cache::{self, Capture, Captured, Wanted};
use aludel_document::Problem;

use crate::args::{CacheMode, CaptureArguments};
use crate::commands::device;
use crate::commands::run_file::RunFile;
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::Verbosity;
use crate::signals::Signals;
use crate::storage;

/// Captures, and says what was stored.
pub(super) fn run(arguments: &CaptureArguments, printer: &Printer) -> anyhow::Result<()> {
    let wanted = wanted(arguments)?;
    let file = RunFile::read(&arguments.run)?;
    let run = file.parse()?;
    // The same on every machine, wherever a hub's files lie.
    let name = run.teacher.as_ref().map(|teacher| teacher.display().to_string());
    let hub = hub::open(printer);
    let run = run.with_models(|model| hub::locate(&hub, model))?;
    let place = storage::place(&arguments.cache)?;
    let device = device::open_cpu(&arguments.computing)?;
    let (signals, progress) = (Signals::listen()?, Progress::new(printer));
    let options =
        WriterOptions { part: arguments.part, shard_bytes: arguments.shard_size.0, sync: !arguments.no_sync };
    let result = cache::capture(
        &device,
        &Capture {
            run: &run,
            teacher: name.as_deref(),
            folder: &place.folder,
            shelf: place.shelf,
            wanted,
            temperatures: arguments.temperatures.clone(),
            options,
            is_dry: arguments.dry_run,
            digests: &DigestCache::user(),
            cancel: signals.cancel(),
            on_stage: &|stage| show(stage, "capturing", &progress),
        },
    );
    drop(progress);
    let captured = result.map_err(|error| {
        let cache = arguments.cache.display();
        let left = format!("{cache} holds what was captured: run the command again to go on");
        file.failure(error, signals.received(), Some(left))
    })?;
    printer.say(Verbosity::Normal, &summary(&captured, arguments));
    if printer.talk().json { printer.json(&captured) } else { Ok(()) }
}

/// Refuses flags that say how another mode stores rows.
fn wanted(arguments: &CaptureArguments) -> anyhow::Result<Wanted> {
    let &CaptureArguments { mode, k, draws, seed, .. } = arguments;
    let flags = [
        ("--k", k.is_some(), CacheMode::TopK),
        ("--draws", draws.is_some(), CacheMode::Sampled),
        ("--seed", seed.is_some(), CacheMode::Sampled),
    ];
    if let Some((flag, _, of)) = flags.into_iter().find(|(_, is_given, of)| *is_given && *of != mode) {
        let message = format!("`{flag}` is of the mode `{of}`, and the mode is `{mode}`");
        let hint = format!("leave it out, or give `--mode {of}`");
        return Err(
            Refusal { recipe: None, problems: Problem::general(message).with_hint(hint).into() }.into()
        );
    }
    Ok(match mode {
        CacheMode::TopK => Wanted::TopK { k: k.unwrap_or(K) },
        CacheMode::Sampled => Wanted::Sampled { draws: draws.unwrap_or(DRAWS), seed: seed.unwrap_or(0) },
        CacheMode::Int8 => Wanted::Int8,
        CacheMode::Int4 => Wanted::Int4,
        CacheMode::Hidden => Wanted::Hidden,
    })
}

/// Tokens of a row, where nothing is said of it.
const K: u32 = 128;

/// Draws of a row, likewise.
const DRAWS: u32 = 12;

/// Shows how far a teacher's rows are, which are being captured or had by other means.
pub(super) fn show(stage: cache::Stage, what: &'static str, progress: &Progress<'_>) {
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
            progress.show(Stage::measured(what, done, total, figures));
        }
        _ => {}
    }
}

/// `captured 12345 tokens in 67 records into cache in 3.2 s, 100 tokens of them earlier`.
fn summary(captured: &Captured, arguments: &CaptureArguments) -> String {
    let Captured { records, targets, before, seconds, pass_seconds, .. } = captured;
    if arguments.dry_run {
        let rate = *targets as f64 / pass_seconds.max(1e-9);
        return format!("the teacher said all of {targets} tokens, {rate:.0} a second; nothing was stored");
    }
    let part = match arguments.part {
        aludel_cache::Part::WHOLE => String::new(),
        aludel_cache::Part { number, of } => format!(", part {number} of {of}"),
    };
    let earlier = if *before > 0 { format!(", {before} tokens of them earlier") } else { String::new() };
    let (cache, took) = (arguments.cache.display(), duration(*seconds));
    format!("captured {targets} tokens in {records} records into {cache} in {took}{part}{earlier}")
}
