//! Runs one command each: settings in, library calls, results to the printer.

mod cache;
mod convert;
mod device;
mod distill;
mod eval;
mod generate;
mod gguf;
mod listing;
mod merge;
mod methods;
mod plan;
mod recipe;
mod report;
mod run_file;
mod text;

use crate::args::Command;
use crate::printer::Printer;

/// Runs the command that was asked for.
pub(crate) fn run(command: Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Merge(arguments) => merge::run(&arguments, printer),
        Command::Plan(arguments) => plan::run(&arguments, printer),
        Command::Convert(arguments) => convert::run(&arguments, printer),
        Command::Methods(arguments) => methods::run(&arguments, printer),
        Command::Distill(arguments) => distill::run(&arguments, printer),
        Command::Cache(command) => cache::run(&command, printer),
        Command::Report(arguments) => report::run(&arguments, printer),
        Command::Eval(arguments) => eval::run(&arguments, printer),
        Command::Generate(arguments) => generate::run(&arguments, printer),
    }
}
