//! Runs one command each: settings in, library calls, results to the printer.

mod convert;
mod gguf;
mod merge;
mod methods;
mod plan;
mod recipe;

use crate::args::Command;
use crate::printer::Printer;

/// Runs the command that was asked for.
pub(crate) fn run(command: Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Merge(arguments) => merge::run(&arguments, printer),
        Command::Plan(arguments) => plan::run(&arguments, printer),
        Command::Convert(arguments) => convert::run(&arguments, printer),
        Command::Methods(arguments) => methods::run(&arguments, printer),
    }
}
