//! Reads references to models: `path`, or `path@revision`, with an adapter after a `+`, if any.
//!
//! It looks at no disk and no hub.

use std::path::{Path, PathBuf};

use aludel_document::{Content, Cursor, quoted};

use crate::problem::Problem;

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
        expand_home(path, std::env::home_dir().as_deref())
    }

    /// The revision asked for, which only a hub could answer to.
    pub fn revision(&self) -> Option<&str> {
        self.split.map(|at| &self.text[at + 1..])
    }

    pub(super) fn read(cursor: &Cursor<'_>) -> Result<Self, Problem> {
        if matches!(cursor.node.content, Content::Mapping(_)) {
            return Err(cursor
                .problem("a model written as a mapping is not supported by this version yet")
                .with_hint("write its path as text"));
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

fn expand_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
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
    fn a_tilde_is_the_home_folder() {
        assert_eq!(expand_home("~/m/x", Some(Path::new("/home/u"))), PathBuf::from("/home/u/m/x"));
        assert_eq!(expand_home("~/m/x", None), PathBuf::from("~/m/x"));
        assert_eq!(expand_home("a/~/x", Some(Path::new("/home/u"))), PathBuf::from("a/~/x"));
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
            (
                "{model: a}",
                "1:1: a model written as a mapping is not supported by this version yet (write its path as text)",
            ),
        ] {
            assert_eq!(read(yaml).unwrap_err(), problem, "{yaml}");
        }
    }
}
