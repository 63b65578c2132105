//! Reads a recipe and plans its merge; whatever is wrong becomes a [`Refusal`] that names the recipe.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use aludel_document::{Problem, Problems};
use aludel_merge::plan::{Plan, PlanOptions};
use aludel_merge::recipe::Recipe;

use crate::failure::Refusal;

/// Bytes that are read of a recipe: more than the parser takes, so that it is the parser who refuses the rest.
const MOST_BYTES: u64 = 4 << 20;

/// Plans the merge of the recipe at a path; `-` is standard input.
pub(super) fn plan(path: &Path, options: &PlanOptions) -> Result<Plan, Refusal> {
    let name = if is_stdin(path) { "<stdin>".to_owned() } else { path.display().to_string() };
    let refuse =
        |problems: Problems| Refusal { recipe: Some(name.clone()), problems: problems.in_order_of_place() };
    let text = read(path).map_err(|error| refuse(unreadable(&name, &error)))?;
    let recipe = Recipe::parse(&text).map_err(refuse)?;
    Plan::new(&recipe, options).map_err(refuse)
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    if is_stdin(path) {
        io::stdin().lock().take(MOST_BYTES).read_to_string(&mut text)?;
    } else {
        File::open(path)?.take(MOST_BYTES).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn unreadable(name: &str, error: &io::Error) -> Problems {
    let problem = Problem::general(format!("cannot read the recipe {name}: {error}"));
    match error.kind() {
        io::ErrorKind::IsADirectory => {
            problem.with_hint("give the recipe's YAML file, then the output folder")
        }
        io::ErrorKind::InvalidData => problem.with_hint("a recipe is YAML text in UTF-8"),
        _ => problem,
    }
    .into()
}
