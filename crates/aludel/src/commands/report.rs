//! `aludel report`: renders the record of a run as a page.

use std::path::{Path, PathBuf};

use aludel_distill::{folder, record};
use aludel_document::Problem;
use serde_json::json;

use crate::args::ReportArguments;
use crate::failure::Refusal;
use crate::printer::Printer;

/// Writes the page into the run's folder, and prints where it is.
pub(super) fn run(arguments: &ReportArguments, printer: &Printer) -> anyhow::Result<()> {
    let page = record::write_report(&find(&arguments.run)?)?;
    if printer.talk().json {
        return printer.json(&json!({"report": page}));
    }
    Ok(printer.data(&page.display())?)
}

/// The folder of a run that is named itself or by its output.
fn find(given: &Path) -> Result<PathBuf, Refusal> {
    let candidates = [given.to_path_buf(), folder::path_for(given)];
    candidates.into_iter().find(|folder| folder.join("run.json").is_file()).ok_or_else(|| {
        let message = format!("{} holds no run", given.display());
        let problem = Problem::general(message).with_hint("give a run's folder, which ends in `.run`");
        Refusal { recipe: None, problems: problem.into() }
    })
}
