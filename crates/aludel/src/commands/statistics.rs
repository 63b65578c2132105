//! `aludel statistics`: runs a model over text for what merges want to know of it.

use std::num::NonZeroUsize;

use aludel_checkpoint::DigestCache;
use aludel_distill::statistics::{self, Collected, Forecast, Kind, Settings};
use aludel_merge::plan::Bytes;

use crate::args::{StatisticsArguments, StatisticsKind};
use crate::failure;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::Verbosity;
use crate::signals::Signals;

use super::device;
use super::listing::listing;

/// Collects, and says what; or says what it would take.
pub(super) fn run(arguments: &StatisticsArguments, printer: &Printer) -> anyhow::Result<()> {
    let model = hub::locate(&hub::open(printer), &arguments.model)?;
    let device = device::open_cpu(&arguments.computing)?;
    let (signals, progress, digests) = (Signals::listen()?, Progress::new(printer), DigestCache::user());
    let settings = Settings {
        model: &model,
        kind: match arguments.kind {
            StatisticsKind::Gram => Kind::Gram,
            StatisticsKind::Fisher => Kind::Fisher,
        },
        data: &arguments.data,
        window: arguments.window.map(NonZeroUsize::get),
        tokens: arguments.tokens.map(u64::from),
        memory: arguments.memory.0,
        target: arguments.output.as_deref(),
        replace: arguments.writing.force,
        sync: !arguments.writing.no_sync,
        shard_bytes: arguments.shard_size.0,
        digests: &digests,
        cancel: signals.cancel(),
        on_stage: &|stage| show(stage, &progress),
        on_forecast: &|forecast| printer.say(Verbosity::Normal, &announced(forecast)),
    };
    if arguments.dry_run {
        let result = statistics::forecast(&device, &settings);
        drop(progress);
        let forecast = result.map_err(|error| failure::of_distilling(error, signals.received(), None))?;
        return if printer.talk().json {
            printer.json(&forecast)
        } else {
            Ok(printer.data(&table(&forecast))?)
        };
    }
    let result = statistics::collect(&device, &settings);
    drop(progress);
    let collected = result.map_err(|error| failure::of_distilling(error, signals.received(), None))?;
    printer.say(Verbosity::Normal, &summary(&collected));
    if printer.talk().json { printer.json(&collected) } else { Ok(()) }
}

fn show(stage: statistics::Stage, progress: &Progress<'_>) {
    match stage {
        statistics::Stage::Hashing { done, total } => {
            progress.show(Stage::bytes("hashing the model", done, total));
        }
        statistics::Stage::Collecting { done, total, seconds } => {
            let rate = done as f64 / seconds.max(1e-9);
            let left = duration(total.saturating_sub(done) as f64 / rate.max(1e-9));
            let figures = format!("{done} of {total} tokens, {rate:.0} tokens/s, {left} left");
            progress.show(Stage::measured("collecting", done, total, figures));
        }
        _ => {}
    }
}

/// `collecting gram of 210 tensors (521.0 MB) over 20480 tokens in 1 pass, 402.0 MB of sums`.
fn announced(forecast: &Forecast) -> String {
    let Forecast { kind, tensors, bytes, tokens, passes, memory, .. } = forecast;
    let (bytes, memory, kind) = (Bytes(*bytes), Bytes(*memory), kind.name());
    let passes = passes_of(*passes);
    format!(
        "collecting {kind} of {tensors} tensors ({bytes}) over {tokens} tokens in {passes}, {memory} of sums"
    )
}

fn passes_of(passes: usize) -> String {
    format!("{passes} pass{}", if passes == 1 { "" } else { "es" })
}

fn table(forecast: &Forecast) -> String {
    let Forecast { model, kind, tensors, bytes, memory, passes, window, tokens, pieces } = forecast;
    listing(&[
        ("model", model.display().to_string()),
        ("kind", kind.name().to_owned()),
        ("tokens", format!("{tokens} in {pieces} pieces of at most {window}")),
        ("passes", passes_of(*passes)),
        ("memory", format!("{} of sums, beyond the model", Bytes(*memory))),
        ("output", format!("{tensors} tensors, {}", Bytes(*bytes))),
    ])
}

/// `collected gram of 210 tensors into out (521.0 MB) over 20480 tokens in 41 s: 500 tokens/s`.
fn summary(collected: &Collected) -> String {
    let Collected { output, forecast, seconds } = collected;
    let Forecast { kind, tensors, bytes, tokens, passes, .. } = forecast;
    let rate = (tokens * *passes as u64) as f64 / seconds.max(1e-9);
    format!(
        "collected {} of {tensors} tensors into {} ({}) over {tokens} tokens in {}: {rate:.0} tokens/s",
        kind.name(),
        output.display(),
        Bytes(*bytes),
        duration(*seconds),
    )
}
