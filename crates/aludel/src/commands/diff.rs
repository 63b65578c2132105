//! `aludel diff`: compares two models, and answers by the exit code as well.

use std::process::ExitCode;

use aludel_document::{Problem, Problems};
use aludel_merge::diff::{self, Settings};
use aludel_merge::plan::PlanOptions;

use crate::args::DiffArguments;
use crate::failure::{Interrupted, Refusal};
use crate::hub;
use crate::printer::Printer;
use crate::settings::reading_options;

use super::measuring;

/// What `diff` answers for models that differ, as the system's own does.
const DIFFERENT: u8 = 1;

/// Compares, and prints what differs.
pub(super) fn run(arguments: &DiffArguments, printer: &Printer) -> anyhow::Result<ExitCode> {
    let settings = Settings {
        first: &arguments.first,
        second: &arguments.second,
        tolerance: arguments.tolerance,
        relative_tolerance: arguments.relative_tolerance,
        ignore_types: arguments.ignore_dtype,
    };
    let options = PlanOptions { hub: hub::open(printer), ..reading_options(&arguments.reading) };
    let compared = measuring::run("comparing", printer, |execute| diff::diff(&settings, &options, execute));
    let difference = compared.map_err(no_answer)?;
    if printer.talk().json {
        printer.json(&difference)?;
    } else {
        printer.data(&difference)?;
    }
    Ok(if difference.equal { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

/// A failure has a code of its own here, as 1 is an answer.
fn no_answer(error: anyhow::Error) -> anyhow::Error {
    if error.is::<Refusal>() || error.is::<Interrupted>() {
        return error;
    }
    let problems = Problems::from(Problem::general(format!("{error:#}")));
    Refusal { recipe: None, problems }.into()
}
