//! `aludel apply`: makes the model folder of a sparse delta and its base.

use aludel_merge::apply::{Options, apply};
use aludel_merge::plan::{Bytes, PlanOptions};

use crate::args::ApplyArguments;
use crate::failure;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::Verbosity;
use crate::signals::Signals;

/// Applies, and prints a summary; what was made is the result where JSON is asked for.
pub(super) fn run(arguments: &ApplyArguments, printer: &Printer) -> anyhow::Result<()> {
    let hub = hub::open(printer);
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let result = apply(
        &arguments.delta,
        &arguments.output,
        &Options {
            base: arguments.base.as_deref(),
            replace: arguments.writing.force,
            sync: !arguments.writing.no_sync,
            threads: arguments.threads.map_or_else(|| PlanOptions::default().threads, usize::from),
            shard_bytes: arguments.shard_size.0,
            hub: &hub,
            cancel: signals.cancel(),
            on_progress: &|made, all| progress.show(Stage::bytes("applying", made, all)),
        },
    );
    drop(progress);
    let applied = result.map_err(|error| failure::of_merging(error, signals.received(), None))?;
    let line = format!(
        "applied a delta of {} to {}: {} tensors, {}, into {} in {}",
        Bytes(applied.delta_bytes),
        applied.base,
        applied.tensors,
        Bytes(applied.bytes),
        applied.output.display(),
        duration(applied.seconds)
    );
    printer.say(Verbosity::Normal, &line);
    if printer.talk().json { printer.json(&applied) } else { Ok(()) }
}
