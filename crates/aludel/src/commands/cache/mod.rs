//! `aludel cache`: stores what a teacher says, and looks at what is stored.

mod capture;
mod convert;
mod info;
mod verify;

use crate::args::CacheCommand;
use crate::printer::Printer;

/// Runs what was asked for.
pub(super) fn run(command: &CacheCommand, printer: &Printer) -> anyhow::Result<()> {
    match command {
        CacheCommand::Capture(arguments) => capture::run(arguments, printer),
        CacheCommand::Convert(arguments) => convert::run(arguments, printer),
        CacheCommand::Info(arguments) => info::run(arguments, printer),
        CacheCommand::Verify(arguments) => verify::run(arguments, printer),
    }
}
