//! Reads a whole recipe from its tree.
//!
//! In: text, of one document or several. Out: a [`Recipe`] or every fault in it. A part that cannot be read is left out and reported, so that the
//! rest is still looked at; the recipe is returned only when nothing was reported.

use std::sync::Arc;

use aludel_document::{Cursor, Located, Scalar, tree};

use super::Recipe;
use super::float::FloatType;
use super::keys::RECIPE;
use super::parameters::Parameters;
use super::part::read_parts;
use super::reference::ModelReference;
use super::stages::linked;
use super::tokenizer::Tokenizer;
use crate::problem::{Problem, Problems};

pub(super) fn recipe(text: &str) -> Result<Recipe, Problems> {
    let mut problems = Problems::new();
    let documents = tree::read_all(text, "recipe", &mut problems);
    let shared: Arc<str> = text.into();
    let recipes: Vec<Option<Recipe>> =
        documents.iter().map(|document| one(&Cursor::root(document), &shared, &mut problems)).collect();
    let recipes: Option<Vec<Recipe>> = recipes.into_iter().collect();
    let recipe = recipes.filter(|_| problems.is_empty()).and_then(|recipes| linked(recipes, &mut problems));
    match recipe {
        Some(recipe) if problems.is_empty() => Ok(recipe),
        _ => Err(problems.in_order_of_place()),
    }
}

fn one(root: &Cursor<'_>, text: &Arc<str>, problems: &mut Problems) -> Option<Recipe> {
    if root.node.is_mapping() {
        return whole(root, text, problems);
    }
    problems.push(not_a_recipe(root));
    None
}

fn not_a_recipe(root: &Cursor<'_>) -> Problem {
    let problem =
        if root.node.is_nothing() { root.problem("the recipe is empty") } else { root.mismatch("a mapping") };
    problem.with_hint("a recipe begins with `merge_method:` and `models:`")
}

fn whole(root: &Cursor<'_>, text: &Arc<str>, problems: &mut Problems) -> Option<Recipe> {
    root.check_keys(RECIPE, "values for the merge method stand under `parameters:`", problems);
    let merge_method = read_method(root);
    let merge_method = problems.take(merge_method);
    let parts = read_parts(root, problems);
    let base_model = optional(root, "base_model", problems, located(ModelReference::read));
    let parameters = Parameters::read(root, problems);
    let dtype = optional(root, "dtype", problems, FloatType::read);
    let out_dtype = optional(root, "out_dtype", problems, FloatType::read);
    let tokenizer = Tokenizer::read(root, problems);
    let chat_template = optional(root, "chat_template", problems, located(read_text));
    let align_experts = optional(root, "align_experts", problems, located(read_truth));
    let name = optional(root, "name", problems, located(read_text));
    Some(Recipe {
        text: Arc::clone(text),
        name,
        stages: Vec::new(),
        merge_method: merge_method?,
        parts: parts?,
        base_model,
        parameters,
        dtype,
        out_dtype,
        tokenizer,
        chat_template,
        align_experts,
    })
}

/// Reads the value of a key; `None` when it is absent or, with a problem, unreadable.
pub(super) fn optional<T>(
    parent: &Cursor<'_>,
    key: &str,
    problems: &mut Problems,
    read: impl Fn(&Cursor<'_>) -> Result<T, Problem>,
) -> Option<T> {
    parent.field(key).and_then(|cursor| problems.take(read(&cursor)))
}

/// Makes a reader keep the place of what it reads.
pub(super) fn located<T>(
    read: impl Fn(&Cursor<'_>) -> Result<T, Problem>,
) -> impl Fn(&Cursor<'_>) -> Result<Located<T>, Problem> {
    move |cursor| read(cursor).map(|value| cursor.locate(value))
}

fn read_text(cursor: &Cursor<'_>) -> Result<String, Problem> {
    cursor.text("text").map(str::to_owned)
}

/// A truth value, as YAML and JSON write them.
pub(super) fn read_truth(cursor: &Cursor<'_>) -> Result<bool, Problem> {
    match cursor.scalar()? {
        Scalar::Bool(truth) => Ok(truth),
        Scalar::Number(1.0) => Ok(true),
        Scalar::Number(0.0) => Ok(false),
        _ => Err(cursor.mismatch("`true` or `false`")),
    }
}

fn read_method(root: &Cursor<'_>) -> Result<Located<String>, Problem> {
    let missing =
        || root.problem("`merge_method` is missing").with_hint("add it, as in `merge_method: linear`");
    let cursor = root.field("merge_method").ok_or_else(missing)?;
    Ok(cursor.locate(cursor.text("the name of a merge method")?.to_owned()))
}
