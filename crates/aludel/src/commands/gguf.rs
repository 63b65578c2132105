//! Turns a GGUF file into a model folder, for `aludel convert`.

use std::path::Path;
use std::time::Instant;

use aludel_checkpoint::gguf::{Conversion, ConvertOptions, ConvertProgress, ConvertReport};
use aludel_checkpoint::{DigestCache, Error, OutputFolder, free_for_output};
use aludel_document::{Problem, Problems};
use aludel_merge::plan::Bytes;
use serde_json::{Value, json};

use crate::args::{ConvertArguments, WeightName};
use crate::failure::{self, Interrupted, Refusal};
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::{Verbosity, float_type};
use crate::signals::Signals;

/// Whether a path is a GGUF file, by its name or its first bytes.
pub(super) fn is_gguf(path: &Path) -> bool {
    let is_named = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    is_named || aludel_checkpoint::is_gguf(path)
}

/// Converts, and prints a summary; the report is the result where JSON is asked for.
pub(super) fn run(arguments: &ConvertArguments, printer: &Printer) -> anyhow::Result<()> {
    let begin = Instant::now();
    let conversion = plan(arguments).map_err(|problems| Refusal { recipe: None, problems })?;
    announce(&conversion, arguments, printer);
    let report = execute(&conversion, arguments, printer)?;
    let seconds = begin.elapsed().as_secs_f64();
    printer.say(Verbosity::Normal, &summary(arguments, &report, seconds));
    if printer.talk().json { printer.json(&report_json(arguments, &report, seconds)) } else { Ok(()) }
}

fn plan(arguments: &ConvertArguments) -> Result<Conversion, Problems> {
    let problem = |error: Error| Problem::general(error.to_string());
    let options = ConvertOptions {
        dtype: arguments.dtype.and_then(WeightName::float).map(|name| float_type(name).into()),
        shard_bytes: arguments.planning.shard_size.0,
    };
    let conversion = Conversion::plan(&arguments.input, &options).map_err(problem)?;
    let needed = conversion.output_bytes();
    // Where the system does not say how much is free, a full disk shows while writing.
    if let Some(free) = free_for_output(&arguments.output).ok().flatten().filter(|free| *free < needed) {
        let place = arguments.output.display();
        let message = format!("the output takes {}, but {place} has {} free", Bytes(needed), Bytes(free));
        return Err(Problem::general(message).with_hint("choose an output folder on another disk").into());
    }
    Ok(conversion)
}

fn announce(conversion: &Conversion, arguments: &ConvertArguments, printer: &Printer) {
    let (input, output) = (arguments.input.display(), arguments.output.display());
    let (dtype, bytes) = (conversion.dtype(), Bytes(conversion.output_bytes()));
    printer.say(
        Verbosity::Normal,
        &format_args!("converting {input} into {output} as {dtype}: {bytes} to write"),
    );
    for dropped in conversion.dropped() {
        printer.say(Verbosity::Normal, &format_args!("left out {}: {}", dropped.name, dropped.reason));
    }
    for warning in conversion.warnings() {
        printer.warning(warning);
    }
}

fn execute(
    conversion: &Conversion,
    arguments: &ConvertArguments,
    printer: &Printer,
) -> anyhow::Result<ConvertReport> {
    let signals = Signals::listen()?;
    let mut folder = OutputFolder::create(&arguments.output, arguments.writing.folder.force)?;
    if arguments.writing.folder.no_sync {
        folder.skip_sync();
    }
    let progress = Progress::new(printer);
    let check = || {
        if let Some(signal) = signals.received() {
            progress.clear();
            abandon(&folder, signal, printer);
        }
    };
    let report = conversion.write(&folder, &mut |state: ConvertProgress<'_>| {
        check();
        progress.show(Stage::bytes("converting", state.bytes, state.total_bytes));
    })?;
    let total = conversion.header().file_bytes();
    let mut hashed = 0;
    let digest = DigestCache::user().sha256(&arguments.input, &mut |bytes| {
        check();
        hashed += bytes;
        progress.show(Stage::bytes("hashing the input", hashed, total));
        std::ops::ControlFlow::Continue(())
    })?;
    folder.write("README.md", card(&arguments.input, total, &digest).as_bytes())?;
    progress.show(Stage::waiting("syncing"));
    folder.finish()?;
    Ok(report)
}

/// Ends the process in the middle of a conversion, which has no other way to stop, and leaves no staging folder.
fn abandon(folder: &OutputFolder, signal: u8, printer: &Printer) -> ! {
    let _ = std::fs::remove_dir_all(folder.path()); // If it stays, the next run on the target removes it.
    let error = Interrupted { signal, left: None }.into();
    let code = failure::code_of(&error);
    printer.failure(&error, code);
    std::process::exit(code.into())
}

/// The model card: from what, by what.
fn card(input: &Path, bytes: u64, digest: &str) -> String {
    let name = input.file_name().unwrap_or_default().to_string_lossy();
    let name = name.replace(|c: char| c.is_control() || "|`[]<>".contains(c), "_");
    format!(
        "---\nlibrary_name: transformers\ntags:\n- aludel\n---\n\n# Converted model\n\n\
         Converted from GGUF with aludel {}.\n\n\
         | file | bytes | SHA-256 |\n|---|---|---|\n| {name} | {bytes} | `{digest}` |\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn summary(arguments: &ConvertArguments, report: &ConvertReport, seconds: f64) -> String {
    let (input, output) = (arguments.input.display(), arguments.output.display());
    let rate = Bytes((report.bytes_written as f64 / seconds.max(1e-3)) as u64);
    let written = Bytes(report.bytes_written);
    format!("converted {input} into {output} ({written}) in {}: {rate}/s written", duration(seconds))
}

fn report_json(arguments: &ConvertArguments, report: &ConvertReport, seconds: f64) -> Value {
    let dropped = |dropped: &aludel_checkpoint::gguf::Dropped| json!({"tensor": dropped.name, "reason": dropped.reason});
    json!({
        "output": arguments.output,
        "dtype": report.dtype,
        "tensors": report.tensors,
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "dropped": report.dropped.iter().map(dropped).collect::<Vec<_>>(),
        "warnings": report.warnings,
        "seconds": seconds,
    })
}
