//! `aludel cache verify`: checks what is stored.

use std::path::Path;

use aludel_cache::{Cache, Error};
use aludel_distill::cache::{Distance, Verified, verify};
use aludel_document::Problem;

use crate::args::CacheVerifyArguments;
use crate::commands::device;
use crate::commands::run_file::RunFile;
use crate::failure::Refusal;
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};
use crate::signals::Signals;
use crate::storage;

/// Holds every byte against its checksum, and with a run a sample against the live teacher.
pub(super) fn run(arguments: &CacheVerifyArguments, printer: &Printer) -> anyhow::Result<()> {
    let folder = storage::local(&arguments.cache, printer)?;
    let cache = Cache::open(&folder).map_err(refused)?;
    let progress = Progress::new(printer);
    let total = cache.bytes();
    cache.verify(&mut |done| progress.show(Stage::bytes("verifying", done, total)))?;
    drop(progress);
    let sound = format!(
        "every byte of {} files is sound: {} tokens in {} records",
        cache.shards(),
        cache.targets(),
        cache.len()
    );
    let Some(run) = &arguments.run else { return Ok(printer.data(&sound)?) };
    let verified = score(arguments, &folder, run, printer)?;
    if printer.talk().json {
        return printer.json(&verified);
    }
    Ok(printer.data(&format!("{sound}\n{}", table(&verified)))?)
}

fn score(
    arguments: &CacheVerifyArguments,
    folder: &Path,
    run: &Path,
    printer: &Printer,
) -> anyhow::Result<Verified> {
    let file = RunFile::read(run)?;
    let hub = hub::open(printer);
    let run = file.parse()?.with_models(|model| hub::locate(&hub, model))?;
    let device = device::open_cpu(&arguments.computing)?;
    let (signals, progress) = (Signals::listen()?, Progress::new(printer));
    let show = |done, total| {
        let figures = format!("{done} of {total} records");
        progress.show(Stage::measured("comparing", done as u64, total as u64, figures));
    };
    let result = verify(&device, &run, folder, arguments.records, signals.cancel(), &show);
    result.map_err(|error| file.failure(error, signals.received(), None))
}

fn table(verified: &Verified) -> String {
    let Verified { records, tokens, stored, control } = verified;
    let row = |name: &str, of: &dyn Fn(&Distance) -> String| {
        format!("{name:24}{:>12}{:>12}", of(stored), of(control))
    };
    [
        format!("{tokens} tokens of {records} records against the live teacher, and it against itself:"),
        row("KL(live, stored)", &|x| x.kl.map_or("-".to_owned(), |kl| format!("{kl:.6}"))),
        row("KL(stored, live)", &|x| format!("{:.6}", x.reverse_kl)),
        row("top-1 agreement", &|x| format!("{:.4}", x.top1)),
        row("kept mass", &|x| format!("{:.4}", x.kept_mass)),
        row("calibration error", &|x| format!("{:.4}", x.calibration_error)),
    ]
    .join("\n")
}

/// What keeps a cache from being opened is a refusal, but for damage.
pub(super) fn refused(error: Error) -> anyhow::Error {
    match error {
        Error::NotACache { .. } | Error::Incomplete { .. } | Error::Differs { .. } | Error::Busy { .. } => {
            Refusal { recipe: None, problems: Problem::general(error.to_string()).into() }.into()
        }
        other => other.into(),
    }
}
