//! Reads references to models: `path`, or `path@revision`, with an adapter after a `+`, if any; or the same as a mapping.
//!
//! It looks at no disk and no hub.

use std::path::PathBuf;

use aludel_checkpoint::expand_home;
use aludel_document::{Content, Cursor, Key, quoted};

use super::keys::{MODEL_PATH, REFERENCE};
use crate::problem::{Problem, Problems};

/// A model, as a recipe names it. Two references are equal when they are written alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelReference {
    text: String,
    /// Where the path ends in `text`, and the revision after it and its `@`.
    split: Option<usize>,
    /// Where the model ends in `text`, and an adapter after it and its `+`.
    plus: Option<usize>,
}

impl ModelReference {
    /// The reference as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The model without its adapters, and the last of these; `None` where it has none.
    pub fn adapter(&self) -> Option<(Self, Self)> {
        let plus = self.plus?;
        Some((Self::plain_or_adapted(&self.text[..plus]), Self::plain_or_adapted(&self.text[plus + 1..])))
    }

    /// The path, with a leading `~/` replaced by the user's home folder.
    pub fn path(&self) -> PathBuf {
        let path = self.split.map_or(self.text.as_str(), |at| &self.text[..at]);
        expand_home(path)
    }

    /// The revision asked for, which only a hub could answer to.
    pub fn revision(&self) -> Option<&str> {
        self.split.map(|at| &self.text[at + 1..])
    }

    pub(super) fn read(cursor: &Cursor<'_>) -> Result<Self, Problem> {
        if matches!(cursor.node.content, Content::Mapping(_)) {
            return Self::from_text(&text_of_mapping(cursor)?, cursor);
        }
        Self::from_text(cursor.text("the path of a model")?, cursor)
    }

    fn from_text(text: &str, cursor: &Cursor<'_>) -> Result<Self, Problem> {
        for part in text.split('+') {
            check(part, text).map_err(|(message, hint)| {
                let problem = cursor.problem(message);
                if hint.is_empty() { problem } else { problem.with_hint(hint) }
            })?;
        }
        Ok(Self::plain_or_adapted(text))
    }

    /// A text whose parts have been checked.
    fn plain_or_adapted(text: &str) -> Self {
        let plus = text.rfind('+');
        Self { text: text.to_owned(), split: text.find('@').filter(|_| plus.is_none()), plus }
    }
}

/// What is wrong with a path, alone or with a revision, and what to do about it.
fn check(part: &str, text: &str) -> Result<(), (String, &'static str)> {
    let (path, revision) =
        part.split_once('@').map_or((part, None), |(path, revision)| (path, Some(revision)));
    match revision {
        Some(revision) if revision.contains('@') => {
            Err((format!("{} has more than one `@`", quoted(part)), ""))
        }
        Some("") => Err((format!("{} names no revision after its `@`", quoted(part)), "leave the `@` out")),
        _ if path.trim().is_empty() && part != text => {
            let hint = "write the folder of the model, a `+`, and the folder of the adapter";
            Err((format!("{} has nothing before or after a `+`", quoted(text)), hint))
        }
        _ if path.trim().is_empty() => Err(("the path of the model is empty".to_owned(), "")),
        _ => Ok(()),
    }
}

/// The text of mergekit's long form, `{model: {path: a, revision: b}, lora: {path: c}}`, in which either path may be a text.
fn text_of_mapping(cursor: &Cursor<'_>) -> Result<String, Problem> {
    known(cursor, REFERENCE)?;
    let hint = "write it as `{model: path/of/the/model}`, or as the path alone";
    let missing = || cursor.problem("`model` is missing").with_hint(hint);
    let model = text_of_path(&cursor.field("model").ok_or_else(missing)?)?;
    match cursor.field("lora") {
        Some(adapter) => Ok(format!("{model}+{}", text_of_path(&adapter)?)),
        None => Ok(model),
    }
}

fn text_of_path(cursor: &Cursor<'_>) -> Result<String, Problem> {
    if !matches!(cursor.node.content, Content::Mapping(_)) {
        return without(&['+'], cursor).map(str::to_owned);
    }
    known(cursor, MODEL_PATH)?;
    let path = cursor.field("path").ok_or_else(|| cursor.problem("`path` is missing"))?;
    let path = without(&['+', '@'], &path)?;
    match cursor.field("revision") {
        Some(revision) => Ok(format!("{path}@{}", without(&['+', '@'], &revision)?)),
        None => Ok(path.to_owned()),
    }
}

fn known(cursor: &Cursor<'_>, keys: &[Key]) -> Result<(), Problem> {
    let mut problems = Problems::new();
    cursor.check_keys(keys, "", &mut problems);
    problems.into_iter().next().map_or(Ok(()), Err)
}

/// A text that has none of the marks which part a reference.
fn without<'a>(marks: &[char], cursor: &Cursor<'a>) -> Result<&'a str, Problem> {
    let text = cursor.text("the path of a model")?;
    match text.chars().find(|mark| marks.contains(mark)) {
        Some(mark) => {
            let hint =
                "a revision stands under `revision` beside `path`, an adapter under `lora` beside `model`";
            Err(cursor.problem(format!("{} has a `{mark}`", quoted(text))).with_hint(hint))
        }
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use aludel_document::tree;

    use super::*;
    use crate::problem::Problems;

    fn read(yaml: &str) -> Result<ModelReference, String> {
        let node = tree::read(yaml, "recipe", &mut Problems::new()).unwrap();
        ModelReference::read(&Cursor::root(&node)).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_reference_is_a_path_with_an_optional_revision() {
        for (text, path, revision) in [
            ("models/base", "models/base", None),
            ("./a b.safetensors", "./a b.safetensors", None),
            ("/data/model@v1.2", "/data/model", Some("v1.2")),
            (r"C:\models\base", r"C:\models\base", None),
            ("~other/model", "~other/model", None),
        ] {
            let reference = read(text).unwrap();
            assert_eq!(reference.text(), text);
            assert_eq!((reference.path(), reference.revision()), (PathBuf::from(path), revision));
        }
    }

    #[test]
    fn adapters_follow_a_plus() {
        let parts = |text: &str| {
            let (model, adapter) = read(text).unwrap().adapter()?;
            Some((model.text().to_owned(), model.revision().map(str::to_owned), adapter.path()))
        };
        let owned = |model: &str, revision: Option<&str>, adapter: &str| {
            Some((model.to_owned(), revision.map(str::to_owned), PathBuf::from(adapter)))
        };
        assert_eq!(parts("a"), None);
        assert_eq!(parts("a+b"), owned("a", None, "b"));
        assert_eq!(parts("a@v1+b@v2"), owned("a@v1", Some("v1"), "b"));
        assert_eq!(parts("a+b+c"), owned("a+b", None, "c"));
    }

    #[test]
    fn a_mapping_is_the_same_as_the_text() {
        for (yaml, text) in [
            ("{model: a/b}", "a/b"),
            ("{model: a/b@v1, lora: null}", "a/b@v1"),
            ("{model: {path: a/b}}", "a/b"),
            ("{model: {path: a/b, revision: v1}, lora: {path: c, revision: 2}}", "a/b@v1+c@2"),
            ("{model: {path: a}, lora: c@v2}", "a+c@v2"),
        ] {
            assert_eq!(read(yaml).unwrap(), read(text).unwrap(), "{yaml}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        for (yaml, problem) in [
            (
                "a+",
                "1:1: `a+` has nothing before or after a `+` (write the folder of the model, a `+`, and the folder of the adapter)",
            ),
            ("a+b@", "1:1: `b@` names no revision after its `@` (leave the `@` out)"),
            ("a@b@c", "1:1: `a@b@c` has more than one `@`"),
            ("a@", "1:1: `a@` names no revision after its `@` (leave the `@` out)"),
            ("'@main'", "1:1: the path of the model is empty"),
            ("''", "1:1: the path of the model is empty"),
            ("~", "1:1: expected the path of a model, found nothing"),
            ("[a]", "1:1: expected the path of a model, found a list"),
            ("{path: a}", "1:2 path: unknown key `path` (known here: `model`, `lora`)"),
            (
                "{lora: a}",
                "1:1: `model` is missing (write it as `{model: path/of/the/model}`, or as the path alone)",
            ),
            ("{model: {revision: a}}", "1:9 model: `path` is missing"),
            ("{model: {path: ''}}", "1:1: the path of the model is empty"),
            (
                "{model: a+b}",
                "1:9 model: `a+b` has a `+` (a revision stands under `revision` beside `path`, an adapter under `lora` beside `model`)",
            ),
            (
                "{model: {path: a@b}}",
                "1:16 model.path: `a@b` has a `@` (a revision stands under `revision` beside `path`, an adapter under `lora` beside `model`)",
            ),
            (
                "{model: a, override_architecture: LlamaForCausalLM}",
                "1:12 override_architecture: `override_architecture` is not supported by this version yet (remove it: names and shapes of tensors say what is merged, whatever the architecture is called)",
            ),
        ] {
            assert_eq!(read(yaml).unwrap_err(), problem, "{yaml}");
        }
    }
}
