//! Runs what reads models and writes none, with progress and signals.

use std::path::Path;

use aludel_merge::execute::{ExecuteOptions, MergeError};

use crate::failure;
use crate::printer::Printer;
use crate::progress::{Progress, Stage};
use crate::signals::Signals;

/// Runs `measure`, which reads what `label` says it does.
pub(super) fn run<T>(
    label: &'static str,
    printer: &Printer,
    measure: impl FnOnce(&ExecuteOptions<'_>) -> Result<T, MergeError>,
) -> anyhow::Result<T> {
    let signals = Signals::listen()?;
    let progress = Progress::new(printer);
    let result = measure(&ExecuteOptions {
        cancel: signals.cancel(),
        on_progress: &|state| progress.show(Stage::bytes(label, state.bytes_read, state.bytes_to_read)),
        sync: false,
        ..ExecuteOptions::default()
    });
    drop(progress);
    result.map_err(|error| failure::of_merging(error, signals.received(), None))
}

/// Writes a file in one go: under its name it is whole, or as it was before.
pub(super) fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let staged = path.with_file_name(name);
    let written = std::fs::write(&staged, text).and_then(|()| std::fs::rename(&staged, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&staged); // The failure to write is what counts.
        anyhow::anyhow!("cannot write {}: {error}", path.display())
    })
}
