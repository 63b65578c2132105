//! `aludel join`: makes one model folder of the parts that several merges have written.

use aludel_merge::execute::{JoinOptions, join};
use aludel_merge::plan::{Bytes, PlanOptions};

use crate::args::JoinArguments;
use crate::failure;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::Verbosity;
use crate::signals::Signals;

/// Joins, and prints a summary; what was joined is the result where JSON is asked for.
pub(super) fn run(arguments: &JoinArguments, printer: &Printer) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let result = join(
        &arguments.output,
        &JoinOptions {
            replace: arguments.writing.force,
            sync: !arguments.writing.no_sync,
            threads: arguments.threads.map_or_else(|| PlanOptions::default().threads, usize::from),
            cancel: signals.cancel(),
            on_progress: &|checked, all| progress.show(Stage::bytes("checking", checked, all)),
        },
    );
    drop(progress);
    let joined = result.map_err(|error| {
        let left = Some("the parts are as they were".to_owned());
        failure::of_merging(error, signals.received(), left)
    })?;
    let line = format!(
        "joined {} parts into {}: {} file(s), {}, in {}",
        joined.parts,
        joined.output.display(),
        joined.files,
        Bytes(joined.bytes),
        duration(joined.seconds)
    );
    printer.say(Verbosity::Normal, &line);
    if printer.talk().json { printer.json(&joined) } else { Ok(()) }
}
