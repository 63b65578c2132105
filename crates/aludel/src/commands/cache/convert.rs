//! `aludel cache convert`: makes a cache of rows that another tool stored, and rows of a cache for other tools.

use std::path::Path;

use aludel_cache::{Header, WriterOptions};
use aludel_checkpoint::DigestCache;
use aludel_distill::cache::convert::{
    Export, Exported, Import, Imported, Layout, Restore, export, header_of, import, restore,
};
use aludel_document::Problem;

use super::capture::show;
use crate::args::{CacheConvertArguments, CacheLayout};
use crate::commands::run_file::RunFile;
use crate::failure::{self, Refusal};
use crate::hub;
use crate::printer::Printer;
use crate::progress::{Progress, Stage, duration};
use crate::settings::Verbosity;
use crate::signals::Signals;

/// Tokens of a position in DistillKit's columns, where the cache has all.
const K: u32 = 128;

/// Converts what is there into what is asked for.
pub(super) fn run(arguments: &CacheConvertArguments, printer: &Printer) -> anyhow::Result<()> {
    let is_cache = arguments.input.join("cache.json").is_file();
    let to = arguments.to.unwrap_or(if is_cache { CacheLayout::Parquet } else { CacheLayout::Cache });
    match (is_cache, to) {
        (true, CacheLayout::Cache) => {
            Err(refused("the input is a cache already", "give `--to parquet` or `--to distillkit`"))
        }
        (true, CacheLayout::Parquet) => to_rows(arguments, Layout::Whole, printer),
        (true, CacheLayout::Distillkit) => {
            to_rows(arguments, Layout::DistillKit { k: arguments.k.unwrap_or(K) }, printer)
        }
        (false, CacheLayout::Cache) => match header_of(&arguments.input)? {
            Some(header) => back(arguments, header, printer),
            None => from_rows(arguments, printer),
        },
        (false, _) => {
            let message = format!(
                "{} is no teacher cache, and `--to` asks for the rows of one",
                arguments.input.display()
            );
            Err(refused(&message, "leave `--to` out to make a cache of other rows"))
        }
    }
}

/// Rows of another tool become a cache.
fn from_rows(arguments: &CacheConvertArguments, printer: &Printer) -> anyhow::Result<()> {
    let Some(run) = &arguments.run else {
        return Err(refused(
            "rows do not say what their data are, nor what their ids mean",
            "give the run that is to be trained from the cache by `--run`",
        ));
    };
    let file = RunFile::read(run)?;
    let run = file.parse()?;
    let hub = hub::open(printer);
    let run = run.with_models(|model| hub::locate(&hub, model))?;
    let (signals, progress) = (Signals::listen()?, Progress::new(printer));
    let result = import(&Import {
        source: &arguments.input,
        folder: &arguments.output,
        run: &run,
        compression: arguments.compression.as_deref(),
        teacher: arguments.teacher.as_deref(),
        vocabulary: arguments.vocabulary,
        k: arguments.k,
        are_logits: arguments.logits,
        options: options(arguments),
        digests: &DigestCache::user(),
        cancel: signals.cancel(),
        on_stage: &|stage| show(stage, "converting", &progress),
    });
    drop(progress);
    let imported =
        result.map_err(|error| file.failure(error, signals.received(), Some(left(&arguments.output))))?;
    say_imported(&imported, arguments, printer)
}

/// What was exported becomes a cache again.
fn back(arguments: &CacheConvertArguments, header: Header, printer: &Printer) -> anyhow::Result<()> {
    if arguments.part != aludel_cache::Part::WHOLE {
        return Err(refused("an exported cache comes back in one part", "leave `--part` out"));
    }
    let (signals, progress) = (Signals::listen()?, Progress::new(printer));
    let result = restore(&Restore {
        file: &arguments.input,
        header,
        folder: &arguments.output,
        options: options(arguments),
        cancel: signals.cancel(),
        on_record: &|done, total, tokens, seconds| show_records((done, total), tokens, seconds, &progress),
    });
    drop(progress);
    let imported = result
        .map_err(|error| failure::of_distilling(error, signals.received(), Some(left(&arguments.output))))?;
    say_imported(&imported, arguments, printer)
}

/// A cache becomes rows.
fn to_rows(arguments: &CacheConvertArguments, layout: Layout, printer: &Printer) -> anyhow::Result<()> {
    check_output(&arguments.output, arguments.force)?;
    let file = arguments.run.as_deref().map(RunFile::read).transpose()?;
    let run = file.as_ref().map(RunFile::parse).transpose()?;
    let hub = hub::open(printer);
    let run = run.map(|run| run.with_models(|model| hub::locate(&hub, model))).transpose()?;
    let (signals, progress) = (Signals::listen()?, Progress::new(printer));
    let result = export(&Export {
        cache: &arguments.input,
        file: &arguments.output,
        layout,
        run: run.as_ref(),
        sync: !arguments.no_sync,
        cancel: signals.cancel(),
        on_record: &|done, total, tokens, seconds| show_records((done, total), tokens, seconds, &progress),
    });
    drop(progress);
    let exported = result.map_err(|error| match &file {
        Some(file) => file.failure(error, signals.received(), None),
        None => failure::of_distilling(error, signals.received(), None),
    })?;
    let Exported { records, targets, bytes, seconds } = &exported;
    let (output, took) = (arguments.output.display(), duration(*seconds));
    let size = aludel_merge::plan::Bytes(*bytes);
    let summary = format!("wrote {targets} tokens in {records} rows to {output}, {size}, in {took}");
    printer.say(Verbosity::Normal, &summary);
    if printer.talk().json { printer.json(&exported) } else { Ok(()) }
}

/// A file is replaced only when asked, and what is no file never.
fn check_output(output: &Path, force: bool) -> anyhow::Result<()> {
    if output.extension().is_none_or(|extension| extension != "parquet") {
        let message = format!("{} is no name of a Parquet file", output.display());
        return Err(refused(&message, "rows of a cache are written to one file: end its name in .parquet"));
    }
    if output.is_dir() || (output.exists() && !force) {
        return Err(refused(
            &format!("{} exists", output.display()),
            "give another name, or `--force` to replace a file",
        ));
    }
    Ok(())
}

const fn options(arguments: &CacheConvertArguments) -> WriterOptions {
    WriterOptions { part: arguments.part, shard_bytes: arguments.shard_size.0, sync: !arguments.no_sync }
}

fn show_records((done, total): (usize, usize), tokens: u64, seconds: f64, progress: &Progress<'_>) {
    let rate = tokens as f64 / seconds.max(1e-9);
    let left = seconds / done.max(1) as f64 * total.saturating_sub(done) as f64;
    let figures =
        format!("{done} of {total} records, {tokens} tokens, {rate:.0} tokens/s, {} left", duration(left));
    progress.show(Stage::measured("converting", done as u64, total as u64, figures));
}

/// `converted 12345 tokens in 67 records into cache in 3.2 s, 100 tokens of them earlier`.
fn say_imported(
    imported: &Imported,
    arguments: &CacheConvertArguments,
    printer: &Printer,
) -> anyhow::Result<()> {
    let Imported { records, targets, before, seconds } = imported;
    let part = match arguments.part {
        aludel_cache::Part::WHOLE => String::new(),
        aludel_cache::Part { number, of } => format!(", part {number} of {of}"),
    };
    let earlier = if *before > 0 { format!(", {before} tokens of them earlier") } else { String::new() };
    let (output, took) = (arguments.output.display(), duration(*seconds));
    let summary =
        format!("converted {targets} tokens in {records} records into {output} in {took}{part}{earlier}");
    printer.say(Verbosity::Normal, &summary);
    if printer.talk().json { printer.json(imported) } else { Ok(()) }
}

fn left(output: &Path) -> String {
    format!("{} holds what was converted: run the command again to go on", output.display())
}

fn refused(message: &str, hint: &str) -> anyhow::Error {
    Refusal { recipe: None, problems: Problem::general(message).with_hint(hint).into() }.into()
}
