//! Decides how the program talks: how much, in colour or not, with a moving bar or plain lines.

use std::io::IsTerminal;

use anstream::ColorChoice;

use crate::args::{ColorWhen, TalkFlags};

/// How the program talks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Talk {
    /// Whether results and errors are JSON on standard output.
    pub(crate) json: bool,
    /// How much is said on standard error.
    pub(crate) verbosity: Verbosity,
    /// How progress is shown on standard error.
    pub(crate) progress: Display,
    /// Whether standard error is coloured.
    pub(crate) color: ColorChoice,
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verbosity {
    /// Errors.
    Quiet,
    /// Progress and a summary.
    Normal,
    /// The plan as well.
    Verbose,
    /// Every step of the plan.
    Steps,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    /// Not at all.
    Hidden,
    /// As lines, a few a minute at most.
    Lines,
    /// As a bar that is drawn again and again.
    Bar,
}

impl Talk {
    /// What the flags and the terminal say together.
    pub(crate) fn of(flags: &TalkFlags) -> Self {
        let verbosity = verbosity(flags);
        let terminal =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            json: flags.json,
            verbosity,
            progress: progress(verbosity, terminal),
            color: color(flags.color),
        }
    }
}

fn verbosity(flags: &TalkFlags) -> Verbosity {
    match (flags.quiet, flags.verbose) {
        (true, _) => Verbosity::Quiet,
        (false, 0) => Verbosity::Normal,
        (false, 1) => Verbosity::Verbose,
        (false, _) => Verbosity::Steps,
    }
}

fn progress(verbosity: Verbosity, terminal: bool) -> Display {
    match (verbosity, terminal) {
        (Verbosity::Quiet, _) => Display::Hidden,
        (_, true) => Display::Bar,
        (_, false) => Display::Lines,
    }
}

/// `auto` is left to the stream, which knows NO_COLOR and its siblings.
const fn color(when: ColorWhen) -> ColorChoice {
    match when {
        ColorWhen::Auto => ColorChoice::Auto,
        ColorWhen::Always => ColorChoice::Always,
        ColorWhen::Never => ColorChoice::Never,
    }
}
