//! Runs one command each: settings in, library calls, results to the printer.

mod apply;
mod cache;
mod combine;
mod convert;
mod device;
mod devices;
mod diff;
mod distill;
mod eval;
mod extract;
mod generate;
mod gguf;
mod gpu;
mod inspect;
mod join;
mod layershuffle;
mod listing;
mod measuring;
mod merge;
mod methods;
mod moe;
mod plan;
mod recipe;
mod report;
mod run_file;
mod search;
mod statistics;
mod text;
mod tokensurgeon;

use std::process::ExitCode;

use crate::args::Command;
use crate::printer::Printer;

/// Runs the command that was asked for; the exit code where it succeeds, which is an answer for one.
pub(crate) fn run(command: Command, printer: &Printer) -> anyhow::Result<ExitCode> {
    match command {
        Command::Diff(arguments) => return diff::run(&arguments, printer),
        Command::Inspect(arguments) => inspect::run(&arguments, printer),
        Command::Layershuffle(arguments) => layershuffle::run(&arguments, printer),
        Command::Apply(arguments) => apply::run(&arguments, printer),
        Command::Join(arguments) => join::run(&arguments, printer),
        Command::Merge(arguments) => merge::run(&arguments, printer),
        Command::Search(arguments) => search::run(&arguments, printer),
        Command::Moe(arguments) => moe::run(&arguments, printer),
        Command::Plan(arguments) => plan::run(&arguments, printer),
        Command::MergeLora(arguments) => combine::run(&arguments, printer),
        Command::ExtractLora(arguments) => extract::run(&arguments, printer),
        Command::Tokensurgeon(arguments) => tokensurgeon::run(&arguments, printer),
        Command::Convert(arguments) => convert::run(&arguments, printer),
        Command::Devices(arguments) => devices::run(&arguments, printer),
        Command::Methods(arguments) => methods::run(&arguments, printer),
        Command::Distill(arguments) => distill::run(&arguments, printer),
        Command::Cache(command) => cache::run(&command, printer),
        Command::Report(arguments) => report::run(&arguments, printer),
        Command::Eval(arguments) => eval::run(&arguments, printer),
        Command::Statistics(arguments) => statistics::run(&arguments, printer),
        Command::Generate(arguments) => generate::run(&arguments, printer),
    }?;
    Ok(ExitCode::SUCCESS)
}
