//! Merges language models from the command line.
//!
//! In: arguments. Out: a model folder, a plan or a listing, and an exit code (see [`failure`]). The work is done by the
//! libraries; here arguments become settings, results become text, and errors become lines and codes.
//!
//! Reading order: [`args`] (as typed), [`settings`] (as meant), [`commands`], [`printer`], [`progress`], [`signals`],
//! [`hub`], [`failure`].
#![forbid(unsafe_code)]

mod args;
mod commands;
mod elsewhere;
mod failure;
mod hub;
mod printer;
mod progress;
mod settings;
mod signals;
mod storage;

use std::process::ExitCode;

use clap::Parser;

use args::Arguments;
use printer::Printer;
use settings::Talk;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let printer = Printer::new(Talk::of(&arguments.talk));
    #[cfg(unix)]
    aludel_checkpoint::tell_of_unreadable_files();
    match commands::run(arguments.command, &printer) {
        Ok(code) => code,
        Err(error) => {
            let code = failure::code_of(&error);
            printer.failure(&error, code);
            ExitCode::from(code)
        }
    }
}
