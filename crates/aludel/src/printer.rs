//! Prints everything that the program says: data on standard output, talk on standard error.
//!
//! It is the only place that writes to either (the progress bar aside, which is taken down before anything is printed).
//! Names in messages may come from files, so control characters are escaped: no tensor name steers a terminal.
//! A reader that goes away early (`| head`) is no failure.

use std::fmt::Display;
use std::io::{self, Write};

use aludel_document::Problem;
use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::Refusal;
use crate::settings::{Talk, Verbosity};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// The one printer.
pub(crate) struct Printer {
    talk: Talk,
}

impl Printer {
    /// Talks as told.
    pub(crate) fn new(talk: Talk) -> Self {
        Self { talk }
    }

    /// How it talks.
    pub(crate) fn talk(&self) -> &Talk {
        &self.talk
    }

    /// A result for people, on standard output.
    pub(crate) fn data(&self, text: &dyn Display) -> io::Result<()> {
        write_data(&harmless(&text.to_string(), KeepLines::Yes))
    }

    /// A part of a result for people, on standard output, without the end of a line.
    pub(crate) fn part(&self, text: &str) -> io::Result<()> {
        write_part(&harmless(text, KeepLines::Yes))
    }

    /// A result for programs, on standard output.
    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(write_data(&serde_json::to_string_pretty(value)?)?)
    }

    /// Talk at this verbosity and above.
    pub(crate) fn say(&self, least: Verbosity, text: &dyn Display) {
        if self.talk.verbosity >= least {
            self.stderr(&harmless(&text.to_string(), KeepLines::Yes));
        }
    }

    /// Something that the user should know although the work goes on.
    pub(crate) fn warning(&self, text: &dyn Display) {
        if self.talk.verbosity >= Verbosity::Normal {
            self.stderr(&labelled(WARNING, "warning", &text.to_string()));
        }
    }

    /// A failure: as lines on standard error and, where asked for, as JSON on standard output.
    pub(crate) fn failure(&self, error: &anyhow::Error, code: u8) {
        match error.downcast_ref::<Refusal>() {
            Some(refusal) => self.refusal(refusal),
            None => self.stderr(&labelled(ERROR, "error", &told(error))),
        }
        if self.talk.json {
            let _ = self.json(&failure_json(error, code)); // There is nobody left to tell.
        }
    }

    fn refusal(&self, refusal: &Refusal) {
        for problem in &refusal.problems {
            self.stderr(&labelled(ERROR, "error", &located(refusal.recipe.as_deref(), problem)));
            if let Some(hint) = &problem.hint {
                self.stderr(&format!("  {}", labelled(HINT, "hint", hint)));
            }
        }
        let omitted = refusal.problems.count() - refusal.problems.iter().len();
        if omitted > 0 {
            self.stderr(&format!("and {omitted} more"));
        }
        self.stderr(&format!("aludel: {refusal}"));
    }

    /// A line on standard error. When that is gone there is nowhere to say so.
    fn stderr(&self, text: &str) {
        let mut stream = AutoStream::new(io::stderr().lock(), self.talk.color);
        let _ = writeln!(stream, "{text}");
    }
}

fn write_data(text: &str) -> io::Result<()> {
    write_part(&format!("{text}\n"))
}

fn write_part(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

fn labelled(style: Style, label: &str, text: &str) -> String {
    format!("{style}{label}:{style:#} {}", harmless(text, KeepLines::No))
}

/// `recipe.yml:7:5: models[1].parameters.wieght: unknown key`.
fn located(recipe: Option<&str>, problem: &Problem) -> String {
    let Some((recipe, place)) = recipe.zip(problem.place.as_ref()) else { return problem.message.clone() };
    let path = if place.path.is_empty() { String::new() } else { format!("{}: ", place.path) };
    format!("{recipe}:{}:{}: {path}{}", place.line, place.column, problem.message)
}

/// An error with its causes, without those that it tells itself.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.contains(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

fn failure_json(error: &anyhow::Error, code: u8) -> Value {
    let refusal = error.downcast_ref::<Refusal>();
    let problems: Option<Vec<&Problem>> = refusal.map(|refusal| refusal.problems.iter().collect());
    let recipe = refusal.and_then(|refusal| refusal.recipe.as_deref());
    let message = told(error);
    match problems {
        Some(problems) => {
            json!({"error": {"exit_code": code, "message": message, "recipe": recipe, "problems": problems}})
        }
        None => json!({"error": {"exit_code": code, "message": message}}),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeepLines {
    Yes,
    No,
}

/// The text with control characters escaped, so that what comes from files cannot steer a terminal.
fn harmless(text: &str, lines: KeepLines) -> String {
    let is_kept = |c: char| !c.is_control() || (matches!(c, '\n' | '\t') && lines == KeepLines::Yes);
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        match is_kept(character) {
            true => harmless.push(character),
            false => harmless.extend(character.escape_default()),
        }
    }
    harmless
}

#[cfg(test)]
mod tests {
    use aludel_document::{Place, Problems};

    use super::*;

    fn problem() -> Problem {
        let place = Place { line: 7, column: 5, path: "models[1].parameters.wieght".into() };
        Problem::at(place, "unknown key").with_hint("did you mean `weight`?")
    }

    #[test]
    fn a_problem_starts_with_a_place_that_editors_jump_to() {
        let expected = "recipe.yml:7:5: models[1].parameters.wieght: unknown key";
        assert_eq!(located(Some("recipe.yml"), &problem()), expected);
        assert_eq!(located(None, &problem()), "unknown key");
        assert_eq!(located(Some("recipe.yml"), &Problem::general("no space")), "no space");
    }

    #[test]
    fn nothing_that_comes_from_a_file_steers_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2J\u{9b}1m\rb\nc", KeepLines::Yes), "a\\u{1b}[2J\\u{9b}1m\\rb\nc");
        assert_eq!(harmless("a\nerror: b", KeepLines::No), "a\\nerror: b");
    }

    #[test]
    fn a_cause_is_told_once() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = aludel_checkpoint::Error::Io { action: "write", path: "out".into(), source: full() };
        assert_eq!(told(&error.into()), format!("cannot write out: {}", full()));
        assert_eq!(
            told(&anyhow::Error::from(full()).context("no checkpoint")),
            format!("no checkpoint: {}", full())
        );
    }

    #[test]
    fn a_refusal_as_json_has_every_problem() {
        let refusal = Refusal { recipe: Some("r.yml".into()), problems: Problems::from(problem()) };
        let json = failure_json(&refusal.into(), 3);
        assert_eq!(json["error"]["exit_code"], 3);
        assert_eq!(json["error"]["recipe"], "r.yml");
        assert_eq!(json["error"]["problems"][0]["place"]["line"], 7);
        assert_eq!(json["error"]["problems"][0]["hint"], "did you mean `weight`?");
        let other = failure_json(&anyhow::anyhow!("disk full"), 1);
        assert_eq!(other, json!({"error": {"exit_code": 1, "message": "disk full"}}));
    }
}
