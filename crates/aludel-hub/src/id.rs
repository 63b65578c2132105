//! Tells names on a hub from paths.

use std::path::Path;

/// A model at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    /// `owner/name`.
    pub(crate) name: String,
    pub(crate) revision: String,
}

impl Id {
    /// The id that a text is; `None` for every other text.
    pub(crate) fn parse(text: &str, revision: Option<&str>) -> Option<Self> {
        let revision = revision.unwrap_or(MAIN);
        let (owner, name) = text.split_once('/')?;
        let is_id = is_part(owner) && is_part(name) && revision.split('/').all(is_part);
        is_id.then(|| Self { name: text.to_owned(), revision: revision.to_owned() })
    }

    /// As a user writes it.
    pub(crate) fn shown(&self) -> String {
        match self.revision.as_str() {
            MAIN => self.name.clone(),
            revision => format!("{}@{revision}", self.name),
        }
    }
}

/// Whether a text may be part of an id: what hubs allow, and no step up or hidden name in a path.
fn is_part(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty()
        && text.len() <= LONGEST
        && text.chars().all(is_allowed)
        && !text.starts_with(['.', '-'])
        && !text.ends_with('.')
        && !text.contains("..")
}

/// Whether a text that is written like an id is more likely a path: its first part is a folder here.
pub(crate) fn is_beneath_a_folder(text: &str) -> bool {
    text.split('/').next().is_some_and(|first| Path::new(first).is_dir())
}

/// What a user writes before an id that a folder would hide.
pub(crate) const SCHEME: &str = "hf://";

const MAIN: &str = "main";

const LONGEST: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_owner_and_name() {
        for text in ["Qwen/Qwen3-0.6B", "a/b", "HuggingFaceTB/SmolLM2-135M", "m_x/y.z"] {
            assert_eq!(Id::parse(text, None).unwrap().shown(), text);
        }
        assert_eq!(Id::parse("a/b", Some("v1.0")).unwrap().shown(), "a/b@v1.0");
        assert_eq!(Id::parse("a/b", Some("refs/pr/1")).unwrap().revision, "refs/pr/1");
    }

    #[test]
    fn paths_are_no_ids() {
        for text in [
            "a", "/a", "a/", "./a", "../a", "a/b/c", "~/a", "a/..", "a/.b", "a//b", "a\\b", "a/b c", "a/b:c",
            "C:/x", "",
        ] {
            assert_eq!(Id::parse(text, None), None, "{text:?}");
        }
        for revision in ["", "..", "a/../b", "a b", "-x"] {
            assert_eq!(Id::parse("a/b", Some(revision)), None, "{revision:?}");
        }
    }
}
