//! Reads the YAML that a command is given, from a file or from standard input.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aludel_document::{Problem, Problems};

use crate::failure::Refusal;

/// Bytes that are read: more than the parser takes, so that it is the parser who refuses the rest.
const MOST_BYTES: u64 = 4 << 20;

/// What a file of YAML is called in messages.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    /// As in "cannot read the recipe r.yml".
    pub(super) noun: &'static str,
    /// What to do about a folder in its place.
    pub(super) hint: &'static str,
}

/// A text and its name; `-` is standard input.
pub(super) fn read(path: &Path, kind: Kind) -> Result<(String, String), Refusal> {
    let name = if is_stdin(path) { "<stdin>".to_owned() } else { path.display().to_string() };
    match read_from(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            let problems = unreadable(&name, kind, &error);
            Err(Refusal { recipe: Some(name), problems })
        }
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn read_from(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if is_stdin(path) {
        io::stdin().lock().take(MOST_BYTES).read_to_string(&mut text)?;
    } else {
        File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn unreadable(name: &str, kind: Kind, error: &io::Error) -> Problems {
    let Kind { noun, hint } = kind;
    let problem = Problem::general(format!("cannot read the {noun} {name}: {error}"));
    match error.kind() {
        io::ErrorKind::IsADirectory => problem.with_hint(hint),
        io::ErrorKind::InvalidData => problem.with_hint(format!("a {noun} is YAML text in UTF-8")),
        _ => problem,
    }
    .into()
}
