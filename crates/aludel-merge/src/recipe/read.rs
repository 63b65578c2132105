//! Reads a whole recipe from its tree.
//!
//! In: text. Out: a [`Recipe`] or every fault in it. A part that cannot be read is left out and reported, so that the
//! rest is still looked at; the recipe is returned only when nothing was reported.

use aludel_document::{Cursor, Located, tree};

use super::float::FloatType;
use super::keys::{MODEL, RECIPE};
use super::parameters::Parameters;
use super::reference::{ModelReference, TokenizerSource};
use super::{ModelEntry, Recipe};
use crate::problem::{Problem, Problems};

pub(super) fn recipe(text: &str) -> Result<Recipe, Problems> {
    let mut problems = Problems::new();
    let recipe = tree::read(text, "recipe", &mut problems).and_then(|root| {
        let root = Cursor::root(&root);
        if root.node.is_mapping() {
            whole(&root, text, &mut problems)
        } else {
            problems.push(not_a_recipe(&root));
            None
        }
    });
    match recipe {
        Some(recipe) if problems.is_empty() => Ok(recipe),
        _ => Err(problems.in_order_of_place()),
    }
}

fn not_a_recipe(root: &Cursor<'_>) -> Problem {
    let problem =
        if root.node.is_nothing() { root.problem("the recipe is empty") } else { root.mismatch("a mapping") };
    problem.with_hint("a recipe begins with `merge_method:` and `models:`")
}

fn whole(root: &Cursor<'_>, text: &str, problems: &mut Problems) -> Option<Recipe> {
    root.check_keys(RECIPE, "values for the merge method stand under `parameters:`", problems);
    let merge_method = read_method(root);
    let merge_method = problems.take(merge_method);
    let models = read_models(root, problems);
    let base_model = optional(root, "base_model", problems, located(ModelReference::read));
    let parameters = Parameters::read(root, problems);
    let dtype = optional(root, "dtype", problems, FloatType::read);
    let out_dtype = optional(root, "out_dtype", problems, FloatType::read);
    let tokenizer_source = optional(root, "tokenizer_source", problems, located(TokenizerSource::read));
    let chat_template = optional(root, "chat_template", problems, located(read_text));
    Some(Recipe {
        text: text.to_owned(),
        merge_method: merge_method?,
        models: models?,
        base_model,
        parameters,
        dtype,
        out_dtype,
        tokenizer_source,
        chat_template,
    })
}

/// Reads the value of a key; `None` when it is absent or, with a problem, unreadable.
fn optional<T>(
    parent: &Cursor<'_>,
    key: &str,
    problems: &mut Problems,
    read: impl Fn(&Cursor<'_>) -> Result<T, Problem>,
) -> Option<T> {
    parent.field(key).and_then(|cursor| problems.take(read(&cursor)))
}

/// Makes a reader keep the place of what it reads.
fn located<T>(
    read: impl Fn(&Cursor<'_>) -> Result<T, Problem>,
) -> impl Fn(&Cursor<'_>) -> Result<Located<T>, Problem> {
    move |cursor| read(cursor).map(|value| cursor.locate(value))
}

fn read_text(cursor: &Cursor<'_>) -> Result<String, Problem> {
    cursor.text("text").map(str::to_owned)
}

fn read_method(root: &Cursor<'_>) -> Result<Located<String>, Problem> {
    let missing =
        || root.problem("`merge_method` is missing").with_hint("add it, as in `merge_method: linear`");
    let cursor = root.field("merge_method").ok_or_else(missing)?;
    Ok(cursor.locate(cursor.text("the name of a merge method")?.to_owned()))
}

/// The three keys that say what is merged, of which a recipe has exactly one.
const SUBJECTS: [&str; 3] = ["models", "slices", "modules"];

fn read_models(root: &Cursor<'_>, problems: &mut Problems) -> Option<Vec<ModelEntry>> {
    let given: Vec<&str> = SUBJECTS.into_iter().filter(|key| root.field(key).is_some()).collect();
    if given.is_empty() {
        problems
            .push(root.problem("`models` is missing").with_hint("list the models to merge under `models:`"));
    }
    for other in given.iter().skip(1) {
        let message = format!("`{other}` and `{}` exclude each other", given[0]);
        problems
            .extend(root.field(other).map(|cursor| cursor.problem(message).with_hint("keep one of them")));
    }
    let cursor = root.field("models")?;
    let items = problems.take(cursor.items())?;
    if items.is_empty() {
        problems.push(cursor.problem("`models` is empty").with_hint("list at least one model"));
    }
    let entries: Vec<Option<ModelEntry>> = items.iter().map(|item| read_model(item, problems)).collect();
    entries.into_iter().collect()
}

fn read_model(cursor: &Cursor<'_>, problems: &mut Problems) -> Option<ModelEntry> {
    if !cursor.node.is_mapping() {
        problems.push(cursor.mismatch("a mapping").with_hint("write it as `- model: path/of/the/model`"));
        return None;
    }
    cursor.check_keys(MODEL, "values for the merge method stand under `parameters:`", problems);
    let missing =
        || cursor.problem("`model` is missing").with_hint("name the model: `- model: path/of/the/model`");
    let reference =
        cursor.field("model").ok_or_else(missing).and_then(|model| located(ModelReference::read)(&model));
    let reference = problems.take(reference);
    let parameters = Parameters::read(cursor, problems);
    Some(ModelEntry { reference: reference?, parameters })
}
