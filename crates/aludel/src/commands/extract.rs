//! `aludel extract-lora`: extracts an adapter, and says how exact it is.

use aludel_checkpoint::DigestCache;
use aludel_merge::adapter::extract::{self, Report, Settings};
use aludel_merge::execute::ExecuteOptions;
use aludel_merge::plan::PlanOptions;

use crate::args::ExtractArguments;
use crate::failure;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::{Verbosity, float_type};
use crate::signals::Signals;

/// Extracts, and prints a table of errors; the report is the result where JSON is asked for.
pub(super) fn run(arguments: &ExtractArguments, printer: &Printer) -> anyhow::Result<()> {
    arguments.mergekit.heed(printer)?;
    let report = extract(arguments, printer)?;
    if let Some((before, after)) = report.resized {
        printer.warning(&format_args!(
            "the embedding has {after} rows where the base has {before}: peft needs \
             `model.resize_token_embeddings({after})` before it loads the adapter"
        ));
    }
    let line = format!(
        "extracted {} from {} into {} in {}: {}",
        arguments.finetuned(),
        arguments.base(),
        report.output.display(),
        duration(report.seconds),
        report.speed()
    );
    printer.say(Verbosity::Normal, &line);
    match printer.talk() {
        talk if talk.json => printer.json(&report),
        talk if talk.verbosity >= Verbosity::Verbose => Ok(printer.data(&format_args!("{report:#}"))?),
        _ => Ok(printer.data(&report)?),
    }
}

fn extract(arguments: &ExtractArguments, printer: &Printer) -> anyhow::Result<Report> {
    let settings = Settings {
        finetuned: arguments.finetuned(),
        base: arguments.base(),
        rank: arguments.rank.get(),
        error: arguments.error,
        epsilon: arguments.sv_epsilon,
        distribute_scale: !arguments.no_distribute_scale,
        include: &arguments.include_regex,
        exclude: &arguments.exclude_regex,
        save: &arguments.save_module,
        embed_lora: arguments.embed_lora,
        skip_undecomposable: arguments.skip_undecomposable,
        dtype: float_type(arguments.dtype),
    };
    let defaults = PlanOptions::default();
    let options = PlanOptions {
        hub: hub::open(printer),
        seed: arguments.seed.seed,
        threads: arguments.threads.map_or(defaults.threads, usize::from),
        memory: arguments.memory.0,
        ..defaults
    };
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let execute = ExecuteOptions {
        replace: arguments.writing.force,
        digests: DigestCache::user(),
        cancel: signals.cancel(),
        on_progress: &|state| {
            progress.show(match Stage::of_merge(state) {
                _ if state.bytes_read < state.bytes_to_read => {
                    Stage::bytes("extracting", state.bytes_read, state.bytes_to_read)
                }
                other => other,
            });
        },
        sync: !arguments.writing.no_sync,
        ..ExecuteOptions::default()
    };
    let result = extract::extract(&settings, &arguments.output(), &options, &execute);
    drop(progress);
    result.map_err(|error| failure::of_merging(error, signals.received(), None))
}
